//! Keeps published twins in the stores, read from `TWIN`: the newest of each as a document, to be listed, and its
//! versions as its history. A store that was away, or is new, catches up by itself.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::Context as _;
use mesh_core::Stored;
use mesh_kit::{Keeping, Mesh, Shelf, leave_out};
use mesh_proto::{
    Event as _, Timestamp,
    twin::{Twin, TwinChanged},
    workload::InstancePhase,
};
use mesh_store::{Applied, Change, Document, Documents, Entry, Error, History, Query, Version};
use prost::Message as _;

use crate::Config;

/// How often what is over is looked for, milliseconds.
const SWEEP_MS: i64 = 60_000;
/// What a removal applies instead of a fact.
const SWEEP: &str = "sweep";

/// Where published twins rest.
#[derive(Clone)]
pub(crate) struct Stores {
    /// Newest version of each twin, by `<kind>/<id>`.
    pub(crate) documents: Arc<dyn Documents>,
    /// Versions of each twin, by `<kind>/<id>`.
    pub(crate) history: Arc<dyn History>,
}

/// How far back twins are kept, milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    /// Versions in the history; 0 for ever.
    pub(crate) history_ms: i64,
    /// Twins of instances that ended.
    pub(crate) ended_ms: i64,
    /// Bytes of the history, if it is in memory.
    pub(crate) memory_bytes: Option<u64>,
}

impl Retention {
    /// A database keeps versions for a time of its own.
    pub(crate) fn new(config: &Config, remote: bool) -> Self {
        Self {
            history_ms: match remote {
                true => i64::try_from(config.history_keep_ms).unwrap_or(0),
                false => config.history_ms.into(),
            },
            ended_ms: config.ended_keep_ms.into(),
            memory_bytes: (!remote).then_some(config.history_bytes_max),
        }
    }

    /// The time before which versions are forgotten.
    pub(crate) fn oldest(&self, now: Timestamp) -> Timestamp {
        if self.history_ms == 0 { Timestamp::default() } else { now.plus_millis(-self.history_ms) }
    }

    /// What keeps more of the past.
    pub(crate) fn hint(&self) -> &'static str {
        match self.memory_bytes {
            Some(_) => "ask for a later time, or keep more with `history_ms` and `history_bytes_max`",
            None => "ask for a later time, or keep more with `history_keep_ms`",
        }
    }
}

/// A twin's key in the stores.
pub(crate) fn key(kind: &str, id: &str) -> String {
    format!("{kind}/{id}")
}

/// Messages of `TWIN` that are read at a start for what was published last: a twin that is not among them is published once
/// more, as it is.
const RESTORE_MAX: u64 = 100_000;
/// Messages of `TWIN` read at once.
const PAGE: usize = 1_000;
/// Bytes that a version takes at least in a store in memory.
const VERSION_BYTES: u64 = 128;

/// Twins as they were published last, of the newest part of `TWIN`.
pub(crate) async fn last_published(mesh: &Mesh) -> anyhow::Result<Vec<Twin>> {
    let subject = mesh_proto::contract().stream(TwinChanged::STREAM).map_or("", |stream| stream.subject.as_str());
    let log = mesh.bus().log(TwinChanged::STREAM);
    let last = log.last_sequence().await.context("read end of twins")?;
    let mut next = last.saturating_sub(RESTORE_MAX) + 1;
    let mut newest: BTreeMap<String, Twin> = BTreeMap::new();
    while next <= last {
        let found = log.read(subject, next, PAGE).await.context("read what was published last")?;
        let Some(end) = found.last() else { break };
        next = end.sequence + 1;
        for stored in found {
            if let Ok(Some(TwinChanged { twin: Some(twin), .. })) = stored.event::<TwinChanged>() {
                newest.insert(key(&twin.kind, &twin.id), twin);
            }
        }
    }
    Ok(newest.into_values().collect())
}

/// What is kept of `TWIN`: in memory or in databases.
pub(crate) fn keeping(keep: Retention, remote: bool) -> Keeping {
    Keeping {
        name: "twins",
        stream: TwinChanged::STREAM,
        window_ms: keep.history_ms,
        newest_max: keep.memory_bytes.map_or(u64::MAX, |bytes| bytes / VERSION_BYTES),
        // A database takes few large writes better than many small ones.
        gather_ms: if remote { 100 } else { 0 },
        sweep_ms: SWEEP_MS,
    }
}

