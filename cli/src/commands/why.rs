//! `why`: the causal chain of an intent, an instance, a workload document, a cluster, or one message.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use mesh_bus::{Bus, Stored};
use mesh_kit::why::{chain, facts};
use mesh_proto::{
    Event as _,
    intent::{IntentAcknowledged, IntentStateChanged},
    placement::{Candidate, PlacementDecided, PlacementUnplaced},
    workload::WorkloadSubmitted,
};
use serde_json::{Value as Json, json};

use super::{Context, address, body, clock, date};
use crate::{
    args::WhyOptions,
    describe::{describe, value, writer},
    output::{self, Format, line, table},
};

/// Newest facts of PLACEMENT that are searched: its entities are domains, which hold every instance's.
const PLACEMENT_SEARCHED: u64 = 50_000;
/// Causes read at once.
const READS: usize = 16;

/// Tells why.
pub(crate) async fn run(context: &Context<'_>, options: WhyOptions) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    let (bus, id) = (&client.bus, options.id.as_str());
    let mut steps = match one(bus, id).await? {
        Some(fact) => {
            let mut steps = chain(bus, fact).await.context("read the causes")?;
            steps.reverse();
            steps
        }
        None => {
            let gathered = gather(bus, &context.owner, id).await?;
            if options.chain {
                // The last fact of its own; what others said later is beside the question.
                let last = gathered.into_iter().next_back().context("find its last fact")?;
                let mut steps = chain(bus, last).await.context("read the causes")?;
                steps.reverse();
                steps
            } else {
                with_causes(bus, gathered).await?
            }
        }
    };
    let left_out = steps.len().saturating_sub(options.steps);
    steps.drain(..left_out);
    match context.format {
        Format::Table => {
            if left_out > 0 {
                line(format!(
                    "{left_out} earlier steps are left out; see them with --steps {}",
                    left_out + steps.len()
                ));
            }
            tell(&steps);
        }
        format => output::show(format, &steps.iter().map(step).collect::<Json>(), &[], Vec::new),
    }
    Ok(ExitCode::SUCCESS)
}

/// The message of an address `STREAM:SEQUENCE`; `None` if the id is none.
async fn one(bus: &Bus, id: &str) -> anyhow::Result<Option<Stored>> {
    let Some((name, sequence)) = id.split_once(':') else { return Ok(None) };
    let contract = mesh_proto::contract();
    let name = name.to_uppercase();
    let Some(sequence) = contract.stream(&name).and_then(|_| sequence.parse().ok()) else {
        let streams: Vec<&str> = contract.streams.iter().map(|s| s.name.as_str()).collect();
        bail!("{id} is not an address STREAM:SEQUENCE with one of {}", streams.join(", "));
    };
    let found = bus.log(&name).get(sequence).await.context("read the message")?;
    Ok(Some(found.with_context(|| format!("{id} is not kept, or never was"))?))
}

