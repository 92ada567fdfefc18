//! Protobuf's JSON mapping for every message of the contract, by descriptor.
//!
//! Reading accepts camelCase, snake_case and the spelling of a published standard (`published` in the contract), takes
//! numbers and truth values as they are spelt where text is asked for, and refuses a field that is there twice, in whatever
//! spelling, and unknown fields with the nearest known name. A text that stands for any value
//! (`value` in the contract) takes lists and objects as their JSON and gives them back as such. Writing expands embedded
//! documents.

use std::collections::BTreeMap;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions, Value};
use serde_json::Value as Json;

use crate::{
    DecodeError,
    written::{self, Field, Kind as WrittenKind, Written},
};

/// The descriptor of a message of the contract.
pub fn descriptor(message: &str) -> Result<MessageDescriptor, DecodeError> {
    crate::pool().get_message_by_name(message).ok_or_else(|| DecodeError::Unexpected(message.to_owned()))
}

/// Reads JSON text as a message; gives its protobuf encoding.
pub fn to_protobuf(message: &str, text: &[u8]) -> Result<Vec<u8>, DecodeError> {
    written_to_protobuf(message, &Written::json(text).map_err(|e| DecodeError::Json(e.to_string()))?)
}

/// Reads a JSON value as a message; gives its protobuf encoding.
pub fn value_to_protobuf(message: &str, value: Json) -> Result<Vec<u8>, DecodeError> {
    written_to_protobuf(message, &value.into())
}

/// Reads what somebody wrote as a message; gives its protobuf encoding.
pub fn written_to_protobuf(message: &str, written: &Written) -> Result<Vec<u8>, DecodeError> {
    use prost_reflect::prost::Message as _;
    let descriptor = descriptor(message)?;
    let mut problems = vec![];
    let value = fit(&descriptor, written, "", &mut problems, 0);
    if !problems.is_empty() {
        return Err(DecodeError::Json(problems.join("; ")));
    }
    let dynamic = DynamicMessage::deserialize(descriptor, value).map_err(|e| DecodeError::Json(e.to_string()))?;
    Ok(dynamic.encode_to_vec())
}

/// Reads a JSON value as a typed message.
pub fn from_value<M: prost::Message + Default>(message: &str, value: Json) -> Result<M, DecodeError> {
    from_written(message, &value.into())
}

/// Reads what somebody wrote as a typed message.
pub fn from_written<M: prost::Message + Default>(message: &str, written: &Written) -> Result<M, DecodeError> {
    Ok(M::decode(written_to_protobuf(message, written)?.as_slice())?)
}

/// What somebody wrote of a message, as JSON that is merged or looked at before it is read: fields by their names in JSON,
/// text as it is spelt, nulls kept. What does not fit is left to the reader.
///
/// # Errors
/// When a field is there in two spellings, or a number of a person's own would be rounded.
pub fn spelt(message: &str, written: &Written) -> Result<Json, DecodeError> {
    let mut problems = vec![];
    let value = spell(Some(&Kind::Message(descriptor(message)?)), written, "", &mut problems);
    if problems.is_empty() { Ok(value) } else { Err(DecodeError::Json(problems.join("; "))) }
}

