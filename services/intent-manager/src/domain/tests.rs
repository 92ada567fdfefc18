//! Given what happened, when something comes, then these facts; and what holds whatever comes in whatever order.

use std::collections::BTreeSet;

use mesh_core::{Decider as _, Envelope, Key, Trigger};
use mesh_proto::{
    EventSet as _, FactSet as _, derived_id,
    intent::{
        ExpectationObject, ExpectationTarget, Intent, IntentExpectation, Problem, ResumeIntent, RollbackIntent,
        SubmitIntent, SuspendIntent, TerminateIntent, UpdateIntent,
    },
    network::{Connectivity, ConnectivityChanged, NetworkRefused},
    observation::{ObservedTarget, TargetObserved},
    placement::PlacementUnplaced,
    telemetry::Provenance,
    validation,
    workload::{InstanceChanged, InstancePhase, InstanceUnavailable, LifecycleEvent},
};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use prost::Message as _;

use super::*;

pub(crate) const OWNER: &str = "local";
pub(crate) const ID: &str = "plant";
/// Seconds of a period in these tests.
const PERIOD_SECONDS: i64 = 10;

pub(crate) fn key() -> Key {
    Key::new([OWNER, ID])
}

pub(crate) fn target(name: &str, condition: &str, bound: &str) -> ExpectationTarget {
    ExpectationTarget {
        target_name: name.into(),
        target_condition: condition.into(),
        target_value_range: bound.into(),
        ..Default::default()
    }
}

pub(crate) fn expectation(id: &str, object: &str, targets: Vec<ExpectationTarget>) -> IntentExpectation {
    IntentExpectation {
        expectation_id: id.into(),
        expectation_verb: "DELIVER".into(),
        expectation_object: Some(ExpectationObject {
            object_type: "NEMO_WORKLOAD".into(),
            object_instance: object.into(),
            ..Default::default()
        }),
        expectation_targets: targets,
        ..Default::default()
    }
}

fn intent(expectations: Vec<IntentExpectation>) -> Intent {
    Intent {
        user_label: "DeliverComputingWorkload".into(),
        intent_expectations: expectations,
        observation_period: PERIOD_SECONDS as u32,
        ..Default::default()
    }
}

/// CPU below 20 %, memory at most 200 MB.
pub(crate) fn plain() -> Intent {
    let targets = vec![target("cpuUsage", "IS_LESS_THAN", "20"), target("ramUsage", "IS_EQUAL_TO_OR_LESS_THAN", "200")];
    intent(vec![expectation("1", "spinner@1.0.0", targets)])
}

fn other() -> Intent {
    intent(vec![expectation("1", "spinner@1.0.0", vec![target("cpuUsage", "IS_LESS_THAN", "30")])])
}

fn paused() -> Intent {
    Intent { intent_admin_state: "DEACTIVATED".into(), ..plain() }
}

pub(crate) fn two() -> Intent {
    intent(vec![
        expectation("1", "spinner@1.0.0", vec![target("cpuUsage", "IS_LESS_THAN", "20")]),
        expectation("2", "spinner@1.0.0", vec![target("cpuUsage", "IS_LESS_THAN", "50")]),
    ])
}

const RUNNING_ELSEWHERE: &str = "0b8aa2f4-6a3f-4d51-8f0e-0a9a3a1f3f10";

fn governing() -> Intent {
    intent(vec![expectation("1", RUNNING_ELSEWHERE, vec![target("cpuUsage", "IS_LESS_THAN", "20")])])
}

pub(crate) fn instance(expectation: &str) -> String {
    derived_id(&[OWNER, ID, expectation])
}

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000 + seconds * 1_000)
}

// Inputs.

pub(crate) fn submit(intent: Intent) -> Input {
    SubmitIntent { owner: OWNER.into(), intent_id: ID.into(), intent: Some(intent) }.into()
}

pub(crate) fn update(intent: Intent) -> Input {
    UpdateIntent { owner: OWNER.into(), intent_id: ID.into(), intent: Some(intent), if_revision: 0 }.into()
}

pub(crate) fn suspend() -> Input {
    SuspendIntent { owner: OWNER.into(), intent_id: ID.into(), if_revision: 0 }.into()
}

fn resume() -> Input {
    ResumeIntent { owner: OWNER.into(), intent_id: ID.into(), if_revision: 0 }.into()
}

pub(crate) fn terminate() -> Input {
    TerminateIntent { owner: OWNER.into(), intent_id: ID.into(), if_revision: 0 }.into()
}

pub(crate) fn accept(version: u64) -> Input {
    validation::IntentAccepted { owner: OWNER.into(), intent_id: ID.into(), version }.into()
}

pub(crate) fn reject(version: u64) -> Input {
    let problems = vec![Problem {
        path: "intentExpectations[0].expectationTargets[0].targetName".into(),
        reason: "\"gpuUsage\" is not allowed".into(),
        hint: "use cpuUsage or ramUsage".into(),
    }];
    let infeasible = String::new();
    validation::IntentRejected { owner: OWNER.into(), intent_id: ID.into(), version, problems, infeasible }.into()
}

fn feasible(version: u64, feasible: bool) -> Input {
    let reason = if feasible { "" } else { "cloud has 4000 mCPU, 5000 are asked for: 1000 short" };
    FeasibilityChanged { owner: OWNER.into(), intent_id: ID.into(), version, feasible, reason: reason.into() }.into()
}

fn changed(phase: InstancePhase, cluster: &str, generation: u64) -> InstanceChanged {
    InstanceChanged {
        owner: OWNER.into(),
        instance_id: instance("1"),
        intent_id: ID.into(),
        cluster_id: cluster.into(),
        generation,
        phase: phase.into(),
        ..Default::default()
    }
}

pub(crate) fn running(cluster: &str, generation: u64) -> Input {
    changed(InstancePhase::Running, cluster, generation).into()
}

fn unavailable(version: u64) -> Input {
    InstanceUnavailable {
        owner: OWNER.into(),
        instance_id: instance("1"),
        intent_id: ID.into(),
        intent_version: version,
        reason: "spinner@1.0.0 is not registered".into(),
        hint: "push it: continuum workload push FILE".into(),
        ..Default::default()
    }
    .into()
}

fn unplaced(stays_on: &str) -> Input {
    no_place(stays_on).into()
}

fn no_place(stays_on: &str) -> PlacementUnplaced {
    PlacementUnplaced {
        domain: "default".into(),
        owner: OWNER.into(),
        instance_id: instance("1"),
        intent_id: ID.into(),
        reason: "nearest miss is edge: 300 mCPU short".into(),
        stays_on: stays_on.into(),
        ..Default::default()
    }
}

/// Values of both targets of `plain`; `None` without a measurement.
pub(crate) fn observed(period: u64, generation: u64, values: Option<(f64, f64)>) -> TargetObserved {
    let (cpu, ram) = values.unwrap_or_default();
    let samples = if values.is_some() { 10 } else { 0 };
    let value = |name: &str, value: f64| ObservedTarget {
        expectation_id: "1".into(),
        target_name: name.into(),
        value,
        samples,
        provenance: if samples > 0 { Provenance::Measured.into() } else { 0 },
    };
    TargetObserved {
        owner: OWNER.into(),
        intent_id: ID.into(),
        version: 1,
        instance_id: instance("1"),
        period,
        begin: Some(at(period as i64 * PERIOD_SECONDS)),
        end: Some(at((period as i64 + 1) * PERIOD_SECONDS)),
        targets: vec![value("cpuUsage", cpu), value("ramUsage", ram)],
        load_milli: 600,
        memory_bytes: 50_000_000,
        generation: if values.is_some() { generation } else { 0 },
        cluster_id: if values.is_some() { "edge".into() } else { String::new() },
    }
}

pub(crate) fn held(period: u64) -> Input {
    observed(period, 1, Some((10.0, 50.0))).into()
}

pub(crate) fn missed(period: u64) -> Input {
    observed(period, 1, Some((34.25, 50.0))).into()
}

pub(crate) fn blind(period: u64) -> Input {
    observed(period, 1, None).into()
}

/// One intent, decided and folded as the shell does it.
#[derive(Clone, Default)]
pub(crate) struct Bench {
    pub(crate) entity: Entity,
    seconds: i64,
    asked: u64,
    pub(crate) facts: Vec<(Fact, Timestamp)>,
}

impl Bench {
    pub(crate) fn given(inputs: impl IntoIterator<Item = Input>) -> Self {
        let mut bench = Self::default();
        for input in inputs {
            let _ = bench.when(input);
        }
        bench
    }

    fn ask(&self, input: Input) -> Result<Vec<Fact>, Refusal> {
        let envelope = Envelope {
            at: at(self.seconds),
            id: format!("input-{}", self.asked),
            sequence: self.asked,
            body: input.any().body(),
            trigger: Trigger::Event(input),
        };
        Intents::default().decide(&key(), &self.entity, &(), &envelope)
    }

    /// Time is that of the input: an observation comes when its period is over.
    pub(crate) fn when(&mut self, input: Input) -> Result<Vec<Fact>, Refusal> {
        if let Input::TargetObserved(observation) = &input {
            let end = observation.end.unwrap().millis_since(at(0)) / 1_000;
            self.seconds = self.seconds.max(end);
        }
        self.asked += 1;
        let decided = self.ask(input);
        for fact in decided.iter().flatten() {
            self.entity = Intents::default().evolve(self.entity.clone(), fact, at(self.seconds));
            self.facts.push((fact.clone(), at(self.seconds)));
        }
        decided
    }

