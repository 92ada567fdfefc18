//! One reader for all who follow a stream, on a real nats-server with the rights of the contract.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "../examples/toy.rs"]
pub mod toy;

use std::{collections::BTreeSet, time::Duration};

use futures::FutureExt as _;
use mesh_bus::{Bus, LogError};
use mesh_kit::{Follower, Joint, Mesh, Reader, Running};
use mesh_proto::{Event as _, Timestamp, derived_id, intent::IntentSubmitted, observation::TargetObserved};
use mesh_test::{TestBus, soon, until};

const STREAM: &str = TargetObserved::STREAM;
/// More than a reader keeps for its followers.
const MANY: u64 = 10_000;

async fn test_bus(test: &str) -> Option<TestBus> {
    let suite = format!("mesh-kit reader, {test}");
    TestBus::start_with(&suite, |options| {
        options.sync_always = false;
        options.http_listen = Some("127.0.0.1:-1".into());
    })
    .await
}

fn observed(period: u64) -> mesh_core::Outgoing {
    let event = TargetObserved { owner: "local".into(), intent_id: "one".into(), period, ..TargetObserved::default() };
    let id = derived_id(&["reader test", &period.to_string()]);
    mesh_core::Outgoing::new(&event, id, Timestamp::default()).unwrap()
}

/// Stores observations of these periods.
async fn store(collector: &Bus, periods: std::ops::Range<u64>) {
    let all: Vec<u64> = periods.collect();
    for chunk in all.chunks(500) {
        collector.publish_many(chunk.iter().copied().map(observed).collect()).await.unwrap();
    }
}

/// The next `count` sequences that it gives.
async fn take(follower: &mut Follower, count: u64) -> Vec<u64> {
    let mut found = vec![];
    for _ in 0..count {
        found.push(soon("the next message", follower.next()).await.unwrap().sequence);
    }
    found
}

