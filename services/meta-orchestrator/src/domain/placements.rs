//! Where every instance of a domain runs: one entity, so that no capacity is spent twice.
//!
//! # An instance's life here
//!
//! An instance is *at* one cluster at most, and may be on its way *to* another. Each such hold has the generation of the
//! decision that made it, and reserves what the instance asks for. `PlacementDecided` makes a hold, `PlacementSettled`
//! says that its cluster answered, `PlacementReleased` ends it. Without a hold, or where the present one is not good
//! enough and no other cluster does, the instance is *unplaced* and says what is missing; it is planned again when a
//! cluster joins, returns, or capacity comes free.
//!
//! A move decides the target while the source runs on; the target running releases the source, the target failing or
//! silent past its limit releases the target, and the source stays. What must never run twice is stopped first: its
//! source is released and awaited, and planned once its agent says that it stopped. If that agent is lost, it waits: a
//! cluster that is cut off may well be running it. That holds beyond its end: where it was is remembered until it stopped
//! there, and who comes under its id waits for that.
//!
//! # Generations
//!
//! The generation of an instance rises by one with every decision about it, whether or not the decision bore fruit. A
//! hold keeps the generation of its decision: after a move to generation 5 was given up, the source still has 4, and the
//! next decision is 6. An ended instance leaves nothing behind but the highest generation that any ended one had; a new
//! instance begins above it, so that one that comes again under its old id still rises.
//!
//! # Failures
//!
//! A cluster where the instance failed or did not start is not tried again until the definition changes, or the instance
//! has run well for `forget_failures_ms`. After `attempts_elsewhere` further clusters it stays failed. A hopeless failure
//! (the same document fails anywhere) is not tried elsewhere. A cluster whose agent would not take it is asked again
//! after `start_limit_ms`.
//!
//! # Remedies
//!
//! A remedy looks for another cluster than the one where a target is missed. That cluster is remembered as `missed` with the load that
//! missed: for a remedy it is not a candidate again until the definition changes, its size does, the load that missed has
//! changed by more than a tenth to the better, or the instance has held its targets elsewhere for
//! `forget_failures_ms`. So an instance goes round all clusters at most once. Where none is left it stays, and says by how
//! much each misses; that is looked at again when a cluster joins, returns or changes its size or capacity comes free,
//! until the intent takes the remedy back. Each remedy that is asked for in time is answered; how often it is asked for is
//! the intent manager's to bound.
//!
//! # Moves that people ask for
//!
//! What runs and is at rest is moved to the cluster that is named if nothing rules that out, or to the best other one.
//! Otherwise the move is declined with the reason, and nothing changes: it is not tried again later.
//!
//! # Who waits for what
//!
//! What could be placed on a cluster if that had more room is in `rooms` under it, by how much it needs. When room comes
//! free there, those for whom it suffices are looked at, the smallest first, and no other: a decision costs what it
//! places, however many wait. All who wait are looked at only after clusters changed.
//!
//! # Work that does not fit one decision
//!
//! A decision acts on at most [`ACTIONS_MAX`] instances. What is left is either in `displaced` (on a lost cluster, not yet
//! planned elsewhere) or said by the last fact's `more`; in both cases `due` is at once, and the next decision goes on.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::{Decider, Envelope, Key, Trigger};
use mesh_proto::{
    Refusal, Timestamp,
    deciders::placements::{Fact, Input, NAME},
    placement::{ClusterLost, ClusterReturned, Load, Missed, Why},
    workload::{InstanceWanted, LatencyBound, WorkloadDocument},
};
use prost::Message as _;
use serde::{Deserialize, Serialize};

use self::draft::{Draft, excluded, request};
use crate::plan::{self, Cluster, Preference, Snapshot, Spec};

mod checkpoint;
mod draft;
mod facts;
mod remedies;

/// At most this many instances are acted on in one decision.
pub const ACTIONS_MAX: usize = 100;

