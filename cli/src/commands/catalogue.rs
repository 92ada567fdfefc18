//! Documents and instances as the workload manager knows them: what several commands ask about them.

use anyhow::{Context as _, bail};
use mesh_client::Client;
use mesh_proto::{
    Event as _, EventSet as _,
    deciders::stream_workload,
    intent::Problem,
    query::{GetRequest, ListRequest},
    workload::{InstancePhase, InstanceView, RegisterWorkload, WorkloadDocument, WorkloadView},
};
use prost::Message as _;
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use crate::{
    context::{Context, Waiting, answer},
    outcome::Outcome,
};

/// Registers a document, and waits for the verdict on it if wanted.
pub async fn register(
    context: &Context<'_>,
    client: &Client,
    document: WorkloadDocument,
    command_id: String,
    waiting: &Waiting,
) -> anyhow::Result<Outcome> {
    let owner = &context.owner;
    let (name, version) = (document.name.clone(), document.version.clone());
    let command = RegisterWorkload { owner: owner.clone(), name: name.clone(), document: Some(document) };
    let outcome = Outcome { id: name.clone(), version: version.clone(), ..Outcome::default() };
    if waiting.no_wait {
        client.send(&command, command_id).await?;
        return Ok(Outcome { ok: true, result: "sent".into(), ..outcome });
    }
    let deadline = Instant::now() + waiting.limit();
    let answered = match client.ask(&command, command_id, waiting.limit()).await {
        Ok(answered) => answered,
        Err(error) => return Ok(outcome.refused(error.into_refusal()?)),
    };
    let mut unchanged = answered.message == mesh_proto::workload::WorkloadUnchanged::MESSAGE;
    // The verdict on this version may be older than this answer.
    let from = if unchanged { 1 } else { answered.sequence };
    let mut tail = client.bus().log("WORKLOAD").tail(&format!("workload.*.*.{owner}.{name}"), from);
    loop {
        let fact = match timeout_at(deadline, tail.next()).await {
            Ok(fact) => fact.context("follow the document")?,
            Err(_) => {
                let result = format!("timed out after {} s waiting for the verdict", waiting.timeout);
                return Ok(Outcome {
                    result,
                    hint: "the document is judged once its service runs; see `continuum status`".into(),
                    ..outcome
                });
            }
        };
        match stream_workload::Event::decode(&fact.message, &fact.body) {
            Ok(stream_workload::Event::WorkloadRegistered(registered)) if registered.version == version => {
                unchanged |= fact.sequence < answered.sequence;
                let result = if unchanged { "unchanged" } else { "registered" };
                // What the acceptance does not promise, such as that any cluster runs charts.
                let document = WorkloadDocument::decode(registered.document.clone()).unwrap_or_default();
                let reason = mesh_planner::Driver::of(&document).statement().to_owned();
                return Ok(Outcome { ok: true, result: result.into(), state: "accepted".into(), reason, ..outcome });
            }
            // One from before an answer that there is nothing new was outweighed since.
            Ok(stream_workload::Event::WorkloadRejected(rejected))
                if rejected.version == version && fact.sequence > answered.sequence =>
            {
                let (reason, hint) = problems(&rejected.problems);
                return Ok(Outcome { result: "rejected".into(), state: "rejected".into(), reason, hint, ..outcome });
            }
            _ => {}
        }
    }
}

/// Reasons and hints of what is wrong with a document, each joined to one text.
pub fn problems(problems: &[Problem]) -> (String, String) {
    let reasons: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.path, p.reason)).collect();
    let hints: Vec<&str> = problems.iter().map(|p| p.hint.as_str()).collect();
    (reasons.join("; "), hints.join("; "))
}

/// The name of a phase.
pub fn phase(phase: InstancePhase) -> String {
    match phase {
        InstancePhase::Unspecified => "-".to_owned(),
        other => other.as_str_name().to_owned(),
    }
}

/// Documents and instances of an owner, those in a state if one is given.
pub async fn list(client: &Client, owner: &str, state: &str) -> anyhow::Result<(Vec<WorkloadView>, Vec<InstanceView>)> {
    let (mut documents, mut instances, mut page_token) = (vec![], vec![], String::new());
    let mut queries = client.workloads().await?;
    loop {
        let request = ListRequest {
            owner: owner.to_owned(),
            page_size: 1_000,
            page_token,
            state: state.to_owned(),
            ..ListRequest::default()
        };
        let page = answer("list workloads", queries.list(request).await)?;
        documents.extend(page.workloads);
        instances.extend(page.instances);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok((documents, instances));
        }
    }
}

/// An instance by its id or the beginning of it, or the only one of an intent.
pub async fn instance(context: &Context<'_>, client: &Client, id: &str) -> anyhow::Result<InstanceView> {
    let request = GetRequest { owner: context.owner.clone(), id: id.to_owned() };
    match client.workloads().await?.get_instance(request).await {
        Ok(view) => return Ok(view.into_inner()),
        Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => {}
        Err(status) => return answer("get the instance", Err(status)),
    }
    let (_, instances) = list(client, &context.owner, "").await?;
    let mut found: Vec<InstanceView> =
        instances.into_iter().filter(|i| i.instance_id.starts_with(id) || i.intent_id == id).collect();
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (Some(_), others) => bail!("{} instances begin with {id}; write more of the id", others + 1),
        (None, _) => bail!("no document, instance or intent is called {id}; see `continuum workload list`"),
    }
}
