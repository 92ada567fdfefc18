//! Resources of TMF921 v5, as they are sent and shown.

pub use mesh_intent::tmf::{BASE, IRI, intent, status};
use mesh_proto::{
    intent::{Intent, IntentView},
    validation::CheckReply,
};
use mesh_rest::problem::{Fault, Problem};
use prost::Message as _;
use serde_json::{Map, Value as Json, json};

use super::forms;

/// An intent's report as a resource; the newest is the only one that is kept for questions.
pub fn report(view: &IntentView) -> Option<Json> {
    let report = view.report.as_ref()?;
    let value = mesh_proto::json::to_value("continuum.report.v1.ReportPublished", &report.encode_to_vec()).ok()?;
    let id = report_id(view);
    let mut resource = json!({
        "@type": "IntentReport",
        "id": id,
        "href": format!("{BASE}/intent/{}/intentReport/{id}", view.intent_id),
        "name": format!("report on {}", view.intent_id),
        "intent": {"@type": "IntentRef", "id": view.intent_id, "href": format!("{BASE}/intent/{}", view.intent_id)},
        "expression": {"@type": "JsonLdExpression", "iri": "urn:3gpp:ts:28.312:IntentReport", "expressionValue": value},
    });
    if let Some(at) = report.last_updated_time {
        resource["creationDate"] = json!(at.to_string());
    }
    Some(resource)
}

/// Id of an intent's report.
pub fn report_id(view: &IntentView) -> String {
    format!("{}-{}", view.intent_id, view.version)
}

/// A subscription as a resource.
pub fn hub(id: &str, callback: &str, query: &str) -> Json {
    let mut resource = json!({"@type": "Hub", "id": id, "href": format!("{BASE}/hub/{id}"), "callback": callback});
    if !query.is_empty() {
        resource["query"] = json!(query);
    }
    resource
}

/// What would come of an intent, as a probe with its report. Nothing of it is kept, so it has no address.
pub fn probe(id: &str, name: &str, intent: &Intent, reply: &CheckReply) -> Json {
    let expression = mesh_proto::json::to_value("continuum.intent.v1.Intent", &intent.encode_to_vec());
    let prediction = mesh_proto::json::to_value("continuum.validation.v1.CheckReply", &reply.encode_to_vec());
    let reasons: Vec<String> = reply.problems.iter().map(|p| format!("{}: {}; {}", p.path, p.reason, p.hint)).collect();
    let number = |name: &str, value: f64| json!({"@type": "NumberCharacteristic", "name": name, "valueType": "number", "value": value});
    json!({
        "@type": "ProbeIntent",
        "@baseType": "Intent",
        "id": id,
        "name": name,
        "priority": intent.intent_priority.max(1).to_string(),
        "lifecycleStatus": reply.predicted_state,
        "description": if reasons.is_empty() { "predicted; nothing was done".to_owned() } else { reasons.join("; ") },
        "characteristic": [
            number("watts", reply.watts), number("joulesPerDay", reply.joules_per_day),
            number("creditsPerDay", reply.credits_per_day),
        ],
        "expression": {"@type": "JsonLdExpression", "iri": IRI, "expressionValue": expression.unwrap_or_default()},
        "intentReport": {
            "@type": "IntentReport",
            "id": format!("{id}-prediction"),
            "name": format!("prediction for {name}"),
            "expression": {"@type": "JsonLdExpression", "iri": "urn:continuum:prediction",
                "expressionValue": prediction.unwrap_or_default()},
        },
    })
}

/// What is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creates {
    /// An intent.
    Intent,
    /// A prediction, and nothing else.
    Probe,
}

/// Reads a new intent, and whether it is only a probe. Its name is its id where it can be one.
///
/// # Errors
/// Each field that is missing or wrong.
pub fn read(body: &Json) -> Result<(Creates, String, Option<String>, Intent), Problem> {
    let Some(fields) = body.as_object() else {
        return Err(Problem::field("body", "is not an object", "send an Intent of TMF921"));
    };
    let mut faults = vec![];
    let mut missing = |path: &str, hint: &str| {
        faults.push(Fault { path: path.into(), reason: "is missing".into(), hint: hint.into() });
    };
    let name = fields.get("name").and_then(Json::as_str);
    if name.is_none() {
        missing("name", "give it a name");
    }
    if !fields.get("expression").is_some_and(Json::is_object) {
        missing("expression", "give a JsonLdExpression whose expressionValue is an intent after TS 28.312");
    }
    let creates = match fields.get("@type").map(Json::as_str) {
        None | Some(Some("Intent")) => Creates::Intent,
        Some(Some("ProbeIntent")) => Creates::Probe,
        Some(_) => {
            let (path, reason) = ("@type".into(), "is neither Intent nor ProbeIntent".into());
            faults.push(Fault { path, reason, hint: "send an Intent, or a ProbeIntent for a prediction".into() });
            Creates::Intent
        }
    };
    if !faults.is_empty() {
        return Err(Problem::faults(faults));
    }
    let intent = expression(&fields["expression"])?;
    let name = name.unwrap_or_default().to_owned();
    let id = Some(name.clone()).filter(|name| mesh_proto::is_key(name));
    Ok((creates, name, id, intent))
}

