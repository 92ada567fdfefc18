//! How a request's body arrives. `s3s` checks signatures and digests while the body is read, and reports a failure as
//! text only. The failures are told apart by what arrived and by what the headers announced.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use futures::Stream;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use s3s::{S3ErrorCode, S3Request, dto::StreamingBlob};

use super::{asked::Asked, taken::Pace};

const ARRIVING: u8 = 0;
const ENDED: u8 = 1;
const BROKEN: u8 = 2;
const LATE: u8 = 3;
const TOO_LARGE: u8 = 4;

/// Bytes of a signed chunk at most: it is in memory whole before its signature is known to be right.
pub(crate) const CHUNK_MAX: u64 = 256 << 10;
/// Larger chunks that are not signed are cut.
const CHUNK_CUT: u64 = 64 << 10;
/// Bytes of the line before a chunk at most.
const LINE_MAX: usize = 1_024;

/// How far the body of a request came, as the connection saw it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arrival(Arc<AtomicU8>, Arc<AtomicBool>);

impl Arrival {
    /// Did the last chunk of a body in chunks come?
    pub(crate) fn has_last_chunk(&self) -> bool {
        self.1.load(Relaxed)
    }
}

/// Follows a body in chunks of S3. It finds the last one, which `s3s` does not miss, and cuts chunks that are not signed:
/// `s3s` holds each whole.
#[derive(Debug)]
pub(crate) struct Chunks {
    at: At,
    /// What came of the line before a chunk.
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Line,
    /// In a chunk, or a part that was cut of it, with this many more bytes; then come those of its further parts.
    Data(u64, u64),
    /// At the end of a chunk.
    End,
    /// In the last chunk, or after it.
    Last,
}

impl Chunks {
    /// Of a request, if its body is in chunks.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let content = headers.get("x-amz-content-sha256")?;
        content.as_bytes().starts_with(b"STREAMING-").then(Self::new)
    }

    fn new() -> Self {
        Self { at: At::Line, line: vec![] }
    }

    /// Follows the next bytes, and appends what is to be read in their place.
    fn follow(&mut self, mut bytes: Bytes, read: &mut VecDeque<Bytes>) -> Result<(), String> {
        while let Some(&byte) = bytes.first() {
            match self.at {
                At::Last => {
                    read.push_back(std::mem::take(&mut bytes));
                }
                At::Line => {
                    self.line.push(byte);
                    bytes.advance(1);
                    if byte == b'\n' {
                        let line = std::mem::take(&mut self.line);
                        self.begin(line, read)?;
                    } else if self.line.len() > LINE_MAX {
                        return Err(format!("a line before a chunk has more than {LINE_MAX} bytes"));
                    }
                }
                At::Data(left, more) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    read.push_back(bytes.split_to(taken));
                    self.at = match (left - taken as u64, more) {
                        (0, 0) => At::End,
                        (0, more) => {
                            let next = more.min(CHUNK_CUT);
                            read.push_back(format!("\r\n{next:x}\r\n").into());
                            At::Data(next, more - next)
                        }
                        (left, more) => At::Data(left, more),
                    };
                }
                At::End => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    if end.is_some() {
                        self.at = At::Line;
                    }
                    read.push_back(bytes.split_to(end.map_or(bytes.len(), |end| end + 1)));
                }
            }
        }
        Ok(())
    }

    /// At the end of the line before a chunk. What is no such line is for `s3s` to refuse.
    fn begin(&mut self, line: Vec<u8>, read: &mut VecDeque<Bytes>) -> Result<(), String> {
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let size = std::str::from_utf8(&line[..digits]).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
        let is_signed = line.windows(16).any(|bytes| bytes == b";chunk-signature");
        match size {
            Some(0) => self.at = At::Last,
            Some(size) if size > CHUNK_CUT && !is_signed => {
                self.at = At::Data(CHUNK_CUT, size - CHUNK_CUT);
                read.push_back(format!("{CHUNK_CUT:x}\r\n").into());
                return Ok(());
            }
            Some(size) if size > CHUNK_MAX => {
                return Err(format!("a signed chunk has {size} bytes; send chunks of {CHUNK_MAX} bytes at most"));
            }
            Some(size) => self.at = At::Data(size, 0),
            None => {}
        }
        read.push_back(line.into());
        Ok(())
    }

    fn is_last(&self) -> bool {
        self.at == At::Last
    }
}

