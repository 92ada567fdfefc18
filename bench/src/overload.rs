//! `bench overload`: what the mesh does with three times the intents that it can take: how many it plans, how soon it
//! plans what it accepted, what it answers to the rest, and whether its memory stays.

use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use continuum::commands::login;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use mesh_all::{Options, Up};
use mesh_client::Client;
use mesh_proto::placement::PlacementDecided;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::{
    cost::resident_bytes,
    intents::{Client as Http, http},
    report::{Bound, Row},
    rig::percentile,
    whole,
};

/// Requests in hand while the best rate is looked for.
const IN_HAND: usize = 128;
/// Offered, in multiples of the best rate.
const OFFERED: f64 = 3.0;
/// Requests in hand at most; a client with more would give up.
const IN_HAND_MAX: usize = 2_048;
/// How long what was accepted may take to be planned before it counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(60);

/// When each intent was planned, by its id.
type Planned = Arc<Mutex<HashMap<String, Instant>>>;

/// Takes all measurements.
pub(super) async fn measure(full: bool) -> anyhow::Result<Vec<Row>> {
    let folder = tempfile::Builder::new().prefix("continuum-bench-").tempdir().context("make a folder")?;
    let file = whole::spacious_clusters(folder.path())?;
    let data_dir = folder.path().join("mesh");
    let set = vec!["gateway.rate_per_s=0".into()];
    let options = Options { clusters: Some(file), log: "error".into(), set, ..Options::default() };
    let up = Up::start(&data_dir, &options).await.context("start the mesh")?;
    let rows = within(&data_dir, full).await;
    up.stop().await.context("stop the mesh")?;
    rows
}

async fn within(data_dir: &Path, full: bool) -> anyhow::Result<Vec<Row>> {
    let client = Client::connect(data_dir).await?;
    whole::register(&client).await?;
    let (gateway, password) = (login::gateway_of(data_dir)?, login::first_password(data_dir)?);
    let session = login::sign_in(data_dir, &gateway, "admin", &password).await?;
    let sender = Sender {
        http: http(),
        url: format!("{}/api/v1/intent/", session.gateway).into(),
        token: session.token().into(),
    };
    let planned = Planned::default();
    let log = client.bus().log("PLACEMENT");
    let mut tail = log.tail("placement.>", log.last_sequence().await? + 1);
    let seen = planned.clone();
    let watch = tokio::spawn(async move {
        loop {
            let stored = tail.next().await?;
            let at = Instant::now();
            if let Some(decided) = stored.event::<PlacementDecided>()? {
                seen.lock().entry(decided.intent_id).or_insert(at);
            }
        }
        #[allow(unreachable_code, reason = "gives the task its error type")]
        anyhow::Ok(())
    });
    let (search, length) = if full { (20, 60) } else { (4, 8) };
    sender.closed(Duration::from_secs(2)).await;
    let before = best(&sender, &planned, search).await;
    let memory_before = resident_bytes(std::process::id()).unwrap_or_default();
    let begun = Instant::now();
    let sent = sender.open(before * OFFERED, Duration::from_secs(length)).await;
    let end = Instant::now();
    let accepted: Vec<&Sent> = sent.iter().filter(|sent| sent.id.is_some()).collect();
    let is_planned = |sent: &&Sent| sent.id.as_ref().is_some_and(|id| planned.lock().contains_key(id));
    while end.elapsed() < LOST_AFTER && !accepted.iter().all(is_planned) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let memory_after = resident_bytes(std::process::id()).unwrap_or_default();
    let goodput = rate(&planned, begun, end);
    let mut times: Vec<Duration> = accepted
        .iter()
        .filter_map(|sent| Some(planned.lock().get(sent.id.as_ref()?)?.saturating_duration_since(sent.at)))
        .collect();
    times.sort();
    let lost = accepted.len() - times.len();
    // What was accepted runs from then on, and takes its share of the machine: the best is less afterwards.
    let after = best(&sender, &planned, search).await;
    watch.abort();
    let busy = sent.iter().filter(|sent| sent.status == 429).count();
    let other = sent.len() - accepted.len() - busy;
    client.bus().close().await;
    let grown = (memory_after - memory_before).max(0.0) / accepted.len().max(1) as f64 / 1e3;
    Ok(vec![
        Row::new(
            1,
            "planned while three times the best is offered, to the best (mean of the two around it)",
            Bound::AtLeast(0.9),
            "",
            goodput * 2.0 / (before + after),
            format!("{goodput:.0}/s for {length} s; best {before:.0} before, {after:.0} after; {} offered", sent.len()),
        ),
        Row::new(
            2,
            "accepted until planned, p99",
            Bound::AtMost(2.0),
            " s",
            percentile(&times, 99).as_secs_f64(),
            format!("p50 {:.2} s, of {} accepted", percentile(&times, 50).as_secs_f64(), accepted.len()),
        ),
        Row::new(
            3,
            "neither accepted nor told to come again",
            Bound::Exactly(0.0),
            "",
            other as f64,
            format!("{busy} were answered 429"),
        ),
        Row::new(4, "accepted and not planned", Bound::Exactly(0.0), "", lost as f64, String::new()),
        Row::new(
            5,
            "memory that an accepted intent leaves, load generator included",
            Bound::AtMost(100.0),
            " kB",
            grown,
            format!("{:.0} to {:.0} MB", memory_before / 1e6, memory_after / 1e6),
        ),
    ])
}

