//! Every metric that an agent's own probes give: name, unit, kind, labels, and where it comes from.
//!
//! Names are those of OpenTelemetry's semantic conventions where they have one, and in their manner elsewhere. The table in
//! `docs/reference/metrics.md` is made of this.

use std::{borrow::Cow, fmt::Write as _};

use mesh_proto::telemetry::{MetricKind, Provenance};

use super::{Metric, Value};

/// A metric of a probe.
#[derive(Debug)]
pub struct Def {
    /// Kind of its entities.
    pub entity: &'static str,
    /// Its probe.
    pub probe: &'static str,
    /// Its name.
    pub name: &'static str,
    /// In UCUM.
    pub unit: &'static str,
    /// How its values are read.
    pub kind: MetricKind,
    /// Names of its labels, sorted.
    pub labels: &'static [&'static str],
    /// Does the rate of an adaptive probe follow it?
    pub leads: bool,
    /// Where it comes from.
    pub origin: &'static str,
}

impl Def {
    /// A value with its labels, in the order of their names.
    pub fn value(&self, value: f64, labels: &[&str]) -> Value {
        debug_assert_eq!(labels.len(), self.labels.len(), "{}", self.name);
        let labels = self.labels.iter().zip(labels).map(|(name, text)| (Cow::Borrowed(*name), (*text).to_owned()));
        Value {
            metric: Metric {
                name: Cow::Borrowed(self.name),
                unit: Cow::Borrowed(self.unit),
                kind: self.kind,
                labels: labels.collect(),
                provenance: Provenance::Measured,
                leads: self.leads,
            },
            value,
            at: None,
        }
    }
}

macro_rules! metrics {
    ($($id:ident = $entity:literal $probe:literal $name:literal $unit:literal $kind:ident $leads:literal [$($label:literal),*] $origin:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "` in `", $unit, "`: ", $origin, ".")]
            pub static $id: Def = Def {
                entity: $entity,
                probe: $probe,
                name: $name,
                unit: $unit,
                kind: MetricKind::$kind,
                labels: &[$($label),*],
                leads: $leads,
                origin: $origin,
            };
        )*
        /// Every metric, by probe.
        pub static ALL: &[&Def] = &[$(&$id),*];
    };
}

