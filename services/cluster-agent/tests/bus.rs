//! Whole agents on a real nats-server, with the accounts, rights and streams of the contract.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]

use std::time::Instant;

use cluster_agent::Config;
use mesh_bus::{Bus, Samples, SamplesMode, SamplesOptions};
use mesh_core::{Outgoing, Stored};
use mesh_kit::{Running, Settings};
use mesh_proto::{
    Timestamp,
    assignment::{Action, AssignmentChanged},
    cluster::ClusterRegistered,
    derived_id,
    instance::{
        AgentStateRequest, InstanceRejected, InstanceStatusChanged, LogsRequest,
        agent_queries_client::AgentQueriesClient,
    },
    telemetry::{ClusterSample, Packed},
    workload::{InstancePhase, ProcessSpec, Resources, WorkloadDocument},
};
use mesh_test::{TestBus, says, until};
use prost::Message as _;

const CLUSTER: &str = "edge";

/// A bus, and those who talk to the agent.
struct TestMesh {
    test_bus: TestBus,
    orchestrator: Bus,
    person: Bus,
}

impl TestMesh {
    async fn start(test: &str) -> Option<Self> {
        let test_bus = TestBus::start(&format!("cluster-agent bus, {test}")).await?;
        let (orchestrator, person) = (test_bus.connect("meta-orchestrator").await, test_bus.connect("person").await);
        Some(Self { test_bus, orchestrator, person })
    }

    fn config(&self, driver: &str) -> Config {
        Config {
            cluster_id: CLUSTER.into(),
            cpu_milli: 200_000,
            memory_bytes: 1_000_000_000_000,
            labels: "tier=edge".into(),
            driver: driver.into(),
            site: "plant".into(),
            node: "n1".into(),
            data_dir: self.test_bus.folder().join("agent").to_string_lossy().into(),
            sample_ms: 100,
            ..Config::default()
        }
    }

    async fn agent(&self, config: Config) -> Running {
        let settings = Settings {
            samples_mode: mesh_kit::config::SamplesMode::Router,
            samples_listen: vec!["tcp/127.0.0.1:0".into()],
            ..self.test_bus.settings("cluster-agent")
        };
        mesh_kit::join("cluster-agent", settings, config, cluster_agent::start).await.unwrap()
    }

    /// A client of the agent's own router.
    async fn samples(&self, agent: &Running) -> Samples {
        let router = agent.mesh().samples().await.unwrap();
        let connect = router.listening().to_vec();
        Samples::open(SamplesOptions { mode: SamplesMode::Client, connect, ..Default::default() }).await.unwrap()
    }

    async fn assign(&self, assignment: &AssignmentChanged) -> u64 {
        let id = derived_id(&[
            &assignment.instance_id,
            &assignment.generation.to_string(),
            assignment.action().as_str_name(),
        ]);
        let message = Outgoing::new(assignment, id, Timestamp::from_millis(1)).unwrap();
        self.orchestrator.publish(&message).await.unwrap()
    }

    /// Every fact about an instance, in order.
    async fn facts(&self, instance: &str) -> Vec<Stored> {
        self.person.log("INSTANCE").read(&format!("instance.*.*.{CLUSTER}.{instance}"), 1, 10_000).await.unwrap()
    }

    async fn statuses(&self, instance: &str) -> Vec<InstanceStatusChanged> {
        let facts = self.facts(instance).await;
        facts.iter().filter_map(|fact| fact.event::<InstanceStatusChanged>().unwrap()).collect()
    }

    async fn phases(&self, instance: &str) -> Vec<(u64, InstancePhase)> {
        self.statuses(instance).await.iter().map(|status| (status.generation, status.phase())).collect()
    }

    async fn reaches(&self, instance: &str, generation: u64, phase: InstancePhase) -> InstanceStatusChanged {
        let what = format!("{instance} {generation} {phase:?}");
        let last = async || self.statuses(instance).await.pop();
        let found = until(&what, last, |last| {
            last.as_ref().is_some_and(|last| (last.generation, last.phase()) == (generation, phase))
        });
        found.await.unwrap()
    }
}

