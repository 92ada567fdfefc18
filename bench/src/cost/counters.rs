//! Counters of programs: CPU and memory from `/proc`, allocations from what each program says of itself.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::Context as _;
use bytes::Bytes;
use cluster_agent::shell::measure::application;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use mesh_bus::Bus;
use serde_json::Value as Json;

/// How long services are waited for that say where they answer.
const ANSWER_WAIT: std::time::Duration = std::time::Duration::from_millis(500);
/// Series of one program that are read at most.
const SERIES_MAX: usize = 100_000;

/// The fields of `/proc/PID/stat` after the name, and the name.
fn stat(pid: u32) -> Option<(Vec<String>, String)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = text.rsplit_once(") ")?;
    let name = head.split_once('(')?.1.to_owned();
    Some((tail.split_whitespace().map(str::to_owned).collect(), name))
}

pub(super) fn parent_and_name(pid: u32) -> Option<(u32, String)> {
    let (fields, name) = stat(pid)?;
    Some((fields.get(1)?.parse().ok()?, name))
}

/// CPU time of a process and of its children that have ended, seconds.
pub(super) fn cpu_seconds(pid: u32) -> Option<f64> {
    let (fields, _) = stat(pid)?;
    let ticks: f64 = fields.get(11..15)?.iter().filter_map(|field| field.parse::<f64>().ok()).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten()?;
    Some(ticks / per_second as f64)
}

/// Memory of a process that is not backed by a file, bytes.
pub(crate) fn resident_bytes(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib * 1_024.0)
}

/// Allocations of nats-server since it started, from its profiling port; none where it does not say.
pub(super) async fn server_allocations(profile: &str) -> Option<f64> {
    let text = get(&format!("{profile}/debug/pprof/allocs?debug=1")).await.ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(|line| line.strip_prefix("# Mallocs = "))?.trim().parse().ok()
}

/// What is at an address.
pub(super) async fn get(url: &str) -> anyhow::Result<Bytes> {
    let http: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = http.get(url.parse()?).await.with_context(|| format!("ask {url}"))?;
    Ok(answer.into_body().collect().await.with_context(|| format!("read {url}"))?.to_bytes())
}

/// Where each program of a mesh says what it counts, one address for each process. A build that does not name its
/// processes has none.
pub(super) async fn programs(bus: &Bus) -> anyhow::Result<Vec<SocketAddr>> {
    let answers = bus.request_all("$SRV.PING", Bytes::new(), ANSWER_WAIT).await.context("ask the services")?;
    let mut found = BTreeMap::new();
    for answer in answers {
        let Ok(answer) = serde_json::from_slice::<Json>(&answer.body) else { continue };
        let about = &answer["metadata"];
        let (Some(pid), Some(endpoint)) = (about["pid"].as_str(), about["endpoint"].as_str()) else { continue };
        if let Ok(address) = endpoint.trim_start_matches("http://").parse() {
            found.insert(pid.to_owned(), address);
        }
    }
    Ok(found.into_values().collect())
}

/// Allocations of these programs since they started; none if any does not count them.
pub(super) async fn allocations(programs: &[SocketAddr]) -> Option<f64> {
    let mut sum = 0.0;
    for program in programs {
        let read = application::read(*program, "/metrics", SERIES_MAX).await;
        sum += read.values.iter().find(|value| value.metric.name == mesh_kit::metrics::ALLOCATIONS)?.value;
    }
    (!programs.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_parent_a_name_cpu_time_and_memory() {
        let (parent, name) = parent_and_name(std::process::id()).unwrap();
        assert!(parent > 0 && !name.is_empty());
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000.0);
        assert_eq!(cpu_seconds(u32::MAX), None);
    }
}
