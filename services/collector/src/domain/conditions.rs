//! Conditions: lines that a value may cross, each with a time that it must hold and a way back of its own.

use std::collections::BTreeMap;

use mesh_proto::{
    Timestamp,
    measurement::{Condition, Side},
    observation::ThresholdCrossed,
    telemetry::{Crossing, Entity},
};

/// Owner and name of a condition.
pub(crate) type Name = (String, String);
/// Cluster, entity kind, entity id and labels of what a condition is watched on.
type Place = (String, String, String, BTreeMap<String, String>);

/// Places watched by one condition; further ones are not, and are counted.
const PLACES_MAX: usize = 10_000;

/// A measurement that conditions look at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    /// What was measured.
    pub(crate) entity: &'a Entity,
    /// The metric.
    pub(crate) metric: &'a str,
    /// Its labels.
    pub(crate) labels: &'a BTreeMap<String, String>,
    /// When.
    pub(crate) at: Timestamp,
    /// What it was.
    pub(crate) value: f64,
}

/// Where one place is with one condition.
#[derive(Clone, Debug, Default, PartialEq)]
struct Line {
    raised: bool,
    /// Since when it is on the other side, if it is.
    turning: Option<Timestamp>,
    /// First value past the line, while it is raised.
    since: Timestamp,
    value: f64,
    entity: Entity,
}

/// All conditions and where their places are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    all: BTreeMap<Name, Condition>,
    by_metric: BTreeMap<String, Vec<Name>>,
    /// How many there are of a kind of entity.
    by_kind: BTreeMap<String, usize>,
    lines: BTreeMap<Name, BTreeMap<Place, Line>>,
    unwatched: u64,
}

impl Conditions {
    /// Watches a condition, in place of the one of its name.
    pub(crate) fn define(&mut self, condition: Condition) {
        let name = (condition.owner.clone(), condition.condition_id.clone());
        if self.all.get(&name) == Some(&condition) {
            return;
        }
        // One that is new may have lines from before the last restart.
        if self.all.contains_key(&name) {
            self.drop(&name);
        }
        self.by_metric.entry(condition.metric.clone()).or_default().push(name.clone());
        *self.by_kind.entry(condition.entity_kind.clone()).or_default() += 1;
        self.all.insert(name, condition);
    }

    /// Watches a condition no longer.
    pub(crate) fn drop(&mut self, name: &Name) {
        if let Some(before) = self.all.remove(name) {
            if let Some(names) = self.by_metric.get_mut(&before.metric) {
                names.retain(|other| other != name);
                if names.is_empty() {
                    self.by_metric.remove(&before.metric);
                }
            }
            if let Some(count) = self.by_kind.get_mut(&before.entity_kind) {
                *count -= 1;
            }
            self.by_kind.retain(|_, count| *count > 0);
        }
        self.lines.remove(name);
    }

    /// Does any condition look at this metric?
    pub(crate) fn looks_at(&self, metric: &str) -> bool {
        self.by_metric.contains_key(metric)
    }

    /// Is any condition of this kind of entity?
    pub(crate) fn of_kind(&self, kind: &str) -> bool {
        self.by_kind.contains_key(kind)
    }

    /// Takes up where a place was before the last restart.
    pub(crate) fn restore(&mut self, crossed: &ThresholdCrossed) {
        let name = (crossed.owner.clone(), crossed.condition_id.clone());
        let entity = Entity {
            kind: crossed.entity_kind.clone(),
            id: crossed.entity_id.clone(),
            cluster_id: crossed.cluster_id.clone(),
            ..Entity::default()
        };
        let place = place(&entity, &crossed.labels);
        let lines = self.lines.entry(name).or_default();
        if crossed.raised {
            let since = crossed.since.unwrap_or_default();
            lines.insert(place, Line { raised: true, turning: None, since, value: crossed.value, entity });
        } else {
            lines.remove(&place);
        }
    }

    /// Forgets lines of conditions that are not defined: those restored for one that was dropped since.
    pub(crate) fn settle(&mut self) {
        let all = &self.all;
        self.lines.retain(|name, _| all.contains_key(name));
    }

