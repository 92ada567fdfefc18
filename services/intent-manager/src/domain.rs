//! The life of one intent: what each input makes of it.
//!
//! What holds:
//! - a state follows another only along a row of the state table ([`Row`]); a decision that leads further writes one
//!   fact per row;
//! - every command is answered by one fact that names it, or refused with the state and a hint;
//! - an observation counts only for the version in force, for the placement that runs now, and for a period that began
//!   after the instance did; each period counts once;
//! - a missing measurement degrades, and never asks for a remedy;
//! - a remedy is asked for at most once per cool-down, and ever less often while the targets stay missed
//!   ([`Limits::wait_ms`]). Once the planner has said that no cluster would do better, it is asked again only after what was missed has
//!   changed by more than a tenth: until then nothing is written, and whatever changes the planner's mind (a cluster
//!   that joins, returns or changes its size, capacity that comes free) moves the instance without another asking.
//!   What was asked for and is not wanted any more is taken back;
//! - a version with a start time to come is acknowledged without instances, and again with them when it has come; its end
//!   time terminates it;
//! - an intent that loses a conflict is suspended until the conflict is over, and nobody but its end can resume it.

pub(crate) mod achieved;
pub mod view;

mod command;
mod definition;
mod instance;
mod observation;
mod row;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use mesh_core::{Decider, Envelope, Key, Trigger};
use mesh_proto::{
    Refusal, Timestamp,
    deciders::intents::{Fact, Input},
    intent::{IntentConflict, IntentStateChanged, IntentSubmitted, Problem, State, TargetState},
    is_key,
    validation::{ConflictsChanged, FeasibilityChanged},
};
use serde::{Deserialize, Serialize};

pub use self::{
    definition::{Definition, Object, Target},
    instance::{Instance, Standing},
    observation::Remedy,
    row::Row,
};

/// Missed periods in a row that degrade an intent and ask for a remedy.
pub const MISSED_MAX: u32 = 2;
/// The longest wait between two remedies, in cool-downs.
pub const COOLDOWNS_MAX: i64 = 16;
/// Periods in a row without a measurement that degrade an intent.
pub const UNMEASURED_MAX: u32 = 3;

/// Versions before the last that an intent can go back to; older ones are in the stream only.
pub const HISTORY_MAX: usize = 64;

/// How often a remedy may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Milliseconds after a remedy was asked for, and after the instance began to run, in which none is asked for again.
    pub remedy_cooldown_ms: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { remedy_cooldown_ms: 60_000 }
    }
}

impl Limits {
    /// Milliseconds before the next remedy after this many that did not help for long: a cool-down, doubling with each, at
    /// most [`COOLDOWNS_MAX`] of them.
    pub fn wait_ms(&self, asked: u32) -> i64 {
        let cooldowns = 1i64.checked_shl(asked.saturating_sub(1).min(62)).unwrap_or(COOLDOWNS_MAX).min(COOLDOWNS_MAX);
        self.remedy_cooldown_ms.saturating_mul(cooldowns)
    }
}

/// Decides the life cycle of every intent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Intents {
    limits: Limits,
}

impl Intents {
    /// Decides within these limits.
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }
}

/// One intent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entity {
    /// The last version that was submitted; `None` if none ever was.
    pub submission: Option<Submission>,
    /// Those before it, the oldest first, at most [`HISTORY_MAX`].
    pub history: Vec<Submission>,
    /// What it is.
    pub life: Life,
    /// What it is, as people are told.
    pub state: State,
    /// When that state began.
    pub since: Timestamp,
    /// How many facts have changed it.
    pub revision: u64,
}

