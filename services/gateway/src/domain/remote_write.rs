//! Prometheus' remote write, version 1.0: what is sent to Prometheus, VictoriaMetrics or another receiver. Names and labels are
//! those of the page that Prometheus reads ([`super::prometheus`]).

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
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
}

/// What a receiver's answer means for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has the values.
    Taken,
    /// It has not, and may have them when they are sent again.
    Later,
    /// It never takes them.
    Refused,
}

impl Verdict {
    /// As the specification has it: 429 and 5xx are sent again, other errors are not.
    pub fn of(status: u16) -> Self {
        match status {
            200..=299 => Self::Taken,
            429 | 500..=599 => Self::Later,
            _ => Self::Refused,
        }
    }
}

/// A request that waits for the receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    number: u64,
    /// Its body.
    pub body: Bytes,
    /// Values in it.
    pub values: u64,
}

/// Requests that wait for the receiver, within a limit of bytes. The oldest gives way: what is newest matters most.
#[derive(Debug)]
pub struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    bytes_max: usize,
    numbered: u64,
}

impl Queue {
    /// Nothing waits.
    pub fn new(bytes_max: usize) -> Self {
        Self { waiting: VecDeque::new(), bytes: 0, bytes_max, numbered: 0 }
    }

    /// Puts a request last; returns how many values gave way.
    pub fn push(&mut self, body: Bytes, values: u64) -> u64 {
        self.numbered += 1;
        self.bytes += body.len();
        self.waiting.push_back(Waiting { number: self.numbered, body, values });
        let mut dropped = 0;
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.waiting.pop_front()
        {
            self.bytes -= oldest.body.len();
            dropped += oldest.values;
        }
        dropped
    }

    /// The oldest request; it waits until it is settled.
    pub fn first(&self) -> Option<Waiting> {
        self.waiting.front().cloned()
    }

    /// A request is done with. `false` if it had given way meanwhile, and was counted then.
    pub fn settle(&mut self, done: &Waiting) -> bool {
        let is_first = self.waiting.front().is_some_and(|first| first.number == done.number);
        if is_first && let Some(first) = self.waiting.pop_front() {
            self.bytes -= first.body.len();
        }
        is_first
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Does none wait?
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
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
        assert_eq!(sent.request(&[]).1, 0);
        assert_eq!(sent.0.len(), 0, "what is gone is forgotten");
    }

    #[test]
    fn the_oldest_gives_way_when_the_queue_is_full() {
        let body = |byte: u8| Bytes::from(vec![byte; 40]);
        let mut queue = Queue::new(100);
        assert_eq!((queue.push(body(1), 3), queue.push(body(2), 5)), (0, 0));
        let under_way = queue.first().unwrap();
        assert_eq!(queue.push(body(3), 7), 3);
        assert!(!queue.settle(&under_way), "it gave way while it was sent");
        for expected in [2, 3] {
            let first = queue.first().unwrap();
            assert_eq!(first.body, body(expected));
            assert!(queue.settle(&first));
        }
        assert!(queue.is_empty() && queue.bytes == 0);
        assert_eq!(queue.push(Bytes::from(vec![0; 101]), 9), 9, "one that is larger than the queue");
    }

    #[test]
    fn what_a_receiver_may_take_later_is_told_from_what_it_refuses() {
        let of = |statuses: [u16; 3]| statuses.map(Verdict::of);
        assert_eq!(of([200, 204, 299]), [Verdict::Taken; 3]);
        assert_eq!(of([429, 500, 503]), [Verdict::Later; 3]);
        assert_eq!(of([400, 404, 301]), [Verdict::Refused; 3]);
    }
}
