//! Readings, packed by column.

use std::collections::BTreeMap;

use mesh_proto::{
    Timestamp,
    telemetry::{self, ProbeStatus, Readings},
};

use super::{Entity, Metric, Value};

/// Values in one pack.
pub const VALUES_MAX: usize = 4_096;
/// Statuses in one pack.
const STATUSES_MAX: usize = 1_024;

/// What is to be said, until it is.
#[derive(Clone, Debug, Default)]
pub struct Packer {
    cluster_id: String,
    node: String,
    full: Vec<Open>,
    open: Open,
}

#[derive(Clone, Debug, Default)]
struct Open {
    entities: Vec<telemetry::Entity>,
    entity_of: BTreeMap<Entity, u32>,
    metrics: Vec<telemetry::Metric>,
    metric_of: BTreeMap<(u32, &'static str, Metric), u32>,
    metric: Vec<u32>,
    at: Vec<Timestamp>,
    values: Vec<f64>,
    probes: Vec<ProbeStatus>,
}

fn index(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl Open {
    fn entity(&mut self, entity: &Entity, cluster_id: &str, node: &str) -> u32 {
        if let Some(known) = self.entity_of.get(entity) {
            return *known;
        }
        let number = index(self.entities.len());
        self.entities.push(telemetry::Entity {
            kind: entity.kind.to_owned(),
            id: entity.id.clone(),
            cluster_id: cluster_id.to_owned(),
            node: node.to_owned(),
            owner: entity.owner.clone(),
        });
        self.entity_of.insert(entity.clone(), number);
        number
    }

    fn metric(&mut self, entity: u32, probe: &'static str, metric: Metric) -> u32 {
        let key = (entity, probe, metric);
        if let Some(known) = self.metric_of.get(&key) {
            return *known;
        }
        let number = index(self.metrics.len());
        let metric = &key.2;
        self.metrics.push(telemetry::Metric {
            entity,
            name: metric.name.to_string(),
            unit: metric.unit.to_string(),
            kind: metric.kind.into(),
            labels: metric.labels.iter().map(|(name, text)| (name.to_string(), text.clone())).collect(),
            provenance: metric.provenance.into(),
            probe: probe.to_owned(),
        });
        self.metric_of.insert(key, number);
        number
    }
}

impl Packer {
    /// For one cluster and its node.
    pub fn new(cluster_id: impl Into<String>, node: impl Into<String>) -> Self {
        Self { cluster_id: cluster_id.into(), node: node.into(), ..Self::default() }
    }

    /// Values of one entity, measured at one time. What is not finite is left out.
    pub fn add(&mut self, probe: &'static str, entity: &Entity, at: Timestamp, values: Vec<Value>) {
        for value in values.into_iter().filter(|value| value.value.is_finite()) {
            if self.open.values.len() >= VALUES_MAX {
                self.full.push(std::mem::take(&mut self.open));
            }
            let entity = self.open.entity(entity, &self.cluster_id, &self.node);
            let metric = self.open.metric(entity, probe, value.metric);
            self.open.metric.push(metric);
            self.open.at.push(value.at.unwrap_or(at));
            self.open.values.push(value.value);
        }
    }

    /// How a probe of an entity is.
    pub fn status(&mut self, entity: &Entity, status: ProbeStatus) {
        if self.open.probes.len() >= STATUSES_MAX {
            self.full.push(std::mem::take(&mut self.open));
        }
        let entity = self.open.entity(entity, &self.cluster_id, &self.node);
        self.open.probes.push(ProbeStatus { entity, ..status });
    }

    /// Is there nothing to say?
    pub fn is_empty(&self) -> bool {
        self.full.is_empty() && self.open.values.is_empty() && self.open.probes.is_empty()
    }

    /// Everything up to now, in packs of this time: what was measured before lies before it. So whoever gets a pack sees by
    /// its time how far the sender's clock is off.
    pub fn take(&mut self, now: Timestamp) -> Vec<Readings> {
        if self.is_empty() {
            return vec![];
        }
        let mut all = std::mem::take(&mut self.full);
        all.push(std::mem::take(&mut self.open));
        all.into_iter()
            .map(|open| Readings {
                cluster_id: self.cluster_id.clone(),
                at: Some(now),
                entities: open.entities,
                metrics: open.metrics,
                metric: open.metric,
                after_ms: open.at.iter().map(|at| i32::try_from(at.millis_since(now)).unwrap_or(i32::MIN)).collect(),
                values: open.values,
                probes: open.probes,
                traffic: vec![],
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::measure::catalog;

    const T0: Timestamp = Timestamp::from_millis(1_000_000);

    #[test]
    fn a_pack_names_each_entity_and_metric_once() {
        let mut packer = Packer::new("edge", "n1");
        let node = Entity::of("node", "n1");
        for ms in [0, 100] {
            let busy = catalog::CPU_BUSY.value(0.5, &[]);
            packer.add("cpu", &node, T0.plus_millis(ms), vec![busy, catalog::LOAD_1M.value(f64::NAN, &[])]);
        }
        packer.status(&node, ProbeStatus { probe: "cpu".into(), ..ProbeStatus::default() });
        let packs = packer.take(T0.plus_millis(150));
        assert_eq!(packs.len(), 1);
        let pack = &packs[0];
        assert!(pack.fits());
        assert_eq!((pack.entities.len(), pack.metrics.len()), (1, 1));
        assert_eq!((&pack.values[..], &pack.after_ms[..]), (&[0.5, 0.5][..], &[-150, -50][..]));
        assert_eq!((pack.entities[0].node.as_str(), pack.metrics[0].probe.as_str()), ("n1", "cpu"));
        assert!(packer.is_empty() && packer.take(T0).is_empty());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_pack_is_too_large(counts in prop::collection::vec((0usize..3_000, 0usize..400), 1..12)) {
            let mut packer = Packer::new("edge", "n1");
            let (mut values, mut statuses) = (0, 0);
            for (number, (count, said)) in counts.iter().enumerate() {
                let entity = Entity::of("instance", number.to_string());
                let read = (0..*count).map(|n| catalog::TEMPERATURE.value(n as f64, &[&n.to_string(), "x"])).collect();
                packer.add("temperature", &entity, T0, read);
                for _ in 0..*said {
                    packer.status(&entity, ProbeStatus::default());
                }
                values += count;
                statuses += said;
            }
            let packs = packer.take(T0);
            prop_assert!(packs.iter().all(|pack| pack.fits() && pack.values.len() <= VALUES_MAX && pack.probes.len() <= STATUSES_MAX));
            prop_assert_eq!(packs.iter().map(|pack| pack.values.len()).sum::<usize>(), values);
            prop_assert_eq!(packs.iter().map(|pack| pack.probes.len()).sum::<usize>(), statuses);
        }
    }
}
