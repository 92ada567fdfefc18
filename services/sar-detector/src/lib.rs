//! Finds anomalies in the measurements of every instance, says which metric is to blame, and asks for remedies.
//!
//! - Consumes: samples (Zenoh, and packed from TELEMETRY); `InstanceWanted`; its own `AnomalyDetected` and `-Cleared`;
//!   `SetRemedyPolicy`; `InstanceChanged`.
//! - Publishes: `AnomalyDetected`, `AnomalyCleared`; `RemedyPolicySet`, `-Requested`, `-Withheld`, `-Settled`, `-Refused`;
//!   `SetMeasurement` (what is suspected is measured more often for a while).
//! - Owns: episodes and their explanation; remedy policies, and whether a remedy helped.
//! - Never: touches an instance. The orchestrator carries remedies out, within its own cool-down.

mod api;
mod config;
pub mod domain;
mod shell;

use anyhow::{Context as _, anyhow};
use mesh_kit::{Mesh, Sources};
use mesh_proto::{
    anomaly::anomaly_queries_server::AnomalyQueriesServer, remedy::remedy_queries_server::RemedyQueriesServer,
};

pub use config::Config;

/// Joins the mesh; returns once its view and its decider run and its queries are served.
///
/// # Errors
/// A rule or limit that cannot be; the bus or the samples away.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let limits = config.limits().map_err(|problem| anyhow!(problem)).context("read the limits")?;
    let rules = domain::rules::read(&config.rules).map_err(|problem| anyhow!(problem)).context("read the rules")?;
    let mut sar = domain::Sar::new(limits, rules);
    shell::checkpoint::restore(&mesh, &mut sar);
    let rights = mesh_proto::contract().service(mesh.name()).context("find own rights in the contract")?;
    let sources = Sources {
        streams: vec!["WORKLOAD", "ANOMALY", "TELEMETRY"],
        samples: rights.samples_in.iter().map(String::as_str).collect(),
        tick_ms: Some(config.tick_ms),
        pace_ms: 20,
        ..Sources::default()
    };
    let anomalies = mesh.project("anomalies", sar, sources).await?;
    shell::metrics::show(&mesh, &anomalies);
    let sources = Sources { streams: vec!["REMEDY"], ..Sources::default() };
    let remedies = mesh.project("remedy-list", domain::remedy_list::Remedies::default(), sources).await?;
    mesh.serve(AnomalyQueriesServer::new(api::Anomalies::new(&mesh, anomalies.clone())));
    mesh.serve(RemedyQueriesServer::new(api::Remedies::new(remedies)));
    if config.snapshot_ms > 0 {
        mesh.spawn("snapshots", shell::checkpoint::keep(mesh.clone(), anomalies, config.snapshot_ms.into()));
    }
    mesh.decide(domain::remedies::Remedies).await?;
    Ok(())
}
