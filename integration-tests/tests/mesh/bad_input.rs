//! Bad input gets a clear answer and loses nothing.

use std::time::Duration;

use async_nats::HeaderMap;
use mesh_bus::PublishError;
use mesh_core::Outgoing;
use mesh_proto::{
    Event as _, derived_id,
    intent::{IntentRefused, IntentRejected, IntentSubmitted, IntentUnchanged, TerminateIntent, UpdateIntent},
    workload::{RegisterWorkload, WorkloadDocument, WorkloadRejected},
};
use serde_json::{Value as Json, json};

use crate::support::{self, MeshRun, OWNER, cluster, command_id, document, intent, is_failed, parse, submit, text};

async fn mesh() -> Option<MeshRun> {
    let clusters = [cluster("sim", "simulated", 1_000, 1_000), cluster("plant", "process", 1_000, 1_000)];
    let mesh = MeshRun::start("bad input", &clusters, &[]).await?;
    mesh.register(document("sleeper", "sleep", &["100000"], json!({"driver": "simulated"}))).await;
    Some(mesh)
}

/// Publishes a body as any client does; returns its sequence once it is on disk.
async fn publish(mesh: &MeshRun, subject: &str, content_type: Option<&str>, body: &[u8]) -> u64 {
    let mut headers = HeaderMap::new();
    if let Some(content_type) = content_type {
        headers.insert("ce-datacontenttype", content_type);
    }
    let client = mesh.plain("person").await;
    let answer = client.request_with_headers(subject.to_owned(), headers, body.to_vec().into()).await.unwrap();
    let answer: Json = serde_json::from_slice(&answer.payload).unwrap();
    answer["seq"].as_u64().unwrap_or_else(|| panic!("not stored: {answer}"))
}

