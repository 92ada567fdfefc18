//! One cluster: its agent's own domain, over the simulated driver, without its shell.

use std::collections::VecDeque;

use cluster_agent::{
    domain::{Action, Cluster, Fact, Limits, Outcome},
    driver::{Driver as _, Event, model::Model, simulated::SimulatedDriver},
    meter::Meter,
};
use mesh_core::{Cause, Outgoing};
use mesh_proto::{
    Timestamp,
    assignment::AssignmentChanged,
    cluster::ClusterRegistered,
    derived_id,
    instance::InstanceStatusChanged,
    telemetry::{InstanceSample, Provenance},
    workload::InstancePhase,
};

use super::bus::MemoryBus;

/// What the domain may forget once a fact is stored.
#[derive(Clone, Debug)]
enum Known {
    Stopped(String, u64),
    Rejected(String, u64),
    Other,
}

/// An agent that is running.
struct Life {
    cluster: Cluster,
    driver: SimulatedDriver,
    meter: Meter,
    said: VecDeque<(Outgoing, Known)>,
    /// Sequence of the last assignment looked at.
    read: u64,
    counter: u64,
    incarnation: u64,
}

/// A cluster and its agent.
pub struct SimCluster {
    /// Its id.
    pub id: String,
    /// Thousandths of a core.
    pub cpu_milli: u32,
    /// Bytes.
    pub memory_bytes: u64,
    limits: Limits,
    life: Option<Life>,
    saved: Option<Vec<u8>>,
    /// It neither hears nor is heard.
    pub cut_off: bool,
    /// When it fell silent; `None` while it is heard.
    pub silent_since: Option<Timestamp>,
    /// It was said to be lost.
    pub reported: bool,
    /// It joined.
    pub joined: bool,
    lives: u64,
}

impl SimCluster {
    /// A cluster that has not joined yet.
    pub fn new(id: &str, cpu_milli: u32, memory_bytes: u64) -> Self {
        Self {
            id: id.to_owned(),
            cpu_milli,
            memory_bytes,
            limits: Limits { cpu_milli, memory_bytes, ..Limits::default() },
            life: None,
            saved: None,
            cut_off: false,
            silent_since: None,
            reported: false,
            joined: false,
            lives: 0,
        }
    }

    /// Does its agent run?
    pub fn runs(&self) -> bool {
        self.life.is_some()
    }

    /// Starts the agent with what it had saved: reads what was assigned since, then acts.
    pub fn start(&mut self, bus: &mut MemoryBus, seed: u64) {
        self.joined = true;
        self.lives += 1;
        let incarnation = u64::try_from(bus.now.as_nanos()).unwrap_or(0) + self.lives;
        let saved =
            self.saved.as_deref().map(|bytes| serde_json::from_slice::<Cluster>(bytes).expect("a saved cluster"));
        let cluster = saved.unwrap_or_else(|| Cluster::new(&self.id));
        let registered = ClusterRegistered {
            cluster_id: self.id.clone(),
            cpu_milli: self.cpu_milli,
            memory_bytes: self.memory_bytes,
            driver: "simulated".into(),
            site: "site".into(),
            node: self.id.clone(),
            enforcement: "none".into(),
            incarnation,
            ..Default::default()
        };
        let id = derived_id(&["cluster", &self.id, &incarnation.to_string()]);
        let fact = Outgoing::new(&registered, id, bus.now).expect("a cluster with a subject");
        let mut life = Life {
            read: cluster.position(),
            cluster,
            driver: SimulatedDriver::new(Model { seed, mean_time_to_failure_ms: 0 }, self.cpu_milli),
            meter: Meter::new(&self.id, self.cpu_milli, Provenance::Modelled),
            said: VecDeque::from([(fact, Known::Other)]),
            counter: 0,
            incarnation,
        };
        if !self.cut_off {
            life.learn(bus, &self.id, &self.limits);
        }
        let outcome = life.cluster.reconcile_all(bus.now, &self.limits);
        life.follow(outcome, bus.now);
        self.life = Some(life);
    }

    /// The agent is gone, and what it ran.
    pub fn crash(&mut self) {
        self.life = None;
    }

    /// The agent keeps its state.
    pub fn save(&mut self) {
        if let Some(life) = &self.life {
            self.saved = Some(serde_json::to_vec(&life.cluster).expect("a cluster as JSON"));
        }
    }

    /// Reads its assignments and acts on them; `true` if there were any.
    pub fn observe(&mut self, bus: &MemoryBus) -> bool {
        let Some(life) = self.life.as_mut().filter(|_| !self.cut_off) else { return false };
        let learned = life.learn(bus, &self.id, &self.limits);
        for instance_id in &learned {
            let outcome = life.cluster.reconcile(instance_id, bus.now, &self.limits);
            life.follow(outcome, bus.now);
        }
        !learned.is_empty()
    }

