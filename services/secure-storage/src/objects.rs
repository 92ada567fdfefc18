//! Objects: their bytes go to locations first, and then one conditional fact makes them visible.
//!
//! What is not in a fact does not exist: a crash leaves fragments of no object, which a scrub removes, and never half
//! an object. A gateway holds nothing that another one needs.

pub mod catalogue;
mod commit;
mod memory;
pub mod multipart;
mod read;
mod scrub;
mod write;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::Stream;
use mesh_core::Key;
use mesh_kit::{Mesh, View};
use mesh_proto::{
    AnyEvent, Refusal,
    deciders::stream_object::Event as Fact,
    derived_id,
    object::{Checksum, Layout, MarkerStored, ObjectDeleted, ObjectStored, Part},
};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    backend::Opener,
    blob::{
        cache::Cache,
        code::Scheme,
        fragment::{self, Geometry},
        seal::{self, BlobKeys, DataKey},
    },
    config::Config,
    domain::{
        bucket_token,
        checksums::Algorithm,
        object_token,
        objects::{self, Command, Condition},
        policy::{Recipe, recipe},
        storages::{Bucket, Versioning},
        uploads,
    },
    keys::{self, Keys},
    locations::Locations,
};
use catalogue::Catalogue;
use memory::Memory;

/// A view may take this long to catch up with its stream.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(5);
/// A command of ours is answered within this time, or its caller hears that it was not.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Extents of one body that are finished at once.
const EXTENTS_IN_FLIGHT: usize = 2;