/// The planner's limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Domain that is planned; the entity's key.
    pub domain: String,
    /// Milliseconds after a move in which no remedy moves the instance again.
    pub move_cooldown_ms: i64,
    /// Milliseconds that a cluster has to get an instance running.
    pub start_limit_ms: i64,
    /// Further clusters that are tried after a failure that is not hopeless.
    pub attempts_elsewhere: usize,
    /// Milliseconds of running after which failures elsewhere are forgotten.
    pub forget_failures_ms: i64,
    /// How candidates are compared.
    pub preference: Preference,
    /// Is learned advice acted on, within the hard constraints? Otherwise it is only shown.
    pub acts_on_advice: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            domain: "default".into(),
            move_cooldown_ms: 60_000,
            start_limit_ms: 30_000,
            attempts_elsewhere: 3,
            forget_failures_ms: 600_000,
            preference: Preference::default(),
            acts_on_advice: false,
        }
    }
}

/// How a cluster answered for a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Not yet, and its time is not up.
    Awaited,
    /// Not in time, or it failed with nowhere else to go; it may still come.
    Silent,
    /// All wanted replicas run.
    Running,
    /// It failed there and is not tried elsewhere.
    Failed,
    /// It is being ended there before it may start elsewhere.
    Stopping,
}

/// What an instance has on one cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    /// The cluster.
    pub cluster_id: String,
    /// Generation of the decision that made it.
    pub generation: u64,
    /// Time of that decision.
    pub since: Timestamp,
    /// How the cluster answered.
    pub standing: Standing,
    /// Revision of the definition that runs there.
    pub revision: u32,
    /// Thousandths of a core reserved.
    pub cpu_milli: u64,
    /// Bytes reserved.
    pub memory_bytes: u64,
}

/// Why an instance is not where it should be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unplaced {
    /// Since when, or when last reported again.
    pub since: Timestamp,
    /// What asked for the plan, a [`Why`].
    pub why: i32,
    /// What is missing.
    pub reason: String,
    /// Did it fail wherever it could ever run?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub used_up: bool,
}

/// One instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instance {
    /// Its definition: owner, document, replicas, targets, intent.
    pub wanted: InstanceWanted,
    /// What the definition asks for; none if its document cannot be read.
    pub spec: Option<Spec>,
    /// Rises when the definition changes.
    pub revision: u32,
    /// Generation of the last decision about it.
    pub generation: u64,
    /// Where it is.
    pub at: Option<Hold>,
    /// Where it is moving to.
    pub to: Option<Hold>,
    /// What it was last measured to use.
    pub measured: Option<Load>,
    /// Clusters where it failed or did not start.
    pub tried: BTreeSet<String>,
    /// Clusters whose agents would not take it lately.
    pub rejected: BTreeSet<String>,
    /// By cluster: how it missed its targets there.
    pub missed: BTreeMap<String, Missed>,
    /// Intents that asked for a remedy that was not found, and still want it.
    pub asked_by: BTreeSet<String>,
    /// When a remedy moved it last.
    pub moved: Option<Timestamp>,
    /// Set while it is not where it should be.
    pub unplaced: Option<Unplaced>,
}

/// A domain: its clusters and its instances. Snapshots keep it without its indexes (`checkpoint`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "checkpoint::Checkpoint", into = "checkpoint::Checkpoint")]
pub struct State {
    /// The clusters with what is reserved on them.
    pub snapshot: Snapshot,
    /// By instance id.
    pub instances: BTreeMap<String, Instance>,
    /// Those of them that are unplaced.
    unplaced: BTreeSet<String>,
    /// Those of them with bounds on latency.
    bounded: BTreeSet<String>,
    /// By cluster: those of them who lack nothing there but room, by the CPU and memory that they need.
    rooms: BTreeMap<String, BTreeSet<(u64, u64, String)>>,
    /// Those that wait for a cluster's answer, or for rejections to be old enough, by the time they began to.
    waiting: BTreeSet<(Timestamp, String)>,
    /// Those on a lost cluster that were not yet planned elsewhere.
    displaced: BTreeSet<String>,
    /// Did the last decision leave work for the next?
    more: bool,
    /// Time of the last fact about a cluster.
    clusters_changed: Timestamp,
    /// Where instances that must never run twice were when they ended, until they have stopped there.
    ending: BTreeMap<String, Instance>,
    /// Highest generation of any ended instance.
    ended_generation: u64,
    /// Time of the last fact.
    last: Timestamp,
}

