//! Subscriptions to an owner's events by HTTP (TMF921's hub). An entity is one subscription, `[owner, id]`.
//!
//! Any notifier may send what is due, and one does: the one that holds the claim. A claim expires by itself, so nothing
//! stays with a process that is gone; what it had sent and not reported is sent again by the next.

use std::collections::BTreeSet;

use mesh_core::{Decider, Envelope, Key, Trigger};
use mesh_proto::{
    Refusal, Timestamp,
    deciders::subscriptions::{Fact, Input, NAME},
    is_key,
    subscription::{
        ClaimDelivery, DeliveryClaimed, DeliveryReported, ReportDelivery, Subscribe, Subscribed, Unsubscribed,
    },
};
use serde::{Deserialize, Serialize};

use super::events::Kind;

/// How long a claim holds, milliseconds.
pub const CLAIM_MS: i64 = 30_000;
/// The first wait after a failure, milliseconds; each further one doubles it.
const RETRY_MIN_MS: i64 = 1_000;
/// The longest wait, milliseconds.
const RETRY_MAX_MS: i64 = 300_000;
/// Failures in a row that end a subscription: some 80 minutes.
pub const FAILURES_MAX: u32 = 24;
/// Bytes of a callback.
const CALLBACK_MAX: usize = 2_048;
/// Bytes of a query.
const QUERY_MAX: usize = 512;
/// Characters that are kept of why a delivery failed.
const FAILURE_MAX: usize = 512;

/// The decider of subscriptions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subscriptions;

/// One subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What is subscribed to, once it is.
    pub live: Option<Live>,
    /// It was ended: its id does not come back.
    pub ended: bool,
}

/// A subscription that holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Where events are sent.
    pub callback: String,
    /// Which, as it was given.
    pub query: String,
    /// Facts of INTENT up to this sequence are done with.
    pub through: u64,
    /// The process that holds the claim; empty if none does.
    pub holder: String,
    /// When the claim ends, milliseconds since 1970.
    pub until_ms: i64,
    /// Failures in a row.
    pub failures: u32,
    /// Not sooner, milliseconds since 1970.
    pub retry_ms: i64,
    /// Why the last delivery failed.
    pub failure: String,
}

/// What became of a claim, as far as the facts show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// No fact has answered it yet.
    Open,
    /// It holds.
    Held,
    /// Another process was first, or the subscription ended.
    Lost,
}

impl Live {
    /// What became of a claim that `holder` made when the subscription was `self`, now that it is `now`.
    pub fn outcome(&self, now: Option<&Self>, holder: &str, now_ms: i64) -> Claim {
        match now {
            None => Claim::Lost,
            Some(now) if now.holder == holder && now.until_ms > self.until_ms => Claim::Held,
            Some(now) if now.holder == holder => Claim::Open,
            Some(now) if now.is_free(now_ms) => Claim::Open,
            Some(_) => Claim::Lost,
        }
    }

    /// Whether a process may claim it at this time.
    pub fn is_free(&self, now_ms: i64) -> bool {
        now_ms >= self.retry_ms && (self.holder.is_empty() || now_ms >= self.until_ms)
    }
}

/// The events that a query asks for: `eventType=A,B`, or all when it is empty.
///
/// # Errors
/// When it cannot be understood.
pub fn wanted(query: &str) -> Result<BTreeSet<Kind>, Refusal> {
    let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    let hint = || format!("use eventType= with some of {}, separated by commas, or no query for all", known.join(", "));
    let shown = |text: &str| text.chars().take(64).collect::<String>();
    if query.len() > QUERY_MAX {
        return Err(Refusal::too_large(format!("the query has more than {QUERY_MAX} bytes"), hint()));
    }
    let query = query.trim().trim_start_matches('?');
    if query.is_empty() {
        return Ok(Kind::ALL.into_iter().collect());
    }
    let mut found = BTreeSet::new();
    for part in query.split('&') {
        let Some(names) = part.strip_prefix("eventType=") else {
            return Err(Refusal::invalid(format!("the query {:?} is not understood", shown(part)), hint()));
        };
        for name in names.split(',') {
            let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name.trim()) else {
                return Err(Refusal::invalid(format!("{:?} is not an event type", shown(name)), hint()));
            };
            found.insert(kind);
        }
    }
    Ok(found)
}

/// What is wrong with a callback, as far as can be told without asking.
pub fn callback_problem(callback: &str) -> Option<Refusal> {
    let hint = "give an address that begins with https:// or http:// and names a host";
    if callback.len() > CALLBACK_MAX {
        return Some(Refusal::too_large(format!("the callback has more than {CALLBACK_MAX} bytes"), hint));
    }
    let uri = callback.parse::<http::Uri>().ok();
    let good = uri.as_ref().is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
            && uri.host().is_some_and(|host| !host.is_empty())
    });
    (!good).then(|| {
        Refusal::invalid(
            format!("{:?} is not a valid callback address", callback.chars().take(64).collect::<String>()),
            hint,
        )
    })
}

