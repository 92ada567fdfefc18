//! A durable read like a log: one pinned replica gets its messages, in order; the others stand by.
//!
//! The server pins the first who asks when there is something to deliver, and unpins it when it has not asked for the
//! durable's priority time-out. So the pin is renewed by asking, also while nothing flows and while whoever reads is
//! slow; it moves when the process dies or is cut off.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::{Message, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until},
};

use crate::{
    Stored,
    bus::{AskError, Backoff, Link, lock},
    headers,
};

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
        /// The server's words.
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

/// How a durable stands.
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
/// Messages that wait for whoever reads; beyond it none are asked for.
const WAITING_MAX: usize = 1_000;
/// A request for messages lives so long.
const EXPIRES: Duration = Duration::from_secs(30);
/// So often the server says that it is there while nothing flows.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Without a word for so long the request is taken as lost.
const SILENCE: Duration = Duration::from_millis(10_500);
/// Acknowledgements are at least so far apart.
const ACK_EVERY: Duration = Duration::from_millis(5);
/// Replies remembered for acknowledging; as many as a durable has in flight.
const REPLIES_MAX: usize = 20_000;
/// Priority group of every durable.
const GROUP: &str = "g";

/// A member of those who read a durable.
pub struct Pull {
    shared: Arc<Shared>,
    messages: mpsc::Receiver<Result<Stored, PullError>>,
}

struct Shared {
    link: Arc<Link>,
    stream: String,
    durable: String,
    /// On which reply each delivered message is acknowledged.
    replies: Mutex<BTreeMap<u64, Subject>>,
    /// Acknowledge up to here.
    through: AtomicU64,
    acknowledge: Notify,
    pinned: AtomicBool,
    pin: Mutex<Option<String>>,
    left: AtomicBool,
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
    pub(crate) async fn join(link: Arc<Link>, stream: &str, durable: &str) -> Result<Self, PullError> {
        let shared = Arc::new(Shared {
            link,
            stream: stream.to_owned(),
            durable: durable.to_owned(),
            replies: Mutex::default(),
            through: AtomicU64::new(0),
            acknowledge: Notify::new(),
            pinned: AtomicBool::new(false),
            pin: Mutex::default(),
            left: AtomicBool::new(false),
        });
        let info = shared.info().await?;
        let renew = Duration::from_nanos(info.config.priority_timeout) / 4;
        let renew = renew.clamp(Duration::from_millis(100), Duration::from_secs(2));
        let (give, messages) = mpsc::channel(WAITING_MAX);
        let task = Task::new(shared.clone(), give, renew).await?;
        shared.link.tasks.spawn(task.run());
        Ok(Self { shared, messages })
    }

    /// The next message. Waits while there is none, while another replica is pinned, and while the bus is away. What
    /// was delivered to a replica that died comes again, out of order.
    pub async fn next(&mut self) -> Result<Stored, PullError> {
        self.messages.recv().await.unwrap_or_else(|| Err(self.shared.closed()))
    }

    /// Acknowledges all up to a sequence. Returns at once; often called is seldom sent.
    pub fn ack_through(&self, sequence: u64) {
        self.shared.through.fetch_max(sequence, Relaxed);
        self.shared.acknowledge.notify_one();
    }

    /// How the durable stands.
    pub async fn info(&self) -> Result<PullInfo, PullError> {
        let info = self.shared.info().await?;
        let pinned = info.priority_groups.into_iter().find_map(|g| g.pinned_client_id.filter(|id| !id.is_empty()));
        Ok(PullInfo {
            ack_floor: info.ack_floor.stream_seq,
            delivered: info.delivered.stream_seq,
            pending: info.num_pending,
            pinned,
        })
    }

    /// Is this the replica that gets the messages? True from its first message until the server says otherwise or
    /// the connection breaks; after that, true again from the next message.
    pub fn is_pinned(&self) -> bool {
        self.shared.pinned.load(Relaxed)
    }

    /// The pin's id as this replica last had it.
    pub fn pin(&self) -> Option<String> {
        lock(&self.shared.pin).clone()
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.shared.left.store(true, Relaxed);
        self.shared.acknowledge.notify_one();
    }
}

