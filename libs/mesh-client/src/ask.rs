//! Commands and the facts that answer them.
//!
//! A command is answered by one fact of the entity that it is about, whose cause is the command. Each stream is followed
//! once, whoever asks; the first command to a stream starts that. A command with an id that was answered before is not
//! answered again: its answer is then read from the entity's past.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_bus::{Bus, LogError, PublishError};
use mesh_core::{Outgoing, Stored};
use mesh_proto::{AnyEvent, Refusal};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout_at},
};

/// Facts of one entity that wait for one caller; a caller that is further behind reads the stream instead.
const WAITING_MAX: usize = 64;
/// Entities with callers; above it, those whose callers have gone are forgotten.
const ENTITIES_MAX: usize = 10_000;
/// How long to wait for a live answer before reading the entity's past. Not shorter: on a busy machine every answer
/// would be read from the past, and each read costs the bus a request.
const LOOK_BACK: Duration = Duration::from_secs(1);
/// Facts that one read of the past returns.
const PAGE: usize = 1_000;

/// A command has no answer that allows to go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service refused it.
    #[error("{command} was refused: {refusal}")]
    Refused {
        /// Message type of the command.
        command: String,
        /// Why, and what to do.
        refusal: Refusal,
    },
    /// The command is stored, but no service has answered it yet.
    #[error(
        "timed out after {limit_ms} ms waiting for the answer to {command}; the command is stored and is answered once \
         its service runs (see `continuum status`)"
    )]
    Unanswered {
        /// Message type of the command.
        command: String,
        /// How long was waited, milliseconds.
        limit_ms: u128,
    },
    /// The bus did not store the command in time.
    #[error("timed out after {limit_ms} ms waiting for the bus to store {command}; send it again, it is done once")]
    NotStored {
        /// Message type of the command.
        command: String,
        /// How long was waited, milliseconds.
        limit_ms: u128,
    },
    /// The command cannot be encoded.
    #[error("encode {command}")]
    Encode {
        /// Message type of the command.
        command: String,
        /// Why.
        #[source]
        source: mesh_proto::DecodeError,
    },
    /// The bus refused the command.
    #[error("send {command}")]
    Publish {
        /// Message type of the command.
        command: String,
        /// Why.
        #[source]
        source: PublishError,
    },
    /// The stream of the answers cannot be read.
    #[error("read the answer to {command}")]
    Read {
        /// Message type of the command.
        command: String,
        /// Why.
        #[source]
        source: LogError,
    },
}

impl Error {
    /// The refusal; any other failure is given back as the error.
    ///
    /// # Errors
    /// The error itself, when the command was not refused.
    pub fn into_refusal(self) -> Result<Refusal, Self> {
        match self {
            Self::Refused { refusal, .. } => Ok(refusal),
            other => Err(other),
        }
    }
}

/// What answered a command.
#[derive(Debug)]
pub struct Answer {
    /// The fact.
    pub fact: Stored,
    /// Later facts of the same entity.
    pub following: Following,
}

/// The facts of one entity from now on.
#[derive(Debug)]
pub struct Following {
    facts: mpsc::Receiver<Stored>,
    /// The answer was found in the past: facts that follow from it may be there too, and are not repeated here.
    pub is_late: bool,
}

impl Following {
    /// The next fact; `None` when there was none until then.
    pub async fn next(&mut self, until: Instant) -> Option<Stored> {
        timeout_at(until, self.facts.recv()).await.ok().flatten()
    }
}

