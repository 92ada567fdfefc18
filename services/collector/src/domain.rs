//! Takes samples in, and says of each period of each active intent what its targets achieved.
//!
//! Periods are whole multiples of the intent's observation period since 1970. A period is judged once, when it and a
//! short grace for late samples are over; the first judged begins after the intent was acknowledged (or resumed)
//! and after the collector started, so that every judged period was watched from end to end. What a period
//! says does not depend on the order in which its samples came.
//!
//! Several collectors share the clusters (`sharing`): each takes in what comes of its own, folds what the others stored
//! as well, and publishes what follows of its own.

pub(crate) mod catalog;
pub(crate) mod channel;
pub(crate) mod conditions;
pub(crate) mod feed;
pub mod measurements;
pub(crate) mod period;
pub mod readings;
pub(crate) mod recent;
pub(crate) mod retention;
pub(crate) mod rollup;
pub(crate) mod select;
pub(crate) mod sharing;
pub(crate) mod steps;
pub(crate) mod traffic;
pub mod usage;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use bytes::Bytes;
use mesh_core::Stored;
use mesh_core::{Derived, Projector};
use mesh_intent::{Measure, types};
use mesh_proto::{
    DecodeError, Encoded, PACKED_SIGNAL, READINGS_SIGNAL, Timestamp,
    cluster::ClusterRegistered,
    derived_id, instance_samples,
    intent::{GovernedInstance, Intent, IntentAcknowledged, IntentStateChanged, NotFulfilledState, State},
    is_key,
    measurement::{ConditionDefined, ConditionDropped, MeasurementSet, MeasurementUnset, Setting},
    observation::{ObservedTarget, TargetObserved, ThresholdCrossed},
    telemetry::{
        AgentInfo, Entity, Filter, InstanceSample, Packed, Provenance, Readings, RouteTraffic, SeriesValues, WatchReply,
    },
    workload::{InstanceChanged, InstanceWanted},
};
use mesh_scenes::tariff::Tariff;
use prost::Message as _;

use self::{
    catalog::Catalog,
    channel::Channel,
    conditions::{Conditions, Seen},
    feed::{Cursor, Feed},
    period::Period,
    readings::{Intake, Meta, Presence, Taken},
    recent::{Held, Recent},
    select::FIELDS,
    sharing::{Members, Sharing},
    traffic::Traffic,
    usage::Usage,
};

/// Limits of the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long after its end a period waits for late samples, milliseconds.
    pub late_ms: i64,
    /// How far ahead of the collector's clock a sample may be, milliseconds.
    pub ahead_ms: i64,
    /// How long samples wait to be packed, milliseconds.
    pub flush_ms: i64,
    /// Samples in a pack.
    pub pack_max: usize,
    /// Instances whose samples are taken in.
    pub instances_max: usize,
    /// Samples of an instance that are remembered, to know them when they come again.
    pub remembered_max: usize,
    /// How long an instance without samples is remembered, milliseconds.
    pub idle_ms: i64,
    /// Samples kept for readers that follow.
    pub feed_max: usize,
    /// Periods of an intent that are judged at once after time jumped; older ones are skipped.
    pub periods_max: u64,
    /// Values kept for readers of the channel.
    pub channel_max: usize,
    /// Of the windows of usage.
    pub usage: usage::Limits,
    /// Of readings.
    pub readings: readings::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            late_ms: 300,
            ahead_ms: 5_000,
            flush_ms: 1_000,
            pack_max: 1_000,
            instances_max: 10_000,
            remembered_max: 600,
            idle_ms: 600_000,
            feed_max: 4_096,
            periods_max: 10,
            channel_max: 200_000,
            usage: usage::Limits::default(),
            readings: readings::Limits::default(),
        }
    }
}

/// What came in and what became of it, since the start. Every sample is counted once in one of `accepted`,
/// `duplicate`, `ahead`, `invalid`, `early` and `over_limit`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Samples taken in.
    pub accepted: u64,
    /// Samples that had come before.
    pub duplicate: u64,
    /// Samples from too far ahead of the collector's clock.
    pub ahead: u64,
    /// Invalid samples: undecodable, of another instance than their key names, not finite, negative.
    pub invalid: u64,
    /// Samples before the collector knew the time.
    pub early: u64,
    /// Samples of instances beyond the limit.
    pub over_limit: u64,
    /// Times that an accepted sample came after its period had been judged, or so late that it might have come before.
    pub late: u64,
    /// Times that an accepted sample was of an older placement than its period's newest.
    pub superseded: u64,
    /// Periods never judged, because time jumped.
    pub periods_skipped: u64,
    /// Facts that this version cannot decode.
    pub undecodable: u64,
}

/// A sample's identity beside its instance: its time in nanoseconds since 1970, and a hash of generation and cluster.
type Identity = (i64, u64);

fn identity(sample: &InstanceSample) -> Identity {
    let mut hasher = DefaultHasher::new();
    (sample.generation, &sample.cluster_id).hash(&mut hasher);
    let nanos = sample.at.unwrap_or_default().as_nanos();
    (i64::try_from(nanos).unwrap_or(i64::MAX), hasher.finish())
}

/// What is known of one instance's samples.
#[derive(Debug, Default)]
struct Track {
    /// In order.
    remembered: VecDeque<Identity>,
    /// Samples at this time or before may have been forgotten, nanoseconds since 1970.
    forgotten: Option<i64>,
    /// When the last one came in.
    heard: Timestamp,
    /// How many came in.
    count: u64,
    /// The newest.
    last: Option<Arc<InstanceSample>>,
}

/// Bytes of a pack as it is encoded.
fn packed_len(cluster_id: &str, samples: &[Arc<InstanceSample>]) -> usize {
    let name = Packed { cluster_id: cluster_id.to_owned(), samples: vec![] }.encoded_len();
    let framed = |sample: &Arc<InstanceSample>| {
        let len = sample.encoded_len();
        // The field's key takes one byte.
        1 + prost::length_delimiter_len(len) + len
    };
    name + samples.iter().map(framed).sum::<usize>()
}

