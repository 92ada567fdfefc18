//! One digital twin per workload instance, cluster and node, fused from facts and samples.
//!
//! A twin is published when one of its status fields changes, and at most once a second when only measured values
//! moved: CPU by more than one percentage point, memory by more than 1 MB, I/O by more than 1 MB/s, or the list of
//! instances on a cluster or node. Versions are the milliseconds since 1970 of the publication, or one more
//! than the version before if that is later, so that they rise across restarts without asking anybody.

pub(crate) mod parts;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mesh_core::Stored;
use mesh_core::{Derived, Projector};
use mesh_proto::{
    DecodeError, EventSet as _, Timestamp,
    deciders::{stream_cluster, stream_instance, stream_placement, stream_workload},
    derived_id,
    instance::InstanceStatusChanged,
    instance_samples, is_key, is_of_instances,
    telemetry::{ClusterSample, InstanceSample},
    twin::{Twin, TwinChanged},
    workload::InstancePhase,
};
use prost::Message as _;

use self::parts::{Cluster, Wanted, Workload, node_twin};

/// What a twin is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A workload instance; its id is the instance's.
    Workload,
    /// A cluster.
    Cluster,
    /// A node, as clusters name it when they register.
    Node,
}

impl Kind {
    /// Every kind, in the order in which an id is searched.
    pub const ALL: [Self; 3] = [Self::Workload, Self::Cluster, Self::Node];

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Workload => "workload",
            Self::Cluster => "cluster",
            Self::Node => "node",
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
    /// Samples of instances that no fact speaks of, beyond the limit.
    pub strangers: u64,
}

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
/// Twins given to a watcher at once.
const BATCH_MAX: usize = 256;

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
            strangers: 0,
            dirty: BTreeSet::new(),
            published: BTreeMap::new(),
            by_order: BTreeMap::new(),
            order: 0,
        }
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

    fn fuse(&self, kind: Kind, id: &str, now: Timestamp) -> Option<Twin> {
        match kind {
            Kind::Workload => self.workloads.get(id).filter(|w| w.is_known()).map(|w| w.twin(id, now)),
            Kind::Cluster => self.clusters.get(id)?.twin(id, now),
            Kind::Node => {
                let clusters = self.nodes.get(id)?.iter().filter_map(|cluster| self.clusters.get(cluster));
                Some(node_twin(id, clusters, now))
            }
        }
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
                self.workload(&fact.instance_id.clone(), |w| w.changed = Some((fact, at)));
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
            _ => {}
        }
        Ok(())
    }

    /// Forgets instances that ended long ago, and strangers.
    fn sweep(&mut self) {
        if self.now.millis_since(self.swept) < SWEEP_MS {
            return;
        }
        self.swept = self.now;
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
            let key = (Kind::Workload, id);
            self.dirty.remove(&key);
            if let Some(published) = self.published.remove(&key) {
                self.by_order.remove(&published.order);
            }
        }
    }

    /// Publishes a twin if it changed enough. False if it moved and its second is not over.
    fn publish(&mut self, key: &Key, derived: &mut Vec<Derived>) -> bool {
        let now = self.now;
        let Some(mut twin) = self.fuse(key.0, &key.1, now) else { return true };
        let before = self.published.get(key);
        if let Some(Published { twin: known, at, .. }) = before
            && status_of(known) == status_of(&twin)
        {
            if !has_moved(known, &twin) {
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

/// A twin without what is measured or changes with every publication.
fn status_of(twin: &Twin) -> Twin {
    Twin {
        version: 0,
        at: None,
        cpu_percent: 0.0,
        memory_bytes: 0,
        io_read_rate: 0.0,
        io_write_rate: 0.0,
        usage_provenance: 0,
        sample_age_seconds: 0.0,
        instances: vec![],
        ..twin.clone()
    }
}

fn has_moved(from: &Twin, to: &Twin) -> bool {
    (from.cpu_percent - to.cpu_percent).abs() > 1.0
        || from.memory_bytes.abs_diff(to.memory_bytes) > 1_000_000
        || (from.io_read_rate - to.io_read_rate).abs() > 1e6
        || (from.io_write_rate - to.io_write_rate).abs() > 1e6
        || (from.sample_age_seconds < 0.0) != (to.sample_age_seconds < 0.0)
        || from.usage_provenance != to.usage_provenance
        || from.instances != to.instances
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
        let mut derived = vec![];
        for key in std::mem::take(&mut self.dirty) {
            if !self.publish(&key, &mut derived) {
                self.dirty.insert(key);
            }
        }
        derived
    }
}

impl Twins {
    fn take(&mut self, sample: Sample) {
        let Some(at) = sample.at().filter(|_| sample.is_sound()) else {
            self.counts.invalid += 1;
            return;
        };
        if at.millis_since(self.now) > self.limits.ahead_ms {
            self.counts.ahead += 1;
            return;
        }
        match sample {
            Sample::Instance(sample) => {
                let is_new = !self.workloads.contains_key(&sample.instance_id);
                if is_new && self.strangers >= self.limits.strangers_max {
                    self.counts.strangers += 1;
                    return;
                }
                self.workload(&sample.instance_id.clone(), |w| w.sample(sample));
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
