//! What people send: bodies of JSON or YAML, read into messages; each fault with the field and what would be right.

use mesh_intent::template::{self, Template};
use mesh_proto::{
    DecodeError, Timestamp, Written,
    intent::{ExpectationTarget, Intent},
    is_key, json,
    workload::{Release, WorkloadDocument},
};
use mesh_rest::problem::{Fault, Kind, Problem};
use serde::Deserialize;
use serde_json::Value as Json;

/// Bytes of a chart's archive at most, as the registry takes them.
pub const ARCHIVE_MAX: usize = 3 << 20;

/// Faults of a body that are told.
const FAULTS_MAX: usize = 64;
/// Parts of a document that are tried one by one to find the wrong one.
const CULPRIT_TRIES_MAX: usize = 1_000;

pub(crate) fn message<M: prost::Message + Default>(name: &str, sent: &Written) -> Result<M, Problem> {
    if !sent.is_fields() {
        return Err(Problem::field("body", "is not an object", "send the document as an object"));
    }
    json::from_written(name, sent).map_err(|error| match error {
        // For a value of the wrong type the decoder does not name the field.
        DecodeError::Json(text) if text.split_once(": ").is_none_or(|(head, _)| head.contains(' ')) => {
            let path = culprit(&sent.clone().into_json(), |value| json::from_value::<M>(name, value).is_err());
            Problem::field(&path, text, "see the schema at /openapi.json")
        }
        other => unfit(other),
    })
}

/// What does not fit a message, by field.
fn unfit(error: DecodeError) -> Problem {
    match error {
        DecodeError::Json(text) => {
            let mut faults: Vec<Fault> = vec![];
            for part in text.split("; ") {
                // What does not begin with a path goes on with the one before: "unknown field; did you mean …".
                let read = part.split_once(": ").filter(|(path, _)| !path.contains(' '));
                if let (None, Some(last)) = (read, faults.last_mut()) {
                    last.reason.extend(["; ", part]);
                } else if faults.len() < FAULTS_MAX {
                    let (path, reason) = read.unwrap_or(("body", part));
                    let hint = "see the schema at /openapi.json".into();
                    faults.push(Fault { path: path.into(), reason: reason.into(), hint });
                }
            }
            Problem::faults(faults)
        }
        other => Problem::malformed(other.to_string(), "see the schema at /openapi.json"),
    }
}

/// What was sent of a message, its text as it is spelt: to merge or look at before it is read.
///
/// # Errors
/// When a field is there in two spellings, or a number of a person's own would be rounded.
pub fn spelt(name: &str, sent: &Written) -> Result<Json, Problem> {
    json::spelt(name, sent).map_err(unfit)
}

/// Path to what is wrong in a document: narrows it to one field after another while it stays wrong.
fn culprit(whole: &Json, is_wrong: impl Fn(Json) -> bool) -> String {
    /// A field of an object, or an item of a list.
    enum Step<'a> {
        Field(&'a str),
        Item(usize),
    }
    let around = |path: &[Step<'_>], inner: &Json| {
        path.iter().rev().fold(inner.clone(), |inner, step| match step {
            Step::Field(name) => Json::Object([((*name).to_owned(), inner)].into_iter().collect()),
            Step::Item(_) => Json::Array(vec![inner]),
        })
    };
    let (mut path, mut at, mut tries): (Vec<Step<'_>>, &Json, usize) = (vec![], whole, 0);
    loop {
        // One that is wrong even when it is empty is wrong as a whole.
        let empty = match at {
            Json::Object(_) => Json::Object(serde_json::Map::new()),
            _ => Json::Array(vec![]),
        };
        if !path.is_empty() && is_wrong(around(&path, &empty)) {
            break;
        }
        let parts: Vec<(Step<'_>, &Json)> = match at {
            Json::Object(fields) => fields.iter().map(|(name, inner)| (Step::Field(name), inner)).collect(),
            Json::Array(items) => items.iter().enumerate().map(|(at, inner)| (Step::Item(at), inner)).collect(),
            _ => vec![],
        };
        let found = parts.into_iter().find_map(|(step, inner)| {
            tries += 1;
            path.push(step);
            let wrong = tries <= CULPRIT_TRIES_MAX && is_wrong(around(&path, inner));
            path.pop().filter(|_| wrong).map(|step| (step, inner))
        });
        let Some((step, inner)) = found else { break };
        path.push(step);
        at = inner;
    }
    let mut text = String::new();
    for step in path {
        match step {
            Step::Field(name) if text.is_empty() => text.push_str(name),
            Step::Field(name) => text.extend([".", name]),
            Step::Item(at) => text.push_str(&format!("[{at}]")),
        }
    }
    if text.is_empty() { "body".to_owned() } else { text.chars().take(256).collect() }
}

/// What a read of an intent gives beside it: how it stands, which is not a person's to say.
const STANDING: [&str; 8] =
    ["version", "fulfilment_status", "not_fulfilled_state", "reason", "waits_for", "hint", "since", "instances"];

/// An intent as it was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    /// Id that is given beside it.
    pub id: Option<String>,
    /// Owner that is given beside it.
    owner: Option<Json>,
    /// The intent.
    pub intent: Intent,
}

