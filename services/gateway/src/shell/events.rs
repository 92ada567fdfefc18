//! Server-sent events: one stream of text per request, with signs of life, within the limit of streams.

use std::{convert::Infallible, time::Duration};

use axum::{body::Body, response::Response};
use futures::{Stream, StreamExt as _, stream};
use http::header;
use mesh_rest::{
    http::with,
    problem::{Kind, Problem},
};
use serde_json::{Value as Json, json};
use tokio::sync::OwnedSemaphorePermit;

use crate::shell::gateway::Gateway;

/// After this time without an event, a comment says that the stream lives.
const QUIET: Duration = Duration::from_secs(15);
/// How long a client waits before it connects again.
const RETRY_MS: u64 = 2_000;

/// One event: what it is called, where the stream goes on behind it, and what it says.
pub(crate) fn event(name: &str, id: Option<u64>, data: &Json) -> String {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("event: {name}\n{id}data: {}\n\n", mesh_proto::shown::json(&data.to_string()))
}

/// What ends a stream.
pub(crate) fn failure(detail: &str) -> String {
    event("error", None, &json!({"detail": detail}))
}

impl Gateway {
    /// Room for one more stream.
    ///
    /// # Errors
    /// When too many are open.
    pub(crate) fn stream_permit(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.inner.watches.clone().try_acquire_owned().map_err(|_| Problem {
            retry_after_s: Some(10),
            ..Problem::new(Kind::TooMany, "too many watches are open", "close one, or poll instead")
        })
    }

    /// The answer: these events as they come. They are taken one by one as the client reads them, so that nothing piles up
    /// for one that reads slowly.
    pub(crate) fn events(
        &self,
        permit: OwnedSemaphorePermit,
        events: impl Stream<Item = String> + Send + 'static,
    ) -> Response {
        let stopping = self.inner.mesh.stopping();
        let state = (Box::pin(events), permit, stopping, true);
        let text = stream::unfold(state, |(mut events, permit, stopping, first)| async move {
            if first {
                // The head goes out with it: the client knows that it is connected.
                let text = format!("retry: {RETRY_MS}\n\n");
                return Some((Ok::<_, Infallible>(text), (events, permit, stopping, false)));
            }
            let text = tokio::select! {
                next = events.next() => next?,
                () = tokio::time::sleep(QUIET) => ": still here\n\n".to_owned(),
                () = stopping.cancelled() => return None,
            };
            Some((Ok(text), (events, permit, stopping, false)))
        });
        let mut response = Response::new(Body::from_stream(text));
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/event-stream"));
        with(response, header::CACHE_CONTROL, "no-store")
    }
}
