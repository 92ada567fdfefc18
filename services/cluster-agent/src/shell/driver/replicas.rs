//! Which processes belong to which replica, read from `/proc`.
//!
//! A process belongs to a replica if it is in its process group, in its control group, or carries its mark in the
//! environment it was started with. The mark is inherited, so whoever leaves the group is still found.

#![expect(clippy::disallowed_methods, reason = "a workload inherits a few variables of its agent")]

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
};

use mesh_proto::workload::ProcessSpec;
use procfs::process::{Process, Stat, all_processes};

use super::{Error, Reading, ReplicaId, spawn};

const CLUSTER: &str = "CONTINUUM_CLUSTER";
const AGENT: &str = "CONTINUUM_AGENT";
const INSTANCE: &str = "CONTINUUM_INSTANCE";
const GENERATION: &str = "CONTINUUM_GENERATION";
const REPLICA: &str = "CONTINUUM_REPLICA";

/// Variables that every workload inherits from its agent; all others come from its document.
const INHERITED: [&str; 7] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER"];

/// The mark of one agent on every process it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Cluster.
    pub(super) cluster_id: String,
    /// Agent of that cluster in that mesh; the same after a restart.
    pub(super) agent: String,
}

impl Mark {
    /// The environment of a replica: what is inherited, its document's, and last the mark, which nothing overrides.
    pub(super) fn environment(&self, id: &ReplicaId, process: &ProcessSpec, path: &OsStr) -> Vec<(OsString, OsString)> {
        let mut all: BTreeMap<OsString, OsString> =
            INHERITED.iter().filter_map(|name| Some(((*name).into(), std::env::var_os(name)?))).collect();
        all.insert("PATH".into(), path.to_owned());
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
    fn read(&self, process: &Process) -> Option<ReplicaId> {
        let environment = process.environ().ok()?;
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
    process: Process,
    stat: Stat,
}

impl Member {
    /// What it and the children it has waited for have used. `/proc` counts CPU time in ticks of 10 ms.
    pub(super) fn reading(&self) -> Reading {
        reading(self.id.clone(), &self.process, &self.stat)
    }

    /// Ends it, unless it has ended and its id is another's.
    pub(super) fn kill(&self) {
        let Ok(descriptor) = spawn::process_descriptor(self.pid) else { return };
        // Read through the descriptor of its `/proc` folder, which never shows another process.
        if self.process.stat().is_ok_and(|stat| stat.starttime == self.stat.starttime) {
            let _gone_already = spawn::kill_exactly(&descriptor);
        }
    }
}

/// What one process has used; works for one that has ended and was not waited for.
pub(super) fn reading_of(id: &ReplicaId, pid: i32) -> Option<Reading> {
    let process = Process::new(pid).ok()?;
    let stat = process.stat().ok()?;
    Some(reading(id.clone(), &process, &stat))
}

fn reading(id: ReplicaId, process: &Process, stat: &Stat) -> Reading {
    let waited = u64::try_from(stat.cutime.max(0) + stat.cstime.max(0)).unwrap_or(0);
    let ticks = stat.utime + stat.stime + waited;
    let io = process.io().ok();
    Reading {
        id,
        cpu_nanos: ticks.saturating_mul(1_000_000_000) / procfs::ticks_per_second().max(1),
        memory_bytes: stat.rss.saturating_mul(procfs::page_size()),
        io_read_bytes: io.as_ref().map_or(0, |io| io.read_bytes),
        io_write_bytes: io.as_ref().map_or(0, |io| io.write_bytes),
    }
}

/// Finds the processes of an agent's replicas.
pub(super) struct Replicas {
    mark: Mark,
    /// What a process's environment said; it is read once per process.
    seen: BTreeMap<(i32, u64), Option<ReplicaId>>,
}

impl Replicas {
    pub(super) fn new(mark: Mark) -> Self {
        Self { mark, seen: BTreeMap::new() }
    }

    /// Every process of any replica that has not ended. `groups` are process groups, `confined` processes in control
    /// groups, each with its replica.
    pub(super) fn find(
        &mut self,
        groups: &BTreeMap<i32, ReplicaId>,
        confined: &BTreeMap<i32, ReplicaId>,
    ) -> Result<Vec<Member>, Error> {
        let mut members = vec![];
        let mut alive = BTreeSet::new();
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        for process in all_processes().map_err(Error::ProcessTable)? {
            // One that ends while it is read is skipped.
            let Ok(process) = process else { continue };
            let pid = process.pid;
            let Ok(stat) = process.stat() else { continue };
            if pid == own || matches!(stat.state, 'Z' | 'X') {
                continue;
            }
            let known = groups.get(&stat.pgrp).or_else(|| confined.get(&pid)).cloned();
            let id = known.or_else(|| {
                let key = (pid, stat.starttime);
                alive.insert(key);
                self.seen.entry(key).or_insert_with(|| self.mark.read(&process)).clone()
            });
            if let Some(id) = id {
                members.push(Member { id, pid, process, stat });
            }
        }
        self.seen.retain(|key, _| alive.contains(key));
        Ok(members)
    }
}
