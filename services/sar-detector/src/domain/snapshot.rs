//! Models as bytes, and back with identical scores.
//!
//! A snapshot holds what a forest is made of: the window, each tree's points and seed, the generator. Trees are grown
//! again from those, so that a hostile or broken snapshot can hold wrong values and never a wrong tree.

use std::collections::BTreeMap;

use mesh_proto::{Timestamp, is_key};
use prost::Message;

use super::{
    forest::{Forest, Rng, Shape, Tree},
    watch::{FEATURES, Watch},
};

/// Rises when models mean something else.
const VERSION: u32 = 1;
/// Bytes of the largest snapshot that is read.
pub const BYTES_MAX: usize = 512 << 20;

/// Why bytes are no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not decodable.
    #[error("decode the snapshot")]
    Undecodable(#[source] prost::DecodeError),
    /// Too large to be read.
    #[error("the snapshot has {0} bytes, more than {BYTES_MAX}")]
    TooLarge(usize),
    /// Made by a version with other models.
    #[error("the snapshot is of version {0}, not {VERSION}")]
    OtherVersion(u32),
    /// A part that no model can have.
    #[error("the model of {instance_id:?} cannot be: {problem}")]
    Unsound {
        /// Whose model.
        instance_id: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, repeated, tag = "2")]
    instances: Vec<StoredInstance>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredInstance {
    #[prost(string, tag = "1")]
    instance_id: String,
    #[prost(string, tag = "2")]
    owner: String,
    #[prost(string, tag = "3")]
    cluster_id: String,
    #[prost(uint64, tag = "4")]
    generation: u64,
    #[prost(int64, tag = "5")]
    last_ms: i64,
    #[prost(message, optional, tag = "6")]
    forest: Option<StoredForest>,
    #[prost(uint32, tag = "7")]
    of_generation: u32,
}

