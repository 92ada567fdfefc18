//! What services read of people and of other servers: bodies, addresses and headers.

#![allow(clippy::expect_used, clippy::panic, reason = "a target panics where what must hold does not")]

use std::{net::IpAddr, sync::OnceLock};

use bytes::Bytes;
use cmdt_aggregator::domain::{Limits, Twins};
use gateway::domain::{
    forms::{self, TemplateInput, UpgradeInput},
    passage, present, tmf,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::{Outgoing, Projector as _};
use mesh_proto::{
    AnyEvent, READINGS_SIGNAL, Timestamp, Written,
    cluster::ClusterRegistered,
    intent::IntentView,
    json,
    learning::ModelCard,
    sample_key,
    telemetry::{Entity, Metric, MetricKind, Readings, RouteTraffic},
    twin::TwinChanged,
    wire,
    workload::InstanceWanted,
};
use mesh_rest::{body, token};
use mncc_exposer::domain::alto;
use prost::Message as _;
use prost_reflect::{DynamicMessage, Value};
use serde_json::json;

use crate::targets::{INTENT_YAML, Target, WORKLOAD_YAML, bodies, each_event, of, text};

/// Every target of the faces.
pub(crate) const FACES: &[Target] = &[
    Target { name: "unknown-field", try_on: unknown_field, good: bodies },
    Target { name: "twin-readings", try_on: twin_readings, good: readings },
    Target { name: "rest-body", try_on: rest_body, good: rest_bodies },
    Target { name: "tmf-body", try_on: tmf_body, good: tmf_bodies },
    Target { name: "tmf-filter", try_on: tmf_filter, good: queries },
    Target { name: "query", try_on: query, good: queries },
    Target { name: "if-match", try_on: if_match, good: tags },
    Target { name: "proxy-path", try_on: proxy_path, good: paths },
    Target { name: "proxy-headers", try_on: proxy_headers, good: head_lines },
    Target { name: "token", try_on: token, good: tokens },
    Target { name: "jwks", try_on: jwks, good: key_sets },
    Target { name: "alto", try_on: alto_request, good: alto_requests },
    Target { name: "digest", try_on: digest, good: digests },
    Target { name: "hub", try_on: hub, good: hubs },
    Target { name: "s3-xml", try_on: s3_xml, good: s3_bodies },
    Target { name: "s3-headers", try_on: s3_headers, good: head_lines },
    Target { name: "proof", try_on: proof, good: proofs },
    Target { name: "policy-file", try_on: policy_file, good: policy_files },
];

// ---- the bus

fn unknown_field(input: &[u8]) -> bool {
    each_event(input, |_, message, body| {
        let descriptor = json::descriptor(message).expect("the contract has it");
        let found = wire::unknown(&descriptor, body);
        let Ok(read) = DynamicMessage::decode(descriptor, body) else { return false };
        // Beside the decoder's own word. Embedded documents are bytes to it.
        assert!(!has_unknown(&read) || found.is_some(), "{message}: {read:?}");
        found.is_none()
    })
}

fn has_unknown(message: &DynamicMessage) -> bool {
    fn of_value(value: &Value) -> bool {
        match value {
            Value::Message(inner) => has_unknown(inner),
            Value::List(items) => items.iter().any(of_value),
            Value::Map(entries) => entries.values().any(of_value),
            _ => false,
        }
    }
    message.unknown_fields().next().is_some() || message.fields().any(|(_, value)| of_value(value))
}

// ---- measurements

/// Readings of a node's agent and of a proxy, given to twins of a cluster and of a workload.
fn twin_readings(input: &[u8]) -> bool {
    let body = Bytes::copy_from_slice(input);
    let registered = ClusterRegistered { cluster_id: "c".into(), node: "n".into(), ..ClusterRegistered::default() };
    let wanted = InstanceWanted { instance_id: "i".into(), owner: "o".into(), ..InstanceWanted::default() };
    let mut twins = Twins::new(Limits::default());
    let now = Timestamp::from_millis(1_700_000_000_000);
    for fact in [&registered as &dyn AnyEvent, &wanted] {
        let message = Outgoing::new(fact, "id", now).expect("its keys are keys");
        twins.apply(&message.stored("fuzzing", 1, now));
    }
    twins.tick(now);
    let mut published = vec![];
    for later in [1_000, 70_000, 140_000] {
        twins.sample(&readings_key("n", "c"), &body);
        twins.sample(&readings_key("g", "gateway"), &body);
        published.extend(twins.tick(now.plus_millis(later)));
    }
    for derived in published {
        let twin = TwinChanged::decode(derived.event.body()).expect("it was encoded").twin.expect("it has a twin");
        let traffic = twin.traffic.unwrap_or_default();
        let rates = traffic.rate_by_code.values().chain([&traffic.request_rate]);
        assert!(rates.into_iter().all(|rate| rate.is_finite() && *rate >= 0.0), "{traffic:?}");
        assert!(
            twin.measured.len() <= 256 && twin.measured.values().all(|value| value.is_finite()),
            "{:?}",
            twin.measured
        );
    }
    mesh_proto::readings(&readings_key("n", "c"), &body).is_some()
}

fn readings_key(node: &str, cluster: &str) -> String {
    sample_key("s", node, READINGS_SIGNAL, cluster)
}

fn readings() -> Vec<Vec<u8>> {
    let metric = |entity, name: &str, label: (&str, &str), kind: MetricKind| Metric {
        entity,
        name: name.into(),
        unit: "By".into(),
        kind: kind.into(),
        labels: [(label.0.to_owned(), label.1.to_owned())].into(),
        ..Metric::default()
    };
    let entity = |kind: &str, id: &str| Entity { kind: kind.into(), id: id.into(), ..Entity::default() };
    let pack = Readings {
        cluster_id: "c".into(),
        at: Some(Timestamp::from_millis(1_700_000_000_500)),
        entities: vec![entity("node", "n"), entity("route", "o/i")],
        metrics: vec![
            metric(0, "system.memory.usage", ("state", "used"), MetricKind::Gauge),
            metric(0, "system.network.io", ("direction", "receive"), MetricKind::Counter),
            metric(1, "http.server.request.count", ("http.response.status_code", "200"), MetricKind::Counter),
            metric(1, "http.server.request.duration", ("quantile", "0.99"), MetricKind::Gauge),
        ],
        metric: vec![0, 1, 2, 3, 1, 2],
        after_ms: vec![0, 0, 0, 0, 100, 100],
        values: vec![1e9, 5.0, 7.0, 0.25, 1e6, 9.0],
        traffic: vec![RouteTraffic {
            entity: 1,
            requests: 9,
            errors: 1,
            seconds: vec![0.01, 0.25],
            answers: vec![8, 1],
        }],
        ..Readings::default()
    };
    vec![pack.encode_to_vec(), Readings { cluster_id: "gateway".into(), ..pack }.encode_to_vec()]
}

// ---- REST

/// A body: JSON, or YAML if its first byte is odd.
fn read_body(input: &[u8]) -> Option<Written> {
    let (first, rest) = input.split_first()?;
    body::read((first & 1 == 1).then_some("application/yaml"), rest).ok()
}

fn rest_body(input: &[u8]) -> bool {
    let Some(read) = read_body(input) else { return false };
    let intent = forms::intent(read.clone()).is_ok();
    let workload = forms::workload(read.clone()).is_ok();
    let template = TemplateInput::read(read.clone()).is_ok_and(|form| form.release(true).is_ok());
    let upgrade = UpgradeInput::read(read.clone()).is_ok_and(|form| form.release(true, None).is_ok());
    let form = body::form::<forms::IntentTemplate>(read.clone()).is_ok_and(|form| form.expand(None).is_ok());
    if let Ok(exact) = read.into_exact_json() {
        let again = Written::json(exact.to_string().as_bytes()).expect("it is JSON");
        assert_eq!(again.into_exact_json().expect("it was exact"), exact);
    }
    intent || workload || template || upgrade || form
}

fn tmf_body(input: &[u8]) -> bool {
    let Some(Ok(spelt)) = read_body(input).map(tmf::spelt) else { return false };
    // What is spelt out stays.
    assert_eq!(tmf::spelt(spelt.clone().into()), Ok(spelt.clone()));
    let view = IntentView { intent_id: "i".into(), version: 1, ..IntentView::default() };
    let _ = tmf::patch(&view, &spelt).is_ok();
    let Ok(new) = tmf::read(&spelt) else { return false };
    let view = IntentView { intent: Some(new.intent), ..view };
    let shown = tmf::intent(&view);
    assert_eq!(tmf::patch(&view, &shown), Ok(tmf::Change::Nothing), "what is shown changes nothing");
    assert_eq!(tmf::read(&shown).map(|new| Some(new.intent)), Ok(view.intent), "and can be sent again");
    true
}

const NAMES: [&str; 6] = ["name", "relatedParty", "validFor", "priority", "fields", "limit"];

fn query(input: &[u8]) -> bool {
    let Some(Ok(read)) = text(input).map(|text| body::query(text, &NAMES, |name| name == "name")) else { return false };
    assert!(read.iter().all(|(name, values)| NAMES.contains(&name.as_str()) && (values.len() == 1 || name == "name")));
    let _ = body::number(&read, "limit", 100, 1_000);
    true
}

fn tmf_filter(input: &[u8]) -> bool {
    let Some(Ok(read)) = text(input).map(|text| body::query_below(text, &NAMES, |_| true)) else { return false };
    let _ = read.get("fields").is_some_and(|fields| tmf::selectable(fields).is_ok());
    let Ok(filters) = tmf::filters(&read) else { return false };
    let resource = json!({"name": "a", "priority": "7", "relatedParty": [{"id": "p"}, {"id": ["q", {"id": 1.5}]}],
        "validFor": {"startDateTime": "2027-01-01T00:00:00Z"}});
    let _ = filters.iter().map(|filter| filter.lets_through(&resource)).fold(0, |sum, one| sum + usize::from(one));
    true
}

fn if_match(input: &[u8]) -> bool {
    let Some(text) = text(input) else { return false };
    let (strongly, weakly) = (present::matches(text, "\"2-9\"", true), present::matches(text, "\"2-9\"", false));
    assert!(weakly || !strongly, "what matches strongly matches weakly");
    weakly
}

fn proxy_path(input: &[u8]) -> bool {
    let Some(Ok(path)) = text(input).map(|text| passage::path("/app", text)) else { return false };
    assert!(path.starts_with("/app/"), "{path}");
    let mut decoded = path.into_bytes();
    for _ in 0..4 {
        let shown = String::from_utf8_lossy(&decoded).replace('\\', "/");
        assert!(!shown.split('/').any(|segment| segment == ".."), "{shown}");
        decoded = percent_encoding::percent_decode(&decoded).collect();
    }
    true
}

/// Lines of `name: value`; what HTTP would not let through is left out.
fn headers(input: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(64) {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(at);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.trim_ascii()), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

fn proxy_headers(input: &[u8]) -> bool {
    let mut sent = headers(input);
    let before = sent.len();
    let _ = passage::upgrades(&sent);
    passage::strip(&mut sent);
    passage::disown(&mut sent);
    assert!(!sent.keys().any(|name| passage::is_ours(name.as_str())), "{sent:?}");
    assert!(!sent.contains_key("connection"));
    before > 0 && sent.len() < before
}

fn keys() -> &'static token::Keys {
    static KEYS: OnceLock<token::Keys> = OnceLock::new();
    KEYS.get_or_init(|| token::Keys::parse(KEY_SET.as_bytes()).expect("a key set"))
}

fn token(input: &[u8]) -> bool {
    let Some(text) = text(input) else { return false };
    let expected = token::Expected { issuer: "i".into(), audience: String::new(), skew_s: 60, life_max_s: 3_600 };
    match token::check(text, keys(), &expected, 1_800_000_000) {
        Ok(_) => panic!("nobody has signed it"),
        // One whose key is known was read as a token.
        Err(refused) => refused.wants_newer_keys(),
    }
}

fn jwks(input: &[u8]) -> bool {
    token::Keys::parse(input).is_ok_and(|keys| !keys.is_empty())
}

// ---- ALTO

/// The first line is the path, with the media type of the body that follows.
fn alto_request(input: &[u8]) -> bool {
    static MAPS: OnceLock<alto::Maps> = OnceLock::new();
    let maps = MAPS.get_or_init(|| {
        let node = |name: &str, address: &str| alto::Node {
            cluster_id: name.into(),
            site: format!("site-{name}"),
            address: address.parse().ok(),
            prefixes: vec![],
        };
        let link = alto::Link { from: "a".into(), to: "b".into(), up: true, latency_ms: 2.0, ..alto::Link::default() };
        alto::Maps::new(&[node("a", "192.0.2.1"), node("b", "2001:db8::1")], &[link])
    });
    let at = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (head, rest) = input.split_at(at);
    let Some((path, media_type)) = text(head).map(|head| head.split_once(' ').unwrap_or((head, ""))) else {
        return false;
    };
    let given = (!media_type.is_empty()).then_some(media_type);
    let request = alto::Request {
        method: if given.is_some() { "POST" } else { "GET" },
        path,
        accept: None,
        content_type: given,
        body: rest.get(1..).unwrap_or_default(),
        client: Some(IpAddr::from([192, 0, 2, 1])),
    };
    let answer = alto::answer(maps, &request);
    assert!(matches!(answer.status, 200 | 400 | 404 | 405 | 406 | 413 | 415), "{}", answer.status);
    if answer.content_type.ends_with("+json") {
        assert!(serde_json::from_str::<serde_json::Value>(&answer.body).is_ok(), "{}", answer.body);
    }
    answer.status == 200
}

fn digest(input: &[u8]) -> bool {
    let Some(text) = text(input) else { return false };
    let users = alto::digest::Users::parse(&format!("u:alto:{}", "0".repeat(64))).unwrap_or_default();
    let known = alto::digest::check(&users, "s", 1_800_000_000, "GET", "/alto/", Some(text));
    assert!(known.is_err(), "nobody has signed it");
    alto::digest::Users::parse(text).is_ok()
}

// ---- subscriptions

fn hub(input: &[u8]) -> bool {
    let Some(text) = text(input) else { return false };
    let query = notifier::domain::subscriptions::wanted(text);
    assert!(query.as_ref().is_ok_and(|wanted| !wanted.is_empty()) || query.is_err());
    query.is_ok() || notifier::domain::subscriptions::callback_problem(text).is_none()
}

// ---- storage

const ROOTS: [&str; 4] = ["Delete", "CompleteMultipartUpload", "CreateBucketConfiguration", "VersioningConfiguration"];

fn s3_xml(input: &[u8]) -> bool {
    ROOTS.iter().any(|root| {
        let Some(plain) = secure_storage::fuzzed::plain(input, root) else { return false };
        // What is plain stays as it is.
        assert_eq!(secure_storage::fuzzed::plain(plain.as_bytes(), root).as_deref(), Some(plain.as_str()));
        assert!(plain.starts_with(&format!("<{root}")));
        true
    })
}

fn s3_headers(input: &[u8]) -> bool {
    let sent = headers(input);
    [0, 1, 10, u64::MAX].into_iter().any(|size| match secure_storage::fuzzed::ranges(sent.clone(), size) {
        None => false,
        Some(range) => {
            assert!(range.start < range.end && range.end <= size, "{range:?} of {size}: {sent:?}");
            true
        }
    })
}

// ---- files

fn proof(input: &[u8]) -> bool {
    let Some(text) = text(input) else { return false };
    let signer = ledger::note::Signer::from_seed([7; 32]).expect("a seed");
    let key = ledger::note::Verifier::parse(text).is_ok();
    let opened = signer.verifier().open(text).is_ok();
    opened || key || ledger::files::verify(text, signer.verifier()).is_ok()
}

fn policy_file(input: &[u8]) -> bool {
    learning::policy::Policy::from_file(input).is_ok()
}

// ---- good input

fn with_first(first: u8, texts: &[String]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| [&[first], text.as_bytes()].concat()).collect()
}