/// Samples of one cluster that wait to be published.
#[derive(Debug, Default)]
struct Pack {
    since: Timestamp,
    samples: Vec<Arc<InstanceSample>>,
}

/// An intent under watch.
#[derive(Debug)]
struct Watch {
    version: u64,
    period_s: u64,
    /// Judged periods begin here or later.
    since: Timestamp,
    active: bool,
    /// Does all of it run, or did it? Before that, an instance without samples is one that was not started.
    ran: bool,
    /// First judged period and next one to judge; `None` until the time is known.
    span: Option<(u64, u64)>,
    instances: BTreeMap<String, Watched>,
}

/// One instance under one intent.
#[derive(Debug, Default)]
struct Watched {
    /// Expectation and target name.
    targets: Vec<(String, String)>,
    /// Has a period had samples?
    measured: bool,
    open: BTreeMap<u64, Period>,
    /// By period and cluster: what went through to it. Only that of the cluster where it was measured counts.
    traffic: BTreeMap<(u64, String), Traffic>,
}

impl Watched {
    fn has_targets_of_traffic(&self) -> bool {
        self.targets.iter().any(|(_, name)| types::is_of_traffic(name))
    }
}

/// Owner and intent.
type IntentKey = (String, String);

/// The collector's view.
#[derive(Debug)]
pub struct Collector {
    limits: Limits,
    counts: Counts,
    started: Option<Timestamp>,
    now: Timestamp,
    swept: Timestamp,
    watches: BTreeMap<IntentKey, Watch>,
    watched_by: BTreeMap<String, BTreeSet<IntentKey>>,
    tracks: HashMap<String, Track>,
    /// When tracks that can be let go were last looked for.
    looked: Timestamp,
    /// Samples at this time or before may be of a track that was let go, nanoseconds since 1970.
    let_go: Option<i64>,
    packs: BTreeMap<String, Pack>,
    feed: Feed,
    channel: Channel,
    intake: Intake,
    conditions: Conditions,
    /// By cluster and name.
    settings: BTreeMap<String, BTreeMap<String, Setting>>,
    usage: Usage,
    /// By cluster.
    declared: BTreeMap<String, Declared>,
    sharing: Sharing,
    /// What was published a moment ago.
    recent: Arc<Recent>,
    /// What came over gRPC, and waits to be taken in.
    ingested: Arc<Recent>,
}

/// Where a message comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// From who measured: it is stored.
    Sender,
    /// From the stream, where another collector stored it.
    Stream,
}

/// What a cluster declares of itself: its modelled power, and shares.
#[derive(Clone, Copy, Debug)]
struct Declared {
    tariff: Tariff,
    /// Share of its energy that is renewable, per cent, if it says so.
    green_percent: Option<f64>,
    /// Share of the time that it is available, per cent, if it says so.
    availability_percent: Option<f64>,
}

impl Declared {
    fn of(cluster: &ClusterRegistered) -> Self {
        Self {
            tariff: Tariff::of(&cluster.labels, cluster.cpu_milli),
            green_percent: types::percent_of(&cluster.labels, types::GREEN_LABEL),
            availability_percent: types::percent_of(&cluster.labels, types::AVAILABILITY_LABEL),
        }
    }

    /// Mean watts of an instance over a period: its cores, and idle power by the share of the cluster that it uses.
    fn watts(&self, measured: &Period) -> f64 {
        let cores = f64::from(measured.load_milli()) / 1_000.0;
        self.tariff.idle_watts * measured.cpu_percent() / 100.0 + self.tariff.watts_per_core * cores
    }
}

/// Entities of one agent that are listed.
const ENTITIES_MAX: usize = 2_000;
/// Who keeps what is published: as it came, and rolled up.
const STORES: usize = 2;
/// How often instances that went silent are looked for, milliseconds.
const SWEEP_MS: i64 = 10_000;
/// An instance that sent nothing for this long may make room for another, milliseconds.
const QUIET_MS: i64 = 60_000;
/// How often such instances are looked for, milliseconds.
const LOOK_MS: i64 = 1_000;
/// Largest believable share of a cluster's CPU, per cent; it may be overcommitted, not beyond measure.
const PERCENT_MAX: f64 = 1e6;
/// Largest believable load, thousandths of a core.
const MILLI_MAX: f64 = 1e9;
/// Longest believable time between two samples, seconds.
const INTERVAL_MAX_S: f64 = 86_400.0;
/// Observation period of an intent that names none, seconds.
const PERIOD_DEFAULT_S: u64 = 60;

