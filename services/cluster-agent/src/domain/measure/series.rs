//! What workloads say of themselves becomes series here, in whichever format it came: one set of limits, and one way to
//! write histograms and summaries.
//!
//! The limits are those of the collector, so that what does not fit is refused where its sender can be answered.

use std::borrow::Cow;

use mesh_proto::telemetry::{MetricKind, Provenance};

use super::{Metric, Value};

/// Bytes of a name of a metric or label.
pub const NAME_MAX: usize = 128;
/// Bytes of a label's value.
pub const TEXT_MAX: usize = 128;
/// Labels of one series.
pub const LABELS_MAX: usize = 16;
/// The label of a bucket of a histogram: the largest value that it counts.
pub const LE: &str = "le";
/// The label of a quantile of a summary.
pub const QUANTILE: &str = "quantile";

/// Labels by name, sorted.
pub type Labels = Vec<(Cow<'static, str>, String)>;

/// A series that a workload names.
pub fn metric(name: String, unit: impl Into<Cow<'static, str>>, kind: MetricKind, labels: Labels) -> Metric {
    Metric { name: Cow::Owned(name), unit: unit.into(), kind, labels, provenance: Provenance::Measured, leads: true }
}

/// The same labels and one more.
fn with(labels: &Labels, name: &'static str, text: String) -> Labels {
    let mut labels = labels.clone();
    let at = labels.partition_point(|(other, _)| **other < *name);
    labels.insert(at, (Cow::Borrowed(name), text));
    labels
}

/// A bound as text: short, and read back as the same number.
pub fn bound(value: f64) -> String {
    match value.abs() {
        _ if value == f64::INFINITY => "+Inf".to_owned(),
        // A zero has no sign here.
        0.0 | 1e-5..1e15 => (value + 0.0).to_string(),
        _ => format!("{value:e}"),
    }
}

/// How many observations there were, and what they add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Total {
    /// Observations.
    pub count: u64,
    /// Their sum; `None` where they may be negative.
    pub sum: Option<f64>,
}

/// One name with its unit and labels, whose parts are written.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// Name, without an ending.
    pub name: &'a str,
    /// In UCUM.
    pub unit: &'a str,
    /// Labels of every part.
    pub labels: &'a Labels,
}

impl Base<'_> {
    fn part(&self, ending: &str, unit: &str, labels: Labels, value: f64) -> Value {
        let metric = metric(format!("{}{ending}", self.name), unit.to_owned(), MetricKind::Counter, labels);
        Value { metric, value, at: None }
    }

    fn total(&self, total: Total, values: &mut Vec<Value>) {
        values.push(self.part("_count", "1", self.labels.clone(), total.count as f64));
        values.extend(total.sum.map(|sum| self.part("_sum", self.unit, self.labels.clone(), sum)));
    }

    /// A histogram: counters of what is at most each bound, `buckets` ascending, and of everything.
    pub fn histogram(&self, buckets: impl Iterator<Item = (f64, u64)>, total: Total) -> Vec<Value> {
        let all = buckets.filter(|(le, _)| le.is_finite()).chain([(f64::INFINITY, total.count)]);
        let mut values: Vec<Value> =
            all.map(|(le, count)| self.part("_bucket", "1", with(self.labels, LE, bound(le)), count as f64)).collect();
        self.total(total, &mut values);
        values
    }

    /// A summary: quantiles as they were computed, and counters of everything.
    pub fn summary(&self, quantiles: &[(f64, f64)], total: Total) -> Vec<Value> {
        let one = |(quantile, value): &(f64, f64)| {
            let labels = with(self.labels, QUANTILE, bound(*quantile));
            Value {
                metric: metric(self.name.to_owned(), self.unit.to_owned(), MetricKind::Gauge, labels),
                value: *value,
                at: None,
            }
        };
        let mut values: Vec<Value> = quantiles.iter().map(one).collect();
        self.total(total, &mut values);
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_short_and_read_back_as_they_were() {
        for (value, text) in
            [(0.0, "0"), (0.005, "0.005"), (2.5, "2.5"), (-8.0, "-8"), (1e300, "1e300"), (1e-9, "1e-9")]
        {
            assert_eq!((bound(value).as_str(), bound(value).parse::<f64>()), (text, Ok(value)));
        }
        assert_eq!(bound(f64::INFINITY), "+Inf");
    }

    #[test]
    fn a_histogram_ends_with_everything_and_its_labels_are_sorted() {
        let labels: Labels = vec![("code".into(), "200".into()), ("route".into(), "/".into())];
        let base = Base { name: "rpc", unit: "s", labels: &labels };
        let values = base.histogram([(0.1, 3), (f64::INFINITY, 9)].into_iter(), Total { count: 5, sum: Some(0.7) });
        let said: Vec<(&str, &str, f64)> = values.iter().map(|v| (&*v.metric.name, &*v.metric.unit, v.value)).collect();
        let expected =
            [("rpc_bucket", "1", 3.0), ("rpc_bucket", "1", 5.0), ("rpc_count", "1", 5.0), ("rpc_sum", "s", 0.7)];
        assert_eq!(said, expected);
        assert!(values[0].metric.labels.is_sorted() && values[0].metric.labels.len() == 3);
        assert_eq!(base.summary(&[(0.5, 1.0)], Total::default())[0].metric.labels[1].1, "0.5");
    }
}
