//! The answers to queries out of documents. A question waits until they hold what was decided before it was asked.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use mesh_core::query::{Error, owner};
use mesh_kit::{Decided, Follow};
use mesh_proto::{
    intent::{
        AchievedReply, AchievedRequest, IntentHistory, IntentList, IntentView, StandingReply, StandingRequest,
        intent_queries_server::IntentQueries,
    },
    query::{GetRequest, ListRequest},
};
use mesh_store::Query;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    domain::{
        Intents,
        achieved::Asked,
        view::{Gathering, Kept, Narrowed, document_id},
    },
    shell::{achieved::Achieved, store::Stores},
};

/// Before documents that could not say how an intent is are looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Pages of documents that are looked through for intents that stand; each has 1,000.
const STANDING_PAGES_MAX: usize = 10;

/// Answers `IntentQueries` from documents.
pub(crate) struct Api {
    stores: Stores,
    decided: Decided<Intents>,
    achieved: Achieved,
    stopping: CancellationToken,
}

impl Api {
    /// Answers from these documents until the process stops.
    pub(crate) fn new(
        stores: Stores,
        decided: Decided<Intents>,
        achieved: Achieved,
        stopping: CancellationToken,
    ) -> Self {
        Self { stores, decided, achieved, stopping }
    }

    /// Refuses a question that the documents cannot answer yet.
    async fn current(&self) -> Result<(), Error> {
        self.stores.intents.current(self.decided.position()).await
    }

    /// How intents stand, as far as the first documents say.
    async fn gather(&self, request: &StandingRequest) -> anyhow::Result<StandingReply> {
        let mut gathering = Gathering::new(request);
        let owner = (!request.owner.is_empty()).then(|| ("owner".to_owned(), request.owner.clone()));
        let mut query = Query { equal: owner.into_iter().collect(), limit: 1_000, ..Query::default() };
        for _ in 0..STANDING_PAGES_MAX {
            let page = self.stores.intents.documents().list(&query).await?;
            for kept in self.stores.with_achieved(page.documents).await? {
                if kept.standing().is_some_and(|standing| !gathering.add(standing)) {
                    return Ok(gathering.reply());
                }
            }
            if page.next.is_empty() {
                return Ok(gathering.reply());
            }
            query.token = page.next;
        }
        gathering.truncate();
        Ok(gathering.reply())
    }

    async fn find(&self, request: &GetRequest) -> Result<Kept, Error> {
        find(&self.stores, &self.decided, request).await
    }
}

/// The intent as what was decided before made it.
async fn find(stores: &Stores, decided: &Decided<Intents>, request: &GetRequest) -> Result<Kept, Error> {
    stores.intents.current(decided.position()).await?;
    let owner = owner(&request.owner);
    let kept = stores.get(&document_id(owner, &request.id)).await;
    let kept = kept.map_err(|error| stores.intents.unanswered(error))?;
    if kept.exists() { Ok(kept) } else { Err(Kept::unknown(owner, &request.id)) }
}

#[tonic::async_trait]
impl IntentQueries for Api {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<IntentView>, Status> {
        Ok(Response::new(self.find(request.get_ref()).await?.view()))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<IntentList>, Status> {
        let narrowed = Narrowed::read(request.get_ref())?;
        self.current().await?;
        let query = Query {
            equal: narrowed.equal.clone(),
            one_of: narrowed.one_of.clone(),
            limit: narrowed.page_size,
            ..Query::default()
        };
        let query = query.after(&narrowed.after);
        let found = async {
            let intents = self.stores.intents.documents();
            let page = intents.list(&query).await?;
            let total = if narrowed.count { intents.count(&query).await? } else { 0 };
            let more = !page.next.is_empty();
            anyhow::Ok(narrowed.page(&self.stores.with_achieved(page.documents).await?, more, total))
        };
        Ok(Response::new(found.await.map_err(|error| self.stores.intents.unanswered(error))?))
    }

    async fn history(&self, request: Request<GetRequest>) -> Result<Response<IntentHistory>, Status> {
        Ok(Response::new(self.find(request.get_ref()).await?.history()))
    }

    async fn achieved(&self, request: Request<AchievedRequest>) -> Result<Response<AchievedReply>, Status> {
        let asked = Asked::read(request.get_ref())?;
        let kept = self.find(&GetRequest { owner: asked.owner.clone(), id: asked.intent_id.clone() }).await?;
        let mut reply = self.achieved.page(&asked).await?;
        kept.judge(&mut reply.values);
        Ok(Response::new(reply))
    }

    async fn standing(&self, request: Request<StandingRequest>) -> Result<Response<StandingReply>, Status> {
        self.current().await?;
        let found = self.gather(request.get_ref()).await;
        Ok(Response::new(found.map_err(|error| self.stores.intents.unanswered(error))?))
    }

    type WatchStream = Follow<IntentView>;

    async fn watch(&self, request: Request<GetRequest>) -> Result<Response<Self::WatchStream>, Status> {
        // From before the first look: what changes in between is looked at.
        let changes = self.stores.intents.changes();
        // An unknown intent fails the call at once, not in the stream.
        let kept = self.find(request.get_ref()).await?;
        let watching = Watching {
            stores: self.stores.clone(),
            decided: self.decided.clone(),
            stopping: self.stopping.clone(),
            id: document_id(owner(&request.get_ref().owner), &request.get_ref().id),
            request: request.into_inner(),
            changes,
            found: Some(kept),
            shown: None,
            ended: false,
        };
        Ok(Response::new(Box::pin(futures::stream::unfold(watching, Watching::next))))
    }
}

/// Follows one intent: shows it now, again at every change, and no more once it has ended. A slow reader skips to the
/// newest: nothing is kept for it. It outlives documents that are away or made again.
struct Watching {
    stores: Stores,
    decided: Decided<Intents>,
    stopping: CancellationToken,
    request: GetRequest,
    id: String,
    changes: broadcast::Receiver<Arc<BTreeSet<String>>>,
    /// The first look.
    found: Option<Kept>,
    shown: Option<IntentView>,
    ended: bool,
}

impl Watching {
    async fn next(mut self) -> Option<(Result<IntentView, Status>, Self)> {
        while !self.ended {
            let stopping = self.stopping.clone();
            let looked = tokio::select! {
                looked = self.look() => looked?,
                () = stopping.cancelled() => Err(Status::unavailable("the service is stopping; ask again")),
            };
            let kept = match looked {
                Ok(kept) => kept,
                Err(status) => {
                    self.ended = true;
                    return Some((Err(status), self));
                }
            };
            self.ended = kept.has_ended();
            let view = kept.view();
            if self.shown.as_ref() != Some(&view) {
                self.shown = Some(view.clone());
                return Some((Ok(view), self));
            }
        }
        None
    }

    /// The intent as it was found first, then each time that it may have changed, once its documents can say. `None` when
    /// the process ends.
    async fn look(&mut self) -> Option<Result<Kept, Status>> {
        if let Some(found) = self.found.take() {
            return Some(Ok(found));
        }
        self.changed().await?;
        loop {
            match find(&self.stores, &self.decided, &self.request).await {
                Err(Error::Unavailable { .. }) => tokio::time::sleep(LOOK_AGAIN).await,
                found => return Some(found.map_err(Status::from)),
            }
        }
    }

    /// Waits until the intent may have changed. `None` when the process ends.
    async fn changed(&mut self) -> Option<()> {
        loop {
            match self.changes.recv().await {
                Ok(ids) if ids.contains(&self.id) => return Some(()),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => return Some(()),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