    /// Looks at a value that is the newest of its series; says which conditions began or ceased to hold.
    pub(crate) fn look(&mut self, seen: Seen<'_>) -> Vec<ThresholdCrossed> {
        let Some(names) = self.by_metric.get(seen.metric) else { return vec![] };
        let mut crossed = vec![];
        for name in names {
            let Some(condition) = self.all.get(name).filter(|condition| concerns(condition, &seen)) else { continue };
            let lines = self.lines.entry(name.clone()).or_default();
            let place = place(seen.entity, seen.labels);
            if !lines.contains_key(&place) {
                if !is_past(condition, seen.value) {
                    continue;
                }
                if lines.len() >= PLACES_MAX {
                    self.unwatched += 1;
                    continue;
                }
            }
            let line = lines.entry(place.clone()).or_default();
            line.entity.clone_from(seen.entity);
            if line.step(condition, seen.at, seen.value) {
                crossed.push(event(condition, line, &seen));
            }
            if !line.raised && line.turning.is_none() {
                lines.remove(&place);
            }
        }
        crossed
    }

    /// Conditions of an owner (all when empty) after a name, in order.
    pub(crate) fn list<'a>(
        &'a self,
        owner: &'a str,
        after: Option<&'a Name>,
    ) -> impl Iterator<Item = (&'a Name, &'a Condition)> {
        self.all
            .iter()
            .filter(move |(name, _)| owner.is_empty() || name.0 == owner)
            .filter(move |(name, _)| after.is_none_or(|after| *name > after))
    }

    /// Where a condition holds now.
    pub(crate) fn crossings(&self, name: &Name) -> Vec<Crossing> {
        let lines = self.lines.get(name).into_iter().flatten().filter(|(_, line)| line.raised);
        lines
            .map(|(place, line)| Crossing {
                owner: name.0.clone(),
                condition_id: name.1.clone(),
                entity: Some(line.entity.clone()),
                labels: place.3.clone(),
                value: line.value,
                since: Some(line.since),
            })
            .collect()
    }

    /// How many places are past their line.
    pub(crate) fn raised(&self) -> u64 {
        self.lines.values().flat_map(BTreeMap::values).filter(|line| line.raised).count() as u64
    }

    /// Values of places beyond the limit.
    pub(crate) fn unwatched(&self) -> u64 {
        self.unwatched
    }
}

impl Line {
    /// The next value. True if the condition began or ceased to hold with it.
    fn step(&mut self, condition: &Condition, at: Timestamp, value: f64) -> bool {
        let turns = if self.raised { is_back(condition, value) } else { is_past(condition, value) };
        if self.raised && !turns {
            self.value = value;
        }
        if !turns {
            self.turning = None;
            return false;
        }
        let since = *self.turning.get_or_insert(at);
        if at.millis_since(since) < i64::from(condition.hold_seconds) * 1_000 {
            return false;
        }
        self.raised = !self.raised;
        self.turning = None;
        self.since = since;
        self.value = value;
        true
    }
}

fn place(entity: &Entity, labels: &BTreeMap<String, String>) -> Place {
    (entity.cluster_id.clone(), entity.kind.clone(), entity.id.clone(), labels.clone())
}

fn concerns(condition: &Condition, seen: &Seen<'_>) -> bool {
    let is = |wanted: &str, given: &str| wanted.is_empty() || wanted == given;
    is(&condition.entity_kind, &seen.entity.kind)
        && is(&condition.entity_id, &seen.entity.id)
        && is(&condition.cluster_id, &seen.entity.cluster_id)
        // What has an owner is that owner's business alone.
        && (seen.entity.owner.is_empty() || seen.entity.owner == condition.owner)
        && condition.labels.iter().all(|(name, value)| seen.labels.get(name) == Some(value))
}

fn is_past(condition: &Condition, value: f64) -> bool {
    match condition.side() {
        Side::Below => value < condition.threshold,
        Side::Above | Side::Unspecified => value > condition.threshold,
    }
}

fn is_back(condition: &Condition, value: f64) -> bool {
    let clear = condition.clear.unwrap_or(condition.threshold);
    match condition.side() {
        Side::Below => value >= clear,
        Side::Above | Side::Unspecified => value <= clear,
    }
}

