//! Answers probes: echoes over UDP, takes bulk transfers over TCP, on one port number.

#![expect(clippy::disallowed_methods, reason = "limits how long a connection may take")]

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
};
use tokio_util::sync::CancellationToken;

use super::{
    budget::Budget,
    wire::{BULK_HEADER_BYTES, ECHO_BYTES, Echo, bulk_length, target_of},
};

/// Echo requests answered a second; more are dropped.
const ECHOES_PER_S: u64 = 5_000;
/// Bulk transfers at once.
const BULKS_MAX: usize = 4;
/// A bulk transfer's longest time.
const BULK_LIMIT: Duration = Duration::from_secs(5);
/// Ports tried until one is free for both protocols.
const PORTS_TRIED: usize = 16;

/// Probes cannot be answered.
#[derive(Debug, thiserror::Error)]
#[error("listen for network probes on {address}")]
pub struct ResponderError {
    address: String,
    #[source]
    source: io::Error,
}

/// Answers probes to one cluster.
pub struct Responder {
    udp: UdpSocket,
    tcp: TcpListener,
    target: u64,
    address: SocketAddr,
}

impl Responder {
    /// Binds an address; port 0 takes one that is free for UDP and TCP.
    ///
    /// # Errors
    /// If it cannot be bound.
    pub async fn bind(address: &str, cluster_id: &str) -> Result<Self, ResponderError> {
        let failed = |source| ResponderError { address: address.to_owned(), source };
        let mut tried = 0;
        loop {
            tried += 1;
            let tcp = TcpListener::bind(address).await.map_err(failed)?;
            let bound = tcp.local_addr().map_err(failed)?;
            match UdpSocket::bind(bound).await {
                Ok(udp) => return Ok(Self { udp, tcp, target: target_of(cluster_id), address: bound }),
                Err(_) if tried < PORTS_TRIED && address.ends_with(":0") => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until stopped.
    pub async fn run(self, stopping: CancellationToken) {
        let Self { udp, tcp, target, .. } = self;
        tokio::select! {
            () = echoes(&udp, target) => {}
            () = bulks(&tcp, target, &stopping) => {}
            () = stopping.cancelled() => {}
        }
    }
}

async fn echoes(udp: &UdpSocket, target: u64) {
    let begun = std::time::Instant::now();
    let now_ms = || i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
    let mut budget = Budget::new(ECHOES_PER_S, ECHOES_PER_S, 0);
    let mut packet = [0; ECHO_BYTES + 1];
    loop {
        let (length, peer) = match udp.recv_from(&mut packet).await {
            Ok(received) => received,
            Err(error) => {
                // An unreachable peer's ICMP comes back as an error of the next call; it is not this socket's end.
                tracing::debug!(error = &error as &dyn std::error::Error, "probe not received");
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        let echo = packet.get(..length).and_then(Echo::read);
        let Some(echo) = echo.filter(|e| !e.reply && e.target == target) else { continue };
        if budget.take(1, now_ms()) {
            let _lost_like_any_datagram = udp.send_to(&Echo { reply: true, ..echo }.write(), peer).await;
        }
    }
}

async fn bulks(tcp: &TcpListener, target: u64, stopping: &CancellationToken) {
    let take = |stream| {
        let stopping = stopping.clone();
        async move {
            tokio::select! {
                _ = tokio::time::timeout(BULK_LIMIT, take(stream, target)) => {}
                () = stopping.cancelled() => {}
            }
        }
    };
    mesh_kit::serve_connections(tcp, BULKS_MAX, stopping, take).await;
}

async fn take(mut stream: TcpStream, target: u64) -> io::Result<()> {
    let mut header = [0; BULK_HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let Some(bytes) = bulk_length(&header, target) else { return Ok(()) };
    let mut left = u64::from(bytes);
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..room) else { return Ok(()) };
        let read = stream.read(buffer).await?;
        if read == 0 {
            return Ok(());
        }
        left -= read as u64;
    }
    stream.write_all(&bytes.to_be_bytes()).await
}
