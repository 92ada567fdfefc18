//! A decision in the making: what is asked, and what follows from it.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::{
    Timestamp,
    cluster::ClusterRegistered,
    cost::CostsChanged,
    deciders::placements::Fact,
    instance::{InstanceRejected, InstanceStatusChanged},
    placement::{
        ClusterJoined, ClusterLost, ClusterReturned, LatenciesNoted, LinkLatency, Missed, PlacementUnplaced,
        ReportLiveness, Why,
    },
    workload::{InstancePhase, InstanceWanted, LatencyBound},
};

use super::{
    ACTIONS_MAX, Hold, Instance, Limits, Standing, State, available, definition, fact_instance,
    facts::{Released, decided, released, set_more, settled, unplaced},
    is_a_stranger_s, on_cluster, reserve, step, step_cluster,
};
use crate::plan::{self, Choice, Cluster, Held, Request, Snapshot, Topology};

/// Most measured links that are noted: those of 256 clusters.
const LINKS_MAX: usize = 65_536;
/// Why somebody who waited is planned again.
const RETRIED: &str = "planned again as the clusters changed or capacity came free";

/// A decision in the making: the state as it is with the facts decided so far on top.
pub(super) struct Draft<'a> {
    pub(super) limits: &'a Limits,
    pub(super) base: &'a State,
    pub(super) at: Timestamp,
    /// Clusters after the facts so far; the base's until there is one.
    snapshot: Option<Snapshot>,
    /// Instances after the facts so far, `None` for ended ones.
    changed: BTreeMap<String, Option<Instance>>,
    facts: Vec<Fact>,
    /// Instances that may still be acted on.
    actions_left: usize,
    /// Clusters where capacity came free.
    freed: BTreeSet<String>,
    /// Did the clusters change, so that what is missing has to be reported again?
    clusters_changed: bool,
}

impl<'a> Draft<'a> {
    pub(super) fn new(limits: &'a Limits, base: &'a State, at: Timestamp) -> Self {
        Self {
            limits,
            base,
            at,
            snapshot: None,
            changed: BTreeMap::new(),
            facts: vec![],
            actions_left: ACTIONS_MAX,
            freed: BTreeSet::new(),
            clusters_changed: false,
        }
    }

    pub(super) fn snapshot(&self) -> &Snapshot {
        self.snapshot.as_ref().unwrap_or(&self.base.snapshot)
    }

    fn instance(&self, id: &str) -> Option<&Instance> {
        match self.changed.get(id) {
            Some(changed) => changed.as_ref(),
            None => self.base.instances.get(id),
        }
    }

    pub(super) fn push(&mut self, fact: impl Into<Fact>) {
        let fact = fact.into();
        let snapshot = self.snapshot.get_or_insert_with(|| self.base.snapshot.clone());
        if let Some(id) = fact_instance(&fact) {
            let before = match self.changed.get(id) {
                Some(changed) => changed.clone(),
                None => self.base.known(id),
            };
            if is_a_stranger_s(&fact, before.as_ref()) {
                return self.facts.push(fact);
            }
            let after = step(before.clone(), &fact, self.at, self.base.ended_generation);
            reserve(snapshot, before.as_ref(), after.as_ref());
            self.freed.extend(freed(before.as_ref(), after.as_ref()));
            self.changed.insert(id.to_owned(), after);
        } else {
            step_cluster(snapshot, &fact, self.at);
            self.clusters_changed = true;
        }
        self.facts.push(fact);
    }

    /// The facts, after those who wait for capacity were looked at, if there may be some.
    pub(super) fn finish(mut self, due: bool) -> Vec<Fact> {
        self.follow();
        let unfinished = self.base.more && (due || !self.facts.is_empty());
        if self.clusters_changed || unfinished {
            self.retry();
        } else {
            self.fill();
        }
        self.facts
    }

    // What is asked.

