//! One replica of a decider, without I/O: inputs, facts and outcomes go in, steps come out.
//!
//! The service shell and the seeded simulation drive this same code. What holds, in whatever order things arrive:
//!
//! - an input is decided once per entity it concerns, however often and however late it comes;
//! - inputs of one entity from one stream are decided in stream order, one at a time;
//! - a decision is written on the condition that its entity has not moved since;
//! - a state is the fold of stored facts and of nothing else.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use mesh_proto::{EventSet as _, FactSet as _, Timestamp, derived_id};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Cause, Decider, Decision, Envelope, Key, Outgoing, ReadModel as _, Stored, Trigger};

mod intake;
#[cfg(test)]
mod tests;

use intake::Intake;

/// Ids of answered commands kept per entity: a command that comes again after this number of others of the same entity
/// is a new one.
const ANSWERED_MAX: usize = 4_096;

/// Messages and bytes of one decision that answers several inputs, at most.
const TOGETHER_MAX: usize = 256;
const TOGETHER_BYTES_MAX: usize = 1 << 20;

/// What the shell is to do.
#[derive(Debug)]
pub enum Step {
    /// Read the entity's snapshot, then call [`Replica::loaded`].
    Load(Key),
    /// Write the decision, then call [`Replica::written`] with the ticket.
    Write {
        /// Names the decision in the answer.
        ticket: u64,
        /// The write.
        decision: Decision,
    },
    /// Publish the input as a dead letter, then call [`Replica::dead_lettered`] with the ticket.
    DeadLetter {
        /// Names it in the answer.
        ticket: u64,
        /// The input.
        input: Arc<Stored>,
        /// Why it is dead.
        reason: String,
    },
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Stored; the decision's last fact has this sequence.
    Stored(u64),
    /// Not (or not provably by this write) stored: the entity's last fact has this sequence; decide again when
    /// the facts up to it have been read.
    Moved(u64),
    /// It can never be stored: the input becomes a dead letter.
    Impossible,
}

/// An entity as snapshots keep it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Folded<S> {
    state: S,
    /// Sequence of its last fact; 0 for none.
    last: u64,
    /// Time of its last fact.
    time: Timestamp,
    /// Per input stream, the last sequence that made a fact.
    applied: BTreeMap<String, u64>,
    /// Ids of the commands it answered, oldest first.
    answered: VecDeque<String>,
}

struct Entity<S, I> {
    /// `None` while its snapshot is being read.
    folded: Option<Folded<S>>,
    /// Facts that arrived while it was being read.
    early: Vec<Arc<Stored>>,
    queue: VecDeque<Question<I>>,
    /// A decision is being written.
    busy: bool,
    /// Decide nothing until the facts up to here have been read.
    behind: u64,
    dirty: bool,
    /// Questions that are to be answered one by one: together their answers could not be stored.
    singly: usize,
    /// The `due` value that was already asked and changed nothing.
    asked_due: Option<Timestamp>,
    /// The `due` value in the index; while its snapshot is being read, the one that it is read for.
    indexed_due: Option<Timestamp>,
    /// States after facts that were folded when their write was answered and are still to be read, by sequence; kept
    /// only for a view.
    ahead: VecDeque<(u64, Arc<S>)>,
}

enum Question<I> {
    Input(Arc<Pending<I>>),
    Due(Timestamp),
}

impl<I> Clone for Question<I> {
    fn clone(&self) -> Self {
        match self {
            Self::Input(pending) => Self::Input(pending.clone()),
            Self::Due(time) => Self::Due(*time),
        }
    }
}

struct Pending<I> {
    stored: Arc<Stored>,
    body: bytes::Bytes,
    /// `None` if it could not be decoded and only becomes a dead letter.
    input: Option<I>,
}

/// An input that waits until the read model has seen it.
struct Held<I> {
    pending: Arc<Pending<I>>,
    /// Decisions up to this ticket, taken before the read model had seen the input, must have ended: known once it has.
    barrier: Option<u64>,
    /// Own facts up to here must be in the read model; known once those decisions have ended.
    need: Option<u64>,
    /// The own fact that it follows from, perhaps another replica's: who has not read it yet would find nothing to
    /// say about the input. 0 for none.
    after: u64,
}

/// How far one input stream is handled.
struct Progress<I> {
    /// Highest sequence fed.
    fed: u64,
    /// Fed and not done: sequence -> entities that have not decided it yet, and when it was stored.
    open: BTreeMap<u64, (usize, Timestamp)>,
    /// Waiting until the read model has seen them.
    held: VecDeque<Held<I>>,
}

impl<I> Default for Progress<I> {
    fn default() -> Self {
        Self { fed: 0, open: BTreeMap::new(), held: VecDeque::new() }
    }
}

/// What is being written about an entity: an answer, or several that follow from each other, whole or not at all.
struct Flight<I, F> {
    key: Key,
    answers: Vec<Answer<I, F>>,
    burial: bool,
}

/// A question and the facts that answer it; none if there was nothing to say after the answers before it.
struct Answer<I, F> {
    question: Question<I>,
    facts: Vec<F>,
    at: Timestamp,
    cause: Cause,
}

impl<I, F> Answer<I, F> {
    fn silence(question: Question<I>) -> Self {
        Self { question, facts: vec![], at: Timestamp::default(), cause: Cause::default() }
    }
}

