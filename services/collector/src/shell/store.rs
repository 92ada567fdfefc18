//! Keeps samples and readings in the series stores, read from `TELEMETRY`, and rolls them up: stores that were away, or are
//! new, catch up by themselves.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use mesh_core::Stored;
use mesh_kit::Mesh;
use mesh_proto::{
    DecodeError, Event as _, Timestamp,
    telemetry::{InstanceSample, Measured, Packed, Readings},
};
use mesh_store::{Applied, Error, Point, Range, Series, first_since};
use parking_lot::RwLock;

use crate::domain::{
    catalog::{Catalog, series_of},
    rollup::{LENGTHS_MS, Rolled, Rollup},
};

/// How long to wait before a store that failed is tried again, milliseconds.
const RETRY_MS: u64 = 500;
/// How often what is older than is kept is forgotten, and what is rolled up written, milliseconds.
const SWEEP_MS: i64 = 10_000;
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
}

/// Follows `TELEMETRY` into the stores until the process stops; counts what came too late to be rolled up.
pub(crate) async fn keep(mesh: Mesh, stores: Stores, late: Arc<AtomicU64>) -> anyhow::Result<()> {
    let subject = mesh_proto::contract().stream(Packed::STREAM).map_or("", |stream| stream.subject.as_str());
    let log = mesh.bus().log(Packed::STREAM);
    let last = log.last_sequence().await.context("read end of telemetry")?;
    let oldest = mesh.now().plus_millis(-stores.keep_ms[0]);
    let begin = first_since(last, oldest, |from| {
        let log = log.clone();
        async move { log.read(subject, from, 1).await.map(|found| found.first().map(|m| (m.sequence, m.stored))) }
    });
    let begin = begin.await.context("find the window's first sample")?;
    let raw = stores.raw.position(Packed::STREAM).await.context("read position of the series store")?;
    let rolled = stores.rolled[0].position(Packed::STREAM).await.context("read position of rolled-up series")?;
    let mut follower = mesh.follow(Packed::STREAM, begin.max(raw.min(rolled) + 1));
    let mut keeper = Keeper { stores, rollup: Rollup::default(), restore: rolled > 0, restored: BTreeMap::new() };
    let (stopping, mut swept) = (mesh.stopping(), mesh.now());
    loop {
        let stored = tokio::select! {
            stored = follower.next() => Some(stored.context("read telemetry")?),
            () = tokio::time::sleep(Duration::from_millis(SWEEP_MS.unsigned_abs())) => None,
            () = stopping.cancelled() => return Ok(()),
        };
        if let Some(stored) = &stored {
            let messages = keeper.rows(stored, mesh.now()).await;
            while let Err(error) = keeper.write(stored, &messages).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "samples not kept; trying again");
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(RETRY_MS)) => {}
                    () = stopping.cancelled() => return Ok(()),
                }
            }
        }
        let now = mesh.now();
        if now.millis_since(swept) < SWEEP_MS {
            continue;
        }
        swept = now;
        let rolled = keeper.rollup.close(now);
        while let Err(error) = keeper.roll(follower.position(), &rolled).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "rolled-up series not kept; trying again");
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(RETRY_MS)) => {}
                () = stopping.cancelled() => return Ok(()),
            }
        }
        late.store(keeper.rollup.late(), Relaxed);
        keeper.forget(now).await;
    }
}

/// The points of one message, by series.
type Rows = BTreeMap<String, Vec<Point>>;

struct Keeper {
    stores: Stores,
    rollup: Rollup,
    /// Had the stores been written before this process began?
    restore: bool,
    /// Series whose longer steps were taken up.
    restored: BTreeMap<String, ()>,
}

