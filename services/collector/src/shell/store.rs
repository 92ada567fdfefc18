//! Keeps the recent window of every instance's samples in the series store, read from `TELEMETRY`: a store that was
//! away, or is new, catches up by itself.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use mesh_core::Stored;
use mesh_kit::Mesh;
use mesh_proto::{
    DecodeError, Event as _, Timestamp,
    telemetry::{InstanceSample, Measured, Packed},
};
use mesh_store::{Applied, Error, Point, Series, first_since};

/// How long to wait before a store that failed is tried again, milliseconds.
const RETRY_MS: u64 = 500;
/// How often what is older than the window is forgotten, milliseconds.
const FORGET_MS: i64 = 10_000;

/// Follows `TELEMETRY` into the store until the process stops.
pub(crate) async fn keep(mesh: Mesh, series: Arc<dyn Series>, window_ms: i64) -> anyhow::Result<()> {
    let subject = mesh_proto::contract().stream(Packed::STREAM).map_or("", |stream| stream.subject.as_str());
    let log = mesh.bus().log(Packed::STREAM);
    let last = log.last_sequence().await.context("read end of telemetry")?;
    let oldest = mesh.now().plus_millis(-window_ms);
    let begin = first_since(last, oldest, |from| {
        let log = log.clone();
        async move { log.read(subject, from, 1).await.map(|found| found.first().map(|m| (m.sequence, m.stored))) }
    });
    let begin = begin.await.context("find the window's first sample")?;
    let applied = series.position(Packed::STREAM).await.context("read position of the series store")?;
    let mut follower = mesh.follow(Packed::STREAM, begin.max(applied + 1));
    let (stopping, mut forgotten) = (mesh.stopping(), mesh.now());
    loop {
        let stored = tokio::select! {
            stored = follower.next() => stored.context("read telemetry")?,
            () = stopping.cancelled() => return Ok(()),
        };
        while let Err(error) = write(&*series, &stored).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "samples not kept; trying again");
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(RETRY_MS)) => {}
                () = stopping.cancelled() => return Ok(()),
            }
        }
        let now = mesh.now();
        if now.millis_since(forgotten) >= FORGET_MS {
            forgotten = now;
            series.forget(now.plus_millis(-window_ms)).await.context("forget old samples")?;
        }
    }
}

/// Applies one message whole. Fails only if trying again may help.
async fn write(series: &dyn Series, stored: &Stored) -> Result<(), Error> {
    let applied = Applied::new(&stored.stream, stored.sequence);
    match samples(stored) {
        Ok(samples) => {
            let mut by_instance: BTreeMap<String, Vec<Point>> = BTreeMap::new();
            for mut sample in samples {
                by_instance.entry(std::mem::take(&mut sample.instance_id)).or_default().push(point(sample));
            }
            for (instance_id, points) in by_instance {
                match series.append(&applied, &instance_id, points).await {
                    Err(error @ Error::Engine { .. }) => return Err(error),
                    Err(error) => {
                        tracing::warn!(
                            sequence = stored.sequence,
                            error = &error as &dyn std::error::Error,
                            "samples refused"
                        );
                    }
                    Ok(_) => {}
                }
            }
        }
        Err(error) => {
            tracing::warn!(
                sequence = stored.sequence,
                error = &error as &dyn std::error::Error,
                "telemetry undecodable"
            );
        }
    }
    series.advance(&applied).await
}

/// A sample as a point of its instance's series. Whole numbers stay exact up to 2^53.
/// The samples of a pack; those of an earlier release were packed by instance.
fn samples(stored: &Stored) -> Result<Vec<InstanceSample>, DecodeError> {
    if let Some(pack) = stored.event::<Packed>()? {
        return Ok(pack.samples);
    }
    Ok(stored.event::<Measured>()?.map_or(vec![], |measured| measured.samples))
}

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
    use mesh_store::{
        Range,
        memory::{self, Shared, WindowLimits},
    };
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

    fn stored(samples: Vec<InstanceSample>, sequence: u64) -> Stored {
        mesh_test::stored(&Packed { cluster_id: "c".into(), samples }, sequence, Timestamp::from_millis(1))
    }

    #[test]
    fn a_pack_is_kept_once_and_a_bad_one_does_not_block_the_next() {
        let series = Shared::new(memory::Series::new(WindowLimits::default()));
        let of = |millis, cpu_percent| InstanceSample {
            instance_id: "i".into(),
            at: Some(Timestamp::from_millis(millis)),
            cpu_percent,
            ..Default::default()
        };
        let first = stored(vec![of(1, 1.0), of(2, 2.0)], 1);
        block_on(write(&series, &first)).unwrap();
        block_on(write(&series, &first)).unwrap();
        block_on(write(&series, &stored(vec![of(3, f64::NAN)], 2))).unwrap();
        let undecodable = Stored { body: bytes::Bytes::from_static(&[0xff]), ..stored(vec![], 3) };
        block_on(write(&series, &undecodable)).unwrap();
        // As releases up to 0.1 packed them.
        let measured = Measured { cluster_id: "c".into(), instance_id: "i".into(), samples: vec![of(4, 4.0)] };
        block_on(write(&series, &mesh_test::stored(&measured, 4, Timestamp::from_millis(1)))).unwrap();
        let all = Range { from: Timestamp::default(), to: Timestamp::from_millis(9), limit: 9 };
        let kept: Vec<f64> = series.lock().range("i", all).into_iter().map(|p| sample("i", p).cpu_percent).collect();
        assert_eq!(kept, [1.0, 2.0, 4.0]);
        assert_eq!(series.lock().position("TELEMETRY"), 4);
    }
}
