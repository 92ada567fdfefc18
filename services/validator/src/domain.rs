//! The verdicts: on content at once, on feasibility when the world it depends on changes.
//!
//! An entity is one intent or one document name of an owner. What is judged for feasibility and for conflicts is in the
//! World: what each intent wants (WORKLOAD) and asks of instances (INTENT), and the clusters there are (CLUSTER); the
//! entity remembers only what it last said, so that only a turn is a fact.

pub(crate) mod contenders;
pub mod content;
pub(crate) mod predict;

use std::{cmp::Ordering, collections::BTreeMap};

use mesh_core::Stored;
use mesh_core::{Decider, Envelope, Key, ReadModel, Trigger};
use mesh_planner::{self as plan, Snapshot, Spec};
use mesh_proto::{
    EventSet as _, Refusal, Timestamp,
    cluster::ClusterRegistered,
    deciders::{
        stream_cluster, stream_intent, stream_workload,
        verdicts::{Fact, Input, NAME},
    },
    intent::{
        GovernedInstance, Intent, IntentConflict, IntentSubmitted, NotFulfilledState, Problem, State as IntentState,
    },
    validation::{
        ConflictsChanged, FeasibilityChanged, IntentAccepted, IntentRejected, WorkloadAccepted, WorkloadRejected,
    },
    workload::{
        InstanceChanged, InstancePhase, InstanceWanted, WorkloadDocument, WorkloadRegistered, WorkloadSubmitted,
    },
};
use prost::Message as _;
use serde::{Deserialize, Serialize};

use self::contenders::Contenders;

/// The decider of verdicts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verdicts;

/// What was last said of an intent's feasibility and its conflicts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The version that was found infeasible; `None` while nothing stands against it.
    infeasible: Option<u64>,
    /// The version whose conflicts were told last, and those.
    conflicts: Option<(u64, Vec<IntentConflict>)>,
}

/// What clusters there are and what each intent wants of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    clusters: BTreeMap<String, Cluster>,
    /// By owner and intent: requests by instance.
    wanted: BTreeMap<(String, String), BTreeMap<String, Request>>,
    /// By owner and instance: the intent that wants it.
    intents: BTreeMap<(String, String), String>,
    /// By owner and `name@version`: registered documents, and whether they expose a port; `None` of charts, whose releases
    /// may.
    documents: BTreeMap<(String, String), (Spec, Option<bool>)>,
    /// By owner and instance: what it reserves, and the cluster where it does.
    instances: BTreeMap<(String, String), Held>,
    contenders: Contenders,
    /// Time of the newest fact.
    now: Timestamp,
}

/// What an instance reserves, and where.
#[derive(Clone, Debug, Default, PartialEq)]
struct Held {
    spec: Spec,
    is_exposed: Option<bool>,
    cluster_id: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Cluster {
    cpu_milli: u64,
    memory_bytes: u64,
    labels: BTreeMap<String, String>,
    driver: String,
}

impl Cluster {
    /// The cluster as the planner looks at it, empty and with an agent that answers.
    fn planned(&self) -> plan::Cluster {
        plan::Cluster {
            cpu_milli: u32::try_from(self.cpu_milli).unwrap_or(u32::MAX),
            memory_bytes: self.memory_bytes,
            labels: self.labels.clone(),
            driver: self.driver.clone(),
            available: true,
            ..Default::default()
        }
    }
}

/// What an instance asks of one cluster, all replicas together.
#[derive(Clone, Debug, Default, PartialEq)]
struct Request {
    intent_version: u64,
    workload: String,
    replicas: u32,
    cpu_milli: u64,
    memory_bytes: u64,
    selector: BTreeMap<String, String>,
    driver: plan::Driver,
}

/// What all replicas of a document together ask for.
fn spec(document: &WorkloadDocument, replicas: u32) -> Spec {
    // Where its peers are, and how far, only the planner knows.
    Spec { latency_bounds: vec![], ..Spec::of(document, replicas.max(1)) }
}

/// Does a document expose a port? `None` of a chart.
fn is_exposed(document: &WorkloadDocument) -> Option<bool> {
    let has_port = || document.expose.as_ref().is_some_and(|expose| expose.port > 0);
    (document.kind != "chart").then(has_port)
}

impl Known {
    /// What is wrong with an intent at a time; see [`content::judge`]. Also its targets that requests measure where none
    /// can reach the workload, as far as that is known.
    pub(crate) fn judge(&self, owner: &str, intent: &Intent, at: Timestamp) -> (Vec<Problem>, String) {
        let (mut problems, infeasible) = content::judge(intent, at);
        problems.extend(content::unreachable(intent, |object| self.is_exposed(owner, object)));
        (problems, infeasible)
    }

    /// Does a registered document or an instance expose a port? `None` if that is not known.
    fn is_exposed(&self, owner: &str, object: &str) -> Option<bool> {
        let key = (owner.to_owned(), object.to_owned());
        match object.contains('@') {
            true => self.documents.get(&key)?.1,
            false => self.instances.get(&key)?.is_exposed,
        }
    }

    /// Time of the newest fact that it knows.
    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    /// What an instance of a registered document would ask for.
    pub(crate) fn spec_of_document(&self, owner: &str, workload: &str) -> Option<Spec> {
        self.documents.get(&(owner.to_owned(), workload.to_owned())).map(|(spec, _)| spec.clone())
    }

    /// What an instance asks for.
    pub(crate) fn spec_of_instance(&self, owner: &str, instance_id: &str) -> Option<Spec> {
        self.instances.get(&(owner.to_owned(), instance_id.to_owned())).map(|held| held.spec.clone())
    }

