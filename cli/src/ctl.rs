//! `continuumctl`: every command of `continuum` but `up`, without the services. It is what the image of that name holds.

#![allow(clippy::disallowed_methods, reason = "a program for people: it reads its environment and measures")]

use std::process::ExitCode;

use clap::Parser as _;
use continuum::{args::Arguments, output};

mesh_kit::allocator!();

fn main() -> ExitCode {
    output::run(continuum::run(Arguments::parse()))
}
