//! The areas beside the life of an intent: the ledger, remedies, networks, storage, identities and subscriptions. Each
//! has somebody who asks at random, and a model of its own, written apart from its decider, of what must be true.
//!
//! A run has two of them, so that over the seeds each one shares the bus, the faults and the clock with every other.

pub mod identities;
pub mod ledger;
pub mod networks;
pub mod remedies;
pub mod storage;
pub mod subscriptions;

use std::collections::BTreeMap;

use mesh_core::Stored;
use mesh_proto::{AnyEvent, EventSet, contract::Kind};

use super::{
    bus::MemoryBus,
    check::at,
    node::{Flaw, Node, message},
    rng::Rng,
};

/// One area: who asks, and what must be true of what is decided.
pub trait Area {
    /// Its name in subjects, for example `account`.
    fn name(&self) -> &'static str;
    /// Somebody asks for something, or something happens that its decider takes in.
    fn happen(&mut self, bus: &mut MemoryBus, rng: &mut Rng, asker: &mut Asker);
    /// Faults are over: does what is still to be done; `true` if there was anything.
    fn settle(&mut self, _: &mut MemoryBus) -> bool {
        false
    }
    /// Why its facts at rest cannot be, if so.
    ///
    /// # Errors
    /// What does not hold.
    fn check(&self, bus: &MemoryBus) -> Result<(), String>;
}

/// Streams that the deciders of these areas write.
pub const DECIDED: [&str; 6] = ["ACCOUNT", "REMEDY", "NETWORK", "STORAGE", "IDENTITY", "SUBSCRIPTION"];

/// Commands that are not answered by name: what an adaptor reports is taken or has passed.
const REPORTS: [&str; 1] = ["continuum.network.v1.ReportConnectivity"];

/// Two areas of this seed, with the replicas of their deciders.
pub fn choose(seed: u64, rng: &mut Rng, flaw: Flaw, nodes: &mut Vec<Box<dyn Node>>) -> Vec<Box<dyn Area>> {
    let first = seed as usize % DECIDED.len();
    let second = (first + 1 + rng.below(DECIDED.len() - 1)) % DECIDED.len();
    [first, second].into_iter().map(|area| make(area, rng, flaw, nodes)).collect()
}

fn make(area: usize, rng: &mut Rng, flaw: Flaw, nodes: &mut Vec<Box<dyn Node>>) -> Box<dyn Area> {
    use super::world::add;
    match DECIDED[area] {
        "ACCOUNT" => {
            add(nodes, rng, ledger::decider(), flaw);
            Box::new(ledger::Ledgers::default())
        }
        "REMEDY" => {
            add(nodes, rng, remedies::decider(), flaw);
            Box::new(remedies::Anomalies::default())
        }
        "NETWORK" => {
            add(nodes, rng, networks::decider(), flaw);
            Box::new(networks::Adaptors::default())
        }
        "STORAGE" => {
            add(nodes, rng, storage::decider(), flaw);
            Box::new(storage::Storage)
        }
        "IDENTITY" => {
            add(nodes, rng, identities::decider(), flaw);
            Box::new(identities::Visitors::default())
        }
        _ => {
            add(nodes, rng, subscriptions::decider(), flaw);
            Box::new(subscriptions::Listeners)
        }
    }
}

/// Gives every command an id of its own, and sends some twice.
#[derive(Debug)]
pub struct Asker {
    seed: u64,
    asked: u64,
}

impl Asker {
    /// The asker of a run.
    pub fn new(seed: u64) -> Self {
        Self { seed, asked: 0 }
    }

    /// Publishes a command; gives its id.
    pub fn ask(&mut self, bus: &mut MemoryBus, rng: &mut Rng, command: &dyn AnyEvent) -> String {
        let id = self.id();
        bus.publish(command, &id);
        // Somebody who is not sure asks again.
        if rng.percent(20) {
            bus.publish(command, &id);
        }
        id
    }

    /// A new id.
    pub fn id(&mut self) -> String {
        self.asked += 1;
        format!("area-{}-{}", self.seed, self.asked)
    }
}

/// Why an area's commands are not each answered by exactly one fact that names it, if so.
///
/// # Errors
/// The command, and the facts that name it.
pub fn answers(bus: &MemoryBus, area: &str) -> Result<(), String> {
    let stream = area.to_uppercase();
    let mut answers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for stored in bus.read(&stream) {
        let body = mesh_proto::json::to_value(&stored.message, &stored.body).map_err(|error| error.to_string())?;
        if let Some(id) = body["commandId"].as_str().filter(|id| !id.is_empty()) {
            answers.entry(id.to_owned()).or_default().push(at(stored));
        }
    }
    let commands = bus.read(&format!("{stream}_ASK"));
    for command in commands.iter().filter(|c| !REPORTS.contains(&c.message.as_str())) {
        let found = answers.get(&command.id).map_or(&[][..], Vec::as_slice);
        if found.len() != 1 {
            return Err(format!("{} {} is answered by {found:?}", command.id, at(command)));
        }
    }
    Ok(())
}

/// How often each kind of fact of these areas was stored.
pub fn kinds(bus: &MemoryBus) -> BTreeMap<String, u64> {
    let mut kinds = BTreeMap::new();
    for stored in DECIDED.iter().flat_map(|stream| bus.read(stream)) {
        *kinds.entry(stored.message.clone()).or_default() += 1;
    }
    kinds
}

/// Every kind of fact that the deciders of these areas may store, by the contract.
pub fn all_kinds() -> Vec<String> {
    let contract = mesh_proto::contract();
    let facts = DECIDED.iter().filter_map(|stream| contract.stream(stream)).filter(|spec| spec.kind == Kind::Facts);
    let kinds = facts.flat_map(|spec| contract.facts_of(spec.subject.split('.').next().unwrap_or_default()));
    kinds.map(|event| event.message.clone()).collect()
}

/// A fact of an area's decider.
fn fact<F: EventSet>(stored: &Stored) -> Result<F, String> {
    F::decode(&stored.message, &stored.body).map_err(|error| format!("{}: {error}", at(stored)))
}

/// The command that a fact answers.
fn command_of<'a>(bus: &'a MemoryBus, stored: &Stored) -> Result<&'a Stored, String> {
    let cause = stored.cause.as_ref().ok_or_else(|| format!("{} has no cause", at(stored)))?;
    message(bus, &cause.stream, cause.sequence).ok_or_else(|| format!("{} names a cause that is not there", at(stored)))
}

/// An error that names the fact.
fn wrong<T>(stored: &Stored, what: impl std::fmt::Display) -> Result<T, String> {
    Err(format!("{}: {what}", at(stored)))
}
