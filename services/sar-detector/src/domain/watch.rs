//! One instance under watch: its recent samples, its model, and its episodes.
//!
//! A sample becomes a point of [`FEATURES`] features per replica, each through `asinh(value / unit)`: a difference of
//! one unit near zero, a share of the value far from it. A point is judged once the model has learned `warm` of them,
//! and is suspicious if it scores above the threshold *and* one feature lies `effect` or more from its median: what is
//! rare but small is not worth a word. `hold` suspicious samples in a row are an episode; `calm` that are not end it.
//! Suspicious points are not learned unless they were too few to be an episode; an episode that lasts for `accept_ms`
//! is what is usual now, and the model begins again.

use std::collections::VecDeque;

use mesh_proto::{
    Timestamp,
    anomaly::{Contribution, Direction, Ending, ModelMetric},
    telemetry::InstanceSample,
};

use super::{
    forest::{Forest, Rng, Shape},
    rules::{FIELDS, Row, Rule, Standing, Turn},
};

/// Features of a point: CPU, memory, growth of memory, read and write rate.
pub const FEATURES: usize = 5;
/// What each feature is divided by before `asinh`: thousandths of a core, megabytes, megabytes a second, bytes a second.
const UNIT: [f64; FEATURES] = [20.0, 10.0, 0.2, 100e3, 100e3];
/// What counts as no difference, after `asinh`.
const GRAIN: [f64; FEATURES] = [0.3, 0.3, 0.6, 0.5, 0.5];
/// The metric that each feature speaks of.
const METRIC: [&str; FEATURES] = ["cpu_milli", "memory_bytes", "memory_bytes", "io_read_rate", "io_write_rate"];
/// Metrics in the order of their first feature.
const METRICS: [(&str, usize); 4] = [("cpu_milli", 0), ("memory_bytes", 1), ("io_read_rate", 3), ("io_write_rate", 4)];
const GROWTH: usize = 2;
/// Over which time growth is measured, and how much of it there must be, milliseconds.
const GROWTH_MS: i64 = 10_000;
const GROWTH_LEAST_MS: i64 = 4_000;
/// Rows kept: ten minutes at one a second.
const ROWS_MAX: usize = 620;

/// How samples are judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// Points learned before the first is judged.
    pub warm: u64,
    /// Score above which a point is suspicious.
    pub threshold: f64,
    /// Distance from the median, after `asinh`, that one feature must have.
    pub effect: f64,
    /// Suspicious samples in a row that are an episode.
    pub hold: u32,
    /// Samples in a row that are not suspicious and end it.
    pub calm: u32,
    /// First samples of a generation that are neither judged nor learned.
    pub settle: u32,
    /// How long an episode lasts before it is what is usual, milliseconds.
    pub accept_ms: i64,
}

impl Default for Judgement {
    fn default() -> Self {
        Self { warm: 30, threshold: 0.6, effect: 0.6, hold: 3, calm: 5, settle: 3, accept_ms: 900_000 }
    }
}

/// Name of the detector that judges all metrics together.
pub const MULTIVARIATE: &str = "multivariate";

/// What a sample changed, for one detector.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// An episode is certain.
    Began(Finding),
    /// An episode is over.
    Ended(String, Ending, String),
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The detector.
    pub detector: String,
    /// First sample of the episode, milliseconds since 1970.
    pub since_ms: i64,
    /// Samples from then on.
    pub samples: u32,
    /// Score, or for a rule its left side.
    pub score: f64,
    /// What it was above of.
    pub threshold: f64,
    /// Largest first.
    pub contributions: Vec<Contribution>,
    /// What is wrong, in words, without the name of the instance.
    pub says: String,
}

/// How the last sample stood, for a person.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Look {
    /// Its point.
    pub point: Vec<f64>,
    /// Its score; `None` if nothing about it was far enough from the usual to be scored.
    pub score: Option<f64>,
}

/// Samples in a row that need no score, after which the model rests.
const REST_AFTER: u32 = 30;

/// One instance.
#[derive(Clone, Debug)]
pub struct Watch {
    pub(crate) owner: String,
    pub(crate) source: String,
    pub(crate) cluster_id: String,
    pub(crate) generation: u64,
    pub(crate) last: Timestamp,
    pub(crate) forest: Forest,
    /// Samples of this generation.
    pub(crate) of_generation: u32,
    rows: VecDeque<Row>,
    /// Suspicious points in a row, not learned yet, and the time of the first.
    suspicious: Vec<Vec<f64>>,
    since_ms: i64,
    /// Is there an episode, and since when?
    episode: Option<i64>,
    calm: u32,
    /// Samples in a row that needed no score.
    unscored: u32,
    standings: Vec<Standing>,
    look: Look,
}

