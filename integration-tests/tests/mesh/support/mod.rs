//! A mesh of the test's own: `continuum up` as a child, and a person's connection to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use mesh_bus::{Bus, Options};
use mesh_core::{Outgoing, Stored};
use mesh_proto::{
    AnyEvent, derived_id,
    intent::{FulfilmentStatus, Intent, IntentStateChanged, NotFulfilledState, State, SubmitIntent},
    workload::{RegisterWorkload, WorkloadDocument},
};
pub use mesh_test::{is_full, now, server};
use serde_json::{Value as Json, json};

/// Every single step ends within this, or the test fails.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Whose intents they are.
pub const OWNER: &str = "local";

/// The file of clusters, in the test's folder.
const CLUSTERS: &str = "clusters.json";

/// One mesh at a time: two would measure each other.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A program of the project, beside the test.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let found = test.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is not beside {}: run `cargo build --workspace --bins` first", test.display())
    })
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// A cluster of a clusters file.
pub fn cluster(name: &str, driver: &str, cpu_milli: u32, memory_mb: u64) -> Json {
    json!({"name": name, "driver": driver, "cpu_milli": cpu_milli, "memory_mb": memory_mb, "labels": {"driver": driver}})
}

/// A running `continuum up`; stopped, and all of it ended, when dropped.
pub struct MeshRun {
    /// A person's connection.
    pub bus: Bus,
    /// What it tells its clients.
    pub endpoints: Json,
    data: tempfile::TempDir,
    /// Where this process finds its data folder.
    folder: PathBuf,
    arguments: Vec<String>,
    child: Child,
    starts: usize,
    /// Absent beside another one of the same test.
    _turn: Option<tokio::sync::MutexGuard<'static, ()>>,
}

impl MeshRun {
    /// Starts one with these clusters (the usual three if none) and further arguments. `None`, with a word about
    /// it, if there is no nats-server.
    pub async fn start(suite: &str, clusters: &[Json], arguments: &[&str]) -> Option<Self> {
        Self::start_with(suite, clusters, arguments, |_| ()).await
    }

    /// Starts one on a data folder that is there already: `fill` makes it.
    pub async fn start_on(suite: &str, clusters: &[Json], fill: impl FnOnce(&Path)) -> Option<Self> {
        Self::start_with(suite, clusters, &[], fill).await
    }

    /// Starts another mesh beside this one.
    pub async fn start_beside(&self, clusters: &[Json]) -> Self {
        Self::begin(None, clusters, &[], |_| ()).await
    }

    async fn start_with(suite: &str, clusters: &[Json], arguments: &[&str], fill: impl FnOnce(&Path)) -> Option<Self> {
        server(suite).await?;
        let turn = TURN.lock().await;
        Some(Self::begin(Some(turn), clusters, arguments, fill).await)
    }

    async fn begin(
        turn: Option<tokio::sync::MutexGuard<'static, ()>>,
        clusters: &[Json],
        arguments: &[&str],
        fill: impl FnOnce(&Path),
    ) -> Self {
        mesh_bus::install_crypto();
        let data = tempfile::Builder::new().prefix("continuum-test-").tempdir().unwrap();
        let mut all: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        if !clusters.is_empty() {
            let file = data.path().join(CLUSTERS);
            std::fs::write(&file, serde_json::to_vec(clusters).unwrap()).unwrap();
            all.extend(["--clusters".to_owned(), file.display().to_string()]);
        }
        let folder = data.path().join("mesh");
        fill(&folder);
        let child = launch(Command::new(program("continuum")), &folder, &all);
        let (bus, endpoints) = join(&folder, &folder, 1).await;
        Self { bus, endpoints, data, folder, arguments: all, child, starts: 1, _turn: turn }
    }

    /// Starts one whose data folder is a small file system of its own. Nobody but its own processes sees that at its
    /// path, so neither the command line nor a second start works on it.
    pub async fn start_on_disk(suite: &str, bytes: u64, clusters: &[Json]) -> Option<Self> {
        server(suite).await?;
        let turn = TURN.lock().await;
        mesh_bus::install_crypto();
        let data = tempfile::Builder::new().prefix("continuum-test-").tempdir().unwrap();
        let mount = data.path().join("mesh");
        std::fs::create_dir(&mount).unwrap();
        let disk = mesh_test::Disk::new(suite, &mount, bytes)?;
        let file = data.path().join(CLUSTERS);
        std::fs::write(&file, serde_json::to_vec(clusters).unwrap()).unwrap();
        let arguments = vec!["--clusters".to_owned(), file.display().to_string()];
        let child = launch(disk.command(&program("continuum")), &mount, &arguments);
        let folder = disk.seen_through(child.id());
        let (bus, endpoints) = join(&mount, &folder, 1).await;
        Some(Self { bus, endpoints, data, folder, arguments, child, starts: 1, _turn: Some(turn) })
    }

