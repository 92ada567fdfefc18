//! Why: what a person is told about how an intent, an instance, a workload document or a cluster came to stand as it
//! does. Facts are gathered by their subjects, their causes by address, and each is told in one line.

pub mod describe;

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use mesh_bus::{Bus, LogError};
use mesh_core::Stored;
use mesh_proto::{
    Event as _, Stream,
    intent::{IntentAcknowledged, IntentStateChanged},
    streams,
    workload::WorkloadSubmitted,
};
use serde_json::{Value as Json, json};

/// Newest facts of PLACEMENT that are searched: its entities are domains, which hold every instance's.
const PLACEMENT_SEARCHED: u64 = 50_000;
/// Causes read at once.
const READS: usize = 16;
/// Steps that one walk back takes at most.
const WALK_MAX: usize = 200;
/// Facts read at once.
const PAGE: usize = 1_000;

/// Nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum WhyError {
    /// No entity has such an id.
    #[error("{0:?} is not the id of an intent, instance, workload or cluster, nor an address STREAM:SEQUENCE")]
    NotAnId(String),
    /// Nobody has said anything of it.
    #[error(
        "nothing is known of {0}; see `continuum intent list`, `workload list` and `cluster list` (an instance's id is \
         written in full)"
    )]
    Unknown(String),
    /// A stream cannot be read.
    #[error("read {stream}")]
    Read {
        /// The stream.
        stream: String,
        /// Why not.
        source: LogError,
    },
}

/// All facts of an entity, oldest first; `entity` is a subject filter such as `intent.*.*.local.my-intent`.
///
/// # Errors
/// When the stream cannot be read.
pub async fn facts(bus: &Bus, stream: &str, entity: &str) -> Result<Vec<Stored>, LogError> {
    let mut found: Vec<Stored> = vec![];
    loop {
        let from = found.last().map_or(1, |stored| stored.sequence + 1);
        let read = bus.log(stream).read(entity, from, PAGE).await?;
        if read.is_empty() {
            return Ok(found);
        }
        found.extend(read);
    }
}

/// The chain from a fact back to its first cause, newest first. Each cause is an address, read by direct get; the walk
/// ends early where a cause is not kept any more.
///
/// # Errors
/// When a stream cannot be read.
pub async fn chain(bus: &Bus, fact: Stored) -> Result<Vec<Stored>, LogError> {
    let mut chain = vec![fact];
    while chain.len() < WALK_MAX {
        let Some(cause) = chain.last().and_then(|s| s.cause.clone()).filter(|c| !c.stream.is_empty()) else { break };
        match bus.log(&cause.stream).get(cause.sequence).await? {
            Some(stored) => chain.push(stored),
            None => break,
        }
    }
    Ok(chain)
}

/// The address of a stored message, `STREAM:SEQUENCE`.
pub fn address(stored: &Stored) -> String {
    format!("{}:{}", stored.stream, stored.sequence)
}

/// The decoded body of a stored message, without the secrets of its intents, or what is wrong with it.
pub fn body(stored: &Stored) -> Json {
    let decoded = stored.protobuf().and_then(|body| mesh_proto::json::to_value(&stored.message, &body));
    decoded
        .map(|value| mesh_intent::secret::redact_contexts(&value))
        .unwrap_or_else(|error| json!({"undecodable": error.to_string(), "bytes": stored.body.len()}))
}

fn unread(stream: &str) -> impl Fn(LogError) -> WhyError {
    let stream = stream.to_owned();
    move |source| WhyError::Read { stream: stream.clone(), source }
}

/// All facts about what an owner has of this id: an intent, a workload document (which may name its version,
/// `name@version`) or an instance; in the order in which they were stored. None if there is nothing. An intent may name
/// an instance by its id, which may be another owner's: of that one nothing is gathered.
///
/// # Errors
/// When it is not an id, or a stream cannot be read.
pub async fn of_owner(bus: &Bus, owner: &str, id: &str) -> Result<Vec<Stored>, WhyError> {
    let key = id.split('@').next().unwrap_or(id);
    if !mesh_proto::is_key(key) {
        return Err(WhyError::NotAnId(id.chars().take(64).collect()));
    }
    let of = async |stream: Stream, keys: &[&str]| {
        facts(bus, stream.name, &stream.entity(keys)).await.map_err(unread(stream.name))
    };
    let mut found = of(streams::INTENT, &[owner, key]).await?;
    let mut instances: BTreeSet<String> = BTreeSet::new();
    for fact in &found {
        if let Ok(Some(acknowledged)) = fact.event::<IntentAcknowledged>() {
            instances.extend(acknowledged.instances.into_iter().map(|i| i.instance_id));
        } else if let Ok(Some(changed)) = fact.event::<IntentStateChanged>() {
            instances.extend(changed.instances.into_iter().map(|i| i.instance_id));
        }
    }
    if !found.is_empty() {
        found.extend(of(streams::VALIDATION, &[owner, key]).await?);
    }
    let workload = of(streams::WORKLOAD, &[owner, key]).await?;
    if workload.iter().any(|f| f.message == WorkloadSubmitted::MESSAGE) {
        found.extend(of(streams::VALIDATION, &[owner, key]).await?);
        found.extend(document(workload, id));
    } else if !workload.is_empty() {
        instances.insert(key.to_owned());
    }
    let mut own: BTreeSet<String> = BTreeSet::new();
    for instance in instances {
        let told = of(streams::WORKLOAD, &[owner, &instance]).await?;
        if !told.is_empty() {
            found.extend(told);
            own.insert(instance);
        }
    }
    // A refused command leaves a fact under its sender's owner, whosever the instance is: what clusters and domains say
    // of an instance names its owner, which decides.
    let is_own = |fact: &Stored| {
        let told = body(fact);
        let text = |name: &str| told.get(name).and_then(Json::as_str);
        text("owner") == Some(owner) && text("instanceId").is_some_and(|id| own.contains(id))
    };
    for instance in &own {
        found.extend(of(streams::INSTANCE, &["*", instance]).await?.into_iter().filter(&is_own));
    }
    if !own.is_empty() {
        let (placements, clusters) = placements(bus, &is_own).await?;
        found.extend(placements);
        for cluster in clusters {
            let assigned = of(streams::ASSIGNMENT, &[&cluster]).await?;
            found.extend(assigned.into_iter().filter(&is_own));
        }
    }
    Ok(in_order(found))
}

