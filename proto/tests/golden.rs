//! Encodings of every event, kept: what was written once is read for ever, and written back as it was.
//! `UPDATE_GOLDEN=1` adds the missing ones and changes none.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]
#![allow(missing_docs)]

use std::{env, fs, path::PathBuf, sync::OnceLock};

use bytes::Bytes;
use mesh_proto::{DecodeError, contract, deciders, json, pool, wire};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value, prost::Message as _};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Decodes a body as its stream's typed event and encodes it again.
fn again(stream: &str, message: &str, body: &[u8]) -> Result<Bytes, DecodeError> {
    deciders::of_stream(stream, message, body, |event| event.body())
}

/// A message with every field set, to something that depends on its place only.
fn full(descriptor: &MessageDescriptor, depth: usize) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        if depth > 6 {
            break;
        }
        let value = if let (true, Kind::Message(entry)) = (field.is_map(), field.kind()) {
            let value = one(&entry.map_entry_value_field(), depth);
            Value::Map([(MapKey::String(format!("key-{}", field.number())), value)].into())
        } else if field.is_list() {
            Value::List(vec![one(&field, depth), one(&field, depth)])
        } else {
            one(&field, depth)
        };
        message.set_field(&field, value);
    }
    message
}

fn one(field: &FieldDescriptor, depth: usize) -> Value {
    let number = field.number();
    match field.kind() {
        Kind::Double => Value::F64(f64::from(number) + 0.25),
        Kind::Float => Value::F32(number as f32 + 0.5),
        Kind::Bool => Value::Bool(true),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(-(number as i32)),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(i64::from(number) << 33),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(number + 1_000),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(u64::from(number) << 40),
        Kind::String => Value::String(format!("{}-{number}", field.name())),
        Kind::Enum(values) => Value::EnumNumber(values.values().last().unwrap().number()),
        Kind::Message(inner) if inner.full_name() == "google.protobuf.Timestamp" => {
            let mut time = DynamicMessage::new(inner);
            time.set_field_by_name("seconds", Value::I64(1_795_318_929));
            time.set_field_by_name("nanos", Value::I32(462_000_000));
            Value::Message(time)
        }
        Kind::Message(inner) => Value::Message(full(&inner, depth + 1)),
        Kind::Bytes => {
            let extension = pool().get_extension_by_name("continuum.mesh.v1.embeds").unwrap();
            let options = field.options();
            let embeds = options.get_extension(&extension);
            let inner = embeds.as_str().and_then(|name| pool().get_message_by_name(name));
            let body = inner.map_or(vec![number as u8; 3], |inner| full(&inner, depth + 1).encode_to_vec());
            Value::Bytes(body.into())
        }
    }
}

/// Stream, message and kept encoding of every event. Read once: tests run side by side, and a missing one is written.
fn golden() -> &'static [(String, String, Vec<u8>)] {
    static GOLDEN: OnceLock<Vec<(String, String, Vec<u8>)>> = OnceLock::new();
    GOLDEN.get_or_init(read_golden)
}

fn read_golden() -> Vec<(String, String, Vec<u8>)> {
    let mut all = vec![];
    for event in &contract().events {
        let path = folder().join(format!("{}.bin", event.message));
        if !path.exists() && env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(folder()).unwrap();
            fs::write(&path, full(&pool().get_message_by_name(&event.message).unwrap(), 0).encode_to_vec()).unwrap();
        }
        let body = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; UPDATE_GOLDEN=1 adds it", path.display()));
        all.push((event.stream.clone(), event.message.clone(), body));
    }
    all
}

#[test]
fn what_was_encoded_once_is_decoded_and_encoded_the_same() {
    for (stream, message, body) in golden() {
        assert!(!body.is_empty(), "{message}");
        let written = again(stream, message, body).unwrap_or_else(|e| panic!("{message}: {e}"));
        assert!(written == *body, "{message} is written differently than before");
    }
}

#[test]
fn every_kept_encoding_belongs_to_an_event_of_the_contract() {
    golden();
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let message = name.strip_suffix(".bin").unwrap();
        assert!(contract().event(message).is_some(), "{message} was removed: old messages of it are still stored");
    }
}

#[test]
fn a_message_is_the_same_after_a_way_through_json() {
    for (_, message, body) in golden() {
        let holds_bytes = pool().get_message_by_name(message).unwrap().fields().any(|f| f.kind() == Kind::Bytes);
        let value = json::to_value(message, body).unwrap();
        if !holds_bytes {
            assert_eq!(json::value_to_protobuf(message, value).unwrap(), *body, "{message}");
        }
    }
}

/// A small generator with a seed, so that a failure is found again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Whatever bytes come, decoding says yes or no and does not panic.
#[test]
fn no_bytes_make_a_decoder_panic() {
    let mut random = Random(0x5eed_c0de_0000_0001);
    let (mut accepted, mut refused) = (0, 0);
    for (stream, message, body) in golden() {
        let mut tries: Vec<Vec<u8>> = (0..body.len()).map(|cut| body[..cut].to_vec()).collect();
        for _ in 0..300 {
            let mut changed = body.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(changed.len());
                changed[at] = random.next() as u8;
            }
            tries.push(changed);
            tries.push((0..random.below(200)).map(|_| random.next() as u8).collect());
        }
        // Nested beyond any depth that protobuf allows.
        tries.push([0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f].repeat(1_000));
        tries.push([0x0b].repeat(10_000));
        for bytes in tries {
            let _ = wire::field(&bytes, 3);
            let _ = json::to_value(message, &bytes);
            match again(stream, message, &bytes) {
                Ok(_) => accepted += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(accepted > 0 && refused > 0, "{accepted} {refused}");
}

/// Whatever text comes, reading it as JSON says yes or no and does not panic.
#[test]
fn no_text_makes_the_json_reader_panic() {
    const ODD: &[u8] = b"{}[]\":,0-9eE+.tfn\\u\x00\xff";
    let mut random = Random(0x5eed_c0de_0000_0002);
    let (mut accepted, mut refused) = (0, 0);
    for (_, message, body) in golden() {
        let text = json::to_value(message, body).unwrap().to_string().into_bytes();
        let mut tries: Vec<Vec<u8>> = (0..100).map(|_| text[..random.below(text.len())].to_vec()).collect();
        tries.push(text.clone());
        for _ in 0..200 {
            let mut changed = text.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(changed.len());
                changed[at] = ODD[random.below(ODD.len())];
            }
            tries.push(changed);
        }
        tries.push("[".repeat(100_000).into_bytes());
        tries.push(format!("{}1{}", "{\"intent\":".repeat(120), "}".repeat(120)).into_bytes());
        for bytes in tries {
            match json::to_protobuf(message, &bytes) {
                Ok(_) => accepted += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(accepted > 0 && refused > 0, "{accepted} {refused}");
}
