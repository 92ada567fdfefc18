//! What a policy sees of one thing that could be done with one workload: numbers near 0 to 1.
//!
//! A policy values options one by one, so that it works for any number of clusters and in any order of theirs. Loads and
//! resident sizes are those last measured, or what is asked for before the first measurement.

use mesh_planner::{CPU_USAGE, RAM_USAGE};
use mesh_proto::workload::TargetBound;
use mesh_scenes::scene::{Act, CREDIT_POINTS, Cluster, PERIOD_MS, REPLICAS_MAX, Scene, WATT_POINTS, Workload};

/// Numbers that describe an option.
pub const FEATURES: usize = 25;

/// What each of them is, in their order.
pub const NAMES: [&str; FEATURES] = [
    "load / present limit",
    "load / limit with these replicas",
    "load / the cluster's CPU",
    "margin to the cpuUsage bound there, as a share of the bound",
    "1 if that bound would be missed",
    "margin to the ramUsage bound, as a share of the bound",
    "1 if that bound would be missed",
    "1 if the workload is nowhere yet",
    "1 if its intent was missed in the last period",
    "growth of its load over a period",
    "1 if this is a move",
    "replicas more or fewer",
    "replicas / 8",
    "the cluster's CPU reserved then",
    "the cluster's CPU used then",
    "what of it is above 90 %, times five",
    "cost, points a period",
    "dynamic energy, points a period",
    "its part of the idle energy, points a period",
    "1 if nothing else runs there",
    "share of intents kept there in the last period",
    "cost and idle energy where it is now, points a period; 0 if it stays",
    "periods since it was placed / 10, at most 1",
    "1 if more than 90 % of the limit would be used",
    "1 if it was measured",
];

/// Describes an option. All zeros for a workload or a cluster that the scene has not.
pub fn describe(scene: &Scene, workload: usize, act: Act) -> [f32; FEATURES] {
    let (Some(w), Some(c)) = (scene.workloads.get(workload), scene.clusters.get(act.cluster)) else {
        return [0.0; FEATURES];
    };
    let replicas = w.place.map_or(w.replicas_declared, |p| p.replicas);
    let stays = w.place.is_some_and(|p| p.cluster == act.cluster);
    let load = w.load_milli;
    let (limit, limit_then) = (w.limit_milli(replicas), w.limit_milli(act.replicas));
    let others = c.workloads - u32::from(stays).min(c.workloads);
    let (load_of_others, reserved_of_others) = if stays {
        ((c.load_milli - load).max(0.0), c.plan.cpu_milli_reserved as f64 - w.reserved_milli(replicas))
    } else {
        (c.load_milli, c.plan.cpu_milli_reserved as f64)
    };
    let used = (load_of_others + load.min(limit_then)) / c.cpu_milli();
    let cpu = margin(&w.targets, CPU_USAGE, load * 100.0 / c.cpu_milli());
    let ram = margin(&w.targets, RAM_USAGE, w.memory_bytes * f64::from(act.replicas) / 1e6);
    let kept = c.kept - u32::from(stays && w.kept).min(c.kept);
    let left = w.place.filter(|_| !stays).and_then(|p| scene.clusters.get(p.cluster).map(|c| (p, c)));
    let flag = |on: bool| if on { 1.0 } else { 0.0 };
    let values = [
        (load / limit).min(2.0),
        (load / limit_then).min(2.0),
        (load / c.cpu_milli()).min(2.0),
        cpu,
        flag(cpu < 0.0),
        ram,
        flag(ram < 0.0),
        flag(w.place.is_none()),
        flag(w.place.is_some() && w.measured && !w.kept),
        ((load - w.load_before_milli) / (w.load_before_milli + 1.0)).clamp(-1.0, 1.0),
        flag(w.place.is_some() && !stays),
        f64::from(act.replicas) - f64::from(replicas),
        f64::from(act.replicas) / f64::from(REPLICAS_MAX),
        ((reserved_of_others + w.reserved_milli(act.replicas)) / c.cpu_milli()).clamp(0.0, 2.0),
        used.min(2.0),
        ((used - 0.9).max(0.0) * 5.0).min(2.0),
        cost_points(c, w, act.replicas).min(2.0),
        (WATT_POINTS * c.tariff.watts_per_core * load / 1_000.0).min(2.0),
        (WATT_POINTS * c.tariff.idle_watts / f64::from(others + 1)).min(2.0),
        flag(others == 0),
        if others == 0 { 1.0 } else { f64::from(kept) / f64::from(others) },
        left.map_or(0.0, |(place, c)| {
            let idle = WATT_POINTS * c.tariff.idle_watts / f64::from(c.workloads.max(1));
            (cost_points(c, w, place.replicas) + idle).min(2.0)
        }),
        (f64::from(w.settled) / 10.0).min(1.0),
        flag(load > 0.9 * limit_then),
        flag(w.measured),
    ];
    // A value that is not a number, which a live mesh may report, counts as zero.
    values.map(|value| if value.is_finite() { value as f32 } else { 0.0 })
}

fn cost_points(cluster: &Cluster, workload: &Workload, replicas: u32) -> f64 {
    let core_hours = workload.reserved_milli(replicas) / 1_000.0 * PERIOD_MS as f64 / 3_600_000.0;
    CREDIT_POINTS * core_hours * cluster.tariff.credits_per_core_hour
}

/// How far below its upper bound a value is, as a share of the bound, −1 to 1; the least of several bounds, 1 without any.
fn margin(targets: &[TargetBound], name: &str, value: f64) -> f64 {
    let upper = |t: &&TargetBound| t.target_name == name && t.target_condition.ends_with("LESS_THAN");
    let margins = targets.iter().filter(upper).map(|t| (t.bound - value) / t.bound.abs().max(1e-9));
    margins.fold(1.0, f64::min).clamp(-1.0, 1.0)
}

#[cfg(test)]
mod tests {
    use mesh_scenes::episode::{Episode, Profile};

    use super::*;

    #[test]
    fn features_are_finite_and_independent_of_cluster_order() {
        for seed in 0..30 {
            let episode = Episode::new(seed, &Profile::default());
            let mut turned = episode.scene().clone();
            turned.clusters.reverse();
            let last = turned.clusters.len() - 1;
            for workload in 0..episode.scene().workloads.len() {
                for act in episode.scene().acts(workload) {
                    let values = describe(episode.scene(), workload, act);
                    assert!(values.iter().all(|v| v.is_finite() && v.abs() <= 2.0), "{values:?}");
                    assert_eq!(values, describe(&turned, workload, Act { cluster: last - act.cluster, ..act }));
                }
            }
        }
    }

    #[test]
    fn what_is_not_there_is_nothing() {
        let scene = Scene::default();
        assert_eq!(describe(&scene, 0, Act { cluster: 0, replicas: 1 }), [0.0; FEATURES]);
    }
}
