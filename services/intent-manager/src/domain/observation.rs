//! Judging periods, and asking for a remedy.

use std::collections::BTreeSet;

use mesh_proto::{
    Timestamp,
    deciders::intents::Fact,
    intent::{IntentRemedyUnwanted, IntentRemedyWanted, IntentStateChanged},
    observation::TargetObserved,
};
use serde::{Deserialize, Serialize};

use super::{Case, InForce, Instance, MISSED_MAX, Row, Standing, Target, UNMEASURED_MAX};

/// A remedy that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remedy {
    /// When.
    pub at: Timestamp,
    /// How often by then, since the targets last held for long.
    pub asked: u32,
    /// Generation of the placement that missed.
    pub generation: u64,
    /// Is it still wanted, unless the instance has moved?
    pub wanted: bool,
    /// Measured load then, thousandths of a core.
    pub load_milli: u32,
    /// Measured memory then, bytes.
    pub memory_bytes: u64,
}

impl Remedy {
    pub(super) fn of(fact: &IntentRemedyWanted, at: Timestamp) -> Self {
        let IntentRemedyWanted { asked, generation, load_milli, memory_bytes, .. } = *fact;
        Self { at, asked: asked.max(1), generation, wanted: true, load_milli, memory_bytes }
    }

    /// Has what is missed changed by more than a tenth since?
    fn differs(&self, now: &InForce, observation: &TargetObserved) -> bool {
        let differs = |a: u64, b: u64| a.abs_diff(b).saturating_mul(10) > a.max(b);
        let mut missed = now.targets.iter().filter(|t| t.missed > 0 && now.is_of(t, &observation.instance_id));
        missed.any(|target| match target.name.as_str() {
            "ramUsage" => differs(self.memory_bytes, observation.memory_bytes),
            _ => differs(self.load_milli.into(), observation.load_milli.into()),
        })
    }
}

impl InForce {
    /// Is a remedy asked for where the instance is?
    pub(super) fn wants_remedy(&self, instance: &Instance) -> bool {
        self.remedies.get(&instance.id).is_some_and(|r| r.wanted && r.generation == instance.generation)
    }

    /// Is this a target of this instance?
    fn is_of(&self, target: &Target, instance_id: &str) -> bool {
        self.instances.iter().any(|i| i.id == instance_id && i.expectation == target.expectation)
    }
}