fn rest_bodies() -> Vec<Vec<u8>> {
    let json = [
        json!({"release_name": "a", "values_override": {"a": {"b": [1, 2.5, "010"]}}, "replicas": 2}).to_string(),
        json!({"workload_document": "a@1.0.0", "atomic": true, "values_override": {}}).to_string(),
        json!({"instance_id": "i", "intent_type": "DeliverComputingWorkload", "service_start_time": "2027-01-31T12:00:00Z",
            "targets": [{"target_name": "cpuUsage", "target_condition": "IS_LESS_THAN", "target_value_range": 20}]})
        .to_string(),
    ];
    [with_first(b'1', &[INTENT_YAML.to_owned(), WORKLOAD_YAML.to_owned()]), with_first(b'0', &json)].concat()
}

fn tmf_bodies() -> Vec<Vec<u8>> {
    let bodies = [
        r#"{"@type": "Intent", "name": "p", "priority": "7", "relatedParty": [{"id": "q", "ownKey": 1.50}],
            "expression": {"@type": "JsonLdExpression", "iri": "urn:x", "expressionValue": {"@id": "urn:y", "userLabel": "a",
            "intentContexts": [{"contextAttribute": "a", "contextValueRange": [1, "b"]}], "intent_priority": 7,
            "intentExpectations": [{"expectationTargets": [{"targetName": 1.10, "target_value_range": 20.50}]}]}}}"#,
        r#"{"name": "other", "validFor": {"endDateTime": null}, "expression": {"expressionValue": {"intentPriority": 9}}}"#,
        r#"{"lifecycleStatus": "SUSPENDED"}"#,
    ];
    with_first(b'0', &bodies.map(str::to_owned))
}

