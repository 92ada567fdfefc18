//! What the learner is told.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context as _, bail, ensure};
use mesh_proto::is_key;

use crate::domain::{
    aggregate::RuleKind,
    dqn::Settings,
    federation::{Federation, MEMBERS_MAX},
    live,
};

/// What the learner is told.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Its site: a name of letters, digits, `_` and `-`, alone in its federation.
    pub site: String,
    /// Policy file to begin with; the one that was built in when empty.
    pub policy_file: PathBuf,
    /// How often what runs is looked at for advice, milliseconds.
    pub advise_ms: u32,
    /// Regret below which advice about what runs is not said, points.
    pub regret_min: f64,
    /// Instances advised on.
    pub instances_max: usize,
    /// Length of a round, milliseconds; 0 for no training at all.
    pub round_ms: u64,
    /// Episodes lived in a round.
    pub episodes: u32,
    /// Seed of its training.
    pub seed: u64,
    /// Federation that it learns with; alone when empty.
    pub federation: String,
    /// Members of the federation, itself included, as `name=U…,name=U…` with the public keys of `continuum learn key`.
    pub members: String,
    /// File with the seed (`SU…`) of its own signing key.
    pub key_file: PathBuf,
    /// How updates are joined: `mean`, `trimmed-mean`, `median` or `multi-krum`.
    pub rule: RuleKind,
    /// Hostile members to withstand.
    pub hostile_max: usize,
    /// Episodes on which a new policy must not be worse than the old one; 0 adopts any.
    pub gate_seeds: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            site: "home".into(),
            policy_file: PathBuf::new(),
            advise_ms: 10_000,
            regret_min: 0.25,
            instances_max: 10_000,
            round_ms: 0,
            episodes: 2,
            seed: 1,
            federation: String::new(),
            members: String::new(),
            key_file: PathBuf::new(),
            rule: RuleKind::default(),
            hostile_max: 1,
            gate_seeds: 16,
        }
    }
}

/// Shortest round that members' clocks and training can keep, milliseconds.
const ROUND_MS_MIN: u64 = 500;

impl Config {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// Names the key, what is wrong with it and what to write.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(is_key(&self.site), "site {:?} is not 1 to 64 letters, digits, `_` and `-`", self.site);
        ensure!(
            self.round_ms == 0 || self.round_ms >= ROUND_MS_MIN,
            "round_ms {} is shorter than {ROUND_MS_MIN}; write 0 for no training",
            self.round_ms
        );
        ensure!((1..=1_000).contains(&self.episodes), "episodes {} is not 1 to 1,000", self.episodes);
        ensure!(self.gate_seeds <= 10_000, "gate_seeds {} is more than 10,000", self.gate_seeds);
        ensure!(
            self.regret_min.is_finite() && self.regret_min >= 0.0,
            "regret_min {} is not 0 or more",
            self.regret_min
        );
        Ok(())
    }

    /// Limits of its view.
    pub(crate) fn limits(&self) -> live::Limits {
        live::Limits {
            site: self.site.clone(),
            instances_max: self.instances_max,
            advise_ms: self.advise_ms.into(),
            regret_min: self.regret_min,
        }
    }

    /// Who it learns with; `None` if alone.
    ///
    /// # Errors
    /// A member without a name or a readable key, itself missing, or too few for the rule.
    pub(crate) fn federation(&self, widths: &[usize]) -> anyhow::Result<Option<Federation>> {
        if self.federation.is_empty() {
            ensure!(self.members.is_empty(), "members are given but no federation; name it with `federation`");
            return Ok(None);
        }
        let mut members = BTreeMap::new();
        for member in self.members.split(',').map(str::trim).filter(|m| !m.is_empty()) {
            let Some((name, key)) = member.split_once('=').filter(|(name, _)| is_key(name)) else {
                bail!("member {member:?}: write name=U…, with the key that `continuum learn key` shows");
            };
            nkeys::KeyPair::from_public_key(key).with_context(|| format!("read the public key of member {name}"))?;
            if members.values().any(|other| other == key) || members.insert(name.to_owned(), key.to_owned()).is_some() {
                bail!("member {name} or its key is given twice");
            }
        }
        ensure!(members.len() <= MEMBERS_MAX, "{} members are more than {MEMBERS_MAX}", members.len());
        ensure!(
            members.contains_key(&self.site),
            "members do not name this site, {:?}; add {}=U…",
            self.site,
            self.site
        );
        let needed = self.rule.members_min(self.hostile_max);
        ensure!(
            members.len() >= needed,
            "{} withstands {} hostile members only among {needed} or more, and there are {}; lower hostile_max or use \
             another rule",
            self.rule.name(),
            self.hostile_max,
            members.len()
        );
        Ok(Some(Federation {
            name: self.federation.clone(),
            members,
            own: self.site.clone(),
            rule: self.rule,
            hostile_max: self.hostile_max,
            widths: widths.to_vec(),
        }))
    }

    /// How it trains: gently, as what it goes on from is already trained.
    pub(crate) fn settings(&self) -> Settings {
        Settings { explore: (0.1, 0.05), learning_rate: 1e-4, batch: 64, ..Settings::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_federation_is_read_or_refused_with_what_to_write() {
        let keys: Vec<String> = (0..3).map(|_| nkeys::KeyPair::new_user().public_key()).collect();
        let members = format!("home={}, b={},c={}", keys[0], keys[1], keys[2]);
        let config = Config { federation: "f".into(), members, rule: RuleKind::Median, ..Config::default() };
        let federation = config.federation(&[2, 1]).unwrap().unwrap();
        assert_eq!(federation.members.keys().collect::<Vec<_>>(), ["b", "c", "home"]);
        assert!(Config::default().federation(&[2, 1]).unwrap().is_none());
        let refused = |change: &dyn Fn(&mut Config)| {
            let mut config = config.clone();
            change(&mut config);
            format!("{:#}", config.federation(&[2, 1]).unwrap_err())
        };
        assert!(refused(&|c| c.site = "d".into()).contains("add d=U…"));
        assert!(refused(&|c| c.rule = RuleKind::MultiKrum).contains("5 or more"));
        assert!(refused(&|c| c.members.push_str(",x")).contains("write name=U…"));
        assert!(refused(&|c| c.members.push_str(",x=UABC")).contains("public key of member x"));
        assert!(refused(&|c| c.members = format!("home={0},b={0}", keys[0])).contains("twice"));
        assert!(refused(&|c| c.federation.clear()).contains("name it"));
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        for (config, name) in [
            (Config { site: "a b".into(), ..Config::default() }, "site"),
            (Config { round_ms: 5, ..Config::default() }, "round_ms"),
            (Config { episodes: 0, ..Config::default() }, "episodes"),
            (Config { regret_min: f64::NAN, ..Config::default() }, "regret_min"),
        ] {
            assert!(config.check().unwrap_err().to_string().starts_with(name));
        }
        assert!(Config::default().check().is_ok());
    }
}
