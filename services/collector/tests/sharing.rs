//! Several collectors as processes of their own, on a real bus and a real Zenoh router: they share the clusters, and go on
//! when one is killed.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "it is measured how soon a killed process is missed")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use mesh_bus::{About, Bus};
use mesh_core::{Decision, Outgoing};
use mesh_proto::{
    Event as _, PACKED_SIGNAL, READINGS_SIGNAL, Timestamp,
    intent::{
        ExpectationTarget, GovernedInstance, Intent, IntentAcknowledged, IntentExpectation, NotFulfilledState, State,
    },
    observation::TargetObserved,
    sample_key,
    telemetry::{
        Entity, Filter, InstanceSample, Metric, Packed, QueryRequest, RangeRequest, Readings,
        telemetry_queries_client::TelemetryQueriesClient,
    },
};
use mesh_test::{Process, TestBus, now, soon, until};
use prost::Message as _;

/// Clusters that are measured.
const CLUSTERS: usize = 24;
/// Between two measurements of each.
const PACE: Duration = Duration::from_millis(100);

/// A collector as a process of its own, once it is ready.
async fn collector(test_bus: &TestBus) -> Process {
    let process = Process::start(test_bus, "collector", env!("CARGO_BIN_EXE_collector"), &[]);
    process.ready().await;
    process
}

fn instance(cluster: usize) -> String {
    format!("instance-{cluster}")
}

/// Cluster, and time in nanoseconds: each is measured once.
type Measured = (String, i128);

/// What is sent, for as long as it is polled: of each cluster a pack of samples and one of readings in turn.
async fn measure(test_bus: &TestBus, sent: &mut BTreeMap<&'static str, Vec<Measured>>) {
    let mut ticks = tokio::time::interval(PACE);
    loop {
        ticks.tick().await;
        for number in 0..CLUSTERS {
            let (cluster_id, at) = (format!("cluster-{number}"), now());
            let sample = InstanceSample {
                cluster_id: cluster_id.clone(),
                instance_id: instance(number),
                owner: "local".into(),
                generation: 1,
                at: Some(at),
                cpu_percent: 25.0,
                cpu_milli: 500.0,
                memory_bytes: 30_000_000,
                interval_seconds: PACE.as_secs_f64(),
                replicas_running: 1,
                ..InstanceSample::default()
            };
            let pack = Packed { cluster_id: cluster_id.clone(), samples: vec![sample] };
            let entity =
                Entity { kind: "node".into(), id: "n".into(), cluster_id: cluster_id.clone(), ..Entity::default() };
            let metric = Metric {
                name: "system.memory.usage".into(),
                unit: "By".into(),
                probe: "host".into(),
                ..Metric::default()
            };
            let readings = Readings {
                cluster_id: cluster_id.clone(),
                at: Some(at),
                entities: vec![entity],
                metrics: vec![metric],
                metric: vec![0],
                after_ms: vec![0],
                values: vec![number as f64],
                ..Readings::default()
            };
            let packs = [(PACKED_SIGNAL, pack.encode_to_vec()), (READINGS_SIGNAL, readings.encode_to_vec())];
            for (signal, body) in packs {
                let key = sample_key("s", "n", signal, &cluster_id);
                let about = About { time: at, ..About::default() };
                test_bus.router().publish(&key, body, &about).await.unwrap();
                sent.entry(signal).or_default().push((cluster_id.clone(), at.as_nanos()));
            }
        }
    }
}

/// What is stored, and how often.
async fn stored(bus: &Bus) -> BTreeMap<&'static str, BTreeMap<Measured, u32>> {
    let log = bus.log(Packed::STREAM);
    let mut found = BTreeMap::<&'static str, BTreeMap<Measured, u32>>::new();
    let mut from = 1;
    loop {
        let page = log.read("telemetry.>", from, 1_000).await.unwrap();
        for message in &page {
            from = message.sequence + 1;
            if let Some(pack) = message.event::<Packed>().unwrap() {
                let of_signal = found.entry(PACKED_SIGNAL).or_default();
                for sample in pack.samples {
                    let at = sample.at.unwrap_or_default().as_nanos();
                    *of_signal.entry((sample.cluster_id, at)).or_default() += 1;
                }
            } else if let Some(pack) = message.event::<Readings>().unwrap() {
                let at = pack.at.unwrap_or_default().as_nanos();
                *found.entry(READINGS_SIGNAL).or_default().entry((pack.cluster_id, at)).or_default() += 1;
            }
        }
        if page.len() < 1_000 {
            return found;
        }
    }
}

