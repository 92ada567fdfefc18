//! Atomic batches (ADR-50): all of their messages are stored, one after the other, or none.

use std::sync::atomic::Ordering::Relaxed;

use async_nats::HeaderMap;
use bytes::Bytes;

use crate::{answer::Answer, error::AskError, headers, link::Link};

/// Messages in an atomic batch, at most (ADR-50).
pub(crate) const BATCH_MAX: usize = 1_000;
/// Bytes in an atomic batch, at most, bodies only.
pub(crate) const BATCH_BYTES_MAX: usize = 8 << 20;
/// Messages without a condition, which nobody waits for one by one, from which on a batch is worth it, at most.
pub(crate) const DERIVED_WORTH: usize = 6;

/// A message of a batch: where it is published, its headers, its body.
pub(crate) type Part = (String, HeaderMap, Bytes);

/// Sends the messages of a batch; returns the answer to its commit.
pub(crate) async fn send(
    link: &Link,
    count: usize,
    part: impl Fn(usize) -> Part + Send,
) -> Result<async_nats::Message, AskError> {
    link.connected().await?;
    let (epoch, denials) = (link.epoch(), link.denials());
    let id = uuid::Uuid::new_v4().simple().to_string();
    for index in 0..count.saturating_sub(1) {
        let (subject, mut headers, body) = part(index);
        headers::batch(&mut headers, &id, index + 1, false);
        link.send(subject, Some(headers), body).await?;
    }
    let (subject, mut headers, body) = part(count - 1);
    headers::batch(&mut headers, &id, count, true);
    if link.epoch() != epoch {
        return Err(AskError::Lost);
    }
    let answer = link.ask(subject, Some(headers), body, link.ack_timeout()).await;
    let refused = match &answer {
        Err(AskError::TimedOut) => true,
        Ok(answer) => matches!(Answer::parse(answer), Some(Answer::Refused { .. })),
        Err(_) => false,
    };
    if refused && link.denials() > denials && (0..count).any(|index| link.was_denied(&part(index).0, denials)) {
        return Err(AskError::Denied);
    }
    answer
}

/// Stores messages of one stream as an atomic batch, in one attempt; returns the last one's sequence if it is stored.
pub(crate) async fn commit(link: &Link, count: usize, part: impl Fn(usize) -> Part + Send) -> Option<u64> {
    let answer = send(link, count, part).await.ok()?;
    let stored = match Answer::parse(&answer) {
        Some(Answer::Stored { sequence, .. }) => Some(sequence),
        _ => None,
    };
    if stored.is_some() {
        link.stats.published.fetch_add(count as u64, Relaxed);
        count_batch(link, count);
    }
    stored
}

pub(crate) fn count_batch(link: &Link, count: usize) {
    link.stats.batches.fetch_add(1, Relaxed);
    link.stats.batch_messages.fetch_add(count as u64, Relaxed);
}

/// How many of these bodies the next batch takes: at least one, if there is one.
pub(crate) fn fitting<'a>(bodies: impl Iterator<Item = &'a Bytes>, messages_max: usize, bytes_max: usize) -> usize {
    let mut bytes = 0;
    let mut count = 0;
    for body in bodies.take(messages_max) {
        bytes += body.len();
        if bytes > bytes_max && count > 0 {
            break;
        }
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_takes_what_fits_and_always_one() {
        let bodies = |sizes: &[usize]| sizes.iter().map(|size| Bytes::from(vec![0; *size])).collect::<Vec<_>>();
        let fit = |sizes: &[usize]| fitting(bodies(sizes).iter(), 3, 10);
        assert_eq!(fit(&[]), 0);
        assert_eq!(fit(&[99, 1]), 1);
        assert_eq!(fit(&[5, 5, 1]), 2);
        assert_eq!(fit(&[1, 1, 1, 1]), 3);
    }
}
