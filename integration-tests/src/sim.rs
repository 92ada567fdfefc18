//! The whole mesh in one thread without I/O: every decider, agents, the collector and people, under faults.
//!
//! One seed is one run: the same seed takes the same steps and stores the same messages. A run has two parts. First
//! everything happens in random order, with faults: replicas of one decider work side by side, writes are delayed,
//! lost, or stored without an answer, processes crash and come back from what they saved, commands come twice, agents
//! fall silent. Then faults end and the world runs until nothing moves any more; [`check`] then holds it against what
//! must be true of every run.

pub mod areas;
pub mod bus;
pub mod check;
pub mod cluster;
pub mod node;
pub mod people;
pub mod rng;
pub mod world;

pub use world::{Mutation, Totals, run};
