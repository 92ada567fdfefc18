//! The streaming-telemetry channel: the newest values of everything, for readers that follow some of it. Its oldest make
//! room; a reader that was too slow goes on with the oldest that is left, and learns what it missed.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use mesh_proto::{
    Timestamp,
    telemetry::{Entity, Filter, InstanceSample, Provenance, Readings, WatchReply},
};

use super::{
    readings::{Meta, Taken},
    select::{self, FIELDS},
};

/// Values in a reply.
const REPLY_MAX: usize = 1_000;

#[derive(Debug)]
enum Entry {
    Readings(Vec<Taken>),
    /// How many of its instance there had been with it.
    Sample(Arc<InstanceSample>, u64),
}

impl Entry {
    /// Values in it, as positions count them.
    fn len(&self) -> u64 {
        match self {
            Self::Readings(taken) => taken.len() as u64,
            Self::Sample(..) => 1,
        }
    }
}

/// The ring.
#[derive(Debug)]
pub(crate) struct Channel {
    values_max: u64,
    /// Position of the first value in the ring, and of the first ever.
    oldest: u64,
    begun: u64,
    values: u64,
    /// Each with the position of its first value.
    entries: VecDeque<(u64, Entry)>,
}

impl Channel {
    pub(crate) fn new(values_max: usize) -> Self {
        Self { values_max: values_max as u64, oldest: 1, begun: 1, values: 0, entries: VecDeque::new() }
    }

    /// Positions of a later process are larger: they begin at the microseconds since 1970 at which it started.
    pub(crate) fn begin(&mut self, now: Timestamp) {
        if self.entries.is_empty() {
            self.begun = u64::try_from(now.as_millis()).unwrap_or(0).max(1) * 1_000;
            self.oldest = self.begun;
        }
    }

    pub(crate) fn readings(&mut self, taken: Vec<Taken>) {
        if !taken.is_empty() {
            self.push(Entry::Readings(taken));
        }
    }

    pub(crate) fn sample(&mut self, sample: Arc<InstanceSample>, number: u64) {
        self.push(Entry::Sample(sample, number));
    }

    fn push(&mut self, entry: Entry) {
        let position = self.end();
        self.values += entry.len();
        self.entries.push_back((position, entry));
        while self.values > self.values_max {
            let Some((_, first)) = self.entries.pop_front() else { break };
            self.values -= first.len();
            self.oldest += first.len();
        }
    }

    /// Position after the newest value.
    pub(crate) fn end(&self) -> u64 {
        self.oldest + self.values
    }

    /// A reader of what a filter means, from `after` on, or from here on if that is 0. `known` gives each series that there
    /// is, with how many values it had.
    pub(crate) fn cursor<'a>(
        &self,
        filter: Filter,
        interval_ms: u32,
        after: u64,
        known: impl Iterator<Item = (&'a Arc<Meta>, u64)>,
    ) -> Cursor {
        let mut cursor = Cursor {
            filter,
            interval_ms: i64::from(interval_ms),
            next: if after == 0 { self.end() } else { after + 1 },
            missed: 0,
            meant: HashMap::new(),
            seen: HashMap::new(),
            samples: HashMap::new(),
            held: BTreeMap::new(),
        };
        if after == 0 {
            let meant = known.filter(|(meta, _)| means(&cursor.filter, meta));
            cursor.seen = meant.map(|(meta, count)| (meta.number, count)).collect();
        } else if cursor.next < self.begun {
            (cursor.missed, cursor.next) = (1, self.oldest);
        } else if cursor.next < self.oldest {
            (cursor.missed, cursor.next) = (self.oldest - cursor.next, self.oldest);
        }
        cursor.next = cursor.next.min(self.end());
        cursor
    }

    /// What came after the cursor, at most 1,000 values, and moves it on. `None` when all was seen.
    pub(crate) fn read(&self, cursor: &mut Cursor) -> Option<WatchReply> {
        let mut builder = Builder::default();
        cursor.next = cursor.next.max(self.oldest);
        let seen = self.entries.partition_point(|(position, entry)| position + entry.len() <= cursor.next);
        for (position, entry) in self.entries.range(seen..) {
            if builder.values.len() >= REPLY_MAX {
                break;
            }
            let skip = usize::try_from(cursor.next - position).unwrap_or(0);
            match entry {
                Entry::Readings(taken) => taken.iter().skip(skip).for_each(|one| cursor.value(one, &mut builder)),
                Entry::Sample(sample, number) => cursor.of_instance(sample, *number, &mut builder),
            }
            cursor.next = position + entry.len();
        }
        let missed = std::mem::take(&mut cursor.missed);
        if builder.values.is_empty() && missed == 0 {
            return None;
        }
        Some(WatchReply { readings: Some(builder.done()), position: cursor.next - 1, missed })
    }
}

