use proptest::prelude::*;

use super::*;
use mesh_proto::workload::ProcessSpec;

const T0: Timestamp = Timestamp::from_millis(1_000_000);
const CLUSTER: &str = "edge";

fn document(cpu_milli: u32, singleton: bool) -> WorkloadDocument {
    WorkloadDocument {
        name: "w".into(),
        version: "1.0.0".into(),
        kind: "process".into(),
        process: Some(ProcessSpec { command: "run".into(), ..Default::default() }),
        resources: Some(Resources { cpu_milli, memory_bytes: 1_000, ..Default::default() }),
        singleton,
        ..Default::default()
    }
}

fn message(instance: &str, generation: u64, action: Assigned, replicas: u32) -> AssignmentChanged {
    AssignmentChanged {
        cluster_id: CLUSTER.into(),
        owner: "local".into(),
        instance_id: instance.into(),
        generation,
        action: action.into(),
        replicas,
        document: document(100, false).encode_to_vec().into(),
        ..Default::default()
    }
}

fn cause(sequence: u64) -> Cause {
    Cause { stream: "ASSIGNMENT".into(), sequence, id: format!("a{sequence}") }
}

/// A cluster under test: applies steps and keeps what was said.
struct World {
    cluster: Cluster,
    limits: Limits,
    sequence: u64,
    now: Timestamp,
    said: Vec<Fact>,
}

impl World {
    fn new() -> Self {
        Self { cluster: Cluster::new(CLUSTER), limits: Limits::default(), sequence: 0, now: T0, said: vec![] }
    }

    fn keep(&mut self, outcome: Outcome) -> Vec<Action> {
        self.said.extend(outcome.said.into_iter().map(|s| s.fact));
        outcome.actions
    }

    fn assign(&mut self, message: &AssignmentChanged) -> Vec<Action> {
        self.sequence += 1;
        if !self.cluster.learn(message, &cause(self.sequence), &self.limits) {
            return vec![];
        }
        let outcome = self.cluster.reconcile(&message.instance_id, self.now, &self.limits);
        self.keep(outcome)
    }

    fn run(&mut self, instance: &str, generation: u64, replicas: u32) -> Vec<Action> {
        self.assign(&message(instance, generation, Assigned::Run, replicas))
    }

    fn stop(&mut self, instance: &str, generation: u64) -> Vec<Action> {
        self.assign(&message(instance, generation, Assigned::Stop, 0))
    }

    fn happened(&mut self, event: Event) -> Vec<Action> {
        let outcome = self.cluster.happened(&event, self.now, &self.limits);
        self.keep(outcome)
    }

    fn started(&mut self, instance: &str, generation: u64, replica: u32) -> Vec<Action> {
        self.happened(Event::Started { id: id(instance, generation, replica) })
    }

    fn exited(&mut self, instance: &str, generation: u64, replica: u32) -> Vec<Action> {
        self.happened(Event::Exited { id: id(instance, generation, replica), reason: "exited with code 1".into() })
    }

    fn pass(&mut self, ms: i64) -> Vec<Action> {
        self.now = self.now.plus_millis(ms);
        let outcome = self.cluster.elapse(self.now, &self.limits);
        self.keep(outcome)
    }

    /// The last status of an instance.
    fn status(&self, instance: &str) -> InstanceStatusChanged {
        let found = self.said.iter().rev().find_map(|fact| match fact {
            Fact::Status(status) if status.instance_id == instance => Some(status.clone()),
            _ => None,
        });
        found.unwrap_or_default()
    }

    fn phases(&self, instance: &str) -> Vec<(u64, InstancePhase)> {
        let of = |fact: &Fact| match fact {
            Fact::Status(status) if status.instance_id == instance => Some((status.generation, status.phase())),
            _ => None,
        };
        self.said.iter().filter_map(of).collect()
    }
}

fn id(instance: &str, generation: u64, replica: u32) -> ReplicaId {
    ReplicaId { instance_id: instance.into(), generation, replica }
}

fn starts(actions: &[Action]) -> Vec<(u64, u32)> {
    let start = |action: &Action| match action {
        Action::Start(spec) => Some((spec.id.generation, spec.id.replica)),
        Action::Stop { .. } => None,
    };
    actions.iter().filter_map(start).collect()
}

fn stop(up_to_generation: u64, force: bool) -> Action {
    Action::Stop { instance_id: "a".into(), up_to_generation, force }
}

