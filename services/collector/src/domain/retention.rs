//! How long an entity's values are kept, where a setting of its cluster says so.

use std::collections::BTreeMap;

use mesh_proto::{Timestamp, measurement::Setting, telemetry::Entity};

/// Milliseconds that an entity's values are kept by the settings of its cluster; `None` if none says so. The more specific
/// setting holds, and of equals the one that comes later by name. One that names a probe says nothing here: what the probes
/// of an entity read is kept together.
pub(crate) fn of(settings: &BTreeMap<String, Setting>, entity: &Entity, now: Timestamp) -> Option<i64> {
    let rank = |setting: &&Setting| {
        let selector = setting.selector.clone().unwrap_or_default();
        let fits = |asked: &str, has: &str| asked.is_empty() || asked == has;
        let matches = fits(&selector.entity_kind, &entity.kind) && fits(&selector.entity_id, &entity.id);
        let holds = setting.retain_seconds > 0 && setting.until.is_none_or(|until| now < until);
        (matches && holds && selector.probe.is_empty())
            .then_some((!selector.entity_id.is_empty(), !selector.entity_kind.is_empty()))
    };
    let matching = settings.values().filter(|setting| rank(setting).is_some());
    matching.max_by_key(rank).map(|setting| i64::from(setting.retain_seconds) * 1_000)
}

#[cfg(test)]
mod tests {
    use mesh_proto::measurement::Selector;

    use super::*;

    fn setting(kind: &str, id: &str, probe: &str, retain_seconds: u32) -> Setting {
        let selector = Selector { entity_kind: kind.into(), entity_id: id.into(), probe: probe.into() };
        Setting { selector: Some(selector), retain_seconds, ..Setting::default() }
    }

    #[test]
    fn the_most_specific_setting_holds_while_it_is_in_force() {
        let now = Timestamp::from_millis(1_000_000);
        let node = |id: &str| Entity { kind: "node".into(), id: id.into(), ..Entity::default() };
        let mut settings = BTreeMap::from([
            ("a".to_owned(), setting("", "", "", 600)),
            ("b".to_owned(), setting("node", "", "", 300)),
            ("c".to_owned(), setting("node", "", "", 60)),
            ("d".to_owned(), setting("node", "n", "cpu", 5)),
            ("e".to_owned(), setting("node", "n", "", 0)),
        ]);
        assert_eq!(of(&settings, &node("n"), now), Some(60_000), "of equals the later name");
        assert_eq!(of(&settings, &Entity { kind: "storage".into(), ..node("n") }, now), Some(600_000));
        settings.insert("0".to_owned(), Setting { until: Some(now), ..setting("", "n", "", 10) });
        assert_eq!(of(&settings, &node("n"), now), Some(60_000), "it has ended");
        settings.insert("0".to_owned(), setting("", "n", "", 10));
        assert_eq!(of(&settings, &node("n"), now), Some(10_000));
        assert_eq!(of(&settings, &node("m"), now), Some(60_000));
        assert_eq!(of(&BTreeMap::new(), &node("n"), now), None);
    }
}
