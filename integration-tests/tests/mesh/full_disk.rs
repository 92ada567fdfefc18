//! A disk that truly fills up under the running mesh: nothing acknowledged is lost, whoever asks is told, and it heals
//! once there is room.

use std::{collections::BTreeMap, time::Duration};

use mesh_bus::PublishError;
use mesh_core::Outgoing;
use mesh_proto::{Event as _, intent::FulfilmentStatus, lifecycle::ServiceChanged};
use serde_json::json;

use crate::support::{self, MeshRun, cluster, command_id, document, intent, submit};

/// The least that `continuum up` takes is half of this.
const DISK_BYTES: u64 = 600 << 20;

/// Every fact that is stored: stream and sequence, and its id.
async fn facts(mesh: &MeshRun) -> BTreeMap<(String, u64), String> {
    let mut all = BTreeMap::new();
    for stream in ["WORKLOAD", "INTENT", "VALIDATION", "PLACEMENT", "ASSIGNMENT", "INSTANCE", "CLUSTER"] {
        for fact in mesh.facts(stream).await {
            all.insert((fact.stream.clone(), fact.sequence), fact.id);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_is_reported_and_heals() {
    let clusters = [cluster("sim", "simulated", 100_000, 100_000)];
    let Some(mesh) = MeshRun::start_on_disk("full disk", DISK_BYTES, &clusters).await else { return };
    mesh.register(document("model", "sleep", &["1000000"], json!({"driver": "simulated"}))).await;
    mesh.fulfil("before", "model").await;
    let before = facts(&mesh).await;
    assert!(before.len() > 8, "{before:?}");

    let filler = mesh_test::Disk::fill(&mesh.folder()).unwrap();
    // The page that a file ends in still takes some bytes; then a command is refused, with the reason.
    let url = mesh.endpoints["nats"].as_str().unwrap();
    let person = support::connect_for(url, "person", &mesh.seed("person"), Duration::from_secs(15)).await;
    let mut ids = vec![];
    let refused = loop {
        let id = format!("while-{}", ids.len());
        let command = submit(&id, intent("model", &[("ramUsage", "500")]));
        let message = Outgoing::new(&command, command_id(&id), support::now()).unwrap();
        ids.push(id);
        match person.publish(&message).await {
            Ok(_) => assert!(ids.len() < 200, "the disk is not full"),
            Err(error) => break error,
        }
    };
    assert!(matches!(&refused, PublishError::Full { stream, .. } if stream == "INTENT_ASK"), "{refused:?}");
    assert!(refused.to_string().contains("free disk space"), "{refused}");
    // So is whoever asks a service whether it is ready, and whoever reads what `up` prints.
    let mut endpoints = vec![];
    for service in ["intent-manager", "collector", "cmdt-aggregator", "validator"] {
        let notice = mesh.bus.log("LIFECYCLE").last(&ServiceChanged::SUBJECT.replace("{service}", service)).await;
        endpoints.push(notice.unwrap().unwrap().event::<ServiceChanged>().unwrap().unwrap().endpoint);
    }
    mesh.until("/readyz says that a stream is full", async || {
        for endpoint in &endpoints {
            let (status, said) = mesh_test::page(endpoint, "/readyz").await?;
            if status != 200 && said.contains(" is full") && said.contains("free disk space") {
                return Some(());
            }
        }
        None
    })
    .await;
    mesh.until("`up` says that nats-server cannot write", async || {
        mesh.log().contains("nats-server cannot write, so all writes wait").then_some(())
    })
    .await;

    std::fs::remove_file(filler).unwrap();
    // The refused command is sent again, as its sender was told to; the others were accepted.
    let last = ids.last().unwrap();
    mesh.send(&submit(last, intent("model", &[("ramUsage", "500")])), &command_id(last)).await;
    for id in &ids {
        mesh.state(id, |state| state.fulfilment_status() == FulfilmentStatus::Fulfilled).await;
    }
    for endpoint in &endpoints {
        mesh.until("/readyz is well again", async || {
            mesh_test::page(endpoint, "/readyz").await.filter(|(status, _)| *status == 200)
        })
        .await;
    }
    let after = facts(&mesh).await;
    let lost: Vec<_> = before.iter().filter(|(at, id)| after.get(at) != Some(id)).collect();
    assert!(lost.is_empty(), "facts that were stored are gone or changed: {lost:?}");
    let mut ids_of: BTreeMap<&String, usize> = BTreeMap::new();
    for id in after.values() {
        *ids_of.entry(id).or_default() += 1;
    }
    assert!(ids_of.values().all(|times| *times == 1), "a fact is stored twice");
    assert_eq!(mesh.facts("DEAD").await.len(), 0, "dead letters");
    eprintln!(
        "full disk: {} commands while it was full, {} facts before, {} after, none lost",
        ids.len(),
        before.len(),
        after.len()
    );
}
