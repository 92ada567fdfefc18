//! Steps of a minute, five minutes and an hour, rolled up from what was stored, so that a question about days reads
//! hundreds of points and not hundreds of thousands.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use mesh_proto::Timestamp;

use super::steps::Step;

/// Lengths of rolled-up steps, milliseconds.
pub(crate) const LENGTHS_MS: [i64; 3] = [60_000, 300_000, 3_600_000];
/// How long after its end a minute waits for late values, milliseconds.
const GRACE_MS: i64 = 10_000;
/// Divides the name of a value and what is known of it.
const DIVIDER: char = '|';
/// Values whose steps are open in memory, about 400 bytes each. Beyond this, series that rest are let go: the number of series
/// that come and go within an hour is not limited.
const TRACKS_MAX: usize = 50_000;
/// Sets of names whose order in a row is remembered.
const ORDERS_MAX: usize = 1_000;
/// A series without a value for this long rests, milliseconds.
const REST_MS: i64 = 120_000;

type Labels = BTreeMap<String, String>;

/// What is known of the steps of one beginning, series and labels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) at: Timestamp,
    pub(crate) labels: Arc<Labels>,
    /// Names of values, each with what is known of it; rising.
    pub(crate) names: Arc<[String]>,
    pub(crate) values: Vec<f64>,
}

/// Rolled-up rows of one length, with their series.
pub(crate) type Rolled = Vec<(Arc<str>, Row)>;

/// A longer step of a series that rested until it was over: it is made of minutes in the store.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rested {
    pub(crate) series: Arc<str>,
    /// Which of [`LENGTHS_MS`].
    pub(crate) length: usize,
    pub(crate) begin_ms: i64,
}

/// Steps of one value that are open.
#[derive(Debug)]
struct Track {
    name: Arc<str>,
    /// Newest value and its time, for rises across minutes.
    before: Option<(i64, f64)>,
    minutes: Vec<Step>,
    /// Of five minutes, and of an hour.
    longer: [Vec<Step>; 2],
}

impl Track {
    fn new(name: Arc<str>) -> Self {
        Self { name, before: None, minutes: vec![], longer: [vec![], vec![]] }
    }

    /// The steps of each length that are done.
    fn close(&mut self, done_ms: i64) -> [Vec<Step>; 3] {
        let take = |open: &mut Vec<Step>, length: i64| {
            let done = open.extract_if(.., |step| step.begin_ms + length <= done_ms).collect::<Vec<Step>>();
            if open.is_empty() {
                *open = vec![];
            }
            done
        };
        let mut minutes = take(&mut self.minutes, LENGTHS_MS[0]);
        minutes.sort_by_key(|step| step.begin_ms);
        for (open, length) in self.longer.iter_mut().zip(&LENGTHS_MS[1..]) {
            for step in &minutes {
                let begin_ms = step.begin_ms.div_euclid(*length) * length;
                add(open, &Step { begin_ms, ..step.clone() });
            }
        }
        let [five, hour] = &mut self.longer;
        [minutes, take(five, LENGTHS_MS[1]), take(hour, LENGTHS_MS[2])]
    }

    /// Has it had no value since this time?
    fn is_idle(&self, since_ms: i64) -> bool {
        let is_open = !self.minutes.is_empty() || self.longer.iter().any(|open| !open.is_empty());
        !is_open && self.before.is_none_or(|(at_ms, _)| at_ms < since_ms)
    }
}

/// Adds a step to the open one of its beginning. Mostly there is one, and no room is made for more.
fn add(open: &mut Vec<Step>, step: &Step) {
    match open.iter_mut().rfind(|known| known.begin_ms == step.begin_ms) {
        Some(known) => known.add(step),
        None => {
            open.reserve_exact(1);
            open.push(step.clone());
        }
    }
}

/// Values of one series, by labels and name, both in order. Measurements come in the same order each time, so the place of
/// the next value is tried before it is searched.
#[derive(Debug)]
struct Tracks {
    all: Vec<Labelled>,
    next: usize,
    /// Time of the newest value, milliseconds since 1970.
    newest_ms: i64,
}

/// Values of the same labels, in order of their names.
#[derive(Debug)]
struct Labelled {
    labels: Arc<Labels>,
    values: Vec<Track>,
    next: usize,
}

impl Tracks {
    fn new() -> Self {
        Self { all: vec![], next: 0, newest_ms: i64::MIN }
    }

