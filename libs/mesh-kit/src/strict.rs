//! A question is answered as it was asked: one with a field that this service does not know is refused, for the answer would
//! be to another question. gRPC itself would drop the field.

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::header::CONTENT_TYPE,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use mesh_proto::wire;
use tonic::Status;

/// Largest gRPC request, bytes: what tonic decodes unless a service says otherwise.
pub const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes before a message of gRPC: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Lets questions of the contract through whose fields are all known. What a client streams in is data, as on Zenoh, and
/// passes.
pub(crate) async fn known_fields(request: Request, next: Next) -> Response {
    let method = mesh_proto::method(request.uri().path()).filter(|method| !method.is_client_streaming());
    let is_grpc =
        request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let (Some(method), true) = (method, is_grpc) else { return next.run(request).await };
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, REQUEST_BYTES_MAX + PREFIX).await else {
        let text = format!("the request has more than {REQUEST_BYTES_MAX} bytes, or broke off; send less at once");
        return Status::out_of_range(text).into_http::<Body>().into_response();
    };
    // What is compressed or cut short is left to the decoder.
    if let Some((0, message)) = body.split_first().and_then(|(flag, rest)| Some((*flag, rest.get(PREFIX - 1..)?)))
        && let Some(field) = wire::unknown(&method.input(), message)
    {
        let text =
            format!("{}: field {field} is not known here; leave it out, or update the service", method.input().name());
        return Status::invalid_argument(text).into_http::<Body>().into_response();
    }
    next.run(Request::from_parts(parts, Body::from(body))).await
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware, routing::post};
    use tonic::codegen::Service as _;

    use super::*;

    /// What a question of this method with this body is answered: `None` if it was let through.
    async fn refused(path: &str, kind: &str, body: Vec<u8>) -> Option<String> {
        let inner = Router::new().fallback(post(async || "let through")).layer(middleware::from_fn(known_fields));
        let request = Request::builder().method("POST").uri(path).header(CONTENT_TYPE, kind);
        let answer = inner.clone().call(request.body(Body::from(body)).unwrap()).await.unwrap();
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let message = header("grpc-message").unwrap_or_default();
        header("grpc-status").map(|code| format!("{code} {}", message.replace("%20", " ")))
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        [&[0, 0, 0, 0, u8::try_from(message.len()).unwrap()], message].concat()
    }

    #[tokio::test]
    async fn every_question_with_a_field_that_is_not_known_is_refused() {
        let (mut methods, mut members) = (0, 0);
        for service in mesh_proto::pool().services().filter(|service| service.full_name().starts_with("continuum.")) {
            // What streams in is data and no question: a later release may add to it.
            for method in service.methods().filter(|method| !method.is_client_streaming()) {
                let path = format!("/{}/{}", service.full_name(), method.name());
                methods += 1;
                assert_eq!(refused(&path, "application/grpc", framed(b"")).await, None, "{path}");
                for field in method.input().fields() {
                    members += 1;
                    // Empty text, an empty message or no item; or 0.
                    let wire = match field.kind().wire_type() {
                        _ if field.is_packed() => 2,
                        wire => wire as u8,
                    };
                    let tag = u8::try_from(field.number() << 3).unwrap() | wire;
                    let value: &[u8] = match wire {
                        1 => &[0; 8],
                        5 => &[0; 4],
                        _ => &[0],
                    };
                    let body = framed(&[&[tag], value].concat());
                    assert_eq!(refused(&path, "application/grpc", body).await, None, "{path} {}", field.name());
                }
                let message = framed(&[0xf8, 0x3f, 7]);
                for kind in ["application/grpc", "application/grpc+proto"] {
                    let told = refused(&path, kind, message.clone()).await.unwrap_or_default();
                    let right = format!("3 {}: field 1023 is not known here", method.input().name());
                    assert!(told.starts_with(&right), "{path}: {told}");
                }
            }
        }
        println!("{members} members of {methods} questions are taken, an unknown one of each is refused");
        assert!(methods > 40 && members > 80, "{methods}, {members}");
        for (path, kind) in [
            ("/grpc.health.v1.Health/Check", "application/grpc"),
            ("/continuum.intent.v1.IntentQueries/Get", "application/json"),
            ("/livez", "application/grpc"),
        ] {
            assert_eq!(refused(path, kind, framed(&[0xf8, 0x3f, 7])).await, None, "{path}");
        }
    }
}
