//! One mesh in one file: all that a mesh keeps, as it was at one moment, encrypted. It is in one data folder, as
//! `continuum up` has it, or in the volumes of containers, mounted in one folder.
//!
//! - [`create`]: while the mesh runs, its nats-server is stopped for a moment, in which what has changed since it was copied
//!   is copied once more. All streams, consumers and buckets, and the files of services, are so of one moment, which a server
//!   whose machine lost its power would find too.
//! - [`verify`] and [`restore`]: everything is decrypted and compared with the list of contents before anything is written.
//! - Never: leaves anything decrypted outside the data folder.

#![allow(clippy::disallowed_methods, reason = "a program for people: it copies files, waits and measures")]

mod archive;
mod copy;
mod key;
mod pace;
mod pause;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_admin::free_disk_bytes;

pub use archive::{Entry, Kind, Manifest};
pub use key::{Lock, Unlock, generate, text};
pub use pause::{Pause, continue_later};

/// What a running mesh writes for others, and what belongs to one run.
const LEFT_OUT: [&str; 4] = ["run", "lock", "endpoints.json", "endpoints.json.new"];
/// The folder of streams.
const STORE: &str = "jetstream";
/// The folders of keys: those of identities, and those that services of containers make. Elsewhere services make key files.
const KEY_FOLDERS: [&str; 2] = ["keys", "secrets"];
const KEY_FILES: [&str; 4] = ["issuer.keys", "master.keys", "access.keys", "ledger.key"];
/// Disk that is left to others, bytes.
const SPARE_BYTES: u64 = 64 << 20;

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no mesh.
    #[error("{0} holds no mesh: neither it nor a folder in it has a folder jetstream")]
    NoMesh(PathBuf),
    /// Something is there already.
    #[error("{0} has files; restore into a folder that has none or does not exist")]
    NotEmpty(PathBuf),
    /// The file is there already.
    #[error("{0} exists; choose another name or remove it")]
    Exists(PathBuf),
    /// The disk is too small.
    #[error("{folder} has {free} bytes free, and {needed} are needed")]
    NoSpace {
        /// Where.
        folder: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The data folder holds what cannot be restored elsewhere.
    #[error("{0} is neither a file nor a folder; remove it or replace it by what it points to")]
    Unusual(PathBuf),
    /// The mesh runs, and its server was not found.
    #[error(
        "the mesh runs (process {0}), but not its nats-server; wait until it is started again, or stop the mesh with `continuum down`"
    )]
    NoServer(u32),
    /// The server of volumes cannot be seen.
    #[error(
        "no nats-server that has its streams in {0} can be seen here; run this with the process ids of the host \
         (`pid: host`) and as the server's user, or stop the server and add --server-stopped"
    )]
    NoServerSeen(PathBuf),
    /// The server of volumes runs.
    #[error(
        "nats-server (process {pid}) has its streams in {data_dir}, although --server-stopped was given; stop it first"
    )]
    Serving {
        /// Which process.
        pid: i32,
        /// Where.
        data_dir: PathBuf,
    },
    /// Several servers.
    #[error("{count} nats-servers have their streams in {data_dir}; stop all but one")]
    SeveralServers {
        /// How many.
        count: usize,
        /// Where.
        data_dir: PathBuf,
    },
    /// The server was said to be stopped.
    #[error("{0} changed while it was copied: a nats-server that cannot be seen here uses it; stop that first")]
    Changed(PathBuf),
    /// The mesh is starting or stopping.
    #[error("the mesh is starting or stopping; try again in a few seconds")]
    Changing,
    /// What changes could not be copied in time.
    #[error(
        "what the mesh changes could not be copied within {limit_ms} ms, {attempts} times; allow more with --pause-ms, or \
         take the backup while less is under way"
    )]
    TooBusy {
        /// Limit, milliseconds.
        limit_ms: u128,
        /// How often it was tried.
        attempts: u32,
    },
    /// The server could not be stopped for the moment.
    #[error("pause the nats-server (process {pid})")]
    Pause {
        /// Which.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key does not fit, or is not one.
    #[error("{0}")]
    Key(String),
    /// The backup was not encrypted for this key, or is not a backup.
    #[error("{file} cannot be opened with this key")]
    WrongKey {
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: Box<age::DecryptError>,
    },
    /// The backup was changed or cut, or something else was put in its place.
    #[error("{file} is damaged or cut: {what}; nothing was restored")]
    Damaged {
        /// Which file.
        file: PathBuf,
        /// What was found.
        what: String,
    },
    /// The backup is of a later release.
    #[error(
        "{file} was made by release {made_by} in format {format}; this is release {release}: restore it with {made_by} or later"
    )]
    Newer {
        /// Which file.
        file: PathBuf,
        /// Release that made it.
        made_by: String,
        /// Its format.
        format: u32,
        /// This release.
        release: &'static str,
    },
    /// The keys are in another file.
    #[error("{0} was made without the keys; give the file with its keys by --keys")]
    KeysApart(PathBuf),
    /// The keys are of another backup.
    #[error("{keys} does not belong to {file}: it is of another backup")]
    OtherKeys {
        /// File with keys.
        keys: PathBuf,
        /// File with data.
        file: PathBuf,
    },
    /// Something could not be done with a file.
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

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { what, path: path.to_owned(), source }
}

