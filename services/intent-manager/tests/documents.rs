//! The intent manager on a real bus, with its intents in memory and in a real database.

#![cfg(test)]

use std::collections::BTreeSet;

use intent_manager::{
    Config,
    domain::{Entity, Intents},
};
use mesh_bus::{Bus, Written};
use mesh_core::{Decider as _, Decision, Envelope, Key, Outgoing, Trigger};
use mesh_kit::{Running, Settings, Stopped};
use mesh_proto::{
    AnyEvent, Event as _, EventSet as _, Timestamp,
    deciders::intents::Input,
    derived_id,
    intent::{
        AchievedRequest, AchievedValue, ExpectationObject, ExpectationTarget, FulfilmentStatus, Intent,
        IntentExpectation, IntentView, NotFulfilledState, StandingRequest, SubmitIntent, SuspendIntent,
        TerminateIntent, UpdateIntent, intent_queries_client::IntentQueriesClient,
    },
    observation::{ObservedTarget, TargetObserved},
    query::{GetRequest, ListRequest},
    report::ReportPublished,
    validation::{IntentAccepted, IntentRejected},
    workload::{InstanceChanged, InstancePhase},
};
use mesh_test::{Database, Kind, TestBus, now, soon, until};
use tonic::{Code, transport::Channel};

type Client = IntentQueriesClient<Channel>;

/// Intents of the one who has most.
const INTENTS: usize = 60;

async fn manager(settings: &Settings) -> (Running, Client) {
    let running = mesh_kit::join("intent-manager", settings.clone(), Config::default(), intent_manager::start);
    let running = running.await.unwrap();
    let client = IntentQueriesClient::connect(running.endpoint()).await.unwrap();
    (running, client)
}

fn intent_of(number: usize) -> Intent {
    let label = ["DeliverComputingWorkload", "SecureExecution", "SomethingElse", "AnythingElse"][number % 4];
    let target = ExpectationTarget {
        target_name: "cpuUsage".into(),
        target_condition: "IS_LESS_THAN".into(),
        target_value_range: "20".into(),
        ..Default::default()
    };
    Intent {
        user_label: label.into(),
        intent_expectations: vec![IntentExpectation {
            expectation_id: "1".into(),
            expectation_verb: "DELIVER".into(),
            expectation_object: Some(ExpectationObject {
                object_type: "NEMO_WORKLOAD".into(),
                object_instance: format!("workload-{}@1.0.0", number % 7),
                ..Default::default()
            }),
            expectation_targets: vec![target],
            ..Default::default()
        }],
        intent_priority: 1,
        observation_period: 60,
        ..Default::default()
    }
}

fn observed(owner: &str, intent_id: &str, period: u64, value: f64) -> TargetObserved {
    let at = |period: u64| Timestamp::from_millis(period.cast_signed() * 60_000);
    TargetObserved {
        owner: owner.into(),
        intent_id: intent_id.into(),
        version: 1,
        instance_id: derived_id(&[owner, intent_id, "1"]),
        period,
        begin: Some(at(period)),
        end: Some(at(period + 1)),
        targets: vec![ObservedTarget {
            expectation_id: "1".into(),
            target_name: "cpuUsage".into(),
            value,
            samples: 60,
            ..ObservedTarget::default()
        }],
        generation: 1,
        cluster_id: "cloud".into(),
        ..Default::default()
    }
}

