use std::io::Write as _;

use mesh_proto::telemetry::MetricKind;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{ArrayValue, InstrumentationScope},
    metrics::v1::{
        AggregationTemporality, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram,
        HistogramDataPoint, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint,
        exponential_histogram_data_point::Buckets, number_data_point::Value as Number,
        summary_data_point::ValueAtQuantile,
    },
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use proptest::prelude::*;

use super::{
    spans::{Identity, mark},
    *,
};

const T0: Timestamp = Timestamp::from_millis(1_000_000_000);
const LIMITS: Limits = Limits { requests_per_s: 10, bytes_per_s: 1_000_000, series: 100 };

fn from(replica: u32) -> ReplicaId {
    ReplicaId { instance_id: "a".into(), generation: 1, replica }
}

fn nanos(ms: i64) -> u64 {
    u64::try_from(T0.plus_millis(ms).as_nanos()).unwrap()
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.into())) };
    KeyValue { key: key.into(), value: Some(value), ..KeyValue::default() }
}

fn number(value: f64, ms: i64, attributes: Vec<KeyValue>) -> NumberDataPoint {
    let value = Some(Number::AsDouble(value));
    NumberDataPoint { attributes, time_unix_nano: nanos(ms), value, ..NumberDataPoint::default() }
}

fn request(metrics: Vec<(&str, &str, Data)>) -> ExportMetricsServiceRequest {
    let metric = |(name, unit, data): (&str, &str, Data)| sent::Metric {
        name: name.into(),
        unit: unit.into(),
        data: Some(data),
        ..sent::Metric::default()
    };
    let scope = Some(InstrumentationScope { name: "lib".into(), ..InstrumentationScope::default() });
    let metrics = metrics.into_iter().map(metric).collect();
    let scope_metrics = vec![ScopeMetrics { scope, metrics, ..ScopeMetrics::default() }];
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }],
    }
}

fn gauge(points: Vec<NumberDataPoint>) -> Data {
    Data::Gauge(Gauge { data_points: points })
}

fn sum(temporality: AggregationTemporality, is_monotonic: bool, points: Vec<NumberDataPoint>) -> Data {
    Data::Sum(Sum { data_points: points, aggregation_temporality: temporality.into(), is_monotonic })
}

fn of_workload(reading: Reading) -> Vec<Value> {
    reading.values.into_iter().filter(|value| !value.metric.name.starts_with(OWN)).collect()
}

/// Name, kind, unit, the label `le` or `quantile`, and value of each.
fn told(values: &[Value]) -> Vec<(&str, MetricKind, &str, &str, f64)> {
    let part = |value: &Value| {
        let labels = &value.metric.labels;
        labels.iter().position(|(name, _)| matches!(&**name, "le" | "quantile"))
    };
    values
        .iter()
        .map(|value| {
            let part = part(value).map_or("", |at| value.metric.labels[at].1.as_str());
            (&*value.metric.name, value.metric.kind, &*value.metric.unit, part, value.value)
        })
        .collect()
}

#[test]
fn numbers_keep_unit_time_and_attributes_and_deltas_add_up() {
    let mut inbox = Inbox::new(LIMITS);
    let delta = |value: f64, ms| {
        let points = vec![number(value, ms, vec![text("route", "/"), text("empty", "")])];
        request(vec![("hits", "{request}", sum(AggregationTemporality::Delta, true, points))])
    };
    let level = request(vec![("level", "", gauge(vec![number(-2.5, 0, vec![])]))]);
    assert_eq!(inbox.metrics(&from(0), level, T0).count(), 0);
    assert_eq!(inbox.metrics(&from(0), delta(3.0, 0), T0).count(), 0);
    assert_eq!(inbox.metrics(&from(0), delta(3.0, 0), T0).count(), 0, "its answer was lost");
    assert_eq!(inbox.metrics(&from(0), delta(4.0, 100), T0.plus_millis(100)).count(), 0);
    let values = of_workload(inbox.take("a"));
    assert_eq!(
        told(&values),
        [("hits", MetricKind::Counter, "{request}", "", 7.0), ("level", MetricKind::Gauge, "1", "", -2.5)]
    );
    let labels: Vec<(&str, &str)> =
        values[0].metric.labels.iter().map(|(name, text)| (&**name, text.as_str())).collect();
    assert_eq!(labels, [("otel.scope.name", "lib"), ("replica", "0"), ("route", "/")]);
    assert_eq!(values[0].at, Some(T0.plus_millis(100)));
    assert_eq!(inbox.take("a"), Reading::default(), "nothing new");
    inbox.metrics(&from(1), delta(5.0, 200), T0.plus_millis(200));
    assert_eq!(of_workload(inbox.take("a"))[0].value, 5.0, "another replica counts for itself");
    let old = inbox.metrics(&from(0), delta(4.0, 50), T0.plus_millis(200));
    assert!(old.to_string().contains("older than one"), "{old}");
}

