//! How every engine must behave. An engine passes if each of [`documents`], [`series`] and [`history`], given
//! a way to make fresh stores, finds nothing wrong.
//!
//! Each first checks stated rules one by one, then plays scripts of writes, repeated writes and restarts against the
//! engine and against a model that is too simple to be wrong, and compares everything that can be asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    future::Future,
    sync::Arc,
};

use bytes::Bytes;
use mesh_proto::Timestamp;

use crate::{
    Applied, Change, Document, Documents, Entry, Error, History, Point, Points, Query, Range, Series, Version,
};

/// A rule that an engine broke, or an error where it should have answered.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A rule does not hold.
    #[error("{rule}: expected {expected}, found {found}")]
    Broken {
        /// The rule, as a sentence.
        rule: &'static str,
        /// What should have been.
        expected: String,
        /// What was.
        found: String,
    },
    /// The engine failed.
    #[error("the engine failed")]
    Engine(#[from] Error),
}

/// Scripts to play against an engine that answers at once; one that is asked over a network may be given fewer.
pub const SCRIPTS: u64 = 20;
/// Steps of a script.
const STEPS: usize = 60;

fn equal<T: PartialEq + Debug>(rule: &'static str, found: &T, expected: &T) -> Result<(), Failure> {
    if found == expected {
        return Ok(());
    }
    Err(Failure::Broken { rule, expected: format!("{expected:?}"), found: format!("{found:?}") })
}

fn refused<T: Debug>(rule: &'static str, found: Result<T, Error>) -> Result<(), Failure> {
    match found {
        Err(_) => Ok(()),
        Ok(answer) => Err(Failure::Broken { rule, expected: "an error".into(), found: format!("{answer:?}") }),
    }
}

/// A generator of scripts: the same seed gives the same script everywhere (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

const STREAM: &str = "SUITE";
/// A store that was emptied or restored is not brought past what it lost.
const CONDITION: &str = "a position that is before what it was does not advance";

fn applied(sequence: u64) -> Applied {
    Applied::new(STREAM, sequence)
}

fn document(id: &str, colour: &str, body: &str) -> Document {
    let indexes = BTreeMap::from([("colour".to_owned(), colour.to_owned()), ("kind".to_owned(), "thing".to_owned())]);
    Document { id: id.to_owned(), indexes, body: Bytes::copy_from_slice(body.as_bytes()) }
}

fn by_colour(colour: &str) -> Query {
    Query { equal: BTreeMap::from([("colour".to_owned(), colour.to_owned())]), ..Default::default() }
}

/// One step of a script for documents.
#[derive(Clone, Debug, PartialEq)]
pub enum DocumentStep {
    /// A fact that puts documents (number, colour, content) and deletes documents (number).
    Fact {
        /// What it puts.
        puts: Vec<(u8, u8, u8)>,
        /// What it deletes.
        deletes: Vec<u8>,
        /// Is it applied whole, or does the writer stop before saying so?
        whole: bool,
    },
    /// The writer starts again: every fact after the position is applied again.
    Restart,
}

/// Holds documents to their rules.
///
/// # Errors
/// The first rule found broken.
pub async fn documents<F, R>(scripts: u64, fresh: F) -> Result<(), Failure>
where
    F: Fn() -> R,
    R: Future<Output = Result<Arc<dyn Documents>, Error>>,
{
    let store = fresh().await?;
    equal("an empty store holds nothing", &store.get("a").await?, &None)?;
    equal("an unread stream has position 0", &store.position(STREAM).await?, &0)?;
    refused("a document without an id is refused", store.put(&applied(1), document("", "red", "x")).await)?;
    store.put(&applied(1), document("a", "red", "1")).await?;
    equal("a stored document is found", &store.get("a").await?, &Some(document("a", "red", "1")))?;
    store.put(&applied(1), document("a", "red", "other")).await?;
    let kept = store.get("a").await?;
    equal("applying a fact again changes nothing", &kept, &Some(document("a", "red", "1")))?;
    store.put(&applied(2), document("a", "blue", "2")).await?;
    store.put(&applied(1), document("a", "red", "1")).await?;
    let kept = store.get("a").await?;
    equal("an older fact does not undo a newer", &kept, &Some(document("a", "blue", "2")))?;
    let red = store.list(&by_colour("red")).await?.documents;
    equal("a changed document leaves its old index", &red, &vec![])?;
    let other = Applied::new("OTHER", 1);
    store.put(&other, document("a", "green", "3")).await?;
    let of_other = store.get("a").await?;
    equal("each stream counts for itself", &of_other, &Some(document("a", "green", "3")))?;
    store.delete(&applied(3), "a").await?;
    equal("a deleted document is gone", &store.get("a").await?, &None)?;
    store.put(&applied(2), document("a", "blue", "2")).await?;
    equal("a deleted document is not born again by an older fact", &store.get("a").await?, &None)?;
    store.delete(&applied(3), "a").await?;
    equal("what is deleted twice is gone", &store.get("a").await?, &None)?;
    store.delete(&applied(3), "never there").await?;
    store.advance(0, &applied(3)).await?;
    equal("the position is the last whole fact", &store.position(STREAM).await?, &3)?;
    let behind = store.advance(4, &applied(9)).await;
    refused(CONDITION, behind)?;
    equal("a refused advance moves nothing", &store.position(STREAM).await?, &3)?;
    store.put(&applied(3), document("b", "red", "1")).await?;
    equal("nothing at or below the position is applied", &store.get("b").await?, &None)?;
    store.advance(3, &applied(2)).await?;
    equal("the position never falls", &store.position(STREAM).await?, &3)?;
    equal("positions are per stream", &store.position("OTHER").await?, &0)?;
    refused(CONDITION, store.advance(3, &Applied::new("OTHER", 5)).await)?;
    store.put(&applied(4), document("a", "blue", "4")).await?;
    let reborn = store.get("a").await?;
    equal("a newer fact may bring a deleted document back", &reborn, &Some(document("a", "blue", "4")))?;
    let strange = Query { token: "no token".into(), ..Default::default() };
    refused("a strange page token is refused", store.list(&strange).await)?;

    documents_in_one_write(fresh().await?.as_ref()).await?;
    documents_of_any_name(fresh().await?.as_ref()).await?;
    documents_page_while_they_change(fresh().await?.as_ref()).await?;
    documents_are_narrowed_and_counted(fresh().await?.as_ref()).await?;
    for seed in 0..scripts {
        documents_follow(fresh().await?.as_ref(), &document_script(seed)).await?;
    }
    Ok(())
}

