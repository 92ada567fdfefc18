//! The message of the specification's digital twin (CMDT) about one workload instance: JSON on `cmdt.<cluster>.<instance>`,
//! not stored.

use serde_json::{Value as Json, json};

use crate::{
    Timestamp,
    twin::{Twin, TwinStatus, TwinTraffic},
    workload::InstancePhase,
};

/// It runs, with fewer replicas than are wanted or while it starts.
pub const RUNNING: &str = "Running";
/// All replicas that are wanted run.
pub const READY: &str = "Ready";
/// A replica ended and is started again.
pub const RESTART: &str = "Restart";
/// It failed, or its cluster was given up.
pub const FAILURE: &str = "Failure";

/// The specification's name of a phase; `None` for what it has no name of: what is waited for, and what was ended.
pub fn status_of(phase: InstancePhase, running: u32, wanted: u32) -> Option<&'static str> {
    match phase {
        InstancePhase::Running if running >= wanted => Some(READY),
        InstancePhase::Running => Some(RUNNING),
        InstancePhase::Starting if running > 0 => Some(RUNNING),
        InstancePhase::Restarting => Some(RESTART),
        InstancePhase::Failed | InstancePhase::Lost => Some(FAILURE),
        _ => None,
    }
}

/// An instance that is nowhere has this in place of its cluster.
const NOWHERE: &str = "unplaced";

/// The subject of an instance's messages.
pub fn subject(twin: &Twin) -> String {
    let cluster = if twin.cluster_id.is_empty() { NOWHERE } else { &twin.cluster_id };
    format!("cmdt.{cluster}.{}", twin.id)
}

/// The message. `traffic` comes with the seconds that its rates are of; `at` is when the message is made.
pub fn message(twin: &Twin, traffic: Option<&(TwinTraffic, f64)>, at: Timestamp) -> Json {
    let traffic = traffic.map(|(traffic, seconds)| {
        json!({
            "timestamp": traffic.at.unwrap_or_default().to_string(),
            "window_seconds": seconds,
            "request_rate": traffic.request_rate,
            "res_rate_by_code": traffic.rate_by_code,
            "response_time": {
                "0.5": traffic.latency_p50, "0.95": traffic.latency_p95, "0.99": traffic.latency_p99,
            },
        })
    });
    let resources = (twin.sample_age_seconds >= 0.0).then(|| {
        json!({
            "cpu_percent": twin.cpu_percent,
            "memory_bytes": twin.memory_bytes,
            "io_read_rate": twin.io_read_rate,
            "io_write_rate": twin.io_write_rate,
            "age_seconds": twin.sample_age_seconds,
            "provenance": twin.usage_provenance().as_str_name(),
        })
    });
    let status = status_of(twin.phase(), twin.replicas_running, twin.replicas_wanted);
    let before = twin.statuses.iter().find(|known| Some(known.status.as_str()) != status).map(|known| &known.status);
    // In the order in which they came about.
    let shown = |known: &TwinStatus| json!({"status": known.status, "timestamp": known.at.unwrap_or_default().to_string(), "reason": known.reason});
    let statuses: Vec<Json> = twin.statuses.iter().rev().map(shown).collect();
    json!({
        "timestamp": at.to_string(),
        "workload_id": twin.id,
        "user_id": twin.owner,
        "workload": twin.workload,
        "intent_id": twin.intent_id,
        "cluster_id": twin.cluster_id,
        "traffic": traffic,
        "resources": resources,
        "replicas": twin.replicas_running,
        "replicas_wanted": twin.replicas_wanted,
        "restarts": twin.restarts,
        "status": status,
        "past_status": before,
        "phase": twin.phase().as_str_name(),
        "pod_status": statuses,
        "anomalies": twin.anomalies.iter().map(|anomaly| &anomaly.sentence).collect::<Vec<_>>(),
        "version": twin.version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn twin() -> Twin {
        let status =
            |status: &str, seconds| TwinStatus { status: status.into(), at: Some(at(seconds)), reason: "r".into() };
        Twin {
            kind: "workload".into(),
            id: "i".into(),
            owner: "ada".into(),
            cluster_id: "edge".into(),
            phase: InstancePhase::Running.into(),
            replicas_wanted: 2,
            replicas_running: 2,
            cpu_percent: 12.5,
            memory_bytes: 1_000,
            sample_age_seconds: 0.5,
            statuses: vec![status("Ready", 3), status("Restart", 2), status("Ready", 1)],
            ..Twin::default()
        }
    }

    #[test]
    fn a_message_has_every_block_of_the_specification() {
        let rates = [("200".to_owned(), 2.0 / 60.0), ("500".to_owned(), 1.0 / 360.0)].into();
        let traffic = TwinTraffic { rate_by_code: rates, latency_p95: 0.2, at: Some(at(4)), ..TwinTraffic::default() };
        let found = message(&twin(), Some(&(traffic, 360.0)), at(5));
        assert_eq!(subject(&twin()), "cmdt.edge.i");
        for (field, expected) in [
            ("timestamp", json!("1970-01-01T00:00:05Z")),
            ("workload_id", json!("i")),
            ("user_id", json!("ada")),
            ("replicas", json!(2)),
            ("status", json!("Ready")),
            ("past_status", json!("Restart")),
        ] {
            assert_eq!(found[field], expected, "{field}");
        }
        assert_eq!(found["traffic"]["res_rate_by_code"], json!({"200": 2.0 / 60.0, "500": 1.0 / 360.0}));
        assert_eq!(
            (&found["traffic"]["window_seconds"], &found["traffic"]["response_time"]["0.95"]),
            (&json!(360.0), &json!(0.2))
        );
        assert_eq!(found["resources"]["cpu_percent"], json!(12.5));
        let listed: Vec<&Json> = found["pod_status"].as_array().unwrap().iter().map(|s| &s["status"]).collect();
        assert_eq!(listed, ["Ready", "Restart", "Ready"]);
        assert_eq!(found["pod_status"][0]["timestamp"], "1970-01-01T00:00:01Z");
    }

    #[test]
    fn what_is_not_known_is_null() {
        let unplaced = Twin { cluster_id: String::new(), sample_age_seconds: -1.0, statuses: vec![], ..twin() };
        let stopped = Twin { phase: InstancePhase::Stopped.into(), ..unplaced };
        let found = message(&stopped, None, at(5));
        assert_eq!(subject(&stopped), "cmdt.unplaced.i");
        for field in ["traffic", "resources", "status", "past_status"] {
            assert_eq!(found[field], Json::Null, "{field}");
        }
        assert_eq!(found["phase"], "STOPPED");
    }
}
