//! `bench cost`: what one intent costs from its submission until it is fulfilled, and what one running instance costs each
//! second, from the counters of the kernel and of nats-server.
//!
//! A mesh runs as it is shipped (`continuum up`, clusters simulated) in a process of its own. Its processes' CPU and memory
//! are read from `/proc`, the server's messages and bytes from its monitoring port. What a mesh costs anyway, before the
//! intents and once all of them run, is measured for itself and taken off.
//!
//! CPU depends on the machine, so it is given as a multiple of what one durable publish by hand costs client and server in
//! the same run; `--against PROGRAM` measures another build in turn and gives the shares of its figures. Messages do not
//! depend on the machine: they must not grow by more than a tenth over what is recorded here, in any form.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use continuum::output::note;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy::Client as Http, rt::TokioExecutor};
use mesh_bus::{Bus, Options};
use mesh_core::Outgoing;
use mesh_proto::{
    AnyEvent as _, Event as _, derived_id,
    intent::{FulfilmentStatus, Intent, IntentStateChanged, State, SubmitIntent},
    workload::{RegisterWorkload, WorkloadRegistered},
};
use serde_json::Value as Json;
use tokio::process::{Child, Command};

use crate::{
    fsync,
    report::{Bound, Length, Row},
    rig::Rig,
    whole,
};

/// Longest wait for any one thing.
const LIMIT: Duration = Duration::from_secs(120);
/// Intents a second: below what a mesh can take.
const PER_SECOND: u64 = 50;
/// Name of the workload that every intent runs.
pub(super) const WORKLOAD: &str = "cost";
/// Observation period of an intent, seconds: it is fulfilled after the first whole one.
const PERIOD_S: u64 = 10;
/// Messages published by hand for one figure of raw cost.
const RAW: usize = 2_000;

/// Options of `bench cost`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CostOptions {
    #[command(flatten)]
    pub(super) length: Length,
    /// One process per service: the cost of each is told.
    #[arg(long)]
    processes: bool,
    /// A `continuum` of another build, measured in turn; what is told is the share of its figures.
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
}

/// Lengths of a measurement.
#[derive(Clone, Copy)]
struct Plan {
    intents: u64,
    /// How long a mesh is watched while nothing is submitted.
    rest: Duration,
    /// How often each program is measured.
    rounds: usize,
}

/// Takes all measurements.
pub(super) async fn measure(options: &CostOptions) -> anyhow::Result<Vec<Row>> {
    let full = options.length.full;
    let plan = Plan {
        intents: if full { 1_000 } else { 200 },
        rest: Duration::from_secs(if full { 20 } else { 6 }),
        rounds: if full { 3 } else { 1 },
    };
    mesh_bus::install_crypto();
    let own = std::env::current_exe().context("find this program")?.with_file_name("continuum");
    let (mut ours, mut theirs, mut raws) = (vec![], vec![], vec![]);
    for round in 1..=plan.rounds {
        note(format!("round {round} of {}: {}", plan.rounds, own.display()));
        raws.push(raw().await?);
        ours.push(cost(&own, plan, options.processes).await?);
        if let Some(other) = &options.against {
            note(format!("round {round} of {}: {}", plan.rounds, other.display()));
            theirs.push(cost(other, plan, options.processes).await?);
        }
    }
    let raw = middle(raws.iter().copied());
    let mut rows = absolute(&ours, raw, options.processes);
    if !theirs.is_empty() {
        rows.extend(shares(&ours, &theirs));
    }
    Ok(rows)
}

