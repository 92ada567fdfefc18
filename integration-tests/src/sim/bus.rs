//! Streams and buckets in memory, with the same rules as the real bus.

use std::collections::BTreeMap;

use mesh_core::replica::Outcome;
use mesh_core::{Decision, Outgoing, Stored};
use mesh_proto::{AnyEvent, Timestamp};

/// One stream.
#[derive(Debug, Default)]
pub struct Stream {
    /// Its messages; the sequence of the first is 1.
    pub messages: Vec<Stored>,
    /// By entity key, the sequence of its last fact.
    last: BTreeMap<String, u64>,
}

/// One bucket: values and the revision of its index.
#[derive(Debug, Default)]
pub struct Bucket {
    /// Values by key.
    pub values: BTreeMap<String, Vec<u8>>,
    /// Revision of the index; 0 for none.
    pub revision: u64,
}

/// The bus.
#[derive(Debug, Default)]
pub struct MemoryBus {
    /// The clock of the world.
    pub now: Timestamp,
    /// By name.
    pub streams: BTreeMap<String, Stream>,
    /// By decider.
    pub buckets: BTreeMap<String, Bucket>,
    /// By decider and stream: every input up to here was acked.
    pub acked: BTreeMap<(String, String), u64>,
    /// Dead letters: decider, input, reason.
    pub dead: Vec<(String, Stored, String)>,
    /// A fault of the bus itself: conditions are not looked at.
    pub unconditional: bool,
}

impl MemoryBus {
    /// A stream's messages.
    pub fn read(&self, stream: &str) -> &[Stored] {
        self.streams.get(stream).map_or(&[], |s| &s.messages)
    }

    /// A stream's last sequence; 0 if it is empty.
    pub fn end(&self, stream: &str) -> u64 {
        self.read(stream).len() as u64
    }

    /// Messages in all streams together.
    pub fn total(&self) -> u64 {
        self.streams.values().map(|s| s.messages.len() as u64).sum()
    }

    /// Stores a message; gives its sequence.
    pub fn append(&mut self, message: &Outgoing) -> u64 {
        let stored = self.now;
        let stream = self.streams.entry(message.stream.clone()).or_default();
        let sequence = stream.messages.len() as u64 + 1;
        stream.last.insert(keys(&message.subject), sequence);
        stream.messages.push(mesh_test::read(message, sequence, stored));
        sequence
    }

    /// Stores an event now.
    pub fn publish(&mut self, event: &dyn AnyEvent, id: &str) -> u64 {
        let message = Outgoing::new(event, id, self.now).expect("an event with a subject");
        self.append(&message)
    }

    /// The sequence of the entity's last fact; 0 for none.
    pub fn last(&self, decision: &Decision) -> u64 {
        let message = &decision.messages[0];
        let stream = self.streams.get(&message.stream);
        stream.and_then(|s| s.last.get(&keys(&message.subject))).copied().unwrap_or(0)
    }

    /// Stores a decision if its entity has not moved; all of it or nothing.
    pub fn decide(&mut self, decision: &Decision) -> bool {
        if !self.unconditional && self.last(decision) != decision.expected {
            return false;
        }
        for message in &decision.messages {
            self.append(message);
        }
        true
    }

    /// What the writer says of a decision whose answer was lost or that was refused: it reads the entity.
    pub fn settle(&self, decision: &Decision) -> Outcome {
        let (first, ours) = (&decision.messages[0], decision.messages.len());
        let entity = keys(&first.subject);
        let facts = self.read(&first.stream).iter().skip(decision.expected as usize);
        let moved: Vec<&Stored> = facts.filter(|m| keys(&m.subject) == entity).take(ours).collect();
        let stands = moved.len() == ours && moved.iter().zip(&decision.messages).all(|(there, ours)| same(ours, there));
        match moved.last().filter(|_| stands) {
            Some(end) => Outcome::Stored(end.sequence),
            None => Outcome::Moved(self.last(decision)),
        }
    }

    /// Saves entries and an index, if nobody else did since `revision`. Gives the new revision.
    pub fn save(
        &mut self,
        bucket: &str,
        revision: u64,
        entries: Vec<(String, Vec<u8>)>,
        index: Vec<u8>,
    ) -> Option<u64> {
        let bucket = self.buckets.entry(bucket.to_owned()).or_default();
        if bucket.revision != revision {
            return None;
        }
        bucket.values.extend(entries);
        bucket.values.insert("index".into(), index);
        bucket.revision += 1;
        Some(bucket.revision)
    }
}

/// The entity in a fact's subject.
pub fn keys(subject: &str) -> String {
    subject.split('.').skip(3).collect::<Vec<_>>().join(".")
}

/// Is it what this decision says, of the same World? Another replica gives the same input the same id.
fn same(message: &Outgoing, stored: &Stored) -> bool {
    message.id == stored.id && message.world == stored.world && message.body == stored.body
}
