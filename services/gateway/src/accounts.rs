//! The accounts there are: a view of `IDENTITY`. Sessions are not kept; their decider judges them.

use std::collections::BTreeMap;

use mesh_core::Stored;
use mesh_core::{Derived, Projector};
use mesh_proto::identity::{AccountDefined, AccountRemoved};

use crate::domain::identity::Account;

/// Accounts by name.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    pub(crate) accounts: BTreeMap<String, Account>,
}

impl Accounts {
    /// Is there any account?
    pub(crate) fn any(&self) -> bool {
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