#[test]
fn histograms_and_summaries_come_out_as_prometheus_writes_them() {
    let mut inbox = Inbox::new(LIMITS);
    let point = |counts: Vec<u64>, total, ms| HistogramDataPoint {
        time_unix_nano: nanos(ms),
        count: counts.iter().sum(),
        sum: Some(total),
        bucket_counts: counts,
        explicit_bounds: vec![0.1, 1.0],
        ..HistogramDataPoint::default()
    };
    for (counts, ms) in [(vec![1, 2, 3], 0), (vec![1, 0, 1], 10)] {
        let histogram = Histogram {
            data_points: vec![point(counts, 1.5, ms)],
            aggregation_temporality: AggregationTemporality::Delta.into(),
        };
        let refused = inbox.metrics(&from(0), request(vec![("rpc", "s", Data::Histogram(histogram))]), T0);
        assert_eq!(refused.count(), 0, "{refused}");
    }
    let quantile = |quantile, value| ValueAtQuantile { quantile, value };
    let summary = SummaryDataPoint {
        count: 4,
        sum: 8.0,
        quantile_values: vec![quantile(0.99, 3.0), quantile(0.5, 2.0)],
        ..SummaryDataPoint::default()
    };
    let summary = Data::Summary(Summary { data_points: vec![summary] });
    assert_eq!(inbox.metrics(&from(0), request(vec![("size", "By", summary)]), T0).count(), 0);
    let values = of_workload(inbox.take("a"));
    let counter = MetricKind::Counter;
    assert_eq!(
        told(&values),
        [
            ("rpc_bucket", counter, "1", "0.1", 2.0),
            ("rpc_bucket", counter, "1", "1", 4.0),
            ("rpc_bucket", counter, "1", "+Inf", 8.0),
            ("rpc_count", counter, "1", "", 8.0),
            ("rpc_sum", counter, "s", "", 3.0),
            ("size", MetricKind::Gauge, "By", "0.5", 2.0),
            ("size", MetricKind::Gauge, "By", "0.99", 3.0),
            ("size_count", counter, "1", "", 4.0),
            ("size_sum", counter, "By", "", 8.0),
        ]
    );
}

/// An exponential histogram of what was observed, at a scale.
fn exponential(observed: &[f64], scale: i32) -> ExponentialHistogramDataPoint {
    let base = 2f64.powf(2f64.powi(-scale));
    let side = |values: Vec<f64>| {
        let indexes: Vec<i32> = values.iter().map(|v| (v.ln() / base.ln()).ceil() as i32 - 1).collect();
        let offset = indexes.iter().copied().min()?;
        let mut bucket_counts = vec![0; (indexes.iter().max()? - offset + 1) as usize];
        indexes.iter().for_each(|index| bucket_counts[(index - offset) as usize] += 1);
        Some(Buckets { offset, bucket_counts })
    };
    ExponentialHistogramDataPoint {
        count: observed.len() as u64,
        sum: Some(observed.iter().sum()),
        scale,
        zero_count: observed.iter().filter(|v| **v == 0.0).count() as u64,
        positive: side(observed.iter().copied().filter(|v| *v > 0.0).collect()),
        negative: side(observed.iter().filter(|v| **v < 0.0).map(|v| -v).collect()),
        ..ExponentialHistogramDataPoint::default()
    }
}

fn powers(point: ExponentialHistogramDataPoint) -> Data {
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    Data::ExponentialHistogram(ExponentialHistogram { data_points: vec![point], aggregation_temporality })
}

proptest! {
    #[test]
    fn an_exponential_histogram_counts_what_is_at_most_each_power_of_two(
        // Between powers of two: on one, the logarithm above may round to either side.
        observed in prop::collection::vec((prop::sample::select(vec![-1.0, 0.0, 1.0]), 1.01f64..1.99, -8i32..8), 1..60),
        scale in -2i32..6,
    ) {
        let observed: Vec<f64> =
            observed.into_iter().map(|(sign, mantissa, exponent)| sign * mantissa * 2f64.powi(exponent)).collect();
        let mut inbox = Inbox::new(LIMITS);
        let refused = inbox.metrics(&from(0), request(vec![("p", "s", powers(exponential(&observed, scale)))]), T0);
        prop_assert_eq!(refused.count(), 0, "{}", refused);
        let values = of_workload(inbox.take("a"));
        for (name, _, _, le, value) in told(&values) {
            if name == "p_bucket" {
                let le: f64 = if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() };
                prop_assert_eq!(value, observed.iter().filter(|v| **v <= le).count() as f64, "{}", le);
            }
        }
        prop_assert!(values.len() >= 3);
    }
}

