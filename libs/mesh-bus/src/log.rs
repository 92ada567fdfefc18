//! A stream read by sequence (direct get).

use std::{sync::Arc, time::Duration};

use async_nats::{Message, StatusCode};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use mesh_core::Stored;
use mesh_proto::{Timestamp, contract};
use tokio::time::{Instant, timeout};

use crate::{Tail, backoff::Backoff, error::AskError, headers, link::Link};

/// A stream was not read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The stream did not answer within the limit.
    #[error("read {stream}: no answer within {limit_ms} ms")]
    Unanswered {
        /// The stream.
        stream: String,
        /// The limit, milliseconds.
        limit_ms: u64,
    },
    /// This service has no right to read it.
    #[error("read {stream}: not permitted to this identity")]
    Denied {
        /// The stream.
        stream: String,
    },
    /// The server does not understand the request.
    #[error("read {stream}: refused: {description}")]
    Refused {
        /// The stream.
        stream: String,
        /// The server's description.
        description: String,
    },
    /// The bus was closed.
    #[error("read {stream}: the bus is closed")]
    Closed {
        /// The stream.
        stream: String,
    },
}

/// Messages that one request reads, at most.
pub(crate) const PAGE_MAX: usize = 1_000;
/// Bytes that one request reads, about.
const PAGE_BYTES: usize = 8 << 20;
/// How long one attempt at a read waits for the next message.
const ATTEMPT: Duration = Duration::from_secs(3);

#[derive(serde::Serialize)]
struct Get<'a> {
    #[serde(skip_serializing_if = "is_zero")]
    seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_by_subj: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_by_subj: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    batch: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max_bytes: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde hands references
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Get<'_> {
    const NONE: Self = Get { seq: 0, last_by_subj: None, next_by_subj: None, start_time: None, batch: 0, max_bytes: 0 };

    fn body(&self) -> Bytes {
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

/// One attempt to read one message.
async fn get_once(link: &Link, stream: &str, get: &Get<'_>) -> Result<Result<Option<Stored>, String>, AskError> {
    let answer = link.ask(link.api(&format!("DIRECT.GET.{stream}")), None, get.body(), ATTEMPT).await?;
    match answer.status {
        Some(StatusCode::NOT_FOUND) => Ok(Ok(None)),
        None | Some(StatusCode::OK) => match headers::from_direct_get(answer) {
            Some(found) => Ok(Ok(Some(found))),
            None => Ok(Err("an answer without a sequence".to_owned())),
        },
        Some(status) => Ok(Err(format!("{status} {}", answer.description.unwrap_or_default()))),
    }
}

/// The last message under a filter, tried until the bus answers or ends.
pub(crate) async fn last(link: &Link, stream: &str, filter: &str) -> Result<Option<Stored>, AskError> {
    let mut backoff = Backoff::new(5, 200);
    loop {
        match get_once(link, stream, &Get { last_by_subj: Some(filter), ..Get::NONE }).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(description)) => {
                tracing::warn!(stream, filter, description, "read of an entity refused; trying again");
            }
            Err(AskError::Lost | AskError::TimedOut | AskError::NoResponders) => {}
            Err(error) => return Err(error),
        }
        link.pause(backoff.next()).await?;
    }
}

/// What one request returned.
pub(crate) struct Page {
    pub(crate) messages: Vec<Stored>,
    /// Is there more after it?
    pub(crate) more: bool,
}

/// One stream. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    link: Arc<Link>,
    stream: Arc<str>,
}

impl Log {
    pub(crate) fn new(link: Arc<Link>, stream: &str) -> Self {
        Self { link, stream: stream.into() }
    }

    /// The stream's name.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// Sequence of the last message; 0 if there is none.
    pub async fn last_sequence(&self) -> Result<u64, LogError> {
        Ok(self.last(">").await?.map_or(0, |m| m.sequence))
    }

    /// The message of a sequence; `None` if there is none.
    pub async fn get(&self, sequence: u64) -> Result<Option<Stored>, LogError> {
        if sequence == 0 {
            return Ok(None);
        }
        self.one(Get { seq: sequence, ..Get::NONE }).await
    }

    /// The last message under a filter.
    pub async fn last(&self, filter: &str) -> Result<Option<Stored>, LogError> {
        self.one(Get { last_by_subj: Some(filter), ..Get::NONE }).await
    }

    /// The first message that was stored at a time or later.
    pub async fn since(&self, time: Timestamp) -> Result<Option<Stored>, LogError> {
        self.one(Get { start_time: Some(time.to_string()), ..Get::NONE }).await
    }

    /// Up to `limit` messages under a filter, from a sequence on, in order.
    pub async fn read(&self, filter: &str, from: u64, limit: usize) -> Result<Vec<Stored>, LogError> {
        let mut found: Vec<Stored> = vec![];
        while found.len() < limit {
            let next = found.last().map_or(from, |m| m.sequence + 1);
            let page = self.page(filter, next, limit - found.len()).await?;
            found.extend(page.messages);
            if !page.more {
                break;
            }
        }
        Ok(found)
    }

