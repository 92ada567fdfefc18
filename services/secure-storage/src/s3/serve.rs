//! The port on which S3 and the policy API are answered.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use hyper::{
    Request,
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::{
    config::{S3Config, StaticConfigProvider},
    service::{S3Service, S3ServiceBuilder},
    validation::{AwsNameValidation, NameValidation},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{
    body::{Arrival, Chunks, Watched},
    front::Front,
    handler::{Auth, Handler},
    region,
    routes::Routes,
    rules::{FormsOnly, Rules},
    taken::Taken,
};
use crate::objects::ObjectStore;

/// Connections at once; more wait.
const CONNECTIONS_MAX: usize = 1_024;
/// A client takes some of its answer within this time, or is cut off.
const TAKE_LIMIT: Duration = Duration::from_secs(60);
/// Bytes of a file in a form at most: `s3s` has it in memory.
const FORM_FILE_MAX: u64 = 32 << 20;
/// The headers of a request must arrive within this time.
const HEADER_LIMIT: Duration = Duration::from_secs(30);

/// Any name: our own routes and `/s3/` look like buckets until [`Front`] has seen them.
struct AnyName;

impl NameValidation for AnyName {
    fn validate_bucket_name(&self, _: &str) -> bool {
        true
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
    let mut operations = S3ServiceBuilder::new(Handler(store.clone()));
    operations.set_auth(Auth(store.clone()));
    operations.set_access(Rules);
    operations.set_validation(AwsNameValidation::new());
    let mut builder = S3ServiceBuilder::new(Handler(store.clone()));
    builder.set_auth(Auth(store.clone()));
    builder.set_access(FormsOnly);
    builder.set_route(Front { store: store.clone(), routes: Routes(store.clone()), operations: operations.build() });
    builder.set_validation(AnyName);
    let mut limits = S3Config::default();
    limits.post_object_max_file_size = FORM_FILE_MAX;
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(limits))));
    let service: S3Service = builder.build();
    let connection = |socket: TcpStream| serve_connection(socket, store.clone(), service.clone(), stopping.clone());
    mesh_kit::serve_connections(&listener, CONNECTIONS_MAX, &stopping, connection).await;
    Ok(())
}

async fn serve_connection(socket: TcpStream, store: ObjectStore, service: S3Service, stopping: CancellationToken) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    // The unread rest of a refused body would be taken for the next request. Such a connection is closed, and the
    // answer says so.
    let service = service_fn(move |request: Request<Incoming>| {
        let (store, service, has_body) = (store.clone(), service.clone(), !request.body().is_end_stream());
        async move {
            let (mut parts, inner) = request.into_parts();
            region::adopt(&mut parts, |key| {
                store.keys.access.get(key).map(|(_, credentials)| credentials.secret.clone())
            });
            let arrival = Arrival::default();
            parts.extensions.insert(arrival.clone());
            let body = s3s::Body::http_body(Watched { inner, arrival, chunks: Chunks::new() });
            let mut response = service.call(Request::from_parts(parts, body)).await?;
            if has_body && response.status().as_u16() >= 400 {
                response.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
            }
            Ok::<_, s3s::HttpError>(response)
        }
    });
    let connection = builder.serve_connection(TokioIo::new(Taken::new(socket, TAKE_LIMIT)), service);
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
