//! Remedies: anomalies that begin and clear, and policies that change meanwhile.
//!
//! Nothing is requested under a dry run. An instance has one remedy at a time and none within the cool-down; the rate
//! limit holds; each attempt at an episode is requested once, in order; every request is settled once, and every
//! anomaly is answered.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::{
    Timestamp,
    anomaly::{AnomalyCleared, AnomalyDetected, Contribution, Direction, Ending},
    deciders::remedies::Fact,
    remedy::{Action, PolicyRule, RemedyPolicy, RemedyRequested, SetRemedyPolicy},
};
use sar_detector::domain::remedies::Remedies;

use super::{Area, Asker, fact, wrong};
use crate::sim::{bus::MemoryBus, rng::Rng};

/// Episodes of a run: enough to crowd, few enough to come to rest.
const EPISODES_MAX: usize = 12;

/// The decider.
pub fn decider() -> Remedies {
    Remedies
}

/// A detector, and an operator who changes the policy.
#[derive(Default)]
pub struct Anomalies {
    /// Episodes that have not cleared.
    open: Vec<AnomalyDetected>,
    episodes: usize,
}

fn policy(rng: &mut Rng) -> RemedyPolicy {
    let rule = |metric: &str, actions: &[Action]| PolicyRule {
        metric: metric.into(),
        actions: actions.iter().map(|action| (*action).into()).collect(),
        ..PolicyRule::default()
    };
    let mut rules = vec![
        rule("cpu_milli", &[Action::Restart, Action::Migrate]),
        rule("cpu_percent", &[Action::Scale, Action::Migrate, Action::Restart]),
    ];
    if rng.percent(15) {
        rules[0].direction = "SIDEWAYS".into();
    }
    RemedyPolicy {
        dry_run: rng.percent(15),
        rules,
        cooldown_seconds: *rng.pick(&[1, 3, 8]),
        rate_max: *rng.pick(&[1, 2, 10]),
        rate_seconds: *rng.pick(&[3, 10]),
        settle_seconds: *rng.pick(&[1, 3, 6]),
    }
}

impl Area for Anomalies {
    fn name(&self) -> &'static str {
        "remedy"
    }

    fn happen(&mut self, bus: &mut MemoryBus, rng: &mut Rng, asker: &mut Asker) {
        let owner = "local".to_owned();
        match rng.below(10) {
            0 | 1 => {
                let policy = (!rng.percent(8)).then(|| policy(rng));
                asker.ask(bus, rng, &SetRemedyPolicy { owner, policy });
            }
            2..=4 if self.episodes < EPISODES_MAX => {
                self.episodes += 1;
                let instance_id = (*rng.pick(&["i-1", "i-2", "i-3"])).to_owned();
                let metric = (*rng.pick(&["cpu_milli", "cpu_percent", "memory_bytes"])).to_owned();
                let anomaly = AnomalyDetected {
                    owner,
                    instance_id,
                    episode_id: asker.id(),
                    detector: "forest".into(),
                    cluster_id: "cloud".into(),
                    workload: "alpha@1.0.0".into(),
                    generation: 1 + rng.below(3) as u64,
                    contributions: vec![Contribution {
                        metric,
                        direction: Direction::Above.into(),
                        ..Default::default()
                    }],
                    sentence: "the processor is busier than usual".into(),
                    ..AnomalyDetected::default()
                };
                bus.publish(&anomaly, &format!("detected-{}", anomaly.episode_id));
                self.open.push(anomaly);
            }
            5 | 6 if !self.open.is_empty() => {
                let anomaly = self.open.swap_remove(rng.below(self.open.len()));
                let cleared = AnomalyCleared {
                    owner,
                    instance_id: anomaly.instance_id,
                    episode_id: anomaly.episode_id,
                    detector: anomaly.detector,
                    cluster_id: anomaly.cluster_id,
                    generation: anomaly.generation + rng.below(2) as u64,
                    ending: (*rng.pick(&[Ending::Normal, Ending::Normal, Ending::Gone, Ending::Silent])).into(),
                    reason: "as usual again".into(),
                    ..AnomalyCleared::default()
                };
                bus.publish(&cleared, &format!("cleared-{}", cleared.episode_id));
            }
            _ => {}
        }
    }

    fn check(&self, bus: &MemoryBus) -> Result<(), String> {
        let mut policy: Option<RemedyPolicy> = None;
        let mut under_way: BTreeMap<String, RemedyRequested> = BTreeMap::new();
        let mut last: BTreeMap<String, Timestamp> = BTreeMap::new();
        let mut times: Vec<Timestamp> = vec![];
        let (mut attempts, mut answered, mut settled) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for stored in bus.read("REMEDY") {
            let now = stored.time;
            match fact::<Fact>(stored)? {
                Fact::RemedyPolicySet(m) => policy = m.policy,
                Fact::RemedyWithheld(m) => {
                    answered.insert(m.episode_id);
                }
                Fact::RemedyRequested(m) => {
                    let Some(policy) = policy.as_ref().filter(|policy| !policy.dry_run) else {
                        return wrong(stored, "it is requested, and the policy is a dry run");
                    };
                    if let Some(other) = under_way.get(&m.instance_id) {
                        return wrong(stored, format!("remedy {} of its instance is not settled", other.remedy_id));
                    }
                    let since = last.get(&m.instance_id).map_or(i64::MAX, |last| now.millis_since(*last));
                    if since < i64::from(policy.cooldown_seconds) * 1_000 {
                        return wrong(stored, format!("it is requested {since} ms after the one before"));
                    }
                    let rate_ms = i64::from(policy.rate_seconds) * 1_000;
                    let lately = times.iter().filter(|time| now.millis_since(**time) < rate_ms).count();
                    if lately >= policy.rate_max as usize {
                        return wrong(stored, format!("it is one more than {lately} in {rate_ms} ms"));
                    }
                    let first = m.attempt == 1 || attempts.contains(&(m.episode_id.clone(), m.attempt - 1));
                    if !first || !attempts.insert((m.episode_id.clone(), m.attempt)) {
                        return wrong(stored, format!("attempt {} at {} is out of order", m.attempt, m.episode_id));
                    }
                    last.insert(m.instance_id.clone(), now);
                    times.push(now);
                    answered.insert(m.episode_id.clone());
                    under_way.insert(m.instance_id.clone(), m);
                }
                // What waited and cleared by itself has no remedy to settle.
                Fact::RemedySettled(m) if m.remedy_id.is_empty() => {}
                Fact::RemedySettled(m) => {
                    let settles = under_way.remove(&m.instance_id).is_some_and(|open| open.remedy_id == m.remedy_id);
                    if !settles || !settled.insert(m.remedy_id) {
                        return wrong(stored, "it settles a remedy that is not under way");
                    }
                }
                Fact::RemedyRefused(_) => {}
            }
        }
        if let Some(remedy) = under_way.values().next() {
            return Err(format!("remedy {} is never settled", remedy.remedy_id));
        }
        for stored in bus.read("ANOMALY") {
            let Some(anomaly) = stored.event::<AnomalyDetected>().map_err(|error| error.to_string())? else { continue };
            if !answered.contains(&anomaly.episode_id) {
                return wrong(stored, "the anomaly is never answered");
            }
        }
        Ok(())
    }
}
