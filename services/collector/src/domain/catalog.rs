//! Which series there are in the store, by what they are of.

use std::collections::BTreeMap;

use mesh_proto::{
    Timestamp,
    telemetry::{Entity, Filter, InstanceSample, Metric, Provenance, Readings},
};

use super::select::{self, FIELDS, INSTANCE};

/// Metrics by name and labels, which they do not have themselves: a map of labels takes half a kilobyte.
type Metrics = BTreeMap<String, BTreeMap<BTreeMap<String, String>, Metric>>;

/// Metrics of one entity that are listed; the limits of what is taken in keep below it.
const METRICS_MAX: usize = 20_000;

/// One entity with a series in the store.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) entity: Entity,
    /// Without what samples of instances hold: those are the same for all.
    metrics: Metrics,
    /// How many.
    count: usize,
    /// Of its samples, if it is an instance that has some.
    provenance: Option<Provenance>,
    heard: Timestamp,
}

/// What is asked of one series of the store.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    /// Its name in the store.
    pub(crate) series: String,
    pub(crate) entity: Entity,
    pub(crate) metric: Metric,
    /// Name of the value in the store, and the factor to the metric's unit.
    pub(crate) value: String,
    pub(crate) factor: f64,
}

/// All of them, by name in the store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog {
    all: BTreeMap<String, Listed>,
    entities_max: usize,
}

/// Name of an entity's series in the store. Samples of instances lie under the instance's id alone.
pub(crate) fn series_of(entity: &Entity) -> String {
    format!("{}/{}/{}", entity.kind, entity.cluster_id, entity.id)
}

impl Listed {
    /// Lists a metric, in place of the one of its name and labels.
    fn list(&mut self, metric: &Metric) {
        let new = || Metric {
            entity: 0,
            name: String::new(),
            unit: metric.unit.clone(),
            kind: metric.kind,
            labels: BTreeMap::new(),
            provenance: metric.provenance,
            probe: metric.probe.clone(),
        };
        let known = self.metrics.get_mut(&metric.name).and_then(|named| named.get_mut(&metric.labels));
        match known {
            Some(known) if is_same(known, metric) => {}
            Some(known) => *known = new(),
            None if self.count < METRICS_MAX => {
                self.count += 1;
                self.metrics.entry(metric.name.clone()).or_default().insert(metric.labels.clone(), new());
            }
            None => {}
        }
    }
}

/// Are they one but for their entity's number? Names and labels are.
fn is_same(known: &Metric, metric: &Metric) -> bool {
    let Metric { entity: _, name: _, unit, kind, labels: _, provenance, probe } = known;
    (unit, kind, provenance, probe) == (&metric.unit, &metric.kind, &metric.provenance, &metric.probe)
}

impl Catalog {
    pub(crate) fn new(entities_max: usize) -> Self {
        Self { all: BTreeMap::new(), entities_max }
    }

    /// Lists what a stored pack is of.
    pub(crate) fn readings(&mut self, pack: &Readings, now: Timestamp) {
        // Those of one entity mostly follow each other.
        for metrics in pack.metrics.chunk_by(|a, b| a.entity == b.entity) {
            let entity = metrics.first().and_then(|metric| pack.entities.get(metric.entity as usize));
            let Some(entity) = entity else { continue };
            let Some(listed) = self.entry(&series_of(entity), entity, now) else { continue };
            metrics.iter().for_each(|metric| listed.list(metric));
        }
    }

    /// Lists an instance that a stored sample is of.
    pub(crate) fn sample(&mut self, sample: &InstanceSample, now: Timestamp) {
        let provenance = Some(Provenance::try_from(sample.provenance).unwrap_or_default());
        if let Some(listed) = self.all.get_mut(&sample.instance_id)
            && (&listed.entity.cluster_id, &listed.entity.owner) == (&sample.cluster_id, &sample.owner)
        {
            (listed.provenance, listed.heard) = (provenance, now);
            return;
        }
        if let Some(listed) = self.entry(&sample.instance_id, &select::entity_of(sample), now) {
            listed.provenance = provenance;
        }
    }