/// Waits for the dead letter of a command: its reason, and its body, which is kept as it came.
async fn dead_letter(mesh: &MeshRun, subject: &str) -> (String, Vec<u8>) {
    let client = mesh.plain("person").await;
    let subject = format!("BUS.API.DIRECT.GET.DEAD.dead.{subject}");
    mesh.until("a dead letter", async || {
        let letter = client.request(subject.clone(), "".into()).await.ok()?;
        let reason = letter.headers?.get("mesh-dead-reason")?.to_string();
        Some((reason, letter.payload.to_vec()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_decoded_is_a_dead_letter_and_blocks_nothing() {
    let Some(mesh) = mesh().await else { return };
    let cases: [(&str, Option<&str>, &[u8], &str); 5] = [
        ("undecodable", Some("application/protobuf"), &[0xff, 0xff, 0xff, 0xff, 0x01], "protobuf"),
        ("content-type", Some("text/html"), b"<p>please</p>", "text/html"),
        ("unknown-field", None, br#"{"intent": {"userLable": "DeliverComputingWorkload"}}"#, "userLabel"),
        ("not-json", Some("application/json"), b"{\"intent\": ", "JSON"),
        ("other-key", None, br#"{"intentId": "somebody-elses", "intent": {}}"#, "somebody-elses"),
    ];
    for (id, content_type, body, reason) in cases {
        let subject = format!("intent.ask.submit.v1.{OWNER}.{id}");
        publish(&mesh, &subject, content_type, body).await;
        let (said, kept) = dead_letter(&mesh, &subject).await;
        assert!(said.to_lowercase().contains(&reason.to_lowercase()), "{id}: {reason:?} is not in: {said}");
        assert_eq!(kept, body, "{id}: the body is kept as it came");
    }
    // The same intents, sent as they should be, are taken; so is everything after.
    for (id, ..) in cases {
        mesh.fulfil(id, "sleeper").await;
    }
    assert_eq!(mesh.facts("DEAD").await.len(), cases.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intent_that_is_not_well_formed_is_rejected_by_field_with_a_hint() {
    let Some(mesh) = mesh().await else { return };
    let good = || intent("sleeper", &[("ramUsage", "500")]);
    let mut no_expectation = good();
    no_expectation["intentExpectations"] = json!([]);
    let cases = [
        ("no-expectation", no_expectation, "intentExpectations", ""),
        ("out-of-range", intent("sleeper", &[("cpuUsage", "-5")]), "targetValueRange", "-5"),
        ("too-large", intent("sleeper", &[("cpuUsage", "5000000")]), "targetValueRange", "5000000"),
        ("unknown-target", intent("sleeper", &[("cpuUsege", "20")]), "targetName", "cpuUsage"),
    ];
    for (id, content, path, said) in cases {
        let answer = mesh.ask(&submit(id, content), &command_id(id)).await;
        assert_eq!(answer.message, IntentSubmitted::MESSAGE);
        let filter = format!("intent.*.*.{OWNER}.{id}");
        let rejected = mesh.fact("intent", &filter, |fact| fact.event::<IntentRejected>().ok()?).await;
        let problem = rejected.problems.iter().find(|p| p.path.contains(path));
        let problem = problem.unwrap_or_else(|| panic!("{id}: nothing about {path}: {:?}", rejected.problems));
        assert!(
            !problem.hint.is_empty() && mesh_test::says(&format!("{} {}", problem.reason, problem.hint), said),
            "{id}: {problem:?}"
        );
        let state = rejected.state.unwrap();
        assert!(is_failed(&state) && !state.hint.is_empty(), "{id}: {state:?}");
        // Put right, it runs.
        let update =
            UpdateIntent { owner: OWNER.into(), intent_id: id.into(), intent: Some(parse(good())), if_revision: 0 };
        mesh.send(&update, &derived_id(&["update", id])).await;
        mesh.state(id, |state| !is_failed(state) && state.fulfilment_status == 2).await;
    }
    // A workload document is judged alike.
    let wrong = json!({"name": "wrong", "version": "one", "kind": "process", "process": {"command": "bin/relative"}});
    let wrong: WorkloadDocument =
        mesh_proto::json::from_value("continuum.workload.v1.WorkloadDocument", wrong).unwrap();
    let register = RegisterWorkload { owner: OWNER.into(), name: "wrong".into(), document: Some(wrong) };
    let answer = mesh.ask(&register, "register-wrong").await;
    if answer.subject.starts_with("workload.submitted.") {
        let filter = format!("workload.*.*.{OWNER}.wrong");
        let rejected = mesh.fact("workload", &filter, |fact| fact.event::<WorkloadRejected>().ok()?).await;
        assert!(rejected.problems.iter().any(|p| p.path == "version" && !p.hint.is_empty()), "{:?}", rejected.problems);
    } else {
        assert!(answer.subject.starts_with("workload.refused."), "{}", answer.subject);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_says_so_in_its_intent() {
    let Some(mesh) = mesh().await else { return };
    mesh.register(document("absent", "no-such-program", &[], json!({"driver": "process"}))).await;
    mesh.send(&submit("missing-binary", intent("absent", &[("ramUsage", "500")])), &command_id("missing-binary")).await;
    let state = mesh.state("missing-binary", is_failed).await;
    assert!(mesh_test::says(&state.reason, "no-such-program") && !state.hint.is_empty(), "{state:?}");

    // 900,000 mCPU where the largest cluster has 1,000.
    let mut giant = document("giant", "sleep", &["1"], json!({}));
    giant["resources"]["cpuMilli"] = json!(900_000);
    mesh.register(giant).await;
    mesh.send(&submit("too-much", intent("giant", &[("ramUsage", "500")])), &command_id("too-much")).await;
    let state =
        mesh.state("too-much", |state| !state.reason.is_empty() && mesh_test::says(&state.reason, "900000")).await;
    assert!(
        mesh_test::says(&state.reason, "1000") || mesh_test::says(&state.reason, "899000"),
        "by how much: {state:?}"
    );
    assert!(!state.hint.is_empty(), "{state:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_before_or_comes_too_late_is_answered_as_such() {
    let Some(mesh) = mesh().await else { return };
    mesh.fulfil("once", "sleeper").await;
    // The same command again: the same answer, and no second one.
    let filter = format!("intent.*.*.{OWNER}.once");
    let same = submit("once", intent("sleeper", &[("ramUsage", "500")]));
    let first = mesh.ask(&same, &command_id("once")).await;
    // The same content by another command: its own answer, and nothing changed.
    let unchanged = mesh.ask(&same, "another-command").await;
    assert_eq!(unchanged.message, IntentUnchanged::MESSAGE);
    let facts = mesh_why::facts(&mesh.bus, "INTENT", &filter).await.unwrap();
    let answers: Vec<&str> = facts
        .iter()
        .filter(|f| f.cause.as_ref().is_some_and(|c| c.id == command_id("once")))
        .map(|f| f.id.as_str())
        .collect();
    assert_eq!(answers, [first.id.as_str()]);

    let terminate = TerminateIntent { owner: OWNER.into(), intent_id: "once".into(), if_revision: 0 };
    mesh.ask(&terminate, "terminate-once").await;
    let suspend = mesh_proto::intent::SuspendIntent { owner: OWNER.into(), intent_id: "once".into(), if_revision: 0 };
    let refused = mesh.ask(&suspend, "suspend-once").await.event::<IntentRefused>().unwrap().expect("it is refused");
    assert!(!refused.reason.is_empty() && !refused.hint.is_empty(), "{refused:?}");
    // An update of what was never there.
    let update = UpdateIntent {
        owner: OWNER.into(),
        intent_id: "never".into(),
        intent: Some(parse(intent("sleeper", &[]))),
        if_revision: 0,
    };
    let refused = mesh.ask(&update, "update-never").await.event::<IntentRefused>().unwrap().expect("it is refused");
    assert!(!refused.reason.is_empty() && !refused.hint.is_empty(), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fact_forged_by_a_client_is_refused_and_stored_nowhere() {
    let Some(mesh) = mesh().await else { return };
    let forged = IntentUnchanged { owner: OWNER.into(), intent_id: "forged".into(), ..Default::default() };
    let message = Outgoing::new(&forged, "forged", support::now()).unwrap();
    let written = mesh.bus.publish(&message).await;
    assert!(matches!(written, Err(PublishError::Denied { .. })), "{written:?}");
    // Neither where it is read nor where it is written, by a plain client that asks for no answer.
    let client = mesh.plain("person").await;
    for prefix in ["", "w."] {
        let _ = client.publish(format!("{prefix}intent.unchanged.v1.{OWNER}.forged"), "{}".into()).await;
    }
    client.flush().await.unwrap();
    mesh.fulfil("real", "sleeper").await;
    let facts = mesh.facts("INTENT").await;
    assert!(facts.iter().all(|f| f.subject.ends_with(".real") && f.id != "forged"));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_stream_is_full_writes_wait_and_go_on_once_there_is_room() {
    let Some(mesh) = mesh().await else { return };
    mesh.fulfil("before", "sleeper").await;
    let info = mesh.configure("INTENT", |_| {}).await;
    let bytes = info["state"]["bytes"].as_u64().unwrap();
    let limit = info["config"]["max_bytes"].clone();
    mesh.configure("INTENT", |config| config["max_bytes"] = json!(bytes + 16)).await;
    let ids: Vec<String> = (0..5).map(|n| format!("waiting-{n}")).collect();
    for id in &ids {
        mesh.send(&submit(id, intent("sleeper", &[("ramUsage", "500")])), &command_id(id)).await;
    }
    // Whoever asks is told: the intent manager is not ready, and why.
    let notice = mesh_proto::lifecycle::ServiceChanged::SUBJECT.replace("{service}", "intent-manager");
    let notice = mesh.bus.log("LIFECYCLE").last(&notice).await.unwrap().unwrap();
    let endpoint = notice.event::<mesh_proto::lifecycle::ServiceChanged>().unwrap().unwrap().endpoint;
    mesh.until("/readyz says which stream is full", async || {
        let said = http_get(&endpoint, "/readyz").await?;
        (said.contains("INTENT is full") && !said.starts_with("HTTP/1.1 200")).then_some(())
    })
    .await;
    assert!(mesh.facts("INTENT").await.iter().all(|f| f.subject.ends_with(".before")));
    mesh.configure("INTENT", |config| config["max_bytes"] = limit.clone()).await;
    for id in &ids {
        mesh.state(id, |state| state.fulfilment_status == 2).await;
    }
    let facts = mesh.facts("INTENT").await;
    assert_eq!(facts.iter().filter(|f| f.message == IntentSubmitted::MESSAGE).count(), ids.len() + 1);
    mesh.until("/readyz is well again", async || {
        http_get(&endpoint, "/readyz").await.filter(|s| s.starts_with("HTTP/1.1 200"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_yaml_is_named_with_its_fault() {
    if support::server("bad input").await.is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("clusters.yaml");
    for (content, said) in [
        ("{]", "clusters.yaml"),
        ("- nam: x\n  cpu_milli: 1\n  memory_mb: 1\n", "name"),
        ("[]", "does not name any cluster"),
    ] {
        std::fs::write(&file, content).unwrap();
        let output = support::cli(&folder.path().join("mesh"), &["up", "--clusters", file.to_str().unwrap()]).await;
        assert!(!output.status.success());
        assert!(
            text(&output).contains(said) && text(&output).contains("clusters.yaml"),
            "{content}: {}",
            text(&output)
        );
    }
}

/// A plain HTTP request: status line, headers and body.
async fn http_get(endpoint: &str, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let host = endpoint.strip_prefix("http://")?;
    let mut connection = tokio::net::TcpStream::connect(host).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    let read = tokio::time::timeout(Duration::from_secs(5), connection.read_to_string(&mut answer));
    read.await.ok()?.ok()?;
    Some(answer)
}
