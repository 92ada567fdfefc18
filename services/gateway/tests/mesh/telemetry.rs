//! Measurements over REST: values over time, streams that go on where they broke off, settings, and what Prometheus reads.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use mesh_core::Outgoing;
use mesh_proto::{
    AnyEvent, Timestamp,
    anomaly::AnomalyDetected,
    observation::{ObservedTarget, TargetObserved, ThresholdCrossed},
};
use tokio::sync::mpsc;

use super::{grafana::prometheus, *};

/// One server-sent event.
#[derive(Debug)]
struct Event {
    id: String,
    name: String,
    data: Json,
}

/// Reads a stream of events until there are `count`.
async fn events(world: &World, token: &str, path: &str, last_id: Option<&str>, count: usize) -> Vec<Event> {
    let mut request =
        Request::get(format!("{}{path}", world.urls[0])).header("authorization", format!("Bearer {token}"));
    if let Some(id) = last_id {
        request = request.header("last-event-id", id);
    }
    let mut response = world.http.request(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (mut text, mut found) = (String::new(), vec![]);
    soon("the events", async {
        while found.len() < count {
            let frame = response.body_mut().frame().await.expect("the stream goes on").unwrap();
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            while let Some((block, rest)) = text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = block.lines().find_map(|line| line.strip_prefix(name));
                    line.map(|value| value.trim_start().to_owned()).unwrap_or_default()
                };
                let data = field("data:");
                if !data.is_empty() {
                    let data = serde_json::from_str(&data).unwrap();
                    found.push(Event { id: field("id:"), name: field("event:"), data });
                }
                text = rest.to_owned();
            }
        }
    })
    .await;
    found
}

pub(super) async fn store(bus: &mesh_bus::Bus, event: &dyn AnyEvent, id: &str) {
    bus.publish(&Outgoing::new(event, id, Timestamp { seconds: 1_700_000_000, nanos: 0 }).unwrap()).await.unwrap();
}

