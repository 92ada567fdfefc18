//! What the chapters ask about workloads and their processes.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use continuum::document;
use mesh_client::{ANSWER_WAIT, Client, OWNER};
use mesh_core::Stored;
use mesh_proto::{
    derived_id,
    instance::{AgentStateRequest, ProcessView},
    query::{GetRequest, ListRequest},
    workload::{RegisterWorkload, WorkloadDocument},
};
use prost::Message as _;

use crate::STEP_LIMIT;

/// The first workload document of a file.
pub(crate) fn read(file: &Path) -> anyhow::Result<WorkloadDocument> {
    let value = document::read(file)?.into_iter().next().context("the example holds no document")?;
    mesh_proto::json::from_written("continuum.workload.v1.WorkloadDocument", &value)
        .map_err(|error| anyhow!("{}: {error}", file.display()))
}

/// Registers a document and waits for the verdict: the answer, and the status.
pub(crate) async fn register(client: &Client, document: &WorkloadDocument) -> anyhow::Result<(Stored, String)> {
    let name = document.name.clone();
    let content: String = document.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
    let id = derived_id(&["register", OWNER, &name, &content]);
    let command = RegisterWorkload { owner: OWNER.into(), name, document: Some(document.clone()) };
    let answer = client.ask(&command, id, ANSWER_WAIT).await?;
    Ok((answer, registered(client, document).await?))
}

/// The status of a document once it is judged.
async fn registered(client: &Client, document: &WorkloadDocument) -> anyhow::Result<String> {
    let id = format!("{}@{}", document.name, document.version);
    let deadline = Instant::now() + STEP_LIMIT;
    loop {
        let request = GetRequest { owner: OWNER.into(), id: id.clone() };
        match client.workloads().await?.get_workload(request).await {
            Ok(view) if !matches!(view.get_ref().status.as_str(), "pending" | "onboarding") => {
                return Ok(view.into_inner().status);
            }
            _ if Instant::now() > deadline => {
                bail!("timed out after {} s waiting for the verdict on {id}", STEP_LIMIT.as_secs())
            }
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// The processes of an instance, each with its cluster, as the agents see them.
pub(crate) async fn processes(client: &Client, instance: &str) -> anyhow::Result<Vec<(String, ProcessView)>> {
    let clusters = client.orchestrator().await?.list_clusters(ListRequest::default()).await?.into_inner().clusters;
    let mut found = vec![];
    for cluster in clusters.into_iter().filter_map(|c| c.registered) {
        let state = client.agent(&cluster.endpoint).await?.state(AgentStateRequest {}).await?.into_inner();
        let here = state.processes.into_iter().filter(|p| p.instance_id == instance);
        found.extend(here.map(|p| (cluster.cluster_id.clone(), p)));
    }
    Ok(found)
}

/// Does a process of this machine run?
pub(crate) fn runs(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Its processes once a move is over: the source ends a moment after the target runs.
pub(crate) async fn once(client: &Client, instance: &str) -> anyhow::Result<Vec<(String, ProcessView)>> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = processes(client, instance).await?;
        if found.len() <= 1 || Instant::now() > deadline {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The file by which the example's load is changed: the argument after `--control`.
pub(crate) fn control_file(document: &WorkloadDocument) -> anyhow::Result<PathBuf> {
    let arguments = document.process.as_ref().map(|p| p.arguments.as_slice()).unwrap_or_default();
    let at = arguments.iter().position(|a| a == "--control").context("the example workload has no --control file")?;
    arguments.get(at + 1).map(PathBuf::from).context("the example workload does not name a --control file")
}
