//! `bench telemetry --only stores`: what a database takes through `mesh-store`, with its positions, beside a bare loop over
//! its driver that writes the same batches.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use mesh_proto::Timestamp;
use mesh_store::{
    Applied, Change, Document, Entry, Point, Points, Version, influx_lines,
    memory::{DocumentLimits, WindowLimits},
    open,
};
use mesh_test::Kind;

use super::{
    by_hand::{self, Plain},
    servers::{Rounds, database, patiently, timed},
};
use crate::report::Row;

const STREAM: &str = "BENCH";
/// Facts of a batch, as a service applies them.
const BATCH: usize = 1_000;
/// Bytes of a document, and of a version.
const BODY_BYTES: usize = 400;
/// When all begins, milliseconds since 1970.
const BEGIN_MS: i64 = 1_795_318_800_000;

/// How much is written in a round.
struct Size {
    batches: usize,
    rounds: usize,
}

/// A row for each database that is installed.
///
/// # Errors
/// When one of them fails.
pub(crate) async fn measure(full: bool) -> anyhow::Result<Vec<Row>> {
    let size = if full { Size { batches: 20, rounds: 9 } } else { Size { batches: 3, rounds: 3 } };
    let mut rows = vec![];
    rows.extend(mongo(&size).await?);
    rows.extend(influx(&size).await?);
    rows.extend(victoria(&size).await?);
    rows.extend(cassandra(&size).await?);
    Ok(rows)
}

fn body(number: usize) -> Vec<u8> {
    (0..BODY_BYTES).map(|byte| (byte * 31 + number * 17) as u8).collect()
}

/// Each document twice, in one batch and in the next: half of the writes are new ones, half go over one that is there. Both
/// sides are safe from a crash of the server at the end of each batch: by hand by the journal, ours by its position.
async fn mongo(size: &Size) -> anyhow::Result<Option<Row>> {
    let Some(server) = database("writes to MongoDB", Kind::Mongod).await else { return Ok(None) };
    let url = server.url("bench");
    let raw = by_hand::Mongo::connect(&url).await?;
    let store = open(&url)?;
    let id = |number: usize| format!("workload/i{:06}", number / BATCH / 2 * BATCH + number % BATCH);
    let indexes = |number: usize| {
        [("kind", "workload".to_owned()), ("owner", format!("o{}", number % 50)), ("phase", "running".to_owned())]
    };
    let by_hand = async |round: usize| {
        let name = format!("raw{round}");
        raw.make(&name).await?;
        let documents = |batch: usize| {
            let plain = |number| Plain {
                id: id(number),
                indexes: indexes(number).map(|(name, value)| format!("{name}={value}")).to_vec(),
                body: body(number),
            };
            batch_of(batch).map(plain).collect::<Vec<_>>()
        };
        let batches: Vec<Vec<Plain>> = (0..size.batches).map(documents).collect();
        timed(async {
            for batch in batches {
                raw.write(&name, batch).await?;
            }
            Ok(())
        })
        .await
    };
    let ours = async |round: usize| {
        let documents = store.documents(&format!("ours{round}"), DocumentLimits::default())?;
        documents.position(STREAM).await?;
        let changes = |batch: usize| {
            let put = |number: usize| {
                let indexes = indexes(number).map(|(name, value)| (name.to_owned(), value)).into();
                let document = Document { id: id(number), indexes, body: body(number).into() };
                (at(number), Change::Put(document))
            };
            batch_of(batch).map(put).collect::<Vec<_>>()
        };
        let batches: Vec<Vec<(Applied, Change)>> = (0..size.batches).map(changes).collect();
        timed(async {
            for (batch, changes) in batches.into_iter().enumerate() {
                documents.write(changes).await?;
                documents.advance(start_of(batch), &end_of(batch)).await?;
            }
            Ok(())
        })
        .await
    };
    let rounds = Rounds::take(size.rounds, by_hand, ours).await?;
    Ok(Some(rounds.rate_row(20, "writes to MongoDB, to a bare loop", size.batches * BATCH, "documents")))
}

