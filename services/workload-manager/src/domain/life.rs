//! How an instance fares: what the planner decides about it and what its agents say of it, made one story.
//!
//! The two speak by different streams, so either may be heard first. What makes the order indifferent:
//!
//! - a placement is its generation. An agent that speaks of a newer one than is known tells of a decision that has not
//!   been heard yet, which then brings nothing new;
//! - of a placement that was released nothing is heard any more;
//! - that a cluster is lost and that an instance runs on it may concern the same generation: then the later word holds;
//! - that the planner has given it up where it is (it failed wherever it could be tried) outweighs what its agent said
//!   before, and holds until it runs there after all or is planned again.

use mesh_core::Key;
use mesh_proto::{
    Timestamp,
    deciders::workloads::Fact,
    instance::InstanceStatusChanged,
    placement::{MigrationDeclined, PlacementDecided, PlacementReleased, PlacementSettled, PlacementUnplaced, Why},
    workload::{InstanceChanged, InstancePhase, InstanceWanted, LifecycleEvent},
};

use super::instance::{DECLINED, Instance, STOPPING};

/// A cluster that has to stop an instance and says nothing for so long is not waited for any more.
pub const STOP_CONFIRM_MS: i64 = 60_000;

/// The story's next step in the making.
struct Next<'a> {
    key: &'a Key,
    instance: &'a Instance,
    wanted: &'a InstanceWanted,
    changed: InstanceChanged,
    event: Option<LifecycleEvent>,
    /// Is it news that it is as it was?
    again: bool,
}

impl<'a> Next<'a> {
    /// `None` if it was never wanted, or is over: then nothing that is still said of it matters.
    fn of(key: &'a Key, instance: &'a Instance) -> Option<Self> {
        let wanted = instance.wanted.as_ref().filter(|_| !instance.is_over())?;
        Some(Self { key, instance, wanted, changed: labelled(key, instance, wanted), event: None, again: false })
    }

    fn old(&self) -> &'a InstanceChanged {
        &self.instance.changed
    }

    fn event(&mut self, name: &str) -> &mut LifecycleEvent {
        let cluster = self.changed.cluster_id.clone();
        let event = LifecycleEvent { r#type: name.into(), deployment_cluster: cluster, ..Default::default() };
        self.event.insert(event)
    }

    fn migration(&mut self, name: &str, from: &str, to: &str) {
        let event = self.event(name);
        event.deployment_cluster.clear();
        event.migration_from_cluster = from.into();
        event.migration_to_cluster = to.into();
    }

    fn enter(&mut self, phase: InstancePhase, reason: impl Into<String>) {
        self.changed.phase = phase.into();
        self.changed.reason = reason.into();
    }

    /// On this cluster now, of which nothing was heard yet.
    fn place(&mut self, cluster_id: &str, generation: u64) {
        let changed = &mut self.changed;
        changed.cluster_id = cluster_id.into();
        changed.generation = generation;
        changed.to_cluster_id.clear();
        changed.to_generation = 0;
        changed.replicas_running = 0;
        changed.restarts = 0;
        changed.hopeless = false;
    }

    /// Is it moving to this cluster?
    fn moves_to(&self, cluster_id: &str) -> bool {
        self.old().to_generation > 0 && self.old().to_cluster_id == cluster_id
    }

    /// Where it was moving to, as the planner says: its agent's word of that is still on its way here.
    fn arrive(&mut self) {
        let (cluster_id, generation) = (self.old().to_cluster_id.clone(), self.old().to_generation);
        self.place(&cluster_id, generation);
        self.enter(InstancePhase::Running, format!("runs on {cluster_id}"));
        self.changed.replicas_running = self.wanted.replicas;
        self.migration("migrated", &self.old().cluster_id, &cluster_id);
    }

    /// On its way to where an agent speaks of a decision that is still on its way here.
    fn depart(&mut self, m: &InstanceStatusChanged) {
        self.changed.to_cluster_id.clone_from(&m.cluster_id);
        self.changed.to_generation = m.generation;
        self.changed.reason = format!("moving to {}", m.cluster_id);
        self.migration("migration", &self.old().cluster_id, &m.cluster_id);
    }

    /// Without a place.
    fn unplace(&mut self) {
        self.place("", self.changed.generation);
    }

    /// Placed again: waits for its cluster, and stays lost until it runs if it was.
    fn assign(&mut self, cluster_id: &str, generation: u64, reason: &str, lost: bool) {
        let from = match self.old().cluster_id.as_str() {
            "" => self.instance.left.clone(),
            from => from.to_owned(),
        };
        let from = if from == cluster_id { String::new() } else { from };
        let ran = !matches!(
            self.old().phase(),
            InstancePhase::Unspecified | InstancePhase::Pending | InstancePhase::Assigned | InstancePhase::Starting
        );
        self.place(cluster_id, generation);
        match lost {
            true => self.enter(InstancePhase::Lost, format!("{reason}; to be started on {cluster_id}")),
            false => self.enter(InstancePhase::Assigned, reason),
        }
        if !from.is_empty() && (ran || !self.instance.left.is_empty()) {
            self.migration("migration", &from, cluster_id);
        } else {
            self.event("deployment");
        }
    }

    fn stopped(&mut self, reason: impl Into<String>) {
        self.changed.replicas_running = 0;
        self.changed.to_cluster_id.clear();
        self.changed.to_generation = 0;
        self.enter(InstancePhase::Stopped, reason);
        self.event("stopped");
    }

    /// The fact, if it says anything new.
    fn facts(self, at: Timestamp) -> Vec<Fact> {
        if !self.again && self.changed == labelled(self.key, self.instance, self.wanted) {
            return vec![];
        }
        self.told(at)
    }

    fn told(&self, at: Timestamp) -> Vec<Fact> {
        let event = self.event.clone().map(|e| LifecycleEvent { timestamp: Some(at), ..e });
        vec![InstanceChanged { event, ..self.changed.clone() }.into()]
    }
}

