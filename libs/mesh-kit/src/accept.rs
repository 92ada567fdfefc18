//! The one loop that accepts connections.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

/// Before the next attempt after one that failed: out of descriptors, or the caller is gone again; in either case a moment
/// helps.
const PAUSE: Duration = Duration::from_millis(50);

/// The next connection, however many attempts fail before.
pub(crate) async fn accept(listener: &TcpListener) -> TcpStream {
    let stream = loop {
        match listener.accept().await {
            Ok((stream, _)) => break stream,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "connection not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = &error as &dyn std::error::Error, "set nodelay");
    }
    stream
}

/// Serves a protocol of one's own: accepts until told to stop, runs `serve` on each connection, at most `connections_max`
/// at once (more wait), and returns once all of them have ended. `serve` should end soon after `stopping`.
pub async fn serve_connections<F, S>(
    listener: &TcpListener,
    connections_max: usize,
    stopping: &CancellationToken,
    mut serve: F,
) where
    F: FnMut(TcpStream) -> S,
    S: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(connections_max));
    loop {
        let accepted = async {
            let permit = room.clone().acquire_owned().await.ok()?;
            Some((accept(listener).await, permit))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = stopping.cancelled() => None,
        };
        let Some((stream, permit)) = accepted else { break };
        let serve = serve(stream);
        tokio::spawn(async move {
            serve.await;
            drop(permit);
        });
    }
    // All permits are back when all connections have ended.
    let all = u32::try_from(connections_max).unwrap_or(u32::MAX);
    let _never_closed = room.acquire_many(all).await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn connections_are_served_within_the_limit_and_finished_at_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stopping, open, most) =
            (CancellationToken::new(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let echo = {
            let (open, most) = (open.clone(), most.clone());
            move |mut stream: TcpStream| {
                let (open, most) = (open.clone(), most.clone());
                async move {
                    most.fetch_max(open.fetch_add(1, Relaxed) + 1, Relaxed);
                    let mut byte = [0];
                    if stream.read_exact(&mut byte).await.is_ok() {
                        stream.write_all(&byte).await.unwrap();
                    }
                    open.fetch_sub(1, Relaxed);
                }
            }
        };
        let token = stopping.clone();
        let server = tokio::spawn(async move { serve_connections(&listener, 2, &token, echo).await });
        let mut callers = vec![];
        for _ in 0..6 {
            callers.push(TcpStream::connect(address).await.unwrap());
        }
        for caller in &mut callers {
            let mut byte = [0];
            caller.write_all(b"x").await.unwrap();
            caller.read_exact(&mut byte).await.unwrap();
        }
        let mut last = TcpStream::connect(address).await.unwrap();
        while open.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        stopping.cancel();
        assert!(!server.is_finished());
        last.write_all(b"y").await.unwrap();
        server.await.unwrap();
        assert_eq!((open.load(Relaxed), most.load(Relaxed)), (0, 2));
    }
}
