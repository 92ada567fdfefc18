//! The read pipeline: the bytes of an object from any k good fragments of each extent.

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    Stream, StreamExt as _, TryStreamExt as _,
    stream::{self, FuturesUnordered},
};
use mesh_proto::object::{Layout, ObjectStored, Part};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{Blob, EXTENTS_IN_FLIGHT, Error, ObjectStore, geometry};
use crate::{
    backend,
    blob::{
        fragment::{self, Table},
        seal::DataKey,
    },
};

/// Bytes of an answer that are counted as one, and that are read at once when memory is short.
pub(super) const UNIT: u64 = 256 << 10;

/// Units of a number of bytes, at least one.
pub(super) fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1)
}

/// Bytes in slices; what they occupy is free again when the last one is taken.
fn slices(bytes: Bytes, held: OwnedSemaphorePermit) -> impl Stream<Item = Result<Bytes, Error>> + Send {
    stream::unfold((bytes, held), |(mut rest, held)| async move {
        let slice = rest.split_to((UNIT as usize).min(rest.len()));
        (!slice.is_empty()).then(|| (Ok(slice), (rest, held)))
    })
}

/// A fragment that was read and whose header is right.
type Fetched = (Table, Bytes);

impl ObjectStore {
    /// A blob of an object, ready to be read.
    pub(crate) fn blob(&self, layout: &Arc<Layout>, data_key: &DataKey, part: &Part) -> Result<Blob, Error> {
        Ok(Blob {
            layout: layout.clone(),
            geometry: geometry(layout)?,
            keys: data_key.blob(&part.blob, layout.encrypted)?,
            part: part.clone(),
        })
    }

    /// A range of an object's bytes, in order. While memory is plenty, whole extents are read, the next ones ahead. While it
    /// is short, each answer holds one unit at a time, so that clients who take theirs slowly leave room for the others.
    ///
    /// # Errors
    /// When its key does not open.
    pub fn read(
        &self,
        object: &ObjectStored,
        range: Range<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
        let layout = Arc::new(object.layout.clone().unwrap_or_default());
        let data_key = self.data_key(&layout)?;
        let extent_bytes = u64::from(layout.extent_bytes.max(1));
        let mut start = 0;
        let mut spans = vec![];
        for part in &object.parts {
            let (from, to) = (range.start.max(start), range.end.min(start + part.size));
            if from < to {
                let blob = Arc::new(self.blob(&layout, &data_key, part)?);
                let (from, to) = (from - start, to - start);
                for extent in from / extent_bytes..to.div_ceil(extent_bytes) {
                    let base = extent * extent_bytes;
                    let inside = from.saturating_sub(base) as usize..(to - base).min(extent_bytes) as usize;
                    spans.push((blob.clone(), extent as u32, inside));
                }
            }
            start += part.size;
        }
        let store = self.clone();
        Ok(stream::iter(spans)
            .map(move |(blob, extent, inside)| {
                let store = store.clone();
                async move {
                    match store.room(inside.len() as u64) {
                        Some(held) => Ok(slices(store.read_extent(&blob, extent, inside).await?, held).left_stream()),
                        None => Ok::<_, Error>(store.by_units(blob, extent, inside).right_stream()),
                    }
                }
            })
            .buffered(EXTENTS_IN_FLIGHT)
            .try_flatten())
    }

    /// Room for a number of bytes, if a quarter of all is left for answers that are read by units.
    fn room(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let (all, wanted) = (units(self.config.answer_bytes) as usize, units(bytes));
        let plenty = self.answers.available_permits() >= all / 4 + wanted as usize;
        plenty.then(|| self.answers.clone().try_acquire_many_owned(wanted).ok()).flatten()
    }

