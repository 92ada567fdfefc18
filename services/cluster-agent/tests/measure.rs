//! What an agent measures beside its instances, on a real bus: readings, settings, failures.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test measures how long something takes")]

#[path = "measure/otlp.rs"]
mod otlp;
#[path = "measure/skew.rs"]
mod skew;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use cluster_agent::Config;
use mesh_bus::{Bus, Samples, SamplesMode, SamplesOptions};
use mesh_core::{Decision, Outgoing};
use mesh_kit::{Running, Settings};
use mesh_proto::{
    Event, Timestamp,
    assignment::{Action, AssignmentChanged},
    derived_id,
    measurement::{Adaptive, MeasurementSet, MeasurementUnset, Selector, Setting},
    telemetry::{Entity, Metric, MetricKind, Packed, Provenance, Readings},
    workload::{ProcessSpec, Resources, WorkloadDocument},
};
use mesh_test::{TestBus, soon};
use prost::Message as _;

const CLUSTER: &str = "edge";

/// A bus, one that decides settings, and one that assigns.
struct TestMesh {
    test_bus: TestBus,
    collector: Bus,
    orchestrator: Bus,
    /// Sequence of the last fact of each setting.
    last: BTreeMap<String, u64>,
}

/// What was read of one metric of one entity.
struct One {
    entity: Entity,
    metric: Metric,
    at: Timestamp,
    value: f64,
}

/// Readings as they come.
struct Stream(mesh_bus::SampleStream);

impl Stream {
    async fn pack(&mut self) -> Readings {
        let sample = soon("readings", self.0.next()).await.unwrap();
        mesh_proto::readings(&sample.key, &sample.body).expect("a pack that fits")
    }

    /// The next pack with a value that fits; every value of it that does.
    async fn values(&mut self, fits: impl Fn(&Entity, &Metric) -> bool) -> Vec<One> {
        loop {
            let found = values(&self.pack().await, &fits);
            if !found.is_empty() {
                return found;
            }
        }
    }
}

fn values(pack: &Readings, fits: impl Fn(&Entity, &Metric) -> bool) -> Vec<One> {
    let columns = pack.metric.iter().zip(&pack.after_ms).zip(&pack.values);
    columns
        .map(|((metric, after_ms), value)| {
            let metric = pack.metrics[*metric as usize].clone();
            let at = pack.at.unwrap().plus_millis(i64::from(*after_ms));
            One { entity: pack.entities[metric.entity as usize].clone(), metric, at, value: *value }
        })
        .filter(|one| fits(&one.entity, &one.metric))
        .collect()
}

fn named(name: &str) -> impl Fn(&Entity, &Metric) -> bool {
    move |_, metric| metric.name == name
}

impl TestMesh {
    async fn start(test: &str) -> Option<Self> {
        let test_bus = TestBus::start(&format!("cluster-agent measure, {test}")).await?;
        let (collector, orchestrator) =
            (test_bus.connect("collector").await, test_bus.connect("meta-orchestrator").await);
        Some(Self { test_bus, collector, orchestrator, last: BTreeMap::new() })
    }

    fn config(&self, driver: &str) -> Config {
        Config {
            cluster_id: CLUSTER.into(),
            cpu_milli: 2_000,
            driver: driver.into(),
            site: "plant".into(),
            node: "n1".into(),
            data_dir: self.test_bus.folder().join("agent").to_string_lossy().into(),
            measure_slow_ms: 500,
            ..Config::default()
        }
    }

    async fn agent(&self, config: Config) -> Running {
        self.agent_that_sends(config, None).await
    }

    /// An agent whose own telemetry goes to an endpoint.
    async fn agent_that_sends(&self, config: Config, otlp_endpoint: Option<String>) -> Running {
        let settings = Settings {
            otlp_endpoint,
            samples_mode: mesh_kit::config::SamplesMode::Router,
            samples_listen: vec!["tcp/127.0.0.1:0".into()],
            ..self.test_bus.settings("cluster-agent")
        };
        mesh_kit::join("cluster-agent", settings, config, cluster_agent::start).await.unwrap()
    }

    async fn samples(&self, agent: &Running) -> Samples {
        let connect = agent.mesh().samples().await.unwrap().listening().to_vec();
        Samples::open(SamplesOptions { mode: SamplesMode::Client, connect, ..Default::default() }).await.unwrap()
    }

    async fn decide<E: Event>(&mut self, setting: &str, fact: &E) {
        let last = self.last.get(setting).copied().unwrap_or(0);
        let id = derived_id(&["setting", setting, &last.to_string()]);
        let decision = Decision {
            entity: format!("measurement.*.*.{CLUSTER}.{setting}"),
            expected: last,
            messages: vec![Outgoing::new(fact, id, Timestamp::from_millis(1)).unwrap()],
        };
        match self.collector.writer(MeasurementSet::STREAM).write(decision).await.unwrap() {
            mesh_bus::Written::Stored { last } => self.last.insert(setting.to_owned(), last),
            stale @ mesh_bus::Written::Stale { .. } => panic!("{stale:?}"),
        };
    }

