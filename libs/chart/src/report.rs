//! The four checks put together, and what follows from them.

use mesh_proto::{
    intent::Problem,
    workload::{CheckOutcome, CheckReport, CheckStep},
};

use super::PROBLEMS_MAX;

/// The checks, in order.
pub const STEPS: [&str; 4] = ["structure", "template", "images", "ingress"];

/// A check that found nothing wrong.
pub fn passed(name: &str, reason: impl Into<String>) -> CheckStep {
    step(name, CheckOutcome::CheckPassed, reason, "", vec![])
}

/// A check that found what is wrong.
pub fn failed(name: &str, reason: impl Into<String>, problems: Vec<Problem>) -> CheckStep {
    let hint = problems.first().map(|p| p.hint.clone()).unwrap_or_default();
    step(name, CheckOutcome::CheckFailed, reason, &hint, problems)
}

/// A check that could not be made.
pub fn not_checked(name: &str, reason: impl Into<String>, hint: &str) -> CheckStep {
    step(name, CheckOutcome::NotChecked, reason, hint, vec![])
}

fn step(
    name: &str,
    outcome: CheckOutcome,
    reason: impl Into<String>,
    hint: &str,
    mut problems: Vec<Problem>,
) -> CheckStep {
    problems.truncate(PROBLEMS_MAX);
    CheckStep {
        name: name.to_owned(),
        outcome: outcome.into(),
        reason: reason.into(),
        hint: hint.to_owned(),
        problems,
        took_ms: 0,
    }
}

/// Steps that were not reached because one before them failed are not checked.
pub fn complete(mut steps: Vec<CheckStep>) -> Vec<CheckStep> {
    for name in STEPS.iter().skip(steps.len()) {
        let before = steps.iter().find(|s| s.outcome() != CheckOutcome::CheckPassed).map_or("", |s| s.name.as_str());
        let reason = format!("there is nothing to look at before the check {before} has passed");
        steps.push(not_checked(name, reason, "see that check"));
    }
    steps
}

/// Everything that rejects a chart: what its failed checks found. Empty: it is accepted.
pub fn objections(report: &CheckReport) -> Vec<Problem> {
    let mut found = vec![];
    for step in report.steps.iter().filter(|s| s.outcome() == CheckOutcome::CheckFailed) {
        if step.problems.is_empty() {
            let (reason, hint) = (step.reason.clone(), step.hint.clone());
            found.push(Problem { path: format!("chart.{}", step.name), reason, hint });
        }
        let each = step.problems.iter().cloned();
        found.extend(each.map(|p| Problem { path: format!("chart.{}: {}", step.name, p.path), ..p }));
    }
    // A report without its first check speaks of no chart.
    let first = report.steps.first().map(CheckStep::outcome);
    if found.is_empty() && first != Some(CheckOutcome::CheckPassed) {
        let (reason, hint) = ("its structure was not checked".to_owned(), "upload the chart again".to_owned());
        found.push(Problem { path: "chart.structure".into(), reason, hint });
    }
    found.truncate(PROBLEMS_MAX);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(steps: Vec<CheckStep>) -> CheckReport {
        CheckReport { steps: complete(steps), ..Default::default() }
    }

    #[test]
    fn what_could_not_be_checked_rejects_nothing_and_what_failed_does() {
        let fine = vec![passed("structure", ""), not_checked("template", "helm is not installed", "install it")];
        let fine = report(fine);
        assert_eq!(fine.steps.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), STEPS);
        assert!(fine.steps[3].reason.contains("before the check template"));
        assert_eq!(objections(&fine), []);
        let bad = Problem { path: "values.yaml".into(), reason: "r".into(), hint: "c".into() };
        let found = objections(&report(vec![failed("structure", "1 problem", vec![bad])]));
        assert_eq!((found.len(), found[0].path.as_str()), (1, "chart.structure: values.yaml"));
        let found = objections(&report(vec![passed("structure", ""), failed("template", "it did not render", vec![])]));
        assert_eq!((found[0].path.as_str(), found[0].reason.as_str()), ("chart.template", "it did not render"));
    }

    #[test]
    fn a_report_without_its_first_check_accepts_nothing() {
        assert_eq!(objections(&CheckReport::default())[0].path, "chart.structure");
        assert_eq!(objections(&report(vec![not_checked("structure", "", "")])).len(), 1);
    }
}
