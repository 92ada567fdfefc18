//! The life of one intent: what each input makes of it.
//!
//! What holds:
//! - a state follows another only along a row of the state table ([`Row`]); a decision that leads further writes one
//!   fact per row;
//! - every command is answered by one fact that names it, or refused with the state and a cure;
//! - an observation counts only for the version in force, for the placement that runs now, and for a period that began
//!   after the instance did; each period counts once;
//! - a missing measurement degrades, and never asks for a remedy.

mod definition;
mod row;
#[cfg(test)]
pub(crate) mod tests;

use bytes::Bytes;
use mesh_kit::{Asked, Decider, Key, What};
use mesh_proto::{
    Refusal, Timestamp,
    deciders::intents::{Fact, Input},
    derived_id,
    intent::{
        GovernedInstance, InstanceStanding, Intent, IntentAcknowledged, IntentRejected, IntentRemedyWanted,
        IntentStateChanged, IntentSubmitted, IntentUnchanged, Problem, State, TargetState,
    },
    is_key,
    observation::TargetObserved,
    placement::PlacementUnplaced,
    validation::FeasibilityChanged,
    wire,
    workload::{InstanceChanged, InstancePhase, InstanceUnavailable},
};
use prost::Message as _;
use serde::{Deserialize, Serialize};

pub use self::{
    definition::{Condition, Definition, Target},
    row::Row,
};

/// Missed periods in a row that degrade an intent and ask for a remedy.
pub const MISSED_MAX: u32 = 2;
/// Periods in a row without a measurement that degrade an intent.
pub const UNMEASURED_MAX: u32 = 3;

/// Decides the life cycle of every intent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Intents;

/// One intent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entity {
    /// The last version that was submitted; `None` if none ever was.
    pub submission: Option<Submission>,
    /// What it is.
    pub life: Life,
    /// What it is, as people are told.
    pub state: State,
    /// When that state began.
    pub since: Timestamp,
}

/// A submitted version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    /// As submitted, without owner, id and command.
    pub content: IntentSubmitted,
    /// What the validator said of it.
    pub verdict: Verdict,
}

/// What became of a submitted version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Not judged yet.
    Awaited,
    /// It came into force.
    Accepted,
    /// It did not.
    Rejected,
    /// The intent was terminated before it was judged.
    Dropped,
}

/// What an intent is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Life {
    /// No version is in force, none was rejected.
    #[default]
    Submitted,
    /// No version was ever in force, and the last judged one was rejected.
    Rejected,
    /// A version is in force.
    InForce(InForce),
    /// Ended; an accepted update makes it live again.
    Terminated(Ended),
}

/// A version in force, and how it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InForce {
    /// The version.
    pub version: u64,
    /// Its targets, in document order.
    pub targets: Vec<Target>,
    /// One instance for each expectation, in document order.
    pub instances: Vec<Instance>,
    /// Why no registered cluster is large enough; empty while one is.
    pub infeasible: String,
    /// Is it not to be watched?
    pub suspended: bool,
}

/// What an ended intent leaves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// The version that was in force; 0 for none.
    pub version: u64,
    /// Its instances.
    pub instances: Vec<Instance>,
}

/// One expectation's instance, as far as the intent has heard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Instance {
    /// Expectation that it belongs to.
    pub expectation: String,
    /// Its id.
    pub id: String,
    /// Workload document to run, `name@version`; empty when an existing instance is governed.
    pub workload: String,
    /// Where it is in its life.
    pub standing: Standing,
    /// Cluster it was last heard of on.
    pub cluster: String,
    /// Generation of its placement there.
    pub generation: u64,
    /// Cluster that it is moving to; empty when it is not moving.
    pub to_cluster: String,
    /// What was said about its standing.
    pub reason: String,
    /// What a person can do about it.
    pub cure: String,
    /// Periods that begin earlier do not judge it; `None` unless it runs.
    pub running_since: Option<Timestamp>,
    /// Why no other cluster would do; empty while a remedy may come.
    pub stuck: String,
}

/// Where an instance is in its life, as its intent sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Nothing was heard of it yet.
    #[default]
    Unheard,
    /// It cannot be made.
    Unavailable,
    /// Wanted, no cluster chosen.
    Pending,
    /// No cluster can take it.
    Unplaced,
    /// A cluster is chosen.
    Assigned,
    /// It is being started.
    Starting,
    /// All wanted replicas run.
    Running,
    /// Down and being started again.
    Restarting,
    /// Failed where it was.
    Failed,
    /// Would fail anywhere.
    Hopeless,
    /// Stopped.
    Stopped,
    /// Its cluster is lost.
    Lost,
}

