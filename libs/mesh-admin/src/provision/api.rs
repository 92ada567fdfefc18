//! The JetStream API, asked directly.

use std::time::Duration;

use async_nats::{
    Client,
    jetstream::{self, Context, ErrorCode, account::Account, consumer::pull, response::Response, stream},
};
use mesh_proto::rights;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{ProvisionError, ProvisionOptions};

/// The JetStream API, asked directly.
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) context: Context,
}

/// How long one request may take; creating a replicated stream elects a leader first.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stream's store may fail before that is told.
const STORE_LIMIT: Duration = Duration::from_secs(2);
/// How long the question whether JetStream is ready may take.
const READY_TIMEOUT: Duration = Duration::from_secs(1);

impl Api {
    pub(super) async fn connect(options: &ProvisionOptions) -> Result<Self, ProvisionError> {
        mesh_bus::install_crypto();
        let mut connect = async_nats::ConnectOptions::new()
            .name(rights::PROVISIONER)
            .custom_inbox_prefix(format!("_INBOX_{}", rights::PROVISIONER))
            .request_timeout(Some(REQUEST_TIMEOUT));
        if let Some(seed) = &options.seed {
            connect = connect.nkey(seed.expose().to_owned());
        }
        if let Some(tls) = &options.tls {
            connect = connect
                .require_tls(true)
                .add_root_certificates(tls.ca.clone())
                .add_client_certificate(tls.cert.clone(), tls.key.clone());
        }
        let addresses: Vec<&str> = options.url.split(',').map(str::trim).collect();
        let deadline = tokio::time::Instant::now() + Duration::from_millis(options.wait_ms);
        let client = loop {
            match connect.clone().connect(addresses.clone()).await {
                Ok(client) => break client,
                Err(source) => {
                    let starting = matches!(
                        source.kind(),
                        async_nats::ConnectErrorKind::Io | async_nats::ConnectErrorKind::TimedOut
                    );
                    if !starting || tokio::time::Instant::now() >= deadline {
                        return Err(ProvisionError::Connect { url: options.url.clone(), source });
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        let mut context = jetstream::new(client.clone());
        context.set_timeout(REQUEST_TIMEOUT);
        Ok(Self { client, context })
    }

    pub(super) fn version(&self) -> String {
        self.client.server_info().version
    }

    /// Waits until JetStream serves this account.
    pub(super) async fn ready(&self, wait_ms: u64) -> Result<Account, ProvisionError> {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(wait_ms);
        // What is asked while a cluster elects its leader is never answered: ask again soon.
        let mut context = self.context.clone();
        context.set_timeout(READY_TIMEOUT);
        loop {
            let last = match call(&context, "INFO", &json!({})).await {
                Ok(account) => return Ok(account),
                Err(error) => error,
            };
            if tokio::time::Instant::now() >= deadline {
                return Err(ProvisionError::NoJetStream { waited_ms: wait_ms, last: chain(&last) });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        name: &str,
        body: &impl Serialize,
    ) -> Result<T, ProvisionError> {
        call(&self.context, name, body).await
    }

    /// All pages of a list of names.
    pub(super) async fn names(&self, call: &str, field: &str) -> Result<Vec<String>, ProvisionError> {
        let mut names = vec![];
        loop {
            let page: Value = self.call(call, &json!({"offset": names.len()})).await?;
            let found = page.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            names.extend(found.iter().filter_map(|n| n.as_str().map(str::to_owned)));
            let total = page.get("total").and_then(Value::as_u64).unwrap_or(0);
            if found.is_empty() || names.len() as u64 >= total {
                return Ok(names);
            }
        }
    }

    /// Creates a stream, and asks again where waiting helps:
    ///
    /// - A cluster that is forming elects a leader before every server has joined: until then, or for `wait_ms`, it has no
    ///   peers for the copies.
    /// - When the last stream of an account goes (on a fresh server, that of the probe), the server removes the empty folders
    ///   behind it a moment later; a stream that is made meanwhile may find its own folder gone.
    pub(super) async fn create_stream(&self, config: &stream::Config, wait_ms: u64) -> Result<(), ProvisionError> {
        let name = &config.name;
        let begun = tokio::time::Instant::now();
        loop {
            let made: Result<stream::Info, _> = self.call(&format!("STREAM.CREATE.{name}"), config).await;
            let Err(ProvisionError::Refused { what, code, text }) = made else { return made.map(drop) };
            let waited = begun.elapsed();
            if code == ErrorCode::CLUSTER_NO_PEERS.0 {
                if waited >= Duration::from_millis(wait_ms) {
                    let (name, copies) = (name.clone(), config.num_replicas);
                    return Err(ProvisionError::NoPeers { name, copies, waited_ms: wait_ms, text });
                }
            } else if code != ErrorCode::STREAM_CREATE.0 || waited >= STORE_LIMIT {
                return Err(ProvisionError::Refused { what, code, text });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(super) async fn create_consumer(
        &self,
        stream: &str,
        name: &str,
        config: &pull::Config,
        action: &str,
    ) -> Result<(), ProvisionError> {
        use jetstream::consumer::IntoConsumerConfig as _;
        let config = config.into_consumer_config();
        let body = json!({"stream_name": stream, "config": config, "action": action});
        let _: Value = self.call(&format!("CONSUMER.CREATE.{stream}.{name}"), &body).await?;
        Ok(())
    }
}

async fn call<T: DeserializeOwned>(context: &Context, name: &str, body: &impl Serialize) -> Result<T, ProvisionError> {
    match context.request(name.to_owned(), body).await {
        Ok(Response::Ok(answer)) => Ok(answer),
        Ok(Response::Err { error }) => {
            Err(ProvisionError::Refused { what: name.to_owned(), code: error.error_code().0, text: error.to_string() })
        }
        Err(source) => Err(ProvisionError::NoAnswer { what: name.to_owned(), source }),
    }
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
