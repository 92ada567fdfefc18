//! Values of a step made one.

use mesh_proto::telemetry::{Function, MetricKind};

/// What is known of the values of one step of one series.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    /// Beginning, milliseconds since 1970.
    pub(crate) begin_ms: i64,
    pub(crate) count: f64,
    pub(crate) sum: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) first: f64,
    pub(crate) last: f64,
    /// By how much a counter rose, the rise from the value before the step included; and over which time, milliseconds.
    pub(crate) rise: f64,
    pub(crate) rise_ms: f64,
    /// The values themselves, as far as they are still there.
    pub(super) values: Vec<f64>,
}

impl Step {
    fn new(begin_ms: i64) -> Self {
        Self {
            begin_ms,
            count: 0.0,
            sum: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            first: 0.0,
            last: 0.0,
            rise: 0.0,
            rise_ms: 0.0,
            values: vec![],
        }
    }

    /// The step of one value, and of the value before it, for what a counter rose by.
    pub(crate) fn of(begin_ms: i64, before: Option<(i64, f64)>, at_ms: i64, value: f64) -> Self {
        let (rise, rise_ms) = match before {
            // A counter that fell has begun again at 0.
            Some((ms, was)) => (if value < was { value } else { value - was }, (at_ms - ms) as f64),
            None => (0.0, 0.0),
        };
        let (count, sum, min, max, first, last) = (1.0, value, value, value, value, value);
        Self { begin_ms, count, sum, min, max, first, last, rise, rise_ms, values: vec![] }
    }

    /// Adds a step that comes after this one, or lies in it.
    pub(crate) fn add(&mut self, later: &Self) {
        if self.count == 0.0 {
            self.first = later.first;
        }
        self.count += later.count;
        self.sum += later.sum;
        self.min = self.min.min(later.min);
        self.max = self.max.max(later.max);
        self.last = later.last;
        self.rise += later.rise;
        self.rise_ms += later.rise_ms;
        self.values.extend_from_slice(&later.values);
    }

    /// A step that was kept without its values.
    pub(crate) fn rolled(begin_ms: i64, value: impl Fn(&str) -> Option<f64>) -> Option<Self> {
        Some(Self {
            begin_ms,
            count: value("count")?,
            sum: value("sum")?,
            min: value("min")?,
            max: value("max")?,
            first: value("first")?,
            last: value("last")?,
            rise: value("rise")?,
            rise_ms: value("rise_ms")?,
            values: vec![],
        })
    }

    /// What is kept of it: the names.
    pub(crate) const KEPT: [&str; 8] = ["count", "sum", "min", "max", "first", "last", "rise", "rise_ms"];

    /// What is kept of it, in order of [`Self::KEPT`].
    pub(crate) fn kept(&self) -> [f64; 8] {
        [self.count, self.sum, self.min, self.max, self.first, self.last, self.rise, self.rise_ms]
    }

    /// The one value. `None` if there is none: a rate without two values, a quantile of what is only rolled up.
    pub(crate) fn value(&self, function: Function, kind: MetricKind) -> Option<f64> {
        let rate = || (self.rise_ms > 0.0).then(|| self.rise / self.rise_ms * 1_000.0);
        match function {
            Function::Unspecified if kind == MetricKind::Counter => rate(),
            Function::Unspecified | Function::Mean => Some(self.sum / self.count),
            Function::Min => Some(self.min),
            Function::Max => Some(self.max),
            Function::Sum => Some(self.sum),
            Function::Count => Some(self.count),
            Function::First => Some(self.first),
            Function::Last => Some(self.last),
            Function::Rate => rate(),
            Function::P50 => quantile(&self.values, 0.50),
            Function::P95 => quantile(&self.values, 0.95),
            Function::P99 => quantile(&self.values, 0.99),
        }
    }
}

/// The value below or at which this share of the values lies (nearest rank).
fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// The steps of a series, from its values in order of time. A step begins at a whole multiple of its length since 1970;
/// one without values is left out. A counter that fell has begun again at 0.
#[derive(Debug)]
pub(crate) struct Steps {
    step_ms: i64,
    keep_values: bool,
    before: Option<(i64, f64)>,
    steps: Vec<Step>,
}