/// The decider of all placements of a domain.
#[derive(Clone, Debug, Default)]
pub struct Placements {
    limits: Limits,
}

impl Placements {
    /// A planner within these limits.
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }
}

impl Decider for Placements {
    const NAME: &'static str = NAME;
    type State = State;
    type ReadModel = ();
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> State {
        State::default()
    }

    fn concerns(&self, input: &Input, _: &()) -> Vec<Key> {
        match input {
            Input::ReportLiveness(report) if report.domain != self.limits.domain => vec![],
            Input::LearningAdvised(advised) if !self.limits.acts_on_advice || advised.domain != self.limits.domain => {
                vec![]
            }
            Input::CostsChanged(costs) if costs.domain != self.limits.domain => vec![],
            _ => vec![Key::new([self.limits.domain.as_str()])],
        }
    }

    fn decide(&self, _: &Key, state: &State, _: &(), envelope: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
        let mut draft = Draft::new(&self.limits, state, envelope.at);
        match &envelope.trigger {
            Trigger::Event(Input::InstanceWanted(wanted)) => draft.wanted(wanted),
            Trigger::Event(Input::InstanceStatusChanged(status)) => draft.status(status),
            Trigger::Event(Input::InstanceRejected(rejected)) => draft.rejected(rejected),
            Trigger::Event(Input::ClusterRegistered(registered)) => draft.registered(registered),
            Trigger::Event(Input::IntentRemedyWanted(remedy)) => draft.remedy(remedy),
            Trigger::Event(Input::IntentRemedyUnwanted(remedy)) => draft.unwanted(remedy),
            Trigger::Event(Input::RemedyRequested(remedy)) => draft.requested(remedy),
            Trigger::Event(Input::ReportLiveness(report)) => draft.liveness(report),
            Trigger::Event(Input::LearningAdvised(advised)) => draft.advised(advised),
            Trigger::Event(Input::CostsChanged(costs)) => draft.costs(costs),
            Trigger::Event(Input::MigrationWanted(wanted)) => draft.migrate(wanted),
            Trigger::Due => draft.due(),
        }
        Ok(draft.finish(matches!(envelope.trigger, Trigger::Due)))
    }

    fn evolve(&self, mut state: State, fact: &Fact, at: Timestamp) -> State {
        state.last = state.last.max(at);
        state.more = more(fact);
        match fact_instance(fact) {
            Some(id) => state.step_instance(id, fact, at),
            None => state.step_cluster(fact, at),
        }
        state
    }

    fn due(&self, state: &State) -> Option<Timestamp> {
        // Always later than the last decision, so that no two of them share a time and with it their ids.
        let soon = state.last.plus_millis(1);
        if state.more || !state.displaced.is_empty() {
            return Some(soon);
        }
        let (since, _) = state.waiting.first()?;
        Some(since.plus_millis(self.limits.start_limit_ms).max(soon))
    }
}

impl State {
    /// An instance; one that begins again under the id of another that has not yet stopped is still there.
    fn known(&self, id: &str) -> Option<Instance> {
        let ending = || self.ending.get(id).map(|e| Instance { generation: self.ended_generation, ..e.clone() });
        self.instances.get(id).cloned().or_else(ending)
    }

    fn step_instance(&mut self, id: &str, fact: &Fact, at: Timestamp) {
        let before = self.known(id);
        if is_a_stranger_s(fact, before.as_ref()) {
            return;
        }
        self.ending.remove(id);
        if let Some(instance) = self.instances.remove(id) {
            self.unindex(id, &instance);
            if matches!(fact, Fact::PlacementReleased(released) if released.r#final) {
                self.ended_generation = self.ended_generation.max(instance.generation);
                self.ending.extend(instance.ending().map(|ending| (id.to_owned(), ending)));
            }
        }
        let held = before.clone();
        let after = step(before, fact, at, self.ended_generation);
        reserve(&mut self.snapshot, held.as_ref(), after.as_ref());
        if self.displaced.contains(id) && !still_displaced(after.as_ref(), fact, &self.snapshot) {
            self.displaced.remove(id);
        }
        let Some(instance) = after else { return };
        self.index(id, &instance);
        self.instances.insert(id.to_owned(), instance);
    }

