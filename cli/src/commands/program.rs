//! `demo` and `bench`: programs of their own, so that nobody builds them who does not run them.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, bail};
use clap::ValueEnum as _;

use crate::{context::Context, output::Format};

/// Replaces this process with a program that lies beside it.
///
/// # Errors
/// When the program is not built, or cannot be started.
pub fn run(context: &Context<'_>, program: &str, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let this = std::env::current_exe().context("find this program")?;
    let error = command(&this, context, program, arguments)?.exec();
    Err(error).with_context(|| format!("start {program}"))
}

/// The program's command line: what `continuum` was given for all commands, then its own arguments.
fn command(this: &Path, context: &Context<'_>, program: &str, arguments: &[OsString]) -> anyhow::Result<Command> {
    let path = this.with_file_name(program);
    if !path.is_file() {
        bail!(
            "{} does not exist; build it in a checkout with `cargo build --package {program}` (packages ship only the demo)",
            path.display()
        );
    }
    let mut command = Command::new(path);
    command.arg("--data-dir").arg(context.data_dir);
    // The program's own arguments may name another one, which is why the default is not passed on.
    if context.format != Format::Table
        && let Some(format) = context.format.to_possible_value()
    {
        command.arg("--output").arg(format.get_name());
    }
    command.args(arguments);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_beside_this_one_and_gets_every_argument() {
        let folder = tempfile::tempdir().unwrap();
        let this = folder.path().join("continuum");
        let context = Context { data_dir: Path::new("data"), format: Format::Json, owner: "local".into() };
        let arguments = ["intents".into(), "--full".into()];
        let missing = command(&this, &context, "continuum-bench", &arguments).unwrap_err().to_string();
        assert!(missing.contains("cargo build --package continuum-bench"), "{missing}");
        std::fs::write(folder.path().join("continuum-bench"), "").unwrap();
        let found = command(&this, &context, "continuum-bench", &arguments).unwrap();
        assert_eq!(found.get_program(), folder.path().join("continuum-bench"));
        let passed: Vec<_> = found.get_args().collect();
        assert_eq!(passed, ["--data-dir", "data", "--output", "json", "intents", "--full"]);
    }
}
