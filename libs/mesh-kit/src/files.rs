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

/// Makes a file for its owner alone, unless it is there: of several processes with one folder, one makes it. Makes its
/// folder if there is none.
///
/// # Errors
/// Those of the text, and of the file system.
pub fn make_once<E: From<io::Error>>(path: &Path, text: impl FnOnce() -> Result<String, E>) -> Result<(), E> {
    if path.exists() {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let staged = path.with_extension(format!("new-{}", uuid::Uuid::new_v4().simple()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
    file.write_all(text()?.as_bytes())?;
    file.sync_all()?;
    // The link fails if another process was first; its text holds then.
    let _lost_the_race = fs::hard_link(&staged, path);
    Ok(fs::remove_file(&staged)?)
}

/// Makes a folder if it is missing, and checks that this process can keep files in it.
///
/// # Errors
/// Those of the file system, for example on a read-only disk or in a folder of another user.
pub(crate) fn try_writing(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let path = folder.join(format!(".writable-{}", uuid::Uuid::new_v4().simple()));
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)
}

/// Moves the files of these names that are in one folder and not yet in the other, for their owner alone.
pub(crate) fn move_files(from: &Path, to: &Path, names: &[&str]) -> io::Result<()> {
    for (old, new) in names.iter().map(|name| (from.join(name), to.join(name))) {
        if old == new || !old.exists() {
            continue;
        }
        if new.exists() {
            tracing::warn!(
                used = %new.display(), left = %old.display(),
                "the keys of an earlier configuration are left where they were: remove them, or put them in place"
            );
            continue;
        }
        write_atomic(&new, &fs::read(&old)?, ReadableBy::Owner)?;
        fs::remove_file(&old)?;
        tracing::info!(from = %old.display(), to = %new.display(), "moved keys");
    }
    Ok(())
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

    #[test]
    fn a_file_that_is_there_is_not_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/one.key");
        for text in ["first", "second"] {
            make_once(&path, || io::Result::Ok(text.to_owned())).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn writing_is_tried_where_nothing_is_left_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("new/data");
        try_writing(&data).unwrap();
        assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
        // Nobody makes files there, root included.
        assert!(try_writing(Path::new("/proc/self")).is_err());
    }

    #[test]
    fn keys_move_to_their_folder_and_none_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (data, keys) = (folder.path().join("data"), folder.path().join("keys"));
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("one.key"), "one").unwrap();
        move_files(&data, &keys, &["one.key", "two.key"]).unwrap();
        assert_eq!(fs::read_to_string(keys.join("one.key")).unwrap(), "one");
        assert!(!data.join("one.key").exists() && !keys.join("two.key").exists());
        fs::write(data.join("one.key"), "another").unwrap();
        move_files(&data, &keys, &["one.key"]).unwrap();
        assert_eq!(fs::read_to_string(keys.join("one.key")).unwrap(), "one");
        assert!(data.join("one.key").exists());
        move_files(&keys, &keys, &["one.key"]).unwrap();
        assert_eq!(fs::read_to_string(keys.join("one.key")).unwrap(), "one");
    }
}
