//! Files that a process keeps for itself.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Who may read a file that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadableBy {
    /// Whoever the process's umask lets read.
    Anyone,
    /// The user that the process runs as, and nobody else: for keys and sessions.
    Owner,
}

/// Writes a file whole or not at all: whoever reads it finds what was there before or all of this, also after a crash.
/// Makes its folder if there is none. One writer at a time.
///
/// # Errors
/// Those of the file system; then what was there before is still there.
pub fn write_atomic(path: &Path, bytes: &[u8], readable_by: ReadableBy) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let staged = staged(path);
    let mode = match readable_by {
        ReadableBy::Anyone => 0o666,
        ReadableBy::Owner => 0o600,
    };
    // One that a crash left may be readable by others.
    match fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged)?;
    file.write_all(bytes)?;
    // Otherwise a power cut may leave an empty file under the new name.
    file.sync_data()?;
    fs::rename(&staged, path)
}

/// Where a file is written before it takes its name.
fn staged(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_written_whole_and_for_its_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/one.key");
        // Left by a crash.
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(staged(&path), "half").unwrap();
        for text in ["first", "second"] {
            write_atomic(&path, text.as_bytes(), ReadableBy::Owner).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!staged(&path).exists());
        assert!(write_atomic(&path.join("below"), b"", ReadableBy::Anyone).is_err(), "a file is not a folder");
    }
}
