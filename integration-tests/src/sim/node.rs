//! One process that decides: a [`Replica`] and what its shell does, step by step and with faults.

use std::collections::{BTreeMap, VecDeque};

use mesh_core::{
    Decider, Key,
    replica::{Counts, Index, Outcome, Replica, Step, snapshot_key},
};
use mesh_core::{Decision, Stored};
use mesh_proto::{
    FactSet as _,
    contract::{DurableSpec, matches},
};

use super::{bus::MemoryBus, check, rng::Rng};

/// What a node does wrong on purpose, to show that the checks see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    #[default]
    None,
    /// Now and then an input never reaches the replica.
    LosesInputs,
    /// A snapshot says that it holds facts that it does not.
    SavesAhead,
}

/// A replica of some decider.
pub trait Node {
    /// The decider's name.
    fn name(&self) -> &'static str;
    /// Does one thing at random; `false` if there was nothing to do where it looked.
    fn act(&mut self, bus: &mut MemoryBus, rng: &mut Rng);
    /// Does everything there is to do now, in order; `true` if something was done.
    fn settle(&mut self, bus: &mut MemoryBus) -> bool;
    /// Saves a snapshot, and forgets entities beyond `max`.
    fn save(&mut self, bus: &mut MemoryBus, max: usize);
    /// Ends without a word. Gives the writes that may still reach the bus.
    fn crash(&mut self) -> Vec<Decision>;
    /// Is it running?
    fn runs(&self) -> bool;
    /// Starts from what was saved and acked.
    fn start(&mut self, bus: &mut MemoryBus);
    /// Why its state is not the fold of its stream, if so.
    fn check(&self, bus: &MemoryBus) -> Result<(), String>;
    /// Counters since its last start.
    fn counts(&self) -> Counts;
}

struct Write {
    ticket: u64,
    decision: Decision,
    /// It may be stored; its answer was lost.
    unanswered: bool,
}

/// A replica of this decider.
pub struct Deciding<D: Decider + Clone> {
    decider: D,
    flaw: Flaw,
    durables: Vec<DurableSpec>,
    running: Option<Running<D>>,
}

struct Running<D: Decider> {
    replica: Replica<D>,
    own: u64,
    worlds: BTreeMap<String, u64>,
    /// Per durable of the decider, the last sequence looked at.
    inputs: Vec<u64>,
    loads: VecDeque<Key>,
    writes: Vec<Write>,
    saved: u64,
    revision: u64,
    fed: u64,
}

impl<D: Decider + Clone> Deciding<D> {
    /// A replica that does not run yet.
    pub fn new(decider: D, flaw: Flaw) -> Self {
        let contract = mesh_proto::contract();
        let (_, spec) = contract.decider(D::NAME).expect("a decider of the contract");
        Self { decider, flaw, durables: contract.durables(spec), running: None }
    }

    fn own_stream() -> String {
        D::Fact::AREA.to_uppercase()
    }
}

impl<D: Decider> Running<D> {
    /// Takes the replica's steps over.
    fn steps(&mut self, bus: &mut MemoryBus) {
        while let Some(step) = self.replica.next_step() {
            match step {
                Step::Load(key) => self.loads.push_back(key),
                Step::Write { ticket, decision } => self.writes.push(Write { ticket, decision, unanswered: false }),
                Step::DeadLetter { ticket, input, reason } => {
                    bus.dead.push((D::NAME.to_owned(), (*input).clone(), reason));
                    self.replica.dead_lettered(ticket);
                }
            }
        }
    }

    fn load(&mut self, bus: &MemoryBus) -> bool {
        let Some(key) = self.loads.pop_front() else { return false };
        let bytes = bus.buckets.get(D::NAME).and_then(|b| b.values.get(&snapshot_key(&key)));
        self.replica.loaded(&key, bytes.map(Vec::as_slice)).expect("a snapshot that can be read");
        true
    }

    fn own_fact(&mut self, bus: &MemoryBus, stream: &str) -> bool {
        let Some(fact) = bus.read(stream).get(self.own as usize) else { return false };
        self.own += 1;
        self.replica.fact(fact.clone());
        true
    }

