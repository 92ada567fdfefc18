//! A mesh as it is shipped, in processes of its own, with its counters.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use mesh_bus::{Bus, Options, Samples, SamplesOptions};
use mesh_core::Outgoing;
use mesh_proto::{
    AnyEvent as _, Event as _, derived_id,
    intent::{FulfilmentStatus, Intent, IntentStateChanged, State, SubmitIntent},
    telemetry::Packed,
    workload::{RegisterWorkload, WorkloadRegistered},
};
use serde_json::Value as Json;
use tokio::process::{Child, Command};

use super::{
    Cost, Plan, Spent, WORKLOAD,
    counters::{self, resident_bytes},
};
use crate::{
    fsync,
    telemetry::flow::{Kind, Load, Site, now},
    whole,
};

/// Longest wait for any one thing.
const LIMIT: Duration = Duration::from_secs(120);
/// Intents a second: below what a mesh can take.
const PER_SECOND: u64 = 50;
/// Observation period of an intent, seconds: it is fulfilled after the first whole one.
const PERIOD_S: u64 = 10;
/// Samples of instances that an agent sends each second, in one message.
const SAMPLES_PER_SECOND: usize = 1_000;

fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("find a port")?;
    Ok(listener.local_addr().context("find a port")?.port())
}

/// A mesh in processes of its own.
pub(crate) struct RunningMesh {
    up: Child,
    /// The server's counters, and its profile.
    monitor: String,
    profile: String,
    bus: Bus,
    zenoh: String,
    /// Where each process says what it counts.
    programs: Vec<SocketAddr>,
    folder: tempfile::TempDir,
}

/// Who sends samples of many instances.
struct Agent {
    session: Samples,
    load: Load,
}

impl Agent {
    /// Sends a sample of each instance each second, for this long: how many.
    async fn send(&mut self, length: Duration) -> anyhow::Result<f64> {
        let begun = tokio::time::Instant::now();
        let mut pace = tokio::time::interval(Duration::from_secs(1));
        // The last of them have time to be taken in.
        let packs = length.as_secs() - 2;
        for _ in 0..packs {
            pace.tick().await;
            self.load.send(&self.session, Site::Mesh, now()).await?;
        }
        tokio::time::sleep_until(begun + length).await;
        Ok((packs as usize * SAMPLES_PER_SECOND) as f64)
    }
}

/// What sync calls are counted of.
enum Traced {
    Intents,
    Samples,
    Nothing,
}

/// Counters at one time.
struct Reading {
    at: Instant,
    counted: Spent,
    /// Memory by program, bytes.
    memory: BTreeMap<String, f64>,
}

/// What was spent between two readings.
struct Change {
    seconds: f64,
    counted: Spent,
}

impl Reading {
    fn since(&self, before: &Self) -> Change {
        Change { seconds: (self.at - before.at).as_secs_f64(), counted: self.counted.less(&before.counted) }
    }

    /// Memory of all programs but the server's, bytes.
    fn own_memory(&self) -> f64 {
        self.memory.iter().filter(|(name, _)| *name != SERVER).map(|(_, bytes)| bytes).sum()
    }
}

impl Change {
    fn each_second(&self) -> Spent {
        self.counted.times(1.0 / self.seconds)
    }
}

/// Name of the server's program.
const SERVER: &str = "nats-server";

