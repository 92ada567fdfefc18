//! The commands, one module per noun, and what they share.

pub(crate) mod account;
pub(crate) mod alto;
pub(crate) mod anomaly;
pub(crate) mod chart;
pub(crate) mod cluster;
pub(crate) mod dead;
pub(crate) mod doctor;
pub(crate) mod intent;
pub(crate) mod learn;
pub(crate) mod login;
pub(crate) mod network;
pub(crate) mod remedy;
pub(crate) mod status;
pub(crate) mod storage;
pub(crate) mod tap;
pub(crate) mod twin;
pub(crate) mod why;
pub(crate) mod workload;

use std::{io::IsTerminal as _, path::Path, process::ExitCode, time::Duration};

use anyhow::anyhow;
use mesh_core::Stored;
use mesh_proto::{
    Timestamp, account::AccountRefused, intent::IntentRefused, remedy::RemedyRefused, workload::WorkloadRefused,
};
pub(crate) use mesh_why::{address, body};
use serde_json::{Value as Json, json};
use tonic::{Code, Response, Status};

use crate::{
    client::Client,
    output::{self, Format, line},
};

/// How often a question is asked again while it is watched.
const WATCH_EVERY: Duration = Duration::from_millis(1_000);

/// What every command is told.
pub(crate) struct Context<'a> {
    /// Folder of the mesh.
    pub(crate) data_dir: &'a Path,
    /// How results are written.
    pub(crate) format: Format,
    /// Whose objects are meant.
    pub(crate) owner: String,
}

impl Context<'_> {
    /// Connects to the mesh.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        Client::connect(self.data_dir).await
    }
}

/// A message of the contract as JSON in its own spelling.
pub(crate) fn to_json<M: prost::Message>(message: &str, value: &M) -> Json {
    mesh_proto::json::to_value(message, &value.encode_to_vec()).unwrap_or_default()
}

/// The answer to a question, or an error that says what helps.
pub(crate) fn answer<T>(question: &str, answer: Result<Response<T>, Status>) -> anyhow::Result<T> {
    answer.map(Response::into_inner).map_err(|status| match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => {
            anyhow!("{question}: {}; see `continuum status`, then ask again", status.message())
        }
        _ => anyhow!("{question}: {}", status.message()),
    })
}

/// What a command shows.
pub(crate) struct Shown {
    /// For scripts.
    pub(crate) value: Json,
    /// For people.
    pub(crate) text: String,
}

impl Shown {
    /// A table, and the same for scripts.
    pub(crate) fn table(value: Json, header: &[&str], rows: Vec<Vec<String>>) -> Self {
        Self { value, text: output::table(header, rows) }
    }
}

/// Shows once, or again at every change until interrupted.
pub(crate) async fn show(
    context: &Context<'_>,
    watch: bool,
    mut read: impl AsyncFnMut() -> anyhow::Result<Shown>,
) -> anyhow::Result<ExitCode> {
    let mut before: Option<Json> = None;
    loop {
        let shown = read().await?;
        if !watch {
            match context.format {
                Format::Table => line(&shown.text),
                Format::Json => line(serde_json::to_string_pretty(&shown.value)?),
                Format::Yaml => line(output::yaml(&shown.value).trim_end()),
            }
            return Ok(ExitCode::SUCCESS);
        }
        if before.as_ref() != Some(&shown.value) {
            let clear = if std::io::stdout().is_terminal() { "\u{1b}[H\u{1b}[2J" } else { "" };
            match context.format {
                Format::Table => line(format!("{clear}{}\n", shown.text)),
                _ => event(context.format, &shown.value, String::new)?,
            }
            before = Some(shown.value);
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// Writes one of many: a line for people, a line of JSON, or a YAML document.
pub(crate) fn event(format: Format, value: &Json, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    match format {
        Format::Table => line(text()),
        Format::Json => line(serde_json::to_string(value)?),
        Format::Yaml => line(format!("---\n{}", output::yaml(value).trim_end())),
    }
    Ok(())
}

/// What came of one command.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Outcome {
    /// What it was about.
    pub(crate) id: String,
    /// Its version, if it has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) version: String,
    /// Did it succeed?
    pub(crate) ok: bool,
    /// In a word.
    pub(crate) result: String,
    /// State of its object now.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) state: String,
    /// Why, if there is more to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    /// What helps.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) hint: String,
}

impl Outcome {
    /// One that failed before anything was sent, or without an answer.
    pub(crate) fn failed(id: &str, error: &anyhow::Error) -> Self {
        Self { id: id.to_owned(), result: "failed".into(), reason: format!("{error:#}"), ..Self::default() }
    }
}

/// Shows what came of each command; success only if all succeeded.
pub(crate) fn conclude(format: Format, noun: &str, outcomes: &[Outcome]) -> ExitCode {
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
    ExitCode::from(u8::from(outcomes.iter().any(|o| !o.ok)))
}

/// Reason and hint, if a fact refuses a command.
pub(crate) fn refusal(stored: &Stored) -> Option<(String, String)> {
    if let Ok(Some(refused)) = stored.event::<IntentRefused>() {
        return Some((refused.reason, refused.hint));
    }
    if let Ok(Some(refused)) = stored.event::<AccountRefused>() {
        return Some((refused.reason, refused.hint));
    }
    if let Ok(Some(refused)) = stored.event::<RemedyRefused>() {
        return Some((refused.reason, refused.hint));
    }
    let refused = stored.event::<WorkloadRefused>().ok().flatten()?;
    Some((refused.reason, refused.hint))
}

/// Time of day, UTC, with milliseconds.
pub(crate) fn clock(time: Timestamp) -> String {
    let day = time.as_millis().rem_euclid(86_400_000);
    let (hours, minutes, seconds) = (day / 3_600_000, day / 60_000 % 60, day / 1_000 % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:03}", day % 1_000)
}

/// Date and time, UTC, to the second.
pub(crate) fn date(time: Timestamp) -> String {
    let seconds = Timestamp::from_millis(time.as_millis().div_euclid(1_000) * 1_000);
    seconds.to_string()
}

/// Fields of a value, one a row, nested names joined by dots.
pub(crate) fn fields(value: &Json) -> Vec<Vec<String>> {
    fn walk(name: &str, value: &Json, rows: &mut Vec<Vec<String>>) {
        let join = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        match value {
            Json::Object(object) => object.iter().for_each(|(key, inner)| walk(&join(key), inner, rows)),
            Json::Array(list) if list.iter().all(|v| !v.is_object() && !v.is_array()) => {
                rows.push(vec![name.to_owned(), list.iter().map(plain).collect::<Vec<_>>().join(", ")]);
            }
            Json::Array(list) => {
                list.iter().enumerate().for_each(|(i, inner)| walk(&join(&i.to_string()), inner, rows))
            }
            other => rows.push(vec![name.to_owned(), plain(other)]),
        }
    }
    let mut rows = vec![];
    walk("", value, &mut rows);
    rows
}

/// A plain value as text, strings without quotes.
pub(crate) fn plain(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Megabytes (10^6 bytes), for people.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
