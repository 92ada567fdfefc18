use std::collections::BTreeMap;

use mesh_proto::{
    Event,
    cluster::ClusterRegistered,
    instance::InstanceRejected,
    placement::{ClusterLost, ClusterReturned, PlacementDecided, PlacementReleased, PlacementUnplaced},
    telemetry::Provenance,
    workload::{InstanceChanged, InstanceUnavailable, InstanceUnwanted, InstanceWanted},
};
use proptest::prelude::*;

use super::*;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(1_000_000_000 + millis)
}

pub(crate) fn stored(event: &impl Event, time: Timestamp) -> Stored {
    mesh_test::stored(event, 1, time)
}

fn wanted(id: &str, replicas: u32) -> InstanceWanted {
    InstanceWanted {
        owner: "local".into(),
        instance_id: id.into(),
        workload: "spinner@1.0.0".into(),
        intent_id: "intent-1".into(),
        replicas,
        ..Default::default()
    }
}

fn changed(id: &str, cluster: &str, generation: u64, phase: InstancePhase) -> InstanceChanged {
    let mut fact = InstanceChanged {
        owner: "local".into(),
        instance_id: id.into(),
        intent_id: "intent-1".into(),
        cluster_id: cluster.into(),
        generation,
        replicas_wanted: 2,
        ..Default::default()
    };
    fact.set_phase(phase);
    fact
}

fn decided(id: &str, cluster: &str, generation: u64, from: &str) -> PlacementDecided {
    PlacementDecided {
        domain: "default".into(),
        owner: "local".into(),
        instance_id: id.into(),
        intent_id: "intent-1".into(),
        generation,
        cluster_id: cluster.into(),
        from_cluster_id: from.into(),
        reason: "chosen".into(),
        replicas: 2,
        ..Default::default()
    }
}

fn released(id: &str, cluster: &str, generation: u64, last: bool) -> PlacementReleased {
    PlacementReleased {
        domain: "default".into(),
        owner: "local".into(),
        instance_id: id.into(),
        cluster_id: cluster.into(),
        generation,
        r#final: last,
        ..Default::default()
    }
}

fn status(id: &str, cluster: &str, generation: u64, phase: InstancePhase, running: u32) -> InstanceStatusChanged {
    let mut fact = InstanceStatusChanged {
        cluster_id: cluster.into(),
        instance_id: id.into(),
        owner: "local".into(),
        generation,
        replicas_wanted: 2,
        replicas_running: running,
        restarts: generation as u32,
        ..Default::default()
    };
    fact.set_phase(phase);
    fact
}

fn registered(cluster: &str, node: &str, cpu_milli: u32) -> ClusterRegistered {
    ClusterRegistered {
        cluster_id: cluster.into(),
        cpu_milli,
        memory_bytes: 1_000,
        driver: "simulated".into(),
        site: "site".into(),
        node: node.into(),
        enforcement: "none".into(),
        ..Default::default()
    }
}

fn instance_sample(id: &str, cluster: &str, millis: i64, cpu_percent: f64, memory_bytes: u64) -> InstanceSample {
    InstanceSample {
        cluster_id: cluster.into(),
        instance_id: id.into(),
        generation: 1,
        at: Some(at(millis)),
        cpu_percent,
        memory_bytes,
        ..Default::default()
    }
}

fn cluster_sample(cluster: &str, millis: i64, cpu_percent: f64) -> ClusterSample {
    let cluster_id = cluster.into();
    ClusterSample {
        cluster_id,
        at: Some(at(millis)),
        cpu_percent,
        memory_bytes: 100,
        instances: 1,
        ..Default::default()
    }
}

fn give(twins: &mut Twins, sample: &InstanceSample) {
    twins.sample(&format!("continuum/s/n/instance/{}", sample.instance_id), &sample.encode_to_vec().into());
}

fn give_cluster(twins: &mut Twins, sample: &ClusterSample) {
    twins.sample(&format!("continuum/s/n/cluster/{}", sample.cluster_id), &sample.encode_to_vec().into());
}

fn started() -> Twins {
    let mut twins = Twins::new(Limits::default());
    assert!(twins.tick(at(0)).is_empty());
    twins
}

/// Applies facts, each a millisecond after the other, beginning at this one.
macro_rules! apply {
    ($twins:expr, $millis:expr, $($fact:expr),+ $(,)?) => {{
        let mut millis = $millis;
        $( $twins.apply(&stored(&$fact, at(millis))); millis += 1; )+
        let _ = millis;
    }};
}

