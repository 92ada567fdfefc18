//! The host: CPU, memory, disks, network, pressure, temperature. The entity is the node, by its name in telemetry keys:
//! several agents with one node's name say the same of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use mesh_proto::Timestamp;
use procfs::{DiskStats, FromRead, LoadAverage, Meminfo, ProcError, Uptime, net::InterfaceDeviceStatus};

use super::{Entity, Probe, Reading, Roots, Value, number, text};
use crate::domain::measure::{catalog, kernel};

/// Bytes of a sector in `/proc/diskstats`, whatever the disk's own.
const SECTOR_BYTES: u64 = 512;
/// Disks, interfaces and sensors that are read, each.
const DEVICES_MAX: usize = 256;
/// Devices that hold nothing of their own.
const NO_DISKS: [&str; 4] = ["loop", "ram", "zram", "fd"];

/// What of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Time of each logical CPU, load, processes.
    Cpu,
    /// Memory and swap.
    Memory,
    /// Whole disks.
    Disk,
    /// Interfaces.
    Network,
    /// Pressure stall information.
    Pressure,
    /// Sensors.
    Temperature,
}

impl What {
    /// All.
    pub const ALL: [Self; 6] = [Self::Cpu, Self::Memory, Self::Disk, Self::Network, Self::Pressure, Self::Temperature];
}

/// Reads one part of the host.
pub struct Host {
    what: What,
    node: String,
    roots: Roots,
    before: Option<kernel::Stat>,
}

fn explained(path: &Path, error: &ProcError) -> String {
    format!("read {}: {error}", path.display())
}

impl Host {
    /// Of the node of this name.
    pub fn new(what: What, node: &str, roots: Roots) -> Self {
        Self { what, node: node.to_owned(), roots, before: None }
    }

    fn parsed<T: FromRead>(&self, file: &str) -> Result<T, String> {
        let path = self.roots.proc.join(file);
        T::from_file(&path).map_err(|error| explained(&path, &error))
    }

    /// What it reads now.
    ///
    /// # Errors
    /// With the file and why it could not be read.
    pub fn look(&mut self) -> Result<Vec<Value>, String> {
        match self.what {
            What::Cpu => self.cpu(),
            What::Memory => self.memory(),
            What::Disk => self.disks(),
            What::Network => self.network(),
            What::Pressure => self.pressure(),
            What::Temperature => self.temperature(),
        }
    }

    fn cpu(&mut self) -> Result<Vec<Value>, String> {
        let path = self.roots.proc.join("stat");
        let stat = kernel::stat(&text(&path)?).map_err(|why| format!("read {}: {why}", path.display()))?;
        let load: LoadAverage = self.parsed("loadavg")?;
        let uptime: Uptime = self.parsed("uptime")?;
        let per_s = procfs::ticks_per_second().max(1) as f64;
        let mut values = vec![
            catalog::CPU_COUNT.value(stat.cpus.len() as f64, &[]),
            catalog::LOAD_1M.value(f64::from(load.one), &[]),
            catalog::LOAD_5M.value(f64::from(load.five), &[]),
            catalog::LOAD_15M.value(f64::from(load.fifteen), &[]),
            catalog::CONTEXT_SWITCHES.value(stat.context_switches as f64, &[]),
            catalog::PROCESS_CREATED.value(stat.created as f64, &[]),
            catalog::PROCESS_COUNT.value(stat.running as f64, &["running"]),
            catalog::PROCESS_COUNT.value(stat.blocked as f64, &["blocked"]),
            catalog::UPTIME.value(uptime.uptime, &[]),
        ];
        for (cpu, ticks) in &stat.cpus {
            let cpu = cpu.to_string();
            for (mode, ticks) in kernel::CPU_MODES.iter().zip(ticks) {
                values.push(catalog::CPU_TIME.value(*ticks as f64 / per_s, &[&cpu, mode]));
            }
        }
        if let Some(before) = &self.before {
            let pairs = || stat.cpus.iter().filter_map(|(cpu, now)| Some((*cpu, before.cpus.get(cpu)?, now)));
            for (cpu, before, now) in pairs() {
                if let Some(busy) = kernel::busy([(before, now)]) {
                    values.push(catalog::CPU_UTILIZATION.value(busy, &[&cpu.to_string()]));
                }
            }
            if let Some(busy) = kernel::busy(pairs().map(|(_, before, now)| (before, now))) {
                values.push(catalog::CPU_BUSY.value(busy, &[]));
            }
        }
        self.before = Some(stat);
        Ok(values)
    }

