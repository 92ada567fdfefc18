//! The S3 port: S3 itself by `s3s`, and the storage policy API beside it.

mod asked;
mod body;
mod bucket;
mod caller;
mod conditions;
mod cors;
mod digests;
mod errors;
mod form;
mod front;
#[doc(hidden)]
pub mod fuzzed;
mod handler;
mod listing;
mod paths;
mod region;
mod routes;
mod rules;
mod serve;
mod tags;
mod taken;
mod versions;
mod xml;

pub use handler::DEFAULT_POLICY;
pub(crate) use serve::{listen, serve};
