//! The mirror on a real bus: what is stored comes again as JSON, to people and to dashboards.

#![cfg(test)]
#![allow(missing_docs)]

use mesh_bus::Bus;
use mesh_core::Outgoing;
use mesh_proto::{
    AnyEvent, Timestamp,
    anomaly::AnomalyDetected,
    remedy::RemedyWithheld,
    telemetry::{Entity, Metric, Readings},
};
use mesh_test::{TestBus, soon};
use serde_json::Value as Json;

async fn store(bus: &Bus, event: &dyn AnyEvent, id: &str) {
    let time = Timestamp { seconds: 1_700_000_000, nanos: 0 };
    bus.publish(&Outgoing::new(event, id, time).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anomalies_remedies_and_readings_come_again_as_json() {
    let Some(bus) = TestBus::start("json-mirror, streams").await else { return };
    let running = mesh_kit::join("json-mirror", bus.settings("json-mirror"), Default::default(), json_mirror::start);
    let running = running.await.unwrap();
    let detector = bus.connect("sar-detector").await;
    let collector = bus.connect("collector").await;
    for identity in ["dashboard", "person"] {
        let listener = bus.connect(identity).await;
        let mut heard = listener.subscribe("json.>").await.unwrap();
        // A listener that asks nothing knows that it is subscribed by what it hears.
        let mut found: Vec<Json> = vec![];
        let mut number = 0;
        while found.len() < 3 {
            number += 1;
            let id = |what: &str| format!("{what} {identity} {number}");
            let anomaly = AnomalyDetected {
                owner: "local".into(),
                instance_id: "i".into(),
                sentence: "memory is too high".into(),
                ..AnomalyDetected::default()
            };
            store(&detector, &anomaly, &id("anomaly")).await;
            let withheld =
                RemedyWithheld { owner: "local".into(), reason: "it was moved before".into(), ..Default::default() };
            store(&detector, &withheld, &id("remedy")).await;
            let readings = Readings {
                cluster_id: "edge".into(),
                entities: vec![Entity { kind: "node".into(), id: "edge-1".into(), ..Entity::default() }],
                metrics: vec![Metric { name: "system.memory.utilization".into(), ..Metric::default() }],
                metric: vec![0],
                after_ms: vec![0],
                values: vec![0.5],
                ..Readings::default()
            };
            store(&collector, &readings, &id("readings")).await;
            for _ in 0..3 {
                let next = tokio::time::timeout(std::time::Duration::from_secs(2), heard.next()).await;
                let Ok(Some(message)) = next else { break };
                let event: Json = serde_json::from_slice(&message.body).unwrap();
                if !found.iter().any(|known| known["type"] == event["type"]) {
                    found.push(event);
                }
            }
            assert!(number < 30, "{identity} heard only {found:?}");
        }
        let of = |kind: &str| {
            let event = found.iter().find(|event| event["type"] == kind);
            event.unwrap_or_else(|| panic!("{identity} hears {kind}: {found:?}"))
        };
        assert_eq!(of("continuum.anomaly.v1.AnomalyDetected")["data"]["sentence"], "memory is too high");
        assert_eq!(of("continuum.remedy.v1.RemedyWithheld")["subject"], "remedy.withheld.v1.local");
        assert_eq!(of("continuum.telemetry.v1.Readings")["data"]["values"][0], 0.5);
    }
    soon("the mirror stops", running.stop()).await;
}
