//! Given, when, then: a bench on which the test of a decider holds one entity.
//!
//! Each decision on it is checked for what must hold of every decider: it decides the same twice, a refusal leaves the
//! state alone, and the state is the fold of the facts.

use mesh_proto::{AnyEvent, EventSet as _, Refusal, Timestamp};

use crate::{Decider, Envelope, Key, Stored, Trigger};

/// One entity of a decider, with the read model it is given.
pub struct Bench<D: Decider> {
    /// The decider under test.
    pub decider: D,
    /// Which entity.
    pub key: Key,
    /// What it knows of others.
    pub read_model: D::ReadModel,
    /// The time of the next decision, never earlier than the last fact's.
    pub at: Timestamp,
    state: D::State,
    facts: Vec<(D::Fact, Timestamp)>,
    sequence: u64,
}

impl<D: Decider> Bench<D> {
    /// An entity without facts, at the beginning of time.
    pub fn new(decider: D, key: Key) -> Self {
        Self {
            state: decider.initial(),
            decider,
            key,
            read_model: D::ReadModel::default(),
            at: Timestamp::default(),
            facts: vec![],
            sequence: 0,
        }
    }

    /// The entity's state.
    pub fn state(&self) -> &D::State {
        &self.state
    }

    /// Every fact of the entity so far, with its time.
    pub fn facts(&self) -> &[(D::Fact, Timestamp)] {
        &self.facts
    }

    /// Given: this fact was stored before.
    pub fn given(&mut self, fact: impl Into<D::Fact>) -> &mut Self {
        self.store(fact.into());
        self
    }

    /// Given: a fact of another service, which the read model folds.
    pub fn given_other(&mut self, stored: &Stored) -> &mut Self {
        use crate::ReadModel as _;
        self.read_model.apply(stored);
        self
    }

    /// When this input comes. Its id is `input-<n>`, counted from 1.
    ///
    /// # Errors
    /// The decider's refusal; the state is then as before.
    pub fn when(&mut self, input: impl Into<D::Input>) -> Result<Vec<D::Fact>, Refusal> {
        let input = input.into();
        self.sequence += 1;
        let envelope = Envelope {
            body: input.any().body(),
            trigger: Trigger::Event(input),
            at: self.at,
            id: format!("input-{}", self.sequence),
            sequence: self.sequence,
        };
        self.decide(&envelope)
    }

    /// When the time has come that the entity waits for; nothing, if it waits for none.
    ///
    /// # Errors
    /// The decider's refusal, which for time is a fault of the decider.
    pub fn when_due(&mut self) -> Result<Vec<D::Fact>, Refusal> {
        let Some(due) = self.decider.due(&self.state) else { return Ok(vec![]) };
        self.at = self.at.max(due);
        let envelope = Envelope {
            trigger: Trigger::Due,
            at: self.at,
            id: format!("due-{due}"),
            sequence: 0,
            body: bytes::Bytes::new(),
        };
        self.decide(&envelope)
    }

    /// Decides, checks and stores what was decided.
    ///
    /// # Errors
    /// The decider's refusal.
    ///
    /// # Panics
    /// When the decider breaks a rule that holds for all of them.
    pub fn decide(&mut self, envelope: &Envelope<D::Input>) -> Result<Vec<D::Fact>, Refusal> {
        let before = self.state.clone();
        let once = self.decider.decide(&self.key, &self.state, &self.read_model, envelope);
        let twice = self.decider.decide(&self.key, &self.state, &self.read_model, envelope);
        match (&once, &twice) {
            (Ok(a), Ok(b)) => assert!(bodies::<D>(a) == bodies::<D>(b), "it decides differently the second time"),
            (Err(a), Err(b)) => assert_eq!(a, b, "it refuses differently the second time"),
            _ => assert!(once.is_ok() == twice.is_ok(), "it refuses only once"),
        }
        assert_eq!(self.state, before, "a decision changes no state");
        let facts = once?;
        for fact in &facts {
            assert_eq!(
                fact.any().keys(),
                self.key.0.iter().map(String::as_str).collect::<Vec<_>>(),
                "a fact of another entity"
            );
            self.store(fact.clone());
        }
        let folded =
            self.facts.iter().fold(self.decider.initial(), |state, (fact, at)| self.decider.evolve(state, fact, *at));
        assert_eq!(folded, self.state, "the state is not the fold of the facts");
        Ok(facts)
    }

    fn store(&mut self, fact: D::Fact) {
        let before = std::mem::replace(&mut self.state, self.decider.initial());
        self.state = self.decider.evolve(before, &fact, self.at);
        self.facts.push((fact, self.at));
    }
}

fn bodies<D: Decider>(facts: &[D::Fact]) -> Vec<(&'static str, bytes::Bytes)> {
    facts.iter().map(|fact| (fact.any().message(), AnyEvent::body(fact.any()))).collect()
}
