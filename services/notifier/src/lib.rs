//! Subscriptions to the events of intents (TMF921's hub), and their delivery by HTTP.
//!
//! - Consumes: `Subscribe`, `Unsubscribe`, `ClaimDelivery`, `ReportDelivery`; the facts of intents.
//! - Publishes: `Subscribed`, `Unsubscribed`, `DeliveryClaimed`, `DeliveryReported`, `SubscriptionRefused`; to itself
//!   `ClaimDelivery` and `ReportDelivery`; events of TMF921 to callbacks.
//! - Owns: subscriptions. Any number of processes run side by side: the one that holds a subscription's claim delivers.
//! - Never: calls an address that is neither public nor listed.

#![allow(
    clippy::disallowed_methods,
    reason = "HTTP is served, keys and ids are drawn; xtask tidy keeps this out of domain"
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod api;
mod config;
pub mod domain;
mod shell;

use mesh_kit::{Mesh, Sources};
use mesh_proto::subscription::subscription_queries_server::SubscriptionQueriesServer;

pub use config::Config;

/// Joins the mesh; returns once its decider and its view run and questions are answered.
///
/// # Errors
/// When the system's certificates cannot be read, or the bus does not let it join.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let sources = Sources { streams: vec!["SUBSCRIPTION"], ..Sources::default() };
    let hub = mesh.project("hub", domain::hub::Hub::default(), sources).await?;
    let sender = shell::sender::Sender::new(&config)?;
    mesh.decide(domain::subscriptions::Subscriptions).await?;
    mesh.serve(SubscriptionQueriesServer::new(api::Queries { hub: hub.clone(), sender: sender.clone() }));
    let notifier = shell::delivery::Notifier { mesh: mesh.clone(), hub, sender };
    mesh.spawn("deliveries", shell::delivery::run(notifier));
    Ok(())
}
