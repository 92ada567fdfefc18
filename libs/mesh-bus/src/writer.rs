//! Decisions as conditional, atomic writes.
//!
//! - At rest a decision of one fact is one conditional publish, made by its caller without a detour.
//! - In a deep queue, and for several facts, decisions travel in atomic batches (ADR-50). The first message of each
//!   entity carries the entity's condition.
//! - While a batch of many is on its way, and for a moment after it, those that come are gathered for the next.
//! - Two decisions of one entity are never in flight together: in one batch both would be stored.
//! - A refused or unanswered write is settled by reading the entity: it went on with what is ours, or it has not moved
//!   and we send again, or it has moved and whoever asked decides again.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU32,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use async_nats::HeaderMap;
use futures::{StreamExt as _, stream::FuturesUnordered};
use mesh_core::{Decision, Stored};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Bus,
    answer::{Answer, code},
    backoff::Backoff,
    batch::{self, BATCH_MAX},
    disk::WORTH_MAX,
    error::AskError,
    headers,
    link::Link,
    log,
    publish::{SILENT_MIN, ingest},
    writer::queue::{CROWD, Entry, InFlight, Next, Queue},
};

mod queue;

/// What became of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is stored, now or by an earlier attempt.
    Stored {
        /// Sequence of its last message.
        last: u64,
    },
    /// The entity had moved: decide again.
    Stale {
        /// Sequence of the entity's last fact; `None` if it has none.
        last: Option<u64>,
    },
}

/// A decision was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The stream is full, and the bus was closed while the decision waited for room.
    #[error("write to {stream}: it is full")]
    Full {
        /// The full stream.
        stream: String,
    },
    /// A message is larger than the server takes, or there are more than a batch holds.
    #[error(
        "write to {stream}: the decision for {entity} is too large: {size} bytes or messages; the limit is {limit}"
    )]
    TooLarge {
        /// The stream.
        stream: String,
        /// The entity.
        entity: String,
        /// Size of the largest message in bytes, or the number of messages.
        size: usize,
        /// The limit in bytes or messages; 0 if the server did not say.
        limit: usize,
    },
    /// This service has no right to write it.
    #[error("write to {stream}: {subject} is not permitted to this identity")]
    Denied {
        /// The stream.
        stream: String,
        /// Subject of the first message.
        subject: String,
    },
    /// The stream refuses it, and will again.
    #[error("write to {stream}: the decision for {entity} is refused with code {code}: {description}")]
    Refused {
        /// The stream.
        stream: String,
        /// The entity.
        entity: String,
        /// JetStream's error code.
        code: u64,
        /// JetStream's description.
        description: String,
    },
    /// The bus was closed.
    #[error("write to {stream}: the bus is closed")]
    Closed {
        /// The stream.
        stream: String,
    },
}

/// How long the next batch waits after one of a crowd, unless enough is there already: every batch costs the server a
/// store of its own and four syncs, whatever it holds.
const GATHER: Duration = Duration::from_millis(2);
/// How often a batch without an answer is sent before its decisions go one by one.
const BATCH_ATTEMPTS: usize = 3;
/// How long a refused decision is retried whose entity has not moved.
const REFUSED_LIMIT: Duration = Duration::from_secs(20);
/// How often a read is repeated that shows an entity older than the decision knew it, from a replica that lags.
const BEHIND_ATTEMPTS: usize = 50;

/// Writes decisions to one stream. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    core: Arc<Core>,
    /// The batcher lives as long as the bus.
    _bus: Bus,
}

impl Writer {
    pub(crate) fn new(core: Arc<Core>, bus: Bus) -> Self {
        Self { core, _bus: bus }
    }

    /// Writes a decision; waits as long as the bus is away or the stream is full. Dropped before its end, it may
    /// or may not be written.
    pub fn write(&self, decision: Decision) -> impl Future<Output = Result<Written, WriteError>> + Send + 'static {
        let core = self.core.clone();
        async move {
            core.check(&decision)?;
            let Ok(room) = core.room.clone().acquire_owned().await else { return Err(core.closed()) };
            match core.admit(decision, room)? {
                Admitted::Direct(direct) => {
                    let written = core.settle(&direct.decision).await;
                    core.echo(&direct.decision, &written);
                    drop(direct);
                    written
                }
                Admitted::Queued(answer) => answer.await.unwrap_or_else(|_| Err(core.closed())),
            }
        }
    }
}