/// All facts about an entity, in the order in which they were stored.
async fn gather(bus: &Bus, owner: &str, id: &str) -> anyhow::Result<Vec<Stored>> {
    let key = id.split('@').next().unwrap_or(id);
    if !mesh_proto::is_key(key) {
        bail!("{id:?} is not the id of an intent, instance, workload or cluster, nor an address STREAM:SEQUENCE");
    }
    let of = async |stream: &str, entity: String| {
        facts(bus, stream, &entity).await.with_context(|| format!("read {stream}"))
    };
    let mut found = of("INTENT", format!("intent.*.*.{owner}.{key}")).await?;
    let mut instances: BTreeSet<String> = BTreeSet::new();
    for fact in &found {
        if let Ok(Some(acknowledged)) = fact.event::<IntentAcknowledged>() {
            instances.extend(acknowledged.instances.into_iter().map(|i| i.instance_id));
        } else if let Ok(Some(changed)) = fact.event::<IntentStateChanged>() {
            instances.extend(changed.instances.into_iter().map(|i| i.instance_id));
        }
    }
    if !found.is_empty() {
        found.extend(of("VALIDATION", format!("validation.*.*.{owner}.{key}")).await?);
    }
    let workload = of("WORKLOAD", format!("workload.*.*.{owner}.{key}")).await?;
    if workload.iter().any(|f| f.message == WorkloadSubmitted::MESSAGE) {
        found.extend(of("VALIDATION", format!("validation.*.*.{owner}.{key}")).await?);
        found.extend(document(workload, id));
    } else if !workload.is_empty() {
        instances.insert(key.to_owned());
    }
    for instance in &instances {
        found.extend(of("WORKLOAD", format!("workload.*.*.{owner}.{instance}")).await?);
        found.extend(of("INSTANCE", format!("instance.*.*.*.{instance}")).await?);
    }
    if !instances.is_empty() {
        let (placements, clusters) =
            placements(bus, |fact| field(fact, "instanceId").is_some_and(|i| instances.contains(&i))).await?;
        found.extend(placements);
        for cluster in clusters {
            let assigned = of("ASSIGNMENT", format!("assignment.*.*.{cluster}")).await?;
            found.extend(
                assigned.into_iter().filter(|f| field(f, "instanceId").is_some_and(|i| instances.contains(&i))),
            );
        }
    }
    let registered = of("CLUSTER", format!("cluster.*.*.{key}")).await?;
    if !registered.is_empty() {
        found.extend(registered);
        found.extend(of("ASSIGNMENT", format!("assignment.*.*.{key}")).await?);
        let about = |fact: &Stored| {
            field(fact, "clusterId").as_deref() == Some(key) || field(fact, "fromClusterId").as_deref() == Some(key)
        };
        found.extend(placements(bus, about).await?.0);
    }
    if found.is_empty() {
        bail!(
            "nothing is known of {id}; see `continuum intent list`, `workload list` and `cluster list` \
             (an instance's id is written in full)"
        );
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
async fn placements(bus: &Bus, matters: impl Fn(&Stored) -> bool) -> anyhow::Result<(Vec<Stored>, BTreeSet<String>)> {
    let log = bus.log("PLACEMENT");
    let last = log.last_sequence().await.context("read PLACEMENT")?;
    let mut from = last.saturating_sub(PLACEMENT_SEARCHED) + 1;
    let (mut found, mut clusters) = (vec![], BTreeSet::new());
    while from <= last {
        let read = log.read("placement.*.*.*", from, 1_000).await.context("read PLACEMENT")?;
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
async fn with_causes(bus: &Bus, facts: Vec<Stored>) -> anyhow::Result<Vec<Stored>> {
    let known: BTreeSet<(String, u64)> = facts.iter().map(|f| (f.stream.clone(), f.sequence)).collect();
    let causes: BTreeSet<(String, u64)> = facts
        .iter()
        .filter_map(|f| f.cause.as_ref())
        .filter(|c| !c.stream.is_empty())
        .map(|c| (c.stream.clone(), c.sequence))
        .filter(|address| !known.contains(address))
        .collect();
    let read: Vec<Option<Stored>> = stream::iter(causes)
        .map(|(stream, sequence)| async move { bus.log(&stream).get(sequence).await })
        .buffered(READS)
        .try_collect()
        .await
        .context("read the causes")?;
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

/// The candidates of a placement, or of what could not be placed.
fn weighed(fact: &Stored) -> Option<(String, Vec<Candidate>)> {
    if let Ok(Some(decided)) = fact.event::<PlacementDecided>() {
        return Some((decided.cluster_id, decided.candidates));
    }
    let unplaced = fact.event::<PlacementUnplaced>().ok().flatten()?;
    Some((unplaced.stays_on, unplaced.candidates))
}

/// Candidates with their figures, for people.
fn candidates(chosen: &str, candidates: &[Candidate]) -> String {
    let rows = candidates.iter().map(|c| {
        let could = c.ruled_out.is_empty();
        let verdict = match (c.cluster_id == chosen, could) {
            (true, true) => "chosen".to_owned(),
            (false, true) => "could".to_owned(),
            (_, false) => format!("ruled out: {}", c.ruled_out),
        };
        let score = if could { format!("{:.1}", c.score) } else { "-".to_owned() };
        let parts: Vec<String> = c.parts.iter().map(|(name, points)| format!("{name} {points:.1}")).collect();
        let predicted: Vec<String> = c.predicted.iter().map(|(name, figure)| value(name, *figure)).collect();
        vec![c.cluster_id.clone(), score, parts.join(", "), predicted.join(", "), verdict]
    });
    table(&["cluster", "score", "parts", "predicted", "verdict"], rows.collect())
}

/// The address of what caused a fact, or the time that did; `None` if it came from outside the bus.
fn cause(fact: &Stored) -> Option<String> {
    fact.cause.as_ref().map(|cause| match cause.stream.is_empty() {
        true => cause.id.clone(),
        false => format!("{}:{}", cause.stream, cause.sequence),
    })
}

fn tell(steps: &[Stored]) {
    let width = |text: fn(&Stored) -> String| steps.iter().map(|s| text(s).len()).max().unwrap_or_default();
    let (at, who) = (width(address), width(writer));
    let mut day = String::new();
    for fact in steps {
        let date = date(fact.stored);
        let today = date.split('T').next().unwrap_or_default();
        if today != day {
            line(today);
            today.clone_into(&mut day);
        }
        line(format!(
            "{}  {:<at$}  {:<who$}  {}{}",
            clock(fact.stored),
            address(fact),
            writer(fact),
            describe(fact),
            cause(fact).map(|cause| format!("  (because of {cause})")).unwrap_or_default()
        ));
        if let Some((chosen, list)) = weighed(fact) {
            candidates(&chosen, &list).lines().for_each(|row| line(format!("                  {row}")));
        }
    }
}

fn step(fact: &Stored) -> Json {
    json!({
        "time": fact.stored.to_string(),
        "address": address(fact),
        "who": writer(fact),
        "message": fact.message,
        "says": describe(fact),
        "cause": cause(fact),
        "data": body(fact),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_candidate_has_its_score_its_parts_and_what_ruled_it_out() {
        let fits = Candidate {
            cluster_id: "cloud".into(),
            score: 61.25,
            parts: BTreeMap::from([("balance".into(), 40.0)]),
            ..Default::default()
        };
        let out = Candidate {
            cluster_id: "device".into(),
            ruled_out: "cpuUsage 60.0 % is not below 20".into(),
            ..Default::default()
        };
        let text = candidates("cloud", &[fits, out]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[1].contains("cloud")
                && lines[1].contains("61.2")
                && lines[1].contains("balance 40.0")
                && lines[1].contains("chosen"),
            "{text}"
        );
        assert!(lines[2].contains("device") && lines[2].contains("ruled out: cpuUsage 60.0 %"), "{text}");
    }
}