/// Intents planned each second while no more is offered than is answered.
async fn best(sender: &Sender, planned: &Planned, seconds: u64) -> f64 {
    let begun = Instant::now();
    sender.closed(Duration::from_secs(seconds)).await;
    let end = Instant::now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    rate(planned, begun, end)
}

/// Intents planned each second between two times.
fn rate(planned: &Planned, begun: Instant, end: Instant) -> f64 {
    let count = planned.lock().values().filter(|at| **at >= begun && **at < end).count();
    count as f64 / (end - begun).as_secs_f64()
}

/// One request and its answer.
struct Sent {
    at: Instant,
    status: u16,
    /// The intent, if it was accepted.
    id: Option<String>,
}

#[derive(Clone)]
struct Sender {
    http: Http,
    url: Arc<str>,
    token: Arc<str>,
}

impl Sender {
    async fn send(&self) -> Sent {
        let at = Instant::now();
        let body = json!({"userLabel": "DeliverComputingWorkload", "intentPriority": 1, "observationPeriod": 60,
            "intentExpectations": [{"expectationId": "run", "expectationVerb": "DELIVER",
                "expectationObject": {"objectType": "NEMO_WORKLOAD", "objectInstance": "bench@1.0.0"},
                "expectationTargets": [{"targetName": "cpuUsage", "targetCondition": "IS_LESS_THAN",
                    "targetValueRange": "90"}]}]});
        let request = Request::post(&*self.url)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body.to_string().into()));
        let answer = async {
            let response = self.http.request(request?).await?;
            let status = response.status().as_u16();
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let id = location.and_then(|path| path.trim_end_matches('/').rsplit('/').next()).map(str::to_owned);
            response.into_body().collect().await?;
            anyhow::Ok((status, id.filter(|_| matches!(status, 200..=202))))
        };
        let (status, id) = answer.await.unwrap_or((0, None));
        Sent { at, status, id }
    }

    /// One request after the other, [`IN_HAND`] side by side.
    async fn closed(&self, length: Duration) {
        let begun = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..IN_HAND {
            let sender = self.clone();
            tasks.spawn(async move {
                while begun.elapsed() < length {
                    if sender.send().await.status == 429 {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            });
        }
        tasks.join_all().await;
    }

    /// Requests at a steady rate, whatever becomes of them.
    async fn open(&self, per_second: f64, length: Duration) -> Vec<Sent> {
        let begun = Instant::now();
        let count = (per_second * length.as_secs_f64()) as u64;
        let in_hand = Arc::new(Semaphore::new(IN_HAND_MAX));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..count {
            tokio::time::sleep_until((begun + Duration::from_secs_f64(number as f64 / per_second)).into()).await;
            let (sender, in_hand) = (self.clone(), in_hand.clone());
            let Ok(permit) = in_hand.acquire_owned().await else { break };
            tasks.spawn(async move {
                let sent = sender.send().await;
                drop(permit);
                sent
            });
        }
        tasks.join_all().await
    }
}
