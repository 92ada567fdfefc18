//! `bench telemetry --only memory`: what a collector holds with 10,000 series, and whether that grows.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_proto::{Event as _, telemetry::Packed};

use super::flow::{Kind, Load, Plant, STEP_LIMIT, Site, now};
use crate::report::{Bound, Row, held, most_held};

/// Clusters, and series of each.
const CLUSTERS: usize = 10;
const EACH: usize = 1_000;
/// Between two values of a series, milliseconds.
const EVERY_MS: u64 = 1_000;
/// How long a round of packs may take to be stored before the next is sent.
const ROUND_LIMIT: Duration = Duration::from_secs(1);
/// How far back values of the past are sent, so that the window of what is kept raw is full at the start. The collector
/// takes in nothing older than ten minutes.
const PAST_MS: i64 = 590_000;

/// The rows.
///
/// # Errors
/// When a program does not start, or what was sent is not kept.
pub(crate) async fn measure(full: bool) -> anyhow::Result<Vec<Row>> {
    let plant = Plant::start().await?;
    let raw = plant.rig.baseline(&[]).await?;
    let collector = plant.collector().await?;
    let pid = collector.pid()?.to_string();
    let mut load = Load::new(Kind::Readings, "m", CLUSTERS, EACH);
    // Ten minutes' worth, or half a minute's.
    let past_ms = if full { PAST_MS } else { 30_000 };
    let (begun, from) = (Instant::now(), now().plus_millis(-past_ms));
    let early = from.plus_millis(-2_000);
    load.begin(&plant.router, Site::Mesh, early, async || Ok(raw.end(Packed::STREAM).await?)).await?;
    for second in 0..past_ms / EVERY_MS as i64 {
        let before = raw.end(Packed::STREAM).await?;
        for _ in 0..CLUSTERS {
            load.send(&plant.router, Site::Mesh, from.plus_millis(second * EVERY_MS as i64)).await?;
        }
        // What does not fit between two processes is dropped there: no more than one round is under way.
        let round = Instant::now();
        while raw.end(Packed::STREAM).await? < before + CLUSTERS as u64 && round.elapsed() < ROUND_LIMIT {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    while collector.kept().await? < raw.end(Packed::STREAM).await? {
        ensure!(begun.elapsed() < 10 * STEP_LIMIT, "what was stored does not come to the series");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let length = Duration::from_secs(if full { 600 } else { 6 });
    let (mut every, mut looks) = (tokio::time::interval(Duration::from_millis(EVERY_MS)), vec![]);
    let begun = Instant::now();
    while begun.elapsed() < length {
        every.tick().await;
        for _ in 0..CLUSTERS {
            load.send(&plant.router, Site::Mesh, now()).await?;
        }
        looks.push(held(&pid).context("the collector has ended")?);
    }
    let taken = collector.taken(Kind::Readings).await?;
    ensure!(taken > 0, "nothing was taken in");
    // Means over a quarter: one look depends on what was just freed.
    let quarter = (looks.len() / 4).max(1);
    let mean = |looks: &[f64]| looks.iter().sum::<f64>() / looks.len().max(1) as f64;
    let (first, last) = (mean(&looks[..quarter]), mean(&looks[looks.len() - quarter..]));
    let most = most_held(&pid).context("the collector has ended")?;
    let series = CLUSTERS * EACH;
    let detail = format!("{series} series, {taken} values taken in; {last:.0} MiB at the end");
    let growth = format!(
        "{first:.1} MiB in the first quarter of {} s, {last:.1} MiB in the last; {} s of values before them",
        length.as_secs(),
        past_ms / 1_000
    );
    Ok(vec![
        Row::new(17, "collector with 10,000 series, held at most", Bound::AtMost(200.0), " MiB", most, detail),
        Row::new(18, "collector, last quarter to first", Bound::AtMost(1.05), "x", last / first, growth),
    ])
}
