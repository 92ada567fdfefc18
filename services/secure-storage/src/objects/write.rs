//! The write pipeline: a body becomes sealed and coded fragments in the locations of a layout.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _, stream::FuturesUnordered};
use md5::{Digest as _, Md5};
use mesh_proto::object::{Checksum, Layout, ObjectStored, Part};
use tokio::{task::JoinSet, time::timeout};

use super::{Announced, Blob, BodyError, EXTENTS_IN_FLIGHT, Error, ObjectStore, geometry};
use crate::{
    blob::{fragment, seal::DataKey},
    domain::checksums::Hasher,
    keys,
};

/// A body may be silent for this long.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
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

impl ObjectStore {
    /// Codes an extent and writes its fragments. Returns when `acknowledge_at` of them are on disk and the others had
    /// `hedge_ms` more.
    async fn write_extent(
        self,
        blob: Arc<Blob>,
        extent: u32,
        plain: Bytes,
        acknowledge_at: usize,
    ) -> Result<(), Error> {
        let coding = blob.clone();
        let fragments = tokio::task::spawn_blocking(move || coding.geometry.write(&coding.keys, extent, &plain))
            .await
            .map_err(Error::internal)??;
        let mut writes = FuturesUnordered::new();
        for (index, bytes) in fragments.into_iter().enumerate() {
            let (store, blob) = (self.clone(), blob.clone());
            // A task of its own, so that a slow location finishes after the answer.
            let task = tokio::spawn(async move {
                let location = &blob.layout.locations[index];
                let name = fragment::name(&blob.part.blob, extent, index);
                let put = store.locations.put(&blob.layout.owner, location, &name, bytes.into()).await;
                put.map_err(|error| format!("{location}: {error}"))
            });
            writes.push(task);
        }
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
        let extent_bytes = blob.geometry.extent_bytes as usize;
        let (mut md5, mut size, mut extent) = (Md5::new(), 0u64, 0u32);
        let mut hasher = announced.algorithm.map(Hasher::new);
        let mut buffer = BytesMut::new();
        let mut writing: JoinSet<Result<(), Error>> = JoinSet::new();
        let mut open = true;
        // A scrub removes fragments of no object once they are older than `orphan_ms`.
        let begun = self.mesh.now();
        let limit_ms = i64::try_from(self.config.orphan_ms / 2).unwrap_or(i64::MAX);
        while open || !buffer.is_empty() {
            while open && buffer.len() < extent_bytes {
                let Ok(next) = timeout(IDLE_LIMIT, body.next()).await else {
                    return Err((BodyError::Silent { seconds: IDLE_LIMIT.as_secs() }.into(), size));
                };
                if self.mesh.now().millis_since(begun) > limit_ms {
                    return Err((BodyError::Slow { limit_ms }.into(), size));
                }
                match next {
                    Some(Ok(bytes)) => {
                        md5.update(&bytes);
                        if let Some(hasher) = &mut hasher {
                            hasher.update(&bytes);
                        }
                        size += bytes.len() as u64;
                        buffer.extend_from_slice(&bytes);
                    }
                    Some(Err(error)) => {
                        let broken = BodyError::Broken { received: size, problem: error.to_string() };
                        return Err((broken.into(), size));
                    }
                    None => open = false,
                }
            }
            if buffer.is_empty() {
                break;
            }
            let permit = self.extents.clone().acquire_owned().await.map_err(|e| (Error::internal(e), size))?;
            let plain = buffer.split_to(extent_bytes.min(buffer.len())).freeze();
            let (store, blob) = (self.clone(), blob.clone());
            writing.spawn(async move {
                let written = store.write_extent(blob, extent, plain, acknowledge_at).await;
                drop(permit);
                written
            });
            extent += 1;
            while writing.len() >= EXTENTS_IN_FLIGHT {
                settle(writing.join_next().await).map_err(|e| (e, size))?;
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

fn settle(done: Option<Result<Result<(), Error>, tokio::task::JoinError>>) -> Result<(), Error> {
    done.map_or(Ok(()), |done| done.unwrap_or_else(|error| Err(Error::internal(error))))
}
