//! Compiles every test program at once and runs several side by side: most of them wait for servers most of the time.
//! Says at the end what failed, and which suites did not run, why, and what to do.

#![expect(clippy::disallowed_methods, reason = "a developer's program measures how long tests take")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde::Deserialize;

/// How many programs run at the same time. Within one, cargo's test harness runs one test per core.
const SIDE_BY_SIDE: usize = 2;

/// Programs that take longest, in the order in which they start; the others follow, the largest first.
const FIRST: &[&str] =
    &["integration-tests/mesh", "integration-tests/simulation", "gateway/mesh", "secure-storage/mesh"];

/// What `make setup-test` installs must be there: a suite that lacks it fails the run.
const INSTALLABLE: &[&str] = &["make setup-test", "install.sh", "database.sh install", "nats-server"];

/// A compiled test program.
#[derive(Clone, Debug, PartialEq)]
struct Program {
    /// Package and target: `mesh-kit/reader`, or `mesh-kit` for the tests within the library.
    name: String,
    file: PathBuf,
    /// Folder of the package, in which cargo runs it.
    folder: PathBuf,
}

/// How a program ended.
struct Outcome {
    name: String,
    passed: bool,
    took: Duration,
    output: String,
}

/// Runs `cargo xtask test`; the arguments are cargo's, and after `--` those of the test programs.
///
/// # Errors
/// When something does not compile, a test fails, or a suite lacks what `make setup-test` installs.
#[allow(clippy::print_stdout)]
pub fn run(root: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let (cargo, own) = match arguments.iter().position(|argument| *argument == "--") {
        Some(at) => (&arguments[..at], &arguments[at + 1..]),
        None => (arguments, &[][..]),
    };
    let start = Instant::now();
    let programs = compile(root, cargo)?;
    println!("{} test programs, compiled in {} s", programs.len(), start.elapsed().as_secs());
    let start = Instant::now();
    let outcomes = run_all(&programs, own);
    println!("\nran in {} s; the longest:", start.elapsed().as_secs());
    let mut longest: Vec<&Outcome> = outcomes.iter().collect();
    longest.sort_by_key(|outcome| std::cmp::Reverse(outcome.took));
    for outcome in longest.iter().take(8) {
        println!("  {:>5.1} s  {}", outcome.took.as_secs_f64(), outcome.name);
    }
    let outputs = || outcomes.iter().map(|outcome| outcome.output.as_str());
    let with = lines_from("RAN: ", outputs());
    if !with.is_empty() {
        println!("suites that ran with servers beside nats-server:");
        with.keys().for_each(|line| println!("  {}", line.trim_start_matches("RAN: ")));
    }
    let skipped = lines_from("SKIPPED", outputs());
    if skipped.is_empty() {
        println!("every suite ran");
    } else {
        println!("suites that did not run:");
        for (line, times) in &skipped {
            println!("  {line}{}", if *times > 1 { format!(" ({times} times)") } else { String::new() });
        }
    }
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
    if !failed.is_empty() {
        let lines: Vec<String> = failed.iter().map(|outcome| summary_of_failure(outcome)).collect();
        bail!("{} of {} test programs failed:\n{}", failed.len(), outcomes.len(), lines.join("\n"));
    }
    if skipped.keys().any(|line| INSTALLABLE.iter().any(|what| line.contains(what))) {
        bail!("suites did not run that need only what `make setup-test` installs: run it, and see what it says");
    }
    Ok(())
}

/// Compiles the test programs and returns them in the order in which they start.
fn compile(root: &Path, arguments: &[&str]) -> anyhow::Result<Vec<Program>> {
    let built = crate::cargo()
        .args(["test", "--no-run", "--message-format=json-render-diagnostics"])
        .args(arguments)
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    if !built.status.success() {
        bail!("the tests do not compile");
    }
    let text = String::from_utf8_lossy(&built.stdout);
    let mut programs: Vec<Program> = text.lines().filter_map(program).collect();
    let rank = |name: &str| FIRST.iter().position(|first| *first == name).unwrap_or(FIRST.len());
    let size = |file: &Path| std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    programs.sort_by_cached_key(|p| (rank(&p.name), std::cmp::Reverse(size(&p.file)), p.name.clone()));
    Ok(programs)
}

