//! Repeats stored facts as JSON on `json.<subject>`, for people who have only a NATS client.
//!
//! - Consumes: the streams that the contract lists for `json-mirror`.
//! - Publishes: `json.<subject>`, not stored.
//! - Owns: nothing.
//! - Never: decides, keeps anything, or repeats the past.

#![allow(clippy::disallowed_methods, reason = "every stream is followed by a task")]

use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use mesh_core::Stored;

use mesh_kit::Mesh;

/// Between two rounds of messages.
const PACE: Duration = Duration::from_millis(20);

/// The mirror needs no configuration of its own.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

/// Joins the mesh; returns once every stream is followed.
pub async fn start(mesh: Mesh, _: Config) -> anyhow::Result<()> {
    let contract = mesh_proto::contract();
    let tails = contract.service(mesh.name()).map(|s| s.tails.clone()).unwrap_or_default();
    for stream in tails {
        let from = mesh.bus().log(&stream).last_sequence().await.with_context(|| format!("read end of {stream}"))? + 1;
        let mut tail = mesh.follow(&stream, from);
        let (bus, stopping) = (mesh.bus().clone(), mesh.stopping());
        mesh.spawn("mirror", async move {
            loop {
                let stored = tokio::select! {
                    stored = tail.next() => stored.context("follow")?,
                    () = stopping.cancelled() => return Ok(()),
                };
                let mut next = Some(stored);
                while let Some(stored) = next {
                    if let Some(body) = json(&stored)
                        && let Err(error) = bus.announce(&format!("json.{}", stored.subject), body.into()).await
                    {
                        tracing::debug!(error = &error as &dyn std::error::Error, "mirror");
                    }
                    next = tail.next().now_or_never().transpose().context("follow")?;
                }
                // What comes meanwhile goes out together.
                tokio::time::sleep(PACE).await;
            }
        });
    }
    Ok(())
}

/// A stored message as one JSON object: its CloudEvents attributes and, as `data`, its body.
fn json(stored: &Stored) -> Option<Vec<u8>> {
    let data = mesh_proto::json::to_value(&stored.message, &stored.protobuf().ok()?).ok()?;
    let event = serde_json::json!({
        "specversion": "1.0",
        "id": stored.id,
        "type": stored.message,
        "source": stored.source,
        "subject": stored.subject,
        "time": stored.time.to_string(),
        "sequence": stored.sequence,
        "data": data,
    });
    serde_json::to_vec(&event).ok()
}
