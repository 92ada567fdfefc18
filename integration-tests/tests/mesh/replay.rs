//! Everything that was decided is the fold of what is stored, and would be decided the same again.

use std::collections::BTreeMap;

use mesh_admin::{Server, ServerOptions};
use mesh_bus::Bus;
use mesh_core::{Decider, Envelope, Key, ReadModel as _, Stored, Trigger, replica::Replica};
use mesh_proto::{
    EventSet as _, FactSet as _, Timestamp, derived_id,
    intent::{TerminateIntent, UpdateIntent},
};
use meta_orchestrator::{
    placements::{Limits, Placements},
    plan::Preference,
};
use serde_json::json;

use crate::support::{self, MeshRun, OWNER, cluster, command_id, document, intent, is_failed, parse, submit};

#[tokio::test(flavor = "multi_thread")]
async fn every_entity_is_the_fold_of_its_stream_and_would_decide_the_same_again() {
    if !mesh_test::wording() {
        // A decision that is taken again has its own words, not those that the mesh replaced.
        eprintln!("SKIPPED: replay: it compares words, which are random in this mode (run `make test`)");
        return;
    }
    let clusters = [cluster("sim-a", "simulated", 2_000, 2_000), cluster("sim-b", "simulated", 100_000, 100_000)];
    let Some(mut mesh) = MeshRun::start("replay", &clusters, &[]).await else { return };
    // A history of everything: kept and broken targets, a move, an update, refusals, what cannot run, endings.
    mesh.register(document("sleeper", "sleep", &["1"], json!({}))).await;
    let mut grows = document("grows", "sleep", &["1"], json!({}));
    grows["process"]["environment"] = json!({"SIM_LOAD_MILLI": "20,4000:1500"});
    mesh.register(grows).await;
    let mut giant = document("giant", "sleep", &["1"], json!({}));
    giant["resources"]["cpuMilli"] = json!(900_000);
    mesh.register(giant).await;
    for n in 0..10 {
        mesh.send(
            &submit(&format!("plain-{n}"), intent("sleeper", &[("ramUsage", "500")])),
            &command_id(&format!("plain-{n}")),
        )
        .await;
    }
    mesh.send(&submit("moves", intent("grows", &[("cpuUsage", "30")])), &command_id("moves")).await;
    mesh.send(&submit("giant", intent("giant", &[("ramUsage", "500")])), &command_id("giant")).await;
    mesh.send(&submit("wrong", intent("sleeper", &[("cpuUsege", "30")])), &command_id("wrong")).await;
    mesh.state("wrong", is_failed).await;
    for n in 0..10 {
        mesh.state(&format!("plain-{n}"), |state| state.fulfilment_status == 2).await;
    }
    let update = UpdateIntent {
        owner: OWNER.into(),
        intent_id: "plain-1".into(),
        intent: Some(parse(intent("sleeper", &[("ramUsage", "400"), ("cpuUsage", "50")]))),
        if_revision: 0,
    };
    mesh.ask(&update, "update-plain-1").await;
    let mut placed = 0;
    mesh.fact("placement", "placement.decided.v1.*", |fact| {
        let body = mesh_proto::json::to_value(&fact.message, &fact.body).unwrap();
        placed += usize::from(body["instanceId"] == json!(support::instance_of("moves")));
        (placed == 2).then_some(())
    })
    .await;
    for n in 5..10 {
        let id = format!("plain-{n}");
        mesh.ask(
            &TerminateIntent { owner: OWNER.into(), intent_id: id.clone(), if_revision: 0 },
            &derived_id(&["terminate", &id]),
        )
        .await;
        mesh.ask(
            &TerminateIntent { owner: OWNER.into(), intent_id: id.clone(), if_revision: 0 },
            &derived_id(&["again", &id]),
        )
        .await;
    }
    // Its last word on every entity is in the snapshots once it has stopped in order.
    mesh.down().await;
    let program = support::server("replay").await.unwrap();
    let folder = mesh.folder();
    let options = ServerOptions::new(&program, folder.join("nats.conf"), &folder.join("run"));
    let mut server = Server::start(options).await.unwrap();
    let url = server.url();
    let limits = Limits { preference: Preference::Pack, ..Limits::default() };
    let bus = async |identity: &str| support::connect(&url, identity, &mesh.seed(identity)).await;
    check(&bus("intent-manager").await, &bus("person").await, intent_manager::domain::Intents::default).await;
    check(&bus("validator").await, &bus("person").await, || validator::domain::Verdicts).await;
    check(&bus("workload-manager").await, &bus("person").await, || workload_manager::domain::Workloads).await;
    let orchestrator = bus("meta-orchestrator").await;
    check(&orchestrator, &bus("person").await, || Placements::new(limits.clone())).await;
    check(&orchestrator, &bus("person").await, || meta_orchestrator::assignments::Assignments).await;
    server.stop().await.unwrap();
}

