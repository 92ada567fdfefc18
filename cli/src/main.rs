//! `continuum`: the one program a person types. It also runs the whole mesh in one process.

#![allow(clippy::disallowed_methods, reason = "a program for people: it reads its environment and measures")]

mod up;

use std::process::ExitCode;

use clap::Parser as _;
use continuum::{
    args::{Arguments, Command},
    output,
};

mesh_kit::allocator!();

fn main() -> ExitCode {
    output::run(async {
        let arguments = Arguments::parse();
        match arguments.command {
            Command::Up(options) => up::up(&arguments.data_dir, options).await,
            _ => continuum::run(arguments).await,
        }
    })
}
