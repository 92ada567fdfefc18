//! What one cluster is to run, what it does run, and what follows from the difference.
//!
//! - Wanted comes from assignments, actual from the driver. [`Cluster::learn`] takes in an assignment without acting
//!   (history is folded so), [`Cluster::reconcile`] compares and returns actions and facts.
//! - Invariants: replicas of two generations of one instance are never started beside each other; a generation at or
//!   below a stopped one is never started; an assignment applied twice changes nothing.
//! - Time is an argument; nothing here waits, reads a clock or talks to anyone.

pub mod measure;
pub mod meter;
pub mod replica;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mesh_core::Cause;
use mesh_proto::{
    Timestamp,
    assignment::{Action as Assigned, AssignmentChanged},
    instance::{InstanceRejected, InstanceStatusChanged},
    workload::{InstancePhase, Resources, WorkloadDocument},
};
use prost::Message as _;
use serde::{Deserialize, Serialize};

use self::{
    measure::Scraped,
    replica::{Event, Fails, ReplicaId, ReplicaSpec},
};

/// Stopped instances whose generation is remembered, so that an older assignment is still refused.
const REMEMBERED_MAX: usize = 10_000;
/// Replicas of one instance at most; a document may ask for no more.
const REPLICAS_MAX: u32 = 100;

/// What the cluster has and how patient its agent is.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Thousandths of a core that requests may add up to.
    pub cpu_milli: u32,
    /// Bytes of memory that requests may add up to.
    pub memory_bytes: u64,
    /// Restarts of one replica within the window, after which its instance has failed.
    pub restarts_max: u32,
    /// The window in which restarts are counted.
    pub restart_window_ms: i64,
    /// Wait before the first restart; doubles with each.
    pub backoff_first_ms: i64,
    /// Longest wait before a restart.
    pub backoff_max_ms: i64,
    /// After so long up, the wait starts over.
    pub stable_ms: i64,
    /// A replica counts as running once it has been up so long.
    pub ready_ms: i64,
    /// Time from asking a process to end to ending it.
    pub stop_grace_ms: i64,
    /// Are documents run at all?
    pub process_documents: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            process_documents: true,
            cpu_milli: 1_000,
            memory_bytes: 1_000_000_000,
            restarts_max: 10,
            restart_window_ms: 600_000,
            backoff_first_ms: 200,
            backoff_max_ms: 30_000,
            stable_ms: 60_000,
            ready_ms: 100,
            stop_grace_ms: 3_000,
        }
    }
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Start one replica.
    Start(Box<ReplicaSpec>),
    /// End every replica of the instance up to a generation.
    Stop {
        /// Instance.
        instance_id: String,
        /// The last generation to end.
        up_to_generation: u64,
        /// Without asking: its grace is over.
        force: bool,
    },
}

/// A fact to publish.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// An instance's status changed.
    Status(InstanceStatusChanged),
    /// An assignment was not taken.
    Rejected(InstanceRejected),
}

/// A fact with the assignment that it answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What is said.
    pub fact: Fact,
    /// The assignment in force.
    pub cause: Cause,
}

/// What follows from one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// For the driver, in order.
    pub actions: Vec<Action>,
    /// For the bus, in order.
    pub said: Vec<Report>,
}

/// What shall run of one instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// Generation of the assignment.
    pub generation: u64,
    /// Replicas.
    pub replicas: u32,
    /// What to run; `None` if its bytes could not be read.
    pub document: Option<WorkloadDocument>,
}

impl Wanted {
    fn resources(&self) -> Resources {
        self.document.as_ref().and_then(|d| d.resources).unwrap_or_default()
    }
}

/// Why an instance is not tried any more.
#[derive(Clone, Debug, PartialEq)]
struct Fault {
    reason: String,
    hopeless: bool,
}

/// An assignment that was not taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Rejection {
    generation: u64,
    reason: String,
    cause: Cause,
    /// The bus has stored that it was rejected.
    known: bool,
}

/// Where one replica is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// To be started at this time.
    Waiting { until: Timestamp },
    /// The driver was told to start it.
    Starting,
    /// It runs.
    Up { since: Timestamp },
    /// It was told to end; `forced` once its grace was over.
    Ending { since: Timestamp, forced: bool },
}