impl Collector {
    /// A collector that has seen nothing.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            counts: Counts::default(),
            started: None,
            now: Timestamp::default(),
            swept: Timestamp::default(),
            watches: BTreeMap::new(),
            watched_by: BTreeMap::new(),
            tracks: HashMap::new(),
            looked: Timestamp::default(),
            let_go: None,
            packs: BTreeMap::new(),
            feed: Feed::new(limits.feed_max),
            channel: Channel::new(limits.channel_max),
            intake: Intake::new(limits.readings),
            conditions: Conditions::default(),
            settings: BTreeMap::new(),
            usage: Usage::new(limits.usage),
            declared: BTreeMap::new(),
            sharing: Sharing::default(),
            recent: Arc::default(),
            ingested: Arc::default(),
        }
    }

    /// What it published a moment ago, for who keeps it.
    pub(crate) fn recent(&self) -> Arc<Recent> {
        self.recent.clone()
    }

    /// Where readings are left that were decoded already, before their bytes are given.
    pub(crate) fn ingested(&self) -> Arc<Recent> {
        self.ingested.clone()
    }

    /// Takes part in what several collectors do, as this one among these. Before anything else.
    pub(crate) fn share(&mut self, me: &str, members: Members) {
        self.sharing = Sharing::new(me, members);
    }

    /// What became of messages of clusters that are another collector's.
    pub(crate) fn sharing_counts(&self) -> sharing::Counts {
        self.sharing.counts()
    }

    /// Collectors that take part, this one included; 0 if it does not share.
    pub(crate) fn sharing_members(&self) -> usize {
        self.sharing.members()
    }

    /// What came in and what became of it.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What became of the windows of usage.
    pub fn usage_counts(&self) -> usage::Counts {
        self.usage.counts()
    }

    /// Intents under watch.
    pub fn watched(&self) -> usize {
        self.watches.values().filter(|w| w.active).count()
    }

    /// A reader of the samples of one instance, or of all when empty, from here on.
    pub fn follow(&self, instance_id: &str) -> Cursor {
        self.feed.cursor(instance_id, self.tracks.get(instance_id).map_or(0, |t| t.count))
    }

    /// What came after the reader looked last, at most 256 samples; `dropped` tells what it lost before each.
    pub fn read(&self, cursor: &mut Cursor) -> Vec<InstanceSample> {
        self.feed.read(cursor)
    }

    /// What became of readings.
    pub(crate) fn intake(&self) -> &Intake {
        &self.intake
    }

    /// Conditions, and where they hold.
    pub(crate) fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// Takes up which conditions held before the last restart. Before anything else.
    pub(crate) fn restore(&mut self, crossed: &[ThresholdCrossed]) {
        crossed.iter().for_each(|one| self.conditions.restore(one));
    }

    /// Agents after a cluster, in order, with what is set for each.
    pub(crate) fn agents<'a>(&'a self, cluster_id: &'a str, after: &'a str) -> impl Iterator<Item = AgentInfo> + 'a {
        let sampled = self.tracks.values().filter(move |track| {
            track.last.as_ref().is_some_and(|last| cluster_id.is_empty() || last.cluster_id == cluster_id)
        });
        let mut by_cluster: BTreeMap<&str, Vec<&Track>> = BTreeMap::new();
        for track in sampled {
            let cluster = track.last.as_ref().map_or("", |last| last.cluster_id.as_str());
            by_cluster.entry(cluster).or_default().push(track);
        }
        self.intake.agents(cluster_id, after).map(move |agent| {
            let settings = self.settings.get(&agent.cluster_id).cloned().unwrap_or_default();
            let tracks = by_cluster.get(agent.cluster_id.as_str()).map(Vec::as_slice).unwrap_or_default();
            let entities = self.entities(&agent.cluster_id, tracks);
            let left_out = entities.len().saturating_sub(ENTITIES_MAX);
            AgentInfo {
                settings,
                entities: entities.into_values().take(ENTITIES_MAX).map(|measured| measured.info(self.now)).collect(),
                entities_left_out: u32::try_from(left_out).unwrap_or(u32::MAX),
                ..agent
            }
        })
    }

    /// What is measured on a cluster: what readings are of, and the instances that samples are of.
    fn entities(&self, cluster_id: &str, tracks: &[&Track]) -> BTreeMap<(String, String), Presence> {
        let mut found = self.intake.entities(cluster_id);
        for (track, sample) in tracks.iter().filter_map(|track| Some((track, track.last.as_deref()?))) {
            let key = (select::INSTANCE.to_owned(), sample.instance_id.clone());
            let measured = found.entry(key).or_insert_with(|| Presence::of(&select::entity_of(sample)));
            measured.observe(track.heard, Some((sample.interval_seconds * 1_000.0) as i64));
        }
        found
    }

    /// The series whose values are kept for less time than others by a setting, each with its milliseconds.
    pub(crate) fn retained(&self, catalog: &Catalog) -> Vec<(String, i64)> {
        let entities = catalog.entities().filter_map(|(series, entity)| {
            let settings = self.settings.get(&entity.cluster_id)?;
            Some((series.to_owned(), retention::of(settings, entity, self.now)?))
        });
        entities.collect()
    }

    /// The newest value of each series that a filter means, at most `max`, by cluster and entity; then those of instances.
    pub(crate) fn newest_of(&self, filter: &Filter, max: usize) -> Vec<SeriesValues> {
        let means = |meta: &Meta| {
            select::means_entity(filter, &meta.entity) && select::means_metric(filter, &meta.entity.kind, &meta.metric)
        };
        let found = self.intake.newest().filter(|(meta, ..)| means(meta)).map(|(meta, _, at_ms, value)| SeriesValues {
            entity: Some(meta.entity.clone()),
            metric: Some(meta.metric.clone()),
            at_ms: vec![at_ms],
            values: vec![value],
        });
        let samples = self.tracks.values().filter_map(|track| track.last.as_deref());
        let of_instances = samples.map(|sample| (select::entity_of(sample), sample));
        let of_instances = of_instances.filter(|(entity, _)| select::means_entity(filter, entity));
        let mut of_instances: Vec<(Entity, &InstanceSample)> = of_instances.collect();
        of_instances.sort_by(|(_, a), (_, b)| a.instance_id.cmp(&b.instance_id));
        let of_instances = of_instances.into_iter().flat_map(|(entity, sample)| {
            let provenance = Provenance::try_from(sample.provenance).unwrap_or_default();
            let fields = FIELDS.iter().map(move |field| (field, field.metric(provenance)));
            let meant = fields.filter(|(_, metric)| select::means_metric(filter, select::INSTANCE, metric));
            meant.map(move |(field, metric)| SeriesValues {
                entity: Some(entity.clone()),
                metric: Some(metric),
                at_ms: vec![sample.at.unwrap_or_default().as_millis()],
                values: vec![field.value(sample)],
            })
        });
        found.chain(of_instances).take(max).collect()
    }

    /// A reader of the channel; see [`Channel::cursor`].
    pub(crate) fn watch(&self, filter: Filter, interval_ms: u32, after: u64) -> channel::Cursor {
        let known = self.intake.newest().map(|(meta, count, ..)| (meta, count));
        self.channel.cursor(filter, interval_ms, after, known)
    }

    /// What a reader of the channel has not seen.
    pub(crate) fn watched_values(&self, cursor: &mut channel::Cursor) -> Option<WatchReply> {
        self.channel.read(cursor)
    }

    /// An instance's newest samples, not all of them stored yet.
    pub fn newest<'a>(&'a self, instance_id: &'a str) -> impl Iterator<Item = &'a InstanceSample> {
        self.feed.of(instance_id)
    }

    fn acknowledged(&mut self, fact: IntentAcknowledged, at: Timestamp) -> Result<(), DecodeError> {
        let intent = Intent::decode(fact.document)?;
        let period_s = match u64::from(intent.observation_period) {
            0 => PERIOD_DEFAULT_S,
            seconds => seconds,
        };
        let key = (fact.owner, fact.intent_id);
        let before = self.forget(&key);
        let watch = Watch {
            version: fact.version,
            period_s,
            since: at,
            active: !ends_watch(fact.state.as_ref()),
            ran: ran(fact.state.as_ref()),
            // The same version again must not have a period judged twice.
            span: before.filter(|w| w.version == fact.version && w.period_s == period_s).and_then(|w| w.span),
            instances: targets(&intent, &fact.instances),
        };
        let span = watch.span;
        for instance in watch.instances.keys() {
            self.watched_by.entry(instance.clone()).or_default().insert(key.clone());
        }
        let watch = self.watches.entry(key).insert_entry(watch).into_mut();
        watch.begin(self.started, span);
        Ok(())
    }

    fn state_changed(&mut self, fact: IntentStateChanged, at: Timestamp) {
        let key = (fact.owner, fact.intent_id);
        if state_of(fact.to.as_ref()) == NotFulfilledState::Terminated {
            self.forget(&key);
            return;
        }
        let active = !ends_watch(fact.to.as_ref());
        let Some(watch) = self.watches.get_mut(&key) else { return };
        watch.ran = ran(fact.to.as_ref());
        if watch.active == active {
            return;
        }
        watch.active = active;
        for watched in watch.instances.values_mut() {
            watched.open.clear();
            watched.traffic.clear();
        }
        if active {
            watch.since = at;
            let span = watch.span;
            watch.begin(self.started, span);
        }
    }

    fn forget(&mut self, key: &IntentKey) -> Option<Watch> {
        let watch = self.watches.remove(key)?;
        for instance in watch.instances.keys() {
            if let Some(keys) = self.watched_by.get_mut(instance) {
                keys.remove(key);
                if keys.is_empty() {
                    self.watched_by.remove(instance);
                }
            }
        }
        Some(watch)
    }

    /// Counts a sample into the open periods of every intent that watches its instance.
    fn observe(&mut self, sample: &InstanceSample, remembered: bool) {
        let at = sample.at.unwrap_or_default().as_nanos();
        for key in self.watched_by.get(&sample.instance_id).into_iter().flatten() {
            let Some(watch) = self.watches.get_mut(key).filter(|w| w.active) else { continue };
            let Some((first, next)) = watch.span else { continue };
            let number = period::number_of(at, watch.period_s);
            if number < first {
                continue;
            }
            if number < next || !remembered {
                self.counts.late += 1;
                continue;
            }
            let Some(watched) = watch.instances.get_mut(&sample.instance_id) else { continue };
            let open = watched.open.entry(number).or_default();
            if !open.add(sample, period::begin_of(number, watch.period_s)) {
                self.counts.superseded += 1;
            }
        }
    }

    /// Counts what went through to an instance on a cluster, up to this time, into the open periods of every intent that
    /// asks for it. All of a turn counts for the period that it ends in.
    fn observe_traffic(&mut self, instance_id: &str, cluster_id: &str, at: Timestamp, route: &RouteTraffic) {
        for key in self.watched_by.get(instance_id).into_iter().flatten() {
            let Some(watch) = self.watches.get_mut(key).filter(|w| w.active) else { continue };
            let Some((first, next)) = watch.span else { continue };
            let number = period::number_of(at.as_nanos(), watch.period_s);
            let Some(watched) = watch.instances.get_mut(instance_id) else { continue };
            if number < first || !watched.has_targets_of_traffic() {
                continue;
            }
            if number < next {
                self.counts.late += 1;
                continue;
            }
            watched.traffic.entry((number, cluster_id.to_owned())).or_default().add(route);
        }
    }

    fn is_full(&self, cluster_id: &str) -> bool {
        self.packs.get(cluster_id).is_some_and(|pack| pack.samples.len() >= self.limits.pack_max)
    }

    /// Takes a pack out as an event. If it is what came in this body, and nothing else, it is passed on as it came.
    fn flush(&mut self, cluster_id: &str, came: Option<&Bytes>) -> Option<Derived> {
        let flushed = self.packed(cluster_id, came)?;
        self.sharing.publishes(&flushed.id);
        Some(flushed)
    }

    fn packed(&mut self, cluster_id: &str, came: Option<&Bytes>) -> Option<Derived> {
        let (cluster_id, Pack { mut samples, .. }) = self.packs.remove_entry(cluster_id)?;
        // As long as what it would be encoded to: then there is nothing in it that was not read and taken in.
        let came = came.filter(|came| came.len() == packed_len(&cluster_id, &samples));
        if came.is_none() {
            samples.sort_by(|a, b| (a.at, &a.instance_id, a.generation).cmp(&(b.at, &b.instance_id, b.generation)));
        }
        let (first, last) = (samples.first()?, samples.last()?);
        let at = |sample: &InstanceSample| sample.at.unwrap_or_default();
        let (begin, end, count) = (at(first).to_string(), at(last).to_string(), samples.len().to_string());
        let parts = ["packed", &cluster_id, &begin, &first.instance_id, &end, &last.instance_id, &count];
        let id = derived_id(&parts);
        let newest = samples.iter().map(|sample| at(sample)).max()?;
        let body = came.cloned().unwrap_or_else(|| {
            let samples = samples.iter().map(|sample| InstanceSample::clone(sample)).collect();
            Packed { cluster_id: cluster_id.clone(), samples }.encode_to_vec().into()
        });
        self.recent.keep(body.clone(), Held::Samples(samples.into()), STORES);
        let event = Box::new(Encoded::new(Packed { cluster_id, samples: vec![] }, body));
        Some(Derived { event, id, at: newest })
    }

    /// Takes a sound sample in; true if it waits to be packed now. What another collector stored is not counted here.
    fn take(&mut self, sample: InstanceSample, origin: Origin, derived: &mut Vec<Derived>) -> bool {
        let at = sample.at.unwrap_or_default();
        if at.millis_since(self.now) > self.limits.ahead_ms {
            self.counts.ahead += u64::from(origin == Origin::Sender);
            return false;
        }
        if !self.tracks.contains_key(&sample.instance_id) {
            if !self.has_room() {
                self.counts.over_limit += 1;
                return false;
            }
            let track = Track { forgotten: self.let_go, ..Track::default() };
            self.tracks.insert(sample.instance_id.clone(), track);
        }
        let Some(track) = self.tracks.get_mut(&sample.instance_id) else { return false };
        track.heard = self.now;
        let fresh = self.now.millis_since(at) < self.limits.idle_ms;
        let identity = identity(&sample);
        let remembered = fresh && track.forgotten.is_none_or(|nanos| identity.0 > nanos);
        if !track.remember(identity, self.limits.remembered_max) {
            self.counts.duplicate += u64::from(origin == Origin::Sender);
            return false;
        }
        track.count += 1;
        self.counts.accepted += u64::from(origin == Origin::Sender);
        let shared = Arc::new(sample);
        if track.last.as_ref().is_none_or(|last| last.at <= shared.at) {
            track.last = Some(shared.clone());
        }
        self.feed.push(shared.clone(), track.count);
        self.channel.sample(shared.clone(), track.count);
        self.observe(&shared, remembered);
        self.look_at(&shared, derived);
        if remembered {
            self.usage.sample(&shared);
        }
        if origin == Origin::Stream {
            return false;
        }
        let now = self.now;
        match self.packs.get_mut(&shared.cluster_id) {
            Some(pack) => pack.samples.push(shared),
            None => {
                self.packs.insert(shared.cluster_id.clone(), Pack { since: now, samples: vec![shared] });
            }
        }
        true
    }

    /// Is there room for another instance? When all places are taken, a tenth of them is made free, of those that sent
    /// nothing for longest: that is how the ended ones leave where many come and go. Of one that comes again, and of a new
    /// one, samples as old as theirs are not judged: they may have been.
    fn has_room(&mut self) -> bool {
        let instances_max = self.limits.instances_max;
        if self.tracks.len() < instances_max {
            return true;
        }
        // Looking takes a pass over all of them.
        if self.now.millis_since(self.looked) < LOOK_MS {
            return false;
        }
        self.looked = self.now;
        let quiet = self.tracks.values().map(|track| track.heard).filter(|at| self.now.millis_since(*at) >= QUIET_MS);
        let mut quiet: Vec<Timestamp> = quiet.collect();
        if quiet.is_empty() {
            return false;
        }
        let place = (instances_max / 10).clamp(1, quiet.len()) - 1;
        let last = *quiet.select_nth_unstable(place).1;
        let let_go = &mut self.let_go;
        self.tracks.retain(|_, track| {
            let stays = track.heard > last;
            if !stays {
                let newest = track.remembered.back().map(|(nanos, _)| *nanos);
                *let_go = (*let_go).max(newest).max(track.forgotten);
            }
            stays
        });
        true
    }

    /// Shows a sample to the conditions.
    fn look_at(&mut self, sample: &InstanceSample, derived: &mut Vec<Derived>) {
        if !self.conditions.of_kind(select::INSTANCE) {
            return;
        }
        let (entity, labels) = (select::entity_of(sample), BTreeMap::new());
        let at = sample.at.unwrap_or_default();
        let is_mine = self.sharing.is_mine(&entity.cluster_id, at);
        for field in &FIELDS {
            let seen = Seen { entity: &entity, metric: field.name, labels: &labels, at, value: field.value(sample) };
            derived.extend(self.conditions.look(seen).into_iter().filter(|_| is_mine).map(crossing));
        }
    }

    /// Takes readings in, as they came under this key.
    fn readings(&mut self, key: &str, body: &Bytes) -> Vec<Derived> {
        // Its key was made of it.
        let is_ingested = matches!(sharing::Way::of(key), sharing::Way::Ingested);
        let ingested = match is_ingested.then(|| self.ingested.take(body)).flatten() {
            Some(Held::Readings(pack)) => Some(Arc::unwrap_or_clone(pack)),
            _ => None,
        };
        let Some(pack) = ingested.or_else(|| mesh_proto::readings(key, body)) else {
            self.intake.unreadable();
            return vec![];
        };
        if !self.sharing.is_alone() {
            self.sharing.is_new(&pack);
        }
        self.taken_in(key.split('/').nth(2).unwrap_or_default(), pack, Origin::Sender, body)
    }

    /// Takes a pack of readings of `node` in, which came in this body.
    fn taken_in(&mut self, node: &str, pack: Readings, origin: Origin, came: &Bytes) -> Vec<Derived> {
        let outcome = match origin {
            Origin::Sender => self.intake.take(node, pack),
            Origin::Stream => self.intake.take_stored(node, pack),
        };
        if let Some(pack) = &outcome.pack {
            self.routes(pack, &outcome.taken);
        }
        let mut derived = vec![];
        for Taken { meta, at_ms, value, .. } in outcome.taken.iter().filter(|one| one.newest) {
            if self.conditions.looks_at(&meta.metric.name) {
                let at = Timestamp::from_millis(*at_ms);
                let (entity, metric, labels) = (&meta.entity, meta.metric.name.as_str(), &meta.metric.labels);
                let seen = Seen { entity, metric, labels, at, value: *value };
                let is_mine = self.sharing.is_mine(&entity.cluster_id, at);
                derived.extend(self.conditions.look(seen).into_iter().filter(|_| is_mine).map(crossing));
            }
        }
        self.channel.readings(outcome.taken);
        let came = Some(came).filter(|_| outcome.is_as_it_came);
        if let Some(pack) = outcome.pack.filter(|_| origin == Origin::Sender) {
            let pack = self.stored(pack, came);
            self.sharing.publishes(&pack.id);
            derived.push(pack);
        }
        derived
    }

    /// Readings as they are stored: in the bytes that they came in, if there is nothing else in those.
    fn stored(&self, pack: Readings, came: Option<&Bytes>) -> Derived {
        let at = pack.at.unwrap_or_default();
        let id = derived_id(&["readings", &pack.cluster_id, &at.to_string(), &readings::fingerprint(&pack)]);
        let came = came.filter(|came| came.len() == pack.encoded_len());
        let body = came.cloned().unwrap_or_else(|| pack.encode_to_vec().into());
        let keys = Readings { cluster_id: pack.cluster_id.clone(), ..Readings::default() };
        self.recent.keep(body.clone(), Held::Readings(Arc::new(pack)), STORES);
        Derived { event: Box::new(Encoded::new(keys, body)), id, at }
    }

    /// Is a message another collector's? Then it is held until that is known to have stored it.
    fn leaves(&mut self, key: &str, body: &Bytes) -> bool {
        if self.sharing.is_alone() {
            return false;
        }
        let mut tokens = key.rsplit('/');
        let (id, signal) = (tokens.next().unwrap_or_default(), tokens.next().unwrap_or_default());
        // Of a cluster's packs the key says enough, unless somebody joins just now.
        let is_of_cluster = [READINGS_SIGNAL, PACKED_SIGNAL].contains(&signal);
        let (cluster_id, at) = match (is_of_cluster && !self.sharing.is_changing(self.now), signal) {
            (true, _) => (id.to_owned(), self.now),
            (false, READINGS_SIGNAL) => match mesh_proto::readings(key, body) {
                Some(pack) => (pack.cluster_id, pack.at.unwrap_or_default()),
                None => return false,
            },
            (false, _) => {
                let samples = instance_samples(key, body).unwrap_or_default();
                match samples.into_iter().max_by_key(|sample| sample.at) {
                    Some(sample) => (sample.cluster_id, sample.at.unwrap_or_default()),
                    None => return false,
                }
            }
        };
        if self.sharing.is_mine(&cluster_id, at) {
            return false;
        }
        self.sharing.hold(&cluster_id, at, self.now, (key, body));
        true
    }

    /// Folds what another collector stored.
    fn take_stored(&mut self, key: &str, body: &Bytes) -> Vec<Derived> {
        let (id, signal) = (key.split('/').nth(1).unwrap_or_default(), key.split('/').nth(3).unwrap_or_default());
        if self.sharing.is_alone() || self.sharing.is_own(id) || self.started.is_none() {
            return vec![];
        }
        if signal == READINGS_SIGNAL {
            let pack = mesh_proto::readings(key, body).filter(|pack| self.sharing.is_new(pack));
            let Some(pack) = pack else { return vec![] };
            let node = pack.entities.iter().map(|entity| entity.node.clone()).find(|node| !node.is_empty());
            return self.taken_in(&node.unwrap_or_else(|| pack.cluster_id.clone()), pack, Origin::Stream, body);
        }
        let mut derived = vec![];
        for sample in instance_samples(key, body).unwrap_or_default().into_iter().filter_map(sound) {
            self.take(sample, Origin::Stream, &mut derived);
        }
        derived
    }

    /// What is this collector's by now of what another had taken in and not stored.
    fn take_over(&mut self) -> Vec<Derived> {
        let mut derived = vec![];
        for (key, body) in self.sharing.take_over(self.now) {
            let pack = mesh_proto::readings(&key, &body);
            if pack.is_some_and(|pack| !self.sharing.is_new(&pack)) {
                continue;
            }
            let before = self.counts.accepted + self.intake.accepted().0;
            derived.extend(self.received(&key, &body));
            let after = self.counts.accepted + self.intake.accepted().0;
            self.sharing.taken_over(u64::from(after > before));
        }
        derived
    }

    /// Counts what went through on the routes of a pack. A route of which nothing else was taken in is left out: the pack
    /// came before, or was refused.
    fn routes(&mut self, pack: &Readings, taken: &[Taken]) {
        let at = pack.at.unwrap_or_default();
        for route in &pack.traffic {
            let Some(entity) = pack.entities.get(route.entity as usize).filter(|e| e.kind == select::ROUTE) else {
                continue;
            };
            let is_of = |one: &Taken| one.meta.entity.kind == entity.kind && one.meta.entity.id == entity.id;
            if self.watched_by.contains_key(&entity.id) && taken.iter().any(is_of) {
                self.observe_traffic(&entity.id, &pack.cluster_id, at, route);
            }
        }
    }

    /// A fact of measurement.
    fn measured(&mut self, fact: &Stored) -> Result<(), DecodeError> {
        if let Some(set) = fact.event::<MeasurementSet>()? {
            self.settings.entry(set.cluster_id).or_default().insert(set.setting_id, set.setting.unwrap_or_default());
        } else if let Some(unset) = fact.event::<MeasurementUnset>()? {
            if let Some(settings) = self.settings.get_mut(&unset.cluster_id) {
                settings.remove(&unset.setting_id);
            }
        } else if let Some(defined) = fact.event::<ConditionDefined>()? {
            defined.condition.into_iter().for_each(|condition| self.conditions.define(condition));
        } else if let Some(dropped) = fact.event::<ConditionDropped>()? {
            self.conditions.drop(&(dropped.owner, dropped.condition_id));
        }
        Ok(())
    }

    fn sweep(&mut self) {
        if self.now.millis_since(self.swept) < SWEEP_MS {
            return;
        }
        self.swept = self.now;
        let (now, idle_ms) = (self.now, self.limits.idle_ms);
        self.tracks.retain(|_, track| now.millis_since(track.heard) < idle_ms);
        self.intake.sweep();
    }
}

