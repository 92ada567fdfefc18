//! Which measurements a question means, and how the samples of instances look among them.

use std::collections::BTreeMap;

use mesh_core::query;
use mesh_proto::telemetry::{Entity, Filter, InstanceSample, Metric, MetricKind, Provenance};

/// Bytes of a name, an id or a label.
pub(crate) const TEXT_MAX: usize = 128;
/// Kinds of entities that are measured.
pub(crate) const KINDS: [&str; 6] = ["node", "cluster", "instance", "storage", "application", "route"];
/// The kind of entity that samples of instances are of.
pub(crate) const INSTANCE: &str = "instance";
/// Kind of the entities that requests go through to; their ids are those of instances.
pub(crate) const ROUTE: &str = "route";
/// The probe that samples of instances come from.
const INSTANCE_PROBE: &str = "instance";

/// Groups of metrics, and the beginnings of the names in each. What is in none is `general`.
const GROUPS: [(&str, &[&str]); 7] = [
    ("cpu", &["system.cpu.", "process.cpu.", "container.cpu.", "system.linux.pressure.cpu", "cgroup.cpu."]),
    (
        "memory",
        &[
            "system.memory.",
            "system.paging.",
            "process.memory.",
            "container.memory.",
            "system.linux.pressure.memory",
            "cgroup.memory.",
            "system.linux.memory.",
        ],
    ),
    ("network", &["system.network.", "process.network.", "container.network.", "network."]),
    (
        "storage",
        &[
            "system.disk.",
            "system.filesystem.",
            "process.disk.",
            "container.disk.",
            "storage.",
            "system.linux.pressure.io",
            "container.filesystem.",
            "cgroup.io.",
        ],
    ),
    ("energy", &["hw.power", "hw.energy", "energy.", "hw.temperature"]),
    ("traffic", &["http.", "rpc."]),
    ("application", &["application."]),
];
const GENERAL: &str = "general";
const APPLICATION: &str = "application";

/// A field of a sample of an instance, as a metric.
pub(crate) struct Field {
    /// Its name in the series of the instance.
    pub(crate) stored: &'static str,
    /// As a metric.
    pub(crate) name: &'static str,
    /// In UCUM.
    pub(crate) unit: &'static str,
    kind: MetricKind,
    of: fn(&InstanceSample) -> f64,
    /// What a stored value is multiplied with.
    pub(crate) factor: f64,
}

/// The fields of a sample of an instance, by OpenTelemetry's names for containers where there is one.
pub(crate) const FIELDS: [Field; 7] = [
    Field {
        stored: "cpu_milli",
        name: "container.cpu.usage",
        unit: "{cpu}",
        kind: MetricKind::Gauge,
        of: |s| s.cpu_milli,
        factor: 1e-3,
    },
    Field {
        stored: "cpu_percent",
        name: "container.cpu.utilization",
        unit: "1",
        kind: MetricKind::Gauge,
        of: |s| s.cpu_percent,
        factor: 0.01,
    },
    Field {
        stored: "memory_bytes",
        name: "container.memory.usage",
        unit: "By",
        kind: MetricKind::Gauge,
        of: |s| s.memory_bytes as f64,
        factor: 1.0,
    },
    Field {
        stored: "io_read_rate",
        name: "container.disk.read.rate",
        unit: "By/s",
        kind: MetricKind::Gauge,
        of: |s| s.io_read_rate,
        factor: 1.0,
    },
    Field {
        stored: "io_write_rate",
        name: "container.disk.write.rate",
        unit: "By/s",
        kind: MetricKind::Gauge,
        of: |s| s.io_write_rate,
        factor: 1.0,
    },
    Field {
        stored: "restarts",
        name: "container.restarts",
        unit: "{restart}",
        kind: MetricKind::Gauge,
        of: |s| f64::from(s.restarts),
        factor: 1.0,
    },
    Field {
        stored: "replicas_running",
        name: "container.replicas",
        unit: "{replica}",
        kind: MetricKind::Gauge,
        of: |s| f64::from(s.replicas_running),
        factor: 1.0,
    },
];

impl Field {
    /// The field as a metric of this origin.
    pub(crate) fn metric(&self, provenance: Provenance) -> Metric {
        Metric {
            entity: 0,
            name: self.name.to_owned(),
            unit: self.unit.to_owned(),
            kind: self.kind.into(),
            labels: BTreeMap::new(),
            provenance: provenance.into(),
            probe: INSTANCE_PROBE.to_owned(),
        }
    }

