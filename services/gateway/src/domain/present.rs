//! How things look to clients of the REST style: snake_case, as the platform's published interface has them.

use mesh_intent::view::names;
use mesh_proto::{
    intent::{AchievedValue, FulfilmentStatus, Intent, IntentHistory, IntentView, NotFulfilledState},
    json,
    placement::ClusterView,
    validation::{CheckReply, IntentTypes},
    workload::{InstancePhase, InstanceView, WorkloadView},
};
use prost::Message;
use serde_json::{Map, Value as Json, json};

use super::telemetry::quoted;

/// A message as JSON in snake_case; people's own keys stay as they are.
pub fn message(name: &str, message: &impl Message) -> Json {
    json::to_snake(name, &message.encode_to_vec()).unwrap_or(Json::Null)
}

/// An intent as it stands, with its report under `intent_report_reference`.
pub fn intent(view: &IntentView) -> Json {
    let empty = Intent::default();
    let mut fields = match message("continuum.intent.v1.Intent", view.intent.as_ref().unwrap_or(&empty)) {
        Json::Object(fields) => fields,
        _ => Map::new(),
    };
    let state = view.state.clone().unwrap_or_default();
    let (fulfilment, not_fulfilled) = names(&state);
    fields.insert("id".into(), json!(view.intent_id));
    fields.insert("owner".into(), json!(view.owner));
    fields.insert("version".into(), json!(view.version));
    fields.insert("fulfilment_status".into(), json!(fulfilment));
    fields.insert("not_fulfilled_state".into(), json!(not_fulfilled));
    fields.insert("reason".into(), json!(state.reason));
    fields.insert("waits_for".into(), json!(state.waits_for));
    fields.insert("hint".into(), json!(state.hint));
    if let Some(since) = view.since {
        fields.insert("since".into(), json!(since.to_string()));
    }
    let instance = |i: &mesh_proto::intent::GovernedInstance| message("continuum.intent.v1.GovernedInstance", i);
    fields.insert("instances".into(), view.instances.iter().map(instance).collect());
    // A person's own reference stays.
    if let Some(report) = report(view) {
        fields.entry("intent_report_reference").or_insert(report);
    }
    Json::Object(fields)
}

/// An intent's report.
pub fn report(view: &IntentView) -> Option<Json> {
    let mut report = message("continuum.report.v1.ReportPublished", view.report.as_ref()?);
    let fields = report.as_object_mut()?;
    fields.insert("id".into(), json!(format!("{}-{}", view.intent_id, view.version)));
    fields.remove("owner");
    Some(report)
}

/// An intent's versions.
pub fn history(history: &IntentHistory) -> Json {
    let version = |version: &mesh_proto::intent::IntentVersion| message("continuum.intent.v1.IntentVersion", version);
    json!({"in_force": history.in_force, "versions": history.versions.iter().map(version).collect::<Vec<_>>()})
}

/// What targets achieved, as lines (RFC 4180): one for each value.
pub fn achieved_csv(intent_id: &str, values: &[AchievedValue]) -> String {
    let mut text =
        "time,intent_id,expectation_id,target,value,unit,condition,bound,held,version,instance_id,cluster_id\r\n"
            .to_owned();
    for value in values {
        let held = value.held.map(|held| held.to_string()).unwrap_or_default();
        let (at, number, version) = (
            value.at.unwrap_or_default().to_string(),
            value.value.unwrap_or_default().to_string(),
            value.version.to_string(),
        );
        let fields: [&str; 12] = [
            &at,
            intent_id,
            &value.expectation_id,
            &value.target_name,
            &number,
            &value.unit,
            &value.target_condition,
            &value.target_value_range,
            &held,
            &version,
            &value.instance_id,
            &value.cluster_id,
        ];
        text.push_str(&fields.map(quoted).join(","));
        text.push_str("\r\n");
    }
    text
}