/// How a backup is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Longest pause of the mesh.
    pub pause_max: Duration,
    /// Where the keys go; with the rest if `None`.
    pub keys_apart: Option<PathBuf>,
    /// The mesh is in volumes, and its server is stopped. Otherwise a server that uses them has to be visible.
    pub server_stopped: bool,
    /// A program that calls [`continue_later`] with its last argument, the id of a process.
    pub helper: Vec<OsString>,
}

/// What was made.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Made {
    /// Files in it.
    pub files: usize,
    /// Bytes of these files.
    pub bytes: u64,
    /// Bytes of the backup, with that of the keys.
    pub written_bytes: u64,
    /// How long the mesh stood still, milliseconds; 0 if it did not run.
    pub pause_ms: f64,
    /// Pauses that were given up because there was too much to copy.
    pub attempts: u32,
}

/// Checks that a data folder has a mesh.
///
/// # Errors
/// If it has none.
pub fn check_mesh(data_dir: &Path) -> Result<(), Error> {
    if stores(data_dir).is_empty() { Err(Error::NoMesh(data_dir.to_owned())) } else { Ok(()) }
}

/// The folders of streams in a data folder: its own, or one in a volume.
fn stores(data_dir: &Path) -> Vec<PathBuf> {
    let own = data_dir.join(STORE);
    if own.is_dir() {
        return vec![own];
    }
    let volumes = fs::read_dir(data_dir).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    // A data folder of `continuum up` is not a volume.
    let volumes = volumes.filter(|volume| !volume.join("lock").exists());
    volumes.map(|volume| volume.join(STORE)).filter(|store| store.is_dir()).collect()
}

/// Checks that a data folder has no files or does not exist; returns whether it exists. Folders are volumes to restore into.
///
/// # Errors
/// If it has files or cannot be read.
pub fn check_empty(data_dir: &Path) -> Result<bool, Error> {
    if !data_dir.try_exists().map_err(failed("look at", data_dir))? {
        return Ok(false);
    }
    if copy::files(data_dir)?.is_empty() { Ok(true) } else { Err(Error::NotEmpty(data_dir.to_owned())) }
}

/// Writes a backup of the mesh in a data folder, running or not.
///
/// # Errors
/// If there is no mesh, `file` exists, the mesh changes too much, or the disk is full. No file is left then.
pub fn create(data_dir: &Path, file: &Path, lock: &Lock, options: &Options) -> Result<Made, Error> {
    check_mesh(data_dir)?;
    for target in [Some(file), options.keys_apart.as_deref()].into_iter().flatten() {
        if target.exists() {
            return Err(Error::Exists(target.to_owned()));
        }
    }
    // Where nobody else looks, on the same disk, and not itself part of a backup.
    let run = data_dir.join("run");
    fs::create_dir_all(&run).map_err(failed("make", &run))?;
    let staging =
        tempfile::Builder::new().prefix("backup-").tempdir_in(&run).map_err(failed("make a folder in", &run))?;
    let needed = copy::bytes(data_dir)? + SPARE_BYTES;
    let free = free_disk_bytes(&run).map_err(failed("look at the disk of", &run))?;
    if free < needed {
        return Err(Error::NoSpace { folder: run, free, needed });
    }
    let running = pause::find(data_dir, options.server_stopped)?;
    let copied = copy::copy(data_dir, staging.path(), &running, options)?;
    // Held as long as it is read, if the mesh does not run: nobody starts it meanwhile.
    drop(running);

    let id = uuid::Uuid::new_v4().to_string();
    let apart = options.keys_apart.is_some();
    let all = archive::list(staging.path())?;
    let (whole, keys) = if apart { archive::part(all, is_key_file) } else { (all, vec![]) };
    let files = whole.iter().chain(&keys).filter(|entry| !entry.folder).count();
    let bytes = whole.iter().chain(&keys).map(|entry| entry.bytes).sum();
    let mut written_bytes =
        archive::write(file, staging.path(), Manifest::of(&id, Kind::Data { keys_apart: apart }, whole), lock)?;
    if let Some(target) = &options.keys_apart {
        let written = archive::write(target, staging.path(), Manifest::of(&id, Kind::Keys, keys), lock);
        written_bytes += written.inspect_err(|_| {
            let _not_there = fs::remove_file(file);
        })?;
    }
    Ok(Made { files, bytes, written_bytes, pause_ms: copied.pause.as_secs_f64() * 1e3, attempts: copied.attempts })
}

