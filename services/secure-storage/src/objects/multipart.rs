//! Multipart uploads: each part is a blob under the upload's data key. [`crate::domain::uploads`] decides what an
//! upload holds and becomes; this shell writes bytes before, and removes fragments after.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::Stream;
use mesh_core::Key;
use mesh_proto::{
    Event as _, Timestamp,
    deciders::stream_object::Event as Fact,
    object::{Checksum, ObjectStored, PartStored, UploadEnded, UploadStarted},
};

use super::{Announced, Error, Head, ObjectStore, catalogue::Upload, check_encrypted, check_head, commit::Parts};
use crate::{
    domain::{
        checksums::Algorithm,
        objects::{self, Command, Condition, Outcome},
        uploads::{self, Claims, Refused, StoredPart},
    },
    keys,
};

/// Uploads under way at most.
const UPLOADS_MAX: usize = 100_000;
/// How often completed uploads are looked for that their gateway left unfinished.
const FINISH_EVERY: std::time::Duration = std::time::Duration::from_secs(5);

/// An upload, as a caller names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// Bucket.
    pub bucket: String,
    /// Key of the object that it will be.
    pub key: String,
    /// Its id.
    pub upload: String,
}

impl ObjectStore {
    /// Begins an upload, whose parts have checksums of this algorithm; returns its id.
    ///
    /// # Errors
    /// When the bucket does not exist or the bus is unreachable.
    pub async fn begin(
        &self,
        owner: &str,
        bucket: &str,
        key: &str,
        head: Head,
        checksum: Option<(Algorithm, bool)>,
    ) -> Result<UploadStarted, Error> {
        check_head(key, &head)?;
        let (token, of) = self.bucket(owner, bucket).await?;
        self.check_room(&token, &of, key)?;
        if self.view.read(|view| view.uploads.len()) >= UPLOADS_MAX {
            return Err(Error::Unavailable(format!("{UPLOADS_MAX} uploads are under way; complete or abort some")));
        }
        let recipe = self.recipe(&of)?;
        check_encrypted(&head, &recipe)?;
        let (layout, _) = self.layout(of.provider(), &recipe)?;
        let upload = hex::encode(keys::random::<16>().map_err(Error::internal)?);
        let started = UploadStarted {
            bucket: token,
            upload,
            key: key.into(),
            epoch: of.epoch,
            owner: owner.into(),
            content_type: head.content_type,
            metadata: head.metadata,
            headers: head.headers,
            tags: head.tags,
            layout: Some(layout),
            checksum: checksum.map(|(algorithm, composite)| Checksum {
                algorithm: algorithm.name().into(),
                composite,
                ..Checksum::default()
            }),
        };
        self.decide_upload(&uploads::Command::Begin(started.clone())).await?;
        Ok(started)
    }

    /// An upload of this bucket and key, under way or over.
    async fn upload_at(&self, owner: &str, at: &At, parts: Parts<'_>) -> Result<(Key, uploads::State), Error> {
        if at.upload.len() != 32 || hex::decode(&at.upload).is_err() {
            return Err(Refused::NoUpload.into());
        }
        let (token, of) = self.bucket(owner, &at.bucket).await?;
        let key = Key::new([token.as_str(), &at.upload]);
        let state = self.upload(&key, parts).await?;
        match &state.started {
            Some(started) if started.key == at.key && started.epoch == of.epoch => Ok((key, state)),
            _ => Err(Refused::NoUpload.into()),
        }
    }