    pub(super) fn wanted(&mut self, wanted: &InstanceWanted) {
        let begun = self.base.instances.contains_key(&wanted.instance_id);
        let normal = definition(
            &wanted.owner,
            &wanted.instance_id,
            &wanted.intent_id,
            wanted.replicas,
            &wanted.document,
            &wanted.targets,
        );
        let Some(mut instance) = self.base.known(&wanted.instance_id) else {
            if wanted.replicas > 0 {
                let fresh = Instance { generation: self.base.ended_generation, ..Default::default() };
                self.plan(fresh.redefined(&normal), Why::First, &by_intent(wanted), false);
            }
            return;
        };
        if instance.wanted.owner != wanted.owner {
            if wanted.replicas > 0 {
                let stranger = Instance::default().redefined(&normal);
                let reason = "another owner's instance has this id; choose another";
                self.push(unplaced(self.limits, &stranger, vec![], Why::First, reason.into(), ""));
            } else {
                // Of theirs there is nothing to end; they are to hear so.
                let theirs = Instance { wanted: normal, ..Default::default() };
                self.end(&theirs);
            }
            return;
        }
        if wanted.replicas == 0 {
            if begun {
                self.end(&instance);
            }
            return;
        }
        if !begun {
            return self.plan(instance.redefined(&normal), Why::First, &by_intent(wanted), false);
        }
        let failed = instance.at.as_ref().is_some_and(|a| a.standing == Standing::Failed)
            || instance.unplaced.is_some() && !instance.tried.is_empty();
        let same = instance.defines_the_same(&normal);
        if same && !failed {
            return;
        }
        if let Some(to) = &instance.to {
            self.push(released(
                self.limits,
                &instance,
                to,
                "its definition changed during the move",
                Released::GivenUp,
            ));
            instance = self.instance(&wanted.instance_id).cloned().unwrap_or(instance);
        }
        let reason = if same { "asked for again after it failed" } else { "its definition changed" };
        self.plan(instance.redefined(&normal), Why::Changed, reason, false);
    }

    fn end(&mut self, instance: &Instance) {
        if let Some(to) = &instance.to {
            self.push(released(self.limits, instance, to, "no longer wanted", Released::Plainly));
        }
        let nowhere = Hold {
            cluster_id: String::new(),
            generation: instance.generation,
            since: self.at,
            standing: Standing::Awaited,
            revision: 0,
            cpu_milli: 0,
            memory_bytes: 0,
        };
        let last = instance.at.as_ref().unwrap_or(&nowhere);
        self.push(released(self.limits, instance, last, "no longer wanted", Released::Finally));
    }

    pub(super) fn status(&mut self, status: &InstanceStatusChanged) {
        let Some(known) = self.base.instances.get(&status.instance_id) else { return self.ended(status) };
        let is = |h: &&Hold| h.cluster_id == status.cluster_id && h.generation == status.generation;
        let (to, at) = (known.to.as_ref().filter(is), known.at.as_ref().filter(is));
        let instance = known.clone();
        match (status.phase(), to, at) {
            (InstancePhase::Running, Some(to), _) => {
                self.push(settled(self.limits, &instance, to, None));
                if let Some(source) = &instance.at {
                    let reason = format!("moved to {}", to.cluster_id);
                    self.push(released(self.limits, &instance, source, &reason, Released::Plainly));
                }
                self.keep_near(&status.instance_id);
            }
            (InstancePhase::Running, None, Some(at)) => {
                if matches!(at.standing, Standing::Awaited | Standing::Silent | Standing::Failed) {
                    self.push(settled(self.limits, &instance, at, None));
                    self.keep_near(&status.instance_id);
                }
            }
            (InstancePhase::Failed, Some(to), _) => {
                let reason = format!("failed on {}: {}", to.cluster_id, status.reason);
                self.move_failed(&instance, to, &reason, status.hopeless);
            }
            (InstancePhase::Stopped, None, Some(at)) if at.standing == Standing::Stopping => {
                self.stopped(instance);
            }
            (InstancePhase::Failed, None, Some(at)) => {
                let reason = format!("failed on {}: {}", at.cluster_id, status.reason);
                let answered = at.standing == Standing::Silent && instance.tried.contains(&at.cluster_id);
                if matches!(at.standing, Standing::Failed | Standing::Stopping) {
                    // Said already; or a restarted agent may run it once more before it learns that it must not.
                } else if instance.to.is_some() {
                    self.push(released(self.limits, &instance, at, &reason, Released::Failed));
                } else if status.hopeless {
                    self.push(settled(self.limits, &instance, at, Some(&reason)));
                } else if !answered {
                    self.elsewhere(instance, Why::Failed, &reason);
                }
            }
            _ => {}
        }
    }

