//! The shell around a decider: moves bytes between the bus and a [`Replica`], and nothing else.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use mesh_bus::{Bucket, Bus, WriteError, Written};
use mesh_core::{Outgoing, Stored};
use mesh_proto::contract::{DurableSpec, matches};
use tokio::sync::{mpsc, watch};
use tracing::Instrument as _;

use crate::{
    mesh::Mesh,
    metrics,
    poison::{self, Note},
    saved, telemetry,
};
use mesh_core::{
    Decider, Key,
    replica::{Counts, INDEX, Index, Outcome, Replica, Step},
};

/// Inputs that may be in hand, undone, before the shell stops taking more.
const OPEN_MAX: usize = 20_000;
/// Messages read at once from the history of a stream.
const READ_MAX: usize = 1_000;
/// Entities kept in memory; beyond it, saved and idle ones are read again when needed.
const ENTITIES_MAX: usize = 200_000;
/// Entities saved in one go: a short piece of work for the server, between which decisions find their way.
const SAVE_MAX: usize = 100;
/// Between two goes while entities are left.
const SAVE_PACE: Duration = Duration::from_millis(50);
/// How often what changed is saved.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// How often a durable is checked for messages that a vanished replica left behind.
const RESCUE_EVERY: Duration = Duration::from_secs(2);
/// Inputs are acked at most so often, all that are done at once: the server writes its state of a durable to disk for
/// acks, and what is not acked yet is at worst delivered again and known.
const ACK_EVERY: Duration = Duration::from_millis(50);

impl Mesh {
    /// Joins as a replica of this decider: reads what was decided so far, then decides until the process stops.
    /// Returns once its views are caught up and its inputs flow.
    pub async fn decide<D: Decider>(&self, decider: D) -> anyhow::Result<()> {
        let (_, spec) =
            mesh_proto::contract().decider(D::NAME).ok_or_else(|| anyhow!("no decider {} in the contract", D::NAME))?;
        let durables = mesh_proto::contract().durables(spec);
        let condition = self.condition(&format!("decider {}", D::NAME));
        condition.unmet("reading what was decided so far");
        let shell = Shell::start(self.clone(), decider, durables).await?;
        condition.met();
        self.spawn(D::NAME, shell.run());
        Ok(())
    }
}

/// What the shell's sources tell it.
enum Arrival {
    Fact(Box<Stored>),
    ReadModel(Box<Stored>),
    Inputs(Vec<Stored>),
    /// The inputs that follow were another replica's until now; its facts end here.
    TakeOver(u64),
    /// An input that is not to be decided: stream and sequence.
    Skip(String, u64),
}

/// What has ended.
enum Ended {
    Load(Key, anyhow::Result<Option<Bytes>>),
    Write(u64, Result<Outcome, WriteError>),
    Bury(u64),
    Save(anyhow::Result<u64>, Option<Index>, Vec<String>),
    /// After a refused save: the revision of the index and the index that another replica has saved.
    Overtaken(u64, Index),
}

struct Shell<D: Decider> {
    mesh: Mesh,
    replica: Replica<D>,
    bucket: Bucket,
    stream: String,
    arrivals: mpsc::Receiver<Arrival>,
    low_waters: BTreeMap<String, watch::Sender<u64>>,
    /// Per input stream, what of it the decider hears; a durable delivers somewhat more.
    filters: BTreeMap<String, Vec<String>>,
    ended: FuturesUnordered<BoxFuture<'static, Ended>>,
    /// Position of the saved index, and its revision, by which a replica that was replaced is told apart.
    saved: u64,
    revision: u64,
    saving: bool,
    /// When to save next.
    save_at: tokio::time::Instant,
    told: Counts,
    meter: metrics::Consumer,
    /// Per input stream, when some inputs were taken in: the first of each arrival, oldest first.
    taken: BTreeMap<String, VecDeque<(u64, Instant)>>,
}

