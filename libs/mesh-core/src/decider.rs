//! The decider: five pure functions, and nothing else, make a deciding service.

use std::fmt;

use bytes::Bytes;
use mesh_proto::{EventSet, FactSet, Refusal, Timestamp};
use serde::{Serialize, de::DeserializeOwned};

use crate::Stored;

/// Names an entity: the key tokens of its subjects, for example `["local", "my-intent"]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize)]
pub struct Key(pub Vec<String>);

impl Key {
    /// A key of these tokens.
    pub fn new<T: Into<String>>(tokens: impl IntoIterator<Item = T>) -> Self {
        Self(tokens.into_iter().map(Into::into).collect())
    }

    /// The canonical, unversioned condition string of the entity: `intent.*.*.local.my-intent`.
    pub fn entity(&self, area: &str) -> String {
        format!("{area}.*.*.{}", self.0.join("."))
    }

    /// One token.
    pub fn token(&self, position: usize) -> &str {
        self.0.get(position).map_or("", String::as_str)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

/// What a decision is about: an input, or that its time has come.
#[derive(Clone, Debug, PartialEq)]
pub enum Trigger<I> {
    /// An event of the contract.
    Event(I),
    /// The entity's `due` has passed.
    Due,
}

/// What a decider is handed: what triggered it, with its time, id and place in its stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope<I> {
    /// What triggered the decision.
    pub trigger: Trigger<I>,
    /// The decision's time: the input's, never earlier than the entity's last fact.
    pub at: Timestamp,
    /// The input's id. Also a command's id.
    pub id: String,
    /// The input's sequence in its stream; 0 for `Due`.
    pub sequence: u64,
    /// The input's protobuf bytes as they came in, unknown fields included; empty for `Due`.
    pub body: Bytes,
}

/// A read-only view folded from other services' facts.
pub trait ReadModel: Default + Send + Sync + 'static {
    /// Applies the next fact of one of its streams. Facts it does not know are ignored.
    fn apply(&mut self, fact: &Stored);
}

impl ReadModel for () {
    fn apply(&mut self, _: &Stored) {}
}

/// What a deciding service is. No async, no I/O, no clock, no randomness; ordered maps only.
pub trait Decider: Send + Sync + 'static {
    /// Its name in the contract.
    const NAME: &'static str;
    /// One entity's state: the fold of its facts.
    type State: Clone + PartialEq + fmt::Debug + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What it knows of others; `()` for nothing.
    type ReadModel: ReadModel;
    /// What it hears.
    type Input: EventSet + fmt::Debug;
    /// What it says.
    type Fact: FactSet + fmt::Debug;

    /// An entity without facts.
    fn initial(&self) -> Self::State;

    /// Whose business this input is; each entity decides on its own.
    fn concerns(&self, input: &Self::Input, world: &Self::ReadModel) -> Vec<Key>;

    /// The facts that follow. A refusal is published as the area's refused fact. Empty: nothing to say.
    fn decide(
        &self,
        key: &Key,
        state: &Self::State,
        world: &Self::ReadModel,
        envelope: &Envelope<Self::Input>,
    ) -> Result<Vec<Self::Fact>, Refusal>;

    /// The state after a fact of time `at`.
    fn evolve(&self, state: Self::State, fact: &Self::Fact, at: Timestamp) -> Self::State;

    /// When the entity wants to be asked next, if at all. Must be later than the time of its last `Due` decision,
    /// or that decision must have changed it: an entity that stays due is asked once per `due` value.
    fn due(&self, state: &Self::State) -> Option<Timestamp>;

    /// Does this input set new work in motion elsewhere, and how urgent is that? While much is under way, such inputs wait:
    /// the most urgent are decided first, and of equal ones those of each owner in turn. `None`: it never waits.
    fn urgency(&self, _input: &Self::Input) -> Option<u32> {
        None
    }

    /// Has what the entity set in motion elsewhere not come back yet?
    fn is_under_way(&self, _state: &Self::State) -> bool {
        false
    }
}
