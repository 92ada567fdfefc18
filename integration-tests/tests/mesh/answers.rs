//! An intent about the answers of a workload: requests go through the gateway, and what they took is what it is judged by.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_proto::{
    intent::{NotFulfilledState, State},
    report::ReportPublished,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::support::{MeshRun, OWNER, cluster, command_id, document, instance_of, intent, submit, text};

/// What an answer may take.
const BOUND_MS: &str = "100";
/// What slow ones take.
const SLOW_MS: u64 = 250;

/// A server whose answers begin late by what it is told, milliseconds; and its port.
async fn server(late_ms: Arc<AtomicU64>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let late_ms = late_ms.clone();
            tokio::spawn(async move {
                let mut asked = [0; 4_096];
                while connection.read(&mut asked).await.is_ok_and(|bytes| bytes > 0) {
                    tokio::time::sleep(Duration::from_millis(late_ms.load(Relaxed))).await;
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    if connection.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// The status of an answer through the gateway; 0 without an answer.
async fn ask(gateway: &str, token: &str, path: &str) -> u16 {
    let Some(host) = gateway.strip_prefix("http://") else { return 0 };
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n");
    let answer = async {
        let mut connection = TcpStream::connect(host).await.ok()?;
        connection.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.ok()?;
        answer.split(' ').nth(1)?.parse().ok()
    };
    answer.await.unwrap_or(0)
}

fn is_degraded(state: &State) -> bool {
    state.not_fulfilled_state() == NotFulfilledState::Degraded
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intent_is_judged_by_how_long_answers_took_through_the_gateway() {
    let clusters = [cluster("edge", "process", 1_000, 1_000)];
    let Some(mesh) = MeshRun::start("intents, answers through the gateway", &clusters, &[]).await else { return };
    let late_ms = Arc::new(AtomicU64::new(1));
    let mut answering = document("answering", "sleep", &["100000"], json!({"driver": "process"}));
    answering["expose"] = json!({"port": server(late_ms.clone()).await});
    mesh.register(answering).await;
    let mut wanted = intent("answering", &[("responseTimeP95", BOUND_MS)]);
    // Shorter ones are refused: the gateway says every few seconds what answers took.
    wanted["observationPeriod"] = json!(10);
    mesh.ask(&submit("quick", wanted), &command_id("quick")).await;
    let waits = mesh.state("quick", |state| mesh_test::says(&state.reason, "no request came")).await;
    assert!(mesh_test::says(&waits.waits_for, "requests to its exposed route"), "{waits:?}");

    let gateway = std::fs::read_to_string(mesh.folder().join(Path::new("state/gateway/url"))).unwrap();
    let signed_in = mesh.cli(&["login"]).await;
    assert!(signed_in.status.success(), "{}", text(&signed_in));
    let printed = mesh.cli(&["token"]).await;
    assert!(printed.status.success(), "{}", text(&printed));
    let token = String::from_utf8(printed.stdout).unwrap().trim().to_owned();
    let (gateway, path) = (gateway.trim().to_owned(), format!("/access/{OWNER}/{}/", instance_of("quick")));
    let users = tokio::spawn(async move {
        let mut answered = 0;
        loop {
            answered += u64::from(ask(&gateway, &token, &path).await == 200);
            if answered == 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });

    mesh.state("quick", |state| state.fulfilment_status == 2).await;
    late_ms.store(SLOW_MS, Relaxed);
    let slow = mesh.state("quick", is_degraded).await;
    assert!(
        mesh_test::says(&slow.reason, "responseTimeP95 is ") && slow.reason.contains("less than 100 ms"),
        "{slow:?}"
    );
    let achieved = mesh
        .fact("report", &format!("report.*.*.{OWNER}.quick"), |fact| {
            let report = fact.event::<ReportPublished>().ok()??.intent_fulfilment_report?;
            let results = report.expectation_fulfilment_results.into_iter();
            let mut targets = results.flat_map(|result| result.target_fulfilment_results);
            let target = targets.find(|target| target.target == "responseTimeP95")?;
            target.target_achieved_value.parse::<f64>().ok().filter(|value| *value >= SLOW_MS as f64 * 0.99)
        })
        .await;
    assert!(achieved < 10.0 * SLOW_MS as f64, "{achieved} ms");
    late_ms.store(1, Relaxed);
    let mut was_slow = false;
    let filter = format!("intent.*.*.{OWNER}.quick");
    mesh.fact("intent", &filter, |fact| {
        let state = crate::support::state_of(fact)?;
        was_slow |= is_degraded(&state);
        (was_slow && state.fulfilment_status == 2).then_some(())
    })
    .await;
    users.abort();
}
