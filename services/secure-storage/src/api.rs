//! Answers over gRPC, and how the locations do.

use std::{
    collections::BTreeMap,
    sync::PoisonError,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use mesh_proto::query::{
    LocationView, StorageHealth, StoragePolicyView, StorageRequest, storage_queries_server::StorageQueries,
};
use tonic::{Request, Response, Status};

use crate::gateway::Gateway;

/// Readings kept of each measurement.
const READINGS: usize = 30;
/// Bytes of the larger measurement.
const LARGE: usize = 1_000_000;

/// The answers.
pub(crate) struct Api {
    /// What is asked about.
    pub(crate) gateway: Gateway,
    /// Where S3 is answered.
    pub(crate) endpoint: String,
}

impl Gateway {
    /// Writes and reads back one byte, and 1 MB if `large`; remembers how long it took, or why not.
    pub(crate) async fn probe(&self, owner: &str, name: &str, large: bool) {
        let mut found = [None; 4];
        let away = self.probe_once(owner, name, large, &mut found).await.err().unwrap_or_default();
        self.note(owner, name, !away.is_empty());
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = measured.entry((owner.to_owned(), name.to_owned())).or_default();
        (entry.away, entry.known) = (away, true);
        for (readings, found) in entry.rtt.iter_mut().zip(found) {
            readings.extend(found);
            while readings.len() > READINGS {
                readings.pop_front();
            }
        }
    }

    #[allow(clippy::disallowed_methods)]
    async fn probe_once(
        &self,
        owner: &str,
        name: &str,
        large: bool,
        found: &mut [Option<u32>; 4],
    ) -> Result<(), String> {
        let limit = Duration::from_millis(self.config.location_limit_ms.into());
        let probe = format!("probe/{}", self.mesh.process());
        let measure = async {
            let place = self.place(owner, name).await?;
            for (at, bytes) in [(0, 1), (2, LARGE)].into_iter().take(if large { 2 } else { 1 }) {
                let begun = Instant::now();
                place.put(&probe, Bytes::from(vec![b'p'; bytes])).await?;
                found[at] = Some(begun.elapsed().as_millis() as u32);
                let begun = Instant::now();
                place.get(&probe, None).await?;
                found[at + 1] = Some(begun.elapsed().as_millis() as u32);
            }
            place.delete(&probe).await
        };
        match tokio::time::timeout(limit, measure).await {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(_) => Err(format!("did not answer within {} ms", limit.as_millis())),
        }
    }

    /// Measures every location, again and again, until the process stops.
    pub(crate) async fn probes(self) -> anyhow::Result<()> {
        let (stopping, every) = (self.mesh.stopping(), Duration::from_millis(self.config.probe_ms));
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = stopping.cancelled() => return Ok(()),
            }
            let known: Vec<_> = self.view.read(|view| view.known.locations.keys().cloned().collect());
            self.measured.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| known.contains(key));
            for (owner, name) in known {
                self.probe(&owner, &name, true).await;
            }
        }
    }
}

#[tonic::async_trait]
impl StorageQueries for Api {
    async fn health(&self, request: Request<StorageRequest>) -> Result<Response<StorageHealth>, Status> {
        let owner = request.into_inner().owner;
        let owner = if owner.is_empty() { "local".to_owned() } else { owner };
        let gateway = &self.gateway;
        for stream in ["STORAGE", "OBJECT"] {
            gateway.catch_up(stream).await.map_err(|error| Status::unavailable(error.to_string()))?;
        }
        let known: BTreeMap<_, _> = gateway.view.read(|view| {
            let of_owner = view.known.locations.iter().filter(|((o, _), _)| *o == owner);
            of_owner.map(|(at, location)| (at.clone(), location.clone())).collect()
        });
        let names: Vec<(String, String)> = known.keys().cloned().collect();
        stream::iter(names)
            .for_each_concurrent(8, |(owner, name)| async move { gateway.probe(&owner, &name, false).await })
            .await;
        let mut locations = vec![];
        for ((owner, name), (description, generation)) in known {
            let at = (owner.clone(), name.clone());
            let measured = gateway.measured.lock().unwrap_or_else(PoisonError::into_inner).get(&at).cloned();
            let measured = measured.unwrap_or_default();
            let place = gateway.place(&owner, &name).await;
            let [up, down, up_mb, down_mb] = measured.rtt.map(Vec::from);
            locations.push(LocationView {
                description: Some(description),
                generation,
                reachable: measured.known && measured.away.is_empty(),
                reason: measured.away,
                free_bytes: place.map_or(0, |place| place.free_bytes()),
                rtt_upload_1b_ms: up,
                rtt_download_1b_ms: down,
                rtt_upload_1mb_ms: up_mb,
                rtt_download_1mb_ms: down_mb,
            });
        }
        let cache = gateway.cache.counts();
        let active = gateway.keys.masters.active().to_owned();
        let health = gateway.view.read(|view| {
            let policies = view.known.policies.iter().filter(|((o, _), _)| *o == owner).map(|((o, name), policy)| {
                let users = view.known.buckets.iter().filter(|(_, b)| b.owner == *o && b.policy == *name);
                StoragePolicyView {
                    definition: policy.definition.clone(),
                    version: policy.version,
                    candidates: policy.candidates.clone(),
                    reason: policy.reason.clone(),
                    buckets: users.map(|(bucket, _)| bucket.replace('_', ".")).collect(),
                }
            });
            let entries = view.listings().flat_map(|(_, _, listing)| listing.values());
            StorageHealth {
                s3_endpoint: self.endpoint.clone(),
                objects: view.count,
                object_bytes: view.bytes,
                uploads: view.uploads.len() as u64,
                locations,
                policies: policies.collect(),
                to_rewrap: entries.filter(|entry| entry.master_key != active).count() as u64,
                master_key: active.clone(),
                cache_bytes: cache.bytes,
                cache_hits: cache.hits,
                cache_misses: cache.misses,
            }
        });
        Ok(Response::new(health))
    }
}
