//! Makes the calls of accepted intents, and undoes them when they are withdrawn.
//!
//! It follows NETWORK: what is under way there is done, also after a restart, so every call may be made more than once.
//! One job of an intent at a time, some intents at once. If a call fails, those before it are undone in reverse.

#![expect(clippy::disallowed_methods, reason = "measures how long a call takes")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use mesh_core::{Outgoing, Stored};
use mesh_kit::Mesh;
use mesh_proto::{
    Event as _, derived_id,
    intent::IntentAcknowledged,
    network::{
        CallResult, Connectivity, ConnectivityChanged, NetworkAccepted, ReportConnectivity, SubmitNetworkIntent,
    },
};
use tokio::task::JoinSet;

use crate::{
    domain::{
        intents::{Call as Planned, Catalogue, parse},
        networks::document_of,
    },
    shell::adaptors::{Adaptor, Call},
};

/// Intents that are carried out at once.
const JOBS_MAX: usize = 8;
/// Longest time of a call.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// Before a report that was not stored is given again.
const RETRY: Duration = Duration::from_secs(1);

type Key = (String, String);

/// Carries intents out.
pub(crate) struct Executor {
    mesh: Mesh,
    catalogue: Arc<Catalogue>,
    adaptors: Arc<Vec<Box<dyn Adaptor>>>,
    under_way: BTreeMap<Key, (NetworkAccepted, Connectivity)>,
    running: BTreeSet<Key>,
    /// What was done last of each: its own fact may be read later than it is stored, and nothing is done twice for that.
    done: BTreeMap<Key, (u64, Connectivity)>,
}

impl Executor {
    pub(crate) fn new(mesh: Mesh, catalogue: Arc<Catalogue>, adaptors: Vec<Box<dyn Adaptor>>) -> Self {
        let (under_way, running, done) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Self { mesh, catalogue, adaptors: Arc::new(adaptors), under_way, running, done }
    }

    /// Works until the process stops.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let log = self.mesh.bus().log(NetworkAccepted::STREAM);
        let mut follower = self.mesh.follow(NetworkAccepted::STREAM, 1);
        let end = log.last_sequence().await.context("read end of NETWORK")?;
        let stopping = self.mesh.stopping();
        let mut jobs: JoinSet<(Key, u64, Connectivity)> = JoinSet::new();
        loop {
            // Not before the past is known: what was under way may have ended since.
            if follower.position() >= end {
                self.begin(&mut jobs);
            }
            tokio::select! {
                stored = follower.next() => self.learn(&*stored.context("follow NETWORK")?),
                Some(done) = jobs.join_next() => {
                    if let Ok((key, version, phase)) = done {
                        self.running.remove(&key);
                        self.done.insert(key, (version, phase));
                    }
                }
                () = stopping.cancelled() => return Ok(()),
            }
        }
    }

    fn learn(&mut self, stored: &Stored) {
        if let Ok(Some(accepted)) = stored.event::<NetworkAccepted>() {
            let key = (accepted.owner.clone(), accepted.network_id.clone());
            self.under_way.insert(key, (accepted, Connectivity::Executing));
        } else if let Ok(Some(changed)) = stored.event::<ConnectivityChanged>() {
            let key = (changed.owner.clone(), changed.network_id.clone());
            if let Some((_, phase)) = self.under_way.get_mut(&key) {
                *phase = changed.phase();
            }
            if changed.phase() == Connectivity::Withdrawn {
                self.done.remove(&key);
                self.under_way.remove(&key);
            }
        }
    }

    fn begin(&mut self, jobs: &mut JoinSet<(Key, u64, Connectivity)>) {
        for (key, (accepted, phase)) in &self.under_way {
            if jobs.len() >= JOBS_MAX {
                return;
            }
            let due = matches!(phase, Connectivity::Executing | Connectivity::Withdrawing)
                && self.done.get(key) != Some(&(accepted.version, *phase));
            if !due || !self.running.insert(key.clone()) {
                continue;
            }
            let (mesh, catalogue, adaptors) = (self.mesh.clone(), self.catalogue.clone(), self.adaptors.clone());
            let (key, accepted, phase) = (key.clone(), accepted.clone(), *phase);
            jobs.spawn(async move {
                let report = carry_out(&mesh, &catalogue, &adaptors, &accepted, phase).await;
                tell(&mesh, &report).await;
                (key, accepted.version, phase)
            });
        }
    }
}

/// Publishes a report until it is stored or the process stops.
async fn tell(mesh: &Mesh, report: &ReportConnectivity) {
    let stopping = mesh.stopping();
    let id = derived_id(&[
        "report",
        &report.owner,
        &report.network_id,
        &report.version.to_string(),
        &report.phase.to_string(),
        &mesh.now().to_string(),
    ]);
    loop {
        let published = match Outgoing::new(report, id.clone(), mesh.now()) {
            Ok(message) => mesh.bus().publish(&message).await.map(|_| ()).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let Err(error) = published else { break };
        tracing::warn!(error, network = report.network_id, "connectivity not reported yet");
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stopping.cancelled() => return,
        }
    }
}

