//! One version of a document and one instance as people see them, each the fold of its facts.

use mesh_planner::Driver;
use mesh_proto::{
    Timestamp,
    deciders::stream_workload::Event,
    workload::{
        InstanceChanged, InstancePhase, InstanceUnavailable, InstanceView, InstanceWanted, LifecycleEvent,
        RevisionView, WorkloadDocument, WorkloadSubmitted, WorkloadView,
    },
};
use prost::Message as _;

use crate::domain::{REVISIONS_MAX, release_of};

/// Events kept of each instance: the newest.
pub(crate) const EVENTS_MAX: usize = 100;

/// What a fact is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum About<'a> {
    Version { owner: &'a str, name: &'a str, version: &'a str },
    Instance { owner: &'a str, instance_id: &'a str },
}

/// What a fact is about; `None` if no view shows it.
pub(crate) fn about(event: &Event) -> Option<About<'_>> {
    let version = |owner, name, version| Some(About::Version { owner, name, version });
    let instance = |owner, instance_id| Some(About::Instance { owner, instance_id });
    match event {
        Event::WorkloadSubmitted(m) => version(&m.owner, &m.name, &m.version),
        Event::ChartAttached(m) => version(&m.owner, &m.name, &m.version),
        Event::WorkloadOnboarding(m) => version(&m.owner, &m.name, &m.version),
        Event::WorkloadChecked(m) => version(&m.owner, &m.name, &m.version),
        Event::WorkloadRegistered(m) => version(&m.owner, &m.name, &m.version),
        Event::WorkloadRejected(m) => version(&m.owner, &m.name, &m.version),
        Event::WorkloadDropped(m) => version(&m.owner, &m.name, &m.version),
        Event::InstanceWanted(m) => instance(&m.owner, &m.instance_id),
        Event::InstanceDeleted(m) => instance(&m.owner, &m.instance_id),
        Event::InstanceChanged(m) => instance(&m.owner, &m.instance_id),
        Event::InstanceUnavailable(m) => instance(&m.owner, &m.instance_id),
        Event::InstanceUnwanted(m) => instance(&m.owner, &m.instance_id),
        Event::WorkloadUnchanged(_) | Event::WorkloadRefused(_) | Event::MigrationWanted(_) => None,
    }
}

/// Is it a chart whose checks are to be made?
pub(crate) fn awaits_checks(view: &WorkloadView) -> bool {
    view.status == "onboarding" && view.report.is_none()
}

/// Takes in a fact about a version; `None` while there is no such version.
pub(crate) fn fold_version(view: &mut Option<WorkloadView>, event: Event, at: Timestamp) {
    match event {
        Event::WorkloadSubmitted(m) => return *view = Some(submitted(m, at)),
        Event::WorkloadDropped(_) => return *view = None,
        _ => {}
    }
    let Some(view) = view else { return };
    view.modified = Some(at);
    match event {
        Event::ChartAttached(m) => view.sha256 = m.sha256,
        Event::WorkloadOnboarding(m) => {
            // Without an archive it waits for its owner.
            view.status = if m.sha256.is_empty() { "pending" } else { "onboarding" }.into();
            view.sha256 = m.sha256;
            view.report = None;
        }
        Event::WorkloadChecked(m) => view.report = m.report,
        Event::WorkloadRegistered(m) => {
            view.status = "accepted".into();
            // Its checks may have completed it.
            view.document = WorkloadDocument::decode(m.document).ok();
        }
        Event::WorkloadRejected(m) => {
            view.status = "rejected".into();
            view.problems = m.problems;
        }
        _ => {}
    }
}

fn submitted(m: WorkloadSubmitted, at: Timestamp) -> WorkloadView {
    let document = WorkloadDocument::decode(m.document).ok();
    WorkloadView {
        owner: m.owner,
        name: m.name,
        version: m.version,
        status: "pending".into(),
        sha256: document.as_ref().and_then(|d| d.chart.as_ref()).map(|c| c.sha256.clone()).unwrap_or_default(),
        statement: document.as_ref().map(|d| Driver::of(d).statement()).unwrap_or_default().to_owned(),
        document,
        created: Some(at),
        modified: Some(at),
        ..Default::default()
    }
}

