//! Reading protobuf bytes without losing what this version does not know.

use bytes::{Bytes, BytesMut};
use prost_reflect::{Kind, MessageDescriptor};

use crate::json;

/// How deep messages are looked into; the decoder stops there.
const DEPTH_MAX: usize = 100;

/// The bytes of a length-delimited field, as they came in; several occurrences are merged, as protobuf does.
/// `None` if the field is absent or the body is not protobuf.
pub fn field(body: &[u8], number: u64) -> Option<Bytes> {
    let mut rest = body;
    let mut found: Option<BytesMut> = None;
    while !rest.is_empty() {
        let (of, value) = next(&mut rest)?;
        if let Some(value) = value.filter(|_| of == number) {
            found.get_or_insert_default().extend_from_slice(value);
        }
    }
    found.map(BytesMut::freeze)
}

/// Takes the next field off: its number, and its bytes if it is length-delimited. `None` if this is not protobuf.
fn next<'a>(rest: &mut &'a [u8]) -> Option<(u64, Option<&'a [u8]>)> {
    let tag = varint(rest)?;
    let mut value = None;
    match tag & 7 {
        0 => {
            varint(rest)?;
        }
        1 => *rest = rest.get(8..)?,
        5 => *rest = rest.get(4..)?,
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            value = Some(rest.get(..length)?);
            *rest = rest.get(length..)?;
        }
        _ => return None,
    }
    Some((tag >> 3, value))
}

/// How many length-delimited fields the bytes have, those inside of others included: an upper bound for what a decoder
/// allocates, whatever the message. `None` if there are more than `max`, or if this is not protobuf.
pub fn parts(body: &[u8], max: usize) -> Option<usize> {
    let mut count = 0;
    parts_below(body, max, DEPTH_MAX, &mut count).filter(|()| count <= max).map(|()| count)
}

/// `None` if this is not protobuf; `count` may be beyond `max` then.
fn parts_below(body: &[u8], max: usize, depth: usize, count: &mut usize) -> Option<()> {
    let mut rest = body;
    while !rest.is_empty() {
        let (_, value) = next(&mut rest)?;
        let Some(value) = value else { continue };
        *count += 1;
        if *count > max {
            return None;
        }
        if depth > 0 {
            // Text and numbers are not protobuf, mostly: then only what was read as if it were counts too much.
            let _text = parts_below(value, max, depth - 1, count);
        }
    }
    Some(())
}

/// The first field that the message does not have, by the names that lead to it and its number; in embedded documents,
/// too. What is not protobuf is left to the decoder.
pub fn unknown(descriptor: &MessageDescriptor, body: &[u8]) -> Option<String> {
    unknown_below(descriptor, body, DEPTH_MAX)
}

