//! Measures and exposes the network, and carries network intents out.
//!
//! - Consumes: `ProbeSample` (Zenoh), `ClusterRegistered`; `SubmitNetworkIntent`, `WithdrawNetworkIntent`,
//!   `ReportConnectivity`; `IntentAcknowledged` and `IntentStateChanged` of intents about networks.
//! - Publishes: `CostsChanged`, `NetworkMetricsPublished`; `NetworkAccepted`, `ConnectivityChanged`, `NetworkRefused`.
//! - Owns: what the network costs; ALTO maps; the life of network intents.
//! - Never: probes (agents do), or decides where anything runs.

mod api;
mod config;
pub mod domain;
pub mod shell;

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use mesh_kit::{Mesh, Sources};
use mesh_proto::network::network_queries_server::NetworkQueriesServer;

pub use config::Config;
pub use shell::adaptors;

/// Joins the mesh; returns once its views, its decider and its ALTO server run.
///
/// # Errors
/// A library file that cannot be read; the bus or the samples away.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let catalogue = Arc::new(catalogue(&config)?);
    let rights = mesh_proto::contract().service(mesh.name()).context("find own rights in the contract")?;
    let sources = Sources {
        streams: vec!["CLUSTER", "COST"],
        samples: rights.samples_in.iter().map(String::as_str).collect(),
        tick_ms: Some(config.tick_ms),
        pace_ms: 20,
        ..Sources::default()
    };
    let costs = mesh.project("costs", domain::costs::Costs::new(config.limits()), sources).await?;
    let sources = Sources { streams: vec!["NETWORK"], ..Sources::default() };
    let networks = mesh.project("network intents", domain::view::Networks::default(), sources).await?;
    shell::record::keep(&mesh, &config.series, config.series_keep_ms)?;
    shell::metrics::show(&mesh, &costs);
    mesh.serve_http(shell::alto_http::pages(&mesh, costs.clone(), users(&config)?));
    let url = format!("{}{}", mesh.endpoint(), domain::alto::ROOT);
    let api = api::Api { costs, networks, catalogue: catalogue.clone(), url };
    mesh.serve(NetworkQueriesServer::new(api));
    mesh.decide(domain::networks::Networks::new(catalogue.clone())).await?;
    let adaptors = shell::adaptors::standard(&config.netns_dir);
    mesh.spawn("executor", shell::executor::Executor::new(mesh.clone(), catalogue, adaptors).run());
    Ok(())
}

/// Who may ask by ALTO; anybody if no file names them.
fn users(config: &Config) -> anyhow::Result<Option<domain::alto::digest::Users>> {
    if config.alto_users_file.is_empty() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&config.alto_users_file).context("read the ALTO users file")?;
    let users = domain::alto::digest::Users::parse(&text);
    Ok(Some(users.map_err(|line| anyhow!("{} line {line}: write user:alto:<SHA-256>", config.alto_users_file))?))
}

/// The libraries that come along, and those that are installed as files.
fn catalogue(config: &Config) -> anyhow::Result<domain::intents::Catalogue> {
    let mut catalogue = domain::intents::standard();
    if config.libraries_dir.is_empty() {
        return Ok(catalogue);
    }
    let folder = std::fs::read_dir(&config.libraries_dir).context("read the folder of libraries")?;
    let mut files: Vec<_> = folder.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "yaml" || e == "yml"));
    files.sort();
    for path in files {
        let text = std::fs::read_to_string(&path).with_context(|| format!("read library {}", path.display()))?;
        let library =
            domain::intents::Template::parse(&text).map_err(|refusal| anyhow!("{}: {refusal}", path.display()))?;
        catalogue.install(Box::new(library));
    }
    Ok(catalogue)
}
