//! Limits by control groups: version 2 where its controllers are there, else version 1.
//!
//! Groups are made below the agent's own group only if that is the root of the hierarchy as the agent sees it, or below
//! a parent named in the configuration: a group that something else manages has one writer already, and that is not us.
//! Layout: `<parent>/continuum/<cluster>/<instance>.<generation>.<replica>`; the cluster's group has its declared
//! capacity as limit, a replica's its own. When the machine is busy, clusters share by capacity and replicas by what they
//! ask for; without that, all of them together would count as one process.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use mesh_proto::workload::Resources;

use super::ReplicaId;

/// Length of the period in which a quota is granted.
const PERIOD_US: u64 = 100_000;
/// The kernel grants no less.
const QUOTA_MIN_US: u64 = 1_000;
/// What one process has against others when all want the CPU (version 1); a core asked for counts as one.
const SHARES_PER_CORE: u64 = 1_024;
const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Cpu,
    Memory,
    /// These limit nothing: what a group used is read from them.
    Cpuacct,
    Pids,
    Io,
}

impl Controller {
    fn name(self, version: Version) -> &'static str {
        match (self, version) {
            (Self::Cpu, _) | (Self::Cpuacct, Version::V2) => "cpu",
            (Self::Memory, _) => "memory",
            (Self::Cpuacct, Version::V1) => "cpuacct",
            (Self::Pids, _) => "pids",
            (Self::Io, Version::V1) => "blkio",
            (Self::Io, Version::V2) => "io",
        }
    }
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq)]
struct Mount {
    version: Version,
    /// Controllers named in its options (version 1).
    options: Vec<String>,
    /// The group that is mounted at `point`.
    root: String,
    point: PathBuf,
}

/// One controller's group of this cluster.
#[derive(Clone, Debug)]
struct Hierarchy {
    version: Version,
    controller: Controller,
    folder: PathBuf,
}

/// What may be used, of `/proc/self/mountinfo` and `/proc/self/cgroup`.
#[derive(Clone, Debug, Default)]
pub struct System {
    /// Text of `/proc/self/mountinfo`.
    pub mounts: String,
    /// Text of `/proc/self/cgroup`.
    pub own: String,
    /// Group below which to work, as seen in each hierarchy; else the agent's own where that is the root.
    pub parent: Option<String>,
}

impl System {
    /// As the running kernel says.
    pub fn read(parent: Option<String>) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self { mounts: text("/proc/self/mountinfo"), own: text("/proc/self/cgroup"), parent }
    }

    fn mounts(&self) -> Vec<Mount> {
        self.mounts
            .lines()
            .filter_map(|line| {
                let (left, right) = line.split_once(" - ")?;
                let left: Vec<&str> = left.split(' ').collect();
                let right: Vec<&str> = right.split(' ').collect();
                let version = match *right.first()? {
                    "cgroup2" => Version::V2,
                    "cgroup" => Version::V1,
                    _ => return None,
                };
                Some(Mount {
                    version,
                    options: right.get(2)?.split(',').map(str::to_owned).collect(),
                    root: (*left.get(3)?).to_owned(),
                    point: PathBuf::from(left.get(4)?),
                })
            })
            .collect()
    }

    /// The agent's own group in a hierarchy.
    fn own_group(&self, mount: &Mount) -> Option<&str> {
        self.own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, group) = (parts.next()?, parts.next()?, parts.next()?);
            let mine = match mount.version {
                Version::V2 => controllers.is_empty(),
                Version::V1 => controllers.split(',').any(|c| !c.is_empty() && mount.options.iter().any(|o| o == c)),
            };
            mine.then_some(group)
        })
    }

    /// The folder below which groups may be made, or why there is none.
    fn base(&self, mount: &Mount) -> Result<PathBuf, String> {
        if let Some(parent) = &self.parent {
            return Ok(mount.point.join(parent.trim_matches('/')));
        }
        let own = self.own_group(mount).ok_or("its own group is not known")?;
        let own = own.strip_suffix(&format!("/{LEAF}")).unwrap_or(own);
        let inside = own.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or(own);
        if inside.trim_matches('/').is_empty() {
            Ok(mount.point.clone())
        } else {
            Err(format!("its own group {own} is managed by another; name a parent to use one"))
        }
    }

    fn find(&self, controller: Controller) -> Result<(Version, PathBuf), String> {
        let mounts = self.mounts();
        let unified = mounts.iter().find(|m| {
            let listed = fs::read_to_string(m.point.join("cgroup.controllers")).unwrap_or_default();
            m.version == Version::V2 && listed.split_whitespace().any(|c| c == controller.name(Version::V2))
        });
        let one = controller.name(Version::V1);
        let legacy = || mounts.iter().find(|m| m.version == Version::V1 && m.options.iter().any(|o| o == one));
        let mount = unified.or_else(legacy).ok_or("no hierarchy has it")?;
        Ok((mount.version, self.base(mount)?))
    }
}

