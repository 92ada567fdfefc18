//! One run: who takes part, what happens at random, and how it comes to rest.

use std::collections::BTreeMap;

use collector::domain::{Collector, Limits as CollectorLimits};
use mesh_core::{Decider, Derived, Projector as _};
use mesh_core::{Decision, Outgoing};
use mesh_proto::{Timestamp, placement::ReportLiveness};
use meta_orchestrator::{assignments::Assignments, placements::Limits};
use prost::Message as _;

use super::{
    areas::{self, Area, Asker},
    bus::MemoryBus,
    check,
    cluster::SimCluster,
    node::{Deciding, Flaw, Node},
    people,
    rng::Rng,
};

/// Steps of the part with faults.
const STEPS: usize = 1_800;
/// In how many of a hundred steps something happens in an area beside the life of an intent.
const AREA_PERCENT: u64 = 8;
/// A silent cluster is lost after so long, milliseconds.
const GRACE_MS: i64 = 5_000;
/// Step of the part without faults, milliseconds.
const TICK_MS: i64 = 500;
/// Nothing may have moved for so long, milliseconds: longer than the longest wait for a remedy.
const QUIET_MS: i64 = 90_000;
/// By then nothing may move any more, milliseconds.
const LIMIT_MS: i64 = 3_600_000;

/// A fault put in on purpose, to show that the checks find it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutation {
    /// None.
    #[default]
    None,
    /// The bus stores decisions whatever their condition.
    IgnoresConditions,
    /// Deciders lose inputs.
    LosesInputs,
    /// Snapshots claim facts that they do not hold.
    SavesAhead,
}

/// What a run was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Steps taken.
    pub steps: u64,
    /// Messages stored.
    pub messages: u64,
    /// Facts that deciders stored.
    pub facts: u64,
    /// Commands asked.
    pub commands: u64,
    /// Processes that crashed.
    pub crashes: u64,
    /// Decisions taken again because their entity had moved.
    pub retried: u64,
    /// Seconds that passed in the world.
    pub seconds: u64,
    /// Times that the conflicts of an intent changed.
    pub conflicts: u64,
    /// Intents that began or ended by themselves.
    pub timed: u64,
    /// Earlier versions that were gone back to.
    pub rollbacks: u64,
    /// How often each kind of fact of the areas beside the life of an intent was stored.
    pub kinds: BTreeMap<String, u64>,
    /// A number made of everything that was stored: equal for equal runs.
    pub digest: u64,
}

struct World {
    rng: Rng,
    seed: u64,
    bus: MemoryBus,
    nodes: Vec<Box<dyn Node>>,
    sites: Vec<SimCluster>,
    collector: Collector,
    collected: u64,
    sample_at: Timestamp,
    areas: Vec<Box<dyn Area>>,
    asker: Asker,
    orphans: Vec<Decision>,
    commands: u64,
    totals: Totals,
}

/// Runs a seed. The error says what does not hold.
pub fn run(seed: u64, mutation: Mutation) -> Result<Totals, String> {
    let mut world = World::new(seed, mutation);
    for _ in 0..STEPS {
        world.happen();
    }
    world.come_to_rest()?;
    for node in &world.nodes {
        node.check(&world.bus)?;
    }
    let now = world.bus.now;
    check::remedies(&world.bus, now.plus_millis(-QUIET_MS))?;
    check::streams(&world.bus)?;
    check::decided_again(&world.bus)?;
    check::rest(&world.bus, &world.sites, now)?;
    check::conflicts(&world.bus)?;
    for area in &world.areas {
        areas::answers(&world.bus, area.name())?;
        area.check(&world.bus)?;
    }
    // And once more with what was saved.
    for node in &mut world.nodes {
        node.crash();
        node.start(&mut world.bus);
        node.settle(&mut world.bus);
    }
    for node in &world.nodes {
        node.check(&world.bus)?;
    }
    world.totals.messages = world.bus.total();
    world.totals.kinds = areas::kinds(&world.bus);
    world.totals.facts = check::DECIDED.iter().chain(&areas::DECIDED).map(|stream| world.bus.end(stream)).sum();
    world.totals.commands = world.commands;
    world.totals.digest = check::digest(&world.bus);
    (world.totals.conflicts, world.totals.timed, world.totals.rollbacks) = check::walked(&world.bus);
    Ok(world.totals)
}

