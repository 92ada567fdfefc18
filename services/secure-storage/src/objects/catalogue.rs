//! What a gateway knows: the fold of `STORAGE` and `OBJECT`. Listings come from here. What an object is comes from its
//! own last fact, so that the next gateway sees a put at once.

use std::collections::{BTreeMap, VecDeque};

use mesh_core::{Derived, Projector, Stored};
use mesh_proto::{
    EventSet as _, Refusal, Timestamp,
    deciders::{stream_object::Event as Object, stream_storage::Event as Storage},
    object::{MarkerStored, ObjectStored, ScrubEnded, UploadEnded, UploadStarted},
};

use crate::domain::{event, storages::Known};

/// Answers to commands that are kept for those who wait for them.
const ANSWERS_MAX: usize = 1_024;
/// Ended scrubs that are kept.
const SCRUBS_MAX: usize = 1_000;

/// A version, as listings show it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    /// Its name, empty for the null version.
    pub version: String,
    /// Is it a delete marker?
    pub is_marker: bool,
    /// Bytes.
    pub size: u64,
    /// Without quotation marks.
    pub etag: String,
    /// When it was stored.
    pub modified: Timestamp,
    /// The object's token.
    pub object: String,
    /// Master key that wraps its data key; empty for a marker.
    pub master_key: String,
}

/// A key of a listing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Versions {
    /// The latest version.
    pub latest: Entry,
    /// The others, the latest first.
    pub older: Vec<Entry>,
}

impl Versions {
    /// All of them, the latest first.
    pub fn all(&self) -> impl Iterator<Item = &Entry> {
        std::iter::once(&self.latest).chain(&self.older)
    }

    /// What is visible.
    pub fn visible(&self) -> Option<&Entry> {
        Some(&self.latest).filter(|latest| !latest.is_marker)
    }
}

/// An upload under way.
#[derive(Clone, Debug, PartialEq)]
pub struct Upload {
    /// How it began.
    pub started: UploadStarted,
    /// When.
    pub at: Timestamp,
}

/// The progress of a scrub.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrub {
    /// Who runs it, and since when.
    pub claimed: Option<(String, Timestamp)>,
    /// What it found.
    pub ended: Option<ScrubEnded>,
}

/// Objects of a bucket's epoch, by key.
pub type Listing = BTreeMap<String, Versions>;

/// The view.
#[derive(Default)]
pub struct Catalogue {
    /// Policies, locations, buckets, scrubs that are wanted.
    pub known: Known,
    objects: BTreeMap<(String, u64), Listing>,
    /// Epochs up to here are over, by bucket.
    over: BTreeMap<String, u64>,
    /// Uploads under way, by bucket and upload.
    pub uploads: BTreeMap<(String, String), Upload>,
    /// Uploads that were completed and are not visible yet, by bucket and upload, with the time of their end.
    pub completing: BTreeMap<(String, String), (UploadEnded, Timestamp)>,
    /// By owner and scrub.
    pub scrubs: BTreeMap<(String, String), Scrub>,
    answers: VecDeque<(String, Result<(), Refusal>)>,
    /// When each bucket was created.
    pub made: BTreeMap<String, Timestamp>,
    storage_position: u64,
    object_position: u64,
    /// Number of versions, delete markers too.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Catalogue {
    /// A bucket's objects.
    pub fn listing(&self, bucket: &str, epoch: u64) -> Option<&Listing> {
        self.objects.get(&(bucket.to_owned(), epoch))
    }

    /// Every bucket's objects: bucket, epoch, listing.
    pub fn listings(&self) -> impl Iterator<Item = (&str, u64, &Listing)> {
        self.objects.iter().map(|((bucket, epoch), listing)| (bucket.as_str(), *epoch, listing))
    }

    /// Sequence up to which a stream was read.
    pub fn position(&self, stream: &str) -> u64 {
        if stream == "STORAGE" { self.storage_position } else { self.object_position }
    }

    /// The answer to a command; `None` while there is none.
    pub fn answer(&self, command_id: &str) -> Option<Result<(), Refusal>> {
        self.answers.iter().rev().find(|(id, _)| id == command_id).map(|(_, answer)| answer.clone())
    }

    /// The scrub that waits longest for a gateway: owner, scrub.
    pub fn scrub_waiting(&self, claimed_before: Timestamp) -> Option<(String, String)> {
        let free = |at: &&(String, String)| match self.scrubs.get(*at) {
            None => true,
            Some(scrub) => scrub.ended.is_none() && scrub.claimed.as_ref().is_none_or(|(_, at)| *at < claimed_before),
        };
        self.known.scrubs.keys().find(free).cloned()
    }

    fn is_over(&self, bucket: &str, epoch: u64) -> bool {
        self.over.get(bucket).is_some_and(|over| epoch <= *over)
    }

