//! The S3 port: S3 itself by `s3s`, and the storage policy API beside it.

mod body;
mod errors;
mod handler;
mod listing;
mod routes;
mod serve;

pub use handler::DEFAULT_POLICY;
pub(crate) use serve::{listen, serve};
