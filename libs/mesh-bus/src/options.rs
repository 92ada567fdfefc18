//! How to reach the bus, and its limits.

use std::{fmt, path::PathBuf};

/// How to reach the bus.
#[derive(Clone)]
pub struct Options {
    /// Server addresses, separated by commas.
    pub url: String,
    /// Name of the service: connection name, inbox prefix and `ce-source`.
    pub service: String,
    /// NKey seed; never printed.
    pub seed: Option<String>,
    /// Where the JetStream API is imported; `$JS.API` inside the account that owns the streams.
    pub api_prefix: String,
    /// Mutual TLS.
    pub tls: Option<Tls>,
    /// How long a write waits for its answer before it is settled by reading.
    pub ack_timeout_ms: u64,
    /// How long a write without condition is tried.
    pub publish_limit_ms: u64,
    /// How long a read is tried.
    pub read_limit_ms: u64,
    /// How long the first connection is tried.
    pub connect_limit_ms: u64,
    /// How long `close` waits for what is in hand.
    pub close_limit_ms: u64,
    /// Decisions that may wait in one stream's writer; further callers wait until there is room.
    pub queue_limit: usize,
    /// Commands that may wait to be gathered into one stream's batches; further callers wait until there is room, for
    /// `publish_limit_ms` at most.
    pub gather_limit: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            service: "continuum".to_owned(),
            seed: None,
            api_prefix: "BUS.API".to_owned(),
            tls: None,
            ack_timeout_ms: 5_000,
            publish_limit_ms: 30_000,
            read_limit_ms: 10_000,
            connect_limit_ms: 30_000,
            close_limit_ms: 5_000,
            queue_limit: 10_000,
            gather_limit: 10_000,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("url", &self.url)
            .field("service", &self.service)
            .field("seed", &self.seed.as_ref().map(|_| "hidden"))
            .field("api_prefix", &self.api_prefix)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Files of mutual TLS, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificate authority of the server.
    pub ca: PathBuf,
    /// Own certificate chain.
    pub cert: PathBuf,
    /// Own private key.
    pub key: PathBuf,
}
