//! TMF921's hub: subscriptions are made and ended by commands; the notifier knows which hold, and sends the events.

use std::time::Duration;

use axum::response::Response;
use futures::{FutureExt as _, future::BoxFuture};
use http::{StatusCode, header};
use mesh_proto::{
    derived_id,
    subscription::{
        CheckSubscriptionRequest, Subscribe, Subscribed, SubscriptionRequest, SubscriptionView, Unsubscribe,
        subscription_queries_client::SubscriptionQueriesClient,
    },
};
use mesh_rest::{
    body,
    http::{empty, json, unavailable, with},
    problem::{Fault, Kind, Problem},
};
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::{
    domain::{forms::HubInput, tmf},
    shell::gateway::{Admitted, Gateway},
};

const NOTIFIER: &str = "notifier";
/// How long a caller waits until the notifier sees its subscription, or its end.
const CAUGHT_UP: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Gateway {
    /// Asks the notifier; once more if the process that was known has stopped, since another may run.
    async fn ask_notifier<T>(
        &self,
        question: impl Fn(
            SubscriptionQueriesClient<Channel>,
        ) -> BoxFuture<'static, Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Problem> {
        let mut is_first = true;
        loop {
            let client = SubscriptionQueriesClient::new(self.channel(NOTIFIER).await?);
            match self.reply(NOTIFIER, question(client).await) {
                Err(problem) if is_first && problem.kind == Kind::Unavailable => is_first = false,
                answered => return answered,
            }
        }
    }

    async fn subscription(&self, owner: &str, id: &str) -> Result<SubscriptionView, Problem> {
        let request = SubscriptionRequest { owner: owner.into(), subscription_id: id.into() };
        self.ask_notifier(|mut client| {
            let request = request.clone();
            async move { client.get(request).await }.boxed()
        })
        .await
    }

    /// Waits until the notifier does or does not have a subscription, for a while.
    async fn notifier_has(&self, owner: &str, id: &str, wanted: bool) {
        let until = Instant::now() + CAUGHT_UP;
        while Instant::now() < until {
            match self.subscription(owner, id).await {
                Ok(_) if wanted => return,
                Err(problem) if problem.kind == Kind::NotFound && !wanted => return,
                _ => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Subscribes.
    pub(crate) async fn subscribe(&self, admitted: &mut Admitted) -> Result<Response, Problem> {
        let (owner, key) = (admitted.owner()?, admitted.idempotency_key()?);
        let HubInput { callback, query, .. } = body::form::<HubInput>(admitted.written())?.check()?;
        let id = match &key {
            Some(key) => derived_id(&["hub", &owner, key]),
            None => uuid::Uuid::now_v7().to_string(),
        };
        let request = CheckSubscriptionRequest {
            owner: owner.clone(),
            subscription_id: id.clone(),
            callback: callback.clone(),
            query: query.clone(),
        };
        let checked = self
            .ask_notifier(|mut client| {
                let request = request.clone();
                async move { client.check(request).await }.boxed()
            })
            .await?;
        if !checked.problems.is_empty() {
            let fault = |p: mesh_proto::intent::Problem| Fault { path: p.path, reason: p.reason, hint: p.hint };
            return Err(Problem::faults(checked.problems.into_iter().map(fault).collect()));
        }
        if checked.others >= checked.max {
            let detail = format!("{owner} has {} subscriptions, and {} are allowed", checked.others, checked.max);
            return Err(Problem::new(Kind::Conflict, detail, "end one that is no longer needed"));
        }
        let end = self.inner.mesh.bus().log("INTENT").last_sequence().await;
        let after = end.map_err(|_| unavailable("the bus does not answer"))?;
        let command_id = derived_id(&["subscribe", &owner, &id, &callback, &query]);
        let command = Subscribe { owner: owner.clone(), subscription_id: id.clone(), callback, query, after };
        let answered = self.inner.answers.ask(&command, &command_id, self.limit_of_commands()).await;
        let (answer, _) = answered.map_err(|problem| match &key {
            Some(_) if problem.refusal.is_some() => Problem::new(
                Kind::Replayed,
                format!("this key made subscription {id} from another body, or the subscription has ended"),
                "use another key for another subscription",
            ),
            _ => problem,
        })?;
        self.notifier_has(&owner, &id, true).await;
        let made = answer.event::<Subscribed>().ok().flatten().unwrap_or_default();
        let response = json(StatusCode::CREATED, &tmf::hub(&id, &made.callback, &made.query));
        Ok(with(response, header::LOCATION, &format!("{}/hub/{id}", tmf::BASE)))
    }

    /// Shows a subscription.
    pub(crate) async fn show_subscription(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let view = self.subscription(&admitted.owner()?, &admitted.id(0)).await?;
        let mut shown = tmf::hub(&view.subscription_id, &view.callback, &view.query);
        shown["failures"] = view.failures.into();
        if view.failures > 0 {
            shown["failure"] = view.failure.into();
            shown["retryAt"] = view.retry_at.unwrap_or_default().to_string().into();
        }
        Ok(json(StatusCode::OK, &shown))
    }

    /// Ends a subscription.
    pub(crate) async fn unsubscribe(&self, admitted: &Admitted) -> Result<Response, Problem> {
        let (owner, id) = (admitted.owner()?, admitted.id(0));
        self.subscription(&owner, &id).await?;
        let command = Unsubscribe { owner: owner.clone(), subscription_id: id.clone() };
        let command_id = uuid::Uuid::now_v7().to_string();
        match self.inner.answers.ask(&command, &command_id, self.limit_of_commands()).await {
            Ok(_) => {}
            // It ended in the meantime, which is what the caller wants.
            Err(problem) if problem.refusal.is_some() => {}
            Err(problem) => return Err(problem),
        }
        self.notifier_has(&owner, &id, false).await;
        Ok(empty(StatusCode::NO_CONTENT))
    }
}