/// A request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bucket does not exist.
    #[error("bucket {0} does not exist")]
    NoBucket(String),
    /// It belongs to another owner.
    #[error("bucket {0} belongs to another owner")]
    Denied(String),
    /// Refused by the decision about the object.
    #[error(transparent)]
    Object(#[from] objects::Refused),
    /// A condition held when the upload was completed, and no longer when it was to become visible.
    #[error("the object changed while the upload was completed; begin the upload again")]
    Conflict,
    /// Refused by the decision about the upload.
    #[error(transparent)]
    Upload(#[from] uploads::Refused),
    /// An argument is out of bounds.
    #[error("{0}")]
    Invalid(String),
    /// Too few locations took the fragments, or something else is unavailable for now.
    #[error("{0}")]
    Unavailable(String),
    /// The memory of the gateway is taken by other requests.
    #[error("the gateway has had no memory left for this request for {0} s; send it again")]
    Busy(u64),
    /// Too few good fragments are left.
    #[error("{0}")]
    Lost(String),
    /// The master key is missing, or the metadata were changed.
    #[error(transparent)]
    Key(#[from] seal::Error),
    /// The decider of names refused.
    #[error("{0}")]
    Refused(Refusal),
    /// The request's body did not arrive whole.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The bus, or something else of ours, failed.
    #[error("{0}")]
    Internal(String),
}

/// How a request's body failed to arrive.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It took too long in all.
    #[error("the body took more than {limit_ms} ms; use a multipart upload")]
    Slow {
        /// Milliseconds.
        limit_ms: i64,
    },
    /// It is longer or shorter than announced, or ended without its last chunk.
    #[error("the body has {received} bytes and ended {whole}, where {announced} were announced; send all of it")]
    Short {
        /// Bytes that came.
        received: u64,
        /// Bytes that were announced.
        announced: u64,
        /// With or without its last chunk.
        whole: &'static str,
    },
    /// It is not what its digest says.
    #[error("the {0} that was sent is not that of the body; it was changed on its way, send it again")]
    Digest(&'static str),
    /// The trailer that was announced did not come, or holds no digest.
    #[error("the trailer {0} was announced and holds no value of its algorithm; send it after the last chunk")]
    Trailer(&'static str),
    /// It broke off, or is not what its sender signed.
    #[error("the body broke off after {received} bytes: {problem}")]
    Broken {
        /// Bytes that came before.
        received: u64,
        /// What its source reports; to be read, not to decide on.
        problem: String,
    },
}

impl Error {
    fn internal(error: impl std::fmt::Display) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<fragment::Error> for Error {
    fn from(error: fragment::Error) -> Self {
        Self::internal(error)
    }
}

/// What a sender says of a body before it comes. Checked when it has come, before any fact says that it is stored.
#[derive(Clone, Default)]
pub struct Announced {
    /// Bytes.
    pub bytes: Option<u64>,
    /// MD5.
    pub md5: Option<[u8; 16]>,
    /// The checksum that is kept.
    pub algorithm: Option<Algorithm>,
    /// Its value, if it was given before the body.
    pub value: Option<Vec<u8>>,
    /// Bytes of a chunk that has to be there whole before its first byte is given; 0 if it has none.
    pub chunk_bytes: u64,
    /// What follows the body, asked when it has ended.
    pub ending: Option<Arc<dyn Ending>>,
}

/// What follows a body.
pub trait Ending: Send + Sync {
    /// Did the last chunk come? Yes for a body without chunks.
    fn is_whole(&self) -> bool;
    /// The value of a trailer: `None` if none was announced.
    ///
    /// # Errors
    /// When it was announced and did not come.
    fn trailer(&self, algorithm: Algorithm) -> Result<Option<Vec<u8>>, BodyError>;
}

impl std::fmt::Debug for Announced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Announced")
            .field("bytes", &self.bytes)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl Announced {
    /// Nothing but the algorithm of the checksum that is to be kept.
    pub fn only(algorithm: Option<Algorithm>) -> Self {
        Self { algorithm, ..Self::default() }
    }

    /// Is a body what was announced? Returns its checksum.
    ///
    /// # Errors
    /// When it is not.
    pub(crate) fn check(
        &self,
        size: u64,
        md5: &[u8; 16],
        checksum: Option<&[u8]>,
    ) -> Result<Option<Checksum>, BodyError> {
        let whole = self.ending.as_ref().is_none_or(|ending| ending.is_whole());
        let announced = self.bytes.unwrap_or(size);
        if !whole || announced != size {
            let whole = if whole { "with its last chunk" } else { "without its last chunk" };
            return Err(BodyError::Short { received: size, announced, whole });
        }
        if self.md5.is_some_and(|announced| announced != *md5) {
            return Err(BodyError::Digest("MD5"));
        }
        let (Some(algorithm), Some(checksum)) = (self.algorithm, checksum) else { return Ok(None) };
        let trailer = self.ending.as_ref().map(|ending| ending.trailer(algorithm)).transpose()?.flatten();
        if [&self.value, &trailer].into_iter().flatten().any(|value| value != checksum) {
            return Err(BodyError::Digest(algorithm.name()));
        }
        Ok(Some(algorithm.checksum(checksum)))
    }
}

/// Metadata that a caller gives an object.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// Refuse a bucket whose policy stores plain bytes.
    pub encrypted: bool,
    /// Content type.
    pub content_type: String,
    /// User metadata.
    pub metadata: BTreeMap<String, String>,
    /// Other standard headers.
    pub headers: BTreeMap<String, String>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

/// What a delete did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// The delete marker that was stored, or removed.
    pub marker: Option<String>,
}

/// The object store. Cheap to clone.
#[derive(Clone)]
pub struct ObjectStore {
    inner: Arc<Inner>,
}

/// What all clones of an object store share.
pub struct Inner {
    pub(crate) mesh: Mesh,
    pub(crate) view: View<Catalogue>,
    pub(crate) keys: Keys,
    pub(crate) config: Config,
    pub(crate) cache: Cache,
    pub(crate) locations: Locations,
    pub(crate) memory: Memory,
    /// As many steps are coded at once as there are processors, so that few threads do it.
    pub(crate) coding: Semaphore,
}

impl std::ops::Deref for ObjectStore {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

/// What it takes to read a blob.
pub(crate) struct Blob {
    pub(crate) layout: Arc<Layout>,
    pub(crate) geometry: Geometry,
    pub(crate) keys: BlobKeys,
    pub(crate) part: Part,
}

/// The geometry of a layout.
///
/// # Errors
/// When no blob can have this layout.
pub(crate) fn geometry(layout: &Layout) -> Result<Geometry, Error> {
    let scheme = Scheme::named(&layout.scheme)
        .ok_or_else(|| Error::Internal(format!("unknown scheme {:?} in a layout", layout.scheme)))?;
    let (data, redundant) = (layout.data as usize, layout.redundant as usize);
    if layout.locations.len() != data + redundant {
        return Err(Error::Internal("a layout has more or fewer locations than fragments".into()));
    }
    Ok(Geometry::new(scheme, data, redundant, layout.extent_bytes, layout.piece_bytes, layout.deflate_level)?)
}

impl ObjectStore {
    /// With its view and keys.
    pub fn new(mesh: Mesh, view: View<Catalogue>, keys: Keys, config: Config, root: std::path::PathBuf) -> Self {
        let opener = Opener {
            root,
            credentials: keys.locations.clone(),
            limit: Duration::from_millis(config.location_limit_ms.into()),
        };
        let inner = Inner {
            cache: Cache::new(config.cache_bytes),
            memory: Memory::new(config.memory_bytes),
            coding: Semaphore::new(std::thread::available_parallelism().map_or(2, std::num::NonZero::get)),
            locations: Locations::new(mesh.clone(), view.clone(), opener),
            mesh,
            view,
            keys,
            config,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Waits until the view has read all that its stream holds now.
    pub(crate) async fn catch_up(&self, stream: &str) -> Result<(), Error> {
        let last = self.mesh.bus().log(stream).last_sequence().await.map_err(Error::internal)?;
        let mut changes = self.view.changes();
        let caught_up = async {
            while self.view.read(|view| view.position(stream)) < last {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let behind = || Error::Internal(format!("this gateway is behind on {stream}; try again"));
        timeout(CATCH_UP_LIMIT, caught_up).await.map_err(|_| behind())
    }

    /// A bucket of an owner, with its token.
    pub(crate) async fn bucket(&self, owner: &str, name: &str) -> Result<(String, Bucket), Error> {
        let token = bucket_token(name);
        let look = || self.view.read(|view| view.known.buckets.get(&token).cloned());
        let found = match look() {
            Some(found) => Some(found),
            None => {
                self.catch_up("STORAGE").await?;
                look()
            }
        };
        match found {
            Some(bucket) if bucket.owner == owner => Ok((token, bucket)),
            Some(_) => Err(Error::Denied(name.to_owned())),
            None => Err(Error::NoBucket(name.to_owned())),
        }
    }

    /// The recipe of a bucket.
    pub(crate) fn recipe(&self, bucket: &Bucket) -> Result<Recipe, Error> {
        let key = (bucket.provider().to_owned(), bucket.policy.clone());
        let policy = self.view.read(|view| view.known.policies.get(&key).and_then(|p| p.definition.clone()));
        let policy = policy.ok_or_else(|| {
            Error::Unavailable(format!("the policy {} of the bucket no longer exists; define it again", bucket.policy))
        })?;
        recipe(&policy).map_err(Error::Refused)
    }

    /// A layout for new bytes, with a fresh data key.
    pub(crate) fn layout(&self, owner: &str, recipe: &Recipe) -> Result<(Layout, DataKey), Error> {
        let data_key = DataKey::new(keys::random().map_err(Error::internal)?);
        let id: [u8; 16] = keys::random().map_err(Error::internal)?;
        let wrapped = self.keys.masters.wrap(&data_key, &id, keys::random().map_err(Error::internal)?)?;
        let layout = Layout {
            scheme: recipe.scheme.name().into(),
            data: recipe.data as u32,
            redundant: recipe.redundant as u32,
            locations: recipe.locations.clone(),
            extent_bytes: self.config.extent_bytes,
            piece_bytes: self.config.piece_bytes,
            deflate_level: recipe.deflate_level,
            encrypted: recipe.encrypted,
            master_key: self.keys.masters.active().into(),
            wrapped_key: wrapped.into(),
            key_id: Bytes::copy_from_slice(&id),
            owner: owner.into(),
        };
        Ok((layout, data_key))
    }

    /// The data key of a layout.
    pub(crate) fn data_key(&self, layout: &Layout) -> Result<DataKey, Error> {
        Ok(self.keys.masters.unwrap(&layout.master_key, &layout.wrapped_key, &layout.key_id)?)
    }

    /// Sends a command on a caller's behalf, and waits for its answer.
    pub(crate) async fn ask(&self, command: &dyn AnyEvent) -> Result<(), Error> {
        let unique = hex::encode(keys::random::<16>().map_err(Error::internal)?);
        let id = derived_id(&["command", &unique]);
        let outgoing = mesh_core::Outgoing::new(command, id.clone(), self.mesh.now()).map_err(Error::internal)?;
        self.mesh.bus().publish(&outgoing).await.map_err(Error::internal)?;
        let mut changes = self.view.changes();
        let answered = async {
            loop {
                if let Some(answer) = self.view.read(|view| view.answer(&id)) {
                    return answer.map_err(Error::Refused);
                }
                if changes.changed().await.is_err() {
                    return Err(Error::Unavailable("this gateway is stopping; ask another one".into()));
                }
            }
        };
        timeout(ANSWER_LIMIT, answered).await.unwrap_or_else(|_| {
            let limit = ANSWER_LIMIT.as_secs();
            Err(Error::Unavailable(format!(
                "no answer within {limit} s; the command is stored and will be carried out"
            )))
        })
    }

    /// Stores an object.
    ///
    /// # Errors
    /// When it could not be made safe or visible; nothing of it is visible then.
    pub async fn put<S, E>(
        &self,
        owner: &str,
        (bucket, key): (&str, &str),
        head: Head,
        condition: &Condition,
        announced: &Announced,
        body: S,
    ) -> Result<ObjectStored, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        check_head(key, &head)?;
        let (token, of) = self.bucket(owner, bucket).await?;
        let object = object_token(&token, of.epoch, key);
        let recipe = self.recipe(&of)?;
        check_encrypted(&head, &recipe)?;
        self.check_room(&token, &of, key)?;
        // Once before the body is received, to refuse early; the decision is made when the fact is written.
        if *condition != Condition::default() {
            condition.check(self.visible(&Key::new([&token, &object])).await?.as_ref())?;
        }
        let (layout, data_key) = self.layout(of.provider(), &recipe)?;
        let received = self.write(&layout, &data_key, recipe.acknowledge_at, announced, body).await?;
        let part = received.part;
        let stored = ObjectStored {
            bucket: token,
            object,
            key: key.into(),
            epoch: of.epoch,
            owner: owner.into(),
            size: part.size,
            etag: hex::encode(received.md5),
            content_type: head.content_type,
            metadata: head.metadata,
            headers: head.headers,
            layout: Some(layout.clone()),
            parts: vec![part.clone()],
            upload: String::new(),
            modified: Some(self.mesh.now()),
            checksum: received.checksum,
            version: String::new(),
            tags: head.tags,
            labels: vec![],
            versioned: false,
        };
        let versioning = self.versioning(&stored.bucket);
        let command = Command::Put { object: stored.clone(), condition: condition.clone(), versioning };
        match self.decide(&command, None).await {
            Ok(decided) => {
                self.retire(decided.garbage);
                Ok(match decided.fact {
                    Some(Fact::ObjectStored(stored)) => stored,
                    _ => stored,
                })
            }
            Err(error) => {
                // A refusal is certain. After any other error it is unknown whether the fact is stored; a scrub removes
                // what belongs to nothing.
                if matches!(error, Error::Object(_)) {
                    let store = self.clone();
                    tokio::spawn(async move { store.remove(&layout, &[part]).await });
                }
                Err(error)
            }
        }
    }

    /// Refuses a new key if the listing is full.
    pub(crate) fn check_room(&self, bucket: &str, of: &Bucket, key: &str) -> Result<(), Error> {
        let max = self.config.objects_max;
        // A put replaces what there is, or is one version more.
        let is_new = |view: &Catalogue| {
            of.versioning == Versioning::Enabled
                || !view.listing(bucket, of.epoch).is_some_and(|listing| listing.contains_key(key))
        };
        let full = self.view.read(|view| view.count >= max && is_new(view));
        if full {
            return Err(Error::Unavailable(format!("this gateway lists at most {max} objects; raise objects_max")));
        }
        Ok(())
    }

    /// The object that is visible under a key, or one of its versions.
    pub(crate) async fn object(
        &self,
        owner: &str,
        bucket: &str,
        key: &str,
        version: Option<&str>,
    ) -> Result<ObjectStored, Error> {
        let (token, of) = self.bucket(owner, bucket).await?;
        let object = object_token(&token, of.epoch, key);
        let entity = Key::new([token, object]);
        let state = match version {
            None => self.latest(&entity).await?,
            Some(_) => self.versions(&entity).await?,
        };
        Ok(state.find(version)?.clone())
    }

    /// Deletes an object, or hides it by a delete marker where versions are kept; or deletes one of its versions for good.
    ///
    /// # Errors
    /// When the bucket does not exist, the condition does not hold, or the bus is unreachable.
    pub async fn delete(
        &self,
        owner: &str,
        bucket: &str,
        key: &str,
        version: Option<&str>,
        condition: &Condition,
    ) -> Result<Deleted, Error> {
        let (token, of) = self.bucket(owner, bucket).await?;
        let object = object_token(&token, of.epoch, key);
        let (condition, key, epoch) = (condition.clone(), key.to_owned(), of.epoch);
        let command = match version {
            None => {
                let version = hex::encode(keys::random::<16>().map_err(Error::internal)?);
                let versioning = self.versioning(&token);
                let modified = Some(self.mesh.now());
                let marker = MarkerStored { bucket: token, object, key, epoch, version, modified };
                Command::Delete { marker, condition, versioning }
            }
            Some(version) => {
                let version = version.to_owned();
                let fact = ObjectDeleted { bucket: token, object, key, epoch, version, ..ObjectDeleted::default() };
                Command::DeleteVersion { fact, condition }
            }
        };
        let decided = self.decide(&command, None).await?;
        self.retire(decided.garbage);
        Ok(match decided.fact {
            Some(Fact::MarkerStored(m)) => Deleted { marker: Some(m.version) },
            Some(Fact::ObjectDeleted(m)) if m.marker => Deleted { marker: Some(m.version) },
            _ => Deleted::default(),
        })
    }

    /// Gives a version of an object, the visible one if none is named, these tags; returns its name.
    ///
    /// # Errors
    /// When there is no such version, or the bus is unreachable.
    pub async fn tag(
        &self,
        owner: &str,
        bucket: &str,
        key: &str,
        version: Option<&str>,
        tags: BTreeMap<String, String>,
    ) -> Result<String, Error> {
        let (token, of) = self.bucket(owner, bucket).await?;
        let object = object_token(&token, of.epoch, key);
        let command = Command::Tag { bucket: token, object, version: version.map(ToOwned::to_owned), tags };
        match self.decide(&command, None).await?.fact {
            Some(Fact::ObjectTagged(m)) => Ok(m.now.unwrap_or_default().version),
            // It has them already.
            _ => Ok(self.object(owner, bucket, key, version).await?.version),
        }
    }
}

/// Refuses to store plain bytes for a caller who asks for encryption.
pub(crate) fn check_encrypted(head: &Head, recipe: &Recipe) -> Result<(), Error> {
    if head.encrypted && !recipe.encrypted {
        return Err(Error::Invalid(
            "the request asks for encryption, and the policy of the bucket stores plain bytes; use a bucket whose policy \
             encrypts"
                .into(),
        ));
    }
    Ok(())
}

/// Bounds on what becomes part of a fact.
pub(crate) fn check_head(key: &str, head: &Head) -> Result<(), Error> {
    if key.is_empty() || key.len() > 1_024 {
        return Err(Error::Invalid(format!("the key has {} bytes; use 1 to 1,024", key.len())));
    }
    let bytes = |map: &BTreeMap<String, String>| map.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
    let total = bytes(&head.metadata) + bytes(&head.headers) + head.content_type.len();
    if total > 8 << 10 || bytes(&head.metadata) > 2 << 10 {
        let user = bytes(&head.metadata);
        return Err(Error::Invalid(format!(
            "the metadata have {total} bytes, {user} of them user metadata; S3 allows 8 KB in all and 2 KB from the user"
        )));
    }
    Ok(())
}
