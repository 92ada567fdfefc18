//! `demo`: the main story, end to end, with real processes and real measurements. It fails if any expectation does.

mod account;
mod gateway;
mod intents;
mod learn;
mod network;
mod registry;
pub(crate) mod sar;
mod storage;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use mesh_core::Stored;
use mesh_proto::{
    EventSet as _,
    deciders::{stream_intent, stream_placement},
    derived_id,
    intent::{FulfilmentStatus, IntentStateChanged, NotFulfilledState, SubmitIntent, TerminateIntent},
    placement::PlacementDecided,
    query::{AgentStateRequest, GetRequest, ListRequest, ProcessView, RangeRequest, TwinRequest},
    workload::{RegisterWorkload, WorkloadDocument},
};
use prost::Message as _;
use tokio::sync::mpsc;

use crate::{
    args::{DemoOptions, UpOptions},
    client::{ANSWER_WAIT, Client, Endpoints, OWNER},
    describe::{self, describe, short},
    document,
    output::{line, table},
    up::Up,
};

/// How long the mesh may take for one step of the story.
const STEP_LIMIT: Duration = Duration::from_secs(30);
/// The load that breaks the intent: 60 % of the device, 10 % of the cloud.
const INJECTED_LOAD: &str = "load_milli=150\n";

/// Tells the story against the mesh of the data folder, or one that it starts itself.
pub(crate) async fn demo(data_dir: &Path, options: DemoOptions) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    if Endpoints::read(data_dir).is_ok() {
        line(format!("using the mesh that runs in {}", data_dir.display()));
        return tell(data_dir, &options.examples, begun, false).await;
    }
    let folder = tempfile::Builder::new().prefix("continuum-demo-").tempdir().context("make a folder for the demo")?;
    line("starting a mesh: nats-server, Zenoh router, every service, three clusters");
    let up = Up::start(
        folder.path(),
        &UpOptions {
            set: [
                "meta-orchestrator.move_cooldown_ms=10000",
                "intent-manager.remedy_cooldown_ms=10000",
                "collector.usage_window_ms=5000",
                "sar-detector.warm_samples=16",
                "sar-detector.calm_samples=3",
            ]
            .map(str::to_owned)
            .to_vec(),
            log: "error".into(),
            relays: true,
            ..UpOptions::default()
        },
    )
    .await
    .context("start the mesh")?;
    let told = tokio::select! {
        told = tell(folder.path(), &options.examples, begun, true) => told,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
    };
    up.stop().await.context("stop the mesh")?;
    told
}

pub(crate) struct Story {
    pub(crate) begun: Instant,
    failed: Vec<String>,
    held: usize,
}

impl Story {
    pub(crate) fn step(&self, title: &str) {
        line(format!("\n[{:6.2} s] {title}", self.begun.elapsed().as_secs_f64()));
    }

    pub(crate) fn say(&self, text: impl AsRef<str>) {
        line(format!("           {}", text.as_ref()));
    }

    pub(crate) fn expect(&mut self, what: &str, holds: bool) {
        line(format!("           {} {what}", if holds { "✓" } else { "✗" }));
        if holds { self.held += 1 } else { self.failed.push(what.to_owned()) }
    }
}

/// What happens on the bus about one intent and its instance, as it happens.
struct Happenings {
    arrivals: mpsc::Receiver<Stored>,
    intent: String,
    instance: String,
}

