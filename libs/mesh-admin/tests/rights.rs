//! The bus as provisioned from the contract, on a real nats-server with the rendered configuration: every identity can
//! do what its rights say, and nothing else, by no way round.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]
#![allow(missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_nats::{
    Client, Event, HeaderMap, Request, ServerError,
    jetstream::{self, consumer::PullConsumer},
};
use futures::StreamExt as _;
use mesh_admin::{
    Cluster, ProvisionError, ProvisionOptions, RenderOptions, Rendered, Report, Server, ServerOptions, find_server,
    provision, render,
};
use mesh_bus::{Bus, Options, Tls, Written};
use mesh_core::{Decision, Outgoing};
use mesh_proto::{
    Contract, Timestamp,
    contract::{EventSpec, matches},
    rights::{self, PERSON, PROVISIONER, Rights},
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

/// Every step ends within this, or the test fails.
const LIMIT: Duration = Duration::from_secs(10);

/// A provisioned bus of this test's own; gone when dropped.
struct Mesh {
    server: Server,
    rendered: Rendered,
    contract: &'static Contract,
    _folder: tempfile::TempDir,
}

impl Mesh {
    /// `None`, with a word about it, if there is no server to test with.
    async fn start(disk_bytes: Option<u64>) -> Option<Self> {
        let found = match find_server().await {
            Ok(found) => found,
            Err(error) => {
                eprintln!("SKIPPED: mesh-admin rights: {error}");
                return None;
            }
        };
        let folder = tempfile::tempdir().unwrap();
        let options = RenderOptions {
            listen: format!("{}:-1", mesh_test::loopback()),
            store_dir: folder.path().join("store"),
            ports_dir: Some(folder.path().to_owned()),
            disk_bytes,
            ..Default::default()
        };
        let contract = mesh_proto::contract();
        let rendered = render(contract, &options).unwrap();
        let files = rendered.write(folder.path()).unwrap();
        let server = Server::start(ServerOptions::new(found.path, files.nats_conf, folder.path())).await.unwrap();
        Some(Self { server, rendered, contract, _folder: folder })
    }

    async fn provisioned(disk_bytes: Option<u64>) -> Option<Self> {
        let mesh = Self::start(disk_bytes).await?;
        mesh.provision().await.unwrap();
        Some(mesh)
    }

    async fn provision(&self) -> Result<Report, ProvisionError> {
        let seed = Some(self.rendered.keys[PROVISIONER].clone());
        provision(self.contract, &ProvisionOptions { url: self.server.url(), seed, ..Default::default() }).await
    }

    async fn connect(&self, identity: &str) -> Actor {
        let (sender, errors) = mpsc::unbounded_channel();
        let client = async_nats::ConnectOptions::with_nkey(self.rendered.keys[identity].expose().to_owned())
            .custom_inbox_prefix(format!("_INBOX_{identity}"))
            .event_callback(move |event| {
                let sender = sender.clone();
                async move {
                    if let Event::ServerError(ServerError::Other(text)) = event {
                        let _ = sender.send(text);
                    }
                }
            })
            .connect(self.server.url())
            .await
            .unwrap();
        Actor { client, errors }
    }

    async fn provisioner(&self) -> Actor {
        self.connect(PROVISIONER).await
    }
}

/// Someone connected, and what the server holds against them.
struct Actor {
    client: Client,
    errors: mpsc::UnboundedReceiver<String>,
}

impl Actor {
    async fn api(&self, call: &str, body: &Value) -> Value {
        self.ask(&format!("$JS.API.{call}"), HeaderMap::new(), body.to_string()).await
    }

    async fn ask(&self, subject: &str, headers: HeaderMap, body: impl Into<bytes::Bytes>) -> Value {
        let request = Request::new().headers(headers).payload(body.into()).timeout(Some(LIMIT));
        let answer = self.client.send_request(subject.to_owned(), request).await;
        let answer = answer.unwrap_or_else(|e| panic!("{subject}: {e}"));
        serde_json::from_slice(&answer.payload).unwrap_or(Value::Null)
    }

    /// Publishes something forbidden; is it refused, by name?
    async fn is_denied(&mut self, subject: &str, body: &str) -> bool {
        while self.errors.try_recv().is_ok() {}
        self.client.publish(subject.to_owned(), body.to_owned().into()).await.unwrap();
        self.client.flush().await.unwrap();
        self.is_named(subject).await
    }

    /// Returns once the server has handled all that this connection sent: it answers in order, and refuses this last.
    async fn settle(&mut self) {
        while self.errors.try_recv().is_ok() {}
        // What it sent before may take a busy machine longer than one refusal does.
        self.client.publish("settle", "".into()).await.unwrap();
        self.client.flush().await.unwrap();
        let refused = async { while !self.is_named("settle").await {} };
        timeout(LIMIT * 3, refused).await.expect("the server refuses what is forbidden");
    }

    /// Subscribes to something forbidden; is it refused, by name?
    async fn is_deaf_to(&mut self, subject: &str) -> bool {
        while self.errors.try_recv().is_ok() {}
        let _subscription = self.client.subscribe(subject.to_owned()).await.unwrap();
        self.client.flush().await.unwrap();
        self.is_named(subject).await
    }

    async fn is_named(&mut self, subject: &str) -> bool {
        let named = async {
            while let Some(text) = self.errors.recv().await {
                if text.to_lowercase().contains("permissions violation") && text.contains(subject) {
                    return true;
                }
            }
            false
        };
        timeout(Duration::from_secs(2), named).await.unwrap_or(false)
    }
}

fn subject_of(event: &EventSpec, key: &str) -> String {
    event.filter().replace('*', key)
}

/// `w.intent.submitted.v1.x.x` -> `intent.*.*.x.x`.
fn entity_of(subject: &str, area: &str) -> String {
    let keys: Vec<&str> = subject.trim_start_matches("w.").split('.').skip(3).collect();
    format!("{area}.*.*.{}", keys.join("."))
}

fn conditional(id: &str, entity: &str, expected: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
    headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", entity);
    headers
}

#[tokio::test]
async fn provisioning_again_changes_nothing_and_puts_right_what_was_changed() {
    let Some(mesh) = Mesh::start(None).await else { return };
    let first = mesh.provision().await.unwrap();
    let contract = mesh.contract;
    let durables: usize = contract.services.iter().flat_map(|s| &s.deciders).map(|d| contract.durables(d).len()).sum();
    let buckets = contract.services.iter().flat_map(rights::buckets).count();
    assert_eq!(first.created.len(), contract.streams.len() + durables + buckets);
    assert!(first.notes.is_empty(), "{:?}", first.notes);
    let again = mesh.provision().await.unwrap();
    assert_eq!((again.created.len(), again.updated.len(), again.unchanged), (0, 0, first.created.len()));

    let provisioner = mesh.provisioner().await;
    let mut config = provisioner.api("STREAM.INFO.INTENT", &json!({})).await["config"].take();
    config["max_age"] = json!(300_000_000_000u64);
    assert!(provisioner.api("STREAM.UPDATE.INTENT", &config).await.get("error").is_none());
    let strange = json!({"name": "STRANGE", "subjects": ["strange"], "storage": "file", "retention": "limits"});
    assert!(provisioner.api("STREAM.CREATE.STRANGE", &strange).await.get("error").is_none());
    let third = mesh.provision().await.unwrap();
    assert_eq!(third.updated, ["INTENT: max_age_seconds 300 to 0"]);
    assert_eq!(third.unknown, ["STRANGE"]);
    let info = provisioner.api("STREAM.INFO.INTENT", &json!({})).await;
    assert_eq!(info["config"]["max_age"], json!(0));
    let names = provisioner.api("STREAM.NAMES", &json!({})).await;
    assert!(!names.to_string().contains("PROBE_"), "{names}");
}

#[tokio::test]
async fn streams_of_a_later_release_are_refused_and_of_an_older_one_marked() {
    let Some(mesh) = Mesh::start(None).await else { return };
    let first = mesh.provision().await.unwrap();
    let provisioner = mesh.provisioner().await;
    let own = env!("CARGO_PKG_VERSION");
    let mut config = provisioner.api("STREAM.INFO.WORKLOAD", &json!({})).await["config"].take();
    assert_eq!(config["metadata"]["continuum.release"], own);
    // As it was before streams were marked.
    let mark = config["metadata"].as_object_mut().unwrap();
    mark.retain(|name, _| !name.starts_with("continuum."));
    assert!(provisioner.api("STREAM.UPDATE.WORKLOAD", &config).await.get("error").is_none());
    let again = mesh.provision().await.unwrap();
    assert_eq!(again.updated, [format!("WORKLOAD: release null to \"{own}\", format null to \"1\"")]);

    config["metadata"] = json!({"continuum.release": "99.0.0", "continuum.format": "1"});
    config["max_age"] = json!(300_000_000_000u64);
    assert!(provisioner.api("STREAM.UPDATE.WORKLOAD", &config).await.get("error").is_none());
    // Something that would be put right otherwise, and comes before it.
    let mut other = provisioner.api("STREAM.INFO.INTENT", &json!({})).await["config"].take();
    other["max_age"] = json!(300_000_000_000u64);
    assert!(provisioner.api("STREAM.UPDATE.INTENT", &other).await.get("error").is_none());
    let refused = mesh.provision().await.unwrap_err();
    assert!(matches!(&refused, mesh_admin::ProvisionError::Release(_)), "{refused:?}");
    let text = refused.to_string();
    assert!(text.starts_with("the stream WORKLOAD was written by Continuum 99.0.0"), "{text}");
    for stream in ["INTENT", "WORKLOAD"] {
        let is = provisioner.api(&format!("STREAM.INFO.{stream}"), &json!({})).await;
        assert_eq!(is["config"]["max_age"], json!(300_000_000_000u64), "{stream} was changed");
    }
    let names = provisioner.api("STREAM.NAMES", &json!({})).await;
    assert_eq!(names["total"].as_u64().unwrap() as usize, first.limits.len(), "{names}");
}

#[tokio::test]
async fn what_cannot_be_changed_in_place_is_an_error_that_says_so() {
    let Some(mesh) = Mesh::start(None).await else { return };
    let provisioner = mesh.provisioner().await;
    let wrong = json!({"name": "INTENT", "subjects": ["w.intent.>"], "storage": "file", "retention": "interest"});
    assert!(provisioner.api("STREAM.CREATE.INTENT", &wrong).await.get("error").is_none());
    let error = mesh.provision().await.unwrap_err();
    assert!(matches!(&error, ProvisionError::Fixed { name, field: "retention", .. } if name == "INTENT"), "{error}");
    let info = provisioner.api("STREAM.INFO.INTENT", &json!({})).await;
    assert_eq!(info["config"]["retention"], json!("interest"), "it was not recreated");
}

#[tokio::test]
async fn with_little_disk_every_stream_shrinks_alike_and_the_report_says_so() {
    let budget = 512 << 20;
    let Some(mesh) = Mesh::start(Some(budget)).await else { return };
    let report = mesh.provision().await.unwrap();
    assert!(report.limits.values().sum::<i64>() <= i64::try_from(budget).unwrap());
    assert!(report.notes.iter().any(|n| n.contains("the server allows")), "{:?}", report.notes);
    assert!(report.limits["INTENT"] > report.limits["LIFECYCLE"]);
    assert_eq!(mesh.provision().await.unwrap().updated.len(), 0);
}

#[tokio::test]
async fn an_identity_without_key_or_with_an_unknown_one_is_not_let_in() {
    let Some(mesh) = Mesh::start(Some(512 << 20)).await else { return };
    let stranger = mesh_bus::Seed::generate().unwrap();
    let stranger = async_nats::ConnectOptions::with_nkey(stranger.expose().to_owned()).connect(mesh.server.url()).await;
    assert!(stranger.is_err());
    assert!(async_nats::connect(mesh.server.url()).await.is_err());
}

#[tokio::test]
async fn a_dashboard_hears_what_is_measured_and_says_nothing() {
    let Some(mesh) = Mesh::provisioned(Some(4 << 30)).await else { return };
    let mut board = mesh.connect(rights::DASHBOARD).await;
    for stream in ["TELEMETRY", "TWIN", "ANOMALY", "OBSERVATION"] {
        // By its writer, from its own account.
        let (writer, event) = mesh
            .contract
            .services
            .iter()
            .find_map(|service| {
                let written = rights::writes(mesh.contract, service);
                Some((service, *written.iter().find(|event| event.stream == stream)?))
            })
            .unwrap();
        let live = mesh.contract.stream(stream).unwrap().live_subject();
        let ingest = rights::publish_filter(mesh.contract, event).replace('*', "x");
        let writer = mesh.connect(&writer.name).await;
        let mut heard = board.client.subscribe(live.clone()).await.unwrap();
        board.settle().await;
        let answer = writer.ask(&ingest, HeaderMap::new(), "x").await;
        assert!(answer["seq"].is_u64(), "{ingest}: {answer}");
        let heard = timeout(LIMIT, heard.next()).await.unwrap_or_else(|_| panic!("does not hear {live}")).unwrap();
        assert!(matches(&live, heard.subject.as_str()), "{live}: {}", heard.subject);
    }
    let mirror = mesh.connect("json-mirror").await;
    let mut heard = board.client.subscribe("json.>").await.unwrap();
    board.settle().await;
    mirror.client.publish("json.anomaly.x", "{}".into()).await.unwrap();
    timeout(LIMIT, heard.next()).await.unwrap().unwrap();
    // Nothing of its own is taken, not even a question, and what is not measured is not heard.
    for subject in ["telemetry.readings.v1.edge", "json.x", "BUS.API.INFO", "$SRV.PING", "intent.ask.submit.v1.a.b"] {
        assert!(board.is_denied(subject, "{}").await, "published {subject}");
    }
    for subject in ["intent.>", "identity.>", "lifecycle.>", "storage.>", "account.>", ">"] {
        assert!(board.is_deaf_to(subject).await, "subscribed to {subject}");
    }
}

/// Every service does all that its contract says, with its own credentials, through its own account.
#[tokio::test]
async fn a_service_can_do_all_that_its_contract_says() {
    let Some(mesh) = Mesh::provisioned(Some(4 << 30)).await else { return };
    let contract = mesh.contract;
    let mut person = mesh.connect(PERSON).await;
    let mut done = 0;
    // Everyone publishes what is theirs, conditionally where it is a fact; the second on the same condition is stale.
    for service in &contract.services {
        let actor = mesh.connect(&service.name).await;
        let key = service.name.as_str();
        for event in rights::writes(contract, service) {
            let subject = subject_of(event, key);
            if contract.stream(&event.stream).is_some_and(|s| s.has_write_prefix()) {
                let entity = entity_of(&subject, &event.area);
                let log = format!("BUS.API.DIRECT.GET.{}", event.stream);
                let last = json!({"last_by_subj": entity}).to_string();
                let last = actor.client.request(log, last.into()).await.unwrap();
                let last = last.headers.and_then(|h| h.get("Nats-Sequence")?.as_str().parse().ok()).unwrap_or(0u64);
                let headers = conditional(&event.message, &entity, last);
                let answer = actor.ask(&format!("w.{subject}"), headers, "x").await;
                assert!(answer["seq"].as_u64() > Some(last), "{key} {subject}: {answer}");
                let headers = conditional(&format!("{}-stale", event.message), &entity, last);
                let answer = actor.ask(&format!("w.{subject}"), headers, "x").await;
                assert_eq!(answer["error"]["err_code"], json!(10071), "{key} {subject}: {answer}");
                done += 3;
            } else {
                let answer = actor.ask(&subject, HeaderMap::new(), "x").await;
                assert!(answer["seq"].is_u64(), "{key} {subject}: {answer}");
                done += 1;
            }
        }
        let answer = actor.ask(&format!("lifecycle.service_changed.v1.{key}"), HeaderMap::new(), "x").await;
        assert!(answer["seq"].is_u64(), "{key}: {answer}");
        let answer = actor.ask("dead.intent.ask.submit.v1.x.x", HeaderMap::new(), "x").await;
        assert!(answer["seq"].is_u64(), "{key}: {answer}");
        for subject in &service.announces {
            let mut heard = person.client.subscribe(subject.clone()).await.unwrap();
            person.settle().await;
            actor.client.publish(subject.replace('>', "x"), "x".into()).await.unwrap();
            timeout(LIMIT, heard.next()).await.unwrap().unwrap();
            done += 1;
        }
        for bucket in rights::buckets(service) {
            let answer = actor.ask(&format!("$KV.{bucket}.some.key"), HeaderMap::new(), "value").await;
            assert!(answer["seq"].is_u64(), "{key} {bucket}: {answer}");
            let got = format!("BUS.API.DIRECT.GET.KV_{bucket}.$KV.{bucket}.some.key");
            let got = actor.client.request(got, "".into()).await.unwrap();
            assert_eq!(got.payload, "value");
            done += 2;
        }
        done += 2;
    }
    for event in rights::peoples_commands(contract) {
        let mut heard = person.client.subscribe(format!("{}.>", event.area)).await.unwrap();
        person.settle().await;
        let answer = person.ask(&subject_of(event, "x"), HeaderMap::new(), "{}").await;
        assert!(answer["seq"].is_u64(), "{answer}");
        let command = timeout(LIMIT, heard.next()).await;
        let command = command.unwrap_or_else(|_| panic!("people do not hear {}", event.subject)).unwrap();
        assert_eq!(command.subject.as_str(), subject_of(event, "x"));
        done += 2;
    }
    // Everyone hears and reads what is theirs.
    let provisioner = mesh.provisioner().await;
    for service in &contract.services {
        let mut actor = mesh.connect(&service.name).await;
        for stream in rights::reads(contract, service) {
            let read = json!({"seq": 1, "next_by_subj": ">", "batch": 2}).to_string();
            let inbox = actor.client.new_inbox();
            let mut answers = actor.client.subscribe(inbox.clone()).await.unwrap();
            let get = format!("BUS.API.DIRECT.GET.{stream}");
            actor.client.publish_with_reply(get, inbox, read.into()).await.unwrap();
            let first = timeout(LIMIT, answers.next()).await.unwrap().unwrap();
            assert!(first.headers.unwrap().get("Nats-Stream").is_some_and(|s| s.as_str() == stream), "{stream}");

            done += 1;
        }
        for stream in rights::hears(contract, service) {
            let event = contract.events.iter().find(|e| e.stream == stream).unwrap();
            let mut live = actor.client.subscribe(contract.stream(stream).unwrap().subject.clone()).await.unwrap();
            actor.settle().await;
            let stored = subject_of(event, &format!("live-{}", service.name));
            let ingest = rights::publish_filter(contract, event).replace('*', &format!("live-{}", service.name));
            provisioner.ask(&ingest, HeaderMap::new(), "x").await;
            let heard = timeout(LIMIT, live.next()).await;
            let heard = heard.unwrap_or_else(|_| panic!("{} does not hear {stored}", service.name)).unwrap();
            assert_eq!(heard.subject.as_str(), stored);
            done += 1;
        }
        for durable in service.deciders.iter().flat_map(|d| contract.durables(d)) {
            let context = jetstream::with_prefix(actor.client.clone(), rights::API_PREFIX);
            let consumer: PullConsumer =
                context.get_consumer_from_stream(&durable.name, &durable.stream).await.unwrap();
            let mut messages = consumer.stream().group("g").max_messages_per_batch(100).messages().await.unwrap();
            let message = timeout(LIMIT, messages.next()).await.unwrap().unwrap().unwrap();
            assert!(
                matches(&contract.stream(&durable.stream).unwrap().subject, &message.subject),
                "{}",
                message.subject
            );
            // The rights name acknowledgements of exactly this form.
            let reply = message.reply.clone().unwrap();
            let form = format!("$JS.ACK.{}.{}.", durable.stream, durable.name);
            assert!(reply.starts_with(&form), "{reply}");
            message.double_ack().await.unwrap();
            let floor =
                provisioner.api(&format!("CONSUMER.INFO.{}.{}", durable.stream, durable.name), &json!({})).await;
            assert!(floor["ack_floor"]["stream_seq"].as_u64() >= Some(1), "{floor}");
            done += 3;
        }
    }
    println!("rightful operations done: {done}");
}

/// What a decider needs, through the library that every service uses.
#[tokio::test]
async fn the_bus_library_works_with_a_services_rights() {
    let Some(mesh) = Mesh::provisioned(Some(4 << 30)).await else { return };
    let open = async |identity: &str| {
        let seed = Some(mesh.rendered.keys[identity].expose().to_owned());
        let options = Options { url: mesh.server.url(), service: identity.to_owned(), seed, ..Default::default() };
        Bus::connect(options).await.unwrap()
    };
    let (person, manager) = (open(PERSON).await, open("intent-manager").await);
    let at = Timestamp::from_millis(1);
    let (owner, intent_id) = ("local".to_owned(), "i".to_owned());
    let command =
        mesh_proto::intent::SuspendIntent { owner: owner.clone(), intent_id: intent_id.clone(), if_revision: 0 };
    assert_eq!(person.publish(&Outgoing::new(&command, "c1", at).unwrap()).await.unwrap(), 1);

    let mut pull = manager.pull("INTENT_ASK", "intents").await.unwrap();
    let asked = timeout(LIMIT, pull.next()).await.unwrap().unwrap();
    assert_eq!(asked.id, "c1");
    let fact = |id: &str| {
        let event = mesh_proto::intent::IntentRefused {
            owner: owner.clone(),
            intent_id: intent_id.clone(),
            command_id: "c1".to_owned(),
            ..Default::default()
        };
        Outgoing::new(&event, id, at).unwrap().caused_by(asked.cause_of())
    };
    let entity = "intent.*.*.local.i".to_owned();
    let decision = Decision { entity: entity.clone(), expected: 0, messages: vec![fact("f1"), fact("f2")] };
    let written = timeout(LIMIT, manager.writer("INTENT").write(decision)).await.unwrap().unwrap();
    assert_eq!(written, Written::Stored { last: 2 });
    let decision = Decision { entity, expected: 0, messages: vec![fact("f3")] };
    let written = timeout(LIMIT, manager.writer("INTENT").write(decision)).await.unwrap().unwrap();
    assert_eq!(written, Written::Stale { last: Some(2) });
    pull.ack_through(asked.sequence);

    let mut tail = manager.log("INTENT").tail("intent.>", 1);
    for sequence in 1..=2 {
        assert_eq!(timeout(LIMIT, tail.next()).await.unwrap().unwrap().sequence, sequence);
    }
    assert_eq!(manager.log("INTENT").last_sequence().await.unwrap(), 2);
    let bucket = manager.bucket("snapshot-intents");
    bucket.put_all(vec![("a".to_owned(), "1".into()), ("b".to_owned(), "2".into())]).await.unwrap();
    assert_eq!(bucket.get("b").await.unwrap(), Some("2".into()));
    assert_eq!(person.log("INTENT").last("intent.>").await.unwrap().unwrap().id, "f2");
    manager.close().await;
    person.close().await;
}

#[tokio::test]
async fn people_ask_services_how_they_are_and_each_answers() {
    let Some(mesh) = Mesh::provisioned(Some(512 << 20)).await else { return };
    let mut actors = vec![];
    for service in &mesh.contract.services {
        let mut actor = mesh.connect(&service.name).await;
        let mut asked = actor.client.subscribe("$SRV.>").await.unwrap();
        actor.settle().await;
        let (client, name) = (actor.client.clone(), service.name.clone());
        actors.push((
            actor,
            tokio::spawn(async move {
                let request = asked.next().await.unwrap();
                client.publish(request.reply.unwrap(), name.into()).await.unwrap();
                client.flush().await.unwrap();
            }),
        ));
    }
    let person = mesh.connect(PERSON).await;
    let inbox = person.client.new_inbox();
    let mut answers = person.client.subscribe(inbox.clone()).await.unwrap();
    person.client.publish_with_reply("$SRV.PING", inbox, "".into()).await.unwrap();
    let mut heard = BTreeSet::new();
    while heard.len() < actors.len() {
        let answer = timeout(LIMIT, answers.next()).await.expect("an answer of each").unwrap();
        heard.insert(String::from_utf8(answer.payload.to_vec()).unwrap());
    }
    for (_, task) in actors {
        task.await.unwrap();
    }
}

/// What must not change, whatever an attacker does: configuration, content and positions of everything.
async fn fingerprint(provisioner: &Actor) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    let streams = provisioner.api("STREAM.LIST", &json!({})).await;
    assert!(streams["streams"].as_array().unwrap().len() < 256, "one page");
    for stream in streams["streams"].as_array().unwrap() {
        let name = stream["config"]["name"].as_str().unwrap();
        seen.insert(
            name.to_owned(),
            format!("{} {} {}", stream["config"], stream["state"]["messages"], stream["state"]["last_seq"]),
        );
        let consumers = provisioner.api(&format!("CONSUMER.LIST.{name}"), &json!({})).await;
        for consumer in consumers["consumers"].as_array().into_iter().flatten() {
            let floor = (&consumer["delivered"]["stream_seq"], &consumer["ack_floor"]["stream_seq"]);
            seen.insert(format!("{name}/{}", consumer["name"]), format!("{} {floor:?}", consumer["config"]));
        }
    }
    seen
}

