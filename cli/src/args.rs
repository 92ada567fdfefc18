//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{Parser, Subcommand};

use crate::{
    commands::{
        account::AccountCommand,
        alto::AltoCommand,
        anomaly::AnomalyCommand,
        backup::BackupCommand,
        cluster::ClusterCommand,
        dead::DeadCommand,
        intent::IntentCommand,
        learn::LearnCommand,
        login::LoginOptions,
        network::NetworkCommand,
        provision::ProvisionArguments,
        remedy::RemedyCommand,
        storage::StorageCommand,
        tap::TapOptions,
        telemetry::{TelemetryCommand, TopOptions},
        twin::TwinCommand,
        up::UpOptions,
        why::WhyOptions,
        workload::WorkloadCommand,
    },
    context::Watch,
    output::Format,
};

/// Continuum: declare what you want; the mesh validates, plans, runs, watches, repairs, and can explain why.
#[derive(Debug, Parser)]
#[command(name = "continuum", version, propagate_version = true)]
pub struct Arguments {
    /// Folder with the mesh's state, keys and endpoints file.
    #[arg(long, global = true, env = "CONTINUUM_DATA_DIR", default_value = ".continuum")]
    pub data_dir: PathBuf,
    /// How results are written.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub output: Format,
    /// Whose intents and workloads are meant.
    #[arg(long, global = true, env = "CONTINUUM_OWNER", default_value = mesh_client::OWNER)]
    pub owner: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Starts the whole mesh and keeps it running until stopped.
    Up(UpOptions),
    /// Stops a running mesh and prints what it kept.
    Down,
    /// Shows the main job end to end, with real processes (`continuum-demo`); fails if any expectation does not hold.
    #[command(disable_help_flag = true)]
    Demo {
        /// Passed on to `continuum-demo`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Services, streams, consumers with their lag, dead letters.
    Status(Watch),
    /// Prints OK, or each thing that is wrong and what to do about it.
    Doctor,
    /// Clusters and their capacity.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Workload documents and their instances.
    #[command(subcommand)]
    Workload(WorkloadCommand),
    /// Intents.
    #[command(subcommand)]
    Intent(IntentCommand),
    /// Explains why: each step with its time, writer, reason and cause; of a placement every candidate.
    Why(WhyOptions),
    /// Digital twins of workloads, nodes, clusters and networks, and of the continuum.
    #[command(subcommand)]
    Twin(TwinCommand),
    /// What is measured: values over time and as they come in, who measures, and how.
    #[command(subcommand)]
    Telemetry(TelemetryCommand),
    /// Agents, nodes and instances with their newest values, again and again.
    Top(TopOptions),
    /// Objects that survive: policies, locations, objects, scrubs.
    #[command(subcommand)]
    Storage(StorageCommand),
    /// The ledger: what was used, who owes what, and the proof of it.
    #[command(subcommand)]
    Account(AccountCommand),
    /// Learned advice beside the planner's choices; policies and rounds.
    #[command(subcommand)]
    Learn(LearnCommand),
    /// Anomalies of instances, with the metrics that are to blame.
    #[command(subcommand)]
    Anomaly(AnomalyCommand),
    /// What is done about anomalies, by your policy.
    #[command(subcommand)]
    Remedy(RemedyCommand),
    /// The network as it is measured, and network intents.
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Asks the ALTO server (RFC 7285): maps, costs between sites and addresses.
    #[command(subcommand)]
    Alto(AltoCommand),
    /// Shows live messages, decoded, with their headers.
    Tap(TapOptions),
    /// Dead letters: what could not be decoded or handled.
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Measures the mesh against its bounds (`continuum-bench`).
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on to `continuum-bench`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Signs in at the gateway; later commands renew the token by themselves.
    Login(LoginOptions),
    /// Ends the session.
    Logout,
    /// Prints a valid token, for `curl -H "Authorization: Bearer $(continuum token)"`.
    Token,
    /// Writes the completions of a shell to standard output.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Writes the manual page to standard output, or those of all commands into a folder.
    Man {
        /// Folder for one page of each command; it is made.
        folder: Option<PathBuf>,
    },
    /// Backups of the mesh: makes, verifies and restores them.
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Creates what the contract defines on the bus (streams, durables, buckets), or first renders its configuration.
    Provision(ProvisionArguments),
}

#[cfg(test)]
mod tests;
