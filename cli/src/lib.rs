//! The commands of `continuum`, as a library: the program, the demo and the benchmarks share them.
//!
//! - [`args`]: the command line; [`run`]: one command of it;
//! - [`commands`]: one module per noun; each owns its part of the command line;
//! - [`context`], [`outcome`], [`output`]: what commands get, what came of them, how it is written;
//! - [`document`]: files that people write; [`examples`]: where those lie that come with it; [`http`]: one request;
//! - [`nats_context`]: what `up` leaves for the NATS command line.
//!
//! It imports the inside of no service, and runs none: the program alone links `mesh-all`.

#![allow(clippy::disallowed_methods, reason = "commands for people: they draw ids, read the environment and measure")]

pub mod args;
pub mod commands;
pub mod context;
pub mod document;
pub mod examples;
pub mod http;
pub mod nats_context;
pub mod outcome;
pub mod output;

use std::process::ExitCode;

use anyhow::bail;

use args::{Arguments, Command};
use commands::{
    account, alto, anomaly, backup, cluster, dead, doctor, intent, learn, login, manual, network, program, provision,
    remedy, status, storage, tap, telemetry, twin, up, why, workload,
};
use context::Context;

/// Runs one command. `up` is the program's own: it runs the services.
///
/// # Errors
/// When the command fails; the error names what to do.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { data_dir, output, owner, command } = arguments;
    let context = Context { data_dir: &data_dir, format: output, owner };
    match command {
        Command::Up(_) => bail!("only the program `continuum` starts a mesh"),
        Command::Down => up::down(&data_dir).await,
        Command::Demo { arguments } => program::run(&context, "continuum-demo", &arguments),
        Command::Bench { arguments } => program::run(&context, "continuum-bench", &arguments),
        Command::Status(watch) => status::run(&context, watch).await,
        Command::Doctor => doctor::run(&context).await,
        Command::Cluster(command) => cluster::run(&context, command).await,
        Command::Workload(command) => workload::run(&context, command).await,
        Command::Intent(command) => intent::run(&context, command).await,
        Command::Why(options) => why::run(&context, options).await,
        Command::Storage(command) => storage::run(&context, command).await,
        Command::Twin(command) => twin::run(&context, command).await,
        Command::Telemetry(command) => telemetry::run(&context, command).await,
        Command::Top(options) => telemetry::top(&context, options).await,
        Command::Account(command) => account::run(&context, command).await,
        Command::Learn(command) => learn::run(&context, command).await,
        Command::Anomaly(command) => anomaly::run(&context, command).await,
        Command::Remedy(command) => remedy::run(&context, command).await,
        Command::Network(command) => network::run(&context, command).await,
        Command::Alto(command) => alto::run(&context, command).await,
        Command::Login(options) => login::login(&context, options).await,
        Command::Logout => login::logout(&context).await,
        Command::Token => login::print_token(&context).await,
        Command::Tap(options) => tap::run(&context, options).await,
        Command::Dead(command) => dead::run(&context, command).await,
        Command::Backup(command) => backup::run(&context, command).await,
        Command::Provision(options) => provision::run(&data_dir, options, output).await,
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { folder } => manual::man(folder.as_deref()),
    }
}