impl Shared {
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
                        Some(error) if MISSING.contains(&error.err_code) => {
                            Err(PullError::Missing { stream, durable })
                        }
                        Some(error) => Err(self.refused(error.description)),
                    };
                }
                Ok(Err(AskError::Lost | AskError::TimedOut | AskError::NoResponders)) => {}
                Ok(Err(AskError::Denied)) => return Err(PullError::Denied { stream, durable }),
                Ok(Err(AskError::Closed)) => return Err(self.closed()),
                Ok(Err(_)) => return Err(self.refused("not a durable's name".to_owned())),
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
        let mut replies = lock(&self.replies);
        let above = replies.split_off(&through.saturating_add(1));
        let below = std::mem::replace(&mut *replies, above);
        below.into_values().next_back()
    }

    fn remember(&self, sequence: u64, reply: Subject) {
        let mut replies = lock(&self.replies);
        replies.insert(sequence, reply);
        if replies.len() > REPLIES_MAX {
            replies.pop_first();
        }
    }

    fn set_pin(&self, id: Option<&str>) {
        let mut pin = lock(&self.pin);
        if pin.as_deref() != id {
            *pin = id.map(str::to_owned);
        }
        drop(pin);
        let pinned = id.is_some();
        if self.pinned.swap(pinned, Relaxed) != pinned {
            tracing::info!(stream = self.stream, durable = self.durable, pinned, "pin of a durable");
        }
    }
}

/// What reads the durable on behalf of a [`Pull`].
struct Task {
    shared: Arc<Shared>,
    give: mpsc::Sender<Result<Stored, PullError>>,
    renew: Duration,
    inbox: String,
    answers: Subscriber,
    /// Messages that were asked for and did not come yet.
    asked: usize,
    epoch: u64,
    heard: Instant,
    ask_not_before: Instant,
    backoff: Backoff,
    last_ack: Option<Subject>,
}

impl Task {
    async fn new(
        shared: Arc<Shared>,
        give: mpsc::Sender<Result<Stored, PullError>>,
        renew: Duration,
    ) -> Result<Self, PullError> {
        let client = shared.link.client().map_err(|_| shared.closed())?;
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await.map_err(|_| shared.closed())?;
        let now = Instant::now();
        let epoch = shared.link.epoch();
        Ok(Self {
            renew,
            inbox,
            answers,
            asked: 0,
            epoch,
            heard: now,
            ask_not_before: now,
            backoff: Backoff::new(20, 1_000),
            last_ack: None,
            shared,
            give,
        })
    }

    async fn run(mut self) {
        let link = self.shared.link.clone();
        let mut renew_at = Instant::now() + self.renew;
        let mut ack_at = Instant::now();
        let mut ack_due = false;
        loop {
            if self.shared.left.load(Relaxed) {
                break;
            }
            let now = Instant::now();
            // A full channel holds the reading back, never the renewal of the pin.
            let takes = self.give.capacity() > 0;
            let wants = self.asked <= BATCH / 2;
            let has_room = self.give.capacity() >= WAITING_MAX / 2;
            if wants && has_room && now >= self.ask_not_before {
                self.ask(false).await;
            }
            if !takes {
                self.heard = now;
            }
            let look_at = match wants && has_room && self.asked <= BATCH / 2 {
                true => self.ask_not_before,
                false => self.heard + SILENCE,
            };
            let room = if wants && !has_room { WAITING_MAX / 2 } else { 1 };
            tokio::select! {
                biased;
                () = link.ended.cancelled() => break,
                () = link.reconnected(self.epoch) => self.renewed(),
                () = sleep_until(renew_at) => {
                    renew_at = Instant::now() + self.renew;
                    if self.shared.pinned.load(Relaxed) {
                        self.ask(true).await;
                    }
                }
                () = sleep_until(ack_at), if ack_due => {
                    ack_due = false;
                    ack_at = Instant::now() + ACK_EVERY;
                    self.acknowledge().await;
                }
                () = self.shared.acknowledge.notified(), if !ack_due => ack_due = true,
                message = self.answers.next(), if takes => match message.map(|m| self.take(m)) {
                    Some(Ok(())) => {}
                    Some(Err(error)) => {
                        let _ = self.give.send(Err(error)).await;
                        break;
                    }
                    None => break,
                },
                room = async { self.give.reserve_many(room).await.is_ok() }, if !takes || room > 1 => if !room { break },
                () = sleep_until(look_at) => {
                    if self.heard.elapsed() >= SILENCE {
                        tracing::debug!(stream = self.shared.stream, durable = self.shared.durable, "silent; asking anew");
                        self.asked = 0;
                        self.heard = Instant::now();
                        self.check().await;
                    }
                }
            }
        }
        self.acknowledge().await;
        let _ = self.answers.unsubscribe().await;
    }

