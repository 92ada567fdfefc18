//! The thread that starts every process, reads what it prints, notices its end, and outlives it.
//!
//! The kernel ends a process when the *thread* that forked it ends, so all are forked here, and this thread ends last.
//! It waits in one place, `poll`, for commands, output and ends; it never waits for a single process.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::OsString,
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixStream, process::ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command as Exec, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use mesh_proto::Timestamp;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use tokio::sync::Notify;

use super::super::otlp::Door;
use super::{
    Error, Event, Fails, Journal, Reading, ReplicaId, ReplicaSpec,
    cgroup::{Cgroup, Cgroups},
    journal::{LINE_BYTES_MAX, Members, Output, Running},
    replicas::{Confined, Mark, Member, Replicas, reading_of},
    spawn,
    users::{Account, Users},
};

/// How often what cannot be waited for is looked at.
const LOOK_MS: u16 = 20;
/// Read from one output before the next gets its turn, bytes.
const READ_BYTES: usize = 64 << 10;
/// How long what a replica has used is remembered after it ended: longer than any back-off.
const REMEMBERED_MS: i64 = 300_000;
/// Looks at a group that should be empty, after which it is said that something does not end.
const LOOKS_BEFORE_WARNING: u32 = 250;

/// Reads the clock.
pub(super) type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What the thread is told.
pub(super) enum Command {
    Start(Box<ReplicaSpec>),
    Stop {
        instance_id: String,
        up_to_generation: u64,
        force: bool,
    },
    Measure(Timestamp),
    /// All others are gone: their users and folders are released.
    Keep(BTreeSet<String>),
    Shutdown {
        grace_ms: u64,
    },
}

/// Where the thread puts what has happened. At most two events a start and one a measurement.
#[derive(Default)]
pub(super) struct Events {
    queue: Mutex<VecDeque<Event>>,
    pub(super) notify: Arc<Notify>,
}

impl Events {
    fn push(&self, event: Event) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
        self.notify.notify_one();
    }

    pub(super) fn take(&self) -> Vec<Event> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }
}

/// One output of a process.
struct Reader {
    output: Output,
    pipe: OwnedFd,
    /// A line that has not ended yet.
    partial: Vec<u8>,
}

/// A process that was started and not taken leave of.
struct Process {
    child: Child,
    pid: Pid,
    /// Readable when it has ended; without one it is looked at every [`LOOK_MS`].
    descriptor: Option<OwnedFd>,
    readers: Vec<Reader>,
    cgroup: Cgroup,
    started: Timestamp,
    /// How it ended; its group may hold others still.
    ended: Option<String>,
    looks: u32,
}

/// What a replica has used, over all its restarts.
#[derive(Default)]
struct Used {
    /// By processes that have ended.
    ended: Totals,
    /// Of what is alive or has ended, at the last look.
    seen: Totals,
    /// What has vanished between looks with processes nobody waited for, so that totals never fall.
    vanished: Totals,
    since_idle: Option<Timestamp>,
    starts: u32,
}

#[derive(Clone, Copy, Default)]
struct Totals {
    cpu_nanos: u64,
    read_bytes: u64,
    written_bytes: u64,
}

impl Totals {
    fn of(reading: &Reading) -> Self {
        Self { cpu_nanos: reading.cpu_nanos, read_bytes: reading.io_read_bytes, written_bytes: reading.io_write_bytes }
    }

    fn zip(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            cpu_nanos: with(self.cpu_nanos, other.cpu_nanos),
            read_bytes: with(self.read_bytes, other.read_bytes),
            written_bytes: with(self.written_bytes, other.written_bytes),
        }
    }

    fn plus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_add)
    }
}

/// What the thread is given.
pub(super) struct With {
    pub(super) mark: Mark,
    pub(super) path: OsString,
    pub(super) cgroups: Cgroups,
    pub(super) users: Users,
    pub(super) enforcement: String,
    pub(super) otlp: Option<Arc<Door>>,
    pub(super) clock: Clock,
    pub(super) journal: Arc<Journal>,
    pub(super) events: Arc<Events>,
    pub(super) commands: mpsc::Receiver<Command>,
    /// Readable when there may be a command.
    pub(super) wake: UnixStream,
}

