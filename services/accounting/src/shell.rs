//! What touches the world: tasks, drivers, files and HTTP.

pub mod key;
pub(crate) mod store;
