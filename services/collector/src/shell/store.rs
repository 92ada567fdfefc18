//! Keeps samples and readings in the series stores, read from `TELEMETRY`, and rolls them up: stores that were away, or are
//! new, catch up by themselves.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use mesh_core::Stored;
use mesh_kit::{Keeping, Shelf, leave_out};
use mesh_proto::{
    DecodeError, Event as _, Timestamp,
    telemetry::{InstanceSample, Measured, Packed, Readings},
};
use mesh_store::{Applied, Error, Point, Points, Range, Series};
use parking_lot::{Mutex, RwLock};

use super::sharing::Others;
use crate::domain::{
    catalog::{Catalog, series_of},
    recent::{Held, Recent},
    rollup::{self, LENGTHS_MS, Rested, Rollup},
};

/// How often what is over is removed from memory, and what is rolled up written, milliseconds.
const SWEEP_MS: i64 = 10_000;
/// How often values are removed from a database that are set to be kept no longer, milliseconds.
const RETAIN_REMOTE_MS: i64 = 120_000;
/// Series that are written together, and that are read at once, when what is rolled up is over.
const WRITTEN_MAX: usize = 500;
const READ_AT_ONCE: usize = 8;
/// Points of one series that are read to take up longer steps after a restart: an hour of minutes, with several labels.
const RESTORE_MAX: usize = 10_000;

/// Where measurements rest, from raw to rolled up: a minute, five minutes, an hour.
#[derive(Clone)]
pub(crate) struct Stores {
    pub(crate) raw: Arc<dyn Series>,
    pub(crate) rolled: [Arc<dyn Series>; 3],
    /// How long each is kept, milliseconds; raw first.
    pub(crate) keep_ms: [i64; 4],
    pub(crate) catalog: Arc<RwLock<Catalog>>,
    /// What was published a moment ago: it is not decoded again.
    pub(crate) recent: Arc<Recent>,
    pub(crate) others: Others,
}

impl Stores {
    /// Does another collector write to the database? Then this one goes on from where that is, once it no longer does.
    fn is_anothers(&self) -> bool {
        self.raw.is_remote() && self.others.write()
    }

    /// What is kept of `TELEMETRY`, under a name.
    pub(crate) fn keeping(&self, name: &'static str) -> Keeping {
        Keeping {
            name,
            stream: Packed::STREAM,
            window_ms: self.keep_ms[0],
            newest_max: u64::MAX,
            // A database takes few large writes better than many small ones.
            gather_ms: if self.raw.is_remote() { 100 } else { 0 },
            sweep_ms: SWEEP_MS,
        }
    }
}

/// When old points were removed last. To remove is cheap in memory, and not in a database.
#[derive(Default)]
struct Removal(Mutex<Timestamp>);

impl Removal {
    async fn run(&self, store: &dyn Series, keep_ms: i64, now: Timestamp) -> Result<(), Error> {
        let every_ms = if store.is_remote() { (keep_ms / 20).max(60_000) } else { SWEEP_MS };
        let is_any_older = keep_ms < now.millis_since(Timestamp::default());
        if !is_any_older || now.millis_since(*self.0.lock()) < every_ms {
            return Ok(());
        }
        store.forget(now.plus_millis(-keep_ms)).await?;
        *self.0.lock() = now;
        Ok(())
    }
}

/// The series whose values are kept for less time than others, each with its milliseconds.
pub(crate) type Retained = Arc<dyn Fn() -> Vec<(String, i64)> + Send + Sync>;

/// Removes from stores what series are set to be kept no longer. A database takes each removal as work for a whole table.
struct Retention {
    retained: Retained,
    last: Mutex<Timestamp>,
}

impl Retention {
    fn new(retained: Retained) -> Self {
        Self { retained, last: Mutex::default() }
    }

    async fn run(&self, stores: &[(&dyn Series, i64)], now: Timestamp) -> Result<(), Error> {
        let is_remote = stores.iter().any(|(store, _)| store.is_remote());
        let every_ms = if is_remote { RETAIN_REMOTE_MS } else { SWEEP_MS };
        if now.millis_since(*self.last.lock()) < every_ms {
            return Ok(());
        }
        for (series, retain_ms) in (self.retained)() {
            for (store, _) in stores.iter().filter(|(_, keep_ms)| retain_ms < *keep_ms) {
                store.forget_series(&series, now.plus_millis(-retain_ms)).await?;
            }
        }
        *self.last.lock() = now;
        Ok(())
    }
}

