//! Seeded episodes: clusters of several tiers, workloads that come, change their load and go, and clusters that are lost.
//!
//! An episode is drawn whole from its seed before anything is decided, so that every policy meets the same world. Loads
//! come from [`load::Model`](crate::load::Model), the model behind the `simulated` driver, steered as a document steers it
//! (`SIM_LOAD_MILLI`); the load of a workload is shared equally by its replicas.
//!
//! | drawn | from |
//! | --- | --- |
//! | clusters | 3 to 6; the first three a device, an edge and a cloud, then any (a site's [`Profile`] weights the tiers) |
//! | CPU | device 250 to 1,000 mCPU, edge 600 to 3,000, cloud 1,500 to 8,000 |
//! | tariff | its tier's, each figure ± 40 % |
//! | workloads at the start, then | 4 to 7; each period with 15 % chance one more, 14 at most; each lives 10 to 60 periods |
//! | replicas, request | 1 to 3; what the mean load needs, over- or underestimated by a factor of 0.7 to 1.8 |
//! | limit | 1 to 1.6 times the request |
//! | load | mean 30 to 450 mCPU, a slow wave of ± 40 %, noise of 10 %, bursts of 1.4 to 2.2 for 4 to 10 periods |
//! | targets | `cpuUsage` below what its mean load is on one of the clusters, with a margin of 20 to 80 %; `ramUsage` |
//! | label asked for | with 15 % chance a tier |
//! | loss | with 30 % chance one cluster is away for 4 to 10 periods |

use std::collections::BTreeMap;

use mesh_proto::workload::{ProcessSpec, Resources, TargetBound};
use serde::{Deserialize, Serialize};

use crate::{
    load::{Behaviour, Model, ReplicaId},
    random::Random,
    scene::{Act, Cluster, MOVE_POINTS, PERIOD_MS, Place, REPLICAS_MAX, Scene, Workload, churn},
    tariff::{self, Tariff},
};
use mesh_planner::{self as plan, CPU_USAGE, RAM_USAGE, Spec, Topology};

/// Control periods of an episode.
pub const PERIODS: u32 = 40;
/// Workloads at once at most.
pub const WORKLOADS_MAX: usize = 14;

/// What kind of world a site lives in: the data that its agent learns from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// How likely a further cluster is a device, an edge or a cloud; any sum.
    pub tiers: [f64; 3],
    /// Factor on the mean load of workloads.
    pub load: f64,
    /// Clusters as they are at a site; drawn when empty.
    pub clusters: Vec<(String, plan::Cluster)>,
}

impl Default for Profile {
    fn default() -> Self {
        Self { tiers: [1.0, 1.0, 1.0], load: 1.0, clusters: vec![] }
    }
}

/// One workload of the schedule.
#[derive(Clone, Debug, PartialEq)]
struct Planned {
    begin: u32,
    end: u32,
    workload: Workload,
    behaviour: Behaviour,
    /// Where in a period its load is looked at, milliseconds.
    offset_ms: i64,
}

/// A world under way: its schedule, and the scene as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Episode {
    scene: Scene,
    planned: Vec<Planned>,
    /// Index into `planned` of each workload of the scene.
    present: Vec<usize>,
    /// Cluster that is away, from and up to which period.
    away: Option<(usize, u32, u32)>,
    period: u32,
    /// Points lost by changes of this period, by workload of the scene.
    churn: Vec<f64>,
}

/// Sum over an episode.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Total {
    /// Points.
    pub points: f64,
    /// Workloads wanted, summed over periods.
    pub wanted: u64,
    /// Intents kept, summed over periods.
    pub kept: u64,
    /// Watts, summed over periods.
    pub watts: f64,
    /// Moves.
    pub moves: u64,
}

impl Total {
    /// The return: points per wanted workload and period.
    pub fn mean(&self) -> f64 {
        if self.wanted == 0 { 0.0 } else { self.points / self.wanted as f64 }
    }

    /// Share of intents kept.
    pub fn kept_share(&self) -> f64 {
        if self.wanted == 0 { 0.0 } else { self.kept as f64 / self.wanted as f64 }
    }
}

impl Episode {
    /// The episode of a seed at a site.
    pub fn new(seed: u64, profile: &Profile) -> Self {
        let root = Random::new(seed);
        let clusters = clusters(&mut root.part(1), profile);
        let planned = schedule(&root, profile, &clusters);
        let mut random = root.part(2);
        let away = random.chance(0.3).then(|| {
            let from = 5 + random.below(PERIODS as usize - 15) as u32;
            (random.below(clusters.len()), from, from + 4 + random.below(7) as u32)
        });
        let scene = Scene { clusters, workloads: vec![], topology: Topology::default() };
        let mut episode = Self { scene, planned, present: vec![], away, period: 0, churn: vec![] };
        episode.begin_period();
        episode
    }

