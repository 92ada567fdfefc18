//! The network on the live mesh: measured by the agents, exposed by ALTO, noted by the planner; and network intents.

use std::time::{Duration, Instant};

use mesh_bus::About;
use mesh_proto::{
    Timestamp,
    cost::{CostsChanged, ProbeSample},
    network::{Connectivity, ConnectivityChanged, NetworkRefused, SubmitNetworkIntent},
    placement::{LatenciesNoted, PlacementDecided, PlacementUnplaced},
};
use mncc_exposer::adaptors::http;
use prost::Message as _;
use serde_json::{Value as Json, json};

use crate::support::{LIMIT, MeshRun, OWNER, text};

/// What the command line says as JSON.
async fn said(mesh: &MeshRun, arguments: &[&str]) -> Json {
    let all: Vec<&str> = arguments.iter().copied().chain(["-o", "json"]).collect();
    let output = mesh.cli(&all).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The network once every way between the three clusters is measured and up.
async fn measured(mesh: &MeshRun) -> Json {
    let deadline = Instant::now() + LIMIT;
    loop {
        let map = said(mesh, &["network", "map"]).await;
        let links = map["links"].as_array().cloned().unwrap_or_default();
        if links.len() == 6 && links.iter().all(|l| l["up"] == true && l["probes"].as_u64() >= Some(3)) {
            return map;
        }
        assert!(Instant::now() < deadline, "not measured: {map}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits for a fact.
async fn until<E: mesh_proto::Event>(tail: &mut mesh_bus::Tail, what: &str, is: impl Fn(&E) -> bool) -> E {
    loop {
        let stored =
            tokio::time::timeout(LIMIT, tail.next()).await.unwrap_or_else(|_| panic!("{what}: not seen")).unwrap();
        if let Some(event) = stored.event::<E>().unwrap().filter(|event| is(event)) {
            return event;
        }
    }
}

async fn follow(mesh: &MeshRun, stream: &str, filter: &str) -> mesh_bus::Tail {
    let log = mesh.bus.log(stream);
    log.tail(filter, log.last_sequence().await.unwrap() + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_is_measured_exposed_and_a_placement_follows_it() {
    let Some(mesh) = MeshRun::start("network", &[], &["--relays"]).await else { return };
    let map = measured(&mesh).await;
    let noted =
        |fact: &mesh_core::Stored| fact.event::<LatenciesNoted>().unwrap().filter(|noted| noted.links.len() == 6);
    mesh.fact("placement", "placement.latencies_noted.v1.*", noted).await;

    // By ALTO, over real HTTP.
    let root = map["altoUrl"].as_str().unwrap().strip_suffix("/directory").unwrap().to_owned();
    let directory = http::send("GET", &format!("{root}/directory"), &[], "").await.unwrap();
    assert_eq!(directory.headers["content-type"], "application/alto-directory+json");
    let costs = http::send("GET", &format!("{root}/costmap/ordinal/delay-ow"), &[], "").await.unwrap();
    let costs: Json = serde_json::from_slice(&costs.body).unwrap();
    assert!(costs["cost-map"]["cloud"]["edge"].as_u64() >= Some(1), "{costs}");
    let kind = [("content-type", "application/alto-endpointcostparams+json")];
    let body = json!({"cost-type": {"cost-mode": "numerical", "cost-metric": "routingcost"}, "endpoints": {"dsts": ["ipv4:127.0.0.1"]}});
    let own = http::send("POST", &format!("{root}/endpointcost"), &kind, body.to_string()).await.unwrap();
    let own: Json = serde_json::from_slice(&own.body).unwrap();
    assert_eq!(own["endpoint-cost-map"]["ipv4:127.0.0.1"]["ipv4:127.0.0.1"], 0.0, "the client's own address: {own}");
    let wrong = http::send("POST", &format!("{root}/endpointcost"), &kind, "{").await.unwrap();
    assert_eq!(
        (wrong.status.as_u16(), &wrong.headers["content-type"]),
        (400, &"application/alto-error+json".parse().unwrap())
    );
    let large = http::send("POST", &format!("{root}/endpointcost"), &kind, vec![b' '; 512 * 1024 + 1]).await.unwrap();
    assert_eq!(large.status.as_u16(), 413);

    // A workload that must be near the device goes where it is, and elsewhere when the way there slows down.
    let file = crate::support::root().join("examples/network/tracker.workload.yaml");
    said(&mesh, &["workload", "push", file.to_str().unwrap()]).await;
    let mut placements = follow(&mesh, "PLACEMENT", "placement.*.*.*").await;
    said(&mesh, &["workload", "run", "tracker@1.0.0"]).await;
    let first = until::<PlacementDecided>(&mut placements, "a placement", |_| true).await;
    assert_eq!(first.cluster_id, "edge");
    let mut costs = follow(&mesh, "COST", "cost.changed.>").await;
    std::fs::write(mesh.folder().join("probe-delay-edge"), "60").unwrap();
    let slower = |c: &CostsChanged| c.changes.iter().any(|text| text.contains("-> edge latency"));
    until::<CostsChanged>(&mut costs, "the slower network", slower).await;
    let second = until::<PlacementDecided>(&mut placements, "a move", |d| d.instance_id == first.instance_id).await;
    assert_eq!((second.from_cluster_id.as_str(), second.cluster_id.as_str()), ("edge", "cloud"));
    let edge = second.candidates.iter().find(|c| c.cluster_id == "edge").unwrap();
    assert!(mesh_test::says(&edge.ruled_out, "latency to site device is"), "{}", edge.ruled_out);

    // Where no cluster is near enough, it says by how much.
    std::fs::write(mesh.folder().join("probe-delay-cloud"), "60").unwrap();
    let unplaced =
        until::<PlacementUnplaced>(&mut placements, "no place", |u| u.instance_id == first.instance_id).await;
    assert_eq!(unplaced.stays_on, "cloud");
    assert!(mesh_test::says(&unplaced.reason, "too far"), "{}", unplaced.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_samples_and_intents_change_nothing_and_are_told() {
    let Some(mesh) = MeshRun::start("network hostile", &[], &[]).await else { return };
    let before = measured(&mesh).await;
    let samples = mesh_bus::Samples::open(mesh_bus::SamplesOptions {
        connect: vec![mesh.endpoints["zenoh"].as_str().unwrap().to_owned()],
        ..Default::default()
    })
    .await
    .unwrap();
    let forged = |from: &str, latency_ms: f64, at: Timestamp| ProbeSample {
        from_cluster: from.into(),
        to_cluster: "device".into(),
        at: Some(at),
        sent: 5,
        answered: 5,
        latency_ms,
        throughput_mbps: -1.0,
        ..Default::default()
    };
    let now = Timestamp::from_nanos(
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as i128,
    );
    let far_future = now.plus_millis(3_600_000);
    for (key, sample) in [
        ("continuum/nowhere/x/probe/device", forged("stranger", 900.0, now)),
        ("continuum/cloud/cloud-1/probe/device", forged("edge", 900.0, now)),
        ("continuum/edge/edge-1/probe/device", forged("edge", f64::NAN, now)),
        ("continuum/edge/edge-1/probe/device", forged("edge", 900.0, far_future)),
    ] {
        samples.publish(key, sample.encode_to_vec(), &About::default()).await.unwrap();
    }
    samples.publish("continuum/edge/edge-1/probe/device", vec![0xff; 100], &About::default()).await.unwrap();
    let refused = |map: &Json| map["samplesRefused"].as_u64().unwrap_or(0);
    let deadline = Instant::now() + LIMIT;
    let after = loop {
        let map = said(&mesh, &["network", "map"]).await;
        if refused(&map) >= refused(&before) + 5 {
            break map;
        }
        assert!(Instant::now() < deadline, "{map}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(after["links"].as_array().unwrap().iter().all(|l| l["latencyMs"].as_f64() < Some(800.0)), "{after}");

    // Intents that cannot be carried out are refused; one whose controller is not there is told so, and can be withdrawn.
    let mut networks = follow(&mesh, "NETWORK", "network.>").await;
    for (number, intent) in [
        "",
        "}{",
        "a: 1",
        &"x".repeat(70_000),
        "Intent: {intentExpectations: [{expectationVerb: DELIVER, expectationObject: {objectType: L3VPN}}]}",
    ]
    .iter()
    .enumerate()
    {
        let network_id = format!("bad-{number}");
        let command =
            SubmitNetworkIntent { owner: OWNER.into(), network_id: network_id.clone(), intent: (*intent).to_owned() };
        let message = mesh_core::Outgoing::new(&command, network_id.clone(), now).unwrap();
        mesh.bus.publish(&message).await.unwrap();
        let refused = until::<NetworkRefused>(&mut networks, "a refusal", |r| r.network_id == network_id).await;
        assert!(!refused.reason.is_empty() && !refused.hint.is_empty());
    }
    let file = crate::support::root().join("examples/network/l2sm.yaml");
    let closed = mesh_test::free_address();
    let own = mesh.folder().join("l2sm.yaml");
    let intent = std::fs::read_to_string(file).unwrap().replace("127.0.0.1:50051", &closed.to_string());
    std::fs::write(&own, intent).unwrap();
    let output = mesh.cli(&["network", "submit", own.to_str().unwrap(), "-o", "json"]).await;
    assert!(!output.status.success() && text(&output).contains("not_connected"), "{}", text(&output));
    let failed =
        until::<ConnectivityChanged>(&mut networks, "the failure", |c| c.phase() == Connectivity::NotConnected).await;
    assert!(mesh_test::says(&failed.reason, &closed.to_string()) && !failed.hint.is_empty(), "{failed:?}");
    let facts = mesh_why::facts(&mesh.bus, "NETWORK", "network.>").await.unwrap();
    assert!(
        facts.iter().all(|f| !String::from_utf8_lossy(&f.body).contains("a.secret.token")),
        "no fact holds the token"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_is_an_intent_that_becomes_real_traffic_and_goes_again() {
    let folder = tempfile::tempdir().unwrap();
    let netns = folder.path().join("netns");
    let set = format!("mncc-exposer.netns_dir={}", netns.display());
    let Some(mesh) = MeshRun::start("network segment", &[], &["--set", &set]).await else { return };
    let file = crate::support::root().join("examples/network/segment.yaml");
    let output = mesh.cli(&["network", "submit", file.to_str().unwrap(), "-o", "json"]).await;
    if text(&output).contains("CAP_NET_ADMIN") {
        eprintln!("SKIPPED: network segment: needs CAP_NET_ADMIN and CAP_SYS_ADMIN");
        return;
    }
    assert!(output.status.success(), "{}", text(&output));
    let got = mesh
        .until("it is shown as connected", async || {
            let got = said(&mesh, &["network", "get", "segment_1"]).await;
            (got["phase"] == "CONNECTED").then_some(got)
        })
        .await;
    assert!(got["results"][0]["detail"].as_str().unwrap().contains("there and back"), "{got}");
    assert!(netns.join("sensor").exists());
    said(&mesh, &["network", "withdraw", "segment_1"]).await;
    assert_eq!(std::fs::read_dir(&netns).unwrap().count(), 0);
}
