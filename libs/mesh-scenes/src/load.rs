//! A model of workloads without processes: what they use, how long they take to start, when they fail.
//!
//! Everything is a function of the seed, the replica and the time, so that two runs with one seed are one run. A
//! document steers it by environment variables:
//!
//! | variable | meaning | default |
//! | --- | --- | --- |
//! | `SIM_LOAD_MILLI` | CPU of one replica in thousandths of a core; steps as `300,5000:600` (600 from 5,000 ms after its start) | 50 to 90 % of what it asks for |
//! | `SIM_MEMORY_BYTES` | resident memory of one replica | 50 to 90 % of what it asks for |
//! | `SIM_START_MS` | time to start | 5 to 30 ms |
//! | `SIM_STOP_MS` | time to end once asked | 1 to 10 ms |
//! | `SIM_FAIL_AFTER_MS` | it ends with code 1 so long after each start | never, or by the mean time to failure |
//! | `SIM_START_ERROR` | it cannot start, for this reason, anywhere | it can |

use std::fmt;

use mesh_proto::workload::{ProcessSpec, Resources};

/// The load moves around its mean by this share, up and down.
const RIPPLE: f64 = 0.05;
/// One turn of the ripple.
const RIPPLE_MS: i64 = 10_000;

/// Names one replica of one generation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId {
    /// Instance.
    pub instance_id: String,
    /// Generation of the assignment.
    pub generation: u64,
    /// Number, from 0.
    pub replica: u32,
}

impl fmt::Display for ReplicaId {
    /// `<instance>.<generation>.<replica>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.instance_id, self.generation, self.replica)
    }
}

/// A seeded world.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Model {
    /// Tells worlds apart.
    pub seed: u64,
    /// Mean time a replica runs until it fails by itself; 0 for never.
    pub mean_time_to_failure_ms: u64,
}

/// How one replica behaves after one start. Times count from that start.
#[derive(Clone, Debug, PartialEq)]
pub struct Behaviour {
    /// It cannot start at all.
    pub start_error: Option<String>,
    /// Time to start.
    pub start_ms: i64,
    /// Time to end once asked.
    pub stop_ms: i64,
    /// It ends by itself.
    pub fails_after_ms: Option<i64>,
    /// Resident bytes.
    pub memory_bytes: u64,
    /// Mean load from a time on, thousandths of a core; the first from 0.
    steps: Vec<(i64, f64)>,
    /// Where the ripple begins, 0 to 1.
    phase: f64,
}

impl Model {
    /// How a replica behaves after its `starts`-th start.
    pub fn behaviour(&self, id: &ReplicaId, starts: u64, process: &ProcessSpec, ask: &Resources) -> Behaviour {
        let draw = |what: &str| self.draw(&[&id.instance_id, &id.replica.to_string(), what]);
        let variable = |name: &str| process.environment.get(name).map(|text| text.trim());
        let number = |name: &str| variable(name).and_then(|text| text.parse::<u64>().ok());
        let millis = |name: &str| number(name).and_then(|n| i64::try_from(n).ok());
        let share = 0.5 + 0.4 * draw("share");
        let steps =
            variable("SIM_LOAD_MILLI").and_then(steps).unwrap_or_else(|| vec![(0, f64::from(ask.cpu_milli) * share)]);
        let by_chance = (self.mean_time_to_failure_ms > 0).then(|| {
            // Exponentially distributed: failures have no memory.
            let chance = self.draw(&[&id.to_string(), &starts.to_string(), "failure"]);
            (-(1.0 - chance).ln() * self.mean_time_to_failure_ms as f64) as i64
        });
        Behaviour {
            start_error: variable("SIM_START_ERROR").filter(|text| !text.is_empty()).map(str::to_owned),
            start_ms: millis("SIM_START_MS").unwrap_or(5 + (25.0 * draw("start")) as i64),
            stop_ms: millis("SIM_STOP_MS").unwrap_or(1 + (9.0 * draw("stop")) as i64),
            fails_after_ms: millis("SIM_FAIL_AFTER_MS").or(by_chance),
            memory_bytes: number("SIM_MEMORY_BYTES").unwrap_or((ask.memory_bytes as f64 * share) as u64),
            steps,
            phase: draw("phase"),
        }
    }

