//! Where a backup is stored: in a file, or in a bucket of an S3 server.

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use s3_client::{Client, Credentials, PART_BYTES};
use tempfile::NamedTempFile;

/// How long the server may take for one part.
const PART_LIMIT: Duration = Duration::from_secs(120);
/// Region when none is set: the one that most servers accept.
const REGION: &str = "us-east-1";

/// A file or an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file.
    File(PathBuf),
    /// An object on an S3 server.
    Object {
        /// Its bucket.
        bucket: String,
        /// Its name in the bucket.
        key: String,
    },
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(rest) = text.strip_prefix("s3://") else { return Ok(Self::File(text.into())) };
        match rest.split_once('/') {
            Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() && !key.ends_with('/') => {
                Ok(Self::Object { bucket: bucket.to_owned(), key: key.to_owned() })
            }
            _ => Err("the bucket or the name is missing; write s3://BUCKET/NAME"),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Object { bucket, key } => write!(f, "s3://{bucket}/{key}"),
        }
    }
}

/// The S3 server of `s3://` places.
#[derive(Debug, Args)]
pub struct S3Options {
    /// Address of the S3 server, `https://HOST[:PORT]`. The keys are those of `AWS_ACCESS_KEY_ID` and
    /// `AWS_SECRET_ACCESS_KEY`, the region that of `AWS_REGION`.
    #[arg(long, value_name = "URL", env = "AWS_ENDPOINT_URL")]
    s3_endpoint: Option<String>,
}

impl S3Options {
    fn client(&self, bucket: &str) -> anyhow::Result<Client> {
        let Some(endpoint) = self.s3_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) else {
            bail!("the S3 server is not known; give --s3-endpoint https://HOST[:PORT], or set AWS_ENDPOINT_URL");
        };
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let (Some(access), Some(secret)) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) else {
            bail!("the keys of the S3 server are missing; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
        };
        if variable("AWS_SESSION_TOKEN").is_some() {
            bail!("temporary keys are not supported; unset AWS_SESSION_TOKEN and set permanent keys");
        }
        let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
        mesh_bus::install_crypto();
        let url = format!("{}/{bucket}", endpoint.trim_end_matches('/'));
        Ok(Client::new(&url, region.as_deref().unwrap_or(REGION), Credentials { access, secret }, PART_LIMIT)?)
    }

    /// Checks that a place is free, so that a server that refuses does so before anything is copied.
    ///
    /// # Errors
    /// If something is there, or the server cannot be reached or refuses.
    pub async fn check_free(&self, place: &Place) -> anyhow::Result<()> {
        let exists = match place {
            Place::File(path) => path.exists(),
            Place::Object { bucket, key } => {
                self.client(bucket)?.exists(key).await.with_context(|| format!("look for {place}"))?
            }
        };
        if exists { bail!("{place} exists; choose another name or remove it") } else { Ok(()) }
    }

    /// Stores a file as an object: all of it, or nothing.
    ///
    /// # Errors
    /// If the file cannot be read, or the server cannot be reached or refuses.
    pub async fn store(&self, file: &Path, place: &Place) -> anyhow::Result<()> {
        let Place::Object { bucket, key } = place else { return Ok(()) };
        let source = File::open(file).with_context(|| format!("open {}", file.display()))?;
        let parts = std::iter::from_fn(|| {
            let mut part = Vec::new();
            match (&source).take(PART_BYTES as u64).read_to_end(&mut part) {
                Ok(0) => None,
                Ok(_) => Some(Ok(Bytes::from(part))),
                Err(error) => Some(Err(error)),
            }
        });
        self.client(bucket)?.upload(key, parts).await.with_context(|| format!("store {place}"))
    }

    /// Removes what was stored, as far as that can be done.
    pub async fn remove(&self, place: &Place) {
        match place {
            Place::File(path) => {
                let _gone = fs::remove_file(path);
            }
            Place::Object { bucket, key } => {
                if let Ok(client) = self.client(bucket) {
                    let _gone = client.delete(key).await;
                }
            }
        }
    }

    /// The file of a place. An object is read into a file in `folder`, which is removed on drop.
    ///
    /// # Errors
    /// If the place does not exist, or cannot be read or written.
    pub async fn fetch(&self, place: &Place, folder: &Path) -> anyhow::Result<Fetched> {
        let (bucket, key) = match place {
            Place::File(path) => return Ok(Fetched::Given(path.clone())),
            Place::Object { bucket, key } => (bucket, key),
        };
        let client = self.client(bucket)?;
        let mut file = fs::create_dir_all(folder)
            .and_then(|()| tempfile::Builder::new().prefix(".backup-").tempfile_in(folder))
            .with_context(|| format!("make a file in {}", folder.display()))?;
        client.download(key, |piece| file.write_all(piece)).await.with_context(|| format!("read {place}"))?;
        Ok(Fetched::Copied(file))
    }
}

/// A file on this machine.
#[derive(Debug)]
pub enum Fetched {
    /// The place itself.
    Given(PathBuf),
    /// A copy of an object.
    Copied(NamedTempFile),
}

impl Fetched {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Copied(file) => file.path(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_file_or_an_object_with_a_name() {
        let object = |bucket: &str, key: &str| Ok(Place::Object { bucket: bucket.into(), key: key.into() });
        assert_eq!("s3://b/daily/1.age".parse::<Place>(), object("b", "daily/1.age"));
        assert_eq!("s3:/b/x".parse::<Place>(), Ok(Place::File("s3:/b/x".into())));
        for place in ["s3://b/daily/1.age", "/tmp/1.age"] {
            assert_eq!(place.parse::<Place>().unwrap().to_string(), place);
        }
        for wrong in ["s3://", "s3://b", "s3://b/", "s3:///x", "s3://b/folder/"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }
}
