//! The ledger over the running mesh: what ran is charged once, and whoever has the files can check it.

use mesh_core::Outgoing;
use mesh_proto::{
    Event as _, RefusalCode,
    account::{AccountRefused, Entry, Outcome, Posted, TopUp},
    usage::UsageClosed,
};
use prost::Message as _;
use serde_json::{Value as Json, json};

use crate::support::{self, MeshRun, cluster, command_id, document, text};

const ACCOUNT: &str = "service/local/sleeper";

async fn mesh() -> Option<MeshRun> {
    let set = ["--set", "collector.usage_window_ms=1000", "--set", "collector.usage_grace_ms=1500"];
    let mesh = MeshRun::start("account", &[cluster("sim", "simulated", 1_000, 1_000)], &set).await?;
    let region = mesh.cli(&["account", "region", "sim", "--high-demand", "0.01"]).await;
    assert!(region.status.success(), "{}", text(&region));
    mesh.register(document("sleeper", "sleep", &["100000"], json!({}))).await;
    let known = async || entries(&mesh).await.iter().any(|e| e.account == ACCOUNT).then_some(());
    mesh.until("the workload has an account", known).await;
    Some(mesh)
}

async fn entries(mesh: &MeshRun) -> Vec<Entry> {
    let posted = mesh.facts("ACCOUNT").await.into_iter().filter_map(|fact| fact.event::<Posted>().unwrap());
    posted.map(|posted| Entry::decode(posted.entry).unwrap()).collect()
}

fn usage(entry: &Entry) -> Option<&UsageClosed> {
    entry.charge.as_ref()?.usage.as_ref()
}

