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
    let verdicts = mesh.decide(domain::Verdicts).await?;
    mesh.serve(ValidatorQueriesServer::new(api::Api::new(verdicts.read_model())));
    Ok(())
}
