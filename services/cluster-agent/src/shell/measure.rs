//! Measures what runs beside the samples of instances: the host, storage, energy, processes, control groups, and what
//! workloads say of themselves.
//!
//! - Consumes: `MeasurementSet` and `MeasurementUnset` of its cluster.
//! - Publishes: `Readings` on Zenoh; nothing on the bus.
//!
//! A probe may wait for a disk or a workload: such a one is read in a thread of its own, within a limit, and none waits for
//! it. [`runner`] says when, `domain::measure` decides all else.

pub mod application;
pub mod cgroup;
pub mod control;
pub mod energy;
pub mod host;
pub mod otlp;
pub mod process;
pub mod runner;
pub mod storage;

use std::{
    fs,
    io::Read as _,
    path::Path,
    sync::{Arc, Mutex},
};

use mesh_proto::Timestamp;
use tokio::sync::watch;

pub use runner::Measurer;
pub(crate) use runner::send;

use crate::domain::measure::otlp::Inbox;
pub use crate::domain::measure::{Entity, Reading, Running, Value};
use crate::{
    config::{Config, Kind},
    shell::{driver::Journal, otlp::Door},
};

/// Bytes of a file of the kernel that are read at most.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Reads some entities.
pub trait Probe: Send {
    /// Its name, as settings select it.
    fn name(&self) -> &'static str;

    /// What it can read now. May wait.
    fn entities(&mut self) -> Vec<Entity>;

    /// Reads entities that it named: one reading for each, in their order. May wait.
    fn read(&mut self, due: &[Entity], now: Timestamp) -> Vec<Reading>;
}

/// A probe and how it is used where nothing is set.
pub struct Used {
    /// The probe.
    pub probe: Box<dyn Probe>,
    /// Between two readings, milliseconds.
    pub interval_ms: u32,
    /// Between two looks for what there is to read, milliseconds.
    pub look_ms: u32,
    /// May it wait for a device or a workload?
    pub waits: bool,
}

/// Where the kernel's files are; other folders in tests.
#[derive(Clone, Debug)]
pub struct Roots {
    /// `/proc`.
    pub proc: std::path::PathBuf,
    /// `/sys`.
    pub sys: std::path::PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { proc: "/proc".into(), sys: "/sys".into() }
    }
}

/// Between two looks for storage locations, milliseconds.
const STORAGE_LOOK_MS: u32 = 10_000;
/// Between two looks for instances, milliseconds.
const INSTANCES_LOOK_MS: u32 = 1_000;
/// Between two looks for what seldom changes, milliseconds.
const HOST_LOOK_MS: u32 = 60_000;

/// The probes of an agent.
pub fn probes(
    config: &Config,
    kind: Kind,
    journal: &Arc<Journal>,
    running: &watch::Receiver<Running>,
    received: Option<(Arc<Mutex<Inbox>>, Arc<Door>)>,
) -> Vec<Used> {
    let roots = Roots::default();
    let measures_host = config.measures_host(kind);
    let (fast, slow, scrape) = (config.measure_ms, config.measure_slow_ms, config.measure_scrape_ms);
    let mut all: Vec<Used> = vec![];
    let mut add = |probe: Box<dyn Probe>, interval_ms: u32, look_ms: u32, waits: bool| {
        all.push(Used { probe, interval_ms, look_ms, waits });
    };
    if measures_host {
        for what in host::What::ALL {
            // A sensor may be on a slow bus.
            let is_slow = what == host::What::Temperature;
            let interval_ms = if is_slow { slow } else { fast };
            add(Box::new(host::Host::new(what, config.node(), roots.clone())), interval_ms, HOST_LOOK_MS, is_slow);
        }
        add(Box::new(storage::Storage::mounted(roots.clone())), slow, STORAGE_LOOK_MS, true);
    }
    for (name, folder) in config.folders() {
        add(Box::new(storage::Storage::folder(name, folder, roots.clone())), slow, STORAGE_LOOK_MS, true);
    }
    let meters = measures_host.then(|| roots.clone());
    add(Box::new(energy::Energy::new(config, meters, running.clone())), fast, HOST_LOOK_MS, false);
    if kind == Kind::Process {
        let (journal, running) = (journal.clone(), running.clone());
        let processes = process::Processes::new(journal.clone(), running.clone(), roots);
        add(Box::new(processes), slow, INSTANCES_LOOK_MS, false);
        add(Box::new(cgroup::Groups::new(journal.clone(), running.clone())), slow, INSTANCES_LOOK_MS, false);
        let series_max = config.measure_scrape_series_max as usize;
        let applications = application::Applications::new(journal, running, series_max);
        add(Box::new(applications), scrape, INSTANCES_LOOK_MS, true);
    }
    if let Some((inbox, door)) = received {
        add(Box::new(otlp::Received::new(inbox, door, running.clone())), fast, INSTANCES_LOOK_MS, false);
    }
    all
}

/// The text of a file of the kernel.
fn text(path: &Path) -> Result<String, String> {
    let open = || -> std::io::Result<String> {
        let mut bytes = vec![];
        fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    open().map_err(|error| format!("read {}: {error}", path.display()))
}

/// The number in a file of the kernel.
fn number(path: &Path) -> Result<u64, String> {
    let text = text(path)?;
    text.trim().parse().map_err(|_| format!("read {}: {:?} is not a number", path.display(), text.trim()))
}

/// The number in a file, if it is there and has one.
fn number_if(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