    /// What follows from time alone, by now.
    pub(crate) fn pass(&mut self) -> Vec<Fact> {
        let mut said = vec![];
        while let Some(due) = Intents::default().due(&self.entity).filter(|due| *due <= at(self.seconds)) {
            let envelope = Envelope {
                at: at(self.seconds),
                id: format!("due-{due}"),
                sequence: 0,
                body: Bytes::new(),
                trigger: Trigger::Due,
            };
            let facts = Intents::default().decide(&key(), &self.entity, &(), &envelope).expect("time is never refused");
            assert!(!facts.is_empty(), "due, and nothing follows: {:?}", self.entity);
            for fact in facts {
                self.entity = Intents::default().evolve(self.entity.clone(), &fact, at(self.seconds));
                self.facts.push((fact.clone(), at(self.seconds)));
                said.push(fact);
            }
        }
        said
    }

    fn row(&self) -> Row {
        self.entity.row()
    }
}

/// A fact in one line.
fn line(fact: &Fact) -> String {
    let name = |state: &Option<State>| Row::of(state.as_ref().unwrap()).name();
    match fact {
        Fact::IntentSubmitted(f) => format!("submitted v{} by {}", f.version, f.command_id),
        Fact::IntentUnchanged(f) => format!("unchanged v{} by {}", f.version, f.command_id),
        Fact::IntentAcknowledged(f) => format!("acknowledged v{}: {}", f.version, f.state.as_ref().unwrap().reason),
        Fact::IntentRejected(f) => format!("rejected v{}: {}", f.version, name(&f.state)),
        Fact::IntentStateChanged(f) => {
            let by = if f.command_id.is_empty() { String::new() } else { format!(" by {}", f.command_id) };
            let reason = &f.to.as_ref().unwrap().reason;
            format!("{} -> {}{by}: {reason}", name(&f.from), name(&f.to))
        }
        Fact::IntentRemedyWanted(f) => {
            format!("remedy wanted on {} generation {}: {}", f.cluster_id, f.generation, f.reason)
        }
        Fact::IntentRemedyUnwanted(f) => format!("remedy unwanted: {}", f.reason),
        Fact::IntentRefused(f) => format!("refused: {}", f.reason),
    }
}

fn lines(decided: Result<Vec<Fact>, Refusal>) -> Vec<String> {
    match decided {
        Ok(facts) => facts.iter().map(line).collect(),
        Err(refusal) => {
            assert!(!refusal.hint.is_empty(), "a refusal without a hint: {refusal}");
            vec![format!("refused: {}", refusal.reason)]
        }
    }
}

#[track_caller]
fn check(given: impl IntoIterator<Item = Input>, when: Input, then: &[&str]) -> Bench {
    let mut bench = Bench::given(given);
    assert_eq!(lines(bench.when(when)), then);
    bench
}

pub(crate) fn acknowledged() -> Vec<Input> {
    vec![submit(plain()), accept(1)]
}

pub(crate) fn compliant() -> Vec<Input> {
    [acknowledged(), vec![running("edge", 1)]].concat()
}

pub(crate) fn fulfilled() -> Vec<Input> {
    [compliant(), vec![held(1)]].concat()
}

pub(crate) fn degraded() -> Vec<Input> {
    [fulfilled(), vec![missed(2), missed(3)]].concat()
}

// Submitting, verdicts, updates.

#[test]
fn a_first_submission_is_version_1_and_waits_for_its_verdict_since_then() {
    let bench = check([], submit(plain()), &["submitted v1 by input-1"]);
    assert_eq!((bench.row(), bench.entity.since), (Row::Submitted, at(0)));
    assert_eq!(bench.entity.state.waits_for, "the validator's verdict on version 1");
}

#[test]
fn the_same_content_again_changes_nothing_and_other_content_is_refused() {
    check([submit(plain())], submit(plain()), &["unchanged v1 by input-2"]);
    check(fulfilled(), submit(plain()), &["unchanged v1 by input-5"]);
    check(
        acknowledged(),
        submit(other()),
        &["refused: intent plant is ACKNOWLEDGED (waiting for a cluster); it exists with other content"],
    );
    check(
        [acknowledged(), vec![terminate()]].concat(),
        submit(plain()),
        &["refused: intent plant is TERMINATED (terminated by command); it cannot be submitted again"],
    );
}

#[test]
fn a_document_is_kept_as_it_came_and_an_unknown_field_makes_other_content() {
    let mut command = SubmitIntent { owner: OWNER.into(), intent_id: ID.into(), intent: None }.encode_to_vec();
    let mut document = plain().encode_to_vec();
    document.extend([0xf8, 0x3f, 0x07]); // field 1023, varint 7
    command.extend([3 << 3 | 2, document.len() as u8 | 0x80, (document.len() >> 7) as u8]);
    command.extend(&document);
    let mut bench = Bench::default();
    let input = Input::decode("continuum.intent.v1.SubmitIntent", &command).unwrap();
    let envelope =
        Envelope { trigger: Trigger::Event(input), at: at(0), id: "c".into(), sequence: 1, body: command.into() };
    let facts = Intents::default().decide(&key(), &bench.entity, &(), &envelope).unwrap();
    let [Fact::IntentSubmitted(submitted)] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!(submitted.document, document);
    bench.entity = Intents::default().evolve(bench.entity, &facts[0], at(0));
    assert!(bench.when(submit(plain())).is_err(), "the unknown field was overlooked");
}

#[test]
fn an_accepted_version_is_acknowledged_with_its_instances() {
    let bench = check([submit(plain())], accept(1), &["acknowledged v1: waiting for a cluster"]);
    let Some((Fact::IntentAcknowledged(fact), _)) = bench.facts.last() else { panic!() };
    assert_eq!(fact.document, plain().encode_to_vec());
    let [one] = fact.instances.as_slice() else { panic!() };
    assert_eq!((one.instance_id.as_str(), one.workload.as_str()), (instance("1").as_str(), "spinner@1.0.0"));
    assert_eq!(bench.row(), Row::Acknowledged);

    let bench = Bench::given([submit(governing()), accept(1)]);
    let [one] = bench.entity.instances() else { panic!() };
    assert_eq!((one.id.as_str(), one.workload.as_str()), (RUNNING_ELSEWHERE, ""));
}

#[test]
fn a_verdict_on_another_version_or_a_second_one_is_ignored() {
    check([submit(plain())], accept(2), &[]);
    check([submit(plain())], reject(2), &[]);
    check(acknowledged(), accept(1), &[]);
    check(acknowledged(), reject(1), &[]);
    check([acknowledged(), vec![update(other())]].concat(), accept(1), &[]);
}

#[test]
fn a_rejected_first_version_fails_the_intent_with_its_problems() {
    let bench = check([submit(plain())], reject(1), &["rejected v1: FULFILMENTFAILED"]);
    assert_eq!(
        bench.entity.state.reason,
        "version 1 was rejected: intentExpectations[0].expectationTargets[0].targetName: \"gpuUsage\" is not allowed"
    );
    assert!(bench.entity.state.hint.ends_with("targetName: use cpuUsage or ramUsage"));
    assert_eq!(bench.entity.state.waits_for, "an update");
    let rejected = [submit(plain()), reject(1)];
    check(rejected.clone(), submit(plain()), &["unchanged v1 by input-3"]);
    let bench = check(rejected, update(other()), &["submitted v2 by input-3"]);
    assert_eq!(bench.entity.state.waits_for, "the validator's verdict on version 2");
}

#[test]
fn a_rejected_later_version_leaves_the_version_in_force() {
    let given = [acknowledged(), vec![update(other())]].concat();
    let bench = check(given, reject(2), &["rejected v2: ACKNOWLEDGED"]);
    assert_eq!(bench.entity.in_force().map(|f| (f.version, f.targets.len())), Some((1, 2)));
    assert_eq!(bench.entity.version(), 1);
}

#[test]
fn what_cannot_be_judged_does_not_come_into_force() {
    let strange = intent(vec![expectation("1", "a@1.0.0", vec![target("cpuUsage", "IS_WITHIN_RANGE", "5")])]);
    let bench = check([submit(strange)], accept(1), &["rejected v1: FULFILMENTFAILED"]);
    assert!(bench.entity.state.reason.contains("IS_WITHIN_RANGE"), "{:?}", bench.entity.state);
}

#[test]
fn a_definition_changes_only_in_the_states_that_the_table_names() {
    check([], update(plain()), &["refused: there is no intent plant of local"]);
    check(acknowledged(), update(other()), &["submitted v2 by input-3"]);
    check([acknowledged(), vec![terminate()]].concat(), update(other()), &["submitted v2 by input-4"]);
    check([acknowledged(), vec![feasible(1, false)]].concat(), update(other()), &["submitted v2 by input-4"]);
    let only = "its definition may change only while it is ACKNOWLEDGED, FULFILMENTFAILED or TERMINATED";
    for (given, state) in [
        (vec![submit(plain())], "submitted and not yet validated (submitted)"),
        (compliant(), "COMPLIANT (all replicas run)"),
        (fulfilled(), "FULFILLED (every target holds)"),
        (degraded(), "DEGRADED (cpuUsage is 34.25 %, must be less than 20 %)"),
        (
            [compliant(), vec![suspend()]].concat(),
            "SUSPENDED (suspended: its targets are not watched, its instances are left as they are)",
        ),
    ] {
        check(given, update(other()), &[&format!("refused: intent plant is {state}; {only}")]);
    }
}

#[test]
fn an_update_with_the_same_content_restarts_only_ended_or_failed() {
    check(fulfilled(), update(plain()), &["unchanged v1 by input-5"]);
    check(acknowledged(), update(plain()), &["unchanged v1 by input-3"]);
    let ended = [acknowledged(), vec![terminate()]].concat();
    check(ended.clone(), update(plain()), &["submitted v2 by input-4"]);
    check([ended, vec![update(plain())]].concat(), update(plain()), &["unchanged v2 by input-5"]);
    check([acknowledged(), vec![feasible(1, false)]].concat(), update(plain()), &["submitted v2 by input-4"]);
}

