//! A stream's facts, each by itself, in a store: versions of what they are about, or points of series.

use std::{
    future::Future,
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use mesh_core::Stored;
use mesh_proto::Timestamp;
use mesh_store::{Answer, Applied, Entry, Error, History, Points, Series};

use crate::{
    keep::{Keeping, Shelf, leave_out},
    mesh::Mesh,
};

/// How long facts wait to be written together, milliseconds: a database takes few large writes better than many small ones.
const GATHER_MS: u64 = 100;
/// Between two removals of what is over, milliseconds: a twentieth of the time that it is kept, within these.
const SWEEP_MS: RangeInclusive<i64> = 60_000..=3_600_000;

/// A store that takes rows of one kind.
pub trait Rows: Send + Sync + 'static {
    /// What is written.
    type Row: Send + 'static;

    /// Writes rows, each with the fact that it is of.
    fn write(&self, rows: Vec<(Applied, Self::Row)>) -> Answer<'_, ()>;

    /// Says that the facts after the position `from` up to this one have been written whole; fails if the store has lost
    /// that position.
    fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> Answer<'a, ()>;

    /// The last fact of a stream that has been written whole.
    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64>;

    /// Removes what was before a time, unless the store does that by itself.
    fn forget(&self, before: Timestamp) -> impl Future<Output = Result<(), Error>> + Send;
}

impl Rows for Arc<dyn History> {
    type Row = Entry;

    fn write(&self, rows: Vec<(Applied, Entry)>) -> Answer<'_, ()> {
        History::write(&**self, rows)
    }

    fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> Answer<'a, ()> {
        History::advance(&**self, from, applied)
    }

    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64> {
        History::position(&**self, stream)
    }

    async fn forget(&self, before: Timestamp) -> Result<(), Error> {
        if self.is_remote() { Ok(()) } else { History::forget(&**self, before).await }
    }
}

impl Rows for Arc<dyn Series> {
    type Row = Points;

    fn write(&self, rows: Vec<(Applied, Points)>) -> Answer<'_, ()> {
        Series::write(&**self, rows)
    }

    fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> Answer<'a, ()> {
        Series::advance(&**self, from, applied)
    }

    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64> {
        Series::position(&**self, stream)
    }

    async fn forget(&self, before: Timestamp) -> Result<(), Error> {
        Series::forget(&**self, before).await
    }
}

/// What of a stream is kept, and where.
pub struct Records<R: Rows> {
    /// Name of what is kept: of the consumer, and in `/readyz`.
    pub name: &'static str,
    /// Which stream.
    pub stream: &'static str,
    /// How long it is kept, milliseconds; 0 for ever. What was stored earlier is not read.
    pub keep_ms: u64,
    /// How many of the newest facts are read at a start: those that a store in memory has room for.
    pub newest_max: u64,
    /// Where.
    pub store: R,
    /// What is written of a fact.
    pub rows: fn(&Stored) -> Vec<R::Row>,
}

impl Mesh {
    /// Keeps what a stream says, fact by fact, until the process stops.
    pub fn record<R: Rows>(&self, records: Records<R>) {
        let keep_ms = i64::try_from(records.keep_ms).unwrap_or(i64::MAX);
        let keeping = Keeping {
            name: records.name,
            stream: records.stream,
            window_ms: keep_ms,
            newest_max: records.newest_max,
            gather_ms: GATHER_MS,
            sweep_ms: (keep_ms / 20).clamp(*SWEEP_MS.start(), *SWEEP_MS.end()),
        };
        self.keep(keeping, RecordShelf { records, advanced: AtomicU64::new(0) });
    }
}

struct RecordShelf<R: Rows> {
    records: Records<R>,
    /// The position that the store was brought to.
    advanced: AtomicU64,
}

impl<R: Rows> Shelf for RecordShelf<R> {
    async fn apply(&self, messages: &[Arc<Stored>]) -> Result<(), Error> {
        let Some(newest) = messages.last() else { return Ok(()) };
        let Records { name, stream, store, .. } = &self.records;
        let rows = messages.iter().flat_map(|stored| {
            let applied = Applied::new(*stream, stored.sequence);
            (self.records.rows)(stored).into_iter().map(move |row| (applied.clone(), row))
        });
        leave_out(store.write(rows.collect()).await, name, newest.sequence)?;
        store.advance(self.advanced.load(Relaxed), &Applied::new(*stream, newest.sequence)).await?;
        self.advanced.store(newest.sequence, Relaxed);
        Ok(())
    }

    async fn position(&self) -> Result<u64, Error> {
        let position = self.records.store.position(self.records.stream).await?;
        self.advanced.store(position, Relaxed);
        Ok(position)
    }

    async fn sweep(&self, now: Timestamp) -> Result<(), Error> {
        let Records { keep_ms, store, .. } = &self.records;
        if *keep_ms == 0 {
            return Ok(());
        }
        store.forget(now.plus_millis(-i64::try_from(*keep_ms).unwrap_or(i64::MAX))).await
    }
}