#[derive(Clone, PartialEq, Message)]
struct StoredForest {
    #[prost(uint32, repeated, tag = "1")]
    shape: Vec<u32>,
    #[prost(double, repeated, tag = "2")]
    grain: Vec<f64>,
    #[prost(fixed64, tag = "3")]
    rng: u64,
    #[prost(double, repeated, tag = "4")]
    window: Vec<f64>,
    #[prost(uint64, tag = "5")]
    learned: u64,
    #[prost(uint32, tag = "6")]
    next: u32,
    #[prost(message, repeated, tag = "7")]
    trees: Vec<StoredTree>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredTree {
    #[prost(fixed64, tag = "1")]
    seed: u64,
    #[prost(double, repeated, tag = "2")]
    points: Vec<f64>,
}

pub(super) fn write(watches: &BTreeMap<String, Watch>) -> Vec<u8> {
    let instances = watches.iter().map(|(id, watch)| StoredInstance {
        instance_id: id.clone(),
        owner: watch.owner.clone(),
        cluster_id: watch.cluster_id.clone(),
        generation: watch.generation,
        last_ms: watch.last.as_millis(),
        forest: Some(pack(&watch.forest)),
        of_generation: watch.of_generation,
    });
    Stored { version: VERSION, instances: instances.collect() }.encode_to_vec()
}

pub(super) fn read(bytes: &[u8], rules: usize, instances_max: usize) -> Result<BTreeMap<String, Watch>, Error> {
    if bytes.len() > BYTES_MAX {
        return Err(Error::TooLarge(bytes.len()));
    }
    let stored = Stored::decode(bytes).map_err(Error::Undecodable)?;
    if stored.version != VERSION {
        return Err(Error::OtherVersion(stored.version));
    }
    let mut watches = BTreeMap::new();
    for instance in stored.instances.into_iter().take(instances_max) {
        let id = instance.instance_id;
        let unsound = |problem| Error::Unsound { instance_id: id.chars().take(64).collect(), problem };
        if !is_key(&id) {
            return Err(unsound("its id is empty"));
        }
        let forest = unpack(instance.forest.unwrap_or_default()).map_err(unsound)?;
        if forest.shape().features != FEATURES {
            return Err(unsound("its features are others"));
        }
        let mut watch = Watch::new(0, rules);
        (watch.owner, watch.cluster_id) = (instance.owner, instance.cluster_id);
        (watch.generation, watch.last) = (instance.generation, Timestamp::from_millis(instance.last_ms));
        (watch.forest, watch.of_generation) = (forest, instance.of_generation);
        watches.insert(id, watch);
    }
    Ok(watches)
}

/// A forest as bytes.
pub fn write_forest(forest: &Forest) -> Vec<u8> {
    pack(forest).encode_to_vec()
}

/// A forest from bytes; it scores and goes on learning as the one that was written.
///
/// # Errors
/// When the bytes are no forest.
pub fn read_forest(bytes: &[u8]) -> Result<Forest, Error> {
    let stored = StoredForest::decode(bytes).map_err(Error::Undecodable)?;
    unpack(stored).map_err(|problem| Error::Unsound { instance_id: String::new(), problem })
}

fn pack(forest: &Forest) -> StoredForest {
    let Shape { features, trees, points, window, turnover } = forest.shape;
    let trees_kept = forest
        .trees
        .iter()
        .map(|t| StoredTree { seed: t.seed, points: t.points.iter().copied().map(f64::from).collect() });
    StoredForest {
        shape: [features, trees, points, window, turnover].map(|n| u32::try_from(n).unwrap_or(u32::MAX)).to_vec(),
        grain: forest.grain.clone(),
        rng: forest.rng.0,
        window: forest.window.iter().copied().map(f64::from).collect(),
        learned: forest.learned,
        next: u32::try_from(forest.next).unwrap_or_default(),
        trees: trees_kept.collect(),
    }
}

fn unpack(stored: StoredForest) -> Result<Forest, &'static str> {
    let [features, trees, points, window, turnover] = stored.shape[..] else { return Err("its shape is incomplete") };
    let [features, trees, points, window, turnover] = [features, trees, points, window, turnover].map(|n| n as usize);
    let shape = Shape { features, trees, points, window, turnover };
    if !shape.is_sound() {
        return Err("its shape is impossible for a forest");
    }
    let all = |values: &[f64]| values.iter().all(|v| (*v as f32).is_finite());
    if stored.grain.len() != features || !all(&stored.grain) {
        return Err("its grain does not fit its features");
    }
    if !stored.window.len().is_multiple_of(features) || stored.window.len() > window * features || !all(&stored.window)
    {
        return Err("its window does not fit its shape");
    }
    let held = (stored.window.len() / features) as u64;
    if held != stored.learned.min(window as u64) {
        return Err("it has learned more or less than its window holds");
    }
    if stored.trees.len() > trees || stored.next as usize >= trees {
        return Err("it has more trees than its shape");
    }
    let fits = |tree: &StoredTree| tree.points.len() == points * features && all(&tree.points);
    if !stored.trees.iter().all(fits) {
        return Err("a tree's points do not fit its shape");
    }
    let mut forest = Forest::new(shape, stored.grain, 0);
    forest.rng = Rng(stored.rng);
    let single = |values: Vec<f64>| values.into_iter().map(|value| value as f32);
    (forest.learned, forest.next) = (stored.learned, stored.next as usize);
    forest.window = single(stored.window).collect();
    forest.trees =
        stored.trees.into_iter().map(|t| Tree { seed: t.seed, points: single(t.points).collect() }).collect();
    Ok(forest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taught(count: usize) -> (Forest, Rng) {
        let (mut forest, mut rng) = (Forest::new(Shape::of(3), vec![0.01; 3], 42), Rng(7));
        for _ in 0..count {
            forest.learn(&[rng.unit(), 5.0 + rng.unit(), rng.unit().powi(4)]);
        }
        (forest, rng)
    }

    #[test]
    fn a_restored_forest_scores_and_learns_as_the_one_that_was_written() {
        for count in [0, 10, 200, 5_000] {
            let (mut one, mut rng) = taught(count);
            let mut other = read_forest(&write_forest(&one)).unwrap();
            assert_eq!(one, other);
            for _ in 0..1_000 {
                let point = [2.0 * rng.unit(), 5.0 + rng.unit(), rng.unit()];
                assert_eq!(one.score(&point).to_bits(), other.score(&point).to_bits());
                one.learn(&point);
                other.learn(&point);
            }
            assert_eq!(one.contributions(&[0.5, 9.0, 0.1]), other.contributions(&[0.5, 9.0, 0.1]));
        }
    }

    #[test]
    fn broken_snapshots_are_refused_and_never_panic() {
        let bytes = write_forest(&taught(300).0);
        for cut in 0..bytes.len().min(400) {
            let _either = read_forest(&bytes[..cut]);
        }
        let mut rng = Rng(3);
        for _ in 0..200 {
            let mut broken = bytes.clone();
            let at = rng.below(broken.len());
            broken[at] ^= 1 << rng.below(8);
            if let Ok(forest) = read_forest(&broken) {
                assert!(forest.score(&[0.5, 5.5, 0.1]).is_finite() && forest.clone().learned() > 0);
            }
        }
        assert!(matches!(
            read(&Stored { version: 9, instances: vec![] }.encode_to_vec(), 0, 10),
            Err(Error::OtherVersion(9))
        ));
        let nobody = StoredInstance { instance_id: "a b".into(), ..Default::default() };
        let bytes = Stored { version: VERSION, instances: vec![nobody] }.encode_to_vec();
        assert!(matches!(read(&bytes, 0, 10), Err(Error::Unsound { .. })));
    }
}
