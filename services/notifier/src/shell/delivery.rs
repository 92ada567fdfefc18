//! Deliveries: what is due is sent to each subscriber, in order, by the one process that holds the subscription's claim.
//!
//! An event may come twice, after a process was lost between sending and reporting; it has the same `eventId` then.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use mesh_core::{Outgoing, Stored};
use mesh_kit::{Mesh, View};
use mesh_proto::{
    AnyEvent, derived_id,
    intent::IntentView,
    subscription::{ClaimDelivery, ReportDelivery},
};
use opentelemetry::{KeyValue, metrics::Counter};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    domain::{
        events::{self, Kind},
        hub::{Hub, Id},
        subscriptions::{self, Claim, Live},
    },
    shell::sender::Sender,
};

/// Subscriptions that are sent to at once.
const JOBS_MAX: usize = 32;
/// A claim older than this is renewed before the next event: half of it is left for that event.
const RENEW_AFTER: Duration = Duration::from_secs(15);
/// A delivery reports at the latest after this time, so that what was accepted becomes known.
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// How long a command may wait for its answer.
const COMMAND_LIMIT: Duration = Duration::from_secs(15);
/// Facts that are read at once.
const PAGE: usize = 256;
/// Intents whose past one delivery keeps in memory.
const FOLDS_MAX: usize = 256;
/// Wait after a claim that another process got first.
const PATIENCE: Duration = Duration::from_secs(1);
/// Owners whose last fact is remembered; beyond, those without subscriptions are forgotten.
const OWNERS_MAX: usize = 10_000;

/// What deliveries need.
#[derive(Clone)]
pub(crate) struct Notifier {
    pub(crate) mesh: Mesh,
    pub(crate) hub: View<Hub>,
    pub(crate) sender: Sender,
}

/// Delivers until the process stops.
pub(crate) async fn run(notifier: Notifier) -> anyhow::Result<()> {
    let mesh = notifier.mesh.clone();
    let stopping = mesh.stopping();
    let begun = mesh.bus().log("INTENT").last_sequence().await.context("read the end of INTENT")?;
    let mut tail = mesh.follow("INTENT", begun + 1);
    // Sequence of the last fact of each owner.
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    let mut changes = notifier.hub.changes();
    let mut jobs: JoinSet<(Id, bool)> = JoinSet::new();
    let mut busy: BTreeSet<Id> = BTreeSet::new();
    let mut not_before: BTreeMap<Id, Instant> = BTreeMap::new();
    let sent = mesh.meter().u64_counter("notifier_events_total").with_description("events sent to callbacks").build();
    loop {
        changes.borrow_and_update();
        let all: Vec<(Id, Live)> =
            notifier.hub.read(|hub| hub.all().map(|(id, live)| (id.clone(), live.clone())).collect());
        let (now, now_ms) = (Instant::now(), mesh.now().as_millis());
        not_before.retain(|_, at| *at > now);
        let mut next = now + Duration::from_secs(60);
        for (id, live) in all {
            let target = last.get(&id.0).copied().unwrap_or(begun);
            if target <= live.through || busy.contains(&id) || jobs.len() >= JOBS_MAX {
                continue;
            }
            let free_ms = if live.holder.is_empty() { live.retry_ms } else { live.retry_ms.max(live.until_ms) };
            let wait = Duration::from_millis(u64::try_from(free_ms - now_ms).unwrap_or_default());
            let at = not_before.get(&id).copied().unwrap_or(now).max(now + wait);
            if at > now {
                next = next.min(at);
                continue;
            }
            busy.insert(id.clone());
            jobs.spawn(Delivery::new(notifier.clone(), id, target, sent.clone()).run());
        }
        tokio::select! {
            stored = tail.next() => {
                let stored = stored.context("follow intents")?;
                let owner = stored.subject.split('.').nth(3).unwrap_or_default();
                last.insert(owner.to_owned(), stored.sequence);
                if last.len() > OWNERS_MAX {
                    notifier.hub.read(|hub| last.retain(|owner, _| hub.has_owner(owner)));
                }
            }
            changed = changes.changed() => changed.context("follow subscriptions")?,
            Some(ended) = jobs.join_next() => {
                let (id, done) = ended.context("deliver")?;
                busy.remove(&id);
                if !done {
                    not_before.insert(id, Instant::now() + PATIENCE);
                }
            }
            () = sleep_until(next) => {}
            () = stopping.cancelled() => break,
        }
    }
    // Each sees that the process stops, and reports what was taken.
    while jobs.join_next().await.is_some() {}
    Ok(())
}

/// One claim and what is sent under it.
struct Delivery {
    notifier: Notifier,
    id: Id,
    /// Sequence of INTENT that had been stored when the delivery began: everything due up to it is read.
    target: u64,
    claimed: Instant,
    folds: BTreeMap<String, IntentView>,
    sent: Counter<u64>,
}

impl Delivery {
    fn new(notifier: Notifier, id: Id, target: u64, sent: Counter<u64>) -> Self {
        Self { notifier, id, target, claimed: Instant::now(), folds: BTreeMap::new(), sent }
    }

    fn holder(&self) -> String {
        self.notifier.mesh.process().to_owned()
    }

    fn live(&self) -> Option<Live> {
        self.notifier.hub.read(|hub| hub.get(&self.id).cloned())
    }

