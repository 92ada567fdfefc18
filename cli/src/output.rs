//! What a person or a script reads: tables, JSON or YAML on standard output, errors on standard error.

use std::{
    borrow::Cow,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use mesh_proto::{Timestamp, shown};
use serde_json::Value as Json;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for a person.
    Table,
    /// JSON, one document.
    Json,
    /// YAML, one document.
    Yaml,
}

/// Writes lines for a person or a script. What in them acts on a terminal is written out: much of it is text of others.
pub fn line(text: impl AsRef<str>) {
    write(&shown::lines(text.as_ref()));
}

/// Empties a terminal and writes lines.
pub fn screen(text: &str) {
    let clear = if std::io::stdout().is_terminal() { "\u{1b}[H\u{1b}[2J" } else { "" };
    write(&format!("{clear}{}", shown::lines(text)));
}

fn write(text: &str) {
    // A closed pipe is the reader's wish to stop, not an error.
    if writeln!(std::io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// Writes a note to standard error.
#[allow(clippy::print_stderr)]
pub fn note(text: impl AsRef<str>) {
    eprintln!("{}", shown::lines(text.as_ref()));
}

/// Writes an error with its causes; gives the exit code of a failed command.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    let mut text = format!("continuum: {error}");
    for cause in error.chain().skip(1) {
        text.push_str(&format!(": {cause}"));
    }
    note(text);
    let refused = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(mesh_client::Error::Refused { refusal, .. }) => Some(refusal.code.exit()),
        _ => None,
    });
    ExitCode::from(refused.unwrap_or(1))
}

/// Runs a program to its end on a runtime of its own; writes its error.
pub fn run(program: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("start the runtime")),
    };
    let code = runtime.block_on(program).unwrap_or_else(|error| fail(&error));
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    code
}

/// Writes a value as asked: a table by `rows`, else the value itself.
pub fn show(format: Format, value: &Json, header: &[&str], rows: impl FnOnce() -> Vec<Vec<String>>) {
    match format {
        Format::Table => line(table(header, rows())),
        Format::Json => line(json(value)),
        Format::Yaml => line(yaml(value).trim_end()),
    }
}

/// A JSON value for people and scripts.
pub fn json(value: &Json) -> String {
    shown::json(&format!("{value:#}")).into_owned()
}

/// A table without borders.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().map(|h| h.to_uppercase()));
    for row in rows {
        // A line feed in a cell would look like another row.
        table.add_row(row.iter().map(|cell| shown::line(cell)));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A JSON value as YAML.
pub fn yaml(value: &Json) -> String {
    let text = serde_saphyr::to_string(value).unwrap_or_default();
    match shown::lines(&text) {
        Cow::Borrowed(_) => text,
        // Only in JSON, which is YAML, can all that acts on a terminal be escaped anywhere.
        Cow::Owned(_) => json(value),
    }
}

/// What a command shows.
pub struct Shown {
    /// For scripts.
    pub value: Json,
    /// For people.
    pub text: String,
}

impl Shown {
    /// A table, and the same for scripts.
    pub fn table(value: Json, header: &[&str], rows: Vec<Vec<String>>) -> Self {
        Self { value, text: table(header, rows) }
    }
}

/// Writes one of many: a line for people, a line of JSON, or a YAML document.
pub fn event(format: Format, value: &Json, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    match format {
        Format::Table => line(text()),
        Format::Json => line(shown::json(&serde_json::to_string(value)?)),
        Format::Yaml => line(format!("---\n{}", yaml(value).trim_end())),
    }
    Ok(())
}

/// Time of day, UTC, with milliseconds.
pub fn clock(time: Timestamp) -> String {
    let day = time.as_millis().rem_euclid(86_400_000);
    let (hours, minutes, seconds) = (day / 3_600_000, day / 60_000 % 60, day / 1_000 % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:03}", day % 1_000)
}

/// Date and time, UTC, to the second.
pub fn date(time: Timestamp) -> String {
    let seconds = Timestamp::from_millis(time.as_millis().div_euclid(1_000) * 1_000);
    seconds.to_string()
}

/// Fields of a value, one a row, nested names joined by dots.
pub fn fields(value: &Json) -> Vec<Vec<String>> {
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
pub fn plain(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Where a value comes from, in a table; `-` when nothing states it.
pub fn provenance(provenance: mesh_proto::telemetry::Provenance) -> String {
    use mesh_proto::telemetry::Provenance;
    match provenance {
        Provenance::Unspecified => "-",
        Provenance::Measured => "measured",
        Provenance::Modelled => "modelled",
        Provenance::Declared => "declared",
    }
    .to_owned()
}

/// Megabytes (10^6 bytes), for people.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HOSTILE: &str = "\u{1b}[2Ja\u{202e}b\u{9b}c\nd";

    #[test]
    fn text_of_others_is_written_out_in_every_format() {
        let acts = |text: &str| text.contains(['\u{1b}', '\u{202e}', '\u{9b}']);
        let shown = table(&["name", "reason"], vec![vec![HOSTILE.into(), "fine".into()]]);
        assert!(!acts(&shown) && shown.lines().count() == 2, "{shown}");
        assert!(shown.contains("\\u{1b}[2Ja\\u{202e}b\\u{9b}c\\nd"), "{shown}");
        let value = json!({"reason": HOSTILE, HOSTILE: [1, HOSTILE]});
        assert!(!acts(&super::json(&value)));
        assert_eq!(serde_json::from_str::<Json>(&super::json(&value)).unwrap(), value);
        let written = yaml(&value);
        assert!(!acts(&written), "{written}");
        assert_eq!(mesh_proto::Written::yaml(&written).unwrap().into_json(), value);
        assert_eq!(yaml(&json!({"a": "ü"})), "a: ü\n");
    }
}
