//! Views in documents: each document is what the facts of one stream made of one thing. Batch by batch the documents that
//! a batch is about are read, its facts folded into them, and they are written again; nothing is held in memory in between.
//!
//! A document names the last fact that it holds, so that a fact that comes again changes nothing. The position of the
//! collection moves only from where this process knows it to be: a database that was emptied or restored meanwhile is read
//! into again from where it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use mesh_core::{Outgoing, Stored, query};
use mesh_proto::Timestamp;
use mesh_store::{Applied, Change, Document, Documents, Error, memory::DocumentLimits};
use tokio::sync::{broadcast, watch};

use crate::{
    internal,
    keep::{Keeping, Shelf, leave_out},
    mesh::Mesh,
};

/// Bytes of the largest document: what MongoDB takes, with room for what it adds.
const DOCUMENT_BYTES_MAX: usize = 15 << 20;
/// How long facts wait to be applied together, milliseconds: a question right after a decision waits for them.
const GATHER_MS: u64 = 10;
/// Nothing ever has to be removed.
const SWEEP_MS: i64 = 3_600_000;
/// Batches of changes that somebody who follows a document may be behind; then the document is looked at again.
const CHANGES_MAX: usize = 64;
/// How long a question waits for the documents to hold what was decided before it was asked.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Documents that hold what one stream says, and how far they are. Cheap to clone.
#[derive(Clone)]
pub struct Kept {
    /// What they are of, for people: "intents".
    what: &'static str,
    /// Where they are asked for.
    service: &'static str,
    stream: &'static str,
    documents: Arc<dyn Documents>,
    /// Facts up to here are in the documents.
    reached: Arc<watch::Sender<u64>>,
    /// The position that the database was brought to, as far as this process knows.
    advanced: Arc<AtomicU64>,
    /// Ids of the documents that were changed.
    changed: broadcast::Sender<Arc<BTreeSet<String>>>,
}

impl Kept {
    /// The documents of a name, where the configuration says: `documents_url`, unless the service has a URL of its own.
    /// `None` if that is in memory, where a view holds what it shows. `what` says in errors what they are of.
    ///
    /// # Errors
    /// A URL that cannot be used for documents.
    pub fn open(
        mesh: &Mesh,
        (name, what): (&str, &'static str),
        own: &str,
        stream: &'static str,
    ) -> anyhow::Result<Option<Self>> {
        let limits = DocumentLimits { body_bytes_max: DOCUMENT_BYTES_MAX, ..DocumentLimits::default() };
        let documents = mesh.documents(name, own, limits)?;
        Ok(documents.is_remote().then(|| Self::new(mesh.inner.name, what, stream, documents)))
    }

    fn new(service: &'static str, what: &'static str, stream: &'static str, documents: Arc<dyn Documents>) -> Self {
        let changed = broadcast::Sender::new(CHANGES_MAX);
        Self { what, service, stream, documents, reached: Arc::default(), advanced: Arc::default(), changed }
    }

    /// Shows changes to those who follow another collection too: one thing may have a document in each.
    #[must_use]
    pub fn shown_with(self, other: &Self) -> Self {
        Self { changed: other.changed.clone(), ..self }
    }

    /// The documents.
    pub fn documents(&self) -> &dyn Documents {
        &*self.documents
    }

    /// Ids of what is changed from now on, batch by batch.
    pub fn changes(&self) -> broadcast::Receiver<Arc<BTreeSet<String>>> {
        self.changed.subscribe()
    }

    /// The position that the database was brought to, as far as this process knows.
    pub fn advanced(&self) -> u64 {
        self.advanced.load(Relaxed)
    }

    /// Asks the database for its position, and goes on from there.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn position(&self) -> Result<u64, Error> {
        let position = self.documents.position(self.stream).await?;
        self.reached.send_replace(position);
        self.advanced.store(position, Relaxed);
        Ok(position)
    }

    /// Fails if the database has lost what it was brought to: what follows would be folded on nothing.
    ///
    /// # Errors
    /// Those of the store, and that.
    pub async fn check(&self) -> Result<(), Error> {
        let (position, advanced) = (self.documents.position(self.stream).await?, self.advanced());
        if position >= advanced {
            return Ok(());
        }
        let source = format!("{} at {position} of {} were at {advanced}", self.what, self.stream).into();
        Err(Error::Engine { operation: "go on from what was written", source })
    }

