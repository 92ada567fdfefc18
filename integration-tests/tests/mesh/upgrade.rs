//! The present mesh on the data of commit 438f242: it folds to the states that were, goes on, and loses nothing; and data of a
//! later release is refused. `integration-tests/data/make-mesh-438f242.sh` made the data.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Stdio,
};

use async_nats::jetstream;
use mesh_admin::{Server, ServerOptions};
use mesh_proto::{contract::Kind, rights};
use serde_json::{Value as Json, json};

use crate::support::{self, MeshRun, cluster, document, intent, program, root, text};

const ARCHIVE: &str = "integration-tests/data/mesh-438f242.tar.gz";

/// Streams with their messages: sequence, subject and payload of each.
type Messages = BTreeMap<String, Vec<(u64, String, Vec<u8>)>>;

fn unpack(into: &Path) {
    let file = std::fs::File::open(root().join(ARCHIVE)).unwrap();
    let folder = into.parent().unwrap();
    tar::Archive::new(flate2::read::GzDecoder::new(file)).unpack(folder).unwrap();
    if folder.join("mesh") != into {
        std::fs::rename(folder.join("mesh"), into).unwrap();
    }
}

/// The facts in a data folder's streams, read by a server of the test's own on a copy of it. What the streams reserve may be
/// more than the disk has.
async fn messages(nats_server: &Path, archived: &Path) -> Messages {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("nats.conf");
    std::fs::write(
        &config,
        format!(
            "listen: \"127.0.0.1:-1\"\nports_file_dir: {folder:?}\n\
             jetstream {{ store_dir: {store:?}, max_file_store: 4503599627370496 }}\n\
             accounts {{ {account}: {{ jetstream: enabled, users: [{{user: test, password: test}}] }} }}\n",
            folder = folder.path(),
            store = archived.join("jetstream"),
            account = rights::BUS_ACCOUNT,
        ),
    )
    .unwrap();
    let mut server = Server::start(ServerOptions::new(nats_server, &config, folder.path())).await.unwrap();
    let client = async_nats::ConnectOptions::with_user_and_password("test".into(), "test".into());
    let context = jetstream::new(client.connect(server.url()).await.unwrap());
    let mut all = Messages::new();
    for spec in mesh_proto::contract().streams.iter().filter(|spec| spec.kind == Kind::Facts) {
        let Ok(mut stream) = context.get_stream(&spec.name).await else { continue };
        let state = stream.info().await.unwrap().state.clone();
        let mut found = vec![];
        for sequence in state.first_sequence.max(1)..=state.last_sequence {
            let message = stream.get_raw_message(sequence).await.unwrap();
            found.push((sequence, message.subject.to_string(), message.payload.to_vec()));
        }
        all.insert(spec.name.clone(), found);
    }
    server.stop().await.unwrap();
    all
}

