//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::output::Format;

/// Continuum: declare what you want; the mesh validates, plans, runs, watches, repairs, and can say why.
#[derive(Debug, Parser)]
#[command(name = "continuum", version, propagate_version = true)]
pub struct Arguments {
    /// Folder with the mesh's state, keys and endpoints file.
    #[arg(long, global = true, env = "CONTINUUM_DATA_DIR", default_value = ".continuum")]
    pub data_dir: PathBuf,
    /// How results are written.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub output: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Starts the whole mesh and keeps it running until stopped.
    Up(UpOptions),
    /// Stops a running mesh and removes what it started; says what it kept.
    Down,
    /// Tells the main story end to end; fails if any expectation does not hold.
    Demo(DemoOptions),
    /// Makes the bus what the contract says: streams, durables, buckets; or first renders its configuration.
    Provision(ProvisionArguments),
}

/// Arguments of `provision`.
#[derive(Debug, Args)]
pub struct ProvisionArguments {
    /// Render instead: writes `nats.conf` and the keys of every identity.
    #[command(subcommand)]
    pub render: Option<Render>,
    /// Addresses of the NATS servers, divided by commas.
    #[arg(long, value_name = "URL", default_value = "nats://127.0.0.1:4222", env = "CONTINUUM_BUS_URL")]
    pub url: String,
    /// File with the NKey seed of the identity `provisioner`; the one in the data folder when absent.
    #[arg(long, value_name = "FILE")]
    pub seed_file: Option<PathBuf>,
    /// Copies of each stream: 1, or 3 in a cluster.
    #[arg(long, default_value_t = 1)]
    pub replicas: usize,
}

/// What `provision` may do first.
#[derive(Debug, Subcommand)]
pub enum Render {
    /// Writes `nats.conf` and `keys/<identity>.nk`; keys that exist are kept.
    Render {
        /// Where to write.
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
        /// Address that clients connect to.
        #[arg(long, default_value = "0.0.0.0:4222")]
        listen: String,
        /// Folder where the server keeps its streams.
        #[arg(long, default_value = "/data/jetstream")]
        store_dir: PathBuf,
        /// Disk that all streams may use together, MiB; what the contract asks for when absent.
        #[arg(long)]
        disk_mib: Option<u64>,
        /// Address of the server's HTTP monitoring.
        #[arg(long)]
        http_listen: Option<String>,
    },
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoOptions {
    /// Folder with the example documents.
    #[arg(long, value_name = "DIR", default_value = "examples")]
    pub examples: PathBuf,
}

/// Options of `up`.
#[derive(Debug, Default, Args)]
pub struct UpOptions {
    /// One process per service instead of one for all.
    #[arg(long)]
    pub processes: bool,
    /// Clusters to run, as YAML; three (cloud, edge, device) when absent.
    #[arg(long, value_name = "FILE")]
    pub clusters: Option<PathBuf>,
    /// Port of the NATS server; a free one when 0.
    #[arg(long, default_value_t = 0)]
    pub nats_port: u16,
    /// Port of the Zenoh router; a free one when 0.
    #[arg(long, default_value_t = 0)]
    pub zenoh_port: u16,
    /// Sets a service's configuration, for example `meta-orchestrator.move_cooldown_ms=5000`.
    #[arg(long = "set", value_name = "SERVICE.KEY=VALUE")]
    pub set: Vec<String>,
    /// Address of an OpenTelemetry collector (OTLP over gRPC), for example `http://127.0.0.1:4317`.
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
    /// Log level or filter, as tracing-subscriber's `EnvFilter` reads it.
    #[arg(long, default_value = "warn", env = "CONTINUUM_LOG_LEVEL")]
    pub log: String,
}
