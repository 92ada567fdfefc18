//! An intent as a resource of TMF921 v5.
//!
//! The intent itself, after TS 28.312, is the value of a `JsonLdExpression`; the resource around it is TMF921's.

use mesh_proto::intent::IntentView;
use prost::Message as _;
use serde_json::{Value as Json, json};

use crate::view::names;

/// Path that every TMF921 resource is under.
pub const BASE: &str = "/tmf-api/intentManagement/v5";
/// Type of the value of an expression.
pub const IRI: &str = "urn:3gpp:ts:28.312:Intent";

/// An intent as a resource.
pub fn intent(view: &IntentView) -> Json {
    let value = view.intent.clone().unwrap_or_default();
    let expression = mesh_proto::json::to_value("continuum.intent.v1.Intent", &value.encode_to_vec());
    let state = view.state.clone().unwrap_or_default();
    let mut resource = json!({
        "@type": "Intent",
        "id": view.intent_id,
        "href": format!("{BASE}/intent/{}", view.intent_id),
        "name": view.intent_id,
        "version": view.version.to_string(),
        "priority": value.intent_priority.max(1).to_string(),
        "lifecycleStatus": status(view),
        "description": state.reason,
        "expression": {"@type": "JsonLdExpression", "iri": IRI, "expressionValue": expression.unwrap_or_default()},
    });
    if let Some(since) = view.since {
        resource["statusChangeDate"] = json!(since.to_string());
    }
    resource
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
