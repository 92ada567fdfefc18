//! The connection: what all of the bus shares, and the writes that carry no condition.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, RequestErrorKind, ServerAddr, ServerError,
    client::PublishErrorKind,
};
use bytes::Bytes;
use futures::StreamExt as _;
use mesh_proto::{contract, contract::WRITE_PREFIX};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Bucket, Log, Pull, PullError, Writer,
    gather::Gatherer,
    headers,
    writer::{self, Core},
};
use mesh_core::Outgoing;

/// How to reach the bus.
#[derive(Clone)]
pub struct Options {
    /// Server addresses, separated by commas.
    pub url: String,
    /// Name of the service: connection name, inbox prefix and `ce-source`.
    pub service: String,
    /// NKey seed; never printed.
    pub seed: Option<String>,
    /// Where the JetStream API is imported; `$JS.API` inside the account that owns the streams.
    pub api_prefix: String,
    /// Mutual TLS.
    pub tls: Option<Tls>,
    /// After so many milliseconds an unanswered write is settled by reading.
    pub ack_timeout_ms: u64,
    /// So many milliseconds a write without condition is tried.
    pub publish_limit_ms: u64,
    /// So many milliseconds a read is tried.
    pub read_limit_ms: u64,
    /// So many milliseconds the first connection is tried.
    pub connect_limit_ms: u64,
    /// So many milliseconds `close` waits for what is in hand.
    pub close_limit_ms: u64,
    /// Decisions that may wait in one stream's writer; more callers wait before they are let in.
    pub queue_limit: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            service: "continuum".to_owned(),
            seed: None,
            api_prefix: "BUS.API".to_owned(),
            tls: None,
            ack_timeout_ms: 5_000,
            publish_limit_ms: 30_000,
            read_limit_ms: 10_000,
            connect_limit_ms: 30_000,
            close_limit_ms: 5_000,
            queue_limit: 10_000,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("url", &self.url)
            .field("service", &self.service)
            .field("seed", &self.seed.as_ref().map(|_| "hidden"))
            .field("api_prefix", &self.api_prefix)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Files of mutual TLS, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificate authority of the server.
    pub ca: PathBuf,
    /// Own certificate chain.
    pub cert: PathBuf,
    /// Own private key.
    pub key: PathBuf,
}

/// How the connection stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Is there a connection now?
    pub connected: bool,
    /// Rises with each connection, from 1.
    pub epoch: u64,
    /// A stream that refuses writes because it or its disk is full.
    pub full: Option<String>,
}

/// What the bus counts, since it connected.
#[derive(Debug, Default)]
pub struct Stats {
    /// Messages stored.
    pub published: AtomicU64,
    /// Atomic batches stored.
    pub batches: AtomicU64,
    /// Messages stored in atomic batches.
    pub batch_messages: AtomicU64,
    /// Decisions whose entity had moved.
    pub stale: AtomicU64,
    /// Decisions settled by reading their entity.
    pub settled: AtomicU64,
    /// Writes sent again.
    pub resent: AtomicU64,
    /// Connections after the first.
    pub reconnects: AtomicU64,
    /// Gaps that tails found and filled.
    pub gaps_filled: AtomicU64,
}

/// The bus cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// An address is not one.
    #[error("read bus address {url:?}")]
    Address {
        /// What was given.
        url: String,
        /// Why it is none.
        #[source]
        source: std::io::Error,
    },
    /// The server does not know this identity.
    #[error("sign in to the bus at {url} as {service:?}: give it the seed that its configuration was made with")]
    Identity {
        /// Where.
        url: String,
        /// As whom.
        service: String,
        /// What the client says.
        #[source]
        source: async_nats::ConnectError,
    },
    /// Nobody answered within the limit.
    #[error("reach the bus at {url} within {limit_ms} ms: is nats-server running there?")]
    Unreachable {
        /// Where.
        url: String,
        /// How long it was tried, milliseconds.
        limit_ms: u64,
        /// The last attempt's failure.
        #[source]
        source: Option<async_nats::ConnectError>,
    },
}