/// What becomes of an intent of this number: nothing yet, accepted, rejected, fulfilled, degraded, suspended, ended, or
/// updated.
fn inputs(owner: &str, intent_id: &str, number: usize) -> Vec<Input> {
    let (owner, intent_id) = (owner.to_owned(), intent_id.to_owned());
    let observed = |period, value| Input::from(observed(&owner, &intent_id, period, value));
    let submit =
        SubmitIntent { owner: owner.clone(), intent_id: intent_id.clone(), intent: Some(intent_of(number)) }.into();
    let accept = |version| IntentAccepted { owner: owner.clone(), intent_id: intent_id.clone(), version }.into();
    let runs = InstanceChanged {
        owner: owner.clone(),
        instance_id: derived_id(&[&owner, &intent_id, "1"]),
        intent_id: intent_id.clone(),
        cluster_id: "cloud".into(),
        generation: 1,
        phase: InstancePhase::Running.into(),
        ..Default::default()
    };
    let held: Vec<Input> = vec![submit, accept(1), runs.into(), observed(1, 10.0)];
    let of = |count: usize, more: Vec<Input>| held.iter().take(count).cloned().chain(more).collect();
    let refuse = TerminateIntent { owner: owner.clone(), intent_id: "else".into(), if_revision: 99 };
    match number % 8 {
        0 => of(1, vec![]),
        1 => of(2, vec![]),
        2 => {
            let (owner, intent_id) = (owner.clone(), intent_id.clone());
            of(1, vec![IntentRejected { owner, intent_id, version: 1, ..Default::default() }.into()])
        }
        3 => of(4, vec![]),
        4 => of(4, vec![observed(2, 90.0), observed(3, 90.0)]),
        5 => of(4, vec![SuspendIntent { owner: owner.clone(), intent_id: intent_id.clone(), if_revision: 0 }.into()]),
        6 => of(4, vec![TerminateIntent { owner: owner.clone(), intent_id: intent_id.clone(), if_revision: 0 }.into()]),
        _ => {
            let intent = Some(intent_of(number + 1));
            let update =
                UpdateIntent { owner: owner.clone(), intent_id: intent_id.clone(), intent, ..Default::default() };
            of(2, vec![update.into(), refuse.into(), accept(2)])
        }
    }
}

/// The facts that follow from inputs, as the decider and its shell write them.
fn facts(owner: &str, intent_id: &str, inputs: Vec<Input>) -> Vec<Outgoing> {
    let key = Key::new([owner, intent_id]);
    let (decider, mut entity, mut messages) = (Intents::default(), Entity::default(), vec![]);
    for (step, input) in inputs.into_iter().enumerate() {
        let at = match &input {
            Input::TargetObserved(observation) => observation.end.unwrap_or_default(),
            _ => Timestamp::from_millis(step as i64),
        };
        let id = derived_id(&[owner, intent_id, &step.to_string()]);
        let envelope =
            Envelope { at, id: id.clone(), sequence: 0, body: input.any().body(), trigger: Trigger::Event(input) };
        for (position, fact) in decider.decide(&key, &entity, &(), &envelope).into_iter().flatten().enumerate() {
            entity = decider.evolve(entity, &fact, at);
            messages.push(Outgoing::new(fact.any(), derived_id(&[&id, &position.to_string()]), at).unwrap());
        }
    }
    messages
}

fn id_of(number: usize) -> String {
    format!("intent-{:03}", number * 37 % 101)
}

/// Writes the facts of some intents.
async fn fill(bus: &Bus, owner: &str, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let id = id_of(number);
        let messages = facts(owner, &id, inputs(owner, &id, number));
        let decision = Decision { entity: format!("intent.*.*.{owner}.{id}"), expected: 0, messages };
        let written = bus.writer("INTENT").write(decision).await.unwrap();
        assert!(matches!(written, Written::Stored { .. }), "{written:?}");
    }
}

async fn publish(bus: &Bus, event: &dyn AnyEvent) {
    let id = derived_id(&["test", &format!("{:?}", event.body())]);
    bus.publish(&Outgoing::new(event, id, now()).unwrap()).await.unwrap();
}

type Answer<T> = Result<T, (Code, String)>;

fn answer<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> Answer<T> {
    answer.map(tonic::Response::into_inner).map_err(|status| (status.code(), status.message().to_owned()))
}

