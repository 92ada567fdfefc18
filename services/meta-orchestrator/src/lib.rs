//! Decides where everything runs: plans, assignments, moves.
//!
//! - Consumes: `InstanceWanted`, `InstanceStatusChanged`, `InstanceRejected`, `ClusterRegistered`, `IntentRemedyWanted`,
//!   `IntentRemedyUnwanted`, `RemedyRequested`, `ReportLiveness`, `LearningAdvised`; its own `PlacementDecided` and
//!   `PlacementReleased`; presence tokens of agents on Zenoh.
//! - Publishes: per domain `PlacementDecided`, `PlacementUnplaced`, `PlacementReleased`, `PlacementSettled`,
//!   `ClusterJoined`, `ClusterLost`, `ClusterReturned`; per cluster `AssignmentChanged`; `ReportLiveness` to itself.
//! - Owns: which cluster runs an instance, in which generation, and which clusters answer.
//! - Never: judges an intent, starts or stops anything, spends a capacity twice.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod api;
pub mod assignments;
mod config;
pub mod liveness;
pub mod placements;
pub mod view;
mod watch;

use anyhow::Context as _;
use mesh_kit::{Mesh, Sources};
use mesh_proto::query::orchestrator_queries_server::OrchestratorQueriesServer;

pub use mesh_world::plan;

pub use crate::config::Config;
use crate::{assignments::Assignments, placements::Placements, view::Orchestrator};

/// Where agents show that they live: `continuum/<site>/<node>/alive/<cluster>`.
const ALIVE: &str = "continuum/*/*/alive/*";

/// Joins the mesh; returns once it plans, answers and watches.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    mesh.decide(Placements::new(config.limits())).await?;
    mesh.decide(Assignments).await?;
    let sources = Sources { streams: vec!["PLACEMENT", "CLUSTER", "LEARNING"], ..Default::default() };
    let view = mesh.project("orchestrator", Orchestrator::new(config.limits()), sources).await?;
    mesh.serve(OrchestratorQueriesServer::new(api::Api::new(view.clone())));
    let samples = mesh.samples().await?;
    let alive = samples.watch_alive(ALIVE).await.context("watch which clusters live")?;
    mesh.spawn("liveness", watch::watch(mesh.clone(), config, view, samples, alive));
    Ok(())
}