impl Keeper {
    /// The points of a message, listed and rolled up.
    async fn rows(&mut self, stored: &Stored, now: Timestamp) -> Rows {
        let rows = match rows(stored, &mut self.stores.catalog.write(), now) {
            Ok(rows) => rows,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(sequence = stored.sequence, error, "telemetry undecodable");
                return Rows::new();
            }
        };
        for (series, points) in &rows {
            if self.restore && self.restored.insert(series.clone(), ()).is_none() {
                self.take_up(series, now).await;
            }
            for point in points {
                for (name, value) in &point.values {
                    let at_ms = point.at.as_millis();
                    self.rollup.push(stored.sequence, series, &point.labels, name, at_ms, *value);
                }
            }
        }
        rows
    }

    /// Takes up the longer steps of a series that were open when an earlier process ended.
    async fn take_up(&mut self, series: &str, now: Timestamp) {
        let hour = now.as_millis().div_euclid(LENGTHS_MS[2]) * LENGTHS_MS[2];
        let range = Range { from: Timestamp::from_millis(hour), to: now, limit: RESTORE_MAX };
        match self.stores.rolled[0].range(series, range).await {
            Ok(points) => points.iter().for_each(|point| self.rollup.restore(now, series, point)),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(series, error, "the hour under way is rolled up in part");
            }
        }
    }

    /// Applies one message whole. Fails only if trying again may help.
    async fn write(&self, stored: &Stored, rows: &Rows) -> Result<(), Error> {
        let applied = Applied::new(&stored.stream, stored.sequence);
        for (series, points) in rows {
            append(&*self.stores.raw, &applied, series, points.clone()).await?;
        }
        self.stores.raw.advance(&applied).await
    }

    /// Writes what is rolled up. Fails only if trying again may help.
    async fn roll(&self, position: u64, rolled: &[Rolled; 3]) -> Result<(), Error> {
        let applied = Applied::new(Packed::STREAM, position);
        for (store, points) in self.stores.rolled.iter().zip(rolled) {
            let mut by_series = Rows::new();
            for (series, point) in points {
                by_series.entry(series.clone()).or_default().push(point.clone());
            }
            for (series, points) in by_series {
                append(&**store, &applied, &series, points).await?;
            }
        }
        // What is open is read again by the next process.
        let through = self.rollup.open_from().map_or(position, |first| first - 1);
        self.stores.rolled[0].advance(&Applied::new(Packed::STREAM, through)).await
    }

    /// Forgets what is older than is kept.
    async fn forget(&self, now: Timestamp) {
        let stores = [&self.stores.raw].into_iter().chain(&self.stores.rolled);
        for (store, keep_ms) in stores.zip(self.stores.keep_ms) {
            if let Err(error) = store.forget(now.plus_millis(-keep_ms)).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "old samples not forgotten");
            }
        }
        let longest = self.stores.keep_ms.into_iter().max().unwrap_or_default();
        self.stores.catalog.write().forget(now.plus_millis(-longest));
    }
}

/// Adds points; what the store will never take is left out, with a warning.
async fn append(store: &dyn Series, applied: &Applied, series: &str, points: Vec<Point>) -> Result<(), Error> {
    match store.append(applied, series, points).await {
        Err(error @ Error::Engine { .. }) => Err(error),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(sequence = applied.sequence, series, error, "samples refused");
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}

/// The points of a message by series; what they are of is listed.
fn rows(stored: &Stored, catalog: &mut Catalog, now: Timestamp) -> Result<Rows, DecodeError> {
    let mut rows = Rows::new();
    if let Some(pack) = stored.event::<Readings>()? {
        if pack.fits() {
            catalog.readings(&pack, now);
            of_readings(&pack, &mut rows);
        }
        return Ok(rows);
    }
    for mut sample in samples(stored)? {
        catalog.sample(&sample, now);
        rows.entry(std::mem::take(&mut sample.instance_id)).or_default().push(point(sample));
    }
    Ok(rows)
}

/// The points of readings: those of one entity, time and labels are one.
fn of_readings(pack: &Readings, rows: &mut Rows) {
    let begin_ms = pack.at.unwrap_or_default().as_millis();
    let series: Vec<String> = pack.entities.iter().map(series_of).collect();
    let mut points: BTreeMap<(u32, i32, &BTreeMap<String, String>), BTreeMap<String, f64>> = BTreeMap::new();
    for ((metric, after_ms), value) in pack.metric.iter().zip(&pack.after_ms).zip(&pack.values) {
        let metric = &pack.metrics[*metric as usize];
        let values = points.entry((metric.entity, *after_ms, &metric.labels)).or_default();
        values.insert(metric.name.clone(), *value);
    }
    for ((entity, after_ms, labels), values) in points {
        let at = Timestamp::from_millis(begin_ms + i64::from(after_ms));
        let points = rows.entry(series[entity as usize].clone()).or_default();
        points.push(Point { at, labels: labels.clone(), values });
    }
}

/// The samples of a pack; those of an earlier release were packed by instance.
fn samples(stored: &Stored) -> Result<Vec<InstanceSample>, DecodeError> {
    if let Some(pack) = stored.event::<Packed>()? {
        return Ok(pack.samples);
    }
    Ok(stored.event::<Measured>()?.map_or(vec![], |measured| measured.samples))
}

/// A sample as a point of its instance's series. Whole numbers stay exact up to 2^53.
pub(crate) fn point(sample: InstanceSample) -> Point {
    let values = [
        ("generation", sample.generation as f64),
        ("cpu_percent", sample.cpu_percent),
        ("cpu_milli", sample.cpu_milli),
        ("memory_bytes", sample.memory_bytes as f64),
        ("io_read_rate", sample.io_read_rate),
        ("io_write_rate", sample.io_write_rate),
        ("restarts", f64::from(sample.restarts)),
        ("replicas_running", f64::from(sample.replicas_running)),
        ("interval_seconds", sample.interval_seconds),
        ("provenance", f64::from(sample.provenance)),
    ];
    Point {
        at: sample.at.unwrap_or_default(),
        labels: BTreeMap::from([("cluster_id".to_owned(), sample.cluster_id), ("owner".to_owned(), sample.owner)]),
        values: values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
    }
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
        cluster_id: point.labels.remove("cluster_id").unwrap_or_default(),
        owner: point.labels.remove("owner").unwrap_or_default(),
        dropped: 0,
    }
}

