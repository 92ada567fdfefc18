//! Which processes belong to which replica, read from `/proc`.
//!
//! A process belongs to a replica if it is in its process group, in its control group, or carries its mark in the
//! environment it was started with. The mark is inherited, so whoever leaves the group is still found.

#![expect(clippy::disallowed_methods, reason = "a workload inherits a few variables of its agent")]

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::{OsStr, OsString},
    path::Path,
};

use mesh_proto::workload::ProcessSpec;
use procfs::process::Process;

use super::{Error, Reading, ReplicaId, spawn};
use crate::shell::table::{Stat, Table};

const CLUSTER: &str = "CONTINUUM_CLUSTER";
const AGENT: &str = "CONTINUUM_AGENT";
const INSTANCE: &str = "CONTINUUM_INSTANCE";
const GENERATION: &str = "CONTINUUM_GENERATION";
const REPLICA: &str = "CONTINUUM_REPLICA";

/// Variables that every workload inherits from its agent; all others come from its document.
const INHERITED: [&str; 5] = ["PATH", "LANG", "LC_ALL", "TZ", "TMPDIR"];

/// The mark of one agent on every process it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Cluster.
    pub(super) cluster_id: String,
    /// Agent of that cluster in that mesh; the same after a restart.
    pub(super) agent: String,
}

impl Mark {
    /// The environment of a replica: what is inherited, its folder, its document's, and last the mark, which nothing
    /// overrides.
    pub(super) fn environment(
        &self,
        id: &ReplicaId,
        process: &ProcessSpec,
        path: &OsStr,
        home: &Path,
    ) -> Vec<(OsString, OsString)> {
        let mut all: BTreeMap<OsString, OsString> =
            INHERITED.iter().filter_map(|name| Some(((*name).into(), std::env::var_os(name)?))).collect();
        all.insert("PATH".into(), path.to_owned());
        all.insert("HOME".into(), home.into());
        all.extend(process.environment.iter().map(|(name, value)| (name.into(), value.into())));
        let (generation, replica) = (id.generation.to_string(), id.replica.to_string());
        let marks = [
            (CLUSTER, self.cluster_id.as_str()),
            (AGENT, self.agent.as_str()),
            (INSTANCE, id.instance_id.as_str()),
            (GENERATION, generation.as_str()),
            (REPLICA, replica.as_str()),
        ];
        all.extend(marks.map(|(name, value)| (name.into(), value.into())));
        all.into_iter().collect()
    }

    /// The replica whose mark a process carries.
    fn read(&self, pid: i32) -> Option<ReplicaId> {
        let environment = Process::new(pid).and_then(|process| process.environ()).ok()?;
        let text = |name: &str| environment.get(OsStr::new(name))?.to_str();
        if text(CLUSTER) != Some(&self.cluster_id) || text(AGENT) != Some(&self.agent) {
            return None;
        }
        // A process that carries the mark belongs to this agent even if it has changed the rest.
        Some(ReplicaId {
            instance_id: text(INSTANCE).unwrap_or_default().to_owned(),
            generation: text(GENERATION).and_then(|t| t.parse().ok()).unwrap_or_default(),
            replica: text(REPLICA).and_then(|t| t.parse().ok()).unwrap_or_default(),
        })
    }
}

/// One process of a replica.
pub(super) struct Member {
    pub(super) id: ReplicaId,
    pub(super) pid: i32,
    stat: Stat,
}

impl Member {
    /// Ends it, unless it has ended and its id is another's.
    pub(super) fn kill(&self) {
        let Ok(descriptor) = spawn::process_descriptor(self.pid) else { return };
        // If the process of this id is still the same now, it was when the descriptor was made: so that means it.
        if table().stat(self.pid).is_some_and(|stat| stat.started == self.stat.started) {
            let _gone_already = spawn::kill_exactly(&descriptor);
        }
    }
}

fn table() -> Table {
    Table::new(Path::new("/proc"))
}