    /// Where an instance is.
    pub(crate) fn cluster_of(&self, owner: &str, instance_id: &str) -> Option<String> {
        self.instances.get(&(owner.to_owned(), instance_id.to_owned()))?.cluster_id.clone()
    }

    /// The conflicts that an intent would have with those in force.
    pub(crate) fn conflicts_with(
        &self,
        owner: &str,
        intent_id: &str,
        intent: &Intent,
        instances: &[GovernedInstance],
    ) -> Vec<IntentConflict> {
        let contender = crate::domain::contenders::contender(intent_id, intent, instances, u64::MAX);
        self.contenders.with(owner, &contender)
    }

    /// The clusters with what instances reserve there, as the planner looks at them; whether an agent answers is not known
    /// here.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (id, cluster) in &self.clusters {
            snapshot.clusters.insert(id.clone(), cluster.planned());
        }
        for held in self.instances.values() {
            let cluster = held.cluster_id.as_ref().and_then(|id| snapshot.clusters.get_mut(id));
            if let Some(cluster) = cluster {
                cluster.cpu_milli_reserved = cluster.cpu_milli_reserved.saturating_add(held.spec.cpu_milli);
                cluster.memory_bytes_reserved = cluster.memory_bytes_reserved.saturating_add(held.spec.memory_bytes);
            }
        }
        snapshot
    }

    /// The clusters as resources that goals can be translated to.
    pub(crate) fn resources(&self) -> Vec<mesh_intent::goal::Resource> {
        self.clusters.iter().map(|(id, cluster)| resource(id, cluster)).collect()
    }

    fn registered(&mut self, fact: WorkloadRegistered) {
        let Ok(document) = WorkloadDocument::decode(fact.document) else { return };
        let key = (fact.owner, format!("{}@{}", fact.name, fact.version));
        self.documents.insert(key, (spec(&document, document.replicas), is_exposed(&document)));
    }

    fn instance_changed(&mut self, fact: InstanceChanged) {
        let phase = fact.phase();
        if let Some(held) = self.instances.get_mut(&(fact.owner, fact.instance_id)) {
            let gone = matches!(phase, InstancePhase::Stopped | InstancePhase::Lost | InstancePhase::Failed);
            held.cluster_id = (!gone && !fact.cluster_id.is_empty()).then_some(fact.cluster_id);
        }
    }

    fn cluster_registered(&mut self, fact: ClusterRegistered) {
        let cluster = Cluster {
            cpu_milli: fact.cpu_milli.into(),
            memory_bytes: fact.memory_bytes,
            labels: fact.labels,
            driver: fact.driver,
        };
        self.clusters.insert(fact.cluster_id, cluster);
    }

    fn instance_wanted(&mut self, fact: InstanceWanted) {
        let instance = (fact.owner.clone(), fact.instance_id.clone());
        if fact.replicas == 0 {
            self.instances.remove(&instance);
        } else if let Ok(document) = WorkloadDocument::decode(fact.document.clone()) {
            let held = self.instances.entry(instance.clone()).or_default();
            (held.spec, held.is_exposed) = (spec(&document, fact.replicas), is_exposed(&document));
        }
        if let Some(intent) = self.intents.remove(&instance) {
            let intent = (fact.owner.clone(), intent);
            if let Some(requests) = self.wanted.get_mut(&intent) {
                requests.remove(&fact.instance_id);
                if requests.is_empty() {
                    self.wanted.remove(&intent);
                }
            }
        }
        if fact.replicas == 0 || fact.intent_id.is_empty() {
            return;
        }
        // Undecodable documents ask for nothing: they were accepted by a validator that could read them.
        let document = WorkloadDocument::decode(fact.document).unwrap_or_default();
        let resources = document.resources.unwrap_or_default();
        let request = Request {
            intent_version: fact.intent_version,
            workload: fact.workload,
            replicas: fact.replicas,
            cpu_milli: u64::from(fact.replicas) * u64::from(resources.cpu_milli),
            memory_bytes: u64::from(fact.replicas).saturating_mul(resources.memory_bytes),
            driver: plan::Driver::of(&document),
            selector: document.cluster_selector,
        };
        self.intents.insert(instance, fact.intent_id.clone());
        self.wanted.entry((fact.owner, fact.intent_id)).or_default().insert(fact.instance_id, request);
    }

    /// Is every request small enough for some empty cluster? If not, why: the nearest miss of each that is not.
    /// Without any cluster nothing is known, and nothing stands against it.
    fn shortfall<'a>(&self, requests: impl Iterator<Item = &'a Request>) -> Option<String> {
        let missed: Vec<String> = requests.filter_map(|r| self.nearest_miss(r)).collect();
        if missed.is_empty() { None } else { Some(missed.join("; ")) }
    }

    fn nearest_miss(&self, request: &Request) -> Option<String> {
        let mut nearest: Option<(&String, Miss<'_>)> = None;
        for (id, cluster) in &self.clusters {
            let miss = Miss::of(request, cluster);
            if miss.is_none() {
                return None;
            }
            if nearest.as_ref().is_none_or(|(_, best)| miss.compare(best, request) == Ordering::Less) {
                nearest = Some((id, miss));
            }
        }
        nearest.map(|(id, miss)| miss.text(request, id, &self.clusters[id]))
    }
}

