//! `bench many-intents`: a registry of many intents. Their facts are the intent manager's own decisions, written to a bus of
//! its own; its process is started over them, asked for pages, ended and started again: first with the embedded store, then
//! with the intents in MongoDB.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use futures::{StreamExt as _, stream};
use intent_manager::domain::{Entity, Intents};
use mesh_bus::{Bus, Written};
use mesh_core::{Decider as _, Envelope, Key, Trigger};
use mesh_core::{Decision, Outgoing};
use mesh_kit::{Secret, Settings, config};
use mesh_proto::{
    EventSet as _, Timestamp,
    deciders::intents::{self, Input},
    derived_id,
    intent::{
        ExpectationObject, ExpectationTarget, Intent, IntentExpectation, SubmitIntent, TerminateIntent,
        intent_queries_client::IntentQueriesClient,
    },
    observation::{ObservedTarget, TargetObserved},
    query::ListRequest,
    validation::IntentAccepted,
    workload::{InstanceChanged, InstancePhase},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value as Json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};
use tonic::transport::Channel;

use crate::{
    report::{Bound, Row},
    rig::{Rig, percentile},
    telemetry::servers::database,
};
use mesh_client::OWNER;

/// How long the manager may take to be ready before the measurement is given up.
const READY_LIMIT: Duration = Duration::from_secs(300);
/// How long the snapshot may take to hold what was written.
const SAVED_LIMIT: Duration = Duration::from_secs(900);
/// Decisions written at once.
const IN_HAND: usize = 512;
/// Workload documents that the intents are about.
const DOCUMENTS: usize = 50;
/// Seconds of an observation period.
const PERIOD_SECONDS: u32 = 60;

/// Takes all measurements.
pub(super) async fn measure(full: bool) -> anyhow::Result<Vec<Row>> {
    let (count, pages) = if full { (100_000, 2_000) } else { (10_000, 500) };
    let rig = Rig::start().await?;
    let bus = rig.bus("intent-manager").await?;
    let begun = Instant::now();
    let facts = fill(&bus, count).await?;
    let filled = begun.elapsed().as_secs_f64();

    // The first start also publishes every report that there would have been.
    let manager = Manager::start(&rig, None).await.context("start over facts alone")?;
    let detail = format!(
        "{count} intents, {facts} facts (written in {filled:.1} s, first read and reported in {:.1} s)",
        manager.ready_s
    );
    let mut rows = vec![lists(&manager, count, pages).await?];
    let bytes = manager.resident_bytes()?;
    saved(&bus, facts).await?;
    bus.close().await;
    manager.stop(Signal::SIGTERM).await?;
    let manager = Manager::start(&rig, None).await.context("start after an end in order")?;
    let embedded_s = manager.ready_s;
    rows.push(Row::new(2, "start to ready", Bound::AtMost(10.0), " s", embedded_s, detail));
    manager.stop(Signal::SIGKILL).await?;
    let manager = Manager::start(&rig, None).await.context("start after a kill")?;
    rows.push(Row::new(3, "start to ready after a kill", Bound::AtMost(10.0), " s", manager.ready_s, String::new()));
    let detail = format!("{:.0} MB resident, the program's own included", bytes / 1e6);
    rows.push(Row::new(4, "memory of one intent", Bound::AtMost(20.0), " kB", bytes / 1e3 / count as f64, detail));
    manager.stop(Signal::SIGTERM).await?;
    if let Some(server) = database("intents in MongoDB", mesh_test::Kind::Mongod).await {
        rows.extend(in_documents(&rig, &server.url("many"), embedded_s).await?);
    }
    Ok(rows)
}

/// The same facts, with the intents in MongoDB: a start over documents that are written.
async fn in_documents(rig: &Rig, url: &str, embedded_s: f64) -> anyhow::Result<[Row; 2]> {
    let manager = Manager::start(rig, Some(url)).await.context("start over an empty database")?;
    let filled_s = manager.ready_s;
    manager.stop(Signal::SIGTERM).await?;
    let manager = Manager::start(rig, Some(url)).await.context("start over documents")?;
    let detail = format!(
        "{:.2} s, embedded {embedded_s:.2} s; over an empty database, which it filled, {filled_s:.1} s",
        manager.ready_s
    );
    let ratio = manager.ready_s / embedded_s;
    let ready = Row::new(5, "start to ready with MongoDB, to embedded", Bound::AtMost(0.5), "", ratio, detail);
    let bytes = manager.resident_bytes()?;
    let memory = Row::new(6, "memory with MongoDB", Bound::AtMost(200.0), " MB", bytes / 1e6, String::new());
    manager.stop(Signal::SIGTERM).await?;
    Ok([ready, memory])
}

