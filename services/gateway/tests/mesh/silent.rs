//! Nothing that is asked for over HTTP is dropped silently: each documented parameter, header and member of each request of the
//! served document is acted on or refused by its name, and so is one that nobody knows. Unknown headers are ignored, as HTTP
//! has it (RFC 9110 §5.1).

use std::collections::BTreeMap;

use serde_json::Map;

use super::{
    telemetry::{achieved, store},
    *,
};

/// No value of any parameter; behind every id.
const NOTHING: &str = "~~";

/// What was tried, and what went unseen.
#[derive(Default)]
struct Tally {
    tried: BTreeMap<&'static str, usize>,
    silent: Vec<String>,
}

impl Tally {
    fn see(&mut self, kind: &'static str, seen: bool, what: impl FnOnce() -> String) {
        *self.tried.entry(kind).or_default() += 1;
        if !seen {
            self.silent.push(format!("{kind}: {}", what()));
        }
    }
}

/// Does a problem name this?
fn names(answer: &Answer, name: &str) -> bool {
    let errors = answer.body["errors"].as_array().cloned().unwrap_or_default();
    (400..500).contains(&answer.status)
        && errors.iter().any(|error| error["path"].as_str().is_some_and(|path| path.contains(name)))
}

/// A body that an operation takes.
fn good(schema: &str) -> Json {
    match schema {
        "Login" => json!({"username": "ada", "password": "wrong horse"}),
        "AccountInput" => json!({"username": "eve", "roles": ["viewer"]}),
        "IntentInput" => intent("30"),
        "IntentTemplate" => json!({"instance_id": "i", "intent_type": "DeliverComputingWorkload", "targets": []}),
        "ActionInput" => json!({"action": "SUSPEND"}),
        "TargetUpdate" => json!({"target_id": "cpuUsage", "target_value_range": 40}),
        "RollbackInput" => json!({"version": 1}),
        "WorkloadInput" => {
            json!({"name": "echo", "version": "2.0.0", "kind": "process", "driver": "simulated", "process": {"command": "true"}})
        }
        "MigrateInput" => json!({"cluster_name": "nowhere"}),
        "ClusterInput" => json!({"cluster_name": "edge"}),
        "TmfIntentInput" => json!({"name": "p", "expression": {"expressionValue": intent("30")}}),
        "TmfIntentPatch" => json!({"name": "another"}),
        "SerranoCollectionInput" => json!({"cluster_uuid": "edge", "query_interval": 60}),
        "SerranoAgentInput" => json!({"data_retain_period": 180}),
        "SerranoSessionInput" => json!({"cluster_uuid": "edge", "action": "start", "reporting_rate": 5}),
        "TmfHubInput" => json!({"callback": "http://127.0.0.1:9/"}),
        _ => json!({}),
    }
}

fn resolved(document: &Json, schema: &Json) -> Json {
    match schema["$ref"].as_str() {
        Some(to) => resolved(document, document.pointer(to.trim_start_matches('#')).unwrap()),
        None => schema.clone(),
    }
}

/// The members of a body, each with a value that it cannot have.
fn members(document: &Json, schema: &Json) -> Map<String, Json> {
    let schema = resolved(document, schema);
    let either = schema["anyOf"].as_array().into_iter().flatten().flat_map(|one| members(document, one));
    let own = schema["properties"].as_object().into_iter().flatten().map(|(name, inner)| {
        let inner = resolved(document, inner);
        let composed = ["object", "array"].iter().any(|kind| {
            inner["type"] == *kind || inner["type"].as_array().is_some_and(|kinds| kinds.contains(&json!(kind)))
        });
        (name.clone(), if composed || inner["properties"].is_object() { json!(7) } else { json!({"notKnown": [1]}) })
    });
    // These may have any value, which is kept as it is.
    either.chain(own).filter(|(name, _)| !["intentReportReference", "resource"].contains(&name.as_str())).collect()
}

struct Sender<'a> {
    world: &'a World,
    token: String,
}

