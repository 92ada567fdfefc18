//! `bench intents`: from a REST request to its intent's verdict, beside a bare axum handler that publishes the same
//! bytes to JetStream; and what the access check adds to a proxied request. Ours and bare are measured in turn, in one run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use axum::{Router, body::Body, routing::any};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use mesh_proto::intent::SubmitIntent;
use prost::Message as _;
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;

use crate::{
    baseline::Baseline,
    report::{Bound, Length, Row},
    rig::{Rig, percentile},
};
use continuum::commands::login;
use mesh_all::{Options, Up};

pub(crate) type Client = Http<HttpConnector, Full<Bytes>>;

/// Options of `bench intents`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct IntentsOptions {
    #[command(flatten)]
    pub(super) length: Length,
    /// Requests in hand while saturated.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=4096))]
    in_hand: u16,
}

/// Services that have no part in the way from a request to its verdict; the whole mesh is measured beside it.
const ASIDE: [&str; 8] = [
    "collector",
    "cmdt-aggregator",
    "secure-storage",
    "accounting",
    "cfdrl-agent",
    "sar-detector",
    "notifier",
    "json-mirror",
];

/// The stream of the bare handler.
const BARE: &str = "BARE";

/// Takes all measurements.
pub(super) async fn measure(options: &IntentsOptions) -> anyhow::Result<Vec<Row>> {
    let (full, in_hand) = (options.length.full, options.in_hand);
    let length = Duration::from_secs(if full { 20 } else { 5 });
    let without = ASIDE.map(str::to_owned).to_vec();
    let mut rows = within(without, async |session| {
        let rig = Rig::start().await?;
        let mut rows = throughput(&rig, session, in_hand, length).await?;
        rows.extend(access(session, if full { 20_000 } else { 4_000 }).await?);
        Ok(rows)
    })
    .await?;
    let whole = within(vec![], async |session| {
        let url = format!("{}/api/v1/intent/", session.gateway);
        saturate(&url, session.token(), in_hand, Duration::from_secs(1)).await?;
        saturate(&url, session.token(), in_hand, length).await
    });
    let (ours, failed) = whole.await?;
    let detail = format!("{in_hand} in hand for {} s, {failed} not answered well", length.as_secs());
    rows.push(Row::new(5, "the same with every service in one process", Bound::AtLeast(500.0), "/s", ours, detail));
    Ok(rows)
}

/// Measures on a mesh of its own, signed in.
async fn within<T>(
    without: Vec<String>,
    measure: impl AsyncFnOnce(&login::Session) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let folder = tempfile::Builder::new().prefix("continuum-bench-").tempdir().context("make a folder")?;
    let data_dir = folder.path().join("mesh");
    let set = vec!["gateway.rate_per_s=0".into()];
    let options = Options { log: "error".into(), set, without, ..Options::default() };
    let up = Up::start(&data_dir, &options).await?;
    let measured = async {
        let gateway = login::gateway_of(&data_dir)?;
        let password = login::first_password(&data_dir)?;
        measure(&login::sign_in(&data_dir, &gateway, "admin", &password).await?).await
    }
    .await;
    up.stop().await.context("stop the mesh")?;
    measured
}

fn intent(number: u64) -> Json {
    json!({"userLabel": "DeliverComputingWorkload", "intentExpectations": [{
        "expectationId": "a", "expectationVerb": "DELIVER",
        "expectationObject": {"objectType": "NEMO_WORKLOAD", "objectInstance": "absent@1.0.0"},
        "expectationTargets": [{"targetName": "cpuUsage", "targetCondition": "IS_LESS_THAN",
            "targetValueRange": (number % 90 + 10).to_string()}],
    }]})
}

pub(crate) fn http() -> Client {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Http::builder(TokioExecutor::new()).pool_max_idle_per_host(4_096).build(connector)
}

