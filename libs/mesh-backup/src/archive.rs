//! The file of a backup: age, in it gzip, in it tar: first the list of contents, then all that is in it, in that order.
//!
//! age authenticates each 64 KiB and the end. The list has a digest of each file, so a backup is also compared with what was
//! copied when it was made. Whoever knows a recipient can make such a file: nothing in it is trusted.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Component, Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use age::DecryptError;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    Error, LEFT_OUT, Lock, Unlock, failed,
    pace::{Pace, Paced},
};

/// Changes when an older program can no longer restore a backup.
const FORMAT: u32 = 1;
const LIST: &str = "manifest.json";
/// Bytes of the list.
const LIST_BYTES_MAX: u64 = 256 << 20;
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// What a file of a backup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// All that a mesh keeps.
    Data {
        /// Are the keys in a file of their own?
        keys_apart: bool,
    },
    /// The keys alone.
    Keys,
}

/// The list of contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of the file.
    pub format: u32,
    /// The same in the file of the keys.
    pub id: String,
    /// Release of the program that made it.
    pub release: String,
    /// When, seconds since 1970.
    pub made_at_s: u64,
    /// What it is.
    pub kind: Kind,
    /// What is in it, each folder before what is in the folder.
    pub entries: Vec<Entry>,
}

/// One file or folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where, below the data folder.
    pub path: String,
    /// Is it a folder?
    pub folder: bool,
    /// Its rights.
    pub mode: u32,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its content, hexadecimal; empty for a folder.
    pub sha256: String,
}

impl Manifest {
    pub(crate) fn of(id: &str, kind: Kind, entries: Vec<Entry>) -> Self {
        let made_at_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { format: FORMAT, id: id.to_owned(), release: RELEASE.to_owned(), made_at_s, kind, entries }
    }
}

/// Everything below a folder, with digests.
pub(crate) fn list(root: &Path) -> Result<Vec<Entry>, Error> {
    let (mut entries, mut open, mut pace) = (vec![], vec![PathBuf::new()], Pace::new());
    while let Some(folder) = open.pop() {
        let whole = root.join(&folder);
        for entry in fs::read_dir(&whole).map_err(failed("read", &whole))? {
            let entry = entry.map_err(failed("read", &whole))?;
            let (below, found) = (folder.join(entry.file_name()), entry.metadata().map_err(failed("look at", &whole))?);
            let path = below.to_str().ok_or_else(|| Error::Unusual(below.clone()))?.to_owned();
            let (bytes, sha256) = if found.is_dir() {
                open.push(below);
                (0, String::new())
            } else {
                let mut digest = Sha256::new();
                let mut file = File::open(entry.path()).map_err(failed("open", &entry.path()))?;
                let see = |piece: &[u8]| {
                    digest.update(piece);
                    Ok(())
                };
                let bytes = pace.read(&mut file, see, || Ok(())).map_err(failed("read", &entry.path()))?;
                (bytes, hex::encode(digest.finalize()))
            };
            entries.push(Entry { path, folder: found.is_dir(), mode: found.mode() & 0o777, bytes, sha256 });
        }
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// Parts entries in two: those that are not chosen, and those that are, with the folders that hold them.
pub(crate) fn part(entries: Vec<Entry>, is_chosen: impl Fn(&str) -> bool) -> (Vec<Entry>, Vec<Entry>) {
    let (chosen, rest): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|entry| is_chosen(&entry.path));
    let holds = |folder: &Entry| chosen.iter().any(|entry| Path::new(&entry.path).starts_with(&folder.path));
    let mut with_folders: Vec<Entry> = rest.iter().filter(|entry| entry.folder && holds(entry)).cloned().collect();
    with_folders.extend(chosen);
    with_folders.sort_by(|a, b| a.path.cmp(&b.path));
    (rest, with_folders)
}

/// Writes a file of a backup, whole or not at all; says how many bytes it has.
pub(crate) fn write(file: &Path, root: &Path, manifest: Manifest, lock: &Lock) -> Result<u64, Error> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // For its owner alone.
    let mut staged = tempfile::Builder::new()
        .prefix(".backup-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(parent)
        .map_err(failed("make a file in", parent))?;
    let encryptor = lock.encryptor()?;
    let written = (|| {
        let age = encryptor.wrap_output(BufWriter::new(Paced::new(staged.as_file_mut())))?;
        let mut tar = tar::Builder::new(GzEncoder::new(age, Compression::fast()));
        let text = serde_json::to_vec(&manifest)?;
        tar.append_data(&mut header(tar::EntryType::Regular, 0o600, text.len() as u64), LIST, text.as_slice())?;
        for entry in &manifest.entries {
            if entry.folder {
                let mut header = header(tar::EntryType::Directory, entry.mode, 0);
                tar.append_data(&mut header, &entry.path, io::empty())?;
            } else {
                let content = File::open(root.join(&entry.path))?;
                let mut header = header(tar::EntryType::Regular, entry.mode, entry.bytes);
                tar.append_data(&mut header, &entry.path, content)?;
            }
        }
        tar.into_inner()?.finish()?.finish()?.flush()?;
        staged.as_file().sync_all()
    })();
    written.map_err(failed("write", file))?;
    let bytes = staged.as_file().metadata().map_err(failed("look at", file))?.len();
    staged.persist_noclobber(file).map_err(|error| failed("write", file)(error.error))?;
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(failed("sync", parent))?;
    Ok(bytes)
}

fn header(kind: tar::EntryType, mode: u32, bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes);
    header
}

