//! How it travels: JetStream events and Zenoh samples. The only crate that names `async_nats` or `zenoh`.
//!
//! - [`Bus`]: one connection; publishes, and hands out what follows.
//! - [`Writer`]: decisions as conditional, atomic writes; one batcher per stream.
//! - [`Pull`]: a durable read like a log by one pinned replica, acknowledged up to a low-water mark.
//! - [`Log`] and [`Tail`]: a stream read by sequence, and followed without a gap.
//! - [`Bucket`]: key-value state, for snapshots.
//! - [`Samples`]: measurements and signs of life over Zenoh, lossy and counted.
//! - [`provision`], [`render`], [`Server`]: the bus made and kept as the contract says.
//! - Never: an opinion on what is said; creates or changes a stream or consumer on a service's connection.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod account;
pub mod baseline;
mod bucket;
mod bus;
mod gather;
mod headers;
mod log;
mod parts;
mod provision;
mod pull;
mod render;
mod samples;
mod server;
mod writer;

pub use account::{Seed, SeedError, identities, install_crypto, read_seeds};
pub use bucket::{Bucket, BucketError};
pub use bus::{
    Bus, ConnectError, Options, Plain, PublishError, RequestError, State, Stats, SubscribeError, Subscription, Tls,
};
pub use log::{Log, LogError, Tail};
pub use provision::{ProvisionError, ProvisionOptions, Report, VERSION_MIN, probe, provision};
pub use pull::{Pull, PullError, PullInfo};
pub use render::{
    BUCKET_MAX_BYTES, Cluster, Files, PAYLOAD_MAX_BYTES, RenderOptions, Rendered, bytes_wanted, disk_room_bytes,
    free_disk_bytes, render,
};
pub use samples::{
    About, AliveStream, AliveToken, Sample, SampleStream, Samples, SamplesError, SamplesMode, SamplesOptions,
    SamplesTls, samples_access,
};
pub use server::{Found, Search, Server, ServerError, ServerOptions, find_server};
pub use writer::{WriteError, Writer, Written};
