//! Telemetry that workloads send by OTLP, with clients of OpenTelemetry.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use opentelemetry::{
    KeyValue,
    metrics::MeterProvider as _,
    trace::{Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse, metrics_service_client::MetricsServiceClient,
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_client::TraceServiceClient,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::any_value,
    metrics::v1::{
        Gauge, Metric as SentMetric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric, number_data_point,
    },
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use opentelemetry_sdk::{
    metrics::{PeriodicReader, SdkMeterProvider, Temporality},
    trace::SdkTracerProvider,
};
use tokio::sync::mpsc;
use tonic::{Code, metadata::MetadataMap};

use super::*;

const TOKEN: &str = "continuum-instance-token";

/// Where the mesh sends traces.
struct Upstream(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Upstream {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.send(request.into_inner()).map_err(|_| tonic::Status::unavailable("the test has ended"))?;
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn upstream() -> (String, mpsc::UnboundedReceiver<ExportTraceServiceRequest>) {
    let (tell, received) = mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Upstream(tell)));
    tokio::spawn(server.serve_with_incoming(incoming));
    (endpoint, received)
}

/// What an instance finds in its environment.
async fn environment(plant: &TestMesh, instance: &str, own: &[(&str, &str)]) -> HashMap<String, String> {
    // The instance may have a user of its own.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let path = folder.path().join(format!("{instance}.env"));
    let script = format!("env > {0}.new && mv {0}.new {0}; exec sleep 600", path.display());
    let process = ProcessSpec { arguments: vec!["-c".into(), script], ..sleeper(own) };
    plant.run(instance, process).await;
    let text = mesh_test::until("the environment", async || std::fs::read_to_string(&path), Result::is_ok).await;
    text.unwrap().lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Endpoint and token.
fn access(environment: &HashMap<String, String>) -> (String, String) {
    let token = environment["OTEL_EXPORTER_OTLP_HEADERS"].strip_prefix(&format!("{TOKEN}=")).unwrap();
    (environment["OTEL_EXPORTER_OTLP_ENDPOINT"].clone(), token.to_owned())
}

fn metadata(token: &str) -> MetadataMap {
    let mut map = MetadataMap::new();
    map.insert(TOKEN, token.parse().unwrap());
    map
}

fn with_otlp(plant: &TestMesh) -> Config {
    Config { otlp_listen: "auto".into(), measure_ms: 100, ..plant.config("process") }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sdk_over_grpc_has_its_metrics_measured_and_its_spans_forwarded() {
    let Some(plant) = TestMesh::start("otlp grpc").await else { return };
    let (upstream, mut forwarded) = upstream().await;
    let agent = plant.agent_that_sends(with_otlp(&plant), Some(upstream)).await;
    let samples = plant.samples(&agent).await;
    let mut readings = Stream(samples.subscribe("continuum/*/*/readings/*").await.unwrap());
    let found = environment(&plant, "a", &[]).await;
    assert_eq!(found["OTEL_SERVICE_NAME"], "w");
    assert_eq!(
        found["OTEL_RESOURCE_ATTRIBUTES"],
        "service.instance.id=a.1.0,continuum.instance.id=a,continuum.cluster.id=edge"
    );
    let (endpoint, token) = access(&found);

    let exporter = MetricExporter::builder()
        .with_tonic()
        .with_endpoint(&endpoint)
        .with_metadata(metadata(&token))
        .with_temporality(Temporality::Delta)
        .build()
        .unwrap();
    let meters = SdkMeterProvider::builder().with_reader(PeriodicReader::builder(exporter).build()).build();
    let meter = meters.meter("shop");
    let hits = meter.u64_counter("hits").with_unit("{request}").build();
    let wait = meter.f64_histogram("wait").with_unit("ms").with_boundaries(vec![10.0, 100.0]).build();
    let spans =
        SpanExporter::builder().with_tonic().with_endpoint(&endpoint).with_metadata(metadata(&token)).build().unwrap();
    let tracers = SdkTracerProvider::builder().with_batch_exporter(spans).build();
    for _ in 0..2 {
        hits.add(3, &[KeyValue::new("route", "/")]);
        wait.record(42.0, &[]);
        tracers.tracer("shop").in_span("serve", |_| {});
        let (meters, tracers) = (meters.clone(), tracers.clone());
        tokio::task::spawn_blocking(move || {
            meters.force_flush().unwrap();
            tracers.force_flush().unwrap();
        })
        .await
        .unwrap();
    }

    let mut seen = BTreeMap::new();
    // Deltas add up, in one pack or in two.
    while seen.get("hits") != Some(&6.0) || seen.get("wait_bucket 100") != Some(&2.0) {
        for one in readings.values(|entity, metric| entity.kind == "application" && metric.probe == "otlp").await {
            assert_eq!((one.entity.id.as_str(), one.entity.owner.as_str()), ("a", "local"));
            assert_eq!(one.metric.provenance(), Provenance::Measured);
            let le = one.metric.labels.get("le").map_or(String::new(), |le| format!(" {le}"));
            if one.metric.name == "hits" {
                assert_eq!((one.metric.unit.as_str(), one.metric.kind()), ("{request}", MetricKind::Counter));
                let labels = &one.metric.labels;
                assert_eq!((labels["route"].as_str(), labels["otel.scope.name"].as_str()), ("/", "shop"));
            }
            seen.insert(format!("{}{le}", one.metric.name), one.value);
        }
    }
    let of = |name: &str| seen[name];
    assert_eq!((of("wait_bucket 10"), of("wait_bucket +Inf"), of("wait_count"), of("wait_sum")), (0.0, 2.0, 2.0, 84.0));

    let traces = soon("a span", forwarded.recv()).await.unwrap();
    let attributes = &traces.resource_spans[0].resource.as_ref().unwrap().attributes;
    let text = |name: &str| {
        let found = attributes.iter().find(|attribute| attribute.key == name)?;
        match found.value.as_ref()?.value.as_ref()? {
            any_value::Value::StringValue(text) => Some(text.as_str()),
            _ => None,
        }
    };
    assert_eq!((text("continuum.instance.id"), text("continuum.owner")), (Some("a"), Some("local")));
    assert_eq!(traces.resource_spans[0].scope_spans[0].spans[0].name, "serve");
    tokio::task::spawn_blocking(move || (meters.shutdown(), tracers.shutdown())).await.unwrap().0.unwrap();
    agent.stop().await;
}

fn python() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/test/bin/python");
    if !path.is_file() {
        println!("SKIPPED: cluster-agent: no .tools/test/bin/python (run `make setup-test`)");
        return None;
    }
    Some(path)
}

/// A workload that knows of OpenTelemetry and of nothing else.
const WORKLOAD: &str = "
import time
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
reader = PeriodicExportingMetricReader(OTLPMetricExporter(compression=Compression.Gzip), export_interval_millis=300)
views = [View(instrument_name='wait', aggregation=ExponentialBucketHistogramAggregation())]
meter = MeterProvider(metric_readers=[reader], views=views).get_meter('shop')
meter.create_up_down_counter('queue', unit='{item}').add(4)
wait = meter.create_histogram('wait', unit='s')
for value in (0.3, 0.3, 3.0):
    wait.record(value)
time.sleep(600)
";

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_with_an_unconfigured_python_sdk_is_measured_over_http() {
    let Some(python) = python() else { return };
    let Some(plant) = TestMesh::start("otlp http").await else { return };
    // The interpreter may be in a folder that is closed to others.
    let agent = plant.agent(Config { workload_users: "off".into(), ..with_otlp(&plant) }).await;
    let samples = plant.samples(&agent).await;
    let mut readings = Stream(samples.subscribe("continuum/*/*/readings/*").await.unwrap());
    let arguments = vec!["-c".into(), WORKLOAD.into()];
    let command = python.canonicalize().unwrap().to_string_lossy().into_owned();
    // The interpreter of a virtual environment knows its packages by the path that it is started by.
    let site = python.parent().unwrap().parent().unwrap().join("lib");
    let site = std::fs::read_dir(site).unwrap().next().unwrap().unwrap().path().join("site-packages");
    let environment = [("PYTHONPATH", site.to_string_lossy().into_owned())];
    let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    plant.run("a", ProcessSpec { command, arguments, environment }).await;
    let mut seen = BTreeMap::new();
    while seen.len() < 5 {
        for one in readings.values(|_, metric| ["queue", "wait_bucket", "wait_count"].contains(&&*metric.name)).await {
            let le = one.metric.labels.get("le").map_or(String::new(), |le| format!(" {le}"));
            seen.insert(format!("{}{le}", one.metric.name), (one.value, one.metric.unit, one.entity.id));
        }
    }
    let of = |name: &str| (seen[name].0, seen[name].1.as_str(), seen[name].2.as_str());
    assert_eq!(of("queue"), (4.0, "{item}", "a"));
    // Powers of two, whatever scale the SDK has chosen.
    assert_eq!((of("wait_bucket 0.5").0, of("wait_bucket 4").0, of("wait_bucket +Inf").0), (2.0, 3.0, 3.0));
    agent.stop().await;
}

/// One request of a gauge per unit.
fn gauges(units: &[&str]) -> ExportMetricsServiceRequest {
    let value = Some(number_data_point::Value::AsDouble(1.0));
    let metrics = units.iter().enumerate().map(|(number, unit)| SentMetric {
        name: format!("level{number}"),
        unit: (*unit).to_owned(),
        data: Some(metric::Data::Gauge(Gauge {
            data_points: vec![NumberDataPoint { value, ..NumberDataPoint::default() }],
        })),
        ..SentMetric::default()
    });
    let scope_metrics = vec![ScopeMetrics { metrics: metrics.collect(), ..ScopeMetrics::default() }];
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }],
    }
}

