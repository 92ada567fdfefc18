//! Commands and their answers: sends a command, and follows the facts of its entity until one answers it.
//!
//! One subscription per stream serves every request.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use mesh_bus::{Bus, LogError, PublishError};
use mesh_core::{Outgoing, Stored};
use mesh_kit::Mesh;
use mesh_proto::{AnyEvent, Refusal};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::{
    admission::Admission,
    problem::{Kind, Problem},
};

/// Facts of one entity that are queued for one request; a request that falls further behind reads the stream instead.
const WAITING_MAX: usize = 64;
/// A repeated command is not answered again, so after this time the answer is looked for in the past. Not sooner: on a
/// busy machine every answer would be looked for there, and each look costs the bus a read.
const LOOK_BACK: Duration = Duration::from_secs(1);

/// Facts that are read at once.
const PAGE: usize = 256;

type Followers = BTreeMap<String, Vec<mpsc::Sender<Arc<Stored>>>>;

/// Hands facts, as they are stored, to the requests that wait for them.
#[derive(Clone)]
pub struct Answers {
    mesh: Mesh,
    followers: Arc<Mutex<Followers>>,
    /// By stream, the highest sequence at which a command was stored.
    stored: Arc<Mutex<BTreeMap<String, u64>>>,
    admission: Admission,
}

/// The facts of one entity from now on.
pub struct Following {
    facts: mpsc::Receiver<Arc<Stored>>,
    /// The command had been answered before, so facts that follow from the answer may have passed already.
    pub is_late: bool,
}

impl Following {
    /// The next fact; `None` if none came by then.
    pub async fn next(&mut self, until: Instant) -> Option<Arc<Stored>> {
        timeout_at(until, self.facts.recv()).await.ok().flatten()
    }
}

fn entity(area: &str, keys: &str) -> String {
    format!("{area}.{keys}")
}

