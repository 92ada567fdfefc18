//! Goals of people ("as fast as possible", "within 200 ms", "with the least energy") become objectives. They are printed,
//! not planned by: nothing places or moves a workload because of a goal yet ([`STATEMENT`]).
//!
//! A goal is about one component: how much work it is and what it can use. A resource does the work in a time and with
//! an energy that follow from its cores, their speed, its power, and accelerators with their own speed-up and power. The
//! objective lists the resources that reach the goal, the better first: of a minimum the best alone (with all that equal
//! it), of a bound every one that keeps it, as alternatives.
//!
//! | goal | written as | objective |
//! | --- | --- | --- |
//! | minimum execution time | `Total_Execution_Time: minimum` | the fastest |
//! | bound on it | `Total_Execution_Time: "<= 200 ms"` (also `</=`) | each that keeps it |
//! | lowest energy | `Energy_Consumption: minimum` | the one that uses least |
//! | bound on it | `Energy_Consumption: "<= 50 J"` | each that keeps it |
//!
//! Model: time = work / (speed · min(cores, parallelism)), divided by the accelerator's speed-up if the component can use
//! it; energy = watts · time, with the accelerator's power in place of its host's cores.
//!
//! Every figure that goes in is stated by the document or declared by a cluster's labels, or else assumed; none is
//! measured. Each alternative lists what it assumes. The specification gives bounds (200 ms) and names a device (U50), but
//! neither how much work a component is nor how fast a device does it: those figures in the tests are assumptions too.

use std::collections::BTreeMap;

use mesh_proto::{
    intent::Problem,
    telemetry::Provenance,
    validation::{Alternative, Objective},
};
use serde_json::Value as Json;

/// What holds of every objective.
pub const STATEMENT: &str = "objectives are printed, not planned by: no placement depends on them; every prediction is \
                             modelled from stated, declared or assumed figures";

/// Components in a document.
pub const COMPONENTS_MAX: usize = 256;
/// Figures that are within this share of the best count as equal to it.
const EQUAL_SHARE: f64 = 1e-9;

/// What is to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// As little as possible.
    Minimum(Metric),
    /// At most this value, in the metric's unit.
    AtMost(Metric, f64),
}

/// What a goal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Milliseconds.
    ExecutionTime,
    /// Joules.
    Energy,
}

impl Metric {
    fn name(self) -> &'static str {
        match self {
            Self::ExecutionTime => "execution_time",
            Self::Energy => "energy",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::ExecutionTime => "ms",
            Self::Energy => "J",
        }
    }
}

/// A part of an application, and its goal.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    /// Its name.
    pub name: String,
    /// Seconds that one core of speed 1 takes for it.
    pub work_core_seconds: f64,
    /// Cores that it can keep busy.
    pub parallelism: f64,
    /// Bytes of memory that it needs.
    pub memory_bytes: u64,
    /// Accelerators that it has a kernel for, by name.
    pub accelerators: Vec<String>,
    /// Its goals.
    pub goals: Vec<Goal>,
    /// What the document does not state of it, in words.
    pub assumed: Vec<String>,
}

/// What can do work.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// Labels that select it.
    pub selector: BTreeMap<String, String>,
    /// Cores.
    pub cores: f64,
    /// How fast one core is; 1 is the reference.
    pub speed: f64,
    /// Watts while it works.
    pub idle_watts: f64,
    /// Watts more for each busy core.
    pub watts_per_core: f64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Its accelerator, if it has one.
    pub accelerator: Option<Accelerator>,
    /// Where its speed and its power come from, in words.
    pub assumed: Vec<String>,
}

/// A device that does some work faster.
#[derive(Clone, Debug, PartialEq)]
pub struct Accelerator {
    /// Its name, such as `u50`.
    pub name: String,
    /// How much faster than one core of speed 1.
    pub speedup: f64,
    /// Watts while it works.
    pub watts: f64,
    /// Where its speed-up and its power come from, in words.
    pub assumed: String,
}

impl Resource {
    /// Its accelerator, if the component has a kernel for it.
    fn accelerator_for(&self, component: &Component) -> Option<&Accelerator> {
        let own = self.accelerator.as_ref()?;
        component.accelerators.contains(&own.name).then_some(own)
    }

