//! `bench telemetry --only twins`: what the aggregator costs whose twins all change each second, how soon it says what was,
//! and how long it takes to come back after it was killed.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use mesh_bus::{About, Bus, Log, Samples, SamplesMode, SamplesOptions, Written};
use mesh_core::{Decision, Outgoing};
use mesh_proto::{
    PACKED_SIGNAL,
    placement::PlacementDecided,
    sample_key,
    telemetry::{InstanceSample, Packed},
    twin::{Twin, TwinRequest, twin_queries_client::TwinQueriesClient},
};
use mesh_test::{Kind, now};
use prost::Message as _;
use tokio::process::{Child, Command};
use tonic::transport::Channel;

use super::servers::database;
use crate::{
    host::used,
    report::{Bound, Row},
    rig::{Rig, percentile},
};

/// Clusters whose agents send the samples, one pack each a second.
const CLUSTERS: usize = 20;
/// Facts of one decision.
const FACTS: usize = 200;
/// Longest wait for a step.
const STEP_LIMIT: Duration = Duration::from_secs(120);
/// How far back states are asked for, milliseconds.
const BACK_MS: i64 = 8_000;

/// How much is measured.
struct Size {
    twins: usize,
    seconds: u64,
    asked: usize,
}

/// All rows.
///
/// # Errors
/// When the aggregator's program is missing, or something does not start.
pub(crate) async fn measure(full: bool) -> anyhow::Result<Vec<Row>> {
    let size = if full {
        Size { twins: 10_000, seconds: 30, asked: 2_000 }
    } else {
        Size { twins: 1_000, seconds: 5, asked: 300 }
    };
    let mut rows = embedded(&size).await?;
    rows.extend(in_cassandra(&size).await?);
    Ok(rows)
}

/// A bus with a Zenoh router, instances on their clusters, and what changes all of them.
struct Stage {
    rig: Rig,
    router: Samples,
    /// Reads what the aggregator published.
    reader: Bus,
    twins: usize,
}

impl Stage {
    async fn start(twins: usize) -> anyhow::Result<Self> {
        let rig = Rig::start().await?;
        let listen = vec!["tcp/127.0.0.1:0".to_owned()];
        let options = SamplesOptions { mode: SamplesMode::Router, listen, ..SamplesOptions::default() };
        let router = Samples::open(options).await.context("open a Zenoh router")?;
        let reader = rig.bus("cmdt-aggregator").await?;
        let stage = Self { rig, router, reader, twins };
        stage.place().await?;
        Ok(stage)
    }

    /// The planner places every instance.
    async fn place(&self) -> anyhow::Result<()> {
        let planner = self.rig.bus("meta-orchestrator").await?;
        let writer = planner.writer("PLACEMENT");
        let numbers: Vec<usize> = (0..self.twins).collect();
        let mut expected = 0;
        for numbers in numbers.chunks(FACTS) {
            let message = |number: &usize| {
                let decided = PlacementDecided {
                    domain: "default".into(),
                    owner: "local".into(),
                    instance_id: instance(*number),
                    intent_id: format!("intent-{number}"),
                    generation: 1,
                    cluster_id: cluster(*number),
                    reason: "chosen".into(),
                    replicas: 1,
                    ..PlacementDecided::default()
                };
                Outgoing::new(&decided, format!("bench-{number}"), now())
            };
            let messages = numbers.iter().map(message).collect::<Result<_, _>>()?;
            let decision = Decision { entity: "placement.*.*.default".into(), expected, messages };
            match writer.write(decision).await? {
                Written::Stored { last } => expected = last,
                Written::Stale { last } => bail!("somebody else placed instances, up to {last:?}"),
            }
        }
        Ok(())
    }

    fn of_cluster(&self, number: usize) -> usize {
        self.twins.saturating_sub(number).div_ceil(CLUSTERS)
    }

    /// Every instance is sampled each second, and each sample is far from the one before, until `stop`.
    async fn change_all(&self, stop: &AtomicBool) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / CLUSTERS as u32);
        for round in 0usize.. {
            ticks.tick().await;
            if stop.load(Relaxed) {
                break;
            }
            let (number, second) = (round % CLUSTERS, round / CLUSTERS);
            let (cluster_id, at) = (cluster(number), now());
            let sample = |place: usize| InstanceSample {
                cluster_id: cluster_id.clone(),
                instance_id: instance(place * CLUSTERS + number),
                owner: "local".into(),
                at: Some(at),
                generation: 1,
                cpu_percent: ((second * 7 + place * 3) % 90) as f64,
                cpu_milli: 40.0,
                memory_bytes: 50_000_000,
                replicas_running: 1,
                interval_seconds: 1.0,
                ..InstanceSample::default()
            };
            let samples = (0..self.of_cluster(number)).map(sample).collect();
            let key = sample_key("bench", "node", PACKED_SIGNAL, &cluster_id);
            let pack = Packed { cluster_id, samples };
            let about = About { time: at, ..About::default() };
            self.router.publish(&key, pack.encode_to_vec(), &about).await.context("publish samples")?;
        }
        Ok(())
    }

    fn log(&self) -> Log {
        self.reader.log("TWIN")
    }
}

