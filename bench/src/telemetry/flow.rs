//! What the parts about the collector have in common: a collector in a process of its own, what agents send it, and what is
//! stored of that.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use cluster_agent::shell::measure::{Value, application};
use collector::Config;
use mesh_bus::{About, Samples, SamplesMode, SamplesOptions};
use mesh_kit::{Secret, Settings, config};
use mesh_proto::{
    Event as _, PACKED_SIGNAL, READINGS_SIGNAL, Timestamp, derived_id, sample_key,
    telemetry::{
        Entity, InstanceSample, InventoryRequest, Metric, MetricKind, Packed, Provenance, Readings,
        telemetry_queries_client::TelemetryQueriesClient,
    },
};
use prost::Message as _;
use tokio::process::{Child, Command};
use tonic::transport::Channel;

use crate::rig::Rig;

/// How long anything may take that is waited for.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(60);
/// Packs that are on their way at most: as much as a session holds before it drops any.
const UNDER_WAY_MAX: u64 = 6;
/// What does not arrive for so long is lost.
const SILENCE: Duration = Duration::from_secs(5);
/// Metrics of one measured thing.
const METRICS: usize = 20;

/// The present.
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanos(i128::try_from(since.as_nanos()).unwrap_or_default())
}

/// A bus with a Zenoh router beside it.
pub(super) struct Plant {
    pub(super) rig: Rig,
    pub(super) router: Samples,
}

impl Plant {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let rig = Rig::start().await?;
        let listen = vec!["tcp/127.0.0.1:0".to_owned()];
        let options = SamplesOptions { mode: SamplesMode::Router, listen, ..SamplesOptions::default() };
        Ok(Self { rig, router: Samples::open(options).await? })
    }

    /// A collector as it is shipped, in a process of its own.
    pub(super) async fn collector(&self) -> anyhow::Result<Collector> {
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let settings = Settings {
            bus_url: self.rig.server.url(),
            bus_seed_file: Some(Secret::at(self.rig.key("collector")?)),
            listen: address.to_string(),
            samples_connect: self.router.listening().to_vec(),
            log_level: "error".into(),
            ..Settings::default()
        };
        let mut arguments = config::arguments(&settings)?;
        arguments.extend(config::arguments(&Config::default())?);
        let child = own_program("collector", &arguments)?;
        let queries = answering(&format!("http://{address}")).await?;
        Ok(Collector { child, queries, address: format!("http://{address}") })
    }
}

/// A hidden command of this program, in a process that ends with its measurement.
pub(super) fn own_program(command: &str, arguments: &[String]) -> anyhow::Result<Child> {
    let program: PathBuf = std::env::current_exe().context("find this program")?;
    let mut program = Command::new(program);
    program.arg(command).arg("--").args(arguments);
    let child = program.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn();
    child.with_context(|| format!("start {command}"))
}

