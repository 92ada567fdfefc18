//! Where views rest: documents to look up, series over time, histories of versions.
//!
//! - JetStream is the truth; whatever rests here can be thrown away and read again from it. So every write names
//!   the fact that it applies ([`Applied`]), the facts of a stream are applied in order, and applying them again
//!   changes nothing.
//! - [`open`] chooses the engine by URL. `memory:` is the embedded default: ordered maps with stated limits, snapshots
//!   to bytes. `mongodb:` keeps documents, `influxdb:` series, `cassandra:` histories, each without a limit in memory.
//!   [`suite`] says how every engine must behave; a database that passes it can take the place of another.
//! - Never: a decision. A decider's state is the fold of its facts and is not kept here.

mod cassandra;
mod documents;
mod follow;
mod history;
mod influx;
pub mod memory;
mod mongo;
mod open;
mod remote;
mod series;
pub mod suite;

use std::{future::Future, pin::Pin};

pub use documents::{Change, Document, Documents, Page, Query};
pub use follow::first_since;
pub use history::{Entry, History, Version};
pub use influx::influx_lines;
pub use open::{Store, open};
pub use series::{Columns, Point, Points, Range, Series};

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

/// A position is before what the caller knows it to have been: the engine has lost what was written to it.
fn lost(applied: &Applied, from: u64, position: u64) -> Error {
    let source = format!("it is at {position} of {}, and was at {from}", applied.stream).into();
    Error::Engine { operation: "go on from what was written", source }
}

/// What became of a write to the embedded engine.
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
    #[error(
        "no store is called {0:?}; use memory:, mongodb: for documents, influxdb: for series, or cassandra: for histories"
    )]
    UnknownEngine(String),
    /// A URL of an engine that does not keep what is to be kept.
    #[error("{engine}: keeps {keeps}, not {wanted}; use {instead}: or memory:")]
    Kind {
        /// Scheme of the URL.
        engine: &'static str,
        /// What the engine keeps.
        keeps: &'static str,
        /// What is to be kept.
        wanted: &'static str,
        /// The engine that does.
        instead: &'static str,
    },
    /// A URL that its engine cannot use. It may hold a password: it is not shown.
    #[error(
        "the URL of the store is not one that its engine takes: write {expected} (it is not shown here, since it may hold a password)"
    )]
    Url {
        /// What it should look like.
        expected: &'static str,
    },
    /// The database has the schema of a newer release.
    #[error(
        "{engine} has schema version {found}, and this release knows {known}: start the newer release, or use another database"
    )]
    Newer {
        /// Which engine.
        engine: &'static str,
        /// Version of its schema.
        found: i64,
        /// The newest that this release knows.
        known: i64,
    },
    /// The database is set up in a way that loses what is kept.
    #[error("{engine} cannot be used: {problem}")]
    Unfit {
        /// Which engine.
        engine: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The engine itself failed, or did not answer in time; trying again may help. Of a write it is not known how much was
    /// done.
    #[error("{operation}")]
    Engine {
        /// What was being done.
        operation: &'static str,
        /// What the engine said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