    /// The scene, to be decided on.
    pub fn scene(&self) -> &Scene {
        &self.scene
    }

    /// Number of the period, from 0.
    pub fn period(&self) -> u32 {
        self.period
    }

    /// Is it over?
    pub fn is_over(&self) -> bool {
        self.period >= PERIODS
    }

    /// A name of a workload of the scene that it has to itself in the episode.
    pub fn identity(&self, workload: usize) -> Option<usize> {
        self.present.get(workload).copied()
    }

    /// Does something with a workload of the scene, within the hard constraints; otherwise nothing happens. True if done.
    pub fn act(&mut self, workload: usize, act: Act) -> bool {
        let Some(of) = self.scene.workloads.get(workload) else { return false };
        let before = of.place;
        if before == Some(act) {
            return true;
        }
        if act.replicas == 0 || act.replicas > REPLICAS_MAX || !self.scene.admits(of, act) {
            return false;
        }
        let moved = before.is_none_or(|b| b.cluster != act.cluster);
        if let Some(lost) = self.churn.get_mut(workload) {
            *lost += churn(before, Some(act));
        }
        self.scene.put(workload, Some(act));
        if moved && let Some(of) = self.scene.workloads.get_mut(workload) {
            of.settled = 0;
        }
        true
    }

    /// The period passes. What each workload of the scene earned, churn taken off, as `(identity, credit)`.
    pub fn pass(&mut self, total: &mut Total) -> Vec<(usize, f64)> {
        let offered: Vec<f64> =
            self.present.iter().map(|index| self.planned.get(*index).map_or(0.0, |p| p.load(self.period))).collect();
        let earned = self.scene.earned(&offered);
        let mut credits = Vec::with_capacity(earned.len());
        for (index, earned) in earned.iter().enumerate() {
            let churn = self.churn.get(index).copied().unwrap_or(0.0);
            total.points += earned.points - churn;
            total.wanted += 1;
            total.kept += u64::from(earned.kept);
            total.moves += u64::from(churn >= MOVE_POINTS);
            credits.push((self.present.get(index).copied().unwrap_or(usize::MAX), earned.credit - churn));
            let Some(workload) = self.scene.workloads.get_mut(index) else { continue };
            workload.kept = earned.kept;
            workload.settled = workload.settled.saturating_add(1);
            if workload.place.is_some() {
                workload.load_before_milli = if workload.measured { workload.load_milli } else { earned.served_milli };
                workload.load_milli = earned.served_milli;
                workload.measured = true;
            }
        }
        self.scene.settle();
        total.watts += self.scene.clusters.iter().map(|c| c.tariff.watts(c.load_milli, c.workloads > 0)).sum::<f64>();
        self.period += 1;
        if !self.is_over() {
            self.begin_period();
        }
        credits
    }

    /// Workloads end and begin, clusters are lost and return.
    fn begin_period(&mut self) {
        let mut kept = vec![];
        for (workload, index) in
            std::mem::take(&mut self.scene.workloads).into_iter().zip(std::mem::take(&mut self.present))
        {
            if self.planned.get(index).is_some_and(|p| p.end > self.period) {
                kept.push((index, workload));
            }
        }
        for (index, planned) in self.planned.iter().enumerate() {
            if planned.begin == self.period && kept.len() < WORKLOADS_MAX {
                kept.push((index, planned.workload.clone()));
            }
        }
        (self.present, self.scene.workloads) = kept.into_iter().unzip();
        self.churn = vec![0.0; self.present.len()];
        if let Some((cluster, from, to)) = self.away
            && let Some(lost) = self.scene.clusters.get_mut(cluster)
        {
            lost.plan.available = !(from..to).contains(&self.period);
            if self.period == from {
                for (workload, churn) in self.scene.workloads.iter_mut().zip(&mut self.churn) {
                    if workload.place.is_some_and(|p| p.cluster == cluster) {
                        (workload.place, workload.kept) = (None, false);
                        *churn += MOVE_POINTS;
                    }
                }
            }
        }
        self.scene.settle();
    }
}

impl Planned {
    /// Load offered in a period, thousandths of a core.
    fn load(&self, period: u32) -> f64 {
        let since = i64::from(period.saturating_sub(self.begin));
        self.behaviour.load_milli(since * PERIOD_MS + self.offset_ms)
    }
}

