//! Nothing that is asked for is dropped silently: each documented member of each body is read or refused by its name, at any
//! depth; and so is one that nobody knows. The members are those of the OpenAPI document.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test reads whether to write what it compares with")]

use std::{collections::BTreeSet, fs, path::Path};

use gateway::domain::{
    forms::{
        self, ActionInput, ClusterInput, HubInput, IntentTemplate, MigrateInput, RevisionInput, RollbackInput,
        TargetUpdate, TemplateInput, UpgradeInput,
    },
    measurement, serrano,
    table::{self, Op, ROUTES, UPLOAD},
    tmf,
};
use mesh_proto::intent::IntentView;
use mesh_rest::{body, problem::Problem};
use serde_json::{Map, Value as Json, json};

/// Bodies that the identity service reads, whose forms refuse what they do not know; and the form of an upload, which is
/// not JSON.
const ELSEWHERE: [&str; 3] = ["Login", "AccountInput", UPLOAD];

/// What is read of a body, as text.
fn read(schema: &str, sent: Json) -> Result<String, Problem> {
    let shown = |value: &dyn std::fmt::Debug| format!("{value:?}");
    match schema {
        "IntentInput" => forms::intent(sent).map(|read| shown(&read)),
        "IntentTemplate" => body::form::<IntentTemplate>(sent).map(|read| shown(&read)),
        "ActionInput" => body::form::<ActionInput>(sent).map(|read| shown(&read)),
        "TargetUpdate" => body::form::<TargetUpdate>(sent).map(|read| shown(&read)),
        "RollbackInput" => body::form::<RollbackInput>(sent).map(|read| shown(&read)),
        "WorkloadInput" => forms::workload(sent).map(|read| shown(&read)),
        "TemplateInput" => {
            let read = TemplateInput::read(sent)?;
            let release = read.release(true)?;
            Ok(shown(&(release, read.replicas, &read.intents)))
        }
        "UpgradeInput" => {
            let read = UpgradeInput::read(sent)?;
            let release = read.release(true, None)?;
            Ok(shown(&(release, read.replicas, read.atomic, &read.workload_document)))
        }
        "RevisionInput" => body::form::<RevisionInput>(sent).map(|read| shown(&read)),
        "MigrateInput" => body::form::<MigrateInput>(sent).map(|read| shown(&read)),
        "ClusterInput" => body::form::<ClusterInput>(sent)?.check().map(|read| shown(&read)),
        "TmfIntentInput" => tmf::read(&tmf::spelt(sent.into())?).map(|read| shown(&read)),
        "TmfIntentPatch" => {
            let view = IntentView { intent_id: "i".into(), ..Default::default() };
            tmf::patch(&view, &tmf::spelt(sent.into())?).map(|read| shown(&read))
        }
        "SettingInput" => measurement::setting(sent).map(|read| shown(&read)),
        "ConditionInput" => measurement::condition(sent, "b", "b").map(|read| shown(&read)),
        "SerranoCollectionInput" => body::form::<serrano::Collection>(sent)?.setting().map(|read| shown(&read)),
        "SerranoAgentInput" => body::form::<serrano::AgentSettings>(sent)?.setting("c").map(|read| shown(&read)),
        "SerranoSessionInput" => body::form::<serrano::Session>(sent)?.settings().map(|read| shown(&read)),
        "TmfHubInput" => body::form::<HubInput>(sent)?.check().map(|read| shown(&read)),
        other => panic!("a body of {other} is read by nobody: add it here"),
    }
}

struct Visit<'a> {
    document: &'a Json,
    body: &'a str,
    members: BTreeSet<String>,
    unknown: usize,
    silent: Vec<String>,
}

