//! What each source says of a thing, kept apart; a twin is a pure function of its parts. Each part depends on the order
//! of its own source only, so it does not matter how the sources interleave.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::{
    Timestamp,
    anomaly::AnomalyDetected,
    cluster::ClusterRegistered,
    cost::CostsChanged,
    instance::InstanceStatusChanged,
    placement::{PlacementDecided, PlacementReleased},
    telemetry::{ClusterSample, InstanceSample, Metric},
    twin::{Twin, TwinAnomaly, TwinLink},
    workload::{InstanceChanged, InstancePhase},
};

use super::{
    CONTINUUM, LINKS_MAX, MINUTE_MS,
    statuses::{self, Log},
    traffic::{self, Quantile, Traffic},
};

/// Clusters of which an instance's newest sample is kept; more than two are heard of only when it moves often.
const SAMPLED_CLUSTERS_MAX: usize = 4;
/// Episodes of one instance that go on at once.
const EPISODES_MAX: usize = 32;

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
    /// Episodes that go on, in the order in which they began.
    pub(crate) anomalies: Vec<TwinAnomaly>,
    agents: Log,
    manager: Log,
    pub(crate) traffic: Traffic,
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
        self.agents.of_agent(&fact, at);
        let known = self.status.get(&fact.cluster_id);
        if known.is_none_or(|(known, _)| known.generation <= fact.generation) {
            self.status.insert(fact.cluster_id.clone(), (fact, at));
        }
    }

    /// Keeps what the workload manager says.
    pub(crate) fn changed(&mut self, fact: InstanceChanged, at: Timestamp) {
        self.manager.of_manager(&fact, at);
        self.changed = Some((fact, at));
    }

    /// An episode began.
    pub(crate) fn began(&mut self, fact: AnomalyDetected) {
        let AnomalyDetected { episode_id, detector, since, sentence, .. } = fact;
        self.anomalies.retain(|known| known.episode_id != episode_id);
        if self.anomalies.len() == EPISODES_MAX {
            self.anomalies.remove(0);
        }
        self.anomalies.push(TwinAnomaly { episode_id, detector, since, sentence });
    }

    /// Takes what a proxy measured of its requests. `None` if it is nothing that can be, false if there is no room for it.
    pub(crate) fn measure(&mut self, source: &str, metric: &Metric, at: Timestamp, value: f64) -> Option<bool> {
        let of = |label: &str| metric.labels.get(label).map(String::as_str);
        let others = |but: &str| {
            let others = metric.labels.iter().filter(|(label, _)| *label != but);
            others.map(|(label, value)| format!("{label}={value},")).collect::<String>()
        };
        if value < 0.0 {
            return None;
        }
        match metric.name.as_str() {
            traffic::COUNT => {
                let code = traffic::code(of(traffic::CODE)?)?;
                Some(self.traffic.count(source, code, others(traffic::CODE), at, value))
            }
            traffic::DURATION => match Quantile::named(of(traffic::QUANTILE)?) {
                Some(quantile) => Some(self.traffic.quantile(source, quantile, others(traffic::QUANTILE), at, value)),
                None => Some(true),
            },
            _ => Some(true),
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
        let anomalies = self.anomalies.iter().filter_map(|a| a.since);
        statuses.chain(self.samples.values().filter_map(|s| s.at)).chain(anomalies).max()
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
        twin.anomalies = self.anomalies.clone();
        twin.statuses = statuses::newest(&self.agents, &self.manager);
        twin.traffic = self.traffic.over(MINUTE_MS, now).map(|(traffic, _)| traffic);
        twin
    }
}

/// The sample that a twin of a workload shows.
pub(crate) fn sample_of(twin: &Twin, at: Timestamp) -> InstanceSample {
    InstanceSample {
        cluster_id: twin.cluster_id.clone(),
        instance_id: twin.id.clone(),
        generation: twin.generation,
        at: Some(at),
        cpu_percent: twin.cpu_percent,
        memory_bytes: twin.memory_bytes,
        io_read_rate: twin.io_read_rate,
        io_write_rate: twin.io_write_rate,
        provenance: twin.usage_provenance,
        ..InstanceSample::default()
    }
}

