use mesh_proto::{learning::ModelCard, workload::Resources};

use super::*;
use crate::domain::{dqn::Settings, network::Network};

const T0: Timestamp = Timestamp::from_millis(1_000_000);

fn stored(event: impl mesh_proto::Event, sequence: u64) -> Stored {
    mesh_test::stored(&event, sequence, T0.plus_millis(sequence as i64))
}

fn joined(id: &str, cpu_milli: u32) -> ClusterJoined {
    let labels = BTreeMap::from([("tier".to_owned(), id.to_owned())]);
    let memory_bytes = u64::from(cpu_milli) << 20;
    ClusterJoined {
        domain: "default".into(),
        cluster_id: id.into(),
        cpu_milli,
        memory_bytes,
        labels,
        ..Default::default()
    }
}

fn decided(generation: u64, cluster: &str, from: &str) -> PlacementDecided {
    let resources = Resources { cpu_milli: 100, memory_bytes: 1 << 20, cpu_limit_milli: 200, ..Default::default() };
    let document = WorkloadDocument { resources: Some(resources), ..Default::default() };
    PlacementDecided {
        domain: "default".into(),
        owner: "local".into(),
        instance_id: "i".into(),
        intent_id: "intent".into(),
        generation,
        cluster_id: cluster.into(),
        from_cluster_id: from.into(),
        replicas: 2,
        document: document.encode_to_vec().into(),
        ..Default::default()
    }
}

/// A policy that values cheap options: minus the cost and both energies.
fn thrifty() -> Current {
    let mut weights = vec![0.0; crate::domain::features::FEATURES + 1];
    for index in [16, 17, 18] {
        weights[index] = -1.0;
    }
    let network = Network::of(&[crate::domain::features::FEATURES, 1], weights).unwrap();
    Current::new(Policy::new(network, ModelCard::default()))
}

fn mesh() -> Advisor {
    let mut advisor = Advisor::new(Limits::default(), thrifty());
    for (number, (id, size)) in [("cloud", 4_000), ("device", 500), ("edge", 1_000)].into_iter().enumerate() {
        assert!(advisor.apply(&stored(joined(id, size), number as u64 + 1)).is_empty());
    }
    advisor
}

fn advised(said: &[Derived]) -> LearningAdvised {
    let event = &said.first().unwrap().event;
    LearningAdvised::decode(event.body()).unwrap()
}

#[test]
fn advice_stands_beside_each_decision_with_its_regret_and_every_option() {
    let mut advisor = mesh();
    let said = advisor.apply(&stored(decided(1, "cloud", ""), 10));
    let advice = advised(&said);
    assert_eq!((advice.cluster_id.as_str(), advice.planned_cluster_id.as_str()), ("device", "cloud"));
    assert!(advice.regret > 0.0 && advice.reason.contains("instead of 2 on cloud"), "{}", advice.reason);
    assert_eq!(advice.options.iter().filter(|o| o.planned).count(), 1);
    assert!(advice.options.is_sorted_by(|a, b| a.value >= b.value));
    assert!(advice.options.iter().all(|o| ["cloud", "device", "edge"].contains(&o.cluster_id.as_str())));
    let again = mesh().apply(&stored(decided(1, "cloud", ""), 10));
    assert_eq!(again[0].id, said[0].id, "the same advice has the same id");
    let mut agreeing = mesh();
    let same = advised(&agreeing.apply(&stored(PlacementDecided { replicas: 1, ..decided(1, "device", "") }, 10)));
    assert_eq!((same.regret, same.cluster_id.as_str()), (0.0, "device"));
    assert_eq!(agreeing.totals(), Totals { regret: 0.0, advised: 1, agreed: 1 });
}

#[test]
fn what_does_not_fit_or_is_lost_is_never_advised() {
    let mut advisor = mesh();
    let lost = ClusterLost { domain: "default".into(), cluster_id: "device".into(), reason: String::new() };
    advisor.apply(&stored(lost, 9));
    let advice = advised(&advisor.apply(&stored(decided(1, "cloud", ""), 10)));
    assert_eq!(advice.cluster_id, "edge");
    assert!(advice.options.iter().all(|o| o.cluster_id != "device"));
    // Another instance that holds nearly all of the edge.
    let mut big = decided(1, "edge", "");
    big.instance_id = "big".into();
    big.replicas = 1;
    let resources = Resources { cpu_milli: 950, memory_bytes: 1, ..Default::default() };
    big.document = WorkloadDocument { resources: Some(resources), ..Default::default() }.encode_to_vec().into();
    advisor.apply(&stored(big, 11));
    let advice =
        advised(&advisor.apply(&stored(PlacementDecided { instance_id: "j".into(), ..decided(1, "cloud", "") }, 12)));
    assert_eq!(advice.cluster_id, "cloud");
}

