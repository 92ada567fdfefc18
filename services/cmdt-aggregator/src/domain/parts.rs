//! What each source says of a thing, kept apart; a twin is a pure function of its parts. Each part depends on the order
//! of its own source only, so it does not matter how the sources interleave.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::{
    Timestamp,
    cluster::ClusterRegistered,
    instance::InstanceStatusChanged,
    placement::{PlacementDecided, PlacementReleased},
    telemetry::{ClusterSample, InstanceSample},
    twin::Twin,
    workload::{InstanceChanged, InstancePhase},
};

/// Clusters of which an instance's newest sample is kept; more than two are heard of only when it moves often.
const SAMPLED_CLUSTERS_MAX: usize = 4;

/// What is known of one workload instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Workload {
    pub(crate) wanted: Option<Wanted>,
    pub(crate) changed: Option<(InstanceChanged, Timestamp)>,
    pub(crate) plan: Plan,
    /// What the agent of each cluster said last, of the newest generation there.
    status: BTreeMap<String, (InstanceStatusChanged, Timestamp)>,
    /// Newest sample from each cluster.
    samples: BTreeMap<String, InstanceSample>,
}

/// What the workload manager wants.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) owner: String,
    pub(crate) workload: String,
    pub(crate) intent_id: String,
    pub(crate) replicas: u32,
    /// Why it cannot be made; empty if it can.
    pub(crate) unavailable: String,
    /// Since when nobody wants it any more, never having been made.
    pub(crate) unwanted: Option<Timestamp>,
}

/// What the planner decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    decided: Option<Decided>,
    /// Why it has no place, once it has none.
    unplaced: Option<String>,
    /// Clusters that it is on, with the generation there.
    pub(crate) on: BTreeMap<String, u64>,
    owner: String,
    intent_id: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Decided {
    cluster_id: String,
    from_cluster_id: String,
    generation: u64,
    reason: String,
    replicas: u32,
}

impl Plan {
    pub(crate) fn decided(&mut self, fact: PlacementDecided) {
        self.on.insert(fact.cluster_id.clone(), fact.generation);
        self.unplaced = None;
        self.owner = fact.owner;
        self.intent_id = fact.intent_id;
        self.decided = Some(Decided {
            cluster_id: fact.cluster_id,
            from_cluster_id: fact.from_cluster_id,
            generation: fact.generation,
            reason: fact.reason,
            replicas: fact.replicas,
        });
    }

    /// No cluster can take it; `stays_on` names the one it nevertheless runs on.
    pub(crate) fn unplaced(&mut self, owner: String, intent_id: String, reason: String, stays_on: &str) {
        self.owner = owner;
        self.intent_id = intent_id;
        self.unplaced = stays_on.is_empty().then_some(reason);
    }

    pub(crate) fn released(&mut self, fact: &PlacementReleased) {
        let covers = |cluster_id: &str, generation: u64| cluster_id == fact.cluster_id && generation <= fact.generation;
        self.on.retain(|cluster_id, generation| !fact.r#final && !covers(cluster_id, *generation));
        let ended = |d: &Decided| fact.r#final || covers(&d.cluster_id, d.generation);
        self.decided = self.decided.take().filter(|d| !ended(d));
    }
}

impl Workload {
    /// Keeps what an agent says of the newest generation on its cluster.
    pub(crate) fn status(&mut self, fact: InstanceStatusChanged, at: Timestamp) {
        let known = self.status.get(&fact.cluster_id);
        if known.is_none_or(|(known, _)| known.generation <= fact.generation) {
            self.status.insert(fact.cluster_id.clone(), (fact, at));
        }
    }

    /// Keeps the newest sample of each cluster.
    pub(crate) fn sample(&mut self, sample: InstanceSample) {
        let age = |s: &InstanceSample| (s.at, s.generation);
        if self.samples.get(&sample.cluster_id).is_some_and(|known| age(known) >= age(&sample)) {
            return;
        }
        self.samples.insert(sample.cluster_id.clone(), sample);
        if self.samples.len() > SAMPLED_CLUSTERS_MAX {
            let oldest = self.samples.iter().min_by_key(|(cluster_id, s)| (s.at, (*cluster_id).clone()));
            if let Some(oldest) = oldest.map(|(cluster_id, _)| cluster_id.clone()) {
                self.samples.remove(&oldest);
            }
        }
    }