/// The samples and readings as they came, each entity a series, and what there is of them.
pub(crate) struct Raw {
    stores: Stores,
    removal: Removal,
    retention: Retention,
    /// The last message seen while another wrote.
    seen: AtomicU64,
    /// The position that the store was brought to, as far as this process knows.
    advanced: AtomicU64,
}

impl Raw {
    pub(crate) fn new(stores: Stores, retained: Retained) -> Self {
        let retention = Retention::new(retained);
        Self { stores, removal: Removal::default(), retention, seen: AtomicU64::new(0), advanced: AtomicU64::new(0) }
    }
}

impl Shelf for Raw {
    async fn apply(&self, messages: &[Arc<Stored>]) -> Result<(), Error> {
        let Some(newest) = messages.last() else { return Ok(()) };
        let list = |held: &Held, at: Timestamp| list(held, &mut self.stores.catalog.write(), at);
        let points = messages.iter().flat_map(|stored| points(stored, &self.stores.recent, list)).collect();
        // Once the other no longer writes, `position` says so, and what it left is read again from there.
        if self.stores.is_anothers() || self.seen.load(Relaxed) > 0 {
            self.seen.store(newest.sequence, Relaxed);
            return Ok(());
        }
        write(&*self.stores.raw, newest.sequence, points).await?;
        let from = self.advanced.load(Relaxed);
        self.stores.raw.advance(from, &Applied::new(&newest.stream, newest.sequence)).await?;
        self.advanced.store(newest.sequence, Relaxed);
        Ok(())
    }

    async fn position(&self) -> Result<u64, Error> {
        let seen = self.seen.load(Relaxed);
        if seen > 0 && self.stores.is_anothers() {
            return Ok(seen);
        }
        self.seen.store(0, Relaxed);
        let position = self.stores.raw.position(Packed::STREAM).await?;
        self.advanced.store(position, Relaxed);
        Ok(position)
    }

    async fn sweep(&self, now: Timestamp) -> Result<(), Error> {
        let longest = self.stores.keep_ms.into_iter().max().unwrap_or_default();
        self.stores.catalog.write().forget(now.plus_millis(-longest));
        if self.stores.is_anothers() {
            return Ok(());
        }
        self.removal.run(&*self.stores.raw, self.stores.keep_ms[0], now).await?;
        self.retention.run(&[(&*self.stores.raw, self.stores.keep_ms[0])], now).await
    }
}

/// The same, rolled up.
pub(crate) struct Rolled {
    stores: Stores,
    removals: [Removal; 3],
    retention: Retention,
    /// Values that came too late to be rolled up.
    late: Arc<AtomicU64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rollup: Rollup,
    /// Had the stores been written before this process began? Then the longer steps of each series are taken up.
    restores: bool,
    /// What is done and not written.
    pending: Pending,
    /// The last message that was taken in, and the last that the stores' position covers: what is open comes after it.
    reached: u64,
    durable: u64,
    /// The last message seen while another wrote.
    seen: u64,
}

/// What is done and not written.
#[derive(Default)]
struct Pending {
    rolled: [rollup::Rolled; 3],
    /// What is still to be made of minutes in the store.
    rested: Vec<Rested>,
}

impl Pending {
    fn add(&mut self, more: Self) {
        self.rolled.iter_mut().zip(more.rolled).for_each(|(all, more)| all.extend(more));
        self.rested.extend(more.rested);
    }
}

impl Rolled {
    pub(crate) fn new(stores: Stores, retained: Retained, late: Arc<AtomicU64>) -> Self {
        let retention = Retention::new(retained);
        Self { stores, removals: Default::default(), retention, late, state: Mutex::default() }
    }

    /// Takes up the longer steps of series that were open when an earlier process ended, or when they were let go.
    async fn take_up(&self, held: &[(u64, Held)], now: Timestamp) -> Result<(), Error> {
        let new: BTreeSet<String> = {
            let State { rollup, restores, .. } = &*self.state.lock();
            if !restores && !rollup.any_rests() {
                return Ok(());
            }
            let is_new = |name: &String| !rollup.is_open(name) && (*restores || rollup.rests(name));
            held.iter().flat_map(|(_, held)| series(held)).filter(is_new).collect()
        };
        let hour = now.as_millis().div_euclid(LENGTHS_MS[2]) * LENGTHS_MS[2];
        for series in new {
            let points = self.minutes(&series, hour, now.as_millis()).await?;
            let rollup = &mut self.state.lock().rollup;
            for point in points {
                rollup.restore(now, &series, (point.at, &point.labels, &point.values));
            }
            rollup.woke(&series);
        }
        Ok(())
    }

