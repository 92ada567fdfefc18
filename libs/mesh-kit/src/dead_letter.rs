//! What a service could not handle, kept with its reason.

use std::time::Duration;

use mesh_core::{Outgoing, Stored};

use crate::mesh::Mesh;

/// Publishes an input as a dead letter, with its reason; asks until the bus has it.
pub(crate) async fn dead_letter(mesh: &Mesh, input: &Stored, reason: &str) {
    tracing::error!(subject = input.subject, stream = input.stream, sequence = input.sequence, reason, "dead letter");
    let letter = Outgoing {
        id: mesh_proto::derived_id(&["dead", mesh.name(), &input.stream, &input.sequence.to_string()]),
        message: input.message.clone(),
        stream: "DEAD".into(),
        subject: format!("dead.{}", input.subject),
        time: mesh.now(),
        cause: Some(input.cause_of()),
        traceparent: input.traceparent.clone(),
        world: vec![],
        body: input.body.clone(),
    };
    while let Err(error) = mesh.bus().publish_dead(&letter, reason, input.content_type.as_deref()).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "dead letter not stored yet");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
