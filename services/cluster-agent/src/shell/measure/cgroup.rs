//! Control groups of instances, version 1 and 2: CPU and throttling, memory and swap, processes, I/O, pressure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use mesh_proto::Timestamp;
use tokio::sync::watch;

use super::{Entity, Probe, Reading, Running, Value, number_if, process::instances};
use crate::{
    domain::measure::{
        catalog,
        kernel::{self, Moved},
        tally::Tally,
    },
    shell::driver::Journal,
};

/// Groups whose files are known, for each instance, before those that are gone are forgotten.
const FILES_PER_INSTANCE: usize = 32;

/// Reads the groups that the driver has made.
pub struct Groups {
    journal: Arc<Journal>,
    running: watch::Receiver<Running>,
    tallies: BTreeMap<String, Tally<PathBuf>>,
    /// Names of the files of a group, which stay as they are.
    files: BTreeMap<PathBuf, BTreeSet<String>>,
}

impl Groups {
    /// Of an agent whose driver keeps this journal.
    pub fn new(journal: Arc<Journal>, running: watch::Receiver<Running>) -> Self {
        Self { journal, running, tallies: BTreeMap::new(), files: BTreeMap::new() }
    }

    fn look(&mut self, instance: &str) -> Result<Vec<Value>, String> {
        // A replica has a group in each hierarchy; together they are one source.
        let mut replicas: BTreeMap<PathBuf, Vec<Value>> = BTreeMap::new();
        for folder in self.journal.members(instance).unwrap_or_default().groups {
            let files = self.files.entry(folder.clone()).or_insert_with(|| names(&folder));
            let values = look(&folder, files);
            if values.is_empty() {
                // It is gone, or was when it was looked at.
                self.files.remove(&folder);
                continue;
            }
            let replica = folder.file_name().map(PathBuf::from).unwrap_or_default();
            replicas.entry(replica).or_default().extend(values);
        }
        if replicas.is_empty() {
            return Err("its control groups are gone".to_owned());
        }
        Ok(self.tallies.entry(instance.to_owned()).or_default().sum(replicas.into_iter().collect()))
    }
}

impl Probe for Groups {
    fn name(&self) -> &'static str {
        "cgroup"
    }

    fn entities(&mut self) -> Vec<Entity> {
        let journal = self.journal.clone();
        let all = instances(&self.running, "instance", |id, _| journal.has_groups(id));
        let ids: BTreeSet<&str> = all.iter().map(|entity| entity.id.as_str()).collect();
        self.tallies.retain(|instance, _| ids.contains(instance.as_str()));
        // Each instance has a few: they are looked through only once that is far from true.
        if self.files.len() > FILES_PER_INSTANCE * (all.len() + 1) {
            self.files.retain(|folder, _| folder.exists());
        }
        all
    }

    fn read(&mut self, due: &[Entity], _now: Timestamp) -> Vec<Reading> {
        due.iter().map(|entity| Reading::from(self.look(&entity.id))).collect()
    }
}

