//! Network intents as they stand, to be asked about.

use std::collections::BTreeMap;

use mesh_core::{Derived, Projector, Stored, query::Page};
use mesh_proto::network::{Connectivity, ConnectivityChanged, NetworkAccepted, NetworkIntentView};

use super::statements::statements;

/// A view over NETWORK.
#[derive(Debug, Default)]
pub struct Networks {
    intents: BTreeMap<(String, String), NetworkIntentView>,
}

impl Networks {
    /// One network intent.
    pub fn get(&self, owner: &str, network_id: &str) -> Option<&NetworkIntentView> {
        self.intents.get(&(owner.to_owned(), network_id.to_owned()))
    }

    /// A page of an owner's intents by id, and the token of the next.
    pub fn list(&self, owner: &str, page: &Page) -> (Vec<NetworkIntentView>, String) {
        let from = (owner.to_owned(), page.after().to_owned());
        let later = self.intents.range((std::ops::Bound::Excluded(from), std::ops::Bound::Unbounded));
        let owned = later.take_while(|((of, _), _)| of == owner).map(|(_, view)| view);
        let (views, next) = page.fill(owned, |view| view.network_id.clone());
        (views.into_iter().cloned().collect(), next)
    }
}

impl Projector for Networks {
    fn apply(&mut self, fact: &Stored) -> Vec<Derived> {
        if let Ok(Some(accepted)) = fact.event::<NetworkAccepted>() {
            let key = (accepted.owner.clone(), accepted.network_id.clone());
            let view = NetworkIntentView {
                owner: accepted.owner.clone(),
                network_id: accepted.network_id.clone(),
                version: accepted.version,
                phase: Connectivity::Executing.into(),
                statements: statements(accepted.calls.iter().map(|call| call.executioner.as_str())),
                accepted: Some(accepted),
                ..Default::default()
            };
            self.intents.insert(key, view);
        } else if let Ok(Some(changed)) = fact.event::<ConnectivityChanged>()
            && let Some(view) = self.intents.get_mut(&(changed.owner, changed.network_id))
        {
            view.phase = changed.phase;
            view.reason = changed.reason;
            view.hint = changed.hint;
            view.took_ms = changed.took_ms;
            view.results = changed.results;
        }
        vec![]
    }
}