/// A body that reports its arrival, and ends when its client sends too little.
pub(crate) struct Watched {
    pub(crate) inner: Incoming,
    pub(crate) arrival: Arrival,
    /// Of a body in chunks of S3.
    pub(crate) chunks: Option<Chunks>,
    pub(crate) pace: Pace,
    pub(crate) read: VecDeque<Bytes>,
}

impl Watched {
    fn broken(&mut self, how: u8, text: String) -> Poll<Option<Result<Frame<Bytes>, s3s::StdError>>> {
        self.arrival.0.store(how, Relaxed);
        Poll::Ready(Some(Err(text.into())))
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = s3s::StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, s3s::StdError>>> {
        loop {
            if let Some(bytes) = self.read.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Pending => {
                    return match self.pace.poll_late(cx) {
                        Poll::Ready(text) => self.broken(LATE, text),
                        Poll::Pending => Poll::Pending,
                    };
                }
                Poll::Ready(None) => {
                    self.arrival.0.store(ENDED, Relaxed);
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(error))) => return self.broken(BROKEN, error.to_string()),
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    let Self { pace, chunks, read, arrival, .. } = &mut *self;
                    pace.moved(bytes.len());
                    match chunks {
                        None => read.push_back(bytes),
                        Some(chunks) => {
                            let followed = chunks.follow(bytes, read);
                            if chunks.is_last() {
                                arrival.1.store(true, Relaxed);
                            }
                            if let Err(text) = followed {
                                return self.broken(TOO_LARGE, text);
                            }
                        }
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.inner.is_end_stream()
    }

    /// Of what is sent; a body that was cut is longer, and its length is that of its content.
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
        (_, LATE) => S3ErrorCode::RequestTimeout,
        (_, TOO_LARGE) => S3ErrorCode::InvalidRequest,
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

    /// What is read in place of a body that comes in pieces of this size, and whether its last chunk was found.
    fn followed(body: &[u8], cut: usize) -> Result<(Vec<u8>, bool), String> {
        let (mut chunks, mut read) = (Chunks::new(), VecDeque::new());
        for piece in body.chunks(cut) {
            chunks.follow(Bytes::copy_from_slice(piece), &mut read)?;
        }
        Ok((read.into_iter().flatten().collect(), chunks.is_last()))
    }

    #[test]
    fn the_last_chunk_is_found_however_the_body_is_cut() {
        let signed = b"5;chunk-signature=00ff\r\n0\r\n0;\r\n0;chunk-signature=ab\r\nx-amz-checksum-crc32:AAAA\r\n";
        let plain = b"A\r\n0123456789\r\n0\r\n\r\n";
        for (whole, last) in [(&signed[..], 53), (&plain[..], 18)] {
            for cut in 1..whole.len() {
                for end in [last - 1, last, whole.len()] {
                    let (_, found) = followed(&whole[..end], cut).unwrap();
                    assert_eq!(found, end >= last, "{cut} {end}");
                }
                assert_eq!(followed(whole, cut).unwrap().0, whole, "{cut}");
            }
        }
        assert!(!followed(b"no chunks at all", 3).unwrap().1);
    }

    #[test]
    fn a_chunk_is_cut_unless_it_is_signed_and_then_it_has_a_limit() {
        let data: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let whole = [b"30d40\r\n", &data[..], b"\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n"].concat();
        let (first, second, third) = (&data[..65_536], &data[65_536..131_072], &data[131_072..196_608]);
        let cut = [
            b"10000\r\n",
            first,
            b"\r\n10000\r\n",
            second,
            b"\r\n10000\r\n",
            third,
            b"\r\nd40\r\n",
            &data[196_608..],
            b"\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n",
        ]
        .concat();
        for size in [1, 7, 65_536, 65_543, 1 << 20] {
            let (read, last) = followed(&whole, size).unwrap();
            assert!(last && read == cut, "{size}");
        }
        let signed = [b"30d40;chunk-signature=ab\r\n", &data[..], b"\r\n"].concat();
        assert!(followed(&signed, 4_000).unwrap().0 == signed);
        assert!(followed(b"40001;chunk-signature=ab\r\n", 5).unwrap_err().contains("262144"));
        assert!(followed(&[b'1'; 2_000], 100).is_err());
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
        assert_eq!(failure(Protection::Chunks, LATE, false), S3ErrorCode::RequestTimeout);
    }
}
