//! Commands and their answers: what is sent, and the facts that follow it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use mesh_core::{Outgoing, Stored};
use mesh_kit::Mesh;
use mesh_proto::{
    AnyEvent, Event as _, identity::IdentityRefused, intent::IntentRefused, subscription::SubscriptionRefused,
    workload::WorkloadRefused,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::domain::problem::{Kind, Problem};

/// Facts of one entity that wait for one request; one that is so far behind reads the stream instead.
const WAITING_MAX: usize = 64;
/// A command that was answered before is not answered again: after so long its answer is looked for in the past. Not
/// sooner, because on a busy machine that is where every answer would be looked for, and each look costs the bus a read.
const LOOK_BACK: Duration = Duration::from_secs(1);

type Followers = BTreeMap<String, Vec<mpsc::Sender<Stored>>>;

/// Facts as they are stored, told to the requests that wait for them.
#[derive(Clone)]
pub(crate) struct Answers {
    mesh: Mesh,
    followers: Arc<Mutex<Followers>>,
    /// By stream, the highest sequence at which a command was stored.
    stored: Arc<Mutex<BTreeMap<String, u64>>>,
}

/// The facts of one entity from now on.
pub(crate) struct Following {
    facts: mpsc::Receiver<Stored>,
    /// The answer was there before the question: so may be what follows from it, which nobody will tell again.
    pub(crate) is_late: bool,
}

impl Following {
    /// The next fact; `None` when none came until then.
    pub(crate) async fn next(&mut self, until: Instant) -> Option<Stored> {
        timeout_at(until, self.facts.recv()).await.ok().flatten()
    }
}

fn entity(area: &str, keys: &str) -> String {
    format!("{area}.{keys}")
}

impl Answers {
    /// Follows these streams from their present end.
    pub(crate) async fn start(mesh: &Mesh, streams: &[&'static str]) -> anyhow::Result<Self> {
        let answers = Self { mesh: mesh.clone(), followers: Arc::default(), stored: Arc::default() };
        for stream in streams {
            let log = mesh.bus().log(stream);
            let from = log.last_sequence().await.with_context(|| format!("read the end of {stream}"))? + 1;
            let subject = mesh_proto::contract().stream(stream).map(|s| s.subject.clone()).unwrap_or_default();
            let (mut tail, followers, stopping) =
                (log.tail(&subject, from), answers.followers.clone(), mesh.stopping());
            mesh.spawn("answers", async move {
                loop {
                    let stored = tokio::select! {
                        stored = tail.next() => stored.context("follow answers")?,
                        () = stopping.cancelled() => return Ok(()),
                    };
                    tell(&followers, stored);
                }
            });
        }
        Ok(answers)
    }

    /// The facts of an entity from now on.
    pub(crate) fn follow(&self, area: &str, keys: &str) -> Following {
        let (sender, facts) = mpsc::channel(WAITING_MAX);
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = followers.entry(entity(area, keys)).or_default();
        // Those who went without an entity's fact coming by are cleared away by the next who ask for it.
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

    /// Sends a command, and waits until it is stored. Was it certainly there before?
    pub(crate) async fn send(&self, command: &dyn AnyEvent, id: &str, limit: Duration) -> Result<bool, Problem> {
        let message = Outgoing::new(command, id, self.mesh.now()).map_err(|error| internal(&error))?;
        let stored = || self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let before = stored().get(&message.stream).copied().unwrap_or_default();
        match tokio::time::timeout(limit, self.mesh.bus().publish(&message)).await {
            Ok(Ok(sequence)) => {
                let mut stored = stored();
                let last = stored.entry(message.stream).or_default();
                *last = sequence.max(*last);
                // What is new comes after all that was there when it was sent.
                Ok(sequence <= before)
            }
            Ok(Err(error)) => Err(internal(&error)),
            Err(_) => {
                let detail = "the bus does not take the command";
                Err(Problem::new(Kind::Unavailable, detail, "try again; it is done once"))
            }
        }
    }

    /// Sends a command and waits for the fact that answers it; a refusal is a problem.
    pub(crate) async fn ask(
        &self,
        command: &dyn AnyEvent,
        id: &str,
        limit: Duration,
    ) -> Result<(Stored, Following), Problem> {
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
                let detail = "the command is stored, and not answered yet";
                return Err(Problem::new(Kind::Late, detail, "look again later, or send it again: it is done once"));
            }
            let subject = format!("{area}.*.*.{keys}");
            let past = mesh_why::facts(self.mesh.bus(), &stream, &subject).await.map_err(|e| internal(&e))?;
            if let Some(stored) = past.into_iter().find(|stored| answers(stored)) {
                following.is_late = true;
                break stored;
            }
            look = Instant::now() + LOOK_BACK;
        };
        match refusal(&answer) {
            Some((reason, hint)) => Err(Problem::new(Kind::Conflict, reason, hint)),
            None => Ok((answer, following)),
        }
    }
}

fn internal(error: &(dyn std::error::Error + 'static)) -> Problem {
    tracing::error!(error, "command not sent");
    Problem::new(Kind::Internal, "the command could not be sent", "see the log of the gateway")
}

fn tell(followers: &Mutex<Followers>, stored: Stored) {
    let mut tokens = stored.subject.splitn(4, '.');
    let (Some(area), Some(keys)) = (tokens.next(), tokens.nth(2)) else { return };
    let mut followers = followers.lock().unwrap_or_else(PoisonError::into_inner);
    let entity = entity(area, keys);
    if let Some(waiting) = followers.get_mut(&entity) {
        waiting.retain(|sender| match sender.try_send(stored.clone()) {
            Ok(()) => true,
            // Full: it reads the past instead. Closed: it is gone.
            Err(mpsc::error::TrySendError::Full(_)) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
        if waiting.is_empty() {
            followers.remove(&entity);
        }
    }
}

/// Reason and hint, if the fact is a refusal.
fn refusal(stored: &Stored) -> Option<(String, String)> {
    if stored.message == IntentRefused::MESSAGE {
        return stored.event::<IntentRefused>().ok().flatten().map(|r| (r.reason, r.hint));
    }
    if stored.message == WorkloadRefused::MESSAGE {
        return stored.event::<WorkloadRefused>().ok().flatten().map(|r| (r.reason, r.hint));
    }
    if stored.message == IdentityRefused::MESSAGE {
        return stored.event::<IdentityRefused>().ok().flatten().map(|r| (r.reason, r.hint));
    }
    if stored.message == SubscriptionRefused::MESSAGE {
        return stored.event::<SubscriptionRefused>().ok().flatten().map(|r| (r.reason, r.hint));
    }
    None
}