/// A message without condition was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The stream, or its disk, is full, and stayed so.
    #[error("publish to {subject}: stream {stream} is full; raise its limit or free disk space")]
    Full {
        /// The full stream.
        stream: String,
        /// Where it was published.
        subject: String,
    },
    /// The message is larger than the server takes.
    #[error("publish to {subject}: {size} bytes, of at most {limit}")]
    TooLarge {
        /// Where it was published.
        subject: String,
        /// Its size in bytes, headers included; 0 if the server did not say.
        size: usize,
        /// The limit in bytes; 0 if the server did not say.
        limit: usize,
    },
    /// This service has no right to it.
    #[error("publish to {subject}: not permitted to this identity")]
    Denied {
        /// Where it was published.
        subject: String,
    },
    /// The stream refuses it, and will again.
    #[error("publish to {subject}: refused with code {code}: {description}")]
    Refused {
        /// Where it was published.
        subject: String,
        /// JetStream's error code.
        code: u64,
        /// JetStream's words.
        description: String,
    },
    /// No stream answered within the limit.
    #[error("publish to {subject}: no answer within {limit_ms} ms")]
    Unanswered {
        /// Where it was published.
        subject: String,
        /// The limit, milliseconds.
        limit_ms: u64,
    },
    /// The subject is not one.
    #[error("publish to {subject:?}: not a subject")]
    Subject {
        /// What was given.
        subject: String,
    },
    /// The bus was closed.
    #[error("publish: the bus is closed")]
    Closed,
}

/// A request without an answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody listens there.
    #[error("ask {subject}: nobody listens there")]
    Nobody {
        /// Where it was asked.
        subject: String,
    },
    /// No answer in time, or the connection broke.
    #[error("ask {subject}: no answer within {limit_ms} ms")]
    Unanswered {
        /// Where it was asked.
        subject: String,
        /// The limit, milliseconds.
        limit_ms: u64,
    },
    /// This service has no right to it.
    #[error("ask {subject}: not permitted to this identity")]
    Denied {
        /// Where it was asked.
        subject: String,
    },
    /// The subject or body is not acceptable.
    #[error("ask {subject}: not a subject, or a body too large")]
    Unacceptable {
        /// Where it was asked.
        subject: String,
    },
    /// The bus was closed.
    #[error("ask: the bus is closed")]
    Closed,
}

/// A subscription was not made.
#[derive(Debug, thiserror::Error)]
#[error("subscribe to {subject}")]
pub struct SubscribeError {
    subject: String,
    #[source]
    source: async_nats::SubscribeError,
}

/// A message that is not stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plain {
    /// Where it was published.
    pub subject: String,
    /// Where an answer is awaited.
    pub reply: Option<String>,
    /// Headers; of several values the last.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: Bytes,
}

impl From<Message> for Plain {
    fn from(message: Message) -> Self {
        let named = |(name, values): (&async_nats::HeaderName, &Vec<async_nats::HeaderValue>)| {
            values.last().map(|v| (name.to_string(), v.to_string()))
        };
        Self {
            headers: message.headers.iter().flat_map(HeaderMap::iter).filter_map(named).collect(),
            subject: message.subject.into_string(),
            reply: message.reply.map(async_nats::Subject::into_string),
            body: message.payload,
        }
    }
}

/// Messages of a subject as they are published; what arrives while disconnected is not seen.
pub struct Subscription(async_nats::Subscriber);

impl Subscription {
    /// The next message; `None` once the bus is closed.
    pub async fn next(&mut self) -> Option<Plain> {
        self.0.next().await.map(Plain::from)
    }
}

/// What tells a waiting write that its answer will not come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Signal {
    connected: bool,
    epoch: u64,
    denials: u64,
}

/// Why a request brought no answer.
#[derive(Debug)]
pub(crate) enum AskError {
    /// The connection broke: whether it was done is unknown.
    Lost,
    /// No answer in time: whether it was done is unknown.
    TimedOut,
    /// The server knew nobody to give it to.
    NoResponders,
    /// No right to it.
    Denied,
    /// Larger than the server takes.
    TooLarge { size: usize, limit: usize },
    /// Not a subject.
    Subject,
    /// The bus is closed.
    Closed,
}

/// Denials that are remembered for those who wait.
const DENIALS_MAX: usize = 256;

/// The connection and what belongs to it; everything made from a [`Bus`] holds it.
pub(crate) struct Link {
    pub(crate) options: Options,
    pub(crate) stats: Stats,
    client: OnceLock<Client>,
    signal: watch::Sender<Signal>,
    state: watch::Sender<State>,
    denied: Mutex<VecDeque<(u64, String)>>,
    full: Mutex<BTreeSet<String>>,
    any_full: AtomicBool,
    pub(crate) tasks: TaskTracker,
    /// Close has begun: nothing new is taken in, and waiting for a full stream ends.
    pub(crate) closing: CancellationToken,
    /// The end: whoever still waits is told so.
    pub(crate) ended: CancellationToken,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    fn new(options: Options) -> Self {
        Self {
            options,
            stats: Stats::default(),
            client: OnceLock::new(),
            signal: watch::Sender::default(),
            state: watch::Sender::default(),
            denied: Mutex::default(),
            full: Mutex::default(),
            any_full: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            ended: CancellationToken::new(),
        }
    }

