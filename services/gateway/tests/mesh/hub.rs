//! TMF921's hub: events come to callbacks in order, each at least once, from one notifier at a time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use mesh_core::Outgoing;
use mesh_proto::subscription::{ClaimDelivery, ReportDelivery};
use mesh_test::until;
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{Answer, Configs, World, intent};

const HUB: &str = "/tmf-api/intentManagement/v5/hub";

/// Whoever wants to be told: keeps what came, and answers with the statuses that it is given, then with 204.
#[derive(Clone, Default)]
struct Listener {
    came: Arc<Mutex<Vec<Json>>>,
    statuses: Arc<Mutex<VecDeque<u16>>>,
}

impl Listener {
    async fn start(statuses: &[u16]) -> (Self, String) {
        let listener = Self::default();
        listener.statuses.lock().unwrap().extend(statuses);
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/events", socket.local_addr().unwrap());
        let own = listener.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                tokio::spawn(own.clone().answer(stream));
            }
        });
        (listener, url)
    }

    async fn answer(self, mut stream: TcpStream) {
        let (mut head, mut byte) = (vec![], [0; 1]);
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                return;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().trim().parse().unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let status = self.statuses.lock().unwrap().pop_front().unwrap_or(204);
        if status == 204 {
            self.came.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
        }
        // A redirection is nothing that anybody follows.
        let said =
            format!("HTTP/1.1 {status} x\r\nlocation: /elsewhere\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let _gone = stream.write_all(said.as_bytes()).await;
    }

    /// Types of the events about an intent, and its state in each.
    fn of(&self, id: &str) -> Vec<(String, String)> {
        let came = self.came.lock().unwrap();
        let about = came.iter().filter(|event| event["event"]["intent"]["id"] == id);
        let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        about.map(|e| (text(&e["eventType"]), text(&e["event"]["intent"]["lifecycleStatus"]))).collect()
    }
}

fn local(configs: &mut Configs) {
    configs.notifier.callbacks_private = "127.0.0.1".into();
}

