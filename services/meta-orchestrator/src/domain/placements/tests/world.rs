//! A whole domain with simulated agents, held against a second, simpler model.
//!
//! The model knows nothing of the planner's state. It reads the published facts and keeps, per instance, the clusters it
//! was given and not released from; everything else is compared with that.

use std::collections::{BTreeSet, VecDeque};

use mesh_proto::{
    assignment::{Action, AssignmentChanged},
    deciders::assignments,
};
use proptest::prelude::*;

use super::*;
use crate::domain::assignments::Assignments;

const CLUSTERS: usize = 4;
const INSTANCES: usize = 6;

/// What an agent makes of an assignment to run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Runs,
    Fails,
    FailsHopelessly,
    Refuses,
    SaysNothing,
}

#[derive(Clone, Debug)]
enum Happens {
    Joins { cluster: usize, cpu_milli: u32 },
    Wanted { instance: usize, cpu_milli: u32, replicas: u32, bound: Option<u32> },
    Ends { instance: usize },
    AgentActs { cluster: usize, outcome: Outcome },
    AgentCrashes { cluster: usize },
    StatusArrives { cluster: usize },
    ProcessFails { cluster: usize, instance: usize },
    IsCutOff { cluster: usize },
    IsBack { cluster: usize },
    Missed { instance: usize, load_milli: u32 },
    Held { instance: usize },
    TimePasses { millis: i64 },
}

fn happens() -> impl Strategy<Value = Happens> {
    let cluster = 0..CLUSTERS;
    let instance = 0..INSTANCES;
    let outcome = prop_oneof![
        6 => Just(Outcome::Runs), 2 => Just(Outcome::Fails), 1 => Just(Outcome::FailsHopelessly),
        1 => Just(Outcome::Refuses), 1 => Just(Outcome::SaysNothing),
    ];
    prop_oneof![
        2 => (cluster.clone(), 1u32..10).prop_map(|(cluster, n)| Happens::Joins { cluster, cpu_milli: n * 100 }),
        4 => (instance.clone(), 1u32..5, 1u32..3, prop::option::of(1u32..100)).prop_map(|(instance, n, replicas, bound)| {
            Happens::Wanted { instance, cpu_milli: n * 50, replicas, bound }
        }),
        1 => instance.clone().prop_map(|instance| Happens::Ends { instance }),
        10 => (cluster.clone(), outcome).prop_map(|(cluster, outcome)| Happens::AgentActs { cluster, outcome }),
        1 => cluster.clone().prop_map(|cluster| Happens::AgentCrashes { cluster }),
        10 => cluster.clone().prop_map(|cluster| Happens::StatusArrives { cluster }),
        1 => (cluster.clone(), instance.clone()).prop_map(|(cluster, instance)| Happens::ProcessFails { cluster, instance }),
        1 => cluster.clone().prop_map(|cluster| Happens::IsCutOff { cluster }),
        2 => cluster.prop_map(|cluster| Happens::IsBack { cluster }),
        4 => (instance.clone(), 1u32..900).prop_map(|(instance, load_milli)| Happens::Missed { instance, load_milli }),
        1 => instance.prop_map(|instance| Happens::Held { instance }),
        3 => (1i64..40_000).prop_map(|millis| Happens::TimePasses { millis }),
    ]
}

/// What runs on a cluster, generation by generation.
#[derive(Clone, Debug, PartialEq)]
struct Process {
    generation: u64,
    failed: bool,
}

/// One cluster: its assignments, and an agent that works them off in order.
#[derive(Default)]
struct Agent {
    cut_off: bool,
    assigned: crate::domain::assignments::State,
    inbox: VecDeque<AssignmentChanged>,
    running: BTreeMap<String, Process>,
    outbox: VecDeque<Input>,
}

