//! What came of the commands that were sent, and the exit code that follows.

use std::process::ExitCode;

use mesh_proto::Refusal;
use serde_json::json;

use crate::output::{self, Format};

/// What came of one command.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// What it was about.
    pub id: String,
    /// Its version, if it has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Did it succeed?
    pub ok: bool,
    /// In a word.
    pub result: String,
    /// State of its object now.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// Why, if the result does not tell it all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What helps.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// Exit code if it was refused: that of the refusal's class.
    #[serde(skip)]
    pub exit: u8,
}

impl Outcome {
    /// One about this, with nothing come of it yet.
    pub fn of(id: &str) -> Self {
        Self { id: id.to_owned(), ..Self::default() }
    }

    /// One that was refused.
    pub fn refused(self, refusal: Refusal) -> Self {
        let Refusal { code, reason, hint } = refusal;
        Self { ok: false, result: "refused".into(), reason, hint, exit: code.exit(), ..self }
    }

    /// One that failed before anything was sent, or without an answer.
    pub fn failed(id: &str, error: &anyhow::Error) -> Self {
        Self { id: id.to_owned(), result: "failed".into(), reason: format!("{error:#}"), ..Self::default() }
    }
}

/// Shows what came of each command. The exit code is 0 only if all succeeded, else that of the first that failed.
pub fn conclude(format: Format, noun: &str, outcomes: &[Outcome]) -> ExitCode {
    output::show(format, &json!(outcomes), &[noun, "version", "result", "state", "reason"], || {
        let row =
            |o: &Outcome| vec![o.id.clone(), o.version.clone(), o.result.clone(), o.state.clone(), o.reason.clone()];
        outcomes.iter().map(row).collect()
    });
    for outcome in outcomes.iter().filter(|o| !o.ok) {
        let hint = if outcome.hint.is_empty() { String::new() } else { format!("; {}", outcome.hint) };
        let reason = if outcome.reason.is_empty() { String::new() } else { format!(": {}", outcome.reason) };
        output::note(format!("continuum: {} {} {}{reason}{hint}", noun, outcome.id, outcome.result));
    }
    ExitCode::from(outcomes.iter().find(|o| !o.ok).map_or(0, |failed| failed.exit.max(1)))
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::output::{clock, date, fields};

    #[test]
    fn a_failed_outcome_makes_the_exit_code_one() {
        let good = Outcome { ok: true, ..Outcome::default() };
        let bad = Outcome::failed("x", &anyhow!("no"));
        assert_eq!(
            format!("{:?}", conclude(Format::Json, "intent", std::slice::from_ref(&good))),
            format!("{:?}", ExitCode::from(0))
        );
        assert_eq!(format!("{:?}", conclude(Format::Json, "intent", &[good, bad])), format!("{:?}", ExitCode::from(1)));
    }

    #[test]
    fn a_refused_outcome_has_the_exit_code_of_its_class() {
        let refused = Outcome::of("x").refused(Refusal::denied("not yours", "ask its owner"));
        assert_eq!((refused.ok, refused.hint.as_str(), refused.exit), (false, "ask its owner", 77));
        assert_eq!(format!("{:?}", conclude(Format::Json, "intent", &[refused])), format!("{:?}", ExitCode::from(77)));
    }

    #[test]
    fn nested_fields_become_rows_with_dotted_names() {
        let rows = fields(&json!({"a": {"b": 1}, "c": ["x", "y"], "d": [{"e": true}]}));
        assert_eq!(rows, vec![vec!["a.b", "1"], vec!["c", "x, y"], vec!["d.0.e", "true"]]);
    }

    #[test]
    fn time_of_day_is_utc_with_milliseconds() {
        assert_eq!(clock("2026-11-22T05:21:22.123456Z".parse().unwrap()), "05:21:22.123");
        assert_eq!(date("2026-11-22T05:21:22.999Z".parse().unwrap()), "2026-11-22T05:21:22Z");
    }
}
