//! Documents and instances in a database, or in memory: what is asked about them is answered from where they are.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use mesh_core::{
    Outgoing, Stored,
    query::{Error, owner},
};
use mesh_kit::{Content, Decided, Kept, Mesh, Projection, View};
use mesh_proto::{
    deciders::stream_workload::Event,
    query::{GetRequest, ListRequest},
    workload::{InstanceView, WorkloadList, WorkloadView},
};
use mesh_store::Query;
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};

use crate::domain::{
    Workloads,
    catalogue::{After, Asked, Catalogue, named, token, unknown_document, unknown_instance},
    kept::{self, Entry},
};

/// Stream of the facts.
const STREAM: &str = "WORKLOAD";
/// Charts that are looked at at once of those that wait for their checks; the others are once these are done.
const AWAITING_MAX: usize = 100;

/// Where documents and instances are. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Shown {
    /// In memory.
    View(View<Catalogue>),
    /// In a database.
    Kept(Stores),
}

impl Shown {
    /// A document by `name` (its newest version) or `name@version`.
    ///
    /// # Errors
    /// Not found, with what to do; unavailable.
    pub(crate) async fn workload(&self, request: &GetRequest) -> Result<WorkloadView, Error> {
        match self {
            Self::View(view) => view.read(|v| v.workload(request)),
            Self::Kept(stores) => {
                stores.current().await?;
                let found = stores.workload(request).await.map_err(|error| stores.kept.unanswered(error))?;
                found.map_err(|newest| unknown_document(owner(&request.owner), &request.id, newest.as_deref()))
            }
        }
    }

    /// An instance by its id.
    ///
    /// # Errors
    /// Not found, with what to do; unavailable.
    pub(crate) async fn instance(&self, request: &GetRequest) -> Result<InstanceView, Error> {
        match self {
            Self::View(view) => view.read(|v| v.instance(request)),
            Self::Kept(stores) => {
                stores.current().await?;
                let owner = owner(&request.owner);
                let found = stores.entry(&kept::instance_id(owner, &request.id)).await;
                let found = found.map_err(|error| stores.kept.unanswered(error))?.and_then(Entry::instance);
                let found = found.filter(|view| view.owner == owner && view.instance_id == request.id);
                found.ok_or_else(|| unknown_instance(owner, &request.id))
            }
        }
    }

    /// A page of an owner's documents, then of the instances.
    ///
    /// # Errors
    /// Invalid argument; unavailable.
    pub(crate) async fn list(&self, request: &ListRequest) -> Result<WorkloadList, Error> {
        match self {
            Self::View(view) => view.read(|v| v.list(request)),
            Self::Kept(stores) => {
                let asked = Asked::read(request)?;
                stores.current().await?;
                stores.list(&asked).await.map_err(|error| stores.kept.unanswered(error))
            }
        }
    }

    /// Charts whose checks are to be made; in a database, the first of them.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn onboarding(&self) -> anyhow::Result<Vec<WorkloadView>> {
        match self {
            Self::View(view) => Ok(view.read(|v| v.onboarding().cloned().collect())),
            Self::Kept(stores) => {
                let awaits = (kept::AWAITS.0.to_owned(), kept::AWAITS.1.to_owned());
                let found = stores.page(awaits, "", AWAITING_MAX).await?.0;
                Ok(found.into_iter().filter_map(Entry::version).collect())
            }
        }
    }

    /// What changes from now on.
    pub(crate) fn changes(&self) -> Changes {
        match self {
            Self::View(view) => Changes::View(view.changes()),
            Self::Kept(stores) => Changes::Kept(stores.kept.changes()),
        }
    }
}

/// Changes of documents.
pub(crate) enum Changes {
    View(watch::Receiver<u64>),
    Kept(broadcast::Receiver<Arc<std::collections::BTreeSet<String>>>),
}

impl Changes {
    /// What changed before is known.
    pub(crate) fn mark_seen(&mut self) {
        match self {
            Self::View(changes) => drop(changes.borrow_and_update()),
            Self::Kept(changes) => while changes.try_recv().is_ok() {},
        }
    }

    /// Waits until a document may have changed.
    ///
    /// # Errors
    /// When the process ends.
    pub(crate) async fn changed(&mut self) -> anyhow::Result<()> {
        match self {
            Self::View(changes) => changes.changed().await.context("follow documents"),
            Self::Kept(changes) => loop {
                match changes.recv().await {
                    Ok(ids) if !ids.iter().any(|id| kept::is_version(id)) => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => return Ok(()),
                    Err(error @ RecvError::Closed) => return Err(error).context("follow documents"),
                }
            },
        }
    }
}