#[derive(Clone, Debug, PartialEq)]
struct Replica {
    phase: Phase,
    /// Restarts since it was last stable; drives the back-off.
    attempts: u32,
    /// When it was restarted, within the window.
    restarted: VecDeque<Timestamp>,
}

impl Replica {
    fn is_ready(&self, now: Timestamp, limits: &Limits) -> bool {
        matches!(self.phase, Phase::Up { since } if now.millis_since(since) >= limits.ready_ms)
    }
}

/// What was last said of an instance, without its words.
#[derive(Clone, Debug, PartialEq)]
struct Summary {
    generation: u64,
    phase: InstancePhase,
    replicas_wanted: u32,
    restarts: u32,
    hopeless: bool,
}

/// One instance on this cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    owner: String,
    /// What shall run; `None` once it was stopped, or if it never was accepted.
    wanted: Option<Wanted>,
    /// Everything up to this generation is ended.
    stopped_to: u64,
    /// The bus has stored that it is stopped up to this generation.
    stopped_known: u64,
    rejected: Option<Rejection>,
    /// The assignment in force.
    cause: Cause,
    /// Restarts of its replicas under the assignment in force.
    restarts: u32,
    #[serde(skip)]
    replicas: BTreeMap<(u64, u32), Replica>,
    #[serde(skip)]
    fault: Option<Fault>,
    /// Why a replica is being started again.
    #[serde(skip)]
    trouble: String,
    #[serde(skip)]
    said: Option<Summary>,
    #[serde(skip)]
    said_rejected: u64,
    #[serde(skip)]
    due: Option<Timestamp>,
}

/// An instance as its samples need it.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Owner.
    pub owner: String,
    /// Generation that shall run.
    pub generation: u64,
    /// Restarts so far.
    pub restarts: u32,
    /// Replicas that run.
    pub replicas_running: u32,
    /// Where it offers its own metrics.
    pub scraped: Option<Scraped>,
}

/// One cluster: the fold of its assignments, and what the driver said since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    cluster_id: String,
    /// Sequence of the last assignment applied.
    position: u64,
    instances: BTreeMap<String, Instance>,
    /// Highest generation ended, of instances that are gone, with the position at which they went.
    gone: BTreeMap<String, (u64, u64)>,
    #[serde(skip)]
    timers: BTreeSet<(Timestamp, String)>,
}

impl Cluster {
    /// A cluster with nothing assigned.
    pub fn new(cluster_id: impl Into<String>) -> Self {
        Self { cluster_id: cluster_id.into(), ..Self::default() }
    }

    /// Its id.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Sequence of the last assignment applied.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Ids of instances that are wanted or not gone yet.
    pub fn instances(&self) -> impl Iterator<Item = &str> {
        self.instances.keys().map(String::as_str)
    }

    /// What shall run of an instance.
    pub fn wanted(&self, instance_id: &str) -> Option<&Wanted> {
        self.instances.get(instance_id)?.wanted.as_ref()
    }

    /// Restarts of an instance under the assignment in force.
    pub fn restarts(&self, instance_id: &str) -> u32 {
        self.instances.get(instance_id).map_or(0, |i| i.restarts)
    }

    /// What is to be measured: instances that shall run and have not failed.
    pub fn measured(&self, now: Timestamp, limits: &Limits) -> BTreeMap<String, Measured> {
        self.instances
            .iter()
            .filter(|(_, instance)| instance.fault.is_none())
            .filter_map(|(id, instance)| {
                let generation = instance.wanted.as_ref()?.generation;
                Some((
                    id.clone(),
                    Measured {
                        owner: instance.owner.clone(),
                        generation,
                        restarts: instance.restarts,
                        replicas_running: instance.running(generation, now, limits),
                        scraped: instance.wanted.as_ref().and_then(|w| w.document.as_ref()).and_then(Scraped::of),
                    },
                ))
            })
            .collect()
    }