/// Ids and token of every page, and how many there were said to be on each.
async fn pages(client: &mut Client, request: &ListRequest) -> Vec<Answer<(Vec<IntentView>, String, u64)>> {
    let mut request = request.clone();
    let mut pages = vec![];
    loop {
        let page = answer(client.list(request.clone()).await);
        let next = page.as_ref().map(|page| page.next_page_token.clone()).unwrap_or_default();
        pages.push(page.map(|page| (page.intents, page.next_page_token, page.total)));
        if next.is_empty() {
            return pages;
        }
        request.page_token = next;
    }
}

/// Everything that can be asked.
fn questions() -> Vec<ListRequest> {
    let of = |states: &[&str], label: &str, object: &str| ListRequest {
        states: states.iter().map(|state| (*state).to_owned()).collect(),
        user_label: label.into(),
        object_instance: object.into(),
        page_size: 7,
        count: true,
        ..ListRequest::default()
    };
    let instance = derived_id(&["local", &id_of(3), "1"]);
    let mut questions = vec![
        of(&[], "", ""),
        of(&["FULFILLED"], "", ""),
        of(&["fulfilled", "DEGRADED"], "", ""),
        of(&["NOT_FULFILLED"], "", ""),
        of(&["SUBMITTED", "SUSPENDED"], "SecureExecution", ""),
        of(&[], "SecureExecution", ""),
        of(&[], "SomethingElse", ""),
        of(&[], "NothingAtAll", ""),
        of(&[], "", "workload-3@1.0.0"),
        of(&["ACKNOWLEDGED", "TERMINATED"], "AnythingElse", "workload-1@1.0.0"),
        of(&[], "", &instance),
        of(&[], "", "$where"),
        of(&["JOLLY"], "", ""),
    ];
    let all = of(&[], "", "");
    questions.push(ListRequest { state: "degraded".into(), count: false, ..all.clone() });
    questions.push(ListRequest { owner: "other".into(), ..all.clone() });
    questions.push(ListRequest { owner: "nobody".into(), ..all.clone() });
    questions.push(ListRequest { owner: "a/b".into(), ..all.clone() });
    questions.push(ListRequest { page_size: 0, ..all.clone() });
    questions.push(ListRequest { page_token: "intent-050x".into(), ..all.clone() });
    questions.push(ListRequest { page_token: "no/token".into(), ..all });
    questions
}

/// What a manager answers to every question.
async fn answers(client: &mut Client) -> Vec<String> {
    let mut answers = vec![];
    for question in questions() {
        answers.push(format!("{question:?}: {:?}", pages(client, &question).await));
    }
    for (owner, intents_max) in [("", 0), ("", 5), ("other", 0), ("nobody", 0)] {
        let request = StandingRequest { owner: owner.into(), intents_max };
        answers.push(format!("{request:?}: {:?}", answer(client.standing(request.clone()).await)));
    }
    let ids = (0..INTENTS).map(id_of).chain(["unknown", "", "a/b", "$gt"].map(str::to_owned));
    for id in ids {
        for owner in ["", "other"] {
            let request = GetRequest { owner: owner.into(), id: id.clone() };
            answers.push(format!("{request:?}: {:?}", answer(client.get(request.clone()).await)));
            answers.push(format!("{request:?}: {:?}", answer(client.history(request.clone()).await)));
            let achieved = AchievedRequest { owner: owner.into(), intent_id: id.clone(), ..AchievedRequest::default() };
            answers.push(format!("{achieved:?}: {:?}", answer(client.achieved(achieved.clone()).await)));
        }
    }
    answers
}

/// Waits until one answers as the other does.
async fn same(what: &str, one: &mut Client, other: &mut Client) {
    let expected = answers(one).await;
    assert!(expected.len() > INTENTS * 2);
    let found = until(what, async || answers(&mut other.clone()).await, |found| *found == expected);
    assert_eq!(found.await, expected);
}

