use std::collections::BTreeMap;

use mesh_proto::{
    Event,
    intent::{ExpectationTarget, IntentExpectation},
    json,
    measurement::{Condition, Side},
    telemetry::{Entity, Metric},
};
use proptest::prelude::*;

use super::*;

const INSTANCE: &str = "instance-1";

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(1_000_000_000 + millis)
}

fn stored(event: &impl Event, time: Timestamp) -> Stored {
    mesh_test::stored(event, 1, time)
}

fn acknowledged_of(intent: &str, version: u64, period_s: u32, instances: &[&str]) -> IntentAcknowledged {
    let target = |name: &str| ExpectationTarget { target_name: name.into(), ..Default::default() };
    let expectation = |id: &str| IntentExpectation {
        expectation_id: id.into(),
        expectation_targets: vec![target("cpuUsage"), target("ramUsage")],
        ..Default::default()
    };
    let document = Intent {
        intent_expectations: instances.iter().map(|i| expectation(&format!("of-{i}"))).collect(),
        observation_period: period_s,
        ..Default::default()
    };
    let governed = |instance: &&str| GovernedInstance {
        expectation_id: format!("of-{instance}"),
        instance_id: (*instance).to_owned(),
        workload: "w@1.0.0".into(),
        ..Default::default()
    };
    IntentAcknowledged {
        owner: "local".into(),
        intent_id: intent.into(),
        version,
        document: document.encode_to_vec().into(),
        state: Some(state(NotFulfilledState::Acknowledged)),
        instances: instances.iter().map(governed).collect(),
        ..Default::default()
    }
}

fn acknowledged(version: u64, period_s: u32) -> IntentAcknowledged {
    acknowledged_of("intent-1", version, period_s, &[INSTANCE])
}

/// The same of an intent that runs.
fn running(fact: IntentAcknowledged) -> IntentAcknowledged {
    IntentAcknowledged { state: Some(state(NotFulfilledState::Compliant)), ..fact }
}

fn state(state: NotFulfilledState) -> State {
    State { not_fulfilled_state: state.into(), ..Default::default() }
}

fn changed(to: NotFulfilledState) -> IntentStateChanged {
    let (owner, intent_id) = ("local".into(), "intent-1".into());
    IntentStateChanged { owner, intent_id, version: 1, to: Some(state(to)), ..Default::default() }
}

fn sample(millis: i64, cpu_percent: f64) -> InstanceSample {
    InstanceSample {
        cluster_id: "edge".into(),
        instance_id: INSTANCE.into(),
        owner: "local".into(),
        generation: 1,
        at: Some(at(millis)),
        cpu_percent,
        cpu_milli: cpu_percent * 20.0,
        memory_bytes: 50_000_000 + millis as u64,
        interval_seconds: 1.0,
        replicas_running: 1,
        ..Default::default()
    }
}

fn give(collector: &mut Collector, sample: &InstanceSample) -> Vec<Derived> {
    let key = format!("continuum/site/node/instance/{}", sample.instance_id);
    collector.sample(&key, &sample.encode_to_vec().into())
}

/// A collector that started at 0 and watches an intent with this period, acknowledged at 0.
/// With an intent that waits to be placed.
fn waiting(period_s: u32) -> Collector {
    let mut collector = Collector::new(Limits::default());
    collector.tick(at(0));
    collector.apply(&stored(&acknowledged(1, period_s), at(0)));
    collector
}

/// With an intent that runs.
fn watching(period_s: u32) -> Collector {
    let mut collector = waiting(period_s);
    collector.apply(&stored(&changed(NotFulfilledState::Compliant), at(0)));
    collector
}

fn observed(derived: Vec<Derived>) -> Vec<TargetObserved> {
    let observations = derived.into_iter().filter(|d| d.event.message() == TargetObserved::MESSAGE);
    observations.map(|d| TargetObserved::decode(d.event.body()).unwrap()).collect()
}

fn measured(derived: Vec<Derived>) -> Vec<Packed> {
    let packs = derived.into_iter().filter(|d| d.event.message() == Packed::MESSAGE);
    packs.map(|d| Packed::decode(d.event.body()).unwrap()).collect()
}

fn target<'a>(observation: &'a TargetObserved, name: &str) -> &'a ObservedTarget {
    observation.targets.iter().find(|t| t.target_name == name).unwrap()
}

#[test]
fn what_waits_to_be_placed_is_not_observed_and_what_runs_is() {
    let mut collector = waiting(1);
    assert_eq!(observed(collector.tick(at(10_300))), vec![], "no cluster has taken it");
    collector.apply(&stored(&changed(NotFulfilledState::Compliant), at(10_300)));
    let found = observed(collector.tick(at(11_300)));
    let [observation] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(target(observation, "cpuUsage").samples, 0, "it runs and is not measured");
    // What was measured once is said to be no longer, whatever its intent waits for.
    collector.apply(&stored(&changed(NotFulfilledState::Acknowledged), at(11_400)));
    assert_eq!(observed(collector.tick(at(12_300))), vec![]);
    give(&mut collector, &sample(12_400, 10.0));
    let samples: Vec<_> = observed(collector.tick(at(14_300))).iter().map(|o| target(o, "cpuUsage").samples).collect();
    assert_eq!(samples, [1, 0]);
}