/// What the verdict on an intent would be, and what would come of it.
pub fn check(reply: &CheckReply) -> Json {
    let faults: Vec<Json> =
        reply.problems.iter().map(|p| json!({"path": p.path, "reason": p.reason, "hint": p.hint})).collect();
    let predictions: Vec<Json> =
        reply.predictions.iter().map(|p| message("continuum.validation.v1.Prediction", p)).collect();
    let conflicts: Vec<Json> =
        reply.conflicts.iter().map(|c| message("continuum.intent.v1.IntentConflict", c)).collect();
    json!({
        "acceptable": faults.is_empty(),
        "errors": faults,
        "predicted_state": reply.predicted_state,
        "predictions": predictions,
        "conflicts": conflicts,
        "watts": reply.watts,
        "joules_per_day": reply.joules_per_day,
        "credits_per_day": reply.credits_per_day,
        "provenance": reply.provenance().as_str_name(),
    })
}

/// Every type of intent, as the validator has them.
pub fn types(types: &IntentTypes) -> Json {
    let one = |one: &mesh_proto::validation::IntentTypeView| {
        let targets: Vec<Json> = one
            .targets
            .iter()
            .map(|t| {
                json!({"target_name": t.name, "unit": t.unit, "max": t.max, "measured": t.measured,
                "provenance": t.provenance().as_str_name()})
            })
            .collect();
        json!({
            "user_label": one.user_label,
            "aliases": one.aliases,
            "description": one.description,
            "verbs": one.verbs,
            "object_types": one.object_types,
            "targets": targets,
            "contexts": one.contexts,
            "statement": one.statement,
            "conditions": types.conditions,
        })
    };
    types.types.iter().map(one).collect()
}

/// The tag of what was shown: it changes with every fact of the intent (RFC 9110 §8.8.3).
pub fn etag(view: &IntentView) -> String {
    format!("\"{}-{}\"", view.version, view.revision)
}

/// Does an If-Match or If-None-Match header name this tag (RFC 9110 §13.1)? It is `*` for any, or a list of tags, which may
/// hold commas. If-Match compares strongly.
pub fn matches(header: &str, tag: &str, strongly: bool) -> bool {
    if header.trim() == "*" {
        return true;
    }
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let (is_weak, quoted) = match rest.strip_prefix("W/") {
            Some(quoted) => (true, quoted),
            None => (false, rest),
        };
        // What is no tag ends the list: it cannot be told where the next one begins.
        let Some(end) = quoted.strip_prefix('"').and_then(|inner| inner.find('"')) else { return false };
        let (one, after) = quoted.split_at(end + 2);
        if one == tag && !(is_weak && strongly) {
            return true;
        }
        rest = after;
    }
}

/// A workload document as it stands (WorkloadDocumentList).
pub fn workload(view: &WorkloadView) -> Json {
    let document = view.document.clone().unwrap_or_default();
    let reasons: Vec<String> = view.problems.iter().map(|p| format!("{}: {}", p.path, p.reason)).collect();
    let mut shown = json!({
        "id": format!("{}@{}", view.name, view.version),
        "user": {"username": view.owner},
        "name": view.name,
        "version": view.version,
        "type": if document.kind.is_empty() { "process" } else { &document.kind },
        "status": view.status,
        "ingress_support": document.expose.as_ref().is_some_and(|expose| expose.port > 0)
            || document.chart.as_ref().is_some_and(|chart| chart.ingress_support),
        "enabled": view.status == "accepted",
        "rejection_reason": reasons.join("; "),
        "statement": view.statement,
        "schema": message("continuum.workload.v1.WorkloadDocument", &document),
    });
    if let Some(report) = &view.report {
        shown["checks"] = message("continuum.workload.v1.CheckReport", report);
    }
    shown
}

