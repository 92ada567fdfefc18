//! When the specification's messages about workload instances are sent: at each change, and each minute.

use std::collections::{BTreeMap, VecDeque};

use mesh_proto::Timestamp;

/// Which messages are due although nothing changed. Holds one entry for each instance that was sent, and forgets those that
/// are gone.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    sent: BTreeMap<String, Timestamp>,
    /// Ids in the order in which they were sent; an entry older than in `sent` is passed over.
    queue: VecDeque<(Timestamp, String)>,
}

impl Schedule {
    /// A message of this instance was sent.
    pub(crate) fn sent(&mut self, id: &str, at: Timestamp) {
        self.sent.insert(id.to_owned(), at);
        self.queue.push_back((at, id.to_owned()));
        // Each is there once in `sent`: what is beyond that is old.
        if self.queue.len() > 2 * self.sent.len() + 64 {
            let sent = &self.sent;
            self.queue.retain(|(at, id)| sent.get(id) == Some(at));
        }
    }

    /// Instances whose last message is this old, oldest first; at most `limit`. They are due no more: who sends says so.
    pub(crate) fn due(&mut self, now: Timestamp, period_ms: i64, limit: usize) -> Vec<String> {
        let mut found = vec![];
        while found.len() < limit && self.queue.front().is_some_and(|(at, _)| now.millis_since(*at) >= period_ms) {
            let Some((at, id)) = self.queue.pop_front() else { break };
            if self.sent.get(&id) == Some(&at) {
                self.sent.remove(&id);
                found.push(id);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    #[test]
    fn each_instance_is_due_a_period_after_its_last_message() {
        let mut schedule = Schedule::default();
        schedule.sent("a", at(0));
        schedule.sent("b", at(10));
        schedule.sent("a", at(20));
        assert!(schedule.due(at(60), 60_000, 9).is_empty());
        assert_eq!(schedule.due(at(80), 60_000, 9), ["b", "a"]);
        assert!(schedule.due(at(999), 60_000, 9).is_empty() && schedule.queue.is_empty() && schedule.sent.is_empty());
        for second in 0..10_000 {
            schedule.sent("a", at(second));
        }
        assert!(schedule.queue.len() < 100, "{}", schedule.queue.len());
        schedule.sent("b", at(10_000));
        assert_eq!(schedule.due(at(20_000), 60_000, 1), ["a"]);
    }
}