    pub(crate) fn client(&self) -> Result<&Client, AskError> {
        self.client.get().ok_or(AskError::Closed)
    }

    /// A JetStream API subject.
    pub(crate) fn api(&self, call: &str) -> String {
        format!("{}.{call}", self.options.api_prefix)
    }

    fn heard(&self, event: &Event) {
        match event {
            Event::Connected => self.follow(Some(true)),
            Event::Disconnected | Event::Closed => self.follow(Some(false)),
            Event::ServerError(ServerError::Other(text)) => self.denied(text),
            _ => {}
        }
    }

    /// Takes over the client's own account of its connection, which is the truth even if an event was lost.
    fn follow(&self, connected: Option<bool>) {
        let Some(client) = self.client.get() else { return };
        let epoch = client.statistics().connects.load(Relaxed);
        let connected =
            connected.unwrap_or_else(|| client.connection_state() == async_nats::connection::State::Connected);
        self.stats.reconnects.store(epoch.saturating_sub(1), Relaxed);
        self.signal.send_if_modified(|now| {
            let next = Signal { connected, epoch, ..*now };
            std::mem::replace(now, next) != next
        });
        self.state.send_if_modified(|now| {
            let moved = (now.connected, now.epoch) != (connected, epoch);
            (now.connected, now.epoch) = (connected, epoch);
            moved
        });
    }

    /// The protocol has no code for a violation, nor any other answer: the subject is taken from its text
    /// (`Permissions Violation for Publish to "x"`). If that text changes, writes end by their limits instead.
    fn denied(&self, text: &str) {
        let Some(subject) = text.split('"').nth(1).filter(|_| text.starts_with("Permissions Violation for Publish"))
        else {
            return;
        };
        tracing::warn!(subject, "publish not permitted");
        let mut denied = lock(&self.denied);
        let number = denied.back().map_or(1, |(n, _)| n + 1);
        denied.push_back((number, subject.to_owned()));
        if denied.len() > DENIALS_MAX {
            denied.pop_front();
        }
        drop(denied);
        self.signal.send_modify(|now| now.denials = number);
    }

    pub(crate) fn was_denied(&self, subject: &str, after: u64) -> bool {
        lock(&self.denied).iter().any(|(number, denied)| *number > after && denied == subject)
    }

    /// The denials heard so far, for [`Link::was_denied`].
    pub(crate) fn denials(&self) -> u64 {
        self.signal.borrow().denials
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.signal.borrow().epoch
    }

    /// Returns once connected; fails if the bus is closed first.
    pub(crate) async fn connected(&self) -> Result<(), AskError> {
        if self.signal.borrow().connected {
            return if self.ended.is_cancelled() { Err(AskError::Closed) } else { Ok(()) };
        }
        let mut signal = self.signal.subscribe();
        tokio::select! {
            _ = signal.wait_for(|now| now.connected) => Ok(()),
            () = self.ended.cancelled() => Err(AskError::Closed),
        }
    }

    /// Returns when the connection has been made anew since `epoch`.
    pub(crate) async fn reconnected(&self, epoch: u64) {
        let mut signal = self.signal.subscribe();
        let _ = signal.wait_for(|now| now.connected && now.epoch != epoch).await;
    }

    /// Waits, at most until the bus is closed.
    pub(crate) async fn pause(&self, wait: Duration) -> Result<(), AskError> {
        tokio::select! {
            () = sleep(wait) => Ok(()),
            () = self.ended.cancelled() => Err(AskError::Closed),
        }
    }

