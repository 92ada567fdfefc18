//! What a node measures of itself: the newest value of each metric of the whole host, bounded.

use std::collections::BTreeMap;

use mesh_proto::{
    Timestamp,
    telemetry::{Metric, MetricKind},
};

/// Values of one node.
pub(crate) const VALUES_MAX: usize = 256;
/// Bytes of a metric's name with its labels.
const NAME_MAX: usize = 256;
/// A value that was silent for this long makes room for another, milliseconds.
const SILENT_MS: i64 = 60_000;

/// By how much a value must change to matter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Step {
    /// In the value's unit.
    least: f64,
    /// Part of the larger of both.
    part: f64,
}

impl Step {
    fn of(unit: &str, is_rate: bool) -> Self {
        let (least, part) = match (unit, is_rate) {
            // Of a whole; seconds of CPU in a second.
            ("1", false) | ("s", true) => (0.01, 0.0),
            ("%", false) => (1.0, 0.0),
            ("By", false) => (1e6, 0.01),
            ("By", true) => (1e6, 0.1),
            ("W" | "Cel", false) => (1.0, 0.0),
            _ => (0.0, 0.1),
        };
        Self { least, part }
    }

    fn is_passed(self, from: f64, to: f64) -> bool {
        (from - to).abs() > self.least.max(self.part * from.abs().max(to.abs()))
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Value {
    at: Timestamp,
    /// As read: of a counter what it stands at, nothing when it is only known how fast it rose.
    read: Option<f64>,
    /// As shown: of a counter how fast it rises, each second.
    shown: Option<f64>,
    step: Step,
}

/// Values of one node, by name and labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Measured {
    values: BTreeMap<String, Value>,
}

/// The name under which a twin shows a metric: `system.memory.usage{system.memory.state=used}`, for counters
/// `rate(system.network.io{network.io.direction=receive})`. `None` for a part of a host, such as one core, and for names
/// that are too long.
pub(crate) fn name_of(metric: &Metric) -> Option<String> {
    let is_part = |label: &String| label == "cpu" || label.ends_with("logical_number") || label.ends_with(".core");
    if metric.name.is_empty() || metric.labels.keys().any(is_part) {
        return None;
    }
    let labels: Vec<String> = metric.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
    let name = match labels.as_slice() {
        [] => metric.name.clone(),
        labels => format!("{}{{{}}}", metric.name, labels.join(",")),
    };
    let name = if metric.kind() == MetricKind::Counter { format!("rate({name})") } else { name };
    (name.len() <= NAME_MAX).then_some(name)
}

impl Measured {
    /// Values as they were last published.
    pub(crate) fn restored(values: impl IntoIterator<Item = (String, f64)>, at: Timestamp) -> Self {
        let value = |(name, value): (String, f64)| {
            let step = Step::of("", name.starts_with("rate("));
            (name, Value { at, read: None, shown: Some(value), step })
        };
        Self { values: values.into_iter().take(VALUES_MAX).map(value).collect() }
    }

    /// Takes a value. False when there is no room for it.
    pub(crate) fn take(&mut self, metric: &Metric, at: Timestamp, value: f64) -> bool {
        let Some(name) = name_of(metric) else { return true };
        let is_rate = metric.kind() == MetricKind::Counter;
        let step = Step::of(&metric.unit, is_rate);
        if !self.values.contains_key(&name) && self.values.len() >= VALUES_MAX {
            let silent = self.values.iter().min_by_key(|(_, known)| known.at);
            let silent =
                silent.filter(|(_, known)| at.millis_since(known.at) >= SILENT_MS).map(|(name, _)| name.clone());
            let Some(silent) = silent else { return false };
            self.values.remove(&silent);
        }
        let shown = if is_rate { None } else { Some(value) };
        match self.values.get_mut(&name) {
            Some(known) if at <= known.at => {}
            Some(known) => {
                let seconds = at.millis_since(known.at) as f64 / 1e3;
                // Below what it was, it began again at 0.
                let rise = known.read.map(|before| if value >= before { value - before } else { value });
                let rate = rise.map(|rise| rise / seconds).or(known.shown);
                *known = Value { at, read: Some(value), shown: if is_rate { rate } else { shown }, step };
            }
            None => {
                self.values.insert(name, Value { at, read: Some(value), shown, step });
            }
        }
        true
    }

    /// What a twin shows.
    pub(crate) fn shown(&self) -> impl Iterator<Item = (String, f64)> {
        self.values.iter().filter_map(|(name, value)| Some((name.clone(), value.shown?)))
    }

