//! The collector on a real bus and a real Zenoh router, with no other rights than the contract's.

#![cfg(test)]

#[path = "mesh/full_disk.rs"]
mod full_disk;
#[path = "mesh/killed.rs"]
mod killed;

use std::time::Duration;

use collector::Config;
use futures::StreamExt as _;
use mesh_bus::{About, Samples, Tail};
use mesh_core::{Decision, Outgoing};
use mesh_kit::{Running, Settings, Stopped};
use mesh_proto::{
    Event, READINGS_SIGNAL, Timestamp,
    cluster::ClusterRegistered,
    intent::{
        ExpectationTarget, GovernedInstance, Intent, IntentAcknowledged, IntentExpectation, NotFulfilledState, State,
    },
    measurement::{
        Condition, ConditionDefined, DefineCondition, MeasurementRefused, MeasurementSet, SetMeasurement, Setting, Side,
    },
    observation::{TargetObserved, ThresholdCrossed},
    telemetry::{
        ConditionsRequest, Entity, Filter, InstanceSample, InventoryRequest, Metric, MetricKind, Packed, ProbeStatus,
        QueryRequest, RangeRequest, Readings, StreamRequest, WatchRequest,
        telemetry_queries_client::TelemetryQueriesClient,
    },
};
use mesh_test::{Database, Kind, TestBus, now, soon, until};
use prost::Message as _;

async fn test_bus(test: &str) -> Option<TestBus> {
    Some(TestBus::start(&format!("collector, {test}")).await?.with_router().await)
}

async fn collector(test_bus: &TestBus) -> Running {
    let config = Config { flush_ms: 200, ..Config::default() };
    mesh_kit::join("collector", test_bus.settings("collector"), config, collector::start).await.unwrap()
}

async fn next_of<E: Event>(tail: &mut Tail) -> E {
    soon(E::MESSAGE, async { tail.next().await.unwrap().event::<E>().unwrap().unwrap() }).await
}

