//! Logs, and OpenTelemetry by OTLP over gRPC when an endpoint is set.
//!
//! Installed once in a process, also where it runs several services. The exporters live on a runtime of their own
//! thread: on a shared runtime a flush can wait for the very thread it blocks.

use std::{
    fmt,
    sync::{Arc, mpsc},
    time::Duration,
};

use opentelemetry::{
    Context, KeyValue,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _},
};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    logs::SdkLoggerProvider,
    metrics::PeriodicReader,
    trace::{Sampler, SdkTracerProvider},
};
use parking_lot::Mutex;
use serde_json::Value;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tracing::{
    Event, Metadata, Span,
    field::{Field, Visit},
};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    field::RecordFields,
    filter::filter_fn,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::{DefaultFields, JsonFields, Writer},
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use crate::config::{LogFormat, Settings};

/// Target of the span that names the service in log lines. It lives as long as the service, so it is no part of a trace.
pub(crate) const SERVICE_SPAN: &str = "mesh_kit::service";

/// What carries telemetry away; what these say is never sent by OTLP, or sending would feed itself.
const CARRIERS: &[&str] = &["h2", "hyper", "hyper_util", "tonic", "tower", "opentelemetry"];
/// Libraries that are quiet unless log directives name them.
const QUIET: &str = "async_nats=warn,h2=warn,hyper=warn,hyper_util=warn,opentelemetry=warn,rustls=warn,s3s=off,\
                     tonic=warn,tower=warn,zenoh=warn";
