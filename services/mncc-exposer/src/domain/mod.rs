//! What the exposer decides and computes; no I/O, no clock.

pub mod alto;
pub mod costs;
pub mod intents;
pub mod networks;
pub mod prefix;
