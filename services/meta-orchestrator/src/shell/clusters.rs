//! Registrations of clusters in a database: kept from `CLUSTER`, looked up when somebody asks.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use mesh_core::{Outgoing, Stored, query};
use mesh_kit::{Content, Kept, Mesh, Newest, Projection};
use mesh_proto::cluster::ClusterRegistered;
use mesh_store::Query;

/// The newest registration of a cluster.
type Registration = Newest<ClusterRegistered>;

/// Stream of the registrations.
const STREAM: &str = "CLUSTER";
/// Registrations read at once.
const READ_MAX: usize = 1_000;

/// Registrations in a database. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Clusters {
    kept: Kept,
    /// What was there when the process started is there before a question is answered.
    begun: u64,
}

/// Some registrations in order of their ids, and whether more follow.
pub(crate) type Read = (BTreeMap<String, ClusterRegistered>, bool);

impl Clusters {
    /// Keeps registrations where the configuration says; `None` if that is memory, where the view holds them.
    ///
    /// # Errors
    /// A URL that cannot be used for documents; when the bus is closed.
    pub(crate) async fn keep(mesh: &Mesh, own: &str) -> anyhow::Result<Option<Arc<Self>>> {
        let Some(kept) = Kept::open(mesh, ("clusters", "clusters"), own, STREAM)? else { return Ok(None) };
        let begun = mesh.bus().log(STREAM).last_sequence().await.context("read end of CLUSTER")?;
        kept.follow(mesh, Registrations);
        Ok(Some(Arc::new(Self { kept, begun })))
    }

    /// The registration of a cluster.
    ///
    /// # Errors
    /// Unavailable.
    pub(crate) async fn get(&self, id: &str) -> Result<Option<ClusterRegistered>, query::Error> {
        self.kept.current(self.begun).await?;
        let found = self.kept.documents().get(id).await.map_err(|error| self.kept.unanswered(error))?;
        let read = found.map(|found| Registration::read(Some(&found.body))).transpose();
        Ok(read.map_err(|error| self.kept.unanswered(error))?.and_then(Registration::fact))
    }

    /// Registrations after that of an id.
    ///
    /// # Errors
    /// Unavailable.
    pub(crate) async fn after(&self, id: &str) -> Result<Read, query::Error> {
        self.kept.current(self.begun).await?;
        let query = Query { limit: READ_MAX, ..Query::default() }.after(id);
        let found = self.kept.documents().list(&query).await.map_err(|error| self.kept.unanswered(error))?;
        let more = !found.next.is_empty();
        let read = found.documents.into_iter().map(|found| {
            let registered = Registration::read(Some(&found.body))?.fact();
            anyhow::Ok((found.id, registered.unwrap_or_default()))
        });
        Ok((read.collect::<Result<_, _>>().map_err(|error| self.kept.unanswered(error))?, more))
    }
}

/// The facts of clusters, of which registrations are kept.
struct Registrations;

impl Projection for Registrations {
    type Fact = ClusterRegistered;
    type Entry = Registration;

    fn fact(&self, stored: &Stored) -> Option<(Vec<String>, ClusterRegistered)> {
        let registered = stored.event::<ClusterRegistered>().ok()??;
        Some((vec![registered.cluster_id.clone()], registered))
    }

    fn entry(&self, _: &str, body: Option<&Bytes>) -> anyhow::Result<Registration> {
        Ok(Registration::read(body)?)
    }

    fn fold(&self, entry: &mut Registration, stored: &Stored, fact: &ClusterRegistered) -> Option<Vec<Outgoing>> {
        entry.fold(stored.sequence, Some(fact)).then(Vec::new)
    }

    fn content(&self, _: &str, entry: &Registration) -> anyhow::Result<Option<Content>> {
        Ok(entry.body().map(|body| Content { body, ..Content::default() }))
    }
}
