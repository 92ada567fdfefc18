//! What a decision is: pure values and pure functions, without a bus, a task or a clock.
//!
//! - [`Decider`]: five pure functions that make a deciding service; [`Projector`]: a view over streams.
//! - [`Replica`](replica::Replica): the rules of delivery, without I/O. The service shell and the seeded simulation
//!   both drive it.
//! - [`Stored`], [`Outgoing`], [`Decision`]: what travels.
//! - [`query`]: why a query was not answered, whose things it means, which page of a list it wants.
//! - [`units`]: units of measure, brought to base units.
//! - [`testing::Bench`]: given, when, then, for the test of a decider.
//! - Never: async, I/O, a clock, randomness. `domain` modules depend on this crate and on `mesh-proto` only.

mod decider;
mod message;
mod projector;
pub mod query;
pub mod replica;
pub mod testing;
pub mod units;

pub use decider::{Decider, Envelope, Key, ReadModel, Trigger};
pub use message::{Cause, Decision, Outgoing, Stored};
pub use projector::{Derived, Projector, SharesFold};
pub use replica::Saved;
