//! What touches the world: tasks, drivers, files and HTTP.

pub(crate) mod metrics;
pub(crate) mod sharing;
pub(crate) mod store;
