//! Commands delivered again after JetStream has forgotten them: the decider has not.

use std::collections::BTreeMap;

use futures::{StreamExt as _, stream};
use serde_json::json;

use crate::support::{MeshRun, cluster, command_id, intent, submit};

const COMMANDS: usize = 1_000;
const WINDOW_NANOS: u64 = 1_000_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_late_repeats_of_commands_are_not_applied_twice() {
    let clusters = [cluster("sim", "simulated", 1_000_000, 1_000_000)];
    let Some(mesh) = MeshRun::start("late retries", &clusters, &[]).await else { return };
    for stream in ["INTENT_ASK", "INTENT", "VALIDATION", "WORKLOAD", "PLACEMENT", "ASSIGNMENT"] {
        mesh.configure(stream, |config| config["duplicate_window"] = json!(WINDOW_NANOS)).await;
    }
    // They name no registered workload: each is submitted, checked and refused, and none runs anything.
    let ids: Vec<String> = (0..COMMANDS).map(|n| format!("late-{n}")).collect();
    let send = async |id: &String| mesh.send(&submit(id, intent("absent", &[])), &command_id(id)).await;
    let first: u64 = stream::iter(&ids).map(send).buffer_unordered(64).fold(0, async |a, b| a.max(b)).await;
    settled(&mesh, first).await;
    let before = mesh.facts("INTENT").await;

    // JetStream has forgotten a command once it takes it in as new.
    let again = async |id: &String| {
        mesh.until("its duplicate window has passed", async || {
            Some(send(id).await).filter(|sequence| *sequence > first)
        })
        .await
    };
    let again: Vec<u64> = stream::iter(&ids).map(again).buffer_unordered(64).collect().await;
    settled(&mesh, *again.iter().max().unwrap()).await;

    let after = mesh.facts("INTENT").await;
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for fact in after
        .iter()
        .filter(|f| f.subject.starts_with("intent.submitted.") || f.subject.starts_with("intent.unchanged."))
    {
        *answers.entry(fact.cause.clone().unwrap().id).or_default() += 1;
    }
    let twice = answers.values().filter(|count| **count != 1).count();
    eprintln!("late retries: {COMMANDS} commands, {} delivered again, {twice} applied twice", again.len());
    assert_eq!((answers.len(), twice), (COMMANDS, 0));
    let caused_again =
        after.iter().filter(|f| f.cause.as_ref().is_some_and(|c| c.stream == "INTENT_ASK" && c.sequence > first));
    assert_eq!(caused_again.count(), 0, "a command delivered again caused a fact");
    assert!(after.len() >= before.len());
}

/// Waits until the intent manager is done with every command up to a sequence.
async fn settled(mesh: &MeshRun, sequence: u64) {
    let (_, spec) = mesh_proto::contract().decider("intents").unwrap();
    let durable = mesh_proto::contract().durables(spec).into_iter().find(|d| d.stream == "INTENT_ASK").unwrap();
    let client = mesh.plain("provisioner").await;
    let subject = format!("$JS.API.CONSUMER.INFO.INTENT_ASK.{}", durable.name);
    mesh.until("the commands are done", async || {
        let answer = client.request(subject.clone(), "".into()).await.ok()?;
        let info: serde_json::Value = serde_json::from_slice(&answer.payload).ok()?;
        (info["ack_floor"]["stream_seq"].as_u64()? >= sequence).then_some(())
    })
    .await;
}