/// What the only target of an intent of [`intent`] achieved in a period of a minute, the newest of which ended just now.
pub(super) fn achieved(owner: &str, intent_id: &str, ago: i64, value: f64) -> TargetObserved {
    let period = mesh_test::now().as_millis() / 60_000 - ago;
    let at = |period: i64| Some(Timestamp::from_millis(period * 60_000));
    TargetObserved {
        owner: owner.into(),
        intent_id: intent_id.into(),
        version: 1,
        instance_id: "i".into(),
        period: period.cast_unsigned(),
        begin: at(period),
        end: at(period + 1),
        targets: vec![ObservedTarget {
            expectation_id: "a".into(),
            target_name: "cpuUsage".into(),
            value,
            samples: 60,
            ..ObservedTarget::default()
        }],
        cluster_id: "edge".into(),
        ..TargetObserved::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn achieved_values_are_given_as_json_and_csv_to_whose_intent_it_is() {
    let Some(world) = World::start("gateway, achieved values", 1, |_| {}).await else { return };
    let admin = world.admin().await;
    let (ada, bob) = (world.account(&admin, "ada", &["owner"]).await, world.account(&admin, "bob", &["viewer"]).await);
    let submitted = json!({"id": "plant", "intent": intent("20")});
    let made = world.ask(&ada, "POST", "/api/v1/intent/", Some(submitted)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let collector = world.test_bus.connect("collector").await;
    for (ago, value) in [(3, 0.0), (2, 34.5), (1, 12.0)] {
        store(&collector, &achieved("ada", "plant", ago, value), &format!("achieved {ago}")).await;
    }
    let path = "/api/v1/intent/plant/achieved/";
    let answer = async || world.ask(&ada, "GET", &format!("{path}?from=-1h&target=cpuUsage"), None).await;
    let all = until("three values", answer, |answer: &Answer| {
        answer.status == 200 && answer.body.as_array().is_some_and(|values| values.len() == 3)
    });
    let all = all.await.body;
    let told = |value: &Json| (value["value"].as_f64().unwrap(), value["held"].as_bool().unwrap());
    assert_eq!(
        all.as_array().unwrap().iter().map(told).collect::<Vec<_>>(),
        [(12.0, true), (34.5, false), (0.0, true)]
    );
    assert_eq!((&all[0]["unit"], &all[0]["target_value_range"]), (&json!("%"), &json!("20")), "{all}");
    let page = world.ask(&ada, "GET", &format!("{path}?page_size=2"), None).await;
    let link = page.headers["link"].to_str().unwrap();
    let next = link.split_once('<').and_then(|(_, link)| link.split_once('>')).unwrap().0;
    let rest = world.ask(&ada, "GET", next, None).await;
    assert_eq!((&page.body[1], &rest.body), (&all[1], &json!([all[2]])), "{link}");
    let csv = world.with(&ada, "GET", path, &[("accept", "text/csv")], None).await;
    assert!(csv.headers["content-type"].to_str().unwrap().starts_with("text/csv"));
    let lines: Vec<&str> = csv.body.as_str().unwrap().lines().collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines[2].ends_with(",plant,a,cpuUsage,34.5,%,IS_LESS_THAN,20,false,1,i,edge"), "{lines:?}");
    for (token, query, status, named) in [
        (&bob, "", 404, ""),
        (&bob, "?owner=ada", 404, ""),
        (&admin, "?owner=ada", 200, ""),
        (&ada, "?target=speed", 422, "target"),
        (&ada, "?from=yesterday", 422, "from"),
        (&ada, "?from=-1h&to=-2h", 422, "from"),
        (&ada, "?page_token=7", 422, "page_token"),
        (&ada, "?format=xml", 422, "format"),
    ] {
        let answer = world.ask(token, "GET", &format!("{path}{query}"), None).await;
        assert_eq!(answer.status, status, "{query}: {answer:?}");
        assert_eq!(answer.body["errors"][0]["path"].as_str().unwrap_or_default(), named, "{query}: {answer:?}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_asked_for_over_time_as_json_and_as_csv() {
    let Some(world) = World::start("gateway, telemetry", 1, |_| {}).await else { return };
    let admin = world.admin().await;
    let ada = world.account(&admin, "ada", &["owner"]).await;
    let base = "/api/v1/telemetry/query/?from=2027-01-15T08:00:00Z&to=2027-01-15T09:00:00Z&step=5m&function=p95";
    let all = world.ask(&admin, "GET", base, None).await;
    assert_eq!((all.status, all.body["resolution_seconds"].as_u64()), (200, Some(300)), "{all:?}");
    assert_eq!(all.body["series"].as_array().unwrap().len(), 6);
    // Of somebody's things only one's own; of the infrastructure what is asked for.
    let kinds = async |query: &str| {
        let answer = world.ask(&ada, "GET", &format!("{base}{query}"), None).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let series = answer.body["series"].as_array().unwrap().clone();
        series.iter().map(|one| one["entity"]["id"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    assert_eq!(kinds("").await, BTreeSet::from(["adas".to_owned()]));
    assert_eq!(kinds("&entity_kind=instance").await, BTreeSet::from(["adas".to_owned()]));
    assert_eq!(kinds("&entity_kind=node").await, BTreeSet::from(["edge-1".to_owned()]));
    let others = world.ask(&ada, "GET", &format!("{base}&owner=bob"), None).await;
    assert_eq!(others.status, 404, "{others:?}");
    let csv = format!("{base}&entity_kind=node&metric=system.cpu.*");
    let csv = world.with(&ada, "GET", &csv, &[("accept", "text/csv")], None).await;
    assert!(csv.headers["content-type"].to_str().unwrap().starts_with("text/csv"));
    let lines: Vec<&str> = csv.body.as_str().unwrap().lines().collect();
    assert_eq!(lines[1], "2027-01-15T08:00:00Z,node,edge-1,edge,edge-1,,system.cpu.time,s,cpu.mode=user,1");
    assert_eq!(lines.len(), 3, "{lines:?}");
    let agents = world.ask(&ada, "GET", "/api/v1/telemetry/inventory/?page_size=1", None).await;
    assert_eq!((agents.status, agents.body.as_array().unwrap().len()), (200, 1), "{agents:?}");
    assert!(agents.headers["link"].to_str().unwrap().contains("page_token=cloud"), "{:?}", agents.headers);
    let entities = agents.body[0]["entities"].as_array().unwrap();
    assert_eq!((agents.body[0]["probes"].as_array().unwrap().len(), entities.len()), (2, 2), "not bob's: {agents:?}");
    assert_eq!(entities[0]["up"], true, "{agents:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_go_on_where_they_broke_off_and_show_only_ones_own() {
    let Some(world) = World::start("gateway, streams of events", 1, |_| {}).await else { return };
    let admin = world.admin().await;
    let ada = world.account(&admin, "ada", &["viewer"]).await;
    let path = "/api/v1/telemetry/stream/?metric=system.memory.usage";
    let first = events(&world, &ada, path, None, 4).await;
    assert_eq!((first[0].name.as_str(), first[0].id.as_str()), ("readings", "101"));
    assert_eq!(first[0].data["series"][0]["values"], json!([[101_000, 101.0]]));
    assert_eq!(first[0].data["series"].as_array().unwrap().len(), 1, "{:?}", first[0].data);
    assert_eq!(first[2].data["missed"], 7);
    let next = events(&world, &ada, path, Some(&first[3].id), 1).await;
    assert_eq!(next[0].id, "105", "after the last that was seen");
    let all = events(&world, &admin, path, None, 1).await;
    assert_eq!(all[0].data["series"].as_array().unwrap().len(), 3);

    let (detector, collector) =
        (world.test_bus.connect("sar-detector").await, world.test_bus.connect("collector").await);
    for (number, owner) in ["ada", "bob", "ada"].into_iter().enumerate() {
        let anomaly = AnomalyDetected {
            owner: owner.into(),
            instance_id: format!("i{number}"),
            sentence: format!("number {number}"),
            ..AnomalyDetected::default()
        };
        store(&detector, &anomaly, &format!("anomaly {number}")).await;
        let crossed = ThresholdCrossed {
            owner: owner.into(),
            condition_id: format!("c{number}"),
            raised: true,
            ..ThresholdCrossed::default()
        };
        store(&collector, &crossed, &format!("crossed {number}")).await;
    }
    let (stream, after) = ("/api/v1/anomaly/stream/", "/api/v1/anomaly/stream/?after=0");
    let own = events(&world, &ada, after, None, 2).await;
    let said: Vec<&str> = own.iter().map(|event| event.data["data"]["sentence"].as_str().unwrap()).collect();
    assert_eq!((said, own[0].name.as_str()), (vec!["number 0", "number 2"], "AnomalyDetected"));
    let next = events(&world, &ada, stream, Some(&own[0].id), 1).await;
    assert_eq!(next[0].data["data"]["sentence"], "number 2");
    assert_eq!(events(&world, &admin, after, None, 3).await.len(), 3);
    let bobs = events(&world, &admin, &format!("{after}&owner=bob"), None, 1).await;
    assert_eq!(bobs[0].data["data"]["sentence"], "number 1");
    let crossings = events(&world, &ada, "/api/v1/observation/stream/?after=0", None, 2).await;
    assert_eq!(crossings[1].data["data"]["condition_id"], "c2");
    for (headers, status) in [(vec![("last-event-id", "x")], 400), (vec![], 404)] {
        let path = if headers.is_empty() { "/api/v1/anomaly/stream/?owner=bob" } else { stream };
        let refused = world.with(&ada, "GET", path, &headers, None).await;
        assert_eq!(refused.status, status, "{refused:?}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_streams_are_open_than_are_allowed() {
    let few = |configs: &mut Configs| configs.gateway.watches_max = 2;
    let Some(world) = World::start("gateway, limit of streams", 1, few).await else { return };
    let admin = world.admin().await;
    let request = || {
        let request = Request::get(format!("{}/api/v1/anomaly/stream/", world.urls[0]));
        let request = request.header("authorization", format!("Bearer {admin}"));
        world.http.request(request.body(Full::new(Bytes::new())).unwrap())
    };
    let (first, second) = (request().await.unwrap(), request().await.unwrap());
    assert_eq!((first.status(), second.status()), (http::StatusCode::OK, http::StatusCode::OK));
    assert_eq!(request().await.unwrap().status(), 429);
    drop(first);
    until("one that ended makes room", async || request().await.unwrap().status(), |status| *status == 200).await;
    drop(second);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_and_conditions_are_set_shown_and_taken_back() {
    let Some(world) = World::start("gateway, measurement", 1, |_| {}).await else { return };
    let admin = world.admin().await;
    let ada = world.account(&admin, "ada", &["owner"]).await;
    let path = "/api/v1/measurement/edge/fast/";
    let setting = json!({"selector": {"entity_kind": "node", "probe": "cpu"}, "interval_ms": 250});
    assert_eq!(world.ask(&ada, "PUT", path, Some(setting.clone())).await.status, 403, "it is the provider's");
    let set = world.ask(&admin, "PUT", path, Some(setting.clone())).await;
    assert_eq!((set.status, &set.body["setting"]), (200, &setting), "{set:?}");
    let shown = async || world.ask(&ada, "GET", path, None).await;
    until("the setting is shown", shown, |answer: &Answer| answer.status == 200).await;
    let listed = world.ask(&ada, "GET", "/api/v1/measurement/?cluster_id=edge", None).await;
    assert_eq!(listed.body, json!([set.body]), "{listed:?}");
    let refused = world.ask(&admin, "PUT", path, Some(json!({"interval_ms": 9}))).await;
    assert_eq!(refused.status, 422, "by the decider: {refused:?}");
    assert_eq!(world.ask(&admin, "DELETE", path, None).await.status, 204);
    until("it is gone", shown, |answer: &Answer| answer.status == 404).await;

    let path = "/api/v1/condition/full/";
    let condition = json!({"entity_kind": "node", "metric": "system.memory.utilization", "side": "ABOVE",
        "threshold": 0.9, "clear": 0.8, "hold_seconds": 30});
    let defined = world.ask(&ada, "PUT", path, Some(condition.clone())).await;
    assert_eq!((defined.status, defined.body["owner"].as_str()), (200, Some("ada")), "{defined:?}");
    assert_eq!(defined.body["clear"], 0.8);
    let shown = async || world.ask(&ada, "GET", path, None).await;
    until("the condition is shown", shown, |answer: &Answer| answer.status == 200).await;
    let others = world.ask(&ada, "PUT", &format!("{path}?owner=bob"), Some(condition)).await;
    assert_eq!(others.status, 404, "{others:?}");
    let listed = world.ask(&ada, "GET", "/api/v1/condition/", None).await;
    assert_eq!((listed.status, &listed.body), (200, &json!({"conditions": [], "crossings": []})), "{listed:?}");
    assert_eq!(world.ask(&ada, "DELETE", path, None).await.status, 204);
    until("it is gone", shown, |answer: &Answer| answer.status == 404).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_named_origin_reads_streams_with_its_token() {
    let named = |configs: &mut Configs| configs.gateway.cors_origins = "https://boards.example".into();
    let Some(world) = World::start("gateway, CORS", 1, named).await else { return };
    let token = world.admin().await;
    let path = "/api/v1/anomaly/stream/";
    for (origin, allowed) in [("https://boards.example", true), ("https://evil.example", false)] {
        let asked = [
            ("origin", origin),
            ("access-control-request-method", "GET"),
            ("access-control-request-headers", "authorization,last-event-id"),
        ];
        let preflight = world.raw(0, "OPTIONS", path, &asked, "").await;
        assert_eq!(preflight.status, if allowed { 204 } else { 405 }, "{preflight:?}");
        let headers = preflight.headers.get("access-control-allow-headers").map(|value| value.to_str().unwrap());
        assert_eq!(headers.is_some_and(|names| names.contains("last-event-id")), allowed);
        let answer = world.with(&token, "GET", path, &[("origin", origin)], None).await;
        let shared = answer.headers.get("access-control-allow-origin").map(|value| value.to_str().unwrap());
        assert_eq!((answer.status, shared), (200, allowed.then_some(origin)));
        assert!(!answer.headers.contains_key("access-control-allow-credentials"));
    }
    let refused = world.raw(0, "GET", path, &[("origin", "https://boards.example")], "").await;
    assert_eq!(refused.status, 401, "{refused:?}");
    assert_eq!(refused.headers["access-control-allow-origin"], "https://boards.example", "why can be read");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_older_telemetry_interface_is_answered_from_what_is_known() {
    let Some(world) = World::start("gateway, SERRANO", 1, |_| {}).await else { return };
    let admin = world.admin().await;
    let base = "/api/v1/telemetry";
    let get = async |path: &str| {
        let answer = world.ask(&admin, "GET", &format!("{base}/{path}"), None).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.body
    };
    // As that platform's clients do: list the clusters, then ask about each by its id.
    let clusters = get("central/clusters").await;
    assert_eq!(clusters, json!({"clusters": [{"name": "edge", "type": "simulated", "uuid": "edge"}]}));
    assert_eq!(get("central/clusters/edge/").await["cluster_name"], "edge");
    let samples = get("central/clusters/monitor/edge").await;
    assert_eq!(samples["samples"][0]["cluster_uuid"], "edge");
    assert_eq!(samples["samples"][0]["state"]["node/edge-1"]["system.memory.utilization"], 0.5, "{samples}");
    assert!(!get("central/clusters/metrics/edge").await["samples"].as_array().unwrap().is_empty());
    assert_eq!(get("agent/entities").await["entities"][1]["status"], "UP");
    let location = &get("central/storage_locations").await["storage_locations"][0];
    assert_eq!(
        (location["cluster_uuid"].as_str(), &location["system_filesystem_usage_free"]),
        (Some("edge"), &json!(0.5))
    );
    assert_eq!(get("central/kernel_metrics").await, json!({"kernels": []}));
    assert_eq!(get("central/deployments").await, json!({"deployments": []}));
    let unknown = world.ask(&admin, "GET", &format!("{base}/agent/monitor/nowhere"), None).await;
    assert_eq!(unknown.status, 404, "{unknown:?}");
    // A session of streaming is settings of that cluster, which its end takes back.
    let session = json!({"cluster_uuid": "edge", "action": "start", "reporting_rate": 5, "nodes": ["edge-1"],
        "metrics": ["cpu", "memory"]});
    let begun = world.ask(&admin, "POST", &format!("{base}/agent/streaming/"), Some(session)).await;
    assert_eq!((begun.status, begun.body["sessionId"].as_str()), (201, Some("edge")), "{begun:?}");
    let set = async || world.ask(&admin, "GET", "/api/v1/measurement/?cluster_id=edge", None).await;
    let both =
        until("both are set", set, |answer: &Answer| answer.body.as_array().is_some_and(|all| all.len() == 2)).await;
    assert_eq!(both.body[0]["setting"]["interval_ms"], 5_000, "{both:?}");
    let ended = world.ask(&admin, "DELETE", &format!("{base}/probe/streaming/edge/"), None).await;
    assert_eq!(ended.status, 204, "{ended:?}");
    until("both are taken back", set, |answer: &Answer| answer.body == json!([])).await;
    let kept = world
        .ask(&admin, "PUT", &format!("{base}/agent/register/edge/"), Some(json!({"data_retain_period": 180})))
        .await;
    assert_eq!(kept.status, 200, "{kept:?}");
    for (method, path) in [("POST", "agent/register"), ("PUT", "central"), ("POST", "central/deployments")] {
        let refused = world.ask(&admin, method, &format!("{base}/{path}/"), None).await;
        assert_eq!((refused.status, refused.body["hint"].is_string()), (409, true), "{path}: {refused:?}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_prometheus_is_sent_what_is_measured() {
    let Some(bin) = prometheus() else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("prometheus.yml"), "").unwrap();
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let at = format!("127.0.0.1:{port}");
    let sends = |configs: &mut Configs| {
        configs.gateway.remote_write_url = format!("http://{at}/api/v1/write");
        configs.gateway.remote_write_interval_ms = 200;
    };
    // The receiver starts after who sends to it.
    let Some(world) = World::start("gateway, remote write", 1, sends).await else { return };
    let _server = tokio::process::Command::new(bin.join("prometheus"))
        .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address={at}"))
        .arg("--web.enable-remote-write-receiver")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let ask = async |query: &str| {
        let request = Request::get(format!("http://{at}/api/v1/query?query={query}")).body(Full::new(Bytes::new()));
        let Ok(response) = world.http.request(request.unwrap()).await else { return Json::Null };
        let body = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice::<Json>(&body).unwrap_or_default()["data"]["result"].clone()
    };
    let query = "count_over_time(system_cpu_time_seconds_total[1m])";
    let several = |found: &Json| found[0]["value"][1].as_str().is_some_and(|count| count.parse::<u32>().unwrap() > 2);
    let found = until("values have come", async || ask(query).await, several).await;
    assert_eq!(found[0]["metric"]["cpu_mode"], "user", "{found}");
    assert_eq!(ask("count(container_cpu_usage)").await[0]["value"][1], "2");
    world.stop().await;
}

/// A receiver that answers 503 three times, then once late, then at once. Gives each body, and whether it was taken.
async fn unsteady_receiver(at: &str) -> mpsc::UnboundedReceiver<(bool, Bytes)> {
    let (tell, received) = mpsc::unbounded_channel();
    let asked = Arc::new(AtomicUsize::new(0));
    let answer = move |body: Bytes| {
        let (tell, number) = (tell.clone(), asked.fetch_add(1, Ordering::Relaxed));
        async move {
            if number == 3 {
                tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            }
            // The test may have ended.
            let _ended = tell.send((number >= 3, body));
            if number < 3 { http::StatusCode::SERVICE_UNAVAILABLE } else { http::StatusCode::NO_CONTENT }
        }
    };
    let listener = TcpListener::bind(at).await.unwrap();
    let router = axum::Router::new().route("/write", axum::routing::post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    received
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_down_slow_or_failing_gets_everything_later() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let at = format!("127.0.0.1:{port}");
    let sends = |configs: &mut Configs| {
        configs.gateway.remote_write_url = format!("http://{at}/write");
        configs.gateway.remote_write_interval_ms = 200;
    };
    let Some(world) = World::start("gateway, remote write to an unsteady receiver", 1, sends).await else { return };
    let page = async || {
        let mut all = String::new();
        for running in &world.running {
            all += &mesh_test::page(&running.endpoint(), "/metrics").await.unwrap_or_default().1;
        }
        all
    };
    until("a request has failed, for nothing listens", page, |page| {
        page.contains("gateway_remote_writes_total{outcome=\"failed\"")
    })
    .await;
    let mut received = unsteady_receiver(&at).await;
    let (mut refused, mut taken) = (vec![], vec![]);
    while taken.len() < 8 {
        let (is_taken, body) = mesh_test::soon("a request", received.recv()).await.unwrap();
        if is_taken { taken.push(body) } else { refused.push(body) }
    }
    assert_eq!(refused.len(), 3);
    assert!(refused.iter().all(|body| *body == taken[0]), "the oldest is sent again until it is taken");
    let different: std::collections::BTreeSet<&Bytes> = taken.iter().collect();
    assert_eq!(different.len(), taken.len(), "each is taken once");
    let page = until("what was taken is counted", page, |page| page.contains("values_total{outcome=\"sent\"")).await;
    assert!(!page.contains("gateway_remote_write_values_total{outcome=\"dropped\""), "{page}");
    world.stop().await;
}
