//! A rate that follows its signal: it falls while nothing moves, and rises at once when something does.
//!
//! After each reading, every leading value is compared with the line through the two readings before. While all lie
//! within the allowed share of their usual range, the interval grows by half, up to its longest; once one does not, it is
//! the shortest again. What a counter leads by is its rate.

use std::collections::BTreeMap;

use mesh_proto::{Timestamp, telemetry::MetricKind};

use super::{Metric, Value};

/// How fast the usual range forgets, share a reading.
const FORGETS: f64 = 0.01;
/// The usual range is at least this share of the largest value, so that the noise of a constant is not taken for movement.
const RANGE_MIN_SHARE: f64 = 0.01;
/// Leading values that are followed; more do not matter.
const FOLLOWED_MAX: usize = 256;

/// Bounds of a rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Shortest time between two readings, milliseconds.
    pub min_ms: u32,
    /// Longest time between two readings, milliseconds.
    pub max_ms: u32,
    /// How far a value may lie from its line, per cent of its usual range.
    pub error_percent: f64,
}

/// One value as it moves.
#[derive(Clone, Debug, Default, PartialEq)]
struct Signal {
    /// The last two points, older first: milliseconds since the first reading, and the value.
    points: Vec<(f64, f64)>,
    /// Of a counter, what it stood at.
    stood: Option<f64>,
    low: f64,
    high: f64,
}

impl Signal {
    /// Takes in a point; gives how far it lies from the line through the two before, per cent of the range before it.
    fn take(&mut self, at_ms: f64, value: f64) -> f64 {
        let error = match self.points[..] {
            [(t1, v1), (t2, v2)] if t2 > t1 => {
                let expected = v2 + (v2 - v1) / (t2 - t1) * (at_ms - t2);
                let largest = self.low.abs().max(self.high.abs());
                let range = (self.high - self.low).max(largest * RANGE_MIN_SHARE);
                let off = (value - expected).abs();
                if off == 0.0 {
                    0.0
                } else if range > 0.0 {
                    off / range * 100.0
                } else {
                    // All were zero, and this is not.
                    100.0
                }
            }
            _ => 0.0,
        };
        if self.points.is_empty() {
            (self.low, self.high) = (value, value);
        }
        let middle = f64::midpoint(self.low, self.high);
        self.low = value.min(self.low + (middle - self.low) * FORGETS);
        self.high = value.max(self.high + (middle - self.high) * FORGETS);
        if self.points.len() == 2 {
            self.points.remove(0);
        }
        self.points.push((at_ms, value));
        error
    }
}

/// The rate of one probe of one entity.
#[derive(Clone, Debug, PartialEq)]
pub struct Follower {
    bounds: Bounds,
    interval_ms: u32,
    began: Option<Timestamp>,
    last: Option<Timestamp>,
    signals: BTreeMap<Metric, Signal>,
    saved: u64,
    error_percent: f64,
}

