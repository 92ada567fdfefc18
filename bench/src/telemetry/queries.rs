//! `bench telemetry --only queries`: questions about series, documents and histories, each beside the same asked by hand.

use std::{
    collections::BTreeMap,
    hint::black_box,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::ensure;
use mesh_proto::Timestamp;
use mesh_store::{
    Applied, Change, Columns, Document, Entry, Point, Points, Query, Range, Series, Store, Version,
    memory::{DocumentLimits, WindowLimits},
    open,
};
use mesh_test::Kind;

use super::{
    by_hand::{self, Plain},
    servers::{Rounds, database, patiently, timed},
};
use crate::report::Row;

/// When all ends, milliseconds since 1970: the whole of an hour.
const END_MS: i64 = 1_795_320_000_000;
/// Memory of series by five minutes, bytes: the collector's share.
const BYTES_MAX: u64 = 32 << 20;

/// One question about series of one value.
struct Question {
    what: &'static str,
    series: usize,
    points: usize,
    step_ms: i64,
    /// Points of each series that are there and not asked for.
    older: usize,
}

const QUESTIONS: [Question; 3] = [
    Question { what: "2 h of one workload, 1 s", series: 1, points: 7_200, step_ms: 1_000, older: 1_000 },
    Question { what: "2 h of 100 workloads, 1 min", series: 100, points: 120, step_ms: 60_000, older: 240 },
    Question { what: "48 h of 1,000 series, 5 min", series: 1_000, points: 576, step_ms: 300_000, older: 0 },
];

impl Question {
    fn begin_ms(&self) -> i64 {
        END_MS - (self.points as i64 - 1) * self.step_ms
    }

    fn names(&self) -> Vec<String> {
        (0..self.series).map(|number| format!("instance-{number:04}")).collect()
    }

    /// Times in milliseconds, with values.
    fn data(&self, series: usize) -> impl Iterator<Item = (i64, f64)> {
        let (from_ms, step_ms) = (self.begin_ms() - self.older as i64 * self.step_ms, self.step_ms);
        (0..self.points + self.older).map(move |number| {
            let value = ((number * 37 + series * 11) % 4_001) as f64 / 16.0;
            (from_ms + number as i64 * step_ms, value)
        })
    }

    fn range(&self) -> Range {
        Range { from: Timestamp::from_millis(self.begin_ms()), to: Timestamp::from_millis(END_MS), limit: 10_000 }
    }

    fn count(&self) -> usize {
        self.series * self.points
    }

    /// Fills a set of series, each of one value.
    async fn fill(&self, store: &dyn Series) -> anyhow::Result<()> {
        let applied = Applied::new("BENCH", 1);
        for (number, series) in self.names().into_iter().enumerate() {
            let point = |(at_ms, value)| Point {
                at: Timestamp::from_millis(at_ms),
                labels: BTreeMap::from([("cluster_id".to_owned(), "edge".to_owned())]),
                values: BTreeMap::from([("cpu_milli".to_owned(), value)]),
            };
            store.write(vec![(applied.clone(), Points::of(series, self.data(number).map(point)))]).await?;
        }
        Ok(())
    }

    /// Is the answer what was filled in?
    fn check(&self, found: &[Vec<Columns>]) -> anyhow::Result<()> {
        ensure!(found.len() == self.series, "{}: {} series", self.what, found.len());
        for (number, columns) in found.iter().enumerate() {
            let found: Vec<(i64, f64)> =
                columns.iter().flat_map(|of| of.of("cpu_milli")).map(|(at, value)| (at / 1_000_000, value)).collect();
            let expected: Vec<(i64, f64)> = self.data(number).skip(self.older).collect();
            ensure!(found == expected, "{}: series {number} has {} points", self.what, found.len());
        }
        Ok(())
    }
}

/// The rows of each engine that is installed.
///
/// # Errors
/// When one of them fails.
pub(crate) async fn measure(full: bool) -> anyhow::Result<Vec<Row>> {
    let rounds = if full { 15 } else { 5 };
    let mut rows = vec![];
    for (number, question) in (30..).zip(&QUESTIONS) {
        rows.push(embedded(number, question, rounds).await?);
    }
    if let Some(server) = database("questions to InfluxDB", Kind::Influxd).await {
        let by_hand = by_hand::Influx::new(server.address(), "bench");
        let store = open(&server.url("bench"))?;
        // Flux takes its time.
        let rounds = if full { 7 } else { 1 };
        for (number, question) in (33..).zip(&QUESTIONS) {
            rows.push(influx(number, question, &by_hand, &store, rounds).await?);
        }
    }
    rows.extend(mongo(rounds).await?);
    rows.extend(cassandra(rounds).await?);
    Ok(rows)
}

/// A sorted list for each series, under one lock.
#[derive(Default)]
struct Lists(Mutex<BTreeMap<String, Vec<(i64, f64)>>>);

impl Lists {
    fn ask(&self, series: &[String], from_ms: i64, to_ms: i64) -> Vec<Vec<(i64, f64)>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |name: &String| {
            let Some(list) = all.get(name) else { return vec![] };
            let from = list.partition_point(|(at, _)| *at < from_ms);
            let to = list.partition_point(|(at, _)| *at <= to_ms);
            list[from..to].to_vec()
        };
        series.iter().map(of).collect()
    }
}

