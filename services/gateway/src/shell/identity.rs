//! The way to the identity service, where people sign in and accounts are kept; and who the caller is.

use axum::{body::Body, response::Response};
use http::{HeaderMap, Request, StatusCode};
use mesh_rest::{
    access::{Caller, MATRIX, ROLES, Reach},
    body::BODY_MAX,
    http::{empty, json, unavailable, within},
    problem::{Kind, Problem},
};
use serde_json::{Value as Json, json};

use crate::{
    domain::table::{Op, Route},
    shell::{
        gateway::{Gateway, unread},
        proxy::Upstream,
        signin::IDENTITY,
    },
};

/// Requests that the identity service answers.
pub(crate) fn is_for_identity(op: Op) -> bool {
    matches!(op, Op::Login | Op::Logout | Op::ListAccounts | Op::PutAccount | Op::DeleteAccount)
}

impl Gateway {
    /// Passes a request of the table on to the identity service, once its caller may make it. The service checks the
    /// token again: it does not trust the gateway.
    pub(crate) async fn to_identity(
        &self,
        route: &'static Route,
        path: &[String],
        request: Request<Body>,
    ) -> Result<Response, Problem> {
        let (parts, body) = request.into_parts();
        self.enter(route, path, &parts).await?;
        let body = if route.body.is_empty() { Body::from(unread(&parts.headers, body).await?) } else { body };
        if self.inner.signin.is_built_in() {
            return self.forward_to_identity(Request::from_parts(parts, body)).await;
        }
        match route.op {
            // A session of the provider ends there.
            Op::Logout => Ok(empty(StatusCode::NO_CONTENT)),
            Op::ListAccounts => Ok(json(StatusCode::OK, &json!([]))),
            _ => Err(self.elsewhere()),
        }
    }

    fn elsewhere(&self) -> Problem {
        let detail = format!("people sign in at {}", self.inner.signin.trusted());
        Problem::new(Kind::Conflict, detail, "get a token there")
    }

    /// Passes a request of OAuth on to the identity service, if that is the issuer.
    pub(crate) async fn oauth(&self, request: Request<Body>) -> Result<Response, Problem> {
        if self.inner.signin.is_built_in() {
            return self.forward_to_identity(request).await;
        }
        match request.uri().path() {
            "/oauth/jwks" => Ok(json(StatusCode::OK, &json!({"keys": []}))),
            // In the form that clients of OAuth read (RFC 6749 §5.2).
            "/oauth/token" => Ok(json(StatusCode::BAD_REQUEST, &json!({"error": "unauthorized_client"}))),
            _ => Err(self.elsewhere()),
        }
    }

    /// Passes a request on to the identity service, at the same path.
    async fn forward_to_identity(&self, request: Request<Body>) -> Result<Response, Problem> {
        // Refused here: a connection that is closed while a body is still being sent would hide the answer.
        within(request.headers(), BODY_MAX)?;
        let away = || unavailable("the identity service does not answer");
        let found = mesh_client::endpoint(self.inner.mesh.bus(), IDENTITY).await.map_err(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "identity service not found");
            away()
        })?;
        let path = request.uri().path().to_owned();
        let address = found.ok_or_else(away)?;
        let to = Upstream { address: &address, path: &path, over_h2: false };
        let forwarded = self.inner.proxy.forward(request, &to, HeaderMap::new()).await;
        forwarded.map_err(|problem| match problem.kind {
            Kind::Upstream | Kind::Late => {
                tracing::warn!(problem = problem.detail, "identity service does not answer");
                away()
            }
            _ => problem,
        })
    }

    /// Where the built-in issuer answers (RFC 8414), or the name of the provider.
    pub(crate) fn discovery(&self, base: &str) -> Json {
        json!({
            "issuer": self.inner.signin.trusted(),
            "authorization_endpoint": format!("{base}/oauth/authorize"),
            "token_endpoint": format!("{base}/oauth/token"),
            "jwks_uri": format!("{base}/oauth/jwks"),
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none"],
        })
    }

    /// Who the caller is, and what it may do.
    pub(crate) fn whoami(&self, caller: &Caller) -> Response {
        let roles: Vec<&str> =
            ROLES.iter().filter(|(role, _)| caller.roles.contains(role)).map(|(_, name)| *name).collect();
        let permissions: serde_json::Map<String, Json> = MATRIX
            .iter()
            .map(|(action, _)| {
                let reach = match caller.reach(*action) {
                    Reach::Nothing => "nothing",
                    Reach::Own => "own",
                    Reach::All => "all",
                };
                (format!("{action:?}"), json!(reach))
            })
            .collect();
        let shown = json!({"subject": caller.subject, "name": caller.name, "owner": caller.owner, "roles": roles,
            "permissions": permissions});
        json(StatusCode::OK, &shown)
    }
}