    /// Did one of these values change enough to matter, come or go?
    pub(crate) fn has_moved(&self, from: &BTreeMap<String, f64>, to: &BTreeMap<String, f64>) -> bool {
        let step = |name: &str| self.values.get(name).map_or(Step { least: 0.0, part: 0.0 }, |value| value.step);
        !from.keys().eq(to.keys())
            || from.iter().any(|(name, from)| to.get(name).is_none_or(|to| step(name).is_passed(*from, *to)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn metric(name: &str, unit: &str, kind: MetricKind, labels: &[(&str, &str)]) -> Metric {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Metric {
            name: name.into(),
            unit: unit.into(),
            kind: kind.into(),
            labels: labels.collect(),
            ..Metric::default()
        }
    }

    fn shown(measured: &Measured) -> BTreeMap<String, f64> {
        measured.shown().collect()
    }

    #[test]
    fn gauges_are_shown_as_they_are_and_counters_by_how_fast_they_rise() {
        let mut measured = Measured::default();
        let memory = metric("system.memory.usage", "By", MetricKind::Gauge, &[("system.memory.state", "used")]);
        let network = metric("system.network.io", "By", MetricKind::Counter, &[("b", "2"), ("a", "1")]);
        assert!(measured.take(&memory, at(1), 5e9) && measured.take(&network, at(1), 1_000.0));
        let used = "system.memory.usage{system.memory.state=used}".to_owned();
        assert_eq!(shown(&measured), BTreeMap::from([(used.clone(), 5e9)]));
        measured.take(&network, at(3), 3_000.0);
        // Later news is not overwritten by earlier.
        measured.take(&network, at(2), 9_000.0);
        measured.take(&memory, at(0), 1.0);
        let io = "rate(system.network.io{a=1,b=2})".to_owned();
        assert_eq!(shown(&measured), BTreeMap::from([(used, 5e9), (io.clone(), 1_000.0)]));
        measured.take(&network, at(4), 50.0);
        assert_eq!(shown(&measured)[&io], 50.0, "it began again");
    }

    #[test]
    fn parts_of_a_host_are_left_out_and_values_are_bounded() {
        let mut measured = Measured::default();
        for label in ["cpu", "cpu.logical_number"] {
            assert!(measured.take(&metric("system.cpu.time", "s", MetricKind::Gauge, &[(label, "0")]), at(0), 1.0));
        }
        let long = "x".repeat(300);
        measured.take(&metric(&long, "1", MetricKind::Gauge, &[]), at(0), 1.0);
        assert!(shown(&measured).is_empty());
        let gauge = |n: usize| metric(&format!("m{n}"), "1", MetricKind::Gauge, &[]);
        let taken = (0..1_000).filter(|n| measured.take(&gauge(*n), at(0), 1.0)).count();
        assert_eq!((taken, shown(&measured).len()), (VALUES_MAX, VALUES_MAX));
        assert!(measured.take(&gauge(2_000), at(60), 1.0), "what is silent makes room");
        assert_eq!(shown(&measured).len(), VALUES_MAX);
    }

    #[test]
    fn a_value_matters_when_it_changed_by_the_step_of_its_unit() {
        let moved = |unit: &str, kind, from: f64, to: f64| {
            let mut measured = Measured::default();
            let metric = metric("m", unit, kind, &[]);
            measured.take(&metric, at(0), 0.0);
            let name = name_of(&metric).unwrap();
            let (from, to) = (BTreeMap::from([(name.clone(), from)]), BTreeMap::from([(name, to)]));
            measured.has_moved(&from, &to)
        };
        assert!(!moved("1", MetricKind::Gauge, 0.5, 0.505) && moved("1", MetricKind::Gauge, 0.5, 0.52));
        assert!(!moved("By", MetricKind::Gauge, 8e9, 8.05e9) && moved("By", MetricKind::Gauge, 8e9, 8.2e9));
        assert!(!moved("By", MetricKind::Counter, 0.0, 9e5) && moved("By", MetricKind::Counter, 0.0, 2e6));
        assert!(!moved("{error}", MetricKind::Gauge, 100.0, 109.0) && moved("{error}", MetricKind::Gauge, 0.0, 1.0));
        let measured = Measured::default();
        assert!(measured.has_moved(&BTreeMap::new(), &BTreeMap::from([("a".to_owned(), 1.0)])), "a new value matters");
    }
}
