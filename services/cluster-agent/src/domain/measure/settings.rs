//! How a cluster's measurements are set, and what holds of it for one probe of one entity.

use std::collections::BTreeMap;

use mesh_proto::{
    Timestamp,
    measurement::{Adaptive, Setting},
};

use super::{Entity, adaptive::Bounds};

/// Shortest time between two readings, milliseconds.
pub const INTERVAL_MIN_MS: u32 = 10;
/// Longest time between two readings, milliseconds.
pub const INTERVAL_MAX_MS: u32 = 3_600_000;
/// Settings kept; the first by name go when there are more, which no decider lets happen.
const SETTINGS_MAX: usize = 4_096;
/// Where a setting gives no error that is allowed, per cent of the usual range.
const ERROR_PERCENT: f64 = 5.0;

/// What holds for one probe of one entity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InForce {
    /// Between two readings, milliseconds; where the rate follows the signal, the first one.
    pub interval_ms: u32,
    /// Measured, but not said.
    pub muted: bool,
    /// The rate follows the signal within these bounds.
    pub adaptive: Option<Bounds>,
}

/// The settings of one cluster: the fold of what was set and unset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    by_name: BTreeMap<String, Setting>,
}

impl Settings {
    /// A setting is in force, in place of the one of the same name.
    pub fn set(&mut self, name: String, setting: Setting) {
        self.by_name.insert(name, setting);
        while self.by_name.len() > SETTINGS_MAX {
            self.by_name.pop_first();
        }
    }

    /// A setting was taken back.
    pub fn unset(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    /// What holds at a time for a probe of an entity that is read each `default_ms` by default.
    pub fn of(&self, probe: &str, entity: &Entity, default_ms: u32, now: Timestamp) -> InForce {
        let fits = |asked: &str, has: &str| asked.is_empty() || asked == has;
        let rank = |(_, setting): &(&String, &Setting)| {
            let selector = setting.selector.as_ref();
            let names = |field: fn(&mesh_proto::measurement::Selector) -> &String| {
                selector.is_some_and(|selector| !field(selector).is_empty())
            };
            let place = match (names(|s| &s.entity_id), names(|s| &s.entity_kind)) {
                (true, _) => 2,
                (false, true) => 1,
                (false, false) => 0,
            };
            (place, names(|s| &s.probe))
        };
        let matching = self.by_name.iter().filter(|(_, setting)| {
            setting.until.is_none_or(|until| now < until)
                && setting.selector.as_ref().is_none_or(|selector| {
                    fits(&selector.entity_kind, entity.kind)
                        && fits(&selector.entity_id, &entity.id)
                        && fits(&selector.probe, probe)
                })
        });
        // Of equals the last: the one that comes later by name.
        let chosen = matching.max_by_key(rank).map(|(_, setting)| setting.clone()).unwrap_or_default();
        let within = |ms: u32| ms.clamp(INTERVAL_MIN_MS, INTERVAL_MAX_MS);
        let fixed_ms = within(if chosen.interval_ms == 0 { default_ms } else { chosen.interval_ms });
        let adaptive = chosen.adaptive.map(|asked| bounds(&asked, fixed_ms));
        InForce { interval_ms: adaptive.map_or(fixed_ms, |b| b.min_ms), muted: chosen.muted, adaptive }
    }

    /// When the next setting ends that is in force at a time.
    pub fn next_end(&self, now: Timestamp) -> Option<Timestamp> {
        self.by_name.values().filter_map(|setting| setting.until).filter(|until| *until > now).min()
    }
}

/// Bounds that can be: what is absent is as otherwise, the longer one is not the shorter.
fn bounds(asked: &Adaptive, fixed_ms: u32) -> Bounds {
    let or = |ms: u32, otherwise: u32| if ms == 0 { otherwise } else { ms };
    let min_ms = or(asked.interval_min_ms, fixed_ms).clamp(INTERVAL_MIN_MS, INTERVAL_MAX_MS);
    let max_ms = or(asked.interval_max_ms, min_ms).clamp(min_ms, INTERVAL_MAX_MS);
    let error = asked.error_percent;
    let error_percent = if error.is_finite() && error > 0.0 { error } else { ERROR_PERCENT };
    Bounds { min_ms, max_ms, error_percent }
}

#[cfg(test)]
mod tests {
    use mesh_proto::measurement::Selector;
    use proptest::prelude::*;

