use std::collections::BTreeMap;

use bytes::Bytes;
use mesh_core::Stored;
use mesh_core::{Projector as _, ReadModel as _};
use mesh_proto::{
    Event, EventSet as _, FactSet as _,
    deciders::stream_workload,
    derived_id,
    instance::InstanceStatusChanged,
    intent::{self, ExpectationTarget, Intent, IntentAcknowledged, IntentExpectation, IntentStateChanged, Problem},
    placement::{MigrationDeclined, PlacementDecided, PlacementReleased, PlacementSettled, PlacementUnplaced, Why},
    query::GetRequest,
    validation::{WorkloadAccepted, WorkloadRejected},
    workload::{
        AttachChart, ChartSpec, CheckReport, DeleteInstance, DropWorkload, InstanceChanged, InstancePhase,
        InstanceUnavailable, InstanceView, InstanceWanted, MigrateInstance, ProcessSpec, RegisterWorkload, Release,
        ReportChecks, Resources, RollbackInstance, RunInstance, StopInstance, UpgradeInstance, WorkloadDocument,
        WorkloadRefused, WorkloadSubmitted, WorkloadView,
    },
};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::domain::catalogue::Catalogue;

const RUNNING: InstancePhase = InstancePhase::Running;
const STARTING: InstancePhase = InstancePhase::Starting;

/// The decider with its World, its entities and the view, as the shells would hold them.
#[derive(Default)]
struct Mesh {
    world: Known,
    states: BTreeMap<Key, (State, Timestamp)>,
    facts: Vec<(Key, Fact, Timestamp)>,
    view: Catalogue,
    commands: u64,
    seconds: i64,
    /// Facts that the World has not seen yet, while it lags.
    unseen: Option<Vec<Stored>>,
}

impl Mesh {
    /// A second later, everyone concerned hears of it; gives what they say. What they say of documents is heard too.
    fn tell<E: Event>(&mut self, event: E) -> Vec<Fact>
    where
        Input: From<E>,
    {
        self.seconds += 1;
        self.tell_at(event.into(), self.seconds)
    }

    fn tell_at(&mut self, input: Input, seconds: i64) -> Vec<Fact> {
        self.commands += u64::from(input.any().is_command());
        let id = format!("c{}", self.commands);
        let keys: std::collections::BTreeSet<Key> = Workloads.concerns(&input, &self.world).into_iter().collect();
        let mut said = vec![];
        for key in keys {
            said.extend(self.ask(&key, Trigger::Event(input.clone()), &id, Timestamp::from_millis(seconds * 1_000)));
        }
        for registered in said.clone().iter().filter_map(|f| match f {
            Fact::WorkloadRegistered(m) => Some(m.clone()),
            _ => None,
        }) {
            said.extend(self.tell_at(registered.into(), seconds));
        }
        said
    }

    /// One entity decides, as the replica would let it.
    fn ask(&mut self, key: &Key, what: Trigger<Input>, id: &str, time: Timestamp) -> Vec<Fact> {
        let (state, last) = self.states.entry(key.clone()).or_default().clone();
        let body = match &what {
            Trigger::Event(input) => input.any().body(),
            Trigger::Due => Bytes::new(),
        };
        let command = match &what {
            Trigger::Event(input) if input.any().is_command() => input.any().message().rsplit('.').next().unwrap(),
            _ => "",
        };
        let envelope = Envelope { trigger: what, at: time.max(last), id: id.into(), sequence: 1, body };
        let facts = match Workloads.decide(key, &state, &self.world, &envelope) {
            Ok(facts) => facts,
            Err(refusal) => {
                assert_ne!(command, "", "only commands are refused: {refusal}");
                assert!(!refusal.reason.is_empty() && !refusal.hint.is_empty());
                vec![Fact::refused(&key.0, id, command, &refusal).unwrap()]
            }
        };
        for fact in &facts {
            let of_key = fact.any().keys().into_iter().eq(key.0.iter().map(String::as_str));
            assert!(of_key, "{fact:?} is a fact of {key}");
            assert!(fact.any().subject().is_ok(), "{fact:?} has a subject");
            let entry = self.states.get_mut(key).unwrap();
            entry.0 = Workloads.evolve(entry.0.clone(), fact, envelope.at);
            entry.1 = envelope.at;
            let stored = stored(fact, envelope.at);
            self.view.apply(&stored);
            match &mut self.unseen {
                Some(unseen) => unseen.push(stored),
                None => self.world.apply(&stored),
            }
            self.facts.push((key.clone(), fact.clone(), envelope.at));
        }
        facts
    }

    /// The World sees what it has not seen.
    fn catch_up(&mut self) {
        for stored in self.unseen.take().into_iter().flatten() {
            self.world.apply(&stored);
        }
    }

    /// The time of the entity has come, if it has one.
    fn pass(&mut self, token: &str) -> Vec<Fact> {
        let key = Key::new(["local", token]);
        let due = self.states.get(&key).and_then(|(state, _)| Workloads.due(state));
        due.map(|due| self.ask(&key, Trigger::Due, "due", due)).unwrap_or_default()
    }

    fn instance(&self, id: &str) -> &instance::Instance {
        &self.states[&Key::new(["local", id])].0.instance
    }

    fn shown(&self, id: &str) -> InstanceView {
        self.view.instance(&GetRequest { owner: String::new(), id: id.into() }).unwrap()
    }

