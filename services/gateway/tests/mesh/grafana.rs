//! What Grafana shows, and warns of: its files have its structure, and a real Prometheus, configured as the shipped file says,
//! has an answer to each of their queries.

use std::collections::BTreeMap;

use mesh_proto::{derived_id, observation::TargetObserved};
use serde::Deserialize;

use super::{
    telemetry::{achieved, store},
    *,
};

/// Where Debian's Prometheus is, if it is here.
pub(super) fn prometheus() -> Option<PathBuf> {
    let bin = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.tools/debian/usr/bin");
    if !bin.join("promtool").exists() {
        eprintln!("SKIPPED: gateway, Prometheus: no .tools/debian/usr/bin/promtool (run `make setup-test`)");
        return None;
    }
    Some(bin)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_prometheus_scrapes_what_is_measured() {
    let Some(bin) = prometheus() else { return };
    let observed = |configs: &mut Configs| configs.observed = true;
    let Some(world) = World::start("gateway, Prometheus", 1, observed).await else { return };
    let admin = world.admin().await;
    let ada = world.account(&admin, "ada", &["viewer"]).await;
    let page = with_intents(&world, &admin, &ada).await;
    let text = page.body.as_str().unwrap();
    assert!(text.contains("entity_id=\"adas\"") && text.contains("entity_id=\"edge-1\""), "{text}");
    assert!(!text.contains("bobs") && text.contains("continuum_stream_messages_total{stream=\"INTENT\"}"), "{text}");
    // Debian's promtool checks names, units and types; it reads the older format, which has no end mark and no units.
    let mut child = tokio::process::Command::new(bin.join("promtool"))
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let older: String = text
        .lines()
        .filter(|line| !line.starts_with("# UNIT") && *line != "# EOF")
        .map(|line| match line.split_once(" counter") {
            // In it, the name of a counter's family has the suffix.
            Some((head, "")) if head.starts_with("# TYPE ") => format!("{head}_total counter\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    child.stdin.take().unwrap().write_all(older.as_bytes()).await.unwrap();
    let checked = soon("promtool ends", child.wait_with_output()).await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    let wrong: Vec<&str> = said.lines().filter(|line| !line.contains("no help text")).collect();
    assert!(wrong.is_empty(), "{wrong:?}\n{older}");

    let folder = tempfile::tempdir().unwrap();
    configure(&world, &ada, folder.path());
    let config = folder.path().join("prometheus.yml");
    let checked =
        std::process::Command::new(bin.join("promtool")).args(["check", "config"]).arg(&config).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    assert!(checked.status.success() && said.contains(" rules found") && !said.contains("WARNING"), "{said}");
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let at = format!("127.0.0.1:{port}");
    let _server = tokio::process::Command::new(bin.join("prometheus"))
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address={at}"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let ask = async |query: &str| {
        let path = format!("/api/v1/query?query={query}");
        let request = Request::get(format!("http://{at}{path}")).body(Full::new(Bytes::new())).unwrap();
        let Ok(response) = world.http.request(request).await else { return Json::Null };
        let body = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice::<Json>(&body).unwrap_or_default()["data"]["result"].clone()
    };
    let has = |result: &Json| result.as_array().is_some_and(|result| !result.is_empty());
    let found =
        until("Prometheus has scraped", async || ask("system_cpu_time_seconds_total").await, |found| has(found)).await;
    let metric = &found[0]["metric"];
    assert_eq!((metric["cluster"].as_str(), metric["cpu_mode"].as_str()), (Some("edge"), Some("user")), "{found}");
    let up = |job: &str| format!("sum%28up%7Bjob%3D%22{job}%22%7D%29");
    assert_eq!(ask(&up("continuum")).await[0]["value"][1], "1");
    let all = world.running.len().to_string();
    until(
        "every service is scraped",
        async || ask(&up("continuum-services")).await,
        |found| found[0]["value"][1] == *all,
    )
    .await;
    // Every question of Grafana's dashboards and alert rules has an answer.
    let queries = grafana_queries();
    for (title, query) in &queries {
        let query = query.replace("$__rate_interval", "1m").replace("$cluster", ".*");
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        until(&format!("{title}: {query}"), async || ask(&encoded).await, |found| has(found)).await;
    }
    println!("{} queries of Grafana's dashboards and alert rules: each gives data", queries.len());
    assert!(queries.len() > 50);
    world.stop().await;
}

fn grafana() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/grafana")
}

fn dashboards() -> Vec<(String, String)> {
    let files = std::fs::read_dir(grafana().join("dashboards")).unwrap();
    files
        .map(|file| {
            let path = file.unwrap().path();
            (path.file_stem().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(&path).unwrap())
        })
        .collect()
}

/// What Grafana would ask Prometheus: title, and query.
fn grafana_queries() -> Vec<(String, String)> {
    let mut queries = vec![];
    for (name, text) in dashboards() {
        let dashboard: Json = serde_json::from_str(&text).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let title = format!("{name}: {}", panel["title"].as_str().unwrap());
                queries.push((title, target["expr"].as_str().unwrap().to_owned()));
            }
        }
    }
    for rule in provisioned::<Alerting>("alerting/continuum.yaml").groups.into_iter().flat_map(|group| group.rules) {
        let asked = rule.data.iter().filter_map(|data| data.model.expr.clone());
        queries.extend(asked.map(|query| (rule.title.clone(), query)));
    }
    queries
}