    fn index(&mut self, id: &str, instance: &Instance) {
        if instance.unplaced.is_some() {
            self.unplaced.insert(id.to_owned());
        }
        if !instance.latency_bounds().is_empty() {
            self.bounded.insert(id.to_owned());
        }
        if let Some(since) = instance.waits_since() {
            self.waiting.insert((since, id.to_owned()));
        }
        for (cluster_id, (cpu_milli, memory_bytes)) in instance.rooms(&self.snapshot) {
            self.rooms.entry(cluster_id).or_default().insert((cpu_milli, memory_bytes, id.to_owned()));
        }
    }

    /// What it is indexed under depends on no reservation, and clusters have not changed since it was indexed.
    fn unindex(&mut self, id: &str, instance: &Instance) {
        self.unplaced.remove(id);
        self.bounded.remove(id);
        if let Some(since) = instance.waits_since() {
            self.waiting.remove(&(since, id.to_owned()));
        }
        for (cluster_id, (cpu_milli, memory_bytes)) in instance.rooms(&self.snapshot) {
            if let Some(room) = self.rooms.get_mut(&cluster_id) {
                let there = room.remove(&(cpu_milli, memory_bytes, id.to_owned()));
                debug_assert!(there, "what waits for room is indexed");
                if room.is_empty() {
                    self.rooms.remove(&cluster_id);
                }
            }
        }
    }

    fn index_rooms(&mut self) {
        self.rooms.clear();
        for id in &self.unplaced {
            let Some(instance) = self.instances.get(id) else { continue };
            for (cluster_id, (cpu_milli, memory_bytes)) in instance.rooms(&self.snapshot) {
                self.rooms.entry(cluster_id).or_default().insert((cpu_milli, memory_bytes, id.clone()));
            }
        }
    }

    fn step_cluster(&mut self, fact: &Fact, at: Timestamp) {
        step_cluster(&mut self.snapshot, fact, at);
        self.index_rooms();
        self.clusters_changed = self.clusters_changed.max(at);
        match fact {
            Fact::ClusterLost(lost) => self.displaced.extend(on_cluster(&self.instances, &lost.cluster_id)),
            Fact::ClusterReturned(_) => {
                let (instances, snapshot) = (&self.instances, &self.snapshot);
                self.displaced.retain(|id| instances.get(id).is_some_and(|i| i.is_on_lost(snapshot)));
            }
            _ => {}
        }
    }
}

impl Instance {
    fn stopping(&self) -> bool {
        self.at.as_ref().is_some_and(|a| a.standing == Standing::Stopping)
    }

    fn is_on_lost(&self, snapshot: &Snapshot) -> bool {
        !self.stopping() && self.at.iter().chain(&self.to).any(|h| !available(snapshot, &h.cluster_id))
    }

    /// Since when it waits for something that `start_limit_ms` bounds.
    fn waits_since(&self) -> Option<Timestamp> {
        match (&self.to, &self.at, &self.unplaced) {
            (Some(to), ..) => (to.standing == Standing::Awaited).then_some(to.since),
            (None, Some(at), _) if at.standing == Standing::Awaited => Some(at.since),
            (None, _, Some(unplaced)) if !self.rejected.is_empty() && !self.stopping() => Some(unplaced.since),
            _ => None,
        }
    }

    /// What is remembered of it once it has ended: where it may still run, if it must never run twice.
    fn ending(&self) -> Option<Self> {
        let at = self.at.as_ref().filter(|_| self.never_twice())?;
        let (owner, instance_id) = (self.wanted.owner.clone(), self.wanted.instance_id.clone());
        let hold = Hold { standing: Standing::Stopping, cpu_milli: 0, memory_bytes: 0, ..at.clone() };
        let wanted = InstanceWanted { owner, instance_id, ..Default::default() };
        Some(Self { wanted, at: Some(hold), ..Default::default() })
    }