    /// A request and its answer. A broken connection, a denial and the end are noticed at once.
    pub(crate) async fn ask(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        body: Bytes,
        limit: Duration,
    ) -> Result<Message, AskError> {
        self.connected().await?;
        let mut signal = self.signal.subscribe();
        let start = *signal.borrow_and_update();
        let mut request = async_nats::Request::new().payload(body).timeout(None);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let subject = async_nats::Subject::from(subject);
        let answer = self.client()?.send_request(subject.clone(), request);
        tokio::pin!(answer);
        let late = sleep(limit);
        tokio::pin!(late);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer.map_err(|e| match e.kind() {
                    RequestErrorKind::NoResponders => AskError::NoResponders,
                    RequestErrorKind::TimedOut => AskError::TimedOut,
                    RequestErrorKind::InvalidSubject => AskError::Subject,
                    RequestErrorKind::MaxPayloadExceeded => {
                        AskError::TooLarge { size: 0, limit: self.client().map_or(0, Client::max_payload) }
                    }
                    _ => AskError::Lost,
                }),
                _ = signal.changed() => {
                    let now = *signal.borrow_and_update();
                    if now.epoch != start.epoch {
                        return Err(AskError::Lost);
                    }
                    if now.denials != start.denials && self.was_denied(&subject, start.denials) {
                        return Err(AskError::Denied);
                    }
                }
                () = &mut late => return Err(AskError::TimedOut),
                () = self.ended.cancelled() => return Err(AskError::Closed),
            }
        }
    }

    /// Publishes without an answer.
    pub(crate) async fn send(&self, subject: String, headers: Option<HeaderMap>, body: Bytes) -> Result<(), AskError> {
        self.connected().await?;
        let client = self.client()?;
        let length = body.len();
        let sent = match headers {
            Some(headers) => client.publish_with_headers(subject, headers, body).await,
            None => client.publish(subject, body).await,
        };
        sent.map_err(|e| match e.kind() {
            PublishErrorKind::MaxPayloadExceeded => AskError::TooLarge { size: length, limit: client.max_payload() },
            PublishErrorKind::InvalidSubject => AskError::Subject,
            PublishErrorKind::Send => AskError::Closed,
        })
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.signal.borrow().connected
    }

    /// Publishes without an answer, also in the moments before the end.
    pub(crate) async fn send_now(&self, subject: async_nats::Subject, body: Bytes) -> Result<(), AskError> {
        if !self.is_connected() {
            return Err(AskError::Lost);
        }
        self.client()?.publish(subject, body).await.map_err(|_| AskError::Closed)
    }

    /// Publishes a request whose answers go to `reply`.
    pub(crate) async fn send_for(&self, subject: String, reply: String, body: Bytes) -> Result<(), AskError> {
        self.connected().await?;
        self.client()?.publish_with_reply(subject, reply, body).await.map_err(|e| match e.kind() {
            PublishErrorKind::Send => AskError::Closed,
            _ => AskError::Subject,
        })
    }

    /// Remembers that a stream is full, or no longer; cheap while none is.
    pub(crate) fn mark_full(&self, stream: &str, is_full: bool) {
        if !is_full && !self.any_full.load(Relaxed) {
            return;
        }
        let mut full = lock(&self.full);
        let changed = if is_full { full.insert(stream.to_owned()) } else { full.remove(stream) };
        self.any_full.store(!full.is_empty(), Relaxed);
        let first = full.first().cloned();
        drop(full);
        if changed {
            match is_full {
                true => tracing::error!(stream, "stream is full: writes wait"),
                false => tracing::info!(stream, "stream takes writes again"),
            }
            self.state.send_modify(|state| state.full = first);
        }
    }

    pub(crate) fn ack_timeout(&self) -> Duration {
        Duration::from_millis(self.options.ack_timeout_ms)
    }

    pub(crate) fn read_limit(&self) -> Duration {
        Duration::from_millis(self.options.read_limit_ms)
    }
}

/// JetStream's answer to a write.
#[derive(serde::Deserialize)]
struct Answer {
    #[serde(default)]
    seq: u64,
    error: Option<Refusal>,
}

