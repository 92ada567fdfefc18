//! What went through to one instance over one observation period, on one cluster, added up over turns, replicas and gateways.

use std::fmt;

use mesh_proto::telemetry::RouteTraffic;
use sketches_ddsketch::{Config, DDSketch};

/// Relative error of a quantile, beside that of the times as they come.
const ERROR: f64 = 0.01;
/// Buckets of a sketch: more than there are between the shortest time and the longest.
const BUCKETS_MAX: u32 = 2_048;
/// Seconds below which answers are not told apart, and above which they are not.
const SECONDS: [f64; 2] = [1e-6, 86_400.0];

/// The sum. The order in which its parts come does not matter.
pub(crate) struct Traffic {
    requests: u64,
    errors: u64,
    sketch: DDSketch,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { requests: 0, errors: 0, sketch: DDSketch::new(Config::new(ERROR, BUCKETS_MAX, SECONDS[0])) }
    }
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (requests, errors) = (self.requests, self.errors);
        f.debug_struct("Traffic").field("requests", &requests).field("errors", &errors).finish_non_exhaustive()
    }
}

impl Traffic {
    /// Adds what one gateway counted in one turn.
    pub(crate) fn add(&mut self, more: &RouteTraffic) {
        self.requests = self.requests.saturating_add(more.requests);
        self.errors = self.errors.saturating_add(more.errors);
        for (seconds, count) in more.seconds.iter().zip(&more.answers) {
            self.sketch.add_with_count(seconds.clamp(SECONDS[0], SECONDS[1]), *count);
        }
    }

    /// Requests in all.
    pub(crate) fn requests(&self) -> u64 {
        self.requests
    }

    /// Milliseconds below or at which this per cent of the answers began; `None` without answers.
    pub(crate) fn response_ms(&self, per_cent: u8) -> Option<f64> {
        let seconds = self.sketch.quantile(f64::from(per_cent) / 100.0).ok().flatten();
        seconds.map(|seconds| seconds * 1_000.0)
    }

    /// The per cent of requests that failed; `None` without requests.
    pub(crate) fn error_percent(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.errors as f64 * 100.0 / self.requests as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn turn(times: &[f64], errors: u64) -> RouteTraffic {
        let answers = vec![1; times.len()];
        RouteTraffic {
            requests: times.len() as u64,
            errors,
            seconds: times.to_vec(),
            answers,
            ..RouteTraffic::default()
        }
    }

    #[test]
    fn without_requests_there_is_no_value() {
        let mut traffic = Traffic::default();
        assert_eq!((traffic.requests(), traffic.response_ms(95), traffic.error_percent()), (0, None, None));
        // All requests failed without an answer: there is a rate, and no time.
        traffic.add(&RouteTraffic { requests: 4, errors: 4, ..RouteTraffic::default() });
        assert_eq!((traffic.requests(), traffic.response_ms(95), traffic.error_percent()), (4, None, Some(100.0)));
    }

    proptest! {
        /// Quantiles over several turns are those of all times together, whatever the order of the turns.
        #[test]
        fn the_sum_of_turns_is_that_of_their_times(
            turns in prop::collection::vec(prop::collection::vec(0.0005f64..20.0, 1..60), 1..8),
        ) {
            let (mut forth, mut back) = (Traffic::default(), Traffic::default());
            turns.iter().for_each(|times| forth.add(&turn(times, 1)));
            turns.iter().rev().for_each(|times| back.add(&turn(times, 1)));
            let mut sorted = turns.concat();
            sorted.sort_by(f64::total_cmp);
            prop_assert_eq!(forth.requests(), sorted.len() as u64);
            prop_assert_eq!(forth.error_percent(), Some(turns.len() as f64 * 100.0 / sorted.len() as f64));
            for per_cent in [50, 95, 99] {
                let found = forth.response_ms(per_cent).unwrap();
                prop_assert_eq!(back.response_ms(per_cent), Some(found));
                let rank = f64::from(per_cent) / 100.0 * (sorted.len() - 1) as f64;
                let (low, high) = (sorted[rank.floor() as usize] * 1e3, sorted[rank.ceil() as usize] * 1e3);
                prop_assert!(low * 0.98 <= found && found <= high * 1.02, "p{per_cent}: {found}, {low} to {high}");
            }
        }
    }
}
