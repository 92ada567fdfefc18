//! The process driver against real processes.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use cluster_agent::driver::{
    Driver, Event, Fails, Reading, ReplicaId, ReplicaSpec,
    cgroup::System,
    process::{Options, ProcessDriver},
    users,
};
use mesh_proto::{
    Timestamp,
    workload::{ProcessSpec, Resources},
};

const LIMIT: Duration = Duration::from_secs(30);

fn now() -> Timestamp {
    Timestamp::from_nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i128)
}

/// Looks until it is so.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn id(replica: u32) -> ReplicaId {
    ReplicaId { instance_id: "a".into(), generation: 1, replica }
}

fn shell(script: &str) -> ReplicaSpec {
    ReplicaSpec {
        id: id(0),
        owner: "local".into(),
        workload: "w".into(),
        process: ProcessSpec {
            command: "sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: BTreeMap::new(),
        },
        resources: Resources::default(),
    }
}

/// A driver with a cluster of its own.
struct Bench {
    driver: ProcessDriver,
    options: Options,
    kept: Vec<Event>,
    // After the driver, whose processes have ended then.
    _folder: Folder,
}

/// Removed with all that is in it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone_already = fs::remove_dir_all(&self.0);
    }
}

impl Bench {
    fn options(cpu_milli: u32, cgroups: Option<System>) -> Options {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let agent = format!("{:08x}-{number}", std::process::id());
        let cluster_id = format!("test-{number}");
        let folder = std::env::temp_dir().join(format!("continuum-{agent}"));
        let users = users::Options {
            range: Some(users::RANGE),
            required: false,
            folder: folder.join("users"),
            agent_folder: folder,
            keys: vec![],
        };
        let memory_bytes = 4_000_000_000;
        Options { cluster_id, agent, cpu_milli, memory_bytes, path: String::new(), cgroups, otlp: None, users }
    }

    fn open(options: Options) -> Self {
        fs::create_dir_all(&options.users.agent_folder).unwrap();
        let folder = Folder(options.users.agent_folder.clone());
        let driver = ProcessDriver::open(options.clone(), Arc::new(now)).unwrap();
        Self { driver, options, kept: vec![], _folder: folder }
    }

    fn new() -> Self {
        Self::open(Self::options(2_000, None))
    }

    /// Waits for an event; others are kept.
    fn event<T>(&mut self, what: &str, pick: impl Fn(&Event) -> Option<T>) -> T {
        until(what, || {
            self.kept.extend(self.driver.take(now()));
            let found = self.kept.iter().position(|event| pick(event).is_some())?;
            pick(&self.kept.remove(found))
        })
    }

    fn started(&mut self) -> u32 {
        let id = self.event("it starts", |e| if let Event::Started { id } = e { Some(id.clone()) } else { None });
        let running = self.driver.journal().running();
        running.iter().find(|r| r.id == id).map_or(0, |r| r.pid)
    }

    fn exited(&mut self) -> String {
        self.event("it ends", |e| if let Event::Exited { reason, .. } = e { Some(reason.clone()) } else { None })
    }

    fn refused(&mut self) -> (String, Fails) {
        self.event("it does not start", |e| match e {
            Event::StartFailed { reason, fails, .. } => Some((reason.clone(), *fails)),
            _ => None,
        })
    }

    fn measure(&mut self) -> (Timestamp, Vec<Reading>) {
        self.driver.measure(now());
        self.event("it measures", |e| match e {
            Event::Measured { at, readings } => Some((*at, readings.clone())),
            _ => None,
        })
    }

    /// Load over this many seconds, in thousandths of a core, and memory at the end.
    fn load_milli(&mut self, seconds: u64) -> (f64, u64) {
        let (from, before) = self.measure();
        let mut last = (from, before.clone());
        until("the time has passed", || {
            last = self.measure();
            (last.0.millis_since(from) >= seconds as i64 * 1_000).then_some(())
        });
        let cpu_nanos = |readings: &[Reading]| readings.iter().map(|r| r.cpu_nanos).sum::<u64>() as f64;
        let load = (cpu_nanos(&last.1) - cpu_nanos(&before)) / (last.0.as_nanos() - from.as_nanos()) as f64 * 1e3;
        (load, last.1.iter().map(|r| r.memory_bytes).sum())
    }

