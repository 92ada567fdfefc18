//! Steps of a minute, five minutes and an hour, rolled up from what was stored, so that a question about days reads
//! hundreds of points and not hundreds of thousands.

use std::collections::{BTreeMap, HashMap};

use mesh_proto::Timestamp;

use super::steps::Step;

/// Lengths of rolled-up steps, milliseconds.
pub(crate) const LENGTHS_MS: [i64; 3] = [60_000, 300_000, 3_600_000];
/// How long after its end a minute waits for late values, milliseconds.
const GRACE_MS: i64 = 10_000;
/// Divides the name of a value and what is known of it.
const DIVIDER: char = '|';

type Labels = BTreeMap<String, String>;

/// What is known of the steps of one beginning, series and labels, by name of the value and what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) at: Timestamp,
    pub(crate) labels: Labels,
    pub(crate) values: BTreeMap<String, f64>,
}

/// Rolled-up rows of one length, with their series.
pub(crate) type Rolled = Vec<(String, Row)>;

/// Steps of one value that are open.
#[derive(Debug, Default)]
struct Track {
    /// Newest value and its time, for rises across minutes.
    before: Option<(i64, f64)>,
    minutes: Vec<Step>,
    /// Of five minutes, and of an hour.
    longer: [Vec<Step>; 2],
}

