//! Revisions of an instance, and what people do with one that is there: upgrade, go back, move, delete.
//!
//! A revision is a document with a release. It rises by one with every change of either, whoever made it; going back
//! makes the old content the newest revision. Documents never change, so a revision needs to name its own only.

use mesh_core::Key;
use mesh_proto::{
    Refusal,
    deciders::workloads::Fact,
    workload::{
        InstanceChanged, InstanceDeleted, InstancePhase, InstanceWanted, MigrateInstance, MigrationWanted, Release,
        RollbackInstance, UpgradeInstance, WorkloadDocument,
    },
};
use prost::Message as _;

use super::{
    documents::{CHART, head, split},
    instance::{Instance, REPLICAS_MAX, is_governor, revised},
    known::{Known, Standing, missing},
};
use chart::values_problem;

/// Bytes of the values of one release.
pub const RELEASE_VALUES_BYTES_MAX: usize = 64 * 1024;
/// Helm's limit of a release's name.
const RELEASE_NAME_MAX: usize = 53;

/// What is wrong with how a document is to be released.
pub(super) fn check_release(document: &[u8], release: Option<&Release>) -> Result<(), Refusal> {
    let Some(release) = release else { return Ok(()) };
    let document = WorkloadDocument::decode(document).unwrap_or_default();
    let refuse = |reason: String, hint: &str| Err(Refusal::invalid(reason, hint));
    if document.kind != CHART {
        let reason = format!("a release is of charts, and {} is of kind {}", document.name, head(&document.kind));
        return refuse(reason, "leave `release` out");
    }
    if release.ingress && !document.chart.is_some_and(|c| c.ingress_support) {
        let reason = format!("{} does not say that it can be exposed", document.name);
        return refuse(reason, "push a version with ingressSupport, or leave `ingress` out");
    }
    let is_label = |text: &str, most: usize| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ends = text.bytes().next().is_some_and(plain) && text.bytes().last().is_some_and(plain);
        ends && text.len() <= most && text.bytes().all(|b| plain(b) || b == b'-')
    };
    if !release.name.is_empty() && !is_label(&release.name, RELEASE_NAME_MAX) {
        let reason = format!("{:?} is not a valid release name", head(&release.name));
        return refuse(reason, "use at most 53 lower-case letters, digits and `-`, or leave it out");
    }
    if !release.namespace.is_empty() && !is_label(&release.namespace, 63) {
        let reason = format!("{:?} is not a valid namespace", head(&release.namespace));
        return refuse(reason, "use at most 63 lower-case letters, digits and `-`, or leave it out for default");
    }
    if release.values.len() > RELEASE_VALUES_BYTES_MAX {
        let reason = format!("the values have {} bytes; at most {RELEASE_VALUES_BYTES_MAX} are", release.values.len());
        return refuse(reason, "put them into the chart's values.yaml");
    }
    match values_problem(&release.values) {
        Some(reason) => refuse(format!("the values are unusable: {reason}"), "write YAML: keys with their values"),
        None => Ok(()),
    }
}

/// Answers `UpgradeInstance`.
pub(super) fn upgrade(
    key: &Key,
    instance: &Instance,
    world: &Known,
    m: &UpgradeInstance,
    command_id: &str,
) -> Result<Fact, Refusal> {
    let old = own(key, instance)?;
    let name = |workload: &str| split(workload).map_or(workload.to_owned(), |(name, _)| name.to_owned());
    if name(&m.workload) != name(&old.workload) {
        let reason = format!("it runs {}, and {:?} is not a version of it", old.workload, head(&m.workload));
        return Err(Refusal::state(reason, "run another instance of the other document"));
    }
    if m.replicas > REPLICAS_MAX {
        let reason = format!("{} replicas; at most {REPLICAS_MAX} are allowed", m.replicas);
        return Err(Refusal::exhausted(reason, "ask for fewer, or run several instances"));
    }
    let document = match world.document(key.token(0), &m.workload) {
        Some(Standing::Registered(document)) => document.clone(),
        other => {
            let (reason, hint) = missing(world, key.token(0), &m.workload, other);
            return Err(Refusal::not_found(reason, hint));
        }
    };
    check_release(&document, m.release.as_ref())?;
    let mut next = InstanceWanted { workload: m.workload.clone(), document, ..old.clone() };
    if m.release.is_some() {
        next.release.clone_from(&m.release);
    }
    if m.replicas > 0 {
        next.replicas = m.replicas;
    }
    let before = old.revision.max(1);
    next = revised(next, instance);
    if next.revision > before {
        // The same again is not an upgrade, and does not cancel an earlier promise.
        next.atomic = m.atomic;
    }
    next.command_id = command_id.to_owned();
    Ok(next.into())
}