impl<D: Decider> Shell<D> {
    async fn start(mesh: Mesh, decider: D, durables: Vec<DurableSpec>) -> anyhow::Result<Self> {
        let bus = mesh.bus().clone();
        let bucket = saved::bucket::<D>(&bus);
        let (index, revision) = match bucket.entry(INDEX).await.context("read snapshot index")? {
            // Empty while the first snapshot is still being written.
            Some((bytes, revision)) if bytes.is_empty() => (None, revision),
            Some((bytes, revision)) => {
                (Some(serde_json::from_slice::<Index>(&bytes).context("decode snapshot index")?), revision)
            }
            None => (None, 0),
        };
        let saved = index.as_ref().map_or(0, |i| i.position);
        let mut replica = Replica::new(decider, index);
        let area = <D::Fact as mesh_proto::FactSet>::AREA;
        let stream = area.to_uppercase();
        let worlds = replica.world_streams();
        let own_world = worlds.contains(&stream);
        let (sender, arrivals) = mpsc::channel(4_096);

        // Read everything that is there before anything is decided.
        let mut own = bus.log(&stream).tail(&format!("{area}.>"), if own_world { 1 } else { saved + 1 });
        let end = bus.log(&stream).last_sequence().await?;
        let mut shell_steps = Loader { bucket: bucket.clone() };
        while own.position() < end {
            replica.fact(own.next().await?);
            shell_steps.load(&mut replica).await?;
        }
        for world in worlds.iter().filter(|w| **w != stream) {
            let subject = mesh_proto::contract().stream(world).map(|s| s.subject.clone()).unwrap_or_default();
            let log = bus.log(world);
            let mut tail = log.tail(&subject, 1);
            let end = log.last_sequence().await?;
            while tail.position() < end {
                replica.world_fact(&tail.next().await?);
            }
            let (sender, stopping) = (sender.clone(), mesh.stopping());
            mesh.spawn("world", async move {
                loop {
                    let stored = tokio::select! {
                        stored = tail.next() => stored.context("read World")?,
                        () = stopping.cancelled() => return Ok(()),
                    };
                    if sender.send(Arrival::ReadModel(Box::new(stored))).await.is_err() {
                        return Ok(());
                    }
                }
            });
        }
        let (facts, stopping) = (sender.clone(), mesh.stopping());
        mesh.spawn("own facts", async move {
            loop {
                let stored = tokio::select! {
                    stored = own.next() => stored.context("read own facts")?,
                    () = stopping.cancelled() => return Ok(()),
                };
                if facts.send(Arrival::Fact(Box::new(stored))).await.is_err() {
                    return Ok(());
                }
            }
        });
        let mut low_waters = BTreeMap::new();
        let mut filters = BTreeMap::new();
        for durable in durables {
            let (low_water, done) = watch::channel(0);
            low_waters.insert(durable.stream.clone(), low_water);
            filters.insert(durable.stream.clone(), durable.filters.clone());
            let (bus, own, bucket, sender, mesh_) =
                (bus.clone(), stream.clone(), bucket.clone(), sender.clone(), mesh.clone());
            let puller = Puller { bus, own, bucket, durable, sender, done, mesh: mesh_, name: D::NAME };
            mesh.spawn("inputs", puller.run());
        }
        let meter = mesh.consumer(D::NAME);
        Ok(Self {
            replica,
            bucket,
            stream,
            arrivals,
            low_waters,
            filters,
            ended: FuturesUnordered::new(),
            saved,
            revision,
            saving: false,
            save_at: tokio::time::Instant::now() + SAVE_EVERY,
            told: Counts::default(),
            taken: BTreeMap::new(),
            meter,
            mesh,
        })
    }

