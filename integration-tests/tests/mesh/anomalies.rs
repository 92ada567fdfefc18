//! Faults injected into a live mesh: found, with their cause first, repaired by policy, and nothing said of the others.
//!
//! Real processes, each with a fault of its own: CPU hogs, memory leaks, stuck ones. In the usual form a few of each; with
//! `CONTINUUM_FULL=1` twenty of each at random, and before them a quarter of an hour of quiet with twenty workloads. Ends
//! with a table.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use mesh_core::Stored;
use mesh_proto::{
    anomaly::{AnomalyCleared, AnomalyDetected, Direction},
    derived_id,
    remedy::{Action, PolicyRule, RemedyPolicy, RemedyRequested, RemedySettled, SetRemedyPolicy},
    workload::RunInstance,
};
use serde_json::json;

use crate::support::{LIMIT, MeshRun, OWNER, cluster, document, is_full, shared_folder};

/// What is injected: the fault, the metric to blame and its direction.
const FAULTS: [(&str, &str, Direction); 3] = [
    ("hog 300", "cpu_milli", Direction::Above),
    ("leak 5", "memory_bytes", Direction::Above),
    ("stuck", "cpu_milli", Direction::Below),
];

struct Size {
    workloads: usize,
    rounds: usize,
    quiet: Duration,
}

fn size() -> Size {
    match is_full() {
        true => Size { workloads: 20, rounds: 20, quiet: Duration::from_secs(900) },
        false => Size { workloads: 4, rounds: 1, quiet: Duration::from_secs(10) },
    }
}

/// What came of one fault.
struct Outcome {
    fault: &'static str,
    found: bool,
    first: bool,
    samples: u32,
    seconds: f64,
    effective: bool,
}

/// Small, seeded: which workload is next.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

fn inject(faults: &Path, instance: &str, fault: &str) {
    let staged = faults.join("staged");
    std::fs::write(&staged, fault).unwrap();
    std::fs::rename(&staged, faults.join(instance)).unwrap();
}