impl Sent {
    /// As one of this owner.
    ///
    /// # Errors
    /// When it names another.
    pub fn of(self, owner: &str) -> Result<Self, Problem> {
        match &self.owner {
            Some(named) if named != owner => {
                Err(Problem::field("owner", "is another than the request is for", "leave it out, or use ?owner="))
            }
            _ => Ok(self),
        }
    }

    /// The intent, as a definition of this one.
    ///
    /// # Errors
    /// When it names another.
    pub fn about(self, id: &str, owner: &str) -> Result<Intent, Problem> {
        let sent = self.of(owner)?;
        match sent.id {
            Some(named) if named != id => {
                Err(Problem::field("id", "is another than in the address", "leave it out, or correct the address"))
            }
            _ => Ok(sent.intent),
        }
    }
}

/// An intent: bare, or as `intent` (IntentInputAttribute); with an `id` of the person's own beside it, or none; or whole as
/// a read gave it, where what is said of its standing is no instruction.
///
/// # Errors
/// When it is not an intent.
pub fn intent(value: impl Into<Written>) -> Result<Sent, Problem> {
    let mut value = value.into();
    let unread = |error: mesh_proto::WrittenError| Problem::field("body", error.to_string(), "send it once");
    let mut owner = None;
    if ["id", "owner", "version", "fulfilment_status"].iter().all(|name| value.get(name).is_some()) {
        owner = value.take(&["owner"]).map_err(unread)?.map(Written::into_json);
        for name in STANDING {
            value.take(&[name]).map_err(unread)?;
        }
        let of =
            value.get("intent_report_reference").and_then(|report| report.get("intent_id")).and_then(Written::text);
        if of.is_some() && of == value.get("id").and_then(Written::text) {
            value.take(&["intent_report_reference"]).map_err(unread)?;
        }
    }
    let id = value.take(&["id"]).map_err(unread)?.filter(|id| !id.is_null());
    let is_wrapped = value.names().eq(["intent"]);
    let inner = match is_wrapped {
        true => value.take(&["intent"]).map_err(unread)?.unwrap_or(value),
        false => value,
    };
    if is_wrapped && !inner.is_fields() {
        return Err(Problem::field("intent", "is not an object", "send the intent as an object"));
    }
    // As it is spelt: `010` is an id like any other.
    let id = id.map(|id| own_id(id.text().map_or(Json::Null, Json::from))).transpose()?;
    Ok(Sent { id, owner, intent: definition(inner)? })
}

/// An id of a person's own.
///
/// # Errors
/// When no intent can have it.
pub fn own_id(id: Json) -> Result<String, Problem> {
    match id {
        Json::String(id) if is_key(&id) => Ok(id),
        _ => {
            Err(Problem::field("id", "is not a valid id", "use 1 to 64 letters, digits, `_` and `-`, or leave it out"))
        }
    }
}