impl Agent {
    fn act(&mut self, cluster: &str, outcome: Outcome) {
        if self.cut_off {
            return;
        }
        let Some(task) = self.inbox.pop_front() else { return };
        let say = |phase| said(cluster, &task.instance_id, task.generation, phase);
        match task.action() {
            Action::Run if self.running.get(&task.instance_id).is_some_and(|p| p.generation >= task.generation) => {}
            Action::Run => {
                // A newer generation takes the place of an older one.
                self.running.remove(&task.instance_id);
                let failed = matches!(outcome, Outcome::Fails | Outcome::FailsHopelessly);
                if outcome == Outcome::Refuses {
                    self.outbox.push_back(Input::InstanceRejected(InstanceRejected {
                        cluster_id: cluster.into(),
                        instance_id: task.instance_id.clone(),
                        generation: task.generation,
                        ..Default::default()
                    }));
                    return;
                }
                self.running.insert(task.instance_id.clone(), Process { generation: task.generation, failed });
                match outcome {
                    Outcome::Runs => self.outbox.push_back(say(InstancePhase::Running).into()),
                    Outcome::SaysNothing | Outcome::Refuses => {}
                    Outcome::Fails | Outcome::FailsHopelessly => {
                        let hopeless = outcome == Outcome::FailsHopelessly;
                        self.outbox.push_back(InstanceStatusChanged { hopeless, ..say(InstancePhase::Failed) }.into());
                    }
                }
            }
            Action::Stop => {
                if self.running.get(&task.instance_id).is_some_and(|p| p.generation <= task.generation) {
                    self.running.remove(&task.instance_id);
                }
                self.outbox.push_back(say(InstancePhase::Stopped).into());
            }
            Action::Leave | Action::Unspecified => {}
        }
    }
}

struct World {
    domain: Domain,
    agents: BTreeMap<String, Agent>,
    wanted: BTreeMap<String, InstanceWanted>,
    /// Facts already taken over into model and agents.
    seen: usize,
    model: Model,
    asked: Vec<(Trigger<Input>, Timestamp)>,
}

/// The second model: clusters and what they hold, by the plainest reading of the facts.
#[derive(Default)]
struct Model {
    sizes: BTreeMap<String, u32>,
    lost: BTreeSet<String>,
    /// Instance, cluster, generation, and what is reserved.
    holds: Vec<(String, String, u64, u64)>,
    highest: BTreeMap<String, u64>,
    unplaced: BTreeSet<String>,
}

impl Model {
    fn reserved(&self, cluster: &str) -> u64 {
        self.holds.iter().filter(|h| h.1 == cluster).map(|h| h.3).sum()
    }

    fn of(&self, instance: &str) -> usize {
        self.holds.iter().filter(|h| h.0 == instance).count()
    }