#[derive(serde::Deserialize)]
struct Refusal {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// What JetStream said of a write.
pub(crate) enum Said {
    /// It is stored, now or before; the last one of a batch has this sequence.
    Stored(u64),
    /// It is not.
    Refused { code: u64, description: String },
}

/// Reads an answer; `None` if it is none.
pub(crate) fn said(message: &Message) -> Option<Said> {
    let answer: Answer = serde_json::from_slice(&message.payload).ok()?;
    match answer.error {
        Some(error) => Some(Said::Refused { code: error.err_code, description: error.description }),
        None if answer.seq > 0 => Some(Said::Stored(answer.seq)),
        None => None,
    }
}

/// JetStream error codes that are acted on.
pub(crate) mod code {
    /// A limit of the stream with `discard: new`, or its disk.
    const STORE_FAILED: u64 = 10077;
    /// A limit of the account.
    const ACCOUNT_RESOURCES: u64 = 10002;
    /// A limit of the server.
    const INSUFFICIENT_RESOURCES: u64 = 10023;
    /// A limit of the server's storage.
    const STORAGE_RESOURCES: u64 = 10047;
    /// Larger than the stream takes.
    const MESSAGE_TOO_LARGE: u64 = 10054;
    /// Headers larger than the server takes.
    const HEADER_TOO_LARGE: u64 = 10097;
    /// The entity moved; the number in the text is its last sequence.
    const STALE: u64 = 10071;
    /// The entity moved, or another write of it is in flight.
    const STALE_OR_IN_FLIGHT: u64 = 10164;
    /// The batch was lost, incomplete, or refused for its size or rights.
    const BATCH_INCOMPLETE: u64 = 10176;
    /// A message of the batch is known.
    const BATCH_KNOWN: u64 = 10201;
    /// Too many batches are open.
    const BATCHES_OPEN: u64 = 10210;
    /// A message with this id is in flight.
    const KNOWN_IN_FLIGHT: u64 = 10158;
    /// Not available for the moment: starting, stepping down, without a leader.
    const PASSING: [u64; 4] = [10008, 10009, 10015, 10118];

    pub(crate) fn is_full(code: u64) -> bool {
        matches!(code, STORE_FAILED | ACCOUNT_RESOURCES | INSUFFICIENT_RESOURCES | STORAGE_RESOURCES)
    }

    pub(crate) fn is_too_large(code: u64) -> bool {
        matches!(code, MESSAGE_TOO_LARGE | HEADER_TOO_LARGE)
    }

    /// Not for a reason of the message: it will be taken later.
    pub(crate) fn is_passing(code: u64) -> bool {
        code == BATCHES_OPEN || PASSING.contains(&code)
    }

    /// May it be stored already, or be taken if sent again as it is?
    pub(crate) fn is_open(code: u64) -> bool {
        matches!(code, STALE | STALE_OR_IN_FLIGHT | BATCH_INCOMPLETE | BATCH_KNOWN | KNOWN_IN_FLIGHT)
    }
}

/// Waits between attempts: doubling from a start to an end.
pub(crate) struct Backoff {
    next: Duration,
    end: Duration,
}

impl Backoff {
    pub(crate) fn new(start_ms: u64, end_ms: u64) -> Self {
        Self { next: Duration::from_millis(start_ms), end: Duration::from_millis(end_ms) }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.end);
        wait
    }
}

/// One connection to the bus. Cheap to clone; ends with [`Bus::close`] or its last clone.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

struct Inner {
    link: Arc<Link>,
    writers: Mutex<BTreeMap<String, Arc<Core>>>,
    gatherers: Mutex<BTreeMap<String, Arc<Gatherer>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.link.closing.cancel();
        self.link.ended.cancel();
    }
}

/// First waits between attempts to reconnect are this long, milliseconds.
const RECONNECT_MS: u64 = 20;
/// So many attempts are made that closely; those after it are made each `RECONNECT_SLOW_MS`.
const RECONNECT_CLOSE: usize = 250;
const RECONNECT_SLOW_MS: u64 = 200;
/// How often the client's account of the connection is read, beside its events.
const FOLLOW_MS: u64 = 500;
/// Messages that a subscription may hold; beyond it the newest are lost, and tails fill the gap.
const SUBSCRIPTION_MAX: usize = 16_384;
/// Unconditional writes in flight at once.
const WINDOW: usize = 256;

