//! What all processes are told.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// What every process of the mesh is told, whichever service it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the bus is: `nats://host:port` or `tls://host:port`, several with commas.
    pub bus_url: String,
    /// File with the NKey seed by which the bus knows this process; none for a bus without accounts.
    pub bus_seed_file: Option<Secret>,
    /// Prefix of the JetStream API as this process sees it.
    pub bus_api_prefix: String,
    /// Longest wait for the bus at start, milliseconds. Later it is waited for without limit.
    pub bus_connect_limit_ms: u64,
    /// Certificate authority, PEM: of the bus, the Zenoh routers, the OTLP collector, and of clients that must
    /// identify themselves.
    pub tls_ca_file: Option<PathBuf>,
    /// Own certificate chain, PEM.
    pub tls_cert_file: Option<PathBuf>,
    /// Key of the own certificate, PEM.
    pub tls_key_file: Option<Secret>,
    /// How gRPC and HTTP are served.
    pub serve_tls: ServeTls,
    /// Where gRPC and HTTP are served, `address:port`; port 0 takes a free one.
    pub listen: String,
    /// Host or address by which others reach this process; the listening address if none.
    pub advertise_host: Option<String>,
    /// Zenoh endpoints to connect to, such as `tcp/router:7447`.
    pub samples_connect: Vec<String>,
    /// Zenoh endpoints to listen on.
    pub samples_listen: Vec<String>,
    /// Part that this process plays in Zenoh.
    pub samples_mode: SamplesMode,
    /// Samples that a subscription holds before it drops the oldest.
    pub samples_buffer_max: usize,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,validator=debug`.
    pub log_level: String,
    /// How log lines are written, on standard error.
    pub log_format: LogFormat,
    /// OpenTelemetry collector, gRPC: `http://host:4317`; traces, metrics and logs go there. None: nothing is sent.
    pub otlp_endpoint: Option<String>,
    /// Share of traces that is sent, 0 to 1; a trace that came in sampled stays so.
    pub otlp_trace_ratio: f64,
    /// How often metrics are sent, milliseconds.
    pub otlp_interval_ms: u64,
    /// Where views keep documents: `memory:`, or `mongodb://user:password@host:27017/database`.
    pub documents_url: String,
    /// Where views keep series: `memory:`, or `influxdb://:token@host:8086/organisation/bucket`.
    pub series_url: String,
    /// Where views keep histories: `memory:`, or `cassandra://user:password@host:9042/keyspace?replication=1`.
    pub history_url: String,
    /// Folder for what a process keeps for itself.
    pub data_dir: Option<PathBuf>,
    /// Folder for the keys that a process makes for itself; the data folder if none. Another volume than the data keeps them
    /// apart from what they protect. Keys that are still in the data folder are moved there.
    pub keys_dir: Option<PathBuf>,
    /// Entities that a decider holds in memory. Idle ones beyond are dropped, and read again from what was saved when
    /// somebody asks.
    pub entities_max: usize,
    /// Messages a consumer may be behind before `/readyz` says no.
    pub ready_lag_max: u64,
    /// Longest that a stopping process settles what is in hand, milliseconds.
    pub drain_limit_ms: u64,
    /// Replaces every reason and hint by random text: for tests that show that no program decides on wording.
    pub random_wording: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bus_url: "nats://127.0.0.1:4222".into(),
            bus_seed_file: None,
            bus_api_prefix: "BUS.API".into(),
            bus_connect_limit_ms: 30_000,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            serve_tls: ServeTls::Off,
            listen: "127.0.0.1:0".into(),
            advertise_host: None,
            samples_connect: vec![],
            samples_listen: vec![],
            samples_mode: SamplesMode::Client,
            samples_buffer_max: 10_000,
            log_level: "info".into(),
            log_format: LogFormat::Text,
            otlp_endpoint: None,
            otlp_trace_ratio: 1.0,
            otlp_interval_ms: 10_000,
            documents_url: "memory:".into(),
            series_url: "memory:".into(),
            history_url: "memory:".into(),
            data_dir: None,
            keys_dir: None,
            entities_max: 200_000,
            ready_lag_max: 10_000,
            drain_limit_ms: 10_000,
            random_wording: false,
        }
    }
}

impl Settings {
    /// Authority, certificate and key, if all are given.
    pub(crate) fn tls_files(&self) -> Option<(PathBuf, PathBuf, PathBuf)> {
        let key = self.tls_key_file.as_ref()?.path().to_owned();
        Some((self.tls_ca_file.clone()?, self.tls_cert_file.clone()?, key))
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Part that a process plays in Zenoh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SamplesMode {
    /// Connects to a router.
    #[default]
    Client,
    /// Connects to others directly.
    Peer,
    /// Others connect to it.
    Router,
}

/// How gRPC and HTTP are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServeTls {
    /// In the clear; for loopback, or behind something that adds TLS.
    #[default]
    Off,
    /// With the own certificate.
    On,
    /// The same, and clients must present one signed by the authority in `tls_ca_file`.
    Mutual,
}