fn assignment(instance: &str, generation: u64, action: Action, process: ProcessSpec) -> AssignmentChanged {
    let document = WorkloadDocument {
        name: "w".into(),
        version: "1.0.0".into(),
        kind: "process".into(),
        process: Some(process),
        resources: Some(Resources { cpu_milli: 100, memory_bytes: 1_000_000, ..Default::default() }),
        ..Default::default()
    };
    AssignmentChanged {
        cluster_id: CLUSTER.into(),
        owner: "local".into(),
        instance_id: instance.into(),
        generation,
        action: action.into(),
        replicas: 1,
        document: document.encode_to_vec().into(),
        ..Default::default()
    }
}

fn simulated(instance: &str, generation: u64, action: Action, environment: &[(&str, &str)]) -> AssignmentChanged {
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    assignment(instance, generation, action, ProcessSpec { command: "x".into(), environment, ..Default::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_is_enforced_measured_and_answered() {
    let Some(plant) = TestMesh::start("enforced").await else { return };
    let agent = plant.agent(plant.config("simulated")).await;
    let samples = plant.samples(&agent).await;
    let mut heard = samples.subscribe("continuum/*/*/instances/*").await.unwrap();
    let mut clusters = samples.subscribe("continuum/*/*/cluster/*").await.unwrap();
    let mut alive = samples.watch_alive("continuum/*/*/alive/*").await.unwrap();

    let registered = async || plant.person.log("CLUSTER").last("cluster.registered.v1.edge").await.unwrap();
    let registered = until("registered", registered, Option::is_some).await.unwrap();
    let registered = registered.event::<ClusterRegistered>().unwrap().unwrap();
    assert_eq!((registered.cpu_milli, registered.labels["tier"].as_str()), (200_000, "edge"));
    assert_eq!((registered.endpoint.as_str(), registered.enforcement.as_str()), (agent.endpoint().as_str(), "none"));
    assert!(registered.incarnation > 0);
    assert_eq!(alive.next().await, Some(("continuum/plant/n1/alive/edge".to_owned(), true)));

    let sequence = plant.assign(&simulated("a", 1, Action::Run, &[("SIM_LOAD_MILLI", "2000")])).await;
    plant.reaches("a", 1, InstancePhase::Running).await;
    let facts = plant.facts("a").await;
    let phases = plant.phases("a").await;
    assert_eq!(phases, [(1, InstancePhase::Running)], "that it starts is said only if it takes a moment");
    for fact in &facts {
        let cause = fact.cause.as_ref().unwrap();
        assert_eq!((cause.stream.as_str(), cause.sequence), ("ASSIGNMENT", sequence));
    }
    let sample = loop {
        let sample = heard.next().await.unwrap();
        assert_eq!(sample.key, "continuum/plant/n1/instances/edge");
        assert_eq!(sample.about.unwrap().message, "continuum.telemetry.v1.Packed");
        let Some(sample) = Packed::decode(sample.body).unwrap().samples.pop() else { continue };
        assert_eq!(sample.instance_id, "a");
        if sample.replicas_running == 1 && sample.cpu_milli > 1_000.0 {
            break sample;
        }
    };
    assert!((sample.cpu_percent - sample.cpu_milli / 2_000.0).abs() < 1e-6, "per cent of the declared capacity");
    let cluster = ClusterSample::decode(clusters.next().await.unwrap().body).unwrap();
    assert_eq!(cluster.cluster_id, "edge");

    let mut queries = AgentQueriesClient::connect(agent.endpoint()).await.unwrap();
    let state = queries.state(AgentStateRequest {}).await.unwrap().into_inner();
    assert_eq!(state.processes.iter().map(|p| (p.instance_id.as_str(), p.generation)).collect::<Vec<_>>(), [("a", 1)]);
    let logs = queries.logs(LogsRequest { instance_id: "a".into(), lines: 10 }).await.unwrap().into_inner();
    assert_eq!(logs.lines.last().map(|line| line.text.as_str()), Some("simulated: started"));

    plant.assign(&simulated("a", 1, Action::Stop, &[])).await;
    plant.reaches("a", 1, InstancePhase::Stopped).await;
    agent.stop().await;
    assert_eq!(alive.next().await, Some(("continuum/plant/n1/alive/edge".to_owned(), false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_only_what_is_still_assigned_runs() {
    let Some(plant) = TestMesh::start("restart").await else { return };
    let agent = plant.agent(plant.config("simulated")).await;
    plant.assign(&simulated("stays", 1, Action::Run, &[])).await;
    plant.assign(&simulated("gone", 1, Action::Run, &[])).await;
    plant.reaches("stays", 1, InstancePhase::Running).await;
    plant.reaches("gone", 1, InstancePhase::Running).await;
    plant.assign(&simulated("gone", 1, Action::Stop, &[])).await;
    plant.reaches("gone", 1, InstancePhase::Stopped).await;
    agent.stop().await;

    plant.assign(&simulated("brief", 1, Action::Run, &[])).await;
    plant.assign(&simulated("brief", 1, Action::Stop, &[])).await;
    plant.assign(&simulated("new", 1, Action::Run, &[])).await;
    for from_the_beginning in [false, true] {
        if from_the_beginning {
            std::fs::remove_file(plant.test_bus.folder().join("agent/edge/state.json")).unwrap();
        }
        let before = plant.statuses("stays").await.len();
        let agent = plant.agent(plant.config("simulated")).await;
        plant.reaches("new", 1, InstancePhase::Running).await;
        let says = async || plant.statuses("stays").await;
        let says = until("it runs again", says, |says| {
            says.len() > before && says.last().is_some_and(|last| last.phase() == InstancePhase::Running)
        });
        says.await;
        plant.reaches("brief", 1, InstancePhase::Stopped).await;
        agent.stop().await;
        assert_eq!(plant.phases("brief").await, [(1, InstancePhase::Stopped)], "never started, and answered once");
        let gone = plant.phases("gone").await;
        assert_eq!(gone.iter().filter(|(_, phase)| *phase == InstancePhase::Stopped).count(), 1, "{gone:?}");
    }
    let clusters = plant.person.log("CLUSTER").read("cluster.registered.v1.edge", 1, 100).await.unwrap();
    let lives: Vec<u64> =
        clusters.iter().map(|c| c.event::<ClusterRegistered>().unwrap().unwrap().incarnation).collect();
    assert!(lives.len() == 3 && lives.is_sorted_by(|a, b| a < b), "{lives:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_bus_it_continues_and_reports_afterwards() {
    let Some(mut plant) = TestMesh::start("away").await else { return };
    let config = Config { backoff_max_ms: 200, restarts_max: 1_000_000, ..plant.config("simulated") };
    let agent = plant.agent(config).await;
    plant.assign(&simulated("frail", 1, Action::Run, &[("SIM_FAIL_AFTER_MS", "300"), ("SIM_START_MS", "5")])).await;
    plant.reaches("frail", 1, InstancePhase::Running).await;
    plant.test_bus.server.kill().await.unwrap();
    let mut queries = AgentQueriesClient::connect(agent.endpoint()).await.unwrap();
    let mut restarts = async || {
        let state = queries.state(AgentStateRequest {}).await.unwrap().into_inner();
        state.processes.first().map_or(0, |p| p.restarts)
    };
    let away = until("it is restarted without a bus", &mut restarts, |restarts| *restarts >= 8).await;
    plant.test_bus.server.restart().await.unwrap();
    let last = async || plant.statuses("frail").await.pop().unwrap().restarts;
    until("it is said", last, |restarts| *restarts >= away).await;
    let said = plant.statuses("frail").await;
    let counts: Vec<u32> = said.iter().map(|status| status.restarts).collect();
    assert!(counts.is_sorted(), "{counts:?}");
    assert!(counts.windows(2).any(|w| w[1] - w[0] >= 3), "only the newest of what was missed: {counts:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_process_is_restarted_when_it_dies_and_ended_when_it_is_told() {
    let Some(plant) = TestMesh::start("real process").await else { return };
    let agent = plant.agent(Config { cpu_milli: 1_000, ..plant.config("process") }).await;
    let process = ProcessSpec {
        command: "sh".into(),
        arguments: vec!["-c".into(), "echo up; exec sleep 600".into()],
        ..Default::default()
    };
    plant.assign(&assignment("real", 1, Action::Run, process.clone())).await;
    plant.reaches("real", 1, InstancePhase::Running).await;
    let mut queries = AgentQueriesClient::connect(agent.endpoint()).await.unwrap();
    let mut pid = async || {
        let state = queries.state(AgentStateRequest {}).await.unwrap().into_inner();
        state.processes.first().map_or(0, |p| i32::try_from(p.pid).unwrap())
    };
    let first = pid().await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::Signal::SIGKILL).unwrap();
    let down = async || plant.statuses("real").await;
    let down = until("it is down", down, |said| said.iter().any(|s| s.phase() == InstancePhase::Restarting)).await;
    let down = down.iter().find(|s| s.phase() == InstancePhase::Restarting).unwrap();
    assert!(says(&down.reason, "ended by SIGKILL") && down.restarts == 1, "{}", down.reason);
    let again = plant.reaches("real", 1, InstancePhase::Running).await;
    assert_eq!(again.restarts, 1);
    let second = pid().await;
    assert_ne!(first, second);

    let missing = ProcessSpec { command: "/no/such/program".into(), ..Default::default() };
    plant.assign(&assignment("missing", 1, Action::Run, missing)).await;
    let failed = plant.reaches("missing", 1, InstancePhase::Failed).await;
    assert!(failed.hopeless);
    assert!(says(&failed.reason, "no such file or directory: /no/such/program"), "{}", failed.reason);

    let mut huge = assignment("huge", 1, Action::Run, process.clone());
    huge.replicas = 50;
    plant.assign(&huge).await;
    let facts = async || plant.facts("huge").await;
    let facts = until("it is rejected", facts, |facts| !facts.is_empty()).await;
    let rejected = facts[0].event::<InstanceRejected>().unwrap().unwrap();
    assert!(says(&rejected.reason, "asks 5000 mCPU"), "{}", rejected.reason);

    plant.assign(&assignment("real", 2, Action::Run, process)).await;
    plant.reaches("real", 2, InstancePhase::Running).await;
    let third = pid().await;
    assert!(procfs::process::Process::new(second).is_err(), "the older generation has ended");
    agent.stop().await;
    assert!(procfs::process::Process::new(third).is_err(), "a workload ends with its agent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_instances_run_on_one_simulated_cluster() {
    let Some(plant) = TestMesh::start("a thousand").await else { return };
    let agent = plant.agent(plant.config("simulated")).await;
    let begun = Instant::now();
    let messages = (0..1_000).map(|n| {
        let assignment = simulated(&format!("i{n}"), 1, Action::Run, &[]);
        Outgoing::new(&assignment, format!("a{n}"), Timestamp::from_millis(1)).unwrap()
    });
    plant.orchestrator.publish_many(messages.collect()).await.unwrap();
    let running = async || {
        let all = plant.person.log("INSTANCE").read("instance.>", 1, 100_000).await.unwrap();
        let statuses = all.iter().filter_map(|fact| fact.event::<InstanceStatusChanged>().unwrap());
        statuses.filter(|status| status.phase() == InstancePhase::Running).count()
    };
    until("all run", running, |running| *running == 1_000).await;
    println!("1,000 instances assigned, started and told in {:?}", begun.elapsed());
    agent.stop().await;
}