impl World {
    fn new(seed: u64, mutation: Mutation) -> Self {
        let mut rng = Rng::new(seed);
        let flaw = match mutation {
            Mutation::LosesInputs => Flaw::LosesInputs,
            Mutation::SavesAhead => Flaw::SavesAhead,
            Mutation::None | Mutation::IgnoresConditions => Flaw::None,
        };
        let mut bus = MemoryBus { now: Timestamp::from_millis(1_790_000_000_000), ..Default::default() };
        bus.unconditional = mutation == Mutation::IgnoresConditions;
        let mut nodes = vec![];
        add(&mut nodes, &mut rng, check::intents(), flaw);
        add(&mut nodes, &mut rng, validator::domain::Verdicts, flaw);
        add(&mut nodes, &mut rng, workload_manager::domain::Workloads, flaw);
        add(&mut nodes, &mut rng, check::placements(), flaw);
        add(&mut nodes, &mut rng, Assignments, flaw);
        let areas = areas::choose(seed, &mut rng, flaw, &mut nodes);
        for node in &mut nodes {
            node.start(&mut bus);
        }
        let sites = (0..1 + rng.below(3)).map(|n| {
            let cpu_milli = *rng.pick(&[500, 1_000, 2_000]);
            SimCluster::new(["cloud", "edge", "device"][n], cpu_milli, *rng.pick(&[300_000_000, 1_000_000_000]))
        });
        let sites = sites.collect();
        Self {
            collector: Collector::new(CollectorLimits::default()),
            collected: 0,
            sample_at: bus.now,
            areas,
            asker: Asker::new(seed),
            orphans: vec![],
            commands: 0,
            totals: Totals::default(),
            seed,
            rng,
            bus,
            nodes,
            sites,
        }
    }

    /// One thing happens.
    fn happen(&mut self) {
        self.totals.steps += 1;
        let ms = self.rng.below(40) as i64;
        self.pass(ms);
        if self.rng.percent(AREA_PERCENT) {
            let at = self.rng.below(self.areas.len());
            self.areas[at].happen(&mut self.bus, &mut self.rng, &mut self.asker);
        }
        match self.rng.below(100) {
            0..=69 => {
                let at = self.rng.below(self.nodes.len());
                for _ in 0..4 {
                    self.nodes[at].act(&mut self.bus, &mut self.rng);
                }
            }
            70..=75 => {
                let at = self.rng.below(self.sites.len());
                let site = &mut self.sites[at];
                site.observe(&self.bus);
                site.work(self.bus.now);
                while site.report(&mut self.bus) && self.rng.percent(70) {}
            }
            76..=80 => self.ask(),
            81..=83 => {
                let at = self.rng.below(self.nodes.len());
                let max = if self.rng.percent(40) { 2 } else { usize::MAX };
                self.nodes[at].save(&mut self.bus, max);
            }
            84 | 85 => {
                let at = self.rng.below(self.nodes.len());
                self.crash(at);
            }
            86..=89 => {
                let down: Vec<usize> = (0..self.nodes.len()).filter(|at| !self.nodes[*at].runs()).collect();
                if !down.is_empty() {
                    let at = *self.rng.pick(&down);
                    self.nodes[at].start(&mut self.bus);
                }
                if !self.orphans.is_empty() {
                    let at = self.rng.below(self.orphans.len());
                    let orphan = self.orphans.swap_remove(at);
                    self.bus.decide(&orphan);
                }
            }
            90..=92 => self.site_happens(),
            93 | 94 => {
                let jump = 500 + self.rng.below(4_000) as i64;
                self.pass(jump);
            }
            _ => self.collect(),
        }
        self.watch();
    }

    fn crash(&mut self, at: usize) {
        if !self.nodes[at].runs() {
            return;
        }
        self.totals.crashes += 1;
        self.totals.retried += self.nodes[at].counts().retried;
        // What it was writing may be stored after its end, or never.
        for decision in self.nodes[at].crash() {
            match self.rng.below(3) {
                0 => self.orphans.push(decision),
                1 => {
                    self.bus.decide(&decision);
                }
                _ => {}
            }
        }
    }

    fn ask(&mut self) {
        let command = people::command(&mut self.rng, self.bus.now);
        self.commands += 1;
        let id = format!("command-{}-{}", self.seed, self.commands);
        self.bus.publish(command.as_ref(), &id);
        // Somebody who is not sure asks again.
        if self.rng.percent(20) {
            self.bus.publish(command.as_ref(), &id);
        }
    }

    fn site_happens(&mut self) {
        let (at, seed) = (self.rng.below(self.sites.len()), self.seed);
        let site = &mut self.sites[at];
        match self.rng.below(6) {
            0 if site.runs() => {
                site.crash();
                self.totals.crashes += 1;
                site.silent_since.get_or_insert(self.bus.now);
            }
            1 if site.runs() => {
                site.cut_off = !site.cut_off;
                site.silent_since = site.cut_off.then_some(self.bus.now);
            }
            2 => site.save(),
            _ if !site.runs() => {
                site.start(&mut self.bus, seed);
                if !site.cut_off {
                    site.silent_since = None;
                }
            }
            _ => {}
        }
    }

