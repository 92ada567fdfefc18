//! Nothing that a person asks for by a command is dropped silently: each member of each command of the contract that people
//! may send, at any depth, is acted on or refused by the decider that takes it; and so is one that nobody knows, in protobuf
//! and in JSON.
#![cfg(test)]
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;

use bytes::Bytes;
use identity::domain::identities::{ACCOUNT, SESSION};
use integration_tests::sim::{areas, check};
use mesh_core::{Decider, Envelope, Key, Outgoing, ReadModel as _, Stored, Trigger};
use mesh_proto::{
    AnyEvent, EventSet as _, FactSet as _, Timestamp,
    cluster::ClusterRegistered,
    contract,
    contract::EventSpec,
    json, rights,
    validation::{IntentAccepted, WorkloadRejected},
    workload::{ChartSpec, InstanceChanged, InstancePhase, WorkloadDocument, WorkloadRegistered},
};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value, prost::Message as _};
use secure_storage::domain::storages::BUCKET_REALM;
use serde_json::{Value as Json, json};

/// When everything happens.
const NOW_S: i64 = 1_800_000_000;

/// A message on its subject. Owners are `local`, every other key is the name of what it is of.
fn stored(event: &EventSpec, body: impl Into<Bytes>, sequence: u64) -> Stored {
    let key = |token: &str| match token {
        "{owner}" => "local".to_owned(),
        "{realm}" if event.area == "storage" => BUCKET_REALM.to_owned(),
        "{realm}" if event.message.ends_with("Session") => SESSION.to_owned(),
        "{realm}" => ACCOUNT.to_owned(),
        "{ledger}" => ledger::MAIN.to_owned(),
        "{instance_id}" => INSTANCE.to_owned(),
        "{sha256}" => SHA256.to_owned(),
        token => token.trim_matches(['{', '}']).to_owned(),
    };
    let at = Timestamp { seconds: NOW_S, nanos: 0 };
    let outgoing = Outgoing {
        id: format!("command-{sequence}"),
        message: event.message.clone(),
        stream: event.stream.clone(),
        subject: event.subject.split('.').map(key).collect::<Vec<_>>().join("."),
        time: at,
        cause: None,
        traceparent: None,
        world: vec![],
        body: body.into(),
    };
    outgoing.stored("person", sequence, at)
}

const INSTANCE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
/// Of the two bytes that a gzip file begins with.
const SHA256: &str = "ee98dc6af27a9f1c8cc4aaa2fd05b5f6e7c98f51390253a5263b0d096c3510fe";
const ARCHIVE: &str = "H4s=";
const HASH: &str = "$argon2id$v=19$m=1,t=1,p=1$c2FsdHNhbHQ$aGFzaA";
const NETWORK: &str = include_str!("../../examples/network/l2sm.yaml");

/// A decider with what it knows and holds.
struct Held<'a, D: Decider> {
    decider: &'a D,
    world: D::ReadModel,
    states: BTreeMap<Key, D::State>,
    sequence: u64,
}

impl<D: Decider> Held<'_, D> {
    /// A fact of this decider, or of another service.
    fn happened(&mut self, fact: &dyn AnyEvent) {
        self.sequence += 1;
        let at = Timestamp { seconds: NOW_S, nanos: 0 };
        let stored = Outgoing::new(fact, "fact", at).unwrap().stored("service", self.sequence, at);
        self.world.apply(&stored);
        if D::Input::messages().contains(&fact.message()) {
            self.take(&stored).unwrap();
        }
        if fact.area() == D::Fact::AREA {
            let fact = D::Fact::decode(fact.message(), &stored.body).unwrap();
            let key = Key::new(fact.any().keys());
            let state = self.states.remove(&key).unwrap_or_else(|| self.decider.initial());
            self.states.insert(key, self.decider.evolve(state, &fact, at));
        }
    }

    /// Takes a message in: what is decided, or why nothing is.
    fn ask(&mut self, event: &EventSpec, body: impl Into<Bytes>) -> Result<String, String> {
        self.sequence += 1;
        self.take(&stored(event, body, self.sequence))
    }

    fn take(&mut self, stored: &Stored) -> Result<String, String> {
        let (body, input) = stored.input::<D::Input>().map_err(|error| error.to_string())?;
        let (mut said, mut refused) = (vec![], vec![]);
        for key in self.decider.concerns(&input, &self.world) {
            let state = self.states.remove(&key).unwrap_or_else(|| self.decider.initial());
            let trigger = Trigger::Event(input.clone());
            let envelope = Envelope {
                trigger,
                at: stored.time,
                id: stored.id.clone(),
                sequence: self.sequence,
                body: body.clone(),
            };
            let decided = self.decider.decide(&key, &state, &self.world, &envelope);
            let state = match decided {
                Err(refusal) => {
                    refused.push(format!("{refusal:?}"));
                    state
                }
                Ok(facts) => facts.iter().fold(state, |state, fact| {
                    let outgoing = Outgoing::new(fact.any(), "fact", stored.time).unwrap();
                    self.world.apply(&outgoing.stored("decider", self.sequence, stored.time));
                    said.push(format!("{fact:?}"));
                    self.decider.evolve(state, fact, stored.time)
                }),
            };
            self.states.insert(key, state);
        }
        if refused.is_empty() { Ok(said.join("; ")) } else { Err(refused.join("; ")) }
    }
}

