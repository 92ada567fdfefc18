use std::collections::BTreeMap;

use mesh_proto::{
    Event,
    cluster::ClusterRegistered,
    instance::InstanceRejected,
    placement::{ClusterLost, ClusterReturned, PlacementDecided, PlacementReleased, PlacementUnplaced},
    telemetry::{Entity, Metric, MetricKind, Provenance},
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
    let ids = published(twins.tick(at(100))).into_iter().map(|t| t.id).collect::<Vec<_>>();
    assert_eq!(ids, ["i", CONTINUUM]);
    assert!(twins.tick(at(200)).is_empty(), "nothing changed");
    apply!(twins, 210, status("i", "edge", 1, InstancePhase::Running, 2));
    let found = published(twins.tick(at(300)));
    assert_eq!((found.len(), found[0].phase(), found[0].at), (2, InstancePhase::Running, Some(at(300))));
    assert_eq!((found[1].workloads, found[1].workloads_running), (1, 1));
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
        versions.extend(published(twins.tick(at(100))).into_iter().filter(|t| t.id == "i").map(|t| t.version));
    }
    let mut again = Twins::new(Limits::default());
    apply!(again, 0, wanted("i", 4));
    versions.extend(published(again.tick(at(200))).into_iter().filter(|t| t.id == "i").map(|t| t.version));
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
    assert_eq!(ids(twins.tick(at(70_000))), ["new", "edge", "n", CONTINUUM]);
    assert_eq!(twins.get(Kind::Workload, "old", at(70_000)), None);
    assert_eq!(twins.get(Kind::Cluster, "edge", at(0)).unwrap().instances, ["new"]);
    // Its cluster and node say that it is gone.
    assert_eq!(ids(twins.tick(at(130_000))), ["edge", "n"]);
    assert_eq!((twins.get(Kind::Workload, "new", at(130_000)), twins.len(), twins.by_order.len()), (None, 3, 3));
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
    assert_eq!(twins.counts(), Counts { undecodable: 1, invalid: 5, ahead: 1, early: 1, ..Counts::default() });
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

fn detected(id: &str, episode: &str, millis: i64) -> AnomalyDetected {
    AnomalyDetected {
        owner: "local".into(),
        instance_id: id.into(),
        episode_id: episode.into(),
        detector: "multivariate".into(),
        since: Some(at(millis)),
        sentence: "cpu_milli above".into(),
        ..Default::default()
    }
}

#[test]
fn an_anomaly_is_seen_in_its_workload_and_all_around_it_until_it_is_over() {
    let mut twins = started();
    apply!(twins, 0, registered("edge", "n", 1_000), registered("far", "m", 1_000), wanted("i", 1), wanted("j", 1));
    apply!(twins, 10, decided("i", "edge", 1, ""), decided("j", "far", 1, ""));
    twins.tick(at(100));
    apply!(twins, 110, detected("i", "e1", 90), detected("i", "e2", 95), detected("i", "e1", 90));
    let found = published(twins.tick(at(200)));
    let shown: Vec<(String, usize)> = found.into_iter().map(|t| (t.id, t.anomalies.len())).collect();
    let around = ["i", "edge", "n", CONTINUUM].map(|id| (id.to_owned(), 2));
    assert_eq!(shown, around, "and nobody else says anything");
    assert_eq!(twin(&twins, "i").anomalies[0].sentence, "cpu_milli above");
    let over = |episode: &str| AnomalyCleared {
        owner: "local".into(),
        instance_id: "i".into(),
        episode_id: episode.into(),
        ..Default::default()
    };
    apply!(twins, 210, over("e1"), over("e2"), over("e3"));
    assert!(published(twins.tick(at(300))).iter().all(|t| t.anomalies.is_empty()));
    assert!(twins.anomalous.is_empty());
    let many = (0..200).map(|n| detected("i", &format!("e{n}"), 300 + n));
    many.for_each(|fact| apply!(twins, 310, fact));
    assert_eq!(twin(&twins, "i").anomalies.len(), 32);
}

