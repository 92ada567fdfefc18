//! Answers about clusters and plans.

use mesh_core::query::Error;
use mesh_kit::View;
use mesh_proto::{
    placement::{ClusterList, ClusterView, ExplainReply, orchestrator_queries_server::OrchestratorQueries},
    query::{GetRequest, ListRequest},
};
use tonic::{Request, Response, Status};

use crate::domain::view::Orchestrator;

/// Clusters in a list when the question does not say how many, and at most.
const PAGE_SIZE: usize = 100;
const PAGE_SIZE_MAX: usize = 1_000;

/// Answers `OrchestratorQueries` from the view.
pub(crate) struct Api {
    view: View<Orchestrator>,
}

impl Api {
    pub(crate) fn new(view: View<Orchestrator>) -> Self {
        Self { view }
    }
}

#[tonic::async_trait]
impl OrchestratorQueries for Api {
    /// Clusters belong to no owner; a `state` of `available` or `lost` leaves the others out.
    async fn list_clusters(&self, request: Request<ListRequest>) -> Result<Response<ClusterList>, Status> {
        let ListRequest { page_size, page_token, state, .. } = request.into_inner();
        let wanted = match state.as_str() {
            "" => None,
            "available" => Some(true),
            "lost" => Some(false),
            other => {
                let hint = "use `available`, `lost`, or none for all";
                return Err(Error::invalid(format!("a cluster has no state {other:?}"), hint).into());
            }
        };
        let size = match usize::try_from(page_size).unwrap_or(PAGE_SIZE_MAX) {
            0 => PAGE_SIZE,
            size => size.min(PAGE_SIZE_MAX),
        };
        let clusters = self.view.read(|view| view.clusters(&page_token, size, wanted));
        let last = clusters.last().filter(|_| clusters.len() == size).and_then(|c| c.registered.as_ref());
        let next_page_token = last.map(|r| r.cluster_id.clone()).unwrap_or_default();
        Ok(Response::new(ClusterList { clusters, next_page_token }))
    }

    async fn get_cluster(&self, request: Request<GetRequest>) -> Result<Response<ClusterView>, Status> {
        let id = request.into_inner().id;
        let found = self.view.read(|view| view.cluster(&id));
        let missing = || Error::not_found(format!("cluster {id:?}"), "list those that registered with ListClusters");
        Ok(Response::new(found.ok_or_else(missing)?))
    }

    async fn explain(&self, request: Request<GetRequest>) -> Result<Response<ExplainReply>, Status> {
        let GetRequest { owner, id } = request.into_inner();
        let owner = if owner.is_empty() { "local".to_owned() } else { owner };
        let found = self.view.read(|view| view.explain(&owner, &id));
        let missing = || {
            let hint = "no plan was made for it, or that is too long ago; check the instance id and its owner";
            Error::not_found(format!("plan of instance {owner}/{id}"), hint)
        };
        Ok(Response::new(found.ok_or_else(missing)?))
    }
}
