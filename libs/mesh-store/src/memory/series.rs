//! Series in memory: each set of labels of a series is a table of columns, its times and its values.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops,
    sync::Arc,
};

use bytes::Bytes;
use mesh_proto::Timestamp;
use prost::Message as _;

use super::{Positions, Shared, first_refusal, window::WindowLimits};
use crate::{
    Answer, Applied, Columns, Error, Point, Points, Range,
    series::{nanos_clamped, oldest},
};

type Labels = BTreeMap<String, String>;

/// What a number takes, bytes, with the room that its column has to grow.
const NUMBER_BYTES: u64 = 10;
/// What a table takes beside its numbers, and a series beside its name and its tables, bytes, about.
const TABLE_BYTES: u64 = 256;
const LANE_BYTES: u64 = 384;
/// What a text takes beside its letters, bytes.
const TEXT_BYTES: u64 = 40;

/// A set of series; the oldest points leave at the limits.
#[derive(Clone, Debug)]
pub struct Series {
    limits: WindowLimits,
    lanes: HashMap<Arc<str>, Lane>,
    /// Each series by the time of its first point: whose turn it is to give one up.
    by_first: BTreeSet<(i64, Arc<str>)>,
    /// Each series by a time of one of its points, looked at again when its turn comes: which series is the most forgotten.
    by_last: BTreeSet<(i64, Arc<str>)>,
    labels: Shapes<Labels>,
    names: Shapes<[String]>,
    positions: Positions,
    bytes: u64,
    evicted: u64,
}

/// Sets of labels, or of names, that are kept once.
#[derive(Debug)]
struct Shapes<T: ?Sized> {
    all: BTreeSet<Arc<T>>,
    /// How many were in use when it was last looked.
    used: usize,
}

impl<T: ?Sized> Clone for Shapes<T> {
    fn clone(&self) -> Self {
        Self { all: self.all.clone(), used: self.used }
    }
}

/// Two sets are one if they hold the same points and say the same positions.
impl PartialEq for Series {
    fn eq(&self, other: &Self) -> bool {
        let is_there =
            |(name, lane): (&Arc<str>, &Lane)| other.lanes.get(name).is_some_and(|found| found.tables == lane.tables);
        self.positions == other.positions && self.lanes.len() == other.lanes.len() && self.lanes.iter().all(is_there)
    }
}

impl<T: ?Sized + Ord> Shapes<T> {
    fn new() -> Self {
        Self { all: BTreeSet::new(), used: 0 }
    }

    /// The kept one; and whether it was new.
    fn keep(&mut self, one: Arc<T>) -> (Arc<T>, bool) {
        if let Some(kept) = self.all.get(&one) {
            return (kept.clone(), false);
        }
        if self.all.len() > 2 * self.used + 64 {
            self.all.retain(|kept| Arc::strong_count(kept) > 1);
            self.used = self.all.len();
        }
        self.all.insert(one.clone());
        (one, true)
    }
}

/// One series.
#[derive(Clone, Debug)]
struct Lane {
    name: Arc<str>,
    /// In order of labels, then of names.
    tables: Vec<Table>,
    /// Where the next point goes if points come in the order in which they came before.
    next: usize,
    /// Each table by its first time, if there are several.
    firsts: BTreeSet<(i64, Arc<Labels>, Arc<[String]>)>,
    points: usize,
    bytes: u64,
    /// As it is listed.
    listed_first: i64,
    listed_last: i64,
}

/// Points of the same labels and names.
#[derive(Clone, Debug)]
struct Table {
    labels: Arc<Labels>,
    names: Arc<[String]>,
    /// Rising; nanoseconds since 1970.
    times: VecDeque<i64>,
    /// As many for each time as there are names.
    values: VecDeque<f64>,
    /// Bytes beside the numbers.
    own_bytes: u64,
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        let parts = |of: &Self| (of.labels.clone(), of.names.clone(), of.times.clone(), of.values.clone());
        parts(self) == parts(other)
    }
}

impl Table {
    fn row_bytes(&self) -> u64 {
        NUMBER_BYTES * (1 + self.names.len() as u64)
    }

    fn is_of(&self, columns: &Columns) -> bool {
        (Arc::ptr_eq(&self.names, &columns.names) || self.names == columns.names) && self.labels == columns.labels
    }

    fn cmp(&self, columns: &Columns) -> Ordering {
        (&self.labels, &self.names).cmp(&(&columns.labels, &columns.names))
    }

