//! The way to exposed workloads: `/access/<owner>/<instance>/…`, for those who may use them.

use std::{sync::PoisonError, time::Instant};

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderValue, Request, header};
use mesh_rest::{
    http::refuse,
    problem::{Kind, Problem},
};

use crate::{
    domain::{
        passage,
        routes::{ROUTES_MAX, Routes},
        traffic::Way,
    },
    shell::{gateway::Gateway, proxy::Upstream},
};

/// First segment of the paths.
pub(crate) const PREFIX: &str = "/access";
/// A request that may be forwarded.
struct Passed {
    request: Request<Body>,
    way: Way,
    path: String,
    /// What the workload is told of who asks.
    stamps: HeaderMap,
    over_h2: bool,
}

impl Gateway {
    /// Forwards a request of `/access/<owner>/<instance>/…`.
    pub(crate) async fn access(&self, mut request: Request<Body>) -> Response {
        let path = request.uri().path().to_owned();
        match self.accessed(&mut request, &path).await {
            Ok(passed) => {
                let address = format!("http://{}", passed.way.upstream);
                let to = Upstream { address: &address, path: &passed.path, over_h2: passed.over_h2 };
                let begun = Instant::now();
                let answer = self.inner.proxy.forward(passed.request, &to, passed.stamps).await;
                let response = answer.unwrap_or_else(|problem| refuse(&problem, &path));
                // Counting only adds: what a panic leaves behind can be used.
                let mut traffic = self.inner.traffic.lock().unwrap_or_else(PoisonError::into_inner);
                traffic.count(&passed.way, response.status().as_u16(), begun.elapsed().as_secs_f64());
                drop(traffic);
                response
            }
            Err(problem) => refuse(&problem, &path),
        }
    }

    async fn accessed(&self, request: &mut Request<Body>, path: &str) -> Result<Passed, Problem> {
        let mut segments = path.splitn(5, '/').skip(2);
        let (owner, instance) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
        let rest = segments.next().map(|rest| format!("/{rest}")).unwrap_or_else(|| "/".into());
        // HTTP/2 names the host in the address.
        let authority = request.uri().authority().and_then(|at| at.as_str().rsplit('@').next());
        let authority = authority.and_then(|at| HeaderValue::from_str(at).ok());
        let caller = self.inner.signin.caller(request.headers()).await?;
        let route = self.inner.routes.read(|routes| routes.find(owner, instance));
        let Some(route) = route else {
            let shown: String = instance.chars().take(64).collect();
            let unrouted = self.inner.routes.read(Routes::unrouted);
            if unrouted > 0 {
                tracing::warn!(instance = shown, unrouted, limit = ROUTES_MAX, "some exposed instances have no route");
            }
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
        let prefix = format!("{PREFIX}/{owner}/{instance}");
        let mut stamps = passage::stamps(&[
            ("x-forwarded-proto", "http"),
            ("x-forwarded-prefix", &prefix),
            ("x-forwarded-user", &caller.subject),
            ("x-forwarded-owner", &caller.owner),
        ])?;
        if let Some(host) = headers.get(header::HOST).cloned().or(authority) {
            stamps.insert("x-forwarded-host", host);
        }
        // The token is for us: a workload that had it could act in the caller's name.
        headers.remove(header::AUTHORIZATION);
        let path = passage::path(&route.expose.path, &rest)?;
        let over_h2 = route.expose.protocol == "h2";
        let way = Way { cluster: route.cluster, owner: route.owner, instance: instance.to_owned(), upstream };
        Ok(Passed { request: std::mem::take(request), way, path, stamps, over_h2 })
    }
}
