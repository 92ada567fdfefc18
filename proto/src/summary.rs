//! One line for a person about any event, rendered from the `summary` of its message in the contract.
//!
//! - `{field}` is a field's text, `{part.size}` that of a field inside it, `{conflicts.0.reason}` of the first in a list.
//! - `{field:short}` is rendered in a [`Format`].
//! - `{field?then;otherwise}` is one of two texts, by whether the field is set.
//! - `[, and more about {field}]` is left out when one of its fields is empty.
//!
//! Shared by `build.rs`, which refuses a summary that does not fit its message, and by the library, which renders it.

use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage as _, Value, prost::Message as _};

/// How a field is rendered when its plain text would not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The first eight characters of an id.
    Short,
    /// How many entries or bytes it has.
    Count,
    /// Bytes as megabytes.
    Megabytes,
    /// Milliseconds as seconds.
    Seconds,
    /// An intent's state: its name, and why.
    State,
    /// The name of an intent's state.
    Status,
    /// What an intent's targets achieved.
    Achieved,
    /// What was observed of an intent's targets.
    Observed,
    /// Problems of a document, with their hints.
    Problems,
}

impl Format {
    /// Name, format, and the message that it renders, if it needs one.
    const ALL: [(&'static str, Format, Option<&'static str>); 9] = [
        ("short", Self::Short, None),
        ("count", Self::Count, None),
        ("megabytes", Self::Megabytes, None),
        ("seconds", Self::Seconds, None),
        ("state", Self::State, Some("continuum.intent.v1.State")),
        ("status", Self::Status, Some("continuum.intent.v1.State")),
        ("achieved", Self::Achieved, Some("continuum.intent.v1.TargetState")),
        ("observed", Self::Observed, Some("continuum.observation.v1.ObservedTarget")),
        ("problems", Self::Problems, Some("continuum.intent.v1.Problem")),
    ];
}

/// A summary, read.
#[derive(Clone, Debug)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Field(Path, Option<Format>),
    Choice(Path, String, String),
    Optional(Vec<Part>),
}

#[derive(Clone, Debug)]
struct Path(Vec<Step>);

#[derive(Clone, Debug)]
enum Step {
    Field(String),
    Entry(usize),
}

impl Template {
    /// Reads a summary of a message, or says what is wrong with it.
    pub fn read(text: &str, message: &MessageDescriptor) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("it has no summary: describe it in one line".to_owned());
        }
        let mut rest = text;
        let mut parts = vec![];
        while let Some(at) = rest.find(['[', '{']) {
            parts.push(Part::Text(rest[..at].to_owned()));
            if rest[at..].starts_with('[') {
                let end = rest[at..].find(']').ok_or("a bracket is not closed")? + at;
                parts.push(Part::Optional(plain(&rest[at + 1..end], message)?));
                rest = &rest[end + 1..];
            } else {
                let end = rest[at..].find('}').ok_or("a brace is not closed")? + at;
                parts.push(field(&rest[at + 1..end], message)?);
                rest = &rest[end + 1..];
            }
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }

    /// The line about a message. `messages` renders the formats of whole messages, given encoded.
    pub fn render(&self, message: &DynamicMessage, messages: &dyn Fn(Format, &[Vec<u8>]) -> String) -> String {
        render(&self.0, message, messages)
    }
}

fn plain(text: &str, message: &MessageDescriptor) -> Result<Vec<Part>, String> {
    let mut rest = text;
    let mut parts = vec![];
    while let Some(at) = rest.find('{') {
        let end = rest[at..].find('}').ok_or("a brace is not closed")? + at;
        parts.push(Part::Text(rest[..at].to_owned()));
        parts.push(field(&rest[at + 1..end], message)?);
        rest = &rest[end + 1..];
    }
    parts.push(Part::Text(rest.to_owned()));
    Ok(parts)
}

fn field(text: &str, message: &MessageDescriptor) -> Result<Part, String> {
    if let Some((path, choices)) = text.split_once('?') {
        let (then, otherwise) =
            choices.split_once(';').ok_or(format!("{{{text}}}: a choice has two texts with a `;`"))?;
        let (path, _) = path_of(path, message)?;
        return Ok(Part::Choice(path, then.to_owned(), otherwise.to_owned()));
    }
    let (path, format) = text.split_once(':').map_or((text, None), |(path, format)| (path, Some(format)));
    let (path, kind) = path_of(path, message)?;
    let format = match format {
        None => None,
        Some(name) => {
            Some(Format::ALL.into_iter().find(|f| f.0 == name).ok_or(format!("{{{text}}}: unknown format {name:?}"))?)
        }
    };
    match (&kind, format.and_then(|f| f.2)) {
        (Kind::Message(found), Some(wanted)) if found.full_name() == wanted => {}
        (Kind::Message(_), None) if format.is_some_and(|f| f.1 == Format::Count) => {}
        (Kind::Message(found), _) => return Err(format!("{{{text}}}: no format renders {}", found.full_name())),
        (_, Some(wanted)) => return Err(format!("{{{text}}}: this format renders {wanted} only")),
        (_, None) => {}
    }
    Ok(Part::Field(path, format.map(|f| f.1)))
}

