//! The baseline: hand-written `async_nats` code without ids, conditions or causes, and the same load through `mesh-bus`.
//! `bench bus` sets one against the other.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use async_nats::{
    Client, ConnectOptions, HeaderMap,
    jetstream::{
        self,
        consumer::{AckPolicy, DeliverPolicy, pull},
        stream::{Config, DiscardPolicy, PersistenceMode, Republish, SubjectTransform},
    },
};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream::FuturesUnordered};
use mesh_proto::{Timestamp, derived_id, intent::IntentSubmitted};
use tokio::task::JoinSet;

use mesh_bus::{Bus, Pull, Seed, Written};
use mesh_core::{Cause, Decision, Outgoing};

/// Messages in a hand-written batch, and in a hand-written pull.
pub(crate) const BATCH: usize = 1_000;
/// Bytes of a hand-written message's body; a decision's fact is encoded to about as many.
pub(crate) const BODY_BYTES: usize = 256;
/// Hand-written publishes that wait for their acknowledgements at once.
pub(crate) const WINDOW: usize = 256;
/// Entities over which hand-written messages are spread.
const SUBJECTS: usize = 10_000;
/// Longest silence of a hand-written consumer.
const SILENCE: Duration = Duration::from_secs(30);

/// A measurement could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub(crate) struct BaselineError {
    /// What was being done.
    pub(crate) doing: &'static str,
    /// Why it failed.
    #[source]
    pub(crate) source: Box<dyn Error + Send + Sync>,
}

fn failed<E: Into<Box<dyn Error + Send + Sync>>>(doing: &'static str) -> impl FnOnce(E) -> BaselineError {
    move |source| BaselineError { doing, source: source.into() }
}

/// A plain connection inside the account of the streams.
#[derive(Clone)]
pub(crate) struct Baseline {
    client: Client,
    context: jetstream::Context,
}

impl Baseline {
    /// Connects as the identity `provisioner`, the one user of the streams' account.
    pub(crate) async fn connect(url: &str, provisioner: &Seed) -> Result<Self, BaselineError> {
        let options = ConnectOptions::new().nkey(provisioner.expose().to_owned()).name("baseline");
        let client = options.connect(url).await.map_err(failed("connect the baseline"))?;
        let mut context = jetstream::new(client.clone());
        context.set_timeout(Duration::from_secs(10));
        Ok(Self { client, context })
    }

    /// Makes a stream of its own with the settings of a stream of facts; `name` in capitals.
    pub(crate) async fn make(&self, name: &str) -> Result<(), BaselineError> {
        let area = name.to_lowercase();
        let config = Config {
            name: name.to_owned(),
            subjects: vec![format!("w.{area}.>")],
            subject_transform: Some(SubjectTransform {
                source: format!("w.{area}.>"),
                destination: format!("{area}.>"),
            }),
            republish: Some(Republish {
                source: format!("{area}.*.v1.>"),
                destination: format!("{area}.{{{{wildcard(1)}}}}.v1.>"),
                headers_only: false,
            }),
            allow_direct: true,
            allow_atomic_publish: true,
            deny_delete: true,
            deny_purge: true,
            discard: DiscardPolicy::New,
            max_bytes: 8 << 30,
            ..Config::default()
        };
        self.context.create_stream(config).await.map_err(failed("make a stream"))?;
        Ok(())
    }

    /// Makes a stream of its own with the settings of a stream of samples; `name` in capitals.
    pub(crate) async fn make_samples(&self, name: &str) -> Result<(), BaselineError> {
        let config = Config {
            name: name.to_owned(),
            subjects: vec![format!("{}.>", name.to_lowercase())],
            allow_direct: true,
            discard: DiscardPolicy::Old,
            max_bytes: 2 << 30,
            persist_mode: Some(PersistenceMode::Async),
            ..Config::default()
        };
        self.context.create_stream(config).await.map_err(failed("make a stream"))?;
        Ok(())
    }

    /// One durable publish about an entity, with its acknowledgement.
    pub(crate) async fn publish(&self, stream: &str, entity: &str, body: Bytes) -> Result<(), BaselineError> {
        let subject = format!("w.{}.submitted.v1.local.{entity}", stream.to_lowercase());
        let sent = self.context.publish(subject, body).await.map_err(failed("publish"))?;
        sent.await.map_err(failed("await the acknowledgement"))?;
        Ok(())
    }

    /// Sequence of a stream's last message.
    pub(crate) async fn end(&self, stream: &str) -> Result<u64, BaselineError> {
        let stream = self.context.get_stream(stream).await.map_err(failed("read a stream"))?;
        Ok(stream.cached_info().state.last_sequence)
    }