fn clusters(random: &mut Random, profile: &Profile) -> Vec<Cluster> {
    if !profile.clusters.is_empty() {
        let mut given: Vec<Cluster> =
            profile.clusters.iter().map(|(id, plan)| Cluster::empty(id.clone(), plan.clone())).collect();
        given.sort_by(|a, b| a.id.cmp(&b.id));
        return given;
    }
    let count = 3 + random.below(4);
    let mut drawn = vec![];
    for number in 0..count {
        let tier = if number < 3 { number } else { weighted(random, &profile.tiers) };
        let (name, figures, low, high) = match tier {
            0 => ("device", tariff::DEVICE, 250.0, 1_000.0),
            1 => ("edge", tariff::EDGE, 600.0, 3_000.0),
            _ => ("cloud", tariff::CLOUD, 1_500.0, 8_000.0),
        };
        let cpu_milli = random.between(low, high) as u32;
        let plan = plan::Cluster {
            cpu_milli,
            memory_bytes: (f64::from(cpu_milli) * random.between(0.8e6, 2.0e6)) as u64,
            labels: BTreeMap::from([("tier".to_owned(), name.to_owned())]),
            available: true,
            ..Default::default()
        };
        let mut about = |figure: f64| figure * random.between(0.6, 1.4);
        let tariff = Tariff {
            idle_watts: about(figures.idle_watts),
            watts_per_core: about(figures.watts_per_core),
            credits_per_core_hour: about(figures.credits_per_core_hour),
        };
        drawn.push(Cluster { tariff, ..Cluster::empty(format!("{number}-{name}"), plan) });
    }
    drawn
}

fn weighted(random: &mut Random, weights: &[f64]) -> usize {
    let mut left = random.unit() * weights.iter().sum::<f64>();
    for (index, weight) in weights.iter().enumerate() {
        if left < *weight {
            return index;
        }
        left -= weight;
    }
    0
}

fn schedule(root: &Random, profile: &Profile, clusters: &[Cluster]) -> Vec<Planned> {
    let mut random = root.part(3);
    let first = 4 + random.below(4);
    let mut begins = vec![0; first];
    begins.extend((1..PERIODS).filter(|_| random.chance(0.15)));
    begins
        .into_iter()
        .enumerate()
        .map(|(n, begin)| draw(&mut root.part(100 + n as u64), n, begin, profile, clusters))
        .collect()
}

fn draw(random: &mut Random, number: usize, begin: u32, profile: &Profile, clusters: &[Cluster]) -> Planned {
    let largest = clusters.iter().map(Cluster::cpu_milli).fold(0.0, f64::max);
    let mean = (random.between(30.0, 450.0) * profile.load).clamp(5.0, largest * 0.5);
    let replicas = 1 + random.below(3) as u32;
    let request = (mean * random.between(0.7, 1.8) / f64::from(replicas)).max(5.0) as u32;
    let limit = (f64::from(request) * random.between(1.0, 1.6)) as u32;
    let memory = (f64::from(request) * random.between(0.2e6, 1.2e6)) as u64;
    let ask = Resources { cpu_milli: request, memory_bytes: memory, cpu_limit_milli: limit, memory_limit_bytes: 0 };

    // The load as a document would steer it, a step for each period.
    let (wave, turn) = (random.between(0.0, 0.4), random.between(12.0, 40.0));
    let phase = random.unit();
    let (mut burst, mut left) = (1.0, 0);
    let steps: Vec<String> = (0..PERIODS)
        .map(|period| {
            if left == 0 && random.chance(0.03) {
                (burst, left) = (random.between(1.4, 2.2), 4 + random.below(7));
            }
            let factor = if left > 0 { burst } else { 1.0 };
            left = left.saturating_sub(1);
            let slow = 1.0 + wave * ((phase + f64::from(period) / turn) * std::f64::consts::TAU).sin();
            let load = mean * slow * factor * (1.0 + 0.1 * (random.unit() - 0.5));
            format!("{}:{:.1}", i64::from(period) * PERIOD_MS, load.max(0.0))
        })
        .collect();
    let environment = BTreeMap::from([("SIM_LOAD_MILLI".to_owned(), steps.join(","))]);
    let process = ProcessSpec { environment, ..Default::default() };
    let id = format!("w{number:03}");
    let replica = ReplicaId { instance_id: id.clone(), generation: 1, replica: 0 };
    let behaviour = Model { seed: random.bits(), mean_time_to_failure_ms: 0 }.behaviour(&replica, 1, &process, &ask);

    // A bound that holds on at least one of the clusters while the load is near its mean.
    let wanted = clusters.get(random.below(clusters.len())).map_or(largest, |c| c.cpu_milli().max(mean));
    let bound = (mean * 100.0 / wanted * random.between(1.2, 1.8)).min(100.0);
    let below = |name: &str, bound: f64| TargetBound {
        target_name: name.to_owned(),
        target_condition: "IS_EQUAL_TO_OR_LESS_THAN".to_owned(),
        bound,
    };
    let room = f64::from(replicas + 1 + random.below(3) as u32);
    let targets = vec![below(CPU_USAGE, bound), below(RAM_USAGE, behaviour.memory_bytes as f64 * room * 1.05 / 1e6)];
    let tiers: Vec<&String> = clusters.iter().filter_map(|c| c.plan.labels.get("tier")).collect();
    let tier = tiers.get(random.below(tiers.len())).filter(|_| random.chance(0.15));
    let selector = tier.map(|tier| BTreeMap::from([("tier".to_owned(), (*tier).clone())])).unwrap_or_default();
    let spec = Spec {
        cpu_milli: request.into(),
        memory_bytes: memory,
        cpu_limit_milli: limit.into(),
        memory_limit_bytes: 0,
        selector,
        singleton: false,
        latency_bounds: vec![],
        driver: plan::Driver::default(),
    };
    let asked = f64::from(request) * f64::from(replicas);
    let workload = Workload {
        id,
        replica: spec,
        replicas_declared: replicas,
        targets,
        place: None,
        load_milli: asked,
        load_before_milli: asked,
        memory_bytes: behaviour.memory_bytes as f64,
        measured: false,
        kept: false,
        settled: 0,
    };
    let end = begin + 10 + random.below(51) as u32;
    Planned { begin, end, workload, behaviour, offset_ms: random.below(10_000) as i64 }
}

