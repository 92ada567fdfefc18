//! `completions` and `man`: what a shell and a manual know about the command line, both made out of its definition.

use std::{fs, path::Path, process::ExitCode};

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::{args::Arguments, output};

/// Writes the completions of a shell to standard output.
///
/// # Errors
/// Never; for uniformity with other commands.
pub fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut script = vec![];
    clap_complete::generate(shell, &mut Arguments::command(), "continuum", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Writes the manual page of the program to standard output, or that of each command into a folder, which is made.
///
/// # Errors
/// When the folder cannot be made, or a page not be written.
pub fn man(folder: Option<&Path>) -> anyhow::Result<ExitCode> {
    let Some(folder) = folder else {
        let mut page = vec![];
        clap_mangen::Man::new(Arguments::command()).render(&mut page).context("render the manual page")?;
        output::line(String::from_utf8_lossy(&page).trim_end());
        return Ok(ExitCode::SUCCESS);
    };
    let described = || folder.display().to_string();
    fs::create_dir_all(folder).with_context(|| format!("make the folder {}", described()))?;
    clap_mangen::generate_to(Arguments::command(), folder)
        .with_context(|| format!("write manual pages into {}", described()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_manual_page() {
        let folder = tempfile::tempdir().unwrap();
        let pages = folder.path().join("man1");
        man(Some(&pages)).unwrap();
        let main = fs::read_to_string(pages.join("continuum.1")).unwrap();
        for command in Arguments::command().get_subcommands() {
            let name = format!("continuum-{}", command.get_name());
            assert!(pages.join(format!("{name}.1")).is_file(), "{name}");
            assert!(main.contains(&name.replace('-', "\\-")), "{name} in the program's page");
        }
        assert!(pages.join("continuum-intent-submit.1").is_file());
    }

    #[test]
    fn a_folder_that_is_a_file_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = man(Some(file.path())).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}
