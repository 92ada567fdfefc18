//! Says facts of this agent on the bus, each on the condition that it knows what was last said.
//!
//! One fact an entity is on its way at a time. What could not be said yet waits, only the newest status of each
//! generation of an instance: so an agent that was cut off says where things stand, not all that happened meanwhile. That
//! an instance is starting is said only if it takes a moment: mostly it runs at once.

#![allow(clippy::disallowed_methods, reason = "a shell: it holds a fact back for a while")]

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use futures::{
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt as _},
};
use mesh_bus::{Bus, Log, LogError, WriteError, Writer, Written};
use mesh_core::{Cause, Decision, Outgoing, Stored};
use mesh_proto::{
    DecodeError, Event, Timestamp, cluster::ClusterRegistered, derived_id, instance::InstanceRejected,
    instance::InstanceStatusChanged, workload::InstancePhase,
};
use tokio::time::Instant;

use crate::domain::{Fact, Report};

/// Entities with a write on its way.
const IN_FLIGHT_MAX: usize = 64;
/// How long an instance may be starting before it is said.
const STARTING_HELD: Duration = Duration::from_millis(250);
/// Before a refused write is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Something was stored; what the domain may now forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// An instance is stopped up to a generation.
    Stopped {
        /// Instance.
        instance_id: String,
        /// Generation.
        generation: u64,
    },
    /// A generation was rejected.
    Rejected {
        /// Instance.
        instance_id: String,
        /// Generation.
        generation: u64,
    },
    /// Anything else.
    Other,
}

/// What a waiting fact says: a newer fact of the same kind and generation replaces it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Topic {
    message: &'static str,
    generation: u64,
}

struct Waiting {
    /// Not to be said before; a newer status of its generation replaces it meanwhile.
    held_until: Option<Instant>,
    /// It was started in this life of the agent: what was said last is not this, however alike.
    is_news: bool,
    topic: Topic,
    fact: Outgoing,
    known: Known,
}

struct Done {
    entity: String,
    known: Known,
    /// Sequence of the entity's last fact.
    written: Result<u64, WriteError>,
}

/// Writes this agent's facts.
pub struct Publisher {
    bus: Bus,
    cluster_id: String,
    /// Tells the facts of one life of the agent from those of another.
    incarnation: u64,
    counter: u64,
    waiting: BTreeMap<String, VecDeque<Waiting>>,
    /// The last sequence of entities that have one on its way or waiting, or may have again.
    last: BTreeMap<String, u64>,
    in_flight: FuturesUnordered<BoxFuture<'static, Done>>,
    busy: std::collections::BTreeSet<String>,
}

impl Publisher {
    /// For one life of a cluster's agent.
    pub fn new(bus: Bus, cluster_id: impl Into<String>, incarnation: u64) -> Self {
        Self {
            bus,
            cluster_id: cluster_id.into(),
            incarnation,
            counter: 0,
            waiting: BTreeMap::new(),
            last: BTreeMap::new(),
            in_flight: FuturesUnordered::new(),
            busy: std::collections::BTreeSet::new(),
        }
    }

    /// Says that the cluster is there.
    ///
    /// # Errors
    /// If the cluster's id does not fit a subject.
    pub fn register(&mut self, fact: &ClusterRegistered, now: Timestamp) -> Result<(), DecodeError> {
        let id = derived_id(&["cluster", &fact.cluster_id, &self.incarnation.to_string()]);
        let topic = Topic { message: ClusterRegistered::MESSAGE, generation: 0 };
        let entity = format!("cluster.*.*.{}", self.cluster_id);
        self.wait(
            entity,
            Waiting {
                held_until: None,
                is_news: false,
                topic,
                fact: Outgoing::new(fact, id, now)?,
                known: Known::Other,
            },
        );
        Ok(())
    }

    /// Says something of an instance.
    ///
    /// # Errors
    /// If its id does not fit a subject.
    pub fn publish(&mut self, said: &Report, now: Timestamp) -> Result<(), DecodeError> {
        self.counter += 1;
        let (incarnation, counter) = (self.incarnation.to_string(), self.counter.to_string());
        let id = |instance_id: &str, generation: u64, what: &str| {
            derived_id(&[&self.cluster_id, instance_id, &generation.to_string(), what, &incarnation, &counter])
        };
        let mut held_until = None;
        let (instance_id, outgoing, topic, known) = match &said.fact {
            Fact::Status(fact) => {
                let (instance_id, generation) = (fact.instance_id.clone(), fact.generation);
                let id = id(&instance_id, generation, fact.phase().as_str_name());
                let known = match fact.phase() {
                    InstancePhase::Stopped => Known::Stopped { instance_id: instance_id.clone(), generation },
                    _ => Known::Other,
                };
                held_until = (fact.phase() == InstancePhase::Starting).then(|| Instant::now() + STARTING_HELD);
                let topic = Topic { message: InstanceStatusChanged::MESSAGE, generation };
                (instance_id, Outgoing::new(fact, id, now)?, topic, known)
            }
            Fact::Rejected(fact) => {
                let (instance_id, generation) = (fact.instance_id.clone(), fact.generation);
                let id = id(&instance_id, generation, "rejected");
                let known = Known::Rejected { instance_id: instance_id.clone(), generation };
                let topic = Topic { message: InstanceRejected::MESSAGE, generation };
                (instance_id, Outgoing::new(fact, id, now)?, topic, known)
            }
        };
        let fact = if said.cause == Cause::default() { outgoing } else { outgoing.caused_by(said.cause.clone()) };
        let entity = format!("instance.*.*.{}.{instance_id}", self.cluster_id);
        self.wait(entity, Waiting { held_until, is_news: held_until.is_some(), topic, fact, known });
        Ok(())
    }

