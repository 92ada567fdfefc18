//! Identities: an NKey per service, one for people, one for the provisioner, and where their seeds rest.

use std::{collections::BTreeMap, fmt, fs, io, path::Path};

use mesh_proto::{Contract, rights};
use nkeys::{KeyPair, KeyPairType};

/// The secret half of an identity. Prints nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed {
    text: String,
    public: String,
}

/// Not the seed of a user.
#[derive(Debug, thiserror::Error)]
#[error("not an NKey seed of a user: it begins with SU and has 58 characters")]
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

/// Installs the one TLS provider of the process, if none is installed yet: with several compiled in, rustls asks for a
/// choice before the first use.
pub fn install_crypto() {
    // An error says that one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Every identity of the mesh: the provisioner, the services, people.
pub fn identities(contract: &Contract) -> impl Iterator<Item = &str> {
    let services = contract.services.iter().map(|s| s.name.as_str());
    [rights::PROVISIONER].into_iter().chain(services).chain([rights::PERSON])
}

/// Reads the seeds kept in a folder as `<identity>.nk`; those missing are left out.
/// An unreadable file is an error of kind `InvalidData` that names it.
pub fn read_seeds(contract: &Contract, folder: &Path) -> io::Result<BTreeMap<String, Seed>> {
    let mut seeds = BTreeMap::new();
    for identity in identities(contract) {
        let path = folder.join(format!("{identity}.nk"));
        match fs::read_to_string(&path) {
            Ok(text) => {
                let seed = Seed::parse(&text)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", path.display())))?;
                seeds.insert(identity.to_owned(), seed);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
        }
    }
    Ok(seeds)
}

/// Writes a file that its owner alone may read, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let staged = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&staged, path)
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