pub(super) struct Supervisor {
    with: With,
    processes: BTreeMap<ReplicaId, Process>,
    used: BTreeMap<ReplicaId, Used>,
    replicas: Replicas,
}

impl Supervisor {
    pub(super) fn new(with: With) -> Self {
        let replicas = Replicas::new(with.mark.clone());
        Self { with, processes: BTreeMap::new(), used: BTreeMap::new(), replicas }
    }

    /// Runs until told to shut down, or until nobody can tell it anything any more.
    pub(super) fn run(mut self) {
        loop {
            self.wait();
            let grace_ms = loop {
                match self.with.commands.try_recv() {
                    Ok(Command::Start(spec)) => self.start(*spec),
                    Ok(Command::Stop { instance_id, up_to_generation, force }) => {
                        self.stop(&instance_id, up_to_generation, force);
                    }
                    Ok(Command::Measure(now)) => self.measure(now),
                    Ok(Command::Keep(instances)) => self.keep(&instances),
                    Ok(Command::Shutdown { grace_ms }) => break Some(grace_ms),
                    Err(mpsc::TryRecvError::Empty) => break None,
                    Err(mpsc::TryRecvError::Disconnected) => break Some(0),
                }
            };
            self.read();
            self.notice();
            self.take_leave();
            if let Some(grace_ms) = grace_ms {
                self.shut_down(grace_ms);
                return;
            }
        }
    }

    /// Waits until something can be done.
    fn wait(&mut self) {
        let look = self.processes.values().any(|p| p.descriptor.is_none() || p.ended.is_some());
        let timeout = if look { PollTimeout::from(LOOK_MS) } else { PollTimeout::NONE };
        let mut all: Vec<BorrowedFd<'_>> = vec![self.with.wake.as_fd()];
        for process in self.processes.values() {
            all.extend(process.readers.iter().map(|reader| reader.pipe.as_fd()));
            if process.ended.is_none() {
                all.extend(process.descriptor.as_ref().map(|d| d.as_fd()));
            }
        }
        let mut all: Vec<PollFd<'_>> = all.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // Interrupted or not, everything ready is looked at next.
        let _interrupted = poll(&mut all, timeout);
        let mut drained = [0; 256];
        while self.with.wake.read(&mut drained).is_ok_and(|n| n > 0) {}
    }

    fn start(&mut self, spec: ReplicaSpec) {
        let id = spec.id.clone();
        match self.spawn(spec) {
            Ok(process) => {
                let pid = process.child.id();
                let enforcement = self.with.enforcement.clone();
                let used = self.used.entry(id.clone()).or_default();
                used.since_idle = None;
                used.starts += 1;
                self.with.journal.runs(Running { id: id.clone(), pid, restarts: used.starts - 1, enforcement });
                self.processes.insert(id.clone(), process);
                tracing::info!(replica = %id, pid, "process started");
                self.with.events.push(Event::Started { id });
            }
            Err(Unstartable { reason, fails }) => {
                tracing::warn!(replica = %id, reason, ?fails, "process not started");
                self.with.events.push(Event::StartFailed { id, reason, fails });
            }
        }
    }

