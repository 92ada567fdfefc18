//! What an agent keeps on its disk: what is assigned to it, and up to where it has read.
//!
//! It is a snapshot of the fold of its assignments and nothing more: without it, or if it cannot be read, the same is
//! folded again from the beginning of the stream.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use mesh_kit::{ReadableBy, write_atomic};
use serde::{Deserialize, Serialize};

use crate::domain::Cluster;

/// Changes when an older file can no longer be read.
const FORMAT: u32 = 1;

#[derive(Deserialize, Serialize)]
struct Snapshot<C> {
    format: u32,
    cluster: C,
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder could not be made or opened.
    #[error("open the agent's folder {path}")]
    Open {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another agent uses the folder.
    #[error("another agent of this cluster uses {0}; end it, or give this one a folder of its own")]
    InUse(PathBuf),
    /// The state was not written.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Closes a folder to all other users; makes it where it is missing.
///
/// # Errors
/// If it belongs to another user.
pub fn close(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// An agent's folder, which one agent uses at a time.
pub struct Folder {
    path: PathBuf,
    /// Locked while this lives.
    _lock: File,
}

impl Folder {
    /// Opens and locks the folder of a cluster's agent below `data_dir`, making it if need be.
    ///
    /// # Errors
    /// If it cannot be made or another agent uses it.
    pub fn open(data_dir: &Path, cluster_id: &str) -> Result<Self, Error> {
        let path = data_dir.join(cluster_id);
        let open = |source| Error::Open { path: path.clone(), source };
        // What runs on the same host is not to read what is assigned.
        close(&path).map_err(open)?;
        let path = path.canonicalize().map_err(open)?;
        let lock = File::create(path.join("lock")).map_err(|source| Error::Open { path: path.clone(), source })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(Error::InUse(path)),
            Err(fs::TryLockError::Error(source)) => Err(Error::Open { path, source }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was kept; `None` if there is nothing that can be used.
    pub fn load(&self, cluster_id: &str) -> Option<Cluster> {
        let bytes = fs::read(self.file()).ok()?;
        match serde_json::from_slice::<Snapshot<Cluster>>(&bytes) {
            Ok(snapshot) if snapshot.format == FORMAT && snapshot.cluster.cluster_id() == cluster_id => {
                Some(snapshot.cluster)
            }
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(file = %self.file().display(), %error, "state not read; assignments are read from the beginning");
                None
            }
        }
    }

    /// Keeps the state: whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, cluster: &Cluster) -> Result<(), Error> {
        let file = self.file();
        let bytes = serde_json::to_vec(&Snapshot { format: FORMAT, cluster }).map_err(io::Error::from);
        let written = bytes.and_then(|bytes| write_atomic(&file, &bytes, ReadableBy::Anyone));
        written.map_err(|source| Error::Write { path: file, source })
    }

    fn file(&self) -> PathBuf {
        self.path.join("state.json")
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::Cause;
    use mesh_proto::assignment::{Action, AssignmentChanged};

    use super::*;
    use crate::domain::Limits;

    #[test]
    fn what_was_kept_is_read_again_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path(), "edge").unwrap();
        assert_eq!(folder.load("edge"), None);
        let mut cluster = Cluster::new("edge");
        let message = AssignmentChanged {
            cluster_id: "edge".into(),
            instance_id: "a".into(),
            generation: 3,
            action: Action::Run.into(),
            replicas: 2,
            ..Default::default()
        };
        let cause = Cause { stream: "ASSIGNMENT".into(), sequence: 9, id: "x".into() };
        assert!(cluster.learn(&message, &cause, &Limits::default()));
        folder.save(&cluster).unwrap();
        assert_eq!(folder.load("edge"), Some(cluster));
        assert_eq!(folder.load("cloud"), None);
        fs::write(folder.file(), b"{\"format\":1,\"clu").unwrap();
        assert_eq!(folder.load("edge"), None);
    }

    #[test]
    fn one_agent_uses_a_folder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::open(dir.path(), "edge").unwrap();
        assert!(matches!(Folder::open(dir.path(), "edge"), Err(Error::InUse(_))));
        drop(first);
        assert!(Folder::open(dir.path(), "edge").is_ok());
    }
}
