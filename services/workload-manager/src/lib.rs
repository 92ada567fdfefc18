//! Owns workload documents (what can run) and the life of their instances (what shall run, and how it fares).
//!
//! - Consumes: `RegisterWorkload`, `RunInstance`, `StopInstance`; verdicts on documents; `IntentAcknowledged` and the
//!   end of intents; what the planner decides (`PlacementDecided`, `-Unplaced`, `-Released`) and what agents say
//!   (`InstanceStatusChanged`).
//! - Publishes: `WorkloadSubmitted`, `-Unchanged`, `-Registered`, `-Rejected`; `InstanceWanted`, `-Unavailable`,
//!   `-Unwanted`, `-Changed`; `WorkloadRefused`.
//! - Owns: documents, immutable per name and version; instances.
//! - Never: judges a document's content, chooses a cluster, starts a process.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod api;
pub mod chart;
pub mod charts;
pub mod domain;
pub mod view;

use mesh_kit::{Mesh, Sources};
use mesh_proto::query::workload_queries_server::WorkloadQueriesServer;

/// The workload manager has nothing to set.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

/// Joins the mesh; returns once its decider and its view run and its queries are served.
///
/// # Errors
/// When the bus does not let it join.
pub async fn start(mesh: Mesh, _config: Config) -> anyhow::Result<()> {
    let sources = Sources { streams: vec!["WORKLOAD"], samples: vec![], tick_ms: None };
    let view = mesh.project("workloads", view::Catalogue::default(), sources).await?;
    mesh.serve(WorkloadQueriesServer::new(api::Api { view }));
    mesh.decide(domain::Workloads).await?;
    mesh.decide(charts::Charts).await
}