    /// Messages a second, stored for this long with many acknowledgements under way.
    pub(crate) async fn store(
        &self,
        stream: &str,
        length: Duration,
        mut body: impl FnMut() -> Vec<u8>,
    ) -> Result<f64, BaselineError> {
        let subject = format!("{}.stored.v1.local", stream.to_lowercase());
        let (begun, mut count) = (Instant::now(), 0u64);
        let mut under_way = FuturesUnordered::new();
        while begun.elapsed() < length || !under_way.is_empty() {
            if begun.elapsed() < length && under_way.len() < WINDOW {
                let sent = self.context.publish(subject.clone(), Bytes::from(body())).await;
                under_way.push(sent.map_err(failed("publish"))?.into_future());
            } else if let Some(acknowledged) = under_way.next().await {
                acknowledged.map_err(failed("await an acknowledgement"))?;
                count += 1;
            }
        }
        Ok(count as f64 / begun.elapsed().as_secs_f64())
    }

    /// Time of one durable publish after another, each with its acknowledgement.
    pub(crate) async fn at_rest(&self, stream: &str, count: usize) -> Result<Vec<Duration>, BaselineError> {
        let body = Bytes::from(vec![7; BODY_BYTES]);
        let mut took = Vec::with_capacity(count);
        for index in 0..count {
            let begun = Instant::now();
            self.publish(stream, &format!("r{}", index % SUBJECTS), body.clone()).await?;
            took.push(begun.elapsed());
        }
        Ok(took)
    }

    /// Messages a second in atomic batches, one after the other.
    pub(crate) async fn saturate(&self, stream: &str, batches: usize) -> Result<f64, BaselineError> {
        let begun = Instant::now();
        for batch in 0..batches {
            self.batch(stream, batch * BATCH, BATCH).await?;
        }
        Ok((batches * BATCH) as f64 / begun.elapsed().as_secs_f64())
    }

    async fn batch(&self, stream: &str, first: usize, count: usize) -> Result<(), BaselineError> {
        let (area, body) = (stream.to_lowercase(), Bytes::from(vec![7; BODY_BYTES]));
        let id = uuid::Uuid::new_v4().simple().to_string();
        for index in 0..count {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Batch-Id", id.as_str());
            headers.insert("Nats-Batch-Sequence", (index + 1).to_string().as_str());
            let subject = format!("w.{area}.submitted.v1.local.r{}", (first + index) % SUBJECTS);
            if index + 1 < count {
                let sent = self.client.publish_with_headers(subject, headers, body.clone()).await;
                sent.map_err(failed("publish into a batch"))?;
                continue;
            }
            headers.insert("Nats-Batch-Commit", "1");
            let answer = self.client.request_with_headers(subject, headers, body.clone()).await;
            let answer = answer.map_err(failed("commit a batch"))?;
            let text = String::from_utf8_lossy(&answer.payload);
            if text.contains("\"error\"") || !text.contains("\"seq\"") {
                return Err(failed("commit a batch")(text.into_owned()));
            }
        }
        Ok(())
    }

    /// Messages a second pulled from a stream after a sequence, each acknowledged on its own. Only those of `filter`.
    pub(crate) async fn consume(
        &self,
        stream: &str,
        filter: &str,
        after: u64,
        count: usize,
    ) -> Result<f64, BaselineError> {
        let (name, mut messages) = self.pull(stream, filter, after).await?;
        let begun = Instant::now();
        for _ in 0..count {
            let message = next(&mut messages).await?;
            message.ack().await.map_err(failed("acknowledge"))?;
        }
        let rate = count as f64 / begun.elapsed().as_secs_f64();
        drop(messages);
        self.forget(stream, &name).await?;
        Ok(rate)
    }

    /// Messages a second, end to end: published in atomic batches to one stream, pulled, one message for each published
    /// in atomic batches to another, then acknowledged one by one.
    pub(crate) async fn end_to_end(&self, from: &str, to: &str, batches: usize) -> Result<f64, BaselineError> {
        let stream = self.context.get_stream(from).await.map_err(failed("read a stream"))?;
        let after = stream.cached_info().state.last_sequence;
        let (name, mut messages) = self.pull(from, &format!("{}.>", from.to_lowercase()), after).await?;
        let begun = Instant::now();
        let produce = async {
            for batch in 0..batches {
                self.batch(from, batch * BATCH, BATCH).await?;
            }
            Ok(())
        };
        let answer = async {
            for batch in 0..batches {
                let mut taken = Vec::with_capacity(BATCH);
                while taken.len() < BATCH {
                    taken.push(next(&mut messages).await?);
                }
                self.batch(to, batch * BATCH, BATCH).await?;
                for message in taken {
                    message.ack().await.map_err(failed("acknowledge"))?;
                }
            }
            self.client.flush().await.map_err(failed("flush acknowledgements"))
        };
        tokio::try_join!(produce, answer)?;
        let rate = (batches * BATCH) as f64 / begun.elapsed().as_secs_f64();
        drop(messages);
        self.forget(from, &name).await?;
        Ok(rate)
    }

