//! What the integration tests share: a seeded simulation of the whole mesh.

#![allow(clippy::disallowed_methods, reason = "real servers and processes are started, watched and measured")]
// A harness for tests: what cannot be is a panic there, and what fails is told on the terminal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod sim;