impl Steps {
    /// Of this length in milliseconds, at least 1. Values are kept only where quantiles are asked for.
    pub(crate) fn new(step_ms: i64, keep_values: bool) -> Self {
        Self { step_ms: step_ms.max(1), keep_values, before: None, steps: vec![] }
    }

    fn at(&mut self, at_ms: i64) -> &mut Step {
        let begin_ms = at_ms.div_euclid(self.step_ms) * self.step_ms;
        if self.steps.last().is_none_or(|step| step.begin_ms != begin_ms) {
            self.steps.push(Step::new(begin_ms));
        }
        let last = self.steps.len() - 1;
        &mut self.steps[last]
    }

    /// The next value.
    pub(crate) fn push(&mut self, at_ms: i64, value: f64) {
        let before = self.before.replace((at_ms, value));
        let keep = self.keep_values;
        let step = self.at(at_ms);
        let mut one = Step::of(step.begin_ms, before, at_ms, value);
        if keep {
            one.values.push(value);
        }
        step.add(&one);
    }

    /// The next step of shorter ones that were rolled up.
    pub(crate) fn merge(&mut self, shorter: &Step) {
        self.before = None;
        self.at(shorter.begin_ms).add(shorter);
    }

    /// All steps so far.
    pub(crate) fn done(self) -> Vec<Step> {
        self.steps
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steps(step_ms: i64, values: &[(i64, f64)]) -> Vec<Step> {
        let mut steps = Steps::new(step_ms, true);
        values.iter().for_each(|(at, value)| steps.push(*at, *value));
        steps.done()
    }

    #[test]
    fn a_step_is_read_by_every_function() {
        let found = steps(10, &[(1, 3.0), (2, 1.0), (9, 2.0), (30, 5.0)]);
        assert_eq!(found.iter().map(|s| s.begin_ms).collect::<Vec<_>>(), [0, 30]);
        let of = |function| found[0].value(function, MetricKind::Gauge).unwrap();
        let all = [
            Function::Mean,
            Function::Min,
            Function::Max,
            Function::Sum,
            Function::Count,
            Function::First,
            Function::Last,
        ];
        assert_eq!(all.map(of), [2.0, 1.0, 3.0, 6.0, 3.0, 3.0, 2.0]);
        assert_eq!((of(Function::P50), of(Function::P95)), (2.0, 3.0));
    }

    #[test]
    fn a_counter_gives_its_rate_over_restarts_and_across_steps() {
        let found = steps(1_000, &[(0, 10.0), (500, 15.0), (1_000, 20.0), (1_500, 4.0)]);
        let rate = |step: &Step| step.value(Function::Unspecified, MetricKind::Counter);
        assert_eq!(found.iter().map(rate).collect::<Vec<_>>(), [Some(10.0), Some(9.0)]);
        assert_eq!(rate(&steps(1_000, &[(0, 1.0)])[0]), None);
    }

    proptest! {
        /// Rolled up once or twice, a step says the same but for quantiles and sums' last bits.
        #[test]
        fn steps_of_steps_are_steps(values in prop::collection::vec((1i64..400, 0.0..1e6f64), 1..100)) {
            let mut at = 0;
            let values: Vec<(i64, f64)> = values.into_iter().map(|(gap, value)| { at += gap; (at, value) }).collect();
            let long = steps(4_000, &values);
            let mut merged = Steps::new(4_000, false);
            for short in steps(1_000, &values) {
                let kept = short.kept();
                let find = |name: &str| Some(kept[Step::KEPT.iter().position(|known| *known == name)?]);
                merged.merge(&Step::rolled(short.begin_ms, find).unwrap());
            }
            let merged = merged.done();
            prop_assert_eq!(merged.len(), long.len());
            for (a, b) in merged.iter().zip(&long) {
                for function in [Function::Min, Function::Max, Function::Count, Function::First, Function::Last] {
                    prop_assert_eq!(a.value(function, MetricKind::Gauge), b.value(function, MetricKind::Gauge));
                }
                prop_assert!((a.sum - b.sum).abs() <= 1e-6 * b.sum.abs());
                prop_assert!((a.rise - b.rise).abs() <= 1e-6 * b.rise.abs().max(1.0));
                prop_assert_eq!(a.rise_ms, b.rise_ms);
            }
        }
    }
}
