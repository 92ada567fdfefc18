//! Documents and instances on a real bus and in a real MongoDB: asked for, lost and made again, as memory answers.

#![cfg(test)]

use std::fmt::Debug;

use mesh_bus::{Bus, Written};
use mesh_core::{Decision, Outgoing};
use mesh_kit::{Running, Settings, Stopped};
use mesh_proto::{
    AnyEvent, derived_id,
    query::{GetRequest, ListRequest},
    validation::WorkloadAccepted,
    workload::{
        ChartSpec, InstanceChanged, InstancePhase, InstanceUnavailable, InstanceWanted, LifecycleEvent,
        RegisterWorkload, WorkloadDocument, WorkloadDropped, WorkloadRegistered, WorkloadSubmitted, WorkloadView,
        workload_queries_client::WorkloadQueriesClient,
    },
};
use mesh_test::{Database, Kind, TestBus, now, soon, until};
use prost::Message as _;
use tonic::{Code, transport::Channel};
use workload_manager::Config;

type Client = WorkloadQueriesClient<Channel>;

const OWNERS: [&str; 2] = ["local", "other"];
const VERSIONS: [&str; 6] = ["1.9.0", "1.10.0", "1.10.0-rc.1", "0.1.0+build", "2.0.0-alpha.2", "2.0.0-alpha.10"];

/// Writes facts of things that are new, as the decider would: names with versions, and an instance of each.
struct Writer {
    bus: Bus,
    things: usize,
}

impl Writer {
    async fn write(&self, owner: &str, token: &str, facts: Vec<Box<dyn AnyEvent>>) {
        let (at, mut messages) = (now(), vec![]);
        for (number, fact) in facts.iter().enumerate() {
            let id = derived_id(&[owner, token, &number.to_string()]);
            messages.push(Outgoing::new(&**fact, id, at).unwrap());
        }
        let entity = format!("workload.*.*.{owner}.{token}");
        let written = self.bus.writer("WORKLOAD").write(Decision { entity, expected: 0, messages }).await.unwrap();
        assert!(matches!(written, Written::Stored { .. }), "{written:?}");
    }