impl Bus {
    /// Connects; tries again within the stated limit, and from then on reconnects for ever.
    pub async fn connect(options: Options) -> Result<Bus, ConnectError> {
        // Two providers are compiled in; without a choice the first TLS handshake would panic. Set before: kept.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let url = options.url.clone();
        let addresses: Result<Vec<ServerAddr>, _> = url.split(',').map(|a| a.trim().parse()).collect();
        let addresses = addresses.map_err(|source| ConnectError::Address { url: url.clone(), source })?;
        let link = Arc::new(Link::new(options.clone()));
        let limit = Duration::from_millis(options.connect_limit_ms);
        let deadline = Instant::now() + limit;
        let mut backoff = Backoff::new(20, 500);
        let mut failure = None;
        let client = loop {
            let attempt = connect_options(&options, &link).connect(addresses.clone());
            match tokio::time::timeout_at(deadline, attempt).await {
                Ok(Ok(client)) => break client,
                Ok(Err(source)) => match source.kind() {
                    ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                        return Err(ConnectError::Identity { url, service: options.service, source });
                    }
                    _ => failure = Some(source),
                },
                Err(_) => return Err(unreachable(url, &options, failure)),
            }
            if tokio::time::timeout_at(deadline, sleep(backoff.next())).await.is_err() {
                return Err(unreachable(url, &options, failure));
            }
        };
        let _ = link.client.set(client);
        link.follow(Some(true));
        let watched = Arc::downgrade(&link);
        let ended = link.ended.clone();
        link.tasks.spawn(async move {
            while timeout(Duration::from_millis(FOLLOW_MS), ended.cancelled()).await.is_err() {
                let Some(link) = watched.upgrade() else { break };
                link.follow(None);
            }
        });
        Ok(Bus { inner: Arc::new(Inner { link, writers: Mutex::default(), gatherers: Mutex::default() }) })
    }

    /// Name of the service that connected.
    pub fn service(&self) -> &str {
        &self.inner.link.options.service
    }

    /// How the connection stands, and each change of it.
    pub fn state(&self) -> watch::Receiver<State> {
        self.inner.link.state.subscribe()
    }

    /// What was counted.
    pub fn stats(&self) -> &Stats {
        &self.inner.link.stats
    }

    /// Publishes one message without condition; returns its sequence once it is on disk. It is sent again with its
    /// id until it is stored or the limit has passed; if it was stored before, that is success.
    pub async fn publish(&self, message: &Outgoing) -> Result<u64, PublishError> {
        let link = &self.inner.link;
        let kind = contract().stream(&message.stream).map(|spec| spec.kind);
        if kind == Some(contract::Kind::Commands) {
            return self.gatherer(&message.stream).publish(message).await;
        }
        let headers = headers::of(message, &link.options.service);
        link.store(&message.stream, ingest(&message.stream, &message.subject), headers, &message.body).await
    }

    fn gatherer(&self, stream: &str) -> Arc<Gatherer> {
        let mut gatherers = lock(&self.inner.gatherers);
        if let Some(found) = gatherers.get(stream) {
            return found.clone();
        }
        let made = Gatherer::new(self.inner.link.clone(), stream);
        gatherers.insert(stream.to_owned(), made.clone());
        made
    }

    /// Publishes a message that could not be handled, with the reason, to be listed, shown and replayed. Its body is
    /// left as it came, with the content type it came with.
    pub async fn publish_dead(
        &self,
        letter: &Outgoing,
        reason: &str,
        content_type: Option<&str>,
    ) -> Result<u64, PublishError> {
        let link = &self.inner.link;
        let headers = headers::dead(headers::of(letter, &link.options.service), reason, content_type);
        link.store(&letter.stream, ingest(&letter.stream, &letter.subject), headers, &letter.body).await
    }

    /// Publishes messages without condition, many at a time, in no particular order across subjects. Those of
    /// derived streams travel in atomic batches where that is faster. Returns once all are stored, or with the
    /// first failure once none is in flight.
    pub async fn publish_many(&self, messages: Vec<Outgoing>) -> Result<(), PublishError> {
        let link = &self.inner.link;
        let mut left = vec![];
        let mut by_stream: BTreeMap<String, Vec<Outgoing>> = BTreeMap::new();
        for message in messages {
            by_stream.entry(message.stream.clone()).or_default().push(message);
        }
        for (stream, messages) in by_stream {
            let derived = contract().stream(&stream).is_some_and(|s| s.kind == contract::Kind::Derived);
            if !derived || messages.len() < writer::BATCH_WORTH {
                left.extend(messages);
                continue;
            }
            for chunk in messages.chunks(writer::BATCH_MAX) {
                let part = |index: usize| {
                    let message = &chunk[index];
                    let subject = ingest(&stream, &message.subject);
                    (subject, headers::of(message, &link.options.service), message.body.clone())
                };
                if writer::commit_batch(link, chunk.len(), part).await.is_none() {
                    left.extend_from_slice(chunk);
                }
            }
        }
        let mut writes = futures::stream::iter(left)
            .map(|message| async move { self.publish(&message).await })
            .buffer_unordered(WINDOW);
        let mut first = Ok(());
        while let Some(written) = writes.next().await {
            if let (Err(error), true) = (written, first.is_ok()) {
                first = Err(error);
            }
        }
        first
    }

    /// Publishes a message that is not stored.
    pub async fn announce(&self, subject: &str, body: Bytes) -> Result<(), PublishError> {
        self.inner.link.send(subject.to_owned(), None, body).await.map_err(|e| publish_error(e, subject, 0))
    }

    /// The writer of decisions to a stream; one batcher per stream and bus.
    pub fn writer(&self, stream: &str) -> Writer {
        let mut writers = lock(&self.inner.writers);
        let core =
            writers.entry(stream.to_owned()).or_insert_with(|| Core::start(self.inner.link.clone(), stream)).clone();
        drop(writers);
        Writer::new(core, self.clone())
    }

    /// Joins those who read a durable: one of them gets its messages, the others stand by.
    pub async fn pull(&self, stream: &str, durable: &str) -> Result<Pull, PullError> {
        Pull::join(self.inner.link.clone(), stream, durable).await
    }

    /// A stream, to be read by sequence.
    pub fn log(&self, stream: &str) -> Log {
        Log::new(self.inner.link.clone(), stream)
    }

    /// A key-value bucket.
    pub fn bucket(&self, name: &str) -> Bucket {
        Bucket::new(self.inner.link.clone(), name)
    }

    /// Follows a subject, wildcards allowed; nothing is stored or filled in.
    pub async fn subscribe(&self, subject: &str) -> Result<Subscription, SubscribeError> {
        let failed = |source| SubscribeError { subject: subject.to_owned(), source };
        let closed = || failed(async_nats::SubscribeError::new(async_nats::SubscribeErrorKind::Other));
        let client = self.inner.link.client().map_err(|_| closed())?;
        client.subscribe(subject.to_owned()).await.map(Subscription).map_err(failed)
    }

    /// Answers a request.
    pub async fn reply(&self, to: &str, body: Bytes) -> Result<(), PublishError> {
        self.announce(to, body).await
    }

    /// Asks one who listens on a subject; the first answer counts.
    pub async fn request(&self, subject: &str, body: Bytes, limit: Duration) -> Result<Plain, RequestError> {
        let answer = self.inner.link.ask(subject.to_owned(), None, body, limit).await;
        answer.map(Plain::from).map_err(|e| request_error(e, subject, limit))
    }

    /// Asks all who listen on a subject; returns the answers that came within `wait`.
    pub async fn request_all(&self, subject: &str, body: Bytes, wait: Duration) -> Result<Vec<Plain>, RequestError> {
        let link = &self.inner.link;
        let failed = |e| request_error(e, subject, wait);
        let client = link.client().map_err(failed)?;
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|_| failed(AskError::Subject))?;
        link.send_for(subject.to_owned(), inbox, body).await.map_err(failed)?;
        let mut found = vec![];
        let deadline = Instant::now() + wait;
        while let Ok(Some(answer)) = tokio::time::timeout_at(deadline, answers.next()).await {
            if answer.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
                break;
            }
            found.push(Plain::from(answer));
        }
        let _ = answers.unsubscribe().await;
        Ok(found)
    }

    /// Takes in nothing more, settles what is in hand, flushes and disconnects, all within the stated limit.
    /// Decisions that wait for a full stream are answered so at once.
    pub async fn close(&self) {
        let link = &self.inner.link;
        let limit = Duration::from_millis(link.options.close_limit_ms);
        link.closing.cancel();
        let writers = std::mem::take(&mut *lock(&self.inner.writers));
        let settle = futures::future::join_all(writers.values().map(|core| core.drained()));
        if timeout(limit, settle).await.is_err() {
            tracing::warn!(limit_ms = limit.as_millis() as u64, "closed the bus with decisions in hand");
        }
        if let Ok(client) = link.client() {
            // The pulls' last acknowledgements are already on their way when their tasks end.
            link.ended.cancel();
            link.tasks.close();
            let _ = timeout(limit, link.tasks.wait()).await;
            if link.signal.borrow().connected {
                let _ = timeout(limit, client.flush()).await;
            }
            let _ = timeout(limit, client.drain()).await;
        }
    }
}

