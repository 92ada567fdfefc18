//! Documents in ordered maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use bytes::Bytes;
use prost::Message as _;

use super::{Positions, Shared, first_refusal};
use crate::{Answer, Applied, Change, Document, Error, Page, Query, Written, documents::token_after};

/// Limits of a collection of documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DocumentLimits {
    /// Documents.
    pub documents_max: usize,
    /// Bytes of one document's body.
    pub body_bytes_max: usize,
}

impl Default for DocumentLimits {
    /// 100,000 documents of at most 1 MiB.
    fn default() -> Self {
        Self { documents_max: 100_000, body_bytes_max: 1 << 20 }
    }
}

/// A collection of documents. A new document beyond the limit is refused; none is ever dropped to make room.
#[derive(Clone, Debug, PartialEq)]
pub struct Documents {
    limits: DocumentLimits,
    entries: BTreeMap<String, Entry>,
    index: BTreeMap<(String, String), BTreeSet<String>>,
    positions: Positions,
    /// Ids of the entries without a document.
    deleted: BTreeSet<String>,
}

/// A document with the last fact of each stream that it applied. A deleted one stays, empty, until the fact that
/// deleted it has been applied whole: its earlier facts may come again.
#[derive(Clone, Debug, Default, PartialEq)]
struct Entry {
    applied: BTreeMap<String, u64>,
    document: Option<Document>,
}

impl Documents {
    /// An empty collection.
    pub fn new(limits: DocumentLimits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            index: BTreeMap::new(),
            positions: Positions::default(),
            deleted: BTreeSet::new(),
        }
    }

    /// As [`crate::Documents::put`]; says whether it changed anything.
    pub fn put(&mut self, applied: &Applied, document: Document) -> Result<Written, Error> {
        if document.id.is_empty() {
            return Err(Error::Invalid("a document needs an id".into()));
        }
        if document.body.len() > self.limits.body_bytes_max {
            let (bytes, limit) = (document.body.len() as u64, self.limits.body_bytes_max as u64);
            return Err(Error::TooLarge { id: document.id, bytes, limit });
        }
        if self.has_applied(applied, &document.id) {
            return Ok(Written::Already);
        }
        let is_new = self.entries.get(&document.id).is_none_or(|e| e.document.is_none());
        if is_new && self.len() >= self.limits.documents_max {
            return Err(Error::Full { what: "the collection of documents", limit: self.limits.documents_max as u64 });
        }
        self.replace(applied, document.id.clone(), Some(document));
        Ok(Written::Stored)
    }

    /// As [`crate::Documents::delete`]; says whether it changed anything.
    pub fn delete(&mut self, applied: &Applied, id: &str) -> Written {
        if !self.entries.contains_key(id) || self.has_applied(applied, id) {
            return Written::Already;
        }
        self.replace(applied, id.to_owned(), None);
        Written::Stored
    }

    /// As [`crate::Documents::get`].
    pub fn get(&self, id: &str) -> Option<&Document> {
        self.entries.get(id)?.document.as_ref()
    }

    /// As [`crate::Documents::list`].
    pub fn list(&self, query: &Query) -> Result<Page, Error> {
        let size = query.page_size();
        // One more than a page, so that its end is known.
        let mut documents: Vec<Document> = self.matching(query)?.take(size + 1).cloned().collect();
        let more = documents.len() > size;
        documents.truncate(size);
        let next = match documents.last() {
            Some(last) if more => token_after(&last.id),
            _ => String::new(),
        };
        Ok(Page { documents, next })
    }

    /// As [`crate::Documents::count`].
    pub fn count(&self, query: &Query) -> Result<u64, Error> {
        Ok(self.matching(query)?.count() as u64)
    }

    fn matching<'a>(&'a self, query: &'a Query) -> Result<Box<dyn Iterator<Item = &'a Document> + 'a>, Error> {
        let after = query.begin()?.map_or(Bound::Unbounded, Bound::Excluded);
        let fits = |d: &&Document| {
            query.equal.iter().all(|(name, value)| d.indexes.get(name) == Some(value))
                && query.one_of.iter().all(|(name, values)| d.indexes.get(name).is_some_and(|v| values.contains(v)))
        };
        if query.equal.is_empty() {
            let entries = self.entries.range::<str, _>((after, Bound::Unbounded));
            return Ok(Box::new(entries.filter_map(|(_, e)| e.document.as_ref()).filter(fits)));
        }
        // The smallest set of candidates among the indexes asked for, then the rest by looking.
        let sets = query.equal.iter().map(|(k, v)| self.index.get(&(k.clone(), v.clone())));
        let smallest = sets.collect::<Option<Vec<_>>>().and_then(|s| s.into_iter().min_by_key(|s| s.len()));
        let Some(smallest) = smallest else { return Ok(Box::new(std::iter::empty())) };
        let ids = smallest.range::<str, _>((after, Bound::Unbounded));
        Ok(Box::new(ids.filter_map(|id| self.get(id)).filter(fits)))
    }

    /// As [`crate::Documents::advance`].
    ///
    /// # Errors
    /// [`Error::Engine`] if the position is before `from`.
    pub fn advance(&mut self, from: u64, applied: &Applied) -> Result<(), Error> {
        self.positions.advance(from, applied)?;
        let Self { entries, positions, deleted, .. } = self;
        deleted.retain(|id| {
            let wanted = entries.get(id).is_some_and(|e| e.applied.iter().any(|(s, n)| *n > positions.of(s)));
            if !wanted {
                entries.remove(id);
            }
            wanted
        });
        Ok(())
    }

    /// As [`crate::Documents::position`].
    pub fn position(&self, stream: &str) -> u64 {
        self.positions.of(stream)
    }

    /// How many documents there are.
    pub fn len(&self) -> usize {
        self.entries.len() - self.deleted.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything, as bytes.
    pub fn snapshot(&self) -> Bytes {
        let entries = self.entries.iter().map(|(id, entry)| snapshot::Entry {
            id: id.clone(),
            applied: entry.applied.clone(),
            indexes: entry.document.as_ref().map(|d| d.indexes.clone()).unwrap_or_default(),
            body: entry.document.as_ref().map(|d| d.body.clone()),
        });
        snapshot::Documents { entries: entries.collect(), positions: self.positions.0.clone() }.encode_to_vec().into()
    }

    /// What a snapshot holds. Limits apply to what is put from now on.
    ///
    /// # Errors
    /// [`Error::Snapshot`] if the bytes are not a snapshot.
    pub fn restore(bytes: &[u8], limits: DocumentLimits) -> Result<Self, Error> {
        let read = snapshot::Documents::decode(bytes).map_err(Error::Snapshot)?;
        let mut restored = Self::new(limits);
        for entry in read.entries {
            let snapshot::Entry { id, applied, indexes, body } = entry;
            let document = body.map(|body| Document { id: id.clone(), indexes, body });
            restored.set(id, Entry { applied, document });
        }
        restored.positions = Positions(read.positions);
        Ok(restored)
    }

    fn has_applied(&self, applied: &Applied, id: &str) -> bool {
        let entry = self.entries.get(id).and_then(|e| e.applied.get(&applied.stream));
        self.positions.covers(applied) || entry.is_some_and(|n| *n >= applied.sequence)
    }

    fn replace(&mut self, applied: &Applied, id: String, document: Option<Document>) {
        let mut all = self.entries.get(&id).map(|e| e.applied.clone()).unwrap_or_default();
        all.insert(applied.stream.clone(), applied.sequence);
        self.set(id, Entry { applied: all, document });
    }

    fn set(&mut self, id: String, entry: Entry) {
        match &entry.document {
            Some(document) => {
                self.deleted.remove(&id);
                for (name, value) in &document.indexes {
                    self.index.entry((name.clone(), value.clone())).or_default().insert(id.clone());
                }
            }
            None => {
                self.deleted.insert(id.clone());
            }
        }
        let new_indexes = entry.document.as_ref().map(|d| d.indexes.clone()).unwrap_or_default();
        let old = self.entries.insert(id.clone(), entry).and_then(|e| e.document);
        let Some(old) = old else { return };
        for pair in old.indexes.into_iter().filter(|(name, value)| new_indexes.get(name) != Some(value)) {
            if let Some(ids) = self.index.get_mut(&pair) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.index.remove(&pair);
                }
            }
        }
    }
}