/// Answers `RollbackInstance`.
pub(super) fn roll_back(
    key: &Key,
    instance: &Instance,
    world: &Known,
    m: &RollbackInstance,
    command_id: &str,
) -> Result<Fact, Refusal> {
    own(key, instance)?;
    let mut next = to_revision(key, instance, world, m.revision)?;
    next.command_id = command_id.to_owned();
    Ok(next.into())
}

/// What is wanted after going back to a revision, or to the one before the present one (0).
fn to_revision(key: &Key, instance: &Instance, world: &Known, revision: u32) -> Result<InstanceWanted, Refusal> {
    let wanted = instance.live().ok_or_else(|| unknown(key))?;
    let now = wanted.revision.max(1);
    let known = &instance.revisions;
    let found = match revision {
        0 => known.iter().rev().find(|r| r.revision < now),
        given => known.iter().find(|r| r.revision == given),
    };
    let Some(target) = found else {
        let numbers: Vec<String> = known.iter().map(|r| r.revision.to_string()).collect();
        let reason = match revision {
            0 => "there is no revision before the present one".to_owned(),
            given => format!("there is no revision {given}"),
        };
        return Err(Refusal::not_found(reason, format!("its revisions are {}", numbers.join(", "))));
    };
    if target.revision == now {
        return Err(Refusal::state(format!("revision {now} is the present one"), "name an earlier one"));
    }
    // What was registered once stays so; a World that lags is one that has not heard of it yet.
    let document = match world.document(key.token(0), &target.workload) {
        Some(Standing::Registered(document)) => document.clone(),
        other => {
            let (reason, hint) = missing(world, key.token(0), &target.workload, other);
            return Err(Refusal::not_found(reason, hint));
        }
    };
    let (workload, release) = (target.workload.clone(), target.release.clone());
    let mut next = InstanceWanted { workload, document, release, replicas: target.replicas.max(1), ..wanted.clone() };
    next.revision = now + 1;
    next.rolled_back_to = target.revision;
    next.atomic = false;
    next.command_id.clear();
    Ok(next)
}

/// Answers `MigrateInstance`.
pub(super) fn migrate(key: &Key, instance: &Instance, m: &MigrateInstance, command_id: &str) -> Result<Fact, Refusal> {
    let changed = &instance.changed;
    if instance.live().is_none() {
        return Err(unknown(key));
    }
    if changed.cluster_id.is_empty() {
        return Err(Refusal::state("it is on no cluster yet", "ask `continuum why` for what it waits for"));
    }
    if !changed.to_cluster_id.is_empty() {
        let reason = format!("it is moving to {}", changed.to_cluster_id);
        return Err(Refusal::state(reason, "try again once it is there"));
    }
    if changed.phase() != InstancePhase::Running {
        let reason = format!("it is {}, and only what runs is moved", changed.phase().as_str_name());
        return Err(Refusal::state(reason, "try again once it runs"));
    }
    if m.to_cluster_id == changed.cluster_id {
        return Err(Refusal::state(format!("it runs on {}", changed.cluster_id), "name another cluster, or none"));
    }
    Ok(MigrationWanted {
        owner: key.token(0).to_owned(),
        instance_id: key.token(1).to_owned(),
        cluster_id: changed.cluster_id.clone(),
        generation: changed.generation,
        to_cluster_id: m.to_cluster_id.clone(),
        command_id: command_id.to_owned(),
    }
    .into())
}

