//! The write pipeline: a body becomes sealed and coded fragments in the locations of a layout.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream::FuturesUnordered};
use md5::{Digest as _, Md5};
use mesh_proto::object::{Checksum, Layout, ObjectStored, Part};
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::{Announced, Blob, BodyError, EXTENTS_IN_FLIGHT, Error, ObjectStore, geometry, memory::counted};
use crate::{
    backend::Draft,
    blob::{fragment, seal::DataKey},
    domain::checksums::Hasher,
    keys,
};

/// Bytes of a body that are sealed and coded at once while memory is plenty.
const STEP: u64 = 1 << 20;
/// Steps of a body in memory: one is received while the one before is coded.
const STEPS: usize = 2;
/// Fragments that are removed at once.
const REMOVALS_IN_FLIGHT: usize = 8;

/// Bytes that were written as a blob.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    /// The blob.
    pub(crate) part: Part,
    /// MD5 of the bytes.
    pub(crate) md5: [u8; 16],
    /// The checksum that was asked for.
    pub(crate) checksum: Option<Checksum>,
}

/// What came of a body.
struct Digests {
    size: u64,
    md5: [u8; 16],
    checksum: Option<Vec<u8>>,
}

/// The next plain bytes of an extent.
struct Step {
    plain: Vec<u8>,
    /// Does the extent end with it? One that does not end is not kept.
    last: bool,
    /// The next step may be received when this is dropped.
    turn: OwnedSemaphorePermit,
}

/// What comes for a fragment.
enum Next {
    Shards(Bytes),
    Header(Bytes),
}

type Written = FuturesUnordered<JoinHandle<Result<(), String>>>;

impl ObjectStore {
    /// Codes an extent step by step and writes its fragments; `plain` bytes of it are expected. Returns when `acknowledge_at`
    /// of them are on disk and the others had `hedge_ms` more.
    async fn write_extent(
        self,
        blob: Arc<Blob>,
        extent: u32,
        plain: usize,
        acknowledge_at: usize,
        mut steps: UnboundedReceiver<Step>,
    ) -> Result<(), Error> {
        let (mut writers, writes, mut table) = (vec![], Written::new(), vec![]);
        loop {
            let Some(Step { plain: bytes, last, turn }) = steps.recv().await else {
                // The body broke off.
                return Ok(());
            };
            let share = Arc::new(self.memory.work(blob.geometry.write_bytes(bytes.len())).await?);
            let (coding, first) = (blob.clone(), table.len());
            let at_once = last && writers.is_empty();
            let header = if at_once { blob.geometry.header_bytes(bytes.len()) } else { 0 };
            let mut coded = blob.geometry.prepare(&blob.keys, bytes.len(), header);
            let one = self.coding.acquire().await.map_err(Error::internal)?;
            let code = tokio::task::spawn_blocking(move || {
                let Blob { geometry, keys, .. } = &*coding;
                match at_once {
                    true => geometry.code_extent(keys, extent, &bytes, &mut coded)?,
                    false => geometry.code_pieces(keys, extent, first, &bytes, &mut coded)?,
                }
                Ok::<_, fragment::Error>((coded, bytes))
            });
            let (coded, _) = code.await.map_err(Error::internal)??;
            drop((one, turn));
            table.extend(coded.table);
            let fragments = coded.fragments.into_iter();
            let fragments: Vec<Bytes> = fragments.map(|bytes| counted(bytes.into(), share.clone())).collect();
            if at_once {
                for (index, bytes) in fragments.into_iter().enumerate() {
                    let (store, blob) = (self.clone(), blob.clone());
                    // A task of its own, so that a slow location finishes after the answer.
                    writes.push(tokio::spawn(async move {
                        let location = &blob.layout.locations[index];
                        let name = fragment::name(&blob.part.blob, extent, index);
                        let put = store.locations.put(&blob.layout.owner, location, &name, bytes).await;
                        put.map_err(|error| format!("{location}: {error}"))
                    }));
                }
                break;
            }
            if writers.is_empty() {
                let room = blob.geometry.header_bytes(plain) as u64;
                for index in 0..fragments.len() {
                    let (sender, shards) = unbounded_channel();
                    writers.push(sender);
                    writes.push(tokio::spawn(self.clone().write_fragment(blob.clone(), extent, index, room, shards)));
                }
            }
            for (writer, shards) in writers.iter().zip(fragments).filter(|(_, shards)| !shards.is_empty()) {
                send(writer, Next::Shards(shards));
            }
            if last {
                for (index, writer) in writers.iter().enumerate() {
                    let header = blob.geometry.header(&blob.keys, extent, index as u32, &table)?;
                    send(writer, Next::Header(header.into()));
                }
                break;
            }
        }
        self.await_fragments(&blob, acknowledge_at, writes).await
    }

