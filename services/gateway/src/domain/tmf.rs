//! Resources of TMF921 v5, as they are sent and shown.

use std::collections::BTreeMap;

pub use mesh_intent::tmf::{BASE, GIVEN, IRI, KEPT, intent, own, status};
use mesh_proto::{
    Timestamp, Written,
    intent::{Intent, IntentView},
    validation::CheckReply,
};
use mesh_rest::problem::{Fault, Problem};
use prost::Message as _;
use serde_json::{Map, Value as Json, json};

use super::forms;

/// The message of an expression's value.
const INTENT: &str = "continuum.intent.v1.Intent";
/// Words of JSON-LD about an intent, beside its fields.
const WORDS: [&str; 3] = ["@context", "@type", "@id"];

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
pub fn probe(id: &str, intent: &Intent, reply: &CheckReply) -> Json {
    let prediction = mesh_proto::json::to_value("continuum.validation.v1.CheckReply", &reply.encode_to_vec());
    let reasons: Vec<String> = reply.problems.iter().map(|p| format!("{}: {}; {}", p.path, p.reason, p.hint)).collect();
    let number = |name: &str, value: f64| json!({"@type": "NumberCharacteristic", "name": name, "valueType": "number", "value": value});
    let mut resource = Json::Object(own(intent));
    let name = resource["name"].as_str().unwrap_or_default().to_owned();
    let predicted = [
        number("watts", reply.watts),
        number("joulesPerDay", reply.joules_per_day),
        number("creditsPerDay", reply.credits_per_day),
    ];
    match resource["characteristic"].as_array_mut() {
        Some(own) => own.extend(predicted),
        None => resource["characteristic"] = json!(predicted),
    }
    resource["@type"] = json!("ProbeIntent");
    resource["@baseType"] = json!("Intent");
    resource["id"] = json!(id);
    resource["lifecycleStatus"] = json!(reply.predicted_state);
    let reason = if reasons.is_empty() { "predicted; nothing was done".to_owned() } else { reasons.join("; ") };
    resource["statusReason"] = json!(reason);
    resource["intentReport"] = json!({
        "@type": "IntentReport",
        "id": format!("{id}-prediction"),
        "name": format!("prediction for {name}"),
        "expression": {"@type": "JsonLdExpression", "iri": "urn:continuum:prediction",
            "expressionValue": prediction.unwrap_or_default()},
    });
    resource
}

/// What is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creates {
    /// An intent.
    Intent,
    /// A prediction, and nothing else.
    Probe,
}

/// What was sent, as values to read or to merge: the intent of an expression with its text as it is spelt (`20.50`), and the
/// names of its fields as they are shown.
///
/// # Errors
/// When a field of the intent is there in two spellings, or a number around it would be rounded.
pub fn spelt(mut sent: Written) -> Result<Json, Problem> {
    let twice = |error: mesh_proto::WrittenError| Problem::field("body", error.to_string(), "send it once");
    let mut expression = sent.take(&["expression"]).map_err(twice)?;
    let mut value = None;
    if let Some(expression) = &mut expression {
        value = expression.take(&["expressionValue"]).map_err(twice)?;
    }
    let exact = |sent: Written, path: &str| {
        let hint = "numbers are kept as JSON's readers have them";
        sent.into_exact_json().map_err(|error| Problem::field(path, error.to_string(), hint))
    };
    let mut body = exact(sent, "body")?;
    let Some(expression) = expression else { return Ok(body) };
    let mut expression = exact(expression, "expression")?;
    if let Some(mut value) = value {
        let mut words = vec![];
        for name in WORDS {
            words.extend(value.take(&[name]).map_err(twice)?.map(|word| (name, word)));
        }
        let mut inner =
            forms::spelt(INTENT, &value).map_err(|problem| within("expression.expressionValue.", problem))?;
        for (name, word) in words {
            let word = exact(word, &format!("expression.expressionValue.{name}"))?;
            if let Some(inner) = inner.as_object_mut() {
                inner.insert(name.to_owned(), word);
            }
        }
        if let Some(expression) = expression.as_object_mut() {
            expression.insert("expressionValue".into(), inner);
        }
    }
    if let Some(body) = body.as_object_mut() {
        body.insert("expression".into(), expression);
    }
    Ok(body)
}

/// The same, its paths below this one.
fn within(path: &str, mut problem: Problem) -> Problem {
    problem.faults.iter_mut().for_each(|fault| fault.path.insert_str(0, path));
    problem
}

/// A new intent as it was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct New {
    /// Whether it is only a probe.
    pub creates: Creates,
    /// Id of the person's own; names are no ids, for they need not be unique.
    pub id: Option<String>,
    /// The intent, with what is kept around it.
    pub intent: Intent,
}

