//! The way to exposed workloads: `/access/<owner>/<instance>/…`, for those who may use them.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, Version, header};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use mesh_rest::{
    http::refuse,
    problem::{Kind, Problem},
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::shell::gateway::Gateway;

/// First segment of the paths.
pub(crate) const PREFIX: &str = "/access";
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
/// Headers that only the gateway sets: a client's own are dropped, so nobody can pose as somebody else.
const OURS: [&str; 7] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-prefix",
    "x-forwarded-user",
    "x-forwarded-owner",
];

/// Connections to workloads and services. It checks nothing: permission is checked before.
#[derive(Clone)]
pub struct Proxy {
    http1: Client<HttpConnector, Body>,
    h2: Client<HttpConnector, Body>,
    tunnels: Arc<Semaphore>,
    limit: Duration,
    stopping: CancellationToken,
}

impl Proxy {
    /// Gives up on an upstream that does not begin to answer within the limit; upgraded connections end when stopping.
    pub fn new(limit: Duration, stopping: CancellationToken) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_LIMIT));
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_max_idle_per_host(64).pool_idle_timeout(Duration::from_secs(30));
        let http1 = builder.build(connector.clone());
        let h2 = builder.http2_only(true).build(connector);
        Self { http1, h2, tunnels: Arc::new(Semaphore::new(TUNNELS_MAX)), limit, stopping }
    }

    /// Forwards a request to `host:port`, to this path, with the request's own query; `over_h2` by HTTP/2 without TLS.
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
        let uri: Uri = format!("http://{upstream}{path}{query}")
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
                tracing::debug!(upstream, error = &error as &dyn std::error::Error, "workload does not answer");
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

impl Gateway {
    /// Forwards a request of `/access/<owner>/<instance>/…`.
    pub(crate) async fn access(&self, mut request: Request<Body>) -> Response {
        let path = request.uri().path().to_owned();
        match self.accessed(&mut request, &path).await {
            Ok((request, upstream, rest, over_h2)) => {
                match self.inner.proxy.forward(request, &upstream, &rest, over_h2).await {
                    Ok(response) => response,
                    Err(problem) => refuse(&problem, &path),
                }
            }
            Err(problem) => refuse(&problem, &path),
        }
    }

    async fn accessed(
        &self,
        request: &mut Request<Body>,
        path: &str,
    ) -> Result<(Request<Body>, String, String, bool), Problem> {
        let mut segments = path.splitn(5, '/').skip(2);
        let (owner, instance) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
        let rest = segments.next().map(|rest| format!("/{rest}")).unwrap_or_else(|| "/".into());
        let caller = self.inner.signin.caller(request.headers()).await?;
        let route = self.inner.routes.read(|routes| routes.find(owner, instance));
        let Some(route) = route else {
            let shown: String = instance.chars().take(64).collect();
            return Err(Problem::not_found(format!("exposed instance {shown}")));
        };
        if !caller.may_use(&route.owner, &route.expose.users) {
            let detail = format!("{} is not among the users of this workload", caller.subject);
            let hint = format!("ask {owner} to name you in `expose.users` of its document");
            return Err(Problem::new(Kind::Forbidden, detail, hint));
        }
        let upstream = route.upstream.map_err(|why| Problem {
            retry_after_s: Some(1),
            ..Problem::new(Kind::Unavailable, why, "wait until it runs: `continuum why` says what it waits for")
        })?;
        let headers = request.headers_mut();
        let host = headers.get(header::HOST).cloned();
        // The token is for us: a workload that had it could act in the caller's name.
        headers.remove(header::AUTHORIZATION);
        for name in OURS {
            headers.remove(name);
        }
        let mut set = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        set("x-forwarded-proto", "http");
        set("x-forwarded-prefix", &format!("{PREFIX}/{owner}/{instance}"));
        set("x-forwarded-user", &caller.subject);
        set("x-forwarded-owner", &caller.owner);
        if let Some(host) = host.as_ref().and_then(|host| host.to_str().ok()) {
            set("x-forwarded-host", host);
        }
        let below = route.expose.path.trim_end_matches('/');
        let over_h2 = route.expose.protocol == "h2";
        Ok((std::mem::take(request), upstream, format!("{below}{rest}"), over_h2))
    }
}
