//! A domain at one moment, what can be done with one of its workloads, and what a control period is worth.
//!
//! The same scene is made of a training episode and of a live mesh, so that a policy sees the same in both.
//!
//! # Points
//!
//! A control period lasts [`PERIOD_MS`]. What a domain earns in it is the sum of what its workloads earn:
//!
//! | part | points | when |
//! | --- | --- | --- |
//! | intent kept | +1 | every target holds, and at least 95 % of the load offered is served |
//! | energy | −0.01 per watt of its cluster | dynamic watts by its own load; idle watts in equal shares |
//! | cost | −8 per credit | reserved cores · price · period |
//! | churn | −0.5 per move | it had a cluster and got another, or lost it |
//! | | −0.1 per replica | started or ended in place |
//!
//! A workload without a cluster earns nothing. A cluster's CPU is shared in proportion, as the driver's model does, so a
//! crowded cluster starves all that run there. To let a policy learn that what it does there is felt by others, *credit*
//! splits the same sum otherwise: half of the kept points of a cluster are shared equally among all that run there.

use mesh_proto::{placement::Load, workload::TargetBound};
use serde::{Deserialize, Serialize};

use crate::{load::share, tariff::Tariff};
use mesh_planner::{self as plan, CPU_USAGE, RAM_USAGE, Spec, Topology};

/// Length of a control period, milliseconds.
pub const PERIOD_MS: i64 = 60_000;
/// Share of the offered load that must be served for an intent to be kept.
pub const SERVED_SHARE: f64 = 0.95;
/// Points for an intent kept over a period.
pub const KEPT_POINTS: f64 = 1.0;
/// Points lost for each watt over a period.
pub const WATT_POINTS: f64 = 0.01;
/// Points lost for each credit.
pub const CREDIT_POINTS: f64 = 8.0;
/// Points lost for a move.
pub const MOVE_POINTS: f64 = 0.5;
/// Points lost for each replica started or ended in place.
pub const REPLICA_POINTS: f64 = 0.1;
/// Most replicas that an option gives a workload.
pub const REPLICAS_MAX: u32 = 8;

/// A cluster of a scene.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its id.
    pub id: String,
    /// As the planner sees it, reservations included.
    pub plan: plan::Cluster,
    /// What it costs.
    pub tariff: Tariff,
    /// Load that its workloads are expected to bring, thousandths of a core.
    pub load_milli: f64,
    /// Workloads on it.
    pub workloads: u32,
    /// How many of them kept their intent in the last period.
    pub kept: u32,
}

impl Cluster {
    /// One on which nothing runs.
    pub fn empty(id: impl Into<String>, plan: plan::Cluster) -> Self {
        let tariff = Tariff::of(&plan.labels, plan.cpu_milli);
        let plan = plan::Cluster { cpu_milli_reserved: 0, memory_bytes_reserved: 0, ..plan };
        Self { id: id.into(), plan, tariff, load_milli: 0.0, workloads: 0, kept: 0 }
    }

    /// Thousandths of a core, never 0.
    pub fn cpu_milli(&self) -> f64 {
        f64::from(self.plan.cpu_milli.max(1))
    }
}

/// Where a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Index of its cluster.
    pub cluster: usize,
    /// Replicas there.
    pub replicas: u32,
}

/// A workload of a scene.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// Its id.
    pub id: String,
    /// What one replica asks for.
    pub replica: Spec,
    /// Replicas that its owner asked for.
    pub replicas_declared: u32,
    /// Bounds to be kept.
    pub targets: Vec<TargetBound>,
    /// Where it is, if anywhere.
    pub place: Option<Place>,
    /// Load expected of all replicas together, thousandths of a core: last measured, or what it asks for.
    pub load_milli: f64,
    /// The load of the period before.
    pub load_before_milli: f64,
    /// Resident bytes of one replica: last measured, or what it asks for.
    pub memory_bytes: f64,
    /// Was it measured at all?
    pub measured: bool,
    /// Did it keep its intent in the last period?
    pub kept: bool,
    /// Periods since it was moved or placed.
    pub settled: u32,
}

