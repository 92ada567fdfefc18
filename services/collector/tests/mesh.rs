//! The collector on a real bus and a real Zenoh router, with no other rights than the contract's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use collector::Config;
use futures::StreamExt as _;
use mesh_bus::{
    About, Bus, Decision, Outgoing, ProvisionOptions, RenderOptions, Samples, SamplesMode, SamplesOptions, Server,
    ServerOptions, Tail,
};
use mesh_kit::{Running, Secret, Settings, Stopped};
use mesh_proto::{
    Event, Timestamp, contract,
    intent::{
        ExpectationTarget, GovernedInstance, Intent, IntentAcknowledged, IntentExpectation, NotFulfilledState, State,
    },
    observation::TargetObserved,
    query::{RangeRequest, StreamRequest, telemetry_queries_client::TelemetryQueriesClient},
    telemetry::{InstanceSample, Measured},
};
use prost::Message as _;

/// Longest that anything may take here before a test says that it does not happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A bus as `continuum provision` makes it, and a Zenoh router.
struct Land {
    _folder: tempfile::TempDir,
    server: Server,
    router: Samples,
    keys: BTreeMap<String, PathBuf>,
}

impl Land {
    /// None, loudly, where there is no nats-server.
    async fn start(test: &str) -> Option<Self> {
        let found = match mesh_bus::find_server().await {
            Ok(found) => found,
            Err(error) => {
                println!("SKIPPED: collector, {test}: {error}");
                return None;
            }
        };
        let folder = tempfile::tempdir().unwrap();
        let options = RenderOptions {
            listen: "127.0.0.1:-1".into(),
            store_dir: folder.path().join("jetstream"),
            ports_dir: Some(folder.path().into()),
            sync_always: false,
            ..RenderOptions::default()
        };
        let rendered = mesh_bus::render(contract(), &options).unwrap();
        let files = rendered.write(folder.path()).unwrap();
        let server = Server::start(ServerOptions::new(found.path, &files.nats_conf, folder.path())).await.unwrap();
        let seed = rendered.keys.get("provisioner").cloned();
        let options = ProvisionOptions { url: server.url(), seed, ..ProvisionOptions::default() };
        mesh_bus::provision(contract(), &options).await.unwrap();
        let listen = vec!["tcp/127.0.0.1:0".to_owned()];
        let options = SamplesOptions { mode: SamplesMode::Router, listen, ..SamplesOptions::default() };
        let router = Samples::open(options).await.unwrap();
        Some(Self { _folder: folder, server, router, keys: files.keys })
    }

    async fn bus(&self, service: &str) -> Bus {
        let seed = std::fs::read_to_string(&self.keys[service]).unwrap();
        let (url, service) = (self.server.url(), service.to_owned());
        Bus::connect(mesh_bus::Options { url, service, seed: Some(seed), ..Default::default() }).await.unwrap()
    }

    async fn collector(&self) -> Running {
        let settings = Settings {
            bus_url: self.server.url(),
            bus_seed_file: Some(Secret::at(&self.keys["collector"])),
            samples_connect: self.router.listening().to_vec(),
            drain_limit_ms: 20_000,
            ..Settings::default()
        };
        let config = Config { flush_ms: 200, ..Config::default() };
        mesh_kit::join("collector", settings, config, collector::start).await.unwrap()
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} does not happen"),
    }
}

async fn next_of<E: Event>(tail: &mut Tail) -> E {
    soon(E::MESSAGE, async { tail.next().await.unwrap().event::<E>().unwrap().unwrap() }).await
}