impl Watch {
    /// An instance of which nothing is known. The seed makes its model its own.
    pub fn new(seed: u64, rules: usize) -> Self {
        let forest = Forest::new(Shape::of(FEATURES), GRAIN.to_vec(), Rng(seed).bits());
        Self {
            owner: String::new(),
            source: String::new(),
            cluster_id: String::new(),
            generation: 0,
            last: Timestamp::default(),
            forest,
            of_generation: 0,
            rows: VecDeque::new(),
            suspicious: vec![],
            since_ms: 0,
            episode: None,
            calm: 0,
            unscored: 0,
            standings: vec![Standing::default(); rules],
            look: Look::default(),
        }
    }

    /// Takes in a sample; one that is not newer than the last, or of an older generation, changes nothing.
    pub fn take(&mut self, source: &str, sample: &InstanceSample, rules: &[Rule], how: &Judgement) -> Vec<Change> {
        let Some(at) = sample.at.filter(|at| *at > self.last) else { return vec![] };
        if sample.generation < self.generation {
            return vec![];
        }
        if sample.generation > self.generation || sample.cluster_id != self.cluster_id {
            self.rows.clear();
            self.of_generation = 0;
        }
        if !source.is_empty() {
            source.clone_into(&mut self.source);
        }
        self.owner.clone_from(&sample.owner);
        self.cluster_id.clone_from(&sample.cluster_id);
        (self.generation, self.last) = (sample.generation, at);
        self.of_generation = self.of_generation.saturating_add(1);
        // No longer than somebody looks back.
        let span_ms = rules.iter().map(Rule::span_ms).fold(GROWTH_MS, i64::max);
        let is_over = |oldest: &Row| at.as_millis() - oldest.at_ms > span_ms;
        while self.rows.len() >= ROWS_MAX || self.rows.front().is_some_and(is_over) {
            self.rows.pop_front();
        }
        self.rows.push_back(row(at.as_millis(), sample));
        let mut changes = self.by_rules(rules);
        if self.of_generation > how.settle {
            changes.extend(self.by_model(at.as_millis(), how));
        }
        changes
    }

    /// Ends every episode, as there is nothing more to be said about it.
    pub fn end(&mut self, ending: Ending, reason: &str, rules: &[Rule]) -> Vec<Change> {
        let of_rules = self.standings.iter().zip(rules).filter(|(s, _)| s.fired).map(|(_, rule)| named(rule));
        let detectors = self.episode.map(|_| MULTIVARIATE.to_owned()).into_iter().chain(of_rules);
        let changes = detectors.map(|detector| Change::Ended(detector, ending, reason.to_owned())).collect();
        (self.episode, self.calm) = (None, 0);
        self.suspicious.clear();
        self.standings.fill(Standing::default());
        changes
    }

    /// Goes on with an episode that was told before a restart.
    pub fn resume(&mut self, detector: &str, since_ms: i64, rules: &[Rule]) {
        if detector == MULTIVARIATE {
            self.episode = self.episode.or(Some(since_ms));
        }
        for (standing, rule) in self.standings.iter_mut().zip(rules) {
            if detector == named(rule) {
                *standing = Standing { fired: true, ..Standing::default() };
            }
        }
    }

    /// The last sample's score, if it had to be scored, or what the model scores it now; and per metric its value, the median and spread (scaled median deviation) of what was
    /// learned, and its share of that score.
    pub fn explain(&self) -> (f64, Vec<ModelMetric>) {
        let Look { point, score } = &self.look;
        let score = score.unwrap_or_else(|| self.forest.score(point));
        let shares = self.shares(point);
        let metrics = METRICS.iter().enumerate().map(|(n, (metric, feature))| {
            let (middle, spread) = middle(self.forest.values(*feature).map(|z| plain(*feature, z)).collect());
            let value = point.get(*feature).map_or(0.0, |z| plain(*feature, *z));
            // Learned in megabytes, told in bytes.
            let scale = if *metric == "memory_bytes" { 1e6 } else { 1.0 };
            ModelMetric {
                metric: (*metric).to_owned(),
                value: value * scale,
                usual: middle * scale,
                spread: spread * scale,
                share: shares.get(n).copied().unwrap_or_default(),
            }
        });
        (score, metrics.collect())
    }

