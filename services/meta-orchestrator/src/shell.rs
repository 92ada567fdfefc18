//! What touches the world: tasks, drivers, files and HTTP.

pub(crate) mod clusters;
pub(crate) mod records;
pub(crate) mod watch;
