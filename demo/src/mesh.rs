//! A mesh of the demo's own: `continuum up` in a temporary folder.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// How long the mesh may take to start: `up` itself gives up after 60 s.
const START_LIMIT: Duration = Duration::from_secs(90);
/// How long the mesh may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Settings that make every chapter short enough to watch.
const SETTINGS: [&str; 5] = [
    "meta-orchestrator.move_cooldown_ms=10000",
    "intent-manager.remedy_cooldown_ms=10000",
    "collector.usage_window_ms=5000",
    "sar-detector.warm_samples=16",
    "sar-detector.calm_samples=3",
];

/// A running mesh.
pub(crate) struct Mesh {
    process: Child,
    folder: tempfile::TempDir,
}

impl Mesh {
    /// Starts one and waits until it is ready.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("continuum-demo-").tempdir().context("make a folder for the demo")?;
        let mut command = Command::new(program()?);
        command.arg("--data-dir").arg(folder.path()).args(["up", "--relays", "--nats-context", "", "--log", "error"]);
        for setting in SETTINGS {
            command.args(["--set", setting]);
        }
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start `continuum up`")?;
        let stdout = process.stdout.take().context("read the output of `continuum up`")?;
        let mut lines = BufReader::new(stdout).lines();
        // `up` writes its first line once everything is ready, and ends if it cannot get there.
        let first = timeout(START_LIMIT, lines.next_line()).await;
        let first = first.map_err(|_| anyhow!("timed out after {} s waiting for the mesh", START_LIMIT.as_secs()))?;
        if first.context("read the output of `continuum up`")?.is_none() {
            let status = process.wait().await.context("wait for `continuum up`")?;
            bail!("`continuum up` ended with {status}; its message is above");
        }
        // What else it writes is for a person who types `up`.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { process, folder })
    }

    /// Its data folder.
    pub(crate) fn data_dir(&self) -> &Path {
        self.folder.path()
    }

    /// Stops it and removes its folder.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.process.id() {
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).context("stop the mesh")?;
        }
        let status = timeout(STOP_LIMIT, self.process.wait()).await;
        let status = status.map_err(|_| anyhow!("timed out after {} s stopping the mesh", STOP_LIMIT.as_secs()))?;
        let status = status.context("stop the mesh")?;
        if !status.success() {
            bail!("the mesh ended with {status}");
        }
        Ok(())
    }
}

/// `continuum`, beside this program.
fn program() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("find this program")?.with_file_name("continuum");
    if !path.is_file() {
        bail!("{} does not exist; build it with `cargo build --package continuum`", path.display());
    }
    Ok(path)
}
