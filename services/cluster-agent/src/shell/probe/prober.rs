//! Probes the other members in its slots, and publishes what it measured.

#![expect(clippy::disallowed_methods, reason = "a round trip is measured")]

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use mesh_bus::{About, Samples};
use mesh_kit::Mesh;
use mesh_proto::{Event as _, cluster::ClusterRegistered, cost::ProbeSample, derived_id};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

use super::{
    budget::Budget,
    schedule,
    wire::{BULK_HEADER_BYTES, ECHO_BYTES, Echo, bulk_header, target_of},
};
use crate::config::Config;

/// Members that are probed; more are left out, last by name.
const MEMBERS_MAX: usize = 256;
/// Bytes of headers below a UDP payload (IPv6 and UDP), counted against the budget.
const OVERHEAD_BYTES: u64 = 48;
/// Shares of a slot: for the echoes, and until everything must be over.
const ECHO_SHARE: f64 = 0.6;
const SLOT_SHARE: f64 = 0.9;

/// How a prober works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Length of a slot, milliseconds; the same for all members.
    pub slot_ms: u64,
    /// Echo requests in a probe.
    pub echoes: u32,
    /// Bytes of a bulk transfer; 0 for none.
    pub bulk_bytes: u32,
    /// Bytes a second that probing may cost, both directions.
    pub budget_bytes_per_s: u64,
}

/// Probes on behalf of one cluster.
pub struct Prober {
    mesh: Mesh,
    samples: Samples,
    config: Config,
    options: Options,
    members: BTreeMap<String, ClusterRegistered>,
    budget: Budget,
}

impl Prober {
    /// A prober that knows nobody yet.
    pub fn new(mesh: Mesh, samples: Samples, config: Config, options: Options) -> Self {
        let burst = u64::from(options.bulk_bytes).saturating_mul(2).max(options.budget_bytes_per_s);
        let budget = Budget::new(options.budget_bytes_per_s, burst, mesh.now().as_millis());
        Self { mesh, samples, config, options, members: BTreeMap::new(), budget }
    }

    /// Probes until the process stops.
    ///
    /// # Errors
    /// If the members cannot be read at all.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let filter = ClusterRegistered::SUBJECT.replace("{cluster_id}", "*");
        let mut follower = self.mesh.follow(ClusterRegistered::STREAM, 1).matching(&filter);
        let stopping = self.mesh.stopping();
        let mut last = 0;
        loop {
            let now = self.mesh.now();
            let slot_ms = i64::try_from(self.options.slot_ms).unwrap_or(1_000).max(1);
            let next = Duration::from_nanos(
                u64::try_from((now.as_millis() / slot_ms + 1) * slot_ms * 1_000_000 - now.as_nanos() as i64)
                    .unwrap_or(0),
            );
            tokio::select! {
                message = follower.next() => {
                    if let Ok(Some(member)) = message.context("follow clusters")?.event::<ClusterRegistered>() {
                        self.know(member);
                    }
                    continue;
                }
                () = tokio::time::sleep(next) => {}
                () = stopping.cancelled() => return Ok(()),
            }
            let slot = schedule::slot_of(self.mesh.now().as_millis(), self.options.slot_ms);
            // A timer may fire a little early: the slot before it is over.
            if slot > last {
                last = slot;
                self.turn(slot).await;
            }
        }
    }

    fn know(&mut self, member: ClusterRegistered) {
        if member.probe_endpoint.is_empty() {
            self.members.remove(&member.cluster_id);
        } else if self.members.contains_key(&member.cluster_id) || self.members.len() < MEMBERS_MAX {
            self.members.insert(member.cluster_id.clone(), member);
        }
    }

    async fn turn(&mut self, slot: u64) {
        let names: Vec<&String> = self.members.keys().collect();
        let Some(own) = names.iter().position(|name| **name == self.config.cluster_id) else { return };
        let Some(peer) = schedule::asks(names.len(), own, slot).and_then(|peer| self.members.values().nth(peer)) else {
            return;
        };
        let (peer, endpoint) = (peer.cluster_id.clone(), peer.probe_endpoint.clone());
        let echo_bytes = u64::from(self.options.echoes) * 2 * (ECHO_BYTES as u64 + OVERHEAD_BYTES);
        let now_ms = self.mesh.now().as_millis();
        if !self.budget.take(echo_bytes, now_ms) {
            tracing::debug!(peer, "probe left out: the budget is spent");
            return;
        }
        let begun = Instant::now();
        let slot_time = Duration::from_millis(self.options.slot_ms);
        let Some(address) = resolve(&endpoint).await else {
            tracing::debug!(peer, endpoint, "probe endpoint not resolved");
            return;
        };
        let mut sample = ProbeSample {
            from_cluster: self.config.cluster_id.clone(),
            to_cluster: peer.clone(),
            slot,
            traffic_bytes: echo_bytes,
            throughput_mbps: -1.0,
            ..Default::default()
        };
        let round_trips = echo(address, target_of(&peer), self.options.echoes, slot_time.mul_f64(ECHO_SHARE)).await;
        summarise(&mut sample, self.options.echoes, &round_trips);
        let left = slot_time.mul_f64(SLOT_SHARE).saturating_sub(begun.elapsed());
        if sample.answered == 0 {
            let connected = tokio::time::timeout(left, TcpStream::connect(address)).await;
            sample.failed = !matches!(connected, Ok(Ok(_)));
        } else if self.options.bulk_bytes > 0 && self.budget.take(self.options.bulk_bytes.into(), now_ms) {
            let bulk = bulk(address, target_of(&peer), self.options.bulk_bytes);
            if let Ok(Ok(mbps)) = tokio::time::timeout(left, bulk).await {
                sample.throughput_mbps = mbps;
            }
            sample.traffic_bytes += u64::from(self.options.bulk_bytes);
        }
        self.publish(sample).await;
    }

    async fn publish(&self, mut sample: ProbeSample) {
        let now = self.mesh.now();
        sample.at = Some(now);
        let key = self.config.key("probe", &sample.to_cluster);
        let about = About {
            id: derived_id(&["probe", &key, &now.as_nanos().to_string()]),
            message: "continuum.cost.v1.ProbeSample".into(),
            source: self.mesh.name().to_owned(),
            time: now,
            traceparent: None,
        };
        if let Err(error) = self.samples.publish(&key, sample.encode_to_vec(), &about).await {
            tracing::debug!(key, error = &error as &dyn std::error::Error, "probe sample dropped");
        }
    }
}