impl Case<'_> {
    pub(super) fn observed(&self, observation: &TargetObserved) -> Vec<Fact> {
        let Some(in_force) = self.entity.in_force() else { return vec![] };
        if in_force.version != observation.version || in_force.is_suspended() {
            return vec![];
        }
        let (Some(begin), Some(end)) = (observation.begin, observation.end) else { return vec![] };
        let mut now = in_force.clone();
        let measured = observation.targets.iter().any(|t| t.samples > 0 && t.value.is_finite());
        let mut degrading = false;
        let mut relieved = vec![];
        for instance in now.instances.iter_mut().filter(|i| i.id == observation.instance_id) {
            let expectation = instance.expectation.clone();
            let mut targets = now.targets.iter_mut().filter(|t| t.expectation == expectation).peekable();
            // A governed instance may have run long before: then its measurements are the first that is heard of it.
            let governed = instance.workload.is_empty();
            if governed && measured && observation.generation > instance.generation {
                instance.run(&observation.cluster_id, observation.generation, end);
                targets.for_each(Target::reset);
                continue;
            }
            if instance.standing != Standing::Running || instance.running_since.is_none_or(|since| begin < since) {
                continue;
            }
            let mut held = targets.peek().is_some();
            for target in targets {
                let judged = judge(target, instance.generation, observation);
                held &= judged == Some(Judged::Held);
                degrading |= judged == Some(Judged::Missed) && target.missed >= MISSED_MAX;
            }
            if held {
                instance.stuck.clear();
                relieved.push(observation.instance_id.as_str());
            }
        }
        let mut facts = self.settle(now.clone(), "");
        let row = facts.iter().fold(self.entity.row(), |row, fact| match fact {
            Fact::IntentStateChanged(IntentStateChanged { to: Some(to), .. }) => Row::of(to),
            _ => row,
        });
        facts.extend(self.unwanted(&now, |id| relieved.contains(&id), "every target holds where it is"));
        if !degrading || row != Row::Degraded || !self.may_ask(&now, observation) {
            return facts;
        }
        let counts_only = |fact: &Fact| matches!(fact, Fact::IntentStateChanged(f) if f.from == f.to);
        if now.instances == in_force.instances && facts.iter().all(counts_only) {
            // The remedy tells the same.
            facts.clear();
        }
        facts.push(self.remedy(&now, observation).into());
        facts
    }

    /// Is it time to ask for a remedy, and is there a reason to?
    fn may_ask(&self, now: &InForce, observation: &TargetObserved) -> bool {
        let Some(instance) = now.instances.iter().find(|i| i.id == observation.instance_id) else { return false };
        if !instance.to_cluster.is_empty() {
            return false;
        }
        let Some(last) = now.remedies.get(&instance.id) else { return true };
        let since = last.at.max(instance.running_since.unwrap_or_default());
        let waited = self.at >= since.plus_millis(self.limits.wait_ms(last.asked));
        waited && (instance.stuck.is_empty() || last.differs(now, observation))
    }

    fn remedy(&self, now: &InForce, observation: &TargetObserved) -> IntentRemedyWanted {
        let observed = |t: &&Target| now.is_of(t, &observation.instance_id);
        let missed = || now.targets.iter().filter(observed).filter(|t| t.missed > 0);
        let missed_since = missed().filter_map(|t| t.missed_since).min();
        IntentRemedyWanted {
            owner: self.owner(),
            intent_id: self.intent_id(),
            instance_id: observation.instance_id.clone(),
            targets: now.targets.iter().filter(observed).map(Target::to_fact).collect(),
            reason: format!(
                "{} on {}",
                missed().map(Target::figures).collect::<Vec<_>>().join("; "),
                observation.cluster_id
            ),
            cluster_id: observation.cluster_id.clone(),
            generation: observation.generation,
            load_milli: observation.load_milli,
            memory_bytes: observation.memory_bytes,
            missed_since,
            asked: self.asked_before(now, &observation.instance_id, missed_since).saturating_add(1),
        }
    }

    /// How many remedies have not helped: those before the last count no more if the present misses began only long after
    /// it, so that targets that are met and missed by turns do not ask at the cool-down's pace for ever.
    fn asked_before(&self, now: &InForce, instance_id: &str, missed_since: Option<Timestamp>) -> u32 {
        let Some(last) = now.remedies.get(instance_id) else { return 0 };
        let long_ms = self.limits.wait_ms(last.asked).saturating_mul(2).max(self.limits.wait_ms(u32::MAX));
        let helped_until = last.at.plus_millis(long_ms);
        if missed_since.is_some_and(|since| since >= helped_until) { 0 } else { last.asked }
    }

    /// Takes back the remedies that are still asked for where the instances are.
    pub(super) fn unwanted(&self, now: &InForce, which: impl Fn(&str) -> bool, reason: &str) -> Vec<Fact> {
        let ids: BTreeSet<&String> = now.instances.iter().filter(|i| now.wants_remedy(i)).map(|i| &i.id).collect();
        let unwanted = |id: &String| IntentRemedyUnwanted {
            owner: self.owner(),
            intent_id: self.intent_id(),
            instance_id: id.clone(),
            reason: reason.to_owned(),
        };
        ids.into_iter().filter(|id| which(id)).map(|id| unwanted(id).into()).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    Held,
    Missed,
    Unmeasured,
}

/// Judges one target by one period; `None` if the period does not count for it.
fn judge(target: &mut Target, generation: u64, observation: &TargetObserved) -> Option<Judged> {
    let found =
        observation.targets.iter().find(|t| t.expectation_id == target.expectation && t.target_name == target.name)?;
    if observation.period <= target.period {
        return None;
    }
    let next = observation.period == target.period + 1;
    if found.samples == 0 || !found.value.is_finite() {
        target.period = observation.period;
        (target.measured, target.fulfilled, target.missed, target.missed_since) = (false, false, 0, None);
        target.unmeasured = (target.unmeasured + 1).min(UNMEASURED_MAX);
        return Some(Judged::Unmeasured);
    }
    if observation.generation != generation {
        return None;
    }
    target.period = observation.period;
    target.achieved = found.value;
    target.provenance = found.provenance;
    (target.measured, target.unmeasured) = (true, 0);
    target.fulfilled = target.bound.holds(found.value);
    if target.fulfilled {
        (target.missed, target.missed_since) = (0, None);
        return Some(Judged::Held);
    }
    // A miss after a period that nobody judged is the first again; after enough of them, only a held or a blind period
    // ends the row, and how long it is beyond that is not recorded.
    let first = target.missed == 0 || (!next && target.missed < MISSED_MAX);
    target.missed = if first { 1 } else { (target.missed + 1).min(MISSED_MAX) };
    if first {
        target.missed_since = observation.begin;
    }
    Some(Judged::Missed)
}
