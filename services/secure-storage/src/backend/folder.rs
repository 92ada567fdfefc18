//! A folder as a location.
//!
//! A missing folder is a location that is unavailable. It is made once for each registration of its location, which a
//! file beside it records, so that no empty folder silently replaces an unmounted disk.

use std::{
    fs::{self, File},
    io::{self, IoSliceMut, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::UNIX_EPOCH,
};

use bytes::Bytes;
use mesh_proto::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Error, FILE_MAX, Found};

/// Where files are written before they are renamed.
const STAGING: &str = "new";

/// Operations on a folder at once. A disk does no more for more, and each takes a thread.
const AT_ONCE: usize = 8;

/// A folder. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Folder {
    root: Arc<Path>,
    turns: Arc<Semaphore>,
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    let text = format!("{what} {}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => Error::Missing(path.display().to_string()),
        io::ErrorKind::StorageFull => Error::Failed(format!("{text}: make room, or use another location")),
        _ => Error::Failed(text),
    }
}

/// Only names that we make; nothing else is read or written.
fn is_name(name: &str) -> bool {
    crate::blob::fragment::named(name).is_some() || name.strip_prefix("probe/").is_some_and(mesh_proto::is_key)
}

impl Folder {
    /// At a path.
    pub fn new(root: PathBuf) -> Self {
        Self { root: root.into(), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    async fn blocking<T: Send + 'static>(
        self,
        work: impl FnOnce(&Path) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = self.turn().await;
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            if !self.root.join(STAGING).is_dir() {
                return Err(Error::Unavailable(format!(
                    "the folder {} is missing; mount it again, or register the location again to start with an empty one",
                    self.root.display()
                )));
            }
            work(&self.root)
        });
        done.await.unwrap_or_else(|error| Err(Error::Failed(error.to_string())))
    }

    /// Makes the folder if this generation has none yet.
    pub(super) async fn prepare(self, generation: u64) -> Result<(), Error> {
        let made = tokio::task::spawn_blocking(move || {
            // What a crash left half written. What is still written to is younger.
            for entry in fs::read_dir(self.root.join(STAGING)).into_iter().flatten().flatten() {
                let old = entry.metadata().and_then(|m| m.modified()).ok().and_then(|m| m.elapsed().ok());
                if old.is_some_and(|age| age > super::STAGED_LIMIT) {
                    let _removed_before = fs::remove_file(entry.path());
                }
            }
            let recorded = self.root.with_extension("generation");
            let made = fs::read_to_string(&recorded).ok().and_then(|text| text.trim().parse::<u64>().ok());
            if made.is_some_and(|made| made >= generation) {
                return Ok(());
            }
            let make = |path: &Path| fs::create_dir_all(path).map_err(|e| failed("make folder", path, &e));
            make(&self.root.join(STAGING))?;
            make(&self.root.join("probe"))?;
            for short in 0..256 {
                make(&self.root.join(format!("{short:02x}")))?;
            }
            sync(&self.root)?;
            // Last: after a crash before it, the folders are made again, which changes nothing.
            let staged = recorded.with_extension(uuid::Uuid::new_v4().simple().to_string());
            write_atomic(&staged, &recorded, generation.to_string().as_bytes())
                .map_err(|error| failed("record the generation in", &recorded, &error))
        });
        made.await.unwrap_or_else(|error| Err(Error::Failed(error.to_string())))
    }

    pub(super) async fn put(self, name: String, bytes: Bytes) -> Result<(), Error> {
        self.blocking(move |root| {
            let path = checked(root, &name)?;
            let staged = root.join(STAGING).join(uuid::Uuid::new_v4().simple().to_string());
            write_atomic(&staged, &path, &bytes).map_err(|error| failed("write", &path, &error))
        })
        .await
    }

    pub(super) async fn get(self, name: String, range: Option<std::ops::Range<u64>>) -> Result<Bytes, Error> {
        self.blocking(move |root| {
            let path = checked(root, &name)?;
            let read = || {
                let mut file = File::open(&path)?;
                let length = file.metadata()?.len();
                let range = range.unwrap_or(0..length);
                let (from, to) = (range.start.min(length), range.end.min(length));
                let wanted = to.saturating_sub(from).min(FILE_MAX);
                if from > 0 {
                    file.seek(SeekFrom::Start(from))?;
                }
                let mut bytes = Vec::with_capacity(wanted as usize);
                file.take(wanted).read_to_end(&mut bytes)?;
                Ok(bytes.into())
            };
            read().map_err(|error| failed("read", &path, &error))
        })
        .await
    }

    /// The right to do something with this folder in a thread, which keeps it until it is done.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.turns.clone().acquire_owned().await.ok()
    }

    /// Reads to where these are, from a place in a file on. Blocks.
    pub(crate) fn read_to(&self, name: &str, from: u64, mut to: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        if !is_name(name) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut file = File::open(self.root.join(name))?;
        if from > 0 {
            file.seek(SeekFrom::Start(from))?;
        }
        IoSliceMut::advance_slices(&mut to, 0);
        while !to.is_empty() {
            match file.read_vectored(to) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => IoSliceMut::advance_slices(&mut to, read),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Where a file is written that comes bit by bit.
    pub(super) fn staged(&self) -> PathBuf {
        self.root.join(STAGING).join(uuid::Uuid::new_v4().simple().to_string())
    }

    /// Writes bytes at a place of a file that is not there yet for others.
    pub(super) async fn append(self, staged: PathBuf, at: u64, bytes: Bytes) -> Result<(), Error> {
        self.blocking(move |_| write_at(&staged, at, &bytes).map_err(|error| failed("write", &staged, &error))).await
    }

    /// Puts a header before what was appended, and makes it a file of its name; it is on disk when this returns.
    pub(super) async fn finish(self, staged: PathBuf, name: String, room: u64, header: Bytes) -> Result<(), Error> {
        self.blocking(move |root| {
            let path = checked(root, &name)?;
            let finish = || {
                if header.len() as u64 != room {
                    // The body ended sooner than was thought.
                    let whole = [&header[..], fs::read(&staged)?.get(room as usize..).unwrap_or_default()].concat();
                    fs::remove_file(&staged)?;
                    return write_atomic(&staged, &path, &whole);
                }
                let file = File::options().write(true).open(&staged)?;
                file.write_all_at(&header, 0)?;
                publish(&file, &staged, &path)
            };
            finish().map_err(|error| failed("write", &path, &error))
        })
        .await
    }

    pub(super) async fn delete(self, name: String) -> Result<(), Error> {
        self.blocking(move |root| {
            let path = checked(root, &name)?;
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, &error)),
                _ => Ok(()),
            }
        })
        .await
    }

    pub(super) async fn list(self, prefix: String) -> Result<Vec<Found>, Error> {
        self.blocking(move |root| {
            let mut found = vec![];
            let short = prefix.get(..2).unwrap_or_default();
            let path = root.join(short);
            let entries = fs::read_dir(&path).map_err(|error| failed("list", &path, &error))?;
            for entry in entries.flatten() {
                let name = format!("{short}/{}", entry.file_name().to_string_lossy());
                let modified = entry.metadata().and_then(|m| m.modified()).ok();
                let since = modified.and_then(|m| m.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
                let modified = Timestamp::from_nanos(since.as_nanos() as i128);
                if name.starts_with(&prefix) {
                    found.push(Found { name, modified });
                }
            }
            Ok(found)
        })
        .await
    }

    pub(super) fn free_bytes(&self) -> u64 {
        nix::sys::statvfs::statvfs(&*self.root).map_or(0, |s| s.blocks_available() * s.fragment_size())
    }
}