/// An intent after TS 28.312, and nothing else.
///
/// # Errors
/// When it is not one.
pub fn definition(value: impl Into<Written>) -> Result<Intent, Problem> {
    message("continuum.intent.v1.Intent", &value.into())
}

/// A workload document.
///
/// # Errors
/// When it is not one, or its name cannot be part of an address.
pub fn workload(value: impl Into<Written>) -> Result<WorkloadDocument, Problem> {
    let document: WorkloadDocument = message("continuum.workload.v1.WorkloadDocument", &value.into())?;
    if !is_key(&document.name) {
        return Err(Problem::field("name", "is not a valid name", "use 1 to 64 letters, digits, `_` and `-`"));
    }
    Ok(document)
}

/// A target of a template.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetTemplate {
    target_name: String,
    target_condition: String,
    target_value_range: String,
}

/// A short form of an intent about one instance (IntentTemplate).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntentTemplate {
    /// Instance it is about; not needed where one is just being made.
    #[serde(default)]
    instance_id: String,
    intent_type: String,
    #[serde(default)]
    service_start_time: Option<String>,
    #[serde(default)]
    service_end_time: Option<String>,
    targets: Vec<TargetTemplate>,
}

impl IntentTemplate {
    /// The whole intent, by the table of types. `instance` stands in for an instance that is not named.
    ///
    /// # Errors
    /// When no instance is named, the type is unknown, or a time is invalid.
    pub fn expand(self, instance: Option<&str>) -> Result<Intent, Problem> {
        let instance_id = match instance {
            Some(instance) => instance.to_owned(),
            None if self.instance_id.is_empty() => {
                return Err(Problem::field("instance_id", "is missing", "name the instance that it is about"));
            }
            None => self.instance_id,
        };
        let time = |path: &str, text: Option<String>| {
            text.map(|text| {
                text.parse::<Timestamp>().map_err(|_| {
                    let shown: String = text.chars().take(64).collect();
                    Problem::field(
                        path,
                        format!("{shown:?} is not a time"),
                        "write it as 2027-01-31T12:00:00Z or 2027-01-31T12:00:00+05:30",
                    )
                })
            })
            .transpose()
        };
        let target = |target: TargetTemplate| ExpectationTarget {
            target_name: target.target_name,
            target_condition: target.target_condition,
            target_value_range: target.target_value_range,
            ..ExpectationTarget::default()
        };
        let written = template::write_out(&Template {
            instance_id,
            intent_type: self.intent_type,
            start: time("service_start_time", self.service_start_time)?,
            end: time("service_end_time", self.service_end_time)?,
            targets: self.targets.into_iter().map(target).collect(),
        });
        written.map_err(|problem| Problem::field("intent_type", problem.reason, problem.hint))
    }
}

/// An action on an intent (IntentActionInput).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Verb {
    /// Stop watching.
    #[serde(rename = "SUSPEND")]
    Suspend,
    /// Watch again.
    #[serde(rename = "RESUME")]
    Resume,
    /// End it.
    #[serde(rename = "TERMINATE")]
    Terminate,
}

/// The body of an action.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionInput {
    /// What to do.
    pub action: Verb,
}

/// A new value for one target (IntentTargetUpdate).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetUpdate {
    target_id: String,
    target_value_range: String,
}

impl TargetUpdate {
    /// Sets the value of the target: its name, `<expectation>.<name>`, or its number from 1.
    ///
    /// # Errors
    /// When there is no such target, or more than one.
    pub fn apply(&self, intent: &mut Intent) -> Result<(), Problem> {
        let wanted = self.target_id.as_str();
        let number = wanted.parse::<usize>().ok();
        let mut known = vec![];
        let mut found = vec![];
        let mut at = 0;
        for expectation in &mut intent.intent_expectations {
            let expectation_id = expectation.expectation_id.clone();
            for target in &mut expectation.expectation_targets {
                at += 1;
                let long = format!("{expectation_id}.{}", target.target_name);
                if number == Some(at) || wanted == target.target_name || wanted == long {
                    found.push(target);
                }
                known.push(long);
            }
        }
        match &mut found[..] {
            [target] => {
                target.target_value_range.clone_from(&self.target_value_range);
                Ok(())
            }
            found => Err(Problem::field(
                "target_id",
                format!("{} targets are called {:?}", found.len(), wanted.chars().take(64).collect::<String>()),
                format!("use one of {}, or a number from 1", known.join(", ")),
            )),
        }
    }
}