    async fn run(mut self) -> anyhow::Result<()> {
        let stopping = self.mesh.stopping();
        let mut arrived = Vec::with_capacity(1_024);
        loop {
            self.take_steps();
            self.tell();
            let open = self.replica.open() < OPEN_MAX;
            let due = self.replica.next_due().map(|due| due.millis_since(self.mesh.now()).max(0) as u64);
            // Whatever arrives: what is due is asked, and what is to be saved is.
            if due == Some(0) {
                let now = self.mesh.now();
                self.replica.pass(now);
                self.take_steps();
            }
            if !self.saving && tokio::time::Instant::now() >= self.save_at {
                self.save();
            }
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                Some(ended) = self.ended.next(), if !self.ended.is_empty() => {
                    self.end(ended)?;
                    // Whatever else has ended by now is taken in before anything new is decided.
                    while let Some(Some(ended)) = self.ended.next().now_or_never() {
                        self.end(ended)?;
                    }
                }
                count = self.arrivals.recv_many(&mut arrived, 1_024), if open => {
                    if count == 0 {
                        break;
                    }
                    for arrival in arrived.drain(..) {
                        self.arrive(arrival);
                    }
                }
                () = tokio::time::sleep(Duration::from_millis(due.unwrap_or_default())), if due.is_some_and(|ms| ms > 0) => {}
                () = tokio::time::sleep_until(self.save_at), if !self.saving => {}
            }
        }
        self.drain().await
    }

    /// Settles what is in hand: nothing new is taken, what was decided is written and acked, then saved.
    async fn drain(mut self) -> anyhow::Result<()> {
        self.replica.stop();
        self.take_steps();
        while self.replica.in_flight() > 0 || self.saving {
            let Some(ended) = self.ended.next().await else { break };
            self.end(ended)?;
        }
        self.tell();
        loop {
            self.save();
            if !self.saving {
                return Ok(());
            }
            while let Some(ended) = self.ended.next().await {
                // Refused by another replica, which has saved: what is left is in the streams.
                let is_over = matches!(ended, Ended::Save(Err(_), ..));
                let is_saved = matches!(ended, Ended::Save(..));
                if is_over {
                    return Ok(());
                }
                self.end(ended)?;
                if is_saved {
                    break;
                }
            }
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Fact(stored) => self.replica.fact(*stored),
            Arrival::ReadModel(stored) => self.replica.world_fact(&stored),
            Arrival::TakeOver(own_end) => self.replica.take_over(own_end),
            Arrival::Skip(stream, sequence) => self.replica.skip_through(&stream, sequence),
            Arrival::Inputs(inputs) => {
                if let Some(first) = inputs.first() {
                    let taken = self.taken.entry(first.stream.clone()).or_default();
                    taken.push_back((first.sequence, Instant::now()));
                }
                for input in inputs {
                    let filters = self.filters.get(&input.stream);
                    match filters.is_none_or(|f| f.iter().any(|f| matches(f, &input.subject))) {
                        true => self.replica.input(input),
                        false => self.replica.skip_through(&input.stream, input.sequence),
                    }
                }
            }
        }
    }

    fn end(&mut self, ended: Ended) -> anyhow::Result<()> {
        match ended {
            Ended::Load(key, bytes) => {
                let bytes = bytes.with_context(|| format!("load entity {key}"))?;
                self.replica.loaded(&key, bytes.as_deref()).with_context(|| format!("decode snapshot of {key}"))?;
            }
            Ended::Write(ticket, Ok(outcome)) => self.replica.written(ticket, outcome),
            Ended::Write(ticket, Err(error))
                if !matches!(error, WriteError::Closed { .. } | WriteError::Full { .. }) =>
            {
                tracing::error!(
                    decider = D::NAME,
                    error = &error as &dyn std::error::Error,
                    "decision cannot be stored"
                );
                self.replica.written(ticket, Outcome::Impossible);
            }
            Ended::Write(_, Err(error)) => {
                // The bus is being closed: the input is not acked and will be decided again.
                tracing::warn!(decider = D::NAME, error = &error as &dyn std::error::Error, "decision not stored");
            }
            Ended::Bury(ticket) => self.replica.dead_lettered(ticket),
            Ended::Save(result, index, keys) => {
                self.saving = false;
                match result {
                    Ok(revision) => {
                        let pace = if index.is_some() { SAVE_EVERY } else { SAVE_PACE };
                        self.save_at = tokio::time::Instant::now() + pace;
                        self.saved = index.map_or(self.saved, |index| index.position);
                        self.revision = revision;
                        self.replica.evict(ENTITIES_MAX, self.saved);
                    }
                    Err(error) => {
                        // Another replica saved since, or the bus is away: what is not saved stays in the streams.
                        tracing::debug!(decider = D::NAME, error = %error, "snapshot not saved");
                        self.replica.unsaved(keys);
                        self.ended.push(self.revisit());
                        self.saving = true;
                    }
                }
            }
            Ended::Overtaken(revision, index) => {
                self.saving = false;
                self.save_at = tokio::time::Instant::now() + SAVE_EVERY;
                self.saved = index.position;
                self.revision = revision;
                self.replica.overtaken(self.saved);
                self.replica.evict(ENTITIES_MAX, self.saved);
            }
        }
        Ok(())
    }

    /// Reads the index again after a refused save: the other replica's position and revision count.
    fn revisit(&self) -> BoxFuture<'static, Ended> {
        let (bucket, saved, revision) = (self.bucket.clone(), self.saved, self.revision);
        async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let entry = bucket.entry(INDEX).await.ok().flatten();
            // No index yet: the other replica is still writing its first snapshot.
            let index = entry.as_ref().and_then(|(bytes, _)| serde_json::from_slice::<Index>(bytes).ok());
            let index = index.unwrap_or_else(|| Index { position: saved, ..Index::default() });
            let revision = entry.map_or(revision, |(_, revision)| revision);
            Ended::Overtaken(revision, index)
        }
        .boxed()
    }

    fn take_steps(&mut self) {
        while let Some(step) = self.replica.next_step() {
            let ended = match step {
                Step::Load(key) => {
                    let bucket = self.bucket.clone();
                    async move {
                        let bytes = bucket.get(&mesh_core::replica::snapshot_key(&key)).await;
                        Ended::Load(key, bytes.map_err(Into::into))
                    }
                    .boxed()
                }
                Step::Write { ticket, mut decision } => {
                    let handled = decision.messages.first().and_then(|m| m.traceparent.clone());
                    let span = tracing::info_span!("decide", decider = D::NAME, entity = decision.entity);
                    telemetry::adopt(&span, handled.as_deref());
                    let traceparent = span.in_scope(|| telemetry::traceparent(handled.as_deref()));
                    for message in &mut decision.messages {
                        message.traceparent.clone_from(&traceparent);
                    }
                    let (bus, stream, entity) = (self.mesh.bus().clone(), self.stream.clone(), decision.entity.clone());
                    let write = bus.writer(&stream).write(decision);
                    async move {
                        let outcome = match write.await {
                            Ok(Written::Stored { last }) => Ok(Outcome::Stored(last)),
                            Ok(Written::Stale { last: Some(last) }) => Ok(Outcome::Moved(last)),
                            Ok(Written::Stale { last: None }) => {
                                Ok(Outcome::Moved(last_of(&bus, &stream, &entity).await))
                            }
                            Err(error) => Err(error),
                        };
                        Ended::Write(ticket, outcome)
                    }
                    .instrument(span)
                    .boxed()
                }
                Step::DeadLetter { ticket, input, reason } => {
                    let mesh = self.mesh.clone();
                    async move {
                        bury(&mesh, &input, &reason).await;
                        Ended::Bury(ticket)
                    }
                    .boxed()
                }
            };
            self.ended.push(ended);
        }
    }

    /// Tells the pullers what is done, and the metrics what happened.
    fn tell(&mut self) {
        for (stream, low_water) in &self.low_waters {
            let now = self.replica.low_water(stream);
            low_water.send_if_modified(|before| std::mem::replace(before, now) != now);
            let Some(taken) = self.taken.get_mut(stream) else { continue };
            while let Some((_, since)) = taken.pop_front_if(|(sequence, _)| *sequence <= now) {
                self.meter.took(since.elapsed());
            }
        }
        let now = self.replica.counts();
        if now != self.told {
            self.meter.add(self.told, now, self.replica.entities(), self.replica.open());
            self.told = now;
        }
    }

    fn save(&mut self) {
        self.save_at = tokio::time::Instant::now() + SAVE_EVERY;
        let Some((entries, index)) = self.replica.snapshot(SAVE_MAX, self.saved) else { return };
        let Ok(bytes) = index.as_ref().map(serde_json::to_vec).transpose() else { return };
        let keys: Vec<String> = entries.iter().map(|(key, _)| key.clone()).collect();
        let entries = entries.into_iter().map(|(key, bytes)| (key, Bytes::from(bytes))).collect();
        let (bucket, revision) = (self.bucket.clone(), self.revision);
        self.saving = true;
        self.ended.push(
            async move {
                let result = bucket.put_all_if((INDEX, bytes.map(Bytes::from)), revision, entries).await;
                let result = result.map_err(Into::into).and_then(|r| r.ok_or_else(|| anyhow!("another replica saved")));
                Ended::Save(result, index, keys)
            }
            .boxed(),
        );
    }
}

