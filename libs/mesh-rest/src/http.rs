//! Requests and answers: bodies within their limits, bearer tokens, problem documents.

use std::time::Duration;

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::Value as Json;

use crate::{
    body::BODY_MAX,
    problem::{Kind, Problem},
};

/// How long a body may take to come.
pub const BODY_LIMIT: Duration = Duration::from_secs(10);

/// The one bearer token of a request (RFC 6750).
///
/// # Errors
/// When there is none, more than one, or another kind of authorization.
pub fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (given.next(), given.next()) else {
        let hint = "send `Authorization: Bearer <token>`, once; get a token with `continuum token`";
        return Err(Problem::new(Kind::Unauthenticated, "the request has no bearer token", hint));
    };
    let token = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .and_then(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()))
        .filter(|token| !token.is_empty());
    token.ok_or_else(|| {
        let hint = "send `Authorization: Bearer <token>`";
        Problem::new(Kind::Unauthenticated, "the authorization is not a bearer token", hint)
    })
}

/// It cannot be done now.
pub fn unavailable(detail: impl Into<String>) -> Problem {
    Problem { retry_after_s: Some(1), ..Problem::new(Kind::Unavailable, detail, "try again; see `continuum status`") }
}

/// Reads a body within its limit and in time.
///
/// # Errors
/// When it is larger than [`BODY_MAX`], breaks off, or takes longer than [`BODY_LIMIT`].
pub async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    within(headers, BODY_MAX)?;
    let whole = Limited::new(body, BODY_MAX).collect();
    match tokio::time::timeout(BODY_LIMIT, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(BODY_MAX)),
        Ok(Err(_)) => Err(Problem::malformed("the body broke off", "send it again")),
        Err(_) => Err(too_slow()),
    }
}

/// Refuses a body whose declared length is too large.
///
/// # Errors
/// When its Content-Length is larger than `most`.
pub fn within(headers: &HeaderMap, most: usize) -> Result<(), Problem> {
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if declared.is_some_and(|length| length > most as u64) { Err(too_large(most)) } else { Ok(()) }
}

/// The body is larger than is taken.
pub fn too_large(most: usize) -> Problem {
    Problem::new(Kind::TooLarge, format!("the body is larger than {most} bytes"), "send less at once")
}

/// The body did not come in time.
pub fn too_slow() -> Problem {
    Problem::new(Kind::Timeout, format!("the body did not arrive within {} s", BODY_LIMIT.as_secs()), "send it again")
}

/// An answer with a JSON body; what would act in text of others on a terminal is written as JSON's escapes.
pub fn json(status: StatusCode, value: &Json) -> Response {
    let text = mesh_proto::shown::json(&value.to_string()).into_owned();
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// With one more header; one whose value cannot be a header's is left out.
pub fn with(mut response: Response, name: header::HeaderName, value: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    response
}

/// A problem as an answer to a request of this path.
pub fn refuse(problem: &Problem, path: &str) -> Response {
    let status = StatusCode::from_u16(problem.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(status, &problem.document(path));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if problem.kind == Kind::Unauthenticated {
        response = with(response, header::WWW_AUTHENTICATE, "Bearer realm=\"continuum\"");
    }
    if let Some(seconds) = problem.retry_after_s {
        response = with(response, header::RETRY_AFTER, &seconds.to_string());
    }
    if matches!(problem.kind, Kind::TooLarge | Kind::Timeout) {
        // What was not read of the body would be taken for the next request.
        response = with(response, header::CONNECTION, "close");
    }
    response
}
