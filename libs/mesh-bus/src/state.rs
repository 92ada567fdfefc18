//! The state of the connection, and what the bus counts.

use std::sync::atomic::AtomicU64;

/// The state of the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Is there a connection now?
    pub connected: bool,
    /// Rises with each connection, from 1.
    pub epoch: u64,
    /// A stream that refuses writes because it or its disk is full.
    pub full: Option<String>,
}

/// What the bus counts, since it connected.
#[derive(Debug, Default)]
pub struct Stats {
    /// Messages stored.
    pub published: AtomicU64,
    /// Atomic batches stored.
    pub batches: AtomicU64,
    /// Messages stored in atomic batches.
    pub batch_messages: AtomicU64,
    /// Decisions whose entity had moved.
    pub stale: AtomicU64,
    /// Decisions settled by reading their entity.
    pub settled: AtomicU64,
    /// Messages that a stream acknowledged and no longer had when the connection came back: those of streams of samples,
    /// which are acknowledged before they are on disk.
    pub forgotten: AtomicU64,
    /// Writes sent again.
    pub resent: AtomicU64,
    /// Connections after the first.
    pub reconnects: AtomicU64,
    /// Gaps that tails found and filled.
    pub gaps_filled: AtomicU64,
    /// Commands that waited to be gathered into a batch.
    pub commands_gathered: AtomicU64,
    /// Commands that found [`gather_limit`](crate::Options::gather_limit) of them waiting, and waited for room.
    pub commands_held: AtomicU64,
    /// Commands that were refused because there was no room within the limit.
    pub commands_refused: AtomicU64,
}