    /// What a prediction here assumes, in words.
    fn assumptions(&self, component: &Component) -> Vec<String> {
        let accelerator = self.accelerator_for(component).map(|a| a.assumed.clone());
        let all = component.assumed.iter().chain(&self.assumed).cloned().chain(accelerator);
        all.filter(|text| !text.is_empty()).collect()
    }

    /// Milliseconds and joules that the component takes here; `None` if it cannot run here.
    pub fn predict(&self, component: &Component) -> Option<(f64, f64)> {
        if component.memory_bytes > self.memory_bytes || self.cores <= 0.0 || self.speed <= 0.0 {
            return None;
        }
        let used = self.accelerator_for(component);
        let (seconds, watts) = match used {
            Some(accelerator) if accelerator.speedup > 0.0 => {
                (component.work_core_seconds / accelerator.speedup, self.idle_watts + accelerator.watts)
            }
            _ => {
                let cores = self.cores.min(component.parallelism.max(1e-3));
                (component.work_core_seconds / (self.speed * cores), self.idle_watts + self.watts_per_core * cores)
            }
        };
        let (ms, joules) = (seconds * 1_000.0, watts * seconds);
        (ms.is_finite() && joules.is_finite()).then_some((ms, joules))
    }
}

/// The objectives of a component, one for each goal.
pub fn translate(component: &Component, resources: &[Resource]) -> Vec<Objective> {
    component.goals.iter().map(|goal| objective(component, *goal, resources)).collect()
}

fn objective(component: &Component, goal: Goal, resources: &[Resource]) -> Objective {
    let (metric, bound) = match goal {
        Goal::Minimum(metric) => (metric, None),
        Goal::AtMost(metric, bound) => (metric, Some(bound)),
    };
    let mut options: Vec<(f64, &Resource)> = vec![];
    for resource in resources {
        if let Some((ms, joules)) = resource.predict(component) {
            options.push((if metric == Metric::ExecutionTime { ms } else { joules }, resource));
        }
    }
    options.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.name.cmp(&b.1.name)));
    let best = options.first().map(|(value, resource)| (*value, resource.name.clone()));
    let most = bound.or(best.as_ref().map(|(value, _)| value * (1.0 + EQUAL_SHARE)));
    let alternatives: Vec<Alternative> = options
        .into_iter()
        .filter(|(value, _)| most.is_some_and(|most| *value <= most))
        .map(|(value, resource)| Alternative {
            resource: resource.name.clone(),
            cluster_selector: resource.selector.clone(),
            predicted: value,
            provenance: Provenance::Modelled.into(),
            assumptions: resource.assumptions(component),
        })
        .collect();
    let reason = match (&best, alternatives.is_empty()) {
        (_, false) => String::new(),
        (None, _) => {
            format!("no resource can run {}: it needs {} bytes of memory", component.name, component.memory_bytes)
        }
        (Some((value, name)), _) => {
            let (unit, bound) = (metric.unit(), bound.unwrap_or_default());
            format!("the nearest, {name}, comes to {value:.1} {unit}, {:.1} {unit} over", value - bound)
        }
    };
    Objective {
        component: component.name.clone(),
        metric: metric.name().into(),
        kind: if bound.is_some() { "bound" } else { "minimum" }.into(),
        bound: bound.unwrap_or_default(),
        alternatives,
        reason,
    }
}