impl Standing {
    const ALL: [(Self, InstanceStanding); 12] = [
        (Self::Unheard, InstanceStanding::Unspecified),
        (Self::Unavailable, InstanceStanding::Unavailable),
        (Self::Pending, InstanceStanding::Pending),
        (Self::Unplaced, InstanceStanding::Unplaced),
        (Self::Assigned, InstanceStanding::Assigned),
        (Self::Starting, InstanceStanding::Starting),
        (Self::Running, InstanceStanding::Running),
        (Self::Restarting, InstanceStanding::Restarting),
        (Self::Failed, InstanceStanding::Failed),
        (Self::Hopeless, InstanceStanding::Hopeless),
        (Self::Stopped, InstanceStanding::Stopped),
        (Self::Lost, InstanceStanding::Lost),
    ];

    /// What a report about an instance says; `None` if it says nothing about its phase.
    fn reported(report: &InstanceChanged) -> Option<Self> {
        let unplaced = report.event.as_ref().is_some_and(|event| event.r#type == "unplaced");
        Some(match report.phase() {
            InstancePhase::Unspecified => return None,
            InstancePhase::Pending if unplaced => Self::Unplaced,
            InstancePhase::Pending => Self::Pending,
            InstancePhase::Assigned => Self::Assigned,
            InstancePhase::Starting => Self::Starting,
            InstancePhase::Running => Self::Running,
            InstancePhase::Restarting => Self::Restarting,
            InstancePhase::Failed if report.hopeless => Self::Hopeless,
            InstancePhase::Failed => Self::Failed,
            InstancePhase::Stopped => Self::Stopped,
            InstancePhase::Lost => Self::Lost,
        })
    }
}

impl From<Standing> for InstanceStanding {
    fn from(standing: Standing) -> Self {
        Standing::ALL.into_iter().find(|(own, _)| *own == standing).map_or(Self::Unspecified, |(_, told)| told)
    }
}

impl From<InstanceStanding> for Standing {
    fn from(told: InstanceStanding) -> Self {
        Standing::ALL.into_iter().find(|(_, other)| *other == told).map_or(Self::Unheard, |(own, _)| own)
    }
}

impl Instance {
    /// As facts carry it.
    pub fn to_fact(&self) -> GovernedInstance {
        GovernedInstance {
            expectation_id: self.expectation.clone(),
            instance_id: self.id.clone(),
            workload: self.workload.clone(),
            standing: InstanceStanding::from(self.standing).into(),
            cluster_id: self.cluster.clone(),
            generation: self.generation,
            reason: self.reason.clone(),
            cure: self.cure.clone(),
            running_since: self.running_since,
            stuck: self.stuck.clone(),
            to_cluster_id: self.to_cluster.clone(),
        }
    }

    fn from_fact(fact: &GovernedInstance) -> Self {
        Self {
            expectation: fact.expectation_id.clone(),
            id: fact.instance_id.clone(),
            workload: fact.workload.clone(),
            standing: fact.standing().into(),
            cluster: fact.cluster_id.clone(),
            generation: fact.generation,
            to_cluster: fact.to_cluster_id.clone(),
            reason: fact.reason.clone(),
            cure: fact.cure.clone(),
            running_since: fact.running_since,
            stuck: fact.stuck.clone(),
        }
    }

    /// Makes it an instance that runs there since then, with nothing known against it.
    fn run(&mut self, cluster: &str, generation: u64, since: Timestamp) {
        self.standing = Standing::Running;
        self.cluster = cluster.to_owned();
        self.generation = generation;
        self.running_since = Some(since);
        self.reason.clear();
        self.cure.clear();
        self.stuck.clear();
        self.to_cluster.clear();
    }
}

impl Submission {
    fn version(&self) -> u64 {
        self.content.version
    }

    /// Is this the same content? Other bytes for the same values are; fields that this version does not know are not
    /// overlooked.
    fn same(&self, document: &Bytes) -> bool {
        if self.content.document == *document {
            return true;
        }
        let known = |bytes: &Bytes| Intent::decode(bytes.clone()).ok().filter(|i| i.encoded_len() == bytes.len());
        matches!((known(&self.content.document), known(document)), (Some(a), Some(b)) if a == b)
    }
}

impl InForce {
    /// A version that has just come into force.
    fn new(version: u64, definition: Definition, instances: Vec<Instance>) -> Self {
        Self { version, targets: definition.targets, instances, infeasible: String::new(), suspended: false }
    }