    fn put(&mut self, at: i64, values: &[f64]) {
        let width = self.names.len();
        // A quarter of room, where twice as much would be usual.
        if self.times.len() == self.times.capacity() {
            let more = self.times.len() / 4 + 4;
            self.times.reserve_exact(more);
            self.values.reserve_exact(more * width);
        }
        let place = match self.times.back() {
            Some(last) if *last > at => self.times.partition_point(|time| *time < at),
            _ => self.times.len(),
        };
        if place == self.times.len() {
            self.times.push_back(at);
            self.values.extend(values);
            return;
        }
        self.times.insert(place, at);
        for (offset, value) in values.iter().enumerate() {
            self.values.insert(place * width + offset, *value);
        }
    }

    /// Removes the first rows.
    fn cut(&mut self, rows: usize) {
        self.times.drain(..rows);
        self.values.drain(..rows * self.names.len());
        if self.times.capacity() > 2 * self.times.len() + 8 {
            let room = self.times.len() + self.times.len() / 4;
            self.times.shrink_to(room);
            self.values.shrink_to(room * self.names.len());
        }
    }

    /// The newest rows from one time to another.
    fn rows(&self, from: i64, to: i64, limit: usize) -> ops::Range<usize> {
        let end = self.times.partition_point(|time| *time <= to);
        let begin = self.times.partition_point(|time| *time < from).max(end.saturating_sub(limit));
        begin.min(end)..end
    }

    fn columns(&self, rows: ops::Range<usize>) -> Columns {
        let width = self.names.len();
        Columns {
            labels: self.labels.clone(),
            names: self.names.clone(),
            at_nanos: part(&self.times, rows.clone()),
            values: part(&self.values, rows.start * width..rows.end * width),
        }
    }
}

fn part<T: Copy>(all: &VecDeque<T>, rows: ops::Range<usize>) -> Vec<T> {
    let (front, back) = all.as_slices();
    let mut found = Vec::with_capacity(rows.len());
    let of = |slice: &[T], begin: usize| {
        let from = rows.start.saturating_sub(begin).min(slice.len());
        from..rows.end.saturating_sub(begin).clamp(from, slice.len())
    };
    found.extend_from_slice(&front[of(front, 0)]);
    found.extend_from_slice(&back[of(back, front.len())]);
    found
}

impl Lane {
    fn new(name: Arc<str>, at: i64) -> Self {
        let bytes = LANE_BYTES + name.len() as u64;
        let (tables, firsts) = (vec![], BTreeSet::new());
        Self { name, tables, next: 0, firsts, points: 0, bytes, listed_first: at, listed_last: at }
    }

    /// The table to take the next point from, and its time.
    fn oldest(&self) -> Option<(usize, i64)> {
        match self.firsts.first() {
            Some((at, labels, names)) => {
                let found = self.tables.binary_search_by(|table| (&table.labels, &table.names).cmp(&(labels, names)));
                Some((found.ok()?, *at))
            }
            None => Some((0, *self.tables.first()?.times.front()?)),
        }
    }

    fn last(&self) -> Option<i64> {
        self.tables.iter().filter_map(|table| table.times.back().copied()).max()
    }

    /// The tables of some points' labels, and where the one of their names is, or would be.
    fn find(&self, columns: &Columns) -> (ops::Range<usize>, Result<usize, usize>) {
        let guess = self.tables.get(self.next).filter(|table| table.is_of(columns));
        let Some(guess) = guess else {
            let begin = self.tables.partition_point(|table| table.labels < columns.labels);
            let after = self.tables[begin..].iter().take_while(|table| table.labels == columns.labels);
            let alike = begin..begin + after.count();
            let place = self.tables[alike.clone()].binary_search_by(|table| table.cmp(columns));
            return (alike, place.map(|place| begin + place).map_err(|place| begin + place));
        };
        // Labels are kept once.
        let is_alike = |table: &&Table| Arc::ptr_eq(&table.labels, &guess.labels);
        let before = self.tables[..self.next].iter().rev().take_while(is_alike).count();
        let after = self.tables[self.next..].iter().take_while(is_alike).count();
        (self.next - before..self.next + after, Ok(self.next))
    }

