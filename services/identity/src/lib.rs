//! Who people are: accounts, sessions, and the tokens that they sign in with.
//!
//! - Consumes: HTTP requests to sign in, to renew and end sessions, to manage accounts; `DefineAccount`, `RemoveAccount`,
//!   `OpenSession`, `RenewSession`, `CloseSession`.
//! - Publishes: people's commands about accounts and sessions in their name; `AccountDefined`, `AccountRemoved`,
//!   `SessionOpened`, `SessionRenewed`, `SessionClosed`, `IdentityRefused`; its public keys, over HTTP.
//! - Owns: accounts and sessions, on the bus; the issuer's keys, in a file.
//! - Never: puts a password on the bus; decides what somebody may do elsewhere.

#![allow(
    clippy::disallowed_methods,
    reason = "HTTP is served, keys and ids are drawn; xtask tidy keeps this out of domain"
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod api;
mod config;
pub mod domain;
mod shell;

use std::sync::{Arc, Mutex};

use mesh_kit::{Mesh, Sources};
use mesh_rest::ask::Answers;
use tokio::sync::Semaphore;

pub use config::Config;
use domain::accounts::Accounts;

/// Password checks at once: each takes megabytes and a core.
const CHECKS_MAX: usize = 2;

/// Joins the mesh; returns once its decider and its view run and requests are answered.
///
/// # Errors
/// When the keys cannot be read, or the bus does not let it join.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let sources = Sources { streams: vec!["IDENTITY"], ..Sources::default() };
    let accounts = mesh.project("accounts", Accounts::default(), sources).await?;
    // Looked at before commands are answered: a command from an earlier run of this process may make the first account.
    let no_account = !accounts.read(Accounts::any);
    let issuer = shell::issuer::Issuer::open(&config, mesh.keys_dir(&[shell::issuer::KEYS])?, !no_account)?;
    let answers = Answers::start(&mesh, &["IDENTITY"]).await?;
    mesh.decide(domain::identities::Identities).await?;
    let inner = shell::Inner {
        mesh: mesh.clone(),
        config,
        issuer,
        accounts,
        answers,
        buckets: Mutex::default(),
        checks: Arc::new(Semaphore::new(CHECKS_MAX)),
    };
    let identity = shell::Identity { inner: Arc::new(inner) };
    mesh.serve_http(api::routes(&identity));
    let known = mesh.condition("an account to sign in with");
    mesh.spawn("first account", identity.first_account(no_account, known));
    Ok(())
}
