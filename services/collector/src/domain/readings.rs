//! Readings: checked, brought to base units, counted, and handed on. What is not taken in is counted by why, for the agent
//! that sent it; one agent's flood, clock or labels cost no other agent anything.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use mesh_core::units;
use mesh_proto::{
    Timestamp, is_key,
    telemetry::{AgentInfo, Entity, EntityInfo, Metric, MetricKind, ProbeInfo, Readings},
};

use super::select::{KINDS, TEXT_MAX, is_label};

/// Limits of what is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Agents: clusters that readings name.
    pub agents_max: usize,
    /// Series of all agents together.
    pub series_max: usize,
    /// Series of one agent.
    pub series_of_agent_max: usize,
    /// New series of one agent in a second, in bursts of ten times as many.
    pub new_series_per_second: u32,
    /// Values of one agent in a second, in bursts of ten times as many.
    pub values_per_second: u32,
    /// Labels of a metric.
    pub labels_max: usize,
    /// How far ahead of the collector's clock a value may be, milliseconds.
    pub ahead_ms: i64,
    /// How old a value may be, milliseconds.
    pub late_ms: i64,
    /// How long a series or agent without values is known, milliseconds.
    pub idle_ms: i64,
    /// Probes of one agent that are known.
    pub probes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            agents_max: 10_000,
            series_max: 200_000,
            series_of_agent_max: 20_000,
            new_series_per_second: 1_000,
            values_per_second: 200_000,
            labels_max: 16,
            ahead_ms: 5_000,
            late_ms: 600_000,
            idle_ms: 600_000,
            probes_max: 2_000,
        }
    }
}

/// Why values were not taken in, in the order in which [`Intake::refused`] counts them.
pub(crate) const REASONS: [&str; 10] =
    ["invalid", "unit", "label", "not_finite", "ahead", "late", "duplicate", "flood", "too_many_series", "early"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Invalid,
    Unit,
    Label,
    NotFinite,
    Ahead,
    Late,
    Duplicate,
    Flood,
    TooManySeries,
    Early,
}

/// Tables of entities and metrics that are remembered of an agent: what one sends in a round.
const TABLES_MAX: usize = 8;
/// Times of a series that are remembered, to know a value when it comes again.
const REMEMBERED_MAX: usize = 8;
/// An agent is up for so long after its last message, milliseconds.
const UP_MS: i64 = 15_000;
/// An entity is up for three of its intervals after its last value, and for at least 30 s, milliseconds.
const UP_INTERVALS: i64 = 3;
const ENTITY_UP_MS: i64 = 30_000;
/// Seconds' worth that a bucket holds.
const BURST_S: f64 = 10.0;

/// What a series is of.
#[derive(Debug, PartialEq)]
pub(crate) struct Meta {
    /// Numbers the series since the start.
    pub(crate) number: u64,
    pub(crate) entity: Entity,
    /// `entity` is 0.
    pub(crate) metric: Metric,
}

/// A series by its identity: cluster, entity, metric and labels.
#[derive(Clone, Debug)]
struct Key(Arc<Meta>);

impl Key {
    fn parts(&self) -> (&str, &str, &str, &str, &BTreeMap<String, String>) {
        let Meta { entity, metric, .. } = &*self.0;
        (&entity.cluster_id, &entity.kind, &entity.id, &metric.name, &metric.labels)
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Key {}

#[derive(Debug)]
struct Known {
    meta: Arc<Meta>,
    /// Newest value and its time, milliseconds since 1970.
    at_ms: i64,
    value: f64,
    /// Values taken in.
    count: u64,
    /// Times before the newest, oldest first.
    remembered: VecDeque<i64>,
    heard: Timestamp,
}

/// What a metric of an agent's table is here: its series and the factor to its base unit, or why it is refused.
type Resolved = Vec<Result<(usize, f64), Reason>>;

#[derive(Debug)]
struct Table {
    entities: Vec<Entity>,
    metrics: Vec<Metric>,
    resolved: Arc<Resolved>,
    /// Of the table of series: one that left makes this one stale.
    generation: u64,
}

/// A number a second, in bursts.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Timestamp,
}

impl Bucket {
    fn take(&mut self, now: Timestamp, per_second: u32, wanted: usize) -> usize {
        let rate = f64::from(per_second);
        let passed = now.millis_since(self.at).max(0) as f64 / 1_000.0;
        self.at = now;
        self.left = (self.left + passed * rate).min(rate * BURST_S);
        let given = (self.left as usize).min(wanted);
        self.left -= given as f64;
        given
    }
}

#[derive(Debug)]
struct Agent {
    node: String,
    heard: Timestamp,
    tables: VecDeque<Table>,
    series: usize,
    values: Bucket,
    new_series: Bucket,
    refused: [u64; REASONS.len()],
    /// Values in this minute and the one before.
    minutes: [(i64, u64); 2],
    /// Least delay of a pack in this minute and the one before, milliseconds: what is left of it is the clocks' difference.
    delays: [(i64, i64); 2],
    probes: BTreeMap<(String, String, String), ProbeInfo>,
}

/// A value that was taken in.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) meta: Arc<Meta>,
    /// How many of its series there had been with it.
    pub(crate) number: u64,
    /// Milliseconds since 1970.
    pub(crate) at_ms: i64,
    pub(crate) value: f64,
    /// Is it the newest of its series?
    pub(crate) newest: bool,
}