/// A cluster as a resource: its labels say how fast a core of it is (`speed`, 1 when absent), and which accelerator it has
/// (`accelerator`, with `accelerator-speedup` and `accelerator-watts`).
fn resource(id: &str, cluster: &Cluster) -> mesh_intent::goal::Resource {
    let figure = |name: &str| {
        let value = cluster.labels.get(name).and_then(|text| text.trim().parse::<f64>().ok());
        value.filter(|value| value.is_finite() && *value > 0.0)
    };
    let assumed = |what: &str, label: &str, value: f64| match figure(label) {
        Some(_) => format!("{what} {value} of {id}, which its label {label} declares"),
        None => format!("{what} {value} of {id}, which no label {label} declares"),
    };
    let cpu_milli = u32::try_from(cluster.cpu_milli).unwrap_or(u32::MAX);
    let tariff = mesh_scenes::tariff::Tariff::of(&cluster.labels, cpu_milli);
    let accelerator = cluster.labels.get("accelerator").map(|name| {
        let speedup = figure("accelerator-speedup").unwrap_or(1.0);
        mesh_intent::goal::Accelerator {
            name: name.clone(),
            speedup,
            watts: figure("accelerator-watts").unwrap_or(tariff.watts_per_core),
            assumed: assumed("accelerator speed-up", "accelerator-speedup", speedup),
        }
    });
    let speed = figure("speed").unwrap_or(1.0);
    mesh_intent::goal::Resource {
        name: id.to_owned(),
        selector: cluster.labels.clone(),
        cores: f64::from(cpu_milli) / 1_000.0,
        speed,
        assumed: vec![
            assumed("core speed", "speed", speed),
            assumed("power in W when idle", "idle-watts", tariff.idle_watts),
            assumed("power in W per busy core", "watts-per-core", tariff.watts_per_core),
        ],
        idle_watts: tariff.idle_watts,
        watts_per_core: tariff.watts_per_core,
        memory_bytes: cluster.memory_bytes,
        accelerator,
    }
}

impl ReadModel for Known {
    fn apply(&mut self, fact: &Stored) {
        self.now = self.now.max(fact.time);
        match stream_intent::Event::decode(&fact.message, &fact.body) {
            Ok(stream_intent::Event::IntentAcknowledged(m)) => return self.contenders.acknowledged(&m, fact.sequence),
            Ok(stream_intent::Event::IntentStateChanged(m)) => return self.contenders.state_changed(&m),
            Ok(_) => return,
            Err(_) => {}
        }
        if let Ok(stream_cluster::Event::ClusterRegistered(fact)) =
            stream_cluster::Event::decode(&fact.message, &fact.body)
        {
            self.cluster_registered(fact);
        } else if let Ok(event) = stream_workload::Event::decode(&fact.message, &fact.body) {
            match event {
                stream_workload::Event::InstanceWanted(fact) => self.instance_wanted(fact),
                stream_workload::Event::InstanceChanged(fact) => self.instance_changed(fact),
                stream_workload::Event::WorkloadRegistered(fact) => self.registered(fact),
                _ => {}
            }
        }
    }
}

/// By how much a request misses a cluster.
struct Miss<'a> {
    driver: Option<String>,
    labels: Vec<(&'a String, &'a String)>,
    cpu_milli: u64,
    memory_bytes: u64,
}

impl<'a> Miss<'a> {
    fn of(request: &'a Request, cluster: &Cluster) -> Self {
        Self {
            driver: request.driver.ruled_out(&cluster.planned()),
            labels: request.selector.iter().filter(|(k, v)| cluster.labels.get(*k) != Some(v)).collect(),
            cpu_milli: request.cpu_milli.saturating_sub(cluster.cpu_milli),
            memory_bytes: request.memory_bytes.saturating_sub(cluster.memory_bytes),
        }
    }

    fn is_none(&self) -> bool {
        self.driver.is_none() && self.labels.is_empty() && self.cpu_milli == 0 && self.memory_bytes == 0
    }

    /// Nearer first: with the right driver, then fewer missing labels, then the smaller share of what is asked for that is missing.
    fn compare(&self, other: &Self, request: &Request) -> Ordering {
        let share = |miss: &Self| {
            let cpu = miss.cpu_milli as f64 / request.cpu_milli.max(1) as f64;
            let memory = miss.memory_bytes as f64 / request.memory_bytes.max(1) as f64;
            cpu.max(memory)
        };
        let lacks = |miss: &Self| (miss.driver.is_some(), miss.labels.len());
        lacks(self).cmp(&lacks(other)).then(share(self).total_cmp(&share(other)))
    }

    fn text(&self, request: &Request, id: &str, cluster: &Cluster) -> String {
        let mut short: Vec<String> = self.driver.iter().map(|why| format!("cannot run it ({why})")).collect();
        if !self.labels.is_empty() {
            let labels: Vec<String> = self.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            short.push(format!("lacks the label {}", labels.join(" and ")));
        }
        if self.cpu_milli > 0 {
            short.push(format!("has {} mCPU, {} short", cluster.cpu_milli, self.cpu_milli));
        }
        if self.memory_bytes > 0 {
            short.push(format!("has {} bytes of memory, {} short", cluster.memory_bytes, self.memory_bytes));
        }
        let replicas = if request.replicas == 1 { "replica" } else { "replicas" };
        format!(
            "{} needs {} mCPU and {} bytes of memory for {} {replicas}; the nearest cluster, {id}, {}",
            request.workload,
            request.cpu_milli,
            request.memory_bytes,
            request.replicas,
            short.join(" and ")
        )
    }
}

impl Decider for Verdicts {
    const NAME: &'static str = NAME;
    type State = State;
    type ReadModel = Known;
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> State {
        State::default()
    }