#[test]
fn a_network_shows_each_link_as_it_was_measured() {
    use mesh_proto::cost::LinkCost;
    let link = |from: &str, to: &str, latency_ms: f64, up: bool| LinkCost {
        from_cluster: from.into(),
        to_cluster: to.into(),
        latency_ms,
        throughput_mbps: -1.0,
        probes: 3,
        up,
        ..Default::default()
    };
    let costs = |latency_ms: f64, up: bool| CostsChanged {
        domain: "default".into(),
        links: vec![link("a", "b", latency_ms, up), link("b", "a", 2.0, true)],
        ..Default::default()
    };
    let mut twins = started();
    apply!(twins, 0, costs(1.0, true));
    let found = published(twins.tick(at(100)));
    assert_eq!((found.len(), found[0].kind.as_str(), found[0].id.as_str()), (1, "network", "default"));
    let links: Vec<_> = found[0].links.iter().map(|l| (l.from.as_str(), l.latency_ms, l.throughput_mbps)).collect();
    assert_eq!(links, [("a", Some(1.0), None), ("b", Some(2.0), None)]);
    apply!(twins, 200, costs(5.0, true));
    assert!(twins.tick(at(300)).is_empty(), "the second is not over");
    assert_eq!(published(twins.tick(at(1_200)))[0].links[0].latency_ms, Some(5.0));
    apply!(twins, 1_210, costs(5.0, false));
    let found = published(twins.tick(at(1_300)));
    assert_eq!((found[0].reason.as_str(), found[0].links[0].latency_ms), ("no answer: a -> b", None));
    assert!(found[0].available);
}

#[test]
fn the_continuum_counts_clusters_and_workloads_and_adds_up_what_they_use() {
    let mut twins = started();
    assert!(twins.tick(at(10)).is_empty(), "there is nothing");
    apply!(twins, 20, registered("a", "n", 1_000), registered("b", "n", 3_000), wanted("i", 1), wanted("j", 1));
    apply!(twins, 30, changed("i", "a", 1, InstancePhase::Running), changed("j", "a", 1, InstancePhase::Stopped));
    give_cluster(&mut twins, &cluster_sample("a", 40, 40.0));
    twins.tick(at(100));
    let found = twins.get(Kind::Continuum, CONTINUUM, at(1_040)).unwrap();
    assert_eq!((found.clusters, found.clusters_available, found.workloads, found.workloads_running), (2, 2, 1, 1));
    assert_eq!((found.capacity_cpu_milli, found.cpu_percent, found.available), (4_000, 10.0, true));
    let lost = ClusterLost { domain: "default".into(), cluster_id: "a".into(), reason: "silent".into() };
    apply!(twins, 110, lost, changed("i", "a", 1, InstancePhase::Lost));
    let found = published(twins.tick(at(200))).pop().unwrap();
    assert_eq!(
        (found.id.as_str(), found.clusters_available, found.workloads, found.workloads_running),
        (CONTINUUM, 1, 1, 0)
    );
    assert!(twins.tick(at(300)).is_empty());
}

/// Name, unit, kind, label, value, and milliseconds.
type Reading<'a> = (&'a str, &'a str, MetricKind, (&'a str, &'a str), f64, i64);

/// Readings of one entity.
fn pack(cluster: &str, entity: Entity, values: &[Reading<'_>]) -> Bytes {
    let metric = |(name, unit, kind, label, ..): &Reading<'_>| Metric {
        entity: 0,
        name: (*name).into(),
        unit: (*unit).into(),
        kind: (*kind).into(),
        labels: [(label.0.to_owned(), label.1.to_owned())].into(),
        ..Metric::default()
    };
    let pack = Readings {
        cluster_id: cluster.into(),
        at: Some(at(0)),
        entities: vec![entity],
        metrics: values.iter().map(metric).collect(),
        metric: (0..values.len() as u32).collect(),
        after_ms: values.iter().map(|value| value.5 as i32).collect(),
        values: values.iter().map(|value| value.4).collect(),
        ..Readings::default()
    };
    pack.encode_to_vec().into()
}