    /// The values of some labels; new ones are made.
    fn labelled(&mut self, labels: &Labels, once: &mut Once<Labels>) -> &mut Labelled {
        let place = [self.next, self.next + 1, 0]
            .into_iter()
            .find(|at| self.all.get(*at).is_some_and(|of| *of.labels == *labels));
        let place = place.unwrap_or_else(|| {
            let found = self.all.binary_search_by(|known| (*known.labels).cmp(labels));
            found.unwrap_or_else(|at| {
                let labels = once.get(labels, || Arc::new(labels.clone()));
                self.all.insert(at, Labelled { labels, values: vec![], next: 0 });
                at
            })
        });
        self.next = place;
        &mut self.all[place]
    }

    fn count(&self) -> usize {
        self.all.iter().map(|of| of.values.len()).sum()
    }

    fn rests(&self, done_ms: i64) -> bool {
        let mut tracks = self.all.iter().flat_map(|of| &of.values);
        self.newest_ms < done_ms - REST_MS && tracks.all(|track| track.minutes.is_empty())
    }
}

impl Labelled {
    /// The track of a value; a new one is made.
    fn of(&mut self, name: &str, once: &mut Once<str>) -> &mut Track {
        let place = Some(self.next).filter(|at| self.values.get(*at).is_some_and(|known| *known.name == *name));
        let place = place.unwrap_or_else(|| {
            let found = self.values.binary_search_by(|known| (*known.name).cmp(name));
            found.unwrap_or_else(|at| {
                self.values.insert(at, Track::new(once.get(name, || name.into())));
                at
            })
        });
        self.next = if place + 1 < self.values.len() { place + 1 } else { 0 };
        &mut self.values[place]
    }
}

/// What many series have alike, kept once.
#[derive(Debug)]
struct Once<T: ?Sized>(HashSet<Arc<T>>);

impl<T: ?Sized + Eq + Hash> Once<T> {
    fn get(&mut self, one: &T, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        if let Some(known) = self.0.get(one) {
            return known.clone();
        }
        let made = make();
        self.0.insert(made.clone());
        made
    }

    /// Forgets what nobody has any more.
    fn sweep(&mut self) {
        self.0.retain(|one| Arc::strong_count(one) > 1);
    }
}

/// Names in a row, and where the values of each are that come value by value.
#[derive(Debug)]
struct Order {
    names: Arc<[String]>,
    places: Vec<usize>,
}

impl Order {
    fn of(values: &[Arc<str>]) -> Self {
        let kept = values.iter().flat_map(|name| Step::KEPT.iter().map(move |what| format!("{name}{DIVIDER}{what}")));
        let mut all: Vec<(String, usize)> = kept.zip(0..).collect();
        all.sort();
        let places = all.iter().map(|(_, place)| *place).collect();
        Self { names: all.into_iter().map(|(name, _)| name).collect(), places }
    }
}

/// What is being rolled up.
#[derive(Debug)]
pub(crate) struct Rollup {
    /// By series.
    all: HashMap<Arc<str>, Tracks>,
    /// Series that were let go, with the time of their newest value, and whether the five minutes around that are done.
    resting: HashMap<Arc<str>, (i64, bool)>,
    names: Once<str>,
    labels: Once<Labels>,
    orders: HashMap<Vec<Arc<str>>, Order>,
    tracks_max: usize,
    progress: Progress,
    /// Beginning of the minute in which it was last looked for what is done.
    looked: Option<i64>,
}

impl Default for Rollup {
    fn default() -> Self {
        Self {
            all: HashMap::new(),
            resting: HashMap::new(),
            names: Once(HashSet::new()),
            labels: Once(HashSet::new()),
            orders: HashMap::new(),
            tracks_max: TRACKS_MAX,
            progress: Progress::default(),
            looked: None,
        }
    }
}

/// How far minutes are.
#[derive(Debug, Default)]
struct Progress {
    /// Sequence of the first message of each open minute.
    first: BTreeMap<i64, u64>,
    /// Minutes up to and with this beginning are done.
    closed: Option<i64>,
    /// Values that came after their minute was done.
    late: u64,
}

/// One series, for values that a message of this sequence stored.
pub(crate) struct Lane<'a> {
    sequence: u64,
    tracks: &'a mut Tracks,
    names: &'a mut Once<str>,
    labels: &'a mut Once<Labels>,
    progress: &'a mut Progress,
}

