//! The embedded engine passes the suite, keeps its limits, and survives its snapshots; and the suite finds faults.

#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::executor::block_on;
use mesh_proto::Timestamp;
use mesh_store::{
    Answer, Applied, Change, Columns, Document, Documents, Entry, Error, History, Page, Point, Points, Query, Range,
    Series, Version, Written,
    memory::{self, DocumentLimits, Shared, WindowLimits},
    suite::{self, DocumentStep, HistoryStep, SeriesStep},
};
use proptest::prelude::*;

fn documents() -> Shared<memory::Documents> {
    Shared::new(memory::Documents::new(DocumentLimits::default()))
}

fn series(limits: WindowLimits) -> Shared<memory::Series> {
    Shared::new(memory::Series::new(limits))
}

fn history(limits: WindowLimits) -> Shared<memory::History> {
    Shared::new(memory::History::new(limits))
}

#[test]
fn the_embedded_engine_passes_the_suite() {
    block_on(suite::documents(suite::SCRIPTS, || async { Ok(Arc::new(documents()) as Arc<dyn Documents>) })).unwrap();
    block_on(suite::series(suite::SCRIPTS, || async {
        Ok(Arc::new(series(WindowLimits::default())) as Arc<dyn Series>)
    }))
    .unwrap();
    block_on(suite::history(suite::SCRIPTS, || async {
        Ok(Arc::new(history(WindowLimits::default())) as Arc<dyn History>)
    }))
    .unwrap();
}

fn document_steps() -> impl Strategy<Value = Vec<DocumentStep>> {
    let fact = (
        prop::collection::vec((0u8..12, 0u8..3, any::<u8>()), 0..4),
        prop::collection::vec(0u8..12, 0..3),
        any::<bool>(),
    );
    let fact = fact.prop_map(|(puts, deletes, whole)| DocumentStep::Fact { puts, deletes, whole });
    prop::collection::vec(prop_oneof![6 => fact, 1 => Just(DocumentStep::Restart)], 0..40)
}

fn series_steps() -> impl Strategy<Value = Vec<SeriesStep>> {
    let append = (0u8..3, prop::collection::vec((0u8..200, 0u8..2), 0..6), any::<bool>());
    let append = append.prop_map(|(series, points, whole)| SeriesStep::Append { series, points, whole });
    let forget = (0u8..200).prop_map(SeriesStep::Forget);
    let forget_one = (0u8..3, 0u8..200).prop_map(|(series, before)| SeriesStep::ForgetOne { series, before });
    prop::collection::vec(prop_oneof![8 => append, 1 => forget, 1 => forget_one, 1 => Just(SeriesStep::Restart)], 0..40)
}

