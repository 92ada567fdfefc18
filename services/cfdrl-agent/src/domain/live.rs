//! The live mesh as a scene, and the advice for it.
//!
//! Placement facts say where everything is, samples what it uses. When the planner decides, the policy is asked the same
//! question about the same moment, and what it would have done is published beside the decision, with its regret. While
//! things run, the policy is asked again at intervals, and advises only when it would do something else by a margin.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;
use mesh_core::{Derived, Projector, Stored, query::Page};
use mesh_planner::{self as plan, CPU_USAGE, RAM_USAGE, Spec, Topology};
use mesh_proto::{
    Timestamp, derived_id, instance_samples,
    learning::{AdvisedOption, LearningAdvised, RoundClosed},
    placement::{
        ClusterJoined, ClusterLost, ClusterReturned, LatenciesNoted, Load, PlacementDecided, PlacementReleased,
        PlacementUnplaced,
    },
    telemetry::InstanceSample,
    workload::{TargetBound, WorkloadDocument},
};
use mesh_scenes::{
    episode::Profile,
    scene::{Act, Cluster, Place, REPLICAS_MAX, Scene, Workload},
    schedulers::modelled,
};

use prost::Message as _;

mod held;

use self::held::{Held, Sum};
use super::{
    features::describe,
    network::Room,
    policy::{Current, Policy},
};

/// Options told with an advice at most.
const OPTIONS_MAX: usize = 32;
/// Other instances that an advice is given beside, each for itself; those beyond count together, as load on their cluster.
const OTHERS_MAX: usize = 16;
/// Running instances looked at in one go.
const LOOK_MAX: usize = 256;
/// Rounds remembered.
const ROUNDS_MAX: usize = 100;

/// Limits of the view.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Site whose policy this is.
    pub site: String,
    /// Instances advised on.
    pub instances_max: usize,
    /// How often what runs is looked at, milliseconds.
    pub advise_ms: i64,
    /// Regret below which advice about what runs is not worth saying, points.
    pub regret_min: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { site: "home".into(), instances_max: 10_000, advise_ms: 10_000, regret_min: 0.25 }
    }
}

#[derive(Clone, Debug, Default)]
struct Instance {
    owner: String,
    intent_id: String,
    domain: String,
    generation: u64,
    replicas: u32,
    replica: Spec,
    targets: Vec<TargetBound>,
    /// Cluster of each generation that holds something.
    holds: BTreeMap<u64, String>,
    measured: Option<Measured>,
    placed: Timestamp,
    /// What was last advised while it ran, so that it is said once.
    said: Option<(u64, String, u32)>,
}

impl Instance {
    /// The cluster of its newest placement.
    fn cluster(&self) -> Option<&str> {
        self.holds.values().next_back().map(String::as_str)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    load_milli: f64,
    before_milli: f64,
    memory_bytes: f64,
    at: Timestamp,
    kept: bool,
}

/// The view: the mesh as far as a policy sees it, and what was advised.
pub struct Advisor {
    limits: Limits,
    current: Current,
    clusters: BTreeMap<String, plan::Cluster>,
    topology: Topology,
    instances: Held,
    /// Newest advice, by owner and instance.
    advice: BTreeMap<(String, String), LearningAdvised>,
    rounds: Vec<RoundClosed>,
    totals: Totals,
    looked: Timestamp,
    /// Instances up to this id were looked at in this turn.
    looked_to: String,
    room: Room,
}

/// Sums over the advice of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Discounted points.
    pub regret: f64,
    /// How often the planner decided and the policy was asked.
    pub advised: u64,
    /// How often both said the same.
    pub agreed: u64,
}

impl Advisor {
    /// A view of an empty mesh, advised by the policy in use.
    pub fn new(limits: Limits, current: Current) -> Self {
        let (clusters, topology, instances, advice, rounds, totals, looked, looked_to, room) = Default::default();
        Self { limits, current, clusters, topology, instances, advice, rounds, totals, looked, looked_to, room }
    }

