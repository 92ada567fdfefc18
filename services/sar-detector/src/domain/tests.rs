//! The detector as a whole: streams and samples in, episodes out.

use mesh_proto::{Event, anomaly::Direction};

use prost::Message as _;

use super::{forest::Rng, *};

const T0: i64 = 1_000_000_000;

fn sample(second: i64, cpu_milli: f64) -> InstanceSample {
    InstanceSample {
        cluster_id: "edge".into(),
        instance_id: "i".into(),
        owner: "local".into(),
        generation: 1,
        at: Some(Timestamp::from_millis(T0 + second * 1_000)),
        cpu_milli,
        cpu_percent: cpu_milli / 10.0,
        memory_bytes: 20_000_000,
        replicas_running: 1,
        interval_seconds: 1.0,
        ..InstanceSample::default()
    }
}

fn quiet(rng: &mut Rng, second: i64) -> InstanceSample {
    sample(second, 60.0 + 8.0 * rng.unit())
}

fn live(sar: &mut Sar, sample: &InstanceSample) -> Vec<Derived> {
    let mut derived = sar.tick(sample.at.unwrap());
    derived
        .extend(sar.sample(&format!("continuum/s/n/instance/{}", sample.instance_id), &sample.encode_to_vec().into()));
    derived
}

fn stored(event: &impl Event) -> Stored {
    mesh_test::stored(event, 1, Timestamp::default())
}

fn detected(derived: &[Derived]) -> Vec<AnomalyDetected> {
    let of = derived.iter().filter(|d| d.event.message() == AnomalyDetected::MESSAGE);
    of.map(|d| AnomalyDetected::decode(d.event.body()).unwrap()).collect()
}

fn cleared(derived: &[Derived]) -> Vec<AnomalyCleared> {
    let of = derived.iter().filter(|d| d.event.message() == AnomalyCleared::MESSAGE);
    of.map(|d| AnomalyCleared::decode(d.event.body()).unwrap()).collect()
}

fn taught() -> (Sar, Rng) {
    let (mut sar, mut rng) = (Sar::new(Limits::default(), vec![]), Rng(5));
    for second in 0..100 {
        assert!(live(&mut sar, &quiet(&mut rng, second)).is_empty());
    }
    (sar, rng)
}

fn pack(samples: Vec<InstanceSample>) -> Stored {
    stored(&Measured { cluster_id: "edge".into(), instance_id: "i".into(), samples })
}

#[test]
fn an_episode_is_detected_once_and_cleared_once_with_its_cause() {
    let (mut sar, mut rng) = taught();
    let wanted = InstanceWanted {
        owner: "local".into(),
        instance_id: "i".into(),
        workload: "w@1.0.0".into(),
        replicas: 1,
        ..Default::default()
    };
    sar.apply(&stored(&wanted));
    let mut derived = vec![];
    for second in 100..130 {
        derived.extend(live(&mut sar, &sample(second, 500.0)));
    }
    let begun = detected(&derived);
    assert_eq!((derived.len(), begun.len()), (5, 1));
    let first = &begun[0];
    // Whatever measures the instance looks more often, but for the samples that are judged.
    let asked = derived.iter().filter(|d| d.event.message() == SetMeasurement::MESSAGE);
    let asked: Vec<SetMeasurement> = asked.map(|d| SetMeasurement::decode(d.event.body()).unwrap()).collect();
    let mut probes = vec![];
    for ask in &asked {
        let setting = ask.setting.clone().unwrap();
        let selector = setting.selector.unwrap();
        assert_eq!((ask.cluster_id.as_str(), selector.entity_id.as_str()), ("edge", "i"));
        assert_eq!((setting.interval_ms, setting.until), (200, first.at.map(|at| at.plus_millis(120_000))));
        assert!(mesh_proto::is_key(&ask.setting_id), "{}", ask.setting_id);
        probes.push(format!("{} {}", selector.entity_kind, selector.probe));
    }
    assert_eq!(probes, ["instance process", "instance cgroup", "application application", "application otlp"]);
    let names: std::collections::BTreeSet<&str> = asked.iter().map(|ask| ask.setting_id.as_str()).collect();
    let ids: std::collections::BTreeSet<&str> = derived.iter().map(|d| d.id.as_str()).collect();
    assert_eq!((names.len(), ids.len()), (4, 5));
    assert_eq!(
        (first.contributions[0].metric.as_str(), first.contributions[0].direction()),
        ("cpu_milli", Direction::Above)
    );
    assert_eq!(first.samples, 3);
    assert_eq!(first.since, sample(100, 0.0).at);
    assert_eq!(first.source, "continuum/s/n/instance/i");
    assert!(
        first.sentence.contains("instance i (w@1.0.0) on edge: cpu_milli is above what is usual: 500 mCPU"),
        "{}",
        first.sentence
    );
    assert_eq!(sar.episodes(|v| v.cleared.is_none(), 10).len(), 1);
    let mut derived = vec![];
    for second in 130..160 {
        derived.extend(live(&mut sar, &quiet(&mut rng, second)));
    }
    let ended = cleared(&derived);
    assert_eq!((derived.len(), ended.len(), ended[0].ending()), (1, 1, Ending::Normal));
    assert_eq!(ended[0].episode_id, first.episode_id);
    assert_eq!(sar.open(), 0);
    assert!(sar.episode(&first.episode_id[..8]).is_some_and(|view| view.cleared.is_some()));
}

#[test]
fn the_same_sample_by_both_ways_counts_once() {
    let (mut sar, mut rng) = taught();
    let one = quiet(&mut rng, 200);
    live(&mut sar, &one);
    let before = sar.counts();
    sar.apply(&pack(vec![one]));
    assert_eq!(sar.counts(), Counts { known: before.known + 1, ..before });
}

