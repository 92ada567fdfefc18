//! One port per process: gRPC queries with health and reflection, `/livez`, `/readyz`, `/metrics`.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::{get, post},
};
use futures::Stream;
use mesh_proto::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{
    service::Routes,
    transport::{
        Certificate, Identity, Server, ServerTlsConfig,
        server::{Connected, TcpConnectInfo},
    },
};
use tonic_health::ServingStatus;

use crate::{
    accept::accept,
    config::{ServeTls, Settings},
    health,
    metrics::{Metrics, Reading},
    secret,
    strict::known_fields,
};

/// Connections at once; more wait in the listening queue.
const CONNECTIONS_MAX: usize = 1_024;
/// Requests at once on one connection; without it, memory grows with the number of requests.
const STREAMS_MAX: u32 = 256;
/// A silent peer is pinged after the interval, and given up after the timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Windows for what comes in, bytes; queries are small.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Headers of one request, bytes.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Streams reset for a peer's errors over a connection's whole life; h2 closes the connection beyond its own limit of
/// 1,024, which clients that drop many watches reach.
const RESETS_MAX: usize = 65_536;
/// Streams that a peer reset before they were served; the guard against rapid reset.
const PENDING_RESETS_MAX: usize = 64;
/// How often certificate files are looked at.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(5);

