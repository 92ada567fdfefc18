//! Fuses what is said and measured into one digital twin per workload instance, cluster and node.
//!
//! - Consumes: the facts of workloads, placements, instances and clusters; samples (Zenoh); its own `TwinChanged`.
//! - Publishes: `TwinChanged`.
//! - Owns: twins, their versions and their history.
//! - Never: decides anything about what a twin is of.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod api;
pub mod domain;
mod metrics;
mod parts;
mod store;

use anyhow::Context as _;
use mesh_kit::{Mesh, Sources};
use mesh_proto::query::twin_queries_server::TwinQueriesServer;
use mesh_store::memory::{DocumentLimits, WindowLimits};

/// What the aggregator is told.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How often twins are looked at, milliseconds; a changed status is published within this time.
    pub tick_ms: u64,
    /// Least time between two versions of a twin that differ in measured values only, milliseconds.
    pub measured_ms: i64,
    /// How long a twin stays after its instance ended, milliseconds.
    pub ended_keep_ms: i64,
    /// How far back versions of twins can be asked for, milliseconds.
    pub history_ms: i64,
    /// Versions of one twin that can be asked for.
    pub history_versions_max: usize,
    /// Memory for all versions, bytes; past it the oldest leave.
    pub history_bytes_max: u64,
    /// Twins that can be listed.
    pub twins_max: usize,
    /// Where listed twins rest, as a URL.
    pub documents: String,
    /// Where versions rest, as a URL.
    pub history: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tick_ms: 200,
            measured_ms: 1_000,
            ended_keep_ms: 600_000,
            history_ms: 3_600_000,
            history_versions_max: 1_000,
            history_bytes_max: 64 << 20,
            twins_max: 100_000,
            documents: "memory:".into(),
            history: "memory:".into(),
        }
    }
}

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
    let stores = store::Stores {
        documents: documents.documents("twins", document_limits),
        history: history.history("twins", history_limits),
    };
    let Config { measured_ms, ended_keep_ms, .. } = config;
    let limits = domain::Limits { measured_ms, ended_keep_ms, ..domain::Limits::default() };
    let rights = mesh_proto::contract().service(mesh.name()).context("find own rights in the contract")?;
    let sources = Sources {
        streams: vec!["WORKLOAD", "CLUSTER", "PLACEMENT", "INSTANCE"],
        samples: rights.samples_in.iter().map(String::as_str).collect(),
        tick_ms: Some(config.tick_ms),
    };
    let view = mesh.project("twins", domain::Twins::new(limits), sources).await?;
    metrics::show(&mesh, &view);
    mesh.serve(TwinQueriesServer::new(api::Api { mesh: mesh.clone(), view, stores: stores.clone() }));
    let keep = store::Keep { history_ms: config.history_ms, ended_ms: config.ended_keep_ms };
    mesh.spawn("history", store::keep(mesh.clone(), stores, keep));
    Ok(())
}