/// Reads a new intent, as [`spelt`] has it. What the mesh gives is no instruction in a resource that a read gave, and refused in any other.
///
/// # Errors
/// Each member that is missing, wrong or unknown.
pub fn read(body: &Json) -> Result<New, Problem> {
    let Some(fields) = body.as_object() else {
        return Err(Problem::field("body", "is not an object", "send an Intent of TMF921"));
    };
    let mut fields = fields.clone();
    let mut faults = vec![];
    let creates = match fields.get("@type").map(Json::as_str) {
        None | Some(Some("Intent")) => Creates::Intent,
        Some(Some("ProbeIntent")) => Creates::Probe,
        Some(_) => {
            let reason = "is neither Intent nor ProbeIntent";
            faults.push(fault("@type", reason, "send an Intent, or a ProbeIntent for a prediction"));
            Creates::Intent
        }
    };
    fields.remove("@type");
    let id = fields.remove("id").map(forms::own_id).transpose()?;
    let address = id.as_ref().map(|id| json!(format!("{BASE}/intent/{id}")));
    let is_shown = address.is_some() && address.as_ref() == fields.get("href");
    if is_shown || (creates == Creates::Probe && fields.contains_key("intentReport")) {
        for name in GIVEN.iter().chain(&["intentReport"]) {
            fields.remove(*name);
        }
    }
    // Where it stands at first.
    if fields.get("lifecycleStatus").is_some_and(|status| status == "SUBMITTED" || status == "ACKNOWLEDGED") {
        fields.remove("lifecycleStatus");
    }
    for name in ["name", "expression"] {
        if !fields.contains_key(name) {
            let hint = "give a name, and a JsonLdExpression whose expressionValue is an intent after TS 28.312";
            faults.push(fault(name, "is missing", hint));
        }
    }
    let intent = parts(fields, &mut faults);
    if !faults.is_empty() {
        return Err(Problem::faults(faults));
    }
    Ok(New { creates, id, intent })
}

fn fault(path: &str, reason: &str, hint: &str) -> Fault {
    Fault { path: path.into(), reason: reason.into(), hint: hint.into() }
}

/// The intent that the members of a resource say, with what is kept around it.
fn parts(mut fields: Map<String, Json>, faults: &mut Vec<Fault>) -> Intent {
    let mut kept = Map::new();
    fields.remove("@type");
    let priority = fields.remove("priority");
    let expression = fields.remove("expression");
    for (name, value) in fields {
        let shown: String = name.chars().take(64).collect();
        if GIVEN.contains(&name.as_str()) || ["creationDate", "lastUpdate"].contains(&name.as_str()) {
            faults.push(fault(&shown, "is given by the mesh", "leave it out"));
        } else if !KEPT.contains(&name.as_str()) {
            let hint = format!("use {}, priority or expression", KEPT.join(", "));
            faults.push(fault(&shown, "is not a member of an Intent that is known here", &hint));
        } else if let Some((reason, hint)) = misshapen(&name, &value) {
            faults.push(fault(&shown, reason, hint));
        } else {
            kept.insert(name, value);
        }
    }
    let mut intent = match expression {
        None => Intent::default(),
        Some(value) => {
            let (intent, said) = self::expression(value).unwrap_or_else(|problem| {
                faults.extend(problem.faults);
                (Intent::default(), Map::new())
            });
            if !said.is_empty() {
                kept.insert("expression".into(), Json::Object(said));
            }
            intent
        }
    };
    if intent.intent_priority > 100 {
        // Shown as the priority, it could not be sent again.
        faults.push(fault("expression.expressionValue.intentPriority", "is not a priority", "use 1 to 100"));
    }
    if let Some(value) = priority {
        let number = match &value {
            Json::String(text) => text.parse().ok(),
            Json::Number(number) => number.as_u64(),
            _ => None,
        };
        match number.and_then(|number| u32::try_from(number).ok()).filter(|number| (1..=100).contains(number)) {
            None => {
                faults.push(fault("priority", "is not a priority", "use \"1\" to \"100\", the higher the more urgent"))
            }
            Some(number) if intent.intent_priority == 0 && number > 1 => intent.intent_priority = number,
            Some(number) if number != intent.intent_priority.max(1) => {
                let hint = "give one of them, or the same twice";
                faults.push(fault("priority", "is another than the intentPriority of the expression", hint));
            }
            Some(_) => {}
        }
    }
    if !kept.is_empty() {
        intent.resource = Json::Object(kept).to_string();
    }
    intent
}

