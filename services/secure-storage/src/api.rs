//! The gRPC queries.

use std::collections::BTreeMap;

use futures::{StreamExt as _, stream};
use mesh_proto::storage::{
    LocationView, PolicyDefined, StorageHealth, StoragePolicyView, StorageRequest,
    storage_queries_server::StorageQueries,
};
use tonic::{Request, Response, Status};

use crate::{domain::storages::Bucket, objects::ObjectStore, policies::Policies};

/// The answers.
pub(crate) struct Api {
    /// What the queries are about.
    pub(crate) store: ObjectStore,
    /// Address of the S3 port.
    pub(crate) endpoint: String,
    /// Policies in a database; `None` if the view holds what is shown.
    pub(crate) policies: Option<Policies>,
}

impl Api {
    /// The policies of an owner, in order of their names.
    async fn defined(&self, owner: &str) -> Result<Vec<PolicyDefined>, Status> {
        let view = &self.store.view;
        match &self.policies {
            Some(policies) => Ok(policies.of(owner, view.read(|view| view.position("STORAGE"))).await?),
            None => Ok(view.read(|view| {
                let of_owner = view.known.policies.values().filter(|policy| policy.owner == owner);
                of_owner.cloned().collect()
            })),
        }
    }
}

#[tonic::async_trait]
impl StorageQueries for Api {
    async fn probe(&self, request: Request<StorageRequest>) -> Result<Response<StorageHealth>, Status> {
        let owner = request.into_inner().owner;
        let owner = if owner.is_empty() { "local".to_owned() } else { owner };
        let store = &self.store;
        for stream in ["STORAGE", "OBJECT"] {
            store.catch_up(stream).await.map_err(|error| Status::unavailable(error.to_string()))?;
        }
        let defined = self.defined(&owner).await?;
        let known: BTreeMap<_, _> = store.view.read(|view| {
            let of_owner = view.known.locations.iter().filter(|((o, _), _)| *o == owner);
            of_owner.map(|(at, location)| (at.clone(), location.clone())).collect()
        });
        let names: Vec<(String, String)> = known.keys().cloned().collect();
        stream::iter(names)
            .for_each_concurrent(8, |(owner, name)| async move { store.locations.probe(&owner, &name, false).await })
            .await;
        let mut locations = vec![];
        for ((owner, name), (description, generation)) in known {
            let at = (owner.clone(), name.clone());
            let measured = store.locations.measured(&at);
            let backend = store.locations.backend(&owner, &name).await;
            let [up, down, up_mb, down_mb] = measured.rtt_ms.map(Vec::from);
            locations.push(LocationView {
                description: Some(description),
                generation,
                reachable: measured.measured && measured.problem.is_empty(),
                reason: measured.problem,
                free_bytes: backend.map_or(0, |backend| backend.free_bytes()),
                rtt_upload_1b_ms: up,
                rtt_download_1b_ms: down,
                rtt_upload_1mb_ms: up_mb,
                rtt_download_1mb_ms: down_mb,
            });
        }
        let cache = store.cache.counts();
        let active = store.keys.masters.active().to_owned();
        let health = store.view.read(|view| {
            let policies = defined.into_iter().map(|policy| {
                let uses = |b: &Bucket| b.provider() == policy.owner && b.policy == policy.policy;
                let users = view.known.buckets.iter().filter(|(_, bucket)| uses(bucket));
                StoragePolicyView {
                    definition: policy.definition,
                    version: policy.version,
                    candidates: policy.candidates,
                    reason: policy.reason,
                    buckets: users.map(|(bucket, _)| bucket.replace('_', ".")).collect(),
                }
            });
            let keys = view.listings().flat_map(|(_, _, listing)| listing.values());
            let entries = keys.flat_map(crate::objects::catalogue::Versions::all).filter(|entry| !entry.is_marker);
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
