//! Decisions, reads, recovery, end to end, take-over: the bus and the decider shell against hand-written code.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mesh_bus::{Bus, Written};
use mesh_core::{Decision, Outgoing};
use mesh_proto::{Event as _, Timestamp, derived_id, intent::IntentSubmitted, validation::IntentAccepted};

use crate::{
    baseline::{self, BATCH},
    report::{Bound, Row},
    rig::{Rig, median, percentile},
};

/// Intents that decide at once when the writer is saturated.
const INTENTS: usize = 4_000;
const STEP_LIMIT: Duration = Duration::from_secs(120);

/// Ratios of the rounds as median, and as text with their spread and the medians of both sides.
pub(crate) struct Rounds {
    unit: &'static str,
    raw: Vec<f64>,
    ours: Vec<f64>,
}

impl Rounds {
    pub(crate) fn new(unit: &'static str) -> Self {
        Self { unit, raw: vec![], ours: vec![] }
    }

    pub(crate) fn add(&mut self, raw: f64, ours: f64) {
        self.raw.push(raw);
        self.ours.push(ours);
    }

    pub(crate) fn row(&self, number: u8, what: &str, bound: Bound) -> Row {
        let mut ratios: Vec<f64> = self.raw.iter().zip(&self.ours).map(|(raw, ours)| ours / raw).collect();
        ratios.sort_by(f64::total_cmp);
        let detail = format!(
            "ours {:.0}, raw {:.0} {}; {} rounds {:.2}..{:.2}",
            middle(&self.ours),
            middle(&self.raw),
            self.unit,
            ratios.len(),
            ratios.first().copied().unwrap_or_default(),
            ratios.last().copied().unwrap_or_default()
        );
        Row::new(number, what, bound, "x", middle(&ratios), detail)
    }
}

fn middle(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

/// Rows 1, 2 and 4: saturated, at rest, and the consume loop over what was written.
pub(super) async fn decisions(full: bool, wanted: &[u8]) -> anyhow::Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let raw = rig.baseline(&["RAW"]).await?;
    let (writer, reader) = (rig.bus("intent-manager").await?, rig.bus("validator").await?);
    let (mut rates, mut rests, mut reads) = (Rounds::new("/s"), Rounds::new("us"), Rounds::new("/s"));
    let (rounds, at_rest, each) = if full { (7, 1_000, 15) } else { (3, 150, 4) };
    // Both sides once unmeasured: connections, files and code are warm after it.
    raw.saturate("RAW", 5).await?;
    baseline::decide_saturated(&writer, "warm", 1_000, 5).await?;
    let mut pull = reader.pull("INTENT", "verdicts").await?;
    let (_, mut position) = baseline::consume(&mut pull, 5_000).await?;
    for round in 0..rounds {
        if wanted.contains(&2) {
            let raw = median(&raw.at_rest("RAW", at_rest).await?);
            let ours = median(&baseline::decide_at_rest(&writer, &format!("rest-{round}"), at_rest).await?);
            baseline::consume(&mut pull, at_rest).await?;
            rests.add(raw.as_secs_f64() * 1e6, ours.as_secs_f64() * 1e6);
        }
        let count = INTENTS * each as usize;
        let by_hand = raw.saturate("RAW", count / BATCH).await?;
        rates.add(by_hand, baseline::decide_saturated(&writer, &format!("full-{round}"), INTENTS, each).await?);
        if wanted.contains(&4) {
            let end = reader.log("INTENT").last_sequence().await?;
            let after = end - count as u64;
            if after < position {
                bail!("the reader is ahead of what was written");
            }
            let by_hand = raw.consume("INTENT", &IntentSubmitted::filter(&[]), after, count).await?;
            let (ours, last) = baseline::consume(&mut pull, count).await?;
            if last != end {
                bail!("read up to {last}, written up to {end}");
            }
            position = last;
            reads.add(by_hand, ours);
        } else {
            baseline::consume(&mut pull, count).await?;
        }
    }
    drop(pull);
    let mut rows = vec![];
    if wanted.contains(&1) {
        rows.push(rates.row(
            1,
            "saturated: decisions of one fact, with id and condition, to an atomic batch by hand",
            Bound::AtLeast(0.4),
        ));
    }
    if wanted.contains(&2) {
        rows.push(rests.row(2, "at rest: one decision to one durable publish by hand (p50)", Bound::AtMost(1.3)));
    }
    if wanted.contains(&4) {
        rows.push(reads.row(4, "consume loop to a pull by hand, explicit acks", Bound::AtLeast(0.7)));
    }
    writer.close().await;
    reader.close().await;
    Ok(rows)
}

