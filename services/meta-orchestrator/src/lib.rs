//! Decides where everything runs: plans, assignments, moves.
//!
//! - Consumes: `InstanceWanted`, `InstanceStatusChanged`, `InstanceRejected`, `ClusterRegistered`, `IntentRemedyWanted`,
//!   `IntentRemedyUnwanted`, `RemedyRequested`, `ReportLiveness`, `LearningAdvised`; its own `PlacementDecided` and
//!   `PlacementReleased`; presence tokens of agents on Zenoh.
//! - Publishes: per domain `PlacementDecided`, `PlacementUnplaced`, `PlacementReleased`, `PlacementSettled`,
//!   `ClusterJoined`, `ClusterLost`, `ClusterReturned`; per cluster `AssignmentChanged`; `ReportLiveness` to itself.
//! - Owns: which cluster runs an instance, in which generation, and which clusters answer.
//! - Never: judges an intent, starts or stops anything, spends a capacity twice.

mod api;
mod config;
pub mod domain;
mod shell;

use anyhow::Context as _;
use mesh_core::Key;
use mesh_kit::{Mesh, Sources};
use mesh_proto::placement::orchestrator_queries_server::OrchestratorQueriesServer;

pub use mesh_planner as plan;

pub use crate::config::Config;
use crate::domain::{assignments::Assignments, placements::Placements, view::Orchestrator};
pub use domain::{assignments, liveness, placements};

/// Signal by which agents show that they are alive.
const ALIVE: &str = "alive";

/// Joins the mesh; returns once it plans, answers and watches.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let placements = mesh.decide(Placements::new(config.limits())).await?;
    let planned = placements.entity(Key::new([config.domain.as_str()])).await?;
    mesh.decide(Assignments).await?;
    let records = shell::records::keep(&mesh, &config.decisions, config.decisions_keep_ms)?;
    let clusters = shell::clusters::Clusters::keep(&mesh, &config.documents).await?;
    let mut streams = vec!["PLACEMENT", "LEARNING"];
    if clusters.is_none() {
        streams.push("CLUSTER");
    }
    let sources = Sources { streams, ..Default::default() };
    let view = mesh.project("orchestrator", Orchestrator::recording(records.is_some()), sources).await?;
    mesh.serve(OrchestratorQueriesServer::new(api::Api { planned: planned.clone(), view, records, clusters }));
    let samples = mesh.samples().await?;
    let alive = samples.watch_alive(&mesh_proto::sample_keys(ALIVE)).await.context("watch which clusters live")?;
    mesh.spawn("liveness", shell::watch::watch(mesh.clone(), config, planned, samples, alive));
    Ok(())
}
