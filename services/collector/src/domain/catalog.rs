//! Which series there are in the store, by what they are of.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use mesh_proto::{
    Timestamp,
    telemetry::{Entity, Filter, InstanceSample, Metric, Provenance, Readings},
};

use super::select::{self, FIELDS, INSTANCE};

/// Metrics of one entity that are listed; the limits of what is taken in keep below it.
const METRICS_MAX: usize = 20_000;
/// When another entity comes and there is no room, one in this many leaves: those that were not stored for longest.
const LEAVES: usize = 10;

type Labels = BTreeMap<String, String>;

/// Metrics that are kept once, by name and labels: entities of one kind have the same ones, and one takes a kilobyte. Their
/// entity is 0.
#[derive(Clone, Debug, Default)]
struct Known {
    all: BTreeMap<String, BTreeMap<Labels, Vec<Arc<Metric>>>>,
    count: usize,
    /// How many were in use when it was last looked.
    used: usize,
}

impl Known {
    /// The kept one that is as this one.
    fn keep(&mut self, metric: &Metric) -> Arc<Metric> {
        let found = self.all.get(&metric.name).and_then(|named| named.get(&metric.labels));
        if let Some(known) = found.and_then(|alike| alike.iter().find(|known| is_same(known, metric))) {
            return known.clone();
        }
        if self.count > 2 * self.used + 64 {
            self.all.retain(|_, named| {
                named.retain(|_, alike| {
                    alike.retain(|known| Arc::strong_count(known) > 1);
                    !alike.is_empty()
                });
                !named.is_empty()
            });
            self.count = self.all.values().flat_map(BTreeMap::values).map(Vec::len).sum();
            self.used = self.count;
        }
        let new = Arc::new(Metric { entity: 0, ..metric.clone() });
        let named = self.all.entry(metric.name.clone()).or_default();
        named.entry(metric.labels.clone()).or_default().push(new.clone());
        self.count += 1;
        new
    }
}

/// One entity with a series in the store.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) entity: Entity,
    /// By name and labels; without what samples of instances hold, which is the same for all.
    metrics: Vec<Arc<Metric>>,
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
    all: HashMap<String, Listed>,
    known: Known,
    entities_max: usize,
}

/// Name of an entity's series in the store. Samples of instances lie under the instance's id alone.
pub(crate) fn series_of(entity: &Entity) -> String {
    format!("{}/{}/{}", entity.kind, entity.cluster_id, entity.id)
}

