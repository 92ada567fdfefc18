//! The shell around a decider: moves bytes between the bus and a [`Replica`], and nothing else.

mod puller;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use mesh_bus::{Bucket, Bus, WriteError, Written};
use mesh_core::{
    Decider, Key, SharesFold, Stored,
    replica::{Change, Counts, INDEX, Index, Outcome, Replica, Step},
};
use mesh_proto::contract::{DurableSpec, matches};
use parking_lot::RwLock;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::puller::Puller;
use crate::{
    checkpoint,
    dead_letter::dead_letter,
    decided::Decided,
    mesh::Mesh,
    metrics,
    projector_shell::{Shared, Sources},
    reader::{Follower, Merged},
    telemetry,
    view::View,
};

/// Facts that a view which shares the fold may be behind.
const CHANGES_MAX: usize = 4_096;
/// Inputs that may be in hand, undone, before the shell stops taking more.
const OPEN_MAX: usize = 20_000;
/// Messages read at once from the history of a stream.
const READ_MAX: usize = 1_000;
/// Entities saved in one go: a short piece of work for the server, between which decisions find their way.
const SAVE_MAX: usize = 250;
/// Between two goes while entities are left.
const SAVE_PACE: Duration = Duration::from_millis(50);
/// How often what changed is saved.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// How often a durable is checked for messages that a vanished replica left behind.
const RESCUE_EVERY: Duration = Duration::from_secs(2);
/// Entities beyond the limit that may gather while the past is read.
const CATCH_UP_MAX: usize = 5_000;
/// How much work that a decider's inputs set in motion elsewhere may be under way: as much as comes back within this time,
const UNDER_WAY: Duration = Duration::from_millis(250);
/// and this number of entities at least.
const UNDER_WAY_MIN: usize = 64;
/// How often that is reckoned.
const RECKON_EVERY: Duration = Duration::from_millis(100);
/// Shortest time between two rounds of acks; each acks all inputs that are done. The server writes its state of a durable
/// to disk for acks, and an input that is not acked yet is at worst delivered again and recognised.
const ACK_EVERY: Duration = Duration::from_millis(50);

impl Mesh {
    /// Joins as a replica of this decider: reads what was decided so far, then decides until the process stops.
    /// Returns once its read model is caught up and its inputs flow, with read access to what it holds.
    pub async fn decide<D: Decider>(&self, decider: D) -> anyhow::Result<Decided<D>> {
        self.decide_within(decider, usize::MAX).await
    }

    /// [`decide`](Self::decide) with at most this number of idle entities in memory, however high `entities_max` is: for a
    /// decider whose view rests in a database.
    pub async fn decide_within<D: Decider>(&self, decider: D, entities_max: usize) -> anyhow::Result<Decided<D>> {
        let (_, spec) =
            mesh_proto::contract().decider(D::NAME).ok_or_else(|| anyhow!("no decider {} in the contract", D::NAME))?;
        let durables = mesh_proto::contract().durables(spec);
        self.start_deciding(decider, durables, None, entities_max).await
    }

    /// [`decide`](Self::decide) with a view that shares the decider's fold: it is given each fact of the decider's stream,
    /// from `from` on, with the state that it led to. Other streams it reads as any projector. Returns once both are caught
    /// up.
    pub async fn decide_and_show<D, P>(
        &self,
        decider: D,
        name: &'static str,
        view: P,
        from: u64,
        sources: Sources,
    ) -> anyhow::Result<(Decided<D>, View<P>)>
    where
        D: Decider,
        P: SharesFold<D::State>,
    {
        let (_, spec) =
            mesh_proto::contract().decider(D::NAME).ok_or_else(|| anyhow!("no decider {} in the contract", D::NAME))?;
        let durables = mesh_proto::contract().durables(spec);
        let (sender, changes) = mpsc::channel(CHANGES_MAX);
        let stream = <D::Fact as mesh_proto::FactSet>::AREA.to_uppercase();
        let shared = Shared { stream, from, changes, folded: P::folded };
        // Together: the view takes what the decider reads.
        tokio::try_join!(
            self.start_deciding(decider, durables, Some(Listener { sender, from }), usize::MAX),
            self.project_with(name, view, sources, Some(shared)),
        )
    }

