//! Each database passes the suite that the embedded engine passes, survives being away, slow, emptied and killed, and
//! refuses the schema of a newer release. Real servers of the test's own; a suite whose server is not installed says so.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "real servers are waited for")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use mesh_proto::Timestamp;
use mesh_store::{
    Applied, Change, Document, Documents, Entry, Error, History, Point, Points, Query, Range, Series, Store, Version,
    memory::{DocumentLimits, WindowLimits},
    open, suite,
};
use mesh_test::{Database, Kind, Wire};

/// Scripts of the suite that are played against a server.
fn scripts() -> u64 {
    if mesh_test::is_full() { suite::SCRIPTS } else { 3 }
}

/// A name that no collection had before.
fn fresh(prefix: &str) -> String {
    static NAMES: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}", NAMES.fetch_add(1, Relaxed))
}

fn documents(store: &Store, name: &str) -> Arc<dyn Documents> {
    store.documents(name, DocumentLimits::default()).unwrap()
}

fn series(store: &Store, name: &str) -> Arc<dyn Series> {
    store.series(name, WindowLimits::default()).unwrap()
}

fn history(store: &Store, name: &str) -> Arc<dyn History> {
    store.history(name, WindowLimits::default(), Duration::ZERO).unwrap()
}

fn at(number: u64) -> Applied {
    Applied::new("STREAM", number)
}

fn put(number: u64) -> (Applied, Change) {
    let body = number.to_string().into();
    (at(number), Change::Put(Document { id: format!("d{number:04}"), body, ..Default::default() }))
}

fn points(number: u64) -> (Applied, Points) {
    let values = [("value".to_owned(), number as f64)].into();
    let point = Point { at: Timestamp::from_millis(number as i64), values, ..Default::default() };
    (at(number), Points::of("s", [point]))
}

fn entry(number: u64) -> (Applied, Entry) {
    let version =
        Version { version: number, at: Timestamp::from_millis(number as i64), body: number.to_string().into() };
    (at(number), Entry { key: "k".into(), version })
}

/// One of the three kinds, as far as these tests use it: facts that each leave one thing behind.
#[derive(Clone)]
enum View {
    Documents(Arc<dyn Documents>),
    Series(Arc<dyn Series>),
    History(Arc<dyn History>),
}

impl View {
    async fn write(&self, facts: std::ops::Range<u64>) -> Result<(), Error> {
        self.write_with(facts, &[]).await
    }

    /// With this much more in each document or version.
    async fn write_with(&self, facts: std::ops::Range<u64>, more: &[u8]) -> Result<(), Error> {
        let (first, last) = (facts.start, at(facts.end - 1));
        match self {
            Self::Documents(store) => {
                let put = |number| {
                    let (applied, mut change) = put(number);
                    if let Change::Put(document) = &mut change {
                        document.body = [&document.body, more].concat().into();
                    }
                    (applied, change)
                };
                store.write(facts.map(put).collect()).await?;
                store.advance(first - 1, &last).await
            }
            Self::Series(store) => {
                store.write(facts.map(points).collect()).await?;
                store.advance(first - 1, &last).await
            }
            Self::History(store) => {
                let entry = |number| {
                    let (applied, mut entry) = entry(number);
                    entry.version.body = [&entry.version.body, more].concat().into();
                    (applied, entry)
                };
                store.write(facts.map(entry).collect()).await?;
                store.advance(first - 1, &last).await
            }
        }
    }

    async fn advance(&self, from: u64, number: u64) -> Result<(), Error> {
        match self {
            Self::Documents(store) => store.advance(from, &at(number)).await,
            Self::Series(store) => store.advance(from, &at(number)).await,
            Self::History(store) => store.advance(from, &at(number)).await,
        }
    }

    async fn position(&self) -> Result<u64, Error> {
        match self {
            Self::Documents(store) => store.position("STREAM").await,
            Self::Series(store) => store.position("STREAM").await,
            Self::History(store) => store.position("STREAM").await,
        }
    }

