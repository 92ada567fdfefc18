//! The memory that bodies, answers and the work on them take, all requests together.
//!
//! There are three pools, each handed out in the order of asking. A request takes its share of the first or second once, before
//! it begins, and keeps it until its last byte has left; the third is for work that ends by itself. A copy takes of the first, then of
//! the second, and whoever has a share of these takes of the third; nobody waits the other way round, so that somebody
//! can always go on.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::Error;

/// What is counted as one.
const UNIT: u64 = 4 << 10;
/// A request waits for its share no longer than this.
const WAIT_LIMIT: Duration = Duration::from_secs(120);
/// Bytes of buffers that wait for their next use at most.
const SPARE_BYTES: usize = 8 << 20;
/// A smaller buffer is allocated as fast as it is found.
const SPARE_LEAST: usize = 64 << 10;

/// Memory that is counted, for as long as it is held.
#[derive(Debug)]
pub(crate) struct Share {
    bytes: u64,
    _permit: OwnedSemaphorePermit,
}

impl Share {
    /// How much.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

struct Pool {
    free: Arc<Semaphore>,
    units: u32,
}

impl Pool {
    fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX >> 3).clamp(1, u32::MAX >> 3);
        Self { free: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Never more than all, so that what is larger than the pool waits for all of it, and not for ever.
    fn units_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.units)
    }

    /// As much as `most` if two thirds of the pool are left then; otherwise `least`, in the order of asking.
    async fn take(&self, least: u64, most: u64) -> Result<Share, Error> {
        let wanted = self.units_of(most);
        if self.free.available_permits() >= self.units as usize / 3 * 2 + wanted as usize
            && let Ok(permit) = self.free.clone().try_acquire_many_owned(wanted)
        {
            return Ok(Share { bytes: most, _permit: permit });
        }
        let permit = self.free.clone().acquire_many_owned(self.units_of(least));
        match timeout(WAIT_LIMIT, permit).await {
            Ok(permit) => Ok(Share { bytes: least, _permit: permit.map_err(Error::internal)? }),
            Err(_) => Err(Error::Busy(WAIT_LIMIT.as_secs())),
        }
    }
}

/// The memory of a gateway's requests.
pub(crate) struct Memory {
    bodies: Pool,
    answers: Pool,
    work: Pool,
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Memory {
    /// Of this many bytes.
    pub(crate) fn new(bytes: u64) -> Self {
        let of = |twentieths: u64| Pool::new(bytes / 20 * twentieths);
        Self { bodies: of(8), answers: of(7), work: of(5), spare: Arc::default() }
    }

    /// For a body, until it is stored.
    pub(crate) async fn body(&self, least: u64, most: u64) -> Result<Share, Error> {
        self.bodies.take(least, most).await
    }

    /// For an answer, until it has been taken.
    pub(crate) async fn answer(&self, least: u64, most: u64) -> Result<Share, Error> {
        self.answers.take(least, most).await
    }

    /// For work that waits for nothing but locations, whose time is limited.
    pub(crate) async fn work(&self, bytes: u64) -> Result<Share, Error> {
        let permit = self.work.free.clone().acquire_many_owned(self.work.units_of(bytes)).await;
        Ok(Share { bytes, _permit: permit.map_err(Error::internal)? })
    }

    /// A buffer of this length, whose content is anything. It is used again when it is dropped: its pages are there, and
    /// in the processor's cache.
    pub(crate) fn buffer(&self, bytes: usize, share: Arc<Share>) -> Buffer {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let found = spare.iter().rposition(|buffer| buffer.len() >= bytes && buffer.len() / 2 <= bytes);
        let found = found.map(|at| spare.swap_remove(at));
        drop(spare);
        let inner = found.unwrap_or_else(|| vec![0; bytes]);
        Buffer { inner, used: bytes, home: self.spare.clone(), _share: share }
    }
}

/// Bytes in counted memory.
pub(crate) struct Buffer {
    inner: Vec<u8>,
    used: usize,
    home: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Given back after the buffer.
    _share: Arc<Share>,
}

impl Buffer {
    /// The bytes.
    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.inner[..self.used]
    }

    /// To be sent; the memory is counted until the last of it has been.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.inner[..self.used]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut spare = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.inner.len() + spare.iter().map(Vec::len).sum::<usize>();
        if self.inner.len() >= SPARE_LEAST && bytes <= SPARE_BYTES {
            spare.push(std::mem::take(&mut self.inner));
        }
    }
}

struct Counted {
    bytes: Bytes,
    _share: Arc<Share>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes that were made elsewhere, counted until the last of them is dropped.
pub(crate) fn counted(bytes: Bytes, share: Arc<Share>) -> Bytes {
    Bytes::from_owner(Counted { bytes, _share: share })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_share_is_small_when_memory_is_short_and_free_with_its_last_bytes() {
        let memory = Memory::new(100 * UNIT);
        let free = || memory.answers.free.available_permits();
        assert_eq!(free(), 35);
        let plenty = memory.answer(UNIT, 10 * UNIT).await.unwrap();
        let second = memory.answer(UNIT, 10 * UNIT).await.unwrap();
        assert_eq!((plenty.bytes(), second.bytes(), free()), (10 * UNIT, UNIT, 24));
        let mut buffer = memory.buffer(3, Arc::new(plenty));
        buffer.as_mut().copy_from_slice(b"abc");
        let bytes = buffer.freeze();
        let part = bytes.slice(1..);
        drop(bytes);
        assert_eq!((&part[..], free()), (&b"bc"[..], 24));
        drop(part);
        assert_eq!(free(), 34);
    }

    #[tokio::test]
    async fn shares_are_given_in_the_order_of_asking() {
        let memory = Arc::new(Memory::new(20 * UNIT));
        let all = memory.work(1_000 * UNIT).await.unwrap();
        assert_eq!(memory.work.free.available_permits(), 0);
        let order = Arc::new(Mutex::new(vec![]));
        let mut waiting = vec![];
        for (number, units) in [(0, 3), (1, 1), (2, 3)] {
            let (memory, order) = (memory.clone(), order.clone());
            let mut asking = Box::pin(async move {
                let _share = memory.work(units * UNIT).await.unwrap();
                order.lock().unwrap().push(number);
            });
            assert!(futures::poll!(&mut asking).is_pending());
            waiting.push(asking);
        }
        drop(all);
        futures::future::join_all(waiting).await;
        assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
    }
}
