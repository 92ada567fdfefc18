//! Packs that were decoded a moment ago: who takes their bytes next need not decode them again.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use mesh_proto::telemetry::{InstanceSample, Readings};

/// Packs that are remembered, and their bytes, at most.
const PACKS_MAX: usize = 128;
const BYTES_MAX: usize = 4 << 20;

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
    newest: VecDeque<(Bytes, Held)>,
    bytes: usize,
}

impl Recent {
    fn packs(&self) -> MutexGuard<'_, Packs> {
        // Nothing that holds it panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a pack; the oldest make room.
    pub(crate) fn keep(&self, body: Bytes, held: Held) {
        let Packs { newest, bytes } = &mut *self.packs();
        *bytes += body.len();
        newest.push_back((body, held));
        while newest.len() > PACKS_MAX || *bytes > BYTES_MAX {
            let Some((first, _)) = newest.pop_front() else { return };
            *bytes -= first.len();
        }
    }

    /// What these bytes hold, if they are remembered; they no longer are.
    pub(crate) fn take(&self, body: &Bytes) -> Option<Held> {
        let Packs { newest, bytes } = &mut *self.packs();
        let place = newest.iter().position(|(known, _)| known == body)?;
        let (known, held) = newest.remove(place)?;
        *bytes -= known.len();
        Some(held)
    }

    /// What these bytes hold, if they are remembered.
    pub(crate) fn of(&self, body: &Bytes) -> Option<Held> {
        self.packs().newest.iter().find(|(known, _)| known == body).map(|(_, held)| held.clone())
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

    fn found(recent: &Recent, body: &Bytes) -> Option<u32> {
        match recent.of(body)? {
            Held::Samples(samples) => Some(samples[0].restarts),
            Held::Readings(_) => None,
        }
    }

    #[test]
    fn the_newest_packs_are_found_by_their_bytes_within_the_limits() {
        let recent = Recent::default();
        (0..200).for_each(|number| recent.keep(body(number, 9), held(number)));
        assert_eq!(found(&recent, &body(72, 9)), Some(72));
        assert_eq!((found(&recent, &body(71, 9)), found(&recent, &body(199, 10))), (None, None));
        assert!(recent.take(&body(72, 9)).is_some() && recent.take(&body(72, 9)).is_none());
        assert_eq!(recent.packs().bytes, 127 * 9);
        (0..8).for_each(|number| recent.keep(body(number, BYTES_MAX / 4), held(number)));
        assert_eq!(found(&recent, &body(4, BYTES_MAX / 4)), Some(4));
        assert_eq!((found(&recent, &body(3, BYTES_MAX / 4)), found(&recent, &body(199, 9))), (None, None));
        // One that is too large alone is not kept.
        recent.keep(body(9, BYTES_MAX + 1), held(9));
        assert_eq!(found(&recent, &body(9, BYTES_MAX + 1)), None);
        assert_eq!(recent.packs().bytes, 0);
    }
}
