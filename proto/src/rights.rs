//! Who may do what on the bus, computed from the contract and from nothing else.
//!
//! Streams and the JetStream API live in the account [`BUS_ACCOUNT`], which only the provisioner signs in to. Every
//! service has an account of its own and imports exactly what is listed here; people share one. An account of its own
//! matters because a server does not check the reply subject of a request: wherever a service points one, it reaches
//! only its own account, and so nothing that it may not publish itself.

use std::{collections::BTreeSet, sync::LazyLock};

use crate::contract::{Contract, EventSpec, Kind, ServiceSpec, WRITE_PREFIX};

/// Account that holds the streams and the JetStream API.
pub const BUS_ACCOUNT: &str = "BUS";
/// Account that people sign in to.
pub const PEOPLE_ACCOUNT: &str = "PPL";
/// Where every other account finds the JetStream API, instead of `$JS.API`.
pub const API_PREFIX: &str = "BUS.API";
/// Identity that creates streams and consumers, in [`BUS_ACCOUNT`], without restriction there.
pub const PROVISIONER: &str = "provisioner";
/// Identity of a process that runs all services, in [`BUS_ACCOUNT`]: it may do what any of them may.
pub const JOINT: &str = "joint";
/// Identity of people.
pub const PERSON: &str = "person";
/// Account that dashboards sign in to.
pub const DASHBOARD_ACCOUNT: &str = "DSH";
/// Identity of dashboards: it hears measurements and what follows from them, sends nothing and asks nothing. The only one
/// that may connect over WebSocket, as browsers do.
pub const DASHBOARD: &str = "dashboard";
/// Streams that dashboards hear.
const DASHBOARD_STREAMS: [&str; 4] = ["TELEMETRY", "TWIN", "ANOMALY", "OBSERVATION"];

/// A request that an account may make of [`BUS_ACCOUNT`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// Subject in [`BUS_ACCOUNT`].
    pub subject: String,
    /// Subject in the account that asks.
    pub local: String,
    /// May one request have several answers?
    pub many: bool,
}

/// What one identity may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// The identity: a service's name, [`JOINT`], [`PERSON`] or [`DASHBOARD`].
    pub identity: String,
    /// Account it signs in to.
    pub account: String,
    /// Subjects it may publish to; all others are denied.
    pub publish: BTreeSet<String>,
    /// Subjects it may subscribe to; all others are denied.
    pub subscribe: BTreeSet<String>,
    /// Requests that its account imports from [`BUS_ACCOUNT`].
    pub requests: BTreeSet<Request>,
    /// Live subjects that its account imports from [`BUS_ACCOUNT`].
    pub live: BTreeSet<String>,
    /// Live subjects of its own account that people may import.
    pub announces: BTreeSet<String>,
    /// Does it answer `$SRV` requests of people?
    pub answers: bool,
}

/// The bucket with a decider's snapshots.
pub fn snapshot_bucket(decider: &str) -> String {
    format!("snapshot-{decider}")
}

/// The bucket with a service's views.
pub fn view_bucket(service: &str) -> String {
    format!("view-{service}")
}

/// The stream that holds a bucket.
pub fn bucket_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// The subjects of a bucket's keys.
pub fn bucket_subject(bucket: &str) -> String {
    format!("$KV.{bucket}.>")
}

/// The buckets of a service: one per decider, and one for its views if it tails anything.
pub fn buckets(service: &ServiceSpec) -> Vec<String> {
    let snapshots = service.deciders.iter().map(|d| snapshot_bucket(&d.name));
    let views = (!service.tails.is_empty()).then(|| view_bucket(&service.name));
    snapshots.chain(views).collect()
}

/// The account of a service: `validator` signs in to `SVC_VALIDATOR`.
pub fn service_account(service: &str) -> String {
    format!("SVC_{}", service.to_uppercase().replace('-', "_"))
}

/// Where an event is published: its subject with every key as `*`, behind `w.` where its stream ingests so.
pub fn publish_filter(contract: &Contract, event: &EventSpec) -> String {
    let prefixed = contract.stream(&event.stream).is_some_and(|s| s.has_write_prefix());
    format!("{}{}", if prefixed { WRITE_PREFIX } else { "" }, event.filter())
}

