//! What must be true of every run.
//!
//! - The state of every replica, and every saved one, is the fold of its stream, byte for byte as JSON ([`states`]).
//! - Every command is answered by exactly one fact that names it, however often it was sent; no id is twice in a
//!   stream of facts; every fact's cause is a stored message; the state table is never left, and each fact goes on
//!   from the state that the one before it left; generations of an instance strictly rise; no cluster has more
//!   reserved than it has; nothing became a dead letter ([`streams`]).
//! - The areas beside the life of an intent have models of their own ([`super::areas`]).
//! - Deciding again, with the input at the cause's address, the World folded to the recorded positions and the entity
//!   folded to the fact before, gives the same facts with the same ids and times ([`decided_again`]).
//! - At rest every wanted instance runs on exactly one cluster, or its plan says why not; what is not wanted runs
//!   nowhere; every intent that is not at its end says why it is where it is and what it waits for; one whose instance
//!   failed wherever it could be tried is FULFILMENTFAILED, unless its revision before runs on ([`rest`]); who loses a
//!   conflict is who a look at all intents in force at once finds, and is SUSPENDED ([`conflicts`]).

use std::collections::{BTreeMap, BTreeSet};

use intent_manager::domain::Intents;
use mesh_core::Stored;
use mesh_core::{Decider, Envelope, Key, ReadModel as _, Trigger, replica::Replica};
use mesh_intent::{
    Bound,
    conflict::{self, Claim, Contender},
};
use mesh_proto::{
    EventSet as _, FactSet as _, Timestamp,
    deciders::{intents as intent_facts, placements as planner, workloads},
    derived_id,
    intent::{FulfilmentStatus, GovernedInstance, Intent, NotFulfilledState, State},
    placement::Why,
};
use meta_orchestrator::{
    assignments::Assignments,
    placements::{Limits, Placements, Standing},
};
use prost::Message as _;

use super::{
    areas,
    bus::{MemoryBus, keys},
    cluster::SimCluster,
    node::message,
};

/// Streams that deciders write.
pub const DECIDED: [&str; 5] = ["INTENT", "VALIDATION", "WORKLOAD", "PLACEMENT", "ASSIGNMENT"];

/// Milliseconds between two remedies at least, and at most 16 times as many.
const COOLDOWN_MS: i64 = 5_000;

/// Remedies for an instance in the last ninety seconds of a run: after 5, 10, 20 and 40 s.
const REMEDIES_MAX: u32 = 5;

/// The planner of every run.
pub fn placements() -> Placements {
    Placements::new(Limits { move_cooldown_ms: COOLDOWN_MS, ..Limits::default() })
}

/// The intent manager of every run.
pub fn intents() -> Intents {
    Intents::new(intent_manager::domain::Limits { remedy_cooldown_ms: COOLDOWN_MS })
}

fn key(stored: &Stored) -> Key {
    Key(keys(&stored.subject).split('.').map(str::to_owned).collect())
}

/// All entities of a decider: the fold of its stream up to a sequence.
fn fold<D: Decider>(decider: &D, bus: &MemoryBus, end: u64) -> BTreeMap<Key, D::State> {
    let mut states: BTreeMap<Key, D::State> = BTreeMap::new();
    for stored in bus.read(&D::Fact::AREA.to_uppercase()).iter().take(end as usize) {
        let fact = D::Fact::decode(&stored.message, &stored.body).expect("a fact of the area");
        let state = states.remove(&key(stored)).unwrap_or_else(|| decider.initial());
        states.insert(key(stored), decider.evolve(state, &fact, stored.time));
    }
    states
}

