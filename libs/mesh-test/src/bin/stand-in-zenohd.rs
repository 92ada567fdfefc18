//! A Zenoh router that takes the options that `compose.yaml` gives to `zenohd`. It stands in for the public image where no
//! registry of images is reached; it is never shipped.

use anyhow::{Context as _, bail};
use mesh_bus::{Samples, SamplesMode, SamplesOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut listen = vec![];
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some(("--listen", address)) => listen.push(address.to_owned()),
            // Sessions of the library set these values themselves.
            Some(("--cfg", setting)) if setting.starts_with("transport/link/tx/queue/") => {}
            None if argument == "--no-multicast-scouting" => {}
            _ => bail!("unknown option {argument:?}: this stand-in knows what compose.yaml gives to zenohd"),
        }
    }
    if listen.is_empty() {
        bail!("it listens nowhere: give it --listen=tcp/0.0.0.0:7447");
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
