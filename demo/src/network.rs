//! Chapter: the network is measured and exposed, and a placement changes because a measured latency did.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, anyhow};
use continuum::{
    commands::{alto, network},
    output::{line, table},
};
use mesh_client::{ANSWER_WAIT, Client, OWNER, endpoints::probe_delay_file};
use mesh_proto::{
    placement::{LatenciesNoted, PlacementDecided, Why},
    workload::{RunInstance, StopInstance},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    STEP_LIMIT,
    facts::candidates,
    story::Story,
    workloads::{read, register},
};

/// Milliseconds that probes to the edge are delayed.
const DELAY_MS: u64 = 60;

/// Shows it.
pub(crate) async fn chapter(
    story: &mut Story,
    client: &Client,
    data_dir: &Path,
    examples: &Path,
) -> anyhow::Result<()> {
    story.chapter("a workload moves because the network changed");
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
    story.expect("every link between the three clusters is measured", map.links.len() >= 6);
    let costs = alto::resource(client, "costmap/numerical/delay-ow").await?;
    story.detail(format!("ALTO at {}: one-way delay in microseconds", map.alto_url));
    line(table(&["from", "to", "delay-ow"], alto::table(&costs["cost-map"])));
    story.expect("any ALTO client can read it", costs["cost-map"].as_object().is_some_and(|rows| rows.len() >= 3));

    story.step("a workload that must be within 10 ms of the device's site");
    let tracker = read(&examples.join("network/tracker.workload.yaml"))?;
    let (_, registered) = register(client, &tracker).await?;
    story.expect(&format!("{}@{} is {registered}", tracker.name, tracker.version), registered == "accepted");
    let log = client.bus().log("PLACEMENT");
    let mut tail = log.tail("placement.*.*.*", log.last_sequence().await.context("read the bus")? + 1);
    let instance = uuid::Uuid::new_v4().to_string();
    let workload = format!("{}@{}", tracker.name, tracker.version);
    let run = RunInstance { owner: OWNER.into(), instance_id: instance.clone(), workload, replicas: 1, release: None };
    client.ask(&run, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    let first = decided(story, &mut tail, &instance).await?;
    line(candidates(&first));
    story.expect("it goes to the edge, the smallest cluster that is near enough", first.cluster_id == "edge");

    let control = probe_delay_file(data_dir, &first.cluster_id);
    story.step(&format!(
        "probes to {} are delayed by {DELAY_MS} ms: a relay in front of its agent delays them, and nothing else ({})",
        first.cluster_id,
        control.display()
    ));
    std::fs::write(&control, DELAY_MS.to_string()).with_context(|| format!("write {}", control.display()))?;
    let begun = Instant::now();
    let second = decided(story, &mut tail, &instance).await;
    let removed = std::fs::remove_file(&control);
    let second = second?;
    removed.with_context(|| format!("remove {}", control.display()))?;
    line(candidates(&second));
    story.expect(
        &format!("it moves to {}, {:.1} s after probes were delayed", second.cluster_id, begun.elapsed().as_secs_f64()),
        second.cluster_id != first.cluster_id && second.from_cluster_id == first.cluster_id,
    );
    let far = second.candidates.iter().find(|c| c.cluster_id == first.cluster_id);
    story.expect(
        "the reason is a measured latency, and its old cluster is ruled out with the figure",
        second.why() == Why::Latency && far.is_some_and(|c| !c.ruled_out.is_empty()),
    );
    let stop = StopInstance { owner: OWNER.into(), instance_id: instance };
    client.ask(&stop, uuid::Uuid::now_v7().to_string(), ANSWER_WAIT).await?;
    story.close(
        &format!(
            "a measured latency missed its bound, and the workload moved from {} to {}",
            first.cluster_id, second.cluster_id
        ),
        "placements follow the network as it is measured; the relay delays probes only, as a congested link would.",
    );
    Ok(())
}

/// The next decision about the instance; shows what leads to it.
async fn decided(story: &Story, tail: &mut mesh_bus::Tail, instance: &str) -> anyhow::Result<PlacementDecided> {
    let deadline = Instant::now() + STEP_LIMIT;
    loop {
        let stored = timeout_at(deadline, tail.next())
            .await
            .map_err(|_| anyhow!("timed out after {} s waiting for a decision", STEP_LIMIT.as_secs()))?
            .context("the connection to the bus ended")?;
        if stored.event::<LatenciesNoted>()?.is_some() {
            story.fact(&stored);
            continue;
        }
        match stored.event::<PlacementDecided>()? {
            Some(decided) if decided.instance_id == instance => {
                story.fact(&stored);
                return Ok(decided);
            }
            _ => {}
        }
    }
}