/// What is wrong with the shape of a member that is kept.
fn misshapen(name: &str, value: &Json) -> Option<(&'static str, &'static str)> {
    let time = |name: &str| match &value[name] {
        Json::Null => true,
        Json::String(text) => text.parse::<Timestamp>().is_ok(),
        _ => false,
    };
    match name {
        "isBundle" => (!value.is_boolean()).then_some(("is not a truth value", "use true or false")),
        "validFor" => (!value.is_object() || !time("startDateTime") || !time("endDateTime"))
            .then_some(("is not a period", "give startDateTime, endDateTime, as 2027-01-31T12:00:00Z")),
        "intentSpecification" => (!value.is_object()).then_some(("is not an object", "give one with its id")),
        "intentRelationship" | "characteristic" | "relatedParty" | "attachment" => {
            let objects = value.as_array().is_some_and(|many| many.iter().all(Json::is_object));
            (!objects).then_some(("is not a list of objects", "give a list"))
        }
        "name" => value.as_str().is_none_or(str::is_empty).then_some(("is not a name", "give it a text")),
        _ => (!value.is_string()).then_some(("is not a text", "give it a text")),
    }
}

/// What a PATCH asks for.
#[derive(Debug, PartialEq)]
pub enum Change {
    /// What it asks for is so.
    Nothing,
    /// Another definition.
    Definition(Intent),
    /// Another state.
    Action(forms::Verb),
}

/// Reads a change of an intent, as [`spelt`] has it: a merge patch of its resource (RFC 7396), whole or not at all.
///
/// # Errors
/// Each member that is wrong or may not change; and when it asks for another definition and another state, which are two
/// decisions.
pub fn patch(view: &IntentView, body: &Json) -> Result<Change, Problem> {
    let Some(fields) = body.as_object() else {
        return Err(Problem::field("body", "is not an object", "send the members to change"));
    };
    let (shown, before) = (intent(view), view.intent.clone().unwrap_or_default());
    let mut fields = fields.clone();
    fields.retain(|name, value| shown.get(name) != Some(value));
    let mut faults = vec![];
    let action = fields.remove("lifecycleStatus").and_then(|status| match status.as_str() {
        Some("SUSPENDED") => Some(forms::Verb::Suspend),
        Some("TERMINATED") => Some(forms::Verb::Terminate),
        Some("ACKNOWLEDGED") => Some(forms::Verb::Resume),
        _ => {
            let hint = "use SUSPENDED, ACKNOWLEDGED (resume) or TERMINATED, or leave it out";
            faults.push(fault("lifecycleStatus", "is not a state that can be requested", hint));
            None
        }
    });
    for name in GIVEN.iter().chain(&["@type", "creationDate", "lastUpdate"]) {
        if fields.remove(*name).is_some() {
            faults.push(fault(name, "cannot be changed", "leave it out"));
        }
    }
    for name in ["name", "expression"] {
        if fields.get(name).is_some_and(Json::is_null) {
            faults.push(fault(name, "cannot be removed", "give another one"));
        }
    }
    let value = fields.get_mut("expression").and_then(|expression| expression.get_mut("expressionValue"));
    let mut sets_priority = false;
    if let Some(value) = value.and_then(Json::as_object_mut) {
        sets_priority = value.contains_key("intentPriority");
    }
    let base = own(&before);
    let mut merged = Json::Object(base.clone());
    json_patch::merge(&mut merged, &Json::Object(fields.clone()));
    match (fields.contains_key("priority"), sets_priority) {
        // The same number stands in both places.
        (true, false) => {
            let value = merged.pointer_mut("/expression/expressionValue");
            drop(value.and_then(Json::as_object_mut).and_then(|value| value.remove("intentPriority")));
        }
        (false, true) => drop(merged.as_object_mut().and_then(|merged| merged.remove("priority"))),
        _ => {}
    }
    let Json::Object(merged) = merged else { return Ok(Change::Nothing) };
    let changed = parts(merged, &mut faults);
    if !faults.is_empty() {
        return Err(Problem::faults(faults));
    }
    let is_same = changed == parts(base, &mut vec![]);
    match (is_same, action) {
        (true, None) => Ok(Change::Nothing),
        (true, Some(verb)) => Ok(Change::Action(verb)),
        (false, None) => Ok(Change::Definition(changed)),
        (false, Some(_)) => Err(Problem::field(
            "lifecycleStatus",
            "cannot change together with the definition: they are two decisions, and nothing was done",
            "send two requests, and look at the answer to the first",
        )),
    }
}

