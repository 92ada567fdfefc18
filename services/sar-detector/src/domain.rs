//! Anomalies of every instance, from its samples: episodes that begin once and end once.
//!
//! - Samples come live (Zenoh) and packed (the TELEMETRY stream); of each instance they are taken in the order of their
//!   time, each once. What the stream holds from before the start teaches the models and tells nothing.
//! - An episode's id is made of its instance, detector and first sample; what was told of it is read back from the
//!   ANOMALY stream, so that a restart neither repeats nor forgets it.
//! - Everything is bounded: instances, rows, models, rules, episodes.

pub mod remedies;
pub mod remedy_list;

pub mod forest;
pub mod rules;
pub mod snapshot;
pub mod watch;

use std::collections::BTreeMap;

use bytes::Bytes;
use mesh_core::Stored;
use mesh_core::{Derived, Projector};
use mesh_proto::{
    Event as _, Timestamp,
    anomaly::{AnomalyCleared, AnomalyDetected, AnomalyView, Ending, ModelView},
    derived_id, instance_samples, is_key,
    measurement::{Selector, SetMeasurement, Setting},
    telemetry::{InstanceSample, Measured, Packed},
    workload::InstanceWanted,
};

use self::{
    rules::Rule,
    watch::{Change, FEATURES, Judgement, MULTIVARIATE, Watch},
};

/// Limits of the detector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// How samples are judged.
    pub judgement: Judgement,
    /// Instances under watch.
    pub instances_max: usize,
    /// Episodes kept in mind.
    pub episodes_max: usize,
    /// How far ahead of the detector's clock a sample may be, milliseconds.
    pub ahead_ms: i64,
    /// How long a sample may be under way and still be judged aloud, milliseconds.
    pub late_ms: i64,
    /// Without a sample for so long, an episode is over, milliseconds.
    pub silent_ms: i64,
    /// Without a sample for so long, an instance is forgotten, milliseconds.
    pub idle_ms: i64,
    /// How long what is suspected is looked at more often, milliseconds; 0 for never.
    pub escalate_ms: i64,
    /// How often, milliseconds between two looks.
    pub escalate_interval_ms: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            judgement: Judgement::default(),
            instances_max: 1_000,
            episodes_max: 10_000,
            ahead_ms: 5_000,
            late_ms: 30_000,
            silent_ms: 60_000,
            idle_ms: 3_600_000,
            escalate_ms: 120_000,
            escalate_interval_ms: 200,
        }
    }
}

/// What looks at an instance that is suspected, each by kind of entity and probe: whatever measures it, but the samples that
/// are judged, which stay comparable with those learned from.
const ESCALATED: [(&str, &str); 4] =
    [("instance", "process"), ("instance", "cgroup"), ("application", "application"), ("application", "otlp")];

/// What came in and was not used, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Samples judged or learned.
    pub samples: u64,
    /// Invalid facts and samples: undecodable, of another thing than their key names, not finite, negative.
    pub invalid: u64,
    /// Samples from too far ahead of the detector's clock.
    pub ahead: u64,
    /// Samples of instances beyond the limit.
    pub crowded: u64,
    /// Samples not newer than the last, most of them the same by the other way.
    pub known: u64,
}

/// Instance and detector.
type Spot = (String, String);

/// The detector.
#[derive(Debug)]
pub struct Sar {
    limits: Limits,
    rules: Vec<Rule>,
    counts: Counts,
    /// The time, once it is known: before, everything is history.
    now: Option<Timestamp>,
    swept: Timestamp,
    watches: BTreeMap<String, Watch>,
    /// `name@version` by instance, of those that are wanted.
    workloads: BTreeMap<String, String>,
    /// Episodes that were told and have not ended, by where they are.
    open: BTreeMap<Spot, String>,
    /// Episodes that began in history and were not told: told with the next live sample.
    untold: BTreeMap<Spot, AnomalyDetected>,
    episodes: BTreeMap<String, (u64, AnomalyView)>,
    by_order: BTreeMap<u64, String>,
    order: u64,
}

/// How often silence and idleness are looked for, milliseconds.
const SWEEP_MS: i64 = 1_000;