#[test]
fn what_is_wrong_with_a_point_is_said_and_costs_no_other_point() {
    let good = || number(1.0, 0, vec![]);
    let attributes = |attributes| gauge(vec![number(1.0, 0, attributes)]);
    let list = any_value::Value::ArrayValue(ArrayValue::default());
    let list = KeyValue { value: Some(AnyValue { value: Some(list) }), ..text("tags", "") };
    let histogram = |point: HistogramDataPoint| {
        let aggregation_temporality = AggregationTemporality::Cumulative.into();
        Data::Histogram(Histogram { data_points: vec![point], aggregation_temporality })
    };
    let many = |n: usize| (0..n).map(|n| text(&format!("k{n}"), "v")).collect::<Vec<_>>();
    let scaled = ExponentialHistogramDataPoint { scale: 21, ..ExponentialHistogramDataPoint::default() };
    let cases: Vec<(&str, &str, Data, &str)> = vec![
        ("x", "s", gauge(vec![number(f64::NAN, 0, vec![])]), "NaN"),
        ("x", "s", gauge(vec![number(f64::INFINITY, 0, vec![])]), "inf"),
        ("x", "s", gauge(vec![NumberDataPoint::default()]), "no value"),
        ("x", "parsec", gauge(vec![good()]), "unit \"parsec\""),
        ("9x", "s", gauge(vec![good()]), "not a name"),
        ("x\u{1b}[2J", "s", gauge(vec![good()]), "not a name"),
        ("x", "s", sum(AggregationTemporality::Unspecified, true, vec![good()]), "temporality"),
        ("x", "s", sum(AggregationTemporality::Delta, true, vec![number(-1.0, 0, vec![])]), "monotonic"),
        ("x", "s", attributes(many(20)), "20 attributes"),
        ("x", "s", attributes(vec![list]), "\"tags\""),
        ("x", "s", attributes(vec![text("a", "1"), text("a", "2")]), "twice"),
        ("x", "s", attributes(vec![text("replica", "7")]), "twice"),
        ("x", "s", attributes(vec![text("a", &"y".repeat(200))]), "longer"),
        ("x", "s", gauge(vec![number(1.0, 60_000, vec![])]), "ahead"),
        ("x", "s", gauge(vec![number(1.0, -3_600_000, vec![])]), "older than 600 s"),
        ("x", "s", histogram(HistogramDataPoint { count: 3, bucket_counts: vec![1], ..Default::default() }), "sum of"),
        (
            "x",
            "s",
            histogram(HistogramDataPoint {
                bucket_counts: vec![0; 3],
                explicit_bounds: vec![2.0, 1.0],
                ..Default::default()
            }),
            "ascending",
        ),
        ("x", "s", powers(scaled), "scale"),
        (
            "x",
            "s",
            histogram(HistogramDataPoint { attributes: vec![text("le", "1")], ..Default::default() }),
            "tells its parts apart",
        ),
    ];
    for (name, unit, data, problem) in cases {
        let mut inbox = Inbox::new(LIMITS);
        let refused = inbox.metrics(&from(0), request(vec![(name, unit, data), ("y", "s", gauge(vec![good()]))]), T0);
        let words = refused.to_string();
        assert_eq!(refused.count(), 1, "{problem}: {words}");
        assert!(words.contains(problem) && !words.contains('\u{1b}'), "{problem}: {words}");
        let reading = inbox.take("a");
        assert_eq!(reading.failure.as_deref(), Some(words.as_str()));
        assert_eq!(of_workload(reading)[0].metric.name, "y");
    }
}

#[test]
fn a_label_bomb_fills_its_own_limit_and_what_is_known_goes_on() {
    let mut inbox = Inbox::new(LIMITS);
    let points = |ms| (0..10_000).map(|n| number(1.0, ms, vec![text("id", &n.to_string())])).collect();
    let refused = inbox.metrics(&from(0), request(vec![("x", "s", gauge(points(0)))]), T0);
    assert_eq!(refused.count(), 9_900);
    assert!(refused.to_string().contains("measure_scrape_series_max"), "{refused}");
    assert_eq!(of_workload(inbox.take("a")).len(), 100);
    let later = T0.plus_millis(1_000);
    assert_eq!(inbox.metrics(&from(0), request(vec![("x", "s", gauge(points(1_000)))]), later).count(), 9_900);
    assert_eq!(of_workload(inbox.take("a")).len(), 100);
    let idle = T0.plus_millis(IDLE_MS + 2_000);
    let other = request(vec![("y", "s", gauge(vec![number(1.0, IDLE_MS + 2_000, vec![])]))]);
    assert_eq!(inbox.metrics(&from(0), other, idle).count(), 0, "what does not come any more makes room");
    inbox.retain(|_| false);
    assert_eq!(inbox.instances().count(), 0);
}

