//! What the exposer decides and computes; no I/O, no clock.

pub mod view;

pub mod alto;
pub mod costs;
pub mod intents;
pub mod networks;
pub mod prefix;
pub mod statements;