    /// Where it lacks nothing but room, and how much it needs there.
    fn rooms(&self, snapshot: &Snapshot) -> Vec<(String, (u64, u64))> {
        let Some(why) = self.unplaced.as_ref().map(|u| Why::try_from(u.why).unwrap_or_default()) else { return vec![] };
        let excluded = excluded(self, why, snapshot);
        let Some(request) = request(self, &excluded) else { return vec![] };
        let room =
            |(id, cluster): (&String, &Cluster)| Some((id.clone(), plan::room(snapshot, id, cluster, &request)?));
        snapshot.clusters.iter().filter_map(room).collect()
    }

    fn latency_bounds(&self) -> &[LatencyBound] {
        self.spec.as_ref().map_or(&[], |spec| &spec.latency_bounds)
    }

    fn never_twice(&self) -> bool {
        self.spec.as_ref().is_some_and(|s| s.singleton)
    }

    fn cluster(&self) -> &str {
        self.at.as_ref().map_or("", |a| &a.cluster_id)
    }

    fn defines_the_same(&self, wanted: &InstanceWanted) -> bool {
        let own = &self.wanted;
        own.document == wanted.document
            && own.replicas == wanted.replicas
            && own.targets == wanted.targets
            && own.intent_id == wanted.intent_id
    }

    /// With this definition. What was measured is scaled to the replicas of the same document, and of no use for another.
    fn redefined(mut self, wanted: &InstanceWanted) -> Self {
        if self.wanted.document != wanted.document {
            self.measured = None;
        } else if let Some(measured) = &mut self.measured {
            let (new, old) = (u64::from(wanted.replicas), u64::from(self.wanted.replicas).max(1));
            measured.cpu_milli = u32::try_from(u64::from(measured.cpu_milli) * new / old).unwrap_or(u32::MAX);
            measured.memory_bytes = measured.memory_bytes.saturating_mul(new) / old;
        }
        self.tried.clear();
        self.rejected.clear();
        self.missed.clear();
        self.asked_by.clear();
        self.define(wanted.clone());
        self
    }

    fn define(&mut self, wanted: InstanceWanted) {
        if self.revision == 0 || !self.defines_the_same(&wanted) {
            self.spec = read_spec(&wanted);
            self.revision += 1;
        }
        self.wanted = wanted;
    }

    /// The hold that a status of this cluster and generation is about.
    fn hold_mut(&mut self, cluster_id: &str, generation: u64) -> Option<&mut Hold> {
        let holds = self.to.iter_mut().chain(&mut self.at);
        holds.into_iter().find(|h| h.cluster_id == cluster_id && h.generation == generation)
    }
}

/// What a definition asks for; `None` if its document cannot be read.
fn read_spec(wanted: &InstanceWanted) -> Option<Spec> {
    let document = WorkloadDocument::decode(wanted.document.clone()).ok()?;
    Some(Spec::of(&document, wanted.replicas))
}

fn fact_instance(fact: &Fact) -> Option<&str> {
    match fact {
        Fact::PlacementDecided(f) => Some(&f.instance_id),
        Fact::PlacementUnplaced(f) => Some(&f.instance_id),
        Fact::PlacementReleased(f) => Some(&f.instance_id),
        Fact::PlacementSettled(f) => Some(&f.instance_id),
        Fact::MigrationDeclined(f) => Some(&f.instance_id),
        Fact::ClusterJoined(_) | Fact::ClusterLost(_) | Fact::ClusterReturned(_) | Fact::LatenciesNoted(_) => None,
    }
}

fn more(fact: &Fact) -> bool {
    match fact {
        Fact::PlacementDecided(f) => f.more,
        Fact::PlacementUnplaced(f) => f.more,
        Fact::PlacementReleased(f) => f.more,
        Fact::LatenciesNoted(f) => f.more,
        _ => false,
    }
}

fn available(snapshot: &Snapshot, cluster_id: &str) -> bool {
    snapshot.clusters.get(cluster_id).is_some_and(|c| c.available)
}