/// Longest wait for one export, and for the connection to it.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Telemetry that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Invalid log directives; configuration is checked before, so this names a mistake in the program.
    #[error("read log level {0:?}")]
    Level(String, #[source] tracing_subscriber::filter::ParseError),
    /// The OTLP endpoint is not an address.
    #[error("use OTLP endpoint {endpoint:?}")]
    Endpoint {
        /// Which.
        endpoint: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The certificate authority cannot be read.
    #[error("read tls_ca_file")]
    Authority(#[source] std::io::Error),
    /// The exporters' thread did not start.
    #[error("start the telemetry thread")]
    Thread(#[source] std::io::Error),
    /// An exporter was not built.
    #[error("build the OTLP {0} exporter")]
    Exporter(&'static str, #[source] opentelemetry_otlp::ExporterBuildError),
    /// Something else has taken the process's logs.
    #[error("install the log subscriber")]
    Subscriber(#[from] tracing_subscriber::util::TryInitError),
}

impl Error {
    /// Is it something that another configuration would hint?
    pub(crate) fn is_usage(&self) -> bool {
        matches!(self, Self::Level(..) | Self::Endpoint { .. } | Self::Authority(_))
    }
}

/// The process's telemetry.
pub struct Telemetry {
    otlp: Option<Otlp>,
}

struct Otlp {
    /// Never stopped but with the process: exporters may be asked to flush at any time before.
    runtime: tokio::runtime::Runtime,
    channel: Channel,
    traces: SdkTracerProvider,
    logs: SdkLoggerProvider,
}

static INSTALLED: Mutex<Option<Arc<Telemetry>>> = Mutex::new(None);

/// Starts logging, and sending if an OTLP endpoint is set. In a process where this was done before, gives that one.
pub fn install(service: &str, process: &str, settings: &Settings) -> Result<Arc<Telemetry>, Error> {
    let mut installed = INSTALLED.lock();
    if let Some(telemetry) = installed.as_ref() {
        return Ok(telemetry.clone());
    }
    let otlp = match &settings.otlp_endpoint {
        Some(endpoint) => Some(Otlp::new(endpoint, service, process, settings)?),
        None => None,
    };
    let traces = otlp.as_ref().map(|otlp| {
        tracing_opentelemetry::layer()
            .with_tracer(otlp.traces.tracer("mesh-kit"))
            .with_location(false)
            .with_threads(false)
            .with_filter(filter_fn(|of| of.target() != SERVICE_SPAN && !is_carrier(of)))
    });
    let logs = otlp
        .as_ref()
        .map(|otlp| OpenTelemetryTracingBridge::new(&otlp.logs).with_filter(filter_fn(|of| !is_carrier(of))));
    let level = filter(&settings.log_level)?;
    Registry::default().with(level).with(lines(settings.log_format)).with(traces).with(logs).try_init()?;
    let telemetry = Arc::new(Telemetry { otlp });
    *installed = Some(telemetry.clone());
    Ok(telemetry)
}

/// The process's telemetry, if it was installed.
pub(crate) fn installed() -> Option<Arc<Telemetry>> {
    INSTALLED.lock().clone()
}

/// What all that a service sends is marked with.
pub(crate) fn resource(service: &str, process: &str) -> Resource {
    Resource::builder_empty()
        .with_service_name(service.to_owned())
        .with_attribute(KeyValue::new("service.namespace", "continuum"))
        .with_attribute(KeyValue::new("service.instance.id", process.to_owned()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

fn filter(level: &str) -> Result<EnvFilter, Error> {
    let plain = !level.contains([',', '=']);
    let directives = if plain && level != "trace" { format!("{level},{QUIET}") } else { level.to_owned() };
    EnvFilter::builder().parse(&directives).map_err(|error| Error::Level(directives, error))
}

fn lines(format: LogFormat) -> Box<dyn Layer<tracing_subscriber::layer::Layered<EnvFilter, Registry>> + Send + Sync> {
    use std::io::IsTerminal as _;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => Box::new(lines.fmt_fields(TextFields).with_ansi(std::io::stderr().is_terminal())),
        LogFormat::Json => Box::new(lines.fmt_fields(JsonFields::new()).event_format(JsonLines).with_ansi(false)),
    }
}

/// Fields of a line of text. Text of others in them stays in its line: what would move the cursor, change colours or turn
/// the direction of text around is written out.
struct TextFields;

impl<'a> FormatFields<'a> for TextFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'a>, fields: R) -> fmt::Result {
        let mut text = String::new();
        DefaultFields::new().format_fields(Writer::new(&mut text), fields)?;
        writer.write_str(&mesh_proto::shown::line(&text))
    }
}

/// One JSON object per line: `timestamp`, `level`, `target`, `message`, the event's fields, and `spans`, outermost
/// first. The subscriber's own JSON leaves out what an error was caused by; here an error field is its whole chain.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = JsonVisitor::default();
        event.record(&mut fields);
        let mut line = serde_json::Map::new();
        line.insert("timestamp".into(), crate::clock::clock().to_string().into());
        line.insert("level".into(), event.metadata().level().as_str().into());
        line.insert("target".into(), event.metadata().target().into());
        for (name, value) in fields.0 {
            // A field never hides when, how bad or where.
            let name = if line.contains_key(&name) { format!("field_{name}") } else { name };
            line.insert(name, value);
        }
        let mut spans = vec![];
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let recorded = extensions.get::<FormattedFields<N>>().map_or("", |fields| fields.fields.as_str());
            let mut shown: serde_json::Map<String, Value> = serde_json::from_str(recorded).unwrap_or_default();
            shown.insert("span".into(), span.name().into());
            spans.push(Value::Object(shown));
        }
        if !spans.is_empty() {
            line.insert("spans".into(), spans.into());
        }
        writeln!(writer, "{}", mesh_proto::shown::json(&Value::Object(line).to_string()))
    }
}

#[derive(Default)]
struct JsonVisitor(serde_json::Map<String, Value>);

impl JsonVisitor {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for JsonVisitor {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, chain(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

/// An error with all that caused it, outermost first.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn is_carrier(of: &Metadata<'_>) -> bool {
    let root = of.target().split("::").next().unwrap_or_default();
    CARRIERS.iter().any(|carrier| root == *carrier || root.strip_prefix(carrier).is_some_and(|r| r.starts_with('_')))
}

/// A channel to an OTLP endpoint, connected when it is first used. Its own task runs on the current runtime.
pub(crate) fn channel(endpoint: &str, settings: &Settings) -> Result<Channel, Error> {
    let wrong = |source| Error::Endpoint { endpoint: endpoint.to_owned(), source };
    let mut to = Endpoint::from_shared(endpoint.to_owned()).map_err(wrong)?;
    if endpoint.starts_with("https:") {
        let mut tls = ClientTlsConfig::new();
        if let Some(path) = &settings.tls_ca_file {
            tls = tls.ca_certificate(Certificate::from_pem(std::fs::read(path).map_err(Error::Authority)?));
        }
        to = to.tls_config(tls).map_err(wrong)?;
    }
    Ok(to.timeout(EXPORT_TIMEOUT).connect_timeout(CONNECT_TIMEOUT).connect_lazy())
}

impl Otlp {
    fn new(endpoint: &str, service: &str, process: &str, settings: &Settings) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("telemetry")
            .enable_all()
            .build()
            .map_err(Error::Thread)?;
        let channel = {
            // The channel's own task must live on that runtime, not on the caller's.
            let _inside = runtime.enter();
            channel(endpoint, settings)?
        };
        let spans = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(channel.clone())
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|e| Error::Exporter("trace", e))?;
        let records = opentelemetry_otlp::LogExporter::builder()
            .with_tonic()
            .with_channel(channel.clone())
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|e| Error::Exporter("log", e))?;
        let ratio = Sampler::TraceIdRatioBased(settings.otlp_trace_ratio);
        let traces = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(ratio)))
            .with_resource(resource(service, process))
            .with_batch_exporter(spans)
            .build();
        let logs =
            SdkLoggerProvider::builder().with_resource(resource(service, process)).with_batch_exporter(records).build();
        Ok(Self { runtime, channel, traces, logs })
    }
}

