//! Multipart uploads: each part is a blob under the upload's data key; completing names them in one fact.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::Stream;
use mesh_proto::{
    deciders::stream_object::Event,
    derived_id,
    object::{ObjectStored, Part, PartStored, UploadEnded, UploadStarted},
};

use crate::{
    catalogue::Upload,
    domain::{Bucket, event},
    gateway::{Condition, Error, Gateway, Head, check_head, object_token},
    keys,
    seal::{from_hex, to_hex},
};

/// Parts of an upload at most, as in S3.
pub(crate) const PARTS_MAX: u32 = 10_000;
/// Bytes of every part but the last at least, as in S3.
const PART_MIN: u64 = 5 << 20;
/// Uploads under way at most.
const UPLOADS_MAX: usize = 100_000;

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

/// A part that is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its blob.
    pub part: Part,
    /// MD5, hexadecimal.
    pub etag: String,
    /// When.
    pub at: mesh_proto::Timestamp,
}

impl Gateway {
    /// Begins an upload; gives its id.
    ///
    /// # Errors
    /// When the bucket is not there or the bus is away.
    pub async fn begin(&self, owner: &str, bucket: &str, key: &str, head: Head) -> Result<String, Error> {
        check_head(key, &head)?;
        let (token, of) = self.bucket(owner, bucket).await?;
        self.room(&token, &of, key)?;
        if self.view.read(|view| view.uploads.len()) >= UPLOADS_MAX {
            return Err(Error::Unavailable(format!("{UPLOADS_MAX} uploads are under way; complete or abort some")));
        }
        let (layout, _) = self.layout(owner, &self.recipe(&of)?)?;
        let upload = to_hex(&keys::random::<16>().map_err(|e| Error::Internal(e.to_string()))?);
        let fact = UploadStarted {
            bucket: token,
            upload: upload.clone(),
            key: key.into(),
            epoch: of.epoch,
            owner: owner.into(),
            content_type: head.content_type,
            metadata: head.metadata,
            headers: head.headers,
            layout: Some(layout),
        };
        self.say(&fact, 0, derived_id(&["upload", &upload])).await?;
        Ok(upload)
    }

    /// How an upload began, from its own facts.
    async fn begun(
        &self,
        owner: &str,
        bucket: &str,
        key: &str,
        upload: &str,
    ) -> Result<(Bucket, UploadStarted), Error> {
        let gone = || Error::NoUpload(upload.to_owned());
        if upload.len() != 32 || from_hex(upload).is_none() {
            return Err(gone());
        }
        let (token, of) = self.bucket(owner, bucket).await?;
        let log = self.mesh.bus().log("OBJECT");
        let filter = format!("object.*.v1.{token}.{upload}");
        let last = log.last(&filter).await.map_err(|e| Error::Internal(e.to_string()))?.ok_or_else(gone)?;
        match event::<Event>(&last) {
            Some(Event::UploadStarted(m)) if m.key == key && m.epoch == of.epoch => Ok((of, m)),
            _ => Err(gone()),
        }
    }

