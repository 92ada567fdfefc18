//! What each instance used, window by window, for whoever bills it.
//!
//! Windows are whole multiples of their length since 1970. A sample speaks of the time before it; that time is divided
//! among the windows it touches, exactly, in whole numbers, so that no order of arrival changes a sum. What no sample
//! covers is a gap: nothing is estimated. A window is published once it and its grace are over, for every
//! instance that was measured in it or that ran throughout it.

use std::collections::BTreeMap;

use mesh_core::Derived;
use mesh_proto::{
    Timestamp,
    cluster::ClusterRegistered,
    derived_id, is_key,
    telemetry::{InstanceSample, Provenance},
    usage::UsageClosed,
    workload::{InstanceChanged, InstancePhase, InstanceWanted},
};

use super::period::provenance_of;

const NANOS_PER_MS: i128 = 1_000_000;
/// How long after it was taken in by another collector a sample may come, milliseconds.
const STORED_MS: i64 = 5_000;
/// Windows an arriving sample may reach back over.
const SPAN_MAX: u64 = 64;

/// Limits of the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of a window, milliseconds; 0 for none.
    pub window_ms: u32,
    /// How long after its end a window waits for the sample that speaks of its last moments, milliseconds.
    pub grace_ms: i64,
    /// Windows that are closed at once after time jumped; older ones are skipped.
    pub windows_max: u64,
    /// Instances that are known.
    pub instances_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { window_ms: 300_000, grace_ms: 2_500, windows_max: 10, instances_max: 10_000 }
    }
}

/// What was left out, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Windows closed.
    pub closed: u64,
    /// Windows never closed, because time jumped.
    pub skipped: u64,
    /// Samples, or parts of them, of windows that were closed before.
    pub late: u64,
    /// Samples of instances that nobody wanted here, or beyond the limit.
    pub unknown: u64,
}

/// An instance as WORKLOAD tells of it.
#[derive(Clone, Debug, Default)]
struct Known {
    owner: String,
    workload: String,
    /// Where it runs, and since when.
    running: Option<(String, Timestamp)>,
    /// Forgotten once no window is open that it is in.
    ended: bool,
}

/// Sums of one instance on one cluster over one window.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    samples: u32,
    /// Millionths of a core times nanoseconds.
    cpu: u128,
    /// Bytes times nanoseconds.
    memory: u128,
    covered_ns: u128,
    /// Is any of its samples modelled?
    modelled: bool,
}

impl Sums {
    fn cpu_ms(&self) -> u64 {
        u64::try_from(self.cpu / 1_000_000_000_000).unwrap_or(u64::MAX)
    }

    fn provenance(&self) -> Provenance {
        match (self.samples, self.modelled) {
            (0, _) => Provenance::Unspecified,
            (_, true) => Provenance::Modelled,
            (_, false) => Provenance::Measured,
        }
    }

    fn memory_byte_seconds(&self) -> u64 {
        u64::try_from(self.memory / 1_000_000_000).unwrap_or(u64::MAX)
    }
}

/// Cluster and instance.
type Placed = (String, String);

/// The windows under way.
#[derive(Debug)]
pub struct Usage {
    limits: Limits,
    counts: Counts,
    clusters: BTreeMap<String, ClusterRegistered>,
    instances: BTreeMap<String, Known>,
    open: BTreeMap<u64, BTreeMap<Placed, Sums>>,
    /// The next window to close; `None` until the time is known.
    next: Option<u64>,
}

