//! Schedulers that do not learn, to be beaten: random, round robin, first fit, best fit, Kubernetes' scoring, the mesh's
//! own planner, and a greedy one that knows the points.
//!
//! All but the last decide where; how many replicas follows Kubernetes' horizontal autoscaler for each of them alike
//! (desired = ⌈replicas · utilisation / 80 %⌉ of what is requested, within a tolerance of 10 %), and a workload whose intent was
//! missed is placed again elsewhere, with a cool-down of three periods, as the mesh's remedy does. Kubernetes itself moves
//! nothing that runs: here it is given more than it has.
//!
//! `kubernetes` scores a node as `NodeResourcesFit` with `LeastAllocated` and `NodeResourcesBalancedAllocation` do, each with
//! weight 1, in whole numbers: least allocated is the mean over CPU and memory of `(capacity − requested) · 100 /
//! capacity`; balanced allocation is `(1 − standard deviation of the requested fractions) · 100`, for two resources half their
//! distance (kube-scheduler, `pkg/scheduler/framework/plugins/noderesources`). Equal scores: kube-scheduler draws one at
//! random; here the first is taken, so that a seed is a run.

use std::collections::BTreeMap;

use crate::{
    episode::Scheduler,
    random::Random,
    scene::{Act, REPLICAS_MAX, Scene, Workload, churn},
};
use mesh_planner::{self as plan, Preference, Snapshot};

/// Utilisation of what is requested that the autoscaler aims at.
const UTILISATION: f64 = 0.8;
/// Distance from it, as a share, within which it does nothing.
const TOLERANCE: f64 = 0.1;
/// Periods after a placement in which no remedy moves a workload.
const COOLDOWN: u32 = 3;

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Any cluster that fits.
    Random,
    /// The next cluster that fits, in turn.
    RoundRobin,
    /// The first that fits.
    FirstFit,
    /// The one with the least CPU left free.
    BestFit,
    /// Least allocated and balanced allocation.
    Kubernetes,
    /// The mesh's planner, spreading.
    PlannerSpread,
    /// The mesh's planner, packing.
    PlannerPack,
    /// What earns most in the next period by the load model, at the load last measured.
    Greedy,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Random,
        Self::RoundRobin,
        Self::FirstFit,
        Self::BestFit,
        Self::Kubernetes,
        Self::PlannerSpread,
        Self::PlannerPack,
        Self::Greedy,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round robin",
            Self::FirstFit => "first fit",
            Self::BestFit => "best fit",
            Self::Kubernetes => "kubernetes",
            Self::PlannerSpread => "planner, spread",
            Self::PlannerPack => "planner, pack",
            Self::Greedy => "greedy by model",
        }
    }
}

/// A scheduler by rule.
#[derive(Clone, Debug)]
pub struct Rule {
    kind: Kind,
    random: Random,
    next: usize,
}

impl Rule {
    /// Of a kind; the seed matters to `Random` only.
    pub fn new(kind: Kind, seed: u64) -> Self {
        Self { kind, random: Random::new(seed).part(77), next: 0 }
    }

    fn cluster(&mut self, scene: &Scene, workload: &Workload, replicas: u32, not: Option<usize>) -> Option<usize> {
        if let Kind::PlannerSpread | Kind::PlannerPack = self.kind {
            return planned(scene, workload, replicas, not, self.kind == Kind::PlannerPack);
        }
        let fits =
            |cluster: &usize| Some(*cluster) != not && scene.admits(workload, Act { cluster: *cluster, replicas });
        let fitting: Vec<usize> = (0..scene.clusters.len()).filter(fits).collect();
        let least = |value: &dyn Fn(usize) -> f64| {
            let mut best: Option<(f64, usize)> = None;
            for cluster in &fitting {
                let value = value(*cluster);
                if best.is_none_or(|(least, _)| value < least) {
                    best = Some((value, *cluster));
                }
            }
            best.map(|(_, cluster)| cluster)
        };
        match self.kind {
            Kind::Random => fitting.get(self.random.below(fitting.len())).copied(),
            Kind::RoundRobin => {
                let next = fitting.iter().find(|c| **c >= self.next).or_else(|| fitting.first()).copied();
                self.next = next.map_or(self.next, |c| c + 1);
                next
            }
            Kind::FirstFit => fitting.first().copied(),
            Kind::BestFit => least(&|cluster| free_milli(scene, cluster)),
            _ => least(&|cluster| -kubernetes(scene, workload, replicas, cluster)),
        }
    }
}

