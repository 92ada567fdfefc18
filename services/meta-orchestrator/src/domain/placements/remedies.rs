//! Remedies: what intents ask for, what was requested for anomalies, and learned advice where it is acted on. They share
//! one cool-down: whichever came last, an instance is not disturbed again before it is over.

use mesh_proto::{
    intent::{IntentRemedyUnwanted, IntentRemedyWanted},
    learning::LearningAdvised,
    placement::{Load, MigrationDeclined, Missed, PlacementUnplaced, Why},
    remedy::{Action, RemedyRequested},
    workload::MigrationWanted,
};

use super::{
    Hold, Instance, Standing, available,
    draft::{Draft, excluded},
    facts::{decided, settled, unplaced},
};

/// What a remedy is for.
struct About<'r> {
    owner: &'r str,
    instance_id: &'r str,
    cluster_id: &'r str,
    generation: u64,
}

impl<'a> Draft<'a> {
    /// The instance and where it runs, if it may be disturbed: it is its owner's, runs just there, goes nowhere else, and
    /// the cool-down is over.
    fn at_rest(&self, of: &About<'_>) -> Option<(&'a Instance, &'a Hold)> {
        let known = self.base.instances.get(of.instance_id).filter(|known| known.wanted.owner == of.owner)?;
        let at = known.at.as_ref()?;
        let current = at.cluster_id == of.cluster_id && at.generation == of.generation;
        let cool = known.moved.is_none_or(|moved| self.at >= moved.plus_millis(self.limits.move_cooldown_ms));
        let idle = known.to.is_none() && at.standing == Standing::Running && available(self.snapshot(), &at.cluster_id);
        (current && cool && idle).then_some((known, at))
    }

    /// An intent misses its targets: another cluster, if one is better.
    pub(super) fn remedy(&mut self, remedy: &IntentRemedyWanted) {
        let of = About {
            owner: &remedy.owner,
            instance_id: &remedy.instance_id,
            cluster_id: &remedy.cluster_id,
            generation: remedy.generation,
        };
        let Some((known, at)) = self.at_rest(&of) else { return };
        let mut instance = self.remembering(known.clone());
        if remedy.load_milli > 0 || remedy.memory_bytes > 0 {
            instance.measured = Some(Load { cpu_milli: remedy.load_milli, memory_bytes: remedy.memory_bytes });
        }
        self.note_miss(&mut instance, remedy);
        if let Some(said) = known.unplaced.as_ref().filter(|u| u.why != Why::Remedy as i32) {
            // It waits for a place for its new definition: a remedy for the old one is not looked for on top.
            let waiting = Instance { asked_by: instance.asked_by, ..known.clone() };
            let why = Why::try_from(said.why).unwrap_or_default();
            let (candidates, reason) = (self.choose(&waiting, why).candidates, said.reason.clone());
            let answer = unplaced(self.limits, &waiting, candidates, why, reason, &at.cluster_id);
            return self.push(PlacementUnplaced { used_up: said.used_up, ..answer });
        }
        let choice = self.choose(&instance, Why::Remedy);
        self.place(instance, choice, Why::Remedy, &remedy.reason, false);
    }

    /// Remembers that its targets are missed where it is, and who asks for better.
    fn note_miss(&self, instance: &mut Instance, remedy: &IntentRemedyWanted) {
        let Some(at) = &instance.at else { return };
        let held_until = at.since.plus_millis(self.limits.forget_failures_ms);
        if remedy.missed_since.is_some_and(|since| since >= held_until) {
            // It held its targets here for long: what was missed elsewhere was another day's load.
            instance.missed.clear();
        }
        let (cluster_cpu_milli, cluster_memory_bytes) =
            self.snapshot().clusters.get(&at.cluster_id).map_or((0, 0), |c| (c.cpu_milli, c.memory_bytes));
        let missed = Missed {
            cluster_id: at.cluster_id.clone(),
            target_names: remedy.targets.iter().filter(|t| t.missed > 0).map(|t| t.target_name.clone()).collect(),
            load: instance.measured,
            reason: remedy.reason.clone(),
            cluster_cpu_milli,
            cluster_memory_bytes,
        };
        instance.missed.insert(at.cluster_id.clone(), missed);
        if instance.unplaced.as_ref().is_none_or(|u| u.why != Why::Remedy as i32) {
            instance.asked_by.clear();
        }
        instance.asked_by.insert(remedy.intent_id.clone());
    }

    /// An intent does not want the remedy any more that was not found.
    pub(super) fn unwanted(&mut self, m: &IntentRemedyUnwanted) {
        let Some(known) = self.base.instances.get(&m.instance_id) else { return };
        let Some(said) = known.unplaced.as_ref().filter(|u| u.why == Why::Remedy as i32) else { return };
        let Some(at) = known.at.as_ref().filter(|a| a.standing == Standing::Running) else { return };
        let mut instance = known.clone();
        if known.wanted.owner != m.owner || !instance.asked_by.remove(&m.intent_id) {
            return;
        }
        if instance.asked_by.is_empty() {
            self.push(settled(self.limits, known, at, None));
        } else {
            let still = unplaced(self.limits, &instance, vec![], Why::Remedy, said.reason.clone(), &at.cluster_id);
            self.push(still);
        }
    }