impl Workload {
    /// What this many replicas ask for together.
    pub fn spec(&self, replicas: u32) -> Spec {
        let n = u64::from(replicas);
        Spec {
            cpu_milli: self.replica.cpu_milli * n,
            memory_bytes: self.replica.memory_bytes * n,
            cpu_limit_milli: self.replica.cpu_limit_milli * n,
            memory_limit_bytes: self.replica.memory_limit_bytes * n,
            selector: self.replica.selector.clone(),
            singleton: self.replica.singleton,
            latency_bounds: self.replica.latency_bounds.clone(),
            driver: self.replica.driver,
        }
    }

    /// Most that this many replicas can use, thousandths of a core.
    pub fn limit_milli(&self, replicas: u32) -> f64 {
        let limit = self.replica.cpu_limit_milli * u64::from(replicas);
        if limit == 0 { f64::INFINITY } else { limit as f64 }
    }

    /// Thousandths of a core that this many replicas reserve.
    pub fn reserved_milli(&self, replicas: u32) -> f64 {
        (self.replica.cpu_milli * u64::from(replicas)) as f64
    }

    /// What it was measured to use, as the planner knows it.
    pub fn measured(&self) -> Option<Load> {
        let replicas = self.place.map_or(self.replicas_declared, |p| p.replicas);
        self.measured.then(|| Load {
            cpu_milli: self.load_milli.round().max(0.0) as u32,
            memory_bytes: (self.memory_bytes * f64::from(replicas)).max(0.0) as u64,
        })
    }
}

/// Something that can be done with a workload: this many replicas on this cluster.
pub type Act = Place;

/// A domain at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scene {
    /// In the order of their ids.
    pub clusters: Vec<Cluster>,
    /// In the order of their ids.
    pub workloads: Vec<Workload>,
    /// The network between the clusters, as far as it is measured.
    #[serde(rename = "ways")]
    pub topology: Topology,
}

/// What came of a period for one workload.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Earned {
    /// Was its intent kept?
    pub kept: bool,
    /// Load that it was given, thousandths of a core.
    pub served_milli: f64,
    /// Its points; all workloads' together are the domain's.
    pub points: f64,
    /// Its credit; all workloads' together are the domain's points too.
    pub credit: f64,
}

impl Scene {
    /// Counts reservations, loads and workloads of every cluster again from the workloads.
    pub fn settle(&mut self) {
        for cluster in &mut self.clusters {
            (cluster.plan.cpu_milli_reserved, cluster.plan.memory_bytes_reserved) = (0, 0);
            (cluster.load_milli, cluster.workloads, cluster.kept) = (0.0, 0, 0);
        }
        for index in 0..self.workloads.len() {
            self.count(index, true);
        }
    }

    fn count(&mut self, workload: usize, comes: bool) {
        let Some(workload) = self.workloads.get(workload) else { return };
        let Some(place) = workload.place else { return };
        let Some(cluster) = self.clusters.get_mut(place.cluster) else { return };
        let spec = (workload.replica.cpu_milli, workload.replica.memory_bytes);
        let (cpu, memory) = (spec.0 * u64::from(place.replicas), spec.1 * u64::from(place.replicas));
        if comes {
            cluster.plan.cpu_milli_reserved += cpu;
            cluster.plan.memory_bytes_reserved += memory;
            cluster.load_milli += workload.load_milli;
            cluster.workloads += 1;
            cluster.kept += u32::from(workload.kept);
        } else {
            cluster.plan.cpu_milli_reserved = cluster.plan.cpu_milli_reserved.saturating_sub(cpu);
            cluster.plan.memory_bytes_reserved = cluster.plan.memory_bytes_reserved.saturating_sub(memory);
            cluster.load_milli = (cluster.load_milli - workload.load_milli).max(0.0);
            cluster.workloads = cluster.workloads.saturating_sub(1);
            cluster.kept = cluster.kept.saturating_sub(u32::from(workload.kept));
        }
    }

    /// Puts a workload somewhere else, or nowhere.
    pub fn put(&mut self, workload: usize, place: Option<Place>) {
        self.count(workload, false);
        if let Some(workload) = self.workloads.get_mut(workload) {
            workload.place = place;
        }
        self.count(workload, true);
    }