    async fn set(&mut self, name: &str, (kind, id, probe): (&str, &str, &str), setting: Setting) {
        let selector = Selector { entity_kind: kind.into(), entity_id: id.into(), probe: probe.into() };
        let fact = MeasurementSet {
            cluster_id: CLUSTER.into(),
            setting_id: name.into(),
            setting: Some(Setting { selector: Some(selector), ..setting }),
            command_id: "c".into(),
        };
        self.decide(name, &fact).await;
    }

    async fn unset(&mut self, name: &str) {
        let fact = MeasurementUnset { cluster_id: CLUSTER.into(), setting_id: name.into(), command_id: "c".into() };
        self.decide(name, &fact).await;
    }

    async fn run(&self, instance: &str, process: ProcessSpec) {
        let document = WorkloadDocument {
            name: "w".into(),
            version: "1.0.0".into(),
            kind: "process".into(),
            process: Some(process),
            resources: Some(Resources { cpu_milli: 100, memory_bytes: 1_000_000, ..Default::default() }),
            ..Default::default()
        };
        let assignment = AssignmentChanged {
            cluster_id: CLUSTER.into(),
            owner: "local".into(),
            instance_id: instance.into(),
            generation: 1,
            action: Action::Run.into(),
            replicas: 1,
            document: document.encode_to_vec().into(),
            ..Default::default()
        };
        let id = derived_id(&["run", instance]);
        let message = Outgoing::new(&assignment, id, Timestamp::from_millis(1)).unwrap();
        self.orchestrator.publish(&message).await.unwrap();
    }
}