impl Visit<'_> {
    fn resolved(&self, schema: &Json) -> Json {
        match schema["$ref"].as_str() {
            Some(to) => self.resolved(self.document.pointer(to.trim_start_matches('#')).unwrap()),
            None => schema.clone(),
        }
    }

    /// A value of a schema: one of two that differ, where there are two.
    fn sample(&self, schema: &Json, second: bool) -> Json {
        let schema = self.resolved(schema);
        if let Some(value) = schema.get("const") {
            return value.clone();
        }
        if let Some(values) = schema["enum"].as_array() {
            return values[usize::from(second).min(values.len() - 1)].clone();
        }
        if let Some(either) = schema["anyOf"].as_array() {
            return self.sample(&either[0], second);
        }
        let kinds: Vec<&str> = match &schema["type"] {
            Json::Array(many) => many.iter().filter_map(Json::as_str).collect(),
            one => one.as_str().into_iter().collect(),
        };
        match kinds.first() {
            Some(&"string") if schema["format"] == "date-time" => {
                json!(format!("2027-01-0{}T00:00:00Z", 1 + u8::from(second)))
            }
            Some(&"string") if schema["pattern"].as_str().is_some_and(|p| p.starts_with("^https?")) => {
                json!(if second { "https://h/b" } else { "https://h/a" })
            }
            Some(&"string") if schema["pattern"].as_str().is_some_and(|p| p.starts_with("^([1-9]|")) => {
                json!(if second { "3" } else { "2" })
            }
            Some(&"string") => json!(if second { "b" } else { "a" }),
            Some(&"integer" | &"number") => json!(if second { 3 } else { 2 }),
            Some(&"boolean") => json!(!second),
            Some(&"array") => json!([self.sample(&schema["items"], second)]),
            Some(&"object") if schema["properties"].is_object() => Json::Object(self.least(&schema, second)),
            Some(&"object") if schema["additionalProperties"].is_object() => {
                json!({"ownKey": self.sample(&schema["additionalProperties"], second)})
            }
            _ => json!({"ownKey": if second { "b" } else { "a" }}),
        }
    }

    /// The members that an object needs.
    fn least(&self, schema: &Json, second: bool) -> Map<String, Json> {
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str);
        required.map(|name| (name.to_owned(), self.sample(&schema["properties"][name], second))).collect()
    }

    fn visit(&mut self, schema: &Json, path: &str, around: &dyn Fn(Json) -> Json) {
        let schema = self.resolved(schema);
        if let Some(either) = schema["anyOf"].as_array() {
            for one in either {
                self.visit(one, path, around);
            }
            return;
        }
        if schema["items"].is_object() {
            return self.visit(&schema["items"].clone(), &format!("{path}[]"), &|inner| around(json!([inner])));
        }
        let Some(properties) = schema["properties"].as_object().cloned() else { return };
        let least = self.least(&schema, false);
        let with = |name: &str, value: Json| {
            let mut object = least.clone();
            object.insert(name.to_owned(), value);
            Json::Object(object)
        };
        for (name, inner) in &properties {
            let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let (first, second) = (self.sample(inner, false), self.sample(inner, true));
            // Against what is without it, or has another value.
            let other = match least.contains_key(name) {
                true => with(name, second.clone()),
                false => Json::Object(least.clone()),
            };
            let other = read(self.body, around(other));
            let is_read = |value: Json| match (read(self.body, around(with(name, value))), &other) {
                (Err(refused), _) => refused.faults.iter().any(|fault| fault.path.contains(name.as_str())),
                (Ok(one), Ok(other)) => one != *other,
                (Ok(_), Err(_)) => true,
            };
            // What has one value says nothing by it, and one of several values may be what holds without it.
            if !is_read(first) && !is_read(second) && inner.get("const").is_none() {
                self.silent.push(format!("{}: {at}", self.body));
            }
            self.members.insert(at.clone());
            self.visit(inner, &at, &|value| around(with(name, value)));
        }
        if schema["additionalProperties"] == json!(false) {
            self.unknown += 1;
            let refused = read(self.body, around(with("notKnown", json!(1))));
            let named = |refused: &Problem| refused.faults.iter().any(|fault| fault.path.contains("notKnown"));
            if !refused.as_ref().is_err_and(named) {
                self.silent.push(format!("{}: {path}.notKnown: {refused:?}", self.body));
            }
        }
    }
}

#[test]
fn the_document_in_schemas_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas/openapi.json");
    let text = format!("{:#}\n", table::openapi());
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap_or_default(), text, "run `make gen`");
}

#[test]
fn every_member_of_a_body_is_read_or_refused_by_its_name() {
    let document = table::openapi();
    let bodies: BTreeSet<&str> = ROUTES.iter().map(|route| route.body).filter(|body| !body.is_empty()).collect();
    let (mut members, mut unknown, mut silent) = (0, 0, vec![]);
    for body in bodies.iter().filter(|body| !ELSEWHERE.contains(*body)) {
        let schema = json!({"$ref": format!("#/components/schemas/{body}")});
        let mut visit = Visit { document: &document, body, members: BTreeSet::new(), unknown: 0, silent: vec![] };
        visit.visit(&schema, "", &|whole| whole);
        members += visit.members.len();
        unknown += visit.unknown;
        silent.extend(visit.silent);
    }
    println!(
        "{members} members of {} bodies, and {unknown} unknown ones: none is dropped silently",
        bodies.len() - ELSEWHERE.len()
    );
    assert!(silent.is_empty(), "{}", silent.join("\n"));
    assert!(members > 150 && unknown > 20, "{members}, {unknown}");
}

#[test]
fn every_parameter_is_known_or_refused_by_its_name() {
    let mut known = 0;
    for route in ROUTES {
        let is_list = |name: &str| table::is_list(route.op, name);
        let read = |text: &str| match route.op {
            Op::TmfList => {
                body::query_below(text, route.query, is_list).and_then(|query| tmf::filters(&query).map(|_| query))
            }
            _ => body::query(text, route.query, is_list),
        };
        for name in route.query {
            known += 1;
            let is_nested = route.op == Op::TmfList && read(&format!("{name}=1")).is_err();
            let name = if is_nested { format!("{name}.id") } else { (*name).to_owned() };
            assert!(read(&format!("{name}=1")).is_ok(), "{:?}: {name}", route.op);
            let twice = read(&format!("{name}=1&{name}=2")).err().map(|refused| refused.faults[0].path.clone());
            assert_eq!(twice, (!is_list(&name)).then_some(name), "{:?}", route.op);
        }
        for unknown in ["notKnown", "notKnown.id", "Owner", "owner.id"] {
            let refused = read(&format!("{unknown}=1")).unwrap_err();
            assert_eq!((refused.status(), refused.faults[0].path.as_str()), (422, unknown), "{:?}", route.op);
        }
    }
    println!("{known} parameters of {} requests, and {} unknown ones", ROUTES.len(), ROUTES.len() * 4);
}