/// What was tried, and what went unseen.
#[derive(Default)]
struct Tally {
    commands: usize,
    members: usize,
    unknown: usize,
    silent: Vec<String>,
}

/// What has happened before a command.
enum Before {
    Asked(&'static str, Json),
    Happened(Box<dyn AnyEvent>),
}

use Before::{Asked, Happened};

fn registered(version: &str) -> Before {
    let document = WorkloadDocument {
        name: "name".into(),
        version: version.into(),
        kind: "chart".into(),
        chart: Some(ChartSpec::default()),
        ..WorkloadDocument::default()
    };
    let document = document.encode_to_vec().into();
    let (owner, name) = ("local".to_owned(), "name".to_owned());
    Happened(Box::new(WorkloadRegistered { owner, name, version: version.into(), document }))
}

/// What has happened before a command, and the command as it is done then.
fn scene(command: &str) -> (Vec<Before>, Json) {
    let intent = || {
        json!({"userLabel": "DeliverComputingWorkload", "intentExpectations": [{"expectationId": "a",
            "expectationVerb": "DELIVER", "expectationObject": {"objectType": "NEMO_WORKLOAD", "objectInstance": "a@1.0.0"},
            "expectationTargets": [{"targetName": "cpuUsage", "targetCondition": "IS_LESS_THAN", "targetValueRange": 20}]}]})
    };
    let submitted = || Asked("SubmitIntent", json!({"intent": intent()}));
    let accepted = |version| {
        let (owner, intent_id) = ("local".to_owned(), "intent_id".to_owned());
        Happened(Box::new(IntentAccepted { owner, intent_id, version }))
    };
    let mut other = intent();
    other["observationPeriod"] = json!(7);
    let updated = || Asked("UpdateIntent", json!({"intent": other}));
    let rejected = || {
        let (owner, name, version) = ("local".to_owned(), "name".to_owned(), "1.0.0".to_owned());
        Happened(Box::new(WorkloadRejected { owner, name, version, ..WorkloadRejected::default() }))
    };
    let document = |kind: &str| json!({"document": {"name": "name", "version": "1.0.0", "kind": kind, kind: {}}});
    let run =
        || vec![registered("1.0.0"), registered("1.1.0"), Asked("RunInstance", json!({"workload": "name@1.0.0"}))];
    let upgraded = || Asked("UpgradeInstance", json!({"workload": "name@1.1.0"}));
    let changed = |phase: InstancePhase| {
        let changed = InstanceChanged {
            owner: "local".into(),
            instance_id: INSTANCE.into(),
            cluster_id: "edge".into(),
            generation: 1,
            ..Default::default()
        };
        Happened(Box::new(InstanceChanged { phase: phase.into(), replicas_running: 1, replicas_wanted: 1, ..changed }))
    };
    let account = || Asked("DefineAccount", json!({"passwordHash": HASH, "roles": ["owner"]}));
    let expires = "2027-01-15T09:00:00Z";
    let opened = || json!({"account": "name", "clientId": "continuum", "tokenHash": "t", "expires": expires});
    let location = || json!({"description": {"kind": "cloud", "url": "dir:location"}});
    let policy = || json!({"definition": {"backends": ["location"], "redundancy": {"scheme": "RS"}}});
    let stores = || vec![Asked("RegisterLocation", location())];
    let bucket = || json!({"owner": "local", "policy": "policy"});
    let arranged = || [stores(), vec![Asked("DefinePolicy", policy())]].into_iter().flatten().collect::<Vec<_>>();
    let made = || [arranged(), vec![Asked("CreateBucket", bucket())]].into_iter().flatten().collect::<Vec<_>>();
    let cluster = || {
        let cluster_id = "cluster_id".to_owned();
        Happened(Box::new(ClusterRegistered { cluster_id, ..ClusterRegistered::default() }))
    };
    let setting = || {
        let adaptive = json!({"intervalMinMs": 100, "intervalMaxMs": 1000, "errorPercent": 1});
        json!({"setting": {"selector": {"entityKind": "node"}, "adaptive": adaptive}})
    };
    let condition =
        || json!({"condition": {"entityKind": "node", "metric": "system.cpu.busy", "side": "ABOVE", "threshold": 0.9}});
    let subscribed = || json!({"callback": "https://a.example/"});
    match command {
        "SubmitIntent" => (vec![], json!({"intent": intent()})),
        "UpdateIntent" => (vec![submitted(), accepted(1)], json!({"intent": other})),
        "SuspendIntent" | "TerminateIntent" => (vec![submitted(), accepted(1)], json!({})),
        "ResumeIntent" => (vec![submitted(), accepted(1), Asked("SuspendIntent", json!({}))], json!({})),
        "RollbackIntent" => (vec![submitted(), accepted(1), updated(), accepted(2)], json!({"version": 1})),
        "RegisterWorkload" => (vec![], document("process")),
        "DropWorkload" => {
            (vec![Asked("RegisterWorkload", document("process")), rejected()], json!({"version": "1.0.0"}))
        }
        "AttachChart" => {
            (vec![Asked("RegisterWorkload", document("chart"))], json!({"version": "1.0.0", "sha256": SHA256}))
        }
        "UploadChart" => (vec![], json!({"archive": ARCHIVE})),
        "RunInstance" => (vec![registered("1.0.0")], json!({"workload": "name@1.0.0"})),
        "StopInstance" => (run(), json!({})),
        "UpgradeInstance" => (run(), json!({"workload": "name@1.1.0"})),
        "RollbackInstance" => ([run(), vec![upgraded()]].into_iter().flatten().collect(), json!({"revision": 1})),
        "MigrateInstance" => {
            ([run(), vec![changed(InstancePhase::Running)]].into_iter().flatten().collect(), json!({}))
        }
        "DeleteInstance" => {
            let stopped = vec![Asked("StopInstance", json!({})), changed(InstancePhase::Stopped)];
            ([run(), stopped].into_iter().flatten().collect(), json!({}))
        }
        "TopUp" => (vec![registered("1.0.0")], json!({"account": "service/local/name", "amount": 7})),
        "SetTariff" => (vec![], json!({"tariff": {"formula": "FAIR", "feeRate": 1, "workloadGrant": 9}})),
        "SetRegion" => (vec![], json!({"region": {"name": "madrid", "cpuBaseRate": 7, "memoryBaseRate": 7}})),
        "DefineAccount" => (vec![account()], json!({"passwordHash": HASH, "roles": ["owner"]})),
        "RemoveAccount" => (vec![account()], json!({})),
        "OpenSession" => (vec![account()], opened()),
        "RenewSession" => {
            let session = vec![account(), Asked("OpenSession", opened())];
            (session, json!({"presentedHash": "t", "nextHash": "n", "expires": expires}))
        }
        "CloseSession" => (vec![account(), Asked("OpenSession", opened())], json!({})),
        "SubmitNetworkIntent" => (vec![], json!({"intent": NETWORK})),
        "WithdrawNetworkIntent" => (vec![Asked("SubmitNetworkIntent", json!({"intent": NETWORK}))], json!({})),
        "SetRemedyPolicy" => (vec![], json!({"policy": {"rules": [{"metric": "cpu_milli", "actions": ["RESTART"]}]}})),
        "RegisterLocation" => (vec![], location()),
        "RetireLocation" => (stores(), json!({})),
        "DefinePolicy" => (stores(), policy()),
        "DropPolicy" => (arranged(), json!({})),
        "CreateBucket" => (arranged(), bucket()),
        "ConfigureBucket" => (made(), json!({"owner": "local", "settings": {"versioning": "Enabled"}})),
        "DeleteBucket" => (made(), json!({"owner": "local"})),
        "RequestScrub" => (vec![], json!({})),
        "SetMeasurement" => (vec![cluster()], setting()),
        "UnsetMeasurement" => (vec![cluster(), Asked("SetMeasurement", setting())], json!({})),
        "DefineCondition" => (vec![], condition()),
        "DropCondition" => (vec![Asked("DefineCondition", condition())], json!({})),
        "Subscribe" => (vec![], subscribed()),
        "Unsubscribe" => (vec![Asked("Subscribe", subscribed())], json!({})),
        other => panic!("{other} is new: say here what it takes to be done"),
    }
}

fn event_of(name: &str) -> &'static EventSpec {
    let is = |event: &&EventSpec| event.message.rsplit('.').next() == Some(name);
    contract().events.iter().find(is).unwrap_or_else(|| panic!("no message {name}"))
}