/// One stream's writer.
pub(crate) struct Core {
    link: Arc<Link>,
    source: Arc<str>,
    /// The bus that writes is closing.
    closing: CancellationToken,
    stream: String,
    /// One permit per decision that waits or is in flight.
    room: Arc<Semaphore>,
    queue: Mutex<Queue<Pending>>,
    /// Has the bus ended? Nothing is written any more.
    closed: AtomicBool,
    nudge: Notify,
    full: AtomicBool,
    /// Plain publishes on their way.
    plain: AtomicU32,
}

/// A plain publish, counted for as long as it is on its way.
struct Flying<'a> {
    all: &'a AtomicU32,
    /// On their way when it set out, itself included.
    together: u32,
}

impl<'a> Flying<'a> {
    fn one_more(all: &'a AtomicU32) -> Self {
        Self { all, together: all.fetch_add(1, Relaxed) + 1 }
    }
}

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Relaxed);
    }
}

/// A decision that waits for its turn or answer.
struct Pending {
    decision: Decision,
    answer: oneshot::Sender<Result<Written, WriteError>>,
    _room: OwnedSemaphorePermit,
}

/// Pending decisions in flight; their entities are free again when this is dropped, however it ends.
struct Flight {
    core: Arc<Core>,
    pending: Vec<Pending>,
    entities: Vec<String>,
}

impl Flight {
    fn new(core: Arc<Core>, entries: Vec<Entry<Pending>>) -> Self {
        let (entities, pending) = entries.into_iter().map(|entry| (entry.entity, entry.item)).unzip();
        Self { core, pending, entities }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.core.release(&self.entities);
    }
}

/// A decision that its caller writes.
struct Direct {
    core: Arc<Core>,
    decision: Decision,
    _room: OwnedSemaphorePermit,
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.core.queue.lock().end_direct();
        self.core.release(std::slice::from_ref(&self.decision.entity));
    }
}

enum Admitted {
    Direct(Direct),
    Queued(oneshot::Receiver<Result<Written, WriteError>>),
}

/// What two reads of an entity say of a decision. Any replica answers a read, so each may show another moment.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// The entity went on with this decision.
    Ours {
        /// Sequence of its last message.
        last: u64,
    },
    /// The entity stands where the decision found it.
    Unmoved,
    /// The entity went on with something else.
    Moved,
    /// A replica that lags answered: read again.
    Behind,
}

impl Seen {
    /// `last` is the entity's last sequence, 0 if it has none; `moved` is what a second read gave from the decision's
    /// condition on, at most as many messages as the decision has.
    fn of(decision: &Decision, last: u64, moved: &[Stored]) -> Self {
        if last == decision.expected {
            return Self::Unmoved;
        }
        let ours = decision.messages.len();
        if last < decision.expected || (moved.len() < ours && moved.last().is_none_or(|end| end.sequence < last)) {
            return Self::Behind;
        }
        // Ours stands if the entity went on with just this; whoever came after may have moved it further. Another
        // replica that decided the same input gives the same ids: from another state or World it may say something
        // else, or stand further behind, and the caller is to read it.
        let stands = moved.len() == ours
            && moved
                .iter()
                .zip(&decision.messages)
                .all(|(there, ours)| there.id == ours.id && there.world == ours.world && there.body == ours.body);
        match moved.last() {
            Some(end) if stands => Self::Ours { last: end.sequence },
            _ => Self::Moved,
        }
    }
}

/// What has ended, with success or without.
enum Landed {
    Plain,
    Batch {
        /// Was it of many decisions?
        crowd: bool,
    },
}

/// Why an attempt did not store.
enum Failed {
    /// The stream refused.
    Refused {
        code: u64,
        description: String,
    },
    /// Whether it is stored is unknown.
    Unknown,
    /// The server is there, and did not answer.
    Silent,
    TooLarge {
        size: usize,
        limit: usize,
    },
    Denied,
    Closed,
}

impl From<AskError> for Failed {
    fn from(error: AskError) -> Self {
        match error {
            AskError::TimedOut => Self::Silent,
            AskError::Lost | AskError::NoResponders => Self::Unknown,
            AskError::TooLarge { size, limit } => Self::TooLarge { size, limit },
            AskError::Denied | AskError::Subject => Self::Denied,
            AskError::Closed => Self::Closed,
        }
    }
}

