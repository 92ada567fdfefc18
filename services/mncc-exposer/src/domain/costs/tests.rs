use mesh_proto::Event as _;
use proptest::prelude::*;

use super::*;

fn stored(event: &impl mesh_proto::Event) -> Stored {
    mesh_test::stored(event, 1, Timestamp::default())
}

fn with_members(ids: &[&str]) -> Costs {
    let mut costs = Costs::new(Limits::default());
    for (number, id) in ids.iter().enumerate() {
        let fact = ClusterRegistered {
            cluster_id: (*id).into(),
            site: format!("site-{id}"),
            node: format!("node-{id}"),
            probe_endpoint: format!("127.0.9.{}:7", number + 1),
            ..Default::default()
        };
        costs.apply(&stored(&fact));
    }
    costs
}

fn probe(from: &str, to: &str, at_ms: i64, latency_ms: f64) -> ProbeSample {
    ProbeSample {
        from_cluster: from.into(),
        to_cluster: to.into(),
        at: Some(Timestamp::from_millis(at_ms)),
        sent: 5,
        answered: 5,
        latency_ms,
        throughput_mbps: -1.0,
        ..Default::default()
    }
}

fn give(costs: &mut Costs, sample: &ProbeSample) {
    let key = format!("continuum/site-{0}/node-{0}/probe/{1}", sample.from_cluster, sample.to_cluster);
    costs.sample(&key, &sample.encode_to_vec().into());
}

fn changed(derived: &[Derived]) -> Option<CostsChanged> {
    let found = derived.iter().find(|d| d.event.message() == CostsChanged::MESSAGE)?;
    Some(CostsChanged::decode(found.event.body()).unwrap())
}

fn at(costs: &mut Costs, ms: i64) -> Option<CostsChanged> {
    changed(&costs.tick(Timestamp::from_millis(ms)))
}

#[test]
fn a_change_is_told_once_with_its_figures_and_an_outlier_is_not() {
    let mut costs = with_members(&["a", "b"]);
    costs.tick(Timestamp::from_millis(1_000));
    give(&mut costs, &probe("a", "b", 1_000, 1.0));
    let first = at(&mut costs, 2_000).unwrap();
    assert_eq!((first.version, first.links.len(), first.links[0].latency_ms), (1, 1, 1.0));
    give(&mut costs, &probe("a", "b", 2_100, 1.0));
    give(&mut costs, &probe("a", "b", 2_200, 90.0));
    assert_eq!(at(&mut costs, 3_000), None, "one outlier of three says nothing");
    give(&mut costs, &probe("a", "b", 3_100, 30.0));
    let second = at(&mut costs, 4_000).unwrap();
    assert_eq!(second.changes, ["a -> b latency 1.00 -> 30.00 ms"]);
    assert_eq!(at(&mut costs, 5_000), None, "what is known is not told again");
}

#[test]
fn a_link_that_fails_or_falls_silent_is_down_and_counted_once() {
    let mut costs = with_members(&["a", "b"]);
    costs.tick(Timestamp::from_millis(0));
    give(&mut costs, &probe("a", "b", 1, 1.0));
    at(&mut costs, 1_000).unwrap();
    let dead = |ms| ProbeSample {
        answered: 0,
        latency_ms: 0.0,
        loss_percent: 100.0,
        failed: true,
        ..probe("a", "b", ms, 0.0)
    };
    give(&mut costs, &dead(1_100));
    give(&mut costs, &dead(1_200));
    let down = at(&mut costs, 2_000).unwrap();
    assert_eq!((down.links[0].up, down.links[0].failures), (false, 1));
    give(&mut costs, &probe("a", "b", 2_100, 1.0));
    assert!(at(&mut costs, 3_000).unwrap().links[0].up);
    let silent = at(&mut costs, 70_000).unwrap();
    assert_eq!(
        (silent.links[0].up, silent.links[0].failures, silent.changes[0].as_str()),
        (false, 2, "a -> b is down")
    );
}

