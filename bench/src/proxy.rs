//! `bench telemetry --only proxy`: the latency quantiles of the gateway's proxy, before an upstream that answers late on
//! purpose.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use axum::{Router, body::Body, extract::Request};
use gateway::domain::traffic::{Traffic, Way};
use http_body_util::BodyExt as _;
use mesh_proto::{Timestamp, telemetry::Readings};
use parking_lot::Mutex;
use tokio::net::TcpListener;

use crate::{
    report::{Bound, Row},
    rig::percentile,
};

/// Injected, milliseconds.
const DELAYS_MS: [u64; 6] = [10, 20, 50, 100, 200, 500];
/// Requests at once.
const AT_ONCE: usize = 4;

/// The row.
///
/// # Errors
/// When the upstream cannot be served.
pub(crate) async fn measure(full: bool) -> anyhow::Result<Row> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    // What a delay came to is what the upstream measured of it: a sleep ends late on a busy machine.
    let waited = Arc::new(Mutex::new(vec![]));
    let injected = waited.clone();
    let late = Router::new().fallback(move |request: Request| async move {
        let ms = request.uri().query().and_then(|query| query.parse().ok()).unwrap_or(0);
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_millis(ms)).await;
        injected.lock().push(begun.elapsed());
        "late"
    });
    tokio::spawn(async move { axum::serve(listener, late).await });
    let stopping = tokio_util::sync::CancellationToken::new();
    let proxy = gateway::Proxy::new(Duration::from_secs(10), &mesh_kit::Settings::default(), stopping)?;
    let seconds = if full { 5.0 } else { 1.5 };
    let mut worst = (0.0f64, String::new());
    for delay_ms in DELAYS_MS {
        let mut traffic = Traffic::default();
        let way = Way { instance: "bench".into(), cluster: "bench".into(), ..Way::default() };
        let rounds = (seconds * 1e3 / delay_ms as f64).ceil() as usize;
        for _ in 0..rounds {
            let asked = (0..AT_ONCE).map(|_| async {
                let request = Request::get(format!("/?{delay_ms}")).body(Body::empty())?;
                let to = gateway::Upstream { address: &address, path: "/", over_h2: false };
                let begun = Instant::now();
                let answer = proxy.forward(request, &to, http::HeaderMap::new()).await;
                let took = begun.elapsed().as_secs_f64();
                let answer = answer.map_err(|problem| anyhow::anyhow!("{problem:?}"))?;
                let status = answer.status().as_u16();
                answer.into_body().collect().await.context("read the answer")?;
                anyhow::Ok((status, took))
            });
            for (status, took) in futures::future::try_join_all(asked).await? {
                traffic.count(&way, status, took);
            }
        }
        let packs = traffic.turn("bench", Timestamp::default());
        let waited = std::mem::take(&mut *waited.lock());
        for (quantile, per_cent) in [("0.5", 50), ("0.9", 90), ("0.95", 95)] {
            let said = packs.iter().find_map(|pack| said(pack, quantile)).context("no quantile was said")?;
            let injected = percentile(&waited, per_cent).as_secs_f64();
            let off = (said / injected - 1.0).abs() * 100.0;
            if off > worst.0 {
                let injected_ms = injected * 1e3;
                worst = (
                    off,
                    format!("{:.2} ms said, {injected_ms:.2} ms injected at {quantile} of {delay_ms} ms", said * 1e3),
                );
            }
        }
    }
    let detail =
        format!("delays of {DELAYS_MS:?} ms, {AT_ONCE} requests at once, quantiles 0.5, 0.9, 0.95; {}", worst.1);
    Ok(Row::new(4, "latency quantiles of the proxy off the injected", Bound::AtMost(5.0), " %", worst.0, detail))
}

fn said(pack: &Readings, quantile: &str) -> Option<f64> {
    let found = pack.metrics.iter().position(|m| m.labels.get("quantile").is_some_and(|label| label == quantile))?;
    let at = pack.metric.iter().position(|metric| usize::try_from(*metric) == Ok(found))?;
    pack.values.get(at).copied()
}