#[test]
fn an_instance_runs_once_all_its_replicas_have_been_up_for_a_moment() {
    let mut world = World::new();
    assert_eq!(starts(&world.run("a", 1, 2)), [(1, 0), (1, 1)]);
    world.started("a", 1, 0);
    world.pass(200);
    world.started("a", 1, 1);
    assert_eq!(world.status("a").phase(), InstancePhase::Starting);
    world.pass(100);
    let status = world.status("a");
    assert_eq!((status.phase(), status.replicas_running, status.replicas_wanted), (InstancePhase::Running, 2, 2));
    assert_eq!(world.said.len(), 2, "a fact per change and no more");
    assert_eq!(world.cluster.due(), None);
}

#[test]
fn a_newer_generation_starts_when_the_older_has_ended() {
    let mut world = World::new();
    world.run("a", 1, 1);
    world.started("a", 1, 0);
    assert_eq!(world.run("a", 2, 1), [stop(1, false)]);
    assert_eq!(world.pass(world.limits.stop_grace_ms), [stop(1, true)]);
    assert_eq!(starts(&world.exited("a", 1, 0)), [(2, 0)]);
    assert!(world.status("a").reason.is_empty() || world.status("a").phase() == InstancePhase::Starting);
    world.started("a", 2, 0);
    world.pass(100);
    assert_eq!(world.phases("a").last(), Some(&(2, InstancePhase::Running)));
}

#[test]
fn an_older_generation_is_refused_before_and_after_its_successor_has_gone() {
    let mut world = World::new();
    world.run("a", 3, 1);
    assert_eq!(world.run("a", 2, 1), []);
    assert_eq!(world.run("a", 3, 1), []);
    assert_eq!(world.stop("a", 2), [], "what is newer is not meant");
    world.stop("a", 3);
    world.started("a", 3, 0);
    world.exited("a", 3, 0);
    assert_eq!(world.status("a").phase(), InstancePhase::Stopped);
    world.cluster.stopped_is_known("a", 3);
    assert_eq!(world.cluster.instances().count(), 0);
    assert_eq!(world.run("a", 3, 1), []);
    assert_eq!(starts(&world.run("a", 4, 1)), [(4, 0)]);
}

#[test]
fn a_stop_reaches_what_is_starting_and_is_said_once_all_has_ended() {
    let mut world = World::new();
    world.run("a", 1, 2);
    assert_eq!(world.stop("a", 1), [stop(1, false)]);
    world.started("a", 1, 0);
    world.exited("a", 1, 0);
    assert_ne!(world.status("a").phase(), InstancePhase::Stopped);
    world.happened(Event::StartFailed { id: id("a", 1, 1), reason: "x".into(), fails: Fails::Anywhere });
    assert_eq!((world.status("a").phase(), world.status("a").generation), (InstancePhase::Stopped, 1));
}

#[test]
fn a_stop_of_what_never_ran_here_is_answered_too() {
    let mut world = World::new();
    world.stop("a", 5);
    assert_eq!((world.status("a").phase(), world.status("a").generation), (InstancePhase::Stopped, 5));
    assert_eq!(world.run("a", 5, 1), []);
}

#[test]
fn leaving_changes_nothing_until_the_stop() {
    let mut world = World::new();
    world.run("a", 1, 1);
    world.started("a", 1, 0);
    world.pass(100);
    assert_eq!(world.assign(&message("a", 2, Assigned::Leave, 0)), []);
    assert_eq!(world.exited("a", 1, 0), []);
    assert_eq!(starts(&world.pass(200)), [(1, 0)], "it is still restarted");
    assert_eq!(world.stop("a", 1), [stop(1, false)]);
}

#[test]
fn restarts_wait_longer_each_time_and_start_over_after_a_stable_while() {
    let mut world = World::new();
    world.limits.restarts_max = 100;
    world.run("a", 1, 1);
    for wait_ms in [200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000] {
        world.started("a", 1, 0);
        assert_eq!(world.exited("a", 1, 0), []);
        assert_eq!(world.status("a").phase(), InstancePhase::Restarting);
        assert_eq!(world.pass(wait_ms - 1), []);
        assert_eq!(starts(&world.pass(1)), [(1, 0)], "after {wait_ms} ms");
    }
    assert_eq!(world.status("a").restarts, 10);
    world.started("a", 1, 0);
    world.pass(60_000);
    assert_eq!(world.status("a").phase(), InstancePhase::Running);
    world.exited("a", 1, 0);
    assert_eq!(starts(&world.pass(200)), [(1, 0)]);
}