/// The intent of an expression, and what it says beside it.
fn expression(value: Json) -> Result<(Intent, Map<String, Json>), Problem> {
    let Json::Object(mut said) = value else {
        return Err(Problem::field("expression", "is not an object", "give a JsonLdExpression"));
    };
    match said.remove("@type") {
        None => {}
        Some(kind) if kind == "JsonLdExpression" => {}
        Some(_) => {
            let hint = "use JsonLdExpression with an intent after TS 28.312 as expressionValue";
            return Err(Problem::field("expression.@type", "is an expression that is not understood", hint));
        }
    }
    let Some(Json::Object(value)) = said.remove("expressionValue") else {
        return Err(Problem::field("expression.expressionValue", "is missing", "give an intent after TS 28.312"));
    };
    for (name, value) in &said {
        if !["iri", "@baseType", "@schemaLocation"].contains(&name.as_str()) || !value.is_string() {
            let path = format!("expression.{}", name.chars().take(64).collect::<String>());
            return Err(Problem::field(&path, "is not known here", "give iri and expressionValue"));
        }
    }
    let (words, inner): (Map<_, _>, Map<_, _>) =
        value.into_iter().partition(|(name, _)| WORDS.contains(&name.as_str()));
    if inner.contains_key("resource") {
        let hint = "give its members around the expression";
        return Err(Problem::field("expression.expressionValue.resource", "is not part of an expression", hint));
    }
    if said.get("iri").is_some_and(|iri| iri == IRI) {
        said.remove("iri");
    }
    if !words.is_empty() {
        said.insert("expressionValue".into(), Json::Object(words));
    }
    let intent =
        forms::definition(Json::Object(inner)).map_err(|problem| within("expression.expressionValue.", problem))?;
    Ok((intent, said))
}

/// Parameters of a list: those that are no filters, then members that an intent can be filtered by as they are, then those
/// that it can be filtered by what is in them.
pub const LIST: [&str; 21] = [
    "fields",
    "offset",
    "limit",
    "id",
    "href",
    "name",
    "description",
    "priority",
    "version",
    "lifecycleStatus",
    "statusReason",
    "statusChangeDate",
    "context",
    "isBundle",
    "validFor",
    "expression",
    "intentSpecification",
    "intentRelationship",
    "characteristic",
    "relatedParty",
    "attachment",
];
/// Those of a page.
pub const PAGING: &[&str] = LIST.split_at(3).0;
const PLAIN: &[&str] = LIST.split_at(3).1.split_at(11).0;
const NESTED: &[&str] = LIST.split_at(14).1;

/// How a member is compared (TMF630).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    Unequal,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

/// What a list is narrowed to by one parameter (TMF630): a member, `relatedParty.id`, how it is compared, and with which
/// values, of which one has to fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    path: Vec<String>,
    comparison: Comparison,
    wanted: Vec<String>,
}

/// The filters among the parameters of a list.
///
/// # Errors
/// When one names what an intent cannot have.
pub fn filters(query: &BTreeMap<String, Vec<String>>) -> Result<Vec<Filter>, Problem> {
    let mut found = vec![];
    for (name, values) in query.iter().filter(|(name, _)| !PAGING.contains(&name.as_str())) {
        let mut path: Vec<String> = name.split('.').map(str::to_owned).collect();
        let comparison = match path.last().map(String::as_str).filter(|_| path.len() > 1) {
            Some("eq") => Some(Comparison::Equal),
            Some("ne") => Some(Comparison::Unequal),
            Some("gt") => Some(Comparison::Greater),
            Some("gte") => Some(Comparison::GreaterOrEqual),
            Some("lt") => Some(Comparison::Less),
            Some("lte") => Some(Comparison::LessOrEqual),
            _ => None,
        };
        if comparison.is_some() {
            path.pop();
        }
        let root = path.first().map(String::as_str).unwrap_or_default();
        let known = match path.len() {
            1 => PLAIN.contains(&root),
            _ => NESTED.contains(&root) && path.iter().all(|step| !step.is_empty() && step != "regex"),
        };
        if !known {
            let hint = format!(
                "use {}, or what is in {}, such as relatedParty.id; with .gt, .gte, .lt, .lte, .eq or .ne behind",
                PLAIN.join(", "),
                NESTED.join(", ")
            );
            let shown: String = name.chars().take(64).collect();
            return Err(Problem::field(&shown, "is not a filter that is known here", hint));
        }
        let wanted = values.iter().flat_map(|value| value.split(',')).map(str::to_owned).collect();
        found.push(Filter { path, comparison: comparison.unwrap_or(Comparison::Equal), wanted });
    }
    Ok(found)
}

impl Filter {
    /// Is this resource among those that are wanted?
    pub fn lets_through(&self, resource: &Json) -> bool {
        let mut at = vec![resource];
        for step in &self.path {
            at = at.into_iter().flat_map(items).filter_map(|value| value.get(step)).collect();
        }
        let mut values = at.into_iter().flat_map(items);
        let fits = |value: &Json| self.wanted.iter().any(|wanted| self.fits(value, wanted));
        match self.comparison {
            // None of them.
            Comparison::Unequal => values.all(|value| {
                !self.wanted.iter().any(|wanted| compare(value, wanted) == Some(std::cmp::Ordering::Equal))
            }),
            _ => values.any(fits),
        }
    }