    /// The minutes of a series that are kept, from one time to another, milliseconds.
    async fn minutes(&self, series: &str, from: i64, to: i64) -> Result<Vec<Point>, Error> {
        let (from, to) = (Timestamp::from_millis(from), Timestamp::from_millis(to));
        self.stores.rolled[0].range(series, Range { from, to, limit: RESTORE_MAX }).await
    }

    /// Writes what is done by now. Fails only if trying again may help; then it is written the next time.
    async fn flush(&self, now: Timestamp) -> Result<(), Error> {
        let (pending, reached, through, durable) = {
            let mut state = self.state.lock();
            let done = Pending { rolled: state.rollup.close(now), rested: state.rollup.rested() };
            state.pending.add(done);
            let through = state.rollup.open_from().map_or(state.reached, |first| first - 1);
            (std::mem::take(&mut state.pending), state.reached, through, state.durable)
        };
        let is_any = pending.rolled.iter().any(|done| !done.is_empty());
        let written = async {
            self.write(&pending, reached).await?;
            if is_any {
                // What is open is read again by the next process.
                let applied = Applied::new(Packed::STREAM, through);
                self.stores.rolled[0].advance(durable, &applied).await?;
                self.state.lock().durable = through;
            }
            Ok(())
        };
        let written = written.await;
        if written.is_err() {
            // Nothing was added meanwhile: this is what adds.
            self.state.lock().pending = pending;
        }
        written
    }

    async fn write(&self, pending: &Pending, reached: u64) -> Result<(), Error> {
        for (store, done) in self.stores.rolled.iter().zip(&pending.rolled) {
            write_rows(&**store, reached, done).await?;
        }
        // After the minutes that they are made of.
        let read = |rested: &Rested| {
            let rested = rested.clone();
            async move {
                let end_ms = rested.begin_ms + LENGTHS_MS[rested.length];
                let minutes = self.minutes(&rested.series, rested.begin_ms, end_ms - 1).await?;
                let rows = rested.rows(minutes.iter().map(|point| (point.at, &point.labels, &point.values)));
                Ok::<_, Error>((rested.length, rows))
            }
        };
        for some in pending.rested.chunks(WRITTEN_MAX) {
            let mut rolled: [rollup::Rolled; 3] = Default::default();
            let mut found = stream::iter(some.iter().map(read)).buffered(READ_AT_ONCE);
            while let Some((length, rows)) = found.try_next().await? {
                rolled[length].extend(rows);
            }
            for (store, rows) in self.stores.rolled.iter().zip(&rolled) {
                write_rows(&**store, reached, rows).await?;
            }
        }
        Ok(())
    }
}

impl Shelf for Rolled {
    async fn apply(&self, messages: &[Arc<Stored>]) -> Result<(), Error> {
        let Some(newest) = messages.last() else { return Ok(()) };
        {
            let mut state = self.state.lock();
            if self.stores.is_anothers() || state.seen > 0 {
                *state = State { seen: newest.sequence, ..State::default() };
                return Ok(());
            }
        }
        // By the time of the stream: one that is read late is rolled up as it would have been.
        let begun = messages.first().map_or(newest.stored, |first| first.stored);
        if self.state.lock().rollup.is_due(begun) {
            self.flush(begun).await?;
        }
        let all: Vec<(u64, Held)> = messages
            .iter()
            .filter_map(|stored| Some((stored.sequence, readable(stored, &self.stores.recent)?)))
            .collect();
        self.take_up(&all, newest.stored).await?;
        let mut state = self.state.lock();
        for (sequence, held) in &all {
            roll_up(held, *sequence, &mut state.rollup);
        }
        state.reached = newest.sequence;
        self.late.store(state.rollup.late(), Relaxed);
        Ok(())
    }

    async fn position(&self) -> Result<u64, Error> {
        let seen = self.state.lock().seen;
        if seen > 0 && self.stores.is_anothers() {
            return Ok(seen);
        }
        let position = self.stores.rolled[0].position(Packed::STREAM).await?;
        let mut state = self.state.lock();
        state.seen = 0;
        if state.reached > 0 && position >= state.durable {
            return Ok(state.reached);
        }
        // The first time, or the store lost what it had: then everything is rolled up from there.
        *state = State { restores: position > 0, durable: position, ..State::default() };
        Ok(position)
    }