    /// What was requested for an anomaly: a restart (a new generation on the same cluster) or a migration (another
    /// cluster). More replicas come as a new definition, from whoever owns that.
    pub(super) fn requested(&mut self, remedy: &RemedyRequested) {
        let of = About {
            owner: &remedy.owner,
            instance_id: &remedy.instance_id,
            cluster_id: &remedy.cluster_id,
            generation: remedy.generation,
        };
        let Some((known, at)) = self.at_rest(&of) else { return };
        if known.unplaced.as_ref().is_some_and(|u| u.why != Why::Remedy as i32) {
            return;
        }
        let instance = self.remembering(known.clone());
        match remedy.action() {
            Action::Restart => {
                let reason = format!("restarted: {}", remedy.reason);
                let here = at.cluster_id.clone();
                self.push(decided(self.limits, &instance, &here, "", vec![], Why::Remedy, &reason));
            }
            Action::Migrate => {
                let choice = self.choose(&instance, Why::Remedy);
                // Where none is better nothing is planned: nobody would say later that it is not wanted any more.
                if choice.chosen.is_some() {
                    self.place(instance, choice, Why::Remedy, &remedy.reason, false);
                }
            }
            Action::Scale | Action::Unspecified => {}
        }
    }

    /// Somebody asked to move it: to the cluster that is named, or to the best other one. Declined if that cannot be.
    pub(super) fn migrate(&mut self, wanted: &MigrationWanted) {
        let known = self.base.instances.get(&wanted.instance_id).filter(|known| known.wanted.owner == wanted.owner);
        let Some(known) = known else { return };
        let limits = self.limits;
        let decline = |reason: String| MigrationDeclined {
            domain: limits.domain.clone(),
            owner: wanted.owner.clone(),
            instance_id: wanted.instance_id.clone(),
            cluster_id: wanted.cluster_id.clone(),
            generation: wanted.generation,
            to_cluster_id: wanted.to_cluster_id.clone(),
            reason,
        };
        let here = known.at.as_ref().filter(|at| {
            at.cluster_id == wanted.cluster_id
                && at.generation == wanted.generation
                && at.standing == Standing::Running
                && available(self.snapshot(), &at.cluster_id)
        });
        if here.is_none() || known.to.is_some() {
            let fact = decline("it has moved since, is moving, or does not run".into());
            return self.push(fact);
        }
        if let Some(unplaced) = &known.unplaced {
            let fact = decline(format!("it waits for another place already: {}", unplaced.reason));
            return self.push(fact);
        }
        let instance = self.remembering(known.clone());
        let mut choice;
        if wanted.to_cluster_id.is_empty() {
            choice = self.choose(&instance, Why::Remedy);
            if choice.chosen.is_none() {
                let fact = decline(format!("no other cluster can take it; {}", choice.nearest));
                return self.push(fact);
            }
        } else {
            choice = self.choose(&instance, Why::Changed);
            let to = &wanted.to_cluster_id;
            let why_not = match choice.candidates.iter().find(|c| c.cluster_id == *to) {
                Some(candidate) if candidate.ruled_out.is_empty() => None,
                Some(candidate) => Some(format!("{to}: {}", candidate.ruled_out)),
                None => Some(format!("there is no cluster {to}")),
            };
            if let Some(reason) = why_not {
                let fact = decline(reason);
                return self.push(fact);
            }
            choice.chosen = Some(to.clone());
        }
        self.place(instance, choice, Why::Remedy, "moved because its owner asked for it", false);
    }

    /// Learned advice about what runs: acted on like a remedy, if the planner itself finds nothing against the cluster.
    /// How many replicas run stays the owner's business.
    pub(super) fn advised(&mut self, advised: &LearningAdvised) {
        let of = About {
            owner: &advised.owner,
            instance_id: &advised.instance_id,
            cluster_id: &advised.planned_cluster_id,
            generation: advised.generation,
        };
        let Some((known, at)) = self.at_rest(&of) else { return };
        if known.unplaced.is_some() || advised.cluster_id == at.cluster_id {
            return;
        }
        let instance = self.remembering(known.clone());
        let mut choice = self.choose(&instance, Why::Changed);
        let admitted = choice.candidates.iter().any(|c| c.cluster_id == advised.cluster_id && c.ruled_out.is_empty());
        let missed = excluded(&instance, Why::Remedy, self.snapshot()).contains_key(&advised.cluster_id);
        if admitted && !missed {
            choice.chosen = Some(advised.cluster_id.clone());
            let reason = format!("learned advice: {}", advised.reason);
            self.place(instance, choice, Why::Remedy, &reason, false);
        }
    }
}
