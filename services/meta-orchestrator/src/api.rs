//! Answers about clusters and plans.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::query::{Error, Page, narrowed_by, owner};
use mesh_kit::View;
use mesh_proto::{
    placement::{ClusterList, ClusterView, ExplainReply, orchestrator_queries_server::OrchestratorQueries},
    query::{GetRequest, ListRequest},
};
use mesh_store::History;
use tonic::{Request, Response, Status};

use crate::{
    domain::{
        placements::State,
        records::Explained,
        view::{self, Orchestrator},
    },
    shell::{clusters::Clusters, records::explain},
};

/// Answers `OrchestratorQueries`: what is planned from the planner's own state, what came before from the view, or from
/// records and documents in a database.
pub(crate) struct Api {
    pub(crate) planned: View<State>,
    pub(crate) view: View<Orchestrator>,
    /// Where decisions are recorded; `None` if the view holds them.
    pub(crate) records: Option<Arc<dyn History>>,
    /// Registrations of clusters in a database; `None` if the view holds them.
    pub(crate) clusters: Option<Arc<Clusters>>,
}

impl Api {
    /// A page of the clusters, whose registrations are read piece by piece until the page is full.
    async fn listed(
        &self,
        kept: &Clusters,
        page: &Page,
        available: Option<bool>,
    ) -> Result<(Vec<ClusterView>, String), Error> {
        let (mut registered, mut after) = (BTreeMap::new(), page.after().to_owned());
        loop {
            let (read, more) = kept.after(&after).await?;
            registered.extend(read);
            after = registered.keys().next_back().cloned().unwrap_or_default();
            let until = more.then_some(after.as_str());
            let list = |planned: &State| view::clusters((planned, &registered), page, available, until);
            let (views, next) = self.planned.read(list);
            if !more || !next.is_empty() {
                return Ok((views, next));
            }
        }
    }

    async fn recorded(&self, records: &dyn History, owner: &str, id: &str) -> Result<Option<ExplainReply>, Error> {
        let explained = explain(records, owner, id).await;
        let explained = explained.map_err(|error| mesh_kit::unanswered(error, "decision records"))?;
        let advice = self.view.read(|view| view.advice(owner, id));
        let found = !explained.decisions.is_empty() || explained.unplaced.is_some() || !advice.is_empty();
        let Explained { decisions, unplaced, .. } = explained;
        Ok(found.then_some(ExplainReply { decisions, unplaced, advice }))
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
        let (clusters, next_page_token) = match &self.clusters {
            Some(kept) => self.listed(kept, &page, wanted).await?,
            None => self.planned.read(|planned| self.view.read(|view| view.clusters(planned, &page, wanted))),
        };
        Ok(Response::new(ClusterList { clusters, next_page_token }))
    }

    async fn get_cluster(&self, request: Request<GetRequest>) -> Result<Response<ClusterView>, Status> {
        let GetRequest { owner: asked, id } = request.into_inner();
        if !asked.is_empty() {
            return Err(Error::invalid("clusters belong to no owner", "leave owner out").into());
        }
        let found = match &self.clusters {
            Some(kept) => {
                let registered = kept.get(&id).await?;
                self.planned.read(|planned| view::cluster((planned, registered.as_ref()), &id))
            }
            None => self.planned.read(|planned| self.view.read(|view| view.cluster(planned, &id))),
        };
        let missing = || Error::not_found(format!("cluster {id:?}"), "list those that registered with ListClusters");
        Ok(Response::new(found.ok_or_else(missing)?))
    }

    async fn explain(&self, request: Request<GetRequest>) -> Result<Response<ExplainReply>, Status> {
        let GetRequest { owner: asked, id } = request.into_inner();
        let owner = owner(&asked);
        let found = match &self.records {
            Some(records) => self.recorded(&**records, owner, &id).await?,
            None => self.view.read(|view| view.explain(owner, &id)),
        };
        let missing = || {
            let hint = "no plan was made for it, or that is too long ago; check the instance id and its owner";
            Error::not_found(format!("plan of instance {owner}/{id}"), hint)
        };
        Ok(Response::new(found.ok_or_else(missing)?))
    }
}
