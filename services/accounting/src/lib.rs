//! Owns the ledger: what was used, who owes what, and the proof of it.
//!
//! - Consumes: `SetRegion`, `SetTariff`, `TopUp`; `WorkloadRegistered` and `ClusterRegistered` (accounts and their grants);
//!   `UsageClosed` (windows to charge).
//! - Publishes: `Posted` for each entry, `AccountRefused`; `HeadSigned` now and then.
//! - Owns: balances, debts, rates, which windows were charged, the Merkle tree over all of it.
//! - Never: measures anything, stops anybody who does not pay.

mod api;
mod config;
pub mod domain;
pub mod shell;

use anyhow::Context as _;
use mesh_kit::{Mesh, Sources};
use mesh_proto::account::account_queries_server::AccountQueriesServer;

pub use config::Config;
pub use shell::key;

/// How often it is seen whether a head is to be published, milliseconds.
const TICK_MS: u64 = 500;

/// Joins the mesh; returns once its decider and its view run and its queries are served.
///
/// # Errors
/// A key file that cannot be used; a bus that does not let it join.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let keys_dir = mesh.keys_dir(&[shell::key::FILE])?;
    let signer = shell::key::signer(config.signing_key_file.as_deref(), keys_dir).context("find the signing key")?;
    tracing::info!(key = %signer.verifier(), "heads are signed");
    let sources = Sources { streams: vec!["ACCOUNT"], tick_ms: Some(TICK_MS), ..Sources::default() };
    let view = mesh.project("books", domain::books::Books::new(signer, config.head_every_ms), sources).await?;
    let faults = "entries that are not what the ledger's rules make of what they are about";
    view.counter(&mesh, "accounting_faults_total", faults, domain::books::Books::faults);
    view.gauge(&mesh, "accounting_entries", "entries in the ledger", |books| books.ledger().size());
    mesh.serve(AccountQueriesServer::new(api::Api { mesh: mesh.clone(), view }));
    mesh.decide(domain::Accounting).await?;
    Ok(())
}
