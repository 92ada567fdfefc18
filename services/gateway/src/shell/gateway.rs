//! What every request shares, and what it passes through: sign-in, permission, limits; then the command or the question.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderMap, Request, header, request::Parts};
use mesh_client::Peers;
use mesh_kit::{Mesh, View};
use mesh_proto::{Event as _, Written, intent::SubmitIntent};
use mesh_rest::{
    access::{Action, Caller, Reach},
    ask::Answers,
    body,
    http::{BODY_LIMIT, read, too_large, too_slow, unavailable, with, within},
    limits::{Buckets, Rate},
    problem::{Kind, Problem},
};
use serde_json::Value as Json;
use tokio::sync::Semaphore;
use tonic::transport::Channel;

use crate::{
    config::Config,
    domain::{
        forms::{self, Upload},
        headers,
        measurement::InForce,
        routes::Routes,
        table::{self, Op, Route},
        tmf,
        traffic::Traffic,
    },
    shell::{proxy::Proxy, signin::SignIn},
};

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
    pub(crate) routes: View<Routes>,
    /// Settings and conditions of measurement.
    pub(crate) in_force: View<InForce>,
    /// The way to exposed workloads, and to the identity service.
    pub(crate) proxy: Proxy,
    pub(crate) buckets: Mutex<Buckets>,
    /// What went through to exposed workloads.
    pub(crate) traffic: Mutex<Traffic>,
    /// Watches at once.
    pub(crate) watches: Arc<Semaphore>,
}

/// A request that may be served, read whole.
pub(crate) struct Admitted {
    pub(crate) route: &'static Route,
    /// Values of the path's parameters, in order.
    pub(crate) path: Vec<String>,
    pub(crate) query: BTreeMap<String, Vec<String>>,
    pub(crate) headers: HeaderMap,
    /// Nobody for requests that need no token.
    pub(crate) caller: Caller,
    pub(crate) body: Option<Written>,
    /// The form of an upload.
    pub(crate) upload: Option<Upload>,
}

impl Admitted {
    /// The path's parameter at this position.
    pub(crate) fn id(&self, position: usize) -> String {
        self.path.get(position).cloned().unwrap_or_default()
    }

    /// Values of a query parameter.
    pub(crate) fn values(&self, name: &str) -> Vec<String> {
        self.query.get(name).cloned().unwrap_or_default()
    }

    /// The value of a query parameter that is not a list.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.query.get(name).and_then(|values| values.first()).map(String::as_str)
    }

    /// The body as it is written; there is one where the table says so.
    pub(crate) fn written(&mut self) -> Written {
        self.body.take().unwrap_or_else(|| Json::Null.into())
    }

    /// A header's text.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    }

    /// A header that is a list, however many lines it comes in (RFC 9110 §5.3).
    pub(crate) fn list(&self, name: &str) -> Option<String> {
        let lines: Vec<&str> = self.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        (!lines.is_empty()).then(|| lines.join(", "))
    }

    /// Whose objects are meant. Another's are not there, for those who may not reach them.
    pub(crate) fn owner(&self) -> Result<String, Problem> {
        let Some(owner) = self.value("owner").filter(|owner| *owner != self.caller.owner) else {
            return Ok(self.caller.owner.clone());
        };
        if !mesh_proto::is_key(owner) {
            return Err(Problem::field("owner", "is not a valid owner", "use 1 to 64 letters, digits, `_` and `-`"));
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
    ) -> Result<Admitted, Problem> {
        if route.action == Some(Action::WriteIntents) {
            // Before anything is read or checked: turning away must cost little.
            self.inner.answers.check(SubmitIntent::STREAM)?;
        }
        let (parts, body) = request.into_parts();
        let (caller, query) = self.enter(route, &path, &parts).await?;
        let kind = parts.headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("unreadable"));
        let (body, upload) = match route.body {
            "" => {
                unread(&parts.headers, body).await?;
                (None, None)
            }
            table::UPLOAD => (None, Some(upload(kind, &parts.headers, body).await?)),
            _ => (Some(body::read(kind, &read(&parts.headers, body).await?)?), None),
        };
        Ok(Admitted { route, path, query, headers: parts.headers, caller, body, upload })
    }

    /// Checks all of a request but its body: who sends it, and the path and query.
    pub(crate) async fn enter(
        &self,
        route: &'static Route,
        path: &[String],
        parts: &Parts,
    ) -> Result<(Caller, BTreeMap<String, Vec<String>>), Problem> {
        let caller = match route.action {
            Some(action) => self.permitted(&parts.headers, action).await?,
            None => Caller::default(),
        };
        headers::check(route, &parts.headers)?;
        for id in path {
            // Ids that no object can have; documents carry their version.
            let plain = id.split_once('@').map_or(id.as_str(), |(name, _)| name);
            if !mesh_proto::is_key(plain) || id.len() > 160 {
                let shown: String = id.chars().take(64).collect();
                return Err(Problem::not_found(format!("object {shown:?}")));
            }
        }
        let query = parts.uri.query().unwrap_or_default();
        let query = match route.op {
            Op::TmfList => body::query_below(query, route.query, |name| table::is_list(route.op, name))?,
            _ => body::query(query, route.query, |name| table::is_list(route.op, name))?,
        };
        if let Some(fields) = query.get("fields") {
            tmf::selectable(fields)?;
        }
        Ok((caller, query))
    }

    /// Who sends it, if it may do that and has not sent too many requests.
    pub(crate) async fn permitted(&self, headers: &HeaderMap, action: Action) -> Result<Caller, Problem> {
        let caller = self.inner.signin.caller(headers).await?;
        self.limit(&format!("caller {}", caller.subject), self.rate())?;
        caller.permits(action)?;
        Ok(caller)
    }

    fn rate(&self) -> Rate {
        Rate { per_second: self.inner.config.rate_per_s, burst: self.inner.config.rate_burst }
    }

    /// Counts one request of somebody.
    pub(crate) fn limit(&self, who: &str, rate: Rate) -> Result<(), Problem> {
        let now_ms = self.inner.mesh.now().as_millis();
        let mut buckets = self.inner.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.take(who, rate, now_ms).map_err(Problem::too_many)
    }

    /// A channel to a service.
    pub(crate) async fn channel(&self, service: &str) -> Result<Channel, Problem> {
        self.inner.peers.channel(service).await.map_err(|error| {
            tracing::warn!(service, error = &error as &dyn std::error::Error, "service not found");
            unavailable(format!("{service} does not answer"))
        })
    }

    /// What a service answered, or the problem that it is.
    pub(crate) fn reply<T>(
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

/// An answer of comma-separated lines.
pub(crate) fn csv(text: String) -> Response {
    with(Response::new(Body::from(text)), header::CONTENT_TYPE, "text/csv; charset=utf-8; header=present")
}

/// Reads a body that means nothing here, and refuses it if it says something.
pub(crate) async fn unread(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    let bytes = if axum::body::HttpBody::is_end_stream(&body) { Bytes::new() } else { read(headers, body).await? };
    headers::no_body(&bytes)?;
    Ok(bytes)
}

/// Reads the form of an upload (RFC 7578) within its limits and in time.
async fn upload(kind: Option<&str>, headers: &HeaderMap, body: Body) -> Result<Upload, Problem> {
    let form = kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("multipart/form-data"));
    if !form {
        return Err(Problem::new(Kind::MediaType, "the body is not a form", "send multipart/form-data"));
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
