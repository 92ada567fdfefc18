//! The accounts that exist: a view of `IDENTITY`. Sessions are not in it; their decider judges them.

use std::collections::BTreeMap;

use mesh_core::{Derived, Projector, Stored};
use mesh_proto::identity::{AccountDefined, AccountRemoved};

use super::identities::Account;

/// Accounts by name.
#[derive(Debug, Default)]
pub struct Accounts {
    /// Each account by its name.
    pub accounts: BTreeMap<String, Account>,
}

impl Accounts {
    /// Whether there is any account.
    pub fn any(&self) -> bool {
        !self.accounts.is_empty()
    }
}

impl Projector for Accounts {
    fn apply(&mut self, fact: &Stored) -> Vec<Derived> {
        if let Ok(Some(defined)) = fact.event::<AccountDefined>() {
            self.accounts.insert(defined.name.clone(), Account::from(&defined));
        } else if let Ok(Some(removed)) = fact.event::<AccountRemoved>() {
            self.accounts.remove(&removed.name);
        }
        vec![]
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::{Timestamp, identity::SessionOpened};

    use super::*;

    fn apply(view: &mut Accounts, event: impl mesh_proto::Event) {
        assert!(view.apply(&mesh_test::stored(&event, 1, Timestamp::from_millis(1))).is_empty());
    }

    #[test]
    fn an_account_is_seen_as_it_was_last_defined_until_it_is_removed() {
        let mut view = Accounts::default();
        let defined = |disabled| AccountDefined {
            realm: "account".into(),
            name: "ada".into(),
            owner: "plant".into(),
            disabled,
            ..AccountDefined::default()
        };
        apply(&mut view, SessionOpened { realm: "session".into(), name: "s".into(), ..SessionOpened::default() });
        assert!(!view.any(), "a session is not an account");
        apply(&mut view, defined(false));
        apply(&mut view, defined(true));
        assert_eq!((view.accounts.len(), view.accounts["ada"].disabled), (1, true));
        apply(&mut view, AccountRemoved { realm: "account".into(), name: "ada".into(), command_id: "c".into() });
        assert!(!view.any());
    }
}
