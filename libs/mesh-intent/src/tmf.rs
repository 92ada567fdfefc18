//! An intent as a resource of TMF921 v5.
//!
//! The intent itself, after TS 28.312, is the value of a `JsonLdExpression`; the resource around it is TMF921's.

use mesh_proto::intent::{Intent, IntentView};
use prost::Message as _;
use serde_json::{Map, Value as Json, json};

use crate::view::names;

/// Path that every TMF921 resource is under.
pub const BASE: &str = "/tmf-api/intentManagement/v5";
/// Type of the value of an expression.
pub const IRI: &str = "urn:3gpp:ts:28.312:Intent";

/// Members of a resource that are a person's own, kept as they were sent and given back. `expression` of what is kept has
/// what its expression says beside the intent.
pub const KEPT: [&str; 12] = [
    "name",
    "description",
    "validFor",
    "isBundle",
    "context",
    "intentSpecification",
    "intentRelationship",
    "characteristic",
    "relatedParty",
    "attachment",
    "@baseType",
    "@schemaLocation",
];

/// Members that the mesh gives.
pub const GIVEN: [&str; 6] = ["id", "href", "version", "lifecycleStatus", "statusChangeDate", "statusReason"];

/// What is kept around an intent.
pub fn kept(intent: &Intent) -> Map<String, Json> {
    match mesh_proto::json::value_of(&intent.resource) {
        Some(Json::Object(kept)) => kept,
        _ => Map::new(),
    }
}

/// What a person says of an intent, as members of its resource: what is kept, the priority and the expression.
pub fn own(intent: &Intent) -> Map<String, Json> {
    let kept = kept(intent);
    let bare = Intent { resource: String::new(), ..intent.clone() };
    let value = mesh_proto::json::to_value("continuum.intent.v1.Intent", &bare.encode_to_vec()).unwrap_or_default();
    let mut expression = json!({"@type": "JsonLdExpression", "iri": IRI, "expressionValue": {}});
    if let (Some(all), Some(Json::Object(said))) = (expression.as_object_mut(), kept.get("expression")) {
        let plain = said.iter().filter(|(name, said)| *name != "expressionValue" || said.is_object());
        all.extend(plain.map(|(name, said)| (name.clone(), said.clone())));
    }
    if let (Some(all), Json::Object(value)) = (expression["expressionValue"].as_object_mut(), value) {
        all.extend(value);
    }
    let mut resource: Map<String, Json> = kept.into_iter().filter(|(name, _)| KEPT.contains(&name.as_str())).collect();
    resource.insert("@type".into(), json!("Intent"));
    resource.insert("priority".into(), json!(intent.intent_priority.max(1).to_string()));
    resource.insert("expression".into(), expression);
    resource
}

/// An intent as a resource. Its name is its id where it was given none.
pub fn intent(view: &IntentView) -> Json {
    let mut resource = own(view.intent.as_ref().unwrap_or(&Intent::default()));
    resource.entry("name").or_insert_with(|| json!(view.intent_id));
    let reason = view.state.as_ref().map(|state| state.reason.as_str()).unwrap_or_default();
    let given = [
        ("id", json!(view.intent_id)),
        ("href", json!(format!("{BASE}/intent/{}", view.intent_id))),
        ("version", json!(view.version.to_string())),
        ("lifecycleStatus", json!(status(view))),
        ("statusReason", json!(reason)),
    ];
    resource.extend(given.map(|(name, value)| (name.to_owned(), value)));
    if let Some(since) = view.since {
        resource.insert("statusChangeDate".into(), json!(since.to_string()));
    }
    Json::Object(resource)
}

/// The state as a life-cycle status.
pub fn status(view: &IntentView) -> &'static str {
    let state = view.state.clone().unwrap_or_default();
    match names(&state) {
        ("FULFILLED", _) => "FULFILLED",
        (_, "") => "SUBMITTED",
        (_, state) => state,
    }
}
