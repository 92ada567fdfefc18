//! Processes of instances, each with all that it started.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Arc,
};

use mesh_proto::Timestamp;
use procfs::{FromRead as _, Uptime};
use tokio::sync::watch;

use super::{Entity, Probe, Reading, Roots, Running, Value};
use crate::{
    domain::measure::{catalog, tally::Tally},
    shell::{driver::Journal, table::Table},
};

/// A process that no other is: its id, and when it was started.
type Who = (i32, u64);

/// Reads the processes that the driver has found.
pub struct Processes {
    journal: Arc<Journal>,
    running: watch::Receiver<Running>,
    roots: Roots,
    table: Table,
    tallies: BTreeMap<String, Tally<Who>>,
}

/// Instances that run, as entities of a kind.
pub(super) fn instances(
    running: &watch::Receiver<Running>,
    kind: &'static str,
    fits: impl Fn(&str, &crate::domain::measure::Watched) -> bool,
) -> Vec<Entity> {
    let running = running.borrow();
    let all = running.instances.iter().filter(|(id, watched)| fits(id, watched));
    all.map(|(id, watched)| Entity { kind, id: id.clone(), owner: watched.owner.clone() }).collect()
}

impl Processes {
    /// Of an agent whose driver keeps this journal.
    pub fn new(journal: Arc<Journal>, running: watch::Receiver<Running>, roots: Roots) -> Self {
        Self { table: Table::new(&roots.proc), journal, running, roots, tallies: BTreeMap::new() }
    }

    fn look(&mut self, instance: &str, uptime_s: f64) -> Result<Vec<Value>, String> {
        let members = self.journal.members(instance).unwrap_or_default();
        let mut sources = vec![];
        let mut oldest = None;
        for pid in &members.pids {
            // One that has ended since is counted with what it said last.
            let Some((started, values)) = self.one(*pid) else { continue };
            oldest = Some(oldest.map_or(started, |oldest: u64| oldest.min(started)));
            sources.push(((*pid, started), values));
        }
        let number = sources.len();
        let Some(oldest) = oldest else { return Err("none of its processes is found".to_owned()) };
        let mut values = self.tallies.entry(instance.to_owned()).or_default().sum(sources);
        let up = uptime_s - oldest as f64 / procfs::ticks_per_second().max(1) as f64;
        values.push(catalog::PROCESS_NUMBER.value(number as f64, &[]));
        values.push(catalog::PROCESS_UPTIME.value(up.max(0.0), &[]));
        Ok(values)
    }

    /// When it was started, and what it says.
    fn one(&self, pid: i32) -> Option<(u64, Vec<Value>)> {
        let stat = self.table.stat(pid).filter(|stat| !stat.has_ended())?;
        let per_s = procfs::ticks_per_second().max(1) as f64;
        let mut values = vec![
            catalog::PROCESS_CPU.value(stat.user_ticks as f64 / per_s, &["user"]),
            catalog::PROCESS_CPU.value(stat.system_ticks as f64 / per_s, &["system"]),
            catalog::PROCESS_MEMORY.value(stat.resident_pages.saturating_mul(procfs::page_size()) as f64, &[]),
            catalog::PROCESS_VIRTUAL.value(stat.virtual_bytes as f64, &[]),
            catalog::PROCESS_THREADS.value(stat.threads as f64, &[]),
            catalog::PROCESS_FAULTS.value(stat.minor_faults as f64, &["minor"]),
            catalog::PROCESS_FAULTS.value(stat.major_faults as f64, &["major"]),
        ];
        // What another user's process does not show is left out of the whole instance.
        if let Some(io) = self.table.io(pid) {
            values.push(catalog::PROCESS_IO.value(io.read_bytes as f64, &["read"]));
            values.push(catalog::PROCESS_IO.value(io.written_bytes as f64, &["write"]));
        }
        let folder = self.roots.proc.join(pid.to_string());
        if let Ok(files) = fs::read_dir(folder.join("fd")) {
            values.push(catalog::PROCESS_FILES.value(files.count() as f64, &[]));
        }
        if let Ok(status) = fs::read_to_string(folder.join("status")) {
            for (kind, field) in
                [("voluntary", "voluntary_ctxt_switches:"), ("involuntary", "nonvoluntary_ctxt_switches:")]
            {
                let found = status.lines().find_map(|line| line.strip_prefix(field)?.trim().parse::<u64>().ok());
                values.extend(found.map(|count| catalog::PROCESS_SWITCHES.value(count as f64, &[kind])));
            }
        }
        Some((stat.started, values))
    }
}

impl Probe for Processes {
    fn name(&self) -> &'static str {
        "process"
    }

    fn entities(&mut self) -> Vec<Entity> {
        let all = instances(&self.running, "instance", |_, _| true);
        let ids: BTreeSet<&str> = all.iter().map(|entity| entity.id.as_str()).collect();
        self.tallies.retain(|instance, _| ids.contains(instance.as_str()));
        all
    }

    fn read(&mut self, due: &[Entity], _now: Timestamp) -> Vec<Reading> {
        if due.is_empty() {
            return vec![];
        }
        let uptime = Uptime::from_file(self.roots.proc.join("uptime")).map_err(|error| format!("read uptime: {error}"));
        let one = |entity: &Entity| {
            let uptime_s = uptime.as_ref().map(|uptime| uptime.uptime).map_err(Clone::clone);
            Reading::from(uptime_s.and_then(|uptime_s| self.look(&entity.id, uptime_s)))
        };
        due.iter().map(one).collect()
    }
}
