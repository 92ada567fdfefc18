//! The life of a process: the whole configuration is read before anything starts; then build, serve, drain.
//!
//! [`run`] is a service's whole `main`; [`join`] is the same life as a task, for a process that runs several services.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt, io,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use mesh_bus::{Bus, ConnectError, Samples};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpListener, signal::unix::SignalKind, time::Instant};
use tracing::Instrument as _;

use crate::{
    config::{self, Settings},
    files, http,
    mesh::{Failure, Mesh},
    metrics,
    reader::Reader,
    readiness::{self, Unready},
    secret, srv, telemetry,
};

/// What a process says when it ends.
pub mod exit {
    /// It was asked to stop, and settled all that it had in hand.
    pub const OK: u8 = 0;
    /// Its command line or configuration is wrong; the key is named. (EX_USAGE)
    pub const USAGE: u8 = 64;
    /// A service that it needs, such as the bus, could not be reached at start. (EX_UNAVAILABLE)
    pub const UNAVAILABLE: u8 = 69;
    /// A task failed, or what was in hand could not be settled within the drain limit. (EX_SOFTWARE)
    pub const INTERNAL: u8 = 70;
    /// A second SIGINT came while it was draining.
    pub const INTERRUPTED: u8 = 130;
    /// A second SIGTERM came while it was draining.
    pub const TERMINATED: u8 = 143;
}

/// Shares of the drain limit: tasks and requests have the most, then the bus, then telemetry.
const TASKS_SHARE: f64 = 0.7;
const BUS_SHARE: f64 = 0.2;
const TELEMETRY_SHARE: f64 = 0.1;
/// A life-cycle notice waits for the bus no longer than this.
const NOTICE_LIMIT: Duration = Duration::from_secs(5);

/// A service that did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The bus cannot be reached, or does not know this process.
    #[error("connect to the bus")]
    Bus(#[source] ConnectError),
    /// A secret cannot be read.
    #[error("read the bus seed")]
    Secret(#[source] secret::Error),
    /// The address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process cannot keep its files: the disk is read-only, or the folder belongs to another user.
    #[error(
        "configuration key {key:?}: user {user} cannot write to {}; mount a writable volume there that belongs to this \
         user, or set another folder",
        folder.display()
    )]
    Folder {
        /// Key of the configuration that names the folder.
        key: &'static str,
        /// Which.
        folder: PathBuf,
        /// Number of the user that the process runs as.
        user: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Metrics were not set up.
    #[error("set up metrics")]
    Metrics(#[source] metrics::Error),
}

/// A service that runs in this process. Dropped without [`stop`](Self::stop), it is cut off where it is.
pub struct Running {
    mesh: Mesh,
    server: Option<tokio::task::JoinHandle<()>>,
}

/// How a service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// All that it had in hand is settled.
    Settled,
    /// The drain limit passed first; the next process repeats what was cut off.
    CutOff,
}

/// A service's `main`: reads its configuration, starts it, and runs it until a signal or a failure. See [`exit`].
pub fn run<C, F, S>(name: &'static str, start: F) -> ExitCode
where
    C: Serialize + DeserializeOwned + Default + Send + 'static,
    F: FnOnce(Mesh, C) -> S,
    S: Future<Output = anyhow::Result<()>>,
{
    run_with(name, std::env::args_os().skip(1), &config::environment(), start).into()
}

/// [`run`] with this command line (without the program's name) and environment, for a program that has a command line
/// of its own. Returns the exit code. Once in a process: it takes the process's signals and logs.
pub fn run_with<C, F, S>(
    name: &'static str,
    arguments: impl IntoIterator<Item = OsString>,
    environment: &BTreeMap<String, String>,
    start: F,
) -> u8
where
    C: Serialize + DeserializeOwned + Default + Send + 'static,
    F: FnOnce(Mesh, C) -> S,
    S: Future<Output = anyhow::Result<()>>,
{
    let loaded = match config::load::<C>(name, arguments, environment) {
        Ok(loaded) => loaded,
        Err(config::Error::Usage(error)) => {
            // Help and version come this way too; clap knows where each is printed.
            let code = if error.use_stderr() { exit::USAGE } else { exit::OK };
            let _nowhere_to_print = error.print();
            return code;
        }
        Err(error) => {
            tell(&format!("{name}: {}\n", telemetry::chain(&error)));
            return exit::USAGE;
        }
    };
    if loaded.print {
        use io::Write as _;
        let printed = io::stdout().write_all(loaded.table().as_bytes());
        return if printed.is_ok() { exit::OK } else { exit::INTERNAL };
    }
    if loaded.health {
        return match readiness::ask(name, &loaded.settings) {
            Ok(answer) => {
                use io::Write as _;
                // Nobody may listen; the code says it.
                let _nowhere_to_print = io::stdout().write_all(answer.as_bytes());
                exit::OK
            }
            Err(Unready::Not(why)) => {
                tell(&format!("{}\n", why.trim_end()));
                exit::UNAVAILABLE
            }
            Err(Unready::Unasked(why)) => {
                tell(&format!("{why}\n"));
                exit::USAGE
            }
        };
    }
    crate::use_small_pages();
    // Two providers are compiled in; without a choice the first TLS handshake would panic. Set before: kept.
    let _already_chosen = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let process = uuid::Uuid::new_v4().to_string();
    let telemetry = match telemetry::install(name, &process, &loaded.settings) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            tell(&format!("{name}: {}\n", telemetry::chain(&error)));
            return if error.is_usage() { exit::USAGE } else { exit::INTERNAL };
        }
    };
    log_panics();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "start runtime");
            return exit::INTERNAL;
        }
    };
    let limit = Duration::from_millis(loaded.settings.drain_limit_ms);
    let code = runtime.block_on(live(name, process, loaded, start));
    // What is cut off may hold a thread; it goes with the process.
    runtime.shutdown_background();
    if code != exit::INTERRUPTED && code != exit::TERMINATED {
        telemetry.shutdown(limit.mul_f64(TELEMETRY_SHARE).max(Duration::from_millis(100)));
    }
    code
}