#[test]
fn a_period_is_judged_once_when_it_and_its_grace_are_over() {
    let mut collector = watching(2);
    for (millis, percent) in [(400, 10.0), (1_400, 30.0), (2_000, 50.0)] {
        assert!(observed(give(&mut collector, &sample(millis, percent))).is_empty());
    }
    assert_eq!(observed(collector.tick(at(2_299))), vec![]);
    let found = observed(collector.tick(at(2_300)));
    assert_eq!(observed(collector.tick(at(2_400))), vec![]);
    let [observation] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((observation.begin, observation.end), (Some(at(0)), Some(at(2_000))));
    assert_eq!(observation.period, 500_000);
    assert_eq!((observation.generation, observation.cluster_id.as_str()), (1, "edge"));
    // 0.4 s at 10 %, 1 s at 30 %, 1 s at 50 %: a sample counts for the part of its interval inside the period.
    let mean = (0.4 * 10.0 + 30.0 + 50.0) / 2.4;
    let cpu = target(observation, "cpuUsage");
    assert!((cpu.value - mean).abs() < 1e-6, "{}", cpu.value);
    assert_eq!((cpu.samples, cpu.expectation_id.as_str()), (3, "of-instance-1"));
    assert_eq!(observation.load_milli, (mean * 20.0).round() as u32);
    assert_eq!(target(observation, "ramUsage").value, 50.002);
    assert_eq!(observation.memory_bytes, 50_002_000);
}

#[test]
fn a_period_without_samples_says_so_for_every_target() {
    let mut collector = watching(1);
    let found = observed(collector.tick(at(1_300)));
    let samples: Vec<u32> = found[0].targets.iter().map(|t| t.samples).collect();
    assert_eq!((samples, found[0].generation, found[0].cluster_id.as_str()), (vec![0, 0], 0, ""));
}

/// What went through to an instance up to a time, as a gateway counted it.
fn went(millis: i64, cluster: &str, kind: &str, route: RouteTraffic) -> Bytes {
    let entity = Entity { kind: kind.into(), id: INSTANCE.into(), cluster_id: cluster.into(), ..Entity::default() };
    let metric = Metric {
        name: "http.server.request.count".into(),
        unit: "{request}".into(),
        kind: mesh_proto::telemetry::MetricKind::Counter.into(),
        probe: "traffic".into(),
        ..Metric::default()
    };
    let pack = Readings {
        cluster_id: cluster.into(),
        at: Some(at(millis)),
        entities: vec![entity],
        metrics: vec![metric],
        metric: vec![0],
        after_ms: vec![0],
        values: vec![millis as f64],
        traffic: vec![route],
        ..Readings::default()
    };
    assert!(pack.fits());
    pack.encode_to_vec().into()
}

fn route(requests: u64, errors: u64, seconds: f64) -> RouteTraffic {
    let (seconds, answers) = (vec![seconds], vec![requests]);
    RouteTraffic { requests, errors, seconds, answers, ..RouteTraffic::default() }
}

#[test]
fn response_times_and_errors_are_those_of_the_requests_of_the_period() {
    let mut collector = Collector::new(Limits::default());
    collector.tick(at(0));
    let mut fact = acknowledged(1, 10);
    let mut intent = Intent::decode(fact.document).unwrap();
    let names = ["cpuUsage", "responseTimeP50", "responseTimeP95", "errorRate"];
    intent.intent_expectations[0].expectation_targets =
        names.map(|name| ExpectationTarget { target_name: name.into(), ..Default::default() }).to_vec();
    fact.document = intent.encode_to_vec().into();
    collector.apply(&stored(&fact, at(0)));
    let mut step = |packs: &[(&str, Bytes)], end: i64| {
        collector.tick(at(end - 5_000));
        give(&mut collector, &sample(end - 5_000, 10.0));
        for (cluster, pack) in packs {
            collector.sample(&format!("continuum/{cluster}/gateway/readings/{cluster}"), pack);
        }
        let mut found = observed(collector.tick(at(end + 300)));
        assert_eq!(found.len(), 1);
        found.remove(0)
    };
    // Two turns; one comes twice. What is of another cluster, or of no route, does not count.
    let turns = [
        ("edge", went(4_000, "edge", "route", route(90, 0, 0.02))),
        ("edge", went(5_000, "edge", "route", route(10, 4, 0.5))),
        ("edge", went(5_000, "edge", "route", route(10, 4, 0.5))),
        ("cloud", went(5_000, "cloud", "route", route(1_000, 1_000, 9.0))),
        ("edge", went(6_000, "edge", "application", route(1_000, 1_000, 9.0))),
    ];
    let found = step(&turns, 10_000);
    let of = |name: &str| target(&found, name);
    assert!((of("responseTimeP50").value / 20.0 - 1.0).abs() <= 0.02, "{found:?}");
    assert!((of("responseTimeP95").value / 500.0 - 1.0).abs() <= 0.02, "{found:?}");
    assert_eq!((of("errorRate").value, of("errorRate").samples, of("cpuUsage").samples), (4.0, 100, 1));
    assert_eq!(of("errorRate").provenance(), Provenance::Measured);
    // Without requests there are no values: neither a quick answer nor a fault.
    let found = step(&[], 20_000);
    for name in &names[1..] {
        assert_eq!((target(&found, name).samples, target(&found, name).value), (0, 0.0), "{name}");
        assert_eq!(target(&found, name).provenance(), Provenance::Unspecified);
    }
    assert_eq!(target(&found, "cpuUsage").samples, 1);
    // Nobody answered: there are errors, and no times.
    let failed = RouteTraffic { seconds: vec![], answers: vec![], ..route(3, 3, 1.0) };
    let found = step(&[("edge", went(25_000, "edge", "route", failed))], 30_000);
    assert_eq!((target(&found, "errorRate").value, target(&found, "responseTimeP95").samples), (100.0, 0));
    // What ends in a judged period is late.
    step(&[("edge", went(29_999, "edge", "route", route(5, 5, 1.0)))], 40_000);
    assert_eq!(collector.counts().late, 1);
}

