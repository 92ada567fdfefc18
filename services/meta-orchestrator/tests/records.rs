//! Decision records in a real Cassandra: asked for, lost and made again.

#![cfg(test)]

use mesh_bus::{Bus, Written};
use mesh_core::{Decision, Outgoing};
use mesh_kit::{Settings, Stopped};
use mesh_proto::{
    placement::{
        ExplainReply, PlacementDecided, PlacementUnplaced, orchestrator_queries_client::OrchestratorQueriesClient,
    },
    query::GetRequest,
};
use mesh_test::{Database, Kind, TestBus, now, soon, until};
use meta_orchestrator::Config;
use tonic::{Code, transport::Channel};

fn decided(instance: &str, generation: u64) -> PlacementDecided {
    PlacementDecided {
        domain: "default".into(),
        owner: "local".into(),
        instance_id: instance.into(),
        generation,
        cluster_id: "edge".into(),
        ..Default::default()
    }
}

/// Writes decisions of two instances by turns, and says at last that one has no place.
async fn fill(bus: &Bus, decisions: std::ops::Range<u64>) {
    let (mut messages, at) = (vec![], now());
    for generation in decisions.clone() {
        let instance = ["one", "other"][usize::from(generation % 4 == 0)];
        messages.push(Outgoing::new(&decided(instance, generation), format!("decided-{generation}"), at).unwrap());
    }
    let unplaced = PlacementUnplaced {
        domain: "default".into(),
        owner: "local".into(),
        instance_id: "other".into(),
        ..Default::default()
    };
    messages.push(Outgoing::new(&unplaced, format!("unplaced-{}", decisions.end), at).unwrap());
    let entity = "placement.*.*.default";
    let expected = bus.log("PLACEMENT").last(entity).await.unwrap().map_or(0, |last| last.sequence);
    let decision = Decision { entity: entity.into(), expected, messages };
    let written = bus.writer("PLACEMENT").write(decision).await.unwrap();
    assert!(matches!(written, Written::Stored { .. }), "{written:?}");
}

async fn explain(client: &OrchestratorQueriesClient<Channel>, id: &str) -> Result<ExplainReply, Code> {
    let request = GetRequest { owner: String::new(), id: id.into() };
    client.clone().explain(request).await.map(tonic::Response::into_inner).map_err(|status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_are_explained_out_of_a_database_as_out_of_memory() {
    let suite = "meta-orchestrator, decision records in a database";
    let Some(test_bus) = TestBus::start(suite).await else { return };
    let Some(mut cassandra) = Database::start(suite, Kind::Cassandra).await else { return };
    let test_bus = test_bus.with_router().await;
    let bus = test_bus.connect("meta-orchestrator").await;
    fill(&bus, 1..151).await;
    let in_memory = test_bus.settings("meta-orchestrator");
    let in_database = Settings { history_url: cassandra.url("decisions"), ..in_memory.clone() };
    // Clusters that nobody plays are neither lost nor given up.
    let config = Config { grace_ms: u32::MAX, start_limit_ms: u32::MAX, ..Config::default() };
    let start = async |settings: &Settings| {
        let running = mesh_kit::join("meta-orchestrator", settings.clone(), config.clone(), meta_orchestrator::start);
        let running = running.await.unwrap();
        let client = OrchestratorQueriesClient::connect(running.endpoint()).await.unwrap();
        (running, client)
    };
    let (memory, of_memory) = start(&in_memory).await;
    let (recorded, of_records) = start(&in_database).await;
    let same = async |what: &str| {
        for id in ["one", "other", "unknown"] {
            let expected = explain(&of_memory, id).await;
            until(what, async || explain(&of_records, id).await, |found| *found == expected).await.ok();
        }
    };
    assert_eq!(explain(&of_memory, "one").await.unwrap().decisions.len(), 100, "the newest");
    assert!(explain(&of_memory, "other").await.unwrap().unplaced.is_some());
    same("decisions of the past").await;

    // Away: a question is refused, and what is decided meanwhile comes later.
    cassandra.kill();
    assert_eq!(explain(&of_records, "one").await.unwrap_err(), Code::Unavailable);
    fill(&bus, 151..161).await;
    cassandra.start_again().await;
    let newest = |found: &Result<ExplainReply, Code>| found.as_ref().is_ok_and(|f| f.decisions[0].generation == 159);
    until("a decision in memory", async || explain(&of_memory, "one").await, newest).await.unwrap();
    same("decisions made while it was away").await;

    cassandra.start_empty().await;
    same("decisions that were lost").await;
    assert_eq!(soon("the end", recorded.stop()).await, Stopped::Settled);
    assert_eq!(soon("the end", memory.stop()).await, Stopped::Settled);
}
