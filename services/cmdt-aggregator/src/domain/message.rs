//! The message of the specification's digital twin (CMDT) about one workload instance, and when it is sent: at each
//! change, and each minute.

use std::collections::{BTreeMap, VecDeque};

use mesh_proto::{
    Timestamp,
    twin::{Twin, TwinStatus},
};
use serde_json::{Value as Json, json};

use super::{LongTraffic, statuses::name_of};

/// An instance that is nowhere has this in place of its cluster.
const NOWHERE: &str = "unplaced";

/// The subject of an instance's messages.
pub(crate) fn subject(twin: &Twin) -> String {
    let cluster = if twin.cluster_id.is_empty() { NOWHERE } else { &twin.cluster_id };
    format!("cmdt.{cluster}.{}", twin.id)
}

/// The message. `traffic` comes with the seconds that its rates are of; `at` is when the message is made.
pub(crate) fn message(twin: &Twin, traffic: Option<&LongTraffic>, at: Timestamp) -> Json {
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
    let status = name_of(twin.phase(), twin.replicas_running, twin.replicas_wanted);
    let before = twin.statuses.iter().find(|known| Some(known.status.as_str()) != status).map(|known| &known.status);
    // In the order in which they came about.
    let status_of = |known: &TwinStatus| json!({"status": known.status, "timestamp": known.at.unwrap_or_default().to_string(), "reason": known.reason});
    let statuses: Vec<Json> = twin.statuses.iter().rev().map(status_of).collect();
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

/// Which messages are due although nothing changed. Holds one entry for each instance that was sent, and forgets those that
/// are gone.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    sent: BTreeMap<String, Timestamp>,
    /// Ids in the order in which they were sent; an entry older than in `sent` is passed over.
    queue: VecDeque<(Timestamp, String)>,
}

impl Schedule {
    /// A message of this instance was sent.
    pub(crate) fn sent(&mut self, id: &str, at: Timestamp) {
        self.sent.insert(id.to_owned(), at);
        self.queue.push_back((at, id.to_owned()));
        // Each is there once in `sent`: what is beyond that is old.
        if self.queue.len() > 2 * self.sent.len() + 64 {
            let sent = &self.sent;
            self.queue.retain(|(at, id)| sent.get(id) == Some(at));
        }
    }

    /// Instances whose last message is this old, oldest first; at most so many. They are due no more: who sends says so.
    pub(crate) fn due(&mut self, now: Timestamp, period_ms: i64, limit: usize) -> Vec<String> {
        let mut found = vec![];
        while found.len() < limit && self.queue.front().is_some_and(|(at, _)| now.millis_since(*at) >= period_ms) {
            let Some((at, id)) = self.queue.pop_front() else { break };
            if self.sent.get(&id) == Some(&at) {
                self.sent.remove(&id);
                found.push(id);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::{twin::TwinTraffic, workload::InstancePhase};

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

    #[test]
    fn each_instance_is_due_a_period_after_its_last_message_and_no_entry_stays() {
        let mut schedule = Schedule::default();
        schedule.sent("a", at(0));
        schedule.sent("b", at(10));
        schedule.sent("a", at(20));
        assert!(schedule.due(at(60), 60_000, 9).is_empty());
        assert_eq!(schedule.due(at(80), 60_000, 9), ["b", "a"]);
        assert!(schedule.due(at(999), 60_000, 9).is_empty() && schedule.queue.is_empty() && schedule.sent.is_empty());
        for second in 0..10_000 {
            schedule.sent("a", at(second));
        }
        assert!(schedule.queue.len() < 100, "{}", schedule.queue.len());
        schedule.sent("b", at(10_000));
        assert_eq!(schedule.due(at(20_000), 60_000, 1), ["a"]);
    }
}