impl Telemetry {
    /// A reader that sends metrics, if anything is sent.
    pub(crate) fn metrics_reader(
        &self,
        interval: Duration,
    ) -> Result<Option<PeriodicReader<opentelemetry_otlp::MetricExporter>>, Error> {
        let Some(otlp) = &self.otlp else { return Ok(None) };
        let _inside = otlp.runtime.enter();
        let exporter = opentelemetry_otlp::MetricExporter::builder()
            .with_tonic()
            .with_channel(otlp.channel.clone())
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|e| Error::Exporter("metrics", e))?;
        Ok(Some(PeriodicReader::builder(exporter).with_interval(interval).build()))
    }

    /// Sends what is left of traces and logs. Blocks, for at most `limit`; false if that was not enough.
    /// Nothing is sent afterwards.
    pub fn shutdown(&self, limit: Duration) -> bool {
        let Some(otlp) = &self.otlp else { return true };
        let (traces, logs) = (otlp.traces.clone(), otlp.logs.clone());
        // On a thread of its own, for the limit is ours: an exporter may hold on to a dead connection longer.
        within(limit, move || traces.shutdown_with_timeout(limit).is_ok() & logs.shutdown_with_timeout(limit).is_ok())
            .unwrap_or(false)
    }
}

/// Runs what blocks on a thread of its own, and waits for it no longer than `limit`.
pub(crate) fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("bounded".into()).spawn(move || {
        let _nobody_waits_any_more = done.send(work());
    });
    thread.ok()?;
    result.recv_timeout(limit).ok()
}

/// The current span as a W3C `traceparent`; if it is in no trace, that of what is being handled, handed on as it came.
pub fn traceparent(handled: Option<&str>) -> Option<String> {
    let context = Span::current().context();
    let context = context.span().span_context().clone();
    if !context.is_valid() {
        return handled.map(str::to_owned);
    }
    let flags = context.trace_flags().to_u8();
    Some(format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id()))
}

