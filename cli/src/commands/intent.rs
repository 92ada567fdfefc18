//! `intent`: submit, list, get, watch, update, rollback, history, achieved, suspend, resume, terminate, check, types, objectives.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};
use mesh_client::{Client, now};
use mesh_core::Stored;
use mesh_intent::condition::figure;
use mesh_proto::{
    AnyEvent, EventSet as _,
    deciders::stream_intent,
    derived_id,
    intent::{
        AchievedRequest, AchievedValue, FulfilmentStatus, InstanceStanding, Intent, IntentView, NotFulfilledState,
        Problem, ResumeIntent, RollbackIntent, State, SubmitIntent, SuspendIntent, TargetState, TerminateIntent,
        UpdateIntent,
    },
    query::{GetRequest, ListRequest},
    validation::{CheckReply, CheckRequest, IntentTypesRequest, Objective, ObjectivesRequest, Prediction},
};
use mesh_why::describe::{achieved, describe, state_name, value};
use prost::Message as _;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::telemetry::time;
use crate::{
    context::{Context, Waiting, Watch, answer, checked, show, to_json},
    document,
    outcome::{Outcome, conclude},
    output::{self, Shown, clock, date, event, table},
};

/// What `intent submit` and `update` wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Until {
    /// The verdict on the document.
    Accepted,
    /// FULFILLED, or a state from which it does not get there by itself.
    Fulfilled,
}