mod snapshot {
    use std::collections::BTreeMap;

    use bytes::Bytes;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Documents {
        #[prost(message, repeated, tag = "1")]
        pub(super) entries: Vec<Entry>,
        #[prost(btree_map = "string, uint64", tag = "2")]
        pub(super) positions: BTreeMap<String, u64>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Entry {
        #[prost(string, tag = "1")]
        pub(super) id: String,
        #[prost(btree_map = "string, uint64", tag = "2")]
        pub(super) applied: BTreeMap<String, u64>,
        #[prost(btree_map = "string, string", tag = "3")]
        pub(super) indexes: BTreeMap<String, String>,
        /// Absent once deleted.
        #[prost(bytes = "bytes", optional, tag = "4")]
        pub(super) body: Option<Bytes>,
    }
}

impl crate::Documents for Shared<Documents> {
    fn write<'a>(&'a self, changes: Vec<(Applied, Change)>) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut documents = self.lock();
            first_refusal(changes.into_iter().map(|(applied, change)| match change {
                Change::Put(document) => documents.put(&applied, document).map(|_| ()),
                Change::Delete(id) => {
                    documents.delete(&applied, &id);
                    Ok(())
                }
            }))
        })
    }

    fn get<'a>(&'a self, id: &'a str) -> Answer<'a, Option<Document>> {
        Box::pin(async move { Ok(self.lock().get(id).cloned()) })
    }

    fn get_many<'a>(&'a self, ids: &'a BTreeSet<String>) -> Answer<'a, Vec<Document>> {
        Box::pin(async move {
            let documents = self.lock();
            Ok(ids.iter().filter_map(|id| documents.get(id).cloned()).collect())
        })
    }

    fn count<'a>(&'a self, query: &'a Query) -> Answer<'a, u64> {
        Box::pin(async move { self.lock().count(query) })
    }

    fn list<'a>(&'a self, query: &'a Query) -> Answer<'a, Page> {
        Box::pin(async move { self.lock().list(query) })
    }

    fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> Answer<'a, ()> {
        Box::pin(async move { self.lock().advance(from, applied) })
    }

    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64> {
        Box::pin(async move { Ok(self.lock().position(stream)) })
    }
}
