//! The contract as data: every stream, event and service, read from the options in the `.proto` files.
//!
//! Shared by `build.rs`, which generates typed code from it, and by the library, where it provisions
//! the bus, renders permissions and writes the documents in `schemas/`.

use prost_reflect::{DescriptorPool, DynamicMessage, EnumDescriptor, Value};

use crate::summary::Template;

/// What a stream holds; fixes its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Decided facts: conditional, atomic, without any limit but size.
    Facts,
    /// Commands; kept 30 days.
    Commands,
    /// Derived facts, kept 7 days.
    Derived,
    /// Samples, kept one hour, persisted asynchronously.
    Samples,
    /// Dead letters and notices, kept 30 days.
    Notices,
}

/// One stream of the bus.
#[derive(Clone, Debug)]
pub struct StreamSpec {
    /// Name, in capitals.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
    /// Size limit in bytes.
    pub max_bytes: i64,
    /// Subject that it stores and that readers use, for example `intent.>` or `intent.ask.>`.
    pub subject: String,
    /// Why it exists.
    pub doc: String,
}

impl StreamSpec {
    /// Subject that writers publish to: facts and derived facts go through `w.`, so that only what is stored is seen.
    pub fn ingest_subject(&self) -> String {
        if self.has_write_prefix() { format!("{WRITE_PREFIX}{}", self.subject) } else { self.subject.clone() }
    }

    /// Subject on which what is stored is heard as it is stored. Samples are repeated behind `live.`: they are published by
    /// the subject that they are read on, and what a service publishes the server passes on to no other account.
    pub fn live_subject(&self) -> String {
        if self.kind == Kind::Samples { format!("{LIVE_PREFIX}{}", self.subject) } else { self.subject.clone() }
    }

    /// Is this stream written through `w.<subject>`?
    pub fn has_write_prefix(&self) -> bool {
        matches!(self.kind, Kind::Facts | Kind::Derived)
    }

    /// May it hold conditional, atomic writes?
    pub fn is_atomic(&self) -> bool {
        matches!(self.kind, Kind::Facts | Kind::Derived | Kind::Commands)
    }
}

/// Where writers publish facts; the stream strips it on the way in.
pub const WRITE_PREFIX: &str = "w.";

/// What stands before the subjects on which stored samples are repeated.
pub const LIVE_PREFIX: &str = "live.";

/// One event: a message that travels on the bus.
#[derive(Clone, Debug)]
pub struct EventSpec {
    /// Full protobuf name, for example `continuum.intent.v1.IntentSubmitted`; also its CloudEvents type.
    pub message: String,
    /// Stream that stores it.
    pub stream: String,
    /// Subject with braced key fields.
    pub subject: String,
    /// Key fields in subject order.
    pub keys: Vec<String>,
    /// First subject token.
    pub area: String,
    /// Is it a command?
    pub command: bool,
    /// Is it the area's refusal?
    pub refusal: bool,
    /// What it means.
    pub doc: String,
    /// One line about one of them, for a person.
    pub summary: Template,
}

/// The summary of every refusal.
const REFUSED: &str = "{command} refused: {reason}; {hint}";

impl EventSpec {
    /// The subject with every key as `*`.
    pub fn filter(&self) -> String {
        self.subject.split('.').map(|t| if t.starts_with('{') { "*" } else { t }).collect::<Vec<_>>().join(".")
    }
}

/// A decider's wiring.
#[derive(Clone, Debug)]
pub struct DeciderSpec {
    /// Name, also the prefix of its durables.
    pub name: String,
    /// Area whose facts it publishes.
    pub area: String,
    /// Full names of its input events.
    pub inputs: Vec<String>,
    /// Streams of its World.
    pub world: Vec<String>,
}

/// A service's rights.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Name, also its NATS user, inbox prefix and CloudEvents source.
    pub name: String,
    /// Its deciders.
    pub deciders: Vec<DeciderSpec>,
    /// Streams it tails.
    pub tails: Vec<String>,
    /// Full names of the further events it publishes.
    pub publishes: Vec<String>,
    /// Zenoh key expressions it writes.
    pub samples_out: Vec<String>,
    /// Zenoh key expressions it reads.
    pub samples_in: Vec<String>,
    /// Zenoh key expressions on which it answers questions.
    pub answers: Vec<String>,
    /// Subjects it publishes that no stream stores and people may subscribe to.
    pub announces: Vec<String>,
    /// Full names of the commands of people that it passes on in their name.
    pub relays: Vec<String>,
    /// What it is for.
    pub doc: String,
}

/// One durable consumer, derived from a decider and one of its input streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableSpec {
    /// Name: `<decider>`; unique within its stream.
    pub name: String,
    /// Stream it reads.
    pub stream: String,
    /// Subjects it delivers, as filters.
    pub filters: Vec<String>,
}

/// The whole bus.
#[derive(Clone, Debug)]
pub struct Contract {
    /// Streams in declaration order.
    pub streams: Vec<StreamSpec>,
    /// Events in declaration order.
    pub events: Vec<EventSpec>,
    /// Services in declaration order.
    pub services: Vec<ServiceSpec>,
}