/// Ids of all reports, in their order.
async fn reports(bus: &Bus) -> Vec<String> {
    let report = mesh_proto::contract().event(ReportPublished::MESSAGE).unwrap();
    let found = bus.log(&report.stream).read(&report.filter(), 1, usize::MAX).await.unwrap();
    found.into_iter().map(|stored| stored.id).collect()
}

fn in_database(test_bus: &TestBus, mongo: &Database) -> Settings {
    Settings { documents_url: mongo.url("intents"), ready_lag_max: 5, ..test_bus.settings("intent-manager") }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_answer_every_question_as_memory_does() {
    let suite = "intent-manager, intents in a database";
    let Some(test_bus) = TestBus::start(suite).await else { return };
    let Some(mut mongo) = Database::start(suite, Kind::Mongod).await else { return };
    let bus = test_bus.connect("intent-manager").await;
    fill(&bus, "local", 0..INTENTS).await;
    fill(&bus, "other", 0..9).await;
    let collector = test_bus.connect("collector").await;
    publish(&collector, &observed("local", &id_of(3), 5, 12.0)).await;

    let settings = in_database(&test_bus, &mongo);
    let (kept, mut documents) = manager(&settings).await;
    let (_memory, mut memory) = manager(&test_bus.settings("intent-manager")).await;
    same("documents of the past", &mut memory, &mut documents).await;

    // What is observed and decided from now on.
    publish(&collector, &observed("local", &id_of(11), 6, 13.0)).await;
    fill(&bus, "local", INTENTS..INTENTS + 8).await;
    let one = GetRequest { owner: String::new(), id: id_of(11) };
    let period = |view: &IntentView| view.targets.first().is_some_and(|target| target.period == 6);
    let client = memory.clone();
    until("an observation", async || client.clone().get(one.clone()).await.unwrap().into_inner(), period).await;
    same("documents of the present", &mut memory, &mut documents).await;

    // Away: questions are refused, and the service says why it is not ready.
    mongo.kill();
    fill(&bus, "local", INTENTS + 8..INTENTS + 16).await;
    let endpoint = kept.endpoint();
    let page = async || mesh_test::page(&endpoint, "/readyz?verbose").await.unwrap();
    let says = |(status, page): &(u16, String)| *status == 503 && page.contains("store of intents");
    until("a service that says its store is away", page, says).await;
    let refused = documents.get(GetRequest { owner: String::new(), id: id_of(0) }).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    mongo.start_again().await;
    same("documents that were away", &mut memory, &mut documents).await;

    // Emptied: made again from the streams.
    mongo.start_empty().await;
    same("documents that were lost", &mut memory, &mut documents).await;
    until("a service that is ready", page, |(status, _)| *status == 200).await;
    assert_eq!(soon("the end", kept.stop()).await, Stopped::Settled);

    // Another process goes on where the documents are.
    let (again, mut documents) = manager(&settings).await;
    same("documents of another process", &mut memory, &mut documents).await;
    assert_eq!(soon("the end", again.stop()).await, Stopped::Settled);
}

/// Every value that is kept, page by page.
async fn achieved(client: &Client, request: &AchievedRequest) -> Vec<Vec<AchievedValue>> {
    let (mut request, mut pages) = (request.clone(), vec![]);
    loop {
        let page = client.clone().achieved(request.clone()).await.unwrap().into_inner();
        pages.push(page.values);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return pages;
        }
    }
}

