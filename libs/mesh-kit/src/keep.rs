//! Keeps what a stream says in a store, batch by batch: a view that rests in a database, or in memory.
//!
//! The store may be away, slow, emptied or restored at any time. Then the service goes on; this task says how far behind
//! it is (the consumer's lag, and a condition of `/readyz`), tries again, and reads the stream from where the store is.

use std::{future::Future, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures::FutureExt as _;
use mesh_bus::{Log, LogError};
use mesh_core::Stored;
use mesh_proto::{Timestamp, contract};
use mesh_store::{Documents, Error, History, Series, Store, first_since, memory};

use crate::{config, http::Condition, mesh::Mesh, metrics::Consumer, reader::Follower};

/// Messages applied at once, and their bytes, about.
const BATCH_MAX: usize = 1_000;
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Pauses before a store that failed is tried again.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(3)];
/// Messages that a stream of samples may have lost when its server ended; a store that is further is of another bus.
const LOST_MAX: u64 = 10_000;
/// How often it is looked whether the store still has what was written, milliseconds.
const LOOK_MS: i64 = 5_000;

/// Where a stream's messages are kept.
pub trait Shelf: Send + Sync + 'static {
    /// Applies messages, in their order, and then says that the last of them is applied whole. What cannot be kept is
    /// logged and left out.
    ///
    /// # Errors
    /// If trying again may help: then all of them are given again.
    fn apply(&self, messages: &[Arc<Stored>]) -> impl Future<Output = Result<(), Error>> + Send;

    /// The last message that has been applied whole, wherever it is kept.
    ///
    /// # Errors
    /// Those of the store.
    fn position(&self) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Reading is about to begin, with the store at this position: from where? From earlier than what follows the position,
    /// if what is written depends on messages before it; the shelf then leaves out what it has written.
    fn begin(&self, position: u64) -> u64 {
        position + 1
    }

    /// Removes what is over. Called now and then.
    ///
    /// # Errors
    /// Those of the store; it is called again.
    fn sweep(&self, now: Timestamp) -> impl Future<Output = Result<(), Error>> + Send;
}

/// What is kept, and how.
#[derive(Clone, Debug)]
pub struct Keeping {
    /// Name of what is kept: of the consumer, and in `/readyz`.
    pub name: &'static str,
    /// Which stream says it.
    pub stream: &'static str,
    /// How far back it is kept, milliseconds: what was stored earlier is not read. 0 for all.
    pub window_ms: i64,
    /// How many of the newest messages are read at most: those that a store in memory has room for.
    pub newest_max: u64,
    /// How long messages wait to be applied together, milliseconds.
    pub gather_ms: u64,
    /// How often what is over is removed, milliseconds.
    pub sweep_ms: i64,
}

/// What ended one reading of the stream.
enum Ended {
    /// The process stops.
    Stopping,
    /// The store is at another position than it was brought to.
    Moved,
}

impl Mesh {
    /// The documents of a name, where the configuration says: `documents_url`, unless the service has a URL of its own.
    ///
    /// # Errors
    /// A URL that cannot be used for documents.
    pub fn documents(
        &self,
        name: &str,
        own: &str,
        limits: memory::DocumentLimits,
    ) -> anyhow::Result<Arc<dyn Documents>> {
        let (key, store) = self.store("documents_url", &self.settings().documents_url, own)?;
        Ok(store.documents(name, limits).map_err(|error| rejected(key, &error))?)
    }

    /// The series of a name, where the configuration says: `series_url`, unless the service has a URL of its own.
    ///
    /// # Errors
    /// A URL that cannot be used for series.
    pub fn series(&self, name: &str, own: &str, limits: memory::WindowLimits) -> anyhow::Result<Arc<dyn Series>> {
        let (key, store) = self.store("series_url", &self.settings().series_url, own)?;
        Ok(store.series(name, limits).map_err(|error| rejected(key, &error))?)
    }

    /// The histories of a name, kept this long (milliseconds; 0 for ever), where the configuration says: `history_url`,
    /// unless the service has a URL of its own.
    ///
    /// # Errors
    /// A URL that cannot be used for histories.
    pub fn history(
        &self,
        name: &str,
        own: &str,
        limits: memory::WindowLimits,
        keep_ms: u64,
    ) -> anyhow::Result<Arc<dyn History>> {
        let (key, store) = self.store("history_url", &self.settings().history_url, own)?;
        Ok(store.history(name, limits, Duration::from_millis(keep_ms)).map_err(|error| rejected(key, &error))?)
    }

    fn store(&self, key: &'static str, shared: &str, own: &str) -> Result<(&'static str, Store), config::Error> {
        let url = if own.is_empty() { shared } else { own };
        Ok((key, mesh_store::open(url).map_err(|error| rejected(key, &error))?))
    }