impl Core {
    /// Starts the batcher of a stream.
    pub(crate) fn start(link: Arc<Link>, source: Arc<str>, closing: CancellationToken, stream: &str) -> Arc<Self> {
        let core = Arc::new(Self {
            room: Arc::new(Semaphore::new(link.options.queue_limit.max(1))),
            stream: stream.to_owned(),
            queue: Mutex::default(),
            nudge: Notify::new(),
            closed: AtomicBool::new(false),
            full: AtomicBool::new(false),
            plain: AtomicU32::new(0),
            source,
            closing,
            link,
        });
        let batcher = core.clone();
        core.link.tasks.spawn(async move {
            let ended = batcher.link.ended.clone();
            tokio::select! {
                () = batcher.clone().batch() => {}
                () = ended.cancelled() => {}
            }
            batcher.end();
        });
        core
    }

    fn closed(&self) -> WriteError {
        WriteError::Closed { stream: self.stream.clone() }
    }

    fn check(&self, decision: &Decision) -> Result<(), WriteError> {
        debug_assert!(!decision.messages.is_empty(), "a decision has facts");
        debug_assert!(decision.messages.iter().all(|m| m.stream == self.stream), "a decision stays in its stream");
        match decision.messages.len() {
            0 => Err(self.refused(decision, 0, "a decision without facts")),
            1..=BATCH_MAX => Ok(()),
            size => Err(self.too_large(decision, size, BATCH_MAX)),
        }
    }

    /// Lets a decision in: to be written by its caller if nothing is ahead of it, else into the queue.
    fn admit(self: &Arc<Self>, decision: Decision, room: OwnedSemaphorePermit) -> Result<Admitted, WriteError> {
        let mut queue = self.queue.lock();
        if self.closed.load(SeqCst) || self.closing.is_cancelled() {
            return Err(self.closed());
        }
        queue.set_worth(self.link.disk.worth());
        if !self.full.load(Relaxed) && queue.begin_direct(&decision.entity, decision.messages.len()) {
            return Ok(Admitted::Direct(Direct { core: self.clone(), decision, _room: room }));
        }
        let (answer, answered) = oneshot::channel();
        let ready = queue.add(Entry {
            entity: decision.entity.clone(),
            messages: decision.messages.len(),
            bytes: decision.messages.iter().map(|message| message.body.len()).sum(),
            item: Pending { decision, answer, _room: room },
        });
        drop(queue);
        if ready {
            self.nudge.notify_one();
        }
        Ok(Admitted::Queued(answered))
    }

    /// The decisions of these entities are done: the next of each is ready.
    fn release(&self, entities: &[String]) {
        let ready = self.queue.lock().release(entities);
        if ready {
            self.nudge.notify_one();
        }
    }

    async fn batch(self: Arc<Self>) {
        let mut flights = FuturesUnordered::new();
        let mut in_flight = InFlight::default();
        let mut pause = Instant::now();
        loop {
            let pausing = loop {
                let pausing = Instant::now() < pause;
                let next = self.queue.lock().next(in_flight, pausing, self.full.load(Relaxed));
                match next {
                    Next::Nothing => break pausing,
                    Next::Plain(one) => {
                        in_flight.plain += 1;
                        let flight = Flight::new(self.clone(), vec![one]);
                        flights.push(self.link.tasks.spawn(async move {
                            flight.one_by_one().await;
                            Landed::Plain
                        }));
                    }
                    Next::Batch(many) => {
                        in_flight.batches += 1;
                        let crowd = many.len() >= CROWD;
                        let flight = Flight::new(self.clone(), many);
                        flights.push(self.link.tasks.spawn(async move {
                            flight.together().await;
                            Landed::Batch { crowd }
                        }));
                    }
                }
            };
            tokio::select! {
                Some(landed) = flights.next() => match landed {
                    Ok(Landed::Batch { crowd }) => {
                        in_flight.batches -= 1;
                        if crowd {
                            pause = Instant::now() + GATHER;
                        }
                    }
                    Ok(Landed::Plain) => in_flight.plain -= 1,
                    // It panicked: its entities were released and its callers got an error when it was dropped. Which
                    // kind it was is unknown, so the count starts again once everything else has ended.
                    Err(_) => {
                        while flights.next().await.is_some() {}
                        in_flight = InFlight::default();
                    }
                },
                () = self.nudge.notified() => {}
                () = tokio::time::sleep_until(pause), if pausing => {}
            }
        }
    }