impl Answers {
    /// Follows these streams from their present end.
    ///
    /// # Errors
    /// When the bus does not say where a stream ends.
    pub async fn start(mesh: &Mesh, streams: &[&'static str]) -> anyhow::Result<Self> {
        let answers = Self {
            mesh: mesh.clone(),
            followers: Arc::default(),
            stored: Arc::default(),
            admission: Admission::default(),
        };
        for stream in streams {
            let from =
                mesh.bus().log(stream).last_sequence().await.with_context(|| format!("read the end of {stream}"))? + 1;
            let (mut tail, followers, stopping) =
                (mesh.follow(stream, from), answers.followers.clone(), mesh.stopping());
            mesh.spawn("answers", async move {
                loop {
                    let stored = tokio::select! {
                        stored = tail.next() => stored.context("follow answers")?,
                        () = stopping.cancelled() => return Ok(()),
                    };
                    hand_out(&followers, stored);
                }
            });
        }
        Ok(answers)
    }

    /// The facts of an entity from now on.
    pub fn follow(&self, area: &str, keys: &str) -> Following {
        let (sender, facts) = mpsc::channel(WAITING_MAX);
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = followers.entry(entity(area, keys)).or_default();
        // Requests that gave up before a fact of the entity came are removed by the next request for it.
        waiting.retain(|sender| !sender.is_closed());
        waiting.push(sender);
        if followers.len() > 10_000 {
            followers.retain(|_, waiting| {
                waiting.retain(|sender| !sender.is_closed());
                !waiting.is_empty()
            });
        }
        Following { facts, is_late: false }
    }

    /// Sends a command, and waits until it is stored. True if it is certain that it had been stored before.
    ///
    /// # Errors
    /// When the bus does not store it within the limit.
    pub async fn send(&self, command: &dyn AnyEvent, id: &str, limit: Duration) -> Result<bool, Problem> {
        let message = Outgoing::new(command, id, self.mesh.now()).map_err(|error| internal(&error))?;
        let stored = || self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let before = stored().get(&message.stream).copied().unwrap_or_default();
        match tokio::time::timeout(limit, self.mesh.bus().publish(&message)).await {
            Ok(Ok(sequence)) => {
                let mut stored = stored();
                let last = stored.entry(message.stream).or_default();
                *last = sequence.max(*last);
                // A new command gets a higher sequence than everything stored before it was sent.
                Ok(sequence <= before)
            }
            Ok(Err(PublishError::TooLarge { size, .. })) => {
                let detail = format!("it has {size} bytes as a command, which is more than the bus takes");
                Err(Problem::new(Kind::TooLarge, detail, "send less at once"))
            }
            Ok(Err(error)) => Err(internal(&error)),
            Err(_) => {
                let detail = "the bus did not accept the command";
                Err(Problem::new(Kind::Unavailable, detail, "try again; it takes effect once"))
            }
        }
    }

    /// May one more command to this stream be sent? For whoever would rather not read a request that is turned away.
    ///
    /// # Errors
    /// That too much waits before it.
    pub fn check(&self, stream: &str) -> Result<(), Problem> {
        self.admission.check(stream)
    }

    /// Sends a command and waits for the fact that answers it.
    ///
    /// # Errors
    /// That too much waits before it; the refusal, if that is the answer; when the command is not stored, or not answered within the limit.
    pub async fn ask(
        &self,
        command: &dyn AnyEvent,
        id: &str,
        limit: Duration,
    ) -> Result<(Arc<Stored>, Following), Problem> {
        let _waiting = self.admission.admit(command.stream())?;
        let keys = command.keys().join(".");
        let area = command.area().to_owned();
        let mut following = self.follow(&area, &keys);
        let deadline = Instant::now() + limit;
        let known = self.send(command, id, limit).await?;
        let answers = |stored: &Stored| stored.cause.as_ref().is_some_and(|cause| cause.id == id);
        let mut look = Instant::now() + if known { Duration::ZERO } else { LOOK_BACK };
        let stream = area.to_uppercase();
        let answer = loop {
            match following.next(look.min(deadline)).await {
                Some(stored) if answers(&stored) => break stored,
                Some(_) => continue,
                None => {}
            }
            if Instant::now() >= deadline {
                let detail = "the command is stored but not answered yet";
                return Err(Problem::new(Kind::Late, detail, "look again later, or repeat it: it takes effect once"));
            }
            let subject = format!("{area}.*.*.{keys}");
            let past = past(self.mesh.bus(), &stream, &subject).await.map_err(|error| internal(&error))?;
            if let Some(stored) = past.into_iter().find(|stored| answers(stored)) {
                following.is_late = true;
                break stored.into();
            }
            look = Instant::now() + LOOK_BACK;
        };
        match refusal(&answer) {
            Some(refusal) => Err(refusal.into()),
            None => Ok((answer, following)),
        }
    }
}

fn internal(error: &(dyn std::error::Error + 'static)) -> Problem {
    tracing::error!(error, "command not sent");
    Problem::new(Kind::Internal, "the command could not be sent", "see the log of the service")
}

fn hand_out(followers: &Mutex<Followers>, stored: Arc<Stored>) {
    let mut tokens = stored.subject.splitn(4, '.');
    let (Some(area), Some(keys)) = (tokens.next(), tokens.nth(2)) else { return };
    let mut followers = followers.lock().unwrap_or_else(PoisonError::into_inner);
    let entity = entity(area, keys);
    if let Some(waiting) = followers.get_mut(&entity) {
        waiting.retain(|sender| match sender.try_send(stored.clone()) {
            Ok(()) => true,
            // Full: the request reads the past instead. Closed: the request is over.
            Err(mpsc::error::TrySendError::Full(_)) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
        if waiting.is_empty() {
            followers.remove(&entity);
        }
    }
}

/// Facts of one subject, from the first.
async fn past(bus: &Bus, stream: &str, subject: &str) -> Result<Vec<Stored>, LogError> {
    let (log, mut found, mut from) = (bus.log(stream), vec![], 1);
    loop {
        let page = log.read(subject, from, PAGE).await?;
        match page.last() {
            Some(last) => from = last.sequence + 1,
            None => return Ok(found),
        }
        found.extend(page);
    }
}

/// The refusal, if the fact is one.
fn refusal(stored: &Stored) -> Option<Refusal> {
    Refusal::decode(&stored.message, &stored.protobuf().ok()?)
}
