//! The life of each network intent: accepted with its calls, executed, connected or not, withdrawn.
//!
//! An entity is one network intent, `[owner, network id]`. Facts hold no secrets: the calls in `NetworkAccepted` show
//! fingerprints, and adaptors read the secrets in the command that it names. What adaptors achieve comes back as
//! a command of the exposer's own. An intent about networks that is acknowledged is carried out under its own id, and withdrawn
//! when it ends. A report about another version, or about something that is not under way, is not heard.

use std::sync::Arc;

use mesh_core::{Decider, Envelope, Key, Trigger};
use mesh_intent::{ObjectKind, types};
use mesh_proto::{
    Refusal, Timestamp,
    deciders::networks::{Fact, Input, NAME},
    intent::{IntentAcknowledged, IntentStateChanged, NotFulfilledState},
    network::{
        Connectivity, ConnectivityChanged, NetworkAccepted, NetworkRefused, ReportConnectivity, SubmitNetworkIntent,
    },
};
use serde::{Deserialize, Serialize};

use super::intents::{Catalogue, parse, redact};

/// Call results in a fact.
const RESULTS_MAX: usize = 256;

/// The decider of network intents.
#[derive(Clone, Debug)]
pub struct Networks {
    catalogue: Arc<Catalogue>,
}

/// One network intent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Rises with every accepted submission; 0 before the first.
    version: u64,
    /// Phase, a [`Connectivity`].
    phase: i32,
    /// Is it an intent's, and not a command's?
    #[serde(default)]
    of_intent: bool,
}

impl State {
    fn phase(&self) -> Connectivity {
        Connectivity::try_from(self.phase).unwrap_or_default()
    }
}

impl Networks {
    /// With these libraries.
    pub fn new(catalogue: Arc<Catalogue>) -> Self {
        Self { catalogue }
    }

    fn submit(
        &self,
        key: &Key,
        state: &State,
        command: &SubmitNetworkIntent,
        envelope: &Envelope<Input>,
    ) -> Result<Fact, Refusal> {
        let phase = state.phase();
        if matches!(phase, Connectivity::Executing | Connectivity::Connected | Connectivity::Withdrawing) {
            return Err(Refusal::state(
                format!("network {} is {}", key.token(1), phase.as_str_name()),
                "withdraw it first, or submit under another id",
            ));
        }
        self.accept(key, state, &command.intent, envelope, false)
    }

    /// An intent about networks is in force: what it wants is connected. What is connected as it wants it stays.
    fn acknowledged(
        &self,
        key: &Key,
        state: &State,
        fact: &IntentAcknowledged,
        envelope: &Envelope<Input>,
    ) -> Result<Option<Fact>, Refusal> {
        let Some(text) = document_of(fact) else { return Ok(None) };
        if fact.starts_at.is_some() {
            return Ok(None);
        }
        if matches!(state.phase(), Connectivity::Executing | Connectivity::Connected | Connectivity::Withdrawing) {
            return Err(Refusal::state(
                format!("network {} is {} already", key.token(1), state.phase().as_str_name()),
                "withdraw it, then terminate and update the intent",
            ));
        }
        self.accept(key, state, &text, envelope, true).map(Some)
    }

    fn accept(
        &self,
        key: &Key,
        state: &State,
        text: &str,
        envelope: &Envelope<Input>,
        of_intent: bool,
    ) -> Result<Fact, Refusal> {
        let intent = parse(text)?;
        let plan = self.catalogue.plan(&intent)?;
        let text = mesh_proto::Written::yaml(text).map(mesh_proto::Written::into_spelt_json).unwrap_or_default();
        Ok(NetworkAccepted {
            owner: key.token(0).into(),
            network_id: key.token(1).into(),
            version: state.version + 1,
            intent: redact(&text).to_string(),
            libraries: plan.libraries.clone(),
            calls: plan.told(),
            command_id: envelope.id.clone(),
            command_sequence: envelope.sequence,
            at: Some(envelope.at),
            of_intent,
        }
        .into())
    }
}

/// The text of an acknowledged intent, if it is about networks, as the libraries know it.
pub(crate) fn document_of(fact: &IntentAcknowledged) -> Option<String> {
    let mut value = mesh_proto::json::to_value("continuum.intent.v1.Intent", &fact.document).ok()?;
    let kind = types::of_label(value.get("userLabel")?.as_str()?).filter(|t| t.kind() == ObjectKind::Network)?;
    // Libraries are keyed by the label that the specification prints.
    let label = kind.aliases.first().copied().unwrap_or(kind.label);
    value["userLabel"] = label.into();
    Some(value.to_string())
}

fn ended(fact: &IntentStateChanged) -> bool {
    fact.to.as_ref().is_some_and(|s| s.not_fulfilled_state() == NotFulfilledState::Terminated)
        && fact.instances.iter().any(|i| i.network)
}

