//! What is on disk before it is acknowledged: the server's sync calls, seen by strace.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use mesh_bus::Written;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{
    baseline,
    report::{Bound, Row},
    rig::Rig,
};

/// Row 6: no acknowledgement without a sync call since its message was sent, and few sync calls a fact when saturated.
pub(super) async fn rows(full: bool) -> anyhow::Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let bus = rig.bus("intent-manager").await?;
    baseline::decide_saturated(&bus, "warm", 500, 4).await?;
    let folder = tempfile::tempdir().context("make a folder")?;
    let pid = rig.server.pid().context("nats-server has ended")?;

    let trace = folder.path().join("rest");
    let strace = match attach(pid, &trace).await {
        Ok(strace) => strace,
        Err(error) => bail!("NOT MEASURED, sync calls were not counted: {error:#}; install strace and allow ptrace"),
    };
    let writer = bus.writer("INTENT");
    let (mut asked, mut last) = (vec![], 0);
    for version in 1..=if full { 10_000 } else { 500 } {
        let decision = baseline::decision("one-by-one", version, last)?;
        let sent = now();
        match writer.write(decision).await? {
            Written::Stored { last: stored } => last = stored,
            Written::Stale { last } => bail!("somebody else wrote {last:?}"),
        }
        asked.push((sent, now()));
    }
    detach(strace).await?;
    let syncs = syncs(&trace)?;
    let early = asked.iter().filter(|(sent, acked)| !syncs.iter().any(|end| sent <= end && end <= acked)).count();
    let detail = format!("{} decisions one after the other, {} sync calls", asked.len(), syncs.len());
    let mut rows =
        vec![Row::new(6, "acks before their data is on disk", Bound::Exactly(0.0), "", early as f64, detail)];

    let trace = folder.path().join("saturated");
    let strace = attach(pid, &trace).await?;
    let each = if full { 15 } else { 4 };
    let facts = 4_000 * each;
    baseline::decide_saturated(&bus, "traced", 4_000, each).await?;
    detach(strace).await?;
    let syncs = self::syncs(&trace)?;
    let detail = format!(
        "{facts} facts, {} sync calls: {:.0} facts a call",
        syncs.len(),
        facts as f64 / syncs.len().max(1) as f64
    );
    let calls = syncs.len() as f64 * 50.0 / facts as f64;
    rows.push(Row::new(6, "sync calls per 50 facts when saturated", Bound::AtMost(1.0), "", calls, detail));
    bus.close().await;
    Ok(rows)
}

/// Seconds since 1970, as strace writes them.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Watches the sync calls of a process from now on.
pub(super) async fn attach(pid: u32, trace: &Path) -> anyhow::Result<Child> {
    let mut strace = Command::new("strace")
        .args(["-f", "-ttt", "-T", "-e", "trace=fsync,fdatasync,sync_file_range,msync", "-o"])
        .arg(trace)
        .args(["-p", &pid.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start strace")?;
    let stderr = strace.stderr.take().context("read strace's output")?;
    let mut lines = BufReader::new(stderr).lines();
    let first = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await.context("await strace")??;
    match first {
        Some(line) if line.contains("attached") => {
            // What else it writes is not of interest, but its pipe must not fill.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            Ok(strace)
        }
        other => bail!("strace reported {:?}", other.unwrap_or_default()),
    }
}

pub(super) async fn detach(mut strace: Child) -> anyhow::Result<()> {
    let pid = strace.id().context("strace has ended early")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGINT)
        .context("stop strace")?;
    tokio::time::timeout(Duration::from_secs(10), strace.wait()).await.context("await strace's end")??;
    Ok(())
}

pub(super) fn syncs(trace: &Path) -> anyhow::Result<Vec<f64>> {
    let text = std::fs::read_to_string(trace).context("read strace's output")?;
    Ok(text.lines().filter_map(ended).collect())
}

/// When a sync call succeeded, seconds since 1970, from a line such as `71 1763.5 fsync(9) = 0 <0.001>`; of a call that
/// was resumed the line's time is its end.
fn ended(line: &str) -> Option<f64> {
    let (call, took) = line.rsplit_once(" <")?;
    if !call.trim_end().ends_with("= 0") {
        return None;
    }
    let at: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    let took: f64 = took.trim_end().strip_suffix('>')?.parse().ok()?;
    Some(if call.contains(" resumed>") { at } else { at + took })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_call_ends_when_its_result_is_known() {
        assert_eq!(ended("71 100.5 fsync(9) = 0 <0.25>"), Some(100.75));
        assert_eq!(ended("71 101.5 <... fsync resumed>) = 0 <0.25>"), Some(101.5));
        assert_eq!(ended("71 100.5 fsync(9 <unfinished ...>"), None);
        assert_eq!(ended("71 100.5 fsync(9) = -1 EIO (Input/output error) <0.25>"), None);
    }
}