fn checked(root: &Path, name: &str) -> Result<PathBuf, Error> {
    if is_name(name) { Ok(root.join(name)) } else { Err(Error::Failed(format!("invalid fragment name {name:?}"))) }
}

/// Writes a file beside, syncs it, renames it and syncs its folder: after a crash the old file or the new one exists,
/// whole. `staged` must be in the same file system and must not exist.
fn write_atomic(staged: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let write = || {
        let mut file = File::create_new(staged)?;
        file.write_all(bytes)?;
        publish(&file, staged, path)
    };
    write().inspect_err(|_| {
        let _never_written = fs::remove_file(staged);
    })
}

/// Gives a file its name, once it is on disk.
fn publish(file: &File, staged: &Path, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    fs::rename(staged, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Writes at a place of a file, which is made if it is not there.
pub(super) fn write_at(path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
    File::options().create(true).truncate(false).write(true).open(path)?.write_all_at(bytes, at)
}

fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|error| failed("sync", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::fragment;

    #[tokio::test]
    async fn a_lost_folder_is_unavailable_until_its_location_is_registered_again() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::new(temporary.path().join("edge"));
        let name = fragment::name(&[7; 16], 0, 2);
        assert!(matches!(folder.clone().put(name.clone(), Bytes::new()).await, Err(Error::Unavailable(_))));
        folder.clone().prepare(1).await.unwrap();
        folder.clone().put(name.clone(), Bytes::from_static(b"0123456789")).await.unwrap();
        assert_eq!(&*folder.clone().get(name.clone(), None).await.unwrap(), b"0123456789");
        assert_eq!(&*folder.clone().get(name.clone(), Some(8..20)).await.unwrap(), b"89");
        assert_eq!(folder.clone().list("07".into()).await.unwrap()[0].name, name);
        assert!(folder.clone().list("08".into()).await.unwrap().is_empty());
        assert!(matches!(folder.clone().get("../../etc/passwd".into(), None).await, Err(Error::Failed(_))));
        // A file that comes bit by bit has its name only when it is whole, whether or not its length was known.
        for (room, header) in [(2, "he"), (4, "he")] {
            let staged = folder.staged();
            for (at, bytes) in [(0, "0123"), (4, "4567")] {
                folder.clone().append(staged.clone(), room + at, Bytes::from_static(bytes.as_bytes())).await.unwrap();
            }
            let name = fragment::name(&[9; 16], room as u32, 0);
            assert!(folder.clone().get(name.clone(), None).await.is_err());
            let header = Bytes::from_static(header.as_bytes());
            folder.clone().finish(staged.clone(), name.clone(), room, header).await.unwrap();
            assert_eq!(&*folder.clone().get(name.clone(), None).await.unwrap(), b"he01234567");
            let (mut one, mut two) = ([0; 3], [0; 4]);
            folder.read_to(&name, 1, &mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)]).unwrap();
            assert_eq!((&one, &two), (b"e01", b"2345"));
            assert!(folder.read_to(&name, 8, &mut [IoSliceMut::new(&mut two)]).is_err() && !staged.exists());
        }
        fs::remove_dir_all(temporary.path().join("edge")).unwrap();
        assert!(matches!(folder.clone().get(name.clone(), None).await, Err(Error::Unavailable(_))));
        folder.clone().prepare(1).await.unwrap();
        assert!(matches!(folder.clone().get(name.clone(), None).await, Err(Error::Unavailable(_))));
        folder.clone().prepare(2).await.unwrap();
        assert!(matches!(folder.clone().get(name.clone(), None).await, Err(Error::Missing(_))));
        folder.clone().delete(name).await.unwrap();
    }
}
