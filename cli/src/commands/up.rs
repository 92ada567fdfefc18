//! `up` and `down`: the whole mesh on one machine. The program starts it; what starts is in `mesh-all`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use mesh_client::{
    Endpoints,
    endpoints::{self, started_ticks},
};

use crate::output::line;

/// How long a mesh may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(30);

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
    /// Port of the NATS server for dashboards (WebSocket); a free one when 0.
    #[arg(long, default_value_t = 0)]
    pub websocket_port: u16,
    /// Port of the Zenoh router; a free one when 0.
    #[arg(long, default_value_t = 0)]
    pub zenoh_port: u16,
    /// Sets a service's configuration, for example `meta-orchestrator.move_cooldown_ms=5000`.
    #[arg(long = "set", value_name = "SERVICE.KEY=VALUE")]
    pub set: Vec<String>,
    /// A service that is not started, for example `json-mirror`; may be repeated.
    #[arg(long, value_name = "SERVICE")]
    pub without: Vec<String>,
    /// Address of an OpenTelemetry collector (OTLP over gRPC), for example `http://127.0.0.1:4317`.
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
    /// Log level or filter, as tracing-subscriber's `EnvFilter` reads it.
    #[arg(long, default_value = "warn", env = "CONTINUUM_LOG_LEVEL")]
    pub log: String,
    /// Name of the context that is written for the NATS command line (`nats --context NAME`); none when empty.
    #[arg(long, value_name = "NAME", default_value = crate::nats_context::NAME)]
    pub nats_context: String,
    /// Puts a relay in front of each agent's probes; milliseconds in `<data-dir>/probe-delay-<cluster>` delay them.
    #[arg(long, hide = true)]
    pub relays: bool,
}

/// Stops the mesh of a data folder, and prints what was kept.
pub async fn down(data_dir: &Path) -> anyhow::Result<ExitCode> {
    let endpoints = match Endpoints::read(data_dir) {
        Ok(endpoints) => endpoints,
        Err(endpoints::Error::Absent { .. }) => {
            line(format!("nothing runs with the data folder {}", data_dir.display()));
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => {
            fs::remove_file(Endpoints::path(data_dir)).context("remove the endpoints file of a mesh that has ended")?;
            line(format!("{error}; removed its endpoints file"));
            return Ok(ExitCode::SUCCESS);
        }
    };
    let pid = nix::unistd::Pid::from_raw(endpoints.pid.cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).context("stop the mesh")?;
    let deadline = Instant::now() + STOP_LIMIT;
    while started_ticks(endpoints.pid) == Some(endpoints.started_ticks) && !is_zombie(endpoints.pid) {
        if Instant::now() > deadline {
            bail!(
                "process {} has not stopped within {} s; end it with `kill -9 {}`",
                endpoints.pid,
                STOP_LIMIT.as_secs(),
                endpoints.pid
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    line(format!(
        "continuum is down; {} keeps the streams, keys and configuration. Remove the folder to start afresh.",
        data_dir.display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}
