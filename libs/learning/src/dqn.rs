//! Deep Q-learning: double, with replay and a target network, on seeded episodes.
//!
//! Each workload is a learner's trajectory of its own, all share one network. In every control period each workload is
//! decided on once; what it is credited for the period (see [`mesh_scenes::scene`]) is its reward, its next decision its next
//! state, its end the end. The value of an option is the discounted sum of credits from then on. Double: the online
//! network chooses the next option, the target network values it (van Hasselt et al. 2016). The loss is Huber's with
//! threshold 1; what an episode's end cuts off is not learned from.

use std::collections::BTreeMap;

use mesh_scenes::{
    episode::{Episode, Profile, Scheduler, Total},
    random::Random,
    scene::{Act, Scene},
};

use crate::{
    features::{FEATURES, describe},
    network::{Adam, Network, Room},
};

/// How training goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Widths of the hidden layers.
    pub hidden: Vec<usize>,
    /// Worth of a point one period later.
    pub discount: f32,
    /// Adam's.
    pub learning_rate: f32,
    /// Transitions in a gradient step.
    pub batch: usize,
    /// Transitions remembered.
    pub replay_max: usize,
    /// Transitions before the first step.
    pub replay_min: usize,
    /// Decisions between two steps.
    pub train_every: u64,
    /// Steps between two copies into the target network.
    pub target_every: u64,
    /// Share of decisions drawn at random at first, and at last.
    pub explore: (f64, f64),
    /// Episodes over which exploration falls.
    pub explore_episodes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hidden: vec![48, 32],
            discount: 0.85,
            learning_rate: 5e-4,
            batch: 64,
            replay_max: 8_000,
            replay_min: 300,
            train_every: 4,
            target_every: 200,
            explore: (0.5, 0.05),
            explore_episodes: 120,
        }
    }
}

impl Settings {
    /// Widths of the whole network, input first.
    pub fn widths(&self) -> Vec<usize> {
        std::iter::once(FEATURES).chain(self.hidden.iter().copied()).chain([1]).collect()
    }
}

type Features = [f32; FEATURES];

#[derive(Clone, Debug)]
struct Transition {
    option: Features,
    credit: f32,
    /// Options of the next period; empty when there was none.
    next: Vec<Features>,
}

/// Oldest first out.
#[derive(Clone, Debug, Default)]
struct Replay {
    transitions: Vec<Transition>,
    next: usize,
}

impl Replay {
    fn push(&mut self, transition: Transition, limit: usize) {
        if self.transitions.len() < limit.max(1) {
            self.transitions.push(transition);
            return;
        }
        if let Some(oldest) = self.transitions.get_mut(self.next) {
            *oldest = transition;
        }
        self.next = (self.next + 1) % self.transitions.len();
    }
}

/// A policy in training.
#[derive(Clone, Debug)]
pub struct Trainer {
    settings: Settings,
    online: Network,
    target: Network,
    adam: Adam,
    replay: Replay,
    random: Random,
    seed: u64,
    episodes: u64,
    steps: u64,
    decisions: u64,
    room: Room,
}

impl Trainer {
    /// From nothing.
    pub fn new(settings: Settings, seed: u64) -> Self {
        let network = Network::seeded(&settings.widths(), &mut Random::new(seed).part(1));
        Self::from_network(settings, network, seed)
    }

    /// Goes on from a network; its shape is kept.
    pub fn from_network(settings: Settings, network: Network, seed: u64) -> Self {
        Self {
            adam: Adam::new(network.weights().len(), settings.learning_rate),
            target: network.clone(),
            online: network,
            replay: Replay::default(),
            random: Random::new(seed).part(2),
            seed,
            episodes: 0,
            steps: 0,
            decisions: 0,
            settings,
            room: Room::default(),
        }
    }

    /// The network as it stands.
    pub fn network(&self) -> &Network {
        &self.online
    }

    /// Goes on from other weights of the same shape, as a federation gives them; what was lived is remembered. False, and
    /// nothing changes, if they are of another shape or not finite.
    pub fn adopt(&mut self, weights: &[f32]) -> bool {
        let taken = self.online.set(weights) && self.target.set(weights);
        if taken {
            self.adam = Adam::new(weights.len(), self.settings.learning_rate);
        }
        taken
    }

    /// Episodes lived here.
    pub fn episodes(&self) -> u64 {
        self.episodes
    }

    /// Gradient steps taken here.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Seed of the `n`-th training episode: never one of the small numbers that validation and proof use.
    pub fn episode_seed(seed: u64, n: u64) -> u64 {
        Random::new(seed).part(n.wrapping_add(1_000)).bits() | 1 << 63
    }

