//! What waits to be written to one stream, and what sets out next. No clock and no I/O: the batcher asks and acts.

use std::collections::{HashMap, VecDeque};

use crate::{
    batch::{BATCH_BYTES_MAX, BATCH_MAX},
    disk::WORTH_MAX,
};

/// Batches in flight at once: while one is stored the next is on its way.
const BATCHES_IN_FLIGHT: usize = 2;
/// Messages that must wait before a second batch sets out, in multiples of what is worth a batch; fewer are collected
/// further.
const SECOND_BATCH_WORTH: usize = 8;
/// Decisions from which on a batch counts as a crowd: more are expected, and worth waiting for.
pub(super) const CROWD: usize = 4;
/// Messages that are sent at once, without waiting for more of the crowd.
const CROWD_MESSAGES: usize = 96;

/// Something to write, and what the queue needs to know of it.
pub(super) struct Entry<T> {
    pub(super) entity: String,
    pub(super) messages: usize,
    pub(super) bytes: usize,
    pub(super) item: T,
}

/// What the batcher has in flight.
#[derive(Clone, Copy, Default)]
pub(super) struct InFlight {
    pub(super) plain: usize,
    pub(super) batches: usize,
}

/// What sets out next.
pub(super) enum Next<T> {
    Plain(Entry<T>),
    Batch(Vec<Entry<T>>),
    Nothing,
}

pub(super) struct Queue<T> {
    /// Entries whose entity has nothing in flight, in the order they came.
    ready: VecDeque<Entry<T>>,
    /// Messages in `ready`.
    messages: usize,
    /// Entries of several messages in `ready`.
    several: usize,
    /// Entities with an entry ready or in flight, each with those that wait behind it.
    busy: HashMap<String, VecDeque<Entry<T>>>,
    /// Entries being written by their callers.
    direct: usize,
    /// Is a batch of a crowd in flight, or was it a moment ago? What comes meanwhile waits for the next batch.
    gathering: bool,
    /// Decisions of one fact in flight as plain publishes, at most; more make a batch.
    worth: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            messages: 0,
            several: 0,
            busy: HashMap::new(),
            direct: 0,
            gathering: false,
            worth: WORTH_MAX,
        }
    }
}

impl<T> Queue<T> {
    /// From how many messages on a batch is quicker than a plain publish of each.
    pub(super) fn set_worth(&mut self, worth: usize) {
        self.worth = worth;
    }

    /// May the caller write this itself, because nothing is ahead of it? Then its entity is busy until
    /// [`Queue::end_direct`] and [`Queue::release`].
    pub(super) fn begin_direct(&mut self, entity: &str, messages: usize) -> bool {
        let at_rest = messages == 1
            && self.ready.is_empty()
            && !self.gathering
            && self.direct < self.worth
            && !self.busy.contains_key(entity);
        if at_rest {
            self.busy.insert(entity.to_owned(), VecDeque::new());
            self.direct += 1;
        }
        at_rest
    }

    pub(super) fn end_direct(&mut self) {
        self.direct -= 1;
    }

    /// Takes an entry in; true if it is ready to set out.
    pub(super) fn add(&mut self, entry: Entry<T>) -> bool {
        if let Some(waiting) = self.busy.get_mut(&entry.entity) {
            waiting.push_back(entry);
            return false;
        }
        self.busy.insert(entry.entity.clone(), VecDeque::new());
        self.push(entry);
        true
    }

    /// What was in flight for these entities has ended: the next entry of each is ready. True if any entry is.
    pub(super) fn release(&mut self, entities: &[String]) -> bool {
        for entity in entities {
            match self.busy.get_mut(entity).and_then(VecDeque::pop_front) {
                Some(next) => self.push(next),
                None => {
                    self.busy.remove(entity);
                }
            }
        }
        !self.ready.is_empty()
    }

