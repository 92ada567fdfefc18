//! The detector on a real bus and a real Zenoh router, with no other rights than the contract's.

#![cfg(test)]

use std::time::Duration;

use mesh_bus::{About, Bus};
use mesh_core::{Outgoing, Stored};
use mesh_kit::{Running, Settings, Stopped};
use mesh_proto::{
    Timestamp,
    anomaly::{
        AnomalyCleared, AnomalyDetected, AnomalyListRequest, ExplainInstanceRequest,
        anomaly_queries_client::AnomalyQueriesClient,
    },
    query::GetRequest,
    remedy::{
        RemedyPolicy, RemedyPolicySet, RemedyRefused, RemedyWithheld, SetRemedyPolicy, Withheld,
        remedy_queries_client::RemedyQueriesClient,
    },
    telemetry::InstanceSample,
};
use mesh_test::{TestBus, now, says, soon, until};
use prost::Message as _;
use sar_detector::Config;
use tonic::{Code, transport::Channel};

async fn detector(test_bus: &TestBus) -> Running {
    let settings = Settings { data_dir: Some(test_bus.folder().join("state")), ..test_bus.settings("sar-detector") };
    let config = Config { tick_ms: 50, warm_samples: 16, calm_samples: 2, snapshot_ms: 60_000, ..Config::default() };
    mesh_kit::join("sar-detector", settings, config, sar_detector::start).await.unwrap()
}

async fn measure(test_bus: &TestBus, at: Timestamp, cpu_milli: f64) {
    let sample = InstanceSample {
        cluster_id: "edge".into(),
        instance_id: "i".into(),
        owner: "local".into(),
        generation: 1,
        at: Some(at),
        cpu_milli,
        memory_bytes: 20_000_000,
        replicas_running: 1,
        interval_seconds: 1.0,
        ..InstanceSample::default()
    };
    let about = About { time: now(), ..About::default() };
    test_bus.router().publish("continuum/s/n/instance/i", sample.encode_to_vec(), &about).await.unwrap();
}

/// Waits for an event of a stream, from its beginning.
async fn heard<T>(bus: &Bus, stream: &str, mut look: impl FnMut(&Stored) -> Option<T>) -> T {
    let mut tail = bus.log(stream).tail(&mesh_proto::contract().stream(stream).unwrap().subject, 1);
    soon("an event", async {
        loop {
            if let Some(found) = look(&tail.next().await.unwrap()) {
                return found;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_anomaly_is_told_once_across_a_restart_that_keeps_its_models() {
    let Some(test_bus) = TestBus::start("sar-detector, anomalies").await else { return };
    let test_bus = test_bus.with_router().await;
    let person = test_bus.connect("person").await;
    let running = detector(&test_bus).await;
    let mut client = AnomalyQueriesClient::connect(running.endpoint()).await.unwrap();
    // Samples ten milliseconds apart, each taken in before the next.
    let mut at = now().plus_millis(-20_000);
    let mut steps = 0u32;
    let mut step = async |client: &mut AnomalyQueriesClient<Channel>, cpu: f64| {
        (at, steps) = (at.plus_millis(10), steps + 1);
        let cpu = cpu + f64::from(steps % 7);
        let taken = async {
            loop {
                measure(&test_bus, at, cpu).await;
                let asked = ExplainInstanceRequest { instance_id: "i".into() };
                if let Ok(model) = client.explain(asked).await
                    && model.get_ref().at == Some(at)
                {
                    return model.into_inner();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("a sample", taken).await
    };
    for _ in 0..60 {
        step(&mut client, 60.0).await;
    }
    for _ in 0..4 {
        step(&mut client, 500.0).await;
    }
    let detected = heard(&person, "ANOMALY", |f| f.event::<AnomalyDetected>().unwrap()).await;
    assert_eq!(detected.contributions[0].metric, "cpu_milli");
    let withheld = heard(&person, "REMEDY", |f| f.event::<RemedyWithheld>().unwrap()).await;
    assert_eq!((withheld.withheld(), &withheld.episode_id), (Withheld::DryRun, &detected.episode_id));
    let open = async |client: &mut AnomalyQueriesClient<Channel>, count: usize| {
        let request = AnomalyListRequest { open: true, ..AnomalyListRequest::default() };
        let listed = async || client.list(request.clone()).await.unwrap().into_inner().anomalies.len();
        until("the episodes that go on are listed", listed, |found| *found == count).await
    };
    open(&mut client, 1).await;
    let before = step(&mut client, 500.0).await;
    assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);

    let again = detector(&test_bus).await;
    let mut client = AnomalyQueriesClient::connect(again.endpoint()).await.unwrap();
    open(&mut client, 1).await;
    let after = step(&mut client, 500.0).await;
    assert_eq!(after.learned, before.learned, "its model is unchanged, and an anomaly is not learned");
    for _ in 0..8 {
        step(&mut client, 60.0).await;
    }
    let cleared = heard(&person, "ANOMALY", |f| f.event::<AnomalyCleared>().unwrap()).await;
    assert_eq!(cleared.episode_id, detected.episode_id);
    open(&mut client, 0).await;
    let got = client.get(GetRequest { id: detected.episode_id.clone(), ..GetRequest::default() }).await.unwrap();
    assert!(got.get_ref().cleared.is_some());
    assert_eq!(client.get(GetRequest::default()).await.unwrap_err().code(), Code::NotFound);
    let wrong = AnomalyListRequest { owner: "a.b".into(), ..AnomalyListRequest::default() };
    assert_eq!(client.list(wrong).await.unwrap_err().code(), Code::InvalidArgument);

    // A policy that cannot be is refused; one that can is set.
    let ask = async |id: &str, policy: RemedyPolicy| {
        let command = SetRemedyPolicy { owner: "local".into(), policy: Some(policy) };
        person.publish(&Outgoing::new(&command, id.to_owned(), now()).unwrap()).await.unwrap();
    };
    ask("wrong", RemedyPolicy { rate_max: 1_000_000, ..RemedyPolicy::default() }).await;
    let refused = heard(&person, "REMEDY", |f| f.event::<RemedyRefused>().unwrap()).await;
    assert!(says(&refused.reason, "rateMax") && refused.command_id == "wrong", "{refused:?}");
    ask("right", RemedyPolicy { cooldown_seconds: 7, ..RemedyPolicy::default() }).await;
    heard(&person, "REMEDY", |f| f.event::<RemedyPolicySet>().unwrap()).await;
    let mut remedies = RemedyQueriesClient::connect(again.endpoint()).await.unwrap();
    let shown = async {
        loop {
            let view = remedies.policy(GetRequest::default()).await.unwrap().into_inner();
            if !view.is_default {
                return view.policy.unwrap().cooldown_seconds;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(soon("the policy", shown).await, 7);
    assert_eq!(remedies.list(AnomalyListRequest::default()).await.unwrap().into_inner().remedies.len(), 1);
    assert_eq!(soon("the end", again.stop()).await, Stopped::Settled);
}