/// What was taken in of a pack.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The pack as it is stored; `None` if nothing is left of it.
    pub(crate) pack: Option<Readings>,
    /// Was nothing of it left out or brought to another unit?
    pub(crate) is_as_it_came: bool,
    pub(crate) taken: Vec<Taken>,
}

/// One measured thing, as far as its values and probes show it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Presence {
    entity: Entity,
    heard: Option<Timestamp>,
    /// Shortest interval that a probe states, milliseconds.
    stated_ms: Option<u32>,
    /// Shortest time between the last two values of a series, milliseconds.
    seen_ms: Option<i64>,
}

impl Presence {
    pub(crate) fn of(entity: &Entity) -> Self {
        Self { entity: entity.clone(), heard: None, stated_ms: None, seen_ms: None }
    }

    /// A value came, so long after the one before it.
    pub(crate) fn observe(&mut self, at: Timestamp, after_ms: Option<i64>) {
        self.heard = self.heard.max(Some(at));
        self.seen_ms = self.seen_ms.into_iter().chain(after_ms.filter(|ms| *ms > 0)).min();
    }

    fn stated(&mut self, interval_ms: u32) {
        self.stated_ms = self.stated_ms.into_iter().chain(Some(interval_ms).filter(|ms| *ms > 0)).min();
    }

    /// What is said of it at a time.
    pub(crate) fn info(self, now: Timestamp) -> EntityInfo {
        let seen_ms = self.seen_ms.map(|ms| u32::try_from(ms).unwrap_or(u32::MAX));
        let interval_ms = self.stated_ms.or(seen_ms).unwrap_or_default();
        let limit_ms = (UP_INTERVALS * i64::from(interval_ms)).max(ENTITY_UP_MS);
        let up = self.heard.is_some_and(|heard| now.millis_since(heard) < limit_ms);
        EntityInfo { entity: Some(self.entity), up, heard: self.heard, interval_ms }
    }
}

/// All agents and series.
#[derive(Debug)]
pub(crate) struct Intake {
    limits: Limits,
    now: Timestamp,
    agents: BTreeMap<String, Agent>,
    series: Vec<Option<Known>>,
    free: Vec<usize>,
    by_key: BTreeMap<Key, usize>,
    generation: u64,
    numbered: u64,
    accepted: u64,
    out_of_order: u64,
    /// Of agents that left, and of messages that name none.
    refused: [u64; REASONS.len()],
}