    /// The state of one expectation alone: the intent's is the worst of them.
    pub(crate) fn state_of(&self, instance: &Instance, intent: Row) -> State {
        if matches!(intent, Row::Submitted | Row::Terminated) {
            return intent.state("", "", "");
        }
        let targets = self.targets.iter().filter(|t| t.expectation == instance.expectation).cloned().collect();
        let alone = Self { targets, instances: vec![instance.clone()], ..self.clone() };
        let mut row = intent;
        loop {
            let next = row::step(&alone, row);
            if next == row {
                return row::describe(&alone, row).state;
            }
            row = next;
        }
    }

    fn reset_targets(&mut self, expectation: &str) {
        self.targets.iter_mut().filter(|t| t.expectation == expectation).for_each(Target::reset);
    }

    /// Is this news against an earlier standing of the same version?
    fn differs(&self, before: &Self) -> bool {
        self.instances != before.instances
            || self.infeasible != before.infeasible
            || self.suspended != before.suspended
            || self.targets.iter().zip(&before.targets).any(|(now, then)| now.differs(then))
    }

    fn adopt_targets(&mut self, told: &[TargetState]) {
        for target in &mut self.targets {
            let found = told.iter().find(|t| t.expectation_id == target.expectation && t.target_name == target.name);
            if let Some(found) = found {
                target.adopt(found);
            }
        }
    }
}

impl Entity {
    /// Its row in the state table.
    pub fn row(&self) -> Row {
        Row::of(&self.state)
    }

    /// The version in force, if one is.
    pub fn in_force(&self) -> Option<&InForce> {
        match &self.life {
            Life::InForce(in_force) => Some(in_force),
            _ => None,
        }
    }

    /// The version that a verdict is awaited on.
    pub fn awaited(&self) -> Option<u64> {
        self.submission.as_ref().filter(|s| s.verdict == Verdict::Awaited).map(Submission::version)
    }

    /// Version that a fact about it names: the one in force, else the last submitted.
    pub fn version(&self) -> u64 {
        match &self.life {
            Life::InForce(in_force) => in_force.version,
            Life::Terminated(ended) if ended.version > 0 => ended.version,
            _ => self.submission.as_ref().map_or(0, Submission::version),
        }
    }

    /// Its instances.
    pub fn instances(&self) -> &[Instance] {
        match &self.life {
            Life::InForce(in_force) => &in_force.instances,
            Life::Terminated(ended) => &ended.instances,
            Life::Submitted | Life::Rejected => &[],
        }
    }

    fn settle(&mut self, verdict: Verdict) {
        if let Some(submission) = &mut self.submission {
            submission.verdict = verdict;
        }
    }

    fn tell(&mut self, state: State, at: Timestamp) {
        if Row::of(&state) != self.row() {
            self.since = at;
        }
        self.state = state;
    }

    /// What must hold of every entity that facts lead to.
    fn check(&self) {
        let row = self.row();
        debug_assert!(self.submission.is_some() || (self.life == Life::Submitted && row == Row::Submitted));
        debug_assert!(match &self.life {
            Life::Submitted => row == Row::Submitted,
            Life::Rejected => row == Row::Failed,
            Life::InForce(in_force) =>
                !matches!(row, Row::Submitted | Row::Terminated) && in_force.suspended == (row == Row::Suspended),
            Life::Terminated(_) => row == Row::Terminated,
        });
        debug_assert!(self.submission.is_none() || !self.state.reason.is_empty());
    }
}

impl Decider for Intents {
    const NAME: &'static str = mesh_proto::deciders::intents::NAME;
    type State = Entity;
    type World = ();
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> Entity {
        Entity::default()
    }

    fn concerns(&self, input: &Input, _: &()) -> Vec<Key> {
        let (owner, ids): (&str, Vec<&str>) = match input {
            Input::SubmitIntent(m) => (&m.owner, vec![&m.intent_id]),
            Input::UpdateIntent(m) => (&m.owner, vec![&m.intent_id]),
            Input::SuspendIntent(m) => (&m.owner, vec![&m.intent_id]),
            Input::ResumeIntent(m) => (&m.owner, vec![&m.intent_id]),
            Input::TerminateIntent(m) => (&m.owner, vec![&m.intent_id]),
            Input::IntentAccepted(m) => (&m.owner, vec![&m.intent_id]),
            Input::IntentRejected(m) => (&m.owner, vec![&m.intent_id]),
            Input::FeasibilityChanged(m) => (&m.owner, vec![&m.intent_id]),
            Input::InstanceChanged(m) => {
                (&m.owner, m.governed_by.iter().chain([&m.intent_id]).map(String::as_str).collect())
            }
            Input::InstanceUnavailable(m) => (&m.owner, vec![&m.intent_id]),
            Input::PlacementUnplaced(m) => (&m.owner, vec![&m.intent_id]),
            Input::TargetObserved(m) => (&m.owner, vec![&m.intent_id]),
        };
        // An instance without an intent names none; whose key is none has no intent.
        ids.into_iter().filter(|id| is_key(owner) && is_key(id)).map(|id| Key::new([owner, id])).collect()
    }

