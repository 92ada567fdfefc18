//! What a policy is worth: its return on seeds that nobody trained on, with a confidence interval.

use mesh_scenes::{
    episode::{Profile, Scheduler, Total, run},
    schedulers::{Kind, Rule},
};

use crate::{dqn::Greedy, network::Network};

/// First seed of the episodes that decide whether a policy is adopted.
pub const VALIDATION_FIRST: u64 = 1_000_000;
/// First seed of the episodes that proofs are made on.
pub const HELD_OUT_FIRST: u64 = 2_000_000;

/// Mean of a figure over episodes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Half of its 95 % confidence interval (Student's t).
    pub half_width: f64,
}

impl Mean {
    /// Of values; the interval is 0 wide for fewer than two.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        if values.is_empty() {
            return Self::default();
        }
        let mean = values.iter().sum::<f64>() / n;
        if values.len() < 2 {
            return Self { mean, half_width: 0.0 };
        }
        let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0);
        Self { mean, half_width: student(values.len() - 1) * (variance / n).sqrt() }
    }
}

/// 97.5 % quantile of Student's t, within 0.5 % from 2 degrees of freedom on (Cornish and Fisher's expansion).
fn student(freedom: usize) -> f64 {
    let (z, n) = (1.959_964, freedom.max(1) as f64);
    let (z3, z5) = (z * z * z, z * z * z * z * z);
    if freedom == 1 {
        return 12.706;
    }
    if freedom == 2 {
        return 4.303;
    }
    let z7 = z5 * z * z;
    z + (z3 + z) / (4.0 * n)
        + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * n * n)
        + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * n * n * n)
}

/// How one scheduler did.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Its name.
    pub name: String,
    /// Return of each episode, points per wanted workload and period.
    pub returns: Vec<f64>,
    /// Mean return.
    pub points: Mean,
    /// Share of intents kept.
    pub kept: Mean,
    /// Watts, mean over periods.
    pub watts: Mean,
    /// Moves an episode.
    pub moves: Mean,
}

/// Runs a scheduler on `seeds` episodes from `first` on.
pub fn score(
    name: &str,
    first: u64,
    seeds: u64,
    profile: &Profile,
    scheduler: &mut dyn FnMut(u64) -> Box<dyn Scheduler + 'static>,
) -> Score {
    let totals: Vec<Total> = (first..first + seeds).map(|seed| run(seed, profile, scheduler(seed).as_mut())).collect();
    of(name, &totals)
}

/// Runs a network on `seeds` episodes from `first` on.
pub fn score_network(name: &str, first: u64, seeds: u64, profile: &Profile, network: &Network) -> Score {
    let totals: Vec<Total> = (first..first + seeds).map(|seed| run(seed, profile, &mut Greedy::new(network))).collect();
    of(name, &totals)
}

/// Runs every scheduler that does not learn.
pub fn score_rules(first: u64, seeds: u64, profile: &Profile) -> Vec<Score> {
    let one = |kind: Kind| score(kind.name(), first, seeds, profile, &mut |seed| Box::new(Rule::new(kind, seed)));
    Kind::ALL.into_iter().map(one).collect()
}

fn of(name: &str, totals: &[Total]) -> Score {
    let mean = |figure: &dyn Fn(&Total) -> f64| Mean::of(&totals.iter().map(figure).collect::<Vec<_>>());
    let returns: Vec<f64> = totals.iter().map(Total::mean).collect();
    Score {
        name: name.to_owned(),
        points: Mean::of(&returns),
        returns,
        kept: mean(&Total::kept_share),
        watts: mean(&|t| t.watts / f64::from(mesh_scenes::episode::PERIODS)),
        moves: mean(&|t| t.moves as f64),
    }
}

/// Mean of the differences of two scores, episode by episode: the same worlds, so their differences count.
pub fn difference(a: &Score, b: &Score) -> Mean {
    Mean::of(&a.returns.iter().zip(&b.returns).map(|(a, b)| a - b).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_student_s() {
        // Tables: 2.776 (4), 2.262 (9), 1.984 (99).
        for (freedom, wanted) in [(4, 2.776), (9, 2.262), (99, 1.984)] {
            assert!((student(freedom) / wanted - 1.0).abs() < 0.005, "{freedom}: {}", student(freedom));
        }
        let mean = Mean::of(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!((mean.mean - 3.0).abs() < 1e-12 && (mean.half_width - 1.963).abs() < 0.01);
        assert_eq!((Mean::of(&[]), Mean::of(&[2.0]).half_width), (Mean::default(), 0.0));
    }

    #[test]
    fn differences_are_taken_world_by_world() {
        let score = |returns: &[f64]| Score { returns: returns.to_vec(), ..of("", &[]) };
        let mean = difference(&score(&[1.0, 5.0]), &score(&[0.5, 4.5]));
        assert_eq!((mean.mean, mean.half_width), (0.5, 0.0));
    }
}
