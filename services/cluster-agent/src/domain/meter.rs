//! Samples from totals: what each instance used since it was last looked at.

use std::collections::BTreeMap;

use mesh_proto::{
    Timestamp,
    telemetry::{ClusterSample, InstanceSample, Provenance},
};

use crate::domain::{Measured, replica::Reading};

/// Totals of one instance at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Totals {
    cpu_nanos: u64,
    memory_bytes: u64,
    read_bytes: u64,
    written_bytes: u64,
}

/// Thousandths of a core used between two looks, and the seconds between them. `None` if no time has passed.
fn used(before_at: Timestamp, before: &Totals, at: Timestamp, now: &Totals) -> Option<(f64, f64)> {
    let nanos = at.as_nanos() - before_at.as_nanos();
    let cpu_nanos = now.cpu_nanos.saturating_sub(before.cpu_nanos) as f64;
    (nanos > 0).then(|| (cpu_nanos / nanos as f64 * 1e3, nanos as f64 / 1e9))
}

/// Makes samples of readings. Rates are over the time that really passed.
#[derive(Clone, Debug, PartialEq)]
pub struct Meter {
    cluster_id: String,
    /// Declared capacity, thousandths of a core.
    cpu_milli: u32,
    /// Where the readings come from.
    provenance: Provenance,
    /// At each look, for the cluster.
    last: BTreeMap<(String, u64), (Timestamp, Totals)>,
    /// At the last sample of each instance.
    sampled: BTreeMap<(String, u64), (Timestamp, Totals)>,
}

impl Meter {
    /// For a cluster with this capacity in thousandths of a core and readings of this provenance.
    pub fn new(cluster_id: impl Into<String>, cpu_milli: u32, provenance: Provenance) -> Self {
        Self { cluster_id: cluster_id.into(), cpu_milli, provenance, last: BTreeMap::new(), sampled: BTreeMap::new() }
    }

    /// Samples of the instances that shall run and are due, in the order of their ids, and of the cluster. An instance has
    /// its first sample at its second reading; readings of other generations count for the cluster only.
    pub fn sample(
        &mut self,
        at: Timestamp,
        readings: &[Reading],
        measured: &BTreeMap<String, Measured>,
        is_due: impl Fn(&str) -> bool,
    ) -> (Vec<InstanceSample>, ClusterSample) {
        let mut all: BTreeMap<(String, u64), Totals> = BTreeMap::new();
        for reading in readings {
            let totals = all.entry((reading.id.instance_id.clone(), reading.id.generation)).or_default();
            totals.cpu_nanos += reading.cpu_nanos;
            totals.memory_bytes += reading.memory_bytes;
            totals.read_bytes += reading.io_read_bytes;
            totals.written_bytes += reading.io_write_bytes;
        }
        let (mut samples, mut cpu_milli_used, mut memory_bytes) = (vec![], 0.0, 0);
        for ((instance_id, generation), now) in &all {
            memory_bytes += now.memory_bytes;
            let key = (instance_id.clone(), *generation);
            if let Some((before_at, before)) = self.last.get(&key)
                && let Some((cpu_milli, _)) = used(*before_at, before, at, now)
            {
                cpu_milli_used += cpu_milli;
            }
            let Some(instance) = measured.get(instance_id).filter(|i| i.generation == *generation) else { continue };
            if !is_due(instance_id) {
                continue;
            }
            let Some((before_at, before)) = self.sampled.insert(key, (at, *now)) else { continue };
            let Some((cpu_milli, seconds)) = used(before_at, &before, at, now) else { continue };
            samples.push(InstanceSample {
                cluster_id: self.cluster_id.clone(),
                instance_id: instance_id.clone(),
                owner: instance.owner.clone(),
                generation: *generation,
                at: Some(at),
                cpu_percent: self.percent(cpu_milli),
                cpu_milli,
                memory_bytes: now.memory_bytes,
                io_read_rate: now.read_bytes.saturating_sub(before.read_bytes) as f64 / seconds,
                io_write_rate: now.written_bytes.saturating_sub(before.written_bytes) as f64 / seconds,
                restarts: instance.restarts,
                replicas_running: instance.replicas_running,
                interval_seconds: seconds,
                provenance: self.provenance.into(),
                ..InstanceSample::default()
            });
        }
        self.sampled.retain(|key, _| all.contains_key(key));
        self.last = all.into_iter().map(|(key, totals)| (key, (at, totals))).collect();
        let cluster = ClusterSample {
            cluster_id: self.cluster_id.clone(),
            at: Some(at),
            cpu_percent: self.percent(cpu_milli_used),
            memory_bytes,
            instances: u32::try_from(measured.len()).unwrap_or(u32::MAX),
            provenance: self.provenance.into(),
        };
        (samples, cluster)
    }