impl Sender<'_> {
    async fn send(&self, operation: &Operation, query: &str, more: &[(&str, &str)], body: Option<Bytes>) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let mut headers = vec![("authorization", bearer.as_str())];
        let given = more.iter().any(|(name, _)| *name == "content-type");
        match operation.schema.as_str() {
            _ if given => {}
            "" => {}
            "WorkloadUpload" => headers.push(("content-type", "multipart/form-data; boundary=x")),
            _ => headers.push(("content-type", "application/json")),
        }
        headers.extend_from_slice(more);
        let body = body.unwrap_or_else(|| operation.good());
        let path = format!("{}{query}", operation.path);
        soon(&operation.id, self.world.raw(0, &operation.method, &path, &headers, body)).await
    }
}

/// One operation of the served document, about something that is there.
struct Operation {
    id: String,
    method: String,
    path: String,
    parameters: Vec<Json>,
    /// Name of its body's schema.
    schema: String,
    /// Its answer has no end.
    streams: bool,
}

impl Operation {
    fn good(&self) -> Bytes {
        match self.schema.as_str() {
            "" => Bytes::new(),
            "WorkloadUpload" => {
                let parts: Parts<'_> = &[("file", &[0x1f, 0x8b, 8]), ("name", b"nothing"), ("version", b"1.0.0")];
                multipart(parts).into()
            }
            schema => good(schema).to_string().into(),
        }
    }

    fn parameters(&self, place: &str) -> impl Iterator<Item = &Json> {
        self.parameters.iter().filter(move |parameter| parameter["in"] == place)
    }

    fn changes(&self) -> bool {
        self.method != "GET" && self.id != "CheckIntent"
    }
}

async fn of_query(sender: &Sender<'_>, operation: &Operation, tally: &mut Tally) {
    let of = &operation.id;
    for unknown in ["notKnown", "Owner", "page-size"] {
        let refused = sender.send(operation, &format!("?{unknown}=1"), &[], None).await;
        tally.see("unknown parameter", refused.status == 422 && names(&refused, unknown), || {
            format!("{of} {unknown} {refused:?}")
        });
    }
    for parameter in operation.parameters("query") {
        let name = parameter["name"].as_str().unwrap();
        let is_list = parameter["schema"]["type"] == "array";
        let twice = sender.send(operation, &format!("?{name}=a&{name}=a"), &[], None).await;
        // Of a list, two are as good as one.
        let seen = match is_list {
            true => twice.status == sender.send(operation, &format!("?{name}=a"), &[], None).await.status,
            false => twice.status == 422 && names(&twice, name),
        };
        tally.see("parameter twice", seen, || format!("{of} {name} {twice:?}"));
        let with = sender.send(operation, &format!("?{name}={NOTHING}"), &[], None).await;
        let seen = match with.status {
            200 if !operation.changes() => {
                let without = sender.send(operation, "", &[], None).await;
                (&with.body, with.headers.get("link")) != (&without.body, without.headers.get("link"))
            }
            _ => names(&with, name),
        };
        tally.see("documented parameter", seen, || format!("{of} {name} {with:?}"));
    }
}

async fn of_headers(sender: &Sender<'_>, operation: &Operation, tally: &mut Tally) {
    let of = &operation.id;
    for parameter in operation.parameters("header") {
        let name = parameter["name"].as_str().unwrap().to_lowercase();
        let (value, statuses): (_, &[u16]) = match name.as_str() {
            "idempotency-key" => ("a b", &[400]),
            "if-match" => ("\"nope\"", &[412]),
            "if-none-match" => ("*", &[304, 412]),
            other => panic!("{of}: say here what {other} does"),
        };
        let answer = sender.send(operation, "", &[(&name, value)], None).await;
        tally.see("documented header", statuses.contains(&answer.status), || format!("{of} {name} {answer:?}"));
    }
    let conditional = operation.parameters("header").any(|parameter| parameter["name"] == "If-Match");
    if operation.changes() && !conditional {
        let answer = sender.send(operation, "", &[("if-match", "\"nope\"")], None).await;
        tally.see("header that cannot hold", answer.status == 412, || format!("{of} {answer:?}"));
    }
    for (name, value, status) in [("content-encoding", "gzip", 415), ("content-range", "bytes 0-1/2", 400)] {
        let answer = sender.send(operation, "", &[(name, value)], None).await;
        tally.see("header that cannot hold", answer.status == status, || format!("{of} {name} {answer:?}"));
    }
    if !operation.changes() && !operation.streams {
        let (with, without) = (
            sender.send(operation, "", &[("x-not-known", "1")], None).await,
            sender.send(operation, "", &[], None).await,
        );
        tally.see("unknown header, ignored", with.status == without.status && with.status < 400, || {
            format!("{of} {with:?}")
        });
    }
}

