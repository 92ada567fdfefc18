//! What can be read while a driver works: the last log lines and the processes.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use mesh_proto::{Timestamp, instance::LogLine};

use super::ReplicaId;

/// Lines kept per replica; older ones go first.
pub const LINES_MAX: usize = 500;
/// Bytes kept of one line; what is longer continues on the next.
pub const LINE_BYTES_MAX: usize = 4_096;
/// Bytes of all lines together; the instance silent for longest goes first.
pub const BYTES_MAX: usize = 64 << 20;
/// What a line costs beside its text, bytes.
const LINE_COST: usize = 100;

/// Which of its outputs a process wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// `stdout`.
    Stdout,
    /// `stderr`.
    Stderr,
}

impl Output {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A running process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Which replica.
    pub id: ReplicaId,
    /// Its process id; 0 if it is simulated.
    pub pid: u32,
    /// How often it was started again.
    pub restarts: u32,
    /// How its limits are enforced.
    pub enforcement: String,
}

/// What belongs to an instance, all its replicas together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Its processes, with all that they started.
    pub pids: Vec<i32>,
    /// Its control groups, in every hierarchy.
    pub groups: Vec<PathBuf>,
}

#[derive(Default)]
struct Lines {
    /// By replica number: lines outlive restarts and generations.
    replicas: BTreeMap<u32, VecDeque<LogLine>>,
    /// Number of its last line among all.
    last: u64,
    bytes: usize,
}

#[derive(Default)]
struct Inner {
    lines: BTreeMap<String, Lines>,
    written: u64,
    bytes: usize,
    running: BTreeMap<ReplicaId, Running>,
    members: BTreeMap<String, Members>,
}

/// The last log lines of every instance, and the processes that run. Bounded.
#[derive(Default)]
pub struct Journal {
    inner: Mutex<Inner>,
}

impl Journal {
    /// Writers only insert and remove, so what a panicking one leaves behind can be read.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line; only its first [`LINE_BYTES_MAX`] bytes are kept, whole characters.
    pub fn write(&self, id: &ReplicaId, output: Output, at: Timestamp, text: &str) {
        let mut end = text.len().min(LINE_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let line = LogLine {
            replica: id.replica,
            stream: output.name().to_owned(),
            at: Some(at),
            text: text[..end].to_owned(),
        };
        let inner = &mut *self.lock();
        inner.written += 1;
        let lines = inner.lines.entry(id.instance_id.clone()).or_default();
        lines.last = inner.written;
        let ring = lines.replicas.entry(id.replica).or_default();
        let freed = if ring.len() >= LINES_MAX { ring.pop_front().map_or(0, |old| cost(&old)) } else { 0 };
        let added = cost(&line);
        ring.push_back(line);
        lines.bytes = lines.bytes + added - freed;
        inner.bytes = inner.bytes + added - freed;
        while inner.bytes > BYTES_MAX && inner.lines.len() > 1 {
            let silent = inner.lines.iter().min_by_key(|(_, lines)| lines.last).map(|(id, _)| id.clone());
            let Some(lines) = silent.and_then(|silent| inner.lines.remove(&silent)) else { break };
            inner.bytes -= lines.bytes;
        }
    }

    /// What belongs to which instance, as it was just found.
    pub fn found(&self, members: BTreeMap<String, Members>) {
        self.lock().members = members;
    }

    /// What belonged to an instance when the driver last looked, at its last measurement.
    pub fn members(&self, instance: &str) -> Option<Members> {
        self.lock().members.get(instance).cloned()
    }

    /// Did an instance have control groups when the driver last looked?
    pub fn has_groups(&self, instance: &str) -> bool {
        self.lock().members.get(instance).is_some_and(|members| !members.groups.is_empty())
    }

    /// The newest lines of an instance, oldest first, all replicas together. `None` if nothing is known about it.
    pub fn logs(&self, instance_id: &str, lines_max: usize) -> Option<Vec<LogLine>> {
        let inner = self.lock();
        let mut lines: Vec<LogLine> = match inner.lines.get(instance_id) {
            Some(lines) => lines.replicas.values().flatten().cloned().collect(),
            None => {
                inner.running.keys().find(|id| id.instance_id == instance_id)?;
                vec![]
            }
        };
        drop(inner);
        lines.sort_by_key(|line| line.at);
        lines.drain(..lines.len().saturating_sub(lines_max));
        Some(lines)
    }

    /// The last thing a replica said on its standard error since it was started.
    pub fn last_error_line(&self, id: &ReplicaId, since: Timestamp) -> Option<String> {
        let inner = self.lock();
        let ring = inner.lines.get(&id.instance_id)?.replicas.get(&id.replica)?;
        let mut lines = ring.iter().rev().take_while(|line| line.at >= Some(since));
        lines.find(|line| line.stream == "stderr" && !line.text.trim().is_empty()).map(|line| line.text.clone())
    }

    /// A process runs.
    pub fn runs(&self, running: Running) {
        self.lock().running.insert(running.id.clone(), running);
    }

    /// A process has ended.
    pub fn ended(&self, id: &ReplicaId) {
        self.lock().running.remove(id);
    }

    /// The processes that run.
    pub fn running(&self) -> Vec<Running> {
        self.lock().running.values().cloned().collect()
    }
}

fn cost(line: &LogLine) -> usize {
    line.text.len() + LINE_COST
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(instance: &str, replica: u32) -> ReplicaId {
        ReplicaId { instance_id: instance.into(), generation: 1, replica }
    }

    #[test]
    fn the_newest_lines_are_kept_and_long_ones_are_cut() {
        let journal = Journal::default();
        for n in 0..LINES_MAX as i64 + 20 {
            journal.write(&id("a", 0), Output::Stdout, Timestamp::from_millis(n), &n.to_string());
        }
        let lines = journal.logs("a", 10_000).unwrap();
        assert_eq!(lines.len(), LINES_MAX);
        assert_eq!(lines[0].text, "20");
        journal.write(&id("a", 1), Output::Stderr, Timestamp::from_millis(9_999), &"é".repeat(LINE_BYTES_MAX));
        let last = journal.logs("a", 1).unwrap();
        assert_eq!((last[0].replica, last[0].text.len()), (1, LINE_BYTES_MAX));
        assert_eq!(journal.logs("b", 1), None);
    }

    #[test]
    fn the_instance_that_was_silent_for_longest_is_forgotten_first() {
        let journal = Journal::default();
        let (line, at) = ("x".repeat(LINE_BYTES_MAX), Timestamp::from_millis(1));
        for n in 0..BYTES_MAX / LINE_BYTES_MAX / 100 {
            for _ in 0..100 {
                journal.write(&id(&format!("i{n}"), 0), Output::Stdout, at, &line);
            }
            journal.write(&id("i0", 0), Output::Stdout, at, "x");
        }
        assert!(journal.lock().bytes <= BYTES_MAX);
        assert!(journal.logs("i0", 1).is_some());
        assert!(journal.logs("i1", 1).is_none());
    }
}
