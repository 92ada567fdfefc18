//! One digital twin per workload instance, cluster, node and network, and one of the continuum, fused from facts, samples
//! and readings.
//!
//! A twin is published when one of its status fields changes, and at most once a second when only measured values
//! moved: CPU by more than one percentage point, memory by more than 1 MB, I/O by more than 1 MB/s, what a node measures of
//! itself by the step of its unit, traffic by a tenth, links, or the list of instances on a cluster or node. Versions are
//! the milliseconds since 1970 of the publication, or one more than the version before if that is later, so that they rise
//! across restarts without asking anybody. What was published last is given to an aggregator that starts, so that it
//! publishes only what has changed since.

pub mod diff;
pub(crate) mod measured;
pub(crate) mod parts;
pub(crate) mod schedule;
pub(crate) mod statuses;
pub(crate) mod traffic;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mesh_core::Stored;
use mesh_core::{Derived, Projector};
use mesh_proto::{
    DecodeError, EventSet as _, Timestamp,
    anomaly::{AnomalyCleared, AnomalyDetected},
    cost::CostsChanged,
    deciders::{stream_cluster, stream_instance, stream_placement, stream_workload},
    derived_id,
    instance::InstanceStatusChanged,
    instance_samples, is_key, is_of_instances, is_of_readings, readings,
    telemetry::{ClusterSample, InstanceSample, Readings},
    twin::{Twin, TwinAnomaly, TwinChanged, TwinTraffic},
    workload::InstancePhase,
};
use prost::Message as _;

use self::{
    measured::Measured,
    parts::{Cluster, Wanted, Workload, continuum_twin, network_twin, node_twin},
    traffic::{MINUTE_MS, Traffic},
};

/// What a twin is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A workload instance; its id is the instance's.
    Workload,
    /// A cluster.
    Cluster,
    /// A node, as clusters name it when they register.
    Node,
    /// A network; its id is that of its domain.
    Network,
    /// All of it; its id is [`CONTINUUM`].
    Continuum,
}

/// Id of the twin of the whole continuum.
pub const CONTINUUM: &str = "continuum";

impl Kind {
    /// Every kind, in the order in which an id is searched.
    pub const ALL: [Self; 5] = [Self::Workload, Self::Cluster, Self::Node, Self::Network, Self::Continuum];

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Workload => "workload",
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::Network => "network",
            Self::Continuum => "continuum",
        }
    }

    /// The kind of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Limits of the aggregator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Least time between two versions of a twin that differ in measured values only, milliseconds.
    pub measured_ms: i64,
    /// How long a twin stays after its instance ended, milliseconds.
    pub ended_keep_ms: i64,
    /// How far ahead of the aggregator's clock a sample may be, milliseconds.
    pub ahead_ms: i64,
    /// Instances that samples speak of and no fact yet.
    pub strangers_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { measured_ms: 1_000, ended_keep_ms: 600_000, ahead_ms: 5_000, strangers_max: 1_000 }
    }
}

/// What came in and was not used, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Facts that this version cannot decode.
    pub undecodable: u64,
    /// Invalid samples: undecodable, of another thing than their key names, not finite, negative.
    pub invalid: u64,
    /// Samples from too far ahead of the aggregator's clock.
    pub ahead: u64,
    /// Samples before the aggregator knew the time.
    pub early: u64,
    /// Readings of more than ten minutes ago: a twin shows what is now.
    pub late: u64,
    /// Samples of instances that no fact speaks of, beyond the limit; readings of nodes and routes that are not the
    /// sender's.
    pub strangers: u64,
    /// Readings for which a twin has no room.
    pub crowded: u64,
}

/// Traffic of the last six minutes, and the seconds that it is of.
pub(crate) type LongTraffic = (TwinTraffic, f64);

/// A twin's name.
pub type Key = (Kind, String);

/// What was last published of a twin.
#[derive(Clone, Debug)]
struct Published {
    twin: Twin,
    at: Timestamp,
    order: u64,
}