impl Intake {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            now: Timestamp::default(),
            agents: BTreeMap::new(),
            series: vec![],
            free: vec![],
            by_key: BTreeMap::new(),
            generation: 0,
            numbered: 0,
            accepted: 0,
            out_of_order: 0,
            refused: [0; REASONS.len()],
        }
    }

    /// Values taken in, and those of them that were older than one before.
    pub(crate) fn accepted(&self) -> (u64, u64) {
        (self.accepted, self.out_of_order)
    }

    /// Values not taken in, by why not.
    pub(crate) fn refused(&self) -> [(&'static str, u64); REASONS.len()] {
        let mut all = self.refused;
        for agent in self.agents.values() {
            all.iter_mut().zip(agent.refused).for_each(|(sum, more)| *sum += more);
        }
        std::array::from_fn(|number| (REASONS[number], all[number]))
    }

    /// Series and agents known.
    pub(crate) fn sizes(&self) -> (u64, u64) {
        (self.by_key.len() as u64, self.agents.len() as u64)
    }

    /// Counts a message that cannot be read at all.
    pub(crate) fn unreadable(&mut self) {
        self.refused[Reason::Invalid as usize] += 1;
    }

    /// The newest value of every series, and how many there were, in order of cluster, entity, metric and labels.
    pub(crate) fn newest(&self) -> impl Iterator<Item = (&Arc<Meta>, u64, i64, f64)> {
        let known = self.by_key.values().filter_map(|slot| self.series[*slot].as_ref());
        known.filter(|known| known.count > 0).map(|known| (&known.meta, known.count, known.at_ms, known.value))
    }

    /// Agents after a cluster, in order, without their settings.
    pub(crate) fn agents<'a>(&'a self, cluster_id: &'a str, after: &'a str) -> impl Iterator<Item = AgentInfo> + 'a {
        let meant = move |id: &str| (cluster_id.is_empty() || id == cluster_id) && id > after;
        self.agents.iter().filter(move |(id, _)| meant(id)).map(|(id, agent)| agent.info(id, self.now))
    }

    /// What is measured on a cluster, by kind and id.
    pub(crate) fn entities(&self, cluster_id: &str) -> BTreeMap<(String, String), Presence> {
        let mut found: BTreeMap<(String, String), Presence> = BTreeMap::new();
        let key = |entity: &Entity| (entity.kind.clone(), entity.id.clone());
        let of_cluster = |metric| Meta {
            number: 0,
            entity: Entity { cluster_id: cluster_id.to_owned(), ..Entity::default() },
            metric,
        };
        let mine = self.by_key.range(Key(Arc::new(of_cluster(Metric::default())))..);
        let mine = mine.take_while(|(key, _)| key.0.entity.cluster_id == cluster_id);
        for known in mine.filter_map(|(_, slot)| self.series[*slot].as_ref()) {
            let entity = &known.meta.entity;
            let measured = found.entry(key(entity)).or_insert_with(|| Presence::of(entity));
            if known.count > 0 {
                measured.observe(known.heard, known.remembered.back().map(|before| known.at_ms - before));
            }
        }
        let probes = self.agents.get(cluster_id).into_iter().flat_map(|agent| agent.probes.values());
        for ProbeInfo { entity, status, .. } in probes {
            let (Some(entity), Some(status)) = (entity, status) else { continue };
            found.entry(key(entity)).or_insert_with(|| Presence::of(entity)).stated(status.interval_ms);
        }
        found
    }

    /// Time passes.
    pub(crate) fn tick(&mut self, now: Timestamp) {
        self.now = now;
    }

    /// Forgets agents and series that went silent.
    pub(crate) fn sweep(&mut self) {
        let (now, idle_ms) = (self.now, self.limits.idle_ms);
        for slot in 0..self.series.len() {
            let Some(known) = self.series[slot].take_if(|known| now.millis_since(known.heard) >= idle_ms) else {
                continue;
            };
            if let Some(agent) = self.agents.get_mut(&known.meta.entity.cluster_id) {
                agent.series -= 1;
            }
            self.by_key.remove(&Key(known.meta));
            self.free.push(slot);
            self.generation += 1;
        }
        let refused = &mut self.refused;
        self.agents.retain(|_, agent| {
            agent.probes.retain(|_, probe| probe.heard.is_some_and(|heard| now.millis_since(heard) < idle_ms));
            let stays = now.millis_since(agent.heard) < idle_ms || agent.series > 0;
            if !stays {
                refused.iter_mut().zip(agent.refused).for_each(|(sum, more)| *sum += more);
            }
            stays
        });
    }

    /// Takes a pack of `node` in. Its columns fit together: [`mesh_proto::readings`] sees to that.
    pub(crate) fn take(&mut self, node: &str, pack: Readings) -> Outcome {
        self.take_from(node, pack, true)
    }

    /// Takes in what another collector took in and stored: it has counted it, and seen how late it came.
    pub(crate) fn take_stored(&mut self, node: &str, pack: Readings) -> Outcome {
        let (refused, accepted, out_of_order) = (self.refused, self.accepted, self.out_of_order);
        let of_agent = self.agents.get(&pack.cluster_id).map(|agent| agent.refused).unwrap_or_default();
        let cluster_id = pack.cluster_id.clone();
        let outcome = self.take_from(node, pack, false);
        (self.refused, self.accepted, self.out_of_order) = (refused, accepted, out_of_order);
        if let Some(agent) = self.agents.get_mut(&cluster_id) {
            agent.refused = of_agent;
        }
        outcome
    }

    fn take_from(&mut self, node: &str, mut pack: Readings, is_live: bool) -> Outcome {
        let wanted = pack.values.len();
        let all = |intake: &mut Self, reason: Reason| {
            intake.refused[reason as usize] += wanted.max(1) as u64;
            Outcome::default()
        };
        if self.now == Timestamp::default() {
            return all(self, Reason::Early);
        }
        let at = pack.at.filter(|at| at.seconds > 0 && (0..1_000_000_000).contains(&at.nanos));
        let Some(at) = at.filter(|_| is_key(&pack.cluster_id)) else { return all(self, Reason::Invalid) };
        if !self.agents.contains_key(&pack.cluster_id) {
            if self.agents.len() >= self.limits.agents_max {
                return all(self, Reason::TooManySeries);
            }
            self.agents.insert(pack.cluster_id.clone(), Agent::new(node, self.now, &self.limits));
        }
        let resolved = self.resolve(&pack);
        let (now, limits) = (self.now, self.limits);
        let Some(agent) = self.agents.get_mut(&pack.cluster_id) else { return Outcome::default() };
        agent.heard = now;
        if agent.node != node {
            node.clone_into(&mut agent.node);
        }
        if is_live {
            agent.delay(now, now.millis_since(at));
        }
        agent.probed(&pack, now, limits.probes_max);
        let given = if is_live { agent.values.take(now, limits.values_per_second, wanted) } else { wanted };
        agent.refused[Reason::Flood as usize] += (wanted - given) as u64;
        let (at_ms, now_ms) = (at.as_millis(), now.as_millis());
        let mut taken = Vec::with_capacity(given);
        let mut kept = vec![];
        let mut exact = given == wanted;
        for row in 0..given {
            let value_ms = at_ms + i64::from(pack.after_ms[row]);
            let (slot, factor) = match resolved[pack.metric[row] as usize] {
                Ok(found) => found,
                Err(reason) => {
                    agent.refused[reason as usize] += 1;
                    exact = false;
                    continue;
                }
            };
            let value = pack.values[row] * factor;
            let outcome = match &mut self.series[slot] {
                _ if !value.is_finite() => Err(Reason::NotFinite),
                _ if value_ms > now_ms + limits.ahead_ms => Err(Reason::Ahead),
                _ if value_ms < now_ms - limits.late_ms => Err(Reason::Late),
                Some(known) => known.take(value_ms, value, now),
                None => Err(Reason::TooManySeries),
            };
            match outcome {
                Ok(one) => {
                    self.out_of_order += u64::from(!one.newest);
                    taken.push(one);
                    kept.push(row);
                    pack.values[row] = value;
                }
                Err(reason) => {
                    agent.refused[reason as usize] += 1;
                    exact = false;
                }
            }
        }
        self.accepted += taken.len() as u64;
        agent.count(now, taken.len() as u64);
        if !exact {
            pack.metric = kept.iter().map(|row| pack.metric[*row]).collect();
            pack.after_ms = kept.iter().map(|row| pack.after_ms[*row]).collect();
            pack.values = kept.iter().map(|row| pack.values[*row]).collect();
        }
        let mut is_as_it_came = !rebase(&mut pack, &resolved) && exact;
        if taken.is_empty() {
            // It came before, or was refused: it adds nothing up.
            pack.traffic.clear();
            is_as_it_came = false;
        }
        let pack = (!pack.values.is_empty() || !pack.probes.is_empty()).then_some(pack);
        Outcome { pack, is_as_it_came, taken }
    }

    /// The series of every metric of a pack; those that are new become known, as far as the limits allow.
    fn resolve(&mut self, pack: &Readings) -> Arc<Resolved> {
        let generation = self.generation;
        if let Some(agent) = self.agents.get_mut(&pack.cluster_id) {
            agent.tables.retain(|table| table.generation == generation);
            let same = |table: &Table| table.metrics == pack.metrics && table.entities == pack.entities;
            if let Some(table) = agent.tables.iter().find(|table| same(table)) {
                return table.resolved.clone();
            }
        }
        let sound: Vec<bool> = pack.entities.iter().map(|entity| is_sound(entity, &pack.cluster_id)).collect();
        let resolved: Resolved =
            pack.metrics.iter().map(|metric| self.series_of(pack, metric, sound[metric.entity as usize])).collect();
        // What was refused only for now is asked for again.
        let settled = !resolved.iter().any(|one| matches!(one, Err(Reason::TooManySeries)));
        let resolved = Arc::new(resolved);
        if settled && let Some(agent) = self.agents.get_mut(&pack.cluster_id) {
            let (entities, metrics) = (pack.entities.clone(), pack.metrics.clone());
            agent.tables.push_back(Table { entities, metrics, resolved: resolved.clone(), generation });
            if agent.tables.len() > TABLES_MAX {
                agent.tables.pop_front();
            }
        }
        resolved
    }

    fn series_of(&mut self, pack: &Readings, metric: &Metric, sound: bool) -> Result<(usize, f64), Reason> {
        let labels = metric.labels.len() <= self.limits.labels_max
            && metric.labels.iter().all(|(name, value)| is_label(name) && is_label(value));
        if !sound || !is_name(&metric.name) || !is_label(&metric.probe) {
            return Err(Reason::Invalid);
        }
        if !labels {
            return Err(Reason::Label);
        }
        let Some((factor, unit)) = units::normalise(&metric.unit) else { return Err(Reason::Unit) };
        let entity = &pack.entities[metric.entity as usize];
        let metric = Metric { entity: 0, unit, ..metric.clone() };
        let number = self.numbered + 1;
        let key = Key(Arc::new(Meta { number, entity: entity.clone(), metric }));
        if let Some((known, slot)) = self.by_key.get_key_value(&key).map(|(known, slot)| (known.clone(), *slot)) {
            if (&known.0.entity, &known.0.metric) != (&key.0.entity, &key.0.metric)
                && let (Some(of), Some(meta)) = (self.series[slot].as_mut(), Arc::into_inner(key.0))
            {
                of.meta = Arc::new(Meta { number: known.0.number, ..meta });
                self.by_key.remove(&known);
                self.by_key.insert(Key(of.meta.clone()), slot);
            }
            return Ok((slot, factor));
        }
        let agent = self.agents.get_mut(&pack.cluster_id).ok_or(Reason::TooManySeries)?;
        let room = self.by_key.len() < self.limits.series_max && agent.series < self.limits.series_of_agent_max;
        if !room || agent.new_series.take(self.now, self.limits.new_series_per_second, 1) == 0 {
            return Err(Reason::TooManySeries);
        }
        agent.series += 1;
        self.numbered = number;
        let known = Known {
            meta: key.0.clone(),
            at_ms: i64::MIN,
            value: 0.0,
            count: 0,
            remembered: VecDeque::new(),
            heard: self.now,
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.series.push(None);
                self.series.len() - 1
            }
        };
        self.series[slot] = Some(known);
        self.by_key.insert(key, slot);
        Ok((slot, factor))
    }
}