fn means(filter: &Filter, meta: &Meta) -> bool {
    select::means_entity(filter, &meta.entity) && select::means_metric(filter, &meta.entity.kind, &meta.metric)
}

/// Where a reader is, and what it wants.
#[derive(Debug)]
pub(crate) struct Cursor {
    filter: Filter,
    interval_ms: i64,
    next: u64,
    missed: u64,
    /// Series by number: are they meant?
    meant: HashMap<u64, bool>,
    /// How many values of a series were seen, and of an instance.
    seen: HashMap<u64, u64>,
    samples: HashMap<String, u64>,
    /// When a value of a series was last given, where the reader wants fewer.
    held: BTreeMap<(u64, String), i64>,
}

impl Cursor {
    /// Values missed so far are counted here too, when the reader is asked.
    fn value(&mut self, one: &Taken, builder: &mut Builder) {
        let number = one.meta.number;
        let filter = &self.filter;
        if !*self.meant.entry(number).or_insert_with(|| means(filter, &one.meta)) {
            return;
        }
        if let Some(seen) = self.seen.insert(number, one.number) {
            self.missed += one.number.saturating_sub(seen + 1);
        }
        if self.is_due(number, "", one.at_ms) {
            builder.push(&one.meta, one.at_ms, one.value);
        }
    }

    fn of_instance(&mut self, sample: &InstanceSample, number: u64, builder: &mut Builder) {
        if !select::means_instance(&self.filter, sample) {
            return;
        }
        let entity = select::entity_of(sample);
        let provenance = Provenance::try_from(sample.provenance).unwrap_or_default();
        let at_ms = sample.at.unwrap_or_default().as_millis();
        if let Some(seen) = self.samples.insert(sample.instance_id.clone(), number) {
            self.missed += number.saturating_sub(seen + 1);
        }
        if !self.is_due(0, &sample.instance_id, at_ms) {
            return;
        }
        for field in &FIELDS {
            let metric = field.metric(provenance);
            if select::means_metric(&self.filter, select::INSTANCE, &metric) {
                let meta = Meta { number: 0, entity: entity.clone(), metric };
                builder.push(&meta, at_ms, field.value(sample));
            }
        }
    }

    fn is_due(&mut self, number: u64, instance_id: &str, at_ms: i64) -> bool {
        if self.interval_ms == 0 {
            return true;
        }
        let last = self.held.entry((number, instance_id.to_owned())).or_insert(i64::MIN);
        let due = at_ms >= last.saturating_add(self.interval_ms);
        if due {
            *last = at_ms;
        }
        due
    }
}

/// Packs values by column.
#[derive(Debug, Default)]
struct Builder {
    pack: Readings,
    begun_ms: i64,
    entities: HashMap<(String, String, String), u32>,
    metrics: HashMap<(u32, String, BTreeMap<String, String>), u32>,
    values: Vec<f64>,
}

impl Builder {
    fn push(&mut self, meta: &Meta, at_ms: i64, value: f64) {
        if self.values.is_empty() {
            self.begun_ms = at_ms;
        }
        let (entity, pack) = (&meta.entity, &mut self.pack);
        let key = (entity.cluster_id.clone(), entity.kind.clone(), entity.id.clone());
        let entity = *self.entities.entry(key).or_insert_with(|| {
            pack.entities.push(entity.clone());
            pack.entities.len() as u32 - 1
        });
        let key = (entity, meta.metric.name.clone(), meta.metric.labels.clone());
        let metric = *self.metrics.entry(key).or_insert_with(|| {
            pack.metrics.push(mesh_proto::telemetry::Metric { entity, ..meta.metric.clone() });
            pack.metrics.len() as u32 - 1
        });
        self.pack.metric.push(metric);
        let after = (at_ms - self.begun_ms).clamp(i64::from(i32::MIN), i64::from(i32::MAX));
        self.pack.after_ms.push(i32::try_from(after).unwrap_or(0));
        self.values.push(value);
    }

