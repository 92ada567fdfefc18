//! Tasks: what is due is sent, over HTTP.

pub(crate) mod delivery;
pub(crate) mod sender;
