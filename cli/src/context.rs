//! What every command gets: where the mesh is, whose objects are meant, how to write results.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{anyhow, bail};
use clap::Args;
use mesh_client::Client;
use mesh_proto::is_key;
use serde_json::Value as Json;
use tonic::{Code, Response, Status};

use crate::output::{self, Format, Shown, event, line};

/// How often a question is asked again while it is watched.
const WATCH_EVERY: Duration = Duration::from_millis(1_000);

/// What every command gets.
pub struct Context<'a> {
    /// Folder of the mesh.
    pub data_dir: &'a Path,
    /// How results are written.
    pub format: Format,
    /// Whose objects are meant.
    pub owner: String,
}

impl Context<'_> {
    /// Connects to the mesh.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.data_dir).await?)
    }
}

/// A message of the contract as JSON in its own spelling.
pub fn to_json<M: prost::Message>(message: &str, value: &M) -> Json {
    mesh_proto::json::to_value(message, &value.encode_to_vec()).unwrap_or_default()
}

/// The answer to a question, or an error with what helps.
pub fn answer<T>(question: &str, answer: Result<Response<T>, Status>) -> anyhow::Result<T> {
    answer.map(Response::into_inner).map_err(|status| match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => {
            anyhow!("{question}: {}; see `continuum status`, then ask again", status.message())
        }
        _ => anyhow!("{question}: {}", status.message()),
    })
}

/// Shows once, or again at every change until interrupted.
pub async fn show(
    context: &Context<'_>,
    watch: bool,
    mut read: impl AsyncFnMut() -> anyhow::Result<Shown>,
) -> anyhow::Result<ExitCode> {
    let mut before: Option<Json> = None;
    loop {
        let shown = read().await?;
        if !watch {
            match context.format {
                Format::Table => line(&shown.text),
                Format::Json => line(output::json(&shown.value)),
                Format::Yaml => line(output::yaml(&shown.value).trim_end()),
            }
            return Ok(ExitCode::SUCCESS);
        }
        if before.as_ref() != Some(&shown.value) {
            match context.format {
                Format::Table => output::screen(&format!("{}\n", shown.text)),
                _ => event(context.format, &shown.value, String::new)?,
            }
            before = Some(shown.value);
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// Shows again at every change.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Watch {
    /// Show again at every change, until interrupted.
    #[arg(short, long)]
    pub watch: bool,
}

/// Whether and how long a command waits for what comes of it.
#[derive(Clone, Copy, Debug, Args)]
pub struct Waiting {
    /// Send only; do not wait for the answer.
    #[arg(long)]
    pub no_wait: bool,
    /// Seconds to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
}

impl Waiting {
    /// The limit.
    pub fn limit(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.timeout)
    }
}

/// Fails unless the text can be part of a subject.
pub fn checked(what: &str, text: &str) -> anyhow::Result<()> {
    if is_key(text) {
        return Ok(());
    }
    bail!("invalid {what} {text:?}: use 1 to 64 letters, digits, `_` and `-`")
}
