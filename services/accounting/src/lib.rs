//! Owns the ledger: what was used, who owes what, and the proof of it.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod domain;
pub mod files;
pub mod ledger;
pub mod note;
pub mod tariff;
pub mod tree;
