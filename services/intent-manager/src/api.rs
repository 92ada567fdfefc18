//! The answers to queries: the view, over gRPC.

use std::pin::Pin;

use futures::{Stream, stream};
use mesh_kit::View;
use mesh_proto::{
    intent::{IntentHistory, IntentList, IntentView, intent_queries_server::IntentQueries},
    query::{GetRequest, ListRequest},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::domain::view::{Follow, IntentsView};

/// Answers `IntentQueries` from the view.
pub(crate) struct Api {
    view: View<IntentsView>,
    stopping: CancellationToken,
}

impl Api {
    /// Answers from this view until the process stops.
    pub(crate) fn new(view: View<IntentsView>, stopping: CancellationToken) -> Self {
        Self { view, stopping }
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

    type WatchStream = Pin<Box<dyn Stream<Item = Result<IntentView, Status>> + Send>>;

    async fn watch(&self, request: Request<GetRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let watcher = Watcher {
            follow: Follow::new(request.into_inner()),
            changes: self.view.changes(),
            view: self.view.clone(),
            stopping: self.stopping.clone(),
        };
        // An intent that is not there is said at once, not in the stream.
        self.view.read(|view| view.get(&watcher.follow.request))?;
        Ok(Response::new(Box::pin(stream::unfold(watcher, Watcher::next))))
    }
}

/// Follows one intent for one caller. A slow reader skips to the newest: nothing is kept for it.
struct Watcher {
    follow: Follow,
    view: View<IntentsView>,
    changes: watch::Receiver<u64>,
    stopping: CancellationToken,
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<IntentView, Status>, Self)> {
        while !self.follow.ended {
            self.changes.borrow_and_update();
            if let Some(answer) = self.view.read(|view| self.follow.look(view)) {
                return Some((answer.map_err(Status::from), self));
            }
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                () = self.stopping.cancelled() => {
                    self.follow.ended = true;
                    return Some((Err(Status::unavailable("the service is stopping; watch again")), self));
                }
            }
        }
        None
    }
}
