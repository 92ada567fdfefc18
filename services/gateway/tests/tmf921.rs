//! What is sent as TMF921 is valid by its published components.

#![cfg(test)]

use std::path::PathBuf;

use gateway::domain::tmf;
use mesh_proto::{
    Timestamp,
    intent::{FulfilmentStatus, Intent, IntentSubmitted, IntentView, NotFulfilledState, State},
    report::{FulfilmentInfo, IntentFulfilmentReport, ReportPublished},
    validation::{CheckReply, Prediction},
};
use notifier::domain::events;
use prost::Message as _;
use serde_json::{Value as Json, json};

/// The published components as one JSON schema, where they lie beside the project. Changed only for what a `discriminator`
/// says, which a validator does not hear: that of expressions is followed below, and alternatives that it tells apart
/// (a reference is an intent of few words, too) need not exclude each other.
fn components() -> Option<Json> {
    let start = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let name = "shared/spec/standards/TMF921_Intent_Management_v5.0.0.oas.yaml";
    let Some(file) = start.ancestors().map(|folder| folder.join(name)).find(|file| file.is_file()) else {
        eprintln!("SKIPPED: not checked against TMF921: there is no {name} beside the project");
        return None;
    };
    let whole: Json = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let text = whole["components"]["schemas"]
        .to_string()
        .replace("#/components/schemas/", "#/$defs/")
        .replace("\"oneOf\"", "\"anyOf\"");
    Some(serde_json::from_str(&text).unwrap())
}

fn problems(components: &Json, name: &str, value: &Json) -> Vec<String> {
    let schema = json!({"$ref": format!("#/$defs/{name}"), "$defs": components});
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let mut found: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{name}: {}: {error}", error.instance_path)).collect();
    // What the discriminator of an expression leads to.
    if name != "JsonLdExpression" && value["expression"]["@type"] == "JsonLdExpression" {
        found.extend(problems(components, "JsonLdExpression", &value["expression"]));
    }
    found
}

fn intent() -> Intent {
    let value = json!({"userLabel": "DeliverComputingWorkload", "intentPriority": 7, "intentExpectations": [{
        "expectationId": "a", "expectationVerb": "DELIVER",
        "expectationObject": {"objectType": "NEMO_WORKLOAD", "objectInstance": "spinner@1.0.0"},
        "expectationTargets": [{"targetName": "cpuUsage", "targetCondition": "IS_LESS_THAN", "targetValueRange": "20"}],
    }]});
    mesh_proto::json::from_value("continuum.intent.v1.Intent", value).unwrap()
}

fn view() -> IntentView {
    let info = FulfilmentInfo {
        fulfilment_status: FulfilmentStatus::NotFulfilled.into(),
        not_fulfilled_state: NotFulfilledState::Degraded.into(),
        not_fulfilled_reasons: vec!["cpuUsage is 34 %".into()],
        remarks: vec!["cpuUsage is modelled, not measured".into()],
    };
    IntentView {
        owner: "local".into(),
        intent_id: "plant".into(),
        version: 2,
        intent: Some(intent()),
        state: Some(State {
            fulfilment_status: FulfilmentStatus::NotFulfilled.into(),
            not_fulfilled_state: NotFulfilledState::Degraded.into(),
            reason: "cpuUsage is 34 %".into(),
            ..State::default()
        }),
        since: Some(Timestamp::from_millis(1_800_000_000_000)),
        report: Some(ReportPublished {
            owner: "local".into(),
            intent_id: "plant".into(),
            intent_fulfilment_report: Some(IntentFulfilmentReport {
                intent_fulfilment_info: Some(info),
                ..IntentFulfilmentReport::default()
            }),
            last_updated_time: Some(Timestamp::from_millis(1_800_000_000_000)),
            ..ReportPublished::default()
        }),
        ..IntentView::default()
    }
}

#[test]
fn what_is_answered_is_valid_by_the_published_components() {
    let Some(components) = components() else { return };
    let none = |name: &str, value: &Json| assert_eq!(problems(&components, name, value), [""; 0], "{value:#}");
    let shown = tmf::intent(&view());
    none("Intent", &shown);
    none("Intent_FVO", &shown);
    none("IntentReport", &tmf::report(&view()).unwrap());
    let reply = CheckReply {
        predictions: vec![Prediction { cluster_id: "edge".into(), watts: 3.5, ..Prediction::default() }],
        predicted_state: "FULFILLED".into(),
        watts: 3.5,
        joules_per_day: 302_400.0,
        credits_per_day: 1.5,
        ..CheckReply::default()
    };
    let probe = tmf::probe("p", &tmf::read(&shown).unwrap().intent, &reply);
    none("ProbeIntent", &probe);
    none("IntentReport", &probe["intentReport"]);
    for characteristic in probe["characteristic"].as_array().unwrap() {
        none("NumberCharacteristic", characteristic);
    }
    none("Hub", &tmf::hub("s", "https://listener.example/", "eventType=IntentCreateEvent"));
    // The components do refuse what is not theirs.
    let mut wrong = shown.clone();
    wrong["priority"] = json!(7);
    wrong["expression"]["expressionValue"] = json!("text");
    assert!(problems(&components, "Intent", &wrong).len() >= 2, "{wrong:#}");
    let mut nameless = shown;
    nameless.as_object_mut().unwrap().remove("@type");
    assert!(!problems(&components, "Intent", &nameless).is_empty());
}

#[test]
fn events_of_every_kind_are_valid_by_the_published_components() {
    let Some(components) = components() else { return };
    let fact = IntentSubmitted {
        owner: "local".into(),
        intent_id: "plant".into(),
        version: 1,
        document: intent().encode_to_vec().into(),
        ..IntentSubmitted::default()
    };
    let stored = mesh_test::stored(&fact, 1, Timestamp::from_millis(1_800_000_000_000));
    for kind in events::Kind::ALL {
        let body = events::body(kind, &view(), &stored);
        assert_eq!(problems(&components, kind.name(), &body), [""; 0], "{body:#}");
        assert_eq!(problems(&components, "Intent", &body["event"]["intent"]), [""; 0], "{body:#}");
        let mut wrong = body;
        wrong["eventTime"] = json!(7);
        assert!(!problems(&components, kind.name(), &wrong).is_empty(), "{}", kind.name());
    }
}

#[test]
fn the_published_examples_of_intents_are_understood_as_what_they_are() {
    let Some(components) = components() else { return };
    // Their ontology is another's: they are refused for it, by the field, and for nothing else.
    let body = json!({"@type": "Intent", "name": "EventLiveBroadcast", "expression": {"@type": "JsonLdExpression",
        "iri": "https://mycsp.com:8080/tmf-api/rdfs/expression-example-1",
        "expressionValue": {"@context": {"icm": "http://www.models.tmforum.org/tio/v1.0.0/IntentCommonModel#"},
            "idan:EventLiveBroadcast000001": {"@type": "icm:Intent"}}}});
    assert_eq!(problems(&components, "Intent_FVO", &body), [""; 0]);
    let refused = tmf::read(&body).unwrap_err();
    assert_eq!(refused.status(), 422);
    assert!(refused.detail.contains("idan:EventLiveBroadcast000001"), "{refused:?}");
}