/// Why a replica's states, or what is saved of them, are not the fold of the stream.
pub fn states<D: Decider>(decider: &D, replica: &Replica<D>, bus: &MemoryBus) -> Result<(), String> {
    let json = |state: &D::State| serde_json::to_string(state).expect("a state as JSON");
    let folded = fold(decider, bus, u64::MAX);
    for (key, state) in replica.states() {
        let expected = folded.get(key).map_or_else(|| json(&decider.initial()), json);
        if json(state) != expected {
            return Err(format!("{} has of {key}\n{}\nbut its facts are\n{expected}", D::NAME, json(state)));
        }
    }
    let Some(bucket) = bus.buckets.get(D::NAME) else { return Ok(()) };
    let mut folds = BTreeMap::new();
    for (name, bytes) in bucket.values.iter().filter(|(name, _)| *name != "index") {
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let last = value["last"].as_u64().unwrap_or(0);
        let saved: D::State = serde_json::from_value(value["state"].clone()).map_err(|error| error.to_string())?;
        let folded = folds.entry(last).or_insert_with(|| fold(decider, bus, last));
        let found = folded.iter().find(|(key, _)| mesh_core::replica::snapshot_key(key) == *name);
        let expected = found.map_or_else(|| json(&decider.initial()), |(_, state)| json(state));
        if json(&saved) != expected {
            return Err(format!(
                "{} saved {name} as of {last}\n{}\nbut its facts are\n{expected}",
                D::NAME,
                json(&saved)
            ));
        }
    }
    Ok(())
}

/// Why what is in the streams cannot be, if so.
pub fn streams(bus: &MemoryBus) -> Result<(), String> {
    if let Some((decider, input, reason)) = bus.dead.first() {
        return Err(format!("{decider} buried {} of {}: {reason}", input.sequence, input.stream));
    }
    for stream in DECIDED.into_iter().chain(areas::DECIDED).chain(["INSTANCE", "CLUSTER"]) {
        let mut ids = BTreeSet::new();
        for stored in bus.read(stream) {
            if !ids.insert(&stored.id) {
                return Err(format!("{} {} has an id that is there already", stored.message, at(stored)));
            }
            let Some(cause) = stored.cause.as_ref().filter(|c| !c.stream.is_empty()) else { continue };
            if message(bus, &cause.stream, cause.sequence).is_none_or(|m| m.id != cause.id) {
                return Err(format!("{} names a cause that is not there", at(stored)));
            }
        }
    }
    answers(bus)?;
    table(bus)?;
    generations(bus)?;
    capacities(bus)
}

pub(super) fn at(stored: &Stored) -> String {
    format!("{}:{} {}", stored.stream, stored.sequence, stored.subject)
}

fn answers(bus: &MemoryBus) -> Result<(), String> {
    let mut answers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for stored in bus.read("INTENT") {
        let named = match intent_facts::Fact::decode(&stored.message, &stored.body).map_err(|e| e.to_string())? {
            intent_facts::Fact::IntentSubmitted(f) => f.command_id,
            intent_facts::Fact::IntentUnchanged(f) => f.command_id,
            intent_facts::Fact::IntentStateChanged(f) => f.command_id,
            intent_facts::Fact::IntentRefused(f) => f.command_id,
            _ => String::new(),
        };
        answers.entry(named).or_default().push(at(stored));
    }
    for stored in bus.read("WORKLOAD") {
        let named = match workloads::Fact::decode(&stored.message, &stored.body).map_err(|e| e.to_string())? {
            workloads::Fact::WorkloadSubmitted(f) => f.command_id,
            workloads::Fact::WorkloadUnchanged(f) => f.command_id,
            workloads::Fact::InstanceWanted(f) => f.command_id,
            workloads::Fact::WorkloadRefused(f) => f.command_id,
            _ => String::new(),
        };
        answers.entry(named).or_default().push(at(stored));
    }
    for command in bus.read("INTENT_ASK").iter().chain(bus.read("WORKLOAD_ASK")) {
        let answers = answers.get(&command.id).map_or(&[][..], Vec::as_slice);
        if answers.len() != 1 {
            return Err(format!("{} {} is answered by {answers:?}", command.id, at(command)));
        }
    }
    Ok(())
}

/// A row of the state table, by its letter: `-` none yet, `A`cknowledged, `C`ompliant, `F`ulfilled, `D`egraded,
/// fulfilment failed `X`, suspended `S`, `T`erminated.
fn row(state: Option<&State>) -> char {
    let Some(state) = state else { return '-' };
    match state.not_fulfilled_state() {
        NotFulfilledState::Unspecified => '-',
        NotFulfilledState::Acknowledged => 'A',
        NotFulfilledState::Compliant if state.fulfilment_status() == FulfilmentStatus::Fulfilled => 'F',
        NotFulfilledState::Compliant => 'C',
        NotFulfilledState::Degraded => 'D',
        NotFulfilledState::Fulfilmentfailed => 'X',
        NotFulfilledState::Suspended => 'S',
        NotFulfilledState::Terminated => 'T',
    }
}

