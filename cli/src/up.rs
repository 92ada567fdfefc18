//! `up` and `down`: the whole mesh on one machine, in one process or one process per service.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::Write as _,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use mesh_bus::{
    ProvisionOptions, RenderOptions, Samples, SamplesMode, SamplesOptions, Server, ServerOptions, disk_room_bytes,
    find_server, free_disk_bytes, provision, read_seeds, render,
};
use mesh_kit::{Mesh, Running, Settings, config, mirror};
use mesh_proto::contract;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{process::Child, sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    args::UpOptions,
    client::{self, Client, Endpoints},
    clusters::{self, Cluster},
    output::{line, note},
};

/// How long the whole mesh may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long a service may take to stop before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Slot of the probe schedule on one machine: three clusters probe each other, both ways, in 1.2 s.
const PROBE_SLOT_MS: u64 = 200;
/// Disk that is left to others.
const DISK_SPARE_BYTES: u64 = 1 << 30;

/// How often the nats-server is asked whether it can write.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Bytes that must be free before it is started anew.
const ROOM_BYTES: u64 = 16 << 20;
/// A server that cannot write for another reason than room is not started anew more often than this.
const RESTART_MIN: Duration = Duration::from_secs(10);

/// The services of one machine, in start order; the cluster agents follow, one per cluster.
const SERVICES: [&str; 13] = [
    "workload-manager",
    "validator",
    "intent-manager",
    "meta-orchestrator",
    "collector",
    "cmdt-aggregator",
    "secure-storage",
    "accounting",
    "cfdrl-agent",
    "sar-detector",
    "mncc-exposer",
    "gateway",
    "json-mirror",
];

/// A mesh that this process runs.
pub(crate) struct Up {
    server: tokio::task::JoinHandle<()>,
    router: Samples,
    members: Members,
    /// Held as long as the mesh runs: two of them never share a data folder.
    _lock: File,
    /// Where its clients find it.
    pub endpoints: Endpoints,
    data_dir: PathBuf,
    stopping: CancellationToken,
    failures: mpsc::Receiver<String>,
}

enum Members {
    Tasks(Vec<(String, Running)>),
    Processes(JoinSet<()>),
}

/// Starts a mesh, waits until it is ready, and keeps it running until a signal comes or a part of it fails.
pub(crate) async fn up(data_dir: &Path, options: UpOptions) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let mut up = tokio::select! {
        up = Up::start(data_dir, &options) => up?,
        () = signal() => bail!("stopped before the mesh was ready"),
    };
    line(format!(
        "continuum is up in {:.1} s ({}), clusters: {}",
        begun.elapsed().as_secs_f64(),
        up.endpoints.mode,
        up.endpoints.clusters.join(", ")
    ));
    line(format!("  bus    {}  (person's key: {})", up.endpoints.nats, up.endpoints.person_seed_file.display()));
    line(format!("  zenoh  {}", up.endpoints.zenoh));
    if let Ok(url) = crate::commands::login::gateway_of(data_dir) {
        line(format!("  REST   {url}  (sign in: continuum login)"));
    }
    let flag =
        if data_dir == Path::new(".continuum") { String::new() } else { format!(" --data-dir {}", data_dir.display()) };
    line("Try next, in another terminal:");
    line(format!("  continuum{flag} cluster list"));
    line(format!("  continuum{flag} workload push examples/spinner.workload.yaml"));
    line(format!("  continuum{flag} intent submit examples/spinner.intent.yaml --wait fulfilled"));
    line(format!("  continuum{flag} down"));
    let failure = tokio::select! {
        () = signal() => None,
        // Processes are started again instead: nobody reports then, and the channel is closed.
        Some(failure) = up.failures.recv() => Some(failure),
    };
    if let Some(failure) = &failure {
        note(format!("continuum: {failure}; the mesh stops"));
    }
    up.stop().await?;
    Ok(ExitCode::from(if failure.is_some() { 70 } else { 0 }))
}

