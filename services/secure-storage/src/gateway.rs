//! Puts, gets and deletes: bytes go to locations first, and then one conditional fact makes them an object.
//!
//! What is not in a fact is not there: a crash leaves fragments that belong to nothing, which a scrub removes, and
//! never half an object. A gateway holds nothing that another one needs.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use futures::{
    Stream, StreamExt as _,
    stream::{self, FuturesUnordered},
};
use md5::{Digest as _, Md5};
use mesh_bus::Written;
use mesh_core::{Decision, Outgoing};
use mesh_kit::{Mesh, View};
use mesh_proto::{
    AnyEvent, Refusal, Timestamp,
    deciders::stream_object::Event,
    derived_id,
    object::{Layout, ObjectDeleted, ObjectStored, Part},
};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use crate::{
    cache::Cache,
    catalogue::Catalogue,
    code::Scheme,
    config::Config,
    domain::{
        self, Bucket,
        policy::{Recipe, recipe},
    },
    fragment::{self, Geometry, Table},
    keys::{self, Keys},
    place::{self, Opener, Place},
    seal::{BlobKeys, DataKey, to_hex},
};

/// How long a view may take to catch up.
const CATCH_UP: Duration = Duration::from_secs(5);
/// Extents of one request on their way at once.
const EXTENTS_IN_FLIGHT: usize = 2;
/// A location that was away is asked last for so long.
const AWAY_MS: i64 = 5_000;
/// A body may be silent for so long.
const IDLE: Duration = Duration::from_secs(60);
/// Attempts at a write whose object moves each time.
const ATTEMPTS: usize = 64;

/// A request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such bucket.
    #[error("there is no bucket {0}")]
    NoBucket(String),
    /// It is another owner's.
    #[error("the bucket {0} is another owner's")]
    Denied(String),
    /// There is no such object.
    #[error("there is no object {0}")]
    NoKey(String),
    /// There is no such upload, or it is over.
    #[error("there is no upload {0}; it was completed or aborted, or never begun")]
    NoUpload(String),
    /// A condition of the request does not hold.
    #[error("the object is not as the request requires")]
    Precondition,
    /// The request says something that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// Too few locations took the fragments.
    #[error("{0}")]
    Unavailable(String),
    /// Too few good fragments are left.
    #[error("{0}")]
    Lost(String),
    /// The master key is not here, or the metadata were changed.
    #[error(transparent)]
    Key(#[from] crate::seal::Error),
    /// The decider refused.
    #[error("{}: {}", .0.reason, .0.hint)]
    Refused(Refusal),
    /// The caller's body broke off.
    #[error("the body broke off: {0}")]
    Body(String),
    /// The bus, or something else of ours, failed.
    #[error("{0}")]
    Internal(String),
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

/// What a write requires of the object that is there.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// Only if there is one with this etag; `*` for any.
    pub if_match: Option<String>,
    /// Only if there is none.
    pub if_none: bool,
}

impl Condition {
    fn holds(&self, now: Option<&ObjectStored>) -> bool {
        let matches = self.if_match.as_ref().is_none_or(|etag| now.is_some_and(|n| etag == "*" || *etag == n.etag));
        matches && !(self.if_none && now.is_some())
    }
}

/// What a caller says of an object.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// Content type.
    pub content_type: String,
    /// User metadata.
    pub metadata: BTreeMap<String, String>,
    /// Other standard headers.
    pub headers: BTreeMap<String, String>,
}

/// How a location did, the last 30 times, milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// 1 byte written and read; 1 MB written and read.
    pub rtt: [std::collections::VecDeque<u32>; 4],
    /// Why it cannot be reached; empty if it can.
    pub away: String,
    /// Was it ever reached?
    pub known: bool,
}

struct Opened {
    generation: u64,
    place: Place,
    away_since: Option<Timestamp>,
}

/// The gateway. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

/// What all clones of a gateway share.
pub struct Inner {
    pub(crate) mesh: Mesh,
    pub(crate) view: View<Catalogue>,
    pub(crate) keys: Keys,
    pub(crate) config: Config,
    pub(crate) cache: Cache,
    pub(crate) measured: Mutex<BTreeMap<(String, String), Measured>>,
    opener: Opener,
    places: Mutex<BTreeMap<(String, String), Opened>>,
    extents: Arc<Semaphore>,
}

