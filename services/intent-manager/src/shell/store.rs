//! Intents in documents: each is the fold of its facts, read from `INTENT`, and a second document of the same id of what its
//! targets achieved, read from `OBSERVATION`. Reports are derived on the way: they are published before the documents that
//! follow from the same facts are written, so that none is left out. Documents that were lost are made again, without
//! reports that are published already.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use mesh_core::{Derived, Outgoing, Stored};
use mesh_kit::{Content, Mesh, Projection, outgoing, unreadable};
use mesh_proto::{Event as _, EventSet as _, Timestamp, deciders::intents::Fact, observation::TargetObserved};
use mesh_store::{Document, Error};

use crate::domain::view::{Kept, document_id};

/// Stream of the facts.
const INTENT: &str = "INTENT";
/// How often it is looked whether the intents are there whose observations wait.
const INTENTS_EVERY: Duration = Duration::from_millis(100);

/// The documents of intents. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Stores {
    /// By `<owner>/<id>`, the fold of its facts.
    pub(crate) intents: mesh_kit::Kept,
    /// By the same id, what its targets achieved.
    achieved: mesh_kit::Kept,
}

impl Stores {
    /// Where the configuration says that documents rest; `None` if that is in memory, where the view holds them.
    ///
    /// # Errors
    /// A URL that cannot be used for documents.
    pub(crate) fn open(mesh: &Mesh, own: &str) -> anyhow::Result<Option<Self>> {
        let intents = mesh_kit::Kept::open(mesh, ("intents", "intents"), own, INTENT)?;
        let of_achieved = ("intents-achieved", "achieved values");
        let achieved = mesh_kit::Kept::open(mesh, of_achieved, own, TargetObserved::STREAM)?;
        Ok(intents.zip(achieved).map(|(intents, achieved)| Self { achieved: achieved.shown_with(&intents), intents }))
    }

    /// Follows the streams into the documents until the process stops.
    ///
    /// # Errors
    /// When the bus is closed.
    pub(crate) async fn keep(&self, mesh: &Mesh, reported: Timestamp) -> anyhow::Result<()> {
        let facts = Facts { stores: self.clone(), reports: Publishing::of(mesh, INTENT, reported).await? };
        self.intents.follow(mesh, facts);
        let observations = Observations {
            stores: self.clone(),
            reports: Publishing::of(mesh, TargetObserved::STREAM, reported).await?,
            intents_end: AtomicU64::new(0),
        };
        self.achieved.follow(mesh, observations);
        Ok(())
    }

    /// An intent as its documents hold it; one that does not exist if there are none.
    ///
    /// # Errors
    /// Those of the store; a document that cannot be read.
    pub(crate) async fn get(&self, id: &str) -> anyhow::Result<Kept> {
        let facts = self.intents.documents().get(id).await?;
        let achieved = self.achieved.documents().get(id).await?;
        let body = |found: &Option<Document>| found.as_ref().map(|document| document.body.clone());
        Ok(Kept::read(id, body(&facts).as_ref(), body(&achieved).as_ref())?)
    }

    /// The intents of these documents, in their order, with what they achieved.
    ///
    /// # Errors
    /// Those of the store; a document that cannot be read.
    pub(crate) async fn with_achieved(&self, documents: Vec<Document>) -> anyhow::Result<Vec<Kept>> {
        let ids = documents.iter().map(|document| document.id.clone()).collect();
        let achieved = by_id(self.achieved.documents().get_many(&ids).await?);
        let read = |document: Document| Ok(Kept::read(&document.id, Some(&document.body), achieved.get(&document.id))?);
        documents.into_iter().map(read).collect()
    }

    /// Intents by id; those that are not there yet without content. What cannot be read is logged and left out.
    async fn read(&self, ids: &BTreeSet<String>) -> Result<BTreeMap<String, Kept>, Error> {
        let facts = by_id(self.intents.documents().get_many(ids).await?);
        let achieved = by_id(self.achieved.documents().get_many(ids).await?);
        let read = ids.iter().filter_map(|id| match Kept::read(id, facts.get(id), achieved.get(id)) {
            Ok(kept) => Some((id.clone(), kept)),
            Err(error) => {
                unreadable(&error.into(), id);
                None
            }
        });
        Ok(read.collect())
    }
}

fn by_id(documents: Vec<Document>) -> BTreeMap<String, Bytes> {
    documents.into_iter().map(|document| (document.id, document.body)).collect()
}

/// Publishes the reports of one stream's messages, each once for as long as this process lives.
struct Publishing {
    mesh: Mesh,
    /// The reports of messages up to here are published.
    told: AtomicU64,
    /// The same, for documents that say nothing about it because there are none.
    told_before: u64,
    /// 1 once `told` is known.
    is_known: AtomicU64,
}

impl Publishing {
    /// Reports of this stream that were stored before `reported` are published.
    async fn of(mesh: &Mesh, stream: &'static str, reported: Timestamp) -> anyhow::Result<Self> {
        let log = mesh.bus().log(stream);
        let last = log.last_sequence().await.with_context(|| format!("read end of {stream}"))?;
        let first = log.since(reported).await.with_context(|| format!("read {stream}"))?;
        Ok(Self {
            mesh: mesh.clone(),
            told: AtomicU64::new(0),
            told_before: first.map_or(last, |first| first.sequence.saturating_sub(1)),
            is_known: AtomicU64::new(0),
        })
    }

