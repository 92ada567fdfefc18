//! Sends what the collector knows to a receiver of Prometheus' remote write, again and again.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use mesh_proto::telemetry::{Filter, QueryRequest};
use opentelemetry::KeyValue;

use crate::{
    domain::remote_write::Sent,
    shell::{
        gateway::Gateway,
        telemetry::{COLLECTOR, STALE_MS},
    },
};

/// How long a receiver may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Sends until the process stops. A receiver that fails gets what is newest then; what it missed between is not kept.
///
/// # Errors
/// When the system's certificates cannot be read.
pub(crate) async fn send(gateway: Gateway, url: Uri) -> anyhow::Result<()> {
    let tls = hyper_rustls::HttpsConnectorBuilder::new().with_native_roots();
    let tls = tls.context("read the system's certificates")?.https_or_http().enable_http1().build();
    let client = Client::builder(TokioExecutor::new()).build(tls);
    let mesh = &gateway.inner.mesh;
    let counter = mesh.meter().u64_counter("gateway_remote_writes_total");
    let counter = counter.with_description("requests of remote write, by what came of them").build();
    let (mut sent, mut is_failing, stopping) = (Sent::default(), false, mesh.stopping());
    let mut tick = tokio::time::interval(Duration::from_millis(gateway.inner.config.remote_write_interval_ms.into()));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stopping.cancelled() => return Ok(()),
        }
        let written = async {
            let (body, count) = sent.request(&gateway.newest_of_all().await?);
            if count == 0 {
                return Ok(());
            }
            let body = snap::raw::Encoder::new().compress_vec(&body).context("compress")?;
            let request = Request::post(url.clone())
                .header(header::CONTENT_TYPE, "application/x-protobuf")
                .header(header::CONTENT_ENCODING, "snappy")
                .header("x-prometheus-remote-write-version", "0.1.0")
                .header(header::USER_AGENT, concat!("continuum/", env!("CARGO_PKG_VERSION")))
                .body(Full::new(Bytes::from(body)))
                .context("make the request")?;
            let answered = tokio::time::timeout(LIMIT, client.request(request)).await;
            let response = answered.context("no answer in time")?.context("send")?;
            anyhow::ensure!(response.status().is_success(), "the receiver answers {}", response.status());
            Ok(())
        };
        let written: anyhow::Result<()> = written.await;
        counter.add(1, &[KeyValue::new("outcome", if written.is_ok() { "sent" } else { "failed" })]);
        match written {
            Ok(()) => is_failing = false,
            Err(error) => {
                sent.forget();
                if !is_failing {
                    tracing::warn!(error = format!("{error:#}"), "remote write fails; later failures are only counted");
                }
                is_failing = true;
            }
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