fn middle(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

/// What was measured of one program.
#[derive(Debug)]
struct Cost {
    /// CPU milliseconds of one intent, by program.
    intent_cpu_ms: BTreeMap<String, f64>,
    /// Messages that nats-server delivered for one intent, and the bytes of them.
    deliveries: f64,
    delivered_bytes: f64,
    /// Messages that it took in for one intent.
    received: f64,
    /// Sync calls of nats-server for one intent; none where they cannot be counted.
    syncs: Option<f64>,
    /// CPU milliseconds each second, and bytes of memory, of one running instance.
    instance_cpu_ms: f64,
    instance_bytes: f64,
    /// Memory of all programs but nats-server at rest, before any intent; bytes.
    rest_bytes: f64,
}

impl Cost {
    fn cpu_ms(&self) -> f64 {
        self.intent_cpu_ms.values().sum()
    }
}

/// The figures of this build beside their bounds. Counters of messages do not depend on the machine: they must not grow by
/// more than a tenth over what was recorded.
fn absolute(ours: &[Cost], raw_ms: f64, processes: bool) -> Vec<Row> {
    let figure = |of: Figure| middle(ours.iter().map(of));
    let by_program = |cost: &Cost| {
        let parts = cost.intent_cpu_ms.iter().map(|(name, ms)| format!("{name} {ms:.2}"));
        parts.collect::<Vec<_>>().join(", ")
    };
    let cpu = figure(Cost::cpu_ms);
    let recorded = if processes { &RECORDED_PROCESSES } else { &RECORDED };
    let detail = format!(
        "{cpu:.2} ms: {}; one publish by hand {raw_ms:.3} ms, client and server",
        ours.last().map(by_program).unwrap_or_default()
    );
    let mut rows = vec![
        Row::new(
            1,
            "CPU of one intent, submit -> FULFILLED, to one durable publish by hand",
            Bound::AtMost(recorded.cpu_to_raw * SLOW),
            "x",
            cpu / raw_ms.max(f64::EPSILON),
            detail,
        ),
        Row::new(
            2,
            "messages delivered for one intent, without idle traffic",
            Bound::Guard(recorded.deliveries),
            "",
            figure(|cost| cost.deliveries),
            format!("{:.0} bytes; {:.1} messages taken in", figure(|c| c.delivered_bytes), figure(|c| c.received)),
        ),
        Row::new(
            3,
            "CPU of one running instance, each second, to one durable publish by hand",
            Bound::AtMost(recorded.instance_to_raw * SLOW),
            "x",
            figure(|cost| cost.instance_cpu_ms) / raw_ms.max(f64::EPSILON),
            format!("{:.3} ms/s", figure(|cost| cost.instance_cpu_ms)),
        ),
        Row::new(
            4,
            "memory of one running instance",
            Bound::AtMost(recorded.instance_kb),
            " kB",
            figure(|cost| cost.instance_bytes) / 1e3,
            format!("the mesh at rest before: {:.1} MB without nats-server", figure(|cost| cost.rest_bytes) / 1e6),
        ),
    ];
    let syncs: Vec<f64> = ours.iter().filter_map(|cost| cost.syncs).collect();
    rows.push(Row {
        number: 5,
        what: "sync calls of nats-server for one intent".into(),
        bound: Bound::AtMost(recorded.syncs),
        unit: "",
        measured: (!syncs.is_empty()).then(|| middle(syncs.iter().copied())),
        detail: if syncs.is_empty() { "not counted: strace cannot trace here".into() } else { "seen by strace".into() },
    });
    rows
}

/// How much more CPU a build without optimisation may take.
const SLOW: f64 = if cfg!(debug_assertions) { 20.0 } else { 1.0 };

/// What a release is expected to cost; see `docs/performance.md`.
struct Recorded {
    cpu_to_raw: f64,
    deliveries: f64,
    instance_to_raw: f64,
    instance_kb: f64,
    syncs: f64,
}

/// Every service in one process.
const RECORDED: Recorded =
    Recorded { cpu_to_raw: 30.0, deliveries: 18.0, instance_to_raw: 0.25, instance_kb: 150.0, syncs: 20.0 };
/// One process per service.
const RECORDED_PROCESSES: Recorded =
    Recorded { cpu_to_raw: 60.0, deliveries: 125.0, instance_to_raw: 0.5, instance_kb: 300.0, syncs: 25.0 };

/// One figure of a cost.
type Figure = fn(&Cost) -> f64;

/// This build's share of another's figures, measured in turn.
fn shares(ours: &[Cost], theirs: &[Cost]) -> Vec<Row> {
    let figures: [(u8, &str, f64, Figure); 4] = [
        (6, "CPU of one intent", 0.3, Cost::cpu_ms),
        (7, "CPU of one running instance", 0.25, |cost| cost.instance_cpu_ms),
        (8, "memory of one running instance", 0.2, |cost| cost.instance_bytes),
        (9, "messages delivered for one intent", 0.4, |cost| cost.deliveries),
    ];
    figures
        .into_iter()
        .map(|(number, what, bound, of)| {
            let (own, other) = (middle(ours.iter().map(of)), middle(theirs.iter().map(of)));
            let what = format!("{what}: share of the other build's");
            let detail = format!("{own:.3} of {other:.3}");
            Row::new(number, &what, Bound::AtMost(bound), "x", own / other.max(f64::EPSILON), detail)
        })
        .collect()
}

/// CPU milliseconds of one durable publish by hand: of this process, which does nothing else meanwhile, and of the server.
async fn raw() -> anyhow::Result<f64> {
    let rig = Rig::start().await?;
    let baseline = rig.baseline(&["RAW"]).await?;
    baseline.at_rest("RAW", 100).await?;
    let pids = [std::process::id(), rig.server.pid().context("nats-server has ended")?];
    let cpu = || pids.iter().map(|pid| cpu_seconds(*pid)).sum::<Option<f64>>().context("read the CPU time");
    let before = cpu()?;
    baseline.at_rest("RAW", RAW).await?;
    Ok((cpu()? - before) * 1e3 / RAW as f64)
}

/// Measures one program.
async fn cost(program: &Path, plan: Plan, processes: bool) -> anyhow::Result<Cost> {
    let mut mesh = RunningMesh::start(program, processes, "").await?;
    let measured = mesh.measure(plan).await;
    mesh.stop().await?;
    measured
}

/// A mesh in processes of its own.
pub(super) struct RunningMesh {
    up: Child,
    monitor: String,
    bus: Bus,
    _folder: tempfile::TempDir,
}

/// Counters at one time.
struct Reading {
    at: Instant,
    /// CPU seconds by program.
    cpu: BTreeMap<String, f64>,
    /// Memory by program, bytes.
    memory: BTreeMap<String, f64>,
    out_messages: f64,
    out_bytes: f64,
    in_messages: f64,
}

/// Between two readings.
struct Change {
    seconds: f64,
    cpu: BTreeMap<String, f64>,
    out_messages: f64,
    out_bytes: f64,
    in_messages: f64,
}

impl Reading {
    fn since(&self, before: &Self) -> Change {
        let cpu = self.cpu.iter().map(|(name, now)| (name.clone(), now - before.cpu.get(name).unwrap_or(&0.0)));
        Change {
            seconds: (self.at - before.at).as_secs_f64(),
            cpu: cpu.collect(),
            out_messages: self.out_messages - before.out_messages,
            out_bytes: self.out_bytes - before.out_bytes,
            in_messages: self.in_messages - before.in_messages,
        }
    }

    /// Memory of all programs but the server's, bytes.
    fn own_memory(&self) -> f64 {
        self.memory.iter().filter(|(name, _)| *name != SERVER).map(|(_, bytes)| bytes).sum()
    }
}

/// Name of the server's program.
const SERVER: &str = "nats-server";

impl RunningMesh {
    /// Starts a mesh; `tracer` is what runs its nats-server, with arguments, or nothing.
    pub(super) async fn start(program: &Path, processes: bool, tracer: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("continuum-bench-").tempdir().context("make a folder")?;
        let server = mesh_admin::find_server().await.context("find a nats-server")?.path;
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).context("find a port")?.port();
        // The server as the mesh starts it, with its own monitoring beside.
        let wrapper = folder.path().join("nats-server");
        let script = format!("#!/bin/sh\nexec {tracer} '{}' -m {port} \"$@\"\n", server.display());
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
        let url = loop {
            let text = std::fs::read(&endpoints).unwrap_or_default();
            if let Some(url) =
                serde_json::from_slice::<Json>(&text).ok().and_then(|e| Some(e["nats"].as_str()?.to_owned()))
            {
                break url;
            }
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
                bail!("{} is not up within {} s: {log}", program.display(), LIMIT.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let seed = std::fs::read_to_string(data_dir.join("keys/person.nk")).context("read a person's key")?;
        let seed = Some(seed.trim().to_owned());
        let bus = Bus::connect(Options { url, service: "person".into(), seed, ..Options::default() }).await?;
        Ok(Self { up, monitor: format!("http://127.0.0.1:{port}/varz"), bus, _folder: folder })
    }

    async fn measure(&mut self, plan: Plan) -> anyhow::Result<Cost> {
        self.register().await?;
        let intent = whole::intent(WORKLOAD, PERIOD_S)?;
        // The first ones pay for what is made once.
        self.fulfil(&intent, "warm", 10).await?;
        tokio::time::sleep(plan.rest / 2).await;
        let start = self.read().await?;
        tokio::time::sleep(plan.rest).await;
        let before = self.read().await?;
        let watched = self.fulfil(&intent, "cost", plan.intents).await?;
        let mut after = self.read().await?;
        // What was delivered to this program, which watches every intent, is not the mesh's.
        after.out_messages -= watched as f64;
        tokio::time::sleep(plan.rest).await;
        let mut end = self.read().await?;
        end.out_messages -= watched as f64;
        let syncs = self.syncs(&intent, plan.intents / 4).await;

        let (idle, busy, running) = (before.since(&start), after.since(&before), end.since(&after));
        let count = plan.intents as f64;
        // Idle traffic grows with what already runs: over the time between, it is the mean of both.
        let less_idle = |of: &dyn Fn(&Change) -> f64| {
            let rate = (of(&idle) / idle.seconds + of(&running) / running.seconds) / 2.0;
            (of(&busy) - rate * busy.seconds).max(0.0) / count
        };
        let cpu = |change: &Change, name: &str| change.cpu.get(name).copied().unwrap_or_default();
        let names: BTreeSet<&String> = busy.cpu.keys().collect();
        let all = |change: &Change| change.cpu.values().sum::<f64>() / change.seconds;
        Ok(Cost {
            intent_cpu_ms: names
                .into_iter()
                .map(|name| (name.clone(), less_idle(&|change| cpu(change, name)) * 1e3))
                .collect(),
            deliveries: less_idle(&|change| change.out_messages),
            delivered_bytes: less_idle(&|change| change.out_bytes),
            received: less_idle(&|change| change.in_messages),
            syncs,
            instance_cpu_ms: (all(&running) - all(&idle)).max(0.0) * 1e3 / count,
            instance_bytes: (end.own_memory() - before.own_memory()).max(0.0) / count,
            rest_bytes: start.own_memory(),
        })
    }

    /// Sync calls of the server for one intent; none where they cannot be counted.
    async fn syncs(&self, intent: &Intent, count: u64) -> Option<f64> {
        let (pid, _) = self.processes().ok()?.into_iter().find(|(_, name)| name == SERVER)?;
        let trace = self._folder.path().join("trace");
        let strace = fsync::attach(pid, &trace).await.ok()?;
        let done = self.fulfil(intent, "traced", count).await;
        fsync::detach(strace).await.ok()?;
        done.ok()?;
        Some(fsync::syncs(&trace).ok()?.len() as f64 / count as f64)
    }

    pub(super) async fn register(&self) -> anyhow::Result<()> {
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
    pub(super) async fn submit_until(
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
        let (mut cpu, mut memory) = (BTreeMap::<String, f64>::new(), BTreeMap::<String, f64>::new());
        for (pid, name) in processes {
            *cpu.entry(name.clone()).or_default() += cpu_seconds(pid).unwrap_or_default();
            *memory.entry(name).or_default() += resident_bytes(pid).unwrap_or_default();
        }
        ensure!(cpu.contains_key(SERVER), "the mesh has no nats-server");
        let http: Http<_, Empty<bytes::Bytes>> = Http::builder(TokioExecutor::new()).build_http();
        let answer = http.get(self.monitor.parse()?).await.context("ask nats-server for its counters")?;
        let body = answer.into_body().collect().await.context("read nats-server's counters")?.to_bytes();
        let counters: Json = serde_json::from_slice(&body).context("decode nats-server's counters")?;
        let counter = |name: &str| counters[name].as_f64().with_context(|| format!("nats-server counts no {name}"));
        Ok(Reading {
            at: Instant::now(),
            cpu,
            memory,
            out_messages: counter("out_msgs")?,
            out_bytes: counter("out_bytes")?,
            in_messages: counter("in_msgs")?,
        })
    }

    /// `up` and all of its descendants, by process id, with the names of their programs.
    fn processes(&self) -> anyhow::Result<Vec<(u32, String)>> {
        let root = self.up.id().context("the mesh has ended")?;
        let mut all: BTreeMap<u32, (u32, String)> = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").context("list processes")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Some((parent, name)) = parent_and_name(pid) else { continue };
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

    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.bus.close().await;
        let pid = self.up.id().context("the mesh ended by itself")?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGTERM)
            .context("stop the mesh")?;
        tokio::time::timeout(LIMIT, self.up.wait()).await.context("await the mesh's end")??;
        Ok(())
    }
}

/// The fields of `/proc/PID/stat` after the name, and the name.
fn stat(pid: u32) -> Option<(Vec<String>, String)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = text.rsplit_once(") ")?;
    let name = head.split_once('(')?.1.to_owned();
    Some((tail.split_whitespace().map(str::to_owned).collect(), name))
}

fn parent_and_name(pid: u32) -> Option<(u32, String)> {
    let (fields, name) = stat(pid)?;
    Some((fields.get(1)?.parse().ok()?, name))
}

/// CPU time of a process and of its children that have ended, seconds.
fn cpu_seconds(pid: u32) -> Option<f64> {
    let (fields, _) = stat(pid)?;
    let ticks: f64 = fields.get(11..15)?.iter().filter_map(|field| field.parse::<f64>().ok()).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten()?;
    Some(ticks / per_second as f64)
}

/// Memory of a process that is not backed by a file, bytes.
pub(crate) fn resident_bytes(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib * 1_024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_parent_a_name_cpu_time_and_memory() {
        let (parent, name) = parent_and_name(std::process::id()).unwrap();
        assert!(parent > 0 && !name.is_empty());
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000.0);
        assert_eq!(cpu_seconds(u32::MAX), None);
    }

    #[test]
    fn the_middle_of_figures_is_not_moved_by_one_that_is_far_off() {
        assert!((middle([3.0, 900.0, 2.0].into_iter()) - 3.0).abs() < f64::EPSILON);
        assert!(middle(std::iter::empty()).abs() < f64::EPSILON);
    }
}
