//! One instance: what its facts made of it.

use std::collections::BTreeMap;

use mesh_proto::{
    Timestamp,
    workload::{InstanceChanged, InstancePhase, InstanceUnavailable, InstanceWanted, Release},
};
use serde::{Deserialize, Serialize};

/// Replicas of one instance.
pub const REPLICAS_MAX: u32 = 100;
/// Revisions that an instance can go back to: the newest.
pub const REVISIONS_MAX: usize = 20;
/// The event that begins the wait for a cluster's word that it stopped.
pub(super) const STOPPING: &str = "stopping";
/// The event of a move that somebody asked for and the planner does not make.
pub(super) const DECLINED: &str = "migration_declined";

/// One instance: what is wanted of it, who waits for it, and how it fares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Instance {
    /// What was last wanted; `None` if it never was.
    pub(super) wanted: Option<InstanceWanted>,
    /// By intent: what it cannot have yet.
    pub(super) waiting: BTreeMap<String, InstanceUnavailable>,
    /// Since when the newest of those waits.
    pub(super) waiting_since: Option<Timestamp>,
    /// How it was last said to fare, without the event.
    pub(super) changed: InstanceChanged,
    /// Since when it is in this phase under this generation.
    pub(super) phase_since: Timestamp,
    /// Placements up to here are over, but for the one it is on.
    pub(super) ended: u64,
    /// Where it last ran, until it runs again.
    pub(super) left: String,
    /// Since when its cluster is to confirm that it stopped.
    pub(super) stopping_since: Option<Timestamp>,
    /// Did somebody ask for a move of which nothing came yet?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) asked_to_move: bool,
    /// What it was, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) revisions: Vec<Revision>,
    /// Placements up to here are of revisions before the present one.
    #[serde(default)]
    pub(super) revised_at: u64,
}

impl Instance {
    /// What is wanted, while something is.
    pub(super) fn live(&self) -> Option<&InstanceWanted> {
        self.wanted.as_ref().filter(|w| w.replicas > 0)
    }

    /// After what is wanted of it changed.
    pub(super) fn want(&mut self, fact: &InstanceWanted, at: Timestamp) {
        let served = |intent: &str| fact.governors.iter().find(|g| g.intent_id == intent).map(|g| g.intent_version);
        self.waiting.retain(|intent, waits| served(intent).is_none_or(|version| version < waits.intent_version));
        self.forget_wait();
        let over = matches!(self.changed.phase(), InstancePhase::Unspecified | InstancePhase::Stopped);
        if fact.replicas > 0 {
            self.stopping_since = None;
            if over {
                self.ended = self.ended.max(self.changed.generation).max(self.changed.to_generation);
                self.left.clear();
                self.changed = InstanceChanged {
                    phase: InstancePhase::Pending.into(),
                    generation: self.changed.generation,
                    ..Default::default()
                };
            }
        }
        let revision = |wanted: &InstanceWanted| wanted.revision.max(1);
        if self.wanted.as_ref().is_none_or(|old| revision(old) < revision(fact)) {
            self.revised_at = self.newest().max(self.ended);
        }
        remember(&mut self.revisions, fact, at);
        self.wanted = Some(InstanceWanted { command_id: String::new(), ..fact.clone() });
    }

    /// After it was deleted: nothing but the generations that are over, and who waits for one of its id.
    pub(super) fn forget(&mut self) {
        let ended = self.ended.max(self.changed.generation).max(self.changed.to_generation);
        let waiting = std::mem::take(&mut self.waiting);
        *self = Self { ended, waiting, waiting_since: self.waiting_since, ..Self::default() };
    }

    /// After an intent was told that it cannot have it.
    pub(super) fn wait(&mut self, fact: &InstanceUnavailable, at: Timestamp) {
        self.waiting.insert(fact.intent_id.clone(), fact.clone());
        self.waiting_since = Some(at);
    }

    /// After an intent stopped waiting.
    pub(super) fn wait_no_more(&mut self, intent_id: &str) {
        self.waiting.remove(intent_id);
        self.forget_wait();
    }