fn twin(twins: &Twins, id: &str) -> Twin {
    twins.get(Kind::Workload, id, at(10_000)).unwrap()
}

fn published(derived: Vec<Derived>) -> Vec<Twin> {
    derived.into_iter().map(|d| TwinChanged::decode(d.event.body()).unwrap().twin.unwrap()).collect()
}

#[test]
fn a_workloads_twin_follows_its_life() {
    let mut twins = started();
    apply!(twins, 0, wanted("i", 2));
    let found = twin(&twins, "i");
    assert_eq!((found.phase(), found.replicas_wanted), (InstancePhase::Pending, 2));
    assert_eq!((found.workload.as_str(), found.intent_id.as_str()), ("spinner@1.0.0", "intent-1"));
    assert!(found.sample_age_seconds < 0.0, "never measured");

    let unplaced = PlacementUnplaced {
        domain: "default".into(),
        owner: "local".into(),
        instance_id: "i".into(),
        reason: "edge: 300 mCPU short".into(),
        ..Default::default()
    };
    apply!(twins, 10, unplaced);
    assert_eq!(twin(&twins, "i").reason, "edge: 300 mCPU short");

    apply!(twins, 20, decided("i", "edge", 1, ""));
    let found = twin(&twins, "i");
    assert_eq!((found.phase(), found.cluster_id.as_str()), (InstancePhase::Assigned, "edge"));
    assert_eq!(found.reason, "chosen");

    apply!(twins, 30, status("i", "edge", 1, InstancePhase::Starting, 1));
    assert_eq!((twin(&twins, "i").phase(), twin(&twins, "i").replicas_running), (InstancePhase::Starting, 1));

    apply!(twins, 40, changed("i", "edge", 1, InstancePhase::Running));
    assert_eq!(twin(&twins, "i").phase(), InstancePhase::Running);

    // Told by the agent, and not yet by the workload manager.
    apply!(twins, 50, status("i", "edge", 1, InstancePhase::Restarting, 1));
    assert_eq!(twin(&twins, "i").phase(), InstancePhase::Restarting);

    // The planner gave the cluster up: that is newer than what its agent said last.
    apply!(twins, 60, changed("i", "edge", 1, InstancePhase::Lost));
    assert_eq!(twin(&twins, "i").phase(), InstancePhase::Lost);
}

#[test]
fn a_twin_follows_its_instance_through_a_move() {
    let mut twins = started();
    apply!(twins, 0, wanted("i", 2), decided("i", "edge", 1, ""), changed("i", "edge", 1, InstancePhase::Running));
    apply!(twins, 10, decided("i", "cloud", 2, "edge"), status("i", "cloud", 2, InstancePhase::Starting, 0));
    give(&mut twins, &instance_sample("i", "edge", 20, 60.0, 1));
    give(&mut twins, &instance_sample("i", "cloud", 21, 1.0, 2));
    let found = twin(&twins, "i");
    assert_eq!((found.cluster_id.as_str(), found.phase(), found.cpu_percent), ("edge", InstancePhase::Running, 60.0));
    apply!(twins, 30, changed("i", "cloud", 2, InstancePhase::Running), released("i", "edge", 1, false));
    let found = twin(&twins, "i");
    assert_eq!((found.cluster_id.as_str(), found.generation, found.cpu_percent), ("cloud", 2, 1.0));
}

#[test]
fn a_twin_states_whether_its_usage_was_measured_or_modelled() {
    let mut twins = started();
    apply!(twins, 0, wanted("i", 1), decided("i", "edge", 1, ""), changed("i", "edge", 1, InstancePhase::Running));
    assert_eq!(twin(&twins, "i").usage_provenance(), Provenance::Unspecified, "no sample yet");
    let modelled =
        InstanceSample { provenance: Provenance::Modelled.into(), ..instance_sample("i", "edge", 20, 60.0, 1) };
    give(&mut twins, &modelled);
    assert_eq!(twin(&twins, "i").usage_provenance(), Provenance::Modelled);
    let measured =
        InstanceSample { provenance: Provenance::Measured.into(), ..instance_sample("i", "edge", 30, 60.0, 1) };
    give(&mut twins, &measured);
    assert_eq!(twin(&twins, "i").usage_provenance(), Provenance::Measured);
}