fn history_steps() -> impl Strategy<Value = Vec<HistoryStep>> {
    let append = (0u8..3, 0u8..4, 0u8..9, any::<bool>());
    let append = append.prop_map(|(key, rise, later, whole)| HistoryStep::Append { key, rise, later, whole });
    let forget = (0u8..120).prop_map(HistoryStep::Forget);
    prop::collection::vec(prop_oneof![8 => append, 1 => forget, 1 => Just(HistoryStep::Restart)], 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn documents_are_what_a_simple_model_says_and_survive_a_snapshot(steps in document_steps()) {
        let store = documents();
        block_on(suite::documents_follow(&store, &steps)).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let restored = memory::Documents::restore(&store.lock().snapshot(), DocumentLimits::default()).unwrap();
        prop_assert_eq!(&restored, &*store.lock());
    }

    #[test]
    fn series_are_what_a_simple_model_says_and_survive_a_snapshot(steps in series_steps()) {
        let store = series(WindowLimits::default());
        block_on(suite::series_follow(&store, &steps)).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let restored = memory::Series::restore(&store.lock().snapshot(), WindowLimits::default()).unwrap();
        prop_assert_eq!(&restored, &*store.lock());
    }

    #[test]
    fn histories_are_what_a_simple_model_says_and_survive_a_snapshot(steps in history_steps()) {
        let store = history(WindowLimits::default());
        block_on(suite::history_follow(&store, &steps)).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let restored = memory::History::restore(&store.lock().snapshot(), WindowLimits::default()).unwrap();
        prop_assert_eq!(&restored, &*store.lock());
    }

    #[test]
    fn windows_stay_within_their_limits_and_keep_the_newest(
        points in prop::collection::vec((0u8..6, 0i64..1_000), 1..200),
        items_max in 1usize..20,
        lanes_max in 1usize..6,
        points_max in 1u64..40,
    ) {
        // 20 bytes a point of one value; a series takes less than 1,000 beside.
        let bytes_max = 1_000 + points_max * 20;
        let mut store = memory::Series::new(WindowLimits { lanes_max, items_max, bytes_max });
        let mut new = 0;
        for (sequence, (lane, at)) in points.iter().enumerate() {
            let values = BTreeMap::from([("v".to_owned(), 1.0)]);
            let point = Point { at: Timestamp::from_millis(*at), values, ..Default::default() };
            new += store.append(&Applied::new("S", sequence as u64 + 1), &format!("s{lane}"), vec![point]).unwrap();
        }
        let all = Range { from: Timestamp::from_millis(0), to: Timestamp::from_millis(1_000), limit: 1_000 };
        let kept: Vec<Vec<Point>> = (0..6).map(|lane| store.range(&format!("s{lane}"), all)).collect();
        let count: usize = kept.iter().map(Vec::len).sum();
        prop_assert!(kept.iter().all(|lane| lane.len() <= items_max));
        prop_assert!(kept.iter().filter(|lane| !lane.is_empty()).count() <= lanes_max);
        prop_assert!(count as u64 * 20 <= bytes_max);
        prop_assert_eq!(count as u64 + store.evicted(), new);
        let newest = points.iter().map(|(_, at)| *at).max();
        prop_assert_eq!(kept.iter().flatten().map(|p| p.at.as_millis()).max(), newest);
    }
}

#[test]
fn a_full_collection_refuses_what_is_new_and_still_takes_what_it_knows() {
    let mut store = memory::Documents::new(DocumentLimits { documents_max: 1, body_bytes_max: 4 });
    let document = |id: &str, body: &'static str| Document { id: id.into(), body: body.into(), ..Default::default() };
    store.put(&Applied::new("S", 1), document("a", "1")).unwrap();
    assert!(matches!(store.put(&Applied::new("S", 2), document("b", "1")), Err(Error::Full { limit: 1, .. })));
    assert_eq!(store.put(&Applied::new("S", 2), document("a", "2")).unwrap(), Written::Stored);
    assert!(matches!(store.put(&Applied::new("S", 3), document("a", "12345")), Err(Error::TooLarge { bytes: 5, .. })));
    store.delete(&Applied::new("S", 4), "a");
    assert_eq!(store.put(&Applied::new("S", 5), document("b", "1")).unwrap(), Written::Stored);
    assert_eq!(store.len(), 1);
}

#[test]
fn bytes_that_are_no_snapshot_are_refused() {
    let junk = [0xff; 16];
    assert!(matches!(memory::Documents::restore(&junk, DocumentLimits::default()), Err(Error::Snapshot(_))));
    assert!(matches!(memory::Series::restore(&junk, WindowLimits::default()), Err(Error::Snapshot(_))));
    assert!(matches!(memory::History::restore(&junk, WindowLimits::default()), Err(Error::Snapshot(_))));
}

/// A store that forgets which facts it has applied, as a database without that column would.
struct Forgetful(Shared<memory::Documents>, std::sync::atomic::AtomicU64);

impl Forgetful {
    fn unseen(&self) -> Applied {
        Applied::new("OWN", 1 + self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }
}

impl Documents for Forgetful {
    fn write<'a>(&'a self, changes: Vec<(Applied, Change)>) -> Answer<'a, ()> {
        self.0.write(changes.into_iter().map(|(_, change)| (self.unseen(), change)).collect())
    }

    fn get<'a>(&'a self, id: &'a str) -> Answer<'a, Option<Document>> {
        self.0.get(id)
    }

    fn get_many<'a>(&'a self, ids: &'a BTreeSet<String>) -> Answer<'a, Vec<Document>> {
        self.0.get_many(ids)
    }

    fn count<'a>(&'a self, query: &'a Query) -> Answer<'a, u64> {
        self.0.count(query)
    }

    fn list<'a>(&'a self, query: &'a Query) -> Answer<'a, Page> {
        self.0.list(query)
    }

    fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> Answer<'a, ()> {
        self.0.advance(from, applied)
    }

    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64> {
        self.0.position(stream)
    }
}

/// A history that lets anything in.
struct Careless(Shared<memory::History>);

