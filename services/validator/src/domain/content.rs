//! What a document must be to be accepted. Pure: the same content always has the same problems.
//!
//! A new type of intent is an entry of [`mesh_intent::types::TYPES`].

use std::collections::{BTreeMap, BTreeSet};

use mesh_intent::{
    Bound, BoundError, Condition, IntentType, Measure, ObjectKind, Set, secret,
    types::{self, ObjectType, TargetType},
    window::{self, Window},
};
use mesh_proto::{
    Timestamp,
    intent::{Context, ExpectationTarget, Intent, IntentExpectation, Problem},
    is_key, json,
    workload::{ChartSpec, Expose, ProcessSpec, Resources, WorkloadDocument},
};

/// Expectations that an intent may have.
pub const EXPECTATIONS_MAX: usize = 32;
/// Seconds of the longest observation period: a day.
pub const OBSERVATION_PERIOD_MAX_SECONDS: u32 = 86_400;
/// The highest priority of an intent.
pub const PRIORITY_MAX: u32 = 100;
/// Replicas that a document may ask for.
pub const REPLICAS_MAX: u32 = 100;
/// Bytes of the longest version text.
const VERSION_MAX_BYTES: usize = 64;
/// Bytes of the longest description.
const DESCRIPTION_MAX_BYTES: usize = 4_096;
/// Environment names of this prefix are the agent's own.
const RESERVED_PREFIX: &str = "CONTINUUM_";

/// Bytes of the longest name of a network object.
const OBJECT_NAME_MAX_BYTES: usize = 253;
/// Contexts of one list.
const CONTEXTS_MAX: usize = 64;
/// Bytes of the longest value of a context.
const CONTEXT_MAX_BYTES: usize = 8 * 1024;
/// Bytes of what is only kept: the reference to a report, and what TMF921 has around an intent.
const KEPT_MAX_BYTES: usize = 64 * 1024;
/// How to choose among stated contexts.
const SELECTIVITIES: &[&str] = &["ALL_OF", "ONE_OF", "ANY_OF"];
/// Conditions of targets that are the better the less they are.
const CEILINGS: &[&str] = &["IS_LESS_THAN", "IS_EQUAL_TO_OR_LESS_THAN"];
/// Kinds of workload documents.
const KINDS: &[&str] = &["process", "chart"];
/// Bytes of the values that a chart's document lays over the chart's own.
const VALUES_BYTES_MAX: usize = 64 * 1024;

/// What is wrong with an intent at a time; nothing when it is acceptable. With it, why it cannot be met though it is well
/// formed: its times are out of order, or its end has passed.
pub fn judge(intent: &Intent, at: Timestamp) -> (Vec<Problem>, String) {
    let mut found = Problems(check(intent));
    let well_formed = found.0.is_empty();
    let mut infeasible = String::new();
    match Window::of(intent) {
        Ok(window) => {
            if let Some(end) = window.end.filter(|end| *end <= at) {
                let path = end_path(intent).unwrap_or_else(|| "intentContexts".into());
                let reason = format!("its end, {end}, has passed at {at}");
                found.add(path, reason.clone(), "give an end that is still to come, or none");
                infeasible = reason;
            }
        }
        Err(wrong) => {
            for one in wrong.into_iter().filter(|one| one.infeasible) {
                infeasible.clone_from(&one.reason);
                found.add(one.path, one.reason, "give a start before the end");
            }
        }
    }
    if !well_formed {
        infeasible.clear();
    }
    (found.0, infeasible)
}

/// Where an intent says when it ends.
fn end_path(intent: &Intent) -> Option<String> {
    let says = |c: &Context| {
        matches!(c.context_attribute.as_str(), "ServiceEndTime" | "service_end_time" | "TargetAssuranceTime")
    };
    let own = intent.intent_contexts.iter().position(says);
    let of = |(i, e): (usize, &IntentExpectation)| {
        let j = e.expectation_contexts.iter().position(says)?;
        Some(format!("intentExpectations[{i}].expectationContexts[{j}].contextValueRange"))
    };
    own.map(|i| format!("intentContexts[{i}].contextValueRange"))
        .or_else(|| intent.intent_expectations.iter().enumerate().find_map(of))
}

/// What is wrong with an intent's content, in the order of its fields; nothing when it is acceptable. That it cannot be met
/// is not a fault of its content.
pub fn check(intent: &Intent) -> Vec<Problem> {
    let mut found = Problems::default();
    let kind = intent_type(&mut found, &intent.user_label);
    let expectations = &intent.intent_expectations;
    if expectations.is_empty() {
        let hint = "add an expectation with its object and at least one target";
        found.add("intentExpectations", "the intent expects nothing", hint);
    }
    if expectations.len() > EXPECTATIONS_MAX {
        let reason = format!("{} expectations; at most {EXPECTATIONS_MAX} are allowed", expectations.len());
        found.add("intentExpectations", reason, "divide them among several intents");
    }
    let mut ids = BTreeSet::new();
    for (i, item) in expectations.iter().take(EXPECTATIONS_MAX).enumerate() {
        let at = format!("intentExpectations[{i}]");
        if item.expectation_id.is_empty() {
            found.add(
                format!("{at}.expectationId"),
                "the expectation has no id",
                format!("give it one, such as {}", i + 1),
            );
        } else if !is_key(&item.expectation_id) {
            let reason = format!("{} is not an id", quoted(&item.expectation_id));
            found.add(format!("{at}.expectationId"), reason, "use 1 to 64 letters, digits, `_` and `-`");
        } else if !ids.insert(&item.expectation_id) {
            let reason = format!("{} is the id of an expectation before it", quoted(&item.expectation_id));
            found.add(format!("{at}.expectationId"), reason, "give each expectation of the intent its own id");
        }
        expectation(&mut found, &at, item, kind);
    }
    contradictions(&mut found, intent);
    for (path, text) in [("intentReportReference", &intent.intent_report_reference), ("resource", &intent.resource)] {
        if text.len() > KEPT_MAX_BYTES {
            let reason = format!("{} bytes; at most {KEPT_MAX_BYTES} are allowed", text.len());
            found.add(path, reason, "leave out what nobody reads, or keep it elsewhere and name the place");
        }
    }
    if !intent.resource.is_empty() && !matches!(json::value_of(&intent.resource), Some(serde_json::Value::Object(_))) {
        found.add("resource", "it is not an object", "give members of TMF921's Intent, such as {\"name\": \"plant\"}");
    }
    let of_networks: &[&str] = match kind.map(IntentType::kind) {
        Some(ObjectKind::Network) => &[types::WORKLOAD_CONTEXT],
        _ => &[],
    };
    contexts(&mut found, "intentContexts", &intent.intent_contexts, kind, of_networks, true);
    for wrong in Window::of(intent).err().into_iter().flatten().filter(|wrong| !wrong.infeasible) {
        found.add(wrong.path, wrong.reason, "give one time for each, such as 2027-01-31T12:00:00Z");
    }
    optional(&mut found, "contextSelectivity", &intent.context_selectivity, SELECTIVITIES);
    optional(&mut found, "intentAdminState", &intent.intent_admin_state, &["ACTIVATED", "DEACTIVATED"]);
    if intent.intent_priority > PRIORITY_MAX {
        let reason = format!("{} is above {PRIORITY_MAX}", intent.intent_priority);
        found.add("intentPriority", reason, format!("use 1 to {PRIORITY_MAX}, or leave it out for 1"));
    }
    optional(&mut found, "intentPreemptionCapability", &intent.intent_preemption_capability, &["TRUE", "FALSE"]);
    let mut named = expectations.iter().flat_map(|e| &e.expectation_targets).map(|t| t.target_name.as_str());
    if (1..types::TRAFFIC_PERIOD_MIN_S).contains(&intent.observation_period)
        && let Some(name) = named.find(|name| types::is_of_traffic(name))
    {
        let reason = format!(
            "{name} is measured by requests, which the gateway publishes every few seconds: {} s is too short a period",
            intent.observation_period
        );
        let hint = format!("use {} seconds or more, or leave it out for 60", types::TRAFFIC_PERIOD_MIN_S);
        found.add("observationPeriod", reason, hint);
    }
    if intent.observation_period > OBSERVATION_PERIOD_MAX_SECONDS {
        let reason = format!("{} s is more than a day", intent.observation_period);
        let hint = format!("use 1 to {OBSERVATION_PERIOD_MAX_SECONDS} seconds, or leave it out for 60");
        found.add("observationPeriod", reason, hint);
    }
    found.0
}

