//! Commands, stored together when there are many at once: one write to disk where each alone is one.
//!
//! - At rest a command is one publish, made by its caller.
//! - While [`PLAIN_IN_FLIGHT`] of them are on their way, those that come wait, and travel in one atomic batch (ADR-50).
//! - At most [`Options::gather_limit`](crate::Options::gather_limit) commands wait. Further callers wait for room, each
//!   with its own command, and get [`PublishError::Busy`] if no room appears in time.
//! - Commands carry no condition: after a batch that is refused (one of its ids is known already) or unanswered, each of
//!   its commands is sent alone, and its id shows whether it was stored before.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::HeaderMap;
use bytes::Bytes;
use futures::StreamExt as _;
use mesh_core::Outgoing;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use crate::{
    PublishError,
    batch::{self, BATCH_MAX},
    headers,
    link::Link,
    publish::ingest,
};

/// Commands of one stream in flight as plain publishes, at most; those beyond it wait and are gathered.
const PLAIN_IN_FLIGHT: usize = 8;
/// Bodies in one batch, bytes: much less than what the server takes.
const BATCH_BYTES_MAX: usize = 1 << 20;

type Answer = Result<u64, PublishError>;

/// Gathers the commands to one stream.
pub(crate) struct Gatherer {
    link: Arc<Link>,
    source: Arc<str>,
    stream: String,
    /// Plain publishes in flight.
    plain: AtomicUsize,
    /// One permit per command that waits or travels in a batch.
    room: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    commands: Vec<Command>,
    /// Is somebody sending what waits?
    sending: bool,
}

struct Command {
    subject: String,
    headers: HeaderMap,
    body: Bytes,
    answer: oneshot::Sender<Answer>,
    _room: OwnedSemaphorePermit,
}

/// Counts a plain publish for as long as it lives.
struct Plain<'a>(&'a AtomicUsize);

impl Drop for Plain<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Gatherer {
    pub(crate) fn new(link: Arc<Link>, source: Arc<str>, stream: &str) -> Arc<Self> {
        let (plain, waiting) = (AtomicUsize::new(0), Mutex::default());
        let room = Arc::new(Semaphore::new(link.options.gather_limit.max(1)));
        Arc::new(Self { link, source, stream: stream.to_owned(), plain, room, waiting })
    }

    /// Stores a command. Dropped before its end, it may or may not be stored.
    pub(crate) async fn publish(self: &Arc<Self>, message: &Outgoing) -> Answer {
        let subject = ingest(&self.stream, &message.subject);
        let headers = headers::of(message, &self.source);
        if let Some(_plain) = self.begin_plain() {
            let stored = self.link.store(&self.stream, subject, headers, &message.body).await;
            return stored.map(|(sequence, _)| sequence);
        }
        let room = self.find_room(&subject).await?;
        let (answer, answered) = oneshot::channel();
        self.gather(Command { subject, headers, body: message.body.clone(), answer, _room: room });
        // The channel is dropped unused only when the bus ends.
        answered.await.unwrap_or(Err(PublishError::Closed))
    }

    /// Counts a command as a plain publish, if few enough are on their way and no batch is.
    fn begin_plain(&self) -> Option<Plain<'_>> {
        let waiting = self.waiting.lock();
        let is_plain = !waiting.sending && self.plain.load(Relaxed) < PLAIN_IN_FLIGHT.min(self.link.disk.worth());
        is_plain.then(|| {
            self.plain.fetch_add(1, Relaxed);
            Plain(&self.plain)
        })
    }

    /// Waits until one more command may wait, at most as long as a publish is tried.
    async fn find_room(&self, subject: &str) -> Result<OwnedSemaphorePermit, PublishError> {
        if let Ok(room) = self.room.clone().try_acquire_owned() {
            return Ok(room);
        }
        let link = &self.link;
        link.stats.commands_held.fetch_add(1, Relaxed);
        let limit_ms = link.options.publish_limit_ms;
        tokio::select! {
            room = timeout(Duration::from_millis(limit_ms), self.room.clone().acquire_owned()) => match room {
                Ok(room) => room.map_err(|_| PublishError::Closed),
                Err(_) => {
                    link.stats.commands_refused.fetch_add(1, Relaxed);
                    Err(PublishError::Busy {
                        stream: self.stream.clone(),
                        subject: subject.to_owned(),
                        limit: link.options.gather_limit.max(1),
                        waited_ms: limit_ms,
                    })
                }
            },
            () = link.ended.cancelled() => Err(PublishError::Closed),
        }
    }

    /// Lets a command wait for the next batch, and sees to it that somebody sends that.
    fn gather(self: &Arc<Self>, command: Command) {
        self.link.stats.commands_gathered.fetch_add(1, Relaxed);
        let mut waiting = self.waiting.lock();
        waiting.commands.push(command);
        if std::mem::replace(&mut waiting.sending, true) {
            return;
        }
        drop(waiting);
        let gatherer = self.clone();
        let ended = self.link.ended.clone();
        self.link.tasks.spawn(async move {
            tokio::select! {
                () = gatherer.send() => {}
                () = ended.cancelled() => {
                    // Callers get the error `Closed` when their commands are dropped.
                    let left = std::mem::take(&mut *gatherer.waiting.lock());
                    drop(left);
                }
            }
        });
    }

    /// Sends what waits, until nothing does.
    async fn send(&self) {
        loop {
            let commands = {
                let mut waiting = self.waiting.lock();
                let bodies = waiting.commands.iter().map(|command| &command.body);
                let count = batch::fitting(bodies, BATCH_MAX, BATCH_BYTES_MAX);
                if count == 0 {
                    waiting.sending = false;
                    return;
                }
                let behind = waiting.commands.split_off(count);
                std::mem::replace(&mut waiting.commands, behind)
            };
            let commands: Vec<Command> = commands.into_iter().filter(|command| !command.answer.is_closed()).collect();
            self.together(commands).await;
        }
    }

    /// Sends them in one batch; if that is not stored, each alone.
    async fn together(&self, commands: Vec<Command>) {
        if commands.len() > 1 {
            let part = |index: usize| {
                let command: &Command = &commands[index];
                (command.subject.clone(), command.headers.clone(), command.body.clone())
            };
            if let Some(last) = batch::commit(&self.link, commands.len(), part).await {
                let first = last + 1 - commands.len() as u64;
                for (command, sequence) in commands.into_iter().zip(first..) {
                    let _ = command.answer.send(Ok(sequence));
                }
                return;
            }
        }
        futures::stream::iter(commands)
            .for_each_concurrent(PLAIN_IN_FLIGHT, |command| async move {
                let Command { subject, headers, body, answer, _room } = command;
                let stored = self.link.store(&self.stream, subject, headers, &body).await;
                let _ = answer.send(stored.map(|(sequence, _)| sequence));
            })
            .await;
    }
}
