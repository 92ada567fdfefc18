//! Documents, looked up by id and searched by indexed values.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{Answer, Applied, Error};

/// What every page token begins with, so that arbitrary text is not taken for one.
const TOKEN: &str = "after:";

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

/// What a write does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Stores a document whole, over the one of the same id.
    Put(Document),
    /// Removes the document of this id, if it is there.
    Delete(String),
}

impl Change {
    /// The document it is of.
    pub fn id(&self) -> &str {
        match self {
            Self::Put(document) => &document.id,
            Self::Delete(id) => id,
        }
    }
}

/// What to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Indexed values that a document must all have.
    pub equal: BTreeMap<String, String>,
    /// Of each of these, a document must have one of the values.
    pub one_of: BTreeMap<String, BTreeSet<String>>,
    /// At most this many; 100 when 0, never more than 1,000.
    pub limit: usize,
    /// Where the page before ended; empty for the first.
    pub token: String,
}

impl Query {
    /// The same for what comes after the document of this id, whether that is there or not; all for an empty id.
    #[must_use]
    pub fn after(mut self, id: &str) -> Self {
        self.token = if id.is_empty() { String::new() } else { token_after(id) };
        self
    }

    /// Where the page before ended; `None` for the first.
    ///
    /// # Errors
    /// [`Error::Token`] for a token that no page ended with.
    pub(crate) fn begin(&self) -> Result<Option<&str>, Error> {
        match self.token.as_str() {
            "" => Ok(None),
            token => match token.strip_prefix(TOKEN) {
                Some(id) if !id.is_empty() => Ok(Some(id)),
                _ => Err(Error::Token(token.to_owned())),
            },
        }
    }

    /// Documents of a page.
    pub(crate) fn page_size(&self) -> usize {
        match self.limit {
            0 => 100,
            limit => limit.min(1_000),
        }
    }
}

/// The token of what comes after the document of an id.
pub(crate) fn token_after(id: &str) -> String {
    format!("{TOKEN}{id}")
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
    /// Applies changes, in order. A fact that has been applied to a document already, or a newer one, changes nothing.
    ///
    /// Fails with [`crate::Error::Invalid`] for a document without an id, and with [`crate::Error::Full`] or
    /// [`crate::Error::TooLarge`] at the engine's limits. Such a change is left out, the others are applied, and the
    /// error is that of the first one left out. After [`crate::Error::Engine`] any of them may have been applied: apply
    /// all of them again.
    fn write<'a>(&'a self, changes: Vec<(Applied, Change)>) -> Answer<'a, ()>;

    /// Stores one document; as [`write`](Self::write).
    fn put<'a>(&'a self, applied: &'a Applied, document: Document) -> Answer<'a, ()> {
        self.write(vec![(applied.clone(), Change::Put(document))])
    }

    /// Removes one document; as [`write`](Self::write).
    fn delete<'a>(&'a self, applied: &'a Applied, id: &'a str) -> Answer<'a, ()> {
        self.write(vec![(applied.clone(), Change::Delete(id.to_owned()))])
    }

    /// The document of an id.
    fn get<'a>(&'a self, id: &'a str) -> Answer<'a, Option<Document>>;

    /// The documents of these ids that are there, each once, in no particular order.
    fn get_many<'a>(&'a self, ids: &'a BTreeSet<String>) -> Answer<'a, Vec<Document>>;

    /// How many documents match from where the query begins, however long its pages are.
    fn count<'a>(&'a self, query: &'a Query) -> Answer<'a, u64>;

    /// A page of the documents that match, in order of id.
    fn list<'a>(&'a self, query: &'a Query) -> Answer<'a, Page>;

    /// Says that the facts after the position `from` up to this one have been applied whole: all their writes are done.
    /// It and earlier facts of the stream change nothing from here on. Answers once that is safe: a crash of the engine
    /// does not undo it. `from` is what [`position`](Self::position) answered, or what was last advanced to.
    ///
    /// Fails with [`crate::Error::Engine`], and moves nothing, if the engine's position is before `from`: it was emptied
    /// or restored meanwhile, and what was written before is gone. Read on from its position then.
    fn advance<'a>(&'a self, from: u64, applied: &'a Applied) -> Answer<'a, ()>;

    /// The last fact of a stream that has been applied whole; 0 when none has. Asks the engine: a database that was
    /// emptied or restored says so here, and takes from then on what its position does not cover.
    fn position<'a>(&'a self, stream: &'a str) -> Answer<'a, u64>;

    /// Is it a database, which is asked over a network? Then few large writes are better than many small ones, and
    /// nothing here grows with what it keeps.
    fn is_remote(&self) -> bool {
        false
    }
}