/// Targets that requests measure, of workloads that no request can reach: those that expose no port, as far as `is_exposed`
/// knows the workload.
pub(crate) fn unreachable(intent: &Intent, is_exposed: impl Fn(&str) -> Option<bool>) -> Vec<Problem> {
    let mut found = Problems::default();
    for (i, item) in intent.intent_expectations.iter().take(EXPECTATIONS_MAX).enumerate() {
        let object = item.expectation_object.as_ref().map_or("", |o| o.object_instance.as_str());
        let first = item.expectation_targets.iter().position(|t| types::is_of_traffic(&t.target_name));
        if let Some(j) = first.filter(|_| is_exposed(object) == Some(false)) {
            let target = &item.expectation_targets[j].target_name;
            let path = format!("intentExpectations[{i}].expectationTargets[{j}].targetName");
            let reason = format!(
                "{} exposes no port, so no request reaches it that {target} could be measured by",
                quoted(object)
            );
            found.add(path, reason, "register a version of the workload with `expose.port`, or leave the target out");
        }
    }
    found.0
}

/// The type that a label names. An unknown label is a problem; its nearest type then judges the rest.
fn intent_type(found: &mut Problems, label: &str) -> Option<&'static IntentType> {
    if let Some(kind) = types::of_label(label) {
        return Some(kind);
    }
    let known: Vec<&str> = types::TYPES.iter().map(|t| t.label).collect();
    required(found, "userLabel", label, &known);
    types::TYPES.iter().find(|t| Some(t.label) == nearest(label, &known))
}

fn expectation(found: &mut Problems, at: &str, item: &IntentExpectation, kind: Option<&IntentType>) {
    if let Some(kind) = kind {
        required(found, format!("{at}.expectationVerb"), &item.expectation_verb, kind.verbs);
    }
    let mut object_type = None;
    match &item.expectation_object {
        None => {
            found.add(
                format!("{at}.expectationObject"),
                "the expectation has no object",
                "say which workload it is about",
            );
        }
        Some(object) => {
            let at = format!("{at}.expectationObject");
            if let Some(kind) = kind {
                let known: Vec<&str> = kind.objects.iter().map(|o| o.name).collect();
                required(found, format!("{at}.objectType"), &object.object_type, &known);
                object_type = kind.object(&object.object_type);
            }
            let network = kind.is_some_and(|k| k.kind() == ObjectKind::Network);
            let named =
                if network { network_name(&object.object_instance) } else { object_instance(&object.object_instance) };
            if let Err(reason) = named {
                let hint = match network {
                    true => "name the network, in at most 253 letters, digits and signs",
                    false => "name a workload document, such as spinner@1.0.0, or the UUID of a running instance",
                };
                found.add(format!("{at}.objectInstance"), reason, hint);
            }
            optional(found, format!("{at}.contextSelectivity"), &object.context_selectivity, SELECTIVITIES);
            let known = object_type.map_or(&[][..], |o: &ObjectType| o.object_contexts);
            contexts(found, format!("{at}.objectContexts"), &object.object_contexts, kind, known, false);
            alternatives(found, &at, "objectContexts", &object.object_contexts, &object.context_selectivity);
        }
    }
    targets(found, at, item, kind);
    let known = object_type.map_or(&[][..], |o| o.contexts);
    contexts(found, format!("{at}.expectationContexts"), &item.expectation_contexts, kind, known, true);
    optional(found, format!("{at}.contextSelectivity"), &item.context_selectivity, SELECTIVITIES);
    alternatives(found, at, "expectationContexts", &item.expectation_contexts, &item.context_selectivity);
    if kind.is_some_and(|k| k.kind() == ObjectKind::Workload) {
        labels(found, at, item);
    }
}

/// Contexts that choose a cluster: each says one label, which a cluster can carry.
fn labels(found: &mut Problems, at: &str, item: &IntentExpectation) {
    let mut labels: BTreeMap<&str, &str> = BTreeMap::new();
    for (label, value) in types::label_contexts(item) {
        let path = || format!("{at}.expectationContexts");
        let bad = value.is_empty() || value.contains(['=', ',', '[', '{', '"']) || value.contains(char::is_whitespace);
        if bad {
            let reason = format!("{} is not a value of the label {label}", quoted(value));
            found.add(path(), reason, "use one value without `=`, `,` and blanks");
        } else if labels.insert(label, value).is_some_and(|before| before != value) {
            let reason = format!("two values are asked of the label {label}, {} is one", quoted(value));
            found.add(path(), reason, "keep one; no cluster carries both");
        }
    }
}

/// A choice among contexts that choose a cluster would not be acted upon.
fn alternatives(found: &mut Problems, at: &str, list: &str, given: &[Context], selectivity: &str) {
    let labels = given.iter().filter(|c| types::LABEL_CONTEXTS.iter().any(|(name, _)| *name == c.context_attribute));
    if matches!(selectivity, "ONE_OF" | "ANY_OF") && labels.count() > 1 {
        let reason = format!("{selectivity} over contexts of {list} that choose a cluster is not acted upon");
        found.add(format!("{at}.contextSelectivity"), reason, "use ALL_OF, or one such context");
    }
}

/// Expectations of one intent on the same instance whose targets no value meets together.
fn contradictions(found: &mut Problems, intent: &Intent) {
    let mut left: BTreeMap<(&str, &str), Set> = BTreeMap::new();
    for (i, item) in intent.intent_expectations.iter().take(EXPECTATIONS_MAX).enumerate() {
        let object = item.expectation_object.as_ref().map_or("", |o| o.object_instance.as_str());
        // Documents give each expectation an instance of its own.
        if object.contains('@') {
            continue;
        }
        for (j, target) in item.expectation_targets.iter().enumerate() {
            let Ok(bound) = Bound::of(target) else { continue };
            let set = left.entry((object, &target.target_name)).or_insert_with(Set::all);
            let both = set.and(&bound.set());
            if both.is_empty() {
                let path = format!("intentExpectations[{i}].expectationTargets[{j}].targetValueRange");
                let reason = format!("no {} meets this and the expectations before it", quoted(&target.target_name));
                found.add(path, reason, "give bounds that leave a value");
                return;
            }
            *set = both;
        }
    }
}

fn network_name(text: &str) -> Result<(), String> {
    match text {
        "" => Err("the object names no network".into()),
        _ if text.len() > OBJECT_NAME_MAX_BYTES || text.contains(char::is_control) => {
            Err(format!("{} is not the name of a network", quoted(text)))
        }
        _ => Ok(()),
    }
}

/// Is this a workload document's `name@version`, or a UUID?
fn object_instance(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("the object names no instance".into());
    }
    let Some((name, version)) = text.split_once('@') else {
        // Braced and urn forms of a UUID are no keys, and no instance bears one.
        return match is_uuid(text) && is_key(text) {
            true => Ok(()),
            false => Err(format!("{} is neither name@version nor a UUID", quoted(text))),
        };
    };
    if !is_key(name) || is_uuid(name) {
        return Err(format!("{} is not the name of a workload document", quoted(name)));
    }
    // A chart's, or else nothing is registered under it.
    version_problem(version, true).map_or(Ok(()), Err)
}