/// Every step that the state table allows; the same row again only tells another reason.
const STEPS: [&str; 31] = [
    "-A", "-X", "-S", "-T", "AA", "AC", "AX", "AS", "AT", "CC", "CF", "CD", "CX", "CS", "CT", "FF", "FD", "FX", "FS",
    "FT", "DD", "DF", "DX", "DS", "DT", "XX", "XA", "XS", "XT", "SA", "ST",
];

fn table(bus: &MemoryBus) -> Result<(), String> {
    let mut rows: BTreeMap<String, char> = BTreeMap::new();
    for stored in bus.read("INTENT") {
        let entity = keys(&stored.subject);
        let now = rows.get(&entity).copied().unwrap_or('-');
        let step = |from: char, to: char, more: &[&str]| {
            let step = format!("{from}{to}");
            let allowed = STEPS.contains(&step.as_str())
                || more.contains(&step.as_str())
                || ["SS", "TT"].contains(&step.as_str());
            if allowed && from == now { Ok(to) } else { Err(format!("{} goes from {now} by {step}", at(stored))) }
        };
        let next = match intent_facts::Fact::decode(&stored.message, &stored.body).map_err(|e| e.to_string())? {
            intent_facts::Fact::IntentStateChanged(f) => step(row(f.from.as_ref()), row(f.to.as_ref()), &[])?,
            // An accepted update of the definition begins again.
            intent_facts::Fact::IntentAcknowledged(f) => step(now, row(f.state.as_ref()), &["TA", "CA", "FA", "DA"])?,
            intent_facts::Fact::IntentRejected(f) => step(now, row(f.state.as_ref()), &[])?,
            intent_facts::Fact::IntentUnchanged(f) if row(f.state.as_ref()) != now => {
                return Err(format!("{} says {} of an intent at {now}", at(stored), row(f.state.as_ref())));
            }
            _ => now,
        };
        rows.insert(entity, next);
    }
    Ok(())
}

fn generations(bus: &MemoryBus) -> Result<(), String> {
    let mut newest: BTreeMap<String, u64> = BTreeMap::new();
    for stored in bus.read("PLACEMENT") {
        if let Ok(planner::Fact::PlacementDecided(fact)) = planner::Fact::decode(&stored.message, &stored.body) {
            let newest = newest.entry(fact.instance_id).or_default();
            if fact.generation <= *newest {
                return Err(format!("{} decides generation {} after {newest}", at(stored), fact.generation));
            }
            *newest = fact.generation;
        }
    }
    Ok(())
}

fn capacities(bus: &MemoryBus) -> Result<(), String> {
    let (planner, mut state) = (placements(), placements().initial());
    for (index, stored) in bus.read("PLACEMENT").iter().enumerate() {
        let fact = planner::Fact::decode(&stored.message, &stored.body).map_err(|e| e.to_string())?;
        state = planner.evolve(state, &fact, stored.time);
        // Between the facts of one decision nothing is promised.
        let next = bus.read("PLACEMENT").get(index + 1);
        if next.is_some_and(|next| next.cause == stored.cause) {
            continue;
        }
        let mut reserved: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for hold in state.instances.values().flat_map(|i| i.at.iter().chain(&i.to)) {
            let sum = reserved.entry(&hold.cluster_id).or_default();
            *sum = (sum.0 + hold.cpu_milli, sum.1 + hold.memory_bytes);
        }
        for (id, cluster) in &state.snapshot.clusters {
            let (cpu_milli, memory_bytes) = reserved.get(id.as_str()).copied().unwrap_or_default();
            if cpu_milli > cluster.cpu_milli.into() || memory_bytes > cluster.memory_bytes {
                return Err(format!("{}: {cpu_milli} mCPU and {memory_bytes} B are reserved on {id}", at(stored)));
            }
            if (cpu_milli, memory_bytes) != (cluster.cpu_milli_reserved, cluster.memory_bytes_reserved) {
                return Err(format!("{}: what is reserved on {id} is not what its holds add up to", at(stored)));
            }
        }
    }
    Ok(())
}