impl Track {
    /// Remembers a sample, and forgets the oldest beyond `max`; false if it came before.
    fn remember(&mut self, identity: Identity, max: usize) -> bool {
        // Almost every sample is the newest.
        if self.remembered.back().is_none_or(|newest| *newest < identity) {
            self.remembered.push_back(identity);
        } else {
            let at = self.remembered.partition_point(|known| *known < identity);
            if self.remembered.get(at) == Some(&identity) {
                return false;
            }
            self.remembered.insert(at, identity);
        }
        if self.remembered.len() > max
            && let Some((oldest, _)) = self.remembered.pop_front()
        {
            self.forgotten = self.forgotten.max(Some(oldest));
        }
        true
    }
}

impl Watch {
    /// Fixes the first period to judge: whole, after everything it must come after, never one already judged.
    fn begin(&mut self, started: Option<Timestamp>, before: Option<(u64, u64)>) {
        let Some(started) = started else { return };
        let first = period::first_from(self.since.max(started).as_nanos(), self.period_s);
        let first = first.max(before.map_or(0, |(_, next)| next));
        self.span = Some((first, first));
    }

    /// The observations of all periods that are over; says how many were too many.
    fn judge(
        &mut self,
        (owner, intent_id): &IntentKey,
        now: Timestamp,
        limits: &Limits,
        declared: &BTreeMap<String, Declared>,
        is_mine: impl Fn(&str, &str, Timestamp) -> bool,
    ) -> (Vec<Derived>, u64) {
        let seconds = self.period_s as f64;
        let (mut observations, mut skipped) = (vec![], 0);
        let Some((first, next)) = self.span.filter(|_| self.active) else { return (observations, skipped) };
        // Periods that end with their grace by now: all below this number.
        let over = now.plus_millis(-limits.late_ms).as_nanos().div_euclid(period::begin_of(1, self.period_s));
        let over = u64::try_from(over).unwrap_or(0).max(next);
        let from = next.max(over.saturating_sub(limits.periods_max));
        skipped += from - next;
        for number in from..over {
            let begin = Timestamp::from_nanos(period::begin_of(number, self.period_s));
            let end = Timestamp::from_nanos(period::begin_of(number + 1, self.period_s));
            for (instance_id, watched) in &mut self.instances {
                let measured = watched.open.remove(&number).unwrap_or_default();
                watched.measured |= measured.samples > 0;
                // Nothing is said of what waits to be placed: thousands may.
                let waits = !self.ran && !watched.measured;
                if waits || watched.targets.is_empty() || !is_mine(instance_id, &measured.cluster_id, begin) {
                    continue;
                }
                let traffic = watched.traffic.remove(&(number, measured.cluster_id.clone()));
                let traffic = traffic.unwrap_or_default();
                let of_cluster = declared.get(&measured.cluster_id);
                let one = |(expectation, name): &(String, String)| {
                    achieved((expectation, name), &measured, &traffic, of_cluster, seconds)
                };
                let targets = watched.targets.iter().map(one);
                let event = TargetObserved {
                    owner: owner.clone(),
                    intent_id: intent_id.clone(),
                    version: self.version,
                    instance_id: instance_id.clone(),
                    period: number,
                    begin: Some(begin),
                    end: Some(end),
                    targets: targets.collect(),
                    load_milli: measured.load_milli(),
                    memory_bytes: measured.memory_bytes,
                    generation: measured.generation,
                    cluster_id: measured.cluster_id,
                };
                let (version, number) = (self.version.to_string(), number.to_string());
                let id = derived_id(&[owner, intent_id, &version, instance_id, &number]);
                observations.push(Derived::new(event, id, end));
            }
        }
        for watched in self.instances.values_mut() {
            watched.open.retain(|number, _| *number >= over);
            watched.traffic.retain(|(number, _), _| *number >= over);
        }
        self.span = Some((first, over));
        (observations, skipped)
    }
}