#[test]
fn what_runs_is_advised_on_once_by_what_was_measured() {
    let mut advisor = mesh();
    advisor.apply(&stored(decided(1, "cloud", ""), 10));
    advisor.limits.regret_min = 0.01;
    assert!(advisor.tick(T0.plus_millis(60_000)).is_empty(), "nothing is measured yet");
    let sample = |generation, cpu_milli, millis| {
        let at = Some(T0.plus_millis(millis));
        InstanceSample {
            instance_id: "i".into(),
            cluster_id: "cloud".into(),
            generation,
            cpu_milli,
            at,
            ..Default::default()
        }
    };
    let give = |advisor: &mut Advisor, key: &str, sample: InstanceSample| {
        advisor.sample(key, &sample.encode_to_vec().into());
    };
    let load = |advisor: &Advisor| advisor.instances["i"].measured.map(|m| m.load_milli);
    for bad in [sample(1, f64::NAN, 1), sample(1, -1.0, 1), sample(1, f64::INFINITY, 1), sample(2, 50.0, 1)] {
        give(&mut advisor, "continuum/s/n/instance/i", bad);
    }
    give(&mut advisor, "continuum/s/n/instance/other", sample(1, 50.0, 1));
    advisor.sample("continuum/s/n/instance/i", &Bytes::from_static(&[0xff, 0x01]));
    assert_eq!(load(&advisor), None);
    give(&mut advisor, "continuum/s/n/instance/i", sample(1, 50.0, 20_000));
    give(&mut advisor, "continuum/s/n/instance/i", sample(1, 9_000.0, 10_000));
    assert_eq!(load(&advisor), Some(50.0), "what is older than what is known does not count");
    let said = advisor.tick(T0.plus_millis(120_000));
    assert_eq!(advised(&said).measured.map(|m| m.cpu_milli), Some(50));
    assert!(advisor.tick(T0.plus_millis(240_000)).is_empty(), "said once");
    assert_eq!(advisor.advice("local", "", &Page::new(10, "").unwrap()).0.len(), 1);
    let end = PlacementReleased {
        domain: "default".into(),
        owner: "local".into(),
        instance_id: "i".into(),
        r#final: true,
        ..Default::default()
    };
    advisor.apply(&stored(end, 20));
    assert!(advisor.advice("local", "", &Page::new(10, "").unwrap()).0.is_empty() && advisor.instances.is_empty());
}

#[test]
fn a_move_holds_both_ends_until_one_is_released() {
    let mut advisor = mesh();
    advisor.apply(&stored(decided(1, "device", ""), 10));
    advisor.apply(&stored(decided(2, "edge", "device"), 11));
    assert_eq!(advisor.instances["i"].holds.len(), 2);
    let own = advisor.instances["i"].clone();
    let scene = advisor.scene("i", &own, T0);
    let reserved: Vec<u64> = scene.clusters.iter().map(|c| c.plan.cpu_milli_reserved).collect();
    assert_eq!(reserved, [0, 200, 200]);
    let mut release = PlacementReleased {
        domain: "default".into(),
        owner: "local".into(),
        instance_id: "i".into(),
        ..Default::default()
    };
    (release.cluster_id, release.generation) = ("device".into(), 1);
    advisor.apply(&stored(release, 12));
    assert_eq!(advisor.instances["i"].holds, BTreeMap::from([(2, "edge".to_owned())]));
}

#[test]
fn instances_are_bounded_and_the_world_is_that_of_the_site() {
    let mut advisor = mesh();
    advisor.limits.instances_max = 2;
    for number in 0..5 {
        advisor.apply(&stored(PlacementDecided { instance_id: format!("i{number}"), ..decided(1, "cloud", "") }, 10));
    }
    assert_eq!(advisor.instances.len(), 2);
    let profile = advisor.profile().unwrap();
    assert_eq!(profile.clusters.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["cloud", "device", "edge"]);
    let mut trainer = crate::domain::dqn::Trainer::new(Settings::default(), 1);
    assert!(trainer.episode(&profile).wanted > 0);
    assert_eq!(Advisor::new(Limits::default(), thrifty()).profile(), None);
}
