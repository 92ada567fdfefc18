//! Goals of people ("as fast as possible", "within 200 ms", "with the least energy") become objectives for the planner.
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

use std::collections::BTreeMap;

use mesh_proto::{
    intent::Problem,
    query::{Alternative, Objective},
};
use serde_json::Value as Json;

/// Components in a document.
pub const COMPONENTS_MAX: usize = 256;
/// Figures that are within this share of the best count as equal to it.
const EQUAL_SHARE: f64 = 1e-9;

/// What is to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// As little as possible.
    Minimum(Metric),
    /// At most so much, in the metric's unit.
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
}

impl Resource {
    /// Milliseconds and joules that the component takes here; `None` if it cannot run here.
    pub fn predict(&self, component: &Component) -> Option<(f64, f64)> {
        if component.memory_bytes > self.memory_bytes || self.cores <= 0.0 || self.speed <= 0.0 {
            return None;
        }
        let used = component.accelerators.iter().find_map(|a| self.accelerator.as_ref().filter(|own| own.name == *a));
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
        let figure = |key: &str| properties.get(key).and_then(Json::as_f64).filter(|v| v.is_finite() && *v > 0.0);
        let names = properties.get("accelerators").and_then(Json::as_array).into_iter().flatten();
        components.push(Component {
            name: name.clone(),
            work_core_seconds: figure("work_core_seconds").unwrap_or(1.0),
            parallelism: figure("parallelism").unwrap_or(1.0),
            memory_bytes: properties.get("memory_bytes").and_then(Json::as_u64).unwrap_or_default(),
            accelerators: names.filter_map(Json::as_str).map(str::to_owned).collect(),
            goals,
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
        }
    }

    /// What a platform of edge, HPC and accelerated nodes offers.
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

    fn trainer(goal: &str) -> Json {
        json!({"topology_template": {"node_templates": {"PositionClassifierTrainer": {
            "type": "serrano.nodes.PositionClassifierTrainer",
            "properties": {
                "work_core_seconds": 12.0, "parallelism": 64, "memory_bytes": 2 * GB,
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
        let objective = one(&trainer("</= 4 s"), &platform);
        assert_eq!((objective.kind.as_str(), named(&objective)), ("bound", vec!["hpc", "edge"]));
        assert_eq!(objective.bound, 4_000.0);
        assert!(objective.alternatives.iter().all(|a| a.predicted <= 4_000.0 && !a.cluster_selector.is_empty()));
    }

    #[test]
    fn golden_case_3_lowest_energy_of_the_market_analysis_is_the_u50_accelerator() {
        let mut platform = platform();
        let u50 = Accelerator { name: "u50".into(), speedup: 40.0, watts: 50.0 };
        platform.push(Resource { accelerator: Some(u50), ..resource("u50", 8.0, 1.0, 30.0, 10.0) });
        let document = json!({"MarketAnalysis": {"properties": {
            "work_core_seconds": 12.0, "parallelism": 8, "accelerators": ["u50"],
            "intent": {"Energy": {"Energy_Consumption": "minimum"}},
        }}});
        let objective = one(&document, &platform);
        assert_eq!((objective.metric.as_str(), named(&objective)), ("energy", vec!["u50"]));
        assert_eq!(objective.alternatives[0].predicted, 24.0);
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