async fn answering(address: &str) -> anyhow::Result<TelemetryQueriesClient<Channel>> {
    let begun = Instant::now();
    loop {
        if let Ok(mut queries) = TelemetryQueriesClient::connect(address.to_owned()).await
            && queries.inventory(InventoryRequest::default()).await.is_ok()
        {
            return Ok(queries);
        }
        ensure!(begun.elapsed() < STEP_LIMIT, "the collector does not answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The collector that is measured; it ends when this is dropped.
pub(super) struct Collector {
    child: Child,
    pub(super) queries: TelemetryQueriesClient<Channel>,
    pub(super) address: String,
}

impl Collector {
    pub(super) fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("the collector has ended")
    }

    /// Samples or values that it has taken in.
    pub(super) async fn taken(&self, kind: Kind) -> anyhow::Result<u64> {
        let name = match kind {
            Kind::Samples => "collector_samples_total",
            Kind::Readings => "collector_values_total",
        };
        Ok(self.figure(name, &["accepted", "out_of_order"]).await?.iter().sum())
    }

    /// Messages of the stream that are both in the series and in what is rolled up.
    pub(super) async fn kept(&self) -> anyhow::Result<u64> {
        let stores = ["store of samples", "store of rolled-up samples"];
        let handled = self.figure("mesh_consumer_handled_total", &stores).await?;
        Ok(handled.into_iter().min().unwrap_or(0))
    }

    /// What its `/metrics` say under a name, for each text of a label; 0 where they say nothing.
    async fn figure(&self, name: &str, texts: &[&str]) -> anyhow::Result<Vec<u64>> {
        let address = self.address.trim_start_matches("http://").parse()?;
        let read = application::read(address, "/metrics", 100_000).await;
        if let Some(why) = read.failure {
            return Err(anyhow!("read /metrics of the collector: {why}"));
        }
        let of = |text: &str| {
            let has = |value: &&Value| {
                value.metric.name == name && value.metric.labels.iter().any(|(_, found)| found == text)
            };
            read.values.iter().filter(has).map(|value| value.value as u64).sum()
        };
        Ok(texts.iter().map(|text| of(text)).collect())
    }
}

/// Whose samples these are, by the beginning of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// The mesh's: the collector takes them.
    Mesh,
    /// The same bytes for the program by hand.
    ByHand,
}

impl Site {
    /// The key of a cluster's packs; `*` for all of them.
    pub(crate) fn key(self, cluster_id: &str, signal: &str) -> String {
        match self {
            Self::Mesh => sample_key("local", cluster_id, signal, cluster_id),
            Self::ByHand => format!("by-hand/{cluster_id}/{signal}"),
        }
    }
}

/// What agents send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Samples of instances.
    Samples,
    /// Readings of nodes.
    Readings,
}

/// Agents that send packs in turn.
pub(crate) struct Load {
    kind: Kind,
    clusters: usize,
    turn: usize,
    packs: Vec<Pack>,
}

enum Pack {
    Samples(Packed),
    Readings(Readings),
}

impl Load {
    /// Of a number of clusters, with a number of samples or values in each pack.
    pub(crate) fn new(kind: Kind, prefix: &str, clusters: usize, each: usize) -> Self {
        let pack = |number: usize| {
            let cluster_id = format!("{prefix}-{number}");
            match kind {
                Kind::Samples => Pack::Samples(samples(&cluster_id, each)),
                Kind::Readings => Pack::Readings(readings(&cluster_id, each)),
            }
        };
        Self { kind, clusters, turn: 0, packs: (0..clusters).map(pack).collect() }
    }

    /// The next pack as it is sent, measured now: its cluster, its bytes.
    pub(super) fn next(&mut self, at: Timestamp) -> (String, Vec<u8>) {
        let number = self.turn % self.clusters;
        self.turn += 1;
        let turn = self.turn as u64;
        match &mut self.packs[number] {
            Pack::Samples(pack) => {
                for (index, sample) in (0u64..).zip(&mut pack.samples) {
                    sample.at = Some(at);
                    sample.memory_bytes = 1_000_000 + (turn * 7 + index * 13) % 1_000_003;
                    sample.cpu_milli = ((turn * 31 + index * 17) % 1_000) as f64;
                }
                (pack.cluster_id.clone(), pack.encode_to_vec())
            }
            Pack::Readings(pack) => {
                pack.at = Some(at);
                for (index, value) in (0u64..).zip(&mut pack.values) {
                    *value = ((turn * 31 + index * 17) % 100_003) as f64;
                }
                (pack.cluster_id.clone(), pack.encode_to_vec())
            }
        }
    }

    /// The next pack, as a message.
    pub(super) fn next_readings(&mut self, at: Timestamp) -> Option<Readings> {
        let number = self.turn % self.clusters;
        self.next(at);
        match &self.packs[number] {
            Pack::Readings(pack) => Some(pack.clone()),
            Pack::Samples(_) => None,
        }
    }

    /// Sends the next pack, measured at a time.
    pub(crate) async fn send(&mut self, samples: &Samples, site: Site, at: Timestamp) -> anyhow::Result<()> {
        let (cluster_id, body) = self.next(at);
        let (signal, message) = match self.kind {
            Kind::Samples => (PACKED_SIGNAL, Packed::MESSAGE),
            Kind::Readings => (READINGS_SIGNAL, Readings::MESSAGE),
        };
        let key = site.key(&cluster_id, signal);
        let about = About {
            id: derived_id(&[signal, &key, &at.as_nanos().to_string()]),
            message: message.to_owned(),
            source: "cluster-agent".to_owned(),
            time: at,
            traceparent: None,
        };
        Ok(samples.publish(&key, body, &about).await?)
    }

