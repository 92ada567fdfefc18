//! What people ask for, at random: good and bad documents, intents in every state that contend, begin and end by
//! themselves and go back to earlier versions, things that are not there.

use std::collections::BTreeMap;

use mesh_intent::window;
use mesh_proto::{
    AnyEvent, Timestamp,
    intent::{
        ExpectationObject, ExpectationTarget, Intent, IntentExpectation, ResumeIntent, RollbackIntent, SubmitIntent,
        SuspendIntent, TerminateIntent, UpdateIntent,
    },
    workload::{ProcessSpec, RegisterWorkload, Resources, RunInstance, StopInstance, WorkloadDocument},
};

use super::rng::Rng;

const OWNER: &str = "local";
const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];
const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];
const INTENTS: [&str; 4] = ["one", "two", "three", "four"];
/// Instances that are wanted without an intent.
const INSTANCES: [&str; 2] = ["5f0c7a52-7d0e-4c57-9a53-0d5d3c1f0001", "5f0c7a52-7d0e-4c57-9a53-0d5d3c1f0002"];

/// The next thing that somebody asks for.
pub fn command(rng: &mut Rng, now: Timestamp) -> Box<dyn AnyEvent> {
    let owner = OWNER.to_owned();
    let intent_id = (*rng.pick(&INTENTS)).to_owned();
    // Some know a revision, which may have passed.
    let if_revision = if rng.percent(15) { rng.below(12) as u64 } else { 0 };
    match rng.below(21) {
        0..=4 => {
            let document = document(rng);
            Box::new(RegisterWorkload { owner, name: document.name.clone(), document: Some(document) })
        }
        5..=10 => Box::new(SubmitIntent { owner, intent_id, intent: Some(intent(rng, now)) }),
        11..=13 => Box::new(UpdateIntent { owner, intent_id, intent: Some(intent(rng, now)), if_revision }),
        14 => Box::new(SuspendIntent { owner, intent_id, if_revision }),
        15 => Box::new(ResumeIntent { owner, intent_id, if_revision }),
        16 => Box::new(TerminateIntent { owner, intent_id, if_revision }),
        17 | 18 => Box::new(RunInstance {
            owner,
            instance_id: (*rng.pick(&INSTANCES)).to_owned(),
            workload: workload(rng),
            replicas: rng.below(3) as u32,
            release: None,
        }),
        19 => Box::new(RollbackIntent { owner, intent_id, version: 1 + rng.below(4) as u64, if_revision }),
        _ => Box::new(StopInstance { owner, instance_id: (*rng.pick(&INSTANCES)).to_owned() }),
    }
}

fn workload(rng: &mut Rng) -> String {
    format!("{}@{}", rng.pick(&NAMES), rng.pick(&VERSIONS))
}

fn document(rng: &mut Rng) -> WorkloadDocument {
    let mut environment = BTreeMap::new();
    match rng.below(8) {
        0 => environment.insert("SIM_LOAD_MILLI".to_owned(), "100,15000:700".to_owned()),
        1 => environment.insert("SIM_LOAD_MILLI".to_owned(), "900".to_owned()),
        2 => environment.insert("SIM_FAIL_AFTER_MS".to_owned(), "4000".to_owned()),
        3 => environment.insert("SIM_START_ERROR".to_owned(), "no such file".to_owned()),
        _ => None,
    };
    let bad = rng.percent(12);
    WorkloadDocument {
        name: (*rng.pick(&NAMES)).to_owned(),
        version: (*rng.pick(&VERSIONS)).to_owned(),
        kind: if bad { "elsewhere".into() } else { "process".into() },
        driver: "simulated".into(),
        process: Some(ProcessSpec { command: "spinner".into(), environment, ..Default::default() }),
        resources: Some(Resources {
            cpu_milli: *rng.pick(&[100, 300, 600]),
            memory_bytes: *rng.pick(&[50_000_000, 200_000_000]),
            ..Default::default()
        }),
        replicas: 1 + rng.below(2) as u32,
        singleton: rng.percent(20),
        ..Default::default()
    }
}

fn intent(rng: &mut Rng, now: Timestamp) -> Intent {
    let expectations = 1 + rng.below(2);
    let expectation = |rng: &mut Rng, number: usize| IntentExpectation {
        expectation_id: number.to_string(),
        expectation_verb: "ENSURE".into(),
        expectation_object: Some(ExpectationObject {
            object_type: "NEMO_WORKLOAD".into(),
            object_instance: if rng.percent(45) { (*rng.pick(&INSTANCES)).to_owned() } else { workload(rng) },
            ..Default::default()
        }),
        expectation_targets: vec![ExpectationTarget {
            target_name: if rng.percent(8) { "diskUsage".into() } else { "cpuUsage".into() },
            // Of these some leave a value for all, and some do not.
            target_condition: if rng.percent(35) { "IS_GREATER_THAN".into() } else { "IS_LESS_THAN".into() },
            target_value_range: rng.pick(&["15", "40", "90"]).to_string(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut intent_contexts = vec![];
    if rng.percent(12) {
        intent_contexts.push(window::start_context(now.plus_millis(rng.below(20_000) as i64)));
    }
    if rng.percent(12) {
        intent_contexts.push(window::end_context(now.plus_millis(2_000 + rng.below(60_000) as i64)));
    }
    Intent {
        user_label: "DeliverComputingWorkload".into(),
        intent_expectations: (0..expectations).map(|number| expectation(rng, number)).collect(),
        intent_contexts,
        intent_priority: 1 + rng.below(3) as u32,
        intent_preemption_capability: if rng.percent(30) { "TRUE".into() } else { String::new() },
        intent_admin_state: if rng.percent(4) { "DEACTIVATED".into() } else { String::new() },
        observation_period: 2,
        ..Default::default()
    }
}