#[test]
fn what_tmf921_has_around_an_intent_outlives_an_update_without_it() {
    let around = |intent: Intent, name: &str| Intent { resource: format!("{{\"name\":\"{name}\"}}"), ..intent };
    let given = [submit(around(plain(), "a")), accept(1)];
    let resource_after = |changed: Intent| {
        let bench = check(given.clone(), update(changed), &["submitted v2 by input-3"]);
        let Some((Fact::IntentSubmitted(fact), _)) = bench.facts.last() else { panic!() };
        Intent::decode(fact.document.clone()).unwrap().resource
    };
    assert_eq!(resource_after(other()), around(other(), "a").resource);
    assert_eq!(resource_after(around(other(), "b")), around(other(), "b").resource);
    check(given.clone(), update(plain()), &["unchanged v1 by input-3"]);
}

#[test]
fn a_new_version_tells_which_instances_it_no_longer_names() {
    let given = [submit(two()), accept(1), update(plain())];
    let bench = check(given, accept(2), &["acknowledged v2: waiting for a cluster"]);
    let Some((Fact::IntentAcknowledged(fact), _)) = bench.facts.last() else { panic!() };
    let released: Vec<&str> = fact.released.iter().map(|i| i.instance_id.as_str()).collect();
    assert_eq!(released, [instance("2")]);
}

#[test]
fn a_terminated_intent_lives_again_with_an_accepted_update() {
    let given = [fulfilled(), vec![terminate(), update(other())]].concat();
    let bench = check(given, accept(2), &["acknowledged v2: waiting for a cluster"]);
    assert_eq!(bench.entity.instances()[0].standing, Standing::Unheard, "the old instance was ended");
}

// Suspending, resuming, terminating.

#[test]
fn suspending_and_resuming_follow_the_table() {
    let suspended = "suspended: its targets are not watched, its instances are left as they are";
    check(fulfilled(), suspend(), &[&format!("FULFILLED -> SUSPENDED by input-5: {suspended}")]);
    let given = [fulfilled(), vec![suspend()]].concat();
    check(given.clone(), suspend(), &[&format!("SUSPENDED -> SUSPENDED by input-6: {suspended}")]);
    check(
        given.clone(),
        resume(),
        &[
            "SUSPENDED -> ACKNOWLEDGED by input-6: accepted, and its instances run",
            "ACKNOWLEDGED -> COMPLIANT: all replicas run",
        ],
    );
    // What was measured meanwhile, or began before the resumption, does not count.
    check(given.clone(), missed(2), &[]);
    check([given.clone(), vec![resume()]].concat(), held(1), &[]);
    check([given, vec![resume()]].concat(), held(2), &["COMPLIANT -> FULFILLED: every target holds"]);
    check(
        fulfilled(),
        resume(),
        &["refused: intent plant is FULFILLED (every target holds); only a SUSPENDED intent can be resumed"],
    );
    check([], suspend(), &["refused: there is no intent plant of local"]);
    check([], resume(), &["refused: there is no intent plant of local"]);
    check(
        [submit(plain())],
        suspend(),
        &[
            "refused: intent plant is submitted and not yet validated (submitted); only an acknowledged version can be suspended",
        ],
    );
    check(
        [acknowledged(), vec![terminate()]].concat(),
        suspend(),
        &["refused: intent plant is TERMINATED (terminated by command); it can only be updated"],
    );
}

#[test]
fn a_deactivated_intent_is_suspended_once_acknowledged() {
    check(
        [submit(paused())],
        accept(1),
        &[
            "acknowledged v1: waiting for a cluster",
            "ACKNOWLEDGED -> SUSPENDED: suspended: its targets are not watched, its instances are left as they are",
        ],
    );
}

#[test]
fn what_instances_do_while_suspended_is_known_at_resumption() {
    let given = [vec![submit(paused()), accept(1)], vec![running("edge", 1)]].concat();
    check(
        given,
        resume(),
        &[
            "SUSPENDED -> ACKNOWLEDGED by input-4: accepted, and its instances run",
            "ACKNOWLEDGED -> COMPLIANT: all replicas run",
        ],
    );
}

#[test]
fn an_update_accepted_while_suspended_stays_suspended() {
    let given = [acknowledged(), vec![update(other()), suspend()]].concat();
    let bench = Bench::given([given, vec![accept(2)]].concat());
    assert_eq!((bench.row(), bench.entity.version()), (Row::Suspended, 2));
}

#[test]
fn terminating_works_in_every_state_and_drops_an_update_that_waits() {
    check([], terminate(), &["refused: there is no intent plant of local"]);
    let states = [vec![submit(plain())], vec![submit(plain()), reject(1)], acknowledged(), fulfilled()];
    for given in states {
        let from = Bench::given(given.clone()).row().name();
        let number = given.len() + 1;
        let bench =
            check(given, terminate(), &[&format!("{from} -> TERMINATED by input-{number}: terminated by command")]);
        assert!(bench.entity.state.waits_for.is_empty());
    }
    let given = [acknowledged(), vec![terminate(), update(other())]].concat();
    let bench = check(given.clone(), terminate(), &["TERMINATED -> TERMINATED by input-5: terminated by command"]);
    assert_eq!(bench.entity.awaited(), None);
    check([given, vec![terminate()]].concat(), accept(2), &[]);
}

#[test]
fn a_termination_names_the_instances_that_are_to_end() {
    let bench = Bench::given([fulfilled(), vec![terminate()]].concat());
    let Some((Fact::IntentStateChanged(fact), _)) = bench.facts.last() else { panic!() };
    assert_eq!(fact.instances.iter().map(|i| i.instance_id.as_str()).collect::<Vec<_>>(), [instance("1")]);
    assert_eq!(fact.version, 1);
}

// Getting to run.

#[test]
fn waiting_to_run_says_for_what() {
    let pending = changed(InstancePhase::Pending, "", 0).into();
    let bench = check(acknowledged(), pending, &["ACKNOWLEDGED -> ACKNOWLEDGED: waiting for a cluster"]);
    assert_eq!(bench.entity.state.waits_for, "a cluster for spinner@1.0.0");
    let assigned: Input = changed(InstancePhase::Assigned, "edge", 1).into();
    let bench = check(acknowledged(), assigned.clone(), &["ACKNOWLEDGED -> ACKNOWLEDGED: cluster edge is chosen"]);
    assert_eq!(bench.entity.state.waits_for, "cluster edge to start it");
    let starting = changed(InstancePhase::Starting, "edge", 1).into();
    check(
        [acknowledged(), vec![assigned]].concat(),
        starting,
        &["ACKNOWLEDGED -> ACKNOWLEDGED: cluster edge is starting it"],
    );
    let bench = check(acknowledged(), running("edge", 1), &["ACKNOWLEDGED -> COMPLIANT: all replicas run"]);
    assert_eq!(bench.entity.state.waits_for, "one whole period in which every target holds");
}

#[test]
fn without_room_or_document_it_stays_acknowledged_with_a_hint() {
    let bench = check(
        acknowledged(),
        unplaced(""),
        &["ACKNOWLEDGED -> ACKNOWLEDGED: no cluster can take it: nearest miss is edge: 300 mCPU short"],
    );
    assert_eq!(bench.entity.state.waits_for, "capacity");
    let bench =
        check(acknowledged(), unavailable(1), &["ACKNOWLEDGED -> ACKNOWLEDGED: spinner@1.0.0 is not registered"]);
    assert_eq!(bench.entity.state.hint, "push it: continuum workload push FILE");
    check(acknowledged(), unavailable(2), &[]);
    check(
        [acknowledged(), vec![unavailable(1)]].concat(),
        running("edge", 1),
        &["ACKNOWLEDGED -> COMPLIANT: all replicas run"],
    );
    // A plan that is older than what the instance does since is not believed.
    check(compliant(), unplaced(""), &[]);
    check(compliant(), unplaced("edge"), &[]);
}

#[test]
fn a_fault_of_the_document_fails_the_intent_until_an_update() {
    let mut report = changed(InstancePhase::Failed, "edge", 1);
    report.hopeless = true;
    report.reason = "no such file: /bin/nothing".into();
    for given in [acknowledged(), compliant(), degraded()] {
        let from = Bench::given(given.clone()).row().name();
        let then = format!("{from} -> FULFILMENTFAILED: it cannot run anywhere: no such file: /bin/nothing");
        let bench = check(given, report.clone().into(), &[&then]);
        assert_eq!(bench.entity.state.waits_for, "an update");
    }
    let given = [acknowledged(), vec![report.clone().into(), update(other())]].concat();
    check(given, accept(2), &["acknowledged v2: waiting for a cluster"]);
    // What runs after all shows that it can be met.
    check(
        [acknowledged(), vec![report.into()]].concat(),
        running("cloud", 2),
        &[
            "FULFILMENTFAILED -> ACKNOWLEDGED: accepted, and its instances run",
            "ACKNOWLEDGED -> COMPLIANT: all replicas run",
        ],
    );
}

#[test]
fn a_failure_that_may_pass_elsewhere_does_not_fail_the_intent() {
    let mut report = changed(InstancePhase::Failed, "edge", 1);
    report.reason = "exit code 1".into();
    check(
        acknowledged(),
        report.clone().into(),
        &["ACKNOWLEDGED -> ACKNOWLEDGED: it failed on cluster edge: exit code 1"],
    );
    check(compliant(), report.into(), &["COMPLIANT -> DEGRADED: it failed on cluster edge: exit code 1"]);
}

