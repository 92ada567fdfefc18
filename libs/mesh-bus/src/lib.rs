//! How it travels: JetStream events and Zenoh samples. With `mesh-admin`, the only crate that names `async_nats` or `zenoh`.
//!
//! - [`Bus`]: one connection; publishes, and makes everything below.
//! - [`Writer`]: decisions as conditional, atomic writes; one batcher per stream.
//! - [`Pull`]: a durable read like a log by one pinned replica, acknowledged up to a low-water mark.
//! - [`Log`] and [`Tail`]: a stream read by sequence, and followed without a gap.
//! - [`Bucket`]: key-value state, for snapshots.
//! - [`Samples`]: measurements and signs of life over Zenoh, lossy and counted.
//! - Never: interprets a message; creates or changes a stream or consumer (that is `mesh-admin`).

#![allow(clippy::disallowed_methods, reason = "the bus measures how long a server takes and names its probes")]

mod answer;
mod backoff;
mod batch;
mod bucket;
mod bus;
mod crypto;
mod disk;
mod error;
mod gather;
mod headers;
mod link;
mod live;
mod log;
mod options;
mod parts;
mod publish;
mod pull;
mod samples;
mod seed;
mod setback;
mod state;
mod tail;
mod writer;

pub use bucket::{Bucket, BucketError};
pub use bus::{Bus, Echo};
pub use crypto::install_crypto;
pub use error::{ConnectError, PublishError, RequestError, SubscribeError, Unstored};
pub use live::{Plain, Subscription};
pub use log::{Log, LogError};
pub use options::{Options, Tls};
pub use pull::{PULL_GROUP, Pull, PullError, PullInfo};
pub use samples::{
    About, AliveStream, AliveToken, Encoded, Question, QuestionStream, Sample, SampleCounts, SampleStream, Samples,
    SamplesError, SamplesMode, SamplesOptions, SamplesTls,
};
pub use seed::{Seed, SeedError};
pub use state::{State, Stats};
pub use tail::Tail;
pub use writer::{WriteError, Writer, Written};
