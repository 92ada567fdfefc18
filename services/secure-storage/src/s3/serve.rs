//! The port on which S3 and the policy API are answered.

use std::{collections::VecDeque, time::Duration};

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
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{
    body::{Arrival, Chunks, Watched},
    caller::{Auth, Handler},
    cors, form,
    front::Front,
    region,
    routes::Routes,
    rules::Rules,
    taken::{Pace, Taken},
};
use crate::objects::ObjectStore;

/// Connections at once; more wait.
const CONNECTIONS_MAX: usize = 512;
/// Bytes that a connection buffers of what it reads, and that it takes of an answer before it writes; the lines and
/// headers of a request are not longer.
const CONNECTION_BYTES: usize = 64 << 10;
/// Bytes that the kernel takes of an answer before a client does. It would take several MiB of each.
const KERNEL_BYTES: u32 = 512 << 10;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1_024;
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
    let listener = bind(address).await.with_context(|| format!("listen on {address} for S3"))?;
    let address = listener.local_addr().context("read the S3 address")?;
    let host = if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
    let host = if address.is_ipv6() && host.contains(':') { format!("[{host}]") } else { host };
    Ok((listener, format!("http://{host}:{}", address.port())))
}

async fn bind(address: &str) -> anyhow::Result<TcpListener> {
    let mut problem = anyhow::anyhow!("the name has no address");
    for address in tokio::net::lookup_host(address).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        // Accepted connections have it, too.
        socket.set_send_buffer_size(KERNEL_BYTES)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => problem = error.into(),
        }
    }
    Err(problem)
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
    builder.set_route(Front { store: store.clone(), routes: Routes(store.clone()), operations: operations.build() });
    builder.set_validation(AnyName);
    let service: S3Service = builder.build();
    let connection = |socket: TcpStream| serve_connection(socket, store.clone(), service.clone(), stopping.clone());
    mesh_kit::serve_connections(&listener, CONNECTIONS_MAX, &stopping, connection).await;
    Ok(())
}

async fn serve_connection(socket: TcpStream, store: ObjectStore, service: S3Service, stopping: CancellationToken) {
    let wait = Duration::from_millis(store.config.client_wait_ms);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT).max_buf_size(CONNECTION_BYTES);
    // The unread rest of a refused body would be taken for the next request. Such a connection is closed, and the
    // answer says so.
    let service = service_fn(move |request: Request<Incoming>| {
        let (store, service, has_body) = (store.clone(), service.clone(), !request.body().is_end_stream());
        async move {
            let (mut parts, inner) = request.into_parts();
            region::adopt(&mut parts, |key| {
                store.keys.access.get(key).map(|(_, credentials)| credentials.secret.clone())
            });
            form::adopt(&mut parts);
            let page = cors::Asked::of(&parts);
            if let Some(page) = &page {
                parts.extensions.insert(page.clone());
            }
            let arrival = Arrival::default();
            parts.extensions.insert(arrival.clone());
            let chunks = Chunks::of(&parts.headers);
            let (pace, read) = (Pace::new(wait), VecDeque::new());
            let body = s3s::Body::http_body(Watched { inner, arrival, chunks, pace, read });
            let mut response = service.call(Request::from_parts(parts, body)).await?;
            if has_body && response.status().as_u16() >= 400 {
                response.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
            }
            if let Some(page) = page {
                page.tell(&store, response.headers_mut());
            }
            Ok::<_, s3s::HttpError>(response)
        }
    });
    let connection = builder.serve_connection(TokioIo::new(Taken::new(socket, Pace::new(wait))), service);
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
