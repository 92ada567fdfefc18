//! Numbers of samples: a sample that a link drops is nobody's error, so who subscribes counts the numbers that did not come.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::About;

/// Keys that are numbered, and keys whose numbers are followed.
const KEYS_MAX: usize = 10_000;
/// Samples that one number can be ahead of the one before it, as they are counted: a number may be anything.
const GAP_MAX: u64 = 1_000_000;

/// What a sample bears beside its attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Number {
    /// The session that published it: a new one counts from 1.
    session: String,
    /// How many that published on its key, with this one.
    number: u64,
}

/// Attributes and number, as they travel.
#[derive(Serialize)]
pub(super) struct Attached<'a> {
    #[serde(flatten)]
    pub(super) about: &'a About,
    #[serde(flatten)]
    pub(super) number: Option<Number>,
}

/// How many samples a session published, by key.
pub(super) struct Numbers {
    session: String,
    last: Mutex<HashMap<String, u64>>,
}

impl Numbers {
    pub(super) fn new(session: String) -> Self {
        Self { session, last: Mutex::default() }
    }

    /// The number of the next sample on a key; none beyond the limit of keys.
    pub(super) fn next(&self, key: &str) -> Option<Number> {
        let mut all = self.last.lock();
        if !all.contains_key(key) && all.len() < KEYS_MAX {
            all.insert(key.to_owned(), 0);
        }
        let last = all.get_mut(key)?;
        *last += 1;
        let number = *last;
        Some(Number { session: self.session.clone(), number })
    }
}

/// What a subscription is to get next.
pub(super) struct Gaps {
    last: Mutex<HashMap<String, Number>>,
    lost: Arc<AtomicU64>,
}

impl Gaps {
    /// Adds what was lost to this counter.
    pub(super) fn new(lost: Arc<AtomicU64>) -> Self {
        Self { last: Mutex::default(), lost }
    }

    /// A sample arrived. The first of a session on a key says nothing of those before it.
    pub(super) fn arrived(&self, key: &str, number: Number) {
        let mut all = self.last.lock();
        if let Some(last) = all.get_mut(key) {
            if last.session == number.session {
                let gap = number.number.saturating_sub(last.number).saturating_sub(1);
                self.lost.fetch_add(gap.min(GAP_MAX), Ordering::Relaxed);
            }
            *last = number;
            return;
        }
        // Keys come and go; those that stay are followed on from their next sample.
        if all.len() >= KEYS_MAX {
            all.clear();
        }
        all.insert(key.to_owned(), number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost_of(arrivals: &[(&str, &str, u64)]) -> u64 {
        let lost = Arc::default();
        let gaps = Gaps::new(Arc::clone(&lost));
        for (key, session, number) in arrivals {
            gaps.arrived(key, Number { session: (*session).to_owned(), number: *number });
        }
        lost.load(Ordering::Relaxed)
    }

    #[test]
    fn what_is_missing_between_two_numbers_of_a_session_is_lost() {
        assert_eq!(lost_of(&[("k", "a", 7), ("k", "a", 8), ("k", "a", 11)]), 2);
        assert_eq!(lost_of(&[("k", "a", 1), ("l", "a", 5), ("k", "a", 2)]), 0, "each key counts for itself");
        assert_eq!(lost_of(&[("k", "a", 9), ("k", "b", 4), ("k", "b", 6)]), 1, "another session counts for itself");
        assert_eq!(lost_of(&[("k", "a", 9), ("k", "a", 2), ("k", "a", 4)]), 1, "lower numbers are no loss");
        assert_eq!(lost_of(&[("k", "a", 0), ("k", "a", u64::MAX)]), GAP_MAX);
    }

    #[test]
    fn keys_beyond_the_limit_are_not_numbered_and_memory_stays_bounded() {
        let numbers = Numbers::new("s".to_owned());
        let of = |key: &str| numbers.next(key).map(|number| number.number);
        for key in 0..KEYS_MAX {
            assert_eq!(of(&key.to_string()), Some(1));
        }
        assert_eq!((of("more"), of("7")), (None, Some(2)));
        let gaps = Gaps::new(Arc::default());
        for key in 0..=2 * KEYS_MAX {
            gaps.arrived(&key.to_string(), Number { session: String::new(), number: 1 });
        }
        assert!(gaps.last.lock().len() <= KEYS_MAX);
    }

    #[test]
    fn attributes_are_read_with_and_without_a_number() {
        let about = About { id: "1".to_owned(), ..About::default() };
        let number = Numbers::new("s".to_owned()).next("k");
        let both = serde_json::to_vec(&Attached { about: &about, number: number.clone() }).unwrap();
        assert_eq!(serde_json::from_slice::<About>(&both).unwrap(), about);
        assert_eq!(serde_json::from_slice::<Number>(&both).ok(), number);
        let alone = serde_json::to_vec(&Attached { about: &about, number: None }).unwrap();
        assert_eq!(serde_json::from_slice::<About>(&alone).unwrap(), about);
        assert!(serde_json::from_slice::<Number>(&alone).is_err());
    }
}
