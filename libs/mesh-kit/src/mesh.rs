//! What a service is handed when it starts: the bus, the samples, the clock, its tasks, and what it serves.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures::FutureExt as _;
use mesh_bus::{Bus, SampleCounts, Samples, SamplesOptions, SamplesTls};
use mesh_core::Outgoing;
use mesh_proto::{Timestamp, contract::StreamSpec, lifecycle::ServiceChanged};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    clock::clock,
    config::{SamplesMode, ServeTls, Settings},
    http::{Condition, Readiness, Served},
    metrics::{Consumer, Metrics},
    reader::{Follower, Reader},
    telemetry::SERVICE_SPAN,
};

/// One process's place in the mesh. Cheap to clone; all clones are the same process.
#[derive(Clone)]
pub struct Mesh {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) name: &'static str,
    /// A UUID of this process.
    pub(crate) process: String,
    pub(crate) settings: Settings,
    pub(crate) bus: Bus,
    /// Reads streams for all who follow them here; perhaps for other services of this program too.
    pub(crate) reader: Reader,
    pub(crate) samples: OnceCell<Samples>,
    pub(crate) endpoint: String,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) metrics: Arc<Metrics>,
    /// What is served; `None` once the server has it.
    pub(crate) served: Mutex<Option<Served>>,
    pub(crate) tasks: TaskTracker,
    /// How many tasks of each name are running, for the log of a drain that takes too long.
    pub(crate) running: Mutex<BTreeMap<&'static str, usize>>,
    /// Settle what is in hand and end.
    pub(crate) stopping: CancellationToken,
    /// Tasks are dropped where they are.
    pub(crate) cut: CancellationToken,
    pub(crate) failed: watch::Sender<Option<Failure>>,
    pub(crate) span: tracing::Span,
}

/// A task that failed; it ends the process.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Name of the task.
    pub task: &'static str,
    /// Its error, with all its causes.
    pub error: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}: {}", self.task, self.error)
    }
}

impl std::error::Error for Failure {}

impl Mesh {
    pub(crate) fn new(
        name: &'static str,
        process: String,
        settings: Settings,
        bus: Bus,
        reader: Reader,
        samples: Option<Samples>,
        address: SocketAddr,
    ) -> Result<Self, crate::metrics::Error> {
        let metrics = Metrics::new(name, &process, Duration::from_millis(settings.otlp_interval_ms))?;
        watch_bus(&metrics, &bus);
        let inner = Inner {
            name,
            process,
            endpoint: endpoint(&settings, address),
            readiness: Readiness::new(bus.state(), clock),
            settings,
            bus,
            reader,
            samples: OnceCell::new_with(samples),
            metrics: Arc::new(metrics),
            served: Mutex::new(Some(Served::default())),
            tasks: TaskTracker::new(),
            running: Mutex::default(),
            stopping: CancellationToken::new(),
            cut: CancellationToken::new(),
            failed: watch::Sender::new(None),
            span: tracing::error_span!(target: SERVICE_SPAN, "mesh", service = name),
        };
        let mesh = Self { inner: Arc::new(inner) };
        mesh.watch_samples();
        Ok(mesh)
    }

    /// Name of the service.
    pub fn name(&self) -> &str {
        self.inner.name
    }

    /// A UUID of this process; another after each start.
    pub fn process(&self) -> &str {
        &self.inner.process
    }

    /// What all processes are told.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// Folder for what this process keeps for itself, if it was given one.
    pub fn data_dir(&self) -> Option<&Path> {
        self.inner.settings.data_dir.as_deref()
    }

    /// Folder for the keys that this process makes for itself, if it was given one: `keys_dir`, else the data folder. Files
    /// of these names that are still in the data folder are moved.
    ///
    /// # Errors
    /// A file that cannot be moved.
    pub fn keys_dir(&self, names: &[&str]) -> anyhow::Result<Option<&Path>> {
        let Some(keys) = self.inner.settings.keys_dir.as_deref() else { return Ok(self.data_dir()) };
        if let Some(data) = self.data_dir() {
            let moved = crate::files::move_files(data, keys, names);
            moved.with_context(|| format!("move keys from {} to {}", data.display(), keys.display()))?;
        }
        Ok(Some(keys))
    }

