//! Tasks of this repository that a shell script would do worse. Each is a subcommand and a module.

pub mod configuration;
#[path = "../../proto/src/contract.rs"]
pub mod contract;
pub mod generate;
#[path = "../../proto/src/summary.rs"]
pub mod summary;
pub mod test;
pub mod tidy;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A subcommand: its name, its arguments for the usage text, what it does, and the function that does it.
type Task = (&'static str, &'static str, &'static str, fn(&Path, &[&str]) -> anyhow::Result<()>);

/// Every subcommand.
const TASKS: &[Task] = &[
    ("config", "[--check]", "write docs/reference/configuration.md; --check only compares", configuration::run),
    ("gen", "[--check]", "write what is generated from the contract; --check only compares", generate::run),
    ("test", "[ARGUMENTS]", "run tests, several programs at a time; the arguments are cargo's", test::run),
    ("tidy", "[--all]", "check borders, names and English; --all also prints findings that are allowed", tidy::run),
];

/// Runs the subcommand that the arguments name.
///
/// # Errors
/// When there is no such subcommand, or it fails.
pub fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let (name, rest) = arguments.split_first().map_or(("", arguments), |(name, rest)| (*name, rest));
    match TASKS.iter().find(|task| task.0 == name) {
        Some((.., task)) => task(&root(), rest),
        None => anyhow::bail!("unknown task {name:?}; the tasks are:\n{}", usage()),
    }
}

fn usage() -> String {
    TASKS
        .iter()
        .map(|(name, arguments, about, _)| format!("  {:24} {about}\n", format!("{name} {arguments}")))
        .collect()
}

/// Cargo, as a person would start it: without what the cargo that runs this task says of it. Some build scripts look at
/// that, and their crates would be compiled again.
#[expect(clippy::disallowed_methods, reason = "cargo's own variables, read by a developer's program")]
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let about_this = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_", "OUT_DIR"];
        if name.to_str().is_some_and(|name| about_this.iter().any(|about| name.starts_with(about))) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}
