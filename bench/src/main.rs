//! `continuum-bench`: what the mesh costs beside hand-written code, and whether the bounds hold. Raw and ours are measured
//! in turn, in one run, on one server that syncs every write.

#![allow(clippy::disallowed_methods, reason = "it measures")]

mod accepts;
mod account;
mod backup;
mod baseline;
mod bus;
mod cost;
mod fsync;
mod host;
mod intents;
mod learn;
mod many;
mod nab;
mod network;
mod overload;
mod proxy;
mod registry;
mod report;
mod rig;
mod sar;
mod slow_disk;
mod storage;
mod telemetry;
mod whole;

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::bail;
use clap::{Args, Parser, Subcommand};
use continuum::output::{self, Format, note};

use crate::report::{Bound, Length, Row, conclude};

mesh_kit::allocator!();

/// Measures the mesh against its bounds.
#[derive(Debug, Parser)]
#[command(name = "continuum bench", bin_name = "continuum bench", version)]
struct Arguments {
    /// Accepted for uniformity with other commands; every benchmark starts a mesh of its own.
    #[arg(long, global = true, default_value = ".continuum", hide = true)]
    data_dir: PathBuf,
    /// How results are written.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Format,
    /// What to measure.
    #[command(subcommand)]
    command: BenchCommand,
}

/// What is measured.
#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// The bus: throughput and latency against hand-written code, durability, recovery, and the whole mesh on it.
    Bus(BusOptions),
    /// Storage: put and get beside hash, cipher, code and disk, in one run.
    Storage(storage::StorageOptions),
    /// The bare server of files that storage is measured beside.
    #[command(hide = true)]
    BareFiles {
        /// Whose files.
        folder: PathBuf,
    },
    /// The collector that is measured.
    #[command(hide = true)]
    Collector {
        /// Its configuration.
        #[arg(last = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// The program by hand that the collector is measured beside.
    #[command(hide = true)]
    ByHand {
        /// Where it connects.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// The anomaly detector beside river's, on Shuttle in stream order.
    Sar(sar::SarOptions),
    /// The learner: its return on held-out seeds beside schedulers by rule, and what hostile members of a federation do.
    Learn(learn::LearnOptions),
    /// The ledger: windows folded in the core beside hashing alone, verification, and windows through the bus.
    Account(Length),
    /// Charts: archives read and refused, and charts pushed through a mesh.
    Registry(Length),
    /// Intents over REST beside bare axum and JetStream, and what the access check adds to a proxied request.
    Intents(intents::IntentsOptions),
    /// A registry of 10,000 intents (with --full of 100,000): pages of lists, restarts, memory.
    ManyIntents(Length),
    /// What one intent and one running instance cost: CPU, messages, sync calls, memory; with --against beside another build.
    Cost(cost::CostOptions),
    /// Backups of a mesh under load: what they delay, and how long they and a restore take.
    Backup(Length),
    /// Three times the intents that the mesh can take: what it plans, how soon, and what it answers to the rest.
    Overload(Length),
    /// What becomes of throughput when each sync of the disk takes 5 ms longer. Needs strace.
    SlowDisk(Length),
    /// Measuring: what it costs, how exact and how quick it is, beside hand-written code and other tools.
    Telemetry(telemetry::TelemetryOptions),
    /// Layer-2 segments as intents: made, carrying traffic, withdrawn. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
    Network(network::NetworkOptions),
}

/// Options of `bench bus`.
#[derive(Debug, Args)]
struct BusOptions {
    /// Full lengths, and the bounds as they are; without it under a minute, and bounds three times as wide.
    #[arg(long)]
    full: bool,
    /// Only these measurements, by number.
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    only: Vec<u8>,
}

const ROWS: std::ops::RangeInclusive<u8> = 1..=9;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let BenchCommand::Collector { arguments } = arguments.command {
        // A program of its own, with its own signals and logs.
        let none = std::collections::BTreeMap::new();
        return mesh_kit::run_with("collector", arguments, &none, collector::start).into();
    }
    output::run(run(arguments.command, arguments.output))
}

