//! An input that ends the process that decides it, on a real nats-server and real processes.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]

use std::{ffi::OsString, process::Stdio, time::Duration};

use mesh_core::{Decider, Envelope, Key, Trigger};
use mesh_core::{Decision, Outgoing};
use mesh_kit::{
    Mesh,
    poison::{DEATHS_MAX, STARTS_MAX},
};
use mesh_proto::{
    AnyEvent, Refusal, Timestamp,
    deciders::verdicts::{Fact, Input, NAME},
    intent::IntentSubmitted,
    validation::IntentAccepted,
};
use mesh_test::{PATIENCE, TestBus, now};
use tokio::process::{Child, Command};

const ARGUMENTS: &str = "POISON_ARGUMENTS";
const DEADLY: &str = "deadly";

/// Accepts every intent but one, which ends the process.
struct Fragile;

impl Decider for Fragile {
    const NAME: &'static str = NAME;
    type State = u64;
    type ReadModel = ();
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> u64 {
        0
    }

    fn concerns(&self, input: &Input, _: &()) -> Vec<Key> {
        match input {
            Input::IntentSubmitted(m) => vec![Key::new([m.owner.as_str(), m.intent_id.as_str()])],
            _ => vec![],
        }
    }

    fn decide(&self, key: &Key, accepted: &u64, _: &(), envelope: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
        let Trigger::Event(Input::IntentSubmitted(_)) = &envelope.trigger else { return Ok(vec![]) };
        if key.token(1) == DEADLY {
            // What a stack overflow does: no unwinding, nobody to catch it.
            std::process::abort();
        }
        let (owner, intent_id) = (key.token(0).to_owned(), key.token(1).to_owned());
        Ok(vec![IntentAccepted { owner, intent_id, version: accepted + 1 }.into()])
    }

    fn evolve(&self, accepted: u64, _: &Fact, _: Timestamp) -> u64 {
        accepted + 1
    }

    fn due(&self, _: &u64) -> Option<Timestamp> {
        None
    }
}

/// Not a test of its own: the service that the test below starts.
#[test]
fn child() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    let arguments: Vec<OsString> = arguments.lines().map(OsString::from).collect();
    let environment = mesh_kit::config::environment();
    let start = async |mesh: Mesh, (): ()| mesh.decide(Fragile).await.map(|_| ());
    std::process::exit(mesh_kit::run_with("validator", arguments, &environment, start).into());
}

fn service(test_bus: &TestBus) -> Child {
    let arguments = mesh_kit::config::arguments(&test_bus.settings("validator")).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(ARGUMENTS, arguments.join("\n"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadly_input_is_dead_lettered_and_all_others_are_decided_once() {
    let Some(test_bus) = TestBus::start("mesh-kit, deadly input").await else { return };
    let (intents, person) = (test_bus.connect("intent-manager").await, test_bus.connect("person").await);
    let names: Vec<String> = (0..30).map(|n| if n == 17 { DEADLY.to_owned() } else { format!("i-{n}") }).collect();
    for name in &names {
        let fact = IntentSubmitted { owner: "local".into(), intent_id: name.clone(), ..Default::default() };
        let message = Outgoing::new(&fact as &dyn AnyEvent, format!("submitted-{name}"), now()).unwrap();
        let entity = format!("intent.*.*.local.{name}");
        intents.writer("INTENT").write(Decision { entity, expected: 0, messages: vec![message] }).await.unwrap();
    }
    let others = names.len() - 1;
    let decided = async || person.log("VALIDATION").read("validation.>", 1, 1_000).await.unwrap();

    // As any supervisor does: started again each time it ends, until it lives.
    let mut ended = 0;
    let lives = tokio::time::timeout(PATIENCE, async {
        loop {
            let mut child = service(&test_bus);
            let settled = async {
                while decided().await.len() < others {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::select! {
                _ = child.wait() => ended += 1,
                () = settled => {
                    // It may still have the deadly one in hand: the dead letter says that it has not.
                    let dead = async || person.log("DEAD").read("dead.>", 1, 10).await.unwrap();
                    tokio::select! {
                        _ = child.wait() => ended += 1,
                        () = async { while dead().await.is_empty() { tokio::time::sleep(Duration::from_millis(20)).await } } => {
                            return child;
                        }
                    }
                }
            }
        }
    });
    let mut child = lives.await.expect("it lives at last");
    assert!((DEATHS_MAX..=STARTS_MAX + DEATHS_MAX).contains(&ended), "it ended {ended} times");

    let dead = person.log("DEAD").read("dead.>", 1, 10).await.unwrap();
    assert_eq!(dead.iter().map(|d| d.subject.as_str()).collect::<Vec<_>>(), ["dead.intent.submitted.v1.local.deadly"]);
    let facts = decided().await;
    let mut of: Vec<&str> = facts.iter().map(|f| f.subject.rsplit('.').next().unwrap()).collect();
    of.sort_unstable();
    let mut wanted: Vec<&str> = names.iter().map(String::as_str).filter(|name| *name != DEADLY).collect();
    wanted.sort_unstable();
    assert_eq!(of, wanted, "each other one is decided, and once");

    // A next life does not meet it again.
    child.kill().await.unwrap();
    let mut child = service(&test_bus);
    let fact = IntentSubmitted { owner: "local".into(), intent_id: "later".into(), ..Default::default() };
    let message = Outgoing::new(&fact as &dyn AnyEvent, "submitted-later", now()).unwrap();
    let entity = "intent.*.*.local.later".to_owned();
    intents.writer("INTENT").write(Decision { entity, expected: 0, messages: vec![message] }).await.unwrap();
    let later = async {
        while decided().await.len() <= others {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        ended = child.wait() => panic!("it ended again: {ended:?}"),
        () = mesh_test::soon("the later intent is decided", later) => {}
    }
    assert_eq!(person.log("DEAD").read("dead.>", 1, 10).await.unwrap().len(), 1, "buried once");
}