    /// Puts points into their table, but for those of whose labels and time there is one; answers how many it put.
    fn put(&mut self, columns: &Columns, labels: &mut Shapes<Labels>, names: &mut Shapes<[String]>) -> u64 {
        let (mut alike, place) = self.find(columns);
        let mut place = place;
        let mut count = 0;
        for (at, values) in columns.rows() {
            let is_there = |table: &Table| {
                table.times.back().is_some_and(|last| *last >= at) && table.times.binary_search(&at).is_ok()
            };
            if self.tables[alike.clone()].iter().any(is_there) {
                continue;
            }
            let index = place.unwrap_or_else(|index| {
                self.make(index, columns, labels, names);
                alike.end += 1;
                index
            });
            place = Ok(index);
            self.put_row(index, at, values);
            count += 1;
        }
        if let Ok(index) = place {
            self.next = if index + 1 < self.tables.len() { index + 1 } else { 0 };
        }
        count
    }

    /// Makes the table of some points.
    fn make(&mut self, index: usize, columns: &Columns, labels: &mut Shapes<Labels>, names: &mut Shapes<[String]>) {
        let text = |text: &String| TEXT_BYTES + text.len() as u64;
        let text_bytes: u64 = columns.labels.iter().map(|(name, value)| text(name) + text(value)).sum();
        let name_bytes: u64 = columns.names.iter().map(text).sum();
        let (labels, new_labels) = labels.keep(columns.labels.clone());
        let (names, new_names) = names.keep(columns.names.clone());
        let own_bytes = TABLE_BYTES + u64::from(new_labels) * text_bytes + u64::from(new_names) * name_bytes;
        let table = Table { labels, names, times: VecDeque::new(), values: VecDeque::new(), own_bytes };
        self.bytes += own_bytes;
        self.tables.insert(index, table);
    }

    /// Puts a row into a table.
    fn put_row(&mut self, index: usize, at: i64, values: &[f64]) {
        let count = self.tables.len();
        let table = &mut self.tables[index];
        let first = table.times.front().copied();
        table.put(at, values);
        self.points += 1;
        self.bytes += table.row_bytes();
        if count > 1 && first.is_none_or(|first| at < first) {
            let key = |at| (at, table.labels.clone(), table.names.clone());
            if let Some(first) = first {
                self.firsts.remove(&key(first));
            }
            self.firsts.insert(key(at));
            if count == 2 {
                let other = &self.tables[1 - index];
                self.firsts.extend(other.times.front().map(|at| (*at, other.labels.clone(), other.names.clone())));
            }
        }
    }

    /// Removes the first rows of a table, and the table with the last of them.
    fn cut(&mut self, index: usize, rows: usize) {
        let is_alone = self.tables.len() == 1;
        let table = &mut self.tables[index];
        let first = table.times.front().copied();
        table.cut(rows);
        self.points -= rows;
        self.bytes -= rows as u64 * table.row_bytes();
        if let Some(first) = first.filter(|_| !is_alone) {
            self.firsts.remove(&(first, table.labels.clone(), table.names.clone()));
        }
        if let Some(next) = table.times.front() {
            if !is_alone {
                self.firsts.insert((*next, table.labels.clone(), table.names.clone()));
            }
            return;
        }
        self.bytes -= table.own_bytes;
        self.tables.remove(index);
        if self.tables.len() == 1 {
            self.firsts.clear();
        }
    }

    /// Removes what is older; answers how many points.
    fn forget(&mut self, before: i64) -> usize {
        let points = self.points;
        while let Some((index, _)) = self.oldest().filter(|(_, at)| *at < before) {
            let rows = self.tables[index].times.partition_point(|time| *time < before);
            self.cut(index, rows);
        }
        points - self.points
    }

    /// Columns of a range, in order of labels, then of names.
    fn columns(&self, range: Range) -> Vec<Columns> {
        let (from, to) = (nanos_clamped(range.from), nanos_clamped(range.to));
        // Most series have one.
        if let [table] = self.tables.as_slice() {
            let rows = table.rows(from, to, range.limit);
            return if rows.is_empty() { vec![] } else { vec![table.columns(rows)] };
        }
        let rows = |table: &Table| table.rows(from, to, range.limit);
        let mut all: Vec<ops::Range<usize>> = self.tables.iter().map(rows).collect();
        let count: usize = all.iter().map(ExactSizeIterator::len).sum();
        if count > range.limit {
            self.limit(&mut all, count - range.limit);
        }
        let found = self.tables.iter().zip(all).filter(|(_, rows)| !rows.is_empty());
        found.map(|(table, rows)| table.columns(rows)).collect()
    }

    /// Leaves out the oldest rows, that many.
    fn limit(&self, all: &mut [ops::Range<usize>], surplus: usize) {
        let times = |(index, rows): (usize, &ops::Range<usize>)| {
            let times = self.tables[index].times.range(rows.clone());
            times.map(|time| (*time, index)).collect::<Vec<_>>()
        };
        for index in oldest(all.iter().enumerate().flat_map(times).collect(), surplus) {
            all[index].start += 1;
        }
    }
}

