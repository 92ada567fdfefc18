//! The registry on the live mesh, by the command line: a chart pushed and shown, an instance upgraded, moved, taken back and
//! deleted, and every wrong command told what is right.

use serde_json::{Value as Json, json};

use crate::support::{MeshRun, cluster, document, text};

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
    let third = running(&mesh, &id, "it runs there", |v| v["clusterId"] == there.as_str()).await;
    let events: Vec<&str> =
        third["lifecycleEvents"].as_array().unwrap().iter().filter_map(|e| e["type"].as_str()).collect();
    assert_eq!(events.last(), Some(&"migrated"), "{events:?}");
    let text = refused(&mesh, &["workload", "migrate", &id, "--to", "nowhere"]).await;
    assert!(text.contains("there is no cluster nowhere"), "{text}");
    let text = refused(&mesh, &["workload", "rollback", &id, "9"]).await;
    assert!(text.contains("no revision 9") && text.contains("its revisions are 1, 2"), "{text}");

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
    assert!(text.contains("a registered document never changes"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chart_is_pushed_waits_for_a_cluster_that_runs_charts_and_shows_its_manifests() {
    let name = format!("reg-c-{}", std::process::id());
    let clusters = [cluster(&name, "simulated", 4_000, 4_000)];
    // No registry is asked: the names of this chart's are of the Internet.
    let set = ["--set", "workload-manager.images=false"];
    let Some(mesh) = MeshRun::start("registry, charts", &clusters, &set).await else { return };
    let pushed = told(&mesh, &["workload", "push", "examples/web-chart", "--ingress"]).await;
    assert_eq!((&pushed[0]["ok"], &pushed[0]["state"]), (&json!(true), &json!("accepted")), "{pushed}");
    let view = told(&mesh, &["workload", "get", "web@1.0.0"]).await;
    let steps = view["report"]["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 4, "{view}");
    assert!(steps.iter().all(|s| s["outcome"] == "CHECK_PASSED" || !s["cure"].as_str().unwrap().is_empty()), "{view}");
    let again = told(&mesh, &["workload", "push", "examples/web-chart", "--ingress"]).await;
    assert_eq!(again[0]["result"], "unchanged", "{again}");
    // The same version with other content.
    let text = refused(&mesh, &["workload", "push", "examples/web-chart"]).await;
    assert!(text.contains("a document never changes") && text.contains("new version"), "{text}");

    let id = uuid();
    told(&mesh, &["workload", "run", "web@1.0.0", "--id", &id, "--ingress"]).await;
    let waiting = mesh
        .until("it says what it waits for", async || {
            let view = told(&mesh, &["workload", "get", &id]).await;
            view["reason"].as_str().is_some_and(|r| r.contains("no driver for charts")).then_some(view)
        })
        .await;
    assert_eq!(waiting["phase"], "PENDING");
    let rendered = mesh.cli(&["workload", "manifests", &id]).await;
    let yaml = self::text(&rendered);
    match steps[1]["outcome"] == "CHECK_PASSED" {
        true => assert!(yaml.contains(&format!("nemo.eu/workload: {id}")) && yaml.contains("kind: Ingress"), "{yaml}"),
        false => assert!(yaml.contains("infra/helm/install.sh"), "{yaml}"),
    }
    told(&mesh, &["workload", "delete", &id]).await;
    mesh.until("it is gone", async || (!mesh.cli(&["workload", "get", &id]).await.status.success()).then_some(()))
        .await;
}

fn uuid() -> String {
    mesh_proto::derived_id(&["registry", &std::process::id().to_string(), &format!("{:?}", std::time::Instant::now())])
}
