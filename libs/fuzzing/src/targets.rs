//! What is tried, and what must hold of what was read.

#![allow(clippy::expect_used, clippy::panic, reason = "a target panics where what must hold does not")]

use bytes::Bytes;
use mesh_core::{Outgoing, Stored};
use mesh_proto::{
    Event as _, PACKED_SIGNAL, Timestamp, Written, contract, deciders,
    intent::{Intent, SubmitIntent},
    is_key, json, sample_key, shown, subject_keys,
    telemetry::{InstanceSample, Packed},
    wire,
};
use prost::Message as _;
use serde_json::Value as Json;

/// Something that reads what others wrote.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Reads an input; says if it could. Panics if what must hold does not.
    pub try_on: fn(&[u8]) -> bool,
    /// Input that it reads, to make others of.
    pub good: fn() -> Vec<Vec<u8>>,
}

/// Targets of the contract, of intents and of charts.
pub(crate) const TARGETS: &[Target] = &[
    Target { name: "json", try_on: written_json, good: json_texts },
    Target { name: "yaml", try_on: written_yaml, good: yaml_texts },
    Target { name: "message-of-json", try_on: message_of_json, good: json_texts },
    Target { name: "message-of-yaml", try_on: message_of_yaml, good: yaml_texts },
    Target { name: "event", try_on: event, good: bodies },
    Target { name: "command", try_on: command, good: commands },
    Target { name: "wire-field", try_on: wire_field, good: bodies },
    Target { name: "samples", try_on: samples, good: sample_bodies },
    Target { name: "summary", try_on: summary, good: bodies },
    Target { name: "time", try_on: time, good: times },
    Target { name: "subject", try_on: subject, good: subjects },
    Target { name: "shown", try_on: shown_text, good: yaml_texts },
    Target { name: "condition", try_on: condition, good: conditions },
    Target { name: "window", try_on: window, good: times },
    Target { name: "goals", try_on: goals, good: goal_texts },
    Target { name: "report", try_on: report, good: json_texts },
    Target { name: "secrets", try_on: secrets, good: yaml_texts },
    Target { name: "chart-archive", try_on: archive, good: archives },
    Target { name: "manifests", try_on: manifests, good: manifest_texts },
    Target { name: "chart-values", try_on: values, good: yaml_texts },
    Target { name: "image", try_on: image, good: images },
    Target { name: "docker-config", try_on: docker_config, good: docker_configs },
];

const INTENT: &str = "continuum.intent.v1.Intent";
const WRITTEN_BY_PEOPLE: &[&str] = &[
    INTENT,
    "continuum.workload.v1.WorkloadDocument",
    "continuum.storage.v1.Policy",
    "continuum.remedy.v1.RemedyPolicy",
    "continuum.anomaly.v1.AnomalyDetected",
];

pub(crate) fn text(input: &[u8]) -> Option<&str> {
    std::str::from_utf8(input).ok()
}

// ---- what people write

fn written_json(input: &[u8]) -> bool {
    let read = Written::json(input);
    let bare = input.strip_prefix(b"\xef\xbb\xbf").unwrap_or(input);
    let strict = serde_json::from_slice::<Json>(bare);
    match (read, strict) {
        (Ok(read), Ok(strict)) => {
            let value = read.clone().into_json();
            assert!(alike(&value, &strict), "{value} is not {strict}");
            assert!(read.depth() <= 129);
            true
        }
        (Ok(_), Err(error)) => panic!("read what is not JSON: {error}"),
        (Err(error), Ok(_)) => {
            let error = error.to_string();
            assert!(["twice", "deeper", "out of range"].iter().any(|why| error.contains(why)), "{error}");
            false
        }
        (Err(_), Err(_)) => false,
    }
}