    fn concerns(&self, input: &Input, world: &Known) -> Vec<Key> {
        match input {
            Input::IntentSubmitted(m) => vec![Key::new([&m.owner, &m.intent_id])],
            Input::WorkloadSubmitted(m) => vec![Key::new([&m.owner, &m.name])],
            Input::IntentAcknowledged(m) => met(world, &m.owner, &m.intent_id, m.instances.iter().chain(&m.released)),
            // Whether its targets hold is not a matter of conflicts.
            Input::IntentStateChanged(m) if !takes_part(m.from.as_ref(), m.to.as_ref()) => vec![],
            Input::IntentStateChanged(m) => met(world, &m.owner, &m.intent_id, m.instances.iter()),
            Input::InstanceWanted(m) if m.intent_id.is_empty() => vec![],
            Input::InstanceWanted(m) => vec![Key::new([&m.owner, &m.intent_id])],
            Input::ClusterRegistered(_) => world.wanted.keys().map(|(o, i)| Key::new([o, i])).collect(),
        }
    }

    fn decide(
        &self,
        key: &Key,
        state: &State,
        world: &Known,
        envelope: &Envelope<Input>,
    ) -> Result<Vec<Fact>, Refusal> {
        let Trigger::Event(input) = &envelope.trigger else { return Ok(vec![]) };
        Ok(match input {
            Input::IntentSubmitted(m) => vec![intent_verdict(m, world, envelope.at)],
            Input::IntentAcknowledged(_) | Input::IntentStateChanged(_) => {
                conflicts(key, state, world).map(Fact::ConflictsChanged).into_iter().collect()
            }
            Input::WorkloadSubmitted(m) => vec![workload_verdict(m)],
            Input::InstanceWanted(_) | Input::ClusterRegistered(_) => {
                feasibility(key, state, world).map(Fact::FeasibilityChanged).into_iter().collect()
            }
        })
    }

    fn evolve(&self, mut state: State, fact: &Fact, _at: Timestamp) -> State {
        if let Fact::FeasibilityChanged(fact) = fact {
            state.infeasible = (!fact.feasible).then_some(fact.version);
        }
        if let Fact::ConflictsChanged(fact) = fact {
            state.conflicts = Some((fact.version, fact.conflicts.clone()));
        }
        state
    }

    fn due(&self, _state: &State) -> Option<Timestamp> {
        None
    }
}

/// Does this change begin or end that an intent takes part in conflicts?
fn takes_part(from: Option<&IntentState>, to: Option<&IntentState>) -> bool {
    let stands_aside = |state: Option<&IntentState>| {
        state.is_some_and(|state| {
            matches!(state.not_fulfilled_state(), NotFulfilledState::Suspended | NotFulfilledState::Terminated)
        })
    };
    stands_aside(from) || stands_aside(to)
}

/// Intents that meet on these instances; none if only the intent itself is there.
fn met<'a>(
    world: &Known,
    owner: &str,
    intent_id: &str,
    instances: impl Iterator<Item = &'a GovernedInstance>,
) -> Vec<Key> {
    let found = world.contenders.together(owner, instances.map(|g| g.instance_id.as_str()));
    if found.iter().all(|id| id == intent_id) {
        return vec![];
    }
    found.iter().map(|id| Key::new([owner, id])).collect()
}

/// The conflicts of an intent, if they are not told yet.
fn conflicts(key: &Key, state: &State, world: &Known) -> Option<ConflictsChanged> {
    let (owner, intent_id) = (key.token(0).to_owned(), key.token(1).to_owned());
    let (version, conflicts) = world.contenders.conflicts(&owner, &intent_id)?;
    let told = state.conflicts.as_ref().filter(|(told, _)| *told == version).map(|(_, conflicts)| conflicts.as_slice());
    let changed = told.unwrap_or_default() != conflicts;
    changed.then(|| ConflictsChanged { conflicts: conflicts.to_vec(), owner, intent_id, version })
}

fn intent_verdict(m: &IntentSubmitted, world: &Known, at: Timestamp) -> Fact {
    let (problems, infeasible) = match Intent::decode(m.document.clone()) {
        Ok(intent) => world.judge(&m.owner, &intent, at),
        Err(error) => (vec![undecodable("Intent", &error)], String::new()),
    };
    let (owner, intent_id, version) = (m.owner.clone(), m.intent_id.clone(), m.version);
    if problems.is_empty() {
        IntentAccepted { owner, intent_id, version }.into()
    } else {
        IntentRejected { owner, intent_id, version, problems, infeasible }.into()
    }
}

fn workload_verdict(m: &WorkloadSubmitted) -> Fact {
    let problems = match WorkloadDocument::decode(m.document.clone()) {
        Ok(document) => content::check_workload(&document),
        Err(error) => vec![undecodable("WorkloadDocument", &error)],
    };
    let (owner, name, version) = (m.owner.clone(), m.name.clone(), m.version.clone());
    if problems.is_empty() {
        WorkloadAccepted { owner, name, version }.into()
    } else {
        WorkloadRejected { owner, name, version, problems }.into()
    }
}

fn undecodable(what: &str, error: &prost::DecodeError) -> Problem {
    Problem {
        path: String::new(),
        reason: format!("the document is not a protobuf {what}: {error}"),
        hint: "encode it by the contract, or send JSON".into(),
    }
}

