//! The shell around a projector: reads streams and samples into it, publishes what it derives, and lets others look.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use mesh_core::{Outgoing, Stored};
use mesh_proto::Timestamp;
use tokio::sync::{mpsc, watch};

use crate::mesh::Mesh;
use mesh_core::{Derived, Projector};

/// Where a projector's view comes from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Streams, read from their beginning and then live.
    pub streams: Vec<&'static str>,
    /// Those of them whose beginning the view has been given already, each with the sequence to go on with.
    pub from: BTreeMap<&'static str, u64>,
    /// Zenoh key expressions.
    pub samples: Vec<&'static str>,
    /// How often [`Projector::tick`] is called, milliseconds.
    pub tick_ms: Option<u64>,
}

/// Read access to a projector's view.
pub struct View<P> {
    projector: Arc<RwLock<P>>,
    changes: watch::Receiver<u64>,
}

impl<P> Clone for View<P> {
    fn clone(&self) -> Self {
        Self { projector: self.projector.clone(), changes: self.changes.clone() }
    }
}

impl<P> View<P> {
    /// Looks at the view; keep it short, the projector waits.
    pub fn read<T>(&self, look: impl FnOnce(&P) -> T) -> T {
        look(&self.projector.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Rises with every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

/// Derived events of facts stored earlier than this before the newest derived event are known to be published.
const OVERLAP_MS: i64 = 2_000;
/// Derived events waiting to be published.
const PENDING_MAX: usize = 10_000;
/// Derived events are published at most so often, as many at once as there are by then.
const GATHER: Duration = Duration::from_millis(100);
/// Between two full batches of them.
const BREATH: Duration = Duration::from_millis(5);
/// Derived events published at once.
const GATHER_MAX: usize = 100;

enum Arrival {
    Fact(Box<Stored>),
    Sample(String, Bytes),
    Tick,
}

impl Mesh {
    /// Joins as a projector: reads its streams to their present end, then follows them until the process stops.
    /// Returns once the view is caught up.
    pub async fn project<P: Projector>(
        &self,
        name: &'static str,
        projector: P,
        sources: Sources,
    ) -> anyhow::Result<View<P>> {
        let condition = self.condition(&format!("view {name}"));
        condition.unmet("reading its streams");
        let (sender, mut arrivals) = mpsc::channel::<Arrival>(4_096);
        let (changed, changes) = watch::channel(0);
        let (outbox, outgoing) = mpsc::channel(PENDING_MAX);
        let projector = Arc::new(RwLock::new(projector));
        let view = View { projector: projector.clone(), changes };
        let published = self.published().await?;
        let meter = self.consumer(name);

        let apply = move |arrival: Arrival, now: Timestamp| {
            let mut guard = projector.write().unwrap_or_else(PoisonError::into_inner);
            let (derived, cause) = match arrival {
                Arrival::Fact(stored) => (guard.apply(&stored), Some(stored)),
                Arrival::Sample(key, body) => (guard.sample(&key, &body), None),
                Arrival::Tick => (guard.tick(now), None),
            };
            drop(guard);
            changed.send_modify(|version| *version += 1);
            derived.into_iter().filter_map(|d| address(d, cause.as_deref(), &published)).collect::<Vec<_>>()
        };

        self.spawn("derived events", publish(self.clone(), outgoing));

        // The past first, stream by stream; then everything live, in order of arrival.
        let mut tails = vec![];
        for stream in &sources.streams {
            let subject = mesh_proto::contract().stream(stream).map(|s| s.subject.clone()).unwrap_or_default();
            let log = self.bus().log(stream);
            let end = log.last_sequence().await.with_context(|| format!("read end of {stream}"))?;
            let from = sources.from.get(stream).copied().unwrap_or(1);
            let mut tail = log.tail(&subject, from);
            while tail.position() < end {
                let stored = tail.next().await.with_context(|| format!("read {stream}"))?;
                for message in apply(Arrival::Fact(Box::new(stored)), self.now()) {
                    outbox.send(message).await.context("publish what was derived")?;
                }
            }
            tails.push(tail);
        }
        condition.met();
        for mut tail in tails {
            let (sender, stopping) = (sender.clone(), self.stopping());
            self.spawn("tail", async move {
                loop {
                    let stored = tokio::select! {
                        stored = tail.next() => stored.context("tail")?,
                        () = stopping.cancelled() => return Ok(()),
                    };
                    if sender.send(Arrival::Fact(Box::new(stored))).await.is_err() {
                        return Ok(());
                    }
                }
            });
        }
        for key in &sources.samples {
            let mut samples = self.samples().await?.subscribe(key).await.with_context(|| format!("subscribe {key}"))?;
            let (sender, stopping) = (sender.clone(), self.stopping());
            self.spawn("samples", async move {
                loop {
                    let sample = tokio::select! {
                        sample = samples.next() => sample,
                        () = stopping.cancelled() => return Ok(()),
                    };
                    let Some(sample) = sample else { return Ok(()) };
                    if sender.send(Arrival::Sample(sample.key, sample.body)).await.is_err() {
                        return Ok(());
                    }
                }
            });
        }
        if let Some(tick_ms) = sources.tick_ms {
            let stopping = self.stopping();
            self.spawn("tick", async move {
                let mut ticks = tokio::time::interval(Duration::from_millis(tick_ms.max(1)));
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
                loop {
                    tokio::select! {
                        _ = ticks.tick() => {}
                        () = stopping.cancelled() => return Ok(()),
                    }
                    if sender.send(Arrival::Tick).await.is_err() {
                        return Ok(());
                    }
                }
            });
        }
        let mesh = self.clone();
        self.spawn(name, async move {
            let stopping = mesh.stopping();
            loop {
                let arrival = tokio::select! {
                    arrival = arrivals.recv() => arrival,
                    () = stopping.cancelled() => return Ok(()),
                };
                let Some(arrival) = arrival else { return Ok(()) };
                meter.received(1);
                for message in apply(arrival, mesh.now()) {
                    if outbox.send(message).await.is_err() {
                        return Ok(());
                    }
                }
                meter.handled(1);
            }
        });
        Ok(view)
    }

    /// When each derived stream of this service was last written.
    async fn published(&self) -> anyhow::Result<BTreeMap<String, Timestamp>> {
        let contract = mesh_proto::contract();
        let mut found = BTreeMap::new();
        let events = contract.service(self.name()).map(|s| s.publishes.clone()).unwrap_or_default();
        for event in events.iter().filter_map(|e| contract.event(e)) {
            let derived = contract.stream(&event.stream).is_some_and(|s| s.kind == mesh_proto::contract::Kind::Derived);
            if derived && !found.contains_key(&event.stream) {
                let last =
                    self.bus().log(&event.stream).last(&event.filter()).await.context("read last derived event")?;
                found.insert(event.stream.clone(), last.map_or(Timestamp::default(), |stored| stored.stored));
            }
        }
        Ok(found)
    }
}

/// Makes a derived event a message, unless it was published before the last restart.
fn address(derived: Derived, cause: Option<&Stored>, published: &BTreeMap<String, Timestamp>) -> Option<Outgoing> {
    let stream = derived.event.stream();
    if let (Some(fact), Some(last)) = (cause, published.get(stream))
        && fact.stored.plus_millis(OVERLAP_MS) < *last
    {
        return None;
    }
    match Outgoing::new(derived.event.as_ref(), derived.id, derived.at) {
        Ok(message) => Some(match cause {
            Some(fact) => message.caused_by(fact.cause_of()),
            None => message,
        }),
        Err(error) => {
            tracing::error!(event = derived.event.message(), %error, "derived event has no subject");
            None
        }
    }
}

/// Publishes derived events in order. The first after a pause goes at once; what follows it is gathered, because many
/// at once are one write to disk where each alone is one.
async fn publish(mesh: Mesh, mut outgoing: mpsc::Receiver<Outgoing>) -> anyhow::Result<()> {
    let mut batch = Vec::with_capacity(GATHER_MAX);
    let stopping = mesh.stopping();
    let mut next = tokio::time::Instant::now();
    while outgoing.recv_many(&mut batch, GATHER_MAX).await > 0 {
        while batch.len() < GATHER_MAX {
            let room = GATHER_MAX - batch.len();
            match tokio::time::timeout_at(next, outgoing.recv_many(&mut batch, room)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        // A full batch is followed by the next after a breath, in which decisions find their way to the server.
        let full = batch.len() == GATHER_MAX;
        next = tokio::time::Instant::now() + if full { BREATH } else { GATHER };
        let messages = std::mem::take(&mut batch);
        tokio::select! {
            result = mesh.bus().publish_many(messages) => {
                if let Err(error) = result {
                    tracing::warn!(error = &error as &dyn std::error::Error, "derived events not stored");
                }
            }
            () = stopping.cancelled() => return Ok(()),
        }
        if full {
            tokio::time::sleep(BREATH).await;
        }
    }
    Ok(())
}