    fn by_rules(&mut self, rules: &[Rule]) -> Vec<Change> {
        let mut changes = vec![];
        for (standing, rule) in self.standings.iter_mut().zip(rules) {
            match rule.step(standing, &self.rows) {
                Some(Turn::Cleared) => {
                    let reason = format!("rule {} does not hold any more", rule.name);
                    changes.push(Change::Ended(named(rule), Ending::Normal, reason));
                }
                Some(Turn::Fired(evidence)) => {
                    let share = 1.0 / evidence.len().max(1) as f64;
                    let told: Vec<String> = evidence
                        .iter()
                        .map(|e| format!("{} is {:.2} (bound {:.2})", e.field, e.value, e.bound))
                        .collect();
                    let first = evidence.first();
                    changes.push(Change::Began(Finding {
                        detector: named(rule),
                        since_ms: standing.since_ms.unwrap_or_default(),
                        samples: standing.samples,
                        score: first.map_or(0.0, |e| e.value),
                        threshold: first.map_or(0.0, |e| e.bound),
                        says: format!("{}: rule {} holds", told.join(", "), rule.text),
                        contributions: evidence
                            .iter()
                            .map(|e| Contribution {
                                metric: e.field.to_owned(),
                                share,
                                value: e.value,
                                usual: e.bound,
                                direction: (if e.above { Direction::Above } else { Direction::Below }).into(),
                            })
                            .collect(),
                    }));
                    (standing.since_ms, standing.samples) = (None, 0);
                }
                None => {}
            }
        }
        changes
    }

    fn by_model(&mut self, at_ms: i64, how: &Judgement) -> Option<Change> {
        let point = self.point(how.settle)?;
        if self.forest.learned() < how.warm && self.episode.is_none() {
            self.look = Look { point: point.clone(), score: None };
            self.forest.learn(&point);
            return None;
        }
        // The score costs far more than the effect, and without an effect it changes nothing.
        let has_effect = self.effect(&point) >= how.effect;
        let score = has_effect.then(|| {
            self.forest.wake();
            self.forest.score(&point)
        });
        self.unscored = if has_effect { 0 } else { self.unscored.saturating_add(1) };
        if self.unscored == REST_AFTER {
            self.forest.rest();
        }
        self.look = Look { point: point.clone(), score };
        // Once it is an episode, it takes more to be fine again than it took not to be.
        let threshold = if self.episode.is_some() { how.threshold - 0.05 } else { how.threshold };
        let score = score.unwrap_or_default();
        let suspicious = has_effect && score > threshold;
        if let Some(since_ms) = self.episode {
            self.calm = if suspicious { 0 } else { self.calm + 1 };
            let ended = |ending, reason: String| Some(Change::Ended(MULTIVARIATE.to_owned(), ending, reason));
            if self.calm >= how.calm {
                (self.episode, self.calm) = (None, 0);
                return ended(Ending::Normal, format!("{} samples in a row were as usual", how.calm));
            }
            if at_ms - since_ms >= how.accept_ms {
                (self.episode, self.calm) = (None, 0);
                let seed = self.forest.rng.bits();
                self.forest = Forest::new(self.forest.shape(), GRAIN.to_vec(), seed);
                self.forest.learn(&point);
                return ended(
                    Ending::Learned,
                    format!("for {} s it has been what is usual now", how.accept_ms / 1_000),
                );
            }
            return None;
        }
        if !suspicious {
            for held in self.suspicious.drain(..) {
                self.forest.learn(&held);
            }
            self.forest.learn(&point);
            return None;
        }
        if self.suspicious.is_empty() {
            self.since_ms = at_ms;
        }
        self.suspicious.push(point.clone());
        if (self.suspicious.len() as u32) < how.hold {
            return None;
        }
        let samples = self.suspicious.len() as u32;
        self.suspicious.clear();
        self.episode = Some(self.since_ms);
        let contributions = self.contributions(&point);
        let says = self.sentence(&point, &contributions, score, how.threshold);
        Some(Change::Began(Finding {
            detector: MULTIVARIATE.to_owned(),
            since_ms: self.since_ms,
            samples,
            score,
            threshold: how.threshold,
            contributions,
            says,
        }))
    }

    /// The point of the last sample. Growth is over the same replicas and judged samples only, and none before there is
    /// enough time.
    fn point(&self, settle: u32) -> Option<Vec<f64>> {
        let newest = self.rows.back()?;
        let [_, cpu, memory, read, write, _, replicas, _] = newest.values;
        let per = replicas.max(1.0);
        let same = |row: &&Row| newest.at_ms - row.at_ms <= GROWTH_MS && row.values[6] == replicas;
        let settled = self.of_generation.saturating_sub(settle) as usize;
        let oldest = self.rows.iter().rev().take(settled).take_while(same).last().unwrap_or(newest);
        let spans_ms = newest.at_ms - oldest.at_ms;
        let growth = match spans_ms {
            GROWTH_LEAST_MS.. => (memory - oldest.values[2]) * 1e3 / spans_ms as f64,
            _ => 0.0,
        };
        let values = [cpu, memory, growth, read, write];
        let point: Vec<f64> = values.iter().zip(UNIT).map(|(value, unit)| (value / per / unit).asinh()).collect();
        point.iter().all(|z| z.is_finite()).then_some(point)
    }