    fn read(&mut self, fact: &Fact) -> Result<(), TestCaseError> {
        match fact {
            Fact::ClusterJoined(f) => {
                self.sizes.insert(f.cluster_id.clone(), f.cpu_milli);
            }
            Fact::ClusterLost(f) => prop_assert!(self.lost.insert(f.cluster_id.clone()), "lost twice"),
            Fact::ClusterReturned(f) => prop_assert!(self.lost.remove(&f.cluster_id), "returned unlost"),
            Fact::LatenciesNoted(_) => prop_assert!(false, "no network is measured here"),
            Fact::MigrationDeclined(_) => prop_assert!(false, "nobody asks for a move here"),
            Fact::PlacementDecided(f) => {
                let highest = self.highest.insert(f.instance_id.clone(), f.generation).unwrap_or(0);
                prop_assert!(f.generation > highest, "{} after {highest}", f.generation);
                let document = WorkloadDocument::decode(f.document.clone()).unwrap();
                let asks = u64::from(document.resources.unwrap_or_default().cpu_milli) * u64::from(f.replicas);
                if f.from_cluster_id.is_empty() {
                    self.holds.retain(|h| h.0 != f.instance_id);
                } else {
                    prop_assert!(self.holds.iter().any(|h| h.0 == f.instance_id && h.1 == f.from_cluster_id));
                }
                prop_assert!(!self.lost.contains(&f.cluster_id), "placed on a lost cluster");
                let free = u64::from(self.sizes[&f.cluster_id]).saturating_sub(self.reserved(&f.cluster_id));
                prop_assert!(asks <= free, "{asks} of {free} on {}", f.cluster_id);
                let chosen = f.candidates.iter().find(|c| c.cluster_id == f.cluster_id).unwrap();
                prop_assert!(chosen.ruled_out.is_empty());
                prop_assert!(f.candidates.iter().all(|c| !c.ruled_out.is_empty() || c.score <= chosen.score));
                prop_assert_eq!(f.candidates.len(), self.sizes.len(), "every cluster is a candidate");
                self.holds.push((f.instance_id.clone(), f.cluster_id.clone(), f.generation, asks));
                self.unplaced.remove(&f.instance_id);
            }
            Fact::PlacementUnplaced(f) => {
                prop_assert!(!f.reason.is_empty());
                self.unplaced.insert(f.instance_id.clone());
            }
            Fact::PlacementReleased(f) if f.r#final => self.holds.retain(|h| h.0 != f.instance_id),
            Fact::PlacementReleased(f) if f.awaited => {}
            Fact::PlacementReleased(f) => {
                self.holds.retain(|h| (&h.0, &h.1, h.2) != (&f.instance_id, &f.cluster_id, f.generation));
            }
            Fact::PlacementSettled(_) => {}
        }
        prop_assert!(self.holds.iter().all(|h| self.of(&h.0) <= 2), "at most a source and a target");
        Ok(())
    }
}

impl World {
    fn new() -> Self {
        let limits = Limits { start_limit_ms: 10_000, move_cooldown_ms: 15_000, ..Default::default() };
        Self {
            domain: Domain::new(limits),
            agents: (0..CLUSTERS).map(|n| (format!("c{n}"), Agent::default())).collect(),
            wanted: BTreeMap::new(),
            seen: 0,
            model: Model::default(),
            asked: vec![],
        }
    }

    /// Instances with odd numbers must never run twice.
    fn never_twice(id: &str) -> bool {
        id.ends_with(['1', '3', '5'])
    }

    fn hear(&mut self, input: impl Into<Input>) -> Result<(), TestCaseError> {
        self.pass(1)?;
        self.say(input)
    }

    fn say(&mut self, input: impl Into<Input>) -> Result<(), TestCaseError> {
        let input = Trigger::Event(input.into());
        self.asked.push((input.clone(), self.domain.at));
        self.domain.ask(input);
        self.follow()
    }

    fn pass(&mut self, millis: i64) -> Result<(), TestCaseError> {
        let end = self.domain.at.plus_millis(millis);
        while let Some(due) = self.domain.planner.due(&self.domain.state).filter(|due| *due <= end) {
            self.domain.at = due;
            self.asked.push((Trigger::Due, due));
            prop_assert!(!self.domain.ask(Trigger::Due).is_empty(), "what fell due is answered");
            self.follow()?;
        }
        self.domain.at = end;
        Ok(())
    }