    /// The planner's question for this many replicas of a workload, as it stands now.
    pub fn ask<T>(
        &self,
        workload: &Workload,
        replicas: u32,
        targets: bool,
        answer: impl FnOnce(&plan::Request<'_>) -> T,
    ) -> T {
        let (spec, measured, excluded) = (workload.spec(replicas), workload.measured(), Default::default());
        let held = workload.place.and_then(|place| {
            let cluster = self.clusters.get(place.cluster)?;
            let held = workload.spec(place.replicas);
            Some(plan::Held { cluster_id: &cluster.id, cpu_milli: held.cpu_milli, memory_bytes: held.memory_bytes })
        });
        answer(&plan::Request {
            spec: &spec,
            targets: if targets { &workload.targets } else { &[] },
            measured: measured.as_ref(),
            held,
            excluded: &excluded,
        })
    }

    /// Can this many replicas of a workload be on a cluster, by every hard constraint: it answers, has the labels asked
    /// for, and room in CPU and memory?
    pub fn admits(&self, workload: &Workload, act: Act) -> bool {
        let Some(cluster) = self.clusters.get(act.cluster) else { return false };
        self.ask(workload, act.replicas, false, |request| {
            plan::admits(&self.topology, &cluster.id, &cluster.plan, request)
        })
    }

    /// Everything that can be done with a workload within the hard constraints: on each cluster one replica fewer, as
    /// many, or one more than it has (or its owner asked for). Clusters in their order, fewest replicas first.
    pub fn acts(&self, workload: usize) -> Vec<Act> {
        let Some(workload) = self.workloads.get(workload) else { return vec![] };
        let now = workload.place.map_or(workload.replicas_declared, |p| p.replicas).clamp(1, REPLICAS_MAX);
        let range = now.saturating_sub(1).max(1)..=(now + 1).min(REPLICAS_MAX);
        let mut acts = vec![];
        for cluster in 0..self.clusters.len() {
            // What does not fit with few replicas does not with more.
            acts.extend(
                range.clone().map(|replicas| Act { cluster, replicas }).take_while(|act| self.admits(workload, *act)),
            );
        }
        acts
    }

    /// What a workload's cluster gives it and whether its targets hold, for a load offered to each workload.
    pub fn earned(&self, offered_milli: &[f64]) -> Vec<Earned> {
        let offered = |index: usize| offered_milli.get(index).copied().unwrap_or(0.0).max(0.0);
        let mut wanted = vec![0.0; self.clusters.len()];
        let mut guests = vec![0u32; self.clusters.len()];
        for (index, workload) in self.workloads.iter().enumerate() {
            let Some(place) = workload.place else { continue };
            if let (Some(sum), Some(count)) = (wanted.get_mut(place.cluster), guests.get_mut(place.cluster)) {
                *sum += offered(index).min(workload.limit_milli(place.replicas));
                *count += 1;
            }
        }
        let mut earned = vec![Earned::default(); self.workloads.len()];
        let mut kept_on = vec![0u32; self.clusters.len()];
        for (index, workload) in self.workloads.iter().enumerate() {
            let (Some(place), Some(earned)) = (workload.place, earned.get_mut(index)) else { continue };
            let Some(cluster) = self.clusters.get(place.cluster).filter(|c| c.plan.available) else { continue };
            let wants = offered(index).min(workload.limit_milli(place.replicas));
            earned.served_milli = share(cluster.cpu_milli(), wants, wanted.get(place.cluster).copied().unwrap_or(0.0));
            earned.kept = earned.served_milli >= SERVED_SHARE * offered(index)
                && holds(
                    &workload.targets,
                    cluster,
                    earned.served_milli,
                    workload.memory_bytes * f64::from(place.replicas),
                );
            let count = guests.get(place.cluster).copied().unwrap_or(1).max(1);
            let watts = cluster.tariff.idle_watts / f64::from(count)
                + cluster.tariff.watts_per_core * earned.served_milli / 1_000.0;
            let core_hours = workload.reserved_milli(place.replicas) / 1_000.0 * PERIOD_MS as f64 / 3_600_000.0;
            let spent = WATT_POINTS * watts + CREDIT_POINTS * core_hours * cluster.tariff.credits_per_core_hour;
            (earned.points, earned.credit) = (-spent, -spent);
            if earned.kept {
                earned.points += KEPT_POINTS;
                earned.credit += KEPT_POINTS / 2.0;
                if let Some(kept) = kept_on.get_mut(place.cluster) {
                    *kept += 1;
                }
            }
        }
        for (workload, earned) in self.workloads.iter().zip(&mut earned) {
            let Some(place) = workload.place.filter(|p| self.clusters.get(p.cluster).is_some_and(|c| c.plan.available))
            else {
                continue;
            };
            let of = |counts: &[u32]| f64::from(counts.get(place.cluster).copied().unwrap_or(0));
            earned.credit += KEPT_POINTS / 2.0 * of(&kept_on) / of(&guests).max(1.0);
        }
        earned
    }
}

/// Points that a change costs.
pub fn churn(before: Option<Place>, after: Option<Place>) -> f64 {
    match (before, after) {
        (Some(before), Some(after)) if before.cluster == after.cluster => {
            REPLICA_POINTS * f64::from(before.replicas.abs_diff(after.replicas))
        }
        (Some(_), _) => MOVE_POINTS,
        (None, _) => 0.0,
    }
}

/// Do all targets hold on this cluster at this load and resident size? Targets of other names are not modelled.
fn holds(targets: &[TargetBound], cluster: &Cluster, load_milli: f64, memory_bytes: f64) -> bool {
    targets.iter().all(|target| {
        let value = match target.target_name.as_str() {
            CPU_USAGE => load_milli * 100.0 / cluster.cpu_milli(),
            RAM_USAGE => memory_bytes / 1e6,
            _ => return true,
        };
        // A measured value never equals a bound; the planner judges that condition neither.
        target.target_condition == "IS_EQUAL_TO"
            || plan::holds(&target.target_condition, value, target.bound).unwrap_or(true)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cluster(id: &str, cpu_milli: u32) -> Cluster {
        let plan = plan::Cluster { cpu_milli, memory_bytes: 1 << 30, available: true, ..Default::default() };
        Cluster::empty(id, plan)
    }

    fn workload(id: &str, cpu_milli: u64, place: Option<Place>) -> Workload {
        Workload {
            id: id.into(),
            replica: Spec { cpu_milli, memory_bytes: 1 << 20, cpu_limit_milli: cpu_milli, ..Default::default() },
            replicas_declared: 1,
            targets: vec![],
            place,
            load_milli: cpu_milli as f64,
            load_before_milli: cpu_milli as f64,
            memory_bytes: 1e6,
            measured: true,
            kept: true,
            settled: 0,
        }
    }

    fn scene(sizes: &[u32], workloads: Vec<Workload>) -> Scene {
        let clusters = sizes.iter().enumerate().map(|(n, size)| cluster(&format!("c{n}"), *size)).collect();
        let mut scene = Scene { clusters, workloads, topology: Topology::default() };
        scene.settle();
        scene
    }

    const fn on(cluster: usize, replicas: u32) -> Option<Place> {
        Some(Place { cluster, replicas })
    }

    #[test]
    fn a_crowded_cluster_starves_all_that_run_there() {
        let scene = scene(&[1_000], vec![workload("a", 800, on(0, 1)), workload("b", 800, on(0, 1))]);
        let earned = scene.earned(&[800.0, 800.0]);
        assert_eq!(earned.iter().map(|e| (e.kept, e.served_milli)).collect::<Vec<_>>(), [(false, 500.0); 2]);
        let alone = scene.earned(&[800.0, 100.0]);
        assert!(alone.iter().all(|e| e.kept));
    }

    #[test]
    fn a_limit_of_replicas_starves_and_more_of_them_cure_it() {
        let one = scene(&[4_000], vec![workload("a", 100, on(0, 1))]).earned(&[180.0]);
        let two = scene(&[4_000], vec![workload("a", 100, on(0, 2))]).earned(&[180.0]);
        assert_eq!((one[0].kept, one[0].served_milli, two[0].kept, two[0].served_milli), (false, 100.0, true, 180.0));
    }

    #[test]
    fn points_are_kept_less_energy_and_cost_and_a_lost_cluster_earns_nothing() {
        let mut scene = scene(&[2_000], vec![workload("a", 500, on(0, 2))]);
        scene.clusters[0].tariff = Tariff { idle_watts: 10.0, watts_per_core: 5.0, credits_per_core_hour: 3.0 };
        // 10 W idle and 5 W/core · 0.4; one core reserved for a minute at 3 credits an hour.
        let wanted = 1.0 - 0.01 * 12.0 - 8.0 * 3.0 / 60.0;
        assert!((scene.earned(&[400.0])[0].points - wanted).abs() < 1e-9);
        scene.clusters[0].plan.available = false;
        assert_eq!(scene.earned(&[400.0])[0], Earned::default());
        scene.clusters[0].plan.available = true;
        scene.put(0, None);
        assert_eq!(scene.earned(&[400.0])[0], Earned::default());
    }

    #[test]
    fn a_target_is_judged_by_what_is_served_there() {
        let mut a = workload("a", 500, on(0, 1));
        let target = |name: &str, bound| TargetBound {
            target_name: name.into(),
            target_condition: "IS_LESS_THAN".into(),
            bound,
        };
        a.targets = vec![target(CPU_USAGE, 20.0)];
        let scene = scene(&[1_000], vec![a]);
        assert!(scene.earned(&[199.0])[0].kept && !scene.earned(&[200.0])[0].kept);
        let mut memory = scene.clone();
        memory.workloads[0].targets = vec![target(RAM_USAGE, 1.0)];
        assert!(!memory.earned(&[1.0])[0].kept);
    }

    #[test]
    fn churn_counts_moves_and_replicas() {
        assert_eq!(churn(None, on(0, 3)), 0.0);
        assert_eq!(churn(on(0, 3), on(0, 3)), 0.0);
        assert!((churn(on(0, 3), on(0, 1)) - 0.2).abs() < 1e-12);
        assert_eq!((churn(on(0, 3), on(1, 3)), churn(on(0, 1), None)), (0.5, 0.5));
    }

    proptest! {
        /// Credits are another split of the same points; acts are within the hard constraints, and doing one never
        /// reserves more than there is.
        #[test]
        fn credits_sum_to_points_and_every_act_fits(
            sizes in prop::collection::vec(100u32..4_000, 1..5),
            asked in prop::collection::vec((10u64..900, 0usize..5, 1u32..4, 0.0f64..900.0), 1..9),
            picks in prop::collection::vec(0usize..100, 9),
        ) {
            let mut scene = scene(&sizes, asked.iter().enumerate().map(|(n, a)| workload(&n.to_string(), a.0, None)).collect());
            for (index, pick) in (0..asked.len()).zip(&picks) {
                let acts = scene.acts(index);
                if !acts.is_empty() {
                    scene.put(index, Some(acts[pick % acts.len()]));
                }
            }
            for cluster in &scene.clusters {
                prop_assert!(cluster.plan.cpu_milli_reserved <= u64::from(cluster.plan.cpu_milli));
            }
            let mut again = scene.clone();
            again.settle();
            for (a, b) in again.clusters.iter().zip(&scene.clusters) {
                prop_assert_eq!(&a.plan, &b.plan);
                prop_assert!((a.load_milli - b.load_milli).abs() < 1e-6 && a.workloads == b.workloads);
            }
            let earned = scene.earned(&asked.iter().map(|a| a.3).collect::<Vec<_>>());
            let (points, credit) = earned.iter().fold((0.0, 0.0), |s, e| (s.0 + e.points, s.1 + e.credit));
            prop_assert!((points - credit).abs() < 1e-9);
            for (number, cluster) in scene.clusters.iter().enumerate() {
                let served: f64 = scene.workloads.iter().zip(&earned)
                    .filter(|(w, _)| w.place.is_some_and(|p| p.cluster == number)).map(|(_, e)| e.served_milli).sum();
                prop_assert!(served <= cluster.cpu_milli() + 1e-6);
            }
        }
    }
}
