//! Takes telemetry in, and says what each intent's targets achieved.
//!
//! - Consumes: samples of instances (Zenoh), `IntentAcknowledged`, `IntentStateChanged`, its own `Measured`.
//! - Publishes: `Measured` (samples packed by instance), `TargetObserved` (each period of each active intent).
//! - Owns: what was observed; a recent window of samples; the streaming-telemetry channel.
//! - Never: judges an intent.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod api;
pub mod domain;
mod feed;
mod metrics;
mod period;
mod store;

use std::sync::Arc;

use anyhow::Context as _;
use mesh_kit::{Mesh, Sources};
use mesh_proto::query::telemetry_queries_server::TelemetryQueriesServer;
use mesh_store::memory::WindowLimits;

pub use feed::Cursor;

/// What the collector is told.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long after its end a period waits for late samples, milliseconds.
    pub late_ms: i64,
    /// How long samples wait to be packed, milliseconds.
    pub flush_ms: i64,
    /// Instances whose samples are taken in.
    pub instances_max: usize,
    /// How far back samples can be asked for, milliseconds.
    pub window_ms: i64,
    /// Memory for that window, bytes; past it the oldest samples leave.
    pub window_bytes_max: u64,
    /// How often periods are looked at, milliseconds.
    pub tick_ms: u64,
    /// Where the window rests, as a URL.
    pub store: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            late_ms: 300,
            flush_ms: 1_000,
            instances_max: 10_000,
            window_ms: 600_000,
            window_bytes_max: 64 << 20,
            tick_ms: 100,
            store: "memory:".into(),
        }
    }
}

/// Joins the mesh; returns once every subscription is live.
///
/// # Errors
/// A store URL that names no engine; the bus or the samples away.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let Config { late_ms, flush_ms, instances_max, .. } = config;
    let limits = domain::Limits { late_ms, flush_ms, instances_max, ..domain::Limits::default() };
    let window = WindowLimits {
        lanes_max: instances_max,
        items_max: usize::try_from(config.window_ms / 100).unwrap_or_default().max(600),
        bytes_max: config.window_bytes_max,
    };
    let series = mesh_store::open(&config.store).context("open store")?.series("telemetry", window);
    let rights = mesh_proto::contract().service(mesh.name()).context("find own rights in the contract")?;
    let samples = rights.samples_in.iter().map(String::as_str).filter(|key| key.contains("/instance/")).collect();
    let sources = Sources { streams: vec!["INTENT"], samples, tick_ms: Some(config.tick_ms) };
    let view = mesh.project("observations", domain::Collector::new(limits), sources).await?;
    let dropped = Arc::default();
    metrics::show(&mesh, &view, Arc::clone(&dropped));
    let (stopping, of) = (mesh.stopping(), series.clone());
    mesh.serve(TelemetryQueriesServer::new(api::Api { view, series: of, stopping, dropped }));
    mesh.spawn("window", store::keep(mesh.clone(), series, config.window_ms));
    Ok(())
}