/// All facts about an entity, as [`of_owner`] has them, or about a cluster.
///
/// # Errors
/// When it is not an id, nothing is known about it, or a stream cannot be read.
pub async fn gather(bus: &Bus, owner: &str, id: &str) -> Result<Vec<Stored>, WhyError> {
    let mut found = of_owner(bus, owner, id).await?;
    let key = id.split('@').next().unwrap_or(id);
    let of = async |stream: Stream, keys: &[&str]| {
        facts(bus, stream.name, &stream.entity(keys)).await.map_err(unread(stream.name))
    };
    let registered = of(streams::CLUSTER, &[key]).await?;
    if !registered.is_empty() {
        found.extend(registered);
        found.extend(of(streams::ASSIGNMENT, &[key]).await?);
        let about = |fact: &Stored| {
            field(fact, "clusterId").as_deref() == Some(key) || field(fact, "fromClusterId").as_deref() == Some(key)
        };
        found.extend(placements(bus, about).await?.0);
    }
    if found.is_empty() {
        return Err(WhyError::Unknown(id.to_owned()));
    }
    Ok(in_order(found))
}

/// Facts of a workload document: of one version, if the id names it.
fn document(facts: Vec<Stored>, id: &str) -> Vec<Stored> {
    let version = id.split_once('@').map(|(_, version)| version.to_owned());
    let wanted = |fact: &Stored| match (&version, field(fact, "version")) {
        (Some(wanted), Some(found)) => *wanted == found,
        _ => true,
    };
    facts.into_iter().filter(wanted).collect()
}

/// Facts of PLACEMENT that matter, and the clusters that they name.
async fn placements(bus: &Bus, matters: impl Fn(&Stored) -> bool) -> Result<(Vec<Stored>, BTreeSet<String>), WhyError> {
    let log = bus.log(streams::PLACEMENT.name);
    let last = log.last_sequence().await.map_err(unread(streams::PLACEMENT.name))?;
    let mut from = last.saturating_sub(PLACEMENT_SEARCHED) + 1;
    let (mut found, mut clusters) = (vec![], BTreeSet::new());
    while from <= last {
        let read = log.read(streams::PLACEMENT.all, from, PAGE).await.map_err(unread(streams::PLACEMENT.name))?;
        let Some(end) = read.last() else { break };
        from = end.sequence + 1;
        for fact in read.into_iter().filter(&matters) {
            clusters.extend(field(&fact, "clusterId").into_iter().chain(field(&fact, "fromClusterId")));
            found.push(fact);
        }
    }
    clusters.retain(|c| !c.is_empty());
    Ok((found, clusters))
}

/// A text field of a fact.
fn field(fact: &Stored, name: &str) -> Option<String> {
    body(fact).get(name).and_then(Json::as_str).map(str::to_owned)
}

/// Facts and what caused them, as far as a stream keeps it.
///
/// # Errors
/// When a stream cannot be read.
pub async fn with_causes(bus: &Bus, facts: Vec<Stored>) -> Result<Vec<Stored>, WhyError> {
    let known: BTreeSet<(String, u64)> = facts.iter().map(|f| (f.stream.clone(), f.sequence)).collect();
    let causes: BTreeSet<(String, u64)> = facts
        .iter()
        .filter_map(|f| f.cause.as_ref())
        .filter(|c| !c.stream.is_empty())
        .map(|c| (c.stream.clone(), c.sequence))
        .filter(|address| !known.contains(address))
        .collect();
    let read: Vec<Option<Stored>> = stream::iter(causes)
        .map(|(stream, sequence)| async move { bus.log(&stream).get(sequence).await.map_err(unread(&stream)) })
        .buffered(READS)
        .try_collect()
        .await?;
    Ok(in_order(facts.into_iter().chain(read.into_iter().flatten()).collect()))
}

/// By time of storage, and never an effect before its cause; each once.
fn in_order(facts: Vec<Stored>) -> Vec<Stored> {
    let by_address: BTreeMap<(String, u64), Stored> =
        facts.into_iter().map(|f| ((f.stream.clone(), f.sequence), f)).collect();
    let mut found: Vec<Stored> = by_address.into_values().collect();
    found.sort_by_key(|f| (f.stored, f.sequence));
    found
}

/// The address of what caused a fact, or the time that did; `None` if it came from outside the bus.
pub fn cause(fact: &Stored) -> Option<String> {
    fact.cause.as_ref().map(|cause| match cause.stream.is_empty() {
        true => cause.id.clone(),
        false => format!("{}:{}", cause.stream, cause.sequence),
    })
}
