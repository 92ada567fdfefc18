//! The twin aggregator on a real bus and a real Zenoh router, with no other rights than the contract's.

#![cfg(test)]

use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use cmdt_aggregator::Config;
use futures::StreamExt as _;
use mesh_bus::{About, Bus};
use mesh_core::{Decision, Outgoing};
use mesh_kit::{Running, Settings, Stopped};
use mesh_proto::{
    AnyEvent, Event, Timestamp,
    anomaly::AnomalyDetected,
    cluster::ClusterRegistered,
    cost::{CostsChanged, LinkCost},
    instance::InstanceStatusChanged,
    placement::PlacementDecided,
    telemetry::{ClusterSample, Entity, InstanceSample, Metric, MetricKind, Packed, Readings},
    twin::{DiffRequest, Twin, TwinChanged, TwinRequest, twin_queries_client::TwinQueriesClient},
    workload::InstancePhase,
};
use mesh_test::{Database, Kind, Process, TestBus, now, says, soon, until};
use prost::Message as _;
use serde_json::Value as Json;
use tonic::{Code, transport::Channel};

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
    assert_eq!(names, [("cluster", "edge"), ("continuum", "continuum"), ("node", "node-1")]);
    let then = TwinRequest { at: second.at, ..asking("cluster", "edge") };
    assert_eq!(client.get(then.clone()).await.unwrap().into_inner(), second);
    assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);

    let again = aggregator(&test_bus).await;
    let mut client = TwinQueriesClient::connect(again.endpoint()).await.unwrap();
    write(3_000, 2).await;
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

/// The aggregator as a process of its own.
fn process(test_bus: &TestBus) -> Process {
    let often = [("CMDT_AGGREGATOR_TICK_MS", "50"), ("CMDT_AGGREGATOR_MEASURED_MS", "100")];
    Process::start(test_bus, "cmdt-aggregator", env!("CARGO_BIN_EXE_cmdt-aggregator"), &often)
}

async fn connected(of: &Process) -> TwinQueriesClient<Channel> {
    let connect = async || TwinQueriesClient::connect(of.endpoint().to_owned()).await;
    until("the aggregator", connect, Result::is_ok).await.unwrap()
}

/// Writes facts, each of an entity that has none yet.
async fn first(bus: &Bus, facts: &[(&str, &dyn AnyEvent)]) {
    for (entity, fact) in facts {
        let message = Outgoing::new(*fact, format!("first-{entity}"), now()).unwrap();
        let decision = Decision { entity: (*entity).to_owned(), expected: 0, messages: vec![message] };
        bus.writer(fact.stream()).write(decision).await.unwrap();
    }
}

/// A workload on a cluster, with an anomaly that goes on, and a network.
async fn a_continuum(test_bus: &TestBus) {
    let decided = PlacementDecided {
        domain: "default".into(),
        owner: "ada".into(),
        instance_id: "i".into(),
        intent_id: "intent".into(),
        generation: 1,
        cluster_id: "edge".into(),
        reason: "chosen".into(),
        replicas: 1,
        ..Default::default()
    };
    let mut runs = InstanceStatusChanged {
        cluster_id: "edge".into(),
        instance_id: "i".into(),
        owner: "ada".into(),
        generation: 1,
        replicas_wanted: 1,
        replicas_running: 1,
        ..Default::default()
    };
    runs.set_phase(InstancePhase::Running);
    let agent = test_bus.connect("cluster-agent").await;
    first(&agent, &[("cluster.*.*.edge", &registered(1_000)), ("instance.*.*.edge.i", &runs)]).await;
    let orchestrator = test_bus.connect("meta-orchestrator").await;
    first(&orchestrator, &[("placement.*.*.default", &decided)]).await;
    let anomaly = AnomalyDetected {
        owner: "ada".into(),
        instance_id: "i".into(),
        episode_id: "e".into(),
        since: Some(now()),
        sentence: "cpu_milli above".into(),
        ..Default::default()
    };
    let link = LinkCost {
        from_cluster: "edge".into(),
        to_cluster: "cloud".into(),
        latency_ms: 2.5,
        probes: 1,
        up: true,
        ..Default::default()
    };
    let costs = CostsChanged { domain: "default".into(), links: vec![link], ..Default::default() };
    derived(test_bus, "sar-detector", &anomaly).await;
    derived(test_bus, "mncc-exposer", &costs).await;
}

/// Numbers the derived events.
static NUMBER: AtomicU32 = AtomicU32::new(0);