/// Answers `DeleteInstance`.
pub(super) fn delete(key: &Key, instance: &Instance, command_id: &str) -> Result<Fact, Refusal> {
    let wanted = instance.wanted.as_ref().ok_or_else(|| unknown(key))?;
    if !wanted.governors.is_empty() {
        let intents: Vec<&str> = wanted.governors.iter().map(|g| g.intent_id.as_str()).collect();
        let reason = format!("it is governed by intent {}", intents.join(", "));
        return Err(Refusal::state(reason, "terminate what governs it first"));
    }
    let begun = instance.changed.phase() != InstancePhase::Unspecified;
    if wanted.replicas == 0 && (!begun || instance.changed.phase() == InstancePhase::Stopped) {
        return Ok(deleted(key, command_id));
    }
    let wanted = InstanceWanted { replicas: 0, delete: true, atomic: false, ..wanted.clone() };
    Ok(InstanceWanted { command_id: command_id.to_owned(), ..wanted }.into())
}

fn deleted(key: &Key, command_id: &str) -> Fact {
    let (owner, instance_id) = (key.token(0).to_owned(), key.token(1).to_owned());
    InstanceDeleted { owner, instance_id, command_id: command_id.to_owned() }.into()
}

/// What follows of itself from how it fares: one that is to be deleted is gone once it has stopped, and an upgrade that
/// failed for good is taken back if that was wished.
pub(super) fn consequences(key: &Key, instance: &Instance, world: &Known, mut facts: Vec<Fact>) -> Vec<Fact> {
    let changed = facts.iter().rev().find_map(|fact| match fact {
        Fact::InstanceChanged(changed) => Some(changed),
        _ => None,
    });
    let redefined = facts.iter().any(|fact| matches!(fact, Fact::InstanceWanted(_)));
    let (Some(changed), Some(wanted), false) = (changed, &instance.wanted, redefined) else { return facts };
    if wanted.delete && wanted.replicas == 0 && changed.phase() == InstancePhase::Stopped {
        facts.push(deleted(key, ""));
    } else if wanted.atomic && wanted.replicas > 0 && failed_for_good(instance, changed) {
        // There is none before the first, which then stays as it is.
        facts.extend(to_revision(key, instance, world, 0).ok().map(Fact::from));
    }
    facts
}

/// Did what is wanted now fail for good? It did where it failed on a placement of its own, or could not begin beside the
/// revision before, which runs on.
fn failed_for_good(instance: &Instance, changed: &InstanceChanged) -> bool {
    let own = changed.generation > instance.revised_at;
    let phase = changed.phase();
    changed.hopeless && (own && phase == InstancePhase::Failed || !own && phase == InstancePhase::Running)
}

/// What is wanted of an instance that runs and that no intent made.
fn own<'a>(key: &Key, instance: &'a Instance) -> Result<&'a InstanceWanted, Refusal> {
    let wanted = instance.live().ok_or_else(|| unknown(key))?;
    if is_governor(wanted, &wanted.intent_id) {
        let reason = format!("intent {} made this instance", wanted.intent_id);
        return Err(Refusal::state(reason, "update that intent to name another version"));
    }
    Ok(wanted)
}

fn unknown(key: &Key) -> Refusal {
    let reason = format!("no instance {} is wanted", head(key.token(1)));
    Refusal::not_found(reason, "list the instances for the ids that there are, or run one")
}

/// Helm's name of an instance's release: as it was given, or else made.
pub fn release_of(release: &Release, document: &str, instance_id: &str) -> String {
    match release.name.as_str() {
        "" => release_name(document, instance_id),
        name => name.to_owned(),
    }
}

/// A release's name for Helm: the document's, and the first digits of the instance's id.
pub fn release_name(document: &str, instance_id: &str) -> String {
    let plain = document.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let head: String = plain.trim_matches('-').chars().take(40).collect();
    let head = if head.is_empty() { "chart" } else { head.trim_end_matches('-') };
    let id: String = instance_id.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
    format!("{head}-{}", id.to_lowercase())
}