/// Lists, counts and looks for several at once agree on what there is.
async fn documents_are_narrowed_and_counted(store: &dyn Documents) -> Result<(), Failure> {
    let colours = ["red", "blue", "green"];
    let all: Vec<Document> =
        (0..9).zip(colours.iter().cycle()).map(|(n, colour)| document(&format!("d{n}"), colour, "x")).collect();
    let puts = (1..).zip(&all).map(|(sequence, document)| (applied(sequence), Change::Put(document.clone())));
    store.write(puts.collect()).await?;
    store.delete(&applied(10), "d3").await?;
    let texts = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<BTreeSet<String>>();
    let one_of = |colours: &[&str]| BTreeMap::from([("colour".to_owned(), texts(colours))]);
    let either = Query { one_of: one_of(&["red", "green", "grey"]), ..Query::default() };
    let things = Query { equal: BTreeMap::from([("kind".to_owned(), "thing".to_owned())]), ..either.clone() };
    let none = Query { one_of: one_of(&[]), ..Query::default() };
    let ids = |page: crate::Page| page.documents.into_iter().map(|document| document.id).collect::<Vec<_>>();
    let rule = "a document has one of the values asked for";
    for query in [&either, &things] {
        equal(rule, &ids(store.list(query).await?), &["d0", "d2", "d5", "d6", "d8"].map(str::to_owned).to_vec())?;
        equal("what a list holds is counted", &store.count(query).await?, &5)?;
        let rest = query.clone().after("d4");
        equal(
            "a list begins after any id",
            &ids(store.list(&rest).await?),
            &["d5", "d6", "d8"].map(str::to_owned).to_vec(),
        )?;
        equal("a count begins where the list does", &store.count(&rest).await?, &3)?;
    }
    equal("no value to choose from matches nothing", &store.list(&none).await?.documents, &vec![])?;
    equal("a count without conditions is of all", &store.count(&Query::default()).await?, &8)?;
    let mut found = store.get_many(&texts(&["d1", "d3", "d8", "never there"])).await?;
    found.sort_by(|a, b| a.id.cmp(&b.id));
    equal("those of several ids that are there are found", &found, &vec![all[1].clone(), all[8].clone()])?;
    equal("of no ids there is nothing", &store.get_many(&BTreeSet::new()).await?, &vec![])?;
    let strange = Query { token: "no token".into(), ..Query::default() };
    refused("a count from a strange page token is refused", store.count(&strange).await)
}