    fn decide(&self, key: &Key, entity: &Entity, _: &(), asked: &Asked<Input>) -> Result<Vec<Fact>, Refusal> {
        let What::Event(input) = &asked.what else { return Ok(vec![]) };
        let case = Case { key, entity, at: asked.at, id: &asked.id, body: &asked.body };
        match input {
            Input::SubmitIntent(_) => case.submit(),
            Input::UpdateIntent(_) => case.update(),
            Input::SuspendIntent(_) => case.suspend(),
            Input::ResumeIntent(_) => case.resume(),
            Input::TerminateIntent(_) => case.terminate(),
            Input::IntentAccepted(verdict) => Ok(case.accepted(verdict.version)),
            Input::IntentRejected(verdict) => Ok(case.rejected(verdict.version, &verdict.problems)),
            Input::FeasibilityChanged(turn) => Ok(case.feasibility(turn)),
            Input::InstanceChanged(report) => Ok(case.instance_changed(report)),
            Input::InstanceUnavailable(report) => Ok(case.instance_unavailable(report)),
            Input::PlacementUnplaced(report) => Ok(case.unplaced(report)),
            Input::TargetObserved(observation) => Ok(case.observed(observation)),
        }
    }

    fn evolve(&self, mut entity: Entity, fact: &Fact, at: Timestamp) -> Entity {
        match fact {
            Fact::IntentSubmitted(fact) => {
                let waits_for = verdict_on(fact.version);
                if entity.submission.is_none() {
                    entity.state = Row::Submitted.state("submitted", waits_for, "");
                    entity.since = at;
                } else if matches!(entity.row(), Row::Failed | Row::Terminated) {
                    // What a person could do about it is done.
                    entity.state.waits_for = waits_for;
                    entity.state.cure.clear();
                }
                let content = IntentSubmitted {
                    owner: String::new(),
                    intent_id: String::new(),
                    command_id: String::new(),
                    ..fact.clone()
                };
                entity.submission = Some(Submission { content, verdict: Verdict::Awaited });
            }
            Fact::IntentAcknowledged(fact) => {
                // What cannot be parsed here came into force under another version of this service: it has no targets.
                let empty = Definition { targets: vec![], objects: vec![], deactivated: false };
                let definition = Definition::parse(&fact.document).unwrap_or(empty);
                let instances = fact.instances.iter().map(Instance::from_fact).collect();
                entity.settle(Verdict::Accepted);
                entity.life = Life::InForce(InForce::new(fact.version, definition, instances));
                entity.tell(fact.state.clone().unwrap_or_default(), at);
            }
            Fact::IntentRejected(fact) => {
                entity.settle(Verdict::Rejected);
                if entity.life == Life::Submitted {
                    entity.life = Life::Rejected;
                }
                entity.tell(fact.state.clone().unwrap_or_default(), at);
            }
            Fact::IntentStateChanged(fact) => {
                let to = fact.to.clone().unwrap_or_default();
                let row = Row::of(&to);
                let instances: Vec<Instance> = fact.instances.iter().map(Instance::from_fact).collect();
                if row == Row::Terminated {
                    let version = entity.in_force().map_or(0, |in_force| in_force.version);
                    let version = if let Life::Terminated(ended) = &entity.life { ended.version } else { version };
                    if entity.awaited().is_some() {
                        entity.settle(Verdict::Dropped);
                    }
                    entity.life = Life::Terminated(Ended { version, instances });
                } else if let Life::InForce(in_force) = &mut entity.life {
                    in_force.instances = instances;
                    in_force.infeasible.clone_from(&fact.infeasible);
                    in_force.suspended = row == Row::Suspended;
                    in_force.adopt_targets(&fact.targets);
                }
                entity.state = to;
                entity.since = fact.since.unwrap_or(at);
            }
            Fact::IntentRemedyWanted(fact) => {
                if let Life::InForce(in_force) = &mut entity.life {
                    in_force.adopt_targets(&fact.targets);
                }
            }
            Fact::IntentUnchanged(_) | Fact::IntentRefused(_) => {}
        }
        entity.check();
        entity
    }

    fn due(&self, _: &Entity) -> Option<Timestamp> {
        None
    }
}

fn verdict_on(version: u64) -> String {
    format!("the validator's verdict on version {version}")
}

/// One question about one intent.
struct Case<'a> {
    key: &'a Key,
    entity: &'a Entity,
    at: Timestamp,
    id: &'a str,
    body: &'a Bytes,
}

