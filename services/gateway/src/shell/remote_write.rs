//! Sends what the collector knows to a receiver of Prometheus' remote write, again and again.
//!
//! One loop asks and puts requests into a queue, another sends them in their order: a receiver that is slow or away costs
//! no value before the queue is full.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mesh_proto::telemetry::{Filter, QueryRequest};
use opentelemetry::{KeyValue, metrics::Counter};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    domain::remote_write::{Queue, Sent, Verdict, Waiting},
    shell::{
        gateway::Gateway,
        telemetry::{COLLECTOR, STALE_MS},
    },
};

/// How long a receiver may take to answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Before a request that was not taken is sent again: first, and at most, doubling.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

struct Writer {
    gateway: Gateway,
    url: Uri,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    queue: Mutex<Queue>,
    pushed: Notify,
    requests: Counter<u64>,
    values: Counter<u64>,
}

/// Sends until the process stops. What a receiver does not take waits, as far as there is room.
///
/// # Errors
/// When the system's certificates cannot be read.
pub(crate) async fn send(gateway: Gateway, url: Uri) -> anyhow::Result<()> {
    let tls = hyper_rustls::HttpsConnectorBuilder::new().with_native_roots();
    let tls = tls.context("read the system's certificates")?.https_or_http().enable_http1().build();
    let meter = gateway.inner.mesh.meter();
    let counter = |name: &'static str, what: &'static str| meter.u64_counter(name).with_description(what).build();
    let writer = Writer {
        client: Client::builder(TokioExecutor::new()).build(tls),
        queue: Mutex::new(Queue::new(gateway.inner.config.remote_write_queue_bytes as usize)),
        pushed: Notify::new(),
        requests: counter("gateway_remote_writes_total", "requests of remote write, by what came of them"),
        values: counter("gateway_remote_write_values_total", "values of remote write, by what came of them"),
        url,
        gateway: gateway.clone(),
    };
    let stopping = gateway.inner.mesh.stopping();
    tokio::select! {
        () = stopping.cancelled() => {}
        () = writer.ask() => {}
        () = writer.drain() => {}
    }
    Ok(())
}

impl Writer {
    /// Puts what is new into the queue, again and again.
    async fn ask(&self) {
        let mut sent = Sent::default();
        let interval = Duration::from_millis(self.gateway.inner.config.remote_write_interval_ms.into());
        let mut tick = tokio::time::interval(interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_failing = false;
        loop {
            tick.tick().await;
            let newest = match self.gateway.newest_of_all().await {
                Ok(newest) => newest,
                Err(error) => {
                    if !is_failing {
                        tracing::warn!(error = format!("{error:#}"), "no values for remote write");
                    }
                    is_failing = true;
                    continue;
                }
            };
            is_failing = false;
            let (body, count) = sent.request(&newest);
            if count == 0 {
                continue;
            }
            match snap::raw::Encoder::new().compress_vec(&body) {
                Ok(body) => {
                    let dropped = self.queue.lock().push(body.into(), count as u64);
                    self.count(dropped, "dropped");
                    self.pushed.notify_one();
                }
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "compress values for remote write");
                    self.count(count as u64, "refused");
                }
            }
        }
    }

    /// Sends what waits, the oldest first.
    async fn drain(&self) {
        let mut backoff = BACKOFF_FIRST;
        let mut is_failing = false;
        loop {
            let first = self.queue.lock().first();
            let Some(first) = first else {
                self.pushed.notified().await;
                continue;
            };
            let (verdict, why) = match self.post(&first).await {
                Ok(status) => (Verdict::of(status.as_u16()), format!("the receiver answers {status}")),
                Err(error) => (Verdict::Later, format!("{error:#}")),
            };
            let outcome = if verdict == Verdict::Taken { "sent" } else { "failed" };
            self.requests.add(1, &[KeyValue::new("outcome", outcome)]);
            if verdict == Verdict::Taken {
                (backoff, is_failing) = (BACKOFF_FIRST, false);
            } else if !is_failing {
                is_failing = true;
                tracing::warn!(error = why, "remote write fails; later failures are only counted");
            }
            if verdict == Verdict::Later {
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
                continue;
            }
            // One that gave way while it was sent was counted as dropped.
            if self.queue.lock().settle(&first) {
                self.count(first.values, if verdict == Verdict::Taken { "sent" } else { "refused" });
            }
        }
    }

    async fn post(&self, waiting: &Waiting) -> anyhow::Result<StatusCode> {
        let request = Request::post(self.url.clone())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::CONTENT_ENCODING, "snappy")
            .header("x-prometheus-remote-write-version", "0.1.0")
            .header(header::USER_AGENT, concat!("continuum/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(waiting.body.clone()))
            .context("make the request")?;
        let answered = tokio::time::timeout(LIMIT, self.client.request(request)).await;
        Ok(answered.context("no answer in time")?.context("send")?.status())
    }

    fn count(&self, values: u64, outcome: &'static str) {
        if values > 0 {
            self.values.add(values, &[KeyValue::new("outcome", outcome)]);
        }
    }
}

impl Gateway {
    /// The newest value of each series, of everybody, that is not stale.
    async fn newest_of_all(&self) -> anyhow::Result<Vec<mesh_proto::telemetry::SeriesValues>> {
        let series_max = self.inner.config.metrics_series_max;
        let request =
            QueryRequest { filter: Some(Filter::default()), series_max, values_max: 1, ..QueryRequest::default() };
        let answer = self.collector().await?.query(request).await;
        let mut series = self.reply(COLLECTOR, answer)?.series;
        let now_ms = self.inner.mesh.now().as_millis();
        series.retain(|series| series.at_ms.last().is_some_and(|at_ms| now_ms - at_ms < STALE_MS));
        Ok(series)
    }
}
