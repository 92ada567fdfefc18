//! A policy as it is kept and shown: its network and its model card, in one file that people can read.

use std::sync::{Arc, PoisonError, RwLock};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use mesh_proto::{derived_id, learning::ModelCard};
use mesh_scenes::episode::Profile;
use serde::{Deserialize, Serialize};

use crate::{
    dqn::{Settings, Trainer},
    evaluate::{VALIDATION_FIRST, score_network},
    features::FEATURES,
    network::{Network, size},
};

/// Largest policy file that is read, bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// Widest layer, and most layers, of a policy that is read.
const WIDTH_MAX: usize = 512;
const LAYERS_MAX: usize = 8;
/// Episodes on which a policy's card is measured.
pub const VALIDATION_SEEDS: u64 = 50;

/// What the card of every policy trained here states.
const INTENDED_USE: &str =
    "advice in shadow mode beside the planner; applied only when switched on, and only within its hard constraints";
const LIMITS: [&str; 4] = [
    "trained in the load model: real workloads that behave otherwise are valued wrongly",
    "energy and price are modelled from labels or tiers, never measured",
    "knows cpuUsage and ramUsage with upper bounds only; network, locality and dependencies are not seen",
    "sees one control period of 60 s at a time; changes within a period are not seen",
];

/// Why a policy file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Larger than a policy can be.
    #[error("a policy file of {0} bytes is larger than {FILE_BYTES_MAX}; is it another file?")]
    TooLarge(usize),
    /// Not of its format.
    #[error("read the policy file as JSON with `card` and `weights`")]
    Format(#[source] serde_json::Error),
    /// Weights are not base64.
    #[error("decode the policy's weights from base64")]
    Base64(#[source] base64::DecodeError),
    /// Not a network that this version evaluates.
    #[error(
        "the policy has layers {0:?}; this version evaluates up to {LAYERS_MAX} layers of at most {WIDTH_MAX}, from {FEATURES} to 1; train a new one"
    )]
    Shape(Vec<u32>),
    /// Weights that do not fill the layers, or are no numbers.
    #[error("the policy's {0} bytes of weights do not fill its layers with finite numbers")]
    Weights(usize),
    /// Changed after it was written.
    #[error(
        "the policy's weights have id {found}, its card states {stated}: the file was changed; take it again from its source"
    )]
    Changed {
        /// Of the weights.
        found: String,
        /// In the card.
        stated: String,
    },
}

/// A policy: what it does and what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its network.
    pub network: Network,
    /// Its card.
    pub card: ModelCard,
}

#[derive(Serialize, Deserialize)]
struct File {
    card: ModelCard,
    weights: String,
}

impl Policy {
    /// A network with a card; what follows from the network is filled in.
    pub fn new(network: Network, card: ModelCard) -> Self {
        let layers = network.widths().iter().map(|w| u32::try_from(*w).unwrap_or(u32::MAX)).collect();
        let card = ModelCard {
            policy_id: id(&network),
            algorithm: "double DQN with replay and target network".into(),
            layers,
            parameters: u32::try_from(network.weights().len()).unwrap_or(u32::MAX),
            intended_use: INTENDED_USE.into(),
            limits: LIMITS.map(str::to_owned).to_vec(),
            ..card
        };
        Self { network, card }
    }

    /// Trains a policy from nothing: the same seed, settings and profile give the same bytes. `report` is called after each episode.
    pub fn train(settings: Settings, seed: u64, episodes: u64, profile: &Profile, mut report: impl FnMut(u64)) -> Self {
        let mut trainer = Trainer::new(settings.clone(), seed);
        for done in 1..=episodes {
            trainer.episode(profile);
            report(done);
        }
        let card = ModelCard {
            seed,
            episodes,
            gradient_steps: trainer.steps(),
            discount: hundredths(settings.discount),
            learning_rate: f64::from(settings.learning_rate),
            trained_on: "seeded episodes of the load model".into(),
            ..ModelCard::default()
        };
        Self::new(trainer.network().clone(), card).validated()
    }

    /// With its return on the validation seeds in its card.
    pub fn validated(mut self) -> Self {
        let score = score_network("", VALIDATION_FIRST, VALIDATION_SEEDS, &Profile::default(), &self.network);
        self.card.validation_return = score.points.mean;
        self.card.validation_half_width = score.points.half_width;
        self.card.validation_seeds = VALIDATION_SEEDS as u32;
        self.card.validation_seed_first = VALIDATION_FIRST;
        self
    }

    /// As a file.
    pub fn to_file(&self) -> String {
        let file = File { card: self.card.clone(), weights: BASE64_STANDARD.encode(bytes(self.network.weights())) };
        serde_json::to_string_pretty(&file).map(|text| text + "\n").unwrap_or_default()
    }

