//! Values that are shown to nobody: which attributes hold them, and what is shown in their place.
//!
//! A fingerprint tells two secrets apart and nothing else. Who reads an intent, changes it and sends it back sends
//! fingerprints; [`restore`] puts the secrets that they stand for in their place.

use mesh_proto::{
    derived_id,
    intent::{Context, ExpectationTarget, Intent},
};
use serde_json::Value as Json;

/// Attributes whose values are secrets, in lower case. Not `api_key`, which the printed intents give the address of a
/// cluster's API.
const ATTRIBUTES: [&str; 7] = ["bearer_token", "beare_token", "bearertoken", "token", "password", "md5", "secret"];
/// What a fingerprint begins with.
const PREFIX: &str = "secret:";
/// Hexadecimal digits of a fingerprint.
const DIGITS: usize = 8;

/// Is the value of this attribute a secret?
pub fn is_secret(attribute: &str) -> bool {
    ATTRIBUTES.iter().any(|known| attribute.eq_ignore_ascii_case(known))
}

/// What is shown instead of a secret.
pub fn fingerprint(secret: &str) -> String {
    let digest = derived_id(&["secret", secret]);
    format!("{PREFIX}{}", digest.get(..DIGITS).unwrap_or(&digest))
}

/// Is this what is shown instead of a secret?
pub fn is_fingerprint(text: &str) -> bool {
    text.strip_prefix(PREFIX).is_some_and(|rest| rest.len() == DIGITS && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The intent with a fingerprint in place of each of its secrets.
pub fn redact(mut intent: Intent) -> Intent {
    each(&mut intent, &mut |value| {
        if !value.is_empty() && !is_fingerprint(value) {
            *value = fingerprint(value);
        }
    });
    intent
}

/// Puts the secrets of an earlier document in the place of their fingerprints. Did it hold any that are known?
pub fn restore(intent: &mut Intent, earlier: &Intent) -> bool {
    let mut known = vec![];
    each(&mut earlier.clone(), &mut |value| known.push((fingerprint(value), std::mem::take(value))));
    let mut restored = false;
    each(intent, &mut |value| {
        if let Some((_, secret)) = known.iter().find(|(shown, _)| shown == value) {
            value.clone_from(secret);
            restored = true;
        }
    });
    restored
}

/// Does a document hold a secret, or what is shown in place of one?
pub fn holds(intent: &Intent) -> bool {
    let mut contexts = lists(intent).into_iter().flatten();
    contexts.any(|context| is_secret(&context.context_attribute))
        || targets(intent).any(|target| is_secret(&target.target_name))
}

fn targets(intent: &Intent) -> impl Iterator<Item = &ExpectationTarget> {
    intent.intent_expectations.iter().flat_map(|e| &e.expectation_targets)
}

fn lists(intent: &Intent) -> Vec<&Vec<Context>> {
    let mut all = vec![&intent.intent_contexts];
    for expectation in &intent.intent_expectations {
        all.push(&expectation.expectation_contexts);
        all.extend(expectation.expectation_object.as_ref().map(|o| &o.object_contexts));
        all.extend(expectation.expectation_targets.iter().map(|t| &t.target_contexts));
    }
    all
}

/// Looks at the value of each secret.
fn each(intent: &mut Intent, look: &mut dyn FnMut(&mut String)) {
    let contexts = |list: &mut Vec<Context>, look: &mut dyn FnMut(&mut String)| {
        for context in list.iter_mut().filter(|c| is_secret(&c.context_attribute)) {
            look(&mut context.context_value_range);
        }
    };
    contexts(&mut intent.intent_contexts, look);
    for expectation in &mut intent.intent_expectations {
        contexts(&mut expectation.expectation_contexts, look);
        if let Some(object) = &mut expectation.expectation_object {
            contexts(&mut object.object_contexts, look);
        }
        for target in &mut expectation.expectation_targets {
            contexts(&mut target.target_contexts, look);
            if is_secret(&target.target_name) {
                look(&mut target.target_value_range);
            }
        }
    }
}

/// A JSON value with its secrets replaced: fields that are named so, and items of which an attribute is.
pub fn redact_json(value: &Json) -> Json {
    shown(value, true)
}

/// A JSON value with the secrets of its intents replaced: items of which an attribute is. What else is named like one, such
/// as the token of a page, is left.
pub fn redact_contexts(value: &Json) -> Json {
    shown(value, false)
}

fn shown(value: &Json, by_name: bool) -> Json {
    match value {
        Json::Object(fields) => {
            let attribute = ["contextAttribute", "context_attribute", "targetName", "target_name"];
            let of_secret =
                attribute.iter().any(|name| fields.get(*name).and_then(Json::as_str).is_some_and(is_secret));
            let ranges = ["contextValueRange", "context_value_range", "targetValueRange", "target_value_range"];
            let entry = |(name, value): (&String, &Json)| {
                let hidden = (by_name && is_secret(name)) || (of_secret && ranges.contains(&name.as_str()));
                (name.clone(), if hidden { hidden_json(value) } else { shown(value, by_name) })
            };
            Json::Object(fields.iter().map(entry).collect())
        }
        Json::Array(items) => Json::Array(items.iter().map(|item| shown(item, by_name)).collect()),
        other => other.clone(),
    }
}

fn hidden_json(value: &Json) -> Json {
    let text = match value {
        Json::String(text) => text.clone(),
        Json::Number(_) | Json::Bool(_) => value.to_string(),
        Json::Null | Json::Array(_) | Json::Object(_) => return Json::String(String::new()),
    };
    Json::String(if is_fingerprint(&text) { text } else { fingerprint(&text) })
}

#[cfg(test)]
mod tests {
    use mesh_proto::intent::{ExpectationObject, IntentExpectation};
    use serde_json::json;

    use super::*;

    fn context(attribute: &str, value: &str) -> Context {
        Context { context_attribute: attribute.into(), context_value_range: value.into(), ..Default::default() }
    }

    /// Secrets in every list that has contexts.
    fn intent(secret: &str) -> Intent {
        Intent {
            intent_contexts: vec![context("NEMO_WORKLOAD", "w"), context("Password", &format!("{secret}0"))],
            intent_expectations: vec![IntentExpectation {
                expectation_contexts: vec![context("token", &format!("{secret}1")), context("url", "https://h")],
                expectation_object: Some(ExpectationObject {
                    object_contexts: vec![context("bearer_token", &format!("{secret}2")), context("name", "c")],
                    ..Default::default()
                }),
                expectation_targets: vec![ExpectationTarget {
                    target_name: "bandwidth".into(),
                    target_value_range: "10".into(),
                    target_contexts: vec![context("MD5", &format!("{secret}3"))],
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn no_secret_is_left_wherever_it_stands_and_all_else_is() {
        let shown = redact(intent("s.e.c.r.e.t"));
        let text = format!("{shown:?}");
        assert!(!text.contains("s.e.c.r.e.t"), "{text}");
        for kept in ["NEMO_WORKLOAD", "https://h", "\"c\"", "\"10\""] {
            assert!(text.contains(kept), "{kept}: {text}");
        }
        assert_eq!(text.matches("secret:").count(), 4);
        assert_eq!(redact(shown.clone()), shown, "what is hidden stays as it is");
        assert!(holds(&shown) && !holds(&Intent::default()));
    }

    #[test]
    fn a_secret_that_was_read_as_its_fingerprint_is_put_back() {
        let (mut read, was) = (redact(intent("s")), intent("s"));
        assert!(restore(&mut read, &was));
        assert_eq!(read, was);
        let mut other = redact(intent("t"));
        let before = other.clone();
        assert!(!restore(&mut other, &was), "the fingerprints of other secrets are not known");
        assert_eq!(other, before);
    }

    #[test]
    fn json_is_hidden_by_attribute_and_where_it_is_asked_by_name() {
        let value =
            json!({"contexts": [{"contextAttribute": "md5", "contextValueRange": "s3cret"}], "token": "s3cret"});
        assert!(!redact_json(&value).to_string().contains("s3cret"));
        let shown = redact_contexts(&value);
        assert_eq!((&shown["token"], shown["contexts"].to_string().contains("s3cret")), (&json!("s3cret"), false));
        assert_eq!(redact_json(&redact_json(&value)), redact_json(&value));
    }
}
