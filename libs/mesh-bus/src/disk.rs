//! What one write costs on the server's disk, measured as it runs.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Plain publishes that cost as much as a batch, at most: what it is on a disk that syncs in a fraction of a millisecond.
pub(crate) const WORTH_MAX: usize = 16;
/// The same where a sync is all that counts: a batch of the server takes four.
const WORTH_SYNCS: u64 = 4;
/// What a batch costs the server besides: a store of its own, made and removed. Measured in plain publishes of half a
/// millisecond (`docs/performance.md`).
const BATCH_MICROS: u64 = 5_500;
/// A disk whose quickest write takes less is not slow, whatever else makes writes take their time.
const SLOW: Duration = Duration::from_millis(2);
/// How long the quickest write stands for the disk.
const WINDOW: Duration = Duration::from_secs(2);

/// Measures plain publishes. The quickest of the last seconds waited for nothing else: it is what the disk takes.
pub(crate) struct Disk {
    windows: Mutex<Windows>,
    worth: AtomicUsize,
}

struct Windows {
    since: Instant,
    quickest: Duration,
    before: Duration,
}

impl Windows {
    fn took(&mut self, now: Instant, took: Duration) -> Duration {
        if now.saturating_duration_since(self.since) >= WINDOW {
            (self.before, self.quickest, self.since) = (self.quickest, took, now);
        }
        self.quickest = self.quickest.min(took);
        self.quickest.min(self.before)
    }
}

impl Disk {
    pub(crate) fn new() -> Self {
        let windows = Windows { since: Instant::now(), quickest: Duration::MAX, before: Duration::MAX };
        Self { windows: Mutex::new(windows), worth: AtomicUsize::new(WORTH_MAX) }
    }

    /// A plain publish, begun at `start` as one of `together` on their way to one stream, was stored. The server stores them
    /// one after the other.
    pub(crate) fn stored_since(&self, start: Instant, together: u32) {
        let now = Instant::now();
        let took = now.saturating_duration_since(start) / together.max(1);
        let quickest = self.windows.lock().took(now, took);
        self.worth.store(worth(quickest), Relaxed);
    }

    /// Messages from which on one batch is quicker than a plain publish of each.
    pub(crate) fn worth(&self) -> usize {
        self.worth.load(Relaxed)
    }
}

fn worth(write: Duration) -> usize {
    if write < SLOW {
        return WORTH_MAX;
    }
    let micros = u64::try_from(write.as_micros()).unwrap_or(u64::MAX).max(1);
    usize::try_from(WORTH_SYNCS + BATCH_MICROS / micros).unwrap_or(WORTH_MAX).clamp(WORTH_SYNCS as usize + 1, WORTH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_a_sync_the_fewer_messages_are_worth_a_batch() {
        assert_eq!(worth(Duration::from_micros(300)), 16);
        assert_eq!(worth(Duration::from_micros(1_999)), 16);
        assert_eq!(worth(Duration::from_micros(2_000)), 6);
        assert_eq!(worth(Duration::from_micros(5_500)), 5);
        assert_eq!(worth(Duration::from_secs(5)), 5);
    }

    #[test]
    fn the_quickest_write_counts_until_it_is_old() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let ms = Duration::from_millis;
        let mut windows = Windows { since: start, quickest: Duration::MAX, before: Duration::MAX };
        assert_eq!(windows.took(at(0), ms(9)), ms(9));
        assert_eq!(windows.took(at(10), ms(1)), ms(1));
        assert_eq!(windows.took(at(20), ms(9)), ms(1));
        assert_eq!(windows.took(at(2_010), ms(9)), ms(1), "the window before counts");
        assert_eq!(windows.took(at(4_020), ms(9)), ms(9), "it is forgotten after that");
    }
}