fn acknowledged() -> IntentAcknowledged {
    let target = |name: &str| ExpectationTarget { target_name: name.into(), ..Default::default() };
    let expectation = IntentExpectation {
        expectation_id: "e".into(),
        expectation_targets: vec![target("cpuUsage"), target("ramUsage")],
        ..Default::default()
    };
    let document = Intent { intent_expectations: vec![expectation], observation_period: 1, ..Default::default() };
    let mut state = State::default();
    state.set_not_fulfilled_state(NotFulfilledState::Acknowledged);
    IntentAcknowledged {
        owner: "local".into(),
        intent_id: "intent-1".into(),
        version: 1,
        document: document.encode_to_vec().into(),
        state: Some(state),
        instances: vec![GovernedInstance {
            expectation_id: "e".into(),
            instance_id: "instance-1".into(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Measures like an agent, ten times a second, for as long as it is polled.
async fn measure(samples: &Samples) {
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    loop {
        ticks.tick().await;
        let sample = InstanceSample {
            cluster_id: "edge".into(),
            instance_id: "instance-1".into(),
            owner: "local".into(),
            generation: 1,
            at: Some(now()),
            cpu_percent: 25.0,
            cpu_milli: 500.0,
            memory_bytes: 30_000_000,
            interval_seconds: 0.1,
            replicas_running: 1,
            ..Default::default()
        };
        let about = About { time: now(), ..About::default() };
        samples.publish("continuum/s/n/instance/instance-1", sample.encode_to_vec(), &about).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_become_observations_and_outlive_a_restart() {
    let Some(test_bus) = test_bus("samples").await else { return };
    let running = collector(&test_bus).await;
    let fact = Outgoing::new(&acknowledged(), "fact-1", now()).unwrap();
    let entity = "intent.*.*.local.intent-1".to_owned();
    let decision = Decision { entity, expected: 0, messages: vec![fact] };
    test_bus.connect("intent-manager").await.writer("INTENT").write(decision).await.unwrap();

    let person = test_bus.connect("person").await;
    let mut client = TelemetryQueriesClient::connect(running.endpoint()).await.unwrap();
    let request = StreamRequest { instance_id: "instance-1".into() };
    let mut channel = client.stream(request).await.unwrap().into_inner();
    let mut observations = person.log(TargetObserved::STREAM).tail("observation.>", 1);
    let mut telemetry = person.log(Packed::STREAM).tail("telemetry.>", 1);
    let agent = measure(test_bus.router());
    tokio::pin!(agent);

    let story = async {
        let live = soon("a sample on the channel", channel.next()).await.unwrap().unwrap();
        assert_eq!((live.instance_id.as_str(), live.cpu_percent), ("instance-1", 25.0));
        let packed: Packed = next_of(&mut telemetry).await;
        assert_eq!(packed.samples[0].instance_id, "instance-1");
        // The first whole period in which samples came from its begin on.
        loop {
            let observed: TargetObserved = next_of(&mut observations).await;
            assert_eq!((observed.intent_id.as_str(), observed.version), ("intent-1", 1));
            if observed.targets[0].samples < 8 {
                continue;
            }
            assert_eq!((observed.generation, observed.cluster_id.as_str()), (1, "edge"));
            assert!((observed.targets[0].value - 25.0).abs() < 1e-6);
            assert_eq!((observed.targets[1].value, observed.load_milli), (30.0, 500));
            assert_eq!(observed.begin.unwrap().as_millis() as u64, observed.period * 1_000);
            return;
        }
    };
    tokio::select! {
        () = story => {}
        () = &mut agent => unreachable!("an agent measures for ever"),
    }

    let request = RangeRequest { instance_id: "instance-1".into(), ..Default::default() };
    let before = client.range(request.clone()).await.unwrap().into_inner().samples;
    assert!(before.len() >= 8 && before.is_sorted_by_key(|s| s.at), "{before:?}");
    assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);
    soon("the end of the channel", async { while channel.next().await.is_some_and(|s| s.is_ok()) {} }).await;

    // A new process reads what was stored; what waited to be packed is gone, as samples may.
    let packed = person.log(Packed::STREAM).read("telemetry.>", 1, 1_000).await.unwrap();
    let packed: usize = packed.iter().map(|m| m.event::<Packed>().unwrap().unwrap().samples.len()).sum();
    assert!(packed > 0);
    let again = collector(&test_bus).await;
    let mut client = TelemetryQueriesClient::connect(again.endpoint()).await.unwrap();
    let read_again = async {
        loop {
            let samples = client.range(request.clone()).await.unwrap().into_inner().samples;
            if samples.len() >= packed {
                return samples;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let after = soon("the window read again", read_again).await;
    assert_eq!(after.len(), packed);
    assert!(after.iter().all(|s| (s.cluster_id.as_str(), s.memory_bytes, s.cpu_milli) == ("edge", 30_000_000, 500.0)));
    assert_eq!(soon("the end", again.stop()).await, Stopped::Settled);
}

/// A pack of one node's memory, now.
fn memory(cluster: &str, used: f64) -> Readings {
    let entity = Entity {
        kind: "node".into(),
        id: "n".into(),
        cluster_id: cluster.into(),
        node: "n".into(),
        ..Entity::default()
    };
    let metric = Metric {
        name: "system.memory.usage".into(),
        unit: "MiBy".into(),
        kind: MetricKind::Gauge.into(),
        probe: "memory".into(),
        ..Metric::default()
    };
    Readings {
        cluster_id: cluster.into(),
        at: Some(now()),
        entities: vec![entity],
        metrics: vec![metric],
        metric: vec![0],
        after_ms: vec![0],
        values: vec![used],
        probes: vec![ProbeStatus { probe: "memory".into(), readings: 1, ..ProbeStatus::default() }],
        traffic: vec![],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_are_stored_followed_asked_about_and_watched_for_crossings() {
    let Some(test_bus) = test_bus("readings").await else { return };
    let running = collector(&test_bus).await;
    let mut client = TelemetryQueriesClient::connect(running.endpoint()).await.unwrap();
    let person = test_bus.connect("person").await;
    let registered = ClusterRegistered { cluster_id: "edge".into(), cpu_milli: 1_000, ..Default::default() };
    let agent = test_bus.connect("cluster-agent").await;
    agent.publish(&Outgoing::new(&registered, "registered", now()).unwrap()).await.unwrap();

    // A person sets how the cluster is measured, and what is to be watched.
    let mut facts = person.log(MeasurementSet::STREAM).tail("measurement.>", 1);
    let setting = Setting { interval_ms: 100, ..Setting::default() };
    let set = SetMeasurement { cluster_id: "edge".into(), setting_id: "fast".into(), setting: Some(setting.clone()) };
    let condition = Condition {
        entity_kind: "node".into(),
        metric: "system.memory.usage".into(),
        side: Side::Above.into(),
        threshold: 1e9,
        ..Condition::default()
    };
    let define =
        DefineCondition { owner: "local".into(), condition_id: "full".into(), condition: Some(condition.clone()) };
    let known = async {
        // The decider may not know of the cluster at once.
        for number in 0.. {
            let set = Outgoing::new(&set, format!("set-{number}"), now()).unwrap();
            person.publish(&set).await.unwrap();
            let stored = tail_any(&mut facts).await;
            if let Some(set) = stored.event::<MeasurementSet>().unwrap() {
                return set;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        unreachable!("a range without an end")
    };
    assert_eq!(soon("the setting", known).await.setting, Some(setting.clone()));
    person.publish(&Outgoing::new(&define, "define", now()).unwrap()).await.unwrap();
    let defined: ConditionDefined = next_of(&mut facts).await;
    assert_eq!(defined.condition.unwrap().owner, "local");
    let wrong = DefineCondition { condition: Some(Condition { metric: String::new(), ..condition }), ..define };
    person.publish(&Outgoing::new(&wrong, "wrong", now()).unwrap()).await.unwrap();
    let refused: MeasurementRefused = next_of(&mut facts).await;
    assert_eq!(
        (refused.command_id.as_str(), refused.scope.as_str(), refused.name.as_str()),
        ("wrong", "local", "full")
    );

    // What is decided is watched at once, but not in the same moment.
    let watched = async {
        while client.conditions(ConditionsRequest::default()).await.unwrap().into_inner().conditions.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let begun = now();
    soon("the condition watched", watched).await;
    println!("a condition is watched {} ms after it was defined", now().millis_since(begun));

    // One follows the channel; readings come over Zenoh and over gRPC.
    let filter = Some(Filter { metrics: vec!["system.memory.*".into()], ..Filter::default() });
    let watch = WatchRequest { filter: filter.clone(), ..WatchRequest::default() };
    let mut channel = client.watch(watch).await.unwrap().into_inner();
    let mut telemetry = person.log(Readings::STREAM).tail("telemetry.readings.>", 1);
    let mut crossings = person.log(ThresholdCrossed::STREAM).tail("observation.threshold_crossed.>", 1);
    let about = About { time: now(), ..About::default() };
    let pack = memory("edge", 100.0);
    let key = mesh_proto::sample_key("s", "n", READINGS_SIGNAL, "edge");
    test_bus.router().publish(&key, pack.encode_to_vec(), &about).await.unwrap();
    let live = soon("a value on the channel", channel.next()).await.unwrap().unwrap();
    assert_eq!(live.readings.unwrap().values, [100.0 * 1_048_576.0]);
    let stored: Readings = next_of(&mut telemetry).await;
    assert_eq!((stored.metrics[0].unit.as_str(), stored.values[0]), ("By", 104_857_600.0));
    let broken = Readings { values: vec![], ..memory("edge", 1.0) };
    let sent = vec![memory("edge", 2_000.0), broken];
    let reply = client.ingest(futures::stream::iter(sent)).await.unwrap().into_inner();
    assert_eq!((reply.accepted, reply.refused.values().sum::<u64>()), (1, 1));
    let crossed: ThresholdCrossed = next_of(&mut crossings).await;
    assert_eq!((crossed.raised, crossed.entity_id.as_str(), crossed.value), (true, "n", 2_097_152_000.0));
    let live = soon("the next", channel.next()).await.unwrap().unwrap();
    assert_eq!((live.readings.unwrap().values.len(), live.missed), (1, 0));

    // What was taken in can be asked about: the newest, and over time as soon as it is stored.
    let newest = QueryRequest { filter: filter.clone(), ..QueryRequest::default() };
    let reply = client.query(newest).await.unwrap().into_inner();
    assert_eq!(reply.series[0].values, [2_097_152_000.0]);
    let from = Some(now().plus_millis(-60_000));
    let range = QueryRequest { filter, from, ..QueryRequest::default() };
    let both = async {
        loop {
            let reply = client.query(range.clone()).await.unwrap().into_inner();
            if reply.series.first().is_some_and(|series| series.values.len() == 2) {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(soon("both values stored", both).await.series[0].values, [104_857_600.0, 2_097_152_000.0]);
    let agents = client.inventory(InventoryRequest::default()).await.unwrap().into_inner().agents;
    let agent = agents.iter().find(|agent| agent.cluster_id == "edge").unwrap();
    assert!(agent.up && agent.probes.len() == 1 && agent.settings.get("fast") == Some(&setting), "{agent:?}");
    let reply = client.conditions(ConditionsRequest::default()).await.unwrap().into_inner();
    assert_eq!((reply.conditions.len(), reply.crossings.len()), (1, 1));
    drop(channel);
    assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);
}

async fn tail_any(tail: &mut Tail) -> std::sync::Arc<mesh_core::Stored> {
    soon("a fact", async { std::sync::Arc::new(tail.next().await.unwrap()) }).await
}
/// Packs of these numbers, each with ten samples a hundred milliseconds apart, as a collector publishes them.
async fn publish(test_bus: &TestBus, began: Timestamp, packs: std::ops::Range<i64>) {
    let bus = test_bus.connect("collector").await;
    let of = |pack: i64| {
        let at = |number: i64| began.plus_millis(1_000 * pack + 100 * number);
        let sample = |number| InstanceSample {
            instance_id: "instance-1".into(),
            cluster_id: "edge".into(),
            at: Some(at(number)),
            cpu_percent: number as f64,
            ..InstanceSample::default()
        };
        let event = Packed { cluster_id: "edge".into(), samples: (0..10).map(sample).collect() };
        Outgoing::new(&event, format!("pack-{pack}"), at(9)).unwrap()
    };
    bus.publish_many(packs.map(of).collect()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_rest_in_influxdb_which_may_be_away_or_emptied() {
    let Some(test_bus) = test_bus("samples in InfluxDB").await else { return };
    let Some(mut influx) = Database::start("collector, samples in InfluxDB", Kind::Influxd).await else { return };
    let began = now().plus_millis(-120_000);
    publish(&test_bus, began, 0..20).await;
    let settings = Settings { series_url: influx.url("samples"), ready_lag_max: 5, ..test_bus.settings("collector") };
    // What limits the memory of the embedded engine does not limit a database.
    let config = Config { window_ms: 1, window_bytes_max: 1, ..Config::default() };
    let running = mesh_kit::join("collector", settings, config, collector::start).await.unwrap();
    let client = TelemetryQueriesClient::connect(running.endpoint()).await.unwrap();
    let request = RangeRequest { instance_id: "instance-1".into(), ..Default::default() };
    let count = async || client.clone().range(request.clone()).await.map(|found| found.into_inner().samples.len()).ok();
    until("the samples", count, |found| *found == Some(200)).await;

    influx.kill();
    publish(&test_bus, began, 20..40).await;
    let endpoint = running.endpoint();
    let ready = async || mesh_test::page(&endpoint, "/readyz?verbose").await.unwrap();
    let says = |(status, page): &(u16, String)| *status == 503 && page.contains("store of samples");
    let (_, page) = until("a service that says its store is away", ready, says).await;
    assert!(page.contains("20 messages behind"), "{page}");
    influx.start_again().await;
    until("a store that has caught up", count, |found| *found == Some(400)).await;
    until("a service that is ready", ready, |(status, _)| *status == 200).await;
    influx.start_empty().await;
    until("a store that is filled again", count, |found| *found == Some(400)).await;
    assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);
}