fn changed(key: &Key, version: u64, phase: Connectivity) -> ConnectivityChanged {
    ConnectivityChanged {
        owner: key.token(0).into(),
        network_id: key.token(1).into(),
        version,
        phase: phase.into(),
        ..Default::default()
    }
}

fn report(key: &Key, state: &State, report: &ReportConnectivity) -> Vec<Fact> {
    let awaited = match state.phase() {
        Connectivity::Executing => [Connectivity::Connected, Connectivity::NotConnected],
        Connectivity::Withdrawing => [Connectivity::Withdrawn, Connectivity::NotConnected],
        _ => return vec![],
    };
    if report.version != state.version || !awaited.contains(&report.phase()) {
        return vec![];
    }
    let fact = ConnectivityChanged {
        reason: report.reason.clone(),
        hint: report.hint.clone(),
        took_ms: report.took_ms,
        results: report.results.iter().take(RESULTS_MAX).cloned().collect(),
        ..changed(key, state.version, report.phase())
    };
    vec![fact.into()]
}

impl Decider for Networks {
    const NAME: &'static str = NAME;
    type State = State;
    type ReadModel = ();
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> State {
        State::default()
    }

    fn concerns(&self, input: &Input, (): &()) -> Vec<Key> {
        let (owner, network) = match input {
            Input::SubmitNetworkIntent(m) => (&m.owner, &m.network_id),
            Input::WithdrawNetworkIntent(m) => (&m.owner, &m.network_id),
            Input::ReportConnectivity(m) => (&m.owner, &m.network_id),
            Input::IntentAcknowledged(m) if document_of(m).is_some() => (&m.owner, &m.intent_id),
            Input::IntentStateChanged(m) if ended(m) => (&m.owner, &m.intent_id),
            Input::IntentAcknowledged(_) | Input::IntentStateChanged(_) => return vec![],
        };
        vec![Key::new([owner, network])]
    }

    fn decide(&self, key: &Key, state: &State, (): &(), envelope: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
        let Trigger::Event(input) = &envelope.trigger else { return Ok(vec![]) };
        match input {
            Input::SubmitNetworkIntent(command) => Ok(vec![self.submit(key, state, command, envelope)?]),
            Input::WithdrawNetworkIntent(_) => match state.phase() {
                Connectivity::Unspecified | Connectivity::Withdrawn | Connectivity::Withdrawing => {
                    Err(Refusal::not_found(
                        format!("network {} is not there to be withdrawn", key.token(1)),
                        "list those that are with `continuum network list`",
                    ))
                }
                _ => {
                    let fact = changed(key, state.version, Connectivity::Withdrawing);
                    Ok(vec![ConnectivityChanged { command_id: envelope.id.clone(), ..fact }.into()])
                }
            },
            Input::ReportConnectivity(m) => Ok(report(key, state, m)),
            // It is not a command, so the refusal is published here.
            Input::IntentAcknowledged(m) => Ok(match self.acknowledged(key, state, m, envelope) {
                Ok(fact) => fact.into_iter().collect(),
                Err(refusal) => {
                    let refused = NetworkRefused {
                        owner: key.token(0).into(),
                        network_id: key.token(1).into(),
                        command_id: envelope.id.clone(),
                        command: "IntentAcknowledged".into(),
                        code: refusal.code.into(),
                        reason: refusal.reason,
                        hint: refusal.hint,
                    };
                    vec![refused.into()]
                }
            }),
            Input::IntentStateChanged(_) => Ok(match state.phase() {
                Connectivity::Unspecified | Connectivity::Withdrawn | Connectivity::Withdrawing => vec![],
                _ if !state.of_intent => vec![],
                _ => vec![changed(key, state.version, Connectivity::Withdrawing).into()],
            }),
        }
    }

    fn evolve(&self, mut state: State, fact: &Fact, _: Timestamp) -> State {
        match fact {
            Fact::NetworkAccepted(m) => {
                state.version = m.version;
                state.phase = Connectivity::Executing.into();
                state.of_intent = m.of_intent;
            }
            Fact::ConnectivityChanged(m) => state.phase = m.phase,
            Fact::NetworkRefused(_) => {}
        }
        state
    }