#[test]
fn the_first_judged_period_is_whole_after_acknowledgement_and_after_start() {
    let mut collector = Collector::new(Limits::default());
    // Known from the past, as after a restart: what came before the start is not judged.
    collector.apply(&stored(&running(acknowledged(1, 2)), at(-10_000)));
    collector.tick(at(700));
    give(&mut collector, &sample(900, 10.0));
    assert_eq!(observed(collector.tick(at(3_900))), vec![]);
    assert_eq!(observed(collector.tick(at(4_300)))[0].begin, Some(at(2_000)));
    // Acknowledged in the middle of a period.
    let other = acknowledged_of("intent-2", 1, 2, &["instance-2"]);
    collector.apply(&stored(&running(other), at(4_500)));
    let found = observed(collector.tick(at(8_300)));
    let begins: Vec<_> = found.iter().map(|o| (o.intent_id.as_str(), o.begin.unwrap())).collect();
    assert_eq!(begins, [("intent-1", at(4_000)), ("intent-1", at(6_000)), ("intent-2", at(6_000))]);
    assert_eq!(collector.counts().late, 0, "what came before the first judged period is not late");
}

#[test]
fn no_period_is_judged_twice_however_often_a_version_is_acknowledged() {
    let mut collector = watching(1);
    assert_eq!(observed(collector.tick(at(1_300))).len(), 1);
    collector.apply(&stored(&running(acknowledged(1, 1)), at(-5_000)));
    assert_eq!(observed(collector.tick(at(1_400))), vec![]);
    let found = observed(collector.tick(at(2_300)));
    assert_eq!(found.iter().map(|o| o.begin).collect::<Vec<_>>(), [Some(at(1_000))]);
}

#[test]
fn suspended_intents_are_not_watched_and_resumed_ones_are() {
    let mut collector = watching(1);
    collector.apply(&stored(&changed(NotFulfilledState::Suspended), at(100)));
    assert_eq!((observed(collector.tick(at(3_300))), collector.watched()), (vec![], 0));
    collector.apply(&stored(&changed(NotFulfilledState::Compliant), at(3_400)));
    assert_eq!(observed(collector.tick(at(4_300))), vec![]);
    assert_eq!(observed(collector.tick(at(5_300)))[0].begin, Some(at(4_000)));
    collector.apply(&stored(&changed(NotFulfilledState::Degraded), at(5_300)));
    assert_eq!(collector.watched(), 1);
    collector.apply(&stored(&changed(NotFulfilledState::Terminated), at(5_400)));
    assert_eq!(observed(collector.tick(at(9_300))), vec![]);
    assert!(collector.watches.is_empty() && collector.watched_by.is_empty());
    let deactivated = IntentAcknowledged { state: Some(state(NotFulfilledState::Suspended)), ..acknowledged(2, 1) };
    collector.apply(&stored(&deactivated, at(9_400)));
    assert_eq!((observed(collector.tick(at(19_300))), collector.watched()), (vec![], 0));
}

#[test]
fn only_the_newest_generation_of_a_period_counts() {
    let mut collector = watching(4);
    let moved = |millis, percent| InstanceSample {
        generation: 2,
        cluster_id: "cloud".into(),
        memory_bytes: 7_000_000,
        ..sample(millis, percent)
    };
    give(&mut collector, &sample(1_000, 90.0));
    give(&mut collector, &moved(3_000, 5.0));
    give(&mut collector, &sample(2_000, 90.0));
    give(&mut collector, &moved(4_000, 7.0));
    let found = observed(collector.tick(at(4_300)));
    assert_eq!((found[0].generation, found[0].cluster_id.as_str()), (2, "cloud"));
    assert_eq!((target(&found[0], "cpuUsage").value, target(&found[0], "cpuUsage").samples), (6.0, 2));
    assert_eq!(target(&found[0], "ramUsage").value, 7.0);
    assert_eq!(collector.counts().superseded, 1);
}