    /// When [`Cluster::elapse`] wants to be called next.
    pub fn due(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes in an assignment without acting. One at or below the position, or of an older generation, changes nothing
    /// but the position. `true` if the instance changed.
    pub fn learn(&mut self, message: &AssignmentChanged, cause: &Cause, limits: &Limits) -> bool {
        if cause.sequence <= self.position || message.cluster_id != self.cluster_id {
            return false;
        }
        self.position = cause.sequence;
        let id = &message.instance_id;
        let gone_to = self.gone.get(id).map_or(0, |(generation, _)| *generation);
        let stopped_to = self.instances.get(id).map_or(gone_to, |i| i.stopped_to);
        let newest = self.instances.get(id).map_or(stopped_to, Instance::newest);
        match message.action() {
            Assigned::Run if message.generation > newest.max(stopped_to) => {
                let document = WorkloadDocument::decode(message.document.clone()).ok();
                let wanted =
                    Wanted { generation: message.generation, replicas: message.replicas.min(REPLICAS_MAX), document };
                let refusal = self.refusal(id, &wanted, limits);
                self.gone.remove(id);
                let instance = self.instances.entry(id.clone()).or_default();
                instance.owner.clone_from(&message.owner);
                instance.stopped_to = stopped_to;
                instance.stopped_known = instance.stopped_known.max(gone_to);
                if let Some(reason) = refusal {
                    let (generation, cause) = (message.generation, cause.clone());
                    instance.rejected = Some(Rejection { generation, reason, cause, known: false });
                } else {
                    instance.wanted = Some(wanted);
                    instance.rejected = None;
                    instance.cause = cause.clone();
                    instance.restarts = 0;
                    instance.fault = None;
                    instance.trouble.clear();
                }
                true
            }
            Assigned::Stop if message.generation > stopped_to => {
                let instance = self.instances.entry(id.clone()).or_default();
                if instance.wanted.as_ref().is_some_and(|w| w.generation > message.generation) {
                    return false;
                }
                self.gone.remove(id);
                instance.owner.clone_from(&message.owner);
                instance.stopped_to = message.generation;
                instance.rejected = instance.rejected.take().filter(|r| r.generation > message.generation);
                instance.wanted = None;
                instance.fault = None;
                instance.cause = cause.clone();
                true
            }
            // LEAVE: it keeps running until it is told to stop. Everything else is older than what is known.
            _ => false,
        }
    }

    /// Why this agent does not take an assignment.
    fn refusal(&self, instance_id: &str, wanted: &Wanted, limits: &Limits) -> Option<String> {
        if limits.process_documents {
            return self.over_capacity(instance_id, wanted, limits);
        }
        let reason = "this agent runs no processes: they would share its user, its key and its files; \
                      set process_documents (CLUSTER_AGENT_PROCESS_DOCUMENTS=true) if all that is submitted is trusted";
        Some(reason.to_owned())
    }

    /// What stands against taking it, if anything.
    fn over_capacity(&self, instance_id: &str, wanted: &Wanted, limits: &Limits) -> Option<String> {
        let own = self.instances.get(instance_id);
        // The same place in memory is told apart sooner than the same name.
        let others = self.instances.values().filter(|other| own.is_none_or(|own| !std::ptr::eq(*other, own)));
        let others = others.filter_map(|instance| instance.wanted.as_ref());
        let (mut cpu_milli, mut memory_bytes) = (0u64, 0u64);
        for other in others {
            let ask = other.resources();
            cpu_milli += u64::from(ask.cpu_milli) * u64::from(other.replicas);
            memory_bytes = memory_bytes.saturating_add(ask.memory_bytes.saturating_mul(u64::from(other.replicas)));
        }
        let ask = wanted.resources();
        let asks_cpu = u64::from(ask.cpu_milli) * u64::from(wanted.replicas);
        let asks_memory = ask.memory_bytes.saturating_mul(u64::from(wanted.replicas));
        let (free_cpu, free_memory) =
            (u64::from(limits.cpu_milli).saturating_sub(cpu_milli), limits.memory_bytes.saturating_sub(memory_bytes));
        if asks_cpu > free_cpu {
            Some(format!(
                "asks {asks_cpu} mCPU, {free_cpu} of {} are free here: {} short",
                limits.cpu_milli,
                asks_cpu - free_cpu
            ))
        } else if asks_memory > free_memory {
            let mb = |bytes: u64| bytes as f64 / 1e6;
            Some(format!(
                "asks {:.1} MB, {:.1} of {:.1} are free here: {:.1} short",
                mb(asks_memory),
                mb(free_memory),
                mb(limits.memory_bytes),
                mb(asks_memory - free_memory)
            ))
        } else {
            None
        }
    }

    /// Compares wanted with actual for one instance.
    pub fn reconcile(&mut self, instance_id: &str, now: Timestamp, limits: &Limits) -> Outcome {
        let mut outcome = Outcome::default();
        self.reconcile_one(instance_id, now, limits, &mut outcome);
        outcome
    }

    /// Compares wanted with actual for every instance.
    pub fn reconcile_all(&mut self, now: Timestamp, limits: &Limits) -> Outcome {
        let mut outcome = Outcome::default();
        for id in self.instances.keys().cloned().collect::<Vec<_>>() {
            self.reconcile_one(&id, now, limits, &mut outcome);
        }
        outcome
    }

    /// Time has passed: what was due is done.
    pub fn elapse(&mut self, now: Timestamp, limits: &Limits) -> Outcome {
        let mut outcome = Outcome::default();
        while self.due().is_some_and(|at| at <= now) {
            let Some((_, id)) = self.timers.pop_first() else { break };
            if let Some(instance) = self.instances.get_mut(&id) {
                instance.due = None;
            }
            self.reconcile_one(&id, now, limits, &mut outcome);
        }
        outcome
    }

    /// Takes in what the driver says.
    pub fn happened(&mut self, event: &Event, now: Timestamp, limits: &Limits) -> Outcome {
        let mut outcome = Outcome::default();
        let (Event::Started { id } | Event::StartFailed { id, .. } | Event::Exited { id, .. }) = event else {
            return outcome;
        };
        let Some(instance) = self.instances.get_mut(&id.instance_id) else { return outcome };
        let key = (id.generation, id.replica);
        let Some(replica) = instance.replicas.get_mut(&key) else { return outcome };
        match (replica.phase, event) {
            (Phase::Starting, Event::Started { .. }) => replica.phase = Phase::Up { since: now },
            (Phase::Ending { .. }, Event::StartFailed { .. } | Event::Exited { .. }) => {
                instance.replicas.remove(&key);
            }
            (Phase::Starting, Event::StartFailed { reason, fails: fails @ (Fails::Here | Fails::Anywhere), .. }) => {
                instance.replicas.remove(&key);
                instance.fault = Some(Fault { reason: reason.clone(), hopeless: *fails == Fails::Anywhere });
            }
            (Phase::Starting, Event::StartFailed { reason, .. })
            | (Phase::Starting | Phase::Up { .. }, Event::Exited { reason, .. }) => {
                instance.went_down(key, reason, now, limits);
            }
            _ => return outcome,
        }
        self.reconcile_one(&id.instance_id, now, limits, &mut outcome);
        outcome
    }

    /// The bus has stored that this generation was rejected: it need not be said again after a restart.
    pub fn rejection_is_known(&mut self, instance_id: &str, generation: u64) {
        let rejected = self.instances.get_mut(instance_id).and_then(|i| i.rejected.as_mut());
        if let Some(rejected) = rejected.filter(|r| r.generation == generation) {
            rejected.known = true;
        }
    }

    /// The bus has stored that the instance is stopped up to this generation: only the generation is remembered.
    pub fn stopped_is_known(&mut self, instance_id: &str, generation: u64) {
        let Some(instance) = self.instances.get_mut(instance_id) else { return };
        instance.stopped_known = instance.stopped_known.max(generation);
        let over = instance.wanted.is_none()
            && instance.replicas.is_empty()
            && instance.rejected.is_none()
            && instance.stopped_to <= generation;
        if !over {
            return;
        }
        self.gone.insert(instance_id.to_owned(), (instance.stopped_to, self.position));
        if let Some(at) = self.instances.remove(instance_id).and_then(|i| i.due) {
            self.timers.remove(&(at, instance_id.to_owned()));
        }
        if self.gone.len() > 2 * REMEMBERED_MAX {
            let mut positions: Vec<u64> = self.gone.values().map(|(_, position)| *position).collect();
            positions.sort_unstable();
            let oldest = positions[positions.len() - REMEMBERED_MAX];
            self.gone.retain(|_, (_, position)| *position >= oldest);
        }
    }

    fn reconcile_one(&mut self, id: &str, now: Timestamp, limits: &Limits, outcome: &mut Outcome) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        instance.act(id, now, limits, outcome);
        instance.publish(&self.cluster_id, id, now, limits, outcome);
        let due = instance.next(limits, now);
        if due != instance.due {
            if let Some(old) = instance.due {
                self.timers.remove(&(old, id.to_owned()));
            }
            if let Some(new) = due {
                self.timers.insert((new, id.to_owned()));
            }
            instance.due = due;
        }
    }
}

