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

use std::sync::Arc;

use anyhow::Context as _;
use mesh_kit::{Mesh, Sources};
use mesh_proto::account::account_queries_server::AccountQueriesServer;

use self::{
    api::{Accounts, Api, Entries},
    domain::books::Books,
    shell::store::{ENTRIES, FAULTS, Stores},
};
pub use config::Config;
pub use shell::key;

/// How often it is seen whether a head is to be published, milliseconds.
const TICK_MS: u64 = 500;

/// Joins the mesh; returns once its decider and its view run and its queries are served. What rests in a database is then
/// still being read.
///
/// # Errors
/// A key file or a URL that cannot be used; a bus that does not let it join.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let keys_dir = mesh.keys_dir(&[shell::key::FILE])?;
    let signer = shell::key::signer(config.signing_key_file.as_deref(), keys_dir).context("find the signing key")?;
    tracing::info!(key = %signer.verifier(), "heads are signed");
    let signer = Arc::new(signer);
    let decided = mesh.decide(domain::Accounting).await?;
    let stores = Stores::open(&mesh, &config.documents, &config.history, decided)?;
    if let Some(stores) = &stores {
        stores.keep(&mesh);
    }
    let kept = stores.as_ref().filter(|stores| stores.keep_entries()).cloned();
    let (accounts, entries) = if let Some(kept) = kept {
        kept.measure(&mesh);
        let often = (config.head_every_ms, TICK_MS);
        mesh.spawn("heads", kept.clone().announce(mesh.clone(), signer.clone(), often));
        (Accounts::Kept(kept.clone()), Entries::Kept(kept, signer))
    } else {
        let sources = Sources { streams: vec!["ACCOUNT"], tick_ms: Some(TICK_MS), ..Sources::default() };
        let view = mesh.project("books", Books::new(signer, config.head_every_ms), sources).await?;
        view.counter(&mesh, FAULTS.0, FAULTS.1, |books| books.fold().faults());
        view.gauge(&mesh, ENTRIES.0, ENTRIES.1, |books| books.fold().ledger().size());
        (stores.map_or_else(|| Accounts::Books(view.clone()), Accounts::Kept), Entries::Books(view))
    };
    mesh.serve(AccountQueriesServer::new(Api { mesh: mesh.clone(), accounts, entries }));
    Ok(())
}
