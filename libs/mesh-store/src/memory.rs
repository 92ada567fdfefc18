//! The embedded engine: ordered maps, bounded by stated limits, with snapshots to bytes.
//!
//! Each type is a plain value that can also live inside a pure view; [`Shared`] makes it a store that many may use.

mod documents;
mod history;
mod series;
mod window;

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

pub use documents::{DocumentLimits, Documents};
pub use history::History;
pub use series::Series;
pub use window::WindowLimits;

use crate::{Applied, Error, lost};

/// One value that many may use, each call whole.
#[derive(Debug, Default)]
pub struct Shared<T>(Mutex<T>);

impl<T> Shared<T> {
    /// Shares a value.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// The value, alone; no call holds it across a wait.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last fact of each stream that has been applied whole.
#[derive(Clone, Debug, Default, PartialEq)]
struct Positions(BTreeMap<String, u64>);

impl Positions {
    fn of(&self, stream: &str) -> u64 {
        self.0.get(stream).copied().unwrap_or(0)
    }

    fn covers(&self, applied: &Applied) -> bool {
        applied.sequence <= self.of(&applied.stream)
    }

    fn advance(&mut self, from: u64, applied: &Applied) -> Result<(), Error> {
        let position = self.0.entry(applied.stream.clone()).or_default();
        if *position < from {
            return Err(lost(applied, from, *position));
        }
        *position = applied.sequence.max(*position);
        Ok(())
    }
}

/// Does all of this; fails as the first that failed.
fn first_refusal(done: impl Iterator<Item = Result<(), Error>>) -> Result<(), Error> {
    done.fold(Ok(()), Result::and)
}
