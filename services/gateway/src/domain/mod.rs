//! What the gateway decides, without I/O, clock or randomness.

pub mod access;
pub mod events;
pub mod forms;
pub mod identity;
pub mod limits;
pub mod pkce;
pub mod present;
pub mod problem;
pub mod routes;
pub mod subscriptions;
pub mod table;
pub mod tmf;
pub mod token;