    /// The documents are at this position. At first that says what is published: reports go before the documents.
    fn begin(&self, position: u64) {
        if self.is_known.swap(1, Relaxed) == 0 {
            self.told.store(if position > 0 { position } else { self.told_before }, Relaxed);
        }
    }

    /// The report as a message, unless it is published.
    fn message(&self, report: &Derived, cause: &Stored) -> Option<Outgoing> {
        if cause.sequence > self.told.load(Relaxed) { outgoing(report, Some(cause)) } else { None }
    }

    /// Publishes the reports of messages up to this one.
    async fn publish(&self, messages: Vec<Outgoing>, through: u64) -> Result<(), Error> {
        if !messages.is_empty() {
            let published = self.mesh.bus().publish_many(messages).await;
            published.map_err(|error| Error::Engine { operation: "publish reports", source: error.into() })?;
        }
        self.told.fetch_max(through, Relaxed);
        Ok(())
    }
}

struct Facts {
    stores: Stores,
    reports: Publishing,
}

impl Projection for Facts {
    type Fact = Fact;
    type Entry = Kept;

    fn fact(&self, stored: &Stored) -> Option<(Vec<String>, Fact)> {
        let mut key = stored.subject.split('.').skip(3);
        let id = document_id(key.next()?, key.next()?);
        match stored.protobuf().and_then(|body| Fact::decode(&stored.message, &body)) {
            Ok(fact) => Some((vec![id], fact)),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(sequence = stored.sequence, error, "fact undecodable");
                None
            }
        }
    }

    fn entry(&self, id: &str, body: Option<&Bytes>) -> anyhow::Result<Kept> {
        Ok(Kept::read(id, body, None)?)
    }

    async fn entries(&self, _: &mesh_kit::Kept, ids: &BTreeSet<String>) -> Result<BTreeMap<String, Kept>, Error> {
        self.stores.read(ids).await
    }

    fn fold(&self, entry: &mut Kept, stored: &Stored, fact: &Fact) -> Option<Vec<Outgoing>> {
        let report = entry.fold(stored, fact)?;
        Some(report.and_then(|report| self.reports.message(&report, stored)).into_iter().collect())
    }

    fn content(&self, _: &str, entry: &Kept) -> anyhow::Result<Option<Content>> {
        let (indexes, body) = entry.facts()?;
        Ok(Some(Content { indexes, body }))
    }

    async fn publish(&self, messages: Vec<Outgoing>, through: u64) -> Result<(), Error> {
        self.reports.publish(messages, through).await
    }

    async fn begin(&self, position: u64) {
        self.reports.begin(position);
    }
}

struct Observations {
    stores: Stores,
    reports: Publishing,
    /// End of `INTENT` when it was last looked: what is observed is of the intents that there are.
    intents_end: AtomicU64,
}

impl Projection for Observations {
    type Fact = TargetObserved;
    type Entry = Kept;

    fn fact(&self, stored: &Stored) -> Option<(Vec<String>, TargetObserved)> {
        let observation = stored.event::<TargetObserved>().ok()??;
        Some((vec![document_id(&observation.owner, &observation.intent_id)], observation))
    }

    fn entry(&self, id: &str, body: Option<&Bytes>) -> anyhow::Result<Kept> {
        Ok(Kept::read(id, None, body)?)
    }

    /// Waits until the intents are there whose observations are to be read.
    async fn entries(&self, _: &mesh_kit::Kept, ids: &BTreeSet<String>) -> Result<BTreeMap<String, Kept>, Error> {
        let stopping = self.reports.mesh.stopping();
        while self.stores.intents.documents().position(INTENT).await? < self.intents_end.load(Relaxed) {
            tokio::select! {
                () = tokio::time::sleep(INTENTS_EVERY) => {}
                () = stopping.cancelled() => {
                    return Err(Error::Engine { operation: "wait for intents", source: "the process stops".into() });
                }
            }
        }
        self.stores.read(ids).await
    }

    fn fold(&self, entry: &mut Kept, stored: &Stored, fact: &TargetObserved) -> Option<Vec<Outgoing>> {
        let report = entry.observe(stored, fact)?;
        Some(self.reports.message(&report, stored).into_iter().collect())
    }

    fn content(&self, _: &str, entry: &Kept) -> anyhow::Result<Option<Content>> {
        Ok(Some(Content { body: entry.achieved(), ..Content::default() }))
    }

    async fn publish(&self, messages: Vec<Outgoing>, through: u64) -> Result<(), Error> {
        self.reports.publish(messages, through).await
    }

    async fn begin(&self, position: u64) {
        self.reports.begin(position);
        if let Ok(end) = self.reports.mesh.bus().log(INTENT).last_sequence().await {
            self.intents_end.store(end, Relaxed);
        }
    }
}