async fn derived(test_bus: &TestBus, service: &str, event: &impl Event) {
    let message = Outgoing::new(event, format!("derived-{}", NUMBER.fetch_add(1, Relaxed)), now()).unwrap();
    test_bus.connect(service).await.publish_many(vec![message]).await.unwrap();
}

/// What is measured: an instance, its cluster, its node, and requests to it.
async fn measure_all(test_bus: &TestBus, cpu_percent: f64, requests: f64) {
    let router = test_bus.router();
    let about = About { time: now(), ..About::default() };
    measure(test_bus, cpu_percent).await;
    let sample = InstanceSample {
        cluster_id: "edge".into(),
        instance_id: "i".into(),
        owner: "ada".into(),
        generation: 1,
        at: Some(now()),
        cpu_percent,
        memory_bytes: 5_000_000,
        ..Default::default()
    };
    let pack = Packed { cluster_id: "edge".into(), samples: vec![sample] };
    router.publish("continuum/s/n/instances/edge", pack.encode_to_vec(), &about).await.unwrap();
    let readings = |cluster: &str, kind: &str, id: &str, metric: Metric, value: f64| Readings {
        cluster_id: cluster.into(),
        at: Some(now()),
        entities: vec![Entity { kind: kind.into(), id: id.into(), ..Default::default() }],
        metrics: vec![metric],
        metric: vec![0],
        after_ms: vec![0],
        values: vec![value],
        ..Default::default()
    };
    let memory = Metric { name: "system.memory.utilization".into(), unit: "1".into(), ..Default::default() };
    let node = readings("edge", "node", "node-1", memory, cpu_percent / 100.0);
    router.publish("continuum/s/node-1/readings/edge", node.encode_to_vec(), &about).await.unwrap();
    let mut count = Metric { name: "http.server.request.count".into(), ..Default::default() };
    count.labels.insert("http.response.status_code".into(), "200".into());
    count.set_kind(MetricKind::Counter);
    let route = readings("gateway", "route", "i", count, requests);
    router.publish("continuum/s/gateway/readings/gateway", route.encode_to_vec(), &about).await.unwrap();
}

/// Measures the same again and again until something is so.
async fn measuring<T>(test_bus: &TestBus, cpu_percent: f64, until: impl Future<Output = T>) -> T {
    let measuring = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            ticks.tick().await;
            measure_all(test_bus, cpu_percent, 7.0).await;
        }
    };
    tokio::select! {
        found = until => found,
        () = measuring => unreachable!("an agent measures for ever"),
    }
}