#[test]
fn infeasible_fails_what_does_not_run_and_feasible_acknowledges() {
    let large = "no registered cluster can take it: cloud has 4000 mCPU, 5000 are asked for: 1000 short";
    let bench = check(acknowledged(), feasible(1, false), &[&format!("ACKNOWLEDGED -> FULFILMENTFAILED: {large}")]);
    assert_eq!(bench.entity.state.waits_for, "a cluster that can take it");
    check(acknowledged(), feasible(2, false), &[]);
    let failed = [acknowledged(), vec![feasible(1, false)]].concat();
    check(failed, feasible(1, true), &["FULFILMENTFAILED -> ACKNOWLEDGED: waiting for a cluster"]);
    check(
        fulfilled(),
        feasible(1, false),
        &[&format!("FULFILLED -> FULFILLED: every target holds; it runs, though {large}")],
    );
}

#[test]
fn a_lost_instance_degrades_and_a_held_period_elsewhere_fulfils() {
    let mut lost = changed(InstancePhase::Lost, "edge", 1);
    lost.reason = "silent for 10 s".into();
    let given = [fulfilled(), vec![lost.clone().into()]].concat();
    check(fulfilled(), lost.into(), &["FULFILLED -> DEGRADED: cluster edge is lost: silent for 10 s"]);
    check(given.clone(), running("cloud", 2), &["DEGRADED -> DEGRADED: it runs again"]);
    let again = [given.clone(), vec![running("cloud", 2)]].concat();
    // The old place's periods, and those that began before the new one ran, do not count.
    check(again.clone(), observed(5, 1, Some((10.0, 50.0))).into(), &[]);
    let given: Vec<Input> = [given, vec![held(3), running("cloud", 2)]].concat();
    check(given.clone(), observed(3, 2, Some((10.0, 50.0))).into(), &[]);
    check(given, observed(4, 2, Some((10.0, 50.0))).into(), &["DEGRADED -> FULFILLED: every target holds"]);
    check(again, unplaced(""), &[]);
}

// Judging periods.

#[test]
fn one_whole_period_in_which_every_target_holds_fulfils() {
    check(compliant(), held(1), &["COMPLIANT -> FULFILLED: every target holds"]);
    let mut half = observed(1, 1, Some((10.0, 50.0)));
    half.targets.pop();
    check(compliant(), half.into(), &["COMPLIANT -> COMPLIANT: all replicas run"]);
    let bench = Bench::given(compliant());
    assert_eq!(bench.entity.instances()[0].running_since, Some(at(0)));
    let mut early = observed(1, 1, Some((10.0, 50.0)));
    early.begin = Some(at(-1));
    check(compliant(), early.into(), &[]);
}

#[test]
fn fulfilment_by_a_value_that_no_meter_read_says_so() {
    let mut modelled = observed(1, 1, Some((10.0, 50.0)));
    modelled.targets[0].provenance = Provenance::Modelled.into();
    modelled.targets[1].provenance = Provenance::Declared.into();
    let remarks = "cpuUsage is modelled, not measured; ramUsage is declared, not measured";
    let fulfilled = format!("COMPLIANT -> FULFILLED: every target holds; {remarks}");
    check(compliant(), modelled.clone().into(), &[&fulfilled]);
    // Values that come from somewhere else are news, although they hold as before.
    let given = [compliant(), vec![modelled.into()]].concat();
    check(given, held(2), &["FULFILLED -> FULFILLED: every target holds"]);
}

#[test]
fn a_held_period_that_changes_nothing_writes_nothing() {
    check(fulfilled(), held(2), &[]);
    check(fulfilled(), observed(2, 1, Some((19.9, 199.0))).into(), &[]);
}

#[test]
fn two_missed_periods_in_a_row_degrade_and_ask_for_a_remedy() {
    check(
        fulfilled(),
        missed(2),
        &["FULFILLED -> FULFILLED: cpuUsage is 34.25 %, must be less than 20 % in the last period"],
    );
    let first = [fulfilled(), vec![missed(2)]].concat();
    let remedy = "remedy wanted on edge generation 1: cpuUsage is 34.25 %, must be less than 20 % on edge";
    let bench = check(
        first.clone(),
        missed(3),
        &["FULFILLED -> DEGRADED: cpuUsage is 34.25 %, must be less than 20 %", remedy],
    );
    let Some((Fact::IntentRemedyWanted(fact), _)) = bench.facts.last() else { panic!() };
    assert_eq!(
        (fact.load_milli, fact.memory_bytes, fact.instance_id.as_str()),
        (600, 50_000_000, instance("1").as_str())
    );
    assert_eq!(bench.entity.state.waits_for, "a remedy");
    assert_eq!((fact.asked, fact.missed_since), (1, Some(at(20))));
    check(degraded(), missed(4), &[]);
    check([degraded(), vec![missed(4)]].concat(), missed(4), &[]);
    check(
        [first.clone(), vec![held(3)]].concat(),
        missed(4),
        &["FULFILLED -> FULFILLED: cpuUsage is 34.25 %, must be less than 20 % in the last period"],
    );
    // A period that nobody judged lies between: they are not in a row, and the later one is the first of the next.
    let again = "FULFILLED -> FULFILLED: cpuUsage is 34.25 %, must be less than 20 % in the last period";
    check(first.clone(), missed(4), &[again]);
    let bench = Bench::given([first, vec![missed(4), missed(5)]].concat());
    assert_eq!(bench.row(), Row::Degraded);
    check(
        degraded(),
        held(4),
        &["DEGRADED -> FULFILLED: every target holds", "remedy unwanted: every target holds where it is"],
    );
}

/// Seconds at which remedies are requested during this many missed periods in a row.
fn asked_at(bench: &mut Bench, periods: std::ops::Range<u64>, generation: u64, cpu: f64) -> Vec<i64> {
    let mut asked = vec![];
    for period in periods {
        let facts = bench.when(observed(period, generation, Some((cpu, 50.0))).into()).unwrap();
        if facts.iter().any(|fact| matches!(fact, Fact::IntentRemedyWanted(_))) {
            asked.push(bench.seconds);
        }
    }
    asked
}

#[test]
fn a_remedy_that_does_not_help_is_asked_for_ever_less_often() {
    let mut bench = Bench::given(fulfilled());
    // 60 s, doubling, at most 960 s.
    assert_eq!(asked_at(&mut bench, 2..400, 1, 34.0), [40, 100, 220, 460, 940, 1_900, 2_860, 3_820]);
    let facts = bench.facts.len();
    asked_at(&mut bench, 400..450, 1, 90.0);
    assert_eq!(bench.facts.len(), facts, "a missed period more is not news");
    // Once the targets have held for long, the waits start again from one.
    bench.when(held(450)).unwrap();
    assert_eq!(asked_at(&mut bench, 574..650, 1, 34.0), [5_760, 5_820, 5_940, 6_180]);
}

#[test]
fn targets_that_are_met_and_missed_by_turns_ask_ever_less_often_too() {
    let mut bench = Bench::given(fulfilled());
    let mut asked = vec![];
    for turn in 0..100 {
        asked.extend(asked_at(&mut bench, 3 * turn + 2..3 * turn + 4, 1, 34.0));
        bench.when(held(3 * turn + 4)).unwrap();
    }
    assert_eq!(asked, [40, 100, 220, 460, 940, 1_900, 2_860]);
}

#[test]
fn within_the_cool_down_what_held_and_is_missed_again_is_not_asked_for() {
    let mut bench = Bench::given([degraded(), vec![held(4)]].concat());
    assert_eq!(asked_at(&mut bench, 5..12, 1, 34.0), [100]);
}

#[test]
fn after_a_move_the_cool_down_counts_from_when_it_runs() {
    let mut bench = Bench::given(degraded());
    bench.seconds = 75;
    bench.when(running("cloud", 2)).unwrap();
    assert_eq!(asked_at(&mut bench, 8..30, 2, 34.0), [140, 260]);
}

#[test]
fn the_planner_is_asked_again_only_after_a_change_above_a_tenth() {
    let mut bench = Bench::given([degraded(), vec![unplaced("edge")]].concat());
    let facts = bench.facts.len();
    assert_eq!(asked_at(&mut bench, 4..100, 1, 34.0), Vec::<i64>::new());
    assert_eq!(bench.facts.len(), facts, "nothing is written");
    let load = |period: u64, load_milli: u32| -> Input {
        TargetObserved { load_milli, memory_bytes: 500_000_000, ..observed(period, 1, Some((34.0, 50.0))) }.into()
    };
    assert_eq!(bench.when(load(100, 660)).unwrap(), vec![], "a tenth; and its memory is not what is missed");
    let facts = lines(bench.when(load(101, 700)));
    assert_eq!(facts, ["remedy wanted on edge generation 1: cpuUsage is 34 %, must be less than 20 % on edge"]);
    assert_eq!(bench.when(load(102, 900)).unwrap(), vec![], "it was asked for a moment ago");
    // A new answer of the planner, with its figures, is news; the same answer is not.
    let mut report = PlacementUnplaced { asked_by: vec![ID.into()], intent_id: "maker".into(), ..no_place("edge") };
    report.reason = "nearest miss is edge: 400 mCPU short".into();
    let heard: BTreeSet<Key> = Intents::default().concerns(&report.clone().into(), &()).into_iter().collect();
    assert_eq!(heard, BTreeSet::from([key(), Key::new([OWNER, "maker"])]));
    let told = lines(bench.when(report.clone().into()));
    assert!(told.len() == 1 && told[0].ends_with("it stays on edge: nearest miss is edge: 400 mCPU short"), "{told:?}");
    assert_eq!(bench.when(report.into()).unwrap(), vec![]);
}

#[test]
fn a_failed_move_may_be_asked_for_again() {
    let mut bench = Bench::given([degraded(), vec![unplaced("edge")]].concat());
    let mut moving = changed(InstancePhase::Running, "edge", 1);
    (moving.to_cluster_id, moving.to_generation) = ("cloud".into(), 2);
    bench.when(moving.into()).unwrap();
    assert_eq!(asked_at(&mut bench, 4..30, 1, 34.0), Vec::<i64>::new(), "a move is under way");
    bench.when(running("edge", 1)).unwrap();
    assert_eq!(asked_at(&mut bench, 30..31, 1, 34.0), [310]);
}