/// Why a decision that is stored would not be taken again, if so.
pub fn decided_again(bus: &MemoryBus) -> Result<(), String> {
    again(&intents(), bus)?;
    again(&validator::domain::Verdicts, bus)?;
    again(&workload_manager::domain::Workloads, bus)?;
    again(&placements(), bus)?;
    again(&Assignments, bus)?;
    again(&areas::ledger::decider(), bus)?;
    again(&areas::remedies::decider(), bus)?;
    again(&areas::networks::decider(), bus)?;
    again(&areas::storage::decider(), bus)?;
    again(&areas::identities::decider(), bus)?;
    again(&areas::subscriptions::decider(), bus)
}

fn again<D: Decider>(decider: &D, bus: &MemoryBus) -> Result<(), String> {
    let mut states: BTreeMap<Key, (D::State, Timestamp)> = BTreeMap::new();
    let (mut world, mut positions) = (D::ReadModel::default(), BTreeMap::<String, u64>::new());
    let mut rest = bus.read(&D::Fact::AREA.to_uppercase());
    while let Some(first) = rest.first() {
        let key = key(first);
        let same = rest.iter().take_while(|m| m.cause == first.cause && m.subject.ends_with(&key.to_string())).count();
        let (group, behind) = rest.split_at(same);
        rest = behind;
        if first.world.iter().any(|(stream, end)| positions.get(stream).is_some_and(|now| now > end)) {
            (world, positions) = (D::ReadModel::default(), BTreeMap::new());
        }
        for (stream, end) in &first.world {
            let position = positions.entry(stream.clone()).or_default();
            for fact in bus.read(stream).iter().take(*end as usize).skip(*position as usize) {
                world.apply(fact);
            }
            *position = *end;
        }
        let (state, time) = states.remove(&key).unwrap_or_else(|| (decider.initial(), Timestamp::default()));
        let cause = first.cause.as_ref().ok_or_else(|| format!("{} has no cause", at(first)))?;
        let mut command = None;
        let asked = if cause.stream.is_empty() {
            let due = decider.due(&state).ok_or_else(|| format!("{}: nothing was due", at(first)))?;
            let id = derived_id(&[&key.entity(D::Fact::AREA), "due", &due.to_string()]);
            Envelope { trigger: Trigger::Due, at: due.max(time), id, sequence: 0, body: Default::default() }
        } else {
            let stored = message(bus, &cause.stream, cause.sequence).ok_or("a cause that is not there")?;
            let mut input = D::Input::decode(&stored.message, &stored.body).map_err(|e| e.to_string())?;
            input.any_mut().adopt_keys(&stored.subject).map_err(|e| e.to_string())?;
            command = input.any().is_command().then(|| stored.message.rsplit('.').next().unwrap_or("").to_owned());
            let at = if command.is_some() { stored.stored } else { stored.time };
            let (id, body) = (stored.id.clone(), stored.body.clone());
            Envelope { trigger: Trigger::Event(input), at: at.max(time), id, sequence: stored.sequence, body }
        };
        let facts = match (decider.decide(&key, &state, &world, &asked), &command) {
            (Ok(facts), _) => facts,
            (Err(refusal), Some(command)) => {
                D::Fact::refused(&key.0, &asked.id, command, &refusal).into_iter().collect()
            }
            (Err(refusal), None) => return Err(format!("{}: decided again it is refused: {refusal}", at(first))),
        };
        let told = |id: String, subject: String, body: bytes::Bytes, time: Timestamp| (id, subject, body, time);
        let stored: Vec<_> =
            group.iter().map(|m| told(m.id.clone(), m.subject.clone(), m.body.clone(), m.time)).collect();
        let decided: Vec<_> = facts
            .iter()
            .enumerate()
            .map(|(n, fact)| {
                let id = derived_id(&[&asked.id, &key.entity(D::Fact::AREA), &n.to_string()]);
                told(id, fact.any().subject().unwrap_or_default(), fact.any().body(), asked.at)
            })
            .collect();
        if stored != decided {
            return Err(format!("{}: decided again from {cause:?} it is\n{facts:?}\nstored is\n{stored:?}", at(first)));
        }
        let state = facts.iter().fold(state, |state, fact| decider.evolve(state, fact, asked.at));
        states.insert(key, (state, asked.at));
    }
    Ok(())
}

