//! Which intents in force govern which instances, and what they bound there: the part of the World that conflicts are
//! found in.

use std::collections::{BTreeMap, BTreeSet};

use mesh_intent::{
    Bound, Measure,
    conflict::{self, Claim, Contender},
    types,
};
use mesh_proto::intent::{
    GovernedInstance, Intent, IntentAcknowledged, IntentConflict, IntentStateChanged, NotFulfilledState, State,
};
use prost::Message as _;

/// Intents that are looked at together; more than this many govern common instances only by mistake.
const TOGETHER_MAX: usize = 1_024;

/// Owner and intent.
type IntentKey = (String, String);

/// The intents in force, and where they meet.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Contenders {
    intents: BTreeMap<IntentKey, Standing>,
    /// By owner and instance: intents in force that govern it.
    governors: BTreeMap<(String, String), BTreeSet<String>>,
    /// The conflicts of those that have any: found once at each change, however many intents then ask for them.
    found: BTreeMap<IntentKey, Vec<IntentConflict>>,
}

/// One intent in force.
#[derive(Clone, Debug, PartialEq)]
struct Standing {
    version: u64,
    contender: Contender,
    instances: BTreeSet<String>,
    /// Suspended by command: it asks for nothing.
    paused: bool,
}

/// The claims of an intent on instances, by expectation.
pub(crate) fn claims(intent: &Intent, instances: &[GovernedInstance]) -> Vec<Claim> {
    let mut claims = vec![];
    for expectation in &intent.intent_expectations {
        let Some(governed) = instances.iter().find(|g| g.expectation_id == expectation.expectation_id) else {
            continue;
        };
        for target in &expectation.expectation_targets {
            if types::measure_of(&target.target_name) == Some(Measure::Handed) {
                continue;
            }
            if let Ok(bound) = Bound::of(target) {
                claims.push(Claim {
                    instance_id: governed.instance_id.clone(),
                    expectation_id: expectation.expectation_id.clone(),
                    target_name: target.target_name.clone(),
                    bound,
                });
            }
        }
    }
    claims
}

/// An intent as one that contends.
pub(crate) fn contender(intent_id: &str, intent: &Intent, instances: &[GovernedInstance], since: u64) -> Contender {
    Contender {
        intent_id: intent_id.to_owned(),
        priority: intent.intent_priority.max(1),
        preempts: intent.intent_preemption_capability == "TRUE",
        since,
        claims: claims(intent, instances),
    }
}

impl Contenders {
    pub(crate) fn acknowledged(&mut self, fact: &IntentAcknowledged, sequence: u64) {
        let key = (fact.owner.clone(), fact.intent_id.clone());
        let before = self.remove(&key);
        let mut places: BTreeSet<String> = before.iter().flat_map(|before| before.instances.iter().cloned()).collect();
        if let Ok(intent) = Intent::decode(fact.document.clone()) {
            let same = before.filter(|before| before.version == fact.version);
            let since = same.map_or(sequence, |before| before.contender.since);
            let standing = Standing {
                version: fact.version,
                contender: contender(&fact.intent_id, &intent, &fact.instances, since),
                instances: fact.instances.iter().map(|g| g.instance_id.clone()).collect(),
                paused: paused(fact.state.as_ref(), ""),
            };
            for instance in &standing.instances {
                self.governors.entry((key.0.clone(), instance.clone())).or_default().insert(key.1.clone());
            }
            places.extend(standing.instances.iter().cloned());
            self.intents.insert(key.clone(), standing);
        }
        self.look(&key, &places);
    }

    pub(crate) fn state_changed(&mut self, fact: &IntentStateChanged) {
        let key = (fact.owner.clone(), fact.intent_id.clone());
        if fact.to.as_ref().is_some_and(|s| s.not_fulfilled_state() == NotFulfilledState::Terminated) {
            if let Some(ended) = self.remove(&key) {
                self.look(&key, &ended.instances);
            }
        } else if let Some(standing) = self.intents.get_mut(&key) {
            let paused = paused(fact.to.as_ref(), &fact.suspended_by);
            if standing.paused != paused {
                standing.paused = paused;
                let places = standing.instances.clone();
                self.look(&key, &places);
            }
        }
    }

    /// Finds again the conflicts of one intent and of all that meet on these instances.
    fn look(&mut self, (owner, intent_id): &IntentKey, instances: &BTreeSet<String>) {
        let mut together = self.together(owner, instances.iter().map(String::as_str));
        let mut found = conflict::resolve(self.contending(owner, &together));
        together.insert(intent_id.clone());
        for id in together {
            match found.remove(&id) {
                Some(conflicts) => self.found.insert((owner.clone(), id), conflicts),
                None => self.found.remove(&(owner.clone(), id)),
            };
        }
    }

    fn remove(&mut self, key: &IntentKey) -> Option<Standing> {
        let standing = self.intents.remove(key)?;
        for instance in &standing.instances {
            let place = (key.0.clone(), instance.clone());
            if let Some(governors) = self.governors.get_mut(&place) {
                governors.remove(&key.1);
                if governors.is_empty() {
                    self.governors.remove(&place);
                }
            }
        }
        Some(standing)
    }

    /// The intents that meet on these instances, directly or by others that they meet.
    pub(crate) fn together<'a>(&self, owner: &str, instances: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut open: Vec<String> = instances.map(str::to_owned).collect();
        while let Some(instance) = open.pop() {
            if found.len() >= TOGETHER_MAX || !seen.insert(instance.clone()) {
                continue;
            }
            for intent in self.governors.get(&(owner.to_owned(), instance)).into_iter().flatten() {
                if found.insert(intent.clone())
                    && let Some(standing) = self.intents.get(&(owner.to_owned(), intent.clone()))
                {
                    open.extend(standing.instances.iter().cloned());
                }
            }
        }
        found
    }

    /// The version in force of an intent and its conflicts; `None` if none is in force.
    pub(crate) fn conflicts(&self, owner: &str, intent_id: &str) -> Option<(u64, &[IntentConflict])> {
        let key = (owner.to_owned(), intent_id.to_owned());
        let standing = self.intents.get(&key)?;
        Some((standing.version, self.found.get(&key).map_or(&[], Vec::as_slice)))
    }

    fn contending<'a>(&'a self, owner: &'a str, ids: &'a BTreeSet<String>) -> impl Iterator<Item = &'a Contender> {
        let standing = ids.iter().filter_map(|id| self.intents.get(&(owner.to_owned(), id.clone())));
        standing.filter(|s| !s.paused).map(|s| &s.contender)
    }

    /// The conflicts that a contender would have in place of its version in force.
    pub(crate) fn with(&self, owner: &str, contender: &Contender) -> Vec<IntentConflict> {
        let instances = contender.claims.iter().map(|claim| claim.instance_id.as_str());
        let mut together = self.together(owner, instances);
        together.remove(&contender.intent_id);
        let mut found = conflict::resolve(self.contending(owner, &together).chain([contender]));
        found.remove(&contender.intent_id).unwrap_or_default()
    }
}

/// Is this intent suspended, and not by a conflict?
fn paused(state: Option<&State>, suspended_by: &str) -> bool {
    state.is_some_and(|s| s.not_fulfilled_state() == NotFulfilledState::Suspended) && suspended_by != "conflict"
}
