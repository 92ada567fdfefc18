//! The HTTP face of the ALTO server, on the process's own port and with its TLS.

#![expect(clippy::disallowed_methods, reason = "the secret behind the nonces of HTTP Digest is drawn once")]

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::any,
};
use mesh_kit::{Mesh, View};
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

use crate::domain::{
    alto::{self, Maps, digest},
    costs::Costs,
};

/// The maps of the newest revision, made when first asked for.
#[derive(Default)]
struct Cache {
    revision: u64,
    maps: Option<Arc<Maps>>,
}

/// Who may ask, and the secret under which nonces are made.
struct Gate {
    users: digest::Users,
    secret: String,
}

/// All pages below `/alto`; for these users only, if there are some.
pub(crate) fn pages(mesh: &Mesh, costs: View<Costs>, users: Option<digest::Users>) -> Router {
    let cache = Arc::new(Mutex::new(Cache::default()));
    let gate = Arc::new(users.map(|users| Gate { users, secret: uuid::Uuid::new_v4().to_string() }));
    let mesh = mesh.clone();
    let handler = move |request: Request| {
        let (mesh, costs, cache, gate) = (mesh.clone(), costs.clone(), cache.clone(), gate.clone());
        async move {
            let refusal = gate.as_ref().as_ref().and_then(|gate| refuse(gate, &request, mesh.now().seconds));
            match refusal {
                Some(refusal) => refusal,
                None => answer(request, &costs, &cache).await,
            }
        }
    };
    Router::new().route("/alto", any(handler.clone())).route("/alto/{*path}", any(handler))
}

/// The answer to a client that is not known, which asks it to authenticate itself.
fn refuse(gate: &Gate, request: &Request, now_s: i64) -> Option<Response> {
    let uri = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let given = text(request.headers(), &header::AUTHORIZATION);
    let stale = digest::check(&gate.users, &gate.secret, now_s, request.method().as_str(), uri, given).err()?;
    let asked = digest::challenge(&gate.secret, now_s, stale);
    let asked = header::HeaderValue::from_str(&asked).ok()?;
    Some(
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, asked)], "authenticate yourself by HTTP Digest\n")
            .into_response(),
    )
}

async fn answer(request: Request, costs: &View<Costs>, cache: &Mutex<Cache>) -> Response {
    let (parts, body) = request.into_parts();
    if parts.uri.query().is_some_and(|query| !query.is_empty()) {
        let text =
            "no resource of ALTO takes parameters in its address: leave out ? and what follows, or POST a filter\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    // One more than allowed, so that too much is seen as such.
    let Ok(body) = to_bytes(body, alto::BODY_BYTES_MAX + 1).await else {
        return (StatusCode::PAYLOAD_TOO_LARGE, format!("send at most {} bytes\n", alto::BODY_BYTES_MAX))
            .into_response();
    };
    let tcp = parts.extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
    let tls = || parts.extensions.get::<TlsConnectInfo<TcpConnectInfo>>().and_then(|info| info.get_ref().remote_addr());
    let maps = maps(costs, cache);
    // One list, however many lines it comes in (RFC 9110 §5.3).
    let accept: Vec<&str> =
        parts.headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let accept = accept.join(", ");
    let answer = alto::answer(
        &maps,
        &alto::Request {
            method: parts.method.as_str(),
            path: if parts.uri.path() == "/alto" { "/alto/" } else { parts.uri.path() },
            accept: Some(&accept),
            content_type: text(&parts.headers, &header::CONTENT_TYPE),
            body: &body,
            client: tcp.or_else(tls).map(|address| address.ip()),
        },
    );
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, [(header::CONTENT_TYPE, answer.content_type)], Body::from(answer.body)).into_response();
    if let Some(allow) = answer.allow {
        response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allow));
    }
    response
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn maps(costs: &View<Costs>, cache: &Mutex<Cache>) -> Arc<Maps> {
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    let revision = costs.read(Costs::revision);
    match &cache.maps {
        Some(maps) if cache.revision == revision => maps.clone(),
        _ => {
            let (revision, maps) = costs.read(|costs| (costs.revision(), Arc::new(costs.maps())));
            *cache = Cache { revision, maps: Some(maps.clone()) };
            maps
        }
    }
}