/// A version to go back to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackInput {
    /// Which.
    pub version: u64,
}

/// Who wants to be told of events (TMF921's Hub_FVO).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubInput {
    /// Where they are sent.
    pub callback: String,
    /// Which.
    #[serde(default)]
    pub query: String,
    #[serde(default, rename = "@type")]
    kind: Option<String>,
}

impl HubInput {
    /// Refuses what is no hub.
    ///
    /// # Errors
    /// When its type is another.
    pub fn check(self) -> Result<Self, Problem> {
        match self.kind.as_deref() {
            None | Some("Hub") => Ok(self),
            Some(_) => Err(Problem::field("@type", "is not Hub", "send Hub, or leave it out")),
        }
    }
}

/// How a chart is released; of other documents nothing of it may be said.
#[derive(Debug, Default)]
struct ReleaseInput {
    release_name: String,
    namespace: String,
    values_override: Json,
    ingress_enabled: bool,
}

impl ReleaseInput {
    fn values(&self) -> Result<String, Problem> {
        match &self.values_override {
            Json::Null => Ok(String::new()),
            Json::Object(many) if many.is_empty() => Ok(String::new()),
            // As the published example has it.
            Json::Array(many) if many.is_empty() => Ok(String::new()),
            // JSON is YAML.
            Json::Object(_) => Ok(self.values_override.to_string()),
            _ => Err(Problem::field("values_override", "is not an object", "give values by name, or leave it out")),
        }
    }

    /// As the registry reads it, on top of what holds now; `None` if nothing is given.
    fn release(&self, is_chart: bool, now: Option<Release>) -> Result<Option<Release>, Problem> {
        let values = self.values()?;
        if !is_chart {
            // A name means nothing for a process; the published example has one all the same, and the default namespace.
            let given = [
                ("values_override", !values.is_empty()),
                ("ingress_enabled", self.ingress_enabled),
                ("namespace", !["", "default"].contains(&self.namespace.as_str())),
            ];
            return match given.iter().find(|(_, is_given)| *is_given) {
                None => Ok(None),
                Some((path, _)) => {
                    let reason = "is only for charts, and this document is not a chart";
                    Err(Problem::field(path, reason, "leave it out"))
                }
            };
        }
        if values.is_empty() && self.release_name.is_empty() && self.namespace.is_empty() && !self.ingress_enabled {
            return Ok(now);
        }
        let mut release = now.unwrap_or_default();
        if !values.is_empty() {
            release.values = values;
        }
        if !self.release_name.is_empty() {
            release.name.clone_from(&self.release_name);
        }
        if !self.namespace.is_empty() {
            release.namespace.clone_from(&self.namespace);
        }
        release.ingress |= self.ingress_enabled;
        Ok(Some(release))
    }
}

/// How an instance is made (WorkloadDocumentTemplateInput).
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TemplateInput {
    release_name: String,
    values_override: Json,
    include_crds: bool,
    is_upgrade: bool,
    namespace: String,
    no_hooks: bool,
    ingress_enabled: bool,
    /// Replicas; the document's if 0.
    pub replicas: u32,
    /// Intents about the instance.
    pub intents: Vec<IntentTemplate>,
}

/// Reads a form with values for a chart, which are a person's own.
fn with_values<T: serde::de::DeserializeOwned>(
    sent: impl Into<Written>,
    values: impl FnOnce(&mut T, Json),
) -> Result<T, Problem> {
    let mut sent = sent.into();
    let unread = |error: mesh_proto::WrittenError| {
        Problem::field("values_override", error.to_string(), "values are kept as JSON's readers have them")
    };
    let given = sent.take(&["values_override"]).map_err(unread)?.map(Written::into_exact_json);
    let mut form = mesh_rest::body::form(sent)?;
    if let Some(given) = given.transpose().map_err(unread)? {
        values(&mut form, given);
    }
    Ok(form)
}