/// The name of a metric: letters, digits, `_`, `.`, `-` and `/`, as OpenTelemetry has it, at most 128.
fn is_name(name: &str) -> bool {
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic());
    begins && name.len() <= TEXT_MAX && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-/".contains(c))
}

fn is_sound(entity: &Entity, cluster_id: &str) -> bool {
    KINDS.contains(&entity.kind.as_str())
        && is_label(&entity.id)
        && entity.cluster_id == cluster_id
        && (entity.node.is_empty() || is_key(&entity.node))
        && (entity.owner.is_empty() || is_key(&entity.owner))
}

/// Writes base units into a pack whose values are in them already, and leaves out the metrics that are refused. Was there
/// any such?
fn rebase(pack: &mut Readings, resolved: &Resolved) -> bool {
    let mut is_changed = false;
    for (metric, found) in pack.metrics.iter_mut().zip(resolved) {
        if found.is_ok_and(|(_, factor)| factor != 1.0) || metric.unit.is_empty() {
            metric.unit = units::normalise(&metric.unit).map_or(String::new(), |(_, unit)| unit);
            is_changed = true;
        }
    }
    if resolved.iter().all(Result::is_ok) {
        return is_changed;
    }
    let mut number = 0;
    let numbers: Vec<u32> = resolved
        .iter()
        .map(|found| {
            let mine = number;
            number += u32::from(found.is_ok());
            mine
        })
        .collect();
    pack.metric.iter_mut().for_each(|metric| *metric = numbers[*metric as usize]);
    let mut each = resolved.iter();
    pack.metrics.retain(|_| each.next().is_some_and(Result::is_ok));
    // Of entities only the indexes matter; unsound ones are blanked, so that nothing of them is stored.
    for entity in &mut pack.entities {
        if !is_sound(entity, &pack.cluster_id) {
            *entity = Entity::default();
        }
    }
    true
}

