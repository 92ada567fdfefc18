//! Gateways before a real mesh: a real nats-server, the real services beside them, and hostile clients in front.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]

#[path = "mesh/collector.rs"]
mod collector;
#[path = "mesh/grafana.rs"]
mod grafana;
#[path = "mesh/hostile.rs"]
mod hostile;
#[path = "mesh/hub.rs"]
mod hub;
#[path = "mesh/keycloak.rs"]
mod keycloak;
#[path = "mesh/silent.rs"]
mod silent;
#[path = "mesh/telemetry.rs"]
mod telemetry;
#[path = "mesh/twins.rs"]
mod twins;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mesh_core::Outgoing;
use mesh_kit::{Running, Secret, Settings, config::ServeTls};
use mesh_proto::workload::StopInstance;
use mesh_test::{TestBus, is_full, soon, until};
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Parts of a form, by name.
type Parts<'a> = &'a [(&'a str, &'a [u8])];

/// A mesh with gateways.
struct World {
    test_bus: TestBus,
    running: Vec<Running>,
    urls: Vec<String>,
    http: Client<HttpConnector, Full<Bytes>>,
    password: String,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Json,
}

impl World {
    async fn start(suite: &str, gateways: usize, change: impl Fn(&mut Configs)) -> Option<Self> {
        Self::start_with(suite, gateways, 1, change).await
    }

    /// With more than one notifier; the last of them stops first.
    async fn start_with(suite: &str, gateways: usize, notifiers: usize, change: impl Fn(&mut Configs)) -> Option<Self> {
        let mut configs = Configs::default();
        change(&mut configs);
        let test_bus = TestBus::start(suite).await?.with_router().await;
        let mut running = vec![];
        let own = |test_bus: &TestBus, name: &str| Settings {
            data_dir: Some(test_bus.folder().join("state").join(name)),
            ..test_bus.settings(name)
        };
        let join = "join";
        running.push(
            mesh_kit::join(
                "intent-manager",
                own(&test_bus, "intent-manager"),
                Default::default(),
                intent_manager::start,
            )
            .await
            .expect(join),
        );
        running.push(
            mesh_kit::join("validator", own(&test_bus, "validator"), Default::default(), validator::start)
                .await
                .expect(join),
        );
        running.push(
            mesh_kit::join(
                "workload-manager",
                own(&test_bus, "workload-manager"),
                Default::default(),
                workload_manager::start,
            )
            .await
            .expect(join),
        );
        running.push(
            mesh_kit::join(
                "meta-orchestrator",
                own(&test_bus, "meta-orchestrator"),
                Default::default(),
                meta_orchestrator::start,
            )
            .await
            .expect(join),
        );
        let cluster =
            cluster_agent::Config { cluster_id: "edge".into(), driver: "simulated".into(), ..Default::default() };
        running.push(
            mesh_kit::join("cluster-agent", own(&test_bus, "cluster-agent"), cluster, cluster_agent::start)
                .await
                .expect(join),
        );
        let small =
            mesh_kit::join("collector", own(&test_bus, "collector"), collector::Config::default(), collector::start);
        running.push(small.await.expect(join));
        if configs.observed {
            let twins = cmdt_aggregator::Config { tick_ms: 100, ..Default::default() };
            let settings = own(&test_bus, "cmdt-aggregator");
            running.push(mesh_kit::join("cmdt-aggregator", settings, twins, cmdt_aggregator::start).await.expect(join));
            let settings = own(&test_bus, "sar-detector");
            running.push(
                mesh_kit::join("sar-detector", settings, Default::default(), sar_detector::start).await.expect(join),
            );
        }
        let others = running.len();
        let with_tls = |settings: Settings, serve_tls: ServeTls, name: &str| {
            let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../libs/mesh-kit/tests/tls");
            match configs.tls {
                false => settings,
                true => Settings {
                    serve_tls,
                    tls_ca_file: Some(made.join("authority-first.pem")),
                    tls_cert_file: Some(made.join(format!("{name}.pem"))),
                    tls_key_file: Some(Secret::at(made.join(format!("{name}.key")))),
                    ..settings
                },
            }
        };
        let settings = with_tls(own(&test_bus, "identity"), ServeTls::Mutual, "server-first");
        let identity = mesh_kit::join("identity", settings, configs.identity, identity::start).await;
        running.push(identity.expect(join));
        let mut world = Self {
            test_bus,
            running,
            urls: vec![],
            http: Client::builder(TokioExecutor::new()).build_http(),
            password: String::new(),
        };
        for number in 0..gateways {
            let folder = world.test_bus.folder().join("state").join(format!("gateway-{number}"));
            let settings = Settings { data_dir: Some(folder.clone()), ..world.test_bus.settings("gateway") };
            let settings = with_tls(settings, ServeTls::Off, "client");
            let joined = mesh_kit::join("gateway", settings, configs.gateway.clone(), gateway::start).await;
            world.running.push(joined.expect(join));
            world.urls.push(std::fs::read_to_string(folder.join("url")).unwrap());
        }
        for number in 0..notifiers {
            let folder = world.test_bus.folder().join("state").join(format!("notifier-{number}"));
            let settings = Settings { data_dir: Some(folder), ..world.test_bus.settings("notifier") };
            let joined = mesh_kit::join("notifier", settings, configs.notifier.clone(), notifier::start).await;
            world.running.push(joined.expect(join));
        }
        for service in &world.running[others..] {
            ready(service).await;
        }
        let password = world.test_bus.folder().join("state/identity/admin.password");
        world.password = std::fs::read_to_string(password).unwrap();
        Some(world)
    }

    async fn raw(
        &self,
        at: usize,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        send(&self.http, &self.urls[at], method, path, headers, body.into()).await
    }

    async fn ask(&self, token: &str, method: &str, path: &str, body: Option<Json>) -> Answer {
        self.with(token, method, path, &[], body).await
    }

    async fn with(&self, token: &str, method: &str, path: &str, more: &[(&str, &str)], body: Option<Json>) -> Answer {
        let bearer = format!("Bearer {token}");
        let mut headers = vec![("authorization", bearer.as_str())];
        if body.is_some() {
            headers.push(("content-type", "application/json"));
        }
        headers.extend_from_slice(more);
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        self.raw(0, method, path, &headers, body).await
    }

    async fn login(&self, name: &str, password: &str) -> Answer {
        login(&self.http, &self.urls[0], name, password).await
    }

    async fn admin(&self) -> String {
        let answer = self.login("admin", &self.password).await;
        assert_eq!(answer.status, 200, "a gateway that is ready has an account to sign in with: {answer:?}");
        answer.body["token"].as_str().unwrap().to_owned()
    }

    /// A token of a new account.
    async fn account(&self, admin: &str, name: &str, roles: &[&str]) -> String {
        let body = json!({"username": name, "password": "correct horse", "roles": roles});
        let made = self.ask(admin, "PUT", "/api/v1/auth/account/", Some(body)).await;
        assert_eq!(made.status, 200, "{:?}", made.body);
        let answer = until(
            "the account can sign in",
            async || self.login(name, "correct horse").await,
            |answer: &Answer| answer.status == 200,
        )
        .await;
        answer.body["token"].as_str().unwrap().to_owned()
    }

    async fn stop(mut self) {
        while let Some(service) = self.running.pop() {
            service.stop().await;
        }
    }
}

/// Configurations of the services under test.
struct Configs {
    gateway: gateway::Config,
    identity: identity::Config,
    notifier: notifier::Config,
    /// Twins and anomalies are observed.
    observed: bool,
    /// The identity service asks for mutual TLS, and the gateway has a certificate.
    tls: bool,
}

impl Default for Configs {
    /// No limit of requests, passwords that are hashed quickly, and verdicts that are waited for.
    fn default() -> Self {
        Self {
            gateway: gateway::Config { rate_per_s: 0, verdict_limit_ms: 20_000, ..Default::default() },
            identity: identity::Config { password_memory_kib: 64, password_passes: 1, ..Default::default() },
            notifier: notifier::Config::default(),
            observed: false,
            tls: false,
        }
    }
}

/// Waits until a service has all that it needs.
async fn ready(service: &Running) {
    until("the service is ready", async || service.mesh().readiness().missing(), |missing| missing.is_empty()).await;
}

async fn send(
    http: &Client<HttpConnector, Full<Bytes>>,
    url: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Answer {
    let mut request = Request::builder().method(method).uri(format!("{url}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = http.request(request.body(Full::new(body)).unwrap()).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    if headers.get("content-type").is_some_and(|kind| kind == "text/event-stream") {
        // It has no end.
        return Answer { status, headers, body: Json::Null };
    }
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    Answer { status, headers, body: serde_json::from_slice(&body).unwrap_or(Json::String(text)) }
}

async fn login(http: &Client<HttpConnector, Full<Bytes>>, url: &str, name: &str, password: &str) -> Answer {
    let body = json!({"username": name, "password": password}).to_string();
    send(http, url, "POST", "/api/v1/auth/login/", &[("content-type", "application/json")], body.into()).await
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status, self.body)
    }
}