fn targets(found: &mut Problems, at: &str, item: &IntentExpectation, kind: Option<&IntentType>) {
    let at = format!("{at}.expectationTargets");
    let Some(kind) = kind else { return };
    let known: Vec<&str> = kind.targets.iter().map(|t| t.name).collect();
    if item.expectation_targets.is_empty() && kind.needs_target {
        let hint = format!("add a target; {} allows {}", kind.label, known.join(" and "));
        found.add(&at, "the expectation has no target", hint);
    }
    // Each name once is all there can be; this bounds the answer to a wrong document.
    let most = 2 * known.len();
    if item.expectation_targets.len() > most {
        let reason = format!("{} targets, of {} that there are", item.expectation_targets.len(), known.len());
        found.add(&at, reason, "name each target once");
    }
    let mut names = BTreeSet::new();
    for (i, target) in item.expectation_targets.iter().take(most).enumerate() {
        let at = format!("{at}[{i}]");
        let name = &target.target_name;
        let spec = kind.target(name);
        if spec.is_none() {
            let reason = match name.is_empty() {
                true => "the target has no name".to_owned(),
                false => format!("{} does not allow the target {}", kind.label, quoted(name)),
            };
            found.add(format!("{at}.targetName"), reason, choices(name, &known));
        } else if !names.insert(name) {
            let hint = "state each target once; for a lower and an upper bound use IS_WITHIN_RANGE";
            found.add(format!("{at}.targetName"), format!("{name} is stated twice"), hint);
        }
        let of_traffic = spec.is_some_and(|t| t.measure.is_of_traffic());
        let conditions: &[&str] = if of_traffic { CEILINGS } else { &Condition::NAMES };
        if of_traffic && Condition::parse(&target.target_condition).is_some_and(|c| !CEILINGS.contains(&c.name())) {
            let reason = format!("{name} is the better the less it is, so it takes only an upper bound");
            found.add(format!("{at}.targetCondition"), reason, format!("use {}", CEILINGS.join(" or ")));
        } else if required(found, format!("{at}.targetCondition"), &target.target_condition, conditions)
            && let Err(reason) = bound(target, spec)
        {
            let several = match Condition::parse(&target.target_condition) {
                Some(Condition::Within | Condition::Outside) => "two numbers, as [10, 20], each",
                Some(Condition::OneOf | Condition::NotOneOf | Condition::AllOf) => "numbers, as [10, 20], each",
                _ => "a number",
            };
            let hint = match spec {
                Some(t) => format!("give {several} above 0 and up to {}, in {}", t.max, t.unit),
                None => format!("give {several} above 0"),
            };
            found.add(format!("{at}.targetValueRange"), reason, hint);
        }
        optional(found, format!("{at}.contextSelectivity"), &target.context_selectivity, SELECTIVITIES);
        let of_target: &[&str] = if spec.is_some_and(|t| t.measure == Measure::Handed) { &["profile"] } else { &[] };
        contexts(found, format!("{at}.targetContexts"), &target.target_contexts, Some(kind), of_target, false);
    }
}

/// Is a target's bound one, with each number above 0 and up to the largest that makes sense?
fn bound(target: &ExpectationTarget, spec: Option<&TargetType>) -> Result<(), String> {
    let text = &target.target_value_range;
    let bound = match Bound::of(target) {
        // Some network controllers' documents write a decimal comma, and so they read it.
        Err(BoundError::Number(_))
            if spec.is_some_and(|t| t.measure == Measure::Handed) && text.matches(',').count() == 1 =>
        {
            Bound::parse(&target.target_condition, &text.replace(',', "."))
        }
        other => other,
    }
    .map_err(|error| error.to_string())?;
    for value in bound.values() {
        if *value <= 0.0 {
            return Err(format!("{value} is not above 0"));
        }
        if let Some(t) = spec.filter(|t| *value > t.max) {
            return Err(format!("{value} is more than {} {}", t.max, t.unit));
        }
    }
    Ok(())
}

/// One problem for the first context that nothing would act on: an accepted condition is never ignored. One for the first
/// that is not well formed.
fn contexts(
    found: &mut Problems,
    at: impl Into<String>,
    given: &[Context],
    kind: Option<&IntentType>,
    known: &[&str],
    times: bool,
) {
    let Some(kind) = kind else { return };
    let at = at.into();
    if given.len() > CONTEXTS_MAX {
        let reason = format!("{} contexts; at most {CONTEXTS_MAX} are allowed", given.len());
        found.add(at, reason, "state each once");
        return;
    }
    let acts = |name: &str| known.contains(&name) || (times && window::is_time(name));
    let unknown = given.iter().enumerate().find(|(_, c)| !acts(&c.context_attribute));
    if let Some((i, context)) = unknown {
        let reason = format!("{} does not act on the context {} here", kind.label, quoted(&context.context_attribute));
        let hint = "leave it out; to choose clusters by other labels, use clusterSelector in the workload document";
        let hint = match nearest(&context.context_attribute, known) {
            None if kind.kind() == ObjectKind::Workload => hint.to_owned(),
            _ if known.is_empty() => "leave it out".to_owned(),
            _ => choices(&context.context_attribute, known),
        };
        found.add(format!("{at}[{i}].contextAttribute"), reason, hint);
    }
    for (i, context) in given.iter().enumerate() {
        let at = format!("{at}[{i}]");
        // What chooses, or is handed on, is one value.
        let conditions: &[&str] = &["IS_EQUAL_TO"];
        if !context.context_condition.is_empty() && !conditions.contains(&context.context_condition.as_str()) {
            required(found, format!("{at}.contextCondition"), &context.context_condition, conditions);
            return;
        }
        if context.context_value_range.len() > CONTEXT_MAX_BYTES {
            let reason =
                format!("{} bytes; at most {CONTEXT_MAX_BYTES} are allowed", context.context_value_range.len());
            found.add(format!("{at}.contextValueRange"), reason, "shorten it");
            return;
        }
        // The manager has put the secrets that it knows in the place of their fingerprints.
        if secret::is_secret(&context.context_attribute) && secret::is_fingerprint(&context.context_value_range) {
            let reason = "this is what is shown in place of a secret, of one that no version before had";
            found.add(format!("{at}.contextValueRange"), reason, "give the secret itself");
            return;
        }
    }
}

/// Latency bounds of a document.
const LATENCY_BOUNDS_MAX: usize = 16;
/// Users of an exposed workload that a document names.
const EXPOSE_USERS_MAX: usize = 64;

/// What is wrong with a workload document, in the order of its fields; nothing when it is acceptable.
pub fn check_workload(document: &WorkloadDocument) -> Vec<Problem> {
    let mut found = Problems::default();
    if !is_key(&document.name) {
        let reason = format!("{} is not a name", quoted(&document.name));
        found.add("name", reason, "use 1 to 64 letters, digits, `_` and `-`");
    } else if is_uuid(&document.name) {
        let reason = format!("{} is a UUID; UUIDs name instances", quoted(&document.name));
        found.add("name", reason, "give the document a name of its own");
    }
    let is_chart = document.kind == "chart";
    if let Some(reason) = version_problem(&document.version, is_chart) {
        found.add("version", reason, "use a semantic version, such as 1.0.0");
    }
    required(&mut found, "kind", &document.kind, KINDS);
    if is_chart && !document.driver.is_empty() {
        let hint = "leave it out: a chart runs on clusters that run charts";
        found.add("driver", "a chart has no choice of driver", hint);
    } else {
        optional(&mut found, "driver", &document.driver, &mesh_planner::Driver::NAMES);
    }
    match (&document.process, &document.chart) {
        (process, chart) if is_chart => chart_problems(&mut found, document, process.is_some(), chart.as_ref()),
        (_, Some(_)) => found.add("chart", "the document is not of kind chart", "leave it out, or set kind to chart"),
        (None, None) => found.add("process", "the document has no process to run", "give its command"),
        (Some(process), None) => process_problems(&mut found, process),
    }
    match &document.resources {
        // Summed over what it renders to.
        None if is_chart => {}
        None => {
            found.add("resources", "the document asks for no resources", "give cpuMilli and memoryBytes of one replica")
        }
        Some(resources) => resource_problems(&mut found, resources),
    }
    if document.replicas_max > REPLICAS_MAX || (1..document.replicas.max(1)).contains(&document.replicas_max) {
        let reason = format!("{} is not between `replicas` and {REPLICAS_MAX}", document.replicas_max);
        found.add("replicasMax", reason, "use what it may be scaled up to, or leave it out for never");
    }
    if document.replicas > REPLICAS_MAX {
        let reason = format!("{} is above {REPLICAS_MAX}", document.replicas);
        found.add("replicas", reason, format!("use 1 to {REPLICAS_MAX}, or leave it out for 1"));
    }
    let bad_label = |text: &str| text.is_empty() || text.contains(['=', ',']) || text.contains(char::is_whitespace);
    if let Some((name, value)) = document.cluster_selector.iter().find(|(k, v)| bad_label(k) || bad_label(v)) {
        let reason = format!("{} is not a label that a cluster can carry", quoted(&format!("{name}={value}")));
        found.add("clusterSelector", reason, "use a name and a value without `=`, `,` and blanks");
    }
    if document.latency_bounds.len() > LATENCY_BOUNDS_MAX {
        let reason = format!("{} bounds", document.latency_bounds.len());
        found.add("latencyBounds", reason, format!("use at most {LATENCY_BOUNDS_MAX}"));
    }
    for (i, bound) in document.latency_bounds.iter().enumerate().take(LATENCY_BOUNDS_MAX) {
        let peers = [&bound.to_site, &bound.to_cluster, &bound.to_instance];
        let named: Vec<&&String> = peers.iter().filter(|peer| !peer.is_empty()).collect();
        if named.len() != 1 || !named.iter().all(|peer| is_key(peer)) {
            let reason = format!("{} peers are named, or one is not a name", named.len());
            found.add(format!("latencyBounds[{i}]"), reason, "name one of toSite, toCluster and toInstance");
        }
        if !(bound.max_latency_ms.is_finite() && bound.max_latency_ms > 0.0) {
            let reason = format!("{} is not a latency", bound.max_latency_ms);
            found.add(format!("latencyBounds[{i}].maxLatencyMs"), reason, "use milliseconds above 0");
        }
    }
    if let Some(expose) = &document.expose {
        expose_problems(&mut found, expose);
    }
    if document.description.len() > DESCRIPTION_MAX_BYTES {
        let reason = format!("{} bytes; at most {DESCRIPTION_MAX_BYTES} are allowed", document.description.len());
        found.add("description", reason, "shorten it");
    }
    found.0
}