async fn post(
    endpoint: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> (StatusCode, Option<String>, Bytes) {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::post(format!("{endpoint}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = soon("an answer", client.request(request.body(Full::new(body.into())).unwrap())).await.unwrap();
    let retry = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    (response.status(), retry, response.into_body().collect().await.unwrap().to_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_malformed_and_oversized_requests_are_refused_in_words() {
    let Some(plant) = TestMesh::start("otlp refused").await else { return };
    let config = Config { otlp_requests_per_s: 5, ..with_otlp(&plant) };
    let agent = plant.agent(config).await;
    let samples = plant.samples(&agent).await;
    let mut readings = Stream(samples.subscribe("continuum/*/*/readings/*").await.unwrap());
    let own = environment(&plant, "own", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://other:4317")]).await;
    assert_eq!(own["OTEL_EXPORTER_OTLP_ENDPOINT"], "http://other:4317");
    assert!(!own.contains_key("OTEL_EXPORTER_OTLP_HEADERS") && !own.contains_key("OTEL_SERVICE_NAME"));
    let (endpoint, token) = access(&environment(&plant, "a", &[]).await);

    let kind = ("content-type", "application/x-protobuf");
    let good = gauges(&["s"]).encode_to_vec();
    let forged = "0".repeat(token.len());
    let (forged, token) = (forged.as_str(), token.as_str());
    for (headers, path, body, status, words) in [
        (vec![kind], "/v1/metrics", good.clone(), 401, "not the token of a running instance"),
        (vec![kind, (TOKEN, forged)], "/v1/metrics", good.clone(), 401, "not the token"),
        (vec![kind, (TOKEN, token)], "/v1/logs", good.clone(), 404, "/v1/metrics"),
        (vec![("content-type", "application/json"), (TOKEN, token)], "/v1/metrics", good.clone(), 415, "x-protobuf"),
        (vec![kind, (TOKEN, token)], "/v1/metrics", b"\xff\xff".to_vec(), 400, "not protobuf"),
        (vec![kind, (TOKEN, token), ("content-encoding", "gzip")], "/v1/metrics", good.clone(), 400, "not gzip"),
        (vec![kind, (TOKEN, token), ("content-encoding", "br")], "/v1/metrics", good.clone(), 415, "\"br\""),
        (vec![kind, (TOKEN, token)], "/v1/metrics", vec![0; 5 << 20], 413, "4194304 bytes"),
    ] {
        let (answered, _, body) = post(&endpoint, path, &headers, body).await;
        let said = String::from_utf8_lossy(&body);
        assert_eq!(answered.as_u16(), status, "{words}: {said}");
        assert!(said.contains(words), "{words}: {said}");
    }

    let mut metrics = MetricsServiceClient::connect(endpoint.clone()).await.unwrap();
    let with = |token: &str, request: ExportMetricsServiceRequest| {
        tonic::Request::from_parts(metadata(token), tonic::Extensions::default(), request)
    };
    let refused = metrics.export(with(forged, gauges(&["s"]))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    mesh_test::until(
        "room for a request",
        async || metrics.export(with(token, gauges(&["s", "furlong"]))).await,
        |answer| match answer {
            Ok(answer) => {
                let partial = answer.get_ref().partial_success.as_ref().unwrap();
                assert_eq!(partial.rejected_data_points, 1);
                assert!(partial.error_message.contains("furlong"), "{}", partial.error_message);
                true
            }
            Err(status) => status.code() != Code::Unavailable,
        },
    )
    .await
    .unwrap();

    // No endpoint is configured for traces.
    let span = Span { trace_id: vec![1; 16], span_id: vec![1; 8], ..Span::default() };
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
    let request =
        ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] };
    let mut traces = TraceServiceClient::connect(endpoint.clone()).await.unwrap();
    let answer = mesh_test::until(
        "room for spans",
        async || {
            let request = tonic::Request::from_parts(metadata(token), tonic::Extensions::default(), request.clone());
            traces.export(request).await
        },
        |answer| answer.as_ref().err().is_none_or(|status| status.code() != Code::Unavailable),
    )
    .await
    .unwrap();
    let partial = answer.into_inner().partial_success.unwrap();
    assert_eq!(partial.rejected_spans, 1);
    assert!(partial.error_message.contains("otlp_endpoint"), "{}", partial.error_message);

    let (mut taken, mut throttled) = (0, None);
    for _ in 0..100 {
        let (status, retry, body) = post(&endpoint, "/v1/metrics", &[kind, (TOKEN, token)], good.clone()).await;
        match status {
            StatusCode::OK => {
                assert_eq!(ExportMetricsServiceResponse::decode(body).unwrap().partial_success, None);
                taken += 1;
            }
            other => throttled = Some((other, retry, body)),
        }
    }
    let (status, retry, body) = throttled.expect("five a second are taken");
    assert!(taken < 100 && status == StatusCode::TOO_MANY_REQUESTS && retry.as_deref() == Some("1"));
    assert!(String::from_utf8_lossy(&body).contains("otlp_requests_per_s"));

    // What was refused is counted, and said by the probe.
    let (mut counted, mut failure) = (0.0, None);
    while counted < 1.0 || failure.is_none() {
        let pack = readings.pack().await;
        let refused = |_: &Entity, metric: &Metric| {
            metric.name == "continuum.otlp.data_point.count" && metric.labels["outcome"] == "refused"
        };
        counted = values(&pack, refused).iter().map(|one| one.value).fold(counted, f64::max);
        failure = failure.or(pack.probes.into_iter().find(|probe| probe.probe == "otlp" && !probe.failure.is_empty()));
    }
    agent.stop().await;
}
