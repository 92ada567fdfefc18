//! Receives what workloads send by OTLP: metrics become readings, traces go on to where the mesh sends its own.
//!
//! - [`Door`]: which replica a sender is. `exchange`: HTTP and gRPC. `domain::measure::otlp` decides all else.
//! - An instance has few places for its requests, and each a time limit, whatever it does.

mod door;
mod exchange;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    body::Body,
    http::{Request, Response},
};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use mesh_kit::Mesh;
use opentelemetry_proto::tonic::collector::{
    metrics::v1::{ExportMetricsPartialSuccess, ExportMetricsServiceResponse},
    trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_client::TraceServiceClient,
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, SemaphorePermit},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};

pub use door::{Admitted, Door, TOKEN_HEADER};

use crate::domain::measure::otlp::{Inbox, Limits, Refused, decode, spans};
use exchange::{Protocol, Refusal, Signal};

/// Connections at once, of all instances.
const CONNECTIONS_MAX: usize = 256;
/// Requests at once on one connection.
const STREAMS_MAX: u32 = 16;
/// Requests of one instance that are answered at once: with the size of a body, what they take in memory.
const OF_INSTANCE_MAX: usize = 2;
/// Requests that are decoded at once, of all instances.
const DECODED_AT_ONCE: usize = 2;
/// Headers of one request, bytes.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// How long headers may take, and a whole exchange.
const HEADER_LIMIT: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(10);
/// How long the mesh's own endpoint may take.
const FORWARD_LIMIT: Duration = Duration::from_secs(5);

/// Receives.
pub struct Receiver {
    listener: TcpListener,
    parts: Parts,
}

struct Parts {
    mesh: Mesh,
    cluster_id: String,
    door: Arc<Door>,
    inbox: Arc<Mutex<Inbox>>,
    upstream: Option<Channel>,
}

struct Serving {
    parts: Parts,
    decoding: Semaphore,
    under_way: UnderWay,
}

/// Requests that are answered now, by instance.
type UnderWay = Mutex<BTreeMap<String, usize>>;

/// One of the few places that an instance has for its requests.
struct Place<'a> {
    under_way: &'a UnderWay,
    instance: String,
}

impl<'a> Place<'a> {
    fn take(under_way: &'a UnderWay, instance: &str) -> Result<Self, Refusal> {
        // Counts are whole, whatever a panicking writer was at.
        let mut all = under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(instance.to_owned()).or_default();
        if *count >= OF_INSTANCE_MAX {
            let why = format!("{OF_INSTANCE_MAX} requests of this instance are under way; send fewer at once");
            return Err(Refusal::later(why));
        }
        *count += 1;
        Ok(Self { under_way, instance: instance.to_owned() })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut all = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&self.instance) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(all.remove(&self.instance)),
        }
    }
}

impl Receiver {
    /// Listens; nothing is answered yet.
    ///
    /// # Errors
    /// If the address is taken, or the mesh's OTLP endpoint is not an address.
    pub async fn bind(mesh: &Mesh, address: SocketAddr, cluster_id: &str, limits: Limits) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("listen for OTLP on {address} (otlp_listen)"))?;
        let address = listener.local_addr().context("read the address of the OTLP receiver")?;
        let parts = Parts {
            mesh: mesh.clone(),
            cluster_id: cluster_id.to_owned(),
            door: Arc::new(Door::new(format!("http://{address}"), cluster_id.to_owned())),
            inbox: Arc::new(Mutex::new(Inbox::new(limits))),
            upstream: mesh.otlp_channel()?,
        };
        Ok(Self { listener, parts })
    }

    /// Who is let in.
    pub fn door(&self) -> Arc<Door> {
        self.parts.door.clone()
    }

    /// What was received.
    pub fn inbox(&self) -> Arc<Mutex<Inbox>> {
        self.parts.inbox.clone()
    }

    /// Answers until the process stops.
    ///
    /// # Errors
    /// Never: what cannot be read is answered and counted.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self { listener, parts } = self;
        let stopping = parts.mesh.stopping();
        let serving =
            Arc::new(Serving { parts, decoding: Semaphore::new(DECODED_AT_ONCE), under_way: Mutex::default() });
        let connection = |socket: TcpStream| serve(socket, serving.clone(), stopping.clone());
        mesh_kit::serve_connections(&listener, CONNECTIONS_MAX, &stopping, connection).await;
        Ok(())
    }
}

async fn serve(socket: TcpStream, serving: Arc<Serving>, stopping: CancellationToken) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let serving = serving.clone();
        async move { Ok::<_, Infallible>(serving.answer(request.map(Body::new)).await) }
    });
    let connection = builder.serve_connection(TokioIo::new(socket), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = &*error, "OTLP connection");
    }
}