impl std::ops::Deref for Gateway {
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

/// A fragment that was read and whose header is right.
type Fetched = (Table, Bytes);

/// The token of a bucket: `.` is not one of a subject, and `_` not one of a bucket.
pub fn bucket_token(name: &str) -> String {
    name.replace('.', "_")
}

/// The token of an object.
pub fn object_token(bucket: &str, epoch: u64, key: &str) -> String {
    let text = format!("{bucket}\0{epoch}\0{key}");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(digest.as_ref())
}

/// The geometry of a layout.
///
/// # Errors
/// When there is none such.
pub(crate) fn geometry(layout: &Layout) -> Result<Geometry, Error> {
    let scheme = Scheme::named(&layout.scheme).ok_or_else(|| Error::Internal("unknown scheme".into()))?;
    let (data, redundant) = (layout.data as usize, layout.redundant as usize);
    if layout.locations.len() != data + redundant {
        return Err(Error::Internal("a layout with another number of locations than fragments".into()));
    }
    Ok(Geometry::new(scheme, data, redundant, layout.extent_bytes, layout.piece_bytes, layout.deflate_level)?)
}

impl Gateway {
    /// With its view and keys.
    pub fn new(mesh: Mesh, view: View<Catalogue>, keys: Keys, config: Config, root: std::path::PathBuf) -> Self {
        let opener = Opener {
            root,
            credentials: keys.locations.clone(),
            limit: Duration::from_millis(config.location_limit_ms.into()),
        };
        let inner = Inner {
            cache: Cache::new(config.cache_bytes),
            extents: Arc::new(Semaphore::new(config.extents_max.max(1) as usize)),
            measured: Mutex::default(),
            places: Mutex::default(),
            mesh,
            view,
            keys,
            config,
            opener,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Waits until the view has all that its stream holds now.
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
        timeout(CATCH_UP, caught_up).await.map_err(|_| behind())
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
        let key = (bucket.owner.clone(), bucket.policy.clone());
        let policy = self.view.read(|view| view.known.policies.get(&key).and_then(|p| p.definition.clone()));
        let policy = policy.ok_or_else(|| Error::Unavailable(format!("the policy {} is gone", bucket.policy)))?;
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

    /// A location that is registered, ready for use.
    pub(crate) async fn place(&self, owner: &str, name: &str) -> Result<Place, place::Error> {
        let key = (owner.to_owned(), name.to_owned());
        let found = self.view.read(|view| view.known.locations.get(&key).cloned());
        let Some((location, generation)) = found else {
            return Err(place::Error::Away(format!("the location {name} is not registered")));
        };
        if let Some(opened) = self.places().get(&key)
            && opened.generation == generation
        {
            return Ok(opened.place.clone());
        }
        let place = self.opener.open(&location);
        place.prepare(generation).await?;
        let opened = Opened { generation, place: place.clone(), away_since: None };
        self.places().insert(key, opened);
        Ok(place)
    }

    fn places(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, String), Opened>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers whether a location answered.
    pub(crate) fn note(&self, owner: &str, name: &str, away: bool) {
        let now = self.mesh.now();
        if let Some(opened) = self.places().get_mut(&(owner.to_owned(), name.to_owned())) {
            opened.away_since = away.then_some(now);
        }
    }

    fn is_away(&self, owner: &str, name: &str) -> bool {
        let now = self.mesh.now();
        let places = self.places();
        let since = places.get(&(owner.to_owned(), name.to_owned())).and_then(|opened| opened.away_since);
        since.is_some_and(|since| now.millis_since(since) < AWAY_MS)
    }

    /// Writes one fragment, within the limit.
    pub(crate) async fn put_fragment(
        &self,
        owner: &str,
        location: &str,
        name: &str,
        bytes: Bytes,
    ) -> Result<(), place::Error> {
        let limit = Duration::from_millis(self.config.location_limit_ms.into());
        let put = async { self.place(owner, location).await?.put(name, bytes).await };
        let done = timeout(limit, put)
            .await
            .unwrap_or_else(|_| Err(place::Error::Away(format!("did not answer within {} ms", limit.as_millis()))));
        self.note(owner, location, matches!(done, Err(place::Error::Away(_))));
        done
    }

    /// Codes an extent and writes its fragments; done when `acknowledge_at` of them are on disk, and the others had a
    /// moment more.
    async fn write_extent(
        self,
        blob: Arc<Blob>,
        extent: u32,
        plain: Bytes,
        acknowledge_at: usize,
    ) -> Result<(), Error> {
        let coding = blob.clone();
        let fragments = tokio::task::spawn_blocking(move || coding.geometry.write(&coding.keys, extent, &plain))
            .await
            .map_err(Error::internal)??;
        let mut writes = FuturesUnordered::new();
        for (index, bytes) in fragments.into_iter().enumerate() {
            let (gateway, blob) = (self.clone(), blob.clone());
            // Tasks of their own: a slow location finishes after the answer.
            let task = tokio::spawn(async move {
                let location = &blob.layout.locations[index];
                let name = fragment::name(&blob.part.blob, extent, index);
                let put = gateway.put_fragment(&blob.layout.owner, location, &name, bytes.into()).await;
                put.map_err(|error| format!("{location}: {error}"))
            });
            writes.push(task);
        }
        let (mut written, mut failures) = (0, vec![]);
        let moment = Duration::from_millis(self.config.hedge_ms.into());
        while let Some(done) = match written >= acknowledge_at {
            true => timeout(moment, writes.next()).await.unwrap_or_default(),
            false => writes.next().await,
        } {
            match done {
                Ok(Ok(())) => written += 1,
                Ok(Err(failure)) => failures.push(failure),
                Err(error) => failures.push(error.to_string()),
            }
        }
        if !failures.is_empty() {
            tracing::warn!(written, wanted = blob.layout.locations.len(), failures = failures.join("; "), "fragments");
        }
        if written >= acknowledge_at {
            return Ok(());
        }
        Err(Error::Unavailable(format!(
            "{written} of the {acknowledge_at} fragments that are needed were written ({}); try again when the \
             locations are back, or use a policy with others",
            failures.join("; ")
        )))
    }

    /// Writes bytes as a new blob; gives it and its MD5. Whatever it wrote before a failure is removed.
    pub(crate) async fn write<S, E>(
        &self,
        layout: &Layout,
        data_key: &DataKey,
        acknowledge_at: usize,
        body: S,
    ) -> Result<(Part, [u8; 16]), Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        let name: [u8; 16] = keys::random().map_err(Error::internal)?;
        let mut part = Part { blob: Bytes::copy_from_slice(&name), size: 0 };
        let blob = Arc::new(Blob {
            layout: Arc::new(layout.clone()),
            geometry: geometry(layout)?,
            keys: data_key.blob(&name, layout.encrypted)?,
            part: part.clone(),
        });
        let acknowledge_at = acknowledge_at.clamp(layout.data as usize, layout.locations.len());
        match self.write_all(&blob, acknowledge_at, body).await {
            Ok((size, md5)) => {
                part.size = size;
                Ok((part, md5))
            }
            Err((error, size)) => {
                let (gateway, layout) = (self.clone(), blob.layout.clone());
                part.size = size;
                tokio::spawn(async move { gateway.remove(&layout, &[part]).await });
                Err(error)
            }
        }
    }

    /// The whole body, extent by extent; an error comes with the bytes that were taken in.
    async fn write_all<S, E>(
        &self,
        blob: &Arc<Blob>,
        acknowledge_at: usize,
        body: S,
    ) -> Result<(u64, [u8; 16]), (Error, u64)>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        let mut body = std::pin::pin!(body);
        let extent_bytes = blob.geometry.extent_bytes as usize;
        let (mut md5, mut size, mut extent) = (Md5::new(), 0u64, 0u32);
        let mut buffer = BytesMut::new();
        let mut writing: JoinSet<Result<(), Error>> = JoinSet::new();
        let mut open = true;
        // A scrub takes older fragments without an object for left behind.
        let begun = self.mesh.now();
        let limit_ms = i64::try_from(self.config.orphan_ms / 2).unwrap_or(i64::MAX);
        while open || !buffer.is_empty() {
            while open && buffer.len() < extent_bytes {
                let Ok(next) = timeout(IDLE, body.next()).await else {
                    return Err((Error::Body(format!("nothing came for {} s", IDLE.as_secs())), size));
                };
                if self.mesh.now().millis_since(begun) > limit_ms {
                    return Err((
                        Error::Body(format!("it took more than {limit_ms} ms; use a multipart upload")),
                        size,
                    ));
                }
                match next {
                    Some(Ok(bytes)) => {
                        md5.update(&bytes);
                        size += bytes.len() as u64;
                        buffer.extend_from_slice(&bytes);
                    }
                    Some(Err(error)) => return Err((Error::Body(error.to_string()), size)),
                    None => open = false,
                }
            }
            if buffer.is_empty() {
                break;
            }
            let permit = self.extents.clone().acquire_owned().await.map_err(|e| (Error::internal(e), size))?;
            let plain = buffer.split_to(extent_bytes.min(buffer.len())).freeze();
            let (gateway, blob) = (self.clone(), blob.clone());
            writing.spawn(async move {
                let written = gateway.write_extent(blob, extent, plain, acknowledge_at).await;
                drop(permit);
                written
            });
            extent += 1;
            while writing.len() >= EXTENTS_IN_FLIGHT {
                settle(writing.join_next().await).map_err(|e| (e, size))?;
            }
        }
        while let Some(done) = writing.join_next().await {
            settle(Some(done)).map_err(|e| (e, size))?;
        }
        Ok((size, md5.finalize().into()))
    }

