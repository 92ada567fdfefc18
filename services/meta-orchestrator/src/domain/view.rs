//! What the planner did, to be asked about: clusters with what is planned on them, and why an instance is where it is.
//!
//! What is planned is the decider's own state, which it shares: nothing here folds it again. This view remembers what that
//! state forgets: registrations, past decisions, advice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use mesh_core::{Derived, Projector, Stored, query::Page};
use mesh_proto::{
    EventSet as _,
    cluster::ClusterRegistered,
    deciders::placements::Fact,
    learning::LearningAdvised,
    placement::{ClusterView, ExplainReply, PlacementDecided, PlacementUnplaced},
};

use crate::domain::{
    liveness::Believed,
    placements::{Instance, State},
};

/// Decisions kept of one instance, the newest.
pub(crate) const DECISIONS_MAX: usize = 100;
/// Decisions kept of all instances together, the newest.
const DECISIONS_TOTAL_MAX: usize = 10_000;

/// Advice kept of one instance, the newest.
const ADVICE_MAX: usize = 10;

/// A view over PLACEMENT, CLUSTER and LEARNING.
pub struct Orchestrator {
    registered: BTreeMap<String, ClusterRegistered>,
    /// By owner and instance id.
    histories: BTreeMap<(String, String), History>,
    /// Whose decision each of those kept is, oldest first.
    order: VecDeque<(String, String)>,
    total_max: usize,
    /// Are decisions looked up elsewhere? Then only advice is kept of instances.
    recorded: bool,
}

#[derive(Default)]
struct History {
    /// Newest first.
    decisions: VecDeque<PlacementDecided>,
    /// Set while it is the last that was said.
    unplaced: Option<PlacementUnplaced>,
    /// Newest first.
    advice: VecDeque<LearningAdvised>,
}

impl Default for Orchestrator {
    fn default() -> Self {
        let (registered, histories, order) = (BTreeMap::new(), BTreeMap::new(), VecDeque::new());
        Self { registered, histories, order, total_max: DECISIONS_TOTAL_MAX, recorded: false }
    }
}

/// What the planner believes of each cluster.
pub fn believed(planned: &State) -> Vec<Believed> {
    let clusters = planned.snapshot.clusters.iter();
    let believed = |(id, c): (&String, &crate::plan::Cluster)| Believed {
        cluster_id: id.clone(),
        available: c.available,
        since: c.since,
    };
    clusters.map(believed).collect()
}

impl Orchestrator {
    /// A view without decisions where they are recorded elsewhere.
    pub fn recording(recorded: bool) -> Self {
        Self { recorded, ..Self::default() }
    }

    /// What a learned policy would have done about an instance, newest first.
    pub(crate) fn advice(&self, owner: &str, instance_id: &str) -> Vec<LearningAdvised> {
        let history = self.histories.get(&(owner.to_owned(), instance_id.to_owned()));
        history.map(|history| history.advice.iter().cloned().collect()).unwrap_or_default()
    }

    /// A page of the clusters by id, and the token of the next; only the available or only the other ones if asked so.
    pub fn clusters(&self, planned: &State, page: &Page, available: Option<bool>) -> (Vec<ClusterView>, String) {
        clusters((planned, &self.registered), page, available, None)
    }

    /// One cluster; `None` if it never registered.
    pub fn cluster(&self, planned: &State, id: &str) -> Option<ClusterView> {
        cluster((planned, self.registered.get(id)), id)
    }

    /// Why an instance is where it is, also after it ended while its decisions are kept.
    pub fn explain(&self, owner: &str, instance_id: &str) -> Option<ExplainReply> {
        let history = self.histories.get(&(owner.to_owned(), instance_id.to_owned()))?;
        Some(ExplainReply {
            decisions: history.decisions.iter().cloned().collect(),
            unplaced: history.unplaced.clone(),
            advice: history.advice.iter().cloned().collect(),
        })
    }