fn sleeper(environment: &[(&str, &str)]) -> ProcessSpec {
    ProcessSpec {
        command: "sh".into(),
        arguments: vec!["-c".into(), "sleep 600 & exec sleep 600".into()],
        environment: environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_is_read_with_units_and_origins_under_the_name_of_its_node() {
    let Some(plant) = TestMesh::start("host").await else { return };
    let folders = format!("data={},gone=/no/such/folder", plant.test_bus.folder().display());
    let agent = plant.agent(Config { measure_folders: folders, ..plant.config("process") }).await;
    let samples = plant.samples(&agent).await;
    let mut readings = Stream(samples.subscribe("continuum/plant/n1/readings/edge").await.unwrap());
    let wanted = ["cpu", "memory", "network", "storage", "energy"];
    let (mut seen, mut failed) = (BTreeMap::new(), None);
    while seen.len() < wanted.len() || failed.is_none() {
        let pack = readings.pack().await;
        for one in values(&pack, |_, _| true) {
            assert!(!one.metric.unit.is_empty() && one.metric.kind() != MetricKind::Unspecified, "{:?}", one.metric);
            assert_ne!(one.metric.provenance(), Provenance::Unspecified, "{:?}", one.metric);
            assert_eq!((one.entity.cluster_id.as_str(), one.entity.node.as_str()), ("edge", "n1"));
            if one.entity.kind == "node" {
                assert_eq!((one.entity.id.as_str(), one.entity.owner.as_str()), ("n1", ""));
            }
            if let Some(probe) = wanted.iter().find(|probe| **probe == one.metric.probe) {
                seen.entry(*probe).or_insert(one);
            }
        }
        failed = failed.or(pack.probes.iter().find(|status| !status.failure.is_empty()).map(|status| {
            (pack.entities[status.entity as usize].id.clone(), status.probe.clone(), status.failure.clone())
        }));
    }
    let (entity, probe, why) = failed.unwrap();
    assert_eq!((entity.as_str(), probe.as_str()), ("gone", "storage"));
    assert!(why.contains("/no/such/folder"), "{why}");
    let clock = readings.values(named("system.uptime")).await;
    assert!(clock[0].value > 0.0 && clock[0].metric.unit == "s");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_an_interval_is_in_force_within_a_second_while_running() {
    let Some(mut plant) = TestMesh::start("interval").await else { return };
    let agent = plant.agent(Config { measure_ms: 60_000, sample_ms: 60_000, ..plant.config("process") }).await;
    let samples = plant.samples(&agent).await;
    let mut readings = Stream(samples.subscribe("continuum/*/*/readings/*").await.unwrap());
    let mut instances = samples.subscribe("continuum/*/*/instances/*").await.unwrap();
    plant.run("a", sleeper(&[])).await;
    readings.values(named("process.count")).await;

    let begun = mesh_test::now();
    plant.set("often", ("node", "", "cpu"), Setting { interval_ms: 100, ..Setting::default() }).await;
    let mut times: Vec<Timestamp> = vec![];
    while times.len() < 3 {
        times.extend(readings.values(named("system.cpu.load_average.1m")).await.iter().map(|one| one.at));
        times.retain(|at| *at >= begun);
    }
    assert!(times[0].millis_since(begun) <= 1_000, "{} ms", times[0].millis_since(begun));
    assert!(times[2].millis_since(times[0]) <= 2_000, "{times:?}");
    println!("an interval was in force after {} ms", times[0].millis_since(begun));

    let begun = Instant::now();
    plant.set("samples", ("instance", "a", ""), Setting { interval_ms: 50, ..Setting::default() }).await;
    let sample = loop {
        let pack = Packed::decode(soon("samples", instances.next()).await.unwrap().body).unwrap();
        if let Some(sample) = pack.samples.into_iter().find(|sample| sample.interval_seconds < 0.5) {
            break sample;
        }
    };
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!((sample.instance_id.as_str(), sample.owner.as_str()), ("a", "local"));

    plant.unset("often").await;
    let slow = loop {
        let pack = readings.pack().await;
        let status = pack.probes.iter().find(|status| status.probe == "cpu" && status.interval_ms != 100);
        if let Some(status) = status {
            break status.clone();
        }
    };
    assert_eq!((slow.interval_ms, slow.failure.as_str()), (60_000, ""));
    assert!(slow.readings >= 4);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_muted_is_not_sent_and_an_adaptive_rate_says_what_it_saved() {
    let Some(mut plant) = TestMesh::start("muted").await else { return };
    let agent = plant.agent(Config { measure_ms: 50, ..plant.config("process") }).await;
    let samples = plant.samples(&agent).await;
    let mut readings = Stream(samples.subscribe("continuum/*/*/readings/*").await.unwrap());
    readings.values(named("system.memory.limit")).await;
    plant.set("quiet", ("node", "", "memory"), Setting { muted: true, ..Setting::default() }).await;
    let adaptive = Adaptive { interval_min_ms: 50, interval_max_ms: 800, error_percent: 1e9 };
    plant.set("follow", ("", "", "network"), Setting { adaptive: Some(adaptive), ..Setting::default() }).await;
    let (mut without, mut saved) = (0, None);
    while without < 2 || saved.is_none() {
        let pack = readings.pack().await;
        let has_memory = !values(&pack, named("system.memory.limit")).is_empty();
        without = if has_memory { 0 } else { without + 1 };
        let status = pack.probes.iter().find(|status| status.probe == "network" && status.saved > 5);
        saved = saved.or(status.cloned());
    }
    let saved = saved.unwrap();
    assert!(saved.interval_ms > 50 && saved.interval_ms <= 800, "{saved:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_read_by_process_and_a_simulated_cluster_claims_no_host() {
    let Some(plant) = TestMesh::start("instances").await else { return };
    let config = Config { cgroup: "off".into(), measure_scrape_ms: 500, ..plant.config("process") };
    let agent = plant.agent(config).await;
    let samples = plant.samples(&agent).await;
    let mut readings = Stream(samples.subscribe("continuum/*/*/readings/*").await.unwrap());
    plant.run("a", sleeper(&[("METRICS_PORT", "1")])).await;
    let (mut count, mut refused) = (None, None);
    while count.is_none() || refused.is_none() {
        let pack = readings.pack().await;
        // The shell's child belongs to it.
        count = count.or(values(&pack, named("process.count")).into_iter().find(|one| one.value == 2.0));
        let status = pack.probes.iter().find(|status| status.probe == "application" && !status.failure.is_empty());
        refused = refused.or(status.map(|status| {
            let entity = &pack.entities[status.entity as usize];
            (entity.kind.clone(), entity.id.clone(), status.failure.clone())
        }));
    }
    let (count, refused) = (count.unwrap(), refused.unwrap());
    let of = &count.entity;
    assert_eq!((of.kind.as_str(), of.id.as_str(), of.owner.as_str()), ("instance", "a", "local"));
    assert_eq!((refused.0.as_str(), refused.1.as_str()), ("application", "a"));
    assert!(refused.2.contains("port 1"), "{}", refused.2);
    agent.stop().await;

    let data_dir = plant.test_bus.folder().join("other").to_string_lossy().into();
    let agent = plant.agent(Config { data_dir, ..plant.config("simulated") }).await;
    let samples = plant.samples(&agent).await;
    let mut readings = Stream(samples.subscribe("continuum/*/*/readings/*").await.unwrap());
    let mut kinds = BTreeSet::new();
    for _ in 0..3 {
        for one in readings.values(|_, _| true).await {
            assert_eq!(one.metric.provenance(), Provenance::Modelled, "{:?}", one.metric);
            kinds.insert(one.entity.kind);
        }
    }
    assert_eq!(kinds, BTreeSet::from(["cluster".to_owned()]));
    agent.stop().await;
}
