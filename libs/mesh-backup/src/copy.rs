//! Copies a data folder that changes: first while it does, then what has changed once more, while it does not.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::{
    Error, LEFT_OUT, Options, STORE, failed,
    pace::Pace,
    pause::{Pause, Running},
};

/// Pauses that are tried.
const ATTEMPTS_MAX: u32 = 20;
/// Between two of them.
const ATTEMPT_WAIT: Duration = Duration::from_millis(300);
/// A file that was changed so shortly before it was copied may have been changed after, at the same time by its clock.
const CLOCK_GRAIN: Duration = Duration::from_millis(50);
/// What a file system keeps for itself at the root of a volume.
const LOST: &str = "lost+found";

/// How it went.
pub(crate) struct Copied {
    pub(crate) pause: Duration,
    pub(crate) attempts: u32,
}

/// A file as it was just before it was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
    mode: u32,
}

struct Known {
    seen: Seen,
    copied: SystemTime,
}

/// Everything in a folder that is kept, below it: files, and folders with their rights.
struct Tree {
    files: BTreeMap<PathBuf, Seen>,
    folders: BTreeMap<PathBuf, u32>,
}

/// Bytes of what is kept.
pub(crate) fn bytes(root: &Path) -> Result<u64, Error> {
    Ok(tree(root)?.files.values().map(|file| file.bytes).sum())
}

/// The files in a folder that are kept, below it.
pub(crate) fn files(root: &Path) -> Result<Vec<PathBuf>, Error> {
    Ok(tree(root)?.files.into_keys().collect())
}

/// Copies `from` to `to`, as it is at one moment.
pub(crate) fn copy(from: &Path, to: &Path, running: &Running, options: &Options) -> Result<Copied, Error> {
    let (mut known, pause_max) = (BTreeMap::new(), options.pause_max);
    let server = match running {
        Running::Nothing(Some(_)) => {
            pass(from, to, &mut known, None)?;
            return Ok(Copied { pause: Duration::ZERO, attempts: 0 });
        }
        // Without a lock nothing keeps a server from running where it cannot be seen. The second pass has what was changed
        // so shortly before that its time does not show it.
        Running::Nothing(None) => {
            for _ in 0..2 {
                pass(from, to, &mut known, None)?;
                std::thread::sleep(CLOCK_GRAIN);
                let is_changed = |(path, seen): &(PathBuf, Seen)| {
                    let is_stored = path.iter().any(|name| name == STORE);
                    is_stored && known.get(path).is_none_or(|known| known.seen != *seen)
                };
                if let Some((path, _)) = tree(from)?.files.into_iter().find(is_changed) {
                    return Err(Error::Changed(from.join(path)));
                }
            }
            return Ok(Copied { pause: Duration::ZERO, attempts: 0 });
        }
        Running::Mesh(server) => *server,
    };
    // What is large, and what changed while it was copied.
    for _ in 0..2 {
        pass(from, to, &mut known, None)?;
    }
    for attempts in 1..=ATTEMPTS_MAX {
        let pause = Pause::begin(server, &options.helper)?;
        let done = pass(from, to, &mut known, Some((&pause, pause_max)))?;
        // One that the helper ended was not one.
        let whole = done && pause.holds();
        let took = pause.elapsed();
        drop(pause);
        if whole {
            return Ok(Copied { pause: took, attempts });
        }
        std::thread::sleep(ATTEMPT_WAIT);
        pass(from, to, &mut known, None)?;
    }
    Err(Error::TooBusy { limit_ms: pause_max.as_millis(), attempts: ATTEMPTS_MAX })
}