    /// From a file.
    ///
    /// # Errors
    /// Anything but a file that [`to_file`](Self::to_file) wrote, unchanged, of a shape that this version evaluates.
    pub fn from_file(file: &[u8]) -> Result<Self, Error> {
        if file.len() > FILE_BYTES_MAX {
            return Err(Error::TooLarge(file.len()));
        }
        let File { card, weights } = serde_json::from_slice(file).map_err(Error::Format)?;
        let weights = BASE64_STANDARD.decode(weights).map_err(Error::Base64)?;
        let widths = widths(&card.layers).ok_or_else(|| Error::Shape(card.layers.clone()))?;
        let numbers = numbers(&weights).filter(|numbers| numbers.len() == size(&widths));
        let network = numbers.and_then(|numbers| Network::of(&widths, numbers));
        let network = network.ok_or(Error::Weights(weights.len()))?;
        let found = id(&network);
        if found != card.policy_id {
            return Err(Error::Changed { found, stated: card.policy_id });
        }
        Ok(Self { network, card })
    }
}

/// Layer widths that this version evaluates.
fn widths(layers: &[u32]) -> Option<Vec<usize>> {
    let widths: Vec<usize> = layers.iter().map(|w| *w as usize).collect();
    let fits = (2..=LAYERS_MAX).contains(&widths.len())
        && widths.first() == Some(&FEATURES)
        && widths.last() == Some(&1)
        && widths.iter().all(|w| (1..=WIDTH_MAX).contains(w));
    fits.then_some(widths)
}

/// The id of a network: the same weights in the same layers have the same.
pub fn id(network: &Network) -> String {
    let weights = hex::encode(bytes(network.weights()));
    derived_id(&["policy", &format!("{:?}", network.widths()), &weights])
}

/// Weights as bytes: little-endian float32.
pub fn bytes(weights: &[f32]) -> Vec<u8> {
    weights.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Weights from bytes; `None` if their number is not a multiple of four.
pub fn numbers(bytes: &[u8]) -> Option<Vec<f32>> {
    let (whole, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| whole.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn hundredths(value: f32) -> f64 {
    (f64::from(value) * 100.0).round() / 100.0
}

/// The policy in use, shared between the task that learns and the view that advises.
#[derive(Clone, Debug)]
pub struct Current(Arc<RwLock<Arc<Policy>>>);

impl Current {
    /// Begins with this one.
    pub fn new(policy: Policy) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(policy))))
    }

    /// The policy in use.
    pub fn get(&self) -> Arc<Policy> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another one from now on.
    pub fn set(&self, policy: Policy) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn small() -> Policy {
        let settings = Settings { hidden: vec![4], replay_min: 50, ..Settings::default() };
        Policy::train(settings, 5, 1, &Profile::default(), |_| {})
    }

    #[test]
    fn a_file_holds_the_whole_policy_and_its_card() {
        let policy = small();
        let again = Policy::from_file(policy.to_file().as_bytes()).unwrap();
        assert_eq!(again, policy);
        assert!(policy.card.validation_half_width > 0.0 && policy.card.gradient_steps > 0);
        assert_eq!(policy.card.policy_id, id(&policy.network));
    }

    #[test]
    fn a_changed_foreign_or_huge_file_is_refused_with_the_reason() {
        let policy = small();
        let other = Policy::new(Network::of(&[FEATURES, 1], vec![0.25; FEATURES + 1]).unwrap(), ModelCard::default());
        let swapped =
            Policy { card: ModelCard { policy_id: policy.card.policy_id.clone(), ..other.card.clone() }, ..other };
        assert!(matches!(Policy::from_file(swapped.to_file().as_bytes()), Err(Error::Changed { .. })));
        let bent = Policy { card: ModelCard { layers: vec![7, 1], ..policy.card.clone() }, ..policy.clone() };
        assert!(matches!(Policy::from_file(bent.to_file().as_bytes()), Err(Error::Shape(_))));
        let wide =
            Policy { card: ModelCard { layers: vec![25, u32::MAX, 1], ..policy.card.clone() }, ..policy.clone() };
        assert!(matches!(Policy::from_file(wide.to_file().as_bytes()), Err(Error::Shape(_))));
        let short = Policy { card: ModelCard { layers: vec![25, 5, 1], ..policy.card.clone() }, ..policy };
        assert!(matches!(Policy::from_file(short.to_file().as_bytes()), Err(Error::Weights(_))));
        assert!(matches!(Policy::from_file(&vec![b' '; FILE_BYTES_MAX + 1]), Err(Error::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(file in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Policy::from_file(&file).is_err());
        }
    }
}
