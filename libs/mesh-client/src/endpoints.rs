//! Where a mesh on this machine answers: the file `endpoints.json` in its data folder.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Why a mesh cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No mesh has written the file.
    #[error("no mesh runs with the data folder {}; start one with `continuum up`", data_dir.display())]
    Absent {
        /// The data folder.
        data_dir: PathBuf,
        /// Why the file cannot be read.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what a mesh writes.
    #[error("read {}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The process that wrote the file has ended.
    #[error(
        "the mesh of {} (process {pid}) has ended; start it again with `continuum up --data-dir {}`",
        data_dir.display(),
        data_dir.display()
    )]
    Ended {
        /// The data folder.
        data_dir: PathBuf,
        /// The process.
        pid: u32,
    },
}

/// What a running mesh publishes for its clients.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoints {
    /// Process that runs the mesh.
    pub pid: u32,
    /// Start time of that process, clock ticks since boot: it distinguishes the process from a later one with the same pid.
    pub started_ticks: u64,
    /// `one process` or `one process per service`.
    pub mode: String,
    /// NATS address.
    pub nats: String,
    /// File with the NKey seed of the identity `person`.
    pub person_seed_file: PathBuf,
    /// NATS over WebSocket, for dashboards; empty in a file of release 0.1.
    #[serde(default)]
    pub websocket: String,
    /// File with the NKey seed of the identity `dashboard`, which may only listen.
    #[serde(default)]
    pub dashboard_seed_file: PathBuf,
    /// Zenoh router.
    pub zenoh: String,
    /// Clusters, by name.
    pub clusters: Vec<String>,
}

impl Endpoints {
    /// Where the file is.
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("endpoints.json")
    }

    /// Reads the file of a running mesh.
    ///
    /// # Errors
    /// When no mesh runs with this data folder.
    pub fn read(data_dir: &Path) -> Result<Self, Error> {
        let path = Self::path(data_dir);
        let text = std::fs::read(&path).map_err(|source| Error::Absent { data_dir: data_dir.to_owned(), source })?;
        let endpoints: Self = serde_json::from_slice(&text).map_err(|source| Error::Malformed { path, source })?;
        if started_ticks(endpoints.pid) != Some(endpoints.started_ticks) {
            return Err(Error::Ended { data_dir: data_dir.to_owned(), pid: endpoints.pid });
        }
        Ok(endpoints)
    }
}

/// Start time of a process, clock ticks since boot (`/proc/<pid>/stat`, field 22); `None` if no such process exists.
pub fn started_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows the last one is plain.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The file whose number delays probes to a cluster, in milliseconds, in a mesh started with `up --relays`.
pub fn probe_delay_file(data_dir: &Path, cluster: &str) -> PathBuf {
    data_dir.join(format!("probe-delay-{cluster}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path, started_ticks: u64) {
        let endpoints = Endpoints {
            pid: std::process::id(),
            started_ticks,
            mode: "one process".into(),
            nats: "nats://127.0.0.1:4222".into(),
            person_seed_file: folder.join("keys/person.nk"),
            websocket: String::new(),
            dashboard_seed_file: PathBuf::new(),
            zenoh: "tcp/127.0.0.1:7447".into(),
            clusters: vec!["edge".into()],
        };
        std::fs::write(Endpoints::path(folder), serde_json::to_vec(&endpoints).unwrap()).unwrap();
    }

    #[test]
    fn a_mesh_is_found_only_while_its_process_runs() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Endpoints::read(folder.path()), Err(Error::Absent { .. })));
        let own = started_ticks(std::process::id()).unwrap();
        written(folder.path(), own);
        assert_eq!(Endpoints::read(folder.path()).unwrap().clusters, ["edge"]);
        // Another process has the pid now.
        written(folder.path(), own + 1);
        assert!(matches!(Endpoints::read(folder.path()), Err(Error::Ended { .. })));
    }

    #[test]
    fn a_file_that_is_not_json_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(Endpoints::path(folder.path()), "{").unwrap();
        let error = Endpoints::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("endpoints.json"), "{error}");
    }
}