    /// Has the workload manager or the planner spoken of it? A sample or an agent alone make no twin.
    pub(crate) fn is_known(&self) -> bool {
        self.wanted.is_some() || self.changed.is_some() || self.plan != Plan::default()
    }

    /// When a sample or fact last named a thing that is unknown.
    pub(crate) fn last_seen(&self) -> Option<Timestamp> {
        let statuses = self.status.values().map(|(_, at)| *at);
        statuses.chain(self.samples.values().filter_map(|s| s.at)).max()
    }

    /// Since when it is over, if it is.
    pub(crate) fn ended(&self) -> Option<Timestamp> {
        match &self.changed {
            Some((changed, at)) => (changed.phase() == InstancePhase::Stopped).then_some(*at),
            None => self.wanted.as_ref().and_then(|w| w.unwanted),
        }
    }

    /// The twin. The workload manager says where an instance is in its life; before it has spoken of the newest first
    /// placement, the planner does; what the agent of that placement has said since is newer than both.
    pub(crate) fn twin(&self, id: &str, now: Timestamp) -> Twin {
        let mut twin = Twin { kind: "workload".into(), id: id.into(), ..Twin::default() };
        let wanted = self.wanted.clone().unwrap_or_default();
        let first =
            |texts: [&str; 3]| texts.iter().find(|t| !t.is_empty()).map_or_else(String::new, |t| (*t).to_owned());
        let (changed, mut since) = match &self.changed {
            Some((changed, at)) => (Some(changed), Some(*at)),
            None => (None, None),
        };
        twin.owner = first([&wanted.owner, changed.map_or("", |c| &c.owner), &self.plan.owner]);
        twin.intent_id = first([&wanted.intent_id, changed.map_or("", |c| &c.intent_id), &self.plan.intent_id]);
        twin.workload = wanted.workload;

        let planned = self
            .plan
            .decided
            .as_ref()
            .filter(|d| changed.is_none_or(|c| d.generation > c.generation && d.from_cluster_id.is_empty()));
        if let Some(planned) = planned {
            since = None;
            twin.cluster_id = planned.cluster_id.clone();
            twin.generation = planned.generation;
            twin.set_phase(InstancePhase::Assigned);
            twin.reason = planned.reason.clone();
            twin.replicas_wanted = planned.replicas;
        } else if let Some(changed) = changed {
            twin.cluster_id = changed.cluster_id.clone();
            twin.generation = changed.generation;
            twin.phase = changed.phase;
            twin.reason = changed.reason.clone();
            twin.replicas_wanted = changed.replicas_wanted;
            twin.replicas_running = changed.replicas_running;
            twin.restarts = changed.restarts;
        } else if wanted.unwanted.is_some() {
            twin.set_phase(InstancePhase::Stopped);
            twin.reason = "not wanted any more".into();
        } else {
            twin.set_phase(InstancePhase::Pending);
            twin.reason = wanted.unavailable;
        }
        if twin.phase() == InstancePhase::Pending
            && let Some(reason) = &self.plan.unplaced
        {
            twin.reason = reason.clone();
        }
        if self.wanted.is_some() {
            twin.replicas_wanted = wanted.replicas;
        }
        if let Some((status, at)) = self.status.get(&twin.cluster_id)
            && status.generation == twin.generation
            && since.is_none_or(|since| *at > since)
        {
            twin.phase = status.phase;
            twin.replicas_running = status.replicas_running;
            twin.restarts = status.restarts;
            twin.reason = status.reason.clone();
        }
        twin.sample_age_seconds = -1.0;
        if let Some(sample) = self.samples.get(&twin.cluster_id) {
            twin.cpu_percent = sample.cpu_percent;
            twin.memory_bytes = sample.memory_bytes;
            twin.io_read_rate = sample.io_read_rate;
            twin.io_write_rate = sample.io_write_rate;
            twin.usage_provenance = sample.provenance;
            twin.sample_age_seconds = age_seconds(sample.at, now);
        }
        twin
    }
}

/// What is known of one cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Cluster {
    pub(crate) registered: Option<ClusterRegistered>,
    /// Why the planner gave it up, while it has.
    pub(crate) lost: Option<String>,
    sample: Option<ClusterSample>,
    /// Instances placed on it.
    pub(crate) instances: BTreeSet<String>,
}

