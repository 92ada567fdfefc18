//! Subscriptions: listeners that come and go, and three processes that claim what is due.
//!
//! One process holds a claim at a time, what was delivered is never undone, and an id that ended does not come back.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::{
    Timestamp,
    deciders::subscriptions::Fact,
    subscription::{ClaimDelivery, ReportDelivery, Subscribe, Unsubscribe},
};
use notifier::domain::subscriptions::Subscriptions;

use super::{Area, Asker, command_of, fact, wrong};
use crate::sim::{bus::MemoryBus, rng::Rng};

/// The decider.
pub fn decider() -> Subscriptions {
    Subscriptions
}

/// Those who listen, and those who deliver.
pub struct Listeners;

/// A subscription as its facts have it.
#[derive(Clone, Debug, Default)]
struct Live {
    through: u64,
    holder: String,
    until: Timestamp,
    retry_at: Timestamp,
}

impl Area for Listeners {
    fn name(&self) -> &'static str {
        "subscription"
    }

    fn happen(&mut self, bus: &mut MemoryBus, rng: &mut Rng, asker: &mut Asker) {
        let (owner, subscription_id) = ("local".to_owned(), (*rng.pick(&["l-1", "l-2", "l-3"])).to_owned());
        let holder = (*rng.pick(&["a", "b", "c"])).to_owned();
        match rng.below(12) {
            0..=2 => {
                let callback = (*rng.pick(&["https://a.example/", "https://a.example/", "nowhere"])).to_owned();
                let query = (*rng.pick(&["", "", "eventType=IntentCreateEvent", "colour=blue"])).to_owned();
                let after = rng.below(20) as u64;
                asker.ask(bus, rng, &Subscribe { owner, subscription_id, callback, query, after });
            }
            3 if rng.percent(40) => {
                asker.ask(bus, rng, &Unsubscribe { owner, subscription_id });
            }
            3..=7 => {
                asker.ask(bus, rng, &ClaimDelivery { owner, subscription_id, holder });
            }
            _ => {
                let failure = if rng.percent(30) { "status 500".to_owned() } else { String::new() };
                let through = rng.below(60) as u64;
                asker.ask(bus, rng, &ReportDelivery { owner, subscription_id, holder, through, failure });
            }
        }
    }

    fn check(&self, bus: &MemoryBus) -> Result<(), String> {
        let mut subscriptions: BTreeMap<String, Live> = BTreeMap::new();
        let mut ended = BTreeSet::new();
        for stored in bus.read("SUBSCRIPTION") {
            let fact = fact::<Fact>(stored)?;
            let id = stored.subject.rsplit('.').next().unwrap_or_default().to_owned();
            if ended.contains(&id) && !matches!(fact, Fact::SubscriptionRefused(_)) {
                return wrong(stored, "it has ended");
            }
            match fact {
                Fact::Subscribed(m) => {
                    let live = subscriptions.entry(id).or_default();
                    if m.after < live.through {
                        return wrong(stored, format!("it goes back from {} to {}", live.through, m.after));
                    }
                    live.through = m.after;
                }
                Fact::DeliveryClaimed(m) => {
                    let Some(live) = subscriptions.get_mut(&id) else { return wrong(stored, "nobody subscribed") };
                    let held = !live.holder.is_empty() && live.holder != m.holder && stored.time < live.until;
                    if held || stored.time < live.retry_at {
                        return wrong(stored, format!("{} claims it, which is not free: {live:?}", m.holder));
                    }
                    (live.holder, live.until) = (m.holder, m.until.unwrap_or_default());
                }
                Fact::DeliveryReported(m) => {
                    let Some(live) = subscriptions.get_mut(&id) else { return wrong(stored, "nobody subscribed") };
                    let command =
                        command_of(bus, stored)?.event::<ReportDelivery>().map_err(|error| error.to_string())?;
                    let reporter = command.map(|command| command.holder).unwrap_or_default();
                    if reporter.is_empty() || reporter != live.holder || m.through < live.through {
                        return wrong(stored, format!("{reporter} reports {}, of {live:?}", m.through));
                    }
                    let (through, retry_at) = (m.through, m.retry_at.unwrap_or_default());
                    *live = Live { through, retry_at, ..Live::default() };
                }
                Fact::Unsubscribed(_) => {
                    if subscriptions.remove(&id).is_none() {
                        return wrong(stored, "nobody subscribed");
                    }
                    ended.insert(id);
                }
                Fact::SubscriptionRefused(_) => {}
            }
        }
        Ok(())
    }
}
