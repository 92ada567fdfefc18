//! What the gateway computes, without I/O, clock or randomness.

pub mod forms;
pub mod headers;
pub mod passage;
pub mod present;
pub mod routes;
pub mod table;
pub mod tmf;