/// Asks for what an intent achieved that is in force, in two periods of the last minutes that a collector has published.
async fn asks_for_achieved(test_bus: &TestBus, settings: &Settings) {
    let bus = test_bus.connect("intent-manager").await;
    fill(&bus, "local", 3..4).await;
    let collector = test_bus.connect("collector").await;
    let period = now().as_millis().cast_unsigned() / 60_000;
    let values = [(period - 3, 12.0), (period - 2, 34.5), (period - 1, 8.0)];
    for (period, value) in values {
        publish(&collector, &observed("local", &id_of(3), period, value)).await;
    }
    let blind = TargetObserved { version: 7, ..observed("local", &id_of(3), period, f64::NAN) };
    publish(&collector, &blind).await;
    publish(&collector, &TargetObserved { version: 7, ..observed("local", &id_of(3), period + 1, 3.0) }).await;

    let request = AchievedRequest { intent_id: id_of(3), page_size: 3, ..AchievedRequest::default() };
    let (first, client) = manager(settings).await;
    let all = async || achieved(&client, &request).await;
    let pages = until("every value", all, |pages| pages.concat().len() == 4).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1]);
    let told = |value: &AchievedValue| (value.value.unwrap(), value.held);
    let expected = [(3.0, None), (8.0, Some(true)), (34.5, Some(false)), (12.0, Some(true))];
    assert_eq!(pages.concat().iter().map(told).collect::<Vec<_>>(), expected, "no value of what was not measured");
    let AchievedValue { at, target_name, unit, version, cluster_id, target_condition, target_value_range, .. } =
        pages[0][1].clone();
    assert_eq!(at, Some(Timestamp::from_millis(period.cast_signed() * 60_000)));
    assert_eq!((target_name.as_str(), unit.as_str(), version, cluster_id.as_str()), ("cpuUsage", "%", 1, "cloud"));
    assert_eq!((target_condition.as_str(), target_value_range.as_str()), ("IS_LESS_THAN", "20"));

    // Of a part of the time, and of one target.
    let at = |period: u64| Some(Timestamp::from_millis(period.cast_signed() * 60_000));
    let part = AchievedRequest { from: at(period - 1), to: at(period - 1), ..request.clone() };
    assert_eq!(achieved(&client, &part).await.concat().iter().map(|v| v.value).collect::<Vec<_>>(), [Some(34.5)]);
    let other = AchievedRequest { target_name: "ramUsage".into(), ..request.clone() };
    assert_eq!(achieved(&client, &other).await, [vec![]]);
    for (wrong, code) in [
        (AchievedRequest { intent_id: "nothing".into(), ..request.clone() }, Code::NotFound),
        (AchievedRequest { owner: "other".into(), ..request.clone() }, Code::NotFound),
        (AchievedRequest { target_name: "speed".into(), ..request.clone() }, Code::InvalidArgument),
        (AchievedRequest { page_token: "7".into(), ..request.clone() }, Code::InvalidArgument),
        (AchievedRequest { from: at(2), to: at(1), ..request.clone() }, Code::InvalidArgument),
    ] {
        let refused = client.clone().achieved(wrong.clone()).await.unwrap_err();
        assert_eq!(refused.code(), code, "{wrong:?}: {refused}");
    }
    assert_eq!(soon("the end", first.stop()).await, Stopped::Settled);

    // The next process knows them too.
    let (again, client) = manager(settings).await;
    let all = async || achieved(&client, &request).await;
    assert_eq!(until("every value again", all, |found| *found == pages).await, pages);
    assert_eq!(soon("the end", again.stop()).await, Stopped::Settled);
}