/// Key, id of the command and its time, which every answer names.
struct About<'a> {
    owner: String,
    subscription_id: String,
    at: Timestamp,
    command_id: &'a str,
}

impl About<'_> {
    fn subscribe(self, state: &State, wanted_: &Subscribe) -> Result<Fact, Refusal> {
        if state.ended {
            return Err(Refusal::state("this subscription has ended", "subscribe again under a new id"));
        }
        if let Some(problem) = callback_problem(&wanted_.callback) {
            return Err(problem);
        }
        wanted(&wanted_.query)?;
        let after = match &state.live {
            None => wanted_.after,
            Some(live) if live.callback == wanted_.callback && live.query == wanted_.query => live.through,
            Some(_) => return Err(Refusal::exists("this id has another subscription", "subscribe under another id")),
        };
        Ok(Subscribed {
            owner: self.owner,
            subscription_id: self.subscription_id,
            callback: wanted_.callback.clone(),
            query: wanted_.query.clone(),
            after,
            command_id: self.command_id.to_owned(),
        }
        .into())
    }

    fn end(self, reason: String) -> Fact {
        let (owner, subscription_id) = (self.owner, self.subscription_id);
        Unsubscribed { owner, subscription_id, reason, command_id: self.command_id.to_owned() }.into()
    }

    fn claim(self, live: &Live, claim: &ClaimDelivery) -> Result<Fact, Refusal> {
        let now_ms = self.at.as_millis();
        if !is_key(&claim.holder) {
            return Err(Refusal::invalid("the holder has no name", "use 1 to 64 letters, digits, `_` and `-`"));
        }
        if now_ms < live.retry_ms {
            let when = Timestamp::from_millis(live.retry_ms);
            return Err(Refusal::unavailable(
                format!("the last delivery failed; not before {when}"),
                "wait until then",
            ));
        }
        if live.holder != claim.holder && !live.is_free(now_ms) {
            let when = Timestamp::from_millis(live.until_ms);
            return Err(Refusal::in_use(format!("{} holds it until {when}", live.holder), "leave it to that one"));
        }
        Ok(DeliveryClaimed {
            owner: self.owner,
            subscription_id: self.subscription_id,
            holder: claim.holder.clone(),
            until: Some(self.at.plus_millis(CLAIM_MS)),
            command_id: self.command_id.to_owned(),
        }
        .into())
    }

    fn report(self, live: &Live, report: &ReportDelivery) -> Result<Fact, Refusal> {
        if live.holder != report.holder || live.holder.is_empty() {
            return Err(Refusal::state("the claim is not held by this process", "claim it first"));
        }
        let through = live.through.max(report.through);
        let failure: String = report.failure.chars().take(FAILURE_MAX).collect();
        // A subscriber that accepted something since the last failure is there.
        let before = if through > live.through { 0 } else { live.failures };
        let failures = if failure.is_empty() { 0 } else { before.saturating_add(1) };
        if failures >= FAILURES_MAX {
            return Ok(self.end(format!("{FAILURES_MAX} deliveries in a row failed, the last: {failure}")));
        }
        let wait = RETRY_MIN_MS.saturating_mul(1_i64.checked_shl(failures.saturating_sub(1)).unwrap_or(i64::MAX));
        Ok(DeliveryReported {
            owner: self.owner,
            subscription_id: self.subscription_id,
            through,
            failures,
            failure,
            retry_at: (failures > 0).then(|| self.at.plus_millis(wait.clamp(RETRY_MIN_MS, RETRY_MAX_MS))),
            command_id: self.command_id.to_owned(),
        }
        .into())
    }
}

impl Decider for Subscriptions {
    const NAME: &'static str = NAME;
    type State = State;
    type ReadModel = ();
    type Input = Input;
    type Fact = Fact;

    fn initial(&self) -> State {
        State::default()
    }

    fn concerns(&self, input: &Input, (): &()) -> Vec<Key> {
        let (owner, id) = match input {
            Input::Subscribe(m) => (&m.owner, &m.subscription_id),
            Input::Unsubscribe(m) => (&m.owner, &m.subscription_id),
            Input::ClaimDelivery(m) => (&m.owner, &m.subscription_id),
            Input::ReportDelivery(m) => (&m.owner, &m.subscription_id),
        };
        vec![Key::new([owner, id])]
    }

