//! A streaming isolation forest that sees what lies beyond what it has learned.
//!
//! - **Trees** are isolation trees (Liu, Ting, Zhou 2008): a random feature, a random cut in its range, down to single
//!   points. Each is grown from a few points drawn from a window of the last ones; every `turnover` points the oldest
//!   tree is replaced. Memory is bounded by the [`Shape`].
//! - **Score.** The usual path length cannot tell a point just beyond the window from one a hundred times as far. Here
//!   it is the *expected* depth at which the point would be cut off were it inserted (the insertion rule of robust
//!   random cut forests, Guha et al. 2016, with the feature drawn evenly so that no unit matters): in a node whose box
//!   the point leaves by `out` beside a side of `len`, that feature cuts it off with probability `out / (len + out)`.
//! - **Grain.** What differs by less than a feature's grain is the same: a constant that wavers is not an anomaly.
//! - **Contributions** are Shapley values of the expected depth of that very point: exact, over all subsets of
//!   features; a feature outside the subset never cuts, and at its splits both sides count by their points.
//!
//! Every tree is a function of its points and a seed, so a snapshot holds those, and a restored forest scores the same.
//! A forest at rest holds no more than that either: its trees are grown when a point is scored, and stay grown only while
//! the forest is awake.

use std::borrow::Cow;

/// Features that contributions can be told of: their cost doubles with each.
pub const FEATURES_MAX: usize = 10;

/// A small seeded generator (splitmix64), part of every snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly from 0 (included) to 1 (excluded).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Evenly below `n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }
}

/// How large a forest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Features of a point.
    pub features: usize,
    /// Trees.
    pub trees: usize,
    /// Points of a tree.
    pub points: usize,
    /// Points remembered, from which trees draw theirs.
    pub window: usize,
    /// Points learned for each tree that is replaced.
    pub turnover: usize,
}

impl Shape {
    /// The shape measured best on Shuttle in stream order, for points of this many features.
    pub fn of(features: usize) -> Self {
        Self { features, trees: 64, points: 16, window: 256, turnover: 16 }
    }

    /// Is it one that a forest can have?
    pub fn is_sound(&self) -> bool {
        (1..=64).contains(&self.features)
            && (1..=1_024).contains(&self.trees)
            && (2..=1_024).contains(&self.points)
            && (self.points..=65_536).contains(&self.window)
            && self.turnover > 0
    }

    /// Bytes that a full forest takes at rest, the allocator's own left out.
    pub fn bytes(&self) -> usize {
        let tree = size_of::<Tree>() + self.points * self.features * size_of::<f32>();
        self.trees * tree + self.window * self.features * size_of::<f32>()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Node {
    cut: f64,
    points: u32,
    feature: u32,
    /// Children; 0 for a leaf, as the root is nobody's child.
    left: u32,
    right: u32,
}

/// One tree, with the points and the seed that make it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tree {
    pub(crate) seed: u64,
    /// Flat, point after point.
    pub(crate) points: Box<[f32]>,
}

/// A tree as it is searched.
#[derive(Clone, Debug, PartialEq)]
struct Grown {
    nodes: Vec<Node>,
    /// Lowest and highest value of each feature, node after node.
    boxes: Vec<f64>,
}

impl Tree {
    fn grow(&self, features: usize) -> Grown {
        let points: Vec<f64> = self.points.iter().map(|value| f64::from(*value)).collect();
        let mut rows: Vec<&[f64]> = points.chunks_exact(features).collect();
        let (mut nodes, mut boxes) = (vec![], vec![]);
        split(&mut rows, features, &mut Rng(self.seed), &mut nodes, &mut boxes);
        Grown { nodes, boxes }
    }
}

impl Grown {
    /// Expected depth at which the point is cut off.
    fn depth(&self, point: &[f64], grain: &[f64]) -> f64 {
        let (mut at, mut depth, mut alive, mut expected) = (0, 0.0, 1.0, 0.0);
        loop {
            let node = &self.nodes[at];
            let cut_off = self.cut_off(at, point, grain, u32::MAX);
            expected += alive * cut_off * (depth + 1.0);
            alive *= 1.0 - cut_off;
            if node.left == 0 {
                return expected + alive * (depth + usual_depth(f64::from(node.points)));
            }
            if alive < 1e-9 {
                return expected;
            }
            at = if point[node.feature as usize] <= node.cut { node.left } else { node.right } as usize;
            depth += 1.0;
        }
    }

