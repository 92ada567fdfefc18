//! A stream followed without a gap.

use std::{collections::VecDeque, sync::atomic::Ordering::Relaxed, time::Duration};

use async_nats::{Message, Subscriber};
use futures::{FutureExt as _, StreamExt as _};
use mesh_core::Stored;
use mesh_proto::contract;
use tokio::time::{Instant, sleep_until};

use crate::{
    Log, LogError, headers,
    log::{PAGE_MAX, is_whole},
};

/// How often a quiet stream is read, so that a lost last message is found.
const QUIET: Duration = Duration::from_secs(1);
/// How often a stream without republishing is read.
const POLL: Duration = Duration::from_millis(100);
/// How often a message that was seen live is read again before it counts as deleted: the replica that answers the read
/// may lag. Facts are never deleted.
const LAGGING_ATTEMPTS: usize = 50;

/// A stream as it grows. What is stored is republished by the server, seen once and in order; what is missing
/// between two messages, and after a quiet second, is read.
pub struct Tail {
    log: Log,
    /// What is read.
    read: String,
    /// What is returned of it; `None` for all.
    filter: Option<String>,
    /// Does the stream keep all it ever stored?
    keeps_all: bool,
    /// The live subject; `None` for streams that do not republish, which are polled.
    subject: Option<String>,
    /// Is one subject followed, and not the whole stream?
    exact: bool,
    /// Everything up to here was returned, or does not match.
    position: u64,
    /// The highest sequence seen live and not yet read.
    seen: u64,
    /// Reads in a row that did not return what was seen.
    lagging: usize,
    buffer: VecDeque<Stored>,
    live: Option<Subscriber>,
    /// Is there something to read?
    behind: bool,
    caught_up: bool,
    /// The connection on which it last read up.
    epoch: u64,
    look_at: Instant,
}

/// What comes first.
enum Turn {
    Live(Option<Message>),
    Look,
}

impl Tail {
    pub(crate) fn new(log: &Log, filter: &str, from: u64) -> Self {
        let spec = contract().stream(log.stream());
        let exact = !filter.contains(['*', '>']);
        // Narrower than the area, so that commands, which others may publish, are not even delivered.
        let subject = spec.filter(|s| s.has_write_prefix()).map(|s| match exact {
            true => filter.to_owned(),
            false => format!("{}.*.v1.>", s.subject.split('.').next().unwrap_or_default()),
        });
        Self {
            keeps_all: spec.is_some_and(|s| s.kind == contract::Kind::Facts),
            log: log.clone(),
            read: if exact { filter.to_owned() } else { ">".to_owned() },
            filter: (!exact && !is_whole(log.stream(), filter)).then(|| filter.to_owned()),
            subject,
            exact,
            position: from.max(1) - 1,
            seen: 0,
            lagging: 0,
            buffer: VecDeque::new(),
            live: None,
            behind: true,
            caught_up: false,
            epoch: 0,
            look_at: Instant::now(),
        }
    }

    /// The next message. Waits while there is none and while the bus is away. Dropped before its end, nothing is lost.
    pub async fn next(&mut self) -> Result<Stored, LogError> {
        loop {
            while let Some(message) = self.buffer.pop_front() {
                if self.take(&message) {
                    return Ok(message);
                }
            }
            if self.behind {
                match self.catch_up().await {
                    Err(LogError::Unanswered { .. }) => {
                        tracing::warn!(stream = self.log.stream(), "the stream does not answer; trying again");
                    }
                    other => other?,
                }
                continue;
            }
            let message = match self.turn().await? {
                Turn::Look => {
                    self.behind = true;
                    continue;
                }
                Turn::Live(None) => {
                    // The client ended this subscription; a new one is made after reading up.
                    self.live = None;
                    self.behind = true;
                    continue;
                }
                Turn::Live(Some(message)) => message,
            };
            let Some(message) = headers::from_republished(message, self.log.stream()) else { continue };
            self.look_at = Instant::now() + QUIET;
            if message.sequence <= self.position {
                continue;
            }
            if self.follows(&message) {
                self.buffer.push_back(message);
            } else {
                tracing::debug!(stream = self.log.stream(), at = self.position, next = message.sequence, "gap");
                self.log.link().stats.gaps_filled.fetch_add(1, Relaxed);
                self.seen = self.seen.max(message.sequence);
                (self.behind, self.caught_up) = (true, false);
            }
        }
    }

    /// Has it returned everything that was there when it last looked?
    pub fn is_caught_up(&self) -> bool {
        self.caught_up && self.buffer.is_empty()
    }

    /// Does it return what is stored as it is stored, with nothing left to read?
    pub fn is_live(&self) -> bool {
        !self.behind
    }

    /// Sequence up to which everything that matches was returned.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Moves on to a message; true if it is to be returned.
    fn take(&mut self, message: &Stored) -> bool {
        if message.sequence <= self.position {
            return false;
        }
        self.position = message.sequence;
        self.filter.as_ref().is_none_or(|f| contract::matches(f, &message.subject))
    }

    /// Is this live message the next one?
    fn follows(&self, message: &Stored) -> bool {
        match self.exact {
            true => message.previous_on_subject.is_some_and(|p| p <= self.position),
            false => message.sequence == self.position + 1,
        }
    }

    async fn turn(&mut self) -> Result<Turn, LogError> {
        if let Some(message) = next_live(&mut self.live).now_or_never() {
            return Ok(Turn::Live(message));
        }
        let link = self.log.link();
        tokio::select! {
            biased;
            () = link.ended.cancelled() => Err(LogError::Closed { stream: self.log.stream().to_owned() }),
            message = next_live(&mut self.live) => Ok(Turn::Live(message)),
            () = link.reconnected(self.epoch) => Ok(Turn::Look),
            () = sleep_until(self.look_at) => Ok(Turn::Look),
        }
    }

    /// Reads on from the position. Once nothing is left, follows live and reads once more, so that nothing falls
    /// between the two.
    async fn catch_up(&mut self) -> Result<(), LogError> {
        let link = self.log.link().clone();
        let epoch = link.epoch();
        let page = self.log.page(&self.read, self.position + 1, PAGE_MAX).await?;
        let read_to = page.messages.last().map_or(self.position, |m| m.sequence);
        self.buffer.extend(page.messages);
        if page.more {
            return Ok(());
        }
        if let (None, Some(subject)) = (&self.live, &self.subject) {
            let closed = || LogError::Closed { stream: self.log.stream().to_owned() };
            let client = link.client().map_err(|_| closed())?;
            self.live = Some(client.subscribe(subject.clone()).await.map_err(|_| closed())?);
            return Ok(());
        }
        // Seen but not read: the replica that answered lags, or the message has been deleted since.
        if read_to < self.seen && (self.keeps_all || self.lagging < LAGGING_ATTEMPTS) {
            self.lagging += 1;
            let _ = link.pause(Duration::from_millis(10)).await;
            return Ok(());
        }
        (self.behind, self.caught_up, self.lagging, self.seen) = (false, true, 0, 0);
        self.epoch = epoch;
        self.look_at = Instant::now() + if self.subject.is_some() { QUIET } else { POLL };
        Ok(())
    }
}

async fn next_live(live: &mut Option<Subscriber>) -> Option<Message> {
    match live {
        Some(live) => live.next().await,
        None => std::future::pending().await,
    }
}
