//! Takes telemetry in, and says what each intent's targets achieved.
//!
//! - Consumes: samples of instances (Zenoh), `IntentAcknowledged`, `IntentStateChanged`, its own `Packed`;
//!   `ClusterRegistered`, `InstanceWanted`, `InstanceChanged` (whose usage it is).
//! - Publishes: `Packed` (samples packed by cluster), `TargetObserved` (each period of each active intent),
//!   `UsageClosed` (each window of each instance).
//! - Owns: what was observed; a recent window of samples; the streaming-telemetry channel.
//! - Never: judges an intent, prices anything.

mod api;
mod config;
pub mod domain;
mod shell;

use std::sync::Arc;

use anyhow::Context as _;
use mesh_kit::{Mesh, Sources};
use mesh_proto::is_of_instances;
use mesh_proto::telemetry::telemetry_queries_server::TelemetryQueriesServer;
use mesh_store::memory::WindowLimits;

pub use config::Config;
pub use domain::feed::Cursor;
pub use domain::usage;

/// Joins the mesh; returns once every subscription is live.
///
/// # Errors
/// A store URL that names no engine; the bus or the samples away.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let limits = domain::Limits {
        late_ms: config.late_ms.into(),
        flush_ms: config.flush_ms.into(),
        instances_max: config.instances_max,
        usage: domain::usage::Limits {
            window_ms: config.usage_window_ms,
            grace_ms: config.usage_grace_ms.into(),
            instances_max: config.instances_max,
            ..usage::Limits::default()
        },
        ..domain::Limits::default()
    };
    let window = WindowLimits {
        lanes_max: config.instances_max,
        // Ten samples a second are more than any agent sends.
        items_max: (config.window_ms / 100).max(600) as usize,
        bytes_max: config.window_bytes_max,
    };
    let series = mesh_store::open(&config.store).context("open store")?.series("telemetry", window);
    let rights = mesh_proto::contract().service(mesh.name()).context("find own rights in the contract")?;
    let samples = rights.samples_in.iter().map(String::as_str).filter(|key| is_of_instances(key)).collect();
    let sources = Sources {
        streams: vec!["INTENT", "CLUSTER", "WORKLOAD"],
        samples,
        tick_ms: Some(config.tick_ms),
        pace_ms: 20,
        ..Sources::default()
    };
    let view = mesh.project("observations", domain::Collector::new(limits), sources).await?;
    let dropped = Arc::default();
    shell::metrics::show(&mesh, &view, Arc::clone(&dropped));
    let (stopping, of) = (mesh.stopping(), series.clone());
    mesh.serve(TelemetryQueriesServer::new(api::Api { view, series: of, stopping, dropped }));
    mesh.spawn("window", shell::store::keep(mesh.clone(), series, config.window_ms.into()));
    Ok(())
}