/// Streams that a service may read: its inputs', its World's, those it tails, and those it writes facts to.
pub fn reads<'a>(contract: &'a Contract, service: &'a ServiceSpec) -> BTreeSet<&'a str> {
    let mut streams: BTreeSet<&str> = service.tails.iter().map(String::as_str).collect();
    for decider in &service.deciders {
        streams.extend(decider.world.iter().map(String::as_str));
        streams.extend(decider.inputs.iter().filter_map(|i| contract.event(i)).map(|e| e.stream.as_str()));
    }
    streams.extend(writes(contract, service).into_iter().filter(|e| !e.command).map(|e| e.stream.as_str()));
    streams
}

/// Streams whose messages a service may hear as they are stored: those it tails, its World's, and its deciders' own.
pub fn hears<'a>(contract: &'a Contract, service: &'a ServiceSpec) -> BTreeSet<&'a str> {
    let worlds = service.deciders.iter().flat_map(|d| &d.world);
    let own = service.deciders.iter().flat_map(|d| contract.facts_of(&d.area)).map(|e| &e.stream);
    service.tails.iter().chain(worlds).chain(own).map(String::as_str).collect()
}

/// Events that a service may publish: the facts of its deciders' areas, and what the contract adds.
pub fn writes<'a>(contract: &'a Contract, service: &'a ServiceSpec) -> Vec<&'a EventSpec> {
    let facts = service.deciders.iter().flat_map(|d| contract.facts_of(&d.area));
    facts.chain(service.publishes.iter().chain(&service.relays).filter_map(|p| contract.event(p))).collect()
}

/// Commands that people may send: all that no service sends of its own accord, and those that one relays although another
/// sends them too.
pub fn peoples_commands(contract: &Contract) -> impl Iterator<Item = &EventSpec> {
    let sent = |e: &EventSpec| contract.services.iter().any(|s| s.publishes.contains(&e.message));
    let relayed = |e: &EventSpec| contract.services.iter().any(|s| s.relays.contains(&e.message));
    contract.events.iter().filter(move |e| e.command && (!sent(e) || relayed(e)))
}

/// May people send it? Whoever does: the gateway sends it in their name.
pub fn is_peoples(message: &str) -> bool {
    static PEOPLES: LazyLock<BTreeSet<&str>> =
        LazyLock::new(|| peoples_commands(crate::contract()).map(|event| event.message.as_str()).collect());
    PEOPLES.contains(message)
}

/// Is it a notice of a service about itself? Its only key is the service's name.
fn is_notice(contract: &Contract, event: &EventSpec) -> bool {
    contract.stream(&event.stream).is_some_and(|s| s.kind == Kind::Notices) && event.keys == ["service"]
}

fn has_events(contract: &Contract, stream: &str) -> bool {
    contract.events.iter().any(|e| e.stream == stream)
}

/// The rights of every identity but the provisioner: the services in declaration order, their joint one, people, dashboards.
pub fn all(contract: &Contract) -> Vec<Rights> {
    let services = contract.services.iter().map(|s| of_service(contract, s));
    services.chain([of_joint(contract), of_people(contract), of_dashboards(contract)]).collect()
}