impl Cluster {
    /// Keeps the newest sample.
    pub(crate) fn sample(&mut self, sample: ClusterSample) {
        if self.sample.as_ref().is_none_or(|known| known.at < sample.at) {
            self.sample = Some(sample);
        }
    }

    /// The twin, once the cluster has declared itself.
    pub(crate) fn twin(&self, id: &str, now: Timestamp) -> Option<Twin> {
        let registered = self.registered.as_ref()?;
        let sample = self.sample.as_ref();
        Some(Twin {
            kind: "cluster".into(),
            id: id.into(),
            cluster_id: id.into(),
            reason: self.lost.clone().unwrap_or_default(),
            cpu_percent: sample.map_or(0.0, |s| s.cpu_percent),
            memory_bytes: sample.map_or(0, |s| s.memory_bytes),
            usage_provenance: sample.map_or(0, |s| s.provenance),
            sample_age_seconds: sample.map_or(-1.0, |s| age_seconds(s.at, now)),
            capacity_cpu_milli: registered.cpu_milli,
            capacity_memory_bytes: registered.memory_bytes,
            labels: registered.labels.clone(),
            instances: self.instances.iter().cloned().collect(),
            available: self.lost.is_none(),
            driver: registered.driver.clone(),
            enforcement: registered.enforcement.clone(),
            ..Twin::default()
        })
    }
}

/// The twin of a node: its clusters together. It is available while one of them is.
pub(crate) fn node_twin<'a>(id: &str, clusters: impl Iterator<Item = &'a Cluster>, now: Timestamp) -> Twin {
    let mut twin = Twin { kind: "node".into(), id: id.into(), sample_age_seconds: -1.0, ..Twin::default() };
    let (mut ids, mut drivers, mut enforcements) = (vec![], BTreeSet::new(), BTreeSet::new());
    let (mut instances, mut reasons) = (BTreeSet::new(), vec![]);
    let mut used_milli = 0.0;
    for cluster in clusters {
        let Some(registered) = &cluster.registered else { continue };
        ids.push(registered.cluster_id.clone());
        drivers.insert(registered.driver.clone());
        enforcements.insert(registered.enforcement.clone());
        instances.extend(cluster.instances.iter().cloned());
        reasons.extend(cluster.lost.as_ref().map(|reason| format!("{}: {reason}", registered.cluster_id)));
        twin.capacity_cpu_milli = twin.capacity_cpu_milli.saturating_add(registered.cpu_milli);
        twin.capacity_memory_bytes = twin.capacity_memory_bytes.saturating_add(registered.memory_bytes);
        twin.available |= cluster.lost.is_none();
        twin.labels.insert("site".into(), registered.site.clone());
        if let Some(sample) = &cluster.sample {
            used_milli += sample.cpu_percent / 100.0 * f64::from(registered.cpu_milli);
            twin.memory_bytes = twin.memory_bytes.saturating_add(sample.memory_bytes);
            // What is modelled in part is not measured.
            twin.usage_provenance = twin.usage_provenance.max(sample.provenance);
            // As old as the oldest that went into it.
            twin.sample_age_seconds = twin.sample_age_seconds.max(age_seconds(sample.at, now));
        }
    }
    if twin.capacity_cpu_milli > 0 {
        twin.cpu_percent = used_milli * 100.0 / f64::from(twin.capacity_cpu_milli);
    }
    let join = |texts: BTreeSet<String>| texts.into_iter().collect::<Vec<_>>().join(",");
    twin.driver = join(drivers);
    twin.enforcement = join(enforcements);
    twin.reason = reasons.join("; ");
    twin.instances = instances.into_iter().collect();
    if let [only] = ids.as_slice() {
        twin.cluster_id = only.clone();
    }
    twin
}

/// Never negative: a sample from a clock that is ahead is new.
fn age_seconds(at: Option<Timestamp>, now: Timestamp) -> f64 {
    at.map_or(-1.0, |at| (now.millis_since(at) as f64 / 1e3).max(0.0))
}
