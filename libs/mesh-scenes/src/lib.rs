//! The mesh's world as pure functions: what workloads use, what that is worth, and seeded scenes to learn and compare on.
//!
//! The `simulated` driver, the learner and its evaluation share this code, and all of them plan with `mesh-planner`: what
//! is learned in the model is asked for in the terms that are used live. No async, no I/O, no clock; randomness is a seed.

pub mod episode;
pub mod load;
pub mod random;
pub mod scene;
pub mod schedulers;
pub mod tariff;