    /// What must never run twice ended before, and now has stopped too.
    fn ended(&mut self, status: &InstanceStatusChanged) {
        let Some(ending) = self.base.ending.get(&status.instance_id) else { return };
        let is = |h: &&Hold| h.cluster_id == status.cluster_id && h.generation == status.generation;
        if let Some(at) = ending.at.as_ref().filter(is).filter(|_| status.phase() == InstancePhase::Stopped) {
            self.push(released(self.limits, ending, at, "stopped, after it was no longer wanted", Released::Finally));
        }
    }

    /// What must never run twice has stopped: now it may start.
    fn stopped(&mut self, instance: Instance) {
        let why = instance.unplaced.as_ref().map_or(Why::Changed, |u| Why::try_from(u.why).unwrap_or(Why::Changed));
        let reason = format!("stopped on {}", instance.cluster());
        self.plan(instance, why, &reason, true);
    }

    pub(super) fn rejected(&mut self, rejected: &InstanceRejected) {
        let Some(instance) = self.base.instances.get(&rejected.instance_id).cloned() else { return };
        let is = |h: &&Hold| h.cluster_id == rejected.cluster_id && h.generation == rejected.generation;
        let reason = format!("{} would not take it: {}", rejected.cluster_id, rejected.reason);
        if let Some(to) = instance.to.as_ref().filter(is) {
            self.move_failed(&instance, to, &reason, false);
        } else if let Some(at) = instance.at.as_ref().filter(is) {
            match at.standing {
                Standing::Stopping | Standing::Failed => {}
                // Also one that ran: a restarted agent looks again at what it can take.
                _ if instance.to.is_some() => {
                    self.push(released(self.limits, &instance, at, &reason, Released::Failed));
                }
                _ => self.elsewhere(instance, Why::Rejected, &reason),
            }
        }
    }

    pub(super) fn registered(&mut self, registered: &ClusterRegistered) {
        let ClusterRegistered { cluster_id, cpu_milli, memory_bytes, labels, driver, .. } = registered;
        let known = self.snapshot().clusters.get(cluster_id);
        let same = |k: &Cluster| {
            (k.cpu_milli, k.memory_bytes) == (*cpu_milli, *memory_bytes) && k.labels == *labels && k.driver == *driver
        };
        if known.is_some_and(same) {
            return;
        }
        self.push(ClusterJoined {
            domain: self.limits.domain.clone(),
            cluster_id: cluster_id.clone(),
            cpu_milli: *cpu_milli,
            memory_bytes: *memory_bytes,
            labels: labels.clone(),
            driver: driver.clone(),
        });
    }

    pub(super) fn liveness(&mut self, report: &ReportLiveness) {
        let (domain, cluster_id) = (self.limits.domain.clone(), report.cluster_id.clone());
        let Some(cluster) = self.snapshot().clusters.get(&cluster_id) else { return };
        match (cluster.available, report.alive) {
            (true, false) => {
                let reason = "its agent has not answered within the grace time".to_owned();
                self.push(ClusterLost { domain, cluster_id: cluster_id.clone(), reason });
                let mut displaced = self.base.displaced.clone();
                displaced.extend(on_cluster(&self.base.instances, &cluster_id));
                self.displace(displaced);
            }
            (false, true) => self.push(ClusterReturned { domain, cluster_id }),
            _ => {}
        }
    }

    /// Notes what the network was measured to take, and moves what is now too far from whom it talks to.
    pub(super) fn costs(&mut self, costs: &CostsChanged) {
        let believable = |ms: f64| ms.is_finite() && ms >= 0.0;
        let links = costs.links.iter().filter(|link| link.up && believable(link.latency_ms));
        let mut links: Vec<LinkLatency> = links
            .map(|link| LinkLatency {
                from_cluster: link.from_cluster.clone(),
                to_cluster: link.to_cluster.clone(),
                from_site: link.from_site.clone(),
                to_site: link.to_site.clone(),
                latency_ms: link.latency_ms,
            })
            .collect();
        links.truncate(LINKS_MAX);
        let noted = LatenciesNoted { domain: self.limits.domain.clone(), links, version: costs.version, more: false };
        if Topology::from(&noted) == self.snapshot().topology {
            return;
        }
        self.push(noted);
        let base = self.base;
        for id in &base.bounded {
            if self.actions_left == 0 {
                // Looked at again when the costs change next.
                return;
            }
            self.keep_near(id);
        }
    }