/// The same value, whatever the last bit of its numbers: `serde_json` rounds some of them to the one beside.
fn alike(ours: &Json, theirs: &Json) -> bool {
    match (ours, theirs) {
        (Json::Number(a), Json::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => a == b || (a - b).abs() <= a.abs() * 1e-15,
            _ => a == b,
        },
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| alike(a, b)))
        }
        _ => ours == theirs,
    }
}

fn written_yaml(input: &[u8]) -> bool {
    let Some(text) = text(input) else { return false };
    let Ok(read) = Written::documents(text) else { return false };
    for document in read {
        // What was read is JSON, and stays the same on its way through it.
        let value = document.clone().into_json();
        let again = Written::json(value.to_string().as_bytes()).expect("it is JSON").into_json();
        assert_eq!(again.to_string(), value.to_string());
        let _ = (document.depth(), document.into_spelt_json());
    }
    true
}

fn as_messages(written: &Written) -> bool {
    let mut read = false;
    for message in WRITTEN_BY_PEOPLE {
        if let Ok(body) = json::written_to_protobuf(message, written) {
            assert!(json::is_protobuf(message, &body));
            let value = json::to_value(message, &body).expect("it was just written");
            // What is shown is what is read.
            let again = json::value_to_protobuf(message, value.clone()).expect("it reads what it shows");
            assert_eq!(json::to_value(message, &again).expect("as before"), value);
            read = true;
        }
    }
    read
}

fn message_of_json(input: &[u8]) -> bool {
    Written::json(input).is_ok_and(|written| as_messages(&written))
}

fn message_of_yaml(input: &[u8]) -> bool {
    let Some(read) = text(input).and_then(|text| Written::documents(text).ok()) else { return false };
    read.iter().map(as_messages).fold(false, |any, one| any | one)
}

fn time(input: &[u8]) -> bool {
    let Some(time) = text(input).and_then(|text| text.parse::<Timestamp>().ok()) else { return false };
    assert_eq!(time.to_string().parse(), Ok(time));
    assert!((0..1_000_000_000).contains(&time.nanos));
    true
}

fn shown_text(input: &[u8]) -> bool {
    let Some(text) = text(input) else { return false };
    let harmless = |shown: &str| !shown.contains(['\u{1b}', '\r', '\u{9b}', '\u{202e}', '\u{200f}', '\0']);
    assert!(harmless(&shown::line(text)) && !shown::line(text).contains(['\n', '\t']));
    assert!(harmless(&shown::lines(text)));
    let value = Json::String(text.to_owned());
    let written = shown::json(&value.to_string()).into_owned();
    assert!(harmless(&written));
    assert_eq!(serde_json::from_str::<Json>(&written).ok(), Some(value));
    true
}

// ---- what travels

pub(crate) fn each_event(input: &[u8], mut read: impl FnMut(&str, &str, &[u8]) -> bool) -> bool {
    // The first byte chooses the event.
    let (Some(first), Some(body)) = (input.first(), input.get(1..)) else { return false };
    let events = &contract().events;
    let Some(event) = events.get(usize::from(*first) % events.len().max(1)) else { return false };
    read(&event.stream, &event.message, body)
}

fn event(input: &[u8]) -> bool {
    each_event(input, |stream, message, body| {
        let Ok(once) = deciders::of_stream(stream, message, body, |event| event.body()) else { return false };
        let twice = deciders::of_stream(stream, message, &once, |event| event.body()).expect("it was just written");
        assert_eq!(once, twice);
        let _ = json::to_value(message, body);
        true
    })
}

fn summary(input: &[u8]) -> bool {
    each_event(input, |_, message, body| {
        let format = |_: mesh_proto::summary::Format, parts: &[Vec<u8>]| format!("{} parts", parts.len());
        mesh_proto::summarize(message, "a.b.v1.c.d", body, &format).is_some()
    })
}

