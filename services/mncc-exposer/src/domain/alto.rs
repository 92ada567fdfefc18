//! ALTO (RFC 7285): the network as it is measured, as maps that any client can ask for.
//!
//! A site is a PID; every address that belongs to no site is in the PID `other:any`. Costs between PIDs are means over
//! the links between their clusters. [`Maps`] is one consistent version of all of it; [`answer`] is the whole server as
//! a function from a request to a response.

mod answer;
pub mod digest;
mod error;
mod maps;
mod params;

pub use answer::{BODY_BYTES_MAX, ROOT, Request, Response, answer};
pub use error::{Code, Fault};
pub use maps::{DEFAULT_PID, Link, MAP_ID, Maps, Metric, Mode, Node};

#[cfg(test)]
mod tests;