    fn memory(&self) -> Result<Vec<Value>, String> {
        let memory: Meminfo = self.parsed("meminfo")?;
        let limit = memory.mem_total;
        // Before Linux 3.14 the kernel did not say what is available.
        let available = memory.mem_available.unwrap_or(memory.mem_free + memory.buffers + memory.cached).min(limit);
        let used = limit - available;
        let mut values = vec![
            catalog::MEMORY_USAGE.value(used as f64, &["used"]),
            catalog::MEMORY_USAGE.value(memory.mem_free as f64, &["free"]),
            catalog::MEMORY_USAGE.value(memory.cached as f64, &["cached"]),
            catalog::MEMORY_USAGE.value(memory.buffers as f64, &["buffers"]),
            catalog::MEMORY_LIMIT.value(limit as f64, &[]),
            catalog::MEMORY_AVAILABLE.value(available as f64, &[]),
        ];
        if limit > 0 {
            values.push(catalog::MEMORY_UTILIZATION.value(used as f64 / limit as f64, &[]));
        }
        values.extend(memory.shmem.map(|bytes| catalog::MEMORY_SHARED.value(bytes as f64, &[])));
        let slab = [("reclaimable", memory.s_reclaimable), ("unreclaimable", memory.s_unreclaim)];
        let slab = slab.into_iter().filter_map(|(state, bytes)| Some((state, bytes?)));
        values.extend(slab.map(|(state, bytes)| catalog::MEMORY_SLAB.value(bytes as f64, &[state])));
        if memory.swap_total > 0 {
            let used = memory.swap_total.saturating_sub(memory.swap_free);
            values.push(catalog::PAGING_USAGE.value(used as f64, &["used"]));
            values.push(catalog::PAGING_USAGE.value(memory.swap_free as f64, &["free"]));
        }
        let paging = text(&self.roots.proc.join("vmstat"))?;
        let paging = kernel::pairs(&paging);
        let count = |name: &str| paging.get(name).map(|count| *count as f64);
        if let (Some(all), Some(major)) = (count("pgfault"), count("pgmajfault")) {
            values.push(catalog::PAGING_FAULTS.value(major, &["major"]));
            values.push(catalog::PAGING_FAULTS.value((all - major).max(0.0), &["minor"]));
        }
        values.extend(count("pswpin").map(|pages| catalog::PAGING_OPERATIONS.value(pages, &["in"])));
        values.extend(count("pswpout").map(|pages| catalog::PAGING_OPERATIONS.value(pages, &["out"])));
        values.extend(count("oom_kill").map(|killed| catalog::OOM_KILLS.value(killed, &[])));
        Ok(values)
    }

    fn disks(&self) -> Result<Vec<Value>, String> {
        let DiskStats(disks) = self.parsed("diskstats")?;
        let mut values = vec![];
        let is_disk = |name: &str| {
            let number_follows = |kind: &&str| name.strip_prefix(*kind).is_some_and(|rest| rest.parse::<u32>().is_ok());
            // A partition has no folder here.
            !NO_DISKS.iter().any(number_follows) && self.roots.sys.join("block").join(name.replace('/', "!")).exists()
        };
        for disk in disks.iter().filter(|disk| is_disk(&disk.name)).take(DEVICES_MAX) {
            let name = disk.name.as_str();
            let seconds = |ms: u64| ms as f64 / 1e3;
            values.extend([
                catalog::DISK_IO.value(disk.sectors_read.saturating_mul(SECTOR_BYTES) as f64, &["read", name]),
                catalog::DISK_IO.value(disk.sectors_written.saturating_mul(SECTOR_BYTES) as f64, &["write", name]),
                catalog::DISK_OPERATIONS.value(disk.reads as f64, &["read", name]),
                catalog::DISK_OPERATIONS.value(disk.writes as f64, &["write", name]),
                catalog::DISK_MERGED.value(disk.merged as f64, &["read", name]),
                catalog::DISK_MERGED.value(disk.writes_merged as f64, &["write", name]),
                catalog::DISK_OPERATION_TIME.value(seconds(disk.time_reading), &["read", name]),
                catalog::DISK_OPERATION_TIME.value(seconds(disk.time_writing), &["write", name]),
                catalog::DISK_IO_TIME.value(seconds(disk.time_in_progress), &[name]),
                catalog::DISK_PENDING.value(disk.in_progress as f64, &[name]),
            ]);
        }
        Ok(values)
    }