impl Sar {
    /// A detector that knows nothing.
    pub fn new(limits: Limits, rules: Vec<Rule>) -> Self {
        Self {
            limits,
            rules,
            counts: Counts::default(),
            now: None,
            swept: Timestamp::default(),
            watches: BTreeMap::new(),
            workloads: BTreeMap::new(),
            open: BTreeMap::new(),
            untold: BTreeMap::new(),
            episodes: BTreeMap::new(),
            by_order: BTreeMap::new(),
            order: 0,
        }
    }

    /// What came in and was not used.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Its rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Instances with a model, how many there can be, and bytes of all models.
    pub fn models(&self) -> (usize, usize, usize) {
        let bytes = self.watches.values().map(|w| w.forest.shape().bytes()).sum();
        (self.watches.len(), self.limits.instances_max, bytes)
    }

    /// Episodes that have not ended.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// An episode by its id, or by the beginning of it (four characters and more) if no other begins so.
    pub fn episode(&self, id: &str) -> Option<&AnomalyView> {
        if id.len() < 4 {
            return None;
        }
        let mut found = self.episodes.range(id.to_owned()..).take_while(|(known, _)| known.starts_with(id));
        let (first_id, (_, first)) = found.next()?;
        (first_id == id || found.next().is_none()).then_some(first)
    }

    /// Episodes that fit, newest change first.
    pub fn episodes(&self, fits: impl Fn(&AnomalyView) -> bool, limit: usize) -> Vec<AnomalyView> {
        let newest = self.by_order.values().rev().filter_map(|id| self.episodes.get(id));
        newest.map(|(_, view)| view).filter(|view| fits(view)).take(limit).cloned().collect()
    }

    /// Episodes changed after `order`, oldest first, at most 256, and the order to go on from.
    pub fn since(&self, order: u64) -> (Vec<AnomalyView>, u64) {
        let (mut found, mut seen) = (vec![], order);
        for (order, id) in self.by_order.range(order.saturating_add(1)..).take(256) {
            seen = *order;
            found.extend(self.episodes.get(id).map(|(_, view)| view.clone()));
        }
        (found, seen)
    }

    /// The order of the newest change.
    pub fn order(&self) -> u64 {
        self.order
    }

    /// How an instance stands with its model.
    pub fn explain(&self, instance_id: &str) -> Option<ModelView> {
        let watch = self.watches.get(instance_id)?;
        let (score, metrics) = watch.explain();
        Some(ModelView {
            instance_id: instance_id.to_owned(),
            cluster_id: watch.cluster_id.clone(),
            generation: watch.generation,
            learned: watch.forest.learned(),
            warm: self.limits.judgement.warm,
            score,
            threshold: self.limits.judgement.threshold,
            at: Some(watch.last),
            metrics,
            bytes: watch.forest.shape().bytes() as u64,
        })
    }

    /// Its models, to be stored.
    pub fn snapshot(&self) -> Vec<u8> {
        snapshot::write(&self.watches)
    }

