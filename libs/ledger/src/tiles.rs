//! The tree in tiles, so that little of it is in memory: 256 hashes each, as transparency logs publish theirs.
//!
//! A tile of level `n` holds hashes of subtrees of `256^n` leaves. Complete tiles never change, and rest elsewhere; the
//! [`Edge`] holds the others, fewer than 256 hashes of each level. A proof needs a few complete tiles: [`wanted`] says which,
//! and [`Tiled`] finds the hashes in them.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use crate::tree::{Hash, Nodes, node_hash};

/// Hashes of a tile.
pub const TILE_HASHES: usize = 1 << TILE_HEIGHT;
/// Height of the subtree that a tile is, from its hashes to its root.
const TILE_HEIGHT: u32 = 8;

/// Which tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TileId {
    /// 0 for tiles of leaves; one more for tiles of the roots of those below.
    pub level: u32,
    /// Its number in the level, from 0.
    pub index: u64,
}

/// The right edge of a tree: its size, and the hashes that are in no complete tile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    size: u64,
    /// By level.
    rest: Vec<Vec<Hash>>,
}

impl Edge {
    /// Leaves in the tree.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf by its hash. Returns the tiles that it completes, the lowest first.
    pub fn push(&mut self, leaf: Hash) -> Vec<(TileId, Vec<Hash>)> {
        let (mut hash, mut complete) = (leaf, vec![]);
        self.size += 1;
        for level in 0.. {
            if self.rest.len() == level {
                self.rest.push(vec![]);
            }
            let Some(rest) = self.rest.get_mut(level) else { break };
            rest.push(hash);
            if rest.len() < TILE_HASHES {
                break;
            }
            let hashes = std::mem::take(rest);
            let Some(root) = root_of(&hashes) else { break };
            hash = root;
            let level = level as u32;
            complete.push((TileId { level, index: complete_tiles(self.size, level) - 1 }, hashes));
        }
        complete
    }

    /// Where the hashes of a node are: from which hash of which tile on, and how many.
    fn place(&self, height: u32, index: u64) -> Option<(TileId, usize, usize)> {
        if index >= self.size.checked_shr(height)? {
            return None;
        }
        let (level, within) = (height / TILE_HEIGHT, height % TILE_HEIGHT);
        let first = index << within;
        let tile = TileId { level, index: first / TILE_HASHES as u64 };
        Some((tile, usize::try_from(first % TILE_HASHES as u64).ok()?, 1 << within))
    }

    /// Is it a tile of which the edge holds what there is?
    fn holds(&self, tile: TileId) -> bool {
        tile.index == complete_tiles(self.size, tile.level)
    }
}

/// Complete tiles of a level in a tree of this size.
fn complete_tiles(size: u64, level: u32) -> u64 {
    size.checked_shr(TILE_HEIGHT * (level + 1)).unwrap_or(0)
}

/// The root over hashes, as many as a power of two.
fn root_of(hashes: &[Hash]) -> Option<Hash> {
    match hashes {
        [] => None,
        [one] => Some(*one),
        _ => {
            let (left, right) = hashes.split_at(hashes.len() / 2);
            Some(node_hash(&root_of(left)?, &root_of(right)?))
        }
    }
}

/// The complete tiles that something is made of. `make` is given a tree whose hashes say nothing: which of them are looked
/// at depends on sizes and places alone.
pub fn wanted(edge: &Edge, make: impl FnOnce(&dyn Nodes)) -> BTreeSet<TileId> {
    let asked = Asked { edge, tiles: RefCell::default() };
    make(&asked);
    asked.tiles.into_inner()
}

struct Asked<'a> {
    edge: &'a Edge,
    tiles: RefCell<BTreeSet<TileId>>,
}

impl Nodes for Asked<'_> {
    fn size(&self) -> u64 {
        self.edge.size
    }

    fn node(&self, height: u32, index: u64) -> Option<Hash> {
        let (tile, ..) = self.edge.place(height, index)?;
        if !self.edge.holds(tile) {
            self.tiles.borrow_mut().insert(tile);
        }
        Some(Hash::default())
    }
}

