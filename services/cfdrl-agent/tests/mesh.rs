//! The learner on a real bus and a real Zenoh router, with no other rights than the contract's.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a test starts, waits for and measures real processes")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cfdrl_agent::{
    Config,
    domain::{
        aggregate::RuleKind,
        federation::{Federation, sign},
        policy::Policy,
    },
};
use mesh_bus::About;
use mesh_core::{Decision, Outgoing};
use mesh_kit::{Running, Settings, Stopped};
use mesh_proto::{
    AnyEvent,
    learning::{
        AdviceRequest, LearningAdvised, PolicyAdopted, PolicyRequest, RoundClosed, RoundsRequest,
        learning_queries_client::LearningQueriesClient,
    },
    placement::{ClusterJoined, PlacementDecided},
    workload::{Resources, WorkloadDocument},
};
use mesh_test::{TestBus, now, soon, until};
use prost::Message as _;
use tonic::Code;

async fn learner(test_bus: &TestBus, config: Config) -> Running {
    let settings =
        Settings { data_dir: Some(test_bus.folder().join(&config.site)), ..test_bus.settings("cfdrl-agent") };
    mesh_kit::join("cfdrl-agent", settings, config, cfdrl_agent::start).await.unwrap()
}

/// None, loudly, where there is no nats-server.
async fn test_bus(test: &str) -> Option<TestBus> {
    Some(TestBus::start(&format!("cfdrl-agent, {test}")).await?.with_router().await)
}

fn facts() -> Vec<Box<dyn AnyEvent>> {
    let joined = |id: &str, cpu_milli| ClusterJoined {
        domain: "default".into(),
        cluster_id: id.into(),
        cpu_milli,
        memory_bytes: 1 << 30,
        labels: BTreeMap::from([("tier".to_owned(), id.to_owned())]),
        driver: "process".into(),
    };
    let resources = Resources { cpu_milli: 100, memory_bytes: 1 << 20, cpu_limit_milli: 150, ..Default::default() };
    let document = WorkloadDocument { resources: Some(resources), ..Default::default() };
    let decided = PlacementDecided {
        domain: "default".into(),
        owner: "local".into(),
        instance_id: "i".into(),
        generation: 1,
        cluster_id: "cloud".into(),
        replicas: 1,
        document: document.encode_to_vec().into(),
        ..Default::default()
    };
    vec![Box::new(joined("cloud", 4_000)), Box::new(joined("device", 1_000)), Box::new(decided)]
}

