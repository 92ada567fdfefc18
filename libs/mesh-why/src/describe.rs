//! One line for a person about any message of the contract: the `summary` of its message there.

use mesh_core::Stored;
pub use mesh_proto::summary::short;
use mesh_proto::{intent, observation, summarize, summary::Format};
use prost::Message;

/// A stored message in one line; its name if the contract does not know it.
pub fn describe(stored: &Stored) -> String {
    summary(stored).unwrap_or_else(|| stored.message.rsplit('.').next().unwrap_or_default().to_owned())
}

/// Who wrote it.
pub fn writer(stored: &Stored) -> String {
    stored.source.clone().unwrap_or_else(|| "somebody".to_owned())
}

fn summary(stored: &Stored) -> Option<String> {
    summarize(&stored.message, &stored.subject, &stored.protobuf().ok()?, &format_messages)
}

/// The formats that need to know a message.
fn format_messages(format: Format, encoded: &[Vec<u8>]) -> String {
    match format {
        Format::State => state(all(encoded).first()),
        Format::Status => status(all(encoded).first()),
        Format::Achieved => {
            all(encoded).iter().filter(|t: &&intent::TargetState| t.measured).map(target).collect::<Vec<_>>().join(", ")
        }
        Format::Observed => all(encoded).iter().map(observed).collect::<Vec<_>>().join(", "),
        Format::Problems => problems(&all(encoded)),
        // Formats of plain values are rendered by the contract itself.
        Format::Short | Format::Count | Format::Megabytes | Format::Seconds => String::new(),
    }
}

fn all<M: Message + Default>(encoded: &[Vec<u8>]) -> Vec<M> {
    encoded.iter().filter_map(|bytes| M::decode(bytes.as_slice()).ok()).collect()
}

fn observed(target: &observation::ObservedTarget) -> String {
    match target.samples {
        0 => format!("{} not measured", target.target_name),
        _ => value(&target.target_name, target.value),
    }
}

/// A value with its unit.
pub fn value(target: &str, value: f64) -> String {
    match target {
        "cpuUsage" => format!("cpuUsage {value:.1} %"),
        "ramUsage" => format!("ramUsage {value:.1} MB"),
        other => match mesh_intent::types::target_of(other) {
            Some(known) => format!("{other} {value:.2} {}", known.sign),
            None => format!("{other} {value:.2}"),
        },
    }
}

fn target(target: &intent::TargetState) -> String {
    let bound = format!(
        "{} {}",
        target.target_condition.trim_start_matches("IS_").replace('_', " ").to_lowercase(),
        target.bound
    );
    let missed = if target.fulfilled { String::new() } else { format!(", missed {}", target.missed) };
    format!("{} ({bound}{missed})", achieved(target))
}

/// What a target came to, with its source where that is no meter: `compEnergyConsumption 12.00 J modelled`.
pub fn achieved(target: &intent::TargetState) -> String {
    let source = mesh_intent::types::unmeasured(target.provenance()).map(|source| format!(" {source}"));
    format!("{}{}", value(&target.target_name, target.achieved), source.unwrap_or_default())
}

fn status(state: Option<&intent::State>) -> String {
    state.map_or_else(|| "new".to_owned(), state_name)
}

/// `FULFILLED`, or why not.
pub fn state_name(state: &intent::State) -> String {
    match state.fulfilment_status() {
        intent::FulfilmentStatus::Fulfilled => "FULFILLED".to_owned(),
        _ => state.not_fulfilled_state().as_str_name().to_owned(),
    }
}

fn state(state: Option<&intent::State>) -> String {
    let Some(found) = state else { return "new".to_owned() };
    let parts = [&found.reason, &found.waits_for].map(|t| t.trim().to_owned());
    let text = parts.into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("; waits for ");
    if text.is_empty() { state_name(found) } else { format!("{}: {text}", state_name(found)) }
}

fn problems(problems: &[intent::Problem]) -> String {
    problems.iter().map(|p| format!("{}: {} ({})", p.path, p.reason, p.hint)).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mesh_proto::{Timestamp, contract, contract::EventSpec, lifecycle, workload};

    use super::*;

    /// A message as its stream keeps it.
    fn stored(event: &EventSpec, body: Bytes) -> Stored {
        let any = lifecycle::ServiceChanged { service: "any".into(), ..Default::default() };
        Stored {
            stream: event.stream.clone(),
            subject: event.subject.replace(['{', '}'], ""),
            message: event.message.clone(),
            body,
            ..mesh_test::stored(&any, 1, Timestamp::default())
        }
    }

    fn of<E: mesh_proto::Event>(event: E) -> String {
        describe(&mesh_test::stored(&event, 1, Timestamp::default()))
    }

    #[test]
    fn every_message_of_the_contract_has_a_sentence_of_its_own() {
        for event in &contract().events {
            let empty = summary(&stored(event, Bytes::new()));
            assert!(empty.is_some_and(|line| !line.trim().is_empty()), "{}", event.message);
        }
        // A message that nobody knows has its name.
        let mut unknown = stored(&contract().events[0], Bytes::new());
        unknown.message = "continuum.other.v1.Unheard".into();
        assert_eq!(describe(&unknown), "Unheard");
    }

    #[test]
    fn a_sentence_leaves_out_what_its_message_does_not_have() {
        let mut changed = workload::InstanceChanged {
            owner: "local".into(),
            instance_id: "0123456789".into(),
            phase: workload::InstancePhase::Running.into(),
            replicas_wanted: 2,
            replicas_running: 1,
            ..Default::default()
        };
        assert_eq!(of(changed.clone()), "instance 01234567 running, 1/2 running");
        (changed.cluster_id, changed.reason) = ("edge".into(), "one replica failed".into());
        assert_eq!(of(changed), "instance 01234567 running on edge, 1/2 running: one replica failed");
    }

    #[test]
    fn a_key_that_stands_only_in_the_subject_is_in_the_sentence() {
        let event = contract().event("continuum.intent.v1.SubmitIntent").unwrap();
        assert_eq!(describe(&stored(event, Bytes::new())), "asks to submit intent intent_id");
    }

    #[test]
    fn a_change_of_state_names_both_states_and_what_was_measured() {
        let state = |status: intent::FulfilmentStatus| intent::State {
            fulfilment_status: status.into(),
            reason: "every target holds".into(),
            ..Default::default()
        };
        let target = |name: &str, measured| intent::TargetState {
            target_name: name.into(),
            target_condition: "IS_LESS_THAN".into(),
            bound: 20.0,
            achieved: 12.25,
            measured,
            fulfilled: true,
            ..Default::default()
        };
        let changed = intent::IntentStateChanged {
            owner: "local".into(),
            intent_id: "one".into(),
            to: Some(state(intent::FulfilmentStatus::Fulfilled)),
            targets: vec![target("cpuUsage", true), target("ramUsage", false)],
            ..Default::default()
        };
        assert_eq!(of(changed), "new -> FULFILLED: every target holds (cpuUsage 12.2 % (less than 20))");
    }
}
