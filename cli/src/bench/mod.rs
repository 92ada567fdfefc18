//! `bench bus`: what the bus costs over hand-written code, and whether the bounds hold. Raw and ours are measured in
//! turn, in one run, on one server that syncs every write.

mod account;
mod bus;
mod fsync;
mod intents;
mod learn;
mod many;
mod network;
mod registry;
mod rig;
mod sar;
mod storage;
mod whole;

use std::{collections::BTreeSet, process::ExitCode, time::Instant};

use anyhow::bail;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use crate::output::{self, Format, note};

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// The bus: throughput and latency against hand-written code, durability, recovery, and the whole mesh on it.
    Bus(BusOptions),
    /// Storage: put and get beside hash, cipher, code and disk, in one run.
    Storage(storage::StorageOptions),
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
    /// Layer-2 segments as intents: made, carrying traffic, withdrawn. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
    Network(network::NetworkOptions),
}

/// How long a benchmark takes.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Length {
    /// Full lengths, and the bounds as they are; without it under a minute, and bounds three times as wide.
    #[arg(long)]
    full: bool,
}

/// Options of `bench bus`.
#[derive(Debug, Args)]
pub(crate) struct BusOptions {
    /// Full lengths, and the bounds as they are; without it under a minute, and bounds three times as wide.
    #[arg(long)]
    full: bool,
    /// Only these measurements, by number.
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    only: Vec<u8>,
}

/// In the short form bounds are so many times wider: it shows direction.
const LOOSE: f64 = 3.0;
const ROWS: std::ops::RangeInclusive<u8> = 1..=9;

/// How a figure must compare with its bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// Not widened in the short form.
    Exactly(f64),
}

impl Bound {
    fn holds(self, measured: f64, loose: f64) -> bool {
        match self {
            Self::AtLeast(bound) => measured >= bound / loose,
            Self::AtMost(bound) => measured <= bound * loose,
            Self::Exactly(bound) => (measured - bound).abs() < f64::EPSILON,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::AtLeast(bound) => format!(">= {bound}{unit}"),
            Self::AtMost(bound) => format!("<= {bound}{unit}"),
            Self::Exactly(bound) => format!("{bound}{unit}"),
        }
    }
}

/// One measured figure.
#[derive(Debug, Serialize)]
struct Row {
    /// Number of the measurement.
    number: u8,
    what: String,
    bound: Bound,
    unit: &'static str,
    /// `None` if it could not be measured; then `detail` says why.
    measured: Option<f64>,
    detail: String,
}

impl Row {
    fn new(number: u8, what: &str, bound: Bound, unit: &'static str, measured: f64, detail: String) -> Self {
        Self { number, what: what.to_owned(), bound, unit, measured: Some(measured), detail }
    }
}

/// Runs a benchmark; exit code 1 if a bound does not hold.
pub(crate) async fn run(command: BenchCommand, format: Format) -> anyhow::Result<ExitCode> {
    let options = match command {
        BenchCommand::Bus(options) => options,
        BenchCommand::Storage(options) => return storage::run(options, format).await,
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
        BenchCommand::ManyIntents(Length { full }) => {
            let begun = Instant::now();
            return Ok(conclude(format, full, begun, many::measure(full).await?));
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

/// Shows what was measured; exit code 1 if a bound does not hold.
fn conclude(format: Format, full: bool, begun: Instant, rows: Vec<Row>) -> ExitCode {
    let loose = if full { 1.0 } else { LOOSE };
    let holds = |row: &Row| row.measured.is_some_and(|measured| row.bound.holds(measured, loose));
    let seconds = begun.elapsed().as_secs_f64();
    let value = json!({
        "full": full,
        "bounds_widened": loose,
        "seconds": seconds,
        "rows": rows.iter().map(|row| {
            let mut value = serde_json::to_value(row).unwrap_or_default();
            value["holds"] = json!(holds(row));
            value
        }).collect::<Vec<_>>(),
    });
    output::show(format, &value, &["", "what", "bound", "measured", "holds", "detail"], || {
        let text = |row: &Row| match row.measured {
            Some(measured) => format!("{measured:.2}{}", row.unit),
            None => "-".to_owned(),
        };
        let cells = |row: &Row| {
            let verdict = if holds(row) { "yes" } else { "NO" };
            vec![
                row.number.to_string(),
                row.what.clone(),
                row.bound.text(row.unit),
                text(row),
                verdict.to_owned(),
                row.detail.clone(),
            ]
        };
        rows.iter().map(cells).collect()
    });
    note(format!(
        "{seconds:.1} s; bounds {}",
        if full { "as they are".to_owned() } else { format!("{loose} times as wide: direction only, see --full") }
    ));
    ExitCode::from(u8::from(!rows.iter().all(holds)))
}

/// Takes the measurements that are wanted, one after the other; one that fails says so in its row.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_wider_in_the_short_form_in_the_right_direction() {
        assert!(!Bound::AtLeast(0.6).holds(0.5, 1.0) && Bound::AtLeast(0.6).holds(0.5, LOOSE));
        assert!(!Bound::AtMost(1.3).holds(1.5, 1.0) && Bound::AtMost(1.3).holds(1.5, LOOSE));
        assert!(!Bound::AtMost(1.3).holds(4.0, LOOSE) && !Bound::Exactly(0.0).holds(1.0, LOOSE));
    }
}
