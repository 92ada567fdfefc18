//! `twin`: list, get.

use std::process::ExitCode;

use mesh_proto::{query::TwinRequest, twin::Twin};

use super::{Context, Shown, answer, fields, megabytes, show, to_json, workload::phase};
use crate::{args::TwinCommand, client::Client};

const TWIN: &str = "continuum.twin.v1.Twin";

/// Runs a subcommand of `twin`.
pub(crate) async fn run(context: &Context<'_>, command: TwinCommand) -> anyhow::Result<ExitCode> {
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
    let header = ["kind", "id", "cluster", "state", "cpu", "memory", "version", "of"];
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
        twin.version.to_string(),
        twin.workload.clone(),
    ]
}
