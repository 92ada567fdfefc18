//! What an identity signs in with: an NKey.

use std::fmt;

use nkeys::{KeyPair, KeyPairType};

/// The secret half of an identity. Prints nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed {
    text: String,
    public: String,
}

/// The text is not the seed of a user.
#[derive(Debug, thiserror::Error)]
#[error("invalid seed: the NKey seed of a user begins with SU and has 58 characters")]
pub struct SeedError;

impl Seed {
    /// A new random identity.
    pub fn generate() -> Result<Self, SeedError> {
        Self::of(&KeyPair::new_user())
    }

    /// Reads a seed; space around it is ignored.
    pub fn parse(text: &str) -> Result<Self, SeedError> {
        let pair = KeyPair::from_seed(text.trim()).map_err(|_| SeedError)?;
        if pair.key_pair_type() == KeyPairType::User { Self::of(&pair) } else { Err(SeedError) }
    }

    fn of(pair: &KeyPair) -> Result<Self, SeedError> {
        Ok(Self { text: pair.seed().map_err(|_| SeedError)?, public: pair.public_key() })
    }

    /// The secret text, for the client that signs with it.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// The public half, as `nats.conf` names the user.
    pub fn public_key(&self) -> &str {
        &self.public
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seed({})", self.public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_survives_its_text_and_prints_only_its_public_half() {
        let seed = Seed::generate().unwrap();
        assert_eq!(Seed::parse(&format!(" {}\n", seed.expose())).unwrap(), seed);
        assert!(seed.public_key().starts_with('U'));
        assert!(!format!("{seed:?}").contains(seed.expose()));
        assert!(Seed::parse("SUA").is_err());
        let account = KeyPair::new_account().seed().unwrap();
        assert!(Seed::parse(&account).is_err());
    }
}