/// What one target achieved, and where the value comes from. A target that has no value has no samples.
fn achieved(
    (expectation_id, target_name): (&str, &str),
    measured: &Period,
    traffic: &Traffic,
    of_cluster: Option<&Declared>,
    seconds: f64,
) -> ObservedTarget {
    let cores = f64::from(measured.load_milli()) / 1_000.0;
    let measure = types::measure_of(target_name);
    let value = match measure {
        Some(Measure::CpuPercent) => Some(measured.cpu_percent()),
        Some(Measure::MemoryMb) => Some(measured.memory_bytes as f64 / 1e6),
        Some(Measure::Joules) => of_cluster.map(|p| p.watts(measured) * seconds),
        // What does nothing has no efficiency.
        Some(Measure::JoulesPerCoreSecond) => of_cluster.filter(|_| cores > 0.0).map(|p| p.watts(measured) / cores),
        Some(Measure::GreenPercent) => of_cluster.and_then(|p| p.green_percent),
        Some(Measure::AvailabilityPercent) => of_cluster.and_then(|p| p.availability_percent),
        // Without a request there is nothing to say, least of all that no answer was slow.
        Some(Measure::ResponseTimeMs(per_cent)) => traffic.response_ms(per_cent),
        Some(Measure::ErrorPercent) => traffic.error_percent(),
        Some(Measure::Handed) | None => None,
    };
    // A placement that was not measured has no generation that its requests could be of.
    let value = value.filter(|_| measured.samples > 0);
    let samples = match measure.is_some_and(Measure::is_of_traffic) {
        true => u32::try_from(traffic.requests()).unwrap_or(u32::MAX),
        false => measured.samples,
    };
    ObservedTarget {
        expectation_id: expectation_id.to_owned(),
        target_name: target_name.to_owned(),
        samples: value.map_or(0, |_| samples),
        provenance: measure
            .filter(|_| value.is_some())
            .map_or(Provenance::Unspecified, |measure| measure.provenance(measured.provenance()))
            .into(),
        value: value.unwrap_or_default(),
    }
}