    fn log(&self) -> Vec<String> {
        let lines = self.driver.journal().logs("a", 10_000).unwrap_or_default();
        lines.into_iter().map(|line| format!("{}:{}", line.stream, line.text)).collect()
    }

    fn logged(&self, text: &str) -> String {
        until(text, || self.log().into_iter().find(|line| line.contains(text)))
    }
}

fn is_alive(pid: i32) -> bool {
    let stat = procfs::process::Process::new(pid).and_then(|p| p.stat());
    stat.is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// The example workload, built by cargo if it is not there yet.
fn spinner() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let own = std::env::current_exe().unwrap();
        let path = own.parent().and_then(Path::parent).unwrap().join("spinner");
        if !path.exists() {
            let built = Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "spinner"]).status().unwrap();
            assert!(built.success());
        }
        path
    })
}

fn spin(load_milli: u32, memory_mb: u32, resources: Resources) -> ReplicaSpec {
    let arguments = ["--load-milli", &load_milli.to_string(), "--memory-mb", &memory_mb.to_string()];
    ReplicaSpec {
        process: ProcessSpec {
            command: spinner().to_string_lossy().into(),
            arguments: arguments.map(str::to_owned).into(),
            environment: BTreeMap::new(),
        },
        resources,
        ..shell("")
    }
}

#[test]
fn a_process_is_started_marked_and_its_output_kept() {
    let mut bench = Bench::new();
    let mut spec = shell(
        "echo $CONTINUUM_INSTANCE $CONTINUUM_GENERATION $CONTINUUM_REPLICA $CONTINUUM_CLUSTER $WORD; echo oops >&2; exec sleep 600",
    );
    spec.process.environment = BTreeMap::from([
        ("WORD".to_owned(), "hello".to_owned()),
        ("CONTINUUM_CLUSTER".to_owned(), "forged".to_owned()),
    ]);
    bench.driver.start(spec);
    let pid = bench.started();
    assert_eq!(bench.logged("hello"), format!("stdout:a 1 0 {} hello", bench.options.cluster_id));
    assert_eq!(bench.logged("oops"), "stderr:oops");
    let stat = procfs::process::Process::new(pid as i32).unwrap().stat().unwrap();
    assert_eq!((stat.pgrp, stat.session), (pid as i32, pid as i32), "a group and session of its own");
    bench.driver.stop("a", 1, false);
    assert_eq!(bench.exited(), "ended by SIGTERM: oops");
    assert!(bench.driver.journal().running().is_empty());
}

#[test]
fn a_command_that_cannot_run_is_hopeless_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8], mode: u32| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_string_lossy().into_owned()
    };
    let plain = file("plain", b"x", 0o644);
    let garbage = file("garbage", b"\x01\x02\x03", 0o755);
    let orphan = file("orphan", b"#!/no/such/interpreter\n", 0o755);
    // An ELF head that names a machine nobody has.
    let foreign = file("foreign", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xee\xee", 0o755);
    let mut bench = Bench::new();
    for (command, said) in [
        ("no-such-program-anywhere", "no such file or directory: no-such-program-anywhere"),
        ("/no/such/program", "no such file or directory: /no/such/program"),
        (plain.as_str(), "is not executable"),
        (garbage.as_str(), "exec format error"),
        (orphan.as_str(), "no such file or directory: the interpreter of"),
        ("/", "is a directory"),
        (foreign.as_str(), "is for another kind of machine"),
    ] {
        let mut spec = shell("");
        spec.process.command = command.to_owned();
        bench.driver.start(spec);
        let (reason, fails) = bench.refused();
        assert!(reason.contains(said), "{command}: {reason}");
        assert_eq!(fails, if command == foreign { Fails::Here } else { Fails::Anywhere }, "{command}");
    }
}

#[test]
fn an_exit_is_told_with_its_code_and_last_words() {
    let mut bench = Bench::new();
    bench.driver.start(shell("echo fine; echo first >&2; printf 'no newline' >&2; exit 3"));
    assert_eq!(bench.exited(), "exited with code 3: no newline");
    bench.driver.start(shell("kill -9 $$"));
    assert_eq!(bench.exited(), "ended by SIGKILL", "words of an earlier start are not its own");
}