/// Many changes in one write are as if each had been written alone.
async fn documents_in_one_write(store: &dyn Documents) -> Result<(), Failure> {
    let put = |sequence, id: &str, body: &str| (applied(sequence), Change::Put(document(id, "red", body)));
    let delete = |sequence, id: &str| (applied(sequence), Change::Delete(id.to_owned()));
    let other = (Applied::new("OTHER", 9), Change::Put(document("c", "red", "other")));
    let changes = vec![
        put(1, "a", "1"),
        put(2, "b", "2"),
        put(3, "a", "3"),
        delete(4, "b"),
        put(5, "c", "5"),
        other,
        put(6, "d", "6"),
        delete(7, "d"),
        put(8, "d", "8"),
    ];
    for _ in 0..2 {
        store.write(changes.clone()).await?;
        let found = store.list(&Query::default()).await?.documents;
        let expected = vec![document("a", "red", "3"), document("c", "red", "other"), document("d", "red", "8")];
        equal("changes of one write apply in order, once", &found, &expected)?;
    }
    store.put(&applied(2), document("b", "red", "2")).await?;
    equal("a put that was undone in the same write stays undone", &store.get("b").await?, &None)?;
    let mixed = vec![put(9, "e", "9"), put(9, "", "9"), put(9, "f", "9")];
    refused("a write with a change that cannot be is an error", store.write(mixed).await)?;
    let found = (store.get("e").await?.is_some(), store.get("f").await?.is_some());
    equal("what else the write holds is applied", &found, &(true, true))?;
    let many = (0..1_500).map(|number| put(10, &format!("m{number:04}"), "10"));
    store.write(many.collect()).await?;
    let query = Query {
        limit: 1_000,
        token: store.list(&Query { limit: 5, ..Query::default() }).await?.next,
        ..by_colour("red")
    };
    equal("a write may be large", &store.list(&query).await?.documents.len(), &1_000)?;
    Ok(())
}

/// Names that mean something in a language of queries, in a path, or nowhere.
pub const STRANGE: &[&str] = &[
    "a.b",
    "$where",
    "$gt",
    "a$b",
    "{\"$ne\": null}",
    "'; DROP TABLE versions; --",
    "\") |> drop(columns: [\"_time\"])",
    "${1 + 1}",
    "a,b=c d",
    "back\\slash\\",
    "line\nbreak",
    " ",
    "%00",
    "%",
    "_id",
    "\u{fffd}\u{10ffff}é",
    "*",
];

async fn documents_of_any_name(store: &dyn Documents) -> Result<(), Failure> {
    let strange = |name: &str, stream: &str| {
        let indexes = BTreeMap::from([(name.to_owned(), name.to_owned())]);
        let document = Document { id: name.to_owned(), indexes, body: Bytes::copy_from_slice(name.as_bytes()) };
        (Applied::new(stream, 1), Change::Put(document))
    };
    store.write(STRANGE.iter().map(|name| strange(name, name)).collect()).await?;
    for name in STRANGE {
        let Change::Put(expected) = strange(name, name).1 else { continue };
        equal("a document of any name is found", &store.get(name).await?, &Some(expected.clone()))?;
        let query = Query { equal: expected.indexes.clone(), ..Query::default() };
        equal("an index of any name and value is searched", &store.list(&query).await?.documents, &vec![expected])?;
        store.advance(0, &Applied::new(*name, 1)).await?;
        equal("a stream of any name has a position", &store.position(name).await?, &1)?;
        store.delete(&Applied::new(*name, 1), name).await?;
        equal("its position holds for it", &store.get(name).await?.is_some(), &true)?;
        store.delete(&Applied::new(*name, 2), name).await?;
        equal("a document of any name is deleted", &store.get(name).await?, &None)?;
    }
    equal("nothing else is there", &store.list(&Query::default()).await?.documents, &vec![])?;
    Ok(())
}

/// What stays from the first page to the last is listed once, whatever comes and goes meanwhile.
async fn documents_page_while_they_change(store: &dyn Documents) -> Result<(), Failure> {
    let put = |id: String| (applied(1), Change::Put(document(&id, "red", "stays")));
    store.write((0..20).map(|number| put(format!("s{number:02}"))).collect()).await?;
    let (mut query, mut found) = (Query { limit: 3, ..by_colour("red") }, vec![]);
    for turn in 0.. {
        let page = store.list(&query).await?;
        found.extend(page.documents.into_iter().filter(|d| d.body.as_ref() == b"stays").map(|d| d.id));
        // One before the end of the page comes, one after it comes and the one before it goes.
        store.put(&applied(2 + turn), document(&format!("r{turn}"), "red", "comes")).await?;
        store.put(&applied(2 + turn), document(&format!("t{turn}"), "red", "comes")).await?;
        store.delete(&applied(3 + turn), &format!("t{}", turn.saturating_sub(1))).await?;
        if page.next.is_empty() || turn > 40 {
            break;
        }
        query.token = page.next;
    }
    let expected: Vec<String> = (0..20).map(|number| format!("s{number:02}")).collect();
    equal("what stays is listed once while others come and go", &found, &expected)?;
    Ok(())
}

fn document_script(seed: u64) -> Vec<DocumentStep> {
    let mut dice = Dice(seed);
    let step = |dice: &mut Dice| match dice.below(8) {
        0 => DocumentStep::Restart,
        _ => DocumentStep::Fact {
            puts: (0..dice.below(4))
                .map(|_| (dice.below(12) as u8, dice.below(3) as u8, dice.below(250) as u8))
                .collect(),
            deletes: (0..dice.below(3)).map(|_| dice.below(12) as u8).collect(),
            whole: dice.below(3) > 0,
        },
    };
    (0..STEPS).map(|_| step(&mut dice)).collect()
}