/// The same for one value; of no kind if it is a person's own.
fn spell(kind: Option<&Kind>, written: &Written, at: &str, problems: &mut Vec<String>) -> Json {
    match (kind, &written.kind) {
        (Some(Kind::String), WrittenKind::Bool(_, text) | WrittenKind::Number(_, text)) => Json::String(text.clone()),
        (Some(_), WrittenKind::List(items)) => {
            let one = |(i, item): (usize, &Written)| spell(kind, item, &format!("{at}[{i}]"), problems);
            items.iter().enumerate().map(one).collect()
        }
        (Some(Kind::Message(inner)), WrittenKind::Fields(fields)) if inner.is_map_entry() => {
            let kind = inner.map_entry_value_field().kind();
            let one = |entry: &Field| {
                let at = format!("{at}.{}", entry.name);
                (entry.name.clone(), spell(Some(&kind), &entry.value, &at, problems))
            };
            Json::Object(fields.iter().map(one).collect())
        }
        (Some(Kind::Message(inner)), WrittenKind::Fields(fields)) => {
            let mut object = serde_json::Map::new();
            for part in fields {
                let at = if at.is_empty() { part.name.clone() } else { format!("{at}.{}", part.name) };
                let field = known(inner, &part.name);
                let name = field.as_ref().map_or(part.name.as_str(), FieldDescriptor::json_name).to_owned();
                if object.contains_key(&name) {
                    let other = |first: &&Field| known(inner, &first.name) == field;
                    let first = fields.iter().find(other).unwrap_or(part);
                    problems.push(format!("{at}: {}", written::same(first, part)));
                    continue;
                }
                let value = match (&field, &part.value.kind) {
                    (Some(field), WrittenKind::Bool(_, text) | WrittenKind::Number(_, text)) if is_value(field) => {
                        Json::String(text.clone())
                    }
                    (Some(field), _) if !is_value(field) => spell(Some(&field.kind()), &part.value, &at, problems),
                    _ => spell(None, &part.value, &at, problems),
                };
                object.insert(name, value);
            }
            Json::Object(object)
        }
        (None, _) => written.clone().into_exact_json().unwrap_or_else(|error| {
            problems.push(format!("{at}: {error}"));
            Json::Null
        }),
        _ => written.clone().into_json(),
    }
}

/// The field of a name, in any of its spellings.
fn known(descriptor: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    let field = descriptor.get_field_by_json_name(name).or_else(|| descriptor.get_field_by_name(name));
    field.or_else(|| descriptor.fields().find(|field| published(field).as_deref() == Some(name)))
}

/// Can these bytes be a message's body in protobuf?
pub fn is_protobuf(message: &str, body: &[u8]) -> bool {
    descriptor(message).is_ok_and(|descriptor| DynamicMessage::decode(descriptor, body).is_ok())
}

/// Writes a message's body as a JSON value in camelCase, embedded documents expanded.
pub fn to_value(message: &str, body: &[u8]) -> Result<Json, DecodeError> {
    let dynamic = DynamicMessage::decode(descriptor(message)?, body)?;
    Ok(write(&dynamic, Spelling::Right))
}

/// The same with the field names that the published standard has, where they differ.
pub fn to_published(message: &str, body: &[u8]) -> Result<Json, DecodeError> {
    let dynamic = DynamicMessage::decode(descriptor(message)?, body)?;
    Ok(write(&dynamic, Spelling::Published))
}

/// The same with field names in snake_case. Keys of maps and what is in a text that stands for a value are people's own,
/// and stay as they are.
pub fn to_snake(message: &str, body: &[u8]) -> Result<Json, DecodeError> {
    let dynamic = DynamicMessage::decode(descriptor(message)?, body)?;
    Ok(write(&dynamic, Spelling::Snake))
}

/// Which names are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Right,
    Published,
    Snake,
}

fn write(dynamic: &DynamicMessage, spelling: Spelling) -> Json {
    let options = SerializeOptions::new().stringify_64_bit_integers(false);
    let mut value = dynamic.serialize_with_options(serde_json::value::Serializer, &options).unwrap_or(Json::Null);
    expand(dynamic, &mut value, spelling);
    value
}

/// Replaces base64 of embedded documents by the documents and texts by the values that they stand for, at any depth;
/// then renames the fields if they are to be spelt as published.
fn expand(dynamic: &DynamicMessage, value: &mut Json, spelling: Spelling) {
    let Some(object) = value.as_object_mut() else { return };
    for (field, content) in dynamic.fields() {
        let Some(slot) = object.get_mut(field.json_name()) else { continue };
        match content {
            Value::Bytes(bytes) => {
                let embedded = embedded(&field).and_then(|name| descriptor(&name).ok());
                if let Some(inner) = embedded.and_then(|d| DynamicMessage::decode(d, bytes.clone()).ok()) {
                    *slot = write(&inner, spelling);
                }
            }
            Value::String(text) if is_value(&field) => {
                if let Some(inner) = value_of(text) {
                    *slot = inner;
                }
            }
            Value::Message(inner) => expand(inner, slot, spelling),
            Value::List(items) => {
                for (item, slot) in items.iter().zip(slot.as_array_mut().into_iter().flatten()) {
                    if let Value::Message(inner) = item {
                        expand(inner, slot, spelling);
                    }
                }
            }
            _ => {}
        }
        let name = match spelling {
            Spelling::Right => None,
            Spelling::Published => published(&field),
            Spelling::Snake => Some(field.name().to_owned()),
        };
        if let Some(name) = name
            && let Some(slot) = object.remove(field.json_name())
        {
            object.insert(name, slot);
        }
    }
}

