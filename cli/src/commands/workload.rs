//! `workload`: push, check, list, get, logs, run, stop, upgrade, rollback, migrate, delete, manifests.

use std::{collections::BTreeSet, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use mesh_core::Stored;
use mesh_proto::{
    AnyEvent, Event as _, EventSet as _,
    deciders::stream_workload,
    derived_id,
    intent::Problem,
    query::{GetRequest, InstanceView, ListRequest, LogLine, LogsRequest, WorkloadView},
    workload::{
        DeleteInstance, DropWorkload, InstancePhase, MigrateInstance, RegisterWorkload, RollbackInstance, RunInstance,
        StopInstance, UpgradeInstance, WorkloadDocument,
    },
};
use prost::Message as _;
use serde_json::json;
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use super::{
    Context, Outcome, Shown, answer, chart, clock, conclude, event, fields, intent::checked, refusal, show, to_json,
};
use crate::{
    args::{Waiting, WorkloadCommand},
    client::Client,
    describe::describe,
    document,
    output::{self, table},
};

const DOCUMENT: &str = "continuum.query.v1.WorkloadView";
const INSTANCE: &str = "continuum.query.v1.InstanceView";
/// How often new log lines are asked for.
const LOGS_EVERY: Duration = Duration::from_millis(500);

/// Runs a subcommand of `workload`.
pub(crate) async fn run(context: &Context<'_>, command: WorkloadCommand) -> anyhow::Result<ExitCode> {
    match command {
        WorkloadCommand::Push { file, chart, waiting } => match chart::is_chart(&file) {
            true => chart::push(context, &file, &chart, &waiting).await,
            false if chart.ingress || chart.values.is_some() => {
                bail!(
                    "--ingress and --values are of charts (.tgz); of a document they are fields: chart.ingressSupport, chart.values"
                )
            }
            false => push(context, &file, &waiting).await,
        },
        WorkloadCommand::Check { file, chart } => chart::check(context, &file, &chart).await,
        WorkloadCommand::Manifests { id } => chart::manifests(context, &id).await,
        WorkloadCommand::Upgrade { id, workload, replicas, atomic, release, waiting } => {
            let client = context.client().await?;
            let instance = instance(context, &client, &id).await?;
            let workload = workload.unwrap_or(instance.workload);
            let (owner, id) = (context.owner.clone(), instance.instance_id);
            let release = chart::release(&release, instance.release)?;
            let command = UpgradeInstance { owner, instance_id: id.clone(), workload, replicas, release, atomic };
            tell(context, &client, &command, &id, "upgraded", &waiting).await
        }
        WorkloadCommand::Rollback { id, revision, waiting } => {
            let client = context.client().await?;
            let id = instance(context, &client, &id).await?.instance_id;
            let command = RollbackInstance { owner: context.owner.clone(), instance_id: id.clone(), revision };
            tell(context, &client, &command, &id, "rolled back", &waiting).await
        }
        WorkloadCommand::Migrate { id, to, waiting } => migrate(context, &id, to.unwrap_or_default(), &waiting).await,
        WorkloadCommand::Delete { id, waiting } => {
            let client = context.client().await?;
            if let Some((name, version)) = id.split_once('@') {
                checked("workload name", name)?;
                let (owner, name, version) = (context.owner.clone(), name.to_owned(), version.to_owned());
                let command = DropWorkload { owner, name, version };
                return tell(context, &client, &command, &id, "dropped", &waiting).await;
            }
            let id = instance(context, &client, &id).await?.instance_id;
            let command = DeleteInstance { owner: context.owner.clone(), instance_id: id.clone() };
            tell(context, &client, &command, &id, "deleted", &waiting).await
        }
        WorkloadCommand::List { phase, watch } => {
            let client = context.client().await?;
            let phase = phase.unwrap_or_default().to_uppercase();
            show(context, watch.watch, async || {
                let (documents, instances) = list(&client, &context.owner, &phase).await?;
                Ok(both(&documents, &instances))
            })
            .await
        }
        WorkloadCommand::Get { id } => {
            let client = context.client().await?;
            show(context, false, async || get(context, &client, &id).await).await
        }
        WorkloadCommand::Logs { id, lines, follow } => logs(context, &id, lines, follow).await,
        WorkloadCommand::Run { workload, id, replicas, wait, release, waiting } => {
            let id = id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
            checked("instance id", &id)?;
            let (owner, release) = (context.owner.clone(), chart::release(&release, None)?);
            let command = RunInstance { owner, instance_id: id.clone(), workload, replicas, release };
            let client = context.client().await?;
            let outcome = start(&client, &command, &id, wait, &waiting).await?;
            Ok(conclude(context.format, "instance", &[outcome]))
        }
        WorkloadCommand::Stop { id, waiting } => {
            checked("instance id", &id)?;
            let command = StopInstance { owner: context.owner.clone(), instance_id: id.clone() };
            let client = context.client().await?;
            tell(context, &client, &command, &id, "stopped", &waiting).await
        }
    }
}

/// Sends a command, and shows what answers it.
async fn tell(
    context: &Context<'_>,
    client: &Client,
    command: &dyn AnyEvent,
    id: &str,
    done: &str,
    waiting: &Waiting,
) -> anyhow::Result<ExitCode> {
    let command_id = uuid::Uuid::now_v7().to_string();
    if waiting.no_wait {
        client.send(command, command_id).await?;
        return Ok(conclude(context.format, "instance", &[sent(id)]));
    }
    let answered = client.ask(command, command_id, waiting.limit()).await?;
    Ok(conclude(context.format, "instance", &[told(id, &answered, done)]))
}

/// Moves an instance, and waits for what comes of it.
async fn migrate(context: &Context<'_>, id: &str, to: String, waiting: &Waiting) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    let id = instance(context, &client, id).await?.instance_id;
    let owner = context.owner.clone();
    let command = MigrateInstance { owner, instance_id: id.clone(), to_cluster_id: to };
    if waiting.no_wait {
        return tell(context, &client, &command, &id, "moving", waiting).await;
    }
    let deadline = Instant::now() + waiting.limit();
    let answered = client.ask(&command, uuid::Uuid::now_v7().to_string(), waiting.limit()).await?;
    let mut outcome = told(&id, &answered, "moving");
    let entity = format!("workload.*.*.{}.{id}", context.owner);
    let mut tail = client.bus.log("WORKLOAD").tail(&entity, answered.sequence + 1);
    while outcome.ok && outcome.result == "moving" {
        let fact = match timeout_at(deadline, tail.next()).await {
            Ok(fact) => fact.context("follow the instance")?,
            Err(_) => {
                outcome.ok = false;
                outcome.result = format!("not moved within {} s", waiting.timeout);
                outcome.hint = format!("ask `continuum why {id}`; it goes on without you");
                break;
            }
        };
        let event = stream_workload::Event::decode(&fact.message, &fact.body);
        let Ok(stream_workload::Event::InstanceChanged(changed)) = event else { continue };
        outcome.reason = describe(&fact);
        match changed.event.as_ref().map_or("", |event| event.r#type.as_str()) {
            "migrated" => outcome.result = format!("runs on {}", changed.cluster_id),
            "migration_declined" => {
                outcome.ok = false;
                outcome.result = "stays".into();
                outcome.reason = changed.reason;
                outcome.hint = "name another cluster, or make room there".into();
            }
            // A move that came to nothing.
            "" if changed.to_cluster_id.is_empty() && changed.reason.starts_with("stays on") => {
                outcome.ok = false;
                outcome.result = "stays".into();
                outcome.reason = changed.reason;
                outcome.hint = format!("ask `continuum why {id}`");
            }
            _ => {}
        }
    }
    Ok(conclude(context.format, "instance", &[outcome]))
}

fn sent(id: &str) -> Outcome {
    Outcome { id: id.to_owned(), ok: true, result: "sent".into(), ..Outcome::default() }
}

fn told(id: &str, answered: &Stored, done: &str) -> Outcome {
    let id = id.to_owned();
    match refusal(answered) {
        Some((reason, hint)) => Outcome { id, result: "refused".into(), reason, hint, ..Outcome::default() },
        None => Outcome { id, ok: true, result: done.into(), reason: describe(answered), ..Outcome::default() },
    }
}

/// Registers each document of a file.
async fn push(context: &Context<'_>, file: &Path, waiting: &Waiting) -> anyhow::Result<ExitCode> {
    let documents = document::read(file)?;
    let client = context.client().await?;
    let mut outcomes = vec![];
    for (index, value) in documents.into_iter().enumerate() {
        let mut name = format!("document {}", index + 1);
        let outcome = async {
            let value = match value.as_object() {
                Some(object) if object.len() == 1 && object.contains_key("workload") => object["workload"].clone(),
                _ => value,
            };
            let document: WorkloadDocument = mesh_proto::json::from_value(WORKLOAD_DOCUMENT, value)
                .with_context(|| format!("read {}", file.display()))?;
            if document.name.is_empty() {
                bail!("the document has no `name`; give it one, and a `version`");
            }
            name = format!("{}@{}", document.name, document.version);
            checked("workload name", &document.name)?;
            let content: String = document.encode_to_vec().iter().map(|b| format!("{b:02x}")).collect();
            let command_id = derived_id(&["register", &context.owner, &document.name, &content]);
            register(context, &client, document, command_id, waiting).await
        }
        .await;
        outcomes.push(outcome.unwrap_or_else(|error: anyhow::Error| Outcome::failed(&name, &error)));
    }
    Ok(conclude(context.format, "workload", &outcomes))
}

const WORKLOAD_DOCUMENT: &str = "continuum.workload.v1.WorkloadDocument";

pub(super) async fn register(
    context: &Context<'_>,
    client: &Client,
    document: WorkloadDocument,
    command_id: String,
    waiting: &Waiting,
) -> anyhow::Result<Outcome> {
    let owner = &context.owner;
    let (name, version) = (document.name.clone(), document.version.clone());
    let command = RegisterWorkload { owner: owner.clone(), name: name.clone(), document: Some(document) };
    let outcome = Outcome { id: name.clone(), version: version.clone(), ..Outcome::default() };
    if waiting.no_wait {
        client.send(&command, command_id).await?;
        return Ok(Outcome { ok: true, result: "sent".into(), ..outcome });
    }
    let deadline = Instant::now() + waiting.limit();
    let answered = client.ask(&command, command_id, waiting.limit()).await?;
    if let Some((reason, hint)) = refusal(&answered) {
        return Ok(Outcome { result: "refused".into(), reason, hint, ..outcome });
    }
    let mut unchanged = answered.message == mesh_proto::workload::WorkloadUnchanged::MESSAGE;
    // The verdict on this version may be older than this answer.
    let from = if unchanged { 1 } else { answered.sequence };
    let mut tail = client.bus.log("WORKLOAD").tail(&format!("workload.*.*.{owner}.{name}"), from);
    loop {
        let fact = match timeout_at(deadline, tail.next()).await {
            Ok(fact) => fact.context("follow the document")?,
            Err(_) => {
                let result = format!("no verdict within {} s", waiting.timeout);
                return Ok(Outcome {
                    result,
                    hint: "see `continuum status`; it is judged once its service is back".into(),
                    ..outcome
                });
            }
        };
        match stream_workload::Event::decode(&fact.message, &fact.body) {
            Ok(stream_workload::Event::WorkloadRegistered(registered)) if registered.version == version => {
                unchanged |= fact.sequence < answered.sequence;
                let result = if unchanged { "unchanged" } else { "registered" };
                return Ok(Outcome { ok: true, result: result.into(), state: "accepted".into(), ..outcome });
            }
            // One from before an answer that there is nothing new was outweighed since.
            Ok(stream_workload::Event::WorkloadRejected(rejected))
                if rejected.version == version && fact.sequence > answered.sequence =>
            {
                let (reason, hint) = problems(&rejected.problems);
                return Ok(Outcome { result: "rejected".into(), state: "rejected".into(), reason, hint, ..outcome });
            }
            _ => {}
        }
    }
}

pub(super) fn problems(problems: &[Problem]) -> (String, String) {
    let reasons: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.path, p.reason)).collect();
    let hints: Vec<&str> = problems.iter().map(|p| p.hint.as_str()).collect();
    (reasons.join("; "), hints.join("; "))
}

