//! How many requests a caller may send: a token bucket each (as in RFC 2697), in bounded memory.

use std::collections::BTreeMap;

/// Buckets at most; beyond, those that have been full for longest give way.
const BUCKETS_MAX: usize = 10_000;

/// The rate.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Requests each second, on average; 0 for no limit.
    pub per_second: u32,
    /// Requests at once.
    pub burst: u32,
}

/// What each caller has left.
#[derive(Debug, Default)]
pub struct Buckets {
    buckets: BTreeMap<String, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Thousandths of a request that are left.
    left_milli: u64,
    at_ms: i64,
}

impl Buckets {
    /// Counts one request of a caller at a time; the error is how many seconds to wait until the next is allowed.
    pub fn take(&mut self, who: &str, rate: Rate, now_ms: i64) -> Result<(), u32> {
        if rate.per_second == 0 {
            return Ok(());
        }
        let full = u64::from(rate.burst.max(1)) * 1_000;
        if !self.buckets.contains_key(who) && self.buckets.len() >= BUCKETS_MAX {
            self.make_room(rate, full, now_ms);
        }
        let bucket = self.buckets.entry(who.to_owned()).or_insert(Bucket { left_milli: full, at_ms: now_ms });
        bucket.refill(rate, full, now_ms);
        if bucket.left_milli >= 1_000 {
            bucket.left_milli -= 1_000;
            return Ok(());
        }
        let missing = 1_000 - bucket.left_milli;
        let wait_ms = missing.div_ceil(u64::from(rate.per_second));
        Err(u32::try_from(wait_ms.div_ceil(1_000)).unwrap_or(u32::MAX).max(1))
    }

    /// Those that are full again are as if they had never asked; if all are busy, the quietest half gives way.
    fn make_room(&mut self, rate: Rate, full: u64, now_ms: i64) {
        self.buckets.retain(|_, bucket| {
            bucket.refill(rate, full, now_ms);
            bucket.left_milli < full
        });
        if self.buckets.len() >= BUCKETS_MAX {
            let mut left: Vec<u64> = self.buckets.values().map(|b| b.left_milli).collect();
            left.sort_unstable();
            let middle = left.get(left.len() / 2).copied().unwrap_or_default();
            let mut over = self.buckets.len() / 2;
            self.buckets.retain(|_, bucket| {
                let gives_way = bucket.left_milli >= middle && over > 0;
                over -= usize::from(gives_way);
                !gives_way
            });
        }
    }
}

impl Bucket {
    fn refill(&mut self, rate: Rate, full: u64, now_ms: i64) {
        let passed = u64::try_from(now_ms - self.at_ms).unwrap_or_default();
        self.left_milli = self.left_milli.saturating_add(passed.saturating_mul(u64::from(rate.per_second))).min(full);
        self.at_ms = self.at_ms.max(now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 5 };

    #[test]
    fn a_caller_gets_the_burst_and_then_the_rate() {
        let mut buckets = Buckets::default();
        let served = (0..10_000).filter(|at| buckets.take("a", RATE, *at).is_ok()).count();
        assert!((104..=105).contains(&served), "{served}");
        assert_eq!(buckets.take("a", RATE, 9_999), Err(1));
        assert_eq!(buckets.take("b", RATE, 9_999), Ok(()), "another is not held up");
        assert_eq!(buckets.take("a", RATE, 0), Err(1), "a clock that goes back gives nothing");
    }

    #[test]
    fn strangers_do_not_grow_memory() {
        let mut buckets = Buckets::default();
        for number in 0..3 * BUCKETS_MAX {
            let _served = buckets.take(&format!("s{number}"), RATE, 0);
        }
        assert!(buckets.buckets.len() <= BUCKETS_MAX, "{}", buckets.buckets.len());
    }
}