impl Scheduler for Rule {
    fn decide(&mut self, scene: &Scene, index: usize) -> Option<Act> {
        let workload = scene.workloads.get(index)?;
        if self.kind == Kind::Greedy {
            return greedy(scene, index);
        }
        let Some(place) = workload.place else {
            let replicas = workload.replicas_declared;
            let cluster = self.cluster(scene, workload, replicas, None)?;
            return Some(Act { cluster, replicas });
        };
        let replicas = autoscaled(workload, place.replicas);
        if workload.measured && !workload.kept && workload.settled >= COOLDOWN && replicas == place.replicas {
            let cluster = self.cluster(scene, workload, replicas, Some(place.cluster))?;
            return Some(Act { cluster, replicas });
        }
        (replicas != place.replicas).then_some(Act { cluster: place.cluster, replicas })
    }

    fn begin(&mut self) {
        self.next = 0;
    }
}

/// Kubernetes' horizontal autoscaler on the CPU requested.
fn autoscaled(workload: &Workload, replicas: u32) -> u32 {
    let requested = workload.reserved_milli(replicas);
    if !workload.measured || requested <= 0.0 {
        return replicas;
    }
    let ratio = workload.load_milli / requested / UTILISATION;
    if (ratio - 1.0).abs() <= TOLERANCE {
        return replicas;
    }
    ((f64::from(replicas) * ratio).ceil() as u32).clamp(1, REPLICAS_MAX)
}

fn free_milli(scene: &Scene, cluster: usize) -> f64 {
    scene.clusters.get(cluster).map_or(f64::INFINITY, |c| c.cpu_milli() - c.plan.cpu_milli_reserved as f64)
}

/// Score of a node, 0 to 200, after the workload would be there.
fn kubernetes(scene: &Scene, workload: &Workload, replicas: u32, cluster: usize) -> f64 {
    let Some(cluster) = scene.clusters.get(cluster) else { return 0.0 };
    let spec = workload.spec(replicas);
    let parts = [
        (cluster.plan.cpu_milli_reserved + spec.cpu_milli, u64::from(cluster.plan.cpu_milli)),
        (cluster.plan.memory_bytes_reserved + spec.memory_bytes, cluster.plan.memory_bytes),
    ];
    // Whole numbers, as there: least allocated, each resource floored, then their mean floored.
    let least = |(requested, capacity): (u64, u64)| {
        if capacity == 0 || requested > capacity { 0 } else { (capacity - requested) * 100 / capacity }
    };
    let allocated = parts.into_iter().map(least).sum::<u64>() / 2;
    let fraction = |(requested, capacity): (u64, u64)| (requested as f64 / capacity.max(1) as f64).min(1.0);
    let deviation = (fraction(parts[0]) - fraction(parts[1])).abs() / 2.0;
    allocated as f64 + ((1.0 - deviation) * 100.0).floor()
}

/// What the mesh's planner chooses, targets and measurement included.
pub fn planned(scene: &Scene, workload: &Workload, replicas: u32, not: Option<usize>, pack: bool) -> Option<usize> {
    let clusters = scene.clusters.iter().map(|c| (c.id.clone(), c.plan.clone())).collect();
    let excluded: BTreeMap<String, String> = not
        .and_then(|index| scene.clusters.get(index))
        .map(|c| (c.id.clone(), "its targets are missed there".to_owned()))
        .into_iter()
        .collect();
    let preference = if pack { Preference::Pack } else { Preference::Spread };
    let chosen = scene.ask(workload, replicas, true, |request| {
        let request = plan::Request { excluded: &excluded, ..request.clone() };
        plan::choose(&Snapshot { clusters, topology: scene.topology.clone() }, &request, preference).chosen
    })?;
    scene.clusters.iter().position(|c| c.id == chosen)
}

/// What a workload and its neighbours would earn together in the next period by the load model, if this was done, at the
/// loads last measured: points of all, churn taken off.
pub fn modelled(scene: &Scene, workload: usize, act: Option<Act>) -> f64 {
    let before = scene.workloads.get(workload).and_then(|w| w.place);
    let mut after = scene.clone();
    after.put(workload, act);
    let loads: Vec<f64> = after.workloads.iter().map(|w| w.load_milli).collect();
    after.earned(&loads).iter().map(|e| e.points).sum::<f64>() - churn(before, act)
}