/// Row 5: the broker is killed; from its return to the next durable acknowledgement.
pub(super) async fn recovery(full: bool) -> anyhow::Result<Vec<Row>> {
    let mut rig = Rig::start().await?;
    let bus = rig.bus("intent-manager").await?;
    baseline::decide_saturated(&bus, "before", 500, 4).await?;
    let (mut since_back, mut since_kill) = (vec![], vec![]);
    for kill in 0..if full { 20 } else { 3 } {
        rig.server.kill().await.context("kill nats-server")?;
        let killed = Instant::now();
        let waiting = tokio::spawn({
            let bus = bus.clone();
            async move {
                let written = baseline::decide_at_rest(&bus, &format!("kill-{kill}"), 1).await;
                written.map(|_| Instant::now())
            }
        });
        rig.server.restart().await.context("start nats-server again")?;
        let back = Instant::now();
        let acknowledged = tokio::time::timeout(STEP_LIMIT, waiting).await.context("await an acknowledgement")???;
        since_back.push(acknowledged.saturating_duration_since(back));
        since_kill.push(acknowledged.saturating_duration_since(killed));
    }
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let detail = format!(
        "{} kills, worst {:.0} ms; from the kill p50 {:.0} ms",
        since_back.len(),
        ms(percentile(&since_back, 100)),
        ms(median(&since_kill))
    );
    bus.close().await;
    Ok(vec![Row::new(
        5,
        "broker back after a kill -> next durable ack (p50)",
        Bound::AtMost(300.0),
        " ms",
        ms(median(&since_back)),
        detail,
    )])
}

/// Row 3: publish, decide, publish, acknowledge, through the real decider shell.
pub(super) async fn end_to_end(full: bool) -> anyhow::Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let raw = rig.baseline(&["RAW_IN", "RAW_OUT"]).await?;
    let (writer, reader) = (rig.bus("intent-manager").await?, rig.bus("validator").await?);
    let running = rig.decider().await?;
    let durable = reader.pull("INTENT", "verdicts").await?;
    let mut rounds = Rounds::new("/s");
    let (count, each) = if full { (5, 15) } else { (2, 4) };
    raw.end_to_end("RAW_IN", "RAW_OUT", 2).await?;
    through(&writer, &reader, &durable, "warm", 500, 4).await?;
    for round in 0..count {
        let by_hand = raw.end_to_end("RAW_IN", "RAW_OUT", INTENTS * each as usize / BATCH).await?;
        rounds.add(by_hand, through(&writer, &reader, &durable, &format!("all-{round}"), INTENTS, each).await?);
    }
    drop(durable);
    running.stop().await;
    writer.close().await;
    reader.close().await;
    let what = "end to end: publish, decide, publish, ack, to publish, pull, publish, ack in batches by hand";
    Ok(vec![rounds.row(3, what, Bound::AtLeast(0.6))])
}

