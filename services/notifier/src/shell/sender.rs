//! HTTP calls to the addresses that subscribers chose.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use mesh_outbound::{Guard, Guarded, chain, listed};
use tokio::time::timeout;

use crate::config::Config;

/// How long a callback may take.
const CALLBACK_LIMIT: Duration = Duration::from_secs(10);

/// Sends events to callbacks, and to nothing else on the network.
#[derive(Clone)]
pub(crate) struct Sender {
    guard: Guard,
    http: Guarded<Full<Bytes>>,
}

impl Sender {
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        let guard = Guard::new(listed(&config.callbacks_private), "callbacks_private");
        let http = guard.client(CALLBACK_LIMIT).context("read the system's certificates")?;
        Ok(Self { guard, http })
    }

    /// Whether a callback may be called at all; the error is the reason why not.
    pub(crate) fn admits(&self, callback: &str) -> Result<(), String> {
        let uri: http::Uri = callback.parse().map_err(|_| "the callback is not a valid address".to_owned())?;
        self.guard.admits(&uri)
    }

    /// Sends one event; the error is the reason why it was not accepted.
    pub(crate) async fn send(&self, callback: &str, body: Bytes) -> Result<(), String> {
        self.admits(callback)?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(callback)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, "continuum")
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        match timeout(CALLBACK_LIMIT, self.http.request(request)).await {
            // Only the status counts: the body is not read, and the connection is dropped with it.
            Ok(Ok(response)) if response.status().is_success() => Ok(()),
            Ok(Ok(response)) => Err(format!("it answered with status {}", response.status().as_u16())),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("it did not answer within {} s", CALLBACK_LIMIT.as_secs())),
        }
    }
}