    /// Begins with stored models; says how many.
    ///
    /// # Errors
    /// When the bytes are no snapshot, or one of another kind of model; nothing is taken over then.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<usize, snapshot::Error> {
        let watches = snapshot::read(bytes, self.rules.len(), self.limits.instances_max)?;
        let count = watches.len();
        self.watches.extend(watches);
        Ok(count)
    }

    fn take(&mut self, source: &str, sample: &InstanceSample, live: bool) -> Vec<Derived> {
        let Some(at) = sample.at.filter(|_| is_sound(sample)) else {
            self.counts.invalid += 1;
            return vec![];
        };
        if self.now.is_some_and(|now| at.millis_since(now) > self.limits.ahead_ms) {
            self.counts.ahead += 1;
            return vec![];
        }
        let id = sample.instance_id.as_str();
        if !self.watches.contains_key(id) {
            if self.watches.len() >= self.limits.instances_max {
                self.counts.crowded += 1;
                return vec![];
            }
            self.watches.insert(id.to_owned(), Watch::new(seed(id), self.rules.len()));
        }
        let Some(watch) = self.watches.get_mut(id) else { return vec![] };
        if watch.last >= at {
            self.counts.known += 1;
            return vec![];
        }
        self.counts.samples += 1;
        // What was told before a restart goes on.
        let spots = (id.to_owned(), String::new())..;
        for ((_, detector), episode) in self.open.range(spots).take_while(|((instance, _), _)| instance == id) {
            let since = self.episodes.get(episode).and_then(|(_, view)| view.detected.as_ref()?.since);
            watch.resume(detector, since.unwrap_or(at).as_millis(), &self.rules);
        }
        let changes = watch.take(source, sample, &self.rules, &self.limits.judgement);
        let mut derived = self.tell(id, at, changes, live);
        if live {
            derived.extend(self.catch_up(id));
        }
        derived
    }

    /// Tells what changed with an instance; of history, only remembers it.
    fn tell(&mut self, id: &str, at: Timestamp, changes: Vec<Change>, live: bool) -> Vec<Derived> {
        let Some(watch) = self.watches.get(id) else { return vec![] };
        let (owner, cluster_id, generation) = (watch.owner.clone(), watch.cluster_id.clone(), watch.generation);
        let source = watch.source.clone();
        let mut derived = vec![];
        for change in changes {
            match change {
                Change::Began(found) => {
                    let since = Timestamp::from_millis(found.since_ms);
                    let spot = (id.to_owned(), found.detector.clone());
                    if self.open.contains_key(&spot) {
                        continue;
                    }
                    let workload = self.workloads.get(id).cloned().unwrap_or_default();
                    let what = if workload.is_empty() { String::new() } else { format!(" ({workload})") };
                    let sentence = format!("instance {id}{what} on {cluster_id}: {}", found.says);
                    let detected = AnomalyDetected {
                        owner: owner.clone(),
                        instance_id: id.to_owned(),
                        episode_id: derived_id(&["anomaly", &found.detector, id, &since.to_string()]),
                        detector: found.detector,
                        cluster_id: cluster_id.clone(),
                        source: source.clone(),
                        workload,
                        generation,
                        since: Some(since),
                        at: Some(at),
                        samples: found.samples,
                        score: found.score,
                        threshold: found.threshold,
                        contributions: found.contributions,
                        sentence,
                    };
                    self.untold.insert(spot, detected);
                    if live {
                        derived.extend(self.catch_up(id));
                    }
                }
                Change::Ended(detector, ending, reason) => {
                    let spot = (id.to_owned(), detector);
                    if self.untold.remove(&spot).is_some() {
                        continue;
                    }
                    // History ends nothing: if it still holds, the next live samples say so.
                    let Some(episode_id) = self.open.get(&spot).filter(|_| live).cloned() else { continue };
                    let since = self.episodes.get(&episode_id).and_then(|(_, v)| v.detected.as_ref()?.since);
                    let cleared = AnomalyCleared {
                        owner: owner.clone(),
                        instance_id: id.to_owned(),
                        episode_id,
                        detector: spot.1,
                        cluster_id: cluster_id.clone(),
                        generation,
                        since,
                        at: Some(at),
                        ending: ending.into(),
                        reason,
                    };
                    self.cleared(&cleared);
                    let id = derived_id(&["anomaly.cleared", &cleared.episode_id]);
                    derived.push(Derived::new(cleared, id, at));
                }
            }
        }
        derived
    }

    /// Tells the episodes of an instance that were not told yet.
    fn catch_up(&mut self, id: &str) -> Vec<Derived> {
        let spots: Vec<Spot> = self.untold.keys().filter(|(instance, _)| instance == id).cloned().collect();
        let mut derived = vec![];
        for spot in &spots {
            let Some(detected) = self.untold.remove(spot) else { continue };
            self.detected(&detected);
            let (id, at) = (derived_id(&["anomaly.detected", &detected.episode_id]), detected.at.unwrap_or_default());
            derived.extend(self.escalate(&detected));
            derived.push(Derived::new(detected, id, at));
        }
        derived
    }

    /// Has what is suspected looked at more often for a while.
    fn escalate(&self, detected: &AnomalyDetected) -> Vec<Derived> {
        if self.limits.escalate_ms == 0 {
            return vec![];
        }
        let at = detected.at.unwrap_or_default();
        let one = |(kind, probe): (&str, &str)| {
            let selector = Selector {
                entity_kind: kind.to_owned(),
                entity_id: detected.instance_id.clone(),
                probe: probe.to_owned(),
            };
            let setting = Setting {
                selector: Some(selector),
                interval_ms: self.limits.escalate_interval_ms,
                until: Some(at.plus_millis(self.limits.escalate_ms)),
                reason: format!("anomaly {}", detected.episode_id),
                ..Setting::default()
            };
            let id = derived_id(&["escalate", &detected.episode_id, probe]);
            // One for each instance and probe; a later anomaly takes its place.
            let setting_id = format!("anomaly-{}-{probe}", derived_id(&["escalated", &detected.instance_id]));
            let ask = SetMeasurement { cluster_id: detected.cluster_id.clone(), setting_id, setting: Some(setting) };
            Derived::new(ask, id, at)
        };
        ESCALATED.into_iter().map(one).collect()
    }

    fn detected(&mut self, detected: &AnomalyDetected) {
        if self.episodes.contains_key(&detected.episode_id) {
            return;
        }
        let spot = (detected.instance_id.clone(), detected.detector.clone());
        self.open.insert(spot, detected.episode_id.clone());
        self.touch(&detected.episode_id, |view| view.detected = Some(detected.clone()));
    }

    fn cleared(&mut self, cleared: &AnomalyCleared) {
        let spot = (cleared.instance_id.clone(), cleared.detector.clone());
        if self.open.get(&spot) == Some(&cleared.episode_id) {
            self.open.remove(&spot);
        }
        if self.episodes.get(&cleared.episode_id).is_some_and(|(_, view)| view.cleared.is_none()) {
            self.touch(&cleared.episode_id, |view| view.cleared = Some(cleared.clone()));
        }
    }

    fn touch(&mut self, episode_id: &str, change: impl FnOnce(&mut AnomalyView)) {
        self.order += 1;
        let (order, view) = self.episodes.entry(episode_id.to_owned()).or_default();
        self.by_order.remove(order);
        *order = self.order;
        change(view);
        self.by_order.insert(self.order, episode_id.to_owned());
        while self.episodes.len() > self.limits.episodes_max {
            let Some((_, oldest)) = self.by_order.pop_first() else { return };
            self.episodes.remove(&oldest);
            self.open.retain(|_, id| *id != oldest);
        }
    }

    fn wanted(&mut self, fact: &InstanceWanted) -> Vec<Derived> {
        let id = fact.instance_id.as_str();
        if fact.replicas > 0 {
            self.workloads.insert(id.to_owned(), fact.workload.clone());
            return vec![];
        }
        self.workloads.remove(id);
        let live = self.now.is_some();
        let derived =
            self.end(id, self.now.unwrap_or_default(), Ending::Gone, "the instance is not wanted any more", live);
        self.watches.remove(id);
        derived
    }

    fn end(&mut self, id: &str, at: Timestamp, ending: Ending, reason: &str, live: bool) -> Vec<Derived> {
        let Some(watch) = self.watches.get_mut(id) else { return vec![] };
        let changes = watch.end(ending, reason, &self.rules);
        self.tell(id, at, changes, live)
    }

    fn sweep(&mut self, now: Timestamp) -> Vec<Derived> {
        if now.millis_since(self.swept) < SWEEP_MS {
            return vec![];
        }
        self.swept = now;
        let quiet = |w: &Watch, ms: i64| now.millis_since(w.last) >= ms;
        let silent: Vec<String> =
            self.watches.iter().filter(|(_, w)| quiet(w, self.limits.silent_ms)).map(|(id, _)| id.clone()).collect();
        let mut derived = vec![];
        for id in silent {
            let reason = format!("no sample for {} s", self.limits.silent_ms / 1_000);
            derived.extend(self.end(&id, now, Ending::Silent, &reason, true));
        }
        let idle_ms = self.limits.idle_ms;
        self.watches.retain(|_, w| !quiet(w, idle_ms));
        derived.extend(self.end_orphans(now));
        derived
    }

    /// Ends episodes from before a restart whose instance or detector is gone.
    fn end_orphans(&mut self, now: Timestamp) -> Vec<Derived> {
        let known = |detector: &str| detector == MULTIVARIATE || self.rules.iter().any(|r| watch::named(r) == detector);
        let orphans: Vec<(Spot, String, bool)> = self
            .open
            .iter()
            .map(|(spot, id)| (spot.clone(), id.clone(), known(&spot.1)))
            .filter(|((instance, _), id, known)| {
                let told = self.episodes.get(id).and_then(|(_, v)| v.detected.as_ref()?.at).unwrap_or_default();
                let old = now.millis_since(told) >= self.limits.silent_ms;
                !known || old && !self.watches.contains_key(instance)
            })
            .collect();
        let mut derived = vec![];
        for ((instance_id, detector), episode_id, known) in orphans {
            let detected = self.episodes.get(&episode_id).and_then(|(_, v)| v.detected.clone()).unwrap_or_default();
            let (ending, reason) = match known {
                true => (Ending::Silent, "no sample since before a restart".to_owned()),
                false => (Ending::Dropped, format!("there is no detector {detector} any more")),
            };
            let cleared = AnomalyCleared {
                owner: detected.owner,
                instance_id,
                episode_id,
                detector,
                cluster_id: detected.cluster_id,
                generation: detected.generation,
                since: detected.since,
                at: Some(now),
                ending: ending.into(),
                reason,
            };
            self.cleared(&cleared);
            let id = derived_id(&["anomaly.cleared", &cleared.episode_id]);
            derived.push(Derived::new(cleared, id, now));
        }
        derived
    }
}