    /// Keeps a stream on a shelf until the process stops.
    pub fn keep(&self, keeping: Keeping, shelf: impl Shelf) {
        let name = format!("store of {}", keeping.name);
        let consumer = self.consumer(&name);
        consumer.listens(contract().stream(keeping.stream).map(|stream| stream.subject.clone()));
        let keeper = Keeper { condition: self.condition(&name), consumer, mesh: self.clone(), keeping, shelf };
        self.spawn("store", async move {
            while let Ended::Moved = keeper.follow().await? {}
            Ok(())
        });
    }
}

/// What a write came to, without what the store will never take: that is logged and left out.
///
/// # Errors
/// Those that trying again may help.
pub fn leave_out(written: Result<(), Error>, store: &str, through: u64) -> Result<(), Error> {
    match written {
        Err(error @ Error::Engine { .. }) => Err(error),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(store, sequence = through, error, "something up to this message refused by its store");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn rejected(key: &str, error: &Error) -> config::Error {
    config::Error::rejected(key, error.to_string())
}

struct Keeper<S> {
    mesh: Mesh,
    keeping: Keeping,
    shelf: S,
    condition: Condition,
    consumer: Consumer,
}

impl<S: Shelf> Keeper<S> {
    /// Brings the store from where it is to the end of the stream, and follows that.
    async fn follow(&self) -> anyhow::Result<Ended> {
        let stream = self.keeping.stream;
        let log = self.mesh.bus().log(stream);
        let Some(end) = self.patiently(|| log.last_sequence()).await? else { return Ok(Ended::Stopping) };
        let Some(position) = self.position(end).await? else { return Ok(Ended::Stopping) };
        let Some(last) = self.end_after(&log, position).await? else { return Ok(Ended::Stopping) };
        let mut begin = self.shelf.begin(position);
        let begun = begin.saturating_sub(1);
        if self.keeping.window_ms > 0 {
            let oldest = self.mesh.now().plus_millis(-self.keeping.window_ms);
            let subject = contract().stream(stream).map_or("", |stream| stream.subject.as_str());
            let since = || {
                first_since(last, oldest, |from| {
                    let log = log.clone();
                    async move {
                        log.read(subject, from, 1).await.map(|found| found.first().map(|m| (m.sequence, m.stored)))
                    }
                })
            };
            let Some(since) = self.patiently(since).await? else { return Ok(Ended::Stopping) };
            begin = begin.max(since);
        }
        begin = begin.max(last.saturating_sub(self.keeping.newest_max) + 1);
        let mut follower = self.mesh.follow(stream, begin);
        let head = follower.head();
        let behind = |position: u64| head().max(last).saturating_sub(position.max(begin - 1));
        let stopping = self.mesh.stopping();
        // What the store was brought to, as far as this process knows.
        let mut reached = position.min(begun);
        let (mut looked, mut swept) = (self.mesh.now(), self.mesh.now());
        // When the newest message that was read had been stored.
        let mut stored = Timestamp::default();
        self.stands(behind(reached));
        loop {
            let first = tokio::select! {
                first = follower.next() => Some(first.with_context(|| format!("read {stream}"))?),
                () = tokio::time::sleep(Duration::from_millis(LOOK_MS.unsigned_abs())) => None,
                () = stopping.cancelled() => return Ok(Ended::Stopping),
            };
            let batch = match first {
                Some(first) => self.gather(first, &mut follower).await.with_context(|| format!("read {stream}"))?,
                None => vec![],
            };
            let mut failed = false;
            if let Some(newest) = batch.last() {
                self.consumer.received(batch.len() as u64);
                let mut pauses = PAUSES.iter().chain(std::iter::repeat(&PAUSES[PAUSES.len() - 1]));
                while let Err(error) = self.shelf.apply(&batch).await {
                    failed = true;
                    self.consumer.retried(1);
                    self.away(behind(reached), &error);
                    let pause = pauses.next().copied().unwrap_or_default();
                    if self.stops_within(pause).await {
                        return Ok(Ended::Stopping);
                    }
                    // A store that was away may have come back as another: then this batch has to wait for those before it.
                    let Some(position) = self.position(behind(reached)).await? else { return Ok(Ended::Stopping) };
                    if self.is_moved(position, reached) {
                        return Ok(Ended::Moved);
                    }
                }
                reached = newest.sequence;
                self.consumer.handled(batch.len() as u64);
            }
            let now = self.mesh.now();
            // A quiet stream may be that of another bus by now.
            if batch.is_empty() && log.last_sequence().await.is_ok_and(|end| (1..reached).contains(&end)) {
                return Ok(Ended::Moved);
            }
            // A store that was away may have come back as another.
            if failed || now.millis_since(looked) >= LOOK_MS {
                looked = now;
                let Some(position) = self.position(reached).await? else { return Ok(Ended::Stopping) };
                if self.is_moved(position, reached) {
                    return Ok(Ended::Moved);
                }
            }
            self.stands(behind(reached));
            if let Some(newest) = batch.last() {
                stored = newest.stored;
            }
            if now.millis_since(swept) >= self.keeping.sweep_ms {
                swept = now;
                // What is still to be read is not over.
                let over = if behind(reached) > 0 { now.min(stored) } else { now };
                if let Err(error) = self.shelf.sweep(over).await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(store = self.keeping.name, error, "what is over is not removed yet");
                }
            }
        }
    }

    /// Asks the bus until it answers. `None` if the process stops first.
    async fn patiently<T, F>(&self, ask: impl Fn() -> F) -> anyhow::Result<Option<T>>
    where
        F: Future<Output = Result<T, LogError>>,
    {
        loop {
            match ask().await {
                Ok(answer) => return Ok(Some(answer)),
                Err(LogError::Unanswered { stream, .. }) => tracing::warn!(stream, "waiting for the stream"),
                Err(error) => return Err(error).with_context(|| format!("read {}", self.keeping.stream)),
            }
            if self.stops_within(PAUSES[2]).await {
                return Ok(None);
            }
        }
    }

    /// The end of the stream, which is not before the store's position: a store that is further belongs to another bus,
    /// and would take nothing of this one. `None` if the process stops first.
    async fn end_after(&self, log: &Log, position: u64) -> anyhow::Result<Option<u64>> {
        let mut last = 0;
        // The replica that answers may lag.
        for _ in 0..=PAUSES.len() {
            let Some(end) = self.patiently(|| log.last_sequence()).await? else { return Ok(None) };
            // Of an empty stream nothing can be said: its messages may have expired.
            if end >= position || end == 0 {
                return Ok(Some(end));
            }
            last = end;
            if self.stops_within(PAUSES[2]).await {
                return Ok(None);
            }
        }
        let (name, stream) = (self.keeping.name, self.keeping.stream);
        // What is persisted asynchronously may lose its end with the server. Its next messages bear numbers that the store
        // has passed already, and are left out there.
        let samples = contract().stream(stream).is_some_and(|of| of.kind == contract::Kind::Samples);
        if samples && position - last <= LOST_MAX {
            tracing::warn!(store = name, position, end = last, "the stream has lost its end");
            return Ok(Some(last));
        }
        anyhow::bail!(
            "the store of {name} is at message {position} of {stream}, which ends at {last}: it was filled from another bus; \
             use another database, or empty this one"
        )
    }

    /// A message, and what else comes while they are gathered.
    async fn gather(&self, first: Arc<Stored>, follower: &mut Follower) -> Result<Vec<Arc<Stored>>, LogError> {
        let mut bytes = first.body.len();
        let mut batch = vec![first];
        let mut waited = false;
        while batch.len() < BATCH_MAX && bytes < BATCH_BYTES_MAX {
            match follower.next().now_or_never() {
                Some(next) => {
                    let next = next?;
                    bytes += next.body.len();
                    batch.push(next);
                }
                None if waited || self.keeping.gather_ms == 0 => break,
                None => {
                    waited = true;
                    tokio::time::sleep(Duration::from_millis(self.keeping.gather_ms)).await;
                }
            }
        }
        Ok(batch)
    }

    /// Where the store is; waits until it says so. `None` if the process stops first.
    async fn position(&self, last: u64) -> anyhow::Result<Option<u64>> {
        let mut pauses = PAUSES.iter().chain(std::iter::repeat(&PAUSES[PAUSES.len() - 1]));
        loop {
            match self.shelf.position().await {
                Ok(position) => return Ok(Some(position)),
                Err(error @ Error::Engine { .. }) => self.away(last, &error),
                // It will not be otherwise later: a newer schema, for example.
                Err(error) => return Err(error).with_context(|| format!("use the store of {}", self.keeping.name)),
            }
            let pause = pauses.next().copied().unwrap_or_default();
            if self.stops_within(pause).await {
                return Ok(None);
            }
        }
    }

    /// Has the store lost what it was brought to?
    fn is_moved(&self, position: u64, reached: u64) -> bool {
        if position < reached {
            tracing::warn!(store = self.keeping.name, reached, position, "store has lost what it had; reading again");
        }
        position < reached
    }

    async fn stops_within(&self, pause: Duration) -> bool {
        let stopping = self.mesh.stopping();
        tokio::time::timeout(pause, stopping.cancelled()).await.is_ok()
    }

    fn stands(&self, behind: u64) {
        self.consumer.lag(behind);
        self.condition.behind(behind, self.mesh.settings().ready_lag_max);
    }

    fn away(&self, behind: u64, error: &Error) {
        self.consumer.lag(behind);
        self.condition.unmet(format!("the store does not answer ({error}), {behind} messages behind; trying again"));
        let error = error as &dyn std::error::Error;
        tracing::warn!(store = self.keeping.name, behind, error, "store away; trying again");
    }
}