#[test]
fn after_a_move_was_given_up_the_twin_shows_the_place_where_it_stayed() {
    let mut twins = started();
    apply!(twins, 0, wanted("i", 2), decided("i", "edge", 1, ""), changed("i", "edge", 1, InstancePhase::Running));
    apply!(twins, 10, decided("i", "cloud", 2, "edge"), released("i", "cloud", 2, false));
    give(&mut twins, &instance_sample("i", "edge", 20, 60.0, 1));
    assert_eq!((twin(&twins, "i").cluster_id.as_str(), twin(&twins, "i").cpu_percent), ("edge", 60.0));
}

#[test]
fn an_instance_that_cannot_be_made_says_why_and_ends_when_nobody_wants_it() {
    let mut twins = started();
    let unavailable = InstanceUnavailable {
        owner: "local".into(),
        instance_id: "i".into(),
        intent_id: "intent-1".into(),
        reason: "spinner@2.0.0 is not registered".into(),
        hint: "push it".into(),
        workload: "spinner@2.0.0".into(),
        ..Default::default()
    };
    apply!(twins, 0, unavailable);
    let found = twin(&twins, "i");
    assert_eq!((found.phase(), found.workload.as_str()), (InstancePhase::Pending, "spinner@2.0.0"));
    assert_eq!(found.reason, "spinner@2.0.0 is not registered; push it");
    let unwanted = InstanceUnwanted { owner: "local".into(), instance_id: "i".into(), intent_id: "intent-1".into() };
    apply!(twins, 10, unwanted);
    assert_eq!(twin(&twins, "i").phase(), InstancePhase::Stopped);
}

#[test]
fn a_refused_assignment_says_why() {
    let mut twins = started();
    let rejected = InstanceRejected {
        cluster_id: "edge".into(),
        instance_id: "i".into(),
        generation: 1,
        reason: "200 MB over its capacity".into(),
        ..Default::default()
    };
    apply!(twins, 0, wanted("i", 2), decided("i", "edge", 1, ""), rejected);
    assert_eq!(
        (twin(&twins, "i").phase(), twin(&twins, "i").reason.as_str()),
        (InstancePhase::Pending, "200 MB over its capacity")
    );
}

#[test]
fn clusters_and_nodes_know_what_is_placed_on_them_and_whether_they_answer() {
    let mut twins = started();
    apply!(twins, 0, registered("a", "node-1", 1_000), registered("b", "node-1", 3_000));
    apply!(twins, 10, decided("i", "a", 1, ""), decided("j", "b", 1, ""), decided("j", "a", 2, "b"));
    give_cluster(&mut twins, &cluster_sample("a", 20, 50.0));
    give_cluster(&mut twins, &cluster_sample("b", 20, 10.0));
    let get = |twins: &Twins, kind, id: &str| twins.get(kind, id, at(1_020)).unwrap();
    assert_eq!(get(&twins, Kind::Cluster, "a").instances, ["i", "j"]);
    assert_eq!(get(&twins, Kind::Cluster, "b").instances, ["j"]);
    let node = get(&twins, Kind::Node, "node-1");
    assert_eq!((node.capacity_cpu_milli, node.capacity_memory_bytes, node.memory_bytes), (4_000, 2_000, 200));
    assert_eq!((node.cpu_percent, node.sample_age_seconds), (20.0, 1.0));
    assert_eq!(
        (node.instances.as_slice(), node.labels["site"].as_str()),
        (["i".to_owned(), "j".to_owned()].as_slice(), "site")
    );
    apply!(twins, 30, released("j", "b", 1, false), released("i", "a", 1, true));
    assert_eq!(get(&twins, Kind::Cluster, "a").instances, ["j"]);
    assert!(get(&twins, Kind::Cluster, "b").instances.is_empty());

    let lost = ClusterLost { domain: "default".into(), cluster_id: "a".into(), reason: "silent".into() };
    apply!(twins, 40, lost.clone());
    assert!(!get(&twins, Kind::Cluster, "a").available);
    let node = get(&twins, Kind::Node, "node-1");
    assert_eq!((node.available, node.reason.as_str()), (true, "a: silent"));
    apply!(twins, 50, ClusterLost { cluster_id: "b".into(), ..lost });
    assert!(!get(&twins, Kind::Node, "node-1").available);
    apply!(twins, 60, ClusterReturned { domain: "default".into(), cluster_id: "a".into() });
    assert!(get(&twins, Kind::Cluster, "a").available && get(&twins, Kind::Node, "node-1").available);

    apply!(twins, 70, registered("b", "node-2", 3_000));
    assert_eq!(get(&twins, Kind::Node, "node-1").cluster_id, "a");
    assert_eq!(get(&twins, Kind::Node, "node-2").capacity_cpu_milli, 3_000);
}

