//! Writers race for the same entities by read, decide, write, and are killed meanwhile: no update is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use mesh_admin::{Cluster, ProvisionOptions, RenderOptions, Server, ServerOptions, provision, render};
use mesh_bus::{Bus, Written};
use mesh_core::{Decision, Outgoing};
use mesh_proto::{contract, intent::IntentUnchanged};

use crate::support::{self, LIMIT, OWNER};

const WRITERS: usize = 8;
const ENTITIES: usize = 3;
/// Updates that are acknowledged before the race ends.
const UPDATES: usize = 600;
/// A writer is killed each time after this many acknowledged updates.
const KILL_EVERY: usize = 40;

/// What writers were told.
#[derive(Default)]
struct Told {
    /// Acknowledged updates by id, each with what it wrote.
    stored: Mutex<BTreeMap<String, (usize, u64)>>,
    count: AtomicUsize,
    stale: AtomicUsize,
}

/// Counts an entity up by one, over and over: reads its last fact, decides, writes on the condition that it has not
/// moved. Every second update is two facts in one batch.
async fn write(bus: Bus, writer: usize, told: Arc<Told>) {
    let (log, out) = (bus.log("INTENT"), bus.writer("INTENT"));
    for round in 0.. {
        let entity = (writer + round) % ENTITIES;
        let key = format!("racer-{entity}");
        let condition = format!("intent.*.*.{OWNER}.{key}");
        let Ok(last) = log.last(&condition).await else { continue };
        let (expected, value) =
            last.map_or((0, 0), |f| (f.sequence, f.event::<IntentUnchanged>().unwrap().unwrap().version));
        let facts = 1 + round % 2;
        let messages: Vec<Outgoing> = (1..=facts)
            .map(|step| {
                let fact = IntentUnchanged {
                    owner: OWNER.into(),
                    intent_id: key.clone(),
                    version: value + step as u64,
                    ..Default::default()
                };
                Outgoing::new(&fact, uuid::Uuid::new_v4().to_string(), support::now()).unwrap()
            })
            .collect();
        let ids: Vec<String> = messages.iter().map(|m| m.id.clone()).collect();
        match out.write(Decision { entity: condition, expected, messages }).await {
            Ok(Written::Stored { .. }) => {
                let mut stored = told.stored.lock().unwrap();
                stored.extend(ids.into_iter().zip(1..).map(|(id, step)| (id, (entity, value + step))));
                told.count.fetch_add(1, SeqCst);
            }
            Ok(Written::Stale { .. }) => {
                told.stale.fetch_add(1, SeqCst);
            }
            Err(_) => return,
        }
    }
}