/// What one process has used; works for one that has ended and was not waited for.
pub(super) fn reading_of(id: &ReplicaId, pid: i32) -> Option<Reading> {
    let table = table();
    let stat = table.stat(pid)?;
    Some(reading(&table, id.clone(), pid, &stat))
}

/// What a process and the children it has waited for have used. `/proc` counts CPU time in ticks of 10 ms.
fn reading(table: &Table, id: ReplicaId, pid: i32, stat: &Stat) -> Reading {
    let ticks = stat.user_ticks + stat.system_ticks + stat.waited_ticks;
    let io = table.io(pid).unwrap_or_default();
    Reading {
        id,
        cpu_nanos: ticks.saturating_mul(1_000_000_000) / procfs::ticks_per_second().max(1),
        memory_bytes: stat.resident_pages.saturating_mul(procfs::page_size()),
        io_read_bytes: io.read_bytes,
        io_write_bytes: io.written_bytes,
    }
}

/// Which processes are looked for in control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Confined {
    /// All: of a process that was moved into a group later, too.
    All,
    /// Those not seen before. A process is born in the group of its parent, so that is where it is when it is first seen.
    New,
}

/// Finds the processes of an agent's replicas.
pub(super) struct Replicas {
    mark: Mark,
    table: Table,
    /// Whose each process is that is not in a process group of ours, and the scan in which it was found last. What says so
    /// is read once per process.
    seen: HashMap<(i32, u64), (Option<ReplicaId>, u64)>,
    scan: u64,
}

impl Replicas {
    pub(super) fn new(mark: Mark) -> Self {
        Self { mark, table: table(), seen: HashMap::new(), scan: 0 }
    }

    /// Every process of any replica that has not ended. `groups` are process groups, `confined` gives the processes in
    /// control groups, each with its replica.
    pub(super) fn find(
        &mut self,
        groups: &BTreeMap<i32, ReplicaId>,
        which: Confined,
        confined: impl Fn() -> BTreeMap<i32, ReplicaId>,
    ) -> Result<Vec<Member>, Error> {
        let mut members = vec![];
        self.scan += 1;
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        let inside = OnceCell::new();
        let confined = |pid: i32| inside.get_or_init(&confined).get(&pid).cloned();
        for pid in self.table.pids().map_err(Error::ProcessTable)? {
            // One that ends while it is read is skipped.
            let Some(stat) = self.table.stat(pid).filter(|stat| pid != own && !stat.has_ended()) else { continue };
            let of_group = groups.get(&stat.group).cloned();
            let id = of_group.or_else(|| {
                let new = || self.mark.read(pid).or_else(|| confined(pid));
                let (id, scan) = self.seen.entry((pid, stat.started)).or_insert_with(|| (new(), 0));
                *scan = self.scan;
                id.clone().or_else(|| (which == Confined::All).then(|| confined(pid))?)
            });
            if let Some(id) = id {
                members.push(Member { id, pid, stat });
            }
        }
        self.seen.retain(|_, (_, scan)| *scan == self.scan);
        Ok(members)
    }

    /// Every process of these users that has not ended, as if it were this replica's. A process can change its group and
    /// the environment that bears the mark, but not its user.
    pub(super) fn of_users(&self, users: &BTreeSet<u32>, id: &ReplicaId) -> Result<Vec<Member>, Error> {
        if users.is_empty() {
            return Ok(vec![]);
        }
        let pids = self.table.pids().map_err(Error::ProcessTable)?.into_iter();
        let theirs = pids.filter(|pid| self.table.user(*pid).is_some_and(|user| users.contains(&user)));
        let living = theirs.filter_map(|pid| Some((pid, self.table.stat(pid).filter(|stat| !stat.has_ended())?)));
        Ok(living.map(|(pid, stat)| Member { id: id.clone(), pid, stat }).collect())
    }

    /// What a process that was found and the children it has waited for have used.
    pub(super) fn reading(&self, member: &Member) -> Reading {
        reading(&self.table, member.id.clone(), member.pid, &member.stat)
    }
}
