//! Processes of the mesh are killed while intents are submitted and every other area is commanded: nothing accepted is
//! lost, nothing is done twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use mesh_core::Stored;
use mesh_proto::{
    contract::Kind,
    intent::{FulfilmentStatus, TerminateIntent},
};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    areas,
    support::{self, MeshRun, OWNER, cluster, command_id, document, intent, submit},
};

/// Intents that run real processes; the others are simulated.
const REAL: usize = 20;
/// How long the mesh may take after the last kill until every intent is in its right state.
const SETTLED_WITHIN: Duration = Duration::from_secs(150);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_any_process_at_any_time_loses_nothing_and_does_nothing_twice() {
    let (cycles, intents) = if support::is_full() { (50, 2_000) } else { (12, 300) };
    let cycles = usize::try_from(number("CONTINUUM_CYCLES", cycles)).unwrap();
    let intents = usize::try_from(number("CONTINUUM_INTENTS", intents)).unwrap();
    assert!(cycles > 0 && intents >= REAL, "CONTINUUM_CYCLES is at least 1, CONTINUUM_INTENTS at least {REAL}");
    let seed = number("CONTINUUM_SEED", u64::try_from(support::now().as_nanos()).unwrap());
    eprintln!("kill9: {cycles} cycles, {intents} intents, {REAL} of them real processes, CONTINUUM_SEED={seed}");
    let begun = Instant::now();
    let host = format!("host-{}", std::process::id());
    let clusters = [
        cluster(&host, "process", 4_000, 4_000),
        cluster("sim-a", "simulated", 1_000_000, 1_000_000),
        cluster("sim-b", "simulated", 1_000_000, 1_000_000),
    ];
    let Some(mut mesh) = MeshRun::start("kill9", &clusters, &["--processes"]).await else { return };
    mesh.register(document("real", "sleep", &["1000000"], json!({"driver": "process"}))).await;
    mesh.register(document("model", "sleep", &["1000000"], json!({"driver": "simulated"}))).await;

    let ids: Vec<String> = (0..intents).map(|n| format!("intent-{n}")).collect();
    let workload = |n: usize| {
        if n.is_multiple_of((intents / REAL).max(1)) && n / (intents / REAL).max(1) < REAL { "real" } else { "model" }
    };
    let real: Vec<&String> = ids.iter().enumerate().filter(|(n, _)| workload(*n) == "real").map(|(_, id)| id).collect();
    let mut commands = areas::Commands::default();
    let all: usize = support::children(mesh.pid()).len();
    let mut chance = seed | 1;
    let mut killed: BTreeMap<String, usize> = BTreeMap::new();
    let mut replaced: Vec<Duration> = vec![];
    for cycle in 0..cycles {
        let share = intents * cycle / cycles..intents * (cycle + 1) / cycles;
        let (mesh, ids) = (&mesh, &ids);
        let submitting = stream::iter(share).for_each_concurrent(8, async |n| {
            let mut wanted = intent(workload(n), &[("ramUsage", "500")]);
            wanted["observationPeriod"] = json!(5);
            mesh.send(&submit(&ids[n], wanted), &command_id(&ids[n])).await;
        });
        let killing = async {
            // xorshift: the seed decides who dies.
            chance ^= chance << 13;
            chance ^= chance >> 7;
            chance ^= chance << 17;
            let victims: Vec<(u32, String)> = support::children(mesh.pid()).into_iter().collect();
            let (pid, name) = victims[usize::try_from(chance % victims.len() as u64).unwrap()].clone();
            let since = Instant::now();
            support::signal(pid, Signal::SIGKILL);
            *killed.entry(name).or_default() += 1;
            mesh.until("the killed process is replaced", async || {
                (!support::runs(pid) && support::children(mesh.pid()).len() == all).then_some(())
            })
            .await;
            replaced.push(since.elapsed());
        };
        let commanding = commands.send(mesh, cycle);
        // The next one dies as soon as this one was replaced and the share was taken in: often before it is ready.
        tokio::join!(submitting, killing, commanding);
        if (cycle + 1).is_multiple_of(10) {
            eprintln!("kill9: {} of {cycles} cycles after {:.0} s", cycle + 1, begun.elapsed().as_secs_f64());
        }
    }
    let submitted = begun.elapsed();
    replaced.sort_unstable();
    eprintln!("kill9: submitted after {:.1} s; killed {killed:?}", begun.elapsed().as_secs_f64());

    // Every intent in its right state.
    let deadline = Instant::now() + SETTLED_WITHIN;
    let mut tail = mesh.bus.log("INTENT").tail("intent.>", 1);
    let mut stands: BTreeMap<String, String> = BTreeMap::new();
    let mut fulfilled: BTreeSet<String> = BTreeSet::new();
    while fulfilled.len() < intents {
        let Ok(fact) = tokio::time::timeout_at(deadline.into(), tail.next()).await else {
            let rest: Vec<String> = ids
                .iter()
                .filter(|id| !fulfilled.contains(*id))
                .map(|id| format!("{id}: {}", stands.get(id).map_or("never answered", String::as_str)))
                .collect();
            panic!("{} of {intents} intents are not FULFILLED: {}", rest.len(), rest.join("\n"));
        };
        let fact = fact.unwrap();
        let id = fact.subject.rsplit('.').next().unwrap().to_owned();
        if let Some(state) = support::state_of(&fact) {
            if state.fulfilment_status() == FulfilmentStatus::Fulfilled {
                fulfilled.insert(id.clone());
            } else {
                fulfilled.remove(&id);
            }
        }
        let body = mesh_proto::json::to_value(&fact.message, &fact.body).unwrap_or_default();
        stands.insert(id, format!("{} {body}", fact.subject));
    }
    let settled = begun.elapsed();
    eprintln!("kill9: every intent is FULFILLED after {:.1} s", settled.as_secs_f64());

    // Every accepted command has exactly one answer.
    let facts = mesh.facts("INTENT").await;
    let mut answers: BTreeMap<&str, usize> = BTreeMap::new();
    for cause in facts.iter().filter_map(|f| f.cause.as_ref()) {
        *answers.entry(&cause.id).or_default() += 1;
    }
    let unanswered: Vec<&String> = ids.iter().filter(|id| answers.get(command_id(id).as_str()) != Some(&1)).collect();
    assert!(unanswered.is_empty(), "not answered exactly once: {unanswered:?}");
    let commanded = commands.check(&mesh).await;
    // No fact twice, in no stream.
    let mut read = 0;
    for stream in mesh_proto::contract().streams.iter().filter(|s| matches!(s.kind, Kind::Facts | Kind::Derived)) {
        let facts = mesh.facts(&stream.name).await;
        let mut seen: BTreeMap<&str, &Stored> = BTreeMap::new();
        for fact in &facts {
            if let Some(first) = seen.insert(&fact.id, fact) {
                panic!(
                    "{} {} is at {} and at {}: {}",
                    stream.name, fact.id, first.sequence, fact.sequence, fact.subject
                );
            }
        }
        read += facts.len();
    }
    assert_eq!(mesh.facts("DEAD").await.len(), 0, "dead letters");
    // Every wanted process exactly once, and none else.
    let wanted: BTreeSet<String> = real.iter().map(|id| support::instance_of(id)).collect();
    // What an agent that was killed last ran is started again by the next, which an intent need not have noticed.
    let running: Vec<String> = mesh
        .until("every wanted process runs, and none else", async || {
            let running: Vec<String> = support::marked(&host).into_iter().map(|(_, instance)| instance).collect();
            (running.iter().cloned().collect::<BTreeSet<_>>() == wanted).then_some(running)
        })
        .await;
    assert_eq!(running.len(), wanted.len(), "a process runs twice: {running:?}");
    // Unwanted, they end.
    for id in &real {
        let terminate = TerminateIntent { owner: OWNER.into(), intent_id: (*id).clone(), if_revision: 0 };
        mesh.send(&terminate, &mesh_proto::derived_id(&["terminate", id])).await;
    }
    mesh.until("no process runs unwanted", async || support::marked(&host).is_empty().then_some(())).await;
    let before = support::descendants(mesh.pid());
    mesh.down().await;
    assert_eq!(before.into_iter().filter(|pid| support::runs(*pid)).count(), 0, "processes run after `down`");
    let victims: Vec<String> = killed.iter().map(|(name, times)| format!("{name} {times}")).collect();
    let rows = [
        ("processes killed", format!("{cycles}: {}", victims.join(", "))),
        (
            "replaced after",
            format!("p50 {} ms, at most {} ms", millis(&replaced, cycles / 2), millis(&replaced, cycles - 1)),
        ),
        ("intents", format!("{intents}, {REAL} of them real processes")),
        ("all submitted, all FULFILLED", format!("{:.1} s, {:.1} s", submitted.as_secs_f64(), settled.as_secs_f64())),
        ("accepted commands lost", format!("0 of {}", ids.len())),
        ("commands of other areas answered other than once", format!("0 of {commanded}")),
        ("facts twice", format!("0 of {read}")),
        ("intents in a wrong state", "0".into()),
        ("wanted processes not running exactly once", format!("0 of {REAL}")),
        ("dead letters", "0".into()),
    ];
    for (what, value) in rows {
        eprintln!("kill9: | {what} | {value} |");
    }
}

fn millis(sorted: &[Duration], position: usize) -> u128 {
    sorted.get(position).map_or(0, Duration::as_millis)
}