    fn network(&self) -> Result<Vec<Value>, String> {
        let InterfaceDeviceStatus(interfaces) = self.parsed("net/dev")?;
        let sorted: BTreeMap<_, _> = interfaces.into_iter().collect();
        let mut values = vec![];
        for (name, one) in sorted.iter().take(DEVICES_MAX) {
            let both = [
                ("receive", one.recv_bytes, one.recv_packets, one.recv_errs, one.recv_drop),
                ("transmit", one.sent_bytes, one.sent_packets, one.sent_errs, one.sent_drop),
            ];
            for (direction, bytes, packets, errors, dropped) in both {
                let labels = [name.as_str(), direction];
                values.extend([
                    catalog::NETWORK_IO.value(bytes as f64, &labels),
                    catalog::NETWORK_PACKETS.value(packets as f64, &labels),
                    catalog::NETWORK_ERRORS.value(errors as f64, &labels),
                    catalog::NETWORK_DROPPED.value(dropped as f64, &labels),
                ]);
            }
        }
        Ok(values)
    }

    fn pressure(&self) -> Result<Vec<Value>, String> {
        let mut values = vec![];
        for resource in ["cpu", "memory", "io"] {
            let path = self.roots.proc.join("pressure").join(resource);
            let lines = kernel::pressure(&text(&path)?).map_err(|why| format!("read {}: {why}", path.display()))?;
            for line in lines {
                values.push(catalog::PRESSURE_TIME.value(line.seconds, &[resource, line.stalled]));
                values.push(catalog::PRESSURE_SHARE.value(line.share, &[resource, line.stalled]));
            }
        }
        Ok(values)
    }

    fn temperature(&self) -> Result<Vec<Value>, String> {
        let sensors = sensors(&self.roots.sys);
        let mut failure = None;
        let mut values = vec![];
        for sensor in &sensors {
            // A sensor of a part that sleeps has nothing to say; others do.
            let read = text(&sensor.file).and_then(|text| {
                let milli: i64 =
                    text.trim().parse().map_err(|_| format!("read {}: no number", sensor.file.display()))?;
                Ok(milli as f64 / 1e3)
            });
            match read {
                Ok(celsius) => values.push(catalog::TEMPERATURE.value(celsius, &[&sensor.id, &sensor.name])),
                Err(why) => failure = Some(why),
            }
        }
        match failure.filter(|_| values.is_empty()) {
            Some(why) => Err(why),
            None => Ok(values),
        }
    }

    fn is_there(&self) -> bool {
        match self.what {
            What::Pressure => self.roots.proc.join("pressure").exists(),
            What::Temperature => !sensors(&self.roots.sys).is_empty(),
            _ => true,
        }
    }
}

struct Sensor {
    id: String,
    name: String,
    file: PathBuf,
}

