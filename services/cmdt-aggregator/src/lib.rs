//! Fuses what is said and measured into one digital twin per workload instance, cluster and node.
//!
//! - Consumes: the facts of workloads, placements, instances and clusters; samples (Zenoh); its own `TwinChanged`.
//! - Publishes: `TwinChanged`.
//! - Owns: twins, their versions and their history.
//! - Never: decides anything about what a twin is of.

mod api;
mod config;
pub mod domain;
mod shell;

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
    let documents = mesh_store::open(&config.documents).context("open document store")?;
    let history = mesh_store::open(&config.history).context("open history store")?;
    let stores = shell::store::Stores {
        documents: documents.documents("twins", document_limits),
        history: history.history("twins", history_limits),
    };
    let limits = domain::Limits {
        measured_ms: config.measured_ms.into(),
        ended_keep_ms: config.ended_keep_ms.into(),
        ..domain::Limits::default()
    };
    let rights = mesh_proto::contract().service(mesh.name()).context("find own rights in the contract")?;
    let sources = Sources {
        streams: vec!["WORKLOAD", "CLUSTER", "PLACEMENT", "INSTANCE"],
        samples: rights.samples_in.iter().map(String::as_str).collect(),
        tick_ms: Some(config.tick_ms),
        pace_ms: 20,
        ..Sources::default()
    };
    let view = mesh.project("twins", domain::Twins::new(limits), sources).await?;
    shell::metrics::show(&mesh, &view);
    mesh.serve(TwinQueriesServer::new(api::Api { mesh: mesh.clone(), view, stores: stores.clone() }));
    let keep = shell::store::Retention { history_ms: config.history_ms.into(), ended_ms: config.ended_keep_ms.into() };
    mesh.spawn("history", shell::store::keep(mesh.clone(), stores, keep));
    Ok(())
}