    async fn sweep(&self, now: Timestamp) -> Result<(), Error> {
        if self.stores.is_anothers() {
            return Ok(());
        }
        self.flush(now).await?;
        let rolled = self.stores.rolled.iter().zip(&self.removals).zip(&self.stores.keep_ms[1..]);
        for ((store, removal), keep_ms) in rolled {
            removal.run(&**store, *keep_ms, now).await?;
        }
        let [minutes, five, hours] = &self.stores.rolled;
        let [_, of_minutes, of_five, of_hours] = self.stores.keep_ms;
        self.retention.run(&[(&**minutes, of_minutes), (&**five, of_five), (&**hours, of_hours)], now).await
    }
}

/// Writes points; what the store will never take is left out, with a warning. Fails only if trying again may help.
async fn write(store: &dyn Series, sequence: u64, points: Vec<(Applied, Points)>) -> Result<(), Error> {
    if points.is_empty() {
        return Ok(());
    }
    leave_out(store.write(points).await, "samples", sequence)
}

/// Writes rolled-up rows, those of one series together.
async fn write_rows(store: &dyn Series, sequence: u64, rows: &rollup::Rolled) -> Result<(), Error> {
    let applied = Applied::new(Packed::STREAM, sequence);
    let mut all = rows.chunk_by(|a, b| a.0 == b.0).peekable();
    while all.peek().is_some() {
        let points = all.by_ref().take(WRITTEN_MAX).map(|rows| {
            let mut points = Points { series: rows[0].0.to_string(), columns: vec![] };
            for (_, rollup::Row { at, labels, names, values }) in rows {
                points.push(labels, names, at.as_nanos(), values.iter().copied());
            }
            (applied.clone(), points)
        });
        write(store, sequence, points.collect()).await?;
    }
    Ok(())
}

fn held(stored: &Stored) -> Result<Held, DecodeError> {
    if let Some(pack) = stored.event::<Readings>()? {
        // One that does not fit together was not stored by a collector.
        return Ok(if pack.fits() { Held::Readings(Arc::new(pack)) } else { Held::samples(vec![]) });
    }
    if let Some(pack) = stored.event::<Packed>()? {
        return Ok(Held::samples(pack.samples));
    }
    // Those of an earlier release were packed by instance.
    Ok(Held::samples(stored.event::<Measured>()?.map_or(vec![], |measured| measured.samples)))
}

/// What a message holds, if it can be read; if not, with a warning.
fn readable(stored: &Stored, recent: &Recent) -> Option<Held> {
    if let Some(held) = recent.take(&stored.body) {
        return Some(held);
    }
    match held(stored) {
        Ok(held) => Some(held),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(sequence = stored.sequence, error, "telemetry undecodable");
            None
        }
    }
}

/// Lists what a message is of.
fn list(held: &Held, catalog: &mut Catalog, at: Timestamp) {
    match held {
        Held::Readings(pack) => catalog.readings(pack, at),
        Held::Samples(samples) => samples.iter().for_each(|sample| catalog.sample(sample, at)),
    }
}

/// Names of the series that a message adds to.
fn series(held: &Held) -> Vec<String> {
    match held {
        Held::Readings(pack) => pack.entities.iter().map(series_of).collect(),
        Held::Samples(samples) => samples.iter().map(|sample| sample.instance_id.clone()).collect(),
    }
}

/// Adds what a message holds to what is rolled up.
fn roll_up(held: &Held, sequence: u64, rollup: &mut Rollup) {
    match held {
        Held::Readings(pack) => roll_up_readings(pack, sequence, rollup),
        Held::Samples(samples) => {
            let mut alike = Alike::default();
            for sample in samples.iter() {
                let at_ms = sample.at.unwrap_or_default().as_millis();
                rollup.lane(sequence, &sample.instance_id).push(alike.of(sample), at_ms, values(sample));
            }
        }
    }
}

/// The labels of the last sample: most are of one cluster and owner.
#[derive(Default)]
struct Alike(Arc<BTreeMap<String, String>>);

impl Alike {
    fn of(&mut self, sample: &InstanceSample) -> &Arc<BTreeMap<String, String>> {
        let is = |name: &str, value: &String| self.0.get(name) == Some(value);
        if !is(CLUSTER_ID, &sample.cluster_id) || !is(OWNER, &sample.owner) {
            let labels = [(CLUSTER_ID, &sample.cluster_id), (OWNER, &sample.owner)];
            self.0 = Arc::new(labels.map(|(name, value)| (name.to_owned(), value.clone())).into());
        }
        &self.0
    }
}