/// All twins.
#[derive(Debug)]
pub struct Twins {
    limits: Limits,
    counts: Counts,
    started: bool,
    now: Timestamp,
    swept: Timestamp,
    workloads: BTreeMap<String, Workload>,
    clusters: BTreeMap<String, Cluster>,
    /// Clusters of each node. A node that lost all its clusters stays, without any.
    nodes: BTreeMap<String, BTreeSet<String>>,
    /// What each node measures of itself.
    measured: BTreeMap<String, Measured>,
    /// Costs of each network, by domain.
    networks: BTreeMap<String, CostsChanged>,
    /// Instances of which an anomaly goes on.
    anomalous: BTreeSet<String>,
    /// Of each instance that has not ended, whether it runs, as last looked at.
    standing: BTreeMap<String, bool>,
    running: usize,
    strangers: usize,
    dirty: BTreeSet<Key>,
    published: BTreeMap<Key, Published>,
    by_order: BTreeMap<u64, Key>,
    order: u64,
}

/// How often ended instances and strangers are looked for, milliseconds.
const SWEEP_MS: i64 = 10_000;
/// How long a sample's instance may stay without facts, milliseconds.
const STRANGER_MS: i64 = 60_000;
/// Readings older than this are not used, milliseconds.
const LATE_MS: i64 = 600_000;
/// Twins given to a watcher at once.
const BATCH_MAX: usize = 256;
/// Anomalies that a twin of several workloads names.
const ANOMALIES_MAX: usize = 100;
/// Links of a network that its twin names.
pub(crate) const LINKS_MAX: usize = 10_000;
/// Networks that are known.
const NETWORKS_MAX: usize = 64;

