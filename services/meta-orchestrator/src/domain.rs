//! What is decided and shown, without I/O.

pub mod assignments;
pub mod liveness;
pub mod placements;
pub(crate) mod records;
pub mod view;
