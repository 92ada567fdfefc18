//! Intents in documents: each is the fold of its facts, read from `INTENT`, and a second document of the same id of what its
//! targets achieved, read from `OBSERVATION`. Reports are derived on the way: they are published before the documents that
//! follow from the same facts are written, so that none is left out. Documents that were lost are made again, without
//! reports that are published already.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use mesh_core::{Derived, Outgoing, Stored};
use mesh_kit::{Decided, Keeping, Mesh, Shelf, outgoing};
use mesh_proto::{Event as _, EventSet as _, Timestamp, deciders::intents::Fact, observation::TargetObserved};
use mesh_store::{Applied, Change, Document, Documents, Error, memory::DocumentLimits};
use tokio::sync::{broadcast, watch};

use crate::domain::{
    Intents,
    view::{Kept, document_id},
};

/// Stream of the facts.
const INTENT: &str = "INTENT";
/// Bytes of the largest document: what MongoDB takes, with room for what it adds.
const DOCUMENT_BYTES_MAX: usize = 15 << 20;
/// How long facts wait to be applied together, milliseconds: a question right after a decision waits for them.
const GATHER_MS: u64 = 10;
/// Nothing ever has to be removed.
const SWEEP_MS: i64 = 3_600_000;
/// Batches of changes that somebody who follows an intent may be behind; then the intent is looked at again.
const CHANGES_MAX: usize = 64;
/// How often it is looked whether the intents are there whose observations wait.
const INTENTS_EVERY: Duration = Duration::from_millis(100);
/// How long a question waits for the documents to hold what was decided before it was asked.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The documents of intents. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Stores {
    /// By `<owner>/<id>`, the fold of its facts.
    pub(crate) intents: Arc<dyn Documents>,
    /// By the same id, what its targets achieved.
    achieved: Arc<dyn Documents>,
    /// Facts up to here are in the documents.
    reached: Arc<watch::Sender<u64>>,
    /// The position that they were brought to.
    advanced: Arc<AtomicU64>,
    /// Ids of the documents that were changed.
    changed: broadcast::Sender<Arc<BTreeSet<String>>>,
}

impl Stores {
    /// Where the configuration says that documents rest; `None` if that is in memory, where the view holds them.
    ///
    /// # Errors
    /// A URL that cannot be used for documents.
    pub(crate) fn open(mesh: &Mesh, own: &str) -> anyhow::Result<Option<Self>> {
        let limits = DocumentLimits { body_bytes_max: DOCUMENT_BYTES_MAX, ..DocumentLimits::default() };
        let intents = mesh.documents("intents", own, limits)?;
        let achieved = mesh.documents("intents-achieved", own, limits)?;
        let stores = Self {
            intents,
            achieved,
            reached: Arc::new(watch::Sender::new(0)),
            advanced: Arc::default(),
            changed: broadcast::Sender::new(CHANGES_MAX),
        };
        Ok(stores.intents.is_remote().then_some(stores))
    }

    /// Follows the streams into the documents until the process stops.
    ///
    /// # Errors
    /// When the bus is closed.
    pub(crate) async fn keep(&self, mesh: &Mesh, reported: Timestamp) -> anyhow::Result<()> {
        for (name, stream) in [("intents", INTENT), ("achieved values", TargetObserved::STREAM)] {
            let log = mesh.bus().log(stream);
            let last = log.last_sequence().await.with_context(|| format!("read end of {stream}"))?;
            let first = log.since(reported).await.with_context(|| format!("read {stream}"))?;
            let of = Publishing {
                mesh: mesh.clone(),
                stream,
                told: AtomicU64::new(0),
                told_before: first.map_or(last, |first| first.sequence.saturating_sub(1)),
                is_known: AtomicU64::new(0),
            };
            let keeping =
                Keeping { name, stream, window_ms: 0, newest_max: u64::MAX, gather_ms: GATHER_MS, sweep_ms: SWEEP_MS };
            match stream {
                INTENT => mesh.keep(keeping, FactShelf { stores: self.clone(), reports: of }),
                _ => mesh.keep(
                    keeping,
                    AchievedShelf {
                        stores: self.clone(),
                        reports: of,
                        advanced: AtomicU64::new(0),
                        intents_end: AtomicU64::new(0),
                    },
                ),
            }
        }
        Ok(())
    }