fn try_on<D: Decider>(decider: &D, event: &EventSpec, tally: &mut Tally) {
    let name = event.message.rsplit('.').next().unwrap();
    let (before, good) = scene(name);
    let outcome = |body: Vec<u8>| {
        let mut held = Held { decider, world: D::ReadModel::default(), states: BTreeMap::new(), sequence: 0 };
        for one in &before {
            match one {
                Happened(fact) => held.happened(&**fact),
                Asked(name, body) => {
                    let event = event_of(name);
                    let body = json::value_to_protobuf(&event.message, body.clone()).unwrap();
                    held.ask(event, body).map_err(|refused| format!("{name} before: {refused}"))?;
                }
            }
        }
        held.ask(event, body)
    };
    let descriptor = json::descriptor(&event.message).unwrap();
    let body = json::value_to_protobuf(&event.message, good.clone()).unwrap();
    let base = DynamicMessage::decode(descriptor.clone(), body.as_slice()).unwrap();
    let has_more = descriptor.fields().count() > event.keys.len();
    if let Some(refused) = outcome(body.clone()).err().filter(|_| has_more) {
        tally.silent.push(format!("{name}: the scene is wrong: {refused}"));
    }
    tally.commands += 1;
    visit(&descriptor, &base, &[], &outcome, name, tally);

    // What nobody knows.
    let more = [&body[..], &[0xf8, 0x3f, 7]].concat();
    let refused = outcome(more).expect_err(name);
    tally.unknown += 1;
    if !refused.contains("field 1023 is not known here") {
        tally.silent.push(format!("{name}: field 1023: {refused}"));
    }
    let mut with = good;
    with["notKnown"] = json!(1);
    let refused = outcome(with.to_string().into_bytes()).expect_err(name);
    tally.unknown += 1;
    if !refused.contains("notKnown: unknown field") {
        tally.silent.push(format!("{name}: notKnown: {refused}"));
    }
}

