//! What every request shares, and what it passes through: sign-in, permission, limits; then the command or the question.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use mesh_client::Peers;
use mesh_kit::{Mesh, View};
use serde_json::Value as Json;
use tokio::sync::Semaphore;
use tonic::transport::Channel;

use crate::{
    accounts::Accounts,
    ask::Answers,
    config::Config,
    domain::{
        access::{Action, Caller, Reach, who_may},
        forms::{self, Upload},
        limits::{Buckets, Rate},
        problem::{Kind, Problem},
        routes::Routes,
        table::{self, Route},
    },
    hub::{Hub, Sender},
    signin::SignIn,
};

/// How long a body may take to come.
const BODY_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of an upload: the archive, and what is around it.
const FORM_MAX: usize = forms::ARCHIVE_MAX + 64 * 1024;

/// Everything that requests share.
#[derive(Clone)]
pub(crate) struct Gateway {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) mesh: Mesh,
    pub(crate) config: Config,
    pub(crate) answers: Answers,
    pub(crate) peers: Peers,
    pub(crate) signin: SignIn,
    pub(crate) accounts: View<Accounts>,
    pub(crate) routes: View<Routes>,
    pub(crate) hub: View<Hub>,
    pub(crate) sender: Sender,
    pub(crate) buckets: Mutex<Buckets>,
    /// Password checks at once: each takes megabytes and a core.
    pub(crate) checks: Arc<Semaphore>,
    /// Watches at once.
    pub(crate) watches: Arc<Semaphore>,
}

/// A request that may be served, read whole.
pub(crate) struct Asked {
    pub(crate) route: &'static Route,
    /// Values of the path's parameters, in order.
    pub(crate) path: Vec<String>,
    pub(crate) query: BTreeMap<String, Vec<String>>,
    pub(crate) headers: HeaderMap,
    /// Nobody for requests that need no token.
    pub(crate) caller: Caller,
    pub(crate) body: Option<Json>,
    /// The form of an upload.
    pub(crate) upload: Option<Upload>,
}

impl Asked {
    /// The path's parameter at this position.
    pub(crate) fn id(&self, position: usize) -> String {
        self.path.get(position).cloned().unwrap_or_default()
    }

    /// Values of a query parameter.
    pub(crate) fn values(&self, name: &str) -> Vec<String> {
        self.query.get(name).cloned().unwrap_or_default()
    }

    /// The last value of a query parameter.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.query.get(name).and_then(|values| values.last()).map(String::as_str)
    }

    /// The body; there is one where the table says so.
    pub(crate) fn json(&mut self) -> Json {
        self.body.take().unwrap_or_default()
    }

    /// A header's text.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    }

    /// Whose objects are meant. Another's are not there, for those who may not reach them.
    pub(crate) fn owner(&self) -> Result<String, Problem> {
        let Some(owner) = self.value("owner").filter(|owner| *owner != self.caller.owner) else {
            return Ok(self.caller.owner.clone());
        };
        if !mesh_proto::is_key(owner) {
            return Err(Problem::field("owner", "is no owner", "use 1 to 64 letters, digits, `_` and `-`"));
        }
        match self.route.action.map(|action| self.caller.reach(action)) {
            Some(Reach::All) => Ok(owner.to_owned()),
            _ => Err(Problem::not_found(format!("owner {owner}"))),
        }
    }

    /// The key under which it is done once (draft-ietf-httpapi-idempotency-key-header).
    pub(crate) fn idempotency_key(&self) -> Result<Option<String>, Problem> {
        let Some(value) = self.headers.get("idempotency-key") else { return Ok(None) };
        let text = value.to_str().ok().map(|text| text.trim().trim_matches('"'));
        match text {
            Some(text) if (1..=255).contains(&text.len()) && text.bytes().all(|b| (0x21..=0x7e).contains(&b)) => {
                Ok(Some(text.to_owned()))
            }
            _ => Err(Problem::malformed("the Idempotency-Key is not 1 to 255 visible characters", "use a UUID")),
        }
    }
}

