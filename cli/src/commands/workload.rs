//! `workload`: push, check, list, get, logs, run, stop, upgrade, rollback, migrate, delete, manifests.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use mesh_client::Client;
use mesh_core::Stored;
use mesh_proto::{
    AnyEvent, EventSet as _,
    deciders::stream_workload,
    derived_id,
    instance::{LogLine, LogsRequest},
    query::GetRequest,
    shown,
    workload::{
        DeleteInstance, DropWorkload, InstancePhase, InstanceView, MigrateInstance, RollbackInstance, RunInstance,
        StopInstance, UpgradeInstance, WorkloadDocument, WorkloadView,
    },
};
use mesh_why::describe::describe;
use prost::Message as _;
use serde_json::json;
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use super::{
    catalogue,
    chart::{self, ChartOptions, ReleaseOptions},
};
use crate::{
    context::{Context, Waiting, Watch, answer, checked, show, to_json},
    document,
    outcome::{Outcome, conclude},
    output::{self, Shown, clock, event, fields, table},
};

/// Subcommands of `workload`.
#[derive(Debug, Subcommand)]
pub enum WorkloadCommand {
    /// Registers each document of a file, or a Helm chart; waits for the verdict.
    Push {
        /// YAML or JSON, documents divided by `---`; `-` is standard input. Or a chart: its archive, `.tgz`, or its folder.
        file: PathBuf,
        /// What the chart's document holds beside its archive.
        #[command(flatten)]
        chart: ChartOptions,
        /// Whether and how long to wait.
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Documents and instances.
    List {
        /// Only instances in this phase, for example `RUNNING`.
        #[arg(long)]
        phase: Option<String>,
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
    /// A document by `name` (newest version) or `name@version`, or an instance by its id.
    Get {
        /// Name, `name@version`, or instance id.
        id: String,
    },
    /// The last lines that an instance's processes wrote.
    Logs {
        /// Instance id or its beginning, or the id of an intent with one instance.
        id: String,
        /// Newest lines.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        lines: u32,
        /// Go on with new lines as they are written.
        #[arg(short, long)]
        follow: bool,
    },
    /// Runs an instance of a document without an intent.
    Run {
        /// Document, `name@version`.
        workload: String,
        /// Instance id, a UUID; a new one when absent.
        #[arg(long)]
        id: Option<String>,
        /// Copies; as in the document when 0.
        #[arg(long, default_value_t = 0)]
        replicas: u32,
        /// Wait until every copy runs.
        #[arg(long, conflicts_with = "no_wait")]
        wait: bool,
        /// How the chart is released.
        #[command(flatten)]
        release: ReleaseOptions,
        /// Whether and how long to wait.
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Stops an instance that was started without an intent.
    Stop {
        /// Instance id.
        id: String,
        /// Whether and how long to wait.
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Checks a chart in four steps (structure, template, images, ingress) without storing it.
    Check {
        /// The chart's archive, `.tgz`, or its folder.
        file: PathBuf,
        /// What the chart's document holds beside its archive.
        #[command(flatten)]
        chart: ChartOptions,
    },
    /// Gives an instance another version of its document, or a chart's instance other values.
    Upgrade {
        /// Instance id or its beginning.
        id: String,
        /// Document, `name@version`; the present one when absent.
        workload: Option<String>,
        /// Copies; as it has now when 0.
        #[arg(long, default_value_t = 0)]
        replicas: u32,
        /// Goes back by itself if the new revision fails for good.
        #[arg(long)]
        atomic: bool,
        /// How the chart is released.
        #[command(flatten)]
        release: ReleaseOptions,
        /// Whether and how long to wait.
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Makes an earlier revision the newest.
    Rollback {
        /// Instance id or its beginning.
        id: String,
        /// Revision; the one before the present one when 0.
        #[arg(default_value_t = 0)]
        revision: u32,
        /// Whether and how long to wait.
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Moves an instance to another cluster; waits until it is there or stays.
    Migrate {
        /// Instance id or its beginning.
        id: String,
        /// Cluster; the best other one when absent.
        #[arg(long)]
        to: Option<String>,
        /// Whether and how long to wait.
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Ends an instance and forgets it; or removes a document that is pending or was rejected, `name@version`.
    Delete {
        /// Instance id or its beginning, or `name@version`.
        id: String,
        /// Whether and how long to wait.
        #[command(flatten)]
        waiting: Waiting,
    },
    /// What an instance's cluster receives: a chart's rendered manifests, or the process' document.
    Manifests {
        /// Instance id or its beginning.
        id: String,
    },
}

const DOCUMENT: &str = "continuum.workload.v1.WorkloadView";
const INSTANCE: &str = "continuum.workload.v1.InstanceView";
/// How often new log lines are asked for.
const LOGS_EVERY: Duration = Duration::from_millis(500);

/// Runs a subcommand of `workload`.
pub async fn run(context: &Context<'_>, command: WorkloadCommand) -> anyhow::Result<ExitCode> {
    match command {
        WorkloadCommand::Push { file, chart, waiting } => match chart::is_chart(&file) {
            true => chart::push(context, &file, &chart, &waiting).await,
            false if chart.ingress || chart.values.is_some() => {
                bail!(
                    "--ingress and --values apply to charts (.tgz); in a document, set chart.ingressSupport and chart.values"
                )
            }
            false => push(context, &file, &waiting).await,
        },
        WorkloadCommand::Check { file, chart } => chart::check(context, &file, &chart).await,
        WorkloadCommand::Manifests { id } => chart::manifests(context, &id).await,
        WorkloadCommand::Upgrade { id, workload, replicas, atomic, release, waiting } => {
            let client = context.client().await?;
            let instance = catalogue::instance(context, &client, &id).await?;
            let workload = workload.unwrap_or(instance.workload);
            let (owner, id) = (context.owner.clone(), instance.instance_id);
            let release = chart::release(&release, instance.release)?;
            let command = UpgradeInstance { owner, instance_id: id.clone(), workload, replicas, release, atomic };
            send(context, &client, &command, &id, "upgraded", &waiting).await
        }
        WorkloadCommand::Rollback { id, revision, waiting } => {
            let client = context.client().await?;
            let id = catalogue::instance(context, &client, &id).await?.instance_id;
            let command = RollbackInstance { owner: context.owner.clone(), instance_id: id.clone(), revision };
            send(context, &client, &command, &id, "rolled back", &waiting).await
        }
        WorkloadCommand::Migrate { id, to, waiting } => migrate(context, &id, to.unwrap_or_default(), &waiting).await,
        WorkloadCommand::Delete { id, waiting } => {
            let client = context.client().await?;
            if let Some((name, version)) = id.split_once('@') {
                checked("workload name", name)?;
                let (owner, name, version) = (context.owner.clone(), name.to_owned(), version.to_owned());
                let command = DropWorkload { owner, name, version };
                return send(context, &client, &command, &id, "dropped", &waiting).await;
            }
            let id = catalogue::instance(context, &client, &id).await?.instance_id;
            let command = DeleteInstance { owner: context.owner.clone(), instance_id: id.clone() };
            send(context, &client, &command, &id, "deleted", &waiting).await
        }
        WorkloadCommand::List { phase, watch } => {
            let client = context.client().await?;
            let phase = phase.unwrap_or_default().to_uppercase();
            show(context, watch.watch, async || {
                let (documents, instances) = catalogue::list(&client, &context.owner, &phase).await?;
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
            send(context, &client, &command, &id, "stopped", &waiting).await
        }
    }
}

/// Sends a command, and shows what answers it.
async fn send(
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
    let outcome = match client.ask(command, command_id, waiting.limit()).await {
        Ok(answered) => answered_by(id, &answered, done),
        Err(error) => Outcome::of(id).refused(error.into_refusal()?),
    };
    Ok(conclude(context.format, "instance", &[outcome]))
}

/// Moves an instance, and waits for what comes of it.
async fn migrate(context: &Context<'_>, id: &str, to: String, waiting: &Waiting) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    let id = catalogue::instance(context, &client, id).await?.instance_id;
    let owner = context.owner.clone();
    let command = MigrateInstance { owner, instance_id: id.clone(), to_cluster_id: to };
    if waiting.no_wait {
        return send(context, &client, &command, &id, "moving", waiting).await;
    }
    let deadline = Instant::now() + waiting.limit();
    let answered = match client.ask(&command, uuid::Uuid::now_v7().to_string(), waiting.limit()).await {
        Ok(answered) => answered,
        Err(error) => {
            let outcome = Outcome::of(&id).refused(error.into_refusal()?);
            return Ok(conclude(context.format, "instance", &[outcome]));
        }
    };
    let mut outcome = answered_by(&id, &answered, "moving");
    let entity = format!("workload.*.*.{}.{id}", context.owner);
    let mut tail = client.bus().log("WORKLOAD").tail(&entity, answered.sequence + 1);
    let mut under_way = false;
    while outcome.ok && outcome.result == "moving" {
        let fact = match timeout_at(deadline, tail.next()).await {
            Ok(fact) => fact.context("follow the instance")?,
            Err(_) => {
                outcome.ok = false;
                outcome.result = format!("timed out after {} s waiting for the move", waiting.timeout);
                outcome.hint = format!("the instance is still being processed; run `continuum why {id}`");
                break;
            }
        };
        let event = stream_workload::Event::decode(&fact.message, &fact.body);
        let Ok(stream_workload::Event::InstanceChanged(changed)) = event else { continue };
        outcome.reason = describe(&fact);
        let was_under_way = std::mem::replace(&mut under_way, !changed.to_cluster_id.is_empty());
        match changed.event.as_ref().map_or("", |event| event.r#type.as_str()) {
            "migrated" => outcome.result = format!("runs on {}", changed.cluster_id),
            "migration_declined" => {
                outcome.ok = false;
                outcome.result = "stays".into();
                outcome.reason = changed.reason;
                outcome.hint = "name another cluster, or make room there".into();
            }
            // The move was given up.
            "" if was_under_way && !under_way => {
                outcome.ok = false;
                outcome.result = "stays".into();
                outcome.reason = changed.reason;
                outcome.hint = format!("run `continuum why {id}`");
            }
            _ => {}
        }
    }
    Ok(conclude(context.format, "instance", &[outcome]))
}

fn sent(id: &str) -> Outcome {
    Outcome { id: id.to_owned(), ok: true, result: "sent".into(), ..Outcome::default() }
}

fn answered_by(id: &str, answered: &Stored, done: &str) -> Outcome {
    Outcome { ok: true, result: done.into(), reason: describe(answered), ..Outcome::of(id) }
}

/// Registers each document of a file.
async fn push(context: &Context<'_>, file: &Path, waiting: &Waiting) -> anyhow::Result<ExitCode> {
    let documents = document::read(file)?;
    let client = context.client().await?;
    let mut outcomes = vec![];
    for (index, value) in documents.into_iter().enumerate() {
        let mut name = format!("document {}", index + 1);
        let outcome = async {
            let wrapped = value.names().eq(["workload"]).then(|| value.get("workload")).flatten();
            let document: WorkloadDocument =
                mesh_proto::json::from_written(WORKLOAD_DOCUMENT, wrapped.unwrap_or(&value))
                    .with_context(|| format!("read {}", file.display()))?;
            if document.name.is_empty() {
                bail!("the document has no `name`; give it one, and a `version`");
            }
            name = format!("{}@{}", document.name, document.version);
            checked("workload name", &document.name)?;
            let content: String = document.encode_to_vec().iter().map(|b| format!("{b:02x}")).collect();
            let command_id = derived_id(&["register", &context.owner, &document.name, &content]);
            catalogue::register(context, &client, document, command_id, waiting).await
        }
        .await;
        outcomes.push(outcome.unwrap_or_else(|error: anyhow::Error| Outcome::failed(&name, &error)));
    }
    Ok(conclude(context.format, "workload", &outcomes))
}

const WORKLOAD_DOCUMENT: &str = "continuum.workload.v1.WorkloadDocument";

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
    let answered = match client.ask(command, command_id, waiting.limit()).await {
        Ok(answered) => answered,
        Err(error) => return Ok(Outcome::of(id).refused(error.into_refusal()?)),
    };
    let mut outcome = answered_by(id, &answered, "wanted");
    if let Ok(Some(unavailable)) = answered.event::<mesh_proto::workload::InstanceUnavailable>() {
        outcome.ok = false;
        outcome.result = "unavailable".into();
        (outcome.reason, outcome.hint) = (unavailable.reason, unavailable.hint);
    }
    if !outcome.ok || !wait {
        return Ok(outcome);
    }
    let mut tail =
        client.bus().log("WORKLOAD").tail(&format!("workload.*.*.{}.{id}", command.owner), answered.sequence);
    loop {
        let fact = match timeout_at(deadline, tail.next()).await {
            Ok(fact) => fact.context("follow the instance")?,
            Err(_) => {
                outcome.ok = false;
                outcome.result = format!("timed out after {} s waiting for it to run", waiting.timeout);
                outcome.hint = format!("the instance is still being processed; run `continuum why {id}`");
                return Ok(outcome);
            }
        };
        let Ok(stream_workload::Event::InstanceChanged(changed)) =
            stream_workload::Event::decode(&fact.message, &fact.body)
        else {
            continue;
        };
        outcome.state = catalogue::phase(changed.phase());
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

fn both(documents: &[WorkloadView], instances: &[InstanceView]) -> Shown {
    let value = json!({
        "workloads": documents.iter().map(|d| to_json(DOCUMENT, d)).collect::<Vec<_>>(),
        "instances": instances.iter().map(|i| to_json(INSTANCE, i)).collect::<Vec<_>>(),
    });
    let rows = documents.iter().map(|d| {
        let resources = d.document.as_ref().and_then(|d| d.resources.as_ref());
        let asks = resources.map(|r| format!("{} mCPU, {}", r.cpu_milli, output::megabytes(r.memory_bytes)));
        let kind = d.document.as_ref().map(|d| d.kind.clone()).unwrap_or_default();
        let id = format!("{}@{}", d.name, d.version);
        vec![id, kind, d.status.clone(), asks.unwrap_or_default(), catalogue::problems(&d.problems).0]
    });
    let documents = table(&["workload", "kind", "status", "resources", "problems"], rows.collect());
    let rows = instances.iter().map(|i| {
        let cluster = if i.cluster_id.is_empty() { "-".to_owned() } else { i.cluster_id.clone() };
        let intent = if i.intent_id.is_empty() { "-".to_owned() } else { i.intent_id.clone() };
        let running = format!("{}/{}", i.replicas_running, i.replicas_wanted);
        let (restarts, phase) = (i.restarts.to_string(), catalogue::phase(i.phase()));
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
            to_json(INSTANCE, &catalogue::instance(context, client, id).await?)
        }
        Err(status) => return answer("get the workload", Err(status)),
    };
    let rows = fields(&value);
    Ok(Shown::table(value, &["field", "value"], rows))
}

async fn logs(context: &Context<'_>, id: &str, lines: u32, follow: bool) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    let mut written: BTreeSet<(i128, u32, String)> = BTreeSet::new();
    loop {
        let instance = catalogue::instance(context, &client, id).await?;
        let found = read_logs(&client, &instance, lines).await?;
        let mut keys = BTreeSet::new();
        for log in found {
            let key = (log.at.map_or(0, |t| t.as_nanos()), log.replica, log.text.clone());
            if !written.contains(&key) {
                let text = || {
                    let at = log.at.map(clock).unwrap_or_default();
                    format!("{at}  {}  {}  {}", log.replica, log.stream, shown::line(&log.text))
                };
                if follow || context.format != output::Format::Table {
                    event(context.format, &to_json("continuum.instance.v1.LogLine", &log), text)?;
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
        bail!("instance {} is not on any cluster; run `continuum why {}`", instance.instance_id, instance.instance_id);
    }
    let request = GetRequest { owner: String::new(), id: instance.cluster_id.clone() };
    let cluster = answer("find the cluster", client.orchestrator().await?.get_cluster(request).await)?;
    let endpoint = cluster.registered.map(|r| r.endpoint).unwrap_or_default();
    let request = LogsRequest { instance_id: instance.instance_id.clone(), lines };
    Ok(answer("read the logs", client.agent(&endpoint).await?.logs(request).await)?.lines)
}