/// The rights of a service.
pub fn of_service(contract: &Contract, service: &ServiceSpec) -> Rights {
    let mut rights = Rights {
        identity: service.name.clone(),
        account: service_account(&service.name),
        announces: service.announces.iter().cloned().collect(),
        answers: true,
        ..Default::default()
    };
    for event in writes(contract, service) {
        rights.may_send(publish_filter(contract, event));
    }
    // Notices about itself, and dead letters of what it could not handle.
    for notice in contract.events.iter().filter(|e| is_notice(contract, e)) {
        rights.may_send(notice.filter().replace('*', &service.name));
    }
    for stream in contract.streams.iter().filter(|s| s.kind == Kind::Notices && !has_events(contract, &s.name)) {
        rights.may_send(stream.subject.clone());
    }
    for durable in service.deciders.iter().flat_map(|d| contract.durables(d)) {
        let (stream, name) = (&durable.stream, &durable.name);
        rights.may_ask(&format!("CONSUMER.MSG.NEXT.{stream}.{name}"), true);
        rights.may_ask(&format!("CONSUMER.INFO.{stream}.{name}"), false);
        rights.may_send(format!("$JS.ACK.{stream}.{name}.>"));
    }
    for stream in reads(contract, service).into_iter().filter_map(|s| contract.stream(s)) {
        rights.may_get(&stream.name);
    }
    for stream in hears(contract, service).into_iter().filter_map(|s| contract.stream(s)) {
        rights.may_hear(stream.subject.clone());
    }
    for bucket in buckets(service) {
        rights.may_send(bucket_subject(&bucket));
        rights.may_get(&bucket_stream(&bucket));
    }
    rights.publish.extend(service.announces.iter().cloned());
    // Answers to requests that come from people's account: the server names their replies so.
    rights.publish.insert("_R_.>".to_owned());
    rights.subscribe.extend([format!("_INBOX_{}.>", service.name), "$SRV.>".to_owned()]);
    rights
}

/// The rights of a process that runs all services: those of all of them. It signs in to [`BUS_ACCOUNT`] and finds the
/// JetStream API there under its own name.
pub fn of_joint(contract: &Contract) -> Rights {
    let mut rights =
        Rights { identity: JOINT.to_owned(), account: BUS_ACCOUNT.to_owned(), answers: true, ..Default::default() };
    for one in contract.services.iter().map(|service| of_service(contract, service)) {
        let own_inbox = format!("_INBOX_{}.>", one.identity);
        rights.publish.extend(one.publish.into_iter().map(|subject| match subject.strip_prefix(API_PREFIX) {
            Some(call) => format!("$JS.API{call}"),
            None => subject,
        }));
        rights.subscribe.extend(one.subscribe.into_iter().filter(|subject| *subject != own_inbox));
        rights.announces.extend(one.announces);
    }
    rights.subscribe.insert(format!("_INBOX_{JOINT}.>"));
    rights
}

/// The rights of people: to send commands, to read and hear everything, to ask the services how they are.
pub fn of_people(contract: &Contract) -> Rights {
    let mut rights = Rights { identity: PERSON.to_owned(), account: PEOPLE_ACCOUNT.to_owned(), ..Default::default() };
    for event in peoples_commands(contract) {
        rights.may_send(event.filter());
    }
    for stream in &contract.streams {
        if !stream.name.ends_with("_ASK") {
            rights.may_hear(stream.subject.clone());
            rights.may_hear(stream.live_subject());
        }
    }
    rights.may_ask("DIRECT.GET.>", true);
    for read_only in [
        "INFO",
        "STREAM.INFO.*",
        "STREAM.NAMES",
        "STREAM.LIST",
        "CONSUMER.INFO.*.*",
        "CONSUMER.NAMES.*",
        "CONSUMER.LIST.*",
    ] {
        rights.may_ask(read_only, false);
    }
    rights.publish.insert("$SRV.>".to_owned());
    rights.subscribe.extend(contract.services.iter().flat_map(|s| s.announces.iter().cloned()));
    // The second is the inbox of clients that cannot name their own; the account holds people only.
    rights.subscribe.extend(["_INBOX_person.>".to_owned(), "_INBOX.>".to_owned()]);
    rights
}

/// The rights of dashboards: to hear measurements, twins, anomalies and observations, and what services announce, as they
/// are stored. Nothing else: what was before they ask over REST.
pub fn of_dashboards(contract: &Contract) -> Rights {
    let mut rights =
        Rights { identity: DASHBOARD.to_owned(), account: DASHBOARD_ACCOUNT.to_owned(), ..Default::default() };
    for stream in DASHBOARD_STREAMS.into_iter().filter_map(|name| contract.stream(name)) {
        rights.may_hear(stream.live_subject());
    }
    rights.subscribe.extend(contract.services.iter().flat_map(|s| s.announces.iter().cloned()));
    // Clients subscribe to their inbox before they know that nobody will write to it.
    rights.subscribe.insert(format!("_INBOX_{DASHBOARD}.>"));
    rights
}

