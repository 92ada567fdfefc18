//! `http`: one HTTP request with a JSON body.

#![expect(clippy::disallowed_methods, reason = "the connection of a request is driven by a task, which ends with it")]

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, StatusCode, Uri, header::HeaderMap};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Adaptor, Call, Error};

/// Largest answer that is read, bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

pub(super) struct Http;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body, bounded.
    pub body: Bytes,
}

/// Sends one request over a connection of its own.
///
/// # Errors
/// If the URL does not start with `http://`, the host is not reached, or its answer is too large or breaks off.
pub async fn send(method: &str, url: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Result<Answer, Error> {
    let uri: Uri = url.parse().map_err(|error| Error::Invalid(format!("{url:?} is not a URL: {error}")))?;
    let authority = match (uri.scheme_str(), uri.authority()) {
        (Some("http"), Some(authority)) => authority.clone(),
        _ => return Err(Error::Invalid(format!("{url:?} is not an http:// URL"))),
    };
    let unreachable = |error: String| Error::Unreachable(format!("{authority}: {error}"));
    let address = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let stream = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(address)).await;
    let stream = match stream {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => return Err(unreachable(format!("no connection within {} s", CONNECT_LIMIT.as_secs()))),
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(e.to_string()))?;
    // It ends with the sender.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = &error as &dyn std::error::Error, "connection ended");
        }
    });
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::builder().method(method).uri(path).header("host", authority.as_str());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request =
        request.body(Full::new(body.into())).map_err(|error| Error::Invalid(format!("no such request: {error}")))?;
    let response = sender.send_request(request).await.map_err(|e| unreachable(e.to_string()))?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| unreachable(format!("its answer was not read: {error}")))?.to_bytes();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

#[tonic::async_trait]
impl Adaptor for Http {
    fn name(&self) -> &'static str {
        "http"
    }

    async fn call(&self, call: &Call<'_>) -> Result<String, Error> {
        let body = if call.body.is_null() { String::new() } else { call.body.to_string() };
        let headers: &[(&str, &str)] = if body.is_empty() { &[] } else { &[("content-type", "application/json")] };
        let answer = send(call.operation, call.target, headers, body).await?;
        if answer.status.is_success() {
            return Ok(answer.status.to_string());
        }
        let told: String = String::from_utf8_lossy(&answer.body).chars().take(200).collect();
        Err(Error::Refused(format!("{}: {told}", answer.status)))
    }
}