/// An instance as it stands (WorkloadDocumentInstance). `status` is the phase, in small letters.
pub fn instance(view: &InstanceView) -> Json {
    let events: Vec<Json> =
        view.lifecycle_events.iter().map(|e| message("continuum.workload.v1.LifecycleEvent", e)).collect();
    json!({
        "id": view.instance_id,
        "instance_id": view.instance_id,
        "release_name": view.release_name,
        "workload_document": view.workload,
        "intent_id": view.intent_id,
        "status": phase(view.phase()),
        "reason": view.reason,
        "cluster_name": view.cluster_id,
        "replicas_wanted": view.replicas_wanted,
        "replicas_running": view.replicas_running,
        "restarts": view.restarts,
        "lifecycle_events": events,
        "revision": view.revision,
        "revisions": view.revisions.iter().map(|r| message("continuum.workload.v1.RevisionView", r)).collect::<Vec<_>>(),
    })
}

/// A phase as clients see it.
pub fn phase(phase: InstancePhase) -> String {
    if phase == InstancePhase::Unspecified { String::new() } else { phase.as_str_name().to_lowercase() }
}

/// A cluster as it stands (Cluster). Memory is in GB of 10^9 bytes, as the published interface has it.
pub fn cluster(view: &ClusterView) -> Json {
    let registered = view.registered.clone().unwrap_or_default();
    json!({
        "id": registered.cluster_id,
        "cluster_name": registered.cluster_id,
        "vm_name": registered.node,
        "site": registered.site,
        "cpus": f64::from(registered.cpu_milli) / 1_000.0,
        "memory": registered.memory_bytes as f64 / 1e9,
        "endpoint": registered.endpoint,
        "driver": registered.driver,
        "labels": registered.labels,
        "available": view.available,
        "cpu_milli_reserved": view.cpu_milli_reserved,
        "memory_bytes_reserved": view.memory_bytes_reserved,
        "instances": view.instances,
    })
}

/// What a list of intents is narrowed to; empty lists narrow nothing, each other to one of its values.
#[derive(Clone, Debug, Default)]
pub struct IntentFilter {
    /// Types.
    pub user_label: Vec<String>,
    /// Workload documents or instances.
    pub object_instance: Vec<String>,
    /// FULFILLED or NOT_FULFILLED.
    pub fulfilment_status: Vec<String>,
    /// States.
    pub not_fulfilled_state: Vec<String>,
    /// Ids.
    pub intent_id: Vec<String>,
}

impl IntentFilter {
    /// Is this intent among those that are wanted?
    pub fn lets_through(&self, view: &IntentView) -> bool {
        let one = |wanted: &[String], value: &str| wanted.is_empty() || wanted.iter().any(|w| w == value);
        let state = view.state.clone().unwrap_or_default();
        let (fulfilment, not_fulfilled) = names(&state);
        let intent = view.intent.as_ref();
        let objects = intent.iter().flat_map(|i| &i.intent_expectations).filter_map(|e| e.expectation_object.as_ref());
        one(&self.user_label, intent.map_or("", |i| i.user_label.as_str()))
            && one(&self.fulfilment_status, fulfilment)
            && one(&self.not_fulfilled_state, not_fulfilled)
            && one(&self.intent_id, &view.intent_id)
            && (self.object_instance.is_empty()
                || objects.into_iter().any(|o| self.object_instance.contains(&o.object_instance))
                || view.instances.iter().any(|i| self.object_instance.contains(&i.instance_id)))
    }

    /// Does it narrow nothing?
    pub fn is_empty(&self) -> bool {
        [&self.user_label, &self.object_instance, &self.fulfilment_status, &self.not_fulfilled_state, &self.intent_id]
            .iter()
            .all(|wanted| wanted.is_empty())
    }

    /// A value that no intent can have, and what it could be.
    pub fn fault(&self) -> Option<(&'static str, String, Vec<&'static str>)> {
        let statuses = [FulfilmentStatus::NotFulfilled.as_str_name(), FulfilmentStatus::Fulfilled.as_str_name()];
        let states: Vec<&'static str> =
            (1..).map_while(|n| NotFulfilledState::try_from(n).ok()).map(|s| s.as_str_name()).collect();
        let of = |name, wanted: &[String], known: &[&'static str]| {
            let wrong = wanted.iter().find(|w| !known.contains(&w.as_str()))?;
            Some((name, wrong.chars().take(64).collect(), known.to_vec()))
        };
        of("fulfilment_status", &self.fulfilment_status, &statuses)
            .or_else(|| of("not_fulfilled_state", &self.not_fulfilled_state, &states))
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        cluster::ClusterRegistered,
        intent::{ExpectationObject, IntentExpectation, State},
        telemetry::Provenance,
        validation::IntentTypeView,
    };

