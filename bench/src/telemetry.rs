//! `bench telemetry`: its parts, by name.

mod by_hand;
mod channel;
mod delay;
pub(crate) mod flow;
mod memory;
mod queries;
pub(crate) mod samples;
pub(crate) mod servers;
mod stores;
mod twins;
mod websocket;

use anyhow::bail;
use clap::Args;

use crate::{
    host, proxy,
    report::{Length, Row},
};

/// Options of `bench telemetry`.
#[derive(Debug, Args)]
pub(crate) struct TelemetryOptions {
    #[command(flatten)]
    pub(crate) length: Length,
    /// Only these parts: `host`, `proxy`, `samples`, `channel`, `delay`, `memory`, `stores`, `queries`, `twins`.
    #[arg(long, value_name = "PART,…", value_delimiter = ',')]
    only: Vec<String>,
}

const PARTS: &[&str] = &["host", "proxy", "samples", "channel", "delay", "memory", "stores", "queries", "twins"];

/// Takes the measurements that are wanted.
///
/// # Errors
/// For a part that is not known, or when one cannot be measured.
pub(crate) async fn measure(options: &TelemetryOptions) -> anyhow::Result<Vec<Row>> {
    if let Some(unknown) = options.only.iter().find(|part| !PARTS.contains(&part.as_str())) {
        bail!("--only {unknown}: parts are {}", PARTS.join(", "));
    }
    mesh_bus::install_crypto();
    let is_wanted = |part: &str| options.only.is_empty() || options.only.iter().any(|only| only == part);
    let mut rows = vec![];
    if is_wanted("host") {
        rows.extend(host::measure(options.length.full).await?);
    }
    if is_wanted("proxy") {
        rows.push(proxy::measure(options.length.full).await?);
    }
    if is_wanted("samples") {
        rows.extend(samples::measure(options.length.full).await?);
    }
    if is_wanted("channel") {
        rows.push(channel::measure(options.length.full).await?);
    }
    if is_wanted("delay") {
        rows.extend(delay::measure(options.length.full).await?);
    }
    if is_wanted("memory") {
        rows.extend(memory::measure(options.length.full).await?);
    }
    if is_wanted("stores") {
        rows.extend(stores::measure(options.length.full).await?);
    }
    if is_wanted("queries") {
        rows.extend(queries::measure(options.length.full).await?);
    }
    if is_wanted("twins") {
        rows.extend(twins::measure(options.length.full).await?);
    }
    Ok(rows)
}
