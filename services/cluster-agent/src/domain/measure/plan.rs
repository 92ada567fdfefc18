//! What is read when, and what became of it: one slot for each probe of each entity.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::{Timestamp, telemetry::ProbeStatus};

use super::{
    Entity, Value,
    adaptive::Follower,
    settings::{InForce, Settings},
};

/// Slots at most; more entities are not read.
const SLOTS_MAX: usize = 20_000;
/// Characters kept of why a reading failed.
const FAILURE_CHARS_MAX: usize = 240;

#[derive(Clone, Debug, PartialEq)]
struct Slot {
    default_ms: u32,
    held: InForce,
    follower: Option<Follower>,
    due: Timestamp,
    last: Option<Timestamp>,
    readings: u64,
    failures: u64,
    failure: String,
    /// Others know of its interval and failure.
    is_known: bool,
}

impl Slot {
    fn hold(&mut self, held: InForce, now: Timestamp) {
        if held == self.held {
            return;
        }
        self.held = held;
        if held.adaptive != self.follower.as_ref().map(Follower::bounds) {
            self.follower = held.adaptive.map(Follower::new);
        }
        self.is_known = false;
        self.due = match self.last {
            Some(last) => next(last, self.held.interval_ms, self.follower.is_some()).max(now),
            None => now,
        };
    }

    fn interval_ms(&self) -> u32 {
        self.follower.as_ref().map_or(self.held.interval_ms, Follower::interval_ms)
    }

    fn status(&self, probe: &str) -> ProbeStatus {
        ProbeStatus {
            entity: 0,
            probe: probe.to_owned(),
            failure: self.failure.clone(),
            readings: self.readings,
            failures: self.failures,
            interval_ms: self.interval_ms(),
            saved: self.follower.as_ref().map_or(0, Follower::saved),
            error_percent: self.follower.as_ref().map_or(0.0, Follower::error_percent),
        }
    }
}

/// A fixed rate at whole multiples, so that agents measure at the same times; what was missed is left out.
fn next(now: Timestamp, interval_ms: u32, follows: bool) -> Timestamp {
    let interval_ms = i64::from(interval_ms.max(1));
    if follows {
        now.plus_millis(interval_ms)
    } else {
        Timestamp::from_millis((now.as_millis().div_euclid(interval_ms) + 1) * interval_ms)
    }
}

/// All slots, and the settings that they follow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    settings: Settings,
    slots: BTreeMap<(&'static str, Entity), Slot>,
    /// When a setting ends.
    ends: Option<Timestamp>,
}

impl Plan {
    /// These entities are what a probe can read now, each `default_ms` unless it is set otherwise. New ones are due at
    /// once; those not named are forgotten.
    pub fn present(&mut self, probe: &'static str, default_ms: u32, entities: &[Entity], now: Timestamp) {
        let named: BTreeSet<&Entity> = entities.iter().collect();
        self.slots.retain(|(of, entity), _| *of != probe || named.contains(entity));
        for entity in entities {
            let key = (probe, entity.clone());
            if self.slots.contains_key(&key) || self.slots.len() >= SLOTS_MAX {
                continue;
            }
            let held = self.settings.of(probe, entity, default_ms, now);
            let slot = Slot {
                default_ms,
                held,
                follower: held.adaptive.map(Follower::new),
                due: now,
                last: None,
                readings: 0,
                failures: 0,
                failure: String::new(),
                is_known: false,
            };
            self.slots.insert(key, slot);
        }
    }

    /// From now on these settings hold.
    pub fn apply(&mut self, settings: Settings, now: Timestamp) {
        self.settings = settings;
        self.hold(now);
    }

    /// Time has passed: settings that have ended hold no more.
    pub fn elapse(&mut self, now: Timestamp) {
        if self.ends.is_some_and(|ends| ends <= now) {
            self.hold(now);
        }
    }

    fn hold(&mut self, now: Timestamp) {
        for ((probe, entity), slot) in &mut self.slots {
            slot.hold(self.settings.of(probe, entity, slot.default_ms, now), now);
        }
        self.ends = self.settings.next_end(now);
    }

