//! The whole mesh on one machine: a nats-server, a Zenoh router, every service and its clusters, in one process or in one
//! process per service. `continuum up` and the benchmarks run it.

#![allow(clippy::disallowed_methods, reason = "servers and services are started, watched and waited for")]

mod clusters;
mod registry;
mod relay;
mod services;
mod supervisor;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use mesh_admin::{
    KeyFolder, ProvisionOptions, RenderOptions, Server, ServerOptions, check_folder, disk_room_bytes, find_server,
    mark_folder, provision, render,
};
use mesh_bus::{Samples, SamplesMode, SamplesOptions};
use mesh_client::{Client, Endpoints};
use mesh_kit::{Joint, ReadableBy, Running, Settings, write_atomic};
use mesh_proto::{contract, contract::Kind, rights};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use clusters::{Cluster, defaults as default_clusters};
pub use registry::SERVICES;

use services::{Member, agent, probes};
use supervisor::{STOP_LIMIT, keep_process, keep_server};

/// How long the whole mesh may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Disk that is left to others.
const DISK_SPARE_BYTES: u64 = 1 << 30;

/// Where notes for a person go, one line each.
pub type Report = fn(&str);

/// Writes a note to standard error.
#[allow(clippy::print_stderr)]
fn to_stderr(text: &str) {
    eprintln!("continuum: {}", mesh_proto::shown::lines(text));
}

/// What to run, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// One process per service instead of one for all.
    pub processes: bool,
    /// File with the clusters to run, as YAML; three (cloud, edge, device) when absent.
    pub clusters: Option<PathBuf>,
    /// Port of the NATS server; a free one when 0.
    pub nats_port: u16,
    /// Port of the NATS server for dashboards (WebSocket); a free one when 0.
    pub websocket_port: u16,
    /// Port of the Zenoh router; a free one when 0.
    pub zenoh_port: u16,
    /// Configuration of services, `SERVICE.KEY=VALUE` each.
    pub set: Vec<String>,
    /// Services that are not started.
    pub without: Vec<String>,
    /// Address of an OpenTelemetry collector (OTLP over gRPC).
    pub otlp: Option<String>,
    /// Log level or filter, as tracing-subscriber's `EnvFilter` reads it.
    pub log: String,
    /// Puts a relay before each agent's probes, which a file can delay
    /// ([`probe_delay_file`](mesh_client::endpoints::probe_delay_file)).
    pub relays: bool,
    /// Where notes for a person go.
    pub report: Report,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            processes: false,
            clusters: None,
            nats_port: 0,
            websocket_port: 0,
            zenoh_port: 0,
            set: vec![],
            without: vec![],
            otlp: None,
            log: "warn".into(),
            relays: false,
            report: to_stderr,
        }
    }
}

/// A mesh that this process runs.
pub struct Up {
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
    /// The services, and what they share.
    Tasks(Vec<(String, Running)>, Joint),
    Processes(JoinSet<()>),
}

impl Up {
    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    /// When a part cannot be started, or is not ready in time; what was started is stopped again.
    pub async fn start(data_dir: &Path, options: &Options) -> anyhow::Result<Self> {
        mesh_bus::install_crypto();
        mesh_kit::use_small_pages();
        let sets = sets(&options.set)?;
        if let Some(unknown) = options.without.iter().find(|name| !SERVICES.contains(&name.as_str())) {
            bail!("--without {unknown}: no service has this name; the services are {}", SERVICES.join(", "));
        }
        let services: Vec<&str> =
            SERVICES.into_iter().filter(|name| !options.without.iter().any(|left_out| left_out == name)).collect();
        let clusters = match &options.clusters {
            Some(path) => clusters::read(path)?,
            None => clusters::defaults(),
        };
        // Before anything is written.
        check_folder(data_dir)?;
        fs::create_dir_all(data_dir).with_context(|| format!("make the data folder {}", data_dir.display()))?;
        let data_dir = data_dir.canonicalize().context("find the data folder")?;
        // Workloads run on the same host.
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&data_dir, private).with_context(|| format!("close {} to others", data_dir.display()))?;
        let lock = lock(&data_dir)?;
        mark_folder(&data_dir)?;
        carry_over(&data_dir, options.report)?;
        let found = find_server().await.context("find a nats-server")?;
        for skipped in &found.skipped {
            (options.report)(&format!("skipped a nats-server: {skipped}"));
        }