/// Numbers of a batch.
fn batch_of(batch: usize) -> std::ops::Range<usize> {
    batch * BATCH..(batch + 1) * BATCH
}

fn at(number: usize) -> Applied {
    Applied::new(STREAM, number as u64 + 1)
}

/// The position before a batch.
fn start_of(batch: usize) -> u64 {
    (batch * BATCH) as u64
}

fn end_of(batch: usize) -> Applied {
    at((batch + 1) * BATCH - 1)
}

/// Values of a sample of an instance.
const VALUES: [&str; 10] = [
    "cpu_milli",
    "cpu_percent",
    "generation",
    "interval_seconds",
    "io_read_rate",
    "io_write_rate",
    "memory_bytes",
    "provenance",
    "replicas_running",
    "restarts",
];
/// Instances that are sampled each second; facts bring ten samples each.
const INSTANCES: usize = 500;
const SAMPLES: usize = 10;

fn value(number: usize, name: usize) -> f64 {
    ((number * 31 + name * 7) % 1_000) as f64 / 8.0
}

/// The points of a batch: ten for each fact.
fn points(batch: usize) -> Vec<(Applied, Points)> {
    let of = |number: usize| {
        let sample = |number: usize| Point {
            at: Timestamp::from_millis(at_ms(number)),
            labels: [("cluster_id".to_owned(), "edge".to_owned()), ("owner".to_owned(), "local".to_owned())].into(),
            values: VALUES.iter().enumerate().map(|(name, text)| ((*text).to_owned(), value(number, name))).collect(),
        };
        let points = |first: usize| {
            (first..first + SAMPLES).map(|number| Points::of(instance(number), [sample(number)])).collect::<Vec<_>>()
        };
        points(number * SAMPLES).into_iter().map(move |points| (at(number), points))
    };
    batch_of(batch).flat_map(of).collect()
}

fn instance(number: usize) -> String {
    format!("instance-{:04}", number % INSTANCES)
}

fn at_ms(number: usize) -> i64 {
    BEGIN_MS + (number / INSTANCES) as i64 * 1_000
}

/// The same points as lines, made by hand, 5,000 a request.
fn lines(batch: usize, measurement: &str, unit: i64) -> Vec<String> {
    let numbers: Vec<usize> = batch_of(batch).flat_map(|number| number * SAMPLES..(number + 1) * SAMPLES).collect();
    let request = |numbers: &[usize]| {
        let mut text = String::with_capacity(numbers.len() * 250);
        for number in numbers {
            let _ = write!(text, "{measurement},series={},cluster_id=edge,owner=local ", instance(*number));
            for (place, name) in VALUES.iter().enumerate() {
                let comma = if place == 0 { "" } else { "," };
                let _ = write!(text, "{comma}{name}={}", value(*number, place));
            }
            let _ = writeln!(text, " {}", at_ms(*number) * unit);
        }
        text
    };
    numbers.chunks(5_000).map(request).collect()
}

async fn influx(size: &Size) -> anyhow::Result<Option<Row>> {
    let Some(server) = database("writes to InfluxDB", Kind::Influxd).await else { return Ok(None) };
    let raw = by_hand::Influx::new(server.address(), "by-hand");
    raw.make().await?;
    let series = open(&server.url("bench"))?.series("ours", WindowLimits::default())?;
    series.position(STREAM).await?;
    let batches = size.batches.div_ceil(2);
    let by_hand = async |round: usize| {
        timed(async {
            for batch in round * batches..(round + 1) * batches {
                for lines in lines(batch, "raw", 1) {
                    raw.write(lines).await?;
                }
            }
            Ok(())
        })
        .await
    };
    let ours = async |round: usize| {
        let first = round * batches;
        let all: Vec<Vec<(Applied, Points)>> = (first..first + batches).map(points).collect();
        timed(async {
            for (batch, points) in (first..).zip(all) {
                series.write(points).await?;
                series.advance(start_of(batch), &end_of(batch)).await?;
            }
            Ok(())
        })
        .await
    };
    let rounds = Rounds::take(size.rounds, by_hand, ours).await?;
    let count = batches * BATCH * SAMPLES * VALUES.len();
    Ok(Some(rounds.rate_row(21, "writes to InfluxDB, to a bare loop", count, "values")))
}

