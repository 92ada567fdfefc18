//! What others may ask about subscriptions.

use mesh_core::query::Error;
use mesh_kit::View;
use mesh_proto::{
    Refusal, Timestamp,
    intent::Problem,
    subscription::{
        CheckSubscriptionReply, CheckSubscriptionRequest, SubscriptionRequest, SubscriptionView,
        subscription_queries_server::SubscriptionQueries,
    },
};
use tonic::{Request, Response, Status};

use crate::{
    domain::{
        hub::{Hub, Id, PER_OWNER_MAX},
        subscriptions::{Live, callback_problem, wanted},
    },
    shell::sender::Sender,
};

/// Answers about subscriptions.
pub(crate) struct Queries {
    pub(crate) hub: View<Hub>,
    pub(crate) sender: Sender,
}

fn view((owner, subscription_id): Id, live: Live) -> SubscriptionView {
    SubscriptionView {
        owner,
        subscription_id,
        callback: live.callback,
        query: live.query,
        through: live.through,
        failures: live.failures,
        failure: live.failure,
        retry_at: (live.failures > 0).then(|| Timestamp::from_millis(live.retry_ms)),
    }
}

#[tonic::async_trait]
impl SubscriptionQueries for Queries {
    async fn get(&self, request: Request<SubscriptionRequest>) -> Result<Response<SubscriptionView>, Status> {
        let SubscriptionRequest { owner, subscription_id } = request.into_inner();
        let id = (owner, subscription_id);
        let live = self.hub.read(|hub| hub.get(&id).cloned());
        let missing = || Error::not_found(format!("subscription {:?}", id.1), "it has ended, or was never made");
        let live = live.ok_or_else(missing)?;
        Ok(Response::new(view(id, live)))
    }

    async fn check(
        &self,
        request: Request<CheckSubscriptionRequest>,
    ) -> Result<Response<CheckSubscriptionReply>, Status> {
        let request = request.into_inner();
        let id = (request.owner, request.subscription_id);
        let problem =
            |path: &str, refusal: Refusal| Problem { path: path.into(), reason: refusal.reason, hint: refusal.hint };
        let mut problems = vec![];
        if let Some(refusal) = callback_problem(&request.callback) {
            problems.push(problem("callback", refusal));
        } else if let Err(reason) = self.sender.admits(&request.callback) {
            let hint = "use a public address, or list its host in `callbacks_private` of the notifier";
            problems.push(problem("callback", Refusal::invalid(reason, hint)));
        }
        if let Err(refusal) = wanted(&request.query) {
            problems.push(problem("query", refusal));
        }
        let others = self.hub.read(|hub| hub.others(&id));
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Response::new(CheckSubscriptionReply { problems, others: count(others), max: count(PER_OWNER_MAX) }))
    }
}