#[test]
fn what_was_asked_for_and_is_not_wanted_any_more_is_taken_back_once() {
    let suspended = "suspended: its targets are not watched, its instances are left as they are";
    check(
        degraded(),
        suspend(),
        &[&format!("DEGRADED -> SUSPENDED by input-7: {suspended}"), "remedy unwanted: it is suspended"],
    );
    check(
        [degraded(), vec![suspend()]].concat(),
        terminate(),
        &["SUSPENDED -> TERMINATED by input-8: terminated by command"],
    );
    check(
        degraded(),
        terminate(),
        &["DEGRADED -> TERMINATED by input-7: terminated by command", "remedy unwanted: it is terminated"],
    );
    check([degraded(), vec![held(4)]].concat(), held(5), &[]);
    // It has moved: nothing is asked for where it is now.
    check(
        [degraded(), vec![running("cloud", 2)]].concat(),
        observed(5, 2, Some((10.0, 50.0))).into(),
        &["DEGRADED -> FULFILLED: every target holds"],
    );
    // An answer to what was taken back is not believed: nobody would ask again.
    let given = [degraded(), vec![held(4), missed(5), missed(6)]].concat();
    let bench = check(given, unplaced("edge"), &[]);
    assert_eq!((bench.row(), bench.entity.instances()[0].stuck.as_str()), (Row::Degraded, ""));
}

#[test]
fn a_period_counts_once_and_only_for_the_placement_that_runs_now() {
    let given = [fulfilled(), vec![missed(2)]].concat();
    check(given.clone(), missed(2), &[]);
    check(given.clone(), missed(1), &[]);
    check(given.clone(), observed(3, 2, Some((90.0, 50.0))).into(), &[]);
    let mut later = observed(3, 1, Some((90.0, 50.0)));
    later.version = 2;
    check(given, later.into(), &[]);
    check([fulfilled(), vec![terminate()]].concat(), missed(2), &[]);
}

#[test]
fn three_periods_without_a_measurement_degrade_and_never_ask_for_a_remedy() {
    let blinds = |count: u64| [fulfilled(), (2..2 + count).map(blind).collect()].concat();
    check(
        blinds(1),
        blind(3),
        &[
            "FULFILLED -> FULFILLED: cpuUsage was not measured in the last period; ramUsage was not measured in the last period",
        ],
    );
    let bench =
        check(blinds(2), blind(4), &["FULFILLED -> DEGRADED: no measurement of cpuUsage; no measurement of ramUsage"]);
    assert_eq!(bench.entity.state.waits_for, "its measurement");
    check(blinds(3), blind(5), &[]);
    check(blinds(3), held(5), &["DEGRADED -> FULFILLED: every target holds"]);
    let mut never = observed(2, 1, Some((f64::NAN, f64::INFINITY)));
    never.generation = 1;
    check(
        fulfilled(),
        never.into(),
        &[
            "FULFILLED -> FULFILLED: cpuUsage was not measured in the last period; ramUsage was not measured in the last period",
        ],
    );
    // A blind period between two missed ones breaks the row.
    let given = [fulfilled(), vec![missed(2), blind(3)]].concat();
    let bench = Bench::given([given, vec![missed(4)]].concat());
    assert_eq!(bench.row(), Row::Fulfilled);
    assert!(!bench.facts.iter().any(|(fact, _)| matches!(fact, Fact::IntentRemedyWanted(_))));
}

#[test]
fn what_nobody_uses_waits_for_requests_and_is_not_degraded() {
    let target = target("responseTimeP95", "IS_LESS_THAN", "100");
    let answering = intent(vec![expectation("1", "spinner@1.0.0", vec![target])]);
    let observed = |period: u64, value: Option<f64>| -> Input {
        let mut observed = observed(period, 1, Some((10.0, 50.0)));
        observed.targets.truncate(1);
        observed.targets[0].target_name = "responseTimeP95".into();
        observed.targets[0].samples = value.map_or(0, |_| 7);
        observed.targets[0].value = value.unwrap_or_default();
        observed.into()
    };
    let mut given = vec![submit(answering), accept(1), running("edge", 1)];
    given.extend((1..6).map(|period| observed(period, None)));
    let bench = Bench::given(given.clone());
    assert_eq!(bench.row(), Row::Compliant, "0 ms is not what it achieved");
    let unused = "responseTimeP95 was not observed in the last period: no request came";
    assert!(bench.entity.state.reason.starts_with(unused), "{:?}", bench.entity.state);
    assert!(bench.entity.state.waits_for.contains("requests to its exposed route"), "{:?}", bench.entity.state);
    given.push(observed(6, Some(40.0)));
    assert_eq!(Bench::given(given.clone()).row(), Row::Fulfilled);
    given.extend((7..12).map(|period| observed(period, None)));
    let bench = check(given.clone(), observed(12, None), &[]);
    assert_eq!((bench.row(), bench.entity.state.reason.as_str()), (Row::Fulfilled, unused));
    // Two slow periods degrade it, and ask for a remedy.
    given.push(observed(13, Some(250.0)));
    let missed = "responseTimeP95 is 250 ms, must be less than 100 ms";
    let mut bench = Bench::given(given);
    let said = lines(bench.when(observed(14, Some(250.0))));
    assert_eq!(said[0], format!("FULFILLED -> DEGRADED: {missed}"));
    assert!(said[1].starts_with("remedy wanted on edge generation 1") && said[1].contains(missed), "{said:?}");
}

#[test]
fn where_no_cluster_would_do_it_stays_degraded_and_says_by_how_much() {
    let told = "cpuUsage is 34.25 %, must be less than 20 %; it stays on edge: nearest miss is edge: 300 mCPU short";
    let bench = check(degraded(), unplaced("edge"), &[&format!("DEGRADED -> DEGRADED: {told}")]);
    assert_eq!(bench.entity.state.waits_for, "a cluster where every target holds");
    check([degraded(), vec![unplaced("edge")]].concat(), unplaced("edge"), &[]);
    check(degraded(), unplaced("cloud"), &[]);
    let healed = Bench::given([degraded(), vec![unplaced("edge"), held(4)]].concat());
    assert_eq!((healed.row(), healed.entity.instances()[0].stuck.as_str()), (Row::Fulfilled, ""));
}

#[test]
fn a_move_is_told_and_its_target_is_judged_afresh() {
    let mut moving = changed(InstancePhase::Running, "edge", 1);
    (moving.to_cluster_id, moving.to_generation) = ("cloud".into(), 2);
    let bench = check(
        degraded(),
        moving.clone().into(),
        &["DEGRADED -> DEGRADED: cpuUsage is 34.25 %, must be less than 20 %; a move is under way"],
    );
    assert_eq!(bench.entity.state.waits_for, "its move to cloud");
    let given = [degraded(), vec![moving.into()]].concat();
    let bench = check(given, running("cloud", 2), &["DEGRADED -> DEGRADED: it runs again"]);
    let in_force = bench.entity.in_force().unwrap();
    assert!(in_force.targets.iter().all(|t| (t.missed, t.measured) == (0, false)));
    assert_eq!(in_force.instances[0].to_cluster, "");
}

#[test]
fn an_intent_is_as_good_as_the_worst_of_its_expectations() {
    let second = |phase| InstanceChanged { instance_id: instance("2"), ..changed(phase, "cloud", 1) };
    let given = vec![submit(two()), accept(1)];
    check(given.clone(), running("edge", 1), &["ACKNOWLEDGED -> ACKNOWLEDGED: expectation 2: waiting for a cluster"]);
    let given = [given, vec![running("edge", 1)]].concat();
    check(given.clone(), second(InstancePhase::Running).into(), &["ACKNOWLEDGED -> COMPLIANT: all replicas run"]);
    let given = [given, vec![second(InstancePhase::Running).into()]].concat();
    let observe = |expectation: &str, period: u64, value: f64| -> Input {
        let mut observation = observed(period, 1, Some((value, 0.0)));
        observation.instance_id = instance(expectation);
        observation.targets.iter_mut().for_each(|t| t.expectation_id = expectation.into());
        observation.into()
    };
    let given = [given, vec![observe("1", 1, 10.0)]].concat();
    check(given.clone(), observe("2", 1, 10.0), &["COMPLIANT -> FULFILLED: every target holds"]);
    let given = [given, vec![observe("2", 1, 10.0), observe("1", 2, 30.0), observe("2", 2, 30.0)]].concat();
    let bench = check(
        given.clone(),
        observe("1", 3, 30.0),
        &[
            "FULFILLED -> DEGRADED: expectation 1: cpuUsage is 30 %, must be less than 20 %",
            "remedy wanted on edge generation 1: cpuUsage is 30 %, must be less than 20 % on edge",
        ],
    );
    assert_eq!(bench.entity.in_force().unwrap().targets[1].missed, 0);
    let both = "expectation 2: cluster cloud is lost; expectation 1: cpuUsage is 30 %, must be less than 20 %";
    let bench = check(given, second(InstancePhase::Lost).into(), &[&format!("FULFILLED -> DEGRADED: {both}")]);
    assert_eq!(bench.entity.state.waits_for, "another cluster, or its return; the next period");
}

