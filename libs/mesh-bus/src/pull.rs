//! A durable read like a log: one pinned replica gets its messages, in order; the others stand by.
//!
//! The server pins the first who asks when there is something to deliver, and unpins it when it has not asked for the
//! durable's priority time-out. So the pin is renewed by asking, also while nothing flows and while whoever reads is
//! slow; it moves when the process dies or is cut off.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::{HeaderName, Message, Subject, Subscriber};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use mesh_core::Stored;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::{backoff::Backoff, error::AskError, headers, link::Link};

/// A durable is not read.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// There is no such durable.
    #[error("pull {durable} of {stream}: there is no such durable; provision the bus")]
    Missing {
        /// The stream.
        stream: String,
        /// The durable.
        durable: String,
    },
    /// This service has no right to it.
    #[error("pull {durable} of {stream}: not permitted to this identity")]
    Denied {
        /// The stream.
        stream: String,
        /// The durable.
        durable: String,
    },
    /// The server refuses it.
    #[error("pull {durable} of {stream}: refused: {description}")]
    Refused {
        /// The stream.
        stream: String,
        /// The durable.
        durable: String,
        /// The server's description.
        description: String,
    },
    /// The server did not answer within the limit.
    #[error("pull {durable} of {stream}: no answer within {limit_ms} ms")]
    Unanswered {
        /// The stream.
        stream: String,
        /// The durable.
        durable: String,
        /// The limit, milliseconds.
        limit_ms: u64,
    },
    /// The bus was closed.
    #[error("pull {durable} of {stream}: the bus is closed")]
    Closed {
        /// The stream.
        stream: String,
        /// The durable.
        durable: String,
    },
}

/// The state of a durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullInfo {
    /// Everything up to this sequence is acknowledged.
    pub ack_floor: u64,
    /// The last sequence that was delivered to anyone.
    pub delivered: u64,
    /// Messages not yet delivered.
    pub pending: u64,
    /// The pin's id, if anyone holds it: compare with [`Pull::pin`].
    pub pinned: Option<String>,
}

/// Messages asked for at once.
const BATCH: usize = 1_000;
/// How long a request for messages lives.
const EXPIRES: Duration = Duration::from_secs(30);
/// How often the server sends a heartbeat while nothing flows.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Without a word from the server for this long, the request counts as lost.
const SILENCE: Duration = Duration::from_millis(10_500);
/// Least time between acknowledgements.
const ACK_EVERY: Duration = Duration::from_millis(5);
/// Replies remembered for acknowledging; as many as a durable has in flight.
const REPLIES_MAX: usize = 20_000;
/// Endings of the inbox for status messages about requests, and about renewals.
const ASK: &str = ".ask";
const RENEW: &str = ".renew";
static PIN_ID: HeaderName = HeaderName::from_static("Nats-Pin-Id");
/// Priority group of every durable: each pull names it.
pub const PULL_GROUP: &str = "g";

/// A member of those who read a durable.
pub struct Pull {
    shared: Arc<Shared>,
    answers: Subscriber,
    /// Messages that were asked for and have not arrived.
    asked: usize,
    epoch: u64,
    last_word: Instant,
    ask_not_before: Instant,
    backoff: Backoff,
}

struct Shared {
    link: Arc<Link>,
    stream: String,
    durable: String,
    /// Where answers arrive: messages, and status messages under a token that shows what they are about.
    inbox: String,
    /// On which reply each delivered message is acknowledged.
    replies: Mutex<BTreeMap<u64, Subject>>,
    /// Acknowledge up to here.
    through: AtomicU64,
    acknowledge: Notify,
    pinned: AtomicBool,
    pin: Mutex<Option<String>>,
    left: AtomicBool,
    epoch_joined: u64,
}