    /// Expected depth when only the features of a set are known.
    fn depth_of(&self, at: usize, depth: f64, point: &[f64], grain: &[f64], known: u32) -> f64 {
        let node = &self.nodes[at];
        let cut_off = self.cut_off(at, point, grain, known);
        let below = if cut_off >= 1.0 {
            0.0
        } else if node.left == 0 {
            depth + usual_depth(f64::from(node.points))
        } else {
            let (left, right) = (node.left as usize, node.right as usize);
            let go = |child| self.depth_of(child, depth + 1.0, point, grain, known);
            if known >> node.feature & 1 == 1 {
                go(if point[node.feature as usize] <= node.cut { left } else { right })
            } else {
                let share = f64::from(self.nodes[left].points) / f64::from(node.points);
                share * go(left) + (1.0 - share) * go(right)
            }
        };
        cut_off * (depth + 1.0) + (1.0 - cut_off) * below
    }

    /// Probability that the first cut after inserting the point here cuts it off from the node's points.
    fn cut_off(&self, node: usize, point: &[f64], grain: &[f64], known: u32) -> f64 {
        let sides = &self.boxes[node * 2 * point.len()..][..2 * point.len()];
        let (mut cut_off, mut open) = (0.0, 0.0);
        for (j, side) in sides.chunks_exact(2).enumerate() {
            let out = if known >> j.min(31) & 1 == 1 {
                (side[0] - point[j]).max(point[j] - side[1]).max(0.0) - grain[j]
            } else {
                0.0
            };
            let length = side[1] - side[0] + out.max(0.0);
            if length > 0.0 {
                cut_off += out.max(0.0) / length;
                open += 1.0;
            }
        }
        if open > 0.0 { cut_off / open } else { 0.0 }
    }
}

fn split(rows: &mut [&[f64]], features: usize, rng: &mut Rng, nodes: &mut Vec<Node>, boxes: &mut Vec<f64>) -> u32 {
    let at = nodes.len();
    nodes.push(Node { cut: 0.0, points: rows.len() as u32, feature: 0, left: 0, right: 0 });
    let start = boxes.len();
    for j in 0..features {
        let values = || rows.iter().map(|row| row[j]);
        boxes.extend([values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max)]);
    }
    let side = |boxes: &[f64], j: usize| (boxes[start + 2 * j], boxes[start + 2 * j + 1]);
    let open = (0..features).filter(|&j| side(boxes, j).0 < side(boxes, j).1).count();
    if rows.len() < 2 || open == 0 {
        return at as u32;
    }
    let pick = rng.below(open);
    let feature = (0..features).filter(|&j| side(boxes, j).0 < side(boxes, j).1).nth(pick).unwrap_or_default();
    let (low, high) = side(boxes, feature);
    // Half and half, so that no sum of two large values overflows; never at the top, so that no side is empty.
    let chance = rng.unit();
    let cut = low * (1.0 - chance) + high * chance;
    let cut = if cut < low || cut >= high { low } else { cut };
    rows.sort_by(|a, b| (a[feature] > cut).cmp(&(b[feature] > cut)));
    let middle = rows.iter().filter(|row| row[feature] <= cut).count();
    let (below, above) = rows.split_at_mut(middle);
    let left = split(below, features, rng, nodes, boxes);
    let right = split(above, features, rng, nodes, boxes);
    nodes[at] = Node { cut, feature: feature as u32, left, right, ..nodes[at] };
    at as u32
}

/// Mean depth of a search that fails in a random tree of this many points.
fn usual_depth(points: f64) -> f64 {
    const EULER: f64 = 0.577_215_664_901_532_9;
    match points {
        n if n < 2.0 => 0.0,
        n if n < 3.0 => 1.0,
        n => 2.0 * ((n - 1.0).ln() + EULER) - 2.0 * (n - 1.0) / n,
    }
}

/// The forest.
#[derive(Clone, Debug, PartialEq)]
pub struct Forest {
    pub(crate) shape: Shape,
    pub(crate) grain: Vec<f64>,
    pub(crate) rng: Rng,
    /// Flat, the newest points in the order of a ring.
    pub(crate) window: Vec<f32>,
    /// Points learned since the beginning.
    pub(crate) learned: u64,
    pub(crate) trees: Vec<Tree>,
    /// The tree that is replaced next.
    pub(crate) next: usize,
    /// The trees as they are searched, in their order; empty at rest.
    grown: Vec<Grown>,
    is_awake: bool,
}

impl Forest {
    /// A forest that has learned nothing. `grain`: per feature, in the feature's unit, what counts as no difference.
    /// An unsound shape is replaced by the usual one.
    pub fn new(shape: Shape, grain: Vec<f64>, seed: u64) -> Self {
        let shape = if shape.is_sound() { shape } else { Shape::of(shape.features.clamp(1, 64)) };
        let mut grain = grain;
        grain.resize(shape.features, 0.0);
        Self {
            shape,
            grain,
            rng: Rng(seed),
            window: vec![],
            learned: 0,
            trees: vec![],
            next: 0,
            grown: vec![],
            is_awake: false,
        }
    }

