//! The face of TS 28.312: intents and reports as its published components spell them.
//!
//! Three names in the published files are slips (`notFullfilledState`, `expectaitonId`, and singulars where lists are
//! meant). This face writes them as published; everything else writes the right names; reading takes both.

use mesh_proto::{
    DecodeError,
    intent::Intent,
    json,
    report::{IntentReport, ReportPublished},
};
use prost::Message as _;
use serde_json::{Map, Value as Json};

/// Name of the message of an intent.
const INTENT: &str = "continuum.intent.v1.Intent";
/// Name of the message of a report.
const REPORT: &str = "continuum.report.v1.IntentReport";

/// Conflict fields that the standard's component has; the others are ours.
const CONFLICT_FIELDS: [&str; 5] =
    ["conflictId", "conflictType", "conflictingIntent", "conflictingExpectation", "conflictingTarget"];

/// An intent as an `Intent` of the standard.
///
/// # Errors
/// Never for an intent of this contract.
pub fn intent(intent: &Intent) -> Result<Json, DecodeError> {
    json::to_published(INTENT, &intent.encode_to_vec())
}

/// Reads an intent in any spelling.
///
/// # Errors
/// Unknown fields and wrong types, by path.
pub fn read_intent(value: Json) -> Result<Intent, DecodeError> {
    json::from_value(INTENT, value)
}

/// A report as it stands outside the bus.
pub fn of_published(report: &ReportPublished) -> IntentReport {
    IntentReport {
        id: format!("{}-report", report.intent_id),
        intent_fulfilment_report: report.intent_fulfilment_report.clone(),
        intent_conflict_reports: report.intent_conflict_reports.clone(),
        intent_feasibility_check_report: report.intent_feasibility_check_report.clone(),
        last_updated_time: report.last_updated_time,
        intent_reference: format!("Intent={}", report.intent_id),
    }
}

/// A report as an `IntentReport` of the standard: achieved values are numbers, and fields of ours are left out.
///
/// # Errors
/// Never for a report of this contract.
pub fn report(report: &IntentReport) -> Result<Json, DecodeError> {
    let mut value = json::to_published(REPORT, &report.encode_to_vec())?;
    for conflict in list(&mut value, "intentConflictReports") {
        conflict.retain(|name, _| CONFLICT_FIELDS.contains(&name.as_str()));
    }
    if let Some(fulfilment) = value.get_mut("intentFulfilmentReport") {
        for expectation in list(fulfilment, "expectationFulfilmentResult") {
            for target in each(expectation.get_mut("targetFulfilmentResult")) {
                let achieved = target.get("targetAchievedValue").and_then(Json::as_str).and_then(|v| v.parse().ok());
                match achieved.and_then(serde_json::Number::from_f64) {
                    Some(number) => drop(target.insert("targetAchievedValue".into(), Json::Number(number))),
                    None => drop(target.remove("targetAchievedValue")),
                }
            }
        }
    }
    Ok(value)
}

/// Reads a report in any spelling.
///
/// # Errors
/// Unknown fields and wrong types, by path.
pub fn read_report(value: Json) -> Result<IntentReport, DecodeError> {
    json::from_value(REPORT, value)
}

fn list<'a>(value: &'a mut Json, name: &str) -> impl Iterator<Item = &'a mut Map<String, Json>> {
    each(value.get_mut(name))
}

fn each(value: Option<&mut Json>) -> impl Iterator<Item = &mut Map<String, Json>> {
    value.and_then(Json::as_array_mut).into_iter().flatten().filter_map(Json::as_object_mut)
}
