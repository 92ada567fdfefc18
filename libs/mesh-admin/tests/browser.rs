//! The page in `examples/dashboard`, in a real browser: over NATS WebSocket, with the read-only identity, and with others.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]
#![allow(missing_docs)]

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use mesh_bus::Bus;
use mesh_core::Outgoing;
use mesh_proto::{
    AnyEvent, Timestamp,
    anomaly::AnomalyDetected,
    telemetry::{Entity, InstanceSample, Metric, Packed, Readings},
};
use mesh_test::{TestBus, soon};
use serde_json::Value as Json;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};

/// Messages each second, and how long the browser listens.
const PER_SECOND: u64 = 20;
const WANTED: u64 = 200;

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools")
}

/// A bus with an address for browsers, or `None` if something is missing here.
async fn bus(suite: &str) -> Option<TestBus> {
    if !tools().join("debian/chromium").exists() || !tools().join("dashboard/page/dashboard.js").exists() {
        eprintln!("SKIPPED: {suite}: no .tools/debian/chromium or .tools/dashboard/page (run `make setup-test`)");
        return None;
    }
    TestBus::start_with(suite, |options| {
        options.sync_always = false;
        options.websocket_listen = Some("127.0.0.1:-1".into());
    })
    .await
}

/// A browser with the page open.
struct Page {
    child: tokio::process::Child,
    lines: Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Page {
    async fn open(bus: &TestBus, identity: &str, until: &str, then: &str) -> Self {
        let seed = std::fs::read_to_string(bus.key(identity)).unwrap();
        let page = tools().join("dashboard/page/index.html").canonicalize().unwrap();
        let server = bus.server.websocket_url().expect("the server says where browsers connect");
        let url = format!("file://{}#server={server}&key={}", page.display(), seed.trim());
        let mut child = tokio::process::Command::new("node")
            .arg(tools().join("dashboard/look.mjs"))
            .args([url.as_str(), until, then])
            .env("CHROMIUM", tools().join("debian/chromium"))
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let opened = soon("the page opens", lines.next_line()).await.unwrap();
        assert_eq!(opened.as_deref(), Some("opened"));
        Self { child, lines }
    }

    /// What the page gave in the end.
    async fn result(mut self) -> Json {
        let line = soon("the page has what is waited for", self.lines.next_line()).await.unwrap();
        let result = serde_json::from_str(&line.expect("the browser says what it found")).unwrap();
        soon("the browser ends", self.child.wait()).await.unwrap();
        result
    }
}

fn time() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp { seconds: since.as_secs().cast_signed(), nanos: since.subsec_nanos().cast_signed() }
}

async fn publish(bus: &Bus, event: &dyn AnyEvent, id: &str) {
    bus.publish(&Outgoing::new(event, id, time()).unwrap()).await.unwrap();
}

fn packed(number: u64) -> Packed {
    let sample = InstanceSample {
        cluster_id: "edge".into(),
        instance_id: "0193a000-7000-8000-9000-000000000001".into(),
        owner: "local".into(),
        at: Some(time()),
        cpu_percent: 50.0 + (number % 10) as f64,
        memory_bytes: 1 << 20,
        ..InstanceSample::default()
    };
    Packed { cluster_id: "edge".into(), samples: vec![sample] }
}