/// What a snapshot's index holds besides the entities.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Index {
    /// Every fact up to this sequence is in the entities' snapshots.
    pub position: u64,
    /// Entities in the bucket.
    pub entities: u64,
    /// When which entity wants to be asked.
    pub due: Vec<(Timestamp, Key)>,
    /// Per input stream, the sequence up to which every input was done; empty where durables keep that.
    #[serde(default)]
    pub inputs: BTreeMap<String, u64>,
}

/// What is to be saved: bucket key and bytes of each entity that changed, and the index that goes with them, unless
/// more entities are still to be saved: then the last index stays true.
pub type Snapshot = (Vec<(String, Vec<u8>)>, Option<Index>);

/// Counters of a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Inputs fed.
    pub received: u64,
    /// Inputs all of whose entities have decided.
    pub handled: u64,
    /// Decisions taken again because their entity had moved.
    pub retried: u64,
    /// Inputs that became dead letters.
    pub dead: u64,
    /// Facts written.
    pub facts: u64,
    /// Facts of its own area that this version cannot decode.
    pub undecodable: u64,
}

/// A fact of the own area as it was read, with the state that it led to: for a view that shares the decider's fold.
#[derive(Clone, Debug)]
pub struct Change<S> {
    /// The fact.
    pub fact: Arc<Stored>,
    /// The state of its entity after it; `None` for a fact that was in what was saved before this replica began.
    pub state: Option<Arc<S>>,
}

/// One replica of a decider.
pub struct Replica<D: Decider> {
    decider: D,
    area: &'static str,
    own_stream: String,
    world: D::ReadModel,
    world_positions: BTreeMap<String, u64>,
    entities: HashMap<Key, Entity<D::State, D::Input>>,
    /// Own facts up to here are folded.
    position: u64,
    /// Is every entity that exists in memory?
    complete: bool,
    known: u64,
    /// Entities that stay in memory.
    pinned: BTreeSet<Key>,
    due: BTreeSet<(Timestamp, Key)>,
    inputs: BTreeMap<String, Progress<D::Input>>,
    flights: BTreeMap<u64, Flight<D::Input, D::Fact>>,
    tickets: u64,
    /// Highest sequence that this replica wrote.
    own_written: u64,
    /// Every own fact up to here is folded, or is of a write of this replica that was answered.
    covered: u64,
    /// Answered writes beyond that: first and last sequence.
    answered_writes: BTreeMap<u64, u64>,
    /// Inputs fed from now on wait until the own facts up to here are covered.
    floor: u64,
    stopped: bool,
    steps: VecDeque<Step>,
    counts: Counts,
    /// What a view has not been given yet; `None` if there is no such view.
    changes: Option<VecDeque<Change<D::State>>>,
    /// Per input stream, what the last index says is done; `None` where durables keep that.
    marks: Option<BTreeMap<String, u64>>,
    /// Entities whose work is under way, and those that wait to begin theirs.
    intake: Intake,
    /// The waiting entity that is being let in.
    let_in: Option<Key>,
    /// Waiting inputs of one entity from which on they are decided together.
    together: usize,
}

impl<D: Decider> Replica<D> {
    /// A replica that starts from a snapshot's index, or from nothing.
    pub fn new(decider: D, index: Option<Index>) -> Self {
        let world = mesh_proto::contract()
            .decider(D::NAME)
            .map(|(_, spec)| spec.world.iter().map(|s| (s.clone(), 0)).collect())
            .unwrap_or_default();
        let complete = index.is_none();
        let index = index.unwrap_or_default();
        Self {
            area: D::Fact::AREA,
            own_stream: D::Fact::AREA.to_uppercase(),
            world: D::ReadModel::default(),
            world_positions: world,
            entities: HashMap::new(),
            position: index.position,
            complete,
            known: index.entities,
            pinned: BTreeSet::new(),
            due: index.due.into_iter().collect(),
            inputs: BTreeMap::new(),
            flights: BTreeMap::new(),
            tickets: 0,
            own_written: 0,
            covered: index.position,
            answered_writes: BTreeMap::new(),
            floor: 0,
            stopped: false,
            steps: VecDeque::new(),
            counts: Counts::default(),
            changes: None,
            marks: None,
            intake: Intake::new(),
            let_in: None,
            together: usize::MAX,
            decider,
        }
    }

    /// From now on the index says how far each input stream is done, because no durable does.
    pub fn keep_marks(&mut self) {
        self.marks.get_or_insert_default();
    }

    /// Keeps each fact that is read from now on, with the state that it leads to, for [`Replica::next_change`].
    pub fn share(&mut self) {
        self.changes.get_or_insert_default();
    }

    /// Keeps no more facts for a view.
    pub fn unshare(&mut self) {
        self.changes = None;
    }

    /// The next fact with its state, for the view that shares them.
    pub fn next_change(&mut self) -> Option<Change<D::State>> {
        self.changes.as_mut()?.pop_front()
    }

    /// From now on this number of waiting inputs of one entity is decided one after the other and written together, as one
    /// decision: every write of an entity waits for the one before it. At first they never are.
    pub fn decide_together_from(&mut self, inputs: usize) {
        self.together = inputs.max(2);
    }

    /// Lets inputs that set work in motion elsewhere wait while this number of entities is under way.
    pub fn limit_under_way(&mut self, window: usize) {
        self.intake.resize(window);
        self.begin();
    }