/// Plays a script against a store and a model.
///
/// # Errors
/// The first difference.
pub async fn documents_follow(store: &dyn Documents, script: &[DocumentStep]) -> Result<(), Failure> {
    type Fact = (u64, BTreeMap<String, Document>, BTreeSet<String>);
    let mut model = BTreeMap::<String, Document>::new();
    let mut unsettled: Vec<Fact> = vec![];
    let (mut sequence, mut position) = (0, 0);
    for step in script {
        match step {
            DocumentStep::Fact { puts, deletes, whole } => {
                sequence += 1;
                let of = |(number, colour, body): &(u8, u8, u8)| {
                    document(&format!("d{number}"), &format!("c{colour}"), &body.to_string())
                };
                let deletes: BTreeSet<String> = deletes.iter().map(|number| format!("d{number}")).collect();
                // A fact says one thing of a document.
                let puts = puts.iter().map(of).filter(|d| !deletes.contains(&d.id));
                let fact = (sequence, puts.map(|d| (d.id.clone(), d)).collect(), deletes);
                apply_documents(store, &fact).await?;
                model.retain(|id, _| !fact.2.contains(id));
                model.extend(fact.1.clone());
                if *whole {
                    store.advance(position, &applied(sequence)).await?;
                    position = sequence;
                    unsettled.clear();
                } else {
                    unsettled.push(fact);
                }
            }
            DocumentStep::Restart => {
                let whole = sequence - unsettled.len() as u64;
                equal("the position is the last whole fact", &store.position(STREAM).await?, &whole)?;
                for fact in &unsettled {
                    apply_documents(store, fact).await?;
                }
            }
        }
        for colour in ["", "c0", "c1", "c2"] {
            for limit in [1, 3, 0] {
                let expected: Vec<&Document> =
                    model.values().filter(|d| colour.is_empty() || d.indexes["colour"] == colour).collect();
                let mut query = if colour.is_empty() { Query::default() } else { by_colour(colour) };
                query.limit = limit;
                let mut found = vec![];
                loop {
                    let page = store.list(&query).await?;
                    let size_holds = limit == 0 || page.documents.len() <= limit;
                    equal("a page is no longer than asked for", &size_holds, &true)?;
                    found.extend(page.documents);
                    if page.next.is_empty() || found.len() > expected.len() {
                        break;
                    }
                    query.token = page.next;
                }
                equal("pages list what is there once, by id", &found.iter().collect(), &expected)?;
            }
        }
        for number in 0..12 {
            let id = format!("d{number}");
            equal("a document is as last put", &store.get(&id).await?, &model.get(&id).cloned())?;
        }
    }
    Ok(())
}

async fn apply_documents(
    store: &dyn Documents,
    (sequence, puts, deletes): &(u64, BTreeMap<String, Document>, BTreeSet<String>),
) -> Result<(), Error> {
    for document in puts.values() {
        store.put(&applied(*sequence), document.clone()).await?;
    }
    for id in deletes {
        store.delete(&applied(*sequence), id).await?;
    }
    Ok(())
}

