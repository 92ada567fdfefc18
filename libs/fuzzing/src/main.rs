//! `fuzz`: the long form. `fuzz [--target NAME] [--cases N] [--seed N]`; every target, 1,000,000 cases, seed 1 when absent.
//! An input that makes a target panic is written out, as a literal for a test.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

use fuzzing::{run, targets};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mut wanted, mut cases, mut seed) = (None, 1_000_000, 1);
    for pair in arguments.chunks(2) {
        match pair {
            [name, value] if name == "--target" => wanted = Some(value.as_str()),
            [name, value] if name == "--cases" && value.parse::<u64>().is_ok() => {
                cases = value.parse().unwrap_or(cases)
            }
            [name, value] if name == "--seed" && value.parse::<u64>().is_ok() => seed = value.parse().unwrap_or(seed),
            other => {
                eprintln!("fuzz: what is {other:?}? use --target NAME, --cases N, --seed N");
                return ExitCode::from(64);
            }
        }
    }
    let chosen: Vec<_> = targets().filter(|target| wanted.is_none_or(|name| name == target.name)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = targets().map(|target| target.name).collect();
        eprintln!("fuzz: no such target; there are {}", names.join(", "));
        return ExitCode::from(64);
    }
    let mut failed = false;
    for target in chosen {
        let mut last = vec![];
        let tried = catch_unwind(AssertUnwindSafe(|| run(target, seed, cases, |input| input.clone_into(&mut last))));
        match tried {
            Ok(read) => println!("{:<16} {cases} cases, {read} read", target.name),
            Err(_) => {
                failed = true;
                println!("{:<16} PANICS on b\"{}\"", target.name, last.escape_ascii());
            }
        }
    }
    ExitCode::from(u8::from(failed))
}
