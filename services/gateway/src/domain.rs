//! What the gateway computes, without I/O, clock or randomness.

pub mod cors;
pub mod forms;
pub mod headers;
pub mod measurement;
pub mod passage;
pub mod present;
pub mod prometheus;
pub mod remote_write;
pub mod routes;
pub mod serrano;
pub mod table;
pub mod telemetry;
pub mod tmf;
pub mod traffic;
