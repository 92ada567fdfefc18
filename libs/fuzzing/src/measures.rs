//! What an agent reads of settings, of workloads and of the kernel.

#![allow(clippy::expect_used, reason = "a target panics where what must hold does not")]

use cluster_agent::domain::measure::{
    Entity, kernel,
    otlp::{self, Inbox, spans},
    plan::Plan,
    prometheus,
    settings::{INTERVAL_MAX_MS, INTERVAL_MIN_MS, Settings},
};
use mesh_proto::{
    Timestamp,
    measurement::{Adaptive, Selector, Setting},
};
use mesh_scenes::load::ReplicaId;
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram,
        HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint,
        exponential_histogram_data_point::Buckets, metric::Data, number_data_point,
        summary_data_point::ValueAtQuantile,
    },
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message as _;

use crate::targets::{Target, of, text};

/// Every target of measurements.
pub(crate) const MEASURES: &[Target] = &[
    Target { name: "measure-setting", try_on: setting, good: settings },
    Target { name: "prometheus-text", try_on: prometheus_text, good: scrapes },
    Target { name: "otlp-metrics", try_on: otlp_metrics, good: otlp_requests },
    Target { name: "otlp-traces", try_on: otlp_traces, good: otlp_spans },
    Target { name: "kernel-text", try_on: kernel_text, good: kernel_texts },
];

fn setting(input: &[u8]) -> bool {
    let Ok(setting) = Setting::decode(input) else { return false };
    let now = Timestamp::from_millis(1_000_000);
    let mut all = Settings::default();
    all.set("s".into(), setting);
    let node = Entity::of("node", "n");
    let held = all.of("cpu", &node, 1_000, now);
    assert!((INTERVAL_MIN_MS..=INTERVAL_MAX_MS).contains(&held.interval_ms));
    let mut plan = Plan::default();
    plan.present("cpu", 1_000, std::slice::from_ref(&node), now);
    plan.apply(all, now);
    assert_eq!(plan.take_due("cpu", now, |_| true), [node]);
    let next = plan.next(|_| true).expect("there is a slot");
    assert!(next > now);
    true
}

fn prometheus_text(input: &[u8]) -> bool {
    let Some(Ok(scrape)) = text(input).map(|text| prometheus::read(text, 8)) else { return false };
    assert!(scrape.values.len() <= 8);
    for value in &scrape.values {
        assert!(value.value.is_finite() && !value.metric.name.is_empty() && !value.metric.unit.is_empty());
        assert!(value.metric.labels.windows(2).all(|pair| pair[0].0 < pair[1].0), "sorted, each once");
    }
    true
}

fn otlp_metrics(input: &[u8]) -> bool {
    let unpacked = otlp::unpack(input).unwrap_or_else(|_| input.to_vec());
    let Ok(request) = otlp::decode(&unpacked) else { return false };
    let mut inbox = Inbox::new(otlp::Limits { requests_per_s: 1, bytes_per_s: 1, series: 40 });
    let from = ReplicaId { instance_id: "a".into(), generation: 1, replica: 0 };
    let now = Timestamp::from_millis(1_000_000_000);
    inbox.metrics(&from, request, now);
    // What each instance has counted comes beside its series.
    let values = inbox.take("a").values;
    assert!(values.len() <= 40 + 6);
    for value in &values {
        assert!(value.value.is_finite() && !value.metric.name.is_empty() && !value.metric.unit.is_empty());
        assert!(value.metric.labels.len() <= 16);
        assert!(value.metric.labels.windows(2).all(|pair| pair[0].0 < pair[1].0), "sorted, each once");
        assert!(value.at.is_none_or(|at| at <= now));
    }
    let mut metrics: Vec<_> = values.iter().map(|value| &value.metric).collect();
    metrics.sort_unstable();
    assert!(metrics.windows(2).all(|pair| pair[0] != pair[1]), "each series once");
    true
}

fn otlp_traces(input: &[u8]) -> bool {
    let Ok(mut request) = otlp::decode::<ExportTraceServiceRequest>(input) else { return false };
    let identity = spans::Identity { instance_id: "a".into(), replica: 0, owner: "o".into(), cluster_id: "c".into() };
    let (left, _) = spans::mark(&mut request, &identity);
    let scopes = request.resource_spans.iter().flat_map(|of| &of.scope_spans);
    assert_eq!(scopes.map(|scope| scope.spans.len() as u64).sum::<u64>(), left);
    for of in &request.resource_spans {
        let attributes = &of.resource.as_ref().expect("it was marked").attributes;
        assert_eq!(attributes.iter().filter(|attribute| attribute.key == "continuum.instance.id").count(), 1);
    }
    true
}

