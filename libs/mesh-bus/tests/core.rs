//! The core of the bus against a real nats-server of the test's own: what is acknowledged is stored once, in order, whatever
//! happens to the server or to others who write.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]
#![allow(missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, PriorityPolicy, pull},
    stream::{Config, DiscardPolicy, Republish, SubjectTransform},
};
use bytes::Bytes;
use mesh_bus::{Bus, ConnectError, Options, PublishError, PullError, WriteError, Written};
use mesh_core::{Cause, Decision, Outgoing};
use mesh_proto::{Timestamp, derived_id};
use tokio::time::{Instant, timeout};

/// Every step ends within this, or the test fails.
const LIMIT: Duration = Duration::from_secs(60);

fn server_binary() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let named = std::env::var_os("CONTINUUM_NATS_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|p| p.join("nats-server"));
    let candidates = named.into_iter().chain([root.join(".tools/nats-server")]).chain(in_path);
    candidates.into_iter().find(|candidate| {
        let Ok(output) = Command::new(candidate).arg("--version").output() else { return false };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.trim().rsplit('v').next().unwrap_or_default();
        let numbers: Vec<u32> = version.split(['.', '-']).map_while(|n| n.parse().ok()).collect();
        numbers.as_slice() >= [2, 14, 4].as_slice()
    })
}

/// A nats-server of this test's own; killed and its folder removed when dropped.
struct Server {
    binary: PathBuf,
    folder: PathBuf,
    /// Its own, so that its port is free when it comes back.
    host: Ipv4Addr,
    port: u16,
    extra: String,
    child: Child,
}

impl Server {
    /// `None`, with a word about it, if there is no server to test with.
    fn start(extra: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let Some(binary) = server_binary() else {
            eprintln!("SKIPPED: mesh-bus core: no nats-server 2.14.4 or newer");
            return None;
        };
        let name = format!("core-{}-{}", std::process::id(), NUMBER.fetch_add(1, SeqCst));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let host = mesh_test::loopback();
        let (child, port) = launch(&binary, &folder, host, None, extra);
        Some(Self { binary, folder, host, port, extra: extra.to_owned(), child })
    }

    fn url(&self) -> String {
        format!("nats://{}:{}", self.host, self.port)
    }

    /// As if the power of its process were cut.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        (self.child, _) = launch(&self.binary, &self.folder, self.host, Some(self.port), &self.extra);
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    fn options(&self, service: &str) -> Options {
        Options {
            url: self.url(),
            service: service.to_owned(),
            api_prefix: "$JS.API".to_owned(),
            ack_timeout_ms: 2_000,
            ..Options::default()
        }
    }

    async fn bus(&self, service: &str) -> Bus {
        Bus::connect(self.options(service)).await.unwrap()
    }

