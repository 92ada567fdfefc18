//! Forwards requests to exposed workloads and to services of the mesh.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, Version, header};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use mesh_kit::Settings;
use mesh_rest::problem::{Kind, Problem};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::shell::inside;

/// How long a connection to a workload may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Upgraded connections at once (WebSocket).
const TUNNELS_MAX: usize = 1_024;
/// Headers about one connection and not the next (RFC 9110 §7.6.1).
const HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Connections to workloads and services. It checks nothing: permission is checked before.
#[derive(Clone)]
pub struct Proxy {
    http1: Client<HttpsConnector<HttpConnector>, Body>,
    h2: Client<HttpsConnector<HttpConnector>, Body>,
    tunnels: Arc<Semaphore>,
    limit: Duration,
    stopping: CancellationToken,
}

impl Proxy {
    /// Gives up on an upstream that does not begin to answer within the limit; upgraded connections end when stopping.
    ///
    /// # Errors
    /// When the certificates of the settings cannot be read.
    pub fn new(limit: Duration, settings: &Settings, stopping: CancellationToken) -> anyhow::Result<Self> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_LIMIT));
        connector.enforce_http(false);
        let connector = inside::connector(settings, connector)?;
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_max_idle_per_host(64).pool_idle_timeout(Duration::from_secs(30));
        let http1 = builder.build(connector.clone());
        let h2 = builder.http2_only(true).build(connector);
        Ok(Self { http1, h2, tunnels: Arc::new(Semaphore::new(TUNNELS_MAX)), limit, stopping })
    }

    /// Forwards a request to `scheme://host:port`, to this path, with the request's own query; `over_h2` by HTTP/2 without
    /// TLS.
    ///
    /// # Errors
    /// When the workload does not answer, or too many upgraded connections are open.
    pub async fn forward(
        &self,
        mut request: Request<Body>,
        upstream: &str,
        path: &str,
        over_h2: bool,
    ) -> Result<Response, Problem> {
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        let uri: Uri = format!("{upstream}{path}{query}")
            .parse()
            .map_err(|_| Problem::malformed("the address cannot be forwarded", "correct it"))?;
        let upgrade = upgrade(request.headers()).filter(|_| !over_h2 && request.version() == Version::HTTP_11);
        let permit = match &upgrade {
            None => None,
            Some(_) => Some(self.tunnels.clone().try_acquire_owned().map_err(|_| Problem {
                retry_after_s: Some(10),
                ..Problem::new(Kind::TooMany, "too many upgraded connections are open", "try again later")
            })?),
        };
        let client_side = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
        strip(request.headers_mut());
        if let Some(protocol) = &upgrade {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            request.headers_mut().insert(header::UPGRADE, protocol.clone());
        }
        // The workload sees its own address as host; what the client asked is in x-forwarded-host.
        request.headers_mut().remove(header::HOST);
        *request.uri_mut() = uri;
        *request.version_mut() = if over_h2 { Version::HTTP_2 } else { Version::HTTP_11 };
        let client = if over_h2 { &self.h2 } else { &self.http1 };
        let mut response = match tokio::time::timeout(self.limit, client.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                tracing::debug!(upstream, error = &error as &dyn std::error::Error, "upstream does not answer");
                let detail =
                    if error.is_connect() { "nothing listens on its port" } else { "the connection to it failed" };
                return Err(Problem::new(Kind::Upstream, detail, "see its log: `continuum workload logs`"));
            }
            Err(_) => {
                let detail = format!("it did not answer within {} s", self.limit.as_secs());
                return Err(Problem::new(Kind::Late, detail, "see its log: `continuum workload logs`"));
            }
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (Some(client_side), Some(protocol)) = (client_side, upgrade) else {
                return Err(Problem::new(Kind::Upstream, "it switched protocols unasked", "see its log"));
            };
            let workload_side = hyper::upgrade::on(&mut response);
            let stopping = self.stopping.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let (Ok(client), Ok(workload)) = tokio::join!(client_side, workload_side) else { return };
                let (mut client, mut workload) = (TokioIo::new(client), TokioIo::new(workload));
                tokio::select! {
                    // How it ends is between the two.
                    _ = tokio::io::copy_bidirectional(&mut client, &mut workload) => {}
                    () = stopping.cancelled() => {}
                }
            });
            strip(response.headers_mut());
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(header::UPGRADE, protocol);
            return Ok(response.map(Body::new));
        }
        strip(response.headers_mut());
        Ok(response.map(Body::new))
    }
}

fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let asks = asks.flat_map(|v| v.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asks).cloned()
}

/// Removes what is about one connection: the known headers, and those that `Connection` names.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    // gRPC has to announce that it accepts trailers.
    let trailers = headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for name in named {
        headers.remove(name);
    }
    for name in HOP {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}