    fn done(self) -> Readings {
        let cluster = |entities: &[Entity]| {
            let first = entities.first().map(|entity| entity.cluster_id.clone()).unwrap_or_default();
            if entities.iter().all(|entity| entity.cluster_id == first) { first } else { String::new() }
        };
        let at = (!self.values.is_empty()).then(|| Timestamp::from_millis(self.begun_ms));
        Readings { cluster_id: cluster(&self.pack.entities), at, values: self.values, ..self.pack }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::telemetry::Metric;
    use proptest::prelude::*;

    use super::*;

    fn meta(number: u64) -> Arc<Meta> {
        let entity =
            Entity { kind: "node".into(), id: format!("n{number}"), cluster_id: "edge".into(), ..Entity::default() };
        let metric = Metric { name: "m".into(), probe: "p".into(), ..Metric::default() };
        Arc::new(Meta { number, entity, metric })
    }

    fn taken(series: u64, number: u64, at_ms: i64) -> Taken {
        Taken { meta: meta(series), number, at_ms, value: at_ms as f64, newest: true }
    }

    fn only(id: &str) -> Filter {
        Filter { entity_ids: vec![id.to_owned()], ..Filter::default() }
    }

    #[test]
    fn a_reader_goes_on_where_it_was_and_learns_of_a_restart() {
        let mut channel = Channel::new(4);
        channel.begin(Timestamp::from_millis(1_000));
        let none = || std::iter::empty();
        let mut cursor = channel.cursor(only("n1"), 0, 0, none());
        assert_eq!(channel.read(&mut cursor), None);
        channel.readings(vec![taken(1, 1, 10), taken(2, 1, 10), taken(1, 2, 20)]);
        let reply = channel.read(&mut cursor).unwrap();
        assert_eq!((reply.readings.unwrap().values, reply.missed), (vec![10.0, 20.0], 0));
        let mut resumed = channel.cursor(only("n1"), 0, reply.position - 1, none());
        assert_eq!(channel.read(&mut resumed).unwrap().readings.unwrap().values, [20.0]);
        let mut later = Channel::new(4);
        later.begin(Timestamp::from_millis(2_000));
        later.readings(vec![taken(1, 1, 30)]);
        let mut resumed = later.cursor(only("n1"), 0, reply.position, none());
        let reply = later.read(&mut resumed).unwrap();
        assert_eq!((reply.readings.unwrap().values, reply.missed), (vec![30.0], 1));
    }

    #[test]
    fn fewer_values_are_given_to_who_wants_fewer() {
        let mut channel = Channel::new(100);
        channel.begin(Timestamp::from_millis(1));
        let mut cursor = channel.cursor(Filter::default(), 100, 0, std::iter::empty());
        (0..10).for_each(|n| channel.readings(vec![taken(1, n + 1, n as i64 * 40)]));
        let reply = channel.read(&mut cursor).unwrap();
        assert_eq!((reply.readings.unwrap().values, reply.missed), (vec![0.0, 120.0, 240.0, 360.0], 0));
    }

    #[test]
    fn a_sample_of_an_instance_is_read_as_its_metrics() {
        let mut channel = Channel::new(100);
        channel.begin(Timestamp::from_millis(1));
        let filter = Filter { metrics: vec!["container.memory.*".into()], ..Filter::default() };
        let mut cursor = channel.cursor(filter, 0, 0, std::iter::empty());
        let sample = InstanceSample {
            instance_id: "i".into(),
            cluster_id: "edge".into(),
            memory_bytes: 7,
            at: Some(Timestamp::from_millis(5)),
            ..InstanceSample::default()
        };
        channel.sample(Arc::new(sample), 1);
        let pack = channel.read(&mut cursor).unwrap().readings.unwrap();
        assert!(pack.fits());
        assert_eq!((pack.values, pack.metrics[0].name.as_str()), (vec![7.0], "container.memory.usage"));
        assert_eq!((pack.entities[0].kind.as_str(), pack.at), ("instance", Some(Timestamp::from_millis(5))));
    }

    proptest! {
        /// Whatever is pushed and read: what a reader was given and what it was told it missed are all there was.
        #[test]
        fn a_reader_gets_each_value_or_learns_that_it_missed_it(
            steps in prop::collection::vec((prop::collection::vec(0u64..3, 1..4), any::<bool>()), 1..200),
            values_max in 1usize..20,
            followed in 0u64..3,
        ) {
            let mut channel = Channel::new(values_max);
            channel.begin(Timestamp::from_millis(1));
            let mut counts = [0u64; 3];
            let known: Vec<Arc<Meta>> = (0..3).map(meta).collect();
            let mut cursor = channel.cursor(only(&format!("n{followed}")), 0, 0, known.iter().map(|m| (m, 0)));
            let (mut given, mut missed) = (0, 0);
            let mut last = 0;
            for (pushed, reads) in steps {
                let values = pushed.into_iter().map(|series| {
                    counts[series as usize] += 1;
                    let count = counts[series as usize];
                    taken(series, count, count as i64)
                });
                channel.readings(values.collect());
                prop_assert!(channel.values <= values_max as u64);
                if reads {
                    while let Some(reply) = channel.read(&mut cursor) {
                        missed += reply.missed;
                        for value in reply.readings.unwrap().values {
                            prop_assert!(value as u64 > last);
                            last = value as u64;
                            given += 1;
                        }
                    }
                }
            }
            prop_assert_eq!(given + missed, last);
        }
    }
}