/// A submitted version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    /// As submitted, without owner, id and command.
    pub content: IntentSubmitted,
    /// What the validator said of it.
    pub verdict: Verdict,
    /// When it was submitted.
    #[serde(default)]
    pub at: Timestamp,
    /// Why it was rejected.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// Why it cannot be met, though it is well formed.
    #[serde(default)]
    pub infeasible: String,
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
    /// Why no registered cluster can take it; empty while one can.
    pub infeasible: String,
    /// Is watching it suspended, by command or by its document?
    pub suspended: bool,
    /// Conflicts with other intents, won and lost; who loses one is not watched either.
    #[serde(default)]
    pub conflicts: Vec<IntentConflict>,
    /// Start time that it waits for; until then it has no instances.
    #[serde(default)]
    pub starts_at: Option<Timestamp>,
    /// When it ends by itself.
    #[serde(default)]
    pub ends_at: Option<Timestamp>,
    /// By instance id: the remedy that was asked for last.
    #[serde(default)]
    pub remedies: BTreeMap<String, Remedy>,
}

/// What an ended intent leaves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// The version that was in force; 0 for none.
    pub version: u64,
    /// Its instances.
    pub instances: Vec<Instance>,
}

impl InForce {
    /// A version that has just come into force.
    fn new(version: u64, definition: Definition, instances: Vec<Instance>, starts_at: Option<Timestamp>) -> Self {
        Self {
            version,
            targets: definition.targets,
            instances,
            infeasible: String::new(),
            suspended: false,
            conflicts: vec![],
            starts_at,
            ends_at: definition.window.end,
            remedies: BTreeMap::new(),
        }
    }

    /// Is it unwatched, for any reason?
    pub fn is_suspended(&self) -> bool {
        self.suspended || mesh_intent::conflict::loses(&self.conflicts)
    }

    /// Is watched again: what happened meanwhile was not watched.
    fn watch_again(&mut self, at: Timestamp) {
        self.targets.iter_mut().for_each(Target::reset);
        for instance in self.instances.iter_mut().filter(|i| i.standing == Standing::Running) {
            instance.running_since = Some(at);
            instance.stuck.clear();
        }
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
            || self.conflicts != before.conflicts
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

    /// A version that was submitted, if it is still known.
    pub fn submitted(&self, version: u64) -> Option<&Submission> {
        self.history.iter().chain(&self.submission).find(|s| s.content.version == version)
    }

    fn set_state(&mut self, state: State, at: Timestamp) {
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
                !matches!(row, Row::Submitted | Row::Terminated) && in_force.is_suspended() == (row == Row::Suspended),
            Life::Terminated(_) => row == Row::Terminated,
        });
        debug_assert!(self.submission.is_none() || !self.state.reason.is_empty());
    }
}