/// Documents and instances in a database. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Stores {
    kept: Kept,
    decided: Decided<Workloads>,
}

impl Stores {
    /// Where the configuration says that they rest, as far as that is a database.
    ///
    /// # Errors
    /// A URL that cannot be used for documents.
    pub(crate) fn open(mesh: &Mesh, own: &str) -> anyhow::Result<Option<Kept>> {
        Kept::open(mesh, ("workloads", "workloads"), own, STREAM)
    }

    /// Keeps the facts of this decider in documents until the process stops.
    pub(crate) fn keep(mesh: &Mesh, kept: Kept, decided: Decided<Workloads>) -> Self {
        kept.follow(mesh, Facts);
        Self { kept, decided }
    }

    async fn current(&self) -> Result<(), Error> {
        self.kept.current(self.decided.position()).await
    }

    async fn entry(&self, id: &str) -> anyhow::Result<Option<Entry>> {
        let found = self.kept.documents().get(id).await?;
        Ok(found.map(|found| Entry::read(id, Some(&found.body))).transpose()?)
    }

    /// The document asked for, else the newest version of its name.
    async fn workload(&self, request: &GetRequest) -> anyhow::Result<Result<WorkloadView, Option<String>>> {
        let owner = owner(&request.owner);
        let (name, version) = named(&request.id);
        let newest = self.entry(&kept::name_id(owner, name)).await?.and_then(Entry::newest);
        let Some(version) = version.or(newest.as_deref()) else { return Ok(Err(None)) };
        let found = self.entry(&kept::version_id(owner, name, version)).await?.and_then(Entry::version);
        let found = found.filter(|view| view.owner == owner && view.name == name && view.version == version);
        Ok(found.ok_or(newest))
    }

    /// At most this number of what an index holds after an id, and whether there are more.
    async fn page(&self, index: (String, String), after: &str, limit: usize) -> anyhow::Result<(Vec<Entry>, bool)> {
        let query = Query { equal: BTreeMap::from([index]), limit, ..Query::default() };
        let page = self.kept.documents().list(&query.after(after)).await?;
        let read = page.documents.iter().map(|found| Entry::read(&found.id, Some(&found.body)));
        Ok((read.collect::<Result<_, _>>()?, !page.next.is_empty()))
    }

    async fn list(&self, asked: &Asked<'_>) -> anyhow::Result<WorkloadList> {
        let Asked { owner, phase, size, after } = asked;
        let (mut page, mut after_instance) = (WorkloadList::default(), String::new());
        let after_document = match after {
            After::Nothing => Some(String::new()),
            After::Document { name, version } => Some(kept::version_id(owner, name, version)),
            After::Instance(id) => {
                after_instance = kept::instance_id(owner, id);
                None
            }
        };
        if let Some(after) = after_document {
            let (found, more) = self.page(kept::documents_of(owner), &after, *size).await?;
            page.workloads = found.into_iter().filter_map(Entry::version).collect();
            if more {
                page.next_page_token = token(&page);
                return Ok(page);
            }
        }
        let room = size.saturating_sub(page.workloads.len());
        // Of a page that documents fill, it is looked whether anything follows.
        let (found, more) = self.page(kept::instances_of(owner, *phase), &after_instance, room.max(1)).await?;
        let more = more || found.len() > room;
        page.instances = found.into_iter().take(room).filter_map(Entry::instance).collect();
        if more {
            page.next_page_token = token(&page);
        }
        Ok(page)
    }
}

/// The facts of documents and instances.
struct Facts;

impl Projection for Facts {
    type Fact = Event;
    type Entry = Entry;

    fn fact(&self, stored: &Stored) -> Option<(Vec<String>, Event)> {
        kept::fact(stored)
    }

    fn entry(&self, id: &str, body: Option<&Bytes>) -> anyhow::Result<Entry> {
        Ok(Entry::read(id, body)?)
    }

    fn fold(&self, entry: &mut Entry, stored: &Stored, fact: &Event) -> Option<Vec<Outgoing>> {
        entry.fold(stored, fact).then(Vec::new)
    }

    fn content(&self, _: &str, entry: &Entry) -> anyhow::Result<Option<Content>> {
        Ok(entry.content().map(|(indexes, body)| Content { indexes, body }))
    }
}
