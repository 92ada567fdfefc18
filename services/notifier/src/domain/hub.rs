//! The subscriptions that hold, as far as this process knows.

use std::collections::BTreeMap;

use mesh_core::{Decider as _, Derived, Key, Projector, Stored};
use mesh_proto::{EventSet as _, deciders::subscriptions::Fact};

use super::subscriptions::{Live, State, Subscriptions};

/// Subscriptions that one owner may have.
pub const PER_OWNER_MAX: usize = 16;

/// Owner and id of a subscription.
pub type Id = (String, String);

/// The subscriptions that hold: a view of `SUBSCRIPTION`.
#[derive(Debug, Default)]
pub struct Hub {
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
    /// The subscription, if it holds.
    pub fn get(&self, id: &Id) -> Option<&Live> {
        self.states.get(id)?.live.as_ref()
    }

    /// Every subscription that holds.
    pub fn all(&self) -> impl Iterator<Item = (&Id, &Live)> {
        self.states.iter().filter_map(|(id, state)| Some((id, state.live.as_ref()?)))
    }

    /// How many subscriptions an owner has, without this one.
    pub fn others(&self, id: &Id) -> usize {
        self.states.keys().filter(|(owner, other)| *owner == id.0 && *other != id.1).count()
    }

    /// Whether any subscription is this owner's.
    pub fn has_owner(&self, owner: &str) -> bool {
        self.states.keys().any(|(of, _)| of == owner)
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        Timestamp,
        subscription::{Subscribed, SubscriptionRefused, Unsubscribed},
    };

    use super::*;

    fn id(owner: &str, subscription: &str) -> Id {
        (owner.into(), subscription.into())
    }

    fn apply(hub: &mut Hub, event: impl mesh_proto::Event) {
        assert!(hub.apply(&mesh_test::stored(&event, 1, Timestamp::from_millis(1))).is_empty());
    }

    #[test]
    fn a_subscription_is_seen_from_its_first_fact_to_its_last() {
        let mut hub = Hub::default();
        let subscribed = |owner: &str, subscription: &str| Subscribed {
            owner: owner.into(),
            subscription_id: subscription.into(),
            callback: "https://listener.example/".into(),
            after: 7,
            ..Subscribed::default()
        };
        apply(&mut hub, subscribed("ada", "one"));
        apply(&mut hub, subscribed("ada", "two"));
        apply(&mut hub, subscribed("eve", "three"));
        assert_eq!(hub.get(&id("ada", "one")).map(|live| live.through), Some(7));
        assert_eq!((hub.all().count(), hub.others(&id("ada", "one")), hub.others(&id("ada", "new"))), (3, 1, 2));
        let refused = SubscriptionRefused { owner: "ada".into(), subscription_id: "one".into(), ..Default::default() };
        apply(&mut hub, refused);
        assert!(hub.get(&id("ada", "one")).is_some(), "a refusal changes nothing");
        let ended = Unsubscribed { owner: "ada".into(), subscription_id: "one".into(), ..Unsubscribed::default() };
        apply(&mut hub, ended);
        assert_eq!(hub.get(&id("ada", "one")), None);
        assert!(hub.has_owner("ada") && hub.has_owner("eve") && !hub.has_owner("vic"));
    }
}