    /// Newest advice of instances after `(owner, id)`, in their order; of one owner, or one instance.
    pub fn advice(&self, owner: &str, instance: &str, page: &Page) -> (Vec<LearningAdvised>, String) {
        let from = (owner.to_owned(), instance.to_owned());
        let owned = self.advice.range(from..).take_while(|((of, _), _)| of == owner);
        let wanted =
            owned.filter(|((_, id), _)| if instance.is_empty() { id.as_str() > page.after() } else { id == instance });
        let (advice, next) = page.fill(wanted, |((_, id), _)| id.clone());
        (advice.into_iter().map(|(_, advised)| advised.clone()).collect(), next)
    }

    /// Rounds, newest first.
    pub fn rounds(&self, limit: usize) -> Vec<RoundClosed> {
        self.rounds.iter().rev().take(limit).cloned().collect()
    }

    /// Sums over the advice so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The world that this site lives in, to be trained in; `None` until it has a cluster.
    pub fn profile(&self) -> Option<Profile> {
        let clusters: Vec<(String, plan::Cluster)> = self
            .clusters
            .iter()
            .filter(|(_, c)| c.cpu_milli > 0)
            .take(16)
            .map(|(id, c)| (id.clone(), plan::Cluster { available: true, ..c.clone() }))
            .collect();
        if clusters.is_empty() {
            return None;
        }
        // Loads as measured here, against the mean of the model's; within what the model was made for.
        let loads: Vec<f64> = self.instances.values().filter_map(|i| i.measured.map(|m| m.load_milli)).collect();
        let mean = loads.iter().sum::<f64>() / loads.len().max(1) as f64;
        let load = if loads.is_empty() { 1.0 } else { (mean / 240.0).clamp(0.2, 2.0) };
        Some(Profile { load, clusters, ..Profile::default() })
    }

    /// The mesh as a scene; the instance of this id is as given, and the first workload.
    fn scene(&self, id: &str, own: &Instance, now: Timestamp) -> Scene {
        let clusters = self.clusters.iter().map(|(id, plan)| Cluster::empty(id.clone(), plan.clone())).collect();
        let mut scene = Scene { clusters, workloads: vec![], topology: self.topology.clone() };
        let index: BTreeMap<&String, usize> = self.clusters.keys().zip(0..).collect();
        let mut moving: Vec<(usize, u64, u64)> = vec![];
        let others = self.instances.iter().filter(|(other, _)| *other != id).map(|(id, i)| (id.as_str(), i));
        let mut alone = BTreeMap::<&str, Sum>::new();
        let mut set_apart = |instance: &Instance| {
            let known = instance.cluster().and_then(|cluster| self.instances.by_cluster().get_key_value(cluster));
            if let Some((cluster, _)) = known {
                *alone.entry(cluster).or_default() += Sum::of(instance);
            }
        };
        if let Some(own) = self.instances.get(id) {
            set_apart(own);
        }
        for (number, (id, instance)) in std::iter::once((id, own)).chain(others.take(OTHERS_MAX)).enumerate() {
            if number > 0 {
                set_apart(instance);
            }
            let mut holds = instance.holds.values().rev().filter_map(|c| index.get(c).copied());
            let place = holds.next().map(|cluster| Place { cluster, replicas: instance.replicas.max(1) });
            let n = u64::from(instance.replicas);
            moving.extend(holds.map(|c| (c, instance.replica.cpu_milli * n, instance.replica.memory_bytes * n)));
            let mut one = workload(id, instance, place, now);
            one.replica.resolve(|peer| {
                let peer = self.instances.get(peer).filter(|peer| peer.owner == instance.owner)?;
                peer.holds.values().next_back().cloned()
            });
            scene.workloads.push(one);
        }
        for (id, sum) in self.instances.by_cluster() {
            let mut beyond = *sum;
            beyond -= alone.get(id.as_str()).copied().unwrap_or_default();
            let Some(cluster) = index.get(id).copied().filter(|_| !beyond.is_empty()) else { continue };
            scene.workloads.push(workload("", &beyond.together(), Some(Place { cluster, replicas: 1 }), now));
        }
        scene.settle();
        // What is on its way holds both ends.
        for (cluster, cpu_milli, memory_bytes) in moving {
            if let Some(cluster) = scene.clusters.get_mut(cluster) {
                cluster.plan.cpu_milli_reserved += cpu_milli;
                cluster.plan.memory_bytes_reserved += memory_bytes;
            }
        }
        scene
    }

