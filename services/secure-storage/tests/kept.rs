//! Storage policies in a real MongoDB: asked for, lost and made again, as memory answers.

#![cfg(test)]

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use mesh_bus::Bus;
use mesh_core::Outgoing;
use mesh_kit::{Running, Settings, Stopped};
use mesh_proto::{
    AnyEvent,
    storage::{
        CreateBucket, DefinePolicy, DropPolicy, Location, Policy, RegisterLocation, StoragePolicyView, StorageRequest,
        storage_queries_client::StorageQueriesClient,
    },
};
use mesh_test::{Database, Kind, TestBus, now, soon, until};
use secure_storage::Config;
use tonic::{Code, Status, transport::Channel};

type Client = StorageQueriesClient<Channel>;

async fn gateway(test_bus: &TestBus, name: &str, documents: String) -> (Running, Client) {
    let folder = test_bus.folder().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let settings = Settings { data_dir: Some(folder), ready_lag_max: 5, ..test_bus.settings("secure-storage") };
    // Locations are looked at when somebody asks.
    let config = Config { documents, probe_ms: 0, ..Config::default() };
    let running = mesh_kit::join("secure-storage", settings, config, secure_storage::start).await.unwrap();
    let client = StorageQueriesClient::connect(running.endpoint()).await.unwrap();
    (running, client)
}

async fn publish(bus: &Bus, command: &dyn AnyEvent, id: String) {
    bus.publish(&Outgoing::new(command, id, now()).unwrap()).await.unwrap();
}

fn owner_of(number: usize) -> String {
    ["local", "another"][number % 2].to_owned()
}

fn name_of(number: usize) -> String {
    format!("policy-{number:03}")
}

/// Defines policies of two owners, every fifth twice; every third is dropped again.
async fn define(bus: &Bus, policies: Range<usize>) {
    for number in policies {
        for version in 1..=if number % 5 == 0 { 2 } else { 1 } {
            let definition = Policy { backends: vec![format!("at-{version}")], ..Policy::default() };
            let (owner, policy) = (owner_of(number), name_of(number));
            let command = DefinePolicy { owner, policy, definition: Some(definition) };
            publish(bus, &command, format!("define-{number}-{version}")).await;
        }
        if number % 3 == 0 {
            let command = DropPolicy { owner: owner_of(number), policy: name_of(number) };
            publish(bus, &command, format!("drop-{number}")).await;
        }
    }
}

/// How many of these are left.
fn left(policies: usize) -> usize {
    (0..policies).filter(|number| number % 3 != 0).count()
}

async fn policies(client: &Client, owner: &str) -> Result<Vec<StoragePolicyView>, Status> {
    let answer = client.clone().probe(StorageRequest { owner: owner.into() }).await?;
    Ok(answer.into_inner().policies)
}

/// Waits until both show this number of policies, and the same ones.
async fn same(what: &str, memory: &Client, kept: &Client, expected: usize) {
    let all = async |client: &Client| {
        let mut shown = vec![];
        for owner in ["local", "another", "nobody", "$gt"] {
            shown.push(policies(client, owner).await.map_err(|status| status.code()));
        }
        shown
    };
    let count = |shown: &[Result<Vec<_>, Code>]| shown.iter().flatten().flatten().count();
    let both = async || (all(memory).await, all(kept).await);
    let (of_memory, of_kept) = until(what, both, |(memory, kept)| memory == kept && count(memory) == expected).await;
    assert_eq!(of_kept, of_memory, "{what}");
    let mut shown = of_kept.iter().flatten().flatten();
    assert!(shown.all(|policy| policy.definition.is_some() && policy.version > 0), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_shown_out_of_a_database_as_out_of_memory() {
    let suite = "secure-storage, policies in MongoDB";
    let Some(test_bus) = TestBus::start(suite).await else { return };
    let Some(mut mongo) = Database::start(suite, Kind::Mongod).await else { return };
    let person = test_bus.connect("person").await;
    for number in 0..4 {
        for version in 1..=2 {
            let location = format!("at-{version}");
            let description = Location { kind: "cloud".into(), url: format!("dir:{location}"), ..Location::default() };
            let owner = owner_of(number);
            let command = RegisterLocation { owner, location, description: Some(description) };
            publish(&person, &command, format!("location-{number}-{version}")).await;
        }
    }
    let (memory, of_memory) = gateway(&test_bus, "memory", String::new()).await;
    let (kept, of_kept) = gateway(&test_bus, "kept", mongo.url("policies")).await;
    // A policy that comes before its locations are known is refused: whoever sent it sends it again.
    let asked = AtomicUsize::new(0);
    for number in 0..2 {
        let first = async || {
            let definition = Policy { backends: vec!["at-1".into()], ..Policy::default() };
            let command =
                DefinePolicy { owner: owner_of(number), policy: "first".into(), definition: Some(definition) };
            publish(&person, &command, format!("first-{}", asked.fetch_add(1, Relaxed))).await;
            policies(&of_memory, &owner_of(number)).await.unwrap()
        };
        until("a first policy", first, |policies| !policies.is_empty()).await;
    }
    same("first policies", &of_memory, &of_kept, 2).await;
    define(&person, 0..30).await;
    same("policies of the present", &of_memory, &of_kept, 2 + left(30)).await;
    let bucket = CreateBucket {
        realm: "bucket".into(),
        bucket: "used".into(),
        owner: "local".into(),
        policy: name_of(2),
        ..CreateBucket::default()
    };
    publish(&person, &bucket, "bucket".into()).await;
    let shown = async || policies(&of_kept, "local").await.unwrap();
    let users = |all: &Vec<StoragePolicyView>| all.iter().flat_map(|policy| policy.buckets.clone()).collect::<Vec<_>>();
    until("a bucket that uses one", shown, |all| users(all) == ["used"]).await;

    // Away: questions are refused. What is defined meanwhile is there later.
    mongo.kill();
    define(&person, 30..40).await;
    assert_eq!(policies(&of_kept, "local").await.unwrap_err().code(), Code::Unavailable);
    mongo.start_again().await;
    same("policies that were defined while it was away", &of_memory, &of_kept, 2 + left(40)).await;

    // Emptied while policies are defined: made again from the stream.
    tokio::join!(mongo.start_empty(), define(&person, 40..60));
    same("policies that were lost", &of_memory, &of_kept, 2 + left(60)).await;
    assert_eq!(soon("the end", kept.stop()).await, Stopped::Settled);

    // Another process goes on with what is there.
    define(&person, 60..63).await;
    let (again, of_again) = gateway(&test_bus, "again", mongo.url("policies")).await;
    same("policies that another process wrote", &of_memory, &of_again, 2 + left(63)).await;
    for running in [again, memory] {
        assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);
    }
}
