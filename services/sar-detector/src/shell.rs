//! What touches the world: tasks, drivers, files and HTTP.

pub(crate) mod checkpoint;
pub(crate) mod metrics;
