//! TMF921's hub: who wants to be told of events subscribes, and is sent each of them in order.
//!
//! Any gateway delivers, one at a time: the one that holds the subscription's claim. An event may come twice, after a
//! gateway was lost between sending and reporting; it has the same `eventId` then.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Context as _;
use axum::response::Response;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use mesh_core::Stored;
use mesh_core::{Decider as _, Derived, Key, Projector};
use mesh_outbound::{Guard, Guarded, chain, listed};
use mesh_proto::{
    EventSet as _, Timestamp,
    deciders::subscriptions::Fact,
    derived_id,
    intent::IntentView,
    subscription::{ClaimDelivery, ReportDelivery, Subscribe, Subscribed, Unsubscribe},
};
use opentelemetry::KeyValue;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    config::Config,
    domain::{
        events::{self, Kind},
        forms::{self, HubInput},
        problem::{Kind as Wrong, Problem},
        subscriptions::{self, Live, State, Subscriptions},
        tmf,
    },
    gateway::{self, Asked, Gateway},
};

/// Live subscriptions of one owner, as far as this gateway has heard.
const PER_OWNER_MAX: usize = 16;
/// Subscriptions that are sent to at once.
const JOBS_MAX: usize = 32;
/// How long a callback may take.
const CALLBACK_LIMIT: Duration = Duration::from_secs(10);
/// A claim is renewed before the next event once it is so old: half of it is left for that event.
const RENEW_AFTER: Duration = Duration::from_secs(15);
/// One delivery reports after so long, so that what was taken is known.
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// Facts that are read at once.
const PAGE: usize = 256;
/// Intents whose past one delivery keeps in mind.
const FOLDS_MAX: usize = 256;
/// After a claim that another got first.
const PATIENCE: Duration = Duration::from_secs(1);

/// `[owner, id]`.
type Id = (String, String);

/// The subscriptions that hold: a view of `SUBSCRIPTION`.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    states: BTreeMap<Id, State>,
}

impl Projector for Hub {
    fn apply(&mut self, stored: &Stored) -> Vec<Derived> {
        let Ok(fact) = stored.protobuf().and_then(|body| Fact::decode(&stored.message, &body)) else { return vec![] };
        if matches!(fact, Fact::SubscriptionRefused(_)) {
            return vec![];
        }
        let key = Key::new(stored.subject.split('.').skip(3));
        let id = (key.token(0).to_owned(), key.token(1).to_owned());
        let state = Subscriptions.evolve(self.states.remove(&id).unwrap_or_default(), &fact, stored.time);
        if state.live.is_some() {
            self.states.insert(id, state);
        }
        vec![]
    }
}

impl Hub {
    fn get(&self, id: &Id) -> Option<Live> {
        self.states.get(id)?.live.clone()
    }

    fn all(&self) -> Vec<(Id, Live)> {
        self.states.iter().filter_map(|(id, state)| Some((id.clone(), state.live.clone()?))).collect()
    }

    fn count(&self, owner: &str) -> usize {
        self.states.keys().filter(|(of, _)| of == owner).count()
    }
}

/// Sends events, to addresses that people chose.
#[derive(Clone)]
pub(crate) struct Sender {
    guard: Guard,
    http: Guarded<Full<Bytes>>,
}

impl Sender {
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        let guard = Guard::new(listed(&config.callbacks_private), "callbacks_private");
        let http = guard.client(CALLBACK_LIMIT).context("read the system's certificates")?;
        Ok(Self { guard, http })
    }

    /// Sends one event; why it was not taken.
    async fn send(&self, callback: &str, body: Bytes) -> Result<(), String> {
        let uri: http::Uri = callback.parse().map_err(|_| "the callback is no address".to_owned())?;
        self.guard.admits(&uri)?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, "continuum")
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        match timeout(CALLBACK_LIMIT, self.http.request(request)).await {
            // What it says beside the status is nobody's; the connection is dropped with it.
            Ok(Ok(response)) if response.status().is_success() => Ok(()),
            Ok(Ok(response)) => Err(format!("it answered with status {}", response.status().as_u16())),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("it did not answer within {} s", CALLBACK_LIMIT.as_secs())),
        }
    }
}