/// The sample that a twin of a cluster shows.
pub(crate) fn cluster_sample_of(twin: &Twin, at: Timestamp) -> ClusterSample {
    ClusterSample {
        cluster_id: twin.id.clone(),
        at: Some(at),
        cpu_percent: twin.cpu_percent,
        memory_bytes: twin.memory_bytes,
        provenance: twin.usage_provenance,
        ..ClusterSample::default()
    }
}

/// The twin of a network: every link between two clusters that is measured.
pub(crate) fn network_twin(id: &str, costs: &CostsChanged) -> Twin {
    let is_known = |value: f64| value.is_finite() && value >= 0.0;
    let link = |link: &mesh_proto::cost::LinkCost| TwinLink {
        from: link.from_cluster.clone(),
        to: link.to_cluster.clone(),
        latency_ms: Some(link.latency_ms).filter(|ms| link.up && link.probes > 0 && is_known(*ms)),
        jitter_ms: Some(link.jitter_ms).filter(|ms| link.up && link.probes > 0 && is_known(*ms)),
        loss_percent: Some(link.loss_percent).filter(|loss| link.probes > 0 && is_known(*loss)),
        throughput_mbps: Some(link.throughput_mbps).filter(|rate| link.up && is_known(*rate)),
    };
    let down = costs.links.iter().filter(|link| !link.up);
    let down: Vec<String> = down.map(|link| format!("{} -> {}", link.from_cluster, link.to_cluster)).collect();
    let reason = match down.as_slice() {
        [] => String::new(),
        [first @ .., _] if first.len() >= REASONS_MAX => format!("{} links do not answer", down.len()),
        _ => format!("no answer: {}", down.join(", ")),
    };
    Twin {
        kind: "network".into(),
        id: id.into(),
        reason,
        available: costs.links.iter().any(|link| link.up),
        sample_age_seconds: -1.0,
        links: costs.links.iter().take(LINKS_MAX).map(link).collect(),
        ..Twin::default()
    }
}

/// Links that do not answer and are named one by one.
const REASONS_MAX: usize = 8;

/// The twin of the continuum, but for its workloads: its clusters together. It is available while one of them is.
pub(crate) fn continuum_twin<'a>(clusters: impl Iterator<Item = &'a Cluster>, now: Timestamp) -> Twin {
    let mut twin = Twin { kind: "continuum".into(), id: CONTINUUM.into(), sample_age_seconds: -1.0, ..Twin::default() };
    let mut used_milli = 0.0;
    for cluster in clusters {
        let Some(registered) = &cluster.registered else { continue };
        twin.clusters += 1;
        twin.clusters_available += u32::from(cluster.lost.is_none());
        cluster.add_to(&mut twin, registered, &mut used_milli, now);
    }
    twin.available = twin.clusters_available > 0;
    if twin.capacity_cpu_milli > 0 {
        twin.cpu_percent = used_milli * 100.0 / f64::from(twin.capacity_cpu_milli);
    }
    twin
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

    /// Adds its capacity and what is used of it.
    fn add_to(&self, twin: &mut Twin, registered: &ClusterRegistered, used_milli: &mut f64, now: Timestamp) {
        twin.capacity_cpu_milli = twin.capacity_cpu_milli.saturating_add(registered.cpu_milli);
        twin.capacity_memory_bytes = twin.capacity_memory_bytes.saturating_add(registered.memory_bytes);
        if let Some(sample) = &self.sample {
            *used_milli += sample.cpu_percent / 100.0 * f64::from(registered.cpu_milli);
            twin.memory_bytes = twin.memory_bytes.saturating_add(sample.memory_bytes);
            // What is modelled in part is not measured.
            twin.usage_provenance = twin.usage_provenance.max(sample.provenance);
            // As old as the oldest that went into it.
            twin.sample_age_seconds = twin.sample_age_seconds.max(age_seconds(sample.at, now));
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
        twin.available |= cluster.lost.is_none();
        twin.labels.insert("site".into(), registered.site.clone());
        cluster.add_to(&mut twin, registered, &mut used_milli, now);
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
