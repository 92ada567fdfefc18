//! What the notifier decides, without I/O, clock or randomness.

pub mod events;
pub mod hub;
pub mod subscriptions;