    fn world_fact(&mut self, bus: &MemoryBus, stream: &str) -> bool {
        let Some(position) = self.worlds.get_mut(stream) else { return false };
        let Some(fact) = bus.read(stream).get(*position as usize) else { return false };
        *position += 1;
        self.replica.world_fact(fact);
        true
    }

    fn input(&mut self, bus: &MemoryBus, durable: &DurableSpec, index: usize, flaw: Flaw) -> bool {
        loop {
            let Some(message) = bus.read(&durable.stream).get(self.inputs[index] as usize) else { return false };
            self.inputs[index] += 1;
            if durable.filters.iter().any(|filter| matches(filter, &message.subject)) {
                self.fed += 1;
                if flaw == Flaw::LosesInputs && self.fed % 10 == 9 {
                    continue;
                }
                self.replica.input(message.clone());
                return true;
            }
        }
    }

    fn ack(&self, bus: &mut MemoryBus, stream: &str) {
        let done = self.replica.low_water(stream);
        let acked = bus.acked.entry((D::NAME.to_owned(), stream.to_owned())).or_default();
        *acked = done.max(*acked);
    }

    fn write(&mut self, bus: &mut MemoryBus, at: usize) {
        let Write { ticket, decision, unanswered } = self.writes.remove(at);
        let outcome = if !unanswered && bus.decide(&decision) {
            Outcome::Stored(bus.end(&decision.messages[0].stream))
        } else {
            bus.settle(&decision)
        };
        self.replica.written(ticket, outcome);
    }
}