async fn post(http: &Client, url: &str, token: &str, number: u64) -> anyhow::Result<u16> {
    let request = Request::post(url)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(intent(number).to_string())))?;
    let response = http.request(request).await?;
    let status = response.status().as_u16();
    response.into_body().collect().await?;
    Ok(status)
}

/// Requests a second that end well, with this number in hand.
async fn saturate(url: &str, token: &str, in_hand: u16, length: Duration) -> anyhow::Result<(f64, u64)> {
    let (http, begun) = (http(), Instant::now());
    let (next, done, other) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..in_hand {
        let (http, url, token) = (http.clone(), url.to_owned(), token.to_owned());
        let (next, done, other) = (next.clone(), done.clone(), other.clone());
        tasks.spawn(async move {
            while begun.elapsed() < length {
                let number = next.fetch_add(1, Relaxed);
                match post(&http, &url, &token, number).await {
                    Ok(200 | 201) => done.fetch_add(1, Relaxed),
                    _ => other.fetch_add(1, Relaxed),
                };
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok((done.load(Relaxed) as f64 / begun.elapsed().as_secs_f64(), other.load(Relaxed)))
}

/// Times from when a request was due, at a steady rate: what waits in the client counts.
async fn paced(url: &str, token: &str, per_second: f64, length: Duration) -> anyhow::Result<Vec<Duration>> {
    let (http, begun) = (http(), Instant::now());
    let count = (per_second * length.as_secs_f64()) as u64;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..count {
        let due = begun + Duration::from_secs_f64(number as f64 / per_second);
        tokio::time::sleep_until(due.into()).await;
        let (http, url, token) = (http.clone(), url.to_owned(), token.to_owned());
        tasks.spawn(async move {
            let status = post(&http, &url, &token, number).await;
            (status, due.elapsed())
        });
    }
    let mut times = vec![];
    while let Some(ended) = tasks.join_next().await {
        let (status, time) = ended?;
        let status = status?;
        ensure!(matches!(status, 200 | 201), "a submission was answered with status {status}");
        times.push(time);
    }
    Ok(times)
}

/// A bare axum handler that publishes what comes to JetStream with a hand-written client, and answers once it is on disk.
async fn bare(baseline: Baseline) -> anyhow::Result<String> {
    let router = Router::new().fallback(move |request: Request<Body>| {
        let baseline = baseline.clone();
        async move {
            let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let intent = serde_json::from_slice::<Json>(&body)
                .ok()
                .and_then(|value| mesh_proto::json::from_value("continuum.intent.v1.Intent", value).ok());
            let intent_id = uuid::Uuid::now_v7().to_string();
            let command = SubmitIntent { owner: "local".into(), intent_id: intent_id.clone(), intent };
            match baseline.publish(BARE, &intent_id, command.encode_to_vec().into()).await {
                Ok(()) => http::StatusCode::CREATED,
                Err(_) => http::StatusCode::INTERNAL_SERVER_ERROR,
            }
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

async fn throughput(rig: &Rig, session: &login::Session, in_hand: u16, length: Duration) -> anyhow::Result<Vec<Row>> {
    let raw = bare(rig.baseline(&[BARE]).await?).await?;
    let url = format!("{}/api/v1/intent/", session.gateway);
    let token = session.token();
    saturate(&url, token, in_hand, Duration::from_secs(1)).await?;
    let (ours, failed) = saturate(&url, token, in_hand, length).await?;
    let (bare, _) = saturate(&raw, token, in_hand, length).await?;
    let times = paced(&url, token, (ours / 2.0).clamp(10.0, 500.0), length).await?;
    let p99 = percentile(&times, 99).as_secs_f64() * 1e3;
    let p50 = percentile(&times, 50).as_secs_f64() * 1e3;
    let detail = format!(
        "{in_hand} in hand for {} s, {failed} not answered well; REST, decided, validated, acknowledged",
        length.as_secs()
    );
    let rate = times.len() as f64 / length.as_secs_f64();
    Ok(vec![
        Row::new(1, "intents validated over REST", Bound::AtLeast(1_000.0), "/s", ours, detail),
        Row::new(
            2,
            "of bare axum and a JetStream publish",
            Bound::AtLeast(0.05),
            "",
            ours / bare,
            format!("bare: {bare:.0}/s"),
        ),
        Row::new(
            3,
            "p99 at half of it",
            Bound::AtMost(50.0),
            " ms",
            p99,
            format!("{rate:.0}/s, p50 {p50:.1} ms, from when each was due"),
        ),
    ])
}

async fn get(http: &Client, url: &str, token: &str) -> anyhow::Result<(u16, Duration)> {
    let begun = Instant::now();
    let request =
        Request::get(url).header(header::AUTHORIZATION, format!("Bearer {token}")).body(Full::new(Bytes::new()))?;
    let response = http.request(request).await?;
    let status = response.status().as_u16();
    response.into_body().collect().await?;
    Ok((status, begun.elapsed()))
}

/// A proxied request with the access check and without it, in turn.
async fn access(session: &login::Session, count: usize) -> anyhow::Result<Vec<Row>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let page = Router::new().fallback(any(|| async { "here" }));
    tokio::spawn(async move { axum::serve(listener, page).await });
    let proxy = gateway::Proxy::new(
        Duration::from_secs(10),
        &mesh_kit::Settings::default(),
        tokio_util::sync::CancellationToken::new(),
    )?;
    let unchecked = Router::new().fallback(move |request: Request<Body>| {
        let proxy = proxy.clone();
        async move {
            let address = format!("http://127.0.0.1:{port}");
            let to = gateway::Upstream { address: &address, path: "/", over_h2: false };
            let answer = proxy.forward(request, &to, http::HeaderMap::new()).await;
            answer.unwrap_or_else(|_| http::Response::new(Body::from("away")))
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let raw = format!("http://{}/", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, unchecked).await });

    let document = json!({"name": "exposed", "version": "1.0.0", "kind": "process",
        "process": {"command": "sleep", "arguments": ["600"]},
        "resources": {"cpuMilli": 10, "memoryBytes": 10_000_000}, "replicas": 1, "expose": {"port": port}});
    let (status, answer) = session.ask(http::Method::POST, "/api/v1/workload/", Some(&document)).await?;
    ensure!(status == 201, "register the exposed workload: {answer}");
    let path = "/api/v1/workload/exposed@1.0.0/template/";
    let (status, answer) = session.ask(http::Method::POST, path, Some(&json!({}))).await?;
    ensure!(status == 201, "run the exposed workload: {answer}");
    let id = answer["instance_id"].as_str().context("the instance has an id")?.to_owned();
    let url = format!("{}/access/local/{id}/", session.gateway);
    let (http, token) = (http(), session.token());
    let deadline = Instant::now() + Duration::from_secs(30);
    while get(&http, &url, token).await?.0 != 200 {
        ensure!(Instant::now() < deadline, "the exposed workload is not reached within 30 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (mut checked, mut bare) = (vec![], vec![]);
    for _ in 0..count {
        checked.push(get(&http, &url, token).await?.1);
        bare.push(get(&http, &raw, token).await?.1);
    }
    let ms = |times: &[Duration], of: usize| percentile(times, of).as_secs_f64() * 1e3;
    let detail = format!(
        "{count} requests each, in turn: p50 {:.3} and {:.3} ms, p99 {:.3} and {:.3} ms",
        ms(&checked, 50),
        ms(&bare, 50),
        ms(&checked, 99),
        ms(&bare, 99)
    );
    let added = ms(&checked, 99) - ms(&bare, 99);
    let stopped = session.ask(http::Method::PUT, &format!("/api/v1/workload/instance/{id}/delete/"), None).await?;
    ensure!(stopped.0 == 200, "stop the exposed workload: {}", stopped.1);
    Ok(vec![Row::new(4, "added by the access check, p99", Bound::AtMost(1.0), " ms", added, detail)])
}