/// Messages that the server has delivered, to anybody.
async fn delivered(test_bus: &TestBus) -> u64 {
    let ports = std::fs::read_dir(test_bus.folder()).unwrap().flatten();
    let ports = ports.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "ports")).unwrap();
    let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(ports).unwrap()).unwrap();
    let monitoring = ports["monitoring"][0].as_str().unwrap();
    let (_, page) = mesh_test::page(monitoring, "/varz").await.unwrap();
    let body = page.get(page.find('{').unwrap()..=page.rfind('}').unwrap()).unwrap();
    serde_json::from_str::<serde_json::Value>(body).unwrap()["out_msgs"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_follower_sees_all_from_its_start_in_order() {
    let Some(test_bus) = test_bus("order").await else { return };
    let collector = test_bus.connect("collector").await;
    store(&collector, 1..101).await;
    let bus = test_bus.connect("joint").await;
    let reader = Reader::new(bus.clone());
    let (mut first, mut slow, mut late) =
        (reader.follow(STREAM, 0), reader.follow(STREAM, 51), reader.follow(STREAM, 101));
    assert_eq!(take(&mut first, 100).await, (1..=100).collect::<Vec<_>>());
    assert_eq!(first.position(), 100);
    assert!(first.next().now_or_never().is_none());
    store(&collector, 101..MANY + 1).await;
    assert_eq!(take(&mut first, MANY - 100).await, (101..=MANY).collect::<Vec<_>>());
    // It has not read for so long that the reader has moved on.
    assert_eq!(take(&mut slow, MANY - 50).await, (51..=MANY).collect::<Vec<_>>());
    assert_eq!(take(&mut late, MANY - 100).await, (101..=MANY).collect::<Vec<_>>());
    // One who comes later, and one who wants something else.
    let mut new = reader.follow(STREAM, MANY - 9);
    assert_eq!(take(&mut new, 10).await.last(), Some(&MANY));
    let mut other = reader.follow(STREAM, 1).matching("observation.target_observed.v1.other.*");
    assert!(tokio::time::timeout(Duration::from_millis(200), other.next()).await.is_err());
    assert_eq!(reader.streams(), [STREAM]);
    store(&collector, MANY + 1..MANY + 3).await;
    for follower in [&mut first, &mut slow, &mut late, &mut new] {
        assert_eq!(take(follower, 2).await, [MANY + 1, MANY + 2]);
    }
    bus.close().await;
    for follower in [&mut first, &mut slow] {
        let ended = soon("the end", follower.next()).await.unwrap_err();
        assert!(matches!(ended, LogError::Closed { .. }), "{ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_delivered_once_however_many_follow_it() {
    let Some(test_bus) = test_bus("deliveries").await else { return };
    let (collector, bus) = (test_bus.connect("collector").await, test_bus.connect("joint").await);
    let (facts, followers) = (1_000, 8);
    // Before: one subscription for each.
    let log = bus.log(STREAM);
    let mut tails: Vec<_> = (0..followers).map(|_| log.tail("observation.>", 1)).collect();
    store(&collector, 0..1).await;
    for tail in &mut tails {
        soon("a message", tail.next()).await.unwrap();
    }
    let before = delivered(&test_bus).await;
    store(&collector, 1..facts + 1).await;
    for tail in &mut tails {
        while tail.position() < facts + 1 {
            soon("a message", tail.next()).await.unwrap();
        }
    }
    let apart = delivered(&test_bus).await - before;
    drop(tails);
    // Now: one for all.
    let reader = Reader::new(bus);
    let mut all: Vec<_> = (0..followers).map(|_| reader.follow(STREAM, facts + 2)).collect();
    store(&collector, facts + 1..facts + 2).await;
    for follower in &mut all {
        take(follower, 1).await;
    }
    let before = delivered(&test_bus).await;
    store(&collector, facts + 2..2 * facts + 2).await;
    for follower in &mut all {
        take(follower, facts).await;
    }
    let together = delivered(&test_bus).await - before;
    println!("deliveries of {facts} facts to {followers} followers: {apart} apart, {together} together");
    assert!(apart >= facts * followers, "{apart}");
    // The acknowledgements of the writer, and the reads of a quiet second, are in it.
    assert!(together < facts * 2, "{together}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_writes_itself_is_seen_without_being_delivered() {
    let Some(test_bus) = test_bus("own writes").await else { return };
    let joint = test_bus.connect("joint").await;
    let reader = Reader::alone(joint.clone(), [STREAM.to_owned()].into());
    let collector = joint.for_service("collector");
    let (mut first, mut slow) = (reader.follow(STREAM, 1), reader.follow(STREAM, 1));
    store(&collector, 0..1).await;
    take(&mut first, 1).await;
    let before = delivered(&test_bus).await;
    for begin in (1..MANY).step_by(1_000) {
        let end = (begin + 1_000).min(MANY);
        store(&collector, begin..end).await;
        assert_eq!(take(&mut first, end - begin).await, (begin + 1..=end).collect::<Vec<_>>());
    }
    let back = delivered(&test_bus).await - before;
    println!("deliveries of {MANY} facts to the process that wrote them: {back}");
    assert!(back < MANY / 10, "{back}");
    // One who lags reads the stream; what another process writes is found there too.
    assert_eq!(take(&mut slow, MANY).await.last(), Some(&MANY));
    let stranger = test_bus.connect("collector").await;
    store(&stranger, MANY..MANY + 3).await;
    store(&collector, MANY + 3..MANY + 5).await;
    for follower in [&mut first, &mut slow] {
        assert_eq!(take(follower, 5).await, (MANY + 1..=MANY + 5).collect::<Vec<_>>());
    }
    let seen = soon("a message", reader.follow(STREAM, MANY + 4).next()).await.unwrap();
    let read = &collector.log(STREAM).read(">", MANY + 4, 1).await.unwrap()[0];
    let same =
        |stored: &mesh_core::Stored| (stored.id.clone(), stored.subject.clone(), stored.time, stored.body.clone());
    assert_eq!(same(&seen), same(read));
    assert_eq!((seen.source.as_deref(), seen.cause.as_ref()), (read.source.as_deref(), read.cause.as_ref()));
}

#[tokio::test(flavor = "multi_thread")]
async fn services_of_one_process_share_a_connection_and_are_ready_only_with_it() {
    let Some(test_bus) = test_bus("services").await else { return };
    let test_bus = test_bus.with_router().await;
    let joint = Joint::connect(&test_bus.settings("joint"), BTreeSet::new(), test_bus.router().clone()).await.unwrap();
    let mut services: Vec<Running> = vec![];
    let mut followers = vec![];
    for name in ["intent-manager", "validator"] {
        let (given, mut taken) = tokio::sync::mpsc::channel(1);
        let start = async move |mesh: Mesh, (): ()| {
            given.send(mesh.follow("INTENT", 1)).await.map_err(|_| anyhow::anyhow!("the test is gone"))
        };
        let joined = mesh_kit::join_sharing(&joint, name, test_bus.settings(name), (), start).await.unwrap();
        followers.push(taken.recv().await.unwrap());
        services.push(joined);
    }
    for service in &services {
        let mesh = service.mesh().clone();
        until("the service is ready", async || mesh.readiness().missing().len(), |missing| *missing == 0).await;
    }
    // One that stops leaves the connection to the others.
    services.pop().unwrap().stop().await;
    let mesh = services[0].mesh().clone();
    assert_eq!(mesh.readiness().missing(), []);
    joint.close().await;
    until(
        "the service knows that the bus is gone",
        async || mesh.readiness().missing(),
        |missing| missing.iter().any(|m| m.condition == "bus"),
    )
    .await;
    for follower in &mut followers {
        soon("the end", follower.next()).await.unwrap_err();
    }
    for service in services {
        service.stop().await;
    }
}

/// A decider that follows its inputs decides each once, over restarts too, and takes over from one that pulled.
#[tokio::test(flavor = "multi_thread")]
async fn inputs_that_are_followed_are_decided_once() {
    let Some(test_bus) = test_bus("inputs").await else { return };
    let test_bus = test_bus.with_router().await;
    let person = test_bus.connect("person").await;
    let verdicts = async || person.log("VALIDATION").read("validation.>", 1, 100).await.unwrap().len();
    let manager = test_bus.connect("intent-manager").await;
    let submit = async |number: u64| {
        let (owner, intent_id) = ("local".to_owned(), format!("toy-{number}"));
        let submitted = IntentSubmitted { owner, intent_id, version: 1, ..IntentSubmitted::default() };
        let id = derived_id(&["toy", &number.to_string()]);
        let message = mesh_core::Outgoing::new(&submitted, id, Timestamp::default()).unwrap();
        let entity = format!("intent.*.*.local.toy-{number}");
        manager
            .writer("INTENT")
            .write(mesh_core::Decision { entity, expected: 0, messages: vec![message] })
            .await
            .unwrap();
    };
    let config = || toy::Config { versions_max: 1 };
    // Pulled, followed, followed again, pulled again.
    let mut expected = 0;
    for (number, alone) in [(0, false), (1, true), (2, true), (3, false)] {
        let (own, router) = (["VALIDATION".to_owned()].into(), test_bus.router().clone());
        let joint = Joint::connect(&test_bus.settings("joint"), own, router).await.unwrap();
        let settings = test_bus.settings("validator");
        let service = if alone {
            mesh_kit::join_sharing(&joint, "validator", settings, config(), toy::start).await.unwrap()
        } else {
            mesh_kit::join("validator", settings, config(), toy::start).await.unwrap()
        };
        for intent in [2 * number, 2 * number + 1] {
            submit(intent).await;
            expected += 1;
        }
        until("every intent is judged", verdicts, |count| *count == expected).await;
        let reading =
            until("nothing is left", async || service.mesh().readiness().missing(), |missing| missing.is_empty());
        reading.await;
        service.stop().await;
        joint.close().await;
        assert_eq!(verdicts().await, expected, "none is judged twice");
    }
}

/// The doc example of this crate, from a command to its page.
#[tokio::test(flavor = "multi_thread")]
async fn the_toy_service_decides_and_shows() {
    let Some(test_bus) = test_bus("toy").await else { return };
    let config = toy::Config { versions_max: 1 };
    let service = mesh_kit::join("validator", test_bus.settings("validator"), config, toy::start).await.unwrap();
    let manager = test_bus.connect("intent-manager").await;
    for version in 1..=2 {
        let (owner, intent_id) = ("local".to_owned(), "toy".to_owned());
        let submitted = IntentSubmitted { owner, intent_id, version, ..IntentSubmitted::default() };
        let id = derived_id(&["toy", &version.to_string()]);
        let message = mesh_core::Outgoing::new(&submitted, id, Timestamp::default()).unwrap();
        let decision = mesh_core::Decision {
            entity: "intent.*.*.local.toy".into(),
            expected: version - 1,
            messages: vec![message],
        };
        manager.writer("INTENT").write(decision).await.unwrap();
    }
    let log = manager.log("INTENT");
    assert_eq!(log.last_sequence().await.unwrap(), 2);
    let person = test_bus.connect("person").await;
    let verdicts = async || {
        let verdicts = person.log("VALIDATION").read("validation.>", 1, 10).await.unwrap();
        verdicts.into_iter().map(|verdict| verdict.message).collect::<Vec<_>>()
    };
    let verdicts = until("both versions are judged", verdicts, |verdicts| verdicts.len() == 2).await;
    assert_eq!(verdicts, ["continuum.validation.v1.IntentAccepted", "continuum.validation.v1.IntentRejected"]);
    let shown = async || mesh_test::page(&service.endpoint(), "/toy/local").await;
    until("the page shows it", shown, |page| {
        page.as_ref().is_some_and(|(status, body)| *status == 200 && body.contains("1\n"))
    })
    .await;
    service.stop().await;
}
