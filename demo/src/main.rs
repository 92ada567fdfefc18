//! `continuum-demo`: the main job, end to end, with real processes and real measurements. It fails if any expectation does.

#![allow(clippy::disallowed_methods, reason = "it measures, waits and starts real processes")]

mod account;
mod facts;
mod gateway;
mod intents;
mod learn;
mod live;
mod mesh;
mod network;
mod registry;
mod repair;
mod sar;
mod storage;
mod story;
mod workloads;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use clap::Parser;
use continuum::{
    examples,
    output::{self, Format, line},
};
use mesh_client::{Client, Endpoints};

use crate::story::Story;

mesh_kit::allocator!();

/// How long the mesh may take for one step.
const STEP_LIMIT: Duration = Duration::from_secs(30);

/// Shows what Continuum does, on a mesh of its own or on the one that runs with the data folder.
#[derive(Debug, Parser)]
#[command(name = "continuum demo", bin_name = "continuum demo", version)]
struct Arguments {
    /// Folder of a running mesh to use; a mesh is started in a temporary folder when none runs there.
    #[arg(long, env = "CONTINUUM_DATA_DIR", default_value = ".continuum")]
    data_dir: PathBuf,
    /// Accepted for uniformity with other commands; the demo writes text only.
    #[arg(short, long, value_enum, default_value = "table", hide = true)]
    output: Format,
    /// Folder with the example documents; `examples` in the current folder, or those that came with the program.
    #[arg(long, value_name = "DIR")]
    examples: Option<PathBuf>,
}

fn main() -> ExitCode {
    output::run(demo(Arguments::parse()))
}

async fn demo(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { data_dir, output: _, examples } = arguments;
    let examples = examples.unwrap_or_else(examples::folder);
    let begun = Instant::now();
    if Endpoints::read(&data_dir).is_ok() {
        line(format!("using the mesh that runs in {}", data_dir.display()));
        return chapters(&data_dir, &examples, begun, false).await;
    }
    line("starting a mesh: nats-server, Zenoh router, every service, three clusters");
    let mesh = mesh::Mesh::start().await?;
    let shown = tokio::select! {
        shown = chapters(mesh.data_dir(), &examples, begun, true) => shown,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
    };
    mesh.stop().await?;
    shown
}

/// Shows the chapters in their order. `own` is a mesh that the demo started, whose windows are short.
async fn chapters(data_dir: &Path, examples: &Path, begun: Instant, own: bool) -> anyhow::Result<ExitCode> {
    let mut story = Story::new(begun);
    let client = Client::connect(data_dir).await?;
    account::rates(&client).await?;
    let patient = sar::begin(&client).await?;
    let repaired = repair::chapter(&mut story, &client, examples).await?;
    learn::chapter(&mut story, &client, &repaired).await?;
    intents::chapter(&mut story, &client, &repaired).await?;
    repair::terminate(&mut story, &client, &repaired).await?;
    storage::chapter(&mut story, &client, data_dir).await?;
    account::chapter(&mut story, &client, own).await?;
    sar::chapter(&mut story, &client, patient).await?;
    network::chapter(&mut story, &client, data_dir, examples).await?;
    registry::chapter(&mut story, &client, data_dir, examples, &repaired.document).await?;
    gateway::chapter(&mut story, data_dir).await?;
    client.bus().close().await;
    story.end()
}