/// A tree of which some complete tiles are at hand.
#[derive(Clone, Debug)]
pub struct Tiled<'a> {
    /// Its right edge.
    pub edge: &'a Edge,
    /// Complete tiles.
    pub tiles: BTreeMap<TileId, Vec<Hash>>,
}

impl Nodes for Tiled<'_> {
    fn size(&self) -> u64 {
        self.edge.size
    }

    fn node(&self, height: u32, index: u64) -> Option<Hash> {
        let (tile, from, count) = self.edge.place(height, index)?;
        let hashes = if self.edge.holds(tile) {
            self.edge.rest.get(usize::try_from(tile.level).ok()?)?
        } else {
            self.tiles.get(&tile)?
        };
        root_of(hashes.get(from..from + count)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tree::{Tree, leaf_hash};

    /// A tree of this size, as a whole and in tiles.
    fn grown(size: u64) -> (Tree, Edge, BTreeMap<TileId, Vec<Hash>>) {
        let (mut tree, mut edge, mut tiles) = (Tree::default(), Edge::default(), BTreeMap::new());
        for number in 0..size {
            let leaf = leaf_hash(&number.to_be_bytes());
            tree.push(leaf);
            tiles.extend(edge.push(leaf));
        }
        (tree, edge, tiles)
    }

    fn at_hand<'a>(edge: &'a Edge, all: &BTreeMap<TileId, Vec<Hash>>, wanted: &BTreeSet<TileId>) -> Tiled<'a> {
        Tiled { edge, tiles: wanted.iter().map(|id| (*id, all[id].clone())).collect() }
    }

    #[test]
    fn an_edge_keeps_fewer_hashes_than_a_tile_of_each_level() {
        let (tree, edge, tiles) = grown(70_000);
        assert_eq!((edge.size(), edge.rest.len()), (tree.size(), 3));
        assert!(edge.rest.iter().all(|rest| rest.len() < TILE_HASHES));
        assert_eq!(tiles.len(), 70_000 / 256 + 1);
        assert!(tiles.values().all(|hashes| hashes.len() == TILE_HASHES));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Roots and proofs out of the tiles that were said to be wanted are those of the whole tree.
        #[test]
        fn tiles_prove_what_the_whole_tree_proves(now in 0..1_400u64, then in 0..1_500u64, index in 0..1_500u64) {
            let (tree, edge, tiles) = grown(now);
            let root = wanted(&edge, |nodes| {
                nodes.root(then);
            });
            let roots = at_hand(&edge, &tiles, &root);
            prop_assert_eq!(roots.root(then), tree.root(then));
            let path = at_hand(&edge, &tiles, &wanted(&edge, |nodes| drop(nodes.inclusion(index, then))));
            prop_assert_eq!(path.inclusion(index, then), tree.inclusion(index, then));
            let path = at_hand(&edge, &tiles, &wanted(&edge, |nodes| drop(nodes.consistency(index, then))));
            prop_assert_eq!(path.consistency(index, then), tree.consistency(index, then));
        }
    }

    #[test]
    fn tiles_of_a_higher_level_prove_as_well() {
        let (tree, edge, tiles) = grown(140_003);
        for (index, size) in [(0, 140_003), (65_535, 65_536), (65_536, 140_000), (139_999, 140_001), (1, 131_072)] {
            let wanted = wanted(&edge, |nodes| {
                nodes.root(size);
                nodes.inclusion(index, size);
                nodes.consistency(index, size);
            });
            assert!(wanted.len() <= 12, "{} tiles", wanted.len());
            let tiled = at_hand(&edge, &tiles, &wanted);
            assert_eq!(tiled.root(size), tree.root(size));
            assert_eq!(tiled.inclusion(index, size), tree.inclusion(index, size));
            assert_eq!(tiled.consistency(index, size), tree.consistency(index, size));
        }
        assert!(edge.place(64, 0).is_none() && edge.place(3, u64::MAX).is_none() && edge.place(3, 1 << 61).is_none());
    }
}
