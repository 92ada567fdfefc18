//! Which release wrote a mesh's data last: an older one does not write to it.
//!
//! A later release may write facts that an older one cannot decode. The older one would fold entities without them, and
//! decide on states that never were. So each release leaves a mark in the data folder and on every stream, and refuses the
//! mark of a later one before it writes anything. Data without a mark is of a release before marks.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use mesh_kit::{ReadableBy, write_atomic};
use serde::{Deserialize, Serialize};

/// Changes when a program can no longer use what one of the same release wrote.
const FORMAT: u32 = 1;
const RELEASE: &str = env!("CARGO_PKG_VERSION");
/// The mark in the data folder.
const FILE: &str = "release.json";
/// Metadata of streams.
pub(crate) const STREAM_RELEASE: &str = "continuum.release";
pub(crate) const STREAM_FORMAT: &str = "continuum.format";

/// Who wrote data last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Format of the data.
    pub format: u32,
    /// Release of the program.
    pub release: String,
}

/// The data is not for this release, or does not say for which it is.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// A later release wrote it.
    #[error(
        "{place} was written by Continuum {made_by} (data format {format}), and this is {RELEASE} (data format {FORMAT}), \
         which may not understand all of it; nothing was changed: run {made_by} or later on it, or restore a backup that \
         {RELEASE} made into an empty folder"
    )]
    Newer {
        /// Data folder or stream.
        place: String,
        /// Release that wrote it.
        made_by: String,
        /// Its format.
        format: u32,
    },
    /// The mark cannot be understood.
    #[error(
        "{place} does not show which release wrote the data ({problem}); nothing was changed: restore it from a backup, or \
         remove the mark if this release wrote the data last"
    )]
    Unreadable {
        /// File or stream.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The file cannot be read or written.
    #[error("{what} {path}")]
    File {
        /// What.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Mark {
    /// That of this program.
    pub fn own() -> Self {
        Self { format: FORMAT, release: RELEASE.to_owned() }
    }

    /// Refuses the mark of a later release.
    fn check(&self, place: impl Fn() -> String) -> Result<(), ReleaseError> {
        let unreadable = |problem: String| ReleaseError::Unreadable { place: place(), problem };
        let parse = |text: &str| semver::Version::parse(text).map_err(|error| unreadable(format!("{text:?}: {error}")));
        if self.format > FORMAT || parse(&self.release)? > parse(RELEASE)? {
            return Err(ReleaseError::Newer { place: place(), made_by: self.release.clone(), format: self.format });
        }
        Ok(())
    }

    /// As metadata of a stream.
    pub(crate) fn metadata(&self) -> HashMap<String, String> {
        HashMap::from([
            (STREAM_RELEASE.to_owned(), self.release.clone()),
            (STREAM_FORMAT.to_owned(), self.format.to_string()),
        ])
    }
}

/// Refuses a data folder that a later release wrote. Writes nothing.
///
/// # Errors
/// If it has the mark of a later release, or one that cannot be read.
pub fn check_folder(data_dir: &Path) -> Result<(), ReleaseError> {
    let path = data_dir.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ReleaseError::File { what: "read", path, source }),
    };
    let unreadable = |error: serde_json::Error| ReleaseError::Unreadable {
        place: path.display().to_string(),
        problem: error.to_string(),
    };
    let mark: Mark = serde_json::from_slice(&text).map_err(unreadable)?;
    mark.check(|| data_dir.display().to_string())
}

/// Leaves this release's mark in a data folder, if it may.
///
/// # Errors
/// As [`check_folder`], or if it cannot be written.
pub fn mark_folder(data_dir: &Path) -> Result<(), ReleaseError> {
    check_folder(data_dir)?;
    let path = data_dir.join(FILE);
    let written = (|| {
        let text = serde_json::to_vec(&Mark::own())?;
        if fs::read(&path).is_ok_and(|found| found == text) {
            return Ok(());
        }
        write_atomic(&path, &text, ReadableBy::Anyone)?;
        File::open(data_dir)?.sync_all()
    })();
    written.map_err(|source| ReleaseError::File { what: "write", path, source })
}

/// Refuses a stream that a later release made or changed.
pub(crate) fn check_stream(name: &str, metadata: &HashMap<String, String>) -> Result<(), ReleaseError> {
    let (release, format) = match (metadata.get(STREAM_RELEASE), metadata.get(STREAM_FORMAT)) {
        (None, None) => return Ok(()),
        (release, format) => (release.cloned().unwrap_or_default(), format.cloned().unwrap_or_default()),
    };
    let place = || format!("the stream {name}");
    let format = format.parse().map_err(|error| ReleaseError::Unreadable {
        place: place(),
        problem: format!("{STREAM_FORMAT} {format:?}: {error}"),
    })?;
    Mark { format, release }.check(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_of_this_release_or_an_older_one_is_marked_as_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        for before in [None, Some(r#"{"format":0,"release":"0.0.9"}"#), Some(r#"{"format":1,"release":"0.1.0-rc.1"}"#)]
        {
            if let Some(before) = before {
                fs::write(&file, before).unwrap();
            }
            mark_folder(folder.path()).unwrap();
            mark_folder(folder.path()).unwrap();
            let mark: Mark = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            assert_eq!(mark, Mark::own(), "{before:?}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn data_of_a_later_release_is_refused_with_what_why_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        for later in [r#"{"format":1,"release":"0.1.1"}"#, r#"{"format":2,"release":"0.1.0"}"#] {
            fs::write(&file, later).unwrap();
            for refused in [check_folder(folder.path()), mark_folder(folder.path())] {
                let error = refused.unwrap_err();
                assert!(matches!(error, ReleaseError::Newer { .. }), "{error}");
                let text = error.to_string();
                assert!(text.contains("nothing was changed") && text.contains("or later on it"), "{text}");
            }
            assert_eq!(fs::read_to_string(&file).unwrap(), later);
        }
    }

    #[test]
    fn a_mark_that_cannot_be_understood_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        for damaged in ["", "{}", "[]", r#"{"format":-1,"release":"0.1.0"}"#, r#"{"format":1,"release":"new"}"#] {
            fs::write(&file, damaged).unwrap();
            let error = mark_folder(folder.path()).unwrap_err();
            assert!(matches!(error, ReleaseError::Unreadable { .. }), "{damaged}: {error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), damaged);
        }
        let of = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert!(check_stream("INTENT", &of(&[("other", "x")])).is_ok());
        assert!(check_stream("INTENT", &Mark::own().metadata()).is_ok());
        for metadata in [of(&[(STREAM_FORMAT, "1")]), of(&[(STREAM_RELEASE, "0.1.0")])] {
            let refused = check_stream("INTENT", &metadata);
            assert!(matches!(refused, Err(ReleaseError::Unreadable { .. })), "{refused:?}");
        }
        let later = check_stream("INTENT", &of(&[(STREAM_RELEASE, "99.0.0"), (STREAM_FORMAT, "1")]));
        assert!(later.unwrap_err().to_string().starts_with("the stream INTENT was written by Continuum 99.0.0"));
    }
}