    /// Nothing is written any more; everyone who waits gets an error.
    fn end(&self) {
        let mut queue = self.queue.lock();
        self.closed.store(true, SeqCst);
        let waiting = queue.drain();
        drop(queue);
        self.room.close();
        drop(waiting);
    }

    /// Returns when nothing waits or is in flight.
    pub(crate) async fn drained(&self) {
        let all = u32::try_from(self.link.options.queue_limit.max(1)).unwrap_or(u32::MAX);
        let _ = self.room.acquire_many(all).await;
    }

    fn headers(&self, decision: &Decision, position: usize) -> HeaderMap {
        let mut headers = headers::of_fact(&decision.messages[position], &self.source);
        if position == 0 {
            headers::expect(&mut headers, &decision.entity, decision.expected);
        }
        headers
    }

    /// One attempt at a decision of one fact.
    async fn publish(&self, decision: &Decision) -> Result<u64, Failed> {
        let message = &decision.messages[0];
        let subject = ingest(&self.stream, &message.subject);
        let headers = self.headers(decision, 0);
        let (start, flying) = (std::time::Instant::now(), Flying::one_more(&self.plain));
        let answer = self.link.ask(subject, Some(headers), message.body.clone(), self.link.ack_timeout()).await?;
        let stored = self.stored(&answer, 1)?;
        self.link.disk.stored_since(start, flying.together);
        Ok(stored)
    }

    /// One attempt at a batch; returns the sequence of its last message.
    async fn commit(&self, decisions: &[&Decision]) -> Result<u64, Failed> {
        let mut parts: Vec<(&Decision, usize)> = vec![];
        for decision in decisions {
            parts.extend((0..decision.messages.len()).map(|position| (*decision, position)));
        }
        let count = parts.len();
        let part = |index: usize| {
            let (decision, position) = parts[index];
            let message = &decision.messages[position];
            (ingest(&self.stream, &message.subject), self.headers(decision, position), message.body.clone())
        };
        let answer = batch::send(&self.link, count, part).await?;
        let last = self.stored(&answer, count)?;
        batch::count_batch(&self.link, count);
        Ok(last)
    }

    fn stored(&self, answer: &async_nats::Message, count: usize) -> Result<u64, Failed> {
        match Answer::parse(answer) {
            Some(Answer::Stored { sequence: last, .. }) => {
                self.link.stats.published.fetch_add(count as u64, Relaxed);
                self.takes_writes();
                Ok(last)
            }
            Some(Answer::Refused { code, description }) => Err(Failed::Refused { code, description }),
            None => Err(Failed::Unknown),
        }
    }

    /// Reports the facts of a stored decision.
    fn echo(&self, decision: &Decision, written: &Result<Written, WriteError>) {
        let (Some(echo), Ok(Written::Stored { last })) = (self.link.echo.get(), written) else { return };
        let first = (last + 1).saturating_sub(decision.messages.len() as u64);
        for (message, sequence) in decision.messages.iter().zip(first..) {
            echo.stored(message, &self.source, sequence);
        }
    }

    fn takes_writes(&self) {
        if self.full.swap(false, SeqCst) {
            self.link.mark_full(&self.stream, false);
            self.nudge.notify_one();
        }
    }