    fn fits(&self, value: &Json, wanted: &str) -> bool {
        let Some(order) = compare(value, wanted) else { return false };
        match self.comparison {
            Comparison::Equal => order.is_eq(),
            Comparison::Unequal => order.is_ne(),
            Comparison::Greater => order.is_gt(),
            Comparison::GreaterOrEqual => order.is_ge(),
            Comparison::Less => order.is_lt(),
            Comparison::LessOrEqual => order.is_le(),
        }
    }
}

/// Items of a list at any depth, or the value itself.
fn items(value: &Json) -> Vec<&Json> {
    match value {
        Json::Array(many) => many.iter().flat_map(items).collect(),
        other => vec![other],
    }
}

/// Orders a value and a text: as times or numbers if both are, else as texts.
fn compare(value: &Json, wanted: &str) -> Option<std::cmp::Ordering> {
    let text = match value {
        Json::String(text) => text.clone(),
        Json::Number(_) | Json::Bool(_) => value.to_string(),
        _ => return None,
    };
    if let (Ok(a), Ok(b)) = (text.parse::<Timestamp>(), wanted.parse::<Timestamp>()) {
        return Some((a.seconds, a.nanos).cmp(&(b.seconds, b.nanos)));
    }
    match (text.parse::<f64>(), wanted.parse::<f64>()) {
        (Ok(a), Ok(b)) => a.partial_cmp(&b),
        _ => Some(text.as_str().cmp(wanted)),
    }
}

/// Refuses fields to show that no resource can have.
///
/// # Errors
/// The first that is unknown.
pub fn selectable(fields: &[String]) -> Result<(), Problem> {
    let more = ["@type", "@baseType", "@schemaLocation", "intent", "creationDate", "intentReport", "none"];
    for name in wanted(fields) {
        let root = name.split('.').next().unwrap_or(name);
        if !PLAIN.contains(&root) && !NESTED.contains(&root) && !more.contains(&root) {
            let shown: String = name.chars().take(64).collect();
            let hint = format!("use {}, {} or none", PLAIN.join(", "), NESTED.join(", "));
            return Err(Problem::field("fields", format!("{shown:?} is not a field"), hint));
        }
    }
    Ok(())
}

fn wanted(fields: &[String]) -> impl Iterator<Item = &str> {
    fields.iter().flat_map(|one| one.split(',')).map(str::trim).filter(|one| !one.is_empty())
}

