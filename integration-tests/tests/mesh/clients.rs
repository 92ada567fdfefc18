//! Outside clients, in another language: the scripts of `examples/` against a running mesh.

use std::{collections::BTreeSet, path::PathBuf, process::Output, time::Duration};

use futures::StreamExt as _;
use serde_json::{Value as Json, json};

use crate::support::{self, LIMIT, MeshRun, OWNER, cluster, document, text};

/// The Python that `make setup-test` installs with the clients' packages; says so if it is not there.
fn python() -> Option<PathBuf> {
    let found = support::root().join(".tools/test/bin/python");
    if !found.is_file() || !client().is_dir() {
        eprintln!("SKIPPED: clients: no .tools/test/bin/python or no target/python (run `make setup-test`)");
        return None;
    }
    Some(found)
}

/// The Python client, as its wheel unpacks.
fn client() -> PathBuf {
    support::root().join("target/python")
}

async fn run(script: &str, mesh: &MeshRun, arguments: &[&str]) -> Option<Output> {
    let mut command = tokio::process::Command::new(python()?);
    command.env("PYTHONPATH", client());
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
                    // Readings of the cluster come on the same subjects.
                    let samples = data["samples"].as_array();
                    let ours = samples.into_iter().flatten().find(|sample| sample["instanceId"] == json!(instance));
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

/// Where a service answers queries, as service discovery tells it.
async fn endpoint(mesh: &MeshRun, service: &str) -> String {
    let asked = format!("$SRV.PING.{service}");
    let answers = mesh.bus.request_all(&asked, "".into(), Duration::from_millis(500)).await.unwrap();
    let answer: Json = serde_json::from_slice(&answers.first().expect("it answers").body).unwrap();
    answer["metadata"]["endpoint"].as_str().unwrap().to_owned()
}

async fn output(command: &mut tokio::process::Command) -> Output {
    tokio::time::timeout(LIMIT, command.kill_on_drop(true).output()).await.expect("it ends").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_others_generate_run_calls() {
    let Some(python) = python() else { return };
    let Some(mesh) = MeshRun::start("clients", &[cluster("sim", "simulated", 1_000, 1_000)], &[]).await else { return };
    mesh.register(document("sleeper", "sleep", &["100000"], json!({}))).await;
    mesh.fulfil("asked", "sleeper").await;
    let url = endpoint(&mesh, "intent-manager").await;
    let address = url.strip_prefix("http://").unwrap();

    let script = support::root().join("infra/test/stubs.py");
    let proto = support::root().join("proto");
    let done = output(tokio::process::Command::new(&python).arg(script).arg(&proto).arg(address)).await;
    assert!(done.status.success(), "{}", text(&done));
    let listed: Json = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(listed["intents"][0]["intentId"], "asked", "{listed}");

    // `buf curl` builds its client from the contract too.
    let mut buf = tokio::process::Command::new(python.with_file_name("buf"));
    buf.args(["curl", "--schema", "."]).args(["--protocol", "grpc", "--http2-prior-knowledge"]);
    buf.args(["-d", r#"{"owner": "local"}"#]).arg(format!("{url}/continuum.intent.v1.IntentQueries/List"));
    let done = output(buf.current_dir(&proto)).await;
    assert!(done.status.success(), "{}", text(&done));
    let listed: Json = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(listed["intents"][0]["intentId"], "asked", "{listed}");
}

/// The NATS command line that `make servers` compiles; says so if it is not there.
fn nats() -> Option<PathBuf> {
    let found = support::root().join(".tools/go/nats");
    if !found.is_file() {
        eprintln!("SKIPPED: nats command line: no .tools/go/nats (run `make servers`)");
        return None;
    }
    Some(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nats_command_line_shows_the_mesh_with_the_context_of_up() {
    let Some(nats) = nats() else { return };
    let Some(mesh) = MeshRun::start("clients", &[cluster("sim", "simulated", 1_000, 1_000)], &[]).await else { return };
    let said = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(&nats);
        command.env("XDG_CONFIG_HOME", mesh.config_home()).env("HOME", mesh.config_home());
        let done = output(command.args(["--context", "continuum"]).args(arguments)).await;
        assert!(done.status.success(), "{arguments:?}: {}", text(&done));
        text(&done)
    };
    let listed = said(&["micro", "ls", "--json"]).await;
    let listed: Json = serde_json::from_str(&listed).unwrap();
    let names: BTreeSet<&str> = listed.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    let services: BTreeSet<&str> = mesh_proto::contract().services.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, services);
    for service in &services {
        let told = said(&["micro", "info", service]).await;
        assert!(told.contains("Endpoints"), "{service}: {told}");
        said(&["micro", "stats", service]).await;
    }
    let told = said(&["micro", "info", "validator"]).await;
    assert!(told.contains("verdicts-from-INTENT") && told.contains("intent."), "{told}");
    assert!(said(&["stream", "ls", "-n"]).await.contains("INTENT_ASK"));
    assert!(said(&["consumer", "report", "INTENT"]).await.contains("verdicts"));
    said(&["kv", "ls", "-n"]).await;
    let shown = said(&["stream", "info", "INTENT"]).await;
    assert!(shown.contains("intent."), "{shown}");
}