    /// The bus.
    pub fn bus(&self) -> &Bus {
        &self.inner.bus
    }

    /// Follows a whole stream: every message from a sequence on, in order. However many follow it in this process, or
    /// in all that share its reader, it is read once.
    pub fn follow(&self, stream: &str, from: u64) -> Follower {
        self.inner.reader.follow(stream, from)
    }

    /// Do deciders follow the inputs of this stream, because no other process runs them?
    pub(crate) fn follows_inputs(&self, stream: &str) -> bool {
        let has_live = mesh_proto::contract().stream(stream).is_some_and(StreamSpec::has_write_prefix);
        has_live && self.inner.reader.is_alone()
    }

    /// The samples; the Zenoh session is opened the first time.
    pub async fn samples(&self) -> anyhow::Result<Samples> {
        let open = || async {
            let options = samples_options(&self.inner.settings);
            Samples::open(options).await.context("open Zenoh session")
        };
        self.inner.samples.get_or_try_init(open).await.cloned()
    }

    /// Adds a gRPC service (any `XServer<T>` that tonic generated). Only until `start` has returned: then the server
    /// binds what was added.
    pub fn serve<S>(&self, service: S)
    where
        S: tonic::codegen::Service<axum::http::Request<tonic::body::Body>, Error = std::convert::Infallible>
            + tonic::server::NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: axum::response::IntoResponse,
        S::Future: Send + 'static,
    {
        match self.inner.served.lock().as_mut() {
            Some(served) => served.add(service),
            None => self.fail("serve", &anyhow::anyhow!("{} was added after the server had started", S::NAME)),
        }
    }

    /// Adds HTTP pages to the port that serves gRPC, with its TLS and its limits. Only until `start` has returned, and
    /// only paths that nothing else serves.
    pub fn serve_http(&self, pages: axum::Router) {
        match self.inner.served.lock().as_mut() {
            Some(served) => served.add_pages(pages),
            None => self.fail("serve", &anyhow::anyhow!("pages were added after the server had started")),
        }
    }

    /// A channel to where the mesh sends its own telemetry; `None` if that is nowhere.
    ///
    /// # Errors
    /// If `otlp_endpoint` is not an address, or `tls_ca_file` cannot be read.
    pub fn otlp_channel(&self) -> anyhow::Result<Option<tonic::transport::Channel>> {
        let settings = &self.inner.settings;
        let endpoint = settings.otlp_endpoint.as_ref();
        Ok(endpoint.map(|endpoint| crate::telemetry::channel(endpoint, settings)).transpose()?)
    }

    /// Own address for gRPC and HTTP, as others reach it: `http://host:port`. Known before anything is served.
    pub fn endpoint(&self) -> String {
        self.inner.endpoint.clone()
    }