    use super::*;

    fn view() -> IntentView {
        IntentView {
            owner: "local".into(),
            intent_id: "a".into(),
            version: 2,
            revision: 9,
            intent: Some(Intent {
                user_label: "DeliverComputingWorkload".into(),
                intent_expectations: vec![IntentExpectation {
                    expectation_object: Some(ExpectationObject {
                        object_instance: "spinner@1.0.0".into(),
                        ..ExpectationObject::default()
                    }),
                    ..IntentExpectation::default()
                }],
                ..Intent::default()
            }),
            state: Some(State {
                fulfilment_status: FulfilmentStatus::NotFulfilled.into(),
                not_fulfilled_state: NotFulfilledState::Degraded.into(),
                reason: "missed".into(),
                ..State::default()
            }),
            ..IntentView::default()
        }
    }

    #[test]
    fn what_is_not_proven_is_shown_beside_what_is_accepted() {
        let view =
            WorkloadView { status: "accepted".into(), statement: "no agent runs charts".into(), ..Default::default() };
        assert_eq!(workload(&view)["statement"], "no agent runs charts");
        let chart =
            InstanceView { workload: "web@1.0.0".into(), release_name: "web-0190aa".into(), ..Default::default() };
        assert_eq!(instance(&chart)["release_name"], "web-0190aa", "not the name of its document");
        let process = InstanceView { workload: "web@1.0.0".into(), ..Default::default() };
        assert_eq!(instance(&process)["release_name"], "", "a process has no release");
        let registered = ClusterRegistered { driver: "simulated".into(), ..Default::default() };
        assert_eq!(cluster(&ClusterView { registered: Some(registered), ..Default::default() })["driver"], "simulated");
        let types = IntentTypes {
            types: vec![IntentTypeView { statement: "nothing attests it".into(), ..Default::default() }],
            ..Default::default()
        };
        assert_eq!(self::types(&types)[0]["statement"], "nothing attests it");
        let predicted = CheckReply { provenance: Provenance::Modelled.into(), ..Default::default() };
        assert_eq!(check(&predicted)["provenance"], "MODELLED");
    }

    #[test]
    fn an_intent_is_shown_in_snake_case_with_its_state_beside_it() {
        let shown = intent(&view());
        assert_eq!(shown["id"], "a");
        assert_eq!(shown["user_label"], "DeliverComputingWorkload");
        assert_eq!(shown["intent_expectations"][0]["expectation_object"]["object_instance"], "spinner@1.0.0");
        assert_eq!(
            (shown["not_fulfilled_state"].as_str(), shown["reason"].as_str()),
            (Some("DEGRADED"), Some("missed"))
        );
        assert_eq!(etag(&view()), "\"2-9\"");
    }

    #[test]
    fn what_is_shown_can_be_sent_again() {
        let mut view = view();
        view.report = Some(mesh_proto::report::ReportPublished {
            owner: "local".into(),
            intent_id: "a".into(),
            ..Default::default()
        });
        let own = json!({"APIKey": "k", "inner": {"aB": [1, {"cD": "x"}]}});
        if let Some(intent) = &mut view.intent {
            intent.intent_contexts.push(mesh_proto::intent::Context {
                context_attribute: "Any".into(),
                context_value_range: own.to_string(),
                ..Default::default()
            });
        }
        let shown = intent(&view);
        assert_eq!(shown["intent_contexts"][0]["context_value_range"], own);
        assert!(shown["intent_report_reference"].is_object());
        let read = |shown: &Json| crate::domain::forms::intent(shown.clone());
        assert_eq!(read(&shown).unwrap().about("a", "local"), Ok(view.intent.clone().unwrap()));
        assert_eq!(read(&shown).unwrap().about("b", "local").unwrap_err().faults[0].path, "id");
        assert_eq!(read(&shown).unwrap().about("a", "other").unwrap_err().faults[0].path, "owner");
        // A person's own reference is neither hidden nor lost.
        if let Some(intent) = &mut view.intent {
            intent.intent_report_reference = "IntentReport=1".into();
        }
        let shown = intent(&view);
        assert_eq!(shown["intent_report_reference"], "IntentReport=1");
        assert_eq!(read(&shown).unwrap().about("a", "local"), Ok(view.intent.unwrap()));
        // How an intent stands is not a person's to say where it is not what a read gave.
        for name in ["version", "reason", "fulfilment_status", "instances", "owner"] {
            let told = read(&json!({"user_label": "x", name: "y"})).unwrap_err();
            assert_eq!(told.faults[0].path, name);
        }
    }

