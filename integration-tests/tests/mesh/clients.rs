//! Outside clients, in another language: the scripts of `examples/` against a running mesh.

use std::{path::PathBuf, process::Output};

use futures::StreamExt as _;
use serde_json::{Value as Json, json};

use crate::support::{self, LIMIT, MeshRun, OWNER, cluster, document, text};

/// The Python that `make setup-test` installs with the clients' packages; says so if it is not there.
fn python() -> Option<PathBuf> {
    let found = support::root().join(".tools/test/bin/python");
    if !found.is_file() {
        eprintln!("SKIPPED: clients: no .tools/test/bin/python (run `make setup-test`)");
        return None;
    }
    Some(found)
}

async fn run(script: &str, mesh: &MeshRun, arguments: &[&str]) -> Option<Output> {
    let mut command = tokio::process::Command::new(python()?);
    command.arg(support::root().join("examples").join(script)).arg("--data-dir").arg(mesh.folder()).args(arguments);
    Some(tokio::time::timeout(LIMIT * 2, command.kill_on_drop(true).output()).await.expect("the script ends").unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn python_publishes_an_intent_and_reads_telemetry_on_both_ways() {
    if python().is_none() {
        return;
    }
    let name = format!("python-{}", std::process::id());
    let Some(mesh) = MeshRun::start("clients", &[cluster(&name, "process", 1_000, 1_000)], &[]).await else { return };
    mesh.register(document("sleeper", "sleep", &["100000"], json!({}))).await;

    let published =
        run("publish_intent.py", &mesh, &["--workload", "sleeper@1.0.0", "--id", "from-python"]).await.unwrap();
    let said = text(&published);
    assert!(published.status.success(), "{said}");
    assert!(said.contains("is on disk: INTENT_ASK:") && said.contains("\nFULFILLED"), "{said}");
    assert!(said.matches(&format!("% of {name}")).count() >= 3, "{said}");
    let running = support::marked(&name);
    assert_eq!(running.len(), 1, "one real process runs");

    let samples = run("edge_samples.py", &mesh, &["--count", "3"]).await.unwrap();
    let said = text(&samples);
    assert!(samples.status.success(), "{said}");
    assert_eq!(said.matches(&format!("cluster {name}")).count(), 3, "{said}");
    assert!(said.contains(&support::instance_of("from-python")), "{said}");

    // What is wrong is told, with the reason.
    let failed = run("publish_intent.py", &mesh, &["--workload", "no-version", "--id", "wrong"]).await.unwrap();
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    assert!(text(&failed).contains("failed: "), "{}", text(&failed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_subscription_reads_telemetry_twins_and_intent_facts() {
    let Some(mesh) = MeshRun::start("clients", &[cluster("sim", "simulated", 1_000, 1_000)], &[]).await else { return };
    mesh.register(document("sleeper", "sleep", &["100000"], json!({}))).await;
    let mut heard = mesh.plain("person").await.subscribe("json.>").await.unwrap();
    mesh.fulfil("watched", "sleeper").await;
    let instance = support::instance_of("watched");
    let (mut telemetry, mut twin, mut fulfilled) = (false, false, false);
    tokio::time::timeout(LIMIT, async {
        while !(telemetry && twin && fulfilled) {
            let message = heard.next().await.unwrap();
            let event: Json = serde_json::from_slice(&message.payload).unwrap();
            let data = &event["data"];
            assert_eq!(format!("json.{}", event["subject"].as_str().unwrap()), message.subject.as_str());
            match message.subject.split('.').nth(1).unwrap() {
                "telemetry" => {
                    let samples = data["samples"].as_array().unwrap();
                    let ours = samples.iter().find(|sample| sample["instanceId"] == json!(instance));
                    telemetry |= ours.is_some_and(|sample| !sample["memoryBytes"].is_null());
                }
                "twin" => twin |= data.to_string().contains(&instance) && data.to_string().contains("RUNNING"),
                "intent" => {
                    assert_eq!(data["owner"], json!(OWNER));
                    fulfilled |= data["to"]["fulfilmentStatus"] == json!("FULFILLED");
                }
                _ => {}
            }
        }
    })
    .await
    .unwrap_or_else(|_| panic!("heard telemetry: {telemetry}, twin: {twin}, FULFILLED: {fulfilled}"));
}