    /// Writes what facts up to this one changed, and advances. What the store will never take is logged and left out.
    ///
    /// # Errors
    /// Those that trying again may help: the store does not answer, or lost what it was brought to.
    pub async fn write(&self, changes: Vec<(Applied, Change)>, through: u64) -> Result<(), Error> {
        let ids = changes.iter().map(|(_, change)| change.id().to_owned()).collect();
        leave_out(self.documents.write(changes).await, self.what, through)?;
        self.reached.send_replace(through);
        let _nobody_follows = self.changed.send(Arc::new(ids));
        self.documents.advance(self.advanced(), &Applied::new(self.stream, through)).await?;
        self.advanced.store(through, Relaxed);
        Ok(())
    }

    /// Waits until the documents hold the facts up to this one: what was decided when a question was asked.
    ///
    /// # Errors
    /// Unavailable if they do not in time, have lost what they held, or the database does not answer.
    pub async fn current(&self, decided: u64) -> Result<(), query::Error> {
        let mut reached = self.reached.subscribe();
        let there = reached.wait_for(|reached| *reached >= decided);
        let is_there = tokio::time::timeout(ANSWER_LIMIT, there).await.is_ok();
        let advanced = self.advanced();
        let position =
            self.documents.position(self.stream).await.map_err(|error| unanswered(error.into(), self.what))?;
        if is_there && position >= advanced {
            return Ok(());
        }
        let hint = format!("ask again; /readyz?verbose of {} says how far they are", self.service);
        Err(query::Error::unavailable(format!("the documents of {} are behind what was decided", self.what), hint))
    }

    /// The error of a question that the database did not answer.
    pub fn unanswered(&self, error: impl Into<anyhow::Error>) -> query::Error {
        unanswered(error.into(), self.what)
    }

    /// Keeps the stream in the documents until the process stops.
    pub fn follow<P: Projection>(&self, mesh: &Mesh, projection: P) {
        mesh.keep(Keeping::in_documents(self.what, self.stream), Folded { kept: self.clone(), projection });
    }
}

/// The error of a question about these things that their database did not answer.
pub fn unanswered(error: anyhow::Error, what: &str) -> query::Error {
    match error.downcast_ref::<Error>() {
        Some(Error::Engine { .. }) => {
            tracing::warn!(error = &*error as &dyn std::error::Error, store = what, "question unanswered");
            query::Error::unavailable(
                format!("the database of {what} does not answer, or has lost something"),
                "ask again",
            )
        }
        _ => internal(error),
    }
}

impl Keeping {
    /// A whole stream in documents, of which nothing is ever over.
    pub fn in_documents(name: &'static str, stream: &'static str) -> Self {
        Self { name, stream, window_ms: 0, newest_max: u64::MAX, gather_ms: GATHER_MS, sweep_ms: SWEEP_MS }
    }
}

/// What a document holds besides its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Values that it is searched by.
    pub indexes: BTreeMap<String, String>,
    /// What it says.
    pub body: Bytes,
}