    #[test]
    fn keys_of_people_keep_their_spelling() {
        let own = json!({"aB": "x", "APIKey": "k", "memoryBytes": "y"});
        let sent = json!({"name": "w", "process": {"environment": own}, "clusterSelector": own,
            "resources": {"memoryBytes": 1}});
        let document = crate::domain::forms::workload(sent).unwrap();
        let shown = message("continuum.workload.v1.WorkloadDocument", &document);
        assert_eq!((&shown["process"]["environment"], &shown["cluster_selector"]), (&own, &own));
        assert_eq!(shown["resources"], json!({"memory_bytes": 1}));
        assert_eq!(crate::domain::forms::workload(shown), Ok(document), "and is read again");
    }

    #[test]
    fn filters_narrow_to_one_of_each_and_name_what_cannot_be() {
        let filter = |field: fn(&mut IntentFilter) -> &mut Vec<String>, values: &[&str]| {
            let mut filter = IntentFilter::default();
            *field(&mut filter) = values.iter().map(|v| (*v).to_owned()).collect();
            filter
        };
        assert!(IntentFilter::default().lets_through(&view()));
        assert!(filter(|f| &mut f.not_fulfilled_state, &["COMPLIANT", "DEGRADED"]).lets_through(&view()));
        assert!(!filter(|f| &mut f.not_fulfilled_state, &["COMPLIANT"]).lets_through(&view()));
        assert!(filter(|f| &mut f.object_instance, &["spinner@1.0.0"]).lets_through(&view()));
        assert!(!filter(|f| &mut f.object_instance, &["other"]).lets_through(&view()));
        assert!(!filter(|f| &mut f.intent_id, &["b"]).lets_through(&view()));
        let (name, wrong, known) = filter(|f| &mut f.not_fulfilled_state, &["DEGRADE"]).fault().unwrap();
        assert_eq!((name, wrong.as_str(), known.contains(&"DEGRADED")), ("not_fulfilled_state", "DEGRADE", true));
    }

    #[test]
    fn tags_match_as_in_the_rfc() {
        assert!(matches("\"1-2\", \"2-9\"", "\"2-9\"", true) && matches("*", "\"2-9\"", true));
        assert!(!matches("W/\"2-9\"", "\"2-9\"", true) && matches("W/\"2-9\"", "\"2-9\"", false));
        assert!(!matches("2-9", "\"2-9\"", true) && !matches("", "\"2-9\"", true));
        for (header, does) in [
            (r#""x", "2-9""#, true),
            (r#""x","2-9","y""#, true),
            (r#""x,", "2-9""#, true),
            (r#""a,b" , , "2-9""#, true),
            (r#"W/"x", "2-9""#, true),
            (" * ", true),
            (r#""x", "y""#, false),
            (r#""x,"2-9"#, false),
            (r#""x, \"2-9\"""#, false),
            (r#""x", *"#, false),
            (r#"w/"2-9""#, false),
            (r#""2-9"#, false),
            (r#"x, "2-9""#, false),
        ] {
            assert_eq!(matches(header, "\"2-9\"", true), does, "{header}");
        }
    }
}