async fn facts<E: mesh_proto::Event>(mesh: &MeshRun, stream: &str) -> Vec<E> {
    mesh.facts(stream).await.iter().filter_map(|f: &Stored| f.event::<E>().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn injected_faults_are_found_with_their_cause_and_repaired() {
    let Size { workloads, rounds, quiet } = size();
    let name = format!("sar-{}", std::process::id());
    let clusters = [cluster(&name, "process", 4_000, 4_000)];
    let set = ["--set", "meta-orchestrator.move_cooldown_ms=1000"];
    let Some(mesh) = MeshRun::start("anomalies", &clusters, &set).await else { return };
    let faults = shared_folder();
    let folder = faults.path().display().to_string();
    let arguments = ["--load-milli", "30", "--memory-mb", "20", "--faults", &folder];
    mesh.register(document("patient", "spinner", &arguments, json!({}))).await;
    let actions = vec![Action::Restart.into()];
    let policy = RemedyPolicy {
        rules: vec![PolicyRule { actions, ..PolicyRule::default() }],
        cooldown_seconds: 1,
        rate_max: 1_000,
        settle_seconds: 120,
        ..RemedyPolicy::default()
    };
    let answer = mesh.ask(&SetRemedyPolicy { owner: OWNER.into(), policy: Some(policy) }, "policy").await;
    assert!(answer.subject.starts_with("remedy.policy_set."), "{}", answer.subject);
    let instances: Vec<String> = (0..workloads).map(|n| derived_id(&["patient", &n.to_string()])).collect();
    for instance in &instances {
        let run = RunInstance {
            owner: OWNER.into(),
            instance_id: instance.clone(),
            workload: "patient@1.0.0".into(),
            replicas: 0,
            release: None,
        };
        mesh.send(&run, &derived_id(&["run", instance])).await;
    }

    // Until every model judges.
    for instance in &instances {
        mesh.until("a model that judges", async || {
            let output = mesh.cli(&["anomaly", "explain", instance, "-o", "json"]).await;
            let model: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            let number = |name: &str| model[name].as_u64();
            (number("learned")? >= number("warm")?).then_some(())
        })
        .await;
    }
    let begun = Instant::now();
    tokio::time::sleep(quiet).await;
    let alarms = facts::<AnomalyDetected>(&mesh, "ANOMALY").await;
    let hours = begun.elapsed().as_secs_f64() / 3_600.0 * workloads as f64;
    for alarm in &alarms {
        eprintln!("false alarm: {}", alarm.sentence);
    }
    // A false alarm is repaired too; wait until that is over.
    settle(&mesh).await;

    let mut seed = std::env::var("CONTINUUM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    let mut outcomes = vec![];
    let mut blamed: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..rounds {
        for (fault, metric, direction) in FAULTS {
            let instance = &instances[next(&mut seed) as usize % instances.len()];
            calm(&mesh, instance).await;
            let before = facts::<AnomalyDetected>(&mesh, "ANOMALY").await.len();
            let injected = Instant::now();
            inject(faults.path(), instance, fault);
            let detected = tokio::time::timeout(LIMIT, async {
                loop {
                    let all = facts::<AnomalyDetected>(&mesh, "ANOMALY").await;
                    for other in all.iter().skip(before).filter(|d| d.instance_id != *instance) {
                        *blamed.entry(other.sentence.clone()).or_default() += 1;
                    }
                    if let Some(found) = all.into_iter().skip(before).find(|d| d.instance_id == *instance) {
                        return found;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            })
            .await;
            let seconds = injected.elapsed().as_secs_f64();
            let Ok(detected) = detected else {
                eprintln!("round {round}: {fault} in {instance} was not found");
                outcomes.push(Outcome { fault, found: false, first: false, samples: 0, seconds, effective: false });
                continue;
            };
            let cause = detected.contributions.first().unwrap();
            let first = cause.metric == metric && cause.direction() == direction;
            if !first {
                eprintln!("{fault}: {}", detected.sentence);
            }
            let effective = tokio::time::timeout(LIMIT * 2, async {
                loop {
                    let settled = facts::<RemedySettled>(&mesh, "REMEDY").await;
                    if let Some(settled) = settled.into_iter().find(|s| s.episode_id == detected.episode_id) {
                        return settled.effective;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            })
            .await
            .unwrap_or(false);
            outcomes.push(Outcome { fault, found: true, first, samples: detected.samples, seconds, effective });
        }
    }

    eprintln!("fault     injected found cause-first delay(samples) delay(s) repaired");
    for (fault, _, _) in FAULTS {
        let of: Vec<&Outcome> = outcomes.iter().filter(|o| o.fault == fault).collect();
        let found: Vec<&&Outcome> = of.iter().filter(|o| o.found).collect();
        let mean = |of: fn(&Outcome) -> f64| found.iter().map(|o| of(o)).sum::<f64>() / found.len().max(1) as f64;
        eprintln!(
            "{fault:<9} {:>8} {:>5} {:>11} {:>14.1} {:>8.1} {:>8}",
            of.len(),
            found.len(),
            of.iter().filter(|o| o.first).count(),
            mean(|o| f64::from(o.samples)),
            mean(|o| o.seconds),
            of.iter().filter(|o| o.effective).count()
        );
    }
    eprintln!(
        "quiet: {} false alarms in {hours:.2} workload-hours; while faults were in others: {}",
        alarms.len(),
        blamed.len()
    );
    for sentence in blamed.keys() {
        eprintln!("beside a fault: {sentence}");
    }

    let share = |of: fn(&Outcome) -> bool| outcomes.iter().filter(|o| of(o)).count() as f64 / outcomes.len() as f64;
    assert!(share(|o| o.found) >= 0.95, "found");
    assert!(share(|o| o.first) >= 0.9, "cause first");
    assert!(share(|o| o.effective) >= 0.9, "repaired");
    // Beside other tests, CPU is not shared evenly, and what starved catches up: that is not a false alarm there.
    let blames_cpu = |a: &&AnomalyDetected| a.contributions.first().is_some_and(|c| c.metric == "cpu_milli");
    let spared = if is_full() { 0 } else { alarms.iter().filter(blames_cpu).count() };
    assert!((alarms.len() - spared) as f64 <= (2.0 * hours).max(1.0), "false alarms");
    let requested = facts::<RemedyRequested>(&mesh, "REMEDY").await;
    let detected = facts::<AnomalyDetected>(&mesh, "ANOMALY").await;
    let cleared = facts::<AnomalyCleared>(&mesh, "ANOMALY").await;
    for (what, ids) in [
        ("detected", detected.iter().map(|d| &d.episode_id).collect::<Vec<_>>()),
        ("cleared", cleared.iter().map(|c| &c.episode_id).collect()),
        ("requested", requested.iter().map(|r| &r.remedy_id).collect()),
    ] {
        let mut once = ids.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), ids.len(), "{what} once");
    }
    let listed = mesh.cli(&["remedy", "list"]).await;
    assert!(String::from_utf8_lossy(&listed.stdout).contains("effective after"), "{}", crate::support::text(&listed));
}

/// Waits until no episode of an instance goes on: in one that does, nothing new would be told.
async fn calm(mesh: &MeshRun, instance: &str) {
    mesh.until("an instance that is as usual", async || {
        let began = facts::<AnomalyDetected>(mesh, "ANOMALY").await;
        let ended = facts::<AnomalyCleared>(mesh, "ANOMALY").await;
        let of = |id: &str| id == instance;
        let began = began.iter().filter(|d| of(&d.instance_id)).count();
        (began == ended.iter().filter(|c| of(&c.instance_id)).count()).then_some(())
    })
    .await;
}

/// Waits until no remedy is under way.
async fn settle(mesh: &MeshRun) {
    mesh.until("remedies that are settled", async || {
        let requested = facts::<RemedyRequested>(mesh, "REMEDY").await.len();
        let settled = facts::<RemedySettled>(mesh, "REMEDY").await.iter().filter(|s| !s.remedy_id.is_empty()).count();
        (requested == settled).then_some(())
    })
    .await;
}
