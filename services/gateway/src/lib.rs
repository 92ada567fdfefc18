//! The REST and TMF921 interfaces of the mesh, and the way to exposed workloads.
//!
//! - Consumes: HTTP requests; the facts that answer the commands it passes on.
//! - Publishes: people's commands in their name; on Zenoh, readings of what goes through to workloads.
//! - Owns: nothing, so that any number of gateways run side by side. People sign in at the identity service, and the
//!   notifier sends events; the gateway is the way to both.
//! - Never: decides about an intent, a workload or a cluster; lets a token through that it has not checked.

#![allow(clippy::disallowed_methods, reason = "HTTP is served and measured; xtask tidy keeps this out of domain")]

mod api;
mod config;
pub mod domain;
mod shell;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use mesh_client::Peers;
use mesh_kit::{Mesh, Sources};
use mesh_rest::ask::Answers;
use tokio::sync::Semaphore;

pub use config::Config;
pub use shell::proxy::{Proxy, Upstream};

/// Joins the mesh; returns once its view runs and requests are answered.
///
/// # Errors
/// When the address is taken, or the bus does not let it join.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let origins = domain::cors::Origins::parse(&config.cors_origins).map_err(|wrong| {
        anyhow::anyhow!("cors_origins: {wrong:?} is no origin; write https://host or http://host:port, without a path")
    })?;
    let receiver = match config.remote_write_url.as_str() {
        "" => None,
        url => {
            let parsed = url.parse::<http::Uri>().ok();
            let of_web = |uri: &http::Uri| uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https"));
            let parsed = parsed.filter(of_web);
            Some(parsed.with_context(|| format!("remote_write_url: {url:?} is not an http:// or https:// address"))?)
        }
    };
    anyhow::ensure!(
        receiver.is_none() || config.remote_write_interval_ms >= 100,
        "remote_write_interval_ms is {}: use 100 or more",
        config.remote_write_interval_ms
    );
    let signin = shell::signin::SignIn::new(&mesh, &config)?;
    mesh.spawn("first keys", signin.clone().first_keys(mesh.condition("keys to check tokens with")));
    let sources = Sources { streams: vec!["WORKLOAD", "CLUSTER"], ..Sources::default() };
    let routes = mesh.project("routes", domain::routes::Routes::default(), sources).await?;
    let sources = Sources { streams: vec!["MEASUREMENT"], ..Sources::default() };
    let in_force = mesh.project("measurements", domain::measurement::InForce::default(), sources).await?;
    let answers = Answers::start(&mesh, &["INTENT", "WORKLOAD", "SUBSCRIPTION", "MEASUREMENT"]).await?;
    let (listener, url) = api::listen(&config.rest_listen).await?;
    let watches = Arc::new(Semaphore::new(config.watches_max as usize));
    let inner = shell::gateway::Inner {
        peers: Peers::new(mesh.bus().clone()),
        proxy: Proxy::new(Duration::from_millis(config.upstream_limit_ms.into()), mesh.settings(), mesh.stopping())?,
        mesh: mesh.clone(),
        config,
        answers,
        signin,
        routes,
        in_force,
        buckets: Mutex::default(),
        traffic: Mutex::default(),
        watches,
    };
    let gateway = shell::gateway::Gateway { inner: Arc::new(inner) };
    if let Some(folder) = mesh.data_dir() {
        std::fs::create_dir_all(folder).context("make the data folder")?;
        let file = folder.join("url");
        mesh_kit::write_atomic(&file, url.as_bytes(), mesh_kit::ReadableBy::Anyone)
            .context("write the address of the gateway")?;
    }
    if let Some(receiver) = receiver {
        mesh.spawn("remote write", shell::remote_write::send(gateway.clone(), receiver));
    }
    mesh.spawn("traffic", shell::traffic::say(gateway.clone()));
    let router = api::router(&gateway, &url);
    mesh.spawn("rest", api::serve(gateway, listener, router, origins));
    tracing::info!(url, "gateway");
    Ok(())
}