    /// An object as its last fact says; with the sequence of that fact, 0 if it never was there.
    pub(crate) async fn last(&self, bucket: &str, object: &str) -> Result<(Option<ObjectStored>, u64), Error> {
        let log = self.mesh.bus().log("OBJECT");
        let stored = log.last(&format!("object.*.v1.{bucket}.{object}")).await.map_err(Error::internal)?;
        let Some(stored) = stored else { return Ok((None, 0)) };
        let now = match domain::event::<Event>(&stored) {
            Some(Event::ObjectStored(m)) => Some(m),
            Some(Event::ObjectMoved(m)) => {
                m.now.map(|now| ObjectStored { bucket: m.bucket.clone(), object: m.object.clone(), ..now })
            }
            Some(_) => None,
            None => return Err(Error::Internal(format!("the fact {} of OBJECT cannot be read", stored.sequence))),
        };
        Ok((now, stored.sequence))
    }

    /// One fact on the condition that its entity has not moved; `false` if it has.
    pub(crate) async fn say(&self, fact: &dyn AnyEvent, expected: u64, id: String) -> Result<bool, Error> {
        let outgoing = Outgoing::new(fact, id, self.mesh.now()).map_err(Error::internal)?;
        let entity = format!("{}.*.*.{}", fact.area(), fact.keys().join("."));
        let decision = Decision { entity, expected, messages: vec![outgoing] };
        match self.mesh.bus().writer(fact.stream()).write(decision).await.map_err(Error::internal)? {
            Written::Stored { .. } => Ok(true),
            Written::Stale { .. } => Ok(false),
        }
    }

