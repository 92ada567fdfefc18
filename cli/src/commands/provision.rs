//! `provision`: the bus from the contract, with an identity of its own.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use mesh_admin::{KeyFolder, ProvisionOptions, RenderOptions, provision, render};
use mesh_bus::Seed;
use mesh_proto::contract;

use crate::output::{Format, line, show};

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
    /// Writes `nats.conf` and the key of each identity, `keys/<identity>.nk`; keys that exist are kept.
    Render {
        /// Where to write.
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
        /// Writes each key into a folder of its own instead, `DIR/<identity>/<identity>.nk`, which can be given to that
        /// service alone. Keys that are still in `keys` of the other folder are moved there. No identity has the rights of
        /// all services then, as `continuum up` needs one.
        #[arg(long, value_name = "DIR")]
        keys_apart: Option<PathBuf>,
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
        /// Address for dashboards over WebSocket; none when absent.
        #[arg(long)]
        websocket_listen: Option<String>,
    },
}

/// What to look at when files cannot be written.
fn unwritable(out: &Path, keys: Option<&Path>) -> String {
    let folders = std::iter::once(out).chain(keys).map(|folder| folder.display().to_string());
    let folders: Vec<String> = folders.collect();
    format!("write to {}: make it writable, for the user that runs this", folders.join(" and "))
}

/// Runs `provision` or `provision render`.
pub async fn run(data_dir: &Path, arguments: ProvisionArguments, format: Format) -> anyhow::Result<ExitCode> {
    mesh_bus::install_crypto();
    if let Some(Render::Render { out, keys_apart, listen, store_dir, disk_mib, http_listen, websocket_listen }) =
        arguments.render
    {
        let together = KeyFolder::together(out.join("keys"));
        let folder = keys_apart.as_ref().map_or_else(|| together.clone(), KeyFolder::apart);
        let mut keys = together.read(contract()).context("read the keys")?;
        keys.extend(folder.read(contract()).context("read the keys")?);
        let options = RenderOptions {
            listen,
            http_listen,
            websocket_listen,
            store_dir,
            disk_bytes: disk_mib.map(|mib| mib * 1024 * 1024),
            keys,
            joint: keys_apart.is_none(),
            ..RenderOptions::default()
        };
        let rendered = render(contract(), &options).context("render")?;
        let written = rendered.write_with_keys(&out, &folder);
        let files = written.with_context(|| unwritable(&out, keys_apart.as_deref()))?;
        if keys_apart.is_some() {
            together
                .remove(contract())
                .with_context(|| unwritable(&out, None))
                .context("remove keys that were moved")?;
        }
        let place = keys_apart.unwrap_or_else(|| out.join("keys"));
        line(format!("{} and {} keys in {}", files.nats_conf.display(), files.keys.len(), place.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let path = arguments.seed_file.unwrap_or_else(|| data_dir.join("keys/provisioner.nk"));
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read the provisioner's seed {}", path.display()))?;
    let seed = Seed::parse(&text).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    let options = ProvisionOptions {
        url: arguments.url,
        seed: Some(seed),
        replicas: arguments.replicas,
        ..ProvisionOptions::default()
    };
    let report = provision(contract(), &options).await.context("provision")?;
    let value = serde_json::to_value(&report).context("write the report")?;
    show(format, &value, &["what", "count", "names"], || {
        let row = |what: &str, names: &[String]| vec![what.to_owned(), names.len().to_string(), names.join(" ")];
        vec![
            row("created", &report.created),
            row("updated", &report.updated),
            vec!["unchanged".into(), report.unchanged.to_string(), String::new()],
            row("unknown", &report.unknown),
            row("notes", &report.notes),
        ]
    });
    Ok(ExitCode::SUCCESS)
}