/// The fields of a resource that were asked for (`?fields=`), and those that every resource has.
pub fn select(resource: Json, fields: &[String]) -> Json {
    let roots: Vec<&str> = wanted(fields).map(|name| name.split('.').next().unwrap_or(name)).collect();
    match resource {
        Json::Object(all) if !roots.is_empty() => {
            let kept = all
                .into_iter()
                .filter(|(key, _)| roots.contains(&key.as_str()) || ["id", "href", "@type"].contains(&key.as_str()));
            Json::Object(kept.collect::<Map<_, _>>())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body() -> Json {
        json!({"@type": "Intent", "name": "plant", "expression": {"@type": "JsonLdExpression", "iri": IRI,
            "expressionValue": {"@context": {}, "userLabel": "DeliverComputingWorkload", "intentPriority": 7}}})
    }

    fn view_of(body: &Json) -> IntentView {
        let intent = Some(read(body).unwrap().intent);
        IntentView { intent_id: "i".into(), version: 1, intent, ..Default::default() }
    }

    /// Everything that a person can say around an intent.
    fn around() -> Json {
        let mut sent = body();
        for (name, value) in [
            ("name", json!("Halle Süd")),
            ("description", json!("of the south")),
            ("validFor", json!({"startDateTime": "2027-01-01T00:00:00Z", "endDateTime": "2027-02-01T00:00:00Z"})),
            ("isBundle", json!(false)),
            ("context", json!("plant")),
            ("intentSpecification", json!({"@type": "IntentSpecificationRef", "id": "s", "ownKey": 1})),
            ("intentRelationship", json!([{"id": "r", "relationshipType": "needs"}])),
            ("characteristic", json!([{"@type": "StringCharacteristic", "name": "aB", "value": "x"}])),
            ("relatedParty", json!([{"role": "owner", "partyOrPartyRole": {"id": "p", "APIKey": null}}, {"id": "q"}])),
            ("attachment", json!([{"name": "a"}])),
            ("priority", json!("7")),
            ("@schemaLocation", json!("https://h/s")),
        ] {
            sent[name] = value;
        }
        sent["expression"]["expressionValue"]["@id"] = json!("urn:x");
        sent["expression"]["iri"] = json!("https://mine/");
        sent
    }

    #[test]
    fn what_is_said_around_an_intent_is_given_back_as_it_was_sent() {
        let sent = around();
        let view = view_of(&sent);
        let shown = intent(&view);
        for (name, value) in sent.as_object().unwrap() {
            assert_eq!(shown.get(name), Some(value), "{name}: {shown:#}");
        }
        assert_eq!((shown["id"].as_str(), shown["lifecycleStatus"].as_str()), (Some("i"), Some("SUBMITTED")));
        assert_eq!(read(&shown).unwrap().intent, view.intent.clone().unwrap(), "what is shown can be sent again");
        assert_eq!(patch(&view, &shown), Ok(Change::Nothing), "and changes nothing");
        assert_eq!(read(&body()).unwrap().id, None, "a name is not an id");
        let bare = IntentView { intent_id: "i".into(), ..Default::default() };
        assert_eq!((intent(&bare)["name"].as_str(), intent(&bare)["priority"].as_str()), (Some("i"), Some("1")));
        assert_eq!(
            select(shown, &["name".into()]),
            json!({"@type": "Intent", "id": "i", "name": "Halle Süd", "href": format!("{BASE}/intent/i")})
        );
    }

    #[test]
    fn text_is_taken_as_it_is_spelt_and_no_number_is_rounded() {
        let sent = |text: &str| spelt(mesh_rest::body::read(None, text.as_bytes()).unwrap());
        let whole = |range: &str, around: &str| {
            sent(&format!(
                r#"{{"name": "p", "expression": {{"expressionValue": {{"@id": "urn:x", "observation_period": 2.0,
                "intentContexts": [{{"contextAttribute": "a", "context_value_range": {range}}}],
                "intentExpectations": [{{"expectation_id": 1.10, "expectationTargets": [
                    {{"targetName": 10e0, "targetCondition": "IS_LESS_THAN", "target_value_range": {range}}}]}}]}}}}{around}}}"#
            ))
        };
        let big = "100000000000000000000000000001";
        for (range, kept) in [("20.50", "20.50"), (big, big), ("true", "true"), ("[1.5,\"a\"]", "[1.5,\"a\"]")] {
            let new = read(&whole(range, "").unwrap()).unwrap();
            let expectation = &new.intent.intent_expectations[0];
            assert_eq!((expectation.expectation_id.as_str(), new.intent.observation_period), ("1.10", 2));
            let target = &expectation.expectation_targets[0];
            assert_eq!((target.target_name.as_str(), target.target_value_range.as_str()), ("10e0", kept));
            assert_eq!(new.intent.intent_contexts[0].context_value_range, kept);
        }
        let around = format!(r#", "characteristic": [{{"name": "a", "value": {big}}}]"#);
        for (refused, path) in [
            (whole(&format!("[{big}]"), ""), "expression.expressionValue.intentContexts[0].context_value_range"),
            (whole("1", &around), "body"),
        ] {
            let problem = refused.unwrap_err();
            assert_eq!((problem.status(), problem.faults[0].path.as_str()), (422, path), "{problem:?}");
        }
        let change = format!(
            r#"{{"expression": {{"expressionValue": {{"intent_contexts": [
            {{"contextAttribute": "b", "contextValueRange": {big}}}]}}}}}}"#
        );
        match patch(&view_of(&body()), &sent(&change).unwrap()) {
            Ok(Change::Definition(changed)) => assert_eq!(changed.intent_contexts[0].context_value_range, big),
            other => panic!("{other:?}"),
        }
        let twice = sent(r#"{"expression": {"expressionValue": {"intent_priority": 8, "intentPriority": 9}}}"#);
        assert_eq!(twice.unwrap_err().faults[0].path, "expression.expressionValue.intentPriority");
    }

    #[test]
    fn what_is_not_kept_is_refused_by_name() {
        for (name, value) in [
            ("colour", json!("red")),
            ("Name", json!("x")),
            ("version", json!("1.0")),
            ("creationDate", json!("2027-01-01T00:00:00Z")),
            ("lastUpdate", json!("x")),
            ("href", json!("x")),
            ("lifecycleStatus", json!("SUSPENDED")),
            ("isBundle", json!("yes")),
            ("validFor", json!({"startDateTime": "soon"})),
            ("validFor", json!("2027")),
            ("relatedParty", json!({"id": "a"})),
            ("characteristic", json!(["a"])),
            ("priority", json!("high")),
            ("priority", json!("0")),
            ("priority", json!("6")),
            ("description", json!(7)),
            ("name", json!(null)),
            ("name", json!("")),
            ("intentSpecification", json!("a")),
            ("@type", json!("Plan")),
        ] {
            let mut sent = body();
            sent[name] = value;
            let refused = read(&sent).unwrap_err();
            assert_eq!((refused.status(), refused.faults[0].path.as_str()), (422, name), "{sent}");
        }
        for (name, value) in [("colour", json!("red")), ("iri", json!(7)), ("@type", json!("TurtleExpression"))] {
            let mut sent = body();
            sent["expression"][name] = value;
            assert_eq!(read(&sent).unwrap_err().faults[0].path, format!("expression.{name}"));
        }
        let mut sent = body();
        sent["expression"]["expressionValue"]["intentPriority"] = json!(101);
        assert_eq!(read(&sent).unwrap_err().faults[0].path, "expression.expressionValue.intentPriority");
        let mut sent = body();
        sent["expression"]["expressionValue"]["colour"] = json!("red");
        assert_eq!(read(&sent).unwrap_err().faults[0].path, "expression.expressionValue.colour");
    }

    #[test]
    fn each_missing_field_is_named() {
        let problem = read(&json!({"@type": "Plan"})).unwrap_err();
        let paths: Vec<&str> = problem.faults.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(paths, ["@type", "name", "expression"]);
        for wrong in [json!([]), json!("x"), json!({"name": 7, "expression": []})] {
            assert_eq!(read(&wrong).unwrap_err().status(), 422);
        }
    }

    #[test]
    fn a_probe_is_told_from_an_intent_and_says_what_was_predicted() {
        let mut sent = body();
        sent["@type"] = json!("ProbeIntent");
        let new = read(&sent).unwrap();
        assert_eq!(new.creates, Creates::Probe);
        let reply = CheckReply { predicted_state: "FULFILLED".into(), watts: 3.5, ..CheckReply::default() };
        let shown = probe("p", &new.intent, &reply);
        assert_eq!((&shown["@type"], &shown["lifecycleStatus"]), (&json!("ProbeIntent"), &json!("FULFILLED")));
        assert_eq!((shown["name"].as_str(), &shown["characteristic"][0]["value"]), (Some("plant"), &json!(3.5)));
        assert_eq!(shown["intentReport"]["expression"]["expressionValue"]["predictedState"], "FULFILLED");
        assert_eq!(read(&shown).unwrap().creates, Creates::Probe, "what is shown can be sent again");
    }

    #[test]
    fn a_patch_is_merged_as_rfc_7396_has_it() {
        let view = view_of(&around());
        let changed = |change: Json| match patch(&view, &spelt(change.clone().into()).unwrap()) {
            Ok(Change::Definition(changed)) => intent(&IntentView { intent: Some(changed), ..view.clone() }),
            other => panic!("{change}: {other:?}"),
        };
        let shown = intent(&view);
        for (change, path, value) in [
            (json!({"name": "other"}), "/name", json!("other")),
            (json!({"description": null}), "/description", json!(null)),
            (json!({"validFor": {"endDateTime": null}}), "/validFor", json!({"startDateTime": "2027-01-01T00:00:00Z"})),
            (json!({"relatedParty": [{"id": "z"}]}), "/relatedParty", json!([{"id": "z"}])),
            (json!({"priority": "9"}), "/expression/expressionValue/intentPriority", json!(9)),
            (json!({"expression": {"expressionValue": {"intentPriority": 9}}}), "/priority", json!("9")),
            (json!({"expression": {"expressionValue": {"intent_priority": null}}}), "/priority", json!("1")),
            (
                json!({"expression": {"expressionValue": {"observation_period": 5}}}),
                "/expression/expressionValue/observationPeriod",
                json!(5),
            ),
            (json!({"expression": {"iri": "urn:y"}}), "/expression/iri", json!("urn:y")),
        ] {
            let mut now = changed(change.clone());
            assert_eq!(now.pointer(path).cloned().unwrap_or_default(), value, "{change}");
            // Nothing else has changed.
            let mut was = shown.clone();
            for of in [path, "/priority", "/expression/expressionValue/intentPriority"] {
                for resource in [&mut now, &mut was] {
                    let (parent, name) = of.rsplit_once('/').unwrap();
                    resource.pointer_mut(parent).and_then(Json::as_object_mut).unwrap().remove(name);
                }
            }
            assert_eq!(now, was, "{change}");
        }
    }

    #[test]
    fn a_patch_is_whole_or_not_at_all() {
        let view = view_of(&around());
        assert_eq!(patch(&view, &json!({})), Ok(Change::Nothing));
        assert_eq!(patch(&view, &json!({"lifecycleStatus": "SUBMITTED", "name": "Halle Süd"})), Ok(Change::Nothing));
        assert_eq!(patch(&view, &json!({"lifecycleStatus": "SUSPENDED"})), Ok(Change::Action(forms::Verb::Suspend)));
        for (change, path) in [
            (json!({"name": "x", "lifecycleStatus": "SUSPENDED"}), "lifecycleStatus"),
            (json!({"lifecycleStatus": "FULFILLED"}), "lifecycleStatus"),
            (json!({"lifecycleStatus": null}), "lifecycleStatus"),
            (json!({"name": "x", "colour": "red"}), "colour"),
            (json!({"name": "x", "id": "j"}), "id"),
            (json!({"version": "2"}), "version"),
            (json!({"@type": "ProbeIntent"}), "@type"),
            (json!({"name": null}), "name"),
            (json!({"expression": null}), "expression"),
            (json!({"priority": "8", "expression": {"expressionValue": {"intentPriority": 9}}}), "priority"),
            (json!({"expression": {"expressionValue": {"colour": 1}}}), "expression.expressionValue.colour"),
            (
                json!({"expression": {"expressionValue": {"intent_priority": 8, "intentPriority": 9}}}),
                "expression.expressionValue.intent_priority",
            ),
        ] {
            let refused = spelt(change.clone().into()).and_then(|change| patch(&view, &change)).unwrap_err();
            assert_eq!((refused.status(), refused.faults[0].path.as_str()), (422, path), "{change}: {refused:?}");
        }
        for odd in [
            json!([]),
            json!(7),
            json!("x"),
            json!({"expression": []}),
            json!({"expression": {"expressionValue": [1]}}),
        ] {
            assert_eq!(patch(&view, &odd).unwrap_err().status(), 422, "{odd}");
            let mut with_priority = json!({"priority": "3"});
            with_priority["expression"] = odd["expression"].clone();
            assert_eq!(patch(&view, &with_priority).unwrap_err().status(), 422, "{odd}");
        }
    }

    fn any_json() -> impl Strategy<Value = Json> {
        let name = proptest::sample::select(vec![
            "name",
            "expression",
            "expressionValue",
            "priority",
            "intentPriority",
            "@type",
            "iri",
            "validFor",
            "relatedParty",
            "lifecycleStatus",
            "id",
            "href",
            "intent_priority",
            "intentExpectations",
            "resource",
            "characteristic",
        ]);
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            (0..200_u32).prop_map(Json::from),
            "[a-zA-Z0-9{\\[\"]{0,6}".prop_map(Json::from)
        ];
        leaf.prop_recursive(4, 32, 5, move |inner| {
            let many = proptest::collection::vec(inner.clone(), 0..3).prop_map(Json::from);
            let named = proptest::collection::btree_map(name.clone().prop_map(str::to_owned), inner, 0..5);
            prop_oneof![many, named.prop_map(|fields| Json::Object(fields.into_iter().collect()))]
        })
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_or_kept_ends_the_process(sent in any_json(), kept in any_json()) {
            let _ = spelt(sent.clone().into()).map(|sent| read(&sent).is_ok());
            let _ = read(&sent);
            let mut view = view_of(&around());
            let _ = patch(&view, &sent);
            if let Some(intent) = &mut view.intent {
                intent.resource = kept.to_string();
            }
            let _ = (intent(&view), patch(&view, &sent), probe("p", view.intent.as_ref().unwrap(), &CheckReply::default()));
        }
    }

    #[test]
    fn a_list_is_narrowed_as_tmf630_has_it() {
        let shown = intent(&view_of(&around()));
        let fits = |query: &[(&str, &str)]| {
            let query = query.iter().map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()])).collect();
            filters(&query).map(|all| all.iter().all(|filter| filter.lets_through(&shown)))
        };
        for (name, value, does) in [
            ("name", "Halle Süd", true),
            ("name", "halle", false),
            ("name", "x,Halle Süd", true),
            ("name.ne", "x", true),
            ("name.ne", "Halle Süd,x", false),
            ("priority.gt", "6", true),
            ("priority.gt", "10", false),
            ("priority.lte", "7", true),
            ("isBundle", "false", true),
            ("relatedParty.id", "q", true),
            ("relatedParty.id", "z", false),
            ("relatedParty.partyOrPartyRole.id", "p", true),
            ("validFor.startDateTime.gte", "2027-01-01T01:00:00+01:00", true),
            ("validFor.startDateTime.lt", "2027-01-01T00:00:00Z", false),
            ("expression.expressionValue.userLabel", "DeliverComputingWorkload", true),
            ("characteristic.value.eq", "x", true),
        ] {
            assert_eq!(fits(&[(name, value)]), Ok(does), "{name}={value}");
        }
        assert_eq!(fits(&[("priority", "7"), ("name", "x"), ("limit", "1")]), Ok(false), "each has to fit");
        for unknown in ["colour", "name.regex", "name.first", "relatedParty", "relatedParty..id", "Name", "name.", ""] {
            assert_eq!(fits(&[(unknown, "x")]).unwrap_err().status(), 422, "{unknown}");
        }
        assert!(selectable(&["name, relatedParty.id".into(), "none".into()]).is_ok());
        assert_eq!(selectable(&["name,colour".into()]).unwrap_err().status(), 422);
    }
}
