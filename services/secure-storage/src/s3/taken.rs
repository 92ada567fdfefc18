//! A connection whose client has to keep up. One that takes nothing, or almost nothing, would hold the memory of its answer
//! for as long as it likes; the same for the body of a request.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// Bytes that a client has to send or to take while it is waited for.
const LEAST: usize = 64 << 10;

/// How long a client has been waited for. Only the time counts in which nothing else is waited for.
#[derive(Debug)]
pub(super) struct Pace {
    limit: Duration,
    /// Before `since`, for the bytes that have `moved`.
    waited: Duration,
    moved: usize,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// It has to move 64 KiB in this time of waiting.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, waited: Duration::ZERO, moved: 0, since: None, timer: None }
    }

    /// Bytes have moved; the wait is over.
    pub(super) fn moved(&mut self, bytes: usize) {
        self.timer = None;
        self.waited += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.moved += bytes;
        if self.moved >= LEAST {
            (self.waited, self.moved) = (Duration::ZERO, 0);
        }
    }

    /// Nothing moves; ready when that has been so for too long.
    pub(super) fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<String> {
        self.since.get_or_insert_with(Instant::now);
        let left = self.limit.saturating_sub(self.waited);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(left)));
        let (moved, limit) = (self.moved, self.limit.as_millis());
        timer.as_mut().poll(context).map(|()| {
            format!("the client moved {moved} bytes while it was waited for {limit} ms, and {LEAST} are the least")
        })
    }
}

/// A connection that ends when its client takes too little.
pub(super) struct Taken<S> {
    inner: S,
    pace: Pace,
}

impl<S: Unpin> Taken<S> {
    /// With this pace.
    pub(super) fn new(inner: S, pace: Pace) -> Self {
        Self { inner, pace }
    }

    fn bounded<T>(
        &mut self,
        context: &mut Context<'_>,
        bytes: impl FnOnce(&T) -> usize,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(written) = write(Pin::new(&mut self.inner), context) {
            self.pace.moved(written.as_ref().map_or(0, bytes));
            return Poll::Ready(written);
        }
        self.pace.poll_late(context).map(|text| Err(io::Error::new(io::ErrorKind::TimedOut, text)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taken<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().bounded(context, |n| *n, |inner, context| inner.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().bounded(context, |n| *n, |inner, context| inner.poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().bounded(context, |()| 0, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().bounded(context, |()| 0, AsyncWrite::poll_shutdown)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taken<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_almost_nothing_is_cut_off_and_a_slow_one_is_not() {
        let (near, mut far) = tokio::io::duplex(LEAST / 4);
        let mut connection = Taken::new(near, Pace::new(Duration::from_millis(200)));
        let slow = tokio::spawn(async move {
            let mut taken = vec![0; LEAST / 2];
            for _ in 0..6 {
                sleep(Duration::from_millis(60)).await;
                far.read_exact(&mut taken).await.unwrap();
            }
            far
        });
        connection.write_all(&vec![1; 3 * LEAST]).await.unwrap();
        let mut dribbling = slow.await.unwrap();
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_millis(20)).await;
                dribbling.read_u8().await.unwrap();
            }
        });
        let ended = connection.write_all(&vec![1; LEAST]).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    }
}