impl History for Careless {
    fn write<'a>(&'a self, entries: Vec<(Applied, Entry)>) -> Answer<'a, ()> {
        let let_in = |(applied, mut entry): (Applied, Entry)| {
            let newest = self.0.lock().list(&entry.key, None, 1).first().map_or(0, |v| v.version);
            entry.version.version = entry.version.version.max(newest + 1);
            self.0.lock().append(&applied, &entry.key, entry.version).map(|_| ())
        };
        let done = entries.into_iter().try_for_each(let_in);
        Box::pin(async move { done })
    }

    fn at<'a>(&'a self, key: &'a str, time: Timestamp) -> Answer<'a, Option<Version>> {
        self.0.at(key, time)
    }

    fn list<'a>(&'a self, key: &'a str, before: Option<u64>, limit: usize) -> Answer<'a, Vec<Version>> {
        self.0.list(key, before, limit)
    }

    fn forget(&self, before: Timestamp) -> Answer<'_, ()> {
        self.0.forget(before)
    }

    fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> Answer<'a, ()> {
        self.0.advance(from, applied)
    }

    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64> {
        self.0.position(stream)
    }
}

/// A series that rounds times to whole hundredths of a second, as a coarse database would.
struct Coarse(Shared<memory::Series>);

impl Series for Coarse {
    fn write<'a>(&'a self, mut points: Vec<(Applied, Points)>) -> Answer<'a, ()> {
        for at in points.iter_mut().flat_map(|(_, points)| &mut points.columns).flat_map(|of| &mut of.at_nanos) {
            *at = *at / 10_000_000 * 10_000_000;
        }
        self.0.write(points)
    }

    fn columns<'a>(&'a self, series: &'a [&'a str], range: Range) -> Answer<'a, Vec<Vec<Columns>>> {
        self.0.columns(series, range)
    }

    fn forget(&self, before: Timestamp) -> Answer<'_, ()> {
        self.0.forget(before)
    }

    fn forget_series<'a>(&'a self, series: &'a str, before: Timestamp) -> Answer<'a, ()> {
        self.0.forget_series(series, before)
    }

    fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> Answer<'a, ()> {
        self.0.advance(from, applied)
    }

    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64> {
        self.0.position(stream)
    }
}

/// Documents whose position moves whatever it was, so that what was emptied is not missed.
struct Blind(Shared<memory::Documents>);

impl Documents for Blind {
    fn write<'a>(&'a self, changes: Vec<(Applied, Change)>) -> Answer<'a, ()> {
        self.0.write(changes)
    }

    fn get<'a>(&'a self, id: &'a str) -> Answer<'a, Option<Document>> {
        self.0.get(id)
    }

    fn get_many<'a>(&'a self, ids: &'a BTreeSet<String>) -> Answer<'a, Vec<Document>> {
        self.0.get_many(ids)
    }

    fn count<'a>(&'a self, query: &'a Query) -> Answer<'a, u64> {
        self.0.count(query)
    }

    fn list<'a>(&'a self, query: &'a Query) -> Answer<'a, Page> {
        self.0.list(query)
    }

    fn advance<'a>(&'a self, _: u64, applied: &'a Applied) -> Answer<'a, ()> {
        self.0.advance(0, applied)
    }

    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64> {
        self.0.position(stream)
    }
}

#[test]
fn the_suite_finds_an_engine_that_forgets_repeats_or_rounds() {
    let blind = || async { Ok(Arc::new(Blind(documents())) as Arc<dyn Documents>) };
    let found = block_on(suite::documents(1, blind)).unwrap_err().to_string();
    assert!(found.starts_with("a position that is before what it was does not advance"), "{found}");

    let forgetful = || async { Ok(Arc::new(Forgetful(documents(), 0.into())) as Arc<dyn Documents>) };
    let found = block_on(suite::documents(1, forgetful)).unwrap_err().to_string();
    assert!(found.starts_with("applying a fact again changes nothing"), "{found}");
    let careless = || async { Ok(Arc::new(Careless(history(WindowLimits::default()))) as Arc<dyn History>) };
    let found = block_on(suite::history(1, careless)).unwrap_err().to_string();
    assert!(found.starts_with("the same version again changes nothing"), "{found}");
    let coarse = || async { Ok(Arc::new(Coarse(series(WindowLimits::default()))) as Arc<dyn Series>) };
    let found = block_on(suite::series(1, coarse)).unwrap_err().to_string();
    assert!(found.starts_with("points come in order of time"), "{found}");
}
