//! An instance that lives, and to which things happen.

use super::*;

/// Quiet seconds of an instance, and what its watch says of them.
struct Life {
    watch: Watch,
    rng: Rng,
    second: i64,
    generation: u64,
}

impl Life {
    fn new(seed: u64) -> Self {
        Self { watch: Watch::new(seed, 0), rng: Rng(seed), second: 0, generation: 1 }
    }

    fn sample(&mut self, cpu_milli: f64, memory_mb: f64) -> Vec<Change> {
        self.second += 1;
        let sample = InstanceSample {
            cluster_id: "edge".into(),
            owner: "local".into(),
            generation: self.generation,
            at: Some(Timestamp::from_millis(1_000_000 + self.second * 1_000)),
            cpu_milli,
            cpu_percent: cpu_milli / 10.0,
            memory_bytes: (memory_mb * 1e6) as u64,
            replicas_running: 1,
            interval_seconds: 1.0,
            ..InstanceSample::default()
        };
        self.watch.take("continuum/s/n/instance/i", &sample, &[], &Judgement::default())
    }

    /// CPU that wavers by a fifth and now and then more, as it does on a busy machine.
    fn quiet(&mut self) -> Vec<Change> {
        let spike = if self.rng.below(50) == 0 { 25.0 } else { 0.0 };
        let (cpu, memory) = (60.0 + 12.0 * (self.rng.unit() - 0.5) + spike, 20.0 + 0.3 * self.rng.unit());
        self.sample(cpu, memory)
    }

    fn live(seed: u64) -> Self {
        let mut life = Self::new(seed);
        for _ in 0..120 {
            assert_eq!(life.quiet(), vec![]);
        }
        life
    }

    /// Samples until something changes.
    fn until(&mut self, mut sample: impl FnMut(&mut Self) -> Vec<Change>) -> (u32, Change) {
        for count in 1..200 {
            if let Some(change) = sample(self).pop() {
                return (count, change);
            }
        }
        panic!("nothing changes within 200 samples");
    }
}

fn began(change: &Change) -> &Finding {
    match change {
        Change::Began(finding) => finding,
        Change::Ended(..) => panic!("{change:?}"),
    }
}

#[test]
fn quiet_hours_say_nothing() {
    let mut alarms = 0;
    for seed in 0..10 {
        let mut life = Life::new(seed);
        alarms += (0..3_600).map(|_| life.quiet().len()).sum::<usize>();
    }
    assert_eq!(alarms, 0, "false alarms in ten workload-hours");
}

#[test]
fn a_hog_a_leak_and_a_stuck_process_are_found_with_their_cause() {
    for seed in 0..20 {
        let (count, change) = Life::live(seed).until(|life| life.sample(400.0, 20.1));
        let found = began(&change);
        assert!(count <= 3, "hog: {count} samples");
        assert_eq!(
            (found.contributions[0].metric.as_str(), found.contributions[0].direction()),
            ("cpu_milli", Direction::Above)
        );

        let mut memory = 20.0;
        let (count, change) = Life::live(seed).until(|life| {
            memory += 4.0;
            let cpu = 60.0 + 5.0 * life.rng.unit();
            life.sample(cpu, memory)
        });
        let found = began(&change);
        assert!(count <= 8, "leak: {count} samples");
        assert_eq!(found.contributions[0].metric, "memory_bytes", "{found:?}");
        assert!(found.says.contains("memory_bytes is above"), "{}", found.says);

        let (count, change) = Life::live(seed).until(|life| life.sample(0.0, 20.1));
        let found = began(&change);
        assert!(count <= 3, "stuck: {count} samples");
        assert_eq!(
            (found.contributions[0].metric.as_str(), found.contributions[0].direction()),
            ("cpu_milli", Direction::Below)
        );
        assert!((found.contributions.iter().map(|c| c.share).sum::<f64>() - 1.0).abs() < 1e-9);
    }
}

#[test]
fn an_episode_is_told_once_and_ends_when_it_is_as_usual_again() {
    let mut life = Life::live(1);
    life.until(|life| life.sample(400.0, 20.1));
    for _ in 0..60 {
        assert_eq!(life.sample(400.0, 20.1), vec![]);
    }
    let (count, change) = life.until(Life::quiet);
    assert!(matches!(&change, Change::Ended(d, Ending::Normal, _) if d == MULTIVARIATE), "{change:?}");
    assert!((5..=10).contains(&count), "{count}");
    assert_eq!((0..300).map(|_| life.quiet().len()).sum::<usize>(), 0, "what was anomalous was not learned as usual");
    life.until(|life| life.sample(400.0, 20.1));
}

#[test]
fn the_first_samples_of_a_generation_are_not_judged() {
    let mut life = Life::live(3);
    life.generation = 2;
    for memory in [1.0, 5.0, 12.0] {
        assert_eq!(life.sample(300.0, memory), vec![]);
    }
    assert_eq!((0..60).map(|_| life.quiet().len()).sum::<usize>(), 0);
    let second = life.second;
    life.generation = 1;
    assert_eq!(life.sample(400.0, 20.0), vec![], "an older generation is not heard");
    assert_eq!(life.watch.last, Timestamp::from_millis(1_000_000 + second * 1_000));
}

#[test]
fn what_goes_on_for_long_is_what_is_usual() {
    let mut life = Life::live(4);
    life.until(|life| life.sample(400.0, 20.1));
    let mut changes = vec![];
    for _ in 0..1_000 {
        changes.extend(life.sample(400.0, 20.1));
    }
    assert!(matches!(changes.as_slice(), [Change::Ended(_, Ending::Learned, _)]), "{changes:?}");
    assert_eq!((0..100).map(|_| life.sample(400.0, 20.1).len()).sum::<usize>(), 0);
}

#[test]
fn what_ends_is_said_to_end() {
    let mut life = Life::live(5);
    assert_eq!(life.watch.end(Ending::Gone, "it ended", &[]), vec![]);
    life.until(|life| life.sample(400.0, 20.1));
    let ended = life.watch.end(Ending::Gone, "it ended", &[]);
    assert_eq!(ended, vec![Change::Ended(MULTIVARIATE.into(), Ending::Gone, "it ended".into())]);
}
