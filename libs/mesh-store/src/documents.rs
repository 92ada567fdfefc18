//! Documents, looked up by id and searched by indexed values.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{Answer, Applied, Written};

/// One document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Unique in its collection; not empty.
    pub id: String,
    /// Values it is searched by.
    pub indexes: BTreeMap<String, String>,
    /// Content; the store does not look inside.
    pub body: Bytes,
}

/// What to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Indexed values that a document must all have.
    pub equal: BTreeMap<String, String>,
    /// At most this many; 100 when 0, never more than 1,000.
    pub limit: usize,
    /// Where the page before ended; empty for the first.
    pub token: String,
}

impl Query {
    /// Documents of a page.
    pub(crate) fn page_size(&self) -> usize {
        match self.limit {
            0 => 100,
            limit => limit.min(1_000),
        }
    }
}

/// A page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Documents in order of id.
    pub documents: Vec<Document>,
    /// Token of the next page; empty when this is the last.
    pub next: String,
}

/// A collection of documents.
///
/// A page is consistent in itself; between two pages documents may come and go, but none that stays is listed twice
/// or left out.
pub trait Documents: Send + Sync {
    /// Stores a document whole, over the one of the same id.
    ///
    /// Fails with [`crate::Error::Full`] or [`crate::Error::TooLarge`] at the engine's limits.
    fn put<'a>(&'a self, applied: &'a Applied, document: Document) -> Answer<'a, Written>;

    /// Removes a document, if it is there.
    fn delete<'a>(&'a self, applied: &'a Applied, id: &'a str) -> Answer<'a, Written>;

    /// The document of an id.
    fn get<'a>(&'a self, id: &'a str) -> Answer<'a, Option<Document>>;

    /// A page of the documents that match, in order of id.
    fn list<'a>(&'a self, query: &'a Query) -> Answer<'a, Page>;

    /// Says that a fact has been applied whole: all its writes are done. Earlier facts of the stream change nothing
    /// from here on.
    fn advance<'a>(&'a self, applied: &'a Applied) -> Answer<'a, ()>;

    /// The last fact of a stream that has been applied whole; 0 when none has.
    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64>;
}
