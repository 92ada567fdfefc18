//! What an agent reads of settings, of workloads and of the kernel.

#![allow(clippy::expect_used, reason = "a target panics where what must hold does not")]

use cluster_agent::domain::measure::{
    Entity, kernel,
    plan::Plan,
    prometheus,
    settings::{INTERVAL_MAX_MS, INTERVAL_MIN_MS, Settings},
};
use mesh_proto::{
    Timestamp,
    measurement::{Adaptive, Selector, Setting},
};
use prost::Message as _;

use crate::targets::{Target, of, text};

/// Every target of measurements.
pub(crate) const MEASURES: &[Target] = &[
    Target { name: "measure-setting", try_on: setting, good: settings },
    Target { name: "prometheus-text", try_on: prometheus_text, good: scrapes },
    Target { name: "kernel-text", try_on: kernel_text, good: kernel_texts },
];

fn setting(input: &[u8]) -> bool {
    let Ok(setting) = Setting::decode(input) else { return false };
    let now = Timestamp::from_millis(1_000_000);
    let mut all = Settings::default();
    all.set("s".into(), setting);
    let node = Entity::of("node", "n");
    let held = all.of("cpu", &node, 1_000, now);
    assert!((INTERVAL_MIN_MS..=INTERVAL_MAX_MS).contains(&held.interval_ms));
    let mut plan = Plan::default();
    plan.present("cpu", 1_000, std::slice::from_ref(&node), now);
    plan.apply(all, now);
    assert_eq!(plan.take_due("cpu", now, |_| true), [node]);
    let next = plan.next(|_| true).expect("there is a slot");
    assert!(next > now);
    true
}

fn prometheus_text(input: &[u8]) -> bool {
    let Some(Ok(scrape)) = text(input).map(|text| prometheus::read(text, 8)) else { return false };
    assert!(scrape.values.len() <= 8);
    for value in &scrape.values {
        assert!(value.value.is_finite() && !value.metric.name.is_empty() && !value.metric.unit.is_empty());
        assert!(value.metric.labels.windows(2).all(|pair| pair[0].0 < pair[1].0), "sorted, each once");
    }
    true
}

fn kernel_text(input: &[u8]) -> bool {
    let Some(text) = text(input) else { return false };
    let pressure = kernel::pressure(text);
    for line in pressure.iter().flatten() {
        assert!((0.0..=1.0).contains(&line.share) && line.seconds >= 0.0);
    }
    let stat = kernel::stat(text);
    if let Ok(stat) = &stat {
        let pairs = || stat.cpus.values().map(|ticks| (&[0; 8], ticks));
        assert!(kernel::busy(pairs()).is_none_or(|busy| (0.0..=1.0).contains(&busy)));
    }
    let moved = !kernel::io_stat(text).is_empty() || !kernel::blkio(text, text).is_empty();
    pressure.is_ok() || stat.is_ok() || moved || !kernel::pairs(text).is_empty()
}

fn settings() -> Vec<Vec<u8>> {
    let selector = Selector { entity_kind: "node".into(), entity_id: "n".into(), probe: "cpu".into() };
    let fixed = Setting { selector: Some(selector), interval_ms: 100, muted: true, ..Setting::default() };
    let adaptive = Adaptive { interval_min_ms: 100, interval_max_ms: 5_000, error_percent: 2.5 };
    let until = Some(Timestamp::from_millis(2_000_000));
    let follows = Setting { adaptive: Some(adaptive), until, reason: "anomaly x".into(), ..Setting::default() };
    vec![fixed.encode_to_vec(), follows.encode_to_vec()]
}

fn scrapes() -> Vec<Vec<u8>> {
    of(&[
        "# TYPE a_total counter\na_total{b=\"c\",d=\"e\\\"f\\n\"} 1 1395066363000\n",
        "# HELP t x\nt_seconds_bucket{le=\"+Inf\"} 3\nt_seconds_sum 1e-3\nt NaN\n",
    ])
}

fn kernel_texts() -> Vec<Vec<u8>> {
    of(&[
        "cpu  1 2 3 4\ncpu0 1 2 3 4 5 6 7 8 9 10\nctxt 5\nprocesses 6\nprocs_running 1\n",
        "some avg10=12.50 avg60=1.00 avg300=0.20 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=10\n",
        "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
        "254:0 Read 10\n254:0 Write 20\nTotal 30\n",
        "anon 5\npgfault 7\n",
    ])
}
