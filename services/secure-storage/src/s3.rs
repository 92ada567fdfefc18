//! The S3 port: S3 itself by `s3s`, and the storage policy API beside it.

mod asked;
mod body;
mod conditions;
mod digests;
mod errors;
mod front;
#[doc(hidden)]
pub mod fuzzed;
mod handler;
mod listing;
mod region;
mod routes;
mod rules;
mod serve;
mod taken;
mod xml;

pub use handler::DEFAULT_POLICY;
pub(crate) use serve::{listen, serve};
