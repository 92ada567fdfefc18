//! The main job: an intent is submitted, planned, deployed, measured, broken by a rising load, and repaired.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use continuum::{
    document,
    output::{line, table},
};
use mesh_client::{ANSWER_WAIT, Client, OWNER};
use mesh_proto::{
    derived_id,
    instance::ProcessView,
    intent::{NotFulfilledState, SubmitIntent, TerminateIntent},
    query::{GetRequest, ListRequest},
    telemetry::RangeRequest,
    twin::TwinRequest,
    workload::WorkloadDocument,
};
use mesh_why::describe::{self, describe, short};
use prost::Message as _;

use crate::{
    STEP_LIMIT,
    facts::{Happenings, candidates, decision, is_fulfilled, is_in},
    live::{self, Live},
    story::Story,
    workloads::{self, control_file, once, processes, runs},
};

/// The load that breaks the intent: 60 % of the device, 10 % of the cloud.
const INJECTED_LOAD: &str = "load_milli=150\n";
/// Of that, in cores, what a measurement has to show.
const LOADED_CORES: f64 = 0.1;

/// What the chapters after it go on with.
pub(crate) struct Repaired {
    /// The example workload, registered.
    pub(crate) document: WorkloadDocument,
    /// The file by which its load is changed.
    control: PathBuf,
    /// The intent.
    pub(crate) intent_id: String,
    /// Its instance.
    pub(crate) instance: String,
    /// Generations of the decisions that were shown.
    pub(crate) generations: Vec<u64>,
    /// Where it runs now.
    processes: Vec<(String, ProcessView)>,
}

