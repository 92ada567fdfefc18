//! What others may ask about anomalies and remedies.

use mesh_core::query::{self, Error};
use mesh_kit::{Follow, Look, Mesh, View};
use mesh_proto::{
    anomaly::{
        AnomalyList, AnomalyListRequest, AnomalyView, DetectorsReply, DetectorsRequest, ExplainInstanceRequest,
        ModelView, RuleView, anomaly_queries_server::AnomalyQueries,
    },
    query::GetRequest,
    remedy::{RemedyList, RemedyPolicyView, remedy_queries_server::RemedyQueries},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::domain::{Sar, remedy_list as view};

/// Answers about anomalies.
pub(crate) struct Anomalies {
    view: View<Sar>,
    stopping: CancellationToken,
}

impl Anomalies {
    pub(crate) fn new(mesh: &Mesh, view: View<Sar>) -> Self {
        Self { view, stopping: mesh.stopping() }
    }
}

#[tonic::async_trait]
impl AnomalyQueries for Anomalies {
    async fn list(&self, request: Request<AnomalyListRequest>) -> Result<Response<AnomalyList>, Status> {
        let request = request.into_inner();
        check(&request)?;
        let limit = query::size(request.limit);
        let anomalies = self.view.read(|sar| sar.episodes(|view| fits(&request, view), limit));
        Ok(Response::new(AnomalyList { anomalies }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<AnomalyView>, Status> {
        let id = request.into_inner().id;
        let found = self.view.read(|sar| sar.episode(&id).cloned());
        let missing = || Error::not_found(format!("anomaly {id:?}"), "list them; a part of an id must fit one only");
        Ok(Response::new(found.ok_or_else(missing)?))
    }

    type WatchStream = Follow<AnomalyView>;

    async fn watch(&self, request: Request<AnomalyListRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        check(&request)?;
        Ok(Response::new(self.view.follow(self.stopping.clone(), watching(request))))
    }

    async fn explain(&self, request: Request<ExplainInstanceRequest>) -> Result<Response<ModelView>, Status> {
        let id = request.into_inner().instance_id;
        let found = self.view.read(|sar| sar.explain(&id));
        let missing = || Error::not_found(format!("a model of instance {id:?}"), "wait for its first samples");
        Ok(Response::new(found.ok_or_else(missing)?))
    }

    async fn detectors(&self, _: Request<DetectorsRequest>) -> Result<Response<DetectorsReply>, Status> {
        Ok(Response::new(self.view.read(|sar| {
            let (models, models_max, bytes) = sar.models();
            let rules = sar.rules().iter().map(|r| RuleView { name: r.name.clone(), text: r.text.clone() });
            DetectorsReply {
                rules: rules.collect(),
                models: models as u64,
                models_max: models_max as u64,
                bytes: bytes as u64,
            }
        })))
    }
}

/// Answers about remedies.
pub(crate) struct Remedies {
    view: View<view::Remedies>,
}

impl Remedies {
    pub(crate) fn new(view: View<view::Remedies>) -> Self {
        Self { view }
    }
}

#[tonic::async_trait]
impl RemedyQueries for Remedies {
    async fn list(&self, request: Request<AnomalyListRequest>) -> Result<Response<RemedyList>, Status> {
        let request = request.into_inner();
        check(&request)?;
        let (owner, limit) = (query::owner(&request.owner), query::size(request.limit));
        let remedies = self.view.read(|view| view.list(owner, &request.instance_id, limit));
        Ok(Response::new(RemedyList { remedies }))
    }

    async fn policy(&self, request: Request<GetRequest>) -> Result<Response<RemedyPolicyView>, Status> {
        let owner = request.into_inner().owner;
        Ok(Response::new(self.view.read(|view| view.policy(query::owner(&owner)))))
    }
}

/// The episodes that go on, then each that begins, changes or ends.
fn watching(request: AnomalyListRequest) -> impl FnMut(&Sar) -> Look<AnomalyView> {
    let mut order = None;
    move |sar| {
        let Some(before) = order else {
            order = Some(sar.order());
            let going_on = |view: &AnomalyView| view.cleared.is_none() && fits(&request, view);
            return Look::More(sar.episodes(going_on, query::SIZE_MAX));
        };
        let (found, seen) = sar.since(before);
        order = Some(seen);
        let found = found.into_iter().filter(|view| fits(&request, view)).collect();
        if seen == before { Look::Next(found) } else { Look::More(found) }
    }
}

fn check(request: &AnomalyListRequest) -> Result<(), Error> {
    for (what, text) in [("owner", &request.owner), ("instance id", &request.instance_id)] {
        if !text.is_empty() {
            query::check_key(what, text)?;
        }
    }
    Ok(())
}

fn fits(request: &AnomalyListRequest, view: &AnomalyView) -> bool {
    let Some(detected) = &view.detected else { return false };
    (request.owner.is_empty() || request.owner == detected.owner)
        && (request.instance_id.is_empty() || request.instance_id == detected.instance_id)
        && !(request.open && view.cleared.is_some())
}