impl Gateway {
    fn subscription(&self, asked: &Asked) -> Result<(Id, Live), Problem> {
        let id = (asked.owner()?, asked.id(0));
        let live = self.inner.hub.read(|hub| hub.get(&id));
        live.map(|live| (id.clone(), live)).ok_or_else(|| Problem::not_found(format!("subscription {}", id.1)))
    }

    /// Subscribes.
    pub(crate) async fn subscribe(&self, asked: &mut Asked) -> Result<Response, Problem> {
        let (owner, key) = (asked.owner()?, asked.idempotency_key()?);
        let input: HubInput = forms::form(asked.json())?;
        let wrong = |path: &str, refusal: mesh_proto::Refusal| Problem::field(path, refusal.reason, refusal.hint);
        if let Some(refusal) = subscriptions::callback_problem(&input.callback) {
            return Err(wrong("callback", refusal));
        }
        subscriptions::wanted(&input.query).map_err(|refusal| wrong("query", refusal))?;
        let admitted = input.callback.parse::<http::Uri>().map_err(|_| "it is no address".to_owned());
        if let Err(why) = admitted.and_then(|uri| self.inner.sender.guard.admits(&uri)) {
            return Err(Problem::field("callback", why, "give one that can be reached from everywhere"));
        }
        let id = match &key {
            Some(key) => derived_id(&["hub", &owner, key]),
            None => uuid::Uuid::now_v7().to_string(),
        };
        let known = self.inner.hub.read(|hub| (hub.get(&(owner.clone(), id.clone())), hub.count(&owner)));
        if known.0.is_none() && known.1 >= PER_OWNER_MAX {
            let detail = format!("{owner} has {} subscriptions, and {PER_OWNER_MAX} are allowed", known.1);
            return Err(Problem::new(Wrong::Conflict, detail, "end one that is not needed any more"));
        }
        let end = self.inner.mesh.bus().log("INTENT").last_sequence().await;
        let after = end.map_err(|_| gateway::unavailable("the bus does not answer"))?;
        let (callback, query) = (input.callback, input.query);
        let command_id = derived_id(&["subscribe", &owner, &id, &callback, &query]);
        let command = Subscribe { owner: owner.clone(), subscription_id: id.clone(), callback, query, after };
        let answered = self.inner.answers.ask(&command, &command_id, self.limit_of_commands()).await;
        let (answer, _) = answered.map_err(|problem| match (&key, problem.kind) {
            (Some(_), Wrong::Conflict) => Problem::new(
                Wrong::Replayed,
                format!("this key made subscription {id} otherwise, or it has ended"),
                "use another key for another subscription",
            ),
            _ => problem,
        })?;
        // So that whoever made it sees it here.
        self.inner.hub_once(|hub| hub.get(&(owner.clone(), id.clone())).is_some()).await;
        let made = answer.event::<Subscribed>().ok().flatten().unwrap_or_default();
        let shown = tmf::hub(&id, &made.callback, &made.query);
        let response = gateway::json(StatusCode::CREATED, &shown);
        Ok(gateway::with(response, header::LOCATION, &format!("{}/hub/{id}", tmf::BASE)))
    }

    /// Shows a subscription.
    pub(crate) fn show_subscription(&self, asked: &Asked) -> Result<Response, Problem> {
        let ((_, id), live) = self.subscription(asked)?;
        let mut shown = tmf::hub(&id, &live.callback, &live.query);
        shown["failures"] = live.failures.into();
        if live.failures > 0 {
            shown["failure"] = live.failure.into();
            shown["retryAt"] = Timestamp::from_millis(live.retry_ms).to_string().into();
        }
        Ok(gateway::json(StatusCode::OK, &shown))
    }