    /// Runs a task of the service. It should end once [`stopping`](Self::stopping) says so and what it has in hand is
    /// settled; past the drain limit it is dropped where it is. Its error or panic ends the process.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let mesh = self.clone();
        *self.running().entry(name).or_default() += 1;
        // A panic unwinds no further than this future, so that the process ends by the same path as for an error.
        let task = std::panic::AssertUnwindSafe(task.instrument(self.inner.span.clone())).catch_unwind();
        self.inner.tasks.spawn(async move {
            let ended = tokio::select! {
                ended = task => ended.unwrap_or_else(|panic| Err(anyhow::anyhow!("panicked: {}", said(&*panic)))),
                () = mesh.inner.cut.cancelled() => Ok(()),
            };
            if let Some(count) = mesh.running().get_mut(name) {
                *count = count.saturating_sub(1);
            }
            if let Err(error) = ended {
                mesh.fail(name, &error);
            }
        });
    }

    /// Waits until a task of this service fails; for ever, if none does.
    pub async fn failed(&self) -> Failure {
        let mut failed = self.inner.failed.subscribe();
        // The guard of the watched value must not live across an await.
        let found = failed.wait_for(Option::is_some).await.map(|failure| failure.clone());
        match found {
            Ok(failure) => failure.unwrap_or(Failure { task: "unknown", error: String::new() }),
            Err(_) => std::future::pending().await,
        }
    }

    /// Cancelled when the process is to stop: take in nothing more, settle what is in hand, and end. Streams of answers
    /// end too.
    pub fn stopping(&self) -> CancellationToken {
        self.inner.stopping.clone()
    }

    /// The time. The only clock of a service.
    pub fn now(&self) -> Timestamp {
        clock()
    }

    /// Something without which `/readyz` says no; unmet until it is said to be met.
    pub fn condition(&self, name: &str) -> Condition {
        self.inner.readiness.condition(name)
    }

    /// What is missing for the process to be ready.
    pub fn readiness(&self) -> Arc<Readiness> {
        self.inner.readiness.clone()
    }

    /// The instruments of a consumer; see [`metrics::INSTRUMENTS`](crate::metrics::INSTRUMENTS).
    pub fn consumer(&self, name: &str) -> Consumer {
        self.inner.metrics.consumer(name)
    }

    /// For instruments of the service's own, shown and sent with the others.
    pub fn meter(&self) -> &opentelemetry::metrics::Meter {
        self.inner.metrics.meter()
    }

    /// Shows what the samples count, from when they are first used.
    fn watch_samples(&self) {
        type Read = fn(SampleCounts) -> u64;
        let counters: [(&'static str, &'static str, Read); 3] = [
            ("mesh_samples_published_total", "samples published", |counts| counts.published),
            ("mesh_samples_dropped_total", "samples dropped, oldest first, for a full buffer", |counts| counts.dropped),
            ("mesh_samples_lost_total", "samples published elsewhere that did not come", |counts| counts.lost),
        ];
        for (name, description, read) in counters {
            // Weak: the meter belongs to what it would hold.
            let inner = Arc::downgrade(&self.inner);
            let observe = move |counter: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
                if let Some(inner) = inner.upgrade()
                    && let Some(samples) = inner.samples.get()
                {
                    counter.observe(read(samples.counts()), &[]);
                }
            };
            self.meter().u64_observable_counter(name).with_description(description).with_callback(observe).build();
        }
    }

    fn running(&self) -> parking_lot::MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.inner.running.lock()
    }

    /// Names of the tasks that are still running.
    pub(crate) fn still_running(&self) -> Vec<&'static str> {
        self.running().iter().filter(|(_, count)| **count > 0).map(|(name, _)| *name).collect()
    }

    /// The first failure ends the process; while it is stopping anyway, failures are only logged.
    pub(crate) fn fail(&self, task: &'static str, error: &anyhow::Error) {
        let failure = Failure { task, error: format!("{error:#}") };
        let _service = self.inner.span.enter();
        if self.inner.stopping.is_cancelled() {
            tracing::warn!(task, error = failure.error, "task failed while stopping");
            return;
        }
        tracing::error!(task, error = failure.error, "task failed");
        self.inner.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            if first {
                *failed = Some(failure);
            }
            first
        });
    }

    /// Publishes the state of this process; gives up at the limit, since nothing in the process needs it.
    pub(crate) async fn notify(&self, phase: &str, limit: Duration) {
        let changed = ServiceChanged {
            service: self.inner.name.to_owned(),
            process: self.inner.process.clone(),
            phase: phase.to_owned(),
            endpoint: self.endpoint(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let id = mesh_proto::derived_id(&["lifecycle", self.inner.name, &self.inner.process, phase]);
        let notice = match Outgoing::new(&changed, id, self.now()) {
            Ok(notice) => notice,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, phase, "life-cycle notice");
                return;
            }
        };
        match tokio::time::timeout(limit, self.inner.bus.publish(&notice)).await {
            Ok(Ok(_)) => tracing::info!(phase, endpoint = changed.endpoint, "life cycle"),
            Ok(Err(error)) => {
                tracing::warn!(phase, error = &error as &dyn std::error::Error, "life-cycle notice not stored");
            }
            Err(_) => {
                tracing::warn!(phase, limit_ms = limit.as_millis() as u64, "life-cycle notice not stored in time")
            }
        }
    }
}

