//! What is said on the bus: every message, event, subject, stream, key and id, and the gRPC services.
//!
//! - The `.proto` files under `continuum/` are the only place where a subject is written; everything here
//!   is generated from them or reads them.
//! - Never: a connection, a clock, a task.

pub mod cmdt;
pub mod contract;
pub mod document;
mod event;
mod id;
pub mod json;
pub mod refusal;
pub mod rights;
mod samples;
pub mod shown;
pub mod summary;
mod time;
pub mod wire;
pub mod wording;
mod written;

pub use contract::Contract;
pub use event::{AnyEvent, DecodeError, Encoded, Event, EventSet, FactSet, Stream, subject_keys};
pub use id::{Id, IdError, KEY_FORMAT, derived_id, is_key};
pub use refusal::{Refusal, RefusalCode};
pub use samples::{
    PACKED_SIGNAL, READINGS_SIGNAL, SHARING_SIGNAL, instance_samples, is_of_instances, is_of_readings, readings,
    sample_key, sample_keys, twin_key, twin_of_key,
};
pub use time::Timestamp;
pub use written::{Error as WrittenError, Field, Kind as WrittenKind, Place, Written};

use std::sync::OnceLock;

use prost_reflect::{DescriptorPool, DynamicMessage, Value};

include!(concat!(env!("OUT_DIR"), "/areas.rs"));

/// Typed inputs and facts of every decider, and typed events of every stream.
#[allow(missing_docs, clippy::all)]
pub mod deciders {
    include!(concat!(env!("OUT_DIR"), "/deciders.rs"));
}

include!(concat!(env!("OUT_DIR"), "/events.rs"));

/// Every stream.
pub mod streams {
    include!(concat!(env!("OUT_DIR"), "/streams.rs"));
}

/// The compiled `.proto` files, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The descriptor pool of the contract.
///
/// # Panics
/// Never: the same bytes were read when this crate was built.
#[allow(clippy::expect_used)]
pub fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(DESCRIPTORS).expect("the build decoded these bytes"))
}

/// The method of a query, by the path it is called at: `/continuum.intent.v1.IntentQueries/Get`.
pub fn method(path: &str) -> Option<prost_reflect::MethodDescriptor> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    pool().get_service_by_name(service)?.methods().find(|known| known.name() == method)
}

/// The contract: streams, events, services.
///
/// # Panics
/// Never: the same contract was read when this crate was built.
#[allow(clippy::expect_used)]
pub fn contract() -> &'static Contract {
    static CONTRACT: OnceLock<Contract> = OnceLock::new();
    CONTRACT.get_or_init(|| Contract::read(pool()).expect("the build read this contract"))
}

/// One line for a person about an event as it is stored; `None` if the contract does not know it, or its body is not one.
/// `messages` renders the formats of whole messages.
pub fn summarize(
    message: &str,
    subject: &str,
    body: &[u8],
    messages: &dyn Fn(summary::Format, &[Vec<u8>]) -> String,
) -> Option<String> {
    let event = contract().event(message)?;
    let mut found = DynamicMessage::decode(pool().get_message_by_name(message)?, body).ok()?;
    // Keys may stand in the subject only.
    for (field, key) in event.keys.iter().zip(subject_keys(&event.subject, subject).into_iter().flatten()) {
        found.set_field_by_name(field, Value::String(key));
    }
    Some(event.summary.render(&found, messages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_made_of_the_contract_and_of_keys() {
        assert_eq!(streams::INTENT.entity(&["local", "a"]), "intent.*.*.local.a");
        assert_eq!(streams::INTENT_ASK.entity(&["local", "a"]), "intent.ask.*.*.local.a");
        assert_eq!((streams::DEAD.name, streams::DEAD.all), ("DEAD", "dead.>"));
        assert_eq!(intent::IntentSubmitted::filter(&["local", "a"]), "intent.submitted.v1.local.a");
        assert_eq!(intent::IntentSubmitted::filter(&["local"]), "intent.submitted.v1.local.*");
        assert_eq!(intent::IntentSubmitted::filter(&[]), "intent.submitted.v1.*.*");
    }
}