/// From start to exit code.
async fn live<C, F, S>(name: &'static str, process: String, loaded: config::Loaded<C>, start: F) -> u8
where
    F: FnOnce(Mesh, C) -> S,
    S: Future<Output = anyhow::Result<()>>,
{
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "listen for signals");
            return exit::INTERNAL;
        }
    };
    let running = tokio::select! {
        joined = join_as(name, process, loaded.settings, None, loaded.config, start) => match joined {
            Ok(running) => running,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "not started");
                return code_of(&error);
            }
        },
        signal = signals.next() => {
            tracing::info!(signal = signal.name(), "stopped before it had started");
            return exit::OK;
        }
    };
    let failed = tokio::select! {
        failure = running.failed() => {
            tracing::error!(task = failure.task, "ends, because a task failed");
            true
        }
        signal = signals.next() => {
            tracing::info!(signal = signal.name(), "stopping");
            false
        }
    };
    tokio::select! {
        stopped = running.stop() => if failed || stopped == Stopped::CutOff { exit::INTERNAL } else { exit::OK },
        signal = signals.next() => {
            tracing::warn!(signal = signal.name(), "leaves at once");
            signal.code()
        }
    }
}

fn code_of(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<config::Error>()) {
        return exit::USAGE;
    }
    match error.chain().find_map(|cause| cause.downcast_ref::<StartError>()) {
        Some(
            StartError::Bus(ConnectError::Address { .. })
            | StartError::Secret(_)
            | StartError::Listen { .. }
            | StartError::Folder { .. },
        ) => exit::USAGE,
        Some(StartError::Bus(_)) => exit::UNAVAILABLE,
        Some(StartError::Metrics(_)) | None => exit::INTERNAL,
    }
}

