//! The proof's experiment: a federation of sites with worlds of their own, some of them hostile.
//!
//! Sites have different data: tiers of clusters and loads are weighted by site. All begin with the same network; in each
//! round the honest train on episodes of their own, the hostile send something else, and all go on from what the rule made
//! of it. Signatures and rounds are the agent's `federation` and are left out: here every hostile member is a true one.

use mesh_scenes::{episode::Profile, random::Random};

use crate::{
    aggregate::{RuleKind, join},
    dqn::{Settings, Trainer},
    network::Network,
};

/// What a hostile member sends instead of its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Nobody is hostile.
    None,
    /// Minus four times its weights. (Minus once would only shrink the mean, and a network of rectified units ranks much
    /// the same when it is shrunk.)
    SignFlip,
    /// Ten times its weights.
    Scaling,
    /// Its weights plus noise, normally distributed with deviation 1.
    Noise,
    /// The first flips, the second scales, the third adds noise, and so on.
    Mixed,
}

impl Attack {
    /// All that are attacks.
    pub const ALL: [Self; 4] = [Self::SignFlip, Self::Scaling, Self::Noise, Self::Mixed];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SignFlip => "sign flip",
            Self::Scaling => "scaling",
            Self::Noise => "noise",
            Self::Mixed => "mixed",
        }
    }

    fn report(self, member: usize, weights: &[f32], random: &mut Random) -> Vec<f32> {
        match (self, member % 3) {
            (Self::None, _) => weights.to_vec(),
            (Self::SignFlip, _) | (Self::Mixed, 0) => weights.iter().map(|w| w * -4.0).collect(),
            (Self::Scaling, _) | (Self::Mixed, 1) => weights.iter().map(|w| w * 10.0).collect(),
            (Self::Noise, _) | (Self::Mixed, _) => weights.iter().map(|w| w + random.normal() as f32).collect(),
        }
    }
}

/// How large the experiment is.
#[derive(Clone, Debug, PartialEq)]
pub struct Study {
    /// Members.
    pub members: usize,
    /// How many of them are hostile.
    pub hostile: usize,
    /// Rounds.
    pub rounds: u64,
    /// Episodes that each member lives in a round.
    pub episodes: u64,
    /// Seed of everything.
    pub seed: u64,
    /// How members train.
    pub settings: Settings,
}

/// The world of a site.
pub fn site(member: usize) -> Profile {
    let mut tiers = [0.5; 3];
    if let Some(tier) = tiers.get_mut(member % 3) {
        *tier = 2.0;
    }
    Profile { tiers, load: 0.8 + 0.1 * (member % 5) as f64, clusters: vec![] }
}

impl Study {
    /// Runs it; the policy that all share at the end.
    pub fn federate(&self, rule: RuleKind, attack: Attack) -> Network {
        let start = Network::seeded(&self.settings.widths(), &mut Random::new(self.seed).part(1));
        let mut trainers: Vec<Trainer> = (0..self.members)
            .map(|n| Trainer::from_network(self.settings.clone(), start.clone(), self.seed ^ ((n as u64 + 1) << 32)))
            .collect();
        let hostile = if attack == Attack::None { 0 } else { self.hostile };
        let mut shared = start;
        for round in 0..self.rounds {
            let mut updates = vec![];
            for (member, trainer) in trainers.iter_mut().enumerate() {
                let profile = site(member);
                (0..self.episodes).for_each(|_| {
                    trainer.episode(&profile);
                });
                let mut random = Random::new(self.seed).part(round).part(member as u64);
                let honest = trainer.network().weights();
                let reported =
                    if member < hostile { attack.report(member, honest, &mut random) } else { honest.to_vec() };
                updates.push(reported);
            }
            let updates: Vec<&[f32]> = updates.iter().map(Vec::as_slice).collect();
            if let Ok(joined) = join(rule, &updates, self.hostile) {
                shared.set(&joined.weights);
                trainers.iter_mut().for_each(|trainer| {
                    trainer.adopt(&joined.weights);
                });
            }
        }
        shared
    }

    /// What one member has learned after as many episodes by itself.
    pub fn alone(&self, member: usize) -> Network {
        let start = Network::seeded(&self.settings.widths(), &mut Random::new(self.seed).part(1));
        let mut trainer = Trainer::from_network(self.settings.clone(), start, self.seed ^ ((member as u64 + 1) << 32));
        (0..self.rounds * self.episodes).for_each(|_| {
            trainer.episode(&site(member));
        });
        trainer.network().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_federation_is_one_run_for_one_seed_and_hostile_members_change_it() {
        let settings = Settings { hidden: vec![6], replay_min: 50, ..Settings::default() };
        let study = Study { members: 5, hostile: 1, rounds: 1, episodes: 1, seed: 3, settings };
        let clean = study.federate(RuleKind::Mean, Attack::None);
        assert_eq!(clean, study.federate(RuleKind::Mean, Attack::None));
        assert_ne!(clean, study.federate(RuleKind::Mean, Attack::Scaling));
        assert_ne!(clean, study.alone(0));
    }
}