/// Writes the facts of `count` intents, those of each as one decision; gives the number of facts.
async fn fill(bus: &Bus, count: usize) -> anyhow::Result<usize> {
    let writer = bus.writer("INTENT");
    let mut writes = stream::iter(0..count)
        .map(|number| {
            let writer = writer.clone();
            async move {
                let messages = life(number)?;
                let facts = messages.len();
                let entity = format!("intent.*.*.{OWNER}.{}", id_of(number));
                match writer.write(Decision { entity, expected: 0, messages }).await.context("write facts")? {
                    Written::Stored { .. } => anyhow::Ok(facts),
                    Written::Stale { .. } => bail!("somebody else wrote of {}", id_of(number)),
                }
            }
        })
        .buffer_unordered(IN_HAND);
    let mut facts = 0;
    while let Some(written) = writes.next().await {
        facts += written?;
    }
    Ok(facts)
}

/// Waits until what the manager has decided is in its snapshot, as it is once nothing new has come for a while.
async fn saved(bus: &Bus, facts: usize) -> anyhow::Result<()> {
    let bucket = bus.bucket(&format!("snapshot-{}", intents::NAME));
    let begun = Instant::now();
    loop {
        let index = bucket.get("index").await.context("read the snapshot's index")?.unwrap_or_default();
        let position = serde_json::from_slice::<Json>(&index).ok().and_then(|index| index["position"].as_u64());
        if position.is_some_and(|position| position >= facts as u64) {
            return Ok(());
        }
        ensure!(begun.elapsed() < SAVED_LIMIT, "{position:?} of {facts} facts are in the snapshot");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn intent_of(number: usize) -> Intent {
    let label = ["DeliverComputingWorkload", "SecureExecution", "EnergyCarbonEfficiency"][number % 3];
    let target = ExpectationTarget {
        target_name: "cpuUsage".into(),
        target_condition: "IS_LESS_THAN".into(),
        target_value_range: "20".into(),
        ..Default::default()
    };
    Intent {
        user_label: label.into(),
        intent_expectations: vec![IntentExpectation {
            expectation_id: "1".into(),
            expectation_verb: "DELIVER".into(),
            expectation_object: Some(ExpectationObject {
                object_type: "NEMO_WORKLOAD".into(),
                object_instance: format!("document-{}@1.0.0", number / 7 % DOCUMENTS),
                ..Default::default()
            }),
            expectation_targets: vec![target],
            ..Default::default()
        }],
        intent_priority: 1,
        observation_period: PERIOD_SECONDS,
        ..Default::default()
    }
}

fn id_of(number: usize) -> String {
    derived_id(&["many", &number.to_string()])
}

/// What the manager decides of one intent in its life: a quarter each waits, is fulfilled, is degraded, has ended.
fn life(number: usize) -> anyhow::Result<Vec<Outgoing>> {
    let (owner, intent_id) = (OWNER.to_owned(), id_of(number));
    let instance_id = derived_id(&[OWNER, &intent_id, "1"]);
    let key = Key::new([&owner, &intent_id]);
    let observed = |period: u64, value: f64| -> Input {
        let at = |period: u64| Timestamp::from_millis(period.cast_signed() * i64::from(PERIOD_SECONDS) * 1_000);
        TargetObserved {
            owner: owner.clone(),
            intent_id: intent_id.clone(),
            version: 1,
            instance_id: instance_id.clone(),
            period,
            begin: Some(at(period)),
            end: Some(at(period + 1)),
            targets: vec![ObservedTarget {
                expectation_id: "1".into(),
                target_name: "cpuUsage".into(),
                value,
                samples: 60,
                ..ObservedTarget::default()
            }],
            generation: 1,
            cluster_id: "cloud".into(),
            ..Default::default()
        }
        .into()
    };
    let submit = SubmitIntent { owner: owner.clone(), intent_id: intent_id.clone(), intent: Some(intent_of(number)) };
    let mut inputs: Vec<Input> =
        vec![submit.into(), IntentAccepted { owner: owner.clone(), intent_id: intent_id.clone(), version: 1 }.into()];
    if !number.is_multiple_of(4) {
        let runs = InstanceChanged {
            owner: owner.clone(),
            instance_id: instance_id.clone(),
            intent_id: intent_id.clone(),
            cluster_id: "cloud".into(),
            generation: 1,
            phase: InstancePhase::Running.into(),
            ..Default::default()
        };
        inputs.extend([runs.into(), observed(1, 10.0)]);
    }
    match number % 4 {
        2 => inputs.extend([observed(2, 90.0), observed(3, 90.0)]),
        3 => inputs.push(TerminateIntent { owner: owner.clone(), intent_id: intent_id.clone(), if_revision: 0 }.into()),
        _ => {}
    }
    let (decider, mut entity, mut messages) = (Intents::default(), Entity::default(), vec![]);
    for (step, input) in inputs.into_iter().enumerate() {
        let at = match &input {
            Input::TargetObserved(observation) => observation.end.unwrap_or_default(),
            _ => Timestamp::default(),
        };
        let id = derived_id(&["many", &intent_id, &step.to_string()]);
        let envelope =
            Envelope { at, id: id.clone(), sequence: 0, body: input.any().body(), trigger: Trigger::Event(input) };
        let facts = decider.decide(&key, &entity, &(), &envelope).context("decide")?;
        for (position, fact) in facts.iter().enumerate() {
            entity = decider.evolve(entity, fact, at);
            messages.push(Outgoing::new(fact.any(), derived_id(&[&id, &position.to_string()]), at)?);
        }
    }
    Ok(messages)
}

/// Pages of the usual size, in turn with and without filters, from places all over the registry.
async fn lists(manager: &Manager, count: usize, pages: usize) -> anyhow::Result<Row> {
    let mut client = manager.client().await?;
    let list = |states: &[&str], label: &str, object: String| ListRequest {
        owner: OWNER.into(),
        states: states.iter().map(|state| (*state).to_owned()).collect(),
        user_label: label.into(),
        object_instance: object,
        ..Default::default()
    };
    let kinds = |number: usize| {
        let document = format!("document-{}@1.0.0", number % DOCUMENTS);
        [
            list(&[], "", String::new()),
            list(&["DEGRADED"], "", String::new()),
            list(&["ACKNOWLEDGED", "FULFILLED"], "SecureExecution", String::new()),
            list(&["SUSPENDED"], "", String::new()),
            list(&[], "", document.clone()),
            list(&["FULFILLED"], "DeliverComputingWorkload", document),
            list(&[], "", derived_id(&[OWNER, &id_of(number), "1"])),
        ]
    };
    let (mut times, mut found) = (vec![], 0);
    for number in 0..pages {
        let number = number * 7_919 % count;
        let mut request = kinds(number)[times.len() % 7].clone();
        // Somewhere between the first page and the last.
        if request.object_instance.is_empty() {
            request.page_token = id_of(number);
        }
        let begun = Instant::now();
        let page = client.list(request).await.context("list")?.into_inner();
        times.push(begun.elapsed());
        found += page.intents.len();
    }
    ensure!(found > pages * 10, "{found} intents were found on {pages} pages");
    let ms = |of: usize| percentile(&times, of).as_secs_f64() * 1e3;
    let detail = format!("{pages} pages of up to 100, {found} intents on them; p50 {:.2} ms, over gRPC", ms(50));
    Ok(Row::new(1, "a page of a list, p99", Bound::AtMost(20.0), " ms", ms(99), detail))
}

/// The intent manager as a process of its own; killed when dropped.
struct Manager {
    child: Child,
    address: SocketAddr,
    /// Seconds from its start until `/readyz` succeeded.
    ready_s: f64,
}

impl Manager {
    /// Starts it, with its intents in a database or embedded, and waits until it is ready.
    async fn start(rig: &Rig, documents: Option<&str>) -> anyhow::Result<Self> {
        // A port that was free a moment ago: the process announces its own only on the bus.
        let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let settings = Settings {
            bus_url: rig.server.url(),
            bus_seed_file: Some(Secret::at(rig.key("intent-manager")?)),
            listen: address.to_string(),
            log_level: "warn".into(),
            documents_url: documents.unwrap_or("memory:").into(),
            ..Settings::default()
        };
        let program = std::env::current_exe().context("find this program")?.with_file_name("intent-manager");
        ensure!(program.is_file(), "{} is not there; build it: cargo build -p intent-manager", program.display());
        let begun = Instant::now();
        let child = Command::new(program)
            .args(config::arguments(&settings).context("write the settings")?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("start the intent manager")?;
        let mut manager = Self { child, address, ready_s: 0.0 };
        while !manager.is_ready().await {
            if let Some(ended) = manager.child.try_wait()? {
                bail!("the intent manager has ended: {ended}");
            }
            ensure!(begun.elapsed() < READY_LIMIT, "it is not ready within {} s", READY_LIMIT.as_secs());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        manager.ready_s = begun.elapsed().as_secs_f64();
        Ok(manager)
    }

    async fn page(&self, path: &str) -> anyhow::Result<String> {
        let mut connection = TcpStream::connect(self.address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address);
        connection.write_all(request.as_bytes()).await?;
        let mut page = vec![];
        connection.take(1 << 20).read_to_end(&mut page).await?;
        Ok(String::from_utf8_lossy(&page).into_owned())
    }

    async fn is_ready(&self) -> bool {
        self.page("/readyz").await.is_ok_and(|page| page.starts_with("HTTP/1.1 200"))
    }

    async fn client(&self) -> anyhow::Result<IntentQueriesClient<Channel>> {
        Ok(IntentQueriesClient::connect(format!("http://{}", self.address)).await?)
    }

    fn resident_bytes(&self) -> anyhow::Result<f64> {
        let pid = self.child.id().context("the intent manager has ended")?;
        let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("read its memory")?;
        let kib: f64 = line.split_whitespace().next().context("read its memory")?.parse()?;
        Ok(kib * 1_024.0)
    }

    async fn stop(mut self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.child.id().context("the intent manager has ended")?;
        kill(Pid::from_raw(pid.cast_signed()), signal).context("stop the intent manager")?;
        tokio::time::timeout(READY_LIMIT, self.child.wait()).await.context("await its end")??;
        Ok(())
    }
}