fn told(kinds: &[(&str, &str)]) -> Vec<(String, String)> {
    kinds.iter().map(|(kind, state)| ((*kind).to_owned(), (*state).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_in_order_though_calls_fail_and_notifiers_stop() {
    let Some(mut world) = World::start_with("gateway, hub", 1, 2, local).await else { return };
    let token = world.admin().await;
    let (listener, url) = Listener::start(&[500, 302]).await;
    let (some, some_url) = Listener::start(&[]).await;
    let made = world.ask(&token, "POST", HUB, Some(json!({"@type": "Hub", "callback": url}))).await;
    assert_eq!((made.status, made.body["@type"].as_str()), (201, Some("Hub")), "{made:?}");
    let id = made.body["id"].as_str().unwrap().to_owned();
    assert_eq!(made.headers["location"], format!("{HUB}/{id}"));
    let narrow = json!({"callback": some_url, "query": "eventType=IntentDeleteEvent"});
    assert_eq!(world.ask(&token, "POST", HUB, Some(narrow)).await.status, 201);
    let submit = async |world: &World, id: &str| {
        let made = world.ask(&token, "POST", "/api/v1/intent/", Some(json!({"id": id, "intent": intent("20")}))).await;
        assert_eq!(made.status, 201, "{made:?}");
        let path = format!("/api/v1/intent/{id}/action/");
        let suspended = world.ask(&token, "PUT", &path, Some(json!({"action": "SUSPEND"}))).await;
        assert_eq!(suspended.status, 200, "{suspended:?}");
        assert_eq!(world.ask(&token, "DELETE", &format!("/api/v1/intent/{id}/"), None).await.status, 204);
    };
    let life = told(&[
        ("IntentCreateEvent", "SUBMITTED"),
        ("IntentStatusChangeEvent", "ACKNOWLEDGED"),
        ("IntentStatusChangeEvent", "SUSPENDED"),
        ("IntentDeleteEvent", "TERMINATED"),
    ]);
    // The two calls that fail are made again: nothing is left out, and nothing comes before its time.
    let whole = |id: &'static str| {
        let listener = listener.clone();
        // Its reason may change in between, which is an event too.
        async move || {
            listener.of(id).into_iter().filter(|(kind, _)| !kind.contains("AttributeValue")).collect::<Vec<_>>()
        }
    };
    submit(&world, "first").await;
    until("the first life is told", whole("first"), |came: &Vec<_>| came.len() >= life.len()).await;
    assert_eq!(whole("first")().await, life);
    until("the other is told of ends only", async || some.of("first"), |came: &Vec<_>| !came.is_empty()).await;
    assert_eq!(some.of("first"), told(&[("IntentDeleteEvent", "TERMINATED")]));
    // What a call came to is known only after whoever was called heard it.
    until(
        "no failure is left",
        async || world.ask(&token, "GET", &format!("{HUB}/{id}"), None).await,
        |shown: &Answer| (shown.status, shown.body["failures"].as_u64()) == (200, Some(0)),
    )
    .await;
    // One notifier stops, the other goes on.
    world.running.pop().unwrap().stop().await;
    submit(&world, "second").await;
    until("the second life is told", whole("second"), |came: &Vec<_>| came.len() >= life.len()).await;
    assert_eq!(whole("second")().await, life);
    // No event came twice: nobody was lost between sending and reporting.
    let ids: Vec<String> = listener.came.lock().unwrap().iter().map(|e| e["eventId"].to_string()).collect();
    let mut once = ids.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), ids.len());
    // Unsubscribed, it hears no more.
    assert_eq!(world.ask(&token, "DELETE", &format!("{HUB}/{id}"), None).await.status, 204);
    submit(&world, "third").await;
    until("the other is told of the third", async || some.of("third"), |came: &Vec<_>| !came.is_empty()).await;
    assert_eq!(listener.of("third"), []);
    let shown = async || world.ask(&token, "GET", &format!("{HUB}/{id}"), None).await.status;
    until("it is gone", shown, |status| *status == 404).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_notifier_had_claimed_another_delivers_later() {
    let Some(world) = World::start("gateway, hub claims", 1, local).await else { return };
    let token = world.admin().await;
    let (listener, url) = Listener::start(&[]).await;
    let made = world.ask(&token, "POST", HUB, Some(json!({"callback": url}))).await;
    assert_eq!(made.status, 201, "{made:?}");
    let id = made.body["id"].as_str().unwrap().to_owned();
    // A notifier that claims, and is never heard of again.
    let bus = world.test_bus.connect("notifier").await;
    let claim = ClaimDelivery { owner: "local".into(), subscription_id: id.clone(), holder: "gone".into() };
    bus.publish(&Outgoing::new(&claim, "claim-of-the-lost", mesh_test::now()).unwrap()).await.unwrap();
    let claimed = format!("subscription.delivery_claimed.v1.local.{id}");
    until("it holds the claim", async || bus.log("SUBSCRIPTION").last(&claimed).await.unwrap(), Option::is_some).await;
    let begun = std::time::Instant::now();
    let made = world.ask(&token, "POST", "/api/v1/intent/", Some(json!({"id": "late", "intent": intent("20")}))).await;
    assert_eq!(made.status, 201, "{made:?}");
    until("its events come", async || listener.of("late"), |came: &Vec<_>| came.len() >= 2).await;
    assert!(begun.elapsed().as_secs() >= 25, "the claim was respected: {:?}", begun.elapsed());
    // What the lost one says now is not heard.
    let report = ReportDelivery {
        owner: "local".into(),
        subscription_id: id.clone(),
        holder: "gone".into(),
        through: 1_000_000,
        failure: String::new(),
    };
    bus.publish(&Outgoing::new(&report, "report-of-the-lost", mesh_test::now()).unwrap()).await.unwrap();
    let refused = format!("subscription.refused.v1.local.{id}");
    until("it is refused", async || bus.log("SUBSCRIPTION").last(&refused).await.unwrap(), Option::is_some).await;
    assert_eq!(world.ask(&token, "DELETE", "/api/v1/intent/late/", None).await.status, 204);
    let ended = |came: &Vec<(String, String)>| came.iter().any(|(kind, _)| kind == "IntentDeleteEvent");
    until("its end comes, too", async || listener.of("late"), ended).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impossible_subscription_is_refused_with_its_field() {
    let Some(world) = World::start("gateway, hub refusals", 1, |_| {}).await else { return };
    let admin = world.admin().await;
    let ada = world.account(&admin, "ada", &["owner"]).await;
    let eve = world.account(&admin, "eve", &["owner"]).await;
    let viewer = world.account(&admin, "vic", &["viewer"]).await;
    for (body, field) in [
        (json!({"callback": "http://127.0.0.1:1/"}), "callback"),
        (json!({"callback": "http://169.254.169.254/latest"}), "callback"),
        (json!({"callback": "ftp://listener.example/"}), "callback"),
        (json!({"callback": "https://u:p@listener.example/"}), "callback"),
        (json!({"callback": "https://listener.example/", "query": "eventType=Nothing"}), "query"),
        (json!({"query": ""}), "callback"),
    ] {
        let refused = world.ask(&ada, "POST", HUB, Some(body)).await;
        assert_eq!((refused.status, refused.body["errors"][0]["path"].as_str()), (422, Some(field)), "{refused:?}");
    }
    let good = json!({"callback": "https://listener.example/"});
    assert_eq!(world.ask(&viewer, "POST", HUB, Some(good.clone())).await.status, 403);
    let key = [("idempotency-key", "once")];
    let made = world.with(&ada, "POST", HUB, &key, Some(good.clone())).await;
    assert_eq!(made.status, 201, "{made:?}");
    let again = world.with(&ada, "POST", HUB, &key, Some(good.clone())).await;
    assert_eq!((again.status, &again.body["id"]), (201, &made.body["id"]), "{again:?}");
    let other = json!({"callback": "https://other.example/"});
    let other = world.with(&ada, "POST", HUB, &key, Some(other)).await;
    assert_eq!((other.status, other.body["type"].as_str()), (422, Some("/problems/idempotency-key")), "{other:?}");
    let path = format!("{HUB}/{}", made.body["id"].as_str().unwrap());
    assert_eq!(world.ask(&eve, "GET", &path, None).await.status, 404, "another owner's is not there");
    assert_eq!(world.ask(&eve, "DELETE", &path, None).await.status, 404);
    for _ in 1..16 {
        assert_eq!(world.ask(&ada, "POST", HUB, Some(good.clone())).await.status, 201);
    }
    let many = world.ask(&ada, "POST", HUB, Some(good)).await;
    assert_eq!((many.status, many.body["type"].as_str()), (409, Some("/problems/conflict")), "{many:?}");
    world.stop().await;
}