impl<D: Decider + Clone> Node for Deciding<D> {
    fn name(&self) -> &'static str {
        D::NAME
    }

    fn runs(&self) -> bool {
        self.running.is_some()
    }

    fn start(&mut self, bus: &mut MemoryBus) {
        let bucket = bus.buckets.get(D::NAME);
        let index = bucket.and_then(|b| b.values.get("index"));
        let index: Option<Index> = index.map(|bytes| serde_json::from_slice(bytes).expect("an index"));
        let revision = bucket.map_or(0, |b| b.revision);
        let saved = index.as_ref().map_or(0, |i| i.position);
        let replica = Replica::new(self.decider.clone(), index);
        let own_stream = Self::own_stream();
        let worlds = replica.world_streams();
        let own = if worlds.contains(&own_stream) { 0 } else { saved };
        let acked = |d: &DurableSpec| bus.acked.get(&(D::NAME.to_owned(), d.stream.clone())).copied().unwrap_or(0);
        let inputs = self.durables.iter().map(acked).collect();
        let mut running = Running {
            replica,
            own,
            worlds: worlds.into_iter().filter(|w| *w != own_stream).map(|w| (w, 0)).collect(),
            inputs,
            loads: VecDeque::new(),
            writes: vec![],
            saved,
            revision,
            fed: 0,
        };
        // What is there is read before anything is decided.
        while running.own_fact(bus, &own_stream) {
            running.steps(bus);
            while running.load(bus) {}
        }
        for world in running.worlds.keys().cloned().collect::<Vec<_>>() {
            while running.world_fact(bus, &world) {}
        }
        self.running = Some(running);
    }

    fn crash(&mut self) -> Vec<Decision> {
        let writes = self.running.take().map(|r| r.writes).unwrap_or_default();
        writes.into_iter().filter(|w| !w.unanswered).map(|w| w.decision).collect()
    }

    fn act(&mut self, bus: &mut MemoryBus, rng: &mut Rng) {
        let Some(running) = &mut self.running else { return };
        running.replica.decide_together_from(*rng.pick(&[2, 4, usize::MAX]));
        match rng.below(10) {
            0..=2 => {
                for _ in 0..=rng.below(6) {
                    running.own_fact(bus, &Self::own_stream());
                }
            }
            3 => {
                let worlds: Vec<String> = running.worlds.keys().cloned().collect();
                if !worlds.is_empty() {
                    let world = rng.pick(&worlds).clone();
                    for _ in 0..=rng.below(6) {
                        running.world_fact(bus, &world);
                    }
                }
            }
            4..=6 => {
                let index = rng.below(self.durables.len());
                for _ in 0..=rng.below(4) {
                    running.input(bus, &self.durables[index], index, self.flaw);
                }
            }
            7 => {
                running.load(bus);
                running.replica.pass(bus.now);
            }
            _ => {
                if !running.writes.is_empty() {
                    let at = rng.below(running.writes.len());
                    match rng.below(10) {
                        // Stored, and the answer is lost: what follows is known when the writer has read the entity.
                        0 if !running.writes[at].unanswered => {
                            bus.decide(&running.writes[at].decision);
                            running.writes[at].unanswered = true;
                        }
                        // Lost on its way: it is sent again.
                        1 => {}
                        _ => running.write(bus, at),
                    }
                }
            }
        }
        running.steps(bus);
        for durable in &self.durables {
            if rng.percent(30) {
                running.ack(bus, &durable.stream);
            }
        }
    }

    fn settle(&mut self, bus: &mut MemoryBus) -> bool {
        let Some(running) = &mut self.running else { return false };
        let mut any = false;
        loop {
            let mut did = false;
            while running.own_fact(bus, &Self::own_stream()) {
                did = true;
            }
            for world in running.worlds.keys().cloned().collect::<Vec<_>>() {
                while running.world_fact(bus, &world) {
                    did = true;
                }
            }
            running.steps(bus);
            while running.load(bus) {
                did = true;
            }
            for (index, durable) in self.durables.iter().enumerate() {
                while running.input(bus, durable, index, self.flaw) {
                    did = true;
                }
            }
            let before = running.writes.len();
            running.replica.pass(bus.now);
            running.steps(bus);
            did |= running.writes.len() > before;
            while !running.writes.is_empty() {
                running.write(bus, 0);
                running.steps(bus);
                did = true;
                // A refused decision waits for the facts that it did not know.
                while running.own_fact(bus, &Self::own_stream()) {}
                running.steps(bus);
            }
            for durable in &self.durables {
                running.ack(bus, &durable.stream);
            }
            any |= did;
            if !did {
                return any;
            }
        }
    }

    fn save(&mut self, bus: &mut MemoryBus, max: usize) {
        let Some(running) = &mut self.running else { return };
        let Some((entries, index)) = running.replica.snapshot(5_000, running.saved) else { return };
        // Without a new index the last one stays true.
        let last = || {
            let last = bus.buckets.get(D::NAME).and_then(|b| b.values.get("index"));
            last.map(|bytes| serde_json::from_slice(bytes).expect("an index")).unwrap_or_default()
        };
        let mut index: Index = index.unwrap_or_else(last);
        if self.flaw == Flaw::SavesAhead {
            index.position = bus.end(&Self::own_stream());
        }
        let keys: Vec<String> = entries.iter().map(|(key, _)| key.clone()).collect();
        let bytes = serde_json::to_vec(&index).expect("an index as JSON");
        match bus.save(D::NAME, running.revision, entries, bytes) {
            Some(revision) => {
                running.revision = revision;
                running.saved = index.position;
                running.replica.evict(max, running.saved);
            }
            None => {
                // Another replica saved since: its position and revision count.
                running.replica.unsaved(keys);
                let bucket = &bus.buckets[D::NAME];
                let index: Index = serde_json::from_slice(&bucket.values["index"]).expect("an index");
                running.saved = index.position;
                running.revision = bucket.revision;
                running.replica.overtaken(running.saved);
            }
        }
    }

    fn check(&self, bus: &MemoryBus) -> Result<(), String> {
        let Some(running) = &self.running else { return Err(format!("{} does not run", D::NAME)) };
        if running.replica.open() > 0 || running.replica.in_flight() > 0 {
            let (open, flying) = (running.replica.open(), running.replica.in_flight());
            return Err(format!("{}: {open} inputs are not done and {flying} writes in flight", D::NAME));
        }
        check::states(&self.decider, &running.replica, bus)
    }

    fn counts(&self) -> Counts {
        self.running.as_ref().map(|r| r.replica.counts()).unwrap_or_default()
    }
}

/// A message of a stream by its sequence.
pub fn message<'a>(bus: &'a MemoryBus, stream: &str, sequence: u64) -> Option<&'a Stored> {
    bus.read(stream).get(sequence.checked_sub(1)? as usize)
}