impl TemplateInput {
    /// Reads it.
    ///
    /// # Errors
    /// When a field is missing, unknown or of another type, or a number among the values would be rounded.
    pub fn read(sent: impl Into<Written>) -> Result<Self, Problem> {
        with_values(sent, |form: &mut Self, values| form.values_override = values)
    }

    /// How it is released: `None` if it is not a chart, or as its document has it.
    ///
    /// # Errors
    /// When it asks for what is not offered, or for what only charts have.
    pub fn release(&self, is_chart: bool) -> Result<Option<Release>, Problem> {
        let given = [("include_crds", self.include_crds), ("is_upgrade", self.is_upgrade), ("no_hooks", self.no_hooks)];
        if let Some((path, _)) = given.iter().find(|(_, given)| *given) {
            let hint = "leave it out: definitions of resources and hooks are not applied; there is …/upgrade/";
            return Err(Problem::field(path, "is not offered", hint));
        }
        if self.replicas > 100 {
            return Err(Problem::field("replicas", "is more than 100", "use 0 to 100"));
        }
        if self.intents.len() > 16 {
            return Err(Problem::field("intents", "are more than 16", "submit them one by one"));
        }
        let input = ReleaseInput {
            release_name: self.release_name.clone(),
            namespace: self.namespace.clone(),
            values_override: self.values_override.clone(),
            ingress_enabled: self.ingress_enabled,
        };
        input.release(is_chart, None)
    }
}

/// What an instance becomes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpgradeInput {
    /// Its document, `name@version`; the present one if empty.
    pub workload_document: String,
    /// Replicas; as now if 0.
    pub replicas: u32,
    /// Goes back by itself if the new revision fails for good.
    pub atomic: bool,
    release_name: String,
    namespace: String,
    values_override: Json,
    ingress_enabled: bool,
}

impl UpgradeInput {
    /// Reads it.
    ///
    /// # Errors
    /// As [`TemplateInput::read`].
    pub fn read(sent: impl Into<Written>) -> Result<Self, Problem> {
        with_values(sent, |form: &mut Self, values| form.values_override = values)
    }

    /// How it is released, over how it is now.
    ///
    /// # Errors
    /// When it asks for what only charts have.
    pub fn release(&self, is_chart: bool, now: Option<Release>) -> Result<Option<Release>, Problem> {
        if self.replicas > 100 {
            return Err(Problem::field("replicas", "is more than 100", "use 0 to 100"));
        }
        let input = ReleaseInput {
            release_name: self.release_name.clone(),
            namespace: self.namespace.clone(),
            values_override: self.values_override.clone(),
            ingress_enabled: self.ingress_enabled,
        };
        input.release(is_chart, now)
    }
}

/// A revision of an instance to go back to.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RevisionInput {
    /// Which; the one before if 0.
    pub revision: u32,
}

/// Where an instance is to go.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MigrateInput {
    /// Which cluster; the best other one if empty.
    pub cluster_name: String,
}

/// A chart's archive, and the name and version it is registered under.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Upload {
    /// The .tgz.
    pub file: bytes::Bytes,
    /// Name of its document.
    pub name: String,
    /// Version of its document.
    pub version: String,
}

impl Upload {
    /// Refuses what the registry would not take.
    ///
    /// # Errors
    /// The field that is missing or wrong.
    pub fn check(&self) -> Result<(), Problem> {
        if !is_key(&self.name) {
            return Err(Problem::field("name", "is not a valid name", "use 1 to 64 letters, digits, `_` and `-`"));
        }
        if self.version.is_empty() || self.version.len() > 64 {
            return Err(Problem::field(
                "version",
                "is not a valid version",
                "use the version in Chart.yaml, such as 1.0.0",
            ));
        }
        if self.file.len() > ARCHIVE_MAX {
            let detail = format!("the archive has {} bytes, and {ARCHIVE_MAX} are taken", self.file.len());
            return Err(Problem::new(Kind::TooLarge, detail, "leave out what the chart does not need (.helmignore)"));
        }
        if !self.file.starts_with(&[0x1f, 0x8b]) {
            return Err(Problem::field("file", "is not gzip-compressed", "send the .tgz that `helm package` made"));
        }
        Ok(())
    }
}

