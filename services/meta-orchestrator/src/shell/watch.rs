//! The task around [`Liveness`]: tokens and time in, reports onto the bus.

use std::time::Duration;

use mesh_bus::{AliveStream, Samples};
use mesh_core::Outgoing;
use mesh_kit::{Mesh, View};
use mesh_proto::placement::ReportLiveness;
use tokio::time::MissedTickBehavior;

use crate::{
    config::Config,
    domain::{liveness::Liveness, placements::State, view::believed},
};

/// Compares what lives with what the planner believes until the process stops. A report that cannot be published is given
/// again later.
pub(crate) async fn watch(
    mesh: Mesh,
    config: Config,
    planned: View<State>,
    samples: Samples,
    mut alive: AliveStream,
) -> anyhow::Result<()> {
    let stopping = mesh.stopping();
    let mut liveness = Liveness::new(&config.domain, config.grace_ms.into(), mesh.now());
    let mut ticks = tokio::time::interval(Duration::from_millis(config.liveness_ms.max(1).into()));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            token = alive.next() => match token {
                Some((key, alive)) => liveness.saw(&key, alive, mesh.now()),
                None if stopping.is_cancelled() => return Ok(()),
                None => anyhow::bail!("the session that shows which clusters live was closed"),
            },
            _ = ticks.tick() => {}
        }
        if !samples.is_connected().await {
            liveness.blind(mesh.now());
        }
        let believed = planned.read(believed);
        for report in liveness.reports(&believed, mesh.now()) {
            let (domain, cluster_id) = (config.domain.clone(), report.cluster_id);
            let command = ReportLiveness { domain, cluster_id: cluster_id.clone(), alive: report.alive };
            let message = Outgoing::new(&command, report.id, mesh.now())?;
            tokio::select! {
                () = stopping.cancelled() => return Ok(()),
                published = mesh.bus().publish(&message) => match published {
                    Ok(_) => tracing::info!(cluster_id, alive = report.alive, "reported whether a cluster lives"),
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, cluster_id, "could not report whether a cluster lives");
                    }
                },
            }
        }
    }
}