async fn carry_out(
    mesh: &Mesh,
    catalogue: &Catalogue,
    adaptors: &[Box<dyn Adaptor>],
    accepted: &NetworkAccepted,
    phase: Connectivity,
) -> ReportConnectivity {
    let begun = Instant::now();
    let mut report = ReportConnectivity {
        owner: accepted.owner.clone(),
        network_id: accepted.network_id.clone(),
        version: accepted.version,
        phase: Connectivity::NotConnected.into(),
        ..Default::default()
    };
    let withdraws = phase == Connectivity::Withdrawing;
    // The secrets are in the command. What is undone needs none, so the redacted intent does if the command is gone.
    let text = match source(mesh, accepted).await {
        Some(text) => text,
        None if withdraws => accepted.intent.clone(),
        None => {
            report.reason = "the command with its secrets is not kept any more".into();
            report.hint = "submit the intent again".into();
            return report;
        }
    };
    let plan = match parse(&text).and_then(|intent| catalogue.plan(&intent)) {
        Ok(plan) => plan,
        Err(refusal) => {
            (report.reason, report.hint) = (refusal.reason, refusal.hint);
            return report;
        }
    };
    let calls: Vec<Planned> = plan.calls.into_iter().map(|(_, call)| call).collect();
    let id = format!("{}/{}", accepted.owner, accepted.network_id);
    let (results, failed) =
        if withdraws { undo(adaptors, &id, &calls).await } else { make(adaptors, &id, &calls).await };
    report.results = results;
    report.took_ms = begun.elapsed().as_secs_f64() * 1e3;
    let done = if withdraws { Connectivity::Withdrawn } else { Connectivity::Connected };
    match failed {
        None => report.phase = done.into(),
        Some((reason, hint)) => (report.reason, report.hint) = (reason, hint),
    }
    report
}

/// The intent with its secrets, where it was given.
async fn source(mesh: &Mesh, accepted: &NetworkAccepted) -> Option<String> {
    let stream = if accepted.of_intent { IntentAcknowledged::STREAM } else { SubmitNetworkIntent::STREAM };
    let stored = mesh.bus().log(stream).get(accepted.command_sequence).await.ok().flatten()?;
    match accepted.of_intent {
        true => document_of(&stored.event::<IntentAcknowledged>().ok().flatten()?),
        false => Some(stored.event::<SubmitNetworkIntent>().ok().flatten()?.intent),
    }
}

type Failed = Option<(String, String)>;

/// Makes the calls in order; if one fails, undoes those before it.
async fn make(adaptors: &[Box<dyn Adaptor>], id: &str, calls: &[Planned]) -> (Vec<CallResult>, Failed) {
    let mut results = vec![];
    for (position, call) in calls.iter().enumerate() {
        let (result, failed) = one(adaptors, id, call, &call.operation, &call.body).await;
        results.push(result);
        if let Some(failed) = failed {
            let (undone, _) = undo(adaptors, id, calls.get(..position).unwrap_or_default()).await;
            results.extend(undone);
            return (results, Some(failed));
        }
    }
    (results, None)
}

/// Undoes calls in reverse; goes on after a failure, and tells the first.
async fn undo(adaptors: &[Box<dyn Adaptor>], id: &str, calls: &[Planned]) -> (Vec<CallResult>, Failed) {
    let (mut results, mut first) = (vec![], None);
    for call in calls.iter().rev() {
        match &call.undo {
            Some((operation, body)) => {
                let (result, failed) = one(adaptors, id, call, operation, body).await;
                results.push(result);
                first = first.or(failed);
            }
            None if call.executioner == "sys_out" => {}
            None => results.push(CallResult {
                executioner: call.executioner.clone(),
                operation: "nothing".into(),
                target: call.target.clone(),
                done: true,
                detail: "this technology's calls cannot be undone from here; remove it there".into(),
                took_ms: 0.0,
            }),
        }
    }
    (results, first)
}

async fn one(
    adaptors: &[Box<dyn Adaptor>],
    id: &str,
    call: &Planned,
    operation: &str,
    body: &serde_json::Value,
) -> (CallResult, Failed) {
    let begun = Instant::now();
    let order = Call { id, operation, target: &call.target, body };
    let made = match adaptors.iter().find(|e| e.name() == call.executioner) {
        Some(adaptor) => match tokio::time::timeout(CALL_LIMIT, adaptor.call(&order)).await {
            Ok(made) => made.map_err(|error| (error.to_string(), error.hint())),
            Err(_) => {
                Err((format!("no answer within {} s", CALL_LIMIT.as_secs()), "see whether it is reachable".into()))
            }
        },
        None => {
            Err((format!("adaptor {:?} is not installed", call.executioner), "install it, or another library".into()))
        }
    };
    let (detail, failed) = match made {
        Ok(detail) => (detail, None),
        Err((reason, hint)) => {
            (reason.clone(), Some((format!("{} {operation} {}: {reason}", call.executioner, call.target), hint)))
        }
    };
    let result = CallResult {
        executioner: call.executioner.clone(),
        operation: operation.to_owned(),
        target: call.target.clone(),
        done: failed.is_none(),
        detail,
        took_ms: begun.elapsed().as_secs_f64() * 1e3,
    };
    (result, failed)
}