/// The stores as a shelf for the stream of twins.
pub(crate) struct Shelves {
    pub(crate) stores: Stores,
    pub(crate) keep: Retention,
    pub(crate) advanced: Advanced,
}

/// The positions that the stores were brought to, as far as this process knows.
#[derive(Default)]
pub(crate) struct Advanced {
    documents: AtomicU64,
    history: AtomicU64,
}

impl Shelf for Shelves {
    async fn apply(&self, messages: &[Arc<Stored>]) -> Result<(), Error> {
        self.stores.apply(messages, &self.advanced).await
    }

    async fn position(&self) -> Result<u64, Error> {
        let documents = self.stores.documents.position(TwinChanged::STREAM).await?;
        self.advanced.documents.store(documents, Relaxed);
        let history = self.stores.history.position(TwinChanged::STREAM).await?;
        self.advanced.history.store(history, Relaxed);
        Ok(documents.min(history))
    }

    async fn sweep(&self, now: Timestamp) -> Result<(), Error> {
        if !self.stores.history.is_remote() {
            self.stores.history.forget(self.keep.oldest(now)).await?;
        }
        self.stores.remove_ended(now, now.plus_millis(-self.keep.ended_ms)).await
    }
}

impl Stores {
    /// Applies messages, then says that the last is applied whole. Fails only if trying again may help.
    async fn apply(&self, messages: &[Arc<Stored>], from: &Advanced) -> Result<(), Error> {
        let Some(newest) = messages.last() else { return Ok(()) };
        let (mut changes, mut entries) = (vec![], vec![]);
        for stored in messages {
            match stored.event::<TwinChanged>() {
                Ok(Some(TwinChanged { twin: Some(twin), .. })) => {
                    let applied = Applied::new(&stored.stream, stored.sequence);
                    let (document, entry) = rows(&twin);
                    changes.push((applied.clone(), Change::Put(document)));
                    entries.push((applied, entry));
                }
                Ok(_) => {}
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(sequence = stored.sequence, error, "twin undecodable");
                }
            }
        }
        let applied = Applied::new(&newest.stream, newest.sequence);
        for done in [self.history.write(entries).await, self.documents.write(changes).await] {
            leave_out(done, "twins", newest.sequence)?;
        }
        self.documents.advance(from.documents.load(Relaxed), &applied).await?;
        from.documents.fetch_max(newest.sequence, Relaxed);
        self.history.advance(from.history.load(Relaxed), &applied).await?;
        from.history.fetch_max(newest.sequence, Relaxed);
        Ok(())
    }

    async fn remove_ended(&self, now: Timestamp, before: Timestamp) -> Result<(), Error> {
        // Not a fact of the stream: the time counts for itself.
        let applied = Applied::new(SWEEP, now.as_millis().unsigned_abs());
        let from = self.documents.position(SWEEP).await?;
        let equal = BTreeMap::from([("phase".to_owned(), phase_name(InstancePhase::Stopped))]);
        let mut query = Query { equal, limit: 1_000, ..Query::default() };
        loop {
            let page = self.documents.list(&query).await?;
            let is_over = |document: &Document| {
                let twin = Twin::decode(document.body.clone()).unwrap_or_default();
                twin.at.unwrap_or_default() < before
            };
            let over = page.documents.into_iter().filter(is_over);
            let deletes = over.map(|document| (applied.clone(), Change::Delete(document.id))).collect();
            self.documents.write(deletes).await?;
            if page.next.is_empty() {
                return self.documents.advance(from, &applied).await;
            }
            query.token = page.next;
        }
    }
}

/// A twin as last published, and as a version of its history.
fn rows(twin: &Twin) -> (Document, Entry) {
    let key = key(&twin.kind, &twin.id);
    let indexes = [("kind", twin.kind.clone()), ("owner", twin.owner.clone()), ("phase", phase_name(twin.phase()))];
    let indexes = indexes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let body = bytes::Bytes::from(twin.encode_to_vec());
    let version = Version { version: twin.version, at: twin.at.unwrap_or_default(), body: body.clone() };
    (Document { id: key.clone(), indexes, body }, Entry { key, version })
}