    fn forget_wait(&mut self) {
        if self.waiting.is_empty() {
            self.waiting_since = None;
        }
    }

    /// After it was said how it fares.
    pub(super) fn change(&mut self, fact: &InstanceChanged, at: Timestamp) {
        let old = std::mem::replace(&mut self.changed, InstanceChanged { event: None, ..fact.clone() });
        let new = &self.changed;
        let moved = new.cluster_id != old.cluster_id;
        if new.cluster_id.is_empty() && moved {
            self.ended = self.ended.max(old.generation).max(new.generation);
        }
        // A move that led nowhere.
        if old.to_generation != new.to_generation && old.to_generation != new.generation {
            self.ended = self.ended.max(old.to_generation);
        }
        let ran = matches!(
            old.phase(),
            InstancePhase::Running | InstancePhase::Restarting | InstancePhase::Failed | InstancePhase::Lost
        );
        if moved && ran && !old.cluster_id.is_empty() {
            self.left.clone_from(&old.cluster_id);
        }
        if matches!(new.phase(), InstancePhase::Running | InstancePhase::Stopped) {
            self.left.clear();
        }
        let event = fact.event.as_ref().map_or("", |e| e.r#type.as_str());
        // Lost still or again: what its agent said in between is outweighed too.
        let lost_again = new.phase() == InstancePhase::Lost && matches!(event, "lost" | "unplaced");
        if new.phase != old.phase || new.generation != old.generation || lost_again {
            self.phase_since = at;
        }
        // It runs: what may happen to it later is not a failure of the upgrade any more.
        let begun = new.phase() == InstancePhase::Running && new.generation > self.revised_at;
        if let Some(wanted) = self.wanted.as_mut().filter(|_| begun) {
            wanted.atomic = false;
        }
        if event == DECLINED || moved || new.to_generation != old.to_generation {
            self.asked_to_move = false;
        }
        if event == STOPPING {
            self.stopping_since = Some(at);
        } else if new.phase() == InstancePhase::Stopped {
            self.stopping_since = None;
        }
    }

    /// The newest generation that it is on or moves to.
    pub(super) fn newest(&self) -> u64 {
        self.changed.generation.max(self.changed.to_generation)
    }

    /// Is nothing wanted of it, and nothing left of it?
    pub(super) fn is_over(&self) -> bool {
        self.wanted.as_ref().is_none_or(|w| w.replicas == 0) && self.changed.phase() == InstancePhase::Stopped
    }
}

/// What an instance was once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Revision {
    pub(super) revision: u32,
    pub(super) workload: String,
    pub(super) replicas: u32,
    pub(super) release: Option<Release>,
    pub(super) at: Timestamp,
}

/// Keeps what is wanted now, if it is another revision than the last.
fn remember(revisions: &mut Vec<Revision>, fact: &InstanceWanted, at: Timestamp) {
    let revision = fact.revision.max(1);
    if let Some(last) = revisions.last_mut().filter(|last| last.revision == revision) {
        // The same content: how many of it may have changed.
        last.replicas = if fact.replicas > 0 { fact.replicas } else { last.replicas };
        return;
    }
    if revisions.len() >= REVISIONS_MAX {
        revisions.remove(0);
    }
    let (workload, release) = (fact.workload.clone(), fact.release.clone());
    revisions.push(Revision { revision, workload, replicas: fact.replicas, release, at });
}

/// With its revision: the same while document and release are, else the next.
pub(super) fn revised(mut next: InstanceWanted, instance: &Instance) -> InstanceWanted {
    let same = |old: &&InstanceWanted| old.document == next.document && old.release == next.release;
    next.delete = false;
    match instance.wanted.as_ref() {
        None => next.revision = 1,
        Some(old) if same(&old) => next.revision = old.revision.max(1),
        Some(old) => {
            next.revision = old.revision.max(1) + 1;
            next.rolled_back_to = 0;
            next.atomic = false;
        }
    }
    next
}

pub(super) fn is_governor(wanted: &InstanceWanted, intent_id: &str) -> bool {
    wanted.governors.iter().any(|g| g.intent_id == intent_id)
}