impl Link {
    /// Stores one message without condition: tried until it is stored or the limit has passed.
    pub(crate) async fn store(
        &self,
        stream: &str,
        subject: String,
        headers: HeaderMap,
        body: &Bytes,
    ) -> Result<u64, PublishError> {
        let limit_ms = self.options.publish_limit_ms;
        let deadline = Instant::now() + Duration::from_millis(limit_ms);
        let mut backoff = Backoff::new(10, 500);
        let mut full = false;
        let mut silent = 0;
        loop {
            let attempt = self.ask(subject.clone(), Some(headers.clone()), body.clone(), self.ack_timeout());
            let Ok(answer) = tokio::time::timeout_at(deadline, attempt).await else {
                return Err(if full {
                    PublishError::Full { stream: stream.to_owned(), subject }
                } else {
                    PublishError::Unanswered { subject, limit_ms }
                });
            };
            silent = if matches!(answer, Err(AskError::TimedOut)) { silent + 1 } else { 0 };
            // A server whose disk is full says nothing at all to a write.
            full = silent >= writer::SILENT_MIN;
            if full {
                self.mark_full(stream, true);
            }
            match answer.as_ref().map(said) {
                Ok(Some(Said::Stored(sequence))) => {
                    self.stats.published.fetch_add(1, Relaxed);
                    self.mark_full(stream, false);
                    return Ok(sequence);
                }
                Ok(Some(Said::Refused { code, description })) => match code {
                    _ if code::is_full(code) => {
                        self.mark_full(stream, true);
                        full = true;
                    }
                    _ if code::is_too_large(code) => {
                        return Err(PublishError::TooLarge { subject, size: body.len(), limit: 0 });
                    }
                    _ if code::is_passing(code) || code::is_open(code) => {}
                    _ => return Err(PublishError::Refused { subject, code, description }),
                },
                Ok(None) | Err(AskError::Lost | AskError::TimedOut | AskError::NoResponders) => {}
                Err(_) => {
                    let error = answer.err().unwrap_or(AskError::Closed);
                    return Err(publish_error(error, &subject, body.len()));
                }
            }
            self.stats.resent.fetch_add(1, Relaxed);
            // While disconnected the next attempt itself waits for the connection.
            let wait = backoff.next().min(deadline.saturating_duration_since(Instant::now()));
            self.pause(wait).await.map_err(|e| publish_error(e, &subject, 0))?;
        }
    }
}

