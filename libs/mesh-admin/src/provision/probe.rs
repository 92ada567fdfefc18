//! Tries on a scratch stream what the mesh relies on.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{self, stream},
};
use futures::StreamExt as _;
use mesh_bus::PULL_GROUP;
use mesh_proto::contract::{DurableSpec, WRITE_PREFIX};
use serde_json::{Value, json};

use super::{
    ProvisionError,
    api::{Api, chain},
    config::{base_config, durable_config, write_through},
};

/// Prefix of scratch streams' names.
pub(super) const PROBE_PREFIX: &str = "PROBE_";

/// How long each step of the probe may take.
const PROBE_STEP: Duration = Duration::from_secs(5);

pub(super) async fn run(api: &Api) -> Result<(), ProvisionError> {
    let token = uuid::Uuid::new_v4().simple().to_string();
    let name = format!("{PROBE_PREFIX}{token}");
    let area = format!("probe-{token}");
    let outcome = probe_steps(api, &name, &area).await;
    // The scratch stream goes, whatever the outcome.
    let removed: Result<Value, _> = api.call(&format!("STREAM.DELETE.{name}"), &json!({})).await;
    outcome.map_err(|(what, detail)| ProvisionError::Unsupported { found: api.version(), what, detail })?;
    removed.map(|_| ())
}

type Step<T> = Result<T, (&'static str, String)>;

async fn probe_steps(api: &Api, name: &str, area: &str) -> Step<()> {
    let mut config = base_config(name.to_owned(), format!("{WRITE_PREFIX}{area}.>"), 1);
    config.max_bytes = 1024 * 1024;
    config.allow_atomic_publish = true;
    write_through(&mut config, area);
    let what = "a stream with atomic batches, a subject transform and republishing";
    let made: Result<stream::Info, _> = api.call(&format!("STREAM.CREATE.{name}"), &config).await;
    let made = made.map_err(|e| (what, chain(&e)))?.config;
    if !made.allow_atomic_publish || made.republish.is_none() || made.subject_transform.is_none() {
        return Err((what, "the server ignored one of them".to_owned()));
    }

    let what = "what is stored is published again under its own subject";
    let mut live = api.client.subscribe(format!("{area}.>")).await.map_err(|e| (what, e.to_string()))?;
    api.client.flush().await.map_err(|e| (what, e.to_string()))?;

    // In a cluster it takes a moment until the servers know of the stream and of who listens.
    let base = warm_up(api, area, &mut live).await.map_err(|e| (what, e))?;

    // nats-server 2.12.8 and 2.14.3 refuse valid batches with conditions on several entities.
    let what = "one atomic batch with conditions on several entities";
    let first = batch(api, area, &[("a", Some(0)), ("a", None), ("b", Some(0)), ("c", Some(0))]).await;
    let last = first.map_err(|e| (what, e))?.map_err(|e| (what, e))?;
    if last != base + 4 {
        return Err((what, format!("stored up to {last} instead of {}", base + 4)));
    }
    let second = batch(api, area, &[("c", Some(base + 4)), ("a", Some(base + 2)), ("b", Some(base + 3))]).await;
    second.map_err(|e| (what, e))?.map_err(|e| (what, e))?;
    let what = "a stale condition refuses a batch whole";
    let stale = batch(api, area, &[("a", Some(base + 6)), ("b", Some(base + 3))]).await;
    if stale.map_err(|e| (what, e))?.is_ok() {
        return Err((what, "it was stored".to_owned()));
    }
    let info: Result<stream::Info, _> = api.call(&format!("STREAM.INFO.{name}"), &json!({})).await;
    let stored = info.map_err(|e| (what, chain(&e)))?.state.last_sequence;
    if stored != base + 7 {
        return Err((what, format!("{stored} messages are stored instead of {}", base + 7)));
    }

    let what = "what is stored is published again under its own subject";
    let mut expected = base + 1;
    while expected <= base + 7 {
        let next = tokio::time::timeout(PROBE_STEP, live.next()).await;
        let message = next.ok().flatten().ok_or((what, format!("message {expected} did not arrive")))?;
        match stored_sequence(&message) {
            Some(sequence) if sequence <= base => {}
            Some(sequence) if sequence == expected && !message.subject.starts_with(WRITE_PREFIX) => expected += 1,
            other => return Err((what, format!("message {expected} arrived as {} with {other:?}", message.subject))),
        }
    }

    let what = "a durable pinned to one of its clients";
    let spec = DurableSpec { name: "probe".to_owned(), stream: name.to_owned(), filters: vec![format!("{area}.>")] };
    api.create_consumer(name, "probe", &durable_config(&spec), "create").await.map_err(|e| (what, chain(&e)))?;
    let consumer: jetstream::consumer::PullConsumer =
        api.context.get_consumer_from_stream("probe", name).await.map_err(|e| (what, e.to_string()))?;
    let messages = consumer.stream().group(PULL_GROUP).max_messages_per_batch(10).messages().await;
    let mut messages = messages.map_err(|e| (what, e.to_string()))?;
    let next = tokio::time::timeout(PROBE_STEP, messages.next()).await;
    let message =
        next.ok().flatten().ok_or((what, "no message arrived".to_owned()))?.map_err(|e| (what, e.to_string()))?;
    if message.headers.as_ref().is_none_or(|h| h.get("Nats-Pin-Id").is_none()) {
        return Err((what, "its messages carry no pin".to_owned()));
    }
    Ok(())
}

/// Publishes until a stored message is received; returns the last sequence then.
async fn warm_up(api: &Api, area: &str, live: &mut async_nats::Subscriber) -> Result<u64, String> {
    let deadline = tokio::time::Instant::now() + PROBE_STEP;
    let mut last = 0;
    loop {
        let request = async_nats::Request::new().payload("x".into()).timeout(Some(PROBE_STEP));
        match api.client.send_request(format!("{WRITE_PREFIX}{area}.tried.v1.first"), request).await {
            Ok(answer) => {
                let answer: Value = serde_json::from_slice(&answer.payload).map_err(|e| e.to_string())?;
                last = answer.get("seq").and_then(Value::as_u64).ok_or_else(|| answer.to_string())?;
                let received = tokio::time::timeout(Duration::from_millis(100), live.next()).await.ok().flatten();
                if received.is_some() {
                    return Ok(last);
                }
            }
            Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error.to_string()),
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(format!("{last} messages were stored, but none was received"));
        }
    }
}