#[derive(serde::Serialize)]
struct Ask<'a> {
    batch: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_heartbeat: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_wait: bool,
    group: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Info {
    error: Option<InfoRefusal>,
    config: InfoConfig,
    ack_floor: InfoPosition,
    delivered: InfoPosition,
    num_pending: u64,
    priority_groups: Vec<InfoGroup>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct InfoRefusal {
    err_code: u64,
    description: String,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct InfoConfig {
    /// Nanoseconds.
    priority_timeout: u64,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct InfoPosition {
    stream_seq: u64,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct InfoGroup {
    pinned_client_id: Option<String>,
}

/// JetStream's codes for a durable or stream that is not there.
const MISSING: [u64; 2] = [10014, 10059];

impl Pull {
    /// The state of a durable, for whoever does not join its readers.
    pub(crate) async fn look(link: Arc<Link>, stream: &str, durable: &str) -> Result<PullInfo, PullError> {
        Ok(Shared::new(link, stream, durable, String::new()).info().await?.into())
    }

    pub(crate) async fn join(link: Arc<Link>, stream: &str, durable: &str) -> Result<Self, PullError> {
        let closed = || PullError::Closed { stream: stream.to_owned(), durable: durable.to_owned() };
        let client = link.client().map_err(|_| closed())?.clone();
        let shared = Arc::new(Shared::new(link, stream, durable, client.new_inbox()));
        let info = shared.info().await?;
        let renew = Duration::from_nanos(info.config.priority_timeout) / 4;
        let renew = renew.clamp(Duration::from_millis(100), Duration::from_secs(2));
        let answers = client.subscribe(format!("{}.*", shared.inbox)).await.map_err(|_| closed())?;
        shared.link.tasks.spawn(shared.clone().attend(renew));
        let now = Instant::now();
        let epoch = shared.epoch_joined;
        let backoff = Backoff::new(20, 1_000);
        Ok(Self { shared, answers, asked: 0, epoch, last_word: now, ask_not_before: now, backoff })
    }

    /// The next message. Waits while there is none, while another replica is pinned, and while the bus is away. What
    /// was delivered to a replica that died comes again, out of order. Dropped before its end, nothing is lost.
    pub async fn next(&mut self) -> Result<Stored, PullError> {
        loop {
            if self.epoch != self.shared.link.epoch() {
                self.renewed();
            }
            if self.asked <= BATCH / 2 && Instant::now() >= self.ask_not_before {
                self.ask().await;
            }
            // What is here already is taken without arming the others.
            let message = match self.answers.next().now_or_never() {
                Some(message) => message,
                None => {
                    let link = &self.shared.link;
                    let look_at = match self.asked <= BATCH / 2 {
                        true => self.ask_not_before,
                        false => self.last_word + SILENCE,
                    };
                    tokio::select! {
                        biased;
                        () = link.ended.cancelled() => return Err(self.shared.closed()),
                        message = self.answers.next() => message,
                        () = link.reconnected(self.epoch) => continue,
                        () = sleep_until(look_at) => {
                            self.check().await?;
                            continue;
                        }
                    }
                }
            };
            let Some(message) = message else { return Err(self.shared.closed()) };
            if let Some(message) = self.take(message)? {
                return Ok(message);
            }
        }
    }

    /// Acknowledges all up to a sequence. Returns at once; frequent calls are sent as few acknowledgements.
    pub fn ack_through(&self, sequence: u64) {
        self.shared.through.fetch_max(sequence, Relaxed);
        self.shared.acknowledge.notify_one();
    }

    /// The state of the durable.
    pub async fn info(&self) -> Result<PullInfo, PullError> {
        Ok(self.shared.info().await?.into())
    }

    /// Is this the replica that gets the messages? True from its first message until the server unpins it or
    /// the connection breaks; after that, true again from the next message.
    pub fn is_pinned(&self) -> bool {
        self.shared.pinned.load(Relaxed)
    }

    /// The pin's id as this replica last had it.
    pub fn pin(&self) -> Option<String> {
        self.shared.pin.lock().clone()
    }

    /// Asks for messages.
    async fn ask(&mut self) {
        if !self.shared.link.is_connected() {
            // A new connection starts over.
            self.ask_not_before = Instant::now() + Duration::from_millis(50);
            return;
        }
        match self.shared.ask(false).await {
            Ok(()) => self.asked += BATCH,
            Err(_) => self.hold(),
        }
    }

    /// The message, unless it is a status message.
    fn take(&mut self, message: Message) -> Result<Option<Stored>, PullError> {
        let Some(status) = message.status.map(|s| s.as_u16()).filter(|s| *s != 200) else {
            return Ok(self.deliver(message));
        };
        self.last_word = Instant::now();
        let left = message.headers.as_ref().and_then(|h| h.get("Nats-Pending-Messages"));
        let left = left.and_then(|l| l.as_str().parse().ok()).unwrap_or(BATCH);
        match status {
            // Heartbeat.
            100 => return Ok(None),
            // We are no longer pinned: ask like everyone else.
            423 => self.shared.set_pin(None),
            // The request ended early: do not ask again in a hot loop.
            409 | 503 => self.hold(),
            400 => return Err(self.shared.refused(message.description.unwrap_or_default())),
            // The request ended in time, or there is nothing: 404, 408.
            _ => {}
        }
        if !message.subject.ends_with(RENEW) {
            self.asked = self.asked.saturating_sub(left);
        }
        Ok(None)
    }

    fn deliver(&mut self, message: Message) -> Option<Stored> {
        self.asked = self.asked.saturating_sub(1);
        // The server appends its header, so the last value is its own.
        let pin = message.headers.as_ref().and_then(|h| h.get_last(PIN_ID.clone()));
        if let Some(pin) = pin {
            self.shared.set_pin(Some(pin.as_str()));
        }
        let (message, reply) = headers::from_delivery(message)?;
        self.shared.remember(message.sequence, reply);
        if message.sequence <= self.shared.through.load(Relaxed) {
            self.shared.acknowledge.notify_one(); // acknowledged before, and that was lost
        }
        Some(message)
    }

    /// Waits before asking again.
    fn hold(&mut self) {
        self.ask_not_before = Instant::now() + self.backoff.next();
    }

    /// After a silence the request counts as lost; checks that the durable is still there.
    async fn check(&mut self) -> Result<(), PullError> {
        if self.last_word.elapsed() < SILENCE {
            return Ok(());
        }
        tracing::debug!(
            stream = self.shared.stream,
            durable = self.shared.durable,
            "no word from the server; asking again"
        );
        match self.shared.info().await {
            Err(error @ (PullError::Missing { .. } | PullError::Denied { .. })) => return Err(error),
            _ => (self.asked, self.last_word) = (0, Instant::now()),
        }
        Ok(())
    }

    /// On a new connection every request is gone. Our pin may still hold, so it is tried.
    fn renewed(&mut self) {
        let now = Instant::now();
        (self.epoch, self.asked, self.last_word, self.ask_not_before) = (self.shared.link.epoch(), 0, now, now);
        self.backoff = Backoff::new(20, 1_000);
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.shared.left.store(true, Relaxed);
        self.shared.acknowledge.notify_one();
    }
}

impl From<Info> for PullInfo {
    fn from(info: Info) -> Self {
        let pinned = info.priority_groups.into_iter().find_map(|g| g.pinned_client_id.filter(|id| !id.is_empty()));
        Self {
            ack_floor: info.ack_floor.stream_seq,
            delivered: info.delivered.stream_seq,
            pending: info.num_pending,
            pinned,
        }
    }
}

impl Shared {
    fn new(link: Arc<Link>, stream: &str, durable: &str, inbox: String) -> Self {
        Self {
            epoch_joined: link.epoch(),
            link,
            stream: stream.to_owned(),
            durable: durable.to_owned(),
            inbox,
            replies: Mutex::default(),
            through: AtomicU64::new(0),
            acknowledge: Notify::new(),
            pinned: AtomicBool::new(false),
            pin: Mutex::default(),
            left: AtomicBool::new(false),
        }
    }

    fn names(&self) -> (String, String) {
        (self.stream.clone(), self.durable.clone())
    }

    fn closed(&self) -> PullError {
        let (stream, durable) = self.names();
        PullError::Closed { stream, durable }
    }

    fn refused(&self, description: String) -> PullError {
        let (stream, durable) = self.names();
        PullError::Refused { stream, durable, description }
    }

    async fn info(&self) -> Result<Info, PullError> {
        let (stream, durable) = self.names();
        let subject = self.link.api(&format!("CONSUMER.INFO.{stream}.{durable}"));
        let deadline = Instant::now() + self.link.read_limit();
        let mut backoff = Backoff::new(10, 200);
        loop {
            let attempt = self.link.ask(subject.clone(), None, Bytes::new(), Duration::from_secs(2));
            match tokio::time::timeout_at(deadline, attempt).await {
                Ok(Ok(answer)) => {
                    let info: Info =
                        serde_json::from_slice(&answer.payload).map_err(|e| self.refused(e.to_string()))?;
                    return match info.error {
                        None => Ok(info),
                        Some(error) if MISSING.contains(&error.err_code) => Err(PullError::Missing { stream, durable }),
                        Some(error) => Err(self.refused(error.description)),
                    };
                }
                Ok(Err(AskError::Lost | AskError::TimedOut | AskError::NoResponders)) => {}
                Ok(Err(AskError::Denied)) => return Err(PullError::Denied { stream, durable }),
                Ok(Err(AskError::Closed)) => return Err(self.closed()),
                Ok(Err(_)) => return Err(self.refused("invalid name of a durable".to_owned())),
                Err(_) => {
                    let limit_ms = self.link.options.read_limit_ms;
                    return Err(PullError::Unanswered { stream, durable, limit_ms });
                }
            }
            self.link.pause(backoff.next()).await.map_err(|_| self.closed())?;
        }
    }

    /// The reply of the highest delivered message that is to be acknowledged; forgets those below.
    fn due(&self) -> Option<Subject> {
        let through = self.through.load(Relaxed);
        let mut replies = self.replies.lock();
        let above = replies.split_off(&through.saturating_add(1));
        let below = std::mem::replace(&mut *replies, above);
        below.into_values().next_back()
    }

    fn remember(&self, sequence: u64, reply: Subject) {
        let mut replies = self.replies.lock();
        replies.insert(sequence, reply);
        if replies.len() > REPLIES_MAX {
            replies.pop_first();
        }
    }

    fn set_pin(&self, id: Option<&str>) {
        let mut pin = self.pin.lock();
        if pin.as_deref() != id {
            *pin = id.map(str::to_owned);
        }
        drop(pin);
        let pinned = id.is_some();
        if self.pinned.swap(pinned, Relaxed) != pinned {
            tracing::info!(stream = self.stream, durable = self.durable, pinned, "pin of a durable");
        }
    }

    /// Asks for messages; or, to renew the pin, for what there is at once.
    async fn ask(&self, renewal: bool) -> Result<(), AskError> {
        let pin = self.pin.lock().clone();
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let ask = Ask {
            batch: if renewal { 1 } else { BATCH },
            expires: (!renewal).then(|| nanos(EXPIRES)),
            idle_heartbeat: (!renewal).then(|| nanos(HEARTBEAT)),
            no_wait: renewal,
            group: PULL_GROUP,
            id: pin.as_deref(),
        };
        let body = serde_json::to_vec(&ask).unwrap_or_default();
        let subject = self.link.api(&format!("CONSUMER.MSG.NEXT.{}.{}", self.stream, self.durable));
        let reply = format!("{}{}", self.inbox, if renewal { RENEW } else { ASK });
        self.link.send_for(subject, reply, body.into()).await
    }

    /// Renews the pin and acknowledges, also while whoever reads is slow.
    async fn attend(self: Arc<Self>, renew: Duration) {
        let link = &self.link;
        let mut epoch = self.epoch_joined;
        let mut renew_at = Instant::now() + renew;
        let mut ack_at = Instant::now();
        let mut ack_due = false;
        let mut last: Option<Subject> = None;
        while !self.left.load(Relaxed) {
            tokio::select! {
                biased;
                () = link.ended.cancelled() => break,
                () = link.reconnected(epoch) => {
                    epoch = link.epoch();
                    self.pinned.store(false, Relaxed);
                    // What was acknowledged last may have been lost with the connection.
                    if let Some(last) = last.take() {
                        self.replies.lock().entry(self.through.load(Relaxed)).or_insert(last);
                        ack_due = true;
                    }
                }
                () = sleep_until(renew_at) => {
                    renew_at = Instant::now() + renew;
                    let has_pin = self.pin.lock().is_some();
                    if has_pin && link.is_connected() {
                        let _ = self.ask(true).await;
                    }
                }
                () = sleep_until(ack_at), if ack_due => {
                    ack_due = false;
                    ack_at = Instant::now() + ACK_EVERY;
                    self.acknowledge_now(&mut last).await;
                }
                () = self.acknowledge.notified(), if !ack_due => ack_due = true,
            }
        }
        self.acknowledge_now(&mut last).await;
    }

    async fn acknowledge_now(&self, last: &mut Option<Subject>) {
        // While disconnected it stays due.
        if !self.link.is_connected() {
            return;
        }
        if let Some(reply) = self.due()
            && self.link.send_now(reply.clone(), Bytes::from_static(b"+ACK")).await.is_ok()
        {
            *last = Some(reply);
        }
    }
}
