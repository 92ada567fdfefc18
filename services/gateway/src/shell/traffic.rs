//! Says what went through to exposed workloads.

use std::{sync::PoisonError, time::Duration};

use mesh_bus::About;
use mesh_proto::{Event as _, READINGS_SIGNAL, derived_id, sample_key, telemetry::Readings};
use prost::Message as _;

use crate::shell::gateway::Gateway;

/// Shortest time between two readings.
const TURN_MIN: Duration = Duration::from_millis(100);
/// How long a pack may take to be sent.
const SEND_LIMIT: Duration = Duration::from_secs(1);

/// Says it in turns until the process stops. Without a session for samples it is not said.
///
/// # Errors
/// Never: the way to workloads does not depend on it.
pub(crate) async fn say(gateway: Gateway) -> anyhow::Result<()> {
    let (mesh, inner) = (&gateway.inner.mesh, &gateway.inner);
    let stopping = mesh.stopping();
    let opened = tokio::select! {
        opened = mesh.samples() => opened,
        () = stopping.cancelled() => return Ok(()),
    };
    let samples = match opened {
        Ok(samples) => samples,
        Err(error) => {
            tracing::info!(error = format!("{error:#}"), "traffic is not measured: no session for samples");
            return Ok(());
        }
    };
    let turn = Duration::from_millis(inner.config.traffic_ms.into()).max(TURN_MIN);
    loop {
        tokio::select! {
            () = tokio::time::sleep(turn) => {}
            () = stopping.cancelled() => return Ok(()),
        }
        let now = mesh.now();
        let packs = inner.traffic.lock().unwrap_or_else(PoisonError::into_inner).turn(mesh.process(), now);
        for (number, pack) in packs.iter().enumerate() {
            let key = sample_key(&pack.cluster_id, mesh.name(), READINGS_SIGNAL, &pack.cluster_id);
            let about = About {
                id: derived_id(&["traffic", mesh.process(), &now.as_nanos().to_string(), &number.to_string()]),
                message: Readings::MESSAGE.to_owned(),
                source: mesh.name().to_owned(),
                time: now,
                traceparent: None,
            };
            // What is not sent in time is dropped: the next turn says where the counters stand.
            let sent = tokio::time::timeout(SEND_LIMIT, samples.publish(&key, pack.encode_to_vec(), &about)).await;
            if !matches!(sent, Ok(Ok(()))) {
                tracing::debug!(key, "traffic not sent");
            }
        }
    }
}