fn kernel_text(input: &[u8]) -> bool {
    let Some(text) = text(input) else { return false };
    let pressure = kernel::pressure(text);
    for line in pressure.iter().flatten() {
        assert!((0.0..=1.0).contains(&line.share) && line.seconds >= 0.0);
    }
    let stat = kernel::stat(text);
    if let Ok(stat) = &stat {
        let pairs = || stat.cpus.values().map(|ticks| (&[0; 8], ticks));
        assert!(kernel::busy(pairs()).is_none_or(|busy| (0.0..=1.0).contains(&busy)));
    }
    let moved = !kernel::io_stat(text).is_empty() || !kernel::blkio(text, text).is_empty();
    pressure.is_ok() || stat.is_ok() || moved || !kernel::pairs(text).is_empty()
}

fn settings() -> Vec<Vec<u8>> {
    let selector = Selector { entity_kind: "node".into(), entity_id: "n".into(), probe: "cpu".into() };
    let fixed = Setting { selector: Some(selector), interval_ms: 100, muted: true, ..Setting::default() };
    let adaptive = Adaptive { interval_min_ms: 100, interval_max_ms: 5_000, error_percent: 2.5 };
    let until = Some(Timestamp::from_millis(2_000_000));
    let follows = Setting { adaptive: Some(adaptive), until, reason: "anomaly x".into(), ..Setting::default() };
    vec![fixed.encode_to_vec(), follows.encode_to_vec()]
}

fn scrapes() -> Vec<Vec<u8>> {
    of(&[
        "# TYPE a_total counter\na_total{b=\"c\",d=\"e\\\"f\\n\"} 1 1395066363000\n",
        "# HELP t x\nt_seconds_bucket{le=\"+Inf\"} 3\nt_seconds_sum 1e-3\nt NaN\n",
    ])
}

fn otlp_requests() -> Vec<Vec<u8>> {
    let number = NumberDataPoint {
        attributes: vec![KeyValue {
            key: "route".into(),
            value: Some(AnyValue { value: Some(any_value::Value::StringValue("/".into())) }),
            ..KeyValue::default()
        }],
        value: Some(number_data_point::Value::AsDouble(1.5)),
        ..NumberDataPoint::default()
    };
    let histogram = HistogramDataPoint {
        count: 3,
        sum: Some(1.0),
        bucket_counts: vec![1, 2],
        explicit_bounds: vec![0.5],
        ..HistogramDataPoint::default()
    };
    let exponential = ExponentialHistogramDataPoint {
        count: 4,
        scale: 2,
        zero_count: 1,
        positive: Some(Buckets { offset: -3, bucket_counts: vec![1, 0, 2] }),
        ..ExponentialHistogramDataPoint::default()
    };
    let summary = SummaryDataPoint {
        count: 1,
        quantile_values: vec![ValueAtQuantile { quantile: 0.5, value: 2.0 }],
        ..SummaryDataPoint::default()
    };
    let of =
        |name: &str, data: Data| Metric { name: name.into(), unit: "ms".into(), data: Some(data), ..Metric::default() };
    let aggregation_temporality = AggregationTemporality::Delta.into();
    let sum = Sum { data_points: vec![number.clone(); 2], aggregation_temporality, is_monotonic: true };
    let metrics = vec![
        of("level", Data::Gauge(Gauge { data_points: vec![number] })),
        of("hits", Data::Sum(sum)),
        of("rpc", Data::Histogram(Histogram { data_points: vec![histogram], aggregation_temporality })),
        of(
            "wait",
            Data::ExponentialHistogram(ExponentialHistogram {
                data_points: vec![exponential],
                aggregation_temporality,
            }),
        ),
        of("size", Data::Summary(Summary { data_points: vec![summary] })),
    ];
    let each = metrics.into_iter().map(|metric| {
        let scope_metrics = vec![ScopeMetrics { metrics: vec![metric], ..ScopeMetrics::default() }];
        let resource_metrics = vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }];
        ExportMetricsServiceRequest { resource_metrics }.encode_to_vec()
    });
    each.collect()
}

fn otlp_spans() -> Vec<Vec<u8>> {
    let span = Span { trace_id: vec![1; 16], span_id: vec![2; 8], name: "work".into(), ..Span::default() };
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    vec![ExportTraceServiceRequest { resource_spans }.encode_to_vec()]
}

fn kernel_texts() -> Vec<Vec<u8>> {
    of(&[
        "cpu  1 2 3 4\ncpu0 1 2 3 4 5 6 7 8 9 10\nctxt 5\nprocesses 6\nprocs_running 1\n",
        "some avg10=12.50 avg60=1.00 avg300=0.20 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=10\n",
        "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
        "254:0 Read 10\n254:0 Write 20\nTotal 30\n",
        "anon 5\npgfault 7\n",
    ])
}
