//! The intents that the specification prints are read, and nothing of them is lost; what this project writes as TS 28.312
//! is valid by the published components.

#![cfg(test)]

use std::path::PathBuf;

use mesh_intent::{Bound, standard, template, types};
use mesh_proto::{
    Timestamp,
    intent::{ExpectationTarget, FulfilmentStatus, Intent, IntentConflict, NotFulfilledState},
    json,
    report::{
        ExpectationFulfilmentResult, FulfilmentInfo, IntentFeasibilityCheckReport, IntentFulfilmentReport,
        IntentReport, TargetFulfilmentResult,
    },
};
use prost::Message as _;
use serde_json::{Value as Json, json};

const INTENT: &str = "continuum.intent.v1.Intent";

/// The TFS and L2SM annexes, and the report example.
const PRINTED: [(&str, &str); 3] = [
    ("l2vpn", include_str!("../../../examples/network/l2vpn.yaml")),
    ("l2sm", include_str!("../../../examples/network/l2sm.yaml")),
    ("report", include_str!("../../../examples/intents/report.intent.yaml")),
];

fn printed() -> impl Iterator<Item = (&'static str, Json)> {
    PRINTED.iter().map(|(name, text)| {
        let value: Json = serde_saphyr::from_str(text).unwrap();
        (*name, value.get("Intent").cloned().unwrap_or(value))
    })
}

/// What a value says whatever it is spelt: camelCase, scalars as text, and what is empty left out.
fn said(value: &Json) -> Json {
    match value {
        Json::Object(fields) => {
            let camel = |name: &str| {
                let mut parts = name.split('_');
                let first = parts.next().unwrap_or_default().to_owned();
                parts.fold(first, |all, part| {
                    let mut chars = part.chars();
                    let head = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
                    all + &head + chars.as_str()
                })
            };
            let kept = fields.iter().map(|(name, value)| (camel(name), said(value)));
            Json::Object(kept.filter(|(_, value)| !value.is_null()).collect())
        }
        Json::Array(items) if items.is_empty() => Json::Null,
        Json::Array(items) => Json::Array(items.iter().map(said).collect()),
        Json::Number(number) => Json::String(number.to_string()),
        Json::Bool(truth) => Json::String(truth.to_string().to_uppercase()),
        Json::String(text) if text.is_empty() => Json::Null,
        other => other.clone(),
    }
}

