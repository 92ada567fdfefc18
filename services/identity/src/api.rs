//! The HTTP interface, on the port of the process: the gateway passes people's requests on to it, at the same paths.

use axum::{
    Router,
    body::Body,
    response::Response,
    routing::{delete, get, post},
};
use http::{Request, StatusCode, header};
use mesh_rest::{
    access::Action,
    http::{json, refuse, with},
    problem::Problem,
};

use crate::shell::Identity;

/// An answer that nobody may keep.
pub(crate) fn uncached(response: Response) -> Response {
    with(response, header::CACHE_CONTROL, "no-store")
}

/// Answers a request, or says in a problem document why not.
async fn answered(path: String, answer: impl Future<Output = Result<Response, Problem>>) -> Response {
    match answer.await {
        Ok(response) => response,
        Err(problem) => refuse(&problem, &path),
    }
}

fn path(request: &Request<Body>) -> String {
    request.uri().path().to_owned()
}

/// Every request.
pub(crate) fn routes(identity: &Identity) -> Router {
    macro_rules! handler {
        ($request:ident, $own:ident => $answer:expr) => {{
            let own = identity.clone();
            move |$request: Request<Body>| {
                let $own = own.clone();
                async move { answered(path(&$request), async move { $answer }).await }
            }
        }};
    }
    let accounts = get(handler!(request, own => {
        own.permitted(request.headers(), Action::WriteAccounts).map(|_| own.list_accounts())
    }))
    .put(handler!(request, own => own.put_account(request).await));
    let jwks = identity.inner.issuer.jwks.clone();
    let (token, authorize) = (identity.clone(), identity.clone());
    let authorize = move |request: Request<Body>| {
        let own = authorize.clone();
        async move { own.authorize(request).await }
    };
    let pages = [
        ("/api/v1/auth/login", post(handler!(request, own => own.login(request).await))),
        ("/api/v1/auth/logout", post(handler!(request, own => own.logout(request).await))),
        ("/api/v1/auth/account", accounts),
        ("/api/v1/auth/account/{id}", delete(handler!(request, own => own.delete_account(request).await))),
    ];
    let router = pages.into_iter().fold(Router::new(), |router, (path, methods)| {
        router.route(path, methods.clone()).route(&format!("{path}/"), methods)
    });
    router
        .route("/oauth/jwks", get(move || async move { json(StatusCode::OK, &jwks) }))
        .route(
            "/oauth/token",
            post(move |request: Request<Body>| {
                let own = token.clone();
                async move { own.token_endpoint(request).await }
            }),
        )
        .route("/oauth/authorize", get(authorize.clone()).post(authorize))
}