#[test]
fn samples_of_strangers_and_nonsense_are_counted_and_change_nothing() {
    let mut costs = with_members(&["a", "b"]);
    costs.tick(Timestamp::from_millis(10_000));
    let good = probe("a", "b", 10_000, 1.0);
    give(&mut costs, &probe("x", "b", 10_000, 1.0));
    give(&mut costs, &probe("a", "x", 10_000, 1.0));
    // A member that speaks for another: the key is the sender's own.
    costs.sample("continuum/site-b/node-b/probe/b", &good.encode_to_vec().into());
    assert_eq!(costs.counts().strangers, 3);
    give(&mut costs, &ProbeSample { latency_ms: f64::NAN, ..good.clone() });
    give(&mut costs, &ProbeSample { latency_ms: -1.0, ..good.clone() });
    give(&mut costs, &ProbeSample { answered: 9, ..good.clone() });
    give(&mut costs, &ProbeSample { loss_percent: 101.0, ..good.clone() });
    give(&mut costs, &ProbeSample { throughput_mbps: f64::INFINITY, ..good.clone() });
    give(&mut costs, &ProbeSample { at: None, ..good.clone() });
    costs.sample("continuum/site-a/node-a/probe/other", &good.encode_to_vec().into());
    costs.sample("continuum/site-a/node-a/probe/b", &Bytes::from_static(b"\xff\xff\xff"));
    assert_eq!(costs.counts().invalid, 8);
    give(&mut costs, &ProbeSample { at: Some(Timestamp::from_millis(99_000)), ..good.clone() });
    give(&mut costs, &good);
    give(&mut costs, &good);
    assert_eq!((costs.counts().untimely, costs.counts().accepted, costs.links().len()), (2, 1, 1));
}

#[test]
fn members_are_bounded() {
    let ids: Vec<String> = (0..=MEMBERS_MAX).map(|n| format!("m{n}")).collect();
    let costs = with_members(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((costs.members.len(), costs.counts().over_limit), (MEMBERS_MAX, 1));
}

#[test]
fn after_a_restart_nothing_is_said_twice() {
    let mut costs = with_members(&["a", "b"]);
    costs.tick(Timestamp::from_millis(0));
    give(&mut costs, &probe("a", "b", 1, 1.0));
    let first = at(&mut costs, 1_000).unwrap();
    let mut again = with_members(&["a", "b"]);
    again.apply(&stored(&first));
    again.tick(Timestamp::from_millis(2_000));
    give(&mut again, &probe("a", "b", 2_000, 1.1));
    assert_eq!((at(&mut again, 3_000), again.version()), (None, 1));
}

#[test]
fn the_metrics_have_the_shape_and_names_of_the_data_model() {
    let mut costs = with_members(&["a", "b"]);
    costs.limits.metrics_ms = 1_000;
    costs.tick(Timestamp::from_millis(0));
    give(
        &mut costs,
        &ProbeSample { throughput_mbps: 12_809.54, answered: 4, loss_percent: 20.0, ..probe("a", "b", 1, 0.28) },
    );
    let derived = costs.tick(Timestamp::from_millis(30_000));
    let metrics = derived.iter().find(|d| d.event.message() == NetworkMetricsPublished::MESSAGE).unwrap();
    let json = mesh_proto::json::to_value(NetworkMetricsPublished::MESSAGE, &metrics.event.body()).unwrap();
    assert_eq!(json["network-metrics"]["nodes"][0], serde_json::json!({"name": "a", "ip": "127.0.9.1"}));
    let link = &json["network-metrics"]["links"][0];
    assert_eq!((&link["name"], &link["source"], &link["destination"]), (&"a-b".into(), &"a".into(), &"b".into()));
    let vector = &link["metrics"][0];
    assert_eq!(vector["link-energy"], 1691, "0.132 W per Mbps, as all published values agree");
    assert_eq!((vector["packet-loss"].as_i64(), vector["latency"].as_f64()), (Some(20), Some(0.28)));
    assert_eq!((vector["bandwidth"].as_f64(), json["metadata"]["timestamp"].as_i64()), (Some(12_809.54), Some(30)));
    assert_eq!(json["metadata"]["metrics"].as_array().unwrap().len(), 5);
    costs.limits.metrics_on_change = true;
    assert!(
        !costs
            .tick(Timestamp::from_millis(40_000))
            .iter()
            .any(|d| d.event.message() == NetworkMetricsPublished::MESSAGE)
    );
}

proptest! {
    #[test]
    fn samples_in_any_order_never_panic_and_links_stay_within_members(
        steps in prop::collection::vec((0usize..4, 0usize..4, 0i64..20_000, -1.0f64..100.0, 0u32..7), 0..200)
    ) {
        let names = ["a", "b", "c", "x"];
        let mut costs = with_members(&names[..3]);
        for (from, to, ms, latency, answered) in steps {
            costs.tick(Timestamp::from_millis(ms.max(costs.now.as_millis())));
            give(&mut costs, &ProbeSample { answered, ..probe(names[from], names[to], ms, latency) });
        }
        prop_assert!(costs.links().len() <= 6);
        for link in costs.links() {
            prop_assert!((0.0..=100.0).contains(&link.loss_percent) && link.latency_ms >= 0.0);
        }
    }
}