    /// Asks for messages; or, to renew the pin, for what there is at once.
    async fn ask(&mut self, renewal: bool) {
        let link = &self.shared.link;
        if !link.is_connected() {
            // The new connection brings all this about again.
            self.ask_not_before = Instant::now() + Duration::from_millis(50);
            return;
        }
        let pin = lock(&self.shared.pin).clone();
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let ask = Ask {
            batch: if renewal { 1 } else { BATCH },
            expires: (!renewal).then(|| nanos(EXPIRES)),
            idle_heartbeat: (!renewal).then(|| nanos(HEARTBEAT)),
            no_wait: renewal,
            group: GROUP,
            id: pin.as_deref(),
        };
        let body = serde_json::to_vec(&ask).unwrap_or_default();
        let subject = link.api(&format!("CONSUMER.MSG.NEXT.{}.{}", self.shared.stream, self.shared.durable));
        let reply = format!("{}.{}", self.inbox, if renewal { "renew" } else { "ask" });
        match link.send_for(subject, reply, body.into()).await {
            Ok(()) if renewal => {}
            Ok(()) => self.asked += BATCH,
            Err(_) => self.hold(),
        }
    }

    fn take(&mut self, message: Message) -> Result<(), PullError> {
        self.heard = Instant::now();
        let Some(status) = message.status.map(|s| s.as_u16()).filter(|s| *s != 200) else {
            return self.deliver(message);
        };
        let is_renewal = message.subject.ends_with(".renew");
        let left = message.headers.as_ref().and_then(|h| h.get("Nats-Pending-Messages"));
        let left = left.and_then(|l| l.as_str().parse().ok()).unwrap_or(BATCH);
        match status {
            // Heartbeat.
            100 => return Ok(()),
            // Nobody pins us any more: ask as anyone.
            423 => self.shared.set_pin(None),
            503 => self.hold(),
            400 => {
                let description = message.description.unwrap_or_default();
                return Err(self.shared.refused(description));
            }
            // Ended: 404 and 408 in time, 409 before it; the latter not in a hot loop.
            409 => self.hold(),
            _ => {}
        }
        if !is_renewal {
            self.asked = self.asked.saturating_sub(left);
        }
        Ok(())
    }

    fn deliver(&mut self, message: Message) -> Result<(), PullError> {
        self.asked = self.asked.saturating_sub(1);
        self.backoff = Backoff::new(20, 1_000);
        // The server appends its header, so the last value is its own.
        let pin = message.headers.as_ref().and_then(|h| h.get_last("Nats-Pin-Id")).map(|v| v.as_str().to_owned());
        if let Some((message, reply)) = headers::from_delivery(message) {
            if let Some(pin) = pin {
                self.shared.set_pin(Some(&pin));
            }
            self.shared.remember(message.sequence, reply);
            if message.sequence <= self.shared.through.load(Relaxed) {
                self.shared.acknowledge.notify_one(); // acknowledged already, and that was lost
            }
            // There is room: it was made sure of before the message was taken.
            if let Err(mpsc::error::TrySendError::Full(_)) = self.give.try_send(Ok(message)) {
                return Err(self.shared.refused("more messages than there was room for".to_owned()));
            }
        }
        Ok(())
    }

    /// Not at once again.
    fn hold(&mut self) {
        self.ask_not_before = Instant::now() + self.backoff.next();
    }

    /// After a silence: is the durable still there?
    async fn check(&mut self) {
        if let Err(error @ (PullError::Missing { .. } | PullError::Denied { .. })) = self.shared.info().await {
            let _ = self.give.send(Err(error)).await;
        }
    }

    /// On a new connection nothing is asked for any more. Our pin may still hold: it is tried.
    fn renewed(&mut self) {
        self.epoch = self.shared.link.epoch();
        self.asked = 0;
        self.heard = Instant::now();
        self.ask_not_before = Instant::now();
        self.backoff = Backoff::new(20, 1_000);
        self.shared.pinned.store(false, Relaxed);
        if let (Some(last), Ok(mut replies)) = (self.last_ack.take(), self.shared.replies.lock()) {
            // What was acknowledged last may have been lost with the connection.
            replies.entry(self.shared.through.load(Relaxed)).or_insert(last);
            self.shared.acknowledge.notify_one();
        }
    }

    async fn acknowledge(&mut self) {
        if let Some(reply) = self.shared.due() {
            let sent = self.shared.link.send_now(reply.clone(), Bytes::from_static(b"+ACK")).await;
            if sent.is_ok() {
                self.last_ack = Some(reply);
            }
        }
    }
}