fn acknowledged() -> IntentAcknowledged {
    let target = |name: &str| ExpectationTarget { target_name: name.into(), ..Default::default() };
    let expectation = IntentExpectation {
        expectation_id: "e".into(),
        expectation_targets: vec![target("cpuUsage"), target("ramUsage")],
        ..Default::default()
    };
    let document = Intent { intent_expectations: vec![expectation], observation_period: 1, ..Default::default() };
    let mut state = State::default();
    state.set_not_fulfilled_state(NotFulfilledState::Acknowledged);
    IntentAcknowledged {
        owner: "local".into(),
        intent_id: "intent-1".into(),
        version: 1,
        document: document.encode_to_vec().into(),
        state: Some(state),
        instances: vec![GovernedInstance {
            expectation_id: "e".into(),
            instance_id: "instance-1".into(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_nanos(since.as_nanos() as i128)
}

/// Measures like an agent, ten times a second, for as long as it is polled.
async fn measure(samples: &Samples) {
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    loop {
        ticks.tick().await;
        let sample = InstanceSample {
            cluster_id: "edge".into(),
            instance_id: "instance-1".into(),
            owner: "local".into(),
            generation: 1,
            at: Some(now()),
            cpu_percent: 25.0,
            cpu_milli: 500.0,
            memory_bytes: 30_000_000,
            interval_seconds: 0.1,
            replicas_running: 1,
            ..Default::default()
        };
        let about = About { time: now(), ..About::default() };
        samples.publish("continuum/s/n/instance/instance-1", sample.encode_to_vec(), &about).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_become_observations_telemetry_and_answers_and_outlive_a_restart() {
    let Some(land) = Land::start("samples").await else { return };
    let running = land.collector().await;
    let fact = Outgoing::new(&acknowledged(), "fact-1", now()).unwrap();
    let entity = "intent.*.*.local.intent-1".to_owned();
    let decision = Decision { entity, expected: 0, messages: vec![fact] };
    land.bus("intent-manager").await.writer("INTENT").write(decision).await.unwrap();

    let person = land.bus("person").await;
    let mut client = TelemetryQueriesClient::connect(running.endpoint()).await.unwrap();
    let request = StreamRequest { instance_id: "instance-1".into() };
    let mut channel = client.stream(request).await.unwrap().into_inner();
    let mut observations = person.log(TargetObserved::STREAM).tail("observation.>", 1);
    let mut telemetry = person.log(Measured::STREAM).tail("telemetry.>", 1);
    let agent = measure(&land.router);
    tokio::pin!(agent);

    let story = async {
        let live = soon("a sample on the channel", channel.next()).await.unwrap().unwrap();
        assert_eq!((live.instance_id.as_str(), live.cpu_percent), ("instance-1", 25.0));
        let packed: Measured = next_of(&mut telemetry).await;
        assert_eq!(packed.samples[0].instance_id, "instance-1");
        // The first whole period in which samples came from its begin on.
        loop {
            let observed: TargetObserved = next_of(&mut observations).await;
            assert_eq!((observed.intent_id.as_str(), observed.version), ("intent-1", 1));
            if observed.targets[0].samples < 8 {
                continue;
            }
            assert_eq!((observed.generation, observed.cluster_id.as_str()), (1, "edge"));
            assert!((observed.targets[0].value - 25.0).abs() < 1e-6);
            assert_eq!((observed.targets[1].value, observed.load_milli), (30.0, 500));
            assert_eq!(observed.begin.unwrap().as_millis() as u64, observed.period * 1_000);
            return;
        }
    };
    tokio::select! {
        () = story => {}
        () = &mut agent => unreachable!("an agent measures for ever"),
    }

    let request = RangeRequest { instance_id: "instance-1".into(), ..Default::default() };
    let before = client.range(request.clone()).await.unwrap().into_inner().samples;
    assert!(before.len() >= 8 && before.is_sorted_by_key(|s| s.at), "{before:?}");
    assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);
    soon("the end of the channel", async { while channel.next().await.is_some_and(|s| s.is_ok()) {} }).await;

    // A new process reads what was stored; what waited to be packed is gone, as samples may.
    let packed = person.log(Measured::STREAM).read("telemetry.>", 1, 1_000).await.unwrap();
    let packed: usize = packed.iter().map(|m| m.event::<Measured>().unwrap().unwrap().samples.len()).sum();
    assert!(packed > 0);
    let again = land.collector().await;
    let mut client = TelemetryQueriesClient::connect(again.endpoint()).await.unwrap();
    let read_again = async {
        loop {
            let samples = client.range(request.clone()).await.unwrap().into_inner().samples;
            if samples.len() >= packed {
                return samples;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let after = soon("the window read again", read_again).await;
    assert_eq!(after.len(), packed);
    assert!(after.iter().all(|s| (s.cluster_id.as_str(), s.memory_bytes, s.cpu_milli) == ("edge", 30_000_000, 500.0)));
    assert_eq!(soon("the end", again.stop()).await, Stopped::Settled);
}
