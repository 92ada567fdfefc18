//! What workloads send by OTLP: checked, limited for each instance, and kept until the agent says it.
//!
//! - [`unpack`] and [`decode`]: bytes to a request, within limits; [`Inbox`]: the series of each instance, and what was
//!   refused of them; [`spans`]: whose they are.
//! - A point is known by the replica that sent it, its scope, name and attributes. Deltas add up here, so that what leaves
//!   is cumulative. A point that comes again is taken once.
//! - Invariants: nothing grows beyond the limits of its instance; what is refused is counted and answered in words.

mod point;
pub mod spans;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::Read as _,
};

use mesh_core::units;
use mesh_proto::{Timestamp, shown, wire};
use mesh_scenes::load::ReplicaId;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{self as sent, metric::Data},
};
use prost::Message;

use super::{
    Reading, Value,
    budget::Bucket,
    catalog,
    series::{Base, LABELS_MAX, LE, Labels, NAME_MAX, QUANTILE, TEXT_MAX},
};
use point::State;

/// Attributes of this beginning are the mesh's own.
pub const OWN: &str = "continuum.";
/// Bytes of a request, compressed or not.
pub const BYTES_MAX: usize = 4 << 20;
/// Fields with a length in a request, at any depth: what a decoder may allocate for.
const PARTS_MAX: usize = 100_000;
/// How old a point may be, and how far ahead of the agent's clock, milliseconds.
const LATE_MS: i64 = 600_000;
const AHEAD_MS: i64 = 5_000;
/// A series that got no point for so long is forgotten, milliseconds.
const IDLE_MS: i64 = 900_000;
/// Between two looks for such series, milliseconds.
const SWEEP_MS: i64 = 10_000;
/// Different reasons that are told of one request or reading.
const REASONS_MAX: usize = 3;
/// Characters of a name in a reason.
const SHOWN_MAX: usize = 60;
/// What may come at once, as a multiple of what may come in a second; a whole request at least.
const BURST: f64 = 4.0;
/// The label that tells replicas apart, and that of the instrumentation scope.
const REPLICA: &str = "replica";
const SCOPE: &str = "otel.scope.name";
/// A point that says that there is no value.
const NO_VALUE: u32 = sent::DataPointFlags::NoRecordedValueMask as u32;

/// Limits of one instance, all its replicas together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests a second.
    pub requests_per_s: u32,
    /// Bytes a second, uncompressed.
    pub bytes_per_s: u32,
    /// Series.
    pub series: usize,
}

/// What was refused, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    count: u64,
    reasons: BTreeMap<String, u64>,
}

impl Refused {
    /// Refuses some for one reason.
    pub fn add(&mut self, count: u64, reason: String) {
        if count == 0 {
            return;
        }
        self.count += count;
        if self.reasons.len() < REASONS_MAX || self.reasons.contains_key(&reason) {
            *self.reasons.entry(reason).or_default() += count;
        }
    }

    fn join(&mut self, other: Self) {
        let listed: u64 = other.reasons.values().sum();
        self.count += other.count - listed;
        for (reason, count) in other.reasons {
            self.add(count, reason);
        }
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }
}

impl fmt::Display for Refused {
    /// The first reasons, each with how many.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (reason, count)) in self.reasons.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            write!(f, "{separator}{count} refused: {reason}")?;
        }
        let listed: u64 = self.reasons.values().sum();
        if self.count > listed {
            write!(f, "; {} refused for other reasons", self.count - listed)?;
        }
        Ok(())
    }
}

/// Takes gzip off; at most [`BYTES_MAX`] bytes come out.
///
/// # Errors
/// If it is not gzip, or more comes out.
pub fn unpack(body: &[u8]) -> Result<Vec<u8>, String> {
    let mut unpacked = vec![];
    let limit = BYTES_MAX as u64 + 1;
    flate2::read::GzDecoder::new(body)
        .take(limit)
        .read_to_end(&mut unpacked)
        .map_err(|error| format!("the body is not gzip: {error}"))?;
    if unpacked.len() > BYTES_MAX {
        return Err(format!("the body is more than {BYTES_MAX} bytes without gzip; send less at once"));
    }
    Ok(unpacked)
}