    /// A range of an extent, a unit at a time.
    fn by_units(
        &self,
        blob: Arc<Blob>,
        extent: u32,
        inside: Range<usize>,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Send + use<> {
        let store = self.clone();
        // Up to the next border of a unit, so that no piece is read twice.
        let unit = UNIT as usize;
        let parts = std::iter::successors(Some(inside.start), move |from| Some((from / unit + 1) * unit))
            .take_while(move |from| *from < inside.end)
            .map(move |from| from..((from / unit + 1) * unit).min(inside.end));
        stream::iter(parts)
            .then(move |part| {
                let (store, blob) = (store.clone(), blob.clone());
                async move {
                    let held = store.answers.clone().acquire_owned().await.map_err(Error::internal)?;
                    Ok::<_, Error>(slices(store.read_extent(&blob, extent, part).await?, held))
                }
            })
            .try_flatten()
    }

    async fn read_extent(&self, blob: &Arc<Blob>, extent: u32, inside: Range<usize>) -> Result<Bytes, Error> {
        let plain = blob.geometry.extent_size(blob.part.size, extent);
        let inside = inside.start..inside.end.min(plain);
        if let Some(bytes) = self.cache.get(&blob.part.blob, extent) {
            return Ok(bytes.slice(inside));
        }
        let piece = blob.geometry.piece_bytes as usize;
        let mut pieces = inside.start / piece..inside.end.div_ceil(piece);
        let all = 0..blob.geometry.pieces(plain);
        // From half on, one request for all is less than two for the half; and all can be kept.
        if pieces.len() * 2 >= all.len() {
            pieces = all.clone();
        }
        let bytes: Bytes = self.fetch(blob, extent, pieces.clone()).await?.into();
        if pieces == all {
            self.cache.put(&blob.part.blob, extent, bytes.clone());
        }
        let base = pieces.start * piece;
        Ok(bytes.slice(inside.start - base..inside.end - base))
    }

    /// One fragment's header and its shards of these pieces.
    async fn fetch_fragment(
        &self,
        blob: &Blob,
        extent: u32,
        index: usize,
        pieces: &Range<usize>,
    ) -> Result<Fetched, String> {
        let location = &blob.layout.locations[index];
        let name = fragment::name(&blob.part.blob, extent, index);
        let plain = blob.geometry.extent_size(blob.part.size, extent);
        let table = |bytes: &[u8]| blob.geometry.table(&blob.keys, extent, index as u32, plain, bytes);
        let read = async {
            let backend = self.locations.backend(&blob.layout.owner, location).await?;
            if pieces.len() == blob.geometry.pieces(plain) {
                let bytes = backend.get(&name, None).await?;
                return Ok(table(&bytes).map(|table| {
                    let span = blob.geometry.span(&table, pieces);
                    let (from, to) = (span.start.min(bytes.len()), span.end.min(bytes.len()));
                    (table, bytes.slice(from..to))
                }));
            }
            let header = backend.get(&name, Some(0..blob.geometry.header_bytes(plain) as u64)).await?;
            match table(&header) {
                Err(rotten) => Ok(Err(rotten)),
                Ok(table) => {
                    let span = blob.geometry.span(&table, pieces);
                    let bytes = backend.get(&name, Some(span.start as u64..span.end as u64)).await?;
                    Ok(Ok((table, bytes)))
                }
            }
        };
        let read: Result<Result<Fetched, fragment::Error>, backend::Error> =
            self.locations.within_limit(&blob.layout.owner, location, read).await;
        match read {
            Ok(Ok(fetched)) => Ok(fetched),
            Ok(Err(rotten)) => Err(format!("{location}: {rotten}")),
            Err(error) => Err(format!("{location}: {error}")),
        }
    }

    /// Plain bytes of pieces, from the first k good fragments. It asks one more location whenever one fails or has a
    /// rotten shard, or when none answers for `hedge_ms`.
    pub(crate) async fn fetch(&self, blob: &Arc<Blob>, extent: u32, pieces: Range<usize>) -> Result<Vec<u8>, Error> {
        let layout = &blob.layout;
        let needed = layout.data as usize;
        let mut order: Vec<usize> = (0..layout.locations.len()).collect();
        order.sort_by_key(|&index| self.locations.is_unavailable(&layout.owner, &layout.locations[index]));
        let mut next = order.into_iter();
        let mut asked = FuturesUnordered::new();
        let ask = |index: usize| {
            let pieces = pieces.clone();
            async move { (index, self.fetch_fragment(blob, extent, index, &pieces).await) }
        };
        asked.extend(next.by_ref().take(needed).map(ask));
        let (mut found, mut problems) = (BTreeMap::<usize, Fetched>::new(), vec![]);
        let hedge = Duration::from_millis(self.config.hedge_ms.into());
        loop {
            let more = match timeout(hedge, asked.next()).await {
                Ok(Some((index, Ok(fetched)))) => {
                    found.insert(index, fetched);
                    if found.len() >= needed {
                        match assemble(blob.clone(), extent, pieces.clone(), found.clone()).await? {
                            Some(bytes) => return Ok(bytes),
                            None => {
                                problems.push(format!("a shard of fragment {index} or of an earlier one was changed"));
                                true
                            }
                        }
                    } else {
                        false
                    }
                }
                Ok(Some((_, Err(problem)))) => {
                    problems.push(problem);
                    true
                }
                Ok(None) => {
                    return Err(Error::Lost(format!(
                        "{needed} good fragments are needed to read this object, and fewer are available now ({}); \
                         try again when the locations are back",
                        problems.join("; ")
                    )));
                }
                Err(_) => true,
            };
            if more && let Some(index) = next.next() {
                asked.push(ask(index));
            }
        }
    }
}

/// Puts fragments together; `None` if some piece has too few good shards.
async fn assemble(
    blob: Arc<Blob>,
    extent: u32,
    pieces: Range<usize>,
    found: BTreeMap<usize, Fetched>,
) -> Result<Option<Vec<u8>>, Error> {
    let work = move || {
        let geometry = &blob.geometry;
        let Some((table, _)) = found.values().next() else { return Ok(None) };
        let shards: Vec<Vec<Option<&[u8]>>> = (0..geometry.code.shards())
            .map(|index| match found.get(&index) {
                Some((_, span)) => geometry.shards(&blob.keys, extent, index as u32, table, &pieces, span),
                None => vec![],
            })
            .collect();
        if geometry.wanting(&pieces, &shards) > 0 {
            return Ok(None);
        }
        let mut output = Vec::with_capacity(pieces.len() * geometry.piece_bytes as usize);
        geometry.read(&blob.keys, extent, table, &pieces, &shards, &mut output)?;
        Ok(Some(output))
    };
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}