    /// Writes one decision, with as many attempts as it takes.
    async fn settle(&self, decision: &Decision) -> Result<Written, WriteError> {
        let mut resend = Backoff::new(2, 250);
        let mut room = Backoff::new(100, 1_000);
        let mut refused_since = None;
        let mut silent = 0;
        loop {
            let attempt = match decision.messages.len() {
                1 => self.publish(decision).await,
                _ => self.commit(&[decision]).await,
            };
            match attempt {
                Ok(last) => return Ok(Written::Stored { last }),
                Err(Failed::TooLarge { size, limit }) => return Err(self.too_large(decision, size, limit)),
                Err(Failed::Denied) => {
                    let subject = decision.messages[0].subject.clone();
                    return Err(WriteError::Denied { stream: self.stream.clone(), subject });
                }
                Err(Failed::Closed) => return Err(self.closed()),
                Err(Failed::Unknown) => {}
                Err(Failed::Silent) => {
                    silent += 1;
                    // A server whose disk is full does not answer a write at all.
                    if silent >= SILENT_MIN {
                        self.full.store(true, SeqCst);
                        self.link.mark_full(&self.stream, true);
                    }
                }
                Err(Failed::Refused { code, .. }) if code::is_full(code) => {
                    self.full.store(true, SeqCst);
                    self.link.mark_full(&self.stream, true);
                    tokio::select! {
                        paused = self.link.pause(room.next()) => paused.map_err(|_| self.closed())?,
                        () = self.closing.cancelled() => {
                            return Err(WriteError::Full { stream: self.stream.clone() });
                        }
                    }
                    continue;
                }
                Err(Failed::Refused { code, .. }) if code::is_too_large(code) => {
                    return Err(self.too_large(decision, 0, 0));
                }
                Err(Failed::Refused { code, .. }) if code::is_passing(code) => {}
                Err(Failed::Refused { code, description }) => {
                    let since: Instant = *refused_since.get_or_insert_with(Instant::now);
                    if !code::is_open(code) || since.elapsed() > REFUSED_LIMIT {
                        return Err(self.refused(decision, code, &description));
                    }
                }
            }
            if let Some(written) = self.look(decision).await? {
                if matches!(written, Written::Stored { .. }) {
                    self.takes_writes();
                }
                return Ok(written);
            }
            self.link.stats.resent.fetch_add(1, Relaxed);
            self.link.pause(resend.next()).await.map_err(|_| self.closed())?;
        }
    }

    /// Finds out by reading its entity what became of a decision; `None` if it is not stored and the entity has not moved.
    async fn look(&self, decision: &Decision) -> Result<Option<Written>, WriteError> {
        self.link.stats.settled.fetch_add(1, Relaxed);
        let ours = decision.messages.len();
        let mut behind = 0;
        loop {
            let found = match log::last(&self.link, &self.stream, &decision.entity).await {
                Ok(found) => found,
                Err(AskError::Denied | AskError::Subject) => {
                    let subject = format!("direct get of {}", decision.entity);
                    return Err(WriteError::Denied { stream: self.stream.clone(), subject });
                }
                Err(_) => return Err(self.closed()),
            };
            let last = found.as_ref().map_or(0, |m| m.sequence);
            let moved = if last > decision.expected {
                let log = log::Log::new(self.link.clone(), &self.stream);
                match log.read(&decision.entity, decision.expected + 1, ours).await {
                    Ok(moved) => moved,
                    Err(log::LogError::Unanswered { .. }) => continue,
                    Err(_) => return Err(self.closed()),
                }
            } else {
                vec![]
            };
            match Seen::of(decision, last, &moved) {
                Seen::Ours { last } => return Ok(Some(Written::Stored { last })),
                Seen::Unmoved => return Ok(None),
                Seen::Behind if behind < BEHIND_ATTEMPTS => {
                    behind += 1;
                    self.link.pause(Duration::from_millis(10)).await.map_err(|_| self.closed())?;
                    continue;
                }
                Seen::Behind | Seen::Moved => {}
            }
            self.link.stats.stale.fetch_add(1, Relaxed);
            return Ok(Some(Written::Stale { last: (last > 0).then_some(last) }));
        }
    }

    fn too_large(&self, decision: &Decision, size: usize, limit: usize) -> WriteError {
        let largest = decision.messages.iter().map(|m| m.body.len()).max().unwrap_or_default();
        WriteError::TooLarge {
            stream: self.stream.clone(),
            entity: decision.entity.clone(),
            size: if size == 0 { largest } else { size },
            limit,
        }
    }

    fn refused(&self, decision: &Decision, code: u64, description: &str) -> WriteError {
        WriteError::Refused {
            stream: self.stream.clone(),
            entity: decision.entity.clone(),
            code,
            description: description.to_owned(),
        }
    }
}

impl Flight {
    /// Each decision for itself, a few at a time.
    async fn one_by_one(mut self) {
        let core = self.core.clone();
        futures::stream::iter(std::mem::take(&mut self.pending))
            .for_each_concurrent(WORTH_MAX, |pending| {
                let core = core.clone();
                async move {
                    // A caller who left while this was waiting gets nothing written.
                    if !pending.answer.is_closed() {
                        let written = core.settle(&pending.decision).await;
                        core.echo(&pending.decision, &written);
                        let _ = pending.answer.send(written);
                    }
                }
            })
            .await;
    }

