//! The network's chapter: it is measured and exposed, and a placement changes because a measured latency did.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, anyhow};
use mesh_proto::{
    placement::{LatenciesNoted, PlacementDecided},
    workload::{RegisterWorkload, RunInstance, StopInstance, WorkloadDocument},
};
use prost::Message as _;
use tokio::time::{Instant, timeout_at};

use super::{ANSWER_WAIT, STEP_LIMIT, Story, await_registered, candidates};
use crate::{
    client::{Client, OWNER},
    commands::{alto, network},
    describe::{self, describe},
    document,
    output::{line, table},
    relay,
};

/// Milliseconds that probes to the edge are delayed.
const DELAY_MS: u64 = 60;

/// Tells the chapter.
pub(crate) async fn chapter(
    story: &mut Story,
    client: &Client,
    data_dir: &Path,
    examples: &Path,
) -> anyhow::Result<()> {
    story.step("the network is measured: the agents probe each other, one pair at a time");
    let deadline = Instant::now() + STEP_LIMIT;
    let map = loop {
        let map = network::map(client).await?;
        let settled = map.links.len() >= 6 && map.links.iter().all(|l| l.up && l.probes >= 2);
        if settled || Instant::now() > deadline {
            break map;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    line(table(&network::HEADER, network::rows(&map)));
    story.expect("every way between the three clusters is measured", map.links.len() >= 6);
    let costs = alto::resource(client, "costmap/numerical/delay-ow").await?;
    story.say(format!("ALTO at {}: one-way delay in microseconds", map.alto_url));
    line(table(&["from", "to", "delay-ow"], alto::table(&costs["cost-map"])));
    story.expect("any ALTO client can read it", costs["cost-map"].as_object().is_some_and(|rows| rows.len() >= 3));

    story.step("a workload that must be within 10 ms of the device's site");
    let value = document::read(&examples.join("network/tracker.workload.yaml"))?;
    let value = value.into_iter().next().context("the example holds no document")?;
    let body = mesh_proto::json::value_to_protobuf("continuum.workload.v1.WorkloadDocument", value)
        .map_err(|error| anyhow!("tracker.workload.yaml: {error}"))?;
    let tracker = WorkloadDocument::decode(body.as_slice())?;
    let register =
        RegisterWorkload { owner: OWNER.into(), name: tracker.name.clone(), document: Some(tracker.clone()) };
    client.ask(&register, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    let registered = await_registered(client, &tracker).await?;
    story.expect(&format!("{}@{} is {registered}", tracker.name, tracker.version), registered == "accepted");
    let log = client.bus.log("PLACEMENT");
    let mut tail = log.tail("placement.*.*.*", log.last_sequence().await.context("read the bus")? + 1);
    let instance = uuid::Uuid::new_v4().to_string();
    let workload = format!("{}@{}", tracker.name, tracker.version);
    let run = RunInstance { owner: OWNER.into(), instance_id: instance.clone(), workload, replicas: 1, release: None };
    client.ask(&run, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    let first = decided(story, &mut tail, &instance).await?;
    line(candidates(&first));
    story.expect("it goes to the edge, the smallest that is near enough", first.cluster_id == "edge");

    let control = relay::control(data_dir, &first.cluster_id);
    story.step(&format!("the way to {} becomes {DELAY_MS} ms slower ({})", first.cluster_id, control.display()));
    std::fs::write(&control, DELAY_MS.to_string()).with_context(|| format!("write {}", control.display()))?;
    let begun = Instant::now();
    let second = decided(story, &mut tail, &instance).await;
    let removed = std::fs::remove_file(&control);
    let second = second?;
    removed.with_context(|| format!("remove {}", control.display()))?;
    line(candidates(&second));
    story.expect(
        &format!("it moves to {}, {:.1} s after the network changed", second.cluster_id, begun.elapsed().as_secs_f64()),
        second.cluster_id != first.cluster_id && second.from_cluster_id == first.cluster_id,
    );
    let far = second.candidates.iter().find(|c| c.cluster_id == first.cluster_id);
    story.expect(
        "because of the measured latency, with its figure",
        far.is_some_and(|c| c.ruled_out.contains("latency to site device is")),
    );
    let stop = StopInstance { owner: OWNER.into(), instance_id: instance };
    client.ask(&stop, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    Ok(())
}

/// The next decision about the instance; shows what leads to it.
async fn decided(story: &Story, tail: &mut mesh_bus::Tail, instance: &str) -> anyhow::Result<PlacementDecided> {
    let deadline = Instant::now() + STEP_LIMIT;
    loop {
        let stored = timeout_at(deadline, tail.next())
            .await
            .map_err(|_| anyhow!("a decision: not seen within {} s", STEP_LIMIT.as_secs()))?
            .context("the bus is gone")?;
        let told = || {
            format!(
                "  {:6.2} s {:>17}  {}",
                story.begun.elapsed().as_secs_f64(),
                describe::writer(&stored),
                describe(&stored)
            )
        };
        if stored.event::<LatenciesNoted>()?.is_some() {
            line(told());
            continue;
        }
        match stored.event::<PlacementDecided>()? {
            Some(decided) if decided.instance_id == instance => {
                line(told());
                return Ok(decided);
            }
            _ => {}
        }
    }
}
