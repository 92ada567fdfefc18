//! The port on which S3 and the policy API are answered.

use std::time::Duration;

use anyhow::Context as _;
use hyper::{
    Request,
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::{
    service::{S3Service, S3ServiceBuilder},
    validation::{AwsNameValidation, NameValidation},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{
    body::{Arrival, Watched},
    handler::{Auth, Handler},
    routes::{self, Routes},
};
use crate::objects::ObjectStore;

/// Connections at once; more wait.
const CONNECTIONS_MAX: usize = 1_024;
/// The headers of a request must arrive within this time.
const HEADER_LIMIT: Duration = Duration::from_secs(30);

/// Bucket names as in AWS, and the first segments of our own routes, which `s3s` tells from buckets only later.
struct Names;

impl NameValidation for Names {
    fn validate_bucket_name(&self, name: &str) -> bool {
        routes::is_route(name) || AwsNameValidation::new().validate_bucket_name(name)
    }
}

/// Opens the listener; returns it and its address.
pub(crate) async fn listen(address: &str) -> anyhow::Result<(TcpListener, String)> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address} for S3"))?;
    let address = listener.local_addr().context("read the S3 address")?;
    let host = if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
    let host = if address.is_ipv6() && host.contains(':') { format!("[{host}]") } else { host };
    Ok((listener, format!("http://{host}:{}", address.port())))
}

/// Answers until the process stops; finishes the requests that are under way then. The process's drain limit bounds the
/// wait.
pub(crate) async fn serve(store: ObjectStore, listener: TcpListener) -> anyhow::Result<()> {
    let stopping = store.mesh.stopping();
    let mut builder = S3ServiceBuilder::new(Handler(store.clone()));
    builder.set_auth(Auth(store.clone()));
    builder.set_route(Routes(store));
    builder.set_validation(Names);
    let service: S3Service = builder.build();
    let connection = |socket: TcpStream| serve_connection(socket, service.clone(), stopping.clone());
    mesh_kit::serve_connections(&listener, CONNECTIONS_MAX, &stopping, connection).await;
    Ok(())
}

async fn serve_connection(socket: TcpStream, service: S3Service, stopping: CancellationToken) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    // The unread rest of a refused body would be taken for the next request. Such a connection is closed, and the
    // answer says so.
    let service = service_fn(move |request: Request<Incoming>| {
        let (service, has_body) = (service.clone(), !request.body().is_end_stream());
        async move {
            let (mut parts, inner) = request.into_parts();
            let arrival = Arrival::default();
            parts.extensions.insert(arrival.clone());
            let body = s3s::Body::http_body(Watched { inner, arrival });
            let mut response = service.call(Request::from_parts(parts, body)).await?;
            if has_body && response.status().as_u16() >= 400 {
                response.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
            }
            Ok::<_, s3s::HttpError>(response)
        }
    });
    let connection = builder.serve_connection(TokioIo::new(socket), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = &error as &dyn std::error::Error, "S3 connection broken");
    }
}