#[test]
fn a_governed_instance_is_known_by_its_reports_or_its_measurements() {
    let given = [submit(governing()), accept(1)];
    let mut observation = observed(5, 7, Some((10.0, 0.0)));
    observation.instance_id = RUNNING_ELSEWHERE.into();
    check(given.clone(), observation.clone().into(), &["ACKNOWLEDGED -> COMPLIANT: all replicas run"]);
    let mut next = TargetObserved { period: 6, ..observation.clone() };
    (next.begin, next.end) = (Some(at(60)), Some(at(70)));
    let seen = [given.to_vec(), vec![observation.into()]].concat();
    check(seen.clone(), next.into(), &["COMPLIANT -> FULFILLED: every target holds"]);
    let report = InstanceChanged {
        instance_id: RUNNING_ELSEWHERE.into(),
        intent_id: "maker".into(),
        governed_by: vec![ID.into()],
        ..changed(InstancePhase::Running, "edge", 7)
    };
    assert_eq!(
        Intents::default().concerns(&report.clone().into(), &()).into_iter().collect::<BTreeSet<_>>(),
        BTreeSet::from([Key::new([OWNER, "maker"]), key()])
    );
    check(given, report.clone().into(), &["ACKNOWLEDGED -> COMPLIANT: all replicas run"]);
    let lost = InstanceChanged { phase: InstancePhase::Lost.into(), ..report };
    check(seen, lost.into(), &["COMPLIANT -> DEGRADED: cluster edge is lost"]);
}

#[test]
fn an_instance_without_an_intent_concerns_none() {
    let report = InstanceChanged { intent_id: String::new(), ..changed(InstancePhase::Running, "edge", 1) };
    assert!(Intents::default().concerns(&report.into(), &()).is_empty());
}

// Times, versions, conflicts, networks.

/// Begins at 30 s and ends at 80 s.
pub(crate) fn timed() -> Intent {
    let contexts = vec![mesh_intent::window::start_context(at(30)), mesh_intent::window::end_context(at(80))];
    Intent { intent_contexts: contexts, ..plain() }
}

pub(crate) fn rollback(version: u64) -> Input {
    RollbackIntent { owner: OWNER.into(), intent_id: ID.into(), version, if_revision: 0 }.into()
}

#[test]
fn a_command_on_condition_is_refused_once_the_intent_has_moved_on() {
    let mut bench = Bench::given([submit(plain()), accept(1)]);
    let known = bench.entity.revision;
    assert!(known > 1, "submitted and acknowledged");
    let on = |if_revision| -> Input { SuspendIntent { owner: OWNER.into(), intent_id: ID.into(), if_revision }.into() };
    let before = bench.entity.clone();
    let refused = bench.when(on(known - 1)).unwrap_err();
    assert!(refused.reason.contains(&format!("revision {known}")), "{refused:?}");
    assert_eq!(bench.entity, before, "what is refused changes nothing");
    bench.when(on(known)).unwrap();
    assert_eq!(bench.row(), Row::Suspended);
    assert!(bench.entity.revision > known);
    bench.when(on(known)).unwrap_err();
    bench.when(resume()).unwrap();
}

fn lost_to(winner: &str) -> IntentConflict {
    IntentConflict {
        conflict_id: "c".into(),
        conflict_type: "TARGET_CONFLICT".into(),
        conflicting_intent: winner.into(),
        conflicting_target: "cpuUsage".into(),
        loses: true,
        reason: format!("cpuUsage cannot be less than 20 % while intent {winner} wants it greater than 30 %"),
        hint: format!("terminate {winner}"),
        ..Default::default()
    }
}

pub(crate) fn conflicts(version: u64, conflicts: Vec<IntentConflict>) -> Input {
    validation::ConflictsChanged { owner: OWNER.into(), intent_id: ID.into(), version, conflicts }.into()
}

pub(crate) fn network() -> Intent {
    let mut link =
        intent(vec![expectation("1", "l2vpn", vec![target("bandwidth", "IS_EQUAL_TO_OR_GREATER_THAN", "10,0")])]);
    link.user_label = "cloud_continuum".into();
    link
}

fn connectivity(phase: Connectivity, reason: &str) -> Input {
    ConnectivityChanged {
        owner: OWNER.into(),
        network_id: ID.into(),
        phase: phase.into(),
        reason: reason.into(),
        ..Default::default()
    }
    .into()
}

#[test]
fn an_intent_waits_for_its_start_and_gets_its_instances_then() {
    let mut bench =
        check([submit(timed())], accept(1), &[&format!("acknowledged v1: accepted, and begins at {}", at(30))]);
    assert_eq!((bench.entity.instances(), bench.entity.state.waits_for.as_str()), (&[][..], "its start time"));
    bench.seconds = 29;
    assert_eq!(lines(Ok(bench.pass())), [""; 0]);
    bench.seconds = 30;
    assert_eq!(lines(Ok(bench.pass())), ["acknowledged v1: waiting for a cluster"]);
    assert_eq!(bench.entity.instances()[0].id, instance("1"));
    assert_eq!(lines(Ok(bench.pass())), [""; 0]);
}

#[test]
fn an_intent_ends_by_itself_at_its_end_time_in_whatever_state() {
    for given in [vec![submit(timed()), accept(1)], vec![submit(timed()), accept(1), suspend()]] {
        let mut bench = Bench::given(given);
        bench.seconds = 80;
        let from = bench.row().name();
        let told = lines(Ok(bench.pass()));
        assert_eq!(told, [format!("{from} -> TERMINATED: its end time {} has come", at(80))]);
    }
}

#[test]
fn what_is_suspended_starts_once_it_is_resumed() {
    let mut bench = Bench::given([submit(timed()), accept(1), suspend()]);
    bench.seconds = 40;
    assert_eq!(bench.pass(), []);
    let resumed = lines(bench.when(resume()));
    assert_eq!(resumed, [format!("SUSPENDED -> ACKNOWLEDGED by input-4: accepted, and begins at {}", at(30))]);
    assert_eq!(lines(Ok(bench.pass())), ["acknowledged v1: waiting for a cluster"]);
}

#[test]
fn a_start_that_has_passed_is_no_reason_to_wait() {
    let mut bench = Bench::given([submit(timed())]);
    bench.seconds = 35;
    assert_eq!(lines(bench.when(accept(1))), ["acknowledged v1: waiting for a cluster"]);
}

#[test]
fn an_earlier_version_can_be_gone_back_to_where_an_update_is_allowed() {
    let given = [acknowledged(), vec![update(other()), accept(2)]].concat();
    let bench = check(given.clone(), rollback(1), &["submitted v3 by input-5"]);
    let Some((Fact::IntentSubmitted(fact), _)) = bench.facts.last() else { panic!() };
    assert_eq!((fact.rolled_back_to, fact.document.clone()), (1, Bytes::from(plain().encode_to_vec())));
    check([given.clone(), vec![rollback(1)]].concat(), accept(3), &["acknowledged v3: waiting for a cluster"]);
    check(given.clone(), rollback(2), &["unchanged v2 by input-5"]);
    let state = "refused: intent plant is ACKNOWLEDGED (waiting for a cluster)";
    check(given, rollback(7), &[&format!("{state}; it has no version 7")]);
    let rejected = [acknowledged(), vec![update(other()), reject(2)]].concat();
    check(rejected, rollback(2), &[&format!("{state}; its version 2 was rejected")]);
    check([], rollback(1), &["refused: there is no intent plant of local"]);
    let refused = lines(Bench::given(fulfilled()).when(rollback(1)));
    assert_eq!(refused, ["unchanged v1 by input-5"], "it is the version in force");
    let other_first = vec![submit(other()), accept(1), update(plain()), accept(2), running("edge", 1)];
    let refused = lines(Bench::given(other_first).when(rollback(1)));
    assert!(refused[0].contains("its definition may change only while"), "{refused:?}");
}

#[test]
fn who_loses_a_conflict_is_suspended_until_it_is_over_and_is_told_to_whom() {
    let told = "suspended by a conflict: cpuUsage cannot be less than 20 % while intent q wants it greater than 30 %";
    let lost = || conflicts(1, vec![lost_to("q")]);
    let bench = check(fulfilled(), lost(), &[&format!("FULFILLED -> SUSPENDED: {told}")]);
    assert_eq!(bench.entity.state.waits_for, "intent q to end or to change");
    let Some((Fact::IntentStateChanged(fact), _)) = bench.facts.last() else { panic!() };
    assert_eq!((fact.suspended_by.as_str(), fact.conflicts.len()), ("conflict", 1));
    let given = [fulfilled(), vec![lost()]].concat();
    check(given.clone(), lost(), &[]);
    check(given.clone(), conflicts(2, vec![]), &[]);
    let refused = "it cannot be resumed while it gives way to another intent";
    check(given.clone(), resume(), &[&format!("refused: intent plant is SUSPENDED ({told}); {refused}")]);
    check(
        given.clone(),
        conflicts(1, vec![]),
        &["SUSPENDED -> ACKNOWLEDGED: accepted, and its instances run", "ACKNOWLEDGED -> COMPLIANT: all replicas run"],
    );
    // Suspended by command, too: the end of the conflict does not resume it.
    let both = [given, vec![suspend()]].concat();
    let suspended = "suspended: its targets are not watched, its instances are left as they are";
    check(both, conflicts(1, vec![]), &[&format!("SUSPENDED -> SUSPENDED: {suspended}")]);
    // Who wins goes on, and is told.
    let won = IntentConflict { loses: false, ..lost_to("q") };
    check(fulfilled(), conflicts(1, vec![won]), &["FULFILLED -> FULFILLED: every target holds"]);
}