impl Listed {
    /// Lists a metric, in place of the one of its name and labels.
    fn list(&mut self, metric: &Metric, known: &mut Known) {
        match self.metrics.binary_search_by(|one| (&one.name, &one.labels).cmp(&(&metric.name, &metric.labels))) {
            Ok(place) if is_same(&self.metrics[place], metric) => {}
            Ok(place) => self.metrics[place] = known.keep(metric),
            Err(place) if self.metrics.len() < METRICS_MAX => self.metrics.insert(place, known.keep(metric)),
            Err(_) => {}
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
        Self { all: HashMap::new(), known: Known::default(), entities_max }
    }

    /// Lists what a stored pack is of.
    pub(crate) fn readings(&mut self, pack: &Readings, now: Timestamp) {
        // Those of one entity mostly follow each other.
        for metrics in pack.metrics.chunk_by(|a, b| a.entity == b.entity) {
            let entity = metrics.first().and_then(|metric| pack.entities.get(metric.entity as usize));
            let Some(entity) = entity else { continue };
            let series = series_of(entity);
            self.enter(&series, entity, now);
            let Self { all, known, .. } = self;
            if let Some(listed) = all.get_mut(&series) {
                metrics.iter().for_each(|metric| listed.list(metric, known));
            }
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
        self.enter(&sample.instance_id, &select::entity_of(sample), now);
        if let Some(listed) = self.all.get_mut(&sample.instance_id) {
            listed.provenance = provenance;
        }
    }

    fn enter(&mut self, series: &str, entity: &Entity, now: Timestamp) {
        if let Some(listed) = self.all.get_mut(series) {
            listed.heard = now;
            if listed.entity != *entity {
                listed.entity = entity.clone();
            }
            return;
        }
        if self.all.len() >= self.entities_max {
            self.leave();
        }
        let listed = Listed { entity: entity.clone(), metrics: vec![], provenance: None, heard: now };
        self.all.insert(series.to_owned(), listed);
    }

    /// Forgets those that were not stored for longest.
    fn leave(&mut self) {
        let mut heard: Vec<Timestamp> = self.all.values().map(|listed| listed.heard).collect();
        let mut left = self.all.len() / LEAVES + 1;
        let (_, last, _) = heard.select_nth_unstable(left - 1);
        let last = *last;
        self.all.retain(|_, listed| {
            let leaves = listed.heard <= last && left > 0;
            left -= usize::from(leaves);
            !leaves
        });
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
        let meant = self.all.iter().filter(|(_, listed)| select::means_entity(filter, &listed.entity));
        let mut meant: Vec<(&String, &Listed)> = meant.collect();
        meant.sort_by_key(|(series, _)| *series);
        for (series, listed) in meant {
            let fields = listed.provenance.into_iter().flat_map(|provenance| {
                FIELDS.iter().map(move |field| (field.metric(provenance), field.stored.to_owned(), field.factor))
            });
            let own = listed.metrics.iter().map(|metric| (Metric::clone(metric), metric.name.clone(), 1.0));
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
        let kept = catalog.clone();
        catalog.readings(&pack, Timestamp::from_millis(2));
        let another = InstanceSample { instance_id: "j".into(), ..sample };
        catalog.sample(&another, Timestamp::from_millis(3));
        let mut all: Vec<&str> = catalog.all.keys().map(String::as_str).collect();
        all.sort();
        assert_eq!(all, ["j", "node/edge/n"], "two is the limit: what was stored longest ago left");
        assert!(kept.all.contains_key("i"));
        catalog.forget(Timestamp::from_millis(4));
        assert!(catalog.all.is_empty());
    }

    #[test]
    fn entities_of_a_kind_share_what_is_known_of_their_metrics() {
        let mut catalog = Catalog::new(1_000);
        let label = |mode: &str| BTreeMap::from([("mode".to_owned(), mode.to_owned())]);
        let metric = |mode: &str, unit: &str, entity| Metric {
            name: "time".into(),
            unit: unit.into(),
            labels: label(mode),
            entity,
            ..Metric::default()
        };
        for number in 0..500 {
            let entity = Entity { kind: "instance".into(), id: number.to_string(), ..Entity::default() };
            let metrics = vec![metric("user", "s", 0), metric("system", "s", 0)];
            let pack = Readings { entities: vec![entity], metrics, ..Readings::default() };
            catalog.readings(&pack, Timestamp::from_millis(number));
        }
        assert_eq!((catalog.all.len(), catalog.known.count), (500, 2));
        // Another unit is another metric, until nobody has it any more.
        let entity = Entity { kind: "instance".into(), id: "7".into(), ..Entity::default() };
        for unit in 0..200 {
            let metrics = vec![metric("user", &format!("u{unit}"), 0)];
            let pack = Readings { entities: vec![entity.clone()], metrics, ..Readings::default() };
            catalog.readings(&pack, Timestamp::from_millis(1_000));
        }
        assert!(catalog.known.count < 100, "{}", catalog.known.count);
        let filter = Filter { metrics: vec!["time".into()], ..Filter::default() };
        let (asked, _) = catalog.asked(&filter, 2_000);
        assert_eq!(asked.len(), 1_000);
        assert_eq!(asked.iter().filter(|asked| asked.metric.unit == "u199").count(), 1);
    }
}