#[test]
fn an_instance_without_restarts_left_fails_with_its_last_output() {
    let mut world = World::new();
    world.run("a", 1, 2);
    world.started("a", 1, 1);
    for _ in 0..world.limits.restarts_max {
        world.started("a", 1, 0);
        world.exited("a", 1, 0);
        world.pass(30_000);
    }
    world.started("a", 1, 0);
    assert_eq!(world.exited("a", 1, 0), [stop(1, false)], "the other replica does not go on alone");
    let status = world.status("a");
    assert_eq!((status.phase(), status.hopeless), (InstancePhase::Failed, false));
    assert!(status.reason.starts_with("exited with code 1; restarts used up: 10"), "{}", status.reason);
    world.exited("a", 1, 1);
    assert_eq!(world.pass(1_000_000), []);
    assert_eq!(starts(&world.run("a", 2, 1)), [(2, 0)], "a newer generation is tried");
}

#[test]
fn failures_outside_the_window_do_not_add_up() {
    let mut world = World::new();
    world.run("a", 1, 1);
    for _ in 0..50 {
        world.started("a", 1, 0);
        world.pass(61_000);
        world.exited("a", 1, 0);
        assert_eq!(starts(&world.pass(200)), [(1, 0)]);
    }
}

#[test]
fn a_missing_binary_is_hopeless_at_once() {
    let mut world = World::new();
    world.run("a", 1, 1);
    let reason = "no such file or directory: run".to_owned();
    world.happened(Event::StartFailed { id: id("a", 1, 0), reason: reason.clone(), fails: Fails::Anywhere });
    let status = world.status("a");
    assert_eq!(
        (status.phase(), status.hopeless, status.reason, status.restarts),
        (InstancePhase::Failed, true, reason, 0)
    );
    assert_eq!(world.cluster.due(), None);
}

#[test]
fn a_program_for_another_machine_fails_at_once_and_may_be_tried_elsewhere() {
    let mut world = World::new();
    world.run("a", 1, 1);
    world.happened(Event::StartFailed { id: id("a", 1, 0), reason: "exec format error".into(), fails: Fails::Here });
    assert_eq!((world.status("a").phase(), world.status("a").hopeless), (InstancePhase::Failed, false));
}

#[test]
fn a_document_that_cannot_run_here_has_failed_and_says_why() {
    let mut world = World::new();
    let mut unreadable = message("a", 1, Assigned::Run, 1);
    unreadable.document = bytes::Bytes::from_static(b"\xff");
    assert_eq!(world.assign(&unreadable), []);
    assert!(world.status("a").hopeless);
    let mut other = message("b", 1, Assigned::Run, 1);
    other.document = WorkloadDocument { kind: "container".into(), ..document(1, false) }.encode_to_vec().into();
    world.assign(&other);
    assert!(world.status("b").reason.contains("container"), "{}", world.status("b").reason);
}

#[test]
fn what_is_over_capacity_is_rejected_with_figures_and_what_runs_stays() {
    let mut world = World::new();
    world.run("a", 1, 6);
    world.run("b", 1, 4);
    assert_eq!(world.run("c", 1, 1), []);
    let Some(Fact::Rejected(rejected)) = world.said.last() else { panic!("{:?}", world.said) };
    assert_eq!(rejected.reason, "asks 100 mCPU, 0 of 1000 are free here: 100 short");
    assert_eq!(world.run("a", 2, 7), [], "one more than fits: generation 1 goes on");
    assert_eq!(world.cluster.wanted("a").map(|w| w.generation), Some(1));
    assert_eq!(world.run("a", 3, 5), [stop(1, false)], "its own old replicas do not count against it");
    world.stop("b", 1);
    assert_eq!(starts(&world.run("c", 2, 5)).len(), 5);
}

#[test]
fn an_agent_without_processes_refuses_documents_and_says_why() {
    let mut world = World::new();
    world.limits.process_documents = false;
    assert_eq!(world.run("a", 1, 1), []);
    let Some(Fact::Rejected(rejected)) = world.said.last() else { panic!("{:?}", world.said) };
    assert!(rejected.reason.contains("CLUSTER_AGENT_PROCESS_DOCUMENTS"), "{}", rejected.reason);
}

#[test]
fn a_stop_is_answered_although_a_newer_generation_was_rejected_meanwhile() {
    let mut world = World::new();
    world.run("a", 1, 1);
    world.started("a", 1, 0);
    world.stop("a", 1);
    world.run("a", 2, 100);
    world.exited("a", 1, 0);
    assert_eq!((world.status("a").phase(), world.status("a").generation), (InstancePhase::Stopped, 1));
    world.cluster.stopped_is_known("a", 1);
    let said = world.said.len();
    let outcome = world.cluster.reconcile_all(world.now, &world.limits);
    world.keep(outcome);
    assert_eq!(world.said.len(), said, "and once only");
}