    /// Writes a fragment as its shards come; they are held in memory until they are written, so that a slow location slows down
    /// the body.
    async fn write_fragment(
        self,
        blob: Arc<Blob>,
        extent: u32,
        index: usize,
        room: u64,
        mut next: UnboundedReceiver<Next>,
    ) -> Result<(), String> {
        let (owner, location) = (&blob.layout.owner, &blob.layout.locations[index]);
        let name = fragment::name(&blob.part.blob, extent, index);
        let failed = |error| format!("{location}: {error}");
        let backend = self.locations.backend(owner, location).await.map_err(failed)?;
        let mut draft: Draft = backend.draft(room, &self.locations.spool());
        let write = async {
            // Until its header comes, or the body breaks off.
            while let Some(next) = next.recv().await {
                match next {
                    Next::Shards(bytes) => {
                        self.locations.within_limit(owner, location, draft.append(bytes)).await.map_err(failed)?;
                    }
                    Next::Header(header) => {
                        let _room = self.memory.work(draft.finish_bytes()).await.map_err(|error| error.to_string())?;
                        let finish = draft.finish(&name, header);
                        return self.locations.within_limit(owner, location, finish).await.map_err(failed);
                    }
                }
            }
            Ok(())
        };
        let written = write.await;
        draft.close().await;
        written
    }

    async fn await_fragments(&self, blob: &Blob, acknowledge_at: usize, mut writes: Written) -> Result<(), Error> {
        let (mut written, mut failures) = (0, vec![]);
        let moment = Duration::from_millis(self.config.hedge_ms.into());
        while let Some(done) = match written >= acknowledge_at {
            true => timeout(moment, writes.next()).await.unwrap_or_default(),
            false => writes.next().await,
        } {
            match done {
                Ok(Ok(())) => written += 1,
                Ok(Err(failure)) => failures.push(failure),
                Err(error) => failures.push(error.to_string()),
            }
        }
        if !failures.is_empty() {
            tracing::warn!(
                written,
                wanted = blob.layout.locations.len(),
                failures = failures.join("; "),
                "some fragments were not written"
            );
        }
        if written >= acknowledge_at {
            return Ok(());
        }
        Err(Error::Unavailable(format!(
            "only {written} of the {acknowledge_at} fragments needed were written ({}); try again when the locations \
             are back, or use a policy with other locations",
            failures.join("; ")
        )))
    }