fn phase_name(phase: InstancePhase) -> String {
    phase.as_str_name().to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use futures::executor::block_on;
    use mesh_store::{memory, open};

    use super::*;

    pub(crate) fn stores() -> Stores {
        let store = open("memory:").unwrap();
        Stores {
            documents: store
                .documents("twins", memory::DocumentLimits { documents_max: 3, ..Default::default() })
                .unwrap(),
            history: store.history("twins", memory::WindowLimits::default(), Duration::ZERO).unwrap(),
        }
    }

    pub(crate) fn twin(kind: &str, id: &str, version: u64) -> Twin {
        let at = Some(Timestamp::from_millis(version as i64));
        Twin { kind: kind.into(), id: id.into(), version, at, owner: "local".into(), ..Default::default() }
    }

    /// Writes twins as the facts from this sequence on, then removes what is over at a time.
    pub(crate) fn write(stores: &Stores, first: u64, twins: &[Twin], sweep: Option<(Timestamp, Retention)>) {
        let stored = |(sequence, twin): (u64, &Twin)| {
            let (kind, id) = (twin.kind.clone(), twin.id.clone());
            let event = TwinChanged { kind, id, twin: Some(twin.clone()) };
            Arc::new(mesh_test::stored(&event, sequence, Timestamp::from_millis(1)))
        };
        let messages: Vec<Arc<Stored>> = (first..).zip(twins).map(stored).collect();
        block_on(stores.apply(&messages, &Advanced::default())).unwrap();
        if let Some((now, keep)) = sweep {
            block_on(Shelves { stores: stores.clone(), keep, advanced: Advanced::default() }.sweep(now)).unwrap();
        }
    }

    #[test]
    fn a_database_keeps_versions_for_a_time_of_its_own() {
        let config = Config::default();
        let (memory, database) = (Retention::new(&config, false), Retention::new(&config, true));
        let now = Timestamp::from_millis(90 * 86_400_000);
        assert_eq!(memory.oldest(now), now.plus_millis(-3_600_000));
        assert_eq!(database.oldest(now), now.plus_millis(-30 * 86_400_000));
        assert!(memory.hint().contains("history_ms") && database.hint().contains("history_keep_ms"));
        let forever = Retention::new(&Config { history_keep_ms: 0, ..config }, true);
        assert_eq!(forever.oldest(now), Timestamp::default());
    }

    #[test]
    fn repeated_reads_keep_one_document_and_each_version_once() {
        let stores = stores();
        let twins = [twin("workload", "i", 10), twin("node", "n", 11), twin("workload", "i", 12)];
        write(&stores, 1, &twins, None);
        write(&stores, 1, &twins, None);
        let found = block_on(stores.documents.get("workload/i")).unwrap().unwrap();
        assert_eq!(Twin::decode(found.body).unwrap(), twins[2]);
        let versions = block_on(stores.history.list("workload/i", None, 9)).unwrap();
        assert_eq!(versions.iter().map(|v| v.version).collect::<Vec<_>>(), [12, 10]);
        assert_eq!(block_on(stores.documents.position("TWIN")).unwrap(), 3);
    }

    #[test]
    fn what_ended_makes_room_and_a_full_store_holds_nothing_up() {
        let stores = stores();
        let mut ended = twin("workload", "old", 10);
        ended.set_phase(InstancePhase::Stopped);
        write(&stores, 1, &[ended, twin("node", "n", 11), twin("cluster", "c", 12), twin("workload", "i", 13)], None);
        assert!(block_on(stores.documents.get("workload/i")).unwrap().is_none(), "three is the limit");
        assert_eq!(block_on(stores.history.list("workload/i", None, 9)).unwrap().len(), 1);
        let keep = Retention { history_ms: 100, ended_ms: 5, memory_bytes: None };
        write(&stores, 5, &[twin("node", "n", 14)], Some((Timestamp::from_millis(15), keep)));
        assert!(block_on(stores.documents.get("workload/old")).unwrap().is_some(), "not long enough");
        write(&stores, 6, &[twin("node", "n", 111)], Some((Timestamp::from_millis(112), keep)));
        assert!(block_on(stores.documents.get("workload/old")).unwrap().is_none());
        assert!(block_on(stores.history.list("workload/old", None, 9)).unwrap().is_empty());
        write(&stores, 7, &[twin("workload", "i", 113)], None);
        assert!(block_on(stores.documents.get("workload/i")).unwrap().is_some());
    }
}
