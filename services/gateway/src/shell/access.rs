//! The way to exposed workloads: `/access/<owner>/<instance>/…`, for those who may use them.

use axum::{body::Body, response::Response};
use http::{HeaderName, HeaderValue, Request, header};
use mesh_rest::{
    http::refuse,
    problem::{Kind, Problem},
};

use crate::{
    domain::routes::{ROUTES_MAX, Routes},
    shell::gateway::Gateway,
};

/// First segment of the paths.
pub(crate) const PREFIX: &str = "/access";
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

impl Gateway {
    /// Forwards a request of `/access/<owner>/<instance>/…`.
    pub(crate) async fn access(&self, mut request: Request<Body>) -> Response {
        let path = request.uri().path().to_owned();
        match self.accessed(&mut request, &path).await {
            Ok((request, upstream, rest, over_h2)) => {
                match self.inner.proxy.forward(request, &format!("http://{upstream}"), &rest, over_h2).await {
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