/// Takes in a fact about an instance; `None` while there is no such instance.
pub(crate) fn fold_instance(view: &mut Option<InstanceView>, event: Event, at: Timestamp) {
    match event {
        Event::InstanceWanted(m) => wanted(view.get_or_insert_default(), m, at),
        Event::InstanceDeleted(_) => *view = None,
        Event::InstanceChanged(m) => changed(view.get_or_insert_default(), m, at),
        Event::InstanceUnavailable(m) => unavailable(view, m),
        Event::InstanceUnwanted(_)
            if view.as_ref().is_some_and(|v| v.replicas_wanted == 0 && v.lifecycle_events.is_empty()) =>
        {
            *view = None;
        }
        _ => {}
    }
}

fn unavailable(view: &mut Option<InstanceView>, m: InstanceUnavailable) {
    let view = view.get_or_insert_with(|| InstanceView {
        owner: m.owner,
        instance_id: m.instance_id,
        intent_id: m.intent_id,
        phase: InstancePhase::Pending.into(),
        ..Default::default()
    });
    if view.replicas_wanted == 0 && view.phase() == InstancePhase::Pending {
        view.workload = m.workload;
        view.reason = format!("{}; {}", m.reason, m.hint);
    }
}

fn wanted(view: &mut InstanceView, m: InstanceWanted, at: Timestamp) {
    let over = matches!(view.phase(), InstancePhase::Unspecified | InstancePhase::Stopped);
    if m.replicas > 0 && (over || view.lifecycle_events.is_empty()) {
        let generation = view.generation;
        let events = std::mem::take(&mut view.lifecycle_events);
        let revisions = std::mem::take(&mut view.revisions);
        *view = InstanceView { lifecycle_events: events, generation, revisions, ..Default::default() };
        view.phase = InstancePhase::Pending.into();
        view.created = Some(at);
        remember(view, LifecycleEvent { r#type: "rendered".into(), timestamp: Some(at), ..Default::default() });
    } else if m.replicas > 0 && m.revision > view.revision && view.revision > 0 {
        let name = if m.rolled_back_to > 0 { "rollback" } else { "upgrade" };
        remember(view, LifecycleEvent { r#type: name.into(), timestamp: Some(at), ..Default::default() });
    } else if m.replicas == 0 && view.phase() == InstancePhase::Unspecified {
        // Ended before it began.
        view.phase = InstancePhase::Stopped.into();
    }
    if m.replicas > 0 {
        revise(view, &m, at);
    }
    view.revision = m.revision.max(1);
    view.modified = Some(at);
    let name = m.workload.split('@').next().unwrap_or_default();
    let release = m.release.clone().unwrap_or_default();
    let is_chart = WorkloadDocument::decode(m.document.clone()).is_ok_and(|d| Driver::of(&d) == Driver::Charts);
    view.release_name = if is_chart { release_of(&release, name, &m.instance_id) } else { String::new() };
    view.release = m.release;
    view.owner = m.owner;
    view.instance_id = m.instance_id;
    view.workload = m.workload;
    view.intent_id = m.intent_id;
    view.replicas_wanted = m.replicas;
}

fn changed(view: &mut InstanceView, m: InstanceChanged, at: Timestamp) {
    view.phase = m.phase;
    view.owner = m.owner;
    view.instance_id = m.instance_id;
    view.intent_id = m.intent_id;
    view.cluster_id = m.cluster_id;
    view.generation = m.generation;
    view.replicas_wanted = m.replicas_wanted;
    view.replicas_running = m.replicas_running;
    view.restarts = m.restarts;
    view.reason = m.reason;
    view.modified = Some(at);
    if let Some(event) = m.event {
        remember(view, event);
    }
}

/// Keeps what it is now, if it is another revision than the last.
fn revise(view: &mut InstanceView, m: &InstanceWanted, at: Timestamp) {
    let revision = m.revision.max(1);
    if let Some(last) = view.revisions.last_mut().filter(|last| last.revision == revision) {
        last.replicas = m.replicas;
        return;
    }
    if view.revisions.len() >= REVISIONS_MAX {
        view.revisions.remove(0);
    }
    view.revisions.push(RevisionView {
        revision,
        workload: m.workload.clone(),
        replicas: m.replicas,
        release: m.release.clone(),
        rolled_back_to: m.rolled_back_to,
        at: Some(at),
    });
}

fn remember(view: &mut InstanceView, event: LifecycleEvent) {
    if view.lifecycle_events.len() >= EVENTS_MAX {
        view.lifecycle_events.remove(0);
    }
    view.lifecycle_events.push(event);
}