/// The minute in which a time lies, by its beginning.
fn minute_of(at_ms: i64) -> i64 {
    begin_of(at_ms, LENGTHS_MS[0])
}

/// The beginning of the step of a length in which a time lies.
fn begin_of(at_ms: i64, length_ms: i64) -> i64 {
    at_ms.div_euclid(length_ms) * length_ms
}

impl Lane<'_> {
    /// Takes in values of one time.
    pub(crate) fn push<'v>(&mut self, labels: &Labels, at_ms: i64, values: impl IntoIterator<Item = (&'v str, f64)>) {
        let minute = minute_of(at_ms);
        // What comes before the first minute seen cannot be whole.
        let closed = *self.progress.closed.get_or_insert(minute - LENGTHS_MS[0]);
        if minute <= closed {
            self.progress.late += values.into_iter().count() as u64;
            return;
        }
        self.progress.first.entry(minute).or_insert(self.sequence);
        self.tracks.newest_ms = self.tracks.newest_ms.max(at_ms);
        let labelled = self.tracks.labelled(labels, self.labels);
        for (name, value) in values {
            let track = labelled.of(name, self.names);
            let before = track.before.filter(|(ms, _)| *ms < at_ms);
            if track.before.is_none_or(|(ms, _)| ms < at_ms) {
                track.before = Some((at_ms, value));
            }
            add(&mut track.minutes, &Step::of(minute, before, at_ms, value));
        }
    }
}