#[test]
fn a_late_sample_is_counted_and_changes_nothing_but_is_still_telemetry() {
    let mut collector = watching(1);
    give(&mut collector, &sample(500, 10.0));
    assert_eq!(observed(collector.tick(at(1_300))).len(), 1);
    give(&mut collector, &sample(600, 10.0));
    assert_eq!(collector.counts().late, 1);
    let next = observed(collector.tick(at(2_300)));
    assert_eq!(target(&next[0], "cpuUsage").samples, 0);
    let packed = measured(collector.tick(at(9_000)));
    assert_eq!(packed.iter().map(|m| m.samples.len()).sum::<usize>(), 0, "flushed with the first");
    assert_eq!(collector.counts().accepted, 2);
}

#[test]
fn what_is_no_sample_or_comes_from_the_future_is_refused_and_counted() {
    let mut collector = watching(1);
    let bad = [
        InstanceSample { cpu_percent: f64::NAN, ..sample(10, 1.0) },
        InstanceSample { cpu_milli: f64::INFINITY, ..sample(10, 1.0) },
        InstanceSample { io_read_rate: -1.0, ..sample(10, 1.0) },
        InstanceSample { interval_seconds: 1e9, ..sample(10, 1.0) },
        InstanceSample { cluster_id: "a.b".into(), ..sample(10, 1.0) },
        InstanceSample { at: None, ..sample(10, 1.0) },
    ];
    for sample in &bad {
        assert!(give(&mut collector, sample).is_empty());
    }
    collector.sample("continuum/site/node/instance/other", &sample(10, 1.0).encode_to_vec().into());
    collector.sample("continuum/site/node/instance/x", &Bytes::from_static(&[0xff, 0xff]));
    assert_eq!(collector.counts(), Counts { invalid: 8, ..Default::default() });
    give(&mut collector, &sample(5_001, 1.0));
    assert_eq!((collector.counts().ahead, collector.counts().accepted), (1, 0));
    give(&mut collector, &sample(5_000, 1.0));
    give(&mut collector, &sample(5_000, 1.0));
    assert_eq!((collector.counts().accepted, collector.counts().duplicate), (1, 1));
    let mut unstarted = Collector::new(Limits::default());
    give(&mut unstarted, &sample(0, 1.0));
    assert_eq!(unstarted.counts(), Counts { early: 1, ..Default::default() });
    let broken = Stored { body: Bytes::from_static(&[0xff]), ..stored(&acknowledged(1, 1), at(0)) };
    collector.apply(&broken);
    assert_eq!(collector.counts().undecodable, 1);
}

#[test]
fn single_samples_are_packed_each_second_and_packs_as_they_come() {
    let mut collector = watching(60);
    collector.limits.pack_max = 60;
    for millis in (0..590).rev().map(|n| n + 10).step_by(10) {
        assert!(give(&mut collector, &sample(millis, 1.0)).is_empty());
    }
    let full = give(&mut collector, &sample(600, 1.0));
    assert_eq!(full[0].at, at(600), "the time of the newest");
    let pack = measured(full).remove(0);
    let times: Vec<_> = pack.samples.iter().map(|s| s.at.unwrap()).collect();
    assert_eq!((times.len(), times.is_sorted()), (60, true));
    give(&mut collector, &sample(700, 1.0));
    let pack = |samples| Packed { cluster_id: "edge".into(), samples }.encode_to_vec().into();
    let other = InstanceSample { instance_id: "other".into(), ..sample(700, 1.0) };
    let elsewhere = InstanceSample { cluster_id: "cloud".into(), ..sample(700, 1.0) };
    let stored =
        measured(collector.sample("continuum/site/node/instances/edge", &pack(vec![other.clone(), sample(700, 1.0)])));
    assert_eq!((stored.len(), stored[0].samples.len()), (1, 2), "with what waited");
    assert_eq!(collector.counts().duplicate, 1, "alone or in a pack, it is one sample");
    collector.sample("continuum/site/node/instances/edge", &pack(vec![other, elsewhere.clone()]));
    assert_eq!(collector.counts().invalid, 1, "a pack is of one cluster");
    give(&mut collector, &elsewhere);
    assert!(measured(collector.tick(at(900))).is_empty(), "first second");
    let packs = measured(collector.tick(at(1_000)));
    let sizes: Vec<_> = packs.iter().map(|pack| (pack.cluster_id.as_str(), pack.samples.len())).collect();
    assert_eq!(sizes, [("cloud", 1)]);
    assert!(measured(collector.tick(at(9_000))).is_empty(), "nothing waits");
}

#[test]
fn a_pack_is_passed_on_as_it_came_if_all_of_it_was_taken_in() {
    let mut collector = watching(60);
    let of = |id: &str, millis| InstanceSample { instance_id: id.into(), ..sample(millis, 1.0) };
    let pack = |samples: &[InstanceSample]| -> Bytes {
        Packed { cluster_id: "edge".into(), samples: samples.to_vec() }.encode_to_vec().into()
    };
    let mut stored = |body: &Bytes| {
        let derived = collector.sample("continuum/site/node/instances/edge", body);
        let derived = derived.into_iter().find(|d| d.event.message() == Packed::MESSAGE).unwrap();
        assert_eq!(derived.event.subject().unwrap(), "telemetry.packed.v1.edge");
        (derived.event.body(), derived.at)
    };
    let came = pack(&[of("b", 20), of("a", 10)]);
    assert_eq!(stored(&came), (came, at(20)), "in the order of its sender");
    let half = pack(&[of("a", 10), of("a", 30)]);
    assert_eq!(stored(&half).0, pack(&[of("a", 30)]), "without what came before");
    let unknown: Bytes = [&pack(&[of("a", 40)])[..], &[0x7a, 1, 0]].concat().into();
    assert_eq!(stored(&unknown).0, pack(&[of("a", 40)]), "without what nobody reads");
    let dropped = pack(&[InstanceSample { dropped: 7, ..of("a", 50) }]);
    assert_eq!(stored(&dropped).0, pack(&[of("a", 50)]));
}