    /// Looks again at what is to be near an instance that is somewhere else now, as far as there is room.
    fn follow(&mut self) {
        let base = self.base;
        if base.bounded.is_empty() {
            return;
        }
        let was_at = |id: &str| base.instances.get(id).map_or("", Instance::cluster);
        let moved = self.changed.iter().filter(|(id, now)| now.as_ref().map_or("", Instance::cluster) != was_at(id));
        let moved: BTreeSet<String> = moved.map(|(id, _)| id.clone()).collect();
        let by_them = |bounds: &[LatencyBound]| bounds.iter().any(|bound| moved.contains(&bound.to_instance));
        for id in &base.bounded {
            let Some(instance) = self.instance(id).filter(|i| by_them(i.latency_bounds())) else { continue };
            if instance.unplaced.is_none() {
                self.keep_near(id);
            } else if self.can_be_placed(id) && self.go_on_with(id) == Pass::NoRoom {
                return;
            }
        }
    }

    /// Moves what runs too far from whom it talks to.
    fn keep_near(&mut self, id: &str) {
        let Some(instance) = self.instance(id).cloned() else { return };
        let Some(at) = instance.at.as_ref().filter(|at| at.standing == Standing::Running) else { return };
        if instance.to.is_some() || instance.unplaced.is_some() || !available(self.snapshot(), &at.cluster_id) {
            return;
        }
        let spec = self.resolved(&instance).spec;
        let missed = spec.and_then(|spec| self.snapshot().topology.missed_latency(&at.cluster_id, &spec));
        if let Some(missed) = missed {
            self.actions_left = self.actions_left.saturating_sub(1);
            let reason = format!("on {}: {missed}", at.cluster_id);
            self.plan(self.remembering(instance.clone()), Why::Latency, &reason, false);
        }
    }

    /// With its bounds to other instances as bounds to where those are; one to an instance that is nowhere names no place.
    fn resolved(&self, instance: &Instance) -> Instance {
        let mut resolved = instance.clone();
        if let Some(spec) = resolved.spec.as_mut() {
            spec.resolve(|peer| {
                let peer = self.instance(peer).filter(|peer| peer.wanted.owner == instance.wanted.owner)?;
                Some(peer.cluster().to_owned())
            });
        }
        resolved
    }

    pub(super) fn due(&mut self) {
        self.displace(self.base.displaced.clone());
        let limit = self.limits.start_limit_ms;
        for (since, id) in &self.base.waiting {
            if since.plus_millis(limit) > self.at || self.actions_left == 0 {
                break;
            }
            if !self.changed.contains_key(id) {
                self.actions_left -= 1;
                self.overdue(id);
            }
        }
    }

    fn overdue(&mut self, id: &str) {
        let Some(mut instance) = self.instance(id).cloned() else { return };
        let limit_ms = self.limits.start_limit_ms;
        if let Some(to) = &instance.to {
            let reason = format!("not running on {} within {limit_ms} ms", to.cluster_id);
            self.move_failed(&instance, to, &reason, false);
        } else if let Some(at) = instance.at.as_ref().filter(|a| a.standing == Standing::Awaited) {
            let reason = format!("not running on {} within {limit_ms} ms", at.cluster_id);
            self.elsewhere(instance, Why::NotStarted, &reason);
        } else if let Some(unplaced) = instance.unplaced.clone() {
            instance.rejected.clear();
            let why = Why::try_from(unplaced.why).unwrap_or_default();
            self.plan(instance, why, "asked again after a rejection", false);
        }
    }

    /// Plans those that are on a lost cluster, as far as there is room.
    fn displace(&mut self, ids: BTreeSet<String>) {
        for id in ids {
            if self.actions_left == 0 {
                return;
            }
            let Some(mut instance) = self.instance(&id).cloned() else { continue };
            if !instance.is_on_lost(self.snapshot()) {
                continue;
            }
            self.actions_left -= 1;
            if let Some(to) = instance.to.clone().filter(|t| !available(self.snapshot(), &t.cluster_id)) {
                let reason = format!("cluster lost: {}", to.cluster_id);
                self.push(released(self.limits, &instance, &to, &reason, Released::GivenUp));
                instance.to = None;
                self.next_definition(&id, &reason, false);
            }
            let Some(at) = instance.at.clone().filter(|a| !available(self.snapshot(), &a.cluster_id)) else { continue };
            let reason = format!("cluster lost: {}", at.cluster_id);
            if instance.to.is_some() {
                self.push(released(self.limits, &instance, &at, &reason, Released::Plainly));
            } else {
                self.plan(self.remembering(instance), Why::ClusterLost, &reason, false);
            }
        }
    }

