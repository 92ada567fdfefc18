//! Which instances shall run: by intents, which want or govern them, and by plain commands.

use std::collections::BTreeMap;

use bytes::Bytes;
use mesh_core::Key;
use mesh_proto::{
    Refusal, Timestamp,
    deciders::workloads::Fact,
    intent::{Intent, IntentAcknowledged},
    validation,
    workload::{
        Governor, InstanceUnavailable, InstanceUnwanted, InstanceWanted, RunInstance, TargetBound, WorkloadDocument,
        WorkloadRegistered,
    },
};
use prost::Message as _;

use super::{
    documents::{head, listed},
    instance::{Instance, REPLICAS_MAX, is_governor, revised},
    is_uuid,
    known::{Known, Standing, missing, rejected},
    life,
    releases::check_release,
};

/// An instance that waits for a document looks once more after so long: when it began to wait, the fact that ended
/// the wait may have been on its way already.
pub const RECHECK_MS: i64 = 2_000;

/// Answers `RunInstance`.
pub(super) fn run(
    key: &Key,
    instance: &Instance,
    world: &Known,
    m: &RunInstance,
    command_id: &str,
) -> Result<Fact, Refusal> {
    let (owner, id) = (key.token(0), key.token(1));
    if !is_uuid(id) {
        return Err(Refusal::invalid(format!("{id} is not a UUID, as an instance's id is"), "choose a UUID"));
    }
    if m.replicas > REPLICAS_MAX {
        let reason = format!("{} replicas; at most {REPLICAS_MAX} are allowed", m.replicas);
        return Err(Refusal::exhausted(reason, "ask for fewer, or run several instances"));
    }
    let old = instance.wanted.clone().unwrap_or_default();
    if is_governor(&old, &old.intent_id) {
        let reason = format!("intent {} made this instance", old.intent_id);
        return Err(Refusal::state(reason, "update that intent, or run another instance under an id of its own"));
    }
    let document = match world.document(owner, &m.workload) {
        Some(Standing::Registered(document)) => document.clone(),
        other => {
            let (reason, hint) = missing(world, owner, &m.workload, other);
            return Err(Refusal::not_found(reason, hint));
        }
    };
    check_release(&document, m.release.as_ref())?;
    let wanted = InstanceWanted {
        release: m.release.clone(),
        owner: owner.to_owned(),
        instance_id: id.to_owned(),
        workload: m.workload.clone(),
        replicas: if m.replicas > 0 { m.replicas } else { replicas(&document) },
        document,
        intent_id: String::new(),
        intent_version: 0,
        command_id: command_id.to_owned(),
        ..old
    };
    Ok(with_waiting_governors(revised(wanted, instance), instance).into())
}

/// Answers `StopInstance`.
pub(super) fn stop(key: &Key, instance: &Instance, command_id: &str) -> Result<Fact, Refusal> {
    let Some(wanted) = &instance.wanted else {
        let reason = format!("there is no instance {}", head(key.token(1)));
        return Err(Refusal::not_found(reason, "list the instances for the ids that there are"));
    };
    if !wanted.governors.is_empty() {
        let intents: Vec<&str> = wanted.governors.iter().map(|g| g.intent_id.as_str()).collect();
        let reason = format!("it is governed by intent {}", intents.join(", "));
        return Err(Refusal::state(reason, "terminate what governs it first"));
    }
    Ok(InstanceWanted { replicas: 0, command_id: command_id.to_owned(), ..wanted.clone() }.into())
}

/// A remedy: one replica more, as far as the document allows.
pub(super) fn scale(instance: &Instance) -> Vec<Fact> {
    let Some(wanted) = instance.live() else { return vec![] };
    let document = WorkloadDocument::decode(wanted.document.clone()).unwrap_or_default();
    if wanted.replicas >= document.replicas_max.min(REPLICAS_MAX) {
        return vec![];
    }
    vec![InstanceWanted { replicas: wanted.replicas + 1, ..wanted.clone() }.into()]
}

