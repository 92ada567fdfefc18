//! Histories: the versions of a thing, appended and never changed.

use bytes::Bytes;
use mesh_proto::Timestamp;

use crate::{Answer, Applied};

/// One version of a thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// Its number; rises with every version of the thing.
    pub version: u64,
    /// When the thing became so; not before the version before it (an engine may take an earlier time as that one's).
    pub at: Timestamp,
    /// Content; the store does not look inside.
    pub body: Bytes,
}

/// A version and the thing it is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Which thing; not empty.
    pub key: String,
    /// What it became.
    pub version: Version,
}

/// A set of histories.
pub trait History: Send + Sync {
    /// Appends versions, in order. One that a position covers, or that is not newer than the newest of its thing,
    /// changes nothing.
    ///
    /// Fails with [`crate::Error::Invalid`] if a key is empty: that version is left out, the others are appended, and the
    /// error is that of the first one left out. After [`crate::Error::Engine`] any of them may have been appended: write
    /// all of them again.
    fn write<'a>(&'a self, entries: Vec<(Applied, Entry)>) -> Answer<'a, ()>;

    /// Appends one version; as [`write`](Self::write).
    fn append<'a>(&'a self, applied: &'a Applied, key: &'a str, version: Version) -> Answer<'a, ()> {
        self.write(vec![(applied.clone(), Entry { key: key.to_owned(), version })])
    }

    /// The newest version that had come about at a time.
    fn at<'a>(&'a self, key: &'a str, time: Timestamp) -> Answer<'a, Option<Version>>;

    /// Versions, newest first, at most `limit`; only those older than `before`, if given.
    fn list<'a>(&'a self, key: &'a str, before: Option<u64>, limit: usize) -> Answer<'a, Vec<Version>>;

    /// Removes from each thing its oldest versions, up to the first that came about at `before` or later.
    fn forget(&self, before: Timestamp) -> Answer<'_, ()>;

    /// Says that the facts after the position `from` up to this one have been applied whole: all their writes are done.
    /// It and earlier facts of the stream change nothing from here on. Answers once that is safe: a crash of the engine
    /// does not undo it. `from` is what [`position`](Self::position) answered, or what was last advanced to.
    ///
    /// Fails with [`crate::Error::Engine`], and moves nothing, if the engine's position is before `from`: it was emptied
    /// or restored meanwhile, and what was written before is gone. Read on from its position then.
    fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> Answer<'a, ()>;

    /// The last fact of a stream that has been applied whole; 0 when none has. Asks the engine: a database that was
    /// emptied or restored says so here, and takes from then on what its position does not cover.
    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64>;

    /// Is it a database, which is asked over a network? Then few large writes are better than many small ones, and
    /// nothing here grows with what it keeps. Its versions expire by themselves.
    fn is_remote(&self) -> bool {
        false
    }
}
