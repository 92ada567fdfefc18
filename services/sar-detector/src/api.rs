//! What others may ask about anomalies and remedies.

use std::{collections::VecDeque, pin::Pin};

use futures::Stream;
use mesh_core::query::Error;
use mesh_kit::{Mesh, View};
use mesh_proto::{
    anomaly::{
        AnomalyList, AnomalyListRequest, AnomalyView, DetectorsReply, DetectorsRequest, ExplainInstanceRequest,
        ModelView, RuleView, anomaly_queries_server::AnomalyQueries,
    },
    is_key,
    query::GetRequest,
    remedy::{RemedyList, RemedyPolicyView, remedy_queries_server::RemedyQueries},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::domain::{Sar, remedy_list as view};

/// Items of a list when the question does not say how many, and at most.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 1_000;

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
        let limit = limit(request.limit);
        let anomalies = self.view.read(|sar| sar.episodes(|view| fits(&request, view), limit));
        Ok(Response::new(AnomalyList { anomalies }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<AnomalyView>, Status> {
        let id = request.into_inner().id;
        let found = self.view.read(|sar| sar.episode(&id).cloned());
        let missing = || Error::not_found(format!("anomaly {id:?}"), "list them; a part of an id must fit one only");
        Ok(Response::new(found.ok_or_else(missing)?))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<AnomalyView, Status>> + Send>>;

    async fn watch(&self, request: Request<AnomalyListRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        check(&request)?;
        let going_on = |view: &AnomalyView| view.cleared.is_none() && fits(&request, view);
        let (first, order) = self.view.read(|sar| (sar.episodes(going_on, LIMIT_MAX), sar.order()));
        let start = (VecDeque::from(first), order, self.view.changes());
        let (view, stopping) = (self.view.clone(), self.stopping.clone());
        let stream = futures::stream::unfold(start, move |(mut batch, mut order, mut changes)| {
            let (view, stopping, request) = (view.clone(), stopping.clone(), request.clone());
            async move {
                loop {
                    if let Some(next) = batch.pop_front() {
                        return Some((Ok::<_, Status>(next), (batch, order, changes)));
                    }
                    changes.mark_unchanged();
                    let (found, seen) = view.read(|sar| sar.since(order));
                    let moved = seen != order;
                    order = seen;
                    batch.extend(found.into_iter().filter(|view| fits(&request, view)));
                    if batch.is_empty() && !moved {
                        tokio::select! {
                            changed = changes.changed() => if changed.is_err() { return None },
                            () = stopping.cancelled() => return None,
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(stream)))
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
        let owner = if request.owner.is_empty() { "local" } else { &request.owner };
        let remedies = self.view.read(|view| view.list(owner, &request.instance_id, limit(request.limit)));
        Ok(Response::new(RemedyList { remedies }))
    }

    async fn policy(&self, request: Request<GetRequest>) -> Result<Response<RemedyPolicyView>, Status> {
        let owner = request.into_inner().owner;
        let owner = if owner.is_empty() { "local" } else { &owner };
        Ok(Response::new(self.view.read(|view| view.policy(owner))))
    }
}

fn limit(asked: u32) -> usize {
    match asked as usize {
        0 => LIMIT,
        limit => limit.min(LIMIT_MAX),
    }
}

fn check(request: &AnomalyListRequest) -> Result<(), Error> {
    for (what, text) in [("owner", &request.owner), ("instance id", &request.instance_id)] {
        if !text.is_empty() && !is_key(text) {
            let head: String = text.chars().take(64).collect();
            return Err(Error::invalid(format!("{what} {head:?}"), "use 1 to 64 letters, digits, `_` and `-`"));
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