    /// What the policy would do with an instance where the planner chose `planned`.
    fn advise(&mut self, id: &str, own: &Instance, planned: (&str, u32), now: Timestamp) -> Option<LearningAdvised> {
        let policy = self.current.get();
        let (scene, workload) = (self.scene(id, own, now), 0);
        let planned_act = scene
            .clusters
            .iter()
            .position(|c| c.id == planned.0)
            .map(|cluster| Act { cluster, replicas: planned.1.clamp(1, REPLICAS_MAX) })?;
        let mut acts = scene.acts(workload);
        if !acts.contains(&planned_act) {
            acts.push(planned_act);
        }
        let mut options: Vec<(Act, f64)> =
            acts.into_iter().map(|act| (act, value(&policy, &scene, workload, act, &mut self.room))).collect();
        // Highest value first; of equals the planner's, then as the clusters and replicas stand.
        options.sort_by(|a, b| b.1.total_cmp(&a.1).then((b.0 == planned_act).cmp(&(a.0 == planned_act))));
        let (best, best_value) = *options.first()?;
        let planned_value = options.iter().find(|(act, _)| *act == planned_act).map_or(best_value, |(_, v)| *v);
        let gain = modelled(&scene, workload, Some(best)) - modelled(&scene, workload, Some(planned_act));
        let name = |act: Act| scene.clusters.get(act.cluster).map_or_else(String::new, |c| c.id.clone());
        let measured =
            own.measured.map(|m| Load { cpu_milli: m.load_milli.round() as u32, memory_bytes: m.memory_bytes as u64 });
        let regret = if best == planned_act { 0.0 } else { (best_value - planned_value).max(0.0) };
        let advised = LearningAdvised {
            owner: own.owner.clone(),
            instance_id: id.to_owned(),
            intent_id: own.intent_id.clone(),
            domain: own.domain.clone(),
            generation: own.generation,
            planned_cluster_id: planned.0.to_owned(),
            planned_replicas: planned.1,
            cluster_id: name(best),
            replicas: best.replicas,
            regret: thousandths(regret),
            modelled_gain: thousandths(gain),
            options: options
                .iter()
                .take(OPTIONS_MAX)
                .map(|(act, value)| AdvisedOption {
                    cluster_id: name(*act),
                    replicas: act.replicas,
                    value: thousandths(*value),
                    modelled: thousandths(modelled(&scene, workload, Some(*act))),
                    planned: *act == planned_act,
                })
                .collect(),
            measured,
            policy_id: policy.card.policy_id.clone(),
            site: self.limits.site.clone(),
            reason: String::new(),
        };
        Some(LearningAdvised { reason: reason(&advised, best == planned_act), ..advised })
    }

    fn decided(&mut self, fact: PlacementDecided, at: Timestamp) -> Vec<Derived> {
        let Some(mut instance) = self.known(&fact.instance_id) else { return vec![] };
        define(&mut instance, &fact);
        if let Some(load) = &fact.measured {
            let before = instance.measured.unwrap_or_default();
            let replicas = f64::from(fact.replicas.max(1));
            instance.measured = Some(Measured {
                load_milli: load.cpu_milli.into(),
                before_milli: if before.at == Timestamp::default() {
                    load.cpu_milli.into()
                } else {
                    before.before_milli
                },
                memory_bytes: if load.memory_bytes == 0 {
                    before.memory_bytes * replicas
                } else {
                    load.memory_bytes as f64
                },
                at,
                kept: before.kept,
            });
        }
        // The moment of the decision: where it was then.
        instance.holds.retain(|_, cluster| *cluster == fact.from_cluster_id);
        let advised = self.advise(&fact.instance_id, &instance, (&fact.cluster_id, fact.replicas), at);
        instance.holds.insert(fact.generation, fact.cluster_id.clone());
        instance.placed = at;
        instance.said = None;
        self.instances.insert(fact.instance_id.clone(), instance);
        let Some(advised) = advised else { return vec![] };
        self.totals.advised += 1;
        self.totals.agreed += u64::from(advised.regret == 0.0);
        self.totals.regret += advised.regret;
        let id = derived_id(&["advice", &advised.instance_id, &advised.generation.to_string(), &advised.policy_id]);
        vec![self.publish(advised, id, at)]
    }