/// A path through a message, and the kind of field at its end.
fn path_of(text: &str, message: &MessageDescriptor) -> Result<(Path, Kind), String> {
    let mut steps = vec![];
    let mut kind = Kind::Message(message.clone());
    for part in text.split('.') {
        if let Ok(number) = part.parse() {
            steps.push(Step::Entry(number));
            continue;
        }
        let Kind::Message(inside) = &kind else { return Err(format!("{{{text}}}: {part} is not inside a message")) };
        let found =
            inside.get_field_by_name(part).ok_or(format!("{{{text}}}: {} has no field {part}", inside.full_name()))?;
        kind = found.kind();
        steps.push(Step::Field(part.to_owned()));
    }
    Ok((Path(steps), kind))
}

/// The value at a path, with the kind of its field; `None` where something on the way is absent.
fn at(path: &Path, message: &DynamicMessage) -> Option<(Value, Kind)> {
    let mut value = Value::Message(message.clone());
    let mut kind = Kind::Message(message.descriptor());
    for step in &path.0 {
        value = match (step, &value) {
            (Step::Field(name), Value::Message(inside)) => {
                let field = inside.descriptor().get_field_by_name(name)?;
                if field.supports_presence() && !inside.has_field(&field) {
                    return None;
                }
                kind = field.kind();
                inside.get_field(&field).into_owned()
            }
            (Step::Entry(number), Value::List(entries)) => entries.get(*number)?.clone(),
            _ => return None,
        };
    }
    Some((value, kind))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(entries) => entries.is_empty(),
        Value::Map(entries) => entries.is_empty(),
        Value::Bool(set) => !set,
        Value::I32(n) | Value::EnumNumber(n) => *n == 0,
        Value::I64(n) => *n == 0,
        Value::U32(n) => *n == 0,
        Value::U64(n) => *n == 0,
        Value::F32(n) => *n == 0.0,
        Value::F64(n) => *n == 0.0,
        Value::Message(_) => false,
    }
}

type Messages<'a> = &'a dyn Fn(Format, &[Vec<u8>]) -> String;

fn render(parts: &[Part], message: &DynamicMessage, messages: Messages<'_>) -> String {
    let mut text = String::new();
    for part in parts {
        match part {
            Part::Text(words) => text.push_str(words),
            Part::Field(path, format) => text.push_str(&one(path, *format, message, messages)),
            Part::Choice(path, then, otherwise) => {
                let set = at(path, message).is_some_and(|(value, _)| !is_empty(&value));
                text.push_str(if set { then } else { otherwise });
            }
            Part::Optional(inside) => {
                let missing = inside.iter().any(|part| match part {
                    Part::Field(path, format) => {
                        at(path, message).is_none_or(|(value, _)| is_empty(&value))
                            || one(path, *format, message, messages).is_empty()
                    }
                    _ => false,
                });
                if !missing {
                    text.push_str(&render(inside, message, messages));
                }
            }
        }
    }
    text
}

fn one(path: &Path, format: Option<Format>, message: &DynamicMessage, messages: Messages<'_>) -> String {
    let found = at(path, message);
    match format {
        None | Some(Format::Short | Format::Count | Format::Megabytes | Format::Seconds) => {
            let Some((value, kind)) = found else { return String::new() };
            match (format, &value) {
                (Some(Format::Short), Value::String(id)) => short(id).to_owned(),
                (Some(Format::Count), Value::List(entries)) => entries.len().to_string(),
                (Some(Format::Count), Value::Map(entries)) => entries.len().to_string(),
                (Some(Format::Count), Value::Bytes(bytes)) => bytes.len().to_string(),
                (Some(Format::Megabytes), number) => decimal(amount(number) / 1e6),
                (Some(Format::Seconds), number) => decimal(amount(number) / 1e3),
                _ => words(&value, &kind),
            }
        }
        Some(format) => {
            let encoded = match found.map(|(value, _)| value) {
                Some(Value::Message(inside)) => vec![inside.encode_to_vec()],
                Some(Value::List(entries)) => {
                    entries.iter().filter_map(Value::as_message).map(DynamicMessage::encode_to_vec).collect()
                }
                _ => vec![],
            };
            messages(format, &encoded)
        }
    }
}

fn words(value: &Value, kind: &Kind) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Value::Bool(set) => if *set { "yes" } else { "no" }.to_owned(),
        Value::EnumNumber(number) => match kind {
            Kind::Enum(values) => {
                values.get_value(*number).map_or_else(|| number.to_string(), |value| value.name().to_lowercase())
            }
            _ => number.to_string(),
        },
        Value::List(entries) => entries.iter().map(|entry| words(entry, kind)).collect::<Vec<_>>().join(", "),
        Value::I32(n) => n.to_string(),
        Value::I64(n) => n.to_string(),
        Value::U32(n) => n.to_string(),
        Value::U64(n) => n.to_string(),
        Value::F32(n) => decimal(f64::from(*n)),
        Value::F64(n) => decimal(*n),
        Value::Message(_) | Value::Map(_) => String::new(),
    }
}

fn amount(value: &Value) -> f64 {
    match value {
        Value::I32(n) => f64::from(*n),
        Value::I64(n) => *n as f64,
        Value::U32(n) => f64::from(*n),
        Value::U64(n) => *n as f64,
        Value::F32(n) => f64::from(*n),
        Value::F64(n) => *n,
        _ => 0.0,
    }
}

/// At most two decimals.
fn decimal(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The first characters of an id.
pub fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}
