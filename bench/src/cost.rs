//! `bench cost`: what one intent costs from its submission until it is fulfilled, and what one running instance costs each
//! second, from the counters of the kernel and of nats-server.
//!
//! A mesh runs as it is shipped (`continuum up`, clusters simulated) in a process of its own. Its processes' CPU and memory
//! are read from `/proc`, the server's messages and bytes from its monitoring port. What a mesh costs anyway, before the
//! intents and once all of them run, is measured for itself and taken off.
//!
//! CPU depends on the machine, so it is given as a multiple of what one durable publish by hand costs client and server in
//! the same run; `--against PROGRAM` measures another build in turn and gives the shares of its figures. Messages do not
//! depend on the machine: they must not grow by more than a tenth over what is recorded here, in any form.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use continuum::output::note;

use self::counters::cpu_seconds;
use crate::{
    report::{Bound, Length, Row},
    rig::Rig,
};

mod counters;
mod running;

pub(crate) use self::{counters::resident_bytes, running::RunningMesh};

/// Name of the workload that every intent runs.
pub(super) const WORKLOAD: &str = "cost";
/// Messages published by hand for one figure of raw cost.
const RAW: usize = 2_000;

/// Options of `bench cost`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CostOptions {
    #[command(flatten)]
    pub(super) length: Length,
    /// One process per service: the cost of each is told.
    #[arg(long)]
    processes: bool,
    /// A `continuum` of another build, measured in turn; what is told is the share of its figures.
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
}

/// Lengths of a measurement.
#[derive(Clone, Copy)]
struct Plan {
    intents: u64,
    /// How long a mesh is watched before anything runs.
    idle: Duration,
    /// How long it is watched once all intents run: whole periods of observation, in which each says something once.
    rest: Duration,
    /// Are the sync calls of samples and of running instances counted as well?
    traces_all: bool,
    /// How often each program is measured.
    rounds: usize,
}

/// Takes all measurements.
pub(super) async fn measure(options: &CostOptions) -> anyhow::Result<Vec<Row>> {
    let full = options.length.full;
    let plan = Plan {
        intents: if full { 1_000 } else { 200 },
        idle: Duration::from_secs(if full { 20 } else { 6 }),
        rest: Duration::from_secs(if full { 20 } else { 10 }),
        traces_all: full,
        rounds: if full { 3 } else { 1 },
    };
    mesh_bus::install_crypto();
    let own = std::env::current_exe().context("find this program")?.with_file_name("continuum");
    let (mut ours, mut theirs, mut raws) = (vec![], vec![], vec![]);
    for round in 1..=plan.rounds {
        note(format!("round {round} of {}: {}", plan.rounds, own.display()));
        raws.push(raw().await?);
        ours.push(cost(&own, plan, options.processes).await?);
        if let Some(other) = &options.against {
            note(format!("round {round} of {}: {}", plan.rounds, other.display()));
            theirs.push(cost(other, plan, options.processes).await?);
        }
    }
    let raw = middle(raws.iter().copied());
    let mut rows = absolute(&ours, raw, options.processes);
    if !full {
        rows.retain(|row| !SLOW_TO_COUNT.contains(&row.number));
    }
    if !theirs.is_empty() {
        rows.extend(shares(&ours, &theirs));
    }
    Ok(rows)
}

