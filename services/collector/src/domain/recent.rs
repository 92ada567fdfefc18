//! Packs that were decoded a moment ago: who takes their bytes next need not decode them again.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use mesh_proto::telemetry::{InstanceSample, Readings};

/// Packs that are remembered, and their bytes, at most; decoded, they are ten times as large.
const PACKS_MAX: usize = 32;
const BYTES_MAX: usize = 1 << 20;

/// What a message of `TELEMETRY` holds.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    Readings(Arc<Readings>),
    Samples(Arc<[Arc<InstanceSample>]>),
}

impl Held {
    /// Samples that were decoded.
    pub(crate) fn samples(samples: Vec<InstanceSample>) -> Self {
        Self::Samples(samples.into_iter().map(Arc::new).collect())
    }
}

/// The packs, by their bytes: another message of the same id is another pack.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<Packs>);

#[derive(Debug, Default)]
struct Packs {
    newest: VecDeque<Pack>,
    bytes: usize,
}

#[derive(Debug)]
struct Pack {
    body: Bytes,
    held: Held,
    /// Readers that have not taken it.
    readers: usize,
}

impl Recent {
    fn packs(&self) -> MutexGuard<'_, Packs> {
        // Nothing that holds it panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a pack until as many readers have taken it; the oldest make room.
    pub(crate) fn keep(&self, body: Bytes, held: Held, readers: usize) {
        let Packs { newest, bytes } = &mut *self.packs();
        *bytes += body.len();
        newest.push_back(Pack { body, held, readers });
        while newest.len() > PACKS_MAX || *bytes > BYTES_MAX {
            let Some(first) = newest.pop_front() else { return };
            *bytes -= first.body.len();
        }
    }

    /// What these bytes hold, if they are remembered, for one reader.
    pub(crate) fn take(&self, body: &Bytes) -> Option<Held> {
        let Packs { newest, bytes } = &mut *self.packs();
        let place = newest.iter().position(|pack| pack.body == *body)?;
        let pack = newest.get_mut(place)?;
        pack.readers = pack.readers.saturating_sub(1);
        if pack.readers > 0 {
            return Some(pack.held.clone());
        }
        let pack = newest.remove(place)?;
        *bytes -= pack.body.len();
        Some(pack.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(number: u32, len: usize) -> Bytes {
        let mut body = number.to_be_bytes().to_vec();
        body.resize(len, 0);
        body.into()
    }

    fn held(number: u32) -> Held {
        Held::samples(vec![InstanceSample { restarts: number, ..InstanceSample::default() }])
    }

    fn taken(recent: &Recent, body: &Bytes) -> Option<u32> {
        match recent.take(body)? {
            Held::Samples(samples) => Some(samples[0].restarts),
            Held::Readings(_) => None,
        }
    }

    #[test]
    fn the_newest_packs_are_found_by_their_bytes_within_the_limits() {
        let recent = Recent::default();
        (0..200).for_each(|number| recent.keep(body(number, 9), held(number), 2));
        assert_eq!(taken(&recent, &body(168, 9)), Some(168));
        assert_eq!((taken(&recent, &body(167, 9)), taken(&recent, &body(199, 10))), (None, None));
        // Each of two readers takes it once.
        assert_eq!((taken(&recent, &body(168, 9)), taken(&recent, &body(168, 9))), (Some(168), None));
        assert_eq!(recent.packs().bytes, 31 * 9);
        (0..8).for_each(|number| recent.keep(body(number, BYTES_MAX / 4), held(number), 1));
        assert_eq!(taken(&recent, &body(4, BYTES_MAX / 4)), Some(4));
        assert_eq!((taken(&recent, &body(3, BYTES_MAX / 4)), taken(&recent, &body(199, 9))), (None, None));
        // One that is too large alone is not kept.
        recent.keep(body(9, BYTES_MAX + 1), held(9), 1);
        assert_eq!(taken(&recent, &body(9, BYTES_MAX + 1)), None);
        assert_eq!(recent.packs().bytes, 0);
    }
}
