//! One exchange of OTLP, over HTTP with protobuf or over gRPC, unary.
//!
//! The frames of gRPC are read here and not by tonic, which decodes a message before anyone can look how much memory it
//! takes.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use prost::Message;
use tonic::{Code, Status};

use crate::domain::measure::otlp::{BYTES_MAX, unpack};

/// Before the body of a gRPC message: a flag, and four bytes of its length.
const FRAME: usize = 5;
const PROTOBUF: &str = "application/x-protobuf";
const GRPC: &str = "application/grpc";

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Grpc,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Metrics,
    Traces,
}

/// A request that is answered with an error.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) code: Code,
    status: StatusCode,
    pub(super) why: String,
    /// Seconds after which the same may be sent again.
    retry_s: Option<u32>,
}

impl Refusal {
    pub(super) fn new(code: Code, why: impl Into<String>) -> Self {
        let status = match code {
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::Unimplemented => StatusCode::NOT_FOUND,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::DeadlineExceeded => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        };
        Self { code, status, why: why.into(), retry_s: None }
    }

    pub(super) fn with(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// Too much for now: sent again later, it is taken.
    pub(super) fn later(why: String) -> Self {
        Self { retry_s: Some(1), ..Self::new(Code::Unavailable, why) }.with(StatusCode::TOO_MANY_REQUESTS)
    }
}

/// `google.rpc.Status`, as OTLP over HTTP has it in the body of an error.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

impl Protocol {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let kind = text(headers, header::CONTENT_TYPE.as_str()).unwrap_or_default();
        if kind.starts_with(GRPC) { Self::Grpc } else { Self::Http }
    }

    /// What the path asks for.
    pub(super) fn signal(self, request: &Request<Body>) -> Result<Signal, Refusal> {
        let path = request.uri().path();
        let signal = match (self, path) {
            (Self::Http, "/v1/metrics")
            | (Self::Grpc, "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export") => Signal::Metrics,
            (Self::Http, "/v1/traces")
            | (Self::Grpc, "/opentelemetry.proto.collector.trace.v1.TraceService/Export") => Signal::Traces,
            _ => {
                let path: String = path.chars().take(100).collect();
                let why = format!("{path:?} is not served; send metrics to /v1/metrics and traces to /v1/traces");
                return Err(Refusal::new(Code::Unimplemented, why));
            }
        };
        let kind = text(request.headers(), header::CONTENT_TYPE.as_str()).unwrap_or_default();
        if request.method() != axum::http::Method::POST {
            let why = format!("the method is {}; use POST", request.method());
            return Err(Refusal::new(Code::Unimplemented, why).with(StatusCode::METHOD_NOT_ALLOWED));
        }
        if self == Self::Http && kind.split(';').next().map(str::trim) != Some(PROTOBUF) {
            let kind: String = kind.chars().take(60).collect();
            let why = format!("the content type is {kind:?}; send {PROTOBUF}");
            return Err(Refusal::new(Code::InvalidArgument, why).with(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        Ok(signal)
    }

    /// The message in a request, without gzip.
    pub(super) async fn message(self, request: Request<Body>) -> Result<Bytes, Refusal> {
        let (head, body) = request.into_parts();
        let limit = BYTES_MAX + if self == Self::Grpc { FRAME } else { 0 };
        let body = Limited::new(body, limit).collect().await.map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                let why = format!("the body is more than {BYTES_MAX} bytes; send less at once");
                Refusal::new(Code::InvalidArgument, why).with(StatusCode::PAYLOAD_TOO_LARGE)
            } else {
                Refusal::new(Code::InvalidArgument, format!("read the body: {error}"))
            }
        })?;
        let mut body = body.to_bytes();
        let (encoding, packed) = match self {
            Self::Http => {
                let encoding = text(&head.headers, header::CONTENT_ENCODING.as_str());
                (encoding, encoding.is_some_and(|encoding| encoding != "identity"))
            }
            Self::Grpc => {
                if body.len() < FRAME {
                    return Err(Refusal::new(Code::InvalidArgument, "the body has no gRPC message"));
                }
                let frame = body.split_to(FRAME);
                let length = frame.iter().skip(1).fold(0usize, |length, byte| length << 8 | usize::from(*byte));
                if length != body.len() {
                    let why = format!("a gRPC message of {length} bytes has {}", body.len());
                    return Err(Refusal::new(Code::InvalidArgument, why));
                }
                (text(&head.headers, "grpc-encoding"), frame.first().is_some_and(|flag| *flag != 0))
            }
        };
        match encoding {
            _ if !packed => Ok(body),
            Some("gzip") => match tokio::task::spawn_blocking(move || unpack(&body)).await {
                Ok(unpacked) => unpacked.map(Bytes::from).map_err(|why| Refusal::new(Code::InvalidArgument, why)),
                Err(error) => Err(Refusal::new(Code::Internal, error.to_string())),
            },
            other => {
                let other: String = other.unwrap_or("unknown").chars().take(60).collect();
                let why = format!("the body is packed by {other:?}; use gzip, or nothing");
                // As gRPC demands for an encoding that is not served.
                Err(Refusal::new(Code::Unimplemented, why).with(StatusCode::UNSUPPORTED_MEDIA_TYPE))
            }
        }
    }

    /// Answers with a message.
    pub(super) fn answer(self, message: &impl Message) -> Response<Body> {
        let message = message.encode_to_vec();
        let (kind, body) = match self {
            Self::Http => (PROTOBUF, Body::from(message)),
            Self::Grpc => {
                let mut framed = vec![0];
                framed.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
                framed.extend(message);
                let trailers = HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))]);
                let body = Full::new(Bytes::from(framed)).with_trailers(std::future::ready(Some(Ok(trailers))));
                (GRPC, Body::new(body))
            }
        };
        let mut response = Response::new(body);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }

    /// Answers with an error.
    pub(super) fn refuse(self, refusal: Refusal) -> Response<Body> {
        let Refusal { code, status, why, retry_s } = refusal;
        if self == Self::Grpc {
            return Status::new(code, why).into_http();
        }
        let mut response = Response::new(Body::from(RpcStatus { code: code.into(), message: why }.encode_to_vec()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
        if let Some(retry_s) = retry_s {
            headers.insert(header::RETRY_AFTER, retry_s.into());
        }
        response
    }
}
