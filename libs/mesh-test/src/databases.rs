//! Real databases of a test's own, and a wire to them that can be slow or cut.

use std::{
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{PATIENCE, full::Mounted, loopback};

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// MongoDB, for documents.
    Mongod,
    /// InfluxDB 2, for series.
    Influxd,
    /// Cassandra, for histories.
    Cassandra,
    /// VictoriaMetrics, which takes the same writes as InfluxDB.
    Victoria,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Mongod => "mongod",
            Self::Influxd => "influxd",
            Self::Cassandra => "cassandra",
            Self::Victoria => "victoria",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Mongod => 27017,
            Self::Influxd => 8086,
            Self::Cassandra => 9042,
            Self::Victoria => 8428,
        }
    }
}

/// A database of the test's own, on an address of its own. It ends, and what it kept is removed, when this is dropped.
pub struct Database {
    kind: Kind,
    address: SocketAddr,
    child: Option<Child>,
    /// Unmounted before the folder is removed.
    disk: Option<Mounted>,
    folder: tempfile::TempDir,
}

impl Database {
    /// Starts one and waits until it answers. `None`, with a line that names the suite, if it is not installed. Otherwise
    /// a line says which version the suite ran with.
    ///
    /// # Panics
    /// If it is installed and does not answer in time: with the end of its log.
    pub async fn start(suite: &str, kind: Kind) -> Option<Self> {
        let mut database = Self::new(suite, kind)?;
        database.start_again().await;
        database.set_up().await;
        Some(database)
    }

    /// The same on a disk of its own of this many bytes, that can be full. `None`, with a line that names the suite, also
    /// where this machine lets the test make none.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub async fn start_on_disk(suite: &str, kind: Kind, bytes: u64) -> Option<Self> {
        let mut database = Self::new(suite, kind)?;
        database.disk = Some(Mounted::new(suite, &database.data(), bytes)?);
        database.start_again().await;
        database.set_up().await;
        Some(database)
    }

    /// Fills its disk.
    ///
    /// # Panics
    /// If it has none of its own: see [`start_on_disk`](Self::start_on_disk).
    pub fn fill_disk(&self) {
        self.disk().fill();
    }

    /// Gives room on its disk again, and starts it again, as its operator has to: MongoDB has ended, InfluxDB does not open
    /// again what it could not open while the disk was full, and Cassandra no longer takes writes.
    pub async fn make_room(&mut self) {
        self.disk().make_room();
        self.kill();
        self.start_again().await;
    }

    fn disk(&self) -> &Mounted {
        self.disk.as_ref().expect("it has a disk of its own")
    }

    fn new(suite: &str, kind: Kind) -> Option<Self> {
        let asked = Command::new(script()).args(["version", kind.name()]).output().unwrap();
        if asked.status.code() == Some(69) {
            eprintln!("SKIPPED: {suite}: {}", String::from_utf8_lossy(&asked.stderr).trim());
            return None;
        }
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        eprintln!("RAN: {suite}: {}", String::from_utf8_lossy(&asked.stdout).trim());
        let folder = tempfile::Builder::new().prefix("continuum-database-").tempdir().unwrap();
        let address = SocketAddr::from((loopback(), kind.port()));
        Some(Self { kind, address, folder, child: None, disk: None })
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some())
    }

    async fn set_up(&self) {
        if self.kind == Kind::Influxd {
            let setup = r#"{"username":"test","password":"test-password","org":"test","bucket":"first","token":"secret-token"}"#;
            let (status, said) = self.post("/api/v2/setup", setup).await;
            assert_eq!(status, 201, "{said}");
        }
    }

    /// Kills it and starts it again without anything that it has kept.
    pub async fn start_empty(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.data()).unwrap();
        self.start_again().await;
        self.set_up().await;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL for `mesh-store`, with the database, bucket or keyspace of this name.
    pub fn url(&self, name: &str) -> String {
        self.url_at(self.address, name)
    }

    /// The same, reached at another address: a [`Wire`]'s.
    pub fn url_at(&self, address: SocketAddr, name: &str) -> String {
        match self.kind {
            Kind::Mongod => format!("mongodb://{address}/{name}?directConnection=true"),
            Kind::Influxd | Kind::Victoria => format!("influxdb://:secret-token@{address}/test/{name}"),
            Kind::Cassandra => format!("cassandra://{address}/{name}"),
        }
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = killpg(group(&child), Signal::SIGKILL);
            let _ = child.wait();
        }
    }

    /// Halts it: it is there and does not answer, until [`go_on`](Self::go_on).
    pub fn halt(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Starts it again on what it has kept.
    pub async fn start_again(&mut self) {
        let log = std::fs::File::create(self.log()).unwrap();
        let mut command = Command::new(script());
        command.arg("run").arg(self.kind.name()).arg(self.data());
        command.arg(self.address.ip().to_string()).arg(self.address.port().to_string());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        self.child = Some(command.spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        while !self.answers().await {
            if self.has_ended() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(30).collect();
                panic!("{} does not answer; the end of its log, backwards:\n{}", self.kind.name(), end.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Status and body of its answer to a POST, for those that speak HTTP.
    pub async fn post(&self, path: &str, body: &str) -> (u16, String) {
        let asked = async {
            let mut stream = TcpStream::connect(self.address).await?;
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Token secret-token\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                self.address,
                body.len()
            );
            stream.write_all((head + body).as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = crate::soon("an answer to a POST", asked).await.unwrap();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// Resident memory of its process, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let pid = self.child.as_ref().map_or(0, Child::id);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() * 1024
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            killpg(group(child), signal).unwrap();
        }
    }

    async fn answers(&self) -> bool {
        match self.kind {
            Kind::Influxd | Kind::Victoria => {
                let found = crate::page(&format!("http://{}", self.address), "/health").await;
                found.is_some_and(|(status, _)| status == 200)
            }
            Kind::Mongod | Kind::Cassandra => TcpStream::connect(self.address).await.is_ok(),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.kill();
    }
}

fn group(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../infra/servers/database.sh")
}

/// A wire to a server that passes everything on, and can be slow, or cut.
pub struct Wire {
    address: SocketAddr,
    state: Arc<State>,
    cuts: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    delay_ms: AtomicU64,
    is_cut: AtomicBool,
}

impl Wire {
    /// A wire to this server.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((loopback(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, (cuts, cut)) = (Arc::<State>::default(), watch::channel(0));
        let of = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if of.is_cut.load(Relaxed) {
                    continue;
                }
                let (state, mut cut) = (of.clone(), cut.clone());
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    tokio::select! {
                        () = pass(from_client, to_server, &state) => {}
                        () = pass(from_server, to_client, &state) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { address, state, cuts, task }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on each piece waits this long on its way, milliseconds.
    pub fn slow(&self, delay_ms: u64) {
        self.state.delay_ms.store(delay_ms, Relaxed);
    }

    /// Ends all connections, and takes no more until [`mend`](Self::mend).
    pub fn cut(&self) {
        self.state.is_cut.store(true, Relaxed);
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Takes connections again.
    pub fn mend(&self) {
        self.state.is_cut.store(false, Relaxed);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, state: &State) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        let delay_ms = state.delay_ms.load(Relaxed);
        if delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        }
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
}
