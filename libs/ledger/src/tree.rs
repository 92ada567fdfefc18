//! The Merkle tree of RFC 6962 §2.1 (SHA-256): heads, audit paths, consistency proofs, and their verification.
//!
//! A [`Frontier`] is what must be kept to append and to know the root. Whoever finds the hashes of complete subtrees
//! ([`Nodes`]) can prove; a [`Tree`] keeps all of them. The verifications follow RFC 9162 §2.1.3.2 and §2.1.4.2 and share
//! nothing with the proofs' making.

use aws_lc_rs::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};

/// A SHA-256 digest.
pub type Hash = [u8; 32];

/// Bytes of a digest.
pub const HASH_BYTES: usize = 32;

fn array(digest: impl AsRef<[u8]>) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(digest.as_ref());
    hash
}

/// The hash of a leaf: `SHA-256(0x00 || bytes)`.
pub fn leaf_hash(bytes: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(&[0]);
    context.update(bytes);
    array(context.finish())
}

/// The hash of an inner node: `SHA-256(0x01 || left || right)`.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut bytes = [1; 1 + 2 * HASH_BYTES];
    bytes[1..=HASH_BYTES].copy_from_slice(left);
    bytes[1 + HASH_BYTES..].copy_from_slice(right);
    array(digest(&SHA256, &bytes))
}

/// The root of the tree without leaves: `SHA-256("")`.
pub fn empty_root() -> Hash {
    array(digest(&SHA256, b""))
}

/// The right edge of a tree: the roots of its complete subtrees, largest first. As many as there are ones in its size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontier {
    size: u64,
    roots: Vec<Hash>,
}

impl Frontier {
    /// Leaves in the tree.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf by its hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.roots.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.roots.push(hash);
        self.size += 1;
    }

    /// The root.
    pub fn root(&self) -> Hash {
        let mut roots = self.roots.iter().rev();
        let Some(last) = roots.next() else { return empty_root() };
        roots.fold(*last, |right, left| node_hash(left, &right))
    }

    /// The root after one more leaf; nothing is changed.
    pub fn root_after(&self, leaf: Hash) -> Hash {
        self.roots.iter().rev().fold(leaf, |right, left| node_hash(left, &right))
    }
}

/// Where the hashes of complete subtrees are found: all that roots and proofs are made of.
pub trait Nodes {
    /// Leaves in the tree.
    fn size(&self) -> u64;

    /// The hash of the `2^height` leaves from `index << height` on; `None` if they are not all there.
    fn node(&self, height: u32, index: u64) -> Option<Hash>;

    /// The root when the tree had this many leaves; `None` if it never had.
    fn root(&self, size: u64) -> Option<Hash> {
        match size {
            0 => Some(empty_root()),
            _ if size > self.size() => None,
            _ => self.range(0, size),
        }
    }

    /// The hash of the leaves from `low` up to `high`, as the tree has them: `low` is a multiple of the next power
    /// of two.
    fn range(&self, low: u64, high: u64) -> Option<Hash> {
        let count = high.checked_sub(low).filter(|count| *count > 0)?;
        if count.is_power_of_two() {
            let height = count.trailing_zeros();
            return self.node(height, low >> height);
        }
        let middle = low + split(count);
        Some(node_hash(&self.range(low, middle)?, &self.range(middle, high)?))
    }

    /// The audit path of a leaf in the tree of this size, from the leaf up (RFC 6962 §2.1.1).
    fn inclusion(&self, index: u64, size: u64) -> Option<Vec<Hash>> {
        if index >= size || size > self.size() {
            return None;
        }
        let (mut low, mut high, mut path) = (0, size, vec![]);
        while high - low > 1 {
            let middle = low + split(high - low);
            if index < middle {
                path.push(self.range(middle, high)?);
                high = middle;
            } else {
                path.push(self.range(low, middle)?);
                low = middle;
            }
        }
        path.reverse();
        Some(path)
    }

    /// That the tree of size `to` continues the one of size `from` (RFC 6962 §2.1.2).
    fn consistency(&self, from: u64, to: u64) -> Option<Vec<Hash>> {
        if from > to || to > self.size() {
            return None;
        }
        if from == 0 || from == to {
            return Some(vec![]);
        }
        let (mut low, mut high, mut path) = (0, to, vec![]);
        // Down to the subtree that ends where the older tree ends.
        while from < high {
            let middle = low + split(high - low);
            if from <= middle {
                path.push(self.range(middle, high)?);
                high = middle;
            } else {
                path.push(self.range(low, middle)?);
                low = middle;
            }
        }
        // The older tree's own root is known to whoever verifies.
        if low > 0 {
            path.push(self.range(low, high)?);
        }
        path.reverse();
        Some(path)
    }
}

/// A whole tree: the hash of every complete subtree, two hashes per leaf.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tree {
    /// By height; `levels[h][i]` covers the leaves `i << h` and on.
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// Appends a leaf by its hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for height in 0.. {
            if self.levels.len() == height {
                self.levels.push(vec![]);
            }
            let Some(level) = self.levels.get_mut(height) else { return };
            level.push(hash);
            let [.., left, right] = level.as_slice() else { return };
            if level.len() % 2 == 1 {
                return;
            }
            hash = node_hash(left, right);
        }
    }
}