impl Gateway {
    /// Passes a request through sign-in, permission and limits, and reads it.
    pub(crate) async fn admit(
        &self,
        route: &'static Route,
        path: Vec<String>,
        request: Request<Body>,
    ) -> Result<Asked, Problem> {
        let (parts, body) = request.into_parts();
        let caller = match route.action {
            Some(action) => self.permitted(&parts.headers, action).await?,
            None => Caller {
                subject: String::new(),
                name: String::new(),
                owner: String::new(),
                roles: vec![],
                session: String::new(),
            },
        };
        for id in &path {
            // Ids that no object can have; documents carry their version.
            let plain = id.split_once('@').map_or(id.as_str(), |(name, _)| name);
            if !mesh_proto::is_key(plain) || id.len() > 160 {
                let shown: String = id.chars().take(64).collect();
                return Err(Problem::not_found(format!("object {shown:?}")));
            }
        }
        let query = forms::query(parts.uri.query().unwrap_or_default(), route.query)?;
        let kind = parts.headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("unreadable"));
        let (body, upload) = match route.body {
            "" => (None, None),
            table::UPLOAD => (None, Some(upload(kind, &parts.headers, body).await?)),
            _ => (Some(forms::read(kind, &read(&parts.headers, body).await?)?), None),
        };
        Ok(Asked { route, path, query, headers: parts.headers, caller, body, upload })
    }

    /// Who sends it, if it may do that and has not asked too much.
    pub(crate) async fn permitted(&self, headers: &HeaderMap, action: Action) -> Result<Caller, Problem> {
        let caller = self.inner.signin.caller(headers).await?;
        self.limit(&format!("caller {}", caller.subject), self.rate())?;
        if caller.reach(action) == Reach::Nothing {
            let detail = format!("{} may not do that ({action:?})", caller.name);
            let hint = format!("ask an administrator for one of the roles: {}", who_may(action));
            return Err(Problem::new(Kind::Forbidden, detail, hint));
        }
        Ok(caller)
    }

    fn rate(&self) -> Rate {
        Rate { per_second: self.inner.config.rate_per_s, burst: self.inner.config.rate_burst }
    }

    /// Counts one request of somebody.
    pub(crate) fn limit(&self, who: &str, rate: Rate) -> Result<(), Problem> {
        let now_ms = self.inner.mesh.now().as_millis();
        let mut buckets = self.inner.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.take(who, rate, now_ms).map_err(|wait| Problem {
            retry_after_s: Some(wait),
            ..Problem::new(Kind::TooMany, "too many requests", format!("wait {wait} s, and ask less often"))
        })
    }

    /// A channel to a service.
    pub(crate) async fn channel(&self, service: &str) -> Result<Channel, Problem> {
        self.inner.peers.channel(service).await.map_err(|error| {
            tracing::warn!(service, error = &error as &dyn std::error::Error, "service not found");
            unavailable(format!("{service} does not answer"))
        })
    }

    /// What a service answered, or the problem that it is.
    pub(crate) fn told<T>(
        &self,
        service: &str,
        answer: Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, Problem> {
        use tonic::Code;
        answer.map(tonic::Response::into_inner).map_err(|status| {
            let (what, hint) = status.message().rsplit_once("; ").unwrap_or((status.message(), "try again"));
            match status.code() {
                Code::NotFound => Problem::new(Kind::NotFound, what, hint),
                Code::InvalidArgument => Problem::new(Kind::Invalid, what, hint),
                Code::FailedPrecondition => Problem::new(Kind::Conflict, what, hint),
                Code::ResourceExhausted => {
                    Problem { retry_after_s: Some(1), ..Problem::new(Kind::TooMany, what, hint) }
                }
                Code::DeadlineExceeded | Code::Cancelled => {
                    Problem::new(Kind::Late, format!("{service} did not answer in time"), "try again")
                }
                Code::Unavailable | Code::Unknown => {
                    self.inner.peers.forget(service);
                    tracing::debug!(service, status = status.message(), "service does not answer");
                    unavailable(format!("{service} does not answer"))
                }
                _ => {
                    tracing::error!(service, code = ?status.code(), status = status.message(), "service failed");
                    Problem::new(Kind::Internal, format!("{service} failed"), "see its log")
                }
            }
        })
    }

    /// How long a command may wait for its answer.
    pub(crate) fn limit_of_commands(&self) -> Duration {
        Duration::from_millis((self.inner.config.request_limit_ms / 2).max(1).into())
    }
}

