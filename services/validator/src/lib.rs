//! Says whether what people submit is well formed, allowed and feasible.
//!
//! - Consumes: `IntentSubmitted`, `WorkloadSubmitted`; `InstanceWanted` and `ClusterRegistered` for feasibility;
//!   `IntentAcknowledged` and `IntentStateChanged` for conflicts.
//! - Publishes: `IntentAccepted` or `IntentRejected`, `WorkloadAccepted` or `WorkloadRejected`, one for each;
//!   `FeasibilityChanged` when an intent's feasibility turns; `ConflictsChanged` when what stands against it of others does.
//! - Owns: the verdict.
//! - Never: changes an intent's state or a document, places anything.

mod api;
pub mod domain;

use anyhow::Context as _;
use mesh_kit::Sources;
use mesh_proto::validation::validator_queries_server::ValidatorQueriesServer;

/// The validator has nothing to set: what is allowed is the contract's, not a deployment's.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

/// Joins the mesh; returns once its decider runs and its queries are served.
///
/// # Errors
/// When the bus does not let it join.
pub async fn start(mesh: mesh_kit::Mesh, _config: Config) -> anyhow::Result<()> {
    let sources = Sources { streams: vec!["CLUSTER", "WORKLOAD", "INTENT"], ..Sources::default() };
    let view = mesh.project("what is known", domain::Known::default(), sources).await.context("build view")?;
    mesh.serve(ValidatorQueriesServer::new(api::Api::new(view)));
    mesh.decide(domain::Verdicts).await
}
