//! A bus of its own for a measurement: a nats-server as shipped, syncing every write, with accounts, streams and
//! durables of the contract.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use mesh_admin::{
    ProvisionOptions, RenderOptions, Server, ServerOptions, find_server, free_disk_bytes, provision, render,
};
use mesh_bus::{Bus, Options, Seed};
use mesh_kit::{Mesh, Running, Settings};
use mesh_proto::contract;

use crate::{accepts::accept_all, baseline::Baseline};

/// Disk that the longest measurement takes, with room to spare.
const DISK_BYTES: u64 = 3 << 30;

/// A bus of its own; ended and removed when dropped.
pub(crate) struct Rig {
    /// The server.
    pub(crate) server: Server,
    keys: std::collections::BTreeMap<String, PathBuf>,
    provisioner: Seed,
    _folder: tempfile::TempDir,
}

impl Rig {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        mesh_bus::install_crypto();
        let folder = tempfile::Builder::new().prefix("continuum-bench-").tempdir().context("make a folder")?;
        let found = find_server().await.context("find a nats-server")?;
        let free = free_disk_bytes(folder.path()).context("ask for the free disk")?;
        if free < DISK_BYTES {
            bail!(
                "{} bytes of disk are free in {}, a measurement takes up to {DISK_BYTES}",
                free,
                folder.path().display()
            );
        }
        let options = RenderOptions {
            listen: "127.0.0.1:-1".into(),
            websocket_listen: Some("127.0.0.1:-1".into()),
            store_dir: folder.path().join("jetstream"),
            ports_dir: Some(folder.path().to_owned()),
            ..RenderOptions::default()
        };
        let rendered = render(contract(), &options).context("render the bus configuration")?;
        let files = rendered.write(folder.path()).context("write the bus configuration")?;
        let options = ServerOptions::new(&found.path, &files.nats_conf, folder.path());
        let server = Server::start(options).await.context("start nats-server")?;
        let provisioner = rendered.keys.get("provisioner").cloned().context("the contract has no provisioner")?;
        let options =
            ProvisionOptions { url: server.url(), seed: Some(provisioner.clone()), ..ProvisionOptions::default() };
        provision(contract(), &options).await.context("provision the bus")?;
        Ok(Self { server, keys: files.keys, provisioner, _folder: folder })
    }

    /// A service's connection, with the rights that it has in a running mesh.
    pub(crate) async fn bus(&self, service: &str) -> anyhow::Result<Bus> {
        let key = self.key(service)?;
        let seed = std::fs::read_to_string(&key).with_context(|| format!("read {}", key.display()))?;
        let options = Options {
            url: self.server.url(),
            service: service.to_owned(),
            seed: Some(seed.trim().to_owned()),
            ..Options::default()
        };
        Ok(Bus::connect(options).await?)
    }

    pub(crate) fn key(&self, service: &str) -> anyhow::Result<PathBuf> {
        self.keys.get(service).cloned().ok_or_else(|| anyhow!("the contract has no identity {service}"))
    }

    /// The hand-written side, with its own streams of these names.
    pub(crate) async fn baseline(&self, streams: &[&str]) -> anyhow::Result<Baseline> {
        let baseline = Baseline::connect(&self.server.url(), &self.provisioner).await?;
        for stream in streams {
            baseline.make(stream).await?;
        }
        Ok(baseline)
    }

    /// The real decider shell around the smallest decider, as the validator.
    pub(crate) async fn decider(&self) -> anyhow::Result<Running> {
        let settings = Settings {
            bus_url: self.server.url(),
            bus_seed_file: Some(mesh_kit::Secret::at(self.key("validator")?)),
            ..Settings::default()
        };
        mesh_kit::join("validator", settings, (), |mesh: Mesh, ()| accept_all(mesh)).await
    }
}

/// Middle of some times; zero if there are none.
pub(crate) fn median(times: &[Duration]) -> Duration {
    percentile(times, 50)
}

/// Per cent of some times are at most this; zero if there are none.
pub(crate) fn percentile(times: &[Duration], per_cent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times.get((times.len() * per_cent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