    /// Entities that came back since the start, after what they set in motion elsewhere.
    pub fn came_back(&self) -> u64 {
        self.intake.ended
    }

    /// Entities that wait until less is under way.
    pub fn waiting(&self) -> usize {
        self.intake.waiting()
    }

    /// When the oldest input of the stream was stored that is fed and not done.
    pub fn oldest(&self, stream: &str) -> Option<Timestamp> {
        let progress = self.inputs.get(stream)?;
        let open = progress.open.values().next().map(|(_, stored)| *stored);
        open.into_iter().chain(progress.held.front().map(|held| held.pending.stored.stored)).min()
    }

    /// The next thing to do, if there is one.
    pub fn next_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Decides nothing new from now on; what is being written can still end.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Own facts up to this sequence are folded.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Counters since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Entities in memory.
    pub fn entities(&self) -> usize {
        self.entities.len()
    }

    /// Inputs fed and not done, all streams together.
    pub fn open(&self) -> usize {
        self.inputs.values().map(|p| p.open.len() + p.held.len()).sum()
    }

    /// Decisions and burials being written.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Every input of the stream up to this sequence is done; 0 if none was fed.
    pub fn low_water(&self, stream: &str) -> u64 {
        let Some(progress) = self.inputs.get(stream) else { return 0 };
        let open = progress.open.keys().next().copied();
        let held = progress.held.front().map(|held| held.pending.stored.sequence);
        match open.into_iter().chain(held).min() {
            Some(first) => first - 1,
            None => progress.fed,
        }
    }

    /// Inputs fed from now on wait until every own fact up to this sequence is known here: the inputs were another
    /// replica's until now, and what it decided before may not have been read yet.
    pub fn take_over(&mut self, own_end: u64) {
        self.floor = self.floor.max(own_end);
    }

    /// Inputs of the stream up to this sequence need not be fed.
    pub fn skip_through(&mut self, stream: &str, sequence: u64) {
        let progress = self.inputs.entry(stream.to_owned()).or_default();
        progress.fed = progress.fed.max(sequence);
    }

    /// An entity's state, if it is in memory.
    pub fn state(&self, key: &Key) -> Option<&D::State> {
        self.entities.get(key).and_then(|e| e.folded.as_ref()).map(|f| &f.state)
    }

    /// All states in memory, in key order.
    pub fn states(&self) -> BTreeMap<&Key, &D::State> {
        self.entities.iter().filter_map(|(k, e)| e.folded.as_ref().map(|f| (k, &f.state))).collect()
    }

    /// Keeps an entity in memory from now on. False while its snapshot is still to be read: call [`Replica::loaded`].
    pub fn pin(&mut self, key: &Key) -> bool {
        self.pinned.insert(key.clone());
        self.entity(key).folded.is_some()
    }

    /// Stream of its own facts.
    pub fn own_stream(&self) -> &str {
        &self.own_stream
    }

    /// Sequence up to which a stream is in the World; 0 for one that is not.
    pub fn world_position(&self, stream: &str) -> u64 {
        self.world_positions.get(stream).copied().unwrap_or_default()
    }

    /// The World as folded so far.
    pub fn world(&self) -> &D::ReadModel {
        &self.world
    }

    /// The decider.
    pub fn decider(&self) -> &D {
        &self.decider
    }

