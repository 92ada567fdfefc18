//! `network`: the network as it is measured, and network intents.

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, bail};
use mesh_core::Stored;
use mesh_proto::{
    Event as _,
    network::{Connectivity, ConnectivityChanged, NetworkRefused, SubmitNetworkIntent, WithdrawNetworkIntent},
    query::{GetRequest, ListRequest, NetworkIntentView, NetworkMapReply, NetworkMapRequest, TranslateRequest},
};
use tokio::time::{Instant, timeout_at};

use super::{Context, Outcome, Shown, answer, conclude, intent::checked, show, to_json};
use crate::{
    args::{NetworkCommand, Waiting},
    client::Client,
    describe::describe,
};

const MAP: &str = "continuum.query.v1.NetworkMapReply";
const INTENT: &str = "continuum.query.v1.NetworkIntentView";
const TRANSLATION: &str = "continuum.query.v1.TranslateReply";
/// Bytes of a file that are read at most.
const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Runs a subcommand of `network`.
pub(crate) async fn run(context: &Context<'_>, command: NetworkCommand) -> anyhow::Result<ExitCode> {
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
                for intent in documents(&file)? {
                    let request = TranslateRequest { intent };
                    let reply = answer("translate", client.network().await?.translate(request).await)?;
                    values.push(to_json(TRANSLATION, &reply));
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
            let answered = client.ask(&command, command_id, waiting.limit()).await?;
            let outcome = ended(&client, &context.owner, &id, &answered, &waiting).await?;
            Ok(conclude(context.format, "network", &[outcome]))
        }
    }
}

/// The network as it is measured now.
pub(crate) async fn map(client: &Client) -> anyhow::Result<NetworkMapReply> {
    answer("read the network", client.network().await?.map(NetworkMapRequest {}).await)
}

/// Columns of the latency map.
pub(crate) const HEADER: [&str; 9] =
    ["from", "to", "state", "latency", "jitter", "loss", "throughput", "energy (model)", "failures"];

/// Rows of the latency map.
pub(crate) fn rows(map: &NetworkMapReply) -> Vec<Vec<String>> {
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

/// The intents of a file, each as the text that it is.
fn documents(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::Read::take(std::io::stdin(), FILE_BYTES_MAX as u64 + 1))
            .context("read standard input")?
    } else {
        std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?
    };
    if text.len() > FILE_BYTES_MAX {
        bail!("{} is larger than {FILE_BYTES_MAX} bytes; split it", file.display());
    }
    let documents = mncc_exposer::domain::intents::split(&text);
    if documents.is_empty() {
        bail!("{} holds no intent", file.display());
    }
    Ok(documents)
}

/// An id as the bus takes it, from what a document calls itself.
fn id_of(document: &str) -> Option<String> {
    let id = mncc_exposer::domain::intents::parse(document).ok()?.id;
    mesh_proto::is_key(&id).then_some(id)
}

/// Submits each intent of a file on its own; one that fails does not hold the others up.
async fn submit(
    context: &Context<'_>,
    client: &Client,
    file: &Path,
    id: Option<String>,
    waiting: &Waiting,
) -> anyhow::Result<ExitCode> {
    let documents = documents(file)?;
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
            let answered = client.ask(&command, command_id, waiting.limit()).await?;
            ended(client, &context.owner, &own, &answered, waiting).await
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
    answered: &Stored,
    waiting: &Waiting,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome { id: id.to_owned(), ..Outcome::default() };
    if let Some(refused) = answered.event::<NetworkRefused>()? {
        (outcome.result, outcome.reason, outcome.hint) = ("refused".into(), refused.reason, refused.hint);
        return Ok(outcome);
    }
    let filter = format!("network.*.*.{owner}.{id}");
    let mut tail = client.bus.log(ConnectivityChanged::STREAM).tail(&filter, answered.sequence);
    let deadline = Instant::now() + waiting.limit();
    loop {
        let Ok(fact) = timeout_at(deadline, tail.next()).await else {
            outcome.result = "under way".into();
            outcome.reason = describe(answered);
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