    /// A number in 0 (included) to 1 (excluded), the same for the same parts (FNV-1a, then a finaliser that spreads it).
    fn draw(&self, parts: &[&str]) -> f64 {
        let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ self.seed;
        for byte in parts.iter().flat_map(|part| part.bytes().chain([0x1f])) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((hash ^ (hash >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Behaviour {
    /// CPU that it would use if nothing held it back, so long after its start, thousandths of a core.
    pub fn load_milli(&self, after_ms: i64) -> f64 {
        let mean = self.steps.iter().rev().find(|(from_ms, _)| *from_ms <= after_ms).map_or(0.0, |(_, load)| *load);
        let turn = self.phase + after_ms.rem_euclid(RIPPLE_MS) as f64 / RIPPLE_MS as f64;
        mean * (1.0 + RIPPLE * (turn * std::f64::consts::TAU).sin())
    }
}

/// `300` or `300,5000:600`; `None` if it is not such a text.
fn steps(text: &str) -> Option<Vec<(i64, f64)>> {
    let mut steps = text
        .split(',')
        .map(|step| {
            let (from_ms, load) = step.trim().split_once(':').unwrap_or(("0", step.trim()));
            let load: f64 = load.trim().parse().ok()?;
            (load.is_finite() && load >= 0.0).then_some((from_ms.trim().parse().ok()?, load))
        })
        .collect::<Option<Vec<_>>>()?;
    steps.sort_by_key(|(from_ms, _)| *from_ms);
    Some(steps)
}

/// What each gets of a capacity that they share in proportion, as a quota over all of them would give it.
pub fn share(capacity: f64, wanted: f64, all_wanted: f64) -> f64 {
    if all_wanted <= capacity || all_wanted <= 0.0 { wanted } else { wanted * capacity / all_wanted }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn id(instance: &str) -> ReplicaId {
        ReplicaId { instance_id: instance.into(), generation: 1, replica: 0 }
    }

    fn process(environment: &[(&str, &str)]) -> ProcessSpec {
        let environment =
            environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>();
        ProcessSpec { environment, ..Default::default() }
    }

    const ASK: Resources = Resources { cpu_milli: 400, memory_bytes: 1_000, cpu_limit_milli: 0, memory_limit_bytes: 0 };

    #[test]
    fn one_seed_is_one_world_and_another_seed_another() {
        let behaviour =
            |seed| Model { seed, mean_time_to_failure_ms: 1_000 }.behaviour(&id("a"), 1, &process(&[]), &ASK);
        assert_eq!(behaviour(1), behaviour(1));
        assert_ne!(behaviour(1), behaviour(2));
    }

    #[test]
    fn what_a_replica_uses_stays_below_what_it_asks_for() {
        let model = Model { seed: 7, mean_time_to_failure_ms: 0 };
        for n in 0..1_000 {
            let behaviour = model.behaviour(&id(&format!("i{n}")), 1, &process(&[]), &ASK);
            for after_ms in [0, 777, 5_000, 1_000_000] {
                let load = behaviour.load_milli(after_ms);
                assert!((400.0 * 0.5 * 0.95..400.0 * 0.9 * 1.05).contains(&load), "{load}");
            }
            assert_eq!(behaviour.fails_after_ms, None);
        }
    }

    #[test]
    fn a_document_sets_load_in_steps_failure_and_start() {
        let set = [("SIM_LOAD_MILLI", "300, 5000:600"), ("SIM_FAIL_AFTER_MS", "9"), ("SIM_START_MS", "70")];
        let behaviour = Model::default().behaviour(&id("a"), 1, &process(&set), &ASK);
        assert!((285.0..=315.0).contains(&behaviour.load_milli(4_999)));
        assert!((570.0..=630.0).contains(&behaviour.load_milli(5_000)));
        assert_eq!((behaviour.fails_after_ms, behaviour.start_ms), (Some(9), 70));
    }

    #[test]
    fn the_mean_time_to_failure_is_the_mean() {
        let model = Model { seed: 3, mean_time_to_failure_ms: 10_000 };
        let fails = |n: u64| model.behaviour(&id("a"), n, &process(&[]), &ASK).fails_after_ms.unwrap() as f64;
        let mean = (0..10_000).map(fails).sum::<f64>() / 10_000.0;
        assert!((9_500.0..10_500.0).contains(&mean), "{mean}");
    }

    #[test]
    fn a_capacity_is_shared_in_proportion_and_never_exceeded() {
        assert_eq!(share(1_000.0, 300.0, 900.0), 300.0);
        assert_eq!(share(1_000.0, 600.0, 2_000.0) + share(1_000.0, 1_400.0, 2_000.0), 1_000.0);
    }
}