    /// Changes the clusters that it is given when it starts again.
    pub fn change_clusters(&self, clusters: &[Json]) {
        std::fs::write(self.data.path().join(CLUSTERS), serde_json::to_vec(clusters).unwrap()).unwrap();
    }

    /// The data folder.
    pub fn folder(&self) -> PathBuf {
        self.folder.clone()
    }

    /// Where `up` leaves its context for the NATS command line.
    pub fn config_home(&self) -> PathBuf {
        self.folder.with_extension("config")
    }

    /// Process id of `up`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs the command line on this mesh.
    pub async fn cli(&self, arguments: &[&str]) -> Output {
        cli(&self.folder(), arguments).await
    }

    /// Stops it with `continuum down`; says what that printed.
    pub async fn down(&mut self) -> String {
        self.bus.close().await;
        let output = self.cli(&["down"]).await;
        assert!(output.status.success(), "down: {}", text(&output));
        let status = self.child.wait().unwrap();
        assert!(status.success(), "up ended with {status}: {}", self.log());
        text(&output)
    }

    /// Starts it again on the same data folder.
    pub async fn up_again(&mut self) {
        self.starts += 1;
        let folder = self.folder();
        self.child = launch(Command::new(program("continuum")), &folder, &self.arguments);
        (self.bus, self.endpoints) = join(&folder, &folder, self.starts).await;
    }

    /// Starts on another data folder the next time, as if for the first.
    pub fn move_to(&mut self, folder: &Path) {
        self.folder = folder.to_owned();
        self.starts = 0;
    }

    /// What `up` printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.path().join("mesh.log")).unwrap_or_default()
    }

    /// The secret of an identity.
    pub fn seed(&self, identity: &str) -> String {
        std::fs::read_to_string(self.folder().join(format!("keys/{identity}.nk"))).unwrap().trim().to_owned()
    }

    /// A plain NATS connection as an identity, as any client in any language has it.
    pub async fn plain(&self, identity: &str) -> async_nats::Client {
        let options = async_nats::ConnectOptions::with_nkey(self.seed(identity));
        let options = options.custom_inbox_prefix(format!("_INBOX_{identity}"));
        options.connect(self.endpoints["nats"].as_str().unwrap()).await.unwrap()
    }

    /// Changes a stream's configuration; says what it was.
    pub async fn configure(&self, stream: &str, change: impl Fn(&mut Json)) -> Json {
        let client = self.plain("provisioner").await;
        let ask = async |call: String, body: Json| -> Json {
            let answer = client.request(call, serde_json::to_vec(&body).unwrap().into()).await.unwrap();
            let answer: Json = serde_json::from_slice(&answer.payload).unwrap();
            assert!(answer.get("error").is_none(), "{answer}");
            answer
        };
        let info = ask(format!("$JS.API.STREAM.INFO.{stream}"), json!({})).await;
        let mut config = info["config"].clone();
        change(&mut config);
        ask(format!("$JS.API.STREAM.UPDATE.{stream}"), config).await;
        info
    }

    /// Sends a command; returns once it is on disk.
    pub async fn send(&self, command: &dyn AnyEvent, id: &str) -> u64 {
        let message = Outgoing::new(command, id, now()).unwrap();
        self.bus.publish(&message).await.unwrap()
    }

    /// Sends a command and waits for the one fact that answers it.
    pub async fn ask(&self, command: &dyn AnyEvent, id: &str) -> Stored {
        self.send(command, id).await;
        let area = command.area();
        let entity = format!("{area}.*.*.{}", command.keys().join("."));
        self.fact(area, &entity, |fact| (fact.cause.as_ref()?.id == id).then(|| fact.clone())).await
    }

    /// Waits for a fact among those of a filter, past or to come.
    pub async fn fact<T>(&self, area: &str, filter: &str, mut look: impl FnMut(&Stored) -> Option<T>) -> T {
        let mut tail = self.bus.log(&area.to_uppercase()).tail(filter, 1);
        let mut seen = String::new();
        let found = tokio::time::timeout(LIMIT, async {
            loop {
                let stored = tail.next().await.unwrap();
                if let Some(found) = look(&stored) {
                    return found;
                }
                let body = mesh_proto::json::to_value(&stored.message, &stored.body).unwrap_or_default();
                seen = format!("{} {body}", stored.subject);
            }
        })
        .await;
        found.unwrap_or_else(|_| {
            panic!("not seen on {filter} within {} s; last seen: {seen}\n{}", LIMIT.as_secs(), self.log())
        })
    }

    /// All facts of a stream, oldest first.
    pub async fn facts(&self, stream: &str) -> Vec<Stored> {
        mesh_why::facts(&self.bus, stream, &mesh_proto::contract().stream(stream).unwrap().subject).await.unwrap()
    }

    /// Registers a document and waits until it is accepted.
    pub async fn register(&self, document: Json) {
        let document: WorkloadDocument =
            mesh_proto::json::from_value("continuum.workload.v1.WorkloadDocument", document).unwrap();
        let command =
            RegisterWorkload { owner: OWNER.into(), name: document.name.clone(), document: Some(document.clone()) };
        self.send(&command, &derived_id(&["register", &document.name, &document.version])).await;
        let filter = format!("workload.*.*.{OWNER}.{}", document.name);
        self.fact("workload", &filter, |fact| fact.subject.starts_with("workload.registered.").then_some(())).await;
    }

    /// Waits until an intent is in a state.
    pub async fn state(&self, intent: &str, mut is: impl FnMut(&State) -> bool) -> State {
        let filter = format!("intent.*.*.{OWNER}.{intent}");
        self.fact("intent", &filter, |fact| state_of(fact).filter(&mut is)).await
    }

    /// Submits an intent and waits until it is FULFILLED.
    pub async fn fulfil(&self, id: &str, workload: &str) {
        let answer = self.ask(&submit(id, intent(workload, &[("ramUsage", "500")])), &command_id(id)).await;
        assert!(answer.subject.starts_with("intent.submitted."), "{}", answer.subject);
        self.state(id, |state| state.fulfilment_status() == FulfilmentStatus::Fulfilled).await;
    }

    /// Looks again, until what is looked for is there.
    pub async fn until<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        until(what, &mut look)
            .await
            .unwrap_or_else(|| panic!("{what}: not within {} s\n{}", LIMIT.as_secs(), self.log()))
    }
}