impl Happenings {
    async fn follow(client: &Client, intent: &str, instance: &str) -> anyhow::Result<Self> {
        let (sender, arrivals) = mpsc::channel(1_000);
        for stream in ["INTENT", "VALIDATION", "WORKLOAD", "PLACEMENT", "ASSIGNMENT", "INSTANCE", "OBSERVATION"] {
            let log = client.bus.log(stream);
            let from = log.last_sequence().await.context("read the bus")? + 1;
            let mut tail = log.tail(&format!("{}.>", stream.to_lowercase()), from);
            let sender = sender.clone();
            tokio::spawn(async move {
                while let Ok(stored) = tail.next().await {
                    if sender.send(stored).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Self { arrivals, intent: intent.to_owned(), instance: instance.to_owned() })
    }

    /// Shows what happens until something is what is looked for.
    async fn until<T>(
        &mut self,
        story: &Story,
        what: &str,
        mut look: impl FnMut(&Stored) -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = tokio::time::Instant::now() + STEP_LIMIT;
        loop {
            let stored = tokio::time::timeout_at(deadline, self.arrivals.recv())
                .await
                .map_err(|_| anyhow!("{what}: not seen within {} s", STEP_LIMIT.as_secs()))?
                .context("the bus is gone")?;
            if !self.concerns(&stored) {
                continue;
            }
            line(format!(
                "  {:6.2} s {:>17}  {}",
                story.begun.elapsed().as_secs_f64(),
                describe::writer(&stored),
                describe(&stored)
            ));
            if let Some(found) = look(&stored) {
                return Ok(found);
            }
        }
    }

    fn concerns(&self, stored: &Stored) -> bool {
        if stored.subject.ends_with(&format!(".{}", self.intent))
            || stored.subject.ends_with(&format!(".{}", self.instance))
        {
            return true;
        }
        let body = mesh_proto::json::to_value(&stored.message, &stored.body).unwrap_or_default();
        body.get("instanceId").and_then(|id| id.as_str()) == Some(self.instance.as_str())
    }
}

fn state_change(stored: &Stored) -> Option<IntentStateChanged> {
    match stream_intent::Event::decode(&stored.message, &stored.body) {
        Ok(stream_intent::Event::IntentStateChanged(change)) => Some(change),
        _ => None,
    }
}

fn is_fulfilled(stored: &Stored) -> Option<IntentStateChanged> {
    state_change(stored).filter(|c| c.to.as_ref().is_some_and(|s| s.fulfilment_status() == FulfilmentStatus::Fulfilled))
}

fn is_in(state: NotFulfilledState) -> impl FnMut(&Stored) -> Option<IntentStateChanged> {
    move |stored| {
        state_change(stored).filter(|c| {
            c.to.as_ref().is_some_and(|s| {
                s.fulfilment_status() != FulfilmentStatus::Fulfilled && s.not_fulfilled_state() == state
            })
        })
    }
}

fn decision(stored: &Stored) -> Option<PlacementDecided> {
    match stream_placement::Event::decode(&stored.message, &stored.body) {
        Ok(stream_placement::Event::PlacementDecided(decided)) => Some(decided),
        _ => None,
    }
}

/// The candidates of a decision, for a person.
pub(crate) fn candidates(decided: &PlacementDecided) -> String {
    let rows = decided.candidates.iter().map(|c| {
        let predicted: Vec<String> = c.predicted.iter().map(|(name, value)| describe::value(name, *value)).collect();
        let chosen = c.cluster_id == decided.cluster_id;
        let verdict = match (chosen, c.ruled_out.is_empty()) {
            (true, _) => "chosen".to_owned(),
            (_, true) => "could".to_owned(),
            (_, false) => format!("ruled out: {}", c.ruled_out),
        };
        let score = if c.ruled_out.is_empty() { format!("{:.1}", c.score) } else { "-".to_owned() };
        vec![c.cluster_id.clone(), score, predicted.join(", "), verdict]
    });
    table(&["cluster", "score", "predicted", "verdict"], rows.collect())
}

async fn processes(client: &Client, instance: &str) -> anyhow::Result<Vec<(String, ProcessView)>> {
    let clusters = client.orchestrator().await?.list_clusters(ListRequest::default()).await?.into_inner().clusters;
    let mut found = vec![];
    for cluster in clusters.into_iter().filter_map(|c| c.registered) {
        let state = client.agent(&cluster.endpoint).await?.state(AgentStateRequest {}).await?.into_inner();
        let here = state.processes.into_iter().filter(|p| p.instance_id == instance);
        found.extend(here.map(|p| (cluster.cluster_id.clone(), p)));
    }
    Ok(found)
}

fn runs(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

async fn tell(data_dir: &Path, examples: &Path, begun: Instant, own: bool) -> anyhow::Result<ExitCode> {
    let mut story = Story { begun, failed: vec![], held: 0 };
    let client = Client::connect(data_dir).await?;
    account::rates(&client).await?;

    story.step("three clusters have registered");
    let clusters = client.orchestrator().await?.list_clusters(ListRequest::default()).await?.into_inner().clusters;
    let rows = clusters.iter().filter_map(|c| c.registered.as_ref().map(|r| (c, r))).map(|(c, r)| {
        let megabytes = r.memory_bytes / 1_000_000;
        let available = if c.available { "available" } else { "lost" };
        vec![
            r.cluster_id.clone(),
            format!("{} mCPU", r.cpu_milli),
            format!("{megabytes} MB"),
            r.enforcement.clone(),
            available.into(),
        ]
    });
    line(table(&["cluster", "cpu", "memory", "limits by", "state"], rows.collect()));
    story.expect("at least three clusters of different capacity answer", {
        let sizes: std::collections::BTreeSet<u32> = clusters
            .iter()
            .filter(|c| c.available)
            .filter_map(|c| c.registered.as_ref().map(|r| r.cpu_milli))
            .collect();
        sizes.len() >= 3
    });

    let patient = sar::begin(&client).await?;

    story.step("a workload document is pushed");
    let file = examples.join("spinner.workload.yaml");
    let value = document::read(&file)?.into_iter().next().context("the example holds no document")?;
    let body = mesh_proto::json::value_to_protobuf("continuum.workload.v1.WorkloadDocument", value)
        .map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let document = WorkloadDocument::decode(body.as_slice())?;
    let control = control_file(&document)?;
    let _ = std::fs::remove_file(&control);
    let register =
        RegisterWorkload { owner: OWNER.into(), name: document.name.clone(), document: Some(document.clone()) };
    let answer =
        client.ask(&register, derived_id(&["register", OWNER, &document.name, &hex(&body)]), ANSWER_WAIT).await?;
    story.say(format!("{}: {}", describe::writer(&answer), describe(&answer)));
    let registered = await_registered(&client, &document).await?;
    story.expect(&format!("{}@{} is {registered}", document.name, document.version), registered == "accepted");

    let intent_id = format!("demo-{}", short(&uuid::Uuid::new_v4().to_string()));
    story.step(&format!("intent {intent_id} is submitted: below 20 % of its cluster's CPU and 200 MB"));
    let file = examples.join("spinner.intent.yaml");
    let value = document::read(&file)?.into_iter().next().context("the example holds no intent")?;
    let parsed = document::intent(value).with_context(|| file.display().to_string())?;
    let intent = mesh_proto::intent::Intent::decode(parsed.body.as_slice())?;
    let expectation = intent.intent_expectations.first().map(|e| e.expectation_id.clone()).unwrap_or_default();
    let instance = derived_id(&[OWNER, &intent_id, &expectation]);
    let mut happenings = Happenings::follow(&client, &intent_id, &instance).await?;
    let submit = SubmitIntent { owner: OWNER.into(), intent_id: intent_id.clone(), intent: Some(intent) };
    let submitted = Instant::now();
    client.ask(&submit, derived_id(&["submit", OWNER, &intent_id]), ANSWER_WAIT).await?;
    let first = happenings.until(&story, "a placement", decision).await?;
    let planned = submitted.elapsed();
    line(candidates(&first));
    story.expect(
        &format!(
            "it is planned, every candidate with its figures, {:.0} ms after submission",
            planned.as_secs_f64() * 1e3
        ),
        first.candidates.len() >= 3,
    );
    happenings.until(&story, "the instance runs", is_in(NotFulfilledState::Compliant)).await?;

    story.step("it runs as a real process, is measured, and has a twin");
    let before = processes(&client, &instance).await?;
    for (cluster, process) in &before {
        story.say(format!("pid {} on {cluster}, limits by {}", process.pid, process.enforcement));
    }
    story.expect("it runs exactly once", before.len() == 1 && before.iter().all(|(_, p)| runs(p.pid)));
    let fulfilled = happenings.until(&story, "FULFILLED", is_fulfilled).await?;
    story.expect(
        "it is FULFILLED with every target measured",
        !fulfilled.targets.is_empty() && fulfilled.targets.iter().all(|t| t.measured && t.fulfilled),
    );
    let range = RangeRequest { instance_id: instance.clone(), limit: 3, ..RangeRequest::default() };
    let samples = client.telemetry().await?.range(range).await?.into_inner().samples;
    for sample in &samples {
        story.say(format!(
            "sample: {:.1} % of {}, {:.1} MB",
            sample.cpu_percent,
            sample.cluster_id,
            sample.memory_bytes as f64 / 1e6
        ));
    }
    story.expect("telemetry flows over Zenoh into the collector", !samples.is_empty());
    let twin = client
        .twins()
        .await?
        .get(TwinRequest { kind: "workload".into(), id: instance.clone(), ..TwinRequest::default() })
        .await?
        .into_inner();
    story.say(format!(
        "twin: {} on {}, {:.1} %, {:.1} MB, version {}",
        twin.phase().as_str_name().to_lowercase(),
        twin.cluster_id,
        twin.cpu_percent,
        twin.memory_bytes as f64 / 1e6,
        twin.version
    ));
    story.expect("its twin lives where it runs", twin.cluster_id == first.cluster_id);

    story.step(&format!("its load is raised to 150 mCPU ({})", control.display()));
    std::fs::write(&control, INJECTED_LOAD).with_context(|| format!("write {}", control.display()))?;
    let injected = Instant::now();
    let degraded = happenings.until(&story, "DEGRADED", is_in(NotFulfilledState::Degraded)).await?;
    story.expect(
        &format!("it is DEGRADED by a measured value, {:.1} s after the load", injected.elapsed().as_secs_f64()),
        degraded.targets.iter().any(|t| t.measured && !t.fulfilled && t.achieved > t.bound),
    );
    let second = happenings.until(&story, "a move", decision).await?;
    line(candidates(&second));
    story.expect(
        &format!("it moves from {} to {}, whose prediction holds", second.from_cluster_id, second.cluster_id),
        second.from_cluster_id == first.cluster_id
            && second.cluster_id != first.cluster_id
            && second.generation > first.generation,
    );
    story.expect(
        "a cluster is ruled out with its figure",
        second.candidates.iter().any(|c| c.ruled_out.contains("cpuUsage")),
    );
    let repaired = happenings.until(&story, "FULFILLED again", is_fulfilled).await?;
    story.expect(
        &format!("it is FULFILLED again, {:.1} s after the load", injected.elapsed().as_secs_f64()),
        repaired.targets.iter().all(|t| t.fulfilled),
    );
    let after = once(&client, &instance).await?;
    for (cluster, process) in &after {
        story.say(format!("pid {} on {cluster}, generation {}", process.pid, process.generation));
    }
    story.expect(
        "it runs exactly once, where the plan says",
        after.len() == 1 && after.iter().all(|(c, p)| *c == second.cluster_id && runs(p.pid)),
    );
    story.expect("the process it left is gone", before.iter().all(|(_, p)| !runs(p.pid)));

    story.step("why is it there? backwards from the last fact, each cause by its address");
    let facts = mesh_why::facts(&client.bus, "PLACEMENT", "placement.*.*.*").await?;
    let moved = facts
        .into_iter()
        .rev()
        .find(|f| decision(f).is_some_and(|d| d.instance_id == instance))
        .context("find the move")?;
    let chain = mesh_why::chain(&client.bus, moved).await?;
    for fact in &chain {
        story.say(format!("{}:{}  {}: {}", fact.stream, fact.sequence, describe::writer(fact), describe(fact)));
    }
    story.expect("the chain reaches a measurement", chain.iter().any(|f| f.stream == "OBSERVATION"));

    learn::chapter(&mut story, &client, &instance).await?;
    intents::chapter(&mut story, &client, &intent_id, &instance).await?;

    story.step("the intent is terminated");
    let terminate = TerminateIntent { owner: OWNER.into(), intent_id: intent_id.clone(), if_revision: 0 };
    client.ask(&terminate, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    let deadline = Instant::now() + STEP_LIMIT;
    // It may have been moved since: what its clusters tell counts, too.
    let mut left = processes(&client, &instance).await?;
    while (!left.is_empty() || after.iter().any(|(_, p)| runs(p.pid))) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
        left = processes(&client, &instance).await?;
    }
    story.expect("nothing of it runs any more", left.is_empty() && after.iter().all(|(_, p)| !runs(p.pid)));
    let view =
        client.intents().await?.get(GetRequest { owner: OWNER.into(), id: intent_id.clone() }).await?.into_inner();
    story.expect(
        "it is TERMINATED",
        view.state.is_some_and(|s| s.not_fulfilled_state() == NotFulfilledState::Terminated),
    );

    storage::chapter(&mut story, &client, data_dir).await?;
    account::chapter(&mut story, &client, own).await?;

    let _ = std::fs::remove_file(&control);

    sar::chapter(&mut story, &client, patient).await?;

    network::chapter(&mut story, &client, data_dir, examples).await?;
    registry::chapter(&mut story, &client, examples, &document).await?;
    gateway::chapter(&mut story, data_dir).await?;
    client.bus.close().await;
    let seconds = begun.elapsed().as_secs_f64();
    if story.failed.is_empty() {
        line(format!("\n{} expectations held in {seconds:.1} s", story.held));
        return Ok(ExitCode::SUCCESS);
    }
    bail!(
        "{} of {} expectations did not hold: {}",
        story.failed.len(),
        story.held + story.failed.len(),
        story.failed.join("; ")
    )
}

async fn await_registered(client: &Client, document: &WorkloadDocument) -> anyhow::Result<String> {
    let id = format!("{}@{}", document.name, document.version);
    let deadline = Instant::now() + STEP_LIMIT;
    loop {
        let request = GetRequest { owner: OWNER.into(), id: id.clone() };
        match client.workloads().await?.get_workload(request).await {
            Ok(view) if !matches!(view.get_ref().status.as_str(), "pending" | "onboarding") => {
                return Ok(view.into_inner().status);
            }
            _ if Instant::now() > deadline => bail!("{id} is not validated within {} s", STEP_LIMIT.as_secs()),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Its processes once a move is over: the source ends a moment after the target runs.
async fn once(client: &Client, instance: &str) -> anyhow::Result<Vec<(String, ProcessView)>> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = processes(client, instance).await?;
        if found.len() <= 1 || Instant::now() > deadline {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The file by which the example's load is changed: the argument after `--control`.
fn control_file(document: &WorkloadDocument) -> anyhow::Result<PathBuf> {
    let arguments = document.process.as_ref().map(|p| p.arguments.as_slice()).unwrap_or_default();
    let at = arguments.iter().position(|a| a == "--control").context("the example workload has no --control file")?;
    arguments.get(at + 1).map(PathBuf::from).context("the example workload names no --control file")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
