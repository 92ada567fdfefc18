//! Commands and their answers on a real bus, with the rights of a person.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]

use std::time::{Duration, Instant};

use mesh_bus::{Bus, Written};
use mesh_client::{Client, Error};
use mesh_core::{Cause, Decision, Outgoing};
use mesh_proto::{
    AnyEvent, RefusalCode,
    intent::{IntentAcknowledged, IntentRefused, IntentUnchanged, SuspendIntent},
};
use mesh_test::{TestBus, now};

const LIMIT: Duration = Duration::from_secs(20);

/// The intent manager, as far as these tests need it: it answers when a test wants it to.
struct Manager(Bus);

impl Manager {
    /// Writes a fact about an intent, caused by the command with this id; `expected` is the entity's last sequence.
    async fn answer(&self, intent_id: &str, command_id: &str, fact: &dyn AnyEvent, expected: u64) -> u64 {
        let cause = Cause { stream: "INTENT_ASK".into(), sequence: 1, id: command_id.into() };
        let message = Outgoing::new(fact, format!("{intent_id}-{expected}"), now()).unwrap().caused_by(cause);
        let entity = format!("intent.*.*.local.{intent_id}");
        let decision = Decision { entity, expected, messages: vec![message] };
        match self.0.writer("INTENT").write(decision).await.unwrap() {
            Written::Stored { last } => last,
            other => panic!("{other:?}"),
        }
    }
}

fn suspend(intent_id: &str) -> SuspendIntent {
    SuspendIntent { owner: "local".into(), intent_id: intent_id.into(), ..SuspendIntent::default() }
}

fn unchanged(intent_id: &str) -> IntentUnchanged {
    IntentUnchanged { owner: "local".into(), intent_id: intent_id.into(), ..IntentUnchanged::default() }
}

async fn start() -> Option<(TestBus, Client, Manager)> {
    let test_bus = TestBus::start("mesh-client, answers").await?;
    let client = Client::new(test_bus.connect("person").await);
    let manager = Manager(test_bus.connect("intent-manager").await);
    Some((test_bus, client, manager))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fact_that_a_command_caused_is_its_answer() {
    let Some((_test_bus, client, manager)) = start().await else { return };
    let other = IntentAcknowledged { owner: "local".into(), intent_id: "a".into(), ..IntentAcknowledged::default() };
    let (command, fact) = (suspend("a"), unchanged("a"));
    let written = async {
        let last = manager.answer("a", "another", &other, 0).await;
        manager.answer("a", "mine", &fact, last).await
    };
    let (answered, last) = tokio::join!(client.ask(&command, "mine", LIMIT), written);
    assert_eq!(answered.unwrap().sequence, last);

    // The same id again: it was answered before, so the answer is read from the past.
    let begun = Instant::now();
    let answer = client.answers().ask(&command, "mine", LIMIT).await.unwrap();
    assert_eq!((answer.fact.sequence, answer.following.is_late), (last, true));
    assert!(begun.elapsed() < LIMIT / 2, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_an_error_with_its_code() {
    let Some((_test_bus, client, manager)) = start().await else { return };
    let fact = IntentRefused {
        owner: "local".into(),
        intent_id: "a".into(),
        code: RefusalCode::NotFound.into(),
        reason: "no such intent".into(),
        hint: "see the list".into(),
        ..IntentRefused::default()
    };
    let command = suspend("a");
    let (answered, _) = tokio::join!(client.ask(&command, "mine", LIMIT), manager.answer("a", "mine", &fact, 0));
    let refusal = answered.unwrap_err().into_refusal().unwrap();
    assert_eq!((refusal.code, refusal.reason.as_str()), (RefusalCode::NotFound, "no such intent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_without_an_answer_is_reported_as_stored() {
    let Some((_test_bus, client, _manager)) = start().await else { return };
    let error = client.ask(&suspend("a"), "mine", Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, Error::Unanswered { limit_ms: 300, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_each_get_their_own_answer() {
    let Some((_test_bus, client, manager)) = start().await else { return };
    let asked = (0..50).map(|number| {
        let client = &client;
        async move {
            let id = format!("i{number}");
            client.ask(&suspend(&id), &id, LIMIT).await.map(|fact| (id, fact))
        }
    });
    let written = async {
        for number in 0..50 {
            let id = format!("i{number}");
            manager.answer(&id, &id, &unchanged(&id), 0).await;
        }
    };
    let (answers, ()) = tokio::join!(futures::future::join_all(asked), written);
    for answer in answers {
        let (id, fact) = answer.unwrap();
        assert_eq!(fact.subject, format!("intent.unchanged.v1.local.{id}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_from_an_answer_is_handed_on() {
    let Some((_test_bus, client, manager)) = start().await else { return };
    let (command, fact) = (suspend("a"), unchanged("a"));
    let (answer, last) =
        tokio::join!(client.answers().ask(&command, "mine", LIMIT), manager.answer("a", "mine", &fact, 0));
    let mut following = answer.unwrap().following;
    let next = manager.answer("a", "later", &fact, last).await;
    let found = following.next(tokio::time::Instant::now() + LIMIT).await.unwrap();
    assert_eq!(found.sequence, next);
}