    fn entry(&mut self, series: &str, entity: &Entity, now: Timestamp) -> Option<&mut Listed> {
        if !self.all.contains_key(series) {
            if self.all.len() >= self.entities_max {
                return None;
            }
            let (entity, metrics) = (entity.clone(), Metrics::new());
            let listed = Listed { entity, metrics, count: 0, provenance: None, heard: now };
            self.all.insert(series.to_owned(), listed);
        }
        let listed = self.all.get_mut(series)?;
        if listed.entity != *entity {
            listed.entity = entity.clone();
        }
        listed.heard = now;
        Some(listed)
    }

    /// Each series and what it is of.
    pub(crate) fn entities(&self) -> impl Iterator<Item = (&str, &Entity)> {
        self.all.iter().map(|(series, listed)| (series.as_str(), &listed.entity))
    }

    /// Forgets what has not been stored since a time.
    pub(crate) fn forget(&mut self, before: Timestamp) {
        self.all.retain(|_, listed| listed.heard >= before);
    }

    /// The series that a filter means, in order, at most `max`; and whether there are more.
    pub(crate) fn asked(&self, filter: &Filter, max: usize) -> (Vec<Asked>, bool) {
        let mut found = vec![];
        for (series, listed) in self.all.iter().filter(|(_, listed)| select::means_entity(filter, &listed.entity)) {
            let fields = listed.provenance.into_iter().flat_map(|provenance| {
                FIELDS.iter().map(move |field| (field.metric(provenance), field.stored.to_owned(), field.factor))
            });
            let own = listed.metrics.iter().flat_map(|(name, named)| {
                named.iter().map(move |(labels, metric)| {
                    let metric = Metric { name: name.clone(), labels: labels.clone(), ..metric.clone() };
                    (metric, name.clone(), 1.0)
                })
            });
            for (metric, value, factor) in fields.chain(own) {
                let kind = if listed.provenance.is_some() { INSTANCE } else { listed.entity.kind.as_str() };
                if !select::means_metric(filter, kind, &metric) {
                    continue;
                }
                if found.len() == max {
                    return (found, true);
                }
                found.push(Asked { series: series.clone(), entity: listed.entity.clone(), metric, value, factor });
            }
        }
        (found, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_is_found_by_what_it_is_of() {
        let mut catalog = Catalog::new(2);
        let now = Timestamp::from_millis(1);
        let sample = InstanceSample {
            instance_id: "i".into(),
            cluster_id: "edge".into(),
            owner: "ann".into(),
            ..Default::default()
        };
        catalog.sample(&sample, now);
        let entity = Entity { kind: "node".into(), id: "n".into(), cluster_id: "edge".into(), ..Entity::default() };
        let metric = |name: &str| Metric { name: name.into(), ..Metric::default() };
        let pack = Readings { entities: vec![entity], metrics: vec![metric("a"), metric("b")], ..Readings::default() };
        catalog.readings(&pack, now);
        let names = |filter: &Filter, max| {
            let (asked, more) = catalog.asked(filter, max);
            (asked.into_iter().map(|a| (a.series, a.metric.name)).collect::<Vec<_>>(), more)
        };
        let of = |kind: &str| Filter { entity_kind: kind.into(), ..Filter::default() };
        let node = |name: &str| ("node/edge/n".to_owned(), name.to_owned());
        assert_eq!(names(&of("node"), 9), (vec![node("a"), node("b")], false));
        assert_eq!(names(&of("node"), 1), (vec![node("a")], true));
        assert_eq!(names(&of("instance"), 99).0.len(), FIELDS.len());
        assert_eq!(
            names(&Filter { owner: "ann".into(), groups: vec!["memory".into()], ..Filter::default() }, 9).0,
            [("i".to_owned(), "container.memory.usage".to_owned())]
        );
        let another = InstanceSample { instance_id: "j".into(), ..sample };
        catalog.sample(&another, now);
        assert!(!catalog.all.contains_key("j"), "two is the limit");
        catalog.forget(Timestamp::from_millis(2));
        assert!(catalog.all.is_empty());
    }
}