/// A turn, if there is one. Of a version that nothing was said of, only what stands against it is said.
fn feasibility(key: &Key, state: &State, world: &Known) -> Option<FeasibilityChanged> {
    let (owner, intent_id) = (key.token(0).to_owned(), key.token(1).to_owned());
    let requests = world.wanted.get(&(owner.clone(), intent_id.clone()))?;
    let version = requests.values().map(|r| r.intent_version).max()?;
    let shortfall = world.shortfall(requests.values());
    let said = state.infeasible == Some(version);
    match shortfall {
        Some(reason) if !said => Some(FeasibilityChanged { owner, intent_id, version, feasible: false, reason }),
        None if said => Some(FeasibilityChanged { owner, intent_id, version, feasible: true, reason: String::new() }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mesh_proto::{
        Event, FactSet as _,
        intent::{IntentAcknowledged, IntentStateChanged},
        workload::{InstanceChanged, Resources},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::domain::content::tests::{good, good_workload};

    /// The decider with its World and entities, as a shell would hold them.
    #[derive(Default)]
    struct Mesh {
        world: Known,
        states: BTreeMap<Key, State>,
        facts: Vec<(Key, Fact)>,
        sequence: u64,
    }

    impl Mesh {
        /// The World sees it if it is of its streams, then everyone concerned decides; gives the facts.
        fn tell<E: Event>(&mut self, event: E) -> Vec<Fact>
        where
            Input: From<E>,
        {
            self.sequence += 1;
            self.world.apply(&stored(&event, self.sequence));
            let input = Input::from(event);
            let envelope = Envelope {
                at: Timestamp::from_millis(self.sequence as i64),
                id: self.sequence.to_string(),
                sequence: self.sequence,
                body: input.any().body(),
                trigger: Trigger::Event(input.clone()),
            };
            let mut said = vec![];
            for key in Verdicts.concerns(&input, &self.world) {
                let state = self.states.entry(key.clone()).or_default();
                for fact in Verdicts.decide(&key, state, &self.world, &envelope).expect("verdicts refuse nothing") {
                    let of_key = fact.any().keys().into_iter().eq(key.0.iter().map(String::as_str));
                    assert!(of_key, "{fact:?} is a fact of {key}");
                    *state = Verdicts.evolve(state.clone(), &fact, envelope.at);
                    self.facts.push((key.clone(), fact.clone()));
                    said.push(fact);
                }
            }
            said
        }
    }

    fn stored<E: Event>(event: &E, sequence: u64) -> Stored {
        mesh_test::stored(event, sequence, Timestamp::default())
    }

    fn submitted(intent: &Intent, version: u64) -> IntentSubmitted {
        let document = intent.encode_to_vec().into();
        IntentSubmitted {
            owner: "local".into(),
            intent_id: "i".into(),
            version,
            document,
            command_id: "c".into(),
            rolled_back_to: 0,
        }
    }

    fn cluster(id: &str, cpu_milli: u32, memory_bytes: u64, labels: &[(&str, &str)]) -> ClusterRegistered {
        let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        ClusterRegistered { cluster_id: id.into(), cpu_milli, memory_bytes, labels, ..Default::default() }
    }

    fn wanted(intent: &str, version: u64, replicas: u32, cpu_milli: u32, memory_bytes: u64) -> InstanceWanted {
        let resources = Resources { cpu_milli, memory_bytes, ..Default::default() };
        let document = WorkloadDocument { resources: Some(resources), ..good_workload() };
        InstanceWanted {
            owner: "local".into(),
            instance_id: format!("n-{intent}"),
            workload: "spinner@1.0.0".into(),
            document: document.encode_to_vec().into(),
            replicas,
            intent_id: intent.into(),
            intent_version: version,
            ..Default::default()
        }
    }

    fn turn(facts: &[Fact]) -> Option<(u64, bool, &str)> {
        match facts {
            [] => None,
            [Fact::FeasibilityChanged(f)] => Some((f.version, f.feasible, &f.reason)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_acceptable_intent_is_accepted_in_the_version_judged() {
        let facts = Mesh::default().tell(submitted(&good(), 3));
        let accepted = IntentAccepted { owner: "local".into(), intent_id: "i".into(), version: 3 };
        assert_eq!(facts, [accepted.into()]);
    }

    #[test]
    fn an_intent_is_rejected_with_the_problems_that_a_dry_run_finds() {
        let intent = Intent { user_label: "x".into(), ..good() };
        let problems = content::check(&intent);
        let infeasible = String::new();
        let rejected =
            IntentRejected { owner: "local".into(), intent_id: "i".into(), version: 1, problems, infeasible };
        assert_eq!(Mesh::default().tell(submitted(&intent, 1)), [rejected.into()]);
    }

    #[test]
    fn bytes_that_are_no_intent_are_rejected_not_lost() {
        let document = Bytes::from_static(b"\xff\xff\xff");
        let facts = Mesh::default().tell(IntentSubmitted { document, ..submitted(&good(), 1) });
        let [Fact::IntentRejected(rejected)] = facts.as_slice() else { panic!("{facts:?}") };
        assert!(rejected.problems[0].reason.contains("not a protobuf Intent"));
    }

    #[test]
    fn a_document_is_accepted_or_rejected_by_its_own_name_and_version() {
        let submitted = |document: &WorkloadDocument| WorkloadSubmitted {
            owner: "local".into(),
            name: "spinner".into(),
            version: document.version.clone(),
            document: document.encode_to_vec().into(),
            command_id: "c".into(),
        };
        let mut mesh = Mesh::default();
        let facts = mesh.tell(submitted(&good_workload()));
        let (owner, name, version) = ("local".to_owned(), "spinner".to_owned(), "1.0.0".to_owned());
        let accepted = WorkloadAccepted { owner: owner.clone(), name: name.clone(), version };
        assert_eq!(facts, [accepted.into()]);
        let bad = WorkloadDocument { version: "latest".into(), kind: "chart".into(), ..good_workload() };
        let problems = content::check_workload(&bad);
        assert_eq!(problems.len(), 2);
        let rejected = WorkloadRejected { owner, name, version: "latest".into(), problems };
        assert_eq!(mesh.tell(submitted(&bad)), [rejected.into()]);
    }

    #[test]
    fn what_fits_an_empty_cluster_is_feasible_in_silence() {
        let mut mesh = Mesh::default();
        assert_eq!(mesh.tell(cluster("cloud", 4_000, 8_000_000_000, &[])), []);
        assert_eq!(mesh.tell(wanted("i", 1, 8, 500, 1_000_000_000)), []);
    }

    #[test]
    fn without_any_cluster_nothing_is_called_infeasible() {
        assert_eq!(Mesh::default().tell(wanted("i", 1, 100, 64_000, u64::MAX)), []);
    }

    #[test]
    fn infeasible_names_the_nearest_miss_until_a_large_cluster_joins() {
        let mut mesh = Mesh::default();
        mesh.tell(cluster("cloud", 4_000, 8_000_000_000, &[]));
        mesh.tell(cluster("device", 1_000, 1_000_000_000, &[]));
        let facts = mesh.tell(wanted("i", 1, 2, 3_000, 1_000_000_000));
        let reason = "spinner@1.0.0 needs 6000 mCPU and 2000000000 bytes of memory for 2 replicas; \
                      the nearest cluster, cloud, has 4000 mCPU, 2000 short";
        assert_eq!(turn(&facts), Some((1, false, reason)));
        assert_eq!(mesh.tell(cluster("edge", 5_999, 8_000_000_000, &[])), [], "still none");
        let facts = mesh.tell(cluster("edge", 6_000, 2_000_000_000, &[]));
        assert_eq!(turn(&facts), Some((1, true, "")), "large enough now");
        let facts = mesh.tell(cluster("edge", 6_000, 1_999_999_999, &[]));
        assert_eq!(turn(&facts).map(|t| (t.0, t.1)), Some((1, false)), "a cluster can shrink");
    }

    #[test]
    fn a_cluster_that_only_simulates_makes_nothing_feasible_that_must_run() {
        let mut mesh = Mesh::default();
        let sim = ClusterRegistered { driver: "simulated".into(), ..cluster("sim", 64_000, 64_000_000_000, &[]) };
        mesh.tell(sim);
        let facts = mesh.tell(wanted("i", 1, 1, 100, 1_000));
        let why = "sim, cannot run it (its driver is simulated, which runs nothing; the workload needs driver process)";
        assert!(turn(&facts).unwrap().2.ends_with(why), "{facts:?}");
        let facts = mesh.tell(cluster("real", 100, 1_000, &[]));
        assert_eq!(turn(&facts), Some((1, true, "")));
        let mut allowed = wanted("j", 1, 1, 200, 1_000);
        let document = WorkloadDocument::decode(allowed.document).unwrap();
        allowed.document = WorkloadDocument { driver: "any".into(), ..document }.encode_to_vec().into();
        assert_eq!(mesh.tell(allowed), [], "the real one is too small, and a simulation is allowed");
    }

    #[test]
    fn the_nearest_miss_names_memory_and_labels_too() {
        let mut mesh = Mesh::default();
        mesh.tell(cluster("cloud", 64_000, 64_000_000_000, &[("zone", "centre")]));
        let mut plant = wanted("i", 1, 1, 100, 1_000);
        let mut document = WorkloadDocument::decode(plant.document).unwrap();
        document.cluster_selector.insert("zone".into(), "plant".into());
        plant.document = document.encode_to_vec().into();
        let facts = mesh.tell(plant);
        assert!(turn(&facts).unwrap().2.ends_with("cloud, lacks the label zone=plant"), "{facts:?}");
        let facts = mesh.tell(cluster("edge", 50, 1_000, &[("zone", "plant")]));
        assert_eq!(facts, [], "no turn");
        let facts = mesh.tell(cluster("edge", 100, 1_000, &[("zone", "plant")]));
        assert_eq!(turn(&facts), Some((1, true, "")));
        let facts = mesh.tell(wanted("j", 1, 1, 65_000, 64_000_000_001));
        let short = "cloud, has 64000 mCPU, 1000 short and has 64000000000 bytes of memory, 1 short";
        assert!(turn(&facts).unwrap().2.ends_with(short), "{facts:?}");
    }

    #[test]
    fn each_version_is_told_once_and_a_smaller_one_is_feasible_in_silence() {
        let mut mesh = Mesh::default();
        mesh.tell(cluster("cloud", 1_000, 1_000, &[]));
        assert_eq!(turn(&mesh.tell(wanted("i", 1, 2, 1_000, 1_000))).map(|t| t.0), Some(1));
        assert_eq!(mesh.tell(wanted("i", 1, 2, 1_000, 1_000)), [], "said already");
        assert_eq!(turn(&mesh.tell(wanted("i", 2, 3, 1_000, 1_000))).map(|t| t.0), Some(2), "another version");
        assert_eq!(mesh.tell(wanted("i", 3, 1, 1_000, 1_000)), [], "nothing stands against this one");
    }

    #[test]
    fn an_intent_that_wants_nothing_any_more_is_judged_no_more() {
        let mut mesh = Mesh::default();
        mesh.tell(cluster("cloud", 1_000, 1_000, &[]));
        mesh.tell(wanted("i", 1, 2, 1_000, 1_000));
        mesh.tell(wanted("i", 1, 0, 1_000, 1_000));
        assert_eq!(mesh.tell(cluster("cloud", 4_000, 4_000, &[])), []);
        assert_eq!(mesh.world.wanted, BTreeMap::new());
        assert_eq!(mesh.world.intents, BTreeMap::new());
    }

    #[test]
    fn what_is_no_business_of_the_validator_concerns_nobody() {
        let mut mesh = Mesh::default();
        mesh.tell(cluster("cloud", 1, 1, &[]));
        assert_eq!(mesh.tell(wanted("", 0, 100, 1_000, 1_000)), [], "no intent wants it");
        let unknown = InstanceChanged { owner: "local".into(), instance_id: "i".into(), ..Default::default() };
        mesh.world.apply(&stored(&unknown, 9));
        mesh.world.apply(&stored(&submitted(&good(), 1), 10));
        assert_eq!(mesh.states.len(), 0);
    }

    #[test]
    fn its_name_and_rights_are_the_contract_s() {
        let (service, spec) = mesh_proto::contract().decider(Verdicts::NAME).unwrap();
        assert_eq!((service.name.as_str(), spec.area.as_str()), ("validator", Fact::AREA));
        assert_eq!(spec.world, ["CLUSTER", "WORKLOAD", "INTENT"]);
    }

    const SHARED: &str = "b6a77b9a-4cb2-41e9-953b-0a0b569c8cdb";

    /// An intent in force that governs the shared instance.
    fn in_force(id: &str, priority: u32, condition: &str, bound: &str) -> IntentAcknowledged {
        let mut intent = good();
        intent.intent_priority = priority;
        let expectation = &mut intent.intent_expectations[0];
        expectation.expectation_object.as_mut().unwrap().object_instance = SHARED.into();
        expectation.expectation_targets = vec![crate::domain::content::tests::target("cpuUsage", condition, bound)];
        IntentAcknowledged {
            owner: "local".into(),
            intent_id: id.into(),
            version: 1,
            document: intent.encode_to_vec().into(),
            instances: vec![shared()],
            ..Default::default()
        }
    }

    fn shared() -> GovernedInstance {
        GovernedInstance { expectation_id: "1".into(), instance_id: SHARED.into(), ..Default::default() }
    }

    fn moved_to(id: &str, to: NotFulfilledState, suspended_by: &str) -> IntentStateChanged {
        let state = |of: NotFulfilledState| IntentState { not_fulfilled_state: of.into(), ..Default::default() };
        // Only what was suspended is acknowledged by a change of its state.
        let resumed = to == NotFulfilledState::Acknowledged;
        IntentStateChanged {
            owner: "local".into(),
            intent_id: id.into(),
            version: 1,
            from: Some(state(if resumed { NotFulfilledState::Suspended } else { NotFulfilledState::Compliant })),
            to: Some(state(to)),
            instances: vec![shared()],
            suspended_by: suspended_by.into(),
            ..Default::default()
        }
    }

    /// Whom the facts tell of conflicts, and whether they lose one.
    fn told(facts: &[Fact]) -> Vec<(&str, Option<bool>)> {
        facts
            .iter()
            .map(|fact| {
                let Fact::ConflictsChanged(f) = fact else { panic!("{fact:?}") };
                (f.intent_id.as_str(), f.conflicts.first().map(|c| c.loses))
            })
            .collect()
    }

    #[test]
    fn two_intents_on_one_workload_conflict_only_if_no_value_satisfies_both() {
        let mut mesh = Mesh::default();
        assert_eq!(told(&mesh.tell(in_force("a", 1, "IS_LESS_THAN", "20"))), []);
        assert_eq!(told(&mesh.tell(in_force("b", 1, "IS_GREATER_THAN", "10"))), [], "15 satisfies both");
        let facts = mesh.tell(in_force("c", 5, "IS_GREATER_THAN", "30"));
        assert_eq!(told(&facts), [("a", Some(true)), ("c", Some(false))]);
        let Fact::ConflictsChanged(lost) = &facts[0] else { panic!() };
        assert_eq!(
            (lost.conflicts[0].conflicting_intent.as_str(), lost.conflicts[0].target_name.as_str()),
            ("c", "cpuUsage")
        );
        // The loser's suspension changes nothing, and is told once.
        assert_eq!(told(&mesh.tell(moved_to("a", NotFulfilledState::Suspended, "conflict"))), []);
    }

    #[test]
    fn a_conflict_is_over_when_the_winner_ends_or_is_suspended_by_command() {
        let mut mesh = Mesh::default();
        mesh.tell(in_force("a", 1, "IS_LESS_THAN", "20"));
        mesh.tell(in_force("c", 5, "IS_GREATER_THAN", "30"));
        let facts = mesh.tell(moved_to("c", NotFulfilledState::Suspended, "command"));
        assert_eq!(told(&facts), [("a", None), ("c", None)]);
        let facts = mesh.tell(moved_to("c", NotFulfilledState::Acknowledged, ""));
        assert_eq!(told(&facts), [("a", Some(true)), ("c", Some(false))]);
        let degraded = moved_to("c", NotFulfilledState::Degraded, "");
        assert_eq!(Verdicts.concerns(&degraded.clone().into(), &mesh.world), [], "a missed target is not a conflict");
        assert_eq!(told(&mesh.tell(degraded)), []);
        assert_eq!(told(&mesh.tell(moved_to("c", NotFulfilledState::Terminated, ""))), [("a", None)]);
    }

    #[test]
    fn a_next_version_is_told_of_its_conflicts_again() {
        let mut mesh = Mesh::default();
        mesh.tell(in_force("a", 1, "IS_LESS_THAN", "20"));
        mesh.tell(in_force("c", 5, "IS_GREATER_THAN", "30"));
        let next = IntentAcknowledged { version: 2, ..in_force("a", 1, "IS_LESS_THAN", "10") };
        let facts = mesh.tell(next);
        assert_eq!(told(&facts)[0], ("a", Some(true)));
    }

    #[test]
    fn an_intent_whose_end_is_past_or_before_its_start_is_infeasible() {
        let mut mesh = Mesh { sequence: 1_000_000, ..Default::default() };
        let with = |attribute: &str, at: i64| mesh_proto::intent::Context {
            context_attribute: attribute.into(),
            context_condition: "IS_EQUAL_TO".into(),
            context_value_range: Timestamp::from_millis(at).to_string(),
            id: 0,
        };
        for contexts in [
            vec![with("ServiceEndTime", 5)],
            vec![with("ServiceStartTime", 9_000_000), with("ServiceEndTime", 8_000_000)],
        ] {
            let intent = Intent { intent_contexts: contexts, ..good() };
            let facts = mesh.tell(submitted(&intent, 1));
            let [Fact::IntentRejected(rejected)] = facts.as_slice() else { panic!("{facts:?}") };
            assert!(!rejected.infeasible.is_empty());
            assert!(rejected.problems[0].path.ends_with("contextValueRange"), "{rejected:?}");
        }
        let intent = Intent { intent_contexts: vec![with("ServiceEndTime", 9_000_000)], ..good() };
        assert!(matches!(mesh.tell(submitted(&intent, 1)).as_slice(), [Fact::IntentAccepted(_)]));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Cluster(u8, u32, u64, bool),
        /// The intent's next version if the second says so.
        Want(u8, bool, u32, u32, u64, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4u8, 0..20u32, 0..20u64, any::<bool>()).prop_map(|(c, p, m, l)| Step::Cluster(c, p, m, l)),
            (0..4u8, any::<bool>(), 0..4u32, 0..8u32, 0..8u64, any::<bool>())
                .prop_map(|(i, v, r, p, m, l)| Step::Want(i, v, r, p, m, l)),
        ]
    }

    proptest! {
        /// After any history, what was last said of a version agrees with a second, simpler model; facts alternate;
        /// folding the facts, and reading a snapshot, give the state.
        #[test]
        fn what_was_last_said_is_so(steps in prop::collection::vec(step(), 1..60)) {
            let mut mesh = Mesh::default();
            let mut clusters: BTreeMap<u8, (u32, u64, bool)> = BTreeMap::new();
            let mut wants: BTreeMap<u8, (u64, u32, u64, bool)> = BTreeMap::new();
            let mut versions: BTreeMap<u8, u64> = BTreeMap::new();
            let mut said: BTreeMap<(String, u64), bool> = BTreeMap::new();
            for step in steps {
                let facts = match step {
                    Step::Cluster(c, cpu, memory, label) => {
                        clusters.insert(c, (cpu, memory, label));
                        let labels: &[(&str, &str)] = if label { &[("zone", "plant")] } else { &[] };
                        mesh.tell(cluster(&format!("c{c}"), cpu, memory, labels))
                    }
                    Step::Want(i, next, replicas, cpu, memory, label) => {
                        let version = *versions.entry(i).and_modify(|v| *v += u64::from(next)).or_insert(1);
                        let mut event = wanted(&format!("i{i}"), version, replicas, cpu, memory);
                        if label {
                            let mut document = WorkloadDocument::decode(event.document).unwrap();
                            document.cluster_selector.insert("zone".into(), "plant".into());
                            event.document = document.encode_to_vec().into();
                        }
                        match replicas {
                            0 => drop(wants.remove(&i)),
                            _ => drop(wants.insert(i, (version, replicas * cpu, u64::from(replicas) * memory, label))),
                        }
                        mesh.tell(event)
                    }
                };
                for fact in facts {
                    let Fact::FeasibilityChanged(f) = fact else { panic!("{fact:?}") };
                    prop_assert_eq!(f.reason.is_empty(), f.feasible);
                    let entry = (f.intent_id.clone(), f.version);
                    prop_assert_ne!(said.insert(entry, f.feasible), Some(f.feasible), "no turn: {:?}", f);
                }
                for (i, (version, cpu, memory, label)) in &wants {
                    let fits = clusters.values().any(|(c, m, l)| c >= cpu && m >= memory && (*l || !label));
                    let feasible = clusters.is_empty() || fits;
                    let entry = (format!("i{i}"), *version);
                    let state = mesh.states.get(&Key::new(["local".to_owned(), entry.0.clone()]));
                    let standing = state.is_some_and(|s| s.infeasible == Some(*version));
                    prop_assert_eq!(standing, !feasible, "{:?}", entry);
                }
            }
            for (key, state) in &mesh.states {
                let facts = mesh.facts.iter().filter(|(k, _)| k == key);
                let folded = facts.fold(State::default(), |s, (_, f)| Verdicts.evolve(s, f, Timestamp::default()));
                prop_assert_eq!(&folded, state);
                let snapshot = serde_json::to_vec(state).unwrap();
                prop_assert_eq!(&serde_json::from_slice::<State>(&snapshot).unwrap(), state);
            }
        }
    }
}
