//! Objects that survive: policies, locations and buckets, and the S3 gateway in front of them.
//!
//! - Consumes: `DefinePolicy`, `DropPolicy`, `RegisterLocation`, `RetireLocation`, `CreateBucket`, `DeleteBucket`,
//!   `RequestScrub`; S3 requests.
//! - Publishes: what is decided of policies, locations and buckets; `ObjectStored`, `-Moved`, `-Deleted`; uploads and
//!   their parts; scrubs and what they found.
//! - Owns: objects, whose bytes rest as coded, sealed fragments in the locations.
//! - Never: keeps plain bytes on disk; acknowledges what is not on disk.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod api;
pub mod cache;
pub mod catalogue;
pub mod code;
mod config;
pub mod domain;
pub mod fragment;
pub mod gateway;
pub mod keys;
pub mod multipart;
pub mod place;
mod routes;
mod s3;
mod scrub;
pub mod seal;
mod serve;

use anyhow::Context as _;
use mesh_kit::{Mesh, Sources};
use mesh_proto::query::storage_queries_server::StorageQueriesServer;

pub use config::Config;
pub use s3::DEFAULT_POLICY;

/// Joins the mesh; returns once its decider and its view run and S3 is answered.
///
/// # Errors
/// When keys cannot be read, the S3 address is taken, or the bus does not let it join.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let keys = keys::read(&mesh, &config)?;
    let root = match (&config.locations_dir, mesh.data_dir()) {
        (Some(root), _) => root.clone(),
        (None, Some(folder)) => folder.join("locations"),
        (None, None) => anyhow::bail!("say where `dir:` locations are: locations_dir, or a data_dir"),
    };
    // Buckets before objects, so that those of past epochs are passed over.
    let sources = Sources { streams: vec!["STORAGE", "OBJECT"], ..Sources::default() };
    let view = mesh.project("catalogue", catalogue::Catalogue::default(), sources).await?;
    let (listener, endpoint) = serve::listen(&config.s3_listen).await.context("start S3")?;
    let probing = config.probe_ms > 0;
    let gateway = gateway::Gateway::new(mesh.clone(), view, keys, config, root);
    mesh.serve(StorageQueriesServer::new(api::Api { gateway: gateway.clone(), endpoint: endpoint.clone() }));
    mesh.spawn("scrubs", gateway.clone().scrubs());
    if probing {
        mesh.spawn("probes", gateway.clone().probes());
    }
    mesh.spawn("s3", serve::serve(gateway, listener));
    tracing::info!(endpoint, "S3");
    mesh.decide(domain::Storages).await
}