    /// When the next entity wants to be asked.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(time, _)| *time)
    }

    /// Takes in an input, once per sequence and in stream order; older ones are ignored.
    pub fn input(&mut self, stored: impl Into<Arc<Stored>>) {
        let stored = stored.into();
        let progress = self.inputs.entry(stored.stream.clone()).or_default();
        if stored.sequence <= progress.fed {
            return;
        }
        progress.fed = stored.sequence;
        self.counts.received += 1;
        match stored.input::<D::Input>() {
            Ok((body, input)) => {
                let pending = Arc::new(Pending { stored, body, input: Some(input) });
                let cause = pending.stored.cause.as_ref();
                // Anyone may name a cause with a command; only services write facts.
                let follows = cause.filter(|c| c.stream == self.own_stream && !is_commands(&pending.stored.stream));
                let after = follows.map_or(0, |c| c.sequence);
                let after = after.max(self.floor);
                let held = Held { pending: pending.clone(), barrier: None, need: None, after };
                self.inputs.entry(pending.stored.stream.clone()).or_default().held.push_back(held);
                self.release();
            }
            Err(error) => self.bury_new(stored, chain(&error)),
        }
    }

    /// Routes the held inputs whose stream the read model has seen far enough. An input from the own area also waits
    /// until the read model has seen what this replica was writing when it came.
    fn release(&mut self) {
        loop {
            let first_flight = self.flights.keys().next().copied().unwrap_or(u64::MAX);
            let (tickets, written, position) = (self.tickets, self.own_written, self.position);
            let covered = self.covered;
            let ready = self.inputs.iter_mut().find_map(|(stream, progress)| {
                let held = progress.held.front_mut()?;
                let sequence = held.pending.stored.sequence;
                if self.world_positions.get(stream).is_some_and(|position| *position < sequence) {
                    return None;
                }
                if held.after > covered {
                    return None;
                }
                if *stream == self.own_stream {
                    if first_flight <= *held.barrier.get_or_insert(tickets) {
                        return None;
                    }
                    if *held.need.get_or_insert(written) > position {
                        return None;
                    }
                }
                progress.held.pop_front()
            });
            let Some(held) = ready else { return };
            self.route(held.pending);
        }
    }

    fn route(&mut self, pending: Arc<Pending<D::Input>>) {
        let Some(input) = &pending.input else { return };
        let concerned = catch_unwind(AssertUnwindSafe(|| self.decider.concerns(input, &self.world)));
        let keys: BTreeSet<Key> = match concerned {
            Ok(keys) => keys.into_iter().collect(),
            Err(_) => return self.bury_new(pending.stored.clone(), "the decider panicked in `concerns`".into()),
        };
        if keys.is_empty() {
            self.counts.handled += 1;
            return;
        }
        let (stream, sequence) = (pending.stored.stream.clone(), pending.stored.sequence);
        let at = pending.stored.stored;
        self.inputs.entry(stream).or_default().open.insert(sequence, (keys.len(), at));
        for key in keys {
            self.entity(&key).queue.push_back(Question::Input(pending.clone()));
            self.advance(&key);
        }
    }

    fn bury_new(&mut self, stored: Arc<Stored>, reason: String) {
        let progress = self.inputs.entry(stored.stream.clone()).or_default();
        progress.open.insert(stored.sequence, (1, stored.stored));
        let pending = Arc::new(Pending { stored, body: bytes::Bytes::new(), input: None });
        self.bury(Key(vec![]), Question::Input(pending), reason);
    }

    fn bury(&mut self, key: Key, question: Question<D::Input>, reason: String) {
        self.counts.dead += 1;
        match question {
            Question::Due(time) => {
                // Nothing to bury: the entity is not asked again for this time.
                if let Some(entity) = self.entities.get_mut(&key) {
                    entity.asked_due = Some(time);
                    entity.busy = false;
                }
            }
            Question::Input(pending) => {
                self.tickets += 1;
                let input = pending.stored.clone();
                self.steps.push_back(Step::DeadLetter { ticket: self.tickets, input, reason });
                let flight = Flight { key, answers: vec![Answer::silence(Question::Input(pending))], burial: true };
                self.flights.insert(self.tickets, flight);
            }
        }
    }

    /// Takes in the next fact of the own area, whoever wrote it.
    pub fn fact(&mut self, stored: impl Into<Arc<Stored>>) {
        let stored = stored.into();
        self.see_own(&stored);
        if stored.sequence <= self.position {
            if let Some(changes) = &mut self.changes {
                changes.push_back(Change { fact: stored, state: None });
            }
            return;
        }
        self.position = stored.sequence;
        self.cover();
        let key = Key(stored.subject.split('.').skip(3).map(str::to_owned).collect());
        if !key.0.is_empty() {
            let entity = self.entity(&key);
            if entity.folded.is_none() {
                entity.early.push(stored);
            } else {
                self.fold(&key, &stored);
                self.change(&key, stored);
                self.advance(&key);
                self.begin();
            }
        } else if let Some(changes) = &mut self.changes {
            changes.push_back(Change { fact: stored, state: None });
        }
        self.release();
    }

    /// Takes in the next fact of a stream of the read model.
    pub fn world_fact(&mut self, stored: &Stored) {
        let Some(position) = self.world_positions.get_mut(&stored.stream) else { return };
        if stored.sequence > *position {
            *position = stored.sequence;
            self.world.apply(stored);
        }
        self.release();
    }

    /// A read model over the own area is folded with the own tail.
    fn see_own(&mut self, stored: &Stored) {
        if let Some(position) = self.world_positions.get_mut(&self.own_stream)
            && stored.sequence > *position
        {
            *position = stored.sequence;
            self.world.apply(stored);
        }
    }

    /// Streams that the read model is folded from. If the own stream is one, it is to be read from its beginning.
    pub fn world_streams(&self) -> Vec<String> {
        self.world_positions.keys().cloned().collect()
    }

    fn entity(&mut self, key: &Key) -> &mut Entity<D::State, D::Input> {
        if !self.entities.contains_key(key) {
            let folded = self.complete.then(|| {
                self.known += 1;
                self.blank()
            });
            if folded.is_none() {
                self.steps.push_back(Step::Load(key.clone()));
            }
            let entity = Entity {
                folded,
                early: vec![],
                queue: VecDeque::new(),
                busy: false,
                behind: 0,
                dirty: false,
                singly: 0,
                asked_due: None,
                indexed_due: None,
                ahead: VecDeque::new(),
            };
            self.entities.insert(key.clone(), entity);
        }
        #[allow(clippy::expect_used)]
        self.entities.get_mut(key).expect("just inserted")
    }

    fn blank(&self) -> Folded<D::State> {
        Folded {
            state: self.decider.initial(),
            last: 0,
            time: Timestamp::default(),
            applied: BTreeMap::new(),
            answered: VecDeque::new(),
        }
    }

    /// An entity's snapshot was read: its bytes, or `None` if it has none. Fails if they cannot be decoded;
    /// the entity then stays unloaded and its inputs undone.
    pub fn loaded(&mut self, key: &Key, snapshot: Option<&[u8]>) -> Result<(), serde_json::Error> {
        let folded = match snapshot {
            Some(bytes) => serde_json::from_slice(bytes)?,
            None => {
                self.known += 1;
                self.blank()
            }
        };
        let Some(entity) = self.entities.get_mut(key) else { return Ok(()) };
        if entity.folded.is_some() {
            return Ok(());
        }
        entity.folded = Some(folded);
        let early = std::mem::take(&mut entity.early);
        for stored in early {
            self.fold(key, &stored);
            self.change(key, stored);
        }
        self.index_due(key);
        self.advance(key);
        Ok(())
    }

    /// Folds a stored fact into its entity, unless it is there already.
    fn fold(&mut self, key: &Key, stored: &Stored) {
        let Some(entity) = self.entities.get_mut(key) else { return };
        let Some(folded) = entity.folded.as_mut() else { return };
        if stored.sequence <= folded.last {
            return;
        }
        match D::Fact::decode(&stored.message, &stored.body) {
            Ok(fact) => {
                let state = std::mem::replace(&mut folded.state, self.decider.initial());
                folded.state = self.decider.evolve(state, &fact, stored.time);
            }
            Err(_) => self.counts.undecodable += 1,
        }
        folded.note(stored.sequence, stored.time, stored.cause.as_ref());
        entity.dirty = true;
        entity.asked_due = None;
        self.index_due(key);
    }

    /// Gives a fact that was read to the view that shares the fold, with the state right after it: perhaps its entity has
    /// gone on, with facts of its own that are still to be read.
    fn change(&mut self, key: &Key, fact: Arc<Stored>) {
        let Some(changes) = &mut self.changes else { return };
        let Some(entity) = self.entities.get_mut(key) else { return };
        while entity.ahead.front().is_some_and(|(sequence, _)| *sequence < fact.sequence) {
            entity.ahead.pop_front();
        }
        let ahead = entity.ahead.pop_front_if(|(sequence, _)| *sequence == fact.sequence).map(|(_, state)| state);
        let state = ahead.or_else(|| entity.folded.as_ref().map(|folded| Arc::new(folded.state.clone())));
        changes.push_back(Change { fact, state });
    }

    fn index_due(&mut self, key: &Key) {
        let Some(entity) = self.entities.get_mut(key) else { return };
        let Some(folded) = entity.folded.as_ref() else { return };
        let due = self.decider.due(&folded.state);
        self.intake.note(key, self.decider.is_under_way(&folded.state));
        if let Some(old) = entity.indexed_due.take() {
            self.due.remove(&(old, key.clone()));
        }
        if due.is_some() && due != entity.asked_due {
            entity.indexed_due = due;
            self.due.extend(due.map(|time| (time, key.clone())));
        }
    }

    /// Lets those begin who waited, as far as less is under way or takes too long by now.
    pub fn look(&mut self, now: Timestamp) {
        self.intake.pass(now);
        self.begin();
    }

    fn begin(&mut self) {
        if self.stopped {
            return;
        }
        while let Some(key) = self.intake.next() {
            self.let_in = Some(key.clone());
            self.advance(&key);
            self.let_in = None;
        }
    }

    /// Must the entity's next question wait until less is under way?
    fn must_wait(&mut self, key: &Key) -> bool {
        if self.intake.waits(key) {
            return true;
        }
        if self.let_in.take_if(|let_in| let_in == key).is_some() {
            return false;
        }
        let Some(Question::Input(pending)) = self.entities.get(key).and_then(|e| e.queue.front()) else { return false };
        let Some(urgency) = pending.input.as_ref().and_then(|input| self.decider.urgency(input)) else { return false };
        // Whoever waits is before whoever comes.
        if self.intake.is_open() && self.intake.waiting() == 0 {
            return false;
        }
        self.intake.wait(key, urgency);
        true
    }

    fn is_beginning(&self, question: &Question<D::Input>) -> bool {
        let Question::Input(pending) = question else { return false };
        pending.input.as_ref().is_some_and(|input| self.decider.urgency(input).is_some())
    }

    /// Asks every entity whose time has come.
    pub fn pass(&mut self, now: Timestamp) {
        while let Some((time, key)) = self.due.first().cloned() {
            if time > now {
                return;
            }
            self.due.remove(&(time, key.clone()));
            let entity = self.entity(&key);
            if entity.folded.is_none() {
                // Its real due is known once it is loaded.
                entity.indexed_due = Some(time);
                continue;
            }
            entity.indexed_due = None;
            if entity.asked_due == Some(time) {
                continue;
            }
            entity.queue.push_back(Question::Due(time));
            self.advance(&key);
        }
    }

    /// Decides what the entity's queue holds, as far as it can now.
    fn advance(&mut self, key: &Key) {
        while !self.stopped {
            let Some(entity) = self.entities.get(key) else { return };
            let Some(folded) = entity.folded.as_ref() else { return };
            if entity.busy || folded.last < entity.behind || self.must_wait(key) {
                return;
            }
            let next = self.entities.get_mut(key).and_then(|entity| entity.queue.pop_front());
            let Some(question) = next else { return };
            let Some(folded) = self.entities.get(key).and_then(|entity| entity.folded.as_ref()) else { return };
            match self.decide(key, folded, &question) {
                Verdict::Nothing => self.done(key, &question),
                Verdict::Write(answer, mut messages) => {
                    let expected = folded.last;
                    let mut answers = vec![answer];
                    self.tickets += 1;
                    if self.is_beginning(&question) {
                        self.intake.begins();
                    } else {
                        self.decide_together(key, &mut answers, &mut messages);
                    }
                    if let Some(entity) = self.entities.get_mut(key) {
                        entity.busy = true;
                        entity.singly = entity.singly.saturating_sub(1);
                    }
                    let decision = Decision { entity: key.entity(self.area), expected, messages };
                    self.steps.push_back(Step::Write { ticket: self.tickets, decision });
                    self.flights.insert(self.tickets, Flight { key: key.clone(), answers, burial: false });
                    return;
                }
                Verdict::Dead(reason) => {
                    if let Some(entity) = self.entities.get_mut(key) {
                        entity.busy = matches!(question, Question::Input(_));
                    }
                    self.bury(key.clone(), question, reason);
                }
            }
        }
    }

    /// Adds the answers to further inputs that wait for the entity, if enough do: each is decided on the state that the
    /// answers before it lead to. All of them are stored, or none.
    fn decide_together(
        &mut self,
        key: &Key,
        answers: &mut Vec<Answer<D::Input, D::Fact>>,
        messages: &mut Vec<Outgoing>,
    ) {
        let Some(entity) = self.entities.get(key).filter(|entity| entity.singly == 0) else { return };
        if entity.queue.len() + 1 < self.together {
            return;
        }
        let Some(mut folded) = entity.folded.clone() else { return };
        let mut bytes: usize = messages.iter().map(|message| message.body.len()).sum();
        self.lead_to(&mut folded, answers.first());
        loop {
            let next = self.entities.get(key).and_then(|entity| entity.queue.front()).cloned();
            let Some(question @ Question::Input(_)) = next else { return };
            if self.is_beginning(&question) {
                return;
            }
            match self.decide(key, &folded, &question) {
                // Decided again when its turn comes.
                Verdict::Dead(_) => return,
                Verdict::Nothing => answers.push(Answer::silence(question)),
                Verdict::Write(answer, more) => {
                    bytes += more.iter().map(|message| message.body.len()).sum::<usize>();
                    if messages.len() + more.len() > TOGETHER_MAX || bytes > TOGETHER_BYTES_MAX {
                        return;
                    }
                    messages.extend(more);
                    self.lead_to(&mut folded, Some(&answer));
                    answers.push(answer);
                }
            }
            if let Some(entity) = self.entities.get_mut(key) {
                entity.queue.pop_front();
            }
        }
    }

    /// Folds what is not stored yet.
    fn lead_to(&self, folded: &mut Folded<D::State>, answer: Option<&Answer<D::Input, D::Fact>>) {
        let Some(answer) = answer else { return };
        for fact in &answer.facts {
            let state = std::mem::replace(&mut folded.state, self.decider.initial());
            folded.state = self.decider.evolve(state, fact, answer.at);
        }
        folded.note(folded.last, answer.at, Some(&answer.cause));
    }

    fn decide(
        &self,
        key: &Key,
        folded: &Folded<D::State>,
        question: &Question<D::Input>,
    ) -> Verdict<D::Input, D::Fact> {
        let (envelope, cause, traceparent, command) = match question {
            Question::Due(time) => {
                if self.decider.due(&folded.state) != Some(*time) {
                    return Verdict::Nothing;
                }
                let id = derived_id(&[&key.entity(self.area), "due", &time.to_string()]);
                let cause = Cause { stream: String::new(), sequence: 0, id: format!("due:{time}") };
                let body = bytes::Bytes::new();
                let envelope = Envelope { trigger: Trigger::Due, at: (*time).max(folded.time), id, sequence: 0, body };
                (envelope, cause, None, None)
            }
            Question::Input(pending) => {
                let stored = &pending.stored;
                if folded.applied.get(&stored.stream).is_some_and(|applied| *applied >= stored.sequence)
                    || (is_commands(&stored.stream) && folded.answered.contains(&stored.id))
                {
                    return Verdict::Nothing;
                }
                let Some(input) = pending.input.clone() else { return Verdict::Nothing };
                // A person's clock decides nothing: a command's time is when it was stored.
                let command = input.any().is_command().then(|| input.any().message());
                let time = if command.is_some() { stored.stored } else { stored.time };
                let envelope = Envelope {
                    trigger: Trigger::Event(input),
                    at: time.max(folded.time),
                    id: stored.id.clone(),
                    sequence: stored.sequence,
                    body: pending.body.clone(),
                };
                (envelope, stored.cause_of(), stored.traceparent.clone(), command)
            }
        };
        let decided =
            catch_unwind(AssertUnwindSafe(|| self.decider.decide(key, &folded.state, &self.world, &envelope)));
        let facts = match (decided, command) {
            (Err(_), _) => return Verdict::Dead("the decider panicked on it".into()),
            (Ok(Ok(facts)), _) => facts,
            (Ok(Err(refusal)), Some(command)) => {
                let name = command.rsplit('.').next().unwrap_or(command);
                match D::Fact::refused(&key.0, &envelope.id, name, &refusal) {
                    Some(fact) => vec![fact],
                    None => return Verdict::Dead(refusal.to_string()),
                }
            }
            (Ok(Err(refusal)), None) => return Verdict::Dead(refusal.to_string()),
        };
        if facts.is_empty() {
            return Verdict::Nothing;
        }
        let world: Vec<(String, u64)> = self.world_positions.iter().map(|(s, n)| (s.clone(), *n)).collect();
        let mut messages = Vec::with_capacity(facts.len());
        for (position, fact) in facts.iter().enumerate() {
            let id = derived_id(&[&envelope.id, &key.entity(self.area), &position.to_string()]);
            let mut message = match Outgoing::new(fact.any(), id, envelope.at) {
                Ok(message) => message,
                Err(error) => return Verdict::Dead(format!("a fact has no subject: {error}")),
            };
            if !message.subject.split('.').skip(3).eq(key.0.iter().map(String::as_str)) {
                return Verdict::Dead(format!("a fact on {} is not of the entity {key}", message.subject));
            }
            message.cause = Some(cause.clone());
            message.traceparent.clone_from(&traceparent);
            message.world.clone_from(&world);
            messages.push(message);
        }
        Verdict::Write(Answer { question: question.clone(), facts, at: envelope.at, cause }, messages)
    }

    /// A question was answered, by facts or by silence.
    fn done(&mut self, key: &Key, question: &Question<D::Input>) {
        match question {
            Question::Due(time) => {
                if let Some(entity) = self.entities.get_mut(key) {
                    entity.asked_due = Some(*time);
                }
                self.index_due(key);
            }
            Question::Input(pending) => {
                let Some(progress) = self.inputs.get_mut(&pending.stored.stream) else { return };
                let Some((open, _)) = progress.open.get_mut(&pending.stored.sequence) else { return };
                *open -= 1;
                if *open == 0 {
                    progress.open.remove(&pending.stored.sequence);
                    self.counts.handled += 1;
                }
            }
        }
    }

    /// Moves `covered` on over what was read and what was answered.
    fn cover(&mut self) {
        self.covered = self.covered.max(self.position);
        while let Some(next) = self.answered_writes.first_entry().filter(|e| *e.key() <= self.covered + 1) {
            self.covered = self.covered.max(next.remove());
        }
    }

    /// A write has ended.
    pub fn written(&mut self, ticket: u64, outcome: Outcome) {
        let Some(flight) = self.flights.remove(&ticket) else { return };
        let key = flight.key.clone();
        if flight.answers.first().is_some_and(|answer| self.is_beginning(&answer.question)) {
            self.intake.has_begun();
        }
        match outcome {
            Outcome::Stored(last) => {
                let count: usize = flight.answers.iter().map(|answer| answer.facts.len()).sum();
                self.counts.facts += count as u64;
                self.own_written = self.own_written.max(last);
                let first = (last + 1).saturating_sub(count as u64);
                // A write can be settled by finding that another replica stored the same facts. Facts that this one
                // has not read may then lie before them; the entity waits for them, and folds them in order.
                let gapless = self.covered + 1 >= first;
                self.answered_writes.insert(first, last);
                self.cover();
                if let Some(entity) = self.entities.get_mut(&key) {
                    entity.busy = false;
                    entity.asked_due = None;
                    if let Some(folded) = entity.folded.as_mut().filter(|f| f.last < last) {
                        if gapless {
                            let answers = flight.answers.iter();
                            let facts = answers.flat_map(|answer| answer.facts.iter().map(move |fact| (answer, fact)));
                            for ((answer, fact), sequence) in facts.zip(first..) {
                                // The first facts may have come by the tail before this answer did.
                                if sequence <= folded.last {
                                    continue;
                                }
                                let state = std::mem::replace(&mut folded.state, self.decider.initial());
                                folded.state = self.decider.evolve(state, fact, answer.at);
                                if self.changes.is_some() {
                                    entity.ahead.push_back((sequence, Arc::new(folded.state.clone())));
                                }
                                folded.note(sequence, answer.at, Some(&answer.cause));
                            }
                            entity.dirty = true;
                        } else {
                            entity.behind = last;
                        }
                    }
                }
                for answer in &flight.answers {
                    self.done(&key, &answer.question);
                }
                self.index_due(&key);
            }
            Outcome::Moved(last) => {
                self.counts.retried += 1;
                if let Some(entity) = self.entities.get_mut(&key) {
                    entity.behind = last;
                    entity.ask_again(flight.answers);
                }
            }
            Outcome::Impossible if flight.answers.len() > 1 => {
                if let Some(entity) = self.entities.get_mut(&key) {
                    entity.singly = flight.answers.len();
                    entity.ask_again(flight.answers);
                }
            }
            Outcome::Impossible => {
                for answer in flight.answers {
                    self.bury(key.clone(), answer.question, "the bus refuses the decision for ever".into());
                }
                return self.begin();
            }
        }
        self.advance(&key);
        self.release();
        self.begin();
    }

    /// A dead letter was published.
    pub fn dead_lettered(&mut self, ticket: u64) {
        let Some(flight) = self.flights.remove(&ticket) else { return };
        debug_assert!(flight.burial);
        for answer in &flight.answers {
            self.done(&flight.key, &answer.question);
        }
        if let Some(entity) = self.entities.get_mut(&flight.key) {
            entity.busy = false;
            self.advance(&flight.key);
        }
        self.release();
    }

    /// Entities whose snapshots are out of date, at most `max`, as bucket key and bytes; then the index to store
    /// with them, unless some are left: then the last index stays true. `None` if there is nothing to save.
    ///
    /// A replica that has not read as far as `saved` saves nothing: its entities would replace newer snapshots of another
    /// replica, which counts on them.
    pub fn snapshot(&mut self, max: usize, saved: u64) -> Option<Snapshot> {
        if self.position < saved {
            return None;
        }
        let mut entries = vec![];
        let mut left = false;
        for (key, entity) in &mut self.entities {
            if !entity.dirty {
                continue;
            }
            let Some(folded) = entity.folded.as_ref() else { continue };
            if entries.len() >= max {
                left = true;
                break;
            }
            let Ok(bytes) = serde_json::to_vec(folded) else { continue };
            entity.dirty = false;
            entries.push((snapshot_key(key), bytes));
        }
        // Facts of entities that are still being read are not in any snapshot yet.
        left |= self.entities.values().any(|e| !e.early.is_empty());
        if left {
            return (!entries.is_empty()).then_some((entries, None));
        }
        let marks: Option<BTreeMap<String, u64>> =
            self.marks.is_some().then(|| self.inputs.keys().map(|s| (s.clone(), self.low_water(s))).collect());
        if entries.is_empty() && self.position == saved && marks == self.marks {
            return None;
        }
        let due = self.dues().into_iter().collect();
        let inputs = marks.clone().unwrap_or_default();
        self.marks = marks;
        Some((entries, Some(Index { position: self.position, entities: self.known, due, inputs })))
    }

    /// When which entity wants to be asked, those too that are being asked or read right now: what comes of it may never be
    /// stored.
    fn dues(&self) -> BTreeSet<(Timestamp, Key)> {
        let mut due = self.due.clone();
        for (key, entity) in &self.entities {
            let wants = match &entity.folded {
                None => entity.indexed_due,
                Some(folded) => self.decider.due(&folded.state).filter(|due| Some(*due) != entity.asked_due),
            };
            due.extend(wants.map(|time| (time, key.clone())));
        }
        due
    }

    /// A snapshot could not be stored: its entities are dirty again.
    pub fn unsaved(&mut self, keys: impl IntoIterator<Item = String>) {
        let keys: BTreeSet<String> = keys.into_iter().collect();
        for (key, entity) in &mut self.entities {
            entity.dirty |= keys.contains(&snapshot_key(key));
        }
    }

    /// Another replica has saved since this one did, with an index of this position. Its snapshots of entities hold the
    /// facts up to there, and may have replaced newer ones of this replica: what goes beyond is to be saved again.
    pub fn overtaken(&mut self, position: u64) {
        for entity in self.entities.values_mut() {
            entity.dirty |= entity.folded.as_ref().is_some_and(|folded| folded.last > position);
        }
    }

    /// Forgets entities that are saved and idle until at most `max` are in memory; they are read again when
    /// somebody asks. Facts up to `saved` must be in the snapshots.
    pub fn evict(&mut self, max: usize, saved: u64) {
        let excess = self.entities.len().saturating_sub(max);
        if excess == 0 {
            return;
        }
        let mut idle: Vec<Key> = self
            .entities
            .iter()
            .filter(|(key, e)| {
                !self.pinned.contains(*key)
                    && !e.dirty
                    && !e.busy
                    && e.queue.is_empty()
                    && e.folded.as_ref().is_some_and(|f| f.last <= saved)
            })
            .map(|(k, _)| k.clone())
            .collect();
        // In key order, so that equal runs stay equal.
        idle.sort_unstable();
        idle.truncate(excess);
        self.complete &= idle.is_empty();
        for key in idle {
            self.intake.forget(&key);
            self.entities.remove(&key);
        }
    }
}

