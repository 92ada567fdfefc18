//! Key-value state, for snapshots: the last value of each key, in the stream that carries the bucket.

use std::{sync::Arc, time::Duration};

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use mesh_core::Stored;

use crate::{
    Log, LogError, PublishError,
    backoff::Backoff,
    batch::{self, BATCH_BYTES_MAX, BATCH_MAX},
    link::Link,
    parts::{self, Head},
};

/// A bucket was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// A key is not of `[A-Za-z0-9_.=-]`, or has an empty token.
    #[error("bucket key {key:?} is not made of letters, digits, `-`, `_`, `=` and single dots")]
    Key {
        /// What was given.
        key: String,
    },
    /// It was not read.
    #[error("read bucket {bucket}")]
    Read {
        /// The bucket.
        bucket: String,
        /// Why.
        #[source]
        source: LogError,
    },
    /// The parts of a large value do not match its head, and stay so.
    #[error("read {key} of bucket {bucket}: the parts of its value do not belong together; write it again")]
    Torn {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
    },
    /// A value is larger than a reader would hold.
    #[error("write {key} of bucket {bucket}: {size} bytes, of at most {limit}")]
    TooLarge {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// It was not written.
    #[error("write bucket {bucket}")]
    Write {
        /// The bucket.
        bucket: String,
        /// Why.
        #[source]
        source: PublishError,
    },
}

/// Marks a value as deleted, as other clients of key-value buckets do.
static OPERATION: HeaderName = HeaderName::from_static("KV-Operation");
/// Condition on the last sequence of the message's own subject.
static EXPECTED_LAST: HeaderName = HeaderName::from_static("Nats-Expected-Last-Subject-Sequence");
/// Attempts at one atomic batch before its values are written one by one.
const BATCH_ATTEMPTS: usize = 5;
/// Keys read at once.
const PAGE_MAX: usize = 1_000;
/// How often a large value is read again that is replaced while it is read.
const TORN_ATTEMPTS: usize = 20;

/// A key-value bucket. Cheap to clone.
#[derive(Clone)]
pub struct Bucket {
    link: Arc<Link>,
    name: Arc<str>,
    log: Log,
}

impl Bucket {
    pub(crate) fn new(link: Arc<Link>, name: &str) -> Self {
        let log = Log::new(link.clone(), &format!("KV_{name}"));
        Self { link, name: name.into(), log }
    }