    /// Looks at those who wait for capacity, as far as there is room: first places whom it can, and then, after the
    /// clusters changed, lets the others say what is missing now, each at most once per such change.
    fn retry(&mut self) {
        let clusters_changed = if self.clusters_changed { self.at } else { self.base.clusters_changed };
        loop {
            self.freed.clear();
            if self.pass(|draft, id| draft.can_be_placed(id)) == Pass::NoRoom {
                return;
            }
            if self.freed.is_empty() {
                break;
            }
        }
        self.pass(|draft, id| draft.has_news(id, clusters_changed));
    }

    /// Looks at those who waited for the room that came free, the smallest first, and at whom this decision unplaced.
    fn fill(&mut self) {
        loop {
            let freed = std::mem::take(&mut self.freed);
            if freed.is_empty() {
                return;
            }
            for cluster_id in &freed {
                for (cpu_milli, memory_bytes, id) in self.base.rooms.get(cluster_id).into_iter().flatten() {
                    let (cpu_free, memory_free) = self.free(cluster_id);
                    if *cpu_milli > cpu_free {
                        break;
                    }
                    let small = *memory_bytes <= memory_free && !self.changed.contains_key(id);
                    if small && self.can_be_placed(id) && self.go_on_with(id) == Pass::NoRoom {
                        return;
                    }
                }
            }
            let unplaced = |i: &Option<Instance>| i.as_ref().is_some_and(|i| i.unplaced.is_some());
            let fresh: Vec<String> =
                self.changed.iter().filter(|(_, i)| unplaced(i)).map(|(id, _)| id.clone()).collect();
            for id in fresh {
                if self.can_be_placed(&id) && self.go_on_with(&id) == Pass::NoRoom {
                    return;
                }
            }
        }
    }

    /// Thousandths of a core and bytes that nobody has reserved.
    fn free(&self, cluster_id: &str) -> (u64, u64) {
        self.snapshot().clusters.get(cluster_id).map_or((0, 0), |c| {
            let cpu_milli = u64::from(c.cpu_milli).saturating_sub(c.cpu_milli_reserved);
            (cpu_milli, c.memory_bytes.saturating_sub(c.memory_bytes_reserved))
        })
    }

    fn pass(&mut self, acts: impl Fn(&Self, &str) -> bool) -> Pass {
        let base = self.base;
        let fresh = self
            .changed
            .iter()
            .filter(|(id, i)| i.as_ref().is_some_and(|i| i.unplaced.is_some()) && !base.unplaced.contains(*id));
        let fresh: Vec<String> = fresh.map(|(id, _)| id.clone()).collect();
        for id in base.unplaced.iter().chain(&fresh) {
            if acts(self, id) && self.go_on_with(id) == Pass::NoRoom {
                return Pass::NoRoom;
            }
        }
        Pass::Done
    }

    /// Plans one who waits, if there is room for that in this decision.
    fn go_on_with(&mut self, id: &str) -> Pass {
        let Some((instance, why)) = self.waits_for_capacity(id).map(|(i, why)| (i.clone(), why)) else {
            return Pass::Done;
        };
        if self.actions_left == 0 {
            if let Some(last) = self.facts.last_mut() {
                set_more(last);
            }
            return Pass::NoRoom;
        }
        self.actions_left -= 1;
        self.plan(instance, why, RETRIED, false);
        Pass::Done
    }

    /// An unplaced instance that more capacity could help.
    fn waits_for_capacity(&self, id: &str) -> Option<(&Instance, Why)> {
        let instance = self.instance(id)?;
        let said = instance.unplaced.as_ref()?;
        let why = Why::try_from(said.why).unwrap_or_default();
        let stuck = instance.never_twice() && instance.is_on_lost(self.snapshot());
        let pending = self.base.displaced.contains(id) && !self.changed.contains_key(id);
        // A new definition that failed beside the one before is tried again when it is asked for again.
        let over = why == Why::Changed && said.used_up;
        (!stuck && !pending && !over && !instance.stopping()).then_some((instance, why))
    }

    fn can_be_placed(&self, id: &str) -> bool {
        self.waits_for_capacity(id).is_some_and(|(instance, why)| {
            let excluded = excluded(instance, why, self.snapshot());
            request(&self.resolved(instance), &excluded).is_some_and(|r| plan::fits(self.snapshot(), &r))
        })
    }

