//! What a subscription to samples, or to signs of life, has received and not yet handed out: bounded.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use zenoh::pubsub::Subscriber;

use super::Sample;

/// Samples of one subscription, oldest first.
pub struct SampleStream {
    pub(super) ring: Arc<Ring>,
    pub(super) _subscriber: Subscriber<()>,
}

impl SampleStream {
    /// The next sample; `None` once the session is closed and all is read.
    pub async fn next(&mut self) -> Option<Sample> {
        loop {
            let arrived = self.ring.arrived.notified();
            {
                let mut queue = self.ring.queue();
                if let Some(sample) = queue.samples.pop_front() {
                    return Some(sample);
                }
                if queue.ended {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// Samples that were dropped because it was full.
    pub fn dropped(&self) -> u64 {
        self.ring.dropped.load(Ordering::Relaxed)
    }
}

/// A bounded queue that drops its oldest.
pub(super) struct Ring {
    queue: Mutex<Queue>,
    limit: usize,
    arrived: Notify,
    dropped: AtomicU64,
    dropped_by_all: Arc<AtomicU64>,
}

#[derive(Default)]
struct Queue {
    samples: VecDeque<Sample>,
    ended: bool,
}

impl Ring {
    pub(super) fn new(limit: usize, dropped_by_all: Arc<AtomicU64>) -> Self {
        Self { queue: Mutex::default(), limit, arrived: Notify::new(), dropped: AtomicU64::new(0), dropped_by_all }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    pub(super) fn push(&self, sample: Sample) {
        let mut queue = self.queue();
        if queue.samples.len() >= self.limit {
            queue.samples.pop_front();
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.dropped_by_all.fetch_add(1, Ordering::Relaxed);
        }
        queue.samples.push_back(sample);
        drop(queue);
        self.arrived.notify_one();
    }
}

/// Held by the callback: when Zenoh drops it, the stream ends.
pub(super) struct End(pub(super) Arc<Ring>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.queue().ended = true;
        self.0.arrived.notify_one();
    }
}

/// What lives, key by key. A key that changes again before it was read is given once, as it then is.
pub struct AliveStream {
    pub(super) seen: Arc<Seen>,
    pub(super) _subscriber: Subscriber<()>,
}

impl AliveStream {
    /// The next key and whether it lives; `None` once the session is closed and all is read.
    pub async fn next(&mut self) -> Option<(String, bool)> {
        loop {
            let changed = self.seen.changed.notified();
            {
                let mut state = self.seen.state();
                if let Some(key) = state.order.pop_front() {
                    let alive = state.waiting.remove(&key).unwrap_or(false);
                    return Some((key, alive));
                }
                if state.ended {
                    return None;
                }
            }
            changed.await;
        }
    }
}

/// The newest state of each key that waits to be read: bounded by the number of keys.
#[derive(Default)]
pub(super) struct Seen {
    state: Mutex<SeenState>,
    changed: Notify,
}

#[derive(Default)]
struct SeenState {
    order: VecDeque<String>,
    waiting: BTreeMap<String, bool>,
    ended: bool,
}

impl Seen {
    fn state(&self) -> MutexGuard<'_, SeenState> {
        self.state.lock()
    }

    pub(super) fn set(&self, key: String, alive: bool) {
        let mut state = self.state();
        if state.waiting.insert(key.clone(), alive).is_none() {
            state.order.push_back(key);
        }
        drop(state);
        self.changed.notify_one();
    }
}

pub(super) struct SeenEnd(pub(super) Arc<Seen>);

impl Drop for SeenEnd {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_full_subscription_drops_its_oldest_and_counts() {
        let all = Arc::new(AtomicU64::new(0));
        let ring = Ring::new(2, all.clone());
        for key in ["a", "b", "c", "d"] {
            ring.push(Sample { key: key.into(), body: Bytes::new(), about: None });
        }
        let left: Vec<String> = ring.queue().samples.iter().map(|s| s.key.clone()).collect();
        assert_eq!(left, ["c", "d"]);
        assert_eq!((ring.dropped.load(Ordering::Relaxed), all.load(Ordering::Relaxed)), (2, 2));
    }
}
