//! A mode for tests that replaces every reason and hint by random text: what still works decides on no wording.
//!
//! It is a switch of the whole process, and off. The same text always becomes the same random text, so that a repeated
//! fact stays the same fact.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use prost_reflect::{DynamicMessage, Kind, Value, prost::Message as _};

use crate::derived_id;

static RANDOM: AtomicBool = AtomicBool::new(false);

/// Fields that hold text for people, in every message.
const FIELDS: [&str; 2] = ["reason", "hint"];

/// Replaces reasons and hints by random text from now on, in this process.
pub fn randomise() {
    RANDOM.store(true, Ordering::Relaxed);
}

/// Are reasons and hints replaced by random text?
fn is_random() -> bool {
    RANDOM.load(Ordering::Relaxed)
}

/// This reason or hint; random text instead in the mode for tests.
pub fn text(written: impl Into<String>) -> String {
    let written = written.into();
    if is_random() && !is_replaced(&written) { random(&written) } else { written }
}

/// The encoded body of an event; with every reason and hint in it replaced in the mode for tests.
pub fn body(message: &str, body: Bytes) -> Bytes {
    if !is_random() {
        return body;
    }
    let Some(descriptor) = crate::pool().get_message_by_name(message) else { return body };
    let Ok(mut decoded) = DynamicMessage::decode(descriptor, body.clone()) else { return body };
    replace(&mut decoded);
    decoded.encode_to_vec().into()
}

/// Four random words, the same for the same text; none for none.
fn random(written: &str) -> String {
    if written.is_empty() {
        return String::new();
    }
    let letter = |digit: u8| if digit.is_ascii_digit() { digit - b'0' + b'g' } else { digit };
    let id = derived_id(&["wording", written]);
    let letters: Vec<char> = id.bytes().filter(|byte| *byte != b'-').map(|byte| char::from(letter(byte))).collect();
    letters.chunks(8).map(String::from_iter).collect::<Vec<_>>().join(" ")
}

fn replace(message: &mut DynamicMessage) {
    for (field, value) in message.fields_mut() {
        let text = matches!(field.kind(), Kind::String) && FIELDS.contains(&field.name());
        match value {
            Value::String(written) if text && !is_replaced(written) => *written = random(written),
            Value::Message(inner) => replace(inner),
            Value::List(values) => {
                for value in values {
                    match value {
                        Value::Message(inner) => replace(inner),
                        Value::String(written) if text && !is_replaced(written) => *written = random(written),
                        _ => {}
                    }
                }
            }
            Value::Map(values) => {
                for value in values.values_mut() {
                    if let Value::Message(inner) = value {
                        replace(inner);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Does this text look as [`random`] makes it? A refusal's text is replaced when the refusal is made.
fn is_replaced(text: &str) -> bool {
    text.len() == 35 && text.split(' ').all(|word| word.len() == 8 && word.bytes().all(|b| b.is_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        AnyEvent as _,
        intent::{IntentRefused, IntentSubmitted},
    };

    #[test]
    fn random_text_is_the_same_for_the_same_text_and_keeps_nothing_of_it() {
        let (one, other) = (random("the intent is FULFILLED"), random("the intent is DEGRADED"));
        assert_eq!(one, random("the intent is FULFILLED"));
        assert_ne!(one, other);
        assert!(is_replaced(&one) && !is_replaced("the intent is FULFILLED"));
        assert_eq!(random(""), "");
    }

    #[test]
    fn reasons_and_hints_are_replaced_and_all_else_stays() {
        let refused =
            IntentRefused { reason: "no".into(), hint: "go".into(), intent_id: "a".into(), ..Default::default() };
        let mut decoded =
            DynamicMessage::decode(crate::pool().get_message_by_name(refused.message()).unwrap(), refused.body())
                .unwrap();
        replace(&mut decoded);
        let replaced = IntentRefused::decode(decoded.encode_to_vec().as_slice()).unwrap();
        assert_eq!(replaced, IntentRefused { reason: random("no"), hint: random("go"), ..refused });
        let submitted = IntentSubmitted { owner: "reason".into(), ..Default::default() };
        assert_eq!(body(submitted.message(), submitted.body()), submitted.body());
    }
}