enum Verdict<I, F> {
    Nothing,
    Write(Answer<I, F>, Vec<Outgoing>),
    Dead(String),
}

impl<S, I> Entity<S, I> {
    /// What was answered is not stored: its questions are asked again, in their order, before all others.
    fn ask_again<F>(&mut self, answers: Vec<Answer<I, F>>) {
        self.busy = false;
        for answer in answers.into_iter().rev() {
            self.queue.push_front(answer.question);
        }
    }
}

impl<S> Folded<S> {
    fn note(&mut self, sequence: u64, time: Timestamp, cause: Option<&Cause>) {
        self.last = sequence;
        self.time = self.time.max(time);
        let Some(cause) = cause.filter(|c| !c.stream.is_empty()) else { return };
        let applied = self.applied.entry(cause.stream.clone()).or_default();
        *applied = cause.sequence.max(*applied);
        if is_commands(&cause.stream) && self.answered.back() != Some(&cause.id) {
            self.answered.push_back(cause.id.clone());
            if self.answered.len() > ANSWERED_MAX {
                self.answered.pop_front();
            }
        }
    }
}

/// Key of the index in the bucket of a decider's snapshot.
pub const INDEX: &str = "index";
/// What the keys of entities begin with there.
const ENTITY: &str = "e.";

/// The bucket key of an entity's snapshot.
pub fn snapshot_key(key: &Key) -> String {
    format!("{ENTITY}{key}")
}

/// An entity as its decider saved it.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved<S> {
    /// Its state.
    pub state: S,
    /// Sequence of its last fact; those up to here are in the state.
    pub last: u64,
    /// Time of its last fact.
    pub time: Timestamp,
}

impl<S: DeserializeOwned> Saved<S> {
    /// Reads an entry of the bucket; `None` if it is not an entity's.
    ///
    /// # Errors
    /// When it is of another version of the decider.
    pub fn read(key: &str, bytes: &[u8]) -> Result<Option<(Key, Self)>, serde_json::Error> {
        let Some(key) = key.strip_prefix(ENTITY) else { return Ok(None) };
        let Folded { state, last, time, .. } = serde_json::from_slice(bytes)?;
        Ok(Some((Key::new(key.split('.')), Self { state, last, time })))
    }
}

fn is_commands(stream: &str) -> bool {
    stream.ends_with("_ASK")
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
