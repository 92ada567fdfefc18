//! Storage policies in a database: kept from `STORAGE`, looked up when somebody asks. What objects are stored by is in
//! memory, always: it must not wait for a database.

use bytes::Bytes;
use mesh_core::{Outgoing, Stored, query};
use mesh_kit::{Content, Kept, Mesh, Newest, Projection};
use mesh_proto::{deciders::stream_storage::Event, storage::PolicyDefined};
use mesh_store::Query;

/// Stream of the policies.
const STREAM: &str = "STORAGE";
/// Policies read at once.
const READ_MAX: usize = 250;
/// The index of an owner's policies.
const OWNER: &str = "owner";

/// Policies in a database. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Policies(Kept);

impl Policies {
    /// Keeps policies where the configuration says; `None` if that is memory, where the view holds them.
    ///
    /// # Errors
    /// A URL that cannot be used for documents.
    pub(crate) fn keep(mesh: &Mesh, own: &str) -> anyhow::Result<Option<Self>> {
        let Some(kept) = Kept::open(mesh, ("policies", "policies"), own, STREAM)? else { return Ok(None) };
        kept.follow(mesh, Definitions);
        Ok(Some(Self(kept)))
    }

    /// The policies of an owner, in order of their names, as facts of `STORAGE` up to this one made them.
    ///
    /// # Errors
    /// Unavailable.
    pub(crate) async fn of(&self, owner: &str, through: u64) -> Result<Vec<PolicyDefined>, query::Error> {
        self.0.current(through).await?;
        let (mut policies, mut after) = (vec![], String::new());
        loop {
            let of_owner = [(OWNER.to_owned(), owner.to_owned())].into();
            let query = Query { equal: of_owner, limit: READ_MAX, ..Query::default() }.after(&after);
            let found = self.0.documents().list(&query).await.map_err(|error| self.0.unanswered(error))?;
            for document in found.documents {
                let read = Newest::read(Some(&document.body)).map_err(|error| self.0.unanswered(error))?;
                policies.extend(read.fact());
                after = document.id;
            }
            if found.next.is_empty() {
                return Ok(policies);
            }
        }
    }
}

/// The facts of policies.
struct Definitions;

impl Projection for Definitions {
    /// Its newest definition; `None` when it was dropped.
    type Fact = Option<PolicyDefined>;
    type Entry = Newest<PolicyDefined>;

    fn fact(&self, stored: &Stored) -> Option<(Vec<String>, Option<PolicyDefined>)> {
        let id = |owner: &str, policy: &str| vec![format!("{owner} {policy}")];
        match crate::domain::event::<Event>(stored)? {
            Event::PolicyDefined(m) => Some((id(&m.owner, &m.policy), Some(m))),
            Event::PolicyDropped(m) => Some((id(&m.owner, &m.policy), None)),
            _ => None,
        }
    }

    fn entry(&self, _: &str, body: Option<&Bytes>) -> anyhow::Result<Newest<PolicyDefined>> {
        Ok(Newest::read(body)?)
    }

    fn fold(
        &self,
        entry: &mut Newest<PolicyDefined>,
        stored: &Stored,
        fact: &Option<PolicyDefined>,
    ) -> Option<Vec<Outgoing>> {
        entry.fold(stored.sequence, fact.as_ref()).then(Vec::new)
    }

    fn content(&self, id: &str, entry: &Newest<PolicyDefined>) -> anyhow::Result<Option<Content>> {
        let owner = id.split_once(' ').map_or(id, |(owner, _)| owner).to_owned();
        let indexes = [(OWNER.to_owned(), owner)];
        Ok(entry.body().map(|body| Content { indexes: indexes.into(), body }))
    }
}