/// Folds a decider's stream and compares with its snapshots; decides every decision again and compares with its facts.
async fn check<D: Decider>(own: &Bus, reader: &Bus, decider: impl Fn() -> D) {
    let area = D::Fact::AREA;
    let stream = area.to_uppercase();
    let facts = mesh_why::facts(reader, &stream, &format!("{area}.>")).await.unwrap();
    assert!(!facts.is_empty(), "{}: nothing was decided", D::NAME);

    let mut replica = Replica::new(decider(), None);
    facts.iter().for_each(|fact| replica.fact(fact.clone()));
    assert_eq!(replica.counts().undecodable, 0);
    let (folded, _) = replica.snapshot(usize::MAX, 0).unwrap();
    let folded: BTreeMap<String, Vec<u8>> = folded.into_iter().collect();
    let saved = own.bucket(&format!("snapshot-{}", D::NAME)).all().await.unwrap();
    let saved: BTreeMap<String, Vec<u8>> =
        saved.into_iter().filter(|(key, _)| key != "index").map(|(key, bytes)| (key, bytes.to_vec())).collect();
    let differing: Vec<String> = folded
        .iter()
        .filter(|(key, bytes)| saved.get(*key) != Some(bytes))
        .map(|(key, bytes)| {
            let running = saved.get(key).map_or("absent".into(), |b| String::from_utf8_lossy(b).into_owned());
            format!("{key}\n  folded  {}\n  running {running}", String::from_utf8_lossy(bytes))
        })
        .collect();
    assert!(
        differing.is_empty(),
        "{}: entities that are not the fold of their facts:\n{}",
        D::NAME,
        differing.join("\n")
    );

    let mut history = History { world: BTreeMap::new(), entities: BTreeMap::new(), decider: decider() };
    for (name, position) in facts.iter().flat_map(|f| &f.world) {
        let known = history.world.entry(name.clone()).or_default();
        if known.last().is_none_or(|last: &Stored| last.sequence < *position) {
            let subject = &mesh_proto::contract().stream(name).unwrap().subject;
            *known = mesh_why::facts(reader, name, subject).await.unwrap();
        }
    }
    let mut decisions = 0;
    let mut at = 0;
    while at < facts.len() {
        let key = key_of(&facts[at]);
        let same = |f: &&Stored| f.cause == facts[at].cause && key_of(f) == key;
        let count = facts[at..].iter().take_while(same).count();
        let decision = &facts[at..at + count];
        let cause = facts[at].cause.clone().expect("a decided fact names its cause");
        let input = match cause.stream.is_empty() {
            true => None,
            false => Some(reader.log(&cause.stream).get(cause.sequence).await.unwrap().expect("its cause is kept")),
        };
        history.again(&key, input.as_ref(), decision);
        decisions += 1;
        at += count;
    }
    eprintln!("replay: {}: {} entities as folded, {decisions} decisions as before", D::NAME, folded.len());
}

fn key_of(fact: &Stored) -> Key {
    Key::new(fact.subject.split('.').skip(3))
}

/// A decider's past, up to some decision.
struct History<D: Decider> {
    decider: D,
    /// What its World is folded from.
    world: BTreeMap<String, Vec<Stored>>,
    entities: BTreeMap<Key, (D::State, Timestamp)>,
}

impl<D: Decider> History<D> {
    /// Decides once more what was decided, and compares; then takes its facts in.
    fn again(&mut self, key: &Key, input: Option<&Stored>, decision: &[Stored]) {
        let first = &decision[0];
        let mut world = D::ReadModel::default();
        for (name, position) in &first.world {
            let known = self.world.get(name).into_iter().flatten();
            known.take_while(|fact| fact.sequence <= *position).for_each(|fact| world.apply(fact));
        }
        let entity = key.entity(D::Fact::AREA);
        let (state, time) = self.entities.remove(key).unwrap_or_else(|| (self.decider.initial(), Timestamp::default()));
        let envelope = match input {
            Some(stored) => {
                let body = stored.protobuf().unwrap();
                let mut event = D::Input::decode(&stored.message, &body).unwrap();
                event.any_mut().adopt_keys(&stored.subject).unwrap();
                assert!(
                    self.decider.concerns(&event, &world).contains(key),
                    "{entity} is concerned by {}",
                    stored.subject
                );
                let heard = if event.any().is_command() { stored.stored } else { stored.time };
                let (id, sequence) = (stored.id.clone(), stored.sequence);
                Envelope { trigger: Trigger::Event(event), at: heard.max(time), id, sequence, body }
            }
            None => {
                let due = self.decider.due(&state).expect("it was due");
                assert_eq!(first.cause.as_ref().unwrap().id, format!("due:{due}"));
                let id = derived_id(&[&entity, "due", &due.to_string()]);
                Envelope { trigger: Trigger::Due, at: due.max(time), id, sequence: 0, body: bytes::Bytes::new() }
            }
        };
        let facts = match self.decider.decide(key, &state, &world, &envelope) {
            Ok(facts) => facts,
            Err(refusal) => {
                let Trigger::Event(event) = &envelope.trigger else { panic!("time is not refused: {refusal}") };
                let name = event.any().message().rsplit('.').next().unwrap();
                vec![D::Fact::refused(&key.0, &envelope.id, name, &refusal).unwrap()]
            }
        };
        let shown = |facts: Vec<(String, bytes::Bytes)>| -> Vec<String> {
            facts
                .into_iter()
                .map(|(m, b)| format!("{m} {}", mesh_proto::json::to_value(&m, &b).unwrap_or_default()))
                .collect()
        };
        let (now, then): (Vec<_>, Vec<_>) = (
            facts.iter().map(|f| (f.any().message().to_owned(), f.any().body())).collect(),
            decision.iter().map(|f| (f.message.clone(), f.body.clone())).collect(),
        );
        assert!(now == then, "{entity} decided\n{:#?}\nand now would\n{:#?}", shown(then.clone()), shown(now.clone()));
        for (position, fact) in decision.iter().enumerate() {
            assert_eq!(fact.id, derived_id(&[&envelope.id, &entity, &position.to_string()]));
            assert_eq!(fact.time, envelope.at);
        }
        let state = facts.iter().fold(state, |state, fact| self.decider.evolve(state, fact, envelope.at));
        self.entities.insert(key.clone(), (state, envelope.at));
    }
}