    /// Lives one episode of its own seeds and learns from it.
    pub fn episode(&mut self, profile: &Profile) -> Total {
        let seed = Self::episode_seed(self.seed, self.episodes);
        let (from, to) = self.settings.explore;
        let progress = (self.episodes as f64 / self.settings.explore_episodes.max(1) as f64).min(1.0);
        let explore = from + (to - from) * progress;
        let mut episode = Episode::new(seed, profile);
        let mut total = Total::default();
        // What each workload did last, and what it was credited for it.
        let mut open: BTreeMap<usize, (Features, f32)> = BTreeMap::new();
        while !episode.is_over() {
            let mut done: BTreeMap<usize, Features> = BTreeMap::new();
            for workload in 0..episode.scene().workloads.len() {
                let Some(identity) = episode.identity(workload) else { continue };
                let acts = episode.scene().acts(workload);
                let options: Vec<Features> = acts.iter().map(|act| describe(episode.scene(), workload, *act)).collect();
                let greedy = best(&self.online, &options, &mut self.room).map(|(index, _)| index);
                let chosen = if self.random.chance(explore) {
                    (!acts.is_empty()).then(|| self.random.below(acts.len()))
                } else {
                    greedy
                };
                let option = chosen.and_then(|index| options.get(index).copied());
                if let Some((option, credit)) = open.remove(&identity) {
                    self.learn(Transition { option, credit, next: options });
                }
                if let (Some(act), Some(option)) = (chosen.and_then(|index| acts.get(index)), option) {
                    episode.act(workload, *act);
                    done.insert(identity, option);
                }
            }
            // Those that are gone have ended.
            for (_, (option, credit)) in std::mem::take(&mut open) {
                self.learn(Transition { option, credit, next: vec![] });
            }
            for (identity, credit) in episode.pass(&mut total) {
                if let Some(option) = done.remove(&identity) {
                    open.insert(identity, (option, credit as f32));
                }
            }
        }
        self.episodes += 1;
        total
    }

    fn learn(&mut self, transition: Transition) {
        self.replay.push(transition, self.settings.replay_max);
        self.decisions += 1;
        if self.replay.transitions.len() >= self.settings.replay_min
            && self.decisions.is_multiple_of(self.settings.train_every.max(1))
        {
            self.step();
        }
    }

    /// One gradient step on a batch drawn from what is remembered.
    fn step(&mut self) {
        let mut gradient = vec![0.0; self.online.weights().len()];
        for _ in 0..self.settings.batch {
            let index = self.random.below(self.replay.transitions.len());
            let Some(transition) = self.replay.transitions.get(index) else { return };
            let next = best(&self.online, &transition.next, &mut self.room)
                .and_then(|(index, _)| transition.next.get(index))
                .map_or(0.0, |option| self.target.value(option, &mut self.room));
            let wanted = transition.credit + self.settings.discount * next;
            let error = self.online.value(&transition.option, &mut self.room) - wanted;
            let slope = error.clamp(-1.0, 1.0) / self.settings.batch as f32;
            self.online.add_gradient(slope, &mut self.room, &mut gradient);
        }
        self.adam.step(&mut self.online, &gradient);
        self.steps += 1;
        if self.steps.is_multiple_of(self.settings.target_every.max(1)) {
            self.target = self.online.clone();
        }
    }
}

/// The option of the highest value and that value, the first of equals; `None` of none.
pub fn best(network: &Network, options: &[Features], room: &mut Room) -> Option<(usize, f32)> {
    let mut best: Option<(usize, f32)> = None;
    for (index, option) in options.iter().enumerate() {
        let value = network.value(option, room);
        if best.is_none_or(|(_, highest)| value > highest) {
            best = Some((index, value));
        }
    }
    best
}

/// Does what a network values highest.
#[derive(Clone, Debug)]
pub struct Greedy<'a> {
    network: &'a Network,
    room: Room,
}

impl<'a> Greedy<'a> {
    /// By this network.
    pub fn new(network: &'a Network) -> Self {
        Self { network, room: Room::default() }
    }
}

impl Scheduler for Greedy<'_> {
    fn decide(&mut self, scene: &Scene, workload: usize) -> Option<Act> {
        let acts = scene.acts(workload);
        let options: Vec<Features> = acts.iter().map(|act| describe(scene, workload, *act)).collect();
        best(self.network, &options, &mut self.room).and_then(|(index, _)| acts.get(index).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(seed: u64, episodes: u64) -> Trainer {
        let mut trainer = Trainer::new(Settings::default(), seed);
        (0..episodes).for_each(|_| {
            trainer.episode(&Profile::default());
        });
        trainer
    }

    #[test]
    fn the_same_seed_gives_the_same_policy_byte_for_byte() {
        let (one, again, other) = (trained(3, 3), trained(3, 3), trained(4, 3));
        let bytes = |t: &Trainer| t.network().weights().iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(bytes(&one), bytes(&again));
        assert_ne!(bytes(&one), bytes(&other));
        assert!(one.steps() > 50);
    }

    #[test]
    fn no_training_episode_is_one_of_validation_or_proof() {
        for n in 0..1_000 {
            assert!(Trainer::episode_seed(n, n) > 1 << 62);
        }
    }

    #[test]
    fn replay_is_bounded_and_forgets_the_oldest() {
        let mut replay = Replay::default();
        for credit in 0..25 {
            replay.push(Transition { option: [0.0; FEATURES], credit: credit as f32, next: vec![] }, 10);
        }
        let mut credits: Vec<f32> = replay.transitions.iter().map(|t| t.credit).collect();
        credits.sort_by(f32::total_cmp);
        assert_eq!(credits, (15..25).map(|n| n as f32).collect::<Vec<_>>());
    }

    #[test]
    fn weights_of_another_shape_are_not_adopted() {
        let mut trainer = trained(1, 1);
        let before = trainer.network().clone();
        assert!(!trainer.adopt(&[0.0; 3]));
        assert_eq!(trainer.network(), &before);
    }
}