impl Rollup {
    /// A series of which the message of this sequence stored values.
    pub(crate) fn lane(&mut self, sequence: u64, series: &str) -> Lane<'_> {
        let name = self.all.get_key_value(series).map_or_else(|| series.into(), |(name, _)| name.clone());
        let tracks = self.all.entry(name).or_insert_with(Tracks::new);
        Lane { sequence, tracks, names: &mut self.names, labels: &mut self.labels, progress: &mut self.progress }
    }

    /// Values that came after their minute was done, since the start.
    pub(crate) fn late(&self) -> u64 {
        self.progress.late
    }

    /// Are steps of a series open in memory?
    pub(crate) fn is_open(&self, series: &str) -> bool {
        self.all.contains_key(series)
    }

    /// Was any series let go while longer steps of it were open?
    pub(crate) fn any_rests(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Was it let go while longer steps of it were open? Then they are to be restored before it has values again.
    pub(crate) fn rests(&self, series: &str) -> bool {
        self.resting.contains_key(series)
    }

    /// Its open steps were restored, as far as minutes of them are kept.
    pub(crate) fn woke(&mut self, series: &str) {
        self.resting.remove(series);
    }

    /// All messages before this sequence are in steps that are done; `None` when nothing is open.
    pub(crate) fn open_from(&self) -> Option<u64> {
        self.progress.first.values().min().copied()
    }

    /// Takes up a longer step that was open before the last restart, or when its series was let go, from a minute of it:
    /// when that began, its labels and values.
    pub(crate) fn restore(
        &mut self,
        now: Timestamp,
        series: &str,
        (at, labels, values): (Timestamp, &Labels, &BTreeMap<String, f64>),
    ) {
        let done_ms = self.looked.unwrap_or(now.as_millis() - GRACE_MS);
        let Self { all, names, labels: known, .. } = self;
        let tracks = all.entry(series.into()).or_insert_with(Tracks::new);
        tracks.newest_ms = tracks.newest_ms.max(at.as_millis());
        for (number, length) in LENGTHS_MS[1..].iter().enumerate() {
            let begin = begin_of(at.as_millis(), *length);
            if begin + length <= done_ms {
                continue;
            }
            for name in values.keys().filter_map(|name| name.strip_suffix("|count")) {
                if let Some(step) = step_of(Timestamp::from_millis(begin), values, name) {
                    add(&mut tracks.labelled(labels, known).of(name, names).longer[number], &step);
                }
            }
        }
    }

    /// Is something done by now that was not when it was last looked?
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        self.looked.is_none_or(|looked| looked < minute_of(now.as_millis() - GRACE_MS))
    }

    /// What is done by now: the points of each length, in order of series, labels and time.
    pub(crate) fn close(&mut self, now: Timestamp) -> [Rolled; 3] {
        // What was done stays so, though a clock goes back.
        let done_ms = (now.as_millis() - GRACE_MS).max(self.looked.unwrap_or(i64::MIN));
        let progress = &mut self.progress;
        let over: Vec<i64> =
            progress.first.keys().copied().filter(|minute| minute + LENGTHS_MS[0] <= done_ms).collect();
        for minute in &over {
            progress.first.remove(minute);
            progress.closed = progress.closed.max(Some(*minute));
        }
        // No minute can be open once its end and the grace are past, whether it had values or not.
        let last = minute_of(done_ms) - LENGTHS_MS[0];
        if let Some(closed) = &mut progress.closed {
            *closed = last.max(*closed);
        }
        let mut all: [Rolled; 3] = Default::default();
        // Every step ends where a minute does.
        if self.looked.replace(minute_of(done_ms)) == Some(minute_of(done_ms)) && over.is_empty() {
            return all;
        }
        let idle_ms = done_ms - 2 * LENGTHS_MS[2];
        let orders = &mut self.orders;
        self.all.retain(|series, Tracks { all: tracks, .. }| {
            for Labelled { labels, values, .. } in tracks.iter_mut() {
                points((series, labels), values, done_ms, orders, &mut all);
                values.retain(|track| !track.is_idle(idle_ms));
            }
            tracks.retain(|of| !of.values.is_empty());
            !tracks.is_empty()
        });
        // Of one series they are in order already.
        all.iter_mut().for_each(|rolled| rolled.sort_by(|a, b| a.0.cmp(&b.0)));
        self.let_go(done_ms);
        all
    }

    /// Lets series go that rest, those that have rested longest first, if there are too many values.
    fn let_go(&mut self, done_ms: i64) {
        let mut count: usize = self.all.values().map(Tracks::count).sum();
        if count > self.tracks_max {
            let resting = self.all.iter().filter(|(_, tracks)| tracks.rests(done_ms));
            let mut resting: Vec<(i64, Arc<str>)> = resting.map(|(s, tracks)| (tracks.newest_ms, s.clone())).collect();
            resting.sort();
            for (newest_ms, series) in resting {
                if count <= self.tracks_max / 4 * 3 {
                    break;
                }
                count -= self.all.remove(&series).map_or(0, |tracks| tracks.count());
                let is_done = |length: i64| begin_of(newest_ms, length) + length <= done_ms;
                if !is_done(LENGTHS_MS[2]) {
                    self.resting.insert(series, (newest_ms, is_done(LENGTHS_MS[1])));
                }
            }
        }
        if self.orders.len() > ORDERS_MAX {
            self.orders.clear();
        }
        self.names.sweep();
        self.labels.sweep();
    }

    /// The longer steps of series that rest which are over since it was last asked.
    pub(crate) fn rested(&mut self) -> Vec<Rested> {
        let (mut over, Some(done_ms)) = (vec![], self.looked) else { return vec![] };
        let [_, five, hour] = LENGTHS_MS;
        self.resting.retain(|series, (newest_ms, five_done)| {
            let mut end = |length: usize| {
                let begin_ms = begin_of(*newest_ms, LENGTHS_MS[length]);
                over.push(Rested { series: series.clone(), length, begin_ms });
            };
            if !*five_done && begin_of(*newest_ms, five) + five <= done_ms {
                *five_done = true;
                end(1);
            }
            let is_over = begin_of(*newest_ms, hour) + hour <= done_ms;
            if is_over {
                end(2);
            }
            !is_over
        });
        over
    }
}

impl Rested {
    /// The rows of the step, out of the minutes of it that are kept: when each began, its labels and values.
    pub(crate) fn rows<'m>(
        &self,
        minutes: impl IntoIterator<Item = (Timestamp, &'m Labels, &'m BTreeMap<String, f64>)>,
    ) -> Rolled {
        let mut rollup = Rollup::default();
        for minute in minutes {
            rollup.restore(Timestamp::from_millis(self.begin_ms), &self.series, minute);
        }
        let end_ms = self.begin_ms + LENGTHS_MS[self.length];
        let mut rolled = rollup.close(Timestamp::from_millis(end_ms + GRACE_MS));
        std::mem::take(&mut rolled[self.length])
    }
}

/// Names of values, and what is known of each, value by value.
type Valued = (Vec<Arc<str>>, Vec<f64>);