        // The bus: configuration and keys from the contract; existing keys are used again.
        let key_folder = KeyFolder::together(data_dir.join("keys"));
        let keys = key_folder.read(contract()).context("read the keys")?;
        let run_dir = data_dir.join("run");
        fs::create_dir_all(&run_dir).context("make the run folder")?;
        let free = disk_room_bytes(&data_dir).context("ask for the free disk")?;
        // Chosen here, so that it is the same one after a restart of the server.
        let websocket_port = if options.websocket_port == 0 { free_port()? } else { options.websocket_port };
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
                websocket_listen: Some(format!("127.0.0.1:{websocket_port}")),
                disk_bytes: Some(
                    free.saturating_sub(DISK_SPARE_BYTES.min(free / 2)).min(mesh_admin::bytes_wanted(contract())),
                ),
                keys,
                ..RenderOptions::default()
            },
        )
        .context("render the bus configuration")?;
        let files = rendered.write_with_keys(&data_dir, &key_folder).context("write the bus configuration")?;
        let key = |identity: &str| {
            files.keys.get(identity).cloned().ok_or_else(|| anyhow!("the contract has no identity {identity}"))
        };
        let mut server_options = ServerOptions::new(&found.path, &files.nats_conf, &run_dir);
        // A port of its own choice too is kept while the server is down.
        server_options.listen = Some(format!("127.0.0.1:{}", options.nats_port));
        let server = Server::start(server_options).await.context("start nats-server")?;
        let url = server.url();
        let provisioner = rendered.keys.get("provisioner").cloned();
        let options_ = ProvisionOptions { url: url.clone(), seed: provisioner, ..ProvisionOptions::default() };
        let report = provision(contract(), &options_).await.context("provision the bus")?;
        for text in &report.notes {
            (options.report)(&format!("bus: {text}"));
        }
        let stopping = CancellationToken::new();
        let (fail, failures) = mpsc::channel(16);
        let server = tokio::spawn(keep_server(server, data_dir.clone(), options.report, stopping.clone()));

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
                random_wording: mesh_kit::config::random_wording(),
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
                "--set {unknown}…: no service has this name; the services are {}, cluster-agent",
                SERVICES.join(", ")
            );
        }
        let started = mesh_client::now();
        let members = if options.processes {
            let mut set = JoinSet::new();
            for member in wanted {
                let log = run_dir.join(format!("{}.log", member.title.replace(' ', "-")));
                let (program, arguments) = (member.program()?, member.arguments()?);
                set.spawn(keep_process(program, arguments, log, options.report, stopping.clone()));
            }
            Members::Processes(set)
        } else {
            let first = wanted.first().map(|m| m.settings.clone()).unwrap_or_default();
            mesh_kit::telemetry::install("continuum", &std::process::id().to_string(), &first)
                .context("set up telemetry")?;
            let settings = Settings { bus_api_prefix: "$JS.API".into(), ..common(rights::JOINT)? };
            let joint = Joint::connect(&settings, own_streams(&services), router.clone());
            let joint = joint.await.context("connect the services")?;
            let mut running = vec![];
            for member in wanted {
                let title = member.title.clone();
                let joined = member.join(&joint).await.with_context(|| format!("start {title}"))?;
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
            Members::Tasks(running, joint)
        };
        let endpoints = Endpoints {
            pid: std::process::id(),
            started_ticks: mesh_client::endpoints::started_ticks(std::process::id()).unwrap_or_default(),
            mode: if options.processes { "one process per service".into() } else { "one process".into() },
            nats: url,
            person_seed_file: key("person")?,
            websocket: format!("ws://127.0.0.1:{websocket_port}"),
            dashboard_seed_file: key(rights::DASHBOARD)?,
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

    /// Writes the endpoints file, then waits until every service and every cluster has announced that it is ready.
    async fn ready(&self, services: &[&str], started: mesh_proto::Timestamp) -> anyhow::Result<()> {
        let path = Endpoints::path(&self.data_dir);
        let text = serde_json::to_vec_pretty(&self.endpoints).context("write the endpoints")?;
        write_atomic(&path, &text, ReadableBy::Anyone).context("write the endpoints file")?;
        let client = Client::connect(&self.data_dir).await?;
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let waiting = client
                .not_ready(services, &self.endpoints.clusters, started)
                .await
                .context("read which services are ready")?;
            if waiting.is_empty() {
                client.bus().close().await;
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

    /// The first failure of a service that runs in this process. Never returns when services are processes of their own:
    /// those are started again.
    pub async fn failed(&mut self) -> String {
        match self.failures.recv().await {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }

    /// Stops everything that it started.
    ///
    /// # Errors
    /// When a part does not stop, or the endpoints file cannot be removed.
    pub async fn stop(self) -> anyhow::Result<()> {
        let removed = fs::remove_file(Endpoints::path(&self.data_dir));
        match self.members {
            Members::Tasks(mut running, joint) => {
                // The agents first: what they publish last still finds everybody.
                let mut stops = JoinSet::new();
                while let Some((_, service)) = running.pop() {
                    stops.spawn(service.stop());
                }
                let _ = tokio::time::timeout(STOP_LIMIT, stops.join_all()).await;
                joint.close().await;
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

/// Streams that these services write, and nobody else: those of agents are not among them, who may run elsewhere too.
fn own_streams(services: &[&str]) -> BTreeSet<String> {
    let mut own: BTreeSet<String> = contract()
        .streams
        .iter()
        .filter(|s| s.has_write_prefix() || s.kind == Kind::Samples)
        .map(|s| s.name.clone())
        .collect();
    for service in contract().services.iter().filter(|service| !services.contains(&service.name.as_str())) {
        for event in rights::writes(contract(), service) {
            own.remove(&event.stream);
        }
    }
    own
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

/// Moves what gateways up to 0.1 kept of the built-in issuer to the identity service: its keys and the first password.
fn carry_over(data_dir: &Path, report: Report) -> anyhow::Result<()> {
    let (from, to) = (data_dir.join("state/gateway"), data_dir.join("state/identity"));
    for name in ["issuer.keys", "admin.password"] {
        let (old, new) = (from.join(name), to.join(name));
        if old.exists() && !new.exists() {
            fs::create_dir_all(&to).with_context(|| format!("make {}", to.display()))?;
            fs::rename(&old, &new).with_context(|| format!("move {} to {}", old.display(), new.display()))?;
            report(&format!("moved {} to {}", old.display(), new.display()));
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_service_of_the_contract_is_in_the_table() {
        let people = ["person", "provisioner"];
        let contract: BTreeSet<&str> =
            contract().services.iter().map(|s| s.name.as_str()).filter(|name| !people.contains(name)).collect();
        let table: BTreeSet<&str> = SERVICES.into_iter().chain(["cluster-agent"]).collect();
        assert_eq!(table, contract);
    }

    #[test]
    fn a_setting_names_its_service_and_its_key() {
        let found = sets(&["a.b=c=d".into(), "a.e=".into()]).unwrap();
        assert_eq!(found["a"], BTreeMap::from([("b".into(), "c=d".into()), ("e".into(), String::new())]));
        for wrong in ["a=b", "a.b", ""] {
            let error = sets(&[wrong.into()]).unwrap_err().to_string();
            assert!(error.contains("SERVICE.KEY=VALUE"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_service_that_does_not_exist_cannot_be_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { without: vec!["billing".into()], ..Options::default() };
        let error = Up::start(folder.path(), &options).await.err().unwrap().to_string();
        assert!(error.contains("--without billing") && error.contains("accounting"), "{error}");
    }

    #[test]
    fn an_earlier_gateways_keys_become_those_of_the_identity_service_once() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("state/gateway"), folder.path().join("state/identity"));
        fs::create_dir_all(&old).unwrap();
        fs::write(old.join("issuer.keys"), "kept").unwrap();
        carry_over(folder.path(), |_| ()).unwrap();
        assert_eq!(fs::read_to_string(new.join("issuer.keys")).unwrap(), "kept");
        assert!(!old.join("issuer.keys").exists() && !new.join("admin.password").exists());
        fs::write(old.join("issuer.keys"), "another").unwrap();
        carry_over(folder.path(), |_| ()).unwrap();
        assert_eq!(fs::read_to_string(new.join("issuer.keys")).unwrap(), "kept", "never overwritten");
    }

    #[test]
    fn two_meshes_never_share_a_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        let _held = lock(folder.path()).unwrap();
        let error = lock(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()) && error.contains("--data-dir"), "{error}");
    }
}
