//! `why`: the causal chain of an intent, an instance, a workload document, a cluster, or one message.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use mesh_bus::Bus;
use mesh_core::Stored;
use mesh_proto::{
    placement::{Candidate, PlacementDecided, PlacementUnplaced},
    shown,
};
use mesh_why::{
    address, body,
    describe::{describe, value, writer},
};
use mesh_why::{cause, chain, gather, with_causes};
use serde_json::{Value as Json, json};

use crate::{
    context::Context,
    output::{self, Format, clock, date, line, table},
};

/// Options of `why`.
#[derive(Debug, Args)]
pub struct WhyOptions {
    /// An intent, an instance, a workload (`name` or `name@version`), a cluster, or one message as `STREAM:SEQUENCE`.
    pub id: String,
    /// Only backwards from the last fact, cause by cause.
    #[arg(long)]
    pub chain: bool,
    /// Newest steps shown.
    #[arg(long, default_value_t = 200)]
    pub steps: usize,
}

/// Tells why.
pub async fn run(context: &Context<'_>, options: WhyOptions) -> anyhow::Result<ExitCode> {
    let client = context.client().await?;
    let (bus, id) = (client.bus(), options.id.as_str());
    let mut steps = match one(bus, id).await? {
        Some(fact) => {
            let mut steps = chain(bus, fact).await.context("read the causes")?;
            steps.reverse();
            steps
        }
        None => {
            let gathered = gather(bus, &context.owner, id).await?;
            if options.chain {
                // The last fact of its own; later facts of others are beside the question.
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
            print(&steps);
        }
        format => output::show(format, &steps.iter().map(step).collect::<Json>(), &[], Vec::new),
    }
    Ok(ExitCode::SUCCESS)
}

/// The message of an address `STREAM:SEQUENCE`; `None` for any other id.
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
        let predicted = c.predicted.iter().map(|(name, figure)| value(name, *figure));
        let predicted: Vec<String> = predicted.chain(c.unpredicted.iter().cloned()).collect();
        vec![c.cluster_id.clone(), score, parts.join(", "), predicted.join(", "), verdict]
    });
    table(&["cluster", "score", "parts", "predicted", "verdict"], rows.collect())
}

fn print(steps: &[Stored]) {
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
            shown::line(&describe(fact)),
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
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn each_candidate_has_its_score_its_parts_and_what_ruled_it_out() {
        let fits = Candidate {
            cluster_id: "cloud".into(),
            score: 61.25,
            parts: BTreeMap::from([("balance".into(), 40.0)]),
            unpredicted: vec!["errorRate: nothing predicts it".into()],
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
                && lines[1].contains("errorRate: nothing predicts it")
                && lines[1].contains("chosen"),
            "{text}"
        );
        assert!(lines[2].contains("device") && lines[2].contains("ruled out: cpuUsage 60.0 %"), "{text}");
    }
}