    fn publish(&mut self, advised: LearningAdvised, id: String, at: Timestamp) -> Derived {
        self.advice.insert((advised.owner.clone(), advised.instance_id.clone()), advised.clone());
        Derived::new(advised, id, at)
    }

    /// An instance to change; `None` for one more than the limit.
    fn known(&self, id: &str) -> Option<Instance> {
        let known = self.instances.get(id).cloned();
        known.or_else(|| (self.instances.len() < self.limits.instances_max).then(Instance::default))
    }

    /// What runs is looked at again.
    fn look(&mut self, now: Timestamp) -> Vec<Derived> {
        let mut said = vec![];
        let runs = |(_, i): &(&String, &Instance)| i.holds.len() == 1 && i.measured.is_some();
        let after = (Bound::Excluded(self.looked_to.clone()), Bound::Unbounded);
        let running: Vec<String> =
            self.instances.range(after).filter(runs).take(LOOK_MAX).map(|(id, _)| id.clone()).collect();
        // From the beginning again once all were looked at.
        self.looked_to = running.last().filter(|_| running.len() == LOOK_MAX).cloned().unwrap_or_default();
        for id in running {
            let Some(instance) = self.instances.get(&id).cloned() else { continue };
            let Some(cluster) = instance.holds.values().next().cloned() else { continue };
            let Some(advised) = self.advise(&id, &instance, (&cluster, instance.replicas), now) else { continue };
            let same = (advised.generation, advised.cluster_id.clone(), advised.replicas);
            if advised.regret < self.limits.regret_min || instance.said.as_ref() == Some(&same) {
                continue;
            }
            let text = format!("{}/{}/{}", same.0, same.1, same.2);
            let id_of = derived_id(&["advice", &id, &text, &advised.policy_id, &now.as_millis().to_string()]);
            self.instances.change(&id, |instance| instance.said = Some(same));
            said.push(self.publish(advised, id_of, now));
        }
        said
    }
}

fn value(policy: &Policy, scene: &Scene, workload: usize, act: Act, room: &mut Room) -> f64 {
    f64::from(policy.network.value(&describe(scene, workload, act), room))
}

fn reason(advised: &LearningAdvised, agrees: bool) -> String {
    let policy: String = advised.policy_id.chars().take(8).collect();
    let (cluster, replicas) = (&advised.cluster_id, advised.replicas);
    if agrees {
        return format!("policy {policy} would do the same: {replicas} on {cluster}");
    }
    format!(
        "policy {policy} would run {replicas} on {cluster} instead of {} on {}: it expects {:.2} points more over the \
         coming periods; the load model says {:+.2} for the next",
        advised.planned_replicas, advised.planned_cluster_id, advised.regret, advised.modelled_gain
    )
}

fn define(instance: &mut Instance, fact: &PlacementDecided) {
    let document = WorkloadDocument::decode(fact.document.as_ref()).unwrap_or_default();
    instance.owner.clone_from(&fact.owner);
    instance.intent_id.clone_from(&fact.intent_id);
    instance.domain.clone_from(&fact.domain);
    instance.generation = fact.generation;
    instance.replicas = fact.replicas;
    instance.targets.clone_from(&fact.targets);
    instance.replica = Spec::of(&document, 1);
}

fn workload(id: &str, instance: &Instance, place: Option<Place>, now: Timestamp) -> Workload {
    let replicas = instance.replicas.max(1);
    let asked = (instance.replica.cpu_milli * u64::from(replicas)) as f64;
    let measured = instance.measured.unwrap_or(Measured {
        load_milli: asked,
        before_milli: asked,
        memory_bytes: instance.replica.memory_bytes as f64 * f64::from(replicas),
        ..Measured::default()
    });
    let since = now.millis_since(instance.placed).max(0) / mesh_scenes::scene::PERIOD_MS;
    Workload {
        id: id.to_owned(),
        replica: instance.replica.clone(),
        replicas_declared: replicas,
        targets: instance.targets.clone(),
        place,
        load_milli: measured.load_milli,
        load_before_milli: measured.before_milli,
        memory_bytes: measured.memory_bytes / f64::from(replicas),
        measured: instance.measured.is_some(),
        kept: instance.measured.is_some_and(|m| m.kept),
        settled: u32::try_from(since).unwrap_or(u32::MAX),
    }
}

