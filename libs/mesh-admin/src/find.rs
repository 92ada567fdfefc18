//! A nats-server on this machine that is new enough.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    process::Command,
    time::{Instant, timeout_at},
};

use crate::ServerError;

/// Version of nats-server from which everything that the mesh relies on works.
pub const VERSION_MIN: &str = "2.14.4";

/// A nats-server that is new enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The program.
    pub path: PathBuf,
    /// Its version, for example `2.15.1`.
    pub version: String,
    /// Programs that came before it in the search and were skipped, each with the reason.
    pub skipped: Vec<String>,
}

/// Where to look for a nats-server, in this order.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// A program named on purpose: if it is unfit, nothing else is tried.
    pub named: Option<PathBuf>,
    /// Folders in which, and in whose ancestors, `.tools/nats-server` is looked for.
    pub folders: Vec<PathBuf>,
    /// The folder of this program, where packages put the nats-server that they ship.
    pub beside: Option<PathBuf>,
    /// A list of folders as in `PATH`.
    pub path: Option<OsString>,
}

impl Search {
    /// `CONTINUUM_NATS_SERVER`, then `.tools/` in the current folder, the program's own, and their ancestors, then beside
    /// the program, then `PATH`.
    pub fn from_environment() -> Self {
        let beside = env::current_exe().ok().and_then(|p| p.parent().map(Path::to_path_buf));
        Self {
            named: env::var_os("CONTINUUM_NATS_SERVER").filter(|n| !n.is_empty()).map(PathBuf::from),
            folders: env::current_dir().ok().into_iter().chain(beside.clone()).collect(),
            beside,
            path: env::var_os("PATH"),
        }
    }

    /// The first that is new enough. Programs that are not are skipped, and named.
    pub async fn find(&self) -> Result<Found, ServerError> {
        let mut candidates: Vec<PathBuf> = vec![];
        if let Some(named) = &self.named {
            candidates.push(named.clone());
        } else {
            let tools = self
                .folders
                .iter()
                .flat_map(|f| f.ancestors())
                .flat_map(|f| [f.join(".tools/nats-server"), f.join(".tools/bin/nats-server")]);
            let path = self.path.iter().flat_map(env::split_paths);
            let named = self.beside.iter().cloned().chain(path).map(|f| f.join("nats-server"));
            for candidate in tools.chain(named) {
                if candidate.is_file() && !candidates.contains(&candidate) {
                    candidates.push(candidate);
                }
            }
        }
        let mut skipped = vec![];
        for path in candidates {
            match version_of(&path).await {
                Ok(version) if is_new_enough(&version) => return Ok(Found { path, version, skipped }),
                Ok(version) => skipped.push(format!("{} is {version}", path.display())),
                Err(reason) => skipped.push(format!("{}: {reason}", path.display())),
            }
        }
        Err(ServerError::NotFound { skipped })
    }
}

/// A nats-server on this machine that is new enough: see [`Search::from_environment`].
pub async fn find_server() -> Result<Found, ServerError> {
    Search::from_environment().find().await
}

async fn version_of(path: &Path) -> Result<String, String> {
    let asked = Command::new(path).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout_at(Instant::now() + Duration::from_secs(10), asked).await;
    let output = output.map_err(|_| "did not print its version".to_owned())?.map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let version = text.split_whitespace().find_map(|word| {
        let word = word.trim_start_matches('v');
        numbers(word).map(|_| word.to_owned())
    });
    version.ok_or_else(|| format!("prints {:?} when asked for its version", text.trim()))
}

/// `2.15.1-RC.2` -> (2, 15, 1).
fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split(['-', '+']).next()?.split('.');
    let mut next = || parts.next()?.parse().ok();
    let found = (next()?, next()?, next()?);
    Some(found)
}

fn is_new_enough(version: &str) -> bool {
    numbers(version) >= numbers(VERSION_MIN)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn program(folder: &Path, output: &str) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        let path = folder.join("nats-server");
        fs::write(&path, format!("#!/bin/sh\necho '{output}'\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn an_older_server_is_skipped_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let old = program(&folder.path().join("old"), "nats-server: v2.14.3");
        let new = program(&folder.path().join("new"), "nats-server: v2.15.1");
        let path = env::join_paths([old.parent().unwrap(), new.parent().unwrap()]).unwrap();
        let found = Search { path: Some(path), ..Default::default() }.find().await.unwrap();
        assert_eq!((found.path, found.version.as_str()), (new, "2.15.1"));
        assert_eq!(found.skipped, [format!("{} is 2.14.3", old.display())]);
    }

    #[tokio::test]
    async fn a_project_tool_comes_before_the_path_and_is_found_from_below() {
        let folder = tempfile::tempdir().unwrap();
        let tool = program(&folder.path().join(".tools"), "nats-server: v2.14.4");
        let other = program(&folder.path().join("bin"), "nats-server: v2.15.1");
        let search = Search {
            named: None,
            folders: vec![folder.path().join("a/b")],
            beside: None,
            path: Some(other.parent().unwrap().into()),
        };
        assert_eq!(search.find().await.unwrap().path, tool);
    }

    #[tokio::test]
    async fn the_server_of_a_package_comes_before_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let shipped = program(&folder.path().join("lib"), "nats-server: v2.14.4");
        let other = program(&folder.path().join("bin"), "nats-server: v2.15.1");
        let beside = shipped.parent().map(Path::to_path_buf);
        let search = Search { beside, path: Some(other.parent().unwrap().into()), ..Default::default() };
        assert_eq!(search.find().await.unwrap().path, shipped);
    }

    #[tokio::test]
    async fn without_a_server_the_error_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let odd = program(folder.path(), "hello");
        let error = Search { named: Some(odd), ..Default::default() }.find().await.unwrap_err().to_string();
        assert!(error.contains("make setup") && error.contains("hello") && error.contains("2.14.4"), "{error}");
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(is_new_enough("2.14.4") && is_new_enough("2.100.0") && is_new_enough("3.0.0-RC.1"));
        assert!(!is_new_enough("2.14.3") && !is_new_enough("2.9.10") && !is_new_enough("what"));
    }
}