fn instance(number: usize) -> String {
    format!("instance-{number:05}")
}

fn cluster(number: usize) -> String {
    format!("cluster-{:02}", number % CLUSTERS)
}

/// The aggregator as a process of its own.
struct Aggregator {
    child: Child,
    client: TwinQueriesClient<Channel>,
}

impl Aggregator {
    /// Starts it and waits until it answers.
    async fn start(stage: &Stage, history_url: Option<&str>) -> anyhow::Result<Self> {
        let listen = mesh_test::free_address().to_string();
        let program: PathBuf = std::env::current_exe().context("find this program")?.with_file_name("cmdt-aggregator");
        let mut command = Command::new(&program);
        command
            .env("CONTINUUM_BUS_URL", stage.rig.server.url())
            .env("CONTINUUM_BUS_SEED_FILE", stage.rig.key("cmdt-aggregator")?)
            .env("CONTINUUM_SAMPLES_CONNECT", stage.router.listening().join(","))
            .env("CONTINUUM_LISTEN", &listen)
            .env("CONTINUUM_LOG_LEVEL", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        command.envs(history_url.map(|url| ("CMDT_AGGREGATOR_HISTORY", url)));
        let child = command
            .spawn()
            .with_context(|| format!("start {}; build it: cargo build -p cmdt-aggregator", program.display()))?;
        let begun = Instant::now();
        let client = loop {
            match TwinQueriesClient::connect(format!("http://{listen}")).await {
                Ok(client) => break client,
                Err(error) if begun.elapsed() > STEP_LIMIT => return Err(error).context("await the aggregator"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        Ok(Self { child, client })
    }

    fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("the aggregator has ended")
    }

    /// Waits until every twin has been published and can be listed.
    async fn await_all(&mut self, count: usize) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.listed().await?.len() < count {
            ensure!(begun.elapsed() < STEP_LIMIT, "the aggregator does not list {count} twins");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Every workload's twin as last published, by id.
    async fn listed(&mut self) -> anyhow::Result<BTreeMap<String, Twin>> {
        let (mut found, mut page_token) = (BTreeMap::new(), String::new());
        loop {
            let kind = "workload".into();
            let request = TwinRequest { kind, page_size: 1_000, page_token, ..TwinRequest::default() };
            let page = self.client.list(request).await.context("list twins")?.into_inner();
            found.extend(page.twins.into_iter().map(|twin| (twin.id.clone(), twin)));
            if page.next_page_token.is_empty() {
                return Ok(found);
            }
            page_token = page.next_page_token;
        }
    }

    /// Asks for states of the last seconds, one after the other, and says how long each took.
    async fn ask_past(&self, twins: usize, count: usize, pause: Duration) -> anyhow::Result<Vec<Duration>> {
        let mut client = self.client.clone();
        let mut took = vec![];
        for number in 0..count {
            // Spread evenly, and differently from one question to the next.
            let (id, back_ms) = (instance(number * 7_919 % twins), (number as i64 * 613) % BACK_MS + 1_000);
            let at = Some(now().plus_millis(-back_ms));
            let request = TwinRequest { kind: "workload".into(), id, at, ..TwinRequest::default() };
            let begun = Instant::now();
            let twin = client.get(request).await.context("ask for a past state")?.into_inner();
            took.push(begun.elapsed());
            ensure!(twin.at <= at, "a state of {:?} is of {:?}", at, twin.at);
            tokio::time::sleep(pause).await;
        }
        Ok(took)
    }
}

/// CPU seconds of a process.
fn seconds(pid: u32) -> anyhow::Result<f64> {
    Ok(used(pid)?.0)
}

/// What happened while the twins changed.
struct Changed {
    /// Cores that the aggregator and nats-server took.
    cores: f64,
    server_cores: f64,
    versions_per_second: f64,
    asked: Vec<Duration>,
}

/// Lets all twins change, and measures once they all have changed and have a past.
async fn changing(stage: &Stage, aggregator: &mut Aggregator, size: &Size, asked: usize) -> anyhow::Result<Changed> {
    let (stop, log) = (AtomicBool::new(false), stage.log());
    let measuring = async {
        aggregator.await_all(stage.twins).await?;
        tokio::time::sleep(Duration::from_millis(BACK_MS.unsigned_abs() + 2_000)).await;
        let server = stage.rig.server.pid().context("nats-server has ended")?;
        let pid = aggregator.pid()?;
        let (before, server_before, first) = (seconds(pid)?, seconds(server)?, log.last_sequence().await?);
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_secs(size.seconds)).await;
        let passed = begun.elapsed().as_secs_f64();
        let (after, server_after, last) = (seconds(pid)?, seconds(server)?, log.last_sequence().await?);
        // Apart, so that the questions are not among the earlier figures.
        let asked = aggregator.ask_past(stage.twins, asked, Duration::from_millis(2)).await?;
        anyhow::Ok(Changed {
            cores: (after - before) / passed,
            server_cores: (server_after - server_before) / passed,
            versions_per_second: (last - first) as f64 / passed,
            asked,
        })
    };
    let until_measured = async {
        let changed = measuring.await;
        stop.store(true, Relaxed);
        changed
    };
    let (changed, load) = tokio::join!(until_measured, stage.change_all(&stop));
    load?;
    changed
}

async fn embedded(size: &Size) -> anyhow::Result<Vec<Row>> {
    let stage = Stage::start(size.twins).await?;
    let mut aggregator = Aggregator::start(&stage, None).await?;
    let changed = changing(&stage, &mut aggregator, size, size.asked).await?;
    let share = changed.versions_per_second / size.twins as f64;
    let cost = format!(
        "{} twins sampled each second, over {} s; nats-server {:.2} cores",
        size.twins, size.seconds, changed.server_cores
    );
    let rate = format!("{:.0} versions stored a second", changed.versions_per_second);
    let mut rows = vec![
        Row::new(
            40,
            "the aggregator while all twins change each second",
            Bound::AtMost(1.0),
            " cores",
            changed.cores,
            cost,
        ),
        Row::new(41, "versions a second, to samples", Bound::AtLeast(0.95), "", share, rate),
        past(42, "a past state, embedded, while they change, p99", 10.0, &changed.asked),
    ];
    rows.push(rebuilt(&stage, aggregator).await?);
    Ok(rows)
}

fn past(number: u8, what: &str, bound_ms: f64, asked: &[Duration]) -> Row {
    let ms = |per_cent| percentile(asked, per_cent).as_secs_f64() * 1e3;
    let detail =
        format!("{} asked over gRPC, of the last {} s; p50 {:.2} ms", asked.len(), BACK_MS / 1_000 + 1, ms(50));
    Row::new(number, what, Bound::AtMost(bound_ms), " ms", ms(99), detail)
}

/// Kills the aggregator, and starts it again: every twin as last published is there again, equal in all its fields.
async fn rebuilt(stage: &Stage, mut aggregator: Aggregator) -> anyhow::Result<Row> {
    let log = stage.log();
    let begun = Instant::now();
    let newest = |twins: &BTreeMap<String, Twin>| twins.values().map(|twin| twin.version).max();
    let mut before = aggregator.listed().await?;
    loop {
        let last = log.last_sequence().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let found = aggregator.listed().await?;
        if log.last_sequence().await? == last && newest(&found) == newest(&before) {
            break;
        }
        before = found;
        ensure!(begun.elapsed() < STEP_LIMIT, "the twins go on changing");
    }
    aggregator.child.kill().await.context("kill the aggregator")?;
    let begun = Instant::now();
    let mut again = Aggregator::start(stage, None).await?;
    let answers_ms = begun.elapsed().as_millis();
    // It reads its stream from the oldest version on: until it is through, a twin is an earlier one.
    let mut after = again.listed().await?;
    while after != before && begun.elapsed() < STEP_LIMIT {
        tokio::time::sleep(Duration::from_millis(50)).await;
        after = again.listed().await?;
    }
    let took = begun.elapsed().as_secs_f64();
    let differ = before.iter().filter(|(id, twin)| after.get(*id) != Some(twin)).count();
    let detail = format!(
        "{} twins listed again after {took:.2} s, the first question answered after {:.2} s",
        before.len(),
        answers_ms as f64 / 1e3
    );
    Ok(Row::new(43, "twins that differ after a crash", Bound::Exactly(0.0), "", differ as f64, detail))
}

/// A tenth of the twins: both cores have Cassandra on them as well.
async fn in_cassandra(size: &Size) -> anyhow::Result<Option<Row>> {
    let Some(server) = database("twins in Cassandra", Kind::Cassandra).await else { return Ok(None) };
    let stage = Stage::start(size.twins / 10).await?;
    let mut aggregator = Aggregator::start(&stage, Some(&server.url("twins"))).await?;
    let size = Size { seconds: size.seconds / 3, ..*size };
    let changed = changing(&stage, &mut aggregator, &size, size.asked / 2).await?;
    let what = format!("a past state, Cassandra, while {} change, p99", stage.twins);
    Ok(Some(past(44, &what, 30.0, &changed.asked)))
}
