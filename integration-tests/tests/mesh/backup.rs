//! A mesh is backed up while intents are submitted, and restored in another folder: it has the same facts, and goes on.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use mesh_core::Stored;
use mesh_proto::{contract::Kind, intent::FulfilmentStatus};
use serde_json::json;

use crate::support::{self, LIMIT, MeshRun, cluster, command_id, document, intent, submit};

/// A command is late once it is acknowledged after this.
const LATE: Duration = Duration::from_millis(100);
/// Longest that the mesh may stand still. `continuum bench backup` has the bound on commands: here others share the machine.
const PAUSE_MAX_MS: f64 = 100.0;

/// All facts of all streams of decided facts, with their positions.
async fn facts(mesh: &MeshRun) -> BTreeMap<String, Vec<Stored>> {
    let mut all = BTreeMap::new();
    for stream in mesh_proto::contract().streams.iter().filter(|stream| stream.kind == Kind::Facts) {
        all.insert(stream.name.clone(), mesh.facts(&stream.name).await);
    }
    all
}

/// The last sequence of each of these streams.
async fn positions(mesh: &MeshRun) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for stream in mesh_proto::contract().streams.iter().filter(|stream| stream.kind == Kind::Facts) {
        all.insert(stream.name.clone(), mesh.bus.log(&stream.name).last_sequence().await.unwrap());
    }
    all
}

async fn backup(mesh: &MeshRun, arguments: &[&str]) -> serde_json::Value {
    let output = mesh.cli(&[&["-o", "json", "backup"], arguments].concat()).await;
    assert!(output.status.success(), "{arguments:?}: {}", support::text(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_restores_the_same_mesh_which_goes_on() {
    let (rate, seconds, backups) = if support::is_full() { (50, 60, 3) } else { (25, 16, 1) };
    let clusters = [cluster("sim", "simulated", 1_000_000, 1_000_000)];
    let Some(mut mesh) = MeshRun::start("backup", &clusters, &[]).await else { return };
    mesh.register(document("model", "sleep", &["1000000"], json!({"driver": "simulated"}))).await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (key, file, restored) = (path("key"), path("mesh.age"), path("restored"));
    let made = mesh.cli(&["backup", "key", &key]).await;
    let recipient = support::text(&made).trim().to_owned();

    // Intents at a steady rate, whatever the answers do; the backups fall into the middle.
    let count: u32 = rate * seconds;
    let begun = Instant::now();
    let sending = stream::iter(0..count).map(async |n| {
        let due = begun + Duration::from_secs(1) * n / rate;
        tokio::time::sleep_until(due.into()).await;
        let mut wanted = intent("model", &[("ramUsage", "500")]);
        wanted["observationPeriod"] = json!(5);
        let id = format!("intent-{n}");
        mesh.send(&submit(&id, wanted), &command_id(&id)).await;
        due.elapsed()
    });
    let sending = sending.buffer_unordered(count as usize).collect::<Vec<Duration>>();
    let taking = async {
        let mut all = vec![];
        for n in 0..backups {
            tokio::time::sleep(Duration::from_secs(u64::from(seconds / (backups + 1)))).await;
            let _replaced = std::fs::remove_file(&file);
            let before = positions(&mesh).await;
            let begun = Instant::now();
            let made = backup(&mesh, &["create", &file, "--recipient", &recipient]).await;
            println!("backup {n}: {made} in {:.1} s", begun.elapsed().as_secs_f64());
            all.push((before, made));
        }
        all
    };
    let (mut waited, mut made) = tokio::join!(sending, taking);
    waited.sort_unstable();
    let late = waited.iter().filter(|time| **time > LATE).count();
    println!(
        "{count} commands at {rate}/s: {late} later than {LATE:?}, half within {:?}, the slowest {:?}",
        waited[waited.len() / 2],
        waited.last().unwrap()
    );
    for (_, made) in &made {
        assert!(made["pause_ms"].as_f64().unwrap() <= PAUSE_MAX_MS, "{made}");
    }
    let (before, _) = made.pop().unwrap();
    // Everything that the backup can hold is in here.
    let original = facts(&mesh).await;
    mesh.down().await;

    // Nothing of a backup that is not whole, or with another key.
    let whole = std::fs::read(&file).unwrap();
    let (broken, other) = (path("broken.age"), path("other"));
    assert!(mesh.cli(&["backup", "key", &other]).await.status.success());
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for (bytes, key) in [(&whole[..whole.len() - 70_000], &key), (&flipped, &key), (&whole, &other)] {
        std::fs::write(&broken, bytes).unwrap();
        let refused = support::cli(Path::new(&restored), &["backup", "restore", &broken, "--identity", key]).await;
        assert!(!refused.status.success() && !Path::new(&restored).exists(), "{}", support::text(&refused));
    }

    // Elsewhere.
    let done = support::cli(Path::new(&restored), &["backup", "restore", &file, "--identity", &key]).await;
    assert!(done.status.success(), "{}", support::text(&done));
    mesh.move_to(Path::new(&restored));
    mesh.up_again().await;
    let found = facts(&mesh).await;
    let mut kept = 0;
    for (stream, last) in &before {
        let (found, original) = (&found[stream], &original[stream]);
        // Beyond the moment of the backup it goes its own way.
        let same = found.iter().zip(original).take_while(|(a, b)| is_same(a, b)).count();
        let expected = original.iter().filter(|fact| fact.sequence <= *last).count();
        assert!(same >= expected, "{stream}: the same up to {same}, at least {expected} expected");
        kept += same;
    }
    println!("{kept} facts are the same");

    // It goes on: what was submitted before the backup is fulfilled, and so is what comes now.
    let is_submitted =
        |fact: &&Stored| fact.sequence <= before["INTENT"] && fact.subject.starts_with("intent.submitted.");
    let submitted = original["INTENT"].iter().filter(is_submitted).count();
    assert!(submitted > 0);
    mesh.until("what was submitted is fulfilled", async || {
        let facts = mesh.facts("INTENT").await;
        let is_fulfilled = |fact: &&Stored| {
            support::state_of(fact).is_some_and(|s| s.fulfilment_status() == FulfilmentStatus::Fulfilled)
        };
        let ids: std::collections::BTreeSet<&str> =
            facts.iter().filter(is_fulfilled).filter_map(|fact| fact.subject.rsplit('.').next()).collect();
        (ids.len() >= submitted).then_some(())
    })
    .await;
    tokio::time::timeout(LIMIT, mesh.fulfil("afterwards", "model")).await.unwrap();
}

fn is_same(a: &Stored, b: &Stored) -> bool {
    (a.sequence, &a.subject, &a.message, &a.body) == (b.sequence, &b.subject, &b.message, &b.body)
}
