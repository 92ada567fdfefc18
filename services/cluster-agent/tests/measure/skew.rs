//! An agent whose clock is wrong, before a real collector.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use mesh_proto::telemetry::{
    AgentInfo, Filter, InventoryRequest, QueryRequest, telemetry_queries_client::TelemetryQueriesClient,
};
use tonic::transport::Channel;

use super::*;

const MINUTE_MS: i64 = 60_000;

/// The library that shifts a process's clock, as Debian has it.
fn faketime() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/debian/usr/lib");
    let found = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let found = found.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.is_file());
    if found.is_none() {
        println!("SKIPPED: cluster-agent, a wrong clock: no libfaketime (run `make setup-test`)");
    }
    found
}

/// An agent as a process of its own.
struct Process(Child);

impl Process {
    fn start(test_bus: &TestBus, faketime: &Path, cluster: &str, minutes: i64) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_cluster-agent"))
            .env("LD_PRELOAD", faketime)
            .env("FAKETIME", format!("{minutes:+}m"))
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("CONTINUUM_BUS_URL", test_bus.server.url())
            .env("CONTINUUM_BUS_SEED_FILE", test_bus.key("cluster-agent"))
            .env("CONTINUUM_SAMPLES_CONNECT", test_bus.router().listening().join(","))
            .env("CONTINUUM_LISTEN", "127.0.0.1:0")
            .env("CLUSTER_AGENT_CLUSTER_ID", cluster)
            .env("CLUSTER_AGENT_NODE", format!("node-{cluster}"))
            .env("CLUSTER_AGENT_PROBE_LISTEN", "off")
            .env("CLUSTER_AGENT_MEASURE_MS", "200")
            .env("CLUSTER_AGENT_DATA_DIR", test_bus.folder().join("agents"))
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

async fn agent(
    client: &TelemetryQueriesClient<Channel>,
    cluster: &str,
    fits: impl Fn(&AgentInfo) -> bool,
) -> AgentInfo {
    let ask = async || {
        let request = InventoryRequest { cluster_id: cluster.into(), ..InventoryRequest::default() };
        client.clone().inventory(request).await.unwrap().into_inner().agents.into_iter().next()
    };
    mesh_test::until("the agent in the inventory", ask, |found| found.as_ref().is_some_and(&fits)).await.unwrap()
}

/// Times of the newest values of a cluster's node.
async fn newest(client: &TelemetryQueriesClient<Channel>, cluster: &str) -> Vec<i64> {
    let filter = Filter { entity_kind: "node".into(), cluster_id: cluster.into(), ..Filter::default() };
    let request = QueryRequest { filter: Some(filter), ..QueryRequest::default() };
    let series = client.clone().query(request).await.unwrap().into_inner().series;
    series.iter().filter_map(|series| series.at_ms.last().copied()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_wrong_clock_is_shown_with_it_and_judged_by_rule() {
    let Some(faketime) = faketime() else { return };
    let Some(test_bus) = TestBus::start("cluster-agent, a wrong clock").await else { return };
    let test_bus = test_bus.with_router().await;
    let settings = test_bus.settings("collector");
    let collector =
        mesh_kit::join("collector", settings, collector::Config::default(), collector::start).await.unwrap();
    let client = TelemetryQueriesClient::connect(collector.endpoint()).await.unwrap();
    let close = |found: &AgentInfo, minutes: i64| (found.skew_ms - minutes * MINUTE_MS).abs() < 5_000;

    // Ahead by more than 5 s: refused, so that no condition and no twin takes it for the newest for seven minutes.
    let ahead = Process::start(&test_bus, &faketime, "ahead", 7);
    let found = agent(&client, "ahead", |found| found.refused > 100 && found.skew_ms != 0).await;
    assert!(found.up && close(&found, 7), "{} ms, refused {}", found.skew_ms, found.refused);
    assert!(newest(&client, "ahead").await.is_empty());
    println!("an agent 7 minutes ahead: shown as {} ms, {} values refused", found.skew_ms, found.refused);
    drop(ahead);
    let right = Process::start(&test_bus, &faketime, "ahead", 0);
    let values = async || newest(&client, "ahead").await;
    let times = mesh_test::until("values, once its clock is right", values, |times| !times.is_empty()).await;
    let now_ms = mesh_test::now().as_millis();
    assert!(times.iter().all(|at| (now_ms - at).abs() < MINUTE_MS), "{times:?}");
    drop(right);

    // Behind by less than what may be late: taken in at the times that it says, and shown.
    let _behind = Process::start(&test_bus, &faketime, "behind", -7);
    let found = agent(&client, "behind", |found| found.values_per_second > 0.0 && found.skew_ms != 0).await;
    assert!(close(&found, -7), "{} ms", found.skew_ms);
    let times = newest(&client, "behind").await;
    let behind_ms = mesh_test::now().as_millis() - 7 * MINUTE_MS;
    assert!(!times.is_empty() && times.iter().all(|at| (behind_ms - at).abs() < MINUTE_MS), "{times:?}");

    // Behind by more: refused.
    let _late = Process::start(&test_bus, &faketime, "late", -15);
    let found = agent(&client, "late", |found| found.refused > 100 && found.skew_ms != 0).await;
    assert!(close(&found, -15), "{} ms", found.skew_ms);
    assert!(newest(&client, "late").await.is_empty());
    collector.stop().await;
}