/// How it was last said to fare, with who has to do with it now.
fn labelled(key: &Key, instance: &Instance, wanted: &InstanceWanted) -> InstanceChanged {
    let governors = wanted.governors.iter().map(|g| &g.intent_id);
    InstanceChanged {
        owner: key.token(0).into(),
        instance_id: key.token(1).into(),
        intent_id: wanted.intent_id.clone(),
        governed_by: governors.filter(|id| **id != wanted.intent_id).cloned().collect(),
        replicas_wanted: wanted.replicas,
        ..instance.changed.clone()
    }
}

/// How it fares, said again for those who govern it now; `None` while there is nothing to say.
pub(super) fn known_to(instance: &Instance, wanted: &InstanceWanted) -> Option<InstanceChanged> {
    let key = Key::new([&wanted.owner, &wanted.instance_id]);
    let known = instance.changed.phase() != InstancePhase::Unspecified;
    known.then(|| labelled(&key, instance, wanted))
}

/// The planner gave it a cluster.
pub(super) fn decided(key: &Key, instance: &Instance, m: &PlacementDecided, at: Timestamp) -> Vec<Fact> {
    let Some(mut next) = Next::of(key, instance) else { return vec![] };
    if m.generation <= instance.newest().max(instance.ended) {
        return vec![];
    }
    let old = next.old();
    let lost = m.why() == Why::ClusterLost;
    // The planner moves only what runs: it has heard of its source's agent what is still on its way here.
    let moves = !m.from_cluster_id.is_empty() && m.from_cluster_id != m.cluster_id && !lost;
    let from_target = moves && next.moves_to(&m.from_cluster_id);
    let from_here = moves && m.from_cluster_id == old.cluster_id && old.phase() != InstancePhase::Failed;
    if from_target {
        next.arrive();
    } else if from_here && matches!(old.phase(), InstancePhase::Assigned | InstancePhase::Lost) {
        next.enter(InstancePhase::Running, "");
        next.changed.replicas_running = m.replicas;
    }
    if from_target || from_here {
        let from = next.changed.cluster_id.clone();
        next.changed.to_cluster_id.clone_from(&m.cluster_id);
        next.changed.to_generation = m.generation;
        next.changed.reason = format!("moving to {}: {}", m.cluster_id, m.reason);
        next.migration("migration", &from, &m.cluster_id);
    } else {
        let still_lost = lost || old.phase() == InstancePhase::Lost;
        next.assign(&m.cluster_id, m.generation, &m.reason, still_lost);
    }
    next.facts(at)
}