/// Shows it.
pub(crate) async fn chapter(story: &mut Story, client: &Client, examples: &Path) -> anyhow::Result<Repaired> {
    story.chapter("from a wish to a running, measured workload");
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

    story.step("a workload document is pushed");
    let document = workloads::read(&examples.join("spinner.workload.yaml"))?;
    let control = control_file(&document)?;
    let _ = std::fs::remove_file(&control);
    let (answer, registered) = workloads::register(client, &document).await?;
    story.detail(format!("{}: {}", describe::writer(&answer), describe(&answer)));
    story.expect(&format!("{}@{} is {registered}", document.name, document.version), registered == "accepted");

    let intent_id = format!("demo-{}", short(&uuid::Uuid::new_v4().to_string()));
    story.step(&format!("intent {intent_id} is submitted: below 20 % of its cluster's CPU and 200 MB"));
    let file = examples.join("spinner.intent.yaml");
    let value = document::read(&file)?.into_iter().next().context("the example holds no intent")?;
    let parsed = document::intent(value).with_context(|| file.display().to_string())?;
    let intent = mesh_proto::intent::Intent::decode(parsed.body.as_slice())?;
    let expectation = intent.intent_expectations.first().map(|e| e.expectation_id.clone()).unwrap_or_default();
    let instance = derived_id(&[OWNER, &intent_id, &expectation]);
    let mut happenings = Happenings::follow(client, &intent_id, &instance).await?;
    let submit = SubmitIntent { owner: OWNER.into(), intent_id: intent_id.clone(), intent: Some(intent) };
    let submitted = Instant::now();
    client.ask(&submit, derived_id(&["submit", OWNER, &intent_id]), ANSWER_WAIT).await?;
    let first = happenings.until(story, "a placement", decision).await?;
    let planned = submitted.elapsed();
    line(candidates(&first));
    story.expect(
        &format!(
            "it is planned, every candidate with its figures, {:.0} ms after submission",
            planned.as_secs_f64() * 1e3
        ),
        first.candidates.len() >= 3,
    );
    happenings.until(story, "the instance runs", is_in(NotFulfilledState::Compliant)).await?;

    story.step("it runs as a real process, is measured, and has a twin");
    let before = processes(client, &instance).await?;
    for (cluster, process) in &before {
        story.detail(format!("pid {} on {cluster}, limits by {}", process.pid, process.enforcement));
    }
    story.expect("it runs exactly once", before.len() == 1 && before.iter().all(|(_, p)| runs(p.pid)));
    let fulfilled = happenings.until(story, "FULFILLED", is_fulfilled).await?;
    story.expect(
        "it is FULFILLED with every target measured",
        !fulfilled.targets.is_empty() && fulfilled.targets.iter().all(|t| t.measured && t.fulfilled),
    );
    let range = RangeRequest { instance_id: instance.clone(), limit: 3, ..RangeRequest::default() };
    let samples = client.telemetry().await?.range(range).await?.into_inner().samples;
    for sample in &samples {
        story.detail(format!(
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
    story.detail(format!(
        "twin: {} on {}, {:.1} %, {:.1} MB, version {}",
        twin.phase().as_str_name().to_lowercase(),
        twin.cluster_id,
        twin.cpu_percent,
        twin.memory_bytes as f64 / 1e6,
        twin.version
    ));
    story.expect("its digital twin is where it runs", twin.cluster_id == first.cluster_id);

    story.close(
        &format!(
            "you said what you want; the mesh chose {}, started one real process there and measured it",
            first.cluster_id
        ),
        "FULFILLED is a measurement, not a promise: every target has a measured value behind it.",
    );

    story.chapter("the load rises, and the mesh repairs what it breaks");
    story.step(&format!("its load is raised to 150 mCPU ({})", control.display()));
    let calm_at = mesh_client::now();
    let live = Live::subscribe(client, &instance).await?;
    std::fs::write(&control, INJECTED_LOAD).with_context(|| format!("write {}", control.display()))?;
    let injected = Instant::now();
    let degraded = happenings.until(story, "DEGRADED", is_in(NotFulfilledState::Degraded)).await?;
    story.expect(
        &format!("it is DEGRADED by a measured value, {:.1} s after the load", injected.elapsed().as_secs_f64()),
        degraded.targets.iter().any(|t| t.measured && !t.fulfilled && t.achieved > t.bound),
    );
    let values = live.end();
    let loaded = values.iter().find(|value| value.cores >= LOADED_CORES);
    for value in &values {
        let seconds = value.at.millis_since(calm_at) as f64 / 1e3;
        story.detail(format!("live, {seconds:4.1} s after the load: {:.3} cores", value.cores));
    }
    story.expect(
        "live telemetry shows the load before the intent is DEGRADED",
        loaded.is_some_and(|value| value.at > calm_at),
    );
    let bound = degraded.targets.iter().find(|t| t.measured && !t.fulfilled).map_or(f64::MAX, |t| t.bound);
    let second = happenings.until(story, "a move", decision).await?;
    line(candidates(&second));
    story.expect(
        &format!("it moves from {} to {}, whose prediction holds", second.from_cluster_id, second.cluster_id),
        second.from_cluster_id == first.cluster_id
            && second.cluster_id != first.cluster_id
            && second.generation > first.generation,
    );
    story.expect(
        "a cluster is ruled out with its figure",
        second.candidates.iter().any(|c| {
            let predicted = c.predicted.get("cpuUsage").copied().unwrap_or_default();
            !c.ruled_out.is_empty() && predicted > bound
        }),
    );
    let repaired = happenings.until(story, "FULFILLED again", is_fulfilled).await?;
    story.expect(
        &format!("it is FULFILLED again, {:.1} s after the load", injected.elapsed().as_secs_f64()),
        repaired.targets.iter().all(|t| t.fulfilled),
    );
    let after = once(client, &instance).await?;
    for (cluster, process) in &after {
        story.detail(format!("pid {} on {cluster}, generation {}", process.pid, process.generation));
    }
    story.expect(
        "it runs exactly once, where the plan put it",
        after.len() == 1 && after.iter().all(|(c, p)| *c == second.cluster_id && runs(p.pid)),
    );
    story.expect("the process it left has ended", before.iter().all(|(_, p)| !runs(p.pid)));

    story.step("its twin at the moment before the load, under it, and now");
    let calm = live::twin_at(client, &instance, calm_at).await?;
    let versions = live::history(client, &instance).await?;
    let under_load = versions.iter().find(|twin| twin.cluster_id == first.cluster_id && twin.cpu_percent > bound);
    for (when, twin) in [("before", Some(&calm)), ("under", under_load)] {
        let Some(twin) = twin else { continue };
        story.detail(format!(
            "{when} the load, {}: version {} on {}, {:.1} %, {:.1} MB",
            twin.at.unwrap_or_default(),
            twin.version,
            twin.cluster_id,
            twin.cpu_percent,
            twin.memory_bytes as f64 / 1e6
        ));
    }
    story.expect(
        "before the load its twin was on the first cluster, within the bound",
        calm.cluster_id == first.cluster_id && calm.cpu_percent > 0.0 && calm.cpu_percent < bound,
    );
    story.expect(
        "under the load its twin was there still, beyond the bound",
        under_load.is_some_and(|twin| twin.at > Some(calm_at) && twin.version > calm.version),
    );
    let (differences, differs) = live::difference(client, &instance, calm_at).await?;
    line(differences);
    story.expect("what differs since then is where it runs, and what it uses", differs("cluster_id"));

    story.close(
        &format!(
            "a measured value broke the intent; the planner moved the instance to {}, and it holds again",
            second.cluster_id
        ),
        "nobody was called: the intent itself drove the repair, and each ruled-out cluster has its figure.",
    );

    story.chapter("why is it there?");
    story.step("backwards from the last fact, each cause by its address on the bus");
    let facts = mesh_why::facts(client.bus(), "PLACEMENT", "placement.*.*.*").await?;
    let moved = facts
        .into_iter()
        .rev()
        .find(|f| decision(f).is_some_and(|d| d.instance_id == instance))
        .context("find the move")?;
    let chain = mesh_why::chain(client.bus(), moved).await?;
    for fact in &chain {
        story.detail(format!("{}:{}  {}: {}", fact.stream, fact.sequence, describe::writer(fact), describe(fact)));
    }
    story.expect("the chain reaches a measurement", chain.iter().any(|f| f.stream == "OBSERVATION"));
    story.close(
        "the chain of causes leads from the placement back to the measurement that made it necessary",
        "every decision can be checked afterwards: the facts are stored, and `continuum why` walks the same chain.",
    );
    let generations = vec![first.generation, second.generation];
    Ok(Repaired { document, control, intent_id, instance, generations, processes: after })
}

/// Ends the intent; nothing of it may run afterwards.
pub(crate) async fn terminate(story: &mut Story, client: &Client, of: &Repaired) -> anyhow::Result<()> {
    let instance = &of.instance;
    story.chapter("the end of an intent");
    story.step("the intent is terminated");
    let terminate = TerminateIntent { owner: OWNER.into(), intent_id: of.intent_id.clone(), if_revision: 0 };
    client.ask(&terminate, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    let deadline = Instant::now() + STEP_LIMIT;
    // It may have been moved since, so ask its clusters as well.
    let mut left = processes(client, instance).await?;
    while (!left.is_empty() || of.processes.iter().any(|(_, p)| runs(p.pid))) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
        left = processes(client, instance).await?;
    }
    story.expect(
        "none of its processes runs any more",
        left.is_empty() && of.processes.iter().all(|(_, p)| !runs(p.pid)),
    );
    let view =
        client.intents().await?.get(GetRequest { owner: OWNER.into(), id: of.intent_id.clone() }).await?.into_inner();
    story.expect(
        "it is TERMINATED",
        view.state.is_some_and(|s| s.not_fulfilled_state() == NotFulfilledState::Terminated),
    );

    story.close(
        "the intent is TERMINATED, and its processes have ended on every cluster",
        "what was declared is also cleaned up: no process is left that nobody asked for.",
    );
    std::fs::remove_file(&of.control).with_context(|| format!("remove {}", of.control.display()))
}