/// Waits until this many windows are paid.
async fn paid(mesh: &MeshRun, count: usize) -> Vec<Entry> {
    let is_paid = |e: &&Entry| e.charge.as_ref().is_some_and(|c| c.outcome() == Outcome::Paid);
    mesh.until("windows are paid", async || {
        let entries = entries(mesh).await;
        (entries.iter().filter(is_paid).count() >= count).then_some(entries)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_is_charged_once_and_the_bill_is_checked_from_files_alone() {
    let Some(mesh) = mesh().await else { return };
    mesh.fulfil("billed", "sleeper").await;
    let before = paid(&mesh, 3).await;

    // The same windows again, as if the collector had forgotten that it said them; then a false one, and a last new one.
    let collector =
        support::connect(mesh.endpoints["nats"].as_str().unwrap(), "collector", &mesh.seed("collector")).await;
    let say = async |usage: &UsageClosed, id: String| {
        let message = Outgoing::new(usage, id, usage.end.unwrap()).unwrap();
        collector.publish(&message).await.unwrap();
    };
    let windows: Vec<UsageClosed> = before.iter().filter_map(usage).cloned().collect();
    for (number, window) in windows.iter().enumerate() {
        say(window, format!("again-{number}")).await;
    }
    let first = windows[0].clone();
    say(&UsageClosed { window: first.window + 1_000_000_000, samples: 0, ..first.clone() }, "false".into()).await;
    let marker = UsageClosed { instance_id: "marker".into(), ..first };
    say(&marker, "marker".into()).await;
    let after = mesh
        .until("the marker is charged", async || {
            let entries = entries(&mesh).await;
            entries.iter().filter_map(usage).any(|u| u.instance_id == "marker").then_some(entries)
        })
        .await;
    for window in &windows {
        let same = |u: &&UsageClosed| u.instance_id == window.instance_id && u.window == window.window;
        assert_eq!(after.iter().filter_map(usage).filter(same).count(), 1, "{window:?}");
    }
    mesh.until("the false window is a dead letter", async || {
        let dead = mesh.facts("DEAD").await;
        dead.iter().any(|letter| letter.subject.starts_with("dead.usage.closed.")).then_some(())
    })
    .await;

    // The bill of a person, and what it says.
    let statement = mesh.cli(&["account", "statement", "sleeper", "-o", "json"]).await;
    let statement: Json = serde_json::from_slice(&statement.stdout).unwrap();
    let balance = statement["account"]["balance"].as_i64().unwrap();
    let charged = |e: &Json| e["charge"]["paid"].as_i64().unwrap_or(0);
    let listed = statement["entries"].as_array().unwrap();
    assert_eq!(statement["account"]["account"], json!(ACCOUNT));
    assert_eq!(balance, 500_000_000 - listed.iter().map(charged).sum::<i64>());

    // Files: the whole ledger, an entry, and that it goes on.
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    for arguments in [
        vec!["export", "--file", &file("ledger.txt")],
        vec!["prove", "--entry", "2", "--file", &file("entry.proof")],
        vec!["prove", "--since", "3", "--file", &file("since.proof")],
    ] {
        let written = mesh.cli(&[&["account"], arguments.as_slice()].concat()).await;
        assert!(written.status.success(), "{arguments:?}: {}", text(&written));
    }
    let nowhere = folder.path().join("no mesh");
    for name in ["ledger.txt", "entry.proof", "since.proof"] {
        let verified = support::cli(&nowhere, &["account", "verify", &file(name)]).await;
        assert!(verified.status.success(), "{name}: {}", text(&verified));
        let mut changed = std::fs::read(file(name)).unwrap();
        let middle = changed.len() / 2;
        changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
        std::fs::write(file("changed"), changed).unwrap();
        let refused = support::cli(&nowhere, &["account", "verify", &file("changed")]).await;
        assert!(!refused.status.success() && text(&refused).contains("does not hold"), "{name}: {}", text(&refused));
    }
    let checker = support::root().join(".tools/test/ledger-check");
    if checker.is_file() {
        let files = ["ledger.pub", "ledger.txt", "entry.proof", "since.proof"].map(file);
        let checked = std::process::Command::new(checker).args(files).output().unwrap();
        assert!(checked.status.success(), "{}", text(&checked));
    } else {
        eprintln!("SKIPPED: account, ledgers by an independent checker: no {} (run `make servers`)", checker.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_bill_cannot_and_what_makes_no_sense_is_refused_with_a_hint() {
    let Some(mesh) = mesh().await else { return };
    let top_up = |account: &str, amount| TopUp { ledger: "main".into(), account: account.into(), amount };
    let cases = [
        ("nobody", top_up("service/local/nobody", 1), RefusalCode::NotFound, "service/local/nobody"),
        ("treasury", top_up("treasury", 1), RefusalCode::NotFound, "treasury"),
        ("too-much", top_up(ACCOUNT, u64::MAX), RefusalCode::Exhausted, "the treasury has"),
        ("nothing", top_up(ACCOUNT, 0), RefusalCode::Invalid, ""),
        ("elsewhere", TopUp { ledger: "other".into(), ..top_up(ACCOUNT, 1) }, RefusalCode::NotFound, "other"),
    ];
    for (id, command, code, reason) in cases {
        let answer = mesh.ask(&command, &command_id(id)).await;
        let refused = answer.event::<AccountRefused>().unwrap().unwrap_or_else(|| panic!("{id}: {}", answer.subject));
        assert_eq!(refused.code(), code, "{id}: {refused:?}");
        assert!(!refused.reason.is_empty() && mesh_test::says(&refused.reason, reason), "{id}: {refused:?}");
        assert!(!refused.hint.is_empty(), "{id}: {refused:?}");
    }
    // Neither a person nor another service can say what was used, or write an entry.
    let size = entries(&mesh).await.len();
    for identity in ["person", "validator"] {
        let client = mesh.plain(identity).await;
        for subject in ["w.usage.closed.v1.sim.i", "w.account.posted.v1.main", "account.posted.v1.main"] {
            let asked = client.request(subject, "{}".into());
            let answered = tokio::time::timeout(std::time::Duration::from_millis(500), asked).await;
            assert!(!matches!(answered, Ok(Ok(_))), "{identity} wrote {subject}");
        }
    }
    // And goes on: a command that makes sense is done.
    let answer = mesh.ask(&top_up(ACCOUNT, 5), &command_id("fine")).await;
    assert_eq!(answer.message, Posted::MESSAGE);
    assert_eq!(entries(&mesh).await.len(), size + 1);
}