/// A server that could not be set up or went down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate or key cannot be read.
    #[error("read certificate {path}")]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key cannot be read.
    #[error("read the key of the certificate")]
    Key(#[from] secret::Error),
    /// gRPC reflection was not built: the descriptors are not those of this build.
    #[error("build gRPC reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// What tonic-health describes is not as it was.
    #[error("describe gRPC health")]
    Health(#[from] prost::DecodeError),
    /// Serving ended, or TLS was not set up.
    #[error("serve gRPC and HTTP")]
    Serve(#[from] tonic::transport::Error),
    /// Serving ended without having been asked to.
    #[error("serve gRPC and HTTP: ended by itself")]
    Ended(#[source] Option<tokio::task::JoinError>),
}

/// What a process must have to do its work; `/readyz` tells it as it is.
pub struct Readiness {
    conditions: Mutex<BTreeMap<String, Option<Unmet>>>,
    bus: watch::Receiver<mesh_bus::State>,
    bus_since: Mutex<BusSince>,
    changed: watch::Sender<u64>,
    now: fn() -> Timestamp,
}

/// Since when the bus is unreachable, and since when a stream is full.
#[derive(Clone, Copy, Default)]
struct BusSince {
    away: Option<Timestamp>,
    full: Option<Timestamp>,
}

#[derive(Clone, Debug)]
struct Unmet {
    reason: String,
    since: Timestamp,
}

/// One thing that a process must have to be ready; made by [`Mesh::condition`](crate::Mesh::condition), unmet at first.
#[derive(Clone)]
pub struct Condition {
    name: String,
    readiness: Arc<Readiness>,
}

/// A condition that is not met, as `/readyz` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Which condition.
    pub condition: String,
    /// Why it is not met.
    pub reason: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// What helps.
    pub hint: String,
}

impl Readiness {
    pub(crate) fn new(bus: watch::Receiver<mesh_bus::State>, now: fn() -> Timestamp) -> Arc<Self> {
        let away = (!bus.borrow().connected).then(now);
        Arc::new(Self {
            conditions: Mutex::default(),
            bus,
            bus_since: Mutex::new(BusSince { away, full: None }),
            changed: watch::Sender::new(0),
            now,
        })
    }

    pub(crate) fn condition(self: &Arc<Self>, name: &str) -> Condition {
        let condition = Condition { name: name.to_owned(), readiness: self.clone() };
        condition.unmet("starting");
        condition
    }

    /// What is missing; nothing if the process is ready.
    pub fn missing(&self) -> Vec<Missing> {
        let conditions = self.conditions.lock();
        let unmet = conditions.iter().filter_map(|(name, unmet)| unmet.as_ref().map(|unmet| (name, unmet)));
        let mut missing: Vec<Missing> = unmet
            .map(|(name, unmet)| Missing {
                condition: name.clone(),
                reason: unmet.reason.clone(),
                since: unmet.since.to_string(),
                hint: "wait; the log of the process says more".into(),
            })
            .collect();
        drop(conditions);
        let bus = self.bus.borrow().clone();
        let since = *self.bus_since.lock();
        if !bus.connected {
            missing.push(Missing {
                condition: "bus".into(),
                reason: "disconnected".into(),
                since: since.away.unwrap_or_else(self.now).to_string(),
                hint: "start nats-server, or see why it cannot be reached; the connection comes back by itself".into(),
            });
        }
        if let Some(stream) = bus.full {
            missing.push(Missing {
                condition: "stream".into(),
                reason: format!("stream {stream} is full, its writes wait"),
                since: since.full.unwrap_or_else(self.now).to_string(),
                hint: format!("raise the size limit of {stream}, or free disk space of nats-server"),
            });
        }
        missing
    }

    /// Rises with each change that may matter.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Follows the bus: keeps the time of its loss, and says loudly when it goes and comes.
    pub(crate) async fn follow_bus(&self, stopping: CancellationToken) {
        let mut bus = self.bus.clone();
        let mut before = bus.borrow_and_update().clone();
        loop {
            tokio::select! {
                changed = bus.changed() => if changed.is_err() { return },
                () = stopping.cancelled() => return,
            }
            let state = bus.borrow_and_update().clone();
            let now = (self.now)();
            let mut since = self.bus_since.lock();
            if !state.connected && since.away.is_none() {
                since.away = Some(now);
                tracing::warn!("bus disconnected; what is in hand waits");
            } else if state.connected
                && let Some(away) = since.away.take()
            {
                tracing::info!(away_ms = now.millis_since(away), epoch = state.epoch, "bus connected again");
            }
            if state.full != before.full {
                since.full = state.full.as_ref().map(|_| now);
                match &state.full {
                    Some(stream) => tracing::error!(stream, "stream is full; its writes wait until it has room"),
                    None => tracing::info!("no stream is full any more"),
                }
            }
            drop(since);
            before = state;
            self.changed.send_modify(|version| *version += 1);
        }
    }
}

impl Condition {
    /// It is met now.
    pub fn met(&self) {
        self.set(None);
    }

    /// Met while the process is at most `max` messages behind.
    pub fn behind(&self, messages: u64, max: u64) {
        if messages <= max {
            self.met();
        } else {
            self.unmet(format!("{messages} messages behind, more than {max}"));
        }
    }

    /// It is not met now, for this reason.
    pub fn unmet(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, reason: Option<String>) {
        let mut conditions = self.readiness.conditions.lock();
        let state = conditions.entry(self.name.clone()).or_default();
        if state.as_ref().map(|unmet| &unmet.reason) == reason.as_ref() {
            return;
        }
        // The same trouble with another figure is one trouble: it lasts since it began.
        let since = state.as_ref().map_or_else(self.readiness.now, |unmet| unmet.since);
        match &reason {
            Some(reason) => tracing::debug!(condition = self.name, reason, "condition not met"),
            None => tracing::debug!(condition = self.name, "condition met"),
        }
        *state = reason.map(|reason| Unmet { reason, since });
        drop(conditions);
        self.readiness.changed.send_modify(|version| *version += 1);
    }
}

/// What is served, collected until the server starts.
#[derive(Default)]
pub(crate) struct Served {
    routes: Routes,
    names: Vec<&'static str>,
    pages: axum::Router,
}

impl Served {
    pub(crate) fn add_pages(&mut self, pages: axum::Router) {
        self.pages = std::mem::take(&mut self.pages).merge(pages);
    }

    pub(crate) fn add<S>(&mut self, service: S)
    where
        S: tonic::codegen::Service<axum::http::Request<tonic::body::Body>, Error = std::convert::Infallible>
            + tonic::server::NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes = std::mem::take(&mut self.routes).add_service(service);
    }
}

/// What the server needs to know of its process.
pub(crate) struct Host {
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) metrics: Arc<Metrics>,
    /// No more requests; those in hand are finished.
    pub(crate) stopping: CancellationToken,
    /// Connections are cut, whatever they are doing.
    pub(crate) cut: CancellationToken,
}

