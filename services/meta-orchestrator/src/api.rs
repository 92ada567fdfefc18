//! Answers about clusters and plans.

use mesh_core::query::{Error, Page, narrowed_by, owner};
use mesh_kit::View;
use mesh_proto::{
    placement::{ClusterList, ClusterView, ExplainReply, orchestrator_queries_server::OrchestratorQueries},
    query::{GetRequest, ListRequest},
};
use tonic::{Request, Response, Status};

use crate::domain::{placements::State, view::Orchestrator};

/// Answers `OrchestratorQueries`: what is planned from the planner's own state, what came before from the view.
pub(crate) struct Api {
    planned: View<State>,
    view: View<Orchestrator>,
}

impl Api {
    pub(crate) fn new(planned: View<State>, view: View<Orchestrator>) -> Self {
        Self { planned, view }
    }
}

#[tonic::async_trait]
impl OrchestratorQueries for Api {
    /// Clusters belong to no owner; a `state` of `available` or `lost` leaves the others out.
    async fn list_clusters(&self, request: Request<ListRequest>) -> Result<Response<ClusterList>, Status> {
        let request = request.into_inner();
        narrowed_by(&request, &["state"])?;
        let wanted = match request.state.as_str() {
            "" => None,
            "available" => Some(true),
            "lost" => Some(false),
            other => {
                let hint = "use `available`, `lost`, or none for all";
                return Err(Error::invalid(format!("a cluster has no state {other:?}"), hint).into());
            }
        };
        let page = Page::new(request.page_size, &request.page_token)?;
        let listed = |planned: &State| self.view.read(|view| view.clusters(planned, &page, wanted));
        let (clusters, next_page_token) = self.planned.read(listed);
        Ok(Response::new(ClusterList { clusters, next_page_token }))
    }

    async fn get_cluster(&self, request: Request<GetRequest>) -> Result<Response<ClusterView>, Status> {
        let GetRequest { owner: asked, id } = request.into_inner();
        if !asked.is_empty() {
            return Err(Error::invalid("clusters belong to no owner", "leave owner out").into());
        }
        let found = self.planned.read(|planned| self.view.read(|view| view.cluster(planned, &id)));
        let missing = || Error::not_found(format!("cluster {id:?}"), "list those that registered with ListClusters");
        Ok(Response::new(found.ok_or_else(missing)?))
    }

    async fn explain(&self, request: Request<GetRequest>) -> Result<Response<ExplainReply>, Status> {
        let GetRequest { owner: asked, id } = request.into_inner();
        let owner = owner(&asked);
        let found = self.view.read(|view| view.explain(owner, &id));
        let missing = || {
            let hint = "no plan was made for it, or that is too long ago; check the instance id and its owner";
            Error::not_found(format!("plan of instance {owner}/{id}"), hint)
        };
        Ok(Response::new(found.ok_or_else(missing)?))
    }
}
