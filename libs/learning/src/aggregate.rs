//! How updates of several members become one: by mean, or by rules that some hostile ones cannot bend far.
//!
//! Sources: coordinate-wise median and trimmed mean, Yin et al. 2018; Krum and Multi-Krum, Blanchard et al. 2017. Members
//! are taken in the order given, and every sum is in double precision in that order, so that the same updates give the
//! same bytes.

use serde::{Deserialize, Serialize};

/// A rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleKind {
    /// The mean of all: one hostile member is enough to break it.
    Mean,
    /// For each weight the mean without the `hostile` highest and lowest; needs more than 2 · hostile members.
    TrimmedMean,
    /// For each weight the median; holds while fewer than half are hostile.
    Median,
    /// The mean of the members − hostile − 2 updates that lie nearest to their members − hostile − 2 nearest others;
    /// needs more than 2 · hostile + 2 members.
    #[default]
    MultiKrum,
}

impl RuleKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mean, Self::TrimmedMean, Self::Median, Self::MultiKrum];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::TrimmedMean => "trimmed-mean",
            Self::Median => "median",
            Self::MultiKrum => "multi-krum",
        }
    }

    /// Fewest members that withstand this many hostile ones among them.
    pub const fn members_min(self, hostile: usize) -> usize {
        match self {
            Self::Mean => 1,
            Self::TrimmedMean | Self::Median => 2 * hostile + 1,
            Self::MultiKrum => 2 * hostile + 3,
        }
    }
}

/// Why updates cannot be joined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too few came.
    #[error(
        "{rule} withstands {hostile} hostile members only among {needed} or more, and {came} came; wait for more, or lower `hostile_max`"
    )]
    TooFew {
        /// The rule.
        rule: &'static str,
        /// Hostile members to withstand.
        hostile: usize,
        /// Members needed.
        needed: usize,
        /// Members that came.
        came: usize,
    },
    /// Not all have the same number of weights, or one is not finite.
    #[error("update {index} has another shape than the first, or a weight that is not a number")]
    Shape {
        /// Which.
        index: usize,
    },
}

/// What was joined.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    /// The weights.
    pub weights: Vec<f32>,
    /// Which updates had a part in them, by index.
    pub used: Vec<usize>,
}

/// Joins updates, withstanding up to `hostile` hostile ones as far as the rule can.
///
/// # Errors
/// Too few updates for that, or updates of different shapes.
pub fn join(rule: RuleKind, updates: &[&[f32]], hostile: usize) -> Result<Joined, Error> {
    let needed = rule.members_min(hostile).max(1);
    let Some(first) = updates.first().filter(|_| updates.len() >= needed) else {
        return Err(Error::TooFew { rule: rule.name(), hostile, needed, came: updates.len() });
    };
    let fits = |u: &&[f32]| u.len() == first.len() && u.iter().all(|w| w.is_finite());
    if let Some(index) = updates.iter().position(|u| !fits(u)) {
        return Err(Error::Shape { index });
    }
    let all: Vec<usize> = (0..updates.len()).collect();
    Ok(match rule {
        RuleKind::Mean => Joined { weights: mean(updates, &all), used: all },
        RuleKind::TrimmedMean => Joined { weights: by_weight(updates, hostile), used: all },
        RuleKind::Median => Joined { weights: by_weight(updates, (updates.len() - 1) / 2), used: all },
        RuleKind::MultiKrum => {
            let used = krum(updates, hostile);
            Joined { weights: mean(updates, &used), used }
        }
    })
}

