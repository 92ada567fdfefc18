//! Series: numbers over time.

use std::{collections::BTreeMap, sync::Arc};

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
    /// Its points, in any order. What has the same names as the points before it is taken in fastest if it shares them.
    pub columns: Vec<Columns>,
}

impl Points {
    /// These points of a series.
    pub fn of(series: impl Into<String>, points: impl IntoIterator<Item = Point>) -> Self {
        let mut columns: Vec<Columns> = vec![];
        for Point { at, labels, values } in points {
            let at = nanos(at).unwrap_or(NO_TIME);
            let like = columns.last_mut().filter(|last| *last.labels == labels && last.names.iter().eq(values.keys()));
            match like {
                Some(last) => {
                    last.at_nanos.push(at);
                    last.values.extend(values.into_values());
                }
                None => columns.push(Columns {
                    labels: Arc::new(labels),
                    names: values.keys().cloned().collect(),
                    at_nanos: vec![at],
                    values: values.into_values().collect(),
                }),
            }
        }
        Self { series: series.into(), columns }
    }

    /// Adds a point: its labels, the rising names of its values, its time in nanoseconds since 1970, and a value for each
    /// name.
    pub fn push(
        &mut self,
        labels: &Arc<BTreeMap<String, String>>,
        names: &Arc<[String]>,
        at_nanos: i128,
        values: impl IntoIterator<Item = f64>,
    ) {
        let at = i64::try_from(at_nanos).unwrap_or(NO_TIME);
        let is_alike = |last: &&mut Columns| {
            (Arc::ptr_eq(&last.labels, labels) || last.labels == *labels)
                && (Arc::ptr_eq(&last.names, names) || last.names == *names)
        };
        match self.columns.last_mut().filter(is_alike) {
            Some(last) => {
                last.at_nanos.push(at);
                last.values.extend(values);
            }
            None => self.columns.push(Columns {
                labels: labels.clone(),
                names: names.clone(),
                at_nanos: vec![at],
                values: values.into_iter().collect(),
            }),
        }
    }

    /// Its points, one by one.
    pub fn points(&self) -> impl Iterator<Item = Point> + '_ {
        self.columns.iter().flat_map(Columns::points)
    }
}

/// Stands for a time that series do not keep: points of it are refused.
const NO_TIME: i64 = i64::MIN;

/// Points of one series that have the same labels and the same names of values, as columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns {
    /// The labels of all of them.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The names of their values, rising; at least one.
    pub names: Arc<[String]>,
    /// Their times, nanoseconds since 1970; rising, where they are read.
    pub at_nanos: Vec<i64>,
    /// Their values: for each time one of each name.
    pub values: Vec<f64>,
}

impl Columns {
    /// The values of one name, each with its time in nanoseconds since 1970.
    pub fn of<'a>(&'a self, name: &str) -> impl Iterator<Item = (i64, f64)> + use<'a> {
        let place = self.names.iter().position(|known| known == name);
        let values = place.map(|place| self.values.iter().skip(place).step_by(self.names.len().max(1)));
        self.at_nanos.iter().copied().zip(values.into_iter().flatten().copied())
    }

    /// Its rows: the time of each, and its values in order of their names.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (i64, &[f64])> {
        self.at_nanos.iter().copied().zip(self.values.chunks(self.names.len().max(1)))
    }

    fn points(&self) -> impl Iterator<Item = Point> + '_ {
        self.rows().map(|(at, values)| Point {
            at: Timestamp::from_nanos(i128::from(at)),
            labels: BTreeMap::clone(&self.labels),
            values: self.names.iter().cloned().zip(values.iter().copied()).collect(),
        })
    }
}

/// The points of a series, in order of time, then of labels.
pub(crate) fn points(columns: &[Columns]) -> Vec<Point> {
    let mut points: Vec<Point> = columns.iter().flat_map(Columns::points).collect();
    if columns.len() > 1 {
        points.sort_by(|a, b| (a.at, &a.labels).cmp(&(b.at, &b.labels)));
    }
    points
}

/// Which of these times, each of a table, the oldest ones are of: that many, each named by its table.
pub(crate) fn oldest(mut times: Vec<(i64, usize)>, surplus: usize) -> impl Iterator<Item = usize> {
    if surplus < times.len() {
        times.select_nth_unstable(surplus);
    }
    times.into_iter().take(surplus).map(|(_, table)| table)
}

