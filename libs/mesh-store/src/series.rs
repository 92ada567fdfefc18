//! Series: numbers over time.

use std::collections::BTreeMap;

use mesh_proto::Timestamp;

use crate::{Answer, Applied, Error};

/// One point of a series. A series, its labels and its time identify it: the same point again changes nothing. Two
/// points of one identity with different values are a fault of the writer; which of them stays is not defined.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    /// When it was measured.
    pub at: Timestamp,
    /// Text that belongs to it, few distinct values.
    pub labels: BTreeMap<String, String>,
    /// Finite numbers by name; at least one.
    pub values: BTreeMap<String, f64>,
}

/// Points of one series.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Points {
    /// Name of the series; not empty.
    pub series: String,
    /// Its points, in any order.
    pub points: Vec<Point>,
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
    /// Adds points to series. What a position covers, or is there already, changes nothing.
    ///
    /// Fails with [`crate::Error::Invalid`] if a value is not finite, a point has none, or the series has no name: then
    /// nothing of these points of one series is stored, the others are, and the error is that of the first ones left out.
    /// After [`crate::Error::Engine`] any of them may have been stored: write all of them again.
    fn write<'a>(&'a self, points: Vec<(Applied, Points)>) -> Answer<'a, ()>;

    /// Adds points to one series; as [`write`](Self::write).
    fn append<'a>(&'a self, applied: &'a Applied, series: &'a str, points: Vec<Point>) -> Answer<'a, ()> {
        self.write(vec![(applied.clone(), Points { series: series.to_owned(), points })])
    }

    /// Points in order of time, then of labels.
    fn range<'a>(&'a self, series: &'a str, range: Range) -> Answer<'a, Vec<Point>>;

    /// Removes all points before a time; an engine may keep those of the two seconds before it.
    fn forget(&self, before: Timestamp) -> Answer<'_, ()>;

    /// Says that a fact has been applied whole; it and earlier ones of its stream change nothing from here on. Answers
    /// once that is safe: a crash of the engine does not undo it.
    fn advance<'a>(&'a self, applied: &'a Applied) -> Answer<'a, ()>;

    /// The last fact of a stream that has been applied whole; 0 when none has. Asks the engine: a database that was
    /// emptied or restored says so here, and takes from then on what its position does not cover.
    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64>;

    /// Is it a database, which is asked over a network? Then few large writes are better than many small ones, and
    /// nothing here grows with what it keeps.
    fn is_remote(&self) -> bool {
        false
    }
}

/// Can these points be stored at all?
pub(crate) fn check(series: &str, points: &[Point]) -> Result<(), Error> {
    if series.is_empty() {
        return Err(Error::Invalid("a series needs a name".into()));
    }
    for point in points {
        if point.values.is_empty() {
            return Err(Error::Invalid(format!("a point of {series:?} at {} has no value", point.at)));
        }
        if let Some((name, value)) = point.values.iter().find(|(_, value)| !value.is_finite()) {
            return Err(Error::Invalid(format!("{name} of {series:?} is {value}, not a finite number")));
        }
    }
    Ok(())
}