/// Subcommands of `intent`.
#[derive(Debug, Subcommand)]
pub enum IntentCommand {
    /// Submits each intent of a file.
    Submit(IntentFile),
    /// Gives existing intents a new definition, each by its id.
    Update(IntentFile),
    /// Checks whether the intents of a file would be accepted, and predicts what would come of them; changes nothing.
    Check {
        /// YAML or JSON, documents divided by `---`; `-` is standard input.
        file: PathBuf,
    },
    /// Every type of intent, with its targets.
    Types,
    /// Translates goals (a TOSCA topology, or its node templates) into objectives over the clusters that have registered.
    Objectives {
        /// YAML or JSON; `-` is standard input.
        file: PathBuf,
    },
    /// The versions of an intent.
    History {
        /// Its id.
        id: String,
    },
    /// What the targets of an intent achieved in each period that is kept, the newest first.
    Achieved {
        /// Its id.
        id: String,
        /// Of periods that ended since then: a time (RFC 3339), or how long ago, as `-15m`.
        #[arg(long, default_value = "-1h", allow_hyphen_values = true)]
        from: String,
        /// The same; now when absent.
        #[arg(long, allow_hyphen_values = true)]
        to: Option<String>,
        /// Only of this target, as `cpuUsage`.
        #[arg(long)]
        target: Option<String>,
        /// Values at most.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
    },
    /// Makes an earlier version the definition again, as a next version.
    Rollback {
        /// The intent.
        #[command(flatten)]
        which: IntentId,
        /// The version to go back to.
        #[arg(long)]
        to: u64,
    },
    /// All intents.
    List {
        /// Only those in this state, for example `DEGRADED`.
        #[arg(long)]
        state: Option<String>,
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
    /// One intent with its targets and instances.
    Get {
        /// Its id.
        id: String,
        /// Whether to show again at every change.
        #[command(flatten)]
        watch: Watch,
    },
    /// One line at every change of an intent, until it is TERMINATED or you interrupt.
    Watch {
        /// Its id.
        id: String,
    },
    /// Stops what an intent wants until it is resumed.
    Suspend(IntentId),
    /// Takes a suspended intent up again.
    Resume(IntentId),
    /// Ends an intent and what it runs.
    Terminate(IntentId),
}

/// A file of intents.
#[derive(Debug, Args)]
pub struct IntentFile {
    /// YAML or JSON, documents divided by `---`; `-` is standard input.
    pub file: PathBuf,
    /// Id of the intent, where its document does not name one.
    #[arg(long)]
    pub id: Option<String>,
    /// What to wait for.
    #[arg(long, value_enum, default_value = "accepted", conflicts_with = "no_wait")]
    pub wait: Until,
    /// Waiting.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// An intent.
#[derive(Debug, Args)]
pub struct IntentId {
    /// Its id.
    pub id: String,
    /// Waiting.
    #[command(flatten)]
    pub waiting: Waiting,
}

const VIEW: &str = "continuum.intent.v1.IntentView";

/// Runs a subcommand of `intent`.
pub async fn run(context: &Context<'_>, command: IntentCommand) -> anyhow::Result<ExitCode> {
    match command {
        IntentCommand::Submit(file) => write(context, &file, false).await,
        IntentCommand::Update(file) => write(context, &file, true).await,
        IntentCommand::Check { file } => check(context, &file).await,
        IntentCommand::Types => types(context).await,
        IntentCommand::Objectives { file } => objectives(context, &file).await,
        IntentCommand::History { id } => history(context, id).await,
        IntentCommand::Achieved { id, from, to, target, limit } => {
            let now = now();
            let request = AchievedRequest {
                owner: context.owner.clone(),
                intent_id: id,
                from: Some(time("--from", &from, now)?),
                to: to.map(|to| time("--to", &to, now)).transpose()?,
                target_name: target.unwrap_or_default(),
                ..AchievedRequest::default()
            };
            achieved_values(context, request, limit as usize).await
        }
        IntentCommand::Rollback { which, to: version } => {
            let command =
                RollbackIntent { owner: context.owner.clone(), intent_id: which.id.clone(), version, if_revision: 0 };
            change(context, &which, "submitted again", &command).await
        }
        IntentCommand::List { state, watch } => {
            let client = context.client().await?;
            let state = state.unwrap_or_default();
            show(context, watch.watch, async || list(context, &client, &state).await).await
        }
        IntentCommand::Get { id, watch } => {
            let client = context.client().await?;
            show(context, watch.watch, async || {
                let request = GetRequest { owner: context.owner.clone(), id: id.clone() };
                let view = answer("get the intent", client.intents().await?.get(request).await)?;
                Ok(Shown { value: to_json(VIEW, &view), text: page(&view) })
            })
            .await
        }
        IntentCommand::Watch { id } => follow(context, id).await,
        IntentCommand::Suspend(which) => {
            let command = SuspendIntent { owner: context.owner.clone(), intent_id: which.id.clone(), if_revision: 0 };
            change(context, &which, "suspended", &command).await
        }
        IntentCommand::Resume(which) => {
            let command = ResumeIntent { owner: context.owner.clone(), intent_id: which.id.clone(), if_revision: 0 };
            change(context, &which, "resumed", &command).await
        }
        IntentCommand::Terminate(which) => {
            let command = TerminateIntent { owner: context.owner.clone(), intent_id: which.id.clone(), if_revision: 0 };
            change(context, &which, "terminated", &command).await
        }
    }
}

/// Submits or updates each document of a file.
async fn write(context: &Context<'_>, file: &IntentFile, update: bool) -> anyhow::Result<ExitCode> {
    let documents = document::read(&file.file)?;
    if file.id.is_some() && documents.len() > 1 {
        bail!(
            "--id names one intent, {} holds {}; write an `id` into each document",
            file.file.display(),
            documents.len()
        );
    }
    let client = context.client().await?;
    let mut outcomes = vec![];
    for (index, value) in documents.into_iter().enumerate() {
        let mut name = document::id_of(&value).unwrap_or_else(|| format!("document {}", index + 1));
        let outcome = async {
            let parsed = document::intent(value).with_context(|| file.file.display().to_string())?;
            let intent = Intent::decode(parsed.body.as_slice()).context("read the intent")?;
            // Encoded again, so that the same content has the same bytes whatever its spelling and order.
            let content = hex(&intent.encode_to_vec());
            let owner = parsed.owner.unwrap_or_else(|| context.owner.clone());
            let id = parsed.id.or_else(|| file.id.clone());
            let id = match id {
                Some(id) => id,
                None if update => bail!("the document does not name an intent; give it an `id`, or use --id"),
                None => derived_id(&["intent", &owner, &content]),
            };
            name.clone_from(&id);
            checked("intent id", &id)?;
            checked("owner", &owner)?;
            if update {
                // What has happened to it belongs to the command's id: the same definition again after the intent was
                // terminated, or back to an earlier one, is a new command and not the old one sent twice.
                let request = GetRequest { owner: owner.clone(), id: id.clone() };
                let sequence = match client.intents().await?.get(request).await {
                    Ok(view) => view.into_inner().sequence,
                    Err(status) if status.code() == tonic::Code::NotFound => 0,
                    Err(status) => return answer("read the intent", Err(status)),
                };
                let command_id = derived_id(&["update", &owner, &id, &sequence.to_string(), &content]);
                let command =
                    UpdateIntent { owner: owner.clone(), intent_id: id.clone(), intent: Some(intent), if_revision: 0 };
                submit(&client, &command, command_id, &owner, &id, file.wait, &file.waiting).await
            } else {
                let command_id = derived_id(&["submit", &owner, &id, &content]);
                let command = SubmitIntent { owner: owner.clone(), intent_id: id.clone(), intent: Some(intent) };
                submit(&client, &command, command_id, &owner, &id, file.wait, &file.waiting).await
            }
        }
        .await;
        outcomes.push(outcome.unwrap_or_else(|error: anyhow::Error| Outcome::failed(&name, &error)));
    }
    Ok(conclude(context.format, "intent", &outcomes))
}

async fn submit(
    client: &Client,
    command: &dyn AnyEvent,
    command_id: String,
    owner: &str,
    id: &str,
    until: Until,
    waiting: &Waiting,
) -> anyhow::Result<Outcome> {
    if waiting.no_wait {
        client.send(command, command_id).await?;
        return Ok(Outcome { id: id.to_owned(), ok: true, result: "sent".into(), ..Outcome::default() });
    }
    let deadline = Instant::now() + waiting.limit();
    let answered = match client.ask(command, command_id, waiting.limit()).await {
        Ok(answered) => answered,
        Err(error) => return Ok(Outcome::of(id).refused(error.into_refusal()?)),
    };
    let mut standing = Standing::default();
    standing.fold(&answered);
    standing.wanted = standing.version;
    let (log, filter) = (client.bus().log("INTENT"), format!("intent.*.*.{owner}.{id}"));
    let mut from = answered.sequence + 1;
    // First what is known already: a command that was answered long ago must not be judged by what it was then.
    loop {
        let facts = log.read(&filter, from, 1_000).await.context("read the intent")?;
        let Some(last) = facts.last() else { break };
        from = last.sequence + 1;
        facts.iter().for_each(|fact| standing.fold(fact));
    }
    let mut tail = log.tail(&filter, from);
    while !standing.is_enough(until) {
        match timeout_at(deadline, tail.next()).await {
            Ok(fact) => standing.fold(&fact.context("follow the intent")?),
            Err(_) => return Ok(standing.late(id, until, waiting.limit())),
        }
    }
    Ok(standing.outcome(id, until))
}

/// An intent as its facts describe it.
#[derive(Debug, Default)]
struct Standing {
    /// Version that was submitted.
    wanted: u64,
    version: u64,
    unchanged: bool,
    accepted: bool,
    rejected: Option<Vec<Problem>>,
    state: Option<State>,
    targets: Vec<TargetState>,
}

impl Standing {
    fn fold(&mut self, stored: &Stored) {
        use stream_intent::Event;
        match Event::decode(&stored.message, &stored.body) {
            Ok(Event::IntentSubmitted(fact)) => self.version = fact.version,
            Ok(Event::IntentUnchanged(fact)) => {
                self.version = fact.version;
                self.unchanged = true;
                self.state = fact.state.or(self.state.take());
            }
            Ok(Event::IntentAcknowledged(fact)) => {
                self.accepted |= fact.version >= self.wanted;
                self.state = fact.state;
            }
            Ok(Event::IntentRejected(fact)) => {
                if fact.version == self.wanted {
                    self.rejected = Some(fact.problems);
                }
                self.state = fact.state;
            }
            Ok(Event::IntentStateChanged(fact)) => {
                self.version = self.version.max(fact.version);
                self.state = fact.to;
                self.targets = fact.targets;
            }
            _ => {}
        }
    }

