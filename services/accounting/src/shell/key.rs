//! The key that signs heads: read from its file, or made where this process keeps its own things.

#![expect(clippy::disallowed_methods, reason = "a signing key is drawn once")]

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ledger::note::{self, Signer};
use mesh_kit::make_once;

/// Its name in the folder of keys.
pub(crate) const FILE: &str = "ledger.key";

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read, made or written.
    #[error("use the ledger's key file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds no key of this ledger.
    #[error("read the ledger's key file {path}; remove it to have another key made")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: note::Error,
    },
    /// The system gave no random bytes.
    #[error("make the ledger's key: the system gives no randomness")]
    Random,
}

/// The signer of the file, or of the folder of keys, or of this process alone.
///
/// # Errors
/// A file that cannot be used.
pub fn signer(file: Option<&Path>, keys_dir: Option<&Path>) -> Result<Signer, Error> {
    match (file, keys_dir) {
        (Some(file), _) => read(file),
        (None, None) => made(),
        (None, Some(folder)) => {
            let path = folder.join(FILE);
            let text = || made().map(|signer| signer.secret() + "\n").map_err(io::Error::other);
            make_once(&path, text).map_err(|source| Error::File { path: path.clone(), source })?;
            read(&path)
        }
    }
}

fn read(path: &Path) -> Result<Signer, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    Signer::parse(&text).map_err(|source| Error::Key { path: path.to_owned(), source })
}

fn made() -> Result<Signer, Error> {
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| Error::Random)?;
    Signer::from_seed(seed).map_err(|_| Error::Random)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_nobody_elses_to_read() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("state");
        let first = signer(None, Some(&data)).unwrap();
        let again = signer(None, Some(&data)).unwrap();
        assert_eq!(first.verifier(), again.verifier());
        assert_eq!(fs::metadata(data.join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_ne!(signer(None, None).unwrap().verifier(), first.verifier());
        fs::write(data.join(FILE), "nonsense").unwrap();
        assert!(signer(None, Some(&data)).unwrap_err().to_string().contains("remove it"));
        assert!(signer(Some(&data.join("none")), None).is_err());
    }
}