impl Projector for Sar {
    fn apply(&mut self, fact: &Stored) -> Vec<Derived> {
        let mut derived = vec![];
        let decoded = (|| {
            if let Some(fact) = fact.event::<AnomalyDetected>()? {
                // One that an earlier run told and this one has not found (yet) goes on from there.
                self.detected(&fact);
            } else if let Some(fact) = fact.event::<AnomalyCleared>()? {
                self.cleared(&fact);
            } else if let Some(fact) = fact.event::<InstanceWanted>()? {
                derived = self.wanted(&fact);
            } else if fact.stream == Packed::STREAM {
                let pack = fact.event::<Packed>()?.map(|pack| pack.samples);
                // Those of an earlier release were packed by instance.
                let before = fact.event::<Measured>()?.map(|pack| pack.samples);
                for sample in pack.or(before).iter().flatten() {
                    let late_ms = self.limits.late_ms;
                    let age_ms = |at: Timestamp| self.now.map(|now| now.millis_since(at));
                    let live = sample.at.and_then(age_ms).is_some_and(|age_ms| age_ms < late_ms);
                    derived.extend(self.take("", sample, live));
                }
            }
            Ok::<(), mesh_proto::DecodeError>(())
        })();
        self.counts.invalid += u64::from(decoded.is_err());
        derived
    }

    fn sample(&mut self, key: &str, body: &Bytes) -> Vec<Derived> {
        let Some(samples) = instance_samples(key, body).filter(|_| key.len() <= 512) else {
            self.counts.invalid += 1;
            return vec![];
        };
        let live = self.now.is_some();
        samples.iter().flat_map(|sample| self.take(key, sample, live)).collect()
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Derived> {
        let now = self.now.map_or(now, |before| before.max(now));
        self.now = Some(now);
        self.sweep(now)
    }
}

fn is_sound(sample: &InstanceSample) -> bool {
    let numbers = [sample.cpu_percent, sample.cpu_milli, sample.io_read_rate, sample.io_write_rate];
    is_key(&sample.instance_id)
        && is_key(&sample.cluster_id)
        && is_key(&sample.owner)
        && numbers.into_iter().chain([sample.interval_seconds]).all(|n| n.is_finite() && n >= 0.0)
}

/// A seed of an instance's own (FNV-1a of its id).
fn seed(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Features of every model.
const _: () = assert!(FEATURES <= forest::FEATURES_MAX);

#[cfg(test)]
mod tests;
