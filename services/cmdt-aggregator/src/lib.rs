//! Fuses what is said and measured into one digital twin per workload instance, cluster, node and network, and one of the
//! continuum.
//!
//! - Consumes: the facts of workloads, placements, instances, clusters, anomalies and costs; samples and readings (Zenoh);
//!   its own `TwinChanged`.
//! - Publishes: `TwinChanged`; messages as the specification's CMDT on `cmdt.<cluster>.<instance>`, not stored; answers to
//!   questions over Zenoh.
//! - Owns: twins, their versions and their history.
//! - Never: decides anything about what a twin is of.

mod api;
mod config;
pub mod domain;
mod shell;

use std::collections::BTreeMap;

use anyhow::Context as _;
use mesh_kit::{Mesh, Sources};
use mesh_proto::twin::twin_queries_server::TwinQueriesServer;
use mesh_store::memory::{DocumentLimits, WindowLimits};

pub use config::Config;

/// Joins the mesh; returns once every subscription is live.
///
/// # Errors
/// A store URL that names no engine; the bus or the samples away.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let document_limits = DocumentLimits { documents_max: config.twins_max, ..DocumentLimits::default() };
    let history_limits = WindowLimits {
        lanes_max: config.twins_max,
        items_max: config.history_versions_max,
        bytes_max: config.history_bytes_max,
    };
    let stores = shell::store::Stores {
        documents: mesh.documents("twins", &config.documents, document_limits)?,
        history: mesh.history("twins", &config.history, history_limits, config.history_keep_ms)?,
    };
    let limits = domain::Limits {
        // Ticks come a little early or late: without half of one, every second would now and then wait for a third tick.
        measured_ms: i64::from(config.measured_ms) - i64::try_from(config.tick_ms / 2).unwrap_or_default(),
        ended_keep_ms: config.ended_keep_ms.into(),
        ..domain::Limits::default()
    };
    let rights = mesh_proto::contract().service(mesh.name()).context("find own rights in the contract")?;
    let sources = Sources {
        streams: vec!["WORKLOAD", "CLUSTER", "PLACEMENT", "INSTANCE", "ANOMALY", "COST"],
        // All links are in the newest costs.
        from: BTreeMap::from([("COST", mesh.bus().log("COST").last_sequence().await.context("read end of costs")?)]),
        samples: rights.samples_in.iter().map(String::as_str).collect(),
        tick_ms: Some(config.tick_ms),
        pace_ms: 20,
        ..Sources::default()
    };
    let published = shell::store::last_published(&mesh).await?;
    let view = mesh.project("twins", domain::Twins::restored(limits, published), sources).await?;
    shell::metrics::show(&mesh, &view);
    for key in &rights.answers {
        let samples = mesh.samples().await?;
        let questions = samples.questions(key, config.questions_max).await.context("take questions")?;
        mesh.spawn("questions", shell::edge::answer(mesh.clone(), view.clone(), questions));
    }
    mesh.spawn("messages", shell::announce::run(mesh.clone(), view.clone(), config.message_ms.into()));
    let keep = shell::store::Retention::new(&config, stores.history.is_remote());
    mesh.serve(TwinQueriesServer::new(api::Api { mesh: mesh.clone(), view, stores: stores.clone(), keep }));
    let remote = stores.documents.is_remote() || stores.history.is_remote();
    let shelves = shell::store::Shelves { stores, keep, advanced: Default::default() };
    mesh.keep(shell::store::keeping(keep, remote), shelves);
    Ok(())
}