    /// Waits until the documents hold what had been decided when it was called. False if they do not in time, or have lost
    /// what they held.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn are_current(&self, decided: &Decided<Intents>) -> anyhow::Result<bool> {
        let position = decided.position();
        let mut reached = self.reached.subscribe();
        let is_there =
            tokio::time::timeout(ANSWER_LIMIT, reached.wait_for(|reached| *reached >= position)).await.is_ok();
        let advanced = self.advanced.load(Relaxed);
        Ok(is_there && self.intents.position(INTENT).await? >= advanced)
    }

    /// What is changed from now on.
    pub(crate) fn changes(&self) -> broadcast::Receiver<Arc<BTreeSet<String>>> {
        self.changed.subscribe()
    }

    /// An intent as its documents hold it; one that does not exist if there are none.
    ///
    /// # Errors
    /// Those of the store; a document that cannot be read.
    pub(crate) async fn get(&self, id: &str) -> anyhow::Result<Kept> {
        let facts = self.intents.get(id).await?;
        let achieved = self.achieved.get(id).await?;
        let body = |found: &Option<Document>| found.as_ref().map(|document| document.body.clone());
        Ok(Kept::read(id, body(&facts).as_ref(), body(&achieved).as_ref())?)
    }

    /// The intents of these documents, in their order, with what they achieved.
    ///
    /// # Errors
    /// Those of the store; a document that cannot be read.
    pub(crate) async fn with_achieved(&self, documents: Vec<Document>) -> anyhow::Result<Vec<Kept>> {
        let ids = documents.iter().map(|document| document.id.clone()).collect();
        let achieved = by_id(self.achieved.get_many(&ids).await?);
        let read = |document: Document| {
            let achieved = achieved.get(&document.id).map(|found| &found.body);
            Ok(Kept::read(&document.id, Some(&document.body), achieved)?)
        };
        documents.into_iter().map(read).collect()
    }

    /// Fails if a store has lost what it was brought to: what follows would be folded on nothing.
    async fn check(&self, store: &dyn Documents, stream: &str, advanced: u64) -> Result<(), Error> {
        let position = store.position(stream).await?;
        if position >= advanced {
            return Ok(());
        }
        let source = format!("documents at {position} of {stream} were at {advanced}").into();
        Err(Error::Engine { operation: "go on from what was written", source })
    }

    /// Intents by id; those that are not there yet without content. What cannot be read is logged and left out.
    async fn read(&self, ids: &BTreeSet<String>) -> Result<BTreeMap<String, Kept>, Error> {
        let facts = by_id(self.intents.get_many(ids).await?);
        let achieved = by_id(self.achieved.get_many(ids).await?);
        let body = |of: &BTreeMap<String, Document>, id: &String| of.get(id).map(|document| document.body.clone());
        let read =
            ids.iter().filter_map(|id| match Kept::read(id, body(&facts, id).as_ref(), body(&achieved, id).as_ref()) {
                Ok(kept) => Some((id.clone(), kept)),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "an intent is left as its document is; remove it, and restart");
                    None
                }
            });
        Ok(read.collect())
    }
}

fn by_id(documents: Vec<Document>) -> BTreeMap<String, Document> {
    documents.into_iter().map(|document| (document.id.clone(), document)).collect()
}

/// Publishes the reports of one stream's messages, each once for as long as this process lives.
struct Publishing {
    mesh: Mesh,
    stream: &'static str,
    /// The reports of messages up to here are published.
    told: AtomicU64,
    /// The same, for documents that say nothing about it because there are none.
    told_before: u64,
    /// 1 once `told` is known.
    is_known: AtomicU64,
}

impl Publishing {
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

    fn applied(&self, sequence: u64) -> Applied {
        Applied::new(self.stream, sequence)
    }
}