/// Runs a benchmark; exit code 1 if a bound does not hold.
async fn run(command: BenchCommand, format: Format) -> anyhow::Result<ExitCode> {
    let options = match command {
        BenchCommand::Bus(options) => options,
        BenchCommand::Storage(options) => return storage::run(options, format).await,
        BenchCommand::BareFiles { folder } => {
            storage::bare::serve(folder).await?;
            return Ok(ExitCode::SUCCESS);
        }
        BenchCommand::Collector { .. } => bail!("the collector is a program of its own"),
        BenchCommand::ByHand { arguments } => {
            telemetry::samples::by_hand(&arguments).await?;
            return Ok(ExitCode::SUCCESS);
        }
        BenchCommand::Account(Length { full }) => {
            let begun = Instant::now();
            return Ok(conclude(format, full, begun, account::measure(full).await?));
        }
        BenchCommand::Registry(Length { full }) => {
            let begun = Instant::now();
            return Ok(conclude(format, full, begun, registry::measure(full).await?));
        }
        BenchCommand::Intents(options) => {
            let begun = Instant::now();
            return Ok(conclude(format, options.length.full, begun, intents::measure(&options).await?));
        }
        BenchCommand::Cost(options) => {
            let begun = Instant::now();
            return Ok(conclude(format, options.length.full, begun, cost::measure(&options).await?));
        }
        BenchCommand::Backup(Length { full }) => {
            let begun = Instant::now();
            return Ok(conclude(format, full, begun, backup::measure(full).await?));
        }
        BenchCommand::Overload(Length { full }) => {
            let begun = Instant::now();
            return Ok(conclude(format, full, begun, overload::measure(full).await?));
        }
        BenchCommand::SlowDisk(Length { full }) => {
            let begun = Instant::now();
            return Ok(conclude(format, full, begun, slow_disk::measure(full).await?));
        }
        BenchCommand::ManyIntents(Length { full }) => {
            let begun = Instant::now();
            return Ok(conclude(format, full, begun, many::measure(full).await?));
        }
        BenchCommand::Telemetry(options) => {
            let begun = Instant::now();
            return Ok(conclude(format, options.length.full, begun, telemetry::measure(&options).await?));
        }
        BenchCommand::Learn(options) => return learn::run(options, format).await,
        BenchCommand::Sar(options) => return sar::run(options, format).await,
        BenchCommand::Network(options) => return network::run(&options, format).await,
    };
    if let Some(unknown) = options.only.iter().find(|n| !ROWS.contains(n)) {
        bail!("--only {unknown}: measurements are {} to {}", ROWS.start(), ROWS.end());
    }
    let only: BTreeSet<u8> =
        if options.only.is_empty() { ROWS.collect() } else { options.only.iter().copied().collect() };
    let begun = Instant::now();
    let mut rows = tokio::select! {
        rows = measure(options.full, &only, begun) => rows,
        // Servers and meshes that were started end with their measurement.
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    };
    rows.sort_by_key(|row| row.number);
    Ok(conclude(format, options.full, begun, rows))
}

/// Takes the measurements that are wanted, one after the other; one that fails has the reason in its row.
async fn measure(full: bool, only: &BTreeSet<u8>, begun: Instant) -> Vec<Row> {
    let mut rows = vec![];
    for (numbers, title) in [
        (&[1, 2, 4][..], "decisions and reads"),
        (&[5], "a broker that is killed"),
        (&[7], "the whole mesh"),
        (&[9], "memory"),
        (&[3], "end to end"),
        (&[6], "what is on disk"),
        (&[8], "take-over"),
    ] {
        let wanted: Vec<u8> = numbers.iter().copied().filter(|n| only.contains(n)).collect();
        let Some(first) = wanted.first() else { continue };
        note(format!("[{:5.1} s] measuring {title}", begun.elapsed().as_secs_f64()));
        let measured = match first {
            5 => bus::recovery(full).await,
            7 => whole::submit_to_planned(full).await,
            9 => whole::memory(full).await,
            3 => bus::end_to_end(full).await,
            6 => fsync::rows(full).await,
            8 => bus::take_over(full).await,
            _ => bus::decisions(full, &wanted).await,
        };
        match measured {
            Ok(measured) => rows.extend(measured),
            Err(error) => rows.push(Row {
                number: *first,
                what: title.to_owned(),
                bound: Bound::Exactly(0.0),
                unit: "",
                measured: None,
                detail: format!("failed: {error:#}"),
            }),
        }
    }
    rows
}