/// The message that a bytes field holds, by its `embeds` option.
pub(crate) fn embedded(field: &FieldDescriptor) -> Option<String> {
    option(field, "continuum.mesh.v1.embeds")?.as_str().map(str::to_owned)
}

/// The name that a published standard has for a field, if it differs.
fn published(field: &FieldDescriptor) -> Option<String> {
    option(field, "continuum.mesh.v1.published")?.as_str().map(str::to_owned)
}

/// Is this a text that stands for any value?
pub(crate) fn is_value(field: &FieldDescriptor) -> bool {
    option(field, "continuum.mesh.v1.value").and_then(|value| value.as_bool()).unwrap_or_default()
}

fn option(field: &FieldDescriptor, name: &str) -> Option<Value> {
    let extension = crate::pool().get_extension_by_name(name)?;
    let options = field.options();
    options.has_extension(&extension).then(|| options.get_extension(&extension).into_owned())
}

/// The list, object or quoted text that a text stands for; `None` if it stands for itself, as does one whose numbers JSON's
/// readers would round.
pub fn value_of(text: &str) -> Option<Json> {
    text.starts_with(['[', '{', '"']).then(|| Written::json(text.as_bytes()).ok()?.into_exact_json().ok()).flatten()
}

/// The text that stands for a value. A text that would be taken for another value is quoted.
pub fn text_of(value: Json) -> String {
    match value {
        Json::Null => String::new(),
        Json::String(text) if value_of(&text).is_some() => Json::String(text).to_string(),
        Json::String(text) => text,
        other => other.to_string(),
    }
}

/// Depth beyond which JSON is refused; protobuf itself stops at 100.
const DEPTH_MAX: usize = 64;

/// What somebody wrote, as protobuf's JSON mapping has it: fields by their names in JSON, and text as it is spelt. Finds
/// fields that are unknown or there twice.
fn fit(
    descriptor: &MessageDescriptor,
    written: &Written,
    path: &str,
    problems: &mut Vec<String>,
    depth: usize,
) -> Json {
    let WrittenKind::Fields(fields) = &written.kind else { return written.clone().into_json() };
    if descriptor.full_name().starts_with("google.protobuf.") {
        return written.clone().into_json();
    }
    if depth > DEPTH_MAX {
        problems.push(format!("{path}: nested deeper than {DEPTH_MAX}"));
        return Json::Null;
    }
    let mut object = serde_json::Map::new();
    let mut seen: BTreeMap<u32, &Field> = BTreeMap::new();
    for part in fields {
        let name = part.name.as_str();
        let at = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let Some(field) = known(descriptor, name) else {
            problems.push(unknown(descriptor, name, &at));
            continue;
        };
        // Null stands for a field that is not there; beside one that is, it is there twice all the same.
        if let Some(first) = seen.insert(field.number(), part) {
            problems.push(format!("{at}: {}", written::same(first, part)));
            continue;
        }
        let value = match (&part.value.kind, field.kind()) {
            _ if is_value(&field) && !field.is_list() => match any_text(&part.value) {
                Ok(text) => Json::String(text),
                Err(reason) => {
                    problems.push(format!("{at}: {reason}"));
                    continue;
                }
            },
            (WrittenKind::Fields(entries), Kind::Message(entry)) if field.is_map() => {
                let kind = entry.map_entry_value_field().kind();
                let one = |entry: &Field| {
                    let at = format!("{at}.{}", entry.name);
                    (entry.name.clone(), fit_one(&kind, &entry.value, &at, problems, depth))
                };
                Json::Object(entries.iter().map(one).collect())
            }
            (WrittenKind::List(items), kind) if field.is_list() => {
                let one = |(i, item): (usize, &Written)| {
                    let at = format!("{at}[{i}]");
                    if item.is_null() {
                        problems.push(format!("{at}: {} stands in a list; leave it out", told(item)));
                    }
                    fit_one(&kind, item, &at, problems, depth)
                };
                items.iter().enumerate().map(one).collect()
            }
            (kind, _) if (field.is_list() || field.is_map()) && *kind != WrittenKind::Null => {
                let wanted = if field.is_list() { "a list" } else { "an object" };
                problems.push(format!("{at}: {} is not {wanted}", told(&part.value)));
                continue;
            }
            (_, kind) => fit_one(&kind, &part.value, &at, problems, depth),
        };
        object.insert(field.json_name().to_owned(), value);
    }
    Json::Object(object)
}

