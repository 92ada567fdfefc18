//! `network`: the network as it is measured, and network intents.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use mesh_client::Client;
use mesh_core::Stored;
use mesh_proto::{
    Event as _, Written,
    network::{
        Connectivity, ConnectivityChanged, NetworkIntentView, NetworkMapReply, NetworkMapRequest, SubmitNetworkIntent,
        TranslateRequest, WithdrawNetworkIntent,
    },
    query::{GetRequest, ListRequest},
};
use mesh_why::describe::describe;
use tokio::time::{Instant, timeout_at};

use crate::{
    context::{Context, Waiting, Watch, answer, checked, show, to_json},
    document,
    outcome::{Outcome, conclude},
    output::Shown,
};

/// Subcommands of `network`.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Latency, jitter, loss, throughput and failures of every way between clusters.
    Map {
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
    /// Submits network intents from a file; several are divided by `---`.
    Submit {
        /// YAML or JSON; `-` for standard input.
        file: PathBuf,
        /// Its id; the document's own when absent.
        #[arg(long)]
        id: Option<String>,
        /// Whether and how long to wait.
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Shows what a network intent would be translated to; changes nothing.
    Check {
        /// YAML or JSON; `-` for standard input.
        file: PathBuf,
    },
    /// All network intents.
    List {
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
    /// One network intent, with the result of each of its calls.
    Get {
        /// Its id.
        id: String,
    },
    /// Ends what a network intent made.
    Withdraw {
        /// Its id.
        id: String,
        /// Whether and how long to wait.
        #[command(flatten)]
        waiting: Waiting,
    },
}

const MAP: &str = "continuum.network.v1.NetworkMapReply";
const INTENT: &str = "continuum.network.v1.NetworkIntentView";
const TRANSLATION: &str = "continuum.network.v1.TranslateReply";

/// Runs a subcommand of `network`.
pub async fn run(context: &Context<'_>, command: NetworkCommand) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    match command {
        NetworkCommand::Map { watch } => {
            show(context, watch.watch, async || {
                let map = map(&client).await?;
                Ok(Shown::table(to_json(MAP, &map), &HEADER, rows(&map)))
            })
            .await
        }
        NetworkCommand::Submit { file, id, waiting } => submit(context, &client, &file, id, &waiting).await,
        NetworkCommand::Check { file } => {
            show(context, false, async || {
                let (mut values, mut rows) = (vec![], vec![]);
                for intent in document::texts(&file)? {
                    let request = TranslateRequest { intent };
                    let reply = answer("translate", client.network().await?.translate(request).await)?;
                    values.push(to_json(TRANSLATION, &reply));
                    reply.statements.iter().for_each(crate::output::note);
                    rows.extend(reply.calls.iter().map(|call| {
                        let libraries = reply.libraries.join(", ");
                        vec![
                            libraries,
                            call.executioner.clone(),
                            call.operation.clone(),
                            call.target.clone(),
                            call.body.clone(),
                        ]
                    }));
                }
                let header = ["libraries", "executioner", "operation", "target", "body"];
                Ok(Shown::table(values.into(), &header, rows))
            })
            .await
        }
        NetworkCommand::List { watch } => {
            show(context, watch.watch, async || {
                let intents = list(&client, &context.owner).await?;
                let value = intents.iter().map(|i| to_json(INTENT, i)).collect();
                let row = |i: &NetworkIntentView| {
                    let libraries = i.accepted.as_ref().map(|a| a.libraries.join(", ")).unwrap_or_default();
                    let took = if i.took_ms > 0.0 { format!("{:.1} ms", i.took_ms) } else { String::new() };
                    vec![
                        i.network_id.clone(),
                        i.phase().as_str_name().to_lowercase(),
                        libraries,
                        took,
                        i.reason.clone(),
                    ]
                };
                let header = ["network", "state", "libraries", "took", "reason"];
                Ok(Shown::table(value, &header, intents.iter().map(row).collect()))
            })
            .await
        }
        NetworkCommand::Get { id } => {
            show(context, false, async || {
                let request = GetRequest { owner: context.owner.clone(), id: id.clone() };
                let found = answer("get the network", client.network().await?.get_intent(request).await)?;
                let state = format!("{} {}", found.phase().as_str_name().to_lowercase(), found.reason);
                let mut rows = vec![vec!["state".into(), state, String::new()]];
                rows.extend(found.results.iter().map(|r| {
                    let done = if r.done { "done" } else { "failed" };
                    vec![
                        format!("{} {}", r.executioner, r.operation),
                        format!("{done}: {}", r.detail),
                        format!("{:.1} ms", r.took_ms),
                    ]
                }));
                Ok(Shown::table(to_json(INTENT, &found), &["call", "result", "took"], rows))
            })
            .await
        }
        NetworkCommand::Withdraw { id, waiting } => {
            checked("network id", &id)?;
            let command = WithdrawNetworkIntent { owner: context.owner.clone(), network_id: id.clone() };
            let command_id = uuid::Uuid::now_v7().to_string();
            if waiting.no_wait {
                client.send(&command, command_id).await?;
                return Ok(conclude(context.format, "network", &[sent(&id)]));
            }
            let answered = client.ask(&command, command_id, waiting.limit()).await;
            let outcome = ended(&client, &context.owner, &id, answered, &waiting).await?;
            Ok(conclude(context.format, "network", &[outcome]))
        }
    }
}

/// The network as it is measured now.
pub async fn map(client: &Client) -> anyhow::Result<NetworkMapReply> {
    answer("read the network", client.network().await?.map(NetworkMapRequest {}).await)
}

/// Columns of the latency map.
pub const HEADER: [&str; 9] =
    ["from", "to", "state", "latency", "jitter", "loss", "throughput", "energy (model)", "failures"];

/// Rows of the latency map.
pub fn rows(map: &NetworkMapReply) -> Vec<Vec<String>> {
    let row = |l: &mesh_proto::cost::LinkCost| {
        let measured = |text: String| if l.throughput_mbps < 0.0 { "-".to_owned() } else { text };
        vec![
            l.from_cluster.clone(),
            l.to_cluster.clone(),
            if l.up { "up" } else { "down" }.into(),
            format!("{:.3} ms", l.latency_ms),
            format!("{:.3} ms", l.jitter_ms),
            format!("{:.1} %", l.loss_percent),
            measured(format!("{:.0} Mbit/s", l.throughput_mbps)),
            measured(format!("{:.1} W", l.energy_watts)),
            l.failures.to_string(),
        ]
    };
    map.links.iter().map(row).collect()
}

fn sent(id: &str) -> Outcome {
    Outcome { id: id.to_owned(), ok: true, result: "sent".into(), ..Outcome::default() }
}

/// An id as the bus takes it, from what a document calls itself.
fn id_of(document: &str) -> Option<String> {
    let value = Written::yaml(document).ok()?;
    let inner = ["Intent", "intent"].iter().find_map(|name| value.get(name)).unwrap_or(&value);
    inner.get("id")?.text().filter(|id| mesh_proto::is_key(id)).map(str::to_owned)
}

/// Submits each intent of a file on its own; one that fails does not hold the others up.
async fn submit(
    context: &Context<'_>,
    client: &Client,
    file: &Path,
    id: Option<String>,
    waiting: &Waiting,
) -> anyhow::Result<ExitCode> {
    let documents = document::texts(file)?;
    if id.is_some() && documents.len() > 1 {
        bail!("{} holds {} intents; --id names one", file.display(), documents.len());
    }
    let mut outcomes = vec![];
    for (index, intent) in documents.into_iter().enumerate() {
        let own = id.clone().or_else(|| id_of(&intent)).unwrap_or_else(|| format!("network-{}", index + 1));
        let outcome = async {
            checked("network id", &own)?;
            let command = SubmitNetworkIntent { owner: context.owner.clone(), network_id: own.clone(), intent };
            let command_id = uuid::Uuid::now_v7().to_string();
            if waiting.no_wait {
                client.send(&command, command_id).await?;
                return Ok(sent(&own));
            }
            let answered = client.ask(&command, command_id, waiting.limit()).await;
            ended(client, &context.owner, &own, answered, waiting).await
        }
        .await;
        outcomes.push(outcome.unwrap_or_else(|error: anyhow::Error| Outcome::failed(&own, &error)));
    }
    Ok(conclude(context.format, "network", &outcomes))
}

/// Waits for the end of what a command began.
async fn ended(
    client: &Client,
    owner: &str,
    id: &str,
    answered: Result<Stored, mesh_client::Error>,
    waiting: &Waiting,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome { id: id.to_owned(), ..Outcome::default() };
    let answered = match answered {
        Ok(answered) => answered,
        Err(error) => return Ok(outcome.refused(error.into_refusal()?)),
    };
    let filter = format!("network.*.*.{owner}.{id}");
    let mut tail = client.bus().log(ConnectivityChanged::STREAM).tail(&filter, answered.sequence);
    let deadline = Instant::now() + waiting.limit();
    loop {
        let Ok(fact) = timeout_at(deadline, tail.next()).await else {
            outcome.result = "under way".into();
            outcome.reason = describe(&answered);
            outcome.hint = format!("see `continuum network get {id}`");
            return Ok(outcome);
        };
        let Some(changed) = fact.context("follow the network")?.event::<ConnectivityChanged>()? else { continue };
        outcome.ok = matches!(changed.phase(), Connectivity::Connected | Connectivity::Withdrawn);
        if outcome.ok || changed.phase() == Connectivity::NotConnected {
            outcome.result = changed.phase().as_str_name().to_lowercase();
            outcome.state = format!("{:.1} ms", changed.took_ms);
            (outcome.reason, outcome.hint) = (changed.reason, changed.hint);
            return Ok(outcome);
        }
    }
}

async fn list(client: &Client, owner: &str) -> anyhow::Result<Vec<NetworkIntentView>> {
    let (mut found, mut page_token) = (vec![], String::new());
    let mut queries = client.network().await?;
    loop {
        let request = ListRequest { owner: owner.to_owned(), page_size: 1_000, page_token, ..ListRequest::default() };
        let page = answer("list networks", queries.list_intents(request).await)?;
        found.extend(page.intents);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(found);
        }
    }
}