/// Reads the expression of a change; `None` if there is none.
///
/// # Errors
/// When it is wrong, or nothing that may change is given.
pub fn patch(body: &Json) -> Result<Change, Problem> {
    let Some(fields) = body.as_object() else {
        return Err(Problem::field("body", "is not an object", "send the fields to change"));
    };
    let fixed = fields.keys().find(|key| !["@type", "expression", "lifecycleStatus"].contains(&key.as_str()));
    if let Some(key) = fixed {
        return Err(Problem::field(key, "cannot be changed", "change expression or lifecycleStatus"));
    }
    if let Some(value) = fields.get("expression") {
        return expression(value).map(Change::Definition);
    }
    match fields.get("lifecycleStatus").and_then(Json::as_str) {
        Some("SUSPENDED") => Ok(Change::Action(forms::Verb::Suspend)),
        Some("TERMINATED") => Ok(Change::Action(forms::Verb::Terminate)),
        Some("ACKNOWLEDGED") => Ok(Change::Action(forms::Verb::Resume)),
        _ => Err(Problem::field(
            "lifecycleStatus",
            "is not a state that can be requested",
            "use SUSPENDED, ACKNOWLEDGED (resume) or TERMINATED, or give an expression",
        )),
    }
}

/// What a PATCH asks for.
#[derive(Debug, PartialEq)]
pub enum Change {
    /// Another definition.
    Definition(Intent),
    /// Another state.
    Action(forms::Verb),
}

fn expression(value: &Json) -> Result<Intent, Problem> {
    match value.get("@type").and_then(Json::as_str) {
        None | Some("JsonLdExpression") => {}
        Some(_) => {
            let hint = "use JsonLdExpression with an intent after TS 28.312 as expressionValue";
            return Err(Problem::field("expression.@type", "is an expression that is not understood", hint));
        }
    }
    let Some(inner) = value.get("expressionValue").filter(|inner| inner.is_object()) else {
        return Err(Problem::field("expression.expressionValue", "is missing", "give an intent after TS 28.312"));
    };
    let mut inner = inner.clone();
    if let Some(fields) = inner.as_object_mut() {
        fields.remove("@context");
        fields.remove("@type");
        fields.remove("@id");
    }
    forms::intent(inner).map(|(_, intent)| intent)
}

/// The fields of a resource that were asked for (`?fields=`), and those that every resource has.
pub fn select(resource: Json, fields: &[String]) -> Json {
    let wanted: Vec<&str> = fields.iter().flat_map(|f| f.split(',')).map(str::trim).filter(|f| !f.is_empty()).collect();
    match resource {
        Json::Object(all) if !wanted.is_empty() => {
            let kept = all
                .into_iter()
                .filter(|(key, _)| wanted.contains(&key.as_str()) || ["id", "href", "@type"].contains(&key.as_str()));
            Json::Object(kept.collect::<Map<_, _>>())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Json {
        json!({"@type": "Intent", "name": "plant", "expression": {"@type": "JsonLdExpression", "iri": IRI,
            "expressionValue": {"@context": {}, "userLabel": "DeliverComputingWorkload", "intentPriority": 7}}})
    }

    #[test]
    fn what_is_shown_can_be_sent_again() {
        let (creates, _, id, intent_) = read(&body()).unwrap();
        assert_eq!((creates, id.as_deref(), intent_.intent_priority), (Creates::Intent, Some("plant"), 7));
        let view =
            IntentView { intent_id: "plant".into(), version: 1, intent: Some(intent_.clone()), ..Default::default() };
        let shown = intent(&view);
        assert_eq!((shown["priority"].as_str(), shown["lifecycleStatus"].as_str()), (Some("7"), Some("SUBMITTED")));
        assert_eq!(read(&shown).unwrap(), (Creates::Intent, "plant".into(), Some("plant".into()), intent_));
        assert_eq!(
            select(shown, &["name".into()]),
            json!({"@type": "Intent", "id": "plant", "name": "plant", "href": format!("{BASE}/intent/plant")})
        );
    }

    #[test]
    fn each_missing_field_is_named() {
        let problem = read(&json!({"@type": "Plan"})).unwrap_err();
        let paths: Vec<&str> = problem.faults.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(paths, ["name", "expression", "@type"]);
        let turtle =
            json!({"name": "a", "expression": {"@type": "TurtleExpression", "iri": "x", "expressionValue": "t"}});
        assert_eq!(read(&turtle).unwrap_err().faults[0].path, "expression.@type");
        for wrong in [json!([]), json!("x"), json!({"name": 7, "expression": []})] {
            assert_eq!(read(&wrong).unwrap_err().status(), 422);
        }
    }

    #[test]
    fn a_probe_is_told_from_an_intent_and_says_what_was_predicted() {
        let mut sent = body();
        sent["@type"] = json!("ProbeIntent");
        let (creates, name, _, intent) = read(&sent).unwrap();
        assert_eq!((creates, name.as_str()), (Creates::Probe, "plant"));
        let reply = CheckReply { predicted_state: "FULFILLED".into(), watts: 3.5, ..CheckReply::default() };
        let shown = probe("p", &name, &intent, &reply);
        assert_eq!((&shown["@type"], &shown["lifecycleStatus"]), (&json!("ProbeIntent"), &json!("FULFILLED")));
        assert_eq!(shown["characteristic"][0]["value"], 3.5);
        assert_eq!(shown["intentReport"]["expression"]["expressionValue"]["predictedState"], "FULFILLED");
        assert_eq!(read(&shown).unwrap().0, Creates::Probe, "what is shown can be sent again");
    }

    #[test]
    fn a_patch_changes_the_definition_or_the_state_and_nothing_else() {
        assert_eq!(patch(&json!({"lifecycleStatus": "SUSPENDED"})), Ok(Change::Action(forms::Verb::Suspend)));
        assert!(matches!(patch(&json!({"expression": body()["expression"]})), Ok(Change::Definition(_))));
        assert_eq!(patch(&json!({"name": "x"})).unwrap_err().faults[0].path, "name");
        assert_eq!(patch(&json!({})).unwrap_err().faults[0].path, "lifecycleStatus");
    }
}