    /// Takes new facts over into the model and into the clusters' assignments, and checks what must always hold.
    fn follow(&mut self) -> Result<(), TestCaseError> {
        let news: Vec<(Fact, Timestamp)> = self.domain.facts.iter().skip(self.seen).cloned().collect();
        for (fact, at) in news {
            self.model.read(&fact)?;
            let input = match fact {
                Fact::PlacementDecided(f) => assignments::Input::from(f),
                Fact::PlacementReleased(f) => assignments::Input::from(f),
                _ => continue,
            };
            for key in Assignments.concerns(&input, &()) {
                let agent = self.agents.get_mut(key.token(0)).unwrap();
                let asked = Envelope {
                    trigger: Trigger::Event(input.clone()),
                    at,
                    id: "id".into(),
                    sequence: 1,
                    body: Bytes::new(),
                };
                for fact in Assignments.decide(&key, &agent.assigned, &(), &asked).unwrap() {
                    agent.assigned = Assignments.evolve(std::mem::take(&mut agent.assigned), &fact, at);
                    let assignments::Fact::AssignmentChanged(changed) = fact;
                    agent.inbox.push_back(changed);
                }
            }
        }
        self.seen = self.domain.facts.len();
        self.check()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let state = &self.domain.state;
        for (id, cluster) in &state.snapshot.clusters {
            prop_assert_eq!(cluster.cpu_milli_reserved, self.model.reserved(id), "reserved on {}", id);
            prop_assert_eq!(cluster.available, !self.model.lost.contains(id));
        }
        prop_assert_eq!(state.instances.keys().collect::<Vec<_>>(), self.wanted.keys().collect::<Vec<_>>());
        for (id, instance) in &state.instances {
            let holds: Vec<_> = self.model.holds.iter().filter(|h| h.0 == *id).map(|h| (&h.1, h.2)).collect();
            // Where an instance of the same id has yet to stop, nothing is reserved any more.
            let reserving = instance.at.iter().chain(&instance.to).filter(|h| h.cpu_milli > 0);
            let own: Vec<_> = reserving.map(|h| (&h.cluster_id, h.generation)).collect();
            prop_assert_eq!(&holds, &own, "{}", id);
            prop_assert!(!holds.is_empty() || instance.unplaced.is_some(), "{} is nowhere, without a reason", id);
            let same = |f: &Option<Unplaced>| f.is_some() == state.unplaced.contains(id);
            prop_assert!(same(&instance.unplaced));
            prop_assert_eq!(instance.wanted.replicas, self.wanted[id].replicas);
            prop_assert_eq!(&instance.wanted.document, &self.wanted[id].document);
            // What is nowhere and could be somewhere is not left lying, unless more work is announced.
            let free = |size: u32, cluster: &String| u64::from(size).saturating_sub(self.model.reserved(cluster));
            let asks = instance.spec.as_ref().map_or(0, |s| s.cpu_milli);
            let fits = |(cluster, size): (&String, &u32)| {
                let bound = instance.wanted.targets.first().map_or(f64::MAX, |t| t.bound);
                let load = instance.measured.map_or(asks, |m| u64::from(m.cpu_milli));
                !self.model.lost.contains(cluster)
                    && asks <= free(*size, cluster)
                    && (load as f64 * 100.0 / f64::from(*size)) < bound
                    && !instance.tried.contains(cluster)
                    && !instance.rejected.contains(cluster)
            };
            if holds.is_empty() && !instance.stopping() && !state.more && state.displaced.is_empty() {
                prop_assert!(!self.model.sizes.iter().any(fits), "{} could be placed: {:?}", id, instance);
            }
        }
        for id in self.wanted.keys().filter(|id| Self::never_twice(id)) {
            let runs = |a: &Agent| a.running.get(id).is_some_and(|p| !p.failed);
            prop_assert!(self.agents.values().filter(|a| runs(a)).count() <= 1, "{} runs twice", id);
        }
        Ok(())
    }

