//! A service drops idle entities from memory, and its views rest elsewhere. What it answers about an entity that was dropped,
//! and what it decides for it, is the same as before; and the same again after a restart.

use std::time::Duration;

use mesh_bus::Bus;
use mesh_core::Outgoing;
use mesh_kit::{Mesh, Settings};
use mesh_proto::{
    AnyEvent, derived_id,
    intent::{TerminateIntent, intent_queries_client::IntentQueriesClient},
    query::{GetRequest, ListRequest},
    subscription::{
        Subscribe, SubscriptionRequest, Unsubscribe, subscription_queries_client::SubscriptionQueriesClient,
    },
    workload::{RegisterWorkload, workload_queries_client::WorkloadQueriesClient},
};
use mesh_test::{TestBus, until};
use serde_json::{Value as Json, json};

use crate::support::{OWNER, document, intent, submit};

/// Entities of each kind.
const ENTITIES: usize = 12;

type Command = Box<dyn AnyEvent>;

/// A service, what it is sent, and how it is asked about what came of it.
struct Case<C, F, A> {
    service: &'static str,
    /// Who sends its commands.
    sender: &'static str,
    config: C,
    start: F,
    /// Makes entity `n`.
    make: fn(usize) -> Command,
    /// Changes entity `n`: a decision that depends on what the entity is.
    change: fn(usize) -> Command,
    /// What the service at an endpoint answers about entity `n`.
    ask: A,
}

/// Answers that stay as they are: what follows from a fact, such as a report, is shown up to a second after it.
async fn settled(ask: impl AsyncFn() -> Vec<String>) -> Vec<String> {
    let mut before = ask().await;
    loop {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let now = ask().await;
        if now == before {
            return now;
        }
        before = now;
    }
}

impl<C: Clone, F, S, A> Case<C, F, A>
where
    F: Fn(Mesh, C) -> S,
    S: Future<Output = anyhow::Result<()>>,
    A: AsyncFn(String, usize) -> String,
{
    /// On a bus of its own: nothing that another case does may change an answer.
    async fn check(self) {
        let Some(test_bus) = TestBus::start("evicted").await else { return };
        let test_bus = &test_bus;
        let person = test_bus.connect("person").await;
        let sender = test_bus.connect(self.sender).await;
        let send = async |command: Command, id: String| {
            sender.publish(&Outgoing::new(&*command, &id, mesh_test::now()).unwrap()).await.unwrap();
        };
        let all = async |endpoint: String| {
            let mut answers = vec![];
            for n in 0..ENTITIES {
                answers.push((self.ask)(endpoint.clone(), n).await);
            }
            answers
        };
        let none_in_memory = async || {
            until(
                &format!("every entity of {} is saved and dropped from memory", self.service),
                async || in_memory(&person, self.service).await,
                |entities| *entities == Some(0),
            )
            .await
        };

        let service = self.join(test_bus, 0).await;
        let unknown = (self.ask)(service.endpoint(), 0).await;
        for n in 0..ENTITIES {
            send((self.make)(n), derived_id(&["make", self.service, &n.to_string()])).await;
        }
        let made = until(
            "all are shown",
            async || settled(async || all(service.endpoint()).await).await,
            |answers| !answers.contains(&unknown),
        )
        .await;
        none_in_memory().await;
        assert_eq!(all(service.endpoint()).await, made, "{}: dropped from memory", self.service);

        // A decision for each of the first half: the entity is read again, and dropped again.
        for n in 0..ENTITIES / 2 {
            send((self.change)(n), derived_id(&["change", self.service, &n.to_string()])).await;
        }
        let differ = |answers: &Vec<String>| answers.iter().zip(&made).filter(|(now, then)| now != then).count();
        let shown = "the first half has changed";
        let changed = until(
            shown,
            async || settled(async || all(service.endpoint()).await).await,
            |answers| differ(answers) == ENTITIES / 2,
        )
        .await;
        assert_eq!(changed[ENTITIES / 2..], made[ENTITIES / 2..], "{}: the others stay as they were", self.service);
        none_in_memory().await;
        assert_eq!(all(service.endpoint()).await, changed, "{}: dropped again", self.service);
        service.stop().await;

        // A new process has no entity in memory, and the same answers.
        for entities_max in [0, Settings::default().entities_max] {
            let service = self.join(test_bus, entities_max).await;
            assert_eq!(all(service.endpoint()).await, changed, "{}: after a restart", self.service);
            service.stop().await;
        }
    }

    async fn join(&self, test_bus: &TestBus, entities_max: usize) -> mesh_kit::Running {
        let data_dir = Some(test_bus.folder().join(self.service));
        let settings = Settings { entities_max, data_dir, ..test_bus.settings(self.service) };
        mesh_kit::join(self.service, settings, self.config.clone(), &self.start).await.unwrap()
    }
}