    /// Chooses what sets out next. `pausing`: is it the moment after a batch of a crowd? `full`: does the stream refuse
    /// writes?
    pub(super) fn next(&mut self, in_flight: InFlight, pausing: bool, full: bool) -> Next<T> {
        let InFlight { plain, batches } = in_flight;
        let plain = plain + self.direct;
        if self.ready.is_empty() {
            self.gathering &= batches > 0 || pausing;
            return Next::Nothing;
        }
        if full {
            // One decision alone tries whether there is room again.
            return if plain + batches > 0 { Next::Nothing } else { self.next_plain() };
        }
        if pausing && self.messages < CROWD_MESSAGES {
            return Next::Nothing;
        }
        let many = if self.gathering { CROWD } else { self.worth + 1 };
        if batches == 0 && self.several == 0 && self.ready.len() < many {
            self.gathering = false;
            return if plain < self.worth { self.next_plain() } else { Next::Nothing };
        }
        if batches >= BATCHES_IN_FLIGHT || (batches > 0 && self.messages < SECOND_BATCH_WORTH * self.worth) {
            return Next::Nothing;
        }
        let (mut chosen, mut messages, mut bytes) = (vec![], 0, 0);
        while let Some(first) = self.ready.front() {
            (messages, bytes) = (messages + first.messages, bytes + first.bytes);
            if !chosen.is_empty() && (messages > BATCH_MAX || bytes > BATCH_BYTES_MAX) {
                break;
            }
            chosen.extend(self.pop());
        }
        self.gathering |= chosen.len() >= CROWD;
        Next::Batch(chosen)
    }

    /// Everything that waits; nothing does after this.
    pub(super) fn drain(&mut self) -> Vec<Entry<T>> {
        (self.messages, self.several) = (0, 0);
        let waiting = self.busy.values_mut().flat_map(std::mem::take);
        std::mem::take(&mut self.ready).into_iter().chain(waiting).collect()
    }

    fn next_plain(&mut self) -> Next<T> {
        self.pop().map_or(Next::Nothing, Next::Plain)
    }

    fn push(&mut self, entry: Entry<T>) {
        self.messages += entry.messages;
        self.several += usize::from(entry.messages > 1);
        self.ready.push_back(entry);
    }