impl Decider for Intents {
    const NAME: &'static str = mesh_proto::deciders::intents::NAME;
    type State = Entity;
    type ReadModel = ();
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
            Input::RollbackIntent(m) => (&m.owner, vec![&m.intent_id]),
            Input::ConflictsChanged(m) => (&m.owner, vec![&m.intent_id]),
            // An intent about networks is carried out under its own id.
            Input::ConnectivityChanged(m) => (&m.owner, vec![&m.network_id]),
            Input::NetworkRefused(m) => (&m.owner, vec![&m.network_id]),
            Input::IntentAccepted(m) => (&m.owner, vec![&m.intent_id]),
            Input::IntentRejected(m) => (&m.owner, vec![&m.intent_id]),
            Input::FeasibilityChanged(m) => (&m.owner, vec![&m.intent_id]),
            Input::InstanceChanged(m) => {
                (&m.owner, m.governed_by.iter().chain([&m.intent_id]).map(String::as_str).collect())
            }
            Input::InstanceUnavailable(m) => (&m.owner, vec![&m.intent_id]),
            // The answer to a request for a remedy arrives even if the intent did not create the instance.
            Input::PlacementUnplaced(m) => {
                (&m.owner, m.asked_by.iter().chain([&m.intent_id]).map(String::as_str).collect())
            }
            Input::TargetObserved(m) => (&m.owner, vec![&m.intent_id]),
        };
        // An instance without an intent names none; an invalid key means no intent.
        ids.into_iter().filter(|id| is_key(owner) && is_key(id)).map(|id| Key::new([owner, id])).collect()
    }

    fn decide(&self, key: &Key, entity: &Entity, _: &(), envelope: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
        let case = Case { limits: &self.limits, key, entity, at: envelope.at, id: &envelope.id, body: &envelope.body };
        let Trigger::Event(input) = &envelope.trigger else { return Ok(case.due()) };
        case.unmoved(input)?;
        match input {
            Input::SubmitIntent(_) => case.submit(),
            Input::UpdateIntent(_) => case.update(),
            Input::SuspendIntent(_) => case.suspend(),
            Input::ResumeIntent(_) => case.resume(),
            Input::TerminateIntent(_) => case.terminate(),
            Input::RollbackIntent(command) => case.rollback(command.version),
            Input::IntentAccepted(verdict) => Ok(case.accepted(verdict.version)),
            Input::IntentRejected(verdict) => {
                Ok(case.rejected(verdict.version, &verdict.problems, &verdict.infeasible))
            }
            Input::FeasibilityChanged(turn) => Ok(case.feasibility(turn)),
            Input::ConflictsChanged(found) => Ok(case.conflicts(found)),
            Input::ConnectivityChanged(report) => Ok(case.connectivity_changed(report)),
            Input::NetworkRefused(refused) => Ok(case.network_refused(refused)),
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
                    entity.state.hint.clear();
                }
                let content = IntentSubmitted {
                    owner: String::new(),
                    intent_id: String::new(),
                    command_id: String::new(),
                    // A slice of what was read would keep all that was read with it.
                    document: Bytes::copy_from_slice(&fact.document),
                    ..fact.clone()
                };
                let submission =
                    Submission { content, verdict: Verdict::Awaited, at, problems: vec![], infeasible: String::new() };
                entity.history.extend(entity.submission.replace(submission));
                let over = entity.history.len().saturating_sub(HISTORY_MAX);
                entity.history.drain(..over);
            }
            Fact::IntentAcknowledged(fact) => {
                // What cannot be parsed here came into force under another version of this service: it has no targets.
                let definition = Definition::parse(&fact.document).unwrap_or_else(|_| Definition::empty());
                let mut instances: Vec<Instance> = fact.instances.iter().map(Instance::from_fact).collect();
                if definition.network && fact.starts_at.is_none() {
                    instances.push(Instance::network(&fact.intent_id));
                }
                if entity.awaited() == Some(fact.version) {
                    entity.settle(Verdict::Accepted);
                }
                let mut next = InForce::new(fact.version, definition, instances, fact.starts_at);
                if let Some(before) = entity.in_force().filter(|before| before.version == fact.version) {
                    // Its start time has come; what else stands stays.
                    next.conflicts.clone_from(&before.conflicts);
                }
                entity.life = Life::InForce(next);
                entity.set_state(fact.state.clone().unwrap_or_default(), at);
            }
            Fact::IntentRejected(fact) => {
                entity.settle(Verdict::Rejected);
                if let Some(submission) = &mut entity.submission {
                    submission.problems.clone_from(&fact.problems);
                    submission.infeasible.clone_from(&fact.infeasible);
                }
                if entity.life == Life::Submitted {
                    entity.life = Life::Rejected;
                }
                entity.set_state(fact.state.clone().unwrap_or_default(), at);
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
                    in_force.suspended = row == Row::Suspended && fact.suspended_by != BY_CONFLICT;
                    in_force.conflicts.clone_from(&fact.conflicts);
                    in_force.adopt_targets(&fact.targets);
                }
                entity.state = to;
                entity.since = fact.since.unwrap_or(at);
            }
            Fact::IntentRemedyWanted(fact) => {
                if let Life::InForce(in_force) = &mut entity.life {
                    in_force.adopt_targets(&fact.targets);
                    in_force.remedies.insert(fact.instance_id.clone(), Remedy::of(fact, at));
                }
            }
            Fact::IntentRemedyUnwanted(fact) => {
                if let Life::InForce(in_force) = &mut entity.life
                    && let Some(remedy) = in_force.remedies.get_mut(&fact.instance_id)
                {
                    remedy.wanted = false;
                }
            }
            Fact::IntentUnchanged(_) | Fact::IntentRefused(_) => return entity,
        }
        entity.revision += 1;
        entity.check();
        entity
    }

    fn due(&self, entity: &Entity) -> Option<Timestamp> {
        let in_force = entity.in_force()?;
        // One that is suspended starts once it is resumed.
        let start = in_force.starts_at.filter(|_| entity.row() == Row::Acknowledged);
        start.into_iter().chain(in_force.ends_at).min()
    }

    fn urgency(&self, input: &Input) -> Option<u32> {
        let intent = match input {
            Input::SubmitIntent(command) => command.intent.as_ref(),
            Input::UpdateIntent(command) => command.intent.as_ref(),
            _ => return None,
        };
        Some(intent.map_or(0, |intent| intent.intent_priority))
    }

    fn is_under_way(&self, entity: &Entity) -> bool {
        let unheard = |i: &Instance| !i.network && matches!(i.standing, Standing::Unheard | Standing::Pending);
        entity.awaited().is_some() || entity.in_force().is_some_and(|in_force| in_force.instances.iter().any(unheard))
    }
}

