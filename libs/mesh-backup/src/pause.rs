//! Stops the nats-server of a running mesh for a moment.
//!
//! While it is stopped nothing is stored, so nothing is decided: services wait for it, and its clients notice no more than
//! that it answers late. Whatever becomes of this process meanwhile, a helper lets the server go on.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use mesh_client::Endpoints;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use procfs::process::Process;

use crate::{Error, STORE, failed, stores};

/// After so long the helper lets the server go on, whatever is under way.
const HELPER_S: u32 = 3;
/// How long the server may take to stop.
const STOP_LIMIT: Duration = Duration::from_millis(100);

/// What runs on a data folder.
pub(crate) enum Running {
    /// A mesh, with this server.
    Mesh(Pid),
    /// Nothing, and `continuum up` cannot start while the lock is held. Volumes have no lock.
    Nothing(Option<File>),
}

/// Finds the nats-server of the mesh on a data folder. `server_stopped`: the one of volumes is stopped.
pub(crate) fn find(data_dir: &Path, server_stopped: bool) -> Result<Running, Error> {
    if !data_dir.join(STORE).is_dir() {
        return match (servers(data_dir)?.as_slice(), server_stopped) {
            ([], true) => Ok(Running::Nothing(None)),
            ([], false) => Err(Error::NoServerSeen(data_dir.to_owned())),
            ([pid], false) => Ok(Running::Mesh(Pid::from_raw(*pid))),
            ([pid, ..], true) => Err(Error::Serving { pid: *pid, data_dir: data_dir.to_owned() }),
            (several, false) => Err(Error::SeveralServers { count: several.len(), data_dir: data_dir.to_owned() }),
        };
    }
    let path = data_dir.join("lock");
    let lock = File::options().create(true).append(true).open(&path).map_err(failed("open", &path))?;
    match lock.try_lock() {
        Ok(()) => return Ok(Running::Nothing(Some(lock))),
        Err(fs::TryLockError::WouldBlock) => {}
        Err(fs::TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
    }
    let Ok(endpoints) = Endpoints::read(data_dir) else { return Err(Error::Changing) };
    let data_dir = data_dir.canonicalize().map_err(failed("find", data_dir))?;
    let is_ours = |process: &Process| {
        let parent = process.stat().map(|stat| stat.ppid).ok();
        let command = process.cmdline().unwrap_or_default();
        parent == i32::try_from(endpoints.pid).ok()
            && command.iter().any(|argument| Path::new(argument) == data_dir.join("nats.conf"))
    };
    let server = processes()?.find(is_ours);
    server.map(|process| Running::Mesh(Pid::from_raw(process.pid))).ok_or(Error::NoServer(endpoints.pid))
}

fn processes() -> Result<impl Iterator<Item = Process>, Error> {
    let all = procfs::process::all_processes()
        .map_err(|error| failed("read", Path::new("/proc"))(io::Error::other(error.to_string())))?;
    Ok(all.filter_map(Result::ok))
}

/// The processes of servers that have their streams in the volumes of a data folder.
fn servers(data_dir: &Path) -> Result<Vec<i32>, Error> {
    let id = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let stores: Vec<(u64, u64)> = stores(data_dir).iter().filter_map(|store| id(store)).collect();
    let is_store = |folder: &Path| id(folder).is_some_and(|id| stores.contains(&id));
    // The server makes a folder of this name in the one that it is given, which may itself have the name.
    let is_here = |process: &Process| store(process).is_some_and(|path| is_store(&path) || is_store(&path.join(STORE)));
    let found: Vec<Process> = processes()?.filter(is_here).collect();
    // A process that only starts the server, as `docker run --init` has one, has the same command line.
    let parents: Vec<i32> = found.iter().filter_map(|process| Some(process.stat().ok()?.ppid)).collect();
    Ok(found.iter().map(|process| process.pid).filter(|pid| !parents.contains(pid)).collect())
}

/// The folder that a nats-server is given for its streams, as seen from here: in a container it has another path. `None` for
/// other processes, and where that cannot be seen.
fn store(process: &Process) -> Option<PathBuf> {
    let seen = |path: &str| {
        let from = if path.starts_with('/') { "root" } else { "cwd" };
        Path::new("/proc").join(process.pid.to_string()).join(from).join(path.trim_start_matches('/'))
    };
    let command = process.cmdline().ok()?;
    let at = command.iter().position(|argument| argument == "-c" || argument == "--config")?;
    let config = fs::read_to_string(seen(command.get(at + 1)?)).ok()?;
    let store = config.lines().find_map(|line| line.trim().strip_prefix("store_dir:"))?;
    Some(seen(store.trim().trim_matches('"')))
}

/// A server that stands still; it goes on when this is dropped.
pub struct Pause {
    server: Pid,
    since: Instant,
    helper: Child,
}

impl Pause {
    /// Stops a server; returns once it does nothing. `helper` calls [`continue_later`].
    pub(crate) fn begin(server: Pid, helper: &[OsString]) -> Result<Self, Error> {
        let error = |source| Error::Pause { pid: server.as_raw(), source };
        let no_helper = || error(io::Error::other("there is no program that would let it go on"));
        let (program, arguments) = helper.split_first().ok_or_else(no_helper)?;
        let helper = Command::new(program)
            .args(arguments)
            .arg(server.to_string())
            // Signals from a terminal do not reach it.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(error)?;
        let pause = Self { server, since: Instant::now(), helper };
        kill(server, Signal::SIGSTOP).map_err(|number| error(number.into()))?;
        while !is_stopped(server) {
            if pause.since.elapsed() > STOP_LIMIT {
                return Err(error(io::Error::other("it does not stop")));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(pause)
    }

    /// How long it stands still.
    pub fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    /// Does it still, or has the helper let it go on?
    pub(crate) fn holds(&self) -> bool {
        is_stopped(self.server)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        let _gone = kill(self.server, Signal::SIGCONT);
        let _ended = self.helper.kill();
        let _ended = self.helper.wait();
    }
}

/// Lets a server go on after 3 s: what the helper does, unless it is ended before.
///
/// # Errors
/// If the process does not exist or belongs to another user.
pub fn continue_later(pid: i32) -> io::Result<()> {
    std::thread::sleep(Duration::from_secs(HELPER_S.into()));
    Ok(kill(Pid::from_raw(pid), Signal::SIGCONT)?)
}

/// Have all threads of a process stopped? Each stops by itself, once it leaves the kernel.
fn is_stopped(pid: Pid) -> bool {
    let Ok(tasks) = Process::new(pid.as_raw()).and_then(|process| process.tasks()) else { return false };
    tasks.flatten().all(|task| task.stat().is_ok_and(|stat| stat.state == 'T'))
}