fn names(folder: &Path) -> BTreeSet<String> {
    let all = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    all.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What one group says, with whatever controllers it has.
fn look(folder: &Path, files: &BTreeSet<String>) -> Vec<Value> {
    let text = |name: &str| files.contains(name).then(|| fs::read_to_string(folder.join(name)).ok()).flatten();
    let number = |name: &str| files.contains(name).then(|| number_if(&folder.join(name))).flatten();
    let is_two = files.contains("cgroup.controllers");
    let mut values = vec![];

    if let Some(text) = text("cpu.stat") {
        let stat = kernel::pairs(&text);
        let micros = |name: &str| stat.get(name).map(|micros| *micros as f64 / 1e6);
        values.extend(micros("usage_usec").map(|s| catalog::CGROUP_CPU_TOTAL.value(s, &[])));
        values.extend(micros("user_usec").map(|s| catalog::CGROUP_CPU.value(s, &["user"])));
        values.extend(micros("system_usec").map(|s| catalog::CGROUP_CPU.value(s, &["system"])));
        let count = |name: &str| stat.get(name).map(|count| *count as f64);
        values.extend(count("nr_periods").map(|n| catalog::CGROUP_PERIODS.value(n, &[])));
        values.extend(count("nr_throttled").map(|n| catalog::CGROUP_THROTTLED.value(n, &[])));
        let throttled = micros("throttled_usec").or_else(|| count("throttled_time").map(|nanos| nanos / 1e9));
        values.extend(throttled.map(|s| catalog::CGROUP_THROTTLED_TIME.value(s, &[])));
    }
    values.extend(number("cpuacct.usage").map(|nanos| catalog::CGROUP_CPU_TOTAL.value(nanos as f64 / 1e9, &[])));
    if let Some(text) = text("cpuacct.stat") {
        let per_s = procfs::ticks_per_second().max(1) as f64;
        let stat = kernel::pairs(&text);
        for mode in ["user", "system"] {
            values.extend(stat.get(mode).map(|ticks| catalog::CGROUP_CPU.value(*ticks as f64 / per_s, &[mode])));
        }
    }

    let bytes = |two: &str, one: &str| if is_two { number(two) } else { number(one) };
    values
        .extend(bytes("memory.current", "memory.usage_in_bytes").map(|b| catalog::CGROUP_MEMORY.value(b as f64, &[])));
    values.extend(
        bytes("memory.peak", "memory.max_usage_in_bytes").map(|b| catalog::CGROUP_MEMORY_PEAK.value(b as f64, &[])),
    );
    if let Some(text) = text("memory.stat") {
        let stat = kernel::pairs(&text);
        let parts: &[(&str, &str)] = if is_two {
            &[("anon", "anon"), ("file", "file"), ("kernel", "kernel"), ("shmem", "shmem")]
        } else {
            &[("anon", "total_rss"), ("file", "total_cache"), ("shmem", "total_shmem")]
        };
        for (state, name) in parts {
            values.extend(stat.get(name).map(|b| catalog::CGROUP_MEMORY_PARTS.value(*b as f64, &[state])));
        }
        let names = if is_two { ["pgfault", "pgmajfault"] } else { ["total_pgfault", "total_pgmajfault"] };
        if let [Some(all), Some(major)] = names.map(|name| stat.get(name)) {
            values.push(catalog::CGROUP_FAULTS.value(*major as f64, &["major"]));
            values.push(catalog::CGROUP_FAULTS.value(all.saturating_sub(*major) as f64, &["minor"]));
        }
        values.extend(stat.get("total_swap").map(|b| catalog::CGROUP_SWAP.value(*b as f64, &[])));
    }
    values.extend(number("memory.swap.current").map(|b| catalog::CGROUP_SWAP.value(b as f64, &[])));
    let event = |name: &str, count: u64| catalog::CGROUP_MEMORY_EVENTS.value(count as f64, &[name]);
    if let Some(text) = text("memory.events") {
        let events = kernel::pairs(&text);
        let said = ["high", "max", "oom", "oom_kill"];
        values.extend(said.iter().filter_map(|name| Some(event(name, *events.get(name)?))));
    }
    values.extend(number("memory.failcnt").map(|count| event("max", count)));
    if let Some(text) = text("memory.oom_control") {
        values.extend(kernel::pairs(&text).get("oom_kill").map(|count| event("oom_kill", *count)));
    }

    values.extend(number("pids.current").map(|count| catalog::CGROUP_PIDS.value(count as f64, &[])));

    let moved: BTreeMap<String, Moved> = match (text("io.stat"), text("blkio.throttle.io_service_bytes")) {
        (Some(two), _) => kernel::io_stat(&two),
        (None, Some(one)) => kernel::blkio(&one, &text("blkio.throttle.io_serviced").unwrap_or_default()),
        (None, None) => BTreeMap::new(),
    };
    for (device, moved) in moved {
        values.extend([
            catalog::CGROUP_IO.value(moved.read_bytes as f64, &["read", &device]),
            catalog::CGROUP_IO.value(moved.written_bytes as f64, &["write", &device]),
            catalog::CGROUP_OPERATIONS.value(moved.reads as f64, &["read", &device]),
            catalog::CGROUP_OPERATIONS.value(moved.writes as f64, &["write", &device]),
        ]);
    }
    for resource in ["cpu", "memory", "io"] {
        let Some(Ok(lines)) = text(&format!("{resource}.pressure")).map(|text| kernel::pressure(&text)) else {
            continue;
        };
        let said = lines.iter().map(|line| catalog::CGROUP_PRESSURE.value(line.seconds, &[resource, line.stalled]));
        values.extend(said);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::measure::Watched, shell::driver::journal::Members};

    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn said(values: &[Value]) -> BTreeMap<String, f64> {
        let name = |value: &Value| {
            let labels: Vec<&str> = value.metric.labels.iter().map(|(_, text)| text.as_str()).collect();
            format!("{} {}", value.metric.name, labels.join(",")).trim_end().to_owned()
        };
        values.iter().map(|value| (name(value), value.value)).collect()
    }

    fn probe(folders: &[&Path]) -> (Groups, Arc<Journal>) {
        let journal = Arc::new(Journal::default());
        let members = Members { pids: vec![], groups: folders.iter().map(|f| (*f).to_owned()).collect() };
        journal.found([("a".to_owned(), members)].into());
        let watched = Watched { owner: "local".into(), scraped: None };
        let running = Running { instances: [("a".to_owned(), watched)].into(), load_milli: 0.0 };
        (Groups::new(journal.clone(), watch::channel(running).1), journal)
    }

    #[test]
    fn version_2_and_version_1_say_the_same_of_a_group() {
        let two = group(&[
            ("cgroup.controllers", "cpu memory\n"),
            (
                "cpu.stat",
                "usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 500000\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.peak", "8192\n"),
            ("memory.stat", "anon 100\nfile 200\nshmem 5\npgfault 12\npgmajfault 2\n"),
            ("memory.swap.current", "7\n"),
            ("memory.events", "low 0\nmax 3\noom_kill 1\n"),
            ("pids.current", "6\n"),
            ("io.stat", "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n"),
        ]);
        let one = group(&[
            ("cpuacct.usage", "3000000000\n"),
            ("cpuacct.stat", "user 200\nsystem 100\n"),
            ("cpu.stat", "nr_periods 9\nnr_throttled 4\nthrottled_time 500000000\n"),
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.max_usage_in_bytes", "8192\n"),
            (
                "memory.stat",
                "cache 1\ntotal_rss 100\ntotal_cache 200\ntotal_shmem 5\ntotal_swap 7\ntotal_pgfault 12\ntotal_pgmajfault 2\n",
            ),
            ("memory.failcnt", "3\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            ("pids.current", "6\n"),
            ("blkio.throttle.io_service_bytes", "254:0 Read 10\n254:0 Write 20\nTotal 30\n"),
            ("blkio.throttle.io_serviced", "254:0 Read 1\n254:0 Write 2\nTotal 3\n"),
        ]);
        let read = |folder: &Path| said(&look(folder, &names(folder)));
        let (two, one) = (read(two.path()), read(one.path()));
        assert_eq!(two, one);
        assert_eq!(two["container.cpu.throttled.time"], 0.5);
        assert_eq!(two["container.disk.operations write,254:0"], 2.0);
        assert_eq!(two["container.memory.events oom_kill"], 1.0);
        assert!(two.len() > 15, "{two:?}");
    }

    #[test]
    fn replicas_add_up_and_what_ended_stays_counted() {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str, nanos: u64| {
            let folder = dir.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cpuacct.usage"), nanos.to_string()).unwrap();
            folder
        };
        let (first, second) = (folder("a.1.0", 1_000_000_000), folder("a.1.1", 2_000_000_000));
        let (mut probe, journal) = probe(&[&first, &second]);
        let entities = probe.entities();
        let mut total = || {
            let read = probe.read(&entities, Timestamp::default()).remove(0);
            (said(&read.values).get("container.cpu.usage_time").copied(), read.failure)
        };
        assert_eq!(total(), (Some(3.0), None));
        fs::remove_dir_all(&first).unwrap();
        folder("a.1.1", 2_500_000_000);
        assert_eq!(total(), (Some(3.5), None));
        fs::remove_dir_all(&second).unwrap();
        assert_eq!(total().0, None);
        assert!(total().1.is_some(), "a failure, and no zero");
        journal.found(BTreeMap::new());
        assert!(probe.entities().is_empty());
    }
}