#[tokio::test(flavor = "multi_thread")]
async fn advice_is_published_beside_the_decision_and_can_be_queried() {
    let Some(test_bus) = test_bus("advice").await else { return };
    let running = learner(&test_bus, Config::default()).await;
    let planner = test_bus.connect("meta-orchestrator").await;
    let mut tail = planner.log("LEARNING").tail("learning.advised.v1.>", 1);
    let messages =
        facts().into_iter().zip(0..).map(|(f, n)| Outgoing::new(f.as_ref(), format!("f{n}"), now()).unwrap());
    let decision = Decision { entity: "placement.*.*.default".into(), expected: 0, messages: messages.collect() };
    planner.writer("PLACEMENT").write(decision).await.unwrap();
    let stored = soon("advice", tail.next()).await.unwrap();
    let advised = stored.event::<LearningAdvised>().unwrap().unwrap();
    assert_eq!(stored.cause.as_ref().map(|c| (c.stream.as_str(), c.sequence)), Some(("PLACEMENT", 3)));
    assert_eq!(
        (advised.instance_id.as_str(), advised.generation, advised.planned_cluster_id.as_str()),
        ("i", 1, "cloud")
    );
    assert!(advised.regret >= 0.0 && advised.options.len() >= 2 && !advised.reason.is_empty());

    let mut client = LearningQueriesClient::connect(running.endpoint()).await.unwrap();
    let asked = AdviceRequest { instance_id: "i".into(), ..Default::default() };
    let mut shown = client.advice(asked).await.unwrap().into_inner().advice;
    if !mesh_test::wording() {
        shown[0].reason.clone_from(&advised.reason);
    }
    assert_eq!(shown, std::slice::from_ref(&advised));
    let missing = AdviceRequest { instance_id: "j".into(), ..Default::default() };
    assert_eq!(client.advice(missing).await.unwrap_err().code(), Code::NotFound);
    let policy = client.policy(PolicyRequest {}).await.unwrap().into_inner();
    assert_eq!(Policy::from_file(&policy.file).unwrap().card.policy_id, advised.policy_id);
    assert_eq!(running.stop().await, Stopped::Settled);

    // A site whose policy file was changed does not begin with it, and says why.
    let path = test_bus.folder().join("changed.json");
    let text = String::from_utf8(policy.file.to_vec()).unwrap();
    let id = &advised.policy_id;
    std::fs::write(&path, text.replace(id.as_str(), "0bad0bad-0000-5000-8000-000000000000")).unwrap();
    let settings = test_bus.settings("cfdrl-agent");
    let config = Config { policy_file: path, ..Config::default() };
    let refused = mesh_kit::join("cfdrl-agent", settings, config, cfdrl_agent::start).await;
    let error = format!("{:#}", refused.err().unwrap());
    assert!(error.contains("the file was changed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sites_learn_together_over_zenoh_and_strangers_and_liars_do_not_count() {
    let Some(test_bus) = test_bus("federation").await else { return };
    let names = ["a", "b", "c", "liar"];
    let keys: Vec<nkeys::KeyPair> = names.iter().map(|_| nkeys::KeyPair::new_user()).collect();
    let members: BTreeMap<String, String> =
        names.iter().zip(&keys).map(|(name, k)| ((*name).to_owned(), k.public_key())).collect();
    let written = members.iter().map(|(name, key)| format!("{name}={key}")).collect::<Vec<_>>().join(",");
    let mut running = vec![];
    for (name, key) in names.iter().zip(&keys).take(3) {
        let key_file = test_bus.folder().join(format!("{name}.key"));
        std::fs::write(&key_file, key.seed().unwrap()).unwrap();
        let config = Config {
            site: (*name).to_owned(),
            round_ms: 3_000,
            episodes: 1,
            federation: "f".into(),
            members: written.clone(),
            key_file,
            rule: RuleKind::Median,
            hostile_max: 1,
            gate_seeds: 0,
            ..Config::default()
        };
        running.push(learner(&test_bus, config).await);
    }
    let bus = test_bus.connect("cfdrl-agent").await;
    let mut tail = bus.log("LEARNING").tail("learning.round_closed.v1.>", 1);
    // What a stranger, a forger and a member gone bad send, all the while.
    let widths: Vec<usize> = Policy::from_file(learning::BUILT_IN.as_bytes()).unwrap().network.widths().to_vec();
    let size = cfdrl_agent::domain::network::size(&widths);
    let federation =
        Federation { name: "f".into(), members, own: "liar".into(), rule: RuleKind::Median, hostile_max: 1, widths };
    let (router, liar) = (test_bus.router().clone(), nkeys::KeyPair::from_seed(&keys[3].seed().unwrap()).unwrap());
    let hostile = tokio::spawn(async move {
        let stranger = nkeys::KeyPair::new_user();
        loop {
            let round = u64::try_from(now().as_millis()).unwrap() / 3_000;
            let bodies = [
                vec![0xff; 40],
                vec![0; 500_000],
                sign(&federation, &stranger, round, &vec![1e30; size], 1).unwrap(),
                sign(&federation, &liar, round, &vec![f32::NAN; size], 1).unwrap(),
                sign(&federation, &liar, round - 5, &vec![0.0; size], 1).unwrap(),
            ];
            for body in bodies {
                router.publish("continuum/liar/liar/learn/liar", body, &About::default()).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    // Each site sees a round in which all three honest ones count, and adopts what came of it.
    let mut seen = BTreeSet::new();
    let closed = soon("a round of three at every site", async {
        loop {
            let stored = tail.next().await.unwrap();
            let closed = stored.event::<RoundClosed>().unwrap().unwrap();
            let of = |name: &str| closed.members.iter().find(|m| m.member == name).map_or("", |m| m.outcome.as_str());
            if ["a", "b", "c"].iter().all(|name| of(name) == "used") && closed.adopted {
                assert!(["malformed", "late", "missing"].contains(&of("liar")), "{closed:?}");
                seen.insert(closed.site.clone());
            }
            if seen.len() == 3 {
                return closed;
            }
        }
    })
    .await;
    let strangers: Vec<&str> =
        closed.members.iter().filter(|m| m.member.is_empty()).map(|m| m.outcome.as_str()).collect();
    assert!(strangers.contains(&"not a member") && strangers.contains(&"oversized"), "{strangers:?}");
    let last = bus.log("LEARNING").last("learning.policy_adopted.v1.a").await.unwrap().unwrap();
    let adopted = last.event::<PolicyAdopted>().unwrap().unwrap().card.unwrap();
    assert_eq!((adopted.aggregation.as_str(), adopted.site.as_str()), ("median", "a"));
    assert!(!adopted.parent_policy_id.is_empty());
    let mut client = LearningQueriesClient::connect(running[0].endpoint()).await.unwrap();
    let rounds = async || client.rounds(RoundsRequest { limit: 1 }).await.unwrap().into_inner().rounds;
    let rounds = until("its last round is listed", rounds, |rounds| !rounds.is_empty()).await;
    assert_eq!(rounds[0].site, "a", "each site tells its own rounds");
    hostile.abort();
    for service in running {
        assert_eq!(service.stop().await, Stopped::Settled);
    }
    // What was learned outlives the process.
    let kept = std::fs::read(test_bus.folder().join("a/policy.json")).unwrap();
    assert!(Policy::from_file(&kept).is_ok());
}
