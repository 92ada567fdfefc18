//! Chapter: a chart and its four checks, a hostile archive, and an instance that is upgraded, moved, rolled back and
//! deleted.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use chart::{archive, sha256};
use continuum::{
    commands::chart::{ChartOptions, read, steps},
    output::line,
};
use mesh_client::{ANSWER_WAIT, Client, Endpoints, OWNER};
use mesh_core::Stored;
use mesh_proto::{
    AnyEvent, EventSet as _,
    chart::UploadChart,
    deciders::stream_workload::Event,
    query::GetRequest,
    workload::{
        CheckChartRequest, CheckOutcome, DeleteInstance, InstanceChanged, InstancePhase, MigrateInstance,
        RollbackInstance, RunInstance, UpgradeInstance, WorkloadDocument,
    },
};
use mesh_why::describe::describe;
use tokio::time::{Instant, timeout_at};

use crate::{STEP_LIMIT, story::Story, workloads::register};

/// Shows it. `document` is registered already, and runs as a process.
pub(crate) async fn chapter(
    story: &mut Story,
    client: &Client,
    data_dir: &Path,
    examples: &Path,
    document: &WorkloadDocument,
) -> anyhow::Result<()> {
    story.chapter("charts are checked, and instances have a life cycle");
    story.step("a Helm chart: uploaded, checked in four steps, registered");
    let options = ChartOptions { ingress: true, values: None };
    let chart = read(&examples.join("web-chart"), &options)?;
    let web = chart.document;
    let upload = UploadChart { owner: OWNER.into(), sha256: sha256(&chart.archive), archive: chart.archive };
    ask(client, &upload).await?;
    let (_, registered) = register(client, &web).await?;
    let of = format!("{}@{}", web.name, web.version);
    let request = GetRequest { owner: OWNER.into(), id: of.clone() };
    let view = client.workloads().await?.get_workload(request).await?.into_inner();
    let report = view.report.unwrap_or_default();
    line(steps(&report));
    story.expect(&format!("{of} is {registered}"), registered == "accepted");
    let unchecked = report.steps.iter().filter(|s| s.outcome() == CheckOutcome::NotChecked);
    story.expect("a step that was not checked gives its reason and a hint", {
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
        structure.outcome() == CheckOutcome::CheckFailed && !structure.problems.is_empty(),
    );

    story.step("an instance is upgraded, moved, rolled back and deleted");
    let next =
        WorkloadDocument { version: "1.1.0-demo".into(), description: "the next version".into(), ..document.clone() };
    let name = document.name.clone();
    register(client, &next).await?;
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
    story.detail(&second.1);
    let clusters = Endpoints::read(data_dir)?.clusters;
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
    story.detail(format!("revisions: {}", revisions.join(", ")));
    story.expect("rolling back makes a new revision", view.revision == 3 && view.workload.ends_with(&document.version));
    ask(client, &DeleteInstance { owner: owner(), instance_id: id.clone() }).await?;
    let deadline = Instant::now() + STEP_LIMIT;
    let mut queries = client.workloads().await?;
    let mut gone = false;
    while !gone && Instant::now() < deadline {
        gone = queries.get_instance(request.clone()).await.is_err_and(|status| status.code() == tonic::Code::NotFound);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    story.expect("deleted, it has stopped and is no longer listed", gone);
    story.close(
        "a chart passed what could be checked, a hostile archive was stopped, and an instance went through its whole life",
        "what is wrong is found before anything runs, and every change of a running instance can be undone.",
    );
    Ok(())
}

fn runs(changed: &InstanceChanged) -> bool {
    changed.phase() == InstancePhase::Running && changed.to_cluster_id.is_empty()
}

async fn ask(client: &Client, command: &dyn AnyEvent) -> anyhow::Result<Stored> {
    Ok(client.ask(command, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?)
}

/// The first fact from a sequence on that `fits`, and its description.
async fn until(
    client: &Client,
    id: &str,
    from: u64,
    what: &str,
    fits: impl Fn(&InstanceChanged) -> bool,
) -> anyhow::Result<(InstanceChanged, String)> {
    let deadline = Instant::now() + STEP_LIMIT;
    let mut tail = client.bus().log("WORKLOAD").tail(&format!("workload.*.*.{OWNER}.{id}"), from);
    loop {
        let late = || format!("timed out after {} s waiting until {what}", STEP_LIMIT.as_secs());
        let fact = timeout_at(deadline, tail.next()).await.with_context(late)?.context("follow the instance")?;
        if let Ok(Event::InstanceChanged(changed)) = Event::decode(&fact.message, &fact.body)
            && fits(&changed)
        {
            return Ok((changed, describe(&fact)));
        }
    }
}