impl Contract {
    /// Reads the contract from a descriptor pool, or says what is wrong with it.
    pub fn read(pool: &DescriptorPool) -> Result<Self, String> {
        let extension = |name: &str| {
            pool.get_extension_by_name(&format!("continuum.mesh.v1.{name}")).ok_or(format!("missing extension {name}"))
        };
        let (event, stream, service) = (extension("event")?, extension("stream")?, extension("service")?);
        let mut contract = Contract { streams: vec![], events: vec![], services: vec![] };
        for value in enum_values(pool, "continuum.mesh.v1.Stream")? {
            let options = value.0.options();
            if !options.has_extension(&stream) {
                continue;
            }
            let spec = message(options.get_extension(&stream).as_ref())?;
            let name = text(&spec, "name");
            let area = name.strip_suffix("_ASK").unwrap_or(&name).to_lowercase();
            let subject = match (text(&spec, "subject"), name.ends_with("_ASK")) {
                (s, _) if !s.is_empty() => s,
                (_, true) => format!("{area}.ask.>"),
                (_, false) => format!("{area}.>"),
            };
            contract.streams.push(StreamSpec {
                kind: match number(&spec, "kind") {
                    1 => Kind::Facts,
                    2 => Kind::Commands,
                    3 => Kind::Derived,
                    4 => Kind::Samples,
                    5 => Kind::Notices,
                    other => return Err(format!("stream {name}: unknown kind {other}")),
                },
                max_bytes: number(&spec, "max_mib") * 1024 * 1024,
                subject,
                name,
                doc: value.1,
            });
        }
        for found in pool.all_messages() {
            let options = found.options();
            if !options.has_extension(&event) {
                continue;
            }
            let spec = message(options.get_extension(&event).as_ref())?;
            let subject = text(&spec, "subject");
            let tokens: Vec<&str> = subject.split('.').collect();
            let keys: Vec<String> = tokens
                .iter()
                .filter_map(|t| t.strip_prefix('{').and_then(|t| t.strip_suffix('}')))
                .map(str::to_owned)
                .collect();
            for key in &keys {
                if found.get_field_by_name(key).is_none() {
                    return Err(format!("{}: subject names a field {key} that it lacks", found.full_name()));
                }
            }
            let command = tokens.get(1) == Some(&"ask");
            let area = tokens[0].to_owned();
            let stream = format!("{}{}", area.to_uppercase(), if command { "_ASK" } else { "" });
            if !contract.streams.iter().any(|s| s.name == stream) {
                return Err(format!("{}: no stream {stream} is declared", found.full_name()));
            }
            let expected = 3 + usize::from(command);
            if tokens.len() != expected + keys.len() || !tokens[expected - 1].starts_with('v') {
                return Err(format!(
                    "{}: subject {subject} is not <area>.<fact>.v1.<keys> or <area>.ask.<verb>.v1.<keys>",
                    found.full_name()
                ));
            }
            let refusal = spec.get_field_by_name("refusal").and_then(|v| v.as_bool()).unwrap_or(false);
            let summary = if refusal { REFUSED.to_owned() } else { text(&spec, "summary") };
            let summary =
                Template::read(&summary, &found).map_err(|e| format!("{}: summary: {e}", found.full_name()))?;
            contract.events.push(EventSpec {
                message: found.full_name().to_owned(),
                stream,
                keys,
                area,
                command,
                refusal,
                doc: comment(found.parent_file_descriptor_proto(), found.path()),
                summary,
                subject,
            });
        }
        for value in enum_values(pool, "continuum.mesh.v1.Service")? {
            let options = value.0.options();
            if !options.has_extension(&service) {
                continue;
            }
            let spec = message(options.get_extension(&service).as_ref())?;
            let mut deciders = vec![];
            if let Some(list) = spec.get_field_by_name("deciders").as_deref().and_then(Value::as_list) {
                for entry in list {
                    let entry = entry.as_message().ok_or("decider is not a message")?;
                    deciders.push(DeciderSpec {
                        name: text(entry, "name"),
                        area: text(entry, "area"),
                        inputs: texts(entry, "inputs"),
                        world: texts(entry, "world"),
                    });
                }
            }
            contract.services.push(ServiceSpec {
                name: text(&spec, "name"),
                deciders,
                tails: texts(&spec, "tails"),
                publishes: texts(&spec, "publishes"),
                relays: texts(&spec, "relays"),
                samples_out: texts(&spec, "samples_out"),
                samples_in: texts(&spec, "samples_in"),
                answers: texts(&spec, "answers"),
                announces: texts(&spec, "announces"),
                doc: value.1,
            });
        }
        contract.complete();
        contract.check()?;
        Ok(contract)
    }