    /// Points learned since the beginning.
    pub fn learned(&self) -> u64 {
        self.learned
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The remembered values of one feature, in no order.
    pub fn values(&self, feature: usize) -> impl Iterator<Item = f64> {
        self.window.chunks_exact(self.shape.features).filter_map(move |point| point.get(feature).map(|v| f64::from(*v)))
    }

    /// Keeps the trees grown from now on: for points that are all scored.
    pub fn wake(&mut self) {
        if !self.is_awake {
            self.is_awake = true;
            self.grown = self.grow();
        }
    }

    /// Holds no grown trees any more, until it is woken.
    pub fn rest(&mut self) {
        (self.is_awake, self.grown) = (false, vec![]);
    }

    fn grow(&self) -> Vec<Grown> {
        self.trees.iter().map(|tree| tree.grow(self.shape.features)).collect()
    }

    fn grown(&self) -> Cow<'_, [Grown]> {
        if self.is_awake { Cow::Borrowed(&self.grown) } else { Cow::Owned(self.grow()) }
    }

    /// How anomalous a point is: near 1 if it is cut off at once, about 0.5 and less if it is one of many. 0.5 before
    /// there are trees, and for what is not a point (another number of features, or a value that is not finite).
    pub fn score(&self, point: &[f64]) -> f64 {
        if self.trees.is_empty() || !self.is_point(point) {
            return 0.5;
        }
        let sum: f64 = self.grown().iter().map(|tree| tree.depth(point, &self.grain)).sum();
        (-sum / self.trees.len() as f64 / usual_depth(self.shape.points as f64)).exp2()
    }

    /// Takes a point in. What is not a point is left out.
    pub fn learn(&mut self, point: &[f64]) {
        if !self.is_point(point) {
            return;
        }
        let Shape { features, trees, points, window, turnover } = self.shape;
        let point = point.iter().map(|value| *value as f32);
        if self.window.len() < window * features {
            self.window.reserve_exact(features);
            self.window.extend(point);
        } else {
            let start = (self.learned % window as u64) as usize * features;
            self.window[start..start + features].iter_mut().zip(point).for_each(|(old, new)| *old = new);
        }
        self.learned += 1;
        if self.learned < points as u64 {
            return;
        }
        if self.trees.len() < trees {
            // While it is young it fills up, four trees a point, so that it soon can judge.
            for _ in 0..4.min(trees - self.trees.len()) {
                let tree = self.draw();
                self.grown.extend(self.is_awake.then(|| tree.grow(features)));
                self.trees.push(tree);
            }
        } else if self.learned.is_multiple_of(turnover as u64) {
            let tree = self.draw();
            if self.is_awake {
                self.grown[self.next] = tree.grow(features);
            }
            self.trees[self.next] = tree;
            self.next = (self.next + 1) % trees;
        }
    }

    /// How much each feature has to do with the score of a point: the Shapley values of its expected depth, negated,
    /// so that what makes it shallow (anomalous) is positive. Their sum is the depth expected of no point in particular less that
    /// of this one. `None` for more than [`FEATURES_MAX`] features, no trees, or no point.
    pub fn contributions(&self, point: &[f64]) -> Option<Vec<f64>> {
        let features = self.shape.features;
        if features > FEATURES_MAX || self.trees.is_empty() || !self.is_point(point) {
            return None;
        }
        let grown = self.grown();
        let mean = |known: u32| {
            let depths = grown.iter().map(|tree| tree.depth_of(0, 0.0, point, &self.grain, known));
            depths.sum::<f64>() / grown.len() as f64
        };
        let depths: Vec<f64> = (0..1u32 << features).map(mean).collect();
        // Weight of a subset of k others: k! (n - k - 1)! / n!.
        let factorial = |n: usize| (1..=n).map(|i| i as f64).product::<f64>();
        let weight = |k: usize| factorial(k) * factorial(features - k - 1) / factorial(features);
        let value = |j: usize| {
            let without = (0..depths.len()).filter(|set| set >> j & 1 == 0);
            without.map(|set| weight(set.count_ones() as usize) * (depths[set] - depths[set | 1 << j])).sum()
        };
        Some((0..features).map(value).collect())
    }

    fn is_point(&self, point: &[f64]) -> bool {
        // Remembered in single precision: what is too large for that is no point.
        point.len() == self.shape.features && point.iter().all(|value| (*value as f32).is_finite())
    }

