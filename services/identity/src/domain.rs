//! What the identity service decides, without I/O, clock or randomness.

pub mod accounts;
pub mod identities;
pub mod pkce;