fn on_cluster(instances: &BTreeMap<String, Instance>, cluster_id: &str) -> Vec<String> {
    let holds = |i: &Instance| i.at.iter().chain(&i.to).any(|h| h.cluster_id == cluster_id);
    instances.iter().filter(|(_, i)| holds(i) && !i.stopping()).map(|(id, _)| id.clone()).collect()
}

/// Another owner's wish for an id that is taken is answered, and changes nothing.
fn is_a_stranger_s(fact: &Fact, known: Option<&Instance>) -> bool {
    let owner = match fact {
        Fact::PlacementDecided(f) => &f.owner,
        Fact::PlacementUnplaced(f) => &f.owner,
        Fact::PlacementReleased(f) => &f.owner,
        _ => return false,
    };
    known.is_some_and(|i| i.wanted.owner != *owner)
}

/// It was on a lost cluster: is it still to be planned after this fact?
fn still_displaced(after: Option<&Instance>, fact: &Fact, snapshot: &Snapshot) -> bool {
    let planned = matches!(fact, Fact::PlacementDecided(_) | Fact::PlacementUnplaced(_));
    !planned && after.is_some_and(|i| i.is_on_lost(snapshot))
}

/// Takes what was held before from the clusters, and adds what is held after.
fn reserve(snapshot: &mut Snapshot, before: Option<&Instance>, after: Option<&Instance>) {
    let holds =
        |i: Option<&Instance>| i.into_iter().flat_map(|i| i.at.iter().chain(&i.to)).cloned().collect::<Vec<_>>();
    for hold in holds(before) {
        if let Some(cluster) = snapshot.clusters.get_mut(&hold.cluster_id) {
            debug_assert!(cluster.cpu_milli_reserved >= hold.cpu_milli, "more is given back than was reserved");
            cluster.cpu_milli_reserved = cluster.cpu_milli_reserved.saturating_sub(hold.cpu_milli);
            cluster.memory_bytes_reserved = cluster.memory_bytes_reserved.saturating_sub(hold.memory_bytes);
        }
    }
    for hold in holds(after) {
        if let Some(cluster) = snapshot.clusters.get_mut(&hold.cluster_id) {
            cluster.cpu_milli_reserved = cluster.cpu_milli_reserved.saturating_add(hold.cpu_milli);
            cluster.memory_bytes_reserved = cluster.memory_bytes_reserved.saturating_add(hold.memory_bytes);
        }
    }
}

fn step_cluster(snapshot: &mut Snapshot, fact: &Fact, at: Timestamp) {
    match fact {
        Fact::ClusterJoined(joined) => {
            let fresh = || Cluster { available: true, since: at, ..Default::default() };
            let cluster = snapshot.clusters.entry(joined.cluster_id.clone()).or_insert_with(fresh);
            cluster.cpu_milli = joined.cpu_milli;
            cluster.memory_bytes = joined.memory_bytes;
            cluster.labels = joined.labels.clone();
            cluster.driver = joined.driver.clone();
        }
        Fact::ClusterLost(ClusterLost { cluster_id, .. })
        | Fact::ClusterReturned(ClusterReturned { cluster_id, .. }) => {
            if let Some(cluster) = snapshot.clusters.get_mut(cluster_id) {
                cluster.available = matches!(fact, Fact::ClusterReturned(_));
                cluster.since = at;
            }
        }
        Fact::LatenciesNoted(noted) => snapshot.topology = noted.into(),
        _ => {}
    }
}

