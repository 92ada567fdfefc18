//! What people ask for, at random: good and bad documents, intents in every state, things that are not there.

use std::collections::BTreeMap;

use mesh_proto::{
    AnyEvent,
    intent::{
        ExpectationObject, ExpectationTarget, Intent, IntentExpectation, ResumeIntent, SubmitIntent, SuspendIntent,
        TerminateIntent, UpdateIntent,
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
pub fn command(rng: &mut Rng) -> Box<dyn AnyEvent> {
    let owner = OWNER.to_owned();
    let intent_id = (*rng.pick(&INTENTS)).to_owned();
    match rng.below(20) {
        0..=4 => {
            let document = document(rng);
            Box::new(RegisterWorkload { owner, name: document.name.clone(), document: Some(document) })
        }
        5..=10 => Box::new(SubmitIntent { owner, intent_id, intent: Some(intent(rng)) }),
        11..=13 => Box::new(UpdateIntent { owner, intent_id, intent: Some(intent(rng)), if_revision: 0 }),
        14 => Box::new(SuspendIntent { owner, intent_id, if_revision: 0 }),
        15 => Box::new(ResumeIntent { owner, intent_id, if_revision: 0 }),
        16 => Box::new(TerminateIntent { owner, intent_id, if_revision: 0 }),
        17 | 18 => Box::new(RunInstance {
            owner,
            instance_id: (*rng.pick(&INSTANCES)).to_owned(),
            workload: workload(rng),
            replicas: rng.below(3) as u32,
            release: None,
        }),
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

fn intent(rng: &mut Rng) -> Intent {
    let expectations = 1 + rng.below(2);
    let expectation = |rng: &mut Rng, number: usize| IntentExpectation {
        expectation_id: number.to_string(),
        expectation_verb: "ENSURE".into(),
        expectation_object: Some(ExpectationObject {
            object_type: "NEMO_WORKLOAD".into(),
            object_instance: if rng.percent(10) { (*rng.pick(&INSTANCES)).to_owned() } else { workload(rng) },
            ..Default::default()
        }),
        expectation_targets: vec![ExpectationTarget {
            target_name: if rng.percent(8) { "diskUsage".into() } else { "cpuUsage".into() },
            target_condition: "IS_LESS_THAN".into(),
            target_value_range: rng.pick(&["15", "40", "90"]).to_string(),
            ..Default::default()
        }],
        ..Default::default()
    };
    Intent {
        user_label: "DeliverComputingWorkload".into(),
        intent_expectations: (0..expectations).map(|number| expectation(rng, number)).collect(),
        observation_period: 2,
        ..Default::default()
    }
}
