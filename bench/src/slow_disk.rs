//! `bench slow-disk`: how many intents a second the mesh brings to run when each sync of nats-server's disk takes longer, beside how
//! many it does without.
//!
//! nats-server runs under strace both times. strace stops at sync calls alone, and makes each take the added time longer.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use continuum::output::note;
use mesh_proto::intent::{NotFulfilledState, State};
use tokio::process::Command;

use crate::{
    cost::{RunningMesh, WORKLOAD},
    report::{Bound, Row},
    whole,
};

/// Added to each sync.
const ADDED: Duration = Duration::from_millis(5);
/// Intents a second that are offered: more than the mesh takes.
const OFFERED: u64 = 1_000;
/// An observation period of an intent, seconds: none ends meanwhile.
const PERIOD_S: u64 = 60;

/// Takes the measurement.
pub(super) async fn measure(full: bool) -> anyhow::Result<Vec<Row>> {
    mesh_bus::install_crypto();
    let found = Command::new("strace").arg("-V").output().await.is_ok_and(|output| output.status.success());
    if !found {
        bail!("NOT MEASURED: strace is not there to slow the disk down; install it (Debian: apt-get install strace)");
    }
    let (rounds, intents) = if full { (3, 3_000) } else { (1, 1_000) };
    let (mut quick, mut slow) = (0.0, 0.0);
    for round in 1..=rounds {
        note(format!("round {round} of {rounds}"));
        quick += running(Duration::ZERO, intents).await?;
        slow += running(ADDED, intents).await?;
    }
    let (quick, slow) = (quick / f64::from(rounds), slow / f64::from(rounds));
    Ok(vec![Row::new(
        1,
        "intents that run, each second, with 5 ms added to each sync, to without",
        Bound::AtLeast(0.7),
        "",
        slow / quick,
        format!("{slow:.0} of {quick:.0}/s; {intents} intents at {OFFERED}/s"),
    )])
}

/// Intents that come to run each second, on a disk that takes this much longer for each sync.
async fn running(added: Duration, intents: u64) -> anyhow::Result<f64> {
    // The tracer is the server's grandchild (-D): the server keeps the process that `up` started.
    let tracer = format!(
        "strace -D -f --seccomp-bpf -o /dev/null -e trace=fsync,fdatasync -e inject=fsync,fdatasync:delay_exit={}",
        added.as_micros()
    );
    let own = std::env::current_exe().context("find this program")?.with_file_name("continuum");
    let mesh = RunningMesh::start(&own, false, &tracer).await?;
    let measured = async {
        mesh.register().await?;
        let intent = whole::intent(WORKLOAD, PERIOD_S)?;
        let runs = |state: &State| state.not_fulfilled_state() == NotFulfilledState::Compliant;
        mesh.submit_until(runs, OFFERED, &intent, "warm", intents / 10).await?;
        let begun = Instant::now();
        mesh.submit_until(runs, OFFERED, &intent, "slow", intents).await?;
        anyhow::Ok(intents as f64 / begun.elapsed().as_secs_f64())
    };
    let measured = measured.await;
    mesh.stop().await?;
    measured
}
