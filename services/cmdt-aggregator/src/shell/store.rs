//! Keeps published twins in the stores, read from `TWIN`: the newest of each as a document, to be listed, and its
//! versions as its history. A store that was away, or is new, catches up by itself.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use mesh_core::Stored;
use mesh_kit::Mesh;
use mesh_proto::{
    Event as _, Timestamp,
    twin::{Twin, TwinChanged},
    workload::InstancePhase,
};
use mesh_store::{Applied, Document, Documents, Error, History, Query, Version, first_since};
use prost::Message as _;

/// How long to wait before a store that failed is tried again, milliseconds.
const RETRY_MS: u64 = 500;
/// How often what is over is looked for, milliseconds.
const SWEEP_MS: i64 = 60_000;

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
    /// Versions in the history.
    pub(crate) history_ms: i64,
    /// Twins of instances that ended.
    pub(crate) ended_ms: i64,
    /// Bytes of the history, if it is in memory.
    pub(crate) memory_bytes: Option<u64>,
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

/// Follows `TWIN` into the stores until the process stops.
///
/// A history in memory has room for so many bytes: older messages than fit are not read.
pub(crate) async fn keep(mesh: Mesh, stores: Stores, keep: Retention) -> anyhow::Result<()> {
    let subject = mesh_proto::contract().stream(TwinChanged::STREAM).map_or("", |stream| stream.subject.as_str());
    let log = mesh.bus().log(TwinChanged::STREAM);
    let last = log.last_sequence().await.context("read end of twins")?;
    let oldest = mesh.now().plus_millis(-keep.history_ms);
    let begin = first_since(last, oldest, |from| {
        let log = log.clone();
        async move { log.read(subject, from, 1).await.map(|found| found.first().map(|m| (m.sequence, m.stored))) }
    });
    let begin = begin.await.context("find the first twin of the history")?;
    let room = keep.memory_bytes.map_or(u64::MAX, |bytes| bytes / VERSION_BYTES);
    let begin = begin.max(last.saturating_sub(room) + 1);
    let documents = stores.documents.position(TwinChanged::STREAM).await.context("read position of documents")?;
    let history = stores.history.position(TwinChanged::STREAM).await.context("read position of the history")?;
    let mut follower = mesh.follow(TwinChanged::STREAM, begin.max(documents.min(history) + 1));
    let (stopping, mut swept) = (mesh.stopping(), mesh.now());
    loop {
        let stored = tokio::select! {
            stored = follower.next() => stored.context("read twins")?,
            () = stopping.cancelled() => return Ok(()),
        };
        let now = mesh.now();
        let sweep = now.millis_since(swept) >= SWEEP_MS;
        while let Err(error) = stores.write(&stored, sweep.then_some((now, keep))).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "twin not kept; trying again");
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(RETRY_MS)) => {}
                () = stopping.cancelled() => return Ok(()),
            }
        }
        if sweep {
            swept = now;
        }
    }
}

impl Stores {
    /// Applies one message whole, and with it, when it is time to, removes what is over. Fails only if trying again
    /// may help.
    async fn write(&self, stored: &Stored, sweep: Option<(Timestamp, Retention)>) -> Result<(), Error> {
        let applied = Applied::new(&stored.stream, stored.sequence);
        match stored.event::<TwinChanged>() {
            Ok(Some(TwinChanged { twin: Some(twin), .. })) => {
                if let Err(error) = self.put(&applied, twin).await {
                    if matches!(error, Error::Engine { .. }) {
                        return Err(error);
                    }
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(sequence = stored.sequence, error, "twin refused by its store");
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(
                    sequence = stored.sequence,
                    error = &error as &dyn std::error::Error,
                    "twin undecodable"
                );
            }
        }
        if let Some((now, keep)) = sweep {
            self.history.forget(now.plus_millis(-keep.history_ms)).await?;
            self.remove_ended(&applied, now.plus_millis(-keep.ended_ms)).await?;
        }
        self.documents.advance(&applied).await?;
        self.history.advance(&applied).await
    }

    async fn put(&self, applied: &Applied, twin: Twin) -> Result<(), Error> {
        let key = key(&twin.kind, &twin.id);
        let indexes = [("kind", twin.kind.clone()), ("owner", twin.owner.clone()), ("phase", phase_name(twin.phase()))];
        let body = bytes::Bytes::from(twin.encode_to_vec());
        let version = Version { version: twin.version, at: twin.at.unwrap_or_default(), body: body.clone() };
        self.history.append(applied, &key, version).await?;
        let indexes: BTreeMap<_, _> = indexes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.documents.put(applied, Document { id: key, indexes, body }).await?;
        Ok(())
    }

    async fn remove_ended(&self, applied: &Applied, before: Timestamp) -> Result<(), Error> {
        let equal = BTreeMap::from([("phase".to_owned(), phase_name(InstancePhase::Stopped))]);
        let mut query = Query { equal, limit: 1_000, ..Query::default() };
        loop {
            let page = self.documents.list(&query).await?;
            for document in page.documents {
                let twin = Twin::decode(document.body).unwrap_or_default();
                if twin.at.unwrap_or_default() < before {
                    self.documents.delete(applied, &document.id).await?;
                }
            }
            if page.next.is_empty() {
                return Ok(());
            }
            query.token = page.next;
        }
    }
}

fn phase_name(phase: InstancePhase) -> String {
    phase.as_str_name().to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use futures::executor::block_on;
    use mesh_store::{memory, open};

    use super::*;

    pub(crate) fn stores() -> Stores {
        let store = open("memory:").unwrap();
        Stores {
            documents: store.documents("twins", memory::DocumentLimits { documents_max: 3, ..Default::default() }),
            history: store.history("twins", memory::WindowLimits::default()),
        }
    }

    pub(crate) fn twin(kind: &str, id: &str, version: u64) -> Twin {
        let at = Some(Timestamp::from_millis(version as i64));
        Twin { kind: kind.into(), id: id.into(), version, at, owner: "local".into(), ..Default::default() }
    }

    /// Writes twins as the facts from this sequence on.
    pub(crate) fn write(stores: &Stores, first: u64, twins: &[Twin], sweep: Option<(Timestamp, Retention)>) {
        for (sequence, twin) in (first..).zip(twins) {
            let (kind, id) = (twin.kind.clone(), twin.id.clone());
            let event = TwinChanged { kind, id, twin: Some(twin.clone()) };
            let stored = mesh_test::stored(&event, sequence, Timestamp::from_millis(1));
            block_on(stores.write(&stored, sweep)).unwrap();
        }
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
