//! Checks every chart that waits for it, and reports what was found.
//!
//! What waits is what the view or its documents say: there is no memory beside them, so after a restart what had not been reported is
//! checked again. A report that comes twice is heard once: the decider awaits one per archive that was attached.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use mesh_core::Outgoing;
use mesh_kit::Mesh;
use mesh_proto::{
    Event as _,
    chart::ChartStored,
    derived_id,
    workload::{CheckReport, ReportChecks, WorkloadView},
};
use tokio::task::JoinSet;

use super::Checks;
use crate::shell::store::Shown;
use chart::{is_sha256, report};

/// Before the bus is asked again.
const RETRY: Duration = Duration::from_secs(1);
/// Charts in hand at once; more wait in the view.
const JOBS_MAX: usize = 4;

/// Owner, name, version, digest, and when its checks were asked for, nanoseconds.
type Job = (String, String, String, String, i128);

fn job(view: &WorkloadView) -> Job {
    let at = view.modified.map_or(0, |at| at.as_nanos());
    (view.owner.clone(), view.name.clone(), view.version.clone(), view.sha256.clone(), at)
}

/// Works until the process stops.
pub(crate) async fn follow(mesh: Mesh, shown: Shown, checks: Arc<Checks>) -> anyhow::Result<()> {
    let mut changes = shown.changes();
    let mut taken: BTreeSet<Job> = BTreeSet::new();
    let mut jobs: JoinSet<()> = JoinSet::new();
    let stopping = mesh.stopping();
    loop {
        changes.mark_seen();
        let waiting = match shown.onboarding().await {
            Ok(waiting) => waiting,
            Err(error) => {
                tracing::warn!(error = &*error as &dyn std::error::Error, "charts that wait for checks not read yet");
                if !pause(&mesh).await {
                    return Ok(());
                }
                continue;
            }
        };
        let now: BTreeSet<Job> = waiting.iter().map(job).collect();
        taken.retain(|job| now.contains(job));
        for chart in waiting {
            if jobs.len() >= JOBS_MAX {
                break;
            }
            if taken.insert(job(&chart)) {
                jobs.spawn(one(mesh.clone(), checks.clone(), chart));
            }
        }
        tokio::select! {
            changed = changes.changed() => changed?,
            Some(_) = jobs.join_next() => {}
            () = stopping.cancelled() => return Ok(()),
        }
    }
}

async fn one(mesh: Mesh, checks: Arc<Checks>, chart: WorkloadView) {
    let archive = loop {
        match archive_of(&mesh, &chart.owner, &chart.sha256).await {
            Ok(archive) => break archive,
            Err(error) => tracing::warn!(error = format!("{error:#}"), chart = chart.name, "archive not read yet"),
        }
        if !pause(&mesh).await {
            return;
        }
    };
    let document = chart.document.clone().unwrap_or_default();
    let mut found = match archive {
        Some(archive) => {
            tokio::select! {
                found = checks.check(&archive, &document) => found,
                () = mesh.stopping().cancelled_owned() => return,
            }
        }
        None => missing(&chart.sha256),
    };
    found.at = Some(mesh.now());
    let (owner, name, version) = (chart.owner.clone(), chart.name.clone(), chart.version.clone());
    let command = ReportChecks { owner, name, version, report: Some(found) };
    let (owner, name, version, sha256, at) = job(&chart);
    let id = derived_id(&["checks", &owner, &name, &version, &sha256, &at.to_string()]);
    loop {
        let published = match Outgoing::new(&command, id.clone(), mesh.now()) {
            Ok(message) => mesh.bus().publish(&message).await.map(|_| ()).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let Err(error) = published else { return };
        tracing::warn!(error, chart = chart.name, "checks not reported yet");
        if !pause(&mesh).await {
            return;
        }
    }
}

/// False when the process stops.
async fn pause(mesh: &Mesh) -> bool {
    tokio::select! {
        () = tokio::time::sleep(RETRY) => true,
        () = mesh.stopping().cancelled_owned() => false,
    }
}

fn missing(sha256: &str) -> CheckReport {
    let reason = format!("no archive of SHA-256 {sha256} is stored");
    let hint = "upload it, and push the document again".to_owned();
    let problem = mesh_proto::intent::Problem { path: "sha256".into(), reason: reason.clone(), hint };
    let steps = report::complete(vec![report::failed("structure", reason, vec![problem])]);
    CheckReport { sha256: sha256.to_owned(), steps, ..Default::default() }
}

/// An archive as it was stored; `None` if there is none of this digest.
pub(crate) async fn archive_of(mesh: &Mesh, owner: &str, sha256: &str) -> anyhow::Result<Option<Bytes>> {
    if !is_sha256(sha256) {
        return Ok(None);
    }
    let subject = ChartStored { owner: owner.to_owned(), sha256: sha256.to_owned(), ..Default::default() };
    let subject = mesh_proto::AnyEvent::subject(&subject)?;
    let stored = mesh.bus().log(ChartStored::STREAM).last(&subject).await?;
    Ok(stored.map(|s| s.event::<ChartStored>()).transpose()?.flatten().map(|stored| stored.archive))
}