    async fn start_deciding<D: Decider>(
        &self,
        decider: D,
        durables: Vec<DurableSpec>,
        listener: Option<Listener<D::State>>,
        entities_max: usize,
    ) -> anyhow::Result<Decided<D>> {
        let condition = self.condition(&format!("decider {}", D::NAME));
        condition.unmet("reading what was decided so far");
        let entities_max = self.settings().entities_max.min(entities_max);
        let shell = Shell::start(self.clone(), decider, durables, listener, entities_max).await?;
        condition.met();
        let decided = shell.decided();
        self.spawn(D::NAME, shell.run());
        Ok(decided)
    }
}

/// A view that is given what the decider reads.
struct Listener<S> {
    sender: mpsc::Sender<Change<S>>,
    /// Where it begins in the decider's stream.
    from: u64,
}

impl<S> Listener<S> {
    /// Gives it what there is. False once it is gone.
    async fn give(&self, mut next: impl FnMut() -> Option<Change<S>>) -> bool {
        while let Some(change) = next() {
            if self.sender.send(change).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// What the shell's sources tell it.
enum Arrival {
    /// Inputs are to be followed here from now on.
    Follow(Follower),
    Inputs(Vec<Arc<Stored>>),
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
    /// Shared with those who look; locked for one step at a time.
    replica: Arc<RwLock<Replica<D>>>,
    /// Rises with every change, for those who look.
    changed: watch::Sender<u64>,
    /// Somebody gave the replica something to do.
    wake: Arc<Notify>,
    bucket: Bucket,
    stream: String,
    /// Its own facts, and those of its read model.
    facts: Merged,
    /// Inputs that it follows.
    inputs: Merged,
    arrivals: mpsc::Receiver<Arrival>,
    low_waters: BTreeMap<String, watch::Sender<u64>>,
    /// Per input stream, what of it the decider hears; a durable delivers somewhat more.
    filters: BTreeMap<String, Vec<String>>,
    ended: FuturesUnordered<BoxFuture<'static, Ended>>,
    /// Entities that stay in memory; idle ones beyond are dropped.
    entities_max: usize,
    /// Position of the saved index, and its revision, by which a replica that was replaced is told apart.
    saved: u64,
    revision: u64,
    saving: bool,
    /// When to save next.
    save_at: tokio::time::Instant,
    told: Counts,
    meter: metrics::Consumer,
    /// Per input stream.
    meters: BTreeMap<String, metrics::Consumer>,
    listener: Option<Listener<D::State>>,
    window: Window,
    /// Per input stream, when some inputs were taken in: the first of each arrival, oldest first.
    taken: BTreeMap<String, VecDeque<(u64, Instant)>>,
}

impl<D: Decider> Shell<D> {
    async fn start(
        mesh: Mesh,
        decider: D,
        durables: Vec<DurableSpec>,
        listener: Option<Listener<D::State>>,
        entities_max: usize,
    ) -> anyhow::Result<Self> {
        let bus = mesh.bus().clone();
        let bucket = checkpoint::bucket::<D>(&bus);
        let (index, revision) = match bucket.entry(INDEX).await.context("read snapshot index")? {
            // Empty while the first snapshot is still being written.
            Some((bytes, revision)) if bytes.is_empty() => (None, revision),
            Some((bytes, revision)) => {
                (Some(serde_json::from_slice::<Index>(&bytes).context("decode snapshot index")?), revision)
            }
            None => (None, 0),
        };
        let mut saved = index.as_ref().map_or(0, |i| i.position);
        let mut revision = revision;
        let marks = index.as_ref().map(|i| i.inputs.clone()).unwrap_or_default();
        let mut replica = Replica::new(decider, index);
        // Once kept they are kept on: a durable that was not pulled for a while knows less.
        if !marks.is_empty() || durables.iter().any(|durable| mesh.follows_inputs(&durable.stream)) {
            replica.keep_marks();
        }
        let area = <D::Fact as mesh_proto::FactSet>::AREA;
        let stream = area.to_uppercase();
        let worlds = replica.world_streams();
        let own_world = worlds.contains(&stream);
        let (sender, arrivals) = mpsc::channel(4_096);

        // Read everything that is there before anything is decided.
        let from = if own_world { 1 } else { saved + 1 };
        let from = listener.as_ref().map_or(from, |listener| listener.from.min(from));
        if listener.is_some() {
            replica.share();
        }
        let mut own = mesh.follow(&stream, from);
        let end = bus.log(&stream).last_sequence().await?;
        let mut shell_steps = Loader { bucket: bucket.clone() };
        while own.position() < end {
            replica.fact(own.next().await?);
            shell_steps.load(&mut replica).await?;
            // A long past is saved on the way: memory holds no more of it than of the present.
            if replica.entities() > entities_max.saturating_add(CATCH_UP_MAX) {
                (saved, revision) = save_all(&bucket, &mut replica, (saved, revision), &marks).await;
                replica.evict(entities_max, saved);
            }
            if let Some(listener) = &listener {
                listener.give(|| replica.next_change()).await;
            }
        }
        let mut facts = Merged::new();
        for world in worlds.iter().filter(|w| **w != stream) {
            let mut follower = mesh.follow(world, 1);
            let end = bus.log(world).last_sequence().await?;
            while follower.position() < end {
                replica.world_fact(&*follower.next().await?);
            }
            facts.add(follower);
        }
        facts.add(own);
        let mut low_waters = BTreeMap::new();
        let mut filters = BTreeMap::new();
        for durable in durables {
            let (low_water, done) = watch::channel(0);
            low_waters.insert(durable.stream.clone(), low_water);
            filters.insert(durable.stream.clone(), durable.filters.clone());
            let (bus, own, bucket, sender, mesh_) =
                (bus.clone(), stream.clone(), bucket.clone(), sender.clone(), mesh.clone());
            let mark = marks.get(&durable.stream).copied().unwrap_or_default();
            let follows = mesh.follows_inputs(&durable.stream);
            let puller = Puller { bus, own, bucket, durable, mark, sender, done, mesh: mesh_, name: D::NAME };
            if follows {
                mesh.spawn("inputs", puller.follow());
            } else {
                mesh.spawn("inputs", puller.pull());
            }
        }
        let meter = mesh.consumer(D::NAME);
        meter.listens(filters.values().flatten().cloned());
        let meter_of = |stream: &String| {
            let meter = mesh.consumer(&format!("{} from {stream}", D::NAME));
            meter.listens(filters.get(stream).into_iter().flatten().cloned());
            (stream.clone(), meter)
        };
        let meters = low_waters.keys().map(meter_of).collect();
        Ok(Self {
            meters,
            replica: Arc::new(RwLock::new(replica)),
            changed: watch::Sender::new(0),
            wake: Arc::default(),
            bucket,
            stream,
            facts,
            inputs: Merged::new(),
            arrivals,
            low_waters,
            filters,
            ended: FuturesUnordered::new(),
            entities_max,
            saved,
            revision,
            saving: false,
            save_at: tokio::time::Instant::now() + SAVE_EVERY,
            told: Counts::default(),
            taken: BTreeMap::new(),
            window: Window::new(),
            meter,
            listener,
            mesh,
        })
    }

    /// Read access to what it holds.
    fn decided(&self) -> Decided<D> {
        Decided {
            replica: self.replica.clone(),
            bucket: self.bucket.clone(),
            changes: self.changed.subscribe(),
            wake: self.wake.clone(),
        }
    }

    async fn run(mut self) -> anyhow::Result<()> {
        let stopping = self.mesh.stopping();
        let mut arrived = Vec::with_capacity(1_024);
        loop {
            self.take_steps();
            self.tell();
            self.give_changes(&stopping).await;
            let (open, due) = {
                let replica = self.replica.read();
                (replica.open() < OPEN_MAX, replica.next_due())
            };
            let due = due.map(|due| due.millis_since(self.mesh.now()).max(0) as u64);
            // Whatever arrives: what is due is asked, and what is to be saved is.
            if due == Some(0) {
                let now = self.mesh.now();
                self.replica.write().pass(now);
                self.take_steps();
            }
            if !self.saving && tokio::time::Instant::now() >= self.save_at {
                self.save();
            }
            let waits = self.look();
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
                facts = self.facts.next() => self.read(facts.context("read facts")?),
                inputs = self.inputs.next(), if open => self.arrive(Arrival::Inputs(inputs.context("follow inputs")?)),
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
                () = self.wake.notified() => {}
                () = tokio::time::sleep(RECKON_EVERY), if waits => {}
            }
        }
        self.drain().await
    }

    /// Settles what is in hand: nothing new is taken, what was decided is written and acked, then saved.
    async fn drain(mut self) -> anyhow::Result<()> {
        self.replica.write().stop();
        self.take_steps();
        while self.saving || self.replica.read().in_flight() > 0 {
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

    /// Gives the view that shares the fold what was read; a view that lags is waited for.
    async fn give_changes(&mut self, stopping: &CancellationToken) {
        let Some(listener) = &self.listener else { return };
        let listens = tokio::select! {
            listens = listener.give(|| self.replica.write().next_change()) => listens,
            () = stopping.cancelled() => true,
        };
        if !listens {
            self.listener = None;
            self.replica.write().unshare();
        }
    }

    /// Reckons how much may be under way, and lets in who waited for that. True while somebody waits.
    fn look(&mut self) -> bool {
        let reckoned = self.window.reckon(self.replica.read().came_back());
        let Some(size) = reckoned else { return self.replica.read().waiting() > 0 };
        let now = self.mesh.now();
        let mut replica = self.replica.write();
        replica.decide_together_from(self.mesh.bus().batch_worth());
        replica.limit_under_way(size);
        replica.look(now);
        let waits = replica.waiting() > 0;
        drop(replica);
        self.take_steps();
        waits
    }

    /// Facts of one stream that were read.
    fn read(&mut self, facts: Vec<Arc<Stored>>) {
        let mut replica = self.replica.write();
        for fact in facts {
            if fact.stream == self.stream {
                replica.fact(fact);
            } else {
                replica.world_fact(&fact);
            }
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        let mut replica = self.replica.write();
        match arrival {
            Arrival::Follow(follower) => self.inputs.add(follower),
            Arrival::TakeOver(own_end) => replica.take_over(own_end),
            Arrival::Skip(stream, sequence) => replica.skip_through(&stream, sequence),
            Arrival::Inputs(inputs) => {
                if let Some(first) = inputs.first() {
                    let taken = self.taken.entry(first.stream.clone()).or_default();
                    taken.push_back((first.sequence, Instant::now()));
                }
                for input in inputs {
                    let filters = self.filters.get(&input.stream);
                    match filters.is_none_or(|f| f.iter().any(|f| matches(f, &input.subject))) {
                        true => replica.input(input),
                        false => replica.skip_through(&input.stream, input.sequence),
                    }
                }
            }
        }
    }

    fn end(&mut self, ended: Ended) -> anyhow::Result<()> {
        match ended {
            Ended::Load(key, bytes) => {
                let bytes = bytes.with_context(|| format!("load entity {key}"))?;
                let mut replica = self.replica.write();
                replica.loaded(&key, bytes.as_deref()).with_context(|| format!("decode snapshot of {key}"))?;
            }
            Ended::Write(ticket, Ok(outcome)) => self.replica.write().written(ticket, outcome),
            Ended::Write(ticket, Err(error))
                if !matches!(error, WriteError::Closed { .. } | WriteError::Full { .. }) =>
            {
                tracing::error!(
                    decider = D::NAME,
                    error = &error as &dyn std::error::Error,
                    "decision cannot be stored"
                );
                self.replica.write().written(ticket, Outcome::Impossible);
            }
            Ended::Write(_, Err(error)) => {
                // The bus is being closed: the input is not acked and will be decided again.
                tracing::warn!(decider = D::NAME, error = &error as &dyn std::error::Error, "decision not stored");
            }
            Ended::Bury(ticket) => self.replica.write().dead_lettered(ticket),
            Ended::Save(result, index, keys) => {
                self.saving = false;
                match result {
                    Ok(revision) => {
                        let pace = if index.is_some() { SAVE_EVERY } else { SAVE_PACE };
                        self.save_at = tokio::time::Instant::now() + pace;
                        self.saved = index.map_or(self.saved, |index| index.position);
                        self.revision = revision;
                        self.replica.write().evict(self.entities_max, self.saved);
                    }
                    Err(error) => {
                        // Another replica saved since, or the bus is unreachable: what is not saved stays in the streams.
                        tracing::debug!(decider = D::NAME, error = %error, "snapshot not saved");
                        self.replica.write().unsaved(keys);
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
                let mut replica = self.replica.write();
                replica.overtaken(self.saved);
                replica.evict(self.entities_max, self.saved);
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
        loop {
            // Not in the condition: the lock would be held as long as the step is looked at.
            let step = self.replica.write().next_step();
            let Some(step) = step else { return };
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
                    let mut span = tracing::Span::none();
                    let (mut handled, mut traceparent) = (None, None);
                    // One span for each input that the decision answers.
                    for (position, message) in decision.messages.iter_mut().enumerate() {
                        if position == 0 || message.traceparent != handled {
                            handled = message.traceparent.take();
                            span = tracing::info_span!("decide", decider = D::NAME, entity = decision.entity);
                            telemetry::adopt(&span, handled.as_deref());
                            traceparent = span.in_scope(|| telemetry::traceparent(handled.as_deref()));
                        }
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
                        dead_letter(&mesh, &input, &reason).await;
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
        let clock = self.mesh.now();
        let replica = self.replica.read();
        let mut oldest = 0;
        for (stream, low_water) in &self.low_waters {
            let age = replica.oldest(stream).map_or(0, |stored| clock.millis_since(stored).max(0).unsigned_abs());
            oldest = oldest.max(age);
            if let Some(meter) = self.meters.get(stream) {
                meter.age(age);
            }
            let now = replica.low_water(stream);
            low_water.send_if_modified(|before| std::mem::replace(before, now) != now);
            let Some(taken) = self.taken.get_mut(stream) else { continue };
            while let Some((_, since)) = taken.pop_front_if(|(sequence, _)| *sequence <= now) {
                self.meter.took(since.elapsed());
            }
        }
        let now = replica.counts();
        // Entities leave memory without anything to count.
        self.meter.add(self.told, now, replica.entities(), replica.open());
        self.meter.age(oldest);
        self.meter.waiting(replica.waiting());
        self.told = now;
        drop(replica);
        self.changed.send_modify(|version| *version += 1);
    }

    fn save(&mut self) {
        self.save_at = tokio::time::Instant::now() + SAVE_EVERY;
        let snapshot = self.replica.write().snapshot(SAVE_MAX, self.saved);
        let Some((entries, index)) = snapshot else { return };
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

/// How much may be under way: what came back lately, per time.
struct Window {
    at: Instant,
    ended: u64,
    /// Entities that come back each second.
    rate: f64,
}

impl Window {
    fn new() -> Self {
        Self { at: Instant::now(), ended: 0, rate: 0.0 }
    }

    /// The window from now on, if it is time to reckon it.
    fn reckon(&mut self, ended: u64) -> Option<usize> {
        let passed = self.at.elapsed();
        if passed < RECKON_EVERY {
            return None;
        }
        let rate = ended.saturating_sub(self.ended) as f64 / passed.as_secs_f64();
        // A rate that rises is believed sooner than one that falls.
        let share = if rate > self.rate { 0.5 } else { 0.1 };
        (self.at, self.ended, self.rate) = (Instant::now(), ended, self.rate + share * (rate - self.rate));
        Some(((self.rate * UNDER_WAY.as_secs_f64()) as usize).max(UNDER_WAY_MIN))
    }
}

/// Saves what a replica that is still catching up holds; where the saved index then is, and its revision. If it cannot be
/// saved, all of it stays in memory.
async fn save_all<D: Decider>(
    bucket: &Bucket,
    replica: &mut Replica<D>,
    (mut saved, mut revision): (u64, u64),
    marks: &BTreeMap<String, u64>,
) -> (u64, u64) {
    while let Some((entries, index)) = replica.snapshot(SAVE_MAX, saved) {
        // No input has been taken in yet: what is done of them is what was.
        let index = index.map(|index| Index { inputs: marks.clone(), ..index });
        let Ok(bytes) = index.as_ref().map(serde_json::to_vec).transpose() else { break };
        let keys: Vec<String> = entries.iter().map(|(key, _)| key.clone()).collect();
        let entries = entries.into_iter().map(|(key, bytes)| (key, Bytes::from(bytes))).collect();
        let Ok(Some(now)) = bucket.put_all_if((INDEX, bytes.map(Bytes::from)), revision, entries).await else {
            replica.unsaved(keys);
            break;
        };
        revision = now;
        if let Some(index) = index {
            saved = index.position;
            break;
        }
    }
    (saved, revision)
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