/// The way in through the gateway. Ports below 1,024 are those of the host's own services.
fn expose_problems(found: &mut Problems, expose: &Expose) {
    if !(1_024..=65_535).contains(&expose.port) {
        let reason = format!("{} is not a port for a workload", expose.port);
        found.add("expose.port", reason, "use 1,024 to 65,535, or leave expose out");
    }
    let path = expose.path.as_str();
    let plain = |c: char| c.is_ascii_graphic() && !['?', '#', '%', '\\'].contains(&c);
    let leads_out = path.split('/').any(|part| part == "..");
    if !path.is_empty() && (!path.starts_with('/') || !path.chars().all(plain) || leads_out || path.len() > 256) {
        let reason = format!("{} is not a path prefix", quoted(path));
        found.add("expose.path", reason, "use one like `/app`: at most 256 visible characters, without `..`");
    }
    if expose.users.len() > EXPOSE_USERS_MAX {
        let reason = format!("{} users", expose.users.len());
        found.add("expose.users", reason, format!("use at most {EXPOSE_USERS_MAX}, or `*` for all who are signed in"));
    }
    let nobody = |user: &String| user.is_empty() || user.len() > 256 || user.chars().any(char::is_control);
    if let Some(at) = expose.users.iter().position(nobody) {
        let reason = format!("{} is nobody's subject", quoted(&expose.users[at]));
        found.add(format!("expose.users[{at}]"), reason, "use the `sub` of a token, or `*` for all who are signed in");
    }
    if !["", "http1", "h2"].contains(&expose.protocol.as_str()) {
        let reason = format!("{} is not spoken by the gateway", quoted(&expose.protocol));
        found.add("expose.protocol", reason, "use http1, or h2 for HTTP/2 without TLS");
    }
}

fn chart_problems(found: &mut Problems, document: &WorkloadDocument, process: bool, chart: Option<&ChartSpec>) {
    if process {
        found.add("process", "a chart brings its own processes", "leave it out, or set kind to process");
    }
    if document.replicas > 1 || document.replicas_max > 1 {
        let reason = "a chart says itself how many replicas it has";
        found.add("replicas", reason, "leave it out, and set the chart's value for it under chart.values");
    }
    let Some(chart) = chart else { return };
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if !chart.sha256.is_empty() && (chart.sha256.len() != 64 || !chart.sha256.bytes().all(is_digit)) {
        let reason = format!("{} is not a SHA-256", quoted(&chart.sha256));
        let hint = "give 64 lower-case hexadecimal digits, or leave it out until an archive is attached";
        found.add("chart.sha256", reason, hint);
    }
    if chart.values.len() > VALUES_BYTES_MAX {
        let reason = format!("{} bytes; at most {VALUES_BYTES_MAX} are allowed", chart.values.len());
        found.add("chart.values", reason, "put them into the chart's values.yaml");
    }
}

fn process_problems(found: &mut Problems, process: &ProcessSpec) {
    let command = &process.command;
    if command.is_empty() {
        found.add(
            "process.command",
            "the command is missing",
            "give an absolute path, or a name found on the agent's PATH",
        );
    } else if command.contains('/') && !command.starts_with('/') {
        let reason = format!("{} is a relative path, and an agent has no folder of yours", quoted(command));
        found.add("process.command", reason, "give an absolute path, or a name found on the agent's PATH");
    }
    let texts = process.arguments.iter().chain(process.environment.values()).chain([command]);
    if texts.into_iter().any(|t| t.contains('\0')) {
        found.add("process", "a command, argument or value holds a NUL byte", "remove it; no process can be given one");
    }
    for name in process.environment.keys() {
        let mut bytes = name.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !first || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            let reason = format!("{} is not the name of an environment variable", quoted(name));
            found.add("process.environment", reason, "use letters, digits and `_`, and no digit first");
            return;
        }
        if name.starts_with(RESERVED_PREFIX) {
            let reason = format!("{} is set by the agent", quoted(name));
            found.add("process.environment", reason, format!("choose a name without {RESERVED_PREFIX} in front"));
            return;
        }
    }
}

fn resource_problems(found: &mut Problems, resources: &Resources) {
    if resources.cpu_milli == 0 {
        let hint = "reserve what one replica needs, in thousandths of a core, such as 100";
        found.add("resources.cpuMilli", "no CPU is asked for", hint);
    }
    if resources.memory_bytes == 0 {
        let hint = "reserve what one replica needs, in bytes, such as 64000000";
        found.add("resources.memoryBytes", "no memory is asked for", hint);
    }
    let mut limit = |path: &str, limit: u64, request: u64| {
        if limit != 0 && limit < request {
            let reason = format!("the limit {limit} is below the request {request}");
            found.add(path, reason, format!("use at least {request}, or leave it out for none"));
        }
    };
    limit("resources.cpuLimitMilli", resources.cpu_limit_milli.into(), resources.cpu_milli.into());
    limit("resources.memoryLimitBytes", resources.memory_limit_bytes, resources.memory_bytes);
}

/// Charts have the versions that Helm reads, `v1.0.0` and `1.0` among them.
fn version_problem(text: &str, of_chart: bool) -> Option<String> {
    let parsed = match of_chart {
        true => chart::structure::version(text).map(drop),
        false => semver::Version::parse(text).map(drop).map_err(|error| error.to_string()),
    };
    match text {
        "" => Some("the version is missing".into()),
        _ if text.len() > VERSION_MAX_BYTES => Some(format!("the version is longer than {VERSION_MAX_BYTES} bytes")),
        _ => parsed.err().map(|error| format!("{} is not a semantic version: {error}", quoted(text))),
    }
}

fn is_uuid(text: &str) -> bool {
    uuid::Uuid::try_parse(text).is_ok()
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, path: impl Into<String>, reason: impl Into<String>, hint: impl Into<String>) {
        self.0.push(Problem { path: path.into(), reason: reason.into(), hint: hint.into() });
    }
}

/// Is the text one of the known? A problem when it is not.
fn required(found: &mut Problems, path: impl Into<String>, text: &str, known: &[&str]) -> bool {
    if known.contains(&text) {
        return true;
    }
    let reason = if text.is_empty() { "it is missing".to_owned() } else { format!("{} is unknown", quoted(text)) };
    found.add(path, reason, choices(text, known));
    false
}

fn optional(found: &mut Problems, path: impl Into<String>, text: &str, known: &[&str]) {
    if !text.is_empty() {
        required(found, path, text, known);
    }
}

/// The known text that somebody probably meant.
fn nearest<'a>(text: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |k: &str| strsim::levenshtein(&k.to_lowercase(), &head(text).to_lowercase());
    known.iter().copied().min_by_key(|k| distance(k)).filter(|k| distance(k) <= 3.max(k.len() / 3))
}

fn choices(text: &str, known: &[&str]) -> String {
    match (nearest(text, known), known) {
        (_, [only]) => format!("use {only}"),
        (Some(nearest), _) => format!("did you mean {nearest}? Allowed are {}", known.join(", ")),
        (None, _) => format!("use one of {}", known.join(", ")),
    }
}

/// The first 64 characters: what somebody sent is repeated to them, but not without end.
fn head(text: &str) -> String {
    text.chars().take(64).collect()
}

fn quoted(text: &str) -> String {
    let head = head(text);
    if head.len() < text.len() { format!("{head:?}...") } else { format!("{head:?}") }
}

#[cfg(test)]
pub(crate) mod tests {
    use mesh_proto::intent::{ExpectationObject, ExpectationTarget};
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn target(name: &str, condition: &str, value: &str) -> ExpectationTarget {
        ExpectationTarget {
            target_name: name.into(),
            target_condition: condition.into(),
            target_value_range: value.into(),
            ..Default::default()
        }
    }