    fn step(&mut self, happens: Happens) -> Result<(), TestCaseError> {
        let name = |cluster: usize| format!("c{cluster}");
        match happens {
            Happens::Joins { cluster, cpu_milli } => self.hear(ClusterRegistered {
                cluster_id: name(cluster),
                cpu_milli,
                memory_bytes: 1_000_000_000,
                ..Default::default()
            }),
            Happens::Wanted { instance, cpu_milli, replicas, bound } => {
                let id = format!("i{instance}");
                let want = InstanceWanted {
                    replicas,
                    document: document(cpu_milli, 1, Self::never_twice(&id)),
                    targets: bound.map(|b| below(b.into())).unwrap_or_default(),
                    ..wanted(&id, cpu_milli, 1)
                };
                self.pass(1)?;
                self.wanted.insert(id, want.clone());
                self.say(want)
            }
            Happens::Ends { instance } => {
                let id = format!("i{instance}");
                self.pass(1)?;
                self.wanted.remove(&id);
                self.say(InstanceWanted { replicas: 0, ..wanted(&id, 1, 1) })
            }
            Happens::AgentActs { cluster, outcome } => {
                self.agents.get_mut(&name(cluster)).unwrap().act(&name(cluster), outcome);
                self.check()
            }
            // Its processes die with it; it starts again what it is assigned.
            Happens::AgentCrashes { cluster } => {
                let agent = self.agents.get_mut(&name(cluster)).unwrap();
                for (id, process) in std::mem::take(&mut agent.running) {
                    let task = agent.assigned.instances.get(&id).filter(|t| t.generation == process.generation);
                    agent.inbox.extend(task.map(|t| AssignmentChanged { action: Action::Run.into(), ..t.clone() }));
                }
                agent.inbox.make_contiguous().sort_by_key(|task| task.generation);
                self.check()
            }
            Happens::StatusArrives { cluster } => {
                let agent = self.agents.get_mut(&name(cluster)).unwrap();
                match agent.outbox.pop_front() {
                    Some(status) if !agent.cut_off => self.hear(status),
                    Some(status) => {
                        agent.outbox.push_front(status);
                        Ok(())
                    }
                    None => Ok(()),
                }
            }
            Happens::ProcessFails { cluster, instance } => {
                let (cluster, id) = (name(cluster), format!("i{instance}"));
                let agent = self.agents.get_mut(&cluster).unwrap();
                if let Some(process) = agent.running.get_mut(&id).filter(|p| !p.failed) {
                    process.failed = true;
                    agent.outbox.push_back(said(&cluster, &id, process.generation, InstancePhase::Failed).into());
                }
                Ok(())
            }
            Happens::IsCutOff { cluster } => {
                self.agents.get_mut(&name(cluster)).unwrap().cut_off = true;
                self.hear(ReportLiveness { domain: "default".into(), cluster_id: name(cluster), alive: false })
            }
            Happens::IsBack { cluster } => {
                self.agents.get_mut(&name(cluster)).unwrap().cut_off = false;
                self.hear(ReportLiveness { domain: "default".into(), cluster_id: name(cluster), alive: true })
            }
            Happens::Missed { instance, load_milli } => {
                let id = format!("i{instance}");
                let Some(at) = self.domain.state.instances.get(&id).and_then(|i| i.at.clone()) else { return Ok(()) };
                self.hear(IntentRemedyWanted {
                    owner: "local".into(),
                    instance_id: id,
                    cluster_id: at.cluster_id,
                    generation: at.generation,
                    load_milli,
                    reason: "missed".into(),
                    targets: vec![TargetState { target_name: "cpuUsage".into(), missed: 2, ..Default::default() }],
                    ..Default::default()
                })
            }
            Happens::Held { instance } => {
                let id = format!("i{instance}");
                self.hear(IntentRemedyUnwanted {
                    owner: "local".into(),
                    instance_id: id.clone(),
                    ..Default::default()
                })?;
                let pending = self.domain.state.instances.get(&id).and_then(|i| i.unplaced.as_ref());
                let running = self.domain.state.instances.get(&id).and_then(|i| i.at.as_ref());
                let waits = pending.is_some_and(|u| u.why == Why::Remedy as i32)
                    && running.is_some_and(|a| a.standing == Standing::Running);
                prop_assert!(!waits, "{} still waits for a remedy", id);
                Ok(())
            }
            Happens::TimePasses { millis } => self.pass(millis),
        }
    }

    fn tells(&mut self, story: Vec<Happens>) -> Result<(), TestCaseError> {
        for cluster in 0..CLUSTERS - 1 {
            self.step(Happens::Joins { cluster, cpu_milli: 300 })?;
        }
        for happens in story {
            self.step(happens)?;
        }
        self.comes_to_rest()?;
        self.replays()
    }

