//! Commands, stored together when there are many at once: one write to disk where each alone is one.
//!
//! - At rest a command is one publish, made by its caller.
//! - While [`PLAIN_IN_FLIGHT`] of them are on their way, those that come wait, and travel in one atomic batch (ADR-50).
//! - Commands carry no condition: a batch that is refused (one of its ids is known already) or unanswered is followed by
//!   each of its commands alone, which is told by its id if it was stored before.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use async_nats::HeaderMap;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::oneshot;

use crate::{
    PublishError,
    bus::{Link, ingest, lock},
    headers, writer,
};
use mesh_core::Outgoing;

/// Commands of one stream in flight as plain publishes; those beyond it wait and are gathered.
const PLAIN_IN_FLIGHT: usize = 8;
/// Bodies in one batch, bytes: much less than what the server takes.
const BATCH_BYTES_MAX: usize = 1 << 20;

type Answer = Result<u64, PublishError>;

/// Gathers the commands to one stream.
pub(crate) struct Gatherer {
    link: Arc<Link>,
    stream: String,
    /// Plain publishes in flight.
    plain: AtomicUsize,
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
}

/// Counts a plain publish for as long as it lives.
struct Plain<'a>(&'a AtomicUsize);

impl Drop for Plain<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Gatherer {
    pub(crate) fn new(link: Arc<Link>, stream: &str) -> Arc<Self> {
        let (plain, waiting) = (AtomicUsize::new(0), Mutex::default());
        Arc::new(Self { link, stream: stream.to_owned(), plain, waiting })
    }

    /// Stores a command. Dropped before its end, it may or may not be stored.
    pub(crate) async fn publish(self: &Arc<Self>, message: &Outgoing) -> Answer {
        let subject = ingest(&self.stream, &message.subject);
        let headers = headers::of(message, &self.link.options.service);
        let Some(answer) = self.wait(&subject, &headers, &message.body) else {
            let _plain = Plain(&self.plain);
            return self.link.store(&self.stream, subject, headers, &message.body).await;
        };
        answer.await.unwrap_or(Err(PublishError::Closed))
    }

    /// Lets a command wait if too many are on their way, else counts it as one of those.
    fn wait(self: &Arc<Self>, subject: &str, headers: &HeaderMap, body: &Bytes) -> Option<oneshot::Receiver<Answer>> {
        let mut waiting = lock(&self.waiting);
        if !waiting.sending && self.plain.load(Relaxed) < PLAIN_IN_FLIGHT {
            self.plain.fetch_add(1, Relaxed);
            return None;
        }
        let (answer, answered) = oneshot::channel();
        waiting.commands.push(Command {
            subject: subject.to_owned(),
            headers: headers.clone(),
            body: body.clone(),
            answer,
        });
        if !std::mem::replace(&mut waiting.sending, true) {
            let gatherer = self.clone();
            let ended = self.link.ended.clone();
            // Whoever waits is told that the bus is closed when its command falls.
            self.link.tasks.spawn(async move {
                tokio::select! {
                    () = gatherer.send() => {}
                    () = ended.cancelled() => {
                        let left = std::mem::take(&mut *lock(&gatherer.waiting));
                        drop(left);
                    }
                }
            });
        }
        Some(answered)
    }

    /// Sends what waits, until nothing does.
    async fn send(&self) {
        loop {
            let commands = {
                let mut waiting = lock(&self.waiting);
                let count = fitting(&waiting.commands);
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

    /// All in one batch; if that is not stored, each for itself.
    async fn together(&self, commands: Vec<Command>) {
        if commands.len() > 1 {
            let part = |index: usize| {
                let command: &Command = &commands[index];
                (command.subject.clone(), command.headers.clone(), command.body.clone())
            };
            if let Some(last) = writer::commit_batch(&self.link, commands.len(), part).await {
                let first = last + 1 - commands.len() as u64;
                for (command, sequence) in commands.into_iter().zip(first..) {
                    let _ = command.answer.send(Ok(sequence));
                }
                return;
            }
        }
        futures::stream::iter(commands)
            .for_each_concurrent(PLAIN_IN_FLIGHT, |command| async move {
                let Command { subject, headers, body, answer } = command;
                let _ = answer.send(self.link.store(&self.stream, subject, headers, &body).await);
            })
            .await;
    }
}

/// How many of these make the next batch.
fn fitting(commands: &[Command]) -> usize {
    let mut bytes = 0;
    let fits = |command: &&Command| {
        bytes += command.body.len();
        bytes <= BATCH_BYTES_MAX
    };
    commands.iter().take(writer::BATCH_MAX).take_while(fits).count().max(1).min(commands.len())
}