/// One value of a field, an item or an entry.
fn fit_one(kind: &Kind, written: &Written, at: &str, problems: &mut Vec<String>, depth: usize) -> Json {
    if let Some(wanted) = misfit(kind, written) {
        problems.push(format!("{at}: {} is not {wanted}", told(written)));
        return Json::Null;
    }
    match (kind, written.text()) {
        (Kind::Message(inner), Some(text)) if inner.full_name() == "google.protobuf.Timestamp" => {
            match text.parse::<crate::Timestamp>() {
                Ok(time) => Json::String(time.to_string()),
                Err(reason) => {
                    problems.push(format!("{at}: {reason}"));
                    Json::Null
                }
            }
        }
        (Kind::Message(inner), _) => fit(inner, written, at, problems, depth + 1),
        (Kind::String, Some(text)) => Json::String(text.to_owned()),
        _ => written.clone().into_json(),
    }
}

/// What is wanted, if a value of this kind cannot be made of what is written.
fn misfit(kind: &Kind, written: &Written) -> Option<String> {
    fn whole<T: TryFrom<u64> + TryFrom<i64> + std::str::FromStr>(written: &Written) -> bool {
        match &written.kind {
            WrittenKind::Number(number, _) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(number), _, _) => T::try_from(number).is_ok(),
                (_, Some(number), _) => T::try_from(number).is_ok(),
                // `1e3` is whole too.
                (_, _, Some(number)) => number.fract() == 0.0 && format!("{number:.0}").parse::<T>().is_ok(),
                _ => false,
            },
            WrittenKind::Text(text) => text.parse::<T>().is_ok(),
            _ => false,
        }
    }
    let number = || match &written.kind {
        WrittenKind::Number(..) => true,
        WrittenKind::Text(text) => text.parse::<f64>().is_ok() || matches!(text.as_str(), "Infinity" | "-Infinity"),
        _ => false,
    };
    let range =
        |least: &dyn std::fmt::Display, most: &dyn std::fmt::Display| format!("a whole number of {least} to {most}");
    if written.is_null() {
        return None;
    }
    let (fits, wanted) = match kind {
        Kind::Bool => (matches!(written.kind, WrittenKind::Bool(..)), "true or false".to_owned()),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => (whole::<i32>(written), range(&i32::MIN, &i32::MAX)),
        Kind::Uint32 | Kind::Fixed32 => (whole::<u32>(written), range(&0, &u32::MAX)),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => (whole::<i64>(written), range(&i64::MIN, &i64::MAX)),
        Kind::Uint64 | Kind::Fixed64 => (whole::<u64>(written), range(&0, &u64::MAX)),
        Kind::Double | Kind::Float => (number(), "a number".to_owned()),
        Kind::String => (written.text().is_some(), "a text".to_owned()),
        Kind::Enum(values) => {
            let known = written.text().is_some_and(|text| values.get_value_by_name(text).is_some());
            let names = values.values().map(|value| value.name().to_owned()).collect::<Vec<_>>().join(", ");
            (known || matches!(written.kind, WrittenKind::Number(..)), format!("one of {names}"))
        }
        Kind::Message(inner) if inner.full_name() == "google.protobuf.Timestamp" => {
            (matches!(written.kind, WrittenKind::Text(_)), "a time such as 2027-01-31T12:00:00Z".to_owned())
        }
        Kind::Message(_) => (written.is_fields(), "an object".to_owned()),
        Kind::Bytes => (matches!(written.kind, WrittenKind::Text(_)), "base64".to_owned()),
    };
    (!fits).then_some(wanted)
}