    fn in_state(&self, states: &[NotFulfilledState]) -> bool {
        self.state.as_ref().is_some_and(|s| !fulfilled(s) && states.contains(&s.not_fulfilled_state()))
    }

    fn is_fulfilled(&self) -> bool {
        self.state.as_ref().is_some_and(fulfilled)
    }

    fn is_enough(&self, until: Until) -> bool {
        use NotFulfilledState::{Fulfilmentfailed, Suspended, Terminated, Unspecified};
        if self.rejected.is_some() {
            return true;
        }
        let known = self.state.as_ref().is_some_and(|s| fulfilled(s) || s.not_fulfilled_state() != Unspecified);
        let judged = self.accepted || self.unchanged && known;
        match until {
            Until::Accepted => judged || self.in_state(&[Terminated]),
            Until::Fulfilled => {
                judged && (self.is_fulfilled() || self.in_state(&[Fulfilmentfailed, Suspended, Terminated]))
            }
        }
    }

    fn outcome(&self, id: &str, until: Until) -> Outcome {
        use NotFulfilledState::{Fulfilmentfailed, Terminated};
        let mut outcome = Outcome { id: id.to_owned(), version: self.version.to_string(), ..Outcome::default() };
        if let Some(state) = &self.state {
            outcome.state = state_name(state);
            outcome.reason = reason_of(state);
            outcome.hint.clone_from(&state.hint);
        }
        if let Some(problems) = &self.rejected {
            outcome.result = "rejected".into();
            outcome.reason =
                problems.iter().map(|p| format!("{}: {}", p.path, p.reason)).collect::<Vec<_>>().join("; ");
            outcome.hint = problems.iter().map(|p| p.hint.as_str()).collect::<Vec<_>>().join("; ");
            return outcome;
        }
        outcome.ok = match until {
            Until::Accepted => !self.in_state(&[Fulfilmentfailed, Terminated]),
            Until::Fulfilled => self.is_fulfilled(),
        };
        outcome.result = match (until, outcome.ok, self.unchanged) {
            (Until::Fulfilled, true, _) => "fulfilled",
            (Until::Fulfilled, false, _) => "not fulfilled",
            (Until::Accepted, false, _) if self.in_state(&[Terminated]) => "ended before",
            (Until::Accepted, false, _) => "cannot be fulfilled",
            (Until::Accepted, _, true) => "unchanged",
            (Until::Accepted, ..) => "accepted",
        }
        .into();
        if !outcome.ok && self.in_state(&[Terminated]) && outcome.hint.is_empty() {
            outcome.hint = "it has ended; submit it under another id, or change its definition and run `continuum intent update FILE`".into();
        }
        let measured: Vec<String> = self.targets.iter().filter(|t| t.measured).map(target).collect();
        if until == Until::Fulfilled && !measured.is_empty() {
            let reason = std::mem::take(&mut outcome.reason);
            outcome.reason =
                [reason, measured.join(", ")].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("; ");
        }
        outcome
    }

