//! Where views rest: documents to look up, series over time, histories of versions.
//!
//! - JetStream is the truth; whatever rests here can be thrown away and read again from it. So every write names
//!   the fact that it applies ([`Applied`]), the facts of a stream are applied in order, and applying them again
//!   changes nothing.
//! - [`open`] chooses the engine by URL. `memory:` is the embedded default: ordered maps with stated limits, snapshots
//!   to bytes. [`suite`] says how every engine must behave; a database that passes it can take the place of another.
//! - Never: a decision. A decider's state is the fold of its facts and is not kept here.

mod documents;
mod follow;
mod history;
pub mod memory;
mod open;
mod series;
pub mod suite;

use std::{future::Future, pin::Pin};

pub use documents::{Document, Documents, Page, Query};
pub use follow::first_since;
pub use history::{History, Version};
pub use open::{Store, open};
pub use series::{Point, Range, Series};

/// What a store answers, later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// The address of the fact that a write applies. The facts of one stream are applied in order of sequence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Applied {
    /// Stream of the fact.
    pub stream: String,
    /// Its sequence there, from 1.
    pub sequence: u64,
}

impl Applied {
    /// The fact of this stream and sequence.
    pub fn new(stream: impl Into<String>, sequence: u64) -> Self {
        Self { stream: stream.into(), sequence }
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It changed the store.
    Stored,
    /// The fact had been applied already; nothing changed.
    Already,
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A stated limit of the engine is reached.
    #[error("{what} is full: {limit} is its limit")]
    Full {
        /// What is full.
        what: &'static str,
        /// Its limit, in entries.
        limit: u64,
    },
    /// One entry is larger than the engine takes.
    #[error("{id:?} has {bytes} bytes; {limit} is the limit")]
    TooLarge {
        /// Which entry.
        id: String,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The write cannot be stored by any engine.
    #[error("{0}")]
    Invalid(String),
    /// A page token that no page ended with.
    #[error("{0:?} is not a page token; list again from the first page")]
    Token(String),
    /// The bytes are not a snapshot of this kind of store.
    #[error("read snapshot")]
    Snapshot(#[source] prost::DecodeError),
    /// A URL whose scheme names no engine.
    #[error("no store is called {0:?}; `memory:` is the one there is")]
    UnknownEngine(String),
    /// An engine that this release does not have.
    #[error("{0} arrives with the telemetry release; use `memory:` until then")]
    Later(&'static str),
    /// The engine itself failed; trying again may help.
    #[error("{operation}")]
    Engine {
        /// What was being done.
        operation: &'static str,
        /// What the engine said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
