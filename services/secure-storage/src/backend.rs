//! What a location is made of: a folder, or a bucket of an S3 server.

mod folder;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use mesh_proto::storage::Location;

pub use folder::Folder;
pub use s3_client::{Client, Credentials, Error, Found};

/// A fragment file is never larger: an extent in one shard, with its tags.
pub const FILE_MAX: u64 = 128 << 20;

/// A file that is not finished and that nobody wrote to for this long is of a gateway that is gone.
pub(crate) const STAGED_LIMIT: Duration = Duration::from_secs(24 * 3_600);

/// One location.
#[derive(Clone)]
pub enum Backend {
    /// A folder.
    Folder(Folder),
    /// A bucket of an S3 server.
    S3(Client),
    /// A location that cannot be opened, and why.
    Broken(Arc<str>),
}

/// What it takes to open locations.
#[derive(Clone)]
pub struct Opener {
    /// Folder of the `dir:` locations.
    pub root: PathBuf,
    /// S3 credentials by name.
    pub credentials: BTreeMap<String, Credentials>,
    /// How long a location may take for one fragment.
    pub limit: Duration,
}

impl Opener {
    /// Where fragments wait until they are sent. No location has such a name.
    pub fn spool(&self) -> PathBuf {
        self.root.join(".spool")
    }

    /// Opens a location. One that cannot be opened returns the reason whenever it is used.
    pub fn open(&self, location: &Location) -> Backend {
        if let Some(folder) = location.url.strip_prefix("dir:") {
            return match mesh_proto::is_key(folder) {
                true => Backend::Folder(Folder::new(self.root.join(folder))),
                false => Backend::Broken(format!("invalid folder name {folder:?}").into()),
            };
        }
        let Some(credentials) = self.credentials.get(&location.credentials) else {
            let why = format!("this gateway has no credentials {:?} in its location_keys_file", location.credentials);
            return Backend::Broken(why.into());
        };
        match Client::new(&location.url, &location.region, credentials.clone(), self.limit) {
            Ok(client) => Backend::S3(client),
            Err(error) => Backend::Broken(error.to_string().into()),
        }
    }
}

impl Backend {
    fn broken<T>(why: &str) -> Result<T, Error> {
        Err(Error::Unavailable(why.to_owned()))
    }

    /// Makes a location of a generation ready for use. The first gateway that uses a generation makes its folder.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn prepare(&self, generation: u64) -> Result<(), Error> {
        match self {
            Self::Folder(folder) => folder.clone().prepare(generation).await,
            Self::S3(_) => Ok(()),
            Self::Broken(why) => Self::broken(why),
        }
    }

    /// Writes a file; it is on disk when this returns. A file of the same name is replaced at once.
    ///
    /// # Errors
    /// When it could not; whether the file exists is unknown then.
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<(), Error> {
        match self {
            Self::Folder(folder) => folder.clone().put(name.to_owned(), bytes).await,
            Self::S3(client) => client.put(name, bytes).await,
            Self::Broken(why) => Self::broken(why),
        }
    }

    /// Begins a file that comes bit by bit, after `room` bytes for its header. What is for a server of another kind waits in
    /// `spool` until it is whole: a request to it says its length first.
    pub fn draft(&self, room: u64, spool: &Path) -> Draft {
        let staged = match self {
            Self::Folder(folder) => folder.staged(),
            _ => spool.join(uuid::Uuid::new_v4().simple().to_string()),
        };
        Draft { backend: self.clone(), staged, room, bytes: 0 }
    }

    /// Reads a range of a file, or all of it; less if it is shorter.
    ///
    /// # Errors
    /// When it does not exist or cannot be read.
    pub async fn get(&self, name: &str, range: Option<std::ops::Range<u64>>) -> Result<Bytes, Error> {
        match self {
            Self::Folder(folder) => folder.clone().get(name.to_owned(), range).await,
            Self::S3(client) => client.get(name, range).await,
            Self::Broken(why) => Self::broken(why),
        }
    }

    /// Removes a file; succeeds if it does not exist.
    ///
    /// # Errors
    /// When the location cannot be reached.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        match self {
            Self::Folder(folder) => folder.clone().delete(name.to_owned()).await,
            Self::S3(client) => client.delete(name).await,
            Self::Broken(why) => Self::broken(why),
        }
    }

    /// The files whose names begin with this.
    ///
    /// # Errors
    /// When the location cannot be reached.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Found>, Error> {
        match self {
            Self::Folder(folder) => folder.clone().list(prefix.to_owned()).await,
            Self::S3(client) => client.list(prefix).await,
            Self::Broken(why) => Self::broken(why),
        }
    }

    /// Free bytes of its disk; 0 when not known.
    pub fn free_bytes(&self) -> u64 {
        match self {
            Self::Folder(folder) => folder.free_bytes(),
            _ => 0,
        }
    }
}

/// A file that comes bit by bit. Nobody sees it before it is finished.
pub struct Draft {
    backend: Backend,
    staged: PathBuf,
    room: u64,
    bytes: u64,
}

impl Draft {
    /// Writes the next bytes.
    ///
    /// # Errors
    /// When it could not; the draft is of no use then.
    pub async fn append(&mut self, bytes: Bytes) -> Result<(), Error> {
        let (staged, at) = (self.staged.clone(), self.room + self.bytes);
        self.bytes += bytes.len() as u64;
        match &self.backend {
            Backend::Folder(folder) => folder.clone().append(staged, at, bytes).await,
            Backend::S3(_) => {
                spooled(move || {
                    if let Some(folder) = staged.parent() {
                        std::fs::create_dir_all(folder)?;
                    }
                    folder::write_at(&staged, at, &bytes)
                })
                .await
            }
            Backend::Broken(why) => Backend::broken(why),
        }
    }

    /// Bytes that [`Draft::finish`] holds in memory.
    pub fn finish_bytes(&self) -> u64 {
        if matches!(self.backend, Backend::S3(_)) { 2 * self.bytes } else { 0 }
    }

    /// Puts its header first and gives the file its name; it is on disk when this returns.
    ///
    /// # Errors
    /// When it could not; whether the file exists is unknown then.
    pub async fn finish(&self, name: &str, header: Bytes) -> Result<(), Error> {
        let (staged, room) = (self.staged.clone(), self.room);
        match &self.backend {
            Backend::Folder(folder) => folder.clone().finish(staged, name.to_owned(), room, header).await,
            Backend::S3(client) => {
                let whole = spooled(move || {
                    let bytes = std::fs::read(&staged)?;
                    Ok([&header[..], bytes.get(room as usize..).unwrap_or_default()].concat())
                });
                client.put(name, whole.await?.into()).await
            }
            Backend::Broken(why) => Backend::broken(why),
        }
    }

    /// Removes what is not needed any more, whether or not it was finished.
    pub async fn close(self) {
        let _renamed = spooled(move || std::fs::remove_file(self.staged)).await;
    }
}

async fn spooled<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| Error::Failed(error.to_string()))?;
    done.map_err(|error| Error::Failed(format!("keep a fragment until it is sent: {error}")))
}
