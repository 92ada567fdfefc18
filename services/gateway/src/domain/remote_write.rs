//! Prometheus' remote write, version 1.0: what is sent to Prometheus, VictoriaMetrics or another receiver. Names and labels are
//! those of the page that Prometheus reads ([`super::prometheus`]).

use std::collections::BTreeMap;

use mesh_proto::telemetry::SeriesValues;
use prost::Message;

use super::prometheus::{self, Labels};

/// A label (`prometheus.Label`).
#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// A value at a time, milliseconds (`prometheus.Sample`).
#[derive(Clone, Copy, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

/// One series (`prometheus.TimeSeries`).
#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

/// What is sent (`prometheus.WriteRequest`).
#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

/// What was sent last of each series: its time, milliseconds.
#[derive(Debug, Default)]
pub struct Sent(BTreeMap<(String, Labels), i64>);

impl Sent {
    /// The body of a request with the newest value of each series that is newer than what was sent before, and how many
    /// those are. A series that is not there any more is forgotten.
    pub fn request(&mut self, series: &[SeriesValues]) -> (Vec<u8>, usize) {
        let (mut now, mut timeseries) = (BTreeMap::new(), vec![]);
        for found in series {
            let Some(named) = prometheus::named(found) else { continue };
            let (Some(value), Some(at_ms)) = (found.values.last(), found.at_ms.last()) else { continue };
            let name = if named.counter { format!("{}_total", named.family) } else { named.family };
            let key = (name, named.labels);
            let is_newer = self.0.get(&key).is_none_or(|before| before < at_ms);
            if is_newer && !now.contains_key(&key) {
                let mut labels = vec![Label { name: "__name__".into(), value: key.0.clone() }];
                labels.extend(key.1.iter().map(|(name, value)| Label { name: name.clone(), value: value.clone() }));
                // A receiver may rely on their order.
                labels.sort_by(|a, b| a.name.cmp(&b.name));
                timeseries.push(TimeSeries { labels, samples: vec![Sample { value: *value, timestamp: *at_ms }] });
            }
            now.insert(key, *at_ms);
        }
        self.0 = now;
        let count = timeseries.len();
        (WriteRequest { timeseries }.encode_to_vec(), count)
    }

    /// What was sent was not taken: it is sent again, as far as it is still the newest.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::telemetry::{Entity, Metric, MetricKind};

    use super::*;

    fn series(at_ms: i64, value: f64) -> SeriesValues {
        SeriesValues {
            entity: Some(Entity { kind: "node".into(), id: "n".into(), cluster_id: "c".into(), ..Entity::default() }),
            metric: Some(Metric {
                name: "system.cpu.time".into(),
                unit: "s".into(),
                kind: MetricKind::Counter.into(),
                labels: [("Zone".to_owned(), "z".to_owned())].into(),
                ..Metric::default()
            }),
            at_ms: vec![at_ms],
            values: vec![value],
        }
    }

    #[test]
    fn each_value_is_sent_once_and_its_labels_are_in_order() {
        let mut sent = Sent::default();
        let (body, count) = sent.request(&[series(1_000, 2.0), series(1_000, 3.0)]);
        let request = WriteRequest::decode(body.as_slice()).unwrap();
        assert_eq!((count, request.timeseries.len()), (1, 1), "of two that are called the same, the first");
        let names: Vec<&str> = request.timeseries[0].labels.iter().map(|label| label.name.as_str()).collect();
        assert_eq!(names, ["Zone", "__name__", "cluster", "entity_id", "entity_kind"]);
        assert_eq!(request.timeseries[0].labels[1].value, "system_cpu_time_seconds_total");
        assert_eq!(request.timeseries[0].samples, [Sample { value: 2.0, timestamp: 1_000 }]);
        assert_eq!(sent.request(&[series(1_000, 2.0)]).1, 0);
        assert_eq!(sent.request(&[series(2_000, 2.0)]).1, 1);
        sent.forget();
        assert_eq!(sent.request(&[series(2_000, 2.0)]).1, 1);
        assert_eq!(sent.request(&[]).1, 0);
        assert_eq!(sent.0.len(), 0, "what is gone is forgotten");
    }
}