    fn draw(&mut self) -> Tree {
        let features = self.shape.features;
        let known = self.window.len() / features;
        let mut order: Vec<usize> = (0..known).collect();
        let mut points = Vec::with_capacity(self.shape.points * features);
        for n in 0..self.shape.points.min(known) {
            order.swap(n, n + self.rng.below(known - n));
            points.extend_from_slice(&self.window[order[n] * features..][..features]);
        }
        Tree { seed: self.rng.bits(), points: points.into_boxed_slice() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two quiet features and a third that is constant.
    fn quiet(rng: &mut Rng) -> [f64; 3] {
        [10.0 + rng.unit(), 100.0 + 5.0 * rng.unit(), 7.0]
    }

    fn taught(count: usize) -> (Forest, Rng) {
        let mut rng = Rng(1);
        let mut forest = Forest::new(Shape::of(3), vec![0.1, 0.1, 0.1], 42);
        for _ in 0..count {
            forest.learn(&quiet(&mut rng));
        }
        (forest, rng)
    }

    #[test]
    fn the_further_from_the_usual_the_higher_the_score() {
        let (forest, mut rng) = taught(500);
        let usual = (0..100).map(|_| forest.score(&quiet(&mut rng))).fold(0.0, f64::max);
        let (near, far) = (forest.score(&[11.5, 102.0, 7.0]), forest.score(&[40.0, 102.0, 7.0]));
        assert!(usual < near && near < far && far > 0.7, "usual {usual}, near {near}, far {far}");
        let both = forest.score(&[40.0, 300.0, 7.0]);
        assert!(both > far, "{both} {far}");
    }

    #[test]
    fn a_difference_below_the_grain_is_none() {
        let (forest, _) = taught(500);
        let point = [10.5, 102.0, 7.0];
        assert_eq!(forest.score(&point), forest.score(&[10.5, 102.0, 7.05]));
        assert!(forest.score(&[10.5, 102.0, 7.5]) > forest.score(&point) + 0.1);
    }

    #[test]
    fn contributions_name_the_feature_that_is_wrong_and_add_up_to_the_depth() {
        let (forest, _) = taught(500);
        for (wrong, point) in [(0, [40.0, 102.0, 7.0]), (1, [10.5, 20.0, 7.0]), (2, [10.5, 102.0, 9.0])] {
            let parts = forest.contributions(&point).unwrap();
            let first = (0..3).max_by(|a, b| parts[*a].total_cmp(&parts[*b])).unwrap();
            assert_eq!(first, wrong, "{parts:?}");
            let mean = |known| {
                let depths = forest.grow().into_iter().map(|t| t.depth_of(0, 0.0, &point, &forest.grain, known));
                depths.sum::<f64>() / forest.trees.len() as f64
            };
            assert!((parts.iter().sum::<f64>() - (mean(0) - mean(0b111))).abs() < 1e-9);
            let score = (-mean(0b111) / usual_depth(16.0)).exp2();
            assert!((score - forest.score(&point)).abs() < 1e-9, "the explained depth is that of the score");
        }
    }

    #[test]
    fn it_forgets_what_was_usual_long_ago() {
        let (mut forest, mut rng) = taught(500);
        let moved = |rng: &mut Rng| [50.0 + rng.unit(), 100.0 + 5.0 * rng.unit(), 7.0];
        let before = forest.score(&moved(&mut rng));
        for _ in 0..2_000 {
            forest.learn(&moved(&mut rng));
        }
        let after = forest.score(&moved(&mut rng));
        assert!(before > 0.7 && after < 0.6, "{before} {after}");
    }

    #[test]
    fn its_size_is_bounded_and_what_is_no_point_changes_nothing() {
        let (mut forest, _) = taught(5_000);
        assert_eq!((forest.trees.len(), forest.window.len()), (64, 256 * 3));
        assert!(
            forest.grow().iter().all(|t| t.nodes.len() < 32) && forest.trees.iter().all(|t| t.points.len() == 16 * 3)
        );
        let before = forest.clone();
        for wrong in [&[1.0, 2.0][..], &[f64::NAN, 1.0, 1.0], &[f64::INFINITY, 1.0, 1.0], &[]] {
            forest.learn(wrong);
            assert_eq!(forest.score(wrong), 0.5);
        }
        assert_eq!(forest, before);
        assert!(forest.score(&[f64::from(f32::MAX), f64::from(f32::MIN), 1e30]).is_finite());
        assert_eq!(forest.score(&[f64::MAX, 1.0, 1.0]), 0.5, "too large to be remembered");
    }

    #[test]
    fn awake_or_at_rest_it_scores_the_same() {
        let (mut resting, mut rng) = taught(100);
        let mut awake = resting.clone();
        awake.wake();
        for n in 0..600 {
            let point = quiet(&mut rng);
            assert_eq!(resting.score(&point).to_bits(), awake.score(&point).to_bits());
            resting.learn(&point);
            awake.learn(&point);
            if n == 300 {
                awake.rest();
                awake.wake();
            }
        }
        assert_eq!(resting.contributions(&[9.0, 90.0, 7.0]), awake.contributions(&[9.0, 90.0, 7.0]));
        awake.rest();
        assert_eq!(resting, awake);
    }

    #[test]
    fn the_same_points_make_the_same_forest() {
        assert_eq!(taught(700).0, taught(700).0);
    }
}
