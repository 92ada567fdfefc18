//! Histories: the versions of a thing, appended and never changed.

use bytes::Bytes;
use mesh_proto::Timestamp;

use crate::{Answer, Applied, Written};

/// One version of a thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// Its number; rises with every version of the thing.
    pub version: u64,
    /// When the thing became so.
    pub at: Timestamp,
    /// Content; the store does not look inside.
    pub body: Bytes,
}

/// A set of histories.
pub trait History: Send + Sync {
    /// Appends a version. One that is not newer than the newest changes nothing.
    ///
    /// Fails with [`crate::Error::Invalid`] if the key is empty.
    fn append<'a>(&'a self, applied: &'a Applied, key: &'a str, version: Version) -> Answer<'a, Written>;

    /// The newest version that had come about at a time.
    fn at<'a>(&'a self, key: &'a str, time: Timestamp) -> Answer<'a, Option<Version>>;

    /// Versions, newest first, at most `limit`; only those older than `before`, if given.
    fn list<'a>(&'a self, key: &'a str, before: Option<u64>, limit: usize) -> Answer<'a, Vec<Version>>;

    /// Removes from each thing its oldest versions, up to the first that came about at `before` or later; answers how
    /// many.
    fn forget(&self, before: Timestamp) -> Answer<'_, u64>;

    /// Says that a fact has been applied whole; it and earlier ones of its stream change nothing from here on.
    fn advance<'a>(&'a self, applied: &'a Applied) -> Answer<'a, ()>;

    /// The last fact of a stream that has been applied whole; 0 when none has.
    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64>;
}