/// A crossing as it is said.
fn crossing(crossed: ThresholdCrossed) -> Derived {
    let at = crossed.at.unwrap_or_default();
    let labels: Vec<String> = crossed.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let place = [crossed.entity_kind.as_str(), &crossed.entity_id, &crossed.cluster_id, &crossed.metric];
    let (raised, when, labels) = (crossed.raised.to_string(), at.to_string(), labels.join(","));
    let parts = ["crossed", &crossed.owner, &crossed.condition_id, &raised, &when, &labels];
    let id = derived_id(&[parts.as_slice(), &place].concat());
    Derived::new(crossed, id, at)
}

/// The targets of each instance of an intent.
fn targets(intent: &Intent, instances: &[GovernedInstance]) -> BTreeMap<String, Watched> {
    let mut watched = BTreeMap::<String, Watched>::new();
    for governed in instances {
        let expectations = intent.intent_expectations.iter().filter(|e| e.expectation_id == governed.expectation_id);
        let targets = expectations.flat_map(|e| &e.expectation_targets).map(|t| t.target_name.clone());
        let entry = watched.entry(governed.instance_id.clone()).or_default();
        entry.targets.extend(targets.map(|name| (governed.expectation_id.clone(), name)));
    }
    watched
}

fn state_of(state: Option<&State>) -> NotFulfilledState {
    state.map_or(NotFulfilledState::Unspecified, State::not_fulfilled_state)
}