/// Makes a span the child of what a message's `traceparent` names. Without one, or with one that is malformed, the
/// span stays as it is.
pub fn adopt(span: &Span, traceparent: Option<&str>) {
    if let Some(parent) = traceparent.and_then(parse) {
        // Fails only where nothing is traced.
        let _untraced = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// W3C Trace Context, level 2, §3.2.
fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    if !hex(version, 2) || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    if !hex(trace, 32) || !hex(span, 16) || !hex(flags, 2) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & TraceFlags::SAMPLED.to_u8());
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = parse(good).unwrap();
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        // A later version may have more parts; ours may not.
        assert!(parse("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what").is_some());
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_span_joins_the_trace_of_the_message_and_hands_it_on() {
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("test"))
            .with_filter(filter_fn(|of| of.target() != SERVICE_SPAN));
        tracing::subscriber::with_default(Registry::default().with(layer), || {
            let came = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            let service = tracing::info_span!(target: SERVICE_SPAN, "service");
            let _service = service.enter();
            let span = tracing::info_span!("decide");
            adopt(&span, Some(came));
            let went = span.in_scope(|| traceparent(None)).unwrap();
            assert!(went.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && went.ends_with("-01"), "{went}");
            assert_ne!(went, came, "the span has an id of its own");

            // The service's span is in no trace: two messages are two traces.
            let trace = |_| tracing::info_span!("decide").in_scope(|| traceparent(None)).unwrap()[3..35].to_owned();
            assert_ne!(trace(1), trace(2));
        });
        // Where nothing is traced, what came is handed on.
        assert_eq!(traceparent(Some("00-aa")), Some("00-aa".to_owned()));
    }

    #[test]
    fn what_sending_itself_says_is_not_sent() {
        struct Seen(Mutex<Vec<(String, bool)>>);
        impl<S: tracing::Subscriber> Layer<S> for &'static Seen {
            fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
                let of = event.metadata();
                self.0.lock().push((of.target().to_owned(), is_carrier(of)));
            }
        }
        let seen: &'static Seen = Box::leak(Box::new(Seen(Mutex::default())));
        tracing::subscriber::with_default(Registry::default().with(seen), || {
            tracing::info!(target: "h2::codec", "x");
            tracing::info!(target: "opentelemetry_sdk", "x");
            tracing::info!(target: "validator", "x");
            tracing::info!(target: "h2o", "x");
        });
        let carriers: Vec<bool> = seen.0.lock().iter().map(|(_, carrier)| *carrier).collect();
        assert_eq!(carriers, [true, true, false, false]);
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }
    }

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn text_of_others_acts_in_no_line_of_a_log() {
        let hostile = "a\u{1b}[2J\u{202e}b\u{2066}\r\nINFO forged: line\u{9b}\u{7f}\u{200b}";
        let error = Error::Endpoint { endpoint: hostile.into(), source: Endpoint::from_shared("%").unwrap_err() };
        for json in [false, true] {
            let lines = Lines::default();
            let writer = lines.clone();
            let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_ansi(false);
            let layer: Box<dyn Layer<Registry> + Send + Sync> = match json {
                false => Box::new(layer.fmt_fields(TextFields)),
                true => Box::new(layer.fmt_fields(JsonFields::new()).event_format(JsonLines)),
            };
            tracing::subscriber::with_default(Registry::default().with(layer), || {
                let _span = tracing::info_span!("decide", intent = hostile, of = %hostile).entered();
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, name = hostile, shown = %hostile, debug = ?hostile, "{hostile}");
            });
            let text = lines.text();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert_eq!(mesh_proto::shown::line(text.trim_end_matches('\n')), text.trim_end_matches('\n'), "{text}");
            assert!(text.contains("forged"));
        }
    }

    #[test]
    fn a_json_line_has_typed_fields_and_the_whole_chain_of_an_error() {
        let (lines, error) = (Lines::default(), Error::Authority(std::io::Error::other("disk gone")));
        let writer = lines.clone();
        let json = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .fmt_fields(JsonFields::new())
            .event_format(JsonLines);
        tracing::subscriber::with_default(Registry::default().with(json), || {
            let _mesh = tracing::error_span!(target: SERVICE_SPAN, "mesh", service = "validator").entered();
            let _decide = tracing::info_span!("decide", intent = "i\"1").entered();
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, count = 3, share = 0.5, held = true, target = "x", "not\nread");
        });
        let text = lines.text();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["error"], "read tls_ca_file: disk gone");
        assert_eq!((&line["count"], &line["share"], &line["held"]), (&3.into(), &0.5.into(), &true.into()));
        assert_eq!((&line["message"], &line["level"]), (&"not\nread".into(), &"WARN".into()));
        assert_eq!((&line["target"], &line["field_target"]), (&module_path!().into(), &"x".into()));
        let spans = serde_json::json!([{"span": "mesh", "service": "validator"}, {"span": "decide", "intent": "i\"1"}]);
        assert_eq!(line["spans"], spans);
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn what_blocks_is_waited_for_no_longer_than_its_limit() {
        assert_eq!(within(Duration::from_secs(10), || 7), Some(7));
        let (release, held) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(20), move || held.recv().is_ok()), None);
        drop(release);
    }

    #[test]
    fn every_form_of_log_levels_makes_a_filter() {
        for level in ["info", "off", "info,validator=debug", "validator=trace"] {
            assert!(filter(level).is_ok(), "{level}");
        }
    }
}