async fn resolve(endpoint: &str) -> Option<SocketAddr> {
    match endpoint.parse() {
        Ok(address) => Some(address),
        Err(_) => tokio::net::lookup_host(endpoint).await.ok()?.next(),
    }
}

/// Round trips of echo requests, in the order in which they were sent; none for those that were lost.
async fn echo(address: SocketAddr, target: u64, count: u32, limit: Duration) -> Vec<Option<Duration>> {
    let mut round_trips = vec![None; count as usize];
    let local: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let exchange = async {
        let socket = UdpSocket::bind(local).await?;
        socket.connect(address).await?;
        let nonce = RandomState::new().build_hasher().finish();
        let mut sent = vec![];
        let gap = limit / (count.max(1) * 4);
        let mut packet = [0; ECHO_BYTES + 1];
        let deadline = tokio::time::Instant::now() + limit;
        let mut next = tokio::time::Instant::now();
        let mut missing = count;
        while missing > 0 {
            let number = sent.len();
            tokio::select! {
                () = tokio::time::sleep_until(next), if number < count as usize => {
                    let request = Echo { reply: false, nonce, number: u32::try_from(number).unwrap_or(u32::MAX), target };
                    sent.push(Instant::now());
                    // Refused at once if nobody listens there: lost like any other.
                    let _ = socket.send(&request.write()).await;
                    next += gap;
                }
                received = socket.recv(&mut packet) => {
                    let now = Instant::now();
                    let Ok(length) = received else {
                        // Nobody listens: wait for the next request's turn instead of asking in a loop.
                        tokio::time::sleep(gap).await;
                        if tokio::time::Instant::now() >= deadline { break }
                        continue;
                    };
                    let Some(reply) = packet.get(..length).and_then(Echo::read) else { continue };
                    let position = reply.number as usize;
                    if reply.reply && reply.nonce == nonce
                        && let (Some(sent), Some(slot)) = (sent.get(position), round_trips.get_mut(position))
                        && slot.is_none()
                    {
                        *slot = Some(now.duration_since(*sent));
                        missing -= 1;
                    }
                }
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        Ok::<(), std::io::Error>(())
    };
    if let Err(error) = exchange.await {
        tracing::debug!(%address, error = &error as &dyn std::error::Error, "probe not sent");
    }
    round_trips
}

/// 10⁶ bits per second of a transfer, from the first byte sent to the last acknowledged by its receiver.
async fn bulk(address: SocketAddr, target: u64, bytes: u32) -> std::io::Result<f64> {
    let mut stream = TcpStream::connect(address).await?;
    let header: [u8; BULK_HEADER_BYTES] = bulk_header(target, bytes);
    let chunk = vec![0u8; 64 * 1024];
    let begun = Instant::now();
    stream.write_all(&header).await?;
    let mut left = bytes as usize;
    while left > 0 {
        let size = left.min(chunk.len());
        stream.write_all(chunk.get(..size).unwrap_or_default()).await?;
        left -= size;
    }
    let mut taken = [0; 4];
    stream.read_exact(&mut taken).await?;
    if u32::from_be_bytes(taken) != bytes {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let seconds = begun.elapsed().as_secs_f64().max(1e-9);
    Ok(f64::from(bytes) * 8.0 / seconds / 1e6)
}

/// What the round trips say: half their median, half the mean difference of neighbours, and the share that is missing.
fn summarise(sample: &mut ProbeSample, sent: u32, round_trips: &[Option<Duration>]) {
    let answered: Vec<f64> = round_trips.iter().flatten().map(|trip| trip.as_secs_f64() * 1e3).collect();
    let mut sorted = answered.clone();
    sorted.sort_by(f64::total_cmp);
    let median = match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted.get(n / 2).copied().unwrap_or(0.0),
        n => f64::midpoint(sorted.get(n / 2 - 1).copied().unwrap_or(0.0), sorted.get(n / 2).copied().unwrap_or(0.0)),
    };
    let differences: Vec<f64> = answered.windows(2).filter_map(|w| Some((w.first()? - w.last()?).abs())).collect();
    sample.sent = sent;
    sample.answered = u32::try_from(answered.len()).unwrap_or(u32::MAX);
    sample.latency_ms = median / 2.0;
    sample.jitter_ms = differences.iter().sum::<f64>() / 2.0 / differences.len().max(1) as f64;
    sample.loss_percent = f64::from(sent - sample.answered.min(sent)) * 100.0 / f64::from(sent.max(1));
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::shell::probe::Responder;

    fn trips(ms: &[Option<u64>]) -> Vec<Option<Duration>> {
        ms.iter().map(|ms| ms.map(Duration::from_millis)).collect()
    }

    #[test]
    fn a_probe_is_summed_up_by_its_median_its_differences_and_what_is_missing() {
        let mut sample = ProbeSample::default();
        summarise(&mut sample, 5, &trips(&[Some(10), Some(12), None, Some(90), Some(12)]));
        assert_eq!((sample.latency_ms, sample.answered, sample.loss_percent), (6.0, 4, 20.0));
        assert!((sample.jitter_ms - (2.0 + 78.0 + 78.0) / 6.0).abs() < 1e-9);
        summarise(&mut sample, 2, &trips(&[None, None]));
        assert_eq!((sample.latency_ms, sample.jitter_ms, sample.loss_percent), (0.0, 0.0, 100.0));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_responder_answers_only_what_is_addressed_to_it() {
        let responder = Responder::bind("127.0.0.1:0", "edge").await.unwrap();
        let address = responder.address();
        let stopping = CancellationToken::new();
        let running = tokio::spawn(responder.run(stopping.clone()));
        let limit = Duration::from_secs(2);
        let answered = echo(address, target_of("edge"), 5, limit).await;
        assert!(answered.iter().all(Option::is_some), "{answered:?}");
        let other = echo(address, target_of("cloud"), 2, Duration::from_millis(100)).await;
        assert!(other.iter().all(Option::is_none));
        assert!(bulk(address, target_of("edge"), 256 * 1024).await.unwrap() > 0.0);
        assert!(bulk(address, target_of("cloud"), 1_024).await.is_err());
        stopping.cancel();
        running.await.unwrap();
        let gone = echo(address, target_of("edge"), 3, Duration::from_millis(100)).await;
        assert!(gone.iter().all(Option::is_none));
    }
}