#[test]
fn a_stop_ends_grandchildren_and_those_that_left_the_group() {
    let mut bench = Bench::new();
    bench.driver.start(shell(
        "sh -c 'sleep 600 & echo child $! ; wait' & setsid sh -c 'echo escaped $$; exec sleep 600' & echo all; wait",
    ));
    bench.started();
    let pid = |line: String| line.rsplit(' ').next().unwrap().parse::<i32>().unwrap();
    let (child, escaped) = (pid(bench.logged("child")), pid(bench.logged("escaped")));
    assert!(is_alive(child) && is_alive(escaped));
    bench.driver.stop("a", 1, false);
    bench.exited();
    assert!(!is_alive(child) && !is_alive(escaped), "all have ended when the end is told");
}

#[test]
fn one_that_ignores_the_asking_is_ended_by_force() {
    let mut bench = Bench::new();
    bench.driver.start(shell("trap '' TERM; echo ready; while :; do sleep 0.1; done"));
    bench.started();
    bench.logged("ready");
    bench.driver.stop("a", 1, false);
    let asked = Instant::now();
    until("half a second", || (asked.elapsed() > Duration::from_millis(500)).then_some(()));
    assert_eq!(bench.driver.journal().running().len(), 1);
    bench.driver.stop("a", 1, true);
    assert_eq!(bench.exited(), "ended by SIGKILL");
}

#[test]
fn a_stop_leaves_newer_generations_and_other_instances_alone() {
    let mut bench = Bench::new();
    let mut newer = shell("exec sleep 600");
    newer.id.generation = 2;
    let mut other = shell("exec sleep 600");
    other.id.instance_id = "b".into();
    for spec in [shell("exec sleep 600"), newer, other] {
        bench.driver.start(spec);
        bench.started();
    }
    bench.driver.stop("a", 1, false);
    bench.exited();
    let left: Vec<String> = bench.driver.journal().running().iter().map(|r| r.id.to_string()).collect();
    assert_eq!(left, ["a.2.0", "b.1.0"]);
}