impl Usage {
    /// Nothing measured.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            counts: Counts::default(),
            clusters: BTreeMap::new(),
            instances: BTreeMap::new(),
            open: BTreeMap::new(),
            next: None,
        }
    }

    /// What was left out.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn window_ns(&self) -> i128 {
        i128::from(self.limits.window_ms.max(1)) * NANOS_PER_MS
    }

    /// A cluster declared itself.
    pub(crate) fn cluster(&mut self, cluster: ClusterRegistered) {
        if self.clusters.len() < self.limits.instances_max || self.clusters.contains_key(&cluster.cluster_id) {
            self.clusters.insert(cluster.cluster_id.clone(), cluster);
        }
    }

    /// An instance is wanted, and for whom.
    pub(crate) fn wanted(&mut self, wanted: InstanceWanted) {
        if self.instances.len() >= self.limits.instances_max && !self.instances.contains_key(&wanted.instance_id) {
            return;
        }
        let known = self.instances.entry(wanted.instance_id).or_default();
        known.ended &= wanted.replicas == 0;
        known.owner = wanted.owner;
        known.workload = wanted.workload.split('@').next().unwrap_or_default().to_owned();
    }

    /// An instance's place or phase changed.
    pub(crate) fn changed(&mut self, changed: &InstanceChanged, at: Timestamp) {
        let Some(known) = self.instances.get_mut(&changed.instance_id) else { return };
        let runs = changed.phase() == InstancePhase::Running && changed.replicas_running > 0;
        let before = known.running.take().filter(|(cluster, _)| *cluster == changed.cluster_id);
        known.running = runs.then(|| before.unwrap_or_else(|| (changed.cluster_id.clone(), at)));
        known.ended = changed.phase() == InstancePhase::Stopped;
        if known.ended && self.next.is_none() {
            // Long ago: nothing of it was measured by this collector.
            self.instances.remove(&changed.instance_id);
        }
    }

    /// Takes in a sound sample, once.
    pub(crate) fn sample(&mut self, sample: &InstanceSample) {
        let Some(next) = self.next.filter(|_| self.limits.window_ms > 0) else { return };
        if !self.instances.contains_key(&sample.instance_id) {
            self.counts.unknown += 1;
            return;
        }
        let end = sample.at.unwrap_or_default().as_nanos();
        let begin = end - (sample.interval_seconds * 1e9).round() as i128;
        let window_ns = self.window_ns();
        let number = |nanos: i128| u64::try_from(nanos.div_euclid(window_ns)).unwrap_or(0);
        let last = number(end - 1);
        if number(begin) < next {
            self.counts.late += 1;
        }
        let (cpu, memory) = ((sample.cpu_milli * 1e3).round() as u128, u128::from(sample.memory_bytes));
        for window in number(begin).max(next).max(last.saturating_sub(SPAN_MAX))..=last {
            let (from, to) = (i128::from(window) * window_ns, (i128::from(window) + 1) * window_ns);
            let inside = (end.min(to) - begin.max(from)).max(0) as u128;
            let placed = (sample.cluster_id.clone(), sample.instance_id.clone());
            let sums = self.open.entry(window).or_default().entry(placed).or_default();
            sums.samples = sums.samples.saturating_add(1);
            sums.cpu = sums.cpu.saturating_add(cpu.saturating_mul(inside));
            sums.memory = sums.memory.saturating_add(memory.saturating_mul(inside));
            sums.covered_ns = sums.covered_ns.saturating_add(inside);
            sums.modelled |= provenance_of(sample) != Provenance::Measured;
        }
    }

    /// Where an instance runs, as far as WORKLOAD tells.
    pub(crate) fn place_of(&self, instance_id: &str) -> Option<&str> {
        let (cluster_id, _) = self.instances.get(instance_id)?.running.as_ref()?;
        Some(cluster_id)
    }

    /// The windows that are over, of the clusters that are this collector's when a window begins. If it shares them, what
    /// others stored is waited for too.
    pub(crate) fn close(
        &mut self,
        now: Timestamp,
        is_mine: impl Fn(&str, Timestamp) -> bool,
        is_alone: bool,
    ) -> Vec<Derived> {
        if self.limits.window_ms == 0 {
            return vec![];
        }
        let window_ns = self.window_ns();
        let number = |time: Timestamp| u64::try_from(time.as_nanos().div_euclid(window_ns)).unwrap_or(0);
        // The window under way when the collector starts is closed with what is seen of it; the rest is its gap.
        let next = *self.next.get_or_insert_with(|| number(now));
        let grace_ms = self.limits.grace_ms + if is_alone { 0 } else { STORED_MS };
        let over = number(now.plus_millis(-grace_ms)).max(next);
        let from = next.max(over.saturating_sub(self.limits.windows_max));
        self.counts.skipped += from - next;
        self.next = Some(over);
        let mut closed = vec![];
        for window in from..over {
            closed.extend(self.window(window, &is_mine));
        }
        self.open.retain(|window, _| *window >= over);
        if over > from {
            let open = &self.open;
            let is_open = |id: &str| open.values().any(|window| window.keys().any(|(_, instance)| instance == id));
            self.instances.retain(|id, known| !known.ended || is_open(id));
        }
        self.counts.closed += closed.len() as u64;
        closed
    }

    fn window(&mut self, window: u64, is_mine: impl Fn(&str, Timestamp) -> bool) -> Vec<Derived> {
        let mut measured = self.open.remove(&window).unwrap_or_default();
        let (begin, end) = (self.begin_of(window), self.begin_of(window + 1));
        for (instance_id, known) in &self.instances {
            // An instance that ran all the time without a sample is published too.
            if let Some((cluster_id, _)) = known.running.as_ref().filter(|(_, since)| *since <= begin) {
                measured.entry((cluster_id.clone(), instance_id.clone())).or_default();
            }
        }
        let mut totals = BTreeMap::<&str, (u64, u64)>::new();
        for ((cluster, _), sums) in &measured {
            let total = totals.entry(cluster).or_default();
            total.0 = total.0.saturating_add(sums.cpu_ms());
            total.1 = total.1.saturating_add(sums.memory_byte_seconds());
        }
        let window_ms = self.limits.window_ms;
        let mut closed = vec![];
        for ((cluster_id, instance_id), sums) in measured.iter().filter(|((cluster, _), _)| is_mine(cluster, begin)) {
            let Some(known) = self.instances.get(instance_id).filter(|k| is_key(&k.workload) && is_key(&k.owner))
            else {
                continue;
            };
            let cluster = self.clusters.get(cluster_id);
            let region = cluster.map(|c| c.labels.get("region").unwrap_or(&c.site).clone()).unwrap_or_default();
            let covered_ms = u32::try_from(sums.covered_ns / NANOS_PER_MS as u128).unwrap_or(u32::MAX);
            let (cluster_cpu_ms, cluster_memory_byte_seconds) =
                totals.get(cluster_id.as_str()).copied().unwrap_or_default();
            let capacity = |per_second: u64| {
                u64::try_from(u128::from(per_second) * u128::from(window_ms) / 1_000).unwrap_or(u64::MAX)
            };
            let event = UsageClosed {
                cluster_id: cluster_id.clone(),
                instance_id: instance_id.clone(),
                owner: known.owner.clone(),
                workload: known.workload.clone(),
                region: if is_key(&region) { region } else { String::new() },
                window,
                window_ms,
                begin: Some(begin),
                end: Some(end),
                cpu_ms: sums.cpu_ms(),
                memory_byte_seconds: sums.memory_byte_seconds(),
                samples: sums.samples,
                gap_ms: window_ms.saturating_sub(covered_ms),
                cluster_cpu_ms,
                cluster_memory_byte_seconds,
                cluster_cpu_capacity_ms: cluster.map_or(0, |c| capacity(c.cpu_milli.into())),
                cluster_memory_capacity_byte_seconds: cluster.map_or(0, |c| capacity(c.memory_bytes)),
                provenance: sums.provenance().into(),
            };
            let (length, number) = (window_ms.to_string(), window.to_string());
            let id = derived_id(&["usage", cluster_id, instance_id, &length, &number]);
            closed.push(Derived::new(event, id, end));
        }
        closed
    }

    fn begin_of(&self, window: u64) -> Timestamp {
        Timestamp::from_nanos(i128::from(window) * self.window_ns())
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// A time, milliseconds after a beginning of a window.
    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000_000 + millis)
    }

    fn usage() -> Usage {
        let mut usage = Usage::new(Limits { window_ms: 5_000, grace_ms: 1_000, windows_max: 3, instances_max: 4 });
        usage.cluster(ClusterRegistered {
            cluster_id: "edge".into(),
            cpu_milli: 500,
            memory_bytes: 512_000_000,
            site: "plant".into(),
            ..Default::default()
        });
        for instance in ["a", "b"] {
            usage.wanted(InstanceWanted {
                owner: "local".into(),
                instance_id: instance.into(),
                workload: "spinner@1.0.0".into(),
                ..Default::default()
            });
        }
        assert!(usage.close(at(0), |_, _| true, true).is_empty());
        usage
    }

    fn sample(instance: &str, end: i64, seconds: f64, cpu_milli: f64) -> InstanceSample {
        InstanceSample {
            cluster_id: "edge".into(),
            instance_id: instance.into(),
            at: Some(at(end)),
            interval_seconds: seconds,
            cpu_milli,
            memory_bytes: 1_000_000,
            ..Default::default()
        }
    }

    fn changed(instance: &str, phase: InstancePhase) -> InstanceChanged {
        InstanceChanged {
            instance_id: instance.into(),
            cluster_id: "edge".into(),
            phase: phase.into(),
            replicas_running: 1,
            ..Default::default()
        }
    }

    fn closed(usage: &mut Usage, now: i64) -> Vec<(String, UsageClosed)> {
        let closed = usage.close(at(now), |_, _| true, true).into_iter();
        closed.map(|d| (d.id, UsageClosed::decode(d.event.body()).unwrap())).collect()
    }

    #[test]
    fn a_window_states_whether_its_usage_was_measured_or_modelled() {
        let closed = |provenance: [Provenance; 2]| {
            let mut usage = usage();
            for (end, provenance) in [2_000, 4_000].into_iter().zip(provenance) {
                usage.sample(&InstanceSample { provenance: provenance.into(), ..sample("a", end, 1.0, 100.0) });
            }
            let first = usage.close(at(6_000), |_, _| true, true).remove(0);
            UsageClosed::decode(first.event.body()).unwrap().provenance()
        };
        assert_eq!(closed([Provenance::Measured; 2]), Provenance::Measured);
        assert_eq!(closed([Provenance::Unspecified; 2]), Provenance::Measured, "of an agent of an earlier release");
        assert_eq!(
            closed([Provenance::Measured, Provenance::Modelled]),
            Provenance::Modelled,
            "in part is not measured"
        );
    }

    #[test]
    fn a_sample_is_divided_exactly_among_the_windows_it_speaks_of() {
        let mut usage = usage();
        usage.sample(&sample("a", 2_000, 2.0, 100.0));
        usage.sample(&sample("a", 6_000, 4.0, 50.0));
        usage.sample(&sample("b", 5_000, 1.0, 300.0));
        assert!(closed(&mut usage, 5_999).is_empty(), "the grace is not over");
        let first = closed(&mut usage, 6_000);
        assert_eq!(first.len(), 2);
        let (a, b) = (&first[0].1, &first[1].1);
        // 2 s at 100 and 3 s at 50 thousandths.
        assert_eq!((a.cpu_ms, a.memory_byte_seconds, a.samples, a.gap_ms), (350, 5_000_000, 2, 0));
        assert_eq!((b.cpu_ms, b.samples, b.gap_ms), (300, 1, 4_000));
        assert_eq!((a.cluster_cpu_ms, a.cluster_cpu_capacity_ms), (650, 2_500));
        assert_eq!((a.region.as_str(), a.workload.as_str(), a.owner.as_str()), ("plant", "spinner", "local"));
        assert_eq!((a.begin, a.end, a.window_ms), (Some(at(0)), Some(at(5_000)), 5_000));
        let second = closed(&mut usage, 11_000);
        assert_eq!(second.iter().map(|(_, u)| (u.cpu_ms, u.gap_ms)).collect::<Vec<_>>(), [(50, 4_000)]);
        assert_ne!(first[0].0, second[0].0);
    }

    #[test]
    fn a_window_is_the_same_event_in_whatever_order_its_samples_came() {
        let samples: Vec<_> = (1..=5).map(|n| sample("a", n * 1_000, 1.0, 33.3 * n as f64)).collect();
        let (mut one, mut other) = (usage(), usage());
        samples.iter().for_each(|s| one.sample(s));
        samples.iter().rev().for_each(|s| other.sample(s));
        let (one, other) = (closed(&mut one, 6_000), closed(&mut other, 7_000));
        assert_eq!(one, other);
        assert_eq!(one[0].1.cpu_ms, 499);
    }

    #[test]
    fn who_runs_and_is_not_heard_is_said_with_a_gap_and_who_ended_is_not() {
        let mut usage = usage();
        usage.changed(&changed("a", InstancePhase::Running), at(-1));
        usage.changed(&changed("b", InstancePhase::Running), at(1_000));
        let first = closed(&mut usage, 6_000);
        assert_eq!(first.len(), 1, "b did not run all the time");
        assert_eq!((first[0].1.samples, first[0].1.gap_ms, first[0].1.cpu_ms), (0, 5_000, 0));
        usage.changed(&changed("a", InstancePhase::Stopped), at(6_000));
        let second = closed(&mut usage, 11_000);
        assert_eq!(second.iter().map(|(_, u)| u.instance_id.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn what_is_late_unknown_or_skipped_is_counted_and_never_guessed() {
        let mut usage = usage();
        usage.sample(&sample("nobody", 1_000, 1.0, 1.0));
        usage.sample(&sample("a", 1_000, 1.0, 1.0));
        closed(&mut usage, 6_000);
        usage.sample(&sample("a", 4_000, 1.0, 1.0));
        assert_eq!((usage.counts().unknown, usage.counts().late), (1, 1));
        // The clock jumps: the last three windows are looked at, the others skipped.
        usage.changed(&changed("a", InstancePhase::Running), at(0));
        assert_eq!(closed(&mut usage, 106_000).len(), 3);
        assert_eq!(usage.counts().skipped, 17);
        // A sample that says it covers a day does not make a day of windows.
        usage.sample(&sample("a", 86_400_000, 86_400.0, 1.0));
        assert!(usage.open.len() as u64 <= SPAN_MAX + 1);
    }
}
