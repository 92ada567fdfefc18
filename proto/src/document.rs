//! The contract as documents for people and tools: AsyncAPI, JSON Schema, permissions, and one readable page.
//! A test holds the files in `schemas/` equal to what is written here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind as Type, MessageDescriptor};
use serde_json::{Map, Value as Json, json};

use crate::{
    contract::{Contract, EventSpec, Kind, ServiceSpec, StreamSpec, comment},
    json::{descriptor, embedded, is_value},
    rights::{self, Rights},
};

/// Fields without which the validator refuses a document that a person writes, by message.
const REQUIRED: &[(&str, &[&str])] = &[
    ("continuum.intent.v1.Intent", &["userLabel", "intentExpectations"]),
    ("continuum.intent.v1.IntentExpectation", &["expectationId", "expectationVerb", "expectationObject"]),
    ("continuum.intent.v1.ExpectationObject", &["objectType"]),
    ("continuum.intent.v1.ExpectationTarget", &["targetName", "targetCondition", "targetValueRange"]),
    ("continuum.workload.v1.WorkloadDocument", &["name", "version", "kind", "process"]),
    ("continuum.workload.v1.ProcessSpec", &["command"]),
];

/// Documents that people write, as `(file, message)`.
pub const WRITTEN_BY_PEOPLE: &[(&str, &str)] = &[
    ("intent.schema.json", "continuum.intent.v1.Intent"),
    ("workload.schema.json", "continuum.workload.v1.WorkloadDocument"),
];

/// Every file of `schemas/` that the contract gives, by name.
pub fn files(contract: &Contract) -> BTreeMap<String, String> {
    let pretty = |value: &Json| format!("{value:#}\n");
    let mut files = BTreeMap::from([
        ("asyncapi.json".to_owned(), pretty(&asyncapi(contract))),
        ("permissions.json".to_owned(), pretty(&permissions(contract))),
        ("bus.md".to_owned(), bus_page(contract)),
    ]);
    for (file, message) in WRITTEN_BY_PEOPLE {
        if let Some(schema) = json_schema(message) {
            files.insert((*file).to_owned(), pretty(&schema));
        }
    }
    files
}

/// The JSON Schema (draft 2020-12) of a document that a person writes, in camelCase; `None` if there is no such message.
/// Numbers and booleans are also allowed where text is asked for, as the reader takes them.
pub fn json_schema(message: &str) -> Option<Json> {
    let root = descriptor(message).ok()?;
    let mut schemas = Schemas { people: true, at: "#/$defs/", done: BTreeMap::new() };
    let Json::Object(body) = schemas.object(&root) else { return None };
    schemas.done.remove(root.full_name());
    let mut schema = Map::from_iter([
        ("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema")),
        ("title".to_owned(), json!(root.name())),
    ]);
    schema.extend(body);
    if !schemas.done.is_empty() {
        schema.insert("$defs".to_owned(), Json::Object(Map::from_iter(schemas.done)));
    }
    Some(Json::Object(schema))
}

/// The schemas of messages and of all that they hold, by full name, referring to each other below `at`. For people's
/// documents (`people`) with what the reader is lenient about, else as they are written.
pub fn schemas(messages: &[&str], at: &'static str, people: bool) -> BTreeMap<String, Json> {
    let mut schemas = Schemas { people, at, done: BTreeMap::new() };
    for message in messages.iter().filter_map(|name| descriptor(name).ok()) {
        schemas.refer(&message);
    }
    schemas.done
}

/// Schemas of messages, each written once and referred to.
struct Schemas {
    /// For people's documents: what the reader is lenient about is allowed, what the validator misses is required.
    people: bool,
    /// Where the schemas will stand.
    at: &'static str,
    done: BTreeMap<String, Json>,
}

impl Schemas {
    fn refer(&mut self, message: &MessageDescriptor) -> Json {
        let name = message.full_name().to_owned();
        if !self.done.contains_key(&name) {
            // Before its fields are written, so that a message that holds itself ends.
            self.done.insert(name.clone(), Json::Null);
            let schema = self.object(message);
            self.done.insert(name.clone(), schema);
        }
        json!({"$ref": format!("{}{name}", self.at)})
    }