/// Whoever decides.
pub trait Scheduler {
    /// What to do with a workload of a scene; `None` leaves it as it is.
    fn decide(&mut self, scene: &Scene, workload: usize) -> Option<Act>;

    /// A new episode begins.
    fn begin(&mut self) {}
}

/// Runs an episode to its end: each period every workload is decided on once, in the order of its arrival. Also returns
/// what was decided, as `(period, identity, place)`, for a trace.
pub fn run(seed: u64, profile: &Profile, scheduler: &mut dyn Scheduler) -> Total {
    let mut episode = Episode::new(seed, profile);
    let mut total = Total::default();
    scheduler.begin();
    while !episode.is_over() {
        for workload in 0..episode.scene().workloads.len() {
            if let Some(act) = scheduler.decide(episode.scene(), workload) {
                episode.act(workload, act);
            }
        }
        episode.pass(&mut total);
    }
    total
}

/// The place of a workload of a scene, if it has one.
pub fn place_of(scene: &Scene, workload: usize) -> Option<Place> {
    scene.workloads.get(workload).and_then(|w| w.place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedulers::{Kind, Rule};

    #[test]
    fn one_seed_is_one_world_for_everybody() {
        let run = |seed| run(seed, &Profile::default(), &mut Rule::new(Kind::BestFit, seed));
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        assert_eq!(Episode::new(3, &Profile::default()), Episode::new(3, &Profile::default()));
    }

    #[test]
    fn no_scheduler_reserves_more_than_there_is() {
        for seed in 0..40 {
            let mut wanted = None;
            for kind in Kind::ALL {
                let mut episode = Episode::new(seed, &Profile::default());
                let (mut total, mut rule) = (Total::default(), Rule::new(kind, seed));
                while !episode.is_over() {
                    for workload in 0..episode.scene().workloads.len() {
                        if let Some(act) = rule.decide(episode.scene(), workload) {
                            episode.act(workload, act);
                        }
                    }
                    for cluster in &episode.scene().clusters {
                        assert!(cluster.plan.cpu_milli_reserved <= u64::from(cluster.plan.cpu_milli));
                        assert!(cluster.plan.memory_bytes_reserved <= cluster.plan.memory_bytes);
                        assert!(cluster.plan.available || cluster.workloads == 0);
                    }
                    episode.pass(&mut total);
                }
                assert_eq!(*wanted.get_or_insert(total.wanted), total.wanted);
            }
        }
    }

    #[test]
    fn what_the_constraints_forbid_does_not_happen() {
        let mut episode = Episode::new(1, &Profile::default());
        assert!(!episode.act(0, Act { cluster: 99, replicas: 1 }));
        assert!(!episode.act(0, Act { cluster: 0, replicas: 0 }));
        assert!(!episode.act(99, Act { cluster: 0, replicas: 1 }));
        assert!(!episode.act(0, Act { cluster: 0, replicas: REPLICAS_MAX + 1 }));
        assert_eq!(episode.scene().workloads[0].place, None);
    }

    #[test]
    fn a_site_learns_in_the_world_of_its_own_clusters() {
        let plan = plan::Cluster { cpu_milli: 900, memory_bytes: 1 << 30, available: true, ..Default::default() };
        let profile = Profile { clusters: vec![("b".into(), plan.clone()), ("a".into(), plan)], ..Profile::default() };
        let episode = Episode::new(5, &profile);
        assert_eq!(episode.scene().clusters.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }
}