#[test]
fn a_rejection_that_is_known_is_not_said_again_after_a_restart() {
    let mut world = World::new();
    world.run("a", 1, 11);
    assert_eq!(world.said.len(), 1);
    let again = |cluster: &Cluster| {
        let mut restarted: Cluster = serde_json::from_slice(&serde_json::to_vec(cluster).unwrap()).unwrap();
        restarted.reconcile_all(T0, &Limits::default()).said.len()
    };
    assert_eq!(again(&world.cluster), 1);
    world.cluster.rejection_is_known("a", 1);
    assert_eq!(again(&world.cluster), 0);
}

#[test]
fn the_memory_of_what_is_gone_is_bounded_and_keeps_the_newest() {
    let mut world = World::new();
    let all = 2 * REMEMBERED_MAX + 1;
    for n in 0..all {
        let instance = format!("i{n}");
        world.stop(&instance, 1);
        world.cluster.stopped_is_known(&instance, 1);
    }
    assert_eq!(world.cluster.gone.len(), REMEMBERED_MAX);
    assert!(world.cluster.gone.contains_key(&format!("i{}", all - 1)));
}

/// A driver that does as it is told, in its own time.
#[derive(Default)]
struct Host {
    alive: BTreeMap<ReplicaId, Run>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Run {
    Starting,
    Up,
}

impl Host {
    /// Takes actions; holds the cluster to its invariants.
    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Start(spec) => {
                    let others = self.alive.keys().filter(|id| id.instance_id == spec.id.instance_id);
                    for other in others {
                        assert_eq!(other.generation, spec.id.generation, "two generations beside each other");
                    }
                    assert_eq!(self.alive.insert(spec.id, Run::Starting), None, "started twice");
                }
                Action::Stop { force, .. } => assert!(!force || !self.alive.is_empty(), "nothing to force"),
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Assign {
        instance: u8,
        generation: u64,
        action: u8,
        replicas: u32,
    },
    /// Delivers an old assignment again.
    Again(usize),
    /// The `n`-th living replica starts, fails to start, or ends.
    Advance(usize),
    Fail(usize),
    Pass(i64),
    Acknowledge,
    /// The agent is killed with all it runs, and starts from what it had kept.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..4u8, 1..12u64, 0..4u8, 1..4u32).prop_map(|(instance, generation, action, replicas)| Step::Assign {
            instance, generation, action, replicas
        }),
        1 => (0..40usize).prop_map(Step::Again),
        8 => (0..20usize).prop_map(Step::Advance),
        3 => (0..20usize).prop_map(Step::Fail),
        4 => (1..40_000i64).prop_map(Step::Pass),
        1 => Just(Step::Acknowledge),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..120)
}

struct Run1 {
    world: World,
    host: Host,
    history: Vec<AssignmentChanged>,
}

impl Run1 {
    fn new() -> Self {
        Self { world: World::new(), host: Host::default(), history: vec![] }
    }

    fn step(&mut self, step: &Step) {
        let Self { world, host, history } = self;
        let nth = |host: &Host, n: usize| host.alive.keys().nth(n % host.alive.len().max(1)).cloned();
        match *step {
            Step::Assign { instance, generation, action, replicas } => {
                let action = [Assigned::Run, Assigned::Run, Assigned::Stop, Assigned::Leave][usize::from(action)];
                let message = message(&format!("i{instance}"), generation, action, replicas);
                history.push(message.clone());
                host.act(world.assign(&message));
            }
            Step::Again(n) => {
                if let Some(message) = history.get(n) {
                    let before = world.cluster.clone();
                    let changed = world.cluster.learn(message, &cause(n as u64 + 1), &world.limits);
                    assert!(!changed);
                    assert_eq!(world.cluster, before, "an assignment applied twice changes nothing");
                }
            }
            Step::Advance(n) => {
                let Some(id) = nth(host, n) else { return };
                let event = match host.alive.insert(id.clone(), Run::Up) {
                    Some(Run::Starting) => Event::Started { id },
                    _ => {
                        host.alive.remove(&id);
                        Event::Exited { id, reason: "exited".into() }
                    }
                };
                host.act(world.happened(event));
            }
            Step::Fail(n) => {
                let Some(id) = nth(host, n).filter(|id| host.alive.get(id) == Some(&Run::Starting)) else { return };
                host.alive.remove(&id);
                let fails = if n % 5 == 0 { Fails::Here } else { Fails::Now };
                host.act(world.happened(Event::StartFailed { id, reason: "x".into(), fails }));
            }
            Step::Pass(ms) => host.act(world.pass(ms)),
            Step::Acknowledge => {
                for n in 0..4 {
                    let instance = format!("i{n}");
                    let status = world.status(&instance);
                    if status.phase() == InstancePhase::Stopped {
                        world.cluster.stopped_is_known(&instance, status.generation);
                    }
                }
            }
            Step::Crash => {
                host.alive.clear();
                let kept = serde_json::to_vec(&world.cluster).unwrap();
                world.cluster = serde_json::from_slice(&kept).unwrap();
                let outcome = world.cluster.reconcile_all(world.now, &world.limits);
                let actions = world.keep(outcome);
                host.act(actions);
            }
        }
    }

