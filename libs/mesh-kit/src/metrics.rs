//! Metrics of one service: OpenTelemetry instruments, shown on `/metrics` and sent by OTLP when that is set.
//!
//! What every consumer (decider, projector, tail) counts is [`INSTRUMENTS`]; each carries the attributes `service` and
//! `consumer`. `$SRV.STATS` answers from the same numbers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Histogram, Meter, MeterProvider as _},
};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use parking_lot::Mutex;
use prometheus::{Encoder as _, TextEncoder};

use mesh_core::replica::Counts;

use crate::allocator::{Allocated, allocated};

/// Messages taken in.
pub const RECEIVED: &str = "mesh_consumer_received_total";
/// Messages done with, whatever came of them.
pub const HANDLED: &str = "mesh_consumer_handled_total";
/// Decisions or writes taken again.
pub const RETRIED: &str = "mesh_consumer_retried_total";
/// Messages given up: now dead letters, or lost samples.
pub const DEAD: &str = "mesh_consumer_dead_total";
/// Facts or derived events stored.
pub const FACTS: &str = "mesh_consumer_facts_total";
/// Messages that this version cannot decode.
pub const UNDECODABLE: &str = "mesh_consumer_undecodable_total";
/// Time from a message taken in to done with, seconds.
pub const SECONDS: &str = "mesh_consumer_seconds";
/// Messages stored that it has not taken in yet.
pub const LAG: &str = "mesh_consumer_lag";
/// Messages taken in and not done with.
pub const OPEN: &str = "mesh_consumer_open";
/// How long ago the oldest message was stored that was taken in and is not done, milliseconds.
pub const AGE: &str = "mesh_consumer_age_ms";
/// Entities whose commands wait until less work is under way.
pub const WAITING: &str = "mesh_consumer_waiting";
/// Entities held in memory.
pub const ENTITIES: &str = "mesh_consumer_entities";

/// Allocations of the process since its start, of all services in it.
pub const ALLOCATIONS: &str = "process_allocations_total";
/// Bytes that they asked for.
pub const ALLOCATED: &str = "process_allocated_bytes_total";

/// Every instrument that a consumer has, with its kind. Scraping a process shows all of them for each of its consumers
/// from the moment it joined (the histogram from its first message); a test holds this.
pub const INSTRUMENTS: &[(&str, &str)] = &[
    (RECEIVED, "counter"),
    (HANDLED, "counter"),
    (RETRIED, "counter"),
    (DEAD, "counter"),
    (FACTS, "counter"),
    (UNDECODABLE, "counter"),
    (SECONDS, "histogram"),
    (LAG, "gauge"),
    (OPEN, "gauge"),
    (AGE, "gauge"),
    (WAITING, "gauge"),
    (ENTITIES, "gauge"),
];

/// Bounds of the time histogram, seconds.
const SECONDS_BOUNDS: &[f64] =
    &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