fn samples_options(settings: &Settings) -> SamplesOptions {
    let mut addresses = settings.samples_connect.iter().chain(&settings.samples_listen);
    let tls = settings.tls_files().filter(|_| addresses.any(|address| address.starts_with("tls/")));
    SamplesOptions {
        mode: match settings.samples_mode {
            SamplesMode::Client => mesh_bus::SamplesMode::Client,
            SamplesMode::Peer => mesh_bus::SamplesMode::Peer,
            SamplesMode::Router => mesh_bus::SamplesMode::Router,
        },
        connect: settings.samples_connect.clone(),
        listen: settings.samples_listen.clone(),
        tls: tls.map(|(ca, cert, key)| SamplesTls { ca, cert, key }),
        buffer_max: settings.samples_buffer_max,
        ..SamplesOptions::default()
    }
}

fn endpoint(settings: &Settings, address: SocketAddr) -> String {
    let scheme = if settings.serve_tls == ServeTls::Off { "http" } else { "https" };
    let host = match &settings.advertise_host {
        Some(host) if host.contains(':') && !host.starts_with('[') => format!("[{host}]"),
        Some(host) => host.clone(),
        // Nobody can connect to "any address"; who listens there without a name is reached locally.
        None if address.ip().is_unspecified() => "127.0.0.1".to_owned(),
        None if address.is_ipv6() => format!("[{}]", address.ip()),
        None => address.ip().to_string(),
    };
    format!("{scheme}://{host}:{}", address.port())
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".into())
}

/// Shows what the bus counts.
fn watch_bus(metrics: &Metrics, bus: &Bus) {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    type Read = fn(&mesh_bus::Stats) -> &AtomicU64;
    let counters: [(&'static str, &'static str, Read); 12] = [
        ("mesh_bus_published_total", "messages stored without condition", |s| &s.published),
        ("mesh_bus_batches_total", "atomic batches stored", |s| &s.batches),
        ("mesh_bus_batch_messages_total", "messages stored in atomic batches", |s| &s.batch_messages),
        ("mesh_bus_stale_total", "decisions whose entity had moved", |s| &s.stale),
        ("mesh_bus_settled_total", "decisions settled by reading their entity", |s| &s.settled),
        ("mesh_bus_forgotten_total", "messages acknowledged by a stream that no longer had them", |s| &s.forgotten),
        ("mesh_bus_resent_total", "writes sent again", |s| &s.resent),
        ("mesh_bus_reconnects_total", "connections after the first", |s| &s.reconnects),
        ("mesh_bus_commands_gathered_total", "commands that waited for a batch", |s| &s.commands_gathered),
        ("mesh_bus_commands_held_total", "commands that waited for room to wait", |s| &s.commands_held),
        ("mesh_bus_commands_refused_total", "commands that found no room in time", |s| &s.commands_refused),
        ("mesh_bus_gaps_filled_total", "gaps that tails found and filled", |s| &s.gaps_filled),
    ];
    for (name, description, read) in counters {
        let bus = bus.clone();
        let observe = move |counter: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
            counter.observe(read(bus.stats()).load(Relaxed), &[]);
        };
        metrics.meter().u64_observable_counter(name).with_description(description).with_callback(observe).build();
    }
    let state = bus.state();
    let connected = move |gauge: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
        gauge.observe(u64::from(state.borrow().connected), &[]);
    };
    metrics
        .meter()
        .u64_observable_gauge("mesh_bus_connected")
        .with_description("1 while the bus is connected")
        .with_callback(connected)
        .build();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_what_others_can_connect_to() {
        let at = |listen: &str, host: Option<&str>, serve_tls| {
            let settings = Settings { advertise_host: host.map(Into::into), serve_tls, ..Settings::default() };
            endpoint(&settings, listen.parse().unwrap())
        };
        assert_eq!(at("127.0.0.1:7", None, ServeTls::Off), "http://127.0.0.1:7");
        assert_eq!(at("0.0.0.0:7", None, ServeTls::Off), "http://127.0.0.1:7");
        assert_eq!(at("0.0.0.0:7", Some("validator.mesh"), ServeTls::On), "https://validator.mesh:7");
        assert_eq!(at("[::1]:7", None, ServeTls::Mutual), "https://[::1]:7");
        assert_eq!(at("0.0.0.0:7", Some("fd00::1"), ServeTls::Off), "http://[fd00::1]:7");
    }
}
