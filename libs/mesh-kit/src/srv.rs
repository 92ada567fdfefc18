//! Answers NATS service discovery (ADR-32), `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS` (also `.<name>` and `.<name>.<id>`),
//! in the published JSON types, so that `nats micro ls` and `nats micro stats` show the mesh. Consumers stand as endpoints:
//! under a name that ADR-32 allows, with the subject that they listen to.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use mesh_bus::Bus;
use mesh_proto::Timestamp;
use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, Reading};

/// Who answers.
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) process: String,
    pub(crate) endpoint: String,
    /// Services that run in one program share it.
    pub(crate) pid: String,
    pub(crate) started: Timestamp,
    pub(crate) metrics: Arc<Metrics>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Ping,
    Info,
    Stats,
}

#[derive(Serialize)]
struct Answer<'a> {
    r#type: &'static str,
    name: &'a str,
    id: &'a str,
    version: &'static str,
    metadata: BTreeMap<&'static str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoints: Option<Vec<serde_json::Value>>,
}

/// Answers until the process stops.
pub(crate) async fn answer(bus: Bus, service: Service, stopping: CancellationToken) -> anyhow::Result<()> {
    // One subscription for all: of nine exact ones, a right to one might be missing unnoticed.
    let mut requests = match bus.subscribe("$SRV.>").await {
        Ok(requests) => requests,
        Err(error) => {
            // Discovery is a convenience; the service works without.
            tracing::warn!(error = &error as &dyn std::error::Error, "service discovery not answered");
            return Ok(());
        }
    };
    loop {
        let request = tokio::select! {
            request = requests.next() => request,
            () = stopping.cancelled() => return Ok(()),
        };
        let Some(request) = request else { return Ok(()) };
        let (Some(asked), Some(to)) = (service.is_asked(&request.subject), &request.reply) else { continue };
        let answered = match serde_json::to_vec(&service.answer(asked)) {
            Ok(body) => bus.reply(to, Bytes::from(body)).await,
            Err(error) => {
                tracing::error!(%error, "service discovery answer");
                continue;
            }
        };
        if let Err(error) = answered {
            tracing::debug!(error = &error as &dyn std::error::Error, "service discovery not answered");
        }
    }
}

impl Service {
    /// What is asked on a subject, if it is of this service.
    fn is_asked(&self, subject: &str) -> Option<Asked> {
        let mut tokens = subject.split('.');
        if tokens.next() != Some("$SRV") {
            return None;
        }
        let asked = match tokens.next()? {
            "PING" => Asked::Ping,
            "INFO" => Asked::Info,
            "STATS" => Asked::Stats,
            _ => return None,
        };
        let ours = |token: Option<&str>, own: &str| token.is_none_or(|token| token == own);
        (ours(tokens.next(), self.name) && ours(tokens.next(), &self.process) && tokens.next().is_none())
            .then_some(asked)
    }

    fn answer(&self, asked: Asked) -> Answer<'_> {
        let common = Answer {
            r#type: "io.nats.micro.v1.ping_response",
            name: self.name,
            id: &self.process,
            version: env!("CARGO_PKG_VERSION"),
            metadata: [("endpoint", self.endpoint.as_str()), ("pid", &self.pid)].into(),
            description: None,
            started: None,
            endpoints: None,
        };
        // One subject each: of several the first, all of them in the metadata. What listens to none, such as a view of
        // samples, is where its numbers are asked for.
        let none = format!("$SRV.STATS.{}.{}", self.name, self.process);
        let subject = |reading: &Reading| reading.subjects.first().unwrap_or(&none).clone();
        let readings = || self.metrics.readings().into_iter();
        match asked {
            Asked::Ping => common,
            Asked::Info => Answer {
                r#type: "io.nats.micro.v1.info_response",
                description: Some(format!("Continuum {}; queries by gRPC at {}", self.name, self.endpoint)),
                endpoints: Some(
                    readings()
                        .map(|r| {
                            let subjects = r.subjects.join(", ");
                            json!({
                                "name": endpoint_name(&r.consumer), "subject": subject(&r), "queue_group": "",
                                "metadata": {"consumer": r.consumer, "subjects": subjects},
                            })
                        })
                        .collect(),
                ),
                ..common
            },
            Asked::Stats => Answer {
                r#type: "io.nats.micro.v1.stats_response",
                started: Some(self.started.to_string()),
                endpoints: Some(
                    readings()
                        .map(|r| {
                            // Time without a request, such as of what was due, is nobody's: `nats micro stats` divides by
                            // the requests wherever there is time.
                            let asked = r.handled > 0 || r.dead > 0;
                            let nanos = if asked { r.micros.saturating_mul(1_000) } else { 0 };
                            json!({
                                "name": endpoint_name(&r.consumer), "subject": subject(&r), "queue_group": "",
                                "num_requests": r.handled, "num_errors": r.dead, "last_error": "",
                                "processing_time": nanos,
                                "average_processing_time": nanos.checked_div(r.handled).unwrap_or(0),
                                "data": {
                                    "consumer": r.consumer, "received": r.received, "retried": r.retried, "lag": r.lag, "entities": r.entities,
                                    "open": r.open, "ageMs": r.age_ms, "waiting": r.waiting, "floor": r.floor,
                                    "follows": r.follows,
                                },
                            })
                        })
                        .collect(),
                ),
                ..common
            },
        }
    }
}

