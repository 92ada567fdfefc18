//! The whole mesh: how long a submitted intent takes to be planned, and what the mesh keeps in memory at rest.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use mesh_admin::KeyFolder;
use mesh_proto::{
    contract, derived_id,
    intent::{Intent, SubmitIntent},
    placement::PlacementDecided,
    query::GetRequest,
    workload::{ProcessSpec, RegisterWorkload, Resources, WorkloadDocument},
};
use prost::Message as _;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::{
    baseline::Baseline,
    report::{Bound, Row},
    rig::{median, percentile},
};
use continuum::document;
use mesh_all::{Cluster, Options, Up, default_clusters};
use mesh_client::{ANSWER_WAIT, Client, Endpoints, OWNER};

const STEP_LIMIT: Duration = Duration::from_secs(60);
/// Between two submissions: 100 a second.
const PACE: Duration = Duration::from_millis(10);

/// Writes simulated clusters with room for every intent: what is measured is not the search for room.
pub(crate) fn spacious_clusters(folder: &Path) -> anyhow::Result<PathBuf> {
    let clusters: Vec<Cluster> = default_clusters()
        .into_iter()
        .map(|c| Cluster { cpu_milli: 10_000_000, memory_mb: 10_000_000, driver: "simulated".into(), ..c })
        .collect();
    let file = folder.join("clusters.yaml");
    std::fs::write(&file, serde_json::to_vec(&clusters).context("write clusters")?).context("write clusters")?;
    Ok(file)
}

/// A small workload that is only simulated, version 1.0.0.
pub(crate) fn workload(name: &str) -> WorkloadDocument {
    WorkloadDocument {
        name: name.into(),
        version: "1.0.0".into(),
        kind: "process".into(),
        driver: "simulated".into(),
        process: Some(ProcessSpec { command: name.into(), ..ProcessSpec::default() }),
        resources: Some(Resources { cpu_milli: 10, memory_bytes: 1_000_000, ..Resources::default() }),
        replicas: 1,
        ..WorkloadDocument::default()
    }
}

/// Row 7: every service in this process, simulated clusters, 100 intents a second.
pub(super) async fn submit_to_planned(full: bool) -> anyhow::Result<Vec<Row>> {
    let folder = tempfile::Builder::new().prefix("continuum-bench-").tempdir().context("make a folder")?;
    let file = spacious_clusters(folder.path())?;
    let data_dir = folder.path().join("mesh");
    let options = Options { clusters: Some(file), log: "error".into(), ..Options::default() };
    let up = Up::start(&data_dir, &options).await.context("start the mesh")?;
    let measured = planned(&data_dir, if full { 2_000 } else { 400 }).await;
    up.stop().await.context("stop the mesh")?;
    let (raw, mut times, asked) = measured?;
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (p50, p99) = (median(&times), percentile(&times, 99));
    let detail =
        |time: Duration| format!("{:.2} ms; raw publish p50 {:.3} ms; {asked} intents at 100/s", ms(time), ms(raw));
    let over = |time: Duration| time.as_secs_f64() / raw.as_secs_f64().max(f64::EPSILON);
    Ok(vec![
        Row::new(
            7,
            "submit -> planned, p50, to one raw durable publish at rest (p50)",
            Bound::AtMost(18.0),
            "x",
            over(p50),
            detail(p50),
        ),
        Row::new(
            7,
            "submit -> planned, p99, to one raw durable publish at rest (p50)",
            Bound::AtMost(90.0),
            "x",
            over(p99),
            detail(p99),
        ),
    ])
}

async fn planned(data_dir: &Path, count: usize) -> anyhow::Result<(Duration, Vec<Duration>, usize)> {
    let client = Client::connect(data_dir).await?;
    let seeds = KeyFolder::together(data_dir.join("keys")).read(contract()).context("read the keys")?;
    let provisioner = seeds.get("provisioner").context("the mesh has no key of the provisioner")?;
    let baseline = Baseline::connect(&Endpoints::read(data_dir)?.nats, provisioner).await?;
    baseline.make("RAW").await?;
    register(&client).await?;
    let intent = intent("bench", 60)?;
    let mut raw = baseline.at_rest("RAW", 300).await?;
    submitted(&client, &intent, "warm", 100).await?;
    let times = submitted(&client, &intent, "bench", count).await?;
    raw.extend(baseline.at_rest("RAW", 300).await?);
    client.bus().close().await;
    Ok((median(&raw), times, count))
}