    fn decide(&self, key: &Key, state: &State, (): &(), envelope: &Envelope<Input>) -> Result<Vec<Fact>, Refusal> {
        let Trigger::Event(input) = &envelope.trigger else { return Ok(vec![]) };
        let about = About {
            owner: key.token(0).to_owned(),
            subscription_id: key.token(1).to_owned(),
            at: envelope.at,
            command_id: &envelope.id,
        };
        if let Input::Subscribe(m) = input {
            return about.subscribe(state, m).map(|fact| vec![fact]);
        }
        let Some(live) = &state.live else {
            let reason = format!("there is no subscription {}, or it has ended", about.subscription_id);
            return Err(Refusal::not_found(reason, "subscribe first"));
        };
        let fact = match input {
            Input::Unsubscribe(_) => about.end("unsubscribed".into()),
            Input::ClaimDelivery(m) => about.claim(live, m)?,
            Input::ReportDelivery(m) => about.report(live, m)?,
            Input::Subscribe(_) => return Ok(vec![]),
        };
        Ok(vec![fact])
    }

    fn evolve(&self, mut state: State, fact: &Fact, _: Timestamp) -> State {
        let ms = |at: Option<Timestamp>| at.map_or(0, |at| at.as_millis());
        match (fact, &mut state.live) {
            (Fact::Subscribed(m), live) => {
                let live = live.get_or_insert_default();
                live.callback.clone_from(&m.callback);
                live.query.clone_from(&m.query);
                live.through = live.through.max(m.after);
            }
            (Fact::DeliveryClaimed(m), Some(live)) => {
                live.holder.clone_from(&m.holder);
                live.until_ms = ms(m.until);
            }
            (Fact::DeliveryReported(m), Some(live)) => {
                live.holder.clear();
                live.until_ms = 0;
                live.through = m.through;
                live.failures = m.failures;
                live.failure.clone_from(&m.failure);
                live.retry_ms = ms(m.retry_at);
            }
            (Fact::Unsubscribed(_), _) => state = State { live: None, ended: true },
            (Fact::DeliveryClaimed(_) | Fact::DeliveryReported(_), None) | (Fact::SubscriptionRefused(_), _) => {}
        }
        state
    }