    /// Makes an object visible, whatever was there before; gives what it replaced.
    pub(crate) async fn commit(
        &self,
        stored: &ObjectStored,
        condition: &Condition,
    ) -> Result<Option<ObjectStored>, Error> {
        let unique = stored
            .parts
            .first()
            .map_or_else(|| to_hex(&stored.layout.clone().unwrap_or_default().key_id), |p| to_hex(&p.blob));
        for attempt in 0..ATTEMPTS {
            let (now, sequence) = self.last(&stored.bucket, &stored.object).await?;
            // An answer that was lost on its way: it is stored already.
            if now
                .as_ref()
                .is_some_and(|now| now.layout.as_ref().map(|l| &l.key_id) == stored.layout.as_ref().map(|l| &l.key_id))
            {
                return Ok(None);
            }
            if !condition.holds(now.as_ref()) {
                return Err(Error::Precondition);
            }
            let id = derived_id(&["object", &stored.object, &unique, &attempt.to_string()]);
            if self.say(stored, sequence, id).await? {
                return Ok(now);
            }
        }
        Err(Error::Unavailable("the object changes faster than it can be written; try again".into()))
    }

    /// Puts an object.
    ///
    /// # Errors
    /// When it could not be made safe or visible; nothing of it is visible then.
    pub async fn put<S, E>(
        &self,
        owner: &str,
        bucket: &str,
        key: &str,
        head: Head,
        condition: &Condition,
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
        self.room(&token, &of, key)?;
        if condition.if_none || condition.if_match.is_some() {
            // Before the body is taken in; decided again when it is written.
            let (now, _) = self.last(&token, &object).await?;
            if !condition.holds(now.as_ref()) {
                return Err(Error::Precondition);
            }
        }
        let (layout, data_key) = self.layout(owner, &recipe)?;
        let (part, md5) = self.write(&layout, &data_key, recipe.acknowledge_at, body).await?;
        let stored = ObjectStored {
            bucket: token,
            object,
            key: key.into(),
            epoch: of.epoch,
            owner: owner.into(),
            size: part.size,
            etag: to_hex(&md5),
            content_type: head.content_type,
            metadata: head.metadata,
            headers: head.headers,
            layout: Some(layout.clone()),
            parts: vec![part.clone()],
            upload: String::new(),
            modified: Some(self.mesh.now()),
        };
        match self.commit(&stored, condition).await {
            Ok(replaced) => {
                self.retire(replaced);
                Ok(stored)
            }
            Err(error) => {
                // A refused condition is certain; of anything else it is not known, and a scrub will tell.
                if matches!(error, Error::Precondition) {
                    let gateway = self.clone();
                    tokio::spawn(async move { gateway.remove(&layout, &[part]).await });
                }
                Err(error)
            }
        }
    }