    fn has_news(&self, id: &str, clusters_changed: Timestamp) -> bool {
        self.waits_for_capacity(id).is_some_and(|(instance, why)| {
            let old = instance.unplaced.as_ref().filter(|said| said.since < clusters_changed);
            old.is_some_and(|said| match (said.used_up, self.used_up(instance, why)) {
                (true, true) => false,
                (false, false) => said.reason != missing(instance, why, &self.choose(instance, why)),
                _ => true,
            })
        })
    }

    // What follows.

    /// The target of a move failed: the source stays.
    fn move_failed(&mut self, instance: &Instance, to: &Hold, reason: &str, hopeless: bool) {
        self.push(released(self.limits, instance, to, reason, Released::Failed));
        self.next_definition(&instance.wanted.instance_id, reason, hopeless);
    }

    /// A move that came to nothing: if it was for a new definition, that is planned on, and told when there is nowhere left;
    /// what runs is of the definition before.
    fn next_definition(&mut self, id: &str, reason: &str, hopeless: bool) {
        let Some(instance) = self.instance(id).cloned() else { return };
        let Some(at) = instance.at.as_ref().filter(|at| at.revision != instance.revision) else { return };
        if instance.to.is_some() || !available(self.snapshot(), &at.cluster_id) {
            return;
        }
        let spent = instance.tried.len() > self.limits.attempts_elsewhere;
        if hopeless || spent || self.used_up(&instance, Why::Failed) {
            let tried: Vec<&str> = instance.tried.iter().map(String::as_str).collect();
            let reason = format!("{reason}; tried on {} and not further", tried.join(", "));
            let stays = unplaced(self.limits, &instance, vec![], Why::Changed, reason, &at.cluster_id);
            return self.push(PlacementUnplaced { used_up: true, ..stays });
        }
        self.plan(instance, Why::Changed, reason, false);
    }

    /// It cannot stay where it is: another cluster, if one does and it was not tried often enough.
    fn elsewhere(&mut self, instance: Instance, why: Why, reason: &str) {
        let Some(at) = instance.at.clone() else { return };
        let mut instance = self.remembering(instance);
        // A restarted agent may take or try it once more: only its report that it stopped is final.
        let gone = why != Why::NotStarted && !self.never_twice(&instance);
        if why == Why::Rejected {
            instance.rejected.insert(at.cluster_id.clone());
            return self.plan(instance, why, reason, gone);
        }
        instance.tried.insert(at.cluster_id.clone());
        if instance.tried.len() > self.limits.attempts_elsewhere {
            let tried: Vec<&str> = instance.tried.iter().map(String::as_str).collect();
            let reason = format!("{reason}; tried on {} and not further", tried.join(", "));
            return self.push(settled(self.limits, &instance, &at, Some(&reason)));
        }
        self.plan(instance, why, reason, gone);
    }

    /// What failed elsewhere is forgotten once it has run long enough, and a rejection once it is old enough.
    pub(super) fn remembering(&self, mut instance: Instance) -> Instance {
        let Some(at) = &instance.at else { return instance };
        let (runs, since) = (at.standing == Standing::Running, at.since);
        if runs && self.at >= since.plus_millis(self.limits.forget_failures_ms) {
            instance.tried.clear();
        }
        if self.at >= since.plus_millis(self.limits.start_limit_ms) {
            instance.rejected.clear();
        }
        instance
    }

    pub(super) fn choose(&self, instance: &Instance, why: Why) -> Choice {
        match &request(&self.resolved(instance), &excluded(instance, why, self.snapshot())) {
            Some(request) => plan::choose(self.snapshot(), request, self.limits.preference),
            None => {
                let nearest = "its workload document cannot be read".to_owned();
                Choice { chosen: None, candidates: vec![], nearest }
            }
        }
    }

    /// Plans an instance of this definition. `gone`: nothing of it runs where it is.
    fn plan(&mut self, instance: Instance, why: Why, reason: &str, gone: bool) {
        let never_twice = self.never_twice(&instance);
        if let Some(at) = instance.at.as_ref().filter(|_| !gone) {
            if at.standing == Standing::Stopping {
                let reason = format!("never runs twice: waits until {} has stopped it", at.cluster_id);
                return self.push(unplaced(self.limits, &instance, vec![], why, reason, ""));
            }
            if never_twice && !available(self.snapshot(), &at.cluster_id) {
                let reason = format!("cluster lost: {}; never runs twice, so it waits for its return", at.cluster_id);
                let stays_on = at.cluster_id.clone();
                return self.push(unplaced(self.limits, &instance, vec![], why, reason, &stays_on));
            }
        }
        let choice = self.choose(&instance, why);
        self.place(instance, choice, why, reason, gone);
    }