/// What tells two packs of one cluster and time apart.
pub(crate) fn fingerprint(pack: &Readings) -> String {
    let mut hasher = DefaultHasher::new();
    for (metric, value) in pack.metric.iter().zip(&pack.values) {
        (metric, value.to_bits()).hash(&mut hasher);
    }
    for metric in &pack.metrics {
        (&metric.name, &metric.labels, metric.entity).hash(&mut hasher);
    }
    for entity in &pack.entities {
        (&entity.kind, &entity.id).hash(&mut hasher);
    }
    for probe in &pack.probes {
        (probe.entity, &probe.probe, &probe.failure, probe.readings, probe.failures).hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

impl Known {
    fn take(&mut self, at_ms: i64, value: f64, now: Timestamp) -> Result<Taken, Reason> {
        let newest = at_ms > self.at_ms;
        if !newest && (at_ms == self.at_ms || self.remembered.contains(&at_ms)) {
            return Err(Reason::Duplicate);
        }
        let older = if newest { std::mem::replace(&mut self.at_ms, at_ms) } else { at_ms };
        if older != i64::MIN {
            if self.remembered.back().is_none_or(|last| *last < older) {
                self.remembered.push_back(older);
            } else {
                let place = self.remembered.partition_point(|known| *known < older);
                self.remembered.insert(place, older);
            }
            if self.remembered.len() > REMEMBERED_MAX {
                self.remembered.pop_front();
            }
        }
        if newest {
            self.value = value;
        }
        self.heard = now;
        self.count += 1;
        Ok(Taken { meta: self.meta.clone(), number: self.count, at_ms, value, newest })
    }
}

impl Agent {
    fn new(node: &str, now: Timestamp, limits: &Limits) -> Self {
        let full = |per_second: u32| Bucket { left: f64::from(per_second) * BURST_S, at: now };
        Self {
            node: node.to_owned(),
            heard: now,
            tables: VecDeque::new(),
            series: 0,
            values: full(limits.values_per_second),
            new_series: full(limits.new_series_per_second),
            refused: [0; REASONS.len()],
            minutes: [(0, 0); 2],
            delays: [(0, i64::MAX); 2],
            probes: BTreeMap::new(),
        }
    }

    fn count(&mut self, now: Timestamp, values: u64) {
        let minute = now.as_millis() / 60_000;
        if self.minutes[1].0 != minute {
            self.minutes = [self.minutes[1], (minute, 0)];
        }
        self.minutes[1].1 += values;
    }

    fn delay(&mut self, now: Timestamp, delay_ms: i64) {
        let minute = now.as_millis() / 60_000;
        if self.delays[1].0 != minute {
            self.delays = [self.delays[1], (minute, i64::MAX)];
        }
        self.delays[1].1 = self.delays[1].1.min(delay_ms);
    }

    fn probed(&mut self, pack: &Readings, now: Timestamp, probes_max: usize) {
        for status in &pack.probes {
            let entity = &pack.entities[status.entity as usize];
            if !is_sound(entity, &pack.cluster_id) || !is_label(&status.probe) {
                self.refused[Reason::Invalid as usize] += 1;
                continue;
            }
            let key = (entity.kind.clone(), entity.id.clone(), status.probe.clone());
            if !self.probes.contains_key(&key) && self.probes.len() >= probes_max {
                self.refused[Reason::TooManySeries as usize] += 1;
                continue;
            }
            let mut status = status.clone();
            status.entity = 0;
            let cut = status.failure.char_indices().nth(256).map(|(at, _)| at);
            cut.into_iter().for_each(|at| status.failure.truncate(at));
            self.probes.insert(key, ProbeInfo { entity: Some(entity.clone()), status: Some(status), heard: Some(now) });
        }
    }

    fn info(&self, cluster_id: &str, now: Timestamp) -> AgentInfo {
        let minute = now.as_millis() / 60_000;
        let into_s = (now.as_millis() % 60_000) as f64 / 1_000.0;
        let share = 1.0 - into_s / 60.0;
        let of =
            |number: i64| self.minutes.iter().find(|(m, _)| *m == number).map_or(0.0, |(_, values)| *values as f64);
        let least = self.delays.iter().filter(|(m, _)| minute - m <= 1).map(|(_, delay)| *delay).min();
        AgentInfo {
            cluster_id: cluster_id.to_owned(),
            node: self.node.clone(),
            up: now.millis_since(self.heard) < UP_MS,
            heard: Some(self.heard),
            skew_ms: least.filter(|delay| *delay != i64::MAX).map_or(0, |delay| -delay),
            values_per_second: (of(minute) + of(minute - 1) * share) / 60.0,
            refused: self.refused.iter().sum(),
            probes: self.probes.values().cloned().collect(),
            settings: BTreeMap::new(),
            entities: vec![],
            entities_left_out: 0,
        }
    }
}

/// Is a metric one whose differences mean something, and nothing else?
pub(crate) fn is_counter(metric: &Metric) -> bool {
    metric.kind() == MetricKind::Counter
}

#[cfg(test)]
mod tests {
    use mesh_proto::telemetry::ProbeStatus;
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_000_000_000;

    fn intake(limits: Limits) -> Intake {
        let mut intake = Intake::new(limits);
        intake.tick(Timestamp::from_millis(NOW));
        intake
    }

    fn entity(id: &str) -> Entity {
        Entity { kind: "node".into(), id: id.into(), cluster_id: "edge".into(), ..Entity::default() }
    }

    fn metric(name: &str, unit: &str) -> Metric {
        Metric { name: name.into(), unit: unit.into(), probe: "p".into(), ..Metric::default() }
    }

    /// A pack of one entity, with the value and its time after now for each metric.
    fn pack(metrics: Vec<Metric>, values: &[(u32, i32, f64)]) -> Readings {
        Readings {
            cluster_id: "edge".into(),
            at: Some(Timestamp::from_millis(NOW)),
            entities: vec![entity("n")],
            metrics,
            metric: values.iter().map(|(metric, ..)| *metric).collect(),
            after_ms: values.iter().map(|(_, after, _)| *after).collect(),
            values: values.iter().map(|(.., value)| *value).collect(),
            probes: vec![],
            traffic: vec![],
        }
    }

    fn refused(intake: &Intake, reason: &str) -> u64 {
        intake.refused().into_iter().find(|(name, _)| *name == reason).unwrap().1
    }

    #[test]
    fn what_is_sound_is_stored_as_it_came_in_base_units() {
        let mut intake = intake(Limits::default());
        let sound = pack(vec![metric("a", "s"), metric("b", "By")], &[(0, 0, 1.0), (1, 0, 2.0)]);
        assert_eq!(intake.take("n", sound.clone()).pack, Some(sound));
        let other = pack(vec![metric("c", "ms"), metric("d", "")], &[(0, 0, 1_500.0), (1, 0, 2.0)]);
        let stored = intake.take("n", other).pack.unwrap();
        assert_eq!(stored.values, [1.5, 2.0]);
        assert_eq!(stored.metrics.iter().map(|m| m.unit.as_str()).collect::<Vec<_>>(), ["s", "1"]);
        assert_eq!((intake.accepted(), intake.sizes()), ((4, 0), (4, 1)));
    }

    #[test]
    fn each_value_that_is_not_taken_in_is_counted_by_why() {
        let mut intake = intake(Limits::default());
        let many = (0..17).map(|n| (format!("l{n}"), "x".to_owned())).collect();
        let metrics = vec![
            metric("good", "s"),
            metric("bad unit", "s"),
            metric("unit", "parsec"),
            Metric { labels: many, ..metric("label", "s") },
        ];
        let late = i32::try_from(-Limits::default().late_ms - 1).unwrap();
        let values = [
            (0, 0, 1.0),
            (0, 0, 2.0),
            (0, 1, f64::NAN),
            (0, 2, f64::INFINITY),
            (0, 6_000, 1.0),
            (0, late, 1.0),
            (1, 0, 1.0),
            (2, 0, 1.0),
            (3, 0, 1.0),
            (0, -5, 3.0),
        ];
        let outcome = intake.take("n", pack(metrics, &values));
        let stored = outcome.pack.unwrap();
        assert!(stored.fits());
        assert_eq!((stored.values, stored.metrics.len()), (vec![1.0, 3.0], 1));
        let counts =
            [("duplicate", 1), ("not_finite", 2), ("ahead", 1), ("late", 1), ("invalid", 1), ("unit", 1), ("label", 1)];
        for (reason, count) in counts {
            assert_eq!(refused(&intake, reason), count, "{reason}");
        }
        assert_eq!(intake.accepted(), (2, 1), "one of them is older than one before");
        assert_eq!(intake.agents("", "").next().unwrap().refused, 8);
    }

    #[test]
    fn another_clusters_entities_and_unknown_kinds_are_not_taken_in() {
        let mut intake = intake(Limits::default());
        let wrong = [
            Entity { cluster_id: "cloud".into(), ..entity("n") },
            Entity { kind: "planet".into(), ..entity("n") },
            Entity { owner: "a.b".into(), ..entity("n") },
            entity(""),
        ];
        for entity in wrong {
            let pack = Readings { entities: vec![entity], ..pack(vec![metric("a", "s")], &[(0, 0, 1.0)]) };
            assert_eq!(intake.take("n", pack).pack, None);
        }
        assert_eq!((refused(&intake, "invalid"), intake.sizes().0), (4, 0));
    }

    #[test]
    fn a_flood_costs_only_its_agent() {
        let limits = Limits { values_per_second: 10, new_series_per_second: 2, ..Limits::default() };
        let mut intake = intake(limits);
        let labelled =
            |n: u32| Metric { labels: BTreeMap::from([("n".to_owned(), n.to_string())]), ..metric("a", "s") };
        let bomb = pack((0..200).map(labelled).collect(), &(0..200).map(|n| (n, 0, 1.0)).collect::<Vec<_>>());
        let taken = intake.take("n", bomb).taken.len();
        assert_eq!((taken, refused(&intake, "flood"), refused(&intake, "too_many_series")), (20, 100, 80));
        let mut other = pack(vec![metric("a", "s")], &[(0, 0, 1.0)]);
        other.cluster_id = "cloud".into();
        other.entities[0].cluster_id = "cloud".into();
        assert_eq!(intake.take("n", other).taken.len(), 1);
        // A second later there is room for ten more.
        intake.tick(Timestamp::from_millis(NOW + 1_000));
        let again = pack((0..200).map(labelled).collect(), &(0..200).map(|n| (n, 1_000, 1.0)).collect::<Vec<_>>());
        assert_eq!(intake.take("n", again).taken.len(), 10);
    }

    #[test]
    fn silent_agents_and_series_are_forgotten_and_their_counts_are_not() {
        let mut intake = intake(Limits::default());
        intake.take("n", pack(vec![metric("a", "s"), metric("b", "x")], &[(0, 0, 1.0), (1, 0, 1.0)]));
        intake.tick(Timestamp::from_millis(NOW + 600_000));
        intake.sweep();
        assert_eq!((intake.sizes(), refused(&intake, "unit"), intake.newest().count()), ((0, 0), 1, 0));
        let mut back = pack(vec![metric("c", "s")], &[(0, 0, 7.0)]);
        back.at = Some(Timestamp::from_millis(NOW + 600_000));
        assert_eq!(intake.take("n", back).taken.len(), 1);
        assert_eq!(
            intake.newest().map(|(meta, _, _, value)| (meta.metric.name.as_str(), value)).collect::<Vec<_>>(),
            [("c", 7.0)]
        );
    }

    #[test]
    fn an_agent_is_described_with_its_clock_and_its_probes() {
        let mut intake = intake(Limits::default());
        let mut ahead = pack(vec![metric("a", "s")], &[(0, 0, 1.0)]);
        ahead.at = Some(Timestamp::from_millis(NOW + 3_000));
        let failing = ProbeStatus {
            probe: "energy".into(),
            failure: "cannot read".into(),
            failures: 2,
            ..ProbeStatus::default()
        };
        ahead.probes = vec![failing.clone()];
        intake.take("n1", ahead);
        let agent = intake.agents("edge", "").next().unwrap();
        assert_eq!((agent.node.as_str(), agent.up, agent.skew_ms), ("n1", true, 3_000));
        assert_eq!(agent.probes[0].status, Some(failing));
        intake.tick(Timestamp::from_millis(NOW + UP_MS));
        assert!(!intake.agents("edge", "").next().unwrap().up);
        assert_eq!(intake.agents("cloud", "").count() + intake.agents("", "edge").count(), 0);
    }

    #[test]
    fn an_entity_is_up_while_its_values_come_and_is_forgotten_later() {
        let mut intake = intake(Limits::default());
        let status = |interval_ms| ProbeStatus { probe: "p".into(), interval_ms, ..ProbeStatus::default() };
        let one = |id: &str, interval_ms: u32, metrics: &[(u32, i32, f64)]| Readings {
            entities: vec![entity(id)],
            probes: vec![status(interval_ms)],
            ..pack(vec![metric("a", "s")], metrics)
        };
        let each = [
            one("fast", 1_000, &[(0, 0, 1.0)]),
            one("slow", 60_000, &[(0, 0, 1.0)]),
            one("failing", 1_000, &[]),
            Readings { probes: vec![], ..one("unstated", 0, &[(0, 0, 1.0), (0, 20_000, 2.0)]) },
        ];
        intake.tick(Timestamp::from_millis(NOW + 20_000));
        each.into_iter().for_each(|pack| drop(intake.take("n", pack)));
        let at = |intake: &mut Intake, after_ms: i64| -> Vec<(String, bool, u32)> {
            intake.tick(Timestamp::from_millis(NOW + 20_000 + after_ms));
            let now = intake.now;
            let infos = intake.entities("edge").into_values().map(|measured| measured.info(now));
            infos.map(|info| (info.entity.unwrap().id, info.up, info.interval_ms)).collect()
        };
        let all = |up: [bool; 4]| {
            let named = [("failing", 1_000), ("fast", 1_000), ("slow", 60_000), ("unstated", 20_000)];
            named.iter().zip(up).map(|((id, ms), up)| ((*id).to_owned(), up, *ms)).collect::<Vec<_>>()
        };
        assert_eq!(at(&mut intake, 29_999), all([false, true, true, true]));
        assert_eq!(at(&mut intake, 30_000), all([false, false, true, true]));
        assert_eq!(at(&mut intake, 60_000), all([false, false, true, false]));
        assert_eq!(at(&mut intake, 180_000), all([false; 4]));
        assert!(intake.entities("edg").is_empty() && intake.entities("edge2").is_empty());
        intake.tick(Timestamp::from_millis(NOW + 620_000));
        intake.sweep();
        assert!(intake.entities("edge").is_empty());
    }

    #[test]
    fn probes_of_what_is_gone_make_room_for_those_of_what_comes() {
        let mut intake = intake(Limits { probes_max: 2, ..Limits::default() });
        let mut next = |second: i64, id: &str| {
            intake.tick(Timestamp::from_millis(NOW + 1_000 * second));
            intake.sweep();
            let probes = vec![ProbeStatus { probe: "p".into(), ..ProbeStatus::default() }];
            let at = Some(Timestamp::from_millis(NOW + 1_000 * second));
            intake.take("n", Readings { entities: vec![entity(id)], probes, at, ..pack(vec![], &[]) });
            intake.agents("", "").next().unwrap().probes.len()
        };
        assert_eq!([next(0, "a"), next(1, "b"), next(2, "c"), next(601, "d")], [1, 2, 2, 1]);
    }

    #[test]
    fn an_entity_that_changed_hands_bears_its_new_owner() {
        let mut intake = intake(Limits::default());
        let owned = |owner: &str, after: i32| {
            let entities = vec![Entity { owner: owner.into(), ..entity("n") }];
            Readings { entities, ..pack(vec![metric("a", "s")], &[(0, after, 1.0)]) }
        };
        intake.take("n", owned("ann", 0));
        intake.take("n", owned("bob", 1));
        assert_eq!(intake.newest().map(|(meta, ..)| meta.entity.owner.as_str()).collect::<Vec<_>>(), ["bob"]);
    }

    proptest! {
        /// Every value is taken in once or counted once, whatever comes; what is stored fits together.
        #[test]
        fn nothing_is_dropped_without_being_counted(
            packs in prop::collection::vec(
                prop::collection::vec((0u32..6, -10i32..10, prop::num::f64::ANY), 0..20), 1..10),
        ) {
            let limits = Limits { values_per_second: 5, series_max: 4, ..Limits::default() };
            let mut intake = intake(limits);
            let units = ["s", "ms", "x", "By", "1", ""];
            let metrics: Vec<Metric> = units.iter().enumerate().map(|(n, unit)| metric(&format!("m{n}"), unit)).collect();
            let (mut sent, mut stored) = (0, 0);
            for values in packs {
                sent += values.len() as u64;
                let outcome = intake.take("n", pack(metrics.clone(), &values));
                let pack = outcome.pack.unwrap_or_default();
                prop_assert!(pack.fits());
                prop_assert!(pack.values.iter().all(|value| value.is_finite()));
                prop_assert_eq!(pack.values.len(), outcome.taken.len());
                stored += pack.values.len() as u64;
            }
            let refused: u64 = intake.refused().iter().map(|(_, count)| count).sum();
            prop_assert_eq!(intake.accepted().0, stored);
            // A pack without values counts as one thing refused only when nothing of it could be read.
            prop_assert_eq!(stored + refused, sent);
        }
    }
}
