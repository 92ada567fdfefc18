//! Plain pieces in memory; the least recently used leaves first. A blob never changes, so that nothing here can be
//! stale; the blobs of deleted objects are removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;

type Key = (Vec<u8>, u32);

/// An object may take this part of the cache at most.
const OBJECT_SHARE: u64 = 8;

#[derive(Default)]
struct Inner {
    pieces: BTreeMap<Key, (Bytes, u64)>,
    by_use: BTreeSet<(u64, Key)>,
    uses: u64,
    bytes: u64,
    hits: u64,
    misses: u64,
}

/// The cache.
pub struct Cache {
    inner: Mutex<Inner>,
    limit: u64,
}

/// Counters of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes in it.
    pub bytes: u64,
    /// Pieces that were found.
    pub hits: u64,
    /// Pieces that were not found.
    pub misses: u64,
}

impl Cache {
    /// Of at most `limit` bytes; 0 keeps nothing.
    pub fn new(limit: u64) -> Self {
        Self { inner: Mutex::default(), limit }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is an object of this size kept? A larger one would drive out all others, and is soon out itself.
    pub fn takes(&self, size: u64) -> bool {
        size <= self.limit / OBJECT_SHARE
    }

    /// Is a piece of a blob there, counted from its first?
    pub fn has(&self, blob: &[u8], piece: u32) -> bool {
        self.lock().pieces.contains_key(&(blob.to_vec(), piece))
    }

    /// A piece of a blob.
    pub fn get(&self, blob: &[u8], piece: u32) -> Option<Bytes> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.uses += 1;
        let key = (blob.to_vec(), piece);
        match inner.pieces.get_mut(&key) {
            Some((bytes, used)) => {
                let moved = inner.by_use.remove(&(*used, key.clone()));
                debug_assert!(moved);
                *used = inner.uses;
                inner.by_use.insert((inner.uses, key));
                inner.hits += 1;
                Some(bytes.clone())
            }
            None => {
                inner.misses += 1;
                None
            }
        }
    }

    /// Keeps a piece.
    pub fn put(&self, blob: &[u8], piece: u32, bytes: Bytes) {
        if bytes.len() as u64 > self.limit {
            return;
        }
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.uses += 1;
        inner.bytes += bytes.len() as u64;
        let key = (blob.to_vec(), piece);
        inner.by_use.insert((inner.uses, key.clone()));
        if let Some((old, used)) = inner.pieces.insert(key.clone(), (bytes, inner.uses)) {
            inner.bytes -= old.len() as u64;
            inner.by_use.remove(&(used, key));
        }
        while inner.bytes > self.limit {
            let Some((_, key)) = inner.by_use.pop_first() else { return };
            if let Some((old, _)) = inner.pieces.remove(&key) {
                inner.bytes -= old.len() as u64;
            }
        }
    }

    /// Removes a blob.
    pub fn purge(&self, blob: &[u8]) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let keys: Vec<Key> =
            inner.pieces.range((blob.to_vec(), 0)..=(blob.to_vec(), u32::MAX)).map(|(k, _)| k.clone()).collect();
        for key in keys {
            if let Some((old, used)) = inner.pieces.remove(&key) {
                inner.bytes -= old.len() as u64;
                inner.by_use.remove(&(used, key));
            }
        }
    }

    /// Its counters.
    pub fn counts(&self) -> Counts {
        let inner = self.lock();
        Counts { bytes: inner.bytes, hits: inner.hits, misses: inner.misses }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first_and_a_purged_blob_is_gone() {
        let cache = Cache::new(30);
        let bytes = Bytes::from_static(b"0123456789");
        for piece in 0..3 {
            cache.put(b"a", piece, bytes.clone());
        }
        assert!(cache.get(b"a", 0).is_some());
        cache.put(b"b", 0, bytes.clone());
        assert!(cache.get(b"a", 1).is_none());
        assert!(cache.get(b"a", 0).is_some() && cache.get(b"b", 0).is_some());
        cache.put(b"b", 0, bytes.clone());
        assert_eq!(cache.counts().bytes, 30);
        cache.purge(b"a");
        assert_eq!(cache.counts(), Counts { bytes: 10, hits: 3, misses: 1 });
        cache.put(b"c", 0, Bytes::from(vec![0; 31]));
        assert!(cache.get(b"c", 0).is_none());
    }
}
