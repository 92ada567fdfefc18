//! The host's probes beside node_exporter, as Debian has it.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]

#[path = "exporter/shared.rs"]
mod shared;

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use cluster_agent::shell::measure::application;
use shared::{Counters, ours, theirs};

/// How far apart the two looks at every counter are.
const APART: Duration = Duration::from_secs(3);

struct Exporter(Child, SocketAddr);

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _waited = self.0.wait();
    }
}

impl Exporter {
    fn start() -> Option<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/debian/usr/bin/prometheus-node-exporter");
        if !path.exists() {
            println!("SKIPPED: cluster-agent, exporter: no {} (run `make setup-test`)", path.display());
            return None;
        }
        let address = mesh_test::free_address();
        let child = Command::new(path)
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self(child, address))
    }

    async fn ask(&self) -> Counters {
        let begun = Instant::now();
        loop {
            let read = application::read(self.1, "/metrics", 100_000).await;
            let Some(why) = read.failure else { return theirs(&read.values) };
            assert!(begun.elapsed() < Duration::from_secs(20), "{why}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What both say: ours before and after theirs, so that theirs lies between.
async fn look(exporter: &Exporter) -> (Counters, Counters, Counters) {
    let before = ours().unwrap();
    let theirs = exporter.ask().await;
    (before, theirs, ours().unwrap())
}

/// How exactly a counter is said, in its unit.
fn resolution(name: &str) -> f64 {
    match name.split(' ').next() {
        Some("cpu") => 0.02,
        Some("pressure") | Some("disk") => 0.01,
        _ => 1e-6,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_counter_that_node_exporter_shares_moves_as_ours() {
    let Some(exporter) = Exporter::start() else { return };
    exporter.ask().await;
    let first = look(&exporter).await;
    tokio::time::sleep(APART).await;
    let last = look(&exporter).await;
    let (mut compared, mut kinds) = (0, std::collections::BTreeSet::new());
    for (name, theirs) in &last.1 {
        let Some(begun) = first.1.get(name) else { continue };
        let ours = [&first.0, &first.2, &last.0, &last.2].map(|counters| counters.get(name));
        let [Some(first_before), Some(first_after), Some(last_before), Some(last_after)] = ours else { continue };
        // Idle time and waiting may go back.
        if name.ends_with("idle") || name.ends_with("iowait") {
            continue;
        }
        let moved = theirs - begun;
        let (least, most) = (last_before - first_after, last_after - first_before);
        let off = resolution(name);
        assert!(least - off <= moved && moved <= most + off, "{name}: {least} to {most}, theirs {moved}");
        compared += 1;
        kinds.insert(name.split(' ').next().unwrap_or_default());
    }
    println!("{compared} counters compared, of {kinds:?}");
    assert!(
        compared >= 20 && ["cpu", "network", "context", "forks"].iter().all(|kind| kinds.contains(kind)),
        "{kinds:?}"
    );
}