    /// Its value in a sample, in its unit.
    pub(crate) fn value(&self, sample: &InstanceSample) -> f64 {
        (self.of)(sample) * self.factor
    }
}

/// Can this be an id, a name or a label: 1 to 128 bytes that show?
pub(crate) fn is_label(text: &str) -> bool {
    (1..=TEXT_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// The instance of a sample, as an entity.
pub(crate) fn entity_of(sample: &InstanceSample) -> Entity {
    Entity {
        kind: INSTANCE.to_owned(),
        id: sample.instance_id.clone(),
        cluster_id: sample.cluster_id.clone(),
        node: String::new(),
        owner: sample.owner.clone(),
    }
}

/// The group of a metric.
pub(crate) fn group_of(entity_kind: &str, metric: &str) -> &'static str {
    if entity_kind == APPLICATION {
        return APPLICATION;
    }
    let found = GROUPS.iter().find(|(_, beginnings)| beginnings.iter().any(|beginning| metric.starts_with(beginning)));
    found.map_or(GENERAL, |(group, _)| group)
}

/// Says what is wrong with a filter, if anything is.
///
/// # Errors
/// A kind or group that does not exist, a text that no entity, metric or label can have, too many of them.
pub(crate) fn check(filter: &Filter) -> Result<(), query::Error> {
    const MAX: usize = 1_000;
    if !filter.entity_kind.is_empty() && !KINDS.contains(&filter.entity_kind.as_str()) {
        let hint = format!("use one of {}, or none for all", KINDS.join(", "));
        return Err(query::Error::invalid(format!("{:?} is not a kind of entity", shown(&filter.entity_kind)), hint));
    }
    let known = |group: &String| group == GENERAL || GROUPS.iter().any(|(name, _)| name == group);
    if let Some(wrong) = filter.groups.iter().find(|group| !known(group)) {
        let names: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).chain([GENERAL]).collect();
        let hint = format!("use some of {}", names.join(", "));
        return Err(query::Error::invalid(format!("{:?} is not a group of metrics", shown(wrong)), hint));
    }
    let texts = filter.entity_ids.iter().chain(&filter.metrics).chain(filter.labels.iter().flat_map(|(k, v)| [k, v]));
    let single = [&filter.cluster_id, &filter.node, &filter.owner].into_iter().filter(|text| !text.is_empty());
    if let Some(wrong) = texts.chain(single).find(|text| !is_label(text)) {
        let what = format!("{:?} cannot be an id, a name or a label", shown(wrong));
        return Err(query::Error::invalid(what, "use 1 to 128 printable characters"));
    }
    if filter.entity_ids.len() > MAX || filter.metrics.len() > MAX || filter.labels.len() > MAX {
        return Err(query::Error::invalid(
            format!("the filter names more than {MAX} things"),
            "ask in several questions",
        ));
    }
    Ok(())
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Does a filter mean this entity?
pub(crate) fn means_entity(filter: &Filter, entity: &Entity) -> bool {
    let is = |wanted: &str, given: &str| wanted.is_empty() || wanted == given;
    is(&filter.entity_kind, &entity.kind)
        && is(&filter.cluster_id, &entity.cluster_id)
        && is(&filter.node, &entity.node)
        && is(&filter.owner, &entity.owner)
        && (filter.entity_ids.is_empty() || filter.entity_ids.contains(&entity.id))
}

/// Does a filter mean the instance of a sample? As [`means_entity`] of its [`entity_of`].
pub(crate) fn means_instance(filter: &Filter, sample: &InstanceSample) -> bool {
    let is = |wanted: &str, given: &str| wanted.is_empty() || wanted == given;
    is(&filter.entity_kind, INSTANCE)
        && is(&filter.cluster_id, &sample.cluster_id)
        && filter.node.is_empty()
        && is(&filter.owner, &sample.owner)
        && (filter.entity_ids.is_empty() || filter.entity_ids.contains(&sample.instance_id))
}

/// Does a filter mean this metric of an entity of this kind?
pub(crate) fn means_metric(filter: &Filter, entity_kind: &str, metric: &Metric) -> bool {
    let named = |wanted: &String| match wanted.strip_suffix('*') {
        Some(beginning) => metric.name.starts_with(beginning),
        None => *wanted == metric.name,
    };
    (filter.metrics.is_empty() || filter.metrics.iter().any(named))
        && filter.labels.iter().all(|(name, value)| metric.labels.get(name) == Some(value))
        && (filter.groups.is_empty() || filter.groups.iter().any(|group| group == group_of(entity_kind, &metric.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_means_what_it_names_and_everything_when_it_names_nothing() {
        let entity = Entity {
            kind: "node".into(),
            id: "n1".into(),
            cluster_id: "edge".into(),
            node: "n1".into(),
            ..Entity::default()
        };
        let metric = Metric {
            name: "system.memory.usage".into(),
            labels: BTreeMap::from([("state".to_owned(), "used".to_owned())]),
            ..Metric::default()
        };
        let means = |filter: &Filter| means_entity(filter, &entity) && means_metric(filter, &entity.kind, &metric);
        let yes = [
            Filter::default(),
            Filter { entity_kind: "node".into(), entity_ids: vec!["n0".into(), "n1".into()], ..Filter::default() },
            Filter { metrics: vec!["system.memory.*".into()], cluster_id: "edge".into(), ..Filter::default() },
            Filter { metrics: vec!["system.memory.usage".into()], node: "n1".into(), ..Filter::default() },
            Filter { groups: vec!["cpu".into(), "memory".into()], ..Filter::default() },
            Filter { labels: metric.labels.clone(), ..Filter::default() },
        ];
        let no = [
            Filter { entity_kind: "instance".into(), ..Filter::default() },
            Filter { entity_ids: vec!["n2".into()], ..Filter::default() },
            Filter { owner: "local".into(), ..Filter::default() },
            Filter { metrics: vec!["system.cpu.*".into()], ..Filter::default() },
            Filter { groups: vec!["general".into()], ..Filter::default() },
            Filter { labels: BTreeMap::from([("state".into(), "free".into())]), ..Filter::default() },
        ];
        assert!(yes.iter().all(|filter| check(filter).is_ok() && means(filter)));
        assert!(no.iter().all(|filter| check(filter).is_ok() && !means(filter)));
        assert!(check(&Filter { entity_kind: "planet".into(), ..Filter::default() }).is_err());
        assert!(check(&Filter { groups: vec!["colour".into()], ..Filter::default() }).is_err());
        assert!(check(&Filter { entity_ids: vec!["\u{7}".into()], ..Filter::default() }).is_err());
    }

    #[test]
    fn an_instance_is_meant_by_its_sample_as_by_its_entity() {
        let sample = InstanceSample {
            instance_id: "i".into(),
            cluster_id: "edge".into(),
            owner: "ann".into(),
            ..InstanceSample::default()
        };
        let filters = [
            Filter::default(),
            Filter { entity_kind: INSTANCE.into(), owner: "ann".into(), ..Filter::default() },
            Filter { entity_kind: "node".into(), ..Filter::default() },
            Filter { cluster_id: "edge".into(), entity_ids: vec!["h".into(), "i".into()], ..Filter::default() },
            Filter { cluster_id: "core".into(), ..Filter::default() },
            Filter { node: "n".into(), ..Filter::default() },
            Filter { owner: "bob".into(), ..Filter::default() },
            Filter { entity_ids: vec!["h".into()], ..Filter::default() },
        ];
        let meant = filters.each_ref().map(|filter| means_instance(filter, &sample));
        assert_eq!(meant, [true, true, false, true, false, false, false, false]);
        assert_eq!(meant, filters.each_ref().map(|filter| means_entity(filter, &entity_of(&sample))));
    }

    #[test]
    fn every_field_of_a_sample_is_in_a_base_unit() {
        let sample = InstanceSample { cpu_milli: 1_500.0, cpu_percent: 50.0, memory_bytes: 7, ..Default::default() };
        let values: Vec<f64> = FIELDS.iter().take(3).map(|field| field.value(&sample)).collect();
        assert_eq!(values, [1.5, 0.5, 7.0]);
        for field in &FIELDS {
            assert_eq!(mesh_core::units::normalise(field.unit), Some((1.0, field.unit.to_owned())), "{}", field.name);
            assert_eq!(
                group_of(INSTANCE, field.name) == GENERAL,
                field.name.ends_with("restarts") || field.name.ends_with("replicas")
            );
        }
    }
}