    fn object(&mut self, message: &MessageDescriptor) -> Json {
        let mut properties = Map::new();
        for field in message.fields() {
            let mut schema = self.field(&field);
            let text = comment(message.parent_file_descriptor_proto(), field.path());
            if let (Json::Object(schema), false) = (&mut schema, text.is_empty()) {
                schema.insert("description".to_owned(), json!(text));
            }
            properties.insert(field.json_name().to_owned(), schema);
        }
        let mut schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
        let text = comment(message.parent_file_descriptor_proto(), message.path());
        if !text.is_empty() {
            schema["description"] = json!(text);
        }
        let required = REQUIRED.iter().find(|(name, _)| self.people && *name == message.full_name());
        if let Some((_, fields)) = required {
            schema["required"] = json!(fields);
        }
        schema
    }

    fn field(&mut self, field: &FieldDescriptor) -> Json {
        if let (true, Type::Message(entry)) = (field.is_map(), field.kind()) {
            let value = self.one(&entry.map_entry_value_field());
            return json!({"type": "object", "additionalProperties": value});
        }
        let one = self.one(field);
        if field.is_list() { json!({"type": "array", "items": one}) } else { one }
    }

    fn one(&mut self, field: &FieldDescriptor) -> Json {
        match field.kind() {
            Type::Double | Type::Float => json!({"type": "number"}),
            Type::Bool => json!({"type": "boolean"}),
            Type::Int32 | Type::Sint32 | Type::Sfixed32 => {
                json!({"type": "integer", "minimum": i32::MIN, "maximum": i32::MAX})
            }
            Type::Uint32 | Type::Fixed32 => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
            Type::Int64 | Type::Sint64 | Type::Sfixed64 => json!({"type": "integer"}),
            Type::Uint64 | Type::Fixed64 => json!({"type": "integer", "minimum": 0}),
            Type::String if self.people && is_value(field) => {
                json!({"type": ["string", "number", "boolean", "array", "object"]})
            }
            Type::String if is_value(field) => json!({"type": ["string", "array", "object"]}),
            Type::String if self.people => json!({"type": ["string", "number", "boolean"]}),
            Type::String => json!({"type": "string"}),
            Type::Bytes => match embedded(field).and_then(|name| descriptor(&name).ok()) {
                Some(inner) => self.refer(&inner),
                None => json!({"type": "string", "contentEncoding": "base64"}),
            },
            Type::Enum(values) => enum_schema(&values),
            Type::Message(inner) if inner.full_name() == "google.protobuf.Timestamp" => {
                json!({"type": "string", "format": "date-time"})
            }
            Type::Message(inner) => self.refer(&inner),
        }
    }
}

fn enum_schema(values: &EnumDescriptor) -> Json {
    json!({"type": "string", "enum": values.values().map(|v| v.name().to_owned()).collect::<Vec<_>>()})
}

