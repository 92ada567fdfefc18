//! The disk that telemetry is stored on becomes full under a collector at work, and has room again.

use std::{collections::BTreeMap, time::Duration};

use collector::Config;
use mesh_bus::Bus;
use mesh_kit::Stopped;
use mesh_proto::{
    Event as _,
    telemetry::{Entity, Metric, MetricKind, Readings, telemetry_queries_client::TelemetryQueriesClient},
};
use mesh_test::{TestBus, now, soon, until};
use tokio::sync::mpsc;

/// Bytes of the disk.
const DISK_BYTES: u64 = 256 << 20;
/// Between two readings.
const EVERY: Duration = Duration::from_millis(100);
/// Readings sent before, and after.
const SOME: u64 = 20;
/// What the service counts: what the bus did not store in time, and what it forgot.
const UNSTORED: &str = "mesh_derived_unstored_total";
const FORGOTTEN: &str = "mesh_bus_forgotten_total";

/// One value: which reading it is.
fn numbered(number: u64) -> Readings {
    let (kind, id) = ("node".to_owned(), "n".to_owned());
    let entity = Entity { kind, id, cluster_id: "edge".into(), node: "n".into(), ..Entity::default() };
    let metric = Metric {
        name: "test.number".into(),
        unit: "1".into(),
        kind: MetricKind::Gauge.into(),
        probe: "test".into(),
        ..Metric::default()
    };
    Readings {
        cluster_id: "edge".into(),
        at: Some(now()),
        entities: vec![entity],
        metrics: vec![metric],
        metric: vec![0],
        after_ms: vec![0],
        values: vec![number as f64],
        ..Readings::default()
    }
}

/// How often each reading is stored.
async fn stored(person: &Bus) -> BTreeMap<u64, u32> {
    let log = person.log(Readings::STREAM);
    let mut times = BTreeMap::new();
    for message in log.read("telemetry.readings.>", 1, usize::MAX).await.unwrap() {
        let readings = message.event::<Readings>().unwrap().unwrap();
        readings.values.iter().for_each(|value| *times.entry(*value as u64).or_default() += 1);
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_no_reading_uncounted_and_heals() {
    let Some(test_bus) = TestBus::start_on_disk("collector, a full disk", DISK_BYTES).await else { return };
    let mut test_bus = test_bus.with_router().await;
    let running = mesh_kit::join("collector", test_bus.settings("collector"), Config::default(), collector::start);
    let running = running.await.unwrap();
    let (endpoint, person) = (running.endpoint(), test_bus.connect("person").await);
    let mut client = TelemetryQueriesClient::connect(endpoint.clone()).await.unwrap();
    let (sender, receiver) = mpsc::channel(10);
    let receiving = |mut receiver: mpsc::Receiver<Readings>| async move { Some((receiver.recv().await?, receiver)) };
    let ingesting = client.ingest(futures::stream::unfold(receiver, receiving));
    let story = async {
        let mut sent = 0;
        let mut send = async || {
            sender.send(numbered(sent)).await.unwrap();
            tokio::time::sleep(EVERY).await;
            sent += 1;
            sent
        };
        for _ in 0..SOME {
            send().await;
        }
        let all = async || stored(&person).await.len() as u64;
        until("what was sent before", all, |found| *found == SOME).await;

        test_bus.fill_disk();
        let page = async |path: &str| mesh_test::page(&endpoint, path).await.unwrap_or_default();
        let counted = async |counter: &str| {
            let (_, page) = page("/metrics").await;
            let value =
                page.lines().find_map(|line| line.strip_prefix(counter)?.rsplit(' ').next()?.parse::<f64>().ok());
            value.unwrap_or_else(|| panic!("{counter} is shown from the start")) as u64
        };
        // The service says what is wrong, and counts what it gives up.
        let mut says_so = false;
        soon("a reading that is given up, and counted", async {
            while counted(UNSTORED).await == 0 || !says_so {
                send().await;
                let (status, said) = page("/readyz").await;
                says_so |= status == 503 && said.contains(" is full") && said.contains("free disk space");
            }
        })
        .await;

        test_bus.make_room().await;
        let ready = async || page("/readyz").await.0;
        let is_ready = |status: &u16| *status == 200;
        tokio::join!(until("a service that is ready", ready, is_ready), async {
            for _ in 0..SOME {
                send().await;
            }
        });
        let last = send().await - 1;
        let has_last = |found: &BTreeMap<u64, u32>| found.contains_key(&last);
        let found = until("what was sent after", async || stored(&person).await, has_last).await;
        let lost = (0..=last).filter(|number| !found.contains_key(number)).count() as u64;
        // Samples are acknowledged before they are on disk: of those, the server forgets what it could not write.
        let (unstored, forgotten) = (counted(UNSTORED).await, counted(FORGOTTEN).await);
        let of = last + 1;
        assert!(lost <= unstored + forgotten, "{lost} of {of} readings are lost, {unstored} and {forgotten} counted");
        assert!(found.values().all(|times| *times == 1), "a reading is stored twice: {found:?}");
        assert!((last + 1 - SOME..=last).all(|number| found.contains_key(&number)), "what was sent after is not whole");
        eprintln!(
            "a full disk: {of} readings, {lost} lost: {unstored} counted as not stored, {forgotten} as forgotten"
        );
        drop(sender);
    };
    let (ingested, ()) = tokio::join!(ingesting, story);
    ingested.unwrap();
    assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);
}