fn ran(state: Option<&State>) -> bool {
    !matches!(state_of(state), NotFulfilledState::Acknowledged | NotFulfilledState::Fulfilmentfailed)
}

fn ends_watch(state: Option<&State>) -> bool {
    matches!(state_of(state), NotFulfilledState::Suspended | NotFulfilledState::Terminated)
}

/// A sample as it is taken in, if it is sound.
fn sound(mut sample: InstanceSample) -> Option<InstanceSample> {
    let numbers = [
        (sample.cpu_percent, PERCENT_MAX),
        (sample.cpu_milli, MILLI_MAX),
        (sample.io_read_rate, f64::MAX),
        (sample.io_write_rate, f64::MAX),
        (sample.interval_seconds, INTERVAL_MAX_S),
    ];
    let sound = is_key(&sample.instance_id)
        && is_key(&sample.cluster_id)
        && sample.at.is_some_and(|at| at.seconds > 0 && (0..1_000_000_000).contains(&at.nanos))
        && numbers.iter().all(|(value, max)| (0.0..=*max).contains(value));
    sample.dropped = 0;
    sound.then_some(sample)
}

impl Projector for Collector {
    fn apply(&mut self, fact: &Stored) -> Vec<Derived> {
        let acknowledged = fact.event::<IntentAcknowledged>();
        let applied = acknowledged.and_then(|event| event.map_or(Ok(()), |e| self.acknowledged(e, fact.time)));
        let changed = fact.event::<IntentStateChanged>().map(|event| event.map(|e| self.state_changed(e, fact.time)));
        let cluster = fact.event::<ClusterRegistered>().map(|e| {
            if let Some(e) = e {
                self.declared.insert(e.cluster_id.clone(), Declared::of(&e));
                self.usage.cluster(e);
            }
        });
        let wanted = fact.event::<InstanceWanted>().map(|e| e.into_iter().for_each(|e| self.usage.wanted(e)));
        let placed = fact.event::<InstanceChanged>();
        let placed = placed.map(|e| e.into_iter().for_each(|e| self.usage.changed(&e, fact.time)));
        let measured = if fact.stream == "MEASUREMENT" { self.measured(fact) } else { Ok(()) };
        if measured.is_err()
            || applied.is_err()
            || changed.is_err()
            || cluster.is_err()
            || wanted.is_err()
            || placed.is_err()
        {
            self.counts.undecodable += 1;
        }
        vec![]
    }