    fn remember(&mut self, fact: &Fact) {
        match fact {
            Fact::PlacementDecided(f) => {
                let key = (f.owner.clone(), f.instance_id.clone());
                let history = self.histories.entry(key.clone()).or_default();
                // Documents are told by the workload manager; kept here they would be most of the memory.
                history.decisions.push_front(PlacementDecided { document: Bytes::new(), ..f.clone() });
                history.unplaced = None;
                self.order.push_back(key.clone());
                if history.decisions.len() > DECISIONS_MAX {
                    self.forget_oldest_of(&key);
                }
                while self.order.len() > self.total_max {
                    let Some(oldest) = self.order.front().cloned() else { break };
                    self.forget_oldest_of(&oldest);
                }
            }
            Fact::PlacementUnplaced(f) => {
                let history = self.histories.entry((f.owner.clone(), f.instance_id.clone())).or_default();
                history.unplaced = Some(PlacementUnplaced { document: Bytes::new(), ..f.clone() });
            }
            Fact::PlacementReleased(f) if f.r#final => {
                let key = (f.owner.clone(), f.instance_id.clone());
                if let Some(history) = self.histories.get_mut(&key) {
                    history.unplaced = None;
                    if history.decisions.is_empty() {
                        self.histories.remove(&key);
                    }
                }
            }
            _ => {}
        }
    }

    /// Advice is kept beside the decisions that it is about, and goes with them. Both streams are read by themselves, so
    /// that it may come first.
    fn advised(&mut self, advised: LearningAdvised) {
        let key = (advised.owner.clone(), advised.instance_id.clone());
        let is_new = !self.histories.contains_key(&key);
        if is_new && self.recorded {
            self.order.push_back(key.clone());
            if self.order.len() > self.total_max
                && let Some(oldest) = self.order.pop_front()
            {
                self.histories.remove(&oldest);
            }
        } else if is_new && self.histories.len() >= self.total_max {
            return;
        }
        let advice = &mut self.histories.entry(key).or_default().advice;
        advice.push_front(advised);
        advice.truncate(ADVICE_MAX);
    }

    fn forget_oldest_of(&mut self, key: &(String, String)) {
        if let Some(position) = self.order.iter().position(|k| k == key) {
            self.order.remove(position);
        }
        let Some(history) = self.histories.get_mut(key) else { return };
        history.decisions.pop_back();
        if history.decisions.is_empty() && history.unplaced.is_none() {
            self.histories.remove(key);
        }
    }
}

/// A page of the clusters by id, out of what is planned and the registrations after the page before: up to `until`, if more
/// registrations follow that.
pub(crate) fn clusters(
    (planned, registered): (&State, &BTreeMap<String, ClusterRegistered>),
    page: &Page,
    available: Option<bool>,
    until: Option<&str>,
) -> (Vec<ClusterView>, String) {
    let ids: BTreeSet<&String> = planned.snapshot.clusters.keys().chain(registered.keys()).collect();
    let asked_for = |id: &str| id > page.after() && until.is_none_or(|until| id <= until);
    let later = ids.into_iter().filter(|id| asked_for(id));
    let later = later.map(|id| (id.as_str(), summary((planned, registered.get(id)), id)));
    let asked = later.filter(|(_, view)| available.is_none_or(|available| view.available == available));
    let (views, next) = page.fill(asked, |(id, _)| (*id).to_owned());
    let mut views: BTreeMap<&str, ClusterView> = views.into_iter().collect();
    for (id, instance) in &planned.instances {
        for hold in instance.at.iter().chain(&instance.to) {
            if let Some(view) = views.get_mut(hold.cluster_id.as_str()) {
                view.instances.push(id.clone());
            }
        }
    }
    (views.into_values().collect(), next)
}

/// One cluster, out of what is planned and its registration; `None` if it never registered.
pub(crate) fn cluster((planned, registered): (&State, Option<&ClusterRegistered>), id: &str) -> Option<ClusterView> {
    let known = registered.is_some() || planned.snapshot.clusters.contains_key(id);
    let holds = |i: &Instance| i.at.iter().chain(&i.to).any(|h| h.cluster_id == id);
    known.then(|| ClusterView {
        instances: planned.instances.iter().filter(|(_, i)| holds(i)).map(|(id, _)| id.clone()).collect(),
        ..summary((planned, registered), id)
    })
}

