//! Secrets: read from files, read again when they change, and never printed.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Longest secret file that is read, bytes.
const BYTES_MAX: u64 = 64 * 1024;

/// A secret in a file. Configuration holds its path, which is no secret and is all that is ever printed or
/// serialised; the content is read when needed, and again whenever the file has changed.
#[derive(Clone)]
pub struct Secret {
    path: PathBuf,
    held: Arc<Mutex<Option<(Stamp, SecretText)>>>,
}

/// What tells one version of a file from the next; a replaced file has another inode even within one clock tick.
type Stamp = (Option<SystemTime>, u64, u64);

/// The content of a secret. Prints nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Arc<str>);

/// A secret that cannot be read. Names the file, never its content.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there or may not be read.
    #[error("read secret file {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is empty.
    #[error("secret file {path} is empty")]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// The file is too large to be a secret.
    #[error("secret file {path} has {bytes} bytes, at most {BYTES_MAX} are read")]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Its size, bytes.
        bytes: u64,
    },
}

impl Secret {
    /// The secret in this file. Nothing is read yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), held: Arc::default() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its present content, without the line end that editors add. Reads the file again only if it has changed.
    pub fn read(&self) -> Result<SecretText, Error> {
        let failed = |source| Error::Read { path: self.path.clone(), source };
        let metadata = fs::metadata(&self.path).map_err(failed)?;
        if metadata.len() > BYTES_MAX {
            return Err(Error::TooLarge { path: self.path.clone(), bytes: metadata.len() });
        }
        let stamp = stamp(&metadata);
        let mut held = self.held.lock();
        if let Some((known, text)) = held.as_ref()
            && *known == stamp
        {
            return Ok(text.clone());
        }
        let content = fs::read_to_string(&self.path).map_err(failed)?;
        let content = content.trim_end_matches(['\r', '\n']);
        if content.is_empty() {
            return Err(Error::Empty { path: self.path.clone() });
        }
        let text = SecretText(content.into());
        *held = Some((stamp, text.clone()));
        Ok(text)
    }
}

fn stamp(metadata: &fs::Metadata) -> Stamp {
    #[cfg(unix)]
    let inode = std::os::unix::fs::MetadataExt::ino(metadata);
    #[cfg(not(unix))]
    let inode = 0;
    (metadata.modified().ok(), metadata.len(), inode)
}

/// What tells the present versions of these files from later ones; a missing file counts as a version too.
pub(crate) fn versions(paths: &[&Path]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| fs::metadata(path).ok().map(|metadata| stamp(&metadata))).collect()
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<file {}>", self.path.display())
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.path.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PathBuf::deserialize(deserializer).map(Self::at)
    }
}

impl SecretText {
    /// The content itself; for handing to what needs it, and nowhere else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_again_when_its_file_changes_and_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed");
        fs::write(&path, "first\n").unwrap();
        let secret = Secret::at(&path);
        assert_eq!(secret.read().unwrap().expose(), "first");

        // Rotated as Kubernetes does it: another file is moved into place.
        let next = folder.path().join("next");
        fs::write(&next, "later\n").unwrap();
        fs::rename(&next, &path).unwrap();
        assert_eq!(secret.read().unwrap().expose(), "later");

        let printed = format!("{secret:?} {secret} {:?} {}", secret.read(), serde_json::to_string(&secret).unwrap());
        assert!(!printed.contains("later"), "{printed}");
        assert!(printed.contains(&path.display().to_string()));
    }

    #[test]
    fn an_empty_a_missing_and_a_huge_file_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed");
        assert!(matches!(Secret::at(&path).read(), Err(Error::Read { .. })));
        fs::write(&path, "\n").unwrap();
        assert!(matches!(Secret::at(&path).read(), Err(Error::Empty { .. })));
        fs::write(&path, vec![b'x'; 70_000]).unwrap();
        assert!(matches!(Secret::at(&path).read(), Err(Error::TooLarge { bytes: 70_000, .. })));
    }
}
