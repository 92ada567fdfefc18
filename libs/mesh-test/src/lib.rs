//! What tests of services run on: a bus as `continuum provision` makes it, with the accounts, rights, streams and
//! durables of the contract on a real nats-server of the test's own; a Zenoh router beside it; waiting that names
//! what it waits for. For tests only: a failure here is a panic with its reason.
//!
//! ```no_run
//! # async fn example() {
//! let Some(bus) = mesh_test::TestBus::start("collector, usage windows").await else { return };
//! let bus = bus.with_router().await;
//! let agent = bus.connect("cluster-agent").await;
//! let settings = bus.settings("collector");
//! # drop((agent, settings));
//! # }
//! ```

#![allow(clippy::disallowed_methods, reason = "test servers are started, watched and waited for")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod certificates;
mod databases;
mod full;
mod process;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use mesh_admin::{ProvisionOptions, RenderOptions, Server, ServerOptions, find_server, provision, render};
use mesh_bus::{Bus, Options, Samples, SamplesMode, SamplesOptions};
use mesh_core::{Outgoing, Stored};
use mesh_kit::{Secret, Settings};
use mesh_proto::{AnyEvent, Timestamp, contract, rights};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

pub use crate::{
    certificates::Authority,
    databases::{Database, Kind, Wire},
    full::Disk,
    process::Process,
};
use full::Mounted;

/// How long a test waits for anything before it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A bus of the test's own, and a folder. Everything ends and is removed when it is dropped.
pub struct TestBus {
    /// The nats-server: tests may kill, stop and start it again.
    pub server: Server,
    router: Option<Samples>,
    keys: BTreeMap<String, PathBuf>,
    /// Unmounted before the folder is removed.
    disk: Option<Mounted>,
    folder: tempfile::TempDir,
}

impl TestBus {
    /// Starts one. `None`, with a line that names the suite, if no nats-server 2.14.4 or newer is found.
    pub async fn start(suite: &str) -> Option<Self> {
        Self::start_with(suite, |options| options.sync_always = false).await
    }

    /// Starts one with other options, for example with `sync_always` or another `store_dir`.
    pub async fn start_with(suite: &str, change: impl FnOnce(&mut RenderOptions)) -> Option<Self> {
        Self::start_in(suite, None, change).await
    }

    /// Starts one whose streams lie on a disk of their own of this many bytes, that can be full. `None`, with a line that names
    /// the suite, also where this machine lets the test make none.
    pub async fn start_on_disk(suite: &str, bytes: u64) -> Option<Self> {
        Self::start_in(suite, Some(bytes), |_| ()).await
    }

    async fn start_in(suite: &str, disk: Option<u64>, change: impl FnOnce(&mut RenderOptions)) -> Option<Self> {
        let program = server(suite).await?;
        mesh_bus::install_crypto();
        let folder = tempfile::Builder::new().prefix("continuum-test-").tempdir().unwrap();
        let disk = match disk {
            Some(bytes) => Some(Mounted::new(suite, &folder.path().join("jetstream"), bytes)?),
            None => None,
        };
        let mut options = RenderOptions {
            listen: format!("{}:-1", loopback()),
            store_dir: folder.path().join("jetstream"),
            ports_dir: Some(folder.path().into()),
            ..RenderOptions::default()
        };
        change(&mut options);
        let rendered = render(contract(), &options).unwrap();
        let files = rendered.write(folder.path()).unwrap();
        let server = Server::start(ServerOptions::new(program, &files.nats_conf, folder.path())).await.unwrap();
        let seed = rendered.keys.get("provisioner").cloned();
        let options = ProvisionOptions { url: server.url(), seed, ..ProvisionOptions::default() };
        if let Err(error) = provision(contract(), &options).await {
            let log = std::fs::read_to_string(server.log()).unwrap_or_default();
            panic!("{error}\nthe server's log:\n{log}");
        }
        Some(Self { server, router: None, keys: files.keys, disk, folder })
    }

    /// The same with a Zenoh router, which [`TestBus::settings`] then names to services.
    pub async fn with_router(mut self) -> Self {
        let listen = vec!["tcp/127.0.0.1:0".to_owned()];
        let options = SamplesOptions { mode: SamplesMode::Router, listen, ..SamplesOptions::default() };
        self.router = Some(Samples::open(options).await.unwrap());
        self
    }

    /// A folder of the test's own.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The Zenoh router.
    ///
    /// # Panics
    /// Without [`TestBus::with_router`].
    pub fn router(&self) -> &Samples {
        self.router.as_ref().expect("this bus has no Zenoh router: call `with_router`")
    }

    /// Fills the disk of its streams.
    ///
    /// # Panics
    /// Without [`TestBus::start_on_disk`].
    pub fn fill_disk(&self) {
        self.disk().fill();
    }

    /// Gives room on the disk of its streams again, and restarts the server, as `continuum up` does: a stream whose disk was
    /// full takes no writes before.
    ///
    /// # Panics
    /// Without [`TestBus::start_on_disk`], or if the server does not start.
    pub async fn make_room(&mut self) {
        self.disk().make_room();
        self.server.restart().await.unwrap();
    }

    fn disk(&self) -> &Mounted {
        self.disk.as_ref().expect("its streams have a disk of their own")
    }

    /// File that holds an identity's seed.
    pub fn key(&self, identity: &str) -> &Path {
        self.keys.get(identity).unwrap_or_else(|| panic!("the contract has no identity {identity}"))
    }

    /// A connection with the rights of an identity and no others.
    pub async fn connect(&self, identity: &str) -> Bus {
        let seed = std::fs::read_to_string(self.key(identity)).unwrap().trim().to_owned();
        let options = Options {
            url: self.server.url(),
            service: identity.to_owned(),
            seed: Some(seed),
            api_prefix: api_prefix(identity).to_owned(),
            ..Options::default()
        };
        Bus::connect(options).await.unwrap()
    }