#[test]
fn the_printed_intents_are_read_and_their_round_trip_loses_nothing() {
    for (name, value) in printed() {
        let intent = standard::read_intent(value.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(types::of_label(&intent.user_label).is_some(), "{name}");
        let back = json::to_value(INTENT, &intent.encode_to_vec()).unwrap();
        assert_eq!(said(&back), said(&value), "{name}");
        let published = standard::intent(&intent).unwrap();
        let again = standard::read_intent(published).unwrap();
        assert_eq!(again, intent, "{name} by way of the standard's face");
    }
}

#[test]
fn the_printed_report_is_read_as_a_report_too() {
    let (_, value) = printed().last().unwrap();
    let mut report = value["intent_report_reference"].clone();
    report["id"] = "1".into();
    let read = standard::read_report(report.clone()).unwrap();
    let fulfilment = read.intent_fulfilment_report.as_ref().unwrap();
    let results = &fulfilment.expectation_fulfilment_results[0].target_fulfilment_results;
    assert_eq!(results[0].target_achieved_value, "0.307");
    let back = json::to_value("continuum.report.v1.IntentReport", &read.encode_to_vec()).unwrap();
    assert_eq!(said(&back), said(&report));
}

#[test]
fn the_example_of_response_times_is_read_and_comes_back() {
    let text = include_str!("../../../examples/intents/response.intent.yaml");
    let intent = standard::read_intent(serde_saphyr::from_str(text).unwrap()).unwrap();
    let kind = types::of_label(&intent.user_label).unwrap();
    let targets = &intent.intent_expectations[0].expectation_targets;
    let bounds: Vec<_> = targets.iter().map(|t| (t.target_name.as_str(), Bound::of(t).unwrap())).collect();
    let meets = |name: &str, value: f64| bounds.iter().find(|(n, _)| *n == name).unwrap().1.holds(value);
    assert!(meets("responseTimeP95", 99.0) && !meets("responseTimeP95", 100.0));
    assert!(meets("errorRate", 1.0) && !meets("errorRate", 1.5));
    for target in targets {
        assert!(kind.target(&target.target_name).is_some_and(|t| t.measure.is_of_traffic()), "{target:?}");
    }
    assert_eq!(standard::read_intent(standard::intent(&intent).unwrap()).unwrap(), intent);
}

// Against the published components.

/// The folder of published standards, where there is one beside the project.
fn standards() -> Option<PathBuf> {
    let start = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let found = start.ancestors().map(|folder| folder.join("shared/spec/standards")).find(|folder| folder.is_dir());
    if found.is_none() {
        eprintln!("not checked against the published components: there is no shared/spec/standards beside the project");
    }
    found
}

/// The published files as one JSON schema, changed only where they cannot be used as they are:
/// references to files that are not published here allow anything; `TRUE` and `FALSE` among texts are texts and not YAML's
/// truth values; alternatives that overlap (a number is also an integer, a time is also a text) need not exclude each
/// other; and our kinds of objects are added to the list of those of radio networks.
fn components(folder: &std::path::Path) -> Json {
    let mut files = serde_json::Map::new();
    for name in ["TS28312_IntentNrm", "TS28312_IntentExpectations", "TS28623_ComDefs"] {
        let text = std::fs::read_to_string(folder.join(format!("{name}.yaml"))).unwrap();
        let value: Json = serde_saphyr::from_str(&text).unwrap();
        files.insert(name.to_owned(), adapt(&value["components"]["schemas"], name));
    }
    let objects = types::TYPES.iter().flat_map(|t| t.objects).map(|o| Json::from(o.name));
    let list =
        files["TS28312_IntentNrm"]["ExpectationObject"]["properties"]["objectType"]["enum"].as_array_mut().unwrap();
    list.extend(objects);
    list.dedup();
    Json::Object(files)
}

fn adapt(value: &Json, file: &str) -> Json {
    match value {
        Json::Object(fields) => {
            if let Some(target) = fields.get("$ref").and_then(Json::as_str) {
                let (other, path) = target.split_once('#').unwrap();
                let other = if other.is_empty() { file } else { other.trim_end_matches(".yaml") };
                let missing = !matches!(other, "TS28312_IntentNrm" | "TS28312_IntentExpectations" | "TS28623_ComDefs");
                let name = path.rsplit('/').next().unwrap();
                return if missing { json!({}) } else { json!({"$ref": format!("#/$defs/{other}/{name}")}) };
            }
            let texts = fields.get("type").and_then(Json::as_str) == Some("string");
            let entry = |(name, value): (&String, &Json)| match (name.as_str(), value) {
                ("oneOf", value) => ("anyOf".to_owned(), adapt(value, file)),
                ("enum", Json::Array(items)) if texts => {
                    let text = |item: &Json| match item {
                        Json::Bool(truth) => Json::String(truth.to_string().to_uppercase()),
                        other => other.clone(),
                    };
                    (name.clone(), items.iter().map(text).collect())
                }
                _ => (name.clone(), adapt(value, file)),
            };
            Json::Object(fields.iter().map(entry).collect())
        }
        Json::Array(items) => items.iter().map(|item| adapt(item, file)).collect(),
        other => other.clone(),
    }
}

fn validator(components: &Json, name: &str) -> jsonschema::Validator {
    let schema = json!({"$ref": format!("#/$defs/TS28312_IntentNrm/{name}"), "$defs": components});
    jsonschema::draft202012::new(&schema).unwrap()
}

fn problems(validator: &jsonschema::Validator, value: &Json) -> Vec<String> {
    validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path)).collect()
}

/// Intents of every type, with every condition, times, contexts and lists.
fn intents() -> Vec<Intent> {
    let target = |name: &str, condition: &str, range: &str| ExpectationTarget {
        target_name: name.into(),
        target_condition: condition.into(),
        target_value_range: range.into(),
        context_selectivity: "ALL_OF".into(),
        ..Default::default()
    };
    let mut all: Vec<Intent> = printed().map(|(_, value)| standard::read_intent(value).unwrap()).collect();
    for kind in types::TYPES.iter().filter(|t| t.label != "CloudContinuumNetwork") {
        let written = template::Template {
            instance_id: "spinner@1.0.0".into(),
            intent_type: kind.label.into(),
            start: Some(Timestamp::from_millis(1_800_000_000_000)),
            end: Some(Timestamp::from_millis(1_900_000_000_000)),
            targets: kind
                .targets
                .iter()
                .flat_map(|t| [target(t.name, "IS_LESS_THAN", "20"), target(t.name, "IS_WITHIN_RANGE", "[1,20]")])
                .collect(),
        };
        let mut intent = template::write_out(&written).unwrap();
        intent.intent_admin_state = "ACTIVATED".into();
        intent.intent_priority = 7;
        intent.intent_preemption_capability = "TRUE".into();
        intent.observation_period = 60;
        all.push(intent);
    }
    all
}

