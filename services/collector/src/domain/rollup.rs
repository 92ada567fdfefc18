//! Steps of a minute, five minutes and an hour, rolled up from what was stored, so that a question about days reads
//! hundreds of points and not hundreds of thousands.

use std::collections::BTreeMap;

use mesh_proto::Timestamp;

use super::steps::Step;

/// Lengths of rolled-up steps, milliseconds.
pub(crate) const LENGTHS_MS: [i64; 3] = [60_000, 300_000, 3_600_000];
/// How long after its end a minute waits for late values, milliseconds.
const GRACE_MS: i64 = 10_000;
/// Divides the name of a value and what is known of it.
const DIVIDER: char = '|';

type Labels = BTreeMap<String, String>;
/// Series in the store, labels, name of the value.
type Key = (String, Labels, String);

/// What is known of the steps of one beginning, series and labels, by name of the value and what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) at: Timestamp,
    pub(crate) labels: Labels,
    pub(crate) values: BTreeMap<String, f64>,
}

/// Rolled-up rows of one length, with their series.
pub(crate) type Rolled = Vec<(String, Row)>;

/// What is being rolled up.
#[derive(Debug, Default)]
pub(crate) struct Rollup {
    /// Of the minutes that are open, by beginning.
    minutes: BTreeMap<i64, BTreeMap<Key, Step>>,
    /// Newest value of each series, for rises across minutes.
    before: BTreeMap<Key, (i64, f64)>,
    /// Longer steps, by length and beginning.
    longer: BTreeMap<(i64, i64), BTreeMap<Key, Step>>,
    /// Sequence of the first message of each open minute.
    first: BTreeMap<i64, u64>,
    /// Minutes up to and with this beginning are done.
    closed: Option<i64>,
    /// Values that came after their minute was done.
    late: u64,
}

/// The minute in which a time lies, by its beginning.
fn minute_of(at_ms: i64) -> i64 {
    at_ms.div_euclid(LENGTHS_MS[0]) * LENGTHS_MS[0]
}

impl Rollup {
    /// Takes in a value that the message of this sequence stored.
    pub(crate) fn push(&mut self, sequence: u64, series: &str, labels: &Labels, name: &str, at_ms: i64, value: f64) {
        let minute = minute_of(at_ms);
        // What comes before the first minute seen cannot be whole.
        let closed = *self.closed.get_or_insert(minute - LENGTHS_MS[0]);
        if minute <= closed {
            self.late += 1;
            return;
        }
        self.first.entry(minute).or_insert(sequence);
        let key = (series.to_owned(), labels.clone(), name.to_owned());
        let before = self.before.get(&key).copied().filter(|(ms, _)| *ms < at_ms);
        let one = Step::of(minute, before, at_ms, value);
        if self.before.get(&key).is_none_or(|(ms, _)| *ms < at_ms) {
            self.before.insert(key.clone(), (at_ms, value));
        }
        self.minutes.entry(minute).or_default().entry(key).and_modify(|step| step.add(&one)).or_insert(one);
    }

    /// Values that came after their minute was done, since the start.
    pub(crate) fn late(&self) -> u64 {
        self.late
    }

    /// All messages before this sequence are in steps that are done; `None` when nothing is open.
    pub(crate) fn open_from(&self) -> Option<u64> {
        self.first.values().min().copied()
    }

    /// Takes up a longer step that was open before the last restart, from a minute of it: when that began, its
    /// labels and values.
    pub(crate) fn restore(
        &mut self,
        now: Timestamp,
        series: &str,
        (at, labels, values): (Timestamp, &Labels, &BTreeMap<String, f64>),
    ) {
        for length in &LENGTHS_MS[1..] {
            let at_ms = at.as_millis();
            let begin = at_ms.div_euclid(*length) * length;
            if begin + length <= now.as_millis() - GRACE_MS {
                continue;
            }
            for (key, step) in read(series, labels, values, begin) {
                let open = self.longer.entry((*length, begin)).or_default();
                open.entry(key).and_modify(|known| known.add(&step)).or_insert(step);
            }
        }
    }

    /// What is done by now: the points of each length.
    pub(crate) fn close(&mut self, now: Timestamp) -> [Rolled; 3] {
        let done_ms = now.as_millis() - GRACE_MS;
        let mut all: [Rolled; 3] = Default::default();
        while let Some(minute) = self.minutes.first_key_value().map(|(minute, _)| *minute) {
            if minute + LENGTHS_MS[0] > done_ms {
                break;
            }
            let Some(steps) = self.minutes.remove(&minute) else { break };
            self.first.remove(&minute);
            self.closed = self.closed.max(Some(minute));
            for length in &LENGTHS_MS[1..] {
                let begin = minute.div_euclid(*length) * length;
                let open = self.longer.entry((*length, begin)).or_default();
                for (key, step) in &steps {
                    match open.get_mut(key) {
                        Some(known) => known.add(step),
                        None => drop(open.insert(key.clone(), Step { begin_ms: begin, ..step.clone() })),
                    }
                }
            }
            all[0].extend(points(steps));
        }
        // No minute can be open once its end and the grace are past, whether it had values or not.
        let last = minute_of(done_ms) - LENGTHS_MS[0];
        if let Some(closed) = &mut self.closed {
            *closed = last.max(*closed);
        }
        for (number, length) in LENGTHS_MS.iter().enumerate().skip(1) {
            let over = self.longer.extract_if(.., |(of, begin), _| of == length && begin + length <= done_ms);
            let over: Vec<_> = over.collect();
            all[number].extend(over.into_iter().flat_map(|(_, steps)| points(steps)));
        }
        let idle = done_ms - 2 * LENGTHS_MS[2];
        if !all[0].is_empty() {
            self.before.retain(|_, (at_ms, _)| *at_ms >= idle);
        }
        all
    }
}

/// Steps of one beginning as rows: those of one series and labels together.
fn points(steps: BTreeMap<Key, Step>) -> Rolled {
    let mut rolled: Rolled = vec![];
    for ((series, labels, name), step) in steps {
        let values = step.kept().map(|(what, value)| (format!("{name}{DIVIDER}{what}"), value));
        match rolled.last_mut() {
            Some((last, row)) if *last == series && row.labels == labels => row.values.extend(values),
            _ => {
                let at = Timestamp::from_millis(step.begin_ms);
                rolled.push((series, Row { at, labels, values: values.into() }));
            }
        }
    }
    rolled
}

/// The steps in the values of a row.
fn read(series: &str, labels: &Labels, values: &BTreeMap<String, f64>, begin: i64) -> Vec<(Key, Step)> {
    let names = values.keys().filter_map(|name| name.strip_suffix("|count"));
    let step = |name: &str| step_of(Timestamp::from_millis(begin), values, name);
    names.filter_map(|name| Some(((series.to_owned(), labels.clone(), name.to_owned()), step(name)?))).collect()
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
        rollup.push(sequence, "s", &Labels::new(), "m", second * 1_000, value);
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