async fn told(mesh: &MeshRun, arguments: &[&str]) -> Json {
    let output = mesh.cli(&[arguments, &["-o", "json"]].concat()).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// The state of each intent, as the command line lists it.
async fn states(mesh: &MeshRun) -> BTreeMap<String, String> {
    let all = told(mesh, &["intent", "list"]).await;
    let of = |intent: &Json| {
        let state = &intent["state"];
        let name = match state["fulfilmentStatus"].as_str() {
            Some("FULFILLED") => "FULFILLED",
            _ => state["notFulfilledState"].as_str().unwrap(),
        };
        (intent["intentId"].as_str().unwrap().to_owned(), name.to_owned())
    };
    all.as_array().unwrap_or_else(|| panic!("{all}")).iter().map(of).collect()
}

async fn until_state(mesh: &MeshRun, id: &str, wanted: &str) {
    mesh.until(&format!("{id} is {wanted}"), async || {
        (states(mesh).await.get(id).map(String::as_str) == Some(wanted)).then_some(())
    })
    .await;
}

/// Writes a document and gives it to the command line in place of `FILE`.
async fn told_of(mesh: &MeshRun, scratch: &Path, content: &Json, arguments: &[&str]) -> Json {
    let file = scratch.join("content.json");
    std::fs::write(&file, content.to_string()).unwrap();
    let given = |one: &&str| if *one == "FILE" { file.display().to_string() } else { (*one).to_owned() };
    let arguments: Vec<String> = arguments.iter().map(given).collect();
    told(mesh, &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// A new intent, and something with each old one.
async fn go_on(mesh: &MeshRun, scratch: &Path) {
    let clock = intent("clock", &[("ramUsage", "500")]);
    told_of(mesh, scratch, &clock, &["intent", "submit", "FILE", "--id", "new", "--wait", "fulfilled"]).await;
    for id in ["ended", "rejected"] {
        told_of(mesh, scratch, &clock, &["intent", "update", "FILE", "--id", id, "--wait", "fulfilled"]).await;
    }
    told(mesh, &["intent", "resume", "suspended"]).await;
    until_state(mesh, "suspended", "FULFILLED").await;
    told(mesh, &["intent", "terminate", "kept"]).await;
    until_state(mesh, "kept", "TERMINATED").await;

    // The document that one waits for. Documents of then named no driver, which means processes: the one on the simulated
    // cluster goes on, and needs a new version to be placed there again.
    let selector = json!({"place": "south"});
    let unknown = document("unknown", "sleep", &["1000000"], selector.clone());
    told_of(mesh, scratch, &unknown, &["workload", "push", "FILE"]).await;
    until_state(mesh, "waiting", "FULFILLED").await;
    let mut newer = document("meter", "sleep", &["1000000"], selector);
    newer["version"] = json!("1.1.0");
    told_of(mesh, scratch, &newer, &["workload", "push", "FILE"]).await;
    let mut meter = intent("meter", &[("ramUsage", "300")]);
    meter["intentExpectations"][0]["expectationObject"]["objectInstance"] = json!("meter@1.1.0");
    told(mesh, &["intent", "terminate", "changed"]).await;
    until_state(mesh, "changed", "TERMINATED").await;
    told_of(mesh, scratch, &meter, &["intent", "update", "FILE", "--id", "changed", "--wait", "fulfilled"]).await;
    let history = told(mesh, &["intent", "history", "changed"]).await;
    assert_eq!(history["versions"].as_array().unwrap().len(), 3, "{history}");
}

/// The object, the people and the ledger.
async fn the_rest_is_there(mesh: &MeshRun, scratch: &Path) {
    let back = scratch.join("numbers.txt");
    let output = mesh.cli(&["storage", "object", "get", "archive", "numbers.txt", back.to_str().unwrap()]).await;
    assert!(output.status.success(), "{}", text(&output));
    let numbers: String = (1..=5_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(std::fs::read_to_string(&back).unwrap(), numbers);

    let password = scratch.join("password");
    std::fs::write(&password, "correct horse").unwrap();
    for arguments in [&["login", "ada", "--password-file", password.to_str().unwrap()][..], &["login"][..]] {
        let output = mesh.cli(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    }

    let ledger = told(mesh, &["account", "list"]).await;
    assert!(ledger.to_string().contains("service/local/clock"), "{ledger}");
    let exported = scratch.join("ledger.txt");
    let exported = exported.to_str().unwrap();
    for arguments in [&["account", "export", "--file", exported][..], &["account", "verify", exported][..]] {
        let output = mesh.cli(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    }
    let dead = told(mesh, &["dead", "list"]).await;
    assert_eq!(dead, json!([]));
}

/// Each of these facts is where it was, as it was.
async fn all_are_kept(mesh: &MeshRun, before: &Messages) {
    for (stream, expected) in before {
        let found = mesh.facts(stream).await;
        let missing: BTreeSet<u64> = expected
            .iter()
            .filter(|(sequence, subject, payload)| {
                !found.iter().any(|f| f.sequence == *sequence && f.subject == *subject && f.body[..] == payload[..])
            })
            .map(|(sequence, _, _)| *sequence)
            .collect();
        assert!(missing.is_empty(), "{stream}: {missing:?} of {} are not what they were", expected.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_of_438f242_is_carried_on() {
    let suite = "upgrade";
    let Some(nats_server) = support::server(suite).await else { return };
    mesh_bus::install_crypto();
    let scratch = tempfile::tempdir().unwrap();
    unpack(&scratch.path().join("mesh"));
    let before = messages(&nats_server, &scratch.path().join("mesh")).await;
    let count: usize = before.values().map(Vec::len).sum();
    assert!(count > 100 && before["INTENT"].len() > 40 && !before["IDENTITY"].is_empty(), "{count} facts");

    let placed = |name: &str, driver: &str| {
        let mut one = cluster(name, driver, 4_000, 4_000);
        one["labels"] = json!({"place": name});
        one
    };
    let clusters = [placed("north", "process"), placed("south", "simulated")];
    let Some(mut mesh) = MeshRun::start_on(suite, &clusters, unpack).await else { return };

    // The states that were; what was fulfilled is so again once it is measured.
    for (id, state) in [
        ("kept", "FULFILLED"),
        ("changed", "FULFILLED"),
        ("suspended", "SUSPENDED"),
        ("ended", "TERMINATED"),
        ("waiting", "ACKNOWLEDGED"),
        ("rejected", "FULFILMENTFAILED"),
    ] {
        until_state(&mesh, id, state).await;
    }
    go_on(&mesh, scratch.path()).await;
    the_rest_is_there(&mesh, scratch.path()).await;
    all_are_kept(&mesh, &before).await;

    // Once more, with data that both wrote.
    let expected = states(&mesh).await;
    mesh.down().await;
    mesh.up_again().await;
    for (id, state) in &expected {
        until_state(&mesh, id, state).await;
    }
    mesh.down().await;
    refused_when_later(&mesh.folder());
}

/// Files below a folder, with their content.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut all, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => open.push(entry),
                false => drop(all.insert(entry.display().to_string(), std::fs::read(&entry).unwrap())),
            }
        }
    }
    all
}

/// An older release refuses what a later one wrote, and leaves it as it is.
fn refused_when_later(folder: &Path) {
    std::fs::write(folder.join("release.json"), r#"{"format":1,"release":"99.1.0"}"#).unwrap();
    let before = files(folder);
    let output = std::process::Command::new(program("continuum"))
        .arg("--data-dir")
        .arg(folder)
        .arg("up")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    for word in ["was written by Continuum 99.1.0", "nothing was changed", "run 99.1.0 or later on it"] {
        assert!(said.contains(word), "{said}");
    }
    assert!(files(folder) == before, "something was written");
}
