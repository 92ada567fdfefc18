//! How a process lives, on a real nats-server with the accounts, rights and streams of the contract.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]

use std::{
    collections::BTreeMap,
    ffi::OsString,
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use mesh_bus::Bus;
use mesh_kit::{Mesh, Running, Secret, Settings, Stopped, exit, metrics};
use mesh_proto::{
    intent::{
        AchievedReply, AchievedRequest, IntentHistory, IntentList, IntentView, StandingReply, StandingRequest,
        intent_queries_client::IntentQueriesClient,
        intent_queries_server::{IntentQueries, IntentQueriesServer},
    },
    lifecycle::ServiceChanged,
    query::{GetRequest, ListRequest},
    validation::{
        CheckReply, CheckRequest, IntentTypes, IntentTypesRequest, ObjectivesReply, ObjectivesRequest, TemplateReply,
        TemplateRequest,
        validator_queries_client::ValidatorQueriesClient,
        validator_queries_server::{ValidatorQueries, ValidatorQueriesServer},
    },
};
use mesh_test::{PATIENCE, TestBus, says, until};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::{Notify, mpsc},
};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

async fn test_bus(test: &str) -> Option<TestBus> {
    TestBus::start(&format!("mesh-kit life, {test}")).await
}

/// Status and body of a page that is there.
async fn page(endpoint: &str, path: &str) -> (u16, String) {
    mesh_test::page(endpoint, path).await.unwrap_or_else(|| panic!("{endpoint}{path} does not answer"))
}

async fn channel(endpoint: &str) -> tonic::transport::Channel {
    tonic::transport::Endpoint::from_shared(endpoint.to_owned()).unwrap().connect().await.unwrap()
}

async fn ready(endpoint: &str) -> (u16, Value) {
    let (status, body) = page(endpoint, "/readyz").await;
    let body = body.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{body}"));
    (status, serde_json::from_str(body).unwrap())
}

fn unmet(page: &Value) -> Vec<&str> {
    page["unmet"].as_array().unwrap().iter().map(|unmet| unmet["condition"].as_str().unwrap()).collect()
}

#[derive(Default)]
struct Queries {
    asked: Arc<Notify>,
    go_on: Arc<Notify>,
}

#[tonic::async_trait]
impl ValidatorQueries for Queries {
    /// Answers once it is told to go on.
    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckReply>, Status> {
        self.asked.notify_one();
        self.go_on.notified().await;
        Ok(Response::new(CheckReply::default()))
    }

    async fn types(&self, _: Request<IntentTypesRequest>) -> Result<Response<IntentTypes>, Status> {
        Ok(Response::new(IntentTypes::default()))
    }

    async fn template(&self, _: Request<TemplateRequest>) -> Result<Response<TemplateReply>, Status> {
        Ok(Response::new(TemplateReply::default()))
    }

    async fn objectives(&self, _: Request<ObjectivesRequest>) -> Result<Response<ObjectivesReply>, Status> {
        Ok(Response::new(ObjectivesReply::default()))
    }
}

#[tonic::async_trait]
impl IntentQueries for Queries {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<IntentView, Status>> + Send>>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<IntentView>, Status> {
        let what = format!("intent {}", request.into_inner().id);
        Err(mesh_core::query::Error::not_found(what, "list intents").into())
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<IntentList>, Status> {
        Ok(Response::new(IntentList::default()))
    }

    async fn history(&self, _: Request<GetRequest>) -> Result<Response<IntentHistory>, Status> {
        Ok(Response::new(IntentHistory::default()))
    }

    async fn achieved(&self, _: Request<AchievedRequest>) -> Result<Response<AchievedReply>, Status> {
        Ok(Response::new(AchievedReply::default()))
    }

    async fn standing(&self, _: Request<StandingRequest>) -> Result<Response<StandingReply>, Status> {
        Ok(Response::new(StandingReply::default()))
    }