/// CPU time of a process by the scheduler's own count, which has a finer grain than `/proc/<pid>/stat`.
fn scheduled_nanos(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path().join("schedstat"));
    tasks.map(|file| fs::read_to_string(file).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn a_known_load_and_memory_are_measured_as_they_are() {
    let mut bench = Bench::new();
    bench.driver.start(spin(300, 50, Resources::default()));
    let pid = bench.started();
    bench.logged("load_milli=300");
    for _ in 0..3 {
        let (begun, before) = (Instant::now(), scheduled_nanos(pid));
        let (load_milli, memory_bytes) = bench.load_milli(2);
        let truth = (scheduled_nanos(pid) - before) as f64 / begun.elapsed().as_nanos() as f64 * 1e3;
        let memory_mb = memory_bytes as f64 / 1e6;
        println!("300 mCPU (had {truth:.0}) and 50 MB read as {load_milli:.0} mCPU and {memory_mb:.1} MB");
        assert!((load_milli - truth).abs() <= 15.0, "{load_milli} for {truth}");
        assert!((50.0..=60.0).contains(&memory_mb), "{memory_mb}");
        // While others want the CPU too it gets less, and later more until it has caught up.
        assert!((50.0..=560.0).contains(&truth), "{truth}");
    }
}

#[test]
fn what_children_and_earlier_starts_used_stays_counted() {
    let mut bench = Bench::new();
    let burn = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done";
    bench.driver.start(shell(&format!("for n in 1 2 3; do sh -c '{burn}'; done; echo done; exec sleep 600")));
    bench.started();
    bench.logged("done");
    let (_, readings) = bench.measure();
    let by_children = readings[0].cpu_nanos;
    assert!(by_children >= 20_000_000, "the shells have ended, what they used is counted: {by_children}");
    bench.driver.start(ReplicaSpec { id: id(1), ..shell("dd if=/dev/zero of=/dev/null bs=1M count=2000 2>/dev/null") });
    bench.exited();
    let of_second = |readings: &[Reading]| readings.iter().find(|r| r.id == id(1)).unwrap().cpu_nanos;
    let first = of_second(&bench.measure().1);
    bench.driver.start(ReplicaSpec { id: id(1), ..shell("dd if=/dev/zero of=/dev/null bs=1M count=2000 2>/dev/null") });
    bench.exited();
    let both = of_second(&bench.measure().1);
    assert!(first > 0 && both > first, "{first} {both}");
}

#[test]
fn a_cpu_quota_is_enforced_where_control_groups_may_be_used() {
    let mut bench = Bench::open(Bench::options(500, Some(System::read(None))));
    let enforcement = bench.driver.enforcement();
    if !enforcement.contains("cgroup") || enforcement.contains("memory") && !enforcement.contains("cpu") {
        println!("SKIPPED: cpu quota: no cpu controller may be used here ({enforcement})");
        return;
    }
    bench.driver.start(spin(1_000, 1, Resources { cpu_limit_milli: 300, ..Default::default() }));
    bench.started();
    let (load_milli, _) = bench.load_milli(3);
    println!("1000 mCPU limited to 300 read as {load_milli:.0} ({enforcement})");
    assert!((100.0..=345.0).contains(&load_milli), "{load_milli}");
    // Two without limits of their own share what the cluster has.
    bench.driver.stop("a", 1, false);
    bench.exited();
    for replica in 0..2 {
        bench.driver.start(ReplicaSpec { id: id(replica), ..spin(1_000, 1, Resources::default()) });
        bench.started();
    }
    let (load_milli, _) = bench.load_milli(3);
    println!("2000 mCPU on a cluster of 500 read as {load_milli:.0}");
    assert!((150.0..=575.0).contains(&load_milli), "{load_milli}");
}

#[test]
fn a_memory_limit_ends_a_process_that_exceeds_it() {
    let mut bench = Bench::open(Bench::options(2_000, Some(System::read(None))));
    println!("{}", bench.driver.enforcement());
    bench.driver.start(spin(10, 200, Resources { memory_limit_bytes: 60_000_000, ..Default::default() }));
    let reason = bench.exited();
    assert!(reason.contains("SIGKILL") || reason.contains("SIGABRT"), "{reason}");
    bench.driver.start(spin(10, 20, Resources { memory_limit_bytes: 60_000_000, ..Default::default() }));
    bench.started();
    bench.logged("memory_mb=20");
}

#[test]
fn control_groups_are_gone_when_their_replicas_are() {
    let options = Bench::options(500, Some(System::read(None)));
    let name = format!("{}.{}", options.cluster_id, options.agent.chars().take(8).collect::<String>());
    let mut bench = Bench::open(options);
    let groups = || -> Vec<PathBuf> {
        let all = procfs::process::Process::myself().unwrap().mountinfo().unwrap();
        let mounts = all.into_iter().filter(|m| m.fs_type.starts_with("cgroup"));
        mounts.map(|m| m.mount_point.join("continuum").join(&name)).filter(|path| path.exists()).collect()
    };
    if groups().is_empty() {
        println!("SKIPPED: control groups: none may be made here ({})", bench.driver.enforcement());
        return;
    }
    bench.driver.start(shell("exec sleep 600"));
    let pid = bench.started();
    for group in groups() {
        assert_eq!(fs::read_to_string(group.join("a.1.0/cgroup.procs")).unwrap(), format!("{pid}\n"));
    }
    bench.driver.stop("a", 1, false);
    bench.exited();
    assert!(groups().iter().all(|group| !group.join("a.1.0").exists()));
    drop(bench);
    assert_eq!(groups(), Vec::<PathBuf>::new());
}

#[test]
fn a_flood_of_output_is_bounded_and_does_not_hold_up_others() {
    let mut bench = Bench::new();
    bench.driver.start(shell("i=0; while :; do i=$((i+1)); echo line $i; done"));
    bench.started();
    until("a thousand lines", || {
        let last = bench.log().last()?.rsplit(' ').next()?.parse::<u32>().ok()?;
        (last > 1_000).then_some(())
    });
    assert_eq!(bench.log().len(), 500);
    bench.driver.start(ReplicaSpec { id: id(1), ..shell("exit 0") });
    assert_eq!(bench.exited(), "exited with code 0");
}

#[test]
fn everything_ends_with_the_driver() {
    let mut bench = Bench::new();
    bench.driver.start(shell("trap 'exit 0' TERM; echo up; sleep 600 & wait"));
    let pid = bench.started();
    bench.logged("up");
    let Bench { driver, .. } = bench;
    (Box::new(driver) as Box<dyn Driver>).shutdown(2_000);
    assert!(!is_alive(pid as i32));
}

const HOLD: &str = "CLUSTER_AGENT_TEST_HOLDS";
const HOLD_FOLDER: &str = "CLUSTER_AGENT_TEST_FOLDER";

/// A driver in a process of its own, which can be killed.
fn holder(options: &Options) -> (Child, Vec<i32>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_processes_until_it_is_killed", "--nocapture"])
        .env(HOLD, format!("{}/{}", options.cluster_id, options.agent))
        .env(HOLD_FOLDER, &options.users.agent_folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.map_while(Result::ok).find(|line| line.starts_with("HOLDS")).unwrap();
    (child, line.split(' ').skip(1).map(|pid| pid.parse().unwrap()).collect())
}

/// Does nothing in a usual run; in the process that `holder` starts it is the agent.
#[test]
fn holds_processes_until_it_is_killed() {
    let Ok(name) = std::env::var(HOLD) else { return };
    let (cluster_id, agent) = name.split_once('/').unwrap();
    let folder = PathBuf::from(std::env::var_os(HOLD_FOLDER).unwrap());
    let own = Bench::options(1_000, Some(System::read(None)));
    let users = users::Options { folder: folder.join("users"), agent_folder: folder, ..own.users.clone() };
    let mut bench = Bench::open(Options { cluster_id: cluster_id.into(), agent: agent.into(), users, ..own });
    bench.driver.start(shell(
        "sleep 600 & echo child $!; setsid sleep 600 & echo escaped $!; env -i setsid sleep 600 & echo hidden $!; wait",
    ));
    let pid = bench.started();
    let number = |line: String| line.rsplit(' ').next().unwrap().to_owned();
    let [child, escaped, hidden] = ["child", "escaped", "hidden"].map(|word| number(bench.logged(word)));
    println!("HOLDS {pid} {child} {escaped} {hidden}");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_process_dies_with_its_agent_and_the_next_agent_ends_what_it_left() {
    let options = Bench::options(1_000, Some(System::read(None)));
    let (mut agent, pids) = holder(&options);
    let [leader, child, escaped, hidden] = pids[..] else { panic!("{pids:?}") };
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    agent.kill().unwrap();
    agent.wait().unwrap();
    until("the process dies with its agent", || (!is_alive(leader)).then_some(()));
    assert!(is_alive(child) && is_alive(escaped) && is_alive(hidden), "those it had started do not know");

    let stranger = Bench::new();
    assert!(is_alive(child) && is_alive(escaped), "another cluster's agent does not touch them");
    drop(stranger);
    let mut elsewhere = options.clone();
    elsewhere.agent = "another".into();
    elsewhere.users.agent_folder = elsewhere.users.agent_folder.with_extension("another");
    drop(Bench::open(elsewhere));
    assert!(is_alive(child) && is_alive(escaped), "nor does another mesh's agent of a cluster of that name");

    let mut next = Bench::open(options);
    assert!(!is_alive(child) && !is_alive(escaped), "they have ended before the next agent does anything");
    assert!(!is_alive(hidden) || !gives_users(&next), "its user gives away even one without mark or group");
    next.driver.start(shell("exec sleep 600"));
    next.started();
}

fn gives_users(bench: &Bench) -> bool {
    let gives = bench.driver.enforcement().ends_with("user per instance");
    if !gives {
        println!("SKIPPED: users of their own: {}", bench.driver.enforcement());
    }
    gives
}

#[test]
fn one_without_mark_and_group_ends_with_its_instance() {
    let mut bench = Bench::new();
    if !gives_users(&bench) {
        return;
    }
    let hide = "env -i setsid sleep 600 & echo hidden $!; exec sleep 600";
    for replica in 0..2 {
        bench.driver.start(ReplicaSpec { id: id(replica), ..shell(hide) });
        bench.started();
    }
    let pids = until("both have hidden one", || {
        let lines = bench.log().into_iter().filter(|line| line.contains("hidden"));
        let pids: Vec<i32> = lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        (pids.len() == 2).then_some(pids)
    });
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    bench.driver.stop("a", 1, false);
    bench.exited();
    bench.exited();
    assert!(!pids.iter().any(|pid| is_alive(*pid)), "the instance has ended when its last replica has");
}

#[test]
fn a_folder_lasts_as_long_as_its_instance_is_kept() {
    let mut bench = Bench::new();
    bench.driver.start(shell("pwd; echo $HOME; echo x >> count; wc -l < count"));
    bench.exited();
    bench.driver.keep(&["a".to_owned()].into());
    bench.driver.start(shell("echo x >> count; wc -l < count"));
    bench.exited();
    let log = bench.log();
    assert_eq!(log[0], log[1], "it starts in its home");
    assert_eq!(log.last().unwrap().trim_end(), "stdout:2", "a restart finds what was left: {log:?}");
    let home = PathBuf::from(log[0].strip_prefix("stdout:").unwrap());
    assert!(home.join("count").exists());
    bench.driver.keep(&std::collections::BTreeSet::new());
    until("it is removed", || (!home.exists()).then_some(()));
}

const INSIDE: &str = "CLUSTER_AGENT_TEST_INSIDE";
const SECRETS: &str = "CLUSTER_AGENT_TEST_SECRETS";

/// The workload of the tests of confinement: does nothing in a usual run, and prints what it may and has.
#[test]
fn prints_what_a_workload_may() {
    let Some(secrets) = std::env::var_os(SECRETS).map(PathBuf::from) else { return };
    // Of this thread: the first one blocks signals for a moment while it starts another.
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    for line in status.lines() {
        println!("{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let open: Vec<String> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            // The listing itself is a file.
            let target = fs::read_link(entry.path()).ok()?;
            (!target.starts_with("/proc")).then(|| entry.file_name().to_string_lossy().into_owned())
        })
        .collect();
    println!("files {}", open.iter().filter(|name| name.parse::<u32>().unwrap() < 3 || is_inherited(name)).count());
    println!("key {:?}", fs::read(secrets.join("agent.nk")).map_err(|error| error.kind()));
    println!("data {:?}", fs::read_dir(secrets.join("data")).map(|_| ()).map_err(|error| error.kind()));
    println!("agent {:?}", fs::read(format!("/proc/{}/environ", nix::unistd::getppid())).map_err(|error| error.kind()));
    println!("setuid {:?}", nix::unistd::setuid(nix::unistd::Uid::from_raw(0)));
    println!("write {:?}", fs::write("file", "x").map_err(|error| error.kind()));
    println!("done");
}

/// A file whose target is the secret that the agent was started with.
fn is_inherited(name: &str) -> bool {
    fs::read_link(format!("/proc/self/fd/{name}")).is_ok_and(|target| target.ends_with("agent.nk"))
}

/// Runs `test` again as an agent would be started by a careless parent: with signals ignored and a file open.
fn run_inside(test: &str, program: &Path, user: Option<u32>) {
    use std::os::unix::{fs::PermissionsExt as _, process::CommandExt as _};
    let folder = tempfile::tempdir().unwrap();
    let (secrets, key) = (folder.path().join("secrets"), folder.path().join("secrets/agent.nk"));
    fs::create_dir_all(secrets.join("data")).unwrap();
    fs::write(&key, "secret").unwrap();
    for (path, mode) in [(folder.path(), 0o755), (&secrets, 0o755), (&secrets.join("data"), 0o700), (&key, 0o600)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        if let Some(user) = user {
            std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
        }
    }
    let mut sh = Command::new("sh");
    sh.args(["-c", r#"trap '' HUP USR1 INT; file=$1; shift; exec "$0" "$@" 7<"$file""#]);
    sh.arg(program).arg(&key).args(["--exact", test, "--nocapture"]).env(INSIDE, &secrets).current_dir(folder.path());
    if let Some(user) = user {
        sh.uid(user).gid(user);
    }
    let output = sh.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("CONFINED"), "{out}{err}");
}

/// What the workload printed, by name.
fn confined(bench: &mut Bench, secrets: &Path) -> BTreeMap<String, String> {
    let mut spec = shell("");
    spec.process.command = std::env::current_exe().unwrap().to_string_lossy().into();
    spec.process.arguments = ["--exact", "prints_what_a_workload_may", "--nocapture"].map(str::to_owned).into();
    spec.process.environment = BTreeMap::from([(SECRETS.to_owned(), secrets.to_string_lossy().into())]);
    bench.driver.start(spec);
    bench.exited();
    let lines = bench.log();
    assert!(lines.iter().any(|line| line == "stdout:done"), "{lines:#?}");
    let pairs = lines.iter().filter_map(|line| line.strip_prefix("stdout:")?.split_once(' '));
    pairs.map(|(name, value)| (name.trim_end_matches(':').to_owned(), value.to_owned())).collect()
}

/// Holds of every workload, whoever the agent is.
fn assert_confined(has: &BTreeMap<String, String>) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&has[set], 16), Ok(0), "{set}");
    }
    assert_eq!(has["NoNewPrivs"], "1");
    // Rust's own runtime ignores SIGPIPE in every program.
    let ignored = u64::from_str_radix(&has["SigIgn"], 16).unwrap() & !(1 << (nix::libc::SIGPIPE - 1));
    assert_eq!((ignored, u64::from_str_radix(&has["SigBlk"], 16)), (0, Ok(0)));
    assert_eq!(has["files"], "3", "standard input, output and error");
    assert_eq!(has["write"], "Ok(())");
}