/// One message on every event's subject, published by the one identity that is not restricted.
async fn seed(provisioner: &Actor, contract: &Contract) {
    for event in &contract.events {
        let subject = rights::publish_filter(contract, event).replace('*', "seed");
        assert!(provisioner.ask(&subject, HeaderMap::new(), "x").await["seq"].is_u64(), "{subject}");
    }
}

/// Everything worth attacking that these rights do not include, each with a body that would do harm.
fn forbidden(contract: &Contract, rights: &Rights) -> Vec<(String, String)> {
    let mut attempts: Vec<(String, String)> = vec![];
    let mut streams: Vec<String> = contract.streams.iter().map(|s| s.name.clone()).collect();
    streams.extend(contract.services.iter().flat_map(rights::buckets).map(|b| rights::bucket_stream(&b)));
    let durables: Vec<_> =
        contract.services.iter().flat_map(|s| &s.deciders).flat_map(|d| contract.durables(d)).collect();
    for prefix in ["$JS.API", rights::API_PREFIX] {
        for stream in &streams {
            let consumer =
                json!({"stream_name": stream, "config": {"name": "thief", "ack_policy": "none"}}).to_string();
            let update = json!({"name": stream, "subjects": ["gone"], "max_msgs": 1, "storage": "file"}).to_string();
            let calls = [
                (format!("STREAM.DELETE.{stream}"), String::new()),
                (format!("STREAM.PURGE.{stream}"), String::new()),
                (format!("STREAM.UPDATE.{stream}"), update.clone()),
                (format!("STREAM.CREATE.{stream}"), update),
                (format!("STREAM.MSG.DELETE.{stream}"), json!({"seq": 1}).to_string()),
                (format!("STREAM.MSG.GET.{stream}"), json!({"seq": 1}).to_string()),
                (format!("STREAM.SNAPSHOT.{stream}"), json!({"deliver_subject": "x"}).to_string()),
                (format!("STREAM.RESTORE.{stream}"), json!({}).to_string()),
                (format!("STREAM.INFO.{stream}"), String::new()),
                (format!("CONSUMER.LIST.{stream}"), String::new()),
                (format!("CONSUMER.CREATE.{stream}"), consumer.clone()),
                (format!("CONSUMER.CREATE.{stream}.thief"), consumer.clone()),
                (format!("CONSUMER.DURABLE.CREATE.{stream}.thief"), consumer),
                (format!("DIRECT.GET.{stream}"), json!({"seq": 1}).to_string()),
                (format!("DIRECT.GET.{stream}.x"), String::new()),
            ];
            attempts.extend(calls.map(|(call, body)| (format!("{prefix}.{call}"), body)));
        }
        attempts.push((format!("{prefix}.STREAM.CREATE.NEW"), json!({"name": "NEW", "subjects": ["new"]}).to_string()));
        attempts.push((format!("{prefix}.ACCOUNT.PURGE.BUS"), String::new()));
        for durable in &durables {
            let (stream, name) = (&durable.stream, &durable.name);
            attempts.push((format!("{prefix}.CONSUMER.DELETE.{stream}.{name}"), String::new()));
            attempts.push((format!("{prefix}.CONSUMER.UNPIN.{stream}.{name}"), json!({"group": "g"}).to_string()));
            attempts.push((
                format!("{prefix}.CONSUMER.PAUSE.{stream}.{name}"),
                json!({"pause_until": "2099-01-01T00:00:00Z"}).to_string(),
            ));
            attempts.push((
                format!("{prefix}.CONSUMER.MSG.NEXT.{stream}.{name}"),
                json!({"batch": 10, "group": "g"}).to_string(),
            ));
            attempts.push((format!("{prefix}.CONSUMER.INFO.{stream}.{name}"), String::new()));
        }
    }
    for durable in &durables {
        attempts.push((format!("$JS.ACK.{}.{}.1.1.1.0.0", durable.stream, durable.name), "+ACK".to_owned()));
    }
    for event in &contract.events {
        attempts.push((subject_of(event, "forged"), "x".to_owned()));
        attempts.push((format!("w.{}", subject_of(event, "forged")), "x".to_owned()));
    }
    for bucket in contract.services.iter().flat_map(rights::buckets) {
        attempts.push((format!("$KV.{bucket}.forged"), "x".to_owned()));
    }
    for other in contract.services.iter().map(|s| s.name.as_str()).chain([PERSON, PROVISIONER]) {
        attempts.push((format!("_INBOX_{other}.spoofed"), "x".to_owned()));
        attempts.push((format!("lifecycle.service_changed.v1.{other}"), "x".to_owned()));
    }
    attempts.extend(
        ["json.forged", "dead.forged", "$SYS.REQ.SERVER.PING", "$JS.EVENT.ADVISORY.x"]
            .map(|s| (s.to_owned(), "x".to_owned())),
    );
    attempts.retain(|(subject, _)| !rights.publish.iter().any(|p| matches(p, subject)));
    attempts.sort();
    attempts.dedup();
    attempts
}

