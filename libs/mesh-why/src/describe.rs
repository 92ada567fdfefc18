//! One line for a person about any message of the contract.

use mesh_core::Stored;
use mesh_proto::{
    Event as _, account, account_head, anomaly, assignment, chart, cluster, cost, identity, instance, intent, learning,
    lifecycle, network, object, observation, placement, remedy, report, storage, subscription, telemetry, twin, usage,
    validation, workload,
};

/// What a stored message says, in one line; its name if there is nothing better to say.
pub fn describe(stored: &Stored) -> String {
    said(stored).unwrap_or_else(|| stored.message.rsplit('.').next().unwrap_or_default().to_owned())
}

/// Who wrote it.
pub fn writer(stored: &Stored) -> String {
    stored.source.clone().unwrap_or_else(|| "somebody".to_owned())
}

fn said(stored: &Stored) -> Option<String> {
    macro_rules! of {
        ($event:ty, $say:expr) => {
            if stored.message == <$event>::MESSAGE {
                let say: fn($event) -> String = $say;
                return stored.event::<$event>().ok().flatten().map(say);
            }
        };
    }
    of!(intent::SubmitIntent, |m| format!("asks for intent {}", m.intent_id));
    of!(intent::UpdateIntent, |m| format!("asks to update intent {}", m.intent_id));
    of!(intent::SuspendIntent, |m| format!("asks to suspend intent {}", m.intent_id));
    of!(intent::ResumeIntent, |m| format!("asks to resume intent {}", m.intent_id));
    of!(intent::TerminateIntent, |m| format!("asks to terminate intent {}", m.intent_id));
    of!(intent::RollbackIntent, |m| format!("asks to go back to version {} of intent {}", m.version, m.intent_id));
    of!(intent::IntentSubmitted, |m| match m.rolled_back_to {
        0 => format!("intent submitted, version {}", m.version),
        again => format!("intent submitted, version {}, which is version {again} again", m.version),
    });
    of!(validation::ConflictsChanged, |m| match m.conflicts.first() {
        None => "in conflict with no intent any more".to_owned(),
        Some(first) => format!("in conflict: {}", first.reason),
    });
    of!(intent::IntentUnchanged, |m| format!("intent unchanged, version {}", m.version));
    of!(intent::IntentAcknowledged, |m| format!("intent acknowledged, {}", state(m.state.as_ref())));
    of!(intent::IntentRejected, |m| format!("intent rejected: {}", problems(&m.problems)));
    of!(intent::IntentStateChanged, |m| {
        let targets: Vec<String> = m.targets.iter().filter(|t| t.measured).map(target).collect();
        let targets = if targets.is_empty() { String::new() } else { format!(" [{}]", targets.join(", ")) };
        format!("{} -> {}{targets}", name(m.from.as_ref()), state(m.to.as_ref()))
    });
    of!(intent::IntentRemedyWanted, |m| format!("asks for a remedy: {}", m.reason));
    of!(intent::IntentRemedyUnwanted, |m| format!("wants no remedy any more: {}", m.reason));
    of!(intent::IntentRefused, |m| format!("{} refused: {}; {}", m.command, m.reason, m.hint));
    of!(account::SetRegion, |m| format!("asks to set region {}", m.region.unwrap_or_default().name));
    of!(account::SetTariff, |_| "asks to set the tariff".to_owned());
    of!(account::TopUp, |m| format!("asks to top up {}", m.account));
    of!(account::Posted, |m| format!("entry {} posted", m.index));
    of!(account::AccountRefused, |m| format!("{} refused: {}; {}", m.command, m.reason, m.hint));
    of!(account_head::HeadSigned, |m| format!("head of {} entries signed", m.size));
    of!(usage::UsageClosed, |m| format!(
        "instance {} used {:.2} core s in {:.0} s on {}",
        short(&m.instance_id),
        m.cpu_ms as f64 / 1e3,
        f64::from(m.window_ms) / 1e3,
        m.cluster_id
    ));
    of!(validation::IntentAccepted, |m| format!("version {} is well formed and allowed", m.version));
    of!(validation::IntentRejected, |m| format!("version {} is not acceptable: {}", m.version, problems(&m.problems)));
    of!(validation::WorkloadAccepted, |m| format!("{}@{} is acceptable", m.name, m.version));
    of!(validation::WorkloadRejected, |m| format!(
        "{}@{} is not acceptable: {}",
        m.name,
        m.version,
        problems(&m.problems)
    ));
    of!(validation::FeasibilityChanged, |m| match m.feasible {
        true => "feasible again".to_owned(),
        false => format!("infeasible: {}", m.reason),
    });
    of!(workload::RegisterWorkload, |m| format!("asks to register {}", m.name));
    of!(workload::RunInstance, |m| format!("asks to run {}", m.workload));
    of!(workload::StopInstance, |m| format!("asks to stop {}", m.instance_id));
    of!(chart::UploadChart, |m| format!("uploads a chart of {} bytes, sha256 {}", m.archive.len(), short(&m.sha256)));
    of!(chart::ChartStored, |m| format!("chart of {} bytes stored, sha256 {}", m.archive.len(), short(&m.sha256)));
    of!(chart::ChartUnchanged, |m| format!("chart {} is stored already", short(&m.sha256)));
    of!(chart::ChartRefused, |m| format!("{} refused: {}; {}", m.command, m.reason, m.hint));
    of!(workload::AttachChart, |m| format!("asks to attach a chart to {}@{}", m.name, m.version));
    of!(workload::DropWorkload, |m| format!("asks to drop {}@{}", m.name, m.version));
    of!(workload::ReportChecks, |m| format!("reports on the chart {}@{}", m.name, m.version));
    of!(workload::UpgradeInstance, |m| format!("asks to upgrade {} to {}", short(&m.instance_id), m.workload));
    of!(workload::RollbackInstance, |m| match m.revision {
        0 => format!("asks {} to go back a revision", short(&m.instance_id)),
        revision => format!("asks {} to go back to revision {revision}", short(&m.instance_id)),
    });
    of!(workload::MigrateInstance, |m| match m.to_cluster_id.as_str() {
        "" => format!("asks to move {}", short(&m.instance_id)),
        to => format!("asks to move {} to {to}", short(&m.instance_id)),
    });
    of!(workload::DeleteInstance, |m| format!("asks to delete {}", short(&m.instance_id)));
    of!(workload::ChartAttached, |m| format!("{}@{} has the chart {}", m.name, m.version, short(&m.sha256)));
    of!(workload::WorkloadOnboarding, |m| match m.sha256.as_str() {
        "" => format!("chart {}@{} waits for its archive", m.name, m.version),
        _ => format!("chart {}@{} is to be checked", m.name, m.version),
    });
    of!(workload::WorkloadChecked, |m| format!("chart {}@{} was checked", m.name, m.version));
    of!(workload::WorkloadDropped, |m| format!("document {}@{} dropped", m.name, m.version));
    of!(workload::MigrationWanted, |m| match m.to_cluster_id.as_str() {
        "" => format!("instance {} is to move from {}", short(&m.instance_id), m.cluster_id),
        to => format!("instance {} is to move from {} to {to}", short(&m.instance_id), m.cluster_id),
    });
    of!(workload::InstanceUnwanted, |m| format!(
        "intent {} does not want instance {} any more",
        m.intent_id,
        short(&m.instance_id)
    ));
    of!(workload::InstanceDeleted, |m| format!("instance {} is gone", short(&m.instance_id)));
    of!(placement::MigrationDeclined, |m| format!(
        "instance {} stays on {}: {}",
        short(&m.instance_id),
        m.cluster_id,
        m.reason
    ));
    of!(workload::WorkloadSubmitted, |m| format!("document {}@{} submitted", m.name, m.version));
    of!(workload::WorkloadUnchanged, |m| format!("document {}@{} unchanged", m.name, m.version));
    of!(workload::WorkloadRegistered, |m| format!("document {}@{} registered", m.name, m.version));
    of!(workload::WorkloadRejected, |m| format!(
        "document {}@{} rejected: {}",
        m.name,
        m.version,
        problems(&m.problems)
    ));
    of!(workload::InstanceWanted, |m| {
        let revision = match (m.revision, m.rolled_back_to) {
            (0 | 1, _) => String::new(),
            (revision, 0) => format!(", revision {revision}"),
            (revision, old) => format!(", revision {revision}, as {old} was"),
        };
        let (id, workload) = (short(&m.instance_id), &m.workload);
        format!("instance {id} of {workload} wanted, {} replica(s){revision}", m.replicas)
    });
    of!(workload::InstanceUnavailable, |m| format!(
        "instance {} cannot be made: {}; {}",
        short(&m.instance_id),
        m.reason,
        m.hint
    ));
    of!(workload::InstanceChanged, |m| {
        let place = if m.cluster_id.is_empty() { String::new() } else { format!(" on {}", m.cluster_id) };
        let reason = if m.reason.is_empty() { String::new() } else { format!(": {}", m.reason) };
        let (id, phase) = (short(&m.instance_id), m.phase().as_str_name().to_lowercase());
        format!("instance {id} {phase}{place}, {}/{} running{reason}", m.replicas_running, m.replicas_wanted)
    });
    of!(workload::WorkloadRefused, |m| format!("{} refused: {}; {}", m.command, m.reason, m.hint));
    of!(placement::PlacementDecided, |m| {
        let from = if m.from_cluster_id.is_empty() { String::new() } else { format!(" from {}", m.from_cluster_id) };
        format!(
            "instance {} goes{from} to {} (generation {}): {}",
            short(&m.instance_id),
            m.cluster_id,
            m.generation,
            m.reason
        )
    });
    of!(placement::PlacementUnplaced, |m| format!("instance {} has no place: {}", short(&m.instance_id), m.reason));
    of!(placement::PlacementReleased, |m| format!(
        "{} is free of instance {} up to generation {}: {}",
        m.cluster_id,
        short(&m.instance_id),
        m.generation,
        m.reason
    ));
    of!(placement::PlacementSettled, |m| {
        let how = if m.failed { "is given up" } else { "has settled" };
        let why = if m.reason.is_empty() { String::new() } else { format!(": {}", m.reason) };
        format!("instance {} {how} on {}{why}", short(&m.instance_id), m.cluster_id)
    });
    of!(placement::ClusterLost, |m| format!("cluster {} lost: {}", m.cluster_id, m.reason));
    of!(placement::ClusterReturned, |m| format!("cluster {} is back", m.cluster_id));
    of!(placement::ClusterJoined, |m| format!(
        "cluster {} joined, {} mCPU, {} MB",
        m.cluster_id,
        m.cpu_milli,
        m.memory_bytes / 1_000_000
    ));
    of!(placement::ReportLiveness, |m| format!(
        "reports cluster {} {}",
        m.cluster_id,
        if m.alive { "alive" } else { "silent" }
    ));
    of!(placement::LatenciesNoted, |m| format!(
        "latencies of {} ways noted (costs version {})",
        m.links.len(),
        m.version
    ));
    of!(cost::CostsChanged, |m| format!("network costs changed: {}", m.changes.join("; ")));
    of!(cost::NetworkMetricsPublished, |m| format!("network metrics of {} published", m.domain));
    of!(network::SubmitNetworkIntent, |m| format!("asks for network {}", m.network_id));
    of!(network::WithdrawNetworkIntent, |m| format!("asks to withdraw network {}", m.network_id));
    of!(network::ReportConnectivity, |m| format!(
        "reports network {} {}",
        m.network_id,
        m.phase().as_str_name().to_lowercase()
    ));
    of!(network::NetworkAccepted, |m| format!(
        "network intent translated by {} to {} calls",
        m.libraries.join(", "),
        m.calls.len()
    ));
    of!(network::ConnectivityChanged, |m| format!(
        "network {} {}{}{}",
        m.network_id,
        m.phase().as_str_name().to_lowercase(),
        if m.reason.is_empty() { "" } else { ": " },
        m.reason
    ));
    of!(network::NetworkRefused, |m| format!("{} refused: {}; {}", m.command, m.reason, m.hint));
    of!(learning::LearningAdvised, |m| format!("advice for instance {}: {}", short(&m.instance_id), m.reason));
    of!(learning::PolicyAdopted, |m| format!("site {} uses another policy: {}", m.site, m.reason));
    of!(learning::RoundClosed, |m| format!("round {} of site {} by {}: {}", m.round, m.site, m.rule, m.reason));
    of!(storage::DefinePolicy, |m| format!("asks for storage policy {}", m.policy));
    of!(storage::DropPolicy, |m| format!("asks to drop storage policy {}", m.policy));
    of!(storage::RegisterLocation, |m| format!("asks to register location {}", m.location));
    of!(storage::RetireLocation, |m| format!("asks to retire location {}", m.location));
    of!(storage::CreateBucket, |m| format!("asks for bucket {} of policy {}", m.bucket, m.policy));
    of!(storage::DeleteBucket, |m| format!("asks to delete bucket {}", m.bucket));
    of!(storage::RequestScrub, |m| format!("asks for scrub {}", m.scrub));
    of!(storage::PolicyDefined, |m| {
        let reason = if m.reason.is_empty() { String::new() } else { format!(": {}", m.reason) };
        format!("storage policy {} defined (version {}){reason}", m.policy, m.version)
    });
    of!(storage::PolicyDropped, |m| format!("storage policy {} dropped", m.policy));
    of!(storage::LocationRegistered, |m| format!("location {} registered (generation {})", m.location, m.generation));
    of!(storage::LocationRetired, |m| format!("location {} retired", m.location));
    of!(storage::BucketCreated, |m| format!("bucket {} created, policy {}", m.bucket, m.policy));
    of!(storage::BucketDeleted, |m| format!("bucket {} deleted", m.bucket));
    of!(storage::ScrubWanted, |m| format!("scrub {} wanted", m.scrub));
    of!(storage::StorageRefused, |m| format!("{} refused: {}; {}", m.command, m.reason, m.hint));
    of!(object::ObjectStored, |m| format!("object {}/{} stored, {} bytes", m.bucket, m.key, m.size));
    of!(object::ObjectMoved, |m| format!("object {} of bucket {} moved: {}", short(&m.object), m.bucket, m.reason));
    of!(object::ObjectDeleted, |m| format!("object {}/{} deleted", m.bucket, m.key));
    of!(object::UploadStarted, |m| format!("upload to {}/{} begun", m.bucket, m.key));
    of!(object::PartStored, |m| {
        let size = m.part.map_or(0, |part| part.size);
        format!("part {} of upload {} stored, {size} bytes", m.number, short(&m.upload))
    });
    of!(object::UploadEnded, |m| format!(
        "upload {} {}",
        short(&m.upload),
        if m.completed { "completed" } else { "aborted" }
    ));
    of!(object::ScrubClaimed, |m| format!("{} runs scrub {}", m.process, m.scrub));
    of!(object::ScrubEnded, |m| format!("scrub {} read {} fragments of {} objects", m.scrub, m.fragments, m.objects));
    of!(assignment::AssignmentChanged, |m| format!(
        "{}: {} instance {} (generation {})",
        m.cluster_id,
        m.action().as_str_name().to_lowercase(),
        short(&m.instance_id),
        m.generation
    ));
    of!(cluster::ClusterRegistered, |m| format!(
        "cluster {} registered: {} mCPU, {} MB, {} driver, limits by {}",
        m.cluster_id,
        m.cpu_milli,
        m.memory_bytes / 1_000_000,
        m.driver,
        m.enforcement
    ));
    of!(instance::InstanceStatusChanged, |m| {
        let reason = if m.reason.is_empty() { String::new() } else { format!(": {}", m.reason) };
        let (id, phase) = (short(&m.instance_id), m.phase().as_str_name().to_lowercase());
        format!(
            "instance {id} {phase} (generation {}), {}/{} running{reason}",
            m.generation, m.replicas_running, m.replicas_wanted
        )
    });
    of!(instance::InstanceRejected, |m| format!("instance {} not taken: {}", short(&m.instance_id), m.reason));
    of!(observation::TargetObserved, |m| {
        let values: Vec<String> = m
            .targets
            .iter()
            .map(|t| {
                if t.samples == 0 { format!("{} not measured", t.target_name) } else { value(&t.target_name, t.value) }
            })
            .collect();
        format!("period {}: {}", m.period, values.join(", "))
    });
    of!(report::ReportPublished, |m| format!("report on version {}", m.version));
    of!(anomaly::AnomalyDetected, |m| format!("anomaly: {}", m.sentence));
    of!(anomaly::AnomalyCleared, |m| format!("anomaly cleared: {}", m.reason));
    of!(remedy::SetRemedyPolicy, |_| "asks to set the policy of remedies".to_owned());
    of!(remedy::RemedyPolicySet, |_| "policy of remedies set".to_owned());
    of!(remedy::RemedyRequested, |m| format!(
        "asks to {} instance {}: {}",
        m.action().as_str_name().to_lowercase(),
        short(&m.instance_id),
        m.reason
    ));
    of!(remedy::RemedyWithheld, |m| format!("no remedy for instance {}: {}", short(&m.instance_id), m.reason));
    of!(remedy::RemedySettled, |m| format!(
        "remedy of instance {} {} after {:.1} s: {}",
        short(&m.instance_id),
        if m.effective { "effective" } else { "not effective" },
        m.seconds,
        m.reason
    ));
    of!(remedy::RemedyRefused, |m| format!("{} refused: {}; {}", m.command, m.reason, m.hint));
    of!(twin::TwinChanged, |m| format!("twin of {} {}", m.kind, short(&m.id)));
    of!(telemetry::Measured, |m| format!(
        "{} samples of instance {} on {}",
        m.samples.len(),
        short(&m.instance_id),
        m.cluster_id
    ));
    of!(lifecycle::ServiceChanged, |m| format!("process {} of {} is {}", short(&m.process), m.service, m.phase));
    of!(identity::DefineAccount, |m| format!("asks for account {}", m.name));
    of!(identity::RemoveAccount, |m| format!("asks to remove account {}", m.name));
    of!(identity::OpenSession, |m| format!("asks for session {} of account {}", short(&m.name), m.account));
    of!(identity::RenewSession, |m| format!("asks to renew session {}", short(&m.name)));
    of!(identity::CloseSession, |m| format!("asks to close session {}", short(&m.name)));
    of!(identity::AccountDefined, |m| {
        let roles = if m.roles.is_empty() { "no role".to_owned() } else { m.roles.join(", ") };
        let disabled = if m.disabled { ", which cannot sign in" } else { "" };
        format!("account {} defined: {roles}, owner {}{disabled}", m.name, m.owner)
    });
    of!(identity::AccountRemoved, |m| format!("account {} removed", m.name));
    of!(identity::SessionOpened, |m| format!("session {} of account {} opened", short(&m.name), m.account));
    of!(identity::SessionRenewed, |m| format!("session {} renewed", short(&m.name)));
    of!(identity::SessionClosed, |m| format!("session {} closed: {}", short(&m.name), m.reason));
    of!(identity::IdentityRefused, |m| format!("{} refused: {}; {}", m.command, m.reason, m.hint));
    // An address of a callback may hold a secret: it is not told.
    of!(subscription::Subscribe, |m| format!("asks for subscription {}", short(&m.subscription_id)));
    of!(subscription::Unsubscribe, |m| format!("asks to end subscription {}", short(&m.subscription_id)));
    of!(subscription::ClaimDelivery, |m| format!(
        "{} asks to deliver subscription {}",
        short(&m.holder),
        short(&m.subscription_id)
    ));
    of!(subscription::ReportDelivery, |m| {
        let failure = if m.failure.is_empty() { String::new() } else { format!(": {}", m.failure) };
        format!("reports subscription {} delivered up to {}{failure}", short(&m.subscription_id), m.through)
    });
    of!(subscription::Subscribed, |m| format!("subscription {} made", short(&m.subscription_id)));
    of!(subscription::DeliveryClaimed, |m| format!(
        "{} delivers subscription {}",
        short(&m.holder),
        short(&m.subscription_id)
    ));
    of!(subscription::DeliveryReported, |m| {
        let failed = match m.failures {
            0 => String::new(),
            times => format!(", then failed {times} time(s): {}", m.failure),
        };
        format!("subscription {} delivered up to {}{failed}", short(&m.subscription_id), m.through)
    });
    of!(subscription::Unsubscribed, |m| format!("subscription {} ended: {}", short(&m.subscription_id), m.reason));
    of!(subscription::SubscriptionRefused, |m| format!("{} refused: {}; {}", m.command, m.reason, m.hint));
    None
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

/// The first characters of an id.
pub fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

fn target(target: &intent::TargetState) -> String {
    let bound = format!(
        "{} {}",
        target.target_condition.trim_start_matches("IS_").replace('_', " ").to_lowercase(),
        target.bound
    );
    let missed = if target.fulfilled { String::new() } else { format!(", missed {}", target.missed) };
    format!("{} ({bound}{missed})", value(&target.target_name, target.achieved))
}

fn name(state: Option<&intent::State>) -> String {
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
    use mesh_proto::{Timestamp, contract, contract::EventSpec};

    use super::*;

    /// A message as its stream keeps it, with every field at its default.
    fn stored(event: &EventSpec) -> Stored {
        let any = lifecycle::ServiceChanged { service: "any".into(), ..Default::default() };
        Stored {
            stream: event.stream.clone(),
            subject: event.subject.replace(['{', '}'], ""),
            message: event.message.clone(),
            body: Default::default(),
            ..mesh_test::stored(&any, 1, Timestamp::default())
        }
    }

    #[test]
    fn every_message_of_the_contract_has_a_sentence_of_its_own() {
        let wordless = contract().events.iter().filter(|event| said(&stored(event)).is_none());
        assert_eq!(wordless.map(|event| event.message.as_str()).collect::<Vec<_>>(), [""; 0]);
        // A message that nobody knows has its name.
        let mut unknown = stored(&contract().events[0]);
        unknown.message = "continuum.other.v1.Unheard".into();
        assert_eq!(describe(&unknown), "Unheard");
    }
}