#[test]
fn status_is_published_at_once_and_measurements_once_a_second() {
    let mut twins = started();
    apply!(twins, 0, wanted("i", 2), decided("i", "edge", 1, ""));
    assert_eq!(published(twins.tick(at(100))).len(), 1);
    assert!(twins.tick(at(200)).is_empty(), "nothing changed");
    apply!(twins, 210, status("i", "edge", 1, InstancePhase::Running, 2));
    let found = published(twins.tick(at(300)));
    assert_eq!((found.len(), found[0].phase(), found[0].at), (1, InstancePhase::Running, Some(at(300))));
    assert_eq!(found[0].version, at(300).as_millis() as u64);

    give(&mut twins, &instance_sample("i", "edge", 400, 50.0, 10_000_000));
    assert!(twins.tick(at(500)).is_empty(), "the second is not over");
    give(&mut twins, &instance_sample("i", "edge", 1_200, 70.0, 10_000_000));
    let found = published(twins.tick(at(1_300)));
    assert_eq!((found.len(), found[0].cpu_percent, found[0].sample_age_seconds), (1, 70.0, 0.1));
    // A point and a megabyte are not enough.
    give(&mut twins, &instance_sample("i", "edge", 2_300, 71.0, 11_000_000));
    assert!(twins.tick(at(2_400)).is_empty());
    assert_eq!(twin(&twins, "i").cpu_percent, 71.0, "but seen by who asks");
    give(&mut twins, &instance_sample("i", "edge", 2_400, 71.0, 11_000_001));
    assert_eq!(published(twins.tick(at(2_500))).len(), 1);
    // A status may change while a measurement waits for its second.
    give(&mut twins, &instance_sample("i", "edge", 2_600, 10.0, 11_000_001));
    apply!(twins, 2_610, status("i", "edge", 1, InstancePhase::Restarting, 1));
    assert_eq!(published(twins.tick(at(2_700)))[0].cpu_percent, 10.0);
}

#[test]
fn versions_rise_even_within_a_millisecond_and_across_a_restart() {
    let mut twins = started();
    let mut versions = vec![];
    for replicas in 1..5 {
        apply!(twins, 0, wanted("i", replicas));
        versions.extend(published(twins.tick(at(100))).into_iter().map(|t| t.version));
    }
    let mut again = Twins::new(Limits::default());
    apply!(again, 0, wanted("i", 4));
    versions.extend(published(again.tick(at(200))).into_iter().map(|t| t.version));
    assert_eq!(versions.len(), 5);
    assert!(versions.windows(2).all(|pair| pair[0] < pair[1]), "{versions:?}");
}

#[test]
fn what_ended_long_ago_is_forgotten_and_never_published_again() {
    let mut twins = Twins::new(Limits { ended_keep_ms: 60_000, ..Limits::default() });
    // Read from the past.
    apply!(
        twins,
        0,
        registered("edge", "n", 1),
        decided("old", "edge", 1, ""),
        changed("old", "edge", 1, InstancePhase::Stopped)
    );
    apply!(twins, 50_000, decided("new", "edge", 1, ""), changed("new", "edge", 1, InstancePhase::Stopped));
    let ids = |derived| published(derived).into_iter().map(|t: Twin| t.id).collect::<Vec<_>>();
    assert_eq!(ids(twins.tick(at(70_000))), ["new", "edge", "n"]);
    assert_eq!(twins.get(Kind::Workload, "old", at(70_000)), None);
    assert_eq!(twins.get(Kind::Cluster, "edge", at(0)).unwrap().instances, ["new"]);
    // Its cluster and node say that it is gone.
    assert_eq!(ids(twins.tick(at(130_000))), ["edge", "n"]);
    assert_eq!((twins.get(Kind::Workload, "new", at(130_000)), twins.len(), twins.by_order.len()), (None, 2, 2));
}

#[test]
fn samples_of_unknown_instances_make_no_twin_and_are_bounded() {
    let mut twins = Twins::new(Limits { strangers_max: 2, ..Limits::default() });
    twins.tick(at(0));
    for id in ["a", "b", "c", "d"] {
        give(&mut twins, &instance_sample(id, "edge", 0, 1.0, 1));
    }
    assert!(twins.tick(at(100)).is_empty());
    assert_eq!((twins.counts().strangers, twins.workloads.len(), twins.strangers), (2, 2, 2));
    apply!(twins, 200, wanted("a", 1), changed("a", "edge", 1, InstancePhase::Running));
    assert_eq!((twin(&twins, "a").cpu_percent, twins.strangers), (1.0, 1), "its sample had come first");
    twins.tick(at(90_000));
    assert_eq!((twins.workloads.len(), twins.strangers), (1, 0));
}