    /// What is due of a probe. It is not due again before its interval has passed.
    pub fn take_due(&mut self, probe: &str, now: Timestamp, is_asked: impl Fn(&Entity) -> bool) -> Vec<Entity> {
        let mut due = vec![];
        for ((of, entity), slot) in &mut self.slots {
            if *of == probe && slot.due <= now && is_asked(entity) {
                slot.due = next(now, slot.interval_ms(), slot.follower.is_some());
                due.push(entity.clone());
            }
        }
        due
    }

    /// When something is due of one of these probes, or a setting ends.
    pub fn next(&self, of: impl Fn(&str) -> bool) -> Option<Timestamp> {
        let due = self.slots.iter().filter(|((probe, _), _)| of(probe)).map(|(_, slot)| slot.due);
        due.chain(self.ends).min()
    }

    /// What was read of an entity: its rate follows it.
    pub fn follow(&mut self, probe: &'static str, entity: &Entity, at: Timestamp, values: &[Value]) {
        let Some(slot) = self.slots.get_mut(&(probe, entity.clone())) else { return };
        if let Some(follower) = slot.follower.as_mut().filter(|_| !values.is_empty()) {
            let before = follower.interval_ms();
            let wait_ms = follower.take(at, values);
            slot.is_known &= before == wait_ms;
            slot.due = at.plus_millis(i64::from(wait_ms));
        }
    }

    /// Counts a reading that had values or none, and what went wrong or lacks.
    pub fn count(
        &mut self,
        probe: &'static str,
        entity: &Entity,
        at: Timestamp,
        has_values: bool,
        failure: Option<&str>,
    ) {
        let Some(slot) = self.slots.get_mut(&(probe, entity.clone())) else { return };
        if failure.is_none() || has_values {
            slot.readings += 1;
            slot.last = Some(at);
        }
        let failure: String = failure.unwrap_or_default().chars().take(FAILURE_CHARS_MAX).collect();
        slot.failures += u64::from(!failure.is_empty());
        slot.is_known &= slot.failure == failure;
        slot.failure = failure;
    }

    /// Is what this probe reads of an entity to be said?
    pub fn is_said(&self, probe: &'static str, entity: &Entity) -> bool {
        self.slots.get(&(probe, entity.clone())).is_some_and(|slot| !slot.held.muted)
    }