/// Decodes a request, if what it would take in memory is within limits.
///
/// # Errors
/// If it is malformed or of too many parts.
pub fn decode<T: Message + Default>(body: &[u8]) -> Result<T, String> {
    if wire::parts(body, PARTS_MAX).is_none() {
        return Err(format!("the body is not protobuf, or has more than {PARTS_MAX} parts; send less at once"));
    }
    T::decode(body).map_err(|error| format!("the body is not an OTLP request: {error}"))
}

/// Text of others in a message, short and in one line.
fn short(text: &str) -> String {
    let text: String = text.chars().take(SHOWN_MAX).collect();
    shown::line(&text).into_owned()
}

/// Checks that what a resource says of its instance is true.
fn claimed(attributes: &[KeyValue], instance_id: &str) -> Result<(), String> {
    let claim = attributes.iter().find(|attribute| attribute.key == "continuum.instance.id");
    let Some(value) = claim.and_then(|attribute| attribute.value.as_ref()) else { return Ok(()) };
    match scalar(value) {
        Some(claimed) if claimed == instance_id => Ok(()),
        claimed => Err(format!(
            "its resource says that it is of instance {:?}; the token is of another",
            short(&claimed.unwrap_or_default())
        )),
    }
}

/// A value as the text of a label.
fn scalar(value: &AnyValue) -> Option<String> {
    match value.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        any_value::Value::BoolValue(yes) => Some(yes.to_string()),
        any_value::Value::IntValue(number) => Some(number.to_string()),
        any_value::Value::DoubleValue(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Labels of a point: its attributes, its scope and its replica.
fn labels(attributes: Vec<KeyValue>, scope: &str, replica: u32) -> Result<Labels, String> {
    let mut labels: Labels = vec![(Cow::Borrowed(REPLICA), replica.to_string())];
    if !scope.is_empty() {
        labels.push((Cow::Borrowed(SCOPE), scope.to_owned()));
    }
    // A bucket or quantile gets one label more.
    if attributes.len() + labels.len() >= LABELS_MAX {
        let most = LABELS_MAX - labels.len() - 1;
        return Err(format!("it has {} attributes; send at most {most}", attributes.len()));
    }
    for KeyValue { key, value, .. } in attributes {
        let value = value.unwrap_or_default();
        let Some(text) = scalar(&value) else {
            return Err(format!("its attribute {:?} is not text, a number or a boolean", short(&key)));
        };
        // An attribute without a text is as if it were not there.
        if !text.is_empty() {
            labels.push((Cow::Owned(key), text));
        }
    }
    let fits = |text: &str, most: usize| (1..=most).contains(&text.len()) && !text.chars().any(char::is_control);
    if let Some((name, _)) = labels.iter().find(|(name, text)| !fits(name, NAME_MAX) || !fits(text, TEXT_MAX)) {
        let name = short(name);
        return Err(format!("its attribute {name:?} is longer than {TEXT_MAX} bytes, or has control characters"));
    }
    labels.sort_unstable();
    match labels.windows(2).find(|pair| matches!(pair, [a, b] if a.0 == b.0)) {
        Some(twice) => Err(format!("its attribute {:?} is there twice", short(&twice[0].0))),
        None => Ok(labels),
    }
}

/// A name that the collector takes, with room for an ending.
fn is_name(name: &str) -> bool {
    let ending = "_bucket".len();
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() + ending <= NAME_MAX
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-/".contains(c))
}

/// One point, before it is known what it belongs to.
struct Point {
    attributes: Vec<KeyValue>,
    time_unix_nano: u64,
    flags: u32,
    state: Result<State, String>,
}

/// A series or, of a histogram or summary, all of its series.
#[derive(Debug)]
struct Stream {
    unit: String,
    state: State,
    /// Of its newest point, as its sender says.
    time: Timestamp,
    /// The same, and not ahead of the agent's clock.
    at: Timestamp,
    seen: Timestamp,
    /// Not said yet.
    is_new: bool,
}

/// A stream's name and labels.
type Key = (String, Labels);

#[derive(Debug)]
struct Sender {
    requests: Bucket,
    bytes: Bucket,
    streams: BTreeMap<Key, Stream>,
    /// Series of all streams.
    series: usize,
    swept: Timestamp,
    /// Accepted and refused, since the agent started.
    requests_seen: [u64; 2],
    points: [u64; 2],
    spans: [u64; 2],
    /// Refused since it was last said.
    news: Refused,
    is_new: bool,
}

/// What every instance has sent.
#[derive(Debug)]
pub struct Inbox {
    limits: Limits,
    senders: BTreeMap<String, Sender>,
}

impl Inbox {
    /// Nothing was sent yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, senders: BTreeMap::new() }
    }

    /// Instances that have sent something.
    pub fn instances(&self) -> impl Iterator<Item = &str> {
        self.senders.keys().map(String::as_str)
    }

    /// Forgets instances that run no more.
    pub fn retain(&mut self, runs: impl Fn(&str) -> bool) {
        self.senders.retain(|instance, _| runs(instance));
    }

    fn sender(&mut self, instance: &str, now: Timestamp) -> &mut Sender {
        let limits = self.limits;
        let bucket = |per_s: u32, least: f64| {
            let per_s = f64::from(per_s);
            Bucket::new(per_s, (per_s * BURST).max(least), now)
        };
        self.senders.entry(instance.to_owned()).or_insert_with(|| Sender {
            requests: bucket(limits.requests_per_s, 1.0),
            bytes: bucket(limits.bytes_per_s, BYTES_MAX as f64),
            streams: BTreeMap::new(),
            series: 0,
            swept: now,
            requests_seen: [0; 2],
            points: [0; 2],
            spans: [0; 2],
            news: Refused::default(),
            is_new: true,
        })
    }

    /// Counts a request.
    ///
    /// # Errors
    /// If the instance has sent too many; none of it should be read then.
    pub fn request(&mut self, instance: &str, now: Timestamp) -> Result<(), String> {
        let limit = self.limits.requests_per_s;
        let sender = self.sender(instance, now);
        let taken = sender.requests.take(1.0, now);
        sender.request(taken, || format!("an instance may send {limit} requests a second (otlp_requests_per_s)"))
    }

    /// Counts the bytes of a request, after [`Inbox::request`].
    ///
    /// # Errors
    /// If the instance has sent too many.
    pub fn bytes(&mut self, instance: &str, bytes: usize, now: Timestamp) -> Result<(), String> {
        let limit = self.limits.bytes_per_s;
        let sender = self.sender(instance, now);
        if sender.bytes.take(bytes as f64, now) {
            return Ok(());
        }
        sender.requests_seen[0] = sender.requests_seen[0].saturating_sub(1);
        sender.request(false, || format!("an instance may send {limit} bytes a second (otlp_bytes_per_s)"))
    }

    /// Counts a request that could not be read.
    pub fn unreadable(&mut self, instance: &str, why: &str, now: Timestamp) {
        let sender = self.sender(instance, now);
        sender.requests_seen[0] = sender.requests_seen[0].saturating_sub(1);
        let _refused = sender.request(false, || why.to_owned());
    }

    /// Counts spans, forwarded or not.
    pub fn spans(&mut self, instance: &str, forwarded: u64, refused: Refused, now: Timestamp) {
        let sender = self.sender(instance, now);
        sender.spans[0] += forwarded;
        sender.spans[1] += refused.count;
        sender.is_new = true;
        sender.news.join(refused);
    }

    /// Takes in metrics of a replica; gives what was refused of them.
    pub fn metrics(&mut self, from: &ReplicaId, request: ExportMetricsServiceRequest, now: Timestamp) -> Refused {
        let series_max = self.limits.series;
        let sender = self.sender(&from.instance_id, now);
        sender.sweep(now);
        let mut refused = Refused::default();
        for of_resource in request.resource_metrics {
            let attributes = of_resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            let claim = claimed(&attributes, &from.instance_id);
            for of_scope in of_resource.scope_metrics {
                let scope = of_scope.scope.map(|scope| scope.name).unwrap_or_default();
                for metric in of_scope.metrics {
                    let count = points_of(&metric);
                    let read = claim.clone().and_then(|()| read(metric));
                    match read {
                        Err(why) => refused.add(count, why),
                        Ok(metric) => sender.take_in(metric, (&scope, from.replica), now, series_max, &mut refused),
                    }
                }
            }
        }
        sender.is_new = true;
        sender.points[1] += refused.count;
        sender.news.join(refused.clone());
        refused
    }

    /// What has come from an instance since this was last asked, and how much there was of it.
    pub fn take(&mut self, instance: &str) -> Reading {
        let Some(sender) = self.senders.get_mut(instance) else { return Reading::default() };
        let mut values: Vec<Value> = vec![];
        let mut seen = BTreeSet::new();
        for ((name, labels), stream) in sender.streams.iter_mut().filter(|(_, stream)| stream.is_new) {
            stream.is_new = false;
            let base = Base { name, unit: &stream.unit, labels };
            for value in stream.state.values(base).into_iter().filter(|value| value.value.is_finite()) {
                if seen.insert((value.metric.name.clone(), value.metric.labels.clone())) {
                    values.push(Value { at: Some(stream.at), ..value });
                } else {
                    let why =
                        format!("{} is a metric, and a part of a histogram or summary", short(&value.metric.name));
                    sender.news.add(1, why);
                }
            }
        }
        if std::mem::take(&mut sender.is_new) {
            for (def, [accepted, refused]) in [
                (&catalog::OTLP_REQUESTS, sender.requests_seen),
                (&catalog::OTLP_POINTS, sender.points),
                (&catalog::OTLP_SPANS, sender.spans),
            ] {
                values.push(def.value(accepted as f64, &["accepted"]));
                values.push(def.value(refused as f64, &["refused"]));
            }
        }
        let news = std::mem::take(&mut sender.news);
        Reading { values, failure: (news.count > 0).then(|| news.to_string()) }
    }
}

/// A metric whose name and unit are sound.
struct Sound {
    name: String,
    unit: String,
    adds_up: bool,
    points: Vec<Point>,
}

fn points_of(metric: &sent::Metric) -> u64 {
    let points = match &metric.data {
        None => 0,
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(Data::Sum(sum)) => sum.data_points.len(),
        Some(Data::Histogram(histogram)) => histogram.data_points.len(),
        Some(Data::ExponentialHistogram(histogram)) => histogram.data_points.len(),
        Some(Data::Summary(summary)) => summary.data_points.len(),
    };
    points as u64
}

macro_rules! points {
    ($points:expr, |$point:ident| $state:expr) => {
        $points
            .into_iter()
            .map(|mut $point| Point {
                attributes: std::mem::take(&mut $point.attributes),
                time_unix_nano: $point.time_unix_nano,
                flags: $point.flags,
                state: $state,
            })
            .collect()
    };
}

fn read(metric: sent::Metric) -> Result<Sound, String> {
    let sent::Metric { name, unit, data, .. } = metric;
    if !is_name(&name) {
        let name = short(&name);
        return Err(format!("{name:?} is not a name: a letter, then at most 120 letters, digits, `_`, `.`, `-`, `/`"));
    }
    if units::normalise(&unit).is_none() {
        let (name, unit) = (short(&name), short(&unit));
        return Err(format!("the unit {unit:?} of {name} is not understood; use UCUM, as in `s`, `By`, `{{request}}`"));
    }
    let (adds_up, points): (bool, Vec<Point>) = match data {
        None => (false, vec![]),
        Some(Data::Gauge(gauge)) => (false, points!(gauge.data_points, |point| point::number(&point, false))),
        Some(Data::Sum(sum)) => {
            let monotonic = sum.is_monotonic;
            let adds_up = point::adds_up(sum.aggregation_temporality).map_err(|why| format!("{name}: {why}"))?;
            (adds_up, points!(sum.data_points, |point| point::number(&point, monotonic)))
        }
        Some(Data::Histogram(histogram)) => {
            let adds_up = point::adds_up(histogram.aggregation_temporality).map_err(|why| format!("{name}: {why}"))?;
            (adds_up, points!(histogram.data_points, |point| point::histogram(point)))
        }
        Some(Data::ExponentialHistogram(histogram)) => {
            let adds_up = point::adds_up(histogram.aggregation_temporality).map_err(|why| format!("{name}: {why}"))?;
            (adds_up, points!(histogram.data_points, |point| point::exponential(&point)))
        }
        Some(Data::Summary(summary)) => (false, points!(summary.data_points, |point| point::summary(&point))),
    };
    let unit = if unit.is_empty() { "1".to_owned() } else { unit };
    Ok(Sound { name, unit, adds_up, points })
}

/// When a point was measured, by the clock of the workload, which is the agent's.
fn time_of(point: &Point, now: Timestamp) -> Result<Timestamp, String> {
    if point.time_unix_nano == 0 {
        return Ok(now);
    }
    let at = Timestamp::from_nanos(i128::from(point.time_unix_nano));
    match at.millis_since(now) {
        ms if ms > AHEAD_MS => Err(format!("it is {ms} ms ahead of the clock of its host")),
        ms if ms < -LATE_MS => Err(format!("it is older than {} s", LATE_MS / 1_000)),
        _ => Ok(at),
    }
}

impl Sender {
    fn request(&mut self, taken: bool, why: impl FnOnce() -> String) -> Result<(), String> {
        self.is_new = true;
        self.requests_seen[usize::from(!taken)] += 1;
        if taken {
            return Ok(());
        }
        let why = why();
        self.news.add(1, why.clone());
        Err(why)
    }

    fn take_in(
        &mut self,
        metric: Sound,
        (scope, replica): (&str, u32),
        now: Timestamp,
        series_max: usize,
        refused: &mut Refused,
    ) {
        let Sound { name, unit, adds_up, points } = metric;
        for point in points {
            match self.point(&name, &unit, (scope, replica, adds_up), point, now, series_max) {
                Ok(()) => self.points[0] += 1,
                Err(why) => refused.add(1, format!("{}: {why}", short(&name))),
            }
        }
    }

    fn point(
        &mut self,
        name: &str,
        unit: &str,
        (scope, replica, adds_up): (&str, u32, bool),
        mut point: Point,
        now: Timestamp,
        series_max: usize,
    ) -> Result<(), String> {
        if point.flags & NO_VALUE != 0 {
            return Ok(());
        }
        let time = time_of(&point, now)?;
        let state = std::mem::replace(&mut point.state, Err(String::new()))?;
        let labels = labels(point.attributes, scope, replica)?;
        if let Some((own, _)) = labels.iter().find(|(name, _)| state.has_parts() && [LE, QUANTILE].contains(&&**name)) {
            return Err(format!("its attribute {own:?} is what tells its parts apart; name it otherwise"));
        }
        let key = (name.to_owned(), labels);
        let known = self.streams.get(&key);
        if let Some(known) = known.filter(|_| point.time_unix_nano != 0) {
            match time.cmp(&known.time) {
                // It has come before, and its answer was lost.
                std::cmp::Ordering::Equal => return Ok(()),
                std::cmp::Ordering::Less => return Err("it is older than one that was taken in before".into()),
                std::cmp::Ordering::Greater => {}
            }
        }
        let before = known.map_or(0, |known| known.state.series());
        let state = match known {
            Some(known) if adds_up => {
                let mut sum = known.state.clone();
                sum.add(state);
                sum
            }
            _ => state,
        };
        let series = self.series - before + state.series();
        if series > series_max && state.series() > before {
            return Err(format!("an instance may have {series_max} series (measure_scrape_series_max)"));
        }
        self.series = series;
        self.streams
            .insert(key, Stream { unit: unit.to_owned(), state, time, at: time.min(now), seen: now, is_new: true });
        Ok(())
    }

    /// Forgets what has not come for long.
    fn sweep(&mut self, now: Timestamp) {
        if now.millis_since(self.swept) < SWEEP_MS {
            return;
        }
        self.swept = now;
        self.streams.retain(|_, stream| now.millis_since(stream.seen) < IDLE_MS);
        self.series = self.streams.values().map(|stream| stream.state.series()).sum();
    }
}

#[cfg(test)]
mod tests;