    /// All in one batch; if that is refused, each for itself.
    async fn together(mut self) {
        self.pending.retain(|p| !p.answer.is_closed());
        if self.pending.len() < 2 {
            return self.one_by_one().await;
        }
        let core = self.core.clone();
        for _ in 0..BATCH_ATTEMPTS {
            let decisions: Vec<&Decision> = self.pending.iter().map(|p| &p.decision).collect();
            match core.commit(&decisions).await {
                Ok(last) => return self.answer(last),
                Err(Failed::Unknown | Failed::Silent) => {}
                Err(_) => break,
            }
            // The batch is stored whole or not at all: its first decision stands for all.
            let Ok(found) = core.look(decisions[0]).await else { break };
            match found {
                Some(Written::Stored { last }) => {
                    let behind: usize = decisions[1..].iter().map(|d| d.messages.len()).sum();
                    return self.answer(last + behind as u64);
                }
                Some(Written::Stale { .. }) => break,
                None => core.link.stats.resent.fetch_add(1, Relaxed),
            };
        }
        self.one_by_one().await;
    }

    /// The batch is stored, its messages one after the other.
    fn answer(mut self, batch_last: u64) {
        let count: usize = self.pending.iter().map(|pending| pending.decision.messages.len()).sum();
        let mut first = (batch_last + 1).saturating_sub(count as u64);
        for pending in &self.pending {
            let end = first + pending.decision.messages.len() as u64 - 1;
            self.core.echo(&pending.decision, &Ok(Written::Stored { last: end }));
            first = end + 1;
        }
        let mut last = batch_last;
        for pending in std::mem::take(&mut self.pending).into_iter().rev() {
            let count = pending.decision.messages.len() as u64;
            let _ = pending.answer.send(Ok(Written::Stored { last }));
            last -= count;
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::Outgoing;
    use mesh_proto::Timestamp;

    use super::*;

    fn fact(id: &str) -> Outgoing {
        Outgoing {
            id: id.to_owned(),
            message: "continuum.intent.v1.StateChanged".to_owned(),
            stream: "INTENT".to_owned(),
            subject: "intent.state_changed.v1.local.a".to_owned(),
            time: Timestamp::default(),
            cause: None,
            traceparent: None,
            world: vec![],
            body: id.to_owned().into(),
        }
    }

    fn stored(sequence: u64, id: &str) -> Stored {
        fact(id).stored("", sequence, Timestamp::default())
    }

    fn decision(expected: u64, ids: &[&str]) -> Decision {
        let messages = ids.iter().map(|id| fact(id)).collect();
        Decision { entity: "intent.*.*.local.a".to_owned(), expected, messages }
    }

    #[test]
    fn a_decision_is_ours_moved_or_unmoved_by_what_the_entity_went_on_with() {
        let one = decision(4, &["a"]);
        assert_eq!(Seen::of(&one, 4, &[]), Seen::Unmoved);
        assert_eq!(Seen::of(&one, 7, &[stored(7, "a")]), Seen::Ours { last: 7 });
        assert_eq!(Seen::of(&one, 9, &[stored(7, "a")]), Seen::Ours { last: 7 });
        assert_eq!(Seen::of(&one, 7, &[stored(7, "b")]), Seen::Moved);
        let two = decision(4, &["a", "b"]);
        assert_eq!(Seen::of(&two, 8, &[stored(7, "a"), stored(8, "b")]), Seen::Ours { last: 8 });
        assert_eq!(Seen::of(&two, 8, &[stored(7, "a"), stored(8, "c")]), Seen::Moved);
        assert_eq!(Seen::of(&two, 7, &[stored(7, "c")]), Seen::Moved);
    }

    #[test]
    fn a_replica_that_lags_behind_the_first_read_is_read_again() {
        let one = decision(4, &["a"]);
        assert_eq!(Seen::of(&one, 3, &[]), Seen::Behind);
        // The first read showed that the entity moved, the second came from a replica that did not have it yet.
        assert_eq!(Seen::of(&one, 7, &[]), Seen::Behind);
        let two = decision(4, &["a", "b"]);
        assert_eq!(Seen::of(&two, 8, &[stored(7, "a")]), Seen::Behind);
    }
}