/// The bus as an AsyncAPI 3.0 document.
pub fn asyncapi(contract: &Contract) -> Json {
    let mut schemas = Schemas { people: false, at: "#/components/schemas/", done: BTreeMap::new() };
    let (mut channels, mut messages, mut operations) = (Map::new(), Map::new(), Map::new());
    for event in &contract.events {
        let id = channel_id(event);
        let name = &event.message;
        let parameters: Map<String, Json> = event
            .keys
            .iter()
            .map(|k| (k.clone(), json!({"description": "One token of [A-Za-z0-9_-]{1,64}."})))
            .collect();
        let mut channel = json!({
            "address": event.subject,
            "description": event.doc,
            "messages": {name: {"$ref": format!("#/components/messages/{name}")}},
            "x-stream": event.stream,
        });
        if !parameters.is_empty() {
            channel["parameters"] = Json::Object(parameters);
        }
        if contract.stream(&event.stream).is_some_and(StreamSpec::has_write_prefix) {
            channel["x-published-on"] = json!(format!("{}{}", crate::contract::WRITE_PREFIX, event.subject));
        }
        channels.insert(id, channel);
        let Ok(found) = descriptor(name) else { continue };
        messages.insert(
            name.clone(),
            json!({
                "name": name,
                "title": found.name(),
                "summary": event.doc,
                "contentType": "application/protobuf",
                "headers": {"$ref": "#/components/schemas/CloudEvents"},
                "payload": schemas.refer(&found),
            }),
        );
    }
    let mut operation = |who: &str, does: &str, action: &str, event: &EventSpec| {
        let (channel, message) = (channel_id(event), &event.message);
        operations.insert(
            format!("{who}.{does}.{channel}"),
            json!({
                "action": action,
                "channel": {"$ref": format!("#/channels/{channel}")},
                "messages": [{"$ref": format!("#/channels/{channel}/messages/{message}")}],
                "tags": [{"name": who}],
            }),
        );
    };
    for service in &contract.services {
        for event in rights::writes(contract, service) {
            operation(&service.name, "sends", "send", event);
        }
        for event in heard(contract, service) {
            operation(&service.name, "receives", "receive", event);
        }
    }
    for event in rights::peoples_commands(contract) {
        operation(rights::PERSON, "sends", "send", event);
    }
    schemas.done.insert("CloudEvents".to_owned(), cloud_events());
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Continuum",
            "version": "1.0.0",
            "description": "Every message on the bus. Bodies are protobuf; commands may also be its JSON mapping, which \
                the schemas here describe. Facts are published behind `w.` and read where the channel says.",
        },
        "defaultContentType": "application/protobuf",
        "servers": {"nats": {"host": "127.0.0.1:4222", "protocol": "nats"}},
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": Map::from_iter(schemas.done)},
    })
}

fn cloud_events() -> Json {
    json!({
        "type": "object",
        "description": "CloudEvents attributes in binary mode, as NATS headers. Optional on commands.",
        "properties": {
            "ce-id": {"type": "string", "description": "`<stream>:<sequence>` when absent."},
            "ce-type": {"type": "string", "description": "Full protobuf name of the body."},
            "ce-source": {"type": "string", "description": "Who published it."},
            "ce-time": {"type": "string", "format": "date-time", "description": "When what it says happened."},
            "ce-specversion": {"type": "string", "const": "1.0"},
            "ce-datacontenttype": {"type": "string", "enum": ["application/protobuf", "application/json"], "description": "When absent: JSON if the body starts with `{`, else protobuf."},
            "traceparent": {"type": "string", "description": "W3C trace context."},
            "mesh-cause": {"type": "string", "description": "The message that caused it, as `<stream>:<sequence>:<id>`."},
        },
    })
}

/// `intent.submitted.v1.{owner}.{intent_id}` -> `intent-submitted-v1`.
fn channel_id(event: &EventSpec) -> String {
    event.subject.split('.').filter(|t| !t.starts_with('{')).collect::<Vec<_>>().join("-")
}

/// What a service hears: its deciders' inputs, and everything in the streams it tails or folds a World from.
fn heard<'a>(contract: &'a Contract, service: &'a ServiceSpec) -> Vec<&'a EventSpec> {
    let inputs: BTreeSet<&String> = service.deciders.iter().flat_map(|d| &d.inputs).collect();
    let tailed: BTreeSet<&String> =
        service.tails.iter().chain(service.deciders.iter().flat_map(|d| &d.world)).collect();
    contract.events.iter().filter(|e| inputs.contains(&e.message) || tailed.contains(&e.stream)).collect()
}

/// What each identity may publish and subscribe to; everything else is denied.
pub fn permissions(contract: &Contract) -> Json {
    let entry = |rights: Rights| {
        let entry = json!({"account": rights.account, "publish": rights.publish, "subscribe": rights.subscribe});
        (rights.identity, entry)
    };
    Json::Object(rights::all(contract).into_iter().map(entry).collect())
}

