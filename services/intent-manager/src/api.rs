//! The answers to queries: the view, over gRPC.

pub(crate) mod kept;

use mesh_kit::{Look, View};
use mesh_proto::{
    intent::{
        AchievedReply, AchievedRequest, IntentHistory, IntentList, IntentView, StandingReply, StandingRequest,
        intent_queries_server::IntentQueries,
    },
    query::{GetRequest, ListRequest},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    domain::{
        achieved::Asked,
        view::{Follow, IntentsView},
    },
    shell::achieved::Achieved,
};

/// Answers `IntentQueries` from the view.
pub(crate) struct Api {
    view: View<IntentsView>,
    achieved: Achieved,
    stopping: CancellationToken,
}

impl Api {
    /// Answers from this view until the process stops.
    pub(crate) fn new(view: View<IntentsView>, achieved: Achieved, stopping: CancellationToken) -> Self {
        Self { view, achieved, stopping }
    }
}

#[tonic::async_trait]
impl IntentQueries for Api {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<IntentView>, Status> {
        Ok(Response::new(self.view.read(|view| view.get(request.get_ref()))?))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<IntentList>, Status> {
        Ok(Response::new(self.view.read(|view| view.list(request.get_ref()))?))
    }

    async fn history(&self, request: Request<GetRequest>) -> Result<Response<IntentHistory>, Status> {
        Ok(Response::new(self.view.read(|view| view.history(request.get_ref()))?))
    }

    async fn achieved(&self, request: Request<AchievedRequest>) -> Result<Response<AchievedReply>, Status> {
        let asked = Asked::read(request.get_ref())?;
        let judge = |values: &mut [_]| self.view.read(|view| view.judge(&asked.owner, &asked.intent_id, values));
        // An unknown intent is refused before its values are read.
        judge(&mut [])?;
        let mut reply = self.achieved.page(&asked).await?;
        judge(&mut reply.values)?;
        Ok(Response::new(reply))
    }

    async fn standing(&self, request: Request<StandingRequest>) -> Result<Response<StandingReply>, Status> {
        Ok(Response::new(self.view.read(|view| view.standing(request.get_ref()))))
    }

    type WatchStream = mesh_kit::Follow<IntentView>;

    async fn watch(&self, request: Request<GetRequest>) -> Result<Response<Self::WatchStream>, Status> {
        // An unknown intent fails the call at once, not in the stream.
        self.view.read(|view| view.get(request.get_ref()))?;
        // A slow reader skips to the newest: nothing is kept for it.
        let mut follow = Follow::new(request.into_inner());
        let look = move |view: &IntentsView| match follow.look(view) {
            None if follow.ended => Look::Last(vec![]),
            None => Look::Next(vec![]),
            Some(Err(error)) => Look::Failed(error),
            Some(Ok(shown)) if follow.ended => Look::Last(vec![shown]),
            Some(Ok(shown)) => Look::Next(vec![shown]),
        };
        Ok(Response::new(self.view.follow(self.stopping.clone(), look)))
    }
}
