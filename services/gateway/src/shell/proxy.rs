//! Forwards requests to exposed workloads and to services of the mesh.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, Version, header, uri::PathAndQuery};
use http_body_util::BodyExt as _;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use mesh_kit::Settings;
use mesh_rest::problem::{Kind, Problem};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{domain::passage, shell::inside};

/// How long a connection to a workload may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Upgraded connections at once (WebSocket).
const TUNNELS_MAX: usize = 1_024;
/// Connections to workloads and services. It checks nothing: permission is checked before.
#[derive(Clone)]
pub struct Proxy {
    http1: Client<HttpsConnector<HttpConnector>, Body>,
    h2: Client<HttpsConnector<HttpConnector>, Body>,
    tunnels: Arc<Semaphore>,
    limit: Duration,
    stopping: CancellationToken,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    /// `scheme://host:port`.
    pub address: &'a str,
    /// Path there.
    pub path: &'a str,
    /// By HTTP/2 without TLS.
    pub over_h2: bool,
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

    /// Forwards a request with its own query. `stamps` are the headers that nobody but the gateway sets: what the client
    /// sent under their names, in any spelling or as trailers, goes no further.
    ///
    /// # Errors
    /// When the workload does not answer, or too many upgraded connections are open.
    pub async fn forward(
        &self,
        mut request: Request<Body>,
        to: &Upstream<'_>,
        stamps: HeaderMap,
    ) -> Result<Response, Problem> {
        let (upstream, over_h2) = (to.address, to.over_h2);
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        let wrong = || Problem::malformed("the address cannot be forwarded", "correct it");
        let mut address = upstream.parse::<Uri>().map_err(|_| wrong())?.into_parts();
        address.path_and_query = Some(format!("{}{query}", to.path).parse::<PathAndQuery>().map_err(|_| wrong())?);
        let uri = Uri::from_parts(address).map_err(|_| wrong())?;
        let offered = match over_h2 || request.version() != Version::HTTP_11 {
            true => vec![],
            false => passage::upgrades(request.headers()),
        };
        let upgrade = HeaderValue::from_str(&offered.join(", ")).ok().filter(|_| !offered.is_empty());
        let permit = match &upgrade {
            None => None,
            Some(_) => Some(self.tunnels.clone().try_acquire_owned().map_err(|_| Problem {
                retry_after_s: Some(10),
                ..Problem::new(Kind::TooMany, "too many upgraded connections are open", "try again later")
            })?),
        };
        let client_side = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
        // What is about this connection goes first, so that a client cannot name what is stamped below.
        passage::strip(request.headers_mut());
        passage::disown(request.headers_mut());
        request.headers_mut().extend(stamps);
        if let Some(protocol) = &upgrade {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            request.headers_mut().insert(header::UPGRADE, protocol.clone());
        }
        // The workload sees its own address as host; what the client asked is in x-forwarded-host.
        request.headers_mut().remove(header::HOST);
        *request.uri_mut() = uri;
        *request.version_mut() = if over_h2 { Version::HTTP_2 } else { Version::HTTP_11 };
        let request = request.map(|body| {
            Body::new(body.map_frame(|mut frame| {
                if let Some(trailers) = frame.trailers_mut() {
                    passage::disown(trailers);
                }
                frame
            }))
        });
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
            let chosen = response.headers().get(header::UPGRADE).cloned();
            let asked = |chosen: &HeaderValue| {
                offered.iter().any(|one| chosen.as_bytes().trim_ascii().eq_ignore_ascii_case(one.as_bytes()))
            };
            let (Some(client_side), Some(protocol)) = (client_side, chosen.filter(asked)) else {
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
            passage::strip(response.headers_mut());
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(header::UPGRADE, protocol);
            return Ok(response.map(Body::new));
        }
        passage::strip(response.headers_mut());
        Ok(response.map(Body::new))
    }
}
