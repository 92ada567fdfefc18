//! `bench telemetry --only channel`: readings that a client streams to the collector over gRPC, until they are on the bus,
//! beside a bare stream and a bare store of the same bytes.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use mesh_proto::{
    Event as _,
    telemetry::{
        ConditionsReply, ConditionsRequest, IngestReply, InstanceSample, InventoryReply, InventoryRequest, Packed,
        QueryReply, QueryRequest, RangeReply, RangeRequest, Readings, StreamRequest, WatchReply, WatchRequest,
        telemetry_queries_client::TelemetryQueriesClient,
        telemetry_queries_server::{TelemetryQueries, TelemetryQueriesServer},
    },
};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

use super::flow::{Kind, Load, Plant, STEP_LIMIT, now};
use crate::{
    bus::Rounds,
    report::{Bound, Row},
};

/// Values in a pack, and clusters that they are of in turn.
const EACH: usize = 400;
const CLUSTERS: usize = 20;
const STREAM: &str = "RAW";

/// A server that takes packs in, counts them, and does nothing else.
struct Bare;

#[tonic::async_trait]
impl TelemetryQueries for Bare {
    type StreamStream = futures::stream::Empty<Result<InstanceSample, Status>>;
    type WatchStream = futures::stream::Empty<Result<WatchReply, Status>>;

    async fn ingest(&self, request: Request<Streaming<Readings>>) -> Result<Response<IngestReply>, Status> {
        let mut packs = request.into_inner();
        let mut reply = IngestReply::default();
        while let Some(pack) = packs.message().await? {
            reply.accepted += pack.values.len() as u64;
        }
        Ok(Response::new(reply))
    }

    async fn range(&self, _: Request<RangeRequest>) -> Result<Response<RangeReply>, Status> {
        Err(Status::unimplemented("it only takes readings in"))
    }

    async fn stream(&self, _: Request<StreamRequest>) -> Result<Response<Self::StreamStream>, Status> {
        Err(Status::unimplemented("it only takes readings in"))
    }

    async fn query(&self, _: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
        Err(Status::unimplemented("it only takes readings in"))
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("it only takes readings in"))
    }

    async fn inventory(&self, _: Request<InventoryRequest>) -> Result<Response<InventoryReply>, Status> {
        Err(Status::unimplemented("it only takes readings in"))
    }

    async fn conditions(&self, _: Request<ConditionsRequest>) -> Result<Response<ConditionsReply>, Status> {
        Err(Status::unimplemented("it only takes readings in"))
    }
}

/// Streams packs for this long; gives how many there were.
async fn stream(queries: &mut TelemetryQueriesClient<Channel>, length: Duration) -> anyhow::Result<u64> {
    let mut load = Load::new(Kind::Readings, "g", CLUSTERS, EACH);
    let begun = Instant::now();
    let packs = futures::stream::iter(std::iter::from_fn(move || {
        (begun.elapsed() < length).then(|| load.next_readings(now()))?
    }));
    let reply = queries.ingest(packs).await?.into_inner();
    ensure!(reply.refused.is_empty(), "refused: {:?}", reply.refused);
    Ok(reply.accepted)
}

/// The row.
///
/// # Errors
/// When a program does not start, or what was sent is not stored.
pub(crate) async fn measure(full: bool) -> anyhow::Result<Row> {
    let plant = Plant::start().await?;
    let raw = plant.rig.baseline(&[]).await?;
    raw.make_samples(STREAM).await?;
    let mut collector = plant.collector().await?;
    let address: SocketAddr = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let serving = tonic::transport::Server::builder().add_service(TelemetryQueriesServer::new(Bare)).serve(address);
    let serving = tokio::spawn(serving);
    let mut bare = TelemetryQueriesClient::new(Channel::from_shared(format!("http://{address}"))?.connect_lazy());
    let (rounds, length) = if full { (5, Duration::from_secs(5)) } else { (2, Duration::from_millis(800)) };
    let mut sides = Rounds::new("/s");
    let (mut streamed, mut stored) = (vec![], vec![]);
    for round in 0..=rounds {
        let begun = Instant::now();
        let count = stream(&mut bare, length).await.context("stream to the bare server")?;
        let by_stream = count as f64 / begun.elapsed().as_secs_f64();
        let mut load = Load::new(Kind::Readings, "g", CLUSTERS, EACH);
        let by_store = raw.store(STREAM, length, || load.next(now()).1).await? * EACH as f64;
        let before = raw.end(Packed::STREAM).await?;
        let begun = Instant::now();
        let count = stream(&mut collector.queries, length).await.context("stream to the collector")?;
        let end = before + count / EACH as u64;
        while raw.end(Packed::STREAM).await? < end {
            ensure!(begun.elapsed() < length + STEP_LIMIT, "what the collector accepted is not stored");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        let ours = count as f64 / begun.elapsed().as_secs_f64();
        // The series of the last round do not cost the next one anything.
        while collector.kept().await? < end {
            ensure!(begun.elapsed() < length + STEP_LIMIT, "what was stored does not come to the series");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if round > 0 {
            sides.add(by_stream.min(by_store), ours);
            streamed.push(by_stream);
            stored.push(by_store);
        }
    }
    serving.abort();
    let mut row =
        sides.row(13, "gRPC in to bus, to the smaller of a bare stream and a bare store", Bound::AtLeast(0.5));
    let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len().max(1) as f64;
    row.detail += &format!("; bare stream {:.0}, bare store {:.0} /s", mean(&streamed), mean(&stored));
    Ok(row)
}
