//! Remedies and policies as they stand, for those who ask.

use std::collections::{BTreeMap, VecDeque};

use mesh_core::Stored;
use mesh_core::{Derived, Projector};
use mesh_proto::remedy::{
    RemedyPolicy, RemedyPolicySet, RemedyPolicyView, RemedyRequested, RemedySettled, RemedyView, RemedyWithheld,
};

use crate::domain::remedies::default_policy;

/// Remedies that can be listed, of each owner.
pub const LISTED_MAX: usize = 10_000;
/// Owners that are kept in mind.
const OWNERS_MAX: usize = 10_000;

/// What is known of one owner.
#[derive(Debug, Default)]
struct Owner {
    policy: Option<RemedyPolicy>,
    /// Oldest first.
    remedies: VecDeque<RemedyView>,
}

/// All remedies and policies.
#[derive(Debug, Default)]
pub struct Remedies(BTreeMap<String, Owner>);

impl Remedies {
    /// Remedies of an owner that fit, newest first.
    pub fn list(&self, owner: &str, instance_id: &str, limit: usize) -> Vec<RemedyView> {
        let of = |view: &&RemedyView| {
            let requested = view.requested.as_ref().map(|r| &r.instance_id);
            let id = requested.or(view.withheld.as_ref().map(|w| &w.instance_id));
            instance_id.is_empty() || id.is_some_and(|id| id == instance_id)
        };
        let all = self.0.get(owner).into_iter().flat_map(|owner| owner.remedies.iter().rev());
        all.filter(of).take(limit).cloned().collect()
    }

    /// The policy that holds for an owner.
    pub fn policy(&self, owner: &str) -> RemedyPolicyView {
        let set = self.0.get(owner).and_then(|owner| owner.policy.clone());
        RemedyPolicyView {
            owner: owner.to_owned(),
            is_default: set.is_none(),
            policy: Some(set.unwrap_or_else(default_policy)),
        }
    }

    fn owner(&mut self, name: &str) -> Option<&mut Owner> {
        if !self.0.contains_key(name) && self.0.len() >= OWNERS_MAX {
            return None;
        }
        Some(self.0.entry(name.to_owned()).or_default())
    }
}

impl Owner {
    fn push(&mut self, view: RemedyView) {
        if self.remedies.len() == LISTED_MAX {
            self.remedies.pop_front();
        }
        self.remedies.push_back(view);
    }
}

impl Projector for Remedies {
    fn apply(&mut self, fact: &Stored) -> Vec<Derived> {
        let at = Some(fact.time);
        if let Ok(Some(set)) = fact.event::<RemedyPolicySet>() {
            if let Some(owner) = self.owner(&set.owner) {
                owner.policy = Some(set.policy.unwrap_or_default());
            }
        } else if let Ok(Some(requested)) = fact.event::<RemedyRequested>() {
            if let Some(owner) = self.owner(&requested.owner.clone()) {
                owner.push(RemedyView { requested: Some(requested), at, ..RemedyView::default() });
            }
        } else if let Ok(Some(withheld)) = fact.event::<RemedyWithheld>() {
            if let Some(owner) = self.owner(&withheld.owner.clone()) {
                owner.push(RemedyView { withheld: Some(withheld), at, ..RemedyView::default() });
            }
        } else if let Ok(Some(settled)) = fact.event::<RemedySettled>()
            && let Some(owner) = self.owner(&settled.owner)
        {
            let is = |v: &&mut RemedyView| v.requested.as_ref().is_some_and(|r| r.remedy_id == settled.remedy_id);
            if let Some(view) = owner.remedies.iter_mut().rev().find(is) {
                view.settled = Some(settled);
            }
        }
        vec![]
    }
}