    /// Follows a filter from a sequence on: every message stored from there on, in order, without a gap. The whole
    /// stream and a single subject are followed as such; for any other filter the whole stream is, and filtered here.
    pub fn tail(&self, filter: &str, from: u64) -> Tail {
        Tail::new(self, filter, from)
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    async fn one(&self, get: Get<'_>) -> Result<Option<Stored>, LogError> {
        let deadline = Instant::now() + self.link.read_limit();
        let mut backoff = Backoff::new(10, 200);
        loop {
            match tokio::time::timeout_at(deadline, get_once(&self.link, &self.stream, &get)).await {
                Ok(Ok(Ok(found))) => return Ok(found),
                Ok(Ok(Err(description))) => return Err(self.refused(description)),
                Ok(Err(error)) => self.again(error)?,
                Err(_) => return Err(self.unanswered()),
            }
            if Instant::now() >= deadline {
                return Err(self.unanswered());
            }
            self.link.pause(backoff.next()).await.or_else(|e| self.again(e))?;
        }
    }

    /// One page, tried again until something is read or the limit has passed.
    pub(crate) async fn page(&self, filter: &str, from: u64, limit: usize) -> Result<Page, LogError> {
        let deadline = Instant::now() + self.link.read_limit();
        let mut backoff = Backoff::new(10, 200);
        loop {
            match tokio::time::timeout_at(deadline, self.page_once(filter, from, limit)).await {
                Ok(Ok(page)) => return Ok(page),
                Ok(Err(PageError::Ask(error))) => self.again(error)?,
                Ok(Err(PageError::Refused(description))) => return Err(self.refused(description)),
                Err(_) => return Err(self.unanswered()),
            }
            if Instant::now() >= deadline {
                return Err(self.unanswered());
            }
            self.link.pause(backoff.next()).await.or_else(|e| self.again(e))?;
        }
    }

    async fn page_once(&self, filter: &str, from: u64, limit: usize) -> Result<Page, PageError> {
        let link = &self.link;
        link.connected().await?;
        let epoch = link.epoch();
        let get = Get {
            seq: from.max(1),
            next_by_subj: (!is_whole(&self.stream, filter)).then_some(filter),
            batch: limit.min(PAGE_MAX) as u64,
            max_bytes: PAGE_BYTES as u64,
            ..Get::NONE
        };
        let client = link.client()?;
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|_| AskError::Closed)?;
        let denials = link.denials();
        let api = link.api(&format!("DIRECT.GET.{}", self.stream));
        link.send_for(api.clone(), inbox, get.body()).await?;
        let mut page = Page { messages: vec![], more: true };
        let ended = loop {
            // What is here already is taken without arming the others.
            let answer = match answers.next().now_or_never() {
                Some(answer) => Ok(answer),
                None => tokio::select! {
                    answer = timeout(ATTEMPT, answers.next()) => answer,
                    () = link.reconnected(epoch) => break Err(AskError::Lost.into()),
                    () = link.ended.cancelled() => break Err(AskError::Closed.into()),
                },
            };
            let answer: Message = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => break Err(AskError::Closed.into()),
                Err(_) if link.was_denied(&api, denials) => break Err(AskError::Denied.into()),
                Err(_) => break Err(AskError::TimedOut.into()),
            };
            match answer.status.map(|s| s.as_u16()) {
                None | Some(200) => match headers::from_direct_get(answer) {
                    Some(message) => page.messages.push(message),
                    None => break Err(PageError::Refused("an answer without a sequence".to_owned())),
                },
                Some(204) => {
                    let pending = answer.headers.as_ref().and_then(|h| h.get_last("Nats-Num-Pending"));
                    page.more = pending.is_some_and(|p| p.as_str() != "0");
                    break Ok(());
                }
                Some(404) => {
                    page.more = false;
                    break Ok(());
                }
                Some(503) => break Err(AskError::NoResponders.into()),
                Some(status) => {
                    let description = answer.description.unwrap_or_default();
                    break Err(PageError::Refused(format!("{status} {description}")));
                }
            }
        };
        let _ = answers.unsubscribe().await;
        match ended {
            // What came before it broke off is in order and without a gap.
            Err(PageError::Ask(AskError::Lost | AskError::TimedOut)) if !page.messages.is_empty() => Ok(page),
            Err(error) => Err(error),
            Ok(()) => Ok(page),
        }
    }

    /// Passes for errors after which a read is tried again.
    fn again(&self, error: AskError) -> Result<(), LogError> {
        let stream = self.stream.to_string();
        match error {
            AskError::Lost | AskError::TimedOut | AskError::NoResponders => Ok(()),
            AskError::Denied => Err(LogError::Denied { stream }),
            AskError::TooLarge { .. } | AskError::Subject => {
                Err(LogError::Refused { stream, description: "invalid stream name".to_owned() })
            }
            AskError::Closed => Err(LogError::Closed { stream }),
        }
    }

    fn refused(&self, description: String) -> LogError {
        LogError::Refused { stream: self.stream.to_string(), description }
    }

    fn unanswered(&self) -> LogError {
        LogError::Unanswered { stream: self.stream.to_string(), limit_ms: self.link.options.read_limit_ms }
    }
}

/// Does this filter match everything that the stream holds?
pub(crate) fn is_whole(stream: &str, filter: &str) -> bool {
    filter == ">" || contract().stream(stream).is_some_and(|s| s.subject == filter)
}

enum PageError {
    Ask(AskError),
    Refused(String),
}

impl From<AskError> for PageError {
    fn from(error: AskError) -> Self {
        Self::Ask(error)
    }
}