/// Where the agent itself goes when version 2 wants its group free of processes.
const LEAF: &str = "continuum-agent";

/// The groups of one cluster.
#[derive(Debug, Default)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    cpu_milli: u32,
    memory_bytes: u64,
    /// Why a controller is not used.
    unused: Vec<String>,
}

impl Cgroups {
    /// Makes the cluster's group with its capacity as limit, per controller as far as that is permitted.
    pub fn open(system: &System, cluster: &str, cpu_milli: u32, memory_bytes: u64) -> Self {
        let mut groups = Self { cpu_milli, memory_bytes, ..Self::default() };
        for controller in [Controller::Cpu, Controller::Memory] {
            let made = system.find(controller).and_then(|(version, base)| {
                let folder = base.join("continuum").join(cluster);
                let hierarchy = Hierarchy { version, controller, folder };
                groups.make(&hierarchy, &base).map(|()| hierarchy).map_err(|e| format!("{}: {e}", base.display()))
            });
            match made {
                Ok(hierarchy) => groups.hierarchies.push(hierarchy),
                Err(reason) => groups.unused.push(format!("{}: {reason}", controller.name(Version::V2))),
            }
        }
        // What is only read may be missing: it is then not measured.
        for controller in [Controller::Cpuacct, Controller::Pids, Controller::Io] {
            let Ok((version, base)) = system.find(controller) else { continue };
            let folder = base.join("continuum").join(cluster);
            let hierarchy = Hierarchy { version, controller, folder };
            let is_known = groups.hierarchies.iter().any(|known| known.folder == hierarchy.folder);
            if is_known {
                // All controllers of version 2 are in one place: this one is handed down as well, if it can be.
                let _not_measured = groups.make(&hierarchy, &base);
            } else if version == Version::V1 && groups.make(&hierarchy, &base).is_ok() {
                groups.hierarchies.push(hierarchy);
            }
        }
        groups
    }

    fn make(&self, hierarchy: &Hierarchy, base: &Path) -> io::Result<()> {
        fs::create_dir_all(&hierarchy.folder)?;
        if hierarchy.version == Version::V2 {
            let continuum = base.join("continuum");
            for folder in [base, continuum.as_path(), hierarchy.folder.as_path()] {
                enable(folder, hierarchy.controller)?;
            }
        }
        match hierarchy.controller {
            Controller::Cpu => {
                let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
                set_shares(hierarchy.version, &base.join("continuum"), cores * 1_000)?;
                set_shares(hierarchy.version, &hierarchy.folder, u64::from(self.cpu_milli))?;
                set_cpu(hierarchy.version, &hierarchy.folder, u64::from(self.cpu_milli))
            }
            Controller::Memory => set_memory(hierarchy.version, &hierarchy.folder, self.memory_bytes),
            Controller::Cpuacct | Controller::Pids | Controller::Io => Ok(()),
        }
    }