fn readings(number: u64) -> Readings {
    let metric = |name: &str| Metric { name: name.into(), unit: "1".into(), ..Metric::default() };
    Readings {
        cluster_id: "edge".into(),
        at: Some(time()),
        entities: vec![Entity { kind: "node".into(), id: "edge-1".into(), ..Entity::default() }],
        metrics: vec![metric("system.cpu.utilization"), metric("system.memory.utilization")],
        metric: vec![0, 1],
        after_ms: vec![0, 0],
        values: vec![0.25, (number % 4) as f64 / 4.0],
        ..Readings::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_plots_what_is_measured_as_it_is_measured() {
    let Some(bus) = bus("dashboards in a browser").await else { return };
    let collector = bus.connect("collector").await;
    let detector = bus.connect("sar-detector").await;
    let until = format!("dashboard.latencies_ms.length >= {WANTED} && dashboard.events >= 1");
    let then = "({...dashboard, connection: null, metrics: [...document.querySelectorAll('#metric option')].map(o => o.value), \
                rows: document.getElementById('events').innerText, \
                html: document.querySelectorAll('#events img').length, \
                lines: document.querySelectorAll('.u-legend .u-series').length, \
                drawn: [...document.querySelectorAll('#plot canvas')].some(c => \
                    c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(x => x))})";
    let page = Page::open(&bus, "dashboard", &until, then).await;
    let mut tick = tokio::time::interval(Duration::from_millis(1_000 / PER_SECOND));
    let seen = {
        let publishing = async {
            for number in 0.. {
                tick.tick().await;
                publish(&collector, &packed(number), &format!("packed {number}")).await;
                publish(&collector, &readings(number), &format!("readings {number}")).await;
                // Again and again: the page may not have subscribed yet when the first comes.
                let anomaly = AnomalyDetected {
                    owner: "local".into(),
                    instance_id: format!("i{number}"),
                    sentence: "<img src=x> memory is too high".into(),
                    ..AnomalyDetected::default()
                };
                publish(&detector, &anomaly, &format!("anomaly {number}")).await;
            }
        };
        tokio::select! {
            seen = page.result() => seen,
            () = publishing => unreachable!("it publishes for ever"),
        }
    };
    assert_eq!((&seen["undecoded"], &seen["errors"]), (&0.into(), &Json::Array(vec![])), "{seen}");
    let metrics = seen["metrics"].as_array().unwrap();
    for metric in ["instance.cpu_percent", "system.cpu.utilization [1]", "system.memory.utilization [1]"] {
        assert!(metrics.contains(&metric.into()), "{metric}: {metrics:?}");
    }
    assert_eq!(seen["drawn"], true, "a line is plotted");
    assert!(seen["lines"].as_u64() >= Some(2), "the time and a line stand in the legend: {}", seen["lines"]);
    let rows = seen["rows"].as_str().unwrap();
    assert!(rows.contains("<img src=x> memory is too high") && seen["html"] == 0, "shown as text: {rows}");
    let mut latencies: Vec<f64> = seen["latencies_ms"].as_array().unwrap().iter().filter_map(Json::as_f64).collect();
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "sample to browser over NATS WebSocket, {} samples at {}/s: p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        latencies.len(),
        2 * PER_SECOND,
        at(0.5),
        at(0.99),
        at(1.0)
    );
    assert!(at(0.5) < 1_000.0, "half of the samples came within a second: {:.1} ms", at(0.5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_can_only_listen_and_only_as_a_dashboard() {
    let Some(bus) = bus("dashboards in a browser, refused").await else { return };
    // Nobody else comes in over WebSocket, not with a good key.
    for identity in ["person", "collector", "joint", "provisioner"] {
        let page = Page::open(&bus, identity, "dashboard.errors.length > 0", "dashboard.errors").await;
        let errors = page.result().await.to_string();
        assert!(errors.to_lowercase().contains("authorization violation"), "{identity}: {errors}");
    }
    // And the dashboard can say nothing, and hears nothing else.
    let until = "(() => { const c = dashboard.connection; if (!c) return false; if (!window.tried) { window.tried = true; \
                 c.publish('telemetry.readings.v1.edge', 'x'); c.subscribe('intent.>', {callback: () => {}}); } \
                 return dashboard.errors.length >= 2; })()";
    let page = Page::open(&bus, "dashboard", until, "dashboard.errors").await;
    let errors = page.result().await.to_string().to_lowercase();
    assert!(errors.contains("publish") && errors.contains("telemetry.readings.v1.edge"), "{errors}");
    assert!(errors.contains("subscription") && errors.contains("intent.>"), "{errors}");
}
