//! What happens on the bus about one intent and its instance.

use anyhow::{Context as _, anyhow};
use continuum::output::table;
use mesh_client::Client;
use mesh_core::Stored;
use mesh_proto::{
    EventSet as _,
    deciders::{stream_intent, stream_placement},
    intent::{FulfilmentStatus, IntentStateChanged, NotFulfilledState},
    placement::PlacementDecided,
};
use mesh_why::describe;
use tokio::sync::mpsc;

use crate::{STEP_LIMIT, story::Story};

/// Facts that wait to be shown.
const WAITING_MAX: usize = 1_000;

/// All facts of some streams, from now on, in one queue.
pub(crate) async fn follow(client: &Client, streams: &[&str]) -> anyhow::Result<mpsc::Receiver<Stored>> {
    let (sender, arrivals) = mpsc::channel(WAITING_MAX);
    for stream in streams {
        let log = client.bus().log(stream);
        let from = log.last_sequence().await.context("read the bus")? + 1;
        let mut tail = log.tail(&format!("{}.>", stream.to_lowercase()), from);
        let sender = sender.clone();
        tokio::spawn(async move {
            while let Ok(stored) = tail.next().await {
                if sender.send(stored).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(arrivals)
}

/// What happens on the bus about one intent and its instance, as it happens.
pub(crate) struct Happenings {
    arrivals: mpsc::Receiver<Stored>,
    /// Shown, and not yet what was looked for. Facts of one stream are in order, those of two streams are not: what the
    /// story looks for next may have come before what it has just found.
    shown: Vec<Stored>,
    intent: String,
    instance: String,
}

impl Happenings {
    /// Follows them from now on.
    pub(crate) async fn follow(client: &Client, intent: &str, instance: &str) -> anyhow::Result<Self> {
        let streams = ["INTENT", "VALIDATION", "WORKLOAD", "PLACEMENT", "ASSIGNMENT", "INSTANCE", "OBSERVATION"];
        let arrivals = follow(client, &streams).await?;
        Ok(Self { arrivals, shown: Vec::new(), intent: intent.to_owned(), instance: instance.to_owned() })
    }

    /// Shows facts until one is what `look` wants. What was shown before counts too, unless its stream has been followed
    /// beyond it.
    pub(crate) async fn until<T>(
        &mut self,
        story: &Story,
        what: &str,
        mut look: impl FnMut(&Stored) -> Option<T>,
    ) -> anyhow::Result<T> {
        let earlier = self.shown.iter().enumerate().find_map(|(at, stored)| Some((at, look(stored)?)));
        if let Some((at, found)) = earlier {
            self.leave(at);
            return Ok(found);
        }
        let deadline = tokio::time::Instant::now() + STEP_LIMIT;
        loop {
            let stored = tokio::time::timeout_at(deadline, self.arrivals.recv())
                .await
                .map_err(|_| anyhow!("timed out after {} s waiting for {what}", STEP_LIMIT.as_secs()))?
                .context("the connection to the bus ended")?;
            if !self.concerns(&stored) {
                continue;
            }
            story.fact(&stored);
            let found = look(&stored);
            self.shown.push(stored);
            if let Some(found) = found {
                self.leave(self.shown.len() - 1);
                return Ok(found);
            }
        }
    }

    /// Forgets the fact at this place and what its stream held before it.
    fn leave(&mut self, at: usize) {
        let stream = self.shown[at].stream.clone();
        let mut place = 0;
        self.shown.retain(|stored| {
            place += 1;
            place > at + 1 || stored.stream != stream
        });
    }

    fn concerns(&self, stored: &Stored) -> bool {
        if stored.subject.ends_with(&format!(".{}", self.intent))
            || stored.subject.ends_with(&format!(".{}", self.instance))
        {
            return true;
        }
        let body = mesh_proto::json::to_value(&stored.message, &stored.body).unwrap_or_default();
        body.get("instanceId").and_then(|id| id.as_str()) == Some(self.instance.as_str())
    }
}

fn state_change(stored: &Stored) -> Option<IntentStateChanged> {
    match stream_intent::Event::decode(&stored.message, &stored.body) {
        Ok(stream_intent::Event::IntentStateChanged(change)) => Some(change),
        _ => None,
    }
}

pub(crate) fn is_fulfilled(stored: &Stored) -> Option<IntentStateChanged> {
    state_change(stored).filter(|c| c.to.as_ref().is_some_and(|s| s.fulfilment_status() == FulfilmentStatus::Fulfilled))
}

pub(crate) fn is_in(state: NotFulfilledState) -> impl FnMut(&Stored) -> Option<IntentStateChanged> {
    move |stored| {
        state_change(stored).filter(|c| {
            c.to.as_ref().is_some_and(|s| {
                s.fulfilment_status() != FulfilmentStatus::Fulfilled && s.not_fulfilled_state() == state
            })
        })
    }
}

pub(crate) fn decision(stored: &Stored) -> Option<PlacementDecided> {
    match stream_placement::Event::decode(&stored.message, &stored.body) {
        Ok(stream_placement::Event::PlacementDecided(decided)) => Some(decided),
        _ => None,
    }
}

/// The candidates of a decision, for a person.
pub(crate) fn candidates(decided: &PlacementDecided) -> String {
    let rows = decided.candidates.iter().map(|c| {
        let predicted: Vec<String> = c.predicted.iter().map(|(name, value)| describe::value(name, *value)).collect();
        let chosen = c.cluster_id == decided.cluster_id;
        let verdict = match (chosen, c.ruled_out.is_empty()) {
            (true, _) => "chosen".to_owned(),
            (_, true) => "could".to_owned(),
            (_, false) => format!("ruled out: {}", c.ruled_out),
        };
        let score = if c.ruled_out.is_empty() { format!("{:.1}", c.score) } else { "-".to_owned() };
        vec![c.cluster_id.clone(), score, predicted.join(", "), verdict]
    });
    table(&["cluster", "score", "predicted", "verdict"], rows.collect())
}
