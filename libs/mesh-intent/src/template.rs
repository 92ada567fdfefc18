//! Intents in few words: a type, an instance, targets and times, written out by the table of types.

use mesh_proto::{
    Timestamp,
    intent::{ExpectationObject, ExpectationTarget, Intent, IntentExpectation, Problem},
};

use crate::{ObjectKind, types, window};

/// An intent in few words.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Template {
    /// UUID of a running instance, or `name@version` of a workload document.
    pub instance_id: String,
    /// Its type, or an alias of it.
    pub intent_type: String,
    /// When it begins; at once when there is none.
    pub start: Option<Timestamp>,
    /// When it ends; never when there is none.
    pub end: Option<Timestamp>,
    /// Names, conditions and value ranges.
    pub targets: Vec<ExpectationTarget>,
}

/// Writes a template out: one expectation, with the type's verb and object. Its content is not judged here.
///
/// # Errors
/// A type that there is not, or one that is not about workloads.
pub fn write_out(template: &Template) -> Result<Intent, Problem> {
    let labels = || types::TYPES.iter().filter(|t| t.kind() == ObjectKind::Workload).map(|t| t.label);
    let problem = |reason: String| Problem {
        path: "intentType".into(),
        reason,
        hint: format!("use one of {}", labels().collect::<Vec<_>>().join(", ")),
    };
    let head: String = template.intent_type.chars().take(64).collect();
    let Some(kind) = types::of_label(&template.intent_type) else {
        return Err(problem(format!("{head:?} is not a type of intent")));
    };
    if kind.kind() != ObjectKind::Workload {
        return Err(problem(format!("{} is about networks, which a template cannot say", kind.label)));
    }
    // What runs already is kept so; what is to run is delivered.
    let verb = if template.instance_id.contains('@') { "DELIVER" } else { "ENSURE" };
    let times = [template.start.map(window::start_context), template.end.map(window::end_context)];
    Ok(Intent {
        user_label: kind.label.into(),
        intent_expectations: vec![IntentExpectation {
            expectation_id: "1".into(),
            expectation_verb: verb.into(),
            expectation_object: Some(ExpectationObject {
                object_type: kind.objects.first().map_or("", |o| o.name).into(),
                object_instance: template.instance_id.clone(),
                ..Default::default()
            }),
            expectation_targets: template.targets.clone(),
            ..Default::default()
        }],
        intent_contexts: times.into_iter().flatten().collect(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::Window;

    #[test]
    fn every_type_about_workloads_can_be_said_as_a_template() {
        for kind in types::TYPES.iter().filter(|t| t.kind() == ObjectKind::Workload) {
            let template = Template {
                instance_id: "b6a77b9a-4cb2-41e9-953b-0a0b569c8cdb".into(),
                intent_type: kind.label.into(),
                start: Some(Timestamp::from_millis(1_800_000_000_000)),
                end: Some(Timestamp::from_millis(1_800_000_001_000)),
                targets: vec![],
            };
            let intent = write_out(&template).unwrap();
            assert_eq!(intent.user_label, kind.label);
            assert_eq!(intent.intent_expectations[0].expectation_verb, "ENSURE");
            assert_eq!(Window::of(&intent), Ok(Window { start: template.start, end: template.end }));
        }
    }

    #[test]
    fn a_type_that_there_is_not_says_which_there_are() {
        let of = |intent_type: &str| Template { intent_type: intent_type.into(), ..Default::default() };
        let unknown = write_out(&of("Teleportation")).unwrap_err();
        assert!(unknown.reason.contains("Teleportation") && unknown.hint.contains("SecureExecution"));
        assert!(write_out(&of("cloud_continuum")).unwrap_err().reason.contains("networks"));
    }
}