#[test]
fn one_instance_serves_every_intent_that_governs_it() {
    let mut collector = watching(1);
    collector.apply(&stored(&running(acknowledged_of("intent-2", 1, 2, &[INSTANCE, "instance-2"])), at(0)));
    give(&mut collector, &sample(500, 10.0));
    let found = observed(collector.tick(at(2_300)));
    let seen: Vec<_> =
        found.iter().map(|o| (o.intent_id.as_str(), o.instance_id.as_str(), target(o, "cpuUsage").samples)).collect();
    let expected = [
        ("intent-1", INSTANCE, 1),
        ("intent-1", INSTANCE, 0),
        ("intent-2", INSTANCE, 1),
        ("intent-2", "instance-2", 0),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn a_target_that_cannot_be_measured_has_no_samples() {
    let mut collector = watching(1);
    let mut fact = acknowledged(2, 1);
    let mut intent = Intent::decode(fact.document.clone()).unwrap();
    intent.intent_expectations[0].expectation_targets[1].target_name = "powerUsage".into();
    fact.document = intent.encode_to_vec().into();
    collector.apply(&stored(&fact, at(0)));
    give(&mut collector, &sample(500, 10.0));
    let found = observed(collector.tick(at(1_300)));
    assert_eq!((found[0].version, target(&found[0], "powerUsage").samples), (2, 0));
    assert_eq!(target(&found[0], "cpuUsage").samples, 1);
}

#[test]
fn every_value_states_where_it_comes_from() {
    let mut collector = watching(1);
    let cluster = ClusterRegistered {
        cluster_id: "edge".into(),
        cpu_milli: 2_000,
        labels: BTreeMap::from([("green-percent".to_owned(), "80".to_owned())]),
        ..Default::default()
    };
    collector.apply(&stored(&cluster, at(0)));
    let mut fact = acknowledged(2, 1);
    let mut intent = Intent::decode(fact.document.clone()).unwrap();
    let names = ["cpuUsage", "compEnergyConsumption", "greenEnergyConsumptionRate", "powerUsage"];
    let first = intent.intent_expectations[0].expectation_targets[0].clone();
    intent.intent_expectations[0].expectation_targets =
        names.map(|name| ExpectationTarget { target_name: name.into(), ..first.clone() }).to_vec();
    fact.document = intent.encode_to_vec().into();
    collector.apply(&stored(&fact, at(0)));
    let sources = |collector: &mut Collector, second: i64, provenance: Provenance| {
        give(collector, &InstanceSample { provenance: provenance.into(), ..sample(second * 1_000 + 500, 10.0) });
        let found = observed(collector.tick(at(second * 1_000 + 1_300))).remove(0);
        names.map(|name| target(&found, name).provenance())
    };
    use Provenance::{Declared, Measured as Metered, Modelled, Unspecified};
    assert_eq!(sources(&mut collector, 0, Metered), [Metered, Modelled, Declared, Unspecified]);
    assert_eq!(sources(&mut collector, 1, Modelled), [Modelled, Modelled, Declared, Unspecified], "a simulated load");
    assert_eq!(sources(&mut collector, 2, Unspecified)[0], Metered, "its sender measured it, in an earlier release");
    let silent = observed(collector.tick(at(4_300))).remove(0);
    assert_eq!(target(&silent, "cpuUsage").provenance(), Unspecified, "no value, no source");
}

#[test]
fn after_time_jumped_only_the_newest_periods_are_judged() {
    let mut collector = watching(1);
    let found = observed(collector.tick(at(3_600_300)));
    assert_eq!((found.len(), collector.counts().periods_skipped), (10, 3_590));
    assert_eq!(found[0].begin, Some(at(3_590_000)));
}

#[test]
fn every_derived_event_has_a_subject_and_an_id_of_its_own() {
    let mut collector = watching(1);
    let mut ids = BTreeMap::new();
    for second in 0..20 {
        give(&mut collector, &sample(second * 1_000 + 500, 1.0));
        for derived in collector.tick(at(second * 1_000 + 1_300)) {
            derived.event.subject().unwrap();
            assert!(json::to_value(derived.event.message(), &derived.event.body()).unwrap().is_object());
            assert_eq!(ids.insert(derived.id, ()), None);
        }
    }
    assert!(ids.len() >= 38, "{}", ids.len());
}

/// The mean a reader would compute from the samples, in floating point, one after another.
fn naive(samples: &[InstanceSample], begin: i64, end: i64) -> Option<(u32, f64, u64, u64)> {
    let millis = |s: &InstanceSample| s.at.unwrap().millis_since(at(0));
    let inside: Vec<_> = samples.iter().filter(|s| begin < millis(s) && millis(s) <= end).collect();
    let newest = inside.iter().map(|s| (s.generation, s.cluster_id.clone())).max()?;
    let of = inside.iter().filter(|s| (s.generation, s.cluster_id.clone()) == newest);
    let (mut sum, mut weight, mut plain, mut count, mut memory) = (0.0, 0.0, 0.0, 0, 0);
    for sample in of {
        let inside = sample.interval_seconds.min((millis(sample) - begin) as f64 / 1e3);
        sum += sample.cpu_percent * inside;
        plain += sample.cpu_percent;
        weight += inside;
        count += 1;
        memory = memory.max(sample.memory_bytes);
    }
    let mean = if weight > 0.0 { sum / weight } else { plain / f64::from(count) };
    Some((count, mean, memory, newest.0))
}

fn any_sample() -> impl Strategy<Value = InstanceSample> {
    (0i64..20_000, 1u64..4, 0u8..2, 0.0f64..200.0, 0u64..1_000_000_000, 0i64..3_000).prop_map(
        |(millis, generation, cluster, cpu_percent, memory_bytes, interval_ms)| InstanceSample {
            generation,
            cluster_id: format!("cluster-{cluster}"),
            memory_bytes,
            interval_seconds: interval_ms as f64 / 1e3,
            ..sample(millis, cpu_percent)
        },
    )
}

/// Distinct samples in order of time.
fn any_samples() -> impl Strategy<Value = Vec<InstanceSample>> {
    prop::collection::vec(any_sample(), 0..60).prop_map(|samples| {
        let distinct: BTreeMap<_, _> =
            samples.into_iter().map(|s| ((s.at, s.generation, s.cluster_id.clone()), s)).collect();
        distinct.into_values().collect()
    })
}

/// What is observed when each sample comes this many milliseconds after its time, some of them twice.
fn play(samples: &[InstanceSample], delays: &[i64], period_s: u32) -> Vec<TargetObserved> {
    let mut collector = watching(period_s);
    let mut arrivals = BTreeMap::<i64, Vec<&InstanceSample>>::new();
    for (number, sample) in samples.iter().enumerate() {
        let delay = delays[number % delays.len()];
        let time = sample.at.unwrap().millis_since(at(0)) + delay;
        arrivals.entry(time).or_default().push(sample);
        if delay % 3 == 0 {
            arrivals.entry(time + delay / 4).or_default().push(sample);
        }
    }
    let mut found = vec![];
    for millis in 0..24_000 {
        if millis % 50 == 0 {
            found.extend(observed(collector.tick(at(millis))));
        }
        for sample in arrivals.get(&millis).into_iter().flatten() {
            found.extend(observed(give(&mut collector, sample)));
        }
    }
    assert_eq!(collector.counts().late, 0);
    found
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn a_period_says_what_a_reader_would_compute_from_all_its_samples(
        samples in any_samples(),
        delays in prop::collection::vec(0i64..200, 1..9),
        period_s in 1u32..7,
    ) {
        let found = play(&samples, &delays, period_s);
        let length = i64::from(period_s) * 1_000;
        let begin_of = |o: &TargetObserved| o.begin.unwrap().millis_since(at(0));
        // Periods are aligned to 1970, so the first one after the start begins some way after it.
        let offset = (length - at(0).as_millis() % length) % length;
        let begins: Vec<i64> = found.iter().map(begin_of).collect();
        let expected: Vec<i64> = (0..).map(|n| offset + n * length).take_while(|b| b + length + 300 <= 23_950).collect();
        prop_assert_eq!(&begins, &expected, "each period once, in order, none left out");
        for observation in &found {
            let begin = begin_of(observation);
            prop_assert_eq!(observation.period as i64 * length, at(begin).as_millis());
            let (cpu, ram) = (target(observation, "cpuUsage"), target(observation, "ramUsage"));
            match naive(&samples, begin, begin + length) {
                None => prop_assert_eq!((cpu.samples, ram.samples, observation.generation), (0, 0, 0)),
                Some((count, mean, memory, generation)) => {
                    prop_assert_eq!((cpu.samples, ram.samples, observation.generation), (count, count, generation));
                    prop_assert!((cpu.value - mean).abs() < 1e-5, "{} is not {mean}", cpu.value);
                    prop_assert_eq!((ram.value, observation.memory_bytes), (memory as f64 / 1e6, memory));
                }
            }
        }
    }

    #[test]
    fn the_order_in_which_samples_come_within_the_grace_changes_nothing(
        samples in any_samples(),
        one in prop::collection::vec(0i64..200, 1..9),
        other in prop::collection::vec(0i64..200, 1..9),
        period_s in 1u32..7,
    ) {
        prop_assert_eq!(play(&samples, &one, period_s), play(&samples, &other, period_s));
    }

    #[test]
    fn whatever_comes_memory_stays_within_the_limits(
        steps in prop::collection::vec((0u8..9, 0i64..30_000, 0u8..3, 0i64..400), 1..400),
    ) {
        let limits = Limits {
            instances_max: 4, remembered_max: 10, feed_max: 20, pack_max: 5, idle_ms: 15_000, ..Limits::default()
        };
        let mut collector = Collector::new(limits);
        collector.tick(at(0));
        collector.apply(&stored(&acknowledged_of("intent-1", 1, 1, &["i0", "i1", "i2"]), at(0)));
        let (mut now, mut given) = (0, 0);
        for (instance, millis, cluster, step) in steps {
            let sample = InstanceSample {
                instance_id: format!("i{instance}"),
                cluster_id: format!("c{cluster}"),
                ..sample(millis, 1.0)
            };
            let derived = give(&mut collector, &sample);
            given += 1;
            now += step;
            let ticked = collector.tick(at(now));
            for pack in measured(derived).into_iter().chain(measured(ticked)) {
                prop_assert!(pack.samples.len() <= 5);
            }
            let Counts { accepted, duplicate, ahead, invalid, early, over_limit, .. } = collector.counts();
            prop_assert_eq!(accepted + duplicate + ahead + invalid + early + over_limit, given);
            prop_assert!(collector.tracks.len() <= 4);
            prop_assert!(collector.tracks.values().all(|t| t.remembered.len() <= 10));
            prop_assert!(collector.packs.len() <= 4 * 3);
            let in_feed: usize = (0..9).map(|i| collector.newest(&format!("i{i}")).count()).sum();
            prop_assert!(in_feed <= 20);
            let open = |w: &Watch| w.instances.values().map(|i| i.open.len()).max().unwrap_or(0);
            // Periods of 1 s between the oldest not judged and 5 s ahead.
            prop_assert!(collector.watches.values().map(open).all(|open| open <= 8));
        }
    }
}

#[test]
fn instances_that_come_and_go_leave_room_for_others() {
    let mut collector = Collector::new(Limits { instances_max: 1_000, ..Limits::default() });
    collector.tick(at(0));
    let of = |number: i64, millis| InstanceSample { instance_id: format!("i{number}"), ..sample(millis, 1.0) };
    for second in 1..400 {
        // Ten come each second, and each stays for five.
        for number in (second * 10 - 50).max(0)..second * 10 {
            give(&mut collector, &of(number, second * 1_000));
        }
        collector.tick(at(second * 1_000));
    }
    assert_eq!(collector.counts().over_limit, 0);
    assert!(collector.tracks.len() <= 1_000 && collector.tracks.contains_key("i3980"));
    // An old sample of one that left may have been judged: it is not again.
    let before = collector.tracks.contains_key("i7");
    give(&mut collector, &of(7, 5_000));
    let again = collector.tracks.get("i7").and_then(|track| track.forgotten);
    assert!(!before && again.is_some_and(|nanos| i128::from(nanos) > at(5_000).as_nanos()), "{again:?}");
    // Those that are all there stay, and another has to wait.
    let mut full = Collector::new(Limits { instances_max: 3, ..Limits::default() });
    for second in 0..100 {
        full.tick(at(second * 1_000));
        for number in 0..4 {
            give(&mut full, &of(number, second * 1_000));
        }
    }
    assert_eq!((full.counts().over_limit, full.tracks.len()), (100, 3));
}

#[test]
fn readings_are_stored_at_once_followed_and_shown_to_conditions() {
    let mut collector = Collector::new(Limits::default());
    let condition = Condition {
        owner: "local".into(),
        condition_id: "hot".into(),
        entity_kind: "node".into(),
        metric: "hw.temperature".into(),
        side: Side::Above.into(),
        threshold: 80.0,
        ..Condition::default()
    };
    let defined = ConditionDefined {
        owner: "local".into(),
        condition_id: condition.condition_id.clone(),
        condition: Some(condition),
        ..ConditionDefined::default()
    };
    collector.apply(&Stored { stream: "MEASUREMENT".into(), ..stored(&defined, at(0)) });
    collector.tick(at(0));
    let reading = |millis, celsius| {
        let pack = Readings {
            cluster_id: "edge".into(),
            at: Some(at(millis)),
            entities: vec![Entity {
                kind: "node".into(),
                id: "n".into(),
                cluster_id: "edge".into(),
                ..Entity::default()
            }],
            metrics: vec![Metric {
                name: "hw.temperature".into(),
                unit: "Cel".into(),
                probe: "t".into(),
                ..Metric::default()
            }],
            metric: vec![0],
            after_ms: vec![0],
            values: vec![celsius],
            ..Readings::default()
        };
        Bytes::from(pack.encode_to_vec())
    };
    let key = "continuum/s/n/readings/edge";
    let mut cursor = collector.watch(Filter::default(), 0, 0);
    let names =
        |derived: Vec<Derived>| -> Vec<String> { derived.iter().map(|d| d.event.message().to_owned()).collect() };
    let (crossed, kept) = (ThresholdCrossed::MESSAGE, Readings::MESSAGE);
    assert_eq!(names(collector.sample(key, &reading(0, 70.0))), [kept]);
    assert_eq!(names(collector.sample(key, &reading(1, 90.0))), [crossed, kept]);
    assert_eq!(names(collector.sample(key, &reading(2, 91.0))), [kept]);
    assert!(collector.sample(key, &reading(2, 91.0)).is_empty(), "it had come before");
    assert!(collector.sample(key, &Bytes::from_static(b"\xff")).is_empty());
    assert_eq!(names(collector.sample(key, &reading(3, 80.0))), [crossed, kept]);
    let reply = collector.watched_values(&mut cursor).unwrap();
    assert_eq!((reply.readings.unwrap().values, reply.missed), (vec![70.0, 90.0, 91.0, 80.0], 0));
    let newest = collector.newest_of(&Filter::default(), 9);
    assert_eq!((newest.len(), &newest[0].values), (1, &vec![80.0]));
}

#[test]
fn a_condition_that_held_before_a_restart_is_not_said_again() {
    let condition = Condition {
        owner: "local".into(),
        condition_id: "busy".into(),
        entity_kind: "instance".into(),
        metric: "container.cpu.usage".into(),
        side: Side::Above.into(),
        threshold: 0.5,
        ..Condition::default()
    };
    let defined = ConditionDefined {
        owner: "local".into(),
        condition_id: condition.condition_id.clone(),
        condition: Some(condition),
        ..ConditionDefined::default()
    };
    let define = |collector: &mut Collector| {
        collector.apply(&Stored { stream: "MEASUREMENT".into(), ..stored(&defined, at(0)) });
        collector.tick(at(0));
    };
    let busy = |millis| InstanceSample { cpu_milli: 900.0, ..sample(millis, 1.0) };
    let crossed = |derived: Vec<Derived>| -> Vec<ThresholdCrossed> {
        let any = derived.into_iter().map(|d| d.event.body());
        any.map(|body| ThresholdCrossed::decode(body).unwrap()).collect()
    };
    let mut before = Collector::new(Limits::default());
    define(&mut before);
    let said = crossed(give(&mut before, &busy(1)));
    assert!(said[0].raised && said.len() == 1);
    let mut after = Collector::new(Limits::default());
    after.restore(&said);
    define(&mut after);
    assert!(give(&mut after, &busy(2)).is_empty());
    let back = InstanceSample { cpu_milli: 100.0, ..sample(3, 1.0) };
    assert!(!crossed(give(&mut after, &back))[0].raised);
}

#[test]
fn readings_are_stored_in_the_bytes_they_came_in_unless_changed() {
    let entity = Entity { kind: "node".into(), id: "n".into(), cluster_id: "edge".into(), ..Entity::default() };
    let pack = |millis, unit: &str, values: Vec<f64>| Readings {
        cluster_id: "edge".into(),
        at: Some(at(millis)),
        entities: vec![entity.clone()],
        metrics: vec![Metric { name: "m".into(), unit: unit.into(), probe: "t".into(), ..Metric::default() }],
        metric: vec![0; values.len()],
        after_ms: (0..values.len() as i32).collect(),
        values,
        ..Readings::default()
    };
    let mut collector = Collector::new(Limits::default());
    collector.tick(at(0));
    let key = "continuum/s/n/readings/edge";
    let mut stored = |body: &Bytes| {
        let derived = collector.sample(key, body);
        assert_eq!(derived.len(), 1);
        derived[0].event.body()
    };
    let came = Bytes::from(pack(0, "By", vec![1.0, 2.0]).encode_to_vec());
    assert_eq!(stored(&came).as_ptr(), came.as_ptr(), "nothing is encoded again");
    // A field of a later release is not stored unseen.
    let known = pack(10, "By", vec![1.0]).encode_to_vec();
    let more = Bytes::from([known.as_slice(), &[0xf8, 0x07, 1]].concat());
    assert_eq!(stored(&more), known);
    // A value that came before is left out, and another unit is brought to the base unit.
    let again = Bytes::from(pack(0, "By", vec![1.0, 2.0, 3.0]).encode_to_vec());
    assert_eq!(Readings::decode(stored(&again)).unwrap().values, [3.0]);
    let kilo = Readings::decode(stored(&Bytes::from(pack(20, "KiBy", vec![2.0]).encode_to_vec()))).unwrap();
    assert_eq!((kilo.metrics[0].unit.as_str(), kilo.values), ("By", vec![2_048.0]));
}

#[test]
fn what_was_ingested_is_not_decoded_again_and_only_under_its_own_key() {
    let entity = Entity { kind: "node".into(), id: "n".into(), cluster_id: "edge".into(), ..Entity::default() };
    let pack = Readings {
        cluster_id: "edge".into(),
        at: Some(at(1)),
        entities: vec![entity],
        metrics: vec![Metric { name: "m".into(), unit: "By".into(), probe: "t".into(), ..Metric::default() }],
        metric: vec![0],
        after_ms: vec![0],
        values: vec![7.0],
        ..Readings::default()
    };
    let mut collector = Collector::new(Limits::default());
    collector.tick(at(0));
    // Bytes that nobody could decode show where it was taken from.
    let body = Bytes::from_static(b"\xff");
    let ingested = collector.ingested();
    let give = |collector: &mut Collector, key: &str| {
        ingested.keep(body.clone(), recent::Held::Readings(Arc::new(pack.clone())), 1);
        collector.sample(key, &body).len()
    };
    assert_eq!(give(&mut collector, "continuum/s/n/readings/edge"), 0);
    assert_eq!(give(&mut collector, &format!("{}/grpc/n/readings/edge", sharing::Way::INGESTED)), 1);
}