fn queries() -> Vec<Vec<u8>> {
    of(&[
        "name=a%20b&name=c+d&limit=7",
        "relatedParty.id=p&priority.gte=5",
        "validFor.startDateTime.lt=2027-01-31T12:00:00Z",
        "fields=name,relatedParty.id&name.ne=x,y",
        "limit=1&limit=2",
    ])
}

fn tags() -> Vec<Vec<u8>> {
    of(&["\"2-9\"", "W/\"2-9\", \"x\"", "*", "\"a,b\", \"2-9\"", "2-9"])
}

fn paths() -> Vec<Vec<u8>> {
    of(&[
        "/a/b?c",
        "/a/../b",
        "/a/%2e%2e/b",
        "..%2f..",
        "/a\\..\\b",
        "/%252e%252e/",
        "/%u002e%u002e/",
        "//host/a;x=..",
        "/a/./",
    ])
}

fn head_lines() -> Vec<Vec<u8>> {
    of(&[
        "Connection: keep-alive, x-forwarded-user\nX_Forwarded_User: root\nUpgrade: websocket\nX-Own: 1",
        "Range: bytes=0-4\nIf-Range: \"a\"",
        "range: bytes=-5\nif-match: \"a\", W/\"b\"\nif-modified-since: Sunday, 06-Nov-94 08:49:37 GMT",
        "if-none-match: *\nif-unmodified-since: Sun Nov  6 08:49:37 1994\nx-amz-copy-source-range: bytes=0-8",
        "x-amz-copy-source-if-match: a\nrange: bytes=5-18446744073709551615",
    ])
}