    fn pop(&mut self) -> Option<Entry<T>> {
        let entry = self.ready.pop_front()?;
        self.messages -= entry.messages;
        self.several -= usize::from(entry.messages > 1);
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: InFlight = InFlight { plain: 0, batches: 0 };
    const ONE_BATCH: InFlight = InFlight { plain: 0, batches: 1 };

    fn entry(entity: usize) -> Entry<()> {
        Entry { entity: format!("e{entity}"), messages: 1, bytes: 100, item: () }
    }

    fn names(next: Next<()>) -> Vec<String> {
        match next {
            Next::Plain(one) => vec![one.entity],
            Next::Batch(many) => many.into_iter().map(|entry| entry.entity).collect(),
            Next::Nothing => vec![],
        }
    }

    /// A queue whose first crowd of 20 is on its way in one batch.
    fn busy() -> (Queue<()>, Vec<String>) {
        let mut queue = Queue::default();
        (0..20).for_each(|e| assert!(queue.add(entry(e))));
        let Next::Batch(first) = queue.next(IDLE, false, false) else { panic!("20 decisions make a batch") };
        (queue, first.into_iter().map(|entry| entry.entity).collect())
    }

    #[test]
    fn at_rest_a_decision_of_one_fact_is_written_by_its_caller() {
        let mut queue = Queue::<()>::default();
        assert!(!queue.begin_direct("several", 2));
        for number in 0..WORTH_MAX {
            assert!(queue.begin_direct(&format!("e{number}"), 1));
        }
        assert!(!queue.begin_direct("one too many", 1));
        queue.end_direct();
        assert!(!queue.begin_direct("e1", 1), "its entity has one in flight");
        assert!(queue.begin_direct("one more", 1));
    }

    #[test]
    fn what_comes_while_a_batch_of_a_crowd_is_on_its_way_waits_for_the_next() {
        let (mut queue, first) = busy();
        assert!(!queue.begin_direct("newcomer", 1));
        (20..20 + CROWD_MESSAGES - 1).for_each(|e| assert!(queue.add(entry(e))));
        assert!(names(queue.next(ONE_BATCH, false, false)).is_empty(), "too few for a second batch");
        // The batch has landed: for a moment the next one waits for more.
        assert!(queue.release(&first));
        assert!(names(queue.next(IDLE, true, false)).is_empty());
        queue.add(entry(500));
        assert_eq!(names(queue.next(IDLE, true, false)).len(), CROWD_MESSAGES, "enough: it does not wait");
    }

    #[test]
    fn after_the_moment_a_few_of_a_crowd_still_travel_together() {
        let (mut queue, first) = busy();
        (20..20 + CROWD).for_each(|e| assert!(queue.add(entry(e))));
        queue.release(&first);
        assert!(names(queue.next(IDLE, true, false)).is_empty());
        assert_eq!(names(queue.next(IDLE, false, false)).len(), CROWD);
        // Fewer end the crowd: the next ones are written by their callers again.
        queue.add(entry(90));
        assert_eq!(names(queue.next(IDLE, false, false)), ["e90"]);
        assert!(queue.begin_direct("at rest", 1));
    }

    #[test]
    fn a_second_batch_sets_out_only_when_it_is_worth_it() {
        let (mut queue, _) = busy();
        (20..20 + SECOND_BATCH_WORTH * WORTH_MAX - 1).for_each(|e| assert!(queue.add(entry(e))));
        assert!(names(queue.next(ONE_BATCH, false, false)).is_empty());
        queue.add(entry(999));
        assert_eq!(names(queue.next(ONE_BATCH, false, false)).len(), SECOND_BATCH_WORTH * WORTH_MAX);
        (2_000..3_000).for_each(|e| assert!(queue.add(entry(e))));
        let two = InFlight { plain: 0, batches: 2 };
        assert!(names(queue.next(two, false, false)).is_empty());
    }

    #[test]
    fn two_decisions_of_one_entity_are_never_in_flight_together() {
        let mut queue = Queue::default();
        assert!(queue.add(entry(1)) && !queue.add(entry(1)));
        assert_eq!(names(queue.next(IDLE, false, false)), ["e1"]);
        assert!(names(queue.next(IDLE, false, false)).is_empty());
        assert!(queue.release(&["e1".to_owned()]));
        assert_eq!(names(queue.next(IDLE, false, false)), ["e1"]);
        assert!(!queue.release(&["e1".to_owned()]));
        assert!(queue.begin_direct("e1", 1));
    }

    #[test]
    fn a_full_stream_is_tried_by_one_decision_alone() {
        let mut queue = Queue::default();
        (0..200).for_each(|e| assert!(queue.add(entry(e))));
        assert_eq!(names(queue.next(IDLE, false, true)), ["e0"]);
        assert!(names(queue.next(InFlight { plain: 1, batches: 0 }, false, true)).is_empty());
        assert_eq!(queue.drain().len(), 199);
    }

    #[test]
    fn a_batch_keeps_to_its_limits() {
        let mut queue = Queue::default();
        let large = |e| Entry { bytes: BATCH_BYTES_MAX / 4, ..entry(e) };
        (0..30).for_each(|e| assert!(queue.add(large(e))));
        assert_eq!(names(queue.next(IDLE, false, false)).len(), 4);
        let mut queue = Queue::default();
        let many = |e| Entry { messages: BATCH_MAX / 2, ..entry(e) };
        (0..3).for_each(|e| assert!(queue.add(many(e))));
        assert_eq!(names(queue.next(IDLE, false, false)).len(), 2);
    }
}