/// Starts a service in this process and returns once it is wired and served. The same life as under [`run`], without
/// signals, logging and exit codes, which are the process's.
pub async fn join<C, F, S>(name: &'static str, settings: Settings, config: C, start: F) -> anyhow::Result<Running>
where
    F: FnOnce(Mesh, C) -> S,
    S: Future<Output = anyhow::Result<()>>,
{
    join_as(name, uuid::Uuid::new_v4().to_string(), settings, None, config, start).await
}

/// What the services of one process share when that process runs all there are: one connection to the bus, one reader
/// of its streams, one Zenoh session.
#[derive(Clone)]
pub struct Joint {
    bus: Bus,
    reader: Reader,
    samples: Samples,
}

impl Joint {
    /// Connects with the identity [`JOINT`](mesh_proto::rights::JOINT), over the bus of these settings. `own` are the
    /// streams that no other process writes. Close it after the last service has stopped.
    ///
    /// # Errors
    /// When the bus cannot be reached, or does not know the identity.
    pub async fn connect(settings: &Settings, own: BTreeSet<String>, samples: Samples) -> Result<Self, StartError> {
        let bus = Bus::connect(bus_options(mesh_proto::rights::JOINT, settings, seed(settings)?)).await;
        let bus = bus.map_err(StartError::Bus)?;
        Ok(Self { reader: Reader::alone(bus.clone(), own), bus, samples })
    }

    /// Closes the connection.
    pub async fn close(&self) {
        self.bus.close().await;
    }
}

fn seed(settings: &Settings) -> Result<Option<String>, StartError> {
    let Some(secret) = &settings.bus_seed_file else { return Ok(None) };
    Ok(Some(secret.read().map_err(StartError::Secret)?.expose().to_owned()))
}

/// Tries the folders that the process keeps files in, so that it ends here and not when it first has to write.
fn folders(settings: &Settings) -> Result<(), StartError> {
    for (key, folder) in [("data_dir", &settings.data_dir), ("keys_dir", &settings.keys_dir)] {
        if let Some(folder) = folder {
            let user = nix::unistd::getuid().as_raw();
            files::try_writing(folder).map_err(|source| StartError::Folder {
                key,
                folder: folder.clone(),
                user,
                source,
            })?;
        }
    }
    Ok(())
}

/// [`join`] for one of the services of a process that runs all of them, over what they share.
pub async fn join_sharing<C, F, S>(
    joint: &Joint,
    name: &'static str,
    settings: Settings,
    config: C,
    start: F,
) -> anyhow::Result<Running>
where
    F: FnOnce(Mesh, C) -> S,
    S: Future<Output = anyhow::Result<()>>,
{
    join_as(name, uuid::Uuid::new_v4().to_string(), settings, Some(joint.clone()), config, start).await
}

async fn join_as<C, F, S>(
    name: &'static str,
    process: String,
    settings: Settings,
    joint: Option<Joint>,
    config: C,
    start: F,
) -> anyhow::Result<Running>
where
    F: FnOnce(Mesh, C) -> S,
    S: Future<Output = anyhow::Result<()>>,
{
    if settings.random_wording {
        mesh_proto::wording::randomise();
    }
    folders(&settings)?;
    // The port first: its number is known to the service, and taken before anything is announced.
    let listen = |source| StartError::Listen { address: settings.listen.clone(), source };
    let listener = TcpListener::bind(&settings.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let (bus, reader, samples) = match joint {
        Some(joint) => (joint.bus.for_service(name), joint.reader, Some(joint.samples.share())),
        None => {
            let seed = seed(&settings)?;
            let bus = Bus::connect(bus_options(name, &settings, seed)).await.map_err(StartError::Bus)?;
            (bus.clone(), Reader::new(bus), None)
        }
    };
    let started = Instant::now();
    let mesh = Mesh::new(name, process, settings, bus, reader, samples, address).map_err(StartError::Metrics)?;
    let span = mesh.inner.span.clone();
    let mut running = Running { mesh: mesh.clone(), server: None };
    wire(&mesh, listener, config, start, &mut running).instrument(span.clone()).await?;
    span.in_scope(|| {
        tracing::info!(endpoint = mesh.endpoint(), took_ms = started.elapsed().as_millis() as u64, "wired");
    });
    Ok(running)
}

async fn wire<C, F, S>(
    mesh: &Mesh,
    listener: TcpListener,
    config: C,
    start: F,
    running: &mut Running,
) -> anyhow::Result<()>
where
    F: FnOnce(Mesh, C) -> S,
    S: Future<Output = anyhow::Result<()>>,
{
    let started = mesh.condition("start");
    let (readiness, stopping) = (mesh.readiness(), mesh.stopping());
    mesh.spawn("bus state", async move {
        readiness.follow_bus(stopping).await;
        Ok(())
    });
    let notices = mesh.clone();
    mesh.spawn("life cycle", async move {
        let tell = async {
            notices.notify("starting", NOTICE_LIMIT).await;
            let readiness = notices.readiness();
            let mut changes = readiness.changes();
            while !readiness.missing().is_empty() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
            notices.notify("ready", NOTICE_LIMIT).await;
        };
        let stopping = notices.stopping();
        tokio::select! {
            () = tell => {}
            () = stopping.cancelled() => {}
        }
        Ok(())
    });
    let discovery = srv::Service {
        name: mesh.inner.name,
        process: mesh.inner.process.clone(),
        endpoint: mesh.endpoint(),
        pid: std::process::id().to_string(),
        started: mesh.now(),
        metrics: mesh.inner.metrics.clone(),
    };
    mesh.spawn("service discovery", srv::answer(mesh.bus().clone(), discovery, mesh.stopping()));

    // A task may fail before the service is wired, and it may be one that the wiring waits for.
    let mut failed = mesh.inner.failed.subscribe();
    tokio::select! {
        wired = start(mesh.clone(), config) => wired?,
        Ok(failure) = failed.wait_for(Option::is_some) => {
            anyhow::bail!(failure.clone().unwrap_or(Failure { task: "unknown", error: String::new() }));
        }
    }

    let served = mesh.inner.served.lock().take().unwrap_or_default();
    let host = http::Host {
        readiness: mesh.readiness(),
        metrics: mesh.inner.metrics.clone(),
        stopping: mesh.stopping(),
        cut: mesh.inner.cut.clone(),
    };
    let server = mesh.clone();
    let serve = async move {
        let settings = server.inner.settings.clone();
        if let Err(error) = http::serve(listener, served, &settings, host).await {
            server.fail("server", &error.into());
        }
    };
    running.server = Some(tokio::spawn(serve.instrument(mesh.inner.span.clone())));
    started.met();
    Ok(())
}

impl Running {
    /// The service's place in the mesh.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Where its gRPC and HTTP are, as others reach it: `http://host:port`.
    pub fn endpoint(&self) -> String {
        self.mesh.endpoint()
    }

    /// Waits until a task of it fails; for ever, if none does.
    pub async fn failed(&self) -> Failure {
        self.mesh.failed().await
    }

    /// Stops it: takes in nothing more, settles what is in hand, finishes requests, closes the bus; within the drain
    /// limit of its settings, beyond which it is cut off.
    pub async fn stop(mut self) -> Stopped {
        let mesh = self.mesh.clone();
        let server = self.server.take();
        drain(&mesh, server).instrument(mesh.inner.span.clone()).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.mesh.inner.stopping.cancel();
        self.mesh.inner.cut.cancel();
    }
}

async fn drain(mesh: &Mesh, server: Option<tokio::task::JoinHandle<()>>) -> Stopped {
    let begun = Instant::now();
    let limit = Duration::from_millis(mesh.inner.settings.drain_limit_ms);
    let (for_tasks, for_bus) = (limit.mul_f64(TASKS_SHARE), limit.mul_f64(BUS_SHARE));
    mesh.condition("running").unmet("stopping");
    mesh.inner.stopping.cancel();
    mesh.inner.tasks.close();
    let settle = async {
        let served = async {
            if let Some(server) = server {
                let _failure_is_logged = server.await;
            }
        };
        // The notice goes out beside the rest, and gives up sooner: an unreachable bus is no reason to cut tasks off.
        tokio::join!(mesh.notify("stopping", for_tasks.mul_f64(0.5)), mesh.inner.tasks.wait(), served);
    };
    let mut stopped = Stopped::Settled;
    if tokio::time::timeout(for_tasks, settle).await.is_err() {
        stopped = Stopped::CutOff;
        tracing::error!(
            limit_ms = limit.as_millis() as u64,
            tasks = mesh.still_running().join(", "),
            "not settled in time; cut off"
        );
    }
    mesh.inner.cut.cancel();
    let close = async {
        if let Some(samples) = mesh.inner.samples.get()
            && let Err(error) = samples.close().await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "Zenoh session not closed");
        }
        mesh.inner.bus.close().await;
    };
    if tokio::time::timeout(for_bus, close).await.is_err() {
        stopped = Stopped::CutOff;
        tracing::error!("bus not closed in time; left");
    }
    let (metrics, for_metrics) = (mesh.inner.metrics.clone(), limit.mul_f64(TELEMETRY_SHARE));
    let flush = tokio::task::spawn_blocking(move || {
        telemetry::within(for_metrics, move || metrics.shutdown(for_metrics)).is_some()
    });
    if !flush.await.unwrap_or(false) {
        tracing::warn!("metrics not sent in time; left");
    }
    tracing::info!(took_ms = begun.elapsed().as_millis() as u64, settled = stopped == Stopped::Settled, "stopped");
    stopped
}

