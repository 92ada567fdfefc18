//! What runs replicas: real processes, or a model of them.
//!
//! A driver is told what to do and answers with events; it decides nothing, and no call waits for a process.

pub mod cgroup;
pub mod journal;
pub mod process;
mod replicas;
pub mod simulated;
mod spawn;
mod supervisor;
pub mod users;

use std::{collections::BTreeSet, sync::Arc};

use mesh_proto::Timestamp;
use tokio::sync::Notify;

pub use journal::Journal;
pub use mesh_scenes::load as model;

pub use crate::domain::replica::{Event, Fails, Reading, ReplicaId, ReplicaSpec};

/// Runs replicas.
pub trait Driver: Send {
    /// How limits are enforced: `cgroup-v2`, `cgroup-v1`, `rlimit` or `none`; where controllers differ, each is named. And as
    /// whom replicas run.
    fn enforcement(&self) -> String;

    /// Starts a replica.
    fn start(&mut self, replica: ReplicaSpec);

    /// Ends every replica of an instance up to a generation: asks, or with `force` does not.
    fn stop(&mut self, instance_id: &str, up_to_generation: u64, force: bool);

    /// These instances are there still: what all others had can be released.
    fn keep(&mut self, instances: &BTreeSet<String>);

    /// Measures every replica; the answer is an event.
    fn measure(&mut self, now: Timestamp);

    /// When [`Driver::take`] should be called even if nothing was notified.
    fn due(&self) -> Option<Timestamp>;

    /// What has happened up to now, in order.
    fn take(&mut self, now: Timestamp) -> Vec<Event>;

    /// Notified when there is something to take.
    fn notify(&self) -> Arc<Notify>;

    /// Logs and processes, to be read by others.
    fn journal(&self) -> Arc<Journal>;

    /// Can it go on? An error if what it needs has ended.
    fn check(&self) -> Result<(), Error>;

    /// Ends everything and gives up: asks first, and after the grace does not.
    fn shutdown(self: Box<Self>, grace_ms: u64);
}

/// Why a driver cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A process of an earlier agent would not end.
    #[error("{0} processes of an earlier agent of this cluster do not end, first pid {1}")]
    Sweep(usize, i32),
    /// Workloads can have neither users nor folders of their own.
    #[error("prepare users and folders of workloads")]
    Users(#[from] users::Error),
    /// `/proc` could not be read.
    #[error("read the process table")]
    ProcessTable(#[source] std::io::Error),
    /// The supervising thread could not be started.
    #[error("start the supervising thread")]
    Thread(#[source] std::io::Error),
    /// The supervising thread has ended.
    #[error("the supervising thread has ended")]
    Ended,
}
