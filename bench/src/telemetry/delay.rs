//! `bench telemetry --only delay`: from a sample of one workload to those who follow it, over gRPC, NATS and NATS WebSocket,
//! while 50,000 samples a second flow; 10,000 in the short form, which any build can take.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use async_nats::ConnectOptions;
use bytes::Bytes;
use futures::StreamExt as _;
use mesh_bus::About;
use mesh_proto::{
    Event as _, PACKED_SIGNAL,
    telemetry::{Filter, InstanceSample, Packed, WatchRequest},
};
use parking_lot::Mutex;
use prost::Message as _;

use super::{
    flow::{Kind, Load, Plant, Site, now},
    websocket,
};
use crate::{
    report::{Bound, Row},
    rig::percentile,
};

/// Clusters beside, and samples in the pack of each.
const CLUSTERS: usize = 20;
const EACH: usize = 400;
/// Packs a second of all of them: 50,000 samples, and 10,000 in the short form.
const PACKS_PER_SECOND: u64 = 125;
const PACKS_PER_SECOND_SHORT: u64 = 25;
/// The workload that is followed, and how often its agent sends, milliseconds.
const WORKLOAD: &str = "followed";
const CLUSTER: &str = "followed-cluster";
const EVERY_MS: u64 = 20;

/// When each sample of the workload was sent, by its number; and when it came, by subscriber.
#[derive(Default)]
struct Times {
    sent: Vec<Instant>,
    took: [Vec<Duration>; 3],
}

impl Times {
    /// A subscriber has got the sample of this number.
    fn got(&mut self, subscriber: usize, number: u64) {
        let sent = usize::try_from(number).ok().and_then(|number| self.sent.get(number)).copied();
        self.took[subscriber].extend(sent.map(|sent| sent.elapsed()));
    }
}

/// The number in the sample of the workload, in a message of the stream.
fn number_in(body: Bytes) -> Option<u64> {
    let pack = Packed::decode(body).ok()?;
    pack.samples.iter().find(|sample| sample.instance_id == WORKLOAD).map(|sample| sample.memory_bytes)
}

/// The rows.
///
/// # Errors
/// When a program does not start, or a subscriber gets nothing.
pub(crate) async fn measure(full: bool) -> anyhow::Result<Vec<Row>> {
    let plant = Plant::start().await?;
    let mut collector = plant.collector().await?;
    let times: Arc<Mutex<Times>> = Arc::default();
    let seed = std::fs::read_to_string(plant.rig.key("dashboard")?).context("read the key of dashboards")?;
    let (seed, subject) = (seed.trim().to_owned(), format!("live.telemetry.packed.v1.{CLUSTER}"));

    let filter = Filter {
        entity_ids: vec![WORKLOAD.into()],
        metrics: vec!["container.memory.usage".into()],
        ..Filter::default()
    };
    let request = WatchRequest { filter: Some(filter), ..WatchRequest::default() };
    let mut watch = collector.queries.watch(request).await?.into_inner();
    let of_grpc = times.clone();
    let grpc = tokio::spawn(async move {
        while let Ok(Some(reply)) = watch.message().await {
            let mut times = of_grpc.lock();
            reply.readings.unwrap_or_default().values.iter().for_each(|value| times.got(0, *value as u64));
        }
    });
    let client = ConnectOptions::new().nkey(seed.clone()).connect(plant.rig.server.url()).await?;
    let mut messages = client.subscribe(subject.clone()).await?;
    client.flush().await?;
    let of_nats = times.clone();
    let nats = tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            if let Some(number) = number_in(message.payload) {
                of_nats.lock().got(1, number);
            }
        }
    });
    let url = plant.rig.server.websocket_url().context("the server has no WebSocket")?;
    let mut frames = websocket::Subscriber::open(&url, &seed, &subject).await?;
    let of_browser = times.clone();
    let browser = tokio::spawn(async move {
        while let Ok(body) = frames.next().await {
            if let Some(number) = number_in(body) {
                of_browser.lock().got(2, number);
            }
        }
    });

    let raw = plant.rig.baseline(&[]).await?;
    let mut load = Load::new(Kind::Samples, "d", CLUSTERS, EACH);
    load.begin(&plant.router, Site::Mesh, now(), async || Ok(raw.end(Packed::STREAM).await?)).await?;
    let length = Duration::from_secs(if full { 60 } else { 4 });
    let others = beside(&plant, load, length, if full { PACKS_PER_SECOND } else { PACKS_PER_SECOND_SHORT });
    let followed = follow(&plant, &times, length);
    let (others, sent) = tokio::try_join!(others, followed)?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    for task in [grpc, nats, browser] {
        task.abort();
    }
    let times = times.lock();
    let rate = others as f64 / length.as_secs_f64();
    let of = |(index, (number, how)): (usize, (u8, &str))| -> anyhow::Result<Row> {
        let took = &times.took[index];
        ensure!(!took.is_empty(), "nothing came over {how}");
        let ms = |per_cent| percentile(took, per_cent).as_secs_f64() * 1e3;
        let detail = format!(
            "p50 {:.2} ms, most {:.1} ms; {} of {sent} came, {rate:.0} others a second",
            ms(50),
            ms(100),
            took.len()
        );
        let what = format!("sample to a subscriber over {how}, p99");
        Ok(Row::new(number, &what, Bound::AtMost(20.0), " ms", ms(99), detail))
    };
    [(14, "gRPC"), (15, "NATS"), (16, "NATS WebSocket")].into_iter().enumerate().map(of).collect()
}

/// What all others send meanwhile; gives how many samples.
async fn beside(plant: &Plant, mut load: Load, length: Duration, packs_per_second: u64) -> anyhow::Result<u64> {
    let mut every = tokio::time::interval(Duration::from_nanos(1_000_000_000 / packs_per_second));
    let (begun, mut count) = (Instant::now(), 0);
    while begun.elapsed() < length {
        every.tick().await;
        load.send(&plant.router, Site::Mesh, now()).await?;
        count += EACH as u64;
    }
    Ok(count)
}

/// The samples of the workload that is followed; gives how many.
async fn follow(plant: &Plant, times: &Mutex<Times>, length: Duration) -> anyhow::Result<u64> {
    let sample = InstanceSample {
        cluster_id: CLUSTER.into(),
        instance_id: WORKLOAD.into(),
        owner: "local".into(),
        generation: 1,
        interval_seconds: 1.0,
        ..InstanceSample::default()
    };
    let key = Site::Mesh.key(CLUSTER, PACKED_SIGNAL);
    let mut every = tokio::time::interval(Duration::from_millis(EVERY_MS));
    let (begun, mut number) = (Instant::now(), 0);
    while begun.elapsed() < length {
        every.tick().await;
        let sample = InstanceSample { at: Some(now()), memory_bytes: number, ..sample.clone() };
        let pack = Packed { cluster_id: CLUSTER.into(), samples: vec![sample] };
        times.lock().sent.push(Instant::now());
        plant.router.publish(&key, pack.encode_to_vec(), &About::default()).await?;
        number += 1;
    }
    Ok(number)
}