    fn spawn(&mut self, spec: ReplicaSpec) -> Result<Process, Unstartable> {
        if self.processes.contains_key(&spec.id) {
            return Err(Unstartable { reason: "it runs already".to_owned(), fails: Fails::Now });
        }
        let program = find_program(&spec.process.command, &self.with.path)?;
        check_format(&program)?;
        let account = self.with.users.account(&spec.id.instance_id);
        let Account { user, home } = account.map_err(|error| Unstartable {
            reason: format!("give {} a user and a folder: {:#}", spec.process.command, anyhow::Error::new(error)),
            fails: Fails::Now,
        })?;
        let group = self.with.cgroups.create(&spec.id, &spec.resources);
        let (cgroup, doors) = group.map_err(|e| Unstartable {
            reason: format!("make the control group of {}: {e}", spec.process.command),
            fails: Fails::Now,
        })?;
        let limit = Some(spec.resources.memory_limit_bytes).filter(|b| *b > 0 && !self.with.cgroups.limits_memory());
        let mut exec = Exec::new(&program);
        exec.args(&spec.process.arguments)
            .env_clear()
            .envs(self.with.mark.environment(&spec.id, &spec.process, &self.with.path, &home))
            .current_dir(&home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(door) = &self.with.otlp {
            exec.envs(door.admit(&spec));
        }
        spawn::confine(&mut exec, doors, limit, user);
        let started = (self.with.clock)();
        let mut child = exec.spawn().map_err(|e| {
            cgroup.remove();
            self.dismiss(&spec.id);
            Unstartable::from_exec(&spec.process.command, &e, user)
        })?;
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        let outputs = [
            (Output::Stdout, child.stdout.take().map(OwnedFd::from)),
            (Output::Stderr, child.stderr.take().map(OwnedFd::from)),
        ];
        let readers = outputs
            .into_iter()
            .filter_map(|(output, pipe)| Some(Reader { output, pipe: pipe?, partial: vec![] }))
            // A pipe that would block its reader is not read: its writer would hold up all others.
            .filter(|reader| fcntl(&reader.pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).is_ok())
            .collect();
        let descriptor = spawn::process_descriptor(pid.as_raw()).ok();
        Ok(Process { child, pid, descriptor, readers, cgroup, started, ended: None, looks: 0 })
    }

    /// Releases what the instances that are gone had. One whose processes have not ended yet keeps it until the next time.
    fn keep(&mut self, instances: &BTreeSet<String>) {
        let running: BTreeSet<&String> = self.processes.keys().map(|id| &id.instance_id).collect();
        self.with.users.keep(|instance| instances.contains(instance) || running.contains(&instance.to_owned()));
    }

    /// What it sends from now on is refused.
    fn dismiss(&self, id: &ReplicaId) {
        if let Some(door) = &self.with.otlp {
            door.dismiss(id);
        }
    }

    fn stop(&mut self, instance_id: &str, up_to_generation: u64, force: bool) {
        let concerned = |id: &ReplicaId| id.instance_id == instance_id && id.generation <= up_to_generation;
        let signal = if force { Signal::SIGKILL } else { Signal::SIGTERM };
        for (id, process) in self.processes.iter().filter(|(id, p)| concerned(id) && p.ended.is_none()) {
            tracing::info!(replica = %id, pid = process.pid.as_raw(), %signal, "ending process");
            // It was not waited for, so its id, which is its group's, cannot be another's.
            let _gone_already = killpg(process.pid, signal);
        }
        self.used.retain(|id, _| !concerned(id) || self.processes.contains_key(id));
    }

    /// Reads what has been printed.
    fn read(&mut self) {
        for (id, process) in &mut self.processes {
            process.readers.retain_mut(|reader| reader.read(id, &self.with.journal, &self.with.clock, READ_BYTES));
        }
    }

    /// Looks who has ended. They are not waited for yet: that would free their ids while the group lives.
    fn notice(&mut self) {
        for (id, process) in self.processes.iter_mut().filter(|(_, p)| p.ended.is_none()) {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let ended = match waitid(Id::Pid(process.pid), flags) {
                Ok(WaitStatus::Exited(_, code)) => ExitStatus::from_raw(code << 8),
                Ok(WaitStatus::Signaled(_, signal, _)) => ExitStatus::from_raw(signal as i32),
                Ok(_) => continue,
                Err(nix::errno::Errno::EINTR) => continue,
                // Somebody else has waited for it.
                Err(_) => ExitStatus::from_raw(0),
            };
            if let (Some(used), Some(reading)) = (self.used.get_mut(id), reading_of(id, process.pid.as_raw())) {
                used.ended = used.ended.plus(Totals::of(&reading));
            }
            let _empty = killpg(process.pid, Signal::SIGKILL);
            process.ended = Some(describe(ended));
        }
    }

    /// Takes leave of processes that have ended with all they had started.
    fn take_leave(&mut self) {
        if self.processes.values().all(|p| p.ended.is_none()) {
            return;
        }
        let members = match self.members(Confined::All) {
            Ok(members) => members,
            Err(error) => {
                tracing::warn!(error = %error, "process table not read");
                return;
            }
        };
        let ended: Vec<ReplicaId> =
            self.processes.iter().filter(|(_, p)| p.ended.is_some()).map(|(id, _)| id.clone()).collect();
        for id in ended {
            let mut left: Vec<&Member> = members.iter().filter(|member| member.id == id).collect();
            // All replicas of an instance share its user: who has hidden from the rest ends with the last of them.
            let is_last = !self.processes.keys().any(|other| other.instance_id == id.instance_id && *other != id);
            let user = self.with.users.user_of(&id.instance_id).filter(|_| is_last);
            let hidden = match self.replicas.of_users(&user.into_iter().collect(), &id) {
                Ok(hidden) => hidden,
                Err(error) => {
                    tracing::warn!(error = %error, "process table not read");
                    return;
                }
            };
            left.extend(&hidden);
            let Some(process) = self.processes.get_mut(&id) else { continue };
            if !left.is_empty() {
                process.looks += 1;
                if process.looks == LOOKS_BEFORE_WARNING {
                    tracing::warn!(replica = %id, left = left.len(), pid = left[0].pid, "processes do not end");
                }
                left.iter().for_each(|member| member.kill());
                continue;
            }
            let Some(mut process) = self.processes.remove(&id) else { continue };
            // Whatever was printed is in the pipes by now.
            for reader in &mut process.readers {
                while reader.read(&id, &self.with.journal, &self.with.clock, READ_BYTES) && reader.has_more() {}
                reader.flush(&id, &self.with.journal, &self.with.clock);
            }
            let _ended_already = process.child.wait();
            if !process.cgroup.remove() {
                tracing::warn!(replica = %id, "control group not removed");
            }
            self.with.journal.ended(&id);
            self.dismiss(&id);
            if let Some(used) = self.used.get_mut(&id) {
                used.since_idle = Some((self.with.clock)());
            }
            let mut reason = process.ended.take().unwrap_or_default();
            if let Some(line) = self.with.journal.last_error_line(&id, process.started) {
                let short: String = line.chars().take(200).collect();
                reason = format!("{reason}: {short}");
            }
            tracing::info!(replica = %id, pid = process.pid.as_raw(), reason, "process ended");
            self.with.events.push(Event::Exited { id, reason });
        }
    }

    /// Every living process of every replica.
    fn members(&mut self, which: Confined) -> Result<Vec<Member>, Error> {
        let groups = self.processes.iter().map(|(id, p)| (p.pid.as_raw(), id.clone())).collect();
        let of_one = |(id, process): (&ReplicaId, &Process)| {
            let id = id.clone();
            process.cgroup.pids().into_iter().map(move |pid| (pid, id.clone()))
        };
        let confined = || self.processes.iter().flat_map(of_one).collect();
        self.replicas.find(&groups, which, confined)
    }

    fn measure(&mut self, now: Timestamp) {
        self.used.retain(|_, used| used.since_idle.is_none_or(|since| now.millis_since(since) < REMEMBERED_MS));
        let members = if self.processes.is_empty() { Ok(vec![]) } else { self.members(Confined::New) };
        let members = match members {
            Ok(members) => members,
            Err(error) => {
                tracing::warn!(error = %error, "process table not read");
                return;
            }
        };
        let mut found: BTreeMap<String, Members> = BTreeMap::new();
        for (id, process) in &self.processes {
            let of_instance = found.entry(id.instance_id.clone()).or_default();
            of_instance.groups.extend(process.cgroup.folders().iter().cloned());
        }
        for member in &members {
            found.entry(member.id.instance_id.clone()).or_default().pids.push(member.pid);
        }
        self.with.journal.found(found);
        let mut alive: BTreeMap<&ReplicaId, (Totals, u64)> = BTreeMap::new();
        for member in &members {
            let reading = self.replicas.reading(member);
            let (totals, memory_bytes) = alive.entry(&member.id).or_default();
            *totals = totals.plus(Totals::of(&reading));
            *memory_bytes += reading.memory_bytes;
        }
        let mut readings = vec![];
        for (id, used) in &mut self.used {
            let (living, memory_bytes) = alive.get(id).copied().unwrap_or_default();
            let seen = used.ended.plus(living);
            used.vanished = used.vanished.plus(used.seen.zip(seen, u64::saturating_sub));
            used.seen = seen;
            let totals = seen.plus(used.vanished);
            readings.push(Reading {
                id: id.clone(),
                cpu_nanos: totals.cpu_nanos,
                memory_bytes,
                io_read_bytes: totals.read_bytes,
                io_write_bytes: totals.written_bytes,
            });
        }
        self.with.events.push(Event::Measured { at: now, readings });
    }

    fn shut_down(mut self, grace_ms: u64) {
        let deadline = (self.with.clock)().plus_millis(i64::try_from(grace_ms).unwrap_or(i64::MAX / 2_000_000));
        for process in self.processes.values() {
            let _gone_already = killpg(process.pid, Signal::SIGTERM);
        }
        let mut forced = false;
        while !self.processes.is_empty() {
            if !forced && (self.with.clock)() >= deadline {
                forced = true;
                for process in self.processes.values() {
                    let _gone_already = killpg(process.pid, Signal::SIGKILL);
                }
            }
            let pipes = self.processes.values().flat_map(|p| &p.readers).map(|reader| reader.pipe.as_fd());
            let mut pipes: Vec<PollFd<'_>> = pipes.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            let _interrupted = poll(&mut pipes, PollTimeout::from(LOOK_MS));
            self.read();
            self.notice();
            self.take_leave();
        }
        self.with.cgroups.remove();
    }
}

impl Reader {
    /// Reads up to this many bytes. `false` at the end of the output.
    fn read(&mut self, id: &ReplicaId, journal: &Journal, clock: &Clock, bytes_max: usize) -> bool {
        let mut buffer = [0; 8 << 10];
        let mut total = 0;
        while total < bytes_max {
            match nix::unistd::read(&self.pipe, &mut buffer) {
                Ok(0) => {
                    self.flush(id, journal, clock);
                    return false;
                }
                Ok(n) => {
                    total += n;
                    self.take(&buffer[..n], id, journal, clock);
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    fn has_more(&self) -> bool {
        let mut pipe = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
        poll(&mut pipe, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }

    fn take(&mut self, mut bytes: &[u8], id: &ReplicaId, journal: &Journal, clock: &Clock) {
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - self.partial.len();
            let end = bytes.iter().take(room).position(|b| *b == b'\n');
            let taken = end.unwrap_or_else(|| room.min(bytes.len()));
            self.partial.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[(taken + usize::from(end.is_some())).min(bytes.len())..];
            if end.is_some() || self.partial.len() >= LINE_BYTES_MAX {
                self.write(id, journal, clock);
            }
        }
    }

    fn flush(&mut self, id: &ReplicaId, journal: &Journal, clock: &Clock) {
        if !self.partial.is_empty() {
            self.write(id, journal, clock);
        }
    }

    fn write(&mut self, id: &ReplicaId, journal: &Journal, clock: &Clock) {
        let text = String::from_utf8_lossy(&self.partial);
        journal.write(id, self.output, clock(), text.trim_end_matches('\r'));
        self.partial.clear();
    }
}

/// Why a process could not be started.
struct Unstartable {
    reason: String,
    fails: Fails,
}

impl Unstartable {
    fn anywhere(reason: String) -> Self {
        Self { reason, fails: Fails::Anywhere }
    }

    fn here(reason: String) -> Self {
        Self { reason, fails: Fails::Here }
    }

    /// After the program itself was found.
    fn from_exec(command: &str, error: &io::Error, user: Option<u32>) -> Self {
        use nix::libc::{E2BIG, EACCES, ENOENT, ENOEXEC, EPERM};
        if let (Some(EACCES), Some(user)) = (error.raw_os_error(), user) {
            return Self::here(format!(
                "permission denied: {command} runs as user {user} here; let everybody execute it, and read it if it is a script"
            ));
        }
        match error.raw_os_error() {
            Some(ENOENT) => Self::anywhere(format!("no such file or directory: the interpreter of {command}")),
            Some(ENOEXEC) => Self::here(format!("exec format error: {command}")),
            Some(EACCES | EPERM) => Self::anywhere(format!("permission denied: {command}")),
            Some(E2BIG) => Self::anywhere(format!("argument list too long: {command}")),
            None if error.kind() == io::ErrorKind::InvalidInput => {
                Self::anywhere(format!("arguments or environment of {command} contain a NUL byte"))
            }
            _ => Self { reason: format!("start {command}: {error}"), fails: Fails::Now },
        }
    }
}

/// A file that the kernel will not execute is handed to a shell by the C library, which then fails in its own ways: so
/// it is looked at before.
fn check_format(program: &Path) -> Result<(), Unstartable> {
    // Machines of ELF files, and those whose programs they run too.
    const X86: u16 = 3;
    const ARM: u16 = 40;
    const X86_64: u16 = 62;
    const AARCH64: u16 = 183;
    let head = |path: &Path| -> io::Result<[u8; 20]> {
        let mut head = [0; 20];
        // Shorter than that is not an ELF file.
        match File::open(path)?.read_exact(&mut head[..2]) {
            Ok(()) if head.starts_with(b"#!") => return Ok(head),
            _ => {}
        }
        match File::open(path)?.read_exact(&mut head) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok([0; 20]),
            read => read.map(|()| head),
        }
    };
    let machine = |head: &[u8; 20]| match head[5] {
        2 => u16::from_be_bytes([head[18], head[19]]),
        _ => u16::from_le_bytes([head[18], head[19]]),
    };
    // One that may be executed but not read is the kernel's to judge.
    let Ok(found) = head(program) else { return Ok(()) };
    if found.starts_with(b"#!") {
        return Ok(());
    }
    if !found.starts_with(b"\x7fELF") {
        let neither = "neither a program nor a script that names its interpreter";
        return Err(Unstartable::anywhere(format!("exec format error: {} is {neither}", program.display())));
    }
    let Ok(own) = head(Path::new("/proc/self/exe")) else { return Ok(()) };
    match (machine(&own), machine(&found)) {
        (own, found) if own == found => Ok(()),
        (X86_64, X86) | (AARCH64, ARM) => Ok(()),
        _ => Err(Unstartable::here(format!("exec format error: {} is for another kind of machine", program.display()))),
    }
}

/// The program that a command names: a path, or a name looked up on the search path.
fn find_program(command: &str, path: &OsString) -> Result<PathBuf, Unstartable> {
    let candidates: Vec<PathBuf> = if command.contains('/') {
        vec![PathBuf::from(command)]
    } else {
        std::env::split_paths(path).map(|folder| folder.join(command)).collect()
    };
    let executable =
        |path: &Path| path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    if let Some(found) = candidates.iter().find(|path| executable(path)) {
        // It starts in a folder of its own.
        return Ok(std::path::absolute(found).unwrap_or_else(|_| found.clone()));
    }
    Err(Unstartable::anywhere(match candidates.iter().find(|path| path.exists()) {
        Some(found) if found.is_dir() => format!("permission denied: {} is a directory", found.display()),
        Some(found) => format!("permission denied: {} is not executable", found.display()),
        None => format!("no such file or directory: {command}"),
    }))
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => {
            let name = Signal::try_from(signal).map_or_else(|_| signal.to_string(), |s| s.to_string());
            format!("ended by {name}")
        }
        (None, None) => "ended".to_owned(),
    }
}