fn stored_sequence(message: &async_nats::Message) -> Option<u64> {
    message.headers.as_ref()?.get("Nats-Sequence")?.as_str().parse().ok()
}

/// Publishes one atomic batch (ADR-50). The outer error is a failure to ask; the inner one the server's refusal.
async fn batch(api: &Api, area: &str, messages: &[(&str, Option<u64>)]) -> Result<Result<u64, String>, String> {
    let id = uuid::Uuid::new_v4().simple().to_string();
    for (position, (entity, expected)) in messages.iter().enumerate() {
        let last = position + 1 == messages.len();
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Batch-Id", id.as_str());
        headers.insert("Nats-Batch-Sequence", (position + 1).to_string());
        headers.insert("Nats-Msg-Id", format!("{id}-{position}"));
        if let Some(expected) = expected {
            headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
            headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", format!("{area}.*.*.{entity}"));
        }
        if last {
            headers.insert("Nats-Batch-Commit", "1");
        }
        let subject = format!("{WRITE_PREFIX}{area}.tried.v1.{entity}");
        if position > 0 && !last {
            let sent = api.client.publish_with_headers(subject, headers, "x".into()).await;
            sent.map_err(|e| e.to_string())?;
            continue;
        }
        let request = async_nats::Request::new().headers(headers).payload("x".into()).timeout(Some(PROBE_STEP));
        let answer = api.client.send_request(subject, request).await.map_err(|e| e.to_string())?;
        if answer.payload.is_empty() {
            continue;
        }
        let answer: Value = serde_json::from_slice(&answer.payload).map_err(|e| e.to_string())?;
        if let Some(error) = answer.get("error") {
            return Ok(Err(error.to_string()));
        }
        if last {
            return Ok(answer
                .get("seq")
                .and_then(Value::as_u64)
                .ok_or_else(|| "an answer without sequence".to_owned()));
        }
    }
    Ok(Err("the batch was never committed".to_owned()))
}
