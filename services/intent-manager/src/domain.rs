//! The life of one intent: what each input makes of it.
//!
//! What holds:
//! - a state follows another only along a row of the state table ([`Row`]); a decision that leads further writes one
//!   fact per row;
//! - every command is answered by one fact that names it, or refused with the state and a cure;
//! - an observation counts only for the version in force, for the placement that runs now, and for a period that began
//!   after the instance did; each period counts once;
//! - a missing measurement degrades, and never asks for a remedy;
//! - a remedy is asked for at most once per cool-down, and ever less often while the targets stay missed
//!   ([`Limits::wait_ms`]). Once the planner has said that no cluster would do better, it is asked again only after what was missed has
//!   changed by more than a tenth: until then nothing is written, and whatever changes the planner's mind (a cluster
//!   that joins, returns or changes its size, capacity that comes free) moves the instance without another asking.
//!   What was asked for and is not wanted any more is taken back.

mod command;
mod definition;
mod instance;
mod observation;
mod row;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use mesh_kit::{Asked, Decider, Key, What};
use mesh_proto::{
    Refusal, Timestamp,
    deciders::intents::{Fact, Input},
    intent::{IntentStateChanged, IntentSubmitted, State, TargetState},
    is_key,
    validation::FeasibilityChanged,
};
use serde::{Deserialize, Serialize};

pub use self::{
    definition::{Condition, Definition, Target},
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
    /// Milliseconds before the next remedy after so many that did not help for long: a cool-down, doubling with each, at
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
    fn new(version: u64, definition: Definition, instances: Vec<Instance>) -> Self {
        Self {
            version,
            targets: definition.targets,
            instances,
            infeasible: String::new(),
            suspended: false,
            remedies: BTreeMap::new(),
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
            // Who asked for a remedy hears that there is none, also without having made the instance.
            Input::PlacementUnplaced(m) => {
                (&m.owner, m.asked_by.iter().chain([&m.intent_id]).map(String::as_str).collect())
            }
            Input::TargetObserved(m) => (&m.owner, vec![&m.intent_id]),
        };
        // An instance without an intent names none; whose key is none has no intent.
        ids.into_iter().filter(|id| is_key(owner) && is_key(id)).map(|id| Key::new([owner, id])).collect()
    }

    fn decide(&self, key: &Key, entity: &Entity, _: &(), asked: &Asked<Input>) -> Result<Vec<Fact>, Refusal> {
        let What::Event(input) = &asked.what else { return Ok(vec![]) };
        let case = Case { limits: &self.limits, key, entity, at: asked.at, id: &asked.id, body: &asked.body };
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