impl RunningMesh {
    /// Starts a mesh; `tracer` is what runs its nats-server, with arguments, or nothing.
    pub(crate) async fn start(program: &Path, processes: bool, tracer: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("continuum-bench-").tempdir().context("make a folder")?;
        let server = mesh_admin::find_server().await.context("find a nats-server")?.path;
        let (port, profile) = (free_port()?, free_port()?);
        // The server as the mesh starts it, with its own monitoring beside.
        let wrapper = folder.path().join("nats-server");
        let script = format!("#!/bin/sh\nexec {tracer} '{}' -m {port} --profile {profile} \"$@\"\n", server.display());
        std::fs::write(&wrapper, script).context("write the server's wrapper")?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&wrapper, mode).context("write the server's wrapper")?;
        let file = whole::spacious_clusters(folder.path())?;
        let data_dir = folder.path().join("mesh");
        let log = std::fs::File::create(folder.path().join("log")).context("make the log")?;
        let mut command = Command::new(program);
        command.arg("--data-dir").arg(&data_dir).args(["up", "--log", "error", "--clusters"]).arg(&file);
        if processes {
            command.arg("--processes");
        }
        let up = command
            .env("CONTINUUM_NATS_SERVER", &wrapper)
            // Where it writes a context for the `nats` program. An older build knows no option against it.
            .env("XDG_CONFIG_HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        // The file is there once everything is.
        let endpoints = data_dir.join("endpoints.json");
        let deadline = Instant::now() + LIMIT;
        let endpoints: Json = loop {
            let text = std::fs::read(&endpoints).unwrap_or_default();
            if let Ok(endpoints) = serde_json::from_slice(&text) {
                break endpoints;
            }
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
                bail!("{} is not up within {} s: {log}", program.display(), LIMIT.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let endpoint =
            |name: &str| endpoints[name].as_str().map(str::to_owned).with_context(|| format!("the mesh has no {name}"));
        let (url, zenoh) = (endpoint("nats")?, endpoint("zenoh")?);
        let seed = std::fs::read_to_string(data_dir.join("keys/person.nk")).context("read a person's key")?;
        let seed = Some(seed.trim().to_owned());
        let bus = Bus::connect(Options { url, service: "person".into(), seed, ..Options::default() }).await?;
        let (monitor, profile) = (format!("http://127.0.0.1:{port}/varz"), format!("http://127.0.0.1:{profile}"));
        let programs = counters::programs(&bus).await?;
        Ok(Self { up, monitor, profile, bus, zenoh, programs, folder })
    }

    /// Measures what each unit of work costs, less what the mesh costs anyway.
    pub(super) async fn measure(&mut self, plan: Plan) -> anyhow::Result<Cost> {
        self.register().await?;
        let intent = whole::intent(WORKLOAD, PERIOD_S)?;
        // The first ones pay for what is made once.
        self.fulfil(&intent, "warm", 10).await?;
        tokio::time::sleep(plan.idle / 2).await;
        let start = self.read().await?;
        tokio::time::sleep(plan.idle).await;
        let before = self.read().await?;
        let watched = self.fulfil(&intent, "cost", plan.intents).await?;
        let mut after = self.read().await?;
        // What was delivered to this program, which watches every intent, is not the mesh's.
        after.counted.deliveries -= watched as f64;
        tokio::time::sleep(plan.rest).await;
        let mut end = self.read().await?;
        end.counted.deliveries -= watched as f64;
        let mut agent = self.agent().await?;
        let calm = self.read().await?;
        let sampled = agent.send(plan.rest).await?;
        let last = self.read().await?;
        let mut syncs = (self.traced(Traced::Intents, &intent, plan).await, None, None);
        if plan.traces_all {
            syncs.1 = self.traced(Traced::Samples, &intent, plan).await;
            syncs.2 = self.traced(Traced::Nothing, &intent, plan).await;
        }

        let (idle, running) = (before.since(&start).each_second(), end.since(&after).each_second());
        let (busy, flowing) = (after.since(&before), last.since(&calm));
        // Idle traffic grows with what already runs: over the time between, it is the mean of both.
        let meanwhile = idle.plus(&running).times(busy.seconds / 2.0);
        let count = plan.intents as f64;
        Ok(Cost {
            intent: Spent { syncs: syncs.0, ..busy.counted.less(&meanwhile).times(1.0 / count) },
            sample: Spent {
                syncs: syncs.1,
                ..flowing.counted.less(&running.times(flowing.seconds)).times(1.0 / sampled)
            },
            // Those of the traced ones run as well by then.
            instance: Spent {
                syncs: syncs.2.map(|all| all / (count * 1.25)),
                ..running.less(&idle).times(1.0 / count)
            },
            instance_bytes: (end.own_memory() - before.own_memory()).max(0.0) / count,
            rest_bytes: start.own_memory(),
        })
    }

    /// An agent of many instances, all of which are known to the mesh once this returns.
    async fn agent(&self) -> anyhow::Result<Agent> {
        let options = SamplesOptions { connect: vec![self.zenoh.clone()], ..SamplesOptions::default() };
        let session = Samples::open(options).await.context("join the mesh's samples")?;
        let mut load = Load::new(Kind::Samples, "bench", 1, SAMPLES_PER_SECOND);
        let log = self.bus.log(Packed::STREAM);
        load.begin(&session, Site::Mesh, now(), async || Ok(log.last_sequence().await?)).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(Agent { session, load })
    }

    /// Sync calls of the server for each unit of some work; none where they cannot be counted.
    async fn traced(&self, what: Traced, intent: &Intent, plan: Plan) -> Option<f64> {
        let (pid, _) = self.processes().ok()?.into_iter().find(|(_, name)| name == SERVER)?;
        let trace = self.folder.path().join("trace");
        let strace = fsync::attach(pid, &trace).await.ok()?;
        let seconds = plan.rest.as_secs_f64();
        let done = match what {
            Traced::Intents => {
                let count = plan.intents / 4;
                self.fulfil(intent, "traced", count).await.map(|_| count as f64)
            }
            Traced::Samples => match self.agent().await {
                Ok(mut agent) => agent.send(plan.rest).await,
                Err(error) => Err(error),
            },
            Traced::Nothing => {
                tokio::time::sleep(plan.rest).await;
                Ok(seconds)
            }
        };
        fsync::detach(strace).await.ok()?;
        Some(fsync::syncs(&trace).ok()?.len() as f64 / done.ok()?)
    }

    pub(crate) async fn register(&self) -> anyhow::Result<()> {
        let document = whole::workload(WORKLOAD);
        let command = RegisterWorkload { owner: "local".into(), name: document.name.clone(), document: Some(document) };
        let (owner, name) = (command.owner.clone(), command.name.clone());
        let registered = WorkloadRegistered { owner, name, ..WorkloadRegistered::default() }.subject()?;
        let mut tail = self.bus.log(WorkloadRegistered::STREAM).tail(&registered, 1);
        self.bus.publish(&Outgoing::new(&command, derived_id(&["bench", "cost"]), mesh_client::now())?).await?;
        tokio::time::timeout(LIMIT, tail.next()).await.context("the workload is not registered")??;
        Ok(())
    }

    /// Submits intents at their pace, and returns once all of them are fulfilled: how many facts about intents there were.
    async fn fulfil(&self, intent: &Intent, prefix: &str, count: u64) -> anyhow::Result<u64> {
        let is_fulfilled = |state: &State| state.fulfilment_status() == FulfilmentStatus::Fulfilled;
        self.submit_until(is_fulfilled, PER_SECOND, intent, prefix, count).await
    }

    /// The same with another pace and goal: each command is sent when it is time, however many wait to be stored.
    pub(crate) async fn submit_until(
        &self,
        is_done: impl Fn(&State) -> bool,
        per_second: u64,
        intent: &Intent,
        prefix: &str,
        count: u64,
    ) -> anyhow::Result<u64> {
        let log = self.bus.log(IntentStateChanged::STREAM);
        let begun = log.last_sequence().await?;
        let mut tail = log.tail("intent.>", begun + 1);
        let ids: Vec<String> = (0..count).map(|number| format!("{prefix}-{number}")).collect();
        let mut waited: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
        let submit = async {
            let mut pace = tokio::time::interval(Duration::from_micros(1_000_000 / per_second));
            let mut sends = tokio::task::JoinSet::new();
            for id in &ids {
                pace.tick().await;
                let command =
                    SubmitIntent { owner: "local".into(), intent_id: id.clone(), intent: Some(intent.clone()) };
                let command = Outgoing::new(&command, derived_id(&["bench", "cost", id]), mesh_client::now())?;
                let bus = self.bus.clone();
                sends.spawn(async move { bus.publish(&command).await });
            }
            while let Some(sent) = sends.join_next().await {
                sent?.context("submit an intent")?;
            }
            anyhow::Ok(())
        };
        let watch = async {
            while !waited.is_empty() {
                let stored = tokio::time::timeout(LIMIT, tail.next()).await;
                let stored = stored.with_context(|| format!("{} of {count} intents are not done", waited.len()))??;
                let Some(changed) = stored.event::<IntentStateChanged>()? else { continue };
                if changed.to.as_ref().is_some_and(&is_done) {
                    waited.remove(changed.intent_id.as_str());
                }
            }
            anyhow::Ok(())
        };
        tokio::try_join!(submit, watch)?;
        Ok(log.last_sequence().await? - begun)
    }

    async fn read(&self) -> anyhow::Result<Reading> {
        let processes = self.processes()?;
        let (mut cpu_ms, mut memory) = (BTreeMap::<String, f64>::new(), BTreeMap::<String, f64>::new());
        for (pid, name) in processes {
            *cpu_ms.entry(name.clone()).or_default() += counters::cpu_seconds(pid).unwrap_or_default() * 1e3;
            *memory.entry(name).or_default() += resident_bytes(pid).unwrap_or_default();
        }
        ensure!(cpu_ms.contains_key(SERVER), "the mesh has no nats-server");
        let body = counters::get(&self.monitor).await?;
        let counters: Json = serde_json::from_slice(&body).context("decode nats-server's counters")?;
        let counter = |name: &str| counters[name].as_f64().with_context(|| format!("nats-server counts no {name}"));
        let counted = Spent {
            cpu_ms,
            deliveries: counter("out_msgs")?,
            delivered_bytes: counter("out_bytes")?,
            received: counter("in_msgs")?,
            allocations: counters::allocations(&self.programs).await,
            server_allocations: counters::server_allocations(&self.profile).await,
            syncs: None,
        };
        Ok(Reading { at: Instant::now(), counted, memory })
    }

    /// `up` and all of its descendants, by process id, with the names of their programs.
    fn processes(&self) -> anyhow::Result<Vec<(u32, String)>> {
        let root = self.up.id().context("the mesh has ended")?;
        let mut all: BTreeMap<u32, (u32, String)> = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").context("list processes")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Some((parent, name)) = counters::parent_and_name(pid) else { continue };
            all.insert(pid, (parent, name));
        }
        let belongs = |mut pid: u32| {
            while pid != root {
                match all.get(&pid) {
                    Some((parent, _)) => pid = *parent,
                    None => return false,
                }
            }
            true
        };
        Ok(all.iter().filter(|(pid, _)| belongs(**pid)).map(|(pid, (_, name))| (*pid, name.clone())).collect())
    }

    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.bus.close().await;
        let pid = self.up.id().context("the mesh ended by itself")?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGTERM)
            .context("stop the mesh")?;
        tokio::time::timeout(LIMIT, self.up.wait()).await.context("await the mesh's end")??;
        Ok(())
    }
}
