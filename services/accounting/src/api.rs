//! Synchronous questions about the ledger. In memory, entries are read from the bus and what is proved of them comes from
//! the view; what rests in databases is answered from there.

use std::sync::Arc;

use ledger::{MAIN, note::Signer, tiles::Edge, tree::Nodes};
use mesh_core::query::{self, Error};
use mesh_kit::{Mesh, View};
use mesh_proto::{
    Event as _,
    account::{
        AccountList, AccountView, Consistency, ConsistencyRequest, EntriesReply, EntriesRequest, Entry, Head,
        HeadRequest, Inclusion, InclusionRequest, Posted, Statement, StatementRequest,
        account_queries_server::AccountQueries,
    },
    query::ListRequest,
};
use prost::Message as _;
use tonic::{Request, Response, Status};

use crate::{
    domain::{
        books::Books,
        fold::{Wanted, unknown},
        heads::{self, Heads},
    },
    shell::store::Stores,
};

/// Answers `AccountQueries`.
pub(crate) struct Api {
    pub(crate) mesh: Mesh,
    pub(crate) accounts: Accounts,
    pub(crate) entries: Entries,
}

/// Where accounts are.
pub(crate) enum Accounts {
    /// In memory.
    Books(View<Books>),
    /// In a database.
    Kept(Stores),
}

/// Where entries and the tree are.
pub(crate) enum Entries {
    /// In memory: the tree and where ACCOUNT has the entries.
    Books(View<Books>),
    /// In a database; heads are signed here.
    Kept(Stores, Arc<Signer>),
}

/// What a store that does not answer means to who asked.
fn unanswered(error: anyhow::Error) -> Error {
    mesh_kit::unanswered(error, "the ledger")
}

/// The tree's edge as the databases have it; refuses a question that they cannot answer yet.
async fn current(stores: &Stores) -> Result<Arc<Edge>, Error> {
    let found = stores.current().await.map_err(unanswered)?;
    let hint = "ask again; /readyz?verbose of accounting says how far they are";
    found.ok_or_else(|| Error::unavailable("the databases of the ledger are behind what was decided", hint))
}

impl Api {
    /// The entry at this sequence of ACCOUNT.
    async fn posted(&self, sequence: u64) -> Result<Posted, Error> {
        let stored = self.mesh.bus().log(Posted::STREAM).get(sequence).await.map_err(mesh_kit::internal)?;
        let posted = stored.map(|stored| stored.event::<Posted>()).transpose().map_err(mesh_kit::internal)?.flatten();
        posted.ok_or_else(|| Error::unavailable(format!("{}:{sequence} cannot be read", Posted::STREAM), "ask again"))
    }

    /// An account as it stands.
    async fn account(&self, account: &str) -> Result<AccountView, Error> {
        match &self.accounts {
            Accounts::Kept(stores) => {
                current(stores).await?;
                stores.account(account).await.map_err(unanswered)?
            }
            Accounts::Books(view) => view.read(|books| books.fold().view(account)).ok_or_else(|| unknown(account)),
        }
    }

    /// The entries from `from` on that name an account, at most `limit`, and the index of the next one.
    async fn statement(&self, account: &AccountView, from: u64, limit: usize) -> Result<(Vec<Entry>, u64), Error> {
        match &self.entries {
            Entries::Kept(stores, _) => stores.statement(account, from, limit).await.map_err(unanswered),
            Entries::Books(view) => {
                let (sequences, next) = view.read(|books| books.of(&account.account, from, limit));
                let mut entries = Vec::with_capacity(sequences.len());
                for sequence in sequences {
                    let posted = self.posted(sequence).await?;
                    entries.push(Entry::decode(posted.entry).map_err(mesh_kit::internal)?);
                }
                Ok((entries, next))
            }
        }
    }
}