    /// Fills in what the rows leave out: a decider takes every command of its area, and a package among what a service
    /// relays stands for all commands in it that people send.
    fn complete(&mut self) {
        let sent: Vec<String> = self.services.iter().flat_map(|s| s.publishes.clone()).collect();
        for service in &mut self.services {
            for decider in &mut service.deciders {
                let own = self.events.iter().filter(|e| e.command && e.area == decider.area);
                let mut inputs: Vec<String> = own.map(|e| e.message.clone()).collect();
                inputs.extend(decider.inputs.iter().filter(|i| !inputs.contains(i)).cloned().collect::<Vec<_>>());
                decider.inputs = inputs;
            }
            let relays = service.relays.iter().flat_map(|relayed| match relayed.ends_with(".v1") {
                false => vec![relayed.clone()],
                true => self
                    .events
                    .iter()
                    .filter(|e| e.command && !sent.contains(&e.message))
                    .filter(|e| e.message.rsplit_once('.').is_some_and(|(package, _)| package == relayed))
                    .map(|e| e.message.clone())
                    .collect(),
            });
            service.relays = relays.collect();
        }
    }

    fn check(&self) -> Result<(), String> {
        for service in &self.services {
            let inputs = service.deciders.iter().flat_map(|d| &d.inputs);
            for name in inputs.chain(&service.publishes).chain(&service.relays) {
                self.event(name).ok_or(format!("service {}: no event {name}", service.name))?;
            }
            let worlds = service.deciders.iter().flat_map(|d| &d.world);
            for name in worlds.chain(&service.tails) {
                self.stream(name).ok_or(format!("service {}: no stream {name}", service.name))?;
            }
        }
        Ok(())
    }

    /// The event of a full message name.
    pub fn event(&self, message: &str) -> Option<&EventSpec> {
        self.events.iter().find(|e| e.message == message)
    }

    /// The event that travels on a subject (a stored one, without `w.`).
    pub fn event_on(&self, subject: &str) -> Option<&EventSpec> {
        self.events.iter().find(|e| matches(&e.filter(), subject))
    }

    /// The stream of a name.
    pub fn stream(&self, name: &str) -> Option<&StreamSpec> {
        self.streams.iter().find(|s| s.name == name)
    }

    /// The service of a name.
    pub fn service(&self, name: &str) -> Option<&ServiceSpec> {
        self.services.iter().find(|s| s.name == name)
    }

    /// The facts that a decider of this area writes.
    pub fn facts_of<'a>(&'a self, area: &'a str) -> impl Iterator<Item = &'a EventSpec> + 'a {
        self.events.iter().filter(move |e| e.area == area && !e.command)
    }

    /// The decider of a name, with its service.
    pub fn decider(&self, name: &str) -> Option<(&ServiceSpec, &DeciderSpec)> {
        self.services.iter().flat_map(|s| s.deciders.iter().map(move |d| (s, d))).find(|(_, d)| d.name == name)
    }

    /// The durables of a decider: one per stream it listens to.
    pub fn durables(&self, decider: &DeciderSpec) -> Vec<DurableSpec> {
        let mut found: Vec<DurableSpec> = vec![];
        for event in decider.inputs.iter().filter_map(|i| self.event(i)) {
            match found.iter_mut().find(|d| d.stream == event.stream) {
                Some(durable) => durable.filters.push(event.filter()),
                None => found.push(DurableSpec {
                    name: decider.name.clone(),
                    stream: event.stream.clone(),
                    filters: vec![event.filter()],
                }),
            }
        }
        found
    }
}

/// Does a NATS subject filter match a subject?
pub fn matches(filter: &str, subject: &str) -> bool {
    let (mut filter, mut subject) = (filter.split('.'), subject.split('.'));
    loop {
        match (filter.next(), subject.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(_)) => {}
            (Some(f), Some(s)) if f == s => {}
            _ => return false,
        }
    }
}

fn enum_values(pool: &DescriptorPool, name: &str) -> Result<Vec<(prost_reflect::EnumValueDescriptor, String)>, String> {
    let found: EnumDescriptor = pool.get_enum_by_name(name).ok_or(format!("missing enum {name}"))?;
    let file = found.parent_file();
    Ok(found.values().map(|v| (v.clone(), comment(file.file_descriptor_proto(), v.path()))).collect())
}

/// The comment before something, on one line.
pub(crate) fn comment(file: &prost_types::FileDescriptorProto, path: &[i32]) -> String {
    let locations = file.source_code_info.iter().flat_map(|s| &s.location);
    locations
        .filter(|l| l.path == path)
        .filter_map(|l| l.leading_comments.as_deref())
        .map(|c| c.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned())
        .next()
        .unwrap_or_default()
}

fn message(value: &Value) -> Result<DynamicMessage, String> {
    value.as_message().cloned().ok_or_else(|| "option is not a message".to_owned())
}

fn text(message: &DynamicMessage, field: &str) -> String {
    message.get_field_by_name(field).and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn texts(message: &DynamicMessage, field: &str) -> Vec<String> {
    let list = message.get_field_by_name(field);
    let list = list.as_deref().and_then(Value::as_list);
    list.map(|l| l.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()).unwrap_or_default()
}

fn number(message: &DynamicMessage, field: &str) -> i64 {
    match message.get_field_by_name(field).as_deref() {
        Some(Value::U32(n)) => i64::from(*n),
        Some(Value::EnumNumber(n)) => i64::from(*n),
        _ => 0,
    }
}
