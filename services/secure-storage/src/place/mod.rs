//! Locations as the gateway uses them: folders, and buckets of S3 servers.

mod folder;
pub mod s3;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use mesh_proto::{Timestamp, storage::Location};

pub use folder::Folder;
pub use s3::{Client, Credentials};

/// A fragment file is never larger: an extent in one shard, with its tags.
pub const FILE_MAX: u64 = 128 << 20;

/// A location did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing of that name is there.
    #[error("{0} is not there")]
    Missing(String),
    /// The location cannot be reached.
    #[error("{0}")]
    Away(String),
    /// It answered, and refused or failed.
    #[error("{0}")]
    Failed(String),
}

/// What a location holds under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Name of the fragment.
    pub name: String,
    /// When it was written.
    pub modified: Timestamp,
}

/// One location.
#[derive(Clone)]
pub enum Place {
    /// A folder.
    Folder(Folder),
    /// A bucket of an S3 server.
    S3(Client),
    /// One that cannot be opened, and why.
    Broken(Arc<str>),
}

/// What it takes to open locations.
#[derive(Clone)]
pub struct Opener {
    /// Folder in which those of `dir:` locations are.
    pub root: PathBuf,
    /// S3 credentials by name.
    pub credentials: BTreeMap<String, Credentials>,
    /// How long a location may take for one fragment.
    pub limit: Duration,
}

impl Opener {
    /// Opens a location; one that cannot be says so whenever it is used.
    pub fn open(&self, location: &Location) -> Place {
        if let Some(folder) = location.url.strip_prefix("dir:") {
            return match mesh_proto::is_key(folder) {
                true => Place::Folder(Folder::new(self.root.join(folder))),
                false => Place::Broken(format!("{folder:?} is not a folder's name").into()),
            };
        }
        let Some(credentials) = self.credentials.get(&location.credentials) else {
            let why = format!("this gateway has no credentials {:?} in its location_keys_file", location.credentials);
            return Place::Broken(why.into());
        };
        match Client::new(&location.url, &location.region, credentials.clone(), self.limit) {
            Ok(client) => Place::S3(client),
            Err(error) => Place::Broken(error.to_string().into()),
        }
    }
}

impl Place {
    fn broken<T>(why: &str) -> Result<T, Error> {
        Err(Error::Away(why.to_owned()))
    }

    /// Makes a location of a generation ready for use; a folder is made once for each generation, whatever gateway
    /// comes first.
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

    /// Writes a file, on disk when it returns; replaces one of the same name at once.
    ///
    /// # Errors
    /// When it could not; whether something is there is unknown.
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
    /// When it is not there or cannot be read.
    pub async fn get(&self, name: &str, range: Option<std::ops::Range<u64>>) -> Result<Bytes, Error> {
        match self {
            Self::Folder(folder) => folder.clone().get(name.to_owned(), range).await,
            Self::S3(client) => client.get(name, range).await,
            Self::Broken(why) => Self::broken(why),
        }
    }

    /// Removes a file; it is no error if there is none.
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

    /// The files whose names begin with this, in pages.
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