/// Serves until stopped and the last request is answered, or cut.
pub(crate) async fn serve(listener: TcpListener, served: Served, settings: &Settings, host: Host) -> Result<(), Error> {
    let (reporter, health_server) = tonic_health::server::health_reporter();
    for name in std::iter::once("").chain(served.names.iter().copied()) {
        reporter.set_service_status(name, ServingStatus::NotServing).await;
    }
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(mesh_proto::DESCRIPTORS)
        .register_file_descriptor_set(health::described()?);
    let names = [served.names.clone(), vec!["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]].concat();
    let reflection = names.iter().fold(reflection, |builder, name| builder.with_service_name(*name)).build_v1()?;
    let ready = host.readiness.clone();
    let list =
        health::List { ready: Arc::new(move || ready.missing().is_empty()), names: served.names.as_slice().into() };
    let (readiness, metrics, readings) = (host.readiness.clone(), host.metrics.clone(), host.metrics.clone());
    let pages = served
        .routes
        .add_service(health_server)
        .add_service(reflection)
        .into_axum_router()
        .layer(axum::middleware::from_fn(known_fields))
        .merge(served.pages)
        .route(health::PATH, post(async move |request| list.answer(request).await))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(move |uri: axum::http::Uri| async move { readyz(&readiness, &readings, &uri) }))
        .route("/metrics", get(move || async move { metrics_page(&metrics) }));
    let routes = Routes::from(pages).prepare();

    let listener = Arc::new(listener);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let follow = follow_readiness(host.readiness.clone(), reporter, served.names, host.stopping.clone());
    let accept = async {
        let mut draining = tokio::task::JoinSet::new();
        loop {
            // A changed certificate starts a new round on the same socket: connections of the old one are finished
            // and closed, their clients come back to the new certificate.
            let renewed = host.stopping.child_token();
            let server = server(settings)?.add_routes(routes.clone()).serve_with_incoming_shutdown(
                incoming(listener.clone(), permits.clone(), host.cut.clone()),
                renewed.clone().cancelled_owned(),
            );
            let mut round = tokio::spawn(server);
            tokio::select! {
                ended = &mut round => {
                    ended.map_err(|panic| Error::Ended(Some(panic)))??;
                    return if host.stopping.is_cancelled() { Ok(()) } else { Err(Error::Ended(None)) };
                }
                () = host.stopping.cancelled() => {}
                () = certificates_changed(settings) => {
                    tracing::info!("certificate files changed; serving with the new ones");
                    renewed.cancel();
                    draining.spawn(round);
                    continue;
                }
            }
            let ended = round.await;
            while draining.join_next().await.is_some() {}
            ended.map_err(|panic| Error::Ended(Some(panic)))??;
            return Ok(());
        }
    };
    let (served, ()) = tokio::join!(accept, follow);
    served
}

fn server(settings: &Settings) -> Result<Server, Error> {
    let server = Server::builder()
        .accept_http1(true)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_local_error_reset_streams(Some(RESETS_MAX))
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .trace_fn(|request| {
            let span = tracing::info_span!("query", path = request.uri().path());
            let parent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
            crate::telemetry::adopt(&span, parent);
            span
        });
    let (Some(cert), Some(key), true) =
        (&settings.tls_cert_file, &settings.tls_key_file, settings.serve_tls != ServeTls::Off)
    else {
        return Ok(server);
    };
    let pem = |path: &PathBuf| std::fs::read(path).map_err(|source| Error::Certificate { path: path.clone(), source });
    let mut tls = ServerTlsConfig::new().identity(Identity::from_pem(pem(cert)?, key.read()?.expose()));
    if let (ServeTls::Mutual, Some(ca)) = (settings.serve_tls, &settings.tls_ca_file) {
        tls = tls.client_ca_root(Certificate::from_pem(pem(ca)?));
    }
    Ok(server.tls_config(tls)?)
}

/// Returns once certificate files have changed and are usable again; never without TLS.
async fn certificates_changed(settings: &Settings) {
    if settings.serve_tls == ServeTls::Off {
        return std::future::pending().await;
    }
    let key = settings.tls_key_file.as_ref().map(secret::Secret::path);
    let paths: Vec<_> =
        [settings.tls_cert_file.as_deref(), key, settings.tls_ca_file.as_deref()].into_iter().flatten().collect();
    let before = secret::versions(&paths);
    let mut refused = None;
    loop {
        tokio::time::sleep(CERTIFICATE_CHECK).await;
        let now = secret::versions(&paths);
        if now == before || refused.as_ref() == Some(&now) {
            continue;
        }
        match server(settings) {
            Ok(_) => return,
            // Perhaps only half of them are written yet.
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "new certificate files not usable"),
        }
        refused = Some(now);
    }
}