    /// Stores a part; gives its etag.
    ///
    /// # Errors
    /// When it could not be made safe, or there is no such upload.
    pub async fn put_part<S, E>(&self, owner: &str, at: &At, number: u32, body: S) -> Result<String, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        if !(1..=PARTS_MAX).contains(&number) {
            return Err(Error::Invalid(format!("the part number is {number}; use 1 to {PARTS_MAX}")));
        }
        let upload = at.upload.as_str();
        let (of, started) = self.begun(owner, &at.bucket, &at.key, upload).await?;
        let layout = started.layout.unwrap_or_default();
        let data_key = self.data_key(&layout)?;
        let acknowledge_at = self.recipe(&of)?.acknowledge_at;
        let (part, md5) = self.write(&layout, &data_key, acknowledge_at, body).await?;
        let etag = to_hex(&md5);
        let (token, number) = (started.bucket, number.to_string());
        let entity = format!("object.*.v1.{token}.{upload}.{number}");
        loop {
            let last = self.mesh.bus().log("OBJECT").last(&entity).await.map_err(|e| Error::Internal(e.to_string()))?;
            let sequence = last.as_ref().map_or(0, |stored| stored.sequence);
            let fact = PartStored {
                bucket: token.clone(),
                upload: upload.into(),
                number: number.clone(),
                part: Some(part.clone()),
                etag: etag.clone(),
            };
            if self.say(&fact, sequence, derived_id(&["part", &to_hex(&part.blob), &sequence.to_string()])).await? {
                // The part that this one replaces; nobody reads parts before they are completed.
                if let Some(Event::PartStored(PartStored { part: Some(old), .. })) = last.as_ref().and_then(event) {
                    self.remove(&layout, &[old]).await;
                }
                return Ok(etag);
            }
        }
    }

    /// The parts of an upload that is under way, by number.
    ///
    /// # Errors
    /// When there is no such upload.
    pub async fn parts(
        &self,
        owner: &str,
        bucket: &str,
        key: &str,
        upload: &str,
    ) -> Result<BTreeMap<u32, Stored>, Error> {
        let (_, started) = self.begun(owner, bucket, key, upload).await?;
        self.parts_of(&started.bucket, upload).await
    }

    /// The parts of an upload, by number.
    pub(crate) async fn parts_of(&self, token: &str, upload: &str) -> Result<BTreeMap<u32, Stored>, Error> {
        let filter = format!("object.part_stored.v1.{token}.{upload}.*");
        let log = self.mesh.bus().log("OBJECT");
        // Each number may be stored again; the last wins.
        let facts = log.read(&filter, 1, 100 * PARTS_MAX as usize).await.map_err(|e| Error::Internal(e.to_string()))?;
        let mut parts = BTreeMap::new();
        for stored in facts {
            if let Some(Event::PartStored(PartStored { number, part: Some(part), etag, .. })) = event(&stored)
                && let Ok(number) = number.parse()
            {
                parts.insert(number, Stored { part, etag, at: stored.time });
            }
        }
        Ok(parts)
    }

    /// Makes the object of the named parts, in the order of their numbers.
    ///
    /// # Errors
    /// When a part is not there or too small, or the order is wrong; the upload is then as it was.
    pub async fn complete(
        &self,
        owner: &str,
        at: &At,
        named: &[(u32, String)],
        condition: &Condition,
    ) -> Result<ObjectStored, Error> {
        let (bucket, key, upload) = (at.bucket.as_str(), at.key.as_str(), at.upload.as_str());
        let (of, started) = match self.begun(owner, bucket, key, upload).await {
            // Completed already, and the answer was lost on its way: it is the same again.
            Err(Error::NoUpload(upload)) => {
                return match self.object(owner, bucket, key).await {
                    Ok(object) if object.upload == upload => Ok(object),
                    _ => Err(Error::NoUpload(upload)),
                };
            }
            begun => begun?,
        };
        if named.is_empty() || named.len() > PARTS_MAX as usize {
            return Err(Error::Invalid(format!("{} parts are named; name 1 to {PARTS_MAX}", named.len())));
        }
        if named.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Err(Error::Invalid("InvalidPartOrder: name the parts in the order of their numbers".into()));
        }
        let mut stored = self.parts_of(&started.bucket, upload).await?;
        let (mut parts, mut digests) = (vec![], vec![]);
        for (number, etag) in named {
            match stored.remove(number) {
                Some(found) if found.etag == *etag => {
                    digests.extend(from_hex(&found.etag).unwrap_or_default());
                    parts.push(found.part);
                }
                _ => return Err(Error::Invalid(format!("InvalidPart: part {number} with etag {etag} is not stored"))),
            }
        }
        if parts.iter().rev().skip(1).any(|part| part.size < PART_MIN) {
            return Err(Error::Invalid(format!(
                "EntityTooSmall: every part but the last has at least {PART_MIN} bytes"
            )));
        }
        let etag = format!("{}-{}", to_hex(&crate::seal::md5(&digests)), parts.len());
        let object = ObjectStored {
            object: object_token(&started.bucket, of.epoch, key),
            bucket: started.bucket,
            key: key.into(),
            epoch: of.epoch,
            owner: owner.into(),
            size: parts.iter().map(|part| part.size).sum(),
            etag,
            content_type: started.content_type,
            metadata: started.metadata,
            headers: started.headers,
            layout: started.layout.clone(),
            parts,
            upload: upload.into(),
            modified: Some(self.mesh.now()),
        };
        let replaced = self.commit(&object, condition).await?;
        self.retire(replaced);
        self.end(&object.bucket, upload, true).await?;
        // Parts that were stored and not named.
        let left: Vec<Part> = stored.into_values().map(|stored| stored.part).collect();
        if let (Some(layout), false) = (started.layout, left.is_empty()) {
            let gateway = self.clone();
            tokio::spawn(async move { gateway.remove(&layout, &left).await });
        }
        Ok(object)
    }

    /// Ends an upload; `false` if it was over.
    async fn end(&self, token: &str, upload: &str, completed: bool) -> Result<bool, Error> {
        let log = self.mesh.bus().log("OBJECT");
        let last =
            log.last(&format!("object.*.v1.{token}.{upload}")).await.map_err(|e| Error::Internal(e.to_string()))?;
        let Some(last) = last else { return Ok(false) };
        if !matches!(event::<Event>(&last), Some(Event::UploadStarted(_))) {
            return Ok(false);
        }
        let fact = UploadEnded { bucket: token.into(), upload: upload.into(), completed };
        self.say(&fact, last.sequence, derived_id(&["upload-ended", upload, if completed { "1" } else { "0" }])).await
    }

    /// Aborts an upload and removes what it stored.
    ///
    /// # Errors
    /// When there is no such upload.
    pub async fn abort(&self, owner: &str, bucket: &str, key: &str, upload: &str) -> Result<(), Error> {
        let (_, started) = self.begun(owner, bucket, key, upload).await?;
        if !self.end(&started.bucket, upload, false).await? {
            return Err(Error::NoUpload(upload.to_owned()));
        }
        let parts: Vec<Part> =
            self.parts_of(&started.bucket, upload).await?.into_values().map(|stored| stored.part).collect();
        self.remove(&started.layout.unwrap_or_default(), &parts).await;
        Ok(())
    }

    /// The uploads of a bucket that are under way, by key and id.
    ///
    /// # Errors
    /// When the bucket is not there.
    pub async fn uploads(&self, owner: &str, bucket: &str) -> Result<Vec<Upload>, Error> {
        let (token, of) = self.bucket(owner, bucket).await?;
        self.catch_up("OBJECT").await?;
        let mut found: Vec<Upload> = self.view.read(|view| {
            let of_bucket = view.uploads.iter().filter(|((b, _), u)| *b == token && u.started.epoch == of.epoch);
            of_bucket.map(|(_, upload)| upload.clone()).collect()
        });
        found.sort_by(|a, b| (&a.started.key, &a.started.upload).cmp(&(&b.started.key, &b.started.upload)));
        Ok(found)
    }
}