    async fn fill(&mut self, things: usize) {
        while self.things < things {
            let number = self.things;
            let owner = OWNERS[number % 5 / 4];
            let name = format!("w{number}");
            let mut facts: Vec<Box<dyn AnyEvent>> = vec![];
            for (place, version) in VERSIONS.iter().enumerate().take(1 + number % 6) {
                let document =
                    WorkloadDocument { name: name.clone(), version: (*version).into(), ..Default::default() };
                let document = bytes::Bytes::from(document.encode_to_vec());
                let (owner, name, version) = (owner.to_owned(), name.clone(), (*version).to_owned());
                let submitted = WorkloadSubmitted { owner, name, version, document, ..Default::default() };
                let WorkloadSubmitted { owner, name, version, document, .. } = submitted.clone();
                facts.push(Box::new(submitted));
                match (number + place) % 4 {
                    0 => facts.push(Box::new(WorkloadDropped { owner, name, version, ..Default::default() })),
                    1 => facts.push(Box::new(WorkloadRegistered { owner, name, version, document })),
                    _ => {}
                }
            }
            self.write(owner, &name, facts).await;
            let instance_id = instance(number);
            let (owner_of, workload) = (owner.to_owned(), format!("{name}@{}", VERSIONS[0]));
            let facts: Vec<Box<dyn AnyEvent>> = if number % 7 == 3 {
                let (reason, hint) = ("it is not there".to_owned(), "push it".to_owned());
                let owner = owner_of;
                vec![Box::new(InstanceUnavailable { owner, instance_id, workload, reason, hint, ..Default::default() })]
            } else {
                let phase = [InstancePhase::Running, InstancePhase::Failed, InstancePhase::Stopped][number % 3];
                let event = Some(LifecycleEvent { r#type: "x".into(), ..Default::default() });
                let changed = InstanceChanged {
                    owner: owner_of.clone(),
                    instance_id: instance_id.clone(),
                    phase: phase.into(),
                    event,
                    ..Default::default()
                };
                let wanted =
                    InstanceWanted { owner: owner_of, instance_id, workload, replicas: 1, ..Default::default() };
                vec![Box::new(wanted), Box::new(changed)]
            };
            self.write(owner, &instance(number), facts).await;
            self.things += 1;
        }
    }
}

/// The id of an instance.
fn instance(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

fn get(owner: &str, id: &str) -> GetRequest {
    GetRequest { owner: owner.into(), id: id.into() }
}

fn said<T: Debug>(question: impl Debug, answer: Result<tonic::Response<T>, tonic::Status>) -> String {
    let answer = answer.map(tonic::Response::into_inner);
    format!("{question:?}: {:?}", answer.map_err(|status| (status.code(), status.message().to_owned())))
}

/// What is answered to every kind of question about this number of things.
async fn answers(client: &Client, things: usize) -> Vec<String> {
    let (mut client, mut said_all) = (client.clone(), vec![]);
    for (owner, state, page_size) in
        [("", "", 0), ("", "", 7), ("", "failed", 5), ("other", "", 3), ("other", "stopped", 0), ("nobody", "", 0)]
    {
        let mut question =
            ListRequest { owner: owner.into(), state: state.into(), page_size, ..ListRequest::default() };
        loop {
            let answer = client.list(question.clone()).await;
            question.page_token =
                answer.as_ref().map(|answer| answer.get_ref().next_page_token.clone()).unwrap_or_default();
            said_all.push(said(&question, answer));
            if question.page_token.is_empty() {
                break;
            }
        }
    }
    for token in
        ["document/w1@1.9.0", "document/w1@9.9.9", "document/gone@1", "instance/none", "x", "document/a", "$where"]
    {
        let question = ListRequest { page_token: token.into(), page_size: 4, ..ListRequest::default() };
        said_all.push(said(&question, client.list(question.clone()).await));
    }
    let question = ListRequest { state: "sleeping".into(), ..ListRequest::default() };
    said_all.push(said(&question, client.list(question.clone()).await));
    for number in (0..things).rev().take(12).chain([0, 1, 2, 3]) {
        for owner in OWNERS {
            for id in [format!("w{number}"), format!("w{number}@1.10.0"), format!("w{number}@9.0.0")] {
                let question = get(owner, &id);
                said_all.push(said(&question, client.get_workload(question.clone()).await));
            }
            let question = get(owner, &instance(number));
            said_all.push(said(&question, client.get_instance(question.clone()).await));
            said_all.push(said(&question, client.manifests(question.clone()).await));
        }
    }
    for question in [get("", ""), get("", "@"), get("local w1", "x"), get("$gt", "{}"), get("local", "w1 1")] {
        said_all.push(said(&question, client.get_workload(question.clone()).await));
        said_all.push(said(&question, client.get_instance(question.clone()).await));
    }
    said_all
}

/// Waits until one answers as the other does.
async fn same(what: &str, memory: &Client, kept: &Client, things: usize) {
    let last = get(OWNERS[(things - 1) % 5 / 4], &instance(things - 1));
    let read = async || memory.clone().get_instance(last.clone()).await;
    until("the view in memory", read, Result::is_ok).await.unwrap();
    let both = async || {
        let (expected, found) = (answers(memory, things).await, answers(kept, things).await);
        let lengths = (expected.len().to_string(), found.len().to_string());
        let pairs = expected.into_iter().zip(found).chain([lengths]);
        pairs.filter(|(expected, found)| expected != found).collect::<Vec<_>>()
    };
    until(what, both, Vec::is_empty).await;
}

async fn manager(settings: &Settings) -> (Running, Client) {
    let config = Config { images: false, ..Config::default() };
    let running = mesh_kit::join("workload-manager", settings.clone(), config, workload_manager::start).await.unwrap();
    let client = WorkloadQueriesClient::connect(running.endpoint()).await.unwrap();
    (running, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_answers_every_question_as_memory_does() {
    let suite = "workload manager, documents in MongoDB";
    let Some(test_bus) = TestBus::start(suite).await else { return };
    let Some(mut mongo) = Database::start(suite, Kind::Mongod).await else { return };
    let mut writer = Writer { bus: test_bus.connect("workload-manager").await, things: 0 };
    writer.fill(60).await;

    let in_memory = test_bus.settings("workload-manager");
    let in_mongo = Settings { documents_url: mongo.url("workloads"), ready_lag_max: 5, ..in_memory.clone() };
    let (memory, of_memory) = manager(&in_memory).await;
    let (kept, of_kept) = manager(&in_mongo).await;
    same("things of the past", &of_memory, &of_kept, 60).await;

    // Away: questions are refused, and the service says why it is not ready. What comes meanwhile is there later.
    mongo.kill();
    writer.fill(70).await;
    let endpoint = kept.endpoint();
    let page = async || mesh_test::page(&endpoint, "/readyz?verbose").await.unwrap();
    let says = |(status, page): &(u16, String)| *status == 503 && page.contains("store of workloads");
    until("a service that says its store is away", page, says).await;
    let refused = of_kept.clone().get_instance(get("", &instance(0))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    mongo.start_again().await;
    same("things that came while it was away", &of_memory, &of_kept, 70).await;

    // Emptied while facts come: made again from the stream.
    tokio::join!(mongo.start_empty(), writer.fill(120));
    same("things that were lost", &of_memory, &of_kept, 120).await;
    until("a service that is ready", page, |(status, _)| *status == 200).await;
    assert_eq!(soon("the end", kept.stop()).await, Stopped::Settled);

    // Another process goes on with what is there.
    writer.fill(130).await;
    let (again, of_again) = manager(&in_mongo).await;
    same("things that another process wrote", &of_memory, &of_again, 130).await;
    assert_eq!(soon("the end", memory.stop()).await, Stopped::Settled);

    // Charts that wait for their checks are found in the database: of this one, no archive was stored.
    let chart = ChartSpec { sha256: "a".repeat(64), ..ChartSpec::default() };
    let document = WorkloadDocument {
        name: "web".into(),
        version: "1.2.3".into(),
        kind: "chart".into(),
        chart: Some(chart),
        ..WorkloadDocument::default()
    };
    let register = RegisterWorkload { owner: "local".into(), name: "web".into(), document: Some(document) };
    let register = Outgoing::new(&register, derived_id(&["register", "web"]), now()).unwrap();
    test_bus.connect("person").await.publish(&register).await.unwrap();
    let shown = async || of_again.clone().get_workload(get("", "web")).await;
    until("a chart that was submitted", shown, Result::is_ok).await.unwrap();
    let accepted = WorkloadAccepted { owner: "local".into(), name: "web".into(), version: "1.2.3".into() };
    let accepted = Outgoing::new(&accepted, derived_id(&["accepted", "web"]), now()).unwrap();
    test_bus.connect("validator").await.publish(&accepted).await.unwrap();
    let checked = async || of_again.clone().get_workload(get("", "web")).await.map(tonic::Response::into_inner);
    let is_rejected = |found: &Result<WorkloadView, _>| found.as_ref().is_ok_and(|view| view.status == "rejected");
    let view = until("a chart that was checked", checked, is_rejected).await.unwrap();
    assert!(view.report.is_some() && view.problems[0].reason.contains("no archive"), "{view:?}");
    assert_eq!(soon("the end", again.stop()).await, Stopped::Settled);
}