#[tokio::test]
async fn whatever_else_an_identity_tries_is_refused() {
    let Some(mesh) = Mesh::provisioned(Some(4 << 30)).await else { return };
    let contract = mesh.contract;
    let provisioner = mesh.provisioner().await;
    seed(&provisioner, contract).await;
    let before = fingerprint(&provisioner).await;
    let (mut tried, mut allowed) = (0, vec![]);
    for rights in rights::all(contract) {
        let mut actor = mesh.connect(&rights.identity).await;
        for (subject, body) in forbidden(contract, &rights) {
            tried += 1;
            if !actor.is_denied(&subject, &body).await {
                allowed.push(format!("{} published {subject}", rights.identity));
            }
        }
        let others = contract.services.iter().map(|s| s.name.as_str()).chain([PERSON, PROVISIONER]);
        let mut ears: Vec<String> = others.map(|o| format!("_INBOX_{o}.>")).collect();
        ears.extend([">", "*.>", "_INBOX.>", "_R_.>", "w.>", "$JS.>", "$KV.>", "$SYS.>"].map(str::to_owned));
        ears.extend(contract.streams.iter().map(|s| s.subject.clone()));
        ears.retain(|e| !rights.subscribe.iter().any(|s| s == e || matches(s, e)));
        for ear in ears {
            tried += 1;
            if !actor.is_deaf_to(&ear).await {
                allowed.push(format!("{} subscribed to {ear}", rights.identity));
            }
        }
    }
    assert_eq!(fingerprint(&provisioner).await, before);
    assert!(allowed.is_empty(), "{} of {tried} were not refused: {allowed:#?}", allowed.len());
    println!("forbidden publishes and subscriptions refused: {tried} of {tried}");
}