impl Serving {
    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let protocol = Protocol::of(request.headers());
        let answer = async {
            let signal = protocol.signal(&request)?;
            let from = self.sender(&request)?;
            let now = self.parts.mesh.now();
            self.inbox(|inbox| inbox.request(&from.id.instance_id, now)).map_err(Refusal::later)?;
            let _place = Place::take(&self.under_way, &from.id.instance_id).inspect_err(|refusal| {
                self.inbox(|inbox| inbox.unreadable(&from.id.instance_id, &refusal.why, now));
            })?;
            let read = self.read(protocol, signal, request, &from).await;
            // One that may come again was counted where it was refused.
            if let Err(refusal) = &read
                && refusal.code != Code::Unavailable
            {
                self.inbox(|inbox| inbox.unreadable(&from.id.instance_id, &refusal.why, now));
            }
            read
        };
        match tokio::time::timeout(LIMIT, answer).await {
            Ok(Ok(response)) => response,
            Ok(Err(refusal)) => protocol.refuse(refusal),
            Err(_) => {
                let why = format!("the request took longer than {} s", LIMIT.as_secs());
                protocol.refuse(Refusal::new(Code::DeadlineExceeded, why))
            }
        }
    }

    fn inbox<T>(&self, work: impl FnOnce(&mut Inbox) -> T) -> T {
        // Counts and series are whole between two calls, whatever a panicking one was at.
        work(&mut self.parts.inbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn sender(&self, request: &Request<Body>) -> Result<Admitted, Refusal> {
        let token = request.headers().get(TOKEN_HEADER).and_then(|token| token.to_str().ok());
        token.and_then(|token| self.parts.door.replica(token)).ok_or_else(|| {
            let why = format!(
                "the header {TOKEN_HEADER} is not the token of a running instance; send the headers in \
                 OTEL_EXPORTER_OTLP_HEADERS of the instance's environment"
            );
            Refusal::new(Code::Unauthenticated, why)
        })
    }

    async fn turn(&self) -> Result<SemaphorePermit<'_>, Refusal> {
        self.decoding.acquire().await.map_err(|_| Refusal::new(Code::Unavailable, "the agent stops"))
    }

    async fn read(
        &self,
        protocol: Protocol,
        signal: Signal,
        request: Request<Body>,
        from: &Admitted,
    ) -> Result<Response<Body>, Refusal> {
        let body = protocol.message(request).await?;
        let now = self.parts.mesh.now();
        self.inbox(|inbox| inbox.bytes(&from.id.instance_id, body.len(), now)).map_err(Refusal::later)?;
        let malformed = |why: String| Refusal::new(Code::InvalidArgument, why);
        match signal {
            Signal::Metrics => {
                let refused = {
                    let _turn = self.turn().await?;
                    let request = decode(&body).map_err(malformed)?;
                    self.inbox(|inbox| inbox.metrics(&from.id, request, now))
                };
                let partial_success = (refused.count() > 0).then(|| ExportMetricsPartialSuccess {
                    rejected_data_points: i64::try_from(refused.count()).unwrap_or(i64::MAX),
                    error_message: refused.to_string(),
                });
                Ok(protocol.answer(&ExportMetricsServiceResponse { partial_success }))
            }
            Signal::Traces => {
                let request = {
                    let _turn = self.turn().await?;
                    decode(&body).map_err(malformed)?
                };
                drop(body);
                let refused = self.forward(request, from).await?;
                let partial_success = (refused.count() > 0).then(|| ExportTracePartialSuccess {
                    rejected_spans: i64::try_from(refused.count()).unwrap_or(i64::MAX),
                    error_message: refused.to_string(),
                });
                Ok(protocol.answer(&ExportTraceServiceResponse { partial_success }))
            }
        }
    }

    /// Sends spans on. The sender waits for it: what the mesh's endpoint does not take, the sender keeps, and sends again.
    async fn forward(&self, mut request: ExportTraceServiceRequest, from: &Admitted) -> Result<Refused, Refusal> {
        let identity = spans::Identity {
            instance_id: from.id.instance_id.clone(),
            replica: from.id.replica,
            owner: from.owner.clone(),
            cluster_id: self.parts.cluster_id.clone(),
        };
        let (mut left, mut refused) = spans::mark(&mut request, &identity);
        match &self.parts.upstream {
            None => {
                refused.add(left, "this mesh sends traces nowhere; set otlp_endpoint for the agent".into());
                left = 0;
            }
            Some(channel) if left > 0 => {
                let mut client = TraceServiceClient::new(channel.clone());
                let sent = tokio::time::timeout(FORWARD_LIMIT, client.export(request)).await;
                let answer = match sent {
                    Ok(Ok(answer)) => answer.into_inner(),
                    Ok(Err(status)) if matches!(status.code(), Code::InvalidArgument | Code::Unimplemented) => {
                        return Err(Refusal::new(status.code(), format!("otlp_endpoint: {}", status.message())));
                    }
                    Ok(Err(status)) => {
                        let why = format!("otlp_endpoint does not take traces now: {}", status.message());
                        return Err(Refusal::new(Code::Unavailable, why));
                    }
                    Err(_) => {
                        let why = format!("otlp_endpoint did not answer within {} s", FORWARD_LIMIT.as_secs());
                        return Err(Refusal::new(Code::Unavailable, why));
                    }
                };
                if let Some(partial) = answer.partial_success {
                    let rejected = u64::try_from(partial.rejected_spans).unwrap_or_default().min(left);
                    refused.add(rejected, format!("otlp_endpoint: {}", partial.error_message));
                    left -= rejected;
                }
            }
            Some(_) => {}
        }
        let now = self.parts.mesh.now();
        self.inbox(|inbox| inbox.spans(&from.id.instance_id, left, refused.clone(), now));
        Ok(refused)
    }
}
