//! Series in ordered maps.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use mesh_proto::Timestamp;
use prost::Message as _;

use super::{
    Positions, Shared, first_refusal,
    window::{Window, WindowLimits},
};
use crate::{Answer, Applied, Error, Point, Points, Range};

type Labels = BTreeMap<String, String>;

/// A point's values; their names are shared with its neighbours, which mostly have the same.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    names: Arc<[String]>,
    values: Box<[f64]>,
}

/// A set of series; the oldest points leave at the limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    window: Window<(Timestamp, Arc<Labels>), Row>,
    positions: Positions,
}

/// What a point takes beside its values, bytes: a map entry, two shared pointers, a box.
const POINT_BYTES: u64 = 96;

impl Series {
    /// An empty set.
    pub fn new(limits: WindowLimits) -> Self {
        Self { window: Window::new(limits), positions: Positions::default() }
    }

    /// As [`crate::Series::append`]; answers how many were new.
    pub fn append(&mut self, applied: &Applied, series: &str, points: Vec<Point>) -> Result<u64, Error> {
        crate::series::check(series, &points)?;
        if self.positions.covers(applied) {
            return Ok(0);
        }
        Ok(points.into_iter().map(|p| u64::from(self.insert(series, p))).sum())
    }

    /// As [`crate::Series::range`].
    pub fn range(&self, series: &str, range: Range) -> Vec<Point> {
        let Some(lane) = self.window.lane(series) else { return vec![] };
        // No set of labels comes before the empty one, none of a later time belongs.
        let newest_first = lane.iter().rev().skip_while(|((at, _), _)| *at > range.to);
        let found = newest_first.take_while(|((at, _), _)| *at >= range.from).take(range.limit);
        let mut found: Vec<Point> = found.map(|((at, labels), item)| point(*at, labels, &item.value)).collect();
        found.reverse();
        found
    }

    /// As [`crate::Series::forget`]; answers how many there were.
    pub fn forget(&mut self, before: Timestamp) -> u64 {
        self.window.forget(before)
    }

    /// As [`crate::Series::advance`].
    pub fn advance(&mut self, applied: &Applied) {
        self.positions.advance(applied);
    }

    /// As [`crate::Series::position`].
    pub fn position(&self, stream: &str) -> u64 {
        self.positions.of(stream)
    }

    /// Points that left to make room.
    pub fn evicted(&self) -> u64 {
        self.window.evicted()
    }

    /// Everything, as bytes.
    pub fn snapshot(&self) -> Bytes {
        let series = self.window.lanes().map(|(name, lane)| snapshot::Lane {
            name: name.clone(),
            points: lane
                .iter()
                .map(|((at, labels), item)| {
                    let Point { at, labels, values } = point(*at, labels, &item.value);
                    snapshot::Point { at: Some(at), labels, values }
                })
                .collect(),
        });
        snapshot::Series { series: series.collect(), positions: self.positions.0.clone() }.encode_to_vec().into()
    }

    /// What a snapshot holds, as far as the limits allow.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if the bytes are not a snapshot.
    pub fn restore(bytes: &[u8], limits: WindowLimits) -> Result<Self, Error> {
        let read = snapshot::Series::decode(bytes).map_err(Error::Snapshot)?;
        let mut restored = Self::new(limits);
        for lane in read.series {
            for snapshot::Point { at, labels, values } in lane.points {
                restored.insert(&lane.name, Point { at: at.unwrap_or_default(), labels, values });
            }
        }
        restored.positions = Positions(read.positions);
        Ok(restored)
    }

    fn insert(&mut self, series: &str, point: Point) -> bool {
        let last = self.window.lane(series).and_then(|lane| lane.last_key_value());
        let labels = match last {
            Some(((_, labels), _)) if **labels == point.labels => labels.clone(),
            _ => Arc::new(point.labels),
        };
        let names = match last {
            Some((_, item)) if item.value.names.iter().eq(point.values.keys()) => item.value.names.clone(),
            _ => point.values.keys().cloned().collect(),
        };
        let values: Box<[f64]> = point.values.into_values().collect();
        let bytes = POINT_BYTES + 8 * values.len() as u64;
        self.window.insert(series, (point.at, labels), point.at, bytes, Row { names, values })
    }
}

fn point(at: Timestamp, labels: &Arc<Labels>, row: &Row) -> Point {
    let values = row.names.iter().cloned().zip(row.values.iter().copied()).collect();
    Point { at, labels: Labels::clone(labels), values }
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
            let of = |(applied, of): (Applied, Points)| series.append(&applied, &of.series, of.points).map(|_| ());
            first_refusal(points.into_iter().map(of))
        })
    }

    fn range<'a>(&'a self, series: &'a str, range: Range) -> Answer<'a, Vec<Point>> {
        Box::pin(async move { Ok(self.lock().range(series, range)) })
    }

    fn forget(&self, before: Timestamp) -> Answer<'_, ()> {
        Box::pin(async move {
            self.lock().forget(before);
            Ok(())
        })
    }

    fn advance<'a>(&'a self, applied: &'a Applied) -> Answer<'a, ()> {
        Box::pin(async move {
            self.lock().advance(applied);
            Ok(())
        })
    }

    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64> {
        Box::pin(async move { Ok(self.lock().position(stream)) })
    }
}