impl Nodes for Tree {
    fn size(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    fn node(&self, height: u32, index: u64) -> Option<Hash> {
        self.levels.get(height as usize)?.get(usize::try_from(index).ok()?).copied()
    }
}

/// The largest power of two below `count`, which is at least 2.
fn split(count: u64) -> u64 {
    1 << (63 - (count - 1).leading_zeros())
}

/// Does the path lead from the leaf to the root? (RFC 9162 §2.1.3.2)
pub fn verify_inclusion(leaf: Hash, index: u64, size: u64, path: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut node, mut last, mut hash) = (index, size - 1, leaf);
    for sibling in path {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && hash == *root
}

/// Does the tree of the second root continue that of the first? (RFC 9162 §2.1.4.2)
pub fn verify_consistency(from: u64, from_root: &Hash, to: u64, to_root: &Hash, path: &[Hash]) -> bool {
    if from > to {
        return false;
    }
    if from == 0 {
        return path.is_empty() && *from_root == empty_root();
    }
    if from == to {
        return path.is_empty() && from_root == to_root;
    }
    let (mut node, mut last) = (from - 1, to - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let mut rest = path.iter();
    // A complete older tree is a subtree of the newer one: its root begins the path.
    let first = if from.is_power_of_two() { Some(from_root) } else { rest.next() };
    let Some(first) = first else { return false };
    let (mut old, mut new) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            old = node_hash(sibling, &old);
            new = node_hash(sibling, &new);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            new = node_hash(&new, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && old == *from_root && new == *to_root
}

/// A path as one run of bytes.
pub fn concat(path: &[Hash]) -> Vec<u8> {
    path.concat()
}

/// A run of bytes as a path; `None` if it is not one of whole hashes.
pub fn parted(bytes: &[u8]) -> Option<Vec<Hash>> {
    bytes.len().is_multiple_of(HASH_BYTES).then(|| bytes.chunks_exact(HASH_BYTES).map(array).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(hash: &[u8]) -> String {
        hash.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn tree(size: u64) -> (Tree, Frontier) {
        let (mut tree, mut frontier) = (Tree::default(), Frontier::default());
        for n in 0..size {
            let leaf = leaf_hash(&n.to_be_bytes());
            let foretold = frontier.root_after(leaf);
            tree.push(leaf);
            frontier.push(leaf);
            assert_eq!(frontier.root(), foretold);
        }
        (tree, frontier)
    }

    /// The definition, word by word.
    fn mth(leaves: &[Vec<u8>]) -> Hash {
        match leaves {
            [] => empty_root(),
            [one] => leaf_hash(one),
            _ => {
                let k = (0..).map(|n| 1usize << n).take_while(|k| *k < leaves.len()).last().unwrap();
                node_hash(&mth(&leaves[..k]), &mth(&leaves[k..]))
            }
        }
    }

    /// The tree that Certificate Transparency implementations test with: eight leaves, and its roots.
    #[test]
    fn the_known_answers_of_certificate_transparency() {
        let leaves: [&[u8]; 8] = [
            &[],
            &[0x00],
            &[0x10],
            &[0x20, 0x21],
            &[0x30, 0x31],
            &[0x40, 0x41, 0x42, 0x43],
            &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
            &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
        ];
        let mut frontier = Frontier::default();
        assert_eq!(hex(&frontier.root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let mut roots = vec![];
        for leaf in leaves {
            frontier.push(leaf_hash(leaf));
            roots.push(hex(&frontier.root()));
        }
        assert_eq!(roots[0], "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
        assert_eq!(roots[1], "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125");
        assert_eq!(roots[7], "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
    }

    #[test]
    fn a_root_is_what_the_definition_says_at_every_size() {
        let (tree, _) = tree(70);
        let leaves: Vec<Vec<u8>> = (0..70u64).map(|n| n.to_be_bytes().to_vec()).collect();
        for size in 0..=70 {
            assert_eq!(tree.root(size as u64), Some(mth(&leaves[..size])), "{size}");
        }
        assert_eq!(tree.root(71), None);
    }

    #[test]
    fn every_leaf_is_proved_in_every_tree_and_no_other_is() {
        let (tree, _) = tree(40);
        for size in 1..=40 {
            let root = tree.root(size).unwrap();
            for index in 0..size {
                let path = tree.inclusion(index, size).unwrap();
                let leaf = leaf_hash(&index.to_be_bytes());
                assert!(verify_inclusion(leaf, index, size, &path, &root), "{index} of {size}");
                assert!(!verify_inclusion(leaf_hash(b"other"), index, size, &path, &root));
                assert!(!verify_inclusion(leaf, index, size + 41, &path, &root));
                assert!(!verify_inclusion(leaf, index + size, size, &path, &root));
                for at in 0..path.len() {
                    let mut wrong = path.clone();
                    wrong[at][7] ^= 1;
                    assert!(!verify_inclusion(leaf, index, size, &wrong, &root));
                }
                let mut longer = path.clone();
                longer.push(leaf);
                assert!(!verify_inclusion(leaf, index, size, &longer, &root));
            }
            assert_eq!(tree.inclusion(size, size), None);
        }
    }

    #[test]
    fn every_tree_is_proved_to_continue_every_older_one_and_no_other() {
        let (tree, _) = tree(40);
        for to in 0..=40 {
            for from in 0..=to {
                let path = tree.consistency(from, to).unwrap();
                let (old, new) = (tree.root(from).unwrap(), tree.root(to).unwrap());
                assert!(verify_consistency(from, &old, to, &new, &path), "{from} -> {to}");
                let other = leaf_hash(b"other");
                assert!(!verify_consistency(from, &other, to, &new, &path));
                if from > 0 {
                    assert!(!verify_consistency(from, &old, to, &other, &path));
                }
                for at in 0..path.len() {
                    let mut wrong = path.clone();
                    wrong[at][31] ^= 0x80;
                    assert!(!verify_consistency(from, &old, to, &new, &wrong), "{from} -> {to}");
                }
            }
        }
        assert_eq!(tree.consistency(3, 41), None);
        assert_eq!(tree.consistency(4, 3), None);
    }
}