impl Instance {
    /// The newest generation heard of.
    fn newest(&self) -> u64 {
        let wanted = self.wanted.as_ref().map_or(0, |w| w.generation);
        let rejected = self.rejected.as_ref().map_or(0, |r| r.generation);
        wanted.max(rejected).max(self.stopped_to)
    }

    fn running(&self, generation: u64, now: Timestamp, limits: &Limits) -> u32 {
        self.replicas.iter().filter(|((g, _), r)| *g == generation && r.is_ready(now, limits)).count() as u32
    }

    fn went_down(&mut self, key: (u64, u32), reason: &str, now: Timestamp, limits: &Limits) {
        let Some(replica) = self.replicas.get_mut(&key) else { return };
        if matches!(replica.phase, Phase::Up { since } if now.millis_since(since) >= limits.stable_ms) {
            replica.attempts = 0;
        }
        while replica.restarted.front().is_some_and(|at| now.millis_since(*at) > limits.restart_window_ms) {
            replica.restarted.pop_front();
        }
        if replica.restarted.len() >= limits.restarts_max as usize {
            let (used, window) = (replica.restarted.len(), limits.restart_window_ms / 1_000);
            self.replicas.remove(&key);
            let reason = format!("{reason}; restarts used up: {used} within {window} s");
            self.fault = Some(Fault { reason, hopeless: false });
            return;
        }
        let wait_ms = backoff_ms(replica.attempts, limits);
        replica.attempts += 1;
        replica.restarted.push_back(now);
        replica.phase = Phase::Waiting { until: now.plus_millis(wait_ms) };
        self.restarts += 1;
        self.trouble = format!("{reason}; restart {} after {:.1} s", self.restarts, wait_ms as f64 / 1e3);
    }