#[test]
fn a_workload_of_a_root_agent_can_neither_read_its_keys_nor_rise() {
    let Some(secrets) = std::env::var_os(INSIDE).map(PathBuf::from) else {
        if nix::unistd::geteuid().is_root() && gives_users(&Bench::new()) {
            let test = "a_workload_of_a_root_agent_can_neither_read_its_keys_nor_rise";
            run_inside(test, &std::env::current_exe().unwrap(), None);
        }
        return;
    };
    let mut bench = Bench::new();
    let has = confined(&mut bench, &secrets);
    assert_confined(&has);
    let user = has["Uid"].split(' ').next().unwrap().to_owned();
    assert!(users::RANGE.contains(&user.parse().unwrap()), "{user}");
    assert_eq!((has["Uid"].clone(), has["Gid"].clone()), ([user.as_str(); 4].join(" "), [user.as_str(); 4].join(" ")));
    assert!(!has.contains_key("Groups"), "a line without groups has no value");
    assert_eq!(u64::from_str_radix(&has["CapBnd"], 16), Ok(0));
    for tried in ["key", "data", "agent"] {
        assert_eq!(has[tried], "Err(PermissionDenied)", "{tried}");
    }
    assert_eq!(has["setuid"], "Err(EPERM)");
    println!("CONFINED");
}

#[test]
fn an_agent_that_is_not_root_says_so_and_does_the_rest() {
    const NOBODY: u32 = 65_534;
    let Some(secrets) = std::env::var_os(INSIDE).map(PathBuf::from) else {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: an agent of another user: only root can start one");
            return;
        }
        // Where that user can reach it.
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let program = folder.path().join("agent");
        // Not copied in this process: while it is written, a child of another test could hold it, and it could not run.
        let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&program).status().unwrap();
        assert!(copied.success());
        run_inside("an_agent_that_is_not_root_says_so_and_does_the_rest", &program, Some(NOBODY));
        return;
    };
    let mut options = Bench::options(1_000, None);
    options.users.required = true;
    let error = ProcessDriver::open(options, Arc::new(now)).err().unwrap();
    assert!(format!("{:#}", anyhow::Error::new(error)).contains("the agent is not root"));
    let mut bench = Bench::new();
    assert_eq!(bench.driver.enforcement(), "rlimit, user of the agent");
    let has = confined(&mut bench, &secrets);
    assert_confined(&has);
    assert_eq!((has["Uid"].as_str(), has["setuid"].as_str()), ("65534 65534 65534 65534", "Err(EPERM)"));
    println!("CONFINED");
}