/// The way round: ask something permitted, and let the server send its answer to what is forbidden.
#[tokio::test]
async fn no_answer_can_be_pointed_at_what_is_forbidden() {
    let Some(mesh) = Mesh::provisioned(Some(4 << 30)).await else { return };
    let contract = mesh.contract;
    let provisioner = mesh.provisioner().await;
    seed(&provisioner, contract).await;
    // Everyone listens where they may be spoken to, under every account.
    let mut victims = vec![];
    for rights in rights::all(contract) {
        let mut victim = mesh.connect(&rights.identity).await;
        let inbox = victim.client.subscribe(format!("_INBOX_{}.>", rights.identity)).await.unwrap();
        victim.settle().await;
        victims.push((rights.identity.clone(), victim, inbox));
    }
    let before = fingerprint(&provisioner).await;
    let mut tried = 0;
    let mut stored = BTreeMap::<String, u64>::new();
    // A program of all services asks in the account of the streams itself, where an answer can be pointed anywhere: it holds
    // everybody's keys, and the provisioner's (decision 17).
    // Dashboards can ask nothing at all.
    let asking = |rights: &Rights| ![rights::JOINT, rights::DASHBOARD].contains(&rights.identity.as_str());
    for rights in rights::all(contract).into_iter().filter(asking) {
        let mut actor = mesh.connect(&rights.identity).await;
        // One request of each kind that it may make, two of those that give stored messages back.
        let mut vehicles: Vec<(String, String)> = vec![];
        for (kind, body, most) in [
            (".DIRECT.GET.", json!({"seq": 1}), 2),
            (".CONSUMER.INFO.", json!({}), 1),
            (".CONSUMER.MSG.NEXT.", json!({"batch": 1, "no_wait": true, "group": "g"}), 1),
            (".STREAM.NAMES", json!({}), 1),
        ] {
            let asks = rights.requests.iter().map(|r| r.local.replace(['*', '>'], "INTENT"));
            let asks = asks.filter(|a| a.contains(kind) && !a.ends_with(".INTENT.INTENT"));
            vehicles.extend(asks.take(most).map(|a| (a, body.to_string())));
        }
        // One write of its own, whose acknowledgement is the answer; the write itself is its right.
        let own = contract.events.iter().find(|e| {
            let subject = rights::publish_filter(contract, e).replace('*', "own");
            rights.publish.iter().any(|p| matches(p, &subject))
        });
        let writes = own.map(|e| (rights::publish_filter(contract, e).replace('*', "own"), "x".to_owned()));
        assert!(!vehicles.is_empty());
        vehicles.extend(writes.clone());
        for (target, _) in forbidden(contract, &rights) {
            // Its own inbox is where answers belong.
            if target.starts_with(&format!("_INBOX_{}.", rights.identity)) {
                continue;
            }
            for (ask, body) in &vehicles {
                actor.client.publish_with_reply(ask.clone(), target.clone(), body.clone().into()).await.unwrap();
                tried += 1;
                // The server itself refuses whatever asks to be answered at an acknowledgement.
                if writes.as_ref().is_some_and(|(w, _)| w == ask) && !target.starts_with("$JS.ACK.") {
                    *stored.entry(own.unwrap().stream.clone()).or_default() += 1;
                }
            }
        }
        // What follows on the same connection has been handled after them.
        actor.settle().await;
        if let Some((subject, body)) = writes {
            actor.ask(&subject, HeaderMap::new(), body).await;
            *stored.entry(own.unwrap().stream.clone()).or_default() += 1;
        }
    }
    let after = fingerprint(&provisioner).await;
    for (name, was) in &before {
        let Some(rightly) = stored.get(name) else {
            // Each pulled from its own durables, as it may: how far these delivered is all that changed there.
            let still = |text: &str| text.rsplit_once(" (").map_or(text.to_owned(), |(config, _)| config.to_owned());
            assert_eq!(after.get(name).map(|a| still(a)), Some(still(was)), "{name}");
            let floor = |text: &str| text.rsplit_once(", ").map(|(_, floor)| floor.to_owned());
            assert!(!name.contains('/') || floor(&after[name]) == floor(was), "{name} was acknowledged");
            continue;
        };
        // Its own writes, and not one message more.
        let count = |text: &str| text.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
        assert_eq!(count(&after[name]), count(was) + rightly, "{name}");
    }
    assert_eq!(after.len(), before.len());
    for (identity, victim, inbox) in &mut victims {
        victim.settle().await;
        inbox.unsubscribe().await.unwrap();
        while let Some(heard) = inbox.next().await {
            assert!(!heard.subject.ends_with(".spoofed"), "{identity} was spoken to: {heard:?}");
        }
    }
    println!("answers pointed at forbidden subjects, without any effect: {tried} of {tried}");
}