impl Follower {
    /// At its shortest interval.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            interval_ms: bounds.min_ms,
            began: None,
            last: None,
            signals: BTreeMap::new(),
            saved: 0,
            error_percent: 0.0,
        }
    }

    /// Its bounds.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Until the next reading, milliseconds.
    pub fn interval_ms(&self) -> u32 {
        self.interval_ms
    }

    /// Readings left out: what the shortest interval would have made more.
    pub fn saved(&self) -> u64 {
        self.saved
    }

    /// How far a value lay from its line at most after readings had been left out, per cent of its usual range.
    pub fn error_percent(&self) -> f64 {
        self.error_percent
    }

    /// Takes in a reading; gives the time until the next one, milliseconds.
    pub fn take(&mut self, at: Timestamp, values: &[Value]) -> u32 {
        let began = *self.began.get_or_insert(at);
        let at_ms = (at.as_nanos() - began.as_nanos()) as f64 / 1e6;
        let since_ms = self.last.map_or(0, |last| at.millis_since(last)).max(0).unsigned_abs();
        self.last = Some(at);
        let left_out = (since_ms / u64::from(self.bounds.min_ms).max(1)).saturating_sub(1);
        self.saved += left_out;
        let mut error = 0.0f64;
        for value in values.iter().filter(|value| value.metric.leads && value.value.is_finite()) {
            if self.signals.len() >= FOLLOWED_MAX && !self.signals.contains_key(&value.metric) {
                continue;
            }
            let signal = self.signals.entry(value.metric.clone()).or_default();
            let led = match value.metric.kind {
                MetricKind::Counter => {
                    let stood = signal.stood.replace(value.value);
                    let Some(stood) = stood.filter(|stood| *stood <= value.value && since_ms > 0) else { continue };
                    (value.value - stood) / since_ms as f64
                }
                _ => value.value,
            };
            error = error.max(signal.take(at_ms, led));
        }
        if left_out > 0 {
            self.error_percent = self.error_percent.max(error);
        }
        self.interval_ms = if error > self.bounds.error_percent {
            self.bounds.min_ms
        } else {
            (self.interval_ms + self.interval_ms / 2 + 1).clamp(self.bounds.min_ms, self.bounds.max_ms)
        };
        self.interval_ms
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::measure::catalog;

    const T0: Timestamp = Timestamp::from_millis(1_000_000);
    const BOUNDS: Bounds = Bounds { min_ms: 100, max_ms: 5_000, error_percent: 10.0 };

    fn gauge(value: f64) -> Vec<Value> {
        vec![catalog::MEMORY_UTILIZATION.value(value, &[])]
    }

    /// Reads a signal for so long; gives the times of the readings.
    fn run(follower: &mut Follower, length_ms: i64, signal: impl Fn(i64) -> Vec<Value>) -> Vec<i64> {
        let (mut times, mut now) = (vec![], 0);
        while now < length_ms {
            times.push(now);
            now += i64::from(follower.take(T0.plus_millis(now), &signal(now)));
        }
        times
    }

    #[test]
    fn what_does_not_move_is_read_rarely_and_what_jumps_at_once_often() {
        let mut follower = Follower::new(BOUNDS);
        let times = run(&mut follower, 60_000, |at| gauge(if at < 30_000 { 0.5 } else { 0.9 }));
        let before: Vec<&i64> = times.iter().filter(|at| **at < 30_000).collect();
        assert!(before.len() < 30, "{} of 300", before.len());
        let jump = times.iter().position(|at| *at >= 30_000).unwrap();
        assert!(times[jump + 1] - times[jump] == 100, "{:?}", &times[jump - 1..jump + 3]);
        assert!(follower.error_percent() > 10.0);
        let (made, all) = (times.len() as u64, 1 + (*times.last().unwrap() as u64) / 100);
        let counted = made + follower.saved();
        assert!((all - made..=all).contains(&counted), "{made} made, {} saved of {all}", follower.saved());
    }

    #[test]
    fn a_steady_counter_and_a_steady_slope_do_not_move() {
        let counter = |at: i64| vec![catalog::NETWORK_IO.value(at as f64 * 7.0, &["eth0", "receive"])];
        for signal in [&counter as &dyn Fn(i64) -> Vec<Value>, &|at| gauge(at as f64 / 1e6)] {
            let mut follower = Follower::new(BOUNDS);
            let times = run(&mut follower, 100_000, signal);
            assert_eq!(follower.interval_ms(), BOUNDS.max_ms);
            assert!(
                times.len() < 50 && follower.error_percent() < 1e-6,
                "{} {}",
                times.len(),
                follower.error_percent()
            );
        }
    }

    #[test]
    fn a_counter_that_begins_again_is_no_movement() {
        let mut follower = Follower::new(BOUNDS);
        run(&mut follower, 60_000, |at| vec![catalog::NETWORK_IO.value((at % 20_000) as f64, &["eth0", "receive"])]);
        assert!(follower.error_percent() < 1e-6, "{}", follower.error_percent());
    }

    proptest! {
        #[test]
        fn the_interval_stays_within_bounds_and_every_reading_is_counted(
            min_ms in 10u32..500, more_ms in 0u32..10_000, error_percent in 0.1f64..50.0,
            signal in prop::collection::vec(-1e9f64..1e9, 2..120),
        ) {
            let bounds = Bounds { min_ms, max_ms: min_ms + more_ms, error_percent };
            let mut follower = Follower::new(bounds);
            let (mut now, mut left_out, mut last) = (0i64, 0u64, None);
            for value in &signal {
                let grown = follower.interval_ms();
                if let Some(last) = last {
                    left_out += ((now - last) as u64 / u64::from(min_ms)).saturating_sub(1);
                }
                let next = follower.take(T0.plus_millis(now), &gauge(*value));
                prop_assert!((bounds.min_ms..=bounds.max_ms).contains(&next));
                prop_assert!(next == bounds.min_ms || next >= grown.min(bounds.max_ms), "it falls to the shortest or grows");
                last = Some(now);
                now += i64::from(next);
            }
            prop_assert_eq!(follower.saved(), left_out);
            prop_assert!(follower.error_percent() >= 0.0);
        }

        #[test]
        fn a_value_off_its_line_by_more_than_allowed_is_answered_at_once(
            quiet in 3usize..60, base in 1.0f64..1e6, factor in 1.5f64..10.0,
        ) {
            let mut follower = Follower::new(BOUNDS);
            let mut now = 0i64;
            for _ in 0..quiet {
                now += i64::from(follower.take(T0.plus_millis(now), &gauge(base)));
            }
            prop_assert_eq!(follower.take(T0.plus_millis(now), &gauge(base * factor)), BOUNDS.min_ms);
        }
    }
}
