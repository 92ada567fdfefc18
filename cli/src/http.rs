//! One HTTP request with a JSON answer: for the gateway and the ALTO server.

use std::time::Duration;

use anyhow::Context as _;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::{client::legacy::Client as Http, rt::TokioExecutor};
use serde_json::Value as Json;

/// Bytes of an answer at most.
const ANSWER_MAX: usize = 16 << 20;
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(35);
/// One request over HTTP; status and body.
pub async fn request(
    method: Method,
    url: &str,
    token: Option<&str>,
    kind: &str,
    body: String,
) -> anyhow::Result<(u16, Json)> {
    let mut request = Request::builder().method(method).uri(url);
    if !body.is_empty() {
        request = request.header(header::CONTENT_TYPE, kind);
    }
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::new(bytes::Bytes::from(body))).with_context(|| format!("read address {url}"))?;
    let asked = async {
        let client = Http::builder(TokioExecutor::new()).build_http();
        let response = client.request(request).await.with_context(|| format!("ask {url}"))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("read the answer of {url}: {error}"))?.to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap_or(Json::Null)))
    };
    tokio::time::timeout(ANSWER_LIMIT, asked).await.with_context(|| format!("{url} does not answer"))?
}
