//! What a person or a script reads: tables, JSON or YAML on standard output, errors on standard error.

use std::process::ExitCode;

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde_json::Value as Json;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for a person.
    Table,
    /// JSON, one document.
    Json,
    /// YAML, one document.
    Yaml,
}

/// Writes a line for a person or a script.
#[allow(clippy::print_stdout)]
pub(crate) fn line(text: impl AsRef<str>) {
    use std::io::Write as _;
    // A closed pipe is the reader's wish to stop, not an error.
    if writeln!(std::io::stdout(), "{}", text.as_ref()).is_err() {
        std::process::exit(0);
    }
}

/// Writes a note to standard error.
#[allow(clippy::print_stderr)]
pub(crate) fn note(text: impl AsRef<str>) {
    eprintln!("{}", text.as_ref());
}

/// Writes an error with its causes; gives the exit code of a failed command.
pub(crate) fn fail(error: &anyhow::Error) -> ExitCode {
    let mut text = format!("continuum: {error}");
    for cause in error.chain().skip(1) {
        text.push_str(&format!(": {cause}"));
    }
    note(text);
    ExitCode::from(1)
}

/// Writes a value as asked: a table by `rows`, else the value itself.
pub(crate) fn show(format: Format, value: &Json, header: &[&str], rows: impl FnOnce() -> Vec<Vec<String>>) {
    match format {
        Format::Table => line(table(header, rows())),
        Format::Json => line(serde_json::to_string_pretty(value).unwrap_or_default()),
        Format::Yaml => line(yaml(value).trim_end()),
    }
}

/// A table without borders.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().map(|h| h.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A JSON value as YAML.
pub(crate) fn yaml(value: &Json) -> String {
    serde_saphyr::to_string(value).unwrap_or_default()
}
