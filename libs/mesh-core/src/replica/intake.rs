//! Which entities may begin new work: those that wait go by urgency, and of equal ones each owner in turn.
//!
//! Work that an entity has set in motion elsewhere and that has not come back is *under way*. While much of it is, what
//! would set more in motion waits here, so that what was begun ends soon, and whoever asks sees that it waits. What takes
//! too long to come back does not count any more: somebody else may be down, and that must not stop everybody.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
};

use mesh_proto::Timestamp;

use crate::Key;

/// How long an entity counts as under way at most, milliseconds.
const UNDER_WAY_MS: i64 = 2_000;

/// Who is under way, and who waits to begin.
#[derive(Debug)]
pub(super) struct Intake {
    /// Entities that may be under way before others wait.
    window: usize,
    now: Timestamp,
    since: BTreeMap<Key, Timestamp>,
    by_time: BTreeSet<(Timestamp, Key)>,
    /// Beginnings that are being written.
    beginning: usize,
    /// Entities that came back.
    pub(super) ended: u64,
    waiting: BTreeMap<Reverse<u32>, Fair>,
    waiters: BTreeMap<Key, Reverse<u32>>,
}

/// Entities of equal urgency, by owner: the first token of their key.
#[derive(Debug, Default)]
struct Fair {
    turns: VecDeque<String>,
    by_owner: HashMap<String, VecDeque<Key>>,
}

impl Fair {
    fn push(&mut self, key: Key) {
        let owner = key.token(0).to_owned();
        let queue = self.by_owner.entry(owner.clone()).or_default();
        if queue.is_empty() {
            self.turns.push_back(owner);
        }
        queue.push_back(key);
    }

    fn pop(&mut self) -> Option<Key> {
        let owner = self.turns.pop_front()?;
        let queue = self.by_owner.get_mut(&owner)?;
        let key = queue.pop_front();
        if queue.is_empty() {
            self.by_owner.remove(&owner);
        } else {
            self.turns.push_back(owner);
        }
        key
    }
}

impl Intake {
    pub(super) fn new() -> Self {
        Self {
            window: usize::MAX,
            now: Timestamp::default(),
            since: BTreeMap::new(),
            by_time: BTreeSet::new(),
            beginning: 0,
            ended: 0,
            waiting: BTreeMap::new(),
            waiters: BTreeMap::new(),
        }
    }

    pub(super) fn resize(&mut self, window: usize) {
        self.window = window.max(1);
    }

    /// What takes too long by now does not count any more.
    pub(super) fn pass(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        while let Some((since, key)) = self.by_time.first().cloned() {
            if self.now.millis_since(since) < UNDER_WAY_MS {
                return;
            }
            self.by_time.remove(&(since, key));
        }
    }

    /// An entity is under way, or not.
    pub(super) fn note(&mut self, key: &Key, is_under_way: bool) {
        match (self.since.get(key).copied(), is_under_way) {
            (None, true) => {
                self.since.insert(key.clone(), self.now);
                self.by_time.insert((self.now, key.clone()));
            }
            (Some(since), false) => {
                self.since.remove(key);
                self.ended += u64::from(self.by_time.remove(&(since, key.clone())));
            }
            _ => {}
        }
    }

    pub(super) fn forget(&mut self, key: &Key) {
        if let Some(since) = self.since.remove(key) {
            self.by_time.remove(&(since, key.clone()));
        }
    }

    pub(super) fn begins(&mut self) {
        self.beginning += 1;
    }

    pub(super) fn has_begun(&mut self) {
        self.beginning = self.beginning.saturating_sub(1);
    }

    pub(super) fn is_open(&self) -> bool {
        self.by_time.len() + self.beginning < self.window
    }

    pub(super) fn waits(&self, key: &Key) -> bool {
        self.waiters.contains_key(key)
    }

    /// Entities that wait to begin.
    pub(super) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    pub(super) fn wait(&mut self, key: &Key, urgency: u32) {
        let urgency = Reverse(urgency);
        if self.waiters.insert(key.clone(), urgency).is_none() {
            self.waiting.entry(urgency).or_default().push(key.clone());
        }
    }

    /// The next that may begin, if any may.
    pub(super) fn next(&mut self) -> Option<Key> {
        if !self.is_open() {
            return None;
        }
        loop {
            let mut most = self.waiting.first_entry()?;
            match most.get_mut().pop() {
                Some(key) => {
                    self.waiters.remove(&key);
                    return Some(key);
                }
                None => {
                    most.remove();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(owner: &str, id: usize) -> Key {
        Key::new([owner.to_owned(), id.to_string()])
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + millis)
    }

    #[test]
    fn the_urgent_go_first_and_owners_take_turns() {
        let mut intake = Intake::new();
        intake.resize(1);
        intake.begins();
        for id in 0..3 {
            intake.wait(&key("loud", id), 1);
        }
        intake.wait(&key("quiet", 0), 1);
        intake.wait(&key("loud", 9), 7);
        intake.wait(&key("loud", 9), 7);
        assert_eq!((intake.next(), intake.waiting()), (None, 5));
        intake.has_begun();
        let order: Vec<Key> = std::iter::from_fn(|| intake.next()).collect();
        let expected = [key("loud", 9), key("loud", 0), key("quiet", 0), key("loud", 1), key("loud", 2)];
        assert_eq!(order, expected);
        assert_eq!(intake.waiting(), 0);
    }

    #[test]
    fn what_is_under_way_closes_the_intake_until_it_is_back_or_takes_too_long() {
        let mut intake = Intake::new();
        intake.resize(2);
        intake.pass(at(0));
        intake.note(&key("a", 1), true);
        intake.note(&key("a", 1), true);
        assert!(intake.is_open());
        intake.note(&key("a", 2), true);
        intake.wait(&key("a", 3), 0);
        assert_eq!(intake.next(), None);
        intake.note(&key("a", 1), false);
        assert_eq!((intake.next(), intake.ended), (Some(key("a", 3)), 1));
        intake.note(&key("a", 3), true);
        assert!(!intake.is_open());
        intake.pass(at(1_999));
        assert!(!intake.is_open());
        intake.pass(at(2_000));
        assert!(intake.is_open());
        intake.note(&key("a", 2), false);
        assert_eq!(intake.ended, 1, "it came back too late to count");
        intake.forget(&key("a", 3));
        assert!(intake.since.is_empty() && intake.by_time.is_empty());
    }
}