/// A cluster that somebody says there is (ClusterRegister).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterInput {
    /// Its name.
    pub cluster_name: String,
    /// CPUs.
    #[serde(default)]
    pub cpus: u32,
    /// GB.
    #[serde(default)]
    pub memory: u32,
    /// GB.
    #[serde(default)]
    storage: u32,
}

impl ClusterInput {
    /// Refuses what nothing can confirm.
    ///
    /// # Errors
    /// When storage is asked for: no agent declares it.
    pub fn check(self) -> Result<Self, Problem> {
        match self.storage {
            0 => Ok(self),
            _ => Err(Problem::field("storage", "is declared by no cluster, so it cannot be confirmed", "leave it out")),
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_rest::body::{form, query, read};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn plain() -> Json {
        json!({"user_label": "DeliverComputingWorkload", "observation_period": 2, "intent_expectations": [{
            "expectation_id": "a", "expectation_verb": "DELIVER",
            "expectation_object": {"object_type": "NEMO_WORKLOAD", "object_instance": "spinner@1.0.0"},
            "expectation_targets": [
                {"target_name": "cpuUsage", "target_condition": "IS_LESS_THAN", "target_value_range": 20},
                {"target_name": "ramUsage", "target_condition": "IS_LESS_THAN", "target_value_range": "200"}],
        }]})
    }

    #[test]
    fn an_intent_is_read_bare_or_wrapped_as_json_or_yaml() {
        let bare = intent(plain()).unwrap();
        assert_eq!((&bare.id, bare.intent.observation_period), (&None, 2));
        let wrapped = intent(json!({"id": "x", "intent": plain()})).unwrap();
        assert_eq!((wrapped.id.as_deref(), &wrapped.intent), (Some("x"), &bare.intent));
        let yaml = read(Some("application/yaml"), b"user_label: a\nobservation_period: 2\n").unwrap();
        assert_eq!(intent(yaml).unwrap().intent.user_label, "a");
        assert!(intent(json!({"id": "a.b", "intent": plain()})).is_err());
        let numbered = read(Some("application/yaml"), b"id: 010\nintent: {user_label: a}\n").unwrap();
        assert_eq!(intent(numbered).unwrap().id.as_deref(), Some("010"));
    }

    #[test]
    fn text_is_taken_as_it_is_spelt_and_a_field_only_once() {
        let yaml = |text: &str| read(Some("application/yaml"), text.as_bytes()).unwrap();
        let text = "name: a\nversion: 1.10\nprocess: {command: yes, arguments: [1.10, 010, true, 1e3, 0x1F]}\n";
        let document = workload(yaml(text)).unwrap();
        assert_eq!(document.version, "1.10");
        let process = document.process.unwrap();
        assert_eq!(process.command, "yes");
        assert_eq!(process.arguments, ["1.10", "010", "true", "1e3", "0x1F"]);
        let both = read(None, b"{\"name\": \"a\", \"clusterSelector\": {}, \"cluster_selector\": {}}").unwrap();
        let fault = workload(both).unwrap_err().faults.remove(0);
        assert_eq!(fault.path, "cluster_selector");
        assert!(fault.reason.contains("line 1 column 15") && fault.reason.contains("line 1 column 38"), "{fault:?}");
        let update: TargetUpdate = form(yaml("target_id: 1\ntarget_value_range: 20.50\n")).unwrap();
        let mut intent = intent(plain()).unwrap().intent;
        update.apply(&mut intent).unwrap();
        assert_eq!(intent.intent_expectations[0].expectation_targets[0].target_value_range, "20.50");
    }

    #[test]
    fn each_fault_of_a_body_is_told_with_its_field() {
        let status = |result: Result<Written, Problem>| result.unwrap_err().status();
        assert_eq!(status(read(Some("text/html"), b"")), 415);
        assert_eq!(status(read(None, b"{\"a\": ")), 400);
        assert_eq!(status(read(None, b"\xff")), 400);
        assert_eq!(status(read(Some("application/yaml"), b"a: [b")), 400);
        let deep = format!("{}{}", "[".repeat(60), "]".repeat(60));
        assert_eq!(status(read(None, deep.as_bytes())), 400);
        let deeper = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(status(read(None, deeper.as_bytes())), 400);
        let unknown = intent(json!({"userLable": "x", "observationPeriod": "soon"})).unwrap_err();
        assert_eq!(unknown.status(), 422);
        let paths: Vec<&str> = unknown.faults.iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(paths, ["observationPeriod", "userLable"], "{unknown:?}");
        assert!(unknown.detail.contains("userLable"), "{unknown:?}");
        for wrong in [json!([]), json!(7), json!(null), json!({"intentExpectations": 7})] {
            assert_eq!(intent(wrong.clone()).unwrap_err().status(), 422, "{wrong}");
        }
        let mut typed = plain();
        typed["observation_period"] = json!("soon");
        assert_eq!(intent(typed).unwrap_err().faults[0].path, "observation_period");
        let mut inner = plain();
        inner["intent_expectations"][0]["expectation_targets"][1]["target_name"] = json!({"a": 1});
        let path = intent(inner).unwrap_err().faults[0].path.clone();
        assert_eq!(path, "intent_expectations[0].expectation_targets[1].target_name");
        let missing = form::<ActionInput>(json!({})).unwrap_err();
        assert_eq!((missing.status(), missing.faults[0].path.as_str()), (422, "action"));
        assert!(form::<ActionInput>(json!({"action": "EXPLODE"})).is_err());
    }

    #[test]
    fn one_target_gets_another_value() {
        let whole = intent(plain()).unwrap().intent;
        let update = |id: Json| {
            let mut changed = whole.clone();
            let form: TargetUpdate = form(json!({"target_id": id, "target_value_range": 30})).unwrap();
            form.apply(&mut changed).map(|()| changed)
        };
        for id in [json!("cpuUsage"), json!("a.cpuUsage"), json!(1), json!("1")] {
            let changed = update(id).unwrap();
            assert_eq!(changed.intent_expectations[0].expectation_targets[0].target_value_range, "30");
        }
        let unknown = update(json!("gpu")).unwrap_err();
        assert!(unknown.hint.contains("a.ramUsage"), "{unknown:?}");
    }

    #[test]
    fn a_template_becomes_a_whole_intent() {
        let template: IntentTemplate = form(json!({"instance_id": "i", "intent_type": "DeliverComputingWorkload",
            "targets": [{"target_name": "cpuUsage", "target_condition": "IS_LESS_THAN", "target_value_range": "20"}]}))
        .unwrap();
        let intent = template.expand(None).unwrap();
        let expectation = &intent.intent_expectations[0];
        assert_eq!(expectation.expectation_verb, "ENSURE");
        assert_eq!(expectation.expectation_object.as_ref().unwrap().object_instance, "i");
        let path = |given: Json| {
            let template: IntentTemplate = form(given).unwrap();
            template.expand(None).unwrap_err().faults[0].path.clone()
        };
        assert_eq!(path(json!({"intent_type": "x", "targets": []})), "instance_id");
        assert_eq!(path(json!({"instance_id": "i", "intent_type": "x", "targets": []})), "intent_type");
        let late = json!({"instance_id": "i", "intent_type": "DeliverComputingWorkload", "targets": [],
            "service_start_time": "tomorrow"});
        assert_eq!(path(late), "service_start_time");
    }

    #[test]
    fn the_printed_example_of_a_template_is_accepted() {
        let printed = json!({"release_name": "echo-server-integration24", "values_override": [], "include_crds": false,
            "is_upgrade": false, "namespace": "default", "no_hooks": false, "ingress_enabled": false,
            "intents": [{"intent_type": "DeliverComputingWorkload", "targets": [
                {"target_name": "cpuUsage", "target_condition": "IS_LESS_THAN", "target_value_range": "20"},
                {"target_name": "ramUsage", "target_condition": "IS_LESS_THAN", "target_value_range": "100"}]}]});
        let input = TemplateInput::read(printed).unwrap();
        assert_eq!(input.release(false), Ok(None));
        assert_eq!(input.intents.len(), 1);
        let release = input.release(true).unwrap().unwrap();
        assert_eq!((release.name.as_str(), release.values.as_str()), ("echo-server-integration24", ""));
    }

    #[test]
    fn values_are_for_charts_and_what_is_not_offered_is_refused() {
        let given = TemplateInput::read(json!({"values_override": {"a": 1}})).unwrap();
        assert_eq!(given.release(false).unwrap_err().faults[0].path, "values_override");
        assert_eq!(given.release(true).unwrap().unwrap().values, "{\"a\":1}");
        for wrong in [json!([1]), json!("a: 1"), json!(7)] {
            let given = TemplateInput::read(json!({"values_override": wrong})).unwrap();
            assert_eq!(given.release(true).unwrap_err().faults[0].path, "values_override");
        }
        for path in ["include_crds", "is_upgrade", "no_hooks"] {
            let given = TemplateInput::read(json!({path: true})).unwrap();
            assert_eq!(given.release(true).unwrap_err().faults[0].path, path);
        }
        let many = UpgradeInput::read(json!({"replicas": 101})).unwrap();
        assert_eq!(many.release(false, None).unwrap_err().faults[0].path, "replicas");
        let now = Release { name: "r".into(), values: "x: 1".into(), ..Release::default() };
        let moved = UpgradeInput::read(json!({"namespace": "n"})).unwrap();
        let release = moved.release(true, Some(now.clone())).unwrap().unwrap();
        assert_eq!(release, Release { namespace: "n".into(), ..now }, "what is not given stays");
    }

    #[test]
    fn values_of_a_chart_are_never_rounded_or_respelt() {
        let big = br#"{"values_override": {"a": [18446744073709551616]}}"#;
        let refused = TemplateInput::read(read(None, big).unwrap()).unwrap_err();
        assert_eq!(refused.faults[0].path, "values_override");
        let octal = read(Some("application/yaml"), b"values_override: {mode: 010}\n").unwrap();
        assert_eq!(UpgradeInput::read(octal).unwrap_err().faults[0].path, "values_override");
        let kept = TemplateInput::read(
            read(None, br#"{"values_override": {"a": 20.50, "b": 18446744073709551615}}"#).unwrap(),
        );
        assert_eq!(kept.unwrap().release(true).unwrap().unwrap().values, r#"{"a":20.5,"b":18446744073709551615}"#);
    }

    #[test]
    fn an_upload_that_the_registry_would_not_take_is_refused_with_its_field() {
        let good = Upload { file: vec![0x1f, 0x8b, 8].into(), name: "a".into(), version: "1.0.0".into() };
        assert_eq!(good.check(), Ok(()));
        let path = |upload: Upload| upload.check().unwrap_err().faults[0].path.clone();
        assert_eq!(path(Upload { name: "a.b".into(), ..good.clone() }), "name");
        assert_eq!(path(Upload { version: String::new(), ..good.clone() }), "version");
        assert_eq!(path(Upload { file: "PK".into(), ..good.clone() }), "file");
        let large = Upload { file: vec![0x1f; ARCHIVE_MAX + 1].into(), ..good };
        assert_eq!(large.check().unwrap_err().status(), 413);
    }

    proptest! {
        #[test]
        fn no_body_and_no_query_ends_the_process(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,80}") {
            for content_type in [None, Some("application/yaml")] {
                if let Ok(value) = read(content_type, &bytes) {
                    let _ = (intent(value.clone()), workload(value.clone()), TemplateInput::read(value));
                }
            }
            let _ = query(&text, &["a"], |_| false);
        }
    }
}