    fn never_twice(&self, instance: &Instance) -> bool {
        instance.never_twice() || self.instance(&instance.wanted.instance_id).is_some_and(Instance::never_twice)
    }

    /// Did it fail on every cluster that could ever take it?
    fn used_up(&self, instance: &Instance, why: Why) -> bool {
        if why != Why::Failed || instance.tried.is_empty() {
            return false;
        }
        let none = BTreeMap::new();
        let Some(request) = request(instance, &none) else { return false };
        let mut clusters = self.snapshot().clusters.iter();
        clusters.all(|(id, cluster)| instance.tried.contains(id) || plan::never(id, cluster, &request))
    }

    pub(super) fn place(&mut self, instance: Instance, choice: Choice, why: Why, reason: &str, gone: bool) {
        let stopped = gone && instance.stopping();
        let mut choice = choice;
        if choice.chosen.is_none() && stopped && why == Why::Remedy {
            // Better where it missed than nowhere.
            choice = self.choose(&instance, Why::Changed);
        }
        let at = instance.at.clone();
        let Some(chosen) = choice.chosen.clone() else {
            let used_up = self.used_up(&instance, why);
            let missing = if used_up { used_up_in_words(&instance, reason) } else { missing(&instance, why, &choice) };
            let unplaced = |stays_on: &str| PlacementUnplaced {
                used_up,
                ..unplaced(self.limits, &instance, choice.candidates, why, missing, stays_on)
            };
            // Nothing of it is left where it stopped or was rejected; where it failed, it stays to be seen.
            if let Some(at) = at.as_ref().filter(|_| stopped || why == Why::Rejected) {
                let how = if gone { Released::Plainly } else { Released::Awaited };
                let nowhere = unplaced("");
                self.push(released(self.limits, &instance, at, reason, how));
                return self.push(nowhere);
            }
            let stays = unplaced(instance.cluster());
            return self.push(stays);
        };
        let near_again = |a: &&Hold| why == Why::Latency && a.cluster_id == chosen && a.standing == Standing::Running;
        if let Some(at) = at.as_ref().filter(near_again) {
            // Where it runs is near enough again: nothing has to move.
            return self.push(settled(self.limits, &instance, at, None));
        }
        let Some(at) = at.filter(|a| a.cluster_id != chosen) else {
            return self.push(decided(self.limits, &instance, &chosen, "", choice.candidates, why, reason));
        };
        let runs = at.standing == Standing::Running && available(self.snapshot(), &at.cluster_id);
        if !gone && self.never_twice(&instance) {
            let stop = format!("{reason}; never runs twice: stopped before it starts elsewhere");
            self.push(released(self.limits, &instance, &at, &stop, Released::Awaited));
            let waits = format!("never runs twice: waits until {} has stopped it", at.cluster_id);
            self.push(unplaced(self.limits, &instance, choice.candidates, why, waits, ""));
        } else if runs && !gone {
            self.push(decided(self.limits, &instance, &chosen, &at.cluster_id, choice.candidates, why, reason));
        } else {
            self.push(decided(self.limits, &instance, &chosen, "", choice.candidates, why, reason));
            if !stopped {
                let reason = format!("planned on {chosen}: {reason}");
                self.push(released(self.limits, &instance, &at, &reason, Released::Plainly));
            }
        }
    }
}

/// How a pass over the unplaced ended.
#[derive(PartialEq)]
enum Pass {
    Done,
    NoRoom,
}

/// The clusters on which an instance holds less than before.
fn freed(before: Option<&Instance>, after: Option<&Instance>) -> Vec<String> {
    let held = |i: Option<&Instance>, id: &str| {
        let holds = i.into_iter().flat_map(|i| i.at.iter().chain(&i.to)).filter(|h| h.cluster_id == id);
        holds.fold((0, 0), |sum, h| (sum.0 + h.cpu_milli, sum.1 + h.memory_bytes))
    };
    let less = |h: &&Hold| {
        let (was, is) = (held(before, &h.cluster_id), held(after, &h.cluster_id));
        is.0 < was.0 || is.1 < was.1
    };
    let holds = before.into_iter().flat_map(|i| i.at.iter().chain(&i.to));
    holds.filter(less).map(|h| h.cluster_id.clone()).collect()
}