/// An intent's version is in force: what it wants of this instance.
pub(super) fn acknowledged(key: &Key, instance: &Instance, world: &Known, m: &IntentAcknowledged) -> Vec<Fact> {
    let id = key.token(1);
    let mine: Vec<_> = m.instances.iter().filter(|g| g.instance_id == id).collect();
    if mine.is_empty() {
        // An expectation of an earlier version wanted it.
        return ended(key, instance, &m.intent_id);
    }
    let intent = Intent::decode(m.document.clone()).unwrap_or_default();
    let expectations = intent.intent_expectations.iter();
    let of_mine = expectations.filter(|e| mine.iter().any(|g| g.expectation_id == e.expectation_id));
    let targets = of_mine.flat_map(|e| &e.expectation_targets).filter_map(|t| {
        let bound = t.target_value_range.parse().ok()?;
        let (target_name, target_condition) = (t.target_name.clone(), t.target_condition.clone());
        Some(TargetBound { target_name, target_condition, bound })
    });
    let ask = InstanceUnavailable {
        owner: key.token(0).to_owned(),
        instance_id: id.to_owned(),
        intent_id: m.intent_id.clone(),
        intent_version: m.version,
        workload: mine.iter().map(|g| g.workload.clone()).find(|w| !w.is_empty()).unwrap_or_default(),
        targets: targets.collect(),
        cluster_selector: mine.iter().flat_map(|g| g.cluster_selector.clone()).collect(),
        ..Default::default()
    };
    serve(instance, world, ask)
}

/// An intent has ended, or does not name this instance any more.
pub(super) fn ended(key: &Key, instance: &Instance, intent_id: &str) -> Vec<Fact> {
    let mut facts = vec![];
    if let Some(wanted) = instance.wanted.as_ref().filter(|w| is_governor(w, intent_id)) {
        let mut next = wanted.clone();
        next.governors.retain(|g| g.intent_id != intent_id);
        if next.intent_id == intent_id {
            next.replicas = 0;
        }
        facts.push(total(next).into());
    }
    if instance.waiting.contains_key(intent_id) {
        let (owner, instance_id) = (key.token(0).to_owned(), key.token(1).to_owned());
        facts.push(InstanceUnwanted { owner, instance_id, intent_id: intent_id.to_owned() }.into());
    }
    facts
}

/// A document that this instance may wait for can run now.
pub(super) fn document_registered(key: &Key, instance: &Instance, world: &Known, m: &WorkloadRegistered) -> Vec<Fact> {
    let workload = format!("{}@{}", m.name, m.version);
    debug_assert_eq!(key.token(0), m.owner);
    served(instance, world, |waits| waits.workload == workload)
}

/// A document that this instance may wait for failed validation: it is told why.
pub(super) fn document_rejected(instance: &Instance, m: &validation::WorkloadRejected) -> Vec<Fact> {
    let workload = format!("{}@{}", m.name, m.version);
    let waiting = instance.waiting.values().filter(|waits| waits.workload == workload);
    let (reason, hint) = rejected(&workload, &listed(&m.problems));
    let untold = waiting.filter(|waits| waits.reason != reason);
    untold.map(|w| InstanceUnavailable { reason: reason.clone(), hint: hint.clone(), ..w.clone() }.into()).collect()
}

/// When an instance that waits for a document looks again.
pub(super) fn due(instance: &Instance) -> Option<Timestamp> {
    let waits = instance.waiting.values().any(|w| !w.workload.is_empty());
    instance.waiting_since.filter(|_| waits).map(|since| since.plus_millis(RECHECK_MS))
}

/// Looks again.
pub(super) fn recheck(_key: &Key, instance: &Instance, world: &Known, at: Timestamp) -> Vec<Fact> {
    match due(instance) {
        Some(due) if at >= due => served(instance, world, |waits| !waits.workload.is_empty()),
        _ => vec![],
    }
}

