//! How a mesh begins and ends on one machine.

use nix::sys::signal::Signal;

use crate::support::{self, MeshRun, cluster, document, runs, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_in_one_process_stops_cleanly_and_keeps_its_decisions() {
    let name = format!("life-{}", std::process::id());
    let clusters = [cluster(&name, "process", 1_000, 1_000)];
    let Some(mut mesh) = MeshRun::start("life", &clusters, &[]).await else { return };
    mesh.register(document("sleeper", "sleep", &["100000"], serde_json::json!({}))).await;
    mesh.fulfil("kept", "sleeper").await;
    let workload = support::marked(&name);
    assert_eq!(workload.iter().map(|(_, i)| i.as_str()).collect::<Vec<_>>(), [support::instance_of("kept")]);
    let mut all = support::descendants(mesh.pid());
    all.insert(mesh.pid());
    assert!(all.len() >= 3, "up, nats-server and the workload run: {all:?}");

    let said = mesh.down().await;
    assert!(said.contains("keeps the streams") && said.contains(mesh.folder().to_str().unwrap()), "{said}");
    let left: Vec<u32> = all.into_iter().filter(|pid| runs(*pid)).collect();
    assert_eq!(left, [0u32; 0], "processes run after `down`");
    assert_eq!(support::marked(&name), [], "a workload outlived its mesh");
    assert!(!mesh.folder().join("endpoints.json").exists());

    // Down twice is not an error, and says so.
    let again = mesh.cli(&["down"]).await;
    assert!(again.status.success() && text(&again).contains("nothing runs"), "{}", text(&again));

    // What was decided is still there, and is acted on.
    mesh.up_again().await;
    let instance = support::instance_of("kept");
    mesh.until("the workload runs again", async || {
        let found = support::marked(&name);
        (found.len() == 1 && found[0].1 == instance).then_some(())
    })
    .await;
    mesh.fulfil("another", "sleeper").await;
    mesh.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_mesh_on_one_data_folder_is_refused_by_name_and_harms_nothing() {
    let Some(mesh) = MeshRun::start("life", &[cluster("sim", "simulated", 1_000, 1_000)], &[]).await else { return };
    let second = mesh.cli(&["up"]).await;
    let said = text(&second);
    assert!(!second.status.success(), "{said}");
    for part in [format!("process {}", mesh.pid()), "continuum down".into(), "--data-dir".into()] {
        assert!(said.contains(&part), "{part:?} is not in: {said}");
    }
    mesh.register(document("sleeper", "sleep", &["100000"], serde_json::json!({}))).await;
    mesh.fulfil("unharmed", "sleeper").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_server_stopped_and_started_again_loses_nothing() {
    let Some(mesh) = MeshRun::start("life", &[cluster("sim", "simulated", 1_000, 1_000)], &[]).await else { return };
    mesh.register(document("sleeper", "sleep", &["100000"], serde_json::json!({}))).await;
    mesh.fulfil("before", "sleeper").await;
    let (server, _) = children_named(mesh.pid(), "nats-server");
    support::signal(server, Signal::SIGTERM);
    // Sent while it is away or just back: it is answered all the same.
    mesh.fulfil("meanwhile", "sleeper").await;
    let (again, _) = children_named(mesh.pid(), "nats-server");
    assert_ne!(server, again);
    let facts = mesh.facts("INTENT").await;
    let mut ids: Vec<&str> = facts.iter().map(|f| f.id.as_str()).collect();
    ids.sort_unstable();
    let before = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), before, "a fact is there twice");
    assert_eq!(facts.iter().filter(|f| f.subject.starts_with("intent.submitted.")).count(), 2);
}

fn children_named(pid: u32, name: &str) -> (u32, String) {
    support::children(pid).into_iter().find(|(_, comm)| comm == name).unwrap_or_else(|| panic!("{name} does not run"))
}