/// Who waits for facts, by entity (`<area>.<keys>`).
#[derive(Default)]
struct Followers(Mutex<BTreeMap<String, Vec<mpsc::Sender<Stored>>>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Followers {
    fn add(&self, entity: String) -> Following {
        let (sender, facts) = mpsc::channel(WAITING_MAX);
        let mut followers = lock(&self.0);
        let waiting = followers.entry(entity).or_default();
        waiting.retain(|sender| !sender.is_closed());
        waiting.push(sender);
        if followers.len() > ENTITIES_MAX {
            followers.retain(|_, waiting| {
                waiting.retain(|sender| !sender.is_closed());
                !waiting.is_empty()
            });
        }
        Following { facts, is_late: false }
    }

    fn deliver(&self, stored: &Stored) {
        let mut tokens = stored.subject.splitn(4, '.');
        let (Some(area), Some(keys)) = (tokens.next(), tokens.nth(2)) else { return };
        let entity = format!("{area}.{keys}");
        let mut followers = lock(&self.0);
        let Some(waiting) = followers.get_mut(&entity) else { return };
        // A full queue stays: its caller reads the past instead.
        waiting.retain(|sender| !matches!(sender.try_send(stored.clone()), Err(mpsc::error::TrySendError::Closed(_))));
        if waiting.is_empty() {
            followers.remove(&entity);
        }
    }
}

/// Sends commands over a bus and hands each caller its answer. Its tasks end when it is dropped.
pub struct Answers {
    bus: Bus,
    followers: Arc<Followers>,
    /// By stream, the highest sequence at which a command of this process was stored.
    stored: Mutex<BTreeMap<String, u64>>,
    /// Streams that are followed. Held while one more is begun, so that none is followed twice.
    followed: Arc<tokio::sync::Mutex<BTreeSet<String>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Answers {
    /// Over this bus.
    pub fn new(bus: Bus) -> Self {
        Self {
            bus,
            followers: Arc::default(),
            stored: Mutex::default(),
            followed: Arc::default(),
            tasks: Mutex::default(),
        }
    }

    /// Follows a stream from its present end on, unless it is followed already. A service does this at its start, so
    /// that a missing right shows then.
    ///
    /// # Errors
    /// When the stream cannot be read.
    pub async fn follow_stream(&self, stream: &str) -> Result<(), LogError> {
        let mut followed = self.followed.lock().await;
        if followed.contains(stream) {
            return Ok(());
        }
        let log = self.bus.log(stream);
        let from = log.last_sequence().await? + 1;
        let subject = mesh_proto::contract().stream(stream).map_or(">", |spec| spec.subject.as_str());
        let mut tail = log.tail(subject, from);
        followed.insert(stream.to_owned());
        let (followers, all, name) = (self.followers.clone(), self.followed.clone(), stream.to_owned());
        lock(&self.tasks).spawn(async move {
            loop {
                match tail.next().await {
                    Ok(stored) => followers.deliver(&stored),
                    Err(error) => {
                        // The next command to this stream follows it again; until then answers are read from the past.
                        tracing::warn!(error = &error as &dyn std::error::Error, stream = name, "answers not followed");
                        all.lock().await.remove(&name);
                        return;
                    }
                }
            }
        });
        Ok(())
    }

    /// The facts of an entity from now on; `keys` are joined by dots. Its stream must be followed.
    pub fn follow(&self, area: &str, keys: &str) -> Following {
        self.followers.add(format!("{area}.{keys}"))
    }

    /// Sends a command; gives its sequence once it is stored.
    ///
    /// # Errors
    /// When the bus does not store it in time.
    pub async fn send(&self, command: &dyn AnyEvent, id: &str, limit: Duration) -> Result<u64, Error> {
        self.store(command, id, limit).await.map(|(sequence, _)| sequence)
    }

    /// Stores a command; gives its sequence, and whether a command with this id was certainly there before.
    async fn store(&self, command: &dyn AnyEvent, id: &str, limit: Duration) -> Result<(u64, bool), Error> {
        let name = || command.message().to_owned();
        let message =
            Outgoing::new(command, id, crate::now()).map_err(|source| Error::Encode { command: name(), source })?;
        let before = lock(&self.stored).get(&message.stream).copied().unwrap_or_default();
        let sequence = tokio::time::timeout(limit, self.bus.publish(&message))
            .await
            .map_err(|_| Error::NotStored { command: name(), limit_ms: limit.as_millis() })?
            .map_err(|source| Error::Publish { command: name(), source })?;
        let mut stored = lock(&self.stored);
        let last = stored.entry(message.stream).or_default();
        *last = sequence.max(*last);
        // What is new is stored after everything that was there when it was sent.
        Ok((sequence, sequence <= before))
    }

    /// Sends a command and waits for the one fact that answers it. The same id again gives the same answer.
    ///
    /// # Errors
    /// [`Error::Refused`] when the answer is a refusal; other variants when there is no answer.
    pub async fn ask(&self, command: &dyn AnyEvent, id: &str, limit: Duration) -> Result<Answer, Error> {
        let (area, keys, name) = (command.area(), command.keys().join("."), command.message());
        let stream = area.to_uppercase();
        let read = |source| Error::Read { command: name.to_owned(), source };
        self.follow_stream(&stream).await.map_err(read)?;
        let mut following = self.follow(area, &keys);
        let deadline = Instant::now() + limit;
        let (_, is_repeated) = self.store(command, id, limit).await?;
        let answers = |stored: &Stored| stored.cause.as_ref().is_some_and(|cause| cause.id == id);
        let mut look_back = Instant::now() + if is_repeated { Duration::ZERO } else { LOOK_BACK };
        let fact = loop {
            match following.next(look_back.min(deadline)).await {
                Some(stored) if answers(&stored) => break stored,
                Some(_) => continue,
                None => {}
            }
            let past = self.past(&stream, &format!("{area}.*.*.{keys}")).await.map_err(read)?;
            if let Some(stored) = past.into_iter().find(|stored| answers(stored)) {
                following.is_late = true;
                break stored;
            }
            if Instant::now() >= deadline {
                return Err(Error::Unanswered { command: name.to_owned(), limit_ms: limit.as_millis() });
            }
            look_back = Instant::now() + LOOK_BACK;
        };
        match crate::refusal(&fact) {
            Some(refusal) => Err(Error::Refused { command: name.to_owned(), refusal }),
            None => Ok(Answer { fact, following }),
        }
    }

    async fn past(&self, stream: &str, entity: &str) -> Result<Vec<Stored>, LogError> {
        let log = self.bus.log(stream);
        let mut found: Vec<Stored> = vec![];
        loop {
            let from = found.last().map_or(1, |stored| stored.sequence + 1);
            let page = log.read(entity, from, PAGE).await?;
            if page.is_empty() {
                return Ok(found);
            }
            found.extend(page);
        }
    }
}
