//! One data point of OTLP: what is wrong with it, how deltas add up, and the values that it gives.

use std::collections::BTreeMap;

use mesh_proto::telemetry::MetricKind;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, ExponentialHistogramDataPoint, HistogramDataPoint, NumberDataPoint, SummaryDataPoint,
    exponential_histogram_data_point, number_data_point,
};

use super::super::{
    Value,
    series::{Base, Total, metric},
};

/// Scales that the data model of OpenTelemetry has.
const SCALES: std::ops::RangeInclusive<i32> = -10..=20;
/// Exponents that a number can have, at base 2.
const EXPONENTS: std::ops::RangeInclusive<i64> = -1_022..=1_024;

/// What is known of a series of a workload.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    Number { value: f64, kind: MetricKind },
    Histogram { bounds: Vec<f64>, counts: Vec<u64>, total: Total },
    Powers(Powers),
    Summary { quantiles: Vec<(f64, f64)>, total: Total },
}

/// An exponential histogram, its buckets merged to powers of two: those stay the same when its scale changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Powers {
    /// By the exponent of their upper bound.
    positive: BTreeMap<i32, u64>,
    /// By the exponent of their bound next to zero.
    negative: BTreeMap<i32, u64>,
    zero: u64,
    zero_threshold: f64,
    total: Total,
}

/// Do points of this temporality add up?
pub(super) fn adds_up(temporality: i32) -> Result<bool, String> {
    match AggregationTemporality::try_from(temporality) {
        Ok(AggregationTemporality::Delta) => Ok(true),
        Ok(AggregationTemporality::Cumulative) => Ok(false),
        Ok(AggregationTemporality::Unspecified) | Err(_) => {
            Err("it is neither cumulative nor delta; set its aggregation temporality".into())
        }
    }
}

fn finite(value: f64, what: &str) -> Result<f64, String> {
    if value.is_finite() { Ok(value) } else { Err(format!("{what} is {value}; leave out what is not finite")) }
}

/// A number. A monotonic one counts, and never falls below zero.
pub(super) fn number(point: &NumberDataPoint, monotonic: bool) -> Result<State, String> {
    let value = match point.value {
        Some(number_data_point::Value::AsDouble(value)) => finite(value, "its value")?,
        Some(number_data_point::Value::AsInt(value)) => value as f64,
        None => return Err("it has no value".into()),
    };
    if monotonic && value < 0.0 {
        return Err(format!("it is monotonic and its value is {value}; a counter is not negative"));
    }
    Ok(State::Number { value, kind: if monotonic { MetricKind::Counter } else { MetricKind::Gauge } })
}

fn total(count: u64, sum: Option<f64>) -> Result<Total, String> {
    Ok(Total { count, sum: sum.map(|sum| finite(sum, "its sum")).transpose()? })
}

fn add_up<'a>(counts: impl IntoIterator<Item = &'a u64>) -> Option<u64> {
    counts.into_iter().try_fold(0u64, |sum, count| sum.checked_add(*count))
}

/// A histogram with explicit bounds.
pub(super) fn histogram(point: HistogramDataPoint) -> Result<State, String> {
    let HistogramDataPoint { count, sum, bucket_counts: counts, explicit_bounds: bounds, .. } = point;
    if counts.len() != bounds.len() + 1 && !(counts.is_empty() && bounds.is_empty()) {
        return Err(format!("it has {} bounds and {} buckets; send one bucket more", bounds.len(), counts.len()));
    }
    if !bounds.iter().all(|bound| bound.is_finite()) || !bounds.is_sorted_by(|a, b| a < b) {
        return Err("its bounds do not rise; send finite ones in ascending order".into());
    }
    if !counts.is_empty() && add_up(&counts) != Some(count) {
        return Err(format!("its count is {count}, which is not the sum of its buckets"));
    }
    Ok(State::Histogram { bounds, counts, total: total(count, sum)? })
}

/// Buckets merged to powers of two: by the exponent of the upper bound, or of the lower.
fn powers(
    buckets: Option<&exponential_histogram_data_point::Buckets>,
    scale: i32,
    upper: bool,
) -> Result<BTreeMap<i32, u64>, String> {
    let mut merged = BTreeMap::new();
    let Some(buckets) = buckets else { return Ok(merged) };
    for (number, count) in (0i64..).zip(&buckets.bucket_counts).filter(|(_, count)| **count > 0) {
        let index = i64::from(buckets.offset) + number;
        let beyond = i64::from(upper);
        let exponent = if scale >= 0 { (index >> scale) + beyond } else { (index + beyond) << -scale };
        let exponent = i32::try_from(exponent.clamp(*EXPONENTS.start(), *EXPONENTS.end())).unwrap_or_default();
        let sum = merged.entry(exponent).or_insert(0u64);
        *sum = sum.checked_add(*count).ok_or("its buckets count more than fits")?;
    }
    Ok(merged)
}