    /// Writes bytes as a new blob, which must be what their sender announced. After a failure it removes what it wrote.
    pub(crate) async fn write<S, E>(
        &self,
        layout: &Layout,
        data_key: &DataKey,
        acknowledge_at: usize,
        announced: &Announced,
        body: S,
    ) -> Result<Received, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        let name: [u8; 16] = keys::random().map_err(Error::internal)?;
        let mut part = Part { blob: Bytes::copy_from_slice(&name), size: 0 };
        let blob = Arc::new(Blob {
            layout: Arc::new(layout.clone()),
            geometry: geometry(layout)?,
            keys: data_key.blob(&name, layout.encrypted)?,
            part: part.clone(),
        });
        let acknowledge_at = acknowledge_at.clamp(layout.data as usize, layout.locations.len());
        let written = match self.write_all(&blob, acknowledge_at, announced, body).await {
            Ok(digests) => announced
                .check(digests.size, &digests.md5, digests.checksum.as_deref())
                .map(|checksum| (digests.size, digests.md5, checksum))
                .map_err(|error| (error.into(), digests.size)),
            Err(failed) => Err(failed),
        };
        match written {
            Ok((size, md5, checksum)) => {
                part.size = size;
                Ok(Received { part, md5, checksum })
            }
            Err((error, size)) => {
                let (store, layout) = (self.clone(), blob.layout.clone());
                part.size = size;
                tokio::spawn(async move { store.remove(&layout, &[part]).await });
                Err(error)
            }
        }
    }

    /// Writes the whole body, extent by extent; an error comes with the number of bytes received until then.
    async fn write_all<S, E>(
        &self,
        blob: &Arc<Blob>,
        acknowledge_at: usize,
        announced: &Announced,
        body: S,
    ) -> Result<Digests, (Error, u64)>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        let mut body = std::pin::pin!(body);
        let (extent_bytes, piece) = (blob.geometry.extent_bytes as usize, u64::from(blob.geometry.piece_bytes));
        let (mut md5, mut size, mut extent) = (Md5::new(), 0u64, 0u32);
        let mut hasher = announced.algorithm.map(Hasher::new);
        // Of all that it needs at once, before it takes anything.
        let chunk = announced.chunk_bytes;
        let held = |step: u64| STEPS as u64 * announced.bytes.map_or(step, |bytes| step.min(bytes)) + chunk;
        let share = self.memory.body(held(piece), held(STEP.max(piece))).await.map_err(|error| (error, size))?;
        let step_bytes = if share.bytes() > held(piece) { STEP / piece * piece } else { piece } as usize;
        let turns = Arc::new(Semaphore::new(STEPS));
        let mut writing: JoinSet<Result<(), Error>> = JoinSet::new();
        let mut current: Option<(UnboundedSender<Step>, usize)> = None;
        let (mut open, mut next) = (true, Bytes::new());
        // A scrub removes fragments of no object once they are older than `orphan_ms`.
        let begun = self.mesh.now();
        let limit_ms = i64::try_from(self.config.orphan_ms / 2).unwrap_or(i64::MAX);
        while open {
            let turn = turns.clone().acquire_owned().await.map_err(|error| (Error::internal(error), size))?;
            let before = current.as_ref().map_or(0, |(_, filled)| *filled);
            let wanted = step_bytes.min(extent_bytes - before);
            let mut plain = Vec::with_capacity(match announced.bytes {
                Some(bytes) => wanted.min(usize::try_from(bytes.saturating_sub(size)).unwrap_or(wanted)),
                None => wanted,
            });
            // To its end, if it is to end here: most bodies are one step.
            while plain.len() < wanted || announced.bytes == Some(size) {
                if next.is_empty() {
                    match body.next().await {
                        Some(Ok(bytes)) => next = bytes,
                        Some(Err(error)) => {
                            let broken = BodyError::Broken { received: size, problem: error.to_string() };
                            return Err((broken.into(), size));
                        }
                        None => {
                            open = false;
                            break;
                        }
                    }
                    if self.mesh.now().millis_since(begun) > limit_ms {
                        return Err((BodyError::Slow { limit_ms }.into(), size));
                    }
                }
                if plain.len() == wanted && !next.is_empty() {
                    break;
                }
                // Copied: a byte of a connection's buffer would hold all of it.
                let taken = next.split_to(next.len().min(wanted - plain.len()));
                md5.update(&taken);
                if let Some(hasher) = &mut hasher {
                    hasher.update(&taken);
                }
                size += taken.len() as u64;
                plain.extend_from_slice(&taken);
            }
            let filled = before + plain.len();
            if filled == 0 {
                break;
            }
            let (steps, _) = current.take().unwrap_or_else(|| {
                let (sender, steps) = unbounded_channel();
                let start = u64::from(extent) * extent_bytes as u64;
                let expected = announced.bytes.map_or(extent_bytes as u64, |bytes| bytes.saturating_sub(start));
                let expected = extent_bytes.min(usize::try_from(expected).unwrap_or(extent_bytes));
                writing.spawn(self.clone().write_extent(blob.clone(), extent, expected, acknowledge_at, steps));
                extent += 1;
                (sender, 0)
            });
            let last = filled == extent_bytes || !open;
            // If the extent failed, its task says why.
            let _taken = steps.send(Step { plain, last, turn });
            if !last {
                current = Some((steps, filled));
            }
            while writing.len() > EXTENTS_IN_FLIGHT || (last && writing.len() >= EXTENTS_IN_FLIGHT) {
                settle(writing.join_next().await).map_err(|error| (error, size))?;
            }
        }
        while let Some(done) = writing.join_next().await {
            settle(Some(done)).map_err(|e| (e, size))?;
        }
        Ok(Digests { size, md5: md5.finalize().into(), checksum: hasher.map(Hasher::finish) })
    }

    /// Removes the fragments of a replaced object after `linger_ms`, when nobody reads them any more.
    pub(crate) fn retire(&self, replaced: Option<ObjectStored>) {
        let Some(replaced) = replaced else { return };
        replaced.parts.iter().for_each(|part| self.cache.purge(&part.blob));
        let (store, linger) = (self.clone(), Duration::from_millis(self.config.linger_ms));
        let stopping = self.mesh.stopping();
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(linger) => {}
                // A scrub finds what is left.
                () = stopping.cancelled() => return,
            }
            if let Some(layout) = &replaced.layout {
                store.remove(layout, &replaced.parts).await;
            }
        });
    }

    /// Removes fragments, as far as the locations can be reached.
    pub(crate) async fn remove(&self, layout: &Layout, parts: &[Part]) {
        let Ok(geometry) = geometry(layout) else { return };
        let mut names = vec![];
        for part in parts {
            self.cache.purge(&part.blob);
            // One extent more: a body that broke off may have begun another.
            for extent in 0..=geometry.extents(part.size) {
                for (index, location) in layout.locations.iter().enumerate() {
                    names.push((location.clone(), fragment::name(&part.blob, extent, index)));
                }
            }
        }
        let mut removing = JoinSet::new();
        for (location, name) in names {
            if removing.len() >= REMOVALS_IN_FLIGHT {
                removing.join_next().await;
            }
            let (store, owner) = (self.clone(), layout.owner.clone());
            removing.spawn(async move {
                if let Ok(backend) = store.locations.backend(&owner, &location).await {
                    let _found_by_a_scrub = backend.delete(&name).await;
                }
            });
        }
        while removing.join_next().await.is_some() {}
    }
}

/// A fragment whose location failed takes no more; that is told by its task.
fn send(writer: &UnboundedSender<Next>, next: Next) {
    let _failed = writer.send(next);
}

fn settle(done: Option<Result<Result<(), Error>, tokio::task::JoinError>>) -> Result<(), Error> {
    done.map_or(Ok(()), |done| done.unwrap_or_else(|error| Err(Error::internal(error))))
}