/// Starts an instance; if wished, waits until all of it runs.
async fn start(
    client: &Client,
    command: &RunInstance,
    id: &str,
    wait: bool,
    waiting: &Waiting,
) -> anyhow::Result<Outcome> {
    let command_id = uuid::Uuid::now_v7().to_string();
    if waiting.no_wait {
        client.send(command, command_id).await?;
        return Ok(sent(id));
    }
    let deadline = Instant::now() + waiting.limit();
    let answered = client.ask(command, command_id, waiting.limit()).await?;
    let mut outcome = told(id, &answered, "wanted");
    if let Ok(Some(unavailable)) = answered.event::<mesh_proto::workload::InstanceUnavailable>() {
        outcome.ok = false;
        outcome.result = "unavailable".into();
        (outcome.reason, outcome.hint) = (unavailable.reason, unavailable.hint);
    }
    if !outcome.ok || !wait {
        return Ok(outcome);
    }
    let mut tail = client.bus.log("WORKLOAD").tail(&format!("workload.*.*.{}.{id}", command.owner), answered.sequence);
    loop {
        let fact = match timeout_at(deadline, tail.next()).await {
            Ok(fact) => fact.context("follow the instance")?,
            Err(_) => {
                outcome.ok = false;
                outcome.result = format!("not running within {} s", waiting.timeout);
                outcome.hint = format!("ask `continuum why {id}`; it goes on without you");
                return Ok(outcome);
            }
        };
        let Ok(stream_workload::Event::InstanceChanged(changed)) =
            stream_workload::Event::decode(&fact.message, &fact.body)
        else {
            continue;
        };
        outcome.state = phase(changed.phase());
        outcome.reason = describe(&fact);
        if changed.hopeless {
            outcome.ok = false;
            outcome.result = "failed".into();
            outcome.hint = "correct the document, push it as a new version, and run that".into();
            return Ok(outcome);
        }
        if changed.phase() == InstancePhase::Running && changed.replicas_running >= changed.replicas_wanted {
            outcome.result = "running".into();
            return Ok(outcome);
        }
    }
}