fn greedy(scene: &Scene, workload: usize) -> Option<Act> {
    let place = scene.workloads.get(workload)?.place;
    let mut best = (modelled(scene, workload, place), place);
    for act in scene.acts(workload) {
        let points = modelled(scene, workload, Some(act));
        if points > best.0 + 1e-9 {
            best = (points, Some(act));
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_planner::{Cluster as Plan, Spec, Topology};

    use crate::scene::{Cluster, Place};

    fn scene(sizes: &[(u32, u64)]) -> Scene {
        let cluster = |(n, (cpu_milli, memory_bytes)): (usize, &(u32, u64))| {
            let plan =
                Plan { cpu_milli: *cpu_milli, memory_bytes: *memory_bytes, available: true, ..Default::default() };
            Cluster::empty(format!("c{n}"), plan)
        };
        let workload = Workload {
            id: "w".into(),
            replica: Spec { cpu_milli: 100, memory_bytes: 100, cpu_limit_milli: 200, ..Default::default() },
            replicas_declared: 1,
            targets: vec![],
            place: None,
            load_milli: 100.0,
            load_before_milli: 100.0,
            memory_bytes: 100.0,
            measured: false,
            kept: false,
            settled: 0,
        };
        Scene {
            clusters: sizes.iter().enumerate().map(cluster).collect(),
            workloads: vec![workload],
            topology: Topology::default(),
        }
    }

    fn chosen(kind: Kind, scene: &Scene) -> Option<usize> {
        Rule::new(kind, 1).decide(scene, 0).map(|act| act.cluster)
    }

    #[test]
    fn each_rule_does_what_its_name_says() {
        let scene = scene(&[(400, 400), (200, 200), (1_000, 1_000), (50, 50)]);
        assert_eq!(chosen(Kind::FirstFit, &scene), Some(0));
        assert_eq!(chosen(Kind::BestFit, &scene), Some(1));
        assert_eq!(chosen(Kind::Kubernetes, &scene), Some(2));
        let mut turn = Rule::new(Kind::RoundRobin, 1);
        let turns: Vec<_> = (0..4).map(|_| turn.decide(&scene, 0).unwrap().cluster).collect();
        assert_eq!(turns, [0, 1, 2, 0]);
        let mut any = Rule::new(Kind::Random, 1);
        let drawn: std::collections::BTreeSet<_> = (0..50).map(|_| any.decide(&scene, 0).unwrap().cluster).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    }

    /// Worked by hand after kube-scheduler: 100 of 400 mCPU and 100 of 1,000 bytes requested: least allocated
    /// (75 + 90) / 2 = 82; fractions 0.25 and 0.1, deviation 0.075, balanced 92.
    #[test]
    fn kubernetes_scores_as_worked_by_hand() {
        let scene = scene(&[(400, 1_000)]);
        assert_eq!(kubernetes(&scene, &scene.workloads[0], 1, 0), 82.0 + 92.0);
    }

    #[test]
    fn the_autoscaler_rounds_up_and_leaves_what_is_near_alone() {
        let mut scene = scene(&[(400, 400)]);
        let workload = &mut scene.workloads[0];
        (workload.measured, workload.place) = (true, Some(Place { cluster: 0, replicas: 2 }));
        let replicas = |load: f64, workload: &mut Workload| {
            workload.load_milli = load;
            autoscaled(workload, 2)
        };
        assert_eq!(replicas(160.0, workload), 2);
        assert_eq!(replicas(170.0, workload), 2);
        assert_eq!(replicas(200.0, workload), 3);
        assert_eq!(replicas(60.0, workload), 1);
        assert_eq!(replicas(0.0, workload), 1);
    }

    #[test]
    fn greedy_never_does_what_the_model_says_is_worse_than_nothing() {
        let scene = scene(&[(400, 400), (1_000, 1_000)]);
        let act = greedy(&scene, 0).unwrap();
        assert!(modelled(&scene, 0, Some(act)) >= modelled(&scene, 0, None));
        for other in scene.acts(0) {
            assert!(modelled(&scene, 0, Some(act)) >= modelled(&scene, 0, Some(other)));
        }
    }
}
