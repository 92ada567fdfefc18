//! How things are measured, and what conditions are watched: the settings and conditions in force, folded from their facts.

use std::collections::BTreeMap;

use mesh_core::{Derived, Projector, Stored};
use mesh_proto::{
    Written,
    measurement::{Condition, ConditionDefined, ConditionDropped, MeasurementSet, MeasurementUnset, Setting},
    telemetry::Crossing,
};
use mesh_rest::problem::Problem;
use serde_json::{Value as Json, json};

use super::{forms, present};

/// Settings, and conditions, that are kept at most; the deciders allow fewer.
const KEPT_MAX: usize = 100_000;

/// What is in force.
#[derive(Debug, Default)]
pub struct InForce {
    /// By cluster and name.
    settings: BTreeMap<(String, String), Setting>,
    /// By owner and name.
    conditions: BTreeMap<(String, String), Condition>,
}

impl InForce {
    /// One setting of a cluster.
    pub fn setting(&self, cluster: &str, name: &str) -> Option<Json> {
        let setting = self.settings.get(&(cluster.to_owned(), name.to_owned()))?;
        Some(shown_setting(cluster, name, setting))
    }

    /// The settings of one cluster, or of all, by cluster and name: those after `after`, `size` of them, and where that
    /// page ends if more follow.
    pub fn settings(&self, cluster: Option<&str>, after: Option<(String, String)>, size: usize) -> (Vec<Json>, String) {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let of = |of: &str| cluster.is_none_or(|cluster| cluster == of);
        let mut found = self.settings.range((from, std::ops::Bound::Unbounded)).filter(|((cluster, _), _)| of(cluster));
        let page: Vec<_> = found.by_ref().take(size).collect();
        let next = match (found.next(), page.last()) {
            (Some(_), Some(((cluster, name), _))) => format!("{cluster}.{name}"),
            _ => String::new(),
        };
        (page.into_iter().map(|((cluster, name), setting)| shown_setting(cluster, name, setting)).collect(), next)
    }

    /// Names of the settings of a cluster that begin like this.
    pub fn named(&self, cluster: &str, beginning: &str) -> Vec<String> {
        let from = (cluster.to_owned(), beginning.to_owned());
        let begins = |(of, name): &(String, String)| of == cluster && name.starts_with(beginning);
        self.settings
            .range(from..)
            .map(|(key, _)| key)
            .take_while(|key| begins(key))
            .map(|(_, name)| name.clone())
            .collect()
    }

    /// One condition of an owner.
    pub fn condition(&self, owner: &str, name: &str) -> Option<&Condition> {
        self.conditions.get(&(owner.to_owned(), name.to_owned()))
    }
}

impl Projector for InForce {
    fn apply(&mut self, fact: &Stored) -> Vec<Derived> {
        if let Ok(Some(set)) = fact.event::<MeasurementSet>() {
            if self.settings.len() < KEPT_MAX {
                self.settings.insert((set.cluster_id, set.setting_id), set.setting.unwrap_or_default());
            }
        } else if let Ok(Some(unset)) = fact.event::<MeasurementUnset>() {
            self.settings.remove(&(unset.cluster_id, unset.setting_id));
        } else if let Ok(Some(defined)) = fact.event::<ConditionDefined>() {
            if self.conditions.len() < KEPT_MAX {
                self.conditions.insert((defined.owner, defined.condition_id), defined.condition.unwrap_or_default());
            }
        } else if let Ok(Some(dropped)) = fact.event::<ConditionDropped>() {
            self.conditions.remove(&(dropped.owner, dropped.condition_id));
        }
        vec![]
    }
}

/// A setting as a body says it.
///
/// # Errors
/// When it is not one.
pub fn setting(sent: impl Into<Written>) -> Result<Setting, Problem> {
    forms::message("continuum.measurement.v1.Setting", &sent.into())
}

/// A condition as a body says it, under its name.
///
/// # Errors
/// When it is not one, or names another owner or itself otherwise than its address does.
pub fn condition(sent: impl Into<Written>, owner: &str, name: &str) -> Result<Condition, Problem> {
    let mut condition: Condition = forms::message("continuum.measurement.v1.Condition", &sent.into())?;
    for (path, said, is) in [("owner", &mut condition.owner, owner), ("conditionId", &mut condition.condition_id, name)]
    {
        if !said.is_empty() && said != is {
            return Err(Problem::field(path, format!("is not {is:?}, as the address says"), "leave it out"));
        }
        is.clone_into(said);
    }
    Ok(condition)
}

/// A setting with its names.
pub fn shown_setting(cluster: &str, name: &str, setting: &Setting) -> Json {
    let shown = present::message("continuum.measurement.v1.Setting", setting);
    json!({"cluster_id": cluster, "setting_id": name, "setting": shown})
}

/// A condition.
pub fn shown_condition(condition: &Condition) -> Json {
    present::message("continuum.measurement.v1.Condition", condition)
}

/// A condition that is past its line.
pub fn shown_crossing(crossing: &Crossing) -> Json {
    present::message("continuum.telemetry.v1.Crossing", crossing)
}

/// Where a page of settings begins, by the token of the one before.
///
/// # Errors
/// When no page before gave this token.
pub fn page_after(token: &str) -> Option<Option<(String, String)>> {
    if token.is_empty() {
        return Some(None);
    }
    let (cluster, name) = token.split_once('.')?;
    (mesh_proto::is_key(cluster) && mesh_proto::is_key(name)).then(|| Some((cluster.to_owned(), name.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_listed_page_by_page() {
        let mut in_force = InForce::default();
        for (cluster, name) in [("a", "x"), ("a", "y"), ("b", "x"), ("c", "x")] {
            in_force.settings.insert((cluster.into(), name.into()), Setting { interval_ms: 10, ..Setting::default() });
        }
        let (first, next) = in_force.settings(None, None, 3);
        assert_eq!((first.len(), next.as_str()), (3, "b.x"));
        assert_eq!(first[0], json!({"cluster_id": "a", "setting_id": "x", "setting": {"interval_ms": 10}}));
        let (rest, next) = in_force.settings(None, page_after("b.x").unwrap(), 3);
        assert_eq!((rest.len(), next.as_str()), (1, ""));
        assert_eq!(in_force.settings(Some("a"), None, 10).0.len(), 2);
        assert_eq!(in_force.settings(Some("a"), None, 1).1, "a.x");
        assert_eq!((in_force.named("a", ""), in_force.named("b", "y")), (vec!["x".to_owned(), "y".to_owned()], vec![]));
        assert_eq!((page_after("~~"), page_after("a.b.c"), page_after("")), (None, None, Some(None)));
    }

    #[test]
    fn a_condition_is_of_its_address() {
        let body =
            json!({"entity_kind": "node", "metric": "system.memory.utilization", "side": "ABOVE", "threshold": 0.9});
        let read = condition(body.clone(), "ada", "full").unwrap();
        assert_eq!((read.owner.as_str(), read.condition_id.as_str(), read.threshold), ("ada", "full", 0.9));
        for (member, value) in [("owner", "bob"), ("condition_id", "other")] {
            let mut body = body.clone();
            body[member] = json!(value);
            let refused = condition(body, "ada", "full").unwrap_err();
            assert_eq!(refused.faults[0].path.to_lowercase(), member.replace('_', ""));
        }
    }
}
