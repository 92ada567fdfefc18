//! A relay in front of an agent's probe responder that delays what passes. It stands for a slower network, for the demo
//! and for tests, without privileges: it delays probes alone, and no other traffic. The delay is read from a file, in milliseconds; it is 0 while the file does not exist.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

/// Clients whose datagrams are passed on; the oldest port makes room.
const CLIENTS_MAX: usize = 256;
/// Datagrams that wait at once; more are lost, as in a full queue.
const WAITING_MAX: usize = 1_024;
const DELAY_MAX_MS: u64 = 10_000;

/// A relay that listens; what it passes on goes to a port of the same number.
pub(crate) struct Relay {
    udp: UdpSocket,
    tcp: TcpListener,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Relay {
    /// Binds a free port of an address.
    pub(crate) async fn bind(host: &str) -> anyhow::Result<Self> {
        let tcp = TcpListener::bind((host, 0)).await.with_context(|| format!("listen on {host}"))?;
        let address = tcp.local_addr().context("listen")?;
        let udp = UdpSocket::bind(address).await.with_context(|| format!("listen on {address}"))?;
        Ok(Self { udp, tcp, address })
    }

    /// Passes on until stopped.
    pub(crate) async fn run(self, target: SocketAddr, control: PathBuf, stopping: CancellationToken) {
        let delay = Arc::new(AtomicU64::new(0));
        let read = async {
            loop {
                let text = tokio::fs::read_to_string(&control).await.unwrap_or_default();
                delay.store(text.trim().parse().unwrap_or(0).min(DELAY_MAX_MS), Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = datagrams(Arc::new(self.udp), target, &delay) => {}
            () = streams(self.tcp, target, &delay) => {}
            () = read => {}
            () = stopping.cancelled() => {}
        }
    }
}

async fn datagrams(udp: Arc<UdpSocket>, target: SocketAddr, delay: &AtomicU64) {
    let mut clients: BTreeMap<SocketAddr, (Arc<UdpSocket>, tokio::task::AbortHandle)> = BTreeMap::new();
    let waiting = Arc::new(Semaphore::new(WAITING_MAX));
    let mut packet = [0; 2_048];
    loop {
        let Ok((length, client)) = udp.recv_from(&mut packet).await else { continue };
        if !clients.contains_key(&client) {
            let Ok(upstream) = UdpSocket::bind((target.ip(), 0)).await else { continue };
            if upstream.connect(target).await.is_err() {
                continue;
            }
            let (upstream, back) = (Arc::new(upstream), udp.clone());
            let from = upstream.clone();
            let answers = tokio::spawn(async move {
                let mut packet = [0; 2_048];
                // A port without answers for this long is given back.
                while let Ok(Ok(length)) = tokio::time::timeout(Duration::from_secs(15), from.recv(&mut packet)).await {
                    let _lost = back.send_to(packet.get(..length).unwrap_or_default(), client).await;
                }
            });
            if clients.len() >= CLIENTS_MAX
                && let Some((_, (_, answers))) = clients.pop_first()
            {
                answers.abort();
            }
            clients.insert(client, (upstream, answers.abort_handle()));
        }
        clients.retain(|of, (_, answers)| *of == client || !answers.is_finished());
        let (Some((upstream, _)), Ok(permit)) = (clients.get(&client), waiting.clone().try_acquire_owned()) else {
            continue;
        };
        let (upstream, packet) = (upstream.clone(), packet.get(..length).unwrap_or_default().to_vec());
        let delay = Duration::from_millis(delay.load(Relaxed));
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _lost = upstream.send(&packet).await;
            drop(permit);
        });
    }
}

async fn streams(tcp: TcpListener, target: SocketAddr, delay: &AtomicU64) {
    loop {
        let Ok((mut near, _)) = tcp.accept().await else { continue };
        let delay = Duration::from_millis(delay.load(Relaxed));
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            if let Ok(mut far) = TcpStream::connect(target).await {
                let _ended = copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}