async fn embedded(number: u8, question: &Question, rounds: usize) -> anyhow::Result<Row> {
    let store = open("memory:")?;
    let limits = WindowLimits { items_max: 10_000, bytes_max: BYTES_MAX, ..WindowLimits::default() };
    let series = store.series("telemetry", limits)?;
    question.fill(&*series).await?;
    let (names, lists) = (question.names(), Lists::default());
    for (number, name) in names.iter().enumerate() {
        let mut all = lists.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.clone(), question.data(number).collect());
    }
    let asked: Vec<&str> = names.iter().map(String::as_str).collect();
    question.check(&series.columns(&asked, question.range()).await?)?;
    // Turns are short, so that what else runs on the machine meets both sides.
    let (repeats, rounds) = ((20_000 / question.count()).max(1), rounds * 20);
    let by_hand = async |_| {
        let begun = Instant::now();
        for _ in 0..repeats {
            black_box(lists.ask(&names, question.begin_ms(), END_MS));
        }
        anyhow::Ok(begun.elapsed().as_secs_f64())
    };
    let ours = async |_| {
        timed(async {
            for _ in 0..repeats {
                black_box(series.columns(&asked, question.range()).await?);
            }
            Ok(())
        })
        .await
    };
    let taken = Rounds::take(rounds, by_hand, ours).await?;
    let what = format!("embedded, {}, to sorted lists", question.what);
    Ok(taken.time_row(number, &what, repeats, &format!("{} values", question.count())))
}

async fn influx(
    number: u8,
    question: &Question,
    by_hand: &by_hand::Influx,
    store: &Store,
    rounds: usize,
) -> anyhow::Result<Row> {
    let name = format!("telemetry{number}");
    let series = store.series(&name, WindowLimits::default())?;
    series.position("BENCH").await?;
    question.fill(&*series).await?;
    let names = question.names();
    let asked: Vec<&str> = names.iter().map(String::as_str).collect();
    question.check(&series.columns(&asked, question.range()).await?)?;
    // Whoever knows that nothing else is there need not name a thousand series.
    let of = if names.len() == 1 { format!(" and r.series == \"{}\"", names[0]) } else { String::new() };
    let flux = format!(
        "from(bucket: \"bench\") |> range(start: time(v: {}), stop: time(v: {})) |> filter(fn: (r) => \
         r._measurement == \"{name}\" and r._field == \"cpu_milli\"{of}) |> keep(columns: [\"_time\", \"_value\", \"series\"])",
        question.begin_ms() * 1_000_000,
        END_MS * 1_000_000 + 1,
    );
    let by_hand = async |_| {
        timed(async {
            let found = by_hand.ask(flux.clone()).await?;
            ensure!(found.len() == question.count(), "{} values by hand", found.len());
            Ok(())
        })
        .await
    };
    let ours = async |_| timed(async { Ok(black_box(series.columns(&asked, question.range()).await?)) }).await;
    let taken = Rounds::take(rounds, by_hand, ours).await?;
    let what = format!("InfluxDB, {}, to Flux by hand", question.what);
    Ok(taken.time_row(number, &what, 1, &format!("{} values", question.count())))
}

/// Documents that are there, and of a page.
const DOCUMENTS: usize = 20_000;
const PAGE: usize = 1_000;