/// Writes documents; what the store will never take is left out, with a line in the log.
async fn write(store: &dyn Documents, changes: Vec<(Applied, Change)>, sequence: u64) -> Result<(), Error> {
    match store.write(changes).await {
        Err(error @ Error::Engine { .. }) => Err(error),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(sequence, error, "intents up to this fact refused by their store");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

struct FactShelf {
    stores: Stores,
    reports: Publishing,
}

impl Shelf for FactShelf {
    async fn apply(&self, messages: &[Arc<Stored>]) -> Result<(), Error> {
        let Some(newest) = messages.last() else { return Ok(()) };
        self.stores.check(&*self.stores.intents, INTENT, self.stores.advanced.load(Relaxed)).await?;
        let facts = messages.iter().filter_map(|stored| Some((stored, fact(stored)?)));
        let facts: Vec<(&Arc<Stored>, (String, Fact))> = facts.collect();
        let ids = facts.iter().map(|(_, (id, _))| id.clone()).collect();
        let mut kept = self.stores.read(&ids).await?;
        let (mut reports, mut folded) = (vec![], BTreeMap::new());
        for (stored, (id, fact)) in &facts {
            let Some(kept) = kept.get_mut(id) else { continue };
            if let Some(report) = kept.fold(stored, fact) {
                folded.insert(id.clone(), stored.sequence);
                reports.extend(report.and_then(|report| self.reports.message(&report, stored)));
            }
        }
        self.reports.publish(reports, newest.sequence).await?;
        let mut changes = vec![];
        for (id, sequence) in &folded {
            let Some(kept) = kept.get(id) else { continue };
            let (indexes, body) = kept.facts().map_err(|error| Error::Invalid(error.to_string()))?;
            changes.push((self.reports.applied(*sequence), Change::Put(Document { id: id.clone(), indexes, body })));
        }
        write(&*self.stores.intents, changes, newest.sequence).await?;
        self.stores.reached.send_replace(newest.sequence);
        let _ = self.stores.changed.send(Arc::new(folded.into_keys().collect()));
        self.stores.intents.advance(&self.reports.applied(newest.sequence)).await?;
        self.stores.advanced.store(newest.sequence, Relaxed);
        Ok(())
    }

    async fn position(&self) -> Result<u64, Error> {
        let position = self.stores.intents.position(INTENT).await?;
        self.reports.begin(position);
        self.stores.reached.send_replace(position);
        self.stores.advanced.store(position, Relaxed);
        Ok(position)
    }

    async fn sweep(&self, _: Timestamp) -> Result<(), Error> {
        Ok(())
    }
}

/// The document that a message of `INTENT` is of, and the fact.
fn fact(stored: &Stored) -> Option<(String, Fact)> {
    let mut key = stored.subject.split('.').skip(3);
    let id = document_id(key.next()?, key.next()?);
    match stored.protobuf().and_then(|body| Fact::decode(&stored.message, &body)) {
        Ok(fact) => Some((id, fact)),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(sequence = stored.sequence, error, "fact undecodable");
            None
        }
    }
}

struct AchievedShelf {
    stores: Stores,
    reports: Publishing,
    /// The position that the documents were brought to.
    advanced: AtomicU64,
    /// End of `INTENT` when it was last looked: what is observed is of the intents that there are.
    intents_end: AtomicU64,
}

impl AchievedShelf {
    /// Waits until the intents are there whose observations are to be read.
    async fn intents(&self) -> Result<(), Error> {
        let stopping = self.reports.mesh.stopping();
        while self.stores.intents.position(INTENT).await? < self.intents_end.load(Relaxed) {
            tokio::select! {
                () = tokio::time::sleep(INTENTS_EVERY) => {}
                () = stopping.cancelled() => {
                    return Err(Error::Engine { operation: "wait for intents", source: "the process stops".into() });
                }
            }
        }
        Ok(())
    }
}

impl Shelf for AchievedShelf {
    async fn apply(&self, messages: &[Arc<Stored>]) -> Result<(), Error> {
        let Some(newest) = messages.last() else { return Ok(()) };
        self.stores.check(&*self.stores.achieved, TargetObserved::STREAM, self.advanced.load(Relaxed)).await?;
        self.intents().await?;
        let observed = messages.iter().filter_map(|stored| Some((stored, stored.event::<TargetObserved>().ok()??)));
        let observed: Vec<(&Arc<Stored>, TargetObserved)> = observed.collect();
        let id = |observation: &TargetObserved| document_id(&observation.owner, &observation.intent_id);
        let mut kept = self.stores.read(&observed.iter().map(|(_, observation)| id(observation)).collect()).await?;
        let (mut reports, mut news) = (vec![], BTreeMap::new());
        for (stored, observation) in &observed {
            let id = id(observation);
            let Some(report) = kept.get_mut(&id).and_then(|kept| kept.observe(stored, observation)) else { continue };
            news.insert(id, stored.sequence);
            reports.extend(self.reports.message(&report, stored));
        }
        self.reports.publish(reports, newest.sequence).await?;
        let changes = news.iter().filter_map(|(id, sequence)| {
            let document = Document { id: id.clone(), body: kept.get(id)?.achieved(), ..Document::default() };
            Some((self.reports.applied(*sequence), Change::Put(document)))
        });
        write(&*self.stores.achieved, changes.collect(), newest.sequence).await?;
        let _ = self.stores.changed.send(Arc::new(news.into_keys().collect()));
        self.stores.achieved.advance(&self.reports.applied(newest.sequence)).await?;
        self.advanced.store(newest.sequence, Relaxed);
        Ok(())
    }

    async fn position(&self) -> Result<u64, Error> {
        let position = self.stores.achieved.position(TargetObserved::STREAM).await?;
        self.reports.begin(position);
        self.advanced.store(position, Relaxed);
        if let Ok(end) = self.reports.mesh.bus().log(INTENT).last_sequence().await {
            self.intents_end.store(end, Relaxed);
        }
        Ok(position)
    }

    async fn sweep(&self, _: Timestamp) -> Result<(), Error> {
        Ok(())
    }
}
