//! What a location is made of: a folder, or a bucket of an S3 server.

mod folder;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use mesh_proto::storage::Location;

pub use folder::Folder;
pub use s3_client::{Client, Credentials, Error, Found};

/// A fragment file is never larger: an extent in one shard, with its tags.
pub const FILE_MAX: u64 = 128 << 20;

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
