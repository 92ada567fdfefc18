//! Says whether what people submit is well formed, allowed and feasible.
//!
//! - Consumes: `IntentSubmitted`, `WorkloadSubmitted`; `InstanceWanted` and `ClusterRegistered` for feasibility.
//! - Publishes: `IntentAccepted` or `IntentRejected`, `WorkloadAccepted` or `WorkloadRejected`, one for each;
//!   `FeasibilityChanged` when an intent's feasibility turns.
//! - Owns: the verdict.
//! - Never: knows an intent's state, changes a document, places anything.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod api;
pub mod content;
pub mod domain;

use mesh_proto::query::validator_queries_server::ValidatorQueriesServer;

/// The validator has nothing to set: what is allowed is the contract's, not a deployment's.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

/// Joins the mesh; returns once its decider runs and its queries are served.
///
/// # Errors
/// When the bus does not let it join.
pub async fn start(mesh: mesh_kit::Mesh, _config: Config) -> anyhow::Result<()> {
    mesh.serve(ValidatorQueriesServer::new(api::Api));
    mesh.decide(domain::Verdicts).await
}