/// Stops the mesh of a data folder; says what was kept.
pub(crate) async fn down(data_dir: &Path) -> anyhow::Result<ExitCode> {
    let endpoints = match Endpoints::read(data_dir) {
        Ok(endpoints) => endpoints,
        Err(error) if !Endpoints::path(data_dir).exists() => {
            line(format!("nothing runs with the data folder {}", data_dir.display()));
            let _ = error;
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => {
            fs::remove_file(Endpoints::path(data_dir)).context("remove the endpoints file of a mesh that is gone")?;
            line(format!("{error:#}; its endpoints file is removed"));
            return Ok(ExitCode::SUCCESS);
        }
    };
    let pid = nix::unistd::Pid::from_raw(endpoints.pid.cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).context("stop the mesh")?;
    let deadline = Instant::now() + STOP_LIMIT * 2;
    while client::started_ticks(endpoints.pid) == Some(endpoints.started_ticks) && !is_zombie(endpoints.pid) {
        if Instant::now() > deadline {
            bail!(
                "process {} has not stopped within {} s; end it with `kill -9 {}`",
                endpoints.pid,
                STOP_LIMIT.as_secs() * 2,
                endpoints.pid
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    line(format!(
        "continuum is down; kept in {}: the streams, keys and configuration. Remove the folder to start afresh.",
        data_dir.display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

impl Up {
    /// Starts everything and waits until it is ready.
    pub(crate) async fn start(data_dir: &Path, options: &UpOptions) -> anyhow::Result<Self> {
        mesh_bus::install_crypto();
        let sets = sets(&options.set)?;
        if let Some(unknown) = options.without.iter().find(|name| !SERVICES.contains(&name.as_str())) {
            bail!("--without {unknown}: there is no such service; they are {}", SERVICES.join(", "));
        }
        let services: Vec<&str> =
            SERVICES.into_iter().filter(|name| !options.without.iter().any(|left_out| left_out == name)).collect();
        let clusters = match &options.clusters {
            Some(path) => clusters::read(path)?,
            None => clusters::defaults(),
        };
        fs::create_dir_all(data_dir).with_context(|| format!("make the data folder {}", data_dir.display()))?;
        let data_dir = data_dir.canonicalize().context("find the data folder")?;
        let lock = lock(&data_dir)?;
        let found = find_server().await.context("find a nats-server")?;
        for skipped in &found.skipped {
            note(format!("skipped a nats-server: {skipped}"));
        }

        // The bus: configuration and keys from the contract, keys of before reused.
        let keys = read_seeds(contract(), &data_dir.join("keys")).context("read the keys")?;
        let run_dir = data_dir.join("run");
        fs::create_dir_all(&run_dir).context("make the run folder")?;
        let free = disk_room_bytes(&data_dir).context("ask for the free disk")?;
        let rendered = render(
            contract(),
            &RenderOptions {
                listen: format!(
                    "127.0.0.1:{}",
                    if options.nats_port == 0 { "-1".into() } else { options.nats_port.to_string() }
                ),
                store_dir: data_dir.join("jetstream"),
                ports_dir: Some(run_dir.clone()),
                http_listen: Some("127.0.0.1:-1".into()),
                disk_bytes: Some(
                    free.saturating_sub(DISK_SPARE_BYTES.min(free / 2)).min(mesh_bus::bytes_wanted(contract())),
                ),
                keys,
                ..RenderOptions::default()
            },
        )
        .context("render the bus configuration")?;
        let files = rendered.write(&data_dir).context("write the bus configuration")?;
        let key = |identity: &str| {
            files.keys.get(identity).cloned().ok_or_else(|| anyhow!("the contract has no identity {identity}"))
        };
        let server = Server::start(ServerOptions::new(&found.path, &files.nats_conf, &run_dir))
            .await
            .context("start nats-server")?;
        let url = server.url();
        let provisioner = rendered.keys.get("provisioner").cloned();
        let options_ = ProvisionOptions { url: url.clone(), seed: provisioner, ..ProvisionOptions::default() };
        let report = provision(contract(), &options_).await.context("provision the bus")?;
        for text in &report.notes {
            note(format!("bus: {text}"));
        }
        let stopping = CancellationToken::new();
        let (fail, failures) = mpsc::channel(16);
        let server = tokio::spawn(keep_server(server, data_dir.clone(), stopping.clone()));

        // The Zenoh router.
        let zenoh_port = if options.zenoh_port == 0 { free_port()? } else { options.zenoh_port };
        let zenoh = format!("tcp/127.0.0.1:{zenoh_port}");
        let router = Samples::open(SamplesOptions {
            mode: SamplesMode::Router,
            listen: vec![zenoh.clone()],
            ..SamplesOptions::default()
        })
        .await
        .context("open the Zenoh router")?;

        // The services.
        let common = |identity: &str| -> anyhow::Result<Settings> {
            Ok(Settings {
                bus_url: url.clone(),
                bus_seed_file: Some(mesh_kit::Secret::at(key(identity)?)),
                samples_connect: vec![zenoh.clone()],
                log_level: options.log.clone(),
                otlp_endpoint: options.otlp.clone(),
                data_dir: Some(data_dir.join("state").join(identity)),
                ..Settings::default()
            })
        };
        let mut wanted: Vec<Member> = vec![];
        for &service in &services {
            let mut own = BTreeMap::new();
            if service == "meta-orchestrator" {
                // The smallest cluster that does: work stays near the edge until it needs more.
                own.insert("preference".into(), "pack".into());
            }
            own.extend(sets_of(&sets, service));
            wanted.push(Member { title: service.into(), service, settings: common(service)?, own });
        }
        for (number, cluster) in clusters.iter().enumerate() {
            let mut settings = common("cluster-agent")?;
            settings.data_dir = Some(data_dir.join("state").join(format!("cluster-agent-{}", cluster.name)));
            let mut own = agent(cluster)?;
            own.extend(probes(&data_dir, cluster, number, options.relays, &stopping).await?);
            own.extend(sets_of(&sets, "cluster-agent"));
            wanted.push(Member {
                title: format!("cluster-agent {}", cluster.name),
                service: "cluster-agent",
                settings,
                own,
            });
        }
        let unknown: Vec<&String> = sets.keys().filter(|s| !wanted.iter().any(|m| m.service == s.as_str())).collect();
        if let Some(unknown) = unknown.first() {
            bail!(
                "--set {unknown}…: there is no service {unknown:?}; services are {}, cluster-agent",
                SERVICES.join(", ")
            );
        }
        let started = client::now();
        let members = if options.processes {
            let mut set = JoinSet::new();
            for member in wanted {
                let log = run_dir.join(format!("{}.log", member.title.replace(' ', "-")));
                set.spawn(keep_process(member.program()?, member.arguments()?, log, stopping.clone()));
            }
            Members::Processes(set)
        } else {
            let first = wanted.first().map(|m| m.settings.clone()).unwrap_or_default();
            mesh_kit::telemetry::install("continuum", &std::process::id().to_string(), &first)
                .context("set up telemetry")?;
            let mut running = vec![];
            for member in wanted {
                let title = member.title.clone();
                let joined = member.join().await.with_context(|| format!("start {title}"))?;
                running.push((title, joined));
            }
            for (title, running) in &running {
                let (title, fail, mesh) = (title.clone(), fail.clone(), running.mesh().clone());
                let stopping = stopping.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        failure = mesh.failed() => {
                            let _ = fail.send(format!("{title} failed: {failure}")).await;
                        }
                        () = stopping.cancelled() => {}
                    }
                });
            }
            Members::Tasks(running)
        };
        let endpoints = Endpoints {
            pid: std::process::id(),
            started_ticks: client::started_ticks(std::process::id()).unwrap_or_default(),
            mode: if options.processes { "one process per service".into() } else { "one process".into() },
            nats: url,
            person_seed_file: key("person")?,
            zenoh,
            clusters: clusters.iter().map(|c| c.name.clone()).collect(),
        };
        let up = Self { server, router, members, _lock: lock, endpoints, data_dir, stopping, failures };
        let waited = up.ready(&services, started).await;
        match waited {
            Ok(()) => Ok(up),
            Err(error) => {
                up.stop().await?;
                Err(error)
            }
        }
    }

    /// Waits until every service and every cluster has said that it is ready, then writes the endpoints file.
    async fn ready(&self, services: &[&str], started: mesh_proto::Timestamp) -> anyhow::Result<()> {
        let path = Endpoints::path(&self.data_dir);
        let text = serde_json::to_vec_pretty(&self.endpoints).context("write the endpoints")?;
        let staged = path.with_extension("new");
        fs::write(&staged, text).context("write the endpoints file")?;
        fs::rename(&staged, &path).context("write the endpoints file")?;
        let client = Client::connect(&self.data_dir).await?;
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let waiting = client.not_ready(services, &self.endpoints.clusters, started).await?;
            if waiting.is_empty() {
                client.bus.close().await;
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "not ready within {} s: {}; see the logs in {}",
                    READY_LIMIT.as_secs(),
                    waiting.join(", "),
                    self.data_dir.join("run").display()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops everything that it started.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        let removed = fs::remove_file(Endpoints::path(&self.data_dir));
        match self.members {
            Members::Tasks(mut running) => {
                // The agents first: their last words still find everybody.
                let mut stops = JoinSet::new();
                while let Some((_, service)) = running.pop() {
                    stops.spawn(service.stop());
                }
                let _ = tokio::time::timeout(STOP_LIMIT, stops.join_all()).await;
                self.stopping.cancel();
            }
            Members::Processes(mut set) => {
                self.stopping.cancel();
                while set.join_next().await.is_some() {}
            }
        }
        self.router.close().await.context("close the Zenoh router")?;
        self.server.await.context("stop nats-server")?;
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("remove the endpoints file")
            }
            _ => Ok(()),
        }
    }
}

/// One service to run.
struct Member {
    title: String,
    service: &'static str,
    settings: Settings,
    own: BTreeMap<String, String>,
}

impl Member {
    /// Its command line.
    fn arguments(&self) -> anyhow::Result<Vec<OsString>> {
        let mut arguments = config::arguments(&self.settings).context("write the settings")?;
        for (key, value) in &self.own {
            arguments.extend(["--set".to_owned(), format!("{key}={value}")]);
        }
        Ok(arguments.into_iter().map(OsString::from).collect())
    }

    /// Its program, beside this one.
    fn program(&self) -> anyhow::Result<Vec<PathBuf>> {
        let this = std::env::current_exe().context("find this program")?;
        if self.service == "json-mirror" {
            return Ok(vec![this, "json-mirror".into()]);
        }
        let path = this.with_file_name(self.service);
        if !path.is_file() {
            bail!("{} is not there; build every service with `cargo build --workspace --bins`", path.display());
        }
        Ok(vec![path])
    }

    /// Joins as tasks of this process.
    async fn join(self) -> anyhow::Result<Running> {
        match self.service {
            "workload-manager" => self.join_as(workload_manager::start).await,
            "validator" => self.join_as(validator::start).await,
            "intent-manager" => self.join_as(intent_manager::start).await,
            "meta-orchestrator" => self.join_as(meta_orchestrator::start).await,
            "collector" => self.join_as(collector::start).await,
            "cmdt-aggregator" => self.join_as(cmdt_aggregator::start).await,
            "secure-storage" => self.join_as(secure_storage::start).await,
            "accounting" => self.join_as(accounting::start).await,
            "cfdrl-agent" => self.join_as(cfdrl_agent::start).await,
            "sar-detector" => self.join_as(sar_detector::start).await,
            "mncc-exposer" => self.join_as(mncc_exposer::start).await,
            "gateway" => self.join_as(gateway::start).await,
            "cluster-agent" => self.join_as(cluster_agent::start).await,
            _ => self.join_as(mirror::start).await,
        }
    }

    async fn join_as<C, F, S>(self, start: F) -> anyhow::Result<Running>
    where
        C: Serialize + DeserializeOwned + Default,
        F: FnOnce(Mesh, C) -> S,
        S: Future<Output = anyhow::Result<()>>,
    {
        let loaded = config::load::<C>(self.service, self.arguments()?, &BTreeMap::new())?;
        mesh_kit::join(self.service, loaded.settings, loaded.config, start).await
    }
}

/// A cluster as its agent's configuration.
fn agent(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, String>> {
    let labels = cluster.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
    let site = if cluster.site.is_empty() { cluster.name.clone() } else { cluster.site.clone() };
    // Commands of workloads are found beside this program first: the examples are built there.
    let here = std::env::current_exe().context("find this program")?;
    let path = here.parent().map(|p| p.display().to_string()).into_iter();
    let path = path.chain(std::env::var("PATH").ok()).collect::<Vec<_>>().join(":");
    Ok(BTreeMap::from([
        ("path".into(), path),
        ("cluster_id".into(), cluster.name.clone()),
        ("cpu_milli".into(), cluster.cpu_milli.to_string()),
        ("memory_bytes".into(), (cluster.memory_mb * 1_000_000).to_string()),
        ("labels".into(), labels),
        ("driver".into(), cluster.driver.clone()),
        ("site".into(), site),
        ("node".into(), format!("{}-1", cluster.name)),
    ]))
}

/// Where an agent answers probes: an address of its own on this machine, so that the clusters are several places in the
/// network; if so wished, behind a relay that can delay them.
async fn probes(
    data_dir: &Path,
    cluster: &Cluster,
    number: usize,
    relayed: bool,
    stopping: &CancellationToken,
) -> anyhow::Result<BTreeMap<String, String>> {
    let address = |net: u8| {
        std::net::IpAddr::from([127, net, u8::try_from(number / 250).unwrap_or(255), (number % 250 + 1) as u8])
    };
    let own = address(1);
    let mut settings = BTreeMap::from([
        ("probe_listen".to_owned(), format!("{own}:0")),
        ("probe_slot_ms".to_owned(), PROBE_SLOT_MS.to_string()),
    ]);
    if relayed {
        let relay = crate::relay::Relay::bind(&address(2).to_string()).await?;
        let target = std::net::SocketAddr::new(own, relay.address.port());
        settings.insert("probe_listen".to_owned(), target.to_string());
        settings.insert("probe_advertise".to_owned(), relay.address.to_string());
        let control = crate::relay::control(data_dir, &cluster.name);
        tokio::spawn(relay.run(target, control, stopping.clone()));
    }
    Ok(settings)
}

fn sets(pairs: &[String]) -> anyhow::Result<BTreeMap<String, BTreeMap<String, String>>> {
    let mut sets: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for pair in pairs {
        let split = pair.split_once('=').and_then(|(name, value)| Some((name.split_once('.')?, value)));
        let Some(((service, key), value)) = split else {
            bail!("--set {pair}: write SERVICE.KEY=VALUE, for example meta-orchestrator.move_cooldown_ms=5000");
        };
        sets.entry(service.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
    }
    Ok(sets)
}

fn sets_of(sets: &BTreeMap<String, BTreeMap<String, String>>, service: &str) -> BTreeMap<String, String> {
    sets.get(service).cloned().unwrap_or_default()
}

/// Takes the data folder for this process alone.
fn lock(data_dir: &Path) -> anyhow::Result<File> {
    let path = data_dir.join("lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .context("open the lock file")?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).context("write the lock file")?;
            writeln!(file, "{}", std::process::id()).context("write the lock file")?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            bail!(
                "another mesh (process {}) runs with the data folder {}; stop it with `continuum down`, or give this one \
                 another folder with --data-dir",
                holder.trim(),
                data_dir.display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).context("lock the data folder"),
    }
}

fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr().context("find a free port")?.port())
}

/// Keeps the nats-server running; started again at once when it ends by itself, and when there is room again after its
/// disk was full: until then it takes no writes.
async fn keep_server(mut server: Server, data_dir: PathBuf, stopping: CancellationToken) {
    let mut pause = Duration::from_millis(50);
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut told = false;
    let mut begun = Instant::now();
    loop {
        tokio::select! {
            ended = server.ended() => {
                if begun.elapsed() > Duration::from_secs(10) {
                    pause = Duration::from_millis(50);
                }
                note(format!("continuum: nats-server ended ({}), starting it again", ended.map_or_else(|e| e.to_string(), |s| s.to_string())));
            }
            _ = look.tick() => {
                let Some(error) = server.write_error().await else { continue };
                if !told {
                    note(format!("continuum: nats-server cannot write, so writes wait: {error}; make room on the disk of {}", data_dir.display()));
                    told = true;
                }
                let is_full = free_disk_bytes(&data_dir).is_ok_and(|free| free < ROOM_BYTES);
                if is_full || begun.elapsed() < RESTART_MIN {
                    continue;
                }
                told = false;
                note("continuum: there is room again, starting nats-server anew");
            }
            () = stopping.cancelled() => {
                if let Err(error) = server.stop().await {
                    note(format!("continuum: stop nats-server: {error}"));
                }
                return;
            }
        }
        while let Err(error) = server.restart().await {
            note(format!("continuum: start nats-server again: {error}"));
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(5)),
                () = stopping.cancelled() => return,
            }
        }
        begun = Instant::now();
    }
}

/// Keeps one service process running; started again with back-off when it ends by itself.
async fn keep_process(program: Vec<PathBuf>, arguments: Vec<OsString>, log: PathBuf, stopping: CancellationToken) {
    let mut pause = Duration::from_millis(50);
    loop {
        let begun = Instant::now();
        let ended = match spawn(&program, &arguments, &log) {
            Ok(mut child) => tokio::select! {
                ended = child.wait() => ended.map_or_else(|e| e.to_string(), |s| s.to_string()),
                () = stopping.cancelled() => return end(child).await,
            },
            Err(error) => error.to_string(),
        };
        if begun.elapsed() > Duration::from_secs(10) {
            pause = Duration::from_millis(50);
        }
        let name = program.last().map(|p| p.display().to_string()).unwrap_or_default();
        note(format!("continuum: {name} ended ({ended}), starting it again; its log is {}", log.display()));
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(5)),
            () = stopping.cancelled() => return,
        }
    }
}

fn spawn(program: &[PathBuf], arguments: &[OsString], log: &Path) -> std::io::Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    let mut program = program.iter();
    let mut command = tokio::process::Command::new(program.next().ok_or(std::io::ErrorKind::NotFound)?);
    command.args(program).args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    // The command line says everything; what else the environment holds is not for the services.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CONTINUUM_")) {
        command.env_remove(name);
    }
    // A terminal's interrupt is for this process; it stops the others in order.
    command.process_group(0);
    command.spawn()
}

async fn end(mut child: Child) {
    if let Some(pid) = child.id() {
        let _ =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGTERM);
    }
    if tokio::time::timeout(STOP_LIMIT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