/// With `?verbose`, also what each consumer is behind, and by how much.
fn readyz(readiness: &Readiness, metrics: &Metrics, uri: &axum::http::Uri) -> axum::response::Response {
    #[derive(Serialize)]
    struct Page {
        ready: bool,
        unmet: Vec<Missing>,
        #[serde(skip_serializing_if = "Option::is_none")]
        consumers: Option<Vec<Reading>>,
    }
    let is_verbose =
        uri.query().is_some_and(|query| query.split('&').any(|part| part.split('=').next() == Some("verbose")));
    let consumers = is_verbose.then(|| metrics.readings());
    let unmet = readiness.missing();
    let status = if unmet.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_string(&Page { ready: unmet.is_empty(), unmet, consumers }) {
        Ok(page) => {
            let page = mesh_proto::shown::json(&page).into_owned() + "\n";
            (status, [(CONTENT_TYPE, "application/json")], page).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn metrics_page(metrics: &Metrics) -> axum::response::Response {
    match metrics.page() {
        Ok(page) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], page).into_response(),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "metrics page");
            (StatusCode::INTERNAL_SERVER_ERROR, "see the log\n").into_response()
        }
    }
}

/// gRPC health says what `/readyz` says, for the whole and for each service. Its watches end when the process stops:
/// they would hold the drain up otherwise.
async fn follow_readiness(
    readiness: Arc<Readiness>,
    mut health: tonic_health::server::HealthReporter,
    names: Vec<&'static str>,
    stopping: CancellationToken,
) {
    let mut changes = readiness.changes();
    let names: Vec<&str> = std::iter::once("").chain(names).collect();
    loop {
        changes.mark_unchanged();
        let ready = readiness.missing().is_empty() && !stopping.is_cancelled();
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in &names {
            health.set_service_status(name, status).await;
        }
        if stopping.is_cancelled() {
            break;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { break },
            () = stopping.cancelled() => {}
        }
    }
    for name in &names {
        health.clear_service_status(name).await;
    }
}

/// A connection that counts against the limit while it is open, and that can be cut.
struct Connection {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

fn incoming(
    listener: Arc<TcpListener>,
    permits: Arc<Semaphore>,
    cut: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    futures::stream::unfold((listener, permits, cut), |(listener, permits, cut)| async move {
        let permit = permits.clone().acquire_owned().await.ok()?;
        let stream = accept(&listener).await;
        let connection = Connection { stream, cut: Box::pin(cut.clone().cancelled_owned()), _permit: permit };
        Some((Ok(connection), (listener, permits, cut)))
    })
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readiness() -> (watch::Sender<mesh_bus::State>, Arc<Readiness>) {
        let (bus, state) = watch::channel(mesh_bus::State { connected: true, epoch: 1, full: None });
        (bus, Readiness::new(state, || Timestamp::from_millis(0)))
    }

    #[test]
    fn ready_means_every_condition_the_bus_and_room_in_its_streams() {
        let (bus, readiness) = readiness();
        assert_eq!(readiness.missing(), []);
        let (one, two) = (readiness.condition("one"), readiness.condition("two"));
        assert_eq!(readiness.missing().len(), 2, "a condition is unmet until it says otherwise");
        one.met();
        two.met();
        assert_eq!(readiness.missing(), []);
        two.behind(17, 10);
        two.behind(12, 10);
        let missing = readiness.missing();
        assert_eq!((missing.len(), missing[0].reason.as_str()), (1, "12 messages behind, more than 10"));
        two.behind(10, 10);
        assert_eq!(readiness.missing(), []);
        bus.send_replace(mesh_bus::State { connected: true, epoch: 1, full: Some("INTENT".into()) });
        assert!(readiness.missing()[0].reason.contains("INTENT"));
        bus.send_replace(mesh_bus::State { connected: false, epoch: 1, full: None });
        assert_eq!(readiness.missing()[0].condition, "bus");
        bus.send_replace(mesh_bus::State { connected: true, epoch: 2, full: None });
        assert_eq!(readiness.missing(), []);
    }

    #[test]
    fn what_is_said_again_is_no_change() {
        let (_bus, readiness) = readiness();
        let condition = readiness.condition("one");
        let changes = readiness.changes();
        let before = *changes.borrow();
        condition.unmet("starting");
        assert_eq!(*changes.borrow(), before);
        condition.met();
        assert_eq!(*changes.borrow(), before + 1);
        condition.met();
        assert_eq!(*changes.borrow(), before + 1);
    }
}