    /// Is there room in the listing for one more?
    pub(crate) fn room(&self, bucket: &str, of: &Bucket, key: &str) -> Result<(), Error> {
        let max = self.config.objects_max;
        let full = self.view.read(|view| {
            view.count >= max && !view.listing(bucket, of.epoch).is_some_and(|listing| listing.contains_key(key))
        });
        if full {
            return Err(Error::Unavailable(format!("this gateway lists {max} objects and no more; see objects_max")));
        }
        Ok(())
    }

    /// An object that is there.
    pub(crate) async fn object(&self, owner: &str, bucket: &str, key: &str) -> Result<ObjectStored, Error> {
        let (token, of) = self.bucket(owner, bucket).await?;
        let (now, _) = self.last(&token, &object_token(&token, of.epoch, key)).await?;
        now.ok_or_else(|| Error::NoKey(key.to_owned()))
    }

    /// Deletes an object; gives whether there was one.
    ///
    /// # Errors
    /// When the bucket is not there, or the bus is away.
    pub async fn delete(&self, owner: &str, bucket: &str, key: &str) -> Result<bool, Error> {
        let (token, of) = self.bucket(owner, bucket).await?;
        let object = object_token(&token, of.epoch, key);
        for _ in 0..ATTEMPTS {
            let (now, sequence) = self.last(&token, &object).await?;
            let Some(now) = now else { return Ok(false) };
            let fact =
                ObjectDeleted { bucket: token.clone(), object: object.clone(), key: key.into(), epoch: of.epoch };
            let id = derived_id(&["object-deleted", &object, &sequence.to_string()]);
            if self.say(&fact, sequence, id).await? {
                self.retire(Some(now));
                return Ok(true);
            }
        }
        Err(Error::Unavailable("the object changes faster than it can be deleted; try again".into()))
    }