/// What is written, for a message about it.
fn told(written: &Written) -> String {
    let what = match (&written.kind, written.text()) {
        (WrittenKind::Text(_), Some(text)) => format!("{:?}", text.chars().take(64).collect::<String>()),
        (_, Some(text)) => text.chars().take(64).collect(),
        (WrittenKind::List(_), _) => "a list".to_owned(),
        (WrittenKind::Fields(_), _) => "an object".to_owned(),
        _ => "null".to_owned(),
    };
    match written.place.line {
        0 => what,
        _ => format!("{what} at {}", written.place),
    }
}

/// The text that stands for any value: a scalar as it is spelt, a list or mapping as its JSON.
fn any_text(written: &Written) -> Result<String, String> {
    match &written.kind {
        WrittenKind::Bool(_, text) | WrittenKind::Number(_, text) => Ok(text.clone()),
        _ => written.clone().into_exact_json().map(text_of).map_err(|error| error.to_string()),
    }
}

fn unknown(descriptor: &MessageDescriptor, name: &str, at: &str) -> String {
    let snake = name.contains('_');
    let known: Vec<String> =
        descriptor.fields().map(|f| if snake { f.name().to_owned() } else { f.json_name().to_owned() }).collect();
    let nearest = known.iter().min_by_key(|k| distance(k, name));
    match nearest.filter(|k| distance(k, name) <= 3.max(name.len() / 3)) {
        Some(nearest) => format!("{at}: unknown field; did you mean {nearest:?}?"),
        None => format!("{at}: unknown field; known here are {}", known.join(", ")),
    }
}