    /// Does what is due.
    pub fn work(&mut self, now: Timestamp) {
        let Some(life) = &mut self.life else { return };
        life.step(now, &self.limits);
    }

    /// Stores the next thing it has to say; `false` if there is nothing.
    pub fn report(&mut self, bus: &mut MemoryBus) -> bool {
        let Some(life) = self.life.as_mut().filter(|_| !self.cut_off) else { return false };
        let Some((fact, known)) = life.said.pop_front() else { return false };
        bus.append(&fact);
        match known {
            Known::Stopped(instance_id, generation) => life.cluster.stopped_is_known(&instance_id, generation),
            Known::Rejected(instance_id, generation) => life.cluster.rejection_is_known(&instance_id, generation),
            Known::Other => {}
        }
        true
    }

    /// Measures what runs.
    pub fn measure(&mut self, now: Timestamp) -> Vec<InstanceSample> {
        let Some(life) = &mut self.life else { return vec![] };
        life.step(now, &self.limits);
        life.driver.measure(now);
        let mut samples = vec![];
        for event in life.driver.take(now) {
            if let Event::Measured { at, readings } = event {
                let measured = life.cluster.measured(at, &self.limits);
                samples = life.meter.sample(at, &readings, &measured, |_| true).0;
            }
        }
        samples
    }

    /// Instances of which all wanted replicas run, with their generation.
    pub fn running(&self, now: Timestamp) -> Vec<(String, u64)> {
        let Some(life) = &self.life else { return vec![] };
        let measured = life.cluster.measured(now, &self.limits);
        let runs = |id: &str, running: u32| life.cluster.wanted(id).is_some_and(|w| w.replicas == running);
        measured.into_iter().filter(|(id, m)| runs(id, m.replicas_running)).map(|(id, m)| (id, m.generation)).collect()
    }

    /// Instances of which anything is wanted.
    pub fn wanted(&self) -> Vec<String> {
        let Some(life) = &self.life else { return vec![] };
        life.cluster.instances().filter(|id| life.cluster.wanted(id).is_some()).map(str::to_owned).collect()
    }
}

impl Life {
    fn learn(&mut self, bus: &MemoryBus, cluster_id: &str, limits: &Limits) -> Vec<String> {
        let mut learned = vec![];
        for message in bus.read("ASSIGNMENT").iter().skip(self.read as usize) {
            self.read = message.sequence;
            let Ok(Some(assignment)) = message.event::<AssignmentChanged>() else { continue };
            if assignment.cluster_id == cluster_id && self.cluster.learn(&assignment, &message.cause_of(), limits) {
                learned.push(assignment.instance_id);
            }
        }
        learned
    }

    fn step(&mut self, now: Timestamp, limits: &Limits) {
        for _ in 0..20 {
            let events = self.driver.take(now);
            let (mut outcome, quiet) = (self.cluster.elapse(now, limits), events.is_empty());
            for event in events {
                let more = self.cluster.happened(&event, now, limits);
                outcome.actions.extend(more.actions);
                outcome.said.extend(more.said);
            }
            let idle = quiet && outcome == Outcome::default();
            self.follow(outcome, now);
            if idle {
                return;
            }
        }
    }

    fn follow(&mut self, outcome: Outcome, now: Timestamp) {
        for action in outcome.actions {
            match action {
                Action::Start(replica) => self.driver.start(*replica),
                Action::Stop { instance_id, up_to_generation, force } => {
                    self.driver.stop(&instance_id, up_to_generation, force);
                }
            }
        }
        for said in outcome.said {
            self.counter += 1;
            let (incarnation, counter) = (self.incarnation.to_string(), self.counter.to_string());
            let id = derived_id(&[self.cluster.cluster_id(), &incarnation, &counter]);
            let (fact, known) = match &said.fact {
                Fact::Status(fact) => (Outgoing::new(fact, id, now), stopped(fact)),
                Fact::Rejected(fact) => {
                    (Outgoing::new(fact, id, now), Known::Rejected(fact.instance_id.clone(), fact.generation))
                }
            };
            let fact = fact.expect("a fact with a subject");
            let fact = if said.cause == Cause::default() { fact } else { fact.caused_by(said.cause) };
            self.said.push_back((fact, known));
        }
    }
}

fn stopped(fact: &InstanceStatusChanged) -> Known {
    match fact.phase() {
        InstancePhase::Stopped => Known::Stopped(fact.instance_id.clone(), fact.generation),
        _ => Known::Other,
    }
}