/// The whole bus on one page, in Markdown.
pub fn bus_page(contract: &Contract) -> String {
    let mut page = String::from(
        "# The bus\n\nWritten from `proto/`, the only place where a subject is defined; \
         `UPDATE_SCHEMAS=1 cargo test -p mesh-proto` writes it again.\n\n",
    );
    page.push_str(
        "## Streams\n\n| stream | holds | subjects | written on | limit | what for |\n|---|---|---|---|---|---|\n",
    );
    for stream in &contract.streams {
        let _ = writeln!(
            page,
            "| `{}` | {} | `{}` | `{}` | {} MiB | {} |",
            stream.name,
            kept(stream.kind),
            stream.subject,
            stream.ingest_subject(),
            stream.max_bytes >> 20,
            stream.doc
        );
    }
    page.push_str("\n## Events\n");
    for stream in &contract.streams {
        let events: Vec<&EventSpec> = contract.events.iter().filter(|e| e.stream == stream.name).collect();
        if !events.is_empty() {
            let _ = writeln!(page, "\n### {}\n\n{}", stream.name, stream.doc);
        }
        for event in events {
            event_section(&mut page, contract, event);
        }
    }
    page.push_str("\n## Types\n\nWhat the events hold.\n");
    types(&mut page, contract);
    page.push_str("\n## Services\n");
    for service in &contract.services {
        service_section(&mut page, contract, service);
    }
    let _ = writeln!(page, "\n### All services in one process\n\nMay do what any of them may.\n");
    rights_list(&mut page, &rights::of_joint(contract));
    let _ = writeln!(page, "\n### People\n\nSend commands, read and hear everything, ask services how they are.\n");
    rights_list(&mut page, &rights::of_people(contract));
    page
}

fn kept(kind: Kind) -> &'static str {
    match kind {
        Kind::Facts => "facts, for ever",
        Kind::Commands => "commands, 30 days",
        Kind::Derived => "derived facts, 7 days",
        Kind::Samples => "samples, 1 hour",
        Kind::Notices => "notices, 30 days",
    }
}

fn event_section(page: &mut String, contract: &Contract, event: &EventSpec) {
    let name = event.message.rsplit('.').next().unwrap_or_default();
    let _ = writeln!(page, "\n#### {name}\n\n`{}`: {}\n", event.subject, event.doc);
    let named = |list: Vec<&str>| if list.is_empty() { "nobody".to_owned() } else { list.join(", ") };
    let writes = |s: &&ServiceSpec| rights::writes(contract, s).iter().any(|w| w.message == event.message);
    let mut writers: Vec<&str> = contract.services.iter().filter(writes).map(|s| s.name.as_str()).collect();
    if rights::peoples_commands(contract).any(|c| c.message == event.message) {
        writers.push("people");
    }
    if contract.stream(&event.stream).is_some_and(|s| s.kind == Kind::Notices) {
        writers.push("every service");
    }
    let reads = |s: &&ServiceSpec| heard(contract, s).iter().any(|h| h.message == event.message);
    let readers: Vec<&str> = contract.services.iter().filter(reads).map(|s| s.name.as_str()).collect();
    let _ = writeln!(page, "Written by {}; read by {}. Type `{}`.\n", named(writers), named(readers), event.message);
    if let Ok(message) = descriptor(&event.message) {
        fields(page, &message, &event.keys);
    }
}

fn fields(page: &mut String, message: &MessageDescriptor, keys: &[String]) {
    page.push_str("| field | type | meaning |\n|---|---|---|\n");
    for field in message.fields() {
        let text = comment(message.parent_file_descriptor_proto(), field.path());
        let key = if keys.iter().any(|k| k == field.name()) { "Key. " } else { "" };
        let text = format!("{key}{}", text.replace('|', "\\|"));
        let _ = writeln!(page, "| `{}` | {} | {} |", field.json_name(), type_name(&field), text.trim());
    }
}