/// Answers the loads of a replica that is still catching up.
struct Loader {
    bucket: Bucket,
}

impl Loader {
    async fn load<D: Decider>(&mut self, replica: &mut Replica<D>) -> anyhow::Result<()> {
        while let Some(step) = replica.next_step() {
            let Step::Load(key) = step else { continue };
            let bytes = self.bucket.get(&mesh_core::replica::snapshot_key(&key)).await.context("read snapshot")?;
            replica.loaded(&key, bytes.as_deref()).with_context(|| format!("decode snapshot of {key}"))?;
        }
        Ok(())
    }
}

/// Sequence of the entity's last fact; asks until the bus answers.
async fn last_of(bus: &Bus, stream: &str, entity: &str) -> u64 {
    loop {
        match bus.log(stream).last(entity).await {
            Ok(last) => return last.map_or(0, |stored| stored.sequence),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "read entity's last fact");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Publishes an input as a dead letter, with its reason; asks until the bus has it.
pub(crate) async fn bury(mesh: &Mesh, input: &Stored, reason: &str) {
    tracing::error!(subject = input.subject, stream = input.stream, sequence = input.sequence, reason, "dead letter");
    let letter = Outgoing {
        id: mesh_proto::derived_id(&["dead", mesh.name(), &input.stream, &input.sequence.to_string()]),
        message: input.message.clone(),
        stream: "DEAD".into(),
        subject: format!("dead.{}", input.subject),
        time: mesh.now(),
        cause: Some(input.cause_of()),
        traceparent: input.traceparent.clone(),
        world: vec![],
        body: input.body.clone(),
    };
    while let Err(error) = mesh.bus().publish_dead(&letter, reason, input.content_type.as_deref()).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "dead letter not stored yet");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Pulls one durable like a log, and acks what is done.
struct Puller {
    name: &'static str,
    bus: Bus,
    /// The stream of the decider's own facts.
    own: String,
    /// Holds what is noted of inputs that may have ended the process.
    bucket: Bucket,
    durable: DurableSpec,
    sender: mpsc::Sender<Arrival>,
    done: watch::Receiver<u64>,
    mesh: Mesh,
}

impl Puller {
    async fn run(mut self) -> anyhow::Result<()> {
        let stopping = self.mesh.stopping();
        let mut pull = tokio::select! {
            pull = self.bus.pull(&self.durable.stream, &self.durable.name) => pull.context("join durable")?,
            () = stopping.cancelled() => return Ok(()),
        };
        // What lies between the ack floor and the last delivery may be in nobody's hands: read it in order.
        // If another replica has it, the conditions of the writes tell.
        let info = pull.info().await.context("read durable")?;
        let mut floor = info.ack_floor;
        if !self.take_over().await? {
            return Ok(());
        }
        let note = self.note(floor, info.delivered).await?;
        if note.is_careful() {
            self.one_by_one(note, floor, info.delivered).await?;
        } else {
            self.rescue(floor, info.delivered).await?;
        }
        let mut pin = pull.pin();
        let mut rescue = tokio::time::interval(RESCUE_EVERY);
        let lag = self.mesh.condition(&format!("inputs of {} from {}", self.name, self.durable.stream));
        let lag_max = self.mesh.settings().ready_lag_max;
        let meter = self.mesh.consumer(&format!("{} from {}", self.name, self.durable.stream));
        let mut batch = Vec::with_capacity(256);
        let (mut acked, mut ack_at) = (0, tokio::time::Instant::now());
        loop {
            let done = *self.done.borrow_and_update();
            tokio::select! {
                stored = pull.next() => {
                    batch.push(stored.context("pull")?);
                    while batch.len() < 256 {
                        match pull.next().now_or_never() {
                            Some(stored) => batch.push(stored.context("pull")?),
                            None => break,
                        }
                    }
                    if pull.pin() != pin {
                        // Another replica was served in between: what it decided is read, and what it left comes first.
                        pin = pull.pin();
                        if !self.take_over().await? {
                            return Ok(());
                        }
                        let first = batch.iter().map(|stored| stored.sequence).min().unwrap_or_default();
                        let info = pull.info().await.context("read durable")?;
                        self.rescue(info.ack_floor, first.saturating_sub(1)).await?;
                    }
                    if self.sender.send(Arrival::Inputs(std::mem::take(&mut batch))).await.is_err() {
                        return Ok(());
                    }
                }
                changed = self.done.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                () = tokio::time::sleep_until(ack_at), if done > acked => {
                    pull.ack_through(done);
                    (acked, ack_at) = (done, tokio::time::Instant::now() + ACK_EVERY);
                }
                _ = rescue.tick() => {
                    let Ok(info) = pull.info().await else { continue };
                    lag.behind(info.pending, lag_max);
                    meter.lag(info.pending);
                    let stuck = info.ack_floor == floor && info.delivered > info.ack_floor;
                    floor = info.ack_floor;
                    if stuck && *self.done.borrow() < info.delivered {
                        self.rescue(info.ack_floor, info.delivered).await?;
                    }
                }
                () = stopping.cancelled() => break,
            }
        }
        // The last acks: of what was done and not acked yet, and of the decisions in hand, once they are written.
        let done = *self.done.borrow_and_update();
        if done > acked {
            pull.ack_through(done);
        }
        while self.done.changed().await.is_ok() {
            pull.ack_through(*self.done.borrow_and_update());
        }
        Ok(())
    }

    /// Tells where the own facts end; false once nobody listens any more.
    async fn take_over(&self) -> anyhow::Result<bool> {
        let own_end = self.bus.log(&self.own).last_sequence().await.context("read the end of the own facts")?;
        Ok(self.sender.send(Arrival::TakeOver(own_end)).await.is_ok())
    }

    fn note_key(&self) -> String {
        format!("hand.{}", self.durable.stream)
    }

    /// Reads what the last start noted of inputs that were in hand, and notes this start.
    async fn note(&self, floor: u64, delivered: u64) -> anyhow::Result<Note> {
        let before = self.bucket.get(&self.note_key()).await.context("read what was in hand")?;
        let known = before.is_some();
        // A note that cannot be read is of another version: it only costs some starts.
        let before = before.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let note = Note::start(before, floor, delivered);
        if known || !note.is_empty() {
            self.keep(&note).await?;
        }
        Ok(note)
    }

    async fn keep(&self, note: &Note) -> anyhow::Result<()> {
        let bytes = if note.is_empty() { vec![] } else { serde_json::to_vec(note).context("write what is in hand")? };
        self.bucket.put_all(vec![(self.note_key(), bytes.into())]).await.context("note what is in hand")
    }

    /// Takes in the inputs after `floor` up to `end` one by one: one of them may have ended the process before.
    async fn one_by_one(&mut self, mut note: Note, floor: u64, end: u64) -> anyhow::Result<()> {
        let stopping = self.mesh.stopping();
        // Whatever this process runs: only one of all suspects is in hand.
        let _turn = tokio::select! {
            turn = poison::TURN.lock() => turn,
            () = stopping.cancelled() => return Ok(()),
        };
        tracing::warn!(
            decider = self.name,
            stream = self.durable.stream,
            after = floor,
            through = end,
            starts = note.starts,
            "the process ended with these inputs in hand: they are taken in one by one"
        );
        let state = self.bus.state();
        let mut from = floor + 1;
        while let Some(input) = self.suspect(from, end).await? {
            from = input.sequence + 1;
            let sequence = input.sequence;
            match note.next(sequence) {
                poison::Verdict::Take => {}
                verdict => {
                    if verdict == poison::Verdict::Bury {
                        let reason = format!("it ended the process {} times", note.deaths(sequence));
                        bury(&self.mesh, &input, &reason).await;
                        note.buried(sequence);
                        self.keep(&note).await?;
                    }
                    let skip = Arrival::Skip(self.durable.stream.clone(), sequence);
                    if self.sender.send(skip).await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
            }
            self.keep(&note).await?;
            if self.sender.send(Arrival::Inputs(vec![input])).await.is_err() {
                return Ok(());
            }
            loop {
                let done = tokio::select! {
                    changed = self.done.changed() => match changed {
                        Ok(()) if *self.done.borrow() < sequence => continue,
                        changed => changed.is_ok(),
                    },
                    () = tokio::time::sleep(Duration::from_millis(250)) => {
                        let waits = { let now = state.borrow(); now.connected && now.full.is_some() };
                        if waits && note.hand != 0 {
                            // It waits for room: whoever ends the process now does not do so for its sake.
                            note.put_down();
                            self.keep(&note).await?;
                        }
                        if *self.done.borrow() < sequence {
                            continue;
                        }
                        true
                    }
                    () = stopping.cancelled() => false,
                };
                if !done {
                    // Stopped in order: nothing is charged, if the bus can still be told.
                    note.put_down();
                    if let Err(error) = self.keep(&note).await {
                        tracing::debug!(error = %error, "what was in hand stays noted");
                    }
                    return Ok(());
                }
                break;
            }
        }
        note.put_down();
        self.keep(&note).await
    }

    /// The first input from a sequence up to `end`.
    async fn suspect(&self, from: u64, end: u64) -> anyhow::Result<Option<Stored>> {
        let log = self.bus.log(&self.durable.stream);
        let subject =
            mesh_proto::contract().stream(&self.durable.stream).map(|s| s.subject.clone()).unwrap_or_default();
        let mut from = from;
        while from <= end {
            let read = log.read(&subject, from, 1).await.context("read inputs in hand")?;
            let Some(stored) = read.into_iter().next().filter(|stored| stored.sequence <= end) else { return Ok(None) };
            if self.durable.filters.iter().any(|f| matches(f, &stored.subject)) {
                return Ok(Some(stored));
            }
            from = stored.sequence + 1;
        }
        Ok(None)
    }

    /// Reads the inputs after `floor` up to `end` in order; those that were fed before are ignored there.
    async fn rescue(&self, floor: u64, end: u64) -> anyhow::Result<()> {
        let log = self.bus.log(&self.durable.stream);
        let subject =
            mesh_proto::contract().stream(&self.durable.stream).map(|s| s.subject.clone()).unwrap_or_default();
        let mut from = floor + 1;
        while from <= end {
            let read = log.read(&subject, from, READ_MAX).await.context("read inputs in hand")?;
            let Some(last) = read.last().map(|stored| stored.sequence) else { return Ok(()) };
            let inputs: Vec<Stored> = read
                .into_iter()
                .filter(|s| s.sequence <= end && self.durable.filters.iter().any(|f| matches(f, &s.subject)))
                .collect();
            if !inputs.is_empty() && self.sender.send(Arrival::Inputs(inputs)).await.is_err() {
                return Ok(());
            }
            from = last + 1;
        }
        Ok(())
    }
}