/// The planner found no cluster for it.
pub(super) fn unplaced(key: &Key, instance: &Instance, m: &PlacementUnplaced, at: Timestamp) -> Vec<Fact> {
    let Some(mut next) = Next::of(key, instance) else { return vec![] };
    let lost = m.why() == Why::ClusterLost;
    // A planner that counts no generations speaks of the one that is known.
    let known = instance.newest().max(instance.ended);
    if known > m.generation && (m.generation > 0 || !lost) {
        return vec![];
    }
    let old = next.old();
    let arrived = next.moves_to(&m.stays_on);
    if arrived {
        next.arrive();
    }
    let stays = !m.stays_on.is_empty() && m.stays_on == next.changed.cluster_id;
    if lost && stays {
        // What its agent said later outweighs this: it is not lost any more. What it said before, this outweighs, also
        // if it was lost already: it may have been back in between.
        let weighed = !arrived && !matches!(old.phase(), InstancePhase::Assigned | InstancePhase::Pending);
        if weighed && at <= instance.phase_since {
            return vec![];
        }
        next.again = true;
        next.changed.replicas_running = 0;
        next.enter(InstancePhase::Lost, &m.reason);
        next.event(if old.phase() == InstancePhase::Lost { "unplaced" } else { "lost" });
    } else if stays && m.used_up && m.why() == Why::Changed && old.phase() == InstancePhase::Running {
        // The next revision failed wherever it was tried, beside the one that runs on.
        next.changed.reason = format!("stays on {}, with the revision before: {}", m.stays_on, m.reason);
        next.changed.hopeless = true;
        next.event("unplaced");
    } else if stays && m.used_up {
        given_up(&mut next, &m.reason);
    } else if stays {
        next.changed.reason.clone_from(&m.reason);
        next.changed.hopeless = false;
        // Lost, says who has heard its agent since: that word is on its way here.
        if !arrived && old.phase() != InstancePhase::Lost {
            next.event("unplaced");
        }
    } else if m.stays_on.is_empty() {
        next.unplace();
        let phase =
            if lost || old.phase() == InstancePhase::Lost { InstancePhase::Lost } else { InstancePhase::Pending };
        next.enter(phase, &m.reason);
        next.event("unplaced");
        if m.used_up {
            given_up(&mut next, &m.reason);
        }
    }
    next.facts(at)
}

/// The planner's last word on a placement: it failed, and is not tried elsewhere.
pub(super) fn settled(key: &Key, instance: &Instance, m: &PlacementSettled, at: Timestamp) -> Vec<Fact> {
    let Some(mut next) = Next::of(key, instance) else { return vec![] };
    let old = next.old();
    if m.failed && next.moves_to(&m.cluster_id) && m.generation == old.to_generation {
        // Its source is gone: what its agents say of the move is still on its way here.
        next.arrive();
    } else if !m.failed || m.cluster_id != old.cluster_id || m.generation != old.generation {
        return vec![];
    } else if old.phase() == InstancePhase::Failed && old.hopeless {
        // Its agent has said so itself, and why.
        return vec![];
    }
    given_up(&mut next, &m.reason);
    next.facts(at)
}

/// The planner does not make a move that somebody asked for.
pub(super) fn declined(key: &Key, instance: &Instance, m: &MigrationDeclined, at: Timestamp) -> Vec<Fact> {
    let Some(mut next) = Next::of(key, instance) else { return vec![] };
    let old = next.old();
    let here = m.cluster_id == old.cluster_id && m.generation == old.generation && old.to_generation == 0;
    if !here || !instance.asked_to_move {
        return vec![];
    }
    next.changed.reason = format!("stays on {}: {}", m.cluster_id, m.reason);
    next.migration(DECLINED, &m.cluster_id, &m.to_cluster_id);
    // Asked for again it is declined again, and told so.
    next.again = true;
    next.facts(at)
}