#[test]
fn what_is_no_sample_or_no_fact_is_counted() {
    let mut twins = Twins::new(Limits::default());
    give(&mut twins, &instance_sample("i", "edge", 0, 1.0, 1));
    twins.tick(at(0));
    give(&mut twins, &instance_sample("i", "edge", 0, f64::NAN, 1));
    give(&mut twins, &InstanceSample { at: None, ..instance_sample("i", "edge", 0, 1.0, 1) });
    twins.sample("continuum/s/n/instance/other", &instance_sample("i", "edge", 0, 1.0, 1).encode_to_vec().into());
    twins.sample("continuum/s/n/alive/i", &Bytes::new());
    twins.sample("continuum/s/n/cluster/a", &Bytes::from_static(&[0xff]));
    give(&mut twins, &instance_sample("i", "edge", 5_001, 1.0, 1));
    twins.apply(&Stored { body: Bytes::from_static(&[0xff]), ..stored(&wanted("i", 1), at(0)) });
    assert_eq!(twins.counts(), Counts { undecodable: 1, invalid: 5, ahead: 1, early: 1, strangers: 0 });
    assert!(twins.workloads.is_empty());
}

#[test]
fn a_watcher_gets_the_newest_of_each_twin_and_goes_on_from_there() {
    let mut twins = started();
    apply!(twins, 0, wanted("i", 1), wanted("j", 1), registered("edge", "n", 1));
    twins.tick(at(100));
    let (first, seen) = twins.published_since(Some(Kind::Workload), "", 0);
    assert_eq!(first.iter().map(|t| t.id.as_str()).collect::<Vec<_>>(), ["i", "j"]);
    for replicas in 2..5 {
        apply!(twins, 200, wanted("i", replicas));
        twins.tick(at(200 + i64::from(replicas)));
    }
    let (next, seen) = twins.published_since(Some(Kind::Workload), "", seen);
    assert_eq!(next.iter().map(|t| (t.id.as_str(), t.replicas_wanted)).collect::<Vec<_>>(), [("i", 4)]);
    assert_eq!(twins.published_since(None, "", seen).0, vec![]);
    let (one, _) = twins.published_since(None, "n", 0);
    assert_eq!(one.iter().map(|t| t.kind.as_str()).collect::<Vec<_>>(), ["node"]);
}

/// One input: a stored fact, or a sample by its key.
#[derive(Clone, Debug)]
enum Input {
    Fact(Box<Stored>),
    Sample(String, Bytes),
}

fn phase() -> impl Strategy<Value = InstancePhase> {
    prop::sample::select(vec![
        InstancePhase::Pending,
        InstancePhase::Starting,
        InstancePhase::Running,
        InstancePhase::Restarting,
        InstancePhase::Failed,
        InstancePhase::Lost,
        InstancePhase::Stopped,
    ])
}

type Made = Box<dyn Fn(i64) -> Input>;

fn fact(event: impl Event) -> Made {
    Box::new(move |millis| Input::Fact(Box::new(stored(&event, at(millis)))))
}

/// Numbers from which an input of each source is made: instance, cluster, generation, kind.
fn numbers() -> impl Strategy<Value = (u8, u8, u64, u8, InstancePhase)> {
    (0u8..3, 0u8..3, 1u64..5, 0u8..6, phase())
}