fn command(input: &[u8]) -> bool {
    let command = SubmitIntent { owner: "local".into(), intent_id: "i".into(), ..SubmitIntent::default() };
    let Ok(outgoing) = Outgoing::new(&command, "id", Timestamp::default()) else { return false };
    let stored = Stored { body: Bytes::copy_from_slice(input), ..outgoing.stored("person", 1, Timestamp::default()) };
    stored.event::<SubmitIntent>().is_ok_and(|event| event.is_some())
}

fn wire_field(input: &[u8]) -> bool {
    (0..8).filter(|number| wire::field(input, *number).is_some()).count() > 0
}

fn samples(input: &[u8]) -> bool {
    let body = Bytes::copy_from_slice(input);
    [(PACKED_SIGNAL, "c"), ("instance", "i"), ("other", "c")]
        .iter()
        .any(|(signal, id)| mesh_proto::instance_samples(&sample_key("s", "n", signal, id), &body).is_some())
}

fn subject(input: &[u8]) -> bool {
    let Some(text) = text(input) else { return false };
    for event in &contract().events {
        if let Some(keys) = subject_keys(&event.subject, text) {
            assert_eq!(keys.len(), event.keys.len());
            return keys.iter().all(|key| is_key(key));
        }
    }
    false
}

// ---- intents

fn condition(input: &[u8]) -> bool {
    let Some((condition, range)) = text(input).and_then(|text| text.split_once(' ')) else { return false };
    let Ok(bound) = mesh_intent::Bound::parse(condition, range) else { return false };
    for value in [f64::NEG_INFINITY, -1.0, 0.0, 1.5, f64::MAX] {
        let _ = bound.holds(value);
    }
    let _ = (bound.words("%"), bound.set().witness());
    assert_eq!(mesh_intent::Bound::parse(bound.condition().name(), bound.text()).as_ref(), Ok(&bound));
    true
}

fn window(input: &[u8]) -> bool {
    let Some(text) = text(input) else { return false };
    let context = |attribute: &str, range: String| mesh_proto::intent::Context {
        context_attribute: attribute.into(),
        context_condition: "IS_EQUAL_TO".into(),
        context_value_range: range,
        id: 0,
    };
    let intent = Intent { intent_contexts: vec![context("ServiceStartTime", text.to_owned())], ..Intent::default() };
    mesh_intent::window::Window::of(&intent).is_ok()
}

fn goals(input: &[u8]) -> bool {
    let Some(written) = text(input).and_then(|text| Written::yaml(text).ok()) else { return false };
    mesh_intent::goal::read(&written.into_spelt_json())
        .map(|read| read.iter().for_each(|one| drop(mesh_intent::goal::translate(one, &[]))))
        .is_ok()
}

fn report(input: &[u8]) -> bool {
    let Ok(value) = Written::json(input).map(Written::into_json) else { return false };
    let intent = mesh_intent::standard::read_intent(value.clone());
    if let Ok(intent) = &intent {
        let shown = mesh_intent::standard::intent(intent).expect("it shows what it read");
        assert!(mesh_intent::standard::read_intent(shown).is_ok());
    }
    let report = mesh_intent::standard::read_report(value);
    if let Ok(report) = &report {
        assert!(mesh_intent::standard::report(report).is_ok());
    }
    intent.is_ok() || report.is_ok()
}

fn secrets(input: &[u8]) -> bool {
    let Some(written) = text(input).and_then(|text| Written::yaml(text).ok()) else { return false };
    let value = written.clone().into_json();
    let _ = (mesh_intent::secret::redact_json(&value), mesh_intent::secret::redact_contexts(&value));
    let Ok(intent) = json::from_written::<Intent>(INTENT, &written) else { return false };
    let redacted = mesh_intent::secret::redact(intent);
    // What is redacted already stays.
    assert_eq!(mesh_intent::secret::redact(redacted.clone()), redacted);
    true
}

// ---- charts

fn archive(input: &[u8]) -> bool {
    chart::archive::read(input).is_ok_and(|files| {
        let _ = chart::structure::check(&files, None);
        true
    })
}

