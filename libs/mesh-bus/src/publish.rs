//! Writes that carry no condition.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed, time::Duration};

use async_nats::HeaderMap;
use bytes::Bytes;
use futures::StreamExt as _;
use mesh_core::Outgoing;
use mesh_proto::{contract, contract::WRITE_PREFIX};
use tokio::time::Instant;

use crate::{
    Bus, PublishError, Unstored,
    answer::{Answer, code},
    backoff::Backoff,
    batch::{self, BATCH_MAX, DERIVED_WORTH},
    error::{AskError, publish_error},
    headers,
    link::Link,
};

/// Unconditional writes in flight at once.
const WINDOW: usize = 256;

/// Writes in a row without an answer, on a connection that stands, after which the stream's disk is taken as full.
pub(crate) const SILENT_MIN: u32 = 2;

impl Bus {
    /// Publishes one message without condition; returns its sequence once it is on disk. It is sent again with its
    /// id until it is stored or the limit has passed; if it was stored before, that is success.
    pub async fn publish(&self, message: &Outgoing) -> Result<u64, PublishError> {
        let link = self.link();
        let kind = contract().stream(&message.stream).map(|spec| spec.kind);
        if kind == Some(contract::Kind::Commands) {
            return self.gatherer(&message.stream).publish(message).await;
        }
        let headers = headers::of(message, self.source());
        let subject = ingest(&message.stream, &message.subject);
        let (sequence, is_known) = link.store(&message.stream, subject, headers, &message.body).await?;
        // What an earlier attempt stored may differ from this.
        if let Some(echo) = link.echo.get().filter(|_| !is_known) {
            echo.stored(message, self.source(), sequence);
        }
        Ok(sequence)
    }

    /// Publishes a dead letter: a message that could not be handled, with the reason. Body and content type stay as
    /// they arrived, so that it can be listed, shown and replayed.
    pub async fn publish_dead(
        &self,
        letter: &Outgoing,
        reason: &str,
        content_type: Option<&str>,
    ) -> Result<u64, PublishError> {
        let link = self.link();
        let headers = headers::dead(headers::of(letter, self.source()), reason, content_type);
        let subject = ingest(&letter.stream, &letter.subject);
        link.store(&letter.stream, subject, headers, &letter.body).await.map(|(sequence, _)| sequence)
    }

    /// Publishes messages without condition, many at a time, in no particular order across subjects. Those of
    /// derived streams travel in atomic batches where that is faster. Returns once all are stored, or with the
    /// first failure once nothing is in flight.
    pub async fn publish_many(&self, messages: Vec<Outgoing>) -> Result<(), PublishError> {
        self.publish_counted(messages).await.map_err(|unstored| unstored.first)
    }

    /// [`publish_many`](Self::publish_many), for a caller that counts what is not stored.
    pub async fn publish_counted(&self, messages: Vec<Outgoing>) -> Result<(), Unstored> {
        let link = self.link();
        let mut left = vec![];
        let mut by_stream: BTreeMap<String, Vec<Outgoing>> = BTreeMap::new();
        for message in messages {
            by_stream.entry(message.stream.clone()).or_default().push(message);
        }
        for (stream, messages) in by_stream {
            let derived = contract().stream(&stream).is_some_and(|s| s.kind == contract::Kind::Derived);
            if !derived || messages.len() < DERIVED_WORTH.min(link.disk.worth()) {
                left.extend(messages);
                continue;
            }
            for chunk in messages.chunks(BATCH_MAX) {
                let part = |index: usize| {
                    let message = &chunk[index];
                    let subject = ingest(&stream, &message.subject);
                    (subject, headers::of(message, self.source()), message.body.clone())
                };
                let Some(last) = batch::commit(link, chunk.len(), part).await else {
                    left.extend_from_slice(chunk);
                    continue;
                };
                let first = (last + 1).saturating_sub(chunk.len() as u64);
                link.acknowledged(&stream, first, last);
                if let Some(echo) = link.echo.get() {
                    chunk.iter().zip(first..).for_each(|(message, at)| echo.stored(message, self.source(), at));
                }
            }
        }
        let mut writes = futures::stream::iter(left)
            .map(|message| async move { self.publish(&message).await })
            .buffer_unordered(WINDOW);
        let mut unstored: Option<Unstored> = None;
        while let Some(written) = writes.next().await {
            if let Err(error) = written {
                unstored.get_or_insert(Unstored { count: 0, first: error }).count += 1;
            }
        }
        unstored.map_or(Ok(()), Err)
    }
}

impl Link {
    /// Stores one message without condition: tried until it is stored or the limit has passed. Gives its sequence, and
    /// whether it was stored before.
    pub(crate) async fn store(
        &self,
        stream: &str,
        subject: String,
        headers: HeaderMap,
        body: &Bytes,
    ) -> Result<(u64, bool), PublishError> {
        let limit_ms = self.options.publish_limit_ms;
        let deadline = Instant::now() + Duration::from_millis(limit_ms);
        let mut backoff = Backoff::new(10, 500);
        let mut full = false;
        let mut silent = 0;
        loop {
            let attempt = self.ask(subject.clone(), Some(headers.clone()), body.clone(), self.ack_timeout());
            let Ok(answer) = tokio::time::timeout_at(deadline, attempt).await else {
                return Err(if full {
                    PublishError::Full { stream: stream.to_owned(), subject }
                } else {
                    PublishError::Unanswered { subject, limit_ms }
                });
            };
            silent = if matches!(answer, Err(AskError::TimedOut)) { silent + 1 } else { 0 };
            // A server whose disk is full does not answer a write at all.
            full = silent >= SILENT_MIN;
            if full {
                self.mark_full(stream, true);
            }
            match answer.as_ref().map(Answer::parse) {
                Ok(Some(Answer::Stored { sequence, is_known })) => {
                    self.stats.published.fetch_add(1, Relaxed);
                    self.mark_full(stream, false);
                    if !is_known {
                        self.acknowledged(stream, sequence, sequence);
                    }
                    return Ok((sequence, is_known));
                }
                Ok(Some(Answer::Refused { code, description })) => match code {
                    _ if code::is_full(code) => {
                        self.mark_full(stream, true);
                        full = true;
                    }
                    _ if code::is_too_large(code) => {
                        return Err(PublishError::TooLarge { subject, size: body.len(), limit: 0 });
                    }
                    _ if code::is_passing(code) || code::is_open(code) => {}
                    _ => return Err(PublishError::Refused { subject, code, description }),
                },
                Ok(None) | Err(AskError::Lost | AskError::TimedOut | AskError::NoResponders) => {}
                Err(_) => {
                    let error = answer.err().unwrap_or(AskError::Closed);
                    return Err(publish_error(error, &subject, body.len()));
                }
            }
            self.stats.resent.fetch_add(1, Relaxed);
            // While disconnected the next attempt itself waits for the connection.
            let wait = backoff.next().min(deadline.saturating_duration_since(Instant::now()));
            self.pause(wait).await.map_err(|e| publish_error(e, &subject, 0))?;
        }
    }
}

/// Where a message of a stream is published: through the write prefix, if the stream has it.
pub(crate) fn ingest(stream: &str, subject: &str) -> String {
    match contract().stream(stream) {
        Some(spec) if spec.has_write_prefix() => format!("{WRITE_PREFIX}{subject}"),
        _ => subject.to_owned(),
    }
}
