//! stub
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![allow(missing_docs)]
pub mod code;
pub mod domain;
pub mod fragment;
pub mod seal;
