//! The connection and what belongs to it: its state, requests, denials, streams that are full.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, RequestErrorKind, ServerAddr, ServerError,
    client::PublishErrorKind,
};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    ConnectError, Echo, Options, State, Stats, backoff::Backoff, disk::Disk, error::AskError, setback::Setbacks,
};

/// Pause between the first attempts to reconnect, milliseconds.
const RECONNECT_MS: u64 = 20;
/// After this many attempts the pause is `RECONNECT_SLOW_MS`.
const RECONNECT_CLOSE: usize = 250;
const RECONNECT_SLOW_MS: u64 = 200;
/// How often the client is asked for the state of its connection, beside its events.
const REFRESH_MS: u64 = 500;
/// Messages that a subscription may hold; beyond it the newest are lost, and tails fill the gap.
const SUBSCRIPTION_MAX: usize = 16_384;

/// Tells a waiting write that its answer will not come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Signal {
    connected: bool,
    epoch: u64,
    denials: u64,
}

/// Denials that are remembered for waiting writes.
const DENIALS_MAX: usize = 256;

/// The connection and what belongs to it; everything made from a [`Bus`] holds it.
pub(crate) struct Link {
    pub(crate) options: Options,
    pub(crate) stats: Stats,
    pub(crate) disk: Disk,
    client: OnceLock<Client>,
    signal: watch::Sender<Signal>,
    pub(crate) state: watch::Sender<State>,
    denied: Mutex<VecDeque<(u64, String)>>,
    full: Mutex<BTreeSet<String>>,
    any_full: AtomicBool,
    setbacks: Mutex<Setbacks>,
    /// Who learns what is stored.
    pub(crate) echo: OnceLock<Arc<dyn Echo>>,
    pub(crate) tasks: TaskTracker,
    /// Closing has begun: nothing new is accepted, and waiting for a full stream ends.
    pub(crate) closing: CancellationToken,
    /// The end: everyone who still waits gets an error.
    pub(crate) ended: CancellationToken,
}

impl Link {
    /// Connects; tries again within the stated limit, and from then on reconnects for ever.
    pub(crate) async fn connect(options: Options) -> Result<Arc<Self>, ConnectError> {
        crate::install_crypto();
        let url = options.url.clone();
        let addresses: Result<Vec<ServerAddr>, _> = url.split(',').map(|a| a.trim().parse()).collect();
        let addresses = addresses.map_err(|source| ConnectError::Address { url: url.clone(), source })?;
        let link = Arc::new(Self::new(options.clone()));
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
        link.refresh(Some(true));
        let watched = Arc::downgrade(&link);
        let ended = link.ended.clone();
        link.tasks.spawn(async move {
            while timeout(Duration::from_millis(REFRESH_MS), ended.cancelled()).await.is_err() {
                let Some(link) = watched.upgrade() else { break };
                link.refresh(None);
            }
        });
        Ok(link)
    }

    fn new(options: Options) -> Self {
        Self {
            options,
            stats: Stats::default(),
            disk: Disk::new(),
            client: OnceLock::new(),
            signal: watch::Sender::default(),
            state: watch::Sender::default(),
            denied: Mutex::default(),
            full: Mutex::default(),
            any_full: AtomicBool::new(false),
            setbacks: Mutex::default(),
            echo: OnceLock::new(),
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

    fn observe(&self, event: &Event) {
        match event {
            Event::Connected => self.refresh(Some(true)),
            Event::Disconnected | Event::Closed => self.refresh(Some(false)),
            Event::ServerError(ServerError::Other(text)) => self.record_denial(text),
            _ => {}
        }
    }

    /// Takes over the state of the connection from the client, which is right even if an event was lost.
    fn refresh(&self, connected: Option<bool>) {
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

    /// The protocol answers a violation with a text only (`Permissions Violation for Publish to "x"`), so the subject
    /// is read from it. If that text changes, writes end by their limits instead.
    fn record_denial(&self, text: &str) {
        let Some(subject) = text.split('"').nth(1).filter(|_| text.starts_with("Permissions Violation for Publish"))
        else {
            return;
        };
        tracing::warn!(subject, "publish not permitted");
        let mut denied = self.denied.lock();
        let number = denied.back().map_or(1, |(n, _)| n + 1);
        denied.push_back((number, subject.to_owned()));
        if denied.len() > DENIALS_MAX {
            denied.pop_front();
        }
        drop(denied);
        self.signal.send_modify(|now| now.denials = number);
    }

    pub(crate) fn was_denied(&self, subject: &str, after: u64) -> bool {
        self.denied.lock().iter().any(|(number, denied)| *number > after && denied == subject)
    }

    /// The denials seen so far, for [`Link::was_denied`].
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

    /// Returns once there is a newer connection than that of `epoch`.
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

    /// Remembers that a stream is full, or no longer is; cheap while no stream is full.
    pub(crate) fn mark_full(&self, stream: &str, is_full: bool) {
        if !is_full && !self.any_full.load(Relaxed) {
            return;
        }
        let mut full = self.full.lock();
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

    /// Takes note of messages that were stored without condition, and not by an earlier attempt.
    pub(crate) fn acknowledged(&self, stream: &str, first: u64, last: u64) {
        let forgotten = self.setbacks.lock().stored(stream, self.epoch(), first, last);
        if forgotten > 0 {
            self.stats.forgotten.fetch_add(forgotten, Relaxed);
            tracing::warn!(stream, forgotten, "the stream was set back: it forgot what it had acknowledged");
        }
    }

    pub(crate) fn ack_timeout(&self) -> Duration {
        Duration::from_millis(self.options.ack_timeout_ms)
    }

    pub(crate) fn read_limit(&self) -> Duration {
        Duration::from_millis(self.options.read_limit_ms)
    }
}

fn unreachable(url: String, options: &Options, source: Option<async_nats::ConnectError>) -> ConnectError {
    ConnectError::Unreachable { url, limit_ms: options.connect_limit_ms, source }
}

fn connect_options(options: &Options, link: &Arc<Link>) -> ConnectOptions {
    let watched = Arc::downgrade(link);
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
            let watched = watched.clone();
            async move {
                if let Some(link) = watched.upgrade() {
                    link.observe(&event);
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
