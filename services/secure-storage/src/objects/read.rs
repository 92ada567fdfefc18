//! The read pipeline: the bytes of an object from any k good fragments of each extent.

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Duration, vec};

use bytes::Bytes;
use futures::{
    Stream, StreamExt as _, TryStreamExt as _,
    stream::{self, FuturesUnordered},
};
use mesh_proto::object::{Layout, ObjectStored, Part};
use tokio::time::timeout;

use super::{
    Blob, Error, ObjectStore, geometry,
    memory::{Share, counted},
};
use crate::{
    backend,
    blob::{
        fragment::{self, Geometry, Table},
        seal::{DataKey, TAG_BYTES},
    },
};

/// Plain bytes of an answer that are read at once while memory is plenty.
const WINDOW: u64 = 1 << 20;
/// The same from servers, which take longer to answer.
const WINDOW_FAR: u64 = 4 << 20;
/// Windows that are read at once while memory is plenty; one more may be on its way to the client.
const AHEAD: u64 = 2;

/// A fragment that was read and whose header is right.
type Fetched = (Table, Bytes);

/// Bytes of an extent that are read at once.
struct Window {
    blob: Arc<Blob>,
    extent: u32,
    pieces: Range<usize>,
    inside: Range<usize>,
}

/// The windows of a range of an object, in order. They are made when they are needed: an object has up to ten thousand parts.
struct Windows {
    layout: Arc<Layout>,
    geometry: Geometry,
    data_key: DataKey,
    parts: vec::IntoIter<(Part, Range<u64>)>,
    /// What is left of the part that is being read.
    part: Option<(Arc<Blob>, Range<u64>)>,
    pieces: usize,
}

