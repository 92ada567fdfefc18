//! Registrations of clusters in a real MongoDB: asked for, lost and made again, as memory answers.

#![cfg(test)]

use std::fmt::Debug;

use mesh_bus::Bus;
use mesh_core::Outgoing;
use mesh_kit::{Running, Settings, Stopped};
use mesh_proto::{
    cluster::ClusterRegistered,
    placement::orchestrator_queries_client::OrchestratorQueriesClient,
    query::{GetRequest, ListRequest},
};
use mesh_test::{Database, Kind, TestBus, now, soon, until};
use meta_orchestrator::Config;
use tonic::{Code, transport::Channel};

type Client = OrchestratorQueriesClient<Channel>;

/// Registers clusters; each third one again, at another site.
async fn fill(bus: &Bus, clusters: std::ops::Range<u32>) {
    for number in clusters {
        for (again, site) in ["plant", "office"].iter().enumerate().take(if number % 3 == 0 { 2 } else { 1 }) {
            let registered = ClusterRegistered {
                cluster_id: format!("c{number:03}"),
                cpu_milli: 1_000 + number,
                memory_bytes: 1 << 30,
                site: (*site).into(),
                driver: "simulated".into(),
                incarnation: again as u64 + 1,
                ..ClusterRegistered::default()
            };
            let id = format!("registered-{number}-{again}");
            bus.publish(&Outgoing::new(&registered, id, now()).unwrap()).await.unwrap();
        }
    }
}

fn said<T: Debug>(question: impl Debug, answer: Result<tonic::Response<T>, tonic::Status>) -> String {
    let answer = answer.map(tonic::Response::into_inner);
    format!("{question:?}: {:?}", answer.map_err(|status| (status.code(), status.message().to_owned())))
}

/// What is answered to every kind of question about clusters.
async fn answers(client: &Client, clusters: u32) -> Vec<String> {
    let (mut client, mut said_all) = (client.clone(), vec![]);
    for (state, page_size, token) in
        [("", 0, ""), ("", 7, ""), ("available", 9, ""), ("lost", 2, ""), ("", 3, "c0055"), ("odd", 0, "")]
    {
        let mut question =
            ListRequest { state: state.into(), page_size, page_token: token.into(), ..ListRequest::default() };
        loop {
            let answer = client.list_clusters(question.clone()).await;
            question.page_token =
                answer.as_ref().map(|answer| answer.get_ref().next_page_token.clone()).unwrap_or_default();
            said_all.push(said(&question, answer));
            if question.page_token.is_empty() {
                break;
            }
        }
    }
    for id in (0..clusters + 1).map(|number| format!("c{number:03}")).chain(["$gt".into(), String::new()]) {
        let question = GetRequest { owner: String::new(), id };
        said_all.push(said(&question, client.get_cluster(question.clone()).await));
    }
    said_all
}

/// Waits until one answers as the other does, about this number of clusters that take part.
async fn same(what: &str, memory: &Client, kept: &Client, clusters: u32) {
    let available = async |client: &Client| {
        let request = ListRequest { state: "available".into(), page_size: 1_000, ..ListRequest::default() };
        client.clone().list_clusters(request).await.map_or(0, |list| list.into_inner().clusters.len())
    };
    until("clusters in memory", async || available(memory).await, |found| *found == clusters as usize).await;
    let both = async || (answers(memory, clusters).await, answers(kept, clusters).await);
    let (expected, found) = until(what, both, |(expected, found)| expected == found).await;
    assert_eq!(found, expected, "{what}");
    assert!(found.iter().any(|answer| answer.contains("office")) && !found.is_empty(), "{what}");
}

async fn planner(settings: &Settings) -> (Running, Client) {
    // Clusters that nobody plays are neither lost nor given up.
    let config = Config { grace_ms: u32::MAX, start_limit_ms: u32::MAX, ..Config::default() };
    let running = mesh_kit::join("meta-orchestrator", settings.clone(), config, meta_orchestrator::start);
    let running = running.await.unwrap();
    let client = OrchestratorQueriesClient::connect(running.endpoint()).await.unwrap();
    (running, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_are_shown_out_of_a_database_as_out_of_memory() {
    let suite = "meta-orchestrator, clusters in MongoDB";
    let Some(test_bus) = TestBus::start(suite).await else { return };
    let Some(mut mongo) = Database::start(suite, Kind::Mongod).await else { return };
    let test_bus = test_bus.with_router().await;
    let agent = test_bus.connect("cluster-agent").await;
    fill(&agent, 0..40).await;

    let in_memory = test_bus.settings("meta-orchestrator");
    let in_mongo = Settings { documents_url: mongo.url("clusters"), ready_lag_max: 5, ..in_memory.clone() };
    let (memory, of_memory) = planner(&in_memory).await;
    let (kept, of_kept) = planner(&in_mongo).await;
    same("clusters of the past", &of_memory, &of_kept, 40).await;

    // Away: questions are refused. What registers meanwhile is there later.
    mongo.kill();
    fill(&agent, 40..50).await;
    let refused = of_kept.clone().list_clusters(ListRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    mongo.start_again().await;
    same("clusters that registered while it was away", &of_memory, &of_kept, 50).await;

    // Emptied while clusters register: made again from the stream.
    tokio::join!(mongo.start_empty(), fill(&agent, 50..80));
    same("clusters that were lost", &of_memory, &of_kept, 80).await;
    assert_eq!(soon("the end", kept.stop()).await, Stopped::Settled);

    // Another process goes on with what is there.
    fill(&agent, 80..85).await;
    let (again, of_again) = planner(&in_mongo).await;
    same("clusters that another process wrote", &of_memory, &of_again, 85).await;
    for running in [again, memory] {
        assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);
    }
}