    /// Types of the instance's lifecycle events.
    fn events(&self, id: &str) -> Vec<String> {
        self.shown(id).lifecycle_events.into_iter().map(|e| e.r#type).collect()
    }

    fn push(&mut self, document: &WorkloadDocument) {
        self.tell(register(document));
        let (name, version) = (document.name.clone(), document.version.clone());
        self.tell(WorkloadAccepted { owner: "local".into(), name, version });
    }

    /// With this document registered, and an instance of it wanted without an intent.
    fn with_run(document: &WorkloadDocument) -> Self {
        let mut mesh = Self::default();
        mesh.push(document);
        assert!(matches!(mesh.tell(run(document))[..], [Fact::InstanceWanted(_)]));
        mesh
    }
}

fn stored(fact: &Fact, time: Timestamp) -> Stored {
    mesh_test::stored(fact.any(), 1, time)
}

fn document(version: &str) -> WorkloadDocument {
    WorkloadDocument {
        name: "spinner".into(),
        version: version.into(),
        kind: "process".into(),
        process: Some(ProcessSpec { command: "spinner".into(), ..Default::default() }),
        resources: Some(Resources { cpu_milli: 100, memory_bytes: 1_000, ..Default::default() }),
        ..Default::default()
    }
}

fn register(document: &WorkloadDocument) -> RegisterWorkload {
    RegisterWorkload { owner: "local".into(), name: document.name.clone(), document: Some(document.clone()) }
}

fn id(n: u32) -> String {
    derived_id(&[&n.to_string()])
}

fn run(document: &WorkloadDocument) -> RunInstance {
    let workload = format!("{}@{}", document.name, document.version);
    RunInstance { owner: "local".into(), instance_id: id(1), workload, ..Default::default() }
}

fn stop() -> StopInstance {
    StopInstance { owner: "local".into(), instance_id: id(1) }
}

/// An intent's version with one expectation per entry: instance, workload (or empty) and the cpuUsage bound.
fn acknowledged(intent_id: &str, version: u64, entries: &[(&str, &str, &str)]) -> IntentAcknowledged {
    let expectation = |(n, (_, _, bound)): (usize, &(&str, &str, &str))| IntentExpectation {
        expectation_id: n.to_string(),
        expectation_targets: vec![ExpectationTarget {
            target_name: "cpuUsage".into(),
            target_condition: "IS_LESS_THAN".into(),
            target_value_range: (*bound).into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let intent_expectations = entries.iter().enumerate().map(expectation).collect();
    let governed = |(n, (instance, workload, _)): (usize, &(&str, &str, &str))| GovernedInstance {
        expectation_id: n.to_string(),
        instance_id: (*instance).into(),
        workload: (*workload).into(),
        ..Default::default()
    };
    IntentAcknowledged {
        owner: "local".into(),
        intent_id: intent_id.into(),
        version,
        document: Intent { intent_expectations, ..Default::default() }.encode_to_vec().into(),
        instances: entries.iter().enumerate().map(governed).collect(),
        ..Default::default()
    }
}

fn state_changed(intent_id: &str, to: NotFulfilledState) -> IntentStateChanged {
    let to = intent::State { not_fulfilled_state: to.into(), ..Default::default() };
    IntentStateChanged { owner: "local".into(), intent_id: intent_id.into(), to: Some(to), ..Default::default() }
}

fn terminated(intent_id: &str) -> IntentStateChanged {
    state_changed(intent_id, NotFulfilledState::Terminated)
}

fn decided(generation: u64, cluster: &str, from: &str) -> PlacementDecided {
    PlacementDecided {
        domain: "default".into(),
        owner: "local".into(),
        instance_id: id(1),
        generation,
        cluster_id: cluster.into(),
        from_cluster_id: from.into(),
        reason: "best score".into(),
        replicas: 1,
        ..Default::default()
    }
}

fn unplaced(generation: u64, why: Why, stays_on: &str) -> PlacementUnplaced {
    PlacementUnplaced {
        domain: "default".into(),
        owner: "local".into(),
        instance_id: id(1),
        generation,
        why: why.into(),
        stays_on: stays_on.into(),
        reason: "cloud: 300 mCPU short".into(),
        ..Default::default()
    }
}

fn released(generation: u64, cluster: &str) -> PlacementReleased {
    PlacementReleased {
        domain: "default".into(),
        owner: "local".into(),
        instance_id: id(1),
        cluster_id: cluster.into(),
        generation,
        reason: "not needed there".into(),
        ..Default::default()
    }
}

fn given_up(generation: u64, cluster: &str) -> PlacementSettled {
    PlacementSettled {
        owner: "local".into(),
        instance_id: id(1),
        cluster_id: cluster.into(),
        generation,
        reason: format!("failed on {cluster}: exit code 1; tried on cloud, edge, device and not further"),
        failed: true,
        ..Default::default()
    }
}

fn status(generation: u64, cluster: &str, phase: InstancePhase) -> InstanceStatusChanged {
    InstanceStatusChanged {
        cluster_id: cluster.into(),
        instance_id: id(1),
        owner: "local".into(),
        generation,
        phase: phase.into(),
        replicas_wanted: 1,
        replicas_running: u32::from(phase == RUNNING),
        ..Default::default()
    }
}

fn wanted(facts: &[Fact]) -> &InstanceWanted {
    match facts {
        [Fact::InstanceWanted(m), ..] => m,
        other => panic!("{other:?}"),
    }
}

fn unavailable(facts: &[Fact]) -> &InstanceUnavailable {
    match facts {
        [Fact::InstanceUnavailable(m)] => m,
        other => panic!("{other:?}"),
    }
}

fn changed(facts: &[Fact]) -> &InstanceChanged {
    match facts {
        [Fact::InstanceChanged(m)] => m,
        other => panic!("{other:?}"),
    }
}

/// Cluster, generation and phase.
fn place(m: &InstanceChanged) -> (&str, u64, InstancePhase) {
    (&m.cluster_id, m.generation, m.phase())
}

fn refused(facts: &[Fact]) -> &WorkloadRefused {
    match facts {
        [Fact::WorkloadRefused(m)] => m,
        other => panic!("{other:?}"),
    }
}

fn bounds(m: &InstanceWanted) -> Vec<f64> {
    m.targets.iter().map(|t| t.bound).collect()
}

// Documents.

#[test]
fn a_document_is_submitted_then_registered_as_it_came_in() {
    let mut bytes = document("1.0.0").encode_to_vec();
    bytes.extend([0xf8, 0x3f, 0x07]); // field 1023, varint 7, which nobody here knows
    let mut body = vec![3 << 3 | 2, bytes.len() as u8];
    body.extend(&bytes);
    let key = Key::new(["local", "spinner"]);
    let envelope = Envelope {
        trigger: Trigger::Event(register(&document("1.0.0")).into()),
        at: Timestamp::default(),
        id: "c".into(),
        sequence: 1,
        body: body.into(),
    };
    let facts = Workloads.decide(&key, &State::default(), &Known::default(), &envelope).unwrap();
    let submitted = WorkloadSubmitted {
        owner: "local".into(),
        name: "spinner".into(),
        version: "1.0.0".into(),
        document: bytes.clone().into(),
        command_id: "c".into(),
    };
    assert_eq!(facts, [submitted.into()]);
    let state = Workloads.evolve(State::default(), &facts[0], envelope.at);
    let accepted = WorkloadAccepted { owner: "local".into(), name: "spinner".into(), version: "1.0.0".into() };
    let envelope = Envelope { trigger: Trigger::Event(accepted.into()), ..envelope };
    let facts = Workloads.decide(&key, &state, &Known::default(), &envelope).unwrap();
    let [Fact::WorkloadRegistered(registered)] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!(registered.document, bytes);
    let state = Workloads.evolve(state, &facts[0], envelope.at);
    assert_eq!(Workloads.decide(&key, &state, &Known::default(), &envelope), Ok(vec![]), "a verdict counts once");
}

#[test]
fn the_same_document_is_accepted_again_and_another_refused() {
    let mut mesh = Mesh::default();
    mesh.push(&document("1.0.0"));
    let facts = mesh.tell(register(&document("1.0.0")));
    let [Fact::WorkloadUnchanged(same)] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!((same.version.as_str(), same.command_id.as_str()), ("1.0.0", "c2"));
    let facts = mesh.tell(register(&WorkloadDocument { replicas: 2, ..document("1.0.0") }));
    assert!(refused(&facts).reason.contains("never changes") && refused(&facts).hint.contains("new version"));
    assert!(matches!(mesh.tell(register(&document("1.1.0")))[..], [Fact::WorkloadSubmitted(_)]));
    let pending = mesh.tell(register(&WorkloadDocument { replicas: 2, ..document("1.1.0") }));
    assert!(refused(&pending).reason.contains("1.1.0"), "not while its verdict is awaited either");
}

#[test]
fn a_rejected_document_says_why_and_may_be_corrected() {
    let mut mesh = Mesh::default();
    let problems = vec![Problem { path: "kind".into(), reason: "unknown".into(), hint: "use process".into() }];
    let verdict = || WorkloadRejected {
        owner: "local".into(),
        name: "spinner".into(),
        version: "1.0.0".into(),
        problems: problems.clone(),
    };
    mesh.tell(register(&WorkloadDocument { kind: "x".into(), ..document("1.0.0") }));
    let facts = mesh.tell(verdict());
    let [Fact::WorkloadRejected(rejected)] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!(rejected.problems, problems);
    assert_eq!(mesh.tell(verdict()), [], "a verdict counts once");
    let again = mesh.tell(register(&WorkloadDocument { kind: "x".into(), ..document("1.0.0") }));
    assert!(matches!(again[..], [Fact::WorkloadSubmitted(_)]), "told again why not");
    mesh.tell(verdict());
    mesh.push(&document("1.0.0"));
    let get = GetRequest { owner: String::new(), id: "spinner@1.0.0".into() };
    assert_eq!(mesh.view.workload(&get).unwrap().status, "accepted");
}

#[test]
fn a_registration_that_cannot_be_is_refused_with_a_hint() {
    let mut mesh = Mesh::default();
    let facts = mesh.tell(RegisterWorkload { document: None, ..register(&document("1.0.0")) });
    assert_eq!(refused(&facts).reason, "the command holds no document");
    let facts = mesh.tell(RegisterWorkload { name: "other".into(), ..register(&document("1.0.0")) });
    assert!(refused(&facts).hint.contains("name the document other"));
    let named = WorkloadDocument { name: id(1), ..document("1.0.0") };
    assert!(refused(&mesh.tell(register(&named))).reason.contains("UUIDs name instances"));
    let large = WorkloadDocument { description: "x".repeat(DOCUMENT_MAX_BYTES), ..document("1.0.0") };
    assert!(refused(&mesh.tell(register(&large))).reason.contains("at most 65536"));
    let refusal = refused(&mesh.tell(register(&large))).clone();
    assert_eq!((refusal.key.as_str(), refusal.command.as_str()), ("spinner", "RegisterWorkload"));
    for n in 0..VERSIONS_MAX {
        mesh.tell(register(&document(&format!("1.0.{n}"))));
    }
    assert!(refused(&mesh.tell(register(&document("2.0.0")))).hint.contains("another name"));
}

// Instances that intents want.

#[test]
fn the_instance_of_an_intent_has_its_document_replicas_and_bounds() {
    let mut mesh = Mesh::default();
    let document = WorkloadDocument { replicas: 3, ..document("1.0.0") };
    mesh.push(&document);
    let facts = mesh.tell(acknowledged("i", 1, &[(&id(1), "spinner@1.0.0", "20")]));
    let m = wanted(&facts);
    assert_eq!((m.workload.as_str(), m.replicas, m.intent_id.as_str(), m.intent_version), ("spinner@1.0.0", 3, "i", 1));
    assert_eq!(m.document, document.encode_to_vec());
    let target = &m.targets[0];
    assert_eq!(
        (target.target_name.as_str(), target.target_condition.as_str(), target.bound),
        ("cpuUsage", "IS_LESS_THAN", 20.0)
    );
    assert_eq!(mesh.tell(acknowledged("i", 1, &[(&id(1), "spinner@1.0.0", "20")])), [], "the same again is not news");
    assert_eq!(
        (mesh.shown(&id(1)).phase(), mesh.events(&id(1))),
        (InstancePhase::Pending, vec!["rendered".to_owned()])
    );
}

#[test]
fn an_instance_waits_until_its_document_is_registered() {
    let mut mesh = Mesh::default();
    let facts = mesh.tell(acknowledged("i", 1, &[(&id(1), "spinner@1.0.0", "20")]));
    let told = unavailable(&facts);
    assert_eq!(told.reason, "workload document \"spinner@1.0.0\" is not registered");
    assert_eq!((told.hint.as_str(), told.intent_id.as_str()), ("push it", "i"));
    assert!(mesh.shown(&id(1)).reason.contains("not registered"));
    mesh.tell(register(&document("1.0.0")));
    let facts = mesh.tell(WorkloadAccepted { owner: "local".into(), name: "spinner".into(), version: "1.0.0".into() });
    let [Fact::WorkloadRegistered(_), Fact::InstanceWanted(m)] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!((m.intent_id.as_str(), bounds(m)), ("i", vec![20.0]));
    assert_eq!(Workloads.due(&mesh.states[&Key::new(["local".to_owned(), id(1)])].0), None, "nothing waits any more");
}

#[test]
fn the_hint_for_a_missing_document_names_the_nearest_one() {
    let mut mesh = Mesh::default();
    for version in ["1.9.0", "1.10.0"] {
        mesh.push(&document(version));
    }
    let mut hint = |workload: &str| {
        let facts = mesh.tell(acknowledged(&workload.replace(['@', '.'], "-"), 1, &[(&id(9), workload, "20")]));
        unavailable(&facts).hint.clone()
    };
    assert_eq!(hint("spinner@2.0.0"), "push it, or use spinner@1.10.0");
    assert_eq!(hint("spiner@1.9.0"), "push it, or did you mean spinner?");
    assert_eq!(hint("web@1.0.0"), "push it");
}

#[test]
fn an_instance_that_waits_for_a_rejected_document_says_why() {
    let mut mesh = Mesh::default();
    mesh.tell(register(&document("1.0.0")));
    let facts = mesh.tell(acknowledged("i", 1, &[(&id(1), "spinner@1.0.0", "20")]));
    assert!(unavailable(&facts).reason.contains("waits for its validation"));
    let problems = vec![Problem { path: "kind".into(), reason: "unknown".into(), hint: "use process".into() }];
    let (owner, name, version) = ("local".to_owned(), "spinner".to_owned(), "1.0.0".to_owned());
    let facts = mesh.tell(WorkloadRejected { owner, name, version, problems });
    assert_eq!(facts.len(), 2, "{facts:?}");
    let said = facts.iter().find_map(|f| if let Fact::InstanceUnavailable(m) = f { Some(m) } else { None }).unwrap();
    assert_eq!(said.reason, "workload document spinner@1.0.0 was rejected: kind: unknown (use process)");
    let later = mesh.tell(acknowledged("j", 1, &[(&id(2), "spinner@1.0.0", "20")]));
    assert_eq!(unavailable(&later).reason, said.reason, "whoever comes later is told the same");
}

#[test]
fn an_instance_that_waits_for_a_document_looks_again() {
    let mut mesh = Mesh::default();
    mesh.tell(register(&document("1.0.0")));
    mesh.unseen = Some(vec![]);
    mesh.tell(WorkloadAccepted { owner: "local".into(), name: "spinner".into(), version: "1.0.0".into() });
    let facts = mesh.tell(acknowledged("i", 1, &[(&id(1), "spinner@1.0.0", "20")]));
    unavailable(&facts);
    mesh.catch_up();
    assert_eq!(bounds(wanted(&mesh.pass(&id(1)))), [20.0]);
    assert_eq!(mesh.pass(&id(1)), [], "and then no more");
}

#[test]
fn a_next_version_brings_its_documents_and_drops_the_others() {
    let mut mesh = Mesh::default();
    mesh.push(&document("1.0.0"));
    mesh.push(&document("2.0.0"));
    mesh.tell(acknowledged("i", 1, &[(&id(1), "spinner@1.0.0", "20"), (&id(2), "spinner@1.0.0", "30")]));
    let facts = mesh.tell(acknowledged("i", 2, &[(&id(1), "spinner@2.0.0", "25")]));
    let by_id: BTreeMap<&str, &InstanceWanted> = facts
        .iter()
        .map(|f| match f {
            Fact::InstanceWanted(m) => (m.instance_id.as_str(), m),
            other => panic!("{other:?}"),
        })
        .collect();
    let (kept, dropped) = (by_id[id(1).as_str()], by_id[id(2).as_str()]);
    assert_eq!((kept.workload.as_str(), bounds(kept), kept.intent_version), ("spinner@2.0.0", vec![25.0], 2));
    assert_eq!((dropped.replicas, dropped.governors.len()), (0, 0));
    assert_eq!(mesh.tell(acknowledged("i", 2, &[(&id(1), "spinner@2.0.0", "25")])), [], "the same again is not news");
}

#[test]
fn what_an_intent_released_is_dropped_even_before_the_world_has_seen_it() {
    let mut mesh = Mesh::default();
    mesh.push(&document("1.0.0"));
    mesh.unseen = Some(vec![]);
    mesh.tell(acknowledged("i", 1, &[(&id(1), "spinner@1.0.0", "20")]));
    let released = GovernedInstance { instance_id: id(1), ..Default::default() };
    let facts = mesh.tell(IntentAcknowledged { released: vec![released], ..acknowledged("i", 2, &[]) });
    assert_eq!(wanted(&facts).replicas, 0);
}

#[test]
fn a_running_instance_stays_while_the_next_version_waits_for_its_document() {
    let mut mesh = Mesh::default();
    mesh.push(&document("1.0.0"));
    mesh.tell(acknowledged("i", 1, &[(&id(1), "spinner@1.0.0", "20")]));
    let facts = mesh.tell(acknowledged("i", 2, &[(&id(1), "spinner@2.0.0", "25")]));
    assert_eq!(unavailable(&facts).intent_version, 2);
    assert_eq!(mesh.instance(&id(1)).wanted.as_ref().unwrap().replicas, 1);
    let facts = mesh.tell(acknowledged("g", 1, &[(&id(1), "", "50")]));
    assert_eq!(bounds(wanted(&facts)), [50.0, 20.0], "another's word does not end the wait");
    mesh.tell(register(&document("2.0.0")));
    let facts = mesh.tell(WorkloadAccepted { owner: "local".into(), name: "spinner".into(), version: "2.0.0".into() });
    let [Fact::WorkloadRegistered(_), Fact::InstanceWanted(m)] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!((m.workload.as_str(), bounds(m)), ("spinner@2.0.0", vec![50.0, 25.0]));
}

#[test]
fn an_intent_that_ends_ends_what_it_made_and_frees_what_it_governed() {
    let mut mesh = Mesh::default();
    mesh.push(&document("1.0.0"));
    mesh.tell(acknowledged("i", 1, &[(&id(1), "spinner@1.0.0", "20")]));
    mesh.tell(acknowledged("g", 1, &[(&id(1), "", "10")]));
    assert_eq!(mesh.tell(state_changed("i", NotFulfilledState::Suspended)), [], "suspending leaves it as it is");
    let facts = mesh.tell(terminated("g"));
    assert_eq!((wanted(&facts).replicas, bounds(wanted(&facts))), (1, vec![20.0]));
    let facts = mesh.tell(terminated("i"));
    assert_eq!((wanted(&facts).replicas, bounds(wanted(&facts))), (0, vec![]));
    assert_eq!(mesh.tell(terminated("i")), [], "it ends once");
    let facts = mesh.tell(acknowledged("i", 2, &[(&id(1), "spinner@1.0.0", "20")]));
    assert_eq!(wanted(&facts).replicas, 1, "an update after its end wants it again");
}

#[test]
fn an_intent_that_ends_waits_no_more() {
    let mut mesh = Mesh::default();
    mesh.tell(acknowledged("i", 1, &[(&id(1), "spinner@1.0.0", "20")]));
    mesh.tell(acknowledged("g", 1, &[(&id(1), "", "10")]));
    assert!(matches!(mesh.tell(terminated("g"))[..], [Fact::InstanceUnwanted(_)]));
    let facts = mesh.tell(terminated("i"));
    assert!(matches!(facts[..], [Fact::InstanceUnwanted(_)]), "{facts:?}");
    mesh.push(&document("1.0.0"));
    assert_eq!(mesh.instance(&id(1)).wanted, None, "nobody waited for it");
    assert_eq!(mesh.world.of_intent("local", "i").count(), 0);
}

#[test]
fn an_intent_governs_an_instance_that_another_made_and_hears_how_it_fares() {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    mesh.tell(decided(1, "edge", ""));
    mesh.tell(status(1, "edge", RUNNING));
    let facts = mesh.tell(acknowledged("g", 1, &[(&id(1), "", "10")]));
    let [Fact::InstanceWanted(m), Fact::InstanceChanged(c)] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!((m.intent_id.as_str(), m.replicas, bounds(m)), ("", 1, vec![10.0]));
    assert_eq!((place(c), c.governed_by.as_slice()), (("edge", 1, RUNNING), ["g".to_owned()].as_slice()));
    assert_eq!(c.event, None);
    let facts = mesh.tell(status(1, "edge", InstancePhase::Restarting));
    assert_eq!(changed(&facts).governed_by, ["g"], "and of every change from now on");
}

#[test]
fn an_intent_that_governs_what_is_not_there_waits_until_somebody_runs_it() {
    let mut mesh = Mesh::default();
    mesh.push(&document("1.0.0"));
    let facts = mesh.tell(acknowledged("g", 1, &[(&id(1), "", "10")]));
    assert!(unavailable(&facts).reason.contains("there is no instance"));
    assert_eq!(mesh.tell(acknowledged("g", 1, &[(&id(1), "", "10")])), [], "said already");
    let facts = mesh.tell(run(&document("1.0.0")));
    let m = wanted(&facts);
    assert_eq!((facts.len(), bounds(m), m.governors.len()), (1, vec![10.0], 1));
}

// Instances without an intent.

#[test]
fn an_instance_is_run_rescaled_and_stopped_by_command() {
    let mut mesh = Mesh::default();
    mesh.push(&WorkloadDocument { replicas: 2, ..document("1.0.0") });
    let facts = mesh.tell(run(&document("1.0.0")));
    assert_eq!((wanted(&facts).replicas, wanted(&facts).command_id.as_str()), (2, "c2"), "the document's replicas");
    let facts = mesh.tell(RunInstance { replicas: 5, ..run(&document("1.0.0")) });
    assert_eq!(wanted(&facts).replicas, 5);
    let facts = mesh.tell(stop());
    assert_eq!((wanted(&facts).replicas, wanted(&facts).command_id.as_str()), (0, "c4"));
    assert_eq!(wanted(&mesh.tell(stop())).replicas, 0, "each command has its answer");
}

#[test]
fn a_remedy_adds_a_replica_up_to_what_the_document_allows() {
    let remedy = |action: Action| mesh_proto::remedy::RemedyRequested {
        owner: "local".into(),
        instance_id: id(1),
        action: action.into(),
        ..Default::default()
    };
    let mut mesh = Mesh::with_run(&WorkloadDocument { replicas_max: 2, ..document("1.0.0") });
    assert_eq!(mesh.tell(remedy(Action::Restart)), [], "that is the planner's");
    assert_eq!(wanted(&mesh.tell(remedy(Action::Scale))).replicas, 2);
    assert_eq!(mesh.tell(remedy(Action::Scale)), [], "no more than is allowed");
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    assert_eq!(mesh.tell(remedy(Action::Scale)), [], "not allowed at all");
}

#[test]
fn a_command_that_cannot_be_done_is_refused_with_a_hint() {
    let mut mesh = Mesh::default();
    mesh.push(&document("1.0.0"));
    let facts = mesh.tell(RunInstance { instance_id: "a".into(), ..run(&document("1.0.0")) });
    assert_eq!(refused(&facts).hint, "choose a UUID");
    let facts = mesh.tell(RunInstance { replicas: 101, ..run(&document("1.0.0")) });
    assert!(refused(&facts).reason.contains("at most 100"));
    assert!(refused(&mesh.tell(run(&document("2.0.0")))).hint.contains("spinner@1.0.0"));
    let facts = mesh.tell(RunInstance { workload: "spinner".into(), ..run(&document("1.0.0")) });
    assert!(refused(&facts).hint.contains("name@version"));
    assert!(refused(&mesh.tell(stop())).reason.contains("there is no instance"));
    mesh.tell(acknowledged("i", 1, &[(&id(1), "spinner@1.0.0", "20")]));
    assert!(refused(&mesh.tell(run(&document("1.0.0")))).reason.contains("intent i made"));
    assert!(refused(&mesh.tell(stop())).reason.contains("governed by intent i"));
    let before = mesh.instance(&id(1)).clone();
    mesh.tell(stop());
    assert_eq!(mesh.instance(&id(1)), &before, "a refused command leaves everything as it is");
}

// How an instance fares.

#[test]
fn an_instance_is_placed_starts_and_runs() {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    let facts = mesh.tell(decided(1, "edge", ""));
    assert_eq!(place(changed(&facts)), ("edge", 1, InstancePhase::Assigned));
    assert_eq!(changed(&facts).event.as_ref().unwrap().deployment_cluster, "edge");
    assert_eq!(place(changed(&mesh.tell(status(1, "edge", STARTING)))), ("edge", 1, STARTING));
    let facts = mesh.tell(status(1, "edge", RUNNING));
    assert_eq!((place(changed(&facts)), changed(&facts).replicas_running), (("edge", 1, RUNNING), 1));
    assert_eq!(mesh.tell(status(1, "edge", RUNNING)), [], "the same again is not news");
    let down = InstanceStatusChanged {
        restarts: 1,
        reason: "exit code 1".into(),
        ..status(1, "edge", InstancePhase::Restarting)
    };
    assert_eq!(changed(&mesh.tell(down)).reason, "exit code 1");
    mesh.tell(InstanceStatusChanged { restarts: 1, ..status(1, "edge", RUNNING) });
    assert_eq!(mesh.events(&id(1)), ["rendered", "deployment", "running", "restarted", "running"]);
    let shown = mesh.shown(&id(1));
    assert_eq!((shown.cluster_id.as_str(), shown.phase(), shown.restarts), ("edge", RUNNING, 1));
}

#[test]
fn while_it_moves_the_source_is_where_it_runs_until_the_target_does() {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    mesh.tell(decided(1, "device", ""));
    mesh.tell(status(1, "device", RUNNING));
    let facts = mesh.tell(decided(2, "cloud", "device"));
    let m = changed(&facts);
    assert_eq!((place(m), m.to_cluster_id.as_str(), m.to_generation), (("device", 1, RUNNING), "cloud", 2));
    let event = m.event.as_ref().unwrap();
    assert_eq!((event.migration_from_cluster.as_str(), event.migration_to_cluster.as_str()), ("device", "cloud"));
    assert_eq!(mesh.tell(status(2, "cloud", STARTING)), [], "the source runs on");
    assert_eq!(mesh.tell(released(1, "device")), [], "its reason is on its way");
    let facts = mesh.tell(status(2, "cloud", RUNNING));
    assert_eq!((place(changed(&facts)), changed(&facts).to_cluster_id.as_str()), (("cloud", 2, RUNNING), ""));
    assert_eq!(mesh.tell(status(1, "device", InstancePhase::Stopped)), [], "an older placement is not heard");
    assert_eq!(mesh.events(&id(1)), ["rendered", "deployment", "running", "migration", "migrated"]);
}

#[test]
fn a_move_that_is_given_up_leaves_it_where_it_was() {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    mesh.tell(decided(1, "device", ""));
    mesh.tell(status(1, "device", RUNNING));
    mesh.tell(decided(2, "cloud", "device"));
    let facts = mesh.tell(PlacementReleased { stays_on: "device".into(), ..released(2, "cloud") });
    assert_eq!((place(changed(&facts)), changed(&facts).to_generation), (("device", 1, RUNNING), 0));
    assert!(changed(&facts).reason.contains("stays on device"));
    assert_eq!(mesh.tell(status(2, "cloud", InstancePhase::Failed)), [], "what was released is not heard");
    assert_eq!(place(changed(&mesh.tell(status(1, "device", InstancePhase::Restarting)))).0, "device");
    assert_eq!(place(changed(&mesh.tell(decided(3, "edge", "device")))), ("device", 1, InstancePhase::Restarting));
}

#[test]
fn a_target_that_fails_ends_the_move_whoever_tells_first() {
    let failed =
        || InstanceStatusChanged { reason: "no such file".into(), ..status(2, "cloud", InstancePhase::Failed) };
    for decision_first in [true, false] {
        let mut mesh = Mesh::with_run(&document("1.0.0"));
        mesh.tell(decided(1, "device", ""));
        mesh.tell(status(1, "device", RUNNING));
        if decision_first {
            mesh.tell(decided(2, "cloud", "device"));
        }
        let facts = mesh.tell(failed());
        let Some(Fact::InstanceChanged(m)) = facts.last() else { panic!("{facts:?}") };
        assert_eq!((place(m), m.to_generation), (("device", 1, RUNNING), 0));
        assert_eq!(m.reason, "stays on device: cloud: no such file");
        assert_eq!(mesh.tell(decided(2, "cloud", "device")), [], "known already");
        assert_eq!(mesh.tell(PlacementReleased { stays_on: "device".into(), ..released(2, "cloud") }), []);
        assert_eq!(mesh.events(&id(1)), ["rendered", "deployment", "running", "migration"]);
    }
}

#[test]
fn when_the_source_fails_during_a_move_the_target_is_where_it_is() {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    mesh.tell(decided(1, "device", ""));
    mesh.tell(status(1, "device", RUNNING));
    mesh.tell(decided(2, "cloud", "device"));
    let facts = mesh.tell(status(1, "device", InstancePhase::Failed));
    assert_eq!(place(changed(&facts)), ("cloud", 2, InstancePhase::Assigned));
    assert_eq!(place(changed(&mesh.tell(status(2, "cloud", RUNNING)))), ("cloud", 2, RUNNING));
}

#[test]
fn it_stays_lost_until_it_runs_elsewhere() {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    mesh.tell(decided(1, "edge", ""));
    mesh.tell(status(1, "edge", RUNNING));
    let lost = PlacementDecided { why: Why::ClusterLost.into(), ..decided(2, "cloud", "") };
    let facts = mesh.tell(PlacementDecided { reason: "cluster lost: edge".into(), ..lost });
    assert_eq!(place(changed(&facts)), ("cloud", 2, InstancePhase::Lost));
    assert!(changed(&facts).reason.starts_with("cluster lost: edge"));
    assert_eq!(mesh.tell(released(1, "edge")), []);
    assert_eq!(place(changed(&mesh.tell(status(2, "cloud", STARTING)))), ("cloud", 2, InstancePhase::Lost));
    let facts = mesh.tell(status(2, "cloud", RUNNING));
    assert_eq!(place(changed(&facts)), ("cloud", 2, RUNNING));
    assert_eq!(changed(&facts).event.as_ref().unwrap().migration_from_cluster, "edge");
    assert_eq!(mesh.events(&id(1)), ["rendered", "deployment", "running", "migration", "migrated"]);
}

#[test]
fn it_stays_lost_until_its_agent_is_back_if_nothing_else_fits() {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    mesh.tell(decided(1, "edge", ""));
    mesh.tell(status(1, "edge", RUNNING));
    let facts = mesh.tell(unplaced(1, Why::ClusterLost, "edge"));
    assert_eq!((place(changed(&facts)), changed(&facts).replicas_running), (("edge", 1, InstancePhase::Lost), 0));
    assert_eq!(mesh.events(&id(1)).last().unwrap(), "lost");
    let back = mesh.seconds;
    assert_eq!(mesh.tell_at(status(1, "edge", RUNNING).into(), back - 1), [], "that was said before the loss");
    assert_eq!(place(changed(&mesh.tell(status(1, "edge", RUNNING)))), ("edge", 1, RUNNING));
    assert_eq!(
        mesh.tell_at(unplaced(1, Why::ClusterLost, "edge").into(), back),
        [],
        "that was decided before its return"
    );
}

#[test]
fn an_instance_without_a_place_says_what_is_missing() {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    let facts = mesh.tell(unplaced(0, Why::First, ""));
    assert_eq!(place(changed(&facts)), ("", 0, InstancePhase::Pending));
    assert_eq!(changed(&facts).reason, "cloud: 300 mCPU short");
    assert_eq!(mesh.tell(unplaced(0, Why::First, "")), [], "the same again is not news");
    mesh.tell(decided(1, "edge", ""));
    assert_eq!(mesh.tell(unplaced(0, Why::First, "")), [], "from before its placement");
    mesh.tell(status(1, "edge", RUNNING));
    let facts = mesh.tell(unplaced(1, Why::Remedy, "edge"));
    assert_eq!(place(changed(&facts)), ("edge", 1, RUNNING), "it runs on where it is");
    assert_eq!(mesh.events(&id(1)), ["rendered", "unplaced", "deployment", "running", "unplaced"]);
}

#[test]
fn what_must_never_run_twice_waits_between_its_places() {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    mesh.tell(decided(1, "device", ""));
    mesh.tell(status(1, "device", RUNNING));
    let facts = mesh.tell(PlacementReleased { awaited: true, ..released(1, "device") });
    assert_eq!(place(changed(&facts)), ("", 1, InstancePhase::Pending));
    mesh.tell(unplaced(1, Why::Remedy, ""));
    assert_eq!(mesh.tell(status(1, "device", InstancePhase::Stopped)), []);
    mesh.tell(decided(2, "cloud", ""));
    mesh.tell(status(2, "cloud", RUNNING));
    assert_eq!(mesh.events(&id(1)), ["rendered", "deployment", "running", "unplaced", "migration", "migrated"]);
}

#[test]
fn a_hopeless_failure_is_told_as_it_is() {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    mesh.tell(decided(1, "edge", ""));
    let failed = InstanceStatusChanged {
        hopeless: true,
        reason: "no such file or directory: spiner".into(),
        ..status(1, "edge", InstancePhase::Failed)
    };
    let facts = mesh.tell(failed);
    let m = changed(&facts);
    assert_eq!(
        (m.phase(), m.hopeless, m.reason.as_str()),
        (InstancePhase::Failed, true, "no such file or directory: spiner")
    );
    let facts = mesh.tell(decided(2, "cloud", ""));
    assert_eq!((place(changed(&facts)), changed(&facts).hopeless), (("cloud", 2, InstancePhase::Assigned), false));
}

#[test]
fn what_the_planner_gives_up_is_hopeless_until_it_runs_or_is_planned() {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    mesh.tell(decided(1, "edge", ""));
    mesh.tell(status(1, "edge", RUNNING));
    mesh.tell(status(1, "edge", InstancePhase::Failed));
    assert!(!changed(&mesh.tell(decided(2, "cloud", ""))).hopeless, "it is tried elsewhere");
    mesh.tell(status(2, "cloud", InstancePhase::Failed));
    assert_eq!(mesh.tell(PlacementSettled { failed: false, ..given_up(2, "cloud") }), vec![]);
    assert_eq!(mesh.tell(given_up(1, "edge")), vec![], "of an older generation");
    assert_eq!(mesh.tell(PlacementSettled { owner: String::new(), ..given_up(2, "cloud") }), vec![]);
    let facts = mesh.tell(given_up(2, "cloud"));
    let told = changed(&facts);
    assert_eq!((place(told), told.hopeless), (("cloud", 2, InstancePhase::Failed), true));
    assert_eq!(told.reason, "failed on cloud: exit code 1; tried on cloud, edge, device and not further");
    assert_eq!(mesh.tell(given_up(2, "cloud")), vec![], "said already");
    // Its agent restarts and tries once more.
    assert!(changed(&mesh.tell(status(2, "cloud", STARTING))).hopeless);
    assert!(changed(&mesh.tell(status(2, "cloud", InstancePhase::Failed))).hopeless);
    assert!(!changed(&mesh.tell(status(2, "cloud", RUNNING))).hopeless, "it runs after all");
    mesh.tell(status(2, "cloud", InstancePhase::Failed));
    let facts = mesh.tell(PlacementUnplaced { used_up: true, ..unplaced(2, Why::Failed, "cloud") });
    assert!(changed(&facts).hopeless);
    let facts = mesh.tell(unplaced(2, Why::Failed, "cloud"));
    assert!(!changed(&facts).hopeless, "a cluster has come that may take it");
    let facts = mesh.tell(PlacementUnplaced { used_up: true, ..unplaced(2, Why::Failed, "cloud") });
    assert!(changed(&facts).hopeless);
    let facts = mesh.tell(decided(3, "device", ""));
    assert_eq!((place(changed(&facts)), changed(&facts).hopeless), (("device", 3, InstancePhase::Assigned), false));
}

#[test]
fn an_unwanted_instance_is_stopped_once_its_cluster_says_so() {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    mesh.tell(decided(1, "edge", ""));
    mesh.tell(status(1, "edge", RUNNING));
    mesh.tell(stop());
    let facts = mesh.tell(PlacementReleased { r#final: true, ..released(1, "edge") });
    assert_eq!((place(changed(&facts)), changed(&facts).replicas_wanted), (("edge", 1, RUNNING), 0));
    assert_eq!(changed(&facts).event.as_ref().unwrap().r#type, "stopping");
    let facts = mesh.tell(status(1, "edge", InstancePhase::Stopped));
    assert_eq!(place(changed(&facts)), ("edge", 1, InstancePhase::Stopped));
    assert_eq!(mesh.pass(&id(1)), [], "nothing is waited for");
    assert_eq!(mesh.tell(status(1, "edge", RUNNING)), [], "what is over is not heard");
    mesh.tell(run(&document("1.0.0")));
    assert_eq!((mesh.shown(&id(1)).phase(), mesh.shown(&id(1)).cluster_id.as_str()), (InstancePhase::Pending, ""));
    assert_eq!(mesh.tell(status(1, "edge", RUNNING)), [], "nor what it was before it was wanted again");
    mesh.tell(decided(2, "edge", ""));
    let events = ["rendered", "deployment", "running", "stopping", "stopped", "rendered", "deployment"];
    assert_eq!(mesh.events(&id(1)), events);
}

#[test]
fn a_cluster_that_never_confirms_a_stop_is_not_waited_for_without_end() {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    mesh.tell(decided(1, "edge", ""));
    mesh.tell(status(1, "edge", RUNNING));
    mesh.tell(stop());
    assert_eq!(mesh.pass(&id(1)), [], "the planner has not released it");
    mesh.tell(PlacementReleased { r#final: true, ..released(1, "edge") });
    let facts = mesh.pass(&id(1));
    assert_eq!(place(changed(&facts)), ("edge", 1, InstancePhase::Stopped));
    assert!(changed(&facts).reason.contains("has not confirmed the stop within 60 s"));
    assert_eq!(mesh.pass(&id(1)), []);
}

#[test]
fn an_instance_that_never_had_a_place_is_stopped_at_once() {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    mesh.tell(unplaced(0, Why::First, ""));
    mesh.tell(stop());
    let facts = mesh.tell(PlacementReleased { r#final: true, ..released(0, "") });
    assert_eq!(place(changed(&facts)), ("", 0, InstancePhase::Stopped));
}

#[test]
fn nothing_is_said_of_an_instance_that_nobody_ever_wanted() {
    let mut mesh = Mesh::default();
    assert_eq!(mesh.tell(decided(1, "edge", "")), []);
    assert_eq!(mesh.tell(status(1, "edge", RUNNING)), []);
    assert_eq!(mesh.tell(unplaced(1, Why::ClusterLost, "edge")), []);
    assert_eq!(mesh.tell(released(1, "edge")), []);
}

#[test]
fn its_name_and_rights_are_the_contract_s() {
    let (service, spec) = mesh_proto::contract().decider(Workloads::NAME).unwrap();
    assert_eq!((service.name.as_str(), spec.area.as_str()), ("workload-manager", Fact::AREA));
    assert_eq!(spec.world, ["WORKLOAD"]);
    assert_eq!(stream_workload::Event::messages().len(), Fact::messages().len());
}

// Charts.

fn sha() -> String {
    "ab".repeat(32)
}

fn chart(sha256: &str) -> WorkloadDocument {
    WorkloadDocument {
        kind: CHART.into(),
        process: None,
        resources: None,
        chart: Some(ChartSpec { sha256: sha256.into(), ingress_support: false, values: "a: 1".into() }),
        ..document("1.0.0")
    }
}

fn accepted(version: &str) -> WorkloadAccepted {
    WorkloadAccepted { owner: "local".into(), name: "spinner".into(), version: version.into() }
}

fn attach(sha256: &str) -> AttachChart {
    let (owner, name, version) = ("local".into(), "spinner".into(), "1.0.0".into());
    AttachChart { owner, name, version, sha256: sha256.into() }
}

fn drop_version(version: &str) -> DropWorkload {
    DropWorkload { owner: "local".into(), name: "spinner".into(), version: version.into() }
}

/// A report on that archive whose first check came to this.
fn report(sha256: &str, fine: bool) -> ReportChecks {
    let step = match fine {
        true => chart::report::passed("structure", "fine"),
        false => {
            let problem = Problem { path: "values.yaml".into(), reason: "r".into(), hint: "c".into() };
            chart::report::failed("structure", "1 problem", vec![problem])
        }
    };
    let report = CheckReport {
        sha256: sha256.into(),
        steps: chart::report::complete(vec![step]),
        resources: Some(Resources { cpu_milli: 300, memory_bytes: 7, ..Default::default() }),
        ..Default::default()
    };
    let (owner, name, version) = ("local".into(), "spinner".into(), "1.0.0".into());
    ReportChecks { owner, name, version, report: Some(report) }
}

impl Mesh {
    fn document(&self) -> WorkloadView {
        self.view.workload(&GetRequest { owner: String::new(), id: "spinner@1.0.0".into() }).unwrap()
    }
}

#[test]
fn a_chart_is_registered_once_its_archive_has_passed_its_checks() {
    let mut mesh = Mesh::default();
    mesh.tell(register(&chart("")));
    let facts = mesh.tell(accepted("1.0.0"));
    assert!(matches!(&facts[..], [Fact::WorkloadOnboarding(m)] if m.sha256.is_empty()), "{facts:?}");
    assert_eq!(mesh.document().status, "pending", "it waits for its archive");
    assert_eq!(mesh.tell(report("", true)), [], "nothing is checked before there is an archive");
    let facts = mesh.tell(attach(&sha()));
    assert!(matches!(&facts[..], [Fact::ChartAttached(_), Fact::WorkloadOnboarding(m)] if m.sha256 == sha()));
    assert_eq!((mesh.document().status.as_str(), mesh.view.onboarding().count()), ("onboarding", 1));
    assert!(refused(&mesh.tell(run(&chart("")))).reason.contains("waits for its validation"));
    assert_eq!(mesh.tell(report(&"cd".repeat(32), true)), [], "a report on another archive is not awaited");
    let facts = mesh.tell(report(&sha(), true));
    assert!(matches!(&facts[..], [Fact::WorkloadChecked(_), Fact::WorkloadRegistered(_)]), "{facts:?}");
    assert_eq!(mesh.tell(report(&sha(), false)), [], "one report is heard");
    let view = mesh.document();
    assert_eq!((view.status.as_str(), view.report.is_some(), mesh.view.onboarding().count()), ("accepted", true, 0));
    let document = view.document.unwrap();
    let spec = document.chart.clone().unwrap();
    assert_eq!((spec.sha256, spec.values.as_str()), (sha(), "a: 1"), "it names its archive from now on");
    assert_eq!(document.resources.unwrap().cpu_milli, 300, "what it asks for was summed");
    let facts = mesh.tell(run(&chart("")));
    let ran = WorkloadDocument::decode(wanted(&facts).document.clone()).unwrap();
    assert_eq!(ran.chart.unwrap().sha256, sha(), "whoever runs it is told which archive");
}

#[test]
fn a_chart_may_name_its_archive_or_have_it_attached_before_its_verdict() {
    let mut mesh = Mesh::default();
    mesh.tell(register(&chart(&sha())));
    assert!(matches!(&mesh.tell(accepted("1.0.0"))[..], [Fact::WorkloadOnboarding(m)] if m.sha256 == sha()));
    assert!(matches!(&mesh.tell(attach(&sha()))[..], [Fact::WorkloadUnchanged(_)]));
    let other = mesh.tell(attach(&"cd".repeat(32)));
    assert!(refused(&other).hint.contains("new version"), "{other:?}");

    let mut mesh = Mesh::default();
    mesh.tell(register(&chart("")));
    assert!(matches!(&mesh.tell(attach(&sha()))[..], [Fact::ChartAttached(_)]));
    assert!(matches!(&mesh.tell(accepted("1.0.0"))[..], [Fact::WorkloadOnboarding(m)] if m.sha256 == sha()));
}

#[test]
fn a_chart_that_failed_a_check_says_why_and_may_be_pushed_again() {
    let mut mesh = Mesh::default();
    mesh.tell(register(&chart(&sha())));
    mesh.tell(accepted("1.0.0"));
    let facts = mesh.tell(report(&sha(), false));
    let [Fact::WorkloadChecked(_), Fact::WorkloadRejected(m)] = &facts[..] else { panic!("{facts:?}") };
    assert_eq!(m.problems[0].path, "chart.structure: values.yaml");
    assert_eq!((mesh.document().status.as_str(), mesh.document().problems.len()), ("rejected", 1));
    assert!(refused(&mesh.tell(attach(&sha()))).hint.contains("document again"));
    assert!(matches!(&mesh.tell(register(&chart(&sha())))[..], [Fact::WorkloadSubmitted(_)]));
    assert!(mesh.document().report.is_none(), "what was found of the one before is not a finding of this one");
    mesh.tell(accepted("1.0.0"));
    assert!(matches!(&mesh.tell(report(&sha(), true))[..], [_, Fact::WorkloadRegistered(_)]));
}

#[test]
fn an_archive_is_attached_to_a_known_chart_by_its_digest_only() {
    let mut mesh = Mesh::default();
    assert!(refused(&mesh.tell(attach(&sha()))).reason.contains("no workload document spinner@1.0.0"));
    mesh.tell(register(&document("1.0.0")));
    assert!(refused(&mesh.tell(attach(&sha()))).reason.contains("is not a chart"));
    let mut mesh = Mesh::default();
    mesh.tell(register(&chart("")));
    for bad in ["", "xyz", &"AB".repeat(32)] {
        assert!(refused(&mesh.tell(attach(bad))).reason.contains("not a SHA-256"), "{bad}");
    }
}

#[test]
fn only_a_document_that_never_could_run_is_dropped() {
    let mut mesh = Mesh::default();
    assert!(refused(&mesh.tell(drop_version("1.0.0"))).hint.contains("push it first"));
    mesh.tell(register(&chart("")));
    assert!(refused(&mesh.tell(drop_version("1.0.0"))).reason.contains("awaits its validation"));
    mesh.tell(accepted("1.0.0"));
    assert!(matches!(&mesh.tell(drop_version("1.0.0"))[..], [Fact::WorkloadDropped(_)]));
    assert!(mesh.view.workload(&GetRequest { owner: String::new(), id: "spinner".into() }).is_err());
    mesh.push(&document("1.0.0"));
    assert!(refused(&mesh.tell(drop_version("1.0.0"))).reason.contains("is registered"), "its version was free again");
}

#[test]
fn a_release_is_of_charts_and_its_names_and_values_are_usable() {
    let mut mesh = Mesh::default();
    mesh.tell(register(&chart(&sha())));
    mesh.tell(accepted("1.0.0"));
    mesh.tell(report(&sha(), true));
    let mut with = |release: Release| mesh.tell(RunInstance { release: Some(release), ..run(&chart("")) });
    let named = |name: &str| Release { name: name.into(), ..Default::default() };
    for bad in ["Web", "web_1", "-web", &"a".repeat(54)] {
        assert!(refused(&with(named(bad))).reason.contains("not a valid release name"), "{bad}");
    }
    assert!(refused(&with(Release { namespace: "a/b".into(), ..Default::default() })).reason.contains("namespace"));
    assert!(refused(&with(Release { values: "- 1".into(), ..Default::default() })).reason.contains("not a mapping"));
    assert!(refused(&with(Release { ingress: true, ..Default::default() })).hint.contains("ingressSupport"));
    let fine = with(Release { values: "a: 2".into(), ..named("web") });
    assert_eq!(wanted(&fine).release.as_ref().unwrap().name, "web");
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    let process = RunInstance { release: Some(Release::default()), ..run(&document("1.0.0")) };
    assert!(refused(&mesh.tell(process)).reason.contains("a release is of charts"));
}

// Revisions, moves, deletion.

fn upgrade(i: u8, version: &str) -> UpgradeInstance {
    UpgradeInstance {
        owner: "local".into(),
        instance_id: id(u32::from(i) + 1),
        workload: format!("spinner@{version}"),
        ..Default::default()
    }
}

fn roll_back(revision: u32) -> RollbackInstance {
    RollbackInstance { owner: "local".into(), instance_id: id(1), revision }
}

fn migrate(i: u8, to: &str) -> MigrateInstance {
    MigrateInstance { owner: "local".into(), instance_id: id(u32::from(i) + 1), to_cluster_id: to.into() }
}

fn delete() -> DeleteInstance {
    DeleteInstance { owner: "local".into(), instance_id: id(1) }
}

fn declined(generation: u64, cluster: &str) -> MigrationDeclined {
    MigrationDeclined {
        domain: "default".into(),
        owner: "local".into(),
        instance_id: id(1),
        cluster_id: cluster.into(),
        generation,
        to_cluster_id: "device".into(),
        reason: "device: 300 mCPU short".into(),
    }
}

/// Runs version 1.0.0 on the edge, and knows 1.1.0.
fn running() -> Mesh {
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    mesh.push(&document("1.1.0"));
    mesh.tell(decided(1, "edge", ""));
    mesh.tell(status(1, "edge", RUNNING));
    mesh
}

fn revision(facts: &[Fact]) -> (u32, u32, &str) {
    let m = wanted(facts);
    (m.revision, m.rolled_back_to, &m.workload)
}

#[test]
fn an_upgrade_is_the_next_revision_and_going_back_is_one_more() {
    let mut mesh = running();
    assert_eq!(revision(&mesh.tell(upgrade(0, "1.1.0"))), (2, 0, "spinner@1.1.0"));
    assert_eq!(revision(&mesh.tell(upgrade(0, "1.1.0"))), (2, 0, "spinner@1.1.0"), "the same again is not a revision");
    let more = mesh.tell(UpgradeInstance { replicas: 3, ..upgrade(0, "1.1.0") });
    assert_eq!((revision(&more).0, wanted(&more).replicas), (2, 3), "more of the same is not a revision either");
    let back = mesh.tell(roll_back(0));
    assert_eq!((revision(&back), wanted(&back).replicas), ((3, 1, "spinner@1.0.0"), 1));
    assert_eq!(revision(&mesh.tell(roll_back(2))), (4, 2, "spinner@1.1.0"));
    let events = mesh.events(&id(1));
    let last: Vec<&str> = events.iter().map(String::as_str).filter(|e| matches!(*e, "upgrade" | "rollback")).collect();
    assert_eq!(last, ["upgrade", "rollback", "rollback"]);
    let shown = mesh.shown(&id(1)).revisions;
    let shown: Vec<_> = shown.iter().map(|r| (r.revision, r.workload.as_str(), r.replicas)).collect();
    let all = [(1, "spinner@1.0.0", 1), (2, "spinner@1.1.0", 3), (3, "spinner@1.0.0", 1), (4, "spinner@1.1.0", 3)];
    assert_eq!(shown, all);
}

#[test]
fn of_many_revisions_the_newest_are_kept() {
    let mut mesh = running();
    for n in 0..REVISIONS_MAX + 5 {
        mesh.tell(upgrade(0, if n % 2 == 0 { "1.1.0" } else { "1.0.0" }));
    }
    assert_eq!(mesh.shown(&id(1)).revisions.len(), REVISIONS_MAX);
    let refusal = mesh.tell(roll_back(1));
    assert!(refused(&refusal).hint.starts_with("its revisions are 7, 8, "), "{refusal:?}");
}

#[test]
fn an_upgrade_or_a_way_back_that_cannot_be_is_refused_with_a_hint() {
    let mut mesh = Mesh::default();
    assert!(refused(&mesh.tell(upgrade(0, "1.0.0"))).reason.contains("no instance"));
    let mut mesh = running();
    assert!(refused(&mesh.tell(roll_back(0))).reason.contains("no revision before"));
    assert!(refused(&mesh.tell(roll_back(1))).reason.contains("present one"));
    assert!(refused(&mesh.tell(roll_back(9))).reason.contains("no revision 9"));
    assert!(refused(&mesh.tell(upgrade(0, "9.9.9"))).hint.contains("use spinner@1.1.0"));
    let other = UpgradeInstance { workload: "other@1.0.0".into(), ..upgrade(0, "") };
    assert!(refused(&mesh.tell(other)).hint.contains("another instance"));
    let many = UpgradeInstance { replicas: REPLICAS_MAX + 1, ..upgrade(0, "1.1.0") };
    assert!(refused(&mesh.tell(many)).reason.contains("at most 100"));
    let mut mesh = Mesh::default();
    mesh.push(&document("1.0.0"));
    mesh.tell(acknowledged("i", 1, &[(&id(1), "spinner@1.0.0", "20")]));
    assert!(refused(&mesh.tell(upgrade(0, "1.0.0"))).hint.contains("update that intent"));
    assert!(refused(&mesh.tell(roll_back(0))).hint.contains("update that intent"));
    assert!(refused(&mesh.tell(delete())).hint.contains("terminate"));
}

#[test]
fn an_atomic_upgrade_that_fails_for_good_goes_back_by_itself_once() {
    let failed = |generation| {
        let failed = status(generation, "edge", InstancePhase::Failed);
        InstanceStatusChanged { hopeless: true, ..failed }
    };
    let mut mesh = running();
    mesh.tell(UpgradeInstance { atomic: true, ..upgrade(0, "1.1.0") });
    mesh.tell(decided(2, "edge", ""));
    let facts = mesh.tell(failed(2));
    let [Fact::InstanceChanged(_), rest @ ..] = &facts[..] else { panic!("{facts:?}") };
    assert_eq!(revision(rest), (3, 1, "spinner@1.0.0"));
    assert_eq!(mesh.tell(failed(2)), [], "heard twice");
    mesh.tell(decided(3, "edge", ""));
    let facts = mesh.tell(failed(3));
    assert!(matches!(&facts[..], [Fact::InstanceChanged(_)]), "what it went back to failed, too: {facts:?}");

    let mut mesh = running();
    mesh.tell(upgrade(0, "1.1.0"));
    mesh.tell(decided(2, "edge", ""));
    assert!(matches!(&mesh.tell(failed(2))[..], [Fact::InstanceChanged(_)]), "without the wish it stays failed");
}

#[test]
fn an_atomic_upgrade_ends_once_it_runs_and_owns_only_its_failures() {
    let failed = |generation| {
        let failed = status(generation, "edge", InstancePhase::Failed);
        InstanceStatusChanged { hopeless: true, ..failed }
    };
    let atomic = |version| UpgradeInstance { atomic: true, ..upgrade(0, version) };
    let again = |facts: &[Fact]| facts.iter().any(|fact| matches!(fact, Fact::InstanceWanted(_)));
    let mut mesh = running();
    mesh.tell(atomic("1.1.0"));
    mesh.tell(decided(2, "edge", ""));
    mesh.tell(status(2, "edge", RUNNING));
    assert!(!again(&mesh.tell(failed(2))), "it ran: a failure a year later is not a failed upgrade");
    assert_eq!(mesh.instance(&id(1)).wanted.as_ref().unwrap().workload, "spinner@1.1.0");

    let mut mesh = running();
    mesh.tell(failed(1));
    mesh.tell(atomic("1.1.0"));
    assert!(!again(&mesh.tell(given_up(1, "edge"))), "a late word on the revision before");
    mesh.tell(decided(2, "edge", ""));
    assert!(again(&mesh.tell(failed(2))), "its own failure");

    let mut mesh = running();
    mesh.tell(atomic("1.1.0"));
    mesh.tell(decided(2, "cloud", "edge"));
    let elsewhere = InstanceStatusChanged { hopeless: true, ..status(2, "cloud", InstancePhase::Failed) };
    assert!(!again(&mesh.tell(elsewhere)), "the planner has the last word on a move");
    mesh.tell(PlacementReleased { stays_on: "edge".into(), ..released(2, "cloud") });
    let facts = mesh.tell(PlacementUnplaced { used_up: true, ..unplaced(2, Why::Changed, "edge") });
    let said = changed(&facts[..1]);
    assert_eq!(place(said), ("edge", 1, RUNNING), "the revision before runs on");
    assert!(said.hopeless && said.reason.contains("with the revision before"), "{}", said.reason);
    assert!(again(&facts), "and is wanted again");

    let mut mesh = running();
    mesh.tell(atomic("1.1.0"));
    mesh.tell(decided(2, "edge", ""));
    mesh.tell(upgrade(0, "1.1.0"));
    assert!(again(&mesh.tell(failed(2))), "the same upgrade again, without the wish, takes it back from nobody");
}

#[test]
fn upgrades_during_a_move_and_deletions_during_a_start_complete() {
    let mut mesh = running();
    mesh.tell(migrate(0, "cloud"));
    mesh.tell(decided(2, "cloud", "edge"));
    assert_eq!(revision(&mesh.tell(upgrade(0, "1.1.0"))).0, 2);
    mesh.tell(PlacementReleased { stays_on: "edge".into(), ..released(2, "cloud") });
    assert_eq!(place(changed(&mesh.tell(decided(3, "edge", "")))), ("edge", 3, InstancePhase::Assigned));
    assert_eq!(mesh.tell(status(2, "cloud", RUNNING)), [], "what the move's target says is not heard any more");
    assert_eq!(place(changed(&mesh.tell(status(3, "edge", RUNNING)))), ("edge", 3, RUNNING));

    let mut mesh = Mesh::with_run(&document("1.0.0"));
    mesh.tell(decided(1, "edge", ""));
    mesh.tell(status(1, "edge", STARTING));
    mesh.tell(delete());
    mesh.tell(PlacementReleased { r#final: true, ..released(1, "edge") });
    let late = mesh.tell(status(1, "edge", RUNNING));
    assert!(!late.iter().any(|f| matches!(f, Fact::InstanceDeleted(_))), "it runs yet: {late:?}");
    let facts = mesh.tell(status(1, "edge", InstancePhase::Stopped));
    assert!(matches!(facts.last(), Some(Fact::InstanceDeleted(_))), "{facts:?}");
}

#[test]
fn an_instance_of_a_lost_agent_is_deleted_but_moves_only_later() {
    let lost = || PlacementUnplaced { ..unplaced(1, Why::ClusterLost, "edge") };
    let mut mesh = running();
    mesh.tell(lost());
    assert!(refused(&mesh.tell(migrate(0, "cloud"))).reason.contains("LOST"));
    assert_eq!(revision(&mesh.tell(upgrade(0, "1.1.0"))).0, 2, "what it shall be may change all the same");
    mesh.tell(delete());
    let facts = mesh.tell(PlacementReleased { r#final: true, ..released(1, "edge") });
    assert!(matches!(facts.last(), Some(Fact::InstanceDeleted(_))), "{facts:?}");

    // Lost between the release and its word: after a while nobody waits for that.
    let mut mesh = running();
    mesh.tell(delete());
    mesh.tell(PlacementReleased { r#final: true, ..released(1, "edge") });
    mesh.seconds += STOP_CONFIRM_MS / 1_000 + 1;
    let facts = mesh.pass(&id(1));
    assert!(matches!(facts.last(), Some(Fact::InstanceDeleted(_))), "{facts:?}");
}

#[test]
fn a_governed_instance_is_upgraded_with_bounds_and_not_deleted() {
    let mut mesh = running();
    mesh.tell(acknowledged("i", 1, &[(&id(1), "", "20")]));
    let facts = mesh.tell(upgrade(0, "1.1.0"));
    assert_eq!((revision(&facts).0, bounds(wanted(&facts))), (2, vec![20.0]));
    let facts = mesh.tell(roll_back(0));
    assert_eq!((revision(&facts), bounds(wanted(&facts))), ((3, 1, "spinner@1.0.0"), vec![20.0]));
    assert!(refused(&mesh.tell(delete())).reason.contains("governed by intent i"));
    mesh.tell(terminated("i"));
    assert_eq!(wanted(&mesh.tell(delete())).replicas, 0, "once nothing governs it, it is");
}

#[test]
fn a_move_is_asked_of_the_planner_and_a_refusal_of_it_is_told_once() {
    let mut mesh = running();
    let facts = mesh.tell(migrate(0, "device"));
    let [Fact::MigrationWanted(m)] = &facts[..] else { panic!("{facts:?}") };
    assert_eq!((m.cluster_id.as_str(), m.generation, m.to_cluster_id.as_str()), ("edge", 1, "device"));
    let facts = mesh.tell(declined(1, "edge"));
    assert_eq!(changed(&facts).reason, "stays on edge: device: 300 mCPU short");
    assert_eq!(mesh.events(&id(1)).last().unwrap(), "migration_declined");
    assert_eq!(mesh.tell(declined(1, "edge")), [], "heard twice");
    mesh.tell(migrate(0, "device"));
    assert_eq!(mesh.tell(declined(1, "edge")).len(), 1, "asked for again, it is declined again");
    mesh.tell(migrate(0, "cloud"));
    mesh.tell(decided(2, "cloud", "edge"));
    assert!(refused(&mesh.tell(migrate(0, "device"))).reason.contains("moving to cloud"));
    assert_eq!(place(changed(&mesh.tell(status(2, "cloud", RUNNING)))), ("cloud", 2, RUNNING));
}

#[test]
fn only_what_runs_is_moved_and_only_elsewhere() {
    let mut mesh = Mesh::default();
    assert!(refused(&mesh.tell(migrate(0, "edge"))).reason.contains("no instance"));
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    assert!(refused(&mesh.tell(migrate(0, "edge"))).reason.contains("on no cluster"));
    mesh.tell(decided(1, "edge", ""));
    assert!(refused(&mesh.tell(migrate(0, "cloud"))).reason.contains("ASSIGNED"));
    mesh.tell(status(1, "edge", RUNNING));
    assert!(refused(&mesh.tell(migrate(0, "edge"))).reason.contains("runs on edge"));
}

#[test]
fn a_deleted_instance_stops_and_is_then_forgotten() {
    let mut mesh = running();
    let facts = mesh.tell(delete());
    assert_eq!((wanted(&facts).replicas, wanted(&facts).delete), (0, true));
    assert!(mesh.view.instance(&GetRequest { owner: String::new(), id: id(1) }).is_ok(), "it has not stopped yet");
    mesh.tell(PlacementReleased { r#final: true, ..released(1, "edge") });
    let facts = mesh.tell(status(1, "edge", InstancePhase::Stopped));
    assert!(matches!(&facts[..], [Fact::InstanceChanged(_), Fact::InstanceDeleted(_)]), "{facts:?}");
    assert!(mesh.view.instance(&GetRequest { owner: String::new(), id: id(1) }).is_err());
    assert!(refused(&mesh.tell(delete())).reason.contains("no instance"));
    assert_eq!(mesh.tell(status(1, "edge", RUNNING)), [], "what is still said of it is not heard");
    assert_eq!(revision(&mesh.tell(run(&document("1.0.0")))).0, 1, "its id may come again");
    assert_eq!(mesh.tell(decided(1, "edge", "")), [], "and knows which generations are over");
    assert_eq!(mesh.tell(decided(2, "edge", "")).len(), 1);
}

#[test]
fn a_stopped_instance_is_forgotten_at_once_unless_run_again() {
    let mut mesh = running();
    mesh.tell(stop());
    mesh.tell(PlacementReleased { r#final: true, ..released(1, "edge") });
    mesh.tell(status(1, "edge", InstancePhase::Stopped));
    assert!(matches!(&mesh.tell(delete())[..], [Fact::InstanceDeleted(m)] if !m.command_id.is_empty()));
    let mut mesh = running();
    mesh.tell(delete());
    assert!(!wanted(&mesh.tell(run(&document("1.0.0")))).delete);
    mesh.tell(PlacementReleased { r#final: true, ..released(1, "edge") });
    assert!(mesh.view.instance(&GetRequest { owner: String::new(), id: id(1) }).is_ok());
}

// Whatever happens.

const CLUSTERS: [&str; 3] = ["cloud", "edge", "device"];

/// Anything that may be heard, sensible or not.
#[derive(Clone, Debug)]
enum Any {
    Register(u8, u8),
    Verdict(u8, bool),
    Run(u8, u8),
    Stop(u8),
    Acknowledge(u8, u8, u8, bool),
    Terminate(u8),
    Decided(u8, u64, u8, u8, bool),
    Unplaced(u8, u64, u8, u8),
    Released(u8, u64, u8, bool),
    Status(u8, u64, u8, i32),
    Due(u8),
    Upgrade(u8, u8, bool),
    Rollback(u8, u32),
    Migrate(u8, u8),
    Delete(u8),
    Drop(u8),
    Declined(u8, u64, u8),
    Failed(u8, u64, u8),
}

fn any_input() -> impl Strategy<Value = Any> {
    let n = || 0..3u8;
    let g = || 0..6u64;
    prop_oneof![
        (n(), n()).prop_map(|(v, c)| Any::Register(v, c)),
        (n(), any::<bool>()).prop_map(|(v, ok)| Any::Verdict(v, ok)),
        (n(), n()).prop_map(|(i, v)| Any::Run(i, v)),
        n().prop_map(Any::Stop),
        (n(), n(), n(), any::<bool>()).prop_map(|(t, i, v, own)| Any::Acknowledge(t, i, v, own)),
        n().prop_map(Any::Terminate),
        (n(), g(), n(), 0..4u8, any::<bool>()).prop_map(|(i, g, c, f, l)| Any::Decided(i, g, c, f, l)),
        (n(), g(), n(), 0..4u8).prop_map(|(i, g, w, s)| Any::Unplaced(i, g, w, s)),
        (n(), g(), n(), any::<bool>()).prop_map(|(i, g, c, f)| Any::Released(i, g, c, f)),
        (n(), g(), n(), 1..9i32).prop_map(|(i, g, c, p)| Any::Status(i, g, c, p)),
        n().prop_map(Any::Due),
        (n(), n(), any::<bool>()).prop_map(|(i, v, atomic)| Any::Upgrade(i, v, atomic)),
        (n(), 0..5u32).prop_map(|(i, r)| Any::Rollback(i, r)),
        (n(), 0..4u8).prop_map(|(i, c)| Any::Migrate(i, c)),
        n().prop_map(Any::Delete),
        n().prop_map(Any::Drop),
        (n(), g(), n()).prop_map(|(i, g, c)| Any::Declined(i, g, c)),
        (n(), g(), n()).prop_map(|(i, g, c)| Any::Failed(i, g, c)),
    ]
}

fn cluster(n: u8) -> String {
    CLUSTERS.get(usize::from(n)).copied().unwrap_or_default().into()
}

impl Any {
    fn input(&self, versions: &mut BTreeMap<u8, u64>) -> Option<Input> {
        let version = |v: u8| format!("1.0.{v}");
        let instance_id = |i: u8| id(u32::from(i) + 1);
        Some(match *self {
            Any::Register(v, content) => {
                register(&WorkloadDocument { replicas: content.into(), ..document(&version(v)) }).into()
            }
            Any::Verdict(v, true) => {
                WorkloadAccepted { owner: "local".into(), name: "spinner".into(), version: version(v) }.into()
            }
            Any::Verdict(v, false) => {
                let problems = vec![Problem { path: "p".into(), reason: "r".into(), hint: "c".into() }];
                WorkloadRejected { owner: "local".into(), name: "spinner".into(), version: version(v), problems }.into()
            }
            Any::Run(i, v) => RunInstance { instance_id: instance_id(i), ..run(&document(&version(v))) }.into(),
            Any::Stop(i) => StopInstance { instance_id: instance_id(i), ..stop() }.into(),
            Any::Acknowledge(t, i, v, own) => {
                let next = *versions.entry(t).and_modify(|v| *v += 1).or_insert(1);
                let workload = if own { format!("spinner@{}", version(v)) } else { String::new() };
                acknowledged(&format!("i{t}"), next, &[(&instance_id(i), &workload, &(v + 1).to_string())]).into()
            }
            Any::Terminate(t) => terminated(&format!("i{t}")).into(),
            Any::Decided(i, g, c, f, lost) => PlacementDecided {
                instance_id: instance_id(i),
                why: if lost { Why::ClusterLost } else { Why::First }.into(),
                ..decided(g, &cluster(c), &cluster(f))
            }
            .into(),
            Any::Unplaced(i, g, w, s) => {
                let why = [Why::First, Why::Remedy, Why::ClusterLost][usize::from(w)];
                PlacementUnplaced { instance_id: instance_id(i), ..unplaced(g, why, &cluster(s)) }.into()
            }
            Any::Released(i, g, c, last) => {
                PlacementReleased { instance_id: instance_id(i), r#final: last, ..released(g, &cluster(c)) }.into()
            }
            Any::Status(i, g, c, p) => {
                let phase = InstancePhase::try_from(p).unwrap();
                InstanceStatusChanged { instance_id: instance_id(i), ..status(g, &cluster(c), phase) }.into()
            }
            Any::Upgrade(i, v, atomic) => UpgradeInstance { atomic, ..upgrade(i, &version(v)) }.into(),
            Any::Rollback(i, revision) => {
                RollbackInstance { owner: "local".into(), instance_id: instance_id(i), revision }.into()
            }
            Any::Migrate(i, c) => migrate(i, &cluster(c)).into(),
            Any::Delete(i) => DeleteInstance { owner: "local".into(), instance_id: instance_id(i) }.into(),
            Any::Drop(v) => drop_version(&version(v)).into(),
            Any::Declined(i, g, c) => {
                MigrationDeclined { instance_id: instance_id(i), ..declined(g, &cluster(c)) }.into()
            }
            Any::Failed(i, g, c) => {
                let failed = status(g, &cluster(c), InstancePhase::Failed);
                InstanceStatusChanged { instance_id: instance_id(i), hopeless: true, ..failed }.into()
            }
            Any::Due(_) => return None,
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is heard in whatever order: every command has exactly one answer that names it, a refused one changes
    /// nothing, a registered document never changes, an instance is wanted with a registered document and exactly the
    /// bounds of those who govern it, no two tellings in a row are the same, a thing heard twice is told once, facts
    /// and snapshots give the same state, and the view shows what the facts say.
    #[test]
    fn what_must_hold_holds(steps in prop::collection::vec(any_input(), 1..80), lag in any::<bool>()) {
        let mut mesh = Mesh::default();
        let mut versions = BTreeMap::new();
        let mut registered: BTreeMap<String, Bytes> = BTreeMap::new();
        for step in steps {
            if lag && mesh.unseen.is_none() {
                mesh.unseen = Some(vec![]);
            } else if mesh.unseen.as_ref().is_some_and(|u| u.len() > 3) {
                mesh.catch_up();
            }
            let before = mesh.states.clone();
            let (facts, input) = match (&step, step.input(&mut versions)) {
                (Any::Due(i), _) => (mesh.pass(&id(u32::from(*i) + 1)), None),
                (_, None) => continue,
                (_, Some(input)) => {
                    mesh.seconds += 1;
                    (mesh.tell_at(input.clone(), mesh.seconds), Some(input))
                }
            };
            if let Some(command) = input.as_ref().filter(|i| i.any().is_command()) {
                let id = format!("c{}", mesh.commands);
                prop_assert_eq!(facts.len(), 1, "{:?}: {:?}", command, facts);
                let answers = match &facts[0] {
                    Fact::WorkloadSubmitted(m) => &m.command_id,
                    Fact::WorkloadUnchanged(m) => &m.command_id,
                    Fact::InstanceWanted(m) => &m.command_id,
                    Fact::WorkloadRefused(m) => &m.command_id,
                    Fact::WorkloadDropped(m) => &m.command_id,
                    Fact::MigrationWanted(m) => &m.command_id,
                    Fact::InstanceDeleted(m) => &m.command_id,
                    other => panic!("{other:?}"),
                };
                prop_assert_eq!(answers, &id);
                if matches!(facts[0], Fact::WorkloadRefused(_)) {
                    for (key, state) in &mesh.states {
                        prop_assert_eq!(&before.get(key).cloned().unwrap_or_default().0, &state.0);
                    }
                }
            } else if let Some(input) = input.filter(|_| mesh.unseen.is_none()) {
                let again = mesh.tell_at(input.clone(), mesh.seconds);
                prop_assert_eq!(again, vec![], "heard twice: {:?}", input);
            }
            for (key, (state, _)) in &mesh.states {
                let old = before.get(key).and_then(|(s, _)| s.instance.wanted.clone()).map_or(0, |w| w.revision);
                let Some(wanted) = &state.instance.wanted else { continue };
                let new = wanted.revision;
                let steps = facts.iter().filter(|f| matches!(f, Fact::InstanceWanted(_))).count() as u32;
                prop_assert!(new >= old && new <= old + steps, "revision {} to {}", old, new);
                prop_assert!(wanted.rolled_back_to < new.max(1), "one goes back to what was");
                prop_assert!(state.instance.revisions.len() <= REVISIONS_MAX);
            }
            for fact in &facts {
                match fact {
                    Fact::InstanceDeleted(m) => {
                        let key = Key::new([&m.owner, &m.instance_id]);
                        prop_assert!(mesh.states[&key].0.instance.wanted.is_none());
                        let shown = mesh.view.instance(&GetRequest { owner: String::new(), id: m.instance_id.clone() });
                        prop_assert!(shown.is_err() || shown.unwrap().lifecycle_events.is_empty());
                    }
                    Fact::WorkloadRegistered(m) => {
                        let known = registered.entry(m.version.clone()).or_insert_with(|| m.document.clone());
                        prop_assert_eq!(&m.document, known, "{} changed", m.version);
                    }
                    Fact::InstanceWanted(m) if m.replicas > 0 => {
                        let version = m.workload.strip_prefix("spinner@").unwrap();
                        prop_assert_eq!(Some(&m.document), registered.get(version));
                        let all: Vec<_> = m.governors.iter().flat_map(|g| g.targets.clone()).collect();
                        prop_assert_eq!(&m.targets, &all);
                        let owned = m.governors.iter().any(|g| g.intent_id == m.intent_id);
                        prop_assert!(m.intent_id.is_empty() || owned, "{:?}", m);
                    }
                    Fact::InstanceChanged(m) => {
                        prop_assert_eq!(m.to_cluster_id.is_empty(), m.to_generation == 0);
                        prop_assert!(m.to_generation == 0 || m.to_generation > m.generation);
                        prop_assert!(m.phase() != RUNNING || !m.cluster_id.is_empty());
                        prop_assert_eq!(m.phase() == InstancePhase::Unspecified, false);
                    }
                    _ => {}
                }
            }
        }
        mesh.catch_up();
        let mut world = Known::default();
        for (_, fact, at) in &mesh.facts {
            world.apply(&stored(fact, *at));
        }
        prop_assert_eq!(&world, &mesh.world);
        for (key, (state, _)) in &mesh.states {
            let mine = || mesh.facts.iter().filter(|(k, _, _)| k == key);
            let folded = mine().fold(State::default(), |s, (_, f, at)| Workloads.evolve(s, f, *at));
            prop_assert_eq!(&folded, state);
            let snapshot = serde_json::to_vec(state).unwrap();
            prop_assert_eq!(&serde_json::from_slice::<State>(&snapshot).unwrap(), state);
            let told: Vec<_> = mine().filter_map(|(_, f, _)| match f {
                Fact::InstanceChanged(m) => Some(Some(InstanceChanged { event: None, ..m.clone() })),
                Fact::InstanceWanted(_) | Fact::MigrationWanted(_) | Fact::InstanceDeleted(_) => Some(None),
                _ => None,
            }).collect();
            let lost = |m: &Option<InstanceChanged>| m.as_ref().is_none_or(|m| m.phase() == InstancePhase::Lost);
            for pair in told.windows(2).filter(|p| !lost(&p[0])) {
                prop_assert_ne!(&pair[0], &pair[1], "told twice");
            }
            let Some(wanted) = &state.instance.wanted else { continue };
            let shown = mesh.shown(key.token(1));
            let phase = match state.instance.changed.phase() {
                InstancePhase::Unspecified => InstancePhase::Stopped,
                phase => phase,
            };
            prop_assert_eq!((shown.phase(), shown.replicas_wanted), (phase, wanted.replicas));
            prop_assert_eq!(shown.cluster_id, state.instance.changed.cluster_id.clone());
        }
    }
}

// The planner and the agents, heard in any order.

/// What a planner and its agents do with an instance, one after the other.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Start,
    StartLate,
    FailElsewhere,
    FailForGood,
    GivenUp,
    UsedUp,
    TriesAgain,
    Move,
    MoveFails,
    MoveSilent,
    SourceFailsMoving,
    Restart,
    LoseAndPlace,
    LoseAndReturn,
    LoseAndReplan,
    LoseForGood,
    NoBetter,
    Redefine,
    MoveAlone,
    End,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop::sample::select(vec![
        Deed::Start,
        Deed::StartLate,
        Deed::FailElsewhere,
        Deed::FailForGood,
        Deed::GivenUp,
        Deed::UsedUp,
        Deed::TriesAgain,
        Deed::Move,
        Deed::Move,
        Deed::MoveFails,
        Deed::MoveSilent,
        Deed::SourceFailsMoving,
        Deed::Restart,
        Deed::LoseAndPlace,
        Deed::LoseAndReturn,
        Deed::LoseAndReplan,
        Deed::LoseForGood,
        Deed::NoBetter,
        Deed::Redefine,
        Deed::MoveAlone,
        Deed::End,
    ])
}

/// A history in the order in which it happened, and where it leads.
#[derive(Default)]
struct History {
    /// Commands, PLACEMENT and INSTANCE: each with its time in seconds, and the commands that came before it.
    streams: [Vec<(Input, i64, usize)>; 3],
    commands: usize,
    seconds: i64,
    generation: u64,
    at: (String, u64),
    phase: InstancePhase,
    hopeless: bool,
}

impl History {
    fn add(&mut self, stream: usize, input: impl Into<Input>) {
        self.seconds += 1;
        self.streams[stream].push((input.into(), self.seconds, self.commands));
    }

    fn command(&mut self, input: impl Into<Input>) {
        self.add(0, input);
        self.commands += 1;
    }

    fn plan(&mut self, input: impl Into<Input>) {
        self.add(1, input);
    }

    fn say(&mut self, at: &(String, u64), phase: InstancePhase) {
        self.add(2, status(at.1, &at.0, phase));
    }

    fn elsewhere(&mut self) -> (String, u64) {
        self.generation += 1;
        let at = CLUSTERS.iter().position(|c| *c == self.at.0).unwrap_or_default();
        (CLUSTERS[(at + 1 + self.generation as usize % 2) % 3].to_owned(), self.generation)
    }

    fn arrive(&mut self, to: (String, u64)) {
        self.say(&to, STARTING);
        self.say(&to, RUNNING);
        (self.at, self.phase, self.hopeless) = (to, RUNNING, false);
    }

    /// What was done, if it could be.
    fn act(&mut self, deed: Deed) {
        let placed = !self.at.0.is_empty();
        let (runs, at) = (self.phase == RUNNING, self.at.clone());
        let on = |to: &(String, u64), from: &str| decided(to.1, &to.0, from);
        let lost = |to: &(String, u64)| PlacementDecided { why: Why::ClusterLost.into(), ..decided(to.1, &to.0, "") };
        match deed {
            Deed::Start if !placed => {
                if self.phase == InstancePhase::Stopped {
                    self.command(run(&document("1.0.0")));
                }
                let to = self.elsewhere();
                self.plan(on(&to, ""));
                self.arrive(to);
            }
            Deed::StartLate if !placed && self.phase != InstancePhase::Stopped => {
                let late = self.elsewhere();
                self.plan(on(&late, ""));
                self.at = late.clone();
                let to = self.elsewhere();
                self.plan(on(&to, ""));
                self.plan(released(late.1, &late.0));
                self.say(&late, STARTING);
                self.say(&late, InstancePhase::Stopped);
                self.arrive(to);
            }
            Deed::FailElsewhere if runs => {
                self.say(&at, InstancePhase::Failed);
                let to = self.elsewhere();
                self.plan(on(&to, ""));
                self.plan(released(at.1, &at.0));
                self.say(&at, InstancePhase::Stopped);
                self.arrive(to);
            }
            Deed::FailForGood if runs => {
                self.say(&at, InstancePhase::Failed);
                self.plan(unplaced(self.generation, Why::Failed, &at.0));
                self.phase = InstancePhase::Failed;
            }
            Deed::GivenUp if runs => {
                self.say(&at, InstancePhase::Failed);
                self.plan(given_up(at.1, &at.0));
                (self.phase, self.hopeless) = (InstancePhase::Failed, true);
            }
            Deed::UsedUp if runs => {
                self.say(&at, InstancePhase::Failed);
                self.plan(PlacementUnplaced { used_up: true, ..unplaced(self.generation, Why::Failed, &at.0) });
                (self.phase, self.hopeless) = (InstancePhase::Failed, true);
            }
            Deed::TriesAgain if self.phase == InstancePhase::Failed => {
                self.say(&at, STARTING);
                self.say(&at, InstancePhase::Failed);
            }
            Deed::Move if runs => {
                let to = self.elsewhere();
                self.plan(on(&to, &at.0));
                self.arrive(to);
                self.plan(released(at.1, &at.0));
                self.say(&at, InstancePhase::Stopped);
            }
            Deed::MoveFails if runs => {
                let to = self.elsewhere();
                self.plan(on(&to, &at.0));
                self.say(&to, STARTING);
                self.say(&to, InstancePhase::Failed);
                self.plan(PlacementReleased { stays_on: at.0.clone(), failed: true, ..released(to.1, &to.0) });
                self.say(&to, InstancePhase::Stopped);
            }
            Deed::MoveSilent if runs => {
                let to = self.elsewhere();
                self.plan(on(&to, &at.0));
                self.plan(PlacementReleased { stays_on: at.0.clone(), failed: true, ..released(to.1, &to.0) });
                self.say(&to, InstancePhase::Stopped);
            }
            Deed::SourceFailsMoving if runs => {
                let to = self.elsewhere();
                self.plan(on(&to, &at.0));
                self.say(&at, InstancePhase::Failed);
                self.plan(released(at.1, &at.0));
                self.say(&at, InstancePhase::Stopped);
                self.arrive(to);
            }
            Deed::Restart if runs => {
                self.say(&at, InstancePhase::Restarting);
                self.say(&at, RUNNING);
            }
            Deed::LoseAndPlace if runs => {
                let to = self.elsewhere();
                self.plan(lost(&to));
                self.plan(released(at.1, &at.0));
                self.arrive(to);
                self.say(&at, InstancePhase::Stopped);
            }
            Deed::LoseAndReturn if runs => {
                self.plan(unplaced(self.generation, Why::ClusterLost, &at.0));
                self.arrive(at);
            }
            Deed::LoseAndReplan if runs => {
                self.plan(unplaced(self.generation, Why::ClusterLost, &at.0));
                self.generation += 1;
                let to = (at.0, self.generation);
                self.plan(lost(&to));
                self.arrive(to);
            }
            Deed::LoseForGood if runs => {
                self.plan(unplaced(self.generation, Why::ClusterLost, &at.0));
                self.phase = InstancePhase::Lost;
            }
            Deed::NoBetter if runs => self.plan(unplaced(self.generation, Why::Remedy, &at.0)),
            Deed::Redefine if placed => {
                self.generation += 1;
                let to = (at.0, self.generation);
                self.plan(on(&to, ""));
                self.arrive(to);
            }
            Deed::MoveAlone if runs => {
                self.plan(PlacementReleased { awaited: true, ..released(at.1, &at.0) });
                self.plan(unplaced(self.generation, Why::Remedy, ""));
                self.say(&at, InstancePhase::Stopped);
                let to = self.elsewhere();
                self.plan(on(&to, ""));
                self.arrive(to);
            }
            Deed::End if runs => {
                self.command(stop());
                self.plan(PlacementReleased { r#final: true, ..released(at.1, &at.0) });
                self.say(&at, InstancePhase::Stopped);
                (self.at, self.phase) = ((String::new(), self.generation), InstancePhase::Stopped);
            }
            _ => {}
        }
    }
}

/// Acts the deeds, hears their streams in this order, and compares where it ends with where the world left it.
fn heard(deeds: Vec<Deed>, order: Vec<usize>) -> Result<(), TestCaseError> {
    let mut history = History::default();
    deeds.into_iter().for_each(|deed| history.act(deed));
    let mut mesh = Mesh::with_run(&document("1.0.0"));
    let base = mesh.seconds;
    let mut next = [0; 3];
    let mut order = order.into_iter();
    loop {
        let ready = |s: &usize| {
            let needs = history.streams[*s].get(next[*s]).map(|(_, _, needs)| *needs);
            needs.is_some_and(|needs| needs <= next[0])
        };
        // When the order is used up, the rest comes stream by stream.
        let picked = order.by_ref().find(ready).or_else(|| (0..3).find(ready));
        let Some(stream) = picked else { break };
        let (input, seconds, _) = history.streams[stream][next[stream]].clone();
        next[stream] += 1;
        mesh.tell_at(input, base + seconds);
    }
    prop_assert_eq!(next, [history.streams[0].len(), history.streams[1].len(), history.streams[2].len()]);
    let end = &mesh.instance(&id(1)).changed;
    prop_assert_eq!((end.to_cluster_id.as_str(), end.to_generation), ("", 0), "nothing moves any more");
    let phase = if history.phase == InstancePhase::Unspecified { InstancePhase::Pending } else { history.phase };
    prop_assert_eq!(end.phase(), phase);
    prop_assert_eq!(end.hopeless && phase == InstancePhase::Failed, history.hopeless && phase == InstancePhase::Failed);
    if phase != InstancePhase::Stopped {
        prop_assert_eq!((&end.cluster_id, end.generation), (&history.at.0, history.at.1));
    }
    Ok(())
}

/// The planner first, then the agents; or the agents first.
#[test]
fn histories_that_are_easily_told_wrong_are_told_right() {
    use Deed::*;
    let histories = [
        vec![Start, FailElsewhere, Move, MoveFails],
        vec![Start, SourceFailsMoving, LoseAndPlace, MoveFails],
        vec![Start, LoseAndPlace, LoseForGood],
        vec![Start, Move, LoseForGood],
        vec![Start, Move, MoveAlone],
        vec![Start, Move, End],
        vec![Start, SourceFailsMoving, LoseAndPlace, FailForGood],
        vec![Start, LoseAndReturn, LoseForGood],
        vec![Start, MoveFails, FailForGood],
        vec![Start, MoveSilent, FailForGood],
        vec![Start, LoseAndReturn, MoveFails],
        vec![StartLate, End, Start, Move],
        vec![Start, FailElsewhere, GivenUp],
        vec![Start, Restart, UsedUp, TriesAgain],
        vec![Start, GivenUp, TriesAgain, Redefine],
    ];
    for deeds in histories {
        for order in [vec![], vec![2; 100]] {
            let told = heard(deeds.clone(), order.clone());
            assert!(told.is_ok(), "{deeds:?} in the order {order:?}: {told:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_048))]

    /// The planner's and the agents' streams may be heard in any order beside each other: it ends in the same place,
    /// generation and phase, and that is where the world left it.
    #[test]
    fn in_whatever_order_streams_are_heard_the_end_is_the_same(
        deeds in prop::collection::vec(deed(), 1..12),
        order in prop::collection::vec(0..3usize, 0..200),
    ) {
        heard(deeds, order)?;
    }
}
