//! What touches the world: tasks, drivers, files and HTTP.

pub(crate) mod announce;
pub(crate) mod edge;
pub(crate) mod metrics;
pub(crate) mod store;