fn entity(kind: &str, id: &str) -> Entity {
    Entity { kind: kind.into(), id: id.into(), ..Entity::default() }
}

#[test]
fn a_node_shows_what_its_own_agent_measures_and_publishes_what_moved() {
    let mut twins = started();
    apply!(twins, 0, registered("edge", "n", 1_000), registered("far", "m", 1_000));
    twins.tick(at(10));
    let used = |used, millis| {
        let value = ("system.memory.usage", "By", MetricKind::Gauge, ("system.memory.state", "used"), used, millis);
        pack("edge", entity("node", "n"), &[value])
    };
    let name = "system.memory.usage{system.memory.state=used}";
    twins.sample("continuum/s/n/readings/edge", &used(5e9, 1_000));
    assert_eq!(published(twins.tick(at(1_100)))[0].measured[name], 5e9);
    twins.sample("continuum/s/n/readings/edge", &used(5.01e9, 2_000));
    assert!(twins.tick(at(2_200)).is_empty(), "a hundredth is not enough");
    assert_eq!(twins.get(Kind::Node, "n", at(2_200)).unwrap().measured[name], 5.01e9, "but seen by who asks");
    twins.sample("continuum/s/n/readings/edge", &used(6e9, 3_000));
    assert_eq!(published(twins.tick(at(3_200))).len(), 1);
    // Of another's node; of a cluster that nobody declared; of another cluster than its key; no numbers.
    twins.sample(
        "continuum/s/m/readings/far",
        &pack("far", entity("node", "n"), &[("m", "1", MetricKind::Gauge, ("", ""), 1.0, 0)]),
    );
    twins.sample(
        "continuum/s/n/readings/new",
        &pack("new", entity("node", "n"), &[("m", "1", MetricKind::Gauge, ("", ""), 1.0, 0)]),
    );
    twins.sample("continuum/s/n/readings/other", &used(1.0, 4_000));
    twins.sample("continuum/s/n/readings/edge", &used(f64::NAN, 4_000));
    twins.sample("continuum/s/n/readings/edge", &used(1.0, 60_000));
    twins.sample("continuum/s/n/readings/edge", &used(1.0, -700_000));
    assert!(twins.tick(at(4_300)).is_empty());
    assert_eq!(twins.counts(), Counts { invalid: 2, ahead: 1, late: 1, strangers: 2, ..Counts::default() });
    for seconds in [i64::MIN, -1, i64::MAX] {
        let odd =
            Readings { cluster_id: "edge".into(), at: Some(Timestamp { seconds, nanos: 0 }), ..Readings::default() };
        twins.sample("continuum/s/n/readings/edge", &odd.encode_to_vec().into());
        let odd = InstanceSample { at: odd.at, ..instance_sample("i", "edge", 0, 1.0, 1) };
        give(&mut twins, &odd);
    }
    assert_eq!(twins.counts().invalid, 2 + 6, "times that nobody can count with");
}

#[test]
fn an_agent_with_many_labels_crowds_nobody_but_itself() {
    let mut twins = started();
    apply!(twins, 0, registered("edge", "n", 1_000), registered("far", "m", 1_000));
    for round in 0..2_000 {
        let label = round.to_string();
        let value = ("bomb", "1", MetricKind::Gauge, ("label", label.as_str()), 1.0, 0);
        twins.sample("continuum/s/n/readings/edge", &pack("edge", entity("node", "n"), &[value]));
    }
    let value = ("fine", "1", MetricKind::Gauge, ("label", "a"), 1.0, 0);
    twins.sample("continuum/s/m/readings/far", &pack("far", entity("node", "m"), &[value]));
    assert_eq!((twins.measured["n"].shown().count(), twins.measured["m"].shown().count()), (256, 1));
    assert_eq!(twins.counts().crowded, 2_000 - 256);
}