    /// Never ends, also not when the process stops: what a faulty service would do.
    async fn watch(&self, _: Request<GetRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let first = futures::stream::iter([Ok(IntentView::default())]);
        Ok(Response::new(first.chain(futures::stream::pending()).boxed()))
    }
}

/// A service without anything of its own.
async fn idle(_: Mesh, (): ()) -> anyhow::Result<()> {
    Ok(())
}

async fn phases(bus: &Bus) -> Vec<String> {
    let stored = bus.log("LIFECYCLE").read("lifecycle.>", 1, 100).await.unwrap();
    let changed = stored.iter().map(|s| s.event::<ServiceChanged>().unwrap().unwrap());
    changed.inspect(|c| assert_eq!(c.service, "validator")).map(|c| c.phase).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_shows_how_it_is_on_one_port_and_on_the_bus() {
    let Some(bus) = test_bus("how it is").await else { return };
    let met = Arc::new(Mutex::new(None));
    let keep = met.clone();
    let start = async move |mesh: Mesh, (): ()| {
        mesh.serve(ValidatorQueriesServer::new(Queries::default()));
        mesh.serve(IntentQueriesServer::new(Queries::default()));
        let consumer = mesh.consumer("verdicts");
        consumer.received(3);
        consumer.took(Duration::from_millis(2));
        *keep.lock().unwrap() = Some(mesh.condition("view of clusters"));
        Ok(())
    };
    let running = mesh_kit::join("validator", bus.settings("validator"), (), start).await.unwrap();
    let endpoint = running.endpoint();
    let person = bus.connect("person").await;

    // Alive, but not ready, and it says what is missing.
    assert_eq!(page(&endpoint, "/livez").await.0, 200);
    let (status, body) = ready(&endpoint).await;
    assert_eq!((status, unmet(&body)), (503, vec!["view of clusters"]), "{body}");
    assert_eq!((&body["ready"], &body["unmet"][0]["reason"]), (&Value::Bool(false), &"starting".into()));
    assert!(body["unmet"][0]["since"].as_str().unwrap().ends_with('Z'), "{body}");
    let mut health = HealthClient::new(channel(&endpoint).await);
    let mut checked = async |service: &str| {
        let asked = HealthCheckRequest { service: service.into() };
        health.check(asked).await.map(|answer| answer.into_inner().status())
    };
    for service in ["", "continuum.validation.v1.ValidatorQueries", "continuum.intent.v1.IntentQueries"] {
        assert_eq!(checked(service).await.unwrap(), ServingStatus::NotServing, "{service}");
    }
    assert_eq!(checked("no.such.Service").await.unwrap_err().code(), Code::NotFound);
    let all = |status: ServingStatus| {
        let names = ["", "continuum.intent.v1.IntentQueries", "continuum.validation.v1.ValidatorQueries"];
        names.map(|name| (name.to_owned(), status)).into()
    };
    assert_eq!(all_health(&endpoint).await, all(ServingStatus::NotServing));
    assert_eq!(page(&endpoint, "/what").await.0, 200, "unknown paths are answered as gRPC does: unimplemented");

    met.lock().unwrap().as_ref().unwrap().met();
    assert_eq!(ready(&endpoint).await, (200, serde_json::json!({"ready": true, "unmet": []})));
    until("gRPC health follows", async || checked("").await.unwrap(), |s| *s == ServingStatus::Serving).await;
    assert_eq!(all_health(&endpoint).await, all(ServingStatus::Serving));

    // Every instrument of every consumer, and the bus.
    let (status, body) = page(&endpoint, "/metrics").await;
    assert_eq!(status, 200);
    for (name, kind) in metrics::INSTRUMENTS {
        assert!(body.contains(&format!("# TYPE {name} {kind}")), "{name} {kind} in\n{body}");
    }
    let labels = r#"{consumer="verdicts",service="validator"}"#;
    assert!(body.contains(&format!("{}{labels} 3", metrics::RECEIVED)), "{body}");
    assert!(body.contains("\nmesh_bus_connected 1"), "{body}");

    // gRPC: what is served is described; errors carry their hint; a request has a largest size.
    assert_eq!(
        described(&endpoint).await,
        [
            "continuum.intent.v1.IntentQueries",
            "continuum.validation.v1.ValidatorQueries",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection"
        ]
    );
    let mut intents = IntentQueriesClient::connect(endpoint.clone()).await.unwrap();
    let status = intents.get(GetRequest { id: "i".into(), ..Default::default() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(says(status.message(), "intent i not found; list intents"), "{}", status.message());
    let large = GetRequest { id: "x".repeat(mesh_kit::REQUEST_BYTES_MAX + 1), ..Default::default() };
    assert_eq!(intents.get(large).await.unwrap_err().code(), Code::OutOfRange);

    // Service discovery, asked by a person from another account.
    let ask = async |subject: &str| {
        let answers = person.request_all(subject, Bytes::new(), Duration::from_millis(300)).await.unwrap();
        let answers = answers.iter().map(|answer| serde_json::from_slice(&answer.body).unwrap());
        answers.collect::<Vec<Value>>()
    };
    let pings = until("a ping is answered", async || ask("$SRV.PING").await, |answers| !answers.is_empty()).await;
    assert_eq!((pings.len(), &pings[0]["type"]), (1, &"io.nats.micro.v1.ping_response".into()));
    let id = pings[0]["id"].as_str().unwrap();
    assert_eq!(id, running.mesh().process());
    // Answers are collected for a while only, and a busy machine may be slower.
    let answered =
        async |subject: &str| until("it is answered", async || ask(subject).await, |answers| !answers.is_empty()).await;
    let stats = answered(&format!("$SRV.STATS.validator.{id}")).await;
    assert_eq!(stats[0]["endpoints"][0]["data"]["received"], 3);
    assert_eq!(answered("$SRV.INFO.validator").await[0]["metadata"]["endpoint"], endpoint.as_str());

    until("it is ready on the bus", async || phases(&person).await, |phases| phases.len() == 2).await;
    assert_eq!(running.stop().await, Stopped::Settled);
    assert_eq!(phases(&person).await, ["starting", "ready", "stopping"]);
    let address = endpoint.strip_prefix("http://").unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
    person.close().await;
}

/// What `grpc.health.v1.Health/List` says, as grpcurl and others ask it.
async fn all_health(endpoint: &str) -> BTreeMap<String, ServingStatus> {
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    struct HealthListRequest {}
    #[derive(Clone, PartialEq, prost::Message)]
    struct HealthListResponse {
        #[prost(btree_map = "string, message", tag = "1")]
        statuses: BTreeMap<String, tonic_health::pb::HealthCheckResponse>,
    }
    let mut client = tonic::client::Grpc::new(channel(endpoint).await);
    client.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/List");
    let codec = tonic_prost::ProstCodec::<HealthListRequest, HealthListResponse>::default();
    let answered = client.unary(tonic::Request::new(HealthListRequest {}), path, codec).await.unwrap().into_inner();
    answered.statuses.into_iter().map(|(name, answer)| (name, answer.status())).collect()
}

/// The services that reflection lists.
async fn described(endpoint: &str) -> Vec<String> {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let mut client = ServerReflectionClient::new(channel(endpoint).await);
    let asked = |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let requests = [
        asked(MessageRequest::ListServices(String::new())),
        asked(MessageRequest::FileContainingSymbol("continuum.validation.v1.ValidatorQueries".into())),
    ];
    let mut answers = client.server_reflection_info(futures::stream::iter(requests)).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services")
    };
    let Some(MessageResponse::FileDescriptorResponse(_)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no description")
    };
    let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_the_bus_down_and_up_again() {
    let Some(mut bus) = test_bus("down and up").await else { return };
    let running = mesh_kit::join("validator", bus.settings("validator"), (), idle).await.unwrap();
    let endpoint = running.endpoint();
    assert_eq!(ready(&endpoint).await.0, 200);
    let mut health = HealthClient::new(channel(&endpoint).await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let mut told = async || watch.message().await.unwrap().map(|answer| answer.status());
    assert_eq!(told().await, Some(ServingStatus::Serving));

    bus.server.kill().await.unwrap();
    let (_, body) = until("not ready", async || ready(&endpoint).await, |(status, _)| *status == 503).await;
    assert_eq!((unmet(&body), &body["unmet"][0]["reason"]), (vec!["bus"], &"disconnected".into()));
    assert!(says(body["unmet"][0]["hint"].as_str().unwrap(), "nats-server"));
    let since = body["unmet"][0]["since"].clone();
    assert_eq!(told().await, Some(ServingStatus::NotServing));
    assert_eq!(page(&endpoint, "/livez").await.0, 200, "alive all the while");
    assert!(page(&endpoint, "/metrics").await.1.contains("\nmesh_bus_connected 0"));
    assert_eq!(ready(&endpoint).await.1["unmet"][0]["since"], since, "it is away since it went");

    bus.server.restart().await.unwrap();
    until("ready again", async || ready(&endpoint).await, |(status, _)| *status == 200).await;
    assert_eq!(told().await, Some(ServingStatus::Serving));
    assert!(page(&endpoint, "/metrics").await.1.contains("\nmesh_bus_reconnects_total 1"));

    // The watch does not hold the drain up: it is ended.
    let begun = Instant::now();
    let stopping = tokio::spawn(running.stop());
    while told().await.is_some() {}
    assert_eq!(stopping.await.unwrap(), Stopped::Settled);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_away_does_not_keep_an_idle_service_from_a_clean_end() {
    let Some(mut bus) = test_bus("end without bus").await else { return };
    let settings = Settings { drain_limit_ms: 6_000, ..bus.settings("validator") };
    let running = mesh_kit::join("validator", settings, (), idle).await.unwrap();
    bus.server.kill().await.unwrap();
    until("not ready", async || ready(&running.endpoint()).await, |(status, _)| *status == 503).await;
    let begun = Instant::now();
    assert_eq!(running.stop().await, Stopped::Settled);
    assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_served_over_mutual_tls_with_changing_certificates() {
    let Some(bus) = test_bus("tls").await else { return };
    let made = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls");
    let (cert, key) = (bus.folder().join("tls.pem"), bus.folder().join("tls.key"));
    let put = |server: &str| {
        std::fs::copy(made.join(format!("{server}.pem")), &cert).unwrap();
        std::fs::copy(made.join(format!("{server}.key")), &key).unwrap();
    };
    put("server-first");
    let settings = Settings {
        serve_tls: mesh_kit::config::ServeTls::Mutual,
        tls_ca_file: Some(made.join("authority-first.pem")),
        tls_cert_file: Some(cert.clone()),
        tls_key_file: Some(Secret::at(&key)),
        ..bus.settings("validator")
    };
    let running = mesh_kit::join("validator", settings, (), idle).await.unwrap();
    let endpoint = running.endpoint();
    assert!(endpoint.starts_with("https://127.0.0.1:"), "{endpoint}");
    let status = async |authority: &str, client: Option<&str>| -> Result<ServingStatus, String> {
        use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
        let pem = |name: &str| std::fs::read(made.join(name)).unwrap();
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem(authority)));
        if let Some(client) = client {
            tls = tls.identity(Identity::from_pem(pem(&format!("{client}.pem")), pem(&format!("{client}.key"))));
        }
        let endpoint = Endpoint::from_shared(endpoint.clone()).unwrap().tls_config(tls).unwrap();
        let channel = endpoint.connect().await.map_err(|error| format!("{error:?}"))?;
        let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
        answer.map(|answer| answer.into_inner().status()).map_err(|error| format!("{error:?}"))
    };
    assert_eq!(status("authority-first.pem", Some("client")).await, Ok(ServingStatus::Serving));
    assert!(status("authority-first.pem", None).await.is_err(), "who shows no certificate is not served");
    assert!(status("authority-first.pem", Some("server-second")).await.is_err(), "nor who shows a stranger's");
    assert!(status("authority-second.pem", Some("client")).await.is_err());

    put("server-second");
    let renewed = async || status("authority-second.pem", Some("client")).await;
    let shown = until("the new certificate is shown", renewed, Result::is_ok).await;
    assert_eq!(shown, Ok(ServingStatus::Serving));
    assert!(status("authority-first.pem", Some("client")).await.is_err(), "the old one is not");
    assert_eq!(running.stop().await, Stopped::Settled);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_settles_what_is_in_hand() {
    let Some(bus) = test_bus("settles").await else { return };
    let queries = Queries::default();
    let (asked, go_on) = (queries.asked.clone(), queries.go_on.clone());
    let (settled, mut was_settled) = mpsc::channel(1);
    let start = async move |mesh: Mesh, (): ()| {
        mesh.serve(ValidatorQueriesServer::new(queries));
        let stopping = mesh.stopping();
        mesh.spawn("consumer", async move {
            stopping.cancelled().await;
            // What is in hand takes its time.
            go_on.notify_one();
            settled.send("acked").await?;
            Ok(())
        });
        Ok(())
    };
    let running = mesh_kit::join("validator", bus.settings("validator"), (), start).await.unwrap();
    let mut validator = ValidatorQueriesClient::connect(running.endpoint()).await.unwrap();
    let in_hand = tokio::spawn(async move { validator.check(CheckRequest::default()).await });
    asked.notified().await;
    assert_eq!(running.stop().await, Stopped::Settled);
    assert_eq!(was_settled.recv().await, Some("acked"));
    assert!(in_hand.await.unwrap().is_ok(), "the request in hand was answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_settle_is_cut_off_within_the_limit() {
    struct Dropped(mpsc::UnboundedSender<&'static str>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.send("dropped");
        }
    }
    let Some(bus) = test_bus("cut off").await else { return };
    let (told, mut dropped) = mpsc::unbounded_channel();
    let start = async move |mesh: Mesh, (): ()| {
        mesh.serve(IntentQueriesServer::new(Queries::default()));
        mesh.spawn("stuck", async move {
            let _dropped = Dropped(told);
            std::future::pending().await
        });
        Ok(())
    };
    let limit = Duration::from_secs(2);
    let settings = Settings { drain_limit_ms: limit.as_millis() as u64, ..bus.settings("validator") };
    let running = mesh_kit::join("validator", settings, (), start).await.unwrap();
    let mut intents = IntentQueriesClient::connect(running.endpoint()).await.unwrap();
    let mut watch = intents.watch(GetRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    let begun = Instant::now();
    assert_eq!(running.stop().await, Stopped::CutOff);
    let took = begun.elapsed();
    assert!(took < limit + Duration::from_secs(1), "{took:?}");
    assert_eq!(dropped.recv().await, Some("dropped"), "the task is gone");
    assert!(watch.message().await.is_err(), "the connection is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fails_or_panics_is_told_as_the_end_of_the_service() {
    let Some(bus) = test_bus("fails").await else { return };
    let start = async |mesh: Mesh, (): ()| {
        let first = mesh.condition("never met");
        first.unmet("waiting");
        mesh.spawn("consumer", async { Err(anyhow::anyhow!("disk gone").context("store view")) });
        Ok(())
    };
    let running = mesh_kit::join("validator", bus.settings("validator"), (), start).await.unwrap();
    let failure = tokio::time::timeout(PATIENCE, running.failed()).await.unwrap();
    assert_eq!((failure.task, failure.error.as_str()), ("consumer", "store view: disk gone"));
    assert_eq!(running.stop().await, Stopped::Settled);

    let start = async |mesh: Mesh, (): ()| {
        mesh.spawn("consumer", async { panic!("seven of nine") });
        Ok(())
    };
    let running = mesh_kit::join("validator", bus.settings("validator"), (), start).await.unwrap();
    let failure = tokio::time::timeout(PATIENCE, running.failed()).await.unwrap();
    assert!(failure.error.contains("seven of nine"), "{failure}");
    drop(running);

    // A start that waits for a task that has failed does not wait for ever.
    let start = async |mesh: Mesh, (): ()| {
        mesh.spawn("reader", async { Err(anyhow::anyhow!("no such stream")) });
        std::future::pending().await
    };
    let joined =
        tokio::time::timeout(PATIENCE, mesh_kit::join("validator", bus.settings("validator"), (), start)).await;
    assert!(format!("{:#}", joined.unwrap().unwrap_err()).contains("no such stream"));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_live_in_one_process_and_stop_alone() {
    let Some(bus) = test_bus("two services").await else { return };
    let one = mesh_kit::join("validator", bus.settings("validator"), (), idle).await.unwrap();
    let settings = Settings { bus_seed_file: Some(Secret::at(bus.key("collector"))), ..bus.settings("validator") };
    let other = mesh_kit::join("collector", settings, (), idle).await.unwrap();
    assert_ne!(one.endpoint(), other.endpoint());
    other.mesh().consumer("samples").received(1);
    let pages = [page(&one.endpoint(), "/metrics").await.1, page(&other.endpoint(), "/metrics").await.1];
    assert!(!pages[0].contains("samples") && pages[1].contains("samples"), "each shows its own");
    let person = bus.connect("person").await;
    let answers = async || person.request_all("$SRV.PING", Bytes::new(), Duration::from_millis(300)).await.unwrap();
    until("both answer", answers, |answers| answers.len() == 2).await;
    assert_eq!(one.stop().await, Stopped::Settled);
    assert_eq!(ready(&other.endpoint()).await.0, 200);
    assert_eq!(other.stop().await, Stopped::Settled);
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_are_opened_when_first_used_and_counted() {
    let Some(bus) = test_bus("samples").await else { return };
    let settings = Settings {
        samples_mode: mesh_kit::config::SamplesMode::Router,
        samples_listen: vec!["tcp/127.0.0.1:0".into()],
        ..bus.settings("validator")
    };
    let running = mesh_kit::join("validator", settings, (), idle).await.unwrap();
    let published = async || {
        let page = page(&running.endpoint(), "/metrics").await.1;
        page.lines().find(|line| line.starts_with("mesh_samples_published_total ")).map(str::to_owned)
    };
    assert_eq!(published().await, None, "no session yet");
    let samples = running.mesh().samples().await.unwrap();
    let mut arriving = running.mesh().samples().await.unwrap().subscribe("continuum/*/*/instance/*").await.unwrap();
    let about = mesh_bus::About { id: "s1".into(), ..mesh_bus::About::default() };
    samples.publish("continuum/home/n1/instance/i1", "body", &about).await.unwrap();
    let sample = tokio::time::timeout(PATIENCE, arriving.next()).await.unwrap().unwrap();
    assert_eq!((sample.key.as_str(), &sample.body[..]), ("continuum/home/n1/instance/i1", &b"body"[..]));
    assert_eq!(
        published().await.as_deref(),
        Some("mesh_samples_published_total 1"),
        "one session, however often asked"
    );
    assert_eq!(running.stop().await, Stopped::Settled);
}

// Whole processes: this test program starts itself again, as the service under test.

const CHILD: &str = "LIFE_CHILD";
const ARGUMENTS: &str = "LIFE_ARGUMENTS";

/// Not a test of its own: the service that the tests below start.
#[test]
fn child() {
    let Ok(mode) = std::env::var(CHILD) else { return };
    let arguments = std::env::var(ARGUMENTS).unwrap_or_default();
    let arguments: Vec<OsString> = arguments.lines().map(OsString::from).collect();
    let environment = mesh_kit::config::environment();
    let start = async move |mesh: Mesh, (): ()| {
        match mode.as_str() {
            "stuck" => mesh.spawn("stuck", std::future::pending()),
            "fails" => mesh.spawn("consumer", async { Err(anyhow::anyhow!("disk gone")) }),
            "rejects" => return Err(mesh_kit::config::Error::rejected("labels", "write k=v").into()),
            "traced" => {
                let span = tracing::info_span!("decide", intent = "i1");
                span.in_scope(|| tracing::info!("decided"));
                mesh.consumer("verdicts").received(1);
            }
            _ => {}
        }
        Ok(())
    };
    std::process::exit(mesh_kit::run_with("validator", arguments, &environment, start).into());
}

struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Process {
    fn start(mode: &str, arguments: &[&str], settings: Option<&Settings>) -> Self {
        let mut all: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        if let Some(settings) = settings {
            all.extend(mesh_kit::config::arguments(settings).unwrap());
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, mode)
            .env(ARGUMENTS, all.join("\n"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (sender, lines) = mpsc::unbounded_channel();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        for mut reader in [
            BufReader::new(Box::pin(out) as Pin<Box<dyn tokio::io::AsyncRead + Send>>).lines(),
            BufReader::new(Box::pin(err) as Pin<Box<dyn tokio::io::AsyncRead + Send>>).lines(),
        ] {
            let (log, sender) = (log.clone(), sender.clone());
            tokio::spawn(async move {
                while let Ok(Some(line)) = reader.next_line().await {
                    log.lock().unwrap().push_str(&format!("{line}\n"));
                    let _ = sender.send(line);
                }
            });
        }
        Self { child, log, lines }
    }

    /// Waits for a line of its log or output.
    async fn says(&mut self, text: &str) {
        let said = async {
            while let Some(line) = self.lines.recv().await {
                if line.contains(text) {
                    return true;
                }
            }
            false
        };
        let said = tokio::time::timeout(PATIENCE, said).await;
        assert_eq!(said, Ok(true), "{text:?} is not said:\n{}", self.log.lock().unwrap());
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Waits for its end: exit code and all that it said.
    async fn ended(mut self) -> (u8, String) {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("does not end:\n{}", self.log.lock().unwrap())).unwrap();
        while tokio::time::timeout(PATIENCE, self.lines.recv()).await.unwrap().is_some() {}
        let log = self.log.lock().unwrap().clone();
        let code = status.code().unwrap_or_else(|| panic!("{status}:\n{log}"));
        (code.try_into().unwrap(), log)
    }
}

#[tokio::test]
async fn wrong_configuration_ends_the_process_with_64_and_says_what_is_meant() {
    let (code, log) = Process::start("idle", &["--set", "bus_ulr=nats://x"], None).ended().await;
    assert_eq!(code, exit::USAGE, "{log}");
    assert!(log.contains("\"bus_ulr\"") && log.contains("\"bus_url\"") && log.contains("--set"), "{log}");
    let (code, log) = Process::start("idle", &["--sett"], None).ended().await;
    assert_eq!(code, exit::USAGE, "{log}");
    let (code, log) = Process::start("idle", &["--set", "bus_seed_file=/no/such/seed"], None).ended().await;
    assert_eq!(code, exit::USAGE, "{log}");
    assert!(log.contains("/no/such/seed"), "{log}");
    let (code, log) = Process::start("idle", &["--help"], None).ended().await;
    assert_eq!(code, exit::OK);
    assert!(log.contains("CONTINUUM_BUS_URL") && log.contains("drain_limit_ms = 10000"), "{log}");
}

#[tokio::test]
async fn the_whole_configuration_is_printed_with_its_origins() {
    let arguments = ["--set", "bus_seed_file=/keys/validator.nk", "--print-config", "--set", "log_level=warn"];
    let (code, log) = Process::start("idle", &arguments, None).ended().await;
    assert_eq!(code, exit::OK);
    let line = |key: &str| log.lines().find(|l| l.split(' ').next() == Some(key)).unwrap_or_else(|| panic!("{log}"));
    assert!(line("bus_seed_file").contains("<file /keys/validator.nk>"));
    assert!(line("log_level").contains("warn") && line("log_level").ends_with("flag --set"));
    assert!(line("listen").ends_with("default"));
}

#[tokio::test]
async fn a_bus_that_is_not_there_ends_the_process_with_69() {
    // A port that was free a moment ago, and where nobody speaks NATS in any case.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    drop(listener);
    let settings = Settings { bus_url: url.clone(), bus_connect_limit_ms: 300, ..Settings::default() };
    let (code, log) = Process::start("idle", &[], Some(&settings)).ended().await;
    assert_eq!(code, exit::UNAVAILABLE, "{log}");
    assert!(log.contains(&url), "{log}");
}

#[tokio::test]
async fn signals_and_failures_end_a_process_as_documented() {
    let Some(bus) = test_bus("signals").await else { return };
    let settings = Settings { log_format: mesh_kit::config::LogFormat::Json, ..bus.settings("validator") };

    let mut process = Process::start("idle", &[], Some(&settings));
    process.says("\"wired\"").await;
    process.signal("-TERM");
    let (code, log) = process.ended().await;
    assert_eq!(code, exit::OK, "{log}");
    let line = log.lines().find(|l| l.contains("\"stopped\"")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["settled"], &line["level"]), (&Value::Bool(true), &"INFO".into()));
    assert_eq!(line["spans"][0]["service"], "validator", "each line says whose it is");

    // A second signal leaves at once, though the drain has long to go.
    for (first, second, expected) in [("-TERM", "-TERM", exit::TERMINATED), ("-TERM", "-INT", exit::INTERRUPTED)] {
        let patient = Settings { drain_limit_ms: 600_000, ..settings.clone() };
        let mut process = Process::start("stuck", &[], Some(&patient));
        process.says("\"wired\"").await;
        process.signal(first);
        process.says("\"stopping\"").await;
        process.signal(second);
        let (code, log) = process.ended().await;
        assert_eq!(code, expected, "{log}");
    }

    // What does not settle is cut off, and that is no clean end.
    let hasty = Settings { drain_limit_ms: 1_000, ..settings.clone() };
    let mut process = Process::start("stuck", &[], Some(&hasty));
    process.says("\"wired\"").await;
    process.signal("-INT");
    let (code, log) = process.ended().await;
    assert_eq!(code, exit::INTERNAL, "{log}");
    assert!(log.lines().any(|l| l.contains("cut off") && l.contains("stuck")), "{log}");

    let (code, log) = Process::start("fails", &[], Some(&settings)).ended().await;
    assert_eq!(code, exit::INTERNAL, "{log}");
    assert!(log.lines().any(|l| l.contains("\"ERROR\"") && l.contains("disk gone")), "{log}");
    let (code, log) = Process::start("rejects", &[], Some(&settings)).ended().await;
    assert_eq!(code, exit::USAGE, "{log}");
    assert!(log.contains("labels") && log.contains("write k=v"), "{log}");
    assert!(bus.folder().exists());
}

/// A collector that notes what it is sent: gRPC path and body.
async fn collector() -> (String, mpsc::UnboundedReceiver<(String, Bytes)>) {
    use axum::{body, extract, http::header};
    let (sent, received) = mpsc::unbounded_channel();
    let export = move |request: extract::Request| {
        let sent = sent.clone();
        async move {
            let path = request.uri().path().to_owned();
            let body = body::to_bytes(request.into_body(), 16 * 1024 * 1024).await.unwrap();
            let _ = sent.send((path, body));
            // An empty message, and that all is well.
            let headers =
                [(header::CONTENT_TYPE, "application/grpc"), (header::HeaderName::from_static("grpc-status"), "0")];
            (headers, Bytes::from_static(&[0; 5]))
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let routes = tonic::service::Routes::from(axum::Router::new().fallback(export));
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming));
    (endpoint, received)
}

#[tokio::test]
async fn traces_metrics_and_logs_are_sent_before_the_process_ends() {
    let Some(bus) = test_bus("telemetry").await else { return };
    let (endpoint, mut received) = collector().await;
    let settings = Settings { otlp_endpoint: Some(endpoint), otlp_interval_ms: 600_000, ..bus.settings("validator") };
    let mut process = Process::start("traced", &[], Some(&settings));
    process.says("wired").await;
    process.signal("-TERM");
    let (code, log) = process.ended().await;
    assert_eq!(code, exit::OK, "{log}");
    let mut sent = BTreeMap::<String, Vec<u8>>::new();
    while let Ok((path, body)) = received.try_recv() {
        let service = path.split('/').nth(1).unwrap().rsplit('.').next().unwrap().to_owned();
        sent.entry(service).or_default().extend(body);
    }
    for (service, said) in
        [("TraceService", "decide"), ("LogsService", "decided"), ("MetricsService", metrics::RECEIVED)]
    {
        let body = sent.get(service).unwrap_or_else(|| panic!("no {service} in {:?}\n{log}", sent.keys()));
        for text in [said, "validator", "service.instance.id"] {
            assert!(body.windows(text.len()).any(|window| window == text.as_bytes()), "no {text:?} to {service}");
        }
    }
}

#[tokio::test]
async fn a_collector_that_does_not_answer_holds_no_process_up() {
    let Some(bus) = test_bus("silent collector").await else { return };
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let settings = Settings { otlp_endpoint: Some(endpoint), drain_limit_ms: 3_000, ..bus.settings("validator") };
    let mut process = Process::start("traced", &[], Some(&settings));
    process.says("wired").await;
    let begun = Instant::now();
    process.signal("-TERM");
    let (code, log) = process.ended().await;
    assert_eq!(code, exit::OK, "{log}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}\n{log}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_identity_is_not_taken_for_an_unreachable_bus() {
    let Some(bus) = test_bus("identity").await else { return };
    let seed = mesh_bus::Seed::generate().unwrap();
    let path = bus.folder().join("stranger.nk");
    std::fs::write(&path, seed.expose()).unwrap();
    let settings = Settings { bus_seed_file: Some(Secret::at(&path)), ..bus.settings("validator") };
    let error = mesh_kit::join("validator", settings, (), idle).await.map(|_: Running| ()).unwrap_err();
    let said = format!("{error:#}");
    assert!(said.contains("sign in") && !said.contains(seed.expose()), "{said}");
}