fn by_intent(wanted: &InstanceWanted) -> String {
    if wanted.intent_id.is_empty() { "wanted".into() } else { format!("wanted by intent {}", wanted.intent_id) }
}

/// The clusters that are no candidates for this instance, whatever their size.
pub(super) fn excluded(instance: &Instance, why: Why, snapshot: &Snapshot) -> BTreeMap<String, String> {
    let mut excluded = BTreeMap::new();
    for id in &instance.rejected {
        excluded.insert(id.clone(), "its agent would not take it".to_owned());
    }
    for id in &instance.tried {
        excluded.insert(id.clone(), "failed or did not start here".to_owned());
    }
    let Some(at) = instance.at.as_ref().filter(|_| why == Why::Remedy) else {
        // Better where it missed than nowhere.
        return excluded;
    };
    for (id, missed) in &instance.missed {
        if snapshot.clusters.get(id).is_some_and(|cluster| counts(missed, instance, cluster)) {
            excluded.insert(id.clone(), format!("its targets were missed here: {}", missed.reason));
        }
    }
    excluded.insert(at.cluster_id.clone(), "its targets are missed here".to_owned());
    excluded
}

/// Would a cluster that missed miss again, for all that is known?
fn counts(missed: &Missed, instance: &Instance, cluster: &Cluster) -> bool {
    if (cluster.cpu_milli, cluster.memory_bytes) != (missed.cluster_cpu_milli, missed.cluster_memory_bytes) {
        return false;
    }
    let (Some(then), Some(now)) = (missed.load, instance.measured) else { return true };
    let better = |name: &String| {
        let (then, now) = match name.as_str() {
            plan::RAM_USAGE => (then.memory_bytes, now.memory_bytes),
            _ => (then.cpu_milli.into(), now.cpu_milli.into()),
        };
        let less = now.saturating_mul(10) < then.saturating_mul(9);
        let more = now.saturating_mul(10) > then.saturating_mul(11);
        let mut bounds = instance.wanted.targets.iter().filter(|t| t.target_name == *name);
        bounds.all(|bound| match bound.target_condition.as_str() {
            "IS_LESS_THAN" | "IS_EQUAL_TO_OR_LESS_THAN" => less,
            "IS_GREATER_THAN" | "IS_EQUAL_TO_OR_GREATER_THAN" => more,
            _ => less || more,
        })
    };
    missed.target_names.is_empty() || !missed.target_names.iter().all(better)
}

pub(super) fn request<'a>(instance: &'a Instance, excluded: &'a BTreeMap<String, String>) -> Option<Request<'a>> {
    let held = instance.at.as_ref().map(|a| Held {
        cluster_id: &a.cluster_id,
        cpu_milli: a.cpu_milli,
        memory_bytes: a.memory_bytes,
    });
    let (spec, targets) = (instance.spec.as_ref()?, instance.wanted.targets.as_slice());
    Some(Request { spec, targets, measured: instance.measured.as_ref(), held, excluded })
}

/// Why there is nothing left to try.
fn used_up_in_words(instance: &Instance, reason: &str) -> String {
    let failed = match reason {
        RETRIED => format!("failed on {}", instance.cluster()),
        reason => reason.to_owned(),
    };
    let tried: Vec<&str> = instance.tried.iter().map(String::as_str).collect();
    format!("{failed}; tried on {}, and no other cluster could take it", tried.join(", "))
}

/// What is missing, in words; the same words for the same figures.
fn missing(instance: &Instance, why: Why, choice: &Choice) -> String {
    let nearest = &choice.nearest;
    match (why, instance.cluster()) {
        (Why::ClusterLost, at) if !at.is_empty() => format!("cluster lost: {at}; {nearest}"),
        (Why::Remedy, at) if !at.is_empty() => format!("no cluster would do better than {at}; {nearest}"),
        (Why::Latency, at) if !at.is_empty() => format!("too far from its peer on {at}; {nearest}"),
        (Why::NotStarted, at) if !at.is_empty() => format!("not started on {at}; {nearest}"),
        (Why::Failed, at) if !at.is_empty() => format!("failed on {at}; {nearest}"),
        _ => nearest.clone(),
    }
}
