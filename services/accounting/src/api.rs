//! Synchronous questions about the ledger. Entries are read from the bus; what is proved of them comes from the view.

use mesh_core::query::{self, Error};
use mesh_kit::{Mesh, View};
use mesh_proto::{
    Event as _,
    account::{
        AccountList, Consistency, ConsistencyRequest, EntriesReply, EntriesRequest, Entry, Head, HeadRequest,
        Inclusion, InclusionRequest, Posted, Statement, StatementRequest, account_queries_server::AccountQueries,
    },
    query::ListRequest,
};
use prost::Message as _;
use tonic::{Request, Response, Status};

use crate::domain::books::Books;
use ledger::MAIN;

/// Answers `AccountQueries`.
pub(crate) struct Api {
    pub(crate) mesh: Mesh,
    pub(crate) view: View<Books>,
}

impl Api {
    /// The entry at this sequence of ACCOUNT.
    async fn posted(&self, sequence: u64) -> Result<Posted, Error> {
        let stored = self.mesh.bus().log(Posted::STREAM).get(sequence).await.map_err(mesh_kit::internal)?;
        let posted = stored.map(|stored| stored.event::<Posted>()).transpose().map_err(mesh_kit::internal)?.flatten();
        posted.ok_or_else(|| Error::unavailable(format!("{}:{sequence} cannot be read", Posted::STREAM), "ask again"))
    }
}

#[tonic::async_trait]
impl AccountQueries for Api {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<AccountList>, Status> {
        Ok(Response::new(self.view.read(|books| books.list(request.get_ref()))?))
    }

    async fn get_statement(&self, request: Request<StatementRequest>) -> Result<Response<Statement>, Status> {
        let asked = request.get_ref();
        let limit = query::size(asked.page_size);
        let (account, (sequences, next_index)) = self.view.read(|books| {
            Ok::<_, Error>((books.account(&asked.account)?, books.of(&asked.account, asked.from_index, limit)))
        })?;
        let mut entries = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let posted = self.posted(sequence).await?;
            entries.push(Entry::decode(posted.entry).map_err(mesh_kit::internal)?);
        }
        Ok(Response::new(Statement { account: Some(account), entries, next_index }))
    }

    async fn get_head(&self, request: Request<HeadRequest>) -> Result<Response<Head>, Status> {
        Ok(Response::new(self.view.read(|books| books.head(request.get_ref().size))?))
    }

    async fn prove_inclusion(&self, request: Request<InclusionRequest>) -> Result<Response<Inclusion>, Status> {
        let InclusionRequest { index, size } = *request.get_ref();
        let proved = |books: &Books| Ok::<_, Error>((books.inclusion(index, size)?, books.sequence(index)));
        let ((path, head), sequence) = self.view.read(proved)?;
        let entry = self.posted(sequence.unwrap_or_default()).await?.entry;
        Ok(Response::new(Inclusion { index, entry, path: path.into(), head: Some(head) }))
    }

    async fn prove_consistency(&self, request: Request<ConsistencyRequest>) -> Result<Response<Consistency>, Status> {
        let ConsistencyRequest { from_size, to_size } = *request.get_ref();
        Ok(Response::new(self.view.read(|books| books.consistency(from_size, to_size))?))
    }

    async fn entries(&self, request: Request<EntriesRequest>) -> Result<Response<EntriesReply>, Status> {
        let EntriesRequest { from_index, page_size } = *request.get_ref();
        let limit = if page_size == 0 { query::SIZE_MAX } else { query::size(page_size) };
        let Some(from) = self.view.read(|books| books.sequence(from_index)) else {
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