    /// The value of a key; `None` if it has none or was deleted.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, BucketError> {
        Ok(self.entry(key).await?.map(|(value, _)| value).filter(|value| !value.is_empty()))
    }

    /// The value of a key and its revision; `None` if it never had one.
    pub async fn entry(&self, key: &str) -> Result<Option<(Bytes, u64)>, BucketError> {
        for _ in 0..TORN_ATTEMPTS {
            let Some((value, revision)) = self.raw(key).await? else { return Ok(None) };
            let Some(head) = Head::of(&value) else { return Ok(Some((value, revision))) };
            if let Some(whole) = self.whole(key, &head).await? {
                return Ok(Some((whole, revision)));
            }
            // It is being replaced.
            if self.link.pause(Duration::from_millis(20)).await.is_err() {
                break;
            }
        }
        Err(BucketError::Torn { bucket: self.name.to_string(), key: key.to_owned() })
    }

    /// What the key itself holds: a value, or the head of a large one.
    async fn raw(&self, key: &str) -> Result<Option<(Bytes, u64)>, BucketError> {
        let subject = self.subject(key)?;
        let found = self.log.last(&subject).await.map_err(|source| self.unread(source))?;
        Ok(found.map(|m| (m.body, m.sequence)))
    }

    async fn whole(&self, key: &str, head: &Head) -> Result<Option<Bytes>, BucketError> {
        let mut parts = vec![];
        for key in head.keys(key) {
            let Some((part, _)) = self.raw(&key).await? else { return Ok(None) };
            parts.push(part);
        }
        Ok(head.join(&parts))
    }

    /// A value as it is stored: itself, or its head and before it the parts, in the slot that is not in use.
    async fn cut(&self, key: &str, value: Bytes) -> Result<(Bytes, Vec<(String, Bytes)>), BucketError> {
        if !parts::is_large(&value) {
            return Ok((value, vec![]));
        }
        if value.len() > parts::WHOLE_BYTES_MAX {
            let (size, limit) = (value.len(), parts::WHOLE_BYTES_MAX);
            return Err(BucketError::TooLarge { bucket: self.name.to_string(), key: key.to_owned(), size, limit });
        }
        let used = self.raw(key).await?.and_then(|(value, _)| Head::of(&value)).map_or(1, |head| head.slot);
        Ok(parts::cut(key, &value, 1 - used.min(1)))
    }

    /// Values as they are stored, with their subjects, in an order in which no head comes before its parts.
    async fn stored(&self, values: Vec<(String, Bytes)>) -> Result<Vec<(String, Bytes)>, BucketError> {
        let mut stored = Vec::with_capacity(values.len());
        for (key, value) in values {
            let subject = self.subject(&key)?;
            let (value, parts) = self.cut(&key, value).await?;
            for (key, part) in parts {
                stored.push((self.subject(&key)?, part));
            }
            stored.push((subject, value));
        }
        Ok(stored)
    }

    /// Sets values and, with each atomic batch of them, the value of `fence` (`None` leaves it as it is), on condition
    /// that the fence's revision is still `revision` (0: it has none). Returns the fence's new revision, or `None` if
    /// another writer moved it (or the answer was lost: then its entry shows which). After `None`, some of the values
    /// may be newer than the fence, which readers must allow for.
    pub async fn put_all_if(
        &self,
        fence: (&str, Option<Bytes>),
        revision: u64,
        values: Vec<(String, Bytes)>,
    ) -> Result<Option<u64>, BucketError> {
        let fence_subject = self.subject(fence.0)?;
        let before = self.raw(fence.0).await?.map(|(value, _)| value).unwrap_or_default();
        let (fence, of_fence) = match fence {
            (key, Some(value)) => self.cut(key, value).await?,
            (_, None) => (before.clone(), vec![]),
        };
        let mut parts = self.stored(values).await?;
        for (key, part) in of_fence {
            parts.push((self.subject(&key)?, part));
        }
        let mut rest = parts.as_slice();
        let mut revision = revision;
        loop {
            let room = BATCH_BYTES_MAX.saturating_sub(fence.len());
            let count = batch::fitting(rest.iter().map(|(_, value)| value), BATCH_MAX - 1, room);
            let (chunk, behind) = rest.split_at(count);
            rest = behind;
            // Only the last part moves the fence's value: until then not everything it speaks of is there.
            let value = if rest.is_empty() { &fence } else { &before };
            let part = |index: usize| match chunk.get(index) {
                Some((subject, value)) => (subject.clone(), headers(value), value.clone()),
                None => {
                    let mut headers = HeaderMap::new();
                    headers.insert(EXPECTED_LAST.clone(), HeaderValue::from(revision));
                    (fence_subject.clone(), headers, value.clone())
                }
            };
            match batch::commit(&self.link, chunk.len() + 1, part).await {
                Some(stored) => revision = stored,
                None => return Ok(None),
            }
            if rest.is_empty() {
                return Ok(Some(revision));
            }
        }
    }

    /// All keys with their values, in the order they were last written.
    pub async fn all(&self) -> Result<Vec<(String, Bytes)>, BucketError> {
        let (mut all, mut next) = (vec![], Some(1));
        while let Some(from) = next {
            let (page, behind) = self.page(from, PAGE_MAX).await?;
            all.extend(page);
            next = behind;
        }
        Ok(all)
    }

    /// Keys with their values that were last written at a revision or later, in that order: about `limit` of them, and
    /// from where on there may be more. A key that is written meanwhile comes again, later.
    pub async fn page(&self, from: u64, limit: usize) -> Result<(Vec<(String, Bytes)>, Option<u64>), BucketError> {
        let prefix = format!("$KV.{}.", self.name);
        let found = self.log.read(">", from, limit).await.map_err(|source| self.unread(source))?;
        let next = found.last().map(|last| last.sequence + 1);
        let entry =
            |m: Stored| (!m.body.is_empty()).then(|| Some((m.subject.strip_prefix(&prefix)?.to_owned(), m.body)));
        let mut page = Vec::with_capacity(found.len());
        for (key, value) in found.into_iter().filter_map(entry).flatten().filter(|(key, _)| !parts::is_part(key)) {
            match Head::of(&value) {
                Some(_) => page.extend(self.get(&key).await?.map(|whole| (key, whole))),
                None => page.push((key, value)),
            }
        }
        Ok((page, next))
    }

    /// Sets values: in atomic batches, in order. An empty value deletes.
    pub async fn put_all(&self, values: Vec<(String, Bytes)>) -> Result<(), BucketError> {
        let parts = self.stored(values).await?;
        let mut rest = parts.as_slice();
        while !rest.is_empty() {
            let count = batch::fitting(rest.iter().map(|(_, value)| value), BATCH_MAX, BATCH_BYTES_MAX);
            let (chunk, behind) = rest.split_at(count);
            self.put_chunk(chunk).await?;
            rest = behind;
        }
        Ok(())
    }

    /// Removes a key.
    pub async fn delete(&self, key: &str) -> Result<(), BucketError> {
        let subject = self.subject(key)?;
        self.put_one(&subject, &Bytes::new()).await
    }

    async fn put_chunk(&self, chunk: &[(String, Bytes)]) -> Result<(), BucketError> {
        if let [(subject, value)] = chunk {
            return self.put_one(subject, value).await;
        }
        let mut backoff = Backoff::new(10, 200);
        for _ in 0..BATCH_ATTEMPTS {
            let part = |index: usize| {
                let (subject, value): &(String, Bytes) = &chunk[index];
                (subject.clone(), headers(value), value.clone())
            };
            if batch::commit(&self.link, chunk.len(), part).await.is_some() {
                return Ok(());
            }
            if self.link.pause(backoff.next()).await.is_err() {
                break;
            }
        }
        for (subject, value) in chunk {
            self.put_one(subject, value).await?;
        }
        Ok(())
    }

    async fn put_one(&self, subject: &str, value: &Bytes) -> Result<(), BucketError> {
        let stored = self.link.store(self.log.stream(), subject.to_owned(), headers(value), value).await;
        let failed = |source| BucketError::Write { bucket: self.name.to_string(), source };
        stored.map(drop).map_err(failed)
    }

    fn unread(&self, source: LogError) -> BucketError {
        BucketError::Read { bucket: self.name.to_string(), source }
    }

    fn subject(&self, key: &str) -> Result<String, BucketError> {
        let is_token = |token: &str| {
            !token.is_empty() && token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'='))
        };
        match key.split('.').all(is_token) {
            true => Ok(format!("$KV.{}.{key}", self.name)),
            false => Err(BucketError::Key { key: key.to_owned() }),
        }
    }
}

fn headers(value: &Bytes) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if value.is_empty() {
        headers.insert(OPERATION.clone(), HeaderValue::from("DEL"));
    }
    headers
}
