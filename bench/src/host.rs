//! `bench telemetry --only host`: the host's probes beside node_exporter, and what an agent costs that measures all of it.

#[path = "../../services/cluster-agent/tests/exporter/shared.rs"]
mod shared;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use cluster_agent::{Config, shell::measure::application};
use mesh_core::Outgoing;
use mesh_kit::{Secret, Settings, config};
use mesh_proto::{
    Timestamp,
    assignment::{Action, AssignmentChanged},
    instance::{AgentStateRequest, agent_queries_client::AgentQueriesClient},
    workload::{ProcessSpec, Resources, WorkloadDocument},
};
use prost::Message as _;
use tokio::process::{Child, Command};

use self::shared::{Counters, ours, theirs};
use crate::{
    report::{Bound, Row},
    rig::Rig,
};

/// Processes that the agent runs and measures.
const PROCESSES: usize = 200;
/// How long anything of the start may take.
const STEP_LIMIT: Duration = Duration::from_secs(120);
/// A counter that moved by fewer steps of its resolution cannot be compared to 2 %.
const STEPS_MIN: f64 = 100.0;

/// A server that ends with its measurement.
struct Exporter {
    child: Child,
    address: SocketAddr,
}

impl Exporter {
    async fn start() -> anyhow::Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/debian/usr/bin/prometheus-node-exporter");
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(&path)
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}; get it: make setup-test", path.display()))?;
        let exporter = Self { child, address };
        let begun = Instant::now();
        while exporter.ask().await.is_err() {
            ensure!(begun.elapsed() < STEP_LIMIT, "node_exporter does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(exporter)
    }

    async fn ask(&self) -> anyhow::Result<Counters> {
        let read = application::read(self.address, "/metrics", 100_000).await;
        read.failure.map_or_else(|| Ok(theirs(&read.values)), |why| Err(anyhow!(why)))
    }

    fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("node_exporter has ended")
    }
}

/// All rows.
///
/// # Errors
/// When a program is missing or does not start.
pub(crate) async fn measure(full: bool) -> anyhow::Result<Vec<Row>> {
    let seconds = if full { 60 } else { 15 };
    let exporter = Exporter::start().await?;
    let mut rows = vec![compare(&exporter, seconds).await?];
    rows.extend(cost(&exporter, seconds).await?);
    Ok(rows)
}

/// What both say at one moment: ours is the mean of just before and just after theirs.
async fn look(exporter: &Exporter) -> anyhow::Result<(Counters, Counters)> {
    let said = || ours().map_err(|why| anyhow!(why));
    let before = said()?;
    let theirs = exporter.ask().await?;
    let after = said()?;
    let mean =
        before.into_iter().filter_map(|(name, value)| Some((name.clone(), f64::midpoint(value, *after.get(&name)?))));
    Ok((mean.collect(), theirs))
}

/// The smallest step that a counter is said in.
fn step(name: &str) -> f64 {
    match name.split(' ').collect::<Vec<_>>()[..] {
        ["cpu", ..] => 0.01,
        ["disk", "time" | "busy", ..] => 0.001,
        ["pressure", ..] => 1e-6,
        _ => 1.0,
    }
}

async fn compare(exporter: &Exporter, seconds: u64) -> anyhow::Result<Row> {
    let (ours_first, theirs_first) = look(exporter).await?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let (ours_last, theirs_last) = look(exporter).await?;
    let (mut worst, mut compared, mut still) = ((0.0f64, String::new()), 0, 0);
    for (name, last) in &theirs_last {
        let all = (theirs_first.get(name), ours_first.get(name), ours_last.get(name));
        let (Some(first), Some(ours_first), Some(ours_last)) = all else { continue };
        let (theirs, ours) = (last - first, ours_last - ours_first);
        if theirs.abs() < step(name) * STEPS_MIN {
            still += 1;
            // It hardly moved: neither may ours have.
            ensure!((ours - theirs).abs() <= step(name) * STEPS_MIN, "{name}: {ours}, node_exporter {theirs}");
            continue;
        }
        compared += 1;
        let off = (ours - theirs).abs() / theirs.abs() * 100.0;
        if off > worst.0 {
            worst = (off, format!("{name}: {ours:.3} and {theirs:.3}"));
        }
    }
    ensure!(compared > 0, "nothing moved");
    let detail = format!("{compared} shared counters moved over {seconds} s, {still} hardly; the worst is {}", worst.1);
    Ok(Row::new(1, "host probe beside node_exporter, counter deltas", Bound::AtMost(2.0), " %", worst.0, detail))
}