impl Series {
    /// An empty set.
    pub fn new(limits: WindowLimits) -> Self {
        Self {
            limits,
            lanes: HashMap::new(),
            by_first: BTreeSet::new(),
            by_last: BTreeSet::new(),
            labels: Shapes::new(),
            names: Shapes::new(),
            positions: Positions::default(),
            bytes: 0,
            evicted: 0,
        }
    }

    /// As [`crate::Series::append`]; answers how many were new.
    pub fn append(&mut self, applied: &Applied, series: &str, points: Vec<Point>) -> Result<u64, Error> {
        self.write(applied, &Points::of(series, points))
    }

    /// As [`crate::Series::write`], of one series; answers how many were new.
    fn write(&mut self, applied: &Applied, points: &Points) -> Result<u64, Error> {
        crate::series::check(points)?;
        if self.positions.covers(applied) {
            return Ok(0);
        }
        Ok(self.insert(points))
    }

    /// As [`crate::Series::columns`], of one series.
    pub fn columns(&self, series: &str, range: Range) -> Vec<Columns> {
        self.lanes.get(series).map_or(vec![], |lane| lane.columns(range))
    }

    /// As [`crate::Series::range`].
    pub fn range(&self, series: &str, range: Range) -> Vec<Point> {
        crate::series::points(&self.columns(series, range))
    }

    /// As [`crate::Series::forget`]; answers how many there were.
    pub fn forget(&mut self, before: Timestamp) -> u64 {
        let mut removed = 0;
        let nanos = nanos_clamped(before);
        while let Some((_, name)) = self.by_first.first().filter(|(first, _)| *first < nanos).cloned() {
            removed += self.forget_series(&name, before);
        }
        removed
    }

    /// As [`crate::Series::forget_series`]; answers how many there were.
    pub fn forget_series(&mut self, series: &str, before: Timestamp) -> u64 {
        self.change(series, |lane| lane.forget(nanos_clamped(before)) as u64)
    }

    /// As [`crate::Series::advance`].
    ///
    /// # Errors
    /// [`Error::Engine`] if the position is before `from`.
    pub fn advance(&mut self, from: u64, applied: &Applied) -> Result<(), Error> {
        self.positions.advance(from, applied)
    }

    /// As [`crate::Series::position`].
    pub fn position(&self, stream: &str) -> u64 {
        self.positions.of(stream)
    }

    /// Points that left to make room.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Everything, as bytes.
    pub fn snapshot(&self) -> Bytes {
        let whole = |lane: &Lane| {
            let columns: Vec<Columns> = lane.tables.iter().map(|table| table.columns(0..table.times.len())).collect();
            let point = |Point { at, labels, values }: Point| snapshot::Point { at: Some(at), labels, values };
            let points = crate::series::points(&columns).into_iter().map(point).collect();
            snapshot::Lane { name: lane.name.to_string(), points }
        };
        let mut lanes: Vec<&Lane> = self.lanes.values().collect();
        lanes.sort_by_key(|lane| &lane.name);
        let series = lanes.into_iter().map(whole).collect();
        snapshot::Series { series, positions: self.positions.0.clone() }.encode_to_vec().into()
    }

    /// What a snapshot holds, as far as the limits allow.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if the bytes are not a snapshot.
    pub fn restore(bytes: &[u8], limits: WindowLimits) -> Result<Self, Error> {
        let read = snapshot::Series::decode(bytes).map_err(Error::Snapshot)?;
        let mut restored = Self::new(limits);
        for lane in read.series {
            let point = |snapshot::Point { at, labels, values }| Point { at: at.unwrap_or_default(), labels, values };
            let points = Points::of(lane.name, lane.points.into_iter().map(point));
            // What no store takes was not in one.
            if crate::series::check(&points).is_ok() {
                restored.insert(&points);
            }
        }
        restored.positions = Positions(read.positions);
        Ok(restored)
    }

