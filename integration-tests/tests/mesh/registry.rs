//! The registry on the live mesh, by the command line: a chart pushed and shown, an instance upgraded, moved, taken back and
//! deleted, and every wrong command told what is right.

use serde_json::{Value as Json, json};

use crate::support::{MeshRun, cluster, document, shared_folder, text};

/// Runs a command that must succeed; its JSON.
async fn told(mesh: &MeshRun, arguments: &[&str]) -> Json {
    let output = mesh.cli(&[arguments, &["-o", "json"]].concat()).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {}", text(&output)))
}

/// Runs a command that must be refused; what it says.
async fn refused(mesh: &MeshRun, arguments: &[&str]) -> String {
    let output = mesh.cli(arguments).await;
    assert!(!output.status.success(), "{arguments:?} was not refused: {}", text(&output));
    text(&output)
}

async fn running(mesh: &MeshRun, id: &str, what: &str, fits: impl Fn(&Json) -> bool) -> Json {
    mesh.until(what, async || {
        let view = told(mesh, &["workload", "get", id]).await;
        (view["phase"] == "RUNNING" && fits(&view)).then_some(view)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_upgraded_moved_taken_back_and_deleted_by_command() {
    let process = std::process::id();
    let names = [format!("reg-a-{process}"), format!("reg-b-{process}")];
    let clusters = [cluster(&names[0], "process", 1_000, 1_000), cluster(&names[1], "process", 1_000, 1_000)];
    let Some(mesh) = MeshRun::start("registry, instances", &clusters, &[]).await else { return };
    mesh.register(document("clock", "sleep", &["1000"], json!({}))).await;
    let mut next = document("clock", "sleep", &["2000"], json!({}));
    next["version"] = json!("1.1.0");
    mesh.register(next).await;
    let broken = json!({"command": "/nowhere/clock"});
    let mut third = document("clock", "sleep", &[], json!({}));
    (third["version"], third["process"]) = (json!("2.0.0"), broken);
    mesh.register(third).await;

    let id = uuid();
    told(&mesh, &["workload", "run", "clock@1.0.0", "--id", &id, "--wait"]).await;
    let first = running(&mesh, &id, "it runs", |_| true).await;
    told(&mesh, &["workload", "upgrade", &id, "clock@1.1.0"]).await;
    let is =
        |workload: &'static str, revision: u64| move |v: &Json| v["workload"] == workload && v["revision"] == revision;
    let second = running(&mesh, &id, "the next version runs", |v| {
        is("clock@1.1.0", 2)(v) && v["generation"] != first["generation"]
    })
    .await;
    let here = second["clusterId"].as_str().unwrap();
    let there = names.iter().find(|name| *name != here).unwrap();
    told(&mesh, &["workload", "migrate", &id, "--to", there]).await;
    let last = |v: &Json| v["lifecycleEvents"].as_array().and_then(|all| all.last()).map(|event| event["type"].clone());
    running(&mesh, &id, "it runs there, and it is told that it was moved", |v| {
        v["clusterId"] == there.as_str() && last(v) == Some(json!("migrated"))
    })
    .await;
    let text = refused(&mesh, &["workload", "migrate", &id, "--to", "nowhere"]).await;
    assert!(mesh_test::says(&text, "there is no cluster nowhere"), "{text}");
    let text = refused(&mesh, &["workload", "rollback", &id, "9"]).await;
    assert!(mesh_test::says(&text, "no revision 9") && mesh_test::says(&text, "its revisions are 1, 2"), "{text}");

    // A version that cannot run, taken back by itself.
    told(&mesh, &["workload", "upgrade", &id, "clock@2.0.0", "--atomic"]).await;
    let back = running(&mesh, &id, "it went back", is("clock@1.1.0", 4)).await;
    assert_eq!(back["revisions"].as_array().unwrap().len(), 4, "{back}");
    told(&mesh, &["workload", "rollback", &id, "1"]).await;
    running(&mesh, &id, "the first version runs again", is("clock@1.0.0", 5)).await;

    told(&mesh, &["workload", "delete", &id]).await;
    mesh.until("it is gone", async || (!mesh.cli(&["workload", "get", &id]).await.status.success()).then_some(()))
        .await;
    let text = refused(&mesh, &["workload", "delete", "clock@1.0.0"]).await;
    assert!(mesh_test::says(&text, "a registered document never changes"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_chart_waits_for_a_cluster_and_shows_its_manifests() {
    let name = format!("reg-c-{}", std::process::id());
    let clusters = [cluster(&name, "simulated", 4_000, 4_000)];
    // No registry is asked: the names of this chart's are of the Internet.
    let set = ["--set", "workload-manager.images=false"];
    let Some(mesh) = MeshRun::start("registry, charts", &clusters, &set).await else { return };
    let pushed = told(&mesh, &["workload", "push", "examples/web-chart", "--ingress"]).await;
    assert_eq!((&pushed[0]["ok"], &pushed[0]["state"]), (&json!(true), &json!("accepted")), "{pushed}");
    let promised = "no agent of this release runs charts";
    assert!(pushed[0]["reason"].as_str().is_some_and(|reason| reason.starts_with(promised)), "{pushed}");
    let view = mesh
        .until("the report of its checks is shown", async || {
            let view = told(&mesh, &["workload", "get", "web@1.0.0"]).await;
            view["report"]["steps"].is_array().then_some(view)
        })
        .await;
    assert!(view["statement"].as_str().is_some_and(|statement| statement.starts_with(promised)), "{view}");
    let steps = view["report"]["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 4, "{view}");
    assert!(steps.iter().all(|s| s["outcome"] == "CHECK_PASSED" || !s["hint"].as_str().unwrap().is_empty()), "{view}");
    let again = told(&mesh, &["workload", "push", "examples/web-chart", "--ingress"]).await;
    assert_eq!(again[0]["result"], "unchanged", "{again}");
    // The same version with other content.
    let text = refused(&mesh, &["workload", "push", "examples/web-chart"]).await;
    assert!(mesh_test::says(&text, "a document never changes") && mesh_test::says(&text, "new version"), "{text}");

    let id = uuid();
    told(&mesh, &["workload", "run", "web@1.0.0", "--id", &id, "--ingress"]).await;
    let waiting = mesh
        .until("it says what it waits for", async || {
            let view = told(&mesh, &["workload", "get", &id]).await;
            view["reason"].as_str().is_some_and(|r| mesh_test::says(r, "no driver for charts")).then_some(view)
        })
        .await;
    assert_eq!(waiting["phase"], "PENDING");
    let rendered = mesh.cli(&["workload", "manifests", &id]).await;
    let yaml = self::text(&rendered);
    match steps[1]["outcome"] == "CHECK_PASSED" {
        true => assert!(yaml.contains(&format!("nemo.eu/workload: {id}")) && yaml.contains("kind: Ingress"), "{yaml}"),
        false => assert!(mesh_test::says(&yaml, "make servers"), "{yaml}"),
    }
    told(&mesh, &["workload", "delete", &id]).await;
    mesh.until("it is gone", async || (!mesh.cli(&["workload", "get", &id]).await.status.success()).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_never_run_twice_is_moved_and_upgraded_without_running_twice() {
    let process = std::process::id();
    let names = [format!("reg-d-{process}"), format!("reg-e-{process}")];
    let clusters = [cluster(&names[0], "process", 1_000, 1_000), cluster(&names[1], "process", 1_000, 1_000)];
    let Some(mesh) = MeshRun::start("registry, never twice", &clusters, &[]).await else { return };
    // Whoever comes while another holds the lock writes that down, and ends.
    let shared = shared_folder();
    let (lock, twice) = (shared.path().join("only.lock"), shared.path().join("only.twice"));
    let script =
        format!("flock -n -E 9 {} sleep 1000; [ $? = 9 ] && date >> {}; exit 1", lock.display(), twice.display());
    let only = |version: &str| {
        let mut only = document("only", "sh", &["-c", &script], json!({}));
        (only["version"], only["singleton"]) = (json!(version), json!(true));
        only
    };
    mesh.register(only("1.0.0")).await;
    mesh.register(only("1.1.0")).await;
    let id = uuid();
    told(&mesh, &["workload", "run", "only@1.0.0", "--id", &id, "--wait"]).await;
    let mut view = running(&mesh, &id, "it runs", |_| true).await;
    for _ in 0..2 {
        let here = view["clusterId"].as_str().unwrap().to_owned();
        let there = names.iter().find(|name| **name != here).unwrap();
        told(&mesh, &["workload", "migrate", &id, "--to", there]).await;
        view = running(&mesh, &id, "it runs there", |v| v["clusterId"] == there.as_str()).await;
    }
    let before = view["generation"].clone();
    told(&mesh, &["workload", "upgrade", &id, "only@1.1.0"]).await;
    let view = running(&mesh, &id, "the next version runs", |v| v["generation"] != before && v["revision"] == 2).await;
    assert_eq!(view["restarts"].as_u64().unwrap_or(0), 0, "{view}");
    assert!(!twice.exists(), "it ran twice at {}", std::fs::read_to_string(&twice).unwrap_or_default());
    // It takes the lock a moment after it is said to run.
    mesh.until("the one that runs holds the lock: the test would see a second", async || {
        let second = std::process::Command::new("flock").args(["-n", "-E", "9"]).arg(&lock).arg("true").status();
        (second.unwrap().code() == Some(9)).then_some(())
    })
    .await;
}

/// A gzipped tar file of one entry.
fn tgz(path: &str, kind: tar::EntryType, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    if kind == tar::EntryType::Symlink {
        header.set_link_name("/etc/passwd").unwrap();
    }
    header.set_cksum();
    let zip = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    let mut builder = tar::Builder::new(zip);
    builder.append(&header, content).unwrap();
    builder.into_inner().unwrap().finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_or_harmful_charts_are_refused_and_store_nothing() {
    use tar::EntryType::{Regular, Symlink};

    let name = format!("reg-f-{}", std::process::id());
    let set = ["--set", "workload-manager.images=false"];
    let Some(mesh) = MeshRun::start("registry, bad charts", &[cluster(&name, "simulated", 100, 100)], &set).await
    else {
        return;
    };
    let zeros = vec![0; 64 << 20];
    let own = b"apiVersion: v2\nname: web\nversion: one\n";
    let bad: [(&str, Vec<u8>, &str, &str); 9] = [
        ("traversal", tgz("web/../../etc/cron.d/x", Regular, b"x"), "`..`", "plain relative paths"),
        ("absolute", tgz("/etc/passwd", Regular, b"x"), "absolute", "plain relative paths"),
        ("link", tgz("web/values.yaml", Symlink, b""), "it is a link", "put the file itself there"),
        ("huge", tgz("web/values.yaml", Regular, &zeros), "at most 5242880", ".helmignore"),
        ("nothing", vec![], "is empty", "helm package"),
        (
            "wrong-gzip",
            [&[0x1f, 0x8b, 8][..], b"no gzip at all, whatever it says"].concat(),
            "not a readable",
            "helm package",
        ),
        ("no-archive", b"{\"a\": 1}".to_vec(), "not gzip-compressed", "helm package"),
        ("no-chart", tgz("web/readme.md", Regular, b"hello"), "Chart.yaml", "helm package"),
        ("wrong-chart", tgz("web/Chart.yaml", Regular, own), "not a semantic version", "such as 1.0.0"),
    ];
    for (what, archive, reason, hint) in bad {
        let path = mesh.folder().join(format!("{what}.tgz"));
        std::fs::write(&path, &archive).unwrap();
        for verb in ["push", "check"] {
            let text = refused(&mesh, &["workload", verb, path.to_str().unwrap()]).await;
            assert!(text.contains(reason) && text.contains(hint), "{verb} {what}: {text}");
        }
    }
    let large = mesh.folder().join("large.tgz");
    std::fs::write(&large, vec![0x1f; 10 << 20]).unwrap();
    let missing = mesh.folder().join("missing.tgz");
    for (path, reason) in [(&large, "is larger than 3145728 bytes"), (&missing, "No such file")] {
        for verb in ["push", "check"] {
            let text = refused(&mesh, &["workload", verb, path.to_str().unwrap()]).await;
            assert!(text.contains(reason) && text.contains(path.to_str().unwrap()), "{verb}: {text}");
        }
    }
    let list = told(&mesh, &["workload", "list"]).await;
    assert_eq!(list["workloads"].as_array().map_or(0, Vec::len), 0, "{list}");
    assert!(mesh.facts("CHART").await.is_empty(), "nothing of them is kept");
}

fn uuid() -> String {
    mesh_proto::derived_id(&["registry", &std::process::id().to_string(), &format!("{:?}", std::time::Instant::now())])
}