/// A file of Grafana's provisioning.
fn provisioned<T: serde::de::DeserializeOwned>(path: &str) -> T {
    let text = std::fs::read_to_string(grafana().join("provisioning").join(path)).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

// What files of Grafana's provisioning may hold, as far as ours do: `apiVersion: 1` of data sources, dashboards and alert rules.

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Alerting {
    api_version: u32,
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Group {
    org_id: u32,
    name: String,
    folder: String,
    interval: String,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    uid: String,
    title: String,
    condition: String,
    data: Vec<Step>,
    no_data_state: Absent,
    exec_err_state: OnError,
    #[serde(rename = "for")]
    hold: String,
    annotations: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
enum Absent {
    NoData,
    Alerting,
    #[serde(rename = "OK")]
    Okay,
    KeepLast,
}

#[derive(Debug, Deserialize)]
enum OnError {
    Error,
    Alerting,
    #[serde(rename = "OK")]
    Okay,
    KeepLast,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Step {
    ref_id: String,
    relative_time_range: Span,
    datasource_uid: String,
    model: Model,
}

/// Seconds before now.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Span {
    from: u32,
    to: u32,
}

/// A query, or an expression over others.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Model {
    ref_id: String,
    expr: Option<String>,
    instant: Option<bool>,
    #[serde(rename = "type")]
    kind: Option<Expression>,
    expression: Option<String>,
    #[serde(default)]
    conditions: Vec<Threshold>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expression {
    Threshold,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Threshold {
    evaluator: Evaluator,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Evaluator {
    #[serde(rename = "type")]
    kind: Side,
    params: Vec<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    Gt,
    Lt,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Sources {
    api_version: u32,
    datasources: Vec<Source>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Source {
    name: String,
    uid: String,
    #[serde(rename = "type")]
    kind: String,
    access: Access,
    url: String,
    is_default: bool,
    json_data: SourceOptions,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Access {
    Proxy,
    Direct,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SourceOptions {
    time_interval: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Providers {
    api_version: u32,
    providers: Vec<Provider>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    name: String,
    folder: String,
    #[serde(rename = "type")]
    kind: String,
    options: ProviderOptions,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderOptions {
    path: String,
}

/// Is it a length of time, as Grafana and Prometheus write it?
fn is_duration(text: &str) -> bool {
    let digits = text.trim_end_matches(['s', 'm', 'h']);
    text.len() == digits.len() + 1 && digits.parse::<u32>().is_ok()
}

#[test]
fn the_files_for_grafanas_provisioning_have_its_structure() {
    let sources: Sources = provisioned("datasources/continuum.yaml");
    let [source] = &sources.datasources[..] else { panic!("{sources:?}") };
    assert_eq!((sources.api_version, source.kind.as_str(), &source.access), (1, "prometheus", &Access::Proxy));
    assert!(source.is_default && !source.name.is_empty() && source.url.starts_with("http://"), "{source:?}");
    assert!(is_duration(&source.json_data.time_interval), "{source:?}");
    let providers: Providers = provisioned("dashboards/continuum.yaml");
    let [provider] = &providers.providers[..] else { panic!("{providers:?}") };
    assert_eq!((providers.api_version, provider.kind.as_str()), (1, "file"));
    assert!(!provider.name.is_empty() && !provider.folder.is_empty(), "{provider:?}");
    assert_eq!(provider.options.path, "${CONTINUUM_GRAFANA}/dashboards");

    let alerting: Alerting = provisioned("alerting/continuum.yaml");
    assert_eq!(alerting.api_version, 1);
    let [group] = &alerting.groups[..] else { panic!("{alerting:?}") };
    assert!(
        group.org_id == 1 && !group.name.is_empty() && group.folder == provider.folder && is_duration(&group.interval)
    );
    let (mut uids, mut titles) = (BTreeSet::new(), BTreeSet::new());
    for rule in &group.rules {
        assert!(uids.insert(&rule.uid) && rule.uid.len() <= 40 && titles.insert(&rule.title), "{rule:?}");
        assert!(is_duration(&rule.hold) && !rule.annotations["summary"].is_empty(), "{rule:?}");
        assert_eq!(rule.labels["team"], "continuum");
        assert!(matches!((&rule.no_data_state, &rule.exec_err_state), (Absent::NoData, OnError::Error)), "{rule:?}");
        // A query of the data source, and a threshold over it, which is what fires.
        let [query, threshold] = &rule.data[..] else { panic!("{rule:?}") };
        assert_eq!((&query.datasource_uid, &query.ref_id), (&source.uid, &query.model.ref_id));
        assert!(
            query.model.expr.is_some() && query.model.instant == Some(true) && query.model.kind.is_none(),
            "{rule:?}"
        );
        assert_eq!((threshold.datasource_uid.as_str(), &threshold.ref_id), ("__expr__", &rule.condition));
        assert_eq!((&threshold.model.kind, &threshold.model.ref_id), (&Some(Expression::Threshold), &rule.condition));
        assert_eq!(threshold.model.expression.as_ref(), Some(&query.ref_id));
        let [condition] = &threshold.model.conditions[..] else { panic!("{rule:?}") };
        assert!(matches!(condition.evaluator.kind, Side::Gt | Side::Lt) && condition.evaluator.params.len() == 1);
        assert!(rule.data.iter().all(|step| step.relative_time_range.from > step.relative_time_range.to), "{rule:?}");
    }
    for about in ["anomaly", "intent-unfulfilled", "consumer-lag", "dead-letters", "service-silent"] {
        assert!(uids.contains(&format!("continuum-{about}")), "{about} is not among {uids:?}");
    }
}

/// An intent of ada's that is in force and was observed, and the page with what it achieved.
async fn with_intents(world: &World, admin: &str, ada: &str) -> Answer {
    let document = json!({"name": "echo", "version": "1.0.0", "kind": "process", "driver": "simulated",
        "process": {"command": "true"}, "resources": {"cpu_milli": 10, "memory_bytes": 1_000_000}, "replicas": 1});
    let made = world.ask(admin, "POST", "/api/v1/workload/?owner=ada", Some(document)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let mut wanted = intent("20");
    wanted["intent_expectations"][0]["expectation_object"]["object_instance"] = json!("echo@1.0.0");
    let wanted = json!({"id": "plant", "intent": wanted});
    let made = world.ask(admin, "POST", "/api/v1/intent/?owner=ada", Some(wanted)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let page = async || world.ask(ada, "GET", "/api/v1/metrics/", None).await;
    let runs = |page: &Answer| page.body.as_str().is_some_and(|text| text.contains("state=\"COMPLIANT\""));
    until("an intent whose instance runs", page, runs).await;
    let collector = world.test_bus.connect("collector").await;
    let observed = TargetObserved {
        instance_id: derived_id(&["ada", "plant", "a"]),
        generation: 1,
        ..achieved("ada", "plant", 1, 34.5)
    };
    store(&collector, &observed, "observed").await;
    let is_there =
        |page: &Answer| page.body.as_str().is_some_and(|text| text.contains("continuum_intent_target_held{"));
    let page = until("what an intent achieved", page, is_there).await;
    let text = page.body.as_str().unwrap();
    let of = "owner=\"ada\",intent=\"plant\"";
    let target = format!("{of},expectation=\"a\",target=\"cpuUsage\"");
    for line in [
        format!("continuum_intent_target_achieved{{{target},unit=\"%\"}} 34.5"),
        format!("continuum_intent_target_bound{{{target},unit=\"%\"}} 20"),
        format!("continuum_intent_target_held{{{target}}} 0"),
        "continuum_metrics_intents 1".to_owned(),
    ] {
        assert!(text.lines().any(|known| known == line), "{line}\nis not in\n{text}");
    }
    assert!(text.contains(&format!("continuum_intent_fulfilled{{{of}}} ")), "{text}");
    // What is narrowed to measurements, or asked for by others, has no intents.
    for (token, query, there) in [(ada, "?entity_kind=node", false), (admin, "?owner=bob", false), (admin, "", true)] {
        let page = world.ask(token, "GET", &format!("/api/v1/metrics/{query}"), None).await;
        assert_eq!(page.body.as_str().unwrap().contains("intent=\"plant\""), there, "{query}: {page:?}");
    }
    page
}

/// The configuration that is shipped, with the addresses of this mesh.
fn configure(world: &World, token: &str, folder: &Path) {
    let shipped = std::fs::read_to_string(grafana().join("prometheus.yml")).unwrap();
    let target = world.urls[0].strip_prefix("http://").unwrap();
    let mut config = shipped.clone();
    for (shipped, here) in [
        ("127.0.0.1:8000", target),
        ("scrape_interval: 5s", "scrape_interval: 1s"),
        ("scrape_interval: 15s", "scrape_interval: 1s"),
    ] {
        assert_eq!(config.matches(shipped).count(), 1, "{shipped}");
        config = config.replace(shipped, here);
    }
    std::fs::write(folder.join("prometheus.yml"), config).unwrap();
    std::fs::write(folder.join("continuum.token"), token).unwrap();
    std::fs::copy(grafana().join("rules.yml"), folder.join("rules.yml")).unwrap();
    // As services.py writes it.
    let services = world.running.iter().map(|running| {
        let address = running.endpoint().trim_start_matches("http://").trim_end_matches('/').to_owned();
        json!({"targets": [address], "labels": {"service_name": running.mesh().name()}})
    });
    std::fs::write(folder.join("services.json"), services.collect::<Json>().to_string()).unwrap();
}

#[test]
fn the_dashboards_are_what_grafanas_own_types_say() {
    let tools = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.tools/dashboard");
    if !tools.join("node_modules/@grafana/schema").is_dir() {
        eprintln!(
            "SKIPPED: gateway, Grafana's schema: no .tools/dashboard/node_modules/@grafana (run `make setup-test`)"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(tools.join("node_modules").canonicalize().unwrap(), folder.path().join("node_modules"))
        .unwrap();
    let check = |texts: &[(String, String)]| {
        for (name, text) in texts {
            let text = format!(
                "import type {{ Dashboard }} from \"@grafana/schema\";\nexport const it: Dashboard = {text};\n"
            );
            std::fs::write(folder.path().join(format!("{name}.ts")), text).unwrap();
        }
        let done = std::process::Command::new(tools.join("node_modules/.bin/tsc"))
            .args(["--noEmit", "--strict", "--skipLibCheck", "--moduleResolution", "bundler", "--module", "esnext"])
            .args(["--target", "es2022"])
            .args(texts.iter().map(|(name, _)| format!("{name}.ts")))
            .current_dir(folder.path())
            .output()
            .unwrap();
        (done.status.success(), String::from_utf8_lossy(&done.stdout).into_owned())
    };
    let all = dashboards();
    assert_eq!(all.len(), 6);
    let (fits, said) = check(&all);
    assert!(fits, "{said}");
    let broken = all.iter().map(|(name, text)| (name.clone(), text.replace("schemaVersion", "schemaversion")));
    let (fits, said) = check(&broken.collect::<Vec<_>>());
    assert!(!fits && said.contains("schemaversion"), "what does not fit is found: {said}");
    let current = std::process::Command::new("python3").arg(grafana().join("generate.py")).arg("--check").output();
    let current = current.unwrap();
    assert!(current.status.success(), "{}", String::from_utf8_lossy(&current.stderr));
}
