//! What touches the world: tasks, drivers, files and HTTP.

pub mod adaptors;
pub(crate) mod alto_http;
pub(crate) mod executor;
pub(crate) mod metrics;
pub(crate) mod record;
