//! What an agent may say: values a second, and series. What belongs to workloads gets three quarters of each at most, so
//! that no workload keeps the host's own measurements from being said.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use mesh_proto::Timestamp;

use super::{Entity, Value};

/// Values that may be said at once, as a multiple of those of a second.
const BURST: f64 = 2.0;
/// Share that what belongs to workloads may use.
const SHARE_OF_WORKLOADS: f64 = 0.75;
/// A series that was not said for so long counts no more, milliseconds.
const SERIES_MS: i64 = 300_000;
/// Between two looks for such series, milliseconds.
const SWEEP_MS: i64 = 10_000;

/// Limits of an agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Values a second.
    pub values_per_s: u32,
    /// Series.
    pub series: u32,
}

/// A number a second, in bursts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    per_s: f64,
    capacity: f64,
    left: f64,
    at: Timestamp,
}

impl Bucket {
    /// Full at first.
    pub fn new(per_s: f64, capacity: f64, now: Timestamp) -> Self {
        Self { per_s, capacity, left: capacity, at: now }
    }

    /// What is left now.
    pub fn left(&mut self, now: Timestamp) -> f64 {
        let passed_s = now.millis_since(self.at).max(0) as f64 / 1e3;
        self.at = self.at.max(now);
        self.left = (self.left + passed_s * self.per_s).min(self.capacity);
        self.left
    }

    /// Takes some, if that much is left.
    pub fn take(&mut self, wanted: f64, now: Timestamp) -> bool {
        let is_left = self.left(now) >= wanted;
        if is_left {
            self.left -= wanted;
        }
        is_left
    }
}

struct Series {
    seen: Timestamp,
    of_workload: bool,
}

/// What is left.
pub struct Budget {
    limits: Limits,
    values: Bucket,
    swept: Timestamp,
    series: BTreeMap<u64, Series>,
    of_workloads: usize,
}

impl Budget {
    /// Full at first.
    pub fn new(limits: Limits, now: Timestamp) -> Self {
        let per_s = f64::from(limits.values_per_s);
        let values = Bucket::new(per_s, per_s * BURST, now);
        Self { limits, values, swept: now, series: BTreeMap::new(), of_workloads: 0 }
    }

    /// Series that count.
    pub fn series(&self) -> usize {
        self.series.len()
    }

    /// Takes out what may not be said; gives why, if that is any.
    pub fn cut(&mut self, probe: &str, entity: &Entity, values: &mut Vec<Value>, now: Timestamp) -> Option<String> {
        let per_s = f64::from(self.limits.values_per_s);
        if now.millis_since(self.swept) >= SWEEP_MS {
            self.swept = now;
            self.series.retain(|_, series| now.millis_since(series.seen) < SERIES_MS);
            self.of_workloads = self.series.values().filter(|series| series.of_workload).count();
        }
        let of_workload = matches!(entity.kind, "instance" | "application");
        let kept_back = if of_workload { per_s * BURST * (1.0 - SHARE_OF_WORKLOADS) } else { 0.0 };
        let series_max = self.limits.series as usize;
        let of_workloads_max = (f64::from(self.limits.series) * SHARE_OF_WORKLOADS) as usize;
        let (mut spent, mut strange) = (0usize, 0usize);
        values.retain(|value| {
            if self.values.left(now) - kept_back < 1.0 {
                spent += 1;
                return false;
            }
            let mut hasher = DefaultHasher::new();
            (probe, entity, &value.metric).hash(&mut hasher);
            let key = hasher.finish();
            if let Some(series) = self.series.get_mut(&key) {
                series.seen = now;
            } else if self.series.len() >= series_max || (of_workload && self.of_workloads >= of_workloads_max) {
                strange += 1;
                return false;
            } else {
                self.of_workloads += usize::from(of_workload);
                self.series.insert(key, Series { seen: now, of_workload });
            }
            self.values.take(1.0, now)
        });
        let mut why = vec![];
        if spent > 0 {
            let limit = self.limits.values_per_s;
            why.push(format!("{spent} values left out: this agent may say {limit} a second (measure_values_per_s)"));
        }
        if strange > 0 {
            let limit = self.limits.series;
            why.push(format!("{strange} new series left out: this agent may have {limit} (measure_series_max)"));
        }
        (!why.is_empty()).then(|| why.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::measure::catalog;

    const T0: Timestamp = Timestamp::from_millis(1_000_000);

    fn values(from: usize, count: usize) -> Vec<Value> {
        (from..from + count).map(|n| catalog::TEMPERATURE.value(1.0, &[&n.to_string(), "x"])).collect()
    }

    #[test]
    fn a_workload_that_floods_leaves_the_host_its_share() {
        let mut budget = Budget::new(Limits { values_per_s: 100, series: 40 }, T0);
        let (app, node) = (Entity::of("application", "a"), Entity::of("node", "n"));
        let mut flood = values(0, 1_000);
        let why = budget.cut("application", &app, &mut flood, T0).unwrap();
        assert_eq!(flood.len(), 30, "three quarters of the series: {why}");
        let mut host = values(0, 10);
        assert_eq!(budget.cut("cpu", &node, &mut host, T0), None);
        assert_eq!((host.len(), budget.series()), (10, 40));
        for _ in 0..20 {
            budget.cut("application", &app, &mut values(0, 30), T0);
        }
        let mut host = values(0, 10);
        assert_eq!(budget.cut("cpu", &node, &mut host, T0), None, "a quarter of the values is kept for it");
        let later = T0.plus_millis(SERIES_MS + SWEEP_MS);
        let mut other = values(5_000, 30);
        assert_eq!(
            budget.cut("application", &app, &mut other, later),
            None,
            "what is not said any more counts no more"
        );
    }

    proptest! {
        #[test]
        fn no_more_is_said_than_the_burst_and_what_time_brought(asks in prop::collection::vec((0usize..300, 0i64..500), 1..60)) {
            let mut budget = Budget::new(Limits { values_per_s: 100, series: 1_000 }, T0);
            let node = Entity::of("node", "n");
            let (mut now, mut said) = (T0, 0);
            for (count, wait) in asks {
                now = now.plus_millis(wait);
                let mut asked = values(0, count);
                let why = budget.cut("cpu", &node, &mut asked, now);
                prop_assert_eq!(why.is_some(), asked.len() < count);
                said += asked.len();
            }
            prop_assert!(said as f64 <= 200.0 + now.millis_since(T0) as f64 / 10.0 + 1.0);
        }
    }
}