impl Drop for MeshRun {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.child.id(), nix::sys::signal::Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(40);
            while matches!(self.child.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    let _ = self.child.kill();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if std::thread::panicking() {
            let kept = self.data.path().with_extension("failed");
            let _ = std::fs::rename(self.data.path(), &kept);
            eprintln!("what the mesh left is kept in {}", kept.display());
        }
    }
}

/// Looks again, until what is looked for is there or [`LIMIT`] has passed.
pub async fn until<T>(_what: &str, look: &mut impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look().await {
            return Some(found);
        }
        if Instant::now() > deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn launch(mut command: Command, folder: &Path, arguments: &[String]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(folder.with_extension("log")).unwrap();
    command
        .arg("--data-dir")
        .arg(folder)
        .arg("up")
        .args(arguments)
        // Its context for the NATS command line is the test's own.
        .env("XDG_CONFIG_HOME", folder.with_extension("config"))
        .current_dir(root())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Waits until it has said for the `nth` time that it is up, on the data folder that it was given; `seen` is where this
/// process finds that.
async fn join(given: &Path, seen: &Path, nth: usize) -> (Bus, Json) {
    let log = given.with_extension("log");
    let ready = until("up", &mut async || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        (text.matches("continuum is up").count() >= nth).then_some(())?;
        let endpoints = std::fs::read(seen.join("endpoints.json")).ok()?;
        serde_json::from_slice::<Json>(&endpoints).ok()
    })
    .await;
    let endpoints =
        ready.unwrap_or_else(|| panic!("the mesh is not up: {}", std::fs::read_to_string(&log).unwrap_or_default()));
    let seed = std::fs::read_to_string(seen.join("keys/person.nk")).unwrap();
    (connect(endpoints["nats"].as_str().unwrap(), "person", seed.trim()).await, endpoints)
}

/// Connects as an identity.
pub async fn connect(url: &str, identity: &str, seed: &str) -> Bus {
    connect_for(url, identity, seed, LIMIT).await
}

/// Connects as an identity that tries to publish for so long.
pub async fn connect_for(url: &str, identity: &str, seed: &str, limit: Duration) -> Bus {
    let options = Options {
        url: url.to_owned(),
        service: identity.to_owned(),
        seed: Some(seed.to_owned()),
        publish_limit_ms: u64::try_from(limit.as_millis()).unwrap(),
        ..Options::default()
    };
    Bus::connect(options).await.unwrap()
}

/// A folder that workloads share with the test, whatever users they have.
pub fn shared_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder.path(), everybody).unwrap();
    folder
}

/// Runs the command line on a data folder.
pub async fn cli(folder: &Path, arguments: &[&str]) -> Output {
    cli_with(folder, arguments, &[]).await
}

