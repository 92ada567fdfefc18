//! What an intent may say and what it means: the table of types, conditions as sets of numbers, times, templates, goals,
//! conflicts, secrets, and the spelling of the published standard.
//!
//! - Pure: no clock, no I/O. Services that judge, measure or show intents share it, so that a type of intent is one entry
//!   of [`types::TYPES`].
//! - Never: knows an intent's state.

pub mod condition;
pub mod conflict;
pub mod goal;
pub mod secret;
pub mod standard;
pub mod template;
pub mod types;
pub mod window;

pub use condition::{Bound, BoundError, Condition, Set};
pub use types::{IntentType, Measure, ObjectKind};
