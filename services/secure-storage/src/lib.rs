//! Objects that survive: policies, locations and buckets, and the S3 gateway in front of them.
//!
//! - Consumes: `DefinePolicy`, `DropPolicy`, `RegisterLocation`, `RetireLocation`, `CreateBucket`, `DeleteBucket`,
//!   `RequestScrub`; S3 requests.
//! - Publishes: facts about policies, locations and buckets; `ObjectStored`, `-Moved`, `-Deleted`; uploads and their
//!   parts; scrubs and their reports.
//! - Owns: objects, whose bytes are stored as coded, sealed fragments in the locations.
//! - Never: writes plain bytes to disk, unless a policy says `NONE`; acknowledges what is not on disk.

#![allow(
    clippy::disallowed_methods,
    reason = "objects are streamed by tasks, keys and nonces are drawn; xtask tidy keeps this out of domain"
)]

mod api;
pub mod backend;
pub mod blob;
mod config;
pub mod domain;
pub mod keys;
mod locations;
pub mod objects;
mod policies;
mod s3;

use anyhow::Context as _;
use mesh_kit::{Mesh, Sources};
use mesh_proto::storage::storage_queries_server::StorageQueriesServer;

pub use config::Config;
pub use objects::ObjectStore;
pub use s3::DEFAULT_POLICY;
#[doc(hidden)]
pub use s3::fuzzed;

/// Joins the mesh; returns once its decider and its view run and S3 is answered.
///
/// # Errors
/// When keys cannot be read, the S3 address is taken, or the bus does not let it join.
pub async fn start(mesh: Mesh, config: Config) -> anyhow::Result<()> {
    let keys = keys::read(&mesh, &config)?;
    let root = match (&config.locations_dir, mesh.data_dir()) {
        (Some(root), _) => root.clone(),
        (None, Some(folder)) => folder.join("locations"),
        (None, None) => anyhow::bail!("no folder for `dir:` locations; set locations_dir, or a data_dir"),
    };
    // Buckets before objects, so that objects of past epochs are skipped.
    let sources = Sources { streams: vec!["STORAGE", "OBJECT"], ..Sources::default() };
    let view = mesh.project("catalogue", objects::catalogue::Catalogue::default(), sources).await?;
    let (listener, endpoint) = s3::listen(&config.s3_listen).await.context("start S3")?;
    let policies = policies::Policies::keep(&mesh, &config.documents)?;
    let (probing, probe_every) = (config.probe_ms > 0, std::time::Duration::from_millis(config.probe_ms));
    let store = ObjectStore::new(mesh.clone(), view, keys, config, root);
    store.locations.clear_spool();
    mesh.serve(StorageQueriesServer::new(api::Api { store: store.clone(), endpoint: endpoint.clone(), policies }));
    mesh.spawn("scrubs", store.clone().scrubs());
    mesh.spawn("uploads", store.clone().finish_uploads());
    if probing {
        let store = store.clone();
        mesh.spawn("probes", async move { store.locations.probe_all(probe_every).await });
    }
    mesh.spawn("s3", s3::serve(store, listener));
    tracing::info!(endpoint, "answering S3");
    mesh.decide(domain::storages::Storages).await?;
    Ok(())
}