/// It cannot be done now.
pub(crate) fn unavailable(detail: impl Into<String>) -> Problem {
    Problem { retry_after_s: Some(1), ..Problem::new(Kind::Unavailable, detail, "try again; see `continuum status`") }
}

/// Reads a body within its limit and in time.
pub(crate) async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    within(headers, forms::BODY_MAX)?;
    let whole = Limited::new(body, forms::BODY_MAX).collect();
    match tokio::time::timeout(BODY_LIMIT, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(forms::BODY_MAX)),
        Ok(Err(_)) => Err(Problem::malformed("the body broke off", "send it again")),
        Err(_) => Err(too_slow()),
    }
}

/// Reads the form of an upload (RFC 7578) within its limits and in time.
async fn upload(kind: Option<&str>, headers: &HeaderMap, body: Body) -> Result<Upload, Problem> {
    let form = kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("multipart/form-data"));
    if !form {
        return Err(Problem::new(Kind::MediaType, "the body is no form", "send multipart/form-data"));
    }
    let boundary = multer::parse_boundary(kind.unwrap_or_default())
        .map_err(|_| Problem::malformed("the form names no boundary", "let your client write the Content-Type"))?;
    within(headers, FORM_MAX)?;
    let limits = multer::SizeLimit::new()
        .whole_stream(FORM_MAX as u64)
        .per_field(256)
        .for_field("file", forms::ARCHIVE_MAX as u64);
    let constraints = multer::Constraints::new().size_limit(limits);
    let mut form = multer::Multipart::with_constraints(body.into_data_stream(), boundary, constraints);
    let wrong = |error: multer::Error| match error {
        multer::Error::StreamSizeExceeded { .. } => too_large(FORM_MAX),
        multer::Error::FieldSizeExceeded { field_name: Some(name), .. } if name == "file" => {
            too_large(forms::ARCHIVE_MAX)
        }
        multer::Error::FieldSizeExceeded { field_name, .. } => {
            Problem::field(&named(field_name.as_deref()), "has more than 256 bytes", "send less")
        }
        other => Problem::malformed(format!("the form cannot be read: {other}"), "send it again, whole"),
    };
    let whole = async {
        let (mut file, mut name, mut version) = (None, None, None);
        while let Some(field) = form.next_field().await.map_err(wrong)? {
            let of = field.name().map(str::to_owned);
            let slot = match of.as_deref() {
                Some("file") => &mut file,
                Some("name") => &mut name,
                Some("version") => &mut version,
                other => return Err(Problem::field(&named(other), "is unknown", "send file, name and version")),
            };
            if slot.replace(field.bytes().await.map_err(wrong)?).is_some() {
                return Err(Problem::field(&named(of.as_deref()), "comes twice", "send it once"));
            }
        }
        let part = |path: &str, given: Option<Bytes>| {
            given.ok_or_else(|| Problem::field(path, "is missing", "send file, name and version"))
        };
        let text = |path: &str, given: Option<Bytes>| {
            let bytes = part(path, given)?;
            String::from_utf8(bytes.to_vec()).map_err(|_| Problem::field(path, "is not UTF-8", "send UTF-8"))
        };
        Ok(Upload { file: part("file", file)?, name: text("name", name)?, version: text("version", version)? })
    };
    tokio::time::timeout(BODY_LIMIT, whole).await.unwrap_or_else(|_| Err(too_slow()))
}

fn named(field: Option<&str>) -> String {
    field.unwrap_or("a field without a name").chars().take(64).collect()
}

/// Refuses a body that says itself that it is too large.
fn within(headers: &HeaderMap, most: usize) -> Result<(), Problem> {
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if declared.is_some_and(|length| length > most as u64) { Err(too_large(most)) } else { Ok(()) }
}

fn too_large(most: usize) -> Problem {
    Problem::new(Kind::TooLarge, format!("the body has more than {most} bytes"), "send less at once")
}

fn too_slow() -> Problem {
    Problem::new(Kind::Timeout, format!("the body did not come within {} s", BODY_LIMIT.as_secs()), "send it again")
}

/// An answer with a JSON body.
pub(crate) fn json(status: StatusCode, value: &Json) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// With one more header; one whose value cannot be a header's is left out.
pub(crate) fn with(mut response: Response, name: header::HeaderName, value: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    response
}

/// A problem as an answer to a request of this path.
pub(crate) fn refuse(problem: &Problem, path: &str) -> Response {
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