fn roll_up_readings(pack: &Readings, sequence: u64, rollup: &mut Rollup) {
    let begin_ms = pack.at.unwrap_or_default().as_millis();
    // The values of a metric are taken in in the order of their times, which is mostly theirs in the pack.
    let mut newest = vec![i32::MIN; pack.metrics.len()];
    let in_order = pack.metric.iter().zip(&pack.after_ms).all(|(metric, after_ms)| {
        let before = std::mem::replace(&mut newest[*metric as usize], *after_ms);
        before <= *after_ms
    });
    let mut order: Vec<usize> = (0..pack.values.len()).collect();
    if !in_order {
        order.sort_by_key(|row| pack.after_ms[*row]);
    }
    let series: Vec<String> = pack.entities.iter().map(series_of).collect();
    let metric = |row: usize| &pack.metrics[pack.metric[row] as usize];
    for rows in order.chunk_by(|a, b| metric(*a).entity == metric(*b).entity) {
        let Some(first) = rows.first() else { continue };
        let mut lane = rollup.lane(sequence, &series[metric(*first).entity as usize]);
        for row in rows {
            let metric = metric(*row);
            let at_ms = begin_ms + i64::from(pack.after_ms[*row]);
            lane.push(&metric.labels, at_ms, [(metric.name.as_str(), pack.values[*row])]);
        }
    }
}

/// The points that a message adds, by series; what it holds is shown to `see` first.
fn points(stored: &Stored, recent: &Recent, see: impl FnOnce(&Held, Timestamp)) -> Vec<(Applied, Points)> {
    let Some(held) = readable(stored, recent) else { return vec![] };
    see(&held, stored.stored);
    let rows = match &held {
        Held::Readings(pack) => of_readings(pack),
        Held::Samples(samples) => of_samples(samples),
    };
    let applied = Applied::new(&stored.stream, stored.sequence);
    rows.into_iter().map(|points| (applied.clone(), points)).collect()
}

/// The names of what is kept of a sample.
static NAMES: LazyLock<Arc<[String]>> =
    LazyLock::new(|| values(&InstanceSample::default()).map(|(name, _)| name.to_owned()).into());
/// The labels of a sample's series.
const CLUSTER_ID: &str = "cluster_id";
const OWNER: &str = "owner";

/// The points of samples, those of one instance together.
pub(crate) fn of_samples(samples: &[Arc<InstanceSample>]) -> Vec<Points> {
    let mut places = HashMap::<&str, usize>::with_capacity(samples.len());
    let mut rows: Vec<Points> = Vec::with_capacity(samples.len());
    let mut alike = Alike::default();
    for sample in samples {
        let place = *places.entry(sample.instance_id.as_str()).or_insert_with(|| {
            rows.push(Points { series: sample.instance_id.clone(), columns: vec![] });
            rows.len() - 1
        });
        let at = sample.at.unwrap_or_default().as_nanos();
        rows[place].push(alike.of(sample), &NAMES, at, values(sample).map(|(_, value)| value));
    }
    rows
}

/// Entity, time after the pack's, and labels: what the values of one point have in common.
type Spot<'a> = (u32, i32, &'a BTreeMap<String, String>);

/// The points of readings: those of one entity, time and labels are one.
fn of_readings(pack: &Readings) -> Vec<Points> {
    let begin = pack.at.unwrap_or_default().as_nanos();
    let mut spots: BTreeMap<Spot<'_>, BTreeMap<&str, f64>> = BTreeMap::new();
    for ((metric, after_ms), value) in pack.metric.iter().zip(&pack.after_ms).zip(&pack.values) {
        let metric = &pack.metrics[*metric as usize];
        let values = spots.entry((metric.entity, *after_ms, &metric.labels)).or_default();
        values.insert(&metric.name, *value);
    }
    // Many points have the same names, and some the same labels.
    let mut names = BTreeMap::<Vec<&str>, Arc<[String]>>::new();
    let mut labels = BTreeMap::<&BTreeMap<String, String>, Arc<BTreeMap<String, String>>>::new();
    let mut rows: Vec<(u32, Points)> = vec![];
    for ((entity, after_ms, of), values) in spots {
        let at = begin + i128::from(after_ms) * 1_000_000;
        let names = names
            .entry(values.keys().copied().collect())
            .or_insert_with_key(|names| names.iter().map(|name| (*name).to_owned()).collect());
        let labels = labels.entry(of).or_insert_with(|| Arc::new(of.clone()));
        if rows.last().is_none_or(|(last, _)| *last != entity) {
            rows.push((entity, Points { series: series_of(&pack.entities[entity as usize]), columns: vec![] }));
        }
        if let Some((_, points)) = rows.last_mut() {
            points.push(labels, names, at, values.into_values());
        }
    }
    rows.into_iter().map(|(_, points)| points).collect()
}