fn summary((planned, registered): (&State, Option<&ClusterRegistered>), id: &str) -> ClusterView {
    let planned = planned.snapshot.clusters.get(id);
    // Until the planner has seen its agent's registration, or if that has aged out, the other one must do.
    let named = || ClusterRegistered {
        cluster_id: id.to_owned(),
        cpu_milli: planned.map_or(0, |c| c.cpu_milli),
        memory_bytes: planned.map_or(0, |c| c.memory_bytes),
        labels: planned.map(|c| c.labels.clone()).unwrap_or_default(),
        ..Default::default()
    };
    ClusterView {
        registered: Some(registered.cloned().unwrap_or_else(named)),
        available: planned.is_some_and(|c| c.available),
        cpu_milli_reserved: planned.map_or(0, |c| u32::try_from(c.cpu_milli_reserved).unwrap_or(u32::MAX)),
        memory_bytes_reserved: planned.map_or(0, |c| c.memory_bytes_reserved),
        instances: vec![],
    }
}

impl Projector for Orchestrator {
    fn apply(&mut self, stored: &Stored) -> Vec<Derived> {
        if let Ok(Some(registered)) = stored.event::<ClusterRegistered>() {
            self.registered.insert(registered.cluster_id.clone(), registered);
        } else if let Ok(Some(advised)) = stored.event::<LearningAdvised>() {
            self.advised(advised);
        } else if !self.recorded
            && let Some(fact) = read(stored)
        {
            self.remember(&fact);
        }
        vec![]
    }
}

/// A placement fact; `None` for anything else.
pub(super) fn read(stored: &Stored) -> Option<Fact> {
    if !Fact::messages().contains(&stored.message.as_str()) {
        return None;
    }
    let mut fact = Fact::decode(&stored.message, &stored.protobuf().ok()?).ok()?;
    fact.any_mut().adopt_keys(&stored.subject).ok()?;
    Some(fact)
}

#[cfg(test)]
mod tests {
    use mesh_core::Decider as _;
    use mesh_proto::{
        Timestamp,
        placement::{ClusterJoined, ClusterLost, PlacementReleased},
        workload::{Resources, WorkloadDocument},
    };
    use prost::Message as _;

    use super::*;
    use crate::domain::placements::{Limits, Placements};

    fn stored(event: impl mesh_proto::Event) -> Stored {
        mesh_test::stored(&event, 1, Timestamp::from_millis(1))
    }

    fn decided(id: &str, generation: u64, cluster: &str, from: &str) -> PlacementDecided {
        let resources = Resources { cpu_milli: 100, memory_bytes: 1_000, ..Default::default() };
        let document = WorkloadDocument { resources: Some(resources), ..Default::default() };
        PlacementDecided {
            domain: "default".into(),
            owner: "local".into(),
            instance_id: id.into(),
            generation,
            cluster_id: cluster.into(),
            from_cluster_id: from.into(),
            replicas: 2,
            document: document.encode_to_vec().into(),
            ..Default::default()
        }
    }

    fn joined(id: &str) -> ClusterJoined {
        ClusterJoined { domain: "default".into(), cluster_id: id.into(), cpu_milli: 1000, ..Default::default() }
    }

    fn view(facts: &[Stored]) -> Orchestrator {
        let mut view = Orchestrator::default();
        facts.iter().for_each(|f| assert!(view.apply(f).is_empty()));
        view
    }

    /// The planner's state after these facts.
    fn planned(facts: &[Stored]) -> State {
        let placements = Placements::new(Limits::default());
        let fold = |state, stored: &Stored| match read(stored) {
            Some(fact) => placements.evolve(state, &fact, stored.time),
            None => state,
        };
        facts.iter().fold(placements.initial(), fold)
    }