/// The name of a phase.
pub(crate) fn phase(phase: InstancePhase) -> String {
    match phase {
        InstancePhase::Unspecified => "-".to_owned(),
        other => other.as_str_name().to_owned(),
    }
}

async fn list(client: &Client, owner: &str, state: &str) -> anyhow::Result<(Vec<WorkloadView>, Vec<InstanceView>)> {
    let (mut documents, mut instances, mut page_token) = (vec![], vec![], String::new());
    let mut queries = client.workloads().await?;
    loop {
        let request = ListRequest {
            owner: owner.to_owned(),
            page_size: 1_000,
            page_token,
            state: state.to_owned(),
            ..ListRequest::default()
        };
        let page = answer("list workloads", queries.list(request).await)?;
        documents.extend(page.workloads);
        instances.extend(page.instances);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok((documents, instances));
        }
    }
}

fn both(documents: &[WorkloadView], instances: &[InstanceView]) -> Shown {
    let value = json!({
        "workloads": documents.iter().map(|d| to_json(DOCUMENT, d)).collect::<Vec<_>>(),
        "instances": instances.iter().map(|i| to_json(INSTANCE, i)).collect::<Vec<_>>(),
    });
    let rows = documents.iter().map(|d| {
        let resources = d.document.as_ref().and_then(|d| d.resources.as_ref());
        let asks = resources.map(|r| format!("{} mCPU, {}", r.cpu_milli, super::megabytes(r.memory_bytes)));
        let kind = d.document.as_ref().map(|d| d.kind.clone()).unwrap_or_default();
        let id = format!("{}@{}", d.name, d.version);
        vec![id, kind, d.status.clone(), asks.unwrap_or_default(), problems(&d.problems).0]
    });
    let documents = table(&["workload", "kind", "status", "resources", "problems"], rows.collect());
    let rows = instances.iter().map(|i| {
        let cluster = if i.cluster_id.is_empty() { "-".to_owned() } else { i.cluster_id.clone() };
        let intent = if i.intent_id.is_empty() { "-".to_owned() } else { i.intent_id.clone() };
        let running = format!("{}/{}", i.replicas_running, i.replicas_wanted);
        let (restarts, phase) = (i.restarts.to_string(), phase(i.phase()));
        vec![i.instance_id.clone(), i.workload.clone(), intent, cluster, phase, running, restarts, i.reason.clone()]
    });
    let header = ["instance", "workload", "intent", "cluster", "phase", "running", "restarts", "reason"];
    Shown { value, text: format!("{documents}\n\n{}", table(&header, rows.collect())) }
}