impl Windows {
    fn next(&mut self, store: &ObjectStore) -> Result<Option<Window>, Error> {
        loop {
            if let Some((blob, left)) = self.part.as_mut().filter(|(_, left)| !left.is_empty()) {
                let extent = left.start / u64::from(self.geometry.extent_bytes);
                let base = extent * u64::from(self.geometry.extent_bytes);
                let piece = self.geometry.piece_bytes as usize;
                let plain = self.geometry.extent_size(blob.part.size, extent as u32);
                let from = (left.start - base) as usize;
                let first = from / piece;
                // Up to a border, so that no piece is read twice.
                let border = ((first + self.pieces) * piece).min(plain);
                let to = border.min(usize::try_from(left.end - base).unwrap_or(usize::MAX));
                left.start = base + to as u64;
                let (pieces, inside) = (first..to.div_ceil(piece), from..to);
                return Ok(Some(Window { blob: blob.clone(), extent: extent as u32, pieces, inside }));
            }
            let Some((part, range)) = self.parts.next() else { return Ok(None) };
            self.part = Some((Arc::new(store.blob(&self.layout, &self.data_key, &part)?), range));
        }
    }
}

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

    /// A range of an object's bytes, in order, a window at a time with the next ones ahead. Windows are small while memory
    /// is short, so that clients who take theirs slowly leave room for the others.
    ///
    /// # Errors
    /// When its key does not open.
    pub fn read(
        &self,
        object: &ObjectStored,
        range: Range<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
        let (mut start, mut parts, mut bytes) = (0, vec![], 0);
        for part in &object.parts {
            let (from, to) = (range.start.max(start), range.end.min(start + part.size));
            if from < to {
                bytes += to - from;
                parts.push((part.clone(), from - start..to - start));
            }
            start += part.size;
        }
        let cached = self.cache.takes(object.size);
        let store = self.clone();
        if cached && let Some(found) = self.in_cache(object, &parts) {
            let found = async move {
                let share = Arc::new(store.memory.answer(bytes, bytes).await?);
                Ok::<_, Error>(stream::iter(found).map(move |piece| Ok(counted(piece, share.clone()))))
            };
            return Ok(stream::once(found).try_flatten().left_stream());
        }
        let layout = Arc::new(object.layout.clone().unwrap_or_default());
        let (geometry, data_key) = (geometry(&layout)?, self.data_key(&layout)?);
        let parts = parts.into_iter();
        let windows = async move {
            let piece = u64::from(geometry.piece_bytes);
            let most = if store.is_near(&layout).await { WINDOW } else { WINDOW_FAR };
            let most = (most / piece).max(1);
            // Shards are even.
            let held = |ahead: u64, pieces: u64| ((ahead + 1) * pieces * (piece + 64)).min(bytes + 4_096);
            let (least, most, pieces) = (held(1, 1), held(AHEAD, most), most as usize);
            let share = store.memory.answer(least, most).await?;
            let (ahead, pieces) = if share.bytes() > least { (AHEAD as usize, pieces) } else { (1, 1) };
            let windows = Windows { layout, geometry, data_key, parts, part: None, pieces };
            Ok::<_, Error>(store.in_order(windows, ahead, cached, Arc::new(share)))
        };
        Ok(stream::once(windows).try_flatten().right_stream())
    }

    /// These ranges of parts, if all of them are in the cache.
    fn in_cache(&self, object: &ObjectStored, parts: &[(Part, Range<u64>)]) -> Option<Vec<Bytes>> {
        let piece = u64::from(object.layout.as_ref()?.piece_bytes.max(1));
        let numbers = |range: &Range<u64>| (range.start / piece) as u32..range.end.div_ceil(piece) as u32;
        let mut wanted = parts.iter().flat_map(|(part, range)| numbers(range).map(move |number| (part, number)));
        if !wanted.all(|(part, number)| self.cache.has(&part.blob, number)) {
            return None;
        }
        let mut found = vec![];
        for (part, range) in parts {
            for number in numbers(range) {
                let bytes = self.cache.get(&part.blob, number)?;
                let base = u64::from(number) * piece;
                let from = range.start.saturating_sub(base) as usize;
                found.push(bytes.slice(from..((range.end - base) as usize).min(bytes.len())));
            }
        }
        Some(found)
    }

    /// Are the fragments that are asked first all in folders?
    async fn is_near(&self, layout: &Layout) -> bool {
        for location in layout.locations.iter().take(layout.data as usize) {
            if self.locations.folder(&layout.owner, location).await.is_none() {
                return false;
            }
        }
        true
    }

    fn in_order(
        self,
        windows: Windows,
        ahead: usize,
        cached: bool,
        share: Arc<Share>,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        let store = self.clone();
        stream::try_unfold((windows, self), |(mut windows, store)| async move {
            Ok(windows.next(&store)?.map(|window| (window, (windows, store))))
        })
        .map_ok(move |window| {
            let (store, share) = (store.clone(), share.clone());
            async move { store.read_window(&window, cached, share).await }
        })
        .try_buffered(ahead)
        .map_ok(|pieces| stream::iter(pieces.into_iter().map(Ok)))
        .try_flatten()
    }

    /// The bytes of a window, piece by piece.
    async fn read_window(&self, window: &Window, cached: bool, share: Arc<Share>) -> Result<Vec<Bytes>, Error> {
        let Window { blob, extent, pieces, inside } = window;
        let piece_bytes = blob.geometry.piece_bytes as usize;
        let number = |piece: usize| {
            let before = u64::from(*extent) * u64::from(blob.geometry.extent_bytes / blob.geometry.piece_bytes);
            u32::try_from(before + piece as u64).unwrap_or(u32::MAX)
        };
        let found: Option<Vec<Bytes>> = match cached {
            true => pieces.clone().map(|piece| self.cache.get(&blob.part.blob, number(piece))).collect(),
            false => None,
        };
        let found = match found {
            Some(found) => found,
            None => {
                let found = self.pieces(blob, *extent, pieces, share).await?;
                for (piece, bytes) in pieces.clone().zip(&found).filter(|_| cached) {
                    // A copy: what is read here is counted until it is sent.
                    self.cache.put(&blob.part.blob, number(piece), Bytes::copy_from_slice(bytes));
                }
                found
            }
        };
        let within = |(piece, bytes): (usize, Bytes)| {
            let base = piece * piece_bytes;
            let from = inside.start.saturating_sub(base).min(bytes.len());
            bytes.slice(from..inside.end.saturating_sub(base).min(bytes.len()).max(from))
        };
        Ok(pieces.clone().zip(found).map(within).collect())
    }

    /// Plain bytes of pieces.
    async fn pieces(
        &self,
        blob: &Arc<Blob>,
        extent: u32,
        pieces: &Range<usize>,
        share: Arc<Share>,
    ) -> Result<Vec<Bytes>, Error> {
        if let Some(found) = self.in_place(blob, extent, pieces, share.clone()).await {
            return Ok(found);
        }
        let plain = blob.geometry.piece_bytes as usize * pieces.len();
        let _room = self.memory.work(blob.geometry.write_bytes(plain) + plain as u64).await?;
        let found = counted(self.fetch(blob, extent, pieces.clone()).await?.into(), share);
        let piece = blob.geometry.piece_bytes as usize;
        Ok((0..found.len()).step_by(piece).map(|from| found.slice(from..(from + piece).min(found.len()))).collect())
    }

    /// The same, if the first k fragments are whole in folders: each byte is read to where it is sent from, and checked and
    /// opened there. `None` if something is not as it should be, or takes too long.
    async fn in_place(
        &self,
        blob: &Arc<Blob>,
        extent: u32,
        pieces: &Range<usize>,
        share: Arc<Share>,
    ) -> Option<Vec<Bytes>> {
        let geometry = &blob.geometry;
        let table = geometry.known_table(&blob.keys, geometry.extent_size(blob.part.size, extent))?;
        let mut folders = vec![];
        for location in blob.layout.locations.iter().take(geometry.code.data()) {
            folders.push(self.locations.folder(&blob.layout.owner, location).await?);
        }
        let mut buffer = self.memory.buffer(geometry.whole_bytes(&table, pieces), share);
        let (blob, pieces) = (blob.clone(), pieces.clone());
        let first = folders.first()?.clone();
        let limit = Duration::from_millis(self.config.location_limit_ms.into());
        let turn = timeout(limit, first.turn()).await.ok()?;
        let work = move || {
            let _turn = turn;
            let mut tags = vec![[0; TAG_BYTES]; pieces.len() * blob.geometry.code.data()];
            let from = blob.geometry.span(&table, &pieces).start as u64;
            let spans = blob.geometry.scatter(&table, &pieces, buffer.as_mut(), &mut tags);
            for ((index, folder), mut span) in folders.into_iter().enumerate().zip(spans) {
                folder.read_to(&fragment::name(&blob.part.blob, extent, index), from, &mut span).ok()?;
            }
            let plain = blob.geometry.open_whole(&blob.keys, extent, &table, &pieces, buffer.as_mut(), &tags)?;
            let bytes = buffer.freeze();
            Some(plain.into_iter().map(|range| bytes.slice(range)).collect())
        };
        let moment = Duration::from_millis(self.config.hedge_ms.into());
        timeout(moment, tokio::task::spawn_blocking(work)).await.ok()?.ok()?
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
            // Where nothing is deflated everything has its place, and the shards have tags.
            let found = match blob.geometry.known_table(&blob.keys, plain) {
                Some(table) => Ok(table),
                None => table(&backend.get(&name, Some(0..blob.geometry.header_bytes(plain) as u64)).await?),
            };
            match found {
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