impl Projector for Advisor {
    fn apply(&mut self, stored: &Stored) -> Vec<Derived> {
        let at = stored.time;
        if let Ok(Some(fact)) = stored.event::<PlacementDecided>() {
            return self.decided(fact, at);
        } else if let Ok(Some(fact)) = stored.event::<PlacementUnplaced>() {
            self.instances.change(&fact.instance_id, |instance| {
                instance.holds.retain(|_, cluster| *cluster == fact.stays_on);
            });
        } else if let Ok(Some(fact)) = stored.event::<PlacementReleased>() {
            if fact.r#final {
                self.instances.remove(&fact.instance_id);
                self.advice.remove(&(fact.owner, fact.instance_id));
            } else {
                self.instances.change(&fact.instance_id, |instance| {
                    instance.holds.retain(|generation, c| *c != fact.cluster_id || *generation > fact.generation);
                });
            }
        } else if let Ok(Some(fact)) = stored.event::<ClusterJoined>() {
            let cluster = self.clusters.entry(fact.cluster_id).or_default();
            (cluster.cpu_milli, cluster.memory_bytes) = (fact.cpu_milli, fact.memory_bytes);
            (cluster.labels, cluster.driver, cluster.available) = (fact.labels, fact.driver, true);
        } else if let Ok(Some(fact)) = stored.event::<ClusterLost>() {
            self.clusters.entry(fact.cluster_id).or_default().available = false;
        } else if let Ok(Some(fact)) = stored.event::<ClusterReturned>() {
            self.clusters.entry(fact.cluster_id).or_default().available = true;
        } else if let Ok(Some(fact)) = stored.event::<LatenciesNoted>() {
            self.topology = Topology::from(&fact);
        } else if let Ok(Some(closed)) = stored.event::<RoundClosed>()
            && closed.site == self.limits.site
        {
            self.rounds.push(closed);
            let surplus = self.rounds.len().saturating_sub(ROUNDS_MAX);
            self.rounds.drain(..surplus);
        }
        vec![]
    }

    fn sample(&mut self, key: &str, body: &Bytes) -> Vec<Derived> {
        instance_samples(key, body).into_iter().flatten().for_each(|sample| self.take(&sample));
        vec![]
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Derived> {
        if now < self.looked.plus_millis(self.limits.advise_ms) {
            return vec![];
        }
        self.looked = now;
        self.look(now)
    }
}

impl Advisor {
    fn take(&mut self, sample: &InstanceSample) {
        let sound = sample.cpu_milli.is_finite() && (0.0..1e9).contains(&sample.cpu_milli);
        let Some(instance) = self.instances.get(&sample.instance_id).filter(|_| sound) else {
            return;
        };
        // Only what the newest placement's cluster says counts, and nothing older than what is known.
        let at = sample.at.unwrap_or_default();
        if sample.generation != instance.generation || instance.measured.is_some_and(|m| m.at > at) {
            return;
        }
        let cpu_milli = self.clusters.get(&sample.cluster_id).map_or(0, |c| c.cpu_milli);
        let kept = instance.targets.iter().all(|target| {
            let value = match target.target_name.as_str() {
                CPU_USAGE => sample.cpu_milli * 100.0 / f64::from(cpu_milli.max(1)),
                RAM_USAGE => sample.memory_bytes as f64 / 1e6,
                _ => return true,
            };
            target.target_condition == "IS_EQUAL_TO"
                || plan::holds(&target.target_condition, value, target.bound).unwrap_or(true)
        });
        // A running mean over some ten samples stands for a period's.
        let load = instance.measured.map_or(sample.cpu_milli, |m| 0.9 * m.load_milli + 0.1 * sample.cpu_milli);
        let before = instance.measured.map_or(load, |m| 0.99 * m.before_milli + 0.01 * load);
        let measured =
            Measured { load_milli: load, before_milli: before, memory_bytes: sample.memory_bytes as f64, at, kept };
        self.instances.change(&sample.instance_id, |instance| instance.measured = Some(measured));
    }
}

fn thousandths(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests;