/// Sets each member below this path to two values: that something else comes of one of them shows that it is read.
fn visit(
    of: &MessageDescriptor,
    base: &DynamicMessage,
    path: &[FieldDescriptor],
    outcome: &dyn Fn(Vec<u8>) -> Result<String, String>,
    name: &str,
    tally: &mut Tally,
) {
    let without = outcome(with(base, path, None).encode_to_vec());
    for field in of.fields() {
        tally.members += 1;
        let is_seen = [false, true].into_iter().any(|second| {
            let value = sample(&field, second);
            outcome(with(base, path, Some((&field, value))).encode_to_vec()) != without
        });
        let names = path.iter().chain([&field]).map(FieldDescriptor::json_name).collect::<Vec<_>>().join(".");
        if !is_seen {
            tally.silent.push(format!("{name}: {names}: {without:?}"));
        }
        if let Kind::Message(inner) = field.kind()
            && inner.full_name().starts_with("continuum.")
            && !field.is_map()
            && !path.iter().chain([&field]).skip(1).any(|step| step.parent_message() == &inner)
        {
            visit(&inner, base, &[path, std::slice::from_ref(&field)].concat(), outcome, name, tally);
        }
    }
}

/// A message with a member set below a path; of lists, in the first item.
fn with(base: &DynamicMessage, path: &[FieldDescriptor], leaf: Option<(&FieldDescriptor, Value)>) -> DynamicMessage {
    let mut message = base.clone();
    let Some((step, rest)) = path.split_first() else {
        if let Some((field, value)) = leaf {
            message.set_field(field, value);
        }
        return message;
    };
    let Kind::Message(descriptor) = step.kind() else { panic!("{step:?} leads nowhere") };
    let now = message.get_field(step).into_owned();
    let inner = match &now {
        Value::List(items) => items.first().and_then(Value::as_message).cloned(),
        Value::Message(inner) => Some(inner.clone()),
        _ => None,
    };
    let inner = with(&inner.unwrap_or_else(|| DynamicMessage::new(descriptor)), rest, leaf);
    let value = Value::Message(inner);
    message.set_field(step, if step.is_list() { Value::List(vec![value]) } else { value });
    message
}