    /// Facts that are not stored yet.
    pub fn unsaid(&self) -> usize {
        self.in_flight.len() + self.waiting.values().map(VecDeque::len).sum::<usize>()
    }

    /// The next fact that was stored. Waits for ever while there is none to store. Dropped before its end, nothing is
    /// lost.
    ///
    /// # Errors
    /// If the bus was closed.
    pub async fn next(&mut self) -> Result<Known, WriteError> {
        let done = loop {
            self.set_out();
            let held = self.waiting.values().filter_map(|waiting| waiting.front()?.held_until).min();
            tokio::select! {
                Some(done) = self.in_flight.next(), if !self.in_flight.is_empty() => break done,
                () = tokio::time::sleep_until(held.unwrap_or_else(Instant::now)), if held.is_some() => {}
                else => std::future::pending().await,
            }
        };
        self.busy.remove(&done.entity);
        let last = done.written?;
        let over = matches!(done.known, Known::Stopped { .. }) && !self.waiting.contains_key(&done.entity);
        if over {
            self.last.remove(&done.entity);
        } else {
            self.last.insert(done.entity, last);
        }
        Ok(done.known)
    }

    fn wait(&mut self, entity: String, new: Waiting) {
        let waiting = self.waiting.entry(entity).or_default();
        match waiting.iter_mut().find(|old| old.topic == new.topic) {
            Some(old) => *old = Waiting { is_news: new.is_news || old.is_news, ..new },
            None => waiting.push_back(new),
        }
        self.set_out();
    }

    fn set_out(&mut self) {
        while self.in_flight.len() < IN_FLIGHT_MAX {
            let now = Instant::now();
            let is_held = |waiting: &Waiting| waiting.held_until.is_some_and(|until| until > now);
            let mut ready = self
                .waiting
                .iter()
                .filter(|(entity, waiting)| !self.busy.contains(*entity) && !waiting.front().is_some_and(is_held));
            let Some(entity) = ready.next().map(|(entity, _)| entity.clone()) else { return };
            let Some(waiting) = self.waiting.get_mut(&entity) else { return };
            let next = waiting.pop_front();
            if waiting.is_empty() {
                self.waiting.remove(&entity);
            }
            let Some(Waiting { fact, known, is_news, .. }) = next else { continue };
            let stream = fact.stream.clone();
            let (writer, log) = (self.bus.writer(&stream), self.bus.log(&stream));
            let expected = self.last.get(&entity).copied();
            self.busy.insert(entity.clone());
            self.in_flight.push(Box::pin(async move {
                let written = write(&writer, &log, &entity, expected, fact, is_news).await;
                Done { entity, known, written }
            }));
        }
    }
}

/// Writes a fact; gives the sequence of the entity's last fact. Only a closed bus makes it give up.
async fn write(
    writer: &Writer,
    log: &Log,
    entity: &str,
    mut expected: Option<u64>,
    fact: Outgoing,
    is_news: bool,
) -> Result<u64, WriteError> {
    loop {
        let last = match expected {
            Some(last) => last,
            None => match log.last(entity).await {
                Ok(Some(last)) if same_content(&last, &fact, is_news) => return Ok(last.sequence),
                Ok(last) => last.map_or(0, |last| last.sequence),
                Err(LogError::Closed { stream }) => return Err(WriteError::Closed { stream }),
                Err(error) => {
                    tracing::warn!(entity, error = %error, "own last fact not read; trying again");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            },
        };
        let decision = Decision { entity: entity.to_owned(), expected: last, messages: vec![fact.clone()] };
        match writer.write(decision).await {
            Ok(Written::Stored { last }) => return Ok(last),
            // An earlier life of this agent may have written; nobody else does.
            Ok(Written::Stale { .. }) => expected = None,
            Err(error @ (WriteError::Closed { .. } | WriteError::Full { .. })) => return Err(error),
            Err(error) => {
                tracing::error!(entity, error = %error, "own fact refused; trying again");
                expected = None;
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Was this said already: the same fact, or, unless it is news, one that differs only in when it was said?
fn same_content(last: &Stored, fact: &Outgoing, is_news: bool) -> bool {
    if last.id == fact.id {
        return true;
    }
    if is_news || last.message != fact.message {
        return false;
    }
    let timeless = |body: &bytes::Bytes| {
        <InstanceStatusChanged as prost::Message>::decode(body.clone())
            .ok()
            .map(|f| InstanceStatusChanged { at: None, ..f })
    };
    match fact.message.as_str() {
        InstanceStatusChanged::MESSAGE => timeless(&last.body).is_some_and(|last| Some(last) == timeless(&fact.body)),
        InstanceRejected::MESSAGE => last.body == fact.body,
        _ => false,
    }
}
