//! Streams, buckets and durables as the contract wants them.

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, PriorityPolicy, pull},
    stream::{self, DiscardPolicy, PersistenceMode, Republish, RetentionPolicy, StorageType, SubjectTransform},
};
use mesh_bus::PULL_GROUP;
use mesh_proto::{
    Contract,
    contract::{DurableSpec, Kind, StreamSpec, WRITE_PREFIX},
    rights,
};

use crate::{Mark, render::BUCKET_MAX_BYTES};

/// Metadata of a durable: the filters of its decider, of which its one filter is the cover.
pub(super) const FILTERS: &str = "continuum.hears";

/// Every stream of the mesh, buckets included, as the contract wants it.
pub(super) fn streams(contract: &Contract, replicas: usize) -> Vec<stream::Config> {
    let plain = contract.streams.iter().map(|s| stream_config(s, replicas));
    let buckets = contract.services.iter().flat_map(rights::buckets).map(|b| bucket_config(&b, replicas));
    plain.chain(buckets).collect()
}

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

pub(super) fn base_config(name: String, subject: String, replicas: usize) -> stream::Config {
    stream::Config {
        name,
        subjects: vec![subject],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        num_replicas: replicas,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        metadata: Mark::own().metadata(),
        ..Default::default()
    }
}

fn stream_config(spec: &StreamSpec, replicas: usize) -> stream::Config {
    let mut config = base_config(spec.name.clone(), spec.ingest_subject(), replicas);
    config.max_bytes = spec.max_bytes;
    config.description = Some(spec.doc.clone());
    config.allow_atomic_publish = spec.is_atomic();
    if spec.has_write_prefix() {
        write_through(&mut config, spec.subject.trim_end_matches(".>"));
    }
    match spec.kind {
        Kind::Facts => {
            config.deny_delete = true;
            config.deny_purge = true;
        }
        Kind::Commands => config.max_age = 30 * DAY,
        // What is derived can be derived again: the newest is worth more than the oldest.
        Kind::Derived => {
            config.max_age = 7 * DAY;
            config.discard = DiscardPolicy::Old;
        }
        Kind::Samples => {
            config.max_age = HOUR;
            config.discard = DiscardPolicy::Old;
            config.republish =
                Some(Republish { source: spec.subject.clone(), destination: spec.live_subject(), headers_only: false });
            // Replicated streams do not take it.
            config.persist_mode = (replicas == 1).then_some(PersistenceMode::Async);
        }
        // A flood of dead letters must neither stop a consumer that has one more, nor fill the disk.
        Kind::Notices => {
            config.max_age = 30 * DAY;
            config.discard = DiscardPolicy::Old;
        }
    }
    config
}

/// Only what is stored is visible: writers publish under `w.`; the stream strips that and republishes what it stored.
pub(super) fn write_through(config: &mut stream::Config, area: &str) {
    config.subject_transform =
        Some(SubjectTransform { source: format!("{WRITE_PREFIX}{area}.>"), destination: format!("{area}.>") });
    config.republish = Some(Republish {
        source: format!("{area}.*.v1.>"),
        destination: format!("{area}.{{{{wildcard(1)}}}}.v1.>"),
        headers_only: false,
    });
}

fn bucket_config(bucket: &str, replicas: usize) -> stream::Config {
    let mut config = base_config(rights::bucket_stream(bucket), rights::bucket_subject(bucket), replicas);
    config.max_bytes = BUCKET_MAX_BYTES;
    config.max_messages_per_subject = 1;
    config.allow_rollup = true;
    config.deny_delete = true;
    config.allow_atomic_publish = true;
    config
}

/// One filter that covers all of them, and perhaps more. For a consumer with several filters the server visits every
/// subject of a block for each message that it delivers: with thousands of entities that is a tenth of the rate.
fn cover(filters: &[String]) -> String {
    let mut filters = filters.iter();
    let mut cover: Vec<&str> = filters.next().map(|f| f.split('.').collect()).unwrap_or_default();
    for filter in filters {
        let tokens: Vec<&str> = filter.split('.').collect();
        if tokens.len() != cover.len() || cover.contains(&">") || tokens.contains(&">") {
            let same = cover.iter().zip(&tokens).take_while(|(a, b)| a == b && **a != ">").count();
            cover.truncate(same);
            cover.push(">");
            continue;
        }
        for (covered, token) in cover.iter_mut().zip(tokens) {
            if *covered != token {
                *covered = "*";
            }
        }
    }
    cover.join(".")
}

pub(super) fn durable_config(spec: &DurableSpec) -> pull::Config {
    pull::Config {
        durable_name: Some(spec.name.clone()),
        name: Some(spec.name.clone()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::All,
        ack_wait: Duration::from_secs(30),
        // JetStream never gives up on a message; the shell counts and decides.
        max_deliver: -1,
        filter_subject: cover(&spec.filters),
        metadata: HashMap::from([(FILTERS.to_owned(), spec.filters.join(" "))]),
        max_ack_pending: 10_000,
        priority_policy: PriorityPolicy::PinnedClient,
        priority_groups: vec![PULL_GROUP.to_owned()],
        // How long a client may be silent before another replica takes over.
        priority_timeout: Duration::from_secs(5),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_durable_has_one_filter_that_covers_all_that_its_decider_hears() {
        let of = |filters: &[&str]| cover(&filters.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["a.b.v1.*"]), "a.b.v1.*");
        assert_eq!(of(&["a.b.v1.*.*", "a.c.v1.*.*"]), "a.*.v1.*.*");
        assert_eq!(of(&["a.ask.b.v1.*", "a.ask.c.v1.*.*", "a.ask.d.v1.*"]), "a.ask.>");
        assert_eq!(of(&["a.b.>", "a.b.c", "a.d.c"]), "a.>");
        for service in &mesh_proto::contract().services {
            for spec in service.deciders.iter().flat_map(|d| mesh_proto::contract().durables(d)) {
                let config = durable_config(&spec);
                assert!(config.filter_subjects.is_empty(), "{}", spec.name);
                for filter in &spec.filters {
                    let subject = filter.replace('*', "x");
                    assert!(mesh_proto::contract::matches(&config.filter_subject, &subject), "{subject}");
                }
            }
        }
    }

    #[test]
    fn facts_have_no_limit_but_size_and_nothing_that_could_wipe_them() {
        let contract = mesh_proto::contract();
        for spec in contract.streams.iter().filter(|s| s.kind == Kind::Facts) {
            let config = stream_config(spec, 1);
            assert!(config.deny_delete && config.deny_purge && config.allow_atomic_publish, "{}", spec.name);
            assert_eq!(config.discard, DiscardPolicy::New);
            assert_eq!(config.max_age, Duration::ZERO);
            assert_eq!((config.max_messages, config.max_messages_per_subject), (-1, -1));
            assert!(!config.allow_rollup && !config.allow_message_ttl && !config.allow_message_schedules);
        }
    }
}