    async fn pull(&self, stream: &str, filter: &str, after: u64) -> Result<(String, pull::Stream), BaselineError> {
        let name = format!("baseline-{}", uuid::Uuid::new_v4().simple());
        let config = pull::Config {
            durable_name: Some(name.clone()),
            ack_policy: AckPolicy::Explicit,
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
            filter_subject: filter.to_owned(),
            max_ack_pending: 10_000,
            ..pull::Config::default()
        };
        let stream = self.context.get_stream(stream).await.map_err(failed("read a stream"))?;
        let consumer = stream.create_consumer(config).await.map_err(failed("make a consumer"))?;
        let messages = consumer.stream().max_messages_per_batch(BATCH).heartbeat(Duration::from_secs(5)).messages();
        Ok((name, messages.await.map_err(failed("pull"))?))
    }

    async fn forget(&self, stream: &str, consumer: &str) -> Result<(), BaselineError> {
        let stream = self.context.get_stream(stream).await.map_err(failed("read a stream"))?;
        stream.delete_consumer(consumer).await.map_err(failed("delete a consumer"))?;
        Ok(())
    }
}

async fn next(messages: &mut pull::Stream) -> Result<jetstream::Message, BaselineError> {
    let next = tokio::time::timeout(SILENCE, messages.try_next()).await.map_err(failed("await a message"))?;
    next.map_err(failed("pull"))?.ok_or_else(|| failed("pull")("the consumer has ended"))
}

/// A decision of one fact about an intent, with its id, cause and condition, as a service would write it.
pub(crate) fn decision(intent_id: &str, version: u64, expected: u64) -> Result<Decision, BaselineError> {
    let id = derived_id(&[intent_id, &version.to_string()]);
    let cause = Cause { stream: "INTENT_ASK".to_owned(), sequence: version, id: id.clone() };
    let fact = IntentSubmitted {
        owner: "local".to_owned(),
        intent_id: intent_id.to_owned(),
        version,
        document: Bytes::from(vec![7; 190]),
        command_id: id.clone(),
        rolled_back_to: 0,
    };
    // Any time does: nothing that is measured looks at it.
    let time = Timestamp::from_millis(1_795_318_929_462);
    let message = Outgoing::new(&fact, id, time).map_err(failed("encode a fact"))?.caused_by(cause);
    Ok(Decision { entity: format!("intent.*.*.local.{intent_id}"), expected, messages: vec![message] })
}

async fn write(bus: &Bus, intent_id: &str, version: u64, expected: u64) -> Result<u64, BaselineError> {
    let decision = decision(intent_id, version, expected)?;
    match bus.writer("INTENT").write(decision).await.map_err(failed("write a decision"))? {
        Written::Stored { last } => Ok(last),
        Written::Stale { last } => Err(failed("write a decision")(format!("somebody else wrote {last:?}"))),
    }
}

/// Time of one decision after another, all of one intent of this name that has no fact yet. `bus` is of a service that
/// may write INTENT.
pub(crate) async fn decide_at_rest(bus: &Bus, intent_id: &str, count: usize) -> Result<Vec<Duration>, BaselineError> {
    let (mut took, mut last) = (Vec::with_capacity(count), 0);
    for version in 1..=count as u64 {
        let begun = Instant::now();
        last = write(bus, intent_id, version, last).await?;
        took.push(begun.elapsed());
    }
    Ok(took)
}

/// Decisions a second of `intents` intents at once, each deciding `each` times one after the other. Names begin with
/// `prefix`. `bus` is of a service that may write INTENT.
pub(crate) async fn decide_saturated(bus: &Bus, prefix: &str, intents: usize, each: u64) -> Result<f64, BaselineError> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for intent in 0..intents {
        let (bus, intent_id) = (bus.clone(), format!("{prefix}-{intent}"));
        tasks.spawn(async move {
            let mut last = 0;
            for version in 1..=each {
                last = write(&bus, &intent_id, version, last).await?;
            }
            Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(failed("run a writer"))??;
    }
    Ok(intents as f64 * each as f64 / begun.elapsed().as_secs_f64())
}

/// Messages a second read from a durable, acknowledged up to the last; gives the last sequence as well.
pub(crate) async fn consume(pull: &mut Pull, count: usize) -> Result<(f64, u64), BaselineError> {
    let begun = Instant::now();
    let mut last = 0;
    for _ in 0..count {
        let next = tokio::time::timeout(SILENCE, pull.next()).await.map_err(failed("await a message"))?;
        last = next.map_err(failed("pull"))?.sequence;
        pull.ack_through(last);
    }
    Ok((count as f64 / begun.elapsed().as_secs_f64(), last))
}