    fn percent(&self, cpu_milli: f64) -> f64 {
        if self.cpu_milli == 0 { 0.0 } else { cpu_milli * 100.0 / f64::from(self.cpu_milli) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::driver::ReplicaId;

    const T0: Timestamp = Timestamp::from_millis(1_000_000);

    fn reading(generation: u64, replica: u32, cpu_ms: u64, io_write_bytes: u64) -> Reading {
        Reading {
            id: ReplicaId { instance_id: "a".into(), generation, replica },
            cpu_nanos: cpu_ms * 1_000_000,
            memory_bytes: 50,
            io_read_bytes: 0,
            io_write_bytes,
        }
    }

    fn measured() -> BTreeMap<String, Measured> {
        let measured =
            Measured { owner: "local".into(), generation: 2, restarts: 1, replicas_running: 2, scraped: None };
        BTreeMap::from([("a".to_owned(), measured)])
    }

    #[test]
    fn a_rate_is_over_the_time_that_really_passed_and_all_replicas_together() {
        let mut meter = Meter::new("edge", 2_000, Provenance::Modelled);
        let (first, _) = meter.sample(T0, &[reading(2, 0, 0, 0), reading(2, 1, 0, 0)], &measured(), |_| true);
        assert_eq!(first, vec![]);
        let readings = [reading(2, 0, 300, 4_000), reading(2, 1, 100, 0)];
        let (samples, cluster) = meter.sample(T0.plus_millis(2_000), &readings, &measured(), |_| true);
        let sample = &samples[0];
        assert_eq!((sample.cpu_milli, sample.cpu_percent, sample.memory_bytes), (200.0, 10.0, 100));
        assert_eq!((sample.io_write_rate, sample.interval_seconds, sample.restarts), (2_000.0, 2.0, 1));
        assert_eq!((cluster.cpu_percent, cluster.memory_bytes, cluster.instances), (10.0, 100, 1));
        assert_eq!((sample.provenance(), cluster.provenance()), (Provenance::Modelled, Provenance::Modelled));
    }

    #[test]
    fn an_ending_generation_counts_for_the_cluster_and_not_for_the_instance() {
        let mut meter = Meter::new("edge", 1_000, Provenance::Measured);
        meter.sample(T0, &[reading(1, 0, 0, 0), reading(2, 0, 0, 0)], &measured(), |_| true);
        let readings = [reading(1, 0, 500, 0), reading(2, 0, 100, 0)];
        let (samples, cluster) = meter.sample(T0.plus_millis(1_000), &readings, &measured(), |_| true);
        assert_eq!(samples.iter().map(|s| (s.generation, s.cpu_milli)).collect::<Vec<_>>(), [(2, 100.0)]);
        assert_eq!(cluster.cpu_percent, 60.0);
    }

    #[test]
    fn an_instance_is_sampled_over_the_time_since_its_own_last_sample() {
        let mut meter = Meter::new("edge", 1_000, Provenance::Measured);
        meter.sample(T0, &[reading(2, 0, 0, 0)], &measured(), |_| true);
        let (none, cluster) = meter.sample(T0.plus_millis(1_000), &[reading(2, 0, 100, 0)], &measured(), |_| false);
        assert_eq!((none.len(), cluster.cpu_percent), (0, 10.0));
        let (one, cluster) = meter.sample(T0.plus_millis(4_000), &[reading(2, 0, 1_000, 0)], &measured(), |_| true);
        assert_eq!((one[0].cpu_milli, one[0].interval_seconds, cluster.cpu_percent), (250.0, 4.0, 30.0));
    }
}
