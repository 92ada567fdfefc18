//! The shell around a projector: reads streams and samples into it, publishes what it derives, and lets others look.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use mesh_core::{Derived, Outgoing, Projector, Stored, replica::Change};
use mesh_proto::Timestamp;
use opentelemetry::metrics::Counter;
use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};

use crate::{
    mesh::Mesh,
    reader::Merged,
    view::{Shown, View},
};

/// Where a projector's view comes from.
#[derive(Debug, Default)]
pub struct Sources {
    /// Streams, read from their beginning and then live.
    pub streams: Vec<&'static str>,
    /// Those of them whose beginning the view has been given already, each with the sequence to go on with.
    pub from: BTreeMap<&'static str, u64>,
    /// Zenoh key expressions.
    pub samples: Vec<&'static str>,
    /// Samples that come by another way, each with the key that it would have on Zenoh.
    pub fed: Option<mpsc::Receiver<(String, Bytes)>>,
    /// How often [`Projector::tick`] is called, milliseconds.
    pub tick_ms: Option<u64>,
    /// How long facts may wait to be taken in together, milliseconds: for a view that nobody waits for.
    pub pace_ms: u64,
}

/// Derived events of facts stored earlier than this before the newest derived event are known to be published.
const OVERLAP_MS: i64 = 3_000;
/// Derived events waiting to be published.
const PENDING_MAX: usize = 10_000;
/// Shortest time between two publications of derived events; each publishes all there are by then.
const GATHER: Duration = Duration::from_millis(200);
/// The same while there are many, so that more of them share a write to disk: a batch costs the server as much as a dozen
/// single ones, however full it is.
const GATHER_MANY: Duration = Duration::from_secs(1);
/// Derived events in one publication while more wait than it takes.
const BEHIND_MAX: usize = 1_000;
/// Derived events in one publication that count as many.
const MANY: usize = 6;
/// Between two full batches of them.
const BREATH: Duration = Duration::from_millis(5);
/// Derived events published at once.
const GATHER_MAX: usize = 200;

/// Where derived events go: samples at once, since nothing waits for a disk there; all else gathered.
struct Outbox {
    gathered: mpsc::Sender<Outgoing>,
    samples: mpsc::Sender<Outgoing>,
}

impl Outbox {
    /// False when the process ends.
    async fn send(&self, message: Outgoing) -> bool {
        let kind = mesh_proto::contract().stream(&message.stream).map(|stream| stream.kind);
        let to = if kind == Some(mesh_proto::contract::Kind::Samples) { &self.samples } else { &self.gathered };
        to.send(message).await.is_ok()
    }
}

/// Arrivals waiting to be applied.
const ARRIVALS_MAX: usize = 4_096;

/// A stream that a view is given by its decider, with the states.
pub(crate) struct Shared<P, S> {
    pub(crate) stream: String,
    /// Where it begins there: what lies before is in the view already.
    pub(crate) from: u64,
    pub(crate) changes: mpsc::Receiver<Change<S>>,
    pub(crate) folded: fn(&mut P, &Stored, Option<&Arc<S>>) -> Vec<Derived>,
}