impl Rights {
    /// To publish where a stream ingests, with its acknowledgement.
    fn may_send(&mut self, subject: String) {
        self.requests.insert(Request { subject: subject.clone(), local: subject.clone(), many: false });
        self.publish.insert(subject);
    }

    /// To ask the JetStream API.
    fn may_ask(&mut self, call: &str, many: bool) {
        let local = format!("{API_PREFIX}.{call}");
        self.requests.insert(Request { subject: format!("$JS.API.{call}"), local: local.clone(), many });
        self.publish.insert(local);
    }

    /// To read any message of a stream.
    fn may_get(&mut self, stream: &str) {
        self.may_ask(&format!("DIRECT.GET.{stream}"), true);
        self.may_ask(&format!("DIRECT.GET.{stream}.>"), true);
    }

    /// To hear a stream's messages live.
    fn may_hear(&mut self, subject: String) {
        self.live.insert(subject.clone());
        self.subscribe.insert(subject);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::matches;

    #[test]
    fn only_a_facts_writer_may_publish_it_and_nobody_where_it_is_read() {
        let contract = crate::contract();
        for rights in all(contract) {
            let service = contract.service(&rights.identity);
            for event in &contract.events {
                let stored = event.filter().replace('*', "x");
                let may = rights.publish.iter().any(|p| matches(p, &stored));
                let written =
                    rights.publish.iter().any(|p| matches(p, &publish_filter(contract, event).replace('*', "x")));
                let may_write = |s: &ServiceSpec| writes(contract, s).iter().any(|w| w.message == event.message);
                let writer = match rights.identity.as_str() {
                    JOINT => contract.services.iter().any(may_write),
                    _ => service.is_some_and(may_write),
                };
                let person =
                    rights.identity == PERSON && peoples_commands(contract).any(|c| c.message == event.message);
                let own_notice = is_notice(contract, event);
                assert_eq!(
                    written && (!own_notice || writer),
                    writer || person,
                    "{} {}",
                    rights.identity,
                    event.message
                );
                if contract.stream(&event.stream).unwrap().has_write_prefix() {
                    assert!(!may, "{} may forge {}", rights.identity, event.message);
                }
            }
        }
    }

    #[test]
    fn people_set_measurements_although_the_detector_does_too() {
        let contract = crate::contract();
        let set = "continuum.measurement.v1.SetMeasurement";
        assert!(contract.service("sar-detector").unwrap().publishes.iter().any(|message| message == set));
        assert!(is_peoples(set) && is_peoples("continuum.measurement.v1.DropCondition"));
        assert!(!is_peoples("continuum.placement.v1.ReportLiveness"));
    }

    #[test]
    fn dashboards_hear_and_say_nothing() {
        let contract = crate::contract();
        let rights = of_dashboards(contract);
        assert!(rights.publish.is_empty() && rights.requests.is_empty() && !rights.answers);
        assert_eq!(rights.live.len(), DASHBOARD_STREAMS.len());
        for (subject, may) in [
            ("live.telemetry.readings.v1.edge", true),
            ("twin.changed.v1.workload.x", true),
            ("anomaly.detected.v1.local.x", true),
            ("observation.target_observed.v1.local.x", true),
            ("json.intent.submitted.v1.local.x", true),
            ("intent.submitted.v1.local.x", false),
            ("intent.ask.submit.v1.local.x", false),
            ("identity.account_put.v1.x", false),
            ("dead.x", false),
        ] {
            assert_eq!(rights.subscribe.iter().any(|s| matches(s, subject)), may, "{subject}");
        }
    }

    #[test]
    fn nobody_may_change_a_stream_or_a_consumer() {
        for rights in all(crate::contract()) {
            for verb in ["CREATE", "UPDATE", "DELETE", "PURGE", "MSG.DELETE", "RESTORE", "DURABLE.CREATE"] {
                for of in ["STREAM", "CONSUMER"] {
                    for prefix in ["$JS.API", API_PREFIX] {
                        let subject = format!("{prefix}.{of}.{verb}.INTENT");
                        assert!(!rights.publish.iter().any(|p| matches(p, &subject)), "{} {subject}", rights.identity);
                    }
                }
            }
        }
    }
}
