//! The newest samples, for readers that follow: a ring in which the oldest make room, so that a slow reader loses
//! those and learns how many.

use std::{collections::VecDeque, sync::Arc};

use mesh_proto::telemetry::InstanceSample;

/// Samples given to a reader at once.
const BATCH_MAX: usize = 256;

/// The ring.
#[derive(Debug)]
pub(crate) struct Feed {
    samples_max: usize,
    /// Samples ever pushed.
    pushed: u64,
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    /// How many samples of its instance there had been with it.
    of_instance: u64,
    sample: Arc<InstanceSample>,
}

/// Where a reader is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Instance followed; empty for all.
    instance_id: String,
    /// Samples ever pushed, as far as it has seen.
    seen: u64,
    /// Samples of its instance, as far as it has seen.
    seen_of_instance: u64,
}

impl Feed {
    pub(crate) fn new(samples_max: usize) -> Self {
        Self { samples_max, pushed: 0, entries: VecDeque::new() }
    }

    /// `of_instance` counts this sample's instance's samples, this one included.
    pub(crate) fn push(&mut self, sample: Arc<InstanceSample>, of_instance: u64) {
        self.pushed += 1;
        self.entries.push_back(Entry { of_instance, sample });
        while self.entries.len() > self.samples_max {
            self.entries.pop_front();
        }
    }

    /// A reader that begins here; `seen_of_instance` as for [`push`](Self::push), when it follows one instance.
    pub(crate) fn cursor(&self, instance_id: &str, seen_of_instance: u64) -> Cursor {
        Cursor { instance_id: instance_id.to_owned(), seen: self.pushed, seen_of_instance }
    }

    /// What came after the cursor, oldest first and at most 256 samples, and moves it on. Empty when all was seen.
    /// `dropped` of a sample says how many this reader lost just before it.
    pub(crate) fn read(&self, cursor: &mut Cursor) -> Vec<InstanceSample> {
        let oldest = self.pushed - self.entries.len() as u64;
        let mut lost = oldest.saturating_sub(cursor.seen);
        let begin = cursor.seen.max(oldest);
        cursor.seen = begin;
        let mut samples = vec![];
        for entry in self.entries.iter().skip((begin - oldest) as usize) {
            if samples.len() == BATCH_MAX {
                break;
            }
            cursor.seen += 1;
            let one = !cursor.instance_id.is_empty();
            if one && entry.sample.instance_id != cursor.instance_id {
                continue;
            }
            if one {
                lost = (entry.of_instance - 1).saturating_sub(cursor.seen_of_instance);
                cursor.seen_of_instance = entry.of_instance;
            }
            samples.push(InstanceSample { dropped: std::mem::take(&mut lost), ..InstanceSample::clone(&entry.sample) });
        }
        samples
    }

    /// The samples of an instance that are still here.
    pub(crate) fn of<'a>(&'a self, instance_id: &'a str) -> impl Iterator<Item = &'a InstanceSample> {
        self.entries.iter().map(|e| &*e.sample).filter(move |s| s.instance_id == instance_id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Pushes and reads in any mix: what a reader is given and what it is told it lost are together all there was.
        #[test]
        fn a_reader_gets_each_sample_or_is_told_that_it_lost_it(
            steps in prop::collection::vec((0u8..3, any::<bool>()), 1..300),
            samples_max in 1usize..20,
            followed in 0usize..4,
        ) {
            let names = ["", "i0", "i1", "i2"];
            let mut feed = Feed::new(samples_max);
            let mut cursor = feed.cursor(names[followed], 0);
            let (mut counts, mut given, mut lost) = (BTreeMap::<String, u64>::new(), vec![], 0);
            let mut pushed = vec![];
            for (number, (instance, reads)) in steps.into_iter().enumerate() {
                let instance_id = format!("i{instance}");
                let count = counts.entry(instance_id.clone()).or_default();
                *count += 1;
                let sample = InstanceSample { instance_id, restarts: number as u32, ..Default::default() };
                pushed.push(sample.clone());
                feed.push(Arc::new(sample), *count);
                prop_assert!(feed.entries.len() <= samples_max);
                if reads {
                    let batch = feed.read(&mut cursor);
                    lost += batch.iter().map(|s| s.dropped).sum::<u64>();
                    given.extend(batch);
                }
            }
            let batch = feed.read(&mut cursor);
            lost += batch.iter().map(|s| s.dropped).sum::<u64>();
            given.extend(batch);
            let wanted: Vec<u32> = pushed
                .iter()
                .filter(|s| followed == 0 || s.instance_id == names[followed])
                .map(|s| s.restarts)
                .collect();
            let given: Vec<u32> = given.iter().map(|s| s.restarts).collect();
            prop_assert!(given.windows(2).all(|pair| pair[0] < pair[1]), "in order, once");
            prop_assert!(given.iter().all(|number| wanted.contains(number)));
            // What was lost after the last sample given is told with the next; nothing follows here.
            let until_last = wanted.iter().filter(|number| given.last().is_some_and(|last| *number <= last)).count();
            prop_assert_eq!(given.len() as u64 + lost, until_last as u64);
        }
    }

    #[test]
    fn a_batch_is_bounded_and_the_next_goes_on() {
        let mut feed = Feed::new(1_000);
        let mut cursor = feed.cursor("", 0);
        for number in 0..600 {
            feed.push(Arc::new(InstanceSample { restarts: number, ..Default::default() }), u64::from(number) + 1);
        }
        let sizes: Vec<usize> = (0..4).map(|_| feed.read(&mut cursor).len()).collect();
        assert_eq!(sizes, [256, 256, 88, 0]);
    }
}
