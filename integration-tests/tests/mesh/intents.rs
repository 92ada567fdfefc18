//! Intents over the running mesh: times, versions, conflicts, what a check foretells.

use mesh_proto::{
    Timestamp,
    intent::{
        IntentAcknowledged, IntentRejected, IntentStateChanged, NotFulfilledState, RollbackIntent, State, UpdateIntent,
    },
    placement::{PlacementDecided, Why},
    report::ReportPublished,
};
use serde_json::{Value as Json, json};

use crate::support::{
    MeshRun, OWNER, cluster, command_id, document, instance_of, intent, is_failed, parse, submit, text,
};

async fn mesh() -> Option<MeshRun> {
    let mesh = MeshRun::start("intents", &[cluster("sim", "simulated", 4_000, 4_000)], &[]).await?;
    mesh.register(document("sleeper", "sleep", &["100000"], json!({}))).await;
    Some(mesh)
}

fn fulfilled(state: &State) -> bool {
    state.fulfilment_status == 2
}

fn is(state: &State, wanted: NotFulfilledState) -> bool {
    state.not_fulfilled_state() == wanted
}

/// An intent that governs an instance, with a bound on its memory.
fn governing(instance: &str, condition: &str, bound: &str, priority: u32) -> Json {
    json!({
        "userLabel": "DeliverComputingWorkload",
        "intentExpectations": [{
            "expectationId": "keep", "expectationVerb": "ENSURE",
            "expectationObject": {"objectType": "NEMO_WORKLOAD", "objectInstance": instance},
            "expectationTargets": [{"targetName": "ramUsage", "targetCondition": condition, "targetValueRange": bound}],
        }],
        "intentPriority": priority,
        "observationPeriod": 1,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_simulated_cluster_fulfils_only_what_allows_it_and_says_so() {
    let Some(mesh) = mesh().await else { return };
    mesh.fulfil("allowed", "sleeper").await;
    let state = mesh.state("allowed", fulfilled).await;
    assert!(mesh_test::says(&state.reason, "is modelled, not measured"), "{state:?}");
    let shown = mesh.cli(&["intent", "get", "allowed"]).await;
    assert!(mesh_test::says(&text(&shown), "is modelled, not measured"), "{}", text(&shown));
    // What has to run is not fulfilled by a model of it.
    let mut real = document("real", "sleep", &["100000"], json!({}));
    real["driver"] = json!("process");
    mesh.register(real).await;
    mesh.ask(&submit("real", intent("real", &[("cpuUsage", "50")])), &command_id("real")).await;
    let state = mesh.state("real", is_failed).await;
    assert!(mesh_test::says(&state.reason, "its driver is simulated"), "{state:?}");
    let why = mesh.cli(&["why", "real"]).await;
    assert!(mesh_test::says(&text(&why), "its driver is simulated"), "{}", text(&why));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_conflicting_intents_the_lower_priority_gives_way() {
    let Some(mesh) = mesh().await else { return };
    mesh.fulfil("low", "sleeper").await;
    let instance = instance_of("low");
    // Some value satisfies both: nobody gives way.
    let beside = governing(&instance, "IS_EQUAL_TO_OR_GREATER_THAN", "1", 5);
    mesh.ask(&submit("beside", beside), &command_id("beside")).await;
    mesh.state("beside", fulfilled).await;

    mesh.ask(&submit("high", governing(&instance, "IS_GREATER_THAN", "100000000", 5)), &command_id("high")).await;
    let lost = mesh.state("low", |state| is(state, NotFulfilledState::Suspended)).await;
    assert!(mesh_test::says(&lost.reason, "ramUsage") && mesh_test::says(&lost.reason, "high"), "{lost:?}");
    let filter = format!("report.*.*.{OWNER}.low");
    let conflicts = mesh
        .fact("report", &filter, |fact| {
            let report = fact.event::<ReportPublished>().ok()??;
            report.intent_conflict_reports.into_iter().find(|c| c.loses)
        })
        .await;
    assert_eq!((conflicts.conflicting_intent.as_str(), conflicts.conflicting_target.as_str()), ("high", "ramUsage"));
    let resumed = mesh.cli(&["intent", "resume", "low"]).await;
    assert!(!resumed.status.success() && mesh_test::says(&text(&resumed), "gives way"), "{}", text(&resumed));

    let ended = mesh.cli(&["intent", "terminate", "high"]).await;
    assert!(ended.status.success(), "{}", text(&ended));
    let mut seen = false;
    let filter = format!("intent.*.*.{OWNER}.low");
    mesh.fact("intent", &filter, |fact| {
        let to = fact.event::<IntentStateChanged>().ok()??.to?;
        seen |= is(&to, NotFulfilledState::Suspended);
        (seen && fulfilled(&to)).then_some(())
    })
    .await;
}

/// Two clusters that declare how available they are.
fn declaring(first: &str, second: &str) -> [Json; 2] {
    let one = |name: &str, cpu_milli, availability: &str| {
        let mut one = cluster(name, "simulated", cpu_milli, 4_000);
        one["labels"]["availability"] = json!(availability);
        one
    };
    [one("first", 1_000, first), one("second", 1_000, second)]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_moves_when_its_cluster_declares_less_availability() {
    let set = ["--set", "meta-orchestrator.move_cooldown_ms=1000"];
    let Some(mut mesh) = MeshRun::start("intents, availability", &declaring("99.95%", "99.99%"), &set).await else {
        return;
    };
    mesh.register(document("sleeper", "sleep", &["100000"], json!({}))).await;
    let mut wanted = intent("sleeper", &[("availability", "99.9")]);
    wanted["userLabel"] = json!("Availability");
    wanted["intentExpectations"][0]["expectationTargets"][0]["targetCondition"] = json!("IS_EQUAL_TO");
    mesh.ask(&submit("available", wanted), &command_id("available")).await;
    mesh.state("available", fulfilled).await;
    let place = async |mesh: &MeshRun| {
        let output = mesh.cli(&["workload", "get", &instance_of("available"), "-o", "json"]).await;
        let view: Json = serde_json::from_slice(&output.stdout).ok()?;
        (view["phase"] == "RUNNING").then(|| view["clusterId"].as_str().map(str::to_owned))?
    };
    let begun = mesh.until("it runs", async || place(&mesh).await).await;

    // The operator of its cluster lowers what that declares: its agent starts again with the new label.
    mesh.down().await;
    let (other, lowered) = match begun.as_str() {
        "first" => ("second", declaring("90%", "99.99%")),
        _ => ("first", declaring("99.95%", "90%")),
    };
    mesh.change_clusters(&lowered);
    mesh.up_again().await;
    mesh.until("it has moved", async || place(&mesh).await.filter(|cluster| cluster == other)).await;
    let moved = mesh
        .fact("placement", "placement.decided.>", |fact| {
            let decided = fact.event::<PlacementDecided>().ok()??;
            (decided.from_cluster_id == begun && decided.cluster_id == other).then_some(decided)
        })
        .await;
    assert_eq!(moved.why(), Why::Remedy);
    assert!(mesh_test::says(&moved.reason, "availability is 90 % (declared)"), "{moved:?}");
    let left = moved.candidates.iter().find(|candidate| candidate.cluster_id == begun).unwrap();
    assert!(mesh_test::says(&left.ruled_out, "availability would be 90.0 %"), "{left:?}");
    let why = mesh.cli(&["why", "available"]).await;
    let told = text(&why);
    assert!(mesh_test::says(&told, "availability is 90 % (declared)") && told.contains(other), "{told}");
    // It holds again where it is now.
    mesh.until("the intent is fulfilled again", async || {
        let output = mesh.cli(&["intent", "get", "available", "-o", "json"]).await;
        text(&output).contains("FULFILLED").then_some(()).filter(|()| !text(&output).contains("DEGRADED"))
    })
    .await;
    // What it achieved where, and whether that was enough.
    mesh.until("the values of both clusters", async || {
        let output = mesh.cli(&["intent", "achieved", "available", "--target", "availability", "-o", "json"]).await;
        let values: Vec<Json> = serde_json::from_slice(&output.stdout).ok()?;
        let is_there = |cluster: &str, value: f64, held: bool| {
            values.iter().any(|v| v["clusterId"] == cluster && v["value"] == value && v["held"] == held)
        };
        let best = if other == "second" { 99.99 } else { 99.95 };
        (is_there(&begun, 90.0, false) && is_there(other, best, true)).then_some(())
    })
    .await;
    let shown = text(&mesh.cli(&["intent", "achieved", "available", "--limit", "1"]).await);
    assert!(shown.contains("availability") && shown.contains("equal to or greater than 99.9"), "{shown}");
    let unknown = mesh.cli(&["intent", "achieved", "nowhere"]).await;
    assert!(!unknown.status.success() && text(&unknown).contains("not found"), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intent_begins_and_ends_at_its_own_times() {
    let Some(mesh) = mesh().await else { return };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = Timestamp::from_millis(i64::try_from(now.as_millis()).unwrap());
    let context = |attribute: &str, at: Timestamp| json!({"contextAttribute": attribute, "contextCondition": "IS_EQUAL_TO", "contextValueRange": at.to_string()});
    let mut timed = intent("sleeper", &[("ramUsage", "100000000")]);
    let (start, end) = (now.plus_millis(3_000), now.plus_millis(12_000));
    timed["intentContexts"] = json!([context("ServiceStartTime", start), context("ServiceEndTime", end)]);
    mesh.ask(&submit("timed", timed.clone()), &command_id("timed")).await;
    let filter = format!("intent.*.*.{OWNER}.timed");
    let mut acknowledged = vec![];
    mesh.fact("intent", &filter, |fact| {
        if let Ok(Some(found)) = fact.event::<IntentAcknowledged>() {
            acknowledged.push((fact.time, found.instances.len()));
        }
        let to = fact.event::<IntentStateChanged>().ok()??.to?;
        is(&to, NotFulfilledState::Terminated).then_some(())
    })
    .await;
    let [(_, 0), (begun, 1)] = acknowledged.as_slice() else { panic!("{acknowledged:?}") };
    assert!(*begun >= start, "it began at {begun}, before {start}");

    timed["intentContexts"] = json!([context("ServiceStartTime", end), context("ServiceEndTime", start)]);
    mesh.ask(&submit("backwards", timed), &command_id("backwards")).await;
    let filter = format!("intent.*.*.{OWNER}.backwards");
    let rejected = mesh.fact("intent", &filter, |fact| fact.event::<IntentRejected>().ok()?).await;
    assert!(rejected.infeasible.contains("not after its start"), "{rejected:?}");
    mesh.state("backwards", is_failed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_version_is_gone_back_to_and_the_history_tells_it() {
    let Some(mesh) = mesh().await else { return };
    let version = |bound: &str| intent("nowhere", &[("ramUsage", bound)]);
    mesh.ask(&submit("versions", version("100")), &command_id("versions")).await;
    mesh.state("versions", |state| is(state, NotFulfilledState::Acknowledged)).await;
    let update = UpdateIntent {
        owner: OWNER.into(),
        intent_id: "versions".into(),
        intent: Some(parse(version("200"))),
        if_revision: 0,
    };
    mesh.ask(&update, "update-versions").await;
    let filter = format!("intent.*.*.{OWNER}.versions");
    let in_force = |wanted: u64| {
        mesh.fact("intent", &filter, move |fact| {
            let found = fact.event::<IntentAcknowledged>().ok()??;
            (found.version == wanted).then_some(found.document)
        })
    };
    let (first, second) = (in_force(1).await, in_force(2).await);
    assert_ne!(first, second);
    let back = RollbackIntent { owner: OWNER.into(), intent_id: "versions".into(), version: 1, if_revision: 0 };
    mesh.ask(&back, "back").await;
    assert_eq!(in_force(3).await, first);
    let history = mesh
        .until("the history has three versions", async || {
            let history = mesh.cli(&["intent", "history", "versions", "-o", "json"]).await;
            let history: Json = serde_json::from_slice(&history.stdout).unwrap();
            (history["versions"].as_array()?.len() == 3 && history["inForce"] == json!(3)).then_some(history)
        })
        .await;
    assert_eq!(history["versions"][2]["rolledBackTo"], json!(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_foretells_where_it_runs_and_changes_nothing() {
    let Some(mesh) = mesh().await else { return };
    let file = mesh.folder().join("check.json");
    std::fs::write(&file, intent("sleeper", &[("cpuUsage", "50")]).to_string()).unwrap();
    // Whoever answers may hear of the document and of the cluster a moment later than this test.
    let told = mesh
        .until("it foretells where it runs", async || {
            let checked = mesh.cli(&["intent", "check", file.to_str().unwrap(), "-o", "json"]).await;
            let told: Json = serde_json::from_slice(&checked.stdout).unwrap_or_else(|_| panic!("{}", text(&checked)));
            let foretold = (&told[0]["acceptable"], &told[0]["predictions"][0]["clusterId"]);
            (foretold == (&json!(true), &json!("sim"))).then_some(told)
        })
        .await;
    let prediction = &told[0]["predictions"][0];
    assert!(prediction["watts"].as_f64().is_some_and(|watts| watts > 0.0), "{told}");
    assert_eq!(mesh.facts("INTENT").await.len(), 0);

    let types = mesh.cli(&["intent", "types"]).await;
    assert!(text(&types).contains("EnergyCarbonEfficiency"), "{}", text(&types));
    let goals = mesh.folder().join("goals.json");
    let document = json!({"trainer": {"properties": {"intent": {"P": {"Total_Execution_Time": "minimum"}}}}});
    std::fs::write(&goals, document.to_string()).unwrap();
    let objectives = mesh.cli(&["intent", "objectives", goals.to_str().unwrap()]).await;
    assert!(text(&objectives).contains("sim ("), "{}", text(&objectives));
}