/// Runs the command line on a data folder, with these variables.
pub async fn cli_with(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = tokio::process::Command::new(program("continuum"));
    command.arg("--data-dir").arg(folder).args(arguments).current_dir(root()).stdin(Stdio::null()).kill_on_drop(true);
    command.envs(variables.iter().copied());
    tokio::time::timeout(LIMIT, command.output()).await.expect("the command ends").unwrap()
}

/// What a command printed, both streams.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A document of one process.
pub fn document(name: &str, command: &str, arguments: &[&str], selector: Json) -> Json {
    json!({
        "name": name, "version": "1.0.0", "kind": "process",
        "process": {"command": command, "arguments": arguments},
        "resources": {"cpuMilli": 10, "memoryBytes": "10000000"},
        // May be simulated, unless it selects clusters of one driver.
        "driver": selector["driver"].as_str().unwrap_or("any"),
        "clusterSelector": selector,
    })
}

/// An intent that a workload runs, below these bounds.
pub fn intent(workload: &str, targets: &[(&str, &str)]) -> Json {
    let targets: Vec<Json> = targets
        .iter()
        .map(|(name, bound)| json!({"targetName": name, "targetCondition": "IS_LESS_THAN", "targetValueRange": bound}))
        .collect();
    json!({
        "userLabel": "DeliverComputingWorkload",
        "intentExpectations": [{
            "expectationId": "run", "expectationVerb": "DELIVER",
            "expectationObject": {"objectType": "NEMO_WORKLOAD", "objectInstance": format!("{workload}@1.0.0")},
            "expectationTargets": targets,
        }],
        "observationPeriod": 1,
    })
}

/// An intent's JSON as a message.
pub fn parse(intent: Json) -> Intent {
    mesh_proto::json::from_value("continuum.intent.v1.Intent", intent).unwrap()
}

/// The command that submits an intent.
pub fn submit(id: &str, intent: Json) -> SubmitIntent {
    SubmitIntent { owner: OWNER.into(), intent_id: id.into(), intent: Some(parse(intent)) }
}

/// The command id that tests submit an intent with.
pub fn command_id(intent: &str) -> String {
    derived_id(&["submit", OWNER, intent])
}

/// The instance that an intent of [`intent`] runs.
pub fn instance_of(intent: &str) -> String {
    derived_id(&[OWNER, intent, "run"])
}

/// The state that a fact puts its intent in.
pub fn state_of(fact: &Stored) -> Option<State> {
    if let Ok(Some(changed)) = fact.event::<IntentStateChanged>() {
        return changed.to;
    }
    if let Ok(Some(rejected)) = fact.event::<mesh_proto::intent::IntentRejected>() {
        return rejected.state;
    }
    None
}

/// Has it failed for good?
pub fn is_failed(state: &State) -> bool {
    state.not_fulfilled_state() == NotFulfilledState::Fulfilmentfailed
}

/// Sends a signal.
pub fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal);
}

/// Processes that were started by one, directly: pid and name. Those that have ended are not among them.
pub fn children(pid: u32) -> BTreeMap<u32, String> {
    let all = procfs::process::all_processes().unwrap().filter_map(Result::ok);
    let stats = all.filter_map(|process| process.stat().ok());
    let stats = stats.filter(|stat| stat.ppid.cast_unsigned() == pid && stat.state != 'Z');
    stats.map(|stat| (stat.pid.cast_unsigned(), stat.comm)).collect()
}

/// Everything below a process.
pub fn descendants(pid: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut next = vec![pid];
    while let Some(parent) = next.pop() {
        let below: Vec<u32> = children(parent).into_keys().filter(|child| found.insert(*child)).collect();
        next.extend(below);
    }
    found
}

/// Does it run?
pub fn runs(pid: u32) -> bool {
    procfs::process::Process::new(pid.cast_signed()).and_then(|p| p.stat()).is_ok_and(|stat| stat.state != 'Z')
}

/// Workload processes of a cluster: pid and instance, by the marks that agents give them.
pub fn marked(cluster: &str) -> Vec<(u32, String)> {
    let mut found = vec![];
    for process in procfs::process::all_processes().unwrap().filter_map(Result::ok) {
        let Ok(environment) = process.environ() else { continue };
        let variable =
            |name: &str| environment.get(std::ffi::OsStr::new(name)).map(|v| v.to_string_lossy().into_owned());
        if variable("CONTINUUM_CLUSTER").as_deref() == Some(cluster)
            && let Some(instance) = variable("CONTINUUM_INSTANCE")
            && runs(process.pid.cast_unsigned())
        {
            found.push((process.pid.cast_unsigned(), instance));
        }
    }
    found
}