/// CPU seconds that a process has used, and MiB that it holds.
pub(crate) fn used(pid: u32) -> anyhow::Result<(f64, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read what a process used")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    // Linux counts a hundred ticks a second for programs.
    let seconds = (ticks(11) + ticks(12)) as f64 / 100.0;
    let pages = ticks(21) as f64;
    Ok((seconds, pages * 4_096.0 / (1 << 20) as f64))
}

struct Agent {
    child: Child,
    endpoint: String,
}

async fn cost(exporter: &Exporter, seconds: u64) -> anyhow::Result<Vec<Row>> {
    let folder = tempfile::Builder::new().prefix("continuum-bench-").tempdir().context("make a folder")?;
    let rig = Rig::start().await?;
    let agent = Agent::start(&rig, folder.path()).await?;
    let orchestrator = rig.bus("meta-orchestrator").await?;
    for number in 0..PROCESSES {
        let assignment = assignment(&format!("p{number}"));
        let message = Outgoing::new(&assignment, format!("bench-{number}"), Timestamp::from_millis(1))?;
        orchestrator.publish(&message).await?;
    }
    agent.runs(PROCESSES).await?;
    // The first looks at each are over.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (pid, theirs) = (agent.child.id().context("the agent has ended")?, exporter.pid()?);
    let (before, theirs_before) = (used(pid)?, used(theirs)?);
    let begun = Instant::now();
    let mut every = tokio::time::interval(Duration::from_secs(1));
    while begun.elapsed() < Duration::from_secs(seconds) {
        every.tick().await;
        exporter.ask().await?;
    }
    let passed = begun.elapsed().as_secs_f64();
    let (after, theirs_after) = (used(pid)?, used(theirs)?);
    let share = (after.0 - before.0) / passed * 100.0;
    let theirs_share = (theirs_after.0 - theirs_before.0) / passed * 100.0;
    let cpu = format!(
        "{PROCESSES} processes, all of the host each second, samples of all processes each second; node_exporter scraped \
         each second: {theirs_share:.2} %"
    );
    let memory = format!("resident after {passed:.0} s; node_exporter: {:.1} MiB", theirs_after.1);
    let what = "agent, of one core";
    Ok(vec![
        Row::new(2, what, Bound::AtMost(2.0), " %", share, cpu),
        Row::new(3, "agent, memory", Bound::AtMost(60.0), " MiB", after.1, memory),
    ])
}

impl Agent {
    async fn start(rig: &Rig, folder: &Path) -> anyhow::Result<Self> {
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let samples = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let settings = Settings {
            bus_url: rig.server.url(),
            bus_seed_file: Some(Secret::at(rig.key("cluster-agent")?)),
            data_dir: Some(folder.to_owned()),
            listen: address.to_string(),
            samples_mode: mesh_kit::config::SamplesMode::Router,
            samples_listen: vec![format!("tcp/{samples}")],
            log_level: "error".into(),
            ..Settings::default()
        };
        let own = Config {
            cluster_id: "bench".into(),
            cpu_milli: 1_000_000,
            memory_bytes: 1 << 50,
            measure_ms: 1_000,
            ..Config::default()
        };
        let program: PathBuf = std::env::current_exe().context("find this program")?.with_file_name("cluster-agent");
        let child = Command::new(&program)
            .args(config::arguments(&settings)?)
            .args(config::arguments(&own)?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}; build it: cargo build -p cluster-agent", program.display()))?;
        Ok(Self { child, endpoint: format!("http://{address}") })
    }

    /// Waits until this number of processes runs.
    async fn runs(&self, count: usize) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            ensure!(begun.elapsed() < STEP_LIMIT, "the agent does not run {count} processes");
            if let Ok(mut queries) = AgentQueriesClient::connect(self.endpoint.clone()).await
                && let Ok(state) = queries.state(AgentStateRequest {}).await
                && state.into_inner().processes.len() == count
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn assignment(instance: &str) -> AssignmentChanged {
    let process = ProcessSpec { command: "sleep".into(), arguments: vec!["3600".into()], ..ProcessSpec::default() };
    let document = WorkloadDocument {
        name: "w".into(),
        version: "1.0.0".into(),
        kind: "process".into(),
        process: Some(process),
        resources: Some(Resources { cpu_milli: 10, memory_bytes: 1_000_000, ..Resources::default() }),
        ..WorkloadDocument::default()
    };
    AssignmentChanged {
        cluster_id: "bench".into(),
        owner: "local".into(),
        instance_id: instance.into(),
        generation: 1,
        action: Action::Run.into(),
        replicas: 1,
        document: document.encode_to_vec().into(),
        ..AssignmentChanged::default()
    }
}