    fn has(&self, controller: Controller) -> Option<Version> {
        self.hierarchies.iter().find(|h| h.controller == controller).map(|h| h.version)
    }

    /// Is memory limited by a control group?
    pub fn limits_memory(&self) -> bool {
        self.has(Controller::Memory).is_some()
    }

    /// `cgroup-v2`, `cgroup-v1` or `rlimit`; where CPU and memory differ, each is named.
    ///
    /// `rlimit` limits the data of each process (`RLIMIT_DATA`), not the CPU: there is no such limit on a rate.
    pub fn enforcement(&self) -> String {
        let name = |version| match version {
            Version::V1 => "cgroup-v1",
            Version::V2 => "cgroup-v2",
        };
        match (self.has(Controller::Cpu), self.has(Controller::Memory)) {
            (Some(cpu), Some(memory)) if cpu == memory => name(cpu).to_owned(),
            (Some(cpu), Some(memory)) => format!("{} cpu, {} memory", name(cpu), name(memory)),
            (Some(cpu), None) => format!("{} cpu, rlimit memory", name(cpu)),
            (None, Some(memory)) => format!("{} memory", name(memory)),
            (None, None) => "rlimit".to_owned(),
        }
    }

    /// Why controllers are not used; empty if all are.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// Makes a replica's group with its limits, and opens what its process writes itself into.
    pub fn create(&self, id: &ReplicaId, resources: &Resources) -> io::Result<(Cgroup, Vec<fs::File>)> {
        let mut group = Cgroup::default();
        let mut doors = vec![];
        for hierarchy in &self.hierarchies {
            let folder = hierarchy.folder.join(id.to_string());
            if !group.folders.contains(&folder) {
                fs::create_dir_all(&folder)?;
                doors.push(fs::File::create(folder.join("cgroup.procs"))?);
                group.folders.push(folder.clone());
            }
            match hierarchy.controller {
                Controller::Cpu => {
                    set_shares(hierarchy.version, &folder, u64::from(resources.cpu_milli))?;
                    if resources.cpu_limit_milli > 0 {
                        // A part may not be granted more than the whole.
                        let limit = resources.cpu_limit_milli.min(self.cpu_milli);
                        set_cpu(hierarchy.version, &folder, u64::from(limit))?;
                    }
                }
                Controller::Memory if resources.memory_limit_bytes > 0 => {
                    set_memory(hierarchy.version, &folder, resources.memory_limit_bytes.min(self.memory_bytes))?;
                }
                _ => {}
            }
        }
        Ok((group, doors))
    }

    /// Groups that an earlier agent left.
    pub fn leftovers(&self) -> Vec<Cgroup> {
        let folders = self.hierarchies.iter().flat_map(|h| fs::read_dir(&h.folder).into_iter().flatten());
        folders
            .filter_map(|entry| Some(entry.ok()?.path()).filter(|path| path.is_dir()))
            .map(|folder| Cgroup { folders: vec![folder] })
            .collect()
    }

    /// Removes the cluster's groups, and the common one if no other cluster has one.
    pub fn remove(&self) {
        for hierarchy in &self.hierarchies {
            let _in_use = fs::remove_dir(&hierarchy.folder);
            if let Some(continuum) = hierarchy.folder.parent() {
                let _in_use = fs::remove_dir(continuum);
            }
        }
    }
}

/// One replica's groups.
#[derive(Debug, Default)]
pub struct Cgroup {
    folders: Vec<PathBuf>,
}

impl Cgroup {
    /// Its folder in each hierarchy.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Processes inside. They are in all groups or in none, so one of them is asked; whoever left it is found by its mark.
    pub fn pids(&self) -> Vec<i32> {
        let text = self.folders.first().and_then(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok());
        text.iter().flat_map(|text| text.lines()).filter_map(|line| line.parse().ok()).collect()
    }

    /// Removes them. `false` if one is still in use.
    pub fn remove(&self) -> bool {
        let mut gone = true;
        for folder in &self.folders {
            gone &= fs::remove_dir(folder).is_ok() || !folder.exists();
        }
        gone
    }
}