    /// The fragments of what was replaced go once nobody reads them any more.
    pub(crate) fn retire(&self, replaced: Option<ObjectStored>) {
        let Some(replaced) = replaced else { return };
        replaced.parts.iter().for_each(|part| self.cache.purge(&part.blob));
        let (gateway, linger) = (self.clone(), Duration::from_millis(self.config.linger_ms));
        let stopping = self.mesh.stopping();
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(linger) => {}
                // What is left is found by a scrub.
                () = stopping.cancelled() => return,
            }
            if let Some(layout) = &replaced.layout {
                gateway.remove(layout, &replaced.parts).await;
            }
        });
    }

    /// Removes fragments, as far as the locations can be reached.
    pub(crate) async fn remove(&self, layout: &Layout, parts: &[Part]) {
        let Ok(geometry) = geometry(layout) else { return };
        let mut names = vec![];
        for part in parts {
            self.cache.purge(&part.blob);
            // One more than there are: a body that broke off may have begun another.
            for extent in 0..=geometry.extents(part.size) {
                for (index, location) in layout.locations.iter().enumerate() {
                    names.push((location.clone(), fragment::name(&part.blob, extent, index)));
                }
            }
        }
        let mut removing = JoinSet::new();
        for (location, name) in names {
            if removing.len() >= 8 {
                removing.join_next().await;
            }
            let (gateway, owner) = (self.clone(), layout.owner.clone());
            removing.spawn(async move {
                if let Ok(place) = gateway.place(&owner, &location).await {
                    let _found_by_a_scrub = place.delete(&name).await;
                }
            });
        }
        while removing.join_next().await.is_some() {}
    }

    /// A blob of an object, ready to be read.
    pub(crate) fn blob(&self, layout: &Arc<Layout>, data_key: &DataKey, part: &Part) -> Result<Blob, Error> {
        Ok(Blob {
            layout: layout.clone(),
            geometry: geometry(layout)?,
            keys: data_key.blob(&part.blob, layout.encrypted)?,
            part: part.clone(),
        })
    }

    /// A range of an object's bytes, in order; the next extents are read ahead.
    ///
    /// # Errors
    /// When its key does not open.
    pub fn read(
        &self,
        object: &ObjectStored,
        range: Range<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
        let layout = Arc::new(object.layout.clone().unwrap_or_default());
        let data_key = self.data_key(&layout)?;
        let extent_bytes = u64::from(layout.extent_bytes.max(1));
        let mut start = 0;
        let mut spans = vec![];
        for part in &object.parts {
            let (from, to) = (range.start.max(start), range.end.min(start + part.size));
            if from < to {
                let blob = Arc::new(self.blob(&layout, &data_key, part)?);
                let (from, to) = (from - start, to - start);
                for extent in from / extent_bytes..to.div_ceil(extent_bytes) {
                    let base = extent * extent_bytes;
                    let inside = from.saturating_sub(base) as usize..(to - base).min(extent_bytes) as usize;
                    spans.push((blob.clone(), extent as u32, inside));
                }
            }
            start += part.size;
        }
        let gateway = self.clone();
        Ok(stream::iter(spans)
            .map(move |(blob, extent, inside)| {
                let gateway = gateway.clone();
                async move {
                    let _permit = gateway.extents.clone().acquire_owned().await.map_err(Error::internal)?;
                    gateway.read_extent(&blob, extent, inside).await
                }
            })
            .buffered(EXTENTS_IN_FLIGHT))
    }

    async fn read_extent(&self, blob: &Arc<Blob>, extent: u32, inside: Range<usize>) -> Result<Bytes, Error> {
        let plain = blob.geometry.extent_size(blob.part.size, extent);
        let inside = inside.start..inside.end.min(plain);
        if let Some(bytes) = self.cache.get(&blob.part.blob, extent) {
            return Ok(bytes.slice(inside));
        }
        let piece = blob.geometry.piece_bytes as usize;
        let mut pieces = inside.start / piece..inside.end.div_ceil(piece);
        let all = 0..blob.geometry.pieces(plain);
        // From half on, one request for all is less than two for the half; and all can be kept.
        if pieces.len() * 2 >= all.len() {
            pieces = all.clone();
        }
        let bytes: Bytes = self.fetch(blob, extent, pieces.clone()).await?.into();
        if pieces == all {
            self.cache.put(&blob.part.blob, extent, bytes.clone());
        }
        let base = pieces.start * piece;
        Ok(bytes.slice(inside.start - base..inside.end - base))
    }

    /// One fragment's header and its shards of these pieces.
    async fn fetch_fragment(
        &self,
        blob: &Blob,
        extent: u32,
        index: usize,
        pieces: &Range<usize>,
    ) -> Result<Fetched, String> {
        let location = &blob.layout.locations[index];
        let name = fragment::name(&blob.part.blob, extent, index);
        let plain = blob.geometry.extent_size(blob.part.size, extent);
        let table = |bytes: &[u8]| blob.geometry.table(&blob.keys, extent, index as u32, plain, bytes);
        let limit = Duration::from_millis(self.config.location_limit_ms.into());
        let read = async {
            let place = self.place(&blob.layout.owner, location).await?;
            if pieces.len() == blob.geometry.pieces(plain) {
                let bytes = place.get(&name, None).await?;
                return Ok(table(&bytes).map(|table| {
                    let span = blob.geometry.span(&table, pieces);
                    let (from, to) = (span.start.min(bytes.len()), span.end.min(bytes.len()));
                    (table, bytes.slice(from..to))
                }));
            }
            let header = place.get(&name, Some(0..blob.geometry.header_bytes(plain) as u64)).await?;
            match table(&header) {
                Err(rotten) => Ok(Err(rotten)),
                Ok(table) => {
                    let span = blob.geometry.span(&table, pieces);
                    let bytes = place.get(&name, Some(span.start as u64..span.end as u64)).await?;
                    Ok(Ok((table, bytes)))
                }
            }
        };
        let read: Result<Result<Fetched, fragment::Error>, place::Error> = timeout(limit, read)
            .await
            .unwrap_or_else(|_| Err(place::Error::Away(format!("did not answer within {} ms", limit.as_millis()))));
        self.note(&blob.layout.owner, location, matches!(read, Err(place::Error::Away(_))));
        match read {
            Ok(Ok(fetched)) => Ok(fetched),
            Ok(Err(rotten)) => Err(format!("{location}: {rotten}")),
            Err(error) => Err(format!("{location}: {error}")),
        }
    }

    /// Plain bytes of pieces, from the first k fragments that are good. One more is asked whenever one fails, has a
    /// rotten shard, or all are silent for a moment.
    pub(crate) async fn fetch(&self, blob: &Arc<Blob>, extent: u32, pieces: Range<usize>) -> Result<Vec<u8>, Error> {
        let layout = &blob.layout;
        let needed = layout.data as usize;
        let mut order: Vec<usize> = (0..layout.locations.len()).collect();
        order.sort_by_key(|&index| self.is_away(&layout.owner, &layout.locations[index]));
        let mut next = order.into_iter();
        let mut asked = FuturesUnordered::new();
        let ask = |index: usize| {
            let pieces = pieces.clone();
            async move { (index, self.fetch_fragment(blob, extent, index, &pieces).await) }
        };
        asked.extend(next.by_ref().take(needed).map(ask));
        let (mut found, mut problems) = (BTreeMap::<usize, Fetched>::new(), vec![]);
        let hedge = Duration::from_millis(self.config.hedge_ms.into());
        loop {
            let more = match timeout(hedge, asked.next()).await {
                Ok(Some((index, Ok(fetched)))) => {
                    found.insert(index, fetched);
                    if found.len() >= needed {
                        match assemble(blob.clone(), extent, pieces.clone(), found.clone()).await? {
                            Some(bytes) => return Ok(bytes),
                            None => {
                                problems.push(format!("fragment {index} or one before has a shard that was changed"));
                                true
                            }
                        }
                    } else {
                        false
                    }
                }
                Ok(Some((_, Err(problem)))) => {
                    problems.push(problem);
                    true
                }
                Ok(None) => {
                    return Err(Error::Lost(format!(
                        "{needed} good fragments are needed to read this object, and there are fewer now ({}); it \
                         can be read again when locations are back",
                        problems.join("; ")
                    )));
                }
                Err(_) => true,
            };
            if more && let Some(index) = next.next() {
                asked.push(ask(index));
            }
        }
    }
}