/// One of two values that a field can have.
fn sample(field: &FieldDescriptor, second: bool) -> Value {
    let number = 2 + u8::from(second);
    let one = |kind: &Kind| match kind {
        Kind::Bool => Value::Bool(!second),
        Kind::String => Value::String(if second { "b".into() } else { "a".into() }),
        Kind::Bytes => Value::Bytes(vec![number].into()),
        Kind::Double => Value::F64(number.into()),
        Kind::Float => Value::F32(number.into()),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number.into()),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number.into()),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(number.into()),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(number.into()),
        Kind::Enum(values) => {
            Value::EnumNumber(values.values().nth(usize::from(second) + 1).map_or(1, |value| value.number()))
        }
        Kind::Message(inner) => {
            let mut message = DynamicMessage::new(inner.clone());
            // Something is in it, so that it is not like nothing.
            if let Some(first) = inner.fields().next() {
                let value = match first.kind() {
                    Kind::Int64 => Value::I64(NOW_S + 3_600 * i64::from(number)),
                    Kind::Message(_) => return Value::Message(message),
                    _ if first.is_list() || first.is_map() => return Value::Message(message),
                    _ => sample(&first, second),
                };
                message.set_field(&first, value);
            }
            Value::Message(message)
        }
    };
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { panic!("{field:?} is no map") };
        return Value::Map([(MapKey::String("k".into()), sample(&entry.map_entry_value_field(), second))].into());
    }
    let value = one(&field.kind());
    if field.is_list() { Value::List(vec![value]) } else { value }
}

#[test]
fn every_member_of_a_persons_command_is_acted_on_or_refused() {
    let mut tally = Tally::default();
    for event in rights::peoples_commands(contract()) {
        match event.area.as_str() {
            "intent" => try_on(&check::intents(), event, &mut tally),
            "workload" => try_on(&workload_manager::domain::Workloads, event, &mut tally),
            "chart" => try_on(&workload_manager::domain::charts::Charts, event, &mut tally),
            "account" => try_on(&areas::ledger::decider(), event, &mut tally),
            "remedy" => try_on(&areas::remedies::decider(), event, &mut tally),
            "network" => try_on(&areas::networks::decider(), event, &mut tally),
            "storage" => try_on(&areas::storage::decider(), event, &mut tally),
            "identity" => try_on(&areas::identities::decider(), event, &mut tally),
            "measurement" => try_on(&collector::domain::measurements::Measurements, event, &mut tally),
            "subscription" => try_on(&areas::subscriptions::decider(), event, &mut tally),
            other => panic!("commands of {other} are taken by nobody here: add its decider"),
        }
    }
    println!("{} members of {} commands of people, and {} unknown ones", tally.members, tally.commands, tally.unknown);
    assert!(tally.silent.is_empty(), "{} are silent:\n{}", tally.silent.len(), tally.silent.join("\n"));
    assert!(tally.commands > 30 && tally.members > 250, "{} {}", tally.commands, tally.members);
}
