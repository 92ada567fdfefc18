//! The projector: a view over streams and samples, rebuildable, that may publish derived events.

use std::sync::Arc;

use bytes::Bytes;
use mesh_proto::{AnyEvent, Timestamp};

use crate::Stored;

/// An event derived from a view, with an id derived from what it says, so that saying it twice is harmless.
pub struct Derived {
    /// The event.
    pub event: Box<dyn AnyEvent>,
    /// Its id.
    pub id: String,
    /// When what it says happened.
    pub at: Timestamp,
}

impl Derived {
    /// A derived event.
    pub fn new(event: impl mesh_proto::Event, id: impl Into<String>, at: Timestamp) -> Self {
        Self { event: Box::new(event), id: id.into(), at }
    }
}

/// A projector that shares the fold of a decider of its service: it is given each state and folds none itself.
pub trait SharesFold<S>: Projector {
    /// Applies the next fact of the decider's stream, with the state of its entity right after it; without one for a fact
    /// that the decider had saved before it began, which is in what the view was restored from. In stream order for each
    /// entity.
    fn folded(&mut self, fact: &Stored, state: Option<&Arc<S>>) -> Vec<Derived>;
}

/// What a deriving service is. No async, no I/O, no clock, no randomness.
pub trait Projector: Send + Sync + 'static {
    /// Applies the next fact of one of its streams. Each is applied once, in stream order; after a restart,
    /// again from the beginning (or from a snapshot).
    fn apply(&mut self, fact: &Stored) -> Vec<Derived>;

    /// Takes in one sample: its Zenoh key and body.
    fn sample(&mut self, _key: &str, _body: &Bytes) -> Vec<Derived> {
        vec![]
    }

    /// Time passes; called every `tick_ms`, and never with an earlier time than before.
    fn tick(&mut self, _now: Timestamp) -> Vec<Derived> {
        vec![]
    }
}
