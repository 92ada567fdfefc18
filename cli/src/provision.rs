//! `provision`: the bus from the contract, with an identity of its own.

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, anyhow};
use mesh_bus::{ProvisionOptions, RenderOptions, Seed, provision, read_seeds, render};
use mesh_proto::contract;

use crate::{
    args::{ProvisionArguments, Render},
    output::{Format, line, show},
};

/// Runs `provision` or `provision render`.
pub(crate) async fn run(data_dir: &Path, arguments: ProvisionArguments, format: Format) -> anyhow::Result<ExitCode> {
    mesh_bus::install_crypto();
    if let Some(Render::Render { out, listen, store_dir, disk_mib, http_listen }) = arguments.render {
        let keys = read_seeds(contract(), &out.join("keys")).context("read the keys")?;
        let options = RenderOptions {
            listen,
            http_listen,
            store_dir,
            disk_bytes: disk_mib.map(|mib| mib * 1024 * 1024),
            keys,
            ..RenderOptions::default()
        };
        let files = render(contract(), &options).context("render")?.write(&out).context("write")?;
        line(format!("{} and {} keys in {}", files.nats_conf.display(), files.keys.len(), out.join("keys").display()));
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
