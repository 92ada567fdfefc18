//! The REST and TMF921 faces of the mesh, sign-in, and the way to exposed workloads.
//!
//! - Consumes: HTTP requests; `DefineAccount`, `RemoveAccount`, `OpenSession`, `RenewSession`, `CloseSession`; `Subscribe`,
//!   `Unsubscribe`, `ClaimDelivery`, `ReportDelivery`.
//! - Publishes: people's commands in their name; `AccountDefined`, `AccountRemoved`, `SessionOpened`, `SessionRenewed`,
//!   `SessionClosed`, `IdentityRefused`; `Subscribed`, `Unsubscribed`, `DeliveryClaimed`, `DeliveryReported`,
//!   `SubscriptionRefused`; to itself `ClaimDelivery` and `ReportDelivery`; events of TMF921 to callbacks.
//! - Owns: accounts and sessions of the built-in issuer and subscriptions, on the bus; nothing in the process, so that
//!   any number of gateways run side by side.
//! - Never: decides about an intent, a workload or a cluster; lets a token through that it has not checked.

#![allow(clippy::disallowed_methods, reason = "HTTP is served and measured; xtask tidy keeps this out of domain")]

mod accounts;
mod ask;
mod config;
pub mod domain;
mod gateway;
mod hub;
mod intents;
mod issuer;
mod pages;
mod proxy;
mod serve;
mod sessions;
mod signin;
mod workloads;

use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use mesh_client::Peers;
use mesh_kit::{Mesh, Sources};
use tokio::sync::Semaphore;

pub use config::Config;
pub use proxy::Proxy;

/// Password checks at once.
const CHECKS_MAX: usize = 2;

/// Joins the mesh; returns once its decider and its views run and requests are answered.
///
/// # Errors
/// When keys cannot be read, the address is taken, or the bus does not let it join.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let signin = signin::SignIn::new(&mesh, &config)?;
    let streams = |streams| Sources { streams, ..Sources::default() };
    let accounts = mesh.project("accounts", accounts::Accounts::default(), streams(vec!["IDENTITY"])).await?;
    // As it is before commands are answered: one of an earlier life may make the account that this one is about to make.
    let no_account = !accounts.read(accounts::Accounts::any);
    let routes = domain::routes::Routes::default();
    let routes = mesh.project("routes", routes, streams(vec!["WORKLOAD", "CLUSTER"])).await?;
    let hub = mesh.project("hub", hub::Hub::default(), streams(vec!["SUBSCRIPTION"])).await?;
    let sender = hub::Sender::new(&config)?;
    let answers = ask::Answers::start(&mesh, &["INTENT", "WORKLOAD", "IDENTITY", "SUBSCRIPTION"]).await?;
    mesh.decide(domain::identity::Identities).await?;
    mesh.decide(domain::subscriptions::Subscriptions).await?;
    let (listener, url) = serve::listen(&config.rest_listen).await?;
    let watches = Arc::new(Semaphore::new(config.watches_max as usize));
    let inner = gateway::Inner {
        peers: Peers::new(mesh.bus().clone()),
        mesh: mesh.clone(),
        config,
        answers,
        signin,
        accounts,
        routes,
        hub,
        sender,
        buckets: Mutex::default(),
        checks: Arc::new(Semaphore::new(CHECKS_MAX)),
        watches,
    };
    let gateway = gateway::Gateway { inner: Arc::new(inner) };
    if let Some(folder) = mesh.data_dir() {
        std::fs::create_dir_all(folder).context("make the data folder")?;
        std::fs::write(folder.join("url"), &url).context("write where the gateway is")?;
    }
    let router = serve::router(&gateway, &url);
    mesh.spawn("faces", serve::serve(gateway.clone(), listener, router));
    mesh.spawn("hub", hub::deliver(gateway.clone()));
    if gateway.inner.signin.issuer().is_some() {
        let known = mesh.condition("an account to sign in with");
        mesh.spawn("first account", gateway.first_account(no_account, known));
    }
    tracing::info!(url, "gateway");
    Ok(())
}