/// Puts fragments together; `None` if some piece has too few good shards.
async fn assemble(
    blob: Arc<Blob>,
    extent: u32,
    pieces: Range<usize>,
    found: BTreeMap<usize, Fetched>,
) -> Result<Option<Vec<u8>>, Error> {
    let work = move || {
        let geometry = &blob.geometry;
        let Some((table, _)) = found.values().next() else { return Ok(None) };
        let shards: Vec<Vec<Option<&[u8]>>> = (0..geometry.code.shards())
            .map(|index| match found.get(&index) {
                Some((_, span)) => geometry.shards(&blob.keys, extent, index as u32, table, &pieces, span),
                None => vec![],
            })
            .collect();
        if geometry.wanting(&pieces, &shards) > 0 {
            return Ok(None);
        }
        let mut output = Vec::with_capacity(pieces.len() * geometry.piece_bytes as usize);
        geometry.read(&blob.keys, extent, table, &pieces, &shards, &mut output)?;
        Ok(Some(output))
    };
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

fn settle(done: Option<Result<Result<(), Error>, tokio::task::JoinError>>) -> Result<(), Error> {
    done.map_or(Ok(()), |done| done.unwrap_or_else(|error| Err(Error::internal(error))))
}

/// Bounds on what becomes part of a fact.
pub(crate) fn check_head(key: &str, head: &Head) -> Result<(), Error> {
    if key.is_empty() || key.len() > 1_024 {
        return Err(Error::Invalid(format!("the key has {} bytes; use 1 to 1,024", key.len())));
    }
    let bytes = |map: &BTreeMap<String, String>| map.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
    let total = bytes(&head.metadata) + bytes(&head.headers) + head.content_type.len();
    if total > 8 << 10 || bytes(&head.metadata) > 2 << 10 {
        return Err(Error::Invalid(format!("{total} bytes of metadata; S3 allows 2 KB of them, and 8 KB in all")));
    }
    Ok(())
}