/// Every twin as listed, with all its versions.
async fn everything(client: &mut TwinQueriesClient<Channel>) -> Vec<(Twin, Vec<Twin>)> {
    let listed = client.list(asking("", "")).await.unwrap().into_inner().twins;
    let mut found = vec![];
    for twin in listed {
        let request = TwinRequest { page_size: 1_000, ..asking(&twin.kind, &twin.id) };
        let versions = client.history(request).await.unwrap().into_inner().twins;
        found.push((twin, versions));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_aggregator_comes_back_with_the_same_twins_and_past() {
    let Some(test_bus) = test_bus("crash").await else { return };
    a_continuum(&test_bus).await;
    let mut process = process(&test_bus);
    let mut client = connected(&process).await;
    let wholly = async |client: &mut TwinQueriesClient<Channel>| loop {
        let found = everything(client).await;
        let is_whole = |(twin, _): &(Twin, Vec<Twin>)| match twin.kind.as_str() {
            "workload" => twin.cpu_percent == 40.0 && twin.traffic.is_some() && !twin.statuses.is_empty(),
            "node" => !twin.measured.is_empty() && twin.cpu_percent == 40.0 && twin.anomalies.len() == 1,
            "network" => twin.links.len() == 1,
            "continuum" => twin.workloads_running == 1 && twin.cpu_percent == 40.0,
            _ => twin.cpu_percent == 40.0,
        };
        if found.len() == 5 && found.iter().all(is_whole) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    soon("every twin", measuring(&test_bus, 40.0, wholly(&mut client))).await;
    // All that was published has come back once the list stands still.
    let bus = test_bus.connect("cmdt-aggregator").await;
    let log = bus.log("TWIN");
    let before = soon("a standstill", async {
        loop {
            let published = log.last_sequence().await.unwrap();
            let found = everything(&mut client).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            let versions: usize = found.iter().map(|(_, versions)| versions.len()).sum();
            if log.last_sequence().await.unwrap() == published && versions as u64 == published {
                return found;
            }
        }
    })
    .await;
    let published = log.last_sequence().await.unwrap();
    process.start_again();
    let mut client = connected(&process).await;
    let after = soon("the same again", async {
        loop {
            let found = client.list(asking("", "")).await.unwrap().into_inner().twins;
            if found.len() == before.len() {
                return everything(&mut client).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let bytes = |twins: &[(Twin, Vec<Twin>)]| {
        let each = |twin: &Twin| twin.encode_to_vec();
        twins.iter().map(|(twin, past)| (each(twin), past.iter().map(each).collect::<Vec<_>>())).collect::<Vec<_>>()
    };
    assert_eq!(bytes(&after), bytes(&before), "byte for byte");
    for (twin, versions) in &before {
        for version in versions {
            let then = TwinRequest { at: version.at, ..asking(&twin.kind, &twin.id) };
            assert_eq!(client.get(then).await.unwrap().into_inner(), *version);
        }
    }
    // Nothing is published that did not change: the next twins are those of the next change.
    measure_all(&test_bus, 40.0, 7.0).await;
    let other = ClusterRegistered { cluster_id: "cloud".into(), node: "node-2".into(), ..registered(5_000) };
    first(&test_bus.connect("cluster-agent").await, &[("cluster.*.*.cloud", &other)]).await;
    let next = soon("the next twins", async {
        loop {
            let found = log.read("twin.>", published + 1, 100).await.unwrap();
            if found.len() >= 3 {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let mut names: Vec<&str> = next.iter().map(|stored| stored.subject.as_str()).collect();
    names.sort_unstable();
    let expected = ["cluster.cloud", "continuum.continuum", "node.node-2"];
    assert_eq!(names, expected.map(|name| format!("twin.changed.v1.{name}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_workload_has_messages_as_the_specification_has_them() {
    let Some(test_bus) = test_bus("messages").await else { return };
    let person = test_bus.connect("person").await;
    let mut messages = person.subscribe("cmdt.>").await.unwrap();
    a_continuum(&test_bus).await;
    let config = Config { tick_ms: 50, measured_ms: 100, message_ms: 300, ..Config::default() };
    let running =
        mesh_kit::join("cmdt-aggregator", test_bus.settings("cmdt-aggregator"), config, cmdt_aggregator::start);
    let running = running.await.unwrap();
    let whole = async {
        let mut count = 0;
        loop {
            let message = messages.next().await.unwrap();
            assert_eq!(message.subject, "cmdt.edge.i");
            let body: Json = serde_json::from_slice(&message.body).unwrap();
            count += 1;
            // Periodic ones go on although nothing changes.
            if count > 8 && body["traffic"]["res_rate_by_code"]["200"].is_number() {
                return body;
            }
        }
    };
    let body = soon("messages", measuring(&test_bus, 40.0, whole)).await;
    let expected = [
        ("workload_id", Json::from("i")),
        ("user_id", "ada".into()),
        ("replicas", 1.into()),
        ("status", "Ready".into()),
        ("phase", "RUNNING".into()),
    ];
    for (field, expected) in expected {
        assert_eq!(body[field], expected, "{field}: {body}");
    }
    assert_eq!(
        (&body["resources"]["cpu_percent"], &body["resources"]["memory_bytes"]),
        (&40.0.into(), &5_000_000.into())
    );
    assert_eq!(body["pod_status"][0]["status"], "Ready");
    assert!(body["timestamp"].as_str().unwrap().parse::<mesh_proto::Timestamp>().is_ok());
    assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_is_between_two_times_and_says_when_it_cannot_be_told() {
    let Some(test_bus) = test_bus("differences").await else { return };
    a_continuum(&test_bus).await;
    let running = aggregator(&test_bus).await;
    let mut client = TwinQueriesClient::connect(running.endpoint()).await.unwrap();
    let first = soon("a version", async {
        loop {
            match client.history(asking("workload", "i")).await {
                Ok(found) => return found.into_inner().twins[0].clone(),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    let loaded = async {
        let mut client = client.clone();
        loop {
            let found = client.history(asking("workload", "i")).await.unwrap().into_inner().twins[0].clone();
            if found.cpu_percent == 90.0 {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let second = soon("a version under load", measuring(&test_bus, 90.0, loaded)).await;
    let between = |from, to| DiffRequest { kind: "workload".into(), id: "i".into(), from, to };
    let reply = client.diff(between(first.at, second.at)).await.unwrap().into_inner();
    assert_eq!((reply.from_version, reply.to_version), (first.version, second.version));
    let cpu = reply.differences.iter().find(|d| d.field == "cpu_percent").unwrap();
    assert_eq!((cpu.before.as_str(), cpu.after.as_str()), ("", "90.0"));
    let none = client.diff(between(second.at, second.at)).await.unwrap().into_inner();
    assert!(none.differences.is_empty());
    let past = mesh_proto::Timestamp::from_millis(0);
    for (wrong, code, words) in [
        (between(None, second.at), Code::InvalidArgument, "from"),
        (between(second.at, first.at), Code::InvalidArgument, "earlier time first"),
        (between(Some(past), None), Code::NotFound, "not kept"),
        (DiffRequest { id: "nobody".into(), ..between(first.at, None) }, Code::NotFound, "nobody"),
    ] {
        let refused = client.diff(wrong).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(says(refused.message(), words), "{refused}");
    }
    let then = TwinRequest { at: Some(past), ..asking("workload", "i") };
    let refused = client.get(then).await.unwrap_err();
    assert!(refused.code() == Code::NotFound && says(refused.message(), "not kept"), "{refused}");
    assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);
}

#[tokio::test(flavor = "multi_thread")]
async fn python_asks_for_twins_over_zenoh_without_the_bus() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join(".tools/test/bin/python");
    if !python.is_file() {
        eprintln!("SKIPPED: cmdt-aggregator, edge: no .tools/test/bin/python (run `make setup-test`)");
        return;
    }
    let Some(test_bus) = test_bus("edge").await else { return };
    a_continuum(&test_bus).await;
    let running = aggregator(&test_bus).await;
    let mut client = TwinQueriesClient::connect(running.endpoint()).await.unwrap();
    let ask = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(&python);
        command.arg(root.join("examples/edge_twin.py")).arg("--connect").arg(&test_bus.router().listening()[0]);
        let output = soon("the script", command.args(arguments).kill_on_drop(true).output()).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let five = soon("five twins", async {
        loop {
            let (code, out, _) = ask(&[]).await;
            if code == Some(0) && out.lines().count() == 5 {
                return out;
            }
        }
    })
    .await;
    assert!(five.contains("continuum/twin/network/default {"), "{five}");
    let (_, out, _) = ask(&["workload/i"]).await;
    let json: Json = serde_json::from_str(out.strip_prefix("continuum/twin/workload/i ").unwrap()).unwrap();
    assert_eq!((&json["owner"], &json["phase"]), (&"ada".into(), &"RUNNING".into()));
    let (_, raw, _) = ask(&["workload/i", "--raw"]).await;
    let expected = client.get(asking("workload", "i")).await.unwrap().into_inner();
    let hex: String = expected.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(raw.trim(), format!("continuum/twin/workload/i {hex}"));
    for (wrong, words) in
        [("workload/nobody", "twin nobody of kind workload"), ("planet/x", "twin x"), ("node/n?at=1", "format")]
    {
        let (code, out, err) = ask(&[wrong]).await;
        assert!(code == Some(1) && out.is_empty() && err.contains(words), "{wrong}: {out} {err}");
    }
    // The bus is away: twins are answered all the same.
    let mut test_bus = test_bus;
    test_bus.server.kill().await.unwrap();
    let mut command = tokio::process::Command::new(&python);
    command.arg(root.join("examples/edge_twin.py")).arg("--connect").arg(&test_bus.router().listening()[0]);
    let output = soon("an answer without the bus", command.args(["workload/i", "--raw"]).output()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), raw);
}

/// Versions of these numbers, each of one of a hundred nodes, as an aggregator publishes them.
async fn publish(test_bus: &TestBus, began: Timestamp, versions: std::ops::Range<u64>) {
    let bus = test_bus.connect("cmdt-aggregator").await;
    let of = |version: u64| {
        let (kind, id, at) = ("node", format!("node-{:02}", version % 100), began.plus_millis(version as i64));
        let twin = Twin { kind: kind.into(), id: id.clone(), version, at: Some(at), ..Twin::default() };
        let event = TwinChanged { kind: kind.into(), id, twin: Some(twin) };
        Outgoing::new(&event, format!("version-{version}"), at).unwrap()
    };
    bus.publish_many(versions.map(of).collect()).await.unwrap();
}

/// How many twins are listed, how many versions the seventh has, and the newest of the last.
async fn seen(client: &mut TwinQueriesClient<Channel>) -> Result<(usize, usize, u64), Code> {
    let listing = TwinRequest { page_size: 200, ..asking("node", "") };
    let list = client.list(listing).await.map_err(|status| status.code())?.into_inner().twins;
    let past = client.history(asking("node", "node-07")).await.map_err(|status| status.code())?.into_inner().twins;
    Ok((list.len(), past.len(), list.last().map_or(0, |twin| twin.version)))
}

#[tokio::test(flavor = "multi_thread")]
async fn twins_rest_in_databases_that_may_be_away_or_emptied() {
    let suite = "cmdt-aggregator, twins in databases";
    let Some(test_bus) = test_bus("databases").await else { return };
    let Some(mut mongo) = Database::start(suite, Kind::Mongod).await else { return };
    let Some(mut cassandra) = Database::start(suite, Kind::Cassandra).await else { return };
    let began = now();
    publish(&test_bus, began, 1..501).await;
    let settings = Settings {
        documents_url: mongo.url("twins"),
        history_url: cassandra.url("twins"),
        ready_lag_max: 50,
        ..test_bus.settings("cmdt-aggregator")
    };
    // What limits the memory of the embedded engine does not limit a database.
    let config =
        Config { twins_max: 1, history_ms: 1, history_versions_max: 1, history_bytes_max: 1, ..Config::default() };
    let start = async |settings: &Settings| {
        mesh_kit::join("cmdt-aggregator", settings.clone(), config.clone(), cmdt_aggregator::start).await.unwrap()
    };
    let running = start(&settings).await;
    let mut client = TwinQueriesClient::connect(running.endpoint()).await.unwrap();
    until("what was published", async || seen(&mut client.clone()).await, |seen| *seen == Ok((100, 5, 499)))
        .await
        .unwrap();
    let then = |number| TwinRequest { at: Some(began.plus_millis(number)), ..asking("node", "node-07") };
    assert_eq!(client.get(then(306)).await.unwrap().into_inner().version, 207);
    assert_eq!(client.get(then(6)).await.unwrap_err().code(), Code::NotFound);

    // Away: the service goes on, and says how far behind its store is.
    mongo.kill();
    publish(&test_bus, began, 501..701).await;
    let endpoint = running.endpoint();
    let ready = async || mesh_test::page(&endpoint, "/readyz?verbose").await.unwrap();
    let says = |(status, page): &(u16, String)| *status == 503 && page.contains("store of twins");
    let (_, page) = until("a service that says its store is away", ready, says).await;
    assert!(page.contains("200 messages behind"), "{page}");
    let (_, metrics) = mesh_test::page(&endpoint, "/metrics").await.unwrap();
    let lag = metrics.lines().find(|line| line.starts_with("mesh_consumer_lag") && line.contains("store of twins"));
    assert!(lag.is_some_and(|line| line.ends_with(" 200")), "{lag:?}");
    assert_eq!(
        client.get(asking("node", "node-07")).await.unwrap_err().code(),
        Code::NotFound,
        "a question is answered"
    );
    mongo.start_again().await;
    until("a store that has caught up", async || seen(&mut client.clone()).await, |seen| *seen == Ok((100, 7, 699)))
        .await
        .unwrap();
    until("a service that is ready", ready, |(status, _)| *status == 200).await;

    // Emptied: read again from the stream.
    mongo.start_empty().await;
    cassandra.start_empty().await;
    until("stores that are filled again", async || seen(&mut client.clone()).await, |seen| *seen == Ok((100, 7, 699)))
        .await
        .unwrap();
    assert_eq!(client.get(then(306)).await.unwrap().into_inner().version, 207);
    assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);

    // Another process goes on where the stores are: at once, and with nothing twice.
    let again = start(&settings).await;
    let mut client = TwinQueriesClient::connect(again.endpoint()).await.unwrap();
    assert_eq!(seen(&mut client).await, Ok((100, 7, 699)));
    publish(&test_bus, began, 701..801).await;
    until("what came later", async || seen(&mut client.clone()).await, |seen| *seen == Ok((100, 8, 799)))
        .await
        .unwrap();
    assert_eq!(soon("the end", again.stop()).await, Stopped::Settled);

    // Another bus, whose stream is not as long.
    let other = self::test_bus("another bus").await.unwrap();
    publish(&other, began, 1..11).await;
    let bus_of_other = Settings {
        documents_url: settings.documents_url.clone(),
        history_url: settings.history_url.clone(),
        ..other.settings("cmdt-aggregator")
    };
    let strange = start(&bus_of_other).await;
    let failure = soon("a service that refuses the store", strange.failed()).await;
    assert!(failure.error.contains("filled from another bus"), "{}", failure.error);
    drop(strange);

    let wrong = Settings { documents_url: settings.history_url.clone(), ..settings.clone() };
    let refused = mesh_kit::join("cmdt-aggregator", wrong, config.clone(), cmdt_aggregator::start).await;
    let refused = format!("{:#}", refused.err().unwrap());
    assert!(refused.contains("documents_url") && refused.contains("use mongodb:"), "{refused}");
}
