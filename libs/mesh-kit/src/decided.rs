//! What a decider holds, for the queries of the same service: its states and its read model are looked at where they are,
//! and no view folds them a second time.

use std::sync::Arc;

use anyhow::Context as _;
use mesh_bus::Bucket;
use mesh_core::{
    Decider, Key,
    replica::{Replica, snapshot_key},
};
use parking_lot::RwLock;
use tokio::sync::{Notify, watch};

use crate::view::{Source, View};

/// Read access to a running decider. Cheap to clone.
pub struct Decided<D: Decider> {
    pub(crate) replica: Arc<RwLock<Replica<D>>>,
    pub(crate) bucket: Bucket,
    pub(crate) changes: watch::Receiver<u64>,
    /// Wakes the decider's shell.
    pub(crate) wake: Arc<Notify>,
}

impl<D: Decider> Clone for Decided<D> {
    fn clone(&self) -> Self {
        Self {
            replica: self.replica.clone(),
            bucket: self.bucket.clone(),
            changes: self.changes.clone(),
            wake: self.wake.clone(),
        }
    }
}

impl<D: Decider> Decided<D> {
    /// Own facts up to this sequence are in the states that it holds.
    pub fn position(&self) -> u64 {
        self.replica.read().position()
    }

    /// A view of what the decider knows of others. Its positions are those of the streams that the read model is folded
    /// from.
    pub fn read_model(&self) -> View<D::ReadModel> {
        View::of(Arc::new(ReadModelOf(self.replica.clone())), self.changes.clone())
    }

    /// A view of one entity, which stays in memory from now on; of one without facts, its initial state. Its position is
    /// that of the decider's own stream.
    ///
    /// # Errors
    /// When the bus is closed, or the entity was saved by a version that this one cannot read.
    pub async fn entity(&self, key: Key) -> anyhow::Result<View<D::State>> {
        let loaded = self.replica.write().pin(&key);
        if !loaded {
            let bytes = self.bucket.get(&snapshot_key(&key)).await.context("read the saved entity")?;
            let mut replica = self.replica.write();
            replica.loaded(&key, bytes.as_deref()).with_context(|| format!("decode the saved entity {key}"))?;
            drop(replica);
            self.wake.notify_one();
        }
        let blank = self.replica.read().decider().initial();
        let source = EntityOf { replica: self.replica.clone(), key, blank };
        Ok(View::of(Arc::new(source), self.changes.clone()))
    }
}

struct ReadModelOf<D: Decider>(Arc<RwLock<Replica<D>>>);

impl<D: Decider> Source<D::ReadModel> for ReadModelOf<D> {
    fn look(&self, look: &mut dyn FnMut(&D::ReadModel)) {
        look(self.0.read().world());
    }

    fn position(&self, stream: &str) -> u64 {
        self.0.read().world_position(stream)
    }
}

struct EntityOf<D: Decider> {
    replica: Arc<RwLock<Replica<D>>>,
    key: Key,
    blank: D::State,
}

impl<D: Decider> Source<D::State> for EntityOf<D> {
    fn look(&self, look: &mut dyn FnMut(&D::State)) {
        look(self.replica.read().state(&self.key).unwrap_or(&self.blank));
    }

    fn position(&self, stream: &str) -> u64 {
        let replica = self.replica.read();
        if replica.own_stream() == stream { replica.position() } else { 0 }
    }
}