#[test]
fn an_instance_that_floods_is_refused_and_no_other_is() {
    let mut inbox = Inbox::new(LIMITS);
    let taken = (0..100).filter(|_| inbox.request("a", T0).is_ok()).count();
    assert_eq!(taken, 40);
    assert!(inbox.request("a", T0).unwrap_err().contains("10 requests a second"));
    assert!(inbox.request("b", T0).is_ok());
    assert!(inbox.bytes("b", BYTES_MAX, T0).is_ok(), "one request of any size that is taken");
    assert!(inbox.bytes("b", BYTES_MAX, T0).unwrap_err().contains("otlp_bytes_per_s"));
    let reading = inbox.take("a");
    let count = |outcome: &str| {
        let of = reading.values.iter().find(|v| v.metric.name.contains("request") && v.metric.labels[0].1 == outcome);
        of.unwrap().value
    };
    assert_eq!((count("accepted"), count("refused")), (40.0, 61.0));
    assert!(reading.failure.unwrap().contains("61 refused"));
    assert!(inbox.request("a", T0.plus_millis(200)).is_ok(), "it fills again");
}

#[test]
fn bombs_are_refused_before_they_take_memory() {
    let mut packed = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    let zeros = vec![0; 1 << 20];
    for _ in 0..64 {
        packed.write_all(&zeros).unwrap();
    }
    let packed = packed.finish().unwrap();
    assert!(packed.len() < 100_000);
    assert!(unpack(&packed).unwrap_err().contains("more than 4194304 bytes"));
    assert!(unpack(b"not gzip").unwrap_err().contains("not gzip"));
    // Two bytes each, and hundreds in memory.
    let empty: Vec<u8> = [0x0a, 0x00].repeat(PARTS_MAX + 1);
    let refused = decode::<ExportTraceServiceRequest>(&empty).unwrap_err();
    assert!(refused.contains("100000 parts"), "{refused}");
    assert!(decode::<ExportMetricsServiceRequest>(&empty[..200]).is_ok());
    assert!(decode::<ExportMetricsServiceRequest>(b"{\"resourceMetrics\": []}").is_err());
}

#[test]
fn a_forged_instance_is_refused_and_spans_are_marked_with_the_true_one() {
    let claim = |instance: &str| {
        let attributes = vec![text("continuum.instance.id", instance), text("continuum.owner", "eve")];
        Some(Resource { attributes, ..Resource::default() })
    };
    let mut inbox = Inbox::new(LIMITS);
    let mut forged = request(vec![("x", "s", gauge(vec![number(1.0, 0, vec![])]))]);
    forged.resource_metrics[0].resource = claim("b");
    let refused = inbox.metrics(&from(0), forged, T0);
    assert!(refused.to_string().contains("of instance \"b\""), "{refused}");
    assert_eq!(of_workload(inbox.take("a")), []);

    let span = |trace_id: Vec<u8>| Span { trace_id, span_id: vec![1; 8], ..Span::default() };
    let of = |instance: &str, spans: Vec<Span>| ResourceSpans {
        resource: claim(instance),
        scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
        ..ResourceSpans::default()
    };
    let resource_spans = vec![of("a", vec![span(vec![1; 16]), span(vec![0; 16])]), of("b", vec![span(vec![1; 16])])];
    let mut request = ExportTraceServiceRequest { resource_spans };
    let identity = Identity { instance_id: "a".into(), replica: 2, owner: "ann".into(), cluster_id: "edge".into() };
    let (left, refused) = mark(&mut request, &identity);
    assert_eq!((left, refused.count(), request.resource_spans.len()), (1, 2, 1));
    let resource = request.resource_spans[0].resource.as_ref().unwrap();
    let said: BTreeMap<&str, String> =
        resource.attributes.iter().map(|a| (a.key.as_str(), scalar(a.value.as_ref().unwrap()).unwrap())).collect();
    let of = |name: &str| said[name].as_str();
    assert_eq!((of("continuum.owner"), of("continuum.instance.id"), of("continuum.replica")), ("ann", "a", "2"));
}
