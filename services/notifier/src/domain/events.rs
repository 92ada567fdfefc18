//! Facts of intents as events of TMF921, each with the resource as it was then.

use mesh_core::Stored;
use mesh_intent::{tmf, view::submitted};
use mesh_proto::{
    EventSet as _,
    deciders::stream_intent::Event,
    intent::{Intent, IntentView, State},
};
use prost::Message as _;
use serde_json::{Value as Json, json};

/// What happened to an intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It was submitted.
    Create,
    /// Its definition or the reason for its state changed.
    AttributeValueChange,
    /// Its state changed.
    StatusChange,
    /// It was terminated.
    Delete,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Create, Self::AttributeValueChange, Self::StatusChange, Self::Delete];

    /// Its name in TMF921.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "IntentCreateEvent",
            Self::AttributeValueChange => "IntentAttributeValueChangeEvent",
            Self::StatusChange => "IntentStatusChangeEvent",
            Self::Delete => "IntentDeleteEvent",
        }
    }
}

/// Folds the next fact of an intent into what is shown of it; what happened, if that is an event.
pub fn fold(view: &mut IntentView, stored: &Stored) -> Option<Kind> {
    let event = stored.protobuf().and_then(|body| Event::decode(&stored.message, &body)).ok()?;
    let before = tmf::status(view);
    let mut keys = stored.subject.split('.').skip(3).map(str::to_owned);
    view.owner = keys.next().unwrap_or_default();
    view.intent_id = keys.next().unwrap_or_default();
    view.sequence = stored.sequence;
    let state = |view: &mut IntentView, state: Option<State>| {
        if state.is_some() && view.state != state {
            view.state = state;
            view.since = Some(stored.time);
        }
    };
    match event {
        Event::IntentSubmitted(fact) if view.version == 0 && view.intent.is_none() => {
            *view = submitted(&fact, stored.time, stored.sequence);
            return Some(Kind::Create);
        }
        // A later version is shown once it is accepted.
        Event::IntentSubmitted(_) => return None,
        Event::IntentAcknowledged(fact) => {
            let changed = fact.version > 1 && fact.version != view.version;
            view.version = fact.version;
            view.intent = Intent::decode(fact.document).ok();
            view.instances = fact.instances;
            state(view, fact.state);
            if changed {
                return Some(Kind::AttributeValueChange);
            }
        }
        Event::IntentRejected(fact) if fact.version <= 1 => state(view, fact.state),
        Event::IntentStateChanged(fact) => {
            view.instances = fact.instances;
            state(view, fact.to);
        }
        Event::IntentRejected(_)
        | Event::IntentUnchanged(_)
        | Event::IntentRemedyWanted(_)
        | Event::IntentRemedyUnwanted(_)
        | Event::IntentRefused(_) => return None,
    }
    Some(match tmf::status(view) {
        after if after == before => Kind::AttributeValueChange,
        "TERMINATED" => Kind::Delete,
        _ => Kind::StatusChange,
    })
}

/// The body that is sent. The event has the fact's id, so a listener recognises an event that is sent again.
pub fn body(kind: Kind, view: &IntentView, stored: &Stored) -> Json {
    json!({
        "@type": kind.name(),
        "eventId": stored.id,
        "eventType": kind.name(),
        "eventTime": stored.time.to_string(),
        "timeOccurred": stored.time.to_string(),
        "title": kind.name(),
        "event": {"intent": tmf::intent(view)},
    })
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        Timestamp,
        intent::{
            FulfilmentStatus, IntentAcknowledged, IntentRefused, IntentRejected, IntentStateChanged, IntentSubmitted,
            NotFulfilledState,
        },
    };

    use super::*;

    fn stored<E: mesh_proto::Event>(sequence: u64, event: E) -> Stored {
        mesh_test::stored(&event, sequence, Timestamp::from_millis(1_800_000_000_000 + sequence as i64))
    }

    fn state(fulfilment: FulfilmentStatus, not_fulfilled: NotFulfilledState) -> Option<State> {
        Some(State {
            fulfilment_status: fulfilment.into(),
            not_fulfilled_state: not_fulfilled.into(),
            ..State::default()
        })
    }

    fn document(priority: u32) -> bytes::Bytes {
        let intent = Intent { intent_priority: priority, ..Intent::default() };
        intent.encode_to_vec().into()
    }

    fn changed(to: NotFulfilledState, reason: &str) -> IntentStateChanged {
        let mut to = state(FulfilmentStatus::NotFulfilled, to);
        to.as_mut().unwrap().reason = reason.into();
        IntentStateChanged { owner: "local".into(), intent_id: "i".into(), to, ..IntentStateChanged::default() }
    }

    #[test]
    fn each_visible_fact_is_one_event_with_the_intent_as_it_was() {
        let (owner, intent_id) = (|| "local".to_owned(), || "i".to_owned());
        let acknowledged = |version: u64, priority: u32| IntentAcknowledged {
            owner: owner(),
            intent_id: intent_id(),
            version,
            document: document(priority),
            state: state(FulfilmentStatus::NotFulfilled, NotFulfilledState::Acknowledged),
            ..IntentAcknowledged::default()
        };
        let submitted = |version: u64| IntentSubmitted {
            owner: owner(),
            intent_id: intent_id(),
            version,
            document: document(7),
            ..IntentSubmitted::default()
        };
        let refused = IntentRefused { owner: owner(), intent_id: intent_id(), ..IntentRefused::default() };
        let rejected =
            IntentRejected { owner: owner(), intent_id: intent_id(), version: 2, ..IntentRejected::default() };
        let facts = [
            (stored(1, submitted(1)), Some((Kind::Create, "SUBMITTED"))),
            (stored(2, acknowledged(1, 7)), Some((Kind::StatusChange, "ACKNOWLEDGED"))),
            (stored(3, refused), None),
            (stored(4, changed(NotFulfilledState::Degraded, "a")), Some((Kind::StatusChange, "DEGRADED"))),
            (stored(5, changed(NotFulfilledState::Degraded, "b")), Some((Kind::AttributeValueChange, "DEGRADED"))),
            (stored(6, submitted(2)), None),
            (stored(7, rejected), None),
            (stored(8, acknowledged(3, 9)), Some((Kind::AttributeValueChange, "ACKNOWLEDGED"))),
            (stored(9, changed(NotFulfilledState::Terminated, "c")), Some((Kind::Delete, "TERMINATED"))),
        ];
        let mut view = IntentView::default();
        for (fact, expected) in &facts {
            let kind = fold(&mut view, fact);
            assert_eq!(kind.map(|kind| (kind, tmf::status(&view))), *expected, "{}", fact.sequence);
            let Some(kind) = kind else { continue };
            let body = body(kind, &view, fact);
            assert_eq!(body["eventId"], fact.id);
            assert_eq!((&body["event"]["intent"]["id"], &body["@type"]), (&json!("i"), &json!(kind.name())));
            let priority = if fact.sequence < 8 { "7" } else { "9" };
            assert_eq!(body["event"]["intent"]["priority"], priority, "{}", fact.sequence);
        }
    }
}
