//! What a decider has saved, for a view of the same service: it need not read every fact there ever was.

use anyhow::Context as _;
use mesh_bus::{Bucket, Bus};
use tokio::sync::mpsc;

use crate::mesh::Mesh;
use mesh_core::{
    Decider, Key,
    replica::{INDEX, Index, Saved},
};

/// Entities read at once.
const PAGE_MAX: usize = 1_000;
/// Pages read ahead of what is taken in.
const PAGES_AHEAD: usize = 2;

/// Where a decider saves its entities.
pub(crate) fn bucket<D: Decider>(bus: &Bus) -> Bucket {
    bus.bucket(&format!("snapshot-{}", D::NAME))
}

impl Mesh {
    /// Gives every entity of a decider of this service as it was last saved. Returns the sequence up to which every
    /// fact of every entity is in what was given, 0 if nothing was saved: a view reads its stream from there on and
    /// passes over what [`Saved::last`] says is known.
    ///
    /// # Errors
    /// When the bus is closed, or an entity was saved by a version that this one cannot read.
    pub async fn saved<D: Decider>(&self, mut take: impl FnMut(Key, Saved<D::State>)) -> anyhow::Result<u64> {
        let bucket = bucket::<D>(self.bus());
        // The index first: what is saved after it was read makes the entities newer, never older.
        let index = bucket.get(INDEX).await.context("read the snapshot's index")?;
        let Some(index) = index else { return Ok(0) };
        let position = serde_json::from_slice::<Index>(&index).context("decode the snapshot's index")?.position;
        let (sender, mut pages) = mpsc::channel(PAGES_AHEAD);
        let reading = async move {
            let mut next = Some(1);
            while let Some(from) = next {
                let (page, behind) = bucket.page(from, PAGE_MAX).await.context("read the snapshot")?;
                next = behind;
                if sender.send(page).await.is_err() {
                    break;
                }
            }
            anyhow::Ok(())
        };
        // On a task of its own: while one page is taken in, the next is on its way.
        let reading = tokio::spawn(reading);
        while let Some(page) = pages.recv().await {
            for (key, bytes) in page {
                let saved = Saved::read(&key, &bytes).with_context(|| format!("decode snapshot of {key}"))?;
                if let Some((key, saved)) = saved {
                    take(key, saved);
                }
            }
        }
        reading.await.context("read the snapshot")??;
        Ok(position)
    }
}
