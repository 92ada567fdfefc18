//! What a notifier answers about subscriptions. Deliveries are tested through the gateway, in its `tests/mesh/hub.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mesh_core::Outgoing;
use mesh_kit::Settings;
use mesh_proto::{
    AnyEvent,
    subscription::{
        CheckSubscriptionRequest, Subscribe, SubscriptionRequest, Unsubscribe,
        subscription_queries_client::SubscriptionQueriesClient,
    },
};
use mesh_test::{TestBus, until};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_is_checked_shown_and_gone_once_it_has_ended() {
    let Some(test_bus) = TestBus::start("notifier, questions").await else { return };
    let config = notifier::Config { callbacks_private: "127.0.0.1:1".into() };
    let settings = Settings { data_dir: Some(test_bus.folder().join("notifier")), ..test_bus.settings("notifier") };
    let service = mesh_kit::join("notifier", settings, config, notifier::start).await.unwrap();
    let client = SubscriptionQueriesClient::connect(service.endpoint()).await.unwrap();
    let check = async |callback: &str, query: &str| {
        let request = CheckSubscriptionRequest {
            owner: "ada".into(),
            subscription_id: "two".into(),
            callback: callback.into(),
            query: query.into(),
        };
        client.clone().check(request).await.unwrap().into_inner()
    };
    for (callback, query, paths) in [
        ("https://listener.example/", "", vec![]),
        ("http://127.0.0.1:1/", "eventType=IntentCreateEvent", vec![]),
        ("http://127.0.0.1:2/", "", vec!["callback"]),
        ("http://169.254.169.254/latest", "", vec!["callback"]),
        ("ftp://listener.example/", "eventType=Nothing", vec!["callback", "query"]),
    ] {
        let reply = check(callback, query).await;
        let found: Vec<&str> = reply.problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(found, paths, "{callback}: {reply:?}");
        assert!(reply.problems.iter().all(|problem| !problem.reason.is_empty() && !problem.hint.is_empty()));
        assert_eq!((reply.others, reply.max), (0, 16));
    }
    let bus = test_bus.connect("gateway").await;
    let send = async |command: &dyn AnyEvent, id: &str| {
        bus.publish(&Outgoing::new(command, id, mesh_test::now()).unwrap()).await.unwrap();
    };
    let get = async || {
        let request = SubscriptionRequest { owner: "ada".into(), subscription_id: "one".into() };
        client.clone().get(request).await.map(tonic::Response::into_inner).map_err(|status| status.code())
    };
    assert_eq!(get().await, Err(Code::NotFound));
    let subscribe = Subscribe {
        owner: "ada".into(),
        subscription_id: "one".into(),
        callback: "https://listener.example/".into(),
        query: String::new(),
        after: 7,
    };
    send(&subscribe, "subscribe").await;
    let view = until("the subscription is shown", get, Result::is_ok).await.unwrap();
    assert_eq!((view.callback.as_str(), view.through, view.failures), ("https://listener.example/", 7, 0));
    assert_eq!(check("https://listener.example/", "").await.others, 1);
    send(&Unsubscribe { owner: "ada".into(), subscription_id: "one".into() }, "unsubscribe").await;
    let gone = until("the subscription is gone", get, |found| *found == Err(Code::NotFound)).await;
    assert_eq!(gone, Err(Code::NotFound));
    service.stop().await;
}
