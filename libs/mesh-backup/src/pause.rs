//! Stops the nats-server of a running mesh for a moment.
//!
//! While it is stopped nothing is stored, so nothing is decided: services wait for it, and its clients notice no more than
//! that it answers late. Whatever becomes of this process meanwhile, a helper lets the server go on.

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use mesh_client::Endpoints;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use procfs::process::Process;

use crate::{Error, failed};

/// After so long the helper lets the server go on, whatever is under way.
const HELPER_S: u32 = 3;
/// How long the server may take to stop.
const STOP_LIMIT: Duration = Duration::from_millis(100);

/// What runs on a data folder.
pub(crate) enum Running {
    /// A mesh, with this server.
    Mesh(Pid),
    /// Nothing, and nothing can be started while this is held.
    Nothing(#[expect(dead_code, reason = "held for its lock")] File),
}

/// Finds the nats-server of the mesh on a data folder.
pub(crate) fn find(data_dir: &Path) -> Result<Running, Error> {
    let path = data_dir.join("lock");
    let lock = File::options().create(true).append(true).open(&path).map_err(failed("open", &path))?;
    match lock.try_lock() {
        Ok(()) => return Ok(Running::Nothing(lock)),
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
    let all = procfs::process::all_processes()
        .map_err(|error| failed("read", Path::new("/proc"))(io::Error::other(error.to_string())))?;
    let server = all.filter_map(Result::ok).find(is_ours);
    server.map(|process| Running::Mesh(Pid::from_raw(process.pid))).ok_or(Error::NoServer(endpoints.pid))
}

/// A server that stands still; it goes on when this is dropped.
pub struct Pause {
    server: Pid,
    since: Instant,
    helper: Child,
}

impl Pause {
    /// Stops a server; returns once it does nothing.
    pub(crate) fn begin(server: Pid) -> Result<Self, Error> {
        let error = |source| Error::Pause { pid: server.as_raw(), source };
        let helper = Command::new("sh")
            .args(["-c", &format!("trap '' INT HUP TERM; sleep {HELPER_S}; kill -CONT {server}")])
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

/// Have all threads of a process stopped? Each stops by itself, once it leaves the kernel.
fn is_stopped(pid: Pid) -> bool {
    let Ok(tasks) = Process::new(pid.as_raw()).and_then(|process| process.tasks()) else { return false };
    tasks.flatten().all(|task| task.stat().is_ok_and(|stat| stat.state == 'T'))
}