impl Case<'_> {
    fn owner(&self) -> String {
        self.key.token(0).to_owned()
    }

    fn intent_id(&self) -> String {
        self.key.token(1).to_owned()
    }

    /// The intent of a submit or update command, as it came in.
    fn document(&self) -> Bytes {
        wire::field(self.body, 3).unwrap_or_default()
    }

    fn refusal(&self, what: &str, cure: &str) -> Refusal {
        let state = &self.entity.state;
        let reason = if state.reason.is_empty() { String::new() } else { format!(" ({})", state.reason) };
        let text = format!("intent {} is {}{reason}; {what}", self.intent_id(), self.entity.row().name());
        Refusal::new(text, cure)
    }

    fn absent(&self) -> Refusal {
        Refusal::new(
            format!("there is no intent {} of {}", self.intent_id(), self.owner()),
            "submit it, or list the intents that there are: continuum intent list",
        )
    }

    fn submitted(&self, document: Bytes) -> Vec<Fact> {
        let version = self.entity.submission.as_ref().map_or(0, Submission::version) + 1;
        vec![
            IntentSubmitted {
                owner: self.owner(),
                intent_id: self.intent_id(),
                version,
                document,
                command_id: self.id.to_owned(),
            }
            .into(),
        ]
    }

    fn unchanged(&self, submission: &Submission) -> Vec<Fact> {
        vec![
            IntentUnchanged {
                owner: self.owner(),
                intent_id: self.intent_id(),
                version: submission.version(),
                command_id: self.id.to_owned(),
                state: Some(self.entity.state.clone()),
            }
            .into(),
        ]
    }

    fn submit(&self) -> Result<Vec<Fact>, Refusal> {
        let document = self.document();
        match &self.entity.submission {
            None => Ok(self.submitted(document)),
            Some(_) if self.entity.row() == Row::Terminated => {
                Err(self.refusal("it cannot be submitted again", "update it: the update starts its next version"))
            }
            Some(last) if last.same(&document) => Ok(self.unchanged(last)),
            Some(_) => Err(self.refusal(
                "it exists with other content",
                "use update to change it, or submit this content under another id",
            )),
        }
    }

    fn update(&self) -> Result<Vec<Fact>, Refusal> {
        let Some(last) = &self.entity.submission else { return Err(self.absent()) };
        let document = self.document();
        let row = self.entity.row();
        // The same content again starts anew what has ended or failed, and changes nothing otherwise.
        let alive = last.verdict == Verdict::Awaited
            || (last.verdict == Verdict::Accepted && !matches!(row, Row::Failed | Row::Terminated));
        if alive && last.same(&document) {
            return Ok(self.unchanged(last));
        }
        let what = "its definition may change only while it is ACKNOWLEDGED, FULFILMENTFAILED or TERMINATED";
        match row {
            Row::Acknowledged | Row::Failed | Row::Terminated => Ok(self.submitted(document)),
            Row::Submitted => Err(self.refusal(what, "wait for the verdict, or terminate it and update it then")),
            Row::Compliant | Row::Fulfilled | Row::Degraded | Row::Suspended => {
                Err(self
                    .refusal(what, "terminate it and update it then, or submit the new definition under another id"))
            }
        }
    }

    fn suspend(&self) -> Result<Vec<Fact>, Refusal> {
        match (&self.entity.submission, &self.entity.life) {
            (None, _) => Err(self.absent()),
            (_, Life::InForce(in_force)) => Ok(self.settle(InForce { suspended: true, ..in_force.clone() }, self.id)),
            (_, Life::Terminated(_)) => {
                Err(self.refusal("it can only be updated", "nothing is left to suspend; update it to start it again"))
            }
            (_, Life::Submitted | Life::Rejected) => Err(self.refusal(
                "only an acknowledged version can be suspended",
                "suspend it once it is acknowledged, submit it with intentAdminState DEACTIVATED, or terminate it",
            )),
        }
    }

    fn resume(&self) -> Result<Vec<Fact>, Refusal> {
        match (&self.entity.submission, &self.entity.life) {
            (None, _) => Err(self.absent()),
            (_, Life::InForce(in_force)) if in_force.suspended => {
                let mut now = InForce { suspended: false, ..in_force.clone() };
                // What happened meanwhile was not watched.
                now.targets.iter_mut().for_each(Target::reset);
                for instance in now.instances.iter_mut().filter(|i| i.standing == Standing::Running) {
                    instance.running_since = Some(self.at);
                    instance.stuck.clear();
                }
                Ok(self.settle(now, self.id))
            }
            (_, Life::Terminated(_)) => Err(self.refusal("it can only be updated", "update it to start it again")),
            _ => {
                Err(self
                    .refusal("only a SUSPENDED intent can be resumed", "nothing is to be done: it is not suspended"))
            }
        }
    }

    fn terminate(&self) -> Result<Vec<Fact>, Refusal> {
        if self.entity.submission.is_none() {
            return Err(self.absent());
        }
        let to = Row::Terminated.state("terminated by command", "", "");
        let since = if self.entity.row() == Row::Terminated { self.entity.since } else { self.at };
        let targets =
            self.entity.in_force().map(|f| f.targets.iter().map(Target::to_fact).collect()).unwrap_or_default();
        let fact = IntentStateChanged {
            owner: self.owner(),
            intent_id: self.intent_id(),
            version: self.entity.version(),
            from: Some(self.entity.state.clone()),
            to: Some(to),
            targets,
            command_id: self.id.to_owned(),
            since: Some(since),
            instances: self.entity.instances().iter().map(Instance::to_fact).collect(),
            infeasible: String::new(),
        };
        Ok(vec![fact.into()])
    }

    fn accepted(&self, version: u64) -> Vec<Fact> {
        let Some(last) = self.entity.submission.as_ref().filter(|_| self.entity.awaited() == Some(version)) else {
            return vec![];
        };
        let document = last.content.document.clone();
        let definition = match Definition::parse(&document) {
            Ok(definition) => definition,
            // It cannot be judged, so it must not come into force.
            Err(problems) => return self.rejected(version, &problems),
        };
        let earlier = self.entity.in_force();
        let instances: Vec<Instance> = definition
            .objects
            .iter()
            .map(|(expectation, object)| self.instance(expectation, object, earlier))
            .collect();
        let released = self.entity.in_force().map(|f| f.instances.as_slice()).unwrap_or_default();
        let released: Vec<GovernedInstance> =
            released.iter().filter(|old| instances.iter().all(|new| new.id != old.id)).map(Instance::to_fact).collect();
        let suspended = definition.deactivated || earlier.is_some_and(|f| f.suspended);
        let in_force = InForce::new(version, definition, instances);
        let acknowledged = IntentAcknowledged {
            owner: self.owner(),
            intent_id: self.intent_id(),
            version,
            document,
            state: Some(row::describe(&in_force, Row::Acknowledged).state),
            instances: in_force.instances.iter().map(Instance::to_fact).collect(),
            released,
        };
        let fact: Fact = acknowledged.into();
        // What follows is decided as if the acknowledgement were stored, which it is: they are one write.
        let entity = Intents.evolve(self.entity.clone(), &fact, self.at);
        let next = Case { entity: &entity, ..*self };
        let mut facts = vec![fact];
        facts.extend(next.settle(InForce { suspended, ..in_force }, ""));
        facts
    }

    /// The instance of an expectation in a new version. One that runs the same already goes on.
    fn instance(&self, expectation: &str, object: &str, earlier: Option<&InForce>) -> Instance {
        let created = object.contains('@');
        let id = match created {
            true => derived_id(&[self.key.token(0), self.key.token(1), expectation]),
            false => object.to_owned(),
        };
        let workload = if created { object.to_owned() } else { String::new() };
        let runs = |i: &&Instance| {
            i.standing == Standing::Running && i.id == id && i.workload == workload && i.expectation == expectation
        };
        match earlier.and_then(|f| f.instances.iter().find(runs)) {
            Some(running) => Instance { running_since: Some(self.at), stuck: String::new(), ..running.clone() },
            None => Instance { expectation: expectation.to_owned(), id, workload, ..Instance::default() },
        }
    }

    fn rejected(&self, version: u64, problems: &[Problem]) -> Vec<Fact> {
        if self.entity.awaited() != Some(version) {
            return vec![];
        }
        let words =
            |p: &Problem| if p.path.is_empty() { p.reason.clone() } else { format!("{}: {}", p.path, p.reason) };
        let text = problems.iter().map(words).collect::<Vec<_>>().join("; ");
        let state = match &self.entity.life {
            Life::Submitted | Life::Rejected => {
                let cures = problems.iter().filter(|p| !p.cure.is_empty()).map(|p| match p.path.as_str() {
                    "" => p.cure.clone(),
                    path => format!("{path}: {}", p.cure),
                });
                let cure = format!("update it with: {}", cures.collect::<Vec<_>>().join("; "));
                Row::Failed.state(format!("version {version} was rejected: {text}"), "an update", cure)
            }
            // The version in force goes on as it was.
            Life::InForce(in_force) => row::describe(in_force, self.entity.row()).state,
            Life::Terminated(_) => Row::Terminated.state(
                format!("terminated; its update, version {version}, was rejected: {text}"),
                "",
                "",
            ),
        };
        let fact = IntentRejected {
            owner: self.owner(),
            intent_id: self.intent_id(),
            version,
            problems: problems.to_vec(),
            state: Some(state),
        };
        vec![fact.into()]
    }

    fn feasibility(&self, turn: &FeasibilityChanged) -> Vec<Fact> {
        let Some(in_force) = self.entity.in_force().filter(|f| f.version == turn.version) else { return vec![] };
        let infeasible = match (turn.feasible, turn.reason.as_str()) {
            (true, _) => String::new(),
            (false, "") => "the validator gave no figures".to_owned(),
            (false, reason) => reason.to_owned(),
        };
        self.settle(InForce { infeasible, ..in_force.clone() }, "")
    }

    fn instance_changed(&self, report: &InstanceChanged) -> Vec<Fact> {
        let Some(in_force) = self.entity.in_force() else { return vec![] };
        let Some(standing) = Standing::reported(report) else { return vec![] };
        let mut now = in_force.clone();
        let mut anew = vec![];
        for instance in now.instances.iter_mut().filter(|i| i.id == report.instance_id) {
            let same_place = instance.generation == report.generation && instance.cluster == report.cluster_id;
            if standing == Standing::Running {
                let event = report.event.as_ref().map_or("", |event| event.r#type.as_str());
                if !same_place || instance.standing != Standing::Running || matches!(event, "migrated" | "restarted") {
                    instance.run(&report.cluster_id, report.generation, self.at);
                    anew.push(instance.expectation.clone());
                }
            } else {
                instance.running_since = None;
                instance.standing = standing;
                instance.cluster.clone_from(&report.cluster_id);
                instance.generation = report.generation;
                instance.reason.clone_from(&report.reason);
                instance.cure.clear();
                instance.stuck.clear();
                anew.push(instance.expectation.clone());
            }
            instance.to_cluster.clone_from(&report.to_cluster_id);
        }
        anew.iter().for_each(|expectation| now.reset_targets(expectation));
        self.settle(now, "")
    }

    fn instance_unavailable(&self, report: &InstanceUnavailable) -> Vec<Fact> {
        let Some(in_force) = self.entity.in_force().filter(|f| f.version == report.intent_version) else {
            return vec![];
        };
        let mut now = in_force.clone();
        for instance in now.instances.iter_mut().filter(|i| i.id == report.instance_id) {
            *instance = Instance {
                expectation: instance.expectation.clone(),
                id: instance.id.clone(),
                workload: instance.workload.clone(),
                standing: Standing::Unavailable,
                reason: report.reason.clone(),
                cure: report.cure.clone(),
                ..Instance::default()
            };
        }
        let gone: Vec<String> = now
            .instances
            .iter()
            .filter(|i| i.standing == Standing::Unavailable)
            .map(|i| i.expectation.clone())
            .collect();
        gone.iter().for_each(|expectation| now.reset_targets(expectation));
        self.settle(now, "")
    }

    /// Plans and instance reports travel apart: a plan is believed only where it cannot be older than what the report
    /// says.
    fn unplaced(&self, report: &PlacementUnplaced) -> Vec<Fact> {
        let Some(in_force) = self.entity.in_force() else { return vec![] };
        let degraded = self.entity.row() == Row::Degraded;
        let mut now = in_force.clone();
        for instance in now.instances.iter_mut().filter(|i| i.id == report.instance_id) {
            match instance.standing {
                Standing::Running if degraded && !report.stays_on.is_empty() && report.stays_on == instance.cluster => {
                    instance.stuck.clone_from(&report.reason);
                }
                Standing::Unheard | Standing::Pending | Standing::Unplaced | Standing::Lost | Standing::Failed
                    if report.stays_on.is_empty() =>
                {
                    instance.standing = Standing::Unplaced;
                    instance.reason.clone_from(&report.reason);
                }
                _ => {}
            }
        }
        self.settle(now, "")
    }

    fn observed(&self, observation: &TargetObserved) -> Vec<Fact> {
        let Some(in_force) = self.entity.in_force() else { return vec![] };
        if in_force.version != observation.version || in_force.suspended {
            return vec![];
        }
        let (Some(begin), Some(end)) = (observation.begin, observation.end) else { return vec![] };
        let mut now = in_force.clone();
        let measured = observation.targets.iter().any(|t| t.samples > 0 && t.value.is_finite());
        let mut degrading = false;
        for instance in now.instances.iter_mut().filter(|i| i.id == observation.instance_id) {
            let expectation = instance.expectation.clone();
            let mut targets = now.targets.iter_mut().filter(|t| t.expectation == expectation).peekable();
            // A governed instance may have run long before: then its measurements are the first that is heard of it.
            let governed = instance.workload.is_empty();
            if governed && measured && observation.generation > instance.generation {
                instance.run(&observation.cluster_id, observation.generation, end);
                targets.for_each(Target::reset);
                continue;
            }
            if instance.standing != Standing::Running || instance.running_since.is_none_or(|since| begin < since) {
                continue;
            }
            let mut held = targets.peek().is_some();
            for target in targets {
                let judged = judge(target, instance.generation, observation);
                held &= judged == Some(Judged::Held);
                degrading |= judged == Some(Judged::Missed) && target.missed >= MISSED_MAX;
            }
            if held {
                instance.stuck.clear();
            }
        }
        let mut facts = self.settle(now.clone(), "");
        let row = facts.iter().fold(self.entity.row(), |row, fact| match fact {
            Fact::IntentStateChanged(IntentStateChanged { to: Some(to), .. }) => Row::of(to),
            _ => row,
        });
        if !degrading || row != Row::Degraded {
            return facts;
        }
        let counts_only = |fact: &Fact| matches!(fact, Fact::IntentStateChanged(f) if f.from == f.to);
        if now.instances == in_force.instances && facts.iter().all(counts_only) {
            // The remedy tells the same.
            facts.clear();
        }
        facts.push(self.remedy(&now, observation).into());
        facts
    }

    fn remedy(&self, now: &InForce, observation: &TargetObserved) -> IntentRemedyWanted {
        let observed = |t: &&Target| {
            now.instances.iter().any(|i| i.id == observation.instance_id && i.expectation == t.expectation)
        };
        let missed = now.targets.iter().filter(observed).filter(|t| t.missed > 0);
        IntentRemedyWanted {
            owner: self.owner(),
            intent_id: self.intent_id(),
            instance_id: observation.instance_id.clone(),
            targets: now.targets.iter().filter(observed).map(Target::to_fact).collect(),
            reason: format!(
                "{} on {}",
                missed.map(Target::figures).collect::<Vec<_>>().join("; "),
                observation.cluster_id
            ),
            cluster_id: observation.cluster_id.clone(),
            generation: observation.generation,
            load_milli: observation.load_milli,
            memory_bytes: observation.memory_bytes,
        }
    }

    /// The facts that lead from the entity to what is known now, one for each row of the table on the way; none if
    /// nothing is news. The first names the command.
    fn settle(&self, now: InForce, command: &str) -> Vec<Fact> {
        let Life::InForce(before) = &self.entity.life else { return vec![] };
        let (mut row, mut state, mut since) = (self.entity.row(), self.entity.state.clone(), self.entity.since);
        let mut mark = row::describe(before, row).mark;
        let mut news = now.differs(before) || !command.is_empty();
        let mut facts = vec![];
        loop {
            let next = row::step(&now, row);
            let words = row::describe(&now, next);
            let to = if next == row && words.mark == mark { state.clone() } else { words.state };
            if next == row && to == state && !news {
                return facts;
            }
            if next != row {
                since = self.at;
            }
            let fact = IntentStateChanged {
                owner: self.owner(),
                intent_id: self.intent_id(),
                version: now.version,
                from: Some(state),
                to: Some(to.clone()),
                targets: now.targets.iter().map(Target::to_fact).collect(),
                command_id: if facts.is_empty() { command.to_owned() } else { String::new() },
                since: Some(since),
                instances: now.instances.iter().map(Instance::to_fact).collect(),
                infeasible: now.infeasible.clone(),
            };
            facts.push(fact.into());
            (row, state, mark, news) = (next, to, words.mark, false);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    Held,
    Missed,
    Unmeasured,
}

/// Judges one target by one period; `None` if the period does not count for it.
fn judge(target: &mut Target, generation: u64, observation: &TargetObserved) -> Option<Judged> {
    let found =
        observation.targets.iter().find(|t| t.expectation_id == target.expectation && t.target_name == target.name)?;
    if observation.period <= target.period {
        return None;
    }
    let next = observation.period == target.period + 1;
    if found.samples == 0 || !found.value.is_finite() {
        target.period = observation.period;
        (target.measured, target.fulfilled, target.missed) = (false, false, 0);
        target.unmeasured = (target.unmeasured + 1).min(UNMEASURED_MAX);
        return Some(Judged::Unmeasured);
    }
    if observation.generation != generation {
        return None;
    }
    target.period = observation.period;
    target.achieved = found.value;
    (target.measured, target.unmeasured) = (true, 0);
    target.fulfilled = target.condition.holds(found.value, target.bound);
    if target.fulfilled {
        target.missed = 0;
        return Some(Judged::Held);
    }
    // A miss after a period that nobody judged is the first again.
    target.missed = if next { target.missed.saturating_add(1) } else { 1 };
    Some(Judged::Missed)
}
