//! What the gateway decides, without I/O, clock or randomness.

pub mod access;
pub mod identity;
pub mod limits;
pub mod pkce;
pub mod problem;
pub mod token;