/// Copies what is not known as it is. `false` if the pause became too long; what was copied until then is known.
fn pass(
    from: &Path,
    to: &Path,
    known: &mut BTreeMap<PathBuf, Known>,
    within: Option<(&Pause, Duration)>,
) -> Result<bool, Error> {
    let is_over = || within.is_some_and(|(pause, limit): (&Pause, Duration)| pause.elapsed() > limit);
    let (tree, mut pace) = (tree(from)?, Pace::new());
    for (folder, mode) in &tree.folders {
        let target = to.join(folder);
        match fs::create_dir(&target) {
            Ok(()) => fs::set_permissions(&target, fs::Permissions::from_mode(mode | 0o700))
                .map_err(failed("set the rights of", &target))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && target.is_dir() => {}
            Err(error) => return Err(failed("make", &target)(error)),
        }
    }
    let gone: Vec<PathBuf> = known.keys().filter(|path| !tree.files.contains_key(*path)).cloned().collect();
    for path in gone {
        let target = to.join(&path);
        fs::remove_file(&target).map_err(failed("remove", &target))?;
        known.remove(&path);
    }
    for (path, seen) in &tree.files {
        if known.get(path).is_some_and(|known| known.seen == *seen && !known.is_doubtful()) {
            continue;
        }
        if is_over() {
            return Ok(false);
        }
        let (source, target) = (from.join(path), to.join(path));
        let copied = SystemTime::now();
        let done = match within {
            None => pace.copy(&source, &target),
            // While nothing moves, the sooner the better.
            Some(_) => fs::copy(&source, &target),
        };
        match done {
            Ok(_) => {
                known.insert(path.clone(), Known { seen: *seen, copied });
            }
            // It may go while it is looked at, but not while nothing changes: then a service alone has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !source.exists() => {
                let _not_there = fs::remove_file(&target);
                known.remove(path);
            }
            Err(error) => return Err(failed("copy", &source)(error)),
        }
    }
    // Folders that are gone, the innermost first.
    let kept = &tree.folders;
    for folder in folders(to)?.iter().rev().filter(|folder| !kept.contains_key(*folder)) {
        let target = to.join(folder);
        fs::remove_dir(&target).map_err(failed("remove", &target))?;
    }
    Ok(!is_over())
}

impl Known {
    fn is_doubtful(&self) -> bool {
        let (seconds, nanos) = self.seen.changed;
        let since = u64::try_from(seconds).ok().zip(u32::try_from(nanos).ok());
        let Some((seconds, nanos)) = since else { return true };
        SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos) + CLOCK_GRAIN >= self.copied
    }
}

fn tree(root: &Path) -> Result<Tree, Error> {
    let mut tree = Tree { files: BTreeMap::new(), folders: BTreeMap::new() };
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        let path = root.join(&folder);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.as_os_str().is_empty() => {
                tree.folders.remove(&folder);
                continue;
            }
            Err(error) => return Err(failed("read", &path)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed("read", &path))?;
            let name = entry.file_name();
            let is_run = folder.as_os_str().is_empty() && LEFT_OUT.iter().any(|left| *left == name);
            if is_run || name == LOST {
                continue;
            }
            let below = folder.join(name);
            let found = match entry.metadata() {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("look at", &entry.path())(error)),
            };
            let mode = found.mode() & 0o7777;
            if found.is_dir() {
                tree.folders.insert(below.clone(), mode);
                open.push(below);
            } else if found.is_file() {
                let changed = (found.mtime(), found.mtime_nsec());
                tree.files.insert(below, Seen { inode: found.ino(), bytes: found.len(), changed, mode });
            } else {
                return Err(Error::Unusual(entry.path()));
            }
        }
    }
    Ok(tree)
}

/// All folders below one, each after the one that holds it.
fn folders(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let (mut all, mut open) = (vec![], vec![PathBuf::new()]);
    while let Some(folder) = open.pop() {
        let path = root.join(&folder);
        for entry in fs::read_dir(&path).map_err(failed("read", &path))? {
            let entry = entry.map_err(failed("read", &path))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(folder.join(entry.file_name()));
                all.push(folder.join(entry.file_name()));
            }
        }
    }
    all.sort();
    Ok(all)
}