fn millis(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// The time of a script's moment: further apart than an engine may be coarse when it forgets, and not on a whole second.
fn moment(number: i64) -> Timestamp {
    Timestamp::from_nanos(i128::from(number) * 3_001_000_001 + 1)
}

/// A time between the moment before this one and it.
fn before_moment(number: i64) -> Timestamp {
    Timestamp::from_nanos(moment(number).as_nanos() - 2)
}

fn sample(at: i64, place: &str) -> Point {
    let labels = BTreeMap::from([("place".to_owned(), place.to_owned())]);
    // The value follows from the identity; some points have a value that others lack.
    let value = at as f64 * 0.5 + place.len() as f64;
    let mut values = BTreeMap::from([("level".to_owned(), value)]);
    if at % 3 == 0 {
        values.insert("rate".to_owned(), -value);
    }
    Point { at: moment(at), labels, values }
}

/// One step of a script for series.
#[derive(Clone, Debug, PartialEq)]
pub enum SeriesStep {
    /// A fact that appends points (milliseconds, place) to a series.
    Append {
        /// Number of the series.
        series: u8,
        /// Its points, in any order.
        points: Vec<(u8, u8)>,
        /// Is it applied whole, or does the writer stop before saying so?
        whole: bool,
    },
    /// Everything before a time, in milliseconds, is forgotten.
    Forget(u8),
    /// The same, of one series.
    ForgetOne {
        /// Number of the series.
        series: u8,
        /// Time, in milliseconds.
        before: u8,
    },
    /// The writer starts again: every fact after the position is applied again.
    Restart,
}

/// Holds series to their rules.
///
/// # Errors
/// The first rule found broken.
pub async fn series<F, R>(scripts: u64, fresh: F) -> Result<(), Failure>
where
    F: Fn() -> R,
    R: Future<Output = Result<Arc<dyn Series>, Error>>,
{
    let all = Range { from: moment(0), to: moment(1_000), limit: 100 };
    let store = fresh().await?;
    equal("an unknown series is empty", &store.range("s", all).await?, &vec![])?;
    let points = vec![sample(30, "a"), sample(10, "a"), sample(20, "a"), sample(20, "bb")];
    store.append(&applied(1), "s", points.clone()).await?;
    store.append(&applied(1), "s", points).await?;
    let sorted = vec![sample(10, "a"), sample(20, "a"), sample(20, "bb"), sample(30, "a")];
    equal("points come in order of time", &store.range("s", all).await?, &sorted)?;
    let newest = store.range("s", Range { limit: 2, ..all }).await?;
    equal("a limit keeps the newest", &newest, &sorted[2..].to_vec())?;
    let exact = store.range("s", Range { from: moment(10), to: moment(20), ..all }).await?;
    equal("a range holds both its ends", &exact, &sorted[..3].to_vec())?;
    equal(
        "an empty range is empty",
        &store.range("s", Range { from: moment(21), to: moment(20), ..all }).await?,
        &vec![],
    )?;
    equal("one series is not another", &store.range("t", all).await?, &vec![])?;
    for strange in [f64::NAN, f64::INFINITY] {
        let point = Point { values: BTreeMap::from([("level".to_owned(), strange)]), ..sample(50, "a") };
        refused(
            "a value that is not finite is refused",
            store.append(&applied(2), "s", vec![sample(51, "a"), point]).await,
        )?;
    }
    let none = Point { values: BTreeMap::new(), ..sample(50, "a") };
    refused("a point without a value is refused", store.append(&applied(2), "s", vec![sample(51, "a"), none]).await)?;
    refused("a series without a name is refused", store.append(&applied(2), "", vec![sample(1, "a")]).await)?;
    equal("a refused call stores nothing", &store.range("s", all).await?, &sorted)?;
    store.advance(0, &applied(5)).await?;
    refused(CONDITION, store.advance(6, &applied(9)).await)?;
    equal("a refused advance moves nothing", &store.position(STREAM).await?, &5)?;
    store.advance(5, &applied(5)).await?;
    store.append(&applied(5), "s", vec![sample(60, "a")]).await?;
    equal("nothing at or below the position is applied", &store.range("s", all).await?, &sorted)?;
    store.forget(before_moment(20)).await?;
    equal("what is older is forgotten, what is not stays", &store.range("s", all).await?, &sorted[1..].to_vec())?;
    series_in_one_write(fresh().await?.as_ref()).await?;
    series_forgotten_alone(fresh().await?.as_ref()).await?;
    series_of_any_name(fresh().await?.as_ref()).await?;

    for seed in 0..scripts {
        series_follow(fresh().await?.as_ref(), &series_script(seed)).await?;
    }
    Ok(())
}

/// Many points in one write are as if each had been written alone.
async fn series_in_one_write(store: &dyn Series) -> Result<(), Failure> {
    let of = |sequence, series: &str, points: Vec<Point>| (applied(sequence), Points::of(series, points));
    let bad = Point { values: BTreeMap::from([("level".to_owned(), f64::NAN)]), ..sample(3, "a") };
    let mixed = vec![of(1, "a", vec![sample(1, "a")]), of(1, "b", vec![bad]), of(2, "a", vec![sample(2, "a")])];
    refused("a write with points that cannot be is an error", store.write(mixed).await)?;
    let all = Range { from: moment(0), to: moment(9_999), limit: 10_000 };
    let kept = store.range("a", all).await?;
    equal("what else the write holds is stored", &kept, &vec![sample(1, "a"), sample(2, "a")])?;
    let many = (0..7_000).map(|number| of(3, &format!("m{}", number % 7), vec![sample(number / 7, "a")]));
    store.write(many.collect()).await?;
    let kept: Vec<Point> = (0..1_000).map(|at| sample(at, "a")).collect();
    equal("a write may be large", &(store.range("m6", all).await? == kept), &true)?;
    Ok(())
}

/// One series loses what is old, and no other does.
async fn series_forgotten_alone(store: &dyn Series) -> Result<(), Failure> {
    let all = Range { from: moment(0), to: moment(9_999), limit: 100 };
    let points = vec![sample(10, "a"), sample(20, "a"), sample(20, "bb"), sample(30, "a")];
    let names: Vec<&str> = STRANGE.iter().copied().chain(["s", "s1"]).collect();
    for name in &names {
        store.append(&applied(1), name, points.clone()).await?;
    }
    store.advance(0, &applied(1)).await?;
    store.forget_series("", before_moment(30)).await?;
    store.forget_series("unknown", before_moment(30)).await?;
    for name in &names {
        equal("what another series forgets stays", &store.range(name, all).await?, &points)?;
        store.forget_series(name, before_moment(20)).await?;
        equal("a series forgets what is older", &store.range(name, all).await?, &points[1..].to_vec())?;
    }
    store.forget_series("s", before_moment(1_000)).await?;
    equal("a series may forget all it has", &store.range("s", all).await?, &vec![])?;
    store.append(&applied(2), "s", vec![sample(40, "a")]).await?;
    equal("a series goes on after it forgot", &store.range("s", all).await?, &vec![sample(40, "a")])?;
    Ok(())
}

async fn series_of_any_name(store: &dyn Series) -> Result<(), Failure> {
    let all = Range { from: moment(0), to: moment(9), limit: 100 };
    let strange = |name: &str| Point {
        at: moment(1),
        labels: BTreeMap::from([(name.to_owned(), name.to_owned()), ("empty".to_owned(), String::new())]),
        values: BTreeMap::from([(name.to_owned(), 1.5e-300), ("-".to_owned(), -0.1)]),
    };
    for name in STRANGE {
        store.append(&Applied::new(*name, 1), name, vec![strange(name)]).await?;
        store.advance(0, &Applied::new(*name, 1)).await?;
    }
    for name in STRANGE {
        equal("a series of any name, label and value is found", &store.range(name, all).await?, &vec![strange(name)])?;
        equal("a stream of any name has a position", &store.position(name).await?, &1)?;
    }
    Ok(())
}

fn series_script(seed: u64) -> Vec<SeriesStep> {
    let mut dice = Dice(seed);
    let step = |dice: &mut Dice| match dice.below(10) {
        0 => SeriesStep::Restart,
        1 if dice.below(2) == 0 => SeriesStep::Forget(dice.below(200) as u8),
        1 => SeriesStep::ForgetOne { series: dice.below(3) as u8, before: dice.below(200) as u8 },
        _ => SeriesStep::Append {
            series: dice.below(3) as u8,
            points: (0..dice.below(6)).map(|_| (dice.below(200) as u8, dice.below(2) as u8)).collect(),
            whole: dice.below(3) > 0,
        },
    };
    (0..STEPS).map(|_| step(&mut dice)).collect()
}

/// Plays a script against a store and a model.
///
/// # Errors
/// The first difference.
pub async fn series_follow(store: &dyn Series, script: &[SeriesStep]) -> Result<(), Failure> {
    let mut model = BTreeSet::<(u8, u8, u8)>::new();
    let mut unsettled: Vec<(u64, u8, Vec<Point>)> = vec![];
    let (mut sequence, mut position) = (0, 0);
    let place = |place: u8| if place == 0 { "north" } else { "south" };
    for step in script {
        match step {
            SeriesStep::Append { series, points, whole } => {
                sequence += 1;
                model.extend(points.iter().map(|(at, place)| (*series, *at, *place)));
                let points: Vec<Point> = points.iter().map(|(at, p)| sample(i64::from(*at), place(*p))).collect();
                store.append(&applied(sequence), &format!("s{series}"), points.clone()).await?;
                if *whole {
                    store.advance(position, &applied(sequence)).await?;
                    position = sequence;
                    unsettled.clear();
                } else {
                    unsettled.push((sequence, *series, points));
                }
            }
            SeriesStep::Forget(before) => {
                // What is not settled may come again; a writer forgets only what lies behind its position.
                store.advance(position, &applied(sequence)).await?;
                position = sequence;
                unsettled.clear();
                model.retain(|(_, at, _)| at >= before);
                store.forget(before_moment(i64::from(*before))).await?;
            }
            SeriesStep::ForgetOne { series, before } => {
                store.advance(position, &applied(sequence)).await?;
                position = sequence;
                unsettled.clear();
                model.retain(|(of, at, _)| of != series || at >= before);
                store.forget_series(&format!("s{series}"), before_moment(i64::from(*before))).await?;
            }
            SeriesStep::Restart => {
                for (sequence, series, points) in &unsettled {
                    store.append(&applied(*sequence), &format!("s{series}"), points.clone()).await?;
                }
            }
        }
        for series in 0..3u8 {
            for (from, to, limit) in [(0u8, 255u8, 1_000usize), (50, 150, 1_000), (0, 255, 3), (100, 255, 1)] {
                let of = |(_, at, p): &(u8, u8, u8)| sample(i64::from(*at), place(*p));
                let inside = model.iter().filter(|(s, at, _)| *s == series && (from..=to).contains(at));
                let mut expected: Vec<Point> = inside.map(of).collect();
                expected.drain(..expected.len().saturating_sub(limit));
                let range = Range { from: moment(i64::from(from)), to: moment(i64::from(to)), limit };
                let found = store.range(&format!("s{series}"), range).await?;
                equal("a range is what was appended there", &found, &expected)?;
            }
        }
    }
    Ok(())
}

fn version(version: u64, at: i64) -> Version {
    Version { version, at: millis(at), body: Bytes::from(format!("v{version}")) }
}

/// One step of a script for histories.
#[derive(Clone, Debug, PartialEq)]
pub enum HistoryStep {
    /// A fact that appends the thing's next version, with this offset of its number, this many milliseconds later.
    Append {
        /// Number of the thing.
        key: u8,
        /// How far its version rises; 0 repeats the newest number.
        rise: u8,
        /// How much later it came about.
        later: u8,
        /// Is it applied whole, or does the writer stop before saying so?
        whole: bool,
    },
    /// Everything before a time, in milliseconds, is forgotten.
    Forget(u8),
    /// The writer starts again: every fact after the position is applied again.
    Restart,
}

/// Holds histories to their rules.
///
/// # Errors
/// The first rule found broken.
pub async fn history<F, R>(scripts: u64, fresh: F) -> Result<(), Failure>
where
    F: Fn() -> R,
    R: Future<Output = Result<Arc<dyn History>, Error>>,
{
    let store = fresh().await?;
    equal("an unknown thing has no versions", &store.list("k", None, 10).await?, &vec![])?;
    store.append(&applied(1), "k", version(3, 30)).await?;
    store.append(&applied(1), "k", Version { body: Bytes::from_static(b"other"), ..version(3, 31) }).await?;
    let kept = store.list("k", None, 10).await?;
    equal("the same version again changes nothing", &kept, &vec![version(3, 30)])?;
    store.append(&applied(2), "k", version(2, 20)).await?;
    equal("an older version changes nothing", &store.list("k", None, 10).await?, &kept)?;
    store.append(&applied(3), "k", version(5, 50)).await?;
    store.append(&applied(4), "k", version(9, 50)).await?;
    let newest_first = vec![version(9, 50), version(5, 50), version(3, 30)];
    equal("versions come newest first", &store.list("k", None, 10).await?, &newest_first)?;
    equal("a limit keeps the newest", &store.list("k", None, 2).await?, &newest_first[..2].to_vec())?;
    equal(
        "a page goes on where the one before ended",
        &store.list("k", Some(5), 10).await?,
        &newest_first[2..].to_vec(),
    )?;
    for (time, expected) in [(29, None), (30, Some(3)), (49, Some(3)), (50, Some(9)), (99, Some(9))] {
        let found = store.at("k", millis(time)).await?.map(|v| v.version);
        equal("a thing is at a time what it had last become", &found, &expected)?;
    }
    equal("one thing is not another", &store.at("j", millis(99)).await?, &None)?;
    refused("a history without a key is refused", store.append(&applied(5), "", version(1, 1)).await)?;
    store.advance(0, &applied(7)).await?;
    refused(CONDITION, store.advance(8, &applied(9)).await)?;
    equal("a refused advance moves nothing", &store.position(STREAM).await?, &7)?;
    store.advance(7, &applied(7)).await?;
    store.append(&applied(7), "k", version(10, 60)).await?;
    equal("nothing at or below the position is applied", &store.list("k", None, 10).await?, &newest_first)?;
    store.forget(millis(50)).await?;
    equal(
        "what is older is forgotten, what is not stays",
        &store.list("k", None, 10).await?,
        &newest_first[..2].to_vec(),
    )?;

    history_in_one_write(fresh().await?.as_ref()).await?;
    history_of_any_name(fresh().await?.as_ref()).await?;
    history_over_a_long_time(fresh().await?.as_ref()).await?;
    for seed in 0..scripts {
        history_follow(fresh().await?.as_ref(), &history_script(seed)).await?;
    }
    Ok(())
}

/// Many versions in one write are as if each had been written alone.
async fn history_in_one_write(store: &dyn History) -> Result<(), Failure> {
    let of = |sequence, key: &str, version| (applied(sequence), Entry { key: key.to_owned(), version });
    let mixed = vec![
        of(1, "a", version(1, 10)),
        of(2, "a", version(3, 30)),
        of(3, "", version(1, 10)),
        of(4, "a", version(2, 20)),
        of(5, "b", version(1, 10)),
        of(6, "a", version(4, 40)),
    ];
    for _ in 0..2 {
        refused("a write with a version that cannot be is an error", store.write(mixed.clone()).await)?;
        let expected = vec![version(4, 40), version(3, 30), version(1, 10)];
        equal("versions of one write come in order, once", &store.list("a", None, 10).await?, &expected)?;
        equal("what else the write holds is stored", &store.list("b", None, 10).await?, &vec![version(1, 10)])?;
    }
    Ok(())
}

async fn history_of_any_name(store: &dyn History) -> Result<(), Failure> {
    for name in STRANGE {
        store
            .append(
                &Applied::new(*name, 1),
                name,
                Version { body: Bytes::from_static(name.as_bytes()), ..version(1, 10) },
            )
            .await?;
        store.advance(0, &Applied::new(*name, 1)).await?;
    }
    for name in STRANGE {
        let found = store.at(name, millis(10)).await?.map(|version| version.body);
        equal("a history of any key is found", &found, &Some(Bytes::from_static(name.as_bytes())))?;
        equal("a stream of any name has a position", &store.position(name).await?, &1)?;
    }
    Ok(())
}

/// Days between versions, hundreds of versions within one, and bodies of some size.
async fn history_over_a_long_time(store: &dyn History) -> Result<(), Failure> {
    const DAY_MS: i64 = 86_400_000;
    let body = Bytes::from(vec![7; 2_000]);
    let time = |number: i64| number % 300 + number / 300 * 10 * DAY_MS;
    let one = |number: i64| Version { version: 1 + 2 * number as u64, at: millis(time(number)), body: body.clone() };
    let all: Vec<Version> = (0..900).map(one).collect();
    let entries =
        all.iter().map(|version| (applied(version.version), Entry { key: "k".into(), version: version.clone() }));
    store.write(entries.collect()).await?;
    let (mut before, mut found) = (None, vec![]);
    while found.len() < 2_000 {
        let page = store.list("k", before, 170).await?;
        let Some(last) = page.last() else { break };
        before = Some(last.version);
        found.extend(page);
    }
    found.reverse();
    equal("pages go back to the first version", &(found == all), &true)?;
    for number in [0, 299, 300, 601, 899] {
        let later = millis(time(number) + if number % 300 == 299 { DAY_MS } else { 0 });
        let found = store.at("k", later).await?.map(|version| version.version);
        equal("a thing is at a time what it had last become", &found, &Some(one(number).version))?;
    }
    store.forget(millis(time(601))).await?;
    let left: Vec<u64> = store.list("k", None, 1_000).await?.iter().map(|version| version.version).collect();
    let expected: Vec<u64> = (601..900).rev().map(|number| one(number).version).collect();
    equal("what is older is forgotten, what is not stays", &left, &expected)?;
    Ok(())
}

fn history_script(seed: u64) -> Vec<HistoryStep> {
    let mut dice = Dice(seed);
    let step = |dice: &mut Dice| match dice.below(10) {
        0 => HistoryStep::Restart,
        1 => HistoryStep::Forget(dice.below(120) as u8),
        _ => HistoryStep::Append {
            key: dice.below(3) as u8,
            rise: dice.below(4) as u8,
            later: dice.below(9) as u8,
            whole: dice.below(3) > 0,
        },
    };
    (0..STEPS).map(|_| step(&mut dice)).collect()
}

/// Plays a script against a store and a model.
///
/// # Errors
/// The first difference.
pub async fn history_follow(store: &dyn History, script: &[HistoryStep]) -> Result<(), Failure> {
    let mut model = BTreeMap::<u8, Vec<Version>>::new();
    let mut newest = BTreeMap::<u8, Version>::new();
    let mut unsettled: Vec<(u64, u8, Version)> = vec![];
    let (mut sequence, mut position) = (0, 0);
    for step in script {
        match step {
            HistoryStep::Append { key, rise, later, whole } => {
                sequence += 1;
                let before = newest.get(key).cloned().unwrap_or_default();
                let next = version(before.version + u64::from(*rise), before.at.as_millis() + i64::from(*later));
                let kept = *rise > 0;
                // A thing of which everything was forgotten has no newest version to repeat.
                if kept || model.get(key).is_some_and(|v| !v.is_empty()) {
                    store.append(&applied(sequence), &format!("k{key}"), next.clone()).await?;
                    if kept {
                        model.entry(*key).or_default().push(next.clone());
                        newest.insert(*key, next.clone());
                    }
                    unsettled.push((sequence, *key, next));
                }
                if *whole {
                    store.advance(position, &applied(sequence)).await?;
                    position = sequence;
                    unsettled.clear();
                }
            }
            HistoryStep::Forget(before) => {
                store.advance(position, &applied(sequence)).await?;
                position = sequence;
                unsettled.clear();
                for versions in model.values_mut() {
                    versions.retain(|v| v.at >= millis(i64::from(*before)));
                }
                store.forget(millis(i64::from(*before))).await?;
            }
            HistoryStep::Restart => {
                for (sequence, key, version) in &unsettled {
                    store.append(&applied(*sequence), &format!("k{key}"), version.clone()).await?;
                }
            }
        }
        for key in 0..3u8 {
            let name = format!("k{key}");
            let versions = model.get(&key).cloned().unwrap_or_default();
            let newest_first: Vec<Version> = versions.iter().rev().cloned().collect();
            equal("versions come newest first", &store.list(&name, None, 1_000).await?, &newest_first)?;
            for time in [0, 20, 60, 400] {
                let expected = newest_first.iter().find(|v| v.at <= millis(time)).cloned();
                equal(
                    "a thing is at a time what it had last become",
                    &store.at(&name, millis(time)).await?,
                    &expected,
                )?;
            }
            if let Some(middle) = versions.get(versions.len() / 2) {
                let found = store.list(&name, Some(middle.version), 2).await?;
                let expected: Vec<Version> =
                    newest_first.iter().filter(|v| v.version < middle.version).take(2).cloned().collect();
                equal("a page goes on where the one before ended", &found, &expected)?;
            }
        }
    }
    Ok(())
}