    fn act(&mut self, id: &str, now: Timestamp, limits: &Limits, outcome: &mut Outcome) {
        let keep = self.wanted.as_ref().filter(|_| self.fault.is_none()).map(|w| w.generation);
        let (mut ask, mut force) = (None, None);
        self.replicas.retain(|(generation, _), replica| {
            if Some(*generation) == keep {
                return true;
            }
            match replica.phase {
                Phase::Waiting { .. } => return false,
                Phase::Starting | Phase::Up { .. } => {
                    replica.phase = Phase::Ending { since: now, forced: false };
                    ask = ask.max(Some(*generation));
                }
                Phase::Ending { since, forced: false } if now.millis_since(since) >= limits.stop_grace_ms => {
                    replica.phase = Phase::Ending { since, forced: true };
                    force = force.max(Some(*generation));
                }
                Phase::Ending { .. } => {}
            }
            true
        });
        for (up_to, force) in [(ask, false), (force, true)] {
            if let Some(up_to_generation) = up_to {
                outcome.actions.push(Action::Stop { instance_id: id.to_owned(), up_to_generation, force });
            }
        }
        let Some(wanted) = self.wanted.as_ref().filter(|_| self.fault.is_none()) else { return };
        let document = match runnable(wanted) {
            Ok(document) => document,
            Err(reason) => {
                self.fault = Some(Fault { reason, hopeless: true });
                return;
            }
        };
        // A newer generation starts when the older has ended.
        if self.replicas.keys().any(|(generation, _)| *generation != wanted.generation) {
            return;
        }
        for number in 0..wanted.replicas {
            let fresh = Replica { phase: Phase::Waiting { until: now }, attempts: 0, restarted: VecDeque::new() };
            let replica = self.replicas.entry((wanted.generation, number)).or_insert(fresh);
            if matches!(replica.phase, Phase::Waiting { until } if until <= now) {
                replica.phase = Phase::Starting;
                outcome.actions.push(Action::Start(Box::new(ReplicaSpec {
                    id: ReplicaId { instance_id: id.to_owned(), generation: wanted.generation, replica: number },
                    owner: self.owner.clone(),
                    workload: document.name.clone(),
                    process: document.process.clone().unwrap_or_default(),
                    resources: document.resources.unwrap_or_default(),
                })));
            }
        }
    }

