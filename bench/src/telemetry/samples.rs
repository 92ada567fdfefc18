//! `bench telemetry --only samples`: what agents send over Zenoh, through the collector into the stream and the series,
//! beside a program by hand that subscribes, packs and stores the same bytes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use async_nats::{
    ConnectOptions,
    jetstream::{self, context::PublishAckFuture},
};
use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use mesh_bus::{Samples, SamplesOptions};
use mesh_proto::{
    Event as _, PACKED_SIGNAL, READINGS_SIGNAL,
    telemetry::{Packed, Readings},
};
use prost::Message as _;

use super::flow::{Flow, Kind, Load, Plant, STEP_LIMIT, Site, now, own_program};
use crate::{
    baseline::WINDOW,
    bus::Rounds,
    report::{Bound, Row},
};

/// Where it stores.
const STREAM: &str = "RAW";
/// Clusters, and samples or values in the pack of each.
const CLUSTERS: usize = 40;
const EACH: usize = 200;

/// The program by hand: subscribes, decodes, packs again, and stores, many at a time.
///
/// # Errors
/// When a server is gone.
pub(crate) async fn by_hand(arguments: &[String]) -> anyhow::Result<()> {
    let [url, seed_file, router] = arguments else { bail!("it needs a server, the file of a key, and a router") };
    mesh_bus::install_crypto();
    let seed = std::fs::read_to_string(seed_file).context("read the key")?.trim().to_owned();
    let client = ConnectOptions::new().nkey(seed).connect(url).await.context("connect")?;
    let context = jetstream::new(client);
    let samples = Samples::open(SamplesOptions { connect: vec![router.clone()], ..SamplesOptions::default() }).await?;
    let mut packed = samples.subscribe(&Site::ByHand.key("*", PACKED_SIGNAL)).await?;
    let mut readings = samples.subscribe(&Site::ByHand.key("*", READINGS_SIGNAL)).await?;
    let mut under_way = FuturesUnordered::<<PublishAckFuture as IntoFuture>::IntoFuture>::new();
    loop {
        let (name, body) = tokio::select! {
            Some(sample) = packed.next() => {
                let pack = Packed::decode(sample.body)?;
                (pack.cluster_id.clone(), pack.encode_to_vec())
            }
            Some(sample) = readings.next() => {
                let pack = Readings::decode(sample.body)?;
                (pack.cluster_id.clone(), pack.encode_to_vec())
            }
            Some(acknowledged) = under_way.next(), if !under_way.is_empty() => {
                acknowledged.context("store a pack")?;
                continue;
            }
            else => return Ok(()),
        };
        if under_way.len() >= WINDOW
            && let Some(acknowledged) = under_way.next().await
        {
            acknowledged.context("store a pack")?;
        }
        let sent = context.publish(format!("raw.stored.v1.{name}"), Bytes::from(body)).await?;
        under_way.push(sent.into_future());
    }
}

/// The rows.
///
/// # Errors
/// When a program does not start, or what was sent does not come to be stored.
pub(crate) async fn measure(full: bool) -> anyhow::Result<Vec<Row>> {
    let plant = Plant::start().await?;
    let raw = plant.rig.baseline(&[]).await?;
    raw.make_samples(STREAM).await?;
    let collector = plant.collector().await?;
    let router = plant.router.listening().first().context("the router listens nowhere")?.clone();
    let seed_file = plant.rig.key("provisioner")?.display().to_string();
    let _by_hand = own_program("by-hand", &[plant.rig.server.url(), seed_file, router])?;
    let (rounds, length) = if full { (3, Duration::from_secs(20)) } else { (2, Duration::from_millis(1_500)) };
    let (mut rows, mut sent, mut lost, mut lost_by_hand) = (vec![], 0, 0, 0);
    for (number, kind, what) in [(10, Kind::Samples, "samples of instances"), (11, Kind::Readings, "readings")] {
        let mut sides = Rounds::new("/s");
        let mut load = Load::new(kind, if kind == Kind::Samples { "s" } else { "r" }, CLUSTERS, EACH);
        load.begin(&plant.router, Site::ByHand, now(), async || Ok(raw.end(STREAM).await?)).await?;
        load.begin(&plant.router, Site::Mesh, now(), async || Ok(raw.end(Packed::STREAM).await?)).await?;
        for round in 0..=rounds {
            // The first is not counted: connections, tables and code are warm after it.
            let length = if round == 0 { Duration::from_millis(500) } else { length };
            let by_hand = load.flow(&plant.router, Site::ByHand, async || Ok(raw.end(STREAM).await?), length).await?;
            let (taken, kept) = (collector.taken(kind).await?, collector.kept().await?);
            let begun = Instant::now();
            let end = async || Ok(raw.end(Packed::STREAM).await?);
            let ours = load.flow(&plant.router, Site::Mesh, end, length).await?;
            // All of it is stored when it is in the stream, in the series, and in what is rolled up.
            while collector.kept().await? < kept + ours.arrived {
                ensure!(begun.elapsed() < length + STEP_LIMIT, "what was stored does not come to the series");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let took = begun.elapsed();
            let counted = collector.taken(kind).await? - taken;
            sent += ours.sent * EACH as u64;
            lost_by_hand += (by_hand.sent - by_hand.arrived) * EACH as u64;
            lost += (ours.sent * EACH as u64).abs_diff(counted.min(ours.arrived * EACH as u64));
            if round > 0 {
                let rate = |flow: &Flow, took: Duration| (flow.arrived * EACH as u64) as f64 / took.as_secs_f64();
                sides.add(rate(&by_hand, by_hand.took), rate(&ours, took));
            }
        }
        let what = format!("{what}, agent to stream and series, to subscribe, pack and store by hand");
        rows.push(sides.row(number, &what, Bound::AtLeast(0.6)));
    }
    let detail = format!("of {sent}, counted by the collector and in the stream; by hand {lost_by_hand}");
    rows.push(Row::new(12, "samples and readings lost", Bound::Exactly(0.0), "", lost as f64, detail));
    Ok(rows)
}
