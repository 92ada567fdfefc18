//! The present mesh on the data of the previous release: it folds to the states that were, goes on, and loses nothing; and
//! data of a later release is refused. `integration-tests/data/make-mesh-438f242.sh` made the data.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Stdio,
};

use async_nats::jetstream;
use mesh_admin::{Server, ServerOptions};
use mesh_proto::{contract::Kind, rights};
use serde_json::{Value as Json, json};

use crate::support::{self, MeshRun, cluster, intent, program, root, text};

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

/// All that a data folder's streams hold, read by a server of the test's own on a copy of it.
async fn messages(nats_server: &Path, archived: &Path) -> Messages {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("nats.conf");
    std::fs::write(
        &config,
        format!(
            "listen: \"127.0.0.1:-1\"\nports_file_dir: {folder:?}\njetstream {{ store_dir: {store:?} }}\n\
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
    let of = |intent: &Json| (intent["id"].as_str().unwrap().to_owned(), intent["state"].as_str().unwrap().to_owned());
    all.as_array().unwrap_or_else(|| panic!("{all}")).iter().map(of).collect()
}

async fn until_state(mesh: &MeshRun, id: &str, wanted: &str) {
    mesh.until(&format!("{id} is {wanted}"), async || {
        (states(mesh).await.get(id).map(String::as_str) == Some(wanted)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_of_the_previous_release_is_carried_on() {
    let suite = "upgrade";
    let Some(nats_server) = support::server(suite).await else { return };
    mesh_bus::install_crypto();
    let scratch = tempfile::tempdir().unwrap();
    unpack(&scratch.path().join("mesh"));
    let before = messages(&nats_server, &scratch.path().join("mesh")).await;
    let count: usize = before.values().map(Vec::len).sum();
    assert!(count > 30 && before["INTENT"].len() > 10 && !before["IDENTITY"].is_empty(), "{count} facts");

    let simulated = |name: &str| {
        let mut one = cluster(name, "simulated", 4_000, 4_000);
        one["labels"] = json!({"place": name});
        one
    };
    let clusters = [simulated("north"), simulated("south")];
    let Some(mut mesh) = MeshRun::start_on(suite, &clusters, unpack).await else { return };

    // The states that were, and goes on: what was fulfilled is so again once it is measured.
    for (id, state) in
        [("kept", "FULFILLED"), ("changed", "FULFILLED"), ("suspended", "SUSPENDED"), ("ended", "TERMINATED")]
    {
        until_state(&mesh, id, state).await;
    }
    // A new intent, an old one that is changed, one that is taken up again, one that is ended.
    let file = scratch.path().join("intent.json");
    let path = file.to_str().unwrap();
    std::fs::write(&file, intent("clock", &[("ramUsage", "500")]).to_string()).unwrap();
    told(&mesh, &["intent", "submit", path, "--id", "new", "--wait", "fulfilled"]).await;
    std::fs::write(&file, intent("meter", &[("ramUsage", "300")]).to_string()).unwrap();
    told(&mesh, &["intent", "update", path, "--id", "changed", "--wait", "fulfilled"]).await;
    let versions = told(&mesh, &["intent", "history", "changed"]).await;
    assert_eq!(versions.as_array().unwrap().len(), 3, "{versions}");
    told(&mesh, &["intent", "resume", "suspended"]).await;
    until_state(&mesh, "suspended", "FULFILLED").await;
    told(&mesh, &["intent", "terminate", "kept"]).await;
    until_state(&mesh, "kept", "TERMINATED").await;

    // The object, the accounts, the ledger.
    let back = scratch.path().join("numbers.txt");
    let output = mesh.cli(&["storage", "object", "get", "archive", "numbers.txt", back.to_str().unwrap()]).await;
    assert!(output.status.success(), "{}", text(&output));
    let numbers: String = (1..=5_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(std::fs::read_to_string(&back).unwrap(), numbers);
    let password = scratch.path().join("password");
    std::fs::write(&password, "correct horse").unwrap();
    for arguments in [&["login", "ada", "--password-file", password.to_str().unwrap()][..], &["login"][..]] {
        let output = mesh.cli(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    }
    let ledger = told(&mesh, &["account", "list"]).await;
    assert!(ledger.to_string().contains("service/local/clock"), "{ledger}");
    let dead = told(&mesh, &["dead", "list"]).await;
    assert!(dead.as_array().is_none_or(Vec::is_empty), "{dead}");

    // Nothing was lost, and nothing was changed.
    for (stream, expected) in &before {
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