/// Two keys that anybody may know.
const KEY_SET: &str = r#"{"keys": [
    {"kty": "RSA", "kid": "a", "use": "sig", "alg": "RS256", "e": "AQAB", "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"},
    {"kty": "OKP", "kid": "b", "crv": "Ed25519", "key_ops": ["verify"], "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

fn tokens() -> Vec<Vec<u8>> {
    of(&[
        // {"alg":"RS256","kid":"a"}.{"iss":"i"}, signed by nobody.
        "eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.eyJpc3MiOiJpIn0.AAAA",
        "eyJhbGciOiJFZERTQSIsImtpZCI6ImIifQ.eyJpc3MiOiJpIiwiZXhwIjoxODAwMDAwMDEwfQ.AAAA",
        // {"alg":"none"} and {"alg":"RS256","kid":"z"}
        "eyJhbGciOiJub25lIn0.eyJpc3MiOiJpIn0.",
        "eyJhbGciOiJSUzI1NiIsImtpZCI6InoifQ.eyJpc3MiOiJpIn0.AAAA",
    ])
}

fn key_sets() -> Vec<Vec<u8>> {
    of(&[
        KEY_SET,
        r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#,
    ])
}

fn alto_requests() -> Vec<Vec<u8>> {
    of(&[
        "/alto/directory",
        "/alto/costmap/numerical/routingcost",
        "/alto/networkmap application/alto-networkmapfilter+json\n{\"pids\": [\"site-a\"], \"address-types\": [\"ipv4\"]}",
        "/alto/costmap/filtered application/alto-costmapfilter+json\n{\"cost-type\": {\"cost-mode\": \"numerical\", \
         \"cost-metric\": \"routingcost\"}, \"constraints\": [\"ge 1\", \"le 1e3\"], \"pids\": {\"srcs\": [], \"dsts\": [\"site-b\"]}}",
        "/alto/endpointprop application/alto-endpointpropparams+json\n{\"properties\": [\"network-map.pid\"], \
         \"endpoints\": [\"ipv4:192.0.2.1\", \"ipv6:2001:db8::1\"]}",
        "/alto/endpointcost application/alto-endpointcostparams+json\n{\"cost-type\": {\"cost-mode\": \"ordinal\", \
         \"cost-metric\": \"routingcost\"}, \"endpoints\": {\"srcs\": [\"ipv4:192.0.2.1\"], \"dsts\": [\"ipv6:2001:db8::1\"]}}",
    ])
}

fn digests() -> Vec<Vec<u8>> {
    let known = format!("u:alto:{}\n# others\n\n", "0".repeat(64));
    let header = "Digest username=\"u\", realm=\"alto\", uri=\"/alto/\", algorithm=SHA-256, nonce=\"6b49d200-00\", nc=00000001, \
                  cnonce=\"c\\\"d\", qop=auth, response=\"00\"";
    of(&[&known, header])
}

fn hubs() -> Vec<Vec<u8>> {
    of(&[
        "eventType=IntentCreateEvent,IntentStatusChangeEvent",
        "?",
        "",
        "https://h:8/a?b",
        "http://[::1]/x",
        "https://u@h/",
    ])
}

fn s3_bodies() -> Vec<Vec<u8>> {
    of(&[
        "<Delete><Object><Key>a&amp;b</Key></Object><Object><Key><![CDATA[<c>]]></Key></Object><Quiet>true</Quiet></Delete>",
        "<s:CompleteMultipartUpload xmlns:s='http://s3.amazonaws.com/doc/2006-03-01/'><s:Part><s:PartNumber>1</s:PartNumber>\
         <s:ETag>\"a\"</s:ETag></s:Part></s:CompleteMultipartUpload>",
        "<?xml version=\"1.0\"?><!-- a --><CreateBucketConfiguration><LocationConstraint>p&#x31;</LocationConstraint>\
         </CreateBucketConfiguration>",
    ])
}

fn proofs() -> Vec<Vec<u8>> {
    let signer = ledger::note::Signer::from_seed([7; 32]).expect("a seed");
    let head = ledger::note::Checkpoint { size: 1, root: [1; 32] };
    let note = signer.sign(&head);
    let entry: &[u8] = b"entry";
    let file = ledger::files::ledger([entry], &note);
    let inclusion = ledger::files::inclusion(0, entry, &[], &note);
    of(&[&note, &file, &inclusion, &signer.verifier().to_string()])
}

fn policy_files() -> Vec<Vec<u8>> {
    let widths = [learning::features::FEATURES, 1];
    let network = learning::network::Network::of(&widths, vec![0.0; learning::network::size(&widths)]);
    let file = |network| learning::policy::Policy::new(network, ModelCard::default()).to_file().into_bytes();
    network.map(file).into_iter().collect()
}
