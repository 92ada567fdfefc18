//! A collector that is killed while it is at work.

use std::collections::BTreeMap;

use mesh_test::Process;
use tonic::transport::Channel;

use super::*;

/// Packs that are sent, each with this number of values, and after how many the collector is killed.
const PACKS: u64 = 200;
const VALUES: u64 = 20;
const KILL_EVERY: u64 = 45;
/// A pack that is not stored within this time is sent again, as by a client that has no answer.
const AGAIN: Duration = Duration::from_secs(1);

fn process(test_bus: &TestBus) -> Process {
    Process::start(test_bus, "collector", env!("CARGO_BIN_EXE_collector"), &[])
}

async fn connected(of: &Process) -> TelemetryQueriesClient<Channel> {
    let connect = async || TelemetryQueriesClient::connect(of.endpoint().to_owned()).await;
    until("the collector", connect, Result::is_ok).await.unwrap()
}

/// Values that count on over all packs, a millisecond apart.
fn numbered(began: Timestamp, pack: u64) -> Readings {
    let whole = memory("edge", 0.0);
    let numbers = pack * VALUES..(pack + 1) * VALUES;
    let at = began.plus_millis(i64::try_from((pack + 1) * VALUES).unwrap());
    Readings {
        at: Some(at),
        metrics: vec![Metric { unit: "1".into(), ..whole.metrics[0].clone() }],
        metric: vec![0; VALUES as usize],
        after_ms: (0..VALUES).map(|number| number as i32 - VALUES as i32).collect(),
        values: numbers.map(|number| number as f64).collect(),
        probes: vec![],
        ..whole
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_killed_under_load_loses_nothing_and_stores_nothing_twice() {
    let Some(test_bus) = test_bus("killed").await else { return };
    let mut process = process(&test_bus);
    let mut client = connected(&process).await;
    let person = test_bus.connect("person").await;
    let mut stored = person.log(Readings::STREAM).tail("telemetry.readings.>", 1);
    // In the past, as far as all values will need.
    let began = now().plus_millis(-i64::try_from(PACKS * VALUES).unwrap() - 1_000);
    let mut times: BTreeMap<u64, u32> = BTreeMap::new();
    let (mut sent, mut again, mut kills) = (0, 0u32, 0);
    while sent < PACKS {
        // A few at a time are under way when it is killed.
        let packs: Vec<u64> = (sent..PACKS.min(sent + 5)).collect();
        let round = packs.iter().map(|pack| numbered(began, *pack)).collect::<Vec<_>>();
        // It may die before it answers.
        let ingested = client.ingest(futures::stream::iter(round)).await;
        if sent / KILL_EVERY > kills {
            kills += 1;
            process.start_again();
            client = connected(&process).await;
        }
        let all = |times: &BTreeMap<u64, u32>| {
            packs.iter().all(|pack| (pack * VALUES..(pack + 1) * VALUES).all(|number| times.contains_key(&number)))
        };
        while !all(&times) {
            match tokio::time::timeout(AGAIN, stored.next()).await {
                Ok(message) => {
                    let pack = message.unwrap().event::<Readings>().unwrap().unwrap();
                    pack.values.iter().for_each(|value| *times.entry(*value as u64).or_default() += 1);
                }
                Err(_) => break,
            }
        }
        if all(&times) {
            sent += packs.len() as u64;
        } else {
            again += 1;
            assert!(again < 100, "{ingested:?}");
        }
    }
    // What came twice is stored once; nothing more comes now.
    while let Ok(message) = tokio::time::timeout(AGAIN, stored.next()).await {
        let pack = message.unwrap().event::<Readings>().unwrap().unwrap();
        pack.values.iter().for_each(|value| *times.entry(*value as u64).or_default() += 1);
    }
    let twice: Vec<_> = times.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(times.len() as u64, PACKS * VALUES);

    // So it is in what can be asked.
    let filter = Some(Filter { entity_kind: "node".into(), ..Filter::default() });
    // Values are kept to the millisecond, and the first is of the one in which this began.
    let request = QueryRequest { filter, from: Some(began.plus_millis(-1)), ..QueryRequest::default() };
    let ask = async || client.clone().query(request.clone()).await.unwrap().into_inner().series.pop();
    let found = until("every value in the series", ask, |found| {
        found.as_ref().is_some_and(|series| series.values.len() as u64 >= PACKS * VALUES)
    })
    .await
    .unwrap();
    let expected: Vec<f64> = (0..PACKS * VALUES).map(|number| number as f64).collect();
    assert_eq!(found.values, expected);
    println!(
        "killed {kills} times under load: {} values, none lost, none twice; {again} rounds sent again",
        expected.len()
    );
    assert!(kills >= 3);
}