fn intent(bound: &str) -> Json {
    json!({"user_label": "DeliverComputingWorkload", "observation_period": 2, "intent_expectations": [{
        "expectation_id": "a", "expectation_verb": "DELIVER",
        "expectation_object": {"object_type": "NEMO_WORKLOAD", "object_instance": "nothing@1.0.0"},
        "expectation_targets": [{"target_name": "cpuUsage", "target_condition": "IS_LESS_THAN", "target_value_range": bound}],
    }]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_equal_submissions_through_three_gateways_make_one_intent() {
    let Some(world) = World::start("gateway, exactly one outcome", 3, |_| {}).await else { return };
    let token = world.admin().await;
    let bearer = format!("Bearer {token}");
    let body = intent("20").to_string();
    let headers =
        [("authorization", bearer.as_str()), ("content-type", "application/json"), ("idempotency-key", "order-66")];
    let answers: Vec<Answer> = soon(
        "a thousand answers",
        stream::iter(0..1_000)
            .map(|number| world.raw(number % 3, "POST", "/api/v1/intent/", &headers, body.clone()))
            .buffer_unordered(1_000)
            .collect(),
    )
    .await;
    let ids: BTreeSet<String> = answers.iter().map(|a| a.body["id"].to_string()).collect();
    let statuses: BTreeSet<u16> = answers.iter().map(|a| a.status).collect();
    assert_eq!(ids.len(), 1, "{ids:?} {statuses:?}");
    assert!(statuses.iter().all(|status| [200, 201].contains(status)), "{statuses:?}");
    let facts = world
        .test_bus
        .connect("gateway")
        .await
        .log("INTENT")
        .read("intent.submitted.v1.local.*", 1, 1_000)
        .await
        .unwrap();
    assert_eq!(facts.len(), 1, "one intent was made");
    until(
        "the one is listed",
        async || world.ask(&token, "GET", "/api/v1/intent/", None).await,
        |listed: &Answer| listed.body.as_array().unwrap().len() == 1,
    )
    .await;
    // The same key for something else.
    let other =
        world.with(&token, "POST", "/api/v1/intent/", &[("idempotency-key", "order-66")], Some(intent("30"))).await;
    assert_eq!((other.status, other.body["type"].as_str()), (422, Some("/problems/idempotency-key")), "{other:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intent_is_submitted_read_changed_and_ended_over_rest_and_tmf921() {
    let Some(world) = World::start("gateway, life of an intent", 1, |_| {}).await else { return };
    let token = world.admin().await;
    let made = world.ask(&token, "POST", "/api/v1/intent/", Some(json!({"id": "plant", "intent": intent("20")}))).await;
    assert_eq!((made.status, made.body["not_fulfilled_state"].as_str()), (201, Some("ACKNOWLEDGED")), "{made:?}");
    assert_eq!(made.headers["location"], "/api/v1/intent/plant/");
    // What becomes of it still changes at first: it settles.
    until(
        "it is told that nothing has changed since",
        async || {
            let read = world.ask(&token, "GET", "/api/v1/intent/plant/", None).await;
            let tag = read.headers.get("etag").map(|tag| tag.to_str().unwrap().to_owned()).unwrap_or_default();
            world.with(&token, "GET", "/api/v1/intent/plant/", &[("if-none-match", &tag)], None).await.status
        },
        |status| *status == 304,
    )
    .await;
    // What a read gave, PUT and check take, a person's own keys as they were.
    let mut own = intent("20");
    own["intent_report_reference"] = json!({"APIKey": "k", "inner": {"aB": 1}});
    let put = world.ask(&token, "PUT", "/api/v1/intent/plant/", Some(own.clone())).await;
    assert_eq!((put.status, &put.body["intent_report_reference"]), (200, &own["intent_report_reference"]), "{put:?}");
    let read = world.ask(&token, "GET", "/api/v1/intent/plant/", None).await;
    let checked = world.ask(&token, "POST", "/api/v1/intent/check/", Some(read.body.clone())).await;
    assert_eq!((checked.status, checked.body["acceptable"].as_bool()), (200, Some(true)), "{checked:?}");
    let put = world.ask(&token, "PUT", "/api/v1/intent/plant/", Some(read.body.clone())).await;
    assert_eq!((put.status, &put.body["version"]), (200, &read.body["version"]), "nothing has changed: {put:?}");
    assert_eq!(put.body["intent_report_reference"], own["intent_report_reference"]);
    let elsewhere = world.ask(&token, "PUT", "/api/v1/intent/other/", Some(read.body)).await;
    assert_eq!((elsewhere.status, elsewhere.body["errors"][0]["path"].as_str()), (422, Some("id")), "{elsewhere:?}");
    let stale = [("if-match", "\"0-0\"")];
    let change = json!({"target_id": "cpuUsage", "target_value_range": "30"});
    let refused = world.with(&token, "PUT", "/api/v1/intent/plant/target/", &stale, Some(change.clone())).await;
    assert_eq!((refused.status, refused.body["type"].as_str()), (412, Some("/problems/precondition")));
    let other = [("if-none-match", "*")];
    let refused = world.with(&token, "PUT", "/api/v1/intent/plant/target/", &other, Some(change.clone())).await;
    assert_eq!(refused.status, 412, "a condition holds on every method: {refused:?}");
    assert_eq!(world.with(&token, "GET", "/api/v1/intent/plant/", &stale, None).await.status, 412);
    // What has no meaning here is passed over, as RFC 9110 has it.
    let ranges = [("range", "items=0-1"), ("if-modified-since", "Sunday, 06-Nov-94 08:49:37 GMT")];
    assert_eq!(world.with(&token, "GET", "/api/v1/intent/plant/", &ranges, None).await.status, 200);
    let changed = world.ask(&token, "PUT", "/api/v1/intent/plant/target/", Some(change)).await;
    assert_eq!((changed.status, changed.body["version"].as_u64()), (200, Some(3)), "{changed:?}");
    // What the validator rejects is told with its field, and what would be right.
    let wrong = world.ask(&token, "POST", "/api/v1/intent/", Some(intent("many"))).await;
    assert_eq!(wrong.status, 422, "{wrong:?}");
    assert!(wrong.body["errors"][0]["path"].as_str().unwrap().contains("targetValueRange"), "{wrong:?}");
    assert!(!wrong.body["errors"][0]["hint"].as_str().unwrap().is_empty());
    let checked = world.ask(&token, "POST", "/api/v1/intent/check/", Some(intent("many"))).await;
    assert_eq!((checked.status, checked.body["acceptable"].as_bool()), (200, Some(false)));
    let resumed = world.ask(&token, "PUT", "/api/v1/intent/plant/action/", Some(json!({"action": "RESUME"}))).await;
    assert_eq!(resumed.status, 409, "only what is suspended is resumed: {resumed:?}");
    let suspended = world.ask(&token, "PUT", "/api/v1/intent/plant/action/", Some(json!({"action": "SUSPEND"}))).await;
    assert_eq!((suspended.status, suspended.body["not_fulfilled_state"].as_str()), (200, Some("SUSPENDED")));
    let refused = world.ask(&token, "PUT", "/api/v1/intent/plant/", Some(intent("40"))).await;
    assert_eq!(refused.status, 409, "its state forbids an update: {refused:?}");
    // The same intent in TM Forum's words.
    let base = "/tmf-api/intentManagement/v5/intent";
    let shown = world.ask(&token, "GET", &format!("{base}/plant"), None).await;
    assert_eq!((shown.status, shown.body["lifecycleStatus"].as_str()), (200, Some("SUSPENDED")), "{shown:?}");
    let body = json!({"@type": "Intent", "name": "Halle Süd", "priority": "7", "relatedParty": [{"id": "p", "APIKey": "k"}],
        "validFor": {"startDateTime": "2027-01-01T00:00:00Z"}, "expression": {"@type": "JsonLdExpression", "iri": "x",
        "expressionValue": shown.body["expression"]["expressionValue"]}});
    let made = world.ask(&token, "POST", base, Some(body.clone())).await;
    assert_eq!((made.status, made.body["name"].as_str()), (201, Some("Halle Süd")), "{made:?}");
    assert_eq!((&made.body["relatedParty"], &made.body["validFor"]), (&body["relatedParty"], &body["validFor"]));
    let tmf = format!("{base}/{}", made.body["id"].as_str().unwrap());
    assert_eq!(made.headers["location"], *tmf);
    let again = world.ask(&token, "POST", base, Some(body)).await;
    assert_eq!(again.status, 201, "names need not be unique: {again:?}");
    let second = again.body["id"].as_str().unwrap().to_owned();
    assert_ne!(made.body["id"], second.as_str());
    // A merge patch changes what it names; with what it must not change, nothing.
    let merge = [("content-type", "application/merge-patch+json")];
    let patch = async |change: Json| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), merge[0]];
        world.raw(0, "PATCH", &tmf, &headers, change.to_string()).await
    };
    let both = patch(json!({"description": "of the south", "lifecycleStatus": "TERMINATED"})).await;
    assert_eq!((both.status, both.body["errors"][0]["path"].as_str()), (422, Some("lifecycleStatus")), "{both:?}");
    let patched =
        patch(json!({"description": "of the south", "expression": {"expressionValue": {"observation_period": 5}}}))
            .await;
    assert_eq!((patched.status, patched.body["version"].as_str()), (200, Some("2")), "{patched:?}");
    assert_eq!(patched.body["description"], "of the south");
    let value = &patched.body["expression"]["expressionValue"];
    assert_eq!(
        (value["observationPeriod"].as_u64(), value["intentPriority"].as_u64()),
        (Some(5), Some(7)),
        "{patched:?}"
    );
    assert_eq!(value["intentExpectations"], shown.body["expression"]["expressionValue"]["intentExpectations"]);
    let same = patch(json!({"description": "of the south", "name": "Halle Süd"})).await;
    assert_eq!((same.status, same.body["version"].as_str()), (200, Some("2")), "{same:?}");
    // Over REST it keeps what only TMF921 speaks of.
    let rest = format!("/api/v1/intent/{}/", made.body["id"].as_str().unwrap());
    let changed = world.ask(&token, "PUT", &rest, Some(intent("50"))).await;
    assert_eq!((changed.status, changed.body["resource"]["name"].as_str()), (200, Some("Halle Süd")), "{changed:?}");
    // Filters and counts, as TMF630 has them.
    let list = async |query: &str| {
        let answer = world.ask(&token, "GET", &format!("{base}?{query}"), None).await;
        let total = answer.headers.get("x-total-count").map(|count| count.to_str().unwrap().to_owned());
        (answer.status, answer.body.as_array().map(Vec::len), total)
    };
    let found = |count: usize, total: &str| (200, Some(count), Some(total.to_owned()));
    assert_eq!(list("name=Halle%20S%C3%BCd&limit=1&offset=1").await, found(1, "2"));
    assert_eq!(list("description=of%20the%20south&relatedParty.id=p,q").await, found(1, "1"));
    assert_eq!(list("priority.gt=8").await, found(0, "0"));
    assert_eq!(list("").await, found(4, "4"), "with the one that was rejected");
    assert_eq!(list("colour=red").await.0, 422);
    assert_eq!(world.ask(&token, "DELETE", &format!("{base}/{second}"), None).await.status, 204);
    let patched = world.ask(&token, "PATCH", &tmf, Some(json!({"lifecycleStatus": "TERMINATED"}))).await;
    assert_eq!((patched.status, patched.body["lifecycleStatus"].as_str()), (200, Some("TERMINATED")), "{patched:?}");
    let reports = world.ask(&token, "GET", &format!("{tmf}/intentReport"), None).await;
    assert_eq!((reports.status, reports.body[0]["@type"].as_str()), (200, Some("IntentReport")));
    assert_eq!(reports.headers["x-total-count"], "1");
    let page = world.ask(&token, "GET", "/api/v1/intent/?page_size=1", None).await;
    assert!(page.headers["link"].to_str().unwrap().contains("page_token="), "{page:?}");
    let narrowed = world
        .ask(&token, "GET", "/api/v1/intent/?not_fulfilled_state=SUSPENDED&not_fulfilled_state=DEGRADED", None)
        .await;
    assert_eq!(narrowed.body.as_array().unwrap().len(), 1, "{narrowed:?}");
    // Followed as it happens.
    let host = world.urls[0].strip_prefix("http://").unwrap();
    let mut events = TcpStream::connect(host).await.unwrap();
    let ask = format!("GET /api/v1/intent/plant/events/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    events.write_all(ask.as_bytes()).await.unwrap();
    let mut seen = String::new();
    let mut read_until = async |what: &str| {
        let mut buffer = [0; 16_384];
        soon(what, async {
            while !seen.contains(what) {
                let count = events.read(&mut buffer).await.unwrap();
                assert!(count > 0, "the stream ended before {what}: {seen}");
                seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        })
        .await;
    };
    read_until("SUSPENDED").await;
    let ended = world.ask(&token, "DELETE", "/api/v1/intent/plant/", None).await;
    assert_eq!(ended.status, 204, "{ended:?}");
    read_until("TERMINATED").await;
    assert_eq!(world.ask(&token, "DELETE", "/api/v1/intent/plant/", None).await.status, 204, "it has ended already");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_predictions_and_filters_are_shown_over_rest_and_tmf921() {
    let Some(world) = World::start("gateway, versions and predictions", 1, |_| {}).await else { return };
    let token = world.admin().await;
    let path = "/api/v1/intent/plant/";
    let made = world.ask(&token, "POST", "/api/v1/intent/", Some(json!({"id": "plant", "intent": intent("20")}))).await;
    assert_eq!(made.status, 201, "{made:?}");
    let change = json!({"target_id": "cpuUsage", "target_value_range": "30"});
    let changed = world.ask(&token, "PUT", "/api/v1/intent/plant/target/", Some(change)).await;
    assert_eq!(changed.status, 200, "{changed:?}");
    // Back to the first version, if nothing has happened to it since it was read.
    let read = world.ask(&token, "GET", path, None).await;
    let tag = read.headers["etag"].to_str().unwrap().to_owned();
    let back = |tag: String| {
        let (world, token) = (&world, &token);
        async move {
            let more = [("if-match", tag.as_str())];
            world.with(token, "PUT", "/api/v1/intent/plant/rollback/", &more, Some(json!({"version": 1}))).await
        }
    };
    let rolled = until(
        "it has moved no more since it was read",
        async || {
            let read = world.ask(&token, "GET", path, None).await;
            back(read.headers["etag"].to_str().unwrap().to_owned()).await
        },
        |answer: &Answer| answer.status != 412,
    )
    .await;
    assert_eq!((rolled.status, rolled.body["version"].as_u64()), (200, Some(3)), "{rolled:?}");
    let range = &rolled.body["intent_expectations"][0]["expectation_targets"][0]["target_value_range"];
    assert_eq!(range, "20", "{rolled:?}");
    assert_eq!(back(tag).await.status, 412, "it has moved on");
    let nowhere = world.ask(&token, "PUT", "/api/v1/intent/plant/rollback/", Some(json!({"version": 77}))).await;
    assert_eq!(nowhere.status, 409, "{nowhere:?}");
    let history = world.ask(&token, "GET", "/api/v1/intent/plant/history/", None).await;
    let versions: Vec<(u64, u64)> = history.body["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| (number(&v["version"]), number(&v["rolled_back_to"])))
        .collect();
    assert_eq!(versions, [(1, 0), (2, 0), (3, 1)], "{history:?}");
    assert_eq!(history.body["in_force"], 3);
    // A dry run tells what would come of it, and makes nothing.
    // The validator hears of the cluster in its own time.
    let checked = until(
        "the cluster is predicted for",
        async || world.ask(&token, "POST", "/api/v1/intent/check/", Some(intent("40"))).await,
        |checked: &Answer| checked.body["predictions"].as_array().is_none_or(|all| !all.is_empty()),
    )
    .await;
    assert_eq!((checked.status, checked.body["acceptable"].as_bool()), (200, Some(true)), "{checked:?}");
    assert_eq!(checked.body["predictions"].as_array().unwrap().len(), 1, "{checked:?}");
    assert!(!checked.body["predicted_state"].as_str().unwrap().is_empty());
    let base = "/tmf-api/intentManagement/v5/intent";
    let shown = world.ask(&token, "GET", &format!("{base}/plant"), None).await;
    let mut probe = json!({"@type": "ProbeIntent", "name": "what-if", "expression": shown.body["expression"]});
    probe["expression"]["@type"] = json!("JsonLdExpression");
    let probed = world.ask(&token, "POST", base, Some(probe)).await;
    assert_eq!((probed.status, probed.body["@type"].as_str()), (200, Some("ProbeIntent")), "{probed:?}");
    let told = &probed.body["intentReport"]["expression"]["expressionValue"];
    assert_eq!(told["predictedState"], probed.body["lifecycleStatus"], "{probed:?}");
    assert_eq!(world.ask(&token, "GET", &format!("{base}/what-if"), None).await.status, 404, "nothing was made");
    // The types are the validator's.
    let types = world.ask(&token, "GET", "/api/v1/intent/types/", None).await;
    let labels: Vec<&str> = types.body.as_array().unwrap().iter().map(|t| t["user_label"].as_str().unwrap()).collect();
    let known: Vec<&str> = mesh_intent::types::TYPES.iter().map(|t| t.label).collect();
    assert_eq!(labels, known);
    let template = json!({"instance_id": "spinner@1.0.0", "intent_type": "DeliverComputingWorkload", "targets": [
        {"target_name": "cpuUsage", "target_condition": "IS_LESS_THAN", "target_value_range": 50}]});
    let made = world.ask(&token, "POST", "/api/v1/intent/template/", Some(template.clone())).await;
    assert_eq!(
        (made.status, &made.body["intent_expectations"][0]["expectation_verb"]),
        (201, &json!("DELIVER")),
        "{made:?}"
    );
    let mut unknown = template;
    unknown["intent_type"] = json!("Nothing");
    let refused = world.ask(&token, "POST", "/api/v1/intent/template/", Some(unknown)).await;
    assert_eq!((refused.status, refused.body["errors"][0]["path"].as_str()), (422, Some("intent_type")), "{refused:?}");
    // Filters, and pages of what is left.
    for number in 0..5 {
        let intent = json!({"id": format!("more-{number}"), "intent": intent("20")});
        assert_eq!(world.ask(&token, "POST", "/api/v1/intent/", Some(intent)).await.status, 201);
    }
    let list = async |query: &str| {
        let mut path = format!("/api/v1/intent/?{query}");
        let mut ids = vec![];
        loop {
            let page = world.ask(&token, "GET", &path, None).await;
            assert_eq!(page.status, 200, "{page:?}");
            let found = page.body.as_array().unwrap();
            ids.extend(found.iter().map(|i| i["id"].as_str().unwrap().to_owned()));
            let Some(link) = page.headers.get("link") else { return ids };
            path = link.to_str().unwrap().split(['<', '>']).nth(1).unwrap().to_owned();
        }
    };
    let more = ["more-0", "more-1", "more-2", "more-3", "more-4"];
    until(
        "all are listed",
        async || list("object_instance=nothing%401.0.0&page_size=2").await,
        |ids: &Vec<String>| *ids == [&more[..], &["plant"]].concat(),
    )
    .await;
    assert_eq!(list("intent_id=more-3&intent_id=plant&intent_id=none&page_size=1").await, ["more-3", "plant"]);
    assert_eq!(list("object_instance=nothing%401.0.0&object_instance=x&page_size=4").await.len(), 6);
    assert_eq!(list("user_label=DeliverComputingWorkload&not_fulfilled_state=SUSPENDED").await, [""; 0]);
    let wrong = world.ask(&token, "GET", "/api/v1/intent/?not_fulfilled_state=DEGRADE", None).await;
    assert_eq!((wrong.status, wrong.body["errors"][0]["path"].as_str()), (422, Some("not_fulfilled_state")));
    world.stop().await;
}

/// A number, which JSON of messages may have as text.
fn number(value: &Json) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default()
}

/// A form with a file.
fn multipart(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = vec![];
    for (name, content) in parts {
        let file = if *name == "file" { "; filename=\"chart.tgz\"" } else { "" };
        let head = format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--x--\r\n");
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn charts_are_uploaded_as_forms_and_documents_are_dropped() {
    let Some(world) = World::start("gateway, uploads", 1, |configs| configs.gateway.verdict_limit_ms = 30_000).await
    else {
        return;
    };
    let token = world.admin().await;
    let bearer = format!("Bearer {token}");
    let send = async |parts: &[(&str, &[u8])]| {
        let headers = [("authorization", bearer.as_str()), ("content-type", "multipart/form-data; boundary=x")];
        world.raw(0, "POST", "/api/v1/workload/upload/", &headers, multipart(parts)).await
    };
    let chart = |version: &str| {
        let files = [
            ("Chart.yaml".to_owned(), format!("apiVersion: v2\nname: echo\nversion: {version}\n").into()),
            ("values.yaml".to_owned(), Bytes::new()),
            (
                "templates/config.yaml".to_owned(),
                Bytes::from("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}\ndata: {}\n"),
            ),
        ];
        chart::archive::pack("echo", &files.into()).unwrap()
    };
    let archive = chart("1.0.0");
    let made = send(&[("file", &archive), ("name", b"echo"), ("version", b"1.0.0")]).await;
    assert_eq!((made.status, made.body["status"].as_str()), (201, Some("accepted")), "{made:?}");
    assert_eq!((&made.body["id"], &made.body["type"]), (&json!("echo@1.0.0"), &json!("chart")));
    assert_eq!(made.body["checks"]["steps"].as_array().unwrap().len(), 4, "{made:?}");
    assert_eq!(made.headers["location"], "/api/v1/workload/echo@1.0.0/");
    let again = send(&[("file", &archive), ("name", b"echo"), ("version", b"1.0.0")]).await;
    assert_eq!(again.status, 200, "the same again changes nothing: {again:?}");
    let other = send(&[("file", &chart("1.0.1")), ("name", b"echo"), ("version", b"1.0.0")]).await;
    assert_eq!(other.status, 409, "a document never changes: {other:?}");
    // A document that waits for its archive gets it.
    let document = json!({"name": "echo", "version": "2.0.0", "kind": "chart", "description": "kept", "chart": {}});
    let pending = world.ask(&token, "POST", "/api/v1/workload/", Some(document)).await;
    assert_eq!(pending.status, 202, "it waits for its archive: {pending:?}");
    let attached = send(&[("file", &chart("2.0.0")), ("name", b"echo"), ("version", b"2.0.0")]).await;
    assert_eq!((attached.status, attached.body["status"].as_str()), (201, Some("accepted")), "{attached:?}");
    assert_eq!(attached.body["schema"]["description"], "kept");
    // An archive that is not a chart of that name and version is refused with what is wrong.
    let misnamed = send(&[("file", &archive), ("name", b"other"), ("version", b"1.0.0")]).await;
    assert_eq!(misnamed.status, 422, "{misnamed:?}");
    let large = vec![0x1f; 3 << 20 | 1];
    let wrong: [(Parts<'_>, u16, &str); 6] = [
        (&[("file", &archive), ("name", b"echo")], 422, "version"),
        (&[("file", b"PK"), ("name", b"echo"), ("version", b"3.0.0")], 422, "file"),
        (&[("file", &archive), ("name", b"a.b"), ("version", b"3.0.0")], 422, "name"),
        (&[("file", &archive), ("name", b"echo"), ("name", b"echo")], 422, "name"),
        (&[("thing", b"1")], 422, "thing"),
        (&[("file", &large), ("name", b"echo"), ("version", b"3.0.0")], 413, ""),
    ];
    for (parts, status, path) in wrong {
        let refused = send(parts).await;
        assert_eq!(
            (refused.status, refused.body["errors"][0]["path"].as_str().unwrap_or("")),
            (status, path),
            "{refused:?}"
        );
    }
    let headers = [("authorization", bearer.as_str()), ("content-type", "multipart/form-data; boundary=x")];
    let cut = world
        .raw(0, "POST", "/api/v1/workload/upload/", &headers, multipart(&[("file", &archive)])[..40].to_vec())
        .await;
    assert_eq!((cut.status, cut.body["type"].as_str()), (400, Some("/problems/malformed")), "{cut:?}");
    let json_ = world.ask(&token, "POST", "/api/v1/workload/upload/", Some(json!({}))).await;
    assert_eq!(json_.status, 415, "{json_:?}");
    // Dropped: what never could run.
    let dropped = world.ask(&token, "DELETE", "/api/v1/workload/other@1.0.0/", None).await;
    assert_eq!(dropped.status, 204, "{dropped:?}");
    assert_eq!(world.ask(&token, "GET", "/api/v1/workload/other@1.0.0/", None).await.status, 404);
    assert_eq!(world.ask(&token, "DELETE", "/api/v1/workload/echo@1.0.0/", None).await.status, 409, "it is registered");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_upgraded_taken_back_and_asked_to_move() {
    let Some(world) = World::start("gateway, instances", 1, |_| {}).await else { return };
    let token = world.admin().await;
    for version in ["1.0.0", "1.1.0"] {
        let document = json!({"name": "echo", "version": version, "kind": "process", "driver": "simulated", "process": {"command": "true"},
            "resources": {"cpu_milli": 10, "memory_bytes": 1_000_000}, "replicas": 1});
        let made = world.ask(&token, "POST", "/api/v1/workload/", Some(document)).await;
        assert_eq!((made.status, made.body["status"].as_str()), (201, Some("accepted")), "{made:?}");
    }
    let run = world.ask(&token, "POST", "/api/v1/workload/echo@1.0.0/template/", Some(json!({}))).await;
    assert_eq!(run.status, 201, "{run:?}");
    let path = format!("/api/v1/workload/instance/{}/", run.body["instance_id"].as_str().unwrap());
    let put = async |what: &str, body: Json| world.ask(&token, "PUT", &format!("{path}{what}/"), Some(body)).await;
    let upgraded = put("upgrade", json!({"workload_document": "echo@1.1.0", "replicas": 2})).await;
    assert_eq!(
        (upgraded.status, upgraded.body["workload_document"].as_str()),
        (200, Some("echo@1.1.0")),
        "{upgraded:?}"
    );
    assert_eq!((upgraded.body["replicas_wanted"].as_u64(), upgraded.body["revision"].as_u64()), (Some(2), Some(2)));
    let back = put("rollback", json!({})).await;
    assert_eq!((back.status, back.body["workload_document"].as_str()), (200, Some("echo@1.0.0")), "{back:?}");
    assert_eq!(back.body["revisions"].as_array().unwrap().len(), 3);
    let nowhere = put("rollback", json!({"revision": 9})).await;
    assert_eq!(nowhere.status, 409, "{nowhere:?}");
    let manifests = world.ask(&token, "GET", &format!("{path}manifests/"), None).await;
    assert_eq!((manifests.status, &manifests.headers["content-type"]), (200, &"application/yaml".parse().unwrap()));
    until(
        "it runs, and can be asked to move",
        async || put("migrate", json!({"cluster_name": "nowhere"})).await,
        |answer: &Answer| matches!(answer.status, 202),
    )
    .await;
    for (what, body, field) in [
        ("upgrade", json!({"workload_document": "echo"}), "workload_document"),
        ("upgrade", json!({"replicas": 101}), "replicas"),
        ("upgrade", json!({"values_override": {"a": 1}}), "values_override"),
        ("migrate", json!({"cluster_name": "a.b"}), "cluster_name"),
    ] {
        let refused = put(what, body).await;
        assert_eq!((refused.status, refused.body["errors"][0]["path"].as_str()), (422, Some(field)), "{refused:?}");
    }
    let stopped = put("delete", json!({})).await;
    assert_eq!(stopped.status, 200, "{stopped:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intent_that_names_another_owners_instance_learns_nothing_of_it() {
    let Some(world) = World::start("gateway, why", 1, |_| {}).await else { return };
    let admin = world.admin().await;
    let (ada, eve) = (world.account(&admin, "ada", &["owner"]).await, world.account(&admin, "eve", &["owner"]).await);
    let document = json!({"name": "echo", "version": "1.0.0", "kind": "process", "driver": "simulated", "process": {"command": "true"},
        "resources": {"cpu_milli": 10, "memory_bytes": 1_000_000}, "replicas": 1});
    let made = world.ask(&ada, "POST", "/api/v1/workload/", Some(document)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let run = world.ask(&ada, "POST", "/api/v1/workload/echo@1.0.0/template/", Some(json!({}))).await;
    assert_eq!(run.status, 201, "{run:?}");
    let instance = run.body["instance_id"].as_str().unwrap().to_owned();
    // What is said of a path, by the streams that said it.
    let streams = async |token: &str, path: &str| {
        let told = world.ask(token, "GET", path, None).await;
        let steps = told.body.as_array().cloned().unwrap_or_default();
        let stream = |step: &Json| step["address"].as_str().unwrap().split(':').next().unwrap().to_owned();
        (told.status, steps.iter().map(stream).collect::<BTreeSet<String>>())
    };
    let of_instance = format!("/api/v1/workload/instance/{instance}/why/");
    let all = |streams: &BTreeSet<String>| {
        ["WORKLOAD", "PLACEMENT", "ASSIGNMENT", "INSTANCE"].iter().all(|name| streams.contains(*name))
    };
    until("its owner is told all of it", async || streams(&ada, &of_instance).await, |told| all(&told.1)).await;
    assert_eq!(streams(&eve, &of_instance).await, (404, BTreeSet::new()));
    let mut named = intent("20");
    named["intent_expectations"][0]["expectation_object"]["object_instance"] = json!(instance);
    let made = world.ask(&eve, "POST", "/api/v1/intent/", Some(json!({"id": "curious", "intent": named}))).await;
    assert_eq!(made.status, 201, "{made:?}");
    // A refused command leaves a fact of her own about it in WORKLOAD.
    let bus = world.test_bus.connect("gateway").await;
    let stop = StopInstance { owner: "eve".into(), instance_id: instance.clone() };
    bus.publish(&Outgoing::new(&stop, "stop-anothers", mesh_test::now()).unwrap()).await.unwrap();
    let refused = format!("workload.refused.v1.eve.{instance}");
    until("it is refused", async || bus.log("WORKLOAD").last(&refused).await.unwrap(), Option::is_some).await;
    for path in ["/api/v1/intent/curious/why/", &of_instance] {
        let (status, told) = streams(&eve, path).await;
        assert_eq!(status, 200, "{path}");
        let ours = ["INTENT", "INTENT_ASK", "VALIDATION", "WORKLOAD", "WORKLOAD_ASK"];
        assert!(told.iter().all(|stream| ours.contains(&stream.as_str())), "{path}: {told:?}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_requests_get_a_problem_document_with_the_place_and_a_hint() {
    let Some(world) = World::start("gateway, bad input", 1, |_| {}).await else { return };
    let token = world.admin().await;
    let bearer = format!("Bearer {token}");
    let mut wrong_type = intent("20");
    wrong_type["observation_period"] = json!("soon");
    let mut unknown = intent("20");
    unknown["intent_expectation"] = json!([]);
    let deep = |times: usize| format!("{}1{}", "[".repeat(times), "]".repeat(times));
    let bomb = format!("a: &a [x, x]\nb: &b [*a, *a]\nc: [{}]", vec!["*b"; 100_000].join(", "));
    for (kind, body, status, slug, place) in [
        ("application/json", "{\"a\": ".to_owned(), 400, "malformed", ""),
        ("application/json", String::new(), 400, "malformed", ""),
        ("application/yaml", "a: [b".to_owned(), 400, "malformed", ""),
        ("application/yaml", bomb, 400, "malformed", ""),
        ("application/json", deep(60), 400, "malformed", ""),
        ("application/json", deep(100_000), 400, "malformed", ""),
        ("application/xml", "<a/>".to_owned(), 415, "media-type", ""),
        ("application/json", "[]".to_owned(), 422, "invalid", "body"),
        ("application/json", "7".to_owned(), 422, "invalid", "body"),
        ("application/json", wrong_type.to_string(), 422, "invalid", "observation_period"),
        ("application/json", unknown.to_string(), 422, "invalid", "intent_expectation"),
        ("application/json", json!({"id": "a.b", "intent": intent("20")}).to_string(), 422, "invalid", "id"),
    ] {
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        let shown: String = body.chars().take(60).collect();
        let answer = world.raw(0, "POST", "/api/v1/intent/", &headers, body).await;
        assert_eq!(answer.status, status, "{shown}: {answer:?}");
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{shown}");
        assert_eq!(answer.body["type"], format!("/problems/{slug}"), "{shown}: {answer:?}");
        for field in ["title", "detail", "hint", "instance"] {
            assert!(answer.body[field].as_str().is_some_and(|text| !text.is_empty()), "{shown}: {field}: {answer:?}");
        }
        let path = answer.body["errors"][0]["path"].as_str().unwrap_or_default();
        assert!(path.contains(place), "{shown}: {answer:?}");
    }
    // What is larger than its registry keeps, and than the bus takes.
    for (size, status) in [(70_000, 413), (1_000_000, 413), (1_100_000, 413)] {
        let document = json!({"name": "large", "version": "1.0.0", "description": "x".repeat(size), "kind": "process",
            "process": {"command": "true"}, "resources": {"cpu_milli": 10, "memory_bytes": 1_000_000}, "replicas": 1});
        let refused = world.ask(&token, "POST", "/api/v1/workload/", Some(document)).await;
        assert_eq!(
            (refused.status, refused.body["type"].as_str()),
            (status, Some("/problems/too-large")),
            "{size}: {refused:?}"
        );
    }
    let mut large = intent("20");
    large["intent_report_reference"] = json!("x".repeat(70_000));
    let refused = world.ask(&token, "POST", "/api/v1/intent/", Some(large)).await;
    assert_eq!((refused.status, refused.body["errors"][0]["path"].as_str()), (422, Some("intentReportReference")));
    // Malformed headers.
    let key = "x".repeat(300);
    for (name, value, status) in [("idempotency-key", "a b", 400), ("idempotency-key", key.as_str(), 400)] {
        let refused = world.with(&token, "POST", "/api/v1/intent/", &[(name, value)], Some(intent("20"))).await;
        assert_eq!(
            (refused.status, refused.body["type"].as_str()),
            (status, Some("/problems/malformed")),
            "{refused:?}"
        );
    }
    let twice = [("authorization", bearer.as_str()), ("authorization", bearer.as_str())];
    assert_eq!(world.raw(0, "GET", "/api/v1/intent/", &twice, "").await.status, 401, "one token, not two");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_further_than_a_good_token_and_its_roles_reach() {
    let Some(world) = World::start("gateway, sign-in", 1, |configs| configs.identity.token_s = 3_600).await else {
        return;
    };
    let admin = world.admin().await;
    assert_eq!(world.login("admin", "wrong").await.status, 401);
    assert_eq!(world.login("nobody", "wrong").await.status, 401);
    let ada = world.account(&admin, "ada", &["owner"]).await;
    let eve = world.account(&admin, "eve", &["owner"]).await;
    let viewer = world.account(&admin, "vic", &["viewer"]).await;
    // No token, and malformed tokens.
    let bare = world.raw(0, "GET", "/api/v1/intent/", &[], "").await;
    assert_eq!((bare.status, bare.headers.contains_key(header::WWW_AUTHENTICATE)), (401, true));
    let parts: Vec<&str> = ada.split('.').collect();
    let encode = |value: Json| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
    };
    let decode = |part: &str| -> Json {
        use base64::Engine as _;
        serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    let mut claims = decode(parts[1]);
    claims["roles"] = json!(["administrator"]);
    let none = format!("{}.{}.", encode(json!({"alg": "none", "typ": "JWT"})), encode(claims.clone()));
    let altered = format!("{}.{}.{}", parts[0], encode(claims), parts[2]);
    for token in [none.as_str(), altered.as_str(), "x", "a.b.c", &"y".repeat(9_000)] {
        let answer = world.ask(token, "GET", "/api/v1/intent/", None).await;
        assert_eq!(
            (answer.status, answer.body["type"].as_str()),
            (401, Some("/problems/unauthenticated")),
            "{answer:?}"
        );
        assert!(token.len() < 16 || !answer.body.to_string().contains(token), "a token is never repeated");
    }
    // Roles.
    assert_eq!(world.ask(&viewer, "POST", "/api/v1/intent/", Some(intent("20"))).await.status, 403);
    assert_eq!(world.ask(&viewer, "GET", "/api/v1/intent/", None).await.status, 200);
    assert_eq!(world.ask(&ada, "GET", "/api/v1/auth/account/", None).await.status, 403);
    // Another owner's objects are not there.
    let made = world.ask(&ada, "POST", "/api/v1/intent/", Some(json!({"id": "mine", "intent": intent("20")}))).await;
    assert_eq!((made.status, made.body["owner"].as_str()), (201, Some("ada")), "{made:?}");
    for (method, path, body) in [
        ("GET", "/api/v1/intent/mine/", None),
        ("GET", "/api/v1/intent/mine/?owner=ada", None),
        ("DELETE", "/api/v1/intent/mine/", None),
        ("PUT", "/api/v1/intent/mine/action/", Some(json!({"action": "TERMINATE"}))),
        ("GET", "/tmf-api/intentManagement/v5/intent/mine", None),
    ] {
        let answer = world.ask(&eve, method, path, body).await;
        assert_eq!(answer.status, 404, "{method} {path}: {answer:?}");
    }
    assert_eq!(world.ask(&admin, "GET", "/api/v1/intent/mine/?owner=ada", None).await.status, 200);
    // Bodies that are too much.
    let large = Bytes::from(vec![b' '; 10 << 20]);
    let bearer = format!("Bearer {ada}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let host = world.urls[0].strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).await.unwrap();
    let head = format!(
        "POST /api/v1/intent/ HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\r\nContent-Length: {}\r\n\r\n",
        large.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 64];
    let count = soon("413", stream.read(&mut answer)).await.unwrap();
    assert!(answer[..count].starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer));
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    assert_eq!(world.raw(0, "POST", "/api/v1/intent/", &headers, deep).await.status, 400);
    let yaml = [("authorization", bearer.as_str()), ("content-type", "application/yaml")];
    assert_eq!(world.raw(0, "POST", "/api/v1/intent/", &yaml, "a: [b").await.status, 400);
    let patch = world.raw(0, "PATCH", "/api/v1/intent/", &headers, "{}").await;
    assert_eq!((patch.status, patch.headers.contains_key(header::ALLOW)), (405, true));
    assert!(patch.headers.keys().all(|name| !name.as_str().starts_with("access-control")), "CORS is off");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_with_each_new_token_and_ends_when_one_is_used_twice() {
    let Some(world) = World::start("gateway, sessions", 1, |_| {}).await else { return };
    world.admin().await;
    let session = world.login("admin", &world.password).await;
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let renew = async |token: &str| {
        let body = format!("grant_type=refresh_token&client_id=continuum&refresh_token={token}");
        world.raw(0, "POST", "/oauth/token", &form, body).await
    };
    let text = |answer: &Answer, name: &str| answer.body[name].as_str().unwrap_or_default().to_owned();
    let first = text(&session, "refresh_token");
    let second = renew(&first).await;
    assert_eq!(second.status, 200, "{second:?}");
    assert_eq!(world.ask(&text(&second, "access_token"), "GET", "/api/v1/auth/whoami/", None).await.status, 200);
    assert_eq!((renew(&first).await.status, "a token is good once"), (400, "a token is good once"));
    assert_eq!(renew(&text(&second, "refresh_token")).await.status, 400, "and its second use ends the session");
    // Signing out ends it, too.
    let session = world.login("admin", &world.password).await;
    let out = world.ask(&text(&session, "token"), "POST", "/api/v1/auth/logout/", None).await;
    assert_eq!(out.status, 204);
    assert_eq!(renew(&text(&session, "refresh_token")).await.status, 400);
    // PKCE: a code for whoever holds the verifier, once.
    let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let asked = "response_type=code&client_id=continuum&redirect_uri=http%3A%2F%2F127.0.0.1%3A7%2Fcb&state=s%3C&\
        code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM&code_challenge_method=S256";
    let page = world.raw(0, "GET", &format!("/oauth/authorize?{asked}"), &[], "").await;
    assert_eq!(page.status, 200);
    assert!(page.body.as_str().unwrap().contains("value=\"s&lt;\""), "what is shown cannot be markup");
    let body = format!("{asked}&username=admin&password={}", world.password);
    let back = world.raw(0, "POST", "/oauth/authorize", &form, body).await;
    assert_eq!(back.status, 303, "{back:?}");
    let to = back.headers["location"].to_str().unwrap().to_owned();
    let code = to.split("code=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    let redeem = async |verifier: &str| {
        let uri = "http%3A%2F%2F127.0.0.1%3A7%2Fcb";
        let body = format!(
            "grant_type=authorization_code&client_id=continuum&redirect_uri={uri}&code={code}&code_verifier={verifier}"
        );
        world.raw(0, "POST", "/oauth/token", &form, body).await
    };
    assert_eq!(redeem(&"x".repeat(43)).await.status, 400);
    let granted = redeem(verifier).await;
    assert_eq!(granted.status, 200, "{granted:?}");
    assert_eq!(redeem(verifier).await.status, 400, "a code is good once");
    assert_eq!(renew(&text(&granted, "refresh_token")).await.status, 400, "and its second use takes back what it gave");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_ends_in_its_time_and_its_session_gives_the_next() {
    let short = |configs: &mut Configs| {
        configs.identity.token_s = 1;
        configs.gateway.skew_s = 0;
    };
    let Some(world) = World::start("gateway, expiry", 1, short).await else { return };
    world.admin().await;
    let session = world.login("admin", &world.password).await;
    let text = |answer: &Answer, name: &str| answer.body[name].as_str().unwrap_or_default().to_owned();
    let token = text(&session, "token");
    let refused = until(
        "the token ends",
        async || world.ask(&token, "GET", "/api/v1/auth/whoami/", None).await,
        |answer: &Answer| answer.status != 200,
    )
    .await;
    assert_eq!(
        (refused.status, refused.body["type"].as_str()),
        (401, Some("/problems/unauthenticated")),
        "{refused:?}"
    );
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let body =
        format!("grant_type=refresh_token&client_id=continuum&refresh_token={}", text(&session, "refresh_token"));
    let renewed = world.raw(0, "POST", "/oauth/token", &form, body).await;
    assert_eq!(renewed.status, 200, "{renewed:?}");
    assert_ne!(text(&renewed, "access_token"), token);
    world.stop().await;
}

/// A provider of another maker, as a process.
struct Provider {
    child: tokio::process::Child,
    issuer: String,
}

impl Provider {
    /// On a port, or any if 0; with the keys in a file.
    async fn start(port: u16, keys: &std::path::Path) -> Self {
        use tokio::io::{AsyncBufReadExt as _, BufReader};
        let mut child = tokio::process::Command::new("node")
            .arg(oidc().join("provider.mjs"))
            .arg(port.to_string())
            .arg(keys)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let issuer = soon("the provider is ready", async {
            loop {
                let line = lines.next_line().await.unwrap().expect("the provider says where it is");
                if let Some(issuer) = line.strip_prefix("ready ") {
                    return issuer.to_owned();
                }
            }
        })
        .await;
        Self { child, issuer }
    }

    fn port(&self) -> u16 {
        self.issuer.rsplit(':').next().unwrap().parse().unwrap()
    }

    async fn stop(mut self) {
        self.child.kill().await.unwrap();
    }

    /// An access token for a resource.
    async fn token(&self, world: &World, resource: &str) -> String {
        let body = format!("grant_type=client_credentials&resource=urn:{resource}&scope=intents");
        let request = Request::post(format!("{}/token", self.issuer))
            .header("authorization", "Basic cGxhbnQ6YStzZWNyZXQrb2YrdGhlK3Rlc3Q=")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let response = world.http.request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        let answer: Json = serde_json::from_slice(&response).unwrap();
        answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }
}

fn oidc() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.tools/oidc")
}

/// A key pair as a JWK set with its private part, as a provider keeps it.
fn private_key(kid: &str) -> String {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let seed: [u8; 32] = std::array::from_fn(|at| kid.as_bytes()[at % kid.len()].wrapping_add(at as u8));
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
    json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid,
        "x": URL_SAFE_NO_PAD.encode(pair.public_key().as_ref()), "d": URL_SAFE_NO_PAD.encode(seed)}]})
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_a_provider_of_another_maker_are_taken_while_its_keys_rotate() {
    if !oidc().join("node_modules").is_dir() {
        eprintln!("SKIPPED: gateway, OpenID Connect: no .tools/oidc (run `make setup-test`)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.json");
    std::fs::write(&keys, private_key("one")).unwrap();
    let provider = Provider::start(0, &keys).await;
    let issuer = provider.issuer.clone();
    let trust = |configs: &mut Configs| configs.gateway.oidc_issuer.clone_from(&issuer);
    let Some(world) = World::start("gateway, OpenID Connect", 1, trust).await else { return };
    let whoami = async |token: &str| world.ask(token, "GET", "/api/v1/auth/whoami/", None).await;
    let first = provider.token(&world, "continuum").await;
    let known = whoami(&first).await;
    assert_eq!((known.status, known.body["owner"].as_str()), (200, Some("plant")), "{known:?}");
    assert_eq!(known.body["roles"], json!(["owner"]));
    let elsewhere = whoami(&provider.token(&world, "elsewhere").await).await;
    assert_eq!(elsewhere.status, 401, "it is for another audience: {elsewhere:?}");
    assert_eq!(world.login("admin", "x").await.status, 409, "people sign in at their provider");
    // The provider comes back with another key, and forgets the first.
    let port = provider.port();
    provider.stop().await;
    std::fs::write(&keys, private_key("two")).unwrap();
    let provider = Provider::start(port, &keys).await;
    let second = provider.token(&world, "continuum").await;
    until("the new key is known", async || whoami(&second).await.status, |status| *status == 200).await;
    assert_eq!(whoami(&first).await.status, 401, "a key that is not published any more counts no more");
    provider.stop().await;
    assert_eq!(whoami(&second).await.status, 200, "known keys outlive their provider's absence");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_no_server_error_and_no_undocumented_answer() {
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.tools/test/bin/schemathesis");
    if !program.is_file() {
        eprintln!("SKIPPED: gateway, fuzzing: no .tools/test/bin/schemathesis (run `make setup-test`)");
        return;
    }
    let long = |configs: &mut Configs| {
        configs.identity.token_s = 3_600;
        configs.observed = true;
    };
    let Some(world) = World::start("gateway, fuzzing", 1, long).await else { return };
    let token = world.admin().await;
    let examples = std::env::var("CONTINUUM_EXAMPLES").unwrap_or_else(|_| "25".into());
    // Two processes with one worker each: with two threads, Python 3.11 now and then fails at its own parser.
    let run = async |which: &str, operations: &[&str], phases: &str| {
        let folder = world.test_bus.folder().join(which);
        std::fs::create_dir(&folder).unwrap();
        let run = tokio::process::Command::new(&program)
            .arg("run")
            .arg(format!("{}/openapi.json", world.urls[0]))
            .args(["--header", &format!("Authorization: Bearer {token}")])
            .args([
                "--checks",
                "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
            ])
            .args(operations.iter().flat_map(|operation| [which, *operation]))
            .args(["--phases", phases, "--max-examples", &examples, "--request-timeout", "40"])
            .args(["--continue-on-failure", "--no-color", "--generation-database", "none", "--workers", "1"])
            .current_dir(folder)
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
    };
    // Those with large bodies: of the 9,700 requests at the edges of what each operation takes, 7,700 are theirs. In the
    // usual form they have requests that are made up at random only.
    let large = ["SubmitIntent", "CheckIntent", "UpdateIntent", "TmfCreate", "TmfPatch", "RegisterWorkload"];
    let every = "examples,coverage,fuzzing";
    // A watch has no end to wait for.
    let endless = ["WatchIntent", "StreamTelemetry", "StreamAnomalies", "StreamObservations", "StreamTwins"];
    let others = [&large[..], &endless[..]].concat();
    tokio::join!(
        run("--include-operation-id", &large[..], if is_full() { every } else { "examples,fuzzing" }),
        run("--exclude-operation-id", &others[..], every),
    );
    world.stop().await;
}

/// What stands behind the proxy: says who it thinks is there; echoes what is upgraded.
async fn workload() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = vec![];
                let mut byte = [0; 1];
                while !head.ends_with(b"\r\n\r\n") {
                    if socket.read(&mut byte).await.unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                if head.contains("upgrade: echo") {
                    let said = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
                    socket.write_all(said.as_bytes()).await.unwrap();
                    let (mut from, mut to) = socket.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                    return;
                }
                let body = serde_json::to_string(&head).unwrap();
                let said =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                socket.write_all(said.as_bytes()).await.unwrap();
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exposed_workload_is_for_its_users_and_never_sees_their_tokens() {
    let Some(world) = World::start("gateway, exposed workloads", 1, |_| {}).await else { return };
    let port = workload().await;
    let admin = world.admin().await;
    let (ada, eve, bob) = (
        world.account(&admin, "ada", &["owner"]).await,
        world.account(&admin, "eve", &["owner"]).await,
        world.account(&admin, "bob", &["viewer"]).await,
    );
    let document = json!({"name": "echo", "version": "1.0.0", "kind": "process", "driver": "simulated", "process": {"command": "true"},
        "resources": {"cpu_milli": 10, "memory_bytes": 1_000_000}, "replicas": 1,
        "expose": {"port": port, "path": "/app", "users": ["bob"]}});
    let made = world.ask(&ada, "POST", "/api/v1/workload/", Some(document)).await;
    assert_eq!((made.status, made.body["status"].as_str()), (201, Some("accepted")), "{made:?}");
    let run =
        world.ask(&ada, "POST", "/api/v1/workload/echo@1.0.0/template/", Some(json!({"release_name": "echo"}))).await;
    assert_eq!(run.status, 201, "{run:?}");
    let id = run.body["instance_id"].as_str().unwrap().to_owned();
    let path = format!("/access/ada/{id}/a%20b?q=1");
    let served = until(
        "the workload is reached",
        async || world.ask(&ada, "GET", &path, None).await,
        |answer: &Answer| answer.status == 200,
    )
    .await;
    let seen = served.body.as_str().unwrap();
    assert!(seen.starts_with("get /app/a%20b?q=1 http/1.1\r\n"), "{seen}");
    assert!(seen.contains("x-forwarded-user: ada\r\n") && !seen.contains("bearer"), "{seen}");
    let spoofed = world.with(&bob, "GET", &path, &[("x-forwarded-user", "admin")], None).await;
    assert!(spoofed.body.as_str().unwrap().contains("x-forwarded-user: bob\r\n"), "{spoofed:?}");
    let bare = world.raw(0, "GET", &path, &[], "").await;
    assert_eq!((bare.status, bare.body["type"].as_str()), (401, Some("/problems/unauthenticated")));
    let denied = world.ask(&eve, "GET", &path, None).await;
    assert_eq!((denied.status, denied.body["type"].as_str()), (403, Some("/problems/forbidden")), "{denied:?}");
    assert_eq!(world.ask(&ada, "GET", "/access/ada/other/", None).await.status, 404);
    // An upgraded connection is carried both ways.
    let host = world.urls[0].strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(host).await.unwrap();
    let ask = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ada}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    );
    socket.write_all(ask.as_bytes()).await.unwrap();
    let mut head = vec![];
    let mut byte = [0; 1];
    soon("101", async {
        while !head.ends_with(b"\r\n\r\n") {
            assert!(socket.read(&mut byte).await.unwrap() > 0);
            head.push(byte[0]);
        }
    })
    .await;
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    socket.write_all(b"both ways").await.unwrap();
    let mut back = [0; 9];
    soon("an echo", socket.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"both ways");
    world.stop().await;
}

/// What stands behind the proxy and speaks HTTP/1.1 and HTTP/2: sends back what comes as it comes, and says which it was.
async fn echo() -> u16 {
    use axum::{Router, extract::Request, response::Response};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = Router::new().fallback(|request: Request| async move {
        let version = format!("{:?}", request.version());
        Response::builder().header("x-version", version).body(request.into_body()).unwrap()
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_go_through_as_they_come_over_http1_and_http2_on_either_side() {
    let Some(world) = World::start("gateway, streaming", 1, |_| {}).await else { return };
    let port = echo().await;
    let token = world.admin().await;
    for (name, protocol, behind) in [("one", "http1", "HTTP/1.1"), ("two", "h2", "HTTP/2.0")] {
        let document = json!({"name": name, "version": "1.0.0", "kind": "process", "driver": "simulated", "process": {"command": "true"},
            "resources": {"cpu_milli": 10, "memory_bytes": 1_000_000}, "replicas": 1,
            "expose": {"port": port, "protocol": protocol}});
        let made = world.ask(&token, "POST", "/api/v1/workload/", Some(document)).await;
        assert_eq!(made.status, 201, "{made:?}");
        let path = format!("/api/v1/workload/{name}@1.0.0/template/");
        let run = world.ask(&token, "POST", &path, Some(json!({}))).await;
        assert_eq!(run.status, 201, "{run:?}");
        let path = format!("/access/local/{}/", run.body["instance_id"].as_str().unwrap());
        until(
            "the workload is reached",
            async || world.ask(&token, "GET", &path, None).await,
            |answer: &Answer| answer.status == 200,
        )
        .await;
        for over_h2 in [false, true] {
            let client: Client<HttpConnector, axum::body::Body> =
                Client::builder(TokioExecutor::new()).http2_only(over_h2).build_http();
            let (mut sender, receiver) = futures::channel::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
            let request = Request::post(format!("{}{path}", world.urls[0]))
                .header("authorization", format!("Bearer {token}"))
                .body(axum::body::Body::from_stream(receiver))
                .unwrap();
            sender.try_send(Ok("first".into())).unwrap();
            let response = soon("an answer before the body is whole", client.request(request)).await.unwrap();
            assert_eq!((response.status().as_u16(), &response.headers()["x-version"]), (200, &behind.parse().unwrap()));
            let mut body = response.into_body();
            for (came, next) in [("first", Some("second")), ("second", None)] {
                let frame = soon("what was sent", body.frame()).await.unwrap().unwrap();
                assert_eq!(frame.into_data().unwrap(), came, "{protocol}, {over_h2}");
                match next {
                    Some(next) => sender.try_send(Ok(next.into())).unwrap(),
                    None => sender.close_channel(),
                }
            }
            let rest = soon("the end", body.collect()).await.unwrap().to_bytes();
            assert!(rest.is_empty(), "{protocol}, {over_h2}: {rest:?}");
        }
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_over_its_rate_waits_and_others_do_not() {
    let few = |configs: &mut Configs| {
        // So few that a slow machine exceeds them, too.
        configs.gateway.rate_per_s = 1;
        configs.gateway.rate_burst = 20;
    };
    let Some(world) = World::start("gateway, rates", 1, few).await else { return };
    let admin = world.admin().await;
    let ada = world.account(&admin, "ada", &["owner"]).await;
    let asked = stream::iter(0..100).map(|_| world.ask(&ada, "GET", "/api/v1/auth/whoami/", None)).buffer_unordered(10);
    let answers: Vec<Answer> = asked.collect().await;
    let refused: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(refused.len() > 50, "{} of 100 were refused", refused.len());
    assert!(refused.iter().all(|answer| answer.headers.contains_key(header::RETRY_AFTER)));
    assert_eq!(world.ask(&admin, "GET", "/api/v1/auth/whoami/", None).await.status, 200, "others go on");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_sign_in_where_the_identity_service_asks_for_mutual_tls() {
    let Some(world) = World::start("gateway, identity over TLS", 1, |configs| configs.tls = true).await else { return };
    let identity = world.running.iter().find(|service| service.mesh().name() == "identity").unwrap();
    assert!(identity.endpoint().starts_with("https://"), "{}", identity.endpoint());
    let admin = world.admin().await;
    let answer = world.ask(&admin, "GET", "/api/v1/auth/whoami/", None).await;
    assert_eq!((answer.status, &answer.body["name"]), (200, &json!("admin")), "{answer:?}");
    let wrong = world.login("admin", "not the password").await;
    assert_eq!(wrong.status, 401, "{wrong:?}");
}

/// Answers after as many milliseconds as the request asks for.
async fn late() -> u16 {
    use axum::{Router, extract::Request};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = Router::new().fallback(|request: Request| async move {
        let ms = request.uri().query().and_then(|query| query.parse::<u64>().ok()).unwrap_or(0);
        tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
        if ms > 0 { http::StatusCode::OK } else { http::StatusCode::IM_A_TEAPOT }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_through_to_a_workload_is_measured_by_route_and_code() {
    let Some(world) = World::start("gateway, traffic", 1, |configs| configs.gateway.traffic_ms = 3_000).await else {
        return;
    };
    let mut readings = world.test_bus.router().subscribe("continuum/*/gateway/readings/*").await.unwrap();
    let port = late().await;
    let token = world.admin().await;
    let document = json!({"name": "late", "version": "1.0.0", "kind": "process", "driver": "simulated", "process": {"command": "true"},
        "resources": {"cpu_milli": 10, "memory_bytes": 1_000_000}, "replicas": 1, "expose": {"port": port}});
    let made = world.ask(&token, "POST", "/api/v1/workload/", Some(document)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let run = world.ask(&token, "POST", "/api/v1/workload/late@1.0.0/template/", Some(json!({}))).await;
    let id = run.body["instance_id"].as_str().unwrap().to_owned();
    let path = |ms: u64| format!("/access/local/{id}/?{ms}");
    until(
        "it is reached",
        async || world.ask(&token, "GET", &path(0), None).await,
        |answer: &Answer| answer.status == 418,
    )
    .await;
    let mut seconds = vec![];
    for _ in 0..10 {
        let begun = std::time::Instant::now();
        assert_eq!(world.ask(&token, "GET", &path(200), None).await.status, 200);
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let longest = seconds.iter().copied().fold(0.0, f64::max);
    let (mut codes, mut highest) = (std::collections::BTreeMap::new(), 0.0f64);
    while codes.get("200").copied() != Some(10.0) {
        let sample = soon("readings", readings.next()).await.unwrap();
        let pack = mesh_proto::readings(&sample.key, &sample.body).unwrap();
        let entity = &pack.entities[0];
        assert_eq!((entity.kind.as_str(), &entity.id, entity.owner.as_str()), ("route", &id, "local"));
        assert_eq!((entity.cluster_id.as_str(), pack.cluster_id.as_str()), ("edge", "edge"));
        for (metric, value) in pack.metric.iter().zip(&pack.values) {
            let metric = &pack.metrics[*metric as usize];
            assert_eq!(metric.labels["server.address"], format!("127.0.0.1:{port}"));
            if let Some(code) = metric.labels.get("http.response.status_code") {
                codes.insert(code.clone(), *value);
            } else if metric.labels["quantile"] == "0.99" {
                highest = highest.max(*value);
            }
        }
    }
    assert!(codes["418"] >= 1.0, "{codes:?}");
    // No sooner than the workload answers, no later than the client has the answer.
    assert!(0.2 * 0.98 <= highest && highest <= longest * 1.02, "{highest} {longest}");
    world.stop().await;
}
