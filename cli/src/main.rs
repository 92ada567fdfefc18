//! `continuum`: the one binary a person types. It also runs the whole mesh in one process.

mod args;
mod bench;
mod client;
mod clusters;
mod commands;
mod demo;
mod document;
mod output;
mod provision;
mod relay;
mod up;

use std::process::ExitCode;

use clap::Parser as _;
use mesh_why::describe;

use crate::args::{Arguments, Command};

fn main() -> ExitCode {
    // A service of its own, which `up --processes` runs: it reads its command line as every service does.
    if std::env::args_os().nth(1).is_some_and(|first| first == "json-mirror") {
        let environment = mesh_kit::config::environment();
        return mesh_kit::run_with("json-mirror", std::env::args_os().skip(2), &environment, mesh_kit::mirror::start)
            .into();
    }
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::fail(&anyhow::Error::new(error).context("start the runtime")),
    };
    let code = match runtime.block_on(run(arguments)) {
        Ok(code) => code,
        Err(error) => output::fail(&error),
    };
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    code
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { data_dir, output, owner, command } = arguments;
    let context = commands::Context { data_dir: &data_dir, format: output, owner };
    match command {
        Command::Up(options) => up::up(&data_dir, options).await,
        Command::Down => up::down(&data_dir).await,
        Command::Demo(options) => demo::demo(&data_dir, options).await,
        Command::Status(watch) => commands::status::run(&context, watch).await,
        Command::Doctor => commands::doctor::run(&context).await,
        Command::Cluster(command) => commands::cluster::run(&context, command).await,
        Command::Workload(command) => commands::workload::run(&context, command).await,
        Command::Intent(command) => commands::intent::run(&context, command).await,
        Command::Why(options) => commands::why::run(&context, options).await,
        Command::Storage(command) => commands::storage::run(&context, command).await,
        Command::Twin(command) => commands::twin::run(&context, command).await,
        Command::Account(command) => commands::account::run(&context, command).await,
        Command::Learn(command) => commands::learn::run(&context, command).await,
        Command::Anomaly(command) => commands::anomaly::run(&context, command).await,
        Command::Remedy(command) => commands::remedy::run(&context, command).await,
        Command::Network(command) => commands::network::run(&context, command).await,
        Command::Alto(command) => commands::alto::run(&context, command).await,
        Command::Login(options) => commands::login::login(&context, options).await,
        Command::Logout => commands::login::logout(&context).await,
        Command::Token => commands::login::print_token(&context).await,
        Command::Tap(options) => commands::tap::run(&context, options).await,
        Command::Dead(command) => commands::dead::run(&context, command).await,
        Command::Bench(command) => bench::run(command, output).await,
        Command::Completions { shell } => {
            let mut command = <Arguments as clap::CommandFactory>::command();
            let mut script = vec![];
            clap_complete::generate(shell, &mut command, "continuum", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Command::Provision(options) => provision::run(&data_dir, options, output).await,
    }
}