/// An instance after a fact about it. The same step makes a state from stored facts and a draft from those being decided.
fn step(instance: Option<Instance>, fact: &Fact, at: Timestamp, ended_generation: u64) -> Option<Instance> {
    let known = instance.is_some();
    let mut instance = instance.unwrap_or_else(|| Instance { generation: ended_generation, ..Default::default() });
    match fact {
        Fact::PlacementDecided(f) => {
            debug_assert!(f.generation > instance.generation, "generations rise");
            instance.define(definition(&f.owner, &f.instance_id, &f.intent_id, f.replicas, &f.document, &f.targets));
            instance.generation = f.generation;
            let hold = Hold {
                cluster_id: f.cluster_id.clone(),
                generation: f.generation,
                since: at,
                standing: Standing::Awaited,
                revision: instance.revision,
                cpu_milli: instance.spec.as_ref().map_or(0, |s| s.cpu_milli),
                memory_bytes: instance.spec.as_ref().map_or(0, |s| s.memory_bytes),
            };
            if f.from_cluster_id.is_empty() {
                instance.at = Some(hold);
                instance.to = None;
            } else {
                instance.to = Some(hold);
            }
            instance.measured = f.measured;
            instance.tried = f.tried.iter().cloned().collect();
            instance.rejected = f.rejected.iter().cloned().collect();
            instance.missed = f.missed.iter().map(|m| (m.cluster_id.clone(), m.clone())).collect();
            instance.asked_by.clear();
            instance.unplaced = None;
            if f.why == Why::Remedy as i32 {
                instance.moved = Some(at);
            }
        }
        Fact::PlacementUnplaced(f) => {
            instance.define(definition(&f.owner, &f.instance_id, &f.intent_id, f.replicas, &f.document, &f.targets));
            let failed = f.why == Why::Failed as i32;
            let is_down = |h: &&mut Hold| h.standing == Standing::Awaited || failed && h.standing == Standing::Running;
            if let Some(hold) = instance.at.as_mut().filter(is_down) {
                hold.standing = Standing::Silent;
            }
            instance.measured = f.measured;
            instance.tried = f.tried.iter().cloned().collect();
            instance.rejected = f.rejected.iter().cloned().collect();
            instance.missed = f.missed.iter().map(|m| (m.cluster_id.clone(), m.clone())).collect();
            instance.asked_by = f.asked_by.iter().cloned().collect();
            let (reason, used_up) = (f.reason.clone(), f.used_up);
            instance.unplaced = Some(Unplaced { since: at, why: f.why, reason, used_up });
        }
        Fact::PlacementReleased(f) if f.r#final => return None,
        Fact::PlacementReleased(f) => {
            let is = |h: &Hold| h.cluster_id == f.cluster_id && h.generation == f.generation;
            if instance.to.as_ref().is_some_and(is) {
                instance.to = None;
            } else if instance.at.as_ref().is_some_and(is) {
                if instance.to.is_some() {
                    instance.at = instance.to.take();
                } else if f.awaited {
                    if let Some(hold) = &mut instance.at {
                        hold.standing = Standing::Stopping;
                    }
                } else {
                    instance.at = None;
                }
            }
            if f.failed {
                instance.tried.insert(f.cluster_id.clone());
            }
        }
        Fact::PlacementSettled(f) => {
            let standing = if f.failed { Standing::Failed } else { Standing::Running };
            let revision = instance.revision;
            if let Some(hold) = instance.hold_mut(&f.cluster_id, f.generation) {
                hold.standing = standing;
                // A definition that found no place is still waiting for one.
                if hold.revision == revision {
                    instance.unplaced = None;
                    instance.asked_by.clear();
                }
            }
            // It came late, but it came.
            if !f.failed {
                instance.tried.remove(&f.cluster_id);
            }
        }
        Fact::MigrationDeclined(_)
        | Fact::ClusterJoined(_)
        | Fact::ClusterLost(_)
        | Fact::ClusterReturned(_)
        | Fact::LatenciesNoted(_) => {}
    }
    debug_assert!(instance.to.is_none() || instance.at.is_some(), "what moves is somewhere");
    (known || !instance.wanted.instance_id.is_empty()).then_some(instance)
}

/// An instance's definition as facts carry it.
fn definition(
    owner: &str,
    instance_id: &str,
    intent_id: &str,
    replicas: u32,
    document: &bytes::Bytes,
    targets: &[mesh_proto::workload::TargetBound],
) -> InstanceWanted {
    InstanceWanted {
        owner: owner.into(),
        instance_id: instance_id.into(),
        intent_id: intent_id.into(),
        replicas,
        document: document.clone(),
        targets: targets.to_vec(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