    /// Adds points that passed the check; answers how many were new.
    fn insert(&mut self, Points { series, columns }: &Points) -> u64 {
        let Some(at) = columns.iter().find_map(|of| of.at_nanos.first()).copied() else { return 0 };
        if !self.lanes.contains_key(series.as_str()) {
            let name = Arc::<str>::from(series.as_str());
            let lane = Lane::new(name.clone(), at);
            self.bytes += lane.bytes;
            self.by_first.insert((at, name.clone()));
            self.by_last.insert((at, name.clone()));
            self.lanes.insert(name, lane);
        }
        let (mut labels, mut names) =
            (std::mem::replace(&mut self.labels, Shapes::new()), std::mem::replace(&mut self.names, Shapes::new()));
        let items_max = self.limits.items_max;
        let (new, evicted) = self.change(series, |lane| {
            let new: u64 = columns.iter().map(|of| lane.put(of, &mut labels, &mut names)).sum();
            let mut evicted = 0;
            while let Some((index, _)) = lane.oldest().filter(|_| lane.points > items_max) {
                lane.cut(index, 1);
                evicted += 1;
            }
            (new, evicted)
        });
        (self.labels, self.names) = (labels, names);
        self.evicted += evicted;
        while self.lanes.len() > self.limits.lanes_max {
            let Some(name) = self.most_forgotten() else { break };
            self.evicted += self.change(&name, |lane| lane.forget(i64::MAX) as u64);
        }
        while self.bytes > self.limits.bytes_max {
            let Some((_, name)) = self.by_first.first().cloned() else { break };
            self.evicted += self.change(&name, |lane| {
                lane.oldest().map_or(0, |(index, _)| {
                    lane.cut(index, 1);
                    1
                })
            });
        }
        new
    }

    /// Changes a series, and lists it as it is from then on; removes it with its last point.
    fn change<T: Default>(&mut self, series: &str, change: impl FnOnce(&mut Lane) -> T) -> T {
        let Some(lane) = self.lanes.get_mut(series) else { return T::default() };
        self.bytes -= lane.bytes;
        let done = change(lane);
        let Some((_, first)) = lane.oldest() else {
            self.by_first.remove(&(lane.listed_first, lane.name.clone()));
            self.by_last.remove(&(lane.listed_last, lane.name.clone()));
            self.lanes.remove(series);
            return done;
        };
        self.bytes += lane.bytes;
        if first != lane.listed_first {
            self.by_first.remove(&(lane.listed_first, lane.name.clone()));
            self.by_first.insert((first, lane.name.clone()));
            lane.listed_first = first;
        }
        done
    }

    /// The series whose last point is the oldest.
    fn most_forgotten(&mut self) -> Option<Arc<str>> {
        loop {
            let (listed, name) = self.by_last.first().cloned()?;
            let lane = self.lanes.get_mut(&name)?;
            let last = lane.last()?;
            if last <= listed {
                return Some(name);
            }
            // A last point is only replaced by later ones.
            self.by_last.remove(&(listed, name.clone()));
            self.by_last.insert((last, name));
            lane.listed_last = last;
        }
    }
}

mod snapshot {
    use std::collections::BTreeMap;

    use mesh_proto::Timestamp;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Series {
        #[prost(message, repeated, tag = "1")]
        pub(super) series: Vec<Lane>,
        #[prost(btree_map = "string, uint64", tag = "2")]
        pub(super) positions: BTreeMap<String, u64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Lane {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(message, repeated, tag = "2")]
        pub(super) points: Vec<Point>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Point {
        #[prost(message, optional, tag = "1")]
        pub(super) at: Option<Timestamp>,
        #[prost(btree_map = "string, string", tag = "2")]
        pub(super) labels: BTreeMap<String, String>,
        #[prost(btree_map = "string, double", tag = "3")]
        pub(super) values: BTreeMap<String, f64>,
    }
}

impl crate::Series for Shared<Series> {
    fn write<'a>(&'a self, points: Vec<(Applied, Points)>) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut series = self.lock();
            first_refusal(points.iter().map(|(applied, points)| series.write(applied, points).map(|_| ())))
        })
    }

    fn columns<'a>(&'a self, series: &'a [&'a str], range: Range) -> Answer<'a, Vec<Vec<Columns>>> {
        Box::pin(async move {
            let all = self.lock();
            Ok(series.iter().map(|series| all.columns(series, range)).collect())
        })
    }

    fn forget(&self, before: Timestamp) -> Answer<'_, ()> {
        Box::pin(async move {
            self.lock().forget(before);
            Ok(())
        })
    }

    fn forget_series<'a>(&'a self, series: &'a str, before: Timestamp) -> Answer<'a, ()> {
        Box::pin(async move {
            self.lock().forget_series(series, before);
            Ok(())
        })
    }

    fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> Answer<'a, ()> {
        Box::pin(async move { self.lock().advance(from, applied) })
    }

    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64> {
        Box::pin(async move { Ok(self.lock().position(stream)) })
    }
}