/// What is kept of a sample, by name and in its order. Whole numbers stay exact up to 2^53.
fn values(sample: &InstanceSample) -> [(&'static str, f64); 10] {
    [
        ("cpu_milli", sample.cpu_milli),
        ("cpu_percent", sample.cpu_percent),
        ("generation", sample.generation as f64),
        ("interval_seconds", sample.interval_seconds),
        ("io_read_rate", sample.io_read_rate),
        ("io_write_rate", sample.io_write_rate),
        ("memory_bytes", sample.memory_bytes as f64),
        ("provenance", f64::from(sample.provenance)),
        ("replicas_running", f64::from(sample.replicas_running)),
        ("restarts", f64::from(sample.restarts)),
    ]
}

/// A point of an instance's series as the sample it was.
pub(crate) fn sample(instance_id: &str, mut point: Point) -> InstanceSample {
    let value = |name: &str| point.values.get(name).copied().unwrap_or_default();
    InstanceSample {
        instance_id: instance_id.to_owned(),
        at: Some(point.at).filter(|at| *at != Timestamp::default()),
        generation: value("generation") as u64,
        cpu_percent: value("cpu_percent"),
        cpu_milli: value("cpu_milli"),
        memory_bytes: value("memory_bytes") as u64,
        io_read_rate: value("io_read_rate"),
        io_write_rate: value("io_write_rate"),
        restarts: value("restarts") as u32,
        replicas_running: value("replicas_running") as u32,
        interval_seconds: value("interval_seconds"),
        provenance: value("provenance") as i32,
        cluster_id: point.labels.remove(CLUSTER_ID).unwrap_or_default(),
        owner: point.labels.remove(OWNER).unwrap_or_default(),
        dropped: 0,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use futures::executor::block_on;
    use mesh_store::memory::WindowLimits;
    use proptest::prelude::*;

    use super::*;

    fn any_sample() -> impl Strategy<Value = InstanceSample> {
        let rates = (0.0..1e9f64, 0.0..1e9f64, 0.0..1e9f64, 0.0..1e9f64);
        let counts = (0u64..1 << 53, 0u64..1 << 53, any::<u32>(), any::<u32>());
        (1i64..1 << 40, rates, counts, "[a-z]{1,9}").prop_map(|(at, rates, counts, cluster_id)| InstanceSample {
            cluster_id,
            instance_id: "i".into(),
            owner: "local".into(),
            at: Some(Timestamp::from_millis(at)),
            cpu_percent: rates.0,
            cpu_milli: rates.1,
            io_read_rate: rates.2,
            io_write_rate: rates.3,
            generation: counts.0,
            memory_bytes: counts.1,
            restarts: counts.2,
            replicas_running: counts.3,
            interval_seconds: 1.0,
            provenance: (counts.0 % 4) as i32,
            dropped: 0,
        })
    }

    proptest! {
        #[test]
        fn a_sample_comes_back_from_the_store_as_it_was(given in any_sample()) {
            let kept = of_samples(&[Arc::new(given.clone()), Arc::new(given.clone())]);
            prop_assert_eq!((kept.len(), kept[0].columns.len(), kept[0].series.as_str()), (1, 1, "i"));
            for point in kept[0].points() {
                prop_assert_eq!(&sample("i", point), &given);
            }
        }
    }

    fn stores() -> Stores {
        let store = mesh_store::open("memory:").unwrap();
        let series = |name: &str| store.series(name, WindowLimits::default()).unwrap();
        let rolled = [series("1m"), series("5m"), series("1h")];
        let catalog = Arc::new(RwLock::new(Catalog::new(100)));
        Stores {
            raw: series("raw"),
            rolled,
            keep_ms: [1, 86_400_000, 86_400_000, 86_400_000],
            catalog,
            recent: Arc::default(),
            others: Others::default(),
        }
    }

    /// No series is kept for less time than others.
    fn nothing() -> Retained {
        Arc::new(Vec::new)
    }

    fn stored(samples: Vec<InstanceSample>, sequence: u64) -> Stored {
        mesh_test::stored(&Packed { cluster_id: "c".into(), samples }, sequence, Timestamp::from_millis(1))
    }

    fn of(millis: i64, cpu_percent: f64) -> InstanceSample {
        InstanceSample {
            instance_id: "i".into(),
            cluster_id: "c".into(),
            at: Some(Timestamp::from_millis(millis)),
            cpu_percent,
            ..Default::default()
        }
    }

    fn apply(shelf: &impl Shelf, messages: Vec<Stored>) {
        let messages: Vec<Arc<Stored>> = messages.into_iter().map(Arc::new).collect();
        block_on(shelf.apply(&messages)).unwrap();
    }

    fn range(series: &Arc<dyn Series>) -> Vec<Point> {
        let all = Range { from: Timestamp::default(), to: Timestamp::from_millis(i64::MAX / 2_000_000), limit: 99 };
        block_on(series.range("i", all)).unwrap()
    }

    #[test]
    fn a_pack_is_kept_once_and_a_bad_one_does_not_block_the_next() {
        let stores = stores();
        let raw = Raw::new(stores.clone(), nothing());
        let first = stored(vec![of(1, 1.0), of(2, 2.0)], 1);
        apply(&raw, vec![first.clone()]);
        apply(&raw, vec![first, stored(vec![of(3, f64::NAN)], 2)]);
        apply(&raw, vec![Stored { body: bytes::Bytes::from_static(&[0xff]), ..stored(vec![], 3) }]);
        // As releases up to 0.1 packed them.
        let measured = Measured { cluster_id: "c".into(), instance_id: "i".into(), samples: vec![of(4, 4.0)] };
        apply(&raw, vec![mesh_test::stored(&measured, 4, Timestamp::from_millis(1))]);
        let kept: Vec<f64> = range(&stores.raw).into_iter().map(|p| sample("i", p).cpu_percent).collect();
        assert_eq!(kept, [1.0, 2.0, 4.0]);
        assert_eq!(block_on(raw.position()).unwrap(), 4);
        assert!(!stores.catalog.read().asked(&Default::default(), 99).0.is_empty());
        block_on(raw.sweep(Timestamp::from_millis(SWEEP_MS))).unwrap();
        assert!(range(&stores.raw).is_empty());
    }

    #[test]
    fn what_was_just_published_is_kept_as_it_was_taken_in() {
        let stores = stores();
        let message = stored(vec![of(1, 1.0)], 1);
        stores.recent.keep(message.body.clone(), Held::samples(vec![of(1, 5.0)]), 1);
        let raw = Raw::new(stores.clone(), nothing());
        apply(&raw, vec![message, stored(vec![of(2, 2.0)], 2)]);
        let kept: Vec<f64> = range(&stores.raw).into_iter().map(|p| sample("i", p).cpu_percent).collect();
        assert_eq!(kept, [5.0, 2.0], "the first is not decoded, the other is");
    }

    #[test]
    fn what_is_rolled_up_is_written_when_done_and_read_again_when_open() {
        let stores = stores();
        let at = |second: i64| Timestamp::from_millis(second * 1_000);
        let message = |second: i64| stored(vec![of(second * 1_000, second as f64)], second as u64 + 1);
        let rolled = Rolled::new(stores.clone(), nothing(), Arc::default());
        assert_eq!(block_on(rolled.position()).unwrap(), 0);
        (0..90).for_each(|second| apply(&rolled, vec![message(second)]));
        block_on(rolled.sweep(at(80))).unwrap();
        assert_eq!(range(&stores.rolled[0]).len(), 1);
        // A database that still has what was written is followed; the next process begins with the open minute.
        assert_eq!(block_on(rolled.position()).unwrap(), 90);
        let next = Rolled::new(stores.clone(), nothing(), Arc::default());
        assert_eq!(block_on(next.position()).unwrap(), 60);
        (60..310).for_each(|second| apply(&next, vec![message(second)]));
        block_on(next.sweep(at(315))).unwrap();
        let minutes = range(&stores.rolled[0]);
        assert!(minutes.iter().all(|point| point.values["cpu_percent|count"] == 60.0), "{minutes:?}");
        let five = range(&stores.rolled[1]);
        assert_eq!((minutes.len(), five.len(), five[0].values["cpu_percent|count"]), (5, 1, 300.0));
    }

    #[test]
    fn what_a_setting_keeps_no_longer_leaves_all_stores() {
        let stores = Stores { keep_ms: [600_000, 86_400_000, 86_400_000, 86_400_000], ..stores() };
        let retained: Retained = Arc::new(|| vec![("i".to_owned(), 60_000)]);
        let raw = Raw::new(stores.clone(), retained.clone());
        let rolled = Rolled::new(stores.clone(), retained, Arc::default());
        let other = |second: i64| InstanceSample { instance_id: "j".into(), ..of(second * 1_000, 1.0) };
        for second in 0..300 {
            let message = stored(vec![of(second * 1_000, 1.0), other(second)], second as u64 + 1);
            apply(&raw, vec![message.clone()]);
            apply(&rolled, vec![message]);
        }
        let now = Timestamp::from_millis(315_000);
        block_on(raw.sweep(now)).unwrap();
        block_on(rolled.sweep(now)).unwrap();
        let seconds = |store: &Arc<dyn Series>, series: &str| -> Vec<i64> {
            let all = Range { from: Timestamp::default(), to: now, limit: 999 };
            block_on(store.range(series, all)).unwrap().iter().map(|p| p.at.as_millis() / 1_000).collect()
        };
        assert_eq!(seconds(&stores.raw, "i"), (255..300).collect::<Vec<_>>());
        assert_eq!(seconds(&stores.raw, "j").len(), 300);
        assert_eq!((seconds(&stores.rolled[0], "i"), seconds(&stores.rolled[1], "i")), (vec![], vec![]));
        assert_eq!(seconds(&stores.rolled[0], "j"), [0, 60, 120, 180, 240]);
    }

    #[test]
    fn what_another_writes_to_a_shared_database_is_taken_up_later() {
        let stores = stores();
        assert!(!stores.is_anothers(), "what rests in memory is each collector's own");
        stores.others.set_write(true);
        assert!(!stores.is_anothers());
        let series = Arc::new(Shared(stores.raw.clone()));
        let stores = Stores { raw: series.clone(), rolled: [series.clone(), series.clone(), series], ..stores };
        let (raw, rolled) =
            (Raw::new(stores.clone(), nothing()), Rolled::new(stores.clone(), nothing(), Arc::default()));
        for sequence in 1..=3 {
            let message = stored(vec![of(sequence * 1_000, 1.0)], sequence as u64);
            apply(&raw, vec![message.clone()]);
            apply(&rolled, vec![message]);
        }
        assert_eq!((block_on(raw.position()).unwrap(), block_on(rolled.position()).unwrap()), (3, 3));
        assert!(range(&stores.raw).is_empty());
        // The other is gone: nothing is written before it is known from where.
        stores.others.set_write(false);
        apply(&raw, vec![stored(vec![of(4_000, 1.0)], 4)]);
        assert!(range(&stores.raw).is_empty());
        assert_eq!((block_on(raw.position()).unwrap(), block_on(rolled.position()).unwrap()), (0, 0));
        apply(&raw, (1..=4).map(|n| stored(vec![of(n * 1_000, 1.0)], n as u64)).collect());
        assert_eq!((range(&stores.raw).len(), block_on(raw.position()).unwrap()), (4, 4));
    }

    /// A store in memory that says it is a database which all share.
    pub(crate) struct Shared(pub(crate) Arc<dyn Series>);

    impl Series for Shared {
        fn write<'a>(&'a self, points: Vec<(Applied, Points)>) -> mesh_store::Answer<'a, ()> {
            self.0.write(points)
        }

        fn columns<'a>(
            &'a self,
            series: &'a [&'a str],
            range: Range,
        ) -> mesh_store::Answer<'a, Vec<Vec<mesh_store::Columns>>> {
            self.0.columns(series, range)
        }

        fn forget(&self, before: Timestamp) -> mesh_store::Answer<'_, ()> {
            self.0.forget(before)
        }

        fn forget_series<'a>(&'a self, series: &'a str, before: Timestamp) -> mesh_store::Answer<'a, ()> {
            self.0.forget_series(series, before)
        }

        fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> mesh_store::Answer<'a, ()> {
            self.0.advance(from, applied)
        }

        fn position<'a>(&'a self, stream: &'a str) -> mesh_store::Answer<'a, u64> {
            self.0.position(stream)
        }

        fn is_remote(&self) -> bool {
            true
        }
    }
}