    /// Ends a subscription.
    pub(crate) async fn unsubscribe(&self, asked: &Asked) -> Result<Response, Problem> {
        let (subscribed, _) = self.subscription(asked)?;
        let (owner, subscription_id) = subscribed.clone();
        let command = Unsubscribe { owner, subscription_id };
        let command_id = uuid::Uuid::now_v7().to_string();
        match self.inner.answers.ask(&command, &command_id, self.limit_of_commands()).await {
            // Ended meanwhile: that is what was wanted.
            Ok(_) | Err(Problem { kind: Wrong::Conflict, .. }) => {}
            Err(problem) => return Err(problem),
        }
        // So that whoever ended it is sent nothing more from here, and does not see it any more.
        self.inner.hub_once(|hub| hub.get(&subscribed).is_none()).await;
        Ok(gateway::empty(StatusCode::NO_CONTENT))
    }
}

impl gateway::Inner {
    /// Waits until the view of subscriptions shows something, for a while.
    async fn hub_once(&self, shows: impl Fn(&Hub) -> bool) {
        let mut changes = self.hub.changes();
        let seen = async {
            loop {
                changes.borrow_and_update();
                if self.hub.read(&shows) || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // Else it does a little later.
        let _late = timeout(Duration::from_secs(2), seen).await;
    }
}

/// Delivers until the process stops.
pub(crate) async fn deliver(gateway: Gateway) -> anyhow::Result<()> {
    let mesh = gateway.inner.mesh.clone();
    let stopping = mesh.stopping();
    let log = mesh.bus().log("INTENT");
    let begun = log.last_sequence().await.context("read the end of INTENT")?;
    let subject = mesh_proto::contract().stream("INTENT").map(|s| s.subject.clone()).unwrap_or_default();
    let mut tail = log.tail(&subject, begun + 1);
    // The last fact of each owner that has subscribed; of the others nothing is kept.
    let mut heard: BTreeMap<String, u64> = BTreeMap::new();
    let mut changes = gateway.inner.hub.changes();
    let mut jobs: JoinSet<(Id, bool)> = JoinSet::new();
    let mut busy: BTreeSet<Id> = BTreeSet::new();
    let mut not_before: BTreeMap<Id, Instant> = BTreeMap::new();
    let sent = mesh.meter().u64_counter("gateway_events_total").with_description("events sent to callbacks").build();
    loop {
        changes.borrow_and_update();
        let all = gateway.inner.hub.read(Hub::all);
        let (now, now_ms) = (Instant::now(), mesh.now().as_millis());
        not_before.retain(|_, at| *at > now);
        let mut next = now + Duration::from_secs(60);
        for (id, live) in all {
            let target = heard.get(&id.0).copied().unwrap_or(begun);
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
            jobs.spawn(Delivery::new(gateway.clone(), id, target, sent.clone()).run());
        }
        tokio::select! {
            stored = tail.next() => {
                let stored = stored.context("follow intents")?;
                let owner = stored.subject.split('.').nth(3).unwrap_or_default();
                heard.insert(owner.to_owned(), stored.sequence);
                if heard.len() > 10_000 {
                    let subscribed: BTreeSet<String> =
                        gateway.inner.hub.read(Hub::all).into_iter().map(|((owner, _), _)| owner).collect();
                    heard.retain(|owner, _| subscribed.contains(owner));
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
    gateway: Gateway,
    id: Id,
    /// The log had been heard up to here: what is not read up to it is not there.
    target: u64,
    claimed: Instant,
    folds: BTreeMap<String, IntentView>,
    sent: opentelemetry::metrics::Counter<u64>,
}

impl Delivery {
    fn new(gateway: Gateway, id: Id, target: u64, sent: opentelemetry::metrics::Counter<u64>) -> Self {
        Self { gateway, id, target, claimed: Instant::now(), folds: BTreeMap::new(), sent }
    }

    fn holder(&self) -> String {
        self.gateway.inner.mesh.process().to_owned()
    }

    /// Was it this gateway's, to the end?
    async fn run(mut self) -> (Id, bool) {
        // Many gateways see the same fact at once: each waits a little, otherwise than the others, and looks again.
        let draw = derived_id(&[&self.holder(), &self.id.1]);
        let draw = u64::from_str_radix(draw.get(..2).unwrap_or_default(), 16).unwrap_or_default();
        tokio::time::sleep(Duration::from_millis(draw / 4)).await;
        let Some(live) = self.gateway.inner.hub.read(|hub| hub.get(&self.id)) else { return (self.id, false) };
        if !live.is_free(self.gateway.inner.mesh.now().as_millis())
            || live.through >= self.target
            || !self.claim().await
        {
            return (self.id, false);
        }
        let Some(live) = self.held().await else { return (self.id, false) };
        let (through, failure) = match self.send_all(&live).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), subscription = self.id.1, "events not sent");
                return (self.id, false);
            }
        };
        let (owner, subscription_id) = self.id.clone();
        let command = ReportDelivery { owner, subscription_id, holder: self.holder(), through, failure };
        let command_id = uuid::Uuid::now_v7().to_string();
        let limit = self.gateway.limit_of_commands();
        let reported = self.gateway.inner.answers.ask(&command, &command_id, limit).await;
        if let Err(problem) = &reported {
            // The claim runs out, and what was sent is sent again.
            tracing::warn!(problem = problem.detail, subscription = self.id.1, "delivery not reported");
        }
        (self.id, reported.is_ok())
    }

    async fn claim(&mut self) -> bool {
        let (owner, subscription_id) = self.id.clone();
        let command = ClaimDelivery { owner, subscription_id, holder: self.holder() };
        let command_id = uuid::Uuid::now_v7().to_string();
        let begun = Instant::now();
        let limit = self.gateway.limit_of_commands().min(RENEW_AFTER);
        let claimed = self.gateway.inner.answers.ask(&command, &command_id, limit).await.is_ok();
        if claimed {
            self.claimed = begun;
        }
        claimed
    }

    /// The subscription as it is under this claim: what others reported before is in.
    async fn held(&self) -> Option<Live> {
        let hub = &self.gateway.inner.hub;
        let mut changes = hub.changes();
        let holder = self.holder();
        let seen = async {
            loop {
                changes.borrow_and_update();
                let live = hub.read(|hub| hub.get(&self.id)).filter(|live| live.holder == holder);
                if live.is_some() || changes.changed().await.is_err() {
                    return live;
                }
            }
        };
        timeout(Duration::from_secs(5), seen).await.ok().flatten()
    }

    /// Sends what is due, in order: how far it came, and why not further.
    async fn send_all(&mut self, live: &Live) -> anyhow::Result<(u64, String)> {
        let begun = Instant::now();
        let wanted = subscriptions::wanted(&live.query).unwrap_or_else(|_| Kind::ALL.into_iter().collect());
        let log = self.gateway.inner.mesh.bus().log("INTENT");
        let stopping = self.gateway.inner.mesh.stopping();
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
                        anyhow::bail!("the claim went to another");
                    }
                    anyhow::ensure!(
                        self.gateway.inner.hub.read(|hub| hub.get(&self.id)).is_some(),
                        "it was unsubscribed"
                    );
                    let body = Bytes::from(events::body(kind, &view, &fact).to_string());
                    let taken = self.gateway.inner.sender.send(&live.callback, body).await;
                    self.sent.add(1, &[KeyValue::new("taken", taken.is_ok())]);
                    if let Err(failure) = taken {
                        return Ok((through, failure));
                    }
                }
                through = fact.sequence;
            }
        }
    }

    /// The intent of a fact as it was then, and what happened.
    async fn fold(&mut self, fact: &Stored) -> anyhow::Result<Option<(Kind, IntentView)>> {
        let intent_id = fact.subject.rsplit('.').next().unwrap_or_default().to_owned();
        if !self.folds.contains_key(&intent_id) {
            if self.folds.len() >= FOLDS_MAX {
                self.folds.clear();
            }
            let log = self.gateway.inner.mesh.bus().log("INTENT");
            let filter = format!("intent.*.*.{}.{intent_id}", self.id.0);
            let (mut view, mut from) = (IntentView::default(), 1);
            'past: while from < fact.sequence {
                let past = log.read(&filter, from, PAGE).await.context("read the past of an intent")?;
                for before in &past {
                    if before.sequence >= fact.sequence {
                        break 'past;
                    }
                    let _told_before = events::fold(&mut view, before);
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