/// An exponential histogram.
pub(super) fn exponential(point: &ExponentialHistogramDataPoint) -> Result<State, String> {
    if !SCALES.contains(&point.scale) {
        return Err(format!("its scale is {}; use {} to {}", point.scale, SCALES.start(), SCALES.end()));
    }
    if !(point.zero_threshold.is_finite() && point.zero_threshold >= 0.0) {
        return Err(format!("its zero threshold is {}; use a finite one from 0 on", point.zero_threshold));
    }
    let positive = powers(point.positive.as_ref(), point.scale, true)?;
    let negative = powers(point.negative.as_ref(), point.scale, false)?;
    if add_up(positive.values().chain(negative.values()).chain([&point.zero_count])) != Some(point.count) {
        return Err(format!("its count is {}, which is not the sum of its buckets", point.count));
    }
    let total = total(point.count, point.sum)?;
    let (zero, zero_threshold) = (point.zero_count, point.zero_threshold);
    Ok(State::Powers(Powers { positive, negative, zero, zero_threshold, total }))
}

/// A summary.
pub(super) fn summary(point: &SummaryDataPoint) -> Result<State, String> {
    let mut quantiles = vec![];
    for one in &point.quantile_values {
        if !(0.0..=1.0).contains(&one.quantile) {
            return Err(format!("its quantile is {}; use 0 to 1", one.quantile));
        }
        quantiles.push((one.quantile, finite(one.value, "its value")?));
    }
    quantiles.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    if !quantiles.is_sorted_by(|(a, _), (b, _)| a < b) {
        return Err("it has a quantile twice".into());
    }
    Ok(State::Summary { quantiles, total: total(point.count, Some(point.sum))? })
}

fn add(total: &mut Total, more: Total) {
    total.count = total.count.saturating_add(more.count);
    total.sum = total.sum.zip(more.sum).map(|(sum, more)| sum + more);
}

fn add_each(counts: &mut BTreeMap<i32, u64>, more: BTreeMap<i32, u64>) {
    for (exponent, count) in more {
        let sum = counts.entry(exponent).or_default();
        *sum = sum.saturating_add(count);
    }
}

impl State {
    /// Adds a delta. One of another form takes its place: the instrument has changed.
    pub(super) fn add(&mut self, delta: Self) {
        match (&mut *self, delta) {
            (Self::Number { value, kind }, Self::Number { value: more, kind: same }) if *kind == same => *value += more,
            (
                Self::Histogram { bounds, counts, total },
                Self::Histogram { bounds: same, counts: more, total: of_more },
            ) if *bounds == same => {
                counts.iter_mut().zip(more).for_each(|(count, more)| *count = count.saturating_add(more));
                add(total, of_more);
            }
            (Self::Powers(powers), Self::Powers(more)) => {
                add_each(&mut powers.positive, more.positive);
                add_each(&mut powers.negative, more.negative);
                powers.zero = powers.zero.saturating_add(more.zero);
                powers.zero_threshold = powers.zero_threshold.max(more.zero_threshold);
                add(&mut powers.total, more.total);
            }
            (before, other) => *before = other,
        }
    }

    /// Is it of several series?
    pub(super) fn has_parts(&self) -> bool {
        !matches!(self, Self::Number { .. })
    }

    /// Series that its values are of.
    pub(super) fn series(&self) -> usize {
        let of_total = |total: &Total| 1 + usize::from(total.sum.is_some());
        match self {
            Self::Number { .. } => 1,
            Self::Histogram { bounds, total, .. } => bounds.len() + 1 + of_total(total),
            Self::Powers(powers) => powers.buckets().len() + 1 + of_total(&powers.total),
            Self::Summary { quantiles, total } => quantiles.len() + of_total(total),
        }
    }

    /// Its values.
    pub(super) fn values(&self, base: Base<'_>) -> Vec<Value> {
        match self {
            Self::Number { value, kind } => {
                let metric = metric(base.name.to_owned(), base.unit.to_owned(), *kind, base.labels.clone());
                vec![Value { metric, value: *value, at: None }]
            }
            Self::Histogram { bounds, counts, total } => {
                base.histogram(rising(bounds.iter().copied().zip(counts.iter().copied())), *total)
            }
            Self::Powers(powers) => base.histogram(rising(powers.buckets().into_iter()), powers.total),
            Self::Summary { quantiles, total } => base.summary(quantiles, *total),
        }
    }
}

/// Counts of buckets as counts of all that is at most their bound.
fn rising(buckets: impl Iterator<Item = (f64, u64)>) -> impl Iterator<Item = (f64, u64)> {
    buckets.scan(0u64, |sum, (bound, count)| {
        *sum = sum.saturating_add(count);
        Some((bound, *sum))
    })
}

impl Powers {
    /// Buckets with a finite bound, ascending, each bound once.
    fn buckets(&self) -> Vec<(f64, u64)> {
        let negative = self.negative.iter().map(|(exponent, count)| (-2f64.powi(*exponent), *count));
        let zero = (self.zero > 0).then_some((self.zero_threshold, self.zero));
        let positive = self.positive.iter().map(|(exponent, count)| (2f64.powi(*exponent), *count));
        let mut all: Vec<(f64, u64)> =
            negative.chain(zero).chain(positive).filter(|(bound, _)| bound.is_finite()).collect();
        all.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        all.dedup_by(|(bound, more), (kept, count)| {
            let same = bound == kept;
            if same {
                *count = count.saturating_add(*more);
            }
            same
        });
        all
    }
}