/// How the facts of a stream become documents.
pub trait Projection: Send + Sync + 'static {
    /// A fact of the stream.
    type Fact: Send + Sync;
    /// What a document holds, unpacked. Without a document, the entry that has no facts.
    type Entry: Send + Sync;

    /// A message's fact, and the ids of the documents that it is about; `None` if it leaves nothing in any.
    fn fact(&self, stored: &Stored) -> Option<(Vec<String>, Self::Fact)>;

    /// Unpacks the document of an id, or makes the entry of one that is not there.
    ///
    /// # Errors
    /// A document that was written by something else: it is logged, and left as it is.
    fn entry(&self, id: &str, body: Option<&Bytes>) -> anyhow::Result<Self::Entry>;

    /// Takes in a fact. Returns what is to be published before the entry is written; `None` if the entry stays as it is,
    /// because it holds the fact already or the fact says nothing about it.
    fn fold(&self, entry: &mut Self::Entry, stored: &Stored, fact: &Self::Fact) -> Option<Vec<Outgoing>>;

    /// Packs an entry; `None` removes its document.
    ///
    /// # Errors
    /// An entry that cannot be written: it is logged, and its document stays as it is.
    fn content(&self, id: &str, entry: &Self::Entry) -> anyhow::Result<Option<Content>>;

    /// Reads the entries of these ids. What cannot be read is logged and left out.
    ///
    /// # Errors
    /// Those of the store.
    fn entries(
        &self,
        kept: &Kept,
        ids: &BTreeSet<String>,
    ) -> impl Future<Output = Result<BTreeMap<String, Self::Entry>, Error>> + Send {
        async move {
            let found = kept.documents().get_many(ids).await?;
            let found: BTreeMap<String, Bytes> = found.into_iter().map(|found| (found.id, found.body)).collect();
            let entry = |id: &String| match self.entry(id, found.get(id)) {
                Ok(entry) => Some((id.clone(), entry)),
                Err(error) => {
                    unreadable(&error, id);
                    None
                }
            };
            Ok(ids.iter().filter_map(entry).collect())
        }
    }

    /// Publishes what a batch up to this message leads to, before it is written: after a crash in between, it is published
    /// again.
    ///
    /// # Errors
    /// If trying again may help.
    fn publish(&self, messages: Vec<Outgoing>, through: u64) -> impl Future<Output = Result<(), Error>> + Send {
        debug_assert!(messages.is_empty(), "nothing is derived up to {through}, or it is published");
        std::future::ready(Ok(()))
    }

    /// The documents are at this position, and go on from there.
    fn begin(&self, position: u64) -> impl Future<Output = ()> + Send {
        let _ = position;
        std::future::ready(())
    }
}

/// Logs that a document is left as it is.
pub fn unreadable(error: &anyhow::Error, id: &str) {
    let error: &dyn std::error::Error = error.as_ref();
    tracing::error!(error, id, "document left as it is; remove it, and restart");
}

/// A fact as it was stored, what it is of, and what it says.
type Read<'a, P> = (&'a Arc<Stored>, (Vec<String>, <P as Projection>::Fact));

struct Folded<P> {
    kept: Kept,
    projection: P,
}

impl<P: Projection> Shelf for Folded<P> {
    async fn apply(&self, messages: &[Arc<Stored>]) -> Result<(), Error> {
        let Some(newest) = messages.last() else { return Ok(()) };
        self.kept.check().await?;
        let facts = messages.iter().filter_map(|stored| Some((stored, self.projection.fact(stored)?)));
        let facts: Vec<Read<'_, P>> = facts.collect();
        let ids = facts.iter().flat_map(|(_, (ids, _))| ids.iter().cloned()).collect();
        let mut entries = self.projection.entries(&self.kept, &ids).await?;
        let (mut outgoing, mut folded) = (vec![], BTreeMap::new());
        for (stored, (ids, fact)) in &facts {
            for id in ids {
                let Some(entry) = entries.get_mut(id) else { continue };
                if let Some(derived) = self.projection.fold(entry, stored, fact) {
                    folded.insert(id.clone(), stored.sequence);
                    outgoing.extend(derived);
                }
            }
        }
        self.projection.publish(outgoing, newest.sequence).await?;
        let mut changes = vec![];
        for (id, sequence) in folded {
            let Some(entry) = entries.get(&id) else { continue };
            let change = match self.projection.content(&id, entry) {
                Ok(Some(Content { indexes, body })) => Change::Put(Document { id, indexes, body }),
                Ok(None) => Change::Delete(id),
                Err(error) => {
                    unreadable(&error, &id);
                    continue;
                }
            };
            changes.push((Applied::new(self.kept.stream, sequence), change));
        }
        self.kept.write(changes, newest.sequence).await
    }

    async fn position(&self) -> Result<u64, Error> {
        let position = self.kept.position().await?;
        self.projection.begin(position).await;
        Ok(position)
    }

    async fn sweep(&self, _: Timestamp) -> Result<(), Error> {
        Ok(())
    }
}