/// Leaves only the newest points of a series.
pub(crate) fn newest(columns: &mut Vec<Columns>, limit: usize) {
    let count: usize = columns.iter().map(|columns| columns.at_nanos.len()).sum();
    if count <= limit {
        return;
    }
    let times = columns.iter().enumerate().flat_map(|(table, of)| of.at_nanos.iter().map(move |at| (*at, table)));
    let mut older = vec![0; columns.len()];
    oldest(times.collect(), count - limit).for_each(|table| older[table] += 1);
    for (columns, older) in columns.iter_mut().zip(older) {
        columns.at_nanos.drain(..older);
        columns.values.drain(..older * columns.names.len());
    }
    columns.retain(|columns| !columns.at_nanos.is_empty());
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
    /// Fails with [`crate::Error::Invalid`] if a value is not finite, a point has none or a time before 1677 or after 2262,
    /// or the series has no name: then nothing of these points of one series is stored, the others are, and the error is that of the first ones left out.
    /// After [`crate::Error::Engine`] any of them may have been stored: write all of them again.
    fn write<'a>(&'a self, points: Vec<(Applied, Points)>) -> Answer<'a, ()>;

    /// Adds points to one series; as [`write`](Self::write).
    fn append<'a>(&'a self, applied: &'a Applied, series: &'a str, points: Vec<Point>) -> Answer<'a, ()> {
        self.write(vec![(applied.clone(), Points::of(series, points))])
    }

    /// The points of several series, for each series that is asked for in turn: as columns, in order of labels, then of
    /// names. The limit of the range is each series' own.
    fn columns<'a>(&'a self, series: &'a [&'a str], range: Range) -> Answer<'a, Vec<Vec<Columns>>>;

    /// Points of one series in order of time, then of labels. Each point has its own copy of what it shares with the others:
    /// to read many, use [`columns`](Self::columns).
    fn range<'a>(&'a self, series: &'a str, range: Range) -> Answer<'a, Vec<Point>> {
        Box::pin(
            async move { Ok(self.columns(&[series], range).await?.iter().flat_map(|found| points(found)).collect()) },
        )
    }

    /// Removes all points before a time; an engine may keep those of the two seconds before it.
    fn forget(&self, before: Timestamp) -> Answer<'_, ()>;

    /// Removes the points of one series before a time, those of all its labels and values; other series keep theirs. For
    /// series that are kept for less time than the rest. An engine may keep the points of the two seconds before it. A
    /// series that is not there has nothing to remove.
    ///
    /// What is removed may come back if it is written again: remove only what lies behind the position. A database takes a
    /// removal as work for the whole table: call it every few minutes, not every second. The embedded engine and InfluxDB
    /// can do it. Single values of a point cannot be removed: InfluxDB deletes by measurement and tags, not by field.
    /// VictoriaMetrics, where the same lines are sent to it, deletes whole series whatever their time, and keeps all data for
    /// the one `-retentionPeriod` that it was started with.
    fn forget_series<'a>(&'a self, series: &'a str, before: Timestamp) -> Answer<'a, ()>;

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
    /// nothing here grows with what it keeps.
    fn is_remote(&self) -> bool {
        false
    }
}

/// Can these points be stored at all?
pub(crate) fn check(Points { series, columns }: &Points) -> Result<(), Error> {
    if series.is_empty() {
        return Err(Error::Invalid("a series needs a name".into()));
    }
    for of in columns {
        if of.names.is_empty() {
            return Err(Error::Invalid(format!("a point of {series:?} has no value")));
        }
        if !of.names.is_sorted_by(|a, b| a < b) || of.values.len() != of.at_nanos.len() * of.names.len() {
            return Err(Error::Invalid(format!("points of {series:?} do not have one value of each name, in order")));
        }
        // The outermost times mean something else to InfluxDB.
        if of.at_nanos.iter().any(|at| !(i64::MIN + 10..=i64::MAX - 10).contains(at)) {
            return Err(Error::Invalid(format!("a point of {series:?} is beyond the times that series keep")));
        }
        if let Some(place) = of.values.iter().position(|value| !value.is_finite()) {
            let (name, value) = (&of.names[place % of.names.len()], of.values[place]);
            return Err(Error::Invalid(format!("{name} of {series:?} is {value}, not a finite number")));
        }
    }
    Ok(())
}

/// A time as nanoseconds since 1970, if series keep it.
fn nanos(at: Timestamp) -> Option<i64> {
    let nanos = nanos_clamped(at);
    (i128::from(nanos) == at.as_nanos()).then_some(nanos)
}

/// The nearest time that series keep, nanoseconds since 1970.
pub(crate) fn nanos_clamped(at: Timestamp) -> i64 {
    // The outermost ones mean something else to InfluxDB.
    at.as_nanos().clamp(i128::from(i64::MIN) + 10, i128::from(i64::MAX) - 10) as i64
}
