//! The twin aggregator on a real bus and a real Zenoh router, with no other rights than the contract's.

#![cfg(test)]

use std::time::Duration;

use cmdt_aggregator::Config;
use futures::StreamExt as _;
use mesh_bus::About;
use mesh_core::{Decision, Outgoing};
use mesh_kit::{Running, Stopped};
use mesh_proto::{
    AnyEvent,
    cluster::ClusterRegistered,
    telemetry::ClusterSample,
    twin::{Twin, TwinRequest, twin_queries_client::TwinQueriesClient},
};
use mesh_test::{TestBus, now, soon};
use prost::Message as _;
use tonic::Code;

async fn test_bus(test: &str) -> Option<TestBus> {
    Some(TestBus::start(&format!("cmdt-aggregator, {test}")).await?.with_router().await)
}

async fn aggregator(test_bus: &TestBus) -> Running {
    let config = Config { tick_ms: 50, measured_ms: 100, ..Config::default() };
    mesh_kit::join("cmdt-aggregator", test_bus.settings("cmdt-aggregator"), config, cmdt_aggregator::start)
        .await
        .unwrap()
}

async fn measure(test_bus: &TestBus, cpu_percent: f64) {
    let sample = ClusterSample { cluster_id: "edge".into(), at: Some(now()), cpu_percent, ..Default::default() };
    let about = About { time: now(), ..About::default() };
    test_bus.router().publish("continuum/s/n/cluster/edge", sample.encode_to_vec(), &about).await.unwrap();
}

fn registered(cpu_milli: u32) -> ClusterRegistered {
    ClusterRegistered {
        cluster_id: "edge".into(),
        cpu_milli,
        node: "node-1".into(),
        site: "s".into(),
        driver: "simulated".into(),
        ..Default::default()
    }
}

fn asking(kind: &str, id: &str) -> TwinRequest {
    TwinRequest { kind: kind.into(), id: id.into(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_and_samples_become_twins_with_a_past_that_outlives_a_restart() {
    let Some(test_bus) = test_bus("twins").await else { return };
    let agent = test_bus.connect("cluster-agent").await;
    let write = async |cpu_milli: u32, expected: u64| {
        let fact = Outgoing::new(&registered(cpu_milli) as &dyn AnyEvent, format!("fact-{cpu_milli}"), now()).unwrap();
        let entity = "cluster.*.*.edge".to_owned();
        let decision = Decision { entity, expected, messages: vec![fact] };
        agent.writer("CLUSTER").write(decision).await.unwrap();
    };
    write(1_000, 0).await;
    // The fact came before the aggregator: it reads the past first.
    let running = aggregator(&test_bus).await;
    let mut client = TwinQueriesClient::connect(running.endpoint()).await.unwrap();
    let found = client.get(asking("", "edge")).await.unwrap().into_inner();
    assert_eq!((found.kind.as_str(), found.capacity_cpu_milli, found.available), ("cluster", 1_000, true));
    assert!(found.sample_age_seconds < 0.0);
    let missing = client.get(asking("workload", "edge")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert_eq!(client.watch(asking("planet", "edge")).await.unwrap_err().code(), Code::InvalidArgument);

    let mut watch = client.watch(asking("cluster", "edge")).await.unwrap().into_inner();
    let mut until = async |what: &str, fits: &dyn Fn(&Twin) -> bool| {
        soon(what, async {
            loop {
                let twin = watch.next().await.unwrap().unwrap();
                if fits(&twin) {
                    return twin;
                }
            }
        })
        .await
    };
    let first = until("a first version", &|_| true).await;
    write(2_000, 1).await;
    let second = until("a version with more capacity", &|t| t.capacity_cpu_milli == 2_000).await;
    let measuring = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            ticks.tick().await;
            measure(&test_bus, 40.0).await;
        }
    };
    let third = tokio::select! {
        third = until("a measured version", &|t| t.cpu_percent == 40.0) => third,
        () = measuring => unreachable!("an agent measures for ever"),
    };
    assert!(first.version < second.version && second.version < third.version);

    // Listed and remembered once it came back from the bus.
    let past = |list: &[Twin]| list.iter().map(|t| t.version).collect::<Vec<_>>();
    let versions = vec![third.version, second.version, first.version];
    let remembered = async {
        loop {
            match client.history(asking("cluster", "edge")).await {
                Ok(list) if past(&list.get_ref().twins) == versions => return,
                Err(status) if status.code() != Code::NotFound => panic!("{status}"),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    soon("the history", remembered).await;
    let list = client.list(asking("", "")).await.unwrap().into_inner().twins;
    let names: Vec<_> = list.iter().map(|t| (t.kind.as_str(), t.id.as_str())).collect();
    assert_eq!(names, [("cluster", "edge"), ("node", "node-1")]);
    let then = TwinRequest { at: second.at, ..asking("cluster", "edge") };
    assert_eq!(client.get(then.clone()).await.unwrap().into_inner(), second);
    assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);

    let again = aggregator(&test_bus).await;
    let mut client = TwinQueriesClient::connect(again.endpoint()).await.unwrap();
    let longer = async {
        loop {
            if let Ok(list) = client.history(asking("cluster", "edge")).await
                && list.get_ref().twins.len() > versions.len()
            {
                return list.into_inner().twins;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let longer = soon("a version after the restart", longer).await;
    assert!(longer[0].version > third.version, "versions go on rising");
    assert_eq!(past(&longer[longer.len() - 3..]), versions);
    assert_eq!(client.get(then).await.unwrap().into_inner(), second);
    assert_eq!(soon("the end", again.stop()).await, Stopped::Settled);
}