/// Reads a whole backup, with its keys if they are apart, and compares it with its list of contents. Writes nothing.
///
/// # Errors
/// If anything in it is not as it was made.
pub fn verify(file: &Path, keys: Option<&Path>, unlock: &Unlock) -> Result<Manifest, Error> {
    let manifest = archive::read(file, unlock, None)?;
    match (manifest.kind, keys) {
        (Kind::Data { .. }, Some(keys)) => {
            let of_keys = archive::read(keys, unlock, None)?;
            if of_keys.kind != Kind::Keys || of_keys.id != manifest.id {
                return Err(Error::OtherKeys { keys: keys.to_owned(), file: file.to_owned() });
            }
        }
        (Kind::Data { keys_apart: true } | Kind::Keys, _) | (Kind::Data { .. }, None) => {}
    }
    Ok(manifest)
}

/// Restores a backup into a folder that has no files or does not exist. All of it is there afterwards, or nothing; only if
/// the program is killed while it writes into volumes, a part of it may be left.
///
/// # Errors
/// If the folder has files, or anything in the backup is not as it was made.
pub fn restore(file: &Path, keys: Option<&Path>, unlock: &Unlock, data_dir: &Path) -> Result<Manifest, Error> {
    let is_there = check_empty(data_dir)?;
    let manifest = verify(file, keys, unlock)?;
    match (manifest.kind, keys) {
        (Kind::Keys, _) => {
            let what = "it holds keys alone; give it by --keys, beside the backup".to_owned();
            return Err(Error::Damaged { file: file.to_owned(), what });
        }
        (Kind::Data { keys_apart: true }, None) => return Err(Error::KeysApart(file.to_owned())),
        _ => {}
    }
    check_room(data_dir, &manifest.entries)?;
    let parent = data_dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if is_there && has_volumes(data_dir, parent)? {
        // A volume cannot be replaced, so its files are written in place.
        let written = [Some(file), keys].into_iter().flatten().try_for_each(|source| {
            // The file may have changed since it was verified: it is compared once more while it is written.
            archive::read(source, unlock, Some(data_dir)).map(|_| ())
        });
        if let Err(error) = written {
            for path in copy::files(data_dir)? {
                let path = data_dir.join(path);
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
            return Err(error);
        }
        // Each volume may be a file system of its own.
        nix::unistd::sync();
        return Ok(manifest);
    }
    fs::create_dir_all(parent).map_err(failed("make", parent))?;
    let staging =
        tempfile::Builder::new().prefix(".restore-").tempdir_in(parent).map_err(failed("make a folder in", parent))?;
    for source in [Some(file), keys].into_iter().flatten() {
        // The file may have changed since it was verified: it is compared once more while it is written.
        archive::read(source, unlock, Some(staging.path()))?;
    }
    archive::sync(staging.path()).map_err(failed("sync", staging.path()))?;
    if is_there {
        fs::remove_dir(data_dir).map_err(failed("replace", data_dir))?;
    }
    let private = fs::Permissions::from_mode(0o700);
    fs::set_permissions(staging.path(), private).map_err(failed("close", staging.path()))?;
    fs::rename(staging.path(), data_dir).map_err(failed("make", data_dir))?;
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(failed("sync", parent))?;
    Ok(manifest)
}

/// Checks that each file system has room for what is to be written into it. Each volume may be one of its own.
fn check_room(data_dir: &Path, entries: &[Entry]) -> Result<(), Error> {
    let mut needed: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    for entry in entries {
        let path = data_dir.join(&entry.path);
        let there = path.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("."));
        let device = fs::metadata(there).map_err(failed("look at", there))?.dev();
        let (_, bytes) = needed.entry(device).or_insert_with(|| (there.to_owned(), SPARE_BYTES));
        *bytes = bytes.saturating_add(entry.bytes);
    }
    for (folder, needed) in needed.into_values() {
        let free = free_disk_bytes(&folder).map_err(failed("look at the disk of", &folder))?;
        if free < needed {
            return Err(Error::NoSpace { folder, free, needed });
        }
    }
    Ok(())
}

/// Is a data folder a volume, or does it hold volumes? Then it cannot be renamed.
fn has_volumes(data_dir: &Path, parent: &Path) -> Result<bool, Error> {
    let device = |folder: &Path| fs::metadata(folder).map(|found| found.dev()).map_err(failed("look at", folder));
    let mut entries = fs::read_dir(data_dir).map_err(failed("read", data_dir))?;
    Ok(entries.next().is_some() || device(data_dir)? != device(parent)?)
}

/// Does this path, below the data folder, hold keys?
fn is_key_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    KEY_FOLDERS.iter().any(|folder| Path::new(path).starts_with(folder))
        || (path.starts_with("state/") && KEY_FILES.contains(&name))
}

#[cfg(test)]
mod tests;
