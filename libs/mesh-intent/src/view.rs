//! An intent as it stands, read from its facts alone.

use mesh_proto::{
    Timestamp,
    intent::{Intent, IntentAcknowledged, IntentSubmitted, IntentView, State},
};
use prost::Message as _;

use crate::secret::redact;

/// The names of a state: whether it is fulfilled, and its state while it is not; empty if unspecified.
pub fn names(state: &State) -> (&'static str, &'static str) {
    let of = |name: &'static str| if name.ends_with("UNSPECIFIED") { "" } else { name };
    (of(state.fulfilment_status().as_str_name()), of(state.not_fulfilled_state().as_str_name()))
}

/// An intent that was just submitted.
pub fn submitted(fact: &IntentSubmitted, at: Timestamp, sequence: u64) -> IntentView {
    IntentView {
        owner: fact.owner.clone(),
        intent_id: fact.intent_id.clone(),
        version: fact.version,
        intent: Intent::decode(fact.document.clone()).ok().map(redact),
        state: Some(State {
            reason: "submitted".into(),
            waits_for: "the validator's verdict".into(),
            ..State::default()
        }),
        since: Some(at),
        sequence,
        revision: 1,
        ..IntentView::default()
    }
}

/// An intent whose first version was just acknowledged.
pub fn acknowledged(fact: &IntentAcknowledged, at: Timestamp, sequence: u64) -> IntentView {
    IntentView {
        owner: fact.owner.clone(),
        intent_id: fact.intent_id.clone(),
        version: fact.version,
        intent: Intent::decode(fact.document.clone()).ok().map(redact),
        state: fact.state.clone(),
        since: Some(at),
        instances: fact.instances.clone(),
        sequence,
        revision: 2,
        ..IntentView::default()
    }
}
