//! The facts of a decision, each from the instance that it is about.

use mesh_proto::{
    deciders::placements::Fact,
    placement::{Candidate, PlacementDecided, PlacementReleased, PlacementSettled, PlacementUnplaced, Why},
};

use super::{Hold, Instance, Limits};
use crate::plan;

/// Says on a decision's last fact that work is left for the next decision.
pub(super) fn set_more(fact: &mut Fact) {
    match fact {
        Fact::PlacementDecided(f) => f.more = true,
        Fact::PlacementUnplaced(f) => f.more = true,
        Fact::PlacementReleased(f) => f.more = true,
        Fact::LatenciesNoted(f) => f.more = true,
        _ => debug_assert!(false, "work is left only behind facts about instances"),
    }
}

pub(super) fn decided(
    limits: &Limits,
    instance: &Instance,
    cluster_id: &str,
    from_cluster_id: &str,
    candidates: Vec<Candidate>,
    why: Why,
    reason: &str,
) -> PlacementDecided {
    let wanted = &instance.wanted;
    let load = instance.spec.as_ref().map_or(0, |s| plan::load_milli(s, instance.measured.as_ref()));
    PlacementDecided {
        domain: limits.domain.clone(),
        owner: wanted.owner.clone(),
        instance_id: wanted.instance_id.clone(),
        intent_id: wanted.intent_id.clone(),
        generation: instance.generation + 1,
        cluster_id: cluster_id.into(),
        from_cluster_id: from_cluster_id.into(),
        candidates,
        reason: reason.into(),
        replicas: wanted.replicas,
        document: wanted.document.clone(),
        targets: wanted.targets.clone(),
        load_milli: u32::try_from(load).unwrap_or(u32::MAX),
        measured: instance.measured,
        why: why.into(),
        tried: instance.tried.iter().cloned().collect(),
        rejected: instance.rejected.iter().cloned().collect(),
        more: false,
        missed: instance.missed.values().cloned().collect(),
    }
}

pub(super) fn unplaced(
    limits: &Limits,
    instance: &Instance,
    candidates: Vec<Candidate>,
    why: Why,
    reason: String,
    stays_on: &str,
) -> PlacementUnplaced {
    let wanted = &instance.wanted;
    PlacementUnplaced {
        domain: limits.domain.clone(),
        owner: wanted.owner.clone(),
        instance_id: wanted.instance_id.clone(),
        intent_id: wanted.intent_id.clone(),
        candidates,
        reason,
        stays_on: stays_on.into(),
        replicas: wanted.replicas,
        document: wanted.document.clone(),
        targets: wanted.targets.clone(),
        measured: instance.measured,
        why: why.into(),
        tried: instance.tried.iter().cloned().collect(),
        rejected: instance.rejected.iter().cloned().collect(),
        more: false,
        generation: instance.generation,
        missed: instance.missed.values().cloned().collect(),
        used_up: false,
        asked_by: instance.asked_by.iter().cloned().collect(),
    }
}

/// How a hold ends.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Released {
    /// Its place is taken by another, or nothing is left to run.
    Plainly,
    /// A move is given up without blame on the target; the source stays.
    GivenUp,
    /// One end of a move failed or stayed silent; the other goes on.
    Failed,
    /// The planner waits for the cluster's word that it stopped.
    Awaited,
    /// The instance leaves the domain.
    Finally,
}

pub(super) fn released(
    limits: &Limits,
    instance: &Instance,
    hold: &Hold,
    reason: &str,
    how: Released,
) -> PlacementReleased {
    let stays_on = match how {
        Released::GivenUp | Released::Failed if hold.cluster_id != instance.cluster() => instance.cluster(),
        _ => "",
    };
    PlacementReleased {
        domain: limits.domain.clone(),
        owner: instance.wanted.owner.clone(),
        instance_id: instance.wanted.instance_id.clone(),
        cluster_id: hold.cluster_id.clone(),
        generation: hold.generation,
        reason: reason.into(),
        r#final: how == Released::Finally,
        stays_on: stays_on.into(),
        failed: how == Released::Failed,
        awaited: how == Released::Awaited,
        more: false,
    }
}

pub(super) fn settled(limits: &Limits, instance: &Instance, hold: &Hold, failed: Option<&str>) -> PlacementSettled {
    PlacementSettled {
        domain: limits.domain.clone(),
        instance_id: instance.wanted.instance_id.clone(),
        cluster_id: hold.cluster_id.clone(),
        generation: hold.generation,
        reason: failed.unwrap_or_default().into(),
        failed: failed.is_some(),
        owner: instance.wanted.owner.clone(),
    }
}