/// Hands a controller down to the groups below (version 2).
fn enable(folder: &Path, controller: Controller) -> io::Result<()> {
    let file = folder.join("cgroup.subtree_control");
    let listed = fs::read_to_string(&file).unwrap_or_default();
    let name = controller.name(Version::V2);
    if listed.split_whitespace().any(|c| c == name) {
        return Ok(());
    }
    let text = format!("+{name}");
    match fs::write(&file, &text) {
        // Only the root may hold processes beside groups with limits. If we are its only process, we step aside.
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
            let own = std::process::id().to_string();
            let inside = fs::read_to_string(folder.join("cgroup.procs"))?;
            if inside.lines().any(|pid| pid != own) {
                return Err(e);
            }
            fs::create_dir_all(folder.join(LEAF))?;
            fs::write(folder.join(LEAF).join("cgroup.procs"), own)?;
            fs::write(&file, &text)
        }
        done => done,
    }
}

fn set_cpu(version: Version, folder: &Path, cpu_milli: u64) -> io::Result<()> {
    let quota_us = (cpu_milli * PERIOD_US / 1_000).max(QUOTA_MIN_US);
    match version {
        Version::V2 => fs::write(folder.join("cpu.max"), format!("{quota_us} {PERIOD_US}")),
        Version::V1 => {
            fs::write(folder.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
            fs::write(folder.join("cpu.cfs_quota_us"), quota_us.to_string())
        }
    }
}

/// What it gets against its neighbours when all want the CPU, in proportion to thousandths of a core.
fn set_shares(version: Version, folder: &Path, cpu_milli: u64) -> io::Result<()> {
    let shares = (cpu_milli * SHARES_PER_CORE / 1_000).clamp(SHARES_MIN, SHARES_MAX);
    match version {
        // The kernel's own range, 1 to 10,000, laid over that of version 1.
        Version::V2 => {
            let weight = 1 + (shares - SHARES_MIN) * 9_999 / (SHARES_MAX - SHARES_MIN);
            fs::write(folder.join("cpu.weight"), weight.to_string())
        }
        Version::V1 => fs::write(folder.join("cpu.shares"), shares.to_string()),
    }
}

fn set_memory(version: Version, folder: &Path, bytes: u64) -> io::Result<()> {
    match version {
        Version::V2 => {
            fs::write(folder.join("memory.max"), bytes.to_string())?;
            // Without swap there is no such file, and nothing to forbid.
            let swap = folder.join("memory.swap.max");
            if swap.exists() { fs::write(swap, "0") } else { Ok(()) }
        }
        Version::V1 => fs::write(folder.join("memory.limit_in_bytes"), bytes.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mountinfo(lines: &[(&str, &Path, &str, &str)]) -> String {
        let line = |(root, point, kind, options): &(&str, &Path, &str, &str)| {
            format!("30 20 0:26 {root} {} rw,relatime - {kind} cgroup rw,{options}\n", point.display())
        };
        lines.iter().map(line).collect()
    }

    fn id() -> ReplicaId {
        ReplicaId { instance_id: "a".into(), generation: 2, replica: 0 }
    }

    fn read(path: PathBuf) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn version_1_limits_the_cluster_and_no_replica_gets_more_than_it() {
        let dir = tempfile::tempdir().unwrap();
        let (cpu, memory) = (dir.path().join("cpu"), dir.path().join("memory"));
        let system = System {
            mounts: mountinfo(&[("/", &cpu, "cgroup", "cpu,cpuacct"), ("/", &memory, "cgroup", "memory")]),
            own: "4:memory:/\n1:cpu,cpuacct:/\n0::/\n".into(),
            parent: None,
        };
        let groups = Cgroups::open(&system, "edge", 2_000, 1_000);
        assert_eq!(groups.enforcement(), "cgroup-v1");
        assert_eq!(read(cpu.join("continuum/edge/cpu.cfs_quota_us")), "200000");
        assert_eq!(read(memory.join("continuum/edge/memory.limit_in_bytes")), "1000");
        assert_eq!(read(cpu.join("continuum/edge/cpu.shares")), "2048");
        let resources = Resources { cpu_milli: 500, cpu_limit_milli: 5_000, memory_limit_bytes: 10, memory_bytes: 1 };
        let (_, doors) = groups.create(&id(), &resources).unwrap();
        assert_eq!(doors.len(), 2);
        assert_eq!(read(cpu.join("continuum/edge/a.2.0/cpu.cfs_quota_us")), "200000");
        assert_eq!(read(cpu.join("continuum/edge/a.2.0/cpu.shares")), "512");
        assert_eq!(read(memory.join("continuum/edge/a.2.0/memory.limit_in_bytes")), "10");
        assert_eq!(groups.leftovers().len(), 2);
    }

    #[test]
    fn version_2_hands_its_controllers_down_and_is_preferred() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        let system = System {
            mounts: mountinfo(&[("/pod", dir.path(), "cgroup2", "x"), ("/", Path::new("/nowhere"), "cgroup", "cpu")]),
            own: "0::/pod\n".into(),
            parent: None,
        };
        let groups = Cgroups::open(&system, "edge", 500, 1_000);
        assert_eq!(groups.enforcement(), "cgroup-v2", "{:?}", groups.unused());
        assert_eq!(read(dir.path().join("continuum/edge/cpu.max")), "50000 100000");
        let (_, doors) = groups.create(&id(), &Resources { cpu_limit_milli: 1, ..Default::default() }).unwrap();
        assert_eq!(doors.len(), 1, "both controllers share one group");
        assert_eq!(read(dir.path().join("continuum/edge/a.2.0/cpu.max")), "1000 100000");
    }

    #[test]
    fn what_only_measures_has_groups_beside_those_that_limit() {
        let dir = tempfile::tempdir().unwrap();
        let point = |name: &str| dir.path().join(name);
        let (cpu, cpuacct, pids, blkio) = (point("cpu"), point("cpuacct"), point("pids"), point("blkio"));
        let system = System {
            mounts: mountinfo(&[
                ("/", &cpu, "cgroup", "cpu"),
                ("/", &cpuacct, "cgroup", "cpuacct"),
                ("/", &pids, "cgroup", "pids"),
                ("/", &blkio, "cgroup", "blkio"),
            ]),
            own: "4:blkio:/managed\n3:pids:/\n2:cpuacct:/\n1:cpu:/\n".into(),
            parent: None,
        };
        let groups = Cgroups::open(&system, "edge", 500, 1_000);
        let (group, doors) = groups.create(&id(), &Resources::default()).unwrap();
        let made = |point: &Path| group.folders().contains(&point.join("continuum/edge/a.2.0"));
        assert!(made(&cpu) && made(&cpuacct) && made(&pids) && !made(&blkio), "{:?}", group.folders());
        assert_eq!(doors.len(), 3);
        assert_eq!(groups.enforcement(), "cgroup-v1 cpu, rlimit memory");
    }

    #[test]
    fn a_group_that_another_manages_is_left_alone_unless_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut system = System {
            mounts: mountinfo(&[("/", dir.path(), "cgroup", "memory")]),
            own: "4:memory:/managed/x\n".into(),
            parent: None,
        };
        let groups = Cgroups::open(&system, "edge", 500, 1_000);
        assert_eq!(groups.enforcement(), "rlimit");
        assert!(groups.unused().iter().any(|reason| reason.contains("/managed/x")), "{:?}", groups.unused());
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
        system.parent = Some("/managed/x".into());
        assert_eq!(Cgroups::open(&system, "edge", 500, 1_000).enforcement(), "cgroup-v1 memory");
        assert!(dir.path().join("managed/x/continuum/edge").is_dir());
    }
}