    use super::*;

    const T0: Timestamp = Timestamp::from_millis(1_000_000);

    fn setting(kind: &str, id: &str, probe: &str, interval_ms: u32) -> Setting {
        let selector = Selector { entity_kind: kind.into(), entity_id: id.into(), probe: probe.into() };
        Setting { selector: Some(selector), interval_ms, ..Setting::default() }
    }

    fn interval(settings: &Settings, probe: &str, entity: &Entity) -> u32 {
        settings.of(probe, entity, 1_000, T0).interval_ms
    }

    #[test]
    fn the_most_specific_setting_holds_and_of_equals_the_later_name() {
        let mut settings = Settings::default();
        let (node, a) = (Entity::of("node", "n"), Entity::of("instance", "a"));
        assert_eq!(interval(&settings, "cpu", &node), 1_000);
        settings.set("all".into(), setting("", "", "", 5_000));
        settings.set("cpu".into(), setting("", "", "cpu", 4_000));
        settings.set("nodes".into(), setting("node", "", "", 3_000));
        assert_eq!((interval(&settings, "cpu", &node), interval(&settings, "disk", &node)), (3_000, 3_000));
        assert_eq!((interval(&settings, "cpu", &a), interval(&settings, "process", &a)), (4_000, 5_000));
        settings.set("nodes-cpu".into(), setting("node", "", "cpu", 2_000));
        assert_eq!((interval(&settings, "cpu", &node), interval(&settings, "disk", &node)), (2_000, 3_000));
        settings.set("one".into(), setting("", "n", "", 1_500));
        settings.set("only".into(), setting("node", "n", "", 1_400));
        assert_eq!(interval(&settings, "cpu", &node), 1_400, "of equals the later name");
        settings.unset("only");
        assert_eq!(interval(&settings, "cpu", &node), 1_500);
    }

    #[test]
    fn a_setting_ends_at_its_time() {
        let mut settings = Settings::default();
        let until = T0.plus_millis(500);
        settings.set("brief".into(), Setting { until: Some(until), muted: true, ..setting("", "", "", 20) });
        let node = Entity::of("node", "n");
        assert_eq!(settings.next_end(T0), Some(until));
        let before = settings.of("cpu", &node, 1_000, T0.plus_millis(499));
        assert_eq!((before.interval_ms, before.muted), (20, true));
        let after = settings.of("cpu", &node, 1_000, until);
        assert_eq!((after.interval_ms, after.muted), (1_000, false));
        assert_eq!(settings.next_end(until), None);
    }

    proptest! {
        #[test]
        fn whatever_is_set_the_interval_stays_within_its_limits(
            interval_ms in any::<u32>(), min in any::<u32>(), max in any::<u32>(), error in any::<f64>(),
            default_ms in any::<u32>(), follows in any::<bool>(),
        ) {
            let mut settings = Settings::default();
            let adaptive = Adaptive { interval_min_ms: min, interval_max_ms: max, error_percent: error };
            settings.set("s".into(), Setting { interval_ms, adaptive: follows.then_some(adaptive), ..Setting::default() });
            let held = settings.of("cpu", &Entity::of("node", "n"), default_ms, T0);
            prop_assert!((INTERVAL_MIN_MS..=INTERVAL_MAX_MS).contains(&held.interval_ms));
            prop_assert_eq!(held.adaptive.is_some(), follows);
            if let Some(bounds) = held.adaptive {
                prop_assert!(INTERVAL_MIN_MS <= bounds.min_ms && bounds.min_ms <= bounds.max_ms && bounds.max_ms <= INTERVAL_MAX_MS);
                prop_assert!(bounds.error_percent.is_finite() && bounds.error_percent > 0.0);
            }
        }
    }
}