fn mean(updates: &[&[f32]], used: &[usize]) -> Vec<f32> {
    let mut sums = vec![0.0f64; updates.first().map_or(0, |u| u.len())];
    for update in used.iter().filter_map(|index| updates.get(*index)) {
        for (sum, weight) in sums.iter_mut().zip(*update) {
            *sum += f64::from(*weight);
        }
    }
    let count = used.len().max(1) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

/// For each weight the mean of those left when `cut` are taken from each end.
fn by_weight(updates: &[&[f32]], cut: usize) -> Vec<f32> {
    let width = updates.first().map_or(0, |u| u.len());
    let mut column = Vec::with_capacity(updates.len());
    let mut joined = Vec::with_capacity(width);
    for index in 0..width {
        column.clear();
        column.extend(updates.iter().filter_map(|u| u.get(index).copied()));
        column.sort_unstable_by(f32::total_cmp);
        let left = column.get(cut..column.len() - cut).unwrap_or(&[]);
        let sum: f64 = left.iter().map(|w| f64::from(*w)).sum();
        joined.push((sum / left.len().max(1) as f64) as f32);
    }
    joined
}

/// The updates whose nearest others are nearest, in their order.
fn krum(updates: &[&[f32]], hostile: usize) -> Vec<usize> {
    let near = updates.len().saturating_sub(hostile + 2).max(1);
    let distance =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum() };
    let mut scores: Vec<(f64, usize)> = vec![];
    for (index, update) in updates.iter().enumerate() {
        let others = updates.iter().enumerate().filter(|(other, _)| *other != index);
        let mut distances: Vec<f64> = others.map(|(_, other)| distance(update, other)).collect();
        distances.sort_unstable_by(f64::total_cmp);
        scores.push((distances.iter().take(near).sum(), index));
    }
    scores.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut used: Vec<usize> = scores.into_iter().take(near).map(|(_, index)| index).collect();
    used.sort_unstable();
    used
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joined(rule: RuleKind, updates: &[Vec<f32>], hostile: usize) -> Vec<f32> {
        join(rule, &updates.iter().map(Vec::as_slice).collect::<Vec<_>>(), hostile).unwrap().weights
    }

    #[test]
    fn each_rule_as_worked_by_hand() {
        let updates: Vec<Vec<f32>> = [1.0, 2.0, 3.0, 4.0, 100.0].iter().map(|w| vec![*w]).collect();
        assert_eq!(joined(RuleKind::Mean, &updates, 1), [22.0]);
        assert_eq!(joined(RuleKind::TrimmedMean, &updates, 1), [3.0]);
        assert_eq!(joined(RuleKind::Median, &updates, 1), [3.0]);
        assert_eq!(joined(RuleKind::Median, &updates[..4], 1), [2.5]);
        // Each has 5 − 1 − 2 = 2 nearest: scores 5, 2, 2, 5, 96² + 97²; the two best are 2 and 3.
        let krum = join(RuleKind::MultiKrum, &updates.iter().map(Vec::as_slice).collect::<Vec<_>>(), 1).unwrap();
        assert_eq!(krum, Joined { weights: vec![2.5], used: vec![1, 2] });
    }

    #[test]
    fn too_few_or_misshapen_updates_are_said_with_what_helps() {
        let (a, b) = ([1.0f32, 2.0], [1.0f32]);
        assert_eq!(join(RuleKind::Mean, &[&a, &b], 0), Err(Error::Shape { index: 1 }));
        assert_eq!(join(RuleKind::Mean, &[&a, &[f32::NAN, 0.0]], 0), Err(Error::Shape { index: 1 }));
        let error = join(RuleKind::MultiKrum, &[&a, &a, &a, &a], 1).unwrap_err();
        assert_eq!(error, Error::TooFew { rule: "multi-krum", hostile: 1, needed: 5, came: 4 });
        assert!(error.to_string().contains("hostile_max"), "{error}");
        assert!(join(RuleKind::Mean, &[], 0).is_err());
    }

    proptest! {
        /// Up to the number they withstand, hostile updates of any size leave every weight of the robust rules within
        /// the honest updates.
        #[test]
        fn robust_rules_stay_within_what_the_honest_say(
            honest in prop::collection::vec(prop::collection::vec(-1.0f32..1.0, 3), 7),
            hostile in prop::collection::vec(prop::collection::vec(-1e30f32..1e30, 3), 3),
        ) {
            let mut updates = hostile.clone();
            updates.extend(honest.clone());
            for rule in [RuleKind::TrimmedMean, RuleKind::Median] {
                for (index, weight) in joined(rule, &updates, 3).into_iter().enumerate() {
                    let low = honest.iter().map(|h| h[index]).fold(f32::INFINITY, f32::min);
                    let high = honest.iter().map(|h| h[index]).fold(f32::NEG_INFINITY, f32::max);
                    prop_assert!((low - 1e-5..=high + 1e-5).contains(&weight), "{rule:?} {weight} {low} {high}");
                }
            }
            // Multi-Krum keeps out what lies far from all honest ones.
            let far: Vec<Vec<f32>> = hostile.iter().enumerate().map(|(n, h)| h.iter().map(|w| w.signum() * (1e4 * (n + 1) as f32) + w / 1e30).collect()).collect();
            let mut updates = honest.clone();
            updates.extend(far);
            let used = join(RuleKind::MultiKrum, &updates.iter().map(Vec::as_slice).collect::<Vec<_>>(), 3).unwrap().used;
            prop_assert!(used.iter().all(|index| *index < 7), "{used:?}");
        }

        /// The order of members changes nothing but the last bits of a sum.
        #[test]
        fn agreement_is_kept(weights in prop::collection::vec(-5.0f32..5.0, 1..6), members in 5usize..9) {
            let updates = vec![weights.clone(); members];
            for rule in RuleKind::ALL {
                for (joined, wanted) in joined(rule, &updates, 1).iter().zip(&weights) {
                    prop_assert!((joined - wanted).abs() < 1e-5);
                }
            }
        }
    }
}
