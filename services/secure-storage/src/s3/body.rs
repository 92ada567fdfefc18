//! How a request's body arrives. `s3s` checks signatures and digests while the body is read, and reports a failure as
//! text only. The failures are told apart by what arrived and by what the headers announced.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::Stream;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use s3s::{S3ErrorCode, S3Request, dto::StreamingBlob};

use super::asked::Asked;

const ARRIVING: u8 = 0;
const ENDED: u8 = 1;
const BROKEN: u8 = 2;

/// How far the body of a request came, as the connection saw it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arrival(Arc<AtomicU8>, Arc<AtomicBool>);

impl Arrival {
    /// Did the last chunk of a body in chunks come?
    pub(crate) fn has_last_chunk(&self) -> bool {
        self.1.load(Relaxed)
    }
}

/// Finds the last chunk of a body in chunks of S3, which `s3s` does not miss.
#[derive(Debug)]
pub(crate) enum Chunks {
    /// In the line before a chunk; what came of its length.
    Length(u64, bool),
    /// After the length of that line.
    Line(u64),
    /// In a chunk with this many more bytes, with the line end after it.
    Data(u64),
    /// In the last chunk, or after it.
    Last,
}

impl Chunks {
    pub(crate) fn new() -> Self {
        Self::Length(0, false)
    }

    /// Follows the next bytes; is the last chunk there?
    fn follow(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((&byte, rest)) = bytes.split_first() {
            *self = match *self {
                Self::Length(size, any) => match char::from(byte).to_digit(16) {
                    Some(digit) => Self::Length(size.saturating_mul(16).saturating_add(digit.into()), true),
                    None if byte == b'\n' && any => Self::after(size),
                    None => Self::Line(size),
                },
                Self::Line(size) if byte == b'\n' => Self::after(size),
                Self::Line(size) => Self::Line(size),
                Self::Data(left) => {
                    let taken = left.min(bytes.len() as u64);
                    bytes = bytes.get(taken as usize..).unwrap_or_default();
                    *self = if taken == left { Self::Length(0, false) } else { Self::Data(left - taken) };
                    continue;
                }
                Self::Last => return true,
            };
            bytes = rest;
        }
        matches!(self, Self::Last)
    }

    /// After the line of a chunk.
    fn after(size: u64) -> Self {
        if size == 0 { Self::Last } else { Self::Data(size.saturating_add(2)) }
    }
}

/// A body that reports its arrival.
pub(crate) struct Watched {
    pub(crate) inner: Incoming,
    pub(crate) arrival: Arrival,
    pub(crate) chunks: Chunks,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(bytes) = frame.data_ref()
                    && self.chunks.follow(bytes)
                {
                    self.arrival.1.store(true, Relaxed);
                }
            }
            Poll::Ready(None) => self.arrival.0.store(ENDED, Relaxed),
            Poll::Ready(Some(Err(_))) => self.arrival.0.store(BROKEN, Relaxed),
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// How a request protects its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protection {
    /// The digest of the whole body is signed.
    Digest,
    /// Each chunk is signed.
    Chunks,
    /// Not at all.
    None,
}

/// What a request announces about its body, and how the body arrives.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    protection: Protection,
    /// Bytes of the content, if announced.
    bytes: Option<u64>,
    arrival: Arrival,
}

impl Expected {
    /// Of a request.
    pub(crate) fn of<T>(request: &S3Request<T>) -> Self {
        let asked = Asked::of(request);
        let header = |name: &str| asked.get(name);
        let protection = match header("x-amz-content-sha256") {
            Some(value) if value.len() == 64 => Protection::Digest,
            Some(value) if value.starts_with("STREAMING-AWS4-HMAC") => Protection::Chunks,
            _ => Protection::None,
        };
        let bytes = header("x-amz-decoded-content-length").or_else(|| header("content-length"));
        let arrival = request.extensions.get::<Arrival>().cloned().unwrap_or_default();
        Self { protection, bytes: bytes.and_then(|text| text.parse().ok()), arrival }
    }

    /// The code for a body that failed after this many bytes of content.
    pub(crate) fn failure(&self, received: u64) -> S3ErrorCode {
        failure(self.protection, self.arrival.0.load(Relaxed), self.bytes.is_some_and(|bytes| received >= bytes))
    }
}

/// `whole` says whether as many bytes arrived as were announced.
fn failure(protection: Protection, arrival: u8, whole: bool) -> S3ErrorCode {
    match (protection, arrival) {
        (_, BROKEN) => S3ErrorCode::IncompleteBody,
        (Protection::Digest, _) if whole => S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into()),
        // The reader gave up while more was to come, or when all was there: it was not what was signed.
        (Protection::Chunks, ARRIVING) => S3ErrorCode::SignatureDoesNotMatch,
        (Protection::Chunks, _) if whole => S3ErrorCode::SignatureDoesNotMatch,
        _ => S3ErrorCode::IncompleteBody,
    }
}

/// A request's body; an empty one if it has none.
pub(crate) fn content(body: Option<StreamingBlob>) -> StreamingBlob {
    body.unwrap_or_else(|| StreamingBlob::from(s3s::Body::empty()))
}

/// `s3s` sends only what is `Sync`. One task polls the stream, so that this lock is never contended.
pub(crate) fn sync_stream<S>(stream: S) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + Sync
where
    S: Stream<Item = Result<Bytes, std::io::Error>> + Send + Unpin + 'static,
{
    use futures::StreamExt as _;
    let locked = std::sync::Mutex::new(stream);
    futures::stream::poll_fn(move |context| {
        locked.lock().unwrap_or_else(std::sync::PoisonError::into_inner).poll_next_unpin(context)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_chunk_is_found_however_the_body_is_cut() {
        let signed = b"5;chunk-signature=00ff\r\n0\r\n0;\r\n0;chunk-signature=ab\r\nx-amz-checksum-crc32:AAAA\r\n";
        let plain = b"A\r\n0123456789\r\n0\r\n\r\n";
        for (whole, last) in [(&signed[..], 53), (&plain[..], 18)] {
            for cut in 1..whole.len() {
                for end in [last - 1, last, whole.len()] {
                    let mut chunks = Chunks::new();
                    let found = whole[..end].chunks(cut).fold(false, |_, piece| chunks.follow(piece));
                    assert_eq!(found, end >= last, "{cut} {end}");
                }
            }
        }
        assert!(!Chunks::new().follow(b"no chunks at all") && !Chunks::new().follow(b""));
    }

    #[test]
    fn a_body_that_fails_is_told_apart_by_what_arrived_and_not_by_text() {
        let digest = failure(Protection::Digest, ARRIVING, true);
        assert_eq!(digest.as_str(), "XAmzContentSHA256Mismatch");
        assert_eq!(failure(Protection::Digest, ENDED, false), S3ErrorCode::IncompleteBody);
        assert_eq!(failure(Protection::Digest, BROKEN, false), S3ErrorCode::IncompleteBody);
        assert_eq!(failure(Protection::Chunks, ARRIVING, false), S3ErrorCode::SignatureDoesNotMatch);
        assert_eq!(failure(Protection::Chunks, ENDED, true), S3ErrorCode::SignatureDoesNotMatch);
        assert_eq!(failure(Protection::Chunks, ENDED, false), S3ErrorCode::IncompleteBody);
        assert_eq!(failure(Protection::None, ENDED, true), S3ErrorCode::IncompleteBody);
    }
}