#[test]
fn history_trains_silently_and_the_first_live_sample_reports() {
    let (mut sar, mut rng) = (Sar::new(Limits::default(), vec![]), Rng(5));
    let mut past: Vec<_> = (0..100).map(|second| quiet(&mut rng, second)).collect();
    past.extend((100..110).map(|second| sample(second, 500.0)));
    assert!(sar.apply(&pack(past)).is_empty());
    assert_eq!(sar.open(), 0);
    let told = detected(&live(&mut sar, &sample(115, 500.0)));
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].since, sample(100, 0.0).at);
}

#[test]
fn a_restart_neither_repeats_nor_forgets_an_episode() {
    let (mut sar, mut rng) = taught();
    let mut derived = vec![];
    for second in 100..105 {
        derived.extend(live(&mut sar, &sample(second, 500.0)));
    }
    let told = detected(&derived);
    let bytes = sar.snapshot();

    let mut again = Sar::new(Limits::default(), vec![]);
    assert_eq!(again.restore(&bytes).unwrap(), 1);
    again.apply(&stored(&told[0]));
    let mut derived = vec![];
    for second in 105..120 {
        derived.extend(live(&mut again, &sample(second, 500.0)));
    }
    assert!(derived.is_empty(), "it was told before the restart");
    for second in 120..140 {
        derived.extend(live(&mut again, &quiet(&mut rng, second)));
    }
    assert_eq!(
        cleared(&derived).iter().map(|c| c.episode_id.clone()).collect::<Vec<_>>(),
        [told[0].episode_id.clone()]
    );
}

#[test]
fn a_snapshot_restores_identical_scores() {
    let (sar, mut rng) = taught();
    let mut other = Sar::new(Limits::default(), vec![]);
    other.restore(&sar.snapshot()).unwrap();
    let mut sar = sar;
    for second in 100..400 {
        let next = sample(second, 40.0 + 60.0 * rng.unit());
        live(&mut sar, &next);
        live(&mut other, &next);
        let (one, two) = (sar.explain("i").unwrap(), other.explain("i").unwrap());
        assert_eq!(one.score.to_bits(), two.score.to_bits(), "second {second}");
    }
    assert!(other.restore(b"nonsense").is_err());
}

#[test]
fn an_instance_that_ends_or_falls_silent_ends_its_episode() {
    for silent in [false, true] {
        let (mut sar, _) = taught();
        for second in 100..105 {
            live(&mut sar, &sample(second, 500.0));
        }
        assert_eq!(sar.open(), 1);
        let derived = if silent {
            sar.tick(Timestamp::from_millis(T0 + 170_000))
        } else {
            let gone = InstanceWanted { owner: "local".into(), instance_id: "i".into(), ..Default::default() };
            sar.apply(&stored(&gone))
        };
        let ending = if silent { Ending::Silent } else { Ending::Gone };
        assert_eq!(cleared(&derived).iter().map(|c| c.ending()).collect::<Vec<_>>(), [ending]);
        assert_eq!(sar.open(), 0);
    }
}

#[test]
fn rules_are_detectors_of_their_own() {
    let rules = rules::read("hot: cpu_percent > 30 for 2s").unwrap();
    let mut sar = Sar::new(Limits::default(), rules);
    let mut derived = vec![];
    for second in 0..10 {
        derived.extend(live(&mut sar, &sample(second, if second < 3 { 100.0 } else { 400.0 })));
    }
    let told = detected(&derived);
    assert_eq!(told.iter().map(|d| d.detector.as_str()).collect::<Vec<_>>(), ["rule:hot"]);
    assert_eq!((told[0].score, told[0].threshold, told[0].since), (40.0, 30.0, sample(3, 0.0).at));
    // The rule is taken away: its episode does not stay open for ever.
    let mut other = Sar::new(Limits::default(), vec![]);
    other.apply(&stored(&told[0]));
    let derived = other.tick(Timestamp::from_millis(T0 + 11_000));
    assert_eq!(cleared(&derived).iter().map(|c| c.ending()).collect::<Vec<_>>(), [Ending::Dropped]);
}

#[test]
fn hostile_samples_change_nothing_and_are_counted() {
    let (mut sar, _) = taught();
    let good = sample(100, 60.0);
    let before = sar.counts();
    for wrong in [
        InstanceSample { cpu_milli: f64::NAN, ..good.clone() },
        InstanceSample { cpu_percent: -1.0, ..good.clone() },
        InstanceSample { io_read_rate: f64::INFINITY, ..good.clone() },
        InstanceSample { at: None, ..good.clone() },
        InstanceSample { owner: "a.b".into(), ..good.clone() },
        InstanceSample { cluster_id: String::new(), ..good.clone() },
    ] {
        assert!(sar.sample("continuum/s/n/instance/i", &wrong.encode_to_vec().into()).is_empty());
    }
    sar.sample("continuum/s/n/instance/other", &good.encode_to_vec().into());
    sar.sample("continuum/s/n/instance/i", &Bytes::from_static(b"\xff\xff\xff"));
    let future = InstanceSample { at: Some(Timestamp::from_millis(T0 + 900_000)), ..good.clone() };
    sar.sample("continuum/s/n/instance/i", &future.encode_to_vec().into());
    assert_eq!(sar.counts(), Counts { invalid: before.invalid + 8, ahead: before.ahead + 1, ..before });

    let mut small = Sar::new(Limits { instances_max: 3, ..Limits::default() }, vec![]);
    for n in 0..10 {
        live(&mut small, &InstanceSample { instance_id: format!("i{n}"), ..sample(n, 60.0) });
    }
    assert_eq!((small.models().0, small.counts().crowded), (3, 7));
}