/// Metrics that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Prometheus exporter was not built.
    #[error("build the /metrics exporter")]
    Exporter(#[from] opentelemetry_sdk::error::OTelSdkError),
    /// The page was not rendered.
    #[error("render /metrics")]
    Render(#[from] prometheus::Error),
    /// The OTLP exporter was not built.
    #[error("build the OTLP metrics exporter")]
    Otlp(#[source] crate::telemetry::Error),
}

/// The instruments of one service in one process.
pub(crate) struct Metrics {
    service: String,
    provider: SdkMeterProvider,
    registry: prometheus::Registry,
    meter: Meter,
    seconds: Histogram<f64>,
    consumers: Arc<Mutex<BTreeMap<String, Arc<Cells>>>>,
}

/// What one consumer counts. Plain atomics, read when somebody looks: counting costs a hot loop next to nothing.
#[derive(Debug, Default)]
struct Cells {
    received: AtomicU64,
    handled: AtomicU64,
    retried: AtomicU64,
    dead: AtomicU64,
    facts: AtomicU64,
    undecodable: AtomicU64,
    lag: AtomicU64,
    open: AtomicU64,
    age_ms: AtomicU64,
    waiting: AtomicU64,
    floor: AtomicU64,
    follows: AtomicU64,
    entities: AtomicU64,
    micros: AtomicU64,
    subjects: Mutex<Vec<String>>,
}

/// A reading of one consumer, for `$SRV.STATS`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reading {
    /// Its name.
    pub consumer: String,
    /// Messages taken in.
    pub received: u64,
    /// Messages done with.
    pub handled: u64,
    /// Decisions or writes taken again.
    pub retried: u64,
    /// Messages given up.
    pub dead: u64,
    /// Messages it is behind.
    pub lag: u64,
    /// Messages taken in and not done.
    pub open: u64,
    /// How long ago the oldest of them was stored, milliseconds.
    pub age_ms: u64,
    /// Entities whose commands wait until less work is under way.
    pub waiting: u64,
    /// Every message up to this sequence is done, for a consumer of one stream that follows it.
    pub floor: u64,
    /// Does it follow its stream, instead of pulling a durable?
    pub follows: bool,
    /// Entities in memory.
    pub entities: u64,
    /// Time spent, microseconds.
    pub micros: u64,
    /// Subjects that it listens to; empty for samples, which are not on the bus.
    pub subjects: Vec<String>,
}

/// The instruments of one consumer; made by [`Mesh::consumer`](crate::Mesh::consumer).
#[derive(Clone, Debug)]
pub struct Consumer {
    cells: Arc<Cells>,
    seconds: Histogram<f64>,
    attributes: Arc<[KeyValue]>,
}

type Read = fn(&Cells) -> &AtomicU64;
type OfProcess = fn(Allocated) -> u64;

impl Metrics {
    /// Sets up the instruments of a service. Sends them too if telemetry is being sent.
    pub(crate) fn new(service: &str, process: &str, otlp_interval: Duration) -> Result<Self, Error> {
        let registry = prometheus::Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_counter_suffixes()
            .without_units()
            .scope_info_enabled(false)
            .build()?;
        let mut builder = SdkMeterProvider::builder()
            .with_reader(exporter)
            .with_resource(crate::telemetry::resource(service, process));
        if let Some(telemetry) = crate::telemetry::installed()
            && let Some(reader) = telemetry.metrics_reader(otlp_interval).map_err(Error::Otlp)?
        {
            builder = builder.with_reader(reader);
        }
        let provider = builder.build();
        let meter = provider.meter("mesh-kit");
        let consumers: Arc<Mutex<BTreeMap<String, Arc<Cells>>>> = Arc::default();
        let counters: [(&'static str, &'static str, Read); 6] = [
            (RECEIVED, "messages taken in", |c| &c.received),
            (HANDLED, "messages done with", |c| &c.handled),
            (RETRIED, "decisions or writes taken again", |c| &c.retried),
            (DEAD, "messages given up", |c| &c.dead),
            (FACTS, "facts or derived events stored", |c| &c.facts),
            (UNDECODABLE, "messages that this version cannot decode", |c| &c.undecodable),
        ];
        for (name, description, read) in counters {
            let observe = observer(service, &consumers, read);
            meter.u64_observable_counter(name).with_description(description).with_callback(observe).build();
        }
        let gauges: [(&'static str, &'static str, Read); 5] = [
            (LAG, "messages stored and not taken in yet", |c| &c.lag),
            (OPEN, "messages taken in and not done with", |c| &c.open),
            (AGE, "milliseconds since the oldest of them was stored", |c| &c.age_ms),
            (WAITING, "entities whose commands wait until less work is under way", |c| &c.waiting),
            (ENTITIES, "entities held in memory", |c| &c.entities),
        ];
        for (name, description, read) in gauges {
            let observe = observer(service, &consumers, read);
            meter.u64_observable_gauge(name).with_description(description).with_callback(observe).build();
        }
        let of_process: [(&'static str, &'static str, OfProcess); 2] = [
            (ALLOCATIONS, "allocations of the process", |a| a.calls),
            (ALLOCATED, "bytes that the process has allocated", |a| a.bytes),
        ];
        for (name, description, read) in of_process {
            let observe = move |instrument: &dyn AsyncInstrument<u64>| instrument.observe(read(allocated()), &[]);
            meter.u64_observable_counter(name).with_description(description).with_callback(observe).build();
        }
        let seconds = meter
            .f64_histogram(SECONDS)
            .with_description("time from a message taken in to done with, seconds")
            .with_boundaries(SECONDS_BOUNDS.to_vec())
            .build();
        Ok(Self { service: service.to_owned(), provider, registry, meter, seconds, consumers })
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// The consumer of this name; two of one name count together.
    pub(crate) fn consumer(&self, name: &str) -> Consumer {
        let mut consumers = self.consumers.lock();
        Consumer {
            cells: consumers.entry(name.to_owned()).or_default().clone(),
            seconds: self.seconds.clone(),
            attributes: attributes(&self.service, name).into(),
        }
    }

    /// All consumers' numbers, by name.
    pub(crate) fn readings(&self) -> Vec<Reading> {
        let consumers = self.consumers.lock();
        let reading = |(name, cells): (&String, &Arc<Cells>)| Reading {
            consumer: name.clone(),
            received: cells.received.load(Relaxed),
            handled: cells.handled.load(Relaxed),
            retried: cells.retried.load(Relaxed),
            dead: cells.dead.load(Relaxed),
            lag: cells.lag.load(Relaxed),
            open: cells.open.load(Relaxed),
            age_ms: cells.age_ms.load(Relaxed),
            waiting: cells.waiting.load(Relaxed),
            floor: cells.floor.load(Relaxed),
            follows: cells.follows.load(Relaxed) > 0,
            entities: cells.entities.load(Relaxed),
            micros: cells.micros.load(Relaxed),
            subjects: cells.subjects.lock().clone(),
        };
        consumers.iter().map(reading).collect()
    }

    /// The page in Prometheus' text format.
    pub(crate) fn page(&self) -> Result<String, Error> {
        let mut page = vec![];
        TextEncoder::new().encode(&self.registry.gather(), &mut page)?;
        Ok(String::from_utf8_lossy(&page).into_owned())
    }

    /// Sends what is left and ends. Blocks for at most `limit`.
    pub(crate) fn shutdown(&self, limit: Duration) {
        if let Err(error) = self.provider.shutdown_with_timeout(limit) {
            tracing::debug!(error = &error as &dyn std::error::Error, "metrics not shut down");
        }
    }
}

fn attributes(service: &str, consumer: &str) -> [KeyValue; 2] {
    [KeyValue::new("service", service.to_owned()), KeyValue::new("consumer", consumer.to_owned())]
}

fn observer(
    service: &str,
    consumers: &Arc<Mutex<BTreeMap<String, Arc<Cells>>>>,
    read: Read,
) -> impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + 'static {
    let (service, consumers) = (service.to_owned(), consumers.clone());
    move |instrument| {
        for (name, cells) in consumers.lock().iter() {
            instrument.observe(read(cells).load(Relaxed), &attributes(&service, name));
        }
    }
}

impl Consumer {
    /// Says what it listens to.
    pub fn listens(&self, subjects: impl IntoIterator<Item = String>) {
        *self.cells.subjects.lock() = subjects.into_iter().collect();
    }

    /// Counts messages that came in.
    pub fn received(&self, count: u64) {
        self.cells.received.fetch_add(count, Relaxed);
    }

    /// Counts messages that are done.
    pub fn handled(&self, count: u64) {
        self.cells.handled.fetch_add(count, Relaxed);
    }

    /// Counts decisions or writes that were repeated.
    pub fn retried(&self, count: u64) {
        self.cells.retried.fetch_add(count, Relaxed);
    }

    /// Counts messages that were given up.
    pub fn dead(&self, count: u64) {
        self.cells.dead.fetch_add(count, Relaxed);
    }

    /// Counts facts or derived events that were stored.
    pub fn facts(&self, count: u64) {
        self.cells.facts.fetch_add(count, Relaxed);
    }

    /// Counts messages that this version could not decode.
    pub fn undecodable(&self, count: u64) {
        self.cells.undecodable.fetch_add(count, Relaxed);
    }

    /// Records how long one message took from its receipt until it was done.
    pub fn took(&self, time: Duration) {
        self.cells.micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
        self.seconds.record(time.as_secs_f64(), &self.attributes);
    }

    /// Sets the number of messages that it is behind.
    pub fn lag(&self, messages: u64) {
        self.cells.lag.store(messages, Relaxed);
    }

    /// Sets how long ago the oldest message was stored that is not done, milliseconds; 0 for none.
    pub fn age(&self, millis: u64) {
        self.cells.age_ms.store(millis, Relaxed);
    }

    /// Sets the number of entities whose commands wait until less work is under way.
    pub(crate) fn waiting(&self, entities: usize) {
        self.cells.waiting.store(entities as u64, Relaxed);
    }

    /// It follows one stream, and every message up to this sequence is done.
    pub(crate) fn follows(&self, floor: u64) {
        self.cells.floor.store(floor, Relaxed);
        self.cells.follows.store(1, Relaxed);
    }

    /// Sets the number of entities that it holds in memory.
    pub fn entities(&self, count: u64) {
        self.cells.entities.store(count, Relaxed);
    }

    /// Sets the number of messages that were taken in and are not done.
    pub fn open(&self, count: u64) {
        self.cells.open.store(count, Relaxed);
    }

    /// What a replica counted since it was last told, and what it holds now.
    pub(crate) fn add(&self, before: Counts, now: Counts, entities: usize, open: usize) {
        self.received(now.received.saturating_sub(before.received));
        self.handled(now.handled.saturating_sub(before.handled));
        self.retried(now.retried.saturating_sub(before.retried));
        self.dead(now.dead.saturating_sub(before.dead));
        self.facts(now.facts.saturating_sub(before.facts));
        self.undecodable(now.undecodable.saturating_sub(before.undecodable));
        self.entities(entities as u64);
        self.open(open as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_every_instrument_of_every_consumer() {
        let metrics = Metrics::new("validator", "p", Duration::from_secs(60)).unwrap();
        for name in ["verdicts", "view"] {
            let consumer = metrics.consumer(name);
            consumer.received(3);
            metrics.consumer(name).received(2);
            consumer.handled(4);
            consumer.lag(7);
            consumer.took(Duration::from_millis(3));
        }
        let page = metrics.page().unwrap();
        for (name, kind) in INSTRUMENTS {
            assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "{name} {kind} in\n{page}");
            for consumer in ["verdicts", "view"] {
                let labels = format!("consumer=\"{consumer}\"");
                let shown = page.lines().any(|line| {
                    line.starts_with(name) && line.contains(&labels) && line.contains("service=\"validator\"")
                });
                assert!(shown, "{name} of {consumer} in\n{page}");
            }
        }
        let line = page.lines().find(|l| l.starts_with(RECEIVED) && l.contains("verdicts")).unwrap();
        assert!(line.ends_with(" 5"), "{line}");
        let reading = &metrics.readings()[0];
        assert_eq!((reading.received, reading.handled, reading.lag, reading.micros), (5, 4, 7, 3_000));
    }

    #[test]
    fn a_replicas_counts_are_added_once() {
        let metrics = Metrics::new("validator", "p", Duration::from_secs(60)).unwrap();
        let consumer = metrics.consumer("verdicts");
        let first = Counts { received: 2, handled: 1, ..Counts::default() };
        consumer.add(Counts::default(), first, 1, 1);
        let next = Counts { received: 5, handled: 5, retried: 1, dead: 1, ..first };
        consumer.add(first, next, 4, 0);
        let reading = &metrics.readings()[0];
        assert_eq!((reading.received, reading.handled, reading.retried, reading.dead), (5, 5, 1, 1));
        assert_eq!(reading.entities, 4);
    }
}
