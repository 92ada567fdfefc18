//! What a driver is asked to run, and what it reports back.

use mesh_proto::{
    Timestamp,
    workload::{ProcessSpec, Resources},
};
pub use mesh_scenes::load::ReplicaId;

/// One replica to start.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaSpec {
    /// Which.
    pub id: ReplicaId,
    /// Whose.
    pub owner: String,
    /// Name of its workload.
    pub workload: String,
    /// What to run.
    pub process: ProcessSpec,
    /// What it asks for, and its hard limits.
    pub resources: Resources,
}

/// What a driver says. Each start is followed by `Started` or `StartFailed`, each `Started` in the end by one `Exited`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It runs.
    Started {
        /// Which.
        id: ReplicaId,
    },
    /// It could not be started.
    StartFailed {
        /// Which.
        id: ReplicaId,
        /// Why.
        reason: String,
        /// Where it would fail again.
        fails: Fails,
    },
    /// It has ended, with every process it had started.
    Exited {
        /// Which.
        id: ReplicaId,
        /// How, and its last words.
        reason: String,
    },
    /// The answer to a request to measure.
    Measured {
        /// When it was measured.
        at: Timestamp,
        /// One for each replica that was started and not told to end since.
        readings: Vec<Reading>,
    },
}

/// Where a start that has failed would fail again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fails {
    /// Perhaps not even here: it is tried again.
    Now,
    /// On this cluster: a program for another kind of machine.
    Here,
    /// Wherever this document goes: a missing binary.
    Anywhere,
}

/// What one replica has used since its first start; totals never fall and outlive restarts.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Which.
    pub id: ReplicaId,
    /// CPU time of it and everything it started, nanoseconds.
    pub cpu_nanos: u64,
    /// Resident memory now, bytes.
    pub memory_bytes: u64,
    /// Bytes read from storage.
    pub io_read_bytes: u64,
    /// Bytes written to storage.
    pub io_write_bytes: u64,
}
