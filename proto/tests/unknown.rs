//! Nothing that nobody knows is passed over: at each place of each command and document that people write, in protobuf, in
//! JSON and in YAML.

#![cfg(test)]
#![allow(clippy::print_stdout)]

use std::collections::BTreeSet;

use mesh_proto::{Written, contract, document, json, rights, wire};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Value as Json, json};

/// Each way from a message to one inside it, none through the same message twice.
fn ways(of: &MessageDescriptor, way: &[FieldDescriptor], found: &mut Vec<Vec<FieldDescriptor>>) {
    found.push(way.to_vec());
    for field in of.fields() {
        let inner = match field.kind() {
            Kind::Message(entry) if field.is_map() => entry.map_entry_value_field().kind(),
            kind => kind,
        };
        let Kind::Message(inner) = inner else { continue };
        let again = way.iter().chain([&field]).any(|step| step.parent_message() == &inner);
        if inner.full_name().starts_with("continuum.") && !again {
            ways(&inner, &[way, std::slice::from_ref(&field)].concat(), found);
        }
    }
}

/// A document with a member at the end of a way that nobody knows, and the path to it.
fn said(way: &[FieldDescriptor]) -> (Json, String) {
    let (mut value, mut path) = (json!({"notKnown": 1}), "notKnown".to_owned());
    for step in way.iter().rev() {
        let (inner, at) = match (step.is_map(), step.is_list()) {
            (true, _) => (json!({"k": value}), ".k"),
            (_, true) => (json!([value]), "[0]"),
            _ => (value, ""),
        };
        path = format!("{}{at}.{path}", step.json_name());
        value = json!({step.json_name(): inner});
    }
    (value, path)
}

/// The same in protobuf: field 1023.
fn body(way: &[FieldDescriptor]) -> Vec<u8> {
    let field = |number: u32, value: Vec<u8>| {
        let mut bytes = vec![];
        prost::encoding::encode_varint(u64::from(number << 3 | 2), &mut bytes);
        prost::encoding::encode_varint(value.len() as u64, &mut bytes);
        [bytes, value].concat()
    };
    way.iter().rev().fold(vec![0xf8, 0x3f, 7], |inner, step| {
        let inner = if step.is_map() { field(2, inner) } else { inner };
        field(step.number(), inner)
    })
}

#[test]
fn what_nobody_knows_is_refused_at_every_place_of_what_people_write() {
    let commands = rights::peoples_commands(contract()).map(|event| event.message.as_str());
    let messages: BTreeSet<&str> =
        commands.chain(document::WRITTEN_BY_PEOPLE.iter().map(|(_, message)| *message)).collect();
    let mut places = 0;
    for message in &messages {
        let descriptor = json::descriptor(message).unwrap();
        let mut all = vec![];
        ways(&descriptor, &[], &mut all);
        for way in all {
            places += 1;
            let (value, path) = said(&way);
            let text = value.to_string();
            for written in [Written::json(text.as_bytes()), Written::yaml(&format!("--- {text}\n"))] {
                let refused = json::written_to_protobuf(message, &written.unwrap()).unwrap_err().to_string();
                assert!(refused.contains(&format!("{path}: unknown field")), "{message}: {refused}");
            }
            let steps = way.iter().map(FieldDescriptor::json_name);
            let unknown = wire::unknown(&descriptor, &body(&way)).unwrap();
            let expected = steps.chain(["1023"]).collect::<Vec<_>>().join(".");
            assert_eq!(unknown.replace(".value.", "."), expected, "{message}");
        }
    }
    println!("{places} places of {} messages: an unknown member is refused at each", messages.len());
    assert!(messages.len() > 30 && places > 80, "{} {places}", messages.len());
}