/// Reads a file of a backup to its end and compares all in it with its list; with `into`, writes it there as well.
pub(crate) fn read(file: &Path, unlock: &Unlock, into: Option<&Path>) -> Result<Manifest, Error> {
    let damaged = |what: String| Error::Damaged { file: file.to_owned(), what };
    let broken = |error: io::Error| damaged(error.to_string());
    let source = BufReader::new(File::open(file).map_err(failed("open", file))?);
    let decrypted = age::Decryptor::new(source).and_then(|age| age.decrypt(unlock.identities()));
    let decrypted = decrypted.map_err(|error| match error {
        DecryptError::NoMatchingKeys | DecryptError::DecryptionFailed | DecryptError::KeyDecryptionFailed => {
            Error::WrongKey { file: file.to_owned(), source: Box::new(error) }
        }
        error => damaged(error.to_string()),
    })?;
    let mut tar = tar::Archive::new(GzDecoder::new(decrypted));
    let mut entries = tar.entries().map_err(broken)?;
    let first = entries.next().ok_or_else(|| damaged("it is empty".to_owned()))?.map_err(broken)?;
    if first.path_bytes().as_ref() != LIST.as_bytes() || first.size() > LIST_BYTES_MAX {
        return Err(damaged("it does not begin with a list of contents".to_owned()));
    }
    let mut text = vec![];
    first.take(LIST_BYTES_MAX).read_to_end(&mut text).map_err(broken)?;
    let manifest = parse(file, &text)?;
    for entry in &manifest.entries {
        let mut found = entries.next().ok_or_else(|| damaged(format!("{} is missing", entry.path)))?.map_err(broken)?;
        let kind = found.header().entry_type();
        let is_right = if entry.folder { kind.is_dir() } else { kind.is_file() };
        let path = found.path_bytes().into_owned();
        let path = path.strip_suffix(b"/").unwrap_or(&path);
        if path != entry.path.as_bytes() || !is_right || found.size() != entry.bytes {
            return Err(damaged(format!("{} is not where the list of contents has it", entry.path)));
        }
        let target = into.map(|folder| folder.join(&entry.path));
        if entry.folder {
            match target.as_ref().map(|target| fs::DirBuilder::new().mode(entry.mode | 0o700).create(target)) {
                None | Some(Ok(())) => {}
                // Of the other file of the same backup.
                Some(Err(error)) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Some(Err(error)) => return Err(failed("make", Path::new(&entry.path))(error)),
            }
            continue;
        }
        let mut out = match &target {
            Some(target) => {
                let mode = entry.mode | 0o600;
                let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(target);
                Some(made.map_err(failed("make", target))?)
            }
            None => None,
        };
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = found.read(&mut buffer).map_err(broken)?;
            if count == 0 {
                break;
            }
            digest.update(&buffer[..count]);
            if let (Some(out), Some(target)) = (&mut out, &target) {
                out.write_all(&buffer[..count]).map_err(failed("write", target))?;
            }
        }
        if hex::encode(digest.finalize()) != entry.sha256 {
            return Err(damaged(format!("{} is not what the list of contents says", entry.path)));
        }
    }
    if let Some(more) = entries.next() {
        more.map_err(broken)?;
        return Err(damaged("it holds more than its list of contents".to_owned()));
    }
    // To the very end: what is cut there lacks the mark of the end.
    let mut rest = tar.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(broken)?;
    io::copy(&mut rest.into_inner(), &mut io::sink()).map_err(broken)?;
    Ok(manifest)
}

/// A list of contents that can be restored below a folder, and nowhere else.
fn parse(file: &Path, text: &[u8]) -> Result<Manifest, Error> {
    #[derive(Deserialize)]
    struct Made {
        format: u32,
        release: String,
    }
    let damaged = |what: String| Error::Damaged { file: file.to_owned(), what };
    let unreadable = |error: serde_json::Error| damaged(format!("its list of contents: {error}"));
    let made: Made = serde_json::from_slice(text).map_err(unreadable)?;
    let own = semver::Version::parse(RELEASE).ok();
    let is_newer = semver::Version::parse(&made.release).ok() > own;
    if made.format != FORMAT || is_newer {
        return Err(Error::Newer {
            file: file.to_owned(),
            made_by: made.release,
            format: made.format,
            release: RELEASE,
        });
    }
    let manifest: Manifest = serde_json::from_slice(text).map_err(unreadable)?;
    let mut folders = BTreeSet::from([Path::new("")]);
    let mut seen = BTreeSet::new();
    for entry in &manifest.entries {
        let path = Path::new(&entry.path);
        let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        let is_kept = !LEFT_OUT.iter().any(|left| path.starts_with(left));
        let is_inside = path.parent().is_some_and(|parent| folders.contains(parent));
        if !is_plain || !is_kept || !is_inside || !seen.insert(path) {
            return Err(damaged(format!("its list of contents names {:?}", entry.path)));
        }
        if entry.folder {
            folders.insert(path);
        }
    }
    Ok(manifest)
}

/// Everything below a folder is on disk afterwards.
pub(crate) fn sync(root: &Path) -> io::Result<()> {
    Ok(nix::unistd::syncfs(File::open(root)?)?)
}