/// Who suspended an intent: a command, or its document.
const BY_COMMAND: &str = "command";
/// Who suspended an intent: a conflict that it lost.
const BY_CONFLICT: &str = "conflict";

fn suspended_by(now: &InForce, row: Row) -> &'static str {
    match row {
        Row::Suspended if now.suspended => BY_COMMAND,
        Row::Suspended => BY_CONFLICT,
        _ => "",
    }
}

fn verdict_on(version: u64) -> String {
    format!("the validator's verdict on version {version}")
}

/// One question about one intent.
struct Case<'a> {
    limits: &'a Limits,
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

    fn feasibility(&self, turn: &FeasibilityChanged) -> Vec<Fact> {
        let Some(in_force) = self.entity.in_force().filter(|f| f.version == turn.version) else { return vec![] };
        let infeasible = match (turn.feasible, turn.reason.as_str()) {
            (true, _) => String::new(),
            (false, "") => "the validator gave no figures".to_owned(),
            (false, reason) => reason.to_owned(),
        };
        self.settle(InForce { infeasible, ..in_force.clone() }, "")
    }

    /// What the validator found of conflicts with other intents.
    fn conflicts(&self, found: &ConflictsChanged) -> Vec<Fact> {
        let Some(in_force) = self.entity.in_force().filter(|f| f.version == found.version) else { return vec![] };
        let mut now = InForce { conflicts: found.conflicts.clone(), ..in_force.clone() };
        if in_force.is_suspended() && !now.is_suspended() {
            now.watch_again(self.at);
        }
        let gives_way = now.is_suspended() && !in_force.is_suspended();
        let mut facts = self.settle(now, "");
        if gives_way {
            facts.extend(self.unwanted(in_force, |_| true, "it is suspended by a conflict"));
        }
        facts
    }

    /// Its time has come: to end, or to begin.
    fn due(&self) -> Vec<Fact> {
        let Some(in_force) = self.entity.in_force() else { return vec![] };
        if let Some(end) = in_force.ends_at.filter(|end| *end <= self.at) {
            return self.terminated(&format!("its end time {end} has come"), "");
        }
        match in_force.starts_at.filter(|start| *start <= self.at && self.entity.row() == Row::Acknowledged) {
            Some(_) => self.started(in_force.version),
            None => vec![],
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
                suspended_by: suspended_by(&now, next).to_owned(),
                conflicts: now.conflicts.clone(),
            };
            facts.push(fact.into());
            (row, state, mark, news) = (next, to, words.mark, false);
        }
    }
}