/// The test program that a line of cargo's tells of.
fn program(line: &str) -> Option<Program> {
    #[derive(Deserialize)]
    struct Artifact {
        reason: String,
        manifest_path: PathBuf,
        target: Target,
        profile: Profile,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    let artifact: Artifact = serde_json::from_str(line).ok()?;
    if artifact.reason != "compiler-artifact" || !artifact.profile.test {
        return None;
    }
    let folder = artifact.manifest_path.parent()?.to_owned();
    let package = folder.file_name()?.to_string_lossy().into_owned();
    let within = artifact.target.kind.iter().any(|kind| kind == "lib");
    let name = if within { package } else { format!("{package}/{}", artifact.target.name) };
    Some(Program { name, file: artifact.executable?, folder })
}

/// Runs the programs, [`SIDE_BY_SIDE`] at a time, and prints what each said when it has ended.
#[allow(clippy::print_stdout)]
fn run_all(programs: &[Program], arguments: &[&str]) -> Vec<Outcome> {
    let next = Mutex::new(programs.iter());
    let outcomes = Mutex::new(Vec::with_capacity(programs.len()));
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                // The lock is not held while a program runs.
                let take = || locked(&next).next();
                while let Some(program) = take() {
                    let outcome = run_one(program, arguments);
                    let mut outcomes = locked(&outcomes);
                    println!(
                        "\n{}, {:.1} s\n{}",
                        outcome.name,
                        outcome.took.as_secs_f64(),
                        shown(&outcome.output).trim()
                    );
                    outcomes.push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn run_one(program: &Program, arguments: &[&str]) -> Outcome {
    let start = Instant::now();
    let ended = Command::new(&program.file)
        .arg("--show-output")
        .args(arguments)
        .current_dir(&program.folder)
        .env("CARGO_MANIFEST_DIR", &program.folder)
        .stdin(Stdio::null())
        .output();
    let (passed, output) = match ended {
        Ok(ended) => {
            let mut output = String::from_utf8_lossy(&ended.stdout).into_owned();
            output.push_str(&String::from_utf8_lossy(&ended.stderr));
            if ended.status.code().is_none() {
                output.push_str(&format!("ended with {}\n", ended.status));
            }
            (ended.status.success(), output)
        }
        Err(error) => (false, format!("cannot be started: {error}\n")),
    };
    Outcome { name: program.name.clone(), passed, took: start.elapsed(), output }
}

/// What a program printed, without what its passing tests printed.
fn shown(output: &str) -> String {
    let mut hidden = false;
    let mut shown = String::new();
    for line in output.lines() {
        if line == "successes:" {
            hidden = true;
        } else if line == "failures:" || line.starts_with("test result:") {
            hidden = false;
        }
        if !hidden && !line.is_empty() {
            shown.push_str(line);
            shown.push('\n');
        }
    }
    shown
}

/// What suites say of themselves after this word, each line with how often it was said.
fn lines_from<'a>(word: &str, outputs: impl Iterator<Item = &'a str>) -> BTreeMap<String, usize> {
    let mut said = BTreeMap::new();
    for line in outputs.flat_map(str::lines) {
        if let Some(at) = line.find(word) {
            *said.entry(line[at..].to_owned()).or_default() += 1;
        }
    }
    said
}

/// A failed program and its failed tests.
fn summary_of_failure(outcome: &Outcome) -> String {
    let tests: Vec<&str> =
        outcome.output.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED")).collect();
    if tests.is_empty() {
        return format!("  {}: it did not end as a test program does", outcome.name);
    }
    tests.iter().map(|test| format!("  {}: {test}", outcome.name)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(kind: &str, test: bool) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","package_id":"x","manifest_path":"/r/libs/mesh-kit/Cargo.toml",
            "target":{{"kind":["{kind}"],"name":"reader","src_path":"y"}},"profile":{{"test":{test}}},
            "executable":"/r/target/debug/deps/reader-1","fresh":true}}"#
        )
        .replace('\n', "")
    }

    #[test]
    fn a_test_program_is_named_after_its_package_and_target() {
        let found = program(&artifact("test", true)).unwrap();
        assert_eq!(found.name, "mesh-kit/reader");
        assert_eq!(found.folder, Path::new("/r/libs/mesh-kit"));
        assert_eq!(program(&artifact("lib", true)).unwrap().name, "mesh-kit");
    }

    #[test]
    fn what_is_no_test_program_is_left_out() {
        assert_eq!(program(&artifact("bin", false)), None);
        assert_eq!(program(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(program("Compiling mesh-kit"), None);
    }

    #[test]
    fn what_passing_tests_print_is_hidden_and_a_failure_shown() {
        let output = "running 2 tests\nsuccesses:\n\n---- a stdout ----\nSKIPPED: b: no c\n\nfailures:\nwhy\ntest result: FAILED.";
        assert_eq!(shown(output), "running 2 tests\nfailures:\nwhy\ntest result: FAILED.\n");
        let skipped = lines_from("SKIPPED", [output, output].into_iter());
        assert_eq!(skipped, BTreeMap::from([("SKIPPED: b: no c".to_owned(), 2)]));
    }

    #[test]
    fn a_failure_names_its_tests() {
        let output = "test a ... ok\ntest b::c ... FAILED\n".to_owned();
        let mut outcome = Outcome { name: "p/t".to_owned(), passed: false, took: Duration::ZERO, output };
        assert_eq!(summary_of_failure(&outcome), "  p/t: b::c");
        outcome.output = "ended with signal: 6 (SIGABRT)".to_owned();
        assert!(summary_of_failure(&outcome).contains("did not end"));
    }

    #[test]
    fn programs_run_side_by_side_and_every_one_is_run_though_one_fails() {
        let folder = tempfile::tempdir().unwrap();
        let programs: Vec<Program> = ["exit 1", "echo done", "kill -9 $$"]
            .iter()
            .enumerate()
            .map(|(number, body)| {
                use std::os::unix::fs::PermissionsExt as _;
                let file = folder.path().join(number.to_string());
                std::fs::write(&file, format!("#!/bin/sh\n{body}\n")).unwrap();
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
                Program { name: number.to_string(), file, folder: folder.path().to_owned() }
            })
            .collect();
        let mut outcomes = run_all(&programs, &[]);
        outcomes.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(outcomes.iter().map(|o| o.passed).collect::<Vec<_>>(), [false, true, false]);
        assert!(outcomes[2].output.contains("signal: 9"));
    }
}
