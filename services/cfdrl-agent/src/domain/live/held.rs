//! Every instance, and what those of one cluster ask for and use together: kept as it changes, so that an advice costs the
//! same however many instances run.

use std::{
    collections::BTreeMap,
    ops::{AddAssign, Deref, SubAssign},
};

use super::{Instance, Measured};

/// What some instances ask for and use, in whole units so that what was added can be taken off again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    instances: u64,
    cpu_milli: u64,
    memory_bytes: u64,
    load_micro: u64,
    before_micro: u64,
    used_bytes: u64,
}

impl Sum {
    pub(super) fn of(instance: &Instance) -> Self {
        let n = u64::from(instance.replicas.max(1));
        let (cpu_milli, memory_bytes) =
            (instance.replica.cpu_milli.saturating_mul(n), instance.replica.memory_bytes.saturating_mul(n));
        let asked_micro = cpu_milli.saturating_mul(1_000);
        // A cast from a number that is too large, or none, stays within the range.
        let micro = |milli: f64| (milli * 1e3).round() as u64;
        let measured = instance.measured;
        Self {
            instances: 1,
            cpu_milli,
            memory_bytes,
            load_micro: measured.map_or(asked_micro, |m| micro(m.load_milli)),
            before_micro: measured.map_or(asked_micro, |m| micro(m.before_milli)),
            used_bytes: measured.map_or(memory_bytes, |m| m.memory_bytes.round() as u64),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.instances == 0
    }

    /// All of them as one instance.
    pub(super) fn together(&self) -> Instance {
        let mut one = Instance::default();
        (one.replica.cpu_milli, one.replica.memory_bytes) = (self.cpu_milli, self.memory_bytes);
        one.measured = Some(Measured {
            load_milli: self.load_micro as f64 / 1e3,
            before_milli: self.before_micro as f64 / 1e3,
            memory_bytes: self.used_bytes as f64,
            ..Measured::default()
        });
        one
    }
}

/// Wraps round like its opposite: what is added and taken off again leaves nothing.
impl AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        self.instances = self.instances.wrapping_add(other.instances);
        self.cpu_milli = self.cpu_milli.wrapping_add(other.cpu_milli);
        self.memory_bytes = self.memory_bytes.wrapping_add(other.memory_bytes);
        self.load_micro = self.load_micro.wrapping_add(other.load_micro);
        self.before_micro = self.before_micro.wrapping_add(other.before_micro);
        self.used_bytes = self.used_bytes.wrapping_add(other.used_bytes);
    }
}

impl SubAssign for Sum {
    fn sub_assign(&mut self, other: Self) {
        self.instances = self.instances.wrapping_sub(other.instances);
        self.cpu_milli = self.cpu_milli.wrapping_sub(other.cpu_milli);
        self.memory_bytes = self.memory_bytes.wrapping_sub(other.memory_bytes);
        self.load_micro = self.load_micro.wrapping_sub(other.load_micro);
        self.before_micro = self.before_micro.wrapping_sub(other.before_micro);
        self.used_bytes = self.used_bytes.wrapping_sub(other.used_bytes);
    }
}

/// All instances by id.
#[derive(Debug, Default)]
pub(super) struct Held {
    all: BTreeMap<String, Instance>,
    by_cluster: BTreeMap<String, Sum>,
}

impl Deref for Held {
    type Target = BTreeMap<String, Instance>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl Held {
    /// What the instances of each cluster, by the newest placement of each, ask for and use.
    pub(super) fn by_cluster(&self) -> &BTreeMap<String, Sum> {
        &self.by_cluster
    }

    pub(super) fn insert(&mut self, id: String, instance: Instance) {
        self.add(&instance);
        if let Some(before) = self.all.insert(id, instance) {
            self.take_off(&before);
        }
    }

    pub(super) fn remove(&mut self, id: &str) {
        if let Some(before) = self.all.remove(id) {
            self.take_off(&before);
        }
    }

    /// Changes an instance, if there is one.
    pub(super) fn change(&mut self, id: &str, change: impl FnOnce(&mut Instance)) {
        let Some(instance) = self.all.get_mut(id) else { return };
        let (cluster, sum) = (instance.cluster().map(str::to_owned), Sum::of(instance));
        change(instance);
        let now = Sum::of(instance);
        if instance.cluster() == cluster.as_deref() {
            if let Some(total) = cluster.and_then(|cluster| self.by_cluster.get_mut(&cluster)) {
                *total -= sum;
                *total += now;
            }
            return;
        }
        let to = instance.cluster().map(str::to_owned);
        self.subtract(cluster.as_deref(), sum);
        if let Some(to) = to {
            *self.by_cluster.entry(to).or_default() += now;
        }
    }

    fn add(&mut self, instance: &Instance) {
        if let Some(cluster) = instance.cluster() {
            *self.by_cluster.entry(cluster.to_owned()).or_default() += Sum::of(instance);
        }
    }

    fn take_off(&mut self, instance: &Instance) {
        self.subtract(instance.cluster(), Sum::of(instance));
    }

    fn subtract(&mut self, cluster: Option<&str>, sum: Sum) {
        let Some(cluster) = cluster else { return };
        let Some(total) = self.by_cluster.get_mut(cluster) else { return };
        *total -= sum;
        if total.is_empty() {
            self.by_cluster.remove(cluster);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn instance(cluster: u8, cpu_milli: u64, load: Option<f64>) -> Instance {
        let mut instance = Instance { replicas: 1, ..Instance::default() };
        instance.replica.cpu_milli = cpu_milli;
        instance.measured = load.map(|load_milli| Measured { load_milli, ..Measured::default() });
        if cluster > 0 {
            instance.holds.insert(1, format!("c{cluster}"));
        }
        instance
    }

    proptest! {
        #[test]
        fn the_sums_are_those_of_what_is_there(
            steps in prop::collection::vec((0..6_u8, 0..3_u8, 0..1_000_u64, prop::option::of(0.0..1e6_f64), 0..4_u8), 0..60)
        ) {
            let mut held = Held::default();
            for (id, cluster, cpu, load, step) in steps {
                let id = format!("i{id}");
                match step {
                    0 => held.remove(&id),
                    1 => held.change(&id, |one| *one = instance(cluster, cpu, load)),
                    _ => held.insert(id, instance(cluster, cpu, load)),
                }
            }
            let mut expected = BTreeMap::<String, Sum>::new();
            for one in held.values() {
                if let Some(cluster) = one.cluster() {
                    *expected.entry(cluster.to_owned()).or_default() += Sum::of(one);
                }
            }
            prop_assert_eq!(held.by_cluster(), &expected);
        }
    }
}