#[test]
fn a_network_intent_is_fulfilled_once_it_is_connected() {
    let given = vec![submit(network()), accept(1)];
    let bench = Bench::given(given.clone());
    let Some((Fact::IntentAcknowledged(fact), _)) = bench.facts.last() else { panic!() };
    assert_eq!(fact.instances, [], "no agent is asked for it");
    assert_eq!(bench.entity.state.reason, "waiting for the network exposer");
    let executing = connectivity(Connectivity::Executing, "");
    check(given.clone(), executing, &["ACKNOWLEDGED -> ACKNOWLEDGED: it is being connected"]);
    check(
        given.clone(),
        connectivity(Connectivity::Connected, ""),
        &["ACKNOWLEDGED -> COMPLIANT: all replicas run", "COMPLIANT -> FULFILLED: every target holds"],
    );
    check(
        given.clone(),
        connectivity(Connectivity::NotConnected, "no route"),
        &["ACKNOWLEDGED -> FULFILMENTFAILED: it cannot be connected: no route"],
    );
    let refused = |command: &str| -> Input {
        NetworkRefused {
            owner: OWNER.into(),
            network_id: ID.into(),
            command: command.into(),
            reason: "no library knows it".into(),
            hint: "use another object type".into(),
            ..Default::default()
        }
        .into()
    };
    check(
        given.clone(),
        refused("IntentAcknowledged"),
        &["ACKNOWLEDGED -> FULFILMENTFAILED: it cannot be connected: no library knows it"],
    );
    check(given, refused("SubmitNetworkIntent"), &[]);
    check(fulfilled(), connectivity(Connectivity::NotConnected, "no route"), &[]);
}

#[test]
fn what_has_no_target_is_fulfilled_once_it_runs() {
    let mut secure = intent(vec![expectation("1", "spinner@1.0.0", vec![])]);
    secure.user_label = "SecureExecution".into();
    let bench = check(
        [submit(secure), accept(1)],
        running("edge", 1),
        &["ACKNOWLEDGED -> COMPLIANT: all replicas run", "COMPLIANT -> FULFILLED: every target holds"],
    );
    let selector = &bench.entity.instances()[0].selector;
    assert_eq!(selector.get("secure-execution").map(String::as_str), Some("true"));
}

#[test]
fn a_range_is_judged_as_a_range() {
    let range = intent(vec![expectation("1", "spinner@1.0.0", vec![target("cpuUsage", "IS_WITHIN_RANGE", "[5, 20]")])]);
    let given = [submit(range), accept(1), running("edge", 1)];
    check(given.clone(), held(1), &["COMPLIANT -> FULFILLED: every target holds"]);
    let low = |period| -> Input { observed(period, 1, Some((1.0, 50.0))).into() };
    let mut bench = Bench::given(given);
    let _ = bench.when(low(1));
    let told = lines(bench.when(low(2)));
    assert!(told[0].contains("cpuUsage is 1 %, must be within 5 % to 20 %"), "{told:?}");
}

// Whatever comes.

fn intents() -> impl Strategy<Value = Intent> {
    prop_oneof![
        4 => Just(plain()),
        2 => Just(other()),
        1 => Just(paused()),
        2 => Just(two()),
        1 => Just(governing()),
        1 => Just(timed()),
        1 => Just(network()),
        1 => Just(Intent::default()),
    ]
}

fn instance_ids() -> impl Strategy<Value = String> {
    prop_oneof![4 => Just(instance("1")), 2 => Just(instance("2")), 1 => Just(RUNNING_ELSEWHERE.to_owned())]
}

fn clusters() -> impl Strategy<Value = String> {
    prop_oneof![Just("edge".to_owned()), Just("cloud".to_owned()), Just(String::new())]
}