/// How many entities the deciders of a service hold; `None` when it does not answer in time.
async fn in_memory(person: &Bus, service: &str) -> Option<u64> {
    let wait = Duration::from_millis(300);
    let answers = person.request_all(&format!("$SRV.STATS.{service}"), "".into(), wait).await.unwrap();
    let stats: Json = serde_json::from_slice(&answers.first()?.body).unwrap();
    stats["endpoints"].as_array()?.iter().map(|endpoint| endpoint["data"]["entities"].as_u64()).sum()
}

fn id(n: usize) -> String {
    format!("e-{n}")
}

fn register(n: usize, version: &str) -> Command {
    let mut document = document(&id(n), "sleep", &["1"], json!({}));
    document["version"] = json!(version);
    let document = mesh_proto::json::from_value("continuum.workload.v1.WorkloadDocument", document).unwrap();
    Box::new(RegisterWorkload { owner: OWNER.into(), name: id(n), document: Some(document) })
}

fn get(n: usize) -> GetRequest {
    GetRequest { owner: OWNER.into(), id: id(n) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_that_was_dropped_from_memory_answers_and_decides_the_same() {
    let intents = Case {
        service: "intent-manager",
        sender: "person",
        config: intent_manager::Config::default(),
        start: intent_manager::start,
        make: |n| Box::new(submit(&id(n), intent("sleeper", &[("ramUsage", "500")]))),
        change: |n| Box::new(TerminateIntent { owner: OWNER.into(), intent_id: id(n), if_revision: 0 }),
        ask: async |endpoint: String, n| {
            let mut client = IntentQueriesClient::connect(endpoint).await.unwrap();
            let view = client.get(get(n)).await.map(tonic::Response::into_inner).map_err(|status| status.code());
            let versions =
                client.history(get(n)).await.map(tonic::Response::into_inner).map_err(|status| status.code());
            let list =
                client.list(ListRequest { owner: OWNER.into(), ..Default::default() }).await.unwrap().into_inner();
            let listed = list.intents.into_iter().find(|intent| intent.intent_id == id(n));
            format!("{view:?} {versions:?} {listed:?}")
        },
    };
    let workloads = Case {
        service: "workload-manager",
        sender: "person",
        config: workload_manager::Config::default(),
        start: workload_manager::start,
        make: |n| register(n, "1.0.0"),
        change: |n| register(n, "1.1.0"),
        ask: async |endpoint: String, n| {
            let mut client = WorkloadQueriesClient::connect(endpoint).await.unwrap();
            let view = client.get_workload(get(n)).await.map(tonic::Response::into_inner);
            format!("{:?}", view.map_err(|status| status.code()))
        },
    };
    let subscriptions = Case {
        service: "notifier",
        sender: "gateway",
        config: notifier::Config { callbacks_private: "127.0.0.1:1".into() },
        start: notifier::start,
        make: |n| {
            Box::new(Subscribe {
                owner: OWNER.into(),
                subscription_id: id(n),
                callback: "https://listener.example/".into(),
                query: String::new(),
                after: 7,
            })
        },
        change: |n| Box::new(Unsubscribe { owner: OWNER.into(), subscription_id: id(n) }),
        ask: async |endpoint: String, n| {
            let mut client = SubscriptionQueriesClient::connect(endpoint).await.unwrap();
            let request = SubscriptionRequest { owner: OWNER.into(), subscription_id: id(n) };
            format!("{:?}", client.get(request).await.map(tonic::Response::into_inner).map_err(|status| status.code()))
        },
    };
    tokio::join!(intents.check(), workloads.check(), subscriptions.check());
}
