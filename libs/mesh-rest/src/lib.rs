//! What services share that people reach over HTTP: problem documents, bodies, tokens, permissions, rate limits, and
//! commands with their answers.
//!
//! - [`problem`], [`body`], [`token`], [`access`], [`limits`] are pure; [`http`] reads requests and writes answers;
//!   [`ask`] sends commands.
//! - Never: decides about an entity; lets a token through that it has not checked.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![allow(
    clippy::disallowed_methods,
    reason = "`ask` measures how long it waits; `xtask tidy` keeps the pure modules pure"
)]

pub mod access;
mod admission;
pub mod ask;
pub mod body;
pub mod http;
pub mod limits;
pub mod problem;
pub mod token;
