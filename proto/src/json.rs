//! Protobuf's JSON mapping for every message of the contract, by descriptor.
//!
//! Reading accepts camelCase, snake_case and the spelling of a published standard (`published` in the contract), numbers
//! where text is asked for, and refuses unknown fields with the nearest known name. A text that stands for any value
//! (`value` in the contract) takes lists and objects as their JSON and gives them back as such. Writing expands embedded
//! documents.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions, Value};
use serde_json::Value as Json;

use crate::DecodeError;

/// The descriptor of a message of the contract.
pub fn descriptor(message: &str) -> Result<MessageDescriptor, DecodeError> {
    crate::pool().get_message_by_name(message).ok_or_else(|| DecodeError::Unexpected(message.to_owned()))
}

/// Reads JSON text as a message; gives its protobuf encoding.
pub fn to_protobuf(message: &str, text: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let value: Json = serde_json::from_slice(text).map_err(|e| DecodeError::Json(e.to_string()))?;
    value_to_protobuf(message, value)
}

/// Reads a JSON value as a message; gives its protobuf encoding.
pub fn value_to_protobuf(message: &str, mut value: Json) -> Result<Vec<u8>, DecodeError> {
    use prost_reflect::prost::Message as _;
    let descriptor = descriptor(message)?;
    let mut problems = vec![];
    normalise(&descriptor, &mut value, "", &mut problems, 0);
    if !problems.is_empty() {
        return Err(DecodeError::Json(problems.join("; ")));
    }
    let dynamic = DynamicMessage::deserialize(descriptor, value).map_err(|e| DecodeError::Json(e.to_string()))?;
    Ok(dynamic.encode_to_vec())
}

/// Reads a JSON value as a typed message.
pub fn from_value<M: prost::Message + Default>(message: &str, value: Json) -> Result<M, DecodeError> {
    Ok(M::decode(value_to_protobuf(message, value)?.as_slice())?)
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

/// Which names are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Right,
    Published,
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
        if spelling == Spelling::Published
            && let Some(name) = published(&field)
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

/// The list, object or quoted text that a text stands for; `None` if it stands for itself.
pub fn value_of(text: &str) -> Option<Json> {
    text.starts_with(['[', '{', '"']).then(|| serde_json::from_str(text).ok()).flatten()
}

/// The text that stands for a value. A text that would be taken for another value is quoted.
pub fn text_of(value: Json) -> String {
    match value {
        Json::Null => String::new(),
        Json::String(text) if value_of(&text).is_some() => Json::String(text).to_string(),
        Json::String(text) => text,
        Json::Bool(truth) => truth.to_string().to_uppercase(),
        other => other.to_string(),
    }
}

/// Depth beyond which JSON is refused; protobuf itself stops at 100.
const DEPTH_MAX: usize = 64;

/// Finds unknown fields and turns numbers and booleans into text where text is asked for.
fn normalise(descriptor: &MessageDescriptor, value: &mut Json, path: &str, problems: &mut Vec<String>, depth: usize) {
    if descriptor.full_name().starts_with("google.protobuf.") {
        return;
    }
    let Some(object) = value.as_object_mut() else { return };
    if depth > DEPTH_MAX {
        problems.push(format!("{path}: nested deeper than {DEPTH_MAX}"));
        return;
    }
    let mut renamed = vec![];
    for (name, item) in object.iter_mut() {
        let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let known = descriptor.get_field_by_json_name(name).or_else(|| descriptor.get_field_by_name(name));
        let Some(field) = known.or_else(|| {
            let field = descriptor.fields().find(|field| published(field).as_deref() == Some(name))?;
            renamed.push((name.clone(), field.json_name().to_owned()));
            Some(field)
        }) else {
            problems.push(unknown(descriptor, name, &at));
            continue;
        };
        if field.is_map() {
            continue;
        }
        if is_value(&field) && !field.is_list() {
            *item = Json::String(text_of(item.take()));
            continue;
        }
        let fix = |item: &mut Json, at: &str, problems: &mut Vec<String>| match field.kind() {
            Kind::Message(inner) => normalise(&inner, item, at, problems, depth + 1),
            Kind::String => match item {
                Json::Number(n) => *item = Json::String(n.to_string()),
                Json::Bool(b) => *item = Json::String(b.to_string().to_uppercase()),
                _ => {}
            },
            _ => {}
        };
        match item {
            Json::Array(items) if field.is_list() => {
                for (i, item) in items.iter_mut().enumerate() {
                    fix(item, &format!("{at}[{i}]"), problems);
                }
            }
            item => fix(item, &at, problems),
        }
    }
    for (name, right) in renamed {
        if object.contains_key(&right) {
            problems.push(format!("{path}: {name} and {right} are the same field; give one"));
        } else if let Some(item) = object.remove(&name) {
            object.insert(right, item);
        }
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
        assert_eq!(there_and_back(INTENT, with(json!(true)))["intentContexts"][0]["contextValueRange"], "TRUE");
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