    /// Everything is reliable from now on: then everything comes to rest where it should.
    fn comes_to_rest(&mut self) -> Result<(), TestCaseError> {
        for cluster in 0..CLUSTERS {
            self.step(Happens::IsBack { cluster })?;
        }
        for _ in 0..200 {
            let busy = self.agents.values().any(|a| !a.inbox.is_empty() || !a.outbox.is_empty());
            for cluster in 0..CLUSTERS {
                self.step(Happens::AgentActs { cluster, outcome: Outcome::Runs })?;
                self.step(Happens::StatusArrives { cluster })?;
            }
            if !busy {
                self.pass(20_000)?;
            }
        }
        for (name, agent) in &self.agents {
            prop_assert!(agent.inbox.is_empty() && agent.outbox.is_empty(), "{} is not at rest", name);
            let held = self.model.holds.iter().filter(|h| h.1 == *name).map(|h| (h.0.clone(), h.2));
            let held: BTreeMap<String, u64> = held.collect();
            let runs: BTreeMap<_, _> = agent.running.iter().map(|(id, p)| (id.clone(), p.generation)).collect();
            let given = |(id, generation): (&String, &u64)| held.get(id) == Some(generation);
            prop_assert!(runs.iter().all(given), "{} runs {:?}, was given {:?}", name, runs, held);
            for (id, generation) in &held {
                let at = self.domain.state.instances[id].at.as_ref().unwrap();
                let lives = runs.get(id) == Some(generation) && agent.running.get(id).is_some_and(|p| !p.failed);
                prop_assert!(lives || at.standing != Standing::Running, "{} should run on {}", id, name);
            }
        }
        prop_assert!(self.domain.state.ending.is_empty(), "nothing is remembered of the ended");
        for (id, instance) in &self.domain.state.instances {
            prop_assert!(instance.to.is_none(), "{} is still moving", id);
            prop_assert!(!instance.stopping(), "{} is still being stopped", id);
            let standing = instance.at.as_ref().map(|a| a.standing);
            let explained = instance.unplaced.is_some() || standing == Some(Standing::Failed);
            prop_assert!(explained || standing == Some(Standing::Running), "{}: {:?}", id, instance);
        }
        Ok(())
    }

    /// Deciding history again gives the same facts, and folding them the same state, also through a snapshot.
    fn replays(&self) -> Result<(), TestCaseError> {
        let planner = &self.domain.planner;
        let (mut state, mut facts) = (planner.initial(), vec![]);
        for (n, (what, at)) in self.asked.iter().enumerate() {
            let envelope =
                Envelope { trigger: what.clone(), at: *at, id: "id".into(), sequence: 1, body: Bytes::new() };
            let decided = planner.decide(&Key::new(["default"]), &state, &(), &envelope).unwrap();
            state = decided.iter().fold(state, |s, f| planner.evolve(s, f, *at));
            facts.extend(decided.into_iter().map(|f| (f, *at)));
            if n % 16 == 0 {
                let snapshot = serde_json::to_vec(&state).unwrap();
                state = serde_json::from_slice(&snapshot).unwrap();
            }
        }
        prop_assert_eq!(&facts, &self.domain.facts);
        prop_assert_eq!(&state, &self.domain.state);
        let folded = facts.iter().fold(planner.initial(), |s, (f, at)| planner.evolve(s, f, *at));
        prop_assert_eq!(&folded, &self.domain.state);
        prop_assert_eq!(serde_json::to_vec(&folded).unwrap(), serde_json::to_vec(&self.domain.state).unwrap());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn placements_agree_with_the_simpler_model_and_come_to_rest(
        story in prop::collection::vec(happens(), 1..120)
    ) {
        let mut world = World::new();
        if let Err(error) = world.tells(story) {
            let facts: Vec<String> = world.domain.facts.iter().map(|(f, at)| format!("{}: {}", at.as_millis(), short(f))).collect();
            return Err(TestCaseError::fail(format!("{error}\n{}", facts.join("\n"))));
        }
    }
}
