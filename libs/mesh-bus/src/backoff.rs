//! Pauses between attempts.

use std::time::Duration;

/// Pauses between attempts, each twice as long as the one before, from a first to a longest.
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(first_ms: u64, longest_ms: u64) -> Self {
        Self { next: Duration::from_millis(first_ms), longest: Duration::from_millis(longest_ms) }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait
    }
}
