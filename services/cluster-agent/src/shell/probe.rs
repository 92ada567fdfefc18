//! Measures the network to the other agents: latency, jitter, loss, throughput and failures.
//!
//! - Consumes: `ClusterRegistered` of all clusters, for who takes part and where.
//! - Publishes: `ProbeSample` on Zenoh; nothing on the bus.
//!
//! Who probes whom and when follows from the sorted list of members and the time alone ([`schedule`]); what it may cost
//! is bounded by a budget of bytes. Packets are not authenticated: who can forge them on the path can also delay them.
//! A responder answers only what is addressed to its cluster, with as many bytes as it was sent, at a limited rate.

mod budget;
mod prober;
mod responder;
pub mod schedule;
mod wire;

pub use prober::{Options, Prober};
pub use responder::{Responder, ResponderError};
