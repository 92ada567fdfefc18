//! Several sources as one: gauges add up, and so do counters, which never fall because one of the sources ends.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::telemetry::MetricKind;

use super::{Metric, Value};

/// The label of a device.
const DEVICE: &str = "system.device";

/// What sources have counted, those that have ended included.
#[derive(Clone, Debug)]
pub struct Tally<K> {
    living: BTreeMap<K, BTreeMap<Metric, f64>>,
    ended: BTreeMap<Metric, f64>,
}

impl<K: Ord> Default for Tally<K> {
    fn default() -> Self {
        Self { living: BTreeMap::new(), ended: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Tally<K> {
    /// What all sources together say, by metric. A metric that one of them lacks is left out: its sum would be too small.
    /// But of devices a source names only those that it has used.
    pub fn sum(&mut self, sources: Vec<(K, Vec<Value>)>) -> Vec<Value> {
        let present: BTreeSet<K> = sources.iter().map(|(key, _)| key.clone()).collect();
        let gone: Vec<K> = self.living.keys().filter(|key| !present.contains(key)).cloned().collect();
        for key in gone {
            for (metric, value) in self.living.remove(&key).unwrap_or_default() {
                *self.ended.entry(metric).or_default() += value;
            }
        }
        let number = sources.len();
        let mut sums: BTreeMap<Metric, (f64, usize)> = BTreeMap::new();
        for (key, values) in sources {
            for Value { metric, value, .. } in values {
                if metric.kind == MetricKind::Counter {
                    let living = self.living.entry(key.clone()).or_default();
                    let before = living.insert(metric.clone(), value).unwrap_or(0.0);
                    if value < before {
                        *self.ended.entry(metric.clone()).or_default() += before;
                    }
                }
                let (sum, count) = sums.entry(metric).or_default();
                *sum += value;
                *count += 1;
            }
        }
        sums.into_iter()
            .filter(|(metric, (_, count))| *count == number || metric.labels.iter().any(|(name, _)| name == DEVICE))
            .map(|(metric, (sum, _))| {
                let ended = self.ended.get(&metric).copied().unwrap_or(0.0);
                Value { metric, value: sum + ended, at: None }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::measure::catalog;

    fn source(cpu: f64, threads: f64) -> Vec<Value> {
        vec![catalog::PROCESS_CPU.value(cpu, &["user"]), catalog::PROCESS_THREADS.value(threads, &[])]
    }

    fn of(values: &[Value], name: &str) -> Option<f64> {
        values.iter().find(|value| value.metric.name == name).map(|value| value.value)
    }

    #[test]
    fn a_counter_outlives_its_source_and_a_gauge_does_not() {
        let mut tally = Tally::default();
        tally.sum(vec![(1, source(5.0, 2.0)), (2, source(7.0, 3.0))]);
        let said = tally.sum(vec![(2, source(8.0, 4.0))]);
        assert_eq!((of(&said, "process.cpu.time"), of(&said, "process.thread.count")), (Some(13.0), Some(4.0)));
        let said = tally.sum(vec![(2, source(1.0, 4.0)), (3, source(0.5, 1.0))]);
        assert_eq!(of(&said, "process.cpu.time"), Some(14.5), "one that began again");
    }

    #[test]
    fn what_one_source_lacks_is_left_out_and_not_too_small() {
        let mut tally = Tally::default();
        let said = tally.sum(vec![(1, source(5.0, 2.0)), (2, vec![catalog::PROCESS_THREADS.value(1.0, &[])])]);
        assert_eq!((of(&said, "process.cpu.time"), of(&said, "process.thread.count")), (None, Some(3.0)));
    }

    proptest! {
        #[test]
        fn a_sum_of_counters_never_falls(steps in prop::collection::vec((any::<[bool; 4]>(), 0u32..50), 1..60)) {
            let mut tally = Tally::default();
            let (mut counts, mut last) = ([0.0f64; 4], 0.0);
            for (alive, step) in steps {
                let mut sources = vec![];
                for (number, alive) in alive.into_iter().enumerate() {
                    if alive {
                        counts[number] += f64::from(step);
                        sources.push((number, source(counts[number], 1.0)));
                    } else {
                        // Its number may come again with another process.
                        counts[number] = 0.0;
                    }
                }
                if let Some(said) = of(&tally.sum(sources), "process.cpu.time") {
                    prop_assert!(said >= last, "{said} {last}");
                    last = said;
                }
            }
        }
    }
}
