//! What differs between a stream or durable and the contract, and whether it may be changed.

use std::collections::BTreeSet;

use async_nats::jetstream::{consumer::pull, stream};
use serde_json::{Value, json};

use super::{ProvisionError, config::FILTERS};
use crate::release::{STREAM_FORMAT, STREAM_RELEASE};

/// Its name, its value, and whether it may be changed.
pub(super) type Setting = (&'static str, Value, Change);

/// Is a setting fixed once a stream or durable exists?
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Change {
    Allowed,
    Never,
}

pub(super) fn stream_settings(config: &stream::Config) -> Vec<Setting> {
    use Change::{Allowed, Never};
    vec![
        ("retention", json!(config.retention), Never),
        ("storage", json!(config.storage), Never),
        ("deny_delete", json!(config.deny_delete), Never),
        ("deny_purge", json!(config.deny_purge), Never),
        ("sealed", json!(config.sealed), Never),
        ("mirror", json!(config.mirror.is_some()), Never),
        ("sources", json!(config.sources.as_ref().is_some_and(|s| !s.is_empty())), Never),
        ("allow_msg_schedules", json!(config.allow_message_schedules), Never),
        ("allow_msg_counter", json!(config.allow_message_counter), Never),
        ("allow_msg_ttl", json!(config.allow_message_ttl), Never),
        ("persist_mode", json!(config.persist_mode.unwrap_or_default()), Never),
        ("subjects", json!(config.subjects), Allowed),
        ("subject_transform", json!(config.subject_transform), Allowed),
        ("republish", json!(config.republish), Allowed),
        ("discard", json!(config.discard), Allowed),
        ("max_bytes", json!(config.max_bytes), Allowed),
        ("max_age_seconds", json!(config.max_age.as_secs()), Allowed),
        ("max_msgs", json!(config.max_messages), Allowed),
        ("max_msgs_per_subject", json!(config.max_messages_per_subject), Allowed),
        ("num_replicas", json!(config.num_replicas), Allowed),
        ("duplicate_window_seconds", json!(config.duplicate_window.as_secs()), Allowed),
        ("allow_direct", json!(config.allow_direct), Allowed),
        ("allow_atomic", json!(config.allow_atomic_publish), Allowed),
        ("allow_rollup_hdrs", json!(config.allow_rollup), Allowed),
        ("description", json!(config.description.clone().unwrap_or_default()), Allowed),
        ("release", json!(config.metadata.get(STREAM_RELEASE)), Allowed),
        ("format", json!(config.metadata.get(STREAM_FORMAT)), Allowed),
    ]
}

pub(super) fn durable_settings(config: &pull::Config) -> Vec<Setting> {
    use Change::{Allowed, Never};
    let mut filters: BTreeSet<&str> = config.filter_subjects.iter().map(String::as_str).collect();
    filters.extend((!config.filter_subject.is_empty()).then_some(config.filter_subject.as_str()));
    vec![
        ("ack_policy", json!(config.ack_policy), Never),
        ("deliver_policy", json!(config.deliver_policy), Never),
        ("priority_policy", json!(config.priority_policy), Never),
        ("priority_groups", json!(config.priority_groups), Never),
        ("filter_subjects", json!(filters), Allowed),
        ("decider_filters", json!(config.metadata.get(FILTERS)), Allowed),
        ("ack_wait_ms", json!(config.ack_wait.as_millis() as u64), Allowed),
        ("max_ack_pending", json!(config.max_ack_pending), Allowed),
        ("max_deliver", json!(config.max_deliver), Allowed),
        ("priority_timeout_ms", json!(config.priority_timeout.as_millis() as u64), Allowed),
    ]
}

/// What differs, or the first difference that cannot be changed.
pub(super) fn differences(name: &str, is: Vec<Setting>, wanted: Vec<Setting>) -> Result<Vec<String>, ProvisionError> {
    let mut found = vec![];
    for ((field, is, change), (_, wanted, _)) in is.into_iter().zip(wanted) {
        if is == wanted {
            continue;
        }
        if change == Change::Never {
            return Err(ProvisionError::Fixed { name: name.to_owned(), field, is, wanted });
        }
        found.push(format!("{field} {is} to {wanted}"));
    }
    Ok(found)
}