fn unknown_below(descriptor: &MessageDescriptor, body: &[u8], depth: usize) -> Option<String> {
    let mut rest = body;
    while !rest.is_empty() {
        // Whatever its type: a decoder passes over an unknown group, too.
        let number = varint(&mut &*rest)? >> 3;
        let field = u32::try_from(number).ok().and_then(|number| descriptor.get_field(number));
        let Some(field) = field else { return Some(number.to_string()) };
        let (_, value) = next(&mut rest)?;
        let inner = match field.kind() {
            Kind::Message(inner) => Some(inner),
            Kind::Bytes => json::embedded(&field).and_then(|name| json::descriptor(&name).ok()),
            _ => None,
        };
        let inner = inner.zip(value).filter(|_| depth > 0);
        if let Some(found) = inner.and_then(|(inner, value)| unknown_below(&inner, value, depth - 1)) {
            return Some(format!("{}.{found}", field.json_name()));
        }
    }
    None
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Bytes as base64 text in snapshots (RFC 4648 §4).
pub mod as_base64 {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes bytes as base64 text.
    ///
    /// # Errors
    /// What the serializer says.
    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    /// Reads base64 text as bytes.
    ///
    /// # Errors
    /// When it is not base64.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Bytes::from).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::intent::{Intent, SubmitIntent};

    #[test]
    fn a_field_is_read_as_it_came_with_fields_nobody_here_knows() {
        let intent = Intent { user_label: "x".into(), ..Default::default() };
        let mut inner = intent.encode_to_vec();
        inner.extend([0xf8, 0x3f, 0x07]); // field 1023, varint 7
        let mut body = SubmitIntent { owner: "o".into(), ..Default::default() }.encode_to_vec();
        body.push(3 << 3 | 2);
        body.push(inner.len() as u8);
        body.extend(&inner);
        assert_eq!(field(&body, 3).as_deref(), Some(inner.as_slice()));
        assert_eq!(field(&body, 9), None);
        assert_eq!(field(&body[..body.len() - 1], 3), None);
    }

    #[test]
    fn fields_with_a_length_are_counted_at_any_depth_up_to_a_limit() {
        let intent = Intent { user_label: "\u{7f}\u{7f}".into(), ..Default::default() };
        let body =
            SubmitIntent { intent_id: "\u{7f}".into(), intent: Some(intent), ..Default::default() }.encode_to_vec();
        assert_eq!((parts(&body, 3), parts(&body, 2)), (Some(3), None));
        assert_eq!((parts(&[], 0), parts(&[0x0a, 0x00].repeat(50), 50), parts(&[0x0a], 9)), (Some(0), Some(50), None));
        // As deep as bytes allow.
        let mut deep: Vec<u8> = vec![];
        for _ in 0..200 {
            let length = deep.len();
            let varint = if length < 128 { vec![length as u8] } else { vec![length as u8 | 0x80, (length >> 7) as u8] };
            deep = [vec![0x0a], varint, deep].concat();
        }
        assert!(parts(&deep, 1_000).is_some_and(|count| (DEPTH_MAX..=DEPTH_MAX + 1).contains(&count)));
    }

    #[test]
    fn a_field_that_no_message_has_is_found_at_any_depth() {
        let of = |message: &str| json::descriptor(message).unwrap();
        let submit = of("continuum.intent.v1.SubmitIntent");
        let extra = [0xf8, 0x3f, 0x07]; // field 1023, varint 7
        let intent = |body: Vec<u8>| [vec![3 << 3 | 2, body.len() as u8], body].concat();
        let plain = Intent { user_label: "x".into(), intent_contexts: vec![Default::default()], ..Default::default() };
        assert_eq!(unknown(&submit, &intent(plain.encode_to_vec())), None);
        assert_eq!(unknown(&submit, &extra).as_deref(), Some("1023"));
        let group = [0xfb, 0x3f, 0xfc, 0x3f]; // field 1023, an empty group
        assert_eq!(unknown(&submit, &group).as_deref(), Some("1023"));
        assert_eq!(unknown(&submit, &intent(extra.to_vec())).as_deref(), Some("intent.1023"));
        let context = [vec![8 << 3 | 2, 3], extra.to_vec()].concat();
        let inner = of("continuum.intent.v1.Intent").get_field_by_name("intent_contexts").unwrap().number();
        let context = [vec![(inner << 3 | 2) as u8], context[1..].to_vec()].concat();
        assert_eq!(unknown(&submit, &intent(context)).as_deref(), Some("intent.intentContexts.1023"));
        // Documents that a fact embeds as bytes.
        let document = intent(extra.to_vec());
        let submitted = of("continuum.intent.v1.IntentSubmitted");
        let number = submitted.get_field_by_name("document").unwrap().number();
        let body = [vec![(number << 3 | 2) as u8], document[1..].to_vec()].concat();
        assert_eq!(unknown(&submitted, &body).as_deref(), Some("document.1023"));
        assert_eq!(unknown(&submit, &[0xff]), None, "the decoder says what is wrong");
    }
}