/// Proves something out of the tiles that it takes.
async fn proved<T>(
    (stores, signer): (&Stores, &Signer),
    edge: &Edge,
    looks: impl FnOnce(&dyn Nodes),
    make: impl FnOnce(Heads<'_>) -> T,
) -> Result<T, Error> {
    stores.proved(edge, looks, |nodes| make(Heads { nodes, signer })).await.map_err(unanswered)
}

#[tonic::async_trait]
impl AccountQueries for Api {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<AccountList>, Status> {
        let wanted = Wanted::read(request.get_ref())?;
        let list = match &self.accounts {
            Accounts::Kept(stores) => {
                current(stores).await?;
                stores.list(&wanted).await.map_err(unanswered)?
            }
            Accounts::Books(view) => view.read(|books| books.fold().list(books.fold().accounts(&wanted))),
        };
        Ok(Response::new(list))
    }

    async fn get_statement(&self, request: Request<StatementRequest>) -> Result<Response<Statement>, Status> {
        let asked = request.get_ref();
        let account = self.account(&asked.account).await?;
        let limit = query::size(asked.page_size);
        let (entries, next_index) = self.statement(&account, asked.from_index, limit).await?;
        Ok(Response::new(Statement { account: Some(account), entries, next_index }))
    }

    async fn get_head(&self, request: Request<HeadRequest>) -> Result<Response<Head>, Status> {
        let asked = request.get_ref().size;
        let head = match &self.entries {
            Entries::Books(view) => view.read(|books| books.head(asked))?,
            Entries::Kept(stores, signer) => {
                let edge = current(stores).await?;
                let size = heads::size(edge.size(), asked)?;
                let looks = |nodes: &dyn Nodes| {
                    nodes.root(size);
                };
                proved((stores, signer), &edge, looks, |heads| heads.head(size)).await?
            }
        };
        Ok(Response::new(head))
    }

    async fn prove_inclusion(&self, request: Request<InclusionRequest>) -> Result<Response<Inclusion>, Status> {
        let InclusionRequest { index, size } = *request.get_ref();
        let ((path, head), entry) = match &self.entries {
            Entries::Books(view) => {
                let proved = |books: &Books| Ok::<_, Error>((books.inclusion(index, size)?, books.sequence(index)));
                let (proof, sequence) = view.read(proved)?;
                (proof, self.posted(sequence.unwrap_or_default()).await?)
            }
            Entries::Kept(stores, signer) => {
                let edge = current(stores).await?;
                let size = heads::proved_in(edge.size(), index, size)?;
                let looks = |nodes: &dyn Nodes| {
                    nodes.root(size);
                    nodes.inclusion(index, size);
                };
                let proof = proved((stores, signer), &edge, looks, |heads| heads.inclusion(index, size)).await?;
                let found = stores.entries(index, edge.size(), 1).await.map_err(unanswered)?;
                let missing = || Error::unavailable(format!("entry {index} cannot be read"), "ask again");
                (proof, found.into_iter().next().ok_or_else(missing)?)
            }
        };
        Ok(Response::new(Inclusion { index, entry: entry.entry, path: path.into(), head: Some(head) }))
    }

    async fn prove_consistency(&self, request: Request<ConsistencyRequest>) -> Result<Response<Consistency>, Status> {
        let ConsistencyRequest { from_size: from, to_size } = *request.get_ref();
        let proof = match &self.entries {
            Entries::Books(view) => view.read(|books| books.consistency(from, to_size))?,
            Entries::Kept(stores, signer) => {
                let edge = current(stores).await?;
                let to = heads::continued_in(edge.size(), from, to_size)?;
                let looks = |nodes: &dyn Nodes| {
                    nodes.root(from);
                    nodes.root(to);
                    nodes.consistency(from, to);
                };
                proved((stores, signer), &edge, looks, |heads| heads.consistency(from, to)).await?
            }
        };
        Ok(Response::new(proof))
    }

    async fn entries(&self, request: Request<EntriesRequest>) -> Result<Response<EntriesReply>, Status> {
        let EntriesRequest { from_index, page_size } = *request.get_ref();
        let limit = if page_size == 0 { query::SIZE_MAX } else { query::size(page_size) };
        let view = match &self.entries {
            Entries::Books(view) => view,
            Entries::Kept(stores, _) => {
                let edge = current(stores).await?;
                let entries = stores.entries(from_index, edge.size(), limit).await.map_err(unanswered)?;
                return Ok(Response::new(EntriesReply { entries }));
            }
        };
        let Some(from) = view.read(|books| books.sequence(from_index)) else {
            return Ok(Response::new(EntriesReply::default()));
        };
        let filter = Posted::SUBJECT.replace("{ledger}", MAIN);
        let log = self.mesh.bus().log(Posted::STREAM);
        let stored = log.read(&filter, from, limit).await.map_err(mesh_kit::internal)?;
        let entries: Result<Vec<_>, _> = stored.iter().map(|s| s.event::<Posted>()).collect();
        let entries = entries.map_err(mesh_kit::internal)?.into_iter().flatten().collect();
        Ok(Response::new(EntriesReply { entries }))
    }
}