    /// Claims, sends and reports; false if another process was first, or something failed.
    async fn run(mut self) -> (Id, bool) {
        // Several processes see the same fact at once: each waits for a time of its own, then looks again.
        let draw = derived_id(&[&self.holder(), &self.id.1]);
        let draw = u64::from_str_radix(draw.get(..2).unwrap_or_default(), 16).unwrap_or_default();
        tokio::time::sleep(Duration::from_millis(draw / 4)).await;
        let Some(live) = self.live() else { return (self.id, false) };
        let is_due = live.is_free(self.notifier.mesh.now().as_millis()) && live.through < self.target;
        if !is_due || !self.claim().await {
            return (self.id, false);
        }
        let Some(live) = self.live() else { return (self.id, false) };
        let (through, failure) = match self.send_all(&live).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), subscription = self.id.1, "events not sent");
                return (self.id, false);
            }
        };
        let reported = self.report(through, failure).await;
        if !reported {
            // The claim expires, and what was sent is sent again.
            tracing::warn!(subscription = self.id.1, "delivery not reported; its events will be sent again");
        }
        (self.id, reported)
    }

    async fn publish(&self, command: &dyn AnyEvent) -> bool {
        let id = uuid::Uuid::now_v7().to_string();
        let message = match Outgoing::new(command, id, self.notifier.mesh.now()) {
            Ok(message) => message,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "command not encoded");
                return false;
            }
        };
        match timeout(COMMAND_LIMIT, self.notifier.mesh.bus().publish(&message)).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "command not stored");
                false
            }
            Err(_) => false,
        }
    }

    /// Follows the subscription until `settled` has an answer; `None` if it has none within the limit.
    async fn follow<T>(&self, settled: impl Fn(Option<&Live>) -> Option<T>) -> Option<T> {
        let mut changes = self.notifier.hub.changes();
        let settled = async {
            loop {
                changes.borrow_and_update();
                let answer = self.notifier.hub.read(|hub| settled(hub.get(&self.id)));
                if answer.is_some() || changes.changed().await.is_err() {
                    return answer;
                }
            }
        };
        timeout(COMMAND_LIMIT, settled).await.ok().flatten()
    }

    /// Claims the subscription, or renews the claim; true once this process holds it.
    async fn claim(&mut self) -> bool {
        let (begun, holder) = (Instant::now(), self.holder());
        let Some(before) = self.live() else { return false };
        let (owner, subscription_id) = self.id.clone();
        if !self.publish(&ClaimDelivery { owner, subscription_id, holder: holder.clone() }).await {
            return false;
        }
        let now_ms = || self.notifier.mesh.now().as_millis();
        let outcome = self.follow(|live| match before.outcome(live, &holder, now_ms()) {
            Claim::Open => None,
            Claim::Held => Some(true),
            Claim::Lost => Some(false),
        });
        let held = outcome.await.unwrap_or(false);
        if held {
            self.claimed = begun;
        }
        held
    }

    /// Reports how far the delivery came; true once the claim is over.
    async fn report(&self, through: u64, failure: String) -> bool {
        let holder = self.holder();
        let (owner, subscription_id) = self.id.clone();
        let command = ReportDelivery { owner, subscription_id, holder: holder.clone(), through, failure };
        self.publish(&command).await
            && self.follow(|live| live.is_none_or(|live| live.holder != holder).then_some(())).await.is_some()
    }

    /// Sends what is due, in order. Returns how far it came, and why it stopped there if a call failed.
    async fn send_all(&mut self, live: &Live) -> anyhow::Result<(u64, String)> {
        let begun = Instant::now();
        let wanted = subscriptions::wanted(&live.query).unwrap_or_else(|_| Kind::ALL.into_iter().collect());
        let log = self.notifier.mesh.bus().log("INTENT");
        let stopping = self.notifier.mesh.stopping();
        let filter = format!("intent.*.*.{}.*", self.id.0);
        let mut through = live.through;
        loop {
            let page = log.read(&filter, through + 1, PAGE).await.context("read the facts of intents")?;
            if page.is_empty() {
                return Ok((through.max(self.target), String::new()));
            }
            for fact in page {
                let kind = self.fold(&fact).await?;
                if let Some((kind, view)) = kind.filter(|(kind, _)| wanted.contains(kind)) {
                    if stopping.is_cancelled() || begun.elapsed() > RUN_LIMIT {
                        return Ok((through, String::new()));
                    }
                    if self.claimed.elapsed() > RENEW_AFTER && !self.claim().await {
                        anyhow::bail!("another process has taken over the claim");
                    }
                    anyhow::ensure!(self.live().is_some(), "the subscription has ended");
                    let body = Bytes::from(events::body(kind, &view, &fact).to_string());
                    let taken = self.notifier.sender.send(&live.callback, body).await;
                    self.sent.add(1, &[KeyValue::new("taken", taken.is_ok())]);
                    if let Err(failure) = taken {
                        return Ok((through, failure));
                    }
                }
                through = fact.sequence;
            }
        }
    }

    /// Folds a fact into its intent; returns what happened and the intent as it was then, if that is an event.
    async fn fold(&mut self, fact: &Stored) -> anyhow::Result<Option<(Kind, IntentView)>> {
        let intent_id = fact.subject.rsplit('.').next().unwrap_or_default().to_owned();
        if !self.folds.contains_key(&intent_id) {
            if self.folds.len() >= FOLDS_MAX {
                self.folds.clear();
            }
            let log = self.notifier.mesh.bus().log("INTENT");
            let filter = format!("intent.*.*.{}.{intent_id}", self.id.0);
            let (mut view, mut from) = (IntentView::default(), 1);
            'past: while from < fact.sequence {
                let past = log.read(&filter, from, PAGE).await.context("read the past of an intent")?;
                for before in &past {
                    if before.sequence >= fact.sequence {
                        break 'past;
                    }
                    let _sent_before = events::fold(&mut view, before);
                }
                match past.last() {
                    Some(last) => from = last.sequence + 1,
                    None => break,
                }
            }
            self.folds.insert(intent_id.clone(), view);
        }
        let view = self.folds.entry(intent_id).or_default();
        Ok(events::fold(view, fact).map(|kind| (kind, view.clone())))
    }
}