    pub(crate) fn good() -> Intent {
        Intent {
            user_label: "DeliverComputingWorkload".into(),
            intent_expectations: vec![IntentExpectation {
                expectation_id: "1".into(),
                expectation_verb: "ENSURE".into(),
                expectation_object: Some(ExpectationObject {
                    object_type: "NEMO_WORKLOAD".into(),
                    object_instance: "spinner@1.0.0".into(),
                    ..Default::default()
                }),
                expectation_targets: vec![
                    target("cpuUsage", "IS_LESS_THAN", "20"),
                    target("ramUsage", "IS_LESS_THAN", "200"),
                ],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    pub(crate) fn good_workload() -> WorkloadDocument {
        WorkloadDocument {
            name: "spinner".into(),
            version: "1.0.0".into(),
            kind: "process".into(),
            process: Some(ProcessSpec { command: "spinner".into(), ..Default::default() }),
            resources: Some(Resources { cpu_milli: 500, memory_bytes: 64_000_000, ..Default::default() }),
            ..Default::default()
        }
    }

    fn first(intent: &mut Intent) -> &mut IntentExpectation {
        &mut intent.intent_expectations[0]
    }

    fn object(intent: &mut Intent) -> &mut ExpectationObject {
        first(intent).expectation_object.as_mut().unwrap()
    }

    /// The problems of the good intent after a change, as `path: reason; hint`.
    fn after(change: impl FnOnce(&mut Intent)) -> Vec<String> {
        let mut intent = good();
        change(&mut intent);
        shown(check(&intent))
    }

    fn workload_after(change: impl FnOnce(&mut WorkloadDocument)) -> Vec<String> {
        let mut document = good_workload();
        change(&mut document);
        shown(check_workload(&document))
    }

    fn shown(problems: Vec<Problem>) -> Vec<String> {
        for problem in &problems {
            assert!(!problem.reason.is_empty() && !problem.hint.is_empty(), "{problem:?}");
        }
        problems.into_iter().map(|p| format!("{}: {}; {}", p.path, p.reason, p.hint)).collect()
    }

    /// Exactly one problem, whose text begins with the first and holds the second.
    fn one(problems: Vec<String>, begin: &str, holds: &str) {
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(begin) && problems[0].contains(holds), "{problems:?}");
    }

    #[test]
    fn a_good_intent_has_no_problem_in_any_of_its_allowed_forms() {
        assert_eq!(after(|_| ()), [""; 0]);
        assert_eq!(
            after(|i| object(i).object_instance = "b6a77b9a-4cb2-41e9-953b-0a0b569c8cdb".into()),
            [""; 0],
            "an instance is governed by its id"
        );
        for condition in Condition::NAMES {
            let text = match condition {
                "IS_WITHIN_RANGE" | "IS_OUTSIDE_RANGE" => "[0.5, 1]",
                "IS_ONE_OF" | "IS_NOT_ONE_OF" => "[0.5, 1, 2]",
                "IS_ALL_OF" => "[0.5]",
                _ => "0.5",
            };
            assert_eq!(after(|i| first(i).expectation_targets = vec![target("cpuUsage", condition, text)]), [""; 0]);
        }
        let full = after(|i| {
            i.intent_admin_state = "DEACTIVATED".into();
            i.intent_priority = 100;
            i.intent_preemption_capability = "TRUE".into();
            i.observation_period = 86_400;
            i.context_selectivity = "ALL_OF".into();
            first(i).expectation_verb = "DELIVER".into();
        });
        assert_eq!(full, [""; 0]);
    }

    #[test]
    fn an_unknown_type_names_the_nearest_and_the_rest_is_still_judged() {
        let found = after(|i| {
            i.user_label = "DeliverComputingWorklod".into();
            first(i).expectation_targets[1].target_name = "ramUsge".into();
        });
        let begin =
            "userLabel: \"DeliverComputingWorklod\" is unknown; did you mean DeliverComputingWorkload? Allowed are ";
        assert!(found[0].starts_with(begin), "{found:?}");
        assert!(found[1].starts_with("intentExpectations[0].expectationTargets[1].targetName"), "{found:?}");
        one(after(|i| i.user_label = "".into()), "userLabel: it is missing", "use one of DeliverComputingWorkload");
    }

    #[test]
    fn an_intent_expects_something_and_each_expectation_has_an_id_of_its_own() {
        one(after(|i| i.intent_expectations.clear()), "intentExpectations: the intent expects nothing", "add an");
        let twice = after(|i| i.intent_expectations.push(i.intent_expectations[0].clone()));
        one(twice, "intentExpectations[1].expectationId: \"1\" is the id of", "its own id");
        one(after(|i| first(i).expectation_id = "a b".into()), "intentExpectations[0].expectationId", "letters");
        one(after(|i| first(i).expectation_id = "".into()), "intentExpectations[0].expectationId", "such as 1");
        let many = after(|i| {
            let one = i.intent_expectations[0].clone();
            let many =
                (0..=EXPECTATIONS_MAX).map(|n| IntentExpectation { expectation_id: n.to_string(), ..one.clone() });
            i.intent_expectations = many.collect();
        });
        one(many, "intentExpectations: 33 expectations", "several intents");
    }

    #[test]
    fn verb_object_and_instance_must_be_ones_that_the_type_allows() {
        let verb = after(|i| first(i).expectation_verb = "ENSURES".into());
        one(verb, "intentExpectations[0].expectationVerb", "did you mean ENSURE? Allowed are DELIVER, ENSURE");
        let kind = after(|i| object(i).object_type = "L2SM_NETWORK".into());
        one(kind, "intentExpectations[0].expectationObject.objectType", "use NEMO_WORKLOAD");
        one(after(|i| first(i).expectation_object = None), "intentExpectations[0].expectationObject:", "no object");
        for bad in [
            "",
            "spinner",
            "spinner@",
            "spinner@latest",
            "spinner@1.0.0.0",
            "@1.0.0",
            "a b@1.0.0",
            "s@1.0.0@2.0.0",
            "{b6a77b9a-4cb2-41e9-953b-0a0b569c8cdb}",
        ] {
            let found = after(|i| object(i).object_instance = bad.into());
            one(found, "intentExpectations[0].expectationObject.objectInstance", "spinner@1.0.0, or the UUID");
        }
    }

    #[test]
    fn an_unknown_target_is_cured_by_the_nearest_and_the_allowed_names() {
        let found = after(|i| first(i).expectation_targets[1].target_name = "memUsage".into());
        let at = "intentExpectations[0].expectationTargets[1].targetName: DeliverComputingWorkload does not allow";
        one(found, at, "did you mean ramUsage? Allowed are cpuUsage, ramUsage");
        let found = after(|i| first(i).expectation_targets[1].target_name = "greenEnergyConsumptionRate".into());
        one(found, at, "use one of cpuUsage, ramUsage");
        let twice = after(|i| first(i).expectation_targets[1] = target("cpuUsage", "IS_GREATER_THAN", "1"));
        one(
            twice,
            "intentExpectations[0].expectationTargets[1].targetName: cpuUsage is stated twice",
            "IS_WITHIN_RANGE",
        );
        let none = after(|i| first(i).expectation_targets.clear());
        one(none, "intentExpectations[0].expectationTargets: the expectation has no target", "cpuUsage and ramUsage");
    }

    #[test]
    fn a_bound_is_a_number_within_the_range_of_its_target() {
        for good in ["0.307", "1", "99.9", "100", "1e1"] {
            assert_eq!(after(|i| first(i).expectation_targets[0].target_value_range = good.into()), [""; 0], "{good}");
        }
        for bad in ["", "0", "-1", "100.1", "inf", "nan", "20%", "1,5", "1e999", "twenty", " 20"] {
            let found = after(|i| first(i).expectation_targets[0].target_value_range = bad.into());
            let at = "intentExpectations[0].expectationTargets[0].targetValueRange";
            one(found, at, "give a number above 0 and up to 100, in per cent of its cluster's CPU");
        }
        assert_eq!(after(|i| first(i).expectation_targets[1].target_value_range = "1e9".into()), [""; 0]);
        let found = after(|i| first(i).expectation_targets[1].target_value_range = "1000000001".into());
        one(found, "intentExpectations[0].expectationTargets[1].targetValueRange", "MB of 10^6 bytes");
        let found = after(|i| first(i).expectation_targets[0].target_condition = "IS_LES_THAN".into());
        one(found, "intentExpectations[0].expectationTargets[0].targetCondition", "did you mean IS_LESS_THAN?");
        let found = after(|i| first(i).expectation_targets[0].target_condition = "IS_WITHIN_RANGE".into());
        let at = "intentExpectations[0].expectationTargets[0].targetValueRange: IS_WITHIN_RANGE takes two numbers";
        one(found, at, "as [10, 20], each above 0 and up to 100");
        let range =
            |text: &str| after(|i| first(i).expectation_targets[0] = target("cpuUsage", "IS_WITHIN_RANGE", text));
        one(range("[20, 10]"), "intentExpectations[0].expectationTargets[0].targetValueRange: the range begins", "two");
        one(
            range("[20, 101]"),
            "intentExpectations[0].expectationTargets[0].targetValueRange: 101 is more",
            "up to 100",
        );
    }

    #[test]
    fn a_response_time_and_an_error_rate_are_bounded_from_above() {
        let with = |name: &str, condition: &str, value: &str, period| {
            after(|intent| {
                first(intent).expectation_targets = vec![target(name, condition, value)];
                intent.observation_period = period;
            })
        };
        for name in ["responseTimeP50", "responseTimeP95", "responseTimeP99", "errorRate"] {
            for condition in CEILINGS {
                for period in [0, 10, 60] {
                    assert_eq!(with(name, condition, "50", period), [""; 0], "{name}");
                }
            }
            for condition in ["IS_GREATER_THAN", "IS_EQUAL_TO", "IS_WITHIN_RANGE"] {
                let found = with(name, condition, "50", 60);
                one(found, "intentExpectations[0].expectationTargets[0].targetCondition", "takes only an upper bound");
            }
            one(with(name, "IS_LESS_THAN", "50", 9), "observationPeriod", "too short a period");
            for value in ["0", "-1", "NaN", "4000000", "x", ""] {
                let found = with(name, "IS_LESS_THAN", value, 60);
                one(found, "intentExpectations[0].expectationTargets[0].targetValueRange", "give a number above 0");
            }
            let mut unknown = with(name, "IS_LESSER_THAN", "50", 60);
            assert!(unknown.remove(0).contains("targetCondition"));
        }
        one(with("errorRate", "IS_LESS_THAN", "101", 60), "intentExpectations[0]", "101 is more than 100");
    }

    #[test]
    fn period_priority_preemption_and_admin_state_are_within_their_ranges() {
        one(after(|i| i.observation_period = 86_401), "observationPeriod", "1 to 86400 seconds");
        one(after(|i| i.intent_priority = 101), "intentPriority", "1 to 100");
        one(after(|i| i.intent_preemption_capability = "true".into()), "intentPreemptionCapability", "mean TRUE?");
        one(after(|i| i.intent_admin_state = "ACTIVE".into()), "intentAdminState", "did you mean ACTIVATED?");
        one(after(|i| i.context_selectivity = "SOME".into()), "contextSelectivity", "ALL_OF, ONE_OF, ANY_OF");
    }

    #[test]
    fn what_is_only_kept_is_bounded_and_of_its_shape() {
        let long = "x".repeat(KEPT_MAX_BYTES + 1);
        one(after(|i| i.intent_report_reference = long.clone()), "intentReportReference", "65537 bytes");
        one(after(|i| i.resource = format!("{{\"name\": \"{long}\"}}")), "resource", "bytes");
        one(after(|i| i.resource = "plant".into()), "resource", "not an object");
        assert_eq!(after(|i| i.resource = "{\"name\": \"Halle Süd\"}".into()), [""; 0]);
    }

    #[test]
    fn a_chart_has_a_version_that_helm_reads() {
        for (version, of_chart, taken) in [
            ("v1.0.0", true, true),
            ("1.0", true, true),
            ("v1.0.0", false, false),
            ("1.0", false, false),
            ("1.0.0", false, true),
            ("latest", true, false),
            ("", true, false),
        ] {
            assert_eq!(version_problem(version, of_chart).is_none(), taken, "{version}, {of_chart}");
        }
    }

    #[test]
    fn a_context_that_nothing_would_act_on_is_refused_rather_than_ignored() {
        let context = || vec![Context { context_attribute: "Region".into(), ..Default::default() }];
        one(after(|i| i.intent_contexts = context()), "intentContexts[0].contextAttribute", "clusterSelector");
        let near = after(|i| first(i).expectation_contexts = context());
        one(near, "intentExpectations[0].expectationContexts[0].contextAttribute", "did you mean region?");
        let at = "intentExpectations[0]";
        let found = after(|i| first(i).expectation_contexts = context());
        one(found, &format!("{at}.expectationContexts[0]"), "\"Region\"");
        let found = after(|i| object(i).object_contexts = context());
        one(found, &format!("{at}.expectationObject.objectContexts[0]"), "did you mean region?");
        let found = after(|i| first(i).expectation_targets[1].target_contexts = context());
        one(found, &format!("{at}.expectationTargets[1].targetContexts[0]"), "leave it out");
    }

    fn context(attribute: &str, value: &str) -> Context {
        Context {
            context_attribute: attribute.into(),
            context_condition: "IS_EQUAL_TO".into(),
            context_value_range: value.into(),
            id: 0,
        }
    }

    #[test]
    fn a_context_that_chooses_a_cluster_says_one_label() {
        let with = |contexts: Vec<Context>| after(|i| first(i).expectation_contexts = contexts);
        assert_eq!(with(vec![context("region", "eu-1"), context("tier", "edge")]), [""; 0]);
        one(with(vec![context("region", "a b")]), "intentExpectations[0].expectationContexts: ", "one value");
        let two = with(vec![context("region", "a"), context("region", "b")]);
        one(two, "intentExpectations[0].expectationContexts: ", "no cluster carries both");
        let other = Context { context_condition: "IS_ONE_OF".into(), ..context("region", "a") };
        one(with(vec![other]), "intentExpectations[0].expectationContexts[0].contextCondition", "use IS_EQUAL_TO");
        let choice = after(|i| {
            first(i).expectation_contexts = vec![context("region", "a"), context("tier", "edge")];
            first(i).context_selectivity = "ONE_OF".into();
        });
        one(choice, "intentExpectations[0].contextSelectivity", "ALL_OF");
    }

    #[test]
    fn contexts_and_targets_are_limited_and_choices_are_standard() {
        let object_contexts = "intentExpectations[0].expectationObject.objectContexts";
        let many = after(|i| object(i).object_contexts = vec![context("region", "a"); CONTEXTS_MAX + 1]);
        one(many, &format!("{object_contexts}: 65 contexts; at most 64"), "state each once");
        let long = after(|i| object(i).object_contexts = vec![context("region", &"a".repeat(CONTEXT_MAX_BYTES + 1))]);
        one(long, &format!("{object_contexts}[0].contextValueRange: 8193 bytes; at most 8192"), "shorten");
        let many = after(|i| {
            i.user_label = "SecureExecution".into();
            first(i).expectation_targets = vec![target("cpuUsage", "IS_LESS_THAN", "20"); 5];
        });
        let found = &many[0];
        assert!(found.starts_with("intentExpectations[0].expectationTargets: 5 targets, of 2 that"), "{many:?}");
        assert!(many[1..].iter().all(|p| p.contains("stated twice")) && many.len() <= 5, "{many:?}");
        let at = "intentExpectations[0]";
        let choice = after(|i| first(i).context_selectivity = "SOME".into());
        one(choice, &format!("{at}.contextSelectivity: \"SOME\" is unknown"), "ALL_OF, ONE_OF, ANY_OF");
        let choice = after(|i| object(i).context_selectivity = "SOME".into());
        one(choice, &format!("{at}.expectationObject.contextSelectivity"), "ALL_OF, ONE_OF, ANY_OF");
        let choice = after(|i| first(i).expectation_targets[0].context_selectivity = "SOME".into());
        one(choice, &format!("{at}.expectationTargets[0].contextSelectivity"), "ALL_OF, ONE_OF, ANY_OF");
        let choice = after(|i| {
            object(i).object_contexts = vec![context("region", "a"), context("tier", "edge")];
            object(i).context_selectivity = "ANY_OF".into();
        });
        one(choice, &format!("{at}.expectationObject.contextSelectivity"), "ALL_OF");
    }

    #[test]
    fn an_intent_that_is_over_or_ends_before_it_begins_is_rejected() {
        let now: Timestamp = "2027-06-01T00:00:00Z".parse().unwrap();
        let judged = |contexts: Vec<Context>| {
            let (problems, infeasible) = judge(&Intent { intent_contexts: contexts, ..good() }, now);
            (shown(problems), infeasible)
        };
        let (problems, infeasible) = judged(vec![context("ServiceEndTime", "2027-05-31T00:00:00Z")]);
        one(problems, "intentContexts[0].contextValueRange: its end, 2027-05-31", "still to come");
        assert!(infeasible.contains("has passed"), "{infeasible}");
        let backwards = vec![
            context("ServiceStartTime", "2027-08-01T00:00:00Z"),
            context("ServiceEndTime", "2027-07-01T00:00:00Z"),
        ];
        let (problems, infeasible) = judged(backwards);
        one(problems, "intentContexts[1].contextValueRange: it would end at", "a start before the end");
        assert!(infeasible.contains("not after its start"), "{infeasible}");
        let twice =
            vec![context("ServiceEndTime", "2027-08-01T00:00:00Z"), context("ServiceEndTime", "2027-07-01T00:00:00Z")];
        let (problems, infeasible) = judged(twice);
        one(problems, "intentContexts[1].contextValueRange: an intent has one end", "one time for each");
        assert_eq!(infeasible, "", "it is not well formed");
        let coming = vec![context("ServiceStartTime", "2027-07-01T00:00:00Z")];
        assert_eq!(judged(coming), (vec![], String::new()), "it waits");
    }

    #[test]
    fn every_type_is_judged_by_its_own_entry() {
        let typed = |label: &str, targets: Vec<ExpectationTarget>| {
            after(|i| {
                i.user_label = label.into();
                first(i).expectation_targets = targets;
            })
        };
        assert_eq!(typed("SecureExecution", vec![]), [""; 0]);
        assert_eq!(typed("FederatedLearning", vec![target("cpuUsage", "IS_LESS_THAN", "50")]), [""; 0]);
        let green = vec![target("greenEnergyConsumptionRate", "IS_GREATER_THAN", "90")];
        assert_eq!(typed("EnergyCarbonEfficiency", green.clone()), [""; 0]);
        one(typed("SecureExecution", green), "intentExpectations[0].expectationTargets[0].targetName", "cpuUsage");
        let none = typed("EnergyCarbonEfficiency", vec![]);
        one(none, "intentExpectations[0].expectationTargets: the expectation has no target", "compEnergyConsumption");
    }

    #[test]
    fn a_network_intent_has_its_own_objects_contexts_and_targets() {
        let network = |change: &dyn Fn(&mut Intent)| {
            after(|i| {
                i.user_label = "cloud_continuum".into();
                i.intent_contexts = vec![context("NEMO_WORKLOAD", "cbcb208a-c")];
                first(i).expectation_verb = "DELIVER".into();
                object(i).object_type = "L2VPN".into();
                object(i).object_instance = "l2vpn tfs/1".into();
                object(i).object_contexts = vec![context("vlanId", "999")];
                first(i).expectation_targets = vec![target("bandwidth", "IS_EQUAL_TO_OR_GREATER_THAN", "10,0")];
                first(i).expectation_contexts = vec![context("url", "http://h/x")];
                change(i);
            })
        };
        assert_eq!(network(&|_| ()), [""; 0]);
        let vlan = network(&|i| object(i).object_contexts[0].context_attribute = "vlanid".into());
        one(vlan, "intentExpectations[0].expectationObject.objectContexts[0].contextAttribute", "did you mean vlanId?");
        let kind = network(&|i| object(i).object_type = "L2VPM".into());
        assert!(kind[0].contains("did you mean L2VPN?"), "{kind:?}");
        // What no library takes is refused here, with what is supported.
        for verb in ["ENSURE", "CREATE"] {
            let found = network(&|i| first(i).expectation_verb = verb.into());
            one(found, "intentExpectations[0].expectationVerb", "DELIVER");
        }
        for object_type in ["5G_SLICE_FLOW", "BGP_SESSION"] {
            let found = network(&|i| object(i).object_type = object_type.into());
            assert!(found[0].starts_with("intentExpectations[0].expectationObject.objectType"), "{found:?}");
            assert!(found[0].contains("L2VPN") && found[0].contains("LINUX_L2_SEGMENT"), "{found:?}");
        }
        one(
            network(&|i| object(i).object_instance.clear()),
            "intentExpectations[0].expectationObject.objectInstance",
            "253",
        );
        let wide = network(&|i| first(i).expectation_targets[0].target_value_range = "1,0,0".into());
        one(wide, "intentExpectations[0].expectationTargets[0].targetValueRange", "Gbit/s");
    }

    #[test]
    fn what_is_shown_in_place_of_a_secret_is_no_secret() {
        let with = |value: &str| {
            after(|i| {
                i.user_label = "CloudContinuumNetwork".into();
                first(i).expectation_verb = "DELIVER".into();
                object(i).object_type = "K8S_CLUSTER_CONFIG".into();
                object(i).object_instance = "c".into();
                object(i).object_contexts = vec![context("bearer_token", value)];
                first(i).expectation_targets = vec![];
            })
        };
        assert_eq!(with("a.secret.token"), [""; 0]);
        let at = "intentExpectations[0].expectationObject.objectContexts[0].contextValueRange";
        one(with(&secret::fingerprint("a.secret.token")), at, "give the secret itself");
    }

    #[test]
    fn expectations_on_one_instance_must_leave_a_value() {
        let found = after(|i| {
            object(i).object_instance = "b6a77b9a-4cb2-41e9-953b-0a0b569c8cdb".into();
            let mut second = first(i).clone();
            second.expectation_id = "2".into();
            second.expectation_targets = vec![target("cpuUsage", "IS_GREATER_THAN", "30")];
            i.intent_expectations.push(second);
        });
        one(found, "intentExpectations[1].expectationTargets[0].targetValueRange", "leave a value");
    }

    #[test]
    fn the_intents_that_the_specification_prints_are_accepted() {
        for text in [
            include_str!("../../../../examples/network/l2vpn.yaml"),
            include_str!("../../../../examples/network/l2sm.yaml"),
            include_str!("../../../../examples/network/segment.yaml"),
            include_str!("../../../../examples/intents/report.intent.yaml"),
            include_str!("../../../../examples/intents/energy.intent.yaml"),
            include_str!("../../../../examples/intents/availability.intent.yaml"),
            include_str!("../../../../examples/spinner.intent.yaml"),
        ] {
            let value = mesh_proto::Written::yaml(text).unwrap().into_json();
            let inner = value.get("Intent").cloned().unwrap_or(value);
            let intent = mesh_proto::json::from_value("continuum.intent.v1.Intent", inner).unwrap();
            assert_eq!(shown(check(&intent)), [""; 0], "{text}");
        }
    }

    #[test]
    fn times_are_times() {
        let with = |contexts: Vec<Context>| after(|i| i.intent_contexts = contexts);
        assert_eq!(with(vec![context("ServiceStartTime", "2027-01-01T00:00:00Z")]), [""; 0]);
        let bad = with(vec![context("ServiceStartTime", "tomorrow")]);
        one(bad, "intentContexts[0].contextValueRange", "2027-01-31T12:00:00Z");
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let found = after(|i| {
            i.observation_period = 100_000;
            object(i).object_instance = "x".into();
            first(i).expectation_targets[0].target_value_range = "101".into();
        });
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn a_good_document_has_no_problem_in_any_of_its_allowed_forms() {
        assert_eq!(workload_after(|_| ()), [""; 0]);
        for version in ["1.2.3-rc.1+build.5", "0.0.1"] {
            assert_eq!(workload_after(|d| d.version = version.into()), [""; 0]);
        }
        let full = workload_after(|d| {
            d.process.as_mut().unwrap().command = "/usr/bin/env".into();
            d.process.as_mut().unwrap().environment.insert("_A1".into(), "any = thing".into());
            d.resources.as_mut().unwrap().cpu_limit_milli = 500;
            d.resources.as_mut().unwrap().memory_limit_bytes = 64_000_000;
            d.cluster_selector.insert("continuum.eu/zone".into(), "plant-1".into());
            d.replicas = 100;
        });
        assert_eq!(full, [""; 0]);
    }

    #[test]
    fn a_document_without_a_process_or_its_resources_says_which() {
        one(workload_after(|d| d.process = None), "process: ", "command");
        one(workload_after(|d| d.process.as_mut().unwrap().command.clear()), "process.command: ", "absolute path");
        let relative = workload_after(|d| d.process.as_mut().unwrap().command = "bin/spinner".into());
        one(relative, "process.command: ", "absolute path");
        one(workload_after(|d| d.resources = None), "resources: ", "cpuMilli and memoryBytes");
        one(workload_after(|d| d.resources.as_mut().unwrap().cpu_milli = 0), "resources.cpuMilli: ", "such as 100");
        one(workload_after(|d| d.resources.as_mut().unwrap().memory_bytes = 0), "resources.memoryBytes: ", "bytes");
        let limit = workload_after(|d| d.resources.as_mut().unwrap().cpu_limit_milli = 499);
        one(limit, "resources.cpuLimitMilli: the limit 499 is below the request 500", "at least 500");
        let limit = workload_after(|d| d.resources.as_mut().unwrap().memory_limit_bytes = 1);
        one(limit, "resources.memoryLimitBytes: ", "or leave it out");
    }

    #[test]
    fn a_chart_document_has_no_process_and_needs_no_resources() {
        let chart = |d: &mut WorkloadDocument| {
            (d.kind, d.process, d.resources) = ("chart".into(), None, None);
            d.chart = Some(ChartSpec { sha256: "0".repeat(64), ..Default::default() });
        };
        assert_eq!(workload_after(chart), [""; 0]);
        let with = |change: &dyn Fn(&mut WorkloadDocument)| {
            workload_after(|d| {
                chart(d);
                change(d);
            })
        };
        assert_eq!(with(&|d| d.chart = None), [""; 0], "its archive may come later");
        one(with(&|d| d.process = Some(ProcessSpec::default())), "process: ", "kind to process");
        one(with(&|d| d.replicas = 2), "replicas: ", "chart.values");
        one(with(&|d| d.driver = "process".into()), "driver: ", "clusters that run charts");
        one(with(&|d| d.chart.as_mut().unwrap().sha256 = "ABC".into()), "chart.sha256: \"ABC\" is not a SHA-256", "64");
        let long = with(&|d| d.chart.as_mut().unwrap().values = "a".repeat(VALUES_BYTES_MAX + 1));
        one(long, "chart.values: ", "values.yaml");
        one(workload_after(|d| d.chart = Some(ChartSpec::default())), "chart: ", "kind to chart");
    }

    #[test]
    fn a_document_names_a_driver_that_exists_or_none() {
        for driver in ["", "process", "simulated", "any"] {
            assert_eq!(workload_after(|d| d.driver = driver.into()), [""; 0], "{driver}");
        }
        one(workload_after(|d| d.driver = "docker".into()), "driver: \"docker\"", "process");
    }

    #[test]
    fn an_exposed_port_is_one_that_a_workload_can_have() {
        let with = |change: fn(&mut Expose)| {
            workload_after(|d| {
                let mut expose = Expose { port: 8_080, path: "/app".into(), ..Expose::default() };
                change(&mut expose);
                d.expose = Some(expose);
            })
        };
        assert!(with(|_| ()).is_empty());
        assert!(with(|e| (e.users, e.protocol) = (vec!["*".into()], "h2".into())).is_empty());
        let paths = |found: Vec<String>| {
            found.iter().map(|p| p.split(':').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        for port in [0, 22, 1_023, 65_536] {
            let found = workload_after(|d| d.expose = Some(Expose { port, ..Expose::default() }));
            assert_eq!(paths(found), ["expose.port"], "{port}");
        }
        for path in ["app", "/a/../b", "/a?b", "/a b", "/%2e%2e"] {
            let found =
                workload_after(|d| d.expose = Some(Expose { port: 8_080, path: path.into(), ..Expose::default() }));
            assert_eq!(paths(found), ["expose.path"], "{path}");
        }
        assert_eq!(paths(with(|e| e.users = vec!["ada".into(), String::new()])), ["expose.users[1]"]);
        assert_eq!(paths(with(|e| e.users = vec!["ada".into(); 65])), ["expose.users"]);
        assert_eq!(paths(with(|e| e.protocol = "ftp".into())), ["expose.protocol"]);
    }

    #[test]
    fn a_latency_bound_names_one_peer_and_a_time() {
        use mesh_proto::workload::LatencyBound;
        let near = |to_site: &str, to_cluster: &str, max_latency_ms: f64| LatencyBound {
            to_site: to_site.into(),
            to_cluster: to_cluster.into(),
            max_latency_ms,
            ..Default::default()
        };
        let with = |bound: LatencyBound| workload_after(|d| d.latency_bounds.push(bound));
        assert!(with(near("edge", "", 5.0)).is_empty());
        for bad in [near("", "", 5.0), near("a", "b", 5.0), near("a b", "", 5.0)] {
            one(with(bad), "latencyBounds[0]: ", "name one of");
        }
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            one(with(near("edge", "", bad)), "latencyBounds[0].maxLatencyMs: ", "above 0");
        }
        let many = workload_after(|d| d.latency_bounds = vec![near("edge", "", 5.0); 17]);
        one(many, "latencyBounds: ", "at most 16");
    }

    #[test]
    fn name_version_kind_and_labels_of_a_document_are_checked() {
        one(workload_after(|d| d.name = "a b".into()), "name: ", "letters, digits");
        let uuid = workload_after(|d| d.name = "b6a77b9a-4cb2-41e9-953b-0a0b569c8cdb".into());
        one(uuid, "name: ", "UUIDs name instances");
        for bad in ["", "1", "1.0", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "latest"] {
            one(workload_after(|d| d.version = bad.into()), "version: ", "such as 1.0.0");
        }
        one(workload_after(|d| d.kind = "vm".into()), "kind: \"vm\" is unknown", "use one of process, chart");
        one(workload_after(|d| d.replicas = 101), "replicas: ", "1 to 100");
        let most = |replicas, replicas_max| workload_after(|d| (d.replicas, d.replicas_max) = (replicas, replicas_max));
        assert_eq!(most(3, 3), [""; 0]);
        one(most(3, 2), "replicasMax: 2 is not between", "scaled up to");
        one(most(3, 101), "replicasMax: 101 is not between", "or leave it out");
        let label = workload_after(|d| drop(d.cluster_selector.insert("zone".into(), "a,b".into())));
        one(label, "clusterSelector: ", "without");
        let reserved = |d: &mut WorkloadDocument| {
            d.process.as_mut().unwrap().environment.insert("CONTINUUM_CLUSTER".into(), "x".into());
        };
        one(workload_after(reserved), "process.environment: ", "set by the agent");
        let name = workload_after(|d| drop(d.process.as_mut().unwrap().environment.insert("1A".into(), "".into())));
        one(name, "process.environment: ", "no digit first");
        let nul = workload_after(|d| d.process.as_mut().unwrap().arguments.push("a\0b".into()));
        one(nul, "process: ", "NUL");
        one(workload_after(|d| d.description = "x".repeat(4_097)), "description: ", "shorten");
    }

    proptest! {
        /// Whatever is written, checking it ends, says a bounded amount, and every problem has path, reason and hint.
        #[test]
        fn any_content_gets_a_bounded_and_complete_answer(
            label in ".{0,80}", id in ".{0,70}", verb in ".{0,12}", instance in ".{0,200}",
            names in prop::collection::vec(".{0,100}", 0..40), value in ".{0,100}", period: u32, priority: u32,
        ) {
            let mut intent = good();
            for user_label in [label, "DeliverComputingWorkload".into()] {
                intent.user_label = user_label;
                intent.observation_period = period;
                intent.intent_priority = priority;
                first(&mut intent).expectation_id.clone_from(&id);
                first(&mut intent).expectation_verb.clone_from(&verb);
                object(&mut intent).object_instance.clone_from(&instance);
                first(&mut intent).expectation_targets = names.iter().map(|n| target(n, n, &value)).collect();
                let found = check(&intent);
                prop_assert!(found.len() <= 32);
                for problem in &found {
                    prop_assert!(!problem.path.is_empty() && !problem.reason.is_empty() && !problem.hint.is_empty());
                    prop_assert!(problem.reason.len() + problem.hint.len() <= 1_000, "{problem:?}");
                }
                prop_assert_eq!(found, check(&intent));
            }
        }

        /// A bound that is accepted is read by everybody as a finite number above 0 and within its range.
        #[test]
        fn an_accepted_bound_is_a_number_within_range(text in "[-+]?[0-9]{0,4}[.]?[0-9]{0,3}(e[-+]?[0-9]{1,3})?|.{0,8}") {
            let mut intent = good();
            first(&mut intent).expectation_targets = vec![target("cpuUsage", "IS_LESS_THAN", &text)];
            if check(&intent).is_empty() {
                let value: f64 = text.parse().unwrap();
                prop_assert!(value > 0.0 && value <= 100.0);
            }
        }
    }
}
