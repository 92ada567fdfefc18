//! Protobuf's JSON mapping for every message of the contract, by descriptor.
//!
//! Reading accepts camelCase and snake_case, numbers where text is asked for, and refuses unknown fields with
//! the nearest known name. Writing expands embedded documents.

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
    Ok(write(&dynamic))
}

fn write(dynamic: &DynamicMessage) -> Json {
    let options = SerializeOptions::new().stringify_64_bit_integers(false);
    let mut value = dynamic.serialize_with_options(serde_json::value::Serializer, &options).unwrap_or(Json::Null);
    expand(dynamic, &mut value);
    value
}

/// Replaces base64 of embedded documents by the documents, at any depth.
fn expand(dynamic: &DynamicMessage, value: &mut Json) {
    let Some(object) = value.as_object_mut() else { return };
    for (field, content) in dynamic.fields() {
        let Some(slot) = object.get_mut(field.json_name()) else { continue };
        match content {
            Value::Bytes(bytes) => {
                let embedded = embedded(&field).and_then(|name| descriptor(&name).ok());
                if let Some(inner) = embedded.and_then(|d| DynamicMessage::decode(d, bytes.clone()).ok()) {
                    *slot = write(&inner);
                }
            }
            Value::Message(inner) => expand(inner, slot),
            Value::List(items) => {
                for (item, slot) in items.iter().zip(slot.as_array_mut().into_iter().flatten()) {
                    if let Value::Message(inner) = item {
                        expand(inner, slot);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The message that a bytes field holds, by its `embeds` option.
pub(crate) fn embedded(field: &FieldDescriptor) -> Option<String> {
    let extension = crate::pool().get_extension_by_name("continuum.mesh.v1.embeds")?;
    let options = field.options();
    options.has_extension(&extension).then(|| options.get_extension(&extension).as_str().map(str::to_owned)).flatten()
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
    for (name, item) in object.iter_mut() {
        let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let Some(field) = descriptor.get_field_by_json_name(name).or_else(|| descriptor.get_field_by_name(name)) else {
            problems.push(unknown(descriptor, name, &at));
            continue;
        };
        if field.is_map() {
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