fn given_up(next: &mut Next<'_>, reason: &str) {
    let told = next.old().phase() == InstancePhase::Failed;
    next.enter(InstancePhase::Failed, reason);
    next.changed.replicas_running = 0;
    next.changed.hopeless = true;
    next.event = None;
    if !told {
        next.event("failed");
    }
}

/// The planner took a cluster from it.
pub(super) fn released(key: &Key, instance: &Instance, m: &PlacementReleased, at: Timestamp) -> Vec<Fact> {
    let Some(mut next) = Next::of(key, instance) else { return vec![] };
    let old = next.old();
    if next.moves_to(&m.cluster_id) && m.generation >= old.to_generation {
        let given_up = !m.stays_on.is_empty() || (next.wanted.replicas == 0 && !m.r#final);
        if given_up {
            next.changed.to_cluster_id.clear();
            next.changed.to_generation = 0;
            next.changed.reason = format!("stays on {}: {}", old.cluster_id, m.reason);
            return next.facts(at);
        }
        next.arrive();
    }
    let (cluster_id, generation) = (next.changed.cluster_id.clone(), next.changed.generation);
    if m.r#final && next.wanted.replicas == 0 {
        let running = matches!(
            next.changed.phase(),
            InstancePhase::Assigned | InstancePhase::Starting | InstancePhase::Running | InstancePhase::Restarting
        );
        if cluster_id.is_empty() || !running {
            next.stopped(&m.reason);
        } else if instance.stopping_since.is_none() {
            next.changed.to_cluster_id.clear();
            next.changed.to_generation = 0;
            next.changed.reason = format!("stopping on {cluster_id}: {}", m.reason);
            next.event(STOPPING);
        }
    } else if next.changed.to_generation > 0 {
        // While it moves, the target's agent or the source's says what came of it.
    } else if !cluster_id.is_empty() && m.cluster_id == cluster_id && m.generation >= generation {
        next.unplace();
        let phase = if old.phase() == InstancePhase::Lost { InstancePhase::Lost } else { InstancePhase::Pending };
        next.enter(phase, &m.reason);
        next.event = None;
    }
    next.facts(at)
}

/// An agent says how it fares.
pub(super) fn status(key: &Key, instance: &Instance, m: &InstanceStatusChanged, at: Timestamp) -> Vec<Fact> {
    let Some(mut next) = Next::of(key, instance) else { return vec![] };
    let old = next.old();
    let here = !old.cluster_id.is_empty() && m.cluster_id == old.cluster_id && m.generation == old.generation;
    let there = old.to_generation > 0 && m.cluster_id == old.to_cluster_id && m.generation == old.to_generation;
    let newer = m.generation > instance.newest().max(instance.ended);
    let runs = matches!(old.phase(), InstancePhase::Starting | InstancePhase::Running | InstancePhase::Restarting);
    if here {
        heard(&mut next, m, at);
    } else if there || (newer && runs && m.cluster_id != old.cluster_id) {
        match m.phase() {
            InstancePhase::Running => {
                let from = old.cluster_id.clone();
                next.place(&m.cluster_id, m.generation);
                heard(&mut next, m, at);
                next.migration("migrated", &from, &m.cluster_id);
            }
            InstancePhase::Starting | InstancePhase::Restarting if newer => next.depart(m),
            // The planner hears of it too, and gives up the move: from now on this generation is not heard.
            InstancePhase::Failed | InstancePhase::Stopped => {
                let mut facts = vec![];
                if newer {
                    next.depart(m);
                    facts = next.told(at);
                }
                next.changed.to_cluster_id.clear();
                next.changed.to_generation = 0;
                let why = if m.reason.is_empty() { "it did not start" } else { m.reason.as_str() };
                next.changed.reason = format!("stays on {}: {}: {why}", old.cluster_id, m.cluster_id);
                next.event = None;
                facts.extend(next.told(at));
                return facts;
            }
            _ => {}
        }
    } else if newer {
        let from = if old.cluster_id.is_empty() { &instance.left } else { &old.cluster_id };
        let from = if *from == m.cluster_id { String::new() } else { from.clone() };
        next.place(&m.cluster_id, m.generation);
        heard(&mut next, m, at);
        if m.phase() == InstancePhase::Running && !from.is_empty() && old.phase() != InstancePhase::Pending {
            next.migration("migrated", &from, &m.cluster_id);
        }
    }
    next.facts(at)
}