    async fn jetstream(&self) -> jetstream::Context {
        let mut context = jetstream::new(async_nats::connect(self.url()).await.unwrap());
        context.set_timeout(Duration::from_secs(10));
        context
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[allow(clippy::zombie_processes)] // whoever holds the child waits for it; only a failed start does not
fn launch(binary: &Path, folder: &Path, host: Ipv4Addr, port: Option<u16>, extra: &str) -> (Child, u16) {
    let ports = folder.join("ports");
    let _ = std::fs::remove_dir_all(&ports);
    std::fs::create_dir_all(&ports).unwrap();
    let configuration = format!(
        "listen: \"{host}:{}\"\njetstream {{ store_dir: {:?}, sync_interval: always, max_file_store: 4G }}\nports_file_dir: {:?}\n{extra}\n",
        port.map_or(-1, i32::from),
        folder.join("store"),
        ports
    );
    let file = folder.join("nats.conf");
    std::fs::write(&file, configuration).unwrap();
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let child = Command::new(binary).arg("-c").arg(&file).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    if let Some(port) = port {
        return (child, port);
    }
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        assert!(std::time::Instant::now() < deadline, "nats-server wrote no ports file");
        let files = std::fs::read_dir(&ports).unwrap().filter_map(|f| std::fs::read_to_string(f.ok()?.path()).ok());
        for text in files {
            let address = text.split('"').find(|part| part.starts_with("nats://"));
            if let Some(port) = address.and_then(|a| a.rsplit(':').next()).and_then(|p| p.parse().ok()) {
                return (child, port);
            }
        }
        std::thread::yield_now();
    }
}

/// A stream of facts as the contract's are.
fn facts(name: &str) -> Config {
    let area = name.to_lowercase();
    Config {
        name: name.to_owned(),
        subjects: vec![format!("w.{area}.>")],
        subject_transform: Some(SubjectTransform { source: format!("w.{area}.>"), destination: format!("{area}.>") }),
        republish: Some(Republish {
            source: format!("{area}.*.v1.>"),
            destination: format!("{area}.{{{{wildcard(1)}}}}.v1.>"),
            headers_only: false,
        }),
        allow_direct: true,
        allow_atomic_publish: true,
        deny_delete: true,
        deny_purge: true,
        discard: DiscardPolicy::New,
        max_bytes: 512 << 20,
        ..Config::default()
    }
}

fn fact(key: &str, id: &str, body: &str) -> Outgoing {
    Outgoing {
        id: id.to_owned(),
        message: "continuum.intent.v1.IntentSubmitted".to_owned(),
        stream: "INTENT".to_owned(),
        subject: format!("intent.submitted.v1.local.{key}"),
        time: Timestamp::from_millis(1_795_318_929_462),
        cause: Some(Cause { stream: "INTENT_ASK".to_owned(), sequence: 1, id: "cause".to_owned() }),
        traceparent: None,
        world: vec![("CLUSTER".to_owned(), 12)],
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

/// The stream of commands.
fn commands() -> Config {
    Config {
        subjects: vec!["intent.ask.>".to_owned()],
        subject_transform: None,
        republish: None,
        ..facts("INTENT_ASK")
    }
}

fn command(number: usize) -> Outgoing {
    Outgoing {
        stream: "INTENT_ASK".to_owned(),
        subject: format!("intent.ask.submit.v1.local.{number}"),
        message: "continuum.intent.v1.SubmitIntent".to_owned(),
        ..fact("a", &format!("command-{number}"), &number.to_string())
    }
}

fn entity(key: &str) -> String {
    format!("intent.*.*.local.{key}")
}

fn decision(key: &str, expected: u64, ids: &[&str]) -> Decision {
    Decision { entity: entity(key), expected, messages: ids.iter().map(|id| fact(key, id, id)).collect() }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
}

/// All that is stored, in order.
async fn stored(bus: &Bus, stream: &str) -> Vec<mesh_core::Stored> {
    bus.log(stream).read(">", 1, usize::MAX).await.unwrap()
}

fn assert_dense(found: &[mesh_core::Stored]) {
    let sequences: Vec<u64> = found.iter().map(|m| m.sequence).collect();
    assert_eq!(sequences, (1..=found.len() as u64).collect::<Vec<_>>());
}

/// Eight writers, each on a connection of its own, read, decide and write on three entities; `disturb` runs meanwhile.
async fn race(options: impl Fn(&str) -> Options, rounds: usize, disturb: impl AsyncFnOnce(Arc<AtomicUsize>)) {
    let accepted = Arc::new(AtomicUsize::new(0));
    let mut tasks = vec![];
    for writer in 0..8 {
        let bus = Bus::connect(options(&format!("writer-{writer}"))).await.unwrap();
        let accepted = accepted.clone();
        tasks.push(tokio::spawn(async move {
            let (log, out) = (bus.log("INTENT"), bus.writer("INTENT"));
            for round in 0..rounds {
                let key = format!("e{}", (writer + round) % 3);
                loop {
                    // Read, decide one more than was read, write on condition that nobody was faster.
                    let Ok(last) = log.last(&entity(&key)).await else { continue };
                    let value =
                        last.as_ref().map_or(0, |m| std::str::from_utf8(&m.body).unwrap().parse::<u64>().unwrap());
                    let id = derived_id(&[&writer.to_string(), &round.to_string(), &value.to_string()]);
                    let mut messages = vec![fact(&key, &id, &(value + 1).to_string())];
                    if round % 5 == 0 {
                        messages.push(fact(&key, &format!("{id}b"), &(value + 2).to_string()));
                    }
                    let count = messages.len();
                    let expected = last.map_or(0, |m| m.sequence);
                    let decision = Decision { entity: entity(&key), expected, messages };
                    if let Written::Stored { .. } = out.write(decision).await.unwrap() {
                        accepted.fetch_add(count, SeqCst);
                        break;
                    }
                }
            }
            bus.close().await;
        }));
    }
    disturb(accepted.clone()).await;
    for task in tasks {
        within("a writer", task).await.unwrap();
    }
    let reader = Bus::connect(options("reader")).await.unwrap();
    let accepted = accepted.load(SeqCst);
    // A replica that lags may answer a read: what is missing then comes later, what is too much never goes.
    let found = within("all that was accepted", async {
        loop {
            let found = stored(&reader, "INTENT").await;
            if found.len() >= accepted {
                return found;
            }
        }
    })
    .await;
    assert_dense(&found);
    assert_eq!(found.len(), accepted);
    let mut values: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for message in &found {
        values.entry(&message.subject).or_default().push(std::str::from_utf8(&message.body).unwrap().parse().unwrap());
    }
    assert_eq!(values.len(), 3);
    for (subject, values) in values {
        assert_eq!(values, (1..=values.len() as u64).collect::<Vec<_>>(), "{subject}: an update was lost");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_writers_on_three_entities_lose_no_update() {
    let Some(server) = Server::start("") else { return };
    server.jetstream().await.create_stream(facts("INTENT")).await.unwrap();
    race(|name| server.options(name), 30, async |_| ()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_writers_lose_no_update_when_the_leader_is_killed() {
    let Some(mut servers) = cluster() else { return };
    let urls = servers.iter().map(Server::url).collect::<Vec<_>>().join(",");
    let jetstream = servers[0].jetstream().await;
    let config = Config { num_replicas: 3, ..facts("INTENT") };
    // The three elect a leader of their own first.
    within("a stream on three servers", async {
        while jetstream.create_or_update_stream(config.clone()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let options = |name: &str| Options { url: urls.clone(), read_limit_ms: 60_000, ..servers[0].options(name) };
    let (options, names): (_, Vec<String>) = (options, (0..3).map(|n| format!("s{n}")).collect());
    let killed = Arc::new(std::sync::Mutex::new(None));
    let told = killed.clone();
    let pids: Vec<u32> = servers.iter().map(|s| s.child.id()).collect();
    race(options, 20, async move |accepted| {
        within("a third of the writes", async {
            while accepted.load(SeqCst) < 60 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let info = jetstream.get_stream("INTENT").await.unwrap().cached_info().cluster.clone().unwrap();
        let leader = names.iter().position(|n| Some(n) == info.leader.as_ref()).unwrap();
        assert!(Command::new("kill").args(["-KILL", &pids[leader].to_string()]).status().unwrap().success());
        *told.lock().unwrap() = Some(leader);
    })
    .await;
    let leader = killed.lock().unwrap().take().unwrap();
    servers[leader].child.wait().unwrap();
}

/// Three servers that know each other.
fn cluster() -> Option<Vec<Server>> {
    let listen: Vec<_> = (0..3).map(|_| mesh_test::free_address()).collect();
    let routes = listen.iter().map(|a| format!("\"nats://{a}\"")).collect::<Vec<_>>().join(", ");
    (0..3)
        .map(|n| {
            let listen = listen[n];
            Server::start(&format!(
                "server_name: s{n}\ncluster {{ name: test, listen: \"{listen}\", routes: [{routes}] }}"
            ))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_stored_once_if_the_server_is_killed() {
    let Some(mut server) = Server::start("") else { return };
    server.jetstream().await.create_stream(facts("INTENT")).await.unwrap();
    let bus = server.bus("load").await;
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let tail_bus = server.bus("tail").await;
    let mut tail = tail_bus.log("INTENT").tail("intent.>", 1);
    let seen = tokio::spawn(async move {
        let mut seen = vec![];
        loop {
            let message = tail.next().await.unwrap();
            if message.id == "the-end" {
                return seen;
            }
            seen.push((message.sequence, message.id));
        }
    });
    let mut tasks = vec![];
    for worker in 0..200 {
        let (bus, stop, acknowledged) = (bus.clone(), stop.clone(), acknowledged.clone());
        tasks.push(tokio::spawn(async move {
            let (writer, key) = (bus.writer("INTENT"), format!("e{worker}"));
            let (mut last, mut acked) = (0, vec![]);
            for round in 0.. {
                if stop.load(SeqCst) {
                    break;
                }
                let count = if worker % 10 == 0 { 3 } else { 1 };
                let ids: Vec<String> =
                    (0..count).map(|n| derived_id(&[&key, &round.to_string(), &n.to_string()])).collect();
                let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                match writer.write(decision(&key, last, &ids)).await.unwrap() {
                    Written::Stored { last: now } => last = now,
                    Written::Stale { last: now } => panic!("{key} has one writer, but moved from {last} to {now:?}"),
                }
                acked.extend(ids.iter().map(|id| (*id).to_owned()));
                acknowledged.fetch_add(count, SeqCst);
            }
            acked
        }));
    }
    let mut recovery = vec![];
    for _ in 0..6 {
        let before = acknowledged.load(SeqCst);
        within("writes between two kills", async {
            while acknowledged.load(SeqCst) < before + 2_000 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        server.kill();
        let begin = acknowledged.load(SeqCst);
        server.restart();
        let restarted = Instant::now();
        within("the first write after a kill", async {
            while acknowledged.load(SeqCst) == begin {
                tokio::task::yield_now().await;
            }
        })
        .await;
        recovery.push(restarted.elapsed());
    }
    stop.store(true, SeqCst);
    let mut acked = vec![];
    for task in tasks {
        acked.extend(within("a worker", task).await.unwrap());
    }
    within("the end", bus.publish(&fact("end", "the-end", ""))).await.unwrap();
    let mut found = stored(&bus, "INTENT").await;
    assert_dense(&found);
    assert_eq!(found.pop().unwrap().id, "the-end");
    let ids: BTreeSet<&str> = found.iter().map(|m| m.id.as_str()).collect();
    assert_eq!(ids.len(), found.len(), "a fact is stored twice");
    assert_eq!(ids, acked.iter().map(String::as_str).collect::<BTreeSet<_>>());
    let seen = within("the tail", seen).await.unwrap();
    assert_eq!(seen, found.into_iter().map(|m| (m.sequence, m.id)).collect::<Vec<_>>());
    assert_eq!(bus.state().borrow().epoch, 7);
    let stats = bus.stats();
    eprintln!(
        "{} acknowledged, all stored once, over 6 kills; start to next acknowledgement {recovery:?}; settled by reading {:?}, sent again {:?}",
        acked.len(),
        stats.settled,
        stats.resent
    );
    bus.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_tail_is_in_order_and_without_a_gap_across_a_restart() {
    let Some(mut server) = Server::start("") else { return };
    server.jetstream().await.create_stream(facts("INTENT")).await.unwrap();
    let bus = server.bus("tails").await;
    let writer = bus.writer("INTENT");
    let mut last = BTreeMap::new();
    let mut expected: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let filters = ["intent.>", "intent.submitted.v1.local.a", "intent.*.*.local.b"];
    let mut tails: Vec<_> = filters.iter().map(|f| bus.log("INTENT").tail(f, 1)).collect();
    let mut seen: Vec<Vec<u64>> = vec![vec![]; filters.len()];
    for round in 0..3 {
        for number in 0..40 {
            let key = ["a", "b", "c"][number % 3];
            let id = format!("{round}-{number}");
            let before = last.get(key).copied().unwrap_or_default();
            let Written::Stored { last: now } = writer.write(decision(key, before, &[&id])).await.unwrap() else {
                panic!("nobody else writes");
            };
            last.insert(key, now);
            expected.entry("intent.>").or_default().push(now);
            match key {
                "a" => expected.entry("intent.submitted.v1.local.a").or_default().push(now),
                "b" => expected.entry("intent.*.*.local.b").or_default().push(now),
                _ => {}
            }
        }
        for (filter, (tail, seen)) in filters.iter().zip(tails.iter_mut().zip(&mut seen)) {
            while seen.last() != expected[filter].last() {
                let next = within("a tail", tail.next()).await.unwrap();
                assert_eq!(next.cause.as_ref().unwrap().stream, "INTENT_ASK");
                seen.push(next.sequence);
            }
            assert_eq!(*seen, expected[filter], "{filter}");
        }
        server.kill();
        server.restart();
    }
    let mut late = bus.log("INTENT").tail("intent.>", 100);
    assert_eq!(within("a late tail", late.next()).await.unwrap().sequence, 100);
    assert_eq!(late.position(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_was_not_read_for_long_fills_what_overflowed() {
    let Some(server) = Server::start("") else { return };
    server.jetstream().await.create_stream(facts("INTENT")).await.unwrap();
    let (bus, reader) = (server.bus("writer").await, server.bus("reader").await);
    bus.publish(&fact("x", "first", "")).await.unwrap();
    let mut tail = reader.log("INTENT").tail("intent.>", 1);
    assert_eq!(within("the first", tail.next()).await.unwrap().id, "first");
    // Drives it into following live: it returns only when there is something new.
    assert!(timeout(Duration::from_millis(300), tail.next()).await.is_err());
    assert!(tail.is_caught_up());
    let count = 20_000_u64;
    let writer = bus.writer("INTENT");
    let writes = (0..count).map(|n| writer.write(decision(&format!("k{n}"), 0, &[&n.to_string()])));
    within("the writes", futures::future::try_join_all(writes)).await.unwrap();
    // Until all of it has come, and what found no room is gone.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for sequence in 2..=count + 2 {
        assert_eq!(within("the tail", tail.next()).await.unwrap().sequence, sequence);
        if sequence == 10_000 {
            // Finds room, and comes live behind what overflowed, so that the gap before it shows.
            bus.publish(&fact("x", "after", "")).await.unwrap();
        }
    }
    assert!(reader.stats().gaps_filled.load(SeqCst) > 0, "nothing overflowed, so nothing was tested");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_the_duplicate_window_stores_nothing_twice() {
    let Some(server) = Server::start("") else { return };
    let window = Duration::from_millis(100);
    let config = Config { duplicate_window: window, ..facts("INTENT") };
    server.jetstream().await.create_stream(config).await.unwrap();
    let bus = server.bus("retry").await;
    let writer = bus.writer("INTENT");
    let single: Vec<Decision> = (0..20).map(|n| decision(&format!("s{n}"), 0, &[&format!("s{n}")])).collect();
    let several: Vec<Decision> =
        (0..20).map(|n| decision(&format!("m{n}"), 0, &[&format!("m{n}-1"), &format!("m{n}-2")])).collect();
    let all: Vec<Decision> = single.into_iter().chain(several).collect();
    let mut first = vec![];
    for decision in &all {
        first.push(writer.write(decision.clone()).await.unwrap());
    }
    assert!(first.iter().all(|w| matches!(w, Written::Stored { .. })));
    // The window has passed once the server takes a message with a known id again.
    let begin = bus.publish(&fact("probe", "probe", "")).await.unwrap();
    within("the duplicate window", async { while bus.publish(&fact("probe", "probe", "")).await.unwrap() == begin {} })
        .await;
    let before = bus.log("INTENT").last_sequence().await.unwrap();
    for (decision, first) in all.iter().zip(&first) {
        assert_eq!(writer.write(decision.clone()).await.unwrap(), *first);
    }
    let together = all.iter().map(|d| writer.write(d.clone()));
    assert_eq!(within("a merged retry", futures::future::try_join_all(together)).await.unwrap(), first);
    assert_eq!(bus.log("INTENT").last_sequence().await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_decisions_of_one_entity_are_never_both_stored() {
    let Some(server) = Server::start("") else { return };
    server.jetstream().await.create_stream(facts("INTENT")).await.unwrap();
    let bus = server.bus("storm").await;
    let writer = bus.writer("INTENT");
    let (entities, rivals) = (40, 25);
    let mut writes = vec![];
    for rival in 0..rivals {
        for e in 0..entities {
            let ids = [format!("{e}-{rival}-1"), format!("{e}-{rival}-2")];
            let ids: Vec<&str> = ids.iter().take(1 + rival % 2).map(String::as_str).collect();
            writes.push(writer.write(decision(&format!("e{e}"), 0, &ids)));
        }
    }
    let written = within("the storm", futures::future::try_join_all(writes)).await.unwrap();
    let winners = written.iter().filter(|w| matches!(w, Written::Stored { .. })).count();
    assert_eq!(winners, entities);
    assert!(written.iter().all(|w| !matches!(w, Written::Stale { last: None })), "stale without a last fact");
    let found = stored(&bus, "INTENT").await;
    for e in 0..entities {
        let subject = format!("intent.submitted.v1.local.e{e}");
        let rivals: BTreeSet<&str> =
            found.iter().filter(|m| m.subject == subject).map(|m| m.id.rsplit_once('-').unwrap().0).collect();
        assert_eq!(rivals.len(), 1, "{subject} holds facts of two decisions: {rivals:?}");
    }
    for (index, written) in written.iter().enumerate() {
        if let Written::Stored { last } = written {
            let subject = format!("intent.submitted.v1.local.e{}", index % entities);
            assert_eq!(found[*last as usize - 1].subject, subject, "a wrong sequence was told");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_rest_a_decision_is_one_publish_and_in_a_queue_many_are_one_batch() {
    let Some(server) = Server::start("") else { return };
    server.jetstream().await.create_stream(facts("INTENT")).await.unwrap();
    let bus = server.bus("shape").await;
    let writer = bus.writer("INTENT");
    let mut last = 0;
    for n in 0..50 {
        let Written::Stored { last: now } = writer.write(decision("a", last, &[&n.to_string()])).await.unwrap() else {
            panic!("nobody else writes");
        };
        last = now;
    }
    assert_eq!(bus.stats().batches.load(SeqCst), 0);
    let writes = (0..5_000).map(|n| writer.write(decision(&format!("k{n}"), 0, &[&format!("k{n}")])));
    within("the writes", futures::future::try_join_all(writes)).await.unwrap();
    let (batches, messages) = (bus.stats().batches.load(SeqCst), bus.stats().batch_messages.load(SeqCst));
    assert!(messages > 4_900, "{messages} of 5,000 travelled in batches");
    assert!(messages / batches >= 50, "{messages} messages in {batches} batches");
    assert_dense(&stored(&bus, "INTENT").await);
}

/// Callers that each write one decision after the other: never more than there are callers wait at once.
#[tokio::test(flavor = "multi_thread")]
async fn under_load_decisions_are_gathered_into_few_batches() {
    const CALLERS: usize = 64;
    const ROUNDS: usize = 60;
    let Some(server) = Server::start("") else { return };
    server.jetstream().await.create_stream(facts("INTENT")).await.unwrap();
    let bus = server.bus("load").await;
    let callers = (0..CALLERS).map(|caller| {
        let writer = bus.writer("INTENT");
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                let id = format!("{caller}-{round}");
                let written = writer.write(decision(&id, 0, &[&id])).await.unwrap();
                assert!(matches!(written, Written::Stored { .. }));
            }
        })
    });
    let callers = futures::future::join_all(callers.collect::<Vec<_>>());
    for caller in within("the callers", callers).await {
        caller.unwrap();
    }
    let written = (CALLERS * ROUNDS) as u64;
    let (batches, gathered) = (bus.stats().batches.load(SeqCst), bus.stats().batch_messages.load(SeqCst));
    eprintln!("{gathered} of {written} decisions in {batches} batches");
    assert!(gathered * 10 >= written * 9, "{gathered} of {written} decisions travelled in batches");
    assert!(gathered / batches >= CALLERS as u64 / 2, "{gathered} decisions in {batches} batches");
    assert_dense(&stored(&bus, "INTENT").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_write_is_settled_by_reading() {
    let Some(server) = Server::start("") else { return };
    server.jetstream().await.create_stream(facts("INTENT")).await.unwrap();
    let bus = Bus::connect(Options { ack_timeout_ms: 200, ..server.options("paused") }).await.unwrap();
    let writer = bus.writer("INTENT");
    assert_eq!(writer.write(decision("a", 0, &["1"])).await.unwrap(), Written::Stored { last: 1 });
    server.signal("-STOP");
    let one = tokio::spawn(writer.write(decision("a", 1, &["2"])));
    let many = tokio::spawn(writer.write(decision("b", 0, &["3", "4"])));
    // Each alone, or both in one batch.
    within("a time-out", async {
        while bus.stats().settled.load(SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.signal("-CONT");
    assert!(matches!(within("one", one).await.unwrap().unwrap(), Written::Stored { .. }));
    assert!(matches!(within("many", many).await.unwrap().unwrap(), Written::Stored { .. }));
    let mut ids: Vec<String> = stored(&bus, "INTENT").await.into_iter().map(|m| m.id).collect();
    ids.sort();
    assert_eq!(ids, ["1", "2", "3", "4"]);

    // Another replica gives the facts of the same input the same ids; one that decided from an older state may say the
    // same at the end and something else before. That is not taken for its own.
    assert_eq!(writer.write(decision("c", 0, &["5"])).await.unwrap(), Written::Stored { last: 5 });
    assert_eq!(writer.write(decision("c", 5, &["6", "7"])).await.unwrap(), Written::Stored { last: 7 });
    let messages = vec![fact("c", "6", "decided from nothing"), fact("c", "7", "7")];
    let older = Decision { messages, ..decision("c", 0, &[]) };
    assert_eq!(writer.write(older).await.unwrap(), Written::Stale { last: Some(7) });
    let same = writer.write(decision("c", 5, &["6", "7"])).await.unwrap();
    assert_eq!(same, Written::Stored { last: 7 }, "from the same state it is the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_is_reported_and_its_writes_wait() {
    let Some(server) = Server::start("") else { return };
    let jetstream = server.jetstream().await;
    let small = Config { max_bytes: 64 << 10, ..facts("INTENT") };
    jetstream.create_stream(small.clone()).await.unwrap();
    let bus = server.bus("full").await;
    let writer = bus.writer("INTENT");
    let writes: Vec<_> = (0..400)
        .map(|n| {
            let (a, b) = (format!("{n}a"), format!("{n}b"));
            let ids = [a.as_str(), b.as_str()];
            tokio::spawn(writer.write(decision(&format!("e{n}"), 0, &ids[..1 + n % 2])))
        })
        .collect();
    let mut state = bus.state();
    within("the stream to be full", state.wait_for(|s| s.full.as_deref() == Some("INTENT"))).await.unwrap();
    let many = bus.publish_many(vec![fact("p", "p1", ""), fact("p", "p2", "")]);
    jetstream.update_stream(Config { max_bytes: 64 << 20, ..small }).await.unwrap();
    for write in writes {
        assert!(matches!(within("a waiting write", write).await.unwrap().unwrap(), Written::Stored { .. }));
    }
    within("messages without condition", many).await.unwrap();
    within("the state", state.wait_for(|s| s.full.is_none())).await.unwrap();
    assert_eq!(stored(&bus, "INTENT").await.len(), 602);

    // Closed while it waits, a decision is told why it was not written.
    let used = bus.log("INTENT").last_sequence().await.unwrap() as i64;
    jetstream.update_stream(Config { max_messages: used, ..facts("INTENT") }).await.unwrap();
    let waiting = tokio::spawn(writer.write(decision("late", 0, &["late"])));
    within("the stream to be full again", state.wait_for(|s| s.full.is_some())).await.unwrap();
    within("close", bus.close()).await;
    assert!(matches!(within("the late one", waiting).await.unwrap(), Err(WriteError::Full { .. })));
    assert!(matches!(writer.write(decision("later", 0, &["later"])).await, Err(WriteError::Closed { .. })));
}

async fn durable(jetstream: &jetstream::Context, pin: Duration) {
    let config = pull::Config {
        durable_name: Some("intents".to_owned()),
        ack_policy: AckPolicy::All,
        ack_wait: Duration::from_secs(3),
        max_ack_pending: 10_000,
        filter_subject: "intent.submitted.>".to_owned(),
        priority_policy: PriorityPolicy::PinnedClient,
        priority_groups: vec!["g".to_owned()],
        priority_timeout: pin,
        ..pull::Config::default()
    };
    jetstream.get_stream("INTENT").await.unwrap().create_consumer(config).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pin_moves_when_the_pinned_replica_dies() {
    let Some(server) = Server::start("") else { return };
    let jetstream = server.jetstream().await;
    jetstream.create_stream(facts("INTENT")).await.unwrap();
    durable(&jetstream, Duration::from_secs(1)).await;
    let (writer, a, b) = (server.bus("w").await, server.bus("a").await, server.bus("b").await);
    let missing = a.pull("INTENT", "nobody").await;
    assert!(matches!(missing, Err(PullError::Missing { .. })), "{:?}", missing.err());
    let mut first = a.pull("INTENT", "intents").await.unwrap();
    writer.publish(&fact("x", "1", "")).await.unwrap();
    assert_eq!(within("the first", first.next()).await.unwrap().id, "1");
    assert!(first.is_pinned());
    first.ack_through(1);
    let mut second = b.pull("INTENT", "intents").await.unwrap();
    // Several times the pin's life passes while nothing flows, and it does not move.
    assert!(timeout(Duration::from_secs(3), second.next()).await.is_err());
    assert!(!second.is_pinned());
    for n in 2..=50 {
        writer.publish(&fact("x", &n.to_string(), "")).await.unwrap();
    }
    for n in 2..=50 {
        let message = within("in order", first.next()).await.unwrap();
        assert_eq!((message.id, message.sequence, message.delivered), (n.to_string(), n, 1));
    }
    assert!(first.is_pinned() && !second.is_pinned());
    assert_eq!(first.info().await.unwrap().pinned, first.pin());
    first.ack_through(40);
    within("the acknowledgement", async { while first.info().await.unwrap().ack_floor != 40 {} }).await;
    // It dies with ten messages in hand; they come again to the other, as does what is new.
    drop(first);
    a.close().await;
    writer.publish(&fact("x", "51", "")).await.unwrap();
    let mut got = BTreeSet::new();
    while got.len() < 11 {
        got.insert(within("the take-over", second.next()).await.unwrap().sequence);
    }
    assert_eq!(got, (41..=51).collect());
    assert!(second.is_pinned());
    second.ack_through(51);
    within("the acknowledgement", async { while second.info().await.unwrap().ack_floor != 51 {} }).await;
    let info = second.info().await.unwrap();
    assert_eq!((info.delivered, info.pending), (51, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_after_the_server_was_killed_and_gives_all() {
    let Some(mut server) = Server::start("") else { return };
    let jetstream = server.jetstream().await;
    jetstream.create_stream(facts("INTENT")).await.unwrap();
    durable(&jetstream, Duration::from_secs(1)).await;
    let bus = server.bus("reader").await;
    let mut pull = bus.pull("INTENT", "intents").await.unwrap();
    let mut got = BTreeSet::new();
    let mut written = 0;
    for round in 0..4_u64 {
        let many = (0..3_000).map(|n| fact(&format!("k{n}"), &format!("{round}-{n}"), "")).collect();
        within("the messages", bus.publish_many(many)).await.unwrap();
        written += 3_000;
        while got.len() < written - 1_000 {
            got.insert(within("a message", pull.next()).await.unwrap().sequence);
        }
        pull.ack_through(*got.last().unwrap() - 500);
        server.kill();
        server.restart();
    }
    while got.len() < written {
        got.insert(within("a message", pull.next()).await.unwrap().sequence);
    }
    assert_eq!(got, (1..=written as u64).collect());
    pull.ack_through(written as u64);
    // A killed server may have forgotten that it delivered the last ones: it hands them out again, to whoever reads on.
    within("the last acknowledgement", async {
        while pull.info().await.unwrap().ack_floor != written as u64 {
            let _again = timeout(Duration::from_millis(100), pull.next()).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_keeps_its_pin_and_loses_nothing() {
    let Some(server) = Server::start("") else { return };
    let jetstream = server.jetstream().await;
    jetstream.create_stream(facts("INTENT")).await.unwrap();
    durable(&jetstream, Duration::from_secs(1)).await;
    let bus = server.bus("slow").await;
    let mut pull = bus.pull("INTENT", "intents").await.unwrap();
    let many = (0..6_000).map(|n| fact(&format!("k{n}"), &n.to_string(), "")).collect();
    within("the messages", bus.publish_many(many)).await.unwrap();
    assert_eq!(within("the first", pull.next()).await.unwrap().sequence, 1);
    let other = server.bus("other").await;
    let mut stand_by = other.pull("INTENT", "intents").await.unwrap();
    assert!(
        timeout(Duration::from_secs(2), stand_by.next()).await.is_err(),
        "the pin moved from a reader that only stalls"
    );
    let mut got = BTreeSet::from([1]);
    while got.len() < 6_000 {
        got.insert(within("a message", pull.next()).await.unwrap().sequence);
        pull.ack_through(*got.last().unwrap());
    }
    assert_eq!(got.last(), Some(&6_000));
    assert!(pull.is_pinned());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unconditional_message_is_stored_once_however_often_published() {
    let Some(server) = Server::start("") else { return };
    let jetstream = server.jetstream().await;
    jetstream.create_stream(facts("INTENT")).await.unwrap();
    let observation = Config { discard: DiscardPolicy::Old, ..facts("OBSERVATION") };
    jetstream.create_stream(observation).await.unwrap();
    let bus = server.bus("publisher").await;
    let message = fact("a", "once", "");
    assert_eq!(bus.publish(&message).await.unwrap(), 1);
    assert_eq!(bus.publish(&message).await.unwrap(), 1);
    let derived: Vec<Outgoing> = (0..2_500)
        .map(|n| Outgoing {
            stream: "OBSERVATION".to_owned(),
            subject: format!("observation.target_observed.v1.local.{n}"),
            message: "continuum.observation.v1.TargetObserved".to_owned(),
            ..fact("a", &n.to_string(), "")
        })
        .collect();
    within("derived events", bus.publish_many(derived.clone())).await.unwrap();
    let batches = bus.stats().batches.load(SeqCst);
    assert!(batches > 0);
    let mut again = derived.clone();
    again.rotate_left(7);
    within("the same again", bus.publish_many(again)).await.unwrap();
    assert_eq!(stored(&bus, "OBSERVATION").await.len(), 2_500);
    let too_large = Outgoing { body: vec![0; 2 << 20].into(), ..fact("a", "large", "") };
    assert!(matches!(bus.publish(&too_large).await, Err(PublishError::TooLarge { .. })));
    let decided = Decision { entity: entity("a"), expected: 1, messages: vec![too_large] };
    assert!(matches!(bus.writer("INTENT").write(decided).await, Err(WriteError::TooLarge { .. })));
    let nowhere = Outgoing { stream: "DEAD".to_owned(), subject: "dead.x".to_owned(), ..fact("a", "dead", "") };
    let hasty = Bus::connect(Options { publish_limit_ms: 300, ..server.options("hasty") }).await.unwrap();
    assert!(matches!(hasty.publish(&nowhere).await, Err(PublishError::Unanswered { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_come_at_once_travel_together_and_each_gets_its_place() {
    let Some(server) = Server::start("") else { return };
    let jetstream = server.jetstream().await;
    jetstream.create_stream(commands()).await.unwrap();
    let bus = server.bus("publisher").await;
    let publish = |numbers: Vec<usize>| {
        let bus = bus.clone();
        async move {
            let each = numbers.into_iter().map(|n| {
                let (bus, message) = (bus.clone(), command(n));
                async move { (n, bus.publish(&message).await.unwrap()) }
            });
            within("the commands", futures::future::join_all(each)).await
        }
    };
    assert_eq!(publish(vec![0]).await, [(0, 1)]);
    assert_eq!(bus.stats().batches.load(SeqCst), 0, "alone, a command is one publish");
    let mut places = publish((1..500).collect()).await;
    let batches = bus.stats().batches.load(SeqCst);
    assert!((1..100).contains(&batches), "{batches} batches");
    // Among new ones come some that are known: they are where they were, and the new ones are stored all the same.
    places.extend(publish((450..700).collect()).await);
    let found = stored(&bus, "INTENT_ASK").await;
    assert_eq!(found.len(), 700, "each once");
    for (n, place) in places {
        let there = found.iter().find(|m| m.sequence == place).unwrap();
        assert_eq!((&*there.id, &*there.body), (&*format!("command-{n}"), n.to_string().as_bytes()));
    }
    let time = found[349].stored;
    let since = bus.log("INTENT_ASK").since(time).await.unwrap().unwrap();
    let first = found.iter().find(|m| m.stored >= time).unwrap();
    assert_eq!(since.sequence, first.sequence, "the first that was stored then or later");
    let late = time.plus_millis(3_600_000);
    assert!(bus.log("INTENT_ASK").since(late).await.unwrap().is_none());
    let all = bus.log("INTENT_ASK").since(Timestamp::default()).await.unwrap();
    assert_eq!(all.map(|m| m.sequence), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_beyond_the_limit_wait_for_room_and_are_stored_once() {
    let Some(server) = Server::start("") else { return };
    server.jetstream().await.create_stream(commands()).await.unwrap();
    let options = Options { gather_limit: 10, ..server.options("publisher") };
    let bus = Bus::connect(options).await.unwrap();
    let publish = |n| {
        let bus = bus.clone();
        async move { bus.publish(&command(n)).await }
    };
    let places = within("the commands", futures::future::try_join_all((0..300).map(publish))).await.unwrap();
    let places: BTreeSet<u64> = places.into_iter().collect();
    assert_eq!(places, (1..=300).collect());
    let stats = bus.stats();
    assert!(stats.commands_held.load(SeqCst) > 0, "more came than may wait");
    assert_eq!(stats.commands_refused.load(SeqCst), 0);
    // None of its batches could hold more than may wait.
    assert!(stats.batch_messages.load(SeqCst) <= 10 * stats.batches.load(SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_without_room_is_refused_as_busy_after_the_limit() {
    const LIMIT_MS: u64 = 300;
    let Some(server) = Server::start("") else { return };
    server.jetstream().await.create_stream(commands()).await.unwrap();
    let options =
        Options { gather_limit: 2, publish_limit_ms: LIMIT_MS, ack_timeout_ms: 5_000, ..server.options("publisher") };
    let bus = Bus::connect(options).await.unwrap();
    server.signal("-STOP");
    // Eight are on their way, two wait to be gathered, five wait for room.
    let each = (0..15).map(|n| {
        let bus = bus.clone();
        async move { (n, bus.publish(&command(n)).await) }
    });
    let all = tokio::spawn(futures::future::join_all(each.collect::<Vec<_>>()));
    within("the refusals", async {
        while bus.stats().commands_refused.load(SeqCst) < 5 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.signal("-CONT");
    for (n, result) in within("the commands", all).await.unwrap() {
        match (n, result) {
            (0..8, Err(PublishError::Unanswered { limit_ms: LIMIT_MS, .. })) | (8..10, _) => {}
            (10.., Err(PublishError::Busy { stream, limit: 2, waited_ms: LIMIT_MS, .. })) if stream == "INTENT_ASK" => {
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bus.stats().commands_held.load(SeqCst), 5);
    // There is room again for those that come later.
    within("a later command", bus.publish(&command(99))).await.unwrap();
    bus.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_the_right_is_denied() {
    let pair = |seed: u8| nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::User, [seed; 32]).unwrap();
    let (admin, service) = (pair(1), pair(2));
    let configuration = format!(
        "authorization {{ users: [ {{ nkey: {} }}, {{ nkey: {}, permissions: {{ publish: {{ allow: [\"w.intent.*.v1.local.mine\", \"$JS.API.DIRECT.GET.>\"] }}, subscribe: \"_INBOX_service.>\" }} }} ] }}",
        admin.public_key(),
        service.public_key()
    );
    let Some(server) = Server::start(&configuration) else { return };
    let seeded =
        |service: &str, pair: &nkeys::KeyPair| Options { seed: Some(pair.seed().unwrap()), ..server.options(service) };
    let client = async_nats::ConnectOptions::with_nkey(admin.seed().unwrap()).connect(server.url()).await.unwrap();
    jetstream::new(client).create_stream(facts("INTENT")).await.unwrap();

    let anonymous = Bus::connect(server.options("nobody")).await;
    assert!(matches!(anonymous, Err(ConnectError::Identity { .. })), "{:?}", anonymous.err());
    let options = seeded("service", &service);
    assert!(!format!("{options:?}").contains(&service.seed().unwrap()));
    let bus = Bus::connect(options).await.unwrap();
    let writer = bus.writer("INTENT");
    assert_eq!(writer.write(decision("mine", 0, &["1"])).await.unwrap(), Written::Stored { last: 1 });
    assert!(matches!(writer.write(decision("yours", 0, &["2"])).await, Err(WriteError::Denied { .. })));
    let several = within("several facts", writer.write(decision("yours", 0, &["3", "4"]))).await;
    assert!(matches!(several, Err(WriteError::Denied { .. })), "{several:?}");
    assert!(matches!(bus.publish(&fact("yours", "5", "")).await, Err(PublishError::Denied { .. })));
    // In one queue, what is permitted is stored beside what is not.
    let keys = (0..60).map(|n| if n == 30 { "mine".to_owned() } else { format!("e{n}") });
    let mixed = keys.map(|key| writer.write(decision(&key, u64::from(key == "mine"), &[&format!("mixed-{key}")])));
    let mixed = within("a mixed queue", futures::future::join_all(mixed)).await;
    let stored_ones = mixed.iter().filter(|w| matches!(w, Ok(Written::Stored { last: 2 }))).count();
    let denied = mixed.iter().filter(|w| matches!(w, Err(WriteError::Denied { .. }))).count();
    assert_eq!((stored_ones, denied), (1, 59));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_do_not_republish_are_followed_too() {
    let Some(server) = Server::start("") else { return };
    let jetstream = server.jetstream().await;
    for (name, subject) in [("TELEMETRY", "telemetry.>"), ("INTENT_ASK", "intent.ask.>")] {
        let config = Config {
            name: name.to_owned(),
            subjects: vec![subject.to_owned()],
            allow_direct: true,
            ..Config::default()
        };
        jetstream.create_stream(config).await.unwrap();
    }
    let bus = server.bus("poller").await;
    let mut asks = bus.log("INTENT_ASK").tail("intent.ask.>", 1);
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut forged = async_nats::HeaderMap::new();
    forged.insert("Nats-Stream", "INTENT");
    forged.insert("Nats-Sequence", "77");
    client.publish_with_headers("intent.ask.submit.v1.local.a", forged, "{}".into()).await.unwrap();
    let ask = within("a command", asks.next()).await.unwrap();
    assert_eq!((ask.stream.as_str(), ask.sequence, ask.id.as_str()), ("INTENT_ASK", 1, "INTENT_ASK:1"));
    assert_eq!(ask.message, "continuum.intent.v1.SubmitIntent");
    let mut samples = bus.log("TELEMETRY").tail("telemetry.>", 1);
    for n in 0..3_000 {
        client.publish("telemetry.measured.v1.c.i", n.to_string().into()).await.unwrap();
    }
    for n in 1..=3_000 {
        assert_eq!(within("a sample", samples.next()).await.unwrap().sequence, n);
    }
    assert!(samples.is_caught_up() || samples.position() == 3_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_read_by_sequence_and_by_filter() {
    let Some(server) = Server::start("") else { return };
    server.jetstream().await.create_stream(facts("INTENT")).await.unwrap();
    let bus = server.bus("reader").await;
    let log = bus.log("INTENT");
    assert_eq!((log.last_sequence().await.unwrap(), log.get(1).await.unwrap()), (0, None));
    assert!(log.read("intent.>", 1, 10).await.unwrap().is_empty());
    let many = (0..2_345).map(|n| fact(["a", "b"][n % 2], &n.to_string(), "")).collect();
    bus.publish_many(many).await.unwrap();
    assert_eq!(log.last_sequence().await.unwrap(), 2_345);
    assert_eq!(log.get(7).await.unwrap().unwrap().sequence, 7);
    assert_eq!(log.get(9_999).await.unwrap(), None);
    assert_eq!(log.last("intent.*.*.local.c").await.unwrap(), None);
    assert_dense(&log.read("intent.>", 1, usize::MAX).await.unwrap());
    let some = log.read("intent.*.*.local.a", 100, 1_100).await.unwrap();
    assert_eq!(some.len(), 1_100);
    assert!(some.iter().all(|m| m.subject.ends_with(".a") && m.sequence >= 100));
    assert!(some.windows(2).all(|w| w[0].sequence < w[1].sequence));
    let last = log.last("intent.*.*.local.a").await.unwrap().unwrap();
    assert_eq!(last.sequence, log.read("intent.*.*.local.a", 1, usize::MAX).await.unwrap().last().unwrap().sequence);
    let absent = Bus::connect(Options { read_limit_ms: 300, ..server.options("absent") }).await.unwrap();
    assert!(absent.log("REPORT").last_sequence().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_the_last_value_of_each_key() {
    let Some(server) = Server::start("") else { return };
    let config = Config {
        name: "KV_snapshot-intents".to_owned(),
        subjects: vec!["$KV.snapshot-intents.>".to_owned()],
        max_messages_per_subject: 1,
        allow_rollup: true,
        allow_direct: true,
        allow_atomic_publish: true,
        deny_delete: true,
        discard: DiscardPolicy::New,
        ..Config::default()
    };
    server.jetstream().await.create_stream(config).await.unwrap();
    let bus = server.bus("keeper").await;
    let bucket = bus.bucket("snapshot-intents");
    assert_eq!(bucket.get("local.a").await.unwrap(), None);
    let values = (0..2_500).map(|n| (format!("local.k{n}"), Bytes::from(n.to_string()))).collect();
    within("the values", bucket.put_all(values)).await.unwrap();
    within("one value", bucket.put_all(vec![("local.k7".to_owned(), Bytes::from_static(b"seven"))])).await.unwrap();
    assert_eq!(bucket.get("local.k7").await.unwrap().as_deref(), Some(&b"seven"[..]));
    assert_eq!(bucket.get("local.k2499").await.unwrap().as_deref(), Some(&b"2499"[..]));
    bucket.delete("local.k7").await.unwrap();
    assert_eq!(bucket.get("local.k7").await.unwrap(), None);
    assert_eq!(bucket.all().await.unwrap().len(), 2_499);
    // A fence: values are set only by the one who saw its last revision, and the fence moves with the last of them.
    let many: Vec<_> = (0..1_500).map(|n| (format!("local.f{n}"), Bytes::from(n.to_string()))).collect();
    let first =
        within("a fenced write", bucket.put_all_if(("fence", Some(Bytes::from_static(b"1"))), 0, many)).await.unwrap();
    let (value, revision) = bucket.entry("fence").await.unwrap().unwrap();
    assert_eq!((value.as_ref(), Some(revision)), (&b"1"[..], first));
    let kept = vec![("local.f1".to_owned(), Bytes::from_static(b"kept"))];
    let revision = bucket.put_all_if(("fence", None), revision, kept).await.unwrap().unwrap();
    assert_eq!(bucket.entry("fence").await.unwrap(), Some((Bytes::from_static(b"1"), revision)), "the fence moves on");
    let other = vec![("local.f0".to_owned(), Bytes::from_static(b"other"))];
    let late = bucket.put_all_if(("fence", Some(Bytes::from_static(b"2"))), revision - 1, other.clone()).await.unwrap();
    assert_eq!((late, bucket.get("local.f0").await.unwrap().as_deref()), (None, Some(&b"0"[..])));
    assert!(bucket.put_all_if(("fence", Some(Bytes::from_static(b"2"))), revision, other).await.unwrap() > first);
    assert_eq!(bucket.get("local.f0").await.unwrap().as_deref(), Some(&b"other"[..]));
    let large = |seed: u8| Bytes::from((0..2_500_000).map(|i| (i % 251) as u8 ^ seed).collect::<Vec<u8>>());
    for seed in 1..=3 {
        within("a large value", bucket.put_all(vec![("local.large".to_owned(), large(seed))])).await.unwrap();
        assert!(bucket.get("local.large").await.unwrap() == Some(large(seed)), "a large value comes back whole");
    }
    let (_, revision) = bucket.entry("fence").await.unwrap().unwrap();
    let both = vec![("local.large".to_owned(), large(4))];
    let moved = bucket.put_all_if(("fence", Some(large(5))), revision, both).await.unwrap();
    assert!(moved > Some(revision) && bucket.entry("fence").await.unwrap().map(|(value, _)| value) == Some(large(5)));
    let all = bucket.all().await.unwrap();
    assert!(all.iter().any(|(key, value)| key == "local.large" && *value == large(4)), "its parts are not listed");
    assert!(!all.iter().any(|(key, _)| key.contains('=')));
    for key in ["", ".", "a..b", "a b", "a.*", ">"] {
        assert!(bucket.get(key).await.is_err(), "{key:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_and_closing_leaves_nothing_behind() {
    let Some(server) = Server::start("") else { return };
    server.jetstream().await.create_stream(facts("INTENT")).await.unwrap();
    let (asker, one, two) = (server.bus("asker").await, server.bus("one").await, server.bus("two").await);
    for bus in [&one, &two] {
        let mut asked = bus.subscribe("$SRV.PING").await.unwrap();
        let bus = bus.clone();
        tokio::spawn(async move {
            while let Some(ask) = asked.next().await {
                bus.reply(&ask.reply.unwrap(), Bytes::copy_from_slice(bus.service().as_bytes())).await.unwrap();
            }
        });
    }
    // A subscription holds once its connection has answered anything after it.
    for bus in [&one, &two] {
        bus.log("INTENT").last_sequence().await.unwrap();
    }
    // Answers are collected for a while only, and a busy machine may be slower.
    within("an answer of each", async {
        loop {
            let answers = asker.request_all("$SRV.PING", Bytes::new(), Duration::from_millis(500)).await.unwrap();
            let names: BTreeSet<&[u8]> = answers.iter().map(|a| a.body.as_ref()).collect();
            assert!(answers.len() <= 2 && names.is_subset(&BTreeSet::from([&b"one"[..], b"two"])), "{names:?}");
            if names.len() == 2 {
                break;
            }
        }
    })
    .await;
    let nobody = asker.request("nobody.there", Bytes::new(), Duration::from_secs(5)).await;
    assert!(matches!(nobody, Err(mesh_bus::RequestError::Nobody { .. })));
    let mut json = one.subscribe("json.>").await.unwrap();
    one.log("INTENT").last_sequence().await.unwrap();
    asker.announce("json.x", Bytes::from_static(b"{}")).await.unwrap();
    assert_eq!(within("the notice", json.next()).await.unwrap().subject, "json.x");

    let writer = asker.writer("INTENT");
    let writes: Vec<_> =
        (0..3_000).map(|n| tokio::spawn(writer.write(decision(&format!("k{n}"), 0, &[&n.to_string()])))).collect();
    within("some writes", async {
        while asker.stats().published.load(SeqCst) < 500 {
            tokio::task::yield_now().await
        }
    })
    .await;
    within("close", asker.close()).await;
    let mut acked = 0;
    for write in writes {
        match within("a write", write).await.unwrap() {
            Ok(Written::Stored { .. }) => acked += 1,
            Ok(Written::Stale { last }) => panic!("stale at {last:?}"),
            Err(error) => assert!(matches!(error, WriteError::Closed { .. }), "{error}"),
        }
    }
    assert_eq!(stored(&one, "INTENT").await.len(), acked, "an answer does not say what was stored");
    let started = Instant::now();
    let lonely = Options { url: "nats://127.0.0.1:1".to_owned(), connect_limit_ms: 300, ..Options::default() };
    assert!(matches!(Bus::connect(lonely).await, Err(ConnectError::Unreachable { .. })));
    assert!(started.elapsed() < Duration::from_secs(5));
}