fn bus_options(name: &str, settings: &Settings, seed: Option<String>) -> mesh_bus::Options {
    let tls = settings.tls_files().filter(|_| settings.bus_url.contains("tls://"));
    mesh_bus::Options {
        url: settings.bus_url.clone(),
        service: name.to_owned(),
        seed,
        api_prefix: settings.bus_api_prefix.clone(),
        tls: tls.map(|(ca, cert, key)| mesh_bus::Tls { ca, cert, key }),
        connect_limit_ms: settings.bus_connect_limit_ms,
        // Closing has several steps, each with this limit.
        close_limit_ms: (settings.drain_limit_ms as f64 * BUS_SHARE / 3.0) as u64,
        ..mesh_bus::Options::default()
    }
}

/// The two signals that stop a process.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[derive(Clone, Copy)]
enum Signal {
    Interrupt,
    Terminate,
}

impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::signal;
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Interrupt => exit::INTERRUPTED,
            Self::Terminate => exit::TERMINATED,
        }
    }
}

/// A panic is a log line like any other; without it, it would be text between JSON.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("without a message");
        tracing::error!(place, text, "panicked");
    }));
}

/// Writes to standard error before there is a log.
fn tell(text: &str) {
    use io::Write as _;
    let _nowhere_else_to_say_it = io::stderr().write_all(mesh_proto::shown::lines(text).as_bytes());
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("name", &self.mesh.inner.name).finish_non_exhaustive()
    }
}
