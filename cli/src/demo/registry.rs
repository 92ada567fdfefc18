//! The registry's chapter: a chart and its four checks, a hostile archive, and an instance that is upgraded, moved, taken
//! back and deleted.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use mesh_core::Stored;
use mesh_proto::{
    AnyEvent, EventSet as _,
    chart::UploadChart,
    deciders::stream_workload::Event,
    query::{CheckChartRequest, GetRequest},
    workload::{
        CheckOutcome, DeleteInstance, InstanceChanged, InstancePhase, MigrateInstance, RegisterWorkload,
        RollbackInstance, RunInstance, UpgradeInstance, WorkloadDocument,
    },
};
use tokio::time::{Instant, timeout_at};
use workload_manager::chart::{archive, sha256};

use super::{ANSWER_WAIT, STEP_LIMIT, Story, await_registered};
use crate::{
    args::ChartOptions,
    client::{Client, OWNER},
    commands::{chart, refusal},
    describe::describe,
    output::line,
};

/// Tells the chapter. `document` is registered already, and runs as a process.
pub(crate) async fn chapter(
    story: &mut Story,
    client: &Client,
    examples: &Path,
    document: &WorkloadDocument,
) -> anyhow::Result<()> {
    story.step("a Helm chart: uploaded, checked in four steps, registered");
    let options = ChartOptions { ingress: true, values: None };
    let chart = chart::read(&examples.join("web-chart"), &options)?;
    let web = chart.document;
    let upload = UploadChart { owner: OWNER.into(), sha256: sha256(&chart.archive), archive: chart.archive };
    ask(client, &upload).await?;
    let register = RegisterWorkload { owner: OWNER.into(), name: web.name.clone(), document: Some(web.clone()) };
    ask(client, &register).await?;
    let registered = await_registered(client, &web).await?;
    let of = format!("{}@{}", web.name, web.version);
    let request = GetRequest { owner: OWNER.into(), id: of.clone() };
    let view = client.workloads().await?.get_workload(request).await?.into_inner();
    let report = view.report.unwrap_or_default();
    line(chart::steps(&report));
    story.expect(&format!("{of} is {registered}"), registered == "accepted");
    let unchecked = report.steps.iter().filter(|s| s.outcome() == CheckOutcome::NotChecked);
    story.expect("what was not checked says why and what to do", {
        unchecked.clone().all(|s| !s.reason.is_empty() && !s.hint.is_empty())
    });
    let zeros = Bytes::from(vec![0; 5 << 20]);
    let files: BTreeMap<String, Bytes> = (0..8).map(|n| (n.to_string(), zeros.clone())).collect();
    let bomb = archive::pack("bomb", &files).context("pack an archive")?;
    let bytes = bomb.len();
    let request = CheckChartRequest { archive: bomb.into(), document: None };
    let report = client.workloads().await?.check_chart(request).await?.into_inner();
    let structure = report.steps.first().cloned().unwrap_or_default();
    let reason = structure.problems.first().map(|p| p.reason.clone()).unwrap_or_default();
    story.expect(
        &format!("an archive of {bytes} bytes is refused: {reason}"),
        structure.outcome() == CheckOutcome::CheckFailed && reason.contains("unpacks to more than"),
    );

    story.step("an instance is upgraded, moved, taken back and deleted");
    let next =
        WorkloadDocument { version: "1.1.0-demo".into(), description: "the next version".into(), ..document.clone() };
    let name = document.name.clone();
    ask(client, &RegisterWorkload { owner: OWNER.into(), name: name.clone(), document: Some(next.clone()) }).await?;
    await_registered(client, &next).await?;
    let id = uuid::Uuid::new_v4().to_string();
    let owner = || OWNER.to_owned();
    let workload = format!("{name}@{}", document.version);
    let run = RunInstance { owner: owner(), instance_id: id.clone(), workload, ..RunInstance::default() };
    let sequence = ask(client, &run).await?.sequence;
    let first = until(client, &id, sequence, "it runs", runs).await?;
    let workload = format!("{name}@{}", next.version);
    let upgrade = UpgradeInstance { owner: owner(), instance_id: id.clone(), workload, ..UpgradeInstance::default() };
    let sequence = ask(client, &upgrade).await?.sequence;
    let newer = |c: &InstanceChanged| runs(c) && c.generation > first.0.generation;
    let second = until(client, &id, sequence, "its next version runs", newer).await?;
    story.say(&second.1);
    let clusters = &client.endpoints.clusters;
    let to = clusters.iter().find(|c| **c != second.0.cluster_id).cloned().unwrap_or_default();
    let command = MigrateInstance { owner: owner(), instance_id: id.clone(), to_cluster_id: to.clone() };
    let sequence = ask(client, &command).await?.sequence;
    let there = |c: &InstanceChanged| runs(c) && c.cluster_id == to;
    let third = until(client, &id, sequence, "it runs there", there).await?;
    story.expect(&format!("it moved from {} to {to}, as asked", second.0.cluster_id), third.0.cluster_id == to);
    let command = RollbackInstance { owner: owner(), instance_id: id.clone(), revision: 0 };
    let sequence = ask(client, &command).await?.sequence;
    let back = |c: &InstanceChanged| runs(c) && c.generation > third.0.generation;
    until(client, &id, sequence, "its first version runs again", back).await?;
    let request = GetRequest { owner: owner(), id: id.clone() };
    let view = client.workloads().await?.get_instance(request.clone()).await?.into_inner();
    let revisions: Vec<String> = view.revisions.iter().map(|r| format!("{} {}", r.revision, r.workload)).collect();
    story.say(format!("revisions: {}", revisions.join(", ")));
    story.expect(
        "going back is a revision of its own",
        view.revision == 3 && view.workload.ends_with(&document.version),
    );
    ask(client, &DeleteInstance { owner: owner(), instance_id: id.clone() }).await?;
    let deadline = Instant::now() + STEP_LIMIT;
    let mut queries = client.workloads().await?;
    let mut gone = false;
    while !gone && Instant::now() < deadline {
        gone = queries.get_instance(request.clone()).await.is_err_and(|status| status.code() == tonic::Code::NotFound);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    story.expect("deleted, it has stopped and is forgotten", gone);
    Ok(())
}

fn runs(changed: &InstanceChanged) -> bool {
    changed.phase() == InstancePhase::Running && changed.to_cluster_id.is_empty()
}

/// Sends a command that must not be refused.
async fn ask(client: &Client, command: &dyn AnyEvent) -> anyhow::Result<Stored> {
    let answered = client.ask(command, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    match refusal(&answered) {
        Some((reason, hint)) => anyhow::bail!("{}: {reason}; {hint}", command.message()),
        None => Ok(answered),
    }
}

/// The first fact from here on that says so of an instance, with its words.
async fn until(
    client: &Client,
    id: &str,
    from: u64,
    what: &str,
    fits: impl Fn(&InstanceChanged) -> bool,
) -> anyhow::Result<(InstanceChanged, String)> {
    let deadline = Instant::now() + STEP_LIMIT;
    let mut tail = client.bus.log("WORKLOAD").tail(&format!("workload.*.*.{OWNER}.{id}"), from);
    loop {
        let late = || format!("{what} does not happen within {} s", STEP_LIMIT.as_secs());
        let fact = timeout_at(deadline, tail.next()).await.with_context(late)?.context("follow the instance")?;
        if let Ok(Event::InstanceChanged(changed)) = Event::decode(&fact.message, &fact.body)
            && fits(&changed)
        {
            return Ok((changed, describe(&fact)));
        }
    }
}