/// Runs the race; `disturb` is called with the number of each kill.
async fn race(name: &str, url: &str, seed: &str, mut disturb: impl AsyncFnMut(usize)) {
    let told = Arc::new(Told::default());
    let start = async |writer: usize| {
        // A connection of its own: it dies with its writer, whatever it had in flight.
        let bus = support::connect(url, "intent-manager", seed).await;
        let task = tokio::spawn(write(bus.clone(), writer, told.clone()));
        (task, bus)
    };
    let mut writers = vec![];
    for writer in 0..WRITERS {
        writers.push(start(writer).await);
    }
    let mut kills = 0;
    while told.count.load(SeqCst) < UPDATES {
        let before = told.count.load(SeqCst);
        let moved =
            support::until("updates", &mut async || (told.count.load(SeqCst) >= before + KILL_EVERY).then_some(()))
                .await;
        assert!(moved.is_some(), "{name}: no progress after {before} updates");
        let victim = kills % WRITERS;
        // With its connection: the bus that is replaced is dropped, whatever it had in flight.
        writers[victim].0.abort();
        writers[victim] = start(victim).await;
        disturb(kills).await;
        kills += 1;
    }
    for (task, _) in &writers {
        task.abort();
    }
    for (task, _) in &mut writers {
        let _ = task.await;
    }

    let bus = support::connect(url, "intent-manager", seed).await;
    // What was in flight when the last writers were killed is stored or not by the time a later write is.
    for entity in 0..ENTITIES {
        let key = format!("racer-{entity}");
        loop {
            let condition = format!("intent.*.*.{OWNER}.{key}");
            let last = bus.log("INTENT").last(&condition).await.unwrap();
            let (expected, version) =
                last.map_or((0, 0), |f| (f.sequence, f.event::<IntentUnchanged>().unwrap().unwrap().version));
            let fact = IntentUnchanged {
                owner: OWNER.into(),
                intent_id: key.clone(),
                version: version + 1,
                ..Default::default()
            };
            let message = Outgoing::new(&fact, uuid::Uuid::new_v4().to_string(), support::now()).unwrap();
            let decision = Decision { entity: condition, expected, messages: vec![message] };
            if let Written::Stored { .. } = bus.writer("INTENT").write(decision).await.unwrap() {
                break;
            }
        }
    }
    let facts = mesh_why::facts(&bus, "INTENT", &format!("intent.*.*.{OWNER}.*")).await.unwrap();
    let (mut values, mut ids, mut violations) = ([0u64; ENTITIES], BTreeSet::new(), 0);
    let mut found: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for fact in &facts {
        let body = fact.event::<IntentUnchanged>().unwrap().unwrap();
        let entity: usize = body.intent_id.rsplit('-').next().unwrap().parse().unwrap();
        // Whoever decided knew everything before it: each fact is one more than the one before.
        violations += usize::from(body.version != values[entity] + 1);
        violations += usize::from(!ids.insert(fact.id.clone()));
        values[entity] = body.version;
        found.insert(fact.id.clone(), (entity, body.version));
    }
    let stored = told.stored.lock().unwrap().clone();
    let lost = stored.iter().filter(|(id, wrote)| found.get(*id) != Some(wrote)).count();
    eprintln!(
        "races: {name}: {} facts by {WRITERS} writers on {ENTITIES} entities, {kills} writers killed, {} decided again: \
         {violations} violations, {lost} lost updates",
        facts.len(),
        told.stale.load(SeqCst)
    );
    assert_eq!((violations, lost), (0, 0));
    assert!(told.stale.load(SeqCst) > 0, "nobody raced");
    bus.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_killed_writers_on_three_entities_lose_no_update_on_one_server() {
    let Some(program) = support::server("races").await else { return };
    mesh_bus::install_crypto();
    let folder = tempfile::tempdir().unwrap();
    let rendered = render(
        contract(),
        &RenderOptions {
            listen: format!("{}:-1", mesh_test::loopback()),
            store_dir: folder.path().join("jetstream"),
            ports_dir: Some(folder.path().to_path_buf()),
            ..RenderOptions::default()
        },
    )
    .unwrap();
    let files = rendered.write(folder.path()).unwrap();
    let mut server = Server::start(ServerOptions::new(&program, &files.nats_conf, folder.path())).await.unwrap();
    let url = server.url();
    let seed = rendered.keys.get("provisioner").cloned();
    provision(contract(), &ProvisionOptions { url: url.clone(), seed, ..ProvisionOptions::default() }).await.unwrap();
    race("one server", &url, rendered.keys["intent-manager"].expose(), async |_| {}).await;
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_writers_and_servers_lose_no_update_of_three_entities() {
    let Some(program) = support::server("races").await else { return };
    mesh_bus::install_crypto();
    let folder = tempfile::tempdir().unwrap();
    // Of its own: nobody else is given the port of a server that was killed.
    let addresses: Vec<_> = (0..3).map(|_| (mesh_test::free_address(), mesh_test::free_address())).collect();
    let mut keys = BTreeMap::new();
    let mut servers = vec![];
    for (number, (client, route)) in addresses.iter().enumerate() {
        let own = folder.path().join(format!("server-{number}"));
        std::fs::create_dir_all(&own).unwrap();
        let others = addresses.iter().filter(|(_, r)| r != route).map(|(_, r)| format!("nats-route://{r}"));
        let rendered = render(
            contract(),
            &RenderOptions {
                listen: client.to_string(),
                store_dir: own.join("jetstream"),
                ports_dir: Some(own.clone()),
                cluster: Some(Cluster {
                    name: "races".into(),
                    server_name: format!("server-{number}"),
                    listen: route.to_string(),
                    routes: others.collect(),
                    servers: 3,
                }),
                keys: keys.clone(),
                ..RenderOptions::default()
            },
        )
        .unwrap();
        keys.clone_from(&rendered.keys);
        let files = rendered.write(&own).unwrap();
        servers.push(ServerOptions::new(&program, &files.nats_conf, &own));
    }
    let starts = servers.into_iter().map(Server::start);
    let mut servers: Vec<Server> = futures::future::join_all(starts).await.into_iter().map(Result::unwrap).collect();
    let url = servers.iter().map(Server::url).collect::<Vec<_>>().join(",");
    let options = ProvisionOptions {
        url: url.clone(),
        seed: keys.get("provisioner").cloned(),
        replicas: 3,
        ..ProvisionOptions::default()
    };
    let report = provision(contract(), &options).await.unwrap();
    assert!(report.created.iter().any(|made| made.contains("INTENT")), "{:?}", report.created);
    let mut killed = 0;
    race("three servers, three copies", &url, keys["intent-manager"].expose(), async |kill| {
        // Every third time a server goes with the writer, in turn: sooner or later the one that leads the stream.
        if kill % 3 == 1 {
            servers[killed % 3].kill().await.unwrap();
            servers[killed % 3].restart().await.unwrap();
            killed += 1;
        }
    })
    .await;
    assert!(killed >= 1, "no server was killed, so nothing was tested");
    for server in &mut servers {
        let stopped = tokio::time::timeout(LIMIT, server.stop()).await;
        stopped.expect("nats-server stops").unwrap();
    }
}
