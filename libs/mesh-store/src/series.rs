//! Series: numbers over time.

use std::collections::BTreeMap;

use mesh_proto::Timestamp;

use crate::{Answer, Applied};

/// One point of a series. A series, its labels and its time identify it: the same point again changes nothing. Two
/// points of one identity with different values are a fault of the writer; which of them stays is not defined.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    /// When it was measured.
    pub at: Timestamp,
    /// Text that belongs to it, few distinct values.
    pub labels: BTreeMap<String, String>,
    /// Finite numbers by name.
    pub values: BTreeMap<String, f64>,
}

/// Which points of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// From this time on.
    pub from: Timestamp,
    /// Up to and with this time.
    pub to: Timestamp,
    /// At most this many; the newest are kept.
    pub limit: usize,
}

/// A set of series.
pub trait Series: Send + Sync {
    /// Adds points to a series; answers how many were new.
    ///
    /// Fails with [`crate::Error::Invalid`] if a value is not finite or the series has no name; then nothing of this
    /// call is stored.
    fn append<'a>(&'a self, applied: &'a Applied, series: &'a str, points: Vec<Point>) -> Answer<'a, u64>;

    /// Points in order of time, then of labels.
    fn range<'a>(&'a self, series: &'a str, range: Range) -> Answer<'a, Vec<Point>>;

    /// Removes all points before a time; answers how many.
    fn forget(&self, before: Timestamp) -> Answer<'_, u64>;

    /// Says that a fact has been applied whole; it and earlier ones of its stream change nothing from here on.
    fn advance<'a>(&'a self, applied: &'a Applied) -> Answer<'a, ()>;

    /// The last fact of a stream that has been applied whole; 0 when none has.
    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64>;
}