    /// Stores a part; returns its fact.
    ///
    /// # Errors
    /// When it could not be made safe, or the upload is over before it is stored.
    pub async fn put_part<S, E>(
        &self,
        owner: &str,
        at: &At,
        number: u32,
        announced: &Announced,
        body: S,
    ) -> Result<PartStored, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        let number = uploads::part_number(&number.to_string())?.to_string();
        let (_, state) = self.upload_at(owner, at, Parts::None).await?;
        let started = state.open()?.clone();
        let (_, of) = self.bucket(owner, &at.bucket).await?;
        let layout = started.layout.unwrap_or_default();
        let data_key = self.data_key(&layout)?;
        let acknowledge_at = self.recipe(&of)?.acknowledge_at;
        let mut announced = announced.clone();
        let begun = started.checksum.as_ref().and_then(|begun| Algorithm::named(&begun.algorithm));
        if let (Some(begun), Some(asked)) = (begun, announced.algorithm)
            && begun != asked
        {
            let (begun, asked) = (begun.name().to_owned(), asked.name().to_owned());
            return Err(Refused::ChecksumKind { begun, asked }.into());
        }
        // A part without a checksum of its own gets the one that the object is to have.
        announced.algorithm = announced.algorithm.or(begun);
        let received = self.write(&layout, &data_key, acknowledge_at, &announced, body).await?;
        let part = received.part;
        let fact = PartStored {
            bucket: started.bucket,
            upload: at.upload.clone(),
            number,
            part: Some(part.clone()),
            etag: hex::encode(received.md5),
            checksum: received.checksum,
        };
        match self.add_part(fact.clone()).await {
            Ok(()) => Ok(fact),
            Err(error) => {
                // The upload was over before: no object can hold this blob.
                if matches!(error, Error::Upload(_)) {
                    let store = self.clone();
                    tokio::spawn(async move { store.remove(&layout, &[part]).await });
                }
                Err(error)
            }
        }
    }

    /// An upload that is under way, and its parts by number.
    ///
    /// # Errors
    /// When it does not exist.
    pub async fn parts(&self, owner: &str, at: &At) -> Result<(UploadStarted, BTreeMap<u32, StoredPart>), Error> {
        let (_, state) = self.upload_at(owner, at, Parts::All).await?;
        let started = state.open()?.clone();
        Ok((started, state.parts))
    }

    /// Makes the object of the named parts, in the order of their numbers.
    ///
    /// # Errors
    /// When a part is missing or too small, the order is wrong, or a condition does not hold; the upload is then as
    /// it was.
    pub async fn complete(
        &self,
        owner: &str,
        at: &At,
        named: &[(u32, String)],
        claims: &Claims,
        condition: &Condition,
    ) -> Result<ObjectStored, Error> {
        let (key, state) = self.upload_at(owner, at, Parts::None).await?;
        let Some(started) = state.started.clone() else { return Err(Refused::NoUpload.into()) };
        let object_token = crate::domain::object_token(&started.bucket, started.epoch, &started.key);
        let object_key = Key::new([&started.bucket, &object_token]);
        let visible = self.visible(&object_key).await?;
        if state.ended.as_ref().is_some_and(|(ended, _)| ended.completed && ended.object.is_none()) {
            // Completed by a release whose fact did not name the object.
            return visible.filter(|now| now.upload == at.upload).ok_or(Refused::NoUpload.into());
        }
        // While the upload is open, a condition that does not hold leaves it open.
        if state.ended.is_none() {
            condition.check(visible.as_ref())?;
        }
        let command = uploads::Command::Complete {
            bucket: started.bucket.clone(),
            upload: at.upload.clone(),
            named: named.to_vec(),
            claims: claims.clone(),
            replaces: visible.as_ref().map(objects::write_id).unwrap_or_default(),
            at: self.mesh.now(),
        };
        let state = self.decide_upload(&command).await?;
        let Some(object) = state.object().cloned() else { return Err(Refused::NoUpload.into()) };
        let begun = self.began_at(&key).await?;
        let versioning = self.versioning(&object.bucket);
        let command = Command::Complete { object: object.clone(), condition: condition.clone(), versioning };
        match self.decide_completed(&command, begun, &state).await? {
            Some(Outcome::Visible { version }) => Ok(ObjectStored { version, ..object }),
            Some(Outcome::Dropped) => Err(Error::Conflict),
            None => Ok(object),
        }
    }

    /// Aborts an upload and removes what it stored.
    ///
    /// # Errors
    /// When it does not exist.
    pub async fn abort(&self, owner: &str, at: &At) -> Result<(), Error> {
        let (key, state) = self.upload_at(owner, at, Parts::None).await?;
        let Some(started) = state.started else { return Err(Refused::NoUpload.into()) };
        let abort = uploads::Command::Abort { bucket: started.bucket.clone(), upload: at.upload.clone() };
        let state = self.decide_upload(&abort).await?;
        match state.object() {
            None => {
                self.remove(&started.layout.unwrap_or_default(), &state.garbage()).await;
                Ok(())
            }
            // Completed, perhaps by a gateway that stopped before the object was visible.
            Some(object) => {
                let (bucket, object) = (object.bucket.clone(), object.object.clone());
                let drop = Command::Drop { bucket, object, upload: at.upload.clone() };
                let begun = self.began_at(&key).await?;
                self.decide_completed(&drop, begun, &state).await?;
                Ok(())
            }
        }
    }

    /// Sequence of the fact with which an upload began. No fact of its object about it is older.
    async fn began_at(&self, key: &Key) -> Result<u64, Error> {
        let log = self.mesh.bus().log(UploadStarted::STREAM);
        let first = log.read(&key.entity(UploadStarted::AREA), 1, 1).await.map_err(Error::internal)?;
        Ok(first.first().map_or(1, |stored| stored.sequence))
    }

    /// Decides whether a completed upload becomes visible, and removes what nothing needs then.
    async fn decide_completed(
        &self,
        command: &Command,
        begun: u64,
        state: &uploads::State,
    ) -> Result<Option<Outcome>, Error> {
        let decided = self.decide(command, Some(begun)).await?;
        self.retire(decided.garbage);
        let layout = state.started.as_ref().and_then(|started| started.layout.clone()).unwrap_or_default();
        let garbage = match &decided.fact {
            Some(Fact::ObjectStored(_)) => state.garbage(),
            Some(Fact::UploadDropped(_)) => state.all(),
            _ => vec![],
        };
        if !garbage.is_empty() {
            let store = self.clone();
            tokio::spawn(async move { store.remove(&layout, &garbage).await });
        }
        Ok(decided.outcome)
    }

    /// Finishes the completed uploads that their gateways left, until the process stops.
    pub(crate) async fn finish_uploads(self) -> anyhow::Result<()> {
        let stopping = self.mesh.stopping();
        loop {
            tokio::select! {
                () = tokio::time::sleep(FINISH_EVERY) => {}
                () = stopping.cancelled() => return Ok(()),
            }
            for (ended, _) in self.due_uploads() {
                if let Err(error) = self.finish(&ended).await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(upload = ended.upload, error, "a completed upload is not visible yet");
                }
            }
        }
    }

    fn due_uploads(&self) -> Vec<(UploadEnded, Timestamp)> {
        let now = self.mesh.now();
        let is_due = |ended: &UploadEnded, at| uploads::due(ended, at).is_some_and(|due| due <= now);
        self.view.read(|view| view.completing.values().filter(|(ended, at)| is_due(ended, *at)).cloned().collect())
    }

    async fn finish(&self, ended: &UploadEnded) -> Result<(), Error> {
        let Some(object) = ended.object.clone() else { return Ok(()) };
        let key = Key::new([&ended.bucket, &ended.upload]);
        let state = self.upload(&key, Parts::All).await?;
        let begun = self.began_at(&key).await?;
        let versioning = self.versioning(&object.bucket);
        let finish = Command::Finish { object, replaces: ended.replaces.clone(), versioning };
        self.decide_completed(&finish, begun, &state).await?;
        Ok(())
    }

    /// The uploads of a bucket that are under way, by key and id.
    ///
    /// # Errors
    /// When the bucket does not exist.
    pub async fn uploads(&self, owner: &str, bucket: &str) -> Result<Vec<Upload>, Error> {
        let (token, of) = self.bucket(owner, bucket).await?;
        self.catch_up(UploadStarted::STREAM).await?;
        let mut found: Vec<Upload> = self.view.read(|view| {
            let of_bucket = view.uploads.iter().filter(|((b, _), u)| *b == token && u.started.epoch == of.epoch);
            of_bucket.map(|(_, upload)| upload.clone()).collect()
        });
        found.sort_by(|a, b| (&a.started.key, &a.started.upload).cmp(&(&b.started.key, &b.started.upload)));
        Ok(found)
    }
}
