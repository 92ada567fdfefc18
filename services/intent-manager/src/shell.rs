//! What the intent manager keeps in databases.

pub(crate) mod achieved;
pub(crate) mod store;