    /// What the liveness watch reports.
    fn watch(&mut self) {
        for site in &mut self.sites {
            let silent = site.silent_since.is_some_and(|since| self.bus.now.millis_since(since) > GRACE_MS);
            if !site.joined || silent == site.reported || (!silent && site.silent_since.is_some()) {
                continue;
            }
            site.reported = silent;
            let report =
                ReportLiveness { domain: Limits::default().domain, cluster_id: site.id.clone(), alive: !silent };
            let id = format!("liveness-{}-{}", site.id, self.bus.now.as_nanos());
            self.bus.publish(&report, &id);
        }
    }

    fn pass(&mut self, ms: i64) {
        self.bus.now = self.bus.now.plus_millis(ms);
        while self.sample_at <= self.bus.now {
            let at = self.sample_at;
            self.sample_at = at.plus_millis(500);
            for site in &mut self.sites {
                for sample in site.measure(at) {
                    if !site.cut_off {
                        let key = format!("continuum/site/{}/instance/{}", site.id, sample.instance_id);
                        let derived = self.collector.sample(&key, &sample.encode_to_vec().into());
                        publish(&mut self.bus, derived);
                    }
                }
            }
        }
    }

    fn collect(&mut self) {
        if self.rng.percent(3) {
            self.collector = Collector::new(CollectorLimits::default());
            self.collected = 0;
        }
        self.observe();
    }

    fn observe(&mut self) {
        while let Some(fact) = self.bus.read("INTENT").get(self.collected as usize) {
            self.collected += 1;
            self.collector.apply(fact);
        }
        let derived = self.collector.tick(self.bus.now);
        publish(&mut self.bus, derived);
    }

    /// Faults are over: everybody is there, and everything is done until nothing but observations is new.
    fn come_to_rest(&mut self) -> Result<(), String> {
        for orphan in std::mem::take(&mut self.orphans) {
            self.bus.decide(&orphan);
        }
        let begin = self.bus.now;
        let mut moved = self.bus.now;
        for site in &mut self.sites {
            site.cut_off = false;
            if !site.runs() {
                site.start(&mut self.bus, self.seed);
            }
            site.silent_since = None;
        }
        for node in &mut self.nodes {
            if !node.runs() {
                node.start(&mut self.bus);
            }
        }
        while self.bus.now.millis_since(moved) < QUIET_MS {
            self.totals.steps += 1;
            let before = self.moving();
            self.pass(TICK_MS);
            self.watch();
            self.observe();
            self.settle()?;
            if self.moving() != before {
                moved = self.bus.now;
            }
            if self.bus.now.millis_since(begin) > LIMIT_MS {
                return Err(format!("still moving after {} s: {}", LIMIT_MS / 1_000, check::tail(&self.bus)));
            }
        }
        self.totals.seconds = u64::try_from(self.bus.now.millis_since(begin) / 1_000).unwrap_or(0);
        self.totals.retried += self.nodes.iter().map(|n| n.counts().retried).sum::<u64>();
        Ok(())
    }

    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..500 {
            let mut any = false;
            for node in &mut self.nodes {
                any |= node.settle(&mut self.bus);
            }
            for site in &mut self.sites {
                any |= site.observe(&self.bus);
                site.work(self.bus.now);
                while site.report(&mut self.bus) {
                    any = true;
                }
            }
            for area in &mut self.areas {
                any |= area.settle(&mut self.bus);
            }
            if !any {
                return Ok(());
            }
        }
        Err(format!("something goes round in a circle: {}", check::tail(&self.bus)))
    }

    /// What must not grow any more at rest. Not plans: a target that is met and missed by turns, as its load varies, is
    /// asked about again ([`check::remedies`]).
    fn moving(&self) -> BTreeMap<&'static str, u64> {
        ["VALIDATION", "ASSIGNMENT", "INSTANCE", "CLUSTER", "REMEDY"]
            .into_iter()
            .map(|stream| (stream, self.bus.end(stream)))
            .collect()
    }
}

/// One or two replicas of a decider.
pub(super) fn add<D: Decider + Clone>(nodes: &mut Vec<Box<dyn Node>>, rng: &mut Rng, decider: D, flaw: Flaw) {
    for _ in 0..1 + rng.below(2) {
        nodes.push(Box::new(Deciding::new(decider.clone(), flaw)));
    }
}

fn publish(bus: &mut MemoryBus, derived: Vec<Derived>) {
    for Derived { event, id, at } in derived {
        if event.stream() == "OBSERVATION" {
            let message = Outgoing::new(event.as_ref(), id, at).expect("an event with a subject");
            bus.append(&message);
        }
    }
}
