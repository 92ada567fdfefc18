//! What an intent may say and what it means: the table of types, conditions as sets of numbers, times, templates, goals,
//! conflicts, secrets, the spelling of the published standard, and how an intent is shown.
//!
//! - Pure: no clock, no I/O. Services that judge, measure or show intents share it, so that a type of intent is one entry
//!   of [`types::TYPES`].
//! - Never: decides an intent's state.

pub mod condition;
pub mod conflict;
pub mod goal;
pub mod secret;
pub mod standard;
pub mod template;
pub mod tmf;
pub mod types;
pub mod view;
pub mod window;

pub use condition::{Bound, BoundError, Condition, Set};
pub use types::{IntentType, Measure, ObjectKind};
