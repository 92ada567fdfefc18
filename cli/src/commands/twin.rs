//! `twin`: list, get.

use std::process::ExitCode;

use clap::Subcommand;
use mesh_client::Client;
use mesh_proto::twin::{Twin, TwinRequest};

use super::catalogue::phase;
use crate::{
    context::{Context, Watch, answer, show, to_json},
    output::{self, Shown, fields, megabytes},
};

/// Subcommands of `twin`.
#[derive(Debug, Subcommand)]
pub enum TwinCommand {
    /// All twins.
    List {
        /// Only `workload`, `node` or `cluster`.
        #[arg(long, value_parser = ["workload", "node", "cluster"])]
        kind: Option<String>,
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
    /// One twin, now or as it was.
    Get {
        /// Instance id, node or cluster.
        id: String,
        /// Which kind, where an id is that of several.
        #[arg(long, value_parser = ["workload", "node", "cluster"])]
        kind: Option<String>,
        /// As it was then, RFC 3339.
        #[arg(long, value_name = "TIME", conflicts_with = "watch")]
        at: Option<mesh_proto::Timestamp>,
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
}

const TWIN: &str = "continuum.twin.v1.Twin";

/// Runs a subcommand of `twin`.
pub async fn run(context: &Context<'_>, command: TwinCommand) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    match command {
        TwinCommand::List { kind, watch } => {
            let kind = kind.unwrap_or_default();
            show(context, watch.watch, async || list(&client, &kind).await).await
        }
        TwinCommand::Get { id, kind, at, watch } => {
            let request = TwinRequest { kind: kind.unwrap_or_default(), id, at, ..TwinRequest::default() };
            show(context, watch.watch, async || {
                let twin = answer("get the twin", client.twins().await?.get(request.clone()).await)?;
                let value = to_json(TWIN, &twin);
                let rows = fields(&value);
                Ok(Shown::table(value, &["field", "value"], rows))
            })
            .await
        }
    }
}

async fn list(client: &Client, kind: &str) -> anyhow::Result<Shown> {
    let (mut twins, mut page_token) = (vec![], String::new());
    let mut queries = client.twins().await?;
    loop {
        let request = TwinRequest { kind: kind.to_owned(), page_size: 1_000, page_token, ..TwinRequest::default() };
        let page = answer("list twins", queries.list(request).await)?;
        twins.extend(page.twins);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let value = twins.iter().map(|t| to_json(TWIN, t)).collect();
    let header = ["kind", "id", "cluster", "state", "cpu", "memory", "source", "version", "of"];
    Ok(Shown::table(value, &header, twins.iter().map(row).collect()))
}

fn row(twin: &Twin) -> Vec<String> {
    let state = match (twin.kind.as_str(), twin.available) {
        ("workload", _) => phase(twin.phase()),
        (_, true) => "available".into(),
        (_, false) => "lost".into(),
    };
    vec![
        twin.kind.clone(),
        twin.id.clone(),
        twin.cluster_id.clone(),
        state,
        format!("{:.1} %", twin.cpu_percent),
        megabytes(twin.memory_bytes),
        output::provenance(twin.usage_provenance()),
        twin.version.to_string(),
        twin.workload.clone(),
    ]
}