fn middle(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

/// What something costs: a second, or one unit of work.
#[derive(Clone, Debug, Default)]
struct Spent {
    /// CPU milliseconds by program.
    cpu_ms: BTreeMap<String, f64>,
    /// Messages that nats-server delivered, and the bytes of them.
    deliveries: f64,
    delivered_bytes: f64,
    /// Messages that it took in.
    received: f64,
    /// Allocations of the mesh's own programs; none of a build that does not count them.
    allocations: Option<f64>,
    /// Those of nats-server.
    server_allocations: Option<f64>,
    /// Sync calls of nats-server; none where they cannot be counted.
    syncs: Option<f64>,
}

impl Spent {
    fn with(&self, other: &Self, of: impl Fn(f64, f64) -> f64) -> Self {
        let both = |own: Option<f64>, other: Option<f64>| Some(of(own?, other?));
        let cpu_of = |spent: &Self, name: &str| spent.cpu_ms.get(name).copied().unwrap_or_default();
        let names = self.cpu_ms.keys().chain(other.cpu_ms.keys());
        Self {
            cpu_ms: names.map(|name| (name.clone(), of(cpu_of(self, name), cpu_of(other, name)))).collect(),
            deliveries: of(self.deliveries, other.deliveries),
            delivered_bytes: of(self.delivered_bytes, other.delivered_bytes),
            received: of(self.received, other.received),
            allocations: both(self.allocations, other.allocations),
            server_allocations: both(self.server_allocations, other.server_allocations),
            syncs: both(self.syncs, other.syncs),
        }
    }

    fn plus(&self, other: &Self) -> Self {
        self.with(other, |own, other| own + other)
    }

    /// Nothing costs less than nothing: what was taken off was a mean.
    fn less(&self, other: &Self) -> Self {
        self.with(other, |own, other| (own - other).max(0.0))
    }

    fn times(&self, factor: f64) -> Self {
        self.with(self, |own, _| own * factor)
    }

    fn cpu(&self) -> f64 {
        self.cpu_ms.values().sum()
    }
}

/// What was measured of one program.
#[derive(Debug)]
struct Cost {
    /// Of one intent, from its submission until it is fulfilled.
    intent: Spent,
    /// Of one sample, from the agent into the stream and the series.
    sample: Spent,
    /// Of one running instance, each second.
    instance: Spent,
    /// Memory of one running instance, bytes.
    instance_bytes: f64,
    /// Memory of all programs but nats-server at rest, before any intent; bytes.
    rest_bytes: f64,
}

/// The figures of this build beside their bounds. Counters of an intent do not depend on the machine: they must not grow by
/// more than a tenth over what was recorded. Those of a sample and of a running instance are small beside what the mesh
/// does anyway, which is taken off: they are bounded like times.
fn absolute(ours: &[Cost], raw_ms: f64, processes: bool) -> Vec<Row> {
    let figure = |of: Figure| middle(ours.iter().map(of));
    let recorded = if processes { &RECORDED_PROCESSES } else { &RECORDED };
    let to_raw = |of: Figure| figure(of) / raw_ms.max(f64::EPSILON);
    let by_program = |spent: Option<&Spent>, unit: &str, scale: f64| {
        let parts = spent.into_iter().flat_map(|s| &s.cpu_ms).map(|(name, ms)| format!("{name} {:.2}", ms * scale));
        format!("{unit}: {}", parts.collect::<Vec<_>>().join(", "))
    };
    let last = ours.last();
    let cpu = |number, what: &str, bound: f64, of: Figure, spent: Option<&Spent>| {
        let detail = format!(
            "{:.1} µs; {}; one publish by hand {:.0} µs, client and server",
            figure(of) * 1e3,
            by_program(spent, "µs by program", 1e3),
            raw_ms * 1e3
        );
        Row::new(number, what, Bound::AtMost(bound * SLOW), "x", to_raw(of), detail)
    };
    let delivered = |number, what: &str, bound: Bound, unit_count: f64, of: fn(&Cost) -> &Spent| {
        let each = |part: fn(&Spent) -> f64| middle(ours.iter().map(|cost| part(of(cost)) * unit_count));
        let detail = format!("{:.0} bytes; {:.2} messages taken in", each(|s| s.delivered_bytes), each(|s| s.received));
        Row::new(number, what, bound, "", each(|s| s.deliveries), detail)
    };
    let counted = |number, what: &str, bound: Bound, missing: &str, detail: String, of: fn(&Cost) -> Option<f64>| {
        let found: Vec<f64> = ours.iter().filter_map(of).collect();
        let measured = (!found.is_empty()).then(|| middle(found.iter().copied()));
        let detail = if measured.is_some() { detail } else { missing.to_owned() };
        Row { number, what: what.into(), bound, unit: "", measured, detail }
    };
    let allocated = |number, what: &str, bound: Bound, of: fn(&Cost) -> &Spent| {
        let server: Vec<f64> = ours.iter().filter_map(|cost| of(cost).server_allocations).collect();
        let detail = format!("nats-server {:.1}", middle(server.into_iter()));
        let own = ours.iter().filter_map(|cost| of(cost).allocations).collect::<Vec<_>>();
        let measured = (!own.is_empty()).then(|| middle(own.into_iter()));
        Row { number, what: what.into(), bound, unit: "", measured, detail }
    };
    let no_strace = "not counted: strace cannot trace here";
    vec![
        cpu(
            1,
            "CPU of one intent, submit -> FULFILLED, to one durable publish by hand",
            recorded.cpu_to_raw,
            |c| c.intent.cpu(),
            last.map(|c| &c.intent),
        ),
        delivered(
            2,
            "messages delivered for one intent, without idle traffic",
            Bound::Guard(recorded.deliveries),
            1.0,
            |c| &c.intent,
        ),
        cpu(
            3,
            "CPU of one running instance, each second, to one durable publish by hand",
            recorded.instance_to_raw,
            |c| c.instance.cpu(),
            last.map(|c| &c.instance),
        ),
        Row::new(
            4,
            "memory of one running instance",
            Bound::AtMost(recorded.instance_kb),
            " kB",
            figure(|cost| cost.instance_bytes) / 1e3,
            format!("the mesh at rest before: {:.1} MB without nats-server", figure(|cost| cost.rest_bytes) / 1e6),
        ),
        counted(
            5,
            "sync calls of nats-server for one intent",
            Bound::AtMost(recorded.syncs),
            no_strace,
            "seen by strace".into(),
            |c| c.intent.syncs,
        ),
        allocated(10, "allocations for one intent", Bound::Guard(recorded.allocations), |c| &c.intent),
        cpu(
            11,
            "CPU of one sample, to one durable publish by hand",
            recorded.sample_to_raw,
            |c| c.sample.cpu(),
            last.map(|c| &c.sample),
        ),
        delivered(
            12,
            "messages delivered for a thousand samples of one agent",
            Bound::AtMost(recorded.sample_deliveries),
            1_000.0,
            |c| &c.sample,
        ),
        allocated(13, "allocations for one sample", Bound::AtMost(recorded.sample_allocations), |c| &c.sample),
        counted(
            14,
            "sync calls of nats-server for a thousand samples",
            Bound::AtMost(recorded.sample_syncs),
            no_strace,
            "seen by strace, with what the running instances cause".into(),
            |c| c.sample.syncs.map(|syncs| syncs * 1e3),
        ),
        delivered(
            15,
            "messages delivered for a thousand running instances, each second",
            Bound::AtMost(recorded.instance_deliveries),
            1_000.0,
            |c| &c.instance,
        ),
        allocated(
            16,
            "allocations for one running instance, each second",
            Bound::AtMost(recorded.instance_allocations),
            |c| &c.instance,
        ),
        counted(
            17,
            "sync calls of nats-server for a thousand running instances, each second",
            Bound::AtMost(recorded.instance_syncs),
            no_strace,
            "seen by strace".into(),
            |c| c.instance.syncs.map(|syncs| syncs * 1e3),
        ),
    ]
}

/// How much more CPU a build without optimisation may take.
const SLOW: f64 = if cfg!(debug_assertions) { 20.0 } else { 1.0 };
/// Rows of sync calls for which the server has to be traced once more each.
const SLOW_TO_COUNT: [u8; 2] = [14, 17];

/// What a release is expected to cost; see `docs/performance.md`.
struct Recorded {
    cpu_to_raw: f64,
    deliveries: f64,
    instance_to_raw: f64,
    instance_kb: f64,
    syncs: f64,
    allocations: f64,
    sample_to_raw: f64,
    sample_deliveries: f64,
    sample_allocations: f64,
    sample_syncs: f64,
    instance_deliveries: f64,
    instance_allocations: f64,
    instance_syncs: f64,
}

/// Every service in one process.
const RECORDED: Recorded = Recorded {
    cpu_to_raw: 30.0,
    deliveries: 18.0,
    instance_to_raw: 0.25,
    instance_kb: 150.0,
    syncs: 20.0,
    allocations: 10_700.0,
    sample_to_raw: 0.1,
    sample_deliveries: 100.0,
    sample_allocations: 160.0,
    sample_syncs: 10.0,
    instance_deliveries: 50.0,
    instance_allocations: 250.0,
    instance_syncs: 50.0,
};
/// One process per service.
const RECORDED_PROCESSES: Recorded =
    Recorded { cpu_to_raw: 60.0, deliveries: 125.0, instance_to_raw: 0.5, instance_kb: 300.0, syncs: 25.0, ..RECORDED };

/// One figure of a cost.
type Figure = fn(&Cost) -> f64;

/// This build's share of another's figures, measured in turn.
fn shares(ours: &[Cost], theirs: &[Cost]) -> Vec<Row> {
    let figures: [(u8, &str, f64, Figure); 4] = [
        (6, "CPU of one intent", 0.3, |cost| cost.intent.cpu()),
        (7, "CPU of one running instance", 0.25, |cost| cost.instance.cpu()),
        (8, "memory of one running instance", 0.2, |cost| cost.instance_bytes),
        (9, "messages delivered for one intent", 0.4, |cost| cost.intent.deliveries),
    ];
    figures
        .into_iter()
        .map(|(number, what, bound, of)| {
            let (own, other) = (middle(ours.iter().map(of)), middle(theirs.iter().map(of)));
            let what = format!("{what}: share of the other build's");
            let detail = format!("{own:.3} of {other:.3}");
            Row::new(number, &what, Bound::AtMost(bound), "x", own / other.max(f64::EPSILON), detail)
        })
        .collect()
}

/// CPU milliseconds of one durable publish by hand: of this process, which does nothing else meanwhile, and of the server.
async fn raw() -> anyhow::Result<f64> {
    let rig = Rig::start().await?;
    let baseline = rig.baseline(&["RAW"]).await?;
    baseline.at_rest("RAW", 100).await?;
    let pids = [std::process::id(), rig.server.pid().context("nats-server has ended")?];
    let cpu = || pids.iter().map(|pid| cpu_seconds(*pid)).sum::<Option<f64>>().context("read the CPU time");
    let before = cpu()?;
    baseline.at_rest("RAW", RAW).await?;
    Ok((cpu()? - before) * 1e3 / RAW as f64)
}

/// Measures one program.
async fn cost(program: &Path, plan: Plan, processes: bool) -> anyhow::Result<Cost> {
    let mut mesh = RunningMesh::start(program, processes, "").await?;
    let measured = mesh.measure(plan).await;
    mesh.stop().await?;
    measured
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_figures_is_not_moved_by_one_that_is_far_off() {
        assert!((middle([3.0, 900.0, 2.0].into_iter()) - 3.0).abs() < f64::EPSILON);
        assert!(middle(std::iter::empty()).abs() < f64::EPSILON);
    }
}