fn event(condition: &Condition, line: &Line, seen: &Seen<'_>) -> ThresholdCrossed {
    ThresholdCrossed {
        owner: condition.owner.clone(),
        condition_id: condition.condition_id.clone(),
        entity_kind: seen.entity.kind.clone(),
        entity_id: seen.entity.id.clone(),
        cluster_id: seen.entity.cluster_id.clone(),
        metric: seen.metric.to_owned(),
        labels: seen.labels.clone(),
        raised: line.raised,
        value: seen.value,
        threshold: if line.raised { condition.threshold } else { condition.clear.unwrap_or(condition.threshold) },
        since: Some(line.since),
        at: Some(seen.at),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn condition(hold_seconds: u32, clear: Option<f64>) -> Condition {
        Condition {
            owner: "local".into(),
            condition_id: "hot".into(),
            entity_kind: "node".into(),
            metric: "m".into(),
            side: Side::Above.into(),
            threshold: 80.0,
            clear,
            hold_seconds,
            ..Condition::default()
        }
    }

    fn run(condition: Condition, values: &[(i64, f64)]) -> Vec<(bool, i64, i64)> {
        let mut conditions = Conditions::default();
        conditions.define(condition);
        let entity = Entity { kind: "node".into(), id: "n".into(), ..Entity::default() };
        let labels = BTreeMap::new();
        let mut said = vec![];
        for (second, value) in values {
            let at = Timestamp::from_millis(second * 1_000);
            let seen = Seen { entity: &entity, metric: "m", labels: &labels, at, value: *value };
            let seconds = |at: Option<Timestamp>| at.unwrap().as_millis() / 1_000;
            said.extend(conditions.look(seen).iter().map(|c| (c.raised, seconds(c.since), seconds(c.at))));
        }
        said
    }

    #[test]
    fn a_crossing_is_said_once_and_comes_back_over_its_own_line() {
        let values = [(1, 70.0), (2, 81.0), (3, 90.0), (4, 79.0), (5, 60.0), (6, 59.0), (7, 81.0)];
        assert_eq!(run(condition(0, None), &values), [(true, 2, 2), (false, 4, 4), (true, 7, 7)]);
        assert_eq!(run(condition(0, Some(60.0)), &values), [(true, 2, 2), (false, 5, 5), (true, 7, 7)]);
    }

    #[test]
    fn a_value_must_hold_before_it_counts() {
        let values =
            [(1, 81.0), (2, 70.0), (3, 81.0), (4, 85.0), (5, 85.0), (6, 10.0), (7, 81.0), (8, 10.0), (10, 10.0)];
        assert_eq!(run(condition(2, None), &values), [(true, 3, 5), (false, 8, 10)]);
    }

    #[test]
    fn another_owners_measurements_and_other_labels_are_not_its_business() {
        let mut conditions = Conditions::default();
        let labels = BTreeMap::from([("state".to_owned(), "used".to_owned())]);
        conditions.define(Condition { labels: labels.clone(), ..condition(0, None) });
        let entity =
            |owner: &str| Entity { kind: "node".into(), id: "n".into(), owner: owner.into(), ..Entity::default() };
        let mut look = |owner: &str, labels: &BTreeMap<String, String>| {
            let at = Timestamp::from_millis(1);
            conditions.look(Seen { entity: &entity(owner), metric: "m", labels, at, value: 99.0 }).len()
        };
        assert_eq!((look("ann", &labels), look("", &BTreeMap::new()), look("local", &labels)), (0, 0, 1));
    }

    proptest! {
        /// Whatever the values: raised and back take turns, and each was held for as long as it must be.
        #[test]
        fn crossings_take_turns(
            values in prop::collection::vec((1i64..4, 0.0..100.0f64), 0..80),
            hold in 0u32..5,
            clear in prop::option::of(0.0..80.0f64),
        ) {
            let mut second = 0;
            let values: Vec<(i64, f64)> = values.into_iter().map(|(gap, value)| { second += gap; (second, value) }).collect();
            let said = run(condition(hold, clear), &values);
            prop_assert!(said.iter().enumerate().all(|(number, (raised, ..))| *raised == (number % 2 == 0)));
            for (raised, since, at) in said {
                prop_assert!(at - since >= i64::from(hold));
                let held = values.iter().filter(|(second, _)| (since..=at).contains(second));
                for (_, value) in held {
                    let fits = if raised { *value > 80.0 } else { *value <= clear.unwrap_or(80.0) };
                    prop_assert!(fits);
                }
            }
        }
    }
}