/// What those who wait, and whom the filter picks, are told now that differs from what they were told.
fn served(instance: &Instance, world: &Known, which: impl Fn(&InstanceUnavailable) -> bool) -> Vec<Fact> {
    let mut facts = vec![];
    let mut after = instance.clone();
    for waits in instance.waiting.values().filter(|waits| which(waits)) {
        for fact in serve(&after, world, waits.clone()) {
            match &fact {
                Fact::InstanceWanted(m) => after.want(m, after.phase_since),
                Fact::InstanceUnavailable(m) => drop(after.waiting.insert(m.intent_id.clone(), m.clone())),
                _ => {}
            }
            facts.push(fact);
        }
    }
    facts
}

/// Gives an intent what it asks for, or says why not. Nothing if that is so already.
fn serve(instance: &Instance, world: &Known, ask: InstanceUnavailable) -> Vec<Fact> {
    let governor =
        Governor { intent_id: ask.intent_id.clone(), intent_version: ask.intent_version, targets: ask.targets.clone() };
    if ask.workload.is_empty() {
        let Some(live) = instance.live() else {
            let reason = format!("there is no instance {} to govern", ask.instance_id);
            let hint = "run it, or update the intent to name a workload document or another instance";
            return unavailable(instance, ask, reason, hint.into());
        };
        let next = with_governor(live.clone(), governor);
        if instance.wanted.as_ref() == Some(&next) {
            return vec![];
        }
        // It may run already: its governor is to hear of it.
        let mut facts = vec![Fact::from(next.clone())];
        facts.extend(life::known_to(instance, &next).map(Fact::from));
        return facts;
    }
    let document = match world.document(&ask.owner, &ask.workload) {
        Some(Standing::Registered(document)) => with_labels(document, &ask.cluster_selector),
        other => {
            let (reason, hint) = missing(world, &ask.owner, &ask.workload, other);
            return unavailable(instance, ask, reason, hint);
        }
    };
    let wanted = InstanceWanted {
        owner: ask.owner,
        instance_id: ask.instance_id,
        workload: ask.workload,
        replicas: replicas(&document),
        document,
        intent_id: ask.intent_id,
        intent_version: ask.intent_version,
        ..instance.wanted.clone().unwrap_or_default()
    };
    let next = with_governor(with_waiting_governors(revised(wanted, instance), instance), governor);
    if instance.wanted.as_ref() == Some(&next) { vec![] } else { vec![next.into()] }
}

/// The document with labels that its cluster must carry by an intent: what follows in protobuf adds to what is there.
fn with_labels(document: &Bytes, labels: &BTreeMap<String, String>) -> Bytes {
    if labels.is_empty() {
        return document.clone();
    }
    let more = WorkloadDocument { cluster_selector: labels.clone(), ..Default::default() };
    [document.as_ref(), more.encode_to_vec().as_slice()].concat().into()
}

fn unavailable(instance: &Instance, ask: InstanceUnavailable, reason: String, hint: String) -> Vec<Fact> {
    let told = InstanceUnavailable { reason, hint, ..ask };
    if instance.waiting.get(&told.intent_id) == Some(&told) { vec![] } else { vec![told.into()] }
}

fn replicas(document: &Bytes) -> u32 {
    WorkloadDocument::decode(document.clone()).map_or(1, |d| d.replicas.clamp(1, REPLICAS_MAX))
}

fn with_governor(mut wanted: InstanceWanted, governor: Governor) -> InstanceWanted {
    wanted.governors.retain(|g| g.intent_id != governor.intent_id);
    wanted.governors.push(governor);
    wanted.governors.sort_by(|a, b| a.intent_id.cmp(&b.intent_id));
    total(wanted)
}

/// Those who waited to govern it do, now that it is there.
fn with_waiting_governors(wanted: InstanceWanted, instance: &Instance) -> InstanceWanted {
    let waiting = instance.waiting.values().filter(|w| w.workload.is_empty());
    waiting.fold(total(wanted), |wanted, waits| {
        let (intent_id, intent_version, targets) =
            (waits.intent_id.clone(), waits.intent_version, waits.targets.clone());
        with_governor(wanted, Governor { intent_id, intent_version, targets })
    })
}

/// With the bounds of all who govern it.
fn total(mut wanted: InstanceWanted) -> InstanceWanted {
    wanted.targets = wanted.governors.iter().flat_map(|g| g.targets.iter().cloned()).collect();
    wanted
}
