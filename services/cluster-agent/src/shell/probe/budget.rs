//! What probing may cost: a bucket of bytes that fills with time.

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Budget {
    bytes_per_s: u64,
    burst: u64,
    left: f64,
    at_ms: i64,
}

impl Budget {
    /// Full at first.
    pub(crate) fn new(bytes_per_s: u64, burst: u64, now_ms: i64) -> Self {
        Self { bytes_per_s, burst, left: burst as f64, at_ms: now_ms }
    }

    /// Takes this many bytes, if they are there.
    pub(crate) fn take(&mut self, bytes: u64, now_ms: i64) -> bool {
        let passed_ms = now_ms.saturating_sub(self.at_ms).max(0);
        self.at_ms = self.at_ms.max(now_ms);
        self.left = (self.left + passed_ms as f64 * self.bytes_per_s as f64 / 1e3).min(self.burst as f64);
        let enough = self.left >= bytes as f64;
        if enough {
            self.left -= bytes as f64;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_more_is_spent_than_the_burst_and_what_time_brought(asks in prop::collection::vec((0u64..5_000, 0i64..500), 1..200)) {
            let mut budget = Budget::new(1_000, 4_000, 0);
            let (mut now, mut spent) = (0, 0);
            for (bytes, wait) in asks {
                now += wait;
                if budget.take(bytes, now) {
                    spent += bytes;
                }
            }
            prop_assert!(spent as f64 <= 4_000.0 + now as f64 + 1.0);
        }
    }
}