impl Track {
    /// The steps of each length that are done.
    fn close(&mut self, done_ms: i64) -> [Vec<Step>; 3] {
        let take = |open: &mut Vec<Step>, length: i64| {
            open.extract_if(.., |step| step.begin_ms + length <= done_ms).collect::<Vec<Step>>()
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

/// Adds a step to the open one of its beginning.
fn add(open: &mut Vec<Step>, step: &Step) {
    match open.iter_mut().rfind(|known| known.begin_ms == step.begin_ms) {
        Some(known) => known.add(step),
        None => open.push(step.clone()),
    }
}

/// Values of one series, by labels and name, both in order. Measurements come in the same order each time, so the place of
/// the next value is tried before it is searched.
#[derive(Debug, Default)]
struct Tracks {
    all: Vec<Labelled>,
    next: usize,
}

/// Values of the same labels, in order of their names.
#[derive(Debug)]
struct Labelled {
    labels: Labels,
    values: Vec<(String, Track)>,
    next: usize,
}

impl Tracks {
    /// The values of some labels; new ones are made.
    fn labelled(&mut self, labels: &Labels) -> &mut Labelled {
        let place = [self.next, self.next + 1, 0]
            .into_iter()
            .find(|at| self.all.get(*at).is_some_and(|of| of.labels == *labels));
        let place = place.unwrap_or_else(|| {
            let found = self.all.binary_search_by(|known| known.labels.cmp(labels));
            found.unwrap_or_else(|at| {
                self.all.insert(at, Labelled { labels: labels.clone(), values: vec![], next: 0 });
                at
            })
        });
        self.next = place;
        &mut self.all[place]
    }
}

impl Labelled {
    /// The track of a value; a new one is made.
    fn of(&mut self, name: &str) -> &mut Track {
        let place = Some(self.next).filter(|at| self.values.get(*at).is_some_and(|(known, _)| known == name));
        let place = place.unwrap_or_else(|| {
            let found = self.values.binary_search_by(|(known, _)| known.as_str().cmp(name));
            found.unwrap_or_else(|at| {
                self.values.insert(at, (name.to_owned(), Track::default()));
                at
            })
        });
        self.next = if place + 1 < self.values.len() { place + 1 } else { 0 };
        &mut self.values[place].1
    }
}

/// What is being rolled up.
#[derive(Debug, Default)]
pub(crate) struct Rollup {
    /// By series.
    all: HashMap<String, Tracks>,
    progress: Progress,
    /// Beginning of the minute in which it was last looked for what is done.
    looked: Option<i64>,
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
    progress: &'a mut Progress,
}

/// The minute in which a time lies, by its beginning.
fn minute_of(at_ms: i64) -> i64 {
    at_ms.div_euclid(LENGTHS_MS[0]) * LENGTHS_MS[0]
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
        let labelled = self.tracks.labelled(labels);
        for (name, value) in values {
            let track = labelled.of(name);
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
    pub(crate) fn lane(&mut self, sequence: u64, series: impl Into<String>) -> Lane<'_> {
        let tracks = self.all.entry(series.into()).or_default();
        Lane { sequence, tracks, progress: &mut self.progress }
    }

    /// Values that came after their minute was done, since the start.
    pub(crate) fn late(&self) -> u64 {
        self.progress.late
    }

    /// All messages before this sequence are in steps that are done; `None` when nothing is open.
    pub(crate) fn open_from(&self) -> Option<u64> {
        self.progress.first.values().min().copied()
    }

    /// Takes up a longer step that was open before the last restart, from a minute of it: when that began, its
    /// labels and values.
    pub(crate) fn restore(
        &mut self,
        now: Timestamp,
        series: &str,
        (at, labels, values): (Timestamp, &Labels, &BTreeMap<String, f64>),
    ) {
        let tracks = self.all.entry(series.to_owned()).or_default();
        for (number, length) in LENGTHS_MS[1..].iter().enumerate() {
            let begin = at.as_millis().div_euclid(*length) * length;
            if begin + length <= now.as_millis() - GRACE_MS {
                continue;
            }
            for name in values.keys().filter_map(|name| name.strip_suffix("|count")) {
                if let Some(step) = step_of(Timestamp::from_millis(begin), values, name) {
                    add(&mut tracks.labelled(labels).of(name).longer[number], &step);
                }
            }
        }
    }

    /// What is done by now: the points of each length, in order of series, labels and time.
    pub(crate) fn close(&mut self, now: Timestamp) -> [Rolled; 3] {
        let done_ms = now.as_millis() - GRACE_MS;
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
        self.all.retain(|series, Tracks { all: tracks, .. }| {
            for Labelled { labels, values, .. } in tracks.iter_mut() {
                points(series, labels, values, done_ms, &mut all);
                values.retain(|(_, track)| !track.is_idle(idle_ms));
            }
            tracks.retain(|of| !of.values.is_empty());
            !tracks.is_empty()
        });
        // Of one series they are in order already.
        all.iter_mut().for_each(|rolled| rolled.sort_by(|a, b| a.0.cmp(&b.0)));
        all
    }
}

/// Adds what is done of one series and labels, values of one beginning together.
fn points(series: &str, labels: &Labels, values: &mut [(String, Track)], done_ms: i64, all: &mut [Rolled; 3]) {
    let mut rows: [BTreeMap<i64, BTreeMap<String, f64>>; 3] = Default::default();
    for (name, track) in values {
        for (rows, steps) in rows.iter_mut().zip(track.close(done_ms)) {
            for step in steps {
                let kept = step.kept().map(|(what, value)| (format!("{name}{DIVIDER}{what}"), value));
                rows.entry(step.begin_ms).or_default().extend(kept);
            }
        }
    }
    for (rolled, rows) in all.iter_mut().zip(rows) {
        rolled.extend(rows.into_iter().map(|(begin_ms, values)| {
            let row = Row { at: Timestamp::from_millis(begin_ms), labels: labels.clone(), values };
            (series.to_owned(), row)
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

    fn of(row: &Row) -> Step {
        step_of(row.at, &row.values, "m").unwrap()
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
        let found: Vec<_> =
            minutes.iter().map(|(s, row)| (s.as_str(), row.labels.get("l").map(String::as_str))).collect();
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
                        after.restore(at(second), series, (row.at, &row.labels, &row.values));
                    }
                    (180..=240).for_each(|second| push(&mut after, 1, second, second as f64));
                }
                found.extend(after.close(at(second))[1].clone());
            }
        }
        assert_eq!(expected.len(), 2);
        let values = |rolled: &Rolled| -> Vec<_> {
            rolled.iter().map(|(_, row)| of(row)).map(|s| (s.begin_ms, s.count, s.min, s.max)).collect()
        };
        assert_eq!(values(&found), values(&expected));
    }
}