async fn get(context: &Context<'_>, client: &Client, id: &str) -> anyhow::Result<Shown> {
    let request = GetRequest { owner: context.owner.clone(), id: id.to_owned() };
    let value = match client.workloads().await?.get_workload(request).await {
        Ok(view) => to_json(DOCUMENT, &view.into_inner()),
        Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => {
            to_json(INSTANCE, &instance(context, client, id).await?)
        }
        Err(status) => return answer("get the workload", Err(status)),
    };
    let rows = fields(&value);
    Ok(Shown::table(value, &["field", "value"], rows))
}

/// An instance by its id or the beginning of it, or the only one of an intent.
pub(crate) async fn instance(context: &Context<'_>, client: &Client, id: &str) -> anyhow::Result<InstanceView> {
    let request = GetRequest { owner: context.owner.clone(), id: id.to_owned() };
    match client.workloads().await?.get_instance(request).await {
        Ok(view) => return Ok(view.into_inner()),
        Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => {}
        Err(status) => return answer("get the instance", Err(status)),
    }
    let (_, instances) = list(client, &context.owner, "").await?;
    let mut found: Vec<InstanceView> =
        instances.into_iter().filter(|i| i.instance_id.starts_with(id) || i.intent_id == id).collect();
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (Some(_), others) => bail!("{id} is the beginning of {} instances; write more of it", others + 1),
        (None, _) => bail!("no document, instance or intent is called {id}; see `continuum workload list`"),
    }
}

