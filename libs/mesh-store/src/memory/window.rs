//! Lanes of items in order, the oldest leaving when a limit is reached.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_proto::Timestamp;

/// Limits of series and histories. What is oldest leaves to make room, and is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLimits {
    /// Series, or things with a history.
    pub lanes_max: usize,
    /// Points of a series, or versions of a thing.
    pub items_max: usize,
    /// Bytes of everything together, as far as they can be estimated.
    pub bytes_max: u64,
}

impl Default for WindowLimits {
    /// 10,000 lanes of at most 1,000 items, 64 MiB in all.
    fn default() -> Self {
        Self { lanes_max: 10_000, items_max: 1_000, bytes_max: 64 << 20 }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item<V> {
    pub(super) at: Timestamp,
    pub(super) value: V,
    bytes: u64,
}

/// Lanes by name, items by key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window<K, V> {
    limits: WindowLimits,
    lanes: BTreeMap<Arc<str>, BTreeMap<K, Item<V>>>,
    /// Each lane by the time of its first item: whose turn it is to give one up.
    by_first: BTreeSet<(Timestamp, Arc<str>)>,
    /// Each lane by the time of its last item: which lane is the most forgotten.
    by_last: BTreeSet<(Timestamp, Arc<str>)>,
    bytes: u64,
    evicted: u64,
}

impl<K: Ord + Clone, V> Window<K, V> {
    pub(super) fn new(limits: WindowLimits) -> Self {
        Self {
            limits,
            lanes: BTreeMap::new(),
            by_first: BTreeSet::new(),
            by_last: BTreeSet::new(),
            bytes: 0,
            evicted: 0,
        }
    }

    pub(super) fn lane(&self, name: &str) -> Option<&BTreeMap<K, Item<V>>> {
        self.lanes.get(name)
    }

    pub(super) fn lanes(&self) -> impl Iterator<Item = (&Arc<str>, &BTreeMap<K, Item<V>>)> {
        self.lanes.iter()
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Puts an item into a lane, unless one of its key is there; then makes room. Answers whether it was put.
    pub(super) fn insert(&mut self, name: &str, key: K, at: Timestamp, bytes: u64, value: V) -> bool {
        let known = self.lanes.get_key_value(name);
        if known.is_some_and(|(_, lane)| lane.contains_key(&key)) {
            return false;
        }
        let name = &known.map_or_else(|| Arc::from(name), |(name, _)| name.clone());
        self.unlist(name);
        self.lanes.entry(name.clone()).or_default().insert(key, Item { at, value, bytes });
        self.bytes += bytes;
        self.list(name);
        while self.lanes.get(name).is_some_and(|lane| lane.len() > self.limits.items_max) {
            self.pop_first(name);
            self.evicted += 1;
        }
        while self.lanes.len() > self.limits.lanes_max {
            let Some((_, forgotten)) = self.by_last.first().cloned() else { break };
            while self.pop_first(&forgotten) {
                self.evicted += 1;
            }
        }
        while self.bytes > self.limits.bytes_max {
            let Some((_, oldest)) = self.by_first.first().cloned() else { break };
            self.pop_first(&oldest);
            self.evicted += 1;
        }
        true
    }

    /// Removes from the front of each lane what is older; answers how many.
    pub(super) fn forget(&mut self, before: Timestamp) -> u64 {
        let mut removed = 0;
        while let Some((first, name)) = self.by_first.first().cloned() {
            if first >= before || !self.pop_first(&name) {
                break;
            }
            removed += 1;
        }
        removed
    }

    fn pop_first(&mut self, name: &Arc<str>) -> bool {
        self.unlist(name);
        let Some(lane) = self.lanes.get_mut(name) else { return false };
        let popped = lane.pop_first();
        self.bytes -= popped.as_ref().map_or(0, |(_, item)| item.bytes);
        if lane.is_empty() {
            self.lanes.remove(name);
        } else {
            self.list(name);
        }
        popped.is_some()
    }

    fn ends(&self, name: &str) -> Option<(Timestamp, Timestamp)> {
        let lane = self.lanes.get(name)?;
        Some((lane.first_key_value()?.1.at, lane.last_key_value()?.1.at))
    }

    fn list(&mut self, name: &Arc<str>) {
        if let Some((first, last)) = self.ends(name) {
            self.by_first.insert((first, name.clone()));
            self.by_last.insert((last, name.clone()));
        }
    }

    fn unlist(&mut self, name: &Arc<str>) {
        if let Some((first, last)) = self.ends(name) {
            self.by_first.remove(&(first, name.clone()));
            self.by_last.remove(&(last, name.clone()));
        }
    }
}