    fn due(&self, _: &State) -> Option<Timestamp> {
        None
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mesh_proto::network::WithdrawNetworkIntent;

    use super::*;
    use crate::domain::intents::standard;

    const L2SM: &str = include_str!("../../../../examples/network/l2sm.yaml");

    fn ask(state: &State, input: impl Into<Input>) -> Result<(Vec<Fact>, State), Refusal> {
        let networks = Networks::new(Arc::new(standard()));
        let input = input.into();
        let key = networks.concerns(&input, &()).remove(0);
        let envelope = Envelope {
            trigger: Trigger::Event(input),
            at: Timestamp::from_millis(1),
            id: "c".into(),
            sequence: 7,
            body: Bytes::new(),
        };
        let facts = networks.decide(&key, state, &(), &envelope)?;
        let state = facts.iter().fold(state.clone(), |state, fact| networks.evolve(state, fact, envelope.at));
        Ok((facts, state))
    }

    fn submit(text: &str) -> SubmitNetworkIntent {
        SubmitNetworkIntent { owner: "o".into(), network_id: "n".into(), intent: text.into() }
    }

    fn withdraw() -> WithdrawNetworkIntent {
        WithdrawNetworkIntent { owner: "o".into(), network_id: "n".into() }
    }

    fn reported(version: u64, phase: Connectivity) -> ReportConnectivity {
        ReportConnectivity {
            owner: "o".into(),
            network_id: "n".into(),
            version,
            phase: phase.into(),
            ..Default::default()
        }
    }

    #[test]
    fn an_intent_lives_from_submission_to_withdrawal_and_can_come_again() {
        let (facts, state) = ask(&State::default(), submit(L2SM)).unwrap();
        let [Fact::NetworkAccepted(accepted)] = facts.as_slice() else { panic!("{facts:?}") };
        assert_eq!((accepted.version, accepted.command_sequence, accepted.calls.len()), (1, 7, 2));
        let refused = ask(&state, submit(L2SM)).unwrap_err();
        assert!(refused.reason.contains("EXECUTING"));
        let (_, state) = ask(&state, reported(1, Connectivity::Connected)).unwrap();
        assert_eq!(state.phase(), Connectivity::Connected);
        let (facts, state) = ask(&state, withdraw()).unwrap();
        assert!(
            matches!(&facts[0], Fact::ConnectivityChanged(m) if m.phase() == Connectivity::Withdrawing && m.command_id == "c")
        );
        assert!(ask(&state, withdraw()).is_err());
        let (_, state) = ask(&state, reported(1, Connectivity::Withdrawn)).unwrap();
        let (_, state) = ask(&state, submit(L2SM)).unwrap();
        assert_eq!((state.version, state.phase()), (2, Connectivity::Executing));
    }

    #[test]
    fn a_report_about_another_version_or_phase_is_not_heard() {
        let (_, state) = ask(&State::default(), submit(L2SM)).unwrap();
        for (version, phase) in [
            (0, Connectivity::Connected),
            (2, Connectivity::Connected),
            (1, Connectivity::Withdrawn),
            (1, Connectivity::Executing),
        ] {
            assert_eq!(ask(&state, reported(version, phase)).unwrap().0, []);
        }
        assert_eq!(ask(&State::default(), reported(0, Connectivity::Connected)).unwrap().0, []);
    }

    #[test]
    fn a_network_intent_is_carried_out_and_withdrawn_at_its_end() {
        let value = mesh_proto::Written::yaml(L2SM).unwrap().into_json();
        let mut intent = value["Intent"].clone();
        intent["userLabel"] = "CloudContinuumNetwork".into();
        let document = mesh_proto::json::value_to_protobuf("continuum.intent.v1.Intent", intent).unwrap();
        let acknowledged = IntentAcknowledged {
            owner: "o".into(),
            intent_id: "n".into(),
            version: 1,
            document: document.into(),
            ..Default::default()
        };
        let (facts, state) = ask(&State::default(), acknowledged).unwrap();
        let [Fact::NetworkAccepted(accepted)] = facts.as_slice() else { panic!("{facts:?}") };
        assert!(accepted.of_intent && accepted.calls.len() == 2, "{accepted:?}");
        assert!(!format!("{facts:?}").contains("a.secret.token"));
        let (_, state) = ask(&state, reported(1, Connectivity::Connected)).unwrap();
        let ended = IntentStateChanged {
            owner: "o".into(),
            intent_id: "n".into(),
            to: Some(mesh_proto::intent::State {
                not_fulfilled_state: NotFulfilledState::Terminated.into(),
                ..Default::default()
            }),
            instances: vec![mesh_proto::intent::GovernedInstance { network: true, ..Default::default() }],
            ..Default::default()
        };
        let (facts, _) = ask(&state, ended).unwrap();
        assert!(matches!(&facts[0], Fact::ConnectivityChanged(m) if m.phase() == Connectivity::Withdrawing));
    }

    #[test]
    fn no_fact_holds_a_secret() {
        let (facts, _) = ask(&State::default(), submit(L2SM)).unwrap();
        assert!(L2SM.contains("a.secret.token"));
        let text = format!("{facts:?}");
        assert!(!text.contains("a.secret.token"));
        assert!(text.contains("secret:"), "{text}");
    }

    #[test]
    fn what_cannot_be_carried_out_is_refused_with_its_hint() {
        for text in ["", "- 1", "Intent: 7", "Intent: {intentExpectations: []}", "{", &"x".repeat(70_000)] {
            let refusal = ask(&State::default(), submit(text)).unwrap_err();
            assert!(!refusal.reason.is_empty() && !refusal.hint.is_empty(), "{text:.20}");
        }
    }
}