/// Submits `count` intents at their pace; the time of each until it is planned.
async fn submitted(client: &Client, intent: &Intent, prefix: &str, count: usize) -> anyhow::Result<Vec<Duration>> {
    let log = client.bus().log("PLACEMENT");
    let mut tail = log.tail("placement.>", log.last_sequence().await? + 1);
    let prefix = format!("{prefix}-{}", uuid::Uuid::new_v4().simple());
    let submit = async {
        let mut pace = tokio::time::interval(PACE);
        let (mut begun, mut sends) = (HashMap::new(), tokio::task::JoinSet::new());
        for index in 0..count {
            pace.tick().await;
            let intent_id = format!("{prefix}-{index}");
            let command =
                SubmitIntent { owner: OWNER.into(), intent_id: intent_id.clone(), intent: Some(intent.clone()) };
            let message = mesh_core::Outgoing::new(&command, derived_id(&["bench", &intent_id]), mesh_client::now())?;
            let bus = client.bus().clone();
            begun.insert(intent_id, Instant::now());
            sends.spawn(async move { bus.publish(&message).await });
        }
        while let Some(sent) = sends.join_next().await {
            sent?.context("submit an intent")?;
        }
        anyhow::Ok(begun)
    };
    let watch = async {
        let mut planned = HashMap::new();
        while planned.len() < count {
            let stored = tokio::time::timeout(STEP_LIMIT, tail.next()).await.map_err(|_| {
                anyhow!("{} of {count} intents are planned, then none within {} s", planned.len(), STEP_LIMIT.as_secs())
            })??;
            let at = Instant::now();
            let Some(decided) = stored.event::<PlacementDecided>()? else { continue };
            if decided.intent_id.starts_with(&prefix) {
                planned.entry(decided.intent_id).or_insert(at);
            }
        }
        anyhow::Ok(planned)
    };
    let (begun, planned) = tokio::try_join!(submit, watch)?;
    Ok(planned.iter().filter_map(|(id, at)| Some(at.saturating_duration_since(*begun.get(id)?))).collect())
}

pub(crate) async fn register(client: &Client) -> anyhow::Result<()> {
    let document = workload("bench");
    let register = RegisterWorkload { owner: OWNER.into(), name: document.name.clone(), document: Some(document) };
    client.ask(&register, derived_id(&["bench", "register"]), ANSWER_WAIT).await?;
    let deadline = Instant::now() + STEP_LIMIT;
    loop {
        let request = GetRequest { owner: OWNER.into(), id: "bench@1.0.0".into() };
        match client.workloads().await?.get_workload(request).await {
            Ok(view) if view.get_ref().status == "accepted" => return Ok(()),
            Ok(view) if view.get_ref().status != "pending" => bail!("the workload is {}", view.get_ref().status),
            _ if Instant::now() > deadline => bail!("the workload is not validated within {} s", STEP_LIMIT.as_secs()),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// An intent that runs this workload, judged once in each period of this many seconds.
pub(crate) fn intent(workload: &str, period_s: u64) -> anyhow::Result<Intent> {
    let target = json!({"targetName": "cpuUsage", "targetCondition": "IS_LESS_THAN", "targetValueRange": "90"});
    let parsed = document::intent(
        json!({
            "userLabel": "DeliverComputingWorkload",
            "intentExpectations": [{
                "expectationId": "run",
                "expectationVerb": "DELIVER",
                "expectationObject": {"objectType": "NEMO_WORKLOAD", "objectInstance": format!("{workload}@1.0.0")},
                "expectationTargets": [target],
            }],
            "intentPriority": 1,
            "observationPeriod": period_s,
        })
        .into(),
    )?;
    Ok(Intent::decode(parsed.body.as_slice())?)
}

/// Row 9: memory of a mesh of its own, all services and three clusters in one process, at rest.
pub(super) async fn memory(full: bool) -> anyhow::Result<Vec<Row>> {
    let folder = tempfile::Builder::new().prefix("continuum-bench-").tempdir().context("make a folder")?;
    let mut child = Command::new(std::env::current_exe().context("find this program")?.with_file_name("continuum"))
        .arg("--data-dir")
        .arg(folder.path())
        .args(["up", "--nats-context", "", "--log", "error"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("start a mesh")?;
    let pid = child.id().context("the mesh has ended")?;
    let mut lines = BufReader::new(child.stdout.take().context("read the mesh's words")?).lines();
    let up = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains("is up in") {
                return anyhow::Ok(());
            }
        }
        bail!("the mesh has ended")
    };
    tokio::time::timeout(STEP_LIMIT, up).await.context("await the mesh")??;
    // At rest: the start is over, measurements and signs of life flow.
    tokio::time::sleep(Duration::from_secs(if full { 20 } else { 4 })).await;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read the mesh's memory")?;
    let megabytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok()).map(|kib| kib * 1_024.0 / 1e6)
    };
    let resident = megabytes("VmRSS").context("read the mesh's memory")?;
    let detail = format!(
        "{:.1} MB of its own, {:.1} MB of the program's file",
        megabytes("RssAnon").unwrap_or_default(),
        megabytes("RssFile").unwrap_or_default()
    );
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGTERM)
        .context("stop the mesh")?;
    tokio::time::timeout(STEP_LIMIT, child.wait()).await.context("await the mesh's end")??;
    Ok(vec![Row::new(
        9,
        "memory of the all-in-one at rest, three clusters, without nats-server",
        Bound::AtMost(150.0),
        " MB",
        resident,
        detail,
    )])
}
