//! The mesh's world as pure functions: where an instance could run, what workloads use, and what that is worth.
//!
//! The planner, the `simulated` driver, the learner and its evaluation share this one code, so that what is learned in
//! the model is asked for in the same terms where it is used. No async, no I/O, no clock; randomness is a seed.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod episode;
pub mod load;
pub mod plan;
pub mod random;
pub mod scene;
pub mod schedulers;
pub mod tariff;
