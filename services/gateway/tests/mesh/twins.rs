//! Digital twins over REST, and the reads of the LCM repository.

use std::collections::BTreeMap;

use super::*;

/// A mesh with an instance of `ada`'s that runs, and its id; and the tokens of the administrator, of `ada`, of another owner
/// and of a provider of clusters.
async fn observed(suite: &str) -> Option<(World, String, BTreeMap<&'static str, String>)> {
    let world = World::start(suite, 1, |configs| configs.observed = true).await?;
    let admin = world.admin().await;
    let mut tokens = BTreeMap::new();
    for (name, role) in [("ada", "owner"), ("bob", "owner"), ("pat", "provider")] {
        tokens.insert(name, world.account(&admin, name, &[role]).await);
    }
    tokens.insert("admin", admin);
    let document = json!({"name": "echo", "version": "1.0.0", "kind": "process", "driver": "simulated",
        "process": {"command": "true"}, "resources": {"cpu_milli": 10, "memory_bytes": 1_000_000}, "replicas": 1});
    let made = world.ask(&tokens["ada"], "POST", "/api/v1/workload/", Some(document)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let run = world.ask(&tokens["ada"], "POST", "/api/v1/workload/echo@1.0.0/template/", Some(json!({}))).await;
    let instance = run.body["instance_id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/twin/workload/{instance}/");
    until(
        "a twin that runs",
        async || world.ask(&tokens["ada"], "GET", &path, None).await,
        |twin: &Answer| twin.body["phase"] == "RUNNING" && twin.body["statuses"][0]["status"] == "Ready",
    )
    .await;
    let versions = format!("{path}history/");
    until(
        "its versions",
        async || world.ask(&tokens["ada"], "GET", &versions, None).await,
        |found: &Answer| found.body[0]["phase"] == "RUNNING",
    )
    .await;
    Some((world, instance, tokens))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twins_are_listed_read_at_any_time_and_compared_over_rest() {
    let Some((world, instance, tokens)) = observed("gateway, twins").await else { return };
    let ask = async |who: &str, path: &str| world.ask(&tokens[who], "GET", path, None).await;
    let kinds = |list: &Answer| {
        let kinds = list.body.as_array().unwrap().iter().map(|twin| twin["kind"].as_str().unwrap().to_owned());
        kinds.collect::<Vec<_>>()
    };
    let listed = ask("ada", "/api/v1/twin/").await;
    assert_eq!(kinds(&listed), ["cluster", "continuum", "node", "workload"], "{listed:?}");
    // Others see infrastructure, and nothing of what runs there.
    for who in ["bob", "pat"] {
        let listed = ask(who, "/api/v1/twin/").await;
        assert_eq!(kinds(&listed), ["cluster", "continuum", "node"], "{listed:?}");
        assert!(listed.body[0].get("instances").is_none(), "{listed:?}");
    }
    let seen = ask("admin", "/api/v1/twin/cluster/edge/").await;
    assert_eq!(seen.body["instances"], json!([instance]), "{seen:?}");
    assert_eq!(kinds(&ask("ada", "/api/v1/twin/?kind=workload").await), ["workload"]);
    let first = ask("ada", "/api/v1/twin/?page_size=2").await;
    let next = first.headers["link"].to_str().unwrap().trim_start_matches('<').split('>').next().unwrap().to_owned();
    assert_eq!((kinds(&first).len(), kinds(&ask("ada", &next).await)), (2, vec!["node".into(), "workload".into()]));

    let path = format!("/api/v1/twin/workload/{instance}/");
    let versions = ask("ada", &format!("{path}history/")).await;
    let all = versions.body.as_array().unwrap();
    assert!(all.len() >= 2, "{versions:?}");
    let page = ask("ada", &format!("{path}history/?page_size=1")).await;
    let next = page.headers["link"].to_str().unwrap().trim_start_matches('<').split('>').next().unwrap().to_owned();
    assert!(next.starts_with(&path), "{next}");
    assert_eq!(ask("ada", &next).await.body[0], all[1]);
    let (newest, oldest) = (all[0]["at"].as_str().unwrap(), all[all.len() - 1]["at"].as_str().unwrap());
    let then = ask("ada", &format!("{path}?at={oldest}")).await;
    assert_eq!(then.body, all[all.len() - 1]);
    let diff = ask("ada", &format!("{path}diff/?from={oldest}&to={newest}")).await;
    let phase = diff.body["differences"].as_array().unwrap().iter().find(|d| d["field"] == "phase").unwrap();
    assert_eq!(phase["after"], "RUNNING", "{diff:?}");
    let last = ask("ada", &format!("{path}diff/")).await;
    assert_eq!(last.body["to_version"], all[0]["version"], "{last:?}");
    // What is another's is not there; what makes no sense is refused by its name.
    for (who, path, status) in [
        ("bob", path.clone(), 404),
        ("pat", path.clone(), 404),
        ("bob", format!("{path}history/"), 404),
        ("bob", format!("{path}diff/"), 404),
        ("bob", format!("{path}?owner=ada"), 404),
        ("admin", path.clone(), 404),
        ("admin", format!("{path}?owner=ada"), 200),
        ("ada", "/api/v1/twin/planet/x/".into(), 404),
        ("ada", "/api/v1/twin/?kind=planet".into(), 422),
        ("ada", "/api/v1/twin/cluster/edge/?owner=ada".into(), 422),
        ("ada", format!("{path}diff/?from={newest}&to=2000-01-01T00:00:00Z"), 422),
        ("ada", format!("{path}diff/?to={newest}"), 422),
        ("ada", format!("{path}?at=2000-01-01T00:00:00Z"), 404),
    ] {
        let answer = ask(who, &path).await;
        assert_eq!(answer.status, status, "{who} {path}: {answer:?}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lcm_repository_reads_clusters_instances_events_and_messages() {
    let Some((world, instance, tokens)) = observed("gateway, LCM repository").await else { return };
    let ask = async |who: &str, path: &str| world.ask(&tokens[who], "GET", path, None).await;
    let cluster = ask("pat", "/api/v1/cluster/edge/data/?cluster_id=edge").await;
    assert_eq!((cluster.status, &cluster.body[0]["kind"]), (200, &json!("cluster")), "{cluster:?}");
    let path = format!("/api/v1/workload_instance/{instance}/data");
    let data = ask("ada", &path).await;
    let all = data.body.as_array().unwrap();
    assert!(all.len() >= 2 && all[0]["phase"] == "RUNNING", "{data:?}");
    let (newest, oldest) = (all[0]["at"].as_str().unwrap(), all[all.len() - 1]["at"].as_str().unwrap());
    let between = ask("ada", &format!("{path}?timestamp_from={newest}&workload_id={instance}")).await;
    assert_eq!(between.body, json!([all[0]]));
    let between = ask("ada", &format!("{path}?timestamp_from={oldest}&timestamp_to={oldest}")).await;
    assert_eq!(between.body, json!([all[all.len() - 1]]));
    let messages = ask("ada", &format!("/api/v1/workload_CMDT/{instance}/data")).await;
    assert_eq!(messages.body.as_array().unwrap().len(), all.len());
    assert_eq!((&messages.body[0]["workload_id"], &messages.body[0]["user_id"]), (&json!(instance), &json!("ada")));
    assert_eq!((&messages.body[0]["status"], &messages.body[0]["replicas"]), (&json!("Ready"), &json!(1)));

    let begun = mesh_test::now();
    let began = mesh_proto::anomaly::AnomalyDetected {
        owner: "ada".into(),
        instance_id: instance.clone(),
        episode_id: "e1".into(),
        since: Some(begun),
        at: Some(begun),
        sentence: "cpu_milli above".into(),
        ..Default::default()
    };
    let detector = world.test_bus.connect("sar-detector").await;
    detector.publish_many(vec![Outgoing::new(&began, "e1", begun).unwrap()]).await.unwrap();
    let path = format!("/api/v1/workload_security_events/{instance}/data");
    let events =
        until("the event", async || ask("ada", &path).await, |events: &Answer| events.body[0].is_object()).await;
    assert_eq!(
        (&events.body[0]["episode_id"], &events.body[0]["detected"]["sentence"]),
        (&json!("e1"), &json!("cpu_milli above"))
    );
    let before = begun.plus_millis(-1);
    assert_eq!(ask("ada", &format!("{path}?timestamp_to={before}")).await.body, json!([]));
    assert_eq!(ask("ada", &format!("{path}?timestamp_from={}", begun.plus_millis(1))).await.body, events.body);
    for (who, path, status) in [
        ("bob", path.clone(), 404),
        ("pat", path.clone(), 403),
        ("bob", format!("/api/v1/workload_CMDT/{instance}/data"), 404),
        ("ada", format!("{path}?workload_id=other"), 422),
        ("ada", format!("{path}?timestamp_from=yesterday"), 422),
        ("ada", format!("{path}?timestamp_from={begun}&timestamp_to={before}"), 422),
        ("ada", "/api/v1/cluster/nowhere/data".into(), 404),
        ("pat", "/api/v1/cluster/edge/data?cluster_id=other".into(), 422),
    ] {
        let answer = ask(who, &path).await;
        assert_eq!(answer.status, status, "{who} {path}: {answer:?}");
    }
    world.stop().await;
}