#[test]
fn what_is_written_as_the_standard_is_valid_by_its_published_components() {
    let Some(folder) = standards() else { return };
    let components = components(&folder);
    let schema = validator(&components, "Intent-Single");
    for intent in intents() {
        let mut value = standard::intent(&intent).unwrap();
        // A registry's report beside the intent is not one of the standard's, which has a reference there.
        if value.get("intentReportReference").is_some_and(Json::is_object) {
            value["intentReportReference"] = "IntentReport=1".into();
        }
        assert_eq!(problems(&schema, &value), [""; 0], "{value:#}");
    }
    // The schema does refuse what is not the standard's.
    let mut wrong = standard::intent(&intents()[3]).unwrap();
    wrong["intentPriority"] = 101.into();
    wrong["intentExpectations"][0]["expectationTargets"][0]["targetCondition"] = "IS_ABOUT".into();
    assert!(!problems(&schema, &wrong).is_empty());
}

#[test]
fn reports_are_valid_by_the_published_components_and_come_back() {
    let info = |fulfilled: bool| {
        Some(FulfilmentInfo {
            fulfilment_status: if fulfilled { FulfilmentStatus::Fulfilled } else { FulfilmentStatus::NotFulfilled }
                .into(),
            not_fulfilled_state: if fulfilled { NotFulfilledState::Compliant } else { NotFulfilledState::Degraded }
                .into(),
            not_fulfilled_reasons: if fulfilled { vec![] } else { vec!["cpuUsage is 34 %".into()] },
            remarks: vec![],
        })
    };
    let report = IntentReport {
        id: "i-report".into(),
        intent_fulfilment_report: Some(IntentFulfilmentReport {
            intent_fulfilment_info: info(false),
            expectation_fulfilment_results: vec![ExpectationFulfilmentResult {
                expectation_id: "1".into(),
                expectation_fulfilment_info: info(false),
                target_fulfilment_results: vec![
                    TargetFulfilmentResult {
                        target: "cpuUsage".into(),
                        target_achieved_value: "34.25".into(),
                        target_fulfilment_info: info(false),
                        value_provenance: 0,
                    },
                    TargetFulfilmentResult {
                        target: "ramUsage".into(),
                        target_achieved_value: String::new(),
                        target_fulfilment_info: info(true),
                        value_provenance: 0,
                    },
                ],
            }],
            id: 0,
        }),
        intent_conflict_reports: vec![IntentConflict {
            conflict_id: "c".into(),
            conflict_type: "TARGET_CONFLICT".into(),
            conflicting_intent: "Intent=other".into(),
            conflicting_expectation: "1".into(),
            conflicting_target: "cpuUsage".into(),
            loses: true,
            reason: "r".into(),
            ..Default::default()
        }],
        intent_feasibility_check_report: Some(IntentFeasibilityCheckReport {
            feasibility_check_type: "INFEASIBLE".into(),
            infeasibility_reason: "no cluster".into(),
            ..Default::default()
        }),
        last_updated_time: Some(Timestamp::from_millis(1_800_000_000_000)),
        intent_reference: "Intent=i".into(),
    };
    let value = standard::report(&report).unwrap();
    let told = &value["intentFulfilmentReport"]["expectationFulfilmentResult"][0];
    assert_eq!(told["expectaitonId"], "1");
    assert_eq!(told["targetFulfilmentResult"][0]["targetAchievedValue"], 34.25);
    assert_eq!(told["expectationFulfilmentInfo"]["notFullfilledState"], "DEGRADED");
    assert_eq!(value["intentFeasibilityCheckReport"]["feasibilityCheckResult"], "INFEASIBLE");
    let back = standard::read_report(value.clone()).unwrap();
    assert_eq!(back.intent_fulfilment_report, report.intent_fulfilment_report);
    assert_eq!(back.last_updated_time, report.last_updated_time);
    let Some(folder) = standards() else { return };
    let schema = validator(&components(&folder), "IntentReport-Single");
    assert_eq!(problems(&schema, &value), [""; 0], "{value:#}");
    let mut wrong = value;
    wrong["intentFulfilmentReport"]["intentFulfilmentInfo"]["fulfilmentStatus"] = "MAYBE".into();
    assert!(!problems(&schema, &wrong).is_empty());
}