fn manifests(input: &[u8]) -> bool {
    let Some(Ok(read)) = text(input).map(chart::manifests::read) else { return false };
    let _ = (
        chart::manifests::images(&read),
        chart::manifests::resources(&read),
        chart::manifests::pull_secrets(&read).is_ok(),
        chart::manifests::labelled(&read, &[("a", "b")]),
        chart::ingress::check(&read).is_ok(),
    );
    true
}

fn values(input: &[u8]) -> bool {
    text(input).is_some_and(|text| chart::values_problem(text).is_none())
}

fn image(input: &[u8]) -> bool {
    let Some(Ok(image)) = text(input).map(chart::reference::Image::parse) else { return false };
    assert!(!image.host().is_empty() && !image.manifest().is_empty());
    true
}

fn docker_config(input: &[u8]) -> bool {
    text(input).is_some_and(|text| chart::manifests::docker_config(text).is_ok())
}

// ---- good input

pub(crate) fn of(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub(crate) const INTENT_YAML: &str = "id: a\nintent:\n  userLabel: DeliverComputingWorkload\n  observationPeriod: 2\n  \
    intentContexts:\n  - {contextAttribute: region, contextCondition: IS_EQUAL_TO, contextValueRange: [no, 1.10]}\n  \
    intentExpectations:\n  - expectationId: a\n    expectationVerb: DELIVER\n    \
    expectationObject: {objectType: NEMO_WORKLOAD, objectInstance: spinner@1.0.0}\n    expectationTargets:\n    \
    - {targetName: cpuUsage, targetCondition: IS_LESS_THAN, targetValueRange: 20}\n";
pub(crate) const WORKLOAD_YAML: &str = "name: on\nversion: 1.10\nkind: process\nprocess:\n  command: yes\n  \
    arguments: [1.10, 010, true, 1e3, 0x1F]\n  environment: {A: no}\nresources: {cpuMilli: 100, memoryMb: 0x40}\n\
    clusterSelector: &s {zone: no}\nreplicas: 2\n";
const ANOMALY_YAML: &str = "at: 2027-01-31T12:00:00+05:30\nsince: 2016-12-31T23:59:60Z\n";

fn yaml_texts() -> Vec<Vec<u8>> {
    let inner = INTENT_YAML.replacen("id: a\nintent:\n", "", 1).replace("\n  ", "\n");
    let mut all = of(&[INTENT_YAML, WORKLOAD_YAML, ANOMALY_YAML, "a: &a [1]\nb: *a\nc: {<<: {x: 1}}\n---\n- ~\n"]);
    all.push(inner.trim_start().as_bytes().to_vec());
    all.extend(json_texts());
    all
}

fn json_texts() -> Vec<Vec<u8>> {
    let mut all = vec![br#"{"a": [1, -2.50, 1e3, true, null, "\u00fc\ud83d\ude00"], "b": {"c": {}}}"#.to_vec()];
    for text in [WORKLOAD_YAML, ANOMALY_YAML] {
        all.extend(Written::yaml(text).map(|read| read.into_json().to_string().into_bytes()));
    }
    all.extend(Written::yaml(INTENT_YAML).map(|read| read.into_json()["intent"].to_string().into_bytes()));
    all
}

fn commands() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> =
        json_texts().iter().map(|json| [b"{\"intent\": ", json.as_slice(), b"}"].concat()).collect();
    let intent = Written::yaml(INTENT_YAML).ok().and_then(|mut read| read.take(&["intent"]).ok().flatten());
    let intent = intent.and_then(|written| json::from_written::<Intent>(INTENT, &written).ok());
    all.push(SubmitIntent { owner: "local".into(), intent_id: "i".into(), intent }.encode_to_vec());
    all
}

pub(crate) fn bodies() -> Vec<Vec<u8>> {
    let events = contract().events.iter().enumerate();
    let submit = commands().pop().unwrap_or_default();
    let mut all: Vec<Vec<u8>> = events
        .filter(|(_, event)| event.message == SubmitIntent::MESSAGE)
        .map(|(at, _)| [&[at as u8], submit.as_slice()].concat())
        .collect();
    all.extend(
        (0..=255).map(|first| vec![first, 0x0a, 1, b'a', 0x12, 2, b'b', b'c', 0x18, 7, 0x21, 0, 0, 0, 0, 0, 0, 0, 0]),
    );
    all
}

fn sample_bodies() -> Vec<Vec<u8>> {
    let sample = InstanceSample {
        cluster_id: "c".into(),
        instance_id: "i".into(),
        cpu_milli: 1.5,
        at: Some(Timestamp::from_millis(1)),
        ..InstanceSample::default()
    };
    let packed = Packed { cluster_id: "c".into(), samples: vec![sample.clone(), sample.clone()] };
    vec![sample.encode_to_vec(), packed.encode_to_vec()]
}

fn times() -> Vec<Vec<u8>> {
    of(&[
        "2027-01-31T12:00:00Z",
        "2027-01-31T12:00:00.123456789+05:30",
        "2016-12-31T23:59:60Z",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999999Z",
        "2024-02-29t00:00:00z",
    ])
}

fn subjects() -> Vec<Vec<u8>> {
    contract().events.iter().map(|event| event.subject.replace(['{', '}'], "").into_bytes()).collect()
}

fn conditions() -> Vec<Vec<u8>> {
    of(&[
        "IS_LESS_THAN 20",
        "IS_WITHIN_RANGE [1, 2.5]",
        "IS_ONE_OF [1,2,3]",
        "IS_EQUAL_TO \"1.10\"",
        "IS_GREATER_THAN 1e3",
    ])
}

fn goal_texts() -> Vec<Vec<u8>> {
    of(&[
        "topology_template:\n  node_templates:\n    a:\n      properties:\n        work_core_seconds: 1e1\n        \
         memory_bytes: 100\n        accelerators: [U50]\n        \
         intent: {Application_Performance: {Total_Execution_Time: '<= 200 ms'}}\n",
        "a: {intent: {x: {Execution_Time: minimum, Energy_Consumption: '< 1.5 kJ'}}, parallelism: 2}\n",
    ])
}

fn archives() -> Vec<Vec<u8>> {
    let files = [
        ("Chart.yaml", "apiVersion: v2\nname: a\nversion: 1.0.0\n"),
        ("values.yaml", "a: 1\n"),
        ("templates/pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n"),
    ];
    let files = files.map(|(name, text)| (name.to_owned(), Bytes::from(text)));
    chart::archive::pack("a", &files.into()).into_iter().collect()
}

fn manifest_texts() -> Vec<Vec<u8>> {
    of(&[
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  replicas: 2\n  template:\n    spec:\n      \
         initContainers: [{name: i, image: busybox, restartPolicy: Always}]\n      containers:\n      - name: c\n        \
         image: registry:5000/a/b:1.0@sha256:0123456789012345678901234567890123456789012345678901234567890123\n        \
         resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: '1', memory: 1e3}}\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n---\n\
         apiVersion: v1\nkind: Secret\ntype: kubernetes.io/dockerconfigjson\nmetadata: {name: s}\n\
         data: {.dockerconfigjson: e30=}\n",
    ])
}

fn images() -> Vec<Vec<u8>> {
    of(&[
        "nginx",
        "docker.io/library/nginx:1.25",
        "registry:5000/a/b@sha256:0123",
        "[::1]:5000/a:latest",
        "a.b/c-d_e:F",
    ])
}

fn docker_configs() -> Vec<Vec<u8>> {
    of(&[
        r#"{"auths": {"registry:5000": {"auth": "dTpw"}, "b": {"username": "u", "password": "p"}}}"#,
        r#"{"auths": {"a": {}}, "credsStore": "desktop"}"#,
    ])
}