#[test]
fn a_route_gives_its_workload_rates_by_code_and_quantiles() {
    let mut twins = started();
    apply!(
        twins,
        0,
        registered("edge", "n", 1_000),
        registered("far", "m", 1_000),
        wanted("i", 1),
        decided("i", "edge", 1, "")
    );
    twins.tick(at(10));
    let route = |cluster: &str, id: &str, count, millis| {
        let code = ("http.response.status_code", "200");
        let values = [
            ("http.server.request.count", "{request}", MetricKind::Counter, code, count, millis),
            ("http.server.request.duration", "s", MetricKind::Gauge, ("quantile", "0.99"), 0.25, millis),
        ];
        pack(cluster, entity("route", id), &values)
    };
    let proxy = "continuum/s/gateway/readings/gateway";
    twins.sample(proxy, &route("gateway", "local/i", 100.0, 1_000));
    twins.tick(at(1_100));
    twins.tick(at(10_900));
    twins.sample(proxy, &route("gateway", "local/i", 150.0, 11_000));
    let traffic = published(twins.tick(at(11_000)))[0].traffic.clone().unwrap();
    assert_eq!((traffic.request_rate, traffic.rate_by_code["200"], traffic.latency_p99), (5.0, 5.0, 0.25));
    // An agent that it does not run on cannot speak of it, the one that it runs on can; and an unknown one is nobody's.
    twins.sample("continuum/s/m/readings/far", &route("far", "i", 1e9, 12_000));
    twins.sample("continuum/s/n/readings/edge", &route("edge", "i", 0.0, 12_000));
    twins.sample(proxy, &route("gateway", "nobody", 1.0, 12_000));
    assert_eq!(twins.counts().strangers, 4);
    assert_eq!(twins.workload_now("i", at(12_000)).unwrap().1.unwrap().0.request_rate, 50.0 / 11.0);
    // Nobody measures any more.
    let found = published(twins.tick(at(80_000)));
    assert!(found.iter().any(|t| t.id == "i" && t.traffic.is_none()), "{found:?}");
}

#[test]
fn a_restarted_aggregator_publishes_only_what_changed_since() {
    let facts = |twins: &mut Twins| {
        apply!(twins, 0, registered("edge", "n", 1_000), wanted("i", 2), decided("i", "edge", 1, ""));
        apply!(twins, 10, status("i", "edge", 1, InstancePhase::Running, 2), detected("i", "e1", 5));
    };
    let mut twins = started();
    facts(&mut twins);
    give(&mut twins, &instance_sample("i", "edge", 50, 60.0, 5_000_000));
    give_cluster(&mut twins, &cluster_sample("edge", 50, 60.0));
    let value = ("m", "1", MetricKind::Gauge, ("a", "b"), 0.5, 50);
    twins.sample("continuum/s/n/readings/edge", &pack("edge", entity("node", "n"), &[value]));
    let before = published(twins.tick(at(150)));
    assert_eq!(before.len(), 4);

    let mut again = Twins::restored(Limits::default(), before.clone());
    facts(&mut again);
    assert_eq!(again.published_since(None, "", 0).0.len(), 4, "watchers see them at once");
    assert!(again.tick(at(5_000)).is_empty(), "nothing changed");
    for twin in &before {
        let (kind, sample_age_seconds) = (Kind::named(&twin.kind).unwrap(), twin.sample_age_seconds + 5.0);
        let found = again.get(kind, &twin.id, at(5_150)).unwrap();
        assert_eq!(found, Twin { sample_age_seconds, ..twin.clone() });
    }
    give(&mut again, &instance_sample("i", "edge", 5_100, 10.0, 5_000_000));
    let found = published(again.tick(at(5_200)));
    assert_eq!((found.len(), found[0].cpu_percent), (1, 10.0));
    assert!(found[0].version > before[0].version);
    // What no fact speaks of any more goes away.
    let gone = Twin { kind: "workload".into(), id: "gone".into(), at: Some(at(0)), ..Twin::default() };
    let mut again = Twins::restored(Limits::default(), [gone]);
    again.tick(at(100_000));
    assert_eq!((again.len(), again.by_order.len(), again.strangers), (0, 0, 0));
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
        assert!(has_same_status(published, twin), "{published:?} {twin:?}");
        assert!(!twins.has_moved(key, published, twin));
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