fn make(source: usize, (instance, cluster, generation, kind, phase): (u8, u8, u64, u8, InstancePhase)) -> Made {
    let (id, cluster_id) = (format!("i{instance}"), format!("c{cluster}"));
    let other = format!("c{}", (cluster + 1) % 3);
    match (source, kind) {
        (0, 0..2) => fact(wanted(&id, u32::from(kind))),
        (0, 2) => fact(InstanceUnavailable {
            owner: "local".into(),
            instance_id: id,
            reason: "r".into(),
            ..Default::default()
        }),
        (0, _) => fact(changed(&id, &cluster_id, generation, phase)),
        (1, _) => fact(registered(&cluster_id, &format!("n{}", kind % 2), 1_000 * generation as u32)),
        (2, 0) => fact(decided(&id, &cluster_id, generation, "")),
        (2, 1) => fact(decided(&id, &cluster_id, generation, &other)),
        (2, 2) => fact(released(&id, &cluster_id, generation, generation == 4)),
        (2, 3) => fact(PlacementUnplaced {
            domain: "default".into(),
            instance_id: id,
            reason: format!("{generation} short"),
            stays_on: if generation == 1 { cluster_id } else { String::new() },
            ..Default::default()
        }),
        (2, 4) => fact(ClusterLost { domain: "default".into(), cluster_id, reason: "silent".into() }),
        (2, _) => fact(ClusterReturned { domain: "default".into(), cluster_id }),
        (3, 0) => fact(InstanceRejected {
            cluster_id,
            instance_id: id,
            generation,
            reason: "no".into(),
            ..Default::default()
        }),
        (3, _) => fact(status(&id, &cluster_id, generation, phase, u32::from(kind))),
        (_, 0) => Box::new(move |millis| {
            let sample = cluster_sample(&cluster_id, millis, generation as f64);
            Input::Sample(format!("continuum/s/n/cluster/{cluster_id}"), sample.encode_to_vec().into())
        }),
        _ => Box::new(move |millis| {
            let sample = instance_sample(&id, &cluster_id, millis, f64::from(kind), generation);
            Input::Sample(format!("continuum/s/n/instance/{id}"), sample.encode_to_vec().into())
        }),
    }
}

/// All twins after these inputs, taken from the sources as the schedule says.
fn play(sources: &[Vec<Input>], schedule: &[usize], ticks: bool) -> BTreeMap<Key, Twin> {
    let mut twins = started();
    let mut next = vec![0; sources.len()];
    let mut rest: Vec<usize> = (0..sources.len()).flat_map(|s| std::iter::repeat_n(s, sources[s].len())).collect();
    for choice in schedule.iter().copied().chain(std::iter::repeat(0)) {
        if rest.is_empty() {
            break;
        }
        let source = rest.swap_remove(choice % rest.len());
        match &sources[source][next[source]] {
            Input::Fact(stored) => twins.apply(stored),
            Input::Sample(key, body) => twins.sample(key, body),
        };
        next[source] += 1;
        if ticks {
            twins.tick(at(1));
        }
    }
    twins.tick(at(4_000));
    let ids = ["i0", "i1", "i2", "c0", "c1", "c2", "n0", "n1"];
    let keys = Kind::ALL.into_iter().flat_map(|kind| ids.map(|id| (kind, id.to_owned())));
    let all: BTreeMap<Key, Twin> =
        keys.filter_map(|key| Some((key.clone(), twins.fuse(key.0, &key.1, at(4_000))?))).collect();
    // What was published last says the same, but for what moved too little.
    for (key, twin) in &all {
        let published = &twins.published[key].twin;
        assert_eq!(status_of(published), status_of(twin));
        assert!(!has_moved(published, twin));
    }
    for cluster in twins.clusters.iter() {
        let placed = twins.workloads.iter().filter(|(_, w)| w.plan.on.contains_key(cluster.0)).map(|(id, _)| id);
        assert!(placed.eq(&cluster.1.instances), "lists agree with plans");
    }
    assert_eq!(twins.strangers, twins.workloads.values().filter(|w| !w.is_known()).count());
    all
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn however_the_sources_interleave_the_twins_end_equal(
        numbers in prop::collection::vec(prop::collection::vec(numbers(), 0..14), 5),
        times in prop::collection::vec(0i64..40, 14),
        one in prop::collection::vec(any::<prop::sample::Index>(), 70),
        other in prop::collection::vec(any::<prop::sample::Index>(), 70),
    ) {
        let sources: Vec<Vec<Input>> = numbers
            .into_iter()
            .enumerate()
            .map(|(source, numbers)| {
                let mut millis = 0;
                let timed = numbers.into_iter().zip(&times).enumerate().map(|(position, (numbers, wait))| {
                    // Samples have times of their own, so that no two of a thing are alike.
                    millis += if source == 4 { 1 } else { *wait * ((position as i64 + source as i64) % 3) };
                    make(source, numbers)(millis)
                });
                timed.collect()
            })
            .collect();
        let mut shuffled = sources.clone();
        // Samples come in any order.
        let samples = &mut shuffled[4];
        for position in (1..samples.len()).rev() {
            samples.swap(position, other[position].index(position + 1));
        }
        let schedule = |choices: &[prop::sample::Index]| choices.iter().map(|c| c.index(1_000)).collect::<Vec<_>>();
        prop_assert_eq!(play(&sources, &schedule(&one), false), play(&shuffled, &schedule(&other), true));
    }
}