/// Why remedies are requested without end, if they are: the back-off limits how many there may be of one instance.
pub fn remedies(bus: &MemoryBus, since: Timestamp) -> Result<(), String> {
    let mut asked: BTreeMap<(String, String), u32> = BTreeMap::new();
    for stored in bus.read("INTENT").iter().filter(|m| m.time > since) {
        if let Ok(intent_facts::Fact::IntentRemedyWanted(fact)) =
            intent_facts::Fact::decode(&stored.message, &stored.body)
        {
            let times = asked.entry((fact.intent_id, fact.instance_id)).or_default();
            *times += 1;
            if *times > REMEDIES_MAX {
                return Err(format!("{}: asked for {times} times since {since:?}", at(stored)));
            }
        }
    }
    Ok(())
}

/// Why the world at rest is not as wanted, if so.
pub fn rest(bus: &MemoryBus, sites: &[SimCluster], now: Timestamp) -> Result<(), String> {
    let mut wanted: BTreeMap<String, u32> = BTreeMap::new();
    // Instances whose next revision waits for a document: what runs or failed there is a revision of the past.
    let mut awaiting: BTreeSet<String> = BTreeSet::new();
    for stored in bus.read("WORKLOAD") {
        match workloads::Fact::decode(&stored.message, &stored.body) {
            Ok(workloads::Fact::InstanceWanted(fact)) => {
                awaiting.remove(&fact.instance_id);
                wanted.insert(fact.instance_id, fact.replicas);
            }
            Ok(workloads::Fact::InstanceUnavailable(fact)) => {
                awaiting.insert(fact.instance_id);
            }
            _ => {}
        }
    }
    wanted.retain(|_, replicas| *replicas > 0);
    let planned = fold(&placements(), bus, u64::MAX).into_values().next().unwrap_or_default();
    for instance in wanted.keys() {
        let runs: Vec<String> = sites
            .iter()
            .flat_map(|s| s.running(now).into_iter().map(move |(id, generation)| (&s.id, id, generation)))
            .filter(|(_, id, _)| id == instance)
            .map(|(site, _, generation)| format!("{site} generation {generation}"))
            .collect();
        let plan = planned.instances.get(instance);
        let told = plan.is_some_and(|plan| {
            plan.unplaced.as_ref().is_some_and(|u| !u.reason.is_empty())
                || plan.at.as_ref().is_some_and(|hold| hold.standing == Standing::Failed)
        });
        if runs.len() > 1 || (runs.is_empty() && !told) {
            return Err(format!("{instance} is wanted and runs on {runs:?}; its plan is {plan:?}"));
        }
    }
    for site in sites {
        if let Some(instance) = site.wanted().into_iter().find(|instance| !wanted.contains_key(instance)) {
            return Err(format!("{} keeps {instance}, which nobody wants", site.id));
        }
    }
    for (key, intent) in fold(&intents(), bus, u64::MAX) {
        let (state, row) = (&intent.state, row(Some(&intent.state)));
        if intent.submission.is_some() && !"FT".contains(row) && (state.reason.is_empty() || state.waits_for.is_empty())
        {
            return Err(format!("intent {key} is {row} and does not say why or what it waits for: {state:?}"));
        }
        let runs =
            |id: &String| sites.iter().any(|site| site.running(now).into_iter().any(|(running, _)| running == *id));
        let given_up = |id: &String| {
            planned.instances.get(id).is_some_and(|plan| match &plan.unplaced {
                // Where a next revision fails, the one before runs on, and what it achieves counts.
                Some(unplaced) if unplaced.why == i32::from(Why::Changed) && runs(id) => false,
                Some(unplaced) => unplaced.used_up,
                None => plan.at.as_ref().is_some_and(|hold| hold.standing == Standing::Failed),
            })
        };
        if "ACFD".contains(row)
            && let Some(instance) = intent.instances().iter().find(|i| given_up(&i.id) && !awaiting.contains(&i.id))
        {
            return Err(format!("intent {key} is {row}, though {} is given up: {state:?}", instance.id));
        }
        if intent.submission.is_some() && row == '-' {
            return Err(format!("intent {key} was never judged: {state:?}"));
        }
    }
    Ok(())
}

