//! The ledger as people ask for it: a projection of ACCOUNT that makes every entry again and compares, keeps the whole
//! Merkle tree, and signs heads.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::{
    Derived, Projector, Stored,
    query::{Error, Page, narrowed_by},
};
use mesh_proto::{
    Timestamp,
    account::{AccountList, AccountView, Consistency, Entry, EntryKind, Head, Posted},
    account_head::HeadSigned,
    derived_id,
    query::ListRequest,
};
use prost::Message as _;

use ledger::{
    Ledger, MAIN,
    note::{Checkpoint, Signer},
    service_account,
    tree::{Tree, concat, leaf_hash},
};

/// The books.
pub struct Books {
    ledger: Ledger,
    tree: Tree,
    /// Sequence in ACCOUNT of each entry.
    sequences: Vec<u64>,
    /// Entries that name each account.
    named: BTreeMap<String, Vec<u64>>,
    signer: Arc<Signer>,
    head_every_ms: i64,
    /// Size of the newest head that was published, and when.
    said: (u64, Timestamp),
    /// When the newest entry was posted.
    at: Timestamp,
    faults: u64,
}

impl Books {
    /// Empty books.
    pub fn new(signer: Signer, head_every_ms: u64) -> Self {
        Self {
            ledger: Ledger::default(),
            tree: Tree::default(),
            sequences: vec![],
            named: BTreeMap::new(),
            signer: Arc::new(signer),
            head_every_ms: i64::try_from(head_every_ms).unwrap_or(i64::MAX),
            said: (0, Timestamp::default()),
            at: Timestamp::default(),
            faults: 0,
        }
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Entries that are not what the ledger's rules make of what they are about: none, unless ACCOUNT was tampered with.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// Where the entries from `index` on are in ACCOUNT.
    pub fn sequence(&self, index: u64) -> Option<u64> {
        self.sequences.get(usize::try_from(index).ok()?).copied()
    }

    /// The entries from `from` on that name an account, at most `limit`, and the next one.
    pub(crate) fn of(&self, account: &str, from: u64, limit: usize) -> (Vec<u64>, u64) {
        let named = self.named.get(account).map_or(&[][..], Vec::as_slice);
        let begin = named.partition_point(|index| *index < from);
        let mut rest = named[begin..].iter();
        let indices = rest.by_ref().take(limit).filter_map(|index| self.sequence(*index)).collect();
        (indices, rest.next().copied().unwrap_or(0))
    }

    /// An account as it stands.
    pub fn account(&self, account: &str) -> Result<AccountView, Error> {
        if !self.ledger.accounts.contains_key(account) {
            let what = format!("account {:?}", account.chars().take(80).collect::<String>());
            return Err(Error::not_found(what, "list them with `continuum account list`"));
        }
        Ok(self.render(account))
    }

    fn render(&self, account: &str) -> AccountView {
        AccountView {
            account: account.to_owned(),
            balance: self.ledger.balance(account),
            owes: self.ledger.owes.get(account).cloned().unwrap_or_default(),
            entries: self.named.get(account).map_or(0, |named| named.len() as u64),
        }
    }

    /// A page of the accounts in order of their names.
    ///
    /// # Errors
    /// A page token that no page ended with.
    pub fn list(&self, request: &ListRequest) -> Result<AccountList, Error> {
        narrowed_by(request, &["state"])?;
        let page = Page::new(request.page_size, &request.page_token)?;
        let named = self.ledger.accounts.keys().filter(|name| name.starts_with(&request.state));
        let later = named.filter(|name| name.as_str() > page.after());
        let (names, next_page_token) = page.fill(later, |name| (*name).clone());
        Ok(AccountList {
            next_page_token,
            accounts: names.into_iter().map(|name| self.render(name)).collect(),
            size: self.ledger.size(),
            tariff: self.ledger.tariff,
            regions: self.ledger.regions.values().cloned().collect(),
        })
    }

    /// A size that the ledger has or had; as it stands when 0.
    pub(crate) fn size(&self, asked: u64) -> Result<u64, Error> {
        match asked {
            0 => Ok(self.tree.size()),
            _ if asked <= self.tree.size() => Ok(asked),
            _ => Err(Error::invalid(
                format!("the ledger has {} entries, not {asked}", self.tree.size()),
                "ask for a size that it has",
            )),
        }
    }

    /// The signed head of a size.
    pub fn head(&self, size: u64) -> Result<Head, Error> {
        let size = self.size(size)?;
        let root = self.tree.root(size).unwrap_or_default();
        let note = self.signer.sign(&Checkpoint { size, root });
        Ok(Head { size, root: root.to_vec().into(), note, verifier_key: self.signer.verifier().to_string() })
    }

    /// An entry's audit path, with its head.
    pub(crate) fn inclusion(&self, index: u64, size: u64) -> Result<(Vec<u8>, Head), Error> {
        let head = self.head(size)?;
        let path = self.tree.inclusion(index, head.size).ok_or_else(|| {
            Error::not_found(format!("entry {index} in a ledger of {}", head.size), "entries are counted from 0")
        })?;
        Ok((concat(&path), head))
    }

    /// That one head continues another.
    pub fn consistency(&self, from: u64, to: u64) -> Result<Consistency, Error> {
        let to = self.size(to)?;
        if from == 0 || from > to {
            return Err(Error::invalid(format!("{from} is not a size before {to}"), "ask from a size of at least 1"));
        }
        let path = self.tree.consistency(from, to).unwrap_or_default();
        Ok(Consistency { path: concat(&path).into(), from: Some(self.head(from)?), to: Some(self.head(to)?) })
    }

    fn posted(&mut self, posted: &Posted, sequence: u64, at: Timestamp) {
        let leaf = leaf_hash(&posted.entry);
        let entry = Entry::decode(posted.entry.clone()).unwrap_or_default();
        let audited = self.ledger.audit(&entry);
        self.ledger.fold(&entry, leaf);
        self.tree.push(leaf);
        if audited.is_err() || self.ledger.tree.root() != posted.root.as_ref() {
            self.faults += 1;
        }
        self.sequences.push(sequence);
        self.at = at;
        let mut names: Vec<&str> = entry.transfers.iter().flat_map(|t| [t.from.as_str(), t.to.as_str()]).collect();
        let charged = entry.charge.as_ref().and_then(|charge| charge.usage.as_ref());
        let service = charged.map(|usage| service_account(&usage.owner, &usage.workload)).unwrap_or_default();
        if entry.kind() == EntryKind::Window {
            names.push(&service);
        }
        names.sort_unstable();
        names.dedup();
        for name in names {
            match self.named.get_mut(name) {
                Some(named) => named.push(entry.index),
                None => drop(self.named.insert(name.to_owned(), vec![entry.index])),
            }
        }
    }
}

impl Projector for Books {
    fn apply(&mut self, fact: &Stored) -> Vec<Derived> {
        match fact.event::<Posted>() {
            Ok(Some(posted)) if posted.ledger == MAIN => self.posted(&posted, fact.sequence, fact.time),
            Ok(_) => {}
            Err(_) => self.faults += 1,
        }
        vec![]
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Derived> {
        let size = self.tree.size();
        if size == self.said.0 || now.millis_since(self.said.1) < self.head_every_ms {
            return vec![];
        }
        let Ok(head) = self.head(size) else { return vec![] };
        self.said = (size, now);
        let id = derived_id(&["head", MAIN, &size.to_string(), &head.verifier_key]);
        let (note, verifier_key) = (head.note, head.verifier_key);
        vec![Derived::new(HeadSigned { ledger: MAIN.to_owned(), size, note, verifier_key }, id, self.at)]
    }
}