    /// The settings of a service that runs on this bus.
    pub fn settings(&self, identity: &str) -> Settings {
        Settings {
            bus_url: self.server.url(),
            bus_seed_file: Some(Secret::at(self.key(identity))),
            bus_api_prefix: api_prefix(identity).to_owned(),
            samples_connect: self.router.iter().flat_map(|router| router.listening().to_vec()).collect(),
            drain_limit_ms: 20_000,
            random_wording: !wording(),
            ..Settings::default()
        }
    }
}

/// Where an identity finds the JetStream API.
fn api_prefix(identity: &str) -> &'static str {
    if identity == rights::JOINT { "$JS.API" } else { rights::API_PREFIX }
}

/// May a test check the wording of reasons and hints? Not with `CONTINUUM_RANDOM_WORDING=true`, which replaces them all
/// by random text (`make test-wording`): what passes then decides on no text.
pub fn wording() -> bool {
    let random = mesh_kit::config::random_wording();
    if random {
        mesh_proto::wording::randomise();
    }
    !random
}

/// Does this reason or hint, or an output with some in it, contain these words? Always, where [`wording`] is not checked.
pub fn says(text: &str, words: &str) -> bool {
    text.contains(words) || !wording()
}

/// The nats-server that tests run against. `None`, with a line that names the suite, if none is found.
pub async fn server(suite: &str) -> Option<PathBuf> {
    match find_server().await {
        Ok(found) => Some(found.path),
        Err(error) => {
            eprintln!("SKIPPED: {suite}: {error}");
            None
        }
    }
}

/// The output of a future; panics with what it waits for if that takes longer than [`PATIENCE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("timed out after {} s: {what}", PATIENCE.as_secs()),
    }
}

/// Asks until the answer fits; panics with the last answer if that takes longer than [`PATIENCE`].
pub async fn until<T: std::fmt::Debug>(what: &str, mut ask: impl AsyncFnMut() -> T, fits: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if fits(&answer) {
            return answer;
        }
        assert!(
            Instant::now() < deadline,
            "timed out after {} s: {what}; the last answer: {answer:?}",
            PATIENCE.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Is the long form of every harness requested, by `CONTINUUM_FULL`? `make test-full` does. What takes over a minute has
/// two forms: the same checks on more data.
pub fn is_full() -> bool {
    std::env::var_os("CONTINUUM_FULL").is_some_and(|value| value != "0" && !value.is_empty())
}

/// A loopback address of this call's own. A server that listens there can have its port back after it was killed: on
/// 127.0.0.1 the port might be given to a server of another test, or to a client that tries to reach the one that is gone.
pub fn loopback() -> Ipv4Addr {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let [b, c, d] = host(std::process::id(), CALLS.fetch_add(1, Relaxed));
    Ipv4Addr::new(127, b, c, d)
}

/// An address of this call's own where nobody listens, and nobody else will: for servers that must know it before they
/// start, and for servers that are to be missing.
pub fn free_address() -> SocketAddr {
    std::net::TcpListener::bind((loopback(), 0)).unwrap().local_addr().unwrap()
}

/// How many addresses a process has before it comes to those of the next one. Prime, so that few processes share any.
const ADDRESSES: u32 = 251;

/// The last three bytes of a process's address of this number: neither 127.0.0.1 nor the broadcast address.
fn host(process: u32, number: u32) -> [u8; 3] {
    let all = 254 * 256 * 254;
    let place = (u64::from(process) * u64::from(ADDRESSES) + u64::from(number)) % all;
    let part = |value: u64| u8::try_from(value).unwrap();
    [part(1 + place / (256 * 254)), part(place / 254 % 256), part(1 + place % 254)]
}

/// An event as read from its stream at this sequence; it happened and was stored at this time. Its id is
/// `<stream>-<sequence>`.
pub fn stored(event: &dyn AnyEvent, sequence: u64, time: Timestamp) -> Stored {
    let id = format!("{}-{sequence}", event.stream());
    read(&Outgoing::new(event, id, time).unwrap(), sequence, time)
}

/// A message as read from its stream at this sequence; it was stored at this time.
pub fn read(message: &Outgoing, sequence: u64, stored: Timestamp) -> Stored {
    Stored { source: None, ..message.stored("", sequence, stored) }
}

/// The time now.
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_nanos(i128::try_from(since.as_nanos()).unwrap())
}

/// Status and body of a page of a service's `http://host:port` endpoint, by plain HTTP/1.1; `None` if nobody answers
/// within 5 s.
pub async fn page(endpoint: &str, path: &str) -> Option<(u16, String)> {
    let host = endpoint.strip_prefix("http://")?;
    let asked = async {
        let mut stream = TcpStream::connect(host).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    };
    tokio::time::timeout(Duration::from_secs(5), asked).await.ok()?
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_of_many_processes_has_addresses_of_its_own() {
        for first in [1, 32_000, 4_194_000] {
            let all = (first..first + 200).flat_map(|process| (0..ADDRESSES).map(move |number| host(process, number)));
            let different: BTreeSet<[u8; 3]> = all.collect();
            assert_eq!(different.len(), 200 * ADDRESSES as usize);
            assert!(different.iter().all(|[b, _, d]| (1..255).contains(b) && (1..255).contains(d)), "{first}");
        }
        assert_ne!(loopback(), loopback());
    }

    #[test]
    fn a_server_may_listen_on_an_address_of_its_own_and_come_back_there() {
        let place = free_address();
        assert_eq!(std::net::TcpListener::bind(place).unwrap().local_addr().unwrap(), place);
    }
}