    /// Sends until who takes it in is there, and waits until all that was taken in is stored. What it sends was measured
    /// from a time on.
    ///
    /// # Errors
    /// When nothing comes to be stored.
    pub(crate) async fn begin(
        &mut self,
        samples: &Samples,
        site: Site,
        mut from: Timestamp,
        stored: impl AsyncFn() -> anyhow::Result<u64>,
    ) -> anyhow::Result<()> {
        let (before, begun) = (stored().await?, Instant::now());
        while stored().await? == before {
            ensure!(begun.elapsed() < STEP_LIMIT, "nothing of what is sent comes to be stored");
            self.send(samples, site, from).await?;
            from = from.plus_millis(1);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        loop {
            let before = stored().await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            if stored().await? == before {
                return Ok(());
            }
        }
    }

    /// Sends for this long, at most [`UNDER_WAY_MAX`] packs ahead of what is stored.
    pub(super) async fn flow(
        &mut self,
        samples: &Samples,
        site: Site,
        stored: impl AsyncFn() -> anyhow::Result<u64>,
        length: Duration,
    ) -> anyhow::Result<Flow> {
        let before = stored().await?;
        let begun = Instant::now();
        let (mut sent, mut arrived, mut moved) = (0, 0, Instant::now());
        loop {
            let sends = begun.elapsed() < length;
            if !sends && arrived >= sent {
                break;
            }
            while sends && sent - arrived < UNDER_WAY_MAX {
                self.send(samples, site, now()).await?;
                sent += 1;
            }
            let found = stored().await?.saturating_sub(before);
            if found > arrived {
                (arrived, moved) = (found, Instant::now());
            } else {
                // To ask costs the server as well.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if moved.elapsed() > SILENCE {
                break;
            }
        }
        Ok(Flow { sent, arrived, took: moved.duration_since(begun) })
    }
}

/// What became of some packs.
pub(super) struct Flow {
    pub(super) sent: u64,
    pub(super) arrived: u64,
    /// From the first that was sent to the last that was stored.
    pub(super) took: Duration,
}

/// A pack of as many instances as samples.
fn samples(cluster_id: &str, count: usize) -> Packed {
    let one = |number: usize| InstanceSample {
        cluster_id: cluster_id.to_owned(),
        instance_id: format!("{cluster_id}-workload-{number}"),
        owner: "local".to_owned(),
        generation: 1,
        cpu_percent: 12.5,
        cpu_milli: 125.0,
        memory_bytes: 1 << 20,
        io_read_rate: 4_096.0,
        io_write_rate: 8_192.0,
        restarts: 0,
        replicas_running: 1,
        interval_seconds: 1.0,
        provenance: Provenance::Measured.into(),
        ..InstanceSample::default()
    };
    Packed { cluster_id: cluster_id.to_owned(), samples: (0..count).map(one).collect() }
}

/// A pack with one value for each metric, of twenty metrics for each thing.
fn readings(cluster_id: &str, count: usize) -> Readings {
    let entity = |number: usize| Entity {
        kind: "instance".to_owned(),
        id: format!("{cluster_id}-workload-{number}"),
        cluster_id: cluster_id.to_owned(),
        node: cluster_id.to_owned(),
        owner: "local".to_owned(),
    };
    let metric = |number: usize| Metric {
        entity: (number / METRICS) as u32,
        name: format!("bench.metric.{}", number % METRICS / 2),
        unit: "By".to_owned(),
        kind: MetricKind::Gauge.into(),
        labels: BTreeMap::from([("direction".to_owned(), ["read", "write"][number % 2].to_owned())]),
        provenance: Provenance::Measured.into(),
        probe: "process".to_owned(),
    };
    Readings {
        cluster_id: cluster_id.to_owned(),
        entities: (0..count.div_ceil(METRICS)).map(entity).collect(),
        metrics: (0..count).map(metric).collect(),
        metric: (0..count as u32).collect(),
        after_ms: vec![0; count],
        values: vec![0.0; count],
        ..Readings::default()
    }
}