    /// How the probes are: those that have changed since they were last asked for, or all.
    pub fn statuses(&mut self, all: bool) -> Vec<(Entity, ProbeStatus)> {
        let asked = self.slots.iter_mut().filter(|(_, slot)| all || !slot.is_known);
        asked
            .map(|((probe, entity), slot)| {
                slot.is_known = true;
                (entity.clone(), slot.status(probe))
            })
            .collect()
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Is there nothing to read?
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::measurement::{Adaptive, Selector, Setting};
    use proptest::prelude::*;

    use super::*;

    const T0: Timestamp = Timestamp::from_millis(1_000_000);

    fn at(ms: i64) -> Timestamp {
        T0.plus_millis(ms)
    }

    fn node() -> Entity {
        Entity::of("node", "n")
    }

    fn set(plan: &mut Plan, setting: Setting, now: Timestamp) {
        let mut settings = Settings::default();
        settings.set("s".into(), setting);
        plan.apply(settings, now);
    }

    #[test]
    fn a_new_interval_holds_from_the_next_reading_on() {
        let mut plan = Plan::default();
        plan.present("cpu", 60_000, &[node()], T0);
        assert_eq!(plan.take_due("cpu", T0, |_| true), [node()]);
        plan.count("cpu", &node(), T0, false, None);
        assert_eq!(plan.take_due("cpu", at(50), |_| true), []);
        set(&mut plan, Setting { interval_ms: 100, ..Setting::default() }, at(450));
        assert_eq!(plan.take_due("cpu", at(450), |_| true), [node()], "what it would have been read at is over");
        assert_eq!(plan.next(|_| true), Some(at(500)));
        plan.apply(Settings::default(), at(460));
        assert_eq!(plan.take_due("cpu", at(900), |_| true), []);
    }

    #[test]
    fn a_probe_that_fails_is_said_to_and_so_is_its_recovery() {
        let mut plan = Plan::default();
        plan.present("disk", 1_000, &[node()], T0);
        let first = plan.statuses(false);
        assert_eq!(first.len(), 1);
        assert!(plan.statuses(false).is_empty());
        plan.count("disk", &node(), T0, false, Some("no such file"));
        let failed = plan.statuses(false);
        let status = &failed[0].1;
        assert_eq!((status.failure.as_str(), status.failures, status.readings), ("no such file", 1, 0));
        plan.count("disk", &node(), at(1_000), false, Some("no such file"));
        assert!(plan.statuses(false).is_empty(), "nothing new");
        plan.count("disk", &node(), at(2_000), false, None);
        let well = plan.statuses(false);
        assert_eq!((well[0].1.failure.as_str(), well[0].1.failures, well[0].1.readings), ("", 2, 1));
        assert_eq!(plan.statuses(true).len(), 1);
    }

    #[test]
    fn what_is_muted_is_read_and_not_said_and_what_is_gone_is_forgotten() {
        let mut plan = Plan::default();
        let (a, b) = (Entity::of("instance", "a"), Entity::of("instance", "b"));
        plan.present("process", 1_000, &[a.clone(), b.clone()], T0);
        let selector = Some(Selector { entity_id: "a".into(), ..Selector::default() });
        set(&mut plan, Setting { muted: true, selector, ..Setting::default() }, T0);
        assert!(!plan.is_said("process", &a) && plan.is_said("process", &b));
        plan.present("process", 1_000, std::slice::from_ref(&b), T0);
        plan.present("cpu", 1_000, &[], T0);
        assert_eq!(plan.len(), 1);
        plan.count("process", &a, T0, false, None);
        assert!(!plan.is_said("process", &a));
    }

    #[test]
    fn a_setting_that_ends_gives_way_at_its_time() {
        let mut plan = Plan::default();
        plan.present("cpu", 1_000, &[node()], T0);
        set(&mut plan, Setting { interval_ms: 20, until: Some(at(70)), ..Setting::default() }, T0);
        let mut read = vec![];
        for ms in 0..2_500 {
            plan.elapse(at(ms));
            for entity in plan.take_due("cpu", at(ms), |_| true) {
                plan.count("cpu", &entity, at(ms), false, None);
                read.push(ms);
            }
        }
        assert_eq!(read, [0, 20, 40, 60, 1_000, 2_000]);
    }

    proptest! {
        #[test]
        fn at_a_fixed_rate_each_multiple_is_read_once(interval_ms in 10u32..500, start in 0i64..1_000, steps in prop::collection::vec(1i64..9, 1..300)) {
            let mut plan = Plan::default();
            let mut now = at(start);
            plan.present("cpu", interval_ms, &[node()], now);
            plan.take_due("cpu", now, |_| true);
            plan.count("cpu", &node(), now, false, None);
            let (mut read, mut before) = (0i64, now);
            for step in steps {
                before = now;
                now = now.plus_millis(step);
                let crossed = now.as_millis() / i64::from(interval_ms) - before.as_millis() / i64::from(interval_ms);
                let due = plan.take_due("cpu", now, |_| true);
                prop_assert_eq!(due.len() as i64, crossed.min(1));
                read += crossed.min(1);
                for entity in due {
                    plan.count("cpu", &entity, now, false, None);
                }
            }
            prop_assert!(before <= now);
            prop_assert_eq!(plan.statuses(true)[0].1.readings as i64, read + 1);
        }

        #[test]
        fn whatever_is_set_every_slot_is_due_within_its_longest_interval(
            intervals in prop::collection::vec((0u32..5_000, any::<bool>(), 0u32..2_000), 1..20),
        ) {
            let mut plan = Plan::default();
            plan.present("cpu", 1_000, &[node()], T0);
            let mut now = T0;
            for (interval_ms, follows, max_ms) in intervals {
                let adaptive = Adaptive { interval_min_ms: 10, interval_max_ms: max_ms, error_percent: 1.0 };
                set(&mut plan, Setting { interval_ms, adaptive: follows.then_some(adaptive), ..Setting::default() }, now);
                let longest = plan.slots.values().map(|s| s.held.adaptive.map_or(s.held.interval_ms, |b| b.max_ms)).max().unwrap();
                let next = plan.next(|_| true).unwrap();
                prop_assert!(next.millis_since(now) <= i64::from(longest), "{} {longest}", next.millis_since(now));
                now = next.max(now);
                for entity in plan.take_due("cpu", now, |_| true) {
                    plan.count("cpu", &entity, now, false, None);
                }
            }
        }
    }
}
