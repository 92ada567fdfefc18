//! `twin`: list, get, at, history, diff, watch.

use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use mesh_client::Client;
use mesh_proto::{
    Timestamp,
    twin::{DiffRequest, Twin, TwinRequest},
};

use super::catalogue::phase;
use crate::{
    context::{Context, Watch, answer, show, to_json},
    output::{self, Shown, clock, event, fields, megabytes},
};

/// What a twin can be of.
const KINDS: [&str; 5] = ["workload", "node", "cluster", "network", "continuum"];

/// One twin.
#[derive(Clone, Debug, Args)]
pub struct One {
    /// Instance id, node, cluster, domain of a network, or `continuum`.
    id: String,
    /// Which kind, where an id is that of several.
    #[arg(long, value_parser = KINDS)]
    kind: Option<String>,
}

impl One {
    fn request(self, at: Option<Timestamp>) -> TwinRequest {
        TwinRequest { kind: self.kind.unwrap_or_default(), id: self.id, at, ..TwinRequest::default() }
    }
}

/// Subcommands of `twin`.
#[derive(Debug, Subcommand)]
pub enum TwinCommand {
    /// All twins.
    List {
        /// Only of this kind.
        #[arg(long, value_parser = KINDS)]
        kind: Option<String>,
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
    /// One twin, now or as it was.
    Get {
        /// Which twin.
        #[command(flatten)]
        one: One,
        /// As it was then, RFC 3339.
        #[arg(long, value_name = "TIME", conflicts_with = "watch")]
        at: Option<Timestamp>,
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
    /// One twin as it was at a time.
    At {
        /// Which twin.
        #[command(flatten)]
        one: One,
        /// When, RFC 3339.
        time: Timestamp,
    },
    /// Published versions of one twin, the newest first.
    History {
        /// Which twin.
        #[command(flatten)]
        one: One,
        /// How many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// What differs between two times, field by field.
    Diff {
        /// Which twin.
        #[command(flatten)]
        one: One,
        /// The earlier time, RFC 3339.
        from: Timestamp,
        /// The later time; now if absent.
        to: Option<Timestamp>,
    },
    /// One line for each twin as it is, and one at every change.
    Watch {
        /// Only the twin with this id.
        id: Option<String>,
        /// Only of this kind.
        #[arg(long, value_parser = KINDS)]
        kind: Option<String>,
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
        TwinCommand::Get { one, at, watch } => {
            let request = one.request(at);
            show(context, watch.watch, async || get(&client, request.clone()).await).await
        }
        TwinCommand::At { one, time } => {
            let request = one.request(Some(time));
            show(context, false, async || get(&client, request.clone()).await).await
        }
        TwinCommand::History { one, limit } => {
            let request = one.request(None);
            show(context, false, async || history(&client, request.clone(), limit).await).await
        }
        TwinCommand::Diff { one, from, to } => {
            let TwinRequest { kind, id, .. } = one.request(None);
            let request = DiffRequest { kind, id, from: Some(from), to };
            show(context, false, async || diff(&client, request.clone()).await).await
        }
        TwinCommand::Watch { id, kind } => {
            let (id, kind) = (id.unwrap_or_default(), kind.unwrap_or_default());
            let request = TwinRequest { kind, id, ..TwinRequest::default() };
            let mut twins = answer("watch twins", client.twins().await?.watch(request).await)?;
            loop {
                let next = tokio::select! {
                    next = twins.message() => next.map_err(|status| anyhow!("watch twins: {}", status.message()))?,
                    _ = tokio::signal::ctrl_c() => None,
                };
                let Some(twin) = next else { return Ok(ExitCode::SUCCESS) };
                event(context.format, &to_json(TWIN, &twin), || sentence(&twin))?;
            }
        }
    }
}

async fn get(client: &Client, request: TwinRequest) -> anyhow::Result<Shown> {
    let twin = answer("get the twin", client.twins().await?.get(request).await)?;
    let value = to_json(TWIN, &twin);
    let rows = fields(&value);
    Ok(Shown::table(value, &["field", "value"], rows))
}

async fn history(client: &Client, mut request: TwinRequest, limit: u32) -> anyhow::Result<Shown> {
    let (mut versions, limit) = (vec![], limit as usize);
    let mut queries = client.twins().await?;
    loop {
        request.page_size = u32::try_from((limit - versions.len()).min(1_000))?;
        let page = answer("read the twin's history", queries.history(request.clone()).await)?;
        versions.extend(page.twins);
        if page.next_page_token.is_empty() || versions.len() >= limit {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let value = versions.iter().map(|twin| to_json(TWIN, twin)).collect();
    let header = ["version", "at", "cluster", "state", "cpu", "memory", "anomalies", "reason"];
    let row = |twin: &Twin| {
        vec![
            twin.version.to_string(),
            twin.at.unwrap_or_default().to_string(),
            twin.cluster_id.clone(),
            state(twin),
            format!("{:.1} %", twin.cpu_percent),
            megabytes(twin.memory_bytes),
            twin.anomalies.len().to_string(),
            twin.reason.clone(),
        ]
    };
    Ok(Shown::table(value, &header, versions.iter().map(row).collect()))
}

async fn diff(client: &Client, request: DiffRequest) -> anyhow::Result<Shown> {
    let reply = answer("compare the twin", client.twins().await?.diff(request).await)?;
    let value = to_json("continuum.twin.v1.DiffReply", &reply);
    let or_none = |text: &String| if text.is_empty() { "-".to_owned() } else { text.clone() };
    let row = |d: &mesh_proto::twin::Difference| vec![d.field.clone(), or_none(&d.before), or_none(&d.after)];
    let rows: Vec<_> = reply.differences.iter().map(row).collect();
    let text = match rows.is_empty() {
        true => format!("no difference between version {} and version {}", reply.from_version, reply.to_version),
        false => output::table(&["field", "before", "after"], rows),
    };
    Ok(Shown { value, text })
}

/// A twin in one line.
fn sentence(twin: &Twin) -> String {
    let at = clock(twin.at.unwrap_or_default());
    let anomalies = match twin.anomalies.len() {
        0 => String::new(),
        count => format!(", {count} anomalies"),
    };
    let on = if twin.cluster_id.is_empty() { String::new() } else { format!(" on {}", twin.cluster_id) };
    format!(
        "{at} {} {} version {}: {}{on}, {:.1} %, {}{anomalies}",
        twin.kind,
        twin.id,
        twin.version,
        state(twin),
        twin.cpu_percent,
        megabytes(twin.memory_bytes)
    )
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

fn state(twin: &Twin) -> String {
    match (twin.kind.as_str(), twin.available) {
        ("workload", _) => phase(twin.phase()),
        (_, true) => "available".into(),
        (_, false) => "lost".into(),
    }
}

fn row(twin: &Twin) -> Vec<String> {
    vec![
        twin.kind.clone(),
        twin.id.clone(),
        twin.cluster_id.clone(),
        state(twin),
        format!("{:.1} %", twin.cpu_percent),
        megabytes(twin.memory_bytes),
        output::provenance(twin.usage_provenance()),
        twin.version.to_string(),
        twin.workload.clone(),
    ]
}