    /// How many of the facts are there, of the first thousand.
    async fn count(&self) -> Result<usize, Error> {
        Ok(match self {
            Self::Documents(store) => store.list(&Query { limit: 1_000, ..Query::default() }).await?.documents.len(),
            Self::Series(store) => {
                let (from, to) = (Timestamp::from_millis(0), Timestamp::from_millis(10_000));
                store.range("s", Range { from, to, limit: 1_000 }).await?.len()
            }
            Self::History(store) => store.list("k", None, 1_000).await?.len(),
        })
    }
}

fn view(kind: Kind, url: &str, name: &str) -> View {
    let store = open(url).unwrap();
    match kind {
        Kind::Mongod => View::Documents(documents(&store, name)),
        Kind::Influxd | Kind::Victoria => View::Series(series(&store, name)),
        Kind::Cassandra => View::History(history(&store, name)),
    }
}

/// Tries until it is done: what a service does with an error of the engine.
async fn done(what: &str, view: &View, facts: std::ops::Range<u64>) {
    mesh_test::until(
        what,
        async || view.write(facts.clone()).await.map_err(|error| format!("{error:?}")),
        Result::is_ok,
    )
    .await
    .unwrap();
}

/// Positions outlive the process; the server may be killed, halted, slow and cut off, and nothing is lost or there twice.
async fn survives(database: &mut Database, kind: Kind) {
    let wire = Wire::to(database.address()).await;
    let url = database.url_at(wire.address(), "faults");
    let first = view(kind, &url, "faults");
    first.write(1..101).await.unwrap();
    assert_eq!(first.position().await.unwrap(), 100);

    let again = view(kind, &url, "faults");
    assert_eq!(again.position().await.unwrap(), 100, "another process goes on where the first ended");
    again.write(1..101).await.unwrap();
    assert_eq!(again.count().await.unwrap(), 100);

    // A crash of the server: what was said to be safe is there.
    database.kill();
    let error = again.write(101..201).await.unwrap_err();
    assert!(matches!(error, Error::Engine { .. }), "{error:?}");
    database.start_again().await;
    let seen = again.position().await;
    if let Ok(position) = seen {
        assert_eq!(position, 100);
    }
    done("writes after the server is back", &again, 101..201).await;
    assert_eq!((again.position().await.unwrap(), again.count().await.unwrap()), (200, 200));

    // The wire is cut, in the middle of writes.
    let writing = async {
        for hundred in 2..6 {
            done("writes over a bad wire", &again, hundred * 100 + 1..hundred * 100 + 101).await;
        }
    };
    let cutting = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(30)).await;
            wire.cut();
            tokio::time::sleep(Duration::from_millis(100)).await;
            wire.mend();
        }
    };
    tokio::join!(writing, cutting);
    assert_eq!((again.position().await.unwrap(), again.count().await.unwrap()), (600, 600));

    // A slow wire is no error.
    wire.slow(200);
    again.write(601..651).await.unwrap();
    wire.slow(0);

    // The server is there and does not answer: the call ends by its limit.
    database.halt();
    let start = Instant::now();
    let error = again.write(651..701).await.unwrap_err();
    assert!(matches!(error, Error::Engine { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    database.go_on();
    done("writes after the server goes on", &again, 651..701).await;
    assert_eq!((again.position().await.unwrap(), again.count().await.unwrap()), (700, 700));
}

/// Bytes of a disk that each of them starts on.
const DISK_BYTES: u64 = 1 << 30;
/// Attempts to write to a full disk, and bytes of each thing that is written: more than what a server holds in memory or in
/// files that it made before the disk was full.
const ATTEMPTS: u64 = 40;
const FILLING_BYTES: usize = 50_000;

/// Bytes that no server can make smaller.
fn incompressible(length: usize) -> Vec<u8> {
    use std::io::Read as _;
    let mut bytes = vec![0; length];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

/// Its disk becomes full under writes: each ends in time, the server refuses some, what it has taken is there once there is
/// room, and the rest is written then.
async fn outlives_a_full_disk(suite: &str, kind: Kind) {
    let Some(mut database) = Database::start_on_disk(suite, kind, DISK_BYTES).await else { return };
    let view = view(kind, &database.url("full"), "full");
    view.write(1..11).await.unwrap();
    database.fill_disk();
    let (mut next, mut refused) = (11, 0);
    for _ in 0..ATTEMPTS {
        let start = Instant::now();
        match view.write_with(next..next + 100, &incompressible(FILLING_BYTES)).await {
            Ok(()) => next += 100,
            Err(Error::Engine { .. }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
        assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
        if refused == 3 {
            break;
        }
    }
    assert!(refused > 0, "{suite}: a full disk took {} facts", next - 1);
    database.make_room().await;
    let position = mesh_test::until(
        "it answers",
        async || view.position().await.map_err(|error| format!("{error:?}")),
        Result::is_ok,
    )
    .await
    .unwrap();
    assert!(position + 1 >= next, "{suite}: {next} was to be the next, it is after {position}");
    done("writes once there is room", &view, next..next + 100).await;
    let last = next + 99;
    assert_eq!((view.position().await.unwrap(), view.count().await.unwrap() as u64), (last, last.min(1_000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_outlive_a_full_disk() {
    outlives_a_full_disk("mesh-store, MongoDB on a full disk", Kind::Mongod).await;
    outlives_a_full_disk("mesh-store, InfluxDB on a full disk", Kind::Influxd).await;
    outlives_a_full_disk("mesh-store, Cassandra on a full disk", Kind::Cassandra).await;
}

/// After it was emptied the position is 0, in the process that wrote it too, and what is written again is there. A process
/// that advances before it asks is refused: what came before would be missing.
async fn refills(view: &View) {
    for from in [100, 0] {
        let lost = view.advance(from, 201).await.unwrap_err();
        assert!(matches!(lost, Error::Engine { .. }), "{lost:?}");
    }
    mesh_test::until(
        "an emptied database says so",
        async || view.position().await.map_err(|e| e.to_string()),
        |p| *p == Ok(0),
    )
    .await
    .unwrap();
    done("an emptied database is written again", view, 1..101).await;
    assert_eq!((view.position().await.unwrap(), view.count().await.unwrap()), (100, 100));
}

async fn away(kind: Kind) {
    let url = match kind {
        Kind::Mongod => format!("mongodb://u:secret@{}/x", mesh_test::free_address()),
        Kind::Cassandra => format!("cassandra://u:secret@{}/x", mesh_test::free_address()),
        Kind::Influxd | Kind::Victoria => format!("influxdb://:secret@{}/o/x", mesh_test::free_address()),
    };
    let view = view(kind, &url, "x");
    let start = Instant::now();
    let error = view.position().await.unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(matches!(error, Error::Engine { .. }) && !shown.contains("secret"), "{shown}");
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_an_error_in_time_without_its_password() {
    tokio::join!(away(Kind::Mongod), away(Kind::Cassandra), away(Kind::Influxd));
}

#[tokio::test(flavor = "multi_thread")]
async fn mongodb_passes_the_suite_and_survives_faults() {
    let Some(mut database) = Database::start("mesh-store, documents in MongoDB", Kind::Mongod).await else { return };
    let store = open(&database.url("suite")).unwrap();
    suite::documents(scripts(), || async { Ok(documents(&store, &fresh("d"))) }).await.unwrap();
    survives(&mut database, Kind::Mongod).await;

    let emptied = view(Kind::Mongod, &database.url("emptied"), "things");
    emptied.write(1..101).await.unwrap();
    let client = mongodb::Client::with_uri_str(database.url("emptied")).await.unwrap();
    client.database("emptied").drop().await.unwrap();
    refills(&emptied).await;
    let indexes = client.database("emptied").collection::<mongodb::bson::Document>("things").list_index_names().await;
    assert!(indexes.unwrap().contains(&"indexes".to_owned()));

    // What deleted documents leave is removed behind the position.
    let things = documents(&open(&database.url("emptied")).unwrap(), "things");
    let gone = (101..1_500).flat_map(|n| [put(n), (at(n + 2_000), Change::Delete(format!("d{n:04}")))]);
    things.write(gone.collect()).await.unwrap();
    let left = client.database("emptied").collection::<mongodb::bson::Document>("things");
    assert_eq!(left.count_documents(mongodb::bson::doc! { "deleted": true }).await.unwrap(), 1_399);
    things.advance(100, &at(3_000)).await.unwrap();
    things.delete(&at(3_600), "d0001").await.unwrap();
    assert!(things.get("d0101").await.unwrap().is_none());
    things.advance(3_000, &at(4_000)).await.unwrap();
    for n in 0..200 {
        things.put(&at(4_001 + n), Document { id: "x".into(), ..Default::default() }).await.unwrap();
        things.delete(&at(4_001 + n), "x").await.unwrap();
    }
    things.advance(4_000, &at(5_000)).await.unwrap();
    assert_eq!(left.count_documents(mongodb::bson::doc! { "deleted": true }).await.unwrap(), 0);

    let schema = client.database("emptied").collection::<mongodb::bson::Document>("continuum_schema");
    let set = mongodb::bson::doc! { "$set": { "version": 9 } };
    schema.update_one(mongodb::bson::doc! { "_id": "documents" }, set).await.unwrap();
    newer(view(Kind::Mongod, &database.url("emptied"), "things").position().await);
}

fn newer(answer: Result<u64, Error>) {
    let error = answer.unwrap_err();
    assert!(matches!(error, Error::Newer { found: 9, known: 1, .. }), "{error:?}");
    assert!(error.to_string().contains("start the newer release"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn influxdb_passes_the_suite_and_survives_faults() {
    let Some(mut database) = Database::start("mesh-store, series in InfluxDB", Kind::Influxd).await else { return };
    let store = open(&database.url("suite")).unwrap();
    suite::series(scripts(), || async { Ok(series(&store, &fresh("s"))) }).await.unwrap();
    survives(&mut database, Kind::Influxd).await;

    let emptied = view(Kind::Influxd, &database.url("emptied"), "things");
    emptied.write(1..101).await.unwrap();
    let client = influxdb2::Client::new(format!("http://{}", database.address()), "test", "secret-token");
    let found = client.list_buckets(None).await.unwrap().buckets;
    let id = found.into_iter().find(|bucket| bucket.name == "emptied").and_then(|bucket| bucket.id).unwrap();
    client.delete_bucket(&id).await.unwrap();
    refills(&emptied).await;

    client.write_line_protocol("test", "emptied", "continuum_schema,kind=series version=9i 0").await.unwrap();
    newer(view(Kind::Influxd, &database.url("emptied"), "things").position().await);

    let (status, said) = database
        .post(
            "/api/v2/buckets",
            &format!(
                r#"{{"orgID":"{}","name":"short","retentionRules":[{{"type":"expire","everySeconds":3600}}]}}"#,
                org(&client).await
            ),
        )
        .await;
    assert_eq!(status, 201, "{said}");
    let error = view(Kind::Influxd, &database.url("short"), "things").position().await.unwrap_err();
    assert!(matches!(error, Error::Unfit { .. }) && error.to_string().contains("3600 s"), "{error}");
    let wrong = database.url("suite").replace("secret-token", "another-token");
    let error = view(Kind::Influxd, &wrong, "things").position().await.unwrap_err();
    assert!(!format!("{error:?}").contains("another-token"), "{error:?}");
}

async fn org(client: &influxdb2::Client) -> String {
    client.list_organizations(Default::default()).await.unwrap().orgs[0].id.clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn cassandra_passes_the_suite_and_survives_faults() {
    let Some(mut database) = Database::start("mesh-store, histories in Cassandra", Kind::Cassandra).await else {
        return;
    };
    let store = open(&database.url("suite")).unwrap();
    suite::history(scripts(), || async { Ok(history(&store, &fresh("h"))) }).await.unwrap();
    survives(&mut database, Kind::Cassandra).await;

    let link = cql(&database).await;
    let emptied = view(Kind::Cassandra, &database.url("emptied"), "things");
    emptied.write(1..101).await.unwrap();
    for table in ["versions", "hours", "positions"] {
        link.query(format!("TRUNCATE emptied.{table}")).await.unwrap();
    }
    refills(&emptied).await;
    link.query("DROP KEYSPACE emptied").await.unwrap();
    refills(&emptied).await;

    // Versions expire, and with them the hours that they were in.
    let short = open(&database.url("emptied")).unwrap();
    let short = short.history("short", WindowLimits::default(), Duration::from_secs(2)).unwrap();
    short.write((1..3).map(entry).collect()).await.unwrap();
    assert_eq!(short.list("k", None, 10).await.unwrap().len(), 2);
    let ask = async || short.list("k", None, 10).await.unwrap().len();
    mesh_test::until("versions expire", ask, |left| *left == 0).await;
    assert_eq!(short.at("k", Timestamp::from_millis(9)).await.unwrap(), None);

    link.query("UPDATE emptied.schema_version SET version = 9 WHERE kind = 'history'").await.unwrap();
    newer(view(Kind::Cassandra, &database.url("emptied"), "things").position().await);
}

/// What is written to InfluxDB is what VictoriaMetrics takes in, too, and it counts the same.
#[tokio::test(flavor = "multi_thread")]
async fn victoriametrics_takes_the_same_writes() {
    let suite = "mesh-store, the writes for InfluxDB to VictoriaMetrics";
    let Some(database) = Database::start(suite, Kind::Victoria).await else { return };
    let now = mesh_test::now().as_millis();
    let point = |number: i64| Point {
        at: Timestamp::from_millis(now - 60_000 + number),
        labels: [("place".to_owned(), suite::STRANGE[number as usize % suite::STRANGE.len()].to_owned())].into(),
        values: [("level".to_owned(), number as f64), ("rate".to_owned(), -0.5)].into(),
    };
    let points = Points::of("s", (0..5_100).map(point));
    let lines = mesh_store::influx_lines("telemetry", [&points]);
    let (status, said) = database.post("/api/v2/write?precision=ns", &lines).await;
    assert_eq!(status, 204, "{said}");
    let count = async || {
        let query = "query=sum(count_over_time({__name__=~%22telemetry_.*%22}[5m]))";
        let (_, found) = mesh_test::page(&format!("http://{}", database.address()), &format!("/api/v1/query?{query}"))
            .await
            .unwrap();
        found
    };
    mesh_test::until("VictoriaMetrics counts both values of each point", count, |found| found.contains("\"10200\""))
        .await;
}

type Link = cdrs_tokio::cluster::session::Session<
    cdrs_tokio::transport::TransportTcp,
    cdrs_tokio::cluster::TcpConnectionManager,
    cdrs_tokio::load_balancing::RoundRobinLoadBalancingStrategy<
        cdrs_tokio::transport::TransportTcp,
        cdrs_tokio::cluster::TcpConnectionManager,
    >,
>;

async fn cql(database: &Database) -> Link {
    use cdrs_tokio::cluster::session::SessionBuilder as _;
    let node = cdrs_tokio::cluster::NodeTcpConfigBuilder::new().with_contact_point(database.address().into());
    let balancing = cdrs_tokio::load_balancing::RoundRobinLoadBalancingStrategy::new();
    let session = cdrs_tokio::cluster::session::TcpSessionBuilder::new(balancing, node.build().await.unwrap());
    session.build().await.unwrap()
}