/// Levenshtein distance, on names of a few dozen characters.
fn distance(a: &str, b: &str) -> usize {
    strsim::levenshtein(a, b)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const INTENT: &str = "continuum.intent.v1.Intent";
    const REPORT: &str = "continuum.report.v1.IntentReport";

    fn there_and_back(message: &str, value: Json) -> Json {
        to_value(message, &value_to_protobuf(message, value).unwrap()).unwrap()
    }

    #[test]
    fn any_value_survives_where_a_text_stands_for_it() {
        let with = |value: Json| json!({"intentContexts": [{"contextAttribute": "a", "contextValueRange": value}]});
        for value in [
            json!("plain"),
            json!(""),
            json!([1, 2.5, "x"]),
            json!({"startTime": "2026-01-01T00:00:00Z"}),
            json!("[1]"),
            json!("\"quoted\""),
            json!("{"),
            json!("[not json"),
            json!([["deep"], {}]),
        ] {
            let back = there_and_back(INTENT, with(value.clone()));
            let empty = json!("");
            let found = back["intentContexts"][0].get("contextValueRange").unwrap_or(&empty);
            assert_eq!(*found, value);
        }
        // Numbers and truth values become texts, as everywhere.
        assert_eq!(there_and_back(INTENT, with(json!(10.0)))["intentContexts"][0]["contextValueRange"], "10.0");
        assert_eq!(there_and_back(INTENT, with(json!(true)))["intentContexts"][0]["contextValueRange"], "true");
    }

    const WORKLOAD: &str = "continuum.workload.v1.WorkloadDocument";

    fn workload(text: &str) -> Result<Json, String> {
        let read = Written::documents(text).unwrap().remove(0);
        let body = written_to_protobuf(WORKLOAD, &read).map_err(|error| error.to_string())?;
        Ok(to_value(WORKLOAD, &body).unwrap())
    }

    #[test]
    fn where_text_is_meant_it_is_taken_as_it_is_spelt() {
        let yaml = "name: on\nversion: 1.10\nreplicas: 0x2\nclusterSelector: {zone: no, rack: 010, 7: y}\nprocess:\n  \
            command: yes\n  arguments: [1.10, 010, true, False, 1e3, 0x1F, 1_000, .5, ~x, .inf, 2026-01-01]\n  \
            environment: {DEBUG: off, LEVEL: 1e1}\nresources: {cpuMilli: 1e3}\n";
        let read = workload(yaml).unwrap();
        assert_eq!((&read["name"], &read["version"]), (&json!("on"), &json!("1.10")));
        assert_eq!((&read["replicas"], &read["resources"]["cpuMilli"]), (&json!(2), &json!(1_000)));
        assert_eq!(read["clusterSelector"], json!({"zone": "no", "rack": "010", "7": "y"}));
        assert_eq!(read["process"]["command"], "yes");
        let arguments = ["1.10", "010", "true", "False", "1e3", "0x1F", "1_000", ".5", "~x", ".inf", "2026-01-01"];
        assert_eq!(read["process"]["arguments"], json!(arguments));
        assert_eq!(read["process"]["environment"], json!({"DEBUG": "off", "LEVEL": "1e1"}));
        let big = "100000000000000000000000000001";
        let json = format!(r#"{{"name": true, "version": 1.10, "process": {{"arguments": [1e3, {big}, -0.0]}}}}"#);
        let read = workload(&json).unwrap();
        assert_eq!((&read["name"], &read["version"]), (&json!("true"), &json!("1.10")));
        assert_eq!(read["process"]["arguments"], json!(["1e3", big, "-0.0"]));
    }

    #[test]
    fn a_time_is_read_to_the_letter() {
        const DETECTED: &str = "continuum.anomaly.v1.AnomalyDetected";
        let read = |time: Json| {
            let body = value_to_protobuf(DETECTED, json!({"at": time})).map_err(|error| error.to_string())?;
            Ok::<_, String>(to_value(DETECTED, &body).unwrap()["at"].clone())
        };
        assert_eq!(read(json!("2027-01-31T12:00:00+05:30")), Ok(json!("2027-01-31T06:30:00Z")));
        assert_eq!(read(json!("2016-12-31T23:59:60Z")), Ok(json!("2017-01-01T00:00:00Z")));
        for wrong in ["2027-01-31T12:00:00+0530", "2027-01-31T12:00:00+05", "2027-01-31T12:00:60Z", "2027-01-31"] {
            let error = read(json!(wrong)).unwrap_err();
            assert!(error.contains("at: ") && error.contains("write it as 2027-01-31T12:00:00Z"), "{error}");
        }
        assert!(read(json!(1_795_318_929)).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_place_and_what_would() {
        let refused = |text: &str| workload(text).unwrap_err();
        for (text, told) in [
            ("singleton: yes\n", "singleton: \"yes\" at line 1 column 12 is not true or false"),
            ("replicas: 1_000\n", "replicas: \"1_000\" at line 1 column 11 is not a whole number of 0 to 4294967295"),
            ("replicas: -1\n", "replicas: -1 at line 1 column 11 is not a whole"),
            ("replicas: 1.5\n", "replicas: 1.5 at line 1 column 11 is not a whole"),
            ("replicas: 4294967296\n", "4294967296 at line 1 column 11 is not a whole"),
            ("resources: 3\n", "resources: 3 at line 1 column 12 is not an object"),
            ("name: [a]\n", "name: a list at line 1 column 7 is not a text"),
            ("process: {arguments: a}\n", "process.arguments: \"a\" at line 1 column 22 is not a list"),
            ("process: {arguments: [a, [b]]}\n", "process.arguments[1]: a list at line 1 column 26 is not a text"),
            ("process: {arguments: [a, ~]}\n", "process.arguments[1]: null at line 1 column 26 stands in a list"),
            ("clusterSelector: [a]\n", "clusterSelector: a list at line 1 column 18 is not an object"),
            (
                "latencyBounds: [{maxLatencyMs: low}]\n",
                "latencyBounds[0].maxLatencyMs: \"low\" at line 1 column 32 is not a number",
            ),
        ] {
            let error = refused(text);
            assert!(error.contains(told), "{error}");
        }
        assert_eq!(workload("singleton: True\nreplicas: 1e1\n").unwrap()["replicas"], 10);
        assert_eq!(workload("replicas: '7'\nname: ~\n").unwrap(), json!({"replicas": 7}));
        let report = json!({"intentFulfilmentReport": {"intentFulfilmentInfo": {"notFulfilledState": "BROKEN"}}});
        let error = value_to_protobuf(REPORT, report).unwrap_err().to_string();
        assert!(error.contains("notFulfilledState: \"BROKEN\" is not one of") && error.contains("DEGRADED"), "{error}");
    }

    #[test]
    fn a_text_for_any_value_is_as_it_is_spelt_or_refused() {
        let range = |text: &str| {
            let text = format!("intentContexts:\n- contextAttribute: a\n  contextValueRange: {text}\n");
            let body = written_to_protobuf(INTENT, &Written::yaml(&text).unwrap()).map_err(|e| e.to_string())?;
            Ok::<_, String>(to_value(INTENT, &body).unwrap()["intentContexts"][0]["contextValueRange"].clone())
        };
        for text in ["no", "on", "1.10", "010", "0x1F", "true", "TRUE", "1_000"] {
            assert_eq!(range(text), Ok(json!(text)));
        }
        assert_eq!(range("[no, on, 1, 2.5, true]"), Ok(json!(["no", "on", 1, 2.5, true])));
        assert_eq!(range("['010', \"0x1F\"]"), Ok(json!(["010", "0x1F"])));
        let error = range("[1, 010]").unwrap_err();
        assert!(error.contains("010 at line 3 column 26") && error.contains("in quotes, or write 10"), "{error}");
    }

    #[test]
    fn a_field_that_is_there_in_two_spellings_is_refused_with_both_places() {
        let error = workload("clusterSelector: {a: b}\ncluster_selector: {c: d}\n").unwrap_err();
        let both =
            "clusterSelector (line 1 column 1) and cluster_selector (line 2 column 1) are the same field; give one";
        assert!(error.contains(both), "{error}");
        let json = r#"{"resources": {"cpuMilli": 10, "cpu_milli": null}}"#;
        let error = to_protobuf(WORKLOAD, json.as_bytes()).unwrap_err().to_string();
        assert!(
            error.contains("resources.cpu_milli: cpuMilli (line 1 column 16) and cpu_milli (line 1 column 32)"),
            "{error}"
        );
        let twice = to_protobuf(WORKLOAD, br#"{"name": "a", "name": "a"}"#).unwrap_err().to_string();
        assert!(twice.contains("at line 1 column 2 and at line 1 column 15"), "{twice}");
        let value = json!({"userLabel": "a", "user_label": "a"});
        assert!(value_to_protobuf(INTENT, value).unwrap_err().to_string().contains("are the same field"));
    }

    #[test]
    fn only_names_of_fields_are_written_in_snake_case() {
        let own = json!({"APIKey": "k", "apiKey": {"innerKey": [{"aB": 1}]}, "user_label": 1, "intentContexts": []});
        let sent = json!({"userLabel": "L", "intentContexts": [{"contextAttribute": "aB", "contextValueRange": own}]});
        let body = value_to_protobuf(INTENT, sent).unwrap();
        let shown = to_snake(INTENT, &body).unwrap();
        let expected =
            json!({"user_label": "L", "intent_contexts": [{"context_attribute": "aB", "context_value_range": own}]});
        assert_eq!(shown, expected);
        assert_eq!(value_to_protobuf(INTENT, shown).unwrap(), body, "and is read again");
    }

    #[test]
    fn the_published_spelling_is_read_everywhere_and_written_only_on_request() {
        let right = json!({"intentFulfilmentReport": {"intentFulfilmentInfo": {"notFulfilledState": "DEGRADED"}}});
        let published = json!({"intentFulfilmentReport": {"intentFulfilmentInfo": {"notFullfilledState": "DEGRADED"}}});
        let body = value_to_protobuf(REPORT, published.clone()).unwrap();
        assert_eq!(body, value_to_protobuf(REPORT, right.clone()).unwrap());
        assert_eq!(to_value(REPORT, &body).unwrap(), right);
        assert_eq!(to_published(REPORT, &body).unwrap(), published);
        let both = json!({"intentFulfilmentReport": {"intentFulfilmentInfo": {
            "notFullfilledState": "DEGRADED", "notFulfilledState": "COMPLIANT"}}});
        let error = value_to_protobuf(REPORT, both).unwrap_err().to_string();
        assert!(error.contains("are the same field"), "{error}");
    }
}