    fn late(&self, id: &str, until: Until, limit: Duration) -> Outcome {
        let mut outcome = self.outcome(id, until);
        let what = match until {
            Until::Accepted => "no verdict",
            Until::Fulfilled => "not FULFILLED",
        };
        outcome.ok = false;
        outcome.result = format!("{what} within {} s", limit.as_secs());
        if outcome.hint.is_empty() {
            outcome.hint = format!("the intent is still being processed; run `continuum why {id}`");
        }
        outcome
    }
}

fn fulfilled(state: &State) -> bool {
    state.fulfilment_status() == FulfilmentStatus::Fulfilled
}

/// A state's reason and what it waits for.
fn reason_of(state: &State) -> String {
    let waits = if state.waits_for.is_empty() { String::new() } else { format!("waits for {}", state.waits_for) };
    [state.reason.clone(), waits].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("; ")
}

fn target(target: &TargetState) -> String {
    let condition = condition(&target.target_condition);
    let verdict = if target.fulfilled { "" } else { ", missed" };
    // Facts of earlier versions hold the number alone.
    let bound = match target.target_value_range.as_str() {
        "" => target.bound.to_string(),
        written => written.to_owned(),
    };
    format!("{} ({condition} {bound}{verdict})", achieved(target))
}

/// A condition of TS 28.312 in words.
fn condition(name: &str) -> String {
    name.trim_start_matches("IS_").replace('_', " ").to_lowercase()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Sends a command about one intent; waits for the fact that answers it.
async fn change(
    context: &Context<'_>,
    which: &IntentId,
    done: &str,
    command: &dyn AnyEvent,
) -> anyhow::Result<ExitCode> {
    checked("intent id", &which.id)?;
    let client = context.client().await?;
    // Each is a wish of its own: suspending again after a resume is not the same command.
    let command_id = uuid::Uuid::now_v7().to_string();
    let id = which.id.clone();
    if which.waiting.no_wait {
        client.send(command, command_id).await?;
        let outcome = Outcome { id, ok: true, result: "sent".into(), ..Outcome::default() };
        return Ok(conclude(context.format, "intent", &[outcome]));
    }
    let outcome = match client.ask(command, command_id, which.waiting.limit()).await {
        Err(error) => Outcome::of(&id).refused(error.into_refusal()?),
        Ok(answered) => {
            let mut standing = Standing::default();
            standing.fold(&answered);
            let state = standing.state.as_ref().map(state_name).unwrap_or_default();
            let result = if standing.unchanged { "unchanged" } else { done };
            let version = standing.version.to_string();
            Outcome {
                id,
                version,
                ok: true,
                result: result.into(),
                state,
                reason: describe(&answered),
                ..Outcome::default()
            }
        }
    };
    Ok(conclude(context.format, "intent", &[outcome]))
}

/// The validator's verdict in advance, and what would come of it.
async fn check(context: &Context<'_>, file: &Path) -> anyhow::Result<ExitCode> {
    let documents = document::read(file)?;
    let client = context.client().await?;
    let mut found: Vec<(String, CheckReply)> = vec![];
    for (index, value) in documents.into_iter().enumerate() {
        let mut name = format!("document {}", index + 1);
        let reply = match document::intent(value) {
            Err(error) => CheckReply {
                problems: vec![Problem {
                    path: String::new(),
                    reason: error.to_string(),
                    hint: "correct the document".into(),
                }],
                ..Default::default()
            },
            Ok(parsed) => {
                let intent = Some(Intent::decode(parsed.body.as_slice()).context("read the intent")?);
                let owner = parsed.owner.unwrap_or_else(|| context.owner.clone());
                let intent_id = parsed.id.clone().unwrap_or_default();
                name = parsed.id.unwrap_or(name);
                let request = CheckRequest { intent, owner, intent_id };
                answer("check the intent", client.validator().await?.check(request).await)?
            }
        };
        found.push((name, reply));
    }
    let bad = found.iter().any(|(_, reply)| !reply.problems.is_empty());
    let shown: Vec<_> = found
        .iter()
        .map(|(name, reply)| {
            let mut value = to_json("continuum.validation.v1.CheckReply", reply);
            value["id"] = json!(name);
            value["acceptable"] = json!(reply.problems.is_empty());
            value
        })
        .collect();
    output::show(context.format, &json!(shown), &["intent", "path", "found", "hint"], || {
        let rows = |(name, reply): &(String, CheckReply)| {
            let row = |path: &str, found: String, hint: &str| vec![name.clone(), path.into(), found, hint.into()];
            if !reply.problems.is_empty() {
                return reply.problems.iter().map(|p| row(&p.path, p.reason.clone(), &p.hint)).collect::<Vec<_>>();
            }
            let state = format!("none: it would be accepted, and {}", reply.predicted_state);
            let mut rows = vec![row("-", state, "-")];
            rows.extend(reply.predictions.iter().map(|p| row(&p.expectation_id, prediction(p), "-")));
            rows.extend(reply.conflicts.iter().map(|c| row(&c.expectation_id, c.reason.clone(), &c.hint)));
            rows
        };
        found.iter().flat_map(rows).collect()
    });
    Ok(ExitCode::from(u8::from(bad)))
}

fn prediction(prediction: &Prediction) -> String {
    if prediction.cluster_id.is_empty() {
        return format!("{}: {}", prediction.feasibility, prediction.reason);
    }
    let targets: Vec<String> = prediction.targets.iter().filter(|t| t.measured).map(target).collect();
    let reason = if prediction.reason.is_empty() { String::new() } else { format!("; {}", prediction.reason) };
    format!(
        "{} on {}: {}{:.1} W, {:.1} credits a day (modelled){reason}",
        prediction.feasibility,
        prediction.cluster_id,
        targets.iter().map(|t| format!("{t}, ")).collect::<String>(),
        prediction.watts,
        prediction.credits_per_day,
    )
}

async fn types(context: &Context<'_>) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    let reply = answer("list types of intents", client.validator().await?.types(IntentTypesRequest {}).await)?;
    let value = to_json("continuum.validation.v1.IntentTypes", &reply);
    output::show(context.format, &value, &["type", "for", "verbs", "objects", "targets", "without proof"], || {
        let row = |t: &mesh_proto::validation::IntentTypeView| {
            let source =
                |t: &mesh_proto::validation::IntentTypeTarget| match mesh_intent::types::unmeasured(t.provenance()) {
                    Some(source) => format!("; {source}"),
                    None => String::new(),
                };
            let targets: Vec<String> =
                t.targets.iter().map(|t| format!("{} ({}{})", t.name, t.unit, source(t))).collect();
            vec![
                t.user_label.clone(),
                t.description.clone(),
                t.verbs.join(" "),
                t.object_types.join(" "),
                targets.join(", "),
                if t.statement.is_empty() { "-".into() } else { t.statement.clone() },
            ]
        };
        reply.types.iter().map(row).collect()
    });
    Ok(ExitCode::SUCCESS)
}

async fn objectives(context: &Context<'_>, file: &Path) -> anyhow::Result<ExitCode> {
    let document = document::read(file)?.remove(0).into_spelt_json().to_string();
    let client = context.client().await?;
    let request = ObjectivesRequest { document };
    let reply = answer("translate goals", client.validator().await?.objectives(request).await)?;
    let bad = !reply.problems.is_empty();
    let value = to_json("continuum.validation.v1.ObjectivesReply", &reply);
    output::show(context.format, &value, &["component", "goal", "alternatives (modelled)", "hint"], || {
        let problems =
            reply.problems.iter().map(|p| vec![p.path.clone(), p.reason.clone(), "-".into(), p.hint.clone()]);
        let objectives = reply.objectives.iter().map(|o| {
            let unit = if o.metric == "energy" { "J" } else { "ms" };
            let ways: Vec<String> =
                o.alternatives.iter().map(|a| format!("{} ({:.1} {unit})", a.resource, a.predicted)).collect();
            let goal = match o.kind.as_str() {
                "minimum" => format!("minimum {}", o.metric),
                _ => format!("{} <= {} {unit}", o.metric, o.bound),
            };
            let ways = if ways.is_empty() { o.reason.clone() } else { ways.join(" or ") };
            vec![o.component.clone(), goal, ways, "-".into()]
        });
        let assumptions = assumed(&reply.objectives).into_iter().map(|text| {
            vec!["-".to_owned(), "assumed".to_owned(), text, "state it in the document or by the label".to_owned()]
        });
        problems.chain(objectives).chain(assumptions).collect()
    });
    if !reply.statement.is_empty() && context.format == output::Format::Table {
        output::line(format!("\n{}", reply.statement));
    }
    Ok(ExitCode::from(u8::from(bad)))
}

/// What the alternatives of all objectives assume, each once.
fn assumed(objectives: &[Objective]) -> BTreeSet<String> {
    objectives.iter().flat_map(|o| &o.alternatives).flat_map(|a| a.assumptions.iter().cloned()).collect()
}

async fn history(context: &Context<'_>, id: String) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    let request = GetRequest { owner: context.owner.clone(), id };
    let reply = answer("read the intent's history", client.intents().await?.history(request).await)?;
    let value = to_json("continuum.intent.v1.IntentHistory", &reply);
    output::show(context.format, &value, &["version", "submitted", "verdict", "again", "problems"], || {
        let row = |v: &mesh_proto::intent::IntentVersion| {
            let again = if v.rolled_back_to == 0 { "-".to_owned() } else { format!("version {}", v.rolled_back_to) };
            let force = if v.version == reply.in_force { ", in force" } else { "" };
            let problems: Vec<&str> = v.problems.iter().map(|p| p.reason.as_str()).collect();
            let at = v.submitted_at.map(date).unwrap_or_default();
            vec![v.version.to_string(), at, format!("{}{force}", v.verdict), again, problems.join("; ")]
        };
        reply.versions.iter().map(row).collect()
    });
    Ok(ExitCode::SUCCESS)
}

async fn achieved_values(
    context: &Context<'_>,
    mut request: AchievedRequest,
    limit: usize,
) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    let mut queries = client.intents().await?;
    let mut values: Vec<AchievedValue> = vec![];
    let is_more = loop {
        request.page_size = (limit - values.len()).min(1_000) as u32;
        let page = answer("ask for achieved values", queries.achieved(request.clone()).await)?;
        values.extend(page.values);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() || values.len() >= limit {
            break !request.page_token.is_empty();
        }
    };
    let shown = values.iter().map(|value| to_json("continuum.intent.v1.AchievedValue", value)).collect();
    let header = ["period until", "target", "value", "demanded", "held", "version", "instance", "cluster"];
    output::show(context.format, &shown, &header, || values.iter().map(achieved_row).collect());
    if is_more {
        output::note(format!("these are the newest {limit}; --limit and --to show others"));
    }
    Ok(ExitCode::SUCCESS)
}

fn achieved_row(value: &AchievedValue) -> Vec<String> {
    let held = match value.held {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    };
    let demanded = match value.target_value_range.as_str() {
        "" => "-".to_owned(),
        range => format!("{} {range}", condition(&value.target_condition)),
    };
    vec![
        value.at.map(date).unwrap_or_default(),
        value.target_name.clone(),
        figure(value.value.unwrap_or_default(), &value.unit),
        demanded,
        held.to_owned(),
        value.version.to_string(),
        value.instance_id.clone(),
        value.cluster_id.clone(),
    ]
}

async fn list(context: &Context<'_>, client: &Client, state: &str) -> anyhow::Result<Shown> {
    let mut intents: Vec<IntentView> = vec![];
    let mut page_token = String::new();
    let mut queries = client.intents().await?;
    loop {
        let (owner, state) = (context.owner.clone(), state.to_uppercase());
        let request = ListRequest { owner, page_size: 1_000, page_token, state, ..ListRequest::default() };
        let page = answer("list intents", queries.list(request).await)?;
        // Of an intent that never was only refusals are known.
        intents.extend(page.intents.into_iter().filter(|view| view.version > 0));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let value = intents.iter().map(|view| to_json(VIEW, view)).collect();
    let rows = intents.iter().map(|view| {
        let since = view.since.map(date).unwrap_or_default();
        let label = view.intent.as_ref().map(|i| i.user_label.clone()).unwrap_or_default();
        let reason = view.state.as_ref().map(reason_of).unwrap_or_default();
        vec![view.intent_id.clone(), view.version.to_string(), label, name(view), since, measured(view), reason]
    });
    Ok(Shown::table(value, &["intent", "version", "label", "state", "since", "targets", "reason"], rows.collect()))
}

fn name(view: &IntentView) -> String {
    view.state.as_ref().map_or_else(|| "SUBMITTED".to_owned(), state_name)
}

fn measured(view: &IntentView) -> String {
    view.targets.iter().filter(|t| t.measured).map(target).collect::<Vec<_>>().join(", ")
}

/// What the intent's status rests on besides measurements.
fn remarks(view: &IntentView) -> Vec<String> {
    let report = view.report.as_ref().and_then(|report| report.intent_fulfilment_report.as_ref());
    let info = report.and_then(|report| report.intent_fulfilment_info.as_ref());
    info.map(|info| info.remarks.clone()).unwrap_or_default()
}

/// An intent, for people.
fn page(view: &IntentView) -> String {
    let mut text = format!("intent {} version {}: {}", view.intent_id, view.version, name(view));
    if let Some(since) = view.since {
        text.push_str(&format!(" since {}", date(since)));
    }
    if let Some(state) = &view.state {
        for (what, text_of) in [("", reason_of(state)), ("what helps: ", state.hint.clone())] {
            if !text_of.is_empty() {
                text.push_str(&format!("\n{what}{text_of}"));
            }
        }
    }
    for remark in remarks(view) {
        text.push_str(&format!("\nnote: {remark}"));
    }
    if !view.targets.is_empty() {
        let rows = view.targets.iter().map(|t| {
            let achieved = if t.measured { value(&t.target_name, t.achieved) } else { "not measured".into() };
            let source = if t.measured { output::provenance(t.provenance()) } else { "-".into() };
            let verdict = match (t.measured, t.fulfilled) {
                (false, _) => "unknown".to_owned(),
                (true, true) => "held".to_owned(),
                (true, false) => format!("missed {} period(s)", t.missed),
            };
            let condition = format!("{} {}", t.target_condition, t.bound);
            vec![t.expectation_id.clone(), t.target_name.clone(), condition, achieved, source, verdict]
        });
        let header = ["expectation", "target", "condition", "achieved", "source", "verdict"];
        text.push_str(&format!("\n\n{}", table(&header, rows.collect())));
    }
    if !view.instances.is_empty() {
        let rows = view.instances.iter().map(|i| {
            let standing = i.standing().as_str_name().trim_start_matches("INSTANCE_STANDING_").to_lowercase();
            let place = if i.cluster_id.is_empty() { "-".to_owned() } else { i.cluster_id.clone() };
            let standing = if i.standing() == InstanceStanding::Unspecified { "-".to_owned() } else { standing };
            vec![i.instance_id.clone(), i.workload.clone(), standing, place, i.generation.to_string(), i.reason.clone()]
        });
        let header = ["instance", "workload", "standing", "cluster", "generation", "reason"];
        text.push_str(&format!("\n\n{}", table(&header, rows.collect())));
    }
    text
}

/// One line at every change.
async fn follow(context: &Context<'_>, id: String) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    let request = GetRequest { owner: context.owner.clone(), id };
    let mut views = answer("watch the intent", client.intents().await?.watch(request).await)?;
    loop {
        let view = tokio::select! {
            view = views.message() => view.map_err(|status| anyhow!("watch the intent: {}", status.message()))?,
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        };
        let Some(view) = view else { return Ok(ExitCode::SUCCESS) };
        event(context.format, &to_json(VIEW, &view), || {
            let more: Vec<String> = [view.state.as_ref().map(reason_of).unwrap_or_default(), measured(&view)]
                .into_iter()
                .filter(|t| !t.is_empty())
                .collect();
            format!("{}  version {}  {:<16} {}", clock(now()), view.version, name(&view), more.join("; "))
        })?;
        let ended = |s: &State| !fulfilled(s) && s.not_fulfilled_state() == NotFulfilledState::Terminated;
        if view.state.as_ref().is_some_and(ended) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::Stored;
    use mesh_proto::{
        Event, Timestamp,
        intent::{IntentAcknowledged, IntentRejected, IntentStateChanged, IntentSubmitted, IntentUnchanged},
    };

    use super::*;

    /// Of the intent `a`.
    fn stored<E: Event + Clone>(event: &E) -> Stored {
        let mut event = event.clone();
        event.adopt_keys(&E::SUBJECT.replace("{owner}", "local").replace("{intent_id}", "a")).unwrap();
        mesh_test::stored(&event, 1, Timestamp::default())
    }

    fn state(found: NotFulfilledState) -> Option<State> {
        Some(State {
            fulfilment_status: FulfilmentStatus::NotFulfilled.into(),
            not_fulfilled_state: found.into(),
            ..State::default()
        })
    }

    fn standing(facts: &[Stored]) -> Standing {
        let mut standing = Standing::default();
        standing.fold(&facts[0]);
        standing.wanted = standing.version;
        facts[1..].iter().for_each(|f| standing.fold(f));
        standing
    }

    #[test]
    fn a_submission_waits_for_the_verdict_on_its_own_version() {
        let submitted = stored(&IntentSubmitted { version: 2, ..IntentSubmitted::default() });
        let old = stored(&IntentRejected { version: 1, ..IntentRejected::default() });
        assert!(!standing(&[submitted.clone(), old]).is_enough(Until::Accepted));
        let state = state(NotFulfilledState::Acknowledged);
        let accepted = stored(&IntentAcknowledged { version: 2, state, ..IntentAcknowledged::default() });
        let accepted = standing(&[submitted, accepted]);
        assert!(accepted.is_enough(Until::Accepted) && accepted.outcome("a", Until::Accepted).ok);
        assert!(!accepted.is_enough(Until::Fulfilled));
    }

    #[test]
    fn a_rejection_fails_with_its_paths_and_hints() {
        let submitted = stored(&IntentSubmitted { version: 1, ..IntentSubmitted::default() });
        let problems = vec![Problem { path: "a.b".into(), reason: "too large".into(), hint: "make it less".into() }];
        let rejected = stored(&IntentRejected { version: 1, problems, ..IntentRejected::default() });
        let outcome = standing(&[submitted, rejected]).outcome("a", Until::Fulfilled);
        assert_eq!((outcome.ok, outcome.result.as_str(), outcome.hint.as_str()), (false, "rejected", "make it less"));
        assert_eq!(outcome.reason, "a.b: too large");
    }

    #[test]
    fn waiting_for_fulfilment_passes_over_degraded_and_ends_at_a_failure() {
        let change = |to| stored(&IntentStateChanged { to, ..IntentStateChanged::default() });
        let accepted = stored(&IntentAcknowledged { version: 1, ..IntentAcknowledged::default() });
        let submitted = stored(&IntentSubmitted { version: 1, ..IntentSubmitted::default() });
        let facts = [submitted, accepted, change(state(NotFulfilledState::Degraded))];
        assert!(!standing(&facts).is_enough(Until::Fulfilled));
        let failed = [facts.as_slice(), &[change(state(NotFulfilledState::Fulfilmentfailed))]].concat();
        let failed = standing(&failed);
        assert!(failed.is_enough(Until::Fulfilled) && !failed.outcome("a", Until::Fulfilled).ok);
        let fulfilled = Some(State { fulfilment_status: FulfilmentStatus::Fulfilled.into(), ..State::default() });
        let held = [facts.as_slice(), &[change(fulfilled)]].concat();
        let held = standing(&held);
        assert!(held.is_enough(Until::Fulfilled) && held.outcome("a", Until::Fulfilled).ok);
    }

    #[test]
    fn submitting_what_has_ended_fails_and_says_how_to_bring_it_back() {
        let state = state(NotFulfilledState::Terminated);
        let unchanged = standing(&[stored(&IntentUnchanged { version: 1, state, ..IntentUnchanged::default() })]);
        let outcome = unchanged.outcome("a", Until::Accepted);
        assert!(unchanged.is_enough(Until::Accepted) && !outcome.ok && outcome.hint.contains("intent update"));
    }
}