/// Adds what is done of one series and labels, values of one beginning together.
fn points(
    (series, labels): (&Arc<str>, &Arc<Labels>),
    values: &mut [Track],
    done_ms: i64,
    orders: &mut HashMap<Vec<Arc<str>>, Order>,
    all: &mut [Rolled; 3],
) {
    let mut rows: [BTreeMap<i64, Valued>; 3] = Default::default();
    for track in values {
        for (rows, steps) in rows.iter_mut().zip(track.close(done_ms)) {
            for step in steps {
                let (names, kept) = rows.entry(step.begin_ms).or_default();
                names.push(track.name.clone());
                kept.extend(step.kept());
            }
        }
    }
    for (rolled, rows) in all.iter_mut().zip(rows) {
        rolled.extend(rows.into_iter().map(|(begin_ms, (names, kept))| {
            let order = orders.entry(names).or_insert_with_key(|names| Order::of(names));
            let values = order.places.iter().map(|place| kept[*place]).collect();
            let row = Row {
                at: Timestamp::from_millis(begin_ms),
                labels: labels.clone(),
                names: order.names.clone(),
                values,
            };
            (series.clone(), row)
        }));
    }
}

/// The step of a value in a row that begins at a time.
pub(crate) fn step_of(at: Timestamp, values: &BTreeMap<String, f64>, name: &str) -> Option<Step> {
    let value = |what: &str| values.get(&format!("{name}{DIVIDER}{what}")).copied();
    Step::rolled(at.as_millis(), value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(rollup: &mut Rollup, sequence: u64, second: i64, value: f64) {
        rollup.lane(sequence, "s").push(&Labels::new(), second * 1_000, [("m", value)]);
    }

    fn values(row: &Row) -> BTreeMap<String, f64> {
        assert!(row.names.is_sorted());
        row.names.iter().cloned().zip(row.values.iter().copied()).collect()
    }

    fn of(row: &Row) -> Step {
        step_of(row.at, &values(row), "m").unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(second * 1_000)
    }

    #[test]
    fn a_minute_is_said_once_when_it_and_its_grace_are_over() {
        let mut rollup = Rollup::default();
        (0..90).for_each(|second| push(&mut rollup, second as u64 + 1, second, second as f64));
        assert!(rollup.close(at(69)).iter().all(Vec::is_empty));
        let [minutes, ..] = rollup.close(at(70));
        assert_eq!(minutes.len(), 1);
        let step = of(&minutes[0].1);
        assert_eq!((step.count, step.min, step.max, step.first, step.last), (60.0, 0.0, 59.0, 0.0, 59.0));
        assert_eq!(rollup.open_from(), Some(61));
        push(&mut rollup, 91, 30, 7.0);
        assert_eq!(rollup.late(), 1);
        assert!(rollup.close(at(70)).iter().all(Vec::is_empty));
    }

    #[test]
    fn what_is_done_is_in_order_and_what_is_idle_is_forgotten() {
        let mut rollup = Rollup::default();
        for (series, label, name) in [("b", "y", "n"), ("b", "x", "m"), ("b", "x", "n"), ("a", "x", "n")] {
            let labels = Labels::from([("l".to_owned(), label.to_owned())]);
            for second in [70, 10] {
                rollup.lane(1, series).push(&labels, second * 1_000, [(name, 1.0)]);
            }
        }
        assert_eq!(rollup.late(), 4, "what came before the first minute");
        push(&mut rollup, 2, 130, 1.0);
        let [minutes, ..] = rollup.close(at(200));
        let found: Vec<_> = minutes.iter().map(|(s, row)| (&**s, row.labels.get("l").map(String::as_str))).collect();
        assert_eq!(found, [("a", Some("x")), ("b", Some("x")), ("b", Some("y")), ("s", None)]);
        assert_eq!(minutes[1].1.values.len(), 16, "both values of one time and labels are one row");
        let [minutes, five, hours] = rollup.close(at(3_700));
        assert_eq!((minutes.len(), five.len(), hours.len()), (0, 4, 4));
        assert!(rollup.close(at(20_000)).iter().all(Vec::is_empty) && rollup.all.is_empty());
    }

    #[test]
    fn longer_steps_are_made_of_minutes_and_survive_a_restart() {
        let (mut whole, mut before, mut after) = (Rollup::default(), Rollup::default(), Rollup::default());
        let mut kept: Rolled = vec![];
        let (mut expected, mut found) = (vec![], vec![]);
        for second in 0..700 {
            push(&mut whole, 1, second, second as f64);
            let half = if second < 240 { &mut before } else { &mut after };
            push(half, 1, second, second as f64);
            expected.extend(whole.close(at(second))[1].clone());
            if second < 240 {
                kept.extend(before.close(at(second))[0].clone());
            } else {
                if second == 240 {
                    // Reads the open minute again from the stream, and the minutes that are done from the store.
                    after = Rollup::default();
                    for (series, row) in &kept {
                        after.restore(at(second), series, (row.at, &row.labels, &values(row)));
                    }
                    (180..=240).for_each(|second| push(&mut after, 1, second, second as f64));
                }
                found.extend(after.close(at(second))[1].clone());
            }
        }
        assert_eq!(expected.len(), 2);
        let counts = |rolled: &Rolled| -> Vec<_> {
            rolled.iter().map(|(_, row)| of(row)).map(|s| (s.begin_ms, s.count, s.min, s.max)).collect()
        };
        assert_eq!(counts(&found), counts(&expected));
    }

    #[test]
    fn series_that_rest_are_let_go_and_their_longer_steps_said_all_the_same() {
        let (mut whole, mut small) = (Rollup::default(), Rollup { tracks_max: 40, ..Rollup::default() });
        let name = |number: i64| format!("instance-{number:04}");
        let (mut minutes, mut expected, mut found): (Rolled, [Rolled; 2], [Rolled; 2]) = Default::default();
        let (mut most, mut most_resting) = (0, 0);
        // One comes each five seconds and stays for fifteen; the third comes back half an hour later.
        for second in 0..4_000 {
            let mut names: Vec<String> = (0..3).map(|ago| name((second / 5) - ago)).collect();
            names.extend((second / 10 == 200).then(|| name(3)));
            for series in names {
                let value = [("m", second as f64), ("n", 1.0)];
                whole.lane(1, &series).push(&Labels::new(), second * 1_000, value);
                if small.rests(&series) {
                    let of = |(s, row): &&(Arc<str>, Row)| {
                        **s == *series && row.at.as_millis() >= begin_of(second * 1_000, LENGTHS_MS[2])
                    };
                    let kept: Vec<Row> = minutes.iter().filter(of).map(|(_, row)| row.clone()).collect();
                    kept.iter().for_each(|row| small.restore(at(second), &series, (row.at, &row.labels, &values(row))));
                    small.woke(&series);
                }
                small.lane(1, &series).push(&Labels::new(), second * 1_000, value);
            }
            let [_, five, hour] = whole.close(at(second));
            expected[0].extend(five);
            expected[1].extend(hour);
            let [more, five, hour] = small.close(at(second));
            minutes.extend(more);
            found[0].extend(five);
            found[1].extend(hour);
            for rested in small.rested() {
                let end_ms = rested.begin_ms + LENGTHS_MS[rested.length];
                let of = |(s, row): &&(Arc<str>, Row)| {
                    *s == rested.series && (rested.begin_ms..end_ms).contains(&row.at.as_millis())
                };
                let kept: Vec<(Row, _)> =
                    minutes.iter().filter(of).map(|(_, row)| (row.clone(), values(row))).collect();
                let rows = rested.rows(kept.iter().map(|(row, values)| (row.at, &*row.labels, values)));
                found[rested.length - 1].extend(rows);
            }
            (most, most_resting) = (most.max(small.all.len()), most_resting.max(small.resting.len()));
        }
        assert!(most < 80 && most_resting > 500, "{most} in memory, {most_resting} rest");
        // A counter's rise across the rest is not known: the value before it was forgotten with the series.
        let said = |rolled: &Rolled| {
            let of = |(series, row): &(Arc<str>, Row)| {
                let step = of(row);
                (row.at, series.to_string(), [step.count, step.sum, step.min, step.max, step.first, step.last])
            };
            let mut all: Vec<_> = rolled.iter().map(of).collect();
            all.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
            all
        };
        for (found, expected) in found.iter().zip(&expected) {
            let (found, expected) = (said(found), said(expected));
            assert!(found.len() > 700 && found.len() == expected.len(), "{} of {}", found.len(), expected.len());
            let other = found.iter().zip(&expected).find(|(found, expected)| found != expected);
            assert!(other.is_none(), "{other:?}");
        }
    }
}