async fn of_body(sender: &Sender<'_>, document: &Json, operation: &Operation, tally: &mut Tally) {
    let of = &operation.id;
    let said = |member: &str, value: &Json| {
        let mut body = good(&operation.schema);
        // Beside its own spelling, a member would be there twice.
        body.as_object_mut().unwrap().retain(|name, _| name.replace('_', "").to_lowercase() != member.to_lowercase());
        body[member] = value.clone();
        body
    };
    match operation.schema.as_str() {
        "" => {
            let refused = sender.send(operation, "", &[], Some(json!({"notKnown": 1}).to_string().into())).await;
            tally.see("body that is not read", names(&refused, "body"), || format!("{of} {refused:?}"));
        }
        "WorkloadUpload" => {
            for unknown in ["notKnown", "Name", "owner"] {
                let refused = sender.send(operation, "", &[], Some(multipart(&[(unknown, b"1")]).into())).await;
                tally.see("unknown member", names(&refused, unknown), || format!("{of} {unknown} {refused:?}"));
            }
            for part in ["file", "name", "version"] {
                let body = multipart(&[("file", b"PK"), ("name", b"a.b"), ("version", b""), (part, b"1")]);
                let refused = sender.send(operation, "", &[], Some(body.into())).await;
                tally.see("documented member", names(&refused, part), || format!("{of} {part} {refused:?}"));
            }
        }
        schema => {
            let whole = json!({"$ref": format!("#/components/schemas/{schema}")});
            for (kind, yaml) in [("application/json", false), ("application/yaml", true)] {
                let body = said("notKnown", &json!(1)).to_string();
                let body = if yaml { format!("--- {body}\n") } else { body };
                let refused = sender.send(operation, "", &[("content-type", kind)], Some(body.into())).await;
                tally.see("unknown member", refused.status == 422 && names(&refused, "notKnown"), || {
                    format!("{of} {refused:?}")
                });
            }
            for (name, wrong) in members(document, &whole) {
                let body = match name.as_str() {
                    // Beside an id and `intent`, nothing else is.
                    "id" | "intent" if schema == "IntentInput" => {
                        let mut body = json!({"intent": good(schema)});
                        body[&name] = wrong;
                        body
                    }
                    _ => said(&name, &wrong),
                };
                let refused = sender.send(operation, "", &[], Some(body.to_string().into())).await;
                tally.see("documented member", names(&refused, &name), || format!("{of} {name} {refused:?}"));
            }
            let refused = sender.send(operation, "", &[("content-type", "text/plain")], None).await;
            tally.see("header that cannot hold", refused.status == 415, || format!("{of} {refused:?}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_asked_for_over_http_is_dropped_silently() {
    let local = |configs: &mut Configs| {
        configs.notifier.callbacks_private = "127.0.0.1".into();
        configs.observed = true;
    };
    let Some(world) = World::start("gateway, silent drops", 1, local).await else { return };
    let token = world.admin().await;
    world.account(&token, "ada", &["owner"]).await;
    let made = world.ask(&token, "POST", "/api/v1/intent/", Some(json!({"id": "plant", "intent": intent("20")}))).await;
    assert_eq!(made.status, 201, "{made:?}");
    let collector = world.test_bus.connect("collector").await;
    store(&collector, &achieved(made.body["owner"].as_str().unwrap(), "plant", 1, 30.0), "achieved").await;
    let document = json!({"name": "echo", "version": "1.0.0", "kind": "process", "driver": "simulated", "process": {"command": "true"},
        "resources": {"cpu_milli": 10, "memory_bytes": 1_000_000}, "replicas": 1});
    let made = world.ask(&token, "POST", "/api/v1/workload/", Some(document)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let run = world.ask(&token, "POST", "/api/v1/workload/echo@1.0.0/template/", Some(json!({}))).await;
    let instance = run.body["instance_id"].as_str().unwrap().to_owned();
    for path in ["/api/v1/measurement/plant/fast/", "/api/v1/condition/plant/"] {
        let made = world.ask(&token, "PUT", path, Some(json!({}))).await;
        assert_eq!(made.status, 200, "{made:?}");
        let answer = async || world.ask(&token, "GET", path, None).await;
        until("what is set is shown", answer, |answer: &Answer| answer.status == 200).await;
    }
    let hub = json!({"callback": "http://127.0.0.1:9/"});
    let hub = world.ask(&token, "POST", "/tmf-api/intentManagement/v5/hub", Some(hub)).await;
    let hub = hub.body["id"].as_str().unwrap().to_owned();
    let twin = format!("/api/v1/twin/workload/{instance}/history/");
    let cluster = "/api/v1/cluster/edge/data/";
    for (path, what) in [
        ("/api/v1/intent/plant/report/", "a report"),
        ("/api/v1/workload/instance/", "the instance"),
        (&*twin, "its twin"),
        (cluster, "the cluster's twin"),
    ] {
        let answer = async || world.ask(&token, "GET", path, None).await;
        until(what, answer, |answer: &Answer| answer.status == 200 && answer.body != json!([])).await;
    }
    let path = "/api/v1/intent/plant/achieved/";
    let answer = async || world.ask(&token, "GET", path, None).await;
    until("an achieved value", answer, |answer: &Answer| answer.status == 200 && answer.body != json!([])).await;
    // What is asked next changes nothing, so that answers can be compared: nothing acts on the intent either.
    let suspended = world.ask(&token, "PUT", "/api/v1/intent/plant/action/", Some(json!({"action": "SUSPEND"}))).await;
    assert_eq!(suspended.status, 200, "{suspended:?}");
    let report = world.ask(&token, "GET", "/tmf-api/intentManagement/v5/intent/plant/intentReport", None).await;
    let report = report.body[0]["id"].as_str().unwrap().to_owned();

    let document = world.raw(0, "GET", "/openapi.json", &[], "").await.body;
    let mut operations = vec![];
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let there = match path.split('/').nth(3).unwrap_or_default() {
                "auth" => "ada",
                "cluster" => "edge",
                "telemetry" if path.contains("/deployments/") => &instance,
                "telemetry" => "edge",
                "workload" if path.contains("/instance/") => &instance,
                "workload" => "echo@1.0.0",
                "twin" | "workload_instance" | "workload_security_events" | "workload_CMDT" => &instance,
                _ if path.contains("/hub/") => &hub,
                _ => "plant",
            };
            let content = operation["requestBody"]["content"].as_object().and_then(|kinds| kinds.values().next());
            let schema = content.and_then(|content| content["schema"]["$ref"].as_str()).unwrap_or_default();
            operations.push(Operation {
                id: operation["operationId"].as_str().unwrap().to_owned(),
                method: method.to_uppercase(),
                path: path
                    .replace("{id}", there)
                    .replace("{kind}", "workload")
                    .replace("{report}", &report)
                    .replace("{setting}", "fast"),
                parameters: operation["parameters"].as_array().cloned().unwrap_or_default(),
                streams: operation["responses"]["200"]["content"]["text/event-stream"].is_object(),
                schema: schema.rsplit('/').next().unwrap_or_default().to_owned(),
            });
        }
    }
    let sender = Sender { world: &world, token };
    let mut tally = Tally::default();
    for operation in &operations {
        of_query(&sender, operation, &mut tally).await;
        of_headers(&sender, operation, &mut tally).await;
        of_body(&sender, &document, operation, &mut tally).await;
    }
    let told: Vec<String> = tally.tried.iter().map(|(kind, count)| format!("{count} × {kind}")).collect();
    println!("{} operations over HTTP: {}", operations.len(), told.join(", "));
    assert!(tally.silent.is_empty(), "{} of {:?}\n{}", tally.silent.len(), tally.tried, tally.silent.join("\n"));
    assert!(operations.len() > 40 && tally.tried.values().sum::<usize>() > 500, "{:?}", tally.tried);
    world.stop().await;
}