async fn logs(context: &Context<'_>, id: &str, lines: u32, follow: bool) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    let mut written: BTreeSet<(i128, u32, String)> = BTreeSet::new();
    loop {
        let instance = instance(context, &client, id).await?;
        let found = read_logs(&client, &instance, lines).await?;
        let mut keys = BTreeSet::new();
        for log in found {
            let key = (log.at.map_or(0, |t| t.as_nanos()), log.replica, log.text.clone());
            if !written.contains(&key) {
                let text = || {
                    let at = log.at.map(clock).unwrap_or_default();
                    format!("{at}  {}  {}  {}", log.replica, log.stream, log.text)
                };
                if follow || context.format != output::Format::Table {
                    event(context.format, &to_json("continuum.query.v1.LogLine", &log), text)?;
                } else {
                    output::line(text());
                }
            }
            keys.insert(key);
        }
        written = keys;
        if !follow {
            if written.is_empty() {
                output::note(format!("instance {} has written nothing", instance.instance_id));
            }
            return Ok(ExitCode::SUCCESS);
        }
        tokio::select! {
            () = tokio::time::sleep(LOGS_EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
    }
}

async fn read_logs(client: &Client, instance: &InstanceView, lines: u32) -> anyhow::Result<Vec<LogLine>> {
    if instance.cluster_id.is_empty() {
        bail!("instance {} is on no cluster; `continuum why {}` says why", instance.instance_id, instance.instance_id);
    }
    let request = GetRequest { owner: String::new(), id: instance.cluster_id.clone() };
    let cluster = answer("find the cluster", client.orchestrator().await?.get_cluster(request).await)?;
    let endpoint = cluster.registered.map(|r| r.endpoint).unwrap_or_default();
    let request = LogsRequest { instance_id: instance.instance_id.clone(), lines };
    Ok(answer("read the logs", client.agent(&endpoint).await?.logs(request).await)?.lines)
}