#[cfg(test)]
mod tests {
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
            prop_assert_eq!(sample("i", point(given.clone())), given);
        }
    }

    fn keeper() -> Keeper {
        let store = mesh_store::open("memory:").unwrap();
        let series = |name: &str| store.series(name, WindowLimits::default());
        let rolled = [series("1m"), series("5m"), series("1h")];
        let catalog = Arc::new(RwLock::new(Catalog::new(100)));
        let stores = Stores { raw: series("raw"), rolled, keep_ms: [600_000; 4], catalog };
        Keeper { stores, rollup: Rollup::default(), restore: false, restored: BTreeMap::new() }
    }

    fn stored(samples: Vec<InstanceSample>, sequence: u64) -> Stored {
        mesh_test::stored(&Packed { cluster_id: "c".into(), samples }, sequence, Timestamp::from_millis(1))
    }

    #[test]
    fn a_pack_is_kept_once_and_a_bad_one_does_not_block_the_next() {
        let keeper = keeper();
        let series = keeper.stores.raw.clone();
        let of = |millis, cpu_percent| InstanceSample {
            instance_id: "i".into(),
            at: Some(Timestamp::from_millis(millis)),
            cpu_percent,
            ..Default::default()
        };
        let first = stored(vec![of(1, 1.0), of(2, 2.0)], 1);
        let mut keeper = keeper;
        let mut write = |stored: &Stored| {
            block_on(async {
                let rows = keeper.rows(stored, Timestamp::from_millis(1)).await;
                keeper.write(stored, &rows).await.unwrap();
            });
        };
        write(&first);
        write(&first);
        write(&stored(vec![of(3, f64::NAN)], 2));
        write(&Stored { body: bytes::Bytes::from_static(&[0xff]), ..stored(vec![], 3) });
        // As releases up to 0.1 packed them.
        let measured = Measured { cluster_id: "c".into(), instance_id: "i".into(), samples: vec![of(4, 4.0)] };
        write(&mesh_test::stored(&measured, 4, Timestamp::from_millis(1)));
        let all = Range { from: Timestamp::default(), to: Timestamp::from_millis(9), limit: 9 };
        let found = block_on(series.range("i", all)).unwrap();
        let kept: Vec<f64> = found.into_iter().map(|p| sample("i", p).cpu_percent).collect();
        assert_eq!(kept, [1.0, 2.0, 4.0]);
        assert_eq!(block_on(series.position("TELEMETRY")).unwrap(), 4);
    }
}