    fn sample(&mut self, key: &str, body: &Bytes) -> Vec<Derived> {
        match sharing::Way::of(key) {
            sharing::Way::Samples if self.leaves(key, body) => vec![],
            sharing::Way::Samples | sharing::Way::Ingested => self.received(key, body),
            sharing::Way::Stored => self.take_stored(key, body),
            sharing::Way::Members => {
                if let Some((members, is_cut)) = sharing::read_members(body) {
                    self.sharing.set(members, is_cut, self.now);
                }
                vec![]
            }
        }
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Derived> {
        let now = now.max(self.now);
        self.now = now;
        self.intake.tick(now);
        if self.started.is_none() {
            self.started = Some(now);
            self.channel.begin(now);
            self.conditions.settle();
            self.watches.values_mut().for_each(|watch| watch.begin(Some(now), None));
        }
        self.sweep();
        let mut derived = self.take_over();
        let Self { sharing, usage, .. } = self;
        derived.extend(usage.close(now, |cluster_id, begin| sharing.is_mine(cluster_id, begin), sharing.is_alone()));
        for (key, watch) in &mut self.watches {
            let is_mine = |instance_id: &str, cluster_id: &str, begin: Timestamp| {
                let place = if cluster_id.is_empty() { self.usage.place_of(instance_id) } else { Some(cluster_id) };
                self.sharing.is_mine(place.unwrap_or(instance_id), begin)
            };
            let (observations, skipped) = watch.judge(key, now, &self.limits, &self.declared, is_mine);
            self.counts.periods_skipped += skipped;
            derived.extend(observations);
        }
        let ripe =
            |(key, pack): (&String, &Pack)| (now.millis_since(pack.since) >= self.limits.flush_ms).then(|| key.clone());
        let ripe: Vec<_> = self.packs.iter().filter_map(ripe).collect();
        derived.extend(ripe.iter().filter_map(|key| self.flush(key, None)));
        derived
    }
}

impl Collector {
    /// Takes in what came from who measured.
    fn received(&mut self, key: &str, body: &Bytes) -> Vec<Derived> {
        let signal = key.split('/').nth(3);
        if signal == Some(READINGS_SIGNAL) {
            return self.readings(key, body);
        }
        if self.started.is_none() {
            self.counts.early += 1;
            return vec![];
        }
        let Some(samples) = instance_samples(key, body) else {
            self.counts.invalid += 1;
            return vec![];
        };
        let mut derived = vec![];
        // A message is of one cluster.
        let cluster_id = samples.first().map_or_else(String::new, |sample| sample.cluster_id.clone());
        let came = Some(body).filter(|_| signal == Some(PACKED_SIGNAL) && !self.packs.contains_key(&cluster_id));
        let mut waits = false;
        for sample in samples {
            match sound(sample) {
                Some(sample) => waits |= self.take(sample, Origin::Sender, &mut derived),
                None => self.counts.invalid += 1,
            }
        }
        // What an agent packed is stored as it comes; a single sample waits for others.
        if waits && (signal == Some(PACKED_SIGNAL) || self.is_full(&cluster_id)) {
            derived.extend(self.flush(&cluster_id, came));
        }
        derived
    }
}

#[cfg(test)]
mod tests;