async fn mongo(rounds: usize) -> anyhow::Result<Option<Row>> {
    let Some(server) = database("questions to MongoDB", Kind::Mongod).await else { return Ok(None) };
    let url = server.url("bench");
    let raw = by_hand::Mongo::connect(&url).await?;
    raw.make("raw").await?;
    let documents = open(&url)?.documents("ours", DocumentLimits::default())?;
    documents.position("BENCH").await?;
    let numbers: Vec<usize> = (0..DOCUMENTS).collect();
    let (id, body) =
        (|number: usize| format!("workload/i{number:06}"), |number: usize| vec![(number % 251) as u8; 400]);
    for numbers in numbers.chunks(PAGE) {
        let plain = |number: &usize| Plain {
            id: id(*number),
            indexes: vec![format!("owner=o{}", number % 5)],
            body: body(*number),
        };
        raw.write("raw", numbers.iter().map(plain).collect()).await?;
        let put = |number: &usize| {
            let indexes = BTreeMap::from([("owner".to_owned(), format!("o{}", number % 5))]);
            let document = Document { id: id(*number), indexes, body: body(*number).into() };
            (Applied::new("BENCH", 1), Change::Put(document))
        };
        documents.write(numbers.iter().map(put).collect()).await?;
    }
    let query =
        Query { equal: BTreeMap::from([("owner".to_owned(), "o3".to_owned())]), limit: PAGE, ..Query::default() };
    let by_hand = async |_| {
        timed(async {
            let found = raw.page("raw", "owner=o3", PAGE as i64).await?;
            ensure!(found.len() == PAGE, "{} documents by hand", found.len());
            Ok(())
        })
        .await
    };
    let ours = async |_| {
        timed(async {
            let found = documents.list(&query).await?;
            ensure!(found.documents.len() == PAGE, "{} documents", found.documents.len());
            Ok(())
        })
        .await
    };
    let taken = Rounds::take(rounds, by_hand, ours).await?;
    let of = format!("one owner of {DOCUMENTS} documents");
    Ok(Some(taken.time_row(36, "MongoDB, a page of 1,000 documents, to a find by hand", 1, &of)))
}

/// Versions of a thing: two hours, one a second.
const VERSIONS: i64 = 7_200;

async fn cassandra(rounds: usize) -> anyhow::Result<Option<Row>> {
    let Some(server) = database("questions to Cassandra", Kind::Cassandra).await else { return Ok(None) };
    let raw = by_hand::Cassandra::connect(server.address()).await?;
    let history = open(&server.url("bench"))?.history("ours", WindowLimits::default(), Duration::ZERO)?;
    history.position("BENCH").await?;
    let key: Arc<str> = "workload/i".into();
    let body = |number: i64| vec![(number % 251) as u8; 400];
    let at_ms = |number: i64| END_MS - (VERSIONS - number) * 1_000;
    let row = |number: i64| by_hand::Row {
        key: key.clone(),
        at_nanos: at_ms(number) * 1_000_000,
        version: at_ms(number),
        body: body(number),
    };
    let rows: Vec<by_hand::Row> = (0..VERSIONS).map(row).collect();
    patiently(async || raw.write("raw", &rows).await).await?;
    let entry = |number: i64| {
        let (at, body) = (Timestamp::from_millis(at_ms(number)), body(number).into());
        let version = Version { version: at_ms(number).unsigned_abs(), at, body };
        (Applied::new("BENCH", 1), Entry { key: key.to_string(), version })
    };
    let entries: Vec<(Applied, Entry)> = (0..VERSIONS).map(entry).collect();
    patiently(async || history.write(entries.clone()).await).await?;
    let hour = |ms: i64| ms.div_euclid(3_600_000);
    let hours: Vec<i64> = (hour(at_ms(0))..=hour(at_ms(VERSIONS - 1))).rev().collect();
    let by_hand = async |_| {
        timed(async {
            let found = raw.list("raw", &key, &hours).await?;
            ensure!(found.len() == VERSIONS as usize, "{} versions by hand", found.len());
            Ok(())
        })
        .await
    };
    let ours = async |_| {
        timed(async {
            let found = history.list(&key, None, VERSIONS as usize).await?;
            ensure!(found.len() == VERSIONS as usize, "{} versions", found.len());
            Ok(())
        })
        .await
    };
    let taken = Rounds::take(rounds, by_hand, ours).await?;
    let of = format!("{VERSIONS} versions of one thing");
    Ok(Some(taken.time_row(37, "Cassandra, 2 h of a history, to selects by hand", 1, &of)))
}