/// Why an intent is told other conflicts than all intents in force together have, if so.
pub fn conflicts(bus: &MemoryBus) -> Result<(), String> {
    // The version in force of each, since when it is, and what it governs.
    let mut in_force: BTreeMap<String, (u64, u64, Contender)> = BTreeMap::new();
    for stored in bus.read("INTENT") {
        let fact = intent_facts::Fact::decode(&stored.message, &stored.body).map_err(|e| e.to_string())?;
        if let intent_facts::Fact::IntentAcknowledged(f) = fact {
            let known = in_force.get(&f.intent_id).filter(|(version, ..)| *version == f.version);
            let since = known.map_or(stored.sequence, |(_, since, _)| *since);
            let intent = Intent::decode(f.document).map_err(|e| e.to_string())?;
            let contender = contender(&f.intent_id, &intent, &f.instances, since)?;
            in_force.insert(f.intent_id, (f.version, since, contender));
        }
    }
    let entities = fold(&intents(), bus, u64::MAX);
    let standing = |id: &String| entities.iter().find(|(key, _)| key.token(1) == id).and_then(|(_, e)| e.in_force());
    let contends = |id: &String| standing(id).is_some_and(|f| !f.suspended);
    let contending = in_force.iter().filter(|(id, _)| contends(id)).map(|(_, (_, _, contender))| contender);
    let found = conflict::resolve(contending);
    for (id, (version, ..)) in &in_force {
        let Some(standing) = standing(id) else { continue };
        let expected = found.get(id).map_or(&[][..], Vec::as_slice);
        if standing.version != *version || standing.conflicts != expected {
            return Err(format!("intent {id} is told {:?}, and has {expected:?}", standing.conflicts));
        }
        if standing.is_suspended() != (standing.suspended || conflict::loses(expected)) {
            return Err(format!("intent {id} is suspended wrongly: {standing:?}"));
        }
    }
    Ok(())
}

/// Written apart from the validator's own.
fn contender(id: &str, intent: &Intent, governed: &[GovernedInstance], since: u64) -> Result<Contender, String> {
    let mut claims = vec![];
    for expectation in &intent.intent_expectations {
        let instance = governed.iter().find(|g| g.expectation_id == expectation.expectation_id);
        for (instance, target) in
            instance.into_iter().flat_map(|i| expectation.expectation_targets.iter().map(move |t| (i, t)))
        {
            claims.push(Claim {
                instance_id: instance.instance_id.clone(),
                expectation_id: expectation.expectation_id.clone(),
                target_name: target.target_name.clone(),
                bound: Bound::parse(&target.target_condition, &target.target_value_range).map_err(|e| e.to_string())?,
            });
        }
    }
    let (priority, preempts) = (intent.intent_priority, intent.intent_preemption_capability == "TRUE");
    Ok(Contender { intent_id: id.to_owned(), priority, preempts, since, claims })
}

/// How often conflicts changed, intents began or ended by themselves, and earlier versions were gone back to.
pub fn walked(bus: &MemoryBus) -> (u64, u64, u64) {
    let conflicts = bus.read("VALIDATION").iter().filter(|m| m.message.ends_with("ConflictsChanged")).count() as u64;
    let (mut timed, mut rollbacks) = (0, 0);
    for stored in bus.read("INTENT") {
        match intent_facts::Fact::decode(&stored.message, &stored.body) {
            Ok(intent_facts::Fact::IntentSubmitted(f)) if f.rolled_back_to > 0 => rollbacks += 1,
            // Only time has no message for a cause.
            Ok(_) if stored.cause.as_ref().is_some_and(|cause| cause.stream.is_empty()) => timed += 1,
            _ => {}
        }
    }
    (conflicts, timed, rollbacks)
}

/// The last facts of each stream, for a message.
pub fn tail(bus: &MemoryBus) -> String {
    let last = |stream: &&str| {
        let messages = bus.read(stream);
        messages.iter().skip(messages.len().saturating_sub(4)).map(at).collect::<Vec<_>>()
    };
    DECIDED.iter().chain(&areas::DECIDED).flat_map(last).collect::<Vec<_>>().join("\n")
}

/// A number made of everything stored (FNV-1a).
pub fn digest(bus: &MemoryBus) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for stored in bus.streams.values().flat_map(|s| &s.messages) {
        for byte in stored.id.bytes().chain(stored.subject.bytes()).chain(stored.body.iter().copied()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}