    /// Says what has changed since it last spoke.
    fn publish(&mut self, cluster_id: &str, id: &str, now: Timestamp, limits: &Limits, outcome: &mut Outcome) {
        if let Some(rejected) = self.rejected.as_ref().filter(|r| !r.known && r.generation > self.said_rejected) {
            self.said_rejected = rejected.generation;
            outcome.said.push(Report {
                fact: Fact::Rejected(InstanceRejected {
                    cluster_id: cluster_id.to_owned(),
                    instance_id: id.to_owned(),
                    owner: self.owner.clone(),
                    generation: rejected.generation,
                    reason: rejected.reason.clone(),
                }),
                cause: rejected.cause.clone(),
            });
        }
        let Some((phase, reason)) = self.status(now, limits) else { return };
        let (generation, replicas_wanted) =
            self.wanted.as_ref().map_or((self.stopped_to, 0), |w| (w.generation, w.replicas));
        let summary = Summary {
            generation,
            phase,
            replicas_wanted,
            restarts: self.restarts,
            hopeless: self.fault.as_ref().is_some_and(|f| f.hopeless),
        };
        if self.said.as_ref() == Some(&summary) {
            return;
        }
        outcome.said.push(Report {
            fact: Fact::Status(InstanceStatusChanged {
                cluster_id: cluster_id.to_owned(),
                instance_id: id.to_owned(),
                owner: self.owner.clone(),
                generation,
                phase: phase.into(),
                replicas_wanted,
                replicas_running: self.running(generation, now, limits),
                restarts: self.restarts,
                reason,
                hopeless: summary.hopeless,
                at: Some(now),
            }),
            cause: self.cause.clone(),
        });
        self.said = Some(summary);
    }

    /// Its phase and why; `None` while there is nothing to say yet.
    fn status(&self, now: Timestamp, limits: &Limits) -> Option<(InstancePhase, String)> {
        let Some(wanted) = &self.wanted else {
            let ended = self.replicas.is_empty() && self.stopped_to > self.stopped_known;
            return ended.then(|| (InstancePhase::Stopped, "stopped as assigned".to_owned()));
        };
        if let Some(fault) = &self.fault {
            return Some((InstancePhase::Failed, fault.reason.clone()));
        }
        if let Some((older, _)) = self.replicas.keys().find(|(generation, _)| *generation != wanted.generation) {
            return Some((InstancePhase::Starting, format!("waiting for generation {older} to end")));
        }
        let mut mine = self.replicas.values();
        if mine.clone().filter(|r| r.is_ready(now, limits)).count() == wanted.replicas as usize {
            return Some((InstancePhase::Running, String::new()));
        }
        if mine.any(|r| r.attempts > 0 && !r.is_ready(now, limits)) {
            return Some((InstancePhase::Restarting, self.trouble.clone()));
        }
        Some((InstancePhase::Starting, String::new()))
    }

    /// When something will have to be done or said.
    fn next(&self, limits: &Limits, now: Timestamp) -> Option<Timestamp> {
        self.replicas
            .values()
            .filter_map(|replica| match replica.phase {
                Phase::Waiting { until } => Some(until),
                Phase::Up { since } => Some(since.plus_millis(limits.ready_ms)).filter(|at| *at > now),
                Phase::Ending { since, forced: false } => Some(since.plus_millis(limits.stop_grace_ms)),
                Phase::Starting | Phase::Ending { .. } => None,
            })
            .min()
    }
}

/// The document, if this agent can run it.
fn runnable(wanted: &Wanted) -> Result<&WorkloadDocument, String> {
    let document = wanted.document.as_ref().ok_or("the workload document cannot be read")?;
    if document.kind != "process" {
        return Err(format!("workload kind {:?} cannot run here, only \"process\" can", document.kind));
    }
    if document.process.as_ref().is_none_or(|p| p.command.is_empty()) {
        return Err("the workload document names no command".to_owned());
    }
    Ok(document)
}

/// Wait before a restart, by the number of restarts before it.
fn backoff_ms(attempts: u32, limits: &Limits) -> i64 {
    limits.backoff_first_ms.saturating_mul(1i64 << attempts.min(40)).min(limits.backoff_max_ms)
}

#[cfg(test)]
mod tests;