    fn due(&self, _: &State) -> Option<Timestamp> {
        None
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::subscription::Unsubscribe;
    use proptest::prelude::*;

    use super::*;

    const CALLBACK: &str = "https://listener.example/events";

    fn ask(state: &mut State, input: impl Into<Input>, at_ms: i64) -> Result<Fact, Refusal> {
        let envelope = Envelope {
            trigger: Trigger::Event(input.into()),
            at: Timestamp::from_millis(at_ms),
            id: "c".into(),
            sequence: 1,
            body: bytes::Bytes::new(),
        };
        let mut facts = Subscriptions.decide(&Key::new(["local", "s"]), state, &(), &envelope)?;
        assert_eq!(facts.len(), 1);
        *state = Subscriptions.evolve(std::mem::take(state), &facts[0], envelope.at);
        Ok(facts.remove(0))
    }

    fn subscribe(query: &str) -> Subscribe {
        let (owner, subscription_id) = ("local".into(), "s".into());
        Subscribe { owner, subscription_id, callback: CALLBACK.into(), query: query.into(), after: 7 }
    }

    fn claim(holder: &str) -> ClaimDelivery {
        ClaimDelivery { owner: "local".into(), subscription_id: "s".into(), holder: holder.into() }
    }

    fn report(holder: &str, through: u64, failure: &str) -> ReportDelivery {
        let (owner, subscription_id) = ("local".into(), "s".into());
        ReportDelivery { owner, subscription_id, holder: holder.into(), through, failure: failure.into() }
    }

    fn subscribed() -> State {
        let mut state = State::default();
        ask(&mut state, subscribe(""), 0).unwrap();
        state
    }

    #[test]
    fn a_subscription_is_made_once_and_its_id_does_not_come_back() {
        let mut state = subscribed();
        assert_eq!(state.live.as_ref().unwrap().through, 7);
        ask(&mut state, claim("a"), 1).unwrap();
        ask(&mut state, report("a", 20, ""), 2).unwrap();
        let again = ask(&mut state, subscribe(""), 3).unwrap();
        assert!(matches!(again, Fact::Subscribed(m) if m.after == 20), "repeated, it continues where it was");
        let other = Subscribe { callback: "https://other.example/".into(), ..subscribe("") };
        assert!(ask(&mut state, other, 4).unwrap_err().reason.contains("another subscription"));
        let unsubscribe = || Unsubscribe { owner: "local".into(), subscription_id: "s".into() };
        assert!(matches!(ask(&mut state, unsubscribe(), 5), Ok(Fact::Unsubscribed(_))));
        assert!(ask(&mut state, unsubscribe(), 6).is_err());
        assert!(ask(&mut state, subscribe(""), 7).unwrap_err().reason.contains("has ended"));
        assert!(ask(&mut state, claim("a"), 8).is_err());
    }

    #[test]
    fn invalid_callbacks_and_queries_are_refused_with_a_hint() {
        for bad in ["", "listener", "ftp://a/", "https:///x", "https://u:p@a/", "/path", &"x".repeat(3_000)] {
            let wanted = Subscribe { callback: bad.to_owned(), ..subscribe("") };
            let refusal = ask(&mut State::default(), wanted, 0).unwrap_err();
            assert!(refusal.hint.contains("https://"), "{bad}: {refusal:?}");
        }
        for bad in ["x", "eventType=Nothing", "eventType=", "eventType=IntentCreateEvent&a=b", &"e".repeat(600)] {
            let refusal = ask(&mut State::default(), subscribe(bad), 0).unwrap_err();
            assert!(refusal.hint.contains("IntentStatusChangeEvent"), "{bad}: {refusal:?}");
        }
        assert_eq!(wanted("").unwrap().len(), Kind::ALL.len());
        let two = wanted("eventType=IntentCreateEvent,IntentDeleteEvent").unwrap();
        assert_eq!(two, [Kind::Create, Kind::Delete].into());
        assert_eq!(wanted("eventType=IntentCreateEvent&eventType=IntentDeleteEvent").unwrap(), two);
    }

    #[test]
    fn one_holds_the_claim_until_it_reports_or_thirty_seconds_are_over() {
        let mut state = subscribed();
        ask(&mut state, claim("a"), 1_000).unwrap();
        assert!(ask(&mut state, claim("b"), 30_999).unwrap_err().reason.contains("a holds it"));
        assert!(ask(&mut state, report("b", 9, ""), 2_000).is_err(), "who holds nothing reports nothing");
        ask(&mut state, claim("a"), 20_000).unwrap();
        assert!(ask(&mut state, claim("b"), 49_999).is_err(), "it was claimed on");
        ask(&mut state, claim("b"), 50_000).unwrap();
        assert!(ask(&mut state, report("a", 9, ""), 50_001).is_err(), "its claim went to another");
        ask(&mut state, report("b", 9, ""), 50_002).unwrap();
        ask(&mut state, claim("a"), 50_003).unwrap();
    }

    #[test]
    fn retries_back_off_and_the_twenty_fourth_failure_ends_it() {
        let mut state = subscribed();
        let (mut now, mut waits) = (0, vec![]);
        for _ in 1..FAILURES_MAX {
            ask(&mut state, claim("a"), now).unwrap();
            ask(&mut state, report("a", 7, "status 500"), now).unwrap();
            let live = state.live.as_ref().unwrap();
            waits.push(live.retry_ms - now);
            assert!(ask(&mut state.clone(), claim("a"), live.retry_ms - 1).is_err());
            now = live.retry_ms;
        }
        assert_eq!(waits[..10], [1, 2, 4, 8, 16, 32, 64, 128, 256, 300].map(|seconds| seconds * 1_000));
        assert!(waits[10..].iter().all(|wait| *wait == 300_000));
        // A delivery in between restarts the count.
        let mut other = state.clone();
        ask(&mut other, claim("a"), now).unwrap();
        ask(&mut other, report("a", 8, "status 500"), now).unwrap();
        assert_eq!(other.live.unwrap().failures, 1);
        ask(&mut state, claim("a"), now).unwrap();
        let ended = ask(&mut state, report("a", 7, "status 500"), now).unwrap();
        assert!(matches!(ended, Fact::Unsubscribed(m) if m.reason.contains("24") && m.reason.contains("status 500")));
    }

    proptest! {
        /// Whatever notifiers do, in any order and at any time: none takes the claim from another before it expires, and
        /// what was reported as done stays done.
        #[test]
        fn of_many_notifiers_one_holds_the_claim_at_a_time(
            steps in proptest::collection::vec((0..3_usize, any::<bool>(), 0..40_000_i64, 0..20_u64, any::<bool>()), 1..60),
        ) {
            let (mut state, mut now) = (subscribed(), 0);
            for (who, claims, passed, through, fails) in steps {
                now += passed;
                let holder = ["a", "b", "c"][who];
                let before = state.live.clone().unwrap_or_default();
                let failure = if fails { "status 500" } else { "" };
                let answered = match claims {
                    true => ask(&mut state, claim(holder), now),
                    false => ask(&mut state, report(holder, through, failure), now),
                };
                let Some(after) = state.live.clone() else { break };
                prop_assert!(after.through >= before.through);
                if answered.is_err() {
                    prop_assert_eq!(&after, &before);
                }
                if after.holder != before.holder && !before.holder.is_empty() && !after.holder.is_empty() {
                    prop_assert!(now >= before.until_ms, "{} took it from {}", after.holder, before.holder);
                }
            }
        }
    }
}
