//! Real processes of this machine.

#![expect(clippy::disallowed_methods, reason = "a workload inherits the PATH of its agent")]

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io::Write as _,
    os::unix::net::UnixStream,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use mesh_proto::Timestamp;
use tokio::sync::Notify;

use super::super::otlp::Door;
use super::{
    Driver, Error, Event, Journal, ReplicaSpec,
    cgroup::{Cgroups, System},
    replicas::{Confined, Mark, Replicas},
    supervisor::{Clock, Command, Events, Supervisor, With},
    users::{self, Users},
};

/// Looks at the process table until everything of an earlier agent has gone.
const SWEEPS_MAX: u32 = 1_000;
/// Between two looks.
const SWEEP_WAIT: Duration = Duration::from_millis(5);

/// How the driver runs processes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Cluster; part of the mark on every process.
    pub cluster_id: String,
    /// Which agent of that cluster, on machines with more than one mesh; the same after a restart.
    pub agent: String,
    /// Capacity in thousandths of a core.
    pub cpu_milli: u32,
    /// Capacity in bytes.
    pub memory_bytes: u64,
    /// Folders searched for commands, separated by `:`; the agent's own `PATH` when empty.
    pub path: String,
    /// Where control groups may be made; `None` for not using any.
    pub cgroups: Option<System>,
    /// Where replicas may send telemetry; `None` for nowhere.
    pub otlp: Option<Arc<Door>>,
    /// Users and folders of instances.
    pub users: users::Options,
}

/// Runs real processes from one thread, which lives as long as this does.
pub struct ProcessDriver {
    commands: Option<mpsc::Sender<Command>>,
    wake: UnixStream,
    events: Arc<Events>,
    journal: Arc<Journal>,
    enforcement: String,
    thread: Option<JoinHandle<()>>,
}

impl ProcessDriver {
    /// Ends every process that an earlier agent of the cluster left, verifies that they are gone, and starts the
    /// thread. Blocks for up to some seconds.
    ///
    /// # Errors
    /// If a process does not end, `/proc` cannot be read, or no thread can be started.
    pub fn open(options: Options, clock: Arc<dyn Fn() -> Timestamp + Send + Sync>) -> Result<Self, Error> {
        let clock: Clock = clock;
        let mark = Mark { cluster_id: options.cluster_id.clone(), agent: options.agent.clone() };
        let cgroups = options.cgroups.as_ref().map_or_else(Cgroups::default, |system| {
            // Two meshes on one machine may each have a cluster of this name.
            let agent: String = options.agent.chars().take(8).collect();
            let name = format!("{}.{agent}", options.cluster_id);
            Cgroups::open(system, &name, options.cpu_milli, options.memory_bytes)
        });
        let users = Users::open(&options.users, &options.agent)?;
        let enforcement = format!("{}, {}", cgroups.enforcement(), users.text());
        tracing::info!(cluster = options.cluster_id, enforcement, unused = ?cgroups.unused(), "limits");
        if let Some(reason) = users.refused() {
            tracing::warn!(
                cluster = options.cluster_id,
                reason,
                "workloads run as the agent's user and can read what it can; run the agent as root to give them users of \
                 their own, or set process_documents=false"
            );
        }
        sweep(&mark, &cgroups, &users.all())?;

        let (journal, events) = (Arc::new(Journal::default()), Arc::new(Events::default()));
        let (commands, received) = mpsc::channel();
        let (wake, woken) = UnixStream::pair().map_err(Error::Thread)?;
        wake.set_nonblocking(true).map_err(Error::Thread)?;
        woken.set_nonblocking(true).map_err(Error::Thread)?;
        let path = if options.path.is_empty() {
            // What the agent was started with, not configuration of its own.
            std::env::var_os("PATH").unwrap_or_default()
        } else {
            OsString::from(&options.path)
        };
        let with = With {
            mark,
            path,
            cgroups,
            users,
            enforcement: enforcement.clone(),
            otlp: options.otlp,
            clock,
            journal: journal.clone(),
            events: events.clone(),
            commands: received,
            wake: woken,
        };
        let thread = thread::Builder::new()
            .name(format!("run-{}", options.cluster_id))
            .spawn(move || Supervisor::new(with).run())
            .map_err(Error::Thread)?;
        Ok(Self { commands: Some(commands), wake, events, journal, enforcement, thread: Some(thread) })
    }

    fn send(&mut self, command: Command) {
        // If the thread has ended, `check` says so.
        if let Some(commands) = &self.commands {
            let _ended = commands.send(command);
        }
        // A full pipe wakes it just as well.
        let _full = self.wake.write(&[1]);
    }
}

/// Ends what an earlier agent left, found by its mark, by its users or in its control groups.
fn sweep(mark: &Mark, cgroups: &Cgroups, users: &BTreeSet<u32>) -> Result<(), Error> {
    let mut replicas = Replicas::new(mark.clone());
    let leftovers = cgroups.leftovers();
    let mut left = vec![];
    for round in 0..SWEEPS_MAX {
        let anyone = super::ReplicaId { instance_id: String::new(), generation: 0, replica: 0 };
        let confined = || leftovers.iter().flat_map(|group| group.pids()).map(|pid| (pid, anyone.clone())).collect();
        left = replicas.find(&BTreeMap::new(), Confined::All, confined)?;
        left.extend(replicas.of_users(users, &anyone)?);
        if left.is_empty() {
            for group in leftovers {
                group.remove();
            }
            return Ok(());
        }
        if round == 0 {
            tracing::warn!(cluster = mark.cluster_id, processes = left.len(), "ending what an earlier agent left");
        }
        left.iter().for_each(|member| member.kill());
        thread::sleep(SWEEP_WAIT);
    }
    Err(Error::Sweep(left.len(), left.first().map_or(0, |member| member.pid)))
}

impl Driver for ProcessDriver {
    fn enforcement(&self) -> String {
        self.enforcement.clone()
    }

    fn start(&mut self, replica: ReplicaSpec) {
        self.send(Command::Start(Box::new(replica)));
    }

    fn stop(&mut self, instance_id: &str, up_to_generation: u64, force: bool) {
        self.send(Command::Stop { instance_id: instance_id.to_owned(), up_to_generation, force });
    }

    fn keep(&mut self, instances: &BTreeSet<String>) {
        self.send(Command::Keep(instances.clone()));
    }

    fn measure(&mut self, now: Timestamp) {
        self.send(Command::Measure(now));
    }

    fn due(&self) -> Option<Timestamp> {
        None
    }

    fn take(&mut self, _now: Timestamp) -> Vec<Event> {
        self.events.take()
    }

    fn notify(&self) -> Arc<Notify> {
        self.events.notify.clone()
    }

    fn journal(&self) -> Arc<Journal> {
        self.journal.clone()
    }

    fn check(&self) -> Result<(), Error> {
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) { Err(Error::Ended) } else { Ok(()) }
    }

    fn shutdown(mut self: Box<Self>, grace_ms: u64) {
        self.send(Command::Shutdown { grace_ms });
    }
}

impl Drop for ProcessDriver {
    /// Waits until every process has ended.
    fn drop(&mut self) {
        self.commands = None;
        let _full = self.wake.write(&[1]);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}
