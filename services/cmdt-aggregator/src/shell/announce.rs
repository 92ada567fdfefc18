//! Sends the specification's message about each workload instance: at each change, and each minute.

use std::time::Duration;

use mesh_kit::{Mesh, View};
use mesh_proto::{
    Timestamp,
    cmdt::{message, subject},
    twin::Twin,
};

use crate::domain::{LongTraffic, Twins, schedule::Schedule};

/// Between two looks.
const PACE: Duration = Duration::from_millis(100);
/// Messages that are sent although nothing changed, at one look.
const DUE_MAX: usize = 256;

/// Sends messages until the process stops.
pub(crate) async fn run(mesh: Mesh, view: View<Twins>, period_ms: i64) -> anyhow::Result<()> {
    let (stopping, mut order, mut schedule) = (mesh.stopping(), 0, Schedule::default());
    loop {
        let now = mesh.now();
        let mut found;
        loop {
            let seen = order;
            (found, order) = view.read(|twins| twins.workloads_since(order));
            for (twin, traffic) in &found {
                send(&mesh, &mut schedule, twin, traffic.as_ref(), now).await;
            }
            if order == seen {
                break;
            }
        }
        for id in schedule.due(now, period_ms, DUE_MAX) {
            if let Some((twin, traffic)) = view.read(|twins| twins.workload_now(&id, now)) {
                send(&mesh, &mut schedule, &twin, traffic.as_ref(), now).await;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PACE) => {}
            () = stopping.cancelled() => return Ok(()),
        }
    }
}

async fn send(mesh: &Mesh, schedule: &mut Schedule, twin: &Twin, traffic: Option<&LongTraffic>, now: Timestamp) {
    let body = message(twin, traffic, now).to_string();
    if let Err(error) = mesh.bus().announce(&subject(twin), body.into()).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "message not sent");
    }
    schedule.sent(&twin.id, now);
}