/// The agent of the cluster that it is on speaks of the placement that it is on.
fn heard(next: &mut Next<'_>, m: &InstanceStatusChanged, at: Timestamp) {
    let old = next.old();
    let lost = old.phase() == InstancePhase::Lost;
    let same_placement = next.changed.generation == old.generation;
    if lost && same_placement && at <= next.instance.phase_since {
        // Said before its cluster was lost.
        return;
    }
    let given_up = old.hopeless && same_placement;
    if given_up && at <= next.instance.phase_since {
        // Said before it was given up.
        return;
    }
    let restarts = next.changed.restarts;
    let said = |otherwise: String| if m.reason.is_empty() { otherwise } else { m.reason.clone() };
    match m.phase() {
        InstancePhase::Unspecified | InstancePhase::Pending | InstancePhase::Assigned | InstancePhase::Lost => return,
        InstancePhase::Stopped if next.wanted.replicas == 0 => {
            return next.stopped(said(format!("stopped on {}", m.cluster_id)));
        }
        // Released, which is on its way here. Should it not be, the agent starts it again.
        InstancePhase::Stopped => {
            next.enter(InstancePhase::Pending, format!("stopped on {}", m.cluster_id));
            next.changed.replicas_running = 0;
            return adopt_target(next, "");
        }
        InstancePhase::Starting | InstancePhase::Restarting if lost => {
            next.enter(InstancePhase::Lost, format!("its cluster was lost; starting on {}", m.cluster_id));
        }
        InstancePhase::Failed => {
            next.enter(InstancePhase::Failed, said(format!("failed on {}", m.cluster_id)));
            next.event("failed");
        }
        InstancePhase::Running => {
            next.enter(InstancePhase::Running, said(format!("all replicas run on {}", m.cluster_id)));
            let left = next.instance.left.clone();
            if !left.is_empty() && left != m.cluster_id {
                next.migration("migrated", &left, &m.cluster_id);
            } else if old.phase() != InstancePhase::Running {
                next.event("running");
            }
        }
        phase @ (InstancePhase::Starting | InstancePhase::Restarting) => {
            next.enter(phase, said(format!("starting on {}", m.cluster_id)));
        }
    }
    next.changed.replicas_running = m.replicas_running;
    next.changed.restarts = m.restarts;
    next.changed.hopeless = m.hopeless || (given_up && m.phase() != InstancePhase::Running);
    if same_placement && m.restarts > restarts && next.event.is_none() {
        next.event("restarted");
    }
    if m.phase() == InstancePhase::Failed {
        adopt_target(next, &m.reason);
    }
}

/// The source is gone while it moves: from now on the target is where it is.
fn adopt_target(next: &mut Next<'_>, why: &str) {
    let old = next.old();
    if old.to_generation == 0 || next.changed.to_generation == 0 {
        return;
    }
    let reason = match why {
        "" => format!("stopped on {}", old.cluster_id),
        why => format!("failed on {}: {why}", old.cluster_id),
    };
    next.assign(&old.to_cluster_id, old.to_generation, &reason, false);
}

/// When a cluster that has to stop it is not waited for any more.
pub(super) fn due(instance: &Instance) -> Option<Timestamp> {
    let wanted = instance.wanted.as_ref().is_some_and(|w| w.replicas > 0);
    instance.stopping_since.filter(|_| !wanted).map(|since| since.plus_millis(STOP_CONFIRM_MS))
}

/// Its cluster did not say that it stopped.
pub(super) fn unconfirmed(key: &Key, instance: &Instance, at: Timestamp) -> Vec<Fact> {
    let overdue = due(instance).is_some_and(|due| at >= due);
    let Some(mut next) = Next::of(key, instance).filter(|_| overdue) else { return vec![] };
    let seconds = STOP_CONFIRM_MS / 1_000;
    let reason =
        format!("released from {}, which has not confirmed the stop within {seconds} s", next.old().cluster_id);
    next.stopped(reason);
    next.facts(at)
}