    /// Everything that is asked to end ends, everything started runs, until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..200 {
            let ids: Vec<ReplicaId> = self.host.alive.keys().cloned().collect();
            for id in ids {
                let wanted = self.world.cluster.wanted(&id.instance_id).map(|w| w.generation);
                let failed = self.world.status(&id.instance_id).phase() == InstancePhase::Failed;
                let stays = wanted == Some(id.generation) && !failed;
                match self.host.alive.get(&id) {
                    Some(Run::Starting) => {
                        self.host.alive.insert(id.clone(), Run::Up);
                        let actions = self.world.happened(Event::Started { id });
                        self.host.act(actions);
                    }
                    Some(Run::Up) if !stays => {
                        self.host.alive.remove(&id);
                        let actions = self.world.happened(Event::Exited { id, reason: "ended".into() });
                        self.host.act(actions);
                    }
                    _ => {}
                }
            }
            let actions = self.world.pass(30_000);
            self.host.act(actions);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// The host asserts in every step that no two generations of an instance run beside each other and none runs twice.
    #[test]
    fn finally_wanted_runs_stopped_does_not_and_both_are_published(steps in steps()) {
        let mut run = Run1::new();
        for step in &steps {
            run.step(step);
        }
        run.settle();
        for n in 0..4 {
            let instance = format!("i{n}");
            let running = run.host.alive.keys().filter(|id| id.instance_id == instance);
            let running: Vec<(u64, u32)> = running.map(|id| (id.generation, id.replica)).collect();
            let status = run.world.status(&instance);
            match run.world.cluster.wanted(&instance) {
                Some(wanted) if status.phase() == InstancePhase::Failed => {
                    prop_assert_eq!(status.generation, wanted.generation);
                    prop_assert_eq!(running, vec![]);
                }
                Some(wanted) => {
                    let all: Vec<_> = (0..wanted.replicas).map(|replica| (wanted.generation, replica)).collect();
                    prop_assert_eq!(running, all);
                    prop_assert_eq!(status.phase(), InstancePhase::Running);
                    prop_assert_eq!(status.generation, wanted.generation);
                }
                None => {
                    prop_assert_eq!(running, vec![]);
                    let stopped = run.history.iter().any(|m| m.instance_id == instance && m.action() == Assigned::Stop);
                    if stopped && status.generation > 0 {
                        prop_assert_eq!(status.phase(), InstancePhase::Stopped);
                    }
                }
            }
        }
        prop_assert_eq!(run.world.cluster.due(), None);
    }

    /// History folded without acting wants the same as what acted on each message as it came.
    #[test]
    fn a_fold_of_all_assignments_wants_the_same(steps in steps()) {
        let mut run = Run1::new();
        for step in &steps {
            run.step(step);
        }
        let mut folded = Cluster::new(CLUSTER);
        for (n, message) in run.history.iter().enumerate() {
            folded.learn(message, &cause(n as u64 + 1), &run.world.limits);
        }
        prop_assert_eq!(folded.position(), run.world.cluster.position());
        for n in 0..4 {
            let instance = format!("i{n}");
            prop_assert_eq!(folded.wanted(&instance), run.world.cluster.wanted(&instance));
        }
    }

    /// Requests of what is wanted never add up to more than the cluster has.
    #[test]
    fn no_more_is_taken_than_there_is(assigned in proptest::collection::vec((0..6u8, 1..30u64, 1..9u32, 1..400u32), 1..60)) {
        let mut world = World::new();
        for (instance, generation, replicas, cpu_milli) in assigned {
            let mut message = message(&format!("i{instance}"), generation, Assigned::Run, replicas);
            message.document = document(cpu_milli, false).encode_to_vec().into();
            world.assign(&message);
            let wanted = world.cluster.instances.values().filter_map(|i| i.wanted.as_ref());
            let sum: u32 = wanted.map(|w| w.resources().cpu_milli * w.replicas).sum();
            prop_assert!(sum <= world.limits.cpu_milli);
        }
    }
}