impl Twins {
    /// No twins.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            counts: Counts::default(),
            started: false,
            now: Timestamp::default(),
            swept: Timestamp::default(),
            workloads: BTreeMap::new(),
            clusters: BTreeMap::new(),
            nodes: BTreeMap::new(),
            measured: BTreeMap::new(),
            networks: BTreeMap::new(),
            anomalous: BTreeSet::new(),
            standing: BTreeMap::new(),
            running: 0,
            strangers: 0,
            dirty: BTreeSet::new(),
            published: BTreeMap::new(),
            by_order: BTreeMap::new(),
            order: 0,
        }
    }

    /// Twins as they were last published, before their facts are read again: what has not changed since is not published
    /// again.
    pub fn restored(limits: Limits, twins: impl IntoIterator<Item = Twin>) -> Self {
        let mut restored = Self::new(limits);
        for twin in twins {
            let (Some(kind), Some(at)) = (Kind::named(&twin.kind), twin.at) else { continue };
            let sampled = (twin.sample_age_seconds >= 0.0)
                .then(|| at.plus_millis(-((twin.sample_age_seconds * 1e3).round() as i64)));
            match kind {
                Kind::Workload => {
                    restored.strangers += usize::from(!restored.workloads.contains_key(&twin.id));
                    let workload = restored.workloads.entry(twin.id.clone()).or_default();
                    if let Some(at) = sampled {
                        workload.sample(parts::sample_of(&twin, at));
                    }
                    workload.traffic = twin.traffic.clone().map(Traffic::restored).unwrap_or_default();
                }
                Kind::Cluster => {
                    if let Some(at) = sampled {
                        restored
                            .clusters
                            .entry(twin.id.clone())
                            .or_default()
                            .sample(parts::cluster_sample_of(&twin, at));
                    }
                }
                Kind::Node => {
                    restored.measured.insert(twin.id.clone(), Measured::restored(twin.measured.clone(), at));
                }
                Kind::Network | Kind::Continuum => {}
            }
            restored.order += 1;
            let key = (kind, twin.id.clone());
            restored.by_order.insert(restored.order, key.clone());
            let published = Published { twin, at, order: restored.order };
            if let Some(twice) = restored.published.insert(key, published) {
                restored.by_order.remove(&twice.order);
            }
        }
        restored
    }

    /// What came in and was not used.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How many twins have been published and still are.
    pub fn len(&self) -> usize {
        self.published.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.published.is_empty()
    }

    /// A twin with its newest measurements; version and time are those of the last published change.
    pub fn get(&self, kind: Kind, id: &str, now: Timestamp) -> Option<Twin> {
        let mut twin = self.fuse(kind, id, now)?;
        if let Some(published) = self.published.get(&(kind, id.to_owned())) {
            twin.version = published.twin.version;
            twin.at = published.twin.at;
        }
        Some(twin)
    }

    /// Twins of an id (all when empty) and a kind published after `order`, at most 256, oldest first, each as last
    /// published; and the order to go on from.
    pub fn published_since(&self, kind: Option<Kind>, id: &str, order: u64) -> (Vec<Twin>, u64) {
        let (mut twins, mut seen) = (vec![], order);
        for (order, key) in self.by_order.range(order.saturating_add(1)..) {
            if twins.len() == BATCH_MAX {
                break;
            }
            seen = *order;
            if kind.is_none_or(|kind| kind == key.0) && (id.is_empty() || id == key.1) {
                twins.extend(self.published.get(key).map(|p| p.twin.clone()));
            }
        }
        (twins, seen)
    }

    /// The kinds and ids of twins that have been published and still are.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.published.keys()
    }

    /// Workloads published after `order`, at most 256, each with the traffic of the last six minutes and the seconds that
    /// it is of; and the order to go on from.
    pub(crate) fn workloads_since(&self, order: u64) -> (Vec<(Twin, Option<LongTraffic>)>, u64) {
        let (twins, seen) = self.published_since(Some(Kind::Workload), "", order);
        let with_traffic = |twin: Twin| {
            let traffic = self.workloads.get(&twin.id).and_then(|w| w.traffic.over(traffic::LONG_MS, self.now));
            (twin, traffic)
        };
        (twins.into_iter().map(with_traffic).collect(), seen)
    }

    /// One workload with its newest measurements and, as above, its traffic; `None` once it is gone.
    pub(crate) fn workload_now(&self, id: &str, now: Timestamp) -> Option<(Twin, Option<LongTraffic>)> {
        let twin = self.get(Kind::Workload, id, now)?;
        let traffic = self.workloads.get(id).and_then(|w| w.traffic.over(traffic::LONG_MS, now));
        Some((twin, traffic))
    }

    fn fuse(&self, kind: Kind, id: &str, now: Timestamp) -> Option<Twin> {
        match kind {
            Kind::Workload => self.workloads.get(id).filter(|w| w.is_known()).map(|w| w.twin(id, now)),
            Kind::Cluster => {
                let mut twin = self.clusters.get(id)?.twin(id, now)?;
                twin.anomalies = self.anomalies(|w| w.plan.on.contains_key(id));
                Some(twin)
            }
            Kind::Node => {
                let on = self.nodes.get(id)?;
                let mut twin = node_twin(id, on.iter().filter_map(|cluster| self.clusters.get(cluster)), now);
                twin.anomalies = self.anomalies(|w| w.plan.on.keys().any(|cluster| on.contains(cluster)));
                twin.measured = self.measured.get(id).into_iter().flat_map(Measured::shown).collect();
                Some(twin)
            }
            Kind::Network => Some(network_twin(id, self.networks.get(id)?)),
            Kind::Continuum => {
                let has_any = !self.standing.is_empty() || self.clusters.values().any(|c| c.registered.is_some());
                if id != CONTINUUM || !has_any {
                    return None;
                }
                let mut twin = continuum_twin(self.clusters.values(), now);
                let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
                (twin.workloads, twin.workloads_running) = (count(self.standing.len()), count(self.running));
                twin.anomalies = self.anomalies(|_| true);
                Some(twin)
            }
        }
    }

    /// What goes on in the workloads that are meant, the newest of it.
    fn anomalies(&self, is_meant: impl Fn(&Workload) -> bool) -> Vec<TwinAnomaly> {
        let meant =
            self.anomalous.iter().filter_map(|id| self.workloads.get(id)).filter(|w| w.is_known() && is_meant(w));
        let mut found: Vec<&TwinAnomaly> = meant.flat_map(|w| &w.anomalies).collect();
        found.sort_by(|a, b| (b.since, &b.episode_id).cmp(&(a.since, &a.episode_id)));
        found.into_iter().take(ANOMALIES_MAX).cloned().collect()
    }

    fn workload(&mut self, id: &str, change: impl FnOnce(&mut Workload)) {
        let was_stranger = self.workloads.get(id).is_some_and(|w| !w.is_known());
        let workload = self.workloads.entry(id.to_owned()).or_default();
        let before: BTreeSet<String> = workload.plan.on.keys().cloned().collect();
        change(workload);
        let after: BTreeSet<String> = workload.plan.on.keys().cloned().collect();
        let is_stranger = !workload.is_known();
        self.strangers = self.strangers + usize::from(is_stranger) - usize::from(was_stranger);
        self.dirty.insert((Kind::Workload, id.to_owned()));
        for cluster_id in before.symmetric_difference(&after) {
            self.cluster(cluster_id, |cluster| {
                if after.contains(cluster_id) {
                    cluster.instances.insert(id.to_owned());
                } else {
                    cluster.instances.remove(id);
                }
            });
        }
    }

    fn cluster(&mut self, id: &str, change: impl FnOnce(&mut Cluster)) {
        let cluster = self.clusters.entry(id.to_owned()).or_default();
        change(cluster);
        self.dirty.insert((Kind::Cluster, id.to_owned()));
        if let Some(node) = cluster.registered.as_ref().map(|r| r.node.clone()).filter(|node| is_key(node)) {
            self.dirty.insert((Kind::Node, node));
        }
        self.dirty.insert((Kind::Continuum, CONTINUUM.to_owned()));
    }

    /// Its clusters and their nodes, and the continuum, show its anomalies.
    fn anomaly(&mut self, id: &str, change: impl FnOnce(&mut Workload)) {
        self.workload(id, change);
        let Some(workload) = self.workloads.get(id) else { return };
        match workload.anomalies.is_empty() {
            true => self.anomalous.remove(id),
            false => self.anomalous.insert(id.to_owned()),
        };
        let on: Vec<String> = workload.plan.on.keys().cloned().collect();
        for cluster_id in on {
            self.cluster(&cluster_id, |_| {});
        }
        self.dirty.insert((Kind::Continuum, CONTINUUM.to_owned()));
    }

    fn of_workload(&mut self, fact: stream_workload::Event, at: Timestamp) {
        use stream_workload::Event;
        match fact {
            Event::InstanceWanted(fact) => self.workload(&fact.instance_id.clone(), |w| {
                w.wanted = Some(Wanted {
                    owner: fact.owner,
                    workload: fact.workload,
                    intent_id: fact.intent_id,
                    replicas: fact.replicas,
                    ..Wanted::default()
                });
            }),
            Event::InstanceUnavailable(fact) => self.workload(&fact.instance_id.clone(), |w| {
                let wanted = w.wanted.get_or_insert_default();
                wanted.owner = fact.owner;
                wanted.intent_id = fact.intent_id;
                wanted.unavailable = format!("{}; {}", fact.reason, fact.hint);
                wanted.unwanted = None;
                if !fact.workload.is_empty() {
                    wanted.workload = fact.workload;
                }
            }),
            Event::InstanceUnwanted(fact) => self.workload(&fact.instance_id.clone(), |w| {
                w.wanted.get_or_insert_default().unwanted = Some(at);
            }),
            Event::InstanceChanged(fact) => {
                self.workload(&fact.instance_id.clone(), |w| w.changed(fact, at));
            }
            _ => {}
        }
    }

    fn of_placement(&mut self, fact: stream_placement::Event) {
        use stream_placement::Event;
        match fact {
            Event::PlacementDecided(fact) => self.workload(&fact.instance_id.clone(), |w| w.plan.decided(fact)),
            Event::PlacementUnplaced(fact) => self.workload(&fact.instance_id.clone(), |w| {
                w.plan.unplaced(fact.owner, fact.intent_id, fact.reason, &fact.stays_on);
            }),
            Event::PlacementReleased(fact) => self.workload(&fact.instance_id.clone(), |w| w.plan.released(&fact)),
            Event::ClusterLost(fact) => self.cluster(&fact.cluster_id, |c| c.lost = Some(fact.reason)),
            Event::ClusterReturned(fact) => self.cluster(&fact.cluster_id, |c| c.lost = None),
            _ => {}
        }
    }

    fn of_instance(&mut self, fact: stream_instance::Event, at: Timestamp) {
        use stream_instance::Event;
        match fact {
            Event::InstanceStatusChanged(fact) => self.workload(&fact.instance_id.clone(), |w| w.status(fact, at)),
            Event::InstanceRejected(fact) => {
                let mut status = InstanceStatusChanged {
                    cluster_id: fact.cluster_id,
                    generation: fact.generation,
                    reason: fact.reason,
                    ..InstanceStatusChanged::default()
                };
                // Its cluster would not take it: it waits for another.
                status.set_phase(InstancePhase::Pending);
                self.workload(&fact.instance_id, |w| w.status(status, at));
            }
        }
    }

    fn of_cluster(&mut self, fact: stream_cluster::Event) {
        let stream_cluster::Event::ClusterRegistered(fact) = fact;
        let id = fact.cluster_id.clone();
        let before = self.clusters.get(&id).and_then(|c| c.registered.as_ref()).map(|r| r.node.clone());
        if let Some(node) = before.filter(|node| *node != fact.node)
            && let Some(clusters) = self.nodes.get_mut(&node)
        {
            clusters.remove(&id);
            self.dirty.insert((Kind::Node, node));
        }
        self.measured.retain(|node, _| self.nodes.get(node).is_none_or(|clusters| !clusters.is_empty()));
        if is_key(&fact.node) {
            self.nodes.entry(fact.node.clone()).or_default().insert(id.clone());
        }
        self.cluster(&id, |c| c.registered = Some(fact));
    }

    fn decode(&mut self, fact: &Stored) -> Result<(), DecodeError> {
        let body = fact.protobuf()?;
        let at = fact.time;
        match fact.stream.as_str() {
            "WORKLOAD" => self.of_workload(stream_workload::Event::decode(&fact.message, &body)?, at),
            "PLACEMENT" => self.of_placement(stream_placement::Event::decode(&fact.message, &body)?),
            "INSTANCE" => self.of_instance(stream_instance::Event::decode(&fact.message, &body)?, at),
            "CLUSTER" => self.of_cluster(stream_cluster::Event::decode(&fact.message, &body)?),
            "ANOMALY" => {
                if let Some(began) = fact.event::<AnomalyDetected>()? {
                    self.anomaly(&began.instance_id.clone(), |w| w.began(began));
                } else if let Some(over) = fact.event::<AnomalyCleared>()? {
                    self.anomaly(&over.instance_id, |w| {
                        w.anomalies.retain(|known| known.episode_id != over.episode_id)
                    });
                }
            }
            "COST" => {
                if let Some(costs) = fact.event::<CostsChanged>()? {
                    self.of_network(costs);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn of_network(&mut self, costs: CostsChanged) {
        let is_known = self.networks.contains_key(&costs.domain);
        if !is_key(&costs.domain) || (!is_known && self.networks.len() >= NETWORKS_MAX) {
            return;
        }
        self.dirty.insert((Kind::Network, costs.domain.clone()));
        self.networks.insert(costs.domain.clone(), costs);
    }

    /// Forgets instances that ended long ago, and strangers.
    fn sweep(&mut self) {
        if self.now.millis_since(self.swept) < SWEEP_MS {
            return;
        }
        self.swept = self.now;
        // Rates fall when nobody measures any more.
        let published = self.published.iter().filter(|(_, published)| published.twin.traffic.is_some());
        self.dirty.extend(published.map(|(key, _)| key.clone()).collect::<Vec<_>>());
        let (now, keep_ms) = (self.now, self.limits.ended_keep_ms);
        let is_over = |w: &Workload| match w.is_known() {
            true => w.ended().is_some_and(|at| now.millis_since(at) >= keep_ms),
            false => w.last_seen().is_none_or(|at| now.millis_since(at) >= STRANGER_MS),
        };
        let over: Vec<String> = self.workloads.iter().filter(|(_, w)| is_over(w)).map(|(id, _)| id.clone()).collect();
        for id in over {
            // Off every cluster's list first.
            self.workload(&id, |w| w.plan.on.clear());
            self.strangers -= usize::from(self.workloads.remove(&id).is_some_and(|w| !w.is_known()));
            self.anomalous.remove(&id);
            self.stands(&id, None);
            let key = (Kind::Workload, id);
            self.dirty.remove(&key);
            if let Some(published) = self.published.remove(&key) {
                self.by_order.remove(&published.order);
            }
        }
    }

    /// Counts an instance as running, as not running, or as none any more.
    fn stands(&mut self, id: &str, runs: Option<bool>) {
        let before = match runs {
            Some(runs) => self.standing.insert(id.to_owned(), runs),
            None => self.standing.remove(id),
        };
        if before != runs {
            self.running = self.running + usize::from(runs == Some(true)) - usize::from(before == Some(true));
            self.dirty.insert((Kind::Continuum, CONTINUUM.to_owned()));
        }
    }

    fn has_moved(&self, key: &Key, from: &Twin, to: &Twin) -> bool {
        has_moved(from, to)
            || traffic::has_moved(from.traffic.as_ref(), to.traffic.as_ref())
            || self.measured.get(&key.1).filter(|_| key.0 == Kind::Node).map_or_else(
                || from.measured != to.measured,
                |measured| measured.has_moved(&from.measured, &to.measured),
            )
    }

    /// Publishes a twin if it changed enough. False if it moved and its second is not over.
    fn publish(&mut self, key: &Key, derived: &mut Vec<Derived>) -> bool {
        let now = self.now;
        let Some(mut twin) = self.fuse(key.0, &key.1, now) else { return true };
        if key.0 == Kind::Workload {
            let has_ended = twin.phase() == InstancePhase::Stopped;
            self.stands(&key.1, (!has_ended).then_some(twin.phase() == InstancePhase::Running));
        }
        let before = self.published.get(key);
        if let Some(Published { twin: known, at, .. }) = before
            && has_same_status(known, &twin)
        {
            if !self.has_moved(key, known, &twin) {
                return true;
            }
            if now.millis_since(*at) < self.limits.measured_ms {
                return false;
            }
        }
        let millis = u64::try_from(now.as_millis()).unwrap_or_default();
        twin.version = millis.max(before.map_or(0, |p| p.twin.version + 1));
        twin.at = Some(now);
        let old_order = before.map(|p| p.order);
        self.order += 1;
        self.by_order.insert(self.order, key.clone());
        if let Some(old) = old_order {
            self.by_order.remove(&old);
        }
        self.published.insert(key.clone(), Published { twin: twin.clone(), at: now, order: self.order });
        let (kind, id) = (key.0.name().to_owned(), key.1.clone());
        let event_id = derived_id(&["twin", &kind, &id, &twin.version.to_string()]);
        derived.push(Derived::new(TwinChanged { kind, id, twin: Some(twin) }, event_id, now));
        true
    }
}

/// Are twins alike but for what is measured or changes with every publication?
fn has_same_status(one: &Twin, other: &Twin) -> bool {
    // Named one by one, so that a new field has to be decided on.
    let Twin {
        kind,
        id,
        version: _,
        at: _,
        cluster_id,
        owner,
        intent_id,
        workload,
        phase,
        reason,
        generation,
        replicas_wanted,
        replicas_running,
        restarts,
        cpu_percent: _,
        memory_bytes: _,
        io_read_rate: _,
        io_write_rate: _,
        sample_age_seconds: _,
        capacity_cpu_milli,
        capacity_memory_bytes,
        labels,
        instances: _,
        available,
        driver,
        enforcement,
        usage_provenance: _,
        anomalies,
        statuses,
        traffic: _,
        measured: _,
        links: _,
        clusters,
        clusters_available,
        workloads,
        workloads_running,
    } = one;
    *kind == other.kind
        && *id == other.id
        && *cluster_id == other.cluster_id
        && *owner == other.owner
        && *intent_id == other.intent_id
        && *workload == other.workload
        && *phase == other.phase
        && *reason == other.reason
        && *generation == other.generation
        && *replicas_wanted == other.replicas_wanted
        && *replicas_running == other.replicas_running
        && *restarts == other.restarts
        && *capacity_cpu_milli == other.capacity_cpu_milli
        && *capacity_memory_bytes == other.capacity_memory_bytes
        && *labels == other.labels
        && *available == other.available
        && *driver == other.driver
        && *enforcement == other.enforcement
        && *anomalies == other.anomalies
        && *statuses == other.statuses
        && *clusters == other.clusters
        && *clusters_available == other.clusters_available
        && *workloads == other.workloads
        && *workloads_running == other.workloads_running
}

fn has_moved(from: &Twin, to: &Twin) -> bool {
    (from.cpu_percent - to.cpu_percent).abs() > 1.0
        || from.memory_bytes.abs_diff(to.memory_bytes) > 1_000_000
        || (from.io_read_rate - to.io_read_rate).abs() > 1e6
        || (from.io_write_rate - to.io_write_rate).abs() > 1e6
        || (from.sample_age_seconds < 0.0) != (to.sample_age_seconds < 0.0)
        || from.usage_provenance != to.usage_provenance
        || from.instances != to.instances
        || from.links != to.links
}

/// Is it a time that can be counted with: from 1970 to the year 9999?
fn is_time(at: Timestamp) -> bool {
    (0..253_402_300_800_000_000_000).contains(&at.as_nanos())
}

fn is_number(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

/// A sample in a Zenoh message.
enum Sample {
    Instance(InstanceSample),
    Cluster(ClusterSample),
}

impl Sample {
    /// The sample, if it is one.
    fn parse(key: &str, body: &Bytes) -> Option<Vec<Self>> {
        if is_of_instances(key) {
            return Some(instance_samples(key, body)?.into_iter().map(Self::Instance).collect());
        }
        let sample = ClusterSample::decode(body.clone()).ok()?;
        (key.rsplit('/').next() == Some(sample.cluster_id.as_str())).then(|| vec![Self::Cluster(sample)])
    }

    fn is_sound(&self) -> bool {
        match self {
            Self::Instance(s) => {
                let numbers = [s.cpu_percent, s.io_read_rate, s.io_write_rate];
                is_key(&s.instance_id) && is_key(&s.cluster_id) && numbers.into_iter().all(is_number)
            }
            Self::Cluster(s) => is_key(&s.cluster_id) && is_number(s.cpu_percent),
        }
    }

    fn at(&self) -> Option<Timestamp> {
        match self {
            Self::Instance(sample) => sample.at,
            Self::Cluster(sample) => sample.at,
        }
    }
}

impl Projector for Twins {
    fn apply(&mut self, fact: &Stored) -> Vec<Derived> {
        if self.decode(fact).is_err() {
            self.counts.undecodable += 1;
        }
        vec![]
    }

    fn sample(&mut self, key: &str, body: &Bytes) -> Vec<Derived> {
        if !self.started {
            self.counts.early += 1;
            return vec![];
        }
        if is_of_readings(key) {
            match readings(key, body) {
                Some(pack) => self.read(key, &pack),
                None => self.counts.invalid += 1,
            }
            return vec![];
        }
        match Sample::parse(key, body) {
            Some(samples) => samples.into_iter().for_each(|sample| self.take(sample)),
            None => self.counts.invalid += 1,
        }
        vec![]
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Derived> {
        self.now = now.max(self.now);
        self.started = true;
        self.sweep();
        let (mut derived, mut waiting) = (vec![], vec![]);
        // The continuum is the last in order: what the others change of it is published with them.
        while let Some(key) = self.dirty.pop_first() {
            if !self.publish(&key, &mut derived) {
                waiting.push(key);
            }
        }
        self.dirty.extend(waiting);
        derived
    }
}

impl Twins {
    /// Takes readings of a node, and of routes to workloads. An agent speaks of its own node and of what runs on its cluster;
    /// a proxy, whose readings name no cluster that was ever declared, of any route.
    fn read(&mut self, key: &str, pack: &Readings) {
        let Some(begun) = pack.at.filter(|at| is_time(*at) && is_key(&pack.cluster_id)) else {
            self.counts.invalid += 1;
            return;
        };
        let sender = self.clusters.get(&pack.cluster_id).and_then(|cluster| cluster.registered.as_ref());
        let (node, is_agent) = (sender.map(|registered| registered.node.clone()), sender.is_some());
        for ((index, after_ms), value) in pack.metric.iter().zip(&pack.after_ms).zip(&pack.values) {
            let metric = usize::try_from(*index).ok().and_then(|index| pack.metrics.get(index));
            let entity = metric.and_then(|metric| pack.entities.get(usize::try_from(metric.entity).ok()?));
            let (Some(metric), Some(entity)) = (metric, entity) else { continue };
            if !["node", "route"].contains(&entity.kind.as_str()) {
                continue;
            }
            let at = begun.plus_millis((*after_ms).into());
            if !value.is_finite() {
                self.counts.invalid += 1;
            } else if at.millis_since(self.now) > self.limits.ahead_ms {
                self.counts.ahead += 1;
            } else if self.now.millis_since(at) > LATE_MS {
                self.counts.late += 1;
            } else if entity.kind == "node" {
                if node.as_ref() != Some(&entity.id) || !is_key(&entity.id) {
                    self.counts.strangers += 1;
                    continue;
                }
                let has_room = self.measured.entry(entity.id.clone()).or_default().take(metric, at, *value);
                self.counts.crowded += u64::from(!has_room);
                self.dirty.insert((Kind::Node, entity.id.clone()));
            } else {
                // A route is named by its instance, or by owner and instance.
                let id = entity.id.rsplit('/').next().unwrap_or_default();
                let workload = self.workloads.get_mut(id).filter(|w| w.is_known());
                let workload = workload.filter(|w| !is_agent || w.plan.on.contains_key(&pack.cluster_id));
                let Some(workload) = workload else {
                    self.counts.strangers += 1;
                    continue;
                };
                match workload.measure(key, metric, at, *value) {
                    Some(true) => drop(self.dirty.insert((Kind::Workload, id.to_owned()))),
                    Some(false) => self.counts.crowded += 1,
                    None => self.counts.invalid += 1,
                }
            }
        }
    }

    fn take(&mut self, sample: Sample) {
        let Some(at) = sample.at().filter(|at| is_time(*at) && sample.is_sound()) else {
            self.counts.invalid += 1;
            return;
        };
        if at.millis_since(self.now) > self.limits.ahead_ms {
            self.counts.ahead += 1;
            return;
        }
        match sample {
            Sample::Instance(sample) => {
                // A sample changes no plan, so this is shorter than `workload`: it happens most often of all.
                let id = sample.instance_id.clone();
                match self.workloads.get_mut(&id) {
                    Some(workload) => workload.sample(sample),
                    None if self.strangers >= self.limits.strangers_max => {
                        self.counts.strangers += 1;
                        return;
                    }
                    None => {
                        self.strangers += 1;
                        self.workloads.entry(id.clone()).or_default().sample(sample);
                    }
                }
                self.dirty.insert((Kind::Workload, id));
            }
            // A cluster that never declared itself has no capacity to be a share of.
            Sample::Cluster(sample) => {
                let id = sample.cluster_id.clone();
                if !self.clusters.contains_key(&id) && self.clusters.len() >= self.limits.strangers_max {
                    self.counts.strangers += 1;
                    return;
                }
                self.cluster(&id, |c| c.sample(sample));
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
