//! The ledger as people ask for it, in memory: a projection of ACCOUNT that makes every entry again and compares, keeps the
//! whole Merkle tree, and signs heads.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::{Derived, Projector, Stored, query::Error};
use mesh_proto::{
    Timestamp,
    account::{Consistency, Head, Posted},
};

use ledger::{
    MAIN,
    note::Signer,
    tree::{Nodes as _, Tree},
};

use super::{
    fold::Fold,
    heads::{self, Announced, Heads},
};

/// The books.
pub struct Books {
    fold: Fold,
    tree: Tree,
    /// Sequence in ACCOUNT of each entry.
    sequences: Vec<u64>,
    /// Entries that name each account.
    named: BTreeMap<String, Vec<u64>>,
    signer: Arc<Signer>,
    announced: Announced,
}

impl Books {
    /// Empty books.
    pub fn new(signer: Arc<Signer>, head_every_ms: u64) -> Self {
        Self {
            fold: Fold::default(),
            tree: Tree::default(),
            sequences: vec![],
            named: BTreeMap::new(),
            signer,
            announced: Announced::new(head_every_ms),
        }
    }

    /// What is known after the entries.
    pub fn fold(&self) -> &Fold {
        &self.fold
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

    fn heads(&self) -> Heads<'_> {
        Heads { nodes: &self.tree, signer: &self.signer }
    }

    /// The signed head of a size.
    pub(crate) fn head(&self, asked: u64) -> Result<Head, Error> {
        Ok(self.heads().head(heads::size(self.tree.size(), asked)?))
    }

    /// An entry's audit path, with its head.
    pub(crate) fn inclusion(&self, index: u64, asked: u64) -> Result<(Vec<u8>, Head), Error> {
        Ok(self.heads().inclusion(index, heads::proved_in(self.tree.size(), index, asked)?))
    }

    /// That one head continues another.
    pub(crate) fn consistency(&self, from: u64, asked: u64) -> Result<Consistency, Error> {
        Ok(self.heads().consistency(from, heads::continued_in(self.tree.size(), from, asked)?))
    }

    fn posted(&mut self, posted: &Posted, sequence: u64, at: Timestamp) {
        let taken = self.fold.take(posted, at);
        let index = self.tree.size();
        self.tree.push(taken.leaf);
        self.sequences.push(sequence);
        for (name, _) in taken.names {
            self.named.entry(name).or_default().push(index);
        }
    }
}

impl Projector for Books {
    fn apply(&mut self, fact: &Stored) -> Vec<Derived> {
        match fact.event::<Posted>() {
            Ok(Some(posted)) if posted.ledger == MAIN => self.posted(&posted, fact.sequence, fact.time),
            Ok(_) => {}
            Err(_) => self.fold.fault(),
        }
        vec![]
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Derived> {
        let ledger = self.fold.ledger();
        let head = (ledger.size(), ledger.tree.root());
        self.announced.next(now, &self.signer, head, self.fold.at()).into_iter().collect()
    }
}