    fn page(size: u32, token: &str) -> Page {
        Page::new(size, token).unwrap()
    }

    #[test]
    fn clusters_are_listed_with_what_is_planned_on_them_page_by_page() {
        let registered = ClusterRegistered { cluster_id: "a".into(), site: "plant".into(), ..Default::default() };
        let lost = ClusterLost { domain: "default".into(), cluster_id: "b".into(), ..Default::default() };
        let facts = [
            stored(registered),
            stored(joined("a")),
            stored(joined("b")),
            stored(decided("i", 1, "a", "")),
            stored(decided("i", 2, "b", "a")),
            stored(lost),
        ];
        let (view, planned) = (view(&facts), planned(&facts));
        let (all, next) = view.clusters(&planned, &page(10, ""), None);
        assert_eq!(next, "");
        let told: Vec<_> = all.iter().map(|c| (c.available, c.cpu_milli_reserved, c.instances.clone())).collect();
        assert_eq!(told, [(true, 200, vec!["i".to_owned()]), (false, 200, vec!["i".to_owned()])]);
        assert_eq!(all[0].registered.as_ref().map(|r| r.site.as_str()), Some("plant"));
        assert_eq!(view.clusters(&planned, &page(1, ""), None), (all[..1].to_vec(), "a".to_owned()));
        assert_eq!(view.clusters(&planned, &page(10, "a"), None), (all[1..].to_vec(), String::new()));
        assert_eq!(view.clusters(&planned, &page(1, ""), Some(false)), (all[1..].to_vec(), String::new()));
        assert_eq!(view.cluster(&planned, "b").as_ref(), all.get(1));
        assert_eq!(view.cluster(&planned, "c"), None);
        let believed: Vec<_> = believed(&planned).into_iter().map(|b| (b.cluster_id, b.available)).collect();
        assert_eq!(believed, [("a".to_owned(), true), ("b".to_owned(), false)]);
    }

    #[test]
    fn decisions_are_explained_newest_first_and_outlive_the_instance() {
        let unplaced = PlacementUnplaced {
            domain: "default".into(),
            owner: "local".into(),
            instance_id: "i".into(),
            reason: "full".into(),
            ..Default::default()
        };
        let end = PlacementReleased {
            domain: "default".into(),
            owner: "local".into(),
            instance_id: "i".into(),
            r#final: true,
            ..Default::default()
        };
        let mut view = view(&[stored(joined("a")), stored(decided("i", 1, "a", "")), stored(unplaced)]);
        let explained = view.explain("local", "i").unwrap();
        assert_eq!(explained.unplaced.map(|u| u.reason), Some("full".into()));
        view.apply(&stored(decided("i", 2, "a", "")));
        view.apply(&stored(end));
        let explained = view.explain("local", "i").unwrap();
        assert_eq!(explained.decisions.iter().map(|d| d.generation).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(explained.unplaced, None);
        assert_eq!(view.explain("other", "i"), None);
    }

    #[test]
    fn what_is_kept_is_bounded_for_one_instance_and_for_all() {
        let mut view = view(&[stored(joined("a"))]);
        view.total_max = 120;
        for generation in 1..=150 {
            view.apply(&stored(decided("i", generation, "a", "")));
        }
        let kept = |view: &Orchestrator, id: &str| {
            let explained = view.explain("local", id).map(|e| e.decisions).unwrap_or_default();
            (explained.len(), explained.first().map_or(0, |d| d.generation))
        };
        assert_eq!(kept(&view, "i"), (100, 150));
        for n in 0..60 {
            view.apply(&stored(decided(&format!("j{n}"), 200, "a", "")));
        }
        assert_eq!(kept(&view, "i"), (60, 150));
        assert_eq!((view.order.len(), view.histories.len()), (120, 61));
        for n in 0..120 {
            view.apply(&stored(decided(&format!("k{n}"), 300, "a", "")));
        }
        assert_eq!(kept(&view, "i"), (0, 0));
        assert_eq!(kept(&view, "k119"), (1, 300));
    }
}