/// Inputs a second, until each is decided, its fact stored and its input acknowledged.
async fn through(
    writer: &Bus,
    reader: &Bus,
    durable: &mesh_bus::Pull,
    prefix: &str,
    intents: usize,
    each: u64,
) -> anyhow::Result<f64> {
    let facts = reader.log("VALIDATION");
    let end = facts.last_sequence().await? + intents as u64 * each;
    let begun = Instant::now();
    baseline::decide_saturated(writer, prefix, intents, each).await?;
    let inputs = reader.log("INTENT").last_sequence().await?;
    while facts.last_sequence().await? < end || durable.info().await?.ack_floor < inputs {
        if begun.elapsed() > STEP_LIMIT {
            bail!("not all inputs are decided within {} s", STEP_LIMIT.as_secs());
        }
        // Asking costs the server as well: seldom enough not to be seen in a round of seconds.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(intents as f64 * each as f64 / begun.elapsed().as_secs_f64())
}

/// Row 8: an entity's first question after a take-over, beside its second, when it is in memory.
pub(super) async fn take_over(full: bool) -> anyhow::Result<Vec<Row>> {
    const ENTITIES: usize = 2_000;
    let each = if full { 500 } else { 50 };
    let rig = Rig::start().await?;
    let (writer, own) = (rig.bus("intent-manager").await?, rig.bus("validator").await?);
    let mut tasks = tokio::task::JoinSet::new();
    for entity in 0..ENTITIES {
        tasks.spawn(accepted(own.clone(), entity, each));
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    // One replica reads all and saves what it knows; another takes over.
    let first = rig.decider().await?;
    first.stop().await;
    let begun = Instant::now();
    let second = rig.decider().await?;
    let joined = begun.elapsed();
    let facts = own.log("VALIDATION");
    let mut tail = facts.tail("validation.>", facts.last_sequence().await? + 1);
    let (mut loads, mut loaded) = (vec![], vec![]);
    for entity in 0..if full { 300 } else { 60 } {
        for (version, took) in [(1, &mut loads), (2, &mut loaded)] {
            let intent_id = format!("held-{entity}");
            let last =
                writer.log("INTENT").last(&format!("intent.*.*.local.{intent_id}")).await?.map_or(0, |s| s.sequence);
            let question = baseline::decision(&intent_id, version, last)?;
            let asked = question.messages.first().map(|m| m.id.clone()).unwrap_or_default();
            let begun = Instant::now();
            if !matches!(writer.writer("INTENT").write(question).await?, Written::Stored { .. }) {
                bail!("a question was not stored");
            }
            loop {
                let answer = tokio::time::timeout(STEP_LIMIT, tail.next()).await.context("await the answer")??;
                if answer.cause.as_ref().is_some_and(|cause| cause.id == asked) {
                    let knows = answer.event::<IntentAccepted>()?.map_or(0, |fact| fact.version);
                    if knows != each + version {
                        bail!("the entity was not loaded: its next version is {knows}, not {}", each + version);
                    }
                    break;
                }
            }
            took.push(begun.elapsed());
        }
    }
    second.stop().await;
    writer.close().await;
    own.close().await;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let detail = format!(
        "{} facts of {ENTITIES} entities; first question p50 {:.2} ms, second {:.2} ms; joined in {:.0} ms",
        ENTITIES as u64 * each,
        ms(median(&loads)),
        ms(median(&loaded)),
        ms(joined)
    );
    let extra = (ms(median(&loads)) - ms(median(&loaded))).max(0.0);
    Ok(vec![Row::new(
        8,
        "loading one entity on take-over, beyond reading the tail",
        Bound::AtMost(2.0),
        " ms",
        extra,
        detail,
    )])
}

/// Facts of one entity of the decider, one decision each.
async fn accepted(own: Bus, entity: usize, each: u64) -> anyhow::Result<()> {
    let intent_id = format!("held-{entity}");
    let mut expected = 0;
    for version in 1..=each {
        let fact = IntentAccepted { owner: "local".into(), intent_id: intent_id.clone(), version };
        let id = derived_id(&["bench", &intent_id, &version.to_string()]);
        let message = Outgoing::new(&fact, id, Timestamp::from_millis(1_795_318_929_462))?;
        let decision =
            Decision { entity: format!("validation.*.*.local.{intent_id}"), expected, messages: vec![message] };
        match own.writer("VALIDATION").write(decision).await? {
            Written::Stored { last } => expected = last,
            Written::Stale { last } => bail!("somebody else wrote {last:?} of {intent_id}"),
        }
    }
    Ok(())
}