/// Reads the components of a document: a TOSCA topology (`topology_template.node_templates`), or its node templates alone.
/// Names are taken as the document has them, so numbers in it are to be as they are spelt (`Written::into_spelt_json`).
/// A component's work is in its properties `work_core_seconds`, `parallelism`, `memory_bytes` and `accelerators`; what it
/// does not say counts as 1 core-second on one core.
///
/// # Errors
/// Every goal that cannot be read, by path.
pub fn read(document: &Json) -> Result<Vec<Component>, Vec<Problem>> {
    let topology = document.get("topology_template").unwrap_or(document);
    let at = if topology.get("node_templates").is_some() { "node_templates." } else { "" };
    let nodes = topology.get("node_templates").unwrap_or(topology);
    let problem = |path: String, reason: String, hint: &str| Problem { path, reason, hint: hint.into() };
    let Some(nodes) = nodes.as_object() else {
        let hint = "write components by name, each with properties.intent";
        return Err(vec![problem(String::new(), "the document has no components".into(), hint)]);
    };
    if nodes.len() > COMPONENTS_MAX {
        let reason = format!("{} components; at most {COMPONENTS_MAX} are allowed", nodes.len());
        return Err(vec![problem(String::new(), reason, "divide the document")]);
    }
    let (mut components, mut problems) = (vec![], vec![]);
    for (name, node) in nodes {
        let properties = node.get("properties").unwrap_or(node);
        let Some(intent) = properties.get("intent") else { continue };
        let path = format!("{at}{name}.properties.intent");
        let mut goals = vec![];
        for (category, metrics) in intent.as_object().into_iter().flatten() {
            for (metric, expression) in metrics.as_object().into_iter().flatten() {
                match read_goal(metric, expression) {
                    Ok(goal) => goals.push(goal),
                    Err((reason, hint)) => problems.push(problem(format!("{path}.{category}.{metric}"), reason, hint)),
                }
            }
        }
        if goals.is_empty() && problems.is_empty() {
            let hint = "write Application_Performance: {Total_Execution_Time: \"<= 200 ms\"}";
            problems.push(problem(path, "it states no goal".into(), hint));
        }
        let mut figure = |key: &str| {
            let value = properties.get(key).filter(|value| !value.is_null())?;
            let number = value.as_f64().or_else(|| value.as_str()?.parse().ok()).filter(|v| v.is_finite() && *v > 0.0);
            if number.is_none() {
                let path = format!("{at}{name}.properties.{key}");
                problems.push(problem(
                    path,
                    format!("{value} is not a number above 0"),
                    "write a number, or leave it out",
                ));
            }
            number
        };
        let (work, parallelism) = (figure("work_core_seconds"), figure("parallelism"));
        let memory = figure("memory_bytes");
        let missing = [("work_core_seconds", work), ("parallelism", parallelism)];
        let missing = missing.into_iter().filter(|(_, given)| given.is_none());
        let assumed = missing.map(|(key, _)| format!("{key} = 1, which the document does not state")).collect();
        let mut accelerators = vec![];
        let names = match properties.get("accelerators") {
            None | Some(Json::Null) => &[],
            Some(Json::Array(names)) => names.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        for (i, given) in names.iter().enumerate() {
            match given {
                Json::String(given) => accelerators.push(given.clone()),
                // A name that looks like a number or a truth value.
                Json::Number(_) | Json::Bool(_) => accelerators.push(given.to_string()),
                _ => {
                    let path = format!("{at}{name}.properties.accelerators[{i}]");
                    problems.push(problem(path, format!("{given} is not a name"), "write a list of names"));
                }
            }
        }
        components.push(Component {
            name: name.clone(),
            work_core_seconds: work.unwrap_or(1.0),
            parallelism: parallelism.unwrap_or(1.0),
            memory_bytes: memory.map_or(0, |bytes| bytes as u64),
            accelerators,
            goals,
            assumed,
        });
    }
    if components.is_empty() && problems.is_empty() {
        let hint = "give a component properties.intent";
        problems.push(problem(String::new(), "no component has an intent".into(), hint));
    }
    if problems.is_empty() { Ok(components) } else { Err(problems) }
}

/// One goal: `minimum`, or a comparison with a number and its unit.
fn read_goal(metric: &str, expression: &Json) -> Result<Goal, (String, &'static str)> {
    let metric = match metric {
        "Total_Execution_Time" | "Execution_Time" => Metric::ExecutionTime,
        "Energy_Consumption" | "Total_Energy_Consumption" => Metric::Energy,
        _ => {
            let hint = "use Total_Execution_Time or Energy_Consumption";
            return Err((format!("{:?} is not known", metric.chars().take(64).collect::<String>()), hint));
        }
    };
    let hint = match metric {
        Metric::ExecutionTime => "write minimum, or a bound such as \"<= 200 ms\"",
        Metric::Energy => "write minimum, or a bound such as \"<= 50 J\"",
    };
    let text = expression.as_str().unwrap_or_default().trim();
    if matches!(text.to_ascii_lowercase().as_str(), "minimum" | "min" | "lowest") {
        return Ok(Goal::Minimum(metric));
    }
    let wrong = || (format!("{:?} is neither minimum nor a bound", text.chars().take(64).collect::<String>()), hint);
    let rest = ["</=", "<=", "≤", "<"].iter().find_map(|sign| text.strip_prefix(sign)).ok_or_else(wrong)?.trim();
    let split = rest.find(|c: char| c.is_alphabetic() && c != 'e' && c != 'E').unwrap_or(rest.len());
    let (number, unit) = rest.split_at(split);
    let factor = match (metric, unit.trim()) {
        (Metric::ExecutionTime, "ms") | (Metric::Energy, "J") => 1.0,
        (Metric::ExecutionTime, "us") => 0.001,
        (Metric::ExecutionTime, "s") | (Metric::Energy, "kJ") => 1_000.0,
        (Metric::ExecutionTime, "min") => 60_000.0,
        (Metric::Energy, "Wh") => 3_600.0,
        _ => return Err(wrong()),
    };
    let value = number.trim().parse::<f64>().ok().filter(|v| v.is_finite() && *v > 0.0).ok_or_else(wrong)?;
    Ok(Goal::AtMost(metric, value * factor))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GB: u64 = 1_000_000_000;

    fn resource(name: &str, cores: f64, speed: f64, idle_watts: f64, watts_per_core: f64) -> Resource {
        Resource {
            name: name.into(),
            selector: [("kind".to_owned(), name.to_owned())].into(),
            cores,
            speed,
            idle_watts,
            watts_per_core,
            memory_bytes: 64 * GB,
            accelerator: None,
            assumed: vec![format!("speed {speed} of a core of {name}")],
        }
    }

    // The specification states the goals, the bound of 200 ms and the device U50. How much work a component is, and how
    // fast and how hungry each resource is, are assumptions of these tests.

    /// What a platform of edge, HPC and accelerated nodes offers, by assumption.
    fn platform() -> Vec<Resource> {
        let edge = resource("edge", 4.0, 1.0, 8.0, 10.0);
        let hpc = resource("hpc", 64.0, 2.0, 200.0, 8.0);
        vec![edge, hpc]
    }

    fn one(document: &Json, resources: &[Resource]) -> Objective {
        let components = read(document).unwrap();
        let [component] = components.as_slice() else { panic!("{components:?}") };
        let mut objectives = translate(component, resources);
        assert_eq!(objectives.len(), 1);
        objectives.remove(0)
    }

    /// A training of 12 core-seconds, by assumption.
    fn trainer(goal: &str) -> Json {
        training(12.0, goal)
    }

    fn training(work_core_seconds: f64, goal: &str) -> Json {
        json!({"topology_template": {"node_templates": {"PositionClassifierTrainer": {
            "type": "serrano.nodes.PositionClassifierTrainer",
            "properties": {
                "work_core_seconds": work_core_seconds, "parallelism": 64, "memory_bytes": 2 * GB,
                "intent": {"Application_Performance": {"Total_Execution_Time": goal}},
            },
        }}}})
    }

    fn named(objective: &Objective) -> Vec<&str> {
        objective.alternatives.iter().map(|a| a.resource.as_str()).collect()
    }

    #[test]
    fn golden_case_1_minimum_execution_time_of_a_training_is_hpc() {
        let objective = one(&trainer("minimum"), &platform());
        assert_eq!((objective.kind.as_str(), named(&objective)), ("minimum", vec!["hpc"]));
        assert_eq!(objective.alternatives[0].predicted, 12.0 / 128.0 * 1_000.0);
    }

    #[test]
    fn golden_case_2_a_bound_is_met_by_hpc_or_a_suitable_edge_as_alternatives() {
        let mut platform = platform();
        platform.push(resource("small-edge", 1.0, 1.0, 4.0, 6.0));
        // 0.6 core-seconds, by assumption: 150 ms on the four cores of the edge, 600 ms on the one of the small edge.
        let objective = one(&training(0.6, "</= 200 ms"), &platform);
        assert_eq!((objective.kind.as_str(), named(&objective)), ("bound", vec!["hpc", "edge"]));
        assert_eq!(objective.bound, 200.0);
        assert!(objective.alternatives.iter().all(|a| a.predicted <= 200.0 && !a.cluster_selector.is_empty()));
        let objective = one(&trainer("</= 4 s"), &platform);
        assert_eq!((named(&objective), objective.bound), (vec!["hpc", "edge"], 4_000.0), "in seconds as well");
        assert!(objective.alternatives.iter().all(|a| a.predicted <= 4_000.0));
    }

    #[test]
    fn an_alternative_names_what_it_assumes() {
        let document = json!({"a": {"properties": {
            "work_core_seconds": 2, "intent": {"Energy": {"Energy_Consumption": "minimum"}},
        }}});
        let objective = one(&document, &platform()[..1]);
        let [only] = objective.alternatives.as_slice() else { panic!("{objective:?}") };
        let assumed = ["parallelism = 1, which the document does not state", "speed 1 of a core of edge"];
        assert_eq!(only.assumptions, assumed);
        assert_eq!(only.provenance(), Provenance::Modelled);
    }

    #[test]
    fn golden_case_3_the_u50_accelerator_has_the_lowest_energy() {
        let mut platform = platform();
        // Its speed-up and its power are assumptions; the specification gives none.
        let assumed = "a speed-up of 40 and 50 W of the u50".to_owned();
        let u50 = Accelerator { name: "u50".into(), speedup: 40.0, watts: 50.0, assumed: assumed.clone() };
        platform.push(Resource { accelerator: Some(u50), ..resource("u50", 8.0, 1.0, 30.0, 10.0) });
        let document = json!({"MarketAnalysis": {"properties": {
            "work_core_seconds": 12.0, "parallelism": 8, "accelerators": ["u50"],
            "intent": {"Energy": {"Energy_Consumption": "minimum"}},
        }}});
        let objective = one(&document, &platform);
        assert_eq!((objective.metric.as_str(), named(&objective)), ("energy", vec!["u50"]));
        assert_eq!(objective.alternatives[0].predicted, 24.0);
        assert!(objective.alternatives[0].assumptions.contains(&assumed));
    }

    #[test]
    fn a_bound_that_nothing_keeps_names_the_nearest_miss() {
        let objective = one(&trainer("<= 50 ms"), &platform());
        assert_eq!(named(&objective), [""; 0]);
        assert_eq!(objective.reason, "the nearest, hpc, comes to 93.8 ms, 43.8 ms over");
        let mut large = read(&trainer("minimum")).unwrap().remove(0);
        large.memory_bytes = 1_000 * GB;
        assert!(translate(&large, &platform())[0].reason.contains("no resource can run"));
    }

    #[test]
    fn names_are_taken_as_they_are_spelt_and_figures_are_never_dropped() {
        let of = |properties: &str| {
            let text = format!("a: {{intent: {{x: {{Execution_Time: minimum}}}}, {properties}}}\n");
            read(&mesh_proto::Written::yaml(&text).unwrap().into_spelt_json())
        };
        let named =
            of("accelerators: [U50, 1.10, 010, 7, yes, true], work_core_seconds: 1.50, memory_bytes: 1e3").unwrap();
        assert_eq!(named[0].accelerators, ["U50", "1.10", "010", "7", "yes", "true"]);
        assert_eq!((named[0].work_core_seconds, named[0].memory_bytes), (1.5, 1_000));
        assert_eq!(of("accelerators: 550").unwrap()[0].accelerators, ["550"]);
        for (wrong, path) in [
            ("accelerators: [[a]]", "a.properties.accelerators[0]"),
            ("accelerators: [~]", "a.properties.accelerators[0]"),
            ("work_core_seconds: ten", "a.properties.work_core_seconds"),
            ("parallelism: -1", "a.properties.parallelism"),
            ("memory_bytes: [1]", "a.properties.memory_bytes"),
        ] {
            assert_eq!(of(wrong).unwrap_err()[0].path, path);
        }
    }

    #[test]
    fn what_is_no_goal_says_where_and_what_would_be_right() {
        for (document, path) in [
            (json!([]), ""),
            (json!({}), ""),
            (json!({"a": {"properties": {"intent": {}}}}), "a.properties.intent"),
            (
                trainer("fast"),
                "node_templates.PositionClassifierTrainer.properties.intent.Application_Performance.Total_Execution_Time",
            ),
            (
                trainer("<= 200"),
                "node_templates.PositionClassifierTrainer.properties.intent.Application_Performance.Total_Execution_Time",
            ),
            (
                trainer("<= -1 ms"),
                "node_templates.PositionClassifierTrainer.properties.intent.Application_Performance.Total_Execution_Time",
            ),
            (json!({"a": {"intent": {"X": {"Luck": "minimum"}}}}), "a.properties.intent.X.Luck"),
        ] {
            let found = read(&document).unwrap_err();
            assert_eq!(found[0].path, path, "{document}");
            assert!(!found[0].reason.is_empty() && !found[0].hint.is_empty());
        }
    }
}