/// Publishing where facts are read, as anyone at all, reaches nobody who reads.
#[tokio::test]
async fn a_refused_fact_is_seen_by_nobody_and_a_stored_one_once() {
    let Some(mesh) = Mesh::provisioned(Some(512 << 20)).await else { return };
    let manager = mesh.connect("intent-manager").await;
    let mut person = mesh.connect(PERSON).await;
    let mut live = person.client.subscribe("intent.>").await.unwrap();
    person.settle().await;
    let subject = "w.intent.submitted.v1.local.a";
    let entity = "intent.*.*.local.a";
    for (id, expected) in [("1", 0), ("2", 0), ("3", 1)] {
        manager.ask(subject, conditional(id, entity, expected), id.to_owned()).await;
    }
    for expected in ["1", "3"] {
        let heard = timeout(LIMIT, live.next()).await.unwrap().unwrap();
        assert_eq!((heard.subject.as_str(), &heard.payload[..]), ("intent.submitted.v1.local.a", expected.as_bytes()));
    }
}

#[tokio::test]
async fn with_certificates_only_who_shows_one_of_the_authority_is_let_in() {
    let Ok(found) = find_server().await else {
        eprintln!("SKIPPED: mesh-admin rights with certificates: no nats-server");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let authority = mesh_test::Authority::new(folder.path(), "authority");
    let files = authority.sign("nats");
    let options = RenderOptions {
        listen: "127.0.0.1:-1".to_owned(),
        store_dir: folder.path().join("store"),
        ports_dir: Some(folder.path().to_owned()),
        disk_bytes: Some(512 << 20),
        tls: Some(Tls { ca: files.ca, cert: files.cert, key: files.key }),
        ..Default::default()
    };
    let rendered = render(mesh_proto::contract(), &options).unwrap();
    let written = rendered.write(folder.path()).unwrap();
    let server = Server::start(ServerOptions::new(found.path, written.nats_conf, folder.path())).await.unwrap();
    let url = server.url();
    let open = async |tls: Option<Tls>| {
        let seed = Some(rendered.keys[PROVISIONER].clone());
        let wait_ms = 2_000;
        provision(mesh_proto::contract(), &ProvisionOptions { url: url.clone(), seed, tls, replicas: 1, wait_ms }).await
    };
    let own = authority.sign("provisioner");
    let report = open(Some(Tls { ca: own.ca.clone(), cert: own.cert, key: own.key })).await.unwrap();
    assert!(!report.created.is_empty());
    let elsewhere = tempfile::tempdir().unwrap();
    let strange = mesh_test::Authority::new(elsewhere.path(), "stranger").sign("provisioner");
    let refused = open(Some(Tls { ca: own.ca, cert: strange.cert, key: strange.key })).await;
    assert!(matches!(refused, Err(ProvisionError::Connect { .. })), "{refused:?}");
    assert!(open(None).await.is_err());
}

#[tokio::test]
async fn three_servers_hold_three_copies_and_two_of_them_go_on() {
    let Ok(found) = find_server().await else {
        eprintln!("SKIPPED: mesh-admin rights on three servers: no nats-server");
        return;
    };
    let contract = mesh_proto::contract();
    let folder = tempfile::tempdir().unwrap();
    let routes: Vec<_> = (0..3).map(|_| mesh_test::free_address()).collect();
    let mut keys = BTreeMap::new();
    let mut starts = vec![];
    for (number, route) in routes.iter().enumerate() {
        let own = folder.path().join(number.to_string());
        let others = routes.iter().filter(|r| *r != route).map(|r| format!("nats-route://{r}"));
        let options = RenderOptions {
            listen: "127.0.0.1:-1".to_owned(),
            store_dir: own.join("store"),
            ports_dir: Some(own.clone()),
            disk_bytes: Some(2 << 30),
            cluster: Some(Cluster {
                name: "c".to_owned(),
                server_name: format!("s{number}"),
                listen: route.to_string(),
                routes: others.collect(),
                servers: 3,
            }),
            keys: keys.clone(),
            ..Default::default()
        };
        let rendered = render(contract, &options).unwrap();
        let files = rendered.write(&own).unwrap();
        keys = rendered.keys;
        starts.push(ServerOptions::new(&found.path, files.nats_conf, &own));
    }
    let last = starts.pop().unwrap();
    let mut servers = vec![];
    for start in starts {
        servers.push(Server::start(start).await.unwrap());
    }
    let urls = |servers: &[Server]| servers.iter().map(Server::url).collect::<Vec<_>>().join(",");
    let seed = Some(keys[PROVISIONER].clone());
    let options = ProvisionOptions { url: urls(&servers), seed, replicas: 3, wait_ms: 30_000, ..Default::default() };
    // Two servers lead a cluster of three, and have no room for three copies.
    mesh_admin::probe(&options).await.unwrap();
    let short = provision(contract, &ProvisionOptions { wait_ms: 2_000, ..options.clone() }).await;
    assert!(matches!(&short, Err(ProvisionError::NoPeers { copies: 3, waited_ms: 2_000, .. })), "{short:?}");
    // Provisioning waits for the third.
    let waiting = tokio::spawn(async move { provision(contract, &options).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    servers.push(Server::start(last).await.unwrap());
    let report = waiting.await.unwrap().unwrap();
    let url = urls(&servers);
    let seed = Some(keys[PROVISIONER].clone());
    let options = ProvisionOptions { url: url.clone(), seed, replicas: 3, wait_ms: 30_000, ..Default::default() };
    assert_eq!(provision(contract, &options).await.unwrap().unchanged, report.created.len());

    let seed = Some(keys["intent-manager"].expose().to_owned());
    let bus = Bus::connect(Options { url, service: "intent-manager".to_owned(), seed, ..Default::default() }).await;
    let bus = bus.unwrap();
    let write = async |id: &str, expected: u64| {
        let event = mesh_proto::intent::IntentUnchanged {
            owner: "local".to_owned(),
            intent_id: "i".to_owned(),
            ..Default::default()
        };
        let message = Outgoing::new(&event, id, Timestamp::from_millis(1)).unwrap();
        let decision = Decision { entity: "intent.*.*.local.i".to_owned(), expected, messages: vec![message] };
        timeout(Duration::from_secs(60), bus.writer("INTENT").write(decision)).await.unwrap().unwrap()
    };
    assert_eq!(write("f1", 0).await, Written::Stored { last: 1 });
    servers[0].kill().await.unwrap();
    assert_eq!(write("f2", 1).await, Written::Stored { last: 2 });
    assert_eq!(write("f3", 1).await, Written::Stale { last: Some(2) });
    bus.close().await;
}

#[tokio::test]
async fn a_server_comes_back_on_its_port_with_all_it_acknowledged() {
    let Some(mut mesh) = Mesh::provisioned(Some(512 << 20)).await else { return };
    let (url, pid) = (mesh.server.url(), mesh.server.pid());
    let manager = mesh.connect("intent-manager").await;
    let subject = "w.intent.submitted.v1.local.a";
    assert_eq!(manager.ask(subject, HeaderMap::new(), "x").await["seq"], json!(1));
    mesh.server.kill().await.unwrap();
    mesh.server.restart().await.unwrap();
    assert_eq!((mesh.server.url(), mesh.server.pid() == pid), (url, false));
    // Provisioning waits for a server that recovers, and finds everything as it was.
    let report = mesh.provision().await.unwrap();
    assert_eq!((report.created.len(), report.updated.len()), (0, 0), "{report:?}");
    let manager = mesh.connect("intent-manager").await;
    assert_eq!(manager.ask(subject, HeaderMap::new(), "x").await["seq"], json!(2));
    mesh.server.stop().await.unwrap();
    assert_eq!(mesh.server.pid(), None);
    mesh.server.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_start_says_why() {
    let Ok(found) = find_server().await else {
        eprintln!("SKIPPED: mesh-bus server errors: no nats-server");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("nats.conf");
    std::fs::write(&conf, "listen: what").unwrap();
    let error = Server::start(ServerOptions::new(found.path, conf, folder.path())).await.unwrap_err().to_string();
    assert!(error.contains("ended with") && error.contains("what"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_given_less_disk_than_before_loses_nothing() {
    let Some(mut mesh) = Mesh::provisioned(Some(4 << 30)).await else { return };
    let manager = mesh.connect("intent-manager").await;
    let subject = "w.intent.submitted.v1.local.a";
    assert_eq!(manager.ask(subject, HeaderMap::new(), "x").await["seq"], json!(1));
    mesh.server.stop().await.unwrap();
    let folder = mesh._folder.path();
    let options = RenderOptions {
        listen: "127.0.0.1:-1".to_owned(),
        store_dir: folder.join("store"),
        ports_dir: Some(folder.to_owned()),
        disk_bytes: Some(1 << 30),
        keys: mesh.rendered.keys.clone(),
        ..Default::default()
    };
    render(mesh.contract, &options).unwrap().write(folder).unwrap();
    mesh.server.restart().await.unwrap();
    let report = mesh.provision().await.unwrap();
    assert_eq!(report.created.len(), 0, "{report:?}");
    assert!(report.limits.values().sum::<i64>() <= 1 << 30);
    let manager = mesh.connect("intent-manager").await;
    assert_eq!(manager.ask(subject, HeaderMap::new(), "x").await["seq"], json!(2));
}
