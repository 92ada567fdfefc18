//! Messages that are not stored: announcements, subscriptions and requests.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::time::Instant;

use crate::{
    Bus, PublishError, RequestError, SubscribeError,
    error::{AskError, publish_error, request_error},
};

/// A message that is not stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plain {
    /// Where it was published.
    pub subject: String,
    /// Where the answer is to be sent.
    pub reply: Option<String>,
    /// Headers; of several values the last.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: Bytes,
}

impl From<Message> for Plain {
    fn from(message: Message) -> Self {
        let named = |(name, values): (&async_nats::HeaderName, &Vec<async_nats::HeaderValue>)| {
            values.last().map(|v| (name.to_string(), v.to_string()))
        };
        Self {
            headers: message.headers.iter().flat_map(HeaderMap::iter).filter_map(named).collect(),
            subject: message.subject.into_string(),
            reply: message.reply.map(async_nats::Subject::into_string),
            body: message.payload,
        }
    }
}

/// Messages of a subject as they are published. What is published while disconnected is missed.
pub struct Subscription(async_nats::Subscriber);

impl Subscription {
    /// The next message; `None` once the bus is closed.
    pub async fn next(&mut self) -> Option<Plain> {
        self.0.next().await.map(Plain::from)
    }
}

impl Bus {
    /// Publishes a message that is not stored.
    pub async fn announce(&self, subject: &str, body: Bytes) -> Result<(), PublishError> {
        self.link().send(subject.to_owned(), None, body).await.map_err(|e| publish_error(e, subject, 0))
    }

    /// Subscribes to a subject, wildcards allowed. What is published while disconnected is missed.
    pub async fn subscribe(&self, subject: &str) -> Result<Subscription, SubscribeError> {
        let failed = |source| SubscribeError { subject: subject.to_owned(), source };
        let closed = || failed(async_nats::SubscribeError::new(async_nats::SubscribeErrorKind::Other));
        let client = self.link().client().map_err(|_| closed())?;
        client.subscribe(subject.to_owned()).await.map(Subscription).map_err(failed)
    }

    /// Answers a request.
    pub async fn reply(&self, to: &str, body: Bytes) -> Result<(), PublishError> {
        self.announce(to, body).await
    }

    /// Sends a request and returns the first answer.
    pub async fn request(&self, subject: &str, body: Bytes, limit: Duration) -> Result<Plain, RequestError> {
        let answer = self.link().ask(subject.to_owned(), None, body, limit).await;
        answer.map(Plain::from).map_err(|e| request_error(e, subject, limit))
    }

    /// Sends a request to everyone who listens on a subject; returns the answers that arrive within `wait`.
    pub async fn request_all(&self, subject: &str, body: Bytes, wait: Duration) -> Result<Vec<Plain>, RequestError> {
        let link = self.link();
        let failed = |e| request_error(e, subject, wait);
        let client = link.client().map_err(failed)?;
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|_| failed(AskError::Subject))?;
        link.send_for(subject.to_owned(), inbox, body).await.map_err(failed)?;
        let mut found = vec![];
        let deadline = Instant::now() + wait;
        while let Ok(Some(answer)) = tokio::time::timeout_at(deadline, answers.next()).await {
            if answer.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
                break;
            }
            found.push(Plain::from(answer));
        }
        let _ = answers.unsubscribe().await;
        Ok(found)
    }
}