/// VictoriaMetrics takes the lines that are for InfluxDB. It keeps no positions: only the lines are compared.
async fn victoria(size: &Size) -> anyhow::Result<Option<Row>> {
    let Some(server) = database("writes to VictoriaMetrics", Kind::Victoria).await else { return Ok(None) };
    let raw = by_hand::Influx::new(server.address(), "bench");
    let batches = size.batches.div_ceil(2);
    let by_hand = async |round: usize| {
        timed(async {
            for batch in round * batches..(round + 1) * batches {
                for lines in lines(batch, "raw", 1_000_000) {
                    raw.write_nanos(lines).await?;
                }
            }
            Ok(())
        })
        .await
    };
    let ours = async |round: usize| {
        let first = round * batches;
        let all: Vec<Vec<(Applied, Points)>> = (first..first + batches).map(points).collect();
        timed(async {
            for points in all {
                for points in points.chunks(5_000) {
                    raw.write_nanos(influx_lines("ours", points.iter().map(|(_, points)| points))).await?;
                }
            }
            Ok(())
        })
        .await
    };
    let rounds = Rounds::take(size.rounds, by_hand, ours).await?;
    let count = batches * BATCH * SAMPLES * VALUES.len();
    Ok(Some(rounds.rate_row(22, "the same to VictoriaMetrics, lines alone", count, "values")))
}

/// Things with a history.
const THINGS: usize = 2_000;

/// New things each round: their first versions are written too.
async fn cassandra(size: &Size) -> anyhow::Result<Option<Row>> {
    let Some(server) = database("writes to Cassandra", Kind::Cassandra).await else { return Ok(None) };
    let raw = by_hand::Cassandra::connect(server.address()).await?;
    let store = open(&server.url("bench"))?;
    let keys: Vec<Arc<str>> = (0..THINGS).map(|thing| format!("workload/i{thing:05}").into()).collect();
    let at_ms = |number: usize| BEGIN_MS + (number / THINGS) as i64 * 1_000;
    let by_hand = async |round: usize| {
        let row = |number: usize| by_hand::Row {
            key: keys[number % THINGS].clone(),
            at_nanos: at_ms(number) * 1_000_000,
            version: at_ms(number),
            body: body(number),
        };
        let batches: Vec<Vec<by_hand::Row>> =
            (0..size.batches).map(|batch| batch_of(batch).map(row).collect()).collect();
        timed(async {
            for batch in batches {
                patiently(async || raw.write(&format!("raw{round}"), &batch).await).await?;
            }
            Ok(())
        })
        .await
    };
    let ours = async |round: usize| {
        let history = store.history(&format!("ours{round}"), WindowLimits::default(), Duration::ZERO)?;
        history.position(STREAM).await?;
        let entry = |number: usize| {
            let (at_ms, body) = (at_ms(number), body(number).into());
            let version = Version { version: at_ms.unsigned_abs(), at: Timestamp::from_millis(at_ms), body };
            (at(number), Entry { key: keys[number % THINGS].to_string(), version })
        };
        let batches: Vec<Vec<(Applied, Entry)>> =
            (0..size.batches).map(|batch| batch_of(batch).map(entry).collect()).collect();
        timed(async {
            for (batch, entries) in batches.into_iter().enumerate() {
                patiently(async || history.write(entries.clone()).await).await?;
                patiently(async || history.advance(start_of(batch), &end_of(batch)).await).await?;
            }
            Ok(())
        })
        .await
    };
    let rounds = Rounds::take(size.rounds, by_hand, ours).await?;
    Ok(Some(rounds.rate_row(23, "writes to Cassandra, to a bare loop", size.batches * BATCH, "versions")))
}