/// Where a message of a stream is published: through the write prefix, if the stream has it.
pub(crate) fn ingest(stream: &str, subject: &str) -> String {
    match contract().stream(stream) {
        Some(spec) if spec.has_write_prefix() => format!("{WRITE_PREFIX}{subject}"),
        _ => subject.to_owned(),
    }
}

fn publish_error(error: AskError, subject: &str, length: usize) -> PublishError {
    let subject = subject.to_owned();
    match error {
        AskError::TooLarge { size, limit } => PublishError::TooLarge { subject, size: size.max(length), limit },
        AskError::Denied => PublishError::Denied { subject },
        AskError::Subject => PublishError::Subject { subject },
        AskError::Closed => PublishError::Closed,
        AskError::Lost | AskError::TimedOut | AskError::NoResponders => {
            PublishError::Unanswered { subject, limit_ms: 0 }
        }
    }
}

fn request_error(error: AskError, subject: &str, limit: Duration) -> RequestError {
    let subject = subject.to_owned();
    match error {
        AskError::NoResponders => RequestError::Nobody { subject },
        AskError::Lost | AskError::TimedOut => RequestError::Unanswered { subject, limit_ms: limit.as_millis() as u64 },
        AskError::Denied => RequestError::Denied { subject },
        AskError::TooLarge { .. } | AskError::Subject => RequestError::Unacceptable { subject },
        AskError::Closed => RequestError::Closed,
    }
}

fn unreachable(url: String, options: &Options, source: Option<async_nats::ConnectError>) -> ConnectError {
    ConnectError::Unreachable { url, limit_ms: options.connect_limit_ms, source }
}

fn connect_options(options: &Options, link: &Arc<Link>) -> ConnectOptions {
    let heard = Arc::downgrade(link);
    let mut connect = ConnectOptions::new()
        .name(&options.service)
        .custom_inbox_prefix(format!("_INBOX_{}", options.service))
        .connection_timeout(Duration::from_secs(2))
        .ping_interval(Duration::from_secs(10))
        .subscription_capacity(SUBSCRIPTION_MAX)
        .client_capacity(4_096)
        .max_reconnects(None)
        .reconnect_delay_callback(|attempts| match attempts {
            0 | 1 => Duration::ZERO,
            2..RECONNECT_CLOSE => Duration::from_millis(RECONNECT_MS),
            _ => Duration::from_millis(RECONNECT_SLOW_MS),
        })
        .event_callback(move |event| {
            let heard = heard.clone();
            async move {
                if let Some(link) = heard.upgrade() {
                    link.heard(&event);
                }
            }
        });
    if let Some(seed) = &options.seed {
        connect = connect.nkey(seed.trim().to_owned());
    }
    if let Some(tls) = &options.tls {
        connect = connect
            .add_root_certificates(tls.ca.clone())
            .add_client_certificate(tls.cert.clone(), tls.key.clone())
            .require_tls(true);
    }
    connect
}
