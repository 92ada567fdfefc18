//! Takes telemetry in, and says what each intent's targets achieved.
//!
//! - Consumes: samples of instances and readings of anything (Zenoh, gRPC), `IntentAcknowledged`, `IntentStateChanged`,
//!   its own `Packed` and `Readings`; `ClusterRegistered`, `InstanceWanted`, `InstanceChanged` (whose usage it is);
//!   `SetMeasurement`, `UnsetMeasurement`, `DefineCondition`, `DropCondition`.
//! - Publishes: `Packed` (samples of instances), `Readings` (checked, in base units), `TargetObserved` (each period of each
//!   active intent), `ThresholdCrossed` (each crossing of a condition), `UsageClosed` (each window of each instance);
//!   `MeasurementSet`, `MeasurementUnset`, `ConditionDefined`, `ConditionDropped`, `MeasurementRefused`.
//! - Owns: how clusters are measured; conditions; what was observed; series, raw and rolled up; the streaming-telemetry
//!   channel.
//! - Never: judges an intent, prices anything.

mod api;
mod config;
pub mod domain;
mod shell;

use std::sync::Arc;

use anyhow::Context as _;
use mesh_kit::{Mesh, Sources};
use mesh_proto::{
    Event as _, is_of_instances, is_of_readings, observation::ThresholdCrossed,
    telemetry::telemetry_queries_server::TelemetryQueriesServer,
};
use mesh_store::memory::WindowLimits;
use parking_lot::RwLock;
use tokio::sync::mpsc;

use self::{domain::catalog::Catalog, shell::store::Stores};

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
            // Those that ended are known until their windows are closed.
            instances_max: config.instances_max.saturating_mul(10),
            ..usage::Limits::default()
        },
        readings: domain::readings::Limits {
            agents_max: config.instances_max,
            series_max: config.series_max,
            series_of_agent_max: config.series_of_agent_max,
            values_per_second: config.values_of_agent_per_second,
            ..domain::readings::Limits::default()
        },
        ..domain::Limits::default()
    };
    // By default ten samples a second are more than any agent sends; of what is rolled up there is one point a step.
    let limits_of = |keep_ms: u64, every_ms: u64, bytes_max: u64| WindowLimits {
        lanes_max: config.instances_max,
        items_max: usize::try_from(keep_ms / every_ms).unwrap_or(usize::MAX).max(600),
        bytes_max,
    };
    let [minute, five, hour] = domain::rollup::LENGTHS_MS.map(i64::unsigned_abs);
    let share = config.rolled_bytes_max / 3;
    let series = |name: &str, limits| mesh.series(name, &config.store, limits);
    let others = shell::sharing::Others::default();
    let mut collector = domain::Collector::new(limits);
    let raw = series("telemetry", limits_of(config.window_ms.into(), 100, config.window_bytes_max))?;
    let stores = Stores {
        keep_ms: config.keep_ms(raw.is_remote()),
        raw,
        rolled: [
            series("telemetry_1m", limits_of(config.keep_minutes_ms, minute, share))?,
            series("telemetry_5m", limits_of(config.keep_five_minutes_ms, five, share))?,
            series("telemetry_1h", limits_of(config.keep_hours_ms, hour, share))?,
        ],
        catalog: Arc::new(RwLock::new(Catalog::new(config.instances_max))),
        recent: collector.recent(),
        others: others.clone(),
    };
    let rights = mesh_proto::contract().service(mesh.name()).context("find own rights in the contract")?;
    let keys = rights.samples_in.iter().map(String::as_str);
    let (feed, fed) = mpsc::channel(FED_MAX);
    let part = shell::sharing::Part::join(&mesh, others.clone()).await?;
    let sources = Sources {
        streams: vec!["INTENT", "CLUSTER", "WORKLOAD", "MEASUREMENT"],
        samples: keys.filter(|key| is_of_instances(key) || is_of_readings(key)).collect(),
        fed: Some(fed),
        tick_ms: Some(config.tick_ms),
        pace_ms: 20,
        ..Sources::default()
    };
    collector.share(mesh.process(), part.members());
    collector.restore(&crossings(&mesh).await.context("read which conditions held")?);
    let ingested = collector.ingested();
    let view = mesh.project("observations", collector, sources).await?;
    mesh.decide(domain::measurements::Measurements).await?;
    let settings = view.clone();
    let (dropped, late) = (Arc::default(), Arc::default());
    shell::metrics::show(&mesh, &view, Arc::clone(&dropped), Arc::clone(&late));
    mesh.spawn("other collectors", part.follow(feed.clone()));
    mesh.spawn("what others store", shell::sharing::stored(mesh.clone(), others, feed.clone()));
    let api = api::Api { mesh: mesh.clone(), view, stores: stores.clone(), feed, ingested, dropped };
    mesh.serve(TelemetryQueriesServer::new(api));
    let catalog = stores.catalog.clone();
    let retained: shell::store::Retained = Arc::new(move || settings.read(|c| c.retained(&catalog.read())));
    mesh.keep(stores.keeping("samples"), shell::store::Raw::new(stores.clone(), retained.clone()));
    mesh.keep(stores.keeping("rolled-up samples"), shell::store::Rolled::new(stores, retained, late));
    Ok(())
}

/// What came over gRPC, or from other collectors, and waits to be taken in.
const FED_MAX: usize = 256;

/// Every crossing that was said, oldest first.
async fn crossings(mesh: &Mesh) -> anyhow::Result<Vec<ThresholdCrossed>> {
    const PAGE: usize = 1_000;
    let subject =
        mesh_proto::contract().event(ThresholdCrossed::MESSAGE).map(|event| event.filter()).unwrap_or_default();
    let log = mesh.bus().log(ThresholdCrossed::STREAM);
    let (mut from, mut found) = (1, vec![]);
    loop {
        let page = log.read(&subject, from, PAGE).await?;
        let Some(last) = page.last() else { return Ok(found) };
        from = last.sequence + 1;
        for message in &page {
            found.extend(message.event::<ThresholdCrossed>()?);
        }
        if page.len() < PAGE {
            return Ok(found);
        }
    }
}