#[tokio::test(flavor = "multi_thread")]
async fn achieved_values_in_memory_are_answered_and_read_again_at_a_start() {
    let Some(test_bus) = TestBus::start("intent-manager, achieved values in memory").await else { return };
    asks_for_achieved(&test_bus, &test_bus.settings("intent-manager")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn achieved_values_in_a_database_are_answered_as_in_memory() {
    let suite = "intent-manager, achieved values in InfluxDB";
    let Some(test_bus) = TestBus::start(suite).await else { return };
    let Some(influx) = Database::start(suite, Kind::Influxd).await else { return };
    let settings = Settings { series_url: influx.url("achieved"), ..test_bus.settings("intent-manager") };
    asks_for_achieved(&test_bus, &settings).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_is_given_by_owner_and_cut_where_it_is_too_much() {
    let Some(test_bus) = TestBus::start("intent-manager, how intents stand").await else { return };
    let bus = test_bus.connect("intent-manager").await;
    fill(&bus, "local", 0..8).await;
    fill(&bus, "other", 3..4).await;
    let (running, client) = manager(&test_bus.settings("intent-manager")).await;
    let ask = async |owner: &str, intents_max: u32| {
        let request = StandingRequest { owner: owner.into(), intents_max };
        client.clone().standing(request).await.unwrap().into_inner()
    };
    // Neither the one without a verdict nor the one that is terminated.
    let all = until("all that stand", async || ask("", 0).await, |reply| reply.intents.len() == 7).await;
    assert!(!all.truncated);
    assert!([0, 6].iter().all(|number| all.intents.iter().all(|intent| intent.intent_id != id_of(*number))));
    let degraded = all.intents.iter().find(|intent| intent.intent_id == id_of(4)).unwrap();
    assert_eq!(degraded.not_fulfilled_state(), NotFulfilledState::Degraded);
    assert_eq!((degraded.targets[0].achieved, degraded.targets[0].fulfilled), (90.0, false));
    let fulfilled: Vec<bool> =
        ask("other", 0).await.intents.iter().map(|i| i.fulfilment_status() == FulfilmentStatus::Fulfilled).collect();
    assert_eq!(fulfilled, [true]);
    let some = ask("", 2).await;
    assert_eq!((some.intents.as_slice(), some.truncated), (&all.intents[..2], true));
    assert!(ask("nobody", 0).await.intents.is_empty());
    assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_report_is_published_once_though_documents_are_made_again() {
    let suite = "intent-manager, reports with intents in a database";
    let Some(test_bus) = TestBus::start(suite).await else { return };
    let Some(mut mongo) = Database::start(suite, Kind::Mongod).await else { return };
    let bus = test_bus.connect("intent-manager").await;
    fill(&bus, "local", 0..16).await;
    let settings = in_database(&test_bus, &mongo);
    let (running, mut client) = manager(&settings).await;
    let expected: usize = (0..16)
        .flat_map(|number| facts("local", &id_of(number), inputs("local", &id_of(number), number)))
        .filter(|fact| {
            let names = ["IntentAcknowledged", "IntentStateChanged", "IntentRejected"];
            names.iter().any(|name| fact.message.ends_with(name))
        })
        .count();
    let told = until("reports of the past", async || reports(&bus).await, |told| told.len() >= expected).await;
    assert_eq!(told.len(), expected);

    // Each observed period has a report, while the database is away too: then later.
    let collector = test_bus.connect("collector").await;
    let mut watch = client.watch(GetRequest { owner: String::new(), id: id_of(3) }).await.unwrap().into_inner();
    let first = soon("the intent", watch.message()).await.unwrap().unwrap();
    assert_eq!(first.targets[0].period, 1);
    mongo.kill();
    publish(&collector, &observed("local", &id_of(3), 7, 11.0)).await;
    mongo.start_empty().await;
    let told = until("a report of a period", async || reports(&bus).await, |told| told.len() > expected).await;
    let second = soon("the intent as it was observed", async {
        loop {
            let view = watch.message().await.unwrap().unwrap();
            if view.targets[0].period == 7 {
                return view;
            }
        }
    });
    assert_eq!(second.await.targets[0].achieved, 11.0);
    assert_eq!(soon("the end", running.stop()).await, Stopped::Settled);

    // A restart reports nothing again, and what comes then once.
    let (again, _) = manager(&settings).await;
    publish(&collector, &observed("local", &id_of(3), 8, 10.0)).await;
    let after = until("a report of the next period", async || reports(&bus).await, |now| now.len() > told.len()).await;
    assert_eq!((after.len(), &after[..told.len()]), (told.len() + 1, &told[..]));
    assert_eq!(after.iter().collect::<BTreeSet<_>>().len(), after.len());
    assert_eq!(soon("the end", again.stop()).await, Stopped::Settled);
}