    /// A version that is the latest now, instead of one of the same name.
    fn put(&mut self, m: &ObjectStored) {
        self.completing.remove(&(m.bucket.clone(), m.upload.clone()));
        self.store((&m.bucket, m.epoch, &m.key), entry(m));
    }

    fn mark(&mut self, m: &MarkerStored) {
        let modified = m.modified.unwrap_or_default();
        let (version, object) = (m.version.clone(), m.object.clone());
        let entry = Entry { version, is_marker: true, modified, object, ..Entry::default() };
        self.store((&m.bucket, m.epoch, &m.key), entry);
    }

    fn store(&mut self, (bucket, epoch, key): (&str, u64, &str), entry: Entry) {
        if self.is_over(bucket, epoch) {
            return;
        }
        self.remove((bucket, epoch, key), &entry.version);
        self.count += 1;
        self.bytes += entry.size;
        let listing = self.objects.entry((bucket.to_owned(), epoch)).or_default();
        match listing.get_mut(key) {
            Some(versions) => {
                let before = std::mem::replace(&mut versions.latest, entry);
                versions.older.insert(0, before);
            }
            None => {
                listing.insert(key.to_owned(), Versions { latest: entry, older: vec![] });
            }
        }
    }

    /// A version that stays in its place. Facts of one key come in order, so that it is there.
    fn change(&mut self, m: &ObjectStored) {
        let Some(versions) =
            self.objects.get_mut(&(m.bucket.clone(), m.epoch)).and_then(|listing| listing.get_mut(&m.key))
        else {
            return;
        };
        let all = std::iter::once(&mut versions.latest).chain(&mut versions.older);
        if let Some(found) = all.into_iter().find(|found| found.version == m.version) {
            *found = entry(m);
        }
    }

    fn remove(&mut self, (bucket, epoch, key): (&str, u64, &str), version: &str) {
        let Some(listing) = self.objects.get_mut(&(bucket.to_owned(), epoch)) else { return };
        let Some(versions) = listing.get_mut(key) else { return };
        let removed = if versions.latest.version == version {
            if versions.older.is_empty() {
                listing.remove(key).map(|versions| versions.latest)
            } else {
                let next = versions.older.remove(0);
                Some(std::mem::replace(&mut versions.latest, next))
            }
        } else {
            let at = versions.older.iter().position(|older| older.version == version);
            at.map(|at| versions.older.remove(at))
        };
        self.forget(removed);
    }

    fn forget(&mut self, before: Option<Entry>) {
        if let Some(before) = before {
            self.count = self.count.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(before.size);
        }
    }

    fn storage(&mut self, event: Storage, id: String, at: Timestamp) {
        let refusal = Refusal::of(event.any()).map_or(Ok(()), Err);
        self.answers.push_back((id, refusal));
        while self.answers.len() > ANSWERS_MAX {
            self.answers.pop_front();
        }
        match &event {
            Storage::BucketCreated(m) => {
                self.made.insert(m.bucket.clone(), at);
                // Earlier epochs are over, whichever stream was read first.
                self.end(&m.bucket, m.epoch.saturating_sub(1));
            }
            Storage::BucketDeleted(m) => {
                self.made.remove(&m.bucket);
                let epoch = self.known.buckets.get(&m.bucket).map_or(0, |b| b.epoch);
                self.end(&m.bucket, epoch);
            }
            _ => {}
        }
        self.known.take(event);
    }

    fn end(&mut self, bucket: &str, epoch: u64) {
        let over = self.over.entry(bucket.to_owned()).or_default();
        *over = (*over).max(epoch);
        let ended: Vec<_> =
            self.objects.range((bucket.to_owned(), 0)..=(bucket.to_owned(), epoch)).map(|(k, _)| k.clone()).collect();
        for key in ended {
            for (_, versions) in self.objects.remove(&key).unwrap_or_default() {
                versions.all().cloned().for_each(|entry| self.forget(Some(entry)));
            }
        }
        self.uploads.retain(|(b, _), upload| b != bucket || upload.started.epoch > epoch);
        let is_over = |ended: &UploadEnded| ended.object.as_ref().is_none_or(|object| object.epoch <= epoch);
        self.completing.retain(|(b, _), (ended, _)| b != bucket || !is_over(ended));
    }

