//! Owns workload documents (what can run) and the life of their instances (what shall run, and how it fares).
//!
//! - Consumes: commands about documents (`RegisterWorkload`, `AttachChart`, `DropWorkload`), archives (`UploadChart`)
//!   and instances (`RunInstance`, `-Stop`, `-Upgrade`, `-Rollback`, `-Migrate`, `-Delete`); verdicts on documents;
//!   `IntentAcknowledged` and the end of intents; what the planner decides (`PlacementDecided`, `-Unplaced`,
//!   `-Released`, `MigrationDeclined`) and what agents say (`InstanceStatusChanged`).
//! - Publishes: `WorkloadSubmitted`, `-Unchanged`, `-Onboarding`, `-Checked`, `-Registered`, `-Rejected`, `-Dropped`;
//!   `ChartStored`; `InstanceWanted`, `-Unavailable`, `-Unwanted`, `-Changed`, `-Deleted`; `MigrationWanted`; to itself
//!   `ReportChecks`, after the four checks of a chart.
//! - Owns: documents, immutable per name and version; archives; instances and their revisions.
//! - Never: judges what a document asks for, chooses a cluster, starts a process of a workload.

mod api;
mod config;
pub mod domain;
mod shell;

use std::sync::Arc;

use mesh_kit::{Mesh, Sources};
use mesh_proto::workload::workload_queries_server::WorkloadQueriesServer;

use self::shell::store::{Shown, Stores};
pub use config::Config;

/// Entities in memory where documents and instances rest in a database: idle ones beyond are read again when an input is
/// about them.
const ENTITIES_MAX: usize = 10_000;

/// Joins the mesh; returns once its deciders and its view run, its queries are served and charts are checked. What rests in
/// a database is then still being read.
///
/// # Errors
/// When the bus does not let it join, its file of registries cannot be read, or a URL cannot be used for documents.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let checks = Arc::new(shell::checks::Checks::new(&config)?);
    let shown = match Stores::open(&mesh, &config.documents)? {
        Some(kept) => {
            let decided = mesh.decide_within(domain::Workloads, ENTITIES_MAX).await?;
            Shown::Kept(Stores::keep(&mesh, kept, decided))
        }
        None => {
            let sources = Sources { streams: vec!["WORKLOAD"], ..Sources::default() };
            let view = mesh.project("workloads", domain::catalogue::Catalogue::default(), sources).await?;
            mesh.decide(domain::Workloads).await?;
            Shown::View(view)
        }
    };
    let api = api::Api { mesh: mesh.clone(), shown: shown.clone(), checks: checks.clone() };
    mesh.serve(WorkloadQueriesServer::new(api));
    mesh.decide(domain::charts::Charts).await?;
    mesh.spawn("checks", shell::checks::follow(mesh.clone(), shown, checks));
    Ok(())
}