    /// How far the feature that is furthest from its median is from it.
    fn effect(&self, point: &[f64]) -> f64 {
        let distances = point.iter().enumerate().map(|(j, z)| (z - middle(self.forest.values(j).collect()).0).abs());
        distances.fold(0.0, f64::max)
    }

    /// Shares of a point's score by metric, in the order of [`METRICS`].
    fn shares(&self, point: &[f64]) -> Vec<f64> {
        let parts = self.forest.contributions(point).unwrap_or_default();
        let of = |metric: &str| {
            let mine = parts.iter().enumerate().filter(|(j, _)| METRIC[*j] == metric);
            mine.map(|(_, part)| part.max(0.0)).sum::<f64>()
        };
        let sums: Vec<f64> = METRICS.iter().map(|(metric, _)| of(metric)).collect();
        let total: f64 = sums.iter().sum();
        sums.into_iter().map(|sum| if total > 0.0 { sum / total } else { 0.0 }).collect()
    }

    fn contributions(&self, point: &[f64]) -> Vec<Contribution> {
        let shares = self.shares(point);
        let mut told: Vec<Contribution> = METRICS
            .iter()
            .zip(shares)
            .map(|((metric, feature), share)| {
                let scale = if *metric == "memory_bytes" { 1e6 } else { 1.0 };
                let usual = middle(self.forest.values(*feature).collect()).0;
                // Memory that grows is above before its level is.
                let growth = if *metric == "memory_bytes" { point[GROWTH] } else { 0.0 };
                let away = point[*feature] - usual + growth;
                Contribution {
                    metric: (*metric).to_owned(),
                    share,
                    value: plain(*feature, point[*feature]) * scale,
                    usual: plain(*feature, usual) * scale,
                    direction: (if away < 0.0 { Direction::Below } else { Direction::Above }).into(),
                }
            })
            .collect();
        told.sort_by(|a, b| b.share.total_cmp(&a.share));
        told
    }

    fn sentence(&self, point: &[f64], contributions: &[Contribution], score: f64, threshold: f64) -> String {
        let Some(first) = contributions.first() else { return String::new() };
        let (value, usual) = (in_words(&first.metric, first.value), in_words(&first.metric, first.usual));
        let growth = plain(GROWTH, point[GROWTH]);
        let growing = if first.metric == "memory_bytes" && growth.abs() > 0.1 {
            format!(" and changes by {growth:+.1} MB/s")
        } else {
            String::new()
        };
        let way = if first.direction() == Direction::Below { "below" } else { "above" };
        format!(
            "{} is {way} what is usual: {value}, usually {usual}{growing}; {:.0} % of a score of {score:.2} (threshold \
             {threshold:.2})",
            first.metric,
            first.share * 100.0
        )
    }
}

/// Name of a rule as a detector.
pub(crate) fn named(rule: &Rule) -> String {
    format!("rule:{}", rule.name)
}

fn row(at_ms: i64, sample: &InstanceSample) -> Row {
    let values: [f64; FIELDS.len()] = [
        sample.cpu_percent,
        sample.cpu_milli,
        sample.memory_bytes as f64 / 1e6,
        sample.io_read_rate,
        sample.io_write_rate,
        f64::from(sample.restarts),
        f64::from(sample.replicas_running),
        sample.interval_seconds,
    ];
    Row { at_ms, values }
}

/// A feature's value in its own unit, per replica.
fn plain(feature: usize, z: f64) -> f64 {
    z.sinh() * UNIT[feature]
}

fn in_words(metric: &str, value: f64) -> String {
    match metric {
        "memory_bytes" => format!("{:.1} MB", value / 1e6),
        "cpu_milli" => format!("{value:.0} mCPU"),
        _ => format!("{:.0} kB/s", value / 1e3),
    }
}

/// Median, and median distance from it times 1.4826 (the standard deviation, were they normal); 0 of nothing.
fn middle(mut values: Vec<f64>) -> (f64, f64) {
    let half = values.len() / 2;
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let median = *values.select_nth_unstable_by(half, f64::total_cmp).1;
    for value in &mut values {
        *value = (*value - median).abs();
    }
    (median, *values.select_nth_unstable_by(half, f64::total_cmp).1 * 1.4826)
}

#[cfg(test)]
mod tests;
