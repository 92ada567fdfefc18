//! What is known after some entries, however many: every entry is made again and compared, accounts as they stand, the rates.

use std::collections::BTreeMap;

use mesh_core::query::{Error, Page, narrowed_by};
use mesh_proto::{
    Timestamp,
    account::{AccountList, AccountView, Entry, EntryKind, Posted},
    query::ListRequest,
};
use prost::Message as _;

use ledger::{
    Ledger, service_account,
    tree::{Hash, leaf_hash},
};

/// The ledger as folded by who reads it. Its size is bounded by the ledger's limits, not by the entries.
#[derive(Debug, Default)]
pub struct Fold {
    ledger: Ledger,
    /// How many entries name each account.
    named: BTreeMap<String, u64>,
    /// When the newest entry was posted.
    at: Timestamp,
    faults: u64,
}

/// What an entry was.
pub(crate) struct Taken {
    /// Its hash as a leaf.
    pub(crate) leaf: Hash,
    /// The accounts that it names, in order, each with how many entries named it before.
    pub(crate) names: Vec<(String, u64)>,
}

impl Fold {
    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Entries that are not what the ledger's rules make of what they are about: none, unless ACCOUNT was tampered with.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// When the newest entry was posted.
    pub(crate) fn at(&self) -> Timestamp {
        self.at
    }

    /// A fact of the ledger that cannot be read.
    pub(crate) fn fault(&mut self) {
        self.faults += 1;
    }

    /// Takes in the next entry.
    pub(crate) fn take(&mut self, posted: &Posted, at: Timestamp) -> Taken {
        let leaf = leaf_hash(&posted.entry);
        let entry = Entry::decode(posted.entry.clone()).unwrap_or_default();
        let audited = self.ledger.audit(&entry);
        self.ledger.fold(&entry, leaf);
        if audited.is_err() || self.ledger.tree.root() != posted.root.as_ref() {
            self.faults += 1;
        }
        self.at = at;
        let names = names(&entry).into_iter().map(|name| match self.named.get_mut(&name) {
            Some(count) => {
                *count += 1;
                (name, *count - 1)
            }
            None => {
                self.named.insert(name.clone(), 1);
                (name, 0)
            }
        });
        Taken { leaf, names: names.collect() }
    }

    /// An account as it stands; `None` for one that was never opened.
    pub(crate) fn view(&self, account: &str) -> Option<AccountView> {
        self.ledger.accounts.contains_key(account).then(|| AccountView {
            account: account.to_owned(),
            balance: self.ledger.balance(account),
            owes: self.ledger.owes.get(account).cloned().unwrap_or_default(),
            entries: self.named.get(account).copied().unwrap_or(0),
        })
    }

    /// A page of the accounts in order of their names.
    pub(crate) fn accounts(&self, wanted: &Wanted) -> (Vec<AccountView>, String) {
        let named = self.ledger.accounts.keys().filter(|name| name.starts_with(&wanted.prefix));
        let later = named.filter(|name| name.as_str() > wanted.page.after());
        let (names, next) = wanted.page.fill(later, |name| (*name).clone());
        (names.into_iter().filter_map(|name| self.view(name)).collect(), next)
    }

    /// A list with a page of accounts, and what else it says.
    pub(crate) fn list(&self, (accounts, next_page_token): (Vec<AccountView>, String)) -> AccountList {
        AccountList {
            accounts,
            next_page_token,
            size: self.ledger.size(),
            tariff: self.ledger.tariff,
            regions: self.ledger.regions.values().cloned().collect(),
        }
    }
}

/// Which accounts are asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Beginning of their names.
    pub(crate) prefix: String,
    /// Which page of them.
    pub(crate) page: Page,
}

impl Wanted {
    /// From a question.
    ///
    /// # Errors
    /// A page token that no page ended with; what this list is not narrowed by.
    pub(crate) fn read(request: &ListRequest) -> Result<Self, Error> {
        narrowed_by(request, &["state"])?;
        let page = Page::new(request.page_size, &request.page_token)?;
        Ok(Self { prefix: request.state.clone(), page })
    }
}

/// There is no such account.
pub(crate) fn unknown(account: &str) -> Error {
    let what = format!("account {:?}", account.chars().take(80).collect::<String>());
    Error::not_found(what, "list them with `continuum account list`")
}

/// The accounts that an entry names, in order.
fn names(entry: &Entry) -> Vec<String> {
    let mut names: Vec<String> = entry.transfers.iter().flat_map(|t| [t.from.clone(), t.to.clone()]).collect();
    if entry.kind() == EntryKind::Window {
        let charged = entry.charge.as_ref().and_then(|charge| charge.usage.as_ref());
        names.push(charged.map(|usage| service_account(&usage.owner, &usage.workload)).unwrap_or_default());
    }
    names.sort_unstable();
    names.dedup();
    names
}