enum Arrival<S> {
    Facts(Vec<Arc<Stored>>),
    Folded(Change<S>),
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
        self.project_with::<P, ()>(name, projector, sources, None).await
    }

    /// [`project`](Self::project), with a stream that comes from its decider first.
    pub(crate) async fn project_with<P: Projector, S: Send + Sync + 'static>(
        &self,
        name: &'static str,
        projector: P,
        sources: Sources,
        mut shared: Option<Shared<P, S>>,
    ) -> anyhow::Result<View<P>> {
        let condition = self.condition(&format!("view {name}"));
        condition.unmet("reading its streams");
        let (sender, mut arrivals) = mpsc::channel::<Arrival<S>>(ARRIVALS_MAX);
        let (changed, changes) = watch::channel(0);
        let (gathered, outgoing) = mpsc::channel(PENDING_MAX);
        let (samples_out, outgoing_samples) = mpsc::channel(PENDING_MAX);
        let outbox = Outbox { gathered, samples: samples_out };
        let shown = Arc::new(RwLock::new(Shown::new(projector)));
        if let Some(shared) = &shared {
            shown.write().reached(&shared.stream, shared.from.saturating_sub(1));
        }
        let view = View::of(shown.clone(), changes);
        let published = self.published().await?;
        let meter = self.consumer(name);
        let subject = |stream: &&str| Some(mesh_proto::contract().stream(stream)?.subject.clone());
        meter.listens(sources.streams.iter().filter_map(subject));

        let folded = shared.as_ref().map(|shared| shared.folded);
        let apply = move |arrival: Arrival<S>, now: Timestamp| {
            let mut guard = shown.write();
            let (derived, cause) = match arrival {
                Arrival::Facts(facts) => {
                    let mut addressed = vec![];
                    for stored in &facts {
                        let derived = guard.projector.apply(stored);
                        guard.reached(&stored.stream, stored.sequence);
                        addressed.extend(derived.into_iter().filter_map(|d| address(d, Some(stored), &published)));
                    }
                    drop(guard);
                    changed.send_modify(|version| *version += 1);
                    return addressed;
                }
                Arrival::Folded(Change { fact, state }) => {
                    let derived = folded.map(|folded| folded(&mut guard.projector, &fact, state.as_ref()));
                    guard.reached(&fact.stream, fact.sequence);
                    (derived.unwrap_or_default(), Some(fact))
                }
                Arrival::Sample(key, body) => (guard.projector.sample(&key, &body), None),
                Arrival::Tick => (guard.projector.tick(now), None),
            };
            drop(guard);
            changed.send_modify(|version| *version += 1);
            derived.into_iter().filter_map(|d| address(d, cause.as_deref(), &published)).collect::<Vec<_>>()
        };

        let unstored = unstored(self);
        self.spawn("derived events", publish(self.clone(), outgoing, unstored.clone()));
        self.spawn("derived samples", publish_samples(self.clone(), outgoing_samples, unstored));

        // The past first, stream by stream; then everything live, in order of arrival.
        if let Some(shared) = &mut shared {
            let end =
                self.bus().log(&shared.stream).last_sequence().await.context("read end of the decider's facts")?;
            let mut position = shared.from.saturating_sub(1);
            while position < end {
                let change = shared.changes.recv().await.context("the decider ended")?;
                position = position.max(change.fact.sequence);
                for message in apply(Arrival::Folded(change), self.now()) {
                    anyhow::ensure!(outbox.send(message).await, "what was derived cannot be published");
                }
            }
        }
        let mut merged = Merged::new();
        for stream in &sources.streams {
            let end = self.bus().log(stream).last_sequence().await.with_context(|| format!("read end of {stream}"))?;
            let from = sources.from.get(stream).copied().unwrap_or(1);
            let mut follower = self.follow(stream, from);
            while follower.position() < end {
                let stored = follower.next().await.with_context(|| format!("read {stream}"))?;
                for message in apply(Arrival::Facts(vec![stored]), self.now()) {
                    anyhow::ensure!(outbox.send(message).await, "what was derived cannot be published");
                }
            }
            merged.add(follower);
        }
        condition.met();
        if let Some(Shared { mut changes, .. }) = shared {
            let sender = sender.clone();
            self.spawn("decider's facts", async move {
                while let Some(change) = changes.recv().await {
                    if sender.send(Arrival::Folded(change)).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(())
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
        if let Some(mut fed) = sources.fed {
            let (sender, stopping) = (sender.clone(), self.stopping());
            self.spawn("fed samples", async move {
                loop {
                    let sample = tokio::select! {
                        sample = fed.recv() => sample,
                        () = stopping.cancelled() => return Ok(()),
                    };
                    let Some((key, body)) = sample else { return Ok(()) };
                    if sender.send(Arrival::Sample(key, body)).await.is_err() {
                        return Ok(());
                    }
                }
            });
        }
        if let Some(tick_ms) = sources.tick_ms {
            let stopping = self.stopping();
            let sender = sender.clone();
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
        let pace = Duration::from_millis(sources.pace_ms);
        self.spawn(name, async move {
            // Held, so that a view of streams alone goes on when nothing else arrives.
            let _sender = sender;
            let stopping = mesh.stopping();
            let mut next = tokio::time::Instant::now();
            loop {
                let paced = async {
                    if !pace.is_zero() {
                        tokio::time::sleep_until(next).await;
                    }
                    merged.next().await
                };
                let arrival = tokio::select! {
                    arrival = arrivals.recv() => match arrival {
                        Some(arrival) => arrival,
                        None => return Ok(()),
                    },
                    facts = paced => Arrival::Facts(facts.context("follow")?),
                    () = stopping.cancelled() => return Ok(()),
                };
                let mut arrival = Some(arrival);
                while let Some(taken) = arrival.take() {
                    let is_facts = matches!(taken, Arrival::Facts(_));
                    let count = if let Arrival::Facts(facts) = &taken { facts.len() as u64 } else { 1 };
                    meter.received(count);
                    for message in apply(taken, mesh.now()) {
                        if !outbox.send(message).await {
                            return Ok(());
                        }
                    }
                    meter.handled(count);
                    if is_facts && !pace.is_zero() {
                        // All that has gathered, then a pause again.
                        arrival = merged.take().await.context("follow")?.map(Arrival::Facts);
                        next = tokio::time::Instant::now() + pace;
                    }
                }
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
    outgoing(&derived, cause)
}

/// A derived event as the message that it travels as; `None`, with a line in the log, if it has no subject.
pub fn outgoing(derived: &Derived, cause: Option<&Stored>) -> Option<Outgoing> {
    match Outgoing::new(derived.event.as_ref(), derived.id.clone(), derived.at) {
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

/// Counts derived messages that a stream did not take in time: its disk was full, or the bus away.
fn unstored(mesh: &Mesh) -> Counter<u64> {
    let counter = mesh.meter().u64_counter("mesh_derived_unstored_total");
    let counter = counter.with_description("derived messages that are not known to be stored").build();
    // Shown from the start.
    counter.add(0, &[]);
    counter
}

/// Publishes derived events in order. The first after a pause goes at once; what follows it is gathered, because many
/// at once are one write to disk where each alone is one.
async fn publish(mesh: Mesh, mut outgoing: mpsc::Receiver<Outgoing>, unstored: Counter<u64>) -> anyhow::Result<()> {
    let mut batch = Vec::with_capacity(GATHER_MAX);
    let stopping = mesh.stopping();
    let mut next = tokio::time::Instant::now();
    let mut most = GATHER_MAX;
    while outgoing.recv_many(&mut batch, most).await > 0 {
        while batch.len() < most {
            let room = most - batch.len();
            match tokio::time::timeout_at(next, outgoing.recv_many(&mut batch, room)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        // A full batch is followed by the next after a breath, in which decisions find their way to the server.
        let full = batch.len() == most;
        most = if full && outgoing.len() >= GATHER_MAX { BEHIND_MAX } else { GATHER_MAX };
        let gather = if batch.len() < MANY { GATHER } else { GATHER_MANY };
        next = tokio::time::Instant::now() + if full { BREATH } else { gather };
        let messages = std::mem::take(&mut batch);
        tokio::select! {
            result = mesh.bus().publish_counted(messages) => {
                if let Err(error) = result {
                    unstored.add(error.count, &[]);
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

/// Publishes derived samples as they come; those that came meanwhile go together.
async fn publish_samples(
    mesh: Mesh,
    mut outgoing: mpsc::Receiver<Outgoing>,
    unstored: Counter<u64>,
) -> anyhow::Result<()> {
    let mut batch = Vec::with_capacity(GATHER_MAX);
    let stopping = mesh.stopping();
    while outgoing.recv_many(&mut batch, GATHER_MAX).await > 0 {
        tokio::select! {
            result = mesh.bus().publish_counted(std::mem::take(&mut batch)) => {
                if let Err(error) = result {
                    unstored.add(error.count, &[]);
                    tracing::warn!(error = &error as &dyn std::error::Error, "derived samples not stored");
                }
            }
            () = stopping.cancelled() => return Ok(()),
        }
    }
    Ok(())
}