metrics! {
    CPU_TIME = "node" "cpu" "system.cpu.time" "s" Counter false ["cpu.logical_number", "cpu.mode"] "`/proc/stat`";
    CPU_UTILIZATION = "node" "cpu" "system.cpu.utilization" "1" Gauge false ["cpu.logical_number"] "`/proc/stat`: share of the time since the reading before that was neither idle nor waiting for I/O";
    CPU_BUSY = "node" "cpu" "system.cpu.busy" "1" Gauge true [] "as `system.cpu.utilization`, all logical CPUs together";
    CPU_COUNT = "node" "cpu" "system.cpu.logical.count" "{cpu}" Gauge false [] "`/proc/stat`";
    LOAD_1M = "node" "cpu" "system.cpu.load_average.1m" "{thread}" Gauge false [] "`/proc/loadavg`";
    LOAD_5M = "node" "cpu" "system.cpu.load_average.5m" "{thread}" Gauge false [] "`/proc/loadavg`";
    LOAD_15M = "node" "cpu" "system.cpu.load_average.15m" "{thread}" Gauge false [] "`/proc/loadavg`";
    CONTEXT_SWITCHES = "node" "cpu" "system.linux.context_switches" "{context_switch}" Counter false [] "`/proc/stat`";
    PROCESS_CREATED = "node" "cpu" "system.process.created" "{process}" Counter false [] "`/proc/stat`";
    PROCESS_COUNT = "node" "cpu" "system.process.count" "{process}" Gauge false ["process.state"] "`/proc/stat`: `running` and `blocked`";
    UPTIME = "node" "cpu" "system.uptime" "s" Gauge false [] "`/proc/uptime`";

    MEMORY_USAGE = "node" "memory" "system.memory.usage" "By" Gauge false ["system.memory.state"] "`/proc/meminfo`; `used` is what is not available, of which some is also `cached` or `buffers`";
    MEMORY_LIMIT = "node" "memory" "system.memory.limit" "By" Gauge false [] "`/proc/meminfo`";
    MEMORY_UTILIZATION = "node" "memory" "system.memory.utilization" "1" Gauge true [] "`/proc/meminfo`: share that is not available";
    MEMORY_AVAILABLE = "node" "memory" "system.memory.linux.available" "By" Gauge false [] "`/proc/meminfo`";
    MEMORY_SHARED = "node" "memory" "system.memory.linux.shared" "By" Gauge false [] "`/proc/meminfo`";
    MEMORY_SLAB = "node" "memory" "system.memory.linux.slab.usage" "By" Gauge false ["system.memory.linux.slab.state"] "`/proc/meminfo`";
    PAGING_USAGE = "node" "memory" "system.paging.usage" "By" Gauge false ["system.paging.state"] "`/proc/meminfo`: swap; none where there is no swap";
    PAGING_FAULTS = "node" "memory" "system.paging.faults" "{fault}" Counter false ["system.paging.type"] "`/proc/vmstat`";
    PAGING_OPERATIONS = "node" "memory" "system.paging.operations" "{operation}" Counter false ["system.paging.direction"] "`/proc/vmstat`: pages swapped";
    OOM_KILLS = "node" "memory" "system.linux.memory.oom_kills" "{process}" Counter false [] "`/proc/vmstat`";

    DISK_IO = "node" "disk" "system.disk.io" "By" Counter true ["disk.io.direction", "system.device"] "`/proc/diskstats`, whole disks";
    DISK_OPERATIONS = "node" "disk" "system.disk.operations" "{operation}" Counter false ["disk.io.direction", "system.device"] "`/proc/diskstats`";
    DISK_MERGED = "node" "disk" "system.disk.merged" "{operation}" Counter false ["disk.io.direction", "system.device"] "`/proc/diskstats`";
    DISK_OPERATION_TIME = "node" "disk" "system.disk.operation_time" "s" Counter false ["disk.io.direction", "system.device"] "`/proc/diskstats`";
    DISK_IO_TIME = "node" "disk" "system.disk.io_time" "s" Counter false ["system.device"] "`/proc/diskstats`";
    DISK_PENDING = "node" "disk" "system.disk.pending_operations" "{operation}" Gauge false ["system.device"] "`/proc/diskstats`";

    NETWORK_IO = "node" "network" "system.network.io" "By" Counter true ["network.interface.name", "network.io.direction"] "`/proc/net/dev`";
    NETWORK_PACKETS = "node" "network" "system.network.packet.count" "{packet}" Counter false ["network.interface.name", "network.io.direction"] "`/proc/net/dev`";
    NETWORK_ERRORS = "node" "network" "system.network.errors" "{error}" Counter false ["network.interface.name", "network.io.direction"] "`/proc/net/dev`";
    NETWORK_DROPPED = "node" "network" "system.network.packet.dropped" "{packet}" Counter false ["network.interface.name", "network.io.direction"] "`/proc/net/dev`";

    PRESSURE_TIME = "node" "pressure" "system.linux.pressure.time" "s" Counter false ["system.linux.pressure.resource", "system.linux.pressure.stalled"] "`/proc/pressure`: `some` or `full`, what waited";
    PRESSURE_SHARE = "node" "pressure" "system.linux.pressure.share" "1" Gauge true ["system.linux.pressure.resource", "system.linux.pressure.stalled"] "`/proc/pressure`: share of the last 10 s";

    TEMPERATURE = "node" "temperature" "hw.temperature" "Cel" Gauge true ["hw.id", "hw.name"] "`/sys/class/hwmon`, else `/sys/class/thermal`";

    FILESYSTEM_USAGE = "storage" "storage" "system.filesystem.usage" "By" Gauge false ["system.filesystem.state"] "`statvfs`: `free` is what anybody may write, `used` the rest of the limit, with what is kept for root";
    FILESYSTEM_LIMIT = "storage" "storage" "system.filesystem.limit" "By" Gauge false [] "`statvfs`";
    FILESYSTEM_UTILIZATION = "storage" "storage" "system.filesystem.utilization" "1" Gauge true [] "`statvfs`: share used";
    FILESYSTEM_RESERVED = "storage" "storage" "system.filesystem.linux.reserved" "By" Gauge false [] "`statvfs`: kept for root";
    FILESYSTEM_INODES = "storage" "storage" "system.filesystem.linux.inodes" "{inode}" Gauge false ["system.filesystem.state"] "`statvfs`";
    FILESYSTEM_READ_ONLY = "storage" "storage" "system.filesystem.linux.read_only" "1" Gauge false [] "`statvfs`: 1 if nothing can be written";
    FILESYSTEM_ERRORS = "storage" "storage" "system.filesystem.errors" "{error}" Counter false ["error.source"] "`kernel`: what ext4 keeps in the file system (`/sys/fs/ext4`); `probe`: readings that failed since the agent started";

    PROCESS_CPU = "instance" "process" "process.cpu.time" "s" Counter true ["cpu.mode"] "`/proc/<pid>/stat` of all its processes, those that ended included";
    PROCESS_MEMORY = "instance" "process" "process.memory.usage" "By" Gauge true [] "`/proc/<pid>/stat`: resident";
    PROCESS_VIRTUAL = "instance" "process" "process.memory.virtual" "By" Gauge false [] "`/proc/<pid>/stat`";
    PROCESS_THREADS = "instance" "process" "process.thread.count" "{thread}" Gauge false [] "`/proc/<pid>/stat`";
    PROCESS_FILES = "instance" "process" "process.unix.file_descriptor.count" "{file_descriptor}" Gauge false [] "`/proc/<pid>/fd`";
    PROCESS_FAULTS = "instance" "process" "process.paging.faults" "{fault}" Counter false ["system.paging.type"] "`/proc/<pid>/stat`";
    PROCESS_IO = "instance" "process" "process.disk.io" "By" Counter false ["disk.io.direction"] "`/proc/<pid>/io`";
    PROCESS_SWITCHES = "instance" "process" "process.context_switches" "{context_switch}" Counter false ["process.context_switch.type"] "`/proc/<pid>/status`";
    PROCESS_NUMBER = "instance" "process" "process.count" "{process}" Gauge false [] "its processes";
    PROCESS_UPTIME = "instance" "process" "process.uptime" "s" Gauge false [] "`/proc/<pid>/stat`: of its oldest process";

    CGROUP_CPU = "instance" "cgroup" "container.cpu.time" "s" Counter true ["cpu.mode"] "`cpu.stat` (v2), `cpuacct.stat` (v1)";
    CGROUP_CPU_TOTAL = "instance" "cgroup" "container.cpu.usage_time" "s" Counter false [] "`cpu.stat` (v2), `cpuacct.usage` (v1)";
    CGROUP_PERIODS = "instance" "cgroup" "container.cpu.periods" "{period}" Counter false [] "`cpu.stat`: periods with something to run";
    CGROUP_THROTTLED = "instance" "cgroup" "container.cpu.throttled.periods" "{period}" Counter false [] "`cpu.stat`";
    CGROUP_THROTTLED_TIME = "instance" "cgroup" "container.cpu.throttled.time" "s" Counter false [] "`cpu.stat`";
    CGROUP_MEMORY = "instance" "cgroup" "container.memory.usage" "By" Gauge true [] "`memory.current` (v2), `memory.usage_in_bytes` (v1)";
    CGROUP_MEMORY_PEAK = "instance" "cgroup" "container.memory.peak" "By" Gauge false [] "`memory.peak` (v2), `memory.max_usage_in_bytes` (v1)";
    CGROUP_MEMORY_PARTS = "instance" "cgroup" "container.memory.part" "By" Gauge false ["container.memory.state"] "`memory.stat`: `anon`, `file`, `kernel`, `shmem`";
    CGROUP_MEMORY_EVENTS = "instance" "cgroup" "container.memory.events" "{event}" Counter false ["container.memory.event"] "`memory.events` (v2): `high`, `max`, `oom`, `oom_kill`; `memory.failcnt` as `max` and `memory.oom_control` (v1)";
    CGROUP_FAULTS = "instance" "cgroup" "container.paging.faults" "{fault}" Counter false ["system.paging.type"] "`memory.stat`";
    CGROUP_SWAP = "instance" "cgroup" "container.memory.swap" "By" Gauge false [] "`memory.swap.current` (v2), `memory.stat` (v1)";
    CGROUP_PIDS = "instance" "cgroup" "container.process.count" "{process}" Gauge false [] "`pids.current`: processes and threads";
    CGROUP_IO = "instance" "cgroup" "container.disk.io" "By" Counter false ["disk.io.direction", "system.device"] "`io.stat` (v2), `blkio.throttle.io_service_bytes` (v1)";
    CGROUP_OPERATIONS = "instance" "cgroup" "container.disk.operations" "{operation}" Counter false ["disk.io.direction", "system.device"] "`io.stat` (v2), `blkio.throttle.io_serviced` (v1)";
    CGROUP_PRESSURE = "instance" "cgroup" "container.linux.pressure.time" "s" Counter false ["system.linux.pressure.resource", "system.linux.pressure.stalled"] "`cpu.pressure`, `memory.pressure`, `io.pressure` (v2)";

    OTLP_REQUESTS = "application" "otlp" "continuum.otlp.request.count" "{request}" Counter false ["outcome"] "OTLP requests of the workload, `accepted` or `refused` as a whole";
    OTLP_POINTS = "application" "otlp" "continuum.otlp.data_point.count" "{data_point}" Counter false ["outcome"] "data points in them, `accepted` or `refused`";
    OTLP_SPANS = "application" "otlp" "continuum.otlp.span.count" "{span}" Counter false ["outcome"] "spans in them, `accepted` (forwarded) or `refused`";

    ENERGY = "node" "energy" "hw.energy" "J" Counter false ["hw.id", "hw.name"] "`/sys/class/powercap`, overflows counted: measured";
    POWER = "node" "energy" "hw.power" "W" Gauge true ["hw.id", "hw.name"] "`/sys/class/powercap`: mean since the reading before: measured";
    CLUSTER_ENERGY = "cluster" "energy" "hw.energy" "J" Counter false ["hw.id", "hw.name"] "where no meter can be read: labels or the tier of the cluster, and its load: modelled";
    CLUSTER_POWER = "cluster" "energy" "hw.power" "W" Gauge true ["hw.id", "hw.name"] "as the cluster's `hw.energy`: modelled";
}

/// The table of all metrics, in Markdown.
pub fn table() -> String {
    let mut text = String::from(
        "| probe | entity | metric | unit | kind | labels | origin |\n| --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for def in ALL {
        let kind = if def.kind == MetricKind::Counter { "counter" } else { "gauge" };
        let labels: Vec<String> = def.labels.iter().map(|label| format!("`{label}`")).collect();
        let _infallible = writeln!(
            text,
            "| `{}` | `{}` | `{}` | `{}` | {kind} | {} | {} |",
            def.probe,
            def.entity,
            def.name,
            def.unit,
            labels.join(", "),
            def.origin
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_metric_is_there_once_with_sorted_labels() {
        let names: BTreeSet<(&str, &str)> = ALL.iter().map(|def| (def.entity, def.name)).collect();
        assert_eq!(names.len(), ALL.len());
        for def in ALL {
            assert!(def.labels.is_sorted() && !def.unit.is_empty() && !def.origin.is_empty(), "{}", def.name);
        }
    }
}