/// A consumer's name as ADR-32 has names: letters, digits, `_` and `-`.
fn endpoint_name(consumer: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '-' };
    consumer.chars().map(allowed).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn service() -> Service {
        Service {
            name: "validator",
            process: "p1".into(),
            endpoint: "http://127.0.0.1:1".into(),
            pid: "17".into(),
            started: Timestamp::from_millis(0),
            metrics: Arc::new(Metrics::new("validator", "p1", Duration::from_secs(60)).unwrap()),
        }
    }

    #[test]
    fn a_service_answers_to_all_to_its_name_and_to_its_id_only() {
        let service = service();
        for (subject, asked) in [
            ("$SRV.PING", Some(Asked::Ping)),
            ("$SRV.INFO.validator", Some(Asked::Info)),
            ("$SRV.STATS.validator.p1", Some(Asked::Stats)),
            ("$SRV.PING.other", None),
            ("$SRV.PING.validator.p2", None),
            ("$SRV.PING.validator.p1.more", None),
            ("$SRV.WHAT", None),
            ("$SRV", None),
            ("SRV.PING", None),
        ] {
            assert_eq!(service.is_asked(subject), asked, "{subject}");
        }
    }

    #[test]
    fn answers_have_the_published_types_and_fields() {
        let service = service();
        let consumer = service.metrics.consumer("verdicts");
        consumer.received(4);
        consumer.handled(3);
        consumer.took(Duration::from_millis(6));
        let value = |asked| serde_json::to_value(service.answer(asked)).unwrap();
        let ping = value(Asked::Ping);
        assert_eq!(ping["type"], "io.nats.micro.v1.ping_response");
        assert_eq!((ping["name"].as_str(), ping["id"].as_str()), (Some("validator"), Some("p1")));
        assert_eq!(ping["metadata"], json!({"endpoint": "http://127.0.0.1:1", "pid": "17"}));
        assert!(ping["version"].as_str().is_some_and(|v| v.split('.').count() == 3));
        assert!(ping.get("endpoints").is_none());
        let info = value(Asked::Info);
        assert_eq!(info["type"], "io.nats.micro.v1.info_response");
        assert_eq!(info["endpoints"][0]["name"], "verdicts");
        assert_eq!(info["metadata"]["endpoint"], "http://127.0.0.1:1");
        let stats = value(Asked::Stats);
        assert_eq!(stats["type"], "io.nats.micro.v1.stats_response");
        assert_eq!(stats["started"], "1970-01-01T00:00:00Z");
        assert_eq!(stats["endpoints"][0]["num_requests"], 3);
        assert_eq!(stats["endpoints"][0]["average_processing_time"], 2_000_000);
        assert_eq!(stats["endpoints"][0]["data"]["received"], 4);
    }

    #[test]
    fn there_is_no_time_without_a_request() {
        let service = service();
        service.metrics.consumer("due").took(Duration::from_millis(6));
        let times = || {
            let stats = serde_json::to_value(service.answer(Asked::Stats)).unwrap();
            ["num_requests", "processing_time", "average_processing_time"]
                .map(|name| stats["endpoints"][0][name].as_u64())
        };
        assert_eq!(times(), [Some(0), Some(0), Some(0)]);
        service.metrics.consumer("due").handled(1);
        assert_eq!(times(), [Some(1), Some(6_000_000), Some(6_000_000)]);
    }

    #[test]
    fn every_endpoint_has_a_name_and_a_subject_by_adr_32() {
        let service = service();
        let listens =
            [("verdicts from INTENT", vec!["intent.>"]), ("a.b/c ü", vec!["x.>", "y.>"]), ("samples", vec![])];
        for (name, subjects) in listens {
            service.metrics.consumer(name).listens(subjects.into_iter().map(str::to_owned));
        }
        for asked in [Asked::Info, Asked::Stats] {
            let value = serde_json::to_value(service.answer(asked)).unwrap();
            let endpoints = value["endpoints"].as_array().unwrap();
            assert_eq!(endpoints.len(), 3);
            for endpoint in endpoints {
                let (name, subject) = (endpoint["name"].as_str().unwrap(), endpoint["subject"].as_str().unwrap());
                assert!(
                    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)),
                    "{name}"
                );
                assert!(!subject.is_empty() && !subject.contains(' '), "{subject}");
            }
            let named = |name: &str| endpoints.iter().find(|endpoint| endpoint["name"] == name).unwrap();
            assert_eq!(named("verdicts-from-INTENT")["subject"], "intent.>");
            assert_eq!(named("samples")["subject"], "$SRV.STATS.validator.p1");
        }
        let info = serde_json::to_value(service.answer(Asked::Info)).unwrap();
        assert_eq!(info["endpoints"][0]["metadata"], json!({"consumer": "a.b/c ü", "subjects": "x.>, y.>"}));
    }
}
