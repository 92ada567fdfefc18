//! Settings.

use serde::{Deserialize, Serialize};

use crate::{domain::placements, plan};

/// Settings of the meta-orchestrator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Domain that it plans.
    pub domain: String,
    /// Milliseconds without a token after which a cluster is lost.
    pub grace_ms: u32,
    /// How often tokens and clusters are compared, milliseconds.
    pub liveness_ms: u32,
    /// Milliseconds after a move in which no remedy moves the instance again.
    pub move_cooldown_ms: u32,
    /// Milliseconds that a cluster has to get an instance running.
    pub start_limit_ms: u32,
    /// Further clusters that are tried after a failure that is not hopeless.
    pub attempts_elsewhere: u32,
    /// Milliseconds of running after which failures elsewhere are forgotten.
    pub forget_failures_ms: u32,
    /// How clusters that would do are compared: `spread` (the more is left free, the better) or `pack`.
    pub preference: plan::Preference,
    /// What learned advice does: `shadow` (it is shown beside decisions) or `act` (what runs is moved by it, within the
    /// hard constraints).
    pub advice: Advice,
    /// Where decisions are recorded, as a URL, if not where the mesh keeps its histories (`history_url`). In memory the
    /// newest 10,000 are kept.
    pub decisions: String,
    /// How long a database keeps decisions, milliseconds; 0 for ever.
    pub decisions_keep_ms: u64,
    /// Where registrations of clusters rest, as a URL, if not where the mesh keeps its documents (`documents_url`).
    pub documents: String,
}

/// What learned advice does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Advice {
    /// It is shown.
    #[default]
    Shadow,
    /// It is acted on.
    Act,
}

impl Default for Config {
    fn default() -> Self {
        let limits = placements::Limits::default();
        Self {
            domain: limits.domain,
            grace_ms: 5_000,
            liveness_ms: 250,
            move_cooldown_ms: 60_000,
            start_limit_ms: 30_000,
            attempts_elsewhere: 3,
            forget_failures_ms: 600_000,
            preference: limits.preference,
            advice: Advice::default(),
            decisions: String::new(),
            decisions_keep_ms: 30 * 86_400_000,
            documents: String::new(),
        }
    }
}

impl Config {
    /// The planner's part of it.
    pub(crate) fn limits(&self) -> placements::Limits {
        placements::Limits {
            domain: self.domain.clone(),
            move_cooldown_ms: self.move_cooldown_ms.into(),
            start_limit_ms: self.start_limit_ms.into(),
            attempts_elsewhere: self.attempts_elsewhere as usize,
            forget_failures_ms: self.forget_failures_ms.into(),
            preference: self.preference,
            acts_on_advice: self.advice == Advice::Act,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_by_name_and_the_planner_gets_its_part() {
        let config: Config = serde_json::from_str(r#"{"move_cooldown_ms": 500, "preference": "pack"}"#).unwrap();
        let limits = config.limits();
        assert_eq!((limits.move_cooldown_ms, limits.preference), (500, plan::Preference::Pack));
        assert_eq!(Config::default().limits(), placements::Limits::default());
        assert!(serde_json::from_str::<Config>(r#"{"cooldown_ms": 500}"#).is_err());
    }
}