fn acknowledged(number: usize) -> IntentAcknowledged {
    let expectation = IntentExpectation {
        expectation_id: "e".into(),
        expectation_targets: vec![ExpectationTarget { target_name: "cpuUsage".into(), ..Default::default() }],
        ..Default::default()
    };
    let document = Intent { intent_expectations: vec![expectation], observation_period: 1, ..Default::default() };
    let mut state = State::default();
    state.set_not_fulfilled_state(NotFulfilledState::Acknowledged);
    IntentAcknowledged {
        owner: "local".into(),
        intent_id: format!("intent-{number}"),
        version: 1,
        document: document.encode_to_vec().into(),
        state: Some(state),
        instances: vec![GovernedInstance {
            expectation_id: "e".into(),
            instance_id: instance(number),
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn collectors_share_the_clusters_and_take_over_from_one_that_is_killed() {
    let Some(test_bus) = TestBus::start("collector, sharing").await else { return };
    let test_bus = test_bus.with_router().await;
    let manager = test_bus.connect("intent-manager").await;
    for number in 0..CLUSTERS {
        let entity = format!("intent.*.*.local.intent-{number}");
        let messages = vec![Outgoing::new(&acknowledged(number), format!("fact-{number}"), now()).unwrap()];
        manager.writer("INTENT").write(Decision { entity, expected: 0, messages }).await.unwrap();
    }
    let person = test_bus.connect("person").await;
    let (mut first, second) = (collector(&test_bus).await, collector(&test_bus).await);
    let mut sent = BTreeMap::new();
    let mut missed = Duration::ZERO;
    let story = async {
        let count = async |of: &Process| of.figure("collector_members", "").await;
        until("two that know each other", async || count(&second).await, |found| *found == members_of(2)).await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        // Both take a part, and leave a part to the other.
        for one in [&first, &second] {
            assert!(one.figure("collector_sharing_total", "\"others\"").await > 0.0);
            assert!(one.figure("collector_samples_total", "\"accepted\"").await > 0.0);
        }
        // A third joins under load.
        let third = collector(&test_bus).await;
        until("three that know each other", async || count(&second).await, |found| *found == members_of(3)).await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(third.figure("collector_samples_total", "\"accepted\"").await > 0.0);
        first.kill();
        let killed = Instant::now();
        until("two that miss the one", async || count(&third).await, |found| *found == members_of(2)).await;
        missed = killed.elapsed();
        tokio::time::sleep(Duration::from_secs(5)).await;
        third
    };
    let third = tokio::select! {
        third = story => third,
        () = measure(&test_bus, &mut sent) => unreachable!("it measures for ever"),
    };
    let total: usize = sent.values().map(Vec::len).sum();
    let count = async || stored(&person).await.values().map(BTreeMap::len).sum::<usize>();
    until("all that was sent", count, |found| *found >= total).await;
    for (signal, found) in stored(&person).await {
        let twice = found.values().filter(|times| **times > 1).count();
        assert_eq!(twice, 0, "{signal}: stored twice, of {}", found.len());
        let lost = sent[signal].iter().filter(|one| !found.contains_key(*one)).count();
        assert_eq!(lost, 0, "{signal}: lost, of {}", sent[signal].len());
    }
    let mut taken_over = 0.0;
    for one in [&second, &third] {
        taken_over += one.figure("collector_sharing_total", "\"taken_over\"").await;
        assert_eq!(one.figure("collector_sharing_total", "\"let_go\"").await, 0.0);
    }
    eprintln!(
        "{total} packs in {CLUSTERS} clusters; a killed collector was missed after {} ms, {taken_over} of its packs were taken over",
        missed.as_millis()
    );

    // Each period of each intent is observed once at most, and few are not because of the changes.
    let observed = person.log(TargetObserved::STREAM).read("observation.>", 1, 10_000).await.unwrap();
    let mut periods = BTreeMap::<(String, u64), u32>::new();
    let mut blind = 0;
    for message in &observed {
        let Some(observed) = message.event::<TargetObserved>().unwrap() else { continue };
        blind += usize::from(
            observed.targets[0].samples == 0
                && observed.begin > Some(begun(&sent))
                && observed.end < Some(ended(&sent)),
        );
        *periods.entry((observed.intent_id, observed.period)).or_default() += 1;
    }
    assert!(periods.values().all(|times| *times == 1), "a period was observed twice");
    let seconds = ended(&sent).millis_since(begun(&sent)) as usize / 1_000;
    assert!(periods.len() > (seconds - 6) * CLUSTERS, "{} periods in {seconds} s", periods.len());
    assert!(blind <= 2 * CLUSTERS, "{blind} of {} periods say that nothing was measured", periods.len());

    // Each answers for all clusters: of the past, and of now.
    for one in [&second, &third] {
        let mut client = TelemetryQueriesClient::connect(one.endpoint().to_owned()).await.unwrap();
        let newest = QueryRequest {
            filter: Some(Filter { entity_kind: "node".into(), ..Filter::default() }),
            ..QueryRequest::default()
        };
        let newest = soon("the newest", client.query(newest)).await.unwrap().into_inner();
        assert_eq!(newest.series.len(), CLUSTERS);
        for number in 0..CLUSTERS {
            let request = RangeRequest { instance_id: instance(number), limit: 10_000, ..RangeRequest::default() };
            let wanted = sent[PACKED_SIGNAL].iter().filter(|(id, _)| *id == format!("cluster-{number}")).count();
            let range = async || client.clone().range(request.clone()).await.unwrap().into_inner().samples.len();
            until("the samples of every cluster", range, |found| *found >= wanted).await;
        }
    }
}

fn members_of(count: u32) -> f64 {
    f64::from(count)
}

fn begun(sent: &BTreeMap<&'static str, Vec<Measured>>) -> Timestamp {
    Timestamp::from_nanos(sent[PACKED_SIGNAL][0].1).plus_millis(1_000)
}

fn ended(sent: &BTreeMap<&'static str, Vec<Measured>>) -> Timestamp {
    sent[PACKED_SIGNAL].last().map_or(Timestamp::default(), |(_, at)| Timestamp::from_nanos(*at))
}