    fn object(&mut self, event: Object, at: Timestamp) {
        match event {
            Object::ObjectStored(m) => self.put(&m),
            Object::MarkerStored(m) => self.mark(&m),
            Object::ObjectMoved(m) => {
                if let Some(now) = m.now {
                    self.change(&now);
                }
            }
            Object::ObjectTagged(m) => {
                if let Some(now) = m.now {
                    self.change(&now);
                }
            }
            Object::ObjectDeleted(m) => self.remove((&m.bucket, m.epoch, &m.key), &m.version),
            Object::UploadStarted(m) => {
                if !self.is_over(&m.bucket, m.epoch) {
                    self.uploads.insert((m.bucket.clone(), m.upload.clone()), Upload { started: m, at });
                }
            }
            Object::UploadEnded(m) => {
                let id = (m.bucket.clone(), m.upload.clone());
                self.uploads.remove(&id);
                let epoch = m.object.as_ref().map(|object| object.epoch);
                if epoch.is_some_and(|epoch| !self.is_over(&m.bucket, epoch)) {
                    self.completing.insert(id, (m, at));
                }
            }
            Object::UploadDropped(m) => {
                self.completing.remove(&(m.bucket, m.upload));
            }
            Object::PartStored(_) => {}
            Object::ScrubClaimed(m) => {
                self.scrubs.entry((m.owner, m.scrub)).or_default().claimed = Some((m.process, at));
            }
            Object::ScrubEnded(m) => {
                let key = (m.owner.clone(), m.scrub.clone());
                self.scrubs.entry(key).or_default().ended = Some(m);
                if self.scrubs.len() > SCRUBS_MAX {
                    let oldest = self.scrubs.iter().filter(|(_, s)| s.ended.is_some());
                    let oldest =
                        oldest.min_by_key(|(_, s)| s.claimed.as_ref().map(|(_, at)| *at)).map(|(k, _)| k.clone());
                    if let Some(key) = oldest {
                        self.scrubs.remove(&key);
                        self.known.scrubs.remove(&key);
                    }
                }
            }
        }
    }
}

fn entry(m: &ObjectStored) -> Entry {
    Entry {
        version: m.version.clone(),
        is_marker: false,
        size: m.size,
        etag: m.etag.clone(),
        modified: m.modified.unwrap_or_default(),
        object: m.object.clone(),
        master_key: m.layout.as_ref().map(|l| l.master_key.clone()).unwrap_or_default(),
    }
}

impl Projector for Catalogue {
    fn apply(&mut self, fact: &Stored) -> Vec<Derived> {
        if fact.stream == "STORAGE" {
            if let Some(event) = event::<Storage>(fact) {
                let answered = fact.cause.as_ref().map(|c| c.id.clone()).unwrap_or_default();
                self.storage(event, answered, fact.time);
            }
            self.storage_position = fact.sequence;
        } else {
            if let Some(event) = event::<Object>(fact) {
                self.object(event, fact.time);
            }
            self.object_position = fact.sequence;
        }
        vec![]
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::object::{ObjectDeleted, ObjectMoved};

    use super::*;

    fn stored(version: &str, size: u64) -> Object {
        let (bucket, key) = ("b".to_owned(), "k".to_owned());
        ObjectStored { bucket, key, epoch: 1, size, version: version.into(), ..ObjectStored::default() }.into()
    }

    fn names(catalogue: &Catalogue) -> Vec<String> {
        let versions = catalogue.listing("b", 1).and_then(|listing| listing.get("k"));
        versions.into_iter().flat_map(Versions::all).map(|entry| format!("{}:{}", entry.version, entry.size)).collect()
    }

    #[test]
    fn a_listing_has_each_version_once_the_latest_first() {
        let mut catalogue = Catalogue::default();
        let mut take = |fact: Object, expected: &[&str]| {
            catalogue.object(fact, Timestamp::from_millis(1));
            assert_eq!(names(&catalogue), expected);
            let sizes: u64 = expected.iter().map(|name| name.split(':').nth(1).unwrap().parse::<u64>().unwrap()).sum();
            assert_eq!((catalogue.count, catalogue.bytes), (expected.len() as u64, sizes));
        };
        let marker = |version: &str| -> Object {
            let (bucket, key) = ("b".to_owned(), "k".to_owned());
            MarkerStored { bucket, key, epoch: 1, version: version.into(), ..MarkerStored::default() }.into()
        };
        let deleted = |version: &str| -> Object {
            let (bucket, key) = ("b".to_owned(), "k".to_owned());
            ObjectDeleted { bucket, key, epoch: 1, version: version.into(), ..ObjectDeleted::default() }.into()
        };
        take(stored("", 1), &[":1"]);
        take(stored("", 2), &[":2"]);
        take(stored("v1", 3), &["v1:3", ":2"]);
        let moved = ObjectStored { bucket: "b".into(), key: "k".into(), epoch: 1, size: 2, ..ObjectStored::default() };
        let moved = ObjectStored { etag: "moved".into(), ..moved };
        take(ObjectMoved { now: Some(moved), ..ObjectMoved::default() }.into(), &["v1:3", ":2"]);
        take(marker("v2"), &["v2:0", "v1:3", ":2"]);
        take(marker(""), &[":0", "v2:0", "v1:3"]);
        take(deleted("v1"), &[":0", "v2:0"]);
        take(deleted(""), &["v2:0"]);
        take(deleted("nothing"), &["v2:0"]);
        take(deleted("v2"), &[]);
        take(deleted("v2"), &[]);
    }
}
