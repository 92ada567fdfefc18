//! A Zenoh router that takes the two options that `compose.yaml` gives to `zenohd`. It stands in for the public image where
//! no registry of images is reached; it is never shipped.

use anyhow::{Context as _, bail};
use mesh_bus::{Samples, SamplesMode, SamplesOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut listen = vec![];
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--listen" => listen.push(arguments.next().context("--listen needs an address, such as tcp/0.0.0.0:7447")?),
            "--no-multicast-scouting" => {}
            other => bail!("unknown option {other:?}: this stand-in knows --listen and --no-multicast-scouting"),
        }
    }
    let options = SamplesOptions { mode: SamplesMode::Router, listen, ..SamplesOptions::default() };
    let router = Samples::open(options).await.context("open the router")?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    router.close().await.context("close the router")
}
