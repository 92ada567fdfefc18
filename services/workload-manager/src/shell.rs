//! What touches the world: tasks, drivers, files and HTTP.

pub(crate) mod checks;
pub(crate) mod store;