fn reports() -> impl Strategy<Value = Input> {
    (0..=8i32, clusters(), 0..3u64, instance_ids(), any::<bool>(), 0..4usize, clusters()).prop_map(
        |(phase, cluster, generation, instance_id, hopeless, event, to)| {
            let types = ["", "unplaced", "migrated", "restarted"];
            InstanceChanged {
                instance_id,
                phase,
                hopeless,
                reason: if hopeless { "no such file".into() } else { String::new() },
                event: Some(LifecycleEvent { r#type: types[event].into(), ..Default::default() }),
                to_cluster_id: to,
                ..changed(InstancePhase::Unspecified, &cluster, generation)
            }
            .into()
        },
    )
}

fn observations() -> impl Strategy<Value = Input> {
    let value = || prop_oneof![3 => Just(10.0), 3 => Just(90.0), 1 => Just(f64::NAN)];
    (1..12u64, 0..3u64, 1..4u64, instance_ids(), value(), value(), 0..4u32).prop_map(
        |(period, generation, version, instance_id, cpu, ram, samples)| {
            let mut observation = observed(period, generation, Some((cpu, ram)));
            let expectation = if instance_id == instance("2") { "2" } else { "1" };
            for target in &mut observation.targets {
                target.expectation_id = expectation.into();
                target.samples = samples;
            }
            observation.version = version;
            observation.instance_id = instance_id;
            observation.into()
        },
    )
}

fn inputs() -> impl Strategy<Value = Input> {
    let version = || 1..5u64;
    prop_oneof![
        2 => intents().prop_map(submit),
        3 => intents().prop_map(update),
        1 => Just(suspend()),
        2 => Just(resume()),
        1 => Just(terminate()),
        4 => version().prop_map(accept),
        1 => version().prop_map(reject),
        1 => (version(), any::<bool>()).prop_map(|(v, f)| feasible(v, f)),
        1 => version().prop_map(rollback),
        2 => (0..5u8, 1..12u64, version(), intents()).prop_map(|(kind, if_revision, version, intent)| {
            let (owner, intent_id) = (OWNER.to_owned(), ID.to_owned());
            match kind {
                0 => SuspendIntent { owner, intent_id, if_revision }.into(),
                1 => ResumeIntent { owner, intent_id, if_revision }.into(),
                2 => TerminateIntent { owner, intent_id, if_revision }.into(),
                3 => RollbackIntent { owner, intent_id, version, if_revision }.into(),
                _ => UpdateIntent { owner, intent_id, intent: Some(intent), if_revision }.into(),
            }
        }),
        2 => (version(), 0..3u8).prop_map(|(v, kind)| match kind {
            0 => conflicts(v, vec![]),
            1 => conflicts(v, vec![lost_to("q")]),
            _ => conflicts(v, vec![IntentConflict { loses: false, ..lost_to("q") }]),
        }),
        1 => (1..=5i32).prop_map(|phase| {
            connectivity(Connectivity::try_from(phase).unwrap(), "")
        }),
        6 => reports(),
        6 => (clusters(), 0..3u64, instance_ids()).prop_map(|(cluster, generation, instance_id)| {
            InstanceChanged { instance_id, ..changed(InstancePhase::Running, &cluster, generation) }.into()
        }),
        1 => version().prop_map(unavailable),
        1 => clusters().prop_map(|c| unplaced(&c)),
        12 => observations(),
    ]
}

/// A step of a history: anything, or whole periods of what runs, one after the other.
#[derive(Clone, Debug)]
enum Move {
    Anything(Input),
    Periods { kind: u8, count: u64, generation: u64, expectation: &'static str },
}

fn moves() -> impl Strategy<Value = Move> {
    let periods =
        (0..3u8, 1..5u64, prop_oneof![4 => Just(1u64), 1 => Just(2)], prop_oneof![4 => Just("1"), 1 => Just("2")]);
    prop_oneof![
        3 => inputs().prop_map(Move::Anything),
        1 => Just(Move::Anything(running("edge", 1))),
        3 => periods.prop_map(|(kind, count, generation, expectation)| {
            Move::Periods { kind, count, generation, expectation }
        }),
    ]
}

/// Histories that mostly start with an intent that runs, so that most of them get somewhere.
pub(crate) fn histories() -> impl Strategy<Value = Vec<Input>> {
    let starts = prop_oneof![
        1 => Just(vec![]),
        2 => Just(acknowledged()),
        4 => Just(compliant()),
        1 => Just(vec![submit(two()), accept(1)]),
        1 => Just(vec![submit(governing()), accept(1)]),
        1 => Just(vec![submit(timed()), accept(1)]),
        1 => Just(vec![submit(network()), accept(1)]),
    ];
    (starts, proptest::collection::vec(moves(), 0..40)).prop_map(|(mut history, moves)| {
        let mut period = 0;
        for step in moves {
            let (kind, count, generation, expectation) = match step {
                Move::Anything(input) => {
                    history.push(input);
                    continue;
                }
                Move::Periods { kind, count, generation, expectation } => (kind, count, generation, expectation),
            };
            for _ in 0..count {
                period += 1;
                let values = [Some((10.0, 50.0)), Some((90.0, 50.0)), None][usize::from(kind)];
                let mut observation = observed(period, generation, values);
                observation.instance_id = instance(expectation);
                observation.targets.iter_mut().for_each(|t| t.expectation_id = expectation.into());
                history.push(observation.into());
            }
        }
        history
    })
}

/// The state table as `walk.md` has it, for each kind of fact; written apart from the code that it judges.
fn allowed(from: Row, to: Row, fact: &Fact) -> bool {
    use Row::{Acknowledged, Compliant, Degraded, Failed, Fulfilled, Submitted, Suspended, Terminated};
    match fact {
        // Accepted: the first version, or an update that was allowed when it came; it may have begun to run since.
        Fact::IntentAcknowledged(_) => {
            matches!(
                from,
                Submitted | Acknowledged | Failed | Terminated | Suspended | Compliant | Fulfilled | Degraded
            ) && to == Acknowledged
        }
        Fact::IntentRejected(_) => to == from || (from == Submitted && to == Failed),
        Fact::IntentStateChanged(_) => {
            from == to
                || matches!(
                    (from, to),
                    (Acknowledged, Compliant)
                        | (Compliant | Degraded, Fulfilled)
                        | (Compliant | Fulfilled, Degraded)
                        | (Acknowledged | Compliant | Fulfilled | Degraded, Failed)
                        | (Failed | Suspended, Acknowledged)
                        | (Acknowledged | Compliant | Fulfilled | Degraded | Failed, Suspended)
                        | (_, Terminated)
                )
        }
        _ => from == to,
    }
}

/// The answers among facts to the command of this id.
fn answers(facts: &[Fact], id: &str) -> usize {
    let names = |fact: &&Fact| match fact {
        Fact::IntentSubmitted(f) => f.command_id == id,
        Fact::IntentUnchanged(f) => f.command_id == id,
        Fact::IntentStateChanged(f) => f.command_id == id,
        _ => false,
    };
    facts.iter().filter(names).count()
}

/// Without this, the properties below might hold because nothing ever happens.
#[test]
fn the_histories_walk_every_row_of_the_table() {
    let mut runner = TestRunner::deterministic();
    let (mut seen, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..2_000 {
        let history = histories().new_tree(&mut runner).unwrap().current();
        let mut bench = Bench::default();
        for input in history {
            match (expected_revision(&input), bench.when(input)) {
                (1.., Err(refusal)) if refusal.reason.contains("at revision") => kinds.insert("moved on"),
                (1.., Ok(_)) => kinds.insert("not moved"),
                _ => false,
            };
            for fact in bench.pass() {
                kinds.insert(if matches!(fact, Fact::IntentAcknowledged(_)) { "begun" } else { "ended" });
            }
        }
        for (fact, _) in bench.facts {
            match &fact {
                Fact::IntentSubmitted(f) if f.rolled_back_to > 0 => kinds.insert("rolled back"),
                Fact::IntentStateChanged(f) if f.suspended_by == BY_CONFLICT => kinds.insert("gave way"),
                Fact::IntentStateChanged(f) if f.conflicts.iter().any(|c| !c.loses) => kinds.insert("had its way"),
                _ => false,
            };
            if let Fact::IntentStateChanged(IntentStateChanged { from: Some(from), to: Some(to), .. }) = &fact {
                seen.insert((Row::of(from), Row::of(to)));
            }
            if matches!(fact, Fact::IntentRemedyWanted(_)) {
                seen.insert((Row::Degraded, Row::Degraded));
            }
        }
    }
    use Row::{Acknowledged, Compliant, Degraded, Failed, Fulfilled, Suspended, Terminated};
    for edge in [
        (Acknowledged, Compliant),
        (Compliant, Fulfilled),
        (Degraded, Fulfilled),
        (Compliant, Degraded),
        (Fulfilled, Degraded),
        (Degraded, Degraded),
        (Acknowledged, Failed),
        (Compliant, Failed),
        (Degraded, Failed),
        (Failed, Acknowledged),
        (Suspended, Acknowledged),
        (Acknowledged, Suspended),
        (Fulfilled, Suspended),
        (Degraded, Terminated),
        (Terminated, Terminated),
    ] {
        assert!(seen.contains(&edge), "no history walks {edge:?}");
    }
    for kind in ["moved on", "not moved", "begun", "ended", "rolled back", "gave way", "had its way"] {
        assert!(kinds.contains(kind), "in no history an intent has {kind}");
    }
}

/// The revision that a command is on condition of; 0 for none.
fn expected_revision(input: &Input) -> u64 {
    match input {
        Input::UpdateIntent(command) => command.if_revision,
        Input::SuspendIntent(command) => command.if_revision,
        Input::ResumeIntent(command) => command.if_revision,
        Input::RollbackIntent(command) => command.if_revision,
        Input::TerminateIntent(command) => command.if_revision,
        _ => 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_history_leaves_the_state_table(history in histories()) {
        let mut bench = Bench::default();
        for input in history {
            let mut row = bench.row();
            let mut folded = bench.entity.clone();
            let command = input.any().is_command();
            let expected = expected_revision(&input);
            let decided = bench.when(input);
            prop_assert!(decided.is_ok() || (command && bench.entity == folded), "what is refused changes nothing");
            prop_assert!(decided.is_err() || expected == 0 || expected == folded.revision, "it had moved on");
            let by_time = bench.pass();
            for fact in decided.into_iter().flatten().chain(by_time) {
                let was = folded.clone();
                folded = Intents::default().evolve(folded, &fact, at(bench.seconds));
                let next = folded.row();
                prop_assert!(allowed(row, next, &fact), "{row:?} -> {next:?} by {}", line(&fact));
                if let Fact::IntentStateChanged(changed) = &fact {
                    prop_assert_eq!(changed.from.as_ref(), Some(&was.state));
                    let same = Entity { revision: was.revision, ..folded.clone() } == was;
                    prop_assert!(!same || !changed.command_id.is_empty(), "it tells nothing new: {}", line(&fact));
                }
                row = next;
            }
        }
    }

    #[test]
    fn every_command_has_one_answer_and_what_is_no_command_is_never_refused(history in histories()) {
        let mut bench = Bench::default();
        for input in history {
            let command = input.any().is_command();
            let before = bench.entity.clone();
            let decided = bench.when(input);
            let id = format!("input-{}", bench.asked);
            match decided {
                Ok(facts) => {
                    prop_assert_eq!(answers(&facts, &id), usize::from(command), "{:?}", facts);
                    let others: usize = facts.len() - answers(&facts, &id);
                    prop_assert!(others <= 4);
                }
                Err(refusal) => {
                    prop_assert!(command && !refusal.reason.is_empty() && !refusal.hint.is_empty());
                    let fact = Fact::refused(&key().0, &id, "X", &refusal).unwrap();
                    prop_assert_eq!(&Intents::default().evolve(before.clone(), &fact, at(bench.seconds)), &before);
                }
            }
        }
    }

    #[test]
    fn a_state_is_the_fold_of_its_facts_also_through_snapshots(history in histories()) {
        let mut bench = Bench::default();
        for input in history {
            let _ = bench.when(input);
            bench.pass();
        }
        let mut folded = Intents::default().initial();
        for (fact, time) in &bench.facts {
            let encoded = fact.any().body();
            let decoded = Fact::decode(fact.any().message(), &encoded).unwrap();
            folded = Intents::default().evolve(folded, &decoded, *time);
            let snapshot = serde_json::to_vec(&folded).unwrap();
            folded = serde_json::from_slice(&snapshot).unwrap();
            prop_assert_eq!(serde_json::to_vec(&folded).unwrap(), snapshot);
        }
        prop_assert_eq!(folded, bench.entity);
    }

    #[test]
    fn what_is_no_command_says_nothing_the_second_time(history in histories()) {
        let mut bench = Bench::default();
        for input in history {
            let _ = bench.when(input.clone());
            // Asked again with the state after it, at the same time: as when its acknowledgement was lost.
            let again = bench.ask(input.clone());
            if !input.any().is_command() {
                prop_assert_eq!(lines(again), Vec::<String>::new(), "{:?}", input);
            } else if matches!(input, Input::SubmitIntent(_) | Input::UpdateIntent(_)) {
                let same = matches!(again.as_deref(), Ok([Fact::IntentUnchanged(_)]) | Err(_));
                prop_assert!(same, "{:?}", again);
            }
        }
    }

    #[test]
    fn every_state_that_is_not_final_says_why_and_what_it_waits_for(history in histories()) {
        let mut bench = Bench::default();
        for input in history {
            let _ = bench.when(input);
            let state = &bench.entity.state;
            if bench.entity.submission.is_none() {
                continue;
            }
            prop_assert!(!state.reason.is_empty());
            match bench.row() {
                Row::Fulfilled => prop_assert!(state.waits_for.is_empty(), "{:?}", state),
                Row::Terminated => prop_assert_eq!(state.waits_for.is_empty(), bench.entity.awaited().is_none()),
                _ => prop_assert!(!state.waits_for.is_empty(), "{:?}", state),
            }
        }
    }

    /// Against a second, simpler model of one target: the list of all that was observed of it.
    #[test]
    fn a_remedy_is_wanted_after_two_misses_and_then_less_often(
        periods in proptest::collection::vec((prop_oneof![1 => Just(0u8), 12 => Just(1), 1 => Just(2)], prop_oneof![9 => Just(1u64), 1 => Just(2)]), 1..160)
    ) {
        let mut bench = Bench::given(vec![submit(other()), accept(1), running("edge", 1)]);
        // Periods and what they were: held, missed, blind.
        let mut model: Vec<(u64, u8)> = vec![];
        let (mut period, mut row, mut asked, mut last, mut since) = (0, 0, 0u32, None, 0);
        for (kind, step) in periods {
            period += step;
            let kind = kind.min(2);
            let observation = match kind {
                0 => held(period),
                1 => missed(period),
                _ => blind(period),
            };
            // `other` allows 30 %: 34.25 is a miss, 10 is not.
            let facts = bench.when(observation).unwrap();
            let wanted = facts.iter().filter(|f| matches!(f, Fact::IntentRemedyWanted(_))).count();
            let follows = model.last() == Some(&(period - 1, 1));
            model.push((period, kind));
            if kind == 1 && !(row == 2 || (row == 1 && follows)) {
                since = period as i64 * PERIOD_SECONDS;
            }
            row = match kind {
                1 if row == 2 || (row == 1 && follows) => 2,
                1 => 1,
                _ => 0,
            };
            let now = (period as i64 + 1) * PERIOD_SECONDS;
            let wait = 60 * [1, 1, 2, 4, 8, 16][asked.min(5) as usize];
            let due = row == 2 && last.is_none_or(|last| now - last >= wait);
            prop_assert_eq!(wanted, usize::from(due));
            if due {
                let long = last.is_some_and(|last| since >= last + (2 * wait).max(960));
                (last, asked) = (Some(now), if long { 1 } else { asked + 1 });
            }
            let blind_row = model.iter().rev().take_while(|(_, k)| *k == 2).count();
            match (kind, bench.row()) {
                (0, row) => prop_assert_eq!(row, Row::Fulfilled),
                (1, found) if row == 2 => prop_assert_eq!(found, Row::Degraded),
                (2, row) if blind_row >= 3 => prop_assert_eq!(row, Row::Degraded),
                (_, row) => prop_assert!(matches!(row, Row::Compliant | Row::Fulfilled | Row::Degraded)),
            }
        }
    }
}