/// Every message and enum that events hold, directly or deeper, in order of their names.
fn types(page: &mut String, contract: &Contract) {
    let mut messages: BTreeMap<String, MessageDescriptor> = BTreeMap::new();
    let mut enums: BTreeMap<String, EnumDescriptor> = BTreeMap::new();
    let mut open: Vec<MessageDescriptor> = contract.events.iter().filter_map(|e| descriptor(&e.message).ok()).collect();
    while let Some(message) = open.pop() {
        for field in message.fields() {
            let field = match field.kind() {
                Type::Message(entry) if field.is_map() => entry.map_entry_value_field(),
                _ => field,
            };
            let inner = match field.kind() {
                Type::Message(inner) if inner.full_name().starts_with("continuum.") => Some(inner),
                Type::Bytes => embedded(&field).and_then(|name| descriptor(&name).ok()),
                Type::Enum(values) => {
                    enums.insert(values.full_name().to_owned(), values);
                    None
                }
                _ => None,
            };
            if let Some(inner) = inner
                && messages.insert(inner.full_name().to_owned(), inner.clone()).is_none()
            {
                open.push(inner);
            }
        }
    }
    for message in messages.values() {
        let text = comment(message.parent_file_descriptor_proto(), message.path());
        let _ = writeln!(page, "\n### {}\n\n{text} (`{}`)\n", message.name(), message.full_name());
        fields(page, message, &[]);
    }
    for values in enums.values() {
        let file = values.parent_file();
        let text = comment(file.file_descriptor_proto(), values.path());
        let _ = writeln!(
            page,
            "\n### {}\n\n{text} (`{}`)\n\n| value | meaning |\n|---|---|",
            values.name(),
            values.full_name()
        );
        for value in values.values() {
            let text = comment(file.file_descriptor_proto(), value.path());
            let _ = writeln!(page, "| `{}` | {} |", value.name(), text.replace('|', "\\|"));
        }
    }
}

fn type_name(field: &FieldDescriptor) -> String {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    if let (true, Type::Message(entry)) = (field.is_map(), field.kind()) {
        return format!("map of {}", type_name(&entry.map_entry_value_field()));
    }
    let one = match field.kind() {
        Type::Message(inner) => last(inner.full_name()),
        Type::Enum(values) => last(values.full_name()),
        Type::Bytes => embedded(field).map_or("bytes".to_owned(), |name| format!("{} as it came", last(&name))),
        other => format!("{other:?}").to_lowercase(),
    };
    if field.is_list() { format!("list of {one}") } else { one }
}

fn service_section(page: &mut String, contract: &Contract, service: &ServiceSpec) {
    let _ = writeln!(page, "\n### {}\n\n{}\n", service.name, service.doc);
    for decider in &service.deciders {
        let inputs: Vec<String> = decider
            .inputs
            .iter()
            .map(|i| i.split('.').skip(1).filter(|t| *t != "v1").collect::<Vec<_>>().join("."))
            .collect();
        let _ = writeln!(
            page,
            "- decides `{}` (area `{}`) on {}{}",
            decider.name,
            decider.area,
            inputs.join(", "),
            if decider.world.is_empty() { String::new() } else { format!("; knows {}", decider.world.join(", ")) }
        );
    }
    for (what, list) in [
        ("tails", &service.tails),
        ("also publishes", &service.publishes),
        ("passes on for people", &service.relays),
        ("announces", &service.announces),
        ("writes samples on", &service.samples_out),
        ("reads samples of", &service.samples_in),
        ("answers at the edge on", &service.answers),
    ] {
        if !list.is_empty() {
            let _ = writeln!(page, "- {what} {}", list.iter().map(|t| format!("`{t}`")).collect::<Vec<_>>().join(", "));
        }
    }
    page.push('\n');
    rights_list(page, &rights::of_service(contract, service));
}

fn rights_list(page: &mut String, rights: &Rights) {
    let _ = writeln!(page, "Account `{}`, identity `{}`.\n", rights.account, rights.identity);
    for (may, subjects) in [("May publish", &rights.publish), ("May subscribe to", &rights.subscribe)] {
        let _ = writeln!(page, "{may}:\n\n```\n{}\n```\n", subjects.iter().cloned().collect::<Vec<_>>().join("\n"));
    }
}
