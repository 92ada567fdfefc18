//! The files in `schemas/` are what the contract says. `UPDATE_SCHEMAS=1` writes them again.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]
#![allow(missing_docs)]

use std::{env, fs, path::Path};

use mesh_proto::{contract, document, rights};
use serde_json::{Value, json};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas")
}

#[test]
fn the_files_in_schemas_are_current() {
    let update = env::var_os("UPDATE_SCHEMAS").is_some();
    fs::create_dir_all(folder()).unwrap();
    let mut stale = vec![];
    for (name, text) in document::files(contract()) {
        let path = folder().join(&name);
        if update {
            fs::write(&path, &text).unwrap();
        } else if fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
            stale.push(name);
        }
    }
    assert!(stale.is_empty(), "{stale:?} differ from the contract; run UPDATE_SCHEMAS=1 cargo test -p mesh-proto");
}

/// Every `$ref` in a document, followed.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(target)) = object.get("$ref") {
                found.push(target.clone());
            }
            object.values().for_each(|v| references(v, found));
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

#[test]
fn every_reference_in_a_document_leads_somewhere() {
    let documents = document::WRITTEN_BY_PEOPLE.iter().map(|(_, m)| document::json_schema(m).unwrap());
    for document in documents.chain([document::asyncapi(contract())]) {
        let mut found = vec![];
        references(&document, &mut found);
        assert!(!found.is_empty());
        for target in found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
    }
}

#[test]
fn asyncapi_names_every_event_its_sender_and_where_it_is_published() {
    let document = document::asyncapi(contract());
    assert_eq!(document["channels"].as_object().unwrap().len(), contract().events.len());
    let submitted = &document["channels"]["intent-submitted-v1"];
    assert_eq!(submitted["address"], json!("intent.submitted.v1.{owner}.{intent_id}"));
    assert_eq!(submitted["x-published-on"], json!("w.intent.submitted.v1.{owner}.{intent_id}"));
    assert_eq!(document["operations"]["intent-manager.sends.intent-submitted-v1"]["action"], json!("send"));
    assert_eq!(document["operations"]["validator.receives.intent-submitted-v1"]["action"], json!("receive"));
    assert!(document["operations"].get("validator.sends.intent-submitted-v1").is_none());
}

#[test]
fn the_intent_schema_knows_its_fields_and_no_others() {
    let schema = document::json_schema("continuum.intent.v1.Intent").unwrap();
    assert_eq!(schema["additionalProperties"], json!(false));
    assert!(schema["properties"].get("intentExpectations").is_some());
    assert!(schema["properties"].get("intent_expectations").is_none());
    let target = &schema["$defs"]["continuum.intent.v1.ExpectationTarget"];
    assert_eq!(target["required"], json!(["targetName", "targetCondition", "targetValueRange"]));
    // Every field that is required exists, or a document could never fit.
    for object in schema["$defs"].as_object().unwrap().values().chain([&schema]) {
        for field in object["required"].as_array().into_iter().flatten() {
            assert!(object["properties"].get(field.as_str().unwrap()).is_some(), "{field}");
        }
    }
}

#[test]
fn permissions_list_every_identity() {
    let listed = document::permissions(contract());
    assert_eq!(listed.as_object().unwrap().len(), rights::all(contract()).len());
    assert!(listed["validator"]["publish"].as_array().unwrap().contains(&json!("w.validation.intent_accepted.v1.*.*")));
}
