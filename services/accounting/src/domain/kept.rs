//! The ledger as databases keep it: a document for each account; entries, the entries of each account and the tiles of the
//! Merkle tree as histories, in blocks, so that any of them is found without looking at those before it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mesh_core::Stored;
use mesh_proto::account::{AccountView, Posted};
use prost::Message as _;

use ledger::{
    MAIN,
    tiles::{Edge, TileId},
    tree::Hash,
};

use super::fold::Fold;

/// Entries of one block.
pub(crate) const BLOCK: u64 = 256;

/// Which block of histories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block<'a> {
    /// Entries of the ledger. A version is an entry's index, from 1.
    Entries(u64),
    /// The entries that name an account, by how many did before. A version is the entry's index, from 1.
    Account(&'a str, u64),
    /// A tile of the tree; it has one version.
    Tile(TileId),
}

impl Block<'_> {
    /// Its key in the history.
    pub(crate) fn key(self) -> String {
        match self {
            Self::Entries(block) => format!("entries/{block}"),
            Self::Account(name, block) => format!("account/{name}/{block}"),
            Self::Tile(TileId { level, index }) => format!("tile/{level}/{index}"),
        }
    }
}

/// One version to be kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) key: String,
    pub(crate) version: u64,
    pub(crate) body: Bytes,
}

/// Follows the ledger: what is known after its entries, and the right edge of its tree. Neither grows with the entries.
#[derive(Debug, Default)]
pub(crate) struct Following {
    fold: Fold,
    edge: Edge,
}

impl Following {
    /// What is known after the entries.
    pub(crate) fn fold(&self) -> &Fold {
        &self.fold
    }

    /// The right edge of the tree.
    pub(crate) fn edge(&self) -> &Edge {
        &self.edge
    }

    /// Takes in the next fact. Returns what is to be kept of it, and the accounts that it changed.
    pub(crate) fn take(&mut self, fact: &Stored) -> (Vec<Row>, BTreeSet<String>) {
        let posted = match fact.event::<Posted>() {
            Ok(Some(posted)) if posted.ledger == MAIN => posted,
            Ok(_) => return (vec![], BTreeSet::new()),
            Err(_) => {
                self.fold.fault();
                return (vec![], BTreeSet::new());
            }
        };
        let index = self.edge.size();
        let taken = self.fold.take(&posted, fact.time);
        let row = |block: Block<'_>, version, body| Row { key: block.key(), version, body };
        let mut rows = vec![row(Block::Entries(index / BLOCK), index + 1, posted.encode_to_vec().into())];
        let mut changed = BTreeSet::new();
        for (name, before) in taken.names {
            rows.push(row(Block::Account(&name, before / BLOCK), index + 1, posted.entry.clone()));
            changed.insert(name);
        }
        for (tile, hashes) in self.edge.push(taken.leaf) {
            rows.push(row(Block::Tile(tile), 1, hashes.concat().into()));
        }
        (rows, changed)
    }
}

/// The document of an account; `None` for one that was never opened.
pub(crate) fn document(fold: &Fold, account: &str) -> Option<(BTreeMap<String, String>, Bytes)> {
    let view = fold.view(account)?;
    let mut parts = account.split('/');
    let kind = parts.next().unwrap_or_default();
    let mut indexes = BTreeMap::from([("kind".to_owned(), kind.to_owned())]);
    if kind == "service" {
        indexes.extend(parts.next().map(|owner| ("owner".to_owned(), owner.to_owned())));
    }
    Some((indexes, view.encode_to_vec().into()))
}

/// An account out of its document.
///
/// # Errors
/// When it is not one.
pub(crate) fn account(body: Bytes) -> Result<AccountView, prost::DecodeError> {
    AccountView::decode(body)
}

/// The hashes of a tile out of its row; `None` if it is not one.
pub(crate) fn hashes(body: &[u8]) -> Option<Vec<Hash>> {
    ledger::tree::parted(body).filter(|hashes| hashes.len() == ledger::tiles::TILE_HASHES)
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        Timestamp,
        account::{Entry, Region},
    };

    use super::*;
    use ledger::{Ledger, tariff, tree::leaf_hash};

    #[test]
    fn what_is_followed_does_not_grow_with_the_entries() {
        let (mut ledger, mut following, mut rows) = (Ledger::default(), Following::default(), 0);
        let mut sizes = vec![];
        for number in 0..5_000u64 {
            let at = Timestamp::from_millis(1);
            let entry: Entry = match number {
                0 => ledger.opening(tariff::default_tariff(), at),
                1..10 => ledger.registration(&format!("cluster/{number}"), at).map(Option::unwrap),
                10 => ledger.region_set(Region { name: "r".into(), ..Region::default() }, at),
                _ => ledger.top_up(&format!("cluster/{}", 1 + number % 9), 1, at),
            }
            .unwrap();
            let bytes = Bytes::from(entry.encode_to_vec());
            ledger.fold(&entry, leaf_hash(&bytes));
            let root = Bytes::copy_from_slice(&ledger.tree.root());
            let posted = Posted { ledger: MAIN.into(), index: number, entry: bytes, root, ..Posted::default() };
            let (kept, changed) = following.take(&mesh_test::stored(&posted, number + 1, at));
            rows += kept.len();
            assert!(changed.iter().all(|name| document(following.fold(), name).is_some()));
            if number % 1_000 == 999 {
                sizes.push(format!("{following:?}").len());
            }
        }
        assert_eq!((following.fold().faults(), following.fold().ledger()), (0, &ledger));
        assert!(rows > 3 * 4_900, "{rows} rows: each entry, and each in the two accounts that it names");
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        // Of each level of the tree up to 255 hashes are there, in this text up to five characters a byte.
        assert!(most - least < 2 * 255 * 32 * 5, "{sizes:?}");
        assert_eq!(
            following.fold().view("cluster/1").unwrap().entries,
            1 + (11..5_000).filter(|n| n % 9 == 0).count() as u64
        );
    }

    #[test]
    fn a_document_is_found_by_its_kind_and_owner() {
        let mut following = Following::default();
        let at = Timestamp::from_millis(1);
        let mut ledger = Ledger::default();
        for number in 0..2u64 {
            let entry = if number == 0 {
                ledger.opening(tariff::default_tariff(), at).unwrap()
            } else {
                ledger.registration("service/me/web", at).unwrap().unwrap()
            };
            let bytes = Bytes::from(entry.encode_to_vec());
            ledger.fold(&entry, leaf_hash(&bytes));
            let root = Bytes::copy_from_slice(&ledger.tree.root());
            let posted = Posted { ledger: MAIN.into(), index: number, entry: bytes, root, ..Posted::default() };
            following.take(&mesh_test::stored(&posted, number + 1, at));
        }
        let (indexes, body) = document(following.fold(), "service/me/web").unwrap();
        let expected = [("kind", "service"), ("owner", "me")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(indexes, expected.into());
        assert_eq!(account(body).unwrap(), following.fold().view("service/me/web").unwrap());
        assert_eq!(document(following.fold(), "service/me/other"), None);
    }
}