/// Entries of a folder with names that begin so, sorted.
fn entries(folder: &Path, begins: &str) -> BTreeSet<PathBuf> {
    let all = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    all.filter(|entry| entry.file_name().to_string_lossy().starts_with(begins)).map(|entry| entry.path()).collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Temperature sensors: what `hwmon` has, else what the thermal zones have, which say the same in other words.
fn sensors(sys: &Path) -> Vec<Sensor> {
    let trimmed = |path: PathBuf| text(&path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    let mut found = vec![];
    for chip in entries(&sys.join("class/hwmon"), "hwmon") {
        let of = trimmed(chip.join("name")).unwrap_or_else(|| name_of(&chip));
        for file in entries(&chip, "temp") {
            let entry = name_of(&file);
            let Some(sensor) = entry.strip_suffix("_input") else { continue };
            let name =
                trimmed(chip.join(format!("{sensor}_label"))).map_or(of.clone(), |label| format!("{of} {label}"));
            found.push(Sensor { id: format!("{}/{sensor}", name_of(&chip)), name, file });
        }
    }
    if found.is_empty() {
        for zone in entries(&sys.join("class/thermal"), "thermal_zone") {
            let name = trimmed(zone.join("type")).unwrap_or_else(|| name_of(&zone));
            found.push(Sensor { id: name_of(&zone), name, file: zone.join("temp") });
        }
    }
    found.truncate(DEVICES_MAX);
    found
}

impl Probe for Host {
    fn name(&self) -> &'static str {
        match self.what {
            What::Cpu => "cpu",
            What::Memory => "memory",
            What::Disk => "disk",
            What::Network => "network",
            What::Pressure => "pressure",
            What::Temperature => "temperature",
        }
    }

    fn entities(&mut self) -> Vec<Entity> {
        if self.is_there() { vec![Entity::of("node", &self.node)] } else { vec![] }
    }

    fn read(&mut self, due: &[Entity], _now: Timestamp) -> Vec<Reading> {
        due.iter().map(|_| Reading::from(self.look())).collect()
    }
}

/// Errors that a file system keeps of itself; only ext4 does.
pub(super) fn errors_kept(sys: &Path, device: &str) -> Option<u64> {
    let name = fs::canonicalize(device).ok()?;
    number(&sys.join("fs/ext4").join(name.file_name()?).join("errors_count")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(what: What, roots: &Roots) -> Result<Vec<Value>, String> {
        Host::new(what, "n", roots.clone()).look()
    }

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn said(values: &[Value]) -> Vec<(String, f64)> {
        let text = |value: &Value| {
            let labels: Vec<&str> = value.metric.labels.iter().map(|(_, text)| text.as_str()).collect();
            (format!("{} {}", value.metric.name, labels.join(",")).trim_end().to_owned(), value.value)
        };
        values.iter().map(text).collect()
    }

    #[test]
    fn this_host_says_all_that_its_kernel_has() {
        let roots = Roots::default();
        for what in [What::Cpu, What::Memory, What::Network] {
            let values = look(what, &roots).unwrap();
            assert!(values.len() > 5 && values.iter().all(|v| v.value.is_finite()), "{what:?}");
        }
        let mut cpu = Host::new(What::Cpu, "n", roots);
        let first = cpu.look().unwrap();
        assert!(first.iter().all(|v| v.metric.name != "system.cpu.busy"), "nothing to compare with yet");
    }

    #[test]
    fn what_cannot_be_read_is_a_failure_and_no_zero() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { proc: dir.path().join("proc"), sys: dir.path().join("sys") };
        for what in [What::Cpu, What::Memory, What::Disk, What::Network, What::Pressure] {
            let why = look(what, &roots).unwrap_err();
            assert!(why.contains("read ") && why.contains("proc"), "{why}");
        }
        write(roots.proc.join("meminfo"), "MemTotal: lots\n");
        write(roots.proc.join("net/dev"), "a\nb\n eth0: 1 2\n");
        write(roots.proc.join("diskstats"), "8 0 sda x\n");
        for what in [What::Memory, What::Disk, What::Network] {
            assert!(look(what, &roots).is_err(), "{what:?}");
        }
        assert!(Host::new(What::Temperature, "n", roots.clone()).entities().is_empty(), "no sensors, no failure");
        assert!(Host::new(What::Pressure, "n", roots).entities().is_empty());
    }

    #[test]
    fn disks_are_whole_and_sensors_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { proc: dir.path().join("proc"), sys: dir.path().join("sys") };
        let line = |name: &str| format!("8 0 {name} 10 1 4 20 30 3 8 40 5 6000 7 0 0 0 0 0 0\n");
        write(roots.proc.join("diskstats"), &[line("sda"), line("sda1"), line("loop0"), line("zram0")].concat());
        for name in ["sda", "loop0", "zram0"] {
            fs::create_dir_all(roots.sys.join("block").join(name)).unwrap();
        }
        let values = said(&look(What::Disk, &roots).unwrap());
        assert_eq!(values.len(), 10, "{values:?}");
        for (name, value) in
            [("io read,sda", 2_048.0), ("io write,sda", 4_096.0), ("operations read,sda", 10.0), ("io_time sda", 6.0)]
        {
            assert!(values.contains(&(format!("system.disk.{name}"), value)), "{name} {values:?}");
        }
        write(roots.sys.join("class/thermal/thermal_zone0/temp"), "41000\n");
        write(roots.sys.join("class/thermal/thermal_zone0/type"), "x86_pkg_temp\n");
        assert_eq!(
            said(&look(What::Temperature, &roots).unwrap()),
            [("hw.temperature thermal_zone0,x86_pkg_temp".into(), 41.0)]
        );
        write(roots.sys.join("class/hwmon/hwmon1/name"), "coretemp\n");
        write(roots.sys.join("class/hwmon/hwmon1/temp1_input"), "-500\n");
        write(roots.sys.join("class/hwmon/hwmon1/temp1_label"), "Core 0\n");
        write(roots.sys.join("class/hwmon/hwmon1/temp2_input"), "no\n");
        let values = said(&look(What::Temperature, &roots).unwrap());
        assert_eq!(values, [("hw.temperature hwmon1/temp1,coretemp Core 0".into(), -0.5)], "one sleeps");
        write(roots.sys.join("class/hwmon/hwmon1/temp1_input"), "no\n");
        assert!(look(What::Temperature, &roots).is_err());
    }
}
